//! The environment that makes a program use the gateway, and how to write it
//! down for a shell, a dotenv file or a container.
//!
//! Only text: merging CA bundles and starting programs is the callers' work.

use std::fmt::Write as _;

use crate::egress::{Authority, AuthorityError, Host};

/// What never goes through the gateway. Clients keep to it by themselves, so
/// anything more would be a hole that only the network could close.
const NO_PROXY: &str = "localhost,127.0.0.1,::1";

/// Variables that name the proxy. Most programs read one spelling, curl reads
/// `http_proxy` in lower case only, and some read neither but `ALL_PROXY`.
const PROXY: &[&str] = &[
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "grpc_proxy",
];

/// Variables that name a file of trusted roots.
const CA: &[&str] = &[
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "DENO_CERT",
];

/// The gateway as clients are told of it: `http://agent:TOKEN@gateway:8080`.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    /// As written, which may hold a token.
    text: String,
    tls: bool,
    authority: Authority,
}

/// How to write variables down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Lines for `eval` in a POSIX shell: `export NAME='value'`.
    Shell,
    /// A dotenv file, quoted so that Compose, Node and Python read it alike.
    Dotenv,
    /// A file for `docker run --env-file`, which takes every byte as it is.
    Docker,
}

/// Why the environment cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// Neither `http://` nor `https://`.
    #[error("the proxy's URL begins with neither http:// nor https://: write http://gateway:8080")]
    Scheme,
    /// A path, a query or a fragment.
    #[error("the proxy's URL goes on after the port: write http://gateway:8080")]
    NotOnlyAuthority,
    /// What stands before `@` has bytes that no URL has (RFC 3986, 3.2.1).
    #[error("the user or token in the proxy's URL must be percent-encoded")]
    Userinfo,
    /// The host or the port is wrong.
    #[error("the proxy's URL: {0}")]
    Authority(#[from] AuthorityError),
    /// A control character, such as a line feed.
    #[error("{0} has a control character")]
    Control(String),
    /// Programs that read dotenv files disagree on this value.
    #[error("{0} has a quote or a backslash, which dotenv files cannot hold: use another form")]
    Dotenv(String),
}

impl ProxyUrl {
    /// Parses a URL. The port is 80 or 443 where none is written.
    ///
    /// # Errors
    /// [`EnvError`], which never shows the token.
    pub fn parse(text: &str) -> Result<Self, EnvError> {
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err(EnvError::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(EnvError::NotOnlyAuthority);
        }
        let (userinfo, authority) = rest.rsplit_once('@').unwrap_or(("", rest));
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:%".contains(&b);
        if !userinfo.bytes().all(allowed) {
            return Err(EnvError::Userinfo);
        }
        let port = if tls { 443 } else { 80 };
        Ok(Self {
            text: text.to_owned(),
            tls,
            authority: Authority::parse_with_default_port(authority, port)?,
        })
    }
}

impl std::fmt::Debug for ProxyUrl {
    /// Without the user and the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "ProxyUrl({scheme}://{})", self.authority)
    }
}

/// The variables that send a program's traffic through the gateway, in the
/// order in which to show them.
///
/// `ca_bundle` is the absolute path of a PEM file with the system's roots *and*
/// the gateway's CA: most of these variables replace a program's roots. Without
/// a bundle no such variable is set.
#[must_use]
pub fn variables(proxy: &ProxyUrl, ca_bundle: Option<&str>) -> Vec<(String, String)> {
    let mut variables: Vec<(&str, &str)> = Vec::new();
    variables.extend(PROXY.iter().map(|name| (*name, proxy.text.as_str())));
    variables.extend([("NO_PROXY", NO_PROXY), ("no_proxy", NO_PROXY)]);
    // Node reads the proxy from the environment only when it is told to.
    variables.push(("NODE_USE_ENV_PROXY", "1"));
    if let Some(bundle) = ca_bundle {
        variables.extend(CA.iter().map(|name| (*name, bundle)));
    }
    let java = java_options(proxy);
    if let Some(java) = &java {
        variables.push(("JAVA_TOOL_OPTIONS", java));
    }
    variables
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Java reads system properties only, and does not speak TLS to a proxy.
///
/// The last two let an `Authenticator` answer the gateway with Basic on a
/// CONNECT, which Java has switched off. The token itself stays out: every JVM
/// prints this variable when it starts.
fn java_options(proxy: &ProxyUrl) -> Option<String> {
    if proxy.tls {
        return None;
    }
    let host = match &proxy.authority.host {
        Host::Name(name) => name.to_string(),
        Host::Address(address) => address.to_string(),
    };
    let port = proxy.authority.port;
    Some(format!(
        "-Dhttp.proxyHost={host} -Dhttp.proxyPort={port} \
         -Dhttps.proxyHost={host} -Dhttps.proxyPort={port} \
         -Djdk.http.auth.tunneling.disabledSchemes= -Djdk.http.auth.proxying.disabledSchemes="
    ))
}

/// Writes variables down, one on each line.
///
/// # Errors
/// [`EnvError::Control`] and [`EnvError::Dotenv`], which name the variable.
pub fn render(variables: &[(String, String)], form: Form) -> Result<String, EnvError> {
    let mut out = String::new();
    for (name, value) in variables {
        if value.chars().any(char::is_control) {
            return Err(EnvError::Control(name.clone()));
        }
        // Writing to a string cannot fail.
        let _ = match form {
            Form::Shell => writeln!(out, "export {name}='{}'", value.replace('\'', r"'\''")),
            Form::Dotenv if value.contains(['\'', '\\']) => {
                return Err(EnvError::Dotenv(name.clone()));
            }
            Form::Dotenv => writeln!(out, "{name}='{value}'"),
            Form::Docker => writeln!(out, "{name}={value}"),
        };
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const URL: &str = "http://bot-01:ab.c_d-e@gateway:8080";

    fn of<'a>(variables: &'a [(String, String)], name: &str) -> Option<&'a str> {
        let found = variables.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    fn pairs(values: &[&str]) -> Vec<(String, String)> {
        let name = |at: usize| format!("V{at}");
        let pair = |(at, value): (usize, &&str)| (name(at), (*value).to_owned());
        values.iter().enumerate().map(pair).collect()
    }

    #[test]
    fn every_client_is_told() {
        let proxy = ProxyUrl::parse(URL).expect("valid");
        let with = variables(&proxy, Some("/run/agentport/ca.pem"));
        for name in PROXY {
            assert_eq!(of(&with, name), Some(URL), "{name}");
        }
        for name in CA {
            assert_eq!(of(&with, name), Some("/run/agentport/ca.pem"), "{name}");
        }
        for name in ["NO_PROXY", "no_proxy"] {
            assert_eq!(of(&with, name), Some("localhost,127.0.0.1,::1"));
        }
        assert_eq!(of(&with, "NODE_USE_ENV_PROXY"), Some("1"));
        let mut names: Vec<_> = with.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), with.len(), "each variable once");
    }

    #[test]
    fn without_a_bundle_no_roots_are_replaced() {
        let proxy = ProxyUrl::parse(URL).expect("valid");
        let without = variables(&proxy, None);
        assert!(CA.iter().all(|name| of(&without, name).is_none()));
    }

    #[test]
    fn java_gets_the_proxy_and_never_the_token() {
        for (url, java) in [
            (URL, Some("-Dhttp.proxyHost=gateway -Dhttp.proxyPort=8080 ")),
            (
                "http://gateway",
                Some("-Dhttp.proxyHost=gateway -Dhttp.proxyPort=80 "),
            ),
            (
                "http://[::1]:3",
                Some("-Dhttp.proxyHost=::1 -Dhttp.proxyPort=3 "),
            ),
            ("https://gateway:8443", None),
        ] {
            let proxy = ProxyUrl::parse(url).expect("valid");
            let all = variables(&proxy, None);
            let options = of(&all, "JAVA_TOOL_OPTIONS");
            assert_eq!(options.is_some(), java.is_some(), "{url}");
            if let (Some(options), Some(java)) = (options, java) {
                assert!(options.starts_with(java), "{options}");
                assert!(options.contains("-Dhttps.proxyHost="));
                assert!(options.contains("tunneling.disabledSchemes= "));
                assert!(options.ends_with("proxying.disabledSchemes="));
                assert!(!options.contains("ab.c_d-e"), "{options}");
            }
        }
    }

    #[test]
    fn urls_that_are_none() {
        for (raw, error) in [
            ("gateway:8080", EnvError::Scheme),
            ("socks5://gateway:1080", EnvError::Scheme),
            ("", EnvError::Scheme),
            ("http://gateway:8080/path", EnvError::NotOnlyAuthority),
            ("http://gateway:8080?x", EnvError::NotOnlyAuthority),
            ("http://a b@gateway:8080", EnvError::Userinfo),
            ("http://a\n:b@gateway:8080", EnvError::Userinfo),
            ("http://a@b@gateway:8080", EnvError::Userinfo),
            (
                "http://gateway:0",
                EnvError::Authority(AuthorityError::InvalidPort),
            ),
        ] {
            assert_eq!(ProxyUrl::parse(raw), Err(error), "{raw:?}");
        }
    }

    #[test]
    fn debug_hides_the_token() {
        let shown = format!("{:?}", ProxyUrl::parse(URL));
        assert_eq!(shown, "Ok(ProxyUrl(http://gateway:8080))");
    }

    /// What a POSIX shell makes of the text, one value a line.
    fn in_shell(script: &str, count: usize) -> Vec<String> {
        let mut script = script.to_owned();
        for at in 0..count {
            let _ = write!(script, "\nprintf '%s\\n' \"$V{at}\"");
        }
        let output = Command::new("sh").args(["-c", &script]).output();
        let output = output.expect("sh runs");
        assert!(output.status.success(), "{script}");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_shell_reads_back_what_was_written() {
        let values = [
            "plain",
            "",
            "two words",
            "$HOME",
            "`id`",
            "$(id)",
            "it's",
            "'",
            "\"quoted\"",
            r"back\slash",
            "a;b&c|d>e<f",
            "#hash",
            "!bang",
            "ünïcode",
            " spaces ",
            "-n",
        ];
        let text = render(&pairs(&values), Form::Shell).expect("written");
        assert_eq!(in_shell(&text, values.len()), values);
    }

    #[test]
    fn dotenv_is_quoted_or_refused() {
        let values = ["plain", "", "two words", "$HOME", "`id`", "\"q\"", "#hash"];
        let text = render(&pairs(&values), Form::Dotenv).expect("written");
        assert_eq!(in_shell(&text, values.len()), values);
        for value in ["it's", r"back\slash"] {
            let error = EnvError::Dotenv("V0".into());
            assert_eq!(render(&pairs(&[value]), Form::Dotenv), Err(error));
        }
    }

    #[test]
    fn docker_takes_every_byte_as_it_is() {
        let text = render(&pairs(&["it's $x \"y\" \\z"]), Form::Docker);
        assert_eq!(text, Ok("V0=it's $x \"y\" \\z\n".into()));
    }

    #[test]
    fn a_line_feed_makes_no_second_variable() {
        for form in [Form::Shell, Form::Dotenv, Form::Docker] {
            let error = EnvError::Control("V0".into());
            assert_eq!(render(&pairs(&["a\nLD_PRELOAD=x"]), form), Err(error));
        }
    }
}

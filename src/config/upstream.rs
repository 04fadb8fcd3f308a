//! The proxy through which the gateway itself gets out, as `upstream_proxy`
//! writes it.

use std::fmt;
use std::path::PathBuf;

use crate::egress::{Authority, Host, NoProxy, NoProxyEntry};

use super::load::Reader;
use super::value::FromText;

/// A parent proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamProxy {
    /// Where it is.
    pub url: ProxyUrl,
    /// A file with `user:password` for it.
    pub credentials_file: Option<PathBuf>,
    /// A PEM bundle that its certificate is checked against; the system's where
    /// absent.
    pub ca: Option<PathBuf>,
    /// What it is asked for.
    pub address: AskFor,
    /// What is reached without it.
    pub no_proxy: NoProxy,
}

/// Where a parent proxy listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyUrl {
    /// Whether it is spoken to over TLS.
    pub tls: bool,
    /// Host and port.
    pub authority: Authority,
}

/// What a parent proxy is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskFor {
    /// The address that was checked here.
    Resolved,
    /// The name, after its addresses were checked here.
    Name,
    /// The name, which is not resolved here at all.
    Unchecked,
}

impl fmt::Display for ProxyUrl {
    /// As it is written in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

impl FromText for ProxyUrl {
    fn from_text(raw: &str) -> Result<Self, String> {
        const SHAPE: &str = "write http://proxy.example:3128, or https:// for TLS";
        let (scheme, rest) = raw.split_once("://").ok_or(SHAPE)?;
        if rest.contains('@') {
            return Err("credentials do not stand in this file: write them into \
                        upstream_proxy.credentials_file"
                .into());
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = Authority::parse_optional_port(rest).map_err(|_| SHAPE)?;
        let (tls, default) = match scheme {
            "http" => (false, 80),
            "https" => (true, 443),
            _ => return Err(SHAPE.into()),
        };
        let port = port.unwrap_or(default);
        Ok(Self {
            tls,
            authority: Authority { host, port },
        })
    }

    /// Without what people take for the place of the credentials.
    fn quoted(raw: &str) -> String {
        match raw.rsplit_once('@') {
            Some((_, rest)) => format!("\"…@{}\"", rest.escape_debug()),
            None => format!("{raw:?}"),
        }
    }
}

impl FromText for AskFor {
    fn from_text(raw: &str) -> Result<Self, String> {
        match raw {
            "resolved" => Ok(Self::Resolved),
            "name" => Ok(Self::Name),
            "unchecked" => Ok(Self::Unchecked),
            _ => Err("write resolved, name or unchecked".into()),
        }
    }
}

impl FromText for NoProxyEntry {
    fn from_text(raw: &str) -> Result<Self, String> {
        Self::parse(raw)
    }
}

/// There is no parent where no `upstream_proxy.url` is written. What is written
/// beside it would do nothing then, so it is a mistake.
pub(super) fn upstream_proxy(read: &mut Reader<'_>) -> Option<Option<UpstreamProxy>> {
    let url: Option<Option<ProxyUrl>> = read.value("upstream_proxy.url");
    if let Some(Some(_)) = &url {
        read.no_proxy_of_environment("upstream_proxy.no_proxy");
    }
    let credentials_file: Option<Option<PathBuf>> = read.value("upstream_proxy.credentials_file");
    let ca: Option<Option<PathBuf>> = read.value("upstream_proxy.ca");
    let address: Option<AskFor> = read.value("upstream_proxy.address");
    let no_proxy: Option<Vec<NoProxyEntry>> = read.value("upstream_proxy.no_proxy");
    let (url, credentials_file, ca) = (url?, credentials_file?, ca?);
    let (address, no_proxy) = (address?, no_proxy?);
    let Some(url) = url else {
        let idle = [
            (
                "upstream_proxy.credentials_file",
                credentials_file.is_some(),
            ),
            ("upstream_proxy.ca", ca.is_some()),
            ("upstream_proxy.address", address != AskFor::Resolved),
            ("upstream_proxy.no_proxy", !no_proxy.is_empty()),
        ];
        for (key, _) in idle.into_iter().filter(|(_, written)| *written) {
            read.mistake(
                key,
                "is of no use without upstream_proxy.url: write that too",
            );
        }
        return Some(None);
    };
    if ca.is_some() && !url.tls {
        read.mistake(
            "upstream_proxy.ca",
            "upstream_proxy.url is not TLS: write https://, or leave it out",
        );
    }
    Some(Some(UpstreamProxy {
        url,
        credentials_file,
        ca,
        address,
        no_proxy: NoProxy::new(no_proxy),
    }))
}

/// What is allowed and worth a second look.
pub(super) fn warnings(proxy: &UpstreamProxy) -> Vec<String> {
    let mut warnings = Vec::new();
    let here = matches!(proxy.url.authority.host, Host::Address(ip) if ip.is_loopback());
    if proxy.credentials_file.is_some() && !proxy.url.tls && !here {
        warnings.push(format!(
            "upstream_proxy.url is {}, so its credentials travel in clear: write https:// where \
             it can",
            proxy.url
        ));
    }
    match proxy.address {
        AskFor::Resolved => {}
        AskFor::Name => warnings.push(
            "upstream_proxy.address is name: the parent proxy resolves names again, and may reach \
             other addresses than were checked here"
                .into(),
        ),
        AskFor::Unchecked => warnings.push(
            "upstream_proxy.address is unchecked: the addresses of what goes through the parent \
             proxy are not checked here; it must refuse private ones itself"
                .into(),
        ),
    }
    warnings
}

//! The request target (RFC 9112 section 3.2), in each of its four forms.

use std::fmt;

use super::host::{Authority, AuthorityError};
use super::path::{PathError, RequestPath};

/// The most bytes a request target may have; more is answered 414.
pub const MAX_TARGET_BYTES: usize = 8 * 1024;

/// The scheme of a request whose inside the gateway sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Clear-text HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// The word, lower case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port where none is written.
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the request line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestTarget {
    /// `http://host/path?query`, as to a proxy; `ws` is read as `http`.
    Absolute {
        /// How.
        scheme: Scheme,
        /// Where to, with the scheme's port where none is written.
        authority: Authority,
        /// What, without the query.
        path: RequestPath,
        /// After the question mark, as it was sent.
        query: Option<String>,
    },
    /// `/path?query`, as to an origin.
    Origin {
        /// What, without the query.
        path: RequestPath,
        /// After the question mark, as it was sent.
        query: Option<String>,
    },
    /// `host:port`, of `CONNECT` only.
    Authority(Authority),
    /// `*`, of `OPTIONS` only.
    Asterisk,
}

/// Why a request target is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Over [`MAX_TARGET_BYTES`].
    #[error("the request target is longer than 8 KiB")]
    TooLong,
    /// The form does not fit the method, or is no form at all.
    #[error("the request target is neither a path, an absolute URL nor an authority")]
    Form,
    /// A scheme the gateway does not forward.
    #[error("the scheme of the request target is not http")]
    Scheme,
    /// A fragment, which never travels (RFC 9110, 7.1).
    #[error("the request target has a fragment")]
    Fragment,
    /// A character that no URL has.
    #[error(
        "the request target has a space, a control character, a byte outside ASCII or one of < > \" `; percent-encode it"
    )]
    InvalidCharacter,
    /// The authority is not valid.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The path is not valid.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl RequestTarget {
    /// Parses the target of a request with this method.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn parse(method: &str, raw: &str) -> Result<Self, TargetError> {
        if raw.len() > MAX_TARGET_BYTES {
            return Err(TargetError::TooLong);
        }
        if method == "CONNECT" {
            return Ok(Self::Authority(Authority::parse(raw)?));
        }
        if raw == "*" {
            return match method {
                "OPTIONS" => Ok(Self::Asterisk),
                _ => Err(TargetError::Form),
            };
        }
        if !raw.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
            return Err(TargetError::InvalidCharacter);
        }
        if raw.contains('#') {
            return Err(TargetError::Fragment);
        }
        // Never in a URL (RFC 3986 section 2). Some send braces and the like all
        // the same, and some servers take them.
        let (path, query) = raw.split_once('?').unwrap_or((raw, ""));
        if path.contains(['<', '>', '`']) || query.contains(['<', '>', '"']) {
            return Err(TargetError::InvalidCharacter);
        }
        if raw.starts_with('/') {
            let (path, query) = split_query(raw);
            return Ok(Self::Origin {
                path: RequestPath::parse(path)?,
                query,
            });
        }
        let Some((scheme, rest)) = raw.split_once("://") else {
            return Err(TargetError::Form);
        };
        // Some clients open a WebSocket with its own scheme here (aiohttp). Its
        // handshake is a request like any other (RFC 6455 section 4.1).
        let is = |names: [&str; 2]| names.iter().any(|name| scheme.eq_ignore_ascii_case(name));
        let scheme = if is(["http", "ws"]) {
            Scheme::Http
        } else if is(["https", "wss"]) {
            Scheme::Https
        } else {
            return Err(TargetError::Scheme);
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        let authority = Authority::parse_with_default_port(authority, scheme.default_port())?;
        let (path, query) = split_query(tail);
        let path = RequestPath::parse(if path.is_empty() { "/" } else { path })?;
        Ok(Self::Absolute {
            scheme,
            authority,
            path,
            query,
        })
    }
}

fn split_query(raw: &str) -> (&str, Option<String>) {
    match raw.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (raw, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::HostError;

    #[test]
    fn absolute_form() {
        let parsed = RequestTarget::parse("GET", "HTTP://Example.com?q=1").expect("a target");
        let RequestTarget::Absolute {
            scheme,
            authority,
            path,
            query,
        } = parsed
        else {
            panic!("not absolute");
        };
        assert_eq!(scheme, Scheme::Http);
        assert_eq!(authority.to_string(), "example.com:80");
        assert_eq!(path.as_str(), "/");
        assert_eq!(query.as_deref(), Some("q=1"));
    }

    #[test]
    fn the_schemes_of_websocket_are_those_of_their_handshake() {
        for (raw, scheme, port) in [
            ("ws://example.com/chat", Scheme::Http, 80),
            ("WS://example.com:8080/", Scheme::Http, 8080),
            ("wss://example.com/chat", Scheme::Https, 443),
        ] {
            match RequestTarget::parse("GET", raw) {
                Ok(RequestTarget::Absolute {
                    scheme: found,
                    authority,
                    ..
                }) => assert_eq!((found, authority.port), (scheme, port), "{raw}"),
                other => panic!("{raw}: {other:?}"),
            }
        }
        let other = RequestTarget::parse("GET", "wsx://example.com/");
        assert_eq!(other, Err(TargetError::Scheme));
    }

    #[test]
    fn refused_targets() {
        for (method, raw, error) in [
            ("GET", "*", TargetError::Form),
            ("GET", "example.com:80", TargetError::Form),
            ("GET", "", TargetError::Form),
            ("GET", "ftp://example.com/", TargetError::Scheme),
            ("GET", "file:///etc/passwd", TargetError::Scheme),
            (
                "GET",
                "http://u:p@example.com/",
                AuthorityError::Userinfo.into(),
            ),
            (
                "GET",
                "http://u%40x@example.com/",
                AuthorityError::Userinfo.into(),
            ),
            ("GET", "http://example.com/#f", TargetError::Fragment),
            (
                "GET",
                "http://example.com/a b",
                TargetError::InvalidCharacter,
            ),
            (
                "GET",
                "http:///a",
                AuthorityError::Host(HostError::Empty).into(),
            ),
            (
                "GET",
                "http://example.com:0/",
                AuthorityError::InvalidPort.into(),
            ),
            (
                "GET",
                "http://example.com:/",
                AuthorityError::InvalidPort.into(),
            ),
            (
                "GET",
                "http://a\\b/",
                AuthorityError::Host(HostError::InvalidCharacter).into(),
            ),
            (
                "GET",
                "http://127.1/",
                AuthorityError::Host(HostError::NumericLooking).into(),
            ),
            (
                "CONNECT",
                "/",
                AuthorityError::Host(HostError::InvalidCharacter).into(),
            ),
            ("CONNECT", "example.com", AuthorityError::MissingPort.into()),
            (
                "CONNECT",
                "http://example.com:80",
                AuthorityError::InvalidPort.into(),
            ),
            (
                "CONNECT",
                "*",
                AuthorityError::Host(HostError::InvalidCharacter).into(),
            ),
        ] {
            assert_eq!(
                RequestTarget::parse(method, raw),
                Err(error),
                "{method} {raw}"
            );
        }
        let long = format!("http://example.com/{}", "a".repeat(MAX_TARGET_BYTES));
        assert_eq!(
            RequestTarget::parse("GET", &long),
            Err(TargetError::TooLong)
        );
    }

    #[test]
    fn a_backslash_or_an_at_sign_never_moves_the_host() {
        for raw in [
            "http://good.example\\@evil.example/",
            "http://evil.example%2f@good.example/",
        ] {
            assert!(RequestTarget::parse("GET", raw).is_err(), "{raw}");
        }
        let parsed = RequestTarget::parse("GET", "http://good.example/@evil.example").expect("ok");
        assert!(
            matches!(parsed, RequestTarget::Absolute { authority, .. } if authority.to_string() == "good.example:80")
        );
    }
}

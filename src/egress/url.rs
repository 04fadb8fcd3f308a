//! `https` URLs that an operator writes, or an issuer names.

use std::fmt;

use super::host::{Authority, Host};

/// The longest URL.
const MAX_URL_BYTES: usize = 2048;

/// An `https` URL: a host, a port, and a path with a query. It has no user, no
/// fragment and no character that must be escaped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpsUrl {
    authority: Authority,
    path: String,
}

/// Why a string is not such a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme, or none.
    #[error("write a URL that begins with https://")]
    Scheme,
    /// Over 2048 bytes.
    #[error("the URL is longer than 2048 bytes")]
    TooLong,
    /// The part between `//` and the path is no host and port.
    #[error("the URL has no valid host")]
    Authority,
    /// A blank, a control character, a backslash, or one that is not ASCII.
    #[error("the URL has a character that must be escaped by %")]
    Character,
    /// `#` and what follows, which no server ever sees.
    #[error("the URL has a fragment: leave out # and what follows")]
    Fragment,
}

impl HttpsUrl {
    /// Parses a URL (RFC 3986), with port 443 where there is none.
    ///
    /// # Errors
    /// [`UrlError`].
    pub fn parse(raw: &str) -> Result<Self, UrlError> {
        if raw.len() > MAX_URL_BYTES {
            return Err(UrlError::TooLong);
        }
        let rest = raw.strip_prefix("https://").ok_or(UrlError::Scheme)?;
        if rest.contains('#') {
            return Err(UrlError::Fragment);
        }
        let plain = |b: u8| b.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&b);
        if !rest.bytes().all(plain) {
            return Err(UrlError::Character);
        }
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let (host, port) =
            Authority::parse_optional_port(authority).map_err(|_| UrlError::Authority)?;
        Ok(Self {
            authority: Authority {
                host,
                port: port.unwrap_or(443),
            },
            path: if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            },
        })
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.authority.host
    }

    /// Host and port.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Path and query, from the first slash on.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}{}", self.authority, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        #[rustfmt::skip]
        let cases = [
            ("a host alone", "https://a.example", Ok("https://a.example:443/")),
            ("a port and a query", "https://a.example:8443/x?y=1", Ok("https://a.example:8443/x?y=1")),
            ("a query alone", "https://a.example?y", Ok("https://a.example:443/?y")),
            ("an address", "https://[2001:db8::1]/k", Ok("https://[2001:db8::1]:443/k")),
            ("in clear", "http://a.example/", Err(UrlError::Scheme)),
            ("a user", "https://user@a.example/", Err(UrlError::Authority)),
            ("no host", "https:///x", Err(UrlError::Authority)),
            ("a fragment", "https://a.example/#x", Err(UrlError::Fragment)),
            ("a blank", "https://a.example/a b", Err(UrlError::Character)),
            ("a line end", "https://a.example/\r\nHost: b", Err(UrlError::Character)),
            ("a backslash", "https://a.example\\@b.example/", Err(UrlError::Character)),
        ];
        for (case, raw, expected) in cases {
            let parsed = HttpsUrl::parse(raw).map(|url| url.to_string());
            assert_eq!(parsed, expected.map(str::to_owned), "{case}");
        }
        let long = format!("https://a.example/{}", "x".repeat(2048));
        assert_eq!(HttpsUrl::parse(&long), Err(UrlError::TooLong));
    }
}

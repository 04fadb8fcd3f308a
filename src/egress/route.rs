//! Named routes: which requests to the gateway itself are meant for an origin,
//! and how a path here is a path there.
//!
//! A path is put together before it is judged, so that policy sees what the
//! origin gets. Nothing here decides.

use std::sync::Arc;

use super::host::{Authority, DnsName, Host};
use super::path::{PathError, RequestPath};
use super::target::{RequestTarget, Scheme, TargetError};

/// A route from the gateway to an origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    name: Arc<str>,
    prefix: String,
    hosts: Vec<DnsName>,
    to: RouteTarget,
}

/// Where a route leads: `https://api.example.com/base`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTarget {
    scheme: Scheme,
    authority: Authority,
    /// Before every path; empty, or from a slash to no slash.
    base: String,
}

/// How a request has found its route, which tells what stands before its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// By the beginning of its path.
    Prefix,
    /// By its host.
    Host,
}

/// Why a text is no target of a route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteTargetError {
    /// Not `http://` or `https://`.
    #[error("write a URL that begins with https:// or http://")]
    Scheme,
    /// Not a URL otherwise.
    #[error(transparent)]
    Target(TargetError),
    /// A query, which would have to be merged with the request's.
    #[error("leave out the query: ? and what follows")]
    Query,
    /// Escapes, dot segments, empty segments or `;`.
    #[error("the path before all others has plain segments only: /v1 or /a/b")]
    Base,
    /// An underscore, which no certificate may have in a name.
    #[error("no certificate can be valid for a host with an underscore")]
    Underscore,
}

/// Why a path does not go by a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// It climbs out of the part of the origin that the route leads to.
    #[error("the path leaves the part of the origin that the route leads to")]
    Leaves,
    /// It is no path.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl RouteTarget {
    /// Parses the URL that an operator has written.
    ///
    /// # Errors
    /// [`RouteTargetError`].
    pub fn parse(raw: &str) -> Result<Self, RouteTargetError> {
        let lower = raw.get(..8).unwrap_or(raw).to_ascii_lowercase();
        if !lower.starts_with("https://") && !lower.starts_with("http://") {
            return Err(RouteTargetError::Scheme);
        }
        let parsed = RequestTarget::parse("GET", raw).map_err(RouteTargetError::Target)?;
        let RequestTarget::Absolute {
            scheme,
            authority,
            path,
            query,
        } = parsed
        else {
            return Err(RouteTargetError::Scheme);
        };
        if query.is_some() {
            return Err(RouteTargetError::Query);
        }
        let underscore = |name: &DnsName| name.to_string().contains('_');
        if scheme == Scheme::Https && authority.host.name().is_some_and(underscore) {
            return Err(RouteTargetError::Underscore);
        }
        let base = path.as_str().trim_end_matches('/');
        if !is_plain_path(base) {
            return Err(RouteTargetError::Base);
        }
        Ok(Self {
            scheme,
            authority,
            base: base.to_owned(),
        })
    }

    /// Over TLS or in clear.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host and the port.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The name that the origin's certificate must be valid for: the host, or
    /// the address without brackets.
    #[must_use]
    pub fn certificate_name(&self) -> String {
        match &self.authority.host {
            Host::Name(name) => name.to_string(),
            Host::Address(address) => address.to_string(),
        }
    }

    /// What stands in `Host`: without the port where it is the scheme's.
    #[must_use]
    pub fn host_field(&self) -> String {
        if self.authority.port == self.scheme.default_port() {
            self.authority.host.to_string()
        } else {
            self.authority.to_string()
        }
    }
}

impl std::fmt::Display for RouteTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.host_field(), self.base)
    }
}

/// Whether a path is empty, or segments of letters, digits and `-._~`, with no
/// slash at its end and no segment of dots.
#[must_use]
pub fn is_plain_path(path: &str) -> bool {
    let plain = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
    };
    path.is_empty()
        || path
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(plain))
}

impl Route {
    /// A route. `prefix` is a plain path that is not empty.
    #[must_use]
    pub fn new(name: String, prefix: String, hosts: Vec<DnsName>, to: RouteTarget) -> Self {
        Self {
            name: name.into(),
            prefix,
            hosts,
            to,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What its paths begin with, on the gateway.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The hosts by which it is asked for.
    #[must_use]
    pub fn hosts(&self) -> &[DnsName] {
        &self.hosts
    }

    /// Where it leads.
    #[must_use]
    pub fn to(&self) -> &RouteTarget {
        &self.to
    }

    /// Whether a request with this path is this route's.
    #[must_use]
    pub fn has_prefix_of(&self, path: &RequestPath) -> bool {
        below(path.as_str(), &self.prefix).is_some()
    }

    /// The path at the origin. Every way in which an origin may read it stays
    /// within the base of the route.
    ///
    /// # Errors
    /// [`RouteError`].
    pub fn path(&self, found: Found, path: &RequestPath) -> Result<RequestPath, RouteError> {
        let rest = match found {
            Found::Host => Some(path.as_str()),
            Found::Prefix => below(path.as_str(), &self.prefix),
        };
        let rest = rest.ok_or(RouteError::Leaves)?;
        let slash = if rest.is_empty() && self.to.base.is_empty() {
            "/"
        } else {
            ""
        };
        let there = RequestPath::parse(&format!("{}{rest}{slash}", self.to.base))?;
        let below_base = |view| below(view, &self.to.base).is_some();
        let stays = self.to.base.is_empty() || !there.is_unclear();
        let stays = stays && there.views().all(below_base);
        stays.then_some(there).ok_or(RouteError::Leaves)
    }

    /// A reference of the origin to itself, as the client can follow it through
    /// the gateway; `None` for one that leads elsewhere, which stays as it is.
    #[must_use]
    pub fn location(&self, found: Found, location: &str) -> Option<String> {
        let path = if location.starts_with('/') && !location.starts_with("//") {
            location
        } else {
            let (scheme, rest) = location.split_once("://")?;
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            let port = self.to.scheme.default_port();
            let named = Authority::parse_with_default_port(authority, port).ok()?;
            let same =
                scheme.eq_ignore_ascii_case(self.to.scheme.as_str()) && named == self.to.authority;
            same.then_some(path)?
        };
        let end = path.find(['?', '#']).unwrap_or(path.len());
        let (path, tail) = path.split_at(end);
        let rest = below(path, &self.to.base)?;
        let mount = match found {
            Found::Prefix => self.prefix.as_str(),
            Found::Host => "",
        };
        let slash = if rest.is_empty() && mount.is_empty() {
            "/"
        } else {
            ""
        };
        // Two slashes at the beginning would name a host.
        if mount.is_empty() && rest.starts_with("//") {
            return None;
        }
        Some(format!("{mount}{rest}{slash}{tail}"))
    }
}

/// What follows `base` in a path that is below it.
fn below<'p>(path: &'p str, base: &str) -> Option<&'p str> {
    path.strip_prefix(base)
        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(to: &str) -> Route {
        let hosts = vec![DnsName::parse("api.internal").expect("a name")];
        let to = RouteTarget::parse(to).expect("a target");
        Route::new("api".into(), "/routes/api".into(), hosts, to)
    }

    #[test]
    fn targets() {
        for (case, raw, expected) in [
            ("a host", "https://a.example", Ok("https://a.example")),
            ("a slash", "https://a.example/", Ok("https://a.example")),
            (
                "a base and a port",
                "https://A.example:8443/v1/",
                Ok("https://a.example:8443/v1"),
            ),
            (
                "its own port",
                "https://a.example:443",
                Ok("https://a.example"),
            ),
            ("in clear", "http://a.example:80", Ok("http://a.example")),
            (
                "an address",
                "https://[2001:db8::1]",
                Ok("https://[2001:db8::1]"),
            ),
            ("no scheme", "a.example", Err(RouteTargetError::Scheme)),
            ("a socket", "wss://a.example", Err(RouteTargetError::Scheme)),
            (
                "a query",
                "https://a.example?x",
                Err(RouteTargetError::Query),
            ),
            (
                "dots",
                "https://a.example/a/../b",
                Err(RouteTargetError::Base),
            ),
            (
                "an escape",
                "https://a.example/%61",
                Err(RouteTargetError::Base),
            ),
            (
                "two slashes",
                "https://a.example//b",
                Err(RouteTargetError::Base),
            ),
            (
                "an underscore",
                "https://a_b.example",
                Err(RouteTargetError::Underscore),
            ),
        ] {
            let parsed = RouteTarget::parse(raw).map(|target| target.to_string());
            assert_eq!(parsed, expected.map(str::to_owned), "{case}");
        }
        let six = RouteTarget::parse("https://[2001:db8::1]").expect("a target");
        assert_eq!(six.certificate_name(), "2001:db8::1");
    }

    #[test]
    fn a_path_here_is_a_path_there() {
        let plain = "https://a.example";
        let based = "https://a.example/v1";
        for (case, to, found, path, expected) in [
            (
                "by prefix",
                plain,
                Found::Prefix,
                "/routes/api/v1/x",
                Ok("/v1/x"),
            ),
            (
                "the route itself",
                plain,
                Found::Prefix,
                "/routes/api",
                Ok("/"),
            ),
            ("its slash", plain, Found::Prefix, "/routes/api/", Ok("/")),
            (
                "with a base",
                based,
                Found::Prefix,
                "/routes/api/x",
                Ok("/v1/x"),
            ),
            (
                "the base itself",
                based,
                Found::Prefix,
                "/routes/api",
                Ok("/v1"),
            ),
            (
                "by host",
                plain,
                Found::Host,
                "/routes/api/x",
                Ok("/routes/api/x"),
            ),
            (
                "by host, with a base",
                based,
                Found::Host,
                "/x",
                Ok("/v1/x"),
            ),
            (
                "escapes stay as they are",
                plain,
                Found::Prefix,
                "/routes/api/m/a%2Fb",
                Ok("/m/a%2Fb"),
            ),
            (
                "dots within",
                based,
                Found::Prefix,
                "/routes/api/a/../b",
                Ok("/v1/a/../b"),
            ),
            (
                "another route",
                plain,
                Found::Prefix,
                "/routes/apis",
                Err(()),
            ),
            (
                "dots out",
                based,
                Found::Prefix,
                "/routes/api/../x",
                Err(()),
            ),
            (
                "escaped dots",
                based,
                Found::Prefix,
                "/routes/api/%2e%2e/x",
                Err(()),
            ),
            (
                "an escaped slash",
                based,
                Found::Prefix,
                "/routes/api/..%2fx",
                Err(()),
            ),
            (
                "twice escaped",
                based,
                Found::Prefix,
                "/routes/api/..%252fx",
                Err(()),
            ),
            (
                "a backslash",
                based,
                Found::Prefix,
                "/routes/api/..\\x",
                Err(()),
            ),
            (
                "a parameter",
                based,
                Found::Prefix,
                "/routes/api/..;/x",
                Err(()),
            ),
            ("by host, out", based, Found::Host, "/../x", Err(())),
        ] {
            let path = RequestPath::parse(path).expect("a path");
            let there = route(to).path(found, &path);
            let there = there.map(|there| there.as_str().to_owned()).map_err(|_| ());
            assert_eq!(there, expected.map(str::to_owned), "{case}");
        }
    }

    #[test]
    fn where_the_origin_leads_to_itself() {
        for (case, to, found, location, expected) in [
            (
                "its own URL",
                "https://a.example",
                Found::Prefix,
                "https://a.example/x?y#z",
                Some("/routes/api/x?y#z"),
            ),
            (
                "its own port and case",
                "https://a.example",
                Found::Prefix,
                "HTTPS://A.example:443/x",
                Some("/routes/api/x"),
            ),
            (
                "a path",
                "https://a.example",
                Found::Prefix,
                "/x",
                Some("/routes/api/x"),
            ),
            (
                "no path",
                "https://a.example",
                Found::Prefix,
                "https://a.example?x",
                Some("/routes/api?x"),
            ),
            (
                "by host",
                "https://a.example",
                Found::Host,
                "https://a.example",
                Some("/"),
            ),
            (
                "below the base",
                "https://a.example/v1",
                Found::Host,
                "/v1/x",
                Some("/x"),
            ),
            (
                "beside the base",
                "https://a.example/v1",
                Found::Host,
                "/v2/x",
                None,
            ),
            (
                "another host",
                "https://a.example",
                Found::Prefix,
                "https://b.example/",
                None,
            ),
            (
                "another scheme",
                "https://a.example",
                Found::Prefix,
                "http://a.example/",
                None,
            ),
            (
                "another port",
                "https://a.example",
                Found::Prefix,
                "https://a.example:1/",
                None,
            ),
            (
                "a host without scheme",
                "https://a.example",
                Found::Prefix,
                "//b.example/",
                None,
            ),
            (
                "a host in disguise",
                "https://a.example/v1",
                Found::Host,
                "/v1//b.example/",
                None,
            ),
            ("relative", "https://a.example", Found::Prefix, "x", None),
        ] {
            let moved = route(to).location(found, location);
            assert_eq!(moved.as_deref(), expected, "{case}");
        }
    }
}

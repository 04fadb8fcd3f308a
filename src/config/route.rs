//! Named routes, as `routes` writes them, or the file that `routes_file` names.

use std::path::PathBuf;

use crate::egress::{DnsName, Route, RouteTarget, Scheme, is_plain_path};

use super::error::ConfigError;
use super::issuer::Fields;
use super::list;
use super::tree::{Node, Value};
use super::value::{FromText, Setting, miss_unknown, push};

/// A route from the gateway to an origin, with how the origin is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRoute {
    /// Which requests, and where to.
    pub route: Route,
    /// The CA that the origin's certificate must come from; what `upstream_ca`
    /// says where absent.
    pub ca: Option<PathBuf>,
    /// Whether HTTP/2 is spoken.
    pub http2: UpstreamHttp2,
    /// Whose `Authorization` is.
    pub authorization: AuthorizationOwner,
}

/// Whether HTTP/2 is spoken with an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamHttp2 {
    /// Where both want it (ALPN).
    Auto,
    /// Never.
    Off,
    /// Always; in clear text with prior knowledge (RFC 9113, 3.3).
    Only,
}

/// Whose credential the field `Authorization` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorizationOwner {
    /// The gateway's, unless another field has that.
    Gateway,
    /// The origin's, always.
    Origin,
}

/// Reads a file of routes: `routes:` and the list, YAML or JSON.
///
/// # Errors
/// Every mistake, at least one, with its place in the file called `name`. A file
/// without a list is one; that there is no route is `routes: []`.
pub fn parse_routes(name: &str, text: &str) -> Result<Vec<NamedRoute>, Vec<ConfigError>> {
    const SHAPE: &str = "write routes: and a list as in routes; [] for none";
    list::parse(name, text, "routes", SHAPE, twice)
}

/// The routes that have something of an earlier one, and what to write.
pub(super) fn twice(routes: &[NamedRoute]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, named) in routes.iter().enumerate() {
        let route = &named.route;
        let same = |other: &NamedRoute| {
            let other = &other.route;
            let host = route
                .hosts()
                .iter()
                .find(|host| other.hosts().contains(host));
            if other.name() == route.name() {
                Some(format!("the name {:?}", route.name()))
            } else if other.prefix() == route.prefix() {
                Some(format!("the prefix {:?}", route.prefix()))
            } else {
                host.map(|host| format!("the host {host}"))
            }
        };
        if let Some(what) = routes[..at].iter().find_map(same) {
            let message = format!("{what} is that of an earlier route: write another");
            found.push((at, message));
        }
    }
    found
}

impl FromText for UpstreamHttp2 {
    fn from_text(raw: &str) -> Result<Self, String> {
        match raw {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            "only" => Ok(Self::Only),
            _ => Err("write auto, off or only".to_owned()),
        }
    }
}

impl FromText for AuthorizationOwner {
    fn from_text(raw: &str) -> Result<Self, String> {
        match raw {
            "gateway" => Ok(Self::Gateway),
            "origin" => Ok(Self::Origin),
            _ => Err("write gateway or origin".to_owned()),
        }
    }
}

impl FromText for RouteTarget {
    fn from_text(raw: &str) -> Result<Self, String> {
        Self::parse(raw).map_err(|error| error.to_string())
    }
}

const KEYS: [&str; 7] = [
    "name",
    "prefix",
    "hosts",
    "to",
    "ca",
    "http2",
    "authorization",
];

/// Where the gateway has pages of its own.
const OWN_PATHS: [&str; 3] = ["/health", "/ready", "/.well-known"];

impl Setting for NamedRoute {
    fn read(node: &Node, key: &str, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            let message = "write a mapping: {name: openai, to: https://api.openai.com}".to_owned();
            push(errors, node, key, message);
            return None;
        };
        let before = errors.len();
        miss_unknown(entries, key, &KEYS, errors);
        for name in ["name", "to"] {
            if !entries.iter().any(|entry| entry.key == name) {
                push(errors, node, key, format!("{name} is missing: write it"));
            }
        }
        let mut of = Fields {
            entries,
            key,
            errors,
        };
        let name: Option<String> = of.read("name");
        let prefix: Option<String> = of.read("prefix");
        let hosts: Vec<DnsName> = of.read("hosts").unwrap_or_default();
        let to: Option<RouteTarget> = of.read("to");
        let ca: Option<PathBuf> = of.read("ca");
        let http2 = of.read("http2").unwrap_or(UpstreamHttp2::Auto);
        let authorization = of
            .read("authorization")
            .unwrap_or(AuthorizationOwner::Gateway);
        let (name, to) = (name?, to?);
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) {
            let message = format!("name: {name:?}: write 1 to 63 of a-z, 0-9 and -");
            push(errors, node, key, message);
        }
        let prefix = prefix.unwrap_or_else(|| format!("/routes/{name}"));
        if prefix.is_empty() || !is_plain_path(&prefix) {
            let message = format!(
                "prefix: {prefix:?}: write plain segments without a slash at the end: /routes/{name}"
            );
            push(errors, node, key, message);
        }
        let own = |own: &&str| prefix == *own || prefix.starts_with(&format!("{own}/"));
        if let Some(own) = OWN_PATHS.into_iter().find(own) {
            let message = format!("prefix: {own} is the gateway's own: write /routes/{name}");
            push(errors, node, key, message);
        }
        if ca.is_some() && to.scheme() == Scheme::Http {
            let message = "ca has no effect on http://: write https://, or leave it out".to_owned();
            push(errors, node, key, message);
        }
        (errors.len() == before).then_some(Self {
            route: Route::new(name, prefix, hosts, to),
            ca,
            http2,
            authorization,
        })
    }
}

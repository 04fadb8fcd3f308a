//! Named routes: a request to the gateway itself that is meant for an origin.
//!
//! Which one, whose credential it brings, and how the origin is spoken to.
//! That it may pass is the gate's word, as for every other request.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};
use pingora::http::ResponseHeader;
use pingora::upstreams::peer::PeerOptions;
use pingora::utils::tls::{WrappedX509, parse_x509};

use crate::egress::{Authority, Found, Host, RequestPath, RequestTarget, Route, Scheme};
use crate::gate::{Cause, Denial, Gate};
use crate::identity::Credential;

use super::fields::TOKEN_FIELD;

/// A route, with how its origin is spoken to.
#[derive(Clone, Debug)]
pub struct NamedRoute {
    /// Which requests, and where to.
    pub route: Route,
    /// What the origin's certificate is checked against; where absent, what all
    /// origins' are.
    pub roots: Option<UpstreamRoots>,
    /// Whether HTTP/2 is spoken.
    pub http2: UpstreamHttp2,
    /// Whether `Authorization` is always the origin's.
    pub authorization_is_origins: bool,
}

/// Whether HTTP/2 is spoken with an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamHttp2 {
    /// Where both want it.
    Auto,
    /// Never.
    Off,
    /// Always.
    Only,
}

/// Certificates of CAs.
#[derive(Clone)]
pub struct UpstreamRoots(Arc<[WrappedX509]>);

impl UpstreamRoots {
    /// From certificates in DER, at least one.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn new(certificates: Vec<Vec<u8>>) -> Result<Self, String> {
        if certificates.is_empty() {
            return Err("there is no PEM certificate in it".to_owned());
        }
        for der in &certificates {
            let mut store = rustls::RootCertStore::empty();
            let added = store.add(rustls::pki_types::CertificateDer::from(der.as_slice()));
            added.map_err(|error| format!("a certificate cannot be used: {error}"))?;
            // Pingora reads each once more, and must not fail at it.
            match x509_parser::parse_x509_certificate(der) {
                Ok(_) => {}
                Err(error) => return Err(format!("a certificate cannot be read: {error}")),
            }
        }
        let wrap = |der| WrappedX509::new(der, parse_x509);
        Ok(Self(certificates.into_iter().map(wrap).collect()))
    }
}

impl UpstreamRoots {
    /// Has certificates checked against these alone.
    pub(super) fn set(&self, options: &mut PeerOptions) {
        options.ca = Some(Arc::clone(&self.0));
    }
}

impl fmt::Debug for UpstreamRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UpstreamRoots({})", self.0.len())
    }
}

/// The route of one request, and how it was found.
#[derive(Clone)]
pub(super) struct Chosen {
    pub(super) route: Arc<NamedRoute>,
    generation: u64,
    found: Found,
    /// The path on the gateway, and the query.
    path: RequestPath,
    query: Option<String>,
}

/// All routes.
pub(super) struct Routes {
    all: Vec<Arc<NamedRoute>>,
    /// What tells these from those before them.
    generation: u64,
}

impl Routes {
    pub(super) fn new(routes: &[NamedRoute]) -> Self {
        static GENERATIONS: AtomicU64 = AtomicU64::new(0);
        let mut all: Vec<_> = routes.iter().cloned().map(Arc::new).collect();
        // Of two prefixes, one below the other, the longer one is meant.
        all.sort_by_key(|named| std::cmp::Reverse(named.route.prefix().len()));
        Self {
            all,
            generation: GENERATIONS.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The route that a request outside any tunnel is meant for.
    ///
    /// A request in absolute-form by HTTP/1.1 is one to a proxy, always. HTTP/2
    /// has no other form (RFC 9113 section 8.3.1): there it is a route's where
    /// it names a host of the route, or the gateway itself, or is `https`,
    /// which no proxy could fetch.
    pub(super) fn choose(
        &self,
        target: &RequestTarget,
        host: Option<&HeaderValue>,
        http2: bool,
        gate: &Gate,
    ) -> Option<Chosen> {
        if self.all.is_empty() {
            return None;
        }
        let (host, path, query, is_gateways) = match target {
            RequestTarget::Origin { path, query } => {
                let text = host.and_then(|value| value.to_str().ok());
                let named = text.and_then(|text| Authority::parse_optional_port(text).ok());
                (named.map(|(host, _)| host), path, query, true)
            }
            RequestTarget::Absolute {
                scheme,
                authority,
                path,
                query,
            } if http2 => {
                let own = *scheme == Scheme::Https || gate.is_own(authority);
                (Some(authority.host.clone()), path, query, own)
            }
            _ => return None,
        };
        let name = host.as_ref().and_then(Host::name);
        let by_host = name.and_then(|name| {
            self.all
                .iter()
                .find(|named| named.route.hosts().contains(name))
        });
        let (route, found) = match by_host {
            Some(route) => (route, Found::Host),
            None if is_gateways => {
                let below = |named: &&Arc<NamedRoute>| named.route.has_prefix_of(path);
                (self.all.iter().find(below)?, Found::Prefix)
            }
            None => return None,
        };
        Some(Chosen {
            route: Arc::clone(route),
            generation: self.generation,
            found,
            path: path.clone(),
            query: query.clone(),
        })
    }
}

impl Chosen {
    /// What it is called.
    pub(super) fn name(&self) -> &Arc<str> {
        self.route.route.name()
    }

    /// What a kept connection must have been made by: other routes to one origin
    /// may trust other CAs, and so may those of the same name after a reload.
    pub(super) fn made_by(&self) -> (&str, u64) {
        (self.name(), self.generation)
    }

    /// Where it leads.
    pub(super) fn authority(&self) -> &Authority {
        self.route.route.to().authority()
    }

    pub(super) fn scheme(&self) -> Scheme {
        self.route.route.to().scheme()
    }

    /// The path at the origin.
    ///
    /// # Errors
    /// A [`Denial`] of a path that leaves the route.
    pub(super) fn path_there(&self) -> Result<RequestPath, Denial> {
        let there = self.route.route.path(self.found, &self.path);
        there.map_err(|error| {
            Denial::new(Cause::BadRequest(
                "the path leaves the part of the origin that the route leads to",
            ))
            .towards(self.authority())
            .detail(format!("route {}: {error}", self.route.route.name()))
        })
    }

    /// The path at the origin, with the query.
    pub(super) fn target(&self, there: &RequestPath) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", there.as_str()),
            None => there.as_str().to_owned(),
        }
    }

    /// The gateway's credential, and the field that held it where that is one
    /// which could be the origin's.
    ///
    /// # Errors
    /// A [`Denial`] of a field that is there twice.
    pub(super) fn credential(
        &self,
        headers: &HeaderMap,
        proxys: Option<Vec<u8>>,
    ) -> Result<(Option<HeaderName>, Option<Vec<u8>>), Denial> {
        let token = HeaderName::from_static(TOKEN_FIELD);
        for (name, what) in [
            (&token, "there are two X-AgentPort-Token fields"),
            (&header::AUTHORIZATION, "there are two Authorization fields"),
        ] {
            if headers.get_all(name).iter().count() > 1 {
                return Err(Denial::new(Cause::BadRequest(what)).towards(self.authority()));
            }
        }
        let authorization = headers
            .get(header::AUTHORIZATION)
            .map(HeaderValue::as_bytes);
        let explicit = match headers.get(&token) {
            Some(value) => Some([b"Bearer ", value.as_bytes()].concat()),
            None => proxys,
        };
        Ok(match (explicit, authorization) {
            // Whoever sends the gateway's token twice does not mean the origin
            // to have it.
            (Some(ours), Some(theirs)) if secret(&ours) == secret(theirs) => {
                (Some(header::AUTHORIZATION), Some(ours))
            }
            (Some(ours), _) => (None, Some(ours)),
            (None, Some(value)) if !self.route.authorization_is_origins => {
                (Some(header::AUTHORIZATION), Some(value.to_vec()))
            }
            (None, _) => (None, None),
        })
    }

    /// How the origin is spoken to.
    pub(super) fn set(&self, options: &mut PeerOptions, websocket: bool) {
        let tls = self.scheme() == Scheme::Https;
        match self.route.http2 {
            // An upgrade is a thing of HTTP/1.1.
            _ if websocket => options.set_http_version(1, 1),
            UpstreamHttp2::Only => options.set_http_version(2, 2),
            UpstreamHttp2::Auto if tls => options.set_http_version(2, 1),
            UpstreamHttp2::Auto | UpstreamHttp2::Off => options.set_http_version(1, 1),
        }
        options.max_h2_streams = 100;
        if let Some(roots) = &self.route.roots {
            roots.set(options);
        }
    }

    /// What of the origin's answer is about its own host and would be wrong
    /// about the gateway.
    ///
    /// # Errors
    /// Pingora's.
    pub(super) fn adapt(&self, response: &mut ResponseHeader) -> pingora::Result<()> {
        response.remove_header(&header::STRICT_TRANSPORT_SECURITY);
        let location = response.headers.get(header::LOCATION);
        let location = location.and_then(|value| value.to_str().ok());
        let moved = location.and_then(|to| self.route.route.location(self.found, to));
        if let Some(moved) = moved {
            response.insert_header(header::LOCATION, moved)?;
        }
        Ok(())
    }
}

/// The secret of a credential: the password of `Basic`, or else what follows
/// the scheme.
fn secret(credential: &[u8]) -> Vec<u8> {
    match Credential::parse(credential) {
        Ok(parsed) => parsed.token().as_bytes().to_vec(),
        Err(_) => word(credential).to_vec(),
    }
}

/// The last word of a credential: what follows the scheme.
fn word(credential: &[u8]) -> &[u8] {
    let mut words = credential.rsplit(|b| *b == b' ').filter(|w| !w.is_empty());
    words.next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::RouteTarget;

    fn chosen(authorization_is_origins: bool) -> Chosen {
        let to = RouteTarget::parse("https://a.example").expect("a target");
        let route = Route::new("a".into(), "/routes/a".into(), Vec::new(), to);
        Chosen {
            route: Arc::new(NamedRoute {
                route,
                roots: None,
                http2: UpstreamHttp2::Auto,
                authorization_is_origins,
            }),
            generation: 0,
            found: Found::Prefix,
            path: RequestPath::parse("/routes/a/x").expect("a path"),
            query: None,
        }
    }

    #[test]
    fn whose_credential_is_whose() {
        const OURS: &str = "Bearer ours";
        const THEIRS: &str = "Bearer theirs";
        let own = Some("Bearer ours".to_owned());
        type Fields = &'static [(&'static str, &'static str)];
        #[rustfmt::skip]
        let cases: [(&str, bool, Fields, Option<&str>, _); 10] = [
            ("nothing", false, &[], None, Ok((false, None))),
            ("Authorization alone", false, &[("authorization", OURS)], None, Ok((true, own.clone()))),
            ("a token field", false, &[("x-agentport-token", "ours"), ("authorization", THEIRS)], None, Ok((false, own.clone()))),
            ("the proxy's field", false, &[("authorization", THEIRS)], Some(OURS), Ok((false, own.clone()))),
            ("the same token twice", false, &[("x-agentport-token", "ours"), ("authorization", OURS)], None, Ok((true, own.clone()))),
            ("the same by another scheme", true, &[("authorization", "token  ours")], Some(OURS), Ok((true, own.clone()))),
            ("the same, once as a password", false, &[("authorization", OURS)], Some("Basic Ym90Om91cnM="), Ok((true, Some("Basic Ym90Om91cnM=".to_owned())))),
            ("the origin's by configuration", true, &[("authorization", THEIRS)], None, Ok((false, None))),
            ("two token fields", false, &[("x-agentport-token", "a"), ("x-agentport-token", "b")], None, Err(())),
            ("two Authorization fields", true, &[("authorization", "a"), ("authorization", "b")], Some(OURS), Err(())),
        ];
        for (case, origins, fields, proxys, expected) in cases {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                let value = HeaderValue::from_static(value);
                headers.append(HeaderName::from_static(name), value);
            }
            let proxys = proxys.map(|value| value.as_bytes().to_vec());
            let found = chosen(origins).credential(&headers, proxys);
            let found = found.map_err(|_| ()).map(|(spent, credential)| {
                let text = credential.map(|bytes| String::from_utf8(bytes).expect("text"));
                (spent.is_some(), text)
            });
            assert_eq!(found, expected, "{case}");
        }
    }

    #[test]
    fn a_bundle_must_hold_certificates() {
        assert!(UpstreamRoots::new(Vec::new()).is_err());
        assert!(UpstreamRoots::new(vec![vec![0x30, 0]]).is_err());
    }
}

//! The file that says where agents are that others may call: names, endpoints,
//! and how their health is asked for.
//!
//! Who may call whom does not stand here: that is policy's.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::egress::{DnsName, Host};

use super::value::{CertificatePair, Endpoint, FromText as _, parse_duration};

/// The most agents of one file.
pub const MAX_CALLEES: usize = 10_000;
/// The most endpoints of one agent. A call is tried on each, one after the
/// other.
const MAX_ENDPOINTS: usize = 64;
/// The bounds of an interval.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(600));

/// Where agents are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerDirectory {
    /// The agents, no two of one name.
    pub agents: Vec<PeerAgent>,
}

/// An agent that others may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAgent {
    /// Its name: one label, in lower case.
    pub name: String,
    /// Its host, by which policy speaks of it.
    pub host: DnsName,
    /// Where it listens; at least one, none twice.
    pub endpoints: Vec<Endpoint>,
    /// Whether its endpoints speak HTTP/2 alone.
    pub http2: bool,
    /// How its health is asked for.
    pub health: Option<HealthCheck>,
    /// How TLS is spoken with its endpoints; `None` where it is not.
    pub tls: Option<CalleeTlsFiles>,
}

/// TLS from the gateway to an agent's endpoints, as files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalleeTlsFiles {
    /// A PEM bundle of those who issue the endpoints' certificates.
    pub ca: PathBuf,
    /// The name that the certificates must be valid for, in place of each
    /// endpoint's own host.
    pub server_name: Option<Host>,
    /// What the gateway shows of itself.
    pub identity: Option<CertificatePair>,
}

/// How the health of an endpoint is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What a GET asks for, and a status below 400 answers; `None` where
    /// connecting is enough.
    pub path: Option<String>,
    /// How often.
    pub interval: Duration,
}

/// Every mistake of a file, one in each line; it says what to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeersError(Vec<String>);

impl fmt::Display for PeersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for PeersError {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    agents: Vec<AgentDocument>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentDocument {
    name: String,
    endpoints: Vec<String>,
    #[serde(default)]
    http2: bool,
    #[serde(default)]
    health: Option<HealthDocument>,
    #[serde(default)]
    tls: Option<TlsDocument>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsDocument {
    ca: PathBuf,
    #[serde(default)]
    server_name: Option<String>,
    #[serde(default)]
    certificate: Option<PathBuf>,
    #[serde(default)]
    key: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthDocument {
    #[serde(default)]
    path: Option<String>,
    interval: String,
}

impl PeerDirectory {
    /// Reads a file, YAML or JSON, whose agents' hosts end in `domain`.
    ///
    /// # Errors
    /// Every mistake, at least one.
    pub fn parse(text: &str, domain: &DnsName) -> Result<Self, PeersError> {
        let document: Document =
            yaml_serde::from_str(text).map_err(|error| PeersError(vec![error.to_string()]))?;
        let mut errors = Vec::new();
        if document.agents.len() > MAX_CALLEES {
            errors.push(format!("agents: write at most {MAX_CALLEES}"));
            return Err(PeersError(errors));
        }
        let mut names = BTreeSet::new();
        let mut agents = Vec::with_capacity(document.agents.len());
        for (at, written) in document.agents.into_iter().enumerate() {
            let place = format!("agents[{at}]");
            if !names.insert(written.name.clone()) {
                let name = &written.name;
                errors.push(format!("{place}.name: {name:?} is an earlier one's"));
            }
            agents.extend(agent(written, &place, domain, &mut errors));
        }
        match errors.is_empty() {
            true => Ok(Self { agents }),
            false => Err(PeersError(errors)),
        }
    }
}

fn agent(
    written: AgentDocument,
    place: &str,
    domain: &DnsName,
    errors: &mut Vec<String>,
) -> Option<PeerAgent> {
    let before = errors.len();
    let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_label = written.name.len() <= 63
        && written.name.bytes().all(label)
        && !written.name.starts_with('-')
        && !written.name.ends_with('-')
        && written.name.bytes().any(|b| b.is_ascii_lowercase());
    let host = format!("{}.{domain}", written.name);
    let host = is_label.then(|| DnsName::parse(&host).ok()).flatten();
    if host.is_none() {
        errors.push(format!(
            "{place}.name: {:?}: write 1 to 63 lower-case letters, digits and inner hyphens, \
             with a letter",
            written.name
        ));
    }
    if written.endpoints.is_empty() || written.endpoints.len() > MAX_ENDPOINTS {
        errors.push(format!("{place}.endpoints: write 1 to {MAX_ENDPOINTS}"));
    }
    let mut endpoints = Vec::new();
    for (at, text) in written.endpoints.iter().enumerate() {
        let place = format!("{place}.endpoints[{at}]");
        match Endpoint::from_text(text) {
            Err(error) => errors.push(format!("{place}: {text:?}: {error}")),
            Ok(endpoint) if endpoints.contains(&endpoint) => {
                errors.push(format!("{place}: {text:?} is an earlier one: remove one"));
            }
            Ok(Endpoint::Tcp(authority)) if is_below(&authority.host, domain) => {
                errors.push(format!(
                    "{place}: {text:?} is in peers.domain: write where the agent itself listens"
                ));
            }
            Ok(endpoint) => endpoints.push(endpoint),
        }
    }
    let health = written
        .health
        .and_then(|written| health(&written, &format!("{place}.health"), errors));
    let tls = written
        .tls
        .and_then(|written| tls(written, &endpoints, &format!("{place}.tls"), errors));
    if errors.len() > before {
        return None;
    }
    Some(PeerAgent {
        tls,
        host: host?,
        name: written.name,
        endpoints,
        http2: written.http2,
        health,
    })
}

fn tls(
    written: TlsDocument,
    endpoints: &[Endpoint],
    place: &str,
    errors: &mut Vec<String>,
) -> Option<CalleeTlsFiles> {
    let before = errors.len();
    let server_name = written.server_name.as_deref().and_then(|text| {
        let host = Host::parse(text).map_err(|error| {
            errors.push(format!("{place}.server_name: {text:?}: {error}"));
        });
        host.ok()
    });
    let has_socket = endpoints.iter().any(|one| matches!(one, Endpoint::Unix(_)));
    if has_socket && written.server_name.is_none() {
        errors.push(format!(
            "{place}: a Unix socket has no name that its certificate could be for: write \
             server_name"
        ));
    }
    let identity = match (written.certificate, written.key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(CertificatePair { certificate, key }),
        _ => {
            errors.push(format!(
                "{place}: certificate and key belong together: write both or neither"
            ));
            None
        }
    };
    (errors.len() == before).then_some(CalleeTlsFiles {
        ca: written.ca,
        server_name,
        identity,
    })
}

/// Whether a host is the domain or in it.
fn is_below(host: &Host, domain: &DnsName) -> bool {
    host.name().is_some_and(|name| {
        let name = name.as_str().strip_suffix(domain.as_str());
        name.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

fn health(written: &HealthDocument, place: &str, errors: &mut Vec<String>) -> Option<HealthCheck> {
    let before = errors.len();
    if let Some(path) = &written.path {
        let plain = path.bytes().all(|b| b.is_ascii_graphic());
        if !path.starts_with('/') || !plain || path.len() > 1024 {
            errors.push(format!(
                "{place}.path: {path:?}: write a path that begins with /"
            ));
        }
    }
    let interval = match parse_duration(&written.interval) {
        Ok(interval) if (INTERVALS.0..=INTERVALS.1).contains(&interval) => Some(interval),
        Ok(_) => {
            errors.push(format!("{place}.interval: write 100ms to 10m"));
            None
        }
        Err(error) => {
            let text = &written.interval;
            errors.push(format!("{place}.interval: {text:?}: {error}"));
            None
        }
    };
    (errors.len() == before).then_some(HealthCheck {
        path: written.path.clone(),
        interval: interval?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PeerDirectory, PeersError> {
        PeerDirectory::parse(text, &DnsName::parse("peers.internal").expect("a name"))
    }

    #[test]
    fn a_directory_is_read_whole() {
        let found = parse(
            "agents:\n  - name: writer\n    endpoints: [\"10.0.0.5:9000\", \"unix:/run/w.sock\"]\n    \
             http2: true\n    health: {path: /up, interval: 5s}\n  - name: reader\n    \
             endpoints: [\"reader.svc:80\"]\n    health: {interval: 1m}\n    tls: {ca: ca.pem, \
             server_name: reader.example, certificate: c.pem, key: k.pem}\n",
        )
        .expect("a directory");
        let [writer, reader] = &found.agents[..] else {
            panic!("two agents: {found:?}");
        };
        assert_eq!(writer.host.as_str(), "writer.peers.internal");
        assert_eq!(writer.endpoints.len(), 2);
        assert!(writer.http2 && !reader.http2);
        let health = writer.health.clone().expect("a check");
        assert_eq!(
            (health.path.as_deref(), health.interval.as_secs()),
            (Some("/up"), 5)
        );
        assert_eq!(reader.health.clone().expect("a check").path, None);
        let tls = reader.tls.clone().expect("TLS");
        assert_eq!(tls.ca, PathBuf::from("ca.pem"));
        let name = tls.server_name.map(|name| name.to_string());
        assert_eq!(name.as_deref(), Some("reader.example"));
        assert!(tls.identity.is_some() && writer.tls.is_none());
        assert_eq!(parse("agents: []").expect("nobody").agents, []);
    }

    #[test]
    fn every_mistake_says_where_and_what() {
        for (case, text, says) in [
            ("nothing", "", "agents"),
            ("another key", "agents: []\nx: 1\n", "unknown field"),
            (
                "a key of an agent",
                "agents: [{name: a, endpoints: [\"b:1\"], x: 1}]",
                "unknown field",
            ),
            (
                "no endpoint",
                "agents: [{name: a, endpoints: []}]",
                "agents[0].endpoints: write 1 to 64",
            ),
            (
                "no port",
                "agents: [{name: a, endpoints: [b]}]",
                "write host:port or unix:/path",
            ),
            (
                "a URL",
                "agents: [{name: a, endpoints: [\"http://b:1/\"]}]",
                "write the host and port only",
            ),
            (
                "an endpoint twice",
                "agents: [{name: a, endpoints: [\"b:1\", \"b:1\"]}]",
                "agents[0].endpoints[1]: \"b:1\" is an earlier one",
            ),
            (
                "an endpoint that is a peer",
                "agents: [{name: a, endpoints: [\"b.peers.internal:1\"]}]",
                "is in peers.domain",
            ),
            (
                "a name twice",
                "agents: [{name: a, endpoints: [\"b:1\"]}, {name: a, endpoints: [\"c:1\"]}]",
                "agents[1].name: \"a\" is an earlier one's",
            ),
            (
                "two labels",
                "agents: [{name: a.b, endpoints: [\"b:1\"]}]",
                "agents[0].name: \"a.b\"",
            ),
            (
                "upper case",
                "agents: [{name: A, endpoints: [\"b:1\"]}]",
                "agents[0].name: \"A\"",
            ),
            (
                "a bare hyphen",
                "agents: [{name: -a, endpoints: [\"b:1\"]}]",
                "agents[0].name",
            ),
            (
                "a relative path",
                "agents: [{name: a, endpoints: [\"b:1\"], health: {path: x, interval: 1s}}]",
                "agents[0].health.path",
            ),
            (
                "TLS without a CA",
                "agents: [{name: a, endpoints: [\"b:1\"], tls: {}}]",
                "ca",
            ),
            (
                "half an identity",
                "agents: [{name: a, endpoints: [\"b:1\"], tls: {ca: c, key: k}}]",
                "agents[0].tls: certificate and key belong together",
            ),
            (
                "a socket's name",
                "agents: [{name: a, endpoints: [\"unix:/b\"], tls: {ca: c}}]",
                "agents[0].tls: a Unix socket has no name",
            ),
            (
                "no name",
                "agents: [{name: a, endpoints: [\"b:1\"], tls: {ca: c, server_name: \"a b\"}}]",
                "agents[0].tls.server_name",
            ),
            (
                "too often",
                "agents: [{name: a, endpoints: [\"b:1\"], health: {interval: 1ms}}]",
                "agents[0].health.interval: write 100ms to 10m",
            ),
        ] {
            let error = parse(text).expect_err(case).to_string();
            assert!(error.contains(says), "{case}: {error}");
        }
    }
}

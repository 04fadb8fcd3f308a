//! Other issuers whose tokens are accepted, as `identity.issuers` writes them,
//! or the file that `identity.issuers_file` names.

use std::path::PathBuf;
use std::time::Duration;

use crate::egress::{AddressRange, HttpsUrl};
use crate::identity::{AgentClaim, Algorithm, Naming, TrustedIssuer};

use super::error::ConfigError;
use super::list;
use super::tree::{Entry, Node, Value};
use super::value::{FromText, Setting, miss_unknown, push};

/// An issuer whose tokens are accepted beside AgentPort's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherIssuer {
    /// What `iss` must be, exactly.
    pub issuer: String,
    /// What `aud` must hold; where absent, `identity.audience`.
    pub audience: Option<String>,
    /// Where its keys are.
    pub source: KeySource,
    /// The CA that its server's certificate must come from; the system's roots
    /// where absent.
    pub ca: Option<PathBuf>,
    /// A file with a bearer token for the server that is configured here.
    pub token_file: Option<PathBuf>,
    /// The claim that names the agent; where absent `agent_id`, else `sub`.
    pub agent_claim: Option<String>,
    /// What the agent and its tenant are called here.
    pub naming: Option<Naming>,
    /// The claim that names the tenant; where absent `tenant`.
    pub tenant_claim: Option<String>,
    /// The algorithms that its keys may be for; all but HS256 where empty.
    pub algorithms: Vec<Algorithm>,
    /// Where its server may be, which is otherwise on public addresses only.
    pub addresses: Vec<AddressRange>,
    /// How often its keys are asked for.
    pub refresh: Duration,
    /// How long its keys are kept after that while it does not answer.
    pub stale_for: Duration,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In a file or directory: PEM, JWK or JWKS.
    File(PathBuf),
    /// A JWK Set at this URL.
    Url(HttpsUrl),
    /// Where the issuer's metadata says (OpenID Connect Discovery 1.0, 4); this
    /// is the metadata's URL.
    Discovery(HttpsUrl),
}

impl OtherIssuer {
    /// How its tokens are judged. `audience` is for an issuer that names none.
    #[must_use]
    pub fn trusted(&self, audience: &str) -> TrustedIssuer {
        let own = TrustedIssuer::own(&self.issuer, self.audience.as_deref().unwrap_or(audience));
        TrustedIssuer {
            agent: match &self.agent_claim {
                None => AgentClaim::Own,
                Some(claim) => AgentClaim::Named(claim.clone()),
            },
            naming: self.naming.clone(),
            tenant_claim: self.tenant_claim.clone().unwrap_or(own.tenant_claim),
            published: false,
            ..own
        }
    }

    /// Whether a key for this algorithm may be used. A shared secret that a
    /// server gives away is none.
    #[must_use]
    pub fn allows(&self, algorithm: Algorithm) -> bool {
        let public = algorithm != Algorithm::Hs256 || matches!(self.source, KeySource::File(_));
        public && (self.algorithms.is_empty() || self.algorithms.contains(&algorithm))
    }
}

/// Reads a file of issuers: `issuers:` and the list, YAML or JSON. `own` is
/// `identity.issuer`.
///
/// # Errors
/// Every mistake, at least one, with its place in the file called `name`. A file
/// without a list is one: half of a file that is being written must not read
/// as that nobody is trusted any more, which is `issuers: []`.
pub fn parse_issuers(
    name: &str,
    text: &str,
    own: &str,
) -> Result<Vec<OtherIssuer>, Vec<ConfigError>> {
    const SHAPE: &str = "write issuers: and a list as in identity.issuers; [] for none";
    list::parse(name, text, LIST, SHAPE, |issuers: &[OtherIssuer]| {
        same_names(issuers, own)
    })
}

/// The one key of a file of issuers.
const LIST: &str = "issuers";

/// The places of issuers that have the name of another one, or our own, and
/// what to write.
pub(super) fn same_names(issuers: &[OtherIssuer], own: &str) -> Vec<(usize, String)> {
    let taken = |at: usize, name: &str| {
        name == own || issuers[..at].iter().any(|before| before.issuer == name)
    };
    let names = issuers.iter().map(|issuer| issuer.issuer.as_str());
    names
        .enumerate()
        .filter(|(at, name)| taken(*at, name))
        .map(|(at, name)| {
            let message = format!(
                "{name:?} is the name of another issuer, or identity.issuer: give each its own"
            );
            (at, message)
        })
        .collect()
}

const KEYS: [&str; 16] = [
    "issuer",
    "audience",
    "jwks_file",
    "jwks_url",
    "discovery",
    "ca",
    "token_file",
    "agent_claim",
    "agent_pattern",
    "agent",
    "tenant",
    "tenant_claim",
    "algorithms",
    "addresses",
    "refresh",
    "stale_for",
];

impl Setting for OtherIssuer {
    fn read(node: &Node, key: &str, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            let message = "write a mapping: {issuer: URL, jwks_url: URL}".to_owned();
            push(errors, node, key, message);
            return None;
        };
        let before = errors.len();
        miss_unknown(entries, key, &KEYS, errors);
        let mut of = Fields {
            entries,
            key,
            errors,
        };
        let issuer: Option<String> = of.read("issuer");
        let file = of.read("jwks_file").map(KeySource::File);
        let url = of.read("jwks_url").map(KeySource::Url);
        let discovery = of.read("discovery").unwrap_or(false);
        let audience = of.read("audience");
        let ca = of.read("ca");
        let token_file = of.read("token_file");
        let agent_claim = of.read("agent_claim");
        let tenant_claim: Option<String> = of.read("tenant_claim");
        let algorithms = of.read("algorithms").unwrap_or_default();
        let addresses = of.read("addresses").unwrap_or_default();
        let refresh = of.read("refresh").unwrap_or(Duration::from_secs(300));
        let stale_for = of.read("stale_for").unwrap_or(Duration::from_secs(3600));
        let pattern: Option<String> = of.read("agent_pattern");
        let (agent, tenant): (Option<String>, Option<String>) =
            (of.read("agent"), of.read("tenant"));
        let named = pattern.is_some() || agent.is_some() || tenant.is_some();
        let naming =
            named.then(|| Naming::new(pattern.as_deref(), agent.as_deref(), tenant.as_deref()));
        let naming = match naming.transpose() {
            Ok(naming) => naming,
            Err(error) => {
                push(errors, node, key, error.to_string());
                None
            }
        };
        if tenant.is_some() && tenant_claim.is_some() {
            let message = "tenant and tenant_claim both name the tenant: keep one".to_owned();
            push(errors, node, key, message);
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&refresh) {
            push(errors, node, key, "refresh: write 1s to 1d".to_owned());
        }
        if stale_for > Duration::from_secs(7 * 86_400) {
            push(errors, node, key, "stale_for: write 0s to 7d".to_owned());
        }
        let Some(issuer) = issuer else {
            if errors.len() == before {
                let message = "issuer is missing: write what the tokens have as iss".to_owned();
                push(errors, node, key, message);
            }
            return None;
        };
        let metadata = || {
            let url = format!(
                "{}/.well-known/openid-configuration",
                issuer.trim_end_matches('/')
            );
            HttpsUrl::parse(&url).map(KeySource::Discovery)
        };
        let discovery = match discovery.then(metadata).transpose() {
            Ok(discovery) => discovery,
            Err(error) => {
                push(
                    errors,
                    node,
                    key,
                    format!("discovery by {issuer:?}: {error}"),
                );
                None
            }
        };
        (errors.len() == before).then_some(())?;
        let mut sources = [file, url, discovery].into_iter().flatten();
        let (Some(source), None) = (sources.next(), sources.next()) else {
            let message = "write exactly one of jwks_file, jwks_url and discovery: true".to_owned();
            push(errors, node, key, message);
            return None;
        };
        Some(Self {
            issuer,
            audience,
            source,
            ca,
            token_file,
            agent_claim,
            naming,
            tenant_claim,
            algorithms,
            addresses,
            refresh,
            stale_for,
        })
    }
}

/// The entries of one mapping.
pub(super) struct Fields<'n> {
    pub(super) entries: &'n [Entry],
    pub(super) key: &'n str,
    pub(super) errors: &'n mut Vec<ConfigError>,
}

impl Fields<'_> {
    /// An entry's value, where it is written and can be read.
    pub(super) fn read<T: Setting>(&mut self, name: &str) -> Option<T> {
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        T::read(&entry.node, &format!("{}.{name}", self.key), self.errors)
    }
}

impl FromText for HttpsUrl {
    fn from_text(raw: &str) -> Result<Self, String> {
        Self::parse(raw).map_err(|error| error.to_string())
    }
}

impl FromText for AddressRange {
    fn from_text(raw: &str) -> Result<Self, String> {
        Self::parse(raw)
    }
}

impl FromText for Algorithm {
    fn from_text(raw: &str) -> Result<Self, String> {
        Self::parse(raw).ok_or("write EdDSA, ES256, RS256, RS384, RS512, PS256 or HS256".to_owned())
    }
}

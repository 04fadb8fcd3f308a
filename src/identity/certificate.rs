//! Whom a client's certificate names: its subject alternative names (RFC 5280
//! section 4.2.1.6), and the patterns that make an agent of one.
//!
//! Whether the certificate holds is not judged here: that is the handshake's,
//! and whoever hands one in says by it that it did. The subject's common name
//! is never looked at (RFC 9525 section 2).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ring::digest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::egress::{AgentId, TenantId};

use super::Principal;

/// The most alternative names that are looked at. One that has more is taken
/// for a mistake, or for an attempt to have every pattern tried on each.
pub const MAX_CERTIFICATE_NAMES: usize = 64;

/// A certificate that a client has shown and whose key it has proven to hold.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    dns_names: Vec<String>,
    uris: Vec<String>,
    serial: String,
    fingerprint: Arc<str>,
    not_after: u64,
    chain: Vec<Vec<u8>>,
}

/// Why a certificate names no agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be read.
    #[error("the certificate cannot be read")]
    Malformed,
    /// It has more names than are looked at.
    #[error("the certificate has more than 64 alternative names")]
    TooManyNames,
    /// No pattern fits any of its names.
    #[error("no entry of tls.clients.names fits the certificate's alternative names")]
    Unknown,
    /// Its names stand for several agents.
    #[error("the certificate's alternative names stand for more than one agent")]
    Ambiguous,
}

impl CertificateError {
    /// The word in records and metrics.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Malformed | Self::TooManyNames => "certificate_malformed",
            Self::Unknown => "certificate_unknown",
            Self::Ambiguous => "certificate_ambiguous",
        }
    }
}

impl PeerCertificate {
    /// Reads a chain of DER certificates, the client's own first.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`] or [`CertificateError::TooManyNames`].
    pub fn parse(chain: Vec<Vec<u8>>) -> Result<Self, CertificateError> {
        let der = chain.first().ok_or(CertificateError::Malformed)?;
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed);
        }
        let (mut dns_names, mut uris) = (Vec::new(), Vec::new());
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| CertificateError::Malformed)?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => dns_names.push(name.to_ascii_lowercase()),
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                _ => {}
            }
        }
        if dns_names.len() + uris.len() > MAX_CERTIFICATE_NAMES {
            return Err(CertificateError::TooManyNames);
        }
        let not_after = certificate.validity().not_after.timestamp();
        Ok(Self {
            serial: hex(certificate.raw_serial()),
            fingerprint: hex(digest::digest(&digest::SHA256, der).as_ref()).into(),
            not_after: u64::try_from(not_after).map_err(|_| CertificateError::Malformed)?,
            dns_names,
            uris,
            chain,
        })
    }

    /// Its DNS names, in lower case.
    #[must_use]
    pub fn dns_names(&self) -> &[String] {
        &self.dns_names
    }

    /// Its URIs, such as a SPIFFE id, as they are written.
    #[must_use]
    pub fn uris(&self) -> &[String] {
        &self.uris
    }

    /// Its serial number, in hexadecimal.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The SHA-256 digest of its DER form, in hexadecimal.
    #[must_use]
    pub fn fingerprint(&self) -> &Arc<str> {
        &self.fingerprint
    }

    /// When it expires, in seconds since 1970.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// The chain as the client has shown it, its own certificate first.
    #[must_use]
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }
}

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerCertificate")
            .field("dns_names", &self.dns_names)
            .field("uris", &self.uris)
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

/// A certificate, and whom it names.
#[derive(Clone, Debug)]
pub struct Certified {
    /// The certificate.
    pub certificate: Arc<PeerCertificate>,
    /// The agent that it names, or why it names none.
    pub who: Result<Arc<Principal>, CertificateError>,
}

impl Certified {
    /// Looks up whom a certificate names.
    #[must_use]
    pub fn new(certificate: Arc<PeerCertificate>, names: &[ClientName]) -> Self {
        let who = named(&certificate, names).map(Arc::new);
        Self { certificate, who }
    }
}

/// Whom a certificate names by these patterns. Patterns may overlap as long as
/// they agree.
fn named(
    certificate: &Arc<PeerCertificate>,
    names: &[ClientName],
) -> Result<Principal, CertificateError> {
    let found: BTreeSet<(AgentId, Option<TenantId>)> = names
        .iter()
        .flat_map(|name| {
            let of = match name.kind {
                Kind::Uri => &certificate.uris,
                Kind::Dns => &certificate.dns_names,
            };
            of.iter().filter_map(|text| name.agent(text))
        })
        .collect();
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (None, _) => Err(CertificateError::Unknown),
        (Some(_), Some(_)) => Err(CertificateError::Ambiguous),
        (Some((agent, tenant)), None) => Ok(Principal::by_certificate(agent, tenant, certificate)),
    }
}

/// How a name in a certificate is read as an agent.
///
/// Written `spiffe://example.org/agent/{agent}` or `{agent}.agents.example.org`,
/// where `{agent}` and `{tenant}` each stand for one whole segment of the path
/// or one whole label; or `spiffe://example.org/ci = builder`, which names the
/// agent itself, with its tenant as `acme/builder`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientName {
    kind: Kind,
    parts: Vec<Part>,
    /// Whom it names, where no part does.
    fixed: Option<(AgentId, Option<TenantId>)>,
    written: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Uri,
    Dns,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Agent,
    Tenant,
}

/// Why a text is no [`ClientName`]; it says what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ClientNameError(String);

impl ClientName {
    /// Whom this text names, where it fits.
    fn agent(&self, text: &str) -> Option<(AgentId, Option<TenantId>)> {
        let separator = self.kind.separator();
        let text = match self.kind {
            Kind::Uri => text.strip_prefix(SCHEME)?,
            Kind::Dns => text,
        };
        let (mut agent, mut tenant) = match &self.fixed {
            Some((agent, tenant)) => (Some(agent.clone()), tenant.clone()),
            None => (None, None),
        };
        let mut parts = self.parts.iter();
        for word in text.split(separator) {
            match parts.next()? {
                Part::Literal(literal) if literal == word => {}
                Part::Literal(_) => return None,
                Part::Agent if plain(word) => agent = Some(AgentId::parse(word).ok()?),
                Part::Tenant if plain(word) => tenant = Some(TenantId::parse(word).ok()?),
                Part::Agent | Part::Tenant => return None,
            }
        }
        match parts.next() {
            None => agent.map(|agent| (agent, tenant)),
            Some(_) => None,
        }
    }
}

/// A segment of a SPIFFE id (SPIFFE-ID section 2.2), or a label. Dots alone
/// would be a step in a path.
fn plain(word: &str) -> bool {
    let character = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    !matches!(word, "" | "." | "..") && word.bytes().all(character)
}

const SCHEME: &str = "spiffe://";

impl Kind {
    fn separator(self) -> char {
        match self {
            Self::Uri => '/',
            Self::Dns => '.',
        }
    }
}

impl FromStr for ClientName {
    type Err = ClientNameError;

    fn from_str(raw: &str) -> Result<Self, ClientNameError> {
        let wrong = |what: &str| Err(ClientNameError(what.to_owned()));
        let (pattern, fixed) = match raw.split_once('=') {
            None => (raw, None),
            Some((pattern, whom)) => (pattern.trim_end(), Some(fixed(whom.trim_start())?)),
        };
        let (kind, text) = match pattern.strip_prefix(SCHEME) {
            Some(rest) => (Kind::Uri, rest.to_owned()),
            None if pattern.contains("://") => {
                return wrong("write a SPIFFE id, spiffe://…, or a DNS name");
            }
            None => (Kind::Dns, pattern.to_ascii_lowercase()),
        };
        let mut parts = Vec::new();
        for word in text.split(kind.separator()) {
            parts.push(match word {
                "{agent}" => Part::Agent,
                "{tenant}" => Part::Tenant,
                literal if plain(literal) => Part::Literal(literal.to_owned()),
                _ => {
                    return wrong(
                        "write spiffe://example.org/agent/{agent} or {agent}.agents.example.org: \
                         {agent} and {tenant} stand for a whole segment or label",
                    );
                }
            });
        }
        let count = |wanted: &Part| parts.iter().filter(|part| *part == wanted).count();
        let (agents, tenants) = (count(&Part::Agent), count(&Part::Tenant));
        let literals = parts.len() - agents - tenants;
        match fixed {
            None if agents != 1 => return wrong("write {agent} once, or NAME = AGENT"),
            Some(_) if agents + tenants != 0 => {
                return wrong("write {agent}, or an agent behind =, not both");
            }
            _ => {}
        }
        if tenants > 1 {
            return wrong("write {tenant} once");
        }
        // Whoever may choose the trust domain, or the whole name, chooses whom
        // he is taken for.
        let anchored = match kind {
            Kind::Uri => matches!(parts.first(), Some(Part::Literal(_))),
            Kind::Dns => {
                fixed.is_some() || (literals >= 2 && matches!(parts.last(), Some(Part::Literal(_))))
            }
        };
        if !anchored || (kind == Kind::Uri && parts.len() < 2) {
            return wrong("write the domain out: spiffe://example.org/… or {agent}.example.org");
        }
        let upper = |text: &String| text.bytes().any(|b| b.is_ascii_uppercase());
        if kind == Kind::Uri && matches!(parts.first(), Some(Part::Literal(text)) if upper(text)) {
            return wrong("write the domain of a SPIFFE id in lower case");
        }
        Ok(Self {
            kind,
            parts,
            fixed,
            written: raw.to_owned(),
        })
    }
}

fn fixed(whom: &str) -> Result<(AgentId, Option<TenantId>), ClientNameError> {
    let wrong = |error: crate::egress::IdError| {
        ClientNameError(format!("{error}: write AGENT or TENANT/AGENT behind ="))
    };
    match whom.split_once('/') {
        None => Ok((AgentId::parse(whom).map_err(wrong)?, None)),
        Some((tenant, agent)) => Ok((
            AgentId::parse(agent).map_err(wrong)?,
            Some(TenantId::parse(tenant).map_err(wrong)?),
        )),
    }
}

impl fmt::Display for ClientName {
    /// As it is written in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pattern: &str, text: &str) -> Option<String> {
        let name: ClientName = pattern.parse().expect("a pattern");
        name.agent(text).map(|(agent, tenant)| match tenant {
            Some(tenant) => format!("{tenant}/{agent}"),
            None => agent.to_string(),
        })
    }

    #[test]
    fn a_pattern_reads_whole_segments_and_nothing_else() {
        const PATH: &str = "spiffe://example.org/agent/{agent}";
        for (pattern, text, agent) in [
            (PATH, "spiffe://example.org/agent/a", Some("a")),
            (PATH, "spiffe://example.org/agent/a-1.b_c", Some("a-1.b_c")),
            (PATH, "spiffe://example.org/agent/a/b", None),
            (PATH, "spiffe://example.org/agent/", None),
            (PATH, "spiffe://example.org/agent", None),
            (PATH, "spiffe://example.org/agent/..", None),
            (PATH, "spiffe://example.org/agent/a?x", None),
            (PATH, "spiffe://example.org/agent/%61", None),
            (PATH, "spiffe://example.org.evil/agent/a", None),
            (PATH, "spiffe://other.org/agent/a", None),
            (PATH, "https://example.org/agent/a", None),
            (
                "spiffe://example.org/{tenant}/agent/{agent}",
                "spiffe://example.org/acme/agent/a",
                Some("acme/a"),
            ),
            (
                "{agent}.agents.example.org",
                "a.agents.example.org",
                Some("a"),
            ),
            ("{agent}.agents.example.org", "a.b.agents.example.org", None),
            ("{agent}.agents.example.org", "*.agents.example.org", None),
            ("{agent}.agents.example.org", "agents.example.org", None),
            (
                "{agent}.{tenant}.example.org",
                "a.acme.example.org",
                Some("acme/a"),
            ),
            (
                "ci.example.org = builder",
                "ci.example.org",
                Some("builder"),
            ),
            ("ci.example.org = builder", "x.ci.example.org", None),
            (
                "spiffe://example.org/ci = acme/builder",
                "spiffe://example.org/ci",
                Some("acme/builder"),
            ),
        ] {
            assert_eq!(read(pattern, text).as_deref(), agent, "{pattern} on {text}");
        }
    }

    #[test]
    fn a_pattern_that_lets_anybody_choose_is_refused() {
        for (pattern, says) in [
            ("spiffe://{agent}/agent", "domain"),
            ("spiffe://{tenant}/{agent}", "domain"),
            ("spiffe://example.org", "{agent} once"),
            ("spiffe://Example.org/{agent}", "lower case"),
            ("{agent}", "domain"),
            ("{agent}.org", "domain"),
            ("agents.example.org", "{agent} once"),
            ("{agent}.{agent}.example.org", "{agent} once"),
            ("{agent}-x.example.org", "whole segment"),
            ("*.example.org", "whole segment"),
            ("https://example.org/{agent}", "SPIFFE"),
            ("{agent}.example.org = a", "not both"),
            ("ci.example.org =", "behind ="),
            ("", "whole segment"),
        ] {
            let error = pattern.parse::<ClientName>().expect_err(pattern);
            assert!(error.to_string().contains(says), "{pattern:?}: {error}");
        }
    }

    fn certificate(dns: &[&str], uris: &[&str]) -> Arc<PeerCertificate> {
        let mut params = rcgen::CertificateParams::default();
        for name in dns {
            let name = (*name).try_into().expect("a name");
            params.subject_alt_names.push(rcgen::SanType::DnsName(name));
        }
        for uri in uris {
            let uri = (*uri).try_into().expect("a uri");
            params.subject_alt_names.push(rcgen::SanType::URI(uri));
        }
        params.serial_number = Some(vec![0x0a, 0x0b].into());
        params.not_after = rcgen::date_time_ymd(2031, 1, 1);
        let key = rcgen::KeyPair::generate().expect("a key");
        let signed = params.self_signed(&key).expect("a certificate");
        let parsed = PeerCertificate::parse(vec![signed.der().to_vec()]).expect("it parses");
        Arc::new(parsed)
    }

    fn whom(dns: &[&str], uris: &[&str]) -> Result<String, CertificateError> {
        let names = [
            "spiffe://example.org/agent/{agent}".parse().expect("one"),
            "{agent}.agents.example.org".parse().expect("one"),
        ];
        Certified::new(certificate(dns, uris), &names)
            .who
            .map(|who| who.agent().to_string())
    }

    #[test]
    fn a_certificate_names_one_agent_or_none() {
        let id = "spiffe://example.org/agent/a";
        assert_eq!(whom(&[], &[id]).as_deref(), Ok("a"));
        assert_eq!(whom(&["A.agents.example.org"], &[]).as_deref(), Ok("a"));
        // Two names that agree, beside one that says nothing.
        let both = ["a.agents.example.org", "host.internal"];
        assert_eq!(whom(&both, &[id]).as_deref(), Ok("a"));
        let other = ["b.agents.example.org"];
        assert_eq!(whom(&other, &[id]), Err(CertificateError::Ambiguous));
        assert_eq!(
            whom(&["host.internal"], &[]),
            Err(CertificateError::Unknown)
        );
        assert_eq!(whom(&[], &[]), Err(CertificateError::Unknown));
        let many: Vec<String> = (0..65).map(|n| format!("h{n}.example.org")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let mut params = rcgen::CertificateParams::default();
        for name in many {
            let name = name.try_into().expect("a name");
            params.subject_alt_names.push(rcgen::SanType::DnsName(name));
        }
        let key = rcgen::KeyPair::generate().expect("a key");
        let der = params.self_signed(&key).expect("signed").der().to_vec();
        assert_eq!(
            PeerCertificate::parse(vec![der]),
            Err(CertificateError::TooManyNames)
        );
    }

    #[test]
    fn serial_and_fingerprint_and_end_are_the_certificates() {
        let read = certificate(&["a.agents.example.org"], &[]);
        assert_eq!(read.serial(), "0a0b");
        assert_eq!(read.fingerprint().len(), 64);
        assert_eq!(read.not_after(), 1_924_992_000);
        assert_eq!(read.dns_names(), ["a.agents.example.org"]);
        for broken in [vec![], vec![Vec::new()], vec![vec![0x30, 0x03, 1, 1, 1]]] {
            assert_eq!(
                PeerCertificate::parse(broken),
                Err(CertificateError::Malformed)
            );
        }
    }
}

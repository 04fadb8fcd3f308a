//! TLS towards clients (RFC 8446, RFC 5246): what a listener shows, whom it
//! trusts, and a handshake that takes no longer than it may.
//!
//! Everything that can change changes at once, in one swap: certificates, the
//! issuers of clients' certificates and the lists of revoked ones, the versions
//! and protocols, and the keys of the session tickets. Connections that are
//! open keep what they have; whether a client's certificate still holds is
//! asked again for each request. What the files say is read elsewhere.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use quick_cache::sync::Cache;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::Ticketer;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, HandshakeKind, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use crate::gate::ports::TrustsCertificates;
use crate::identity::{Certified, ClientName, PeerCertificate};

/// The protocol by which an ACME server looks for its challenge (RFC 8737).
const ACME_TLS: &[u8] = b"acme-tls/1";
/// How many certificates are remembered to hold.
const HELD: usize = 10_000;
/// For how many seconds. What it was verified against ages without a change of
/// any file: a list of revoked certificates ends, an issuer expires.
const HELD_FOR: u64 = 10;

/// What a listener speaks TLS with. Made anew for each change of any of it.
#[derive(Clone, Debug)]
pub struct TlsParts {
    /// Certificates with their keys. The client's server name chooses, and the
    /// first serves names that none has. Where there is none, handshakes fail
    /// until one is ordered; see [`ListenerTls::serve_ordered`].
    pub certificates: Vec<Arc<CertifiedKey>>,
    /// Whose certificates clients may show; `None` where they are not asked.
    pub clients: Option<ClientTrust>,
    /// Whether TLS 1.2 is refused.
    pub only_tls13: bool,
    /// The protocols that are offered (RFC 7301), the preferred one first.
    pub alpn: Vec<Vec<u8>>,
}

/// Whose certificates clients may show.
#[derive(Clone, Debug)]
pub struct ClientTrust {
    /// Whether a client without one is let in.
    pub optional: bool,
    /// The issuers; at least one.
    pub issuers: Vec<CertificateDer<'static>>,
    /// Lists of revoked ones. Where there is any, each issuer needs its own.
    pub revoked: Vec<CertificateRevocationListDer<'static>>,
    /// How their names are read as agents.
    pub names: Vec<ClientName>,
}

/// TLS of a listener, as it is in force.
pub struct ListenerTls {
    provider: Arc<CryptoProvider>,
    in_force: ArcSwap<InForce>,
    ordered: Arc<ArcSwap<Vec<Named>>>,
    challenges: Arc<ArcSwap<HashMap<String, Arc<CertifiedKey>>>>,
    challenge: Arc<ServerConfig>,
}

struct InForce {
    config: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    names: Vec<ClientName>,
    /// Fingerprints of certificates that hold under this, and when that was
    /// found, in seconds since the epoch.
    held: Cache<Arc<str>, u64>,
}

impl ListenerTls {
    /// TLS with these parts.
    ///
    /// # Errors
    /// What does not fit together, such as issuers that are no certificates.
    pub fn new(parts: TlsParts) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let ordered = Arc::new(ArcSwap::default());
        let challenges = Arc::new(ArcSwap::default());
        let in_force = InForce::new(&provider, parts, &ordered)?;
        let resolver = Arc::new(Challenges(Arc::clone(&challenges)));
        let mut challenge = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        challenge.alpn_protocols = vec![ACME_TLS.to_vec()];
        Ok(Self {
            in_force: ArcSwap::from_pointee(in_force),
            challenge: Arc::new(challenge),
            provider,
            ordered,
            challenges,
        })
    }

    /// Puts other parts in force, for connections from now on. What was
    /// ordered stays.
    ///
    /// # Errors
    /// As [`ListenerTls::new`]; the old parts then stay.
    pub fn replace(&self, parts: TlsParts) -> Result<(), String> {
        let in_force = InForce::new(&self.provider, parts, &self.ordered)?;
        self.in_force.store(Arc::new(in_force));
        Ok(())
    }

    /// Serves these certificates too, in place of those ordered before. For a
    /// name that a configured one has too, that one is served.
    pub fn serve_ordered(&self, certificates: Vec<Arc<CertifiedKey>>) {
        let named = certificates.into_iter().map(Named::new).collect();
        self.ordered.store(Arc::new(named));
    }

    /// Answers the challenges for these names, in lower case, with these
    /// certificates (RFC 8737 section 3), and no others.
    pub fn answer_challenges(&self, answers: HashMap<String, Arc<CertifiedKey>>) {
        self.challenges.store(Arc::new(answers));
    }

    /// Shakes hands, in no more than `limit`. `now` is the time.
    pub(super) async fn accept(
        &self,
        tcp: TcpStream,
        limit: Duration,
        now: SystemTime,
    ) -> Result<Handshake, Failure> {
        match tokio::time::timeout(limit, self.shake(tcp, now)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new("timeout")),
        }
    }

    async fn shake(&self, tcp: TcpStream, now: SystemTime) -> Result<Handshake, Failure> {
        let in_force = self.in_force.load_full();
        let start = LazyConfigAcceptor::new(Acceptor::default(), tcp)
            .await
            .map_err(|error| Failure::of(&error))?;
        let is_challenge = start
            .client_hello()
            .alpn()
            .is_some_and(|mut offered| offered.any(|protocol| protocol == ACME_TLS));
        if is_challenge {
            let answered = start.into_stream(Arc::clone(&self.challenge)).await;
            let mut stream = answered.map_err(|error| Failure::of(&error))?;
            let _ = stream.shutdown().await;
            return Ok(Handshake::Challenge);
        }
        let done = start
            .into_stream(Arc::clone(&in_force.config))
            .into_fallible()
            .await;
        let stream = match done {
            Ok(stream) => stream,
            Err((error, tcp)) => {
                let failure = Failure::of(&error);
                linger(tcp).await;
                return Err(failure);
            }
        };
        let tls = stream.get_ref().1;
        let server_name = tls.server_name().map(Into::into);
        let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
        let chain = tls.peer_certificates().unwrap_or_default();
        let certified = match chain {
            [] => None,
            chain => {
                let chain = chain.iter().map(|der| der.to_vec()).collect();
                let certificate = PeerCertificate::parse(chain)
                    .map_err(|error| Failure::new(error.code()).because(&error))?;
                // A session that is taken up again shows no certificate anew.
                in_force
                    .holds(&certificate, now)
                    .map_err(|code| Failure::new(code).because(&"since the last handshake"))?;
                Some(Certified::new(Arc::new(certificate), &in_force.names))
            }
        };
        Ok(Handshake::Client(Box::new(Arrived {
            stream: Box::new(stream),
            certified,
            server_name,
            resumed,
        })))
    }
}

impl TrustsCertificates for ListenerTls {
    fn holds(&self, certificate: &PeerCertificate, now: SystemTime) -> Result<(), &'static str> {
        self.in_force.load().holds(certificate, now)
    }
}

impl fmt::Debug for ListenerTls {
    /// Says nothing of the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerTls").finish_non_exhaustive()
    }
}

/// What came of a handshake.
pub(super) enum Handshake {
    /// A client.
    Client(Box<Arrived>),
    /// An ACME server, which has its answer and wants no more.
    Challenge,
}

/// A client whose handshake is done.
pub(super) struct Arrived {
    pub(super) stream: Box<TlsStream<TcpStream>>,
    /// What its certificate says, where it has shown one.
    pub(super) certified: Option<Certified>,
    /// The name that it took the gateway for (RFC 6066 section 3).
    pub(super) server_name: Option<Arc<str>>,
    /// Whether it took up an earlier session.
    pub(super) resumed: bool,
}

/// A handshake that came to nothing.
#[derive(Debug)]
pub(super) struct Failure {
    /// The word in records and figures.
    pub(super) code: &'static str,
    /// More, for the operator.
    pub(super) detail: Option<String>,
}

impl Failure {
    fn new(code: &'static str) -> Self {
        Self { code, detail: None }
    }

    fn because(mut self, what: &dyn fmt::Display) -> Self {
        self.detail = Some(what.to_string());
        self
    }

    fn of(error: &io::Error) -> Self {
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(tls) => Self::new(code(tls)).because(tls),
            None => Self::new("closed").because(error),
        }
    }

    /// Whether it is the client's certificate that was refused, and not only
    /// noise on the port.
    pub(super) fn is_refusal(&self) -> bool {
        self.code.contains("certificate")
    }
}

fn code(error: &rustls::Error) -> &'static str {
    use rustls::Error;
    match error {
        Error::NoCertificatesPresented => "no_certificate",
        Error::InvalidCertificate(why) => certificate_code(why),
        Error::AlertReceived(_) => "alert",
        Error::PeerIncompatible(_) => "incompatible",
        Error::General(text) if text.contains("no server certificate chain") => "no_name",
        _ => "protocol",
    }
}

fn certificate_code(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "certificate_expired"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "certificate_not_valid_yet"
        }
        CertificateError::Revoked => "certificate_revoked",
        CertificateError::UnknownIssuer => "certificate_unknown_issuer",
        CertificateError::UnknownRevocationStatus
        | CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => "certificate_revocation_unknown",
        _ => "certificate_invalid",
    }
}

/// Lets the client read why, before the connection goes: a reset because of
/// unread bytes would take the alert with it.
async fn linger(mut tcp: TcpStream) {
    const LONGEST: Duration = Duration::from_secs(1);
    if tcp.shutdown().await.is_err() {
        return;
    }
    let discard = async {
        let mut sink = [0; 4096];
        while matches!(tcp.read(&mut sink).await, Ok(count) if count > 0) {}
    };
    let _ = tokio::time::timeout(LONGEST, discard).await;
}

impl InForce {
    fn new(
        provider: &Arc<CryptoProvider>,
        parts: TlsParts,
        ordered: &Arc<ArcSwap<Vec<Named>>>,
    ) -> Result<Self, String> {
        let versions: &[_] = if parts.only_tls13 {
            &[&TLS13]
        } else {
            &[&TLS13, &TLS12]
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?;
        let (verifier, names) = match parts.clients {
            None => (None, Vec::new()),
            Some(trust) => (Some(verifier(provider, &trust)?), trust.names),
        };
        let builder = match &verifier {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
        };
        let mut config = builder.with_cert_resolver(Arc::new(ByName {
            configured: parts.certificates.into_iter().map(Named::new).collect(),
            ordered: Arc::clone(ordered),
        }));
        config.alpn_protocols = parts.alpn;
        // Sessions live in tickets alone. Their keys rotate, and are new with
        // each change: no session outlives what it was verified against.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Ticketer::new().map_err(|error| error.to_string())?;
        Ok(Self {
            config: Arc::new(config),
            verifier,
            names,
            held: Cache::new(HELD),
        })
    }

    fn holds(&self, certificate: &PeerCertificate, now: SystemTime) -> Result<(), &'static str> {
        let since = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        if since.as_secs() >= certificate.not_after() {
            return Err("certificate_expired");
        }
        let found = self.held.get(certificate.fingerprint());
        if found.is_some_and(|found| found.abs_diff(since.as_secs()) < HELD_FOR) {
            return Ok(());
        }
        let Some(verifier) = &self.verifier else {
            return Err("certificate_not_asked");
        };
        let mut chain = certificate
            .chain()
            .iter()
            .map(|der| CertificateDer::from(der.as_slice()));
        let Some(end_entity) = chain.next() else {
            return Err("certificate_malformed");
        };
        let issuers: Vec<_> = chain.collect();
        let checked =
            verifier.verify_client_cert(&end_entity, &issuers, UnixTime::since_unix_epoch(since));
        checked.map_err(|error| code(&error))?;
        let fingerprint = Arc::clone(certificate.fingerprint());
        self.held.insert(fingerprint, since.as_secs());
        Ok(())
    }
}

fn verifier(
    provider: &Arc<CryptoProvider>,
    trust: &ClientTrust,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for issuer in &trust.issuers {
        roots
            .add(issuer.clone())
            .map_err(|error| format!("an issuer of client certificates: {error}"))?;
    }
    let mut builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    if !trust.revoked.is_empty() {
        builder = builder
            .with_crls(trust.revoked.iter().cloned())
            .enforce_revocation_expiration();
    }
    if trust.optional {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| error.to_string())
}

/// A certificate and the names it is for.
#[derive(Debug)]
struct Named {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
}

impl Named {
    fn new(key: Arc<CertifiedKey>) -> Self {
        let chain = key.cert.first().map(|der| vec![der.to_vec()]);
        // One that cannot be read serves names that no other has.
        let names = chain
            .and_then(|chain| PeerCertificate::parse(chain).ok())
            .map(|certificate| certificate.dns_names().to_vec())
            .unwrap_or_default();
        Self { key, names }
    }

    fn is_for(&self, name: &str) -> bool {
        let rest = name.split_once('.').map(|(_, rest)| rest);
        self.names.iter().any(|own| match own.strip_prefix("*.") {
            Some(suffix) => rest == Some(suffix),
            None => own == name,
        })
    }
}

/// Chooses the certificate by the client's server name.
#[derive(Debug)]
struct ByName {
    configured: Vec<Named>,
    ordered: Arc<ArcSwap<Vec<Named>>>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let ordered = self.ordered.load();
        let mut all = self.configured.iter().chain(ordered.iter());
        let first = all.clone().next();
        // *rustls* gives the name in lower case.
        let named = hello
            .server_name()
            .and_then(|name| all.find(|certificate| certificate.is_for(name)));
        named.or(first).map(|named| Arc::clone(&named.key))
    }
}

/// Answers to ACME challenges, by name.
#[derive(Debug)]
struct Challenges(Arc<ArcSwap<HashMap<String, Arc<CertifiedKey>>>>);

impl ResolvesServerCert for Challenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().get(hello.server_name()?).cloned()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
        KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
    };

    use super::*;

    /// 1 January 2030.
    const NEXT_UPDATE: u64 = 1_893_456_000;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_certificate_that_held_is_let_go_with_the_list_it_was_held_against() {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let ca = params.self_signed(&key).expect("a certificate");
        let issuer = Issuer::new(params, key);
        let own = KeyPair::generate().expect("a key");
        let names = vec!["bot.example".to_owned()];
        let client = CertificateParams::new(names)
            .and_then(|params| params.signed_by(&own, &issuer))
            .expect("a certificate");
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2030, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&issuer).expect("a list");
        let tls = ListenerTls::new(TlsParts {
            certificates: Vec::new(),
            clients: Some(ClientTrust {
                optional: false,
                issuers: vec![ca.der().clone()],
                revoked: vec![list.der().clone()],
                names: Vec::new(),
            }),
            only_tls13: false,
            alpn: Vec::new(),
        })
        .expect("they fit together");
        let shown = PeerCertificate::parse(vec![client.der().to_vec()]).expect("a certificate");
        for (case, now, expected) in [
            ("the list is fresh", NEXT_UPDATE - 3600, Ok(())),
            ("once more", NEXT_UPDATE - 3599, Ok(())),
            (
                "it is past its next update",
                NEXT_UPDATE + 3600,
                Err("certificate_revocation_unknown"),
            ),
        ] {
            assert_eq!(tls.holds(&shown, at(now)), expected, "{case}");
        }
    }
}

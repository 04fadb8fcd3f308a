//! The gateway's own certificates for hosts that it refuses, so that it can say
//! so inside the tunnel. They are made when they are wanted, by a CA that the
//! operator's clients trust, and never for a host that is allowed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::CertificatePair;
use crate::egress::Host;
use crate::gate::ports::Clock;
use crate::proxy::RefusalCertificates;

use super::{certificates, host};

/// How long a certificate is valid. No client sees one twice as old.
const LASTS: Duration = Duration::from_secs(24 * 3600);
/// From when on a new one takes its place.
const RENEWED_AFTER: Duration = Duration::from_secs(12 * 3600);
/// For clocks that are behind.
const BACKDATED: Duration = Duration::from_secs(300);
/// The most hosts whose certificates are kept.
const MOST_KEPT: usize = 1024;

/// The CA, as its files last were when they were good.
pub struct RefusalAuthority {
    written: CertificatePair,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    ca: Arc<Ca>,
    made: HashMap<Host, (SystemTime, Arc<ServerConfig>)>,
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    chain: Vec<CertificateDer<'static>>,
    expires: SystemTime,
    /// One key for all that is made: it never leaves this process.
    key: KeyPair,
}

impl RefusalAuthority {
    /// Reads the CA.
    ///
    /// # Errors
    /// With the file, and what to do.
    pub fn open(written: CertificatePair, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let ca = Arc::new(Ca::read(&written, clock.wall())?);
        Ok(Self {
            written,
            clock,
            state: Mutex::new(State {
                ca,
                made: HashMap::new(),
            }),
        })
    }

    /// The files that it is in.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        vec![self.written.certificate.clone(), self.written.key.clone()]
    }

    /// When the CA's certificate ends.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.state().ca.expires
    }

    /// Reads the files anew. What is not valid changes nothing. Says whether it
    /// is another CA now.
    ///
    /// # Errors
    /// With the file, and what to do.
    pub fn reload(&self) -> Result<bool, String> {
        let ca = Ca::read(&self.written, self.clock.wall())?;
        let mut state = self.state();
        if state.ca.chain == ca.chain {
            return Ok(false);
        }
        *state = State {
            ca: Arc::new(ca),
            made: HashMap::new(),
        };
        Ok(true)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RefusalCertificates for RefusalAuthority {
    fn server(&self, host: &Host) -> Option<Arc<ServerConfig>> {
        let now = self.clock.wall();
        let ca = {
            let state = self.state();
            if let Some((at, server)) = state.made.get(host)
                && now.duration_since(*at).is_ok_and(|age| age < RENEWED_AFTER)
            {
                return Some(Arc::clone(server));
            }
            Arc::clone(&state.ca)
        };
        if now >= ca.expires {
            return None;
        }
        // Signing takes its time, and is done without the lock.
        let server = match ca.server(host, now) {
            Ok(server) => Arc::new(server),
            Err(error) => {
                tracing::error!(%error, %host, "cannot make a certificate for a refusal");
                return None;
            }
        };
        let mut state = self.state();
        if Arc::ptr_eq(&state.ca, &ca) {
            if state.made.len() >= MOST_KEPT {
                state.made.clear();
            }
            state.made.insert(host.clone(), (now, Arc::clone(&server)));
        }
        Some(server)
    }
}

impl Ca {
    fn read(written: &CertificatePair, now: SystemTime) -> Result<Self, String> {
        let place = written.certificate.display();
        let (pair, expires) = certificates::pair(written, now)?;
        let chain = pair.cert;
        let der = chain
            .first()
            .ok_or_else(|| format!("{place}: it is empty"))?;
        let (_, parsed) =
            X509Certificate::from_der(der).map_err(|_| format!("{place}: it cannot be read"))?;
        if !parsed.is_ca() {
            return Err(format!(
                "{place}: it is not the certificate of a CA: make one with `agentport ca init`"
            ));
        }
        let key = certificates::private_key(&written.key)?;
        let key = KeyPair::try_from(&key).map_err(|error| {
            format!(
                "{}: {error}: write a key of ECDSA, Ed25519 or RSA in PKCS #8",
                written.key.display()
            )
        })?;
        let issuer =
            Issuer::from_ca_cert_der(der, key).map_err(|error| format!("{place}: {error}"))?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|error| format!("cannot make a key: {error}"))?;
        Ok(Self {
            issuer,
            chain,
            expires,
            key,
        })
    }

    fn server(&self, host: &Host, now: SystemTime) -> Result<ServerConfig, String> {
        let signing = |error: rcgen::Error| error.to_string();
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, "refused by AgentPort");
        params.distinguished_name = subject;
        params.subject_alt_names = vec![match host {
            Host::Name(name) => {
                SanType::DnsName(name.as_str().to_owned().try_into().map_err(signing)?)
            }
            Host::Address(ip) => SanType::IpAddress(*ip),
        }];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let mut serial = host::random_bits().to_be_bytes();
        // Positive, and never zero (RFC 5280 section 4.1.2.2).
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let seconds = |at: SystemTime| {
            at.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default()
        };
        params.not_before = date_time_ymd(1970, 1, 1) + seconds(now).saturating_sub(BACKDATED);
        params.not_after = date_time_ymd(1970, 1, 1) + seconds((now + LASTS).min(self.expires));
        let certificate = params.signed_by(&self.key, &self.issuer).map_err(signing)?;
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.chain.iter().cloned());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| error.to_string())?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Nobody comes back with one.
        server.send_tls13_tickets = 0;
        Ok(server)
    }
}

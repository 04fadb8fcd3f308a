//! Certificates by ACME (RFC 8555): what is kept in a directory that replicas
//! may share, and when a certificate is due.
//!
//! The directory has the account, one file with the certificate and its key,
//! answers to challenges while an order is under way, and, after a failure,
//! when the next attempt may be made, so that neither a restart nor another
//! replica asks earlier. Who orders holds a lock that ends with its process.

mod client;
mod http01;
mod order;
mod renewal;

pub use http01::{Http01, token_asked};
pub use order::{Failure, order};
pub use renewal::suggested_window;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::egress::DnsName;
use crate::identity::PeerCertificate;

use super::shared_file;

/// Everything in the directory is the gateway's alone.
const PRIVATE: u32 = 0o600;
/// How soon after a success another order may begin: a CA whose certificates
/// are due as soon as they come must not be asked without end.
const AFTER_SUCCESS: Duration = Duration::from_secs(600);
/// The first pause after a failure, which doubles up to the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(6 * 3600));
/// The longest that a server's `Retry-After` is honoured.
const LONGEST_RETRY: Duration = Duration::from_secs(24 * 3600);

/// A certificate that was ordered.
#[derive(Clone, Debug)]
pub struct Ordered {
    /// The chain with its key.
    pub key: Arc<CertifiedKey>,
    /// From when it is valid.
    pub from: SystemTime,
    /// Until when.
    pub until: SystemTime,
    names: Vec<String>,
    /// By what the CA knows it (RFC 9773 section 4.1): the key identifier of
    /// its issuer, and its serial number, as they stand in it.
    id: Option<(Vec<u8>, Vec<u8>)>,
}

impl Ordered {
    /// Reads a key and a chain, in PEM.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(pem: &str) -> Result<Self, String> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| format!("no PEM: {error}"))?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| format!("no private key: {error}"))?;
        let first = chain.first().ok_or("no certificate")?.clone();
        let (_, certificate) =
            X509Certificate::from_der(&first).map_err(|_| "a certificate cannot be read")?;
        let peer =
            PeerCertificate::parse(vec![first.to_vec()]).map_err(|error| error.to_string())?;
        let at = |seconds: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
        };
        let validity = certificate.validity();
        let issuer = certificate.extensions().iter().find_map(|extension| {
            match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref(),
                _ => None,
            }
        });
        let provider = rustls::crypto::ring::default_provider();
        Ok(Self {
            from: at(validity.not_before.timestamp()),
            until: at(validity.not_after.timestamp()),
            names: peer.dns_names().to_vec(),
            id: issuer.map(|issuer| (issuer.0.to_vec(), certificate.raw_serial().to_vec())),
            // Fails where the key is another certificate's.
            key: Arc::new(
                CertifiedKey::from_der(chain, key, &provider).map_err(|error| error.to_string())?,
            ),
        })
    }

    /// Whether it is for all of these names.
    #[must_use]
    pub fn covers(&self, domains: &[DnsName]) -> bool {
        let has = |domain: &DnsName| self.names.iter().any(|name| name == domain.as_str());
        domains.iter().all(has)
    }

    /// When it is due: at a point of the CA's window (RFC 9773 section 4.2)
    /// where there is one, else when two thirds of its time are over, or a
    /// little earlier. `spread`, from 0 to 1, is drawn by each replica.
    #[must_use]
    pub fn due(&self, window: Option<(SystemTime, SystemTime)>, spread: f64) -> SystemTime {
        let lasts = self.until.duration_since(self.from).unwrap_or_default();
        match window {
            Some((start, end)) => {
                let wide = end.duration_since(start).unwrap_or_default();
                // A window behind the end would be no renewal.
                (start + wide.mul_f64(spread)).min(self.until - lasts / 10)
            }
            None => self.from + lasts * 2 / 3 - (lasts / 30).mul_f64(spread),
        }
    }
}

/// What is remembered between attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    /// How many have failed since the last success.
    #[serde(default)]
    pub failures: u32,
    /// Before when none may begin, in seconds since 1970.
    #[serde(default)]
    pub not_before: u64,
    /// Why the last one failed.
    #[serde(default)]
    pub error: Option<String>,
    /// Whether a renewal was asked for that has not come about yet.
    #[serde(default)]
    pub asked: bool,
}

impl Attempts {
    /// Before when no attempt may begin.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.not_before)
    }

    /// After one more failure.
    #[must_use]
    pub fn failed(&self, failure: &Failure, now: SystemTime) -> Self {
        let doubled = PAUSE
            .0
            .saturating_mul(1 << self.failures.min(16))
            .min(PAUSE.1);
        let wanted = failure.retry_after.unwrap_or_default().min(LONGEST_RETRY);
        Self {
            failures: self.failures.saturating_add(1),
            not_before: since_1970(now + doubled.max(wanted)),
            error: Some(failure.to_string()),
            asked: self.asked,
        }
    }
}

/// The directory.
#[derive(Clone, Debug)]
pub struct AcmeFolder {
    folder: PathBuf,
}

/// The right to order, which others do not have meanwhile.
#[derive(Debug)]
pub struct OrderLock(#[expect(dead_code, reason = "it is held, and let go")] Flock<File>);

impl AcmeFolder {
    /// The directory, which is made where it is missing.
    ///
    /// # Errors
    /// What the system answers, with the path.
    pub fn open(folder: &Path) -> io::Result<Self> {
        for path in [
            folder.to_owned(),
            folder.join(HTTP01),
            folder.join(TLS_ALPN01),
        ] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|error| named(&path, &error))?;
        }
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// What is to be watched.
    #[must_use]
    pub fn watched(&self) -> Vec<PathBuf> {
        vec![
            self.certificate_path(),
            self.folder.join(ATTEMPTS),
            self.folder.join(RENEW),
            self.folder.join(TLS_ALPN01),
        ]
    }

    /// The file with the certificate and its key.
    #[must_use]
    pub fn certificate_path(&self) -> PathBuf {
        self.folder.join("certificate.pem")
    }

    /// The certificate; `None` where there is none yet.
    ///
    /// # Errors
    /// With the file, and what to do.
    pub fn certificate(&self) -> Result<Option<Ordered>, String> {
        let path = self.certificate_path();
        let text = shared_file::read(&path).map_err(|error| error.to_string())?;
        let parsed = text.map(|text| Ordered::parse(&text)).transpose();
        parsed.map_err(|error| {
            format!(
                "{}: {error}: take it away, and another one is ordered",
                path.display()
            )
        })
    }

    fn keep_certificate(&self, pem: &str) -> io::Result<()> {
        shared_file::put(&self.certificate_path(), PRIVATE, pem)
    }

    /// What is remembered of attempts.
    ///
    /// # Errors
    /// With the file, and what to do.
    pub fn attempts(&self) -> Result<Attempts, String> {
        let path = self.folder.join(ATTEMPTS);
        let text = shared_file::read(&path).map_err(|error| error.to_string())?;
        let Some(text) = text else {
            return Ok(Attempts::default());
        };
        serde_json::from_str(&text)
            .map_err(|error| format!("{}: {error}: take it away", path.display()))
    }

    /// Remembers this of attempts.
    ///
    /// # Errors
    /// What the system answers, with the path.
    pub fn keep_attempts(&self, attempts: &Attempts) -> io::Result<()> {
        let text = serde_json::to_string(attempts).map_err(io::Error::other)?;
        shared_file::put(&self.folder.join(ATTEMPTS), PRIVATE, &text)
    }

    /// What to remember after a success.
    #[must_use]
    pub fn succeeded(now: SystemTime) -> Attempts {
        Attempts {
            not_before: since_1970(now + AFTER_SUCCESS),
            ..Attempts::default()
        }
    }

    /// Asks whoever shares the directory to renew the certificate now.
    ///
    /// # Errors
    /// What the system answers, with the path.
    pub fn ask(&self) -> io::Result<()> {
        shared_file::put(&self.folder.join(RENEW), PRIVATE, "")
    }

    /// Whether somebody has asked.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.folder.join(RENEW).exists()
    }

    /// Takes up what was asked: whatever has failed before does not count.
    ///
    /// # Errors
    /// What the system answers, with the path.
    pub fn take_up(&self) -> io::Result<()> {
        self.keep_attempts(&Attempts {
            asked: true,
            ..Attempts::default()
        })?;
        removed(&self.folder.join(RENEW))
    }

    /// The right to order; `None` where another process has it.
    ///
    /// # Errors
    /// What the system answers, with the path.
    pub fn lock(&self) -> io::Result<Option<OrderLock>> {
        let place = self.folder.join(".order.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(PRIVATE)
            .open(&place)
            .map_err(|error| named(&place, &error))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(OrderLock(lock))),
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => Ok(None),
            Err((_, error)) => Err(named(&place, &error.into())),
        }
    }

    /// The account as it was kept, where it is one of this server.
    fn account(&self, directory: &str) -> Result<Option<serde_json::Value>, String> {
        let path = self.folder.join(ACCOUNT);
        let text = shared_file::read(&path).map_err(|error| error.to_string())?;
        let Some(text) = text else { return Ok(None) };
        let account: serde_json::Value = serde_json::from_str(&text).map_err(|error| {
            format!(
                "{}: {error}: take it away, and a new account is made",
                path.display()
            )
        })?;
        Ok((account["directory"] == directory).then_some(account))
    }

    fn keep_account(&self, account: &str) -> io::Result<()> {
        shared_file::put(&self.folder.join(ACCOUNT), PRIVATE, account)
    }

    /// The answer to an HTTP-01 challenge, for whichever replica is asked.
    #[must_use]
    pub fn http01(&self, token: &str) -> Option<String> {
        if !is_token(token) {
            return None;
        }
        let path = self.folder.join(HTTP01).join(token);
        shared_file::read(&path).ok().flatten()
    }

    fn answer_http01(&self, token: &str, answer: &str) -> io::Result<PathBuf> {
        if !is_token(token) {
            return Err(io::Error::other(
                "the server's challenge has no valid token",
            ));
        }
        let path = self.folder.join(HTTP01).join(token);
        shared_file::put(&path, PRIVATE, answer)?;
        Ok(path)
    }

    fn answer_tls_alpn01(&self, domain: &DnsName, digest: &[u8]) -> io::Result<PathBuf> {
        let path = self.folder.join(TLS_ALPN01).join(domain.as_str());
        let text = serde_json::to_string(digest).map_err(io::Error::other)?;
        shared_file::put(&path, PRIVATE, &text)?;
        Ok(path)
    }

    /// The certificates that answer TLS-ALPN-01 challenges at present (RFC
    /// 8737 section 3), each with a key of its own. An answer that is none is
    /// passed over: the order that it is for fails, and says so.
    #[must_use]
    pub fn tls_alpn01(&self, domains: &[DnsName]) -> HashMap<String, Arc<CertifiedKey>> {
        let answer = |domain: &DnsName| {
            let path = self.folder.join(TLS_ALPN01).join(domain.as_str());
            let text = shared_file::read(&path).ok().flatten()?;
            let digest: Vec<u8> = serde_json::from_str(&text).ok()?;
            let key = challenge_certificate(domain.as_str(), &digest)?;
            Some((domain.as_str().to_owned(), Arc::new(key)))
        };
        domains.iter().filter_map(answer).collect()
    }
}

const ACCOUNT: &str = "account.json";
const ATTEMPTS: &str = "attempts.json";
const RENEW: &str = "renew";
const HTTP01: &str = "http-01";
const TLS_ALPN01: &str = "tls-alpn-01";

/// A token is base64url (RFC 8555 section 8.1), and here also a file's name.
fn is_token(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    (1..=128).contains(&text.len()) && text.bytes().all(plain)
}

fn challenge_certificate(domain: &str, digest: &[u8]) -> Option<CertifiedKey> {
    if digest.len() != 32 {
        return None;
    }
    let key = KeyPair::generate().ok()?;
    let mut params = CertificateParams::new(vec![domain.to_owned()]).ok()?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key).ok()?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = rustls::crypto::ring::default_provider();
    // What reads certificates for use refuses this one: its critical extension
    // is for the CA alone.
    let key = provider.key_provider.load_private_key(key).ok()?;
    Some(CertifiedKey::new(vec![certificate.der().clone()], key))
}

fn removed(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named(path, &error)),
        _ => Ok(()),
    }
}

fn since_1970(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn ordered(names: &[&str]) -> Ordered {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).expect("names");
        let pem = params.self_signed(&key).expect("signed").pem();
        Ordered::parse(&(key.serialize_pem() + &pem)).expect("parsed")
    }

    #[test]
    fn a_certificate_is_due_at_two_thirds_or_in_the_window() {
        let mut one = ordered(&["a.test"]);
        (one.from, one.until) = (at(0), at(90_000));
        for (case, window, spread, due) in [
            ("two thirds", None, 0.0, 60_000),
            ("a little earlier", None, 1.0, 57_000),
            ("the window begins", Some((at(100), at(200))), 0.0, 100),
            ("within the window", Some((at(100), at(200))), 0.5, 150),
            (
                "a window too late",
                Some((at(95_000), at(99_000))),
                0.5,
                81_000,
            ),
            (
                "a window that ends first",
                Some((at(200), at(100))),
                0.5,
                200,
            ),
        ] {
            assert_eq!(one.due(window, spread), at(due), "{case}");
        }
    }

    #[test]
    fn a_certificate_covers_what_it_names() {
        let one = ordered(&["a.test", "b.test"]);
        let names = |list: &[&str]| -> Vec<DnsName> {
            list.iter()
                .map(|name| DnsName::parse(name).expect("a name"))
                .collect()
        };
        assert!(one.covers(&names(&["a.test"])));
        assert!(one.covers(&names(&["B.test", "a.test"])));
        assert!(!one.covers(&names(&["a.test", "c.test"])));
    }

    #[test]
    fn pauses_double_and_honour_the_server() {
        let failure = |retry_after: Option<u64>| Failure {
            message: "no".to_owned(),
            retry_after: retry_after.map(Duration::from_secs),
        };
        let mut attempts = Attempts::default();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            attempts = attempts.failed(&failure(None), at(1000));
            pauses.push(attempts.not_before - 1000);
        }
        assert_eq!(pauses[..4], [60, 120, 240, 480]);
        assert_eq!(pauses[11], 6 * 3600);
        let first = Attempts::default();
        for (case, retry_after, pause) in [
            ("shorter than ours", 5, 60),
            ("longer than ours", 500, 500),
            ("without end", u64::MAX / 2, 24 * 3600),
        ] {
            let after = first.failed(&failure(Some(retry_after)), at(1000));
            assert_eq!(after.not_before - 1000, pause, "{case}");
        }
    }

    #[test]
    fn a_token_is_no_path() {
        let folder = tempfile::tempdir().expect("a folder");
        let acme = AcmeFolder::open(folder.path()).expect("opened");
        acme.answer_http01("abc_-9", "the answer").expect("kept");
        assert_eq!(acme.http01("abc_-9").as_deref(), Some("the answer"));
        acme.keep_account("{}").expect("kept");
        for token in [
            "../account.json",
            "",
            ".",
            "a/b",
            "abc_-9.",
            &"a".repeat(129),
        ] {
            assert_eq!(acme.http01(token), None, "{token}");
            assert!(acme.answer_http01(token, "x").is_err(), "{token}");
        }
    }

    #[test]
    fn an_answer_by_tls_is_a_certificate_for_its_name_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let acme = AcmeFolder::open(folder.path()).expect("opened");
        let names =
            ["a.test", "b.test", "c.test"].map(|name| DnsName::parse(name).expect("a name"));
        acme.answer_tls_alpn01(&names[0], &[7; 32]).expect("kept");
        acme.answer_tls_alpn01(&names[1], &[7; 31]).expect("kept");
        let answers = acme.tls_alpn01(&names);
        assert_eq!(answers.keys().collect::<Vec<_>>(), ["a.test"]);
    }

    #[test]
    fn one_orders_at_a_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let one = AcmeFolder::open(folder.path()).expect("opened");
        let other = AcmeFolder::open(folder.path()).expect("opened");
        let lock = one.lock().expect("no error").expect("the lock");
        assert!(other.lock().expect("no error").is_none());
        drop(lock);
        assert!(other.lock().expect("no error").is_some());
    }
}

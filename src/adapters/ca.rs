//! A private certificate authority for development and small fleets, kept in a
//! folder: its key, its certificate, an index of what it has issued, and the
//! list of what it has taken back (RFC 5280).
//!
//! Every change is made under one lock, of the index; the files are replaced
//! whole. The list of revoked certificates is written anew with each change,
//! so that it is never older than the last of them.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevocationReason, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

use crate::egress::{AgentId, DnsName, Host, TenantId};

use super::ca_key::{self, Passphrase};
use super::host;
use super::shared_file;

/// A certificate is valid from a little before it was issued, for clocks that
/// are behind.
const BACKDATED: Duration = Duration::from_secs(300);
/// Of keys, and of the index, which says who there is.
const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// Why a certificate authority cannot do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is none in the folder.
    #[error("{0}: there is no CA: `agentport ca init` makes one")]
    Missing(String),
    /// There is one already, or a part of one.
    #[error("{0} is there already, and is never replaced: name another folder")]
    Exists(String),
    /// What the system answered, with the path.
    #[error("{0}")]
    System(#[from] io::Error),
    /// A file cannot be understood.
    #[error("{place}: {what}")]
    Content {
        /// The file, perhaps with its line.
        place: String,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// A name that no certificate can have.
    #[error("{0}")]
    Name(String),
    /// The authority's own certificate has ended.
    #[error("the CA has expired: make a new one with `agentport ca init`, in another folder")]
    Expired,
    /// The authority has not issued it.
    #[error("{0}: this CA has issued no such certificate: `agentport ca show` prints what it has")]
    Unknown(String),
    /// It is revoked, and stays so.
    #[error("the certificate {0} is revoked: issue a new one with `agentport ca issue`")]
    Revoked(String),
    /// Making or signing failed.
    #[error("cannot sign: {0}")]
    Signing(#[from] rcgen::Error),
}

/// Whom a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// An agent, by the SPIFFE id `spiffe://DOMAIN/agent/NAME`, or
    /// `spiffe://DOMAIN/TENANT/agent/NAME`.
    Agent {
        /// Its name: letters, digits, `-`, `_` and `.`.
        agent: AgentId,
        /// Its tenant, of the same characters.
        tenant: Option<TenantId>,
    },
    /// A server, by the first of its names.
    Server,
}

/// What a certificate is wanted for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Whom it is for.
    pub holder: Holder,
    /// DNS names and addresses; a server has at least one.
    pub names: Vec<Host>,
    /// How long it is valid.
    pub lasts: Duration,
    /// The folder for it; `None` for `issued` in the authority's.
    pub out: Option<PathBuf>,
}

/// What the index knows of a certificate: one JSON object in each line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuedCertificate {
    /// 128 random bits in hexadecimal.
    pub serial: String,
    /// SPIFFE ids, DNS names and addresses, the first one its subject.
    pub names: Vec<String>,
    /// Whether it is a server's.
    pub server: bool,
    /// When it was issued, in seconds since 1970.
    pub issued: u64,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// Its file; the key is beside, with the ending `key`.
    pub file: PathBuf,
    /// When it was revoked, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<u64>,
    /// Whether another has taken its place in its file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replaced: bool,
}

impl IssuedCertificate {
    /// Where its key is.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.file.with_extension("key")
    }

    /// Whether two thirds of its time are over, and it is in use.
    fn is_due(&self, now: u64) -> bool {
        let lasts = self.expires.saturating_sub(self.issued);
        let open = self.revoked.is_none() && !self.replaced;
        open && now >= self.issued.saturating_add(lasts / 3 * 2)
    }
}

/// What an authority says of itself.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The domain of its SPIFFE ids.
    pub domain: String,
    /// When its own certificate ends.
    pub expires: SystemTime,
    /// When its list of revoked certificates is past its time.
    pub list_expires: SystemTime,
    /// All that it has issued, the oldest first.
    pub issued: Vec<IssuedCertificate>,
}

/// A certificate authority in a folder.
pub struct Authority {
    folder: PathBuf,
    domain: String,
    expires: u64,
    issuer: Issuer<'static, KeyPair>,
    list_lasts: Duration,
}

impl Authority {
    /// Makes one, with an empty list of revoked certificates. `lasts` is for
    /// its certificate, `list_lasts` for the list. With a passphrase its key is
    /// encrypted.
    ///
    /// # Errors
    /// [`CaError`]; where there is one already, it is left alone.
    pub fn create(
        folder: &Path,
        domain: &DnsName,
        (lasts, list_lasts): (Duration, Duration),
        passphrase: Option<&Passphrase>,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        fs::create_dir_all(folder).map_err(|error| named(folder, &error))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&format!("AgentPort CA of {}", domain.as_str()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(&format!("spiffe://{}", domain.as_str()))?];
        params.serial_number = Some(SerialNumber::from_slice(&serial()));
        let seconds = since_1970(now);
        params.not_before = date_time_ymd(1970, 1, 1) + (seconds.saturating_sub(BACKDATED));
        params.not_after = date_time_ymd(1970, 1, 1) + seconds.saturating_add(lasts);
        let certificate = params.self_signed(&key)?.pem();
        let written =
            ca_key::write(&key, passphrase).map_err(|what| content(&folder.join(KEY), &what))?;

        shared_file::change(&index(folder), PRIVATE, |text| {
            for name in [KEY, CERTIFICATE] {
                let path = folder.join(name);
                if fs::symlink_metadata(&path).is_ok() {
                    return Err(CaError::Exists(path.display().to_string()));
                }
            }
            if text.is_some() {
                return Err(CaError::Exists(index(folder).display().to_string()));
            }
            shared_file::put(&folder.join(KEY), PRIVATE, &written)?;
            shared_file::put(&folder.join(CERTIFICATE), PUBLIC, &certificate)?;
            let authority = Self::open(folder, list_lasts, passphrase)?;
            authority.write_list(&[], now)?;
            Ok((Some(String::new()), authority))
        })
    }

    /// Opens the one in a folder. `list_lasts` is how long the lists hold that
    /// it writes; the passphrase is that of its key, where it has one.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn open(
        folder: &Path,
        list_lasts: Duration,
        passphrase: Option<&Passphrase>,
    ) -> Result<Self, CaError> {
        let place = folder.join(CERTIFICATE);
        let Some(pem) = shared_file::read(&place)? else {
            return Err(CaError::Missing(folder.display().to_string()));
        };
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| content(&place, "it is no certificate in PEM"))?;
        let (_, certificate) =
            X509Certificate::from_der(&der).map_err(|_| content(&place, "it cannot be read"))?;
        if !certificate.is_ca() {
            return Err(content(&place, "it is not the certificate of a CA"));
        }
        let domain = spiffe_ids(&certificate)
            .find_map(|id| id.strip_prefix("spiffe://").map(str::to_owned))
            .filter(|domain| !domain.contains('/'))
            .ok_or_else(|| {
                content(
                    &place,
                    "it names no SPIFFE domain: it is not of `agentport ca init`",
                )
            })?;
        let expires = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);

        let key_place = folder.join(KEY);
        let pem = shared_file::read(&key_place)?
            .ok_or_else(|| content(&key_place, "the CA's key is missing"))?;
        let key = ca_key::read(&pem, passphrase).map_err(|what| content(&key_place, &what))?;
        let public = certificate.public_key().subject_public_key.data.as_ref();
        if public != key.public_key_raw() {
            return Err(content(
                &key_place,
                "it is not the key of the CA's certificate",
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self {
            folder: folder.to_owned(),
            domain,
            expires,
            issuer,
            list_lasts,
        })
    }

    /// Where its certificate is, for those who trust it.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.folder.join(CERTIFICATE)
    }

    /// Where the list of what is revoked is.
    #[must_use]
    pub fn list(&self) -> PathBuf {
        self.folder.join(LIST)
    }

    /// Issues a certificate with a new key. Files that are there are never
    /// replaced; [`Authority::renew`] does that.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn issue(&self, wanted: &Wanted, now: SystemTime) -> Result<IssuedCertificate, CaError> {
        let (names, file) = self.names(wanted)?;
        self.change(now, |entries| {
            for path in [file.clone(), file.with_extension("key")] {
                if fs::symlink_metadata(&path).is_ok() {
                    return Err(CaError::Exists(path.display().to_string()));
                }
            }
            let signed = self.sign(
                &names,
                (wanted.holder == Holder::Server, &file),
                wanted.lasts.as_secs(),
                now,
            )?;
            let entry = signed.entry.clone();
            entries.push(entry.clone());
            Ok((vec![signed], entry))
        })
    }

    /// Issues certificates anew: the same names and the same lifetime, a new
    /// key and a new number, in the same files. Without `files`, those in use
    /// of which two thirds of their time are over. The list of what is revoked
    /// is written anew in any case.
    ///
    /// # Errors
    /// [`CaError`]; then nothing is renewed.
    pub fn renew(
        &self,
        files: &[PathBuf],
        now: SystemTime,
    ) -> Result<Vec<IssuedCertificate>, CaError> {
        let seconds = since_1970(now).as_secs();
        self.change(now, |entries| {
            let mut due = Vec::new();
            if files.is_empty() {
                let found = entries.iter().enumerate();
                // A file that was taken away is no longer in use.
                let found = found.filter(|(_, entry)| entry.is_due(seconds) && entry.file.exists());
                due.extend(found.map(|(at, entry)| (at, entry.file.clone())));
            }
            for file in files {
                let at = position(entries, &serial_of(file)?, file)?;
                due.push((at, absolute(file)?));
            }
            let mut renewed = Vec::new();
            for (at, file) in due {
                let old = &entries[at];
                if old.revoked.is_some() {
                    return Err(CaError::Revoked(old.serial.clone()));
                }
                let lasts = old.expires.saturating_sub(old.issued);
                renewed.push(self.sign(&old.names, (old.server, &file), lasts, now)?);
                entries[at].replaced = true;
            }
            let new: Vec<_> = renewed.iter().map(|signed| signed.entry.clone()).collect();
            entries.extend(new.iter().cloned());
            Ok((renewed, new))
        })
    }

    /// Takes certificates back, by file or by serial number, and writes the
    /// list anew. One that is revoked already stays as it is.
    ///
    /// # Errors
    /// [`CaError`]; then nothing is revoked.
    pub fn revoke(
        &self,
        which: &[String],
        now: SystemTime,
    ) -> Result<Vec<IssuedCertificate>, CaError> {
        let seconds = since_1970(now).as_secs();
        self.change(now, |entries| {
            let mut revoked = Vec::new();
            for name in which {
                let path = Path::new(name);
                let serial = if path.exists() {
                    serial_of(path)?
                } else {
                    written_serial(name)
                };
                let at = position(entries, &serial, path)?;
                entries[at].revoked.get_or_insert(seconds);
                revoked.push(entries[at].clone());
            }
            Ok((Vec::new(), revoked))
        })
    }

    /// What there is.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn show(&self) -> Result<Shown, CaError> {
        let text = shared_file::read(&index(&self.folder))?.unwrap_or_default();
        let Some((_, list_expires)) = self.last_list()? else {
            return Err(content(
                &self.list(),
                "the list of revoked certificates is missing: `agentport ca renew` writes it",
            ));
        };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Ok(Shown {
            domain: self.domain.clone(),
            expires: at(self.expires),
            list_expires: at(list_expires),
            issued: self.parse(&text)?,
        })
    }

    /// Changes the index, then the list of what is revoked by it, and then
    /// writes what was signed: nobody has a certificate that could not be
    /// revoked.
    fn change<T>(
        &self,
        now: SystemTime,
        change: impl FnOnce(&mut Vec<IssuedCertificate>) -> Result<(Vec<Signed>, T), CaError>,
    ) -> Result<T, CaError> {
        if since_1970(now).as_secs() >= self.expires {
            return Err(CaError::Expired);
        }
        let place = index(&self.folder);
        shared_file::change(&place, PRIVATE, |text| {
            let mut entries = self.parse(&text.unwrap_or_default())?;
            let (signed, given) = change(&mut entries)?;
            let mut lines = String::new();
            for entry in &entries {
                lines += &serde_json::to_string(entry).map_err(io::Error::other)?;
                lines.push('\n');
            }
            shared_file::put(&place, PRIVATE, &lines)?;
            self.write_list(&entries, now)?;
            for Signed {
                entry,
                certificate,
                key,
            } in signed
            {
                if let Some(folder) = entry.file.parent() {
                    fs::create_dir_all(folder).map_err(|error| named(folder, &error))?;
                }
                shared_file::put(&entry.key(), PRIVATE, &key)?;
                shared_file::put(&entry.file, PUBLIC, &certificate)?;
            }
            Ok((None, given))
        })
    }

    fn parse(&self, text: &str) -> Result<Vec<IssuedCertificate>, CaError> {
        let place = index(&self.folder);
        let lines = text.lines().enumerate();
        lines
            .map(|(at, line)| {
                serde_json::from_str(line).map_err(|error| CaError::Content {
                    place: format!("{}:{}", place.display(), at + 1),
                    what: error.to_string(),
                })
            })
            .collect()
    }

    /// The names of a certificate, the first its subject, and its file.
    fn names(&self, wanted: &Wanted) -> Result<(Vec<String>, PathBuf), CaError> {
        let domain = &self.domain;
        let mut names = Vec::new();
        let file = match &wanted.holder {
            Holder::Agent { agent, tenant } => {
                let agent = segment("agent", agent.as_str())?;
                match tenant {
                    None => {
                        names.push(format!("spiffe://{domain}/agent/{agent}"));
                        format!("agents/{agent}")
                    }
                    Some(tenant) => {
                        let tenant = segment("tenant", tenant.as_str())?;
                        names.push(format!("spiffe://{domain}/{tenant}/agent/{agent}"));
                        format!("tenants/{tenant}/{agent}")
                    }
                }
            }
            Holder::Server => match wanted.names.first() {
                Some(first) => format!("servers/{}", bare(first).replace(':', "-")),
                None => {
                    return Err(CaError::Name("a server has one name at least".to_owned()));
                }
            },
        };
        names.extend(wanted.names.iter().map(bare));
        let folder = match &wanted.out {
            Some(folder) => folder.join(Path::new(&file).file_name().unwrap_or_default()),
            None => self.folder.join("issued").join(file),
        };
        let mut path = folder.into_os_string();
        path.push(".pem");
        Ok((names, absolute(Path::new(&path))?))
    }

    fn sign(
        &self,
        names: &[String],
        (server, file): (bool, &Path),
        lasts: u64,
        now: SystemTime,
    ) -> Result<Signed, CaError> {
        let now = since_1970(now);
        let serial = serial();
        // Nothing outlives the authority.
        let expires = now.as_secs().saturating_add(lasts).min(self.expires);
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(names.first().map_or("", String::as_str));
        for name in names {
            params.subject_alt_names.push(alternative_name(name)?);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = if server {
            vec![ExtendedKeyUsagePurpose::ServerAuth]
        } else {
            // An agent that other agents call is the server there.
            vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ]
        };
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(BACKDATED);
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(expires);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Signed {
            entry: IssuedCertificate {
                serial: hex(&serial),
                names: names.to_vec(),
                server,
                issued: now.as_secs(),
                expires,
                file: file.to_owned(),
                revoked: None,
                replaced: false,
            },
            certificate,
            key: key.serialize_pem(),
        })
    }

    /// Writes the list of what is revoked and has not ended by itself.
    fn write_list(&self, entries: &[IssuedCertificate], now: SystemTime) -> Result<(), CaError> {
        let seconds = since_1970(now);
        let number = self
            .last_list()?
            .map_or(1, |(number, _)| number.saturating_add(1));
        let mut revoked_certs = Vec::new();
        for entry in entries
            .iter()
            .filter(|entry| entry.expires > seconds.as_secs())
        {
            let Some(at) = entry.revoked else { continue };
            let digits = entry.serial.as_bytes().chunks(2);
            let bytes: Option<Vec<u8>> = digits
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                .collect();
            let bytes = bytes.ok_or_else(|| {
                content(
                    &index(&self.folder),
                    &format!("no serial number: {}", entry.serial),
                )
            })?;
            revoked_certs.push(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&bytes),
                revocation_time: date_time_ymd(1970, 1, 1) + Duration::from_secs(at),
                reason_code: Some(RevocationReason::CessationOfOperation),
                invalidity_date: None,
            });
        }
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(1970, 1, 1) + seconds.saturating_sub(BACKDATED),
            next_update: date_time_ymd(1970, 1, 1) + seconds.saturating_add(self.list_lasts),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = list.signed_by(&self.issuer)?.pem()?;
        Ok(shared_file::put(&self.list(), PUBLIC, &pem)?)
    }

    /// The number of the list as it is, and until when it holds.
    fn last_list(&self) -> Result<Option<(u64, u64)>, CaError> {
        let place = self.list();
        let Some(pem) = shared_file::read(&place)? else {
            return Ok(None);
        };
        let broken = || {
            content(
                &place,
                "it is no list of revoked certificates: take it away, and `agentport ca renew` writes it anew",
            )
        };
        let der =
            CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).map_err(|_| broken())?;
        let (_, list) = CertificateRevocationList::from_der(&der).map_err(|_| broken())?;
        let number = list
            .crl_number()
            .and_then(|number| number.to_u64_digits().first().copied());
        let until = list
            .next_update()
            .and_then(|until| u64::try_from(until.timestamp()).ok());
        number.zip(until).ok_or_else(broken).map(Some)
    }
}

const KEY: &str = "ca.key";
const CERTIFICATE: &str = "ca.pem";
const LIST: &str = "crl.pem";

fn index(folder: &Path) -> PathBuf {
    folder.join("index.jsonl")
}

/// A certificate that is in no file yet.
struct Signed {
    entry: IssuedCertificate,
    certificate: String,
    key: String,
}

fn position(entries: &[IssuedCertificate], serial: &str, asked: &Path) -> Result<usize, CaError> {
    let written = |entry: &IssuedCertificate| written_serial(&entry.serial);
    let found = entries.iter().position(|entry| written(entry) == serial);
    found.ok_or_else(|| CaError::Unknown(asked.display().to_string()))
}

/// A serial number as it is compared: OpenSSL writes capitals, others colons
/// and zeros.
fn written_serial(text: &str) -> String {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    digits
        .to_ascii_lowercase()
        .trim_start_matches('0')
        .to_owned()
}

fn serial_of(file: &Path) -> Result<String, CaError> {
    let pem =
        shared_file::read(file)?.ok_or_else(|| CaError::Unknown(file.display().to_string()))?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| content(file, "it is no certificate in PEM"))?;
    let (_, certificate) =
        X509Certificate::from_der(&der).map_err(|_| content(file, "it cannot be read"))?;
    Ok(written_serial(&hex(certificate.raw_serial())))
}

fn spiffe_ids<'a>(certificate: &'a X509Certificate<'a>) -> impl Iterator<Item = &'a str> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names
        .into_iter()
        .flat_map(|names| &names.value.general_names);
    names.filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    })
}

/// A segment of a SPIFFE id (SPIFFE-ID section 2.2), which also names a file.
fn segment<'a>(what: &str, name: &'a str) -> Result<&'a str, CaError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if matches!(name, "." | "..") || !name.bytes().all(plain) {
        return Err(CaError::Name(format!(
            "{what} {name}: a SPIFFE id has letters, digits and -_. only"
        )));
    }
    Ok(name)
}

fn bare(host: &Host) -> String {
    match host {
        Host::Name(name) => name.as_str().to_owned(),
        Host::Address(address) => address.to_string(),
    }
}

fn alternative_name(name: &str) -> Result<SanType, CaError> {
    if name.contains("://") {
        return uri(name);
    }
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let text = name.try_into();
    text.map(SanType::DnsName)
        .map_err(|_| CaError::Name(format!("{name}: not a DNS name")))
}

fn uri(text: &str) -> Result<SanType, CaError> {
    text.try_into()
        .map(SanType::URI)
        .map_err(|_| CaError::Name(format!("{text}: not a URI")))
}

/// A subject for people. Nothing reads it, and it has 64 characters at most
/// (RFC 5280 appendix A.1).
fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(
        DnType::CommonName,
        name.chars().take(64).collect::<String>(),
    );
    subject
}

/// 128 random bits, of which the first byte is never zero.
fn serial() -> [u8; 16] {
    let mut serial = host::random_bits().to_be_bytes();
    serial[0] = serial[0].max(1);
    serial
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

fn absolute(path: &Path) -> Result<PathBuf, CaError> {
    std::path::absolute(path).map_err(|error| named(path, &error).into())
}

fn content(place: &Path, what: &str) -> CaError {
    CaError::Content {
        place: place.display().to_string(),
        what: what.to_owned(),
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

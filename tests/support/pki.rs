//! Certificates for a test: a CA of its own, what it has issued, and lists of
//! what it has revoked.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

/// A CA, with a folder for what it issues.
pub(crate) struct Pki {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    ca: PathBuf,
}

/// A certificate with its key, as files.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// The time for which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Valid {
    Now,
    Past,
    Future,
    /// From now on, for so long.
    For(Duration),
}

impl Pki {
    /// A new CA, of this name.
    pub(crate) fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, Valid::Now);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, certificate.pem()).expect("written");
        Self {
            issuer: Issuer::new(params, key),
            folder,
            ca,
        }
    }

    /// Its certificate.
    pub(crate) fn ca(&self) -> &Path {
        &self.ca
    }

    /// Where a file of this name stands.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A server's certificate for these names and addresses, in files of this
    /// name.
    pub(crate) fn server(&self, file: &str, names: &[&str]) -> Issued {
        self.server_valid(file, names, Valid::Now)
    }

    /// The same, valid at another time.
    pub(crate) fn server_valid(&self, file: &str, names: &[&str], valid: Valid) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(file, params, valid, 1)
    }

    /// A client's certificate with this number and these names: SPIFFE ids or
    /// DNS names.
    pub(crate) fn client(&self, file: &str, serial: u64, names: &[&str], valid: Valid) -> Issued {
        let mut params = CertificateParams::default();
        for name in names {
            params.subject_alt_names.push(if name.contains("://") {
                SanType::URI((*name).try_into().expect("a URI"))
            } else {
                SanType::DnsName((*name).try_into().expect("a name"))
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(file, params, valid, serial)
    }

    fn issue(
        &self,
        file: &str,
        mut params: CertificateParams,
        valid: Valid,
        serial: u64,
    ) -> Issued {
        validity(&mut params, valid);
        params.serial_number = Some(SerialNumber::from(serial));
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name.push(DnType::CommonName, file);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let issued = Issued {
            certificate: self.path(&format!("{file}.pem")),
            key: self.path(&format!("{file}.key")),
        };
        write(&issued.key, &key.serialize_pem());
        write(&issued.certificate, &certificate.pem());
        issued
    }

    /// Writes the list of revoked certificates, whole, in a file of this name.
    pub(crate) fn revoke(&self, file: &str, serials: &[u64]) -> PathBuf {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = list.signed_by(&self.issuer).expect("signed").pem();
        let path = self.path(file);
        write(&path, &pem.expect("PEM"));
        path
    }
}

/// Puts a file in its place at once, so that nobody reads half of it.
pub(crate) fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).expect("written");
    std::fs::rename(new, path).expect("renamed");
}

fn write(path: &Path, text: &str) {
    replace(path, text.as_bytes());
}

fn validity(params: &mut CertificateParams, valid: Valid) {
    let (from, until) = match valid {
        Valid::Now => (2024, 2090),
        Valid::Past => (2023, 2024),
        Valid::Future => (2089, 2090),
        Valid::For(time) => {
            params.not_before = date_time_ymd(2024, 1, 1);
            params.not_after = (SystemTime::now() + time).into();
            return;
        }
    };
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
}

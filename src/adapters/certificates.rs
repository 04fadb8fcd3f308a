//! Certificates, keys and lists of revoked certificates from their files, whole
//! or not at all: a pair that does not belong together, has expired or cannot
//! be read is a mistake, said with its file and what to do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ring::digest::{Context, SHA256};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::{CalleeTlsFiles, CertificatePair, ClientCertificates, Tls, TlsVersion};
use crate::proxy::{CalleeTls, CalleeTlsParts, ClientTrust, TlsParts};

use super::watch::read_stable;

/// A certificate that is in use, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// The file, as the configuration names it.
    pub name: String,
    /// When it expires.
    pub expires: SystemTime,
}

/// What the files of a `tls` section hold.
#[derive(Debug)]
pub struct Loaded {
    /// What a listener speaks TLS with.
    pub parts: TlsParts,
    /// Each certificate of the gateway, and of the issuers of clients'.
    pub in_use: Vec<InUse>,
    /// What tells these files from others: what was read twice the same need
    /// not be put in force twice, which would end every session.
    pub digest: [u8; 32],
}

/// The files that a `tls` section names.
#[must_use]
pub fn files(tls: &Tls) -> Vec<PathBuf> {
    let pairs = tls.certificates.iter();
    pairs
        .flat_map(|pair| [pair.certificate.clone(), pair.key.clone()])
        .chain(tls.clients.ca.clone())
        .chain(tls.clients.crl.iter().cloned())
        .collect()
}

/// Reads them. `now` is the time.
///
/// # Errors
/// Every file that gives nothing usable, and what to do.
pub fn load(tls: &Tls, now: SystemTime) -> Result<Loaded, Vec<String>> {
    let mut errors = Vec::new();
    let mut in_use = Vec::new();
    let mut certificates = Vec::new();
    for pair in &tls.certificates {
        match self::pair(pair, now) {
            Ok((key, expires)) => {
                in_use.push(InUse {
                    name: pair.certificate.display().to_string(),
                    expires,
                });
                certificates.push(Arc::new(key));
            }
            Err(error) => errors.push(error),
        }
    }
    let clients = match clients(tls, now, &mut in_use) {
        Ok(clients) => clients,
        Err(more) => {
            errors.extend(more);
            None
        }
    };
    if !errors.is_empty() {
        return Err(errors);
    }
    let parts = TlsParts {
        certificates,
        clients,
        only_tls13: tls.min_version == TlsVersion::Tls13,
        alpn: tls.alpn.iter().map(|alpn| alpn.id().to_vec()).collect(),
    };
    Ok(Loaded {
        digest: digest(&parts),
        parts,
        in_use,
    })
}

fn digest(parts: &TlsParts) -> [u8; 32] {
    let chains = parts.certificates.iter().flat_map(|key| &key.cert);
    let issuers = parts.clients.iter().flat_map(|trust| &trust.issuers);
    let lists = parts.clients.iter().flat_map(|trust| &trust.revoked);
    let mut context = Context::new(&SHA256);
    let ders = chains
        .chain(issuers)
        .map(|der| der.as_ref())
        .chain(lists.map(|der| der.as_ref()));
    // DER says its own length, so no two lists look the same. A key is the
    // only one that fits its certificate.
    for der in ders {
        context.update(der);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// A certificate chain with its key, checked, and when the first of it to
/// expire does.
///
/// # Errors
/// With the file, and what to do.
pub fn pair(pair: &CertificatePair, now: SystemTime) -> Result<(CertifiedKey, SystemTime), String> {
    let (chain, key, expires) = identity(pair, now)?;
    let provider = rustls::crypto::ring::default_provider();
    let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => format!(
            "{}: the key is not that of the certificate in {}: write both anew",
            pair.key.display(),
            pair.certificate.display()
        ),
        error => format!("{}: {error}", pair.key.display()),
    })?;
    Ok((certified, expires))
}

/// A certificate chain that is valid, and a key; whether they belong together
/// is left to [`pair`].
type Identity = (
    Vec<CertificateDer<'static>>,
    PrivateKeyDer<'static>,
    SystemTime,
);

fn identity(pair: &CertificatePair, now: SystemTime) -> Result<Identity, String> {
    let place = pair.certificate.display();
    let chain = in_file(&pair.certificate)?;
    let mut expires = None;
    for (at, der) in chain.iter().enumerate() {
        let which = if at == 0 { "the" } else { "an issuer's" };
        let until =
            valid(der, now).map_err(|error| format!("{place}: {which} certificate {error}"))?;
        expires = Some(expires.map_or(until, |first: SystemTime| first.min(until)));
    }
    let Some(expires) = expires else {
        return Err(format!("{place}: there is no certificate in it"));
    };
    Ok((chain, private_key(&pair.key)?, expires))
}

/// TLS with an agent's endpoints, from its files, with the certificates whose
/// end counts.
///
/// # Errors
/// With the file, and what to do.
pub fn callee(
    written: &CalleeTlsFiles,
    http2: bool,
    now: SystemTime,
) -> Result<(CalleeTls, Vec<InUse>), String> {
    let in_use = |file: &Path, expires| InUse {
        name: file.display().to_string(),
        expires,
    };
    let (roots, expires) = trusted(&written.ca, now)?;
    let mut used = vec![in_use(&written.ca, expires)];
    let identity = match &written.identity {
        None => None,
        Some(both) => {
            pair(both, now)?;
            let (chain, key, expires) = identity(both, now)?;
            used.push(in_use(&both.certificate, expires));
            Some((chain, key))
        }
    };
    let parts = CalleeTlsParts {
        server_name: written.server_name.clone(),
        roots,
        identity,
        http2,
    };
    let tls =
        CalleeTls::new(parts).map_err(|error| format!("{}: {error}", written.ca.display()))?;
    Ok((tls, used))
}

fn clients(
    tls: &Tls,
    now: SystemTime,
    in_use: &mut Vec<InUse>,
) -> Result<Option<ClientTrust>, Vec<String>> {
    let written = &tls.clients;
    let optional = match written.certificates {
        ClientCertificates::None => return Ok(None),
        ClientCertificates::Optional => true,
        ClientCertificates::Required => false,
    };
    let mut errors = Vec::new();
    let mut issuers = Vec::new();
    if let Some(file) = &written.ca {
        match trusted(file, now) {
            Ok((found, expires)) => {
                issuers = found;
                in_use.push(InUse {
                    name: file.display().to_string(),
                    expires,
                });
            }
            Err(error) => errors.push(error),
        }
    }
    let mut revoked = Vec::new();
    for file in &written.crl {
        match lists(file) {
            Ok(found) => revoked.extend(found),
            Err(error) => errors.push(error),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(Some(ClientTrust {
        optional,
        issuers,
        revoked,
        names: written.names.clone(),
    }))
}

/// The issuers in a bundle. During a change of issuers an old one may have
/// expired; one at least must be valid.
fn trusted(
    file: &Path,
    now: SystemTime,
) -> Result<(Vec<CertificateDer<'static>>, SystemTime), String> {
    let place = file.display();
    let all = in_file(file)?;
    let mut last = Err(format!("{place}: there is no certificate in it"));
    for der in &all {
        match (valid(der, now), &last) {
            (Ok(until), Ok(other)) if until <= *other => {}
            (Ok(until), _) => last = Ok(until),
            (Err(_), Ok(_)) => {}
            (Err(error), Err(_)) => last = Err(format!("{place}: a certificate {error}")),
        }
    }
    last.map(|until| (all, until))
}

/// Every certificate in a file, of which there is at least one, in its order.
///
/// # Errors
/// With the file, and what to write.
pub fn in_file(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(&read(file)?)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{}: {}", file.display(), of_pem(&error)))?;
    if found.is_empty() {
        return Err(format!(
            "{}: there is no PEM certificate in it: write PEM, -----BEGIN CERTIFICATE-----",
            file.display()
        ));
    }
    Ok(found)
}

/// The first private key in a file, in clear.
///
/// # Errors
/// With the file, and what to do.
pub fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = read(file)?;
    let place = file.display();
    if bytes
        .windows(18)
        .any(|window| window == b"BEGIN ENCRYPTED PR")
    {
        return Err(format!(
            "{place}: the key is encrypted: write it in clear, readable for the gateway alone, \
             as `openssl pkey -in OLD -out NEW` does"
        ));
    }
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            format!(
                "{place}: there is no private key in it: write PEM, -----BEGIN PRIVATE KEY-----"
            )
        }
        error => format!("{place}: {}", of_pem(&error)),
    })
}

fn lists(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let bytes = read(file)?;
    let place = file.display();
    let found: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{place}: {}", of_pem(&error)))?;
    if found.is_empty() {
        return Err(format!(
            "{place}: there is no list in it: write PEM, -----BEGIN X509 CRL-----"
        ));
    }
    for list in &found {
        let parsed = x509_parser::revocation_list::CertificateRevocationList::from_der(list);
        if parsed.is_err() {
            return Err(format!(
                "{place}: a list of revoked certificates cannot be read"
            ));
        }
    }
    Ok(found)
}

/// Until when a certificate is valid, where it is.
fn valid(der: &CertificateDer<'_>, now: SystemTime) -> Result<SystemTime, String> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|_| "cannot be read".to_owned())?;
    let at = |seconds: i64| {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    };
    let validity = certificate.validity();
    let (from, until) = (
        at(validity.not_before.timestamp()),
        at(validity.not_after.timestamp()),
    );
    if now >= until {
        return Err(format!("has expired on {}", validity.not_after));
    }
    if now < from {
        return Err(format!("is not valid before {}", validity.not_before));
    }
    Ok(until)
}

fn of_pem(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "it breaks off before -----END".to_owned(),
        error => format!("it is no PEM: {error}"),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    // The error names the file.
    read_stable(file).map_err(|error| error.to_string())
}

//! Which certificates the agent trusts: the system's and those of
//! `AGENTPORT_CA_FILE`, read from disk and read again when they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Where systems keep their bundle, most common first.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The files that are trusted.
#[derive(Debug)]
pub(in crate::openclaw) struct Trust {
    files: Vec<PathBuf>,
    built: Mutex<Option<(Stamps, Arc<ClientConfig>)>>,
}

type Stamps = Vec<Option<(SystemTime, u64)>>;

/// Why no TLS configuration could be made.
#[derive(Debug, thiserror::Error)]
pub(in crate::openclaw) enum TrustError {
    /// No bundle is there.
    #[error(
        "no CA certificates are found, so no https destination can be checked: install \
         ca-certificates, or set SSL_CERT_FILE or AGENTPORT_CA_FILE"
    )]
    NoRoots,
    /// A file that was named cannot be read.
    #[error("the CA file {path} cannot be read: {detail}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// It holds no certificate.
    #[error("the CA file {0} holds no certificate; write PEM")]
    Empty(PathBuf),
    /// rustls refuses the settings.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl Trust {
    /// The system's bundle (`SSL_CERT_FILE` where it is set) and one more file.
    pub(in crate::openclaw) fn new(system: Option<PathBuf>, extra: Option<PathBuf>) -> Self {
        let system = system.or_else(|| {
            SYSTEM_BUNDLES
                .iter()
                .map(PathBuf::from)
                .find(|path| path.exists())
        });
        Self {
            files: system.into_iter().chain(extra).collect(),
            built: Mutex::new(None),
        }
    }

    /// The configuration for the files as they are now. Where they no longer
    /// read, the last good one serves, and a log record says so.
    ///
    /// # Errors
    /// [`TrustError`], where there never was a good one.
    pub(in crate::openclaw) fn config(&self) -> Result<Arc<ClientConfig>, TrustError> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps: Stamps = self.files.iter().map(|path| stamp(path)).collect();
        if let Some((_, config)) = built.as_ref().filter(|(last, _)| *last == stamps) {
            return Ok(config.clone());
        }
        match (self.build(), built.as_ref()) {
            (Ok(config), _) => {
                *built = Some((stamps, config.clone()));
                Ok(config)
            }
            (Err(error), Some((_, config))) => {
                tracing::warn!(event = "ca_not_reloaded", error = %error, "the last certificates serve");
                Ok(config.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    fn build(&self) -> Result<Arc<ClientConfig>, TrustError> {
        let mut roots = RootCertStore::empty();
        for path in &self.files {
            let unreadable = |detail: String| TrustError::Unreadable {
                path: path.clone(),
                detail,
            };
            let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
                .map_err(|e| unreadable(e.to_string()))?
                .collect::<Result<_, _>>()
                .map_err(|e| unreadable(e.to_string()))?;
            // A system's bundle may have certificates that rustls cannot use;
            // a file without a single good one is a mistake.
            let (added, _) = roots.add_parsable_certificates(certificates);
            if added == 0 {
                return Err(TrustError::Empty(path.clone()));
            }
        }
        if roots.is_empty() {
            return Err(TrustError::NoRoots);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

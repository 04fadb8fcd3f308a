//! Whom the program trusts where it is TLS's client on its own account (its
//! parent proxy, a CA, an issuer, its own gateway), and how it speaks then.
//!
//! What agents' requests trust is Pingora's, and stands in `proxy`.

use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use super::certificates;

/// TLS that trusts the certificates of this PEM bundle and no others, or the
/// system's roots, and in which HTTP/1.1 is spoken.
///
/// # Errors
/// With the file, what is wrong with it and what to write.
pub fn client(ca: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let roots = match ca {
        Some(file) => in_file(file)?,
        None => of_the_system(),
    };
    with_roots(Arc::new(roots))
}

/// The same, of roots that are there.
///
/// # Errors
/// None with the versions and ciphers that are built in.
pub fn with_roots(roots: Arc<RootCertStore>) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The certificates of a PEM bundle, each of which must be usable: who names a
/// file means all of it.
///
/// # Errors
/// With the file, what is wrong with it and what to write.
pub fn in_file(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for der in certificates::in_file(file)? {
        let added = roots.add(der);
        added.map_err(|error| {
            format!(
                "{}: a certificate cannot be used: {error}: write the CA's",
                file.display()
            )
        })?;
    }
    Ok(roots)
}

/// The system's roots, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`. What
/// cannot be read of them is missed when it is needed.
#[must_use]
pub fn of_the_system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_used_whole_or_refused_with_what_to_write() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        let authority = rcgen::generate_simple_self_signed(["ca.example".to_owned()])
            .expect("a certificate")
            .cert
            .pem();
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (case, text, expected) in [
            ("one", authority.clone(), Ok(1)),
            ("two", format!("{authority}{authority}"), Ok(2)),
            (
                "words around it",
                format!("# ours\n{authority}# end\n"),
                Ok(1),
            ),
            ("nothing", String::new(), Err("write PEM, -----BEGIN")),
            ("no PEM", "nothing".to_owned(), Err("no PEM certificate")),
            (
                "one that is none",
                format!("{authority}{broken}"),
                Err("cannot be used"),
            ),
            (
                "cut off",
                authority[..authority.len() / 2].to_owned(),
                Err("breaks off"),
            ),
        ] {
            std::fs::write(&file, text).expect("written");
            let found = in_file(&file).map(|roots| roots.len());
            match (&found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(*found, expected, "{case}"),
                (Err(error), Err(says)) => {
                    let place = file.display().to_string();
                    assert!(error.contains(says), "{case}: {error}");
                    assert_eq!(error.matches(&place).count(), 1, "{case}: {error}");
                }
                _ => panic!("{case}: {found:?}"),
            }
            assert_eq!(client(Some(&file)).is_ok(), expected.is_ok(), "{case}");
        }
        let error = client(Some(&folder.path().join("none"))).expect_err("no file");
        assert!(error.contains("none"), "{error}");
        assert!(client(Some(folder.path())).is_err(), "a folder");
    }

    #[test]
    fn the_systems_roots_serve_where_no_file_is_named() {
        let config = client(None).expect("roots that are there, or none");
        assert_eq!(config.alpn_protocols, [b"http/1.1".to_vec()]);
    }
}

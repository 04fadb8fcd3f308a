//! Certificates by ACME, as `tls.acme` writes them (RFC 8555).

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::egress::{DnsName, HttpsUrl};

use super::load::Reader;
use super::value::AcmeChallenge;

/// A certificate ordered and renewed by ACME.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// The URL of the server's directory.
    pub directory: String,
    /// The CA of the server itself; the system's where absent.
    pub ca: Option<PathBuf>,
    /// Whom the CA may write to, each `mailto:`.
    pub contact: Vec<String>,
    /// The names of the one certificate, at least one, each once.
    pub domains: Vec<DnsName>,
    /// Where account and certificate are kept.
    pub dir: PathBuf,
    /// How the names are proven.
    pub challenge: AcmeChallenge,
    /// Where http-01 is answered.
    pub http_listen: SocketAddr,
    /// The account at the CA that ours belongs to.
    pub eab: Option<ExternalAccount>,
}

/// An account at the CA that the ACME account is bound to (RFC 8555 section
/// 7.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalAccount {
    /// The id of its key.
    pub kid: String,
    /// A file with the key, base64url.
    pub key_file: PathBuf,
}

/// Nothing is ordered where no directory is written. What is written beside
/// would do nothing, so it is a mistake then.
pub(super) fn acme(read: &mut Reader<'_>) -> Option<Option<Acme>> {
    let directory: Option<Option<String>> = read.value("tls.acme.directory");
    let ca: Option<Option<PathBuf>> = read.value("tls.acme.ca");
    let contact: Option<Vec<String>> = read.value("tls.acme.contact");
    let domains: Option<Vec<DnsName>> = read.value("tls.acme.domains");
    let dir: Option<PathBuf> = read.value("tls.acme.dir");
    let challenge: Option<AcmeChallenge> = read.value("tls.acme.challenge");
    let http_listen: Option<SocketAddr> = read.value("tls.acme.http_listen");
    let kid: Option<Option<String>> = read.value("tls.acme.eab.kid");
    let key_file: Option<Option<PathBuf>> = read.value("tls.acme.eab.key_file");
    let (directory, ca, contact, domains) = (directory?, ca?, contact?, domains?);
    let (dir, challenge, http_listen) = (dir?, challenge?, http_listen?);
    let (kid, key_file) = (kid?, key_file?);
    let Some(directory) = directory else {
        let idle = [
            ("tls.acme.ca", ca.is_some()),
            ("tls.acme.contact", !contact.is_empty()),
            ("tls.acme.domains", !domains.is_empty()),
            ("tls.acme.eab.kid", kid.is_some()),
            ("tls.acme.eab.key_file", key_file.is_some()),
        ];
        for (key, _) in idle.into_iter().filter(|(_, written)| *written) {
            read.mistake(
                key,
                "has no effect without tls.acme.directory: write that too",
            );
        }
        return Some(None);
    };
    if let Err(error) = HttpsUrl::parse(&directory) {
        read.mistake("tls.acme.directory", format!("{directory:?}: {error}"));
    }
    for (at, contact) in contact.iter().enumerate() {
        let address = contact.strip_prefix("mailto:");
        if !address.is_some_and(|address| address.contains('@')) {
            let key = format!("tls.acme.contact[{at}]");
            let message = format!("{contact:?}: write mailto:ops@example.org");
            read.mistake_at("tls.acme.contact", key, message);
        }
    }
    if domains.is_empty() {
        let message = "the list is empty: write the names that clients use for this gateway";
        read.mistake("tls.acme.domains", message);
    }
    for (at, domain) in domains.iter().enumerate() {
        if domains[..at].contains(domain) {
            let key = format!("tls.acme.domains[{at}]");
            let message = format!("{} stands there twice: remove one", domain.as_str());
            read.mistake_at("tls.acme.domains", key, message);
        }
    }
    let eab = match (kid, key_file) {
        (Some(kid), Some(key_file)) => Some(ExternalAccount { kid, key_file }),
        (None, None) => None,
        (Some(_), None) => {
            read.mistake(
                "tls.acme.eab.key_file",
                "eab.kid is written: write its key's file too",
            );
            None
        }
        (None, Some(_)) => {
            read.mistake(
                "tls.acme.eab.kid",
                "eab.key_file is written: write the key's id too",
            );
            None
        }
    };
    Some(Some(Acme {
        directory,
        ca,
        contact,
        domains,
        dir,
        challenge,
        http_listen,
        eab,
    }))
}

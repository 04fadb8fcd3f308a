//! TLS from the gateway to the endpoints of an agent that is called: whose
//! certificates they must show, for which name, and what the gateway shows of
//! itself. What the files say is read elsewhere.

use std::fmt;
use std::sync::Arc;

use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::CertKey;
use ring::digest::{Context, SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::config::Endpoint;
use crate::egress::Host;

use super::routes::UpstreamRoots;

/// What TLS with an agent's endpoints is made of.
#[derive(Debug)]
pub struct CalleeTlsParts {
    /// The name that the certificates of all endpoints must be valid for; each
    /// endpoint's own host where there is none.
    pub server_name: Option<Host>,
    /// Whose certificates are trusted, in DER; at least one.
    pub roots: Vec<CertificateDer<'static>>,
    /// The chain and the key that the gateway shows, its own certificate first.
    pub identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    /// Whether the endpoints speak HTTP/2 alone.
    pub http2: bool,
}

/// TLS with an agent's endpoints. Two are equal where they were made of the
/// same.
pub struct CalleeTls {
    server_name: Option<Host>,
    roots: UpstreamRoots,
    identity: Option<Arc<CertKey>>,
    client: Arc<ClientConfig>,
    http2: bool,
    digest: [u8; 32],
}

impl CalleeTls {
    /// TLS of these parts.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn new(parts: CalleeTlsParts) -> Result<Self, String> {
        let digest = digest(&parts);
        let ders = parts.roots.iter().map(|der| der.to_vec()).collect();
        let mut store = RootCertStore::empty();
        for root in parts.roots {
            store.add(root).map_err(|error| format!("ca: {error}"))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(store);
        let (identity, mut client) = match parts.identity {
            None => (None, builder.with_no_client_auth()),
            Some((chain, key)) => {
                // Pingora tells the kinds of keys apart by their bytes, and must
                // not fail at that.
                if PrivateKeyDer::try_from(key.secret_der()).is_err() {
                    return Err("key: it is no key in PKCS#8, PKCS#1 or SEC1".to_owned());
                }
                let chain_ders = chain.iter().map(|der| der.to_vec()).collect();
                let shown = CertKey::new(chain_ders, key.secret_der().to_vec());
                let client = builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| format!("certificate and key: {error}"))?;
                (Some(Arc::new(shown)), client)
            }
        };
        let protocol: &[u8] = if parts.http2 { b"h2" } else { b"http/1.1" };
        client.alpn_protocols = vec![protocol.to_vec()];
        Ok(Self {
            server_name: parts.server_name,
            roots: UpstreamRoots::new(ders).map_err(|error| format!("ca: {error}"))?,
            identity,
            client: Arc::new(client),
            http2: parts.http2,
            digest,
        })
    }

    /// What a client that asks for an endpoint's health speaks TLS with.
    #[must_use]
    pub fn client(&self) -> &Arc<ClientConfig> {
        &self.client
    }

    /// The name that an endpoint's certificate must be valid for; `None` where
    /// that cannot be one, which the directory has ruled out.
    #[must_use]
    pub fn server_name(&self, at: &Endpoint) -> Option<ServerName<'static>> {
        ServerName::try_from(self.name_of(at)?).ok()
    }

    /// The same as text. Never empty: to Pingora that would say that nothing is
    /// to be checked.
    pub(super) fn name_of(&self, at: &Endpoint) -> Option<String> {
        let host = match (&self.server_name, at) {
            (Some(name), _) => name,
            (None, Endpoint::Tcp(authority)) => &authority.host,
            (None, Endpoint::Unix(_)) => return None,
        };
        Some(match host {
            Host::Name(name) => name.to_string(),
            Host::Address(address) => address.to_string(),
        })
    }

    /// What keeps its pooled connections from those of another.
    pub(super) fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// How its endpoints are spoken to.
    pub(super) fn set(&self, peer: &mut HttpPeer, websocket: bool) {
        peer.client_cert_key = self.identity.clone();
        self.roots.set(&mut peer.options);
        // An upgrade is a thing of HTTP/1.1.
        match self.http2 && !websocket {
            true => peer.options.set_http_version(2, 2),
            false => peer.options.set_http_version(1, 1),
        }
    }
}

impl PartialEq for CalleeTls {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl fmt::Debug for CalleeTls {
    /// Says nothing of the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CalleeTls")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

fn digest(parts: &CalleeTlsParts) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    let name = parts.server_name.as_ref().map(Host::to_string);
    context.update(name.unwrap_or_default().as_bytes());
    context.update(&[0, u8::from(parts.http2)]);
    // DER says its own length. A key is the only one that fits its certificate.
    for root in &parts.roots {
        context.update(root);
    }
    context.update(&[0]);
    for der in parts.identity.iter().flat_map(|(chain, _)| chain) {
        context.update(der);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

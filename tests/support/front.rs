//! TLS before an origin, or before a proxy.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::pki::Issued;

/// The server name and the protocol of a ClientHello.
pub(crate) type Said = (Option<String>, Option<Vec<u8>>);

/// TLS before an origin that speaks in clear: what it was asked for in the
/// handshake is kept, and nothing goes through before one has succeeded.
pub(crate) struct TlsFront {
    address: SocketAddr,
    names: Arc<Mutex<Vec<Said>>>,
    _runtime: tokio::runtime::Runtime,
}

impl TlsFront {
    /// Before the origin at this address.
    pub(crate) fn before(origin: SocketAddr, certificate: &Issued, alpn: &[&str]) -> Self {
        let chain = CertificateDer::pem_file_iter(&certificate.certificate)
            .expect("a file")
            .collect::<Result<Vec<_>, _>>()
            .expect("certificates");
        let key = PrivateKeyDer::from_pem_file(&certificate.key).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate");
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let runtime = runtime();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let names = Arc::default();
        let kept: Arc<Mutex<Vec<_>>> = Arc::clone(&names);
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, kept) = (acceptor.clone(), Arc::clone(&kept));
                tokio::spawn(async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else {
                        return;
                    };
                    let (_, session) = tls.get_ref();
                    let asked = (
                        session.server_name().map(str::to_owned),
                        session.alpn_protocol().map(<[u8]>::to_vec),
                    );
                    kept.lock().expect("kept").push(asked);
                    // A TLS 1.3 client has not checked anything before it has
                    // sent something.
                    let mut first = [0; 1];
                    let Ok(1) = tokio::io::AsyncReadExt::read(&mut tls, &mut first).await else {
                        return;
                    };
                    let mut clear = tokio::net::TcpStream::connect(origin)
                        .await
                        .expect("the origin listens");
                    let sent = tokio::io::AsyncWriteExt::write_all(&mut clear, &first).await;
                    sent.expect("the origin reads");
                    let _ = tokio::io::copy_bidirectional(&mut tls, &mut clear).await;
                });
            }
        });
        Self {
            address,
            names,
            _runtime: runtime,
        }
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// What was asked for in every handshake that succeeded.
    pub(crate) fn handshakes(&self) -> Vec<Said> {
        self.names.lock().expect("kept").clone()
    }
}

/// A runtime with a thread of its own.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
}

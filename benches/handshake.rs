//! What a TLS handshake with the gateway costs, whole and taken up again:
//! client and server on this machine, over loopback.

#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "the benchmark uses a part of what is shared")]
mod support;

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore};
use support::gateway::{Gateway, LOOPBACK_POLICY};
use support::pki::Pki;

fn handshakes(c: &mut Criterion) {
    let pki = Pki::new("the gateway's CA");
    let issued = pki.server("proxy", &["proxy.test"]);
    let pair = format!(
        "[{{certificate: {}, key: {}}}]",
        issued.certificate.display(),
        issued.key.display()
    );
    let settings = [
        ("listen.egress_tls", "127.0.0.1:0"),
        ("tls.certificates", &pair),
    ];
    let gateway = Gateway::start(LOOPBACK_POLICY, &settings);
    let line = gateway.lines("egress TLS listener").remove(0);
    let address = line["address"].as_str().expect("an address");
    let address: SocketAddr = address.parse().expect("an address");

    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(pki.ca()).expect("a CA");
    roots.add(ca).expect("an issuer");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut resuming = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut anew = resuming.clone();
    anew.resumption = Resumption::disabled();
    resuming.resumption = Resumption::in_memory_sessions(4096);
    let (anew, resuming) = (Arc::new(anew), Arc::new(resuming));
    // The first one brings the tickets.
    shake(address, &resuming);
    let mut group = c.benchmark_group("handshake");
    group.bench_function("full", |b| {
        b.iter(|| assert_eq!(shake(address, &anew), Some(HandshakeKind::Full)));
    });
    group.bench_function("resumed", |b| {
        b.iter(|| assert_eq!(shake(address, &resuming), Some(HandshakeKind::Resumed)));
    });
    group.finish();
}

/// Shakes hands and reads what the server sends by itself, the tickets, by
/// asking for a page.
fn shake(address: SocketAddr, config: &Arc<ClientConfig>) -> Option<HandshakeKind> {
    use std::io::{Read as _, Write as _};
    let name = "proxy.test".try_into().expect("a name");
    let client = ClientConnection::new(Arc::clone(config), name).expect("a client");
    let tcp = TcpStream::connect(address).expect("connected");
    tcp.set_nodelay(true).expect("set");
    let mut tls = rustls::StreamOwned::new(client, tcp);
    tls.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .expect("written");
    let mut answer = [0; 12];
    tls.read_exact(&mut answer).expect("an answer");
    tls.conn.handshake_kind()
}

criterion_group!(benches, handshakes);
criterion_main!(benches);

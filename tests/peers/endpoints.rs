//! Where calls go: endpoints that are balanced, change, are unwell, have names
//! and prove who they are.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::gateway::token;
use crate::support::names::Names;
use crate::support::origin::Origin;
use crate::support::pki::{Issued, Pki, Valid, replace};
use crate::support::wait_for;
use crate::{Between, IN_FORCE, LOOSE, POLICY, directory, runtime};

/// An HTTP/1.1 server that can be killed with all its connections.
struct Backend {
    address: SocketAddr,
    served: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Backend {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let served = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&served);
        let task = tokio::spawn(async move {
            let mut all = tokio::task::JoinSet::new();
            while let Ok((mut tcp, _)) = listener.accept().await {
                let count = Arc::clone(&count);
                all.spawn(async move {
                    let mut seen = Vec::new();
                    while tcp.read_buf(&mut seen).await.is_ok_and(|read| read > 0) {
                        if seen.ends_with(b"\r\n\r\n") {
                            seen.clear();
                            count.fetch_add(1, Ordering::SeqCst);
                            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                            if tcp.write_all(answer).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            served,
            task,
        }
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }
}

#[test]
fn calls_are_balanced_and_a_killed_endpoint_fails_nobody() {
    let runtime = runtime();
    let (one, two) = runtime.block_on(async { (Backend::start().await, Backend::start().await) });
    let endpoints = [one.address.to_string(), two.address.to_string()];
    let between = Between::start(POLICY, &directory("bob", &endpoints));
    let call = |case: &str| {
        let (status, text) = between.call("bob.peers.internal", "/open/x", "");
        assert_eq!(status, 200, "{case}: {text}");
    };
    (0..10).for_each(|_| call("both"));
    assert_eq!((one.served(), two.served()), (5, 5), "each has its turn");
    one.task.abort();
    (0..10).for_each(|_| call("one is gone"));
    assert_eq!(two.served(), 15);
    // A call that is not idempotent is tried elsewhere too: nothing was sent.
    let config = between.config(Some(&between.alice), "http/1.1");
    let post = between.ask(
        &config,
        "bob.peers.internal",
        "POST /open/x",
        "Content-Length: 0\r\n",
    );
    assert_eq!(post.expect("an answer").0, 200);
    let metrics = between.gateway.metrics();
    for line in [
        "agentport_peer_endpoints{agent=\"bob\",state=\"available\"} ",
        "agentport_peer_endpoints{agent=\"bob\",state=\"passed_over\"} ",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    two.task.abort();
    let (status, text) = between.call("bob.peers.internal", "/open/x", "");
    assert_eq!(status, 502, "{text}");
    let record = between
        .gateway
        .record("nobody left", |record| record["status"] == 502);
    assert_eq!(record["event"], "delegation");
    assert_eq!(record["reason"], "connect_refused");
}

#[test]
fn endpoints_change_under_load_without_a_failed_call() {
    let runtime = runtime();
    let (one, two) = runtime.block_on(async { (Backend::start().await, Backend::start().await) });
    let first = directory("bob", &[one.address.to_string()]);
    let second = directory("bob", &[two.address.to_string()]);
    let between = Between::start(POLICY, &first);
    let stop = AtomicBool::new(false);
    let calls = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    let (status, text) = between.call("bob.peers.internal", "/open/x", "");
                    assert_eq!(status, 200, "{text}");
                    calls.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for round in 0..6 {
            let before = calls.load(Ordering::SeqCst);
            between.change(if round % 2 == 0 { &second } else { &first });
            wait_for("more calls", || {
                (calls.load(Ordering::SeqCst) > before + 4).then_some(())
            });
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert!(one.served() > 0 && two.served() > 0);
    assert_eq!(one.served() + two.served(), calls.load(Ordering::SeqCst));

    // A mistake leaves the last good one in force, and is said.
    replace(&between.pki.path("agents.yaml"), b"agents: [{name: bob}]");
    wait_for("the refusal", || {
        let ready = between.gateway.ask_admin("/readyz").body;
        String::from_utf8_lossy(&ready)
            .contains("missing field")
            .then_some(())
    });
    assert_eq!(between.call("bob.peers.internal", "/open/x", "").0, 200);
}

#[test]
fn an_endpoint_that_is_unwell_is_passed_over() {
    let sick = Origin::http(|head, _| match head.asks().1 {
        "/up" => b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n".to_vec(),
        other => panic!("it was called: {other}"),
    });
    let well = Origin::ok();
    let agents = format!(
        "{}    health: {{path: /up, interval: 100ms}}\n",
        directory(
            "bob",
            &[sick.address().to_string(), well.address().to_string()]
        )
    );
    let between = Between::start(POLICY, &agents);
    wait_for("the check", || {
        let unwell = between
            .gateway
            .lines("an endpoint is unwell and comes last");
        (!unwell.is_empty()).then_some(())
    });
    for _ in 0..6 {
        assert_eq!(between.call("bob.peers.internal", "/open/x", "").0, 200);
    }
}

#[test]
fn an_endpoint_may_be_a_unix_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bob.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    let serving = std::thread::spawn(move || {
        let (mut unix, _) = listener.accept().expect("a connection");
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            unix.read_exact(&mut byte).expect("a request");
            seen.push(byte[0]);
        }
        unix.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nunix")
            .expect("answered");
    });
    let between = Between::start(
        POLICY,
        &directory("bob", &[format!("unix:{}", path.display())]),
    );
    let (status, text) = between.call("bob.peers.internal", "/open/x", "");
    assert_eq!(status, 200, "{text}");
    assert!(text.ends_with("unix"), "{text}");
    serving.join().expect("served");
}

/// TLS before an origin that speaks in clear: who shows no certificate of this
/// CA, or does not negotiate this protocol, reaches nobody.
pub(super) fn front(
    runtime: &tokio::runtime::Runtime,
    origin: SocketAddr,
    server: &Issued,
    ca: &Path,
    alpn: &'static str,
) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for der in CertificateDer::pem_file_iter(ca).expect("a CA") {
        roots.add(der.expect("a certificate")).expect("an issuer");
    }
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    );
    let chain = CertificateDer::pem_file_iter(&server.certificate).expect("a chain");
    let chain = chain.map(|der| der.expect("a certificate")).collect();
    let key = PrivateKeyDer::from_pem_file(&server.key).expect("a key");
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(clients.build().expect("a verifier"))
        .with_single_cert(chain, key)
        .expect("a certificate");
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    runtime.spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else {
                    return;
                };
                if tls.get_ref().1.alpn_protocol() != Some(alpn.as_bytes()) {
                    return;
                }
                // A client of TLS 1.3 has checked nothing before it has sent.
                let mut first = [0; 1];
                if tls.read_exact(&mut first).await.is_err() {
                    return;
                }
                let mut clear = tokio::net::TcpStream::connect(origin)
                    .await
                    .expect("the origin listens");
                clear.write_all(&first).await.expect("written");
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut clear).await;
            });
        }
    });
    address
}

/// The TLS of an agent in the directory.
pub(super) fn tls_of(ca: &Path, more: &str, identity: Option<&Issued>) -> String {
    let identity = identity.map(|issued| {
        let (certificate, key) = (issued.certificate.display(), issued.key.display());
        format!(", certificate: {certificate}, key: {key}")
    });
    format!(
        "    tls: {{ca: {}{more}{}}}\n",
        ca.display(),
        identity.unwrap_or_default()
    )
}

#[test]
fn an_endpoint_is_called_over_tls_where_it_proves_who_it_is() {
    let runtime = runtime();
    let bob = Origin::ok();
    let own = Pki::new("bob's CA");
    let other = Pki::new("another CA");
    let server = own.server("bob", &["bob.test", "127.0.0.1"]);
    let gateway = own.client("gateway", 1, &["gateway.test"], Valid::Now);
    let expired = own.client("expired", 2, &["gateway.test"], Valid::Past);
    let at = front(&runtime, bob.address(), &server, own.ca(), "http/1.1");
    let (named, numbered) = (format!("bob.test:{}", at.port()), at.to_string());
    let good = |at: &String| {
        format!(
            "{}    health: {{path: /up, interval: 100ms}}\n{}",
            directory("bob", std::slice::from_ref(at)),
            tls_of(own.ca(), "", Some(&gateway))
        )
    };
    let between = Between::start(POLICY, &good(&named));
    assert_eq!(between.call("bob.peers.internal", "/open/x", "").0, 200);
    // The handshake, and what follows it, are a part of the health check.
    wait_for("a check", || {
        let asked = bob.requests();
        let found = asked.iter().any(|(head, _)| head.asks().1 == "/up");
        found.then_some(())
    });
    assert!(
        between
            .gateway
            .lines("an endpoint is unwell and comes last")
            .is_empty()
    );
    let metrics = between.gateway.metrics();
    let name = gateway.certificate.display().to_string();
    assert!(
        metrics
            .lines()
            .any(|line| line.starts_with("agentport_certificate_expiry") && line.contains(&name)),
        "{metrics}"
    );
    between.change(&good(&numbered));
    assert_eq!(between.call("bob.peers.internal", "/open/x", "").0, 200);

    let plain = directory("bob", std::slice::from_ref(&named));
    let called = |bob: &Origin| {
        let asked = bob.requests();
        asked
            .iter()
            .filter(|(head, _)| head.asks().1 != "/up")
            .count()
    };
    let before = called(&bob);
    let wrong = other.client("gateway", 3, &["gateway.test"], Valid::Now);
    for (case, agents, reason) in [
        (
            "another CA",
            format!("{plain}{}", tls_of(other.ca(), "", Some(&gateway))),
            "upstream_certificate",
        ),
        (
            "another name",
            format!(
                "{plain}{}",
                tls_of(own.ca(), ", server_name: carol.test", Some(&gateway))
            ),
            "upstream_certificate",
        ),
        (
            "no certificate of the gateway",
            format!("{plain}{}", tls_of(own.ca(), "", None)),
            "",
        ),
        (
            "one of another CA",
            format!("{plain}{}", tls_of(own.ca(), "", Some(&wrong))),
            "",
        ),
        ("in clear text", plain.clone(), ""),
    ] {
        between.change(&agents);
        let (status, text) = between.call("bob.peers.internal", "/open/x", "");
        assert_eq!(status, 502, "{case}: {text}");
        assert!(text.contains(reason), "{case}: {text}");
        assert_eq!(called(&bob), before, "{case}");
    }

    // A mistake in a file that the directory names changes nothing; a better
    // one is in force without a change of the directory.
    let file = own.path("trusted.pem");
    replace(&file, &std::fs::read(other.ca()).expect("a CA"));
    between.change(&format!("{plain}{}", tls_of(&file, "", Some(&gateway))));
    assert_eq!(between.call("bob.peers.internal", "/open/x", "").0, 502);
    let changes = between.gateway.lines(IN_FORCE).len();
    replace(&file, &std::fs::read(own.ca()).expect("a CA"));
    wait_for("the right CA", || {
        (between.gateway.lines(IN_FORCE).len() > changes).then_some(())
    });
    assert_eq!(between.call("bob.peers.internal", "/open/x", "").0, 200);
    replace(
        &between.pki.path("agents.yaml"),
        format!("{plain}{}", tls_of(&file, "", Some(&expired))).as_bytes(),
    );
    wait_for("the mistake is said", || {
        let ready = between.gateway.ask_admin("/readyz").body;
        let ready = String::from_utf8_lossy(&ready).into_owned();
        (ready.contains("has expired") && ready.contains("expired.pem")).then_some(())
    });
    assert_eq!(between.call("bob.peers.internal", "/open/x", "").0, 200);
}

#[test]
fn a_name_that_leads_nowhere_holds_up_no_call() {
    let bob = Origin::ok();
    let nowhere = format!("bob.nowhere:{}", bob.port());
    let between = Between::start(
        POLICY,
        &directory("bob", &[nowhere.clone(), bob.address().to_string()]),
    );
    let asked = || {
        let mut asked = between.gateway.names().asked();
        asked.retain(|name| name.starts_with("bob.nowhere"));
        asked.len()
    };
    assert!(asked() > 0, "it is looked up before any call");
    for _ in 0..5 {
        assert_eq!(between.call("bob.peers.internal", "/open/x", "").0, 200);
    }
    between.change(&directory("bob", &[nowhere]));
    let (status, text) = between.call("bob.peers.internal", "/open/x", "");
    assert_eq!(status, 502, "{text}");
    assert!(text.contains("name_not_found"), "{text}");
    // Nobody calls, and it is found all the same.
    between.gateway.names().set("bob.nowhere", &["127.0.0.1"]);
    let before = asked();
    wait_for("the next lookup", || (asked() > before).then_some(()));
    wait_for("the name", || {
        let (status, _) = between.call("bob.peers.internal", "/open/x", "");
        (status == 200).then_some(())
    });
}

#[test]
fn a_resolver_that_is_silent_holds_up_no_start_and_what_it_says_late_counts() {
    // A tunnel comes first, and is spoken to.
    let bob = Origin::serve(|mut conn, number| {
        if number == 0 {
            conn.send_lossy("ready\r\n");
            conn.rest();
        } else if conn.head().is_some() {
            conn.send_lossy("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let names = Names::serve();
    names.set("bob.slow", &["127.0.0.1"]);
    names.hold();
    let between = Between::start_with(
        LOOSE,
        &directory("bob", &[format!("bob.slow:{}", bob.port())]),
        &[
            ("resolver.servers", &names.address().to_string()),
            // Longer than the gateway is waited for.
            ("resolver.timeout", "1m"),
            ("agent.upstream", "behind.slow:8080"),
            ("upstream_proxy.url", "http://proxy.slow:3128"),
            ("upstream_proxy.no_proxy", "*"),
        ],
    );
    // Two queries for each of the three names.
    wait_for("the queries", || (names.held() >= 6).then_some(()));
    let (status, text) = between.call("bob.peers.internal", "/open/x", "");
    assert_eq!(status, 502, "{text}");
    assert!(text.contains("name_not_found"), "{text}");
    let to = format!("127.0.0.1:{}", bob.port());
    let connect = || {
        let mut client = between.gateway.connect();
        client.send(format!(
            "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
            token("bot")
        ));
        client
    };
    let mut early = connect();
    assert_eq!(early.head().expect("an answer").status(), 200);
    assert_eq!(early.line().as_deref(), Some("ready"));
    names.release();
    assert_eq!(early.rest(), b"", "it is bob's, as is known by now");
    let record = between
        .gateway
        .record("the end", |record| record["event"] == "tunnel_closed");
    assert_eq!(record["reason"], "policy_changed", "{record}");
    assert_eq!(connect().response().refusal(), "own_listener");
    assert_eq!(between.call("bob.peers.internal", "/open/x", "").0, 200);
}

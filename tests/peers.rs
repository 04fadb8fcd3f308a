//! Agents that call each other: by certificates alone, to where a file says,
//! as policy allows, and by no other way.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each test uses a part of what is shared")]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use agentport::egress::AgentId;
use agentport::identity::{IssueRequest, SigningKey, TokenIssuer};
use bytes::Bytes;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use support::conn::Conn;
use support::gateway::{Gateway, SECRET, token};
use support::grpc::{GrpcOrigin, echoes};
use support::names::Names;
use support::origin::{Origin, Untouched};
use support::pki::{Issued, Pki, Valid, replace};
use support::wait_for;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const POLICY: &str = r#"
version: 1
rules:
  - name: alice-calls
    action: allow
    agents: [alice]
    hosts: ["bob.peers.internal", "ghost.peers.internal"]
    methods: [GET, POST]
    paths: ["/open/**"]
"#;

/// A gateway on which agents call each other, with the CA of both sides.
struct Between {
    gateway: Gateway,
    pki: Pki,
    alice: Issued,
    address: SocketAddr,
}

impl Between {
    fn start(policy: &str, agents: &str) -> Self {
        Self::start_with(policy, agents, &[])
    }

    fn start_with(policy: &str, agents: &str, more: &[(&str, &str)]) -> Self {
        Self::start_from(Pki::new("the agents' CA"), policy, agents, more)
    }

    fn start_from(pki: Pki, policy: &str, agents: &str, more: &[(&str, &str)]) -> Self {
        let server = pki.server("server", &["gateway.test", "*.peers.internal"]);
        let alice = pki.client(
            "alice",
            2,
            &["spiffe://example.org/agent/alice"],
            Valid::Now,
        );
        let file = pki.path("agents.yaml");
        replace(&file, agents.as_bytes());
        let certificates = format!(
            "[{{certificate: {}, key: {}}}]",
            server.certificate.display(),
            server.key.display()
        );
        let (ca, file) = (pki.ca().display().to_string(), file.display().to_string());
        let mut settings = vec![
            ("listen.peers", "127.0.0.1:0"),
            ("peers.certificates", &*certificates),
            ("peers.ca", &*ca),
            ("peers.names", "spiffe://example.org/agent/{agent}"),
            ("peers.agents", &*file),
        ];
        settings.extend_from_slice(more);
        let gateway = Gateway::start(policy, &settings);
        let line = gateway.lines("peers listener").remove(0);
        let address = line["address"].as_str().expect("an address");
        Self {
            address: address.parse().expect("an address"),
            gateway,
            pki,
            alice,
        }
    }

    /// Puts another directory in force, and waits until it is.
    fn change(&self, agents: &str) {
        let before = self.gateway.lines(IN_FORCE).len();
        replace(&self.pki.path("agents.yaml"), agents.as_bytes());
        wait_for("the new directory", || {
            (self.gateway.lines(IN_FORCE).len() > before).then_some(())
        });
    }

    fn config(&self, identity: Option<&Issued>, alpn: &str) -> Arc<rustls::ClientConfig> {
        config(self.pki.ca(), identity, alpn)
    }

    /// A request as alice, whole.
    fn call(&self, host: &str, target: &str, fields: &str) -> (u16, String) {
        let config = self.config(Some(&self.alice), "http/1.1");
        self.ask(&config, host, &format!("GET {target}"), fields)
            .expect("an answer")
    }

    fn ask(
        &self,
        config: &Arc<rustls::ClientConfig>,
        host: &str,
        what: &str,
        fields: &str,
    ) -> std::io::Result<(u16, String)> {
        let mut tls = self.connect(config);
        let head = format!("{what} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n");
        tls.write_all(head.as_bytes())?;
        let mut answer = Vec::new();
        match tls.read_to_end(&mut answer) {
            Err(error) if answer.is_empty() => return Err(error),
            _ => {}
        }
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.get(9..12).and_then(|digits| digits.parse().ok());
        status
            .map(|status| (status, text))
            .ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }

    fn connect(&self, config: &Arc<rustls::ClientConfig>) -> Tls {
        let tcp = TcpStream::connect(self.address).expect("connected");
        tcp.set_read_timeout(Some(support::DEADLINE)).expect("set");
        let name = "gateway.test".try_into().expect("a name");
        let client = rustls::ClientConnection::new(Arc::clone(config), name).expect("a client");
        rustls::StreamOwned::new(client, tcp)
    }
}

type Tls = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

const IN_FORCE: &str = "callable agents are in force";

/// The client's side of TLS, trusting this CA and showing this certificate.
fn config(ca: &Path, identity: Option<&Issued>, alpn: &str) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for der in CertificateDer::pem_file_iter(ca).expect("a CA") {
        roots.add(der.expect("a certificate")).expect("an issuer");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let chain = CertificateDer::pem_file_iter(&issued.certificate).expect("a chain");
            let chain = chain.map(|der| der.expect("a certificate")).collect();
            let key = PrivateKeyDer::from_pem_file(&issued.key).expect("a key");
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    Arc::new(config)
}

fn directory(name: &str, endpoints: &[String]) -> String {
    format!("agents:\n  - name: {name}\n    endpoints: {endpoints:?}\n")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

#[test]
fn a_call_goes_by_host_or_path_and_says_who_calls() {
    let bob = Origin::ok();
    let between = Between::start(POLICY, &directory("bob", &[bob.address().to_string()]));
    for (case, host, target, goes_on) in [
        (
            "by host",
            "bob.peers.internal:8443",
            "/open/a?b=c",
            "/open/a?b=c",
        ),
        (
            "by path",
            "gateway.test",
            "/agents/bob/open/a?b=c",
            "/open/a?b=c",
        ),
        (
            "in absolute-form",
            "bob.peers.internal",
            "https://bob.peers.internal/open/x",
            "/open/x",
        ),
    ] {
        let (status, text) = between.call(
            host,
            target,
            "X-AgentPort-Caller: root\r\nX-AgentPort-On-Behalf-Of: root\r\n\
             X-AgentPort-Caller-Tenant: root\r\nForwarded: for=192.0.2.1\r\n\
             Authorization: Bearer of-bobs-own\r\n",
        );
        assert_eq!(status, 200, "{case}: {text}");
        let head = bob.last();
        assert_eq!(head.asks().1, goes_on, "{case}");
        let field = |name: &str| head.field(name).map(str::to_owned);
        assert_eq!(
            field("x-agentport-caller").as_deref(),
            Some("alice"),
            "{case}"
        );
        assert_eq!(field("x-agentport-on-behalf-of"), None, "{case}");
        assert_eq!(field("x-agentport-caller-tenant"), None, "{case}");
        assert_eq!(
            field("forwarded").as_deref(),
            Some("for=127.0.0.1"),
            "{case}"
        );
        assert_eq!(
            field("host").as_deref(),
            Some("bob.peers.internal"),
            "{case}"
        );
        // What is bob's own passes untouched.
        assert_eq!(
            field("authorization").as_deref(),
            Some("Bearer of-bobs-own"),
            "{case}"
        );
    }
    let record = between
        .gateway
        .record("the call", |record| record["event"] == "delegation");
    assert_eq!(record["agent_id"], "alice");
    assert_eq!(record["credential"], "certificate");
    assert_eq!(record["listener"], "peers");
    assert_eq!(record["destination_host"], "bob.peers.internal");
    assert_eq!(record["destination_port"], 443);
    assert_eq!(record["destination_ip"], "127.0.0.1");
    assert_eq!(record["path"], "/open/a");
    assert_eq!(record["rule"], "alice-calls");
    assert_eq!(record["action_allowed"], true);
    assert!(record.get("on_behalf_of").is_none(), "{record}");
    let metrics = between.gateway.metrics();
    assert!(
        metrics.contains("agentport_tls_handshakes_total{listener=\"peers\""),
        "{metrics}"
    );
}

#[test]
fn policy_says_who_may_call_whom_and_how() {
    let bob = Untouched::listen();
    let between = Between::start(
        POLICY,
        &directory("bob", &[format!("127.0.0.1:{}", bob.port())]),
    );
    let mallory = between.pki.client(
        "mallory",
        7,
        &["spiffe://example.org/agent/mallory"],
        Valid::Now,
    );
    for (case, who, host, what, status, reason) in [
        (
            "another agent",
            &mallory,
            "bob.peers.internal",
            "GET /open/x",
            403,
            "no_rule",
        ),
        (
            "another path",
            &between.alice,
            "bob.peers.internal",
            "GET /shut",
            403,
            "no_rule",
        ),
        (
            "another path, by path",
            &between.alice,
            "gateway.test",
            "GET /agents/bob/shut",
            403,
            "no_rule",
        ),
        (
            "another method",
            &between.alice,
            "bob.peers.internal",
            "PUT /open/x",
            403,
            "no_rule",
        ),
        (
            "nobody there",
            &between.alice,
            "ghost.peers.internal",
            "GET /open/x",
            404,
            "not_found",
        ),
        (
            "nobody there, for who may not call",
            &mallory,
            "ghost.peers.internal",
            "GET /open/x",
            403,
            "no_rule",
        ),
        (
            "nobody named",
            &between.alice,
            "gateway.test",
            "GET /open/x",
            404,
            "not_found",
        ),
        (
            "the gateway's own pages",
            &between.alice,
            "gateway.test",
            "GET /metrics",
            404,
            "not_found",
        ),
        (
            "a tunnel",
            &between.alice,
            "bob.test:80",
            "CONNECT bob.test:80",
            405,
            "method",
        ),
        (
            "a way out",
            &between.alice,
            "example.com",
            "GET http://example.com/",
            404,
            "not_found",
        ),
    ] {
        let config = between.config(Some(who), "http/1.1");
        let (got, text) = between.ask(&config, host, what, "").expect("an answer");
        assert_eq!(got, status, "{case}: {text}");
        let said = text.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("x-agentport-reason")
                .then_some(value)
        });
        assert!(
            said.is_some_and(|said| said.contains(reason)),
            "{case}: {said:?} {text}"
        );
        bob.check(case);
    }
}

#[test]
fn nothing_but_a_certificate_of_the_agents_ca_opens_it() {
    let bob = Untouched::listen();
    let between = Between::start(
        POLICY,
        &directory("bob", &[format!("127.0.0.1:{}", bob.port())]),
    );
    let id = ["spiffe://example.org/agent/alice"];
    let other = Pki::new("another CA");
    let foreign = other.client("foreign", 3, &id, Valid::Now);
    let expired = between.pki.client("expired", 4, &id, Valid::Past);
    let early = between.pki.client("early", 5, &id, Valid::Future);
    let nobody = between
        .pki
        .client("nobody", 6, &["host.internal"], Valid::Now);
    let bearer = format!(
        "Authorization: Bearer {0}\r\nX-AgentPort-Token: {0}\r\nProxy-Authorization: Bearer {0}\r\n",
        token("alice")
    );
    for (case, identity, fields, code) in [
        ("no certificate", None, "", "no_certificate"),
        ("a token alone", None, &*bearer, "no_certificate"),
        (
            "another CA's",
            Some(&foreign),
            &*bearer,
            "certificate_unknown_issuer",
        ),
        (
            "an expired one",
            Some(&expired),
            &*bearer,
            "certificate_expired",
        ),
        (
            "one of the future",
            Some(&early),
            &*bearer,
            "certificate_not_valid_yet",
        ),
    ] {
        let config = between.config(identity, "http/1.1");
        let refused = between.ask(&config, "bob.peers.internal", "GET /open/x", fields);
        assert!(refused.is_err(), "{case}: {refused:?}");
        let record = between
            .gateway
            .record(case, |record| record["reason"] == code);
        assert_eq!(record["listener"], "peers", "{case}");
        assert_eq!(record["action_allowed"], false, "{case}");
        bob.check(case);
    }
    // In clear text nobody comes in either.
    let mut clear = Conn::to(between.address);
    clear.send(format!(
        "GET /open/x HTTP/1.1\r\nHost: bob.peers.internal\r\n{bearer}\r\n"
    ));
    assert!(!String::from_utf8_lossy(&clear.rest()).contains("HTTP/1.1"));
    // One that names no agent holds, and lets nobody in whatever token comes.
    let config = between.config(Some(&nobody), "http/1.1");
    let (status, text) = between
        .ask(&config, "bob.peers.internal", "GET /open/x", &bearer)
        .expect("an answer");
    assert_eq!(status, 403, "{text}");
    assert!(text.contains("certificate_unknown"), "{text}");
}

/// A token of this agent, for whom these act.
fn delegated(agent: &str, actors: &[&str]) -> String {
    delegated_for(agent, actors, Duration::from_secs(3600))
}

fn delegated_for(agent: &str, actors: &[&str], lifetime: Duration) -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    let request = IssueRequest {
        agent: AgentId::parse(agent).expect("an agent"),
        tenant: None,
        destinations: None,
        lifetime,
        audience: None,
        jti: 77,
        actors: actors.iter().map(|actor| (*actor).to_owned()).collect(),
        scope: None,
        client: None,
    };
    let key = SigningKey::from_secret(SECRET).expect("a key");
    TokenIssuer::new(key, "agentport", "agentport")
        .issue(&request, now.as_secs())
        .expect("a token")
}

#[test]
fn on_whose_behalf_is_verified_passed_on_and_recorded() {
    let bob = Origin::ok();
    let between = Between::start(POLICY, &directory("bob", &[bob.address().to_string()]));
    let token = delegated("carol", &["alice", "dave"]);
    let field = format!("X-AgentPort-Token: {token}\r\n");
    let (status, text) = between.call("bob.peers.internal", "/open/x", &field);
    assert_eq!(status, 200, "{text}");
    let head = bob.last();
    assert_eq!(head.field("x-agentport-caller"), Some("alice"));
    assert_eq!(head.field("x-agentport-on-behalf-of"), Some("carol"));
    assert_eq!(head.field("x-agentport-token"), Some(&*token));
    let record = between.gateway.record("the delegation", |record| {
        record["event"] == "delegation" && record["on_behalf_of"] == "carol"
    });
    assert_eq!(record["agent_id"], "alice");
    assert_eq!(record["act"], serde_json::json!(["alice", "dave"]));
    assert_eq!(record["status"], 200);
    assert!(text.contains(record["request_id"].as_str().expect("an id")));

    // A token that does not hold is no matter to be passed over.
    let calls = bob.requests().len();
    let (status, text) = between.call(
        "bob.peers.internal",
        "/open/x",
        "X-AgentPort-Token: no.token.atall\r\n",
    );
    assert_eq!(status, 403, "{text}");
    // And carol's token gives alice nothing that alice may not.
    let mallory = between.pki.client(
        "mallory",
        7,
        &["spiffe://example.org/agent/mallory"],
        Valid::Now,
    );
    let config = between.config(Some(&mallory), "http/1.1");
    let field = format!(
        "X-AgentPort-Token: {}\r\n",
        delegated("alice", &["mallory"])
    );
    let (status, text) = between
        .ask(&config, "bob.peers.internal", "GET /open/x", &field)
        .expect("an answer");
    assert_eq!(status, 403, "{text}");
    assert_eq!(bob.requests().len(), calls, "neither came through");
}

/// Every agent may go anywhere on this machine, by every name.
const LOOSE: &str = r#"
version: 1
rules:
  - name: all
    action: allow
    agents: any
    hosts: ["*.test", "*.peers.internal", "127.0.0.1", "::1", "0.0.0.0"]
    addresses: ["127.0.0.0/8", "::1/128", "0.0.0.0/32"]
    ports: any
    tls: any
"#;

#[test]
fn the_egress_port_does_not_reach_the_fronted_agent_by_its_name() {
    let claw = Untouched::listen();
    let upstream = format!("claw.test:{}", claw.port());
    let gateway = Gateway::start(LOOSE, &[("agent.upstream", &upstream)]);
    for (case, authority) in [
        ("its name", upstream),
        ("where that leads", format!("127.0.0.1:{}", claw.port())),
        ("another name", format!("other.test:{}", claw.port())),
    ] {
        for (form, start) in [
            ("a request", format!("GET http://{authority}/ HTTP/1.1")),
            ("a tunnel", format!("CONNECT {authority} HTTP/1.1")),
        ] {
            let mut conn = gateway.connect();
            conn.send(format!(
                "{start}\r\nHost: {authority}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
                token(&format!("bot-{}", case.replace(' ', "-")))
            ));
            let response = conn.response();
            assert_eq!(response.status, 403, "{case}, {form}");
            let reason = response.field("x-agentport-reason");
            assert_eq!(reason, Some("own_listener"), "{case}, {form}");
        }
        claw.check(case);
    }
}

#[test]
fn the_egress_port_reaches_no_agent_whatever_a_rule_says() {
    let (bob, carol) = (Untouched::listen(), Untouched::listen());
    let agents = format!(
        "agents:\n  - {{name: bob, endpoints: [\"127.0.0.1:{}\"]}}\n  - {{name: carol, \
         endpoints: [\"carol.test:{}\"]}}\n",
        bob.port(),
        carol.port()
    );
    let between = Between::start(LOOSE, &agents);
    let refused = |case: &str, authority: &str| {
        for (form, start) in [
            ("a request", format!("GET http://{authority}/ HTTP/1.1")),
            ("a tunnel", format!("CONNECT {authority} HTTP/1.1")),
        ] {
            let mut conn = between.gateway.connect();
            conn.send(format!(
                "{start}\r\nHost: {authority}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
                token(&format!("bot-{}", case.replace(' ', "-")))
            ));
            let response = conn.response();
            assert_eq!(response.status, 403, "{case}, {form}");
            let reason = response.field("x-agentport-reason");
            assert_eq!(reason, Some("own_listener"), "{case}, {form}");
        }
        bob.check(case);
        carol.check(case);
    };
    refused("the endpoint", &format!("127.0.0.1:{}", bob.port()));
    refused("by another name", &format!("b.test:{}", bob.port()));
    refused("all addresses", &format!("0.0.0.0:{}", bob.port()));
    refused("a named endpoint", &format!("carol.test:{}", carol.port()));
    refused(
        "where its name leads",
        &format!("127.0.0.1:{}", carol.port()),
    );
    refused("the agents host", "bob.peers.internal:443");
    refused("any host of the domain", "x.y.peers.internal:80");
    refused("the listener itself", &between.address.to_string());

    // What becomes an endpoint is refused from then on, an open tunnel ended.
    let open = Origin::echo();
    let authority = format!("o.test:{}", open.port());
    let mut tunnel = between.gateway.connect();
    tunnel.send(format!(
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
        token("bot")
    ));
    assert!(tunnel.head().expect("an answer").start.contains(" 200 "));
    tunnel.send("\x01ping");
    assert_eq!(tunnel.exactly(5), b"\x01ping");
    between.change(&format!(
        "{agents}  - {{name: dora, endpoints: [\"{}\"]}}\n",
        open.address()
    ));
    assert!(tunnel.closes(), "the tunnel is ended");
    refused("a new endpoint", &authority);
}

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
fn a_websocket_is_byte_exact() {
    let bob = Origin::serve(|mut conn, _| {
        let head = conn.head().expect("a request");
        assert_eq!(head.field("upgrade"), Some("websocket"));
        assert_eq!(head.field("x-agentport-caller"), Some("alice"));
        conn.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: x\r\n\r\n",
        );
        let (unread, stream) = conn.into_parts();
        (&stream).write_all(&unread).expect("written");
        let mut part = [0; 16 * 1024];
        let mut carried = unread.len();
        loop {
            match (&stream).read(&mut part) {
                // The client drops its connection, so the end may be a reset.
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    carried += count;
                    (&stream).write_all(&part[..count]).expect("written");
                }
            }
        }
        assert_eq!(
            carried, 240_000,
            "the connection stood until all was carried"
        );
    });
    let between = Between::start(POLICY, &directory("bob", &[bob.address().to_string()]));
    let config = between.config(Some(&between.alice), "http/1.1");
    let mut tls = between.connect(&config);
    tls.write_all(
        b"GET /open/ws HTTP/1.1\r\nHost: bob.peers.internal\r\nConnection: Upgrade\r\n\
          Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
          Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    )
    .expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    let sent: Vec<u8> = (0..60_000_u32).flat_map(u32::to_le_bytes).collect();
    for part in sent.chunks(20_000) {
        tls.write_all(part).expect("sent");
        let mut back = vec![0; part.len()];
        tls.read_exact(&mut back).expect("received");
        assert!(back == part, "the same bytes");
    }
    drop(tls);
    let record = between
        .gateway
        .record("the WebSocket", |record| record["path"] == "/open/ws");
    assert_eq!(record["event"], "delegation");
    assert_eq!(record["status"], 101);
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

/// A gRPC-like server: it echoes every part of the stream as it comes, and ends
/// with trailers.
#[test]
fn a_caller_may_have_to_bring_its_own_token_as_well() {
    let (bob, untouched) = (Origin::ok(), Untouched::listen());
    let start = |port: u16| {
        let at = format!("127.0.0.1:{port}");
        Between::start_with(
            POLICY,
            &directory("bob", &[at]),
            &[("peers.require", "both")],
        )
    };
    let closed = start(untouched.port());
    for (case, fields, status, reason) in [
        ("none", String::new(), 407, "no_credential"),
        (
            "another's",
            format!("Proxy-Authorization: Bearer {}\r\n", token("mallory")),
            403,
            "certificate_mismatch",
        ),
        (
            "for whom it calls",
            format!("X-AgentPort-Token: {}\r\n", token("alice")),
            407,
            "no_credential",
        ),
    ] {
        let (got, text) = closed.call("bob.peers.internal", "/open/x", &fields);
        assert_eq!(got, status, "{case}: {text}");
        assert!(text.contains(reason), "{case}: {text}");
        untouched.check(case);
    }
    let open = start(bob.port());
    let fields = format!("Proxy-Authorization: Bearer {}\r\n", token("alice"));
    assert_eq!(open.call("bob.peers.internal", "/open/x", &fields).0, 200);
    assert_eq!(bob.last().field("proxy-authorization"), None);
    let record = open
        .gateway
        .record("the call", |record| record["event"] == "delegation");
    assert_eq!(record["credential"], "token+certificate", "{record}");
    assert_eq!(record["agent_id"], "alice", "{record}");
}

/// Calls bob for events, and reads the first.
fn listens(between: &Between, who: &Issued) -> Tls {
    listens_with(between, who, "")
}

fn listens_with(between: &Between, who: &Issued, fields: &str) -> Tls {
    let config = between.config(Some(who), "http/1.1");
    let mut tls = between.connect(&config);
    let head = format!("GET /open/events HTTP/1.1\r\nHost: bob.peers.internal\r\n{fields}\r\n");
    tls.write_all(head.as_bytes()).expect("sent");
    let mut seen = Vec::new();
    while !seen.ends_with(b"data: 1\n\n\r\n") {
        let mut byte = [0; 1];
        tls.read_exact(&mut byte).expect("the first event");
        seen.push(byte[0]);
    }
    tls
}

#[test]
fn an_answer_that_lasts_ends_with_the_certificate_of_its_caller() {
    let bob = with_events();
    // Its path in the CA's folder is not known before.
    let lists = tempfile::tempdir().expect("a folder");
    let list = lists.path().join("list.crl");
    let shown = list.display().to_string();
    let ca = Pki::new("the agents' CA");
    replace(
        &list,
        &std::fs::read(ca.revoke("list.crl", &[])).expect("a list"),
    );
    let between = Between::start_from(
        ca,
        POLICY,
        &directory("bob", &[bob.address().to_string()]),
        &[("peers.crl", &shown)],
    );
    let ends = |mut tls: Tls, reason: &str| {
        let mut rest = Vec::new();
        let _ = tls.read_to_end(&mut rest);
        assert_eq!(rest, b"", "{reason}");
        let delegations = || {
            let mut records = between.gateway.records();
            records.retain(|record| record["event"] == "delegation");
            records
        };
        let record = wait_for("the record", || delegations().pop());
        assert_eq!(record["reason"], reason, "{record}");
        assert_eq!(record["agent_id"], "alice", "{record}");
        assert_eq!(record["status"], 200, "{record}");
        delegations().len()
    };
    // One that expires, and nothing else changes.
    let name = "spiffe://example.org/agent/alice";
    let valid = Valid::For(Duration::from_secs(3));
    let short = between.pki.client("short", 9, &[name], valid);
    assert_eq!(ends(listens(&between, &short), "credential_ended"), 1);
    let tls = listens(&between, &between.alice);
    let revoked = between.pki.revoke("list.crl", &[2]);
    replace(&list, &std::fs::read(revoked).expect("a list"));
    wait_for("the second end", || {
        let records = between.gateway.records();
        let delegations = records.iter().filter(|one| one["event"] == "delegation");
        (delegations.count() == 2).then_some(())
    });
    assert_eq!(ends(tls, "credential_ended"), 2);
}

/// An agent that answers with one event, and then nothing.
fn with_events() -> Origin {
    Origin::serve(|mut conn, _| {
        if conn.head().is_some() {
            conn.send_lossy(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                 Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
            );
            let _ = conn.closes();
        }
    })
}

#[test]
fn a_call_that_lasts_ends_with_the_token_that_it_was_made_on_behalf_of() {
    let bob = with_events();
    let folder = tempfile::tempdir().expect("a folder");
    let list = folder.path().join("revoked.jsonl").display().to_string();
    let between = Between::start_with(
        POLICY,
        &directory("bob", &[bob.address().to_string()]),
        &[
            ("identity.revocations.file", &list),
            ("identity.leeway", "0s"),
            ("tunnel.outlive_token", "false"),
        ],
    );
    let listens_for = |whom: &str, lifetime: u64| {
        let token = delegated_for(whom, &["alice"], Duration::from_secs(lifetime));
        listens_with(
            &between,
            &between.alice,
            &format!("X-AgentPort-Token: {token}\r\n"),
        )
    };
    let ends = |mut tls: Tls, whom: &str, reason: &str| {
        let mut rest = Vec::new();
        let _ = tls.read_to_end(&mut rest);
        assert_eq!(rest, b"", "{whom}");
        let record = between.gateway.record(whom, |record| {
            record["event"] == "delegation" && record["on_behalf_of"] == whom
        });
        assert_eq!(record["reason"], reason, "{record}");
        assert_eq!(record["agent_id"], "alice", "{record}");
        assert_eq!(record["status"], 200, "{record}");
        let detail = record["detail"].as_str().expect("a detail");
        assert!(detail.contains("on whose behalf"), "{detail}");
    };
    // Alice's calls for others, and for herself, go on.
    let mut others = [listens_for("dave", 3600), listens(&between, &between.alice)];
    let carols = listens_for("carol", 3600);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_agentport"))
        .args(["revoke", "--agent", "carol", "--set"])
        .arg(format!("identity.revocations.file={list}"))
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{output:?}");
    ends(carols, "carol", "revoked");
    ends(listens_for("erin", 3), "erin", "credential_ended");
    for other in &mut others {
        other.sock.set_nonblocking(true).expect("set");
        let silent = other.read(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(silent, Err(std::io::ErrorKind::WouldBlock));
    }
}

#[test]
fn what_the_parent_proxy_carries_to_a_name_ends_when_that_becomes_an_agents() {
    let greets = Origin::serve(|mut conn, _| {
        conn.send_lossy("ready\r\n");
        conn.rest();
    });
    // It takes every name to this machine.
    let parent = Origin::serve(|mut conn, _| {
        let Some(head) = conn.head() else { return };
        let (_, port) = head.asks().1.rsplit_once(':').expect("a port");
        let port = port.parse().expect("a port");
        let there = TcpStream::connect(("127.0.0.1", port)).expect("the origin listens");
        conn.send("HTTP/1.1 200 OK\r\n\r\n");
        let (_, here) = conn.into_parts();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = std::io::copy(&mut &here, &mut &there);
                let _ = there.shutdown(std::net::Shutdown::Write);
            });
            let _ = std::io::copy(&mut &there, &mut &here);
            let _ = here.shutdown(std::net::Shutdown::Write);
        });
    });
    let bob = Origin::ok();
    let policy = r#"
version: 1
rules:
  - name: corp
    action: allow
    agents: any
    hosts: ["*.corp"]
    ports: any
    tls: any
"#;
    let agents = |more: &[String]| {
        let endpoints = [&[bob.address().to_string()], more].concat();
        directory("bob", &endpoints)
    };
    let between = Between::start_with(
        policy,
        &agents(&[]),
        &[
            (
                "upstream_proxy.url",
                &format!("http://{}", parent.address()),
            ),
            ("upstream_proxy.address", "unchecked"),
        ],
    );
    let open = |host: &str| {
        let mut client = between.gateway.connect();
        let to = format!("{host}:{}", greets.port());
        client.send(format!(
            "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
            token("bot")
        ));
        assert_eq!(client.head().expect("an answer").status(), 200);
        assert_eq!(client.line().as_deref(), Some("ready"));
        client
    };
    let (mut bobs, others) = (open("bob.corp"), open("other.corp"));
    between.change(&agents(&[format!("bob.corp:{}", greets.port())]));
    assert_eq!(bobs.rest(), b"");
    let record = between.gateway.record("the end", |record| {
        record["event"] == "tunnel_closed" && record["destination_host"] == "bob.corp"
    });
    assert_eq!(record["reason"], "policy_changed", "{record}");
    others.stream().set_nonblocking(true).expect("set");
    assert!(others.stream().peek(&mut [0; 1]).is_err(), "it goes on");
}

/// TLS before an origin that speaks in clear: who shows no certificate of this
/// CA, or does not negotiate this protocol, reaches nobody.
fn front(
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
fn tls_of(ca: &Path, more: &str, identity: Option<&Issued>) -> String {
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

const CALLS: &str = r#"
version: 1
rules:
  - name: alice-lists
    action: allow
    agents: any
    hosts: ["bob.peers.internal", "openclaw.agent"]
    ports: any
    methods: [POST]
    rpc_methods: [tools.list]
"#;

#[test]
fn what_a_body_calls_is_judged_on_its_way_to_a_peer_and_to_the_fronted_agent() {
    let (bob, claw) = (Origin::ok(), Origin::ok());
    let upstream = format!("claw.test:{}", claw.port());
    let between = Between::start_with(
        CALLS,
        &directory("bob", &[bob.address().to_string()]),
        &[("agent.upstream", &upstream)],
    );
    let peer = |body: &str| {
        let config = between.config(Some(&between.alice), "http/1.1");
        let fields = format!("Content-Length: {}\r\n", body.len());
        // The body follows the head.
        let mut tls = between.connect(&config);
        let head = format!(
            "POST /rpc HTTP/1.1\r\nHost: bob.peers.internal\r\nConnection: close\r\n{fields}\r\n{body}"
        );
        tls.write_all(head.as_bytes()).expect("sent");
        let mut answer = Vec::new();
        let _ = tls.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        text[9..12].parse::<u16>().expect("a status")
    };
    let fronted = |body: &str| {
        let mut client = between.gateway.connect();
        client.send(format!(
            "POST /rpc HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            token("alice"),
            body.len()
        ));
        client.response().status
    };
    let allowed = r#"{"jsonrpc":"2.0", "id":1, "method":"tools.list"}"#;
    for (case, body, status) in [
        ("a method that is named", allowed, 200),
        (
            "another",
            r#"{"jsonrpc":"2.0","id":1,"method":"tools.call"}"#,
            403,
        ),
        (
            "one among several",
            r#"[{"method":"tools.list"},{"method":"tools.call"}]"#,
            403,
        ),
        ("no JSON", "method=tools.list", 400),
    ] {
        assert_eq!(peer(body), status, "a peer: {case}");
        assert_eq!(fronted(body), status, "the agent: {case}");
    }
    for origin in [&bob, &claw] {
        let seen = origin.requests();
        let [(_, body)] = &seen[..] else {
            panic!("one call has come through: {seen:?}");
        };
        assert_eq!(String::from_utf8_lossy(body), allowed, "byte for byte");
    }
    // By the egress listener the fronted agent is reached by no name of its own.
    for authority in [upstream, format!("127.0.0.1:{}", claw.port())] {
        let mut client = between.gateway.connect();
        client.send(format!(
            "GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\
             Proxy-Authorization: Bearer {}\r\n\r\n",
            token("alice")
        ));
        assert_eq!(client.response().status, 403, "{authority}");
    }
    assert_eq!(claw.requests().len(), 1);
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

#[test]
fn grpc_streams_both_ways_with_trailers() {
    grpc_streams(false);
}

#[test]
fn grpc_streams_both_ways_over_tls_to_the_endpoint() {
    grpc_streams(true);
}

fn grpc_streams(tls: bool) {
    let runtime = runtime();
    let origin = GrpcOrigin::looking(|head| {
        assert_eq!(head.headers["x-agentport-caller"], "alice");
        assert_eq!(head.uri.path(), "/open/Echo");
    });
    let address = origin.address();
    let own = Pki::new("bob's CA");
    let server = own.server("bob", &["bob.test"]);
    let gateway = own.client("gateway", 1, &["gateway.test"], Valid::Now);
    let agents = match tls {
        false => directory("bob", &[address.to_string()]),
        true => {
            let front = front(&runtime, address, &server, own.ca(), "h2");
            let at = format!("bob.test:{}", front.port());
            format!(
                "{}{}",
                directory("bob", &[at]),
                tls_of(own.ca(), "", Some(&gateway))
            )
        }
    };
    let agents = format!("{agents}    http2: true\n");
    let between = Between::start(POLICY, &agents);
    let config = between.config(Some(&between.alice), "h2");
    let talk = async {
        let tcp = tokio::net::TcpStream::connect(between.address)
            .await
            .expect("connected");
        let tls = tokio_rustls::TlsConnector::from(config)
            .connect("gateway.test".try_into().expect("a name"), tcp)
            .await
            .expect("a handshake");
        echoes(tls, "https://bob.peers.internal:8443/open/Echo", &[]).await;
    };
    runtime
        .block_on(async { tokio::time::timeout(support::DEADLINE, talk).await })
        .expect("in time");
    let record = between
        .gateway
        .record("the call", |record| record["path"] == "/open/Echo");
    assert_eq!(record["event"], "delegation");
    assert_eq!(record["method"], "POST");
}

#[test]
fn a_websocket_in_http2_is_a_call_and_a_tunnel_is_none() {
    let bob = Origin::serve(|mut conn, _| {
        let head = conn.head().expect("a request");
        assert_eq!(head.start, "GET /open/ws HTTP/1.1");
        assert_eq!(head.field("x-agentport-caller"), Some("alice"));
        conn.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: x\r\n\r\n",
        );
        let (unread, stream) = conn.into_parts();
        (&stream).write_all(&unread).expect("written");
        let _ = std::io::copy(&mut &stream, &mut &stream);
    });
    let between = Between::start(POLICY, &directory("bob", &[bob.address().to_string()]));
    let config = between.config(Some(&between.alice), "h2");
    let talk = async {
        let tcp = tokio::net::TcpStream::connect(between.address)
            .await
            .expect("connected");
        let tls = tokio_rustls::TlsConnector::from(config)
            .connect("gateway.test".try_into().expect("a name"), tcp)
            .await
            .expect("a handshake");
        let (sender, connection) = h2::client::handshake(tls).await.expect("HTTP/2");
        tokio::spawn(connection);
        while !sender.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        let mut ask = http::Request::connect("https://bob.peers.internal:8443/open/ws")
            .header("sec-websocket-version", "13")
            .body(())
            .expect("a request");
        ask.extensions_mut()
            .insert(h2::ext::Protocol::from_static("websocket"));
        let mut ready = sender.clone().ready().await.expect("ready");
        let (answer, mut send) = ready.send_request(ask, false).expect("sent");
        let answer = answer.await.expect("an answer");
        assert_eq!(answer.status(), 200);
        send.send_data(Bytes::from_static(b"ping"), false)
            .expect("sent");
        let mut body = answer.into_body();
        assert_eq!(body.data().await.expect("a part").expect("read"), "ping");

        let tunnel = http::Request::connect("bob.test:80")
            .body(())
            .expect("a request");
        let mut ready = sender.clone().ready().await.expect("ready");
        let (answer, _send) = ready.send_request(tunnel, false).expect("sent");
        assert_eq!(answer.await.expect("an answer").status(), 405);
    };
    runtime()
        .block_on(async { tokio::time::timeout(support::DEADLINE, talk).await })
        .expect("in time");
}

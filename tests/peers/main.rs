//! Agents that call each other: by certificates alone, to where a file says,
//! as policy allows, and by no other way.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each test uses a part of what is shared")]
#[path = "../support/mod.rs"]
mod support;

mod egress;
mod endpoints;
mod lasting;
mod protocols;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agentport::egress::AgentId;
use agentport::identity::{IssueRequest, SigningKey, TokenIssuer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use support::conn::Conn;
use support::gateway::{Gateway, SECRET, token, token_with};
use support::origin::{Origin, Untouched};
use support::pki::{Issued, Pki, Valid, replace};
use support::wait_for;

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
    // What the calls were is learned, and they pass by that alone.
    let log = between.gateway.folder().join("audit.jsonl");
    let learned = Command::new(env!("CARGO_BIN_EXE_agentport"))
        .args(["policy", "learn"])
        .arg(log)
        .env_clear()
        .output()
        .expect("it runs");
    let policy = String::from_utf8(learned.stdout).expect("UTF-8");
    assert!(policy.contains("\"bob.peers.internal\""), "{policy}");
    assert!(!policy.contains("addresses"), "{policy}");
    between.gateway.change_policy(&policy);
    assert_eq!(between.call("bob.peers.internal", "/open/a", "").0, 200);
    assert_eq!(between.call("bob.peers.internal", "/open/never", "").0, 403);
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
fn a_leave_for_some_addresses_is_none_for_what_is_behind_the_gateway() {
    let service = Untouched::listen();
    let at = format!("127.0.0.1:{}", service.port());
    for (case, rule) in [
        ("addresses alone", "addresses: [203.0.113.0/24]"),
        ("its own address alone", "addresses: [127.0.0.0/8]"),
        ("every host", "hosts: [\"*\"], addresses: [203.0.113.0/24]"),
        (
            "another host",
            "hosts: [a.test], addresses: [203.0.113.0/24]",
        ),
    ] {
        let policy = format!(
            "version: 1\nrules:\n  - {{name: some, action: allow, agents: any, ports: any, {rule}}}\n"
        );
        let agents = directory("bob", std::slice::from_ref(&at));
        let between = Between::start_with(&policy, &agents, &[("agent.upstream", &at)]);
        let (status, text) = between.call("bob.peers.internal", "/x", "");
        assert_eq!(status, 403, "a call of a peer, {case}: {text}");
        let mut conn = between.gateway.connect();
        conn.send(format!(
            "GET /v1/x HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {}\r\n\r\n",
            token("bot")
        ));
        assert_eq!(conn.response().status, 403, "the fronted agent, {case}");
        service.check(case);
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

    // Two tenants may have an agent of one name.
    let field = format!(
        "X-AgentPort-Token: {}\r\nX-AgentPort-On-Behalf-Of-Tenant: other\r\n",
        token_with("carol", Some("acme"), None)
    );
    let (status, text) = between.call("bob.peers.internal", "/open/x", &field);
    assert_eq!(status, 200, "{text}");
    let tenants = bob.last();
    let tenants = tenants.all("x-agentport-on-behalf-of-tenant");
    assert_eq!(tenants, ["acme"]);
    between.gateway.record("the tenant's", |record| {
        record["on_behalf_of"] == "carol" && record["on_behalf_of_tenant"] == "acme"
    });

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

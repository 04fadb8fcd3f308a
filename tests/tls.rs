//! The egress listener over TLS: real clients with and without certificates,
//! certificates that change under load, and load balancers in front.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each test uses a part of what is shared")]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use support::gateway::{Gateway, LOOPBACK_POLICY, token};
use support::origin::{Origin, Untouched};
use support::pki::{Issued, Pki, Valid};
use support::wait_for;

/// A gateway that speaks TLS with this certificate, and the address of that
/// listener.
fn start(certificate: &Issued, settings: &[(&str, &str)]) -> (Gateway, SocketAddr) {
    let pairs = format!(
        "[{{certificate: {}, key: {}}}]",
        certificate.certificate.display(),
        certificate.key.display()
    );
    let mut all = vec![
        ("listen.egress_tls", "127.0.0.1:0"),
        ("tls.certificates", &pairs),
    ];
    all.extend_from_slice(settings);
    let gateway = Gateway::start(LOOPBACK_POLICY, &all);
    let address = tls_address(&gateway);
    (gateway, address)
}

fn tls_address(gateway: &Gateway) -> SocketAddr {
    let line = gateway.lines("egress TLS listener").remove(0);
    let text = line["address"].as_str().expect("an address");
    text.parse().expect("an address")
}

/// curl by the proxy at this address, whose name is `proxy.test`.
fn curl(proxy: SocketAddr, ca: &Path, more: &[&str]) -> Output {
    Command::new("curl")
        .args(["-sS", "--max-time", "20", "--noproxy", ""])
        .args([
            "--resolve",
            &format!("proxy.test:{}:127.0.0.1", proxy.port()),
        ])
        .args(["-x", &format!("https://proxy.test:{}", proxy.port())])
        .arg("--proxy-cacert")
        .arg(ca)
        .args(["-w", "\n%{http_connect} %{http_code}"])
        .args(more)
        .output()
        .expect("curl runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bearer(agent: &str) -> String {
    format!("Proxy-Authorization: Bearer {}", token(agent))
}

#[test]
fn curl_asks_and_tunnels_through_tls() {
    let pki = Pki::new("the gateway's CA");
    let (gateway, proxy) = start(&pki.server("proxy", &["proxy.test"]), &[]);
    let origin = Origin::ok();
    let url = format!("http://a.test:{}/x", origin.port());
    for (case, field, more) in [
        ("forward", "-H", &[][..]),
        ("tunnel", "--proxy-header", &["--proxytunnel"]),
    ] {
        let auth = bearer("bot");
        let head = [field, &auth, &url];
        let out = curl(proxy, pki.ca(), &[&head[..], more].concat());
        let said = text(&out.stdout);
        assert!(
            said.starts_with("ok\n"),
            "{case}: {said} {}",
            text(&out.stderr)
        );
    }
    let record = gateway.record("through TLS", |record| record["listener"] == "egress_tls");
    assert_eq!(record["agent_id"], "bot");
    let metrics = gateway.metrics();
    assert!(
        metrics
            .contains("agentport_tls_handshakes_total{listener=\"egress_tls\",outcome=\"full\"} 2"),
        "{metrics}"
    );
    assert!(
        metrics.contains("agentport_certificate_expiry_timestamp_seconds"),
        "{metrics}"
    );
    // Without a credential it is refused there as everywhere.
    let untouched = Untouched::listen();
    let url = format!("http://a.test:{}/", untouched.port());
    let out = curl(proxy, pki.ca(), &[&url]);
    assert!(
        text(&out.stdout).contains("\n000 407"),
        "{}",
        text(&out.stdout)
    );
    // And who does not trust the CA does not come in.
    let other = Pki::new("another CA");
    let out = curl(proxy, other.ca(), &[&url]);
    assert_eq!(out.status.code(), Some(60), "{}", text(&out.stderr));
}

const AGENTS: &str = "spiffe://example.org/agent/{agent}";

#[test]
fn who_comes_in_with_which_certificate() {
    let pki = Pki::new("the agents' CA");
    let other = Pki::new("another CA");
    let server = pki.server("proxy", &["proxy.test"]);
    let list = pki.revoke("list.crl", &[13]);
    let id = |agent: &str| format!("spiffe://example.org/agent/{agent}");
    let bot = id("bot");
    let good = pki.client("good", 10, &[&bot], Valid::Now);
    let expired = pki.client("expired", 11, &[&bot], Valid::Past);
    let early = pki.client("early", 12, &[&bot], Valid::Future);
    let revoked = pki.client("revoked", 13, &[&bot], Valid::Now);
    let foreign = other.client("foreign", 14, &[&bot], Valid::Now);
    let nobody = pki.client("nobody", 15, &["host.internal"], Valid::Now);
    let two = pki.client("two", 16, &[&bot, &id("other")], Valid::Now);
    let not_client = pki.server("not-a-client", &["bot.agents.example.org"]);

    let ca = pki.ca().display().to_string();
    let crl = list.display().to_string();
    for (asked, require, cases) in [
        (
            "optional",
            "token",
            &[
                ("a token alone", None, Some("bot"), Ok("bot")),
                (
                    "a certificate alone",
                    Some(&good),
                    None,
                    Err("no_credential"),
                ),
                ("both", Some(&good), Some("bot"), Ok("bot")),
                // The token counts; the certificate only lets in.
                (
                    "a certificate of nobody's",
                    Some(&nobody),
                    Some("bot"),
                    Ok("bot"),
                ),
                (
                    "an expired one",
                    Some(&expired),
                    Some("bot"),
                    Err("certificate_expired"),
                ),
                (
                    "a revoked one",
                    Some(&revoked),
                    Some("bot"),
                    Err("certificate_revoked"),
                ),
            ][..],
        ),
        (
            "required",
            "certificate",
            &[
                ("a certificate", Some(&good), None, Ok("bot")),
                ("none", None, Some("bot"), Err("no_certificate")),
                (
                    "another CA's",
                    Some(&foreign),
                    None,
                    Err("certificate_unknown_issuer"),
                ),
                (
                    "an expired one",
                    Some(&expired),
                    None,
                    Err("certificate_expired"),
                ),
                (
                    "one of the future",
                    Some(&early),
                    None,
                    Err("certificate_not_valid_yet"),
                ),
                (
                    "a revoked one",
                    Some(&revoked),
                    None,
                    Err("certificate_revoked"),
                ),
                (
                    "a server's",
                    Some(&not_client),
                    None,
                    Err("certificate_invalid"),
                ),
                (
                    "one of nobody's",
                    Some(&nobody),
                    None,
                    Err("certificate_unknown"),
                ),
                (
                    "one of two agents",
                    Some(&two),
                    None,
                    Err("certificate_ambiguous"),
                ),
            ],
        ),
        (
            "optional",
            "either",
            &[
                ("a certificate", Some(&good), None, Ok("bot")),
                ("a token", None, Some("tool"), Ok("tool")),
                ("both of one agent", Some(&good), Some("bot"), Ok("bot")),
                (
                    "of two agents",
                    Some(&good),
                    Some("tool"),
                    Err("certificate_mismatch"),
                ),
                (
                    "nobody's and a token",
                    Some(&nobody),
                    Some("tool"),
                    Ok("tool"),
                ),
                ("neither", None, None, Err("no_credential")),
            ],
        ),
        (
            "optional",
            "both",
            &[
                ("both of one agent", Some(&good), Some("bot"), Ok("bot")),
                (
                    "of two agents",
                    Some(&good),
                    Some("tool"),
                    Err("certificate_mismatch"),
                ),
                (
                    "a certificate alone",
                    Some(&good),
                    None,
                    Err("no_credential"),
                ),
                ("a token alone", None, Some("bot"), Err("no_certificate")),
                (
                    "nobody's and a token",
                    Some(&nobody),
                    Some("bot"),
                    Err("certificate_unknown"),
                ),
            ],
        ),
    ] {
        let (gateway, proxy) = start(
            &server,
            &[
                ("tls.clients.certificates", asked),
                ("tls.clients.ca", &ca),
                ("tls.clients.crl", &crl),
                ("tls.clients.names", AGENTS),
                ("identity.require", require),
            ],
        );
        let origin = Origin::ok();
        let untouched = Untouched::listen();
        for (case, certificate, agent, expected) in cases {
            let case = format!("{asked} certificates, {require} required: {case}");
            let port = expected.map_or(untouched.port(), |_| origin.port());
            let url = format!("http://a.test:{port}/");
            let before = gateway.records().len();
            let auth = agent.map(bearer);
            let mut more = vec![url.as_str()];
            if let Some(auth) = &auth {
                more.extend(["-H", auth]);
            }
            let paths = certificate.map(|issued: &Issued| {
                let text = |path: &Path| path.display().to_string();
                (text(&issued.certificate), text(&issued.key))
            });
            if let Some((certificate, key)) = &paths {
                more.extend(["--proxy-cert", certificate, "--proxy-key", key]);
            }
            let out = curl(proxy, pki.ca(), &more);
            let record = support::wait_for(&case, || gateway.records().get(before).cloned());
            match expected {
                Ok(agent) => {
                    assert!(text(&out.stdout).starts_with("ok\n"), "{case}: {out:?}");
                    assert_eq!(record["agent_id"], *agent, "{case}: {record}");
                    assert_eq!(record["action_allowed"], true, "{case}: {record}");
                }
                Err(reason) => {
                    assert!(!text(&out.stdout).starts_with("ok\n"), "{case}: {out:?}");
                    assert_eq!(record["reason"], *reason, "{case}: {record}");
                    assert_eq!(record["action_allowed"], false, "{case}: {record}");
                }
            }
        }
    }
}

/// `b.test` is for those alone who show both.
const MORE_FOR_B: &str = r#"
version: 1
rules:
  - name: test-names
    action: allow
    agents: any
    hosts: ["*.test"]
    addresses: ["127.0.0.0/8"]
    ports: any
  - name: both-for-b
    action: allow
    agents: any
    hosts: ["b.test"]
    addresses: ["127.0.0.0/8"]
    ports: any
    require: both
"#;

#[test]
fn a_listener_and_a_rule_may_want_certificate_and_token() {
    let pki = Pki::new("the agents' CA");
    let server = pki.server("proxy", &["proxy.test"]);
    let bot = "spiffe://example.org/agent/bot";
    let good = pki.client("good", 10, &[bot], Valid::Now);
    let ca = pki.ca().display().to_string();
    let start_with = |require: &str| {
        let (gateway, proxy) = start(
            &server,
            &[
                ("tls.clients.certificates", "optional"),
                ("tls.clients.ca", &ca),
                ("tls.clients.names", AGENTS),
                ("tls.clients.require", require),
            ],
        );
        gateway.change_policy(MORE_FOR_B);
        (gateway, proxy)
    };
    let (origin, untouched) = (Origin::ok(), Untouched::listen());
    let (certificate, key) = (
        good.certificate.display().to_string(),
        good.key.display().to_string(),
    );
    let ask = |gateway: &Gateway, proxy: SocketAddr, host: &str, shows: &str, passes: bool| {
        let port = if passes {
            origin.port()
        } else {
            untouched.port()
        };
        let url = format!("http://{host}.test:{port}/");
        let before = gateway.records().len();
        let auth = bearer(if shows == "another's" { "other" } else { "bot" });
        let mut more = vec![url.as_str()];
        if shows != "certificate" {
            more.extend(["-H", auth.as_str()]);
        }
        if shows != "token" {
            more.extend([
                "--proxy-cert",
                certificate.as_str(),
                "--proxy-key",
                key.as_str(),
            ]);
        }
        let out = curl(proxy, pki.ca(), &more);
        let got = text(&out.stdout).starts_with("ok\n");
        assert_eq!(got, passes, "{host} by {shows}: {out:?}");
        support::wait_for("a record", || gateway.records().get(before).cloned())
    };
    let (gateway, proxy) = start_with("either");
    for (host, shows, reason, seen) in [
        ("a", "token", "ok", "token"),
        ("a", "certificate", "ok", "certificate"),
        ("b", "token", "credential_required", "token"),
        ("b", "certificate", "credential_required", "certificate"),
        ("b", "both", "ok", "token+certificate"),
        (
            "b",
            "another's",
            "certificate_mismatch",
            "token+certificate",
        ),
    ] {
        let record = ask(&gateway, proxy, host, shows, reason == "ok");
        assert_eq!(record["reason"], reason, "{host} by {shows}: {record}");
        assert_eq!(record["credential"], seen, "{host} by {shows}: {record}");
        if reason == "credential_required" {
            assert_eq!(record["rule"], "both-for-b", "{record}");
        }
    }
    // The listener in clear text goes by identity.require, and cannot meet a
    // rule that wants more.
    let clear = |gateway: &Gateway, host: &str| {
        let mut client = gateway.connect();
        let port = if host == "a" {
            origin.port()
        } else {
            untouched.port()
        };
        client.send(format!(
            "GET http://{host}.test:{port}/ HTTP/1.1\r\nHost: {host}.test:{port}\r\n{}\r\n\r\n",
            bearer("bot")
        ));
        client.response()
    };
    assert_eq!(clear(&gateway, "a").status, 200);
    let refused = clear(&gateway, "b");
    assert_eq!(refused.status, 403);
    assert_eq!(refused.refusal(), "credential_required");
    let told = refused.json()["reason"]
        .as_str()
        .expect("a reason")
        .to_owned();
    assert!(
        told.contains("a client certificate and a token of the same agent"),
        "{told}"
    );

    let (gateway, proxy) = start_with("both");
    let record = ask(&gateway, proxy, "a", "token", false);
    assert_eq!(record["reason"], "no_certificate", "{record}");
    assert_eq!(record["credential"], "token", "{record}");
    assert_eq!(record["agent_id"], "bot", "{record}");
    let record = ask(&gateway, proxy, "a", "certificate", false);
    assert_eq!(record["reason"], "no_credential", "{record}");
    assert_eq!(record["credential"], "certificate", "{record}");
    let record = ask(&gateway, proxy, "a", "both", true);
    assert_eq!(record["credential"], "token+certificate", "{record}");
    assert_eq!(clear(&gateway, "a").status, 200);

    let explained = |words: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_agentport"))
            .args(["policy", "explain", "--agent", "bot", "--policy"])
            .arg(gateway.policy_file())
            .args(words)
            .output()
            .expect("it runs");
        (out.status.success(), text(&out.stdout))
    };
    let question = ["--address", "127.0.0.1", "GET", "http://b.test/"];
    let (allowed, said) = explained(&question);
    assert!(
        !allowed && said.contains("the rule wants a client certificate and a token"),
        "{said}"
    );
    let (allowed, said) = explained(&[&["--credentials", "both"], &question[..]].concat());
    assert!(allowed && said.contains("both-for-b"), "{said}");
}

/// The client's side of TLS, trusting this CA.
fn client_config(ca: &Path, alpn: &[&str]) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for der in CertificateDer::pem_file_iter(ca).expect("a CA") {
        roots.add(der.expect("a certificate")).expect("an issuer");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|id| id.as_bytes().to_vec()).collect();
    Arc::new(config)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// HTTP/2 through TLS, negotiated.
async fn http2(
    address: SocketAddr,
    config: &Arc<rustls::ClientConfig>,
) -> h2::client::SendRequest<Bytes> {
    let tcp = tokio::net::TcpStream::connect(address)
        .await
        .expect("connected");
    let name = "proxy.test".try_into().expect("a name");
    let tls = tokio_rustls::TlsConnector::from(Arc::clone(config))
        .connect(name, tcp)
        .await
        .expect("a handshake");
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = h2::client::handshake(tls).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

#[test]
fn http2_is_negotiated_and_tunnels_too() {
    let pki = Pki::new("the gateway's CA");
    let (gateway, proxy) = start(&pki.server("proxy", &["proxy.test"]), &[]);
    let origin = Origin::ok();
    let config = client_config(pki.ca(), &["h2"]);
    runtime().block_on(async {
        let sender = http2(proxy, &config).await;
        let ask = http::Request::connect(format!("a.test:{}", origin.port()))
            .header("proxy-authorization", format!("Bearer {}", token("bot")))
            .body(())
            .expect("a request");
        let mut sender = sender.ready().await.expect("ready");
        let (answer, mut send) = sender.send_request(ask, false).expect("sent");
        let answer = answer.await.expect("an answer");
        assert_eq!(answer.status(), 200);
        // Clear text in the tunnel is judged request by request.
        let get = format!(
            "GET /in HTTP/1.1\r\nHost: a.test:{}\r\nConnection: close\r\n\r\n",
            origin.port()
        );
        send.send_data(Bytes::from(get), false).expect("sent");
        let mut body = answer.into_body();
        let mut got = Vec::new();
        while let Some(Ok(part)) = body.data().await {
            got.extend_from_slice(&part);
        }
        assert!(text(&got).starts_with("HTTP/1.1 200"), "{}", text(&got));
        assert!(text(&got).ends_with("ok"), "{}", text(&got));
    });
    assert_eq!(origin.last().start, "GET /in HTTP/1.1");
    let record = gateway.record("the request inside", |record| record["path"] == "/in");
    assert_eq!(record["agent_id"], "bot");
}

#[test]
fn certificates_change_a_hundred_times_under_load() {
    let pki = Pki::new("the gateway's CA");
    let issued = pki.server("proxy", &["proxy.test"]);
    let (gateway, proxy) = start(&issued, &[]);
    let origin = Origin::ok();
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for number in 0..2 {
        let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
        // One keeps its connection, the other makes a new one each time.
        let keeps = number == 0;
        let config = client_config(pki.ca(), &["http/1.1"]);
        let get = format!(
            "GET http://a.test:{0}/ HTTP/1.1\r\nHost: a.test:{0}\r\n{1}\r\n\r\n",
            origin.port(),
            bearer(&format!("bot-{number}"))
        );
        clients.push(std::thread::spawn(move || {
            let mut tls = None;
            while !stop.load(Ordering::Relaxed) {
                let stream = tls.get_or_insert_with(|| connect_tls(proxy, &config));
                stream.write_all(get.as_bytes()).expect("written");
                let mut answer = Vec::new();
                let mut buffer = [0; 4096];
                while !answer.ends_with(b"\r\n\r\nok") {
                    let count = stream.read(&mut buffer).expect("an answer");
                    assert_ne!(count, 0, "it broke off: {}", text(&answer));
                    answer.extend_from_slice(&buffer[..count]);
                }
                assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", text(&answer));
                served.fetch_add(1, Ordering::Relaxed);
                if !keeps {
                    tls = None;
                }
            }
        }));
    }
    let loaded = |gateway: &Gateway| {
        figure(
            gateway,
            "agentport_certificate_reloads_total{outcome=\"loaded\"}",
        )
    };
    for change in 0..100 {
        let before = loaded(&gateway);
        pki.server("proxy", &["proxy.test"]);
        // The key comes first, so a half of the change may have been seen.
        wait_for(&format!("change {change}"), || {
            (loaded(&gateway) > before).then_some(())
        });
    }
    // What is served now is what stands in the file.
    wait_for("the last certificate", || {
        let tls = connect_tls(proxy, &client_config(pki.ca(), &[]));
        let shown = tls.conn.peer_certificates().expect("a certificate")[0].to_vec();
        let file = CertificateDer::from_pem_file(&issued.certificate).expect("PEM");
        (shown == file.as_ref()).then_some(())
    });
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no request has failed");
    }
    assert!(served.load(Ordering::Relaxed) > 100, "there was load");
    let refused = gateway
        .records()
        .iter()
        .filter(|record| record["reason"] != "ok")
        .count();
    assert_eq!(refused, 0);
}

fn figure(gateway: &Gateway, name: &str) -> u64 {
    let metrics = gateway.metrics();
    let line = metrics.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.map_or(0, |value| value.parse().expect("a number"))
}

fn connect_tls(
    address: SocketAddr,
    config: &Arc<rustls::ClientConfig>,
) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let name = "proxy.test".try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::clone(config), name).expect("a client");
    let mut tcp = TcpStream::connect(address).expect("connected");
    tcp.set_read_timeout(Some(support::DEADLINE)).expect("set");
    client.complete_io(&mut tcp).expect("a handshake");
    rustls::StreamOwned::new(client, tcp)
}

#[test]
fn a_certificate_that_is_no_good_changes_nothing() {
    let pki = Pki::new("the gateway's CA");
    let issued = pki.server("proxy", &["proxy.test"]);
    let (gateway, proxy) = start(&issued, &[]);
    let good = std::fs::read(&issued.certificate).expect("read");
    let good_key = std::fs::read(&issued.key).expect("read");
    let other = pki.server("other", &["proxy.test"]);
    let past = pki.server_valid("past", &["proxy.test"], Valid::Past);
    let read = |path: &Path| std::fs::read(path).expect("read");
    for (case, certificate, key, says) in [
        (
            "another key",
            good.clone(),
            read(&other.key),
            "not that of the certificate",
        ),
        (
            "expired",
            read(&past.certificate),
            read(&past.key),
            "has expired",
        ),
        (
            "cut short",
            good[..good.len() / 2].to_vec(),
            good_key.clone(),
            "breaks off",
        ),
        ("empty", Vec::new(), good_key.clone(), "no PEM certificate"),
        ("no key", good.clone(), b"x".to_vec(), "no private key"),
    ] {
        support::pki::replace(&issued.key, &key);
        support::pki::replace(&issued.certificate, &certificate);
        wait_for(&format!("{case}: the refusal"), || {
            let ready: serde_json::Value = gateway.ask_admin("/ready").json();
            let refused = ready["certificates"]["refused"]
                .as_str()
                .unwrap_or("")
                .to_owned();
            refused.contains(says).then_some(())
        });
        // The old one serves on.
        let tls = connect_tls(proxy, &client_config(pki.ca(), &[]));
        let shown = tls.conn.peer_certificates().expect("one")[0].to_vec();
        let first = CertificateDer::from_pem_slice(&good).expect("PEM");
        assert_eq!(shown, first.as_ref(), "{case}");
    }
    assert!(
        figure(
            &gateway,
            "agentport_certificate_reloads_total{outcome=\"refused\"}"
        ) >= 5
    );
    support::pki::replace(&issued.key, &good_key);
    support::pki::replace(&issued.certificate, &good);
    wait_for("it is good again", || {
        let ready: serde_json::Value = gateway.ask_admin("/ready").json();
        ready["certificates"]["refused"].is_null().then_some(())
    });
}

#[test]
fn a_certificate_that_expires_loses_its_open_tunnel() {
    let pki = Pki::new("the agents' CA");
    let server = pki.server("proxy", &["proxy.test"]);
    let ca = pki.ca().display().to_string();
    let (gateway, proxy) = start(
        &server,
        &[
            ("tls.clients.certificates", "required"),
            ("tls.clients.ca", &ca),
            ("tls.clients.names", AGENTS),
            ("identity.require", "certificate"),
            ("tunnel.opaque", "allow"),
        ],
    );
    let echo = Origin::echo();
    let name = "spiffe://example.org/agent/bot";
    let valid = Valid::For(std::time::Duration::from_secs(3));
    let bot = pki.client("bot", 7, &[name], valid);
    let mut tls = connect_tls(proxy, &with_certificate(&pki, &bot));
    open_tunnel(&mut tls, &echo);
    let mut rest = Vec::new();
    let _ = tls.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    let closed = gateway.record("the tunnel's end", |record| {
        record["event"] == "tunnel_closed"
    });
    assert_eq!(closed["reason"], "credential_ended", "{closed}");
    assert_eq!(closed["agent_id"], "bot");
}

/// The client's side of TLS with this certificate.
fn with_certificate(pki: &Pki, issued: &Issued) -> Arc<rustls::ClientConfig> {
    let config = client_config(pki.ca(), &[]);
    let mut config = (*config).clone();
    let provider = rustls::crypto::ring::default_provider();
    let chain = vec![CertificateDer::from_pem_file(&issued.certificate).expect("PEM")];
    let key = PrivateKeyDer::from_pem_file(&issued.key).expect("PEM");
    let own = rustls::sign::CertifiedKey::from_der(chain, key, &provider).expect("a pair");
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(own));
    Arc::new(config)
}

/// Opens a tunnel to `a.test`, and has bytes come back through it.
fn open_tunnel(tls: &mut (impl Read + Write), echo: &Origin) {
    let ask = format!(
        "CONNECT a.test:{0} HTTP/1.1\r\nHost: a.test:{0}\r\n\r\n",
        echo.port()
    );
    tls.write_all(ask.as_bytes()).expect("written");
    let mut answer = [0; 39];
    tls.read_exact(&mut answer).expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", text(&answer));
    tls.write_all(b"\x00ping").expect("written");
    let mut back = [0; 5];
    tls.read_exact(&mut back).expect("it comes back");
}

#[test]
fn a_certificate_that_is_revoked_loses_its_open_tunnel() {
    let pki = Pki::new("the agents' CA");
    let server = pki.server("proxy", &["proxy.test"]);
    let list = pki.revoke("list.crl", &[]);
    let bot = pki.client("bot", 7, &["spiffe://example.org/agent/bot"], Valid::Now);
    let (ca, crl) = (pki.ca().display().to_string(), list.display().to_string());
    let (gateway, proxy) = start(
        &server,
        &[
            ("tls.clients.certificates", "required"),
            ("tls.clients.ca", &ca),
            ("tls.clients.crl", &crl),
            ("tls.clients.names", AGENTS),
            ("identity.require", "certificate"),
            ("tunnel.opaque", "allow"),
        ],
    );
    let echo = Origin::echo();
    let config = with_certificate(&pki, &bot);
    let mut tls = connect_tls(proxy, &config);
    open_tunnel(&mut tls, &echo);
    // A second connection takes up the session, and is who it was.
    let again = connect_tls(proxy, &config);
    assert_eq!(
        again.conn.handshake_kind(),
        Some(rustls::HandshakeKind::Resumed)
    );
    drop(again);

    pki.revoke("list.crl", &[7]);
    let closed = gateway.record("the tunnel's end", |record| {
        record["event"] == "tunnel_closed"
    });
    assert_eq!(closed["reason"], "credential_ended", "{closed}");
    assert_eq!(closed["agent_id"], "bot");
    // And nobody comes in by it again, not even by the old session.
    let name = "proxy.test".try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::clone(&config), name).expect("a client");
    let mut tcp = TcpStream::connect(proxy).expect("connected");
    let mut stream = rustls::Stream::new(&mut client, &mut tcp);
    let refused = stream
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .and_then(|()| stream.read(&mut [0; 1]));
    assert!(!matches!(refused, Ok(1..)), "{refused:?}");
    gateway.record("the refusal", |record| {
        record["reason"] == "certificate_revoked"
    });
}

#[test]
fn behind_a_balancer_the_client_is_who_it_says() {
    let pki = Pki::new("the gateway's CA");
    let (gateway, proxy) = start(
        &pki.server("proxy", &["proxy.test"]),
        &[
            ("listen.proxy_protocol", "127.0.0.1"),
            ("limits.requests_per_source", "3/s burst 3"),
        ],
    );
    let origin = Origin::ok();
    let get = |agent: &str| {
        format!(
            "GET http://a.test:{0}/ HTTP/1.1\r\nHost: a.test:{0}\r\nConnection: close\r\n{1}\r\n\r\n",
            origin.port(),
            bearer(agent)
        )
    };
    let v2 = |client: &str| {
        let of = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let own = if client.starts_with('[') {
            "[2001:db8::1]:443"
        } else {
            "198.51.100.1:443"
        };
        let addresses: ppp::v2::Addresses = (of(client), of(own)).into();
        let (version, command) = (ppp::v2::Version::Two, ppp::v2::Command::Proxy);
        ppp::v2::Builder::with_addresses(version | command, ppp::v2::Protocol::Stream, addresses)
            .build()
            .expect("a header")
    };
    // In clear, both versions.
    for (header, client) in [
        (
            b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 443\r\n".to_vec(),
            "192.0.2.7:5555",
        ),
        (v2("[2001:db8::7]:6666"), "[2001:db8::7]:6666"),
    ] {
        let mut conn = gateway.connect();
        conn.send([header, get("bot").into_bytes()].concat());
        assert_eq!(conn.response().status, 200, "{client}");
        gateway.record(client, |record| {
            record["client"] == client && record["reason"] == "ok"
        });
    }
    // Before TLS.
    let mut tcp = TcpStream::connect(proxy).expect("connected");
    tcp.write_all(&v2("192.0.2.8:7777")).expect("written");
    let name = "proxy.test".try_into().expect("a name");
    let config = client_config(pki.ca(), &[]);
    let mut client = rustls::ClientConnection::new(config, name).expect("a client");
    client.complete_io(&mut tcp).expect("a handshake");
    let mut tls = rustls::StreamOwned::new(client, tcp);
    tls.write_all(get("bot").as_bytes()).expect("written");
    let mut answer = [0; 12];
    tls.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
    gateway.record("TLS", |record| record["client"] == "192.0.2.8:7777");
    // Limits are the client's, not the balancer's.
    let mut refused = 0;
    for _ in 0..6 {
        let mut conn = gateway.connect();
        conn.send([v2("192.0.2.9:1"), get("many").into_bytes()].concat());
        refused += usize::from(conn.response().status == 429);
    }
    assert!(refused >= 1, "the quota of one client is used up");
    let mut conn = gateway.connect();
    conn.send([v2("192.0.2.10:1"), get("other").into_bytes()].concat());
    assert_eq!(conn.response().status, 200, "and another's is not");
    // What is no header is not served, and is written down.
    let mut conn = gateway.connect();
    conn.send_lossy(get("bot"));
    assert!(conn.closes());
    let record = gateway.record("no header", |record| record["reason"] == "proxy_header");
    assert_eq!(record["action_allowed"], false);
}

#[test]
fn from_others_a_proxy_header_is_no_request() {
    let gateway = Gateway::start(LOOPBACK_POLICY, &[("listen.proxy_protocol", "10.0.0.0/8")]);
    let untouched = Untouched::listen();
    let mut conn = gateway.connect();
    conn.send_lossy(format!(
        "PROXY TCP4 192.0.2.7 198.51.100.1 5555 443\r\nGET http://a.test:{0}/ HTTP/1.1\r\nHost: a.test:{0}\r\n{1}\r\n\r\n",
        untouched.port(),
        bearer("bot")
    ));
    assert_eq!(conn.response().status, 400);
    let record = gateway.record("the refusal", |record| record["reason"] == "bad_request");
    assert!(
        record["client"]
            .as_str()
            .expect("an address")
            .starts_with("127.0.0.1:")
    );
}

#[test]
fn only_the_versions_that_are_set_are_spoken() {
    let pki = Pki::new("the gateway's CA");
    let server = pki.server("proxy", &["proxy.test"]);
    for (setting, version, works) in [
        ("1.2", "-tls1_1", false),
        ("1.2", "-tls1_2", true),
        ("1.2", "-tls1_3", true),
        ("1.3", "-tls1_2", false),
        ("1.3", "-tls1_3", true),
    ] {
        let (_gateway, proxy) = start(&server, &[("tls.min_version", setting)]);
        let out = Command::new("openssl")
            .args([
                "s_client",
                "-connect",
                &proxy.to_string(),
                version,
                "-servername",
                "proxy.test",
            ])
            .args([
                "-verify_return_error",
                "-verify_hostname",
                "proxy.test",
                "-CAfile",
            ])
            .arg(pki.ca())
            .stdin(std::process::Stdio::null())
            .output()
            .expect("openssl runs");
        assert_eq!(
            out.status.success(),
            works,
            "{setting} {version}: {}",
            text(&out.stderr)
        );
    }
}

/// Asks through the proxy at `localhost:PORT`, and prints the status.
const PYTHON: &str = "
import http.client, ssl, sys
port, ca, url, certificate, key = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
if certificate:
    context.load_cert_chain(certificate, key)
proxy = http.client.HTTPSConnection('localhost', int(port), context=context, timeout=20)
proxy.request('GET', url)
print('HTTP/1.1', proxy.getresponse().status)
";

#[test]
fn python_and_java_come_in_with_their_certificates_alone() {
    let pki = Pki::new("the agents' CA");
    let other = Pki::new("another CA");
    let server = pki.server("proxy", &["localhost"]);
    let misnamed = pki.server("misnamed", &["elsewhere.test"]);
    let id = "spiffe://example.org/agent/bot";
    let good = pki.client("good", 1, &[id], Valid::Now);
    let past = pki.client("past", 2, &[id], Valid::Past);
    let gone = pki.client("gone", 3, &[id], Valid::Now);
    let foreign = other.client("foreign", 4, &[id], Valid::Now);
    let list = pki.revoke("list.crl", &[3]);
    let (ca, crl) = (pki.ca().display().to_string(), list.display().to_string());
    let settings = [
        ("tls.clients.certificates", "required"),
        ("tls.clients.ca", ca.as_str()),
        ("tls.clients.crl", crl.as_str()),
        ("tls.clients.names", AGENTS),
        ("identity.require", "certificate"),
    ];
    let origin = Origin::ok();
    let untouched = Untouched::listen();
    let program = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/clients/programs/TlsProxy.java"
    );
    for (case, server, certificate, works) in [
        ("its certificate", &server, Some(&good), true),
        ("none", &server, None, false),
        ("an expired one", &server, Some(&past), false),
        ("a revoked one", &server, Some(&gone), false),
        ("another CA's", &server, Some(&foreign), false),
        ("a gateway of another name", &misnamed, Some(&good), false),
    ] {
        let (_gateway, proxy) = start(server, &settings);
        let port = proxy.port().to_string();
        let to = if works {
            origin.port()
        } else {
            untouched.port()
        };
        let url = format!("http://a.test:{to}/");
        let path = |path: &Path| path.display().to_string();
        let (file, key) = certificate
            .map(|issued| (path(&issued.certificate), path(&issued.key)))
            .unwrap_or_default();
        let python = Command::new("python3")
            .args(["-c", PYTHON, &port, &ca, &url, &file, &key])
            .output()
            .expect("python3 runs");
        let mut java = Command::new("java");
        java.args([program, &port, &ca, &url]);
        if certificate.is_some() {
            let store = path(&pki.path("store.p12"));
            let made = Command::new("openssl")
                .args(["pkcs12", "-export", "-in", &file, "-inkey", &key])
                .args(["-out", &store, "-passout", "pass:changeit"])
                .status();
            assert!(made.expect("openssl runs").success(), "{case}");
            java.args([&store, "changeit"]);
        }
        let java = java.output().expect("java runs");
        for (client, out) in [("Python", python), ("Java", java)] {
            let got = text(&out.stdout).starts_with("HTTP/1.1 200");
            assert_eq!(got, works, "{client} with {case}: {out:?}");
        }
    }
}

#[test]
fn a_scanner_finds_nothing() {
    let pki = Pki::new("the gateway's CA");
    let (gateway, proxy) = start(&pki.server("proxy", &["localhost"]), &[]);
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv/bin");
    let path = format!("{beside}:{}", std::env::var("PATH").expect("a PATH"));
    let out = Command::new("sslyze")
        .env("PATH", path)
        .args(["--mozilla_config", "intermediate", &proxy.to_string()])
        .output()
        .expect("sslyze runs: tests/setup installs it");
    let report = text(&out.stdout);
    assert!(report.contains("Not vulnerable to Heartbleed"), "{report}");
    assert!(!report.contains("VULNERABLE"), "{report}");
    // The test's certificate is of nobody's CA and lasts for decades; nothing
    // beside that is amiss.
    let (_, compliance) = report
        .split_once("COMPLIANCE AGAINST TLS CONFIGURATION")
        .expect("a verdict");
    let own = [
        "certificate_path_validation",
        "maximum_certificate_lifespan",
    ];
    let findings: Vec<&str> = compliance
        .lines()
        .filter(|line| line.trim_start().starts_with("* "))
        .filter(|line| !own.iter().any(|word| line.contains(word)))
        .collect();
    assert!(findings.is_empty(), "{findings:#?}\n{report}");
    // The other scanner: what is worse than informational, in its words.
    let folder = tempfile::tempdir().expect("a folder");
    let found = folder.path().join("found.json");
    let out = Command::new("testssl")
        .args([
            "--quiet",
            "--warnings",
            "off",
            "--color",
            "0",
            "--ip",
            "one",
        ])
        .args(["--connect-timeout", "20", "--openssl-timeout", "20"])
        .args([
            "-p",
            "-s",
            "-f",
            "-S",
            "-U",
            "--severity",
            "LOW",
            "--jsonfile",
        ])
        .arg(&found)
        .arg(proxy.to_string())
        .output()
        .expect("testssl runs: tests/setup installs it");
    let report = text(&out.stdout);
    assert!(report.contains("TLS 1.3"), "{report}");
    let found = std::fs::read_to_string(&found).expect("a report");
    let found: Vec<serde_json::Value> = serde_json::from_str(&found).expect("JSON");
    // As above: the certificate is of nobody's CA and lasts for decades; besides,
    // it is not for an address, its number is 1, nobody is asked whether it is
    // revoked, and no DNS says who may issue.
    let own = [
        "cert_chain_of_trust",
        "cert_extlifeSpan",
        "cert_revocation",
        "cert_serialNumberLen",
        "cert_trust",
        "cert_validityPeriod",
        "DNS_CAArecord",
    ];
    // What it could not try on a busy machine it calls WARN.
    let beside: Vec<_> = found
        .iter()
        .filter(|one| one["severity"] != "WARN")
        .filter(|one| !own.iter().any(|id| one["id"] == *id))
        .collect();
    assert!(beside.is_empty(), "{beside:#?}");
    // All its bad handshakes are counted, and none has become a request.
    assert!(
        figure(
            &gateway,
            "agentport_tls_handshakes_total{listener=\"egress_tls\",outcome=\"incompatible\""
        ) > 0
    );
}

#[test]
fn an_agent_behind_the_gateway_is_fronted_with_tls() {
    let pki = Pki::new("the gateway's CA");
    let agent = Origin::ok();
    let upstream = agent.address().to_string();
    let policy = "version: 1\nrules:\n  - {name: api, action: allow, agents: any, hosts: [openclaw.agent], ports: any, paths: [\"/v1/**\"]}\n";
    let server = pki.server("proxy", &["proxy.test"]);
    let pairs = format!(
        "[{{certificate: {}, key: {}}}]",
        server.certificate.display(),
        server.key.display()
    );
    let gateway = Gateway::start(
        policy,
        &[
            ("listen.egress_tls", "127.0.0.1:0"),
            ("tls.certificates", &pairs),
            ("agent.upstream", &upstream),
        ],
    );
    let address = tls_address(&gateway);
    let url = |path: &str| format!("https://proxy.test:{}{path}", address.port());
    let resolve = format!("proxy.test:{}:127.0.0.1", address.port());
    let ask = |version: &str, path: &str, more: &[&str]| {
        let out = Command::new("curl")
            .args(["-sS", "--max-time", "20", "--noproxy", "*", version])
            .args([
                "--resolve",
                &resolve,
                "-w",
                "\n%{http_code} %{http_version}",
            ])
            .arg("--cacert")
            .arg(pki.ca())
            .args(more)
            .arg(url(path))
            .output()
            .expect("curl runs");
        text(&out.stdout)
    };
    let auth = format!("Authorization: Bearer {}", token("bot"));
    let lies = [
        "-H",
        &auth,
        "-H",
        "Forwarded: for=192.0.2.1",
        "-H",
        "X-Forwarded-For: 192.0.2.1",
        "-H",
        "X-Real-IP: 192.0.2.1",
    ];
    for (version, said) in [("--http1.1", "ok\n200 1.1"), ("--http2", "ok\n200 2")] {
        assert_eq!(ask(version, "/v1/x", &lies), said, "{version}");
        let head = agent.last();
        // Its client is who has connected, whatever that says of itself.
        assert_eq!(head.field("forwarded"), Some("for=127.0.0.1"), "{version}");
        assert_eq!(head.field("x-forwarded-for"), None, "{version}");
        assert_eq!(head.field("x-real-ip"), None, "{version}");
        assert_eq!(head.field("authorization"), None, "{version}");
    }
    let before = agent.requests().len();
    assert!(
        ask("--http2", "/v1/x", &[]).ends_with("\n401 2"),
        "no credential"
    );
    assert!(
        ask("--http2", "/admin", &["-H", &auth]).ends_with("\n403 2"),
        "another path"
    );
    assert_eq!(agent.requests().len(), before, "neither came through");
    let record = gateway.record("the request", |record| record["status"] == 200);
    assert_eq!(record["listener"], "egress_tls");
    assert_eq!(record["destination_host"], "openclaw.agent");
}

#[test]
fn a_source_is_counted_over_all_listeners_together() {
    let pki = Pki::new("the gateway's CA");
    let certificate = pki.server("proxy", &["proxy.test"]);
    let (gateway, tls) = start(&certificate, &[("limits.connections_per_source", "1")]);
    // It has its place when the handshake is done, and before that may be the one
    // that finds none.
    let held = connect_tls(tls, &client_config(pki.ca(), &[]));
    // One that is refused is answered and closed whether it has asked or not, so
    // it may find its connection reset.
    let is_refused = || {
        let mut client = gateway.connect();
        client.send_lossy("GET /health HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n");
        !client.rest().starts_with(b"HTTP/1.1 200")
    };
    assert!(is_refused(), "by the other listener");
    drop(held);
    wait_for("the place to be free", || (!is_refused()).then_some(()));
}

//! Refusals of a CONNECT that are told inside its tunnel: to clients that trust
//! the CA, to others, and where nobody is to hear of it.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each test uses a part of what is shared")]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::DEADLINE;
use support::conn::Conn;
use support::gateway::{Gateway, token};
use support::origin::{Origin, Untouched};
use support::pki::{Pki, replace};
use support::wait_for;

/// `told.test` and an address are refused inside, `plain.test` by the answer to
/// the CONNECT, and so is what no rule knows.
const POLICY: &str = r#"
version: 1
rules:
  - {name: told, action: deny, agents: any, hosts: [told.test], ports: any, refusal: inside}
  - {name: range, action: deny, agents: any, addresses: ["127.0.0.9/32"], ports: any, refusal: inside}
  - {name: plain, action: deny, agents: any, hosts: [plain.test], ports: any}
  - {name: open, action: allow, agents: any, hosts: [open.test], addresses: ["127.0.0.0/8"], ports: any}
"#;

/// A CA by the command that users have.
fn ca(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let folder = folder.join(name);
    let made = Command::new(env!("CARGO_BIN_EXE_agentport"))
        .args(["ca", "init", "--domain", "example.org", "--folder"])
        .arg(&folder)
        .output()
        .expect("it runs");
    assert!(made.status.success(), "{made:?}");
    (folder.join("ca.pem"), folder.join("ca.key"))
}

fn start(inside: &str, certificate: &Path, key: &Path) -> Gateway {
    let certificate = certificate.display().to_string();
    let key = key.display().to_string();
    Gateway::start(
        POLICY,
        &[
            ("refusals.inside", inside),
            ("refusals.certificate", &certificate),
            ("refusals.key", &key),
        ],
    )
}

/// curl through the gateway, which prints the body, the answer to the CONNECT
/// and the answer inside.
fn curl(gateway: &Gateway, ca: &Path, url: &str, more: &[&str]) -> Output {
    Command::new("curl")
        .args(["-sS", "--max-time", "20", "--noproxy", "", "--cacert"])
        .arg(ca)
        .args(["-x", &format!("http://{}", gateway.egress())])
        .arg("--proxy-header")
        .arg(format!("Proxy-Authorization: Bearer {}", token("bot")))
        .args(["-w", "\n%{http_connect} %{http_code}"])
        .args(more)
        .arg(url)
        .output()
        .expect("curl runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_client_that_trusts_the_ca_reads_the_refusal() {
    let folder = tempfile::tempdir().expect("a folder");
    let (certificate, key) = ca(folder.path(), "ca");
    let gateway = start("rules", &certificate, &key);
    let untouched = Untouched::listen();
    let port = untouched.port();
    for (case, host, rule, reason) in [
        ("a name", "told.test", "told", "rule"),
        ("an address", "127.0.0.9", "range", "address_denied"),
    ] {
        let before = gateway.records().len();
        let url = format!("https://{host}:{port}/v1/chat?key=hidden");
        let out = curl(&gateway, &certificate, &url, &["--proxytunnel"]);
        let text = said(&out);
        assert!(text.ends_with("\n200 403"), "{case}: {text} {out:?}");
        let body = text.rsplit_once('\n').expect("two lines").0;
        let body: serde_json::Value = serde_json::from_str(body.trim()).expect("JSON");
        assert_eq!(body["error"], reason, "{case}");
        let record = wait_for("its record", || gateway.records().into_iter().nth(before));
        for (field, expected) in [
            ("event", "tunnel"),
            ("method", "CONNECT"),
            ("reason", reason),
            ("rule", rule),
            ("destination_host", host),
            ("detail", "told inside the tunnel"),
        ] {
            assert_eq!(record[field], expected, "{case}: {field}");
        }
        assert_eq!(record["status"], 403, "{case}");
        assert_eq!(record["action_allowed"], false, "{case}");
    }
    // A stream of HTTP/2 is a tunnel too.
    assert_eq!(over_http2(&gateway), "HTTP/1.1 403");
    // What asks for the head alone gets that alone.
    let url = format!("https://told.test:{port}/");
    let out = curl(&gateway, &certificate, &url, &["--head"]);
    assert!(said(&out).contains("\r\nHTTP/1.1 403 "), "{out:?}");
    assert!(said(&out).ends_with("\n200 403"), "{out:?}");
    // Clear text in the tunnel is answered in clear.
    let url = format!("http://told.test:{port}/");
    let out = curl(&gateway, &certificate, &url, &["--proxytunnel"]);
    assert!(said(&out).ends_with("\n200 403"), "{out:?}");
    untouched.check("nobody was dialled");
}

#[test]
fn a_client_that_sends_all_before_it_reads_is_told() {
    const MUCH: usize = 8 * 1024 * 1024;
    let folder = tempfile::tempdir().expect("a folder");
    let (certificate, key) = ca(folder.path(), "ca");
    let gateway = start("rules", &certificate, &key);
    let chunked = [
        format!("{MUCH:x}\r\n").into_bytes(),
        vec![b'x'; MUCH],
        b"\r\n0\r\n\r\n".to_vec(),
    ];
    for (case, field, body) in [
        (
            "a length",
            format!("Content-Length: {MUCH}"),
            vec![b'x'; MUCH],
        ),
        (
            "chunks",
            "Transfer-Encoding: chunked".to_owned(),
            chunked.concat(),
        ),
    ] {
        let mut client = gateway.connect();
        client.send(format!(
            "CONNECT told.test:80 HTTP/1.1\r\nHost: told.test:80\r\n\
             Proxy-Authorization: Bearer {}\r\n\r\n",
            token("bot")
        ));
        assert_eq!(client.head().expect("an answer").status(), 200, "{case}");
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: told.test\r\n{field}\r\n\r\n"
        ));
        client.send(body);
        let answer = client.response();
        assert_eq!((answer.status, answer.refusal()), (403, "rule"), "{case}");
        assert!(client.closes(), "{case}");
    }
}

/// How the answer inside a tunnel begins that is a stream of HTTP/2.
fn over_http2(gateway: &Gateway) -> String {
    let asking = async {
        let stream = tokio::net::TcpStream::connect(gateway.egress()).await;
        let stream = stream.expect("it accepts");
        let (sender, connection) = h2::client::handshake(stream).await.expect("a handshake");
        tokio::spawn(connection);
        let connect = http::Request::connect("told.test:80")
            .header("proxy-authorization", format!("Bearer {}", token("bot")))
            .body(())
            .expect("a request");
        let mut sender = sender.ready().await.expect("room");
        let (answer, mut up) = sender.send_request(connect, false).expect("sent");
        let answer = answer.await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let request = "GET / HTTP/1.1\r\nHost: told.test\r\n\r\n";
        up.send_data(request.into(), false).expect("sent");
        let mut body = answer.into_body();
        let mut text = Vec::new();
        while let Some(part) = body.data().await {
            text.extend_from_slice(&part.expect("a part"));
        }
        String::from_utf8_lossy(&text[..12]).into_owned()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let asking = async { tokio::time::timeout(DEADLINE, asking).await };
    runtime.block_on(asking).expect("in time")
}

#[test]
fn others_are_refused_as_ever() {
    let folder = tempfile::tempdir().expect("a folder");
    let (certificate, key) = ca(folder.path(), "ca");
    let gateway = start("rules", &certificate, &key);
    let untouched = Untouched::listen();
    for (case, host) in [
        ("a rule that does not say so", "plain.test"),
        ("no rule at all", "unknown.test"),
    ] {
        let url = format!("https://{host}:{}/", untouched.port());
        let out = curl(&gateway, &certificate, &url, &[]);
        assert!(said(&out).ends_with("\n403 000"), "{case}: {out:?}");
    }
    // Who is nobody hears nothing but that.
    let mut nobody = Conn::to(gateway.egress());
    let told = format!("told.test:{}", untouched.port());
    nobody.send(format!("CONNECT {told} HTTP/1.1\r\nHost: {told}\r\n\r\n"));
    assert_eq!(nobody.response_to("CONNECT").status, 407);
    // Who does not trust the CA is not told, and the record says what happened.
    let other = Pki::new("another CA");
    let url = format!("https://told.test:{}/", untouched.port());
    let out = curl(&gateway, other.ca(), &url, &[]);
    assert_eq!(out.status.code(), Some(60), "{out:?}");
    let record = gateway.record("of the handshake", |record| {
        record["destination_host"] == "told.test" && record["agent_id"] == "bot"
    });
    let detail = record["detail"].as_str().expect("a detail");
    assert!(
        detail.contains("may not trust refusals.certificate"),
        "{detail}"
    );
    untouched.check("nobody was dialled");
}

#[test]
fn all_that_policy_refuses_and_nothing_that_it_allows() {
    let folder = tempfile::tempdir().expect("a folder");
    let (certificate, key) = ca(folder.path(), "ca");
    let gateway = start("all", &certificate, &key);
    let untouched = Untouched::listen();
    for host in ["told.test", "plain.test", "unknown.test"] {
        let url = format!("https://{host}:{}/", untouched.port());
        let out = curl(&gateway, &certificate, &url, &[]);
        assert!(said(&out).ends_with("\n200 403"), "{host}: {out:?}");
    }
    untouched.check("nobody was dialled");
    // What is allowed comes to its destination untouched: the first bytes that
    // the origin sees are the client's own.
    let origin = Origin::serve(|mut conn, _| {
        let first = conn.exactly(5);
        conn.send(first);
    });
    let mut conn = gateway.connect();
    let open = format!("open.test:{}", origin.port());
    conn.send(format!(
        "CONNECT {open} HTTP/1.1\r\nHost: {open}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
        token("bot")
    ));
    assert_eq!(conn.response_to("CONNECT").status, 200);
    conn.send(support::tls::Hello::to("open.test").bytes());
    assert_eq!(conn.exactly(1), [0x16]);
    // What comes inside, and is no request, ends it.
    for (case, bytes) in [
        ("no TLS and no HTTP", &b"\x05\x01\x00\r\n\r\n"[..]),
        ("a line feed alone", b"GET / HTTP/1.1\n\n"),
        ("half a hello", b"\x16\x03\x01\xff\xff\x00\x00"),
    ] {
        let mut conn = gateway.connect();
        conn.send(format!(
            "CONNECT told.test:443 HTTP/1.1\r\nHost: told.test\r\nProxy-Authorization: Bearer {}\r\n\r\n",
            token("bot")
        ));
        assert_eq!(conn.response_to("CONNECT").status, 200, "{case}");
        conn.send(bytes);
        conn.finish();
        conn.rest();
    }
    let odd = |record: &serde_json::Value| {
        record["detail"] == "to be told inside the tunnel: what came was no request"
    };
    gateway.record("of what was no request", odd);
}

#[test]
fn another_ca_comes_into_force_and_a_broken_one_does_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let (certificate, key) = ca(folder.path(), "ca");
    let (other, other_key) = ca(folder.path(), "other");
    let gateway = start("all", &certificate, &key);
    let url = "https://told.test/";
    let first = std::fs::read(&certificate).expect("a file");
    let kept = folder.path().join("first.pem");
    std::fs::write(&kept, &first).expect("a copy");
    assert!(said(&curl(&gateway, &kept, url, &[])).ends_with("\n200 403"));
    // Half a file, and then a certificate that is not the key's.
    replace(&certificate, &first[..first.len() / 2]);
    wait_for("the half to be refused", || {
        let lines = gateway.lines("the new CA for refusals is refused; the old one stays in force");
        (!lines.is_empty()).then_some(())
    });
    assert!(said(&curl(&gateway, &kept, url, &[])).ends_with("\n200 403"));
    let told = || gateway.ask_admin("/ready").json()["refusals"]["refused"].clone();
    let refused = wait_for("/ready to say so", || told().as_str().map(str::to_owned));
    assert!(refused.contains("ca.pem"), "{refused}");
    replace(&key, &std::fs::read(&other_key).expect("a key"));
    replace(&certificate, &std::fs::read(&other).expect("a file"));
    wait_for("the other CA", || {
        let lines = gateway.lines("another CA for refusals is in force");
        (!lines.is_empty()).then_some(())
    });
    assert!(said(&curl(&gateway, &other, url, &[])).ends_with("\n200 403"));
    wait_for("/ready to be content", || told().is_null().then_some(()));
    assert_eq!(curl(&gateway, &kept, url, &[]).status.code(), Some(60));
}

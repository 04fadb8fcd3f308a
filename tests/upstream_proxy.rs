//! The parent proxy: real Squid and tinyproxy, and one made by hand that
//! answers whatever a test wants. What is checked is who was asked for what,
//! and that nothing passes beside it.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each test uses a part of what is shared")]
mod support;

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use support::conn::{Conn, Response};
use support::front::TlsFront;
use support::gateway::{Gateway, LOOPBACK_POLICY, token};
use support::grpc::{GrpcOrigin, echoes};
use support::names::Names;
use support::origin::{Origin, Untouched};
use support::parent::{ByHand, RealParent, carry, credentials};
use support::pki::{Pki, replace};
use support::tls::Hello;
use support::{ports, wait_for};

/// Any bytes may pass in a tunnel here.
const ANY_BYTES: &str = r#"
version: 1
rules:
  - name: test-names
    action: allow
    agents: any
    hosts: ["*.test"]
    addresses: ["127.0.0.0/8"]
    ports: any
    tls: any
"#;

/// A gateway behind the parent at this URL.
fn behind(url: &str, more: &[(&str, &str)]) -> Gateway {
    let mut settings = vec![("upstream_proxy.url", url)];
    settings.extend(more);
    Gateway::start(LOOPBACK_POLICY, &settings)
}

fn get(gateway: &Gateway, agent: &str, url: &str) -> Response {
    let mut client = gateway.connect();
    let host = url.split('/').nth(2).expect("a host");
    client.send(format!(
        "GET {url} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
        token(agent)
    ));
    client.response()
}

/// Asks for a tunnel; gives the connection with it where it was given.
fn tunnel(gateway: &Gateway, to: &str) -> Result<Conn, Box<Response>> {
    let mut client = gateway.connect();
    client.send(format!(
        "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
        token("bot")
    ));
    let answer = client.response_to("CONNECT");
    if answer.status == 200 {
        Ok(client)
    } else {
        Err(Box::new(answer))
    }
}

fn refused(result: Result<Conn, Box<Response>>) -> Response {
    match result {
        Ok(_) => panic!("a tunnel was given"),
        Err(answer) => *answer,
    }
}

/// curl through the gateway, as a user has it.
fn curl(gateway: &Gateway, more: &[&str], ca: Option<&Path>, url: &str) -> String {
    let mut command = Command::new("curl");
    command.env_clear().args(["-sS", "-f", "--max-time", "20"]);
    command
        .arg("-x")
        .arg(format!("http://bot:{}@{}", token("bot"), gateway.egress()));
    if let Some(ca) = ca {
        command.arg("--cacert").arg(ca);
    }
    let out = command.args(more).arg(url).output().expect("curl runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn requests_tunnels_and_routes_go_by_squid() {
    let squid = RealParent::squid();
    let pki = Pki::new("the origin's CA");
    let folder = tempfile::tempdir().expect("a folder");
    let file = credentials(folder.path(), "gateway:hunter2\n");
    let origin = Origin::ok();
    let front = TlsFront::before(
        origin.address(),
        &pki.server("a", &["a.test"]),
        &["http/1.1"],
    );
    let routes = format!(
        "[{{name: api, to: \"https://a.test:{}\", ca: {}}}]",
        front.port(),
        pki.ca().display()
    );
    let gateway = behind(
        &squid.url(),
        &[
            (
                "upstream_proxy.credentials_file",
                &file.display().to_string(),
            ),
            ("routes", &routes),
        ],
    );

    let plain = format!("http://a.test:{}/plain?q=1", origin.port());
    assert_eq!(curl(&gateway, &[], None, &plain), "ok");
    let head = origin.last();
    assert_eq!(head.asks().1, "/plain?q=1");
    let host = format!("a.test:{}", origin.port());
    assert_eq!(
        head.field("host"),
        Some(host.as_str()),
        "the name, not the address"
    );
    assert_eq!(head.field("proxy-authorization"), None);

    let secure = format!("https://a.test:{}/secure", front.port());
    assert_eq!(curl(&gateway, &[], Some(pki.ca()), &secure), "ok");
    let mut client = gateway.connect();
    client.send(format!(
        "GET /routes/api/x HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer {}\r\n\r\n",
        token("bot")
    ));
    assert_eq!(client.response().status, 200);
    let names: Vec<_> = front
        .handshakes()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        names,
        [Some("a.test".to_owned()), Some("a.test".to_owned())]
    );

    for method in ["GET", "CONNECT"] {
        let record = gateway.record(method, |record| record["method"] == method);
        assert_eq!(
            record["via_proxy"],
            format!("127.0.0.1:{}", squid.port),
            "{record}"
        );
        assert_eq!(record["destination_ip"], "127.0.0.1");
        assert_eq!(record["destination_host"], "a.test");
        assert_eq!(record["reason"], "ok");
    }
    let record = gateway.record("the route's", |record| record["path"] == "/x");
    assert_eq!(record["route"], "api");
    // Squid writes down what has ended: for the address, by whom it knows.
    drop(gateway);
    for (count, port) in [(1, origin.port()), (2, front.port())] {
        for line in squid.logged(count, &format!("CONNECT 127.0.0.1:{port}")) {
            assert!(line.contains(" gateway "), "{line}");
        }
    }
}

#[test]
fn tinyproxy_answers_in_http_1_0() {
    let tinyproxy = RealParent::tinyproxy();
    let origin = Origin::ok();
    let gateway = behind(&tinyproxy.url(), &[]);
    for path in ["one", "two"] {
        let url = format!("http://a.test:{}/{path}", origin.port());
        assert_eq!(get(&gateway, "bot", &url).body, b"ok");
    }
    assert_eq!(
        origin.connections(),
        1,
        "the tunnel is kept for the next request"
    );
    tinyproxy.logged(1, &format!("127.0.0.1:{}", origin.port()));
}

#[test]
fn tunnels_that_are_kept_belong_to_one_agent_and_one_destination() {
    let parent = ByHand::relaying();
    let (left, right) = (Origin::ok(), Origin::ok());
    let gateway = behind(&parent.url(), &[]);
    let left_url = format!("http://a.test:{}/", left.port());
    let right_url = format!("http://a.test:{}/", right.port());
    for (agent, url, connections) in [
        ("bot", &left_url, 1),
        ("bot", &left_url, 1),
        ("other", &left_url, 2),
        ("bot", &right_url, 3),
        ("other", &left_url, 3),
        ("bot", &right_url, 3),
    ] {
        let answer = get(&gateway, agent, url);
        assert_eq!(answer.status, 200, "{agent} {url}");
        assert_eq!(parent.front.connections(), connections, "{agent} {url}");
    }
    assert_eq!((left.requests().len(), right.requests().len()), (4, 2));
}

#[test]
fn what_the_parent_may_answer_instead() {
    let untouched = Untouched::listen();
    let to = format!("a.test:{}", untouched.port());
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(20_000));
    let many = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
    #[rustfmt::skip]
    let cases: [(&str, Vec<u8>, u16, &str, &str); 14] = [
        ("it wants another credential", b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"corp\"\r\nContent-Length: 6\r\n\r\nsecret".to_vec(), 502, "parent_credential", "it answered 407"),
        ("it refuses", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_vec(), 502, "parent_refused", "it answered 403"),
        ("it does not know CONNECT", b"HTTP/1.1 405 Method Not Allowed\r\n\r\n".to_vec(), 502, "parent_refused", "it answered 405"),
        ("it does not get there", b"HTTP/1.1 503 Service Unavailable\r\n\r\n".to_vec(), 502, "parent_failed", "it answered 503"),
        ("it waits in vain", b"HTTP/1.0 504 Gateway Timeout\r\n\r\n".to_vec(), 502, "parent_failed", "it answered 504"),
        ("it sends us elsewhere", b"HTTP/1.1 302 Found\r\nLocation: http://login.test/\r\n\r\n".to_vec(), 502, "parent_protocol", "it answered 302"),
        ("another protocol", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".to_vec(), 502, "parent_protocol", "it answered 101"),
        ("a head without an end", long.into_bytes(), 502, "parent_protocol", "more than 16384 bytes"),
        ("interim answers without an end", many.into_bytes(), 502, "parent_protocol", "more than 16384 bytes"),
        ("garbage", b"\x15\x03\x03\x00\x02\x02\x28\r\n\r\n".to_vec(), 502, "parent_protocol", "no HTTP"),
        ("bare line feeds", b"HTTP/1.1 200 OK\n\n".to_vec(), 502, "parent_protocol", "line feed"),
        ("another protocol's greeting", b"220 mail.test ESMTP\r\n\r\n".to_vec(), 502, "parent_protocol", "no HTTP"),
        ("half a head", b"HTTP/1.1 200 OK\r\nX".to_vec(), 502, "parent_protocol", "closed the connection"),
        ("nothing", Vec::new(), 502, "parent_protocol", "closed the connection"),
    ];
    for (case, says, status, code, detail) in cases {
        let parent = ByHand::saying(says);
        let gateway = behind(&parent.url(), &[]);
        let by_tunnel = refused(tunnel(&gateway, &to));
        let by_request = get(&gateway, "bot", &format!("http://{to}/"));
        for answer in [by_tunnel, by_request] {
            assert_eq!(answer.status, status, "{case}: {:?}", answer.head);
            assert_eq!(answer.refusal(), code, "{case}");
            assert_eq!(answer.field("proxy-authenticate"), None, "{case}");
            let body = String::from_utf8_lossy(&answer.body);
            assert!(
                !body.contains("secret") && body.contains("parent proxy"),
                "{case}: {body}"
            );
            let record = gateway.record_of(&answer);
            let said = record["detail"].as_str().expect("a detail");
            assert!(said.contains(detail), "{case}: {said}");
            assert_eq!(record["action_allowed"], true, "{case}");
        }
        assert_eq!(
            parent.targets(),
            vec![format!("127.0.0.1:{}", untouched.port()); 2],
            "{case}"
        );
        untouched.check(case);
    }
}

#[test]
fn a_parent_that_says_nothing_is_waited_for_so_long() {
    // It reads, and holds the connection until the gateway gives up.
    let parent = ByHand::answering(|mut conn, _| {
        conn.rest();
    });
    let gateway = behind(&parent.url(), &[("timeouts.connect", "200ms")]);
    let answers = [
        refused(tunnel(&gateway, "a.test:443")),
        get(&gateway, "bot", "http://a.test/"),
    ];
    for answer in answers {
        assert_eq!((answer.status, answer.refusal()), (504, "parent_timeout"));
    }
    let metrics = gateway.metrics();
    assert!(
        metrics.contains("agentport_upstream_connect_seconds_count{outcome=\"parent_timeout\"} 2"),
        "{metrics}"
    );
}

#[test]
fn a_parent_that_is_not_there() {
    let port = ports::free();
    let origin = Untouched::listen();
    for url in [
        format!("http://127.0.0.1:{port}"),
        format!("http://proxy.test:{port}"),
        "http://nowhere.invalid:3128".to_owned(),
    ] {
        let gateway = behind(&url, &[]);
        let to = format!("a.test:{}", origin.port());
        for answer in [
            refused(tunnel(&gateway, &to)),
            get(&gateway, "bot", &format!("http://{to}/")),
        ] {
            assert_eq!(
                (answer.status, answer.refusal()),
                (502, "parent_unreachable"),
                "{url}"
            );
        }
    }
}

#[test]
fn the_next_address_is_asked_for_where_the_parent_does_not_get_to_the_first() {
    let origin = Origin::ok();
    let parent = ByHand::answering(|mut conn, head| {
        let (_, target) = head.asks();
        if target.starts_with("127.0.0.2") {
            conn.send_lossy("HTTP/1.1 503 Service Unavailable\r\n\r\n");
            return;
        }
        let (_, port) = target.rsplit_once(':').expect("a port");
        let port = port.parse().expect("a port");
        let there = TcpStream::connect(("127.0.0.1", port)).expect("the origin listens");
        conn.send("HTTP/1.1 200 OK\r\n\r\n");
        carry(conn, there);
    });
    let names = Names::serve();
    names.set("two.test", &["127.0.0.2", "127.0.0.3"]);
    let gateway = Gateway::start_with_names(
        LOOPBACK_POLICY,
        &[("upstream_proxy.url", &parent.url())],
        names,
    );
    let to = format!("two.test:{}", origin.port());
    let answer = get(&gateway, "bot", &format!("http://{to}/"));
    assert_eq!(answer.status, 200);
    assert_eq!(gateway.record_of(&answer)["destination_ip"], "127.0.0.3");
    let mut client = tunnel(&gateway, &to).expect("a tunnel");
    client.send("GET / HTTP/1.1\r\nHost: two.test\r\n\r\n");
    let tried: Vec<_> = parent.targets().into_iter().take(4).collect();
    let port = origin.port();
    let (first, second) = (format!("127.0.0.2:{port}"), format!("127.0.0.3:{port}"));
    assert_eq!(tried, [&first, &second, &first, &second].map(String::clone));
}

#[test]
fn what_comes_behind_the_answer_is_the_destinations() {
    let parent = ByHand::answering(|mut conn, _| {
        conn.send("HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n220 ready\r\n");
        let said = conn.line().unwrap_or_default();
        conn.send_lossy(format!("you said {said}"));
    });
    let gateway = Gateway::start(ANY_BYTES, &[("upstream_proxy.url", &parent.url())]);
    let mut client = tunnel(&gateway, "mail.test:25").expect("a tunnel");
    assert_eq!(client.line().as_deref(), Some("220 ready"));
    client.send("hello\r\n");
    assert_eq!(client.rest(), b"you said hello");
}

#[test]
fn a_parent_over_tls() {
    let pki = Pki::new("the company's CA");
    let parent = ByHand::relaying();
    let good = TlsFront::before(
        parent.address(),
        &pki.server("p", &["proxy.test"]),
        &["http/1.1"],
    );
    let bad = TlsFront::before(parent.address(), &pki.server("q", &["other.test"]), &[]);
    let origin = Origin::ok();
    let secure = TlsFront::before(
        origin.address(),
        &pki.server("a", &["a.test"]),
        &["http/1.1"],
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = credentials(folder.path(), "gateway:hunter2");
    let ca = pki.ca().display().to_string();
    let url = format!("https://proxy.test:{}", good.port());
    let gateway = behind(
        &url,
        &[
            ("upstream_proxy.ca", &ca),
            (
                "upstream_proxy.credentials_file",
                &file.display().to_string(),
            ),
        ],
    );
    for _ in 0..2 {
        let plain = format!("http://a.test:{}/", origin.port());
        assert_eq!(get(&gateway, "bot", &plain).body, b"ok");
    }
    let inner = format!("https://a.test:{}/", secure.port());
    assert_eq!(curl(&gateway, &[], Some(pki.ca()), &inner), "ok");
    let basic = "Basic Z2F0ZXdheTpodW50ZXIy";
    assert_eq!(parent.last().field("proxy-authorization"), Some(basic));
    assert!(
        good.handshakes()
            .contains(&(Some("proxy.test".into()), Some(b"http/1.1".to_vec())))
    );

    // The server speaks first, inside TLS.
    let greets = Origin::serve(|mut conn, _| {
        conn.send_lossy("220 ready\r\n");
        conn.rest();
    });
    let any = Gateway::start(
        ANY_BYTES,
        &[("upstream_proxy.url", &url), ("upstream_proxy.ca", &ca)],
    );
    let mut client = tunnel(&any, &format!("mail.test:{}", greets.port())).expect("a tunnel");
    assert_eq!(client.line().as_deref(), Some("220 ready"));

    // A certificate for another name, and one that nobody here trusts.
    let untouched = parent.front.connections();
    let elsewhere = format!("https://proxy.test:{}", bad.port());
    for (url, ca) in [(&elsewhere, Some(&ca)), (&url, None)] {
        let trust: Vec<_> = ca
            .iter()
            .map(|ca| ("upstream_proxy.ca", ca.as_str()))
            .collect();
        let gateway = behind(url, &trust);
        let answer = refused(tunnel(&gateway, "a.test:443"));
        assert_eq!(
            (answer.status, answer.refusal()),
            (502, "parent_unreachable")
        );
        let record = gateway.record_of(&answer);
        let detail = record["detail"].as_str().expect("a detail");
        assert!(detail.contains("certificate"), "{detail}");
    }
    assert_eq!(parent.front.connections(), untouched, "nothing was sent");
}

#[test]
fn credentials_change_while_it_serves() {
    let squid = RealParent::squid();
    let folder = tempfile::tempdir().expect("a folder");
    let file = credentials(folder.path(), "gateway:wrong");
    let origin = Origin::ok();
    let gateway = behind(
        &squid.url(),
        &[(
            "upstream_proxy.credentials_file",
            &file.display().to_string(),
        )],
    );
    let url = format!("http://a.test:{}/", origin.port());
    let answer = get(&gateway, "bot", &url);
    assert_eq!(
        (answer.status, answer.refusal()),
        (502, "parent_credential")
    );
    assert_eq!(answer.field("proxy-authenticate"), None);

    let in_force = || {
        gateway
            .lines("the files of upstream_proxy are in force")
            .len()
    };
    let before = in_force();
    replace(&file, b"gateway:hunter2\n");
    wait_for("the new credentials", || {
        (in_force() > before).then_some(())
    });
    assert_eq!(get(&gateway, "bot", &url).status, 200);

    replace(&file, b"hunter2 alone\n");
    let refusal = wait_for("the refusal", || {
        let ready = gateway.ask_admin("/ready").json();
        ready["upstream_proxy"]["refused"]
            .as_str()
            .map(str::to_owned)
    });
    assert!(
        refusal.contains("user:password") && !refusal.contains("hunter2"),
        "{refusal}"
    );
    // Another agent, whose tunnel is not there yet: the last good ones serve.
    assert_eq!(get(&gateway, "other", &url).status, 200);
    let said = format!("{:?}", gateway.said());
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn what_is_reached_without_the_parent() {
    let parent = ByHand::saying("HTTP/1.1 403 Forbidden\r\n\r\n");
    let origin = Origin::ok();
    let list = format!(
        "near.test, *.inside.test, 127.0.0.9, ported.test:{}",
        origin.port()
    );
    let names = Names::serve();
    names.set("named.test", &["127.0.0.9"]);
    let gateway = Gateway::start_with_names(
        LOOPBACK_POLICY,
        &[
            ("upstream_proxy.url", &parent.url()),
            ("upstream_proxy.no_proxy", &list),
        ],
        names,
    );
    for (host, status) in [
        ("near.test", 200),
        ("a.near.test", 200),
        ("a.inside.test", 200),
        ("inside.test", 502),
        ("ported.test", 200),
        ("far.test", 502),
    ] {
        let answer = get(
            &gateway,
            "bot",
            &format!("http://{host}:{}/", origin.port()),
        );
        assert_eq!(answer.status, status, "{host}");
        let via = &gateway.record_of(&answer)["via_proxy"];
        assert!(status == 502 || via.is_null(), "{host}: {via}");
        let to = format!("{host}:{}", origin.port());
        assert_eq!(tunnel(&gateway, &to).is_ok(), status == 200, "{host}");
    }
    // By the address that the name has; nobody listens there.
    let asked = parent.targets().len();
    let answer = get(
        &gateway,
        "bot",
        &format!("http://named.test:{}/", origin.port()),
    );
    assert_eq!((answer.status, answer.refusal()), (502, "connect_refused"));
    assert_eq!(parent.targets().len(), asked);
}

#[test]
fn no_agent_reaches_the_parent_itself() {
    let parent = ByHand::relaying();
    let port = parent.address().port();
    // By its address, or by another name of its address.
    for url in [
        format!("http://127.0.0.1:{port}"),
        format!("http://proxy.test:{port}"),
    ] {
        let gateway = behind(&url, &[]);
        for host in ["127.0.0.1", "proxy.test", "alias.test"] {
            let to = format!("{host}:{port}");
            let policy = format!(
                "{LOOPBACK_POLICY}  - name: literal\n    action: allow\n    agents: any\n    hosts: [\"127.0.0.1\"]\n    addresses: [\"127.0.0.0/8\"]\n    ports: any\n"
            );
            if host == "127.0.0.1" {
                gateway.change_policy(&policy);
            }
            for answer in [
                refused(tunnel(&gateway, &to)),
                get(&gateway, "bot", &format!("http://{to}/")),
            ] {
                assert_eq!(
                    (answer.status, answer.refusal()),
                    (403, "own_listener"),
                    "{url} {to}"
                );
            }
        }
    }
    assert_eq!(parent.front.connections(), 0);
}

#[test]
fn a_parent_that_wants_names_is_given_names() {
    let parent = ByHand::relaying();
    let origin = Origin::ok();
    let to = format!("a.test:{}", origin.port());
    let gateway = behind(&parent.url(), &[("upstream_proxy.address", "name")]);
    let answer = get(&gateway, "bot", &format!("http://{to}/"));
    assert_eq!(answer.status, 200);
    assert!(
        gateway.record_of(&answer)["destination_ip"].is_null(),
        "nobody knows"
    );
    drop(tunnel(&gateway, &to).expect("a tunnel"));
    assert_eq!(parent.targets(), [to.clone(), to.clone()]);
    // The addresses are still checked here.
    gateway.names().set("inner.test", &["10.0.0.1"]);
    let answer = refused(tunnel(&gateway, "inner.test:443"));
    assert_eq!((answer.status, answer.refusal()), (403, "address_private"));
    assert_eq!(parent.targets().len(), 2);
}

#[test]
fn where_only_the_parent_resolves_names() {
    let parent = ByHand::relaying();
    let origin = Origin::ok();
    let policy = r#"
version: 1
rules:
  - name: public
    action: allow
    agents: any
    hosts: ["*.corp", "localhost"]
    ports: any
  - name: at-one-address
    action: allow
    agents: any
    hosts: ["bound.corp"]
    addresses: ["192.0.2.0/24"]
    ports: any
  - name: by-address
    action: allow
    agents: any
    addresses: ["198.51.100.0/24"]
    ports: any
"#;
    let gateway = Gateway::start(
        policy,
        &[
            ("upstream_proxy.url", &parent.url()),
            ("upstream_proxy.address", "unchecked"),
        ],
    );
    let to = format!("a.corp:{}", origin.port());
    for _ in 0..2 {
        assert_eq!(get(&gateway, "bot", &format!("http://{to}/")).body, b"ok");
    }
    let mut client = tunnel(&gateway, &to).expect("a tunnel");
    client.send(Hello::to("a.corp").bytes());
    assert_eq!(parent.targets(), [to.clone(), to]);
    assert!(
        !gateway
            .names()
            .asked()
            .iter()
            .any(|name| name.contains("corp"))
    );
    // Leave that is given for some addresses is none where nobody knows them;
    // what is an address itself, or this machine, is checked as ever.
    for (to, code) in [
        ("bound.corp:443", "address_not_allowed"),
        ("other.test:443", "address_not_allowed"),
        ("localhost:443", "address_loopback"),
        ("127.0.0.1:443", "no_rule"),
    ] {
        let answer = refused(tunnel(&gateway, to));
        assert_eq!((answer.status, answer.refusal()), (403, code), "{to}");
    }
    assert_eq!(parent.targets().len(), 2);
}

#[test]
fn websockets_go_by_the_parent() {
    let parent = ByHand::relaying();
    let origin = Origin::serve(|mut conn, _| {
        let head = conn.head().expect("a request");
        assert_eq!(head.field("upgrade"), Some("websocket"));
        conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n");
        let said = conn.exactly(4);
        conn.send(said);
        conn.rest();
    });
    let gateway = behind(&parent.url(), &[]);
    let mut client = gateway.connect();
    let host = format!("a.test:{}", origin.port());
    client.send(format!(
        "GET http://{host}/ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nProxy-Authorization: Bearer {}\r\n\r\n",
        token("bot")
    ));
    assert_eq!(client.head().expect("an answer").status(), 101);
    client.send("ping");
    assert_eq!(client.exactly(4), b"ping");
    assert_eq!(parent.targets(), [format!("127.0.0.1:{}", origin.port())]);
}

#[test]
fn a_large_body_passes_whole() {
    let parent = ByHand::relaying();
    let origin = Origin::http(|_, body| {
        let mut out =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        out.extend(body);
        out
    });
    let gateway = behind(&parent.url(), &[]);
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("body");
    std::fs::write(&file, &body).expect("written");
    let got = folder.path().join("got");
    let data = format!("@{}", file.display());
    let url = format!("http://a.test:{}/", origin.port());
    let got_at = got.display().to_string();
    curl(
        &gateway,
        &["--data-binary", &data, "-o", &got_at],
        None,
        &url,
    );
    assert_eq!(std::fs::read(&got).expect("an answer"), body);
}

/// Agents may go to `*.test`, at these addresses where there are any, and
/// whatever else this says.
fn going(addresses: &str, more: &str) -> String {
    let addresses = match addresses {
        "" => String::new(),
        some => format!("    addresses: [{some:?}]\n"),
    };
    format!(
        "version: 1\nrules:\n  - name: going\n    action: allow\n    agents: any\n    hosts: [\"*.test\"]\n{addresses}    ports: any\n    tls: any\n{more}"
    )
}

#[test]
fn what_goes_by_a_name_is_judged_again() {
    const HERE: &str = "127.0.0.0/8";
    const BY_ADDRESS: &str = "  - name: not-there\n    action: deny\n    agents: any\n    addresses: [\"127.0.0.1\"]\n    ports: any\n";
    const BY_NAME: &str = "  - name: not-there\n    action: deny\n    agents: any\n    hosts: [\"a.test\"]\n    ports: any\n";
    // Says every line again.
    let lines = Origin::serve(|mut conn, _| {
        conn.send_lossy("ready\r\n");
        while let Some(line) = conn.line() {
            conn.send_lossy(format!("{line}\r\n"));
        }
    });
    // Answers with one event, and then nothing.
    let events = Origin::serve(|mut conn, _| {
        if conn.head().is_some() {
            conn.send_lossy(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
            );
            let _ = conn.closes();
        }
    });
    for (case, asks, before, after) in [
        (
            "its addresses are to be checked from now on",
            "unchecked",
            going("", ""),
            going(HERE, ""),
        ),
        (
            "its name is refused from now on",
            "unchecked",
            going("", ""),
            going("", BY_NAME),
        ),
        (
            "it is allowed at other addresses",
            "name",
            going(HERE, ""),
            going("127.0.0.9", ""),
        ),
        (
            "one that it may have is refused",
            "name",
            going(HERE, ""),
            going(HERE, BY_ADDRESS),
        ),
    ] {
        let parent = ByHand::relaying();
        let gateway = Gateway::start(
            &before,
            &[
                ("upstream_proxy.url", &parent.url()),
                ("upstream_proxy.address", asks),
            ],
        );
        let mut tunnel = tunnel(&gateway, &format!("a.test:{}", lines.port())).expect("a tunnel");
        assert_eq!(tunnel.line().as_deref(), Some("ready"), "{case}");
        let host = format!("a.test:{}", events.port());
        let mut exchange = gateway.connect();
        exchange.send(format!(
            "GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
            token("bot")
        ));
        assert_eq!(exchange.head().expect("a head").status(), 200, "{case}");
        exchange.until(b"data: 1\n\n\r\n");
        assert_eq!(
            parent.targets(),
            [format!("a.test:{}", lines.port()), host.clone()],
            "{case}"
        );

        // The same policy by another name ends nothing.
        gateway.change_policy(&before.replace("name: going", "name: still-going"));
        tunnel.send("hello\r\n");
        assert_eq!(tunnel.line().as_deref(), Some("hello"), "{case}");
        gateway.change_policy(&after);
        assert_eq!(tunnel.rest(), b"", "{case}");
        assert_eq!(exchange.rest(), b"", "{case}: cut, and without an end");
        for event in ["tunnel_closed", "request"] {
            let record = gateway.record(case, |record| record["event"] == event);
            assert_eq!(record["reason"], "policy_changed", "{case}: {record}");
            assert_eq!(record["destination_ip"], serde_json::Value::Null, "{case}");
        }
    }
}

#[test]
fn every_address_of_a_name_that_the_parent_is_given_must_pass() {
    let parent = ByHand::relaying();
    let origin = Origin::ok();
    let names = Names::serve();
    names.set("both.test", &["127.0.0.1", "10.0.0.1"]);
    names.set("near.test", &["127.0.0.1", "10.0.0.1"]);
    let url = parent.url();
    for (asks, host, status) in [
        ("name", "both.test", 403),
        // Nobody chooses for what is reached without it, or by an address.
        ("name", "near.test", 200),
        ("resolved", "both.test", 200),
    ] {
        let gateway = Gateway::start(
            LOOPBACK_POLICY,
            &[
                ("upstream_proxy.url", &url),
                ("upstream_proxy.address", asks),
                ("upstream_proxy.no_proxy", "near.test"),
                ("resolver.servers", &names.address().to_string()),
            ],
        );
        let answer = get(
            &gateway,
            "bot",
            &format!("http://{host}:{}/", origin.port()),
        );
        assert_eq!(answer.status, status, "{asks} {host}");
        if status == 403 {
            assert_eq!(answer.refusal(), "address_private");
            let record = gateway.record_of(&answer);
            assert_eq!(record["destination_ip"], "10.0.0.1", "{record}");
            let detail = record["detail"].as_str().expect("a detail");
            assert!(detail.contains("by this name"), "{detail}");
            assert_eq!(parent.front.connections(), 0);
        }
    }
}

#[test]
fn grpc_goes_by_squid_in_tunnels_and_by_routes() {
    let squid = RealParent::squid();
    let pki = Pki::new("the origin's CA");
    let folder = tempfile::tempdir().expect("a folder");
    let file = credentials(folder.path(), "gateway:hunter2\n");
    let origin = GrpcOrigin::serve();
    let front = TlsFront::before(origin.address(), &pki.server("a", &["a.test"]), &["h2"]);
    let routes = format!(
        "[{{name: api, to: \"https://a.test:{}\", ca: {}, http2: only}}]",
        front.port(),
        pki.ca().display()
    );
    let gateway = behind(
        &squid.url(),
        &[
            (
                "upstream_proxy.credentials_file",
                &file.display().to_string(),
            ),
            ("routes", &routes),
        ],
    );
    let talk = async {
        // HTTP/2 that the agent speaks with the origin itself, inside TLS.
        let client = tunnel(&gateway, &format!("a.test:{}", front.port())).expect("a tunnel");
        let (unread, stream) = client.into_parts();
        assert!(unread.is_empty());
        stream.set_nonblocking(true).expect("set");
        let stream = tokio::net::TcpStream::from_std(stream).expect("a stream");
        let tls = tokio_rustls::TlsConnector::from(trusting(&pki, b"h2"))
            .connect("a.test".try_into().expect("a name"), stream)
            .await
            .expect("a handshake");
        let url = format!("https://a.test:{}/Echo", front.port());
        echoes(tls, &url, &[]).await;
        // And HTTP/2 that the gateway speaks with it.
        let tcp = tokio::net::TcpStream::connect(gateway.egress())
            .await
            .expect("the gateway listens");
        let bearer = format!("Bearer {}", token("bot"));
        let url = format!("http://{}/routes/api/Echo", gateway.egress());
        echoes(tcp, &url, &[("authorization", &bearer)]).await;
    };
    within_deadline(talk);
    let said = (Some("a.test".to_owned()), Some(b"h2".to_vec()));
    assert_eq!(front.handshakes(), [said.clone(), said]);
    let record = gateway.record("the route's", |record| record["path"] == "/Echo");
    assert_eq!(record["reason"], "ok", "{record}");
    assert_eq!(record["via_proxy"], format!("127.0.0.1:{}", squid.port));
    // It writes down what has ended.
    drop(gateway);
    squid.logged(2, &format!("CONNECT 127.0.0.1:{}", front.port()));
}

#[test]
fn http2_in_clear_goes_by_tinyproxy_as_http1() {
    let tinyproxy = RealParent::tinyproxy();
    let origin = Origin::ok();
    let gateway = behind(&tinyproxy.url(), &[]);
    let talk = async {
        let tcp = tokio::net::TcpStream::connect(gateway.egress())
            .await
            .expect("the gateway listens");
        let (mut sender, connection) = h2::client::handshake(tcp).await.expect("HTTP/2");
        tokio::spawn(connection);
        // Streams of one connection, each with a request of its own.
        for path in ["one", "two"] {
            let request = http::Request::get(format!("http://a.test:{}/{path}", origin.port()))
                .header("proxy-authorization", format!("Bearer {}", token("bot")))
                .body(())
                .expect("a request");
            sender = sender.ready().await.expect("ready");
            let (answer, _) = sender.send_request(request, true).expect("sent");
            let answer = answer.await.expect("an answer");
            assert_eq!(answer.status(), 200);
            let body = answer.into_body().data().await.expect("a body");
            assert_eq!(body.expect("read"), &b"ok"[..]);
        }
    };
    within_deadline(talk);
    let seen: Vec<_> = origin
        .requests()
        .into_iter()
        .map(|(head, _)| head)
        .collect();
    let starts: Vec<_> = seen.iter().map(|head| head.start.as_str()).collect();
    assert_eq!(starts, ["GET /one HTTP/1.1", "GET /two HTTP/1.1"]);
    assert!(
        seen.iter()
            .all(|head| head.field("proxy-authorization").is_none())
    );
    tinyproxy.logged(1, &format!("127.0.0.1:{}", origin.port()));
}

/// TLS that trusts this CA and speaks this protocol.
fn trusting(pki: &Pki, alpn: &[u8]) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for der in CertificateDer::pem_file_iter(pki.ca()).expect("a CA") {
        roots.add(der.expect("a certificate")).expect("an issuer");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

fn within_deadline(talk: impl Future<Output = ()>) {
    let runtime = support::front::runtime();
    let talk = async { tokio::time::timeout(support::DEADLINE, talk).await };
    runtime.block_on(talk).expect("in time");
}

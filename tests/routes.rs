//! Named routes: origins over TLS for clients that know a base URL and no
//! proxy. Real clients, real handshakes, and origins that must not be reached.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each test uses a part of what is shared")]
mod support;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use support::DEADLINE;
use support::conn::Response as Answer;
use support::front::{TlsFront, runtime};
use support::gateway::{Gateway, token};
use support::origin::{Origin, Untouched};
use support::pki::{Pki, Valid, replace};
use support::wait_for;

/// What every agent may do here: chat, streams, and calls of one service.
const POLICY: &str = r#"
version: 1
rules:
  - name: chat
    action: allow
    agents: any
    hosts: ["*.test"]
    addresses: ["127.0.0.0/8"]
    ports: any
    schemes: [https]
    methods: [GET, POST]
    paths: ["/v1/**", "/echo.Echo/*", "/health"]
"#;

/// A gateway with one route, `api`, to `a.test`.
fn start(pki: &Pki, port: u16, more: &str) -> Gateway {
    let routes = format!(
        "[{{name: api, to: \"https://a.test:{port}\", hosts: [api.internal], ca: {}{more}}}]",
        pki.ca().display()
    );
    Gateway::start(POLICY, &[("routes", &routes)])
}

fn ask(gateway: &Gateway, line: &str, fields: &str) -> Answer {
    let mut client = gateway.connect();
    client.send(format!("{line} HTTP/1.1\r\n{fields}\r\n"));
    client.response()
}

fn bearer(agent: &str) -> String {
    format!("Host: gw\r\nAuthorization: Bearer {}\r\n", token(agent))
}

/// Runs a program of Python with the packages of `tests/setup`.
fn python(program: &str, arguments: &[&str]) -> String {
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv/bin/python");
    let out = Command::new(python)
        .args(["-c", program])
        .args(arguments)
        .env_clear()
        .output()
        .expect("tests/setup has made target/venv");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    said
}

#[test]
fn clients_that_know_a_base_url_alone_reach_the_origin() {
    let pki = Pki::new("the origin's CA");
    let origin = Origin::http(|head, body| {
        let text = format!("{} {}", head.asks().1, String::from_utf8_lossy(body));
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nStrict-Transport-Security: max-age=9\r\n\r\n{text}",
            text.len()
        )
        .into_bytes()
    });
    let front = TlsFront::before(
        origin.address(),
        &pki.server("a", &["a.test"]),
        &["http/1.1"],
    );
    let gateway = start(&pki, front.port(), "");
    let base = format!("http://{}/routes/api/v1", gateway.egress());
    let own = token("bot");
    let said = python(
        r#"
import sys, httpx, requests
base, token = sys.argv[1:]
own = {"Authorization": f"Bearer {token}"}
both = {"X-AgentPort-Token": token, "Authorization": "Bearer sk-origin"}
with httpx.Client(base_url=base, headers=own) as client:
    print(client.post("chat/completions?n=1", json={"model": "m"}).text)
answer = requests.post(base + "/chat/completions", headers=both, data="hello")
print(answer.text, "Strict-Transport-Security" in answer.headers)
"#,
        &[&base, &own],
    );
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines,
        [
            "/v1/chat/completions?n=1 {\"model\":\"m\"}",
            "/v1/chat/completions hello False"
        ]
    );
    let out = Command::new("curl")
        .args(["-sS", "--noproxy", "*", "-H"])
        .arg(format!("X-AgentPort-Token: {own}"))
        .arg(format!("{base}/models"))
        .output()
        .expect("curl runs");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "/v1/models ");
    let heads: Vec<_> = origin
        .requests()
        .into_iter()
        .map(|(head, _)| head)
        .collect();
    for head in &heads {
        assert_eq!(
            head.field("host"),
            Some(format!("a.test:{}", front.port()).as_str())
        );
        for (name, value) in &head.fields {
            assert!(!value.contains(&own), "{name} has the gateway's token");
        }
        assert_eq!(head.field("x-agentport-token"), None);
        assert_eq!(head.field("forwarded"), None);
    }
    let theirs: Vec<_> = heads
        .iter()
        .map(|head| head.field("authorization"))
        .collect();
    assert_eq!(theirs, [None, Some("Bearer sk-origin"), None]);
    for (name, _) in front.handshakes() {
        assert_eq!(name.as_deref(), Some("a.test"));
    }
    let record = gateway.record("through the route", |record| record["method"] == "POST");
    assert_eq!(record["scheme"], "https");
    assert_eq!(record["destination_host"], "a.test");
    assert_eq!(record["path"], "/v1/chat/completions");
    assert_eq!(record["agent_id"], "bot");
    assert_eq!(record["rule"], "chat");
}

#[test]
fn what_does_not_go_by_a_route() {
    let pki = Pki::new("the origin's CA");
    let untouched = Untouched::listen();
    let gateway = start(&pki, untouched.port(), "");
    let auth = bearer("bot");
    let body = format!("{auth}Content-Length: 0\r\n");
    let twice = format!("{auth}Authorization: Bearer x\r\n");
    for (case, line, fields, status, code) in [
        (
            "no credential",
            "GET /routes/api/v1/x",
            "Host: gw\r\n",
            401,
            "no_credential",
        ),
        (
            "the origin's key where ours belongs",
            "GET /routes/api/v1/x",
            "Host: gw\r\nAuthorization: Bearer sk-origin\r\n",
            403,
            "malformed",
        ),
        (
            "two credentials",
            "GET /routes/api/v1/x",
            &twice,
            400,
            "bad_request",
        ),
        ("a method", "DELETE /routes/api/v1/x", &auth, 403, "no_rule"),
        ("a path", "GET /routes/api/admin", &auth, 403, "no_rule"),
        ("dots", "GET /routes/api/v1/../admin", &auth, 403, "no_rule"),
        (
            "escaped dots",
            "POST /routes/api/v1/%2e%2e%2fadmin",
            &body,
            403,
            "no_rule",
        ),
        (
            "a backslash",
            "GET /routes/api/v1\\..\\admin",
            &auth,
            403,
            "no_rule",
        ),
        (
            "another route",
            "GET /routes/apis/v1",
            &auth,
            404,
            "not_found",
        ),
        (
            "an escaped name",
            "GET /routes/%61pi/v1",
            &auth,
            404,
            "not_found",
        ),
        (
            "out of the route",
            "GET /routes/api/../other",
            &auth,
            403,
            "no_rule",
        ),
    ] {
        let answer = ask(&gateway, line, fields);
        assert_eq!(answer.status, status, "{case}: {:?}", answer.head);
        assert_eq!(answer.field("x-agentport-reason"), Some(code), "{case}");
        untouched.check(case);
    }
    // By absolute-form a client means a proxy, whatever the host.
    let answer = ask(
        &gateway,
        "GET http://api.internal/v1/x",
        &format!(
            "Proxy-Authorization: Bearer {}\r\nHost: api.internal\r\n",
            token("bot")
        ),
    );
    assert_eq!(answer.field("x-agentport-reason"), Some("no_rule"));
    // A base is not left, wherever policy would allow to go.
    let routes = format!(
        "[{{name: api, to: \"https://a.test:{}/v1/x\"}}]",
        untouched.port()
    );
    let gateway = Gateway::start(POLICY, &[("routes", &routes)]);
    for path in ["../y", "%2e%2e/y", "..%2fy", "a/../../y", "..;/y"] {
        let answer = ask(&gateway, &format!("GET /routes/api/{path}"), &auth);
        assert_eq!(answer.status, 400, "{path}");
    }
}

#[test]
fn a_certificate_that_is_not_the_origins_gets_no_request() {
    let pki = Pki::new("the origin's CA");
    let other = Pki::new("another CA");
    let untouched = Untouched::listen();
    let at = SocketAddr::from(([127, 0, 0, 1], untouched.port()));
    for (case, issued, says) in [
        (
            "another name",
            pki.server("b", &["b.test"]),
            "not valid for name",
        ),
        (
            "expired",
            pki.server_valid("old", &["a.test"], Valid::Past),
            "expired",
        ),
        (
            "not yet valid",
            pki.server_valid("new", &["a.test"], Valid::Future),
            "not valid yet",
        ),
        (
            "another CA",
            other.server("a", &["a.test"]),
            "UnknownIssuer",
        ),
        (
            "a client's",
            pki.client("client", 7, &["a.test"], Valid::Now),
            "",
        ),
    ] {
        let front = TlsFront::before(at, &issued, &["h2", "http/1.1"]);
        let gateway = start(&pki, front.port(), "");
        let answer = ask(&gateway, "GET /routes/api/v1/x", &bearer("bot"));
        assert_eq!(answer.status, 502, "{case}");
        assert_eq!(
            answer.field("x-agentport-reason"),
            Some("upstream_certificate"),
            "{case}"
        );
        let status = answer.field("proxy-status").expect("a field");
        assert!(status.contains("tls_certificate_error"), "{case}: {status}");
        let record = gateway.record_of(&answer);
        assert_eq!(record["action_allowed"], true, "{case}");
        let detail = record["detail"].as_str().expect("a detail");
        assert!(detail.contains(says), "{case}: {detail}");
        untouched.check(case);
    }
    // The system's CAs know nothing of this one.
    let front = TlsFront::before(at, &pki.server("a", &["a.test"]), &[]);
    let routes = format!("[{{name: api, to: \"https://a.test:{}\"}}]", front.port());
    let gateway = Gateway::start(POLICY, &[("routes", &routes)]);
    let answer = ask(&gateway, "GET /routes/api/v1/x", &bearer("bot"));
    assert_eq!(
        answer.field("x-agentport-reason"),
        Some("upstream_certificate")
    );
}

#[test]
fn redirects_within_the_origin_lead_through_the_route() {
    let pki = Pki::new("the origin's CA");
    let origin = Origin::http(|head, _| {
        let to = head.field("x-to").unwrap_or("/").to_owned();
        format!("HTTP/1.1 307 Moved\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").into_bytes()
    });
    let front = TlsFront::before(origin.address(), &pki.server("a", &["a.test"]), &[]);
    let gateway = start(&pki, front.port(), "");
    let port = front.port();
    let token = token("bot");
    for (case, host, path, to, expected) in [
        (
            "to itself",
            "gw",
            "/routes/api/v1/a",
            format!("https://a.test:{port}/v1/b?x=1"),
            "/routes/api/v1/b?x=1",
        ),
        (
            "by a path",
            "gw",
            "/routes/api/v1/a",
            "/v1/b".into(),
            "/routes/api/v1/b",
        ),
        (
            "by host",
            "api.internal",
            "/v1/a",
            format!("https://a.test:{port}/v1/b"),
            "/v1/b",
        ),
        (
            "elsewhere",
            "gw",
            "/routes/api/v1/a",
            "https://b.test/".into(),
            "https://b.test/",
        ),
    ] {
        let fields = format!("Host: {host}\r\nAuthorization: Bearer {token}\r\nX-To: {to}\r\n");
        let answer = ask(&gateway, &format!("GET {path}"), &fields);
        assert_eq!(answer.status, 307, "{case}");
        assert_eq!(answer.field("location"), Some(expected), "{case}");
    }
    // What names the route's host is the origin's, the gateway's pages too.
    let fields = format!("Host: api.internal\r\nAuthorization: Bearer {token}\r\n");
    assert_eq!(ask(&gateway, "GET /health", &fields).status, 307);
    assert_eq!(ask(&gateway, "GET /health", "Host: gw\r\n").status, 200);
}

#[test]
fn events_come_as_they_are_sent_and_agents_share_no_connection() {
    let pki = Pki::new("the origin's CA");
    let (next, wait) = std::sync::mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let origin = Origin::serve(move |mut conn, _| {
        while conn.head().is_some() {
            conn.send(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                 Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
            );
            // Not before the client has seen the first.
            wait.lock().expect("one").recv().expect("the test goes on");
            conn.send("9\r\ndata: 2\n\n\r\n0\r\n\r\n");
        }
    });
    let front = TlsFront::before(origin.address(), &pki.server("a", &["a.test"]), &[]);
    let gateway = start(&pki, front.port(), "");
    for (before, agent) in ["one", "one", "two"].into_iter().enumerate() {
        let mut client = gateway.connect();
        client.send(format!(
            "GET /routes/api/v1/events HTTP/1.1\r\n{}\r\n",
            bearer(agent)
        ));
        let head = client.head().expect("a head");
        assert!(head.start.contains("200"), "{head:?}");
        let first = client.exactly(14);
        assert_eq!(first, b"9\r\ndata: 1\n\n\r\n");
        next.send(()).expect("the origin waits");
        let rest = client.exactly(19);
        assert_eq!(rest, b"9\r\ndata: 2\n\n\r\n0\r\n\r\n");
        // The connection goes back to its pool before the record is written.
        wait_for("its record", || {
            (gateway.records().len() > before).then_some(())
        });
    }
    assert_eq!(origin.connections(), 2, "one for each agent");
}

#[test]
fn a_websocket_goes_by_a_route_byte_for_byte() {
    let pki = Pki::new("the origin's CA");
    let origin = Origin::serve(|mut conn, _| {
        let head = conn.head().expect("a request");
        assert_eq!(head.field("upgrade"), Some("websocket"));
        assert_eq!(head.field("authorization"), None);
        conn.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        );
        let (early, stream) = conn.into_parts();
        std::io::Write::write_all(&mut &stream, &early).expect("echoed");
        let _ = std::io::copy(&mut &stream, &mut &stream);
    });
    // HTTP/2 is offered, and must not be chosen for this.
    let front = TlsFront::before(
        origin.address(),
        &pki.server("a", &["a.test"]),
        &["h2", "http/1.1"],
    );
    let gateway = start(&pki, front.port(), "");
    let mut client = gateway.connect();
    client.send(format!(
        "GET /routes/api/v1/socket HTTP/1.1\r\n{}Connection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        bearer("bot")
    ));
    let head = client.head().expect("a head");
    assert!(head.start.contains("101"), "{head:?}");
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    for part in bytes.chunks(10_000) {
        client.send(part);
        assert_eq!(client.exactly(part.len()), part);
    }
    let asked = front.handshakes();
    assert_eq!(asked, [(Some("a.test".into()), Some(b"http/1.1".to_vec()))]);
}

/// An origin that speaks HTTP/2 in clear and echoes calls of gRPC.
async fn grpc(listener: tokio::net::TcpListener, seen: Arc<Mutex<Vec<HeaderMap>>>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut h2 = h2::server::handshake(tcp).await.expect("HTTP/2");
            while let Some(Ok((request, mut answer))) = h2.accept().await {
                seen.lock().expect("seen").push(request.headers().clone());
                tokio::spawn(async move {
                    let head = Response::builder()
                        .header("content-type", "application/grpc")
                        .body(())
                        .expect("a head");
                    let mut body = request.into_body();
                    let mut out = answer.send_response(head, false).expect("sent");
                    while let Some(Ok(part)) = body.data().await {
                        let _ = body.flow_control().release_capacity(part.len());
                        out.send_data(part, false).expect("sent");
                    }
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().expect("a value"));
                    out.send_trailers(trailers).expect("sent");
                });
            }
        });
    }
}

#[test]
fn a_call_of_grpc_streams_both_ways_and_keeps_its_trailers() {
    let pki = Pki::new("the origin's CA");
    let runtime = runtime();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    let seen = Arc::default();
    runtime.spawn(grpc(listener, Arc::clone(&seen)));
    let front = TlsFront::before(address, &pki.server("a", &["a.test"]), &["h2"]);
    let gateway = start(&pki, front.port(), ", http2: only");
    let egress = gateway.egress();
    let call = async {
        let tcp = tokio::net::TcpStream::connect(egress)
            .await
            .expect("the gateway");
        let (sender, connection) = h2::client::handshake(tcp).await.expect("a handshake");
        tokio::spawn(connection);
        // By the route's host, as by DNS that leads there, and by the prefix at
        // the gateway's own address.
        for uri in [
            "http://api.internal/echo.Echo/Say".to_owned(),
            format!("http://{egress}/routes/api/echo.Echo/Say"),
        ] {
            let request = Request::post(uri)
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("authorization", format!("Bearer {}", token("bot")))
                .body(())
                .expect("a request");
            let mut sender = sender.clone().ready().await.expect("ready");
            let (answer, mut out) = sender.send_request(request, false).expect("sent");
            out.send_data(Bytes::from_static(b"first"), false)
                .expect("sent");
            let answer = answer.await.expect("an answer");
            assert_eq!(answer.status(), 200, "{answer:?}");
            let mut body = answer.into_body();
            let part = body.data().await.expect("a part").expect("a part");
            assert_eq!(part, "first", "before the call has ended");
            out.send_data(Bytes::from_static(b"second"), true)
                .expect("sent");
            let part = body.data().await.expect("a part").expect("a part");
            assert_eq!(part, "second");
            while let Some(more) = body.data().await {
                assert!(more.expect("no error").is_empty());
            }
            let trailers = body.trailers().await.expect("no error").expect("trailers");
            assert_eq!(trailers["grpc-status"], "0");
        }
    };
    runtime
        .block_on(async { tokio::time::timeout(DEADLINE, call).await })
        .expect("in time");
    for headers in seen.lock().expect("seen").iter() {
        assert_eq!(headers["te"], "trailers");
        assert!(!headers.contains_key("authorization"), "{headers:?}");
    }
    assert_eq!(front.handshakes().len(), 1, "both in one connection");
}

/// What may be called by JSON-RPC at `a.test`, and what may not at `b.test`.
const CALLS: &str = r#"
version: 1
rules:
  - name: reads
    action: allow
    agents: any
    hosts: [a.test]
    addresses: ["127.0.0.0/8"]
    ports: any
    methods: [GET, POST]
    rpc_methods: [eth_call, "net_*"]
  - {name: free, action: allow, agents: any, hosts: [b.test], addresses: ["127.0.0.0/8"], ports: any}
  - {name: no-money, action: deny, agents: any, hosts: [b.test], ports: any, rpc_methods: [eth_send]}
"#;

fn call(gateway: &Gateway, url: &str, fields: &str, body: &str) -> Answer {
    let auth = format!("Proxy-Authorization: Bearer {}", token("bot"));
    let length = body.len();
    let mut client = gateway.connect();
    client.send_lossy(format!(
        "POST {url} HTTP/1.1\r\n{auth}\r\nContent-Length: {length}\r\n{fields}\r\n{body}"
    ));
    client.response()
}

#[test]
fn calls_of_json_rpc_that_no_rule_names_reach_nobody() {
    let untouched = Untouched::listen();
    let gateway = Gateway::start(CALLS, &[("limits.rpc_body_bytes", "4KiB")]);
    let at = |host: &str| format!("http://{host}:{}/rpc", untouched.port());
    let field = |host: &str| format!("Host: {host}:{}\r\n", untouched.port());
    let gzip = format!("{}Content-Encoding: gzip\r\n", field("a.test"));
    let large = format!("{{\"method\":\"eth_call\",\"x\":\"{}\"}}", "x".repeat(4096));
    for (case, host, fields, body, code, says) in [
        (
            "another method",
            "a.test",
            "",
            r#"{"method":"eth_send"}"#,
            "no_rule",
            "no rule",
        ),
        (
            "a longer name",
            "a.test",
            "",
            r#"{"method":"eth_calls"}"#,
            "no_rule",
            "no rule",
        ),
        (
            "one of a batch",
            "a.test",
            "",
            r#"[{"method":"eth_call"},{"method":"eth_send"}]"#,
            "no_rule",
            "no rule",
        ),
        (
            "a notification",
            "a.test",
            "",
            r#"{"method":"x"}"#,
            "no_rule",
            "no rule",
        ),
        (
            "a method twice",
            "a.test",
            "",
            r#"{"method":"eth_call","method":"eth_send"}"#,
            "bad_request",
            "a member twice",
        ),
        (
            "no JSON",
            "a.test",
            "",
            "method=eth_call",
            "bad_request",
            "not valid JSON",
        ),
        (
            "compressed",
            "a.test",
            &gzip,
            r#"{"method":"eth_call"}"#,
            "bad_request",
            "compressed",
        ),
        ("no body", "a.test", "", "", "no_rule", "no rule"),
        (
            "too large",
            "a.test",
            "",
            &large,
            "bad_request",
            "limits.rpc_body_bytes",
        ),
        (
            "denied",
            "b.test",
            "",
            r#"{"method":"eth_send"}"#,
            "\"rule\":\"no-money\"",
            "no-money",
        ),
        (
            "denied among others",
            "b.test",
            "",
            r#"[{"method":"eth_call"},{"method":"eth_send"}]"#,
            "\"rule\":\"no-money\"",
            "no-money",
        ),
        (
            "unreadable to a deny rule",
            "b.test",
            "",
            "x",
            "bad_request",
            "not valid JSON",
        ),
    ] {
        let host_field = field(host);
        let fields = if fields.is_empty() {
            &host_field
        } else {
            fields
        };
        let answer = call(&gateway, &at(host), fields, body);
        let text = String::from_utf8_lossy(&answer.body);
        assert!(text.contains(code), "{case}: {text}");
        assert!(text.contains(says), "{case}: {text}");
        assert!(
            matches!(answer.status, 400 | 403),
            "{case}: {}",
            answer.status
        );
        untouched.check(case);
    }
    // In chunks, and one that says no length: none of it goes round.
    let mut client = gateway.connect();
    client.send_lossy(format!(
        "POST {} HTTP/1.1\r\n{}Proxy-Authorization: Bearer {}\r\nTransfer-Encoding: chunked\r\n\r\n\
         9\r\n{{\"method\"\r\nc\r\n:\"eth_send\"}}\r\n0\r\n\r\n",
        at("a.test"),
        field("a.test"),
        token("bot")
    ));
    let answer = client.response();
    assert_eq!(answer.field("x-agentport-reason"), Some("no_rule"));
}

#[test]
fn the_body_that_was_judged_is_the_body_that_goes_on() {
    let pki = Pki::new("the origin's CA");
    let origin = Origin::http(|_, body| {
        let mut out = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        out.push_str(std::str::from_utf8(body).expect("text"));
        out.into_bytes()
    });
    let front = TlsFront::before(origin.address(), &pki.server("a", &["a.test"]), &[]);
    let routes = format!(
        "[{{name: api, to: \"https://a.test:{}\", ca: {}}}]",
        front.port(),
        pki.ca().display()
    );
    let gateway = Gateway::start(CALLS, &[("routes", &routes)]);
    let large = format!(
        " {{\"params\":[\"{}\"],\n\t\"method\":\"eth_call\"}}\r\n",
        "x".repeat(60_000)
    );
    let in_clear = format!("http://a.test:{}/rpc", origin.port());
    for (case, url, host, body) in [
        (
            "a call",
            in_clear.as_str(),
            format!("a.test:{}", origin.port()),
            r#"{"method":"eth_call"}"#,
        ),
        (
            "a batch",
            &in_clear,
            format!("a.test:{}", origin.port()),
            r#"[{"method":"net_version"},{"id":1,"method":"eth_call"}]"#,
        ),
        (
            "a large one, by a route",
            "/routes/api/rpc",
            "gw".to_owned(),
            &large,
        ),
        (
            "what no deny rule names",
            &format!("http://b.test:{}/rpc", origin.port()),
            format!("b.test:{}", origin.port()),
            r#"{"method":"eth_call"}"#,
        ),
    ] {
        let answer = call(&gateway, url, &format!("Host: {host}\r\n"), body);
        assert_eq!(
            answer.status,
            200,
            "{case}: {}",
            String::from_utf8_lossy(&answer.body)
        );
        assert_eq!(answer.body, body.as_bytes(), "{case}");
    }
    // A client that waits for leave to send its body gets it.
    let mut client = gateway.connect();
    let body = r#"{"method":"eth_call"}"#;
    client.send(format!(
        "POST {in_clear} HTTP/1.1\r\nHost: a.test:{}\r\nProxy-Authorization: Bearer {}\r\n\
         Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        origin.port(),
        token("bot"),
        body.len()
    ));
    let head = client.head().expect("a head");
    assert!(head.start.contains("100"), "{head:?}");
    client.send(body);
    let answer = client.response();
    assert_eq!(answer.body, body.as_bytes());
}

#[test]
fn routes_and_their_bundles_change_while_it_serves() {
    let (old, new) = (Pki::new("the old CA"), Pki::new("the new CA"));
    let origin = Origin::ok();
    let before = TlsFront::before(origin.address(), &old.server("a", &["a.test"]), &[]);
    let after = TlsFront::before(origin.address(), &new.server("a", &["a.test"]), &[]);
    let folder = tempfile::tempdir().expect("a folder");
    let (list, bundle) = (
        folder.path().join("routes.yaml"),
        folder.path().join("ca.pem"),
    );
    std::fs::copy(old.ca(), &bundle).expect("copied");
    let text = |name: &str, port: u16| {
        format!(
            "routes:\n- {{name: {name}, to: \"https://a.test:{port}\", ca: {}}}\n",
            bundle.display()
        )
    };
    std::fs::write(&list, "routes: []\n").expect("written");
    let file = list.display().to_string();
    let gateway = Gateway::start(POLICY, &[("routes_file", &file)]);
    let get = |name: &str| {
        let answer = ask(
            &gateway,
            &format!("GET /routes/{name}/v1/x"),
            &bearer("bot"),
        );
        (answer.status, answer.refusal().to_owned())
    };
    let in_force = || gateway.lines("new routes are in force").len();
    let changed = |path: &std::path::Path, bytes: &[u8]| {
        let count = in_force();
        replace(path, bytes);
        wait_for("the new routes", || (in_force() > count).then_some(()));
    };
    assert_eq!(get("first"), (404, "not_found".to_owned()));
    changed(&list, text("first", before.port()).as_bytes());
    assert_eq!(get("first").0, 200);

    // Another origin and another name, whose CA is not trusted yet.
    changed(&list, text("second", after.port()).as_bytes());
    assert_eq!(get("first"), (404, "not_found".to_owned()));
    assert_eq!(get("second"), (502, "upstream_certificate".to_owned()));
    changed(&bundle, &std::fs::read(new.ca()).expect("a bundle"));
    assert_eq!(get("second").0, 200);

    // A connection that the new CA has vouched for is not the old one's.
    changed(&bundle, &std::fs::read(old.ca()).expect("a bundle"));
    assert_eq!(get("second"), (502, "upstream_certificate".to_owned()));
    changed(&bundle, &std::fs::read(new.ca()).expect("a bundle"));

    // A mistake changes nothing, and is told.
    for wrong in ["routes: [{name: x}]\n", "", "routes:\n", "other: []\n"] {
        replace(&list, wrong.as_bytes());
        let refused = wait_for("the refusal", || {
            let ready = gateway.ask_admin("/ready").json();
            ready["routes"]["refused"].as_str().map(str::to_owned)
        });
        assert!(refused.contains("routes_file"), "{refused}");
        assert_eq!(get("second").0, 200, "{wrong:?}");
        replace(&list, text("second", after.port()).as_bytes());
        wait_for("the mistake to be over", || {
            let ready = gateway.ask_admin("/ready").json();
            ready["routes"]["refused"].is_null().then_some(())
        });
    }
    let metrics = gateway.metrics();
    for line in [
        "agentport_route_requests_total{route=\"first\",decision=\"allow\"} 1",
        "agentport_route_requests_total{route=\"second\",decision=\"allow\"} 7",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    let record = gateway.record("of a route", |record| record["route"] == "second");
    assert_eq!(record["path"], "/v1/x");
}

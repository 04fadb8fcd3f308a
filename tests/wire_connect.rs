//! `CONNECT` and what goes through a tunnel, on the wire.

#[expect(dead_code, reason = "each test uses a part of what is shared")]
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use support::conn::{Conn, Response};
use support::gateway::{Gateway, LOOPBACK_POLICY, token};
use support::names::Names;
use support::origin::{Origin, Untouched};
use support::tls::Hello;
use support::{DEADLINE, ports, wait_for};

/// A CONNECT head from its template: `PORT` and `AUTH` as in `connect_to`.
fn fill(template: &str, port: u16, agent: &str) -> String {
    let auth = format!("Proxy-Authorization: Bearer {}", token(agent));
    template
        .replace("PORT", &port.to_string())
        .replace("AUTH", &auth)
}

/// The head that most clients send.
fn connect_to(host: &str, port: u16, agent: &str) -> String {
    let template = format!("CONNECT {host}:PORT HTTP/1.1\r\nHost: {host}:PORT\r\nAUTH\r\n\r\n");
    fill(&template, port, agent)
}

/// A tunnel that is open.
fn tunnel(gateway: &Gateway, host: &str, port: u16) -> Conn {
    let mut client = gateway.connect();
    client.send(connect_to(host, port, "bot"));
    let answer = client.response_to("CONNECT");
    assert_eq!(answer.status, 200, "{}", answer.reason);
    client
}

/// The answer to what must be refused, after which the connection is closed.
fn refused(gateway: &Gateway, request: impl AsRef<[u8]>) -> Response {
    let mut client = gateway.connect();
    client.send_lossy(request);
    let answer = client.response_to("CONNECT");
    assert_ne!(answer.status, 200, "it was opened");
    assert!(
        client.closes(),
        "{}: the connection is closed",
        answer.reason
    );
    answer
}

/// Every agent may open a tunnel for any bytes.
fn any_bytes() -> String {
    format!("{LOOPBACK_POLICY}    tls: any\n")
}

/// The closing record of the only tunnel.
fn closing(gateway: &Gateway) -> serde_json::Value {
    gateway.record("a tunnel that closed", |record| {
        record["event"] == "tunnel_closed"
    })
}

#[test]
fn every_form_of_connect_that_clients_send_opens_a_tunnel() {
    let gateway = Gateway::open();
    let origin = Origin::echo();
    for (case, head) in [
        (
            "curl, git, npm, Go",
            "CONNECT a.test:PORT HTTP/1.1\r\nHost: a.test:PORT\r\nUser-Agent: x\r\nProxy-Connection: Keep-Alive\r\nAUTH\r\n\r\n",
        ),
        (
            "Python below 3.12",
            "CONNECT a.test:PORT HTTP/1.0\r\nAUTH\r\n\r\n",
        ),
        (
            "Python with a Host",
            "CONNECT a.test:PORT HTTP/1.0\r\nHost: a.test:PORT\r\nAUTH\r\n\r\n",
        ),
        (
            "undici",
            "CONNECT a.test:PORT HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\nAUTH\r\n\r\n",
        ),
        (
            "aiohttp",
            "CONNECT a.test:PORT HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n",
        ),
        (
            "without a Host",
            "CONNECT a.test:PORT HTTP/1.1\r\nAUTH\r\n\r\n",
        ),
        (
            "a Host in capitals",
            "CONNECT a.test:PORT HTTP/1.1\r\nHost: A.TEST:PORT\r\nAUTH\r\n\r\n",
        ),
        (
            "a target in capitals",
            "CONNECT A.TEST:PORT HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n\r\n",
        ),
        (
            "a trailing dot",
            "CONNECT a.test.:PORT HTTP/1.1\r\nHost: a.test.:PORT\r\nAUTH\r\n\r\n",
        ),
        (
            "a body of no bytes",
            "CONNECT a.test:PORT HTTP/1.1\r\nHost: a.test:PORT\r\nContent-Length: 0\r\nAUTH\r\n\r\n",
        ),
        (
            "keep-alive",
            "CONNECT a.test:PORT HTTP/1.1\r\nHost: a.test:PORT\r\nConnection: keep-alive\r\nAUTH\r\n\r\n",
        ),
        (
            "a query's fields",
            "CONNECT a.test:PORT HTTP/1.1\r\nHost: a.test:PORT\r\nAccept: */*\r\nX-Y: z\r\nAUTH\r\n\r\n",
        ),
    ] {
        let mut client = gateway.connect();
        client.send(fill(head, origin.port(), "bot"));
        let answer = client.response_to("CONNECT");
        assert_eq!(answer.status, 200, "{case}: {}", answer.reason);
        // RFC 9110 section 9.3.6: neither has a meaning here.
        assert!(answer.field("content-length").is_none(), "{case}");
        assert!(answer.field("transfer-encoding").is_none(), "{case}");
        let hello = Hello::to("a.test").bytes();
        client.send(&hello);
        assert_eq!(client.exactly(hello.len()), hello, "{case}");
    }
}

#[test]
fn a_rejected_connect_closes_and_nothing_behind_it_is_read() {
    let gateway = Gateway::open();
    let origin = Untouched::listen();
    let port = origin.port();
    let auth = |head: &str| fill(head, port, "bot");
    let behind = fill(
        "GET http://a.test:PORT/behind HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n\r\n",
        port,
        "bot",
    );
    for (index, (case, head, status, word)) in [
        ("no credential", "CONNECT a.test:PORT HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n", 407, "no_credential"),
        ("a bad credential", "CONNECT a.test:PORT HTTP/1.1\r\nHost: a.test:PORT\r\nProxy-Authorization: Bearer x.y.z\r\n\r\n", 403, ""),
        ("no rule", "CONNECT other.example:PORT HTTP/1.1\r\nHost: other.example:PORT\r\nAUTH\r\n\r\n", 403, "no_rule"),
        ("an address", "CONNECT 127.0.0.1:PORT HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nAUTH\r\n\r\n", 403, ""),
        ("an IPv6 address", "CONNECT [::1]:PORT HTTP/1.1\r\nHost: [::1]:PORT\r\nAUTH\r\n\r\n", 403, ""),
        ("metadata", "CONNECT 169.254.169.254:80 HTTP/1.1\r\nAUTH\r\n\r\n", 403, ""),
        ("another host in Host", "CONNECT a.test:PORT HTTP/1.1\r\nHost: b.test:PORT\r\nAUTH\r\n\r\n", 400, "host_mismatch"),
        ("another port in Host", "CONNECT a.test:PORT HTTP/1.1\r\nHost: a.test:1\r\nAUTH\r\n\r\n", 400, "host_mismatch"),
        ("two Hosts", "CONNECT a.test:PORT HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("an empty Host", "CONNECT a.test:PORT HTTP/1.1\r\nHost:\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("no port", "CONNECT a.test HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("an empty port", "CONNECT a.test: HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("port 0", "CONNECT a.test:0 HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("port 65536", "CONNECT a.test:65536 HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("a port with a plus", "CONNECT a.test:+PORT HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("two ports", "CONNECT a.test:PORT:443 HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("userinfo", "CONNECT user@a.test:PORT HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("a path", "CONNECT a.test:PORT/ HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("a query", "CONNECT a.test:PORT?x HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("a fragment", "CONNECT a.test:PORT#x HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("a URL", "CONNECT http://a.test:PORT HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("a path alone", "CONNECT / HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("an asterisk", "CONNECT * HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("no host", "CONNECT :PORT HTTP/1.1\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("a decimal address", "CONNECT 2130706433:PORT HTTP/1.1\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("an octal address", "CONNECT 0177.0.0.1:PORT HTTP/1.1\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("a hexadecimal address", "CONNECT 0x7f000001:PORT HTTP/1.1\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("an IPv6 address without brackets", "CONNECT ::1:PORT HTTP/1.1\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("a percent escape", "CONNECT a%2etest:PORT HTTP/1.1\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("a body", "CONNECT a.test:PORT HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("chunks", "CONNECT a.test:PORT HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("two credentials", "CONNECT a.test:PORT HTTP/1.1\r\nAUTH\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("a folded line", "CONNECT a.test:PORT HTTP/1.1\r\nX: y\r\n z\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("a bare line feed", "CONNECT a.test:PORT HTTP/1.1\nAUTH\r\n\r\n", 400, "bad_request"),
        ("lower case", "connect a.test:PORT HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
        ("HTTP/2.0", "CONNECT a.test:PORT HTTP/2.0\r\nHost: a.test\r\nAUTH\r\n\r\n", 400, "bad_request"),
    ]
    .into_iter()
    .enumerate()
    {
        // Another agent each time, so that no refusal is one too many.
        let head = if index % 2 == 0 { auth(head) } else { fill(head, port, &format!("bot-{index}")) };
        let answer = refused(&gateway, format!("{head}{behind}"));
        assert_eq!(answer.status, status, "{case}: {}", answer.reason);
        if !word.is_empty() {
            assert_eq!(answer.refusal(), word, "{case}");
        }
        assert_eq!(answer.json()["error"], answer.refusal(), "{case}");
        assert!(answer.field("proxy-status").is_some(), "{case}");
        assert!(answer.reason.starts_with("AgentPort: "), "{case}: {}", answer.reason);
        assert_eq!(answer.field("connection"), Some("close"), "{case}");
        if status == 407 {
            assert_eq!(answer.head.all("proxy-authenticate").len(), 2, "{case}");
        }
        origin.check(case);
    }
    let records = gateway.stop();
    assert_eq!(records.len(), 36, "one record each: {records:#?}");
    assert!(!records.iter().any(|record| record["path"] == "/behind"));
}

#[test]
fn a_gateway_opens_no_tunnel_to_itself() {
    let gateway = Gateway::open();
    for port in [gateway.egress().port(), gateway.admin().port()] {
        let answer = refused(&gateway, connect_to("self.test", port, "bot"));
        assert_eq!((answer.status, answer.refusal()), (403, "own_listener"));
    }
}

#[test]
fn bytes_that_come_with_the_head_are_kept() {
    let gateway = Gateway::open();
    let origin = Origin::echo();
    let hello = Hello::to("a.test").bytes();
    let mut client = gateway.connect();
    // Some clients do not wait for the 200.
    client.send(
        [
            connect_to("a.test", origin.port(), "bot").as_bytes(),
            &hello,
        ]
        .concat(),
    );
    assert_eq!(client.response_to("CONNECT").status, 200);
    assert_eq!(client.exactly(hello.len()), hello);
}

#[test]
fn the_server_name_must_be_the_host_of_the_tunnel() {
    let gateway = Gateway::open();
    let origin = Origin::echo();
    let hello = || Hello::to("a.test");
    let long = |bytes: usize| hello().extension(21, vec![0; bytes]);
    let two_lists = support::tls::server_names(&[b"b.test".to_vec()]);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("the host", hello().bytes(), ""),
        ("the host in capitals", Hello::to("A.TEST").bytes(), ""),
        (
            "the host with a trailing dot",
            Hello::to("a.test.").bytes(),
            "",
        ),
        ("over three records", hello().in_records_of(40).bytes(), ""),
        (
            "over records of one byte",
            hello().in_records_of(1).bytes(),
            "",
        ),
        ("with 16,000 bytes of padding", long(16_000).bytes(), ""),
        ("with 30,000 bytes of padding", long(30_000).bytes(), ""),
        ("another host", Hello::to("b.test").bytes(), "sni_mismatch"),
        ("a subdomain", Hello::to("x.a.test").bytes(), "sni_mismatch"),
        (
            "the domain above",
            Hello::to("test").bytes(),
            "sni_mismatch",
        ),
        (
            "a longer name",
            Hello::to("a.test.example").bytes(),
            "sni_mismatch",
        ),
        (
            "another host over records of one byte",
            Hello::to("b.test").in_records_of(1).bytes(),
            "sni_mismatch",
        ),
        ("an address", Hello::to("127.0.0.1").bytes(), "sni_mismatch"),
        (
            "the host and a NUL",
            Hello::to("a.test\0").bytes(),
            "sni_mismatch",
        ),
        (
            "the host, a NUL and another",
            Hello::to("a.test\0.b.test").bytes(),
            "sni_mismatch",
        ),
        (
            "the host and a port",
            Hello::to("a.test:443").bytes(),
            "sni_mismatch",
        ),
        ("a wildcard", Hello::to("*.test").bytes(), "sni_mismatch"),
        (
            "a blank in front",
            Hello::to(" a.test").bytes(),
            "sni_mismatch",
        ),
        ("no name", Hello::new().bytes(), "sni_missing"),
        (
            "an empty name",
            Hello::new().name("").bytes(),
            "client_hello_malformed",
        ),
        (
            "two names in a list",
            hello().name("b.test").bytes(),
            "client_hello_malformed",
        ),
        (
            "the same name twice",
            hello().name("a.test").bytes(),
            "client_hello_malformed",
        ),
        (
            "two lists of names",
            hello().extension(0, two_lists).bytes(),
            "client_hello_malformed",
        ),
        (
            "a name that is not UTF-8",
            Hello::new().name(b"a\xff.test").bytes(),
            "client_hello_malformed",
        ),
        (
            "an encrypted hello",
            hello().extension(0xfe0d, vec![0; 64]).bytes(),
            "ech_refused",
        ),
        (
            "an encrypted hello of an earlier draft",
            hello().extension(0xfe0a, vec![0; 8]).bytes(),
            "ech_refused",
        ),
        (
            "an encrypted server name",
            hello().extension(0xffce, vec![0; 8]).bytes(),
            "ech_refused",
        ),
        (
            "an encrypted hello for another host",
            Hello::to("b.test").extension(0xfe0d, vec![0; 8]).bytes(),
            "ech_refused",
        ),
        (
            "over 32 KiB",
            long(40_000).bytes(),
            "client_hello_malformed",
        ),
        (
            "a record of no bytes",
            vec![22, 3, 1, 0, 0],
            "client_hello_malformed",
        ),
        (
            "a record of 16,385 bytes",
            vec![22, 3, 1, 0x40, 1, 1],
            "client_hello_malformed",
        ),
        (
            "a ServerHello",
            vec![22, 3, 1, 0, 4, 2, 0, 0, 0],
            "client_hello_malformed",
        ),
        (
            "another major version",
            vec![22, 2, 1, 0, 4, 1, 0, 0, 0],
            "client_hello_malformed",
        ),
        (
            "an alert between two records",
            [
                &hello().in_records_of(40).bytes()[..45],
                &[21, 3, 1, 0, 2, 1, 0],
            ]
            .concat(),
            "client_hello_malformed",
        ),
        (
            "an empty hello",
            vec![22, 3, 1, 0, 4, 1, 0, 0, 0],
            "client_hello_malformed",
        ),
        (
            "extensions longer than the hello",
            {
                let mut bytes = hello().bytes();
                let at = bytes.len() - 1;
                bytes.truncate(at);
                bytes[4] -= 1;
                bytes[8] -= 1;
                bytes
            },
            "client_hello_malformed",
        ),
        ("an alert", vec![21, 3, 1, 0, 2, 1, 0], "not_tls"),
        ("application data", vec![23, 3, 3, 0, 1, 0], "not_tls"),
        ("SSL 2", vec![0x80, 0x2e, 1, 3, 1, 0, 0x15], "not_tls"),
        ("SSH", b"SSH-2.0-OpenSSH_9\r\n".to_vec(), "not_tls"),
        ("SMTP", b"EHLO a.test\r\n".to_vec(), "not_tls"),
        ("a NUL", vec![0], "not_tls"),
        (
            "HTTP in lower case",
            b"get / HTTP/1.1\r\n\r\n".to_vec(),
            "not_tls",
        ),
        ("HTTP/0.9", b"GET /\r\n".to_vec(), "not_tls"),
    ];
    let count = cases.len();
    for (before, (case, bytes, word)) in cases.into_iter().enumerate() {
        let mut client = tunnel(&gateway, "a.test", origin.port());
        client.send_lossy(&bytes);
        if word.is_empty() {
            assert_eq!(client.exactly(bytes.len()), bytes, "{case}");
            client.finish();
            assert!(client.closes(), "{case}");
        } else {
            assert!(client.closes(), "{case}: no byte came back");
        }
        let word = if word.is_empty() { "ok" } else { word };
        let closed = wait_for(case, || {
            let mut records = gateway.records();
            records.retain(|record| record["event"] == "tunnel_closed");
            records.get(before).cloned()
        });
        assert_eq!(closed["reason"], word, "{case}: {closed}");
        assert_eq!(closed["action_allowed"], word == "ok", "{case}");
        if word != "ok" {
            assert_eq!(closed["bytes_up"], 0, "{case}: {closed}");
        }
    }
    let records = gateway.stop();
    let opened = records
        .iter()
        .filter(|record| record["event"] == "tunnel")
        .count();
    assert_eq!(
        (opened, records.len()),
        (count, 2 * count),
        "two records each"
    );
}

#[test]
fn a_hello_may_come_byte_by_byte() {
    let gateway = Gateway::open();
    let origin = Origin::echo();
    let hello = Hello::to("a.test").bytes();
    let mut client = tunnel(&gateway, "a.test", origin.port());
    for byte in &hello {
        client.send([*byte]);
    }
    assert_eq!(client.exactly(hello.len()), hello);

    let mut client = tunnel(&gateway, "a.test", origin.port());
    for byte in Hello::to("b.test").bytes() {
        client.send_lossy([byte]);
    }
    assert!(client.closes());
}

#[test]
fn a_hello_that_never_comes_is_not_waited_for_for_ever() {
    let gateway = Gateway::start(LOOPBACK_POLICY, &[("timeouts.client_hello", "200ms")]);
    let origin = Origin::echo();
    for (case, bytes) in [
        ("nothing", &b""[..]),
        ("half a record", b"\x16\x03\x01"),
        ("half a line", b"GET /"),
    ] {
        let mut client = tunnel(&gateway, "a.test", origin.port());
        client.send(bytes);
        assert!(client.closes(), "{case}");
    }
    let records = gateway.stop();
    let ends: Vec<_> = records
        .iter()
        .filter(|record| record["event"] == "tunnel_closed")
        .map(|record| record["reason"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(ends, ["client_hello_timeout"; 3]);
}

#[test]
fn a_rule_may_let_other_names_pass() {
    let rule = |word: &str| format!("{LOOPBACK_POLICY}    {word}\n");
    let other = Hello::to("b.test").bytes();
    let none = Hello::new().bytes();
    let encrypted = Hello::to("a.test").extension(0xfe0d, vec![0; 8]).bytes();
    let origin = Origin::echo();
    for (word, passing, refused) in [
        ("sni: optional", vec![&none], vec![&other, &encrypted]),
        ("sni: any", vec![&none, &other], vec![&encrypted]),
        ("ech: allow", vec![&encrypted], vec![&none, &other]),
    ] {
        let gateway = Gateway::start(&rule(word), &[]);
        for bytes in passing {
            let mut client = tunnel(&gateway, "a.test", origin.port());
            client.send(bytes);
            assert_eq!(&client.exactly(bytes.len()), bytes, "{word}");
        }
        for bytes in refused {
            let mut client = tunnel(&gateway, "a.test", origin.port());
            client.send_lossy(bytes);
            assert!(client.closes(), "{word}");
        }
    }
}

#[test]
fn an_address_needs_no_server_name_and_must_be_allowed_by_range() {
    let policy = r#"
version: 1
rules:
  - name: here
    action: allow
    agents: any
    addresses: ["127.0.0.0/8"]
    ports: any
"#;
    let gateway = Gateway::start(policy, &[]);
    let origin = Origin::echo();
    let none = Hello::new().bytes();
    let mut client = tunnel(&gateway, "127.0.0.1", origin.port());
    client.send(&none);
    assert_eq!(client.exactly(none.len()), none);
    let mut client = tunnel(&gateway, "127.0.0.1", origin.port());
    client.send_lossy(Hello::to("a.test").bytes());
    assert!(client.closes(), "an address is no name");
    let answer = refused(&gateway, connect_to("[::1]", origin.port(), "bot"));
    assert_eq!(answer.status, 403);
}

#[test]
fn clear_text_inside_is_judged_request_by_request() {
    let policy = r#"
version: 1
rules:
  - name: reading
    action: allow
    agents: any
    hosts: ["a.test"]
    addresses: ["127.0.0.0/8"]
    ports: any
    methods: [GET]
    paths: ["/public/**"]
"#;
    let gateway = Gateway::start(policy, &[]);
    let origin = Origin::http(|head, _| {
        let path = head.asks().1;
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}",
            path.len()
        )
        .into_bytes()
    });
    let inner = |method: &str, path: &str, host: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
    };
    let here = format!("a.test:{}", origin.port());
    let mut client = tunnel(&gateway, "a.test", origin.port());
    client.send(inner("GET", "/public/1", &here));
    assert_eq!(client.response().body, b"/public/1");
    // What undici sends: the host without its port.
    client.send(inner("GET", "/public/2", "a.test"));
    assert_eq!(client.response().body, b"/public/2");
    client.send(inner("POST", "/public/3", &here));
    let answer = client.response();
    assert_eq!(answer.status, 403, "the second request is judged too");
    assert_eq!(origin.requests().len(), 2);
    // Our credential is not asked for again, and never goes on.
    assert!(
        origin
            .requests()
            .iter()
            .all(|(head, _)| head.field("proxy-authorization").is_none())
    );
    assert_eq!(origin.requests()[0].0.field("host"), Some(here.as_str()));
    drop(client);

    for (case, request, status, word) in [
        (
            "another host",
            inner("GET", "/public/x", "b.test"),
            400,
            "host_mismatch",
        ),
        (
            "another port",
            inner("GET", "/public/x", "a.test:1"),
            400,
            "host_mismatch",
        ),
        (
            "another host, which the path names as a URL does",
            inner("GET", "/public/x://b.test/", "b.test"),
            400,
            "host_mismatch",
        ),
        ("another path", inner("GET", "/private", &here), 403, ""),
        ("a way up", inner("GET", "/public/../private", &here), 0, ""),
        (
            "absolute-form",
            inner("GET", &format!("http://{here}/public/x"), &here),
            400,
            "bad_request",
        ),
        (
            "absolute-form to another host",
            inner("GET", "http://b.test/public/x", &here),
            400,
            "",
        ),
        (
            "a CONNECT",
            inner("CONNECT", &here, &here),
            400,
            "bad_request",
        ),
        (
            "no Host",
            "GET /public/x HTTP/1.1\r\n\r\n".to_owned(),
            400,
            "bad_request",
        ),
        (
            "two lengths",
            format!(
                "GET /public/x HTTP/1.1\r\nHost: {here}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
            ),
            400,
            "bad_request",
        ),
        (
            "TRACE",
            inner("TRACE", "/public/x", &here),
            405,
            "method_refused",
        ),
    ] {
        let mut client = tunnel(&gateway, "a.test", origin.port());
        client.send_lossy(request);
        let answer = client.response();
        assert!(answer.status >= 400, "{case}: {}", answer.status);
        if status != 0 {
            assert_eq!(answer.status, status, "{case}: {}", answer.reason);
        }
        if !word.is_empty() {
            assert_eq!(answer.refusal(), word, "{case}");
        }
        assert_eq!(origin.requests().len(), 2, "{case}");
    }
    // TLS hides what the rule speaks of.
    let mut client = tunnel(&gateway, "a.test", origin.port());
    client.send_lossy(Hello::to("a.test").bytes());
    assert!(client.closes());
    gateway.record("what cannot be seen", |record| {
        record["reason"] == "not_inspectable"
    });
}

#[test]
fn clear_text_inside_may_be_switched_off() {
    let gateway = Gateway::start(LOOPBACK_POLICY, &[("tunnel.plain", "refuse")]);
    let origin = Origin::ok();
    let mut client = tunnel(&gateway, "a.test", origin.port());
    client.send_lossy("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert!(client.closes());
    assert_eq!(closing(&gateway)["reason"], "not_tls");
    assert!(origin.requests().is_empty());
}

#[test]
fn a_server_may_speak_first_where_the_rule_says_any() {
    let gateway = Gateway::start(&any_bytes(), &[]);
    let origin = Origin::serve(|mut conn, _| {
        conn.send("220 ready\r\n");
        assert_eq!(conn.line().as_deref(), Some("EHLO there"));
        conn.send("250 well\r\n");
    });
    let mut client = tunnel(&gateway, "a.test", origin.port());
    assert_eq!(client.line().as_deref(), Some("220 ready"));
    client.send("EHLO there\r\n");
    assert_eq!(client.line().as_deref(), Some("250 well"));
    assert!(client.closes());
    client.finish();
    let record = closing(&gateway);
    assert_eq!(record["bytes_up"], 12);
    assert_eq!(record["bytes_down"], 21);
}

#[test]
fn a_half_close_goes_through_either_way() {
    let gateway = Gateway::start(&any_bytes(), &[]);
    // The client says all it has and closes; then the answer comes.
    let answers = Origin::serve(|mut conn, _| {
        let asked = conn.rest();
        conn.send([b"you said ".as_slice(), &asked].concat());
    });
    let mut client = tunnel(&gateway, "a.test", answers.port());
    client.send("\x01question");
    client.finish();
    assert_eq!(client.rest(), b"you said \x01question");
    gateway.record("the first end", |record| record["event"] == "tunnel_closed");

    // The origin says all it has and closes; then the client speaks.
    let (send, got) = mpsc::channel();
    let send = Mutex::new(send);
    let listens = Origin::serve(move |mut conn, _| {
        conn.send("\x02statement");
        conn.finish();
        let heard = conn.rest();
        send.lock()
            .expect("not failed")
            .send(heard)
            .expect("the test waits");
    });
    let mut client = tunnel(&gateway, "a.test", listens.port());
    assert_eq!(client.rest(), b"\x02statement");
    client.send("still here");
    client.finish();
    assert_eq!(
        got.recv_timeout(DEADLINE).expect("the origin"),
        b"still here"
    );
    let records = gateway.stop();
    let closed: Vec<_> = records
        .iter()
        .filter(|record| record["event"] == "tunnel_closed")
        .map(|record| {
            (
                record["reason"].clone(),
                record["bytes_up"].clone(),
                record["bytes_down"].clone(),
            )
        })
        .collect();
    assert_eq!(
        closed,
        [
            ("ok".into(), 9.into(), 18.into()),
            ("ok".into(), 10.into(), 10.into())
        ]
    );
}

#[test]
fn a_tunnel_carries_much_both_ways_at_once() {
    const MUCH: usize = 16 * 1024 * 1024;
    let gateway = Gateway::start(&any_bytes(), &[]);
    let origin = Origin::echo();
    let client = tunnel(&gateway, "a.test", origin.port());
    let (_, stream) = client.into_parts();
    let sent: Arc<Vec<u8>> = Arc::new((0..MUCH).map(|at| (at * 31 % 251) as u8 | 1).collect());
    let (mut write, bytes) = (stream.try_clone().expect("a socket"), Arc::clone(&sent));
    let writer = std::thread::spawn(move || {
        write.write_all(&bytes).expect("the tunnel takes it");
        write.shutdown(std::net::Shutdown::Write).expect("open");
    });
    let mut got = Vec::with_capacity(MUCH);
    (&stream)
        .read_to_end(&mut got)
        .expect("the tunnel gives it");
    writer.join().expect("written");
    assert!(got == *sent, "byte for byte");
    let record = closing(&gateway);
    assert_eq!(
        (record["bytes_up"].clone(), record["bytes_down"].clone()),
        (MUCH.into(), MUCH.into())
    );
}

#[test]
fn a_tunnel_in_which_nothing_moves_is_closed() {
    let gateway = Gateway::start(&any_bytes(), &[("timeouts.tunnel_idle", "300ms")]);
    let origin = Origin::echo();
    let mut client = tunnel(&gateway, "a.test", origin.port());
    client.send("\x01ab");
    assert_eq!(client.exactly(3), b"\x01ab");
    assert!(client.closes());
    let record = closing(&gateway);
    assert_eq!(record["reason"], "tunnel_idle");
    assert_eq!(
        (record["bytes_up"].clone(), record["bytes_down"].clone()),
        (3.into(), 3.into())
    );
}

#[test]
fn a_client_that_vanishes_has_its_tunnel_closed_and_recorded() {
    let gateway = Gateway::start(&any_bytes(), &[]);
    let (send, ended) = mpsc::channel();
    let send = Mutex::new(send);
    let origin = Origin::serve(move |mut conn, _| {
        let got = conn.rest();
        send.lock()
            .expect("not failed")
            .send(got)
            .expect("the test waits");
    });
    for (case, bytes) in [("after some bytes", &b"\x01abc"[..]), ("before any", b"")] {
        let mut client = tunnel(&gateway, "a.test", origin.port());
        client.send(bytes);
        client.abort();
        // Whether the bytes were read before the reset is a matter of luck.
        ended.recv_timeout(DEADLINE).expect(case);
    }
    let records = gateway.stop();
    assert_eq!(records.len(), 4, "{records:#?}");
}

#[test]
fn a_destination_that_does_not_answer_is_told_before_any_200() {
    let names = Names::serve();
    names.set("nowhere.test", &[]);
    let gateway =
        Gateway::start_with_names(LOOPBACK_POLICY, &[("timeouts.connect", "300ms")], names);
    let full = Blackhole::new();
    for (case, host, port, status, word) in [
        (
            "nobody listens",
            "a.test",
            ports::free(),
            502,
            "connect_refused",
        ),
        (
            "nobody accepts",
            "a.test",
            full.port(),
            504,
            "connect_timeout",
        ),
        ("no address", "nowhere.test", 443, 502, "name_not_found"),
    ] {
        let answer = refused(&gateway, connect_to(host, port, "bot"));
        assert_eq!((answer.status, answer.refusal()), (status, word), "{case}");
        assert_eq!(gateway.record_of(&answer)["reason"], word, "{case}");
    }
    assert_eq!(gateway.stop().len(), 3, "one record each");
}

/// A listener whose queue is full: the system answers nobody who knocks.
struct Blackhole {
    listener: socket::Listener,
    _knocking: Vec<TcpStream>,
}

impl Blackhole {
    fn new() -> Self {
        let listener = socket::Listener::without_queue();
        let mut knocking = Vec::new();
        // Connections are made until one is not, which then stays half open.
        loop {
            let patience = std::time::Duration::from_millis(200);
            match TcpStream::connect_timeout(&listener.address, patience) {
                Ok(stream) => knocking.push(stream),
                Err(_) => break,
            }
            assert!(knocking.len() < 1000, "the queue has no end");
        }
        Self {
            listener,
            _knocking: knocking,
        }
    }

    fn port(&self) -> u16 {
        self.listener.address.port()
    }
}

/// A listening socket with the shortest queue there is.
mod socket {
    use std::net::SocketAddr;
    use std::os::fd::{AsRawFd, OwnedFd};

    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket,
    };

    pub(super) struct Listener {
        pub(super) address: SocketAddr,
        _socket: OwnedFd,
    }

    impl Listener {
        pub(super) fn without_queue() -> Self {
            let fd = socket(
                AddressFamily::Inet,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .expect("a socket");
            bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("a port");
            listen(&fd, Backlog::new(0).expect("a length")).expect("it listens");
            let name: SockaddrIn = getsockname(fd.as_raw_fd()).expect("an address");
            Self {
                address: ([127, 0, 0, 1], name.port()).into(),
                _socket: fd,
            }
        }
    }
}

#[test]
fn tunnels_are_bounded_in_all_and_for_each_agent() {
    let origin = Origin::echo();
    let hello = Hello::to("a.test").bytes();
    let ask = |gateway: &Gateway, agent: &str| {
        let mut client = gateway.connect();
        client.send(connect_to("a.test", origin.port(), agent));
        (client.response_to("CONNECT"), client)
    };

    let gateway = Gateway::start(LOOPBACK_POLICY, &[("limits.tunnels", "2")]);
    let held = [ask(&gateway, "one"), ask(&gateway, "two")];
    assert!(held.iter().all(|(answer, _)| answer.status == 200));
    // Nobody is dialled for the third.
    let untouched = Untouched::listen();
    let over = refused(&gateway, connect_to("a.test", untouched.port(), "three"));
    assert_eq!((over.status, over.refusal()), (503, "overloaded"));
    assert!(over.field("retry-after").is_some());
    untouched.check("the third");
    // A place that is left is free again.
    drop(held);
    let mut free = wait_for("a free place", || {
        let (answer, client) = ask(&gateway, "three");
        (answer.status == 200).then_some(client)
    });
    free.send(&hello);
    assert_eq!(free.exactly(hello.len()), hello);

    let gateway = Gateway::start(LOOPBACK_POLICY, &[("limits.tunnels_per_agent", "1")]);
    let (first, held) = ask(&gateway, "one");
    assert_eq!(first.status, 200);
    let (over, mut client) = ask(&gateway, "one");
    assert_eq!((over.status, over.refusal()), (429, "throttled"));
    assert!(over.field("retry-after").is_some());
    assert!(client.closes());
    assert_eq!(
        ask(&gateway, "two").0.status,
        200,
        "another agent has its own"
    );
    drop(held);
    wait_for("a free place", || {
        (ask(&gateway, "one").0.status == 200).then_some(())
    });
}

#[test]
fn tunnels_are_judged_again_when_policy_changes() {
    let policy = |host: &str| LOOPBACK_POLICY.replace("*.test", host);
    let gateway = Gateway::start(&policy("*.test"), &[]);
    let origin = Origin::echo();
    let open = |host: &str| {
        let mut client = tunnel(&gateway, host, origin.port());
        let hello = Hello::to(host).bytes();
        client.send(&hello);
        assert_eq!(client.exactly(hello.len()), hello);
        client
    };
    let (mut stays, mut goes) = (open("a.test"), open("b.test"));
    gateway.change_policy(&policy("a.test"));
    assert!(goes.closes(), "the new policy refuses it");
    stays.send("more");
    assert_eq!(stays.exactly(4), b"more");
    let record = closing(&gateway);
    assert_eq!(record["reason"], "policy_changed");
    assert_eq!(record["destination_host"], "b.test");
}

#[test]
fn tls_from_end_to_end_is_not_touched() {
    let gateway = Gateway::open();
    let made =
        rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![made.cert.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der())
                .expect("a key"),
        )
        .expect("a server");
    let server = Arc::new(server);
    let origin = Origin::serve(move |conn, _| {
        let (_, mut tcp) = conn.into_parts();
        let mut tls = rustls::ServerConnection::new(Arc::clone(&server)).expect("a server");
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        let mut asked = [0; 5];
        stream.read_exact(&mut asked).expect("a question");
        stream.write_all(&asked).expect("an answer");
        stream.flush().expect("an answer");
    });
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (early, mut tcp) = tunnel(&gateway, "a.test", origin.port()).into_parts();
    assert!(early.is_empty());
    let name = rustls::pki_types::ServerName::try_from("a.test").expect("a name");
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
    stream.write_all(b"hello").expect("it is sent");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"hello");
}

//! What a refusal looks like, and which failures upstream become which.

use crate::support::gateway::{Gateway, LOOPBACK_POLICY};
use crate::support::names::Names;
use crate::support::origin::Origin;
use crate::support::ports;
use crate::{ask, ask_lossy, fill, get};

#[test]
fn a_refusal_says_it_in_every_place_that_some_client_shows() {
    let gateway = Gateway::open();
    let request = "POST http://other.example/a?secret=1 HTTP/1.1\r\nHost: other.example\r\nAUTH\r\nContent-Length: 3\r\n\r\nabc";
    let (refused, mut client) = ask_lossy(&gateway, fill(request, 0, "bot"));
    assert_eq!(refused.status, 403);
    let id = refused.field("x-request-id").expect("an id").to_owned();
    assert_eq!(
        refused.reason,
        format!("AgentPort: no_rule other.example rid={id}")
    );
    assert_eq!(refused.field("content-type"), Some("application/json"));
    assert_eq!(refused.field("cache-control"), Some("no-store"));
    assert_eq!(refused.field("x-agentport-reason"), Some("no_rule"));
    assert_eq!(
        refused.field("proxy-status"),
        Some("agentport; error=http_request_denied; details=\"no_rule\"")
    );
    assert_eq!(
        refused.field("content-length"),
        Some(refused.body.len().to_string().as_str())
    );
    assert!(
        refused
            .body
            .starts_with(b"{\"error\":\"no_rule\",\"reason\":")
    );
    let body = refused.json();
    let members = body.as_object().expect("an object");
    for member in [
        "error",
        "reason",
        "rule",
        "destination",
        "hint",
        "policy_url",
        "request_id",
    ] {
        assert!(members.contains_key(member), "{member}");
    }
    assert_eq!(members.len(), 7);
    assert_eq!(body["destination"], "other.example:80");
    assert_eq!(body["request_id"], id.as_str());
    assert!(body["hint"].as_str().is_some_and(|hint| !hint.is_empty()));
    assert!(
        !String::from_utf8_lossy(&refused.body).contains("secret"),
        "no query"
    );
    // The body was not read, so what follows could not be told from it.
    assert!(client.closes());
    let record = gateway.record_of(&refused);
    assert_eq!(record["path"], "/a");
    assert_eq!(record["reason"], "no_rule");
    assert_eq!(record["status"], 403);
    assert!(!record.to_string().contains("secret"), "{record}");
}

#[test]
fn a_refusal_to_head_has_no_body() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let mut client = gateway.connect();
    let head = "HEAD http://other.example/ HTTP/1.1\r\nHost: other.example\r\nAUTH\r\n\r\n";
    client.send(fill(head, 0, "bot"));
    let refused = client.response_to("HEAD");
    assert_eq!((refused.status, refused.refusal()), (403, "no_rule"));
    // Nothing of a body stands before the next answer.
    client.send(get("/", origin.port(), "bot"));
    assert_eq!(client.response().body, b"ok");
}

#[test]
fn failures_of_the_destination_are_told_apart() {
    let names = Names::serve();
    names.set("nowhere.test", &[]);
    let gateway =
        Gateway::start_with_names(LOOPBACK_POLICY, &[("timeouts.response", "300ms")], names);
    let dead = ports::free();
    let closes = Origin::serve(|mut conn, _| drop(conn.head()));
    let silent = Origin::serve(|mut conn, _| drop(conn.rest()));
    let noise = Origin::serve(|mut conn, _| {
        conn.head();
        conn.send_lossy("SSH-2.0-OpenSSH_9\r\n\r\n");
    });
    let half = Origin::serve(|mut conn, _| {
        conn.head();
        conn.send_lossy("HTTP/1.1 200 OK\r\nContent-Le");
    });
    let two_lengths = Origin::serve(|mut conn, _| {
        conn.head();
        conn.send_lossy("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab");
    });
    for (case, host, port, status, word) in [
        ("nobody listens", "a.test", dead, 502, "connect_refused"),
        ("it closes", "a.test", closes.port(), 502, "upstream_closed"),
        (
            "it says nothing",
            "a.test",
            silent.port(),
            504,
            "upstream_timeout",
        ),
        (
            "it speaks no HTTP",
            "a.test",
            noise.port(),
            502,
            "upstream_protocol",
        ),
        (
            "its head is cut",
            "a.test",
            half.port(),
            502,
            "upstream_closed",
        ),
        (
            "its length is ambiguous",
            "a.test",
            two_lengths.port(),
            502,
            "upstream_protocol",
        ),
        (
            "its name has no address",
            "nowhere.test",
            dead,
            502,
            "name_not_found",
        ),
    ] {
        let template =
            format!("GET http://{host}:PORT/ HTTP/1.1\r\nHost: {host}:PORT\r\nAUTH\r\n\r\n");
        let (answer, _) = ask_lossy(&gateway, fill(&template, port, "bot"));
        assert_eq!(
            (answer.status, answer.refusal()),
            (status, word),
            "{case}: {}",
            answer.reason
        );
        assert_eq!(answer.json()["error"], word, "{case}");
        let record = gateway.record_of(&answer);
        assert_eq!(record["reason"], word, "{case}");
    }
    let records = gateway.stop();
    assert_eq!(records.len(), 7, "one record each: {records:#?}");
}

/// A client that told the end of such an answer otherwise than the gateway
/// would take what follows for the answer of the next origin it asks.
#[test]
fn an_answer_that_could_end_in_two_places_is_none() {
    let gateway = Gateway::open();
    for (case, head, body) in [
        ("a switch of protocols", "101 Switching Protocols\r\n", ""),
        (
            "a switch to what was not asked for",
            "101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n",
            "",
        ),
        (
            "two codings in two fields",
            "200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "2\r\nab\r\n0\r\n\r\n",
        ),
        (
            "two codings",
            "200 OK\r\nTransfer-Encoding: chunked, identity\r\n",
            "2\r\nab\r\n0\r\n\r\n",
        ),
        (
            "an unknown coding",
            "200 OK\r\nTransfer-Encoding: xchunked\r\nContent-Length: 2\r\n",
            "ab",
        ),
        (
            "a length with a sign",
            "200 OK\r\nContent-Length: +2\r\n",
            "ab",
        ),
    ] {
        let origin = Origin::serve(move |mut conn, _| {
            conn.head();
            conn.send_lossy(format!("HTTP/1.1 {head}\r\n{body}"));
            conn.send_lossy("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL");
            conn.rest();
        });
        let ask = "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n\r\n";
        let (answer, mut client) = ask_lossy(&gateway, fill(ask, origin.port(), "bot"));
        assert_eq!(
            (answer.status, answer.refusal()),
            (502, "upstream_protocol"),
            "{case}"
        );
        assert_eq!(client.rest(), b"", "{case}: nothing comes behind it");
        assert_eq!(gateway.record_of(&answer)["status"], 502, "{case}");
    }
    // One way to tell it, said twice, is one.
    let origin = Origin::serve(|mut conn, _| {
        conn.head();
        conn.send_lossy(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\
             Proxy-Status: AgentPort; error=destination_ip_prohibited\r\n\r\nab",
        );
    });
    let ask = "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n\r\n";
    let (answer, _) = ask_lossy(&gateway, fill(ask, origin.port(), "bot"));
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"ab"[..]));
    assert_eq!(answer.head.all("content-length"), ["2"]);
    assert!(answer.field("proxy-status").is_none(), "none but ours");
}

#[test]
fn a_method_that_would_send_fields_back_is_refused() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let head = "TRACE http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n\r\n";
    let (refused, _) = ask_lossy(&gateway, fill(head, origin.port(), "bot"));
    assert_eq!((refused.status, refused.refusal()), (405, "method_refused"));
    assert!(refused.field("allow").is_some());
    assert_eq!(origin.connections(), 0);
}

#[test]
fn what_a_rule_says_of_methods_and_paths_holds() {
    let policy = r#"
version: 1
rules:
  - name: reading
    action: allow
    agents: ["reader"]
    hosts: ["a.test"]
    addresses: ["127.0.0.0/8"]
    ports: any
    methods: [GET, HEAD]
    paths: ["/public/**"]
  - name: no-keys
    action: deny
    agents: any
    hosts: ["a.test"]
    ports: any
    paths: ["/public/keys/**"]
"#;
    let gateway = Gateway::start(policy, &[]);
    let origin = Origin::ok();
    for (case, agent, method, path, status) in [
        ("what is allowed", "reader", "GET", "/public/x", 200),
        ("another method", "reader", "DELETE", "/public/x", 403),
        ("another path", "reader", "GET", "/private", 403),
        (
            "the path in another case",
            "reader",
            "GET",
            "/PUBLIC/x",
            403,
        ),
        ("another agent", "writer", "GET", "/public/x", 403),
        (
            "an agent whose name begins so",
            "reader-2",
            "GET",
            "/public/x",
            403,
        ),
        ("what is denied", "reader", "GET", "/public/keys/1", 403),
        ("a way up", "reader", "GET", "/public/../private", 403),
        (
            "an escaped way up",
            "reader",
            "GET",
            "/public/%2e%2e/private",
            403,
        ),
        (
            "denied by an escape",
            "reader",
            "GET",
            "/public/%6beys/1",
            403,
        ),
        (
            "denied by two slashes",
            "reader",
            "GET",
            "/public//keys/1",
            403,
        ),
        ("denied by a dot", "reader", "GET", "/public/./keys/1", 403),
        (
            "a query does not matter",
            "reader",
            "GET",
            "/public/x?/public/keys/1",
            200,
        ),
    ] {
        let before = origin.requests().len();
        let template = format!(
            "{method} http://a.test:PORT{path} HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n\r\n"
        );
        let (answer, _) = ask_lossy(&gateway, fill(&template, origin.port(), agent));
        // A path that can be read in two ways may be refused as such.
        let status = if answer.status == 400 && status == 403 {
            400
        } else {
            status
        };
        assert_eq!(answer.status, status, "{case}: {}", answer.reason);
        let reached = origin.requests().len() - before;
        assert_eq!(reached, usize::from(status == 200), "{case}");
    }
}

#[test]
fn a_storm_of_refusals_is_counted_and_not_lost() {
    let gateway = Gateway::open();
    for _ in 0..25 {
        let head = "GET http://other.example/ HTTP/1.1\r\nHost: other.example\r\nAUTH\r\n\r\n";
        assert_eq!(ask(&gateway, fill(head, 0, "bot")).status, 403);
    }
    let records = gateway.stop();
    let counted: u64 = records
        .iter()
        .map(|record| record["count"].as_u64().expect("a count"))
        .sum();
    assert_eq!(counted, 25, "{records:#?}");
    assert!(records.len() < 25, "written one by one: {}", records.len());
}

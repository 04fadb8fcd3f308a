//! An intermediary's duties (RFC 9110 section 7.6): what belongs to one hop
//! stays on it, what the gateway adds, and how often connections are used.

use crate::support::gateway::{Gateway, LOOPBACK_POLICY, token_with};
use crate::support::origin::{Origin, Untouched};
use crate::{ask, ask_lossy, fill, get};

#[test]
fn what_belongs_to_the_clients_hop_stays_on_it() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let request = "GET http://a.test:PORT/a?b=c HTTP/1.1\r\n\
        Host: a.test:PORT\r\nAUTH\r\n\
        Connection: keep-alive, X-Named, x-other\r\n\
        Connection: Upgrade, HTTP2-Settings, Host, Authorization\r\n\
        X-Named: 1\r\nX-Other: 2\r\n\
        Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
        Proxy-Authenticate: Basic\r\nProxy-Authentication-Info: x\r\nProxy-Status: x\r\n\
        Proxy-Features: x\r\nProxy-Instruction: x\r\n\
        TE: trailers, gzip\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\
        Authorization: Bearer of-the-origin\r\nX-Kept: 3\r\nX-Kept: 4\r\nCookie: a=b\r\n\r\n";
    let answer = ask(&gateway, fill(request, origin.port(), "bot"));
    assert_eq!(answer.status, 200);
    let got = origin.last();
    assert_eq!(got.start, "GET /a?b=c HTTP/1.1");
    for gone in [
        "x-named",
        "x-other",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-status",
        "proxy-features",
        "proxy-instruction",
        "te",
        "upgrade",
        "http2-settings",
    ] {
        assert!(got.field(gone).is_none(), "{gone} went on: {got:?}");
    }
    assert_eq!(got.all("host"), [format!("a.test:{}", origin.port())]);
    assert_eq!(got.all("x-kept"), ["3", "4"]);
    assert_eq!(got.field("cookie"), Some("a=b"));
    let via = got.all("via");
    assert_eq!(via.len(), 1);
    assert!(via[0].starts_with("1.1 agentport"), "{via:?}");
}

#[test]
fn what_belongs_to_the_origins_hop_stays_on_it() {
    let gateway = Gateway::open();
    let origin = Origin::http(|_, _| {
        b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nConnection: X-Named, keep-alive\r\nX-Named: 1\r\nKeep-Alive: timeout=5\r\n\
          Proxy-Connection: keep-alive\r\nProxy-Authenticate: Basic\r\nX-AgentPort-Reason: lie\r\nAlt-Svc: h3=\":443\"\r\n\
          Via: 1.0 other\r\nX-Kept: 1\r\nX-Kept: 2\r\n\r\nok"
            .to_vec()
    });
    let answer = ask(&gateway, get("/", origin.port(), "bot"));
    assert_eq!(answer.status, 200);
    for gone in [
        "x-named",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "x-agentport-reason",
        "alt-svc",
    ] {
        assert!(answer.field(gone).is_none(), "{gone}: {:?}", answer.head);
    }
    assert_eq!(answer.head.all("x-kept"), ["1", "2"]);
    let via = answer.head.all("via").join(", ");
    assert!(via.starts_with("1.0 other, 1.1 agentport"), "{via}");
    assert!(answer.field("x-request-id").is_some());
}

#[test]
fn a_request_that_comes_back_is_a_loop() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    assert_eq!(ask(&gateway, get("/", origin.port(), "bot")).status, 200);
    let ours = origin.last().field("via").expect("a Via").to_owned();
    for (case, via, status) in [
        ("its own", ours.clone(), 508),
        ("its own behind another", format!("1.1 other, {ours}"), 508),
        (
            "its own in a second field",
            format!("1.1 other\r\nVia: {ours}"),
            508,
        ),
        ("another's", "1.1 agentport-00000000".to_owned(), 200),
        ("none of a gateway", "1.1 squid (x)".to_owned(), 200),
    ] {
        let template = format!(
            "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\nVia: {via}\r\n\r\n"
        );
        let (answer, _) = ask_lossy(&gateway, fill(&template, origin.port(), "bot"));
        assert_eq!(answer.status, status, "{case}: {}", answer.reason);
    }
    assert_eq!(origin.requests().len(), 3);
}

#[test]
fn max_forwards_counts_down_and_ends_here() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let untouched = Untouched::listen();
    let options = |count: &str, port| {
        let template = format!(
            "OPTIONS http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\nMax-Forwards: {count}\r\n\r\n"
        );
        fill(&template, port, "bot")
    };
    assert_eq!(ask(&gateway, options("0", untouched.port())).status, 200);
    assert_eq!(ask(&gateway, options("5", origin.port())).status, 200);
    assert_eq!(origin.last().all("max-forwards"), ["4"]);
    let get =
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\nMax-Forwards: 0\r\n\r\n";
    assert_eq!(ask(&gateway, fill(get, origin.port(), "bot")).status, 200);
    assert_eq!(origin.last().all("max-forwards"), ["0"]);
}

#[test]
fn options_of_the_whole_server_stays_one() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let options = "OPTIONS http://a.test:PORT HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n\r\n";
    assert_eq!(
        ask(&gateway, fill(options, origin.port(), "bot")).status,
        200
    );
    // RFC 9112 section 3.2.4.
    assert_eq!(origin.last().asks(), ("OPTIONS", "*"));
}

#[test]
fn the_scheme_of_websocket_is_that_of_its_handshake() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let head = "GET ws://a.test:PORT/chat HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n\r\n";
    let answer = ask(&gateway, fill(head, origin.port(), "bot"));
    assert_eq!(answer.status, 200);
    assert_eq!(origin.last().start, "GET /chat HTTP/1.1");
}

#[test]
fn methods_go_on_as_they_are() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    for method in [
        "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "M-SEARCH", "QUERY",
    ] {
        let template = format!(
            "{method} http://a.test:PORT/x HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\nContent-Length: 4\r\n\r\nbody"
        );
        let answer = ask(&gateway, fill(&template, origin.port(), "bot"));
        assert_eq!(answer.status, 200, "{method}");
        let (head, body) = origin.requests().pop().expect("a request");
        assert_eq!(head.asks(), (method, "/x"));
        assert_eq!(body, b"body", "{method}");
    }
}

#[test]
fn head_and_statuses_without_a_body_leave_the_connection_in_step() {
    let gateway = Gateway::open();
    let origin = Origin::http(|head, _| match head.asks() {
        ("HEAD", _) => b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n".to_vec(),
        (_, "/204") => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        (_, "/304") => {
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5000\r\nETag: \"a\"\r\n\r\n".to_vec()
        }
        _ => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
    });
    let mut client = gateway.connect();
    client.send(fill(
        "HEAD http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n\r\n",
        origin.port(),
        "bot",
    ));
    let head = client.response_to("HEAD");
    assert_eq!(
        (head.status, head.field("content-length")),
        (200, Some("5000"))
    );
    for (path, status) in [("/204", 204), ("/304", 304), ("/", 200)] {
        client.send(get(path, origin.port(), "bot"));
        let answer = client.response();
        assert_eq!(answer.status, status);
    }
    assert_eq!(origin.requests().len(), 4);
}

#[test]
fn pipelined_requests_are_judged_one_by_one_and_answered_in_order() {
    let gateway = Gateway::open();
    let origin = Origin::http(|head, _| {
        let path = head.asks().1;
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}",
            path.len()
        )
        .into_bytes()
    });
    let refused = "GET http://other.example/ HTTP/1.1\r\nHost: other.example\r\nAUTH\r\n\r\n";
    let mut client = gateway.connect();
    let mut all = String::new();
    for path in ["/1", "/2"] {
        all.push_str(&get(path, origin.port(), "bot"));
    }
    all.push_str(&fill(refused, 0, "bot"));
    all.push_str(&get("/3", origin.port(), "bot"));
    client.send(all);
    let bodies = [client.response(), client.response()].map(|answer| answer.body);
    assert_eq!(bodies, [b"/1".to_vec(), b"/2".to_vec()]);
    let third = client.response();
    assert_eq!((third.status, third.refusal()), (403, "no_rule"));
    assert_eq!(client.response().body, b"/3");
    let records = gateway.stop();
    assert_eq!(records.len(), 4, "{records:#?}");
}

#[test]
fn upstream_connections_are_kept_and_never_shared_between_agents_or_tenants() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let as_tenant = |agent: &str, tenant: Option<&str>| {
        format!(
            "GET http://a.test:{0}/ HTTP/1.1\r\nHost: a.test:{0}\r\nProxy-Authorization: Bearer {1}\r\n\r\n",
            origin.port(),
            token_with(agent, tenant, None)
        )
    };
    // Each on a connection of its own that stays: what an answer leaves is back
    // in the pool before the next request on that connection is read.
    let mut clients = std::collections::HashMap::new();
    for (case, agent, tenant, connections) in [
        ("the first request", "bot", None, 1),
        ("the same agent again", "bot", None, 1),
        ("the same agent once more", "bot", None, 1),
        ("another agent", "other", None, 2),
        ("the same name in a tenant", "bot", Some("acme"), 3),
        (
            "the same name in another tenant",
            "bot",
            Some("umbrella"),
            4,
        ),
        ("the first agent again", "bot", None, 4),
        ("the first tenant again", "bot", Some("acme"), 4),
    ] {
        let client = clients
            .entry((agent, tenant))
            .or_insert_with(|| gateway.connect());
        client.send(as_tenant(agent, tenant));
        let answer = client.response();
        assert_eq!(answer.status, 200, "{case}: {}", answer.reason);
        assert_eq!(origin.connections(), connections, "{case}");
    }
    // Nor between hosts at one address, since a rule may name only one.
    let other = fill(
        "GET http://b.test:PORT/ HTTP/1.1\r\nHost: b.test:PORT\r\nAUTH\r\n\r\n",
        origin.port(),
        "bot",
    );
    assert_eq!(ask(&gateway, other).status, 200);
    assert_eq!(origin.connections(), 5, "another host");
}

#[test]
fn http_1_0_is_answered_as_it_understands() {
    let gateway = Gateway::open();
    let origin = Origin::http(|head, _| match head.asks().1 {
        "/chunked" => {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_vec()
        }
        _ => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
    });
    for (case, path, fields, stays) in [
        ("without a word", "/", "", false),
        ("it wants to stay", "/", "Connection: keep-alive\r\n", true),
        ("to a body without a length", "/chunked", "", false),
        (
            "it wants to stay, without a length",
            "/chunked",
            "Connection: keep-alive\r\n",
            false,
        ),
    ] {
        let template = format!("GET http://a.test:PORT{path} HTTP/1.0\r\nAUTH\r\n{fields}\r\n");
        let mut client = gateway.connect();
        client.send(fill(&template, origin.port(), "bot"));
        let answer = client.response();
        assert_eq!(answer.status, 200, "{case}");
        assert!(
            answer.field("transfer-encoding").is_none(),
            "{case}: {:?}",
            answer.head
        );
        assert_eq!(answer.body, b"ok", "{case}");
        if stays {
            assert_eq!(
                answer.field("connection").map(str::to_lowercase).as_deref(),
                Some("keep-alive"),
                "{case}"
            );
            client.send(fill(&template, origin.port(), "bot"));
            assert_eq!(client.response().body, b"ok", "{case}: once more");
        } else {
            assert!(client.closes(), "{case}: the connection is closed");
        }
        // Whatever the client speaks, the origin hears 1.1.
        assert!(
            origin.last().start.ends_with(" HTTP/1.1"),
            "{case}: {}",
            origin.last().start
        );
    }
}

#[test]
fn a_client_that_wants_to_close_gets_its_answer_and_the_end() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let template = "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\nConnection: close\r\n\r\n";
    for _ in 0..2 {
        let mut client = gateway.connect();
        client.send(fill(template, origin.port(), "bot"));
        let answer = client.response();
        assert_eq!(answer.field("connection"), Some("close"));
        assert!(client.closes());
    }
    // The client's wish is not the origin's: that connection is kept.
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_trace_is_taken_up_and_passed_on() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let template = format!(
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01\r\nX-OpenClaw-Skill: reader@1\r\n\r\n"
    );
    let answer = ask(&gateway, fill(&template, origin.port(), "bot"));
    let record = gateway.record_of(&answer);
    assert_eq!(record["trace_id"], trace);
    assert_eq!(record["skill"], "reader@1");
    let passed = origin
        .last()
        .field("traceparent")
        .expect("a trace")
        .to_owned();
    assert!(passed.starts_with(&format!("00-{trace}-")), "{passed}");
    assert!(
        !passed.contains("00f067aa0ba902b7"),
        "another parent: {passed}"
    );
}

#[test]
fn a_body_over_the_limit_is_refused() {
    let gateway = Gateway::start(LOOPBACK_POLICY, &[("limits.body_bytes", "1KiB")]);
    let origin = Origin::ok();
    let post = |fields: &str, body: &str| {
        let template = format!(
            "POST http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n{fields}\r\n{body}"
        );
        fill(&template, origin.port(), "bot")
    };
    let full = "x".repeat(1024);
    let over = "x".repeat(1025);
    for (case, request, status) in [
        (
            "as much as may be",
            post("Content-Length: 1024\r\n", &full),
            200,
        ),
        (
            "one byte over",
            post("Content-Length: 1025\r\n", &over),
            413,
        ),
        (
            "far over, and not sent",
            post("Content-Length: 1000000000\r\n", ""),
            413,
        ),
        (
            "in chunks, one byte over",
            post(
                "Transfer-Encoding: chunked\r\n",
                &format!("401\r\n{over}\r\n0\r\n\r\n"),
            ),
            413,
        ),
    ] {
        let before = origin.requests().len();
        let (answer, _) = ask_lossy(&gateway, request);
        assert_eq!(answer.status, status, "{case}: {}", answer.reason);
        let passed = origin.requests().len() - before;
        assert_eq!(
            passed,
            usize::from(status == 200),
            "{case}: a whole request"
        );
    }
}

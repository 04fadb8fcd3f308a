//! Plain requests, which go by the gateway's own hands: what origins answer, and
//! what becomes of the connections to them.

use std::sync::{Arc, Barrier, mpsc};

use crate::support::DEADLINE;
use crate::support::gateway::{Gateway, LOOPBACK_POLICY};
use crate::support::origin::Origin;
use crate::{ask, fill, get};

/// A request without a body by this method.
fn bare(method: &str, path: &str, port: u16) -> String {
    let template = format!(
        "{method} http://a.test:PORT{path} HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\nContent-Length: 0\r\n\r\n"
    );
    fill(&template, port, "bot")
}

#[test]
fn what_an_origin_closes_under_a_request_is_asked_again_where_it_may_be() {
    for (method, status, connections) in [
        ("GET", 200, 2),
        ("OPTIONS", 200, 2),
        ("DELETE", 200, 2),
        // Nobody knows whether it was done (RFC 9110 section 9.2.2).
        ("POST", 502, 1),
        ("PATCH", 502, 1),
    ] {
        let gateway = Gateway::open();
        let origin = Origin::serve(|mut conn, number| {
            let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            conn.head().expect("a request");
            conn.send(ok);
            // The second request on the first connection finds it closing.
            if conn.head().is_some() && number > 0 {
                conn.send(ok);
            }
        });
        let mut client = gateway.connect();
        client.send(get("/", origin.port(), "bot"));
        assert_eq!(client.response().status, 200);
        client.send(bare(method, "/again", origin.port()));
        let answer = client.response();
        assert_eq!(answer.status, status, "{method}");
        assert_eq!(origin.connections(), connections, "{method}");
        let records = gateway.stop();
        let record = records.iter().find(|record| record["path"] == "/again");
        let record = record.expect("a record");
        let reason = if status == 200 {
            "ok"
        } else {
            "upstream_closed"
        };
        assert_eq!(record["reason"], reason, "{method}: {record}");
    }
}

#[test]
fn a_new_connection_that_says_nothing_is_not_asked_again() {
    let gateway = Gateway::open();
    let origin = Origin::serve(|mut conn, _| drop(conn.head()));
    let answer = ask(&gateway, get("/", origin.port(), "bot"));
    assert_eq!(answer.status, 502);
    assert_eq!(origin.connections(), 1);
}

#[test]
fn nothing_is_held_that_an_origin_has_closed_or_that_nobody_uses() {
    let gateway = Gateway::start(LOOPBACK_POLICY, &[("timeouts.upstream_idle", "1s")]);
    let (send, closed) = mpsc::channel();
    let send = std::sync::Mutex::new(send);
    let origin = Origin::serve(move |mut conn, _| {
        let path = conn.head().expect("a request").asks().1.to_owned();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        if path == "/closes" {
            conn.finish();
        }
        // Comes back when the gateway has closed its side.
        conn.rest();
        let sender = send.lock().expect("not failed");
        sender.send(path).expect("the test waits");
    });
    let mut client = gateway.connect();
    for path in ["/closes", "/stays"] {
        client.send(get(path, origin.port(), "bot"));
        assert_eq!(client.response().status, 200, "{path}");
        let over = closed.recv_timeout(DEADLINE).expect("it is closed");
        assert_eq!(over, path);
    }
}

#[test]
fn old_origins_are_understood_and_their_answers_written_well() {
    let gateway = Gateway::open();
    let origin = Origin::serve(|mut conn, _| {
        let path = conn.head().expect("a request").asks().1.to_owned();
        conn.send(match path.as_str() {
            "/bare" => "HTTP/1.1 200 OK\nContent-Length: 2\nX-A: 1\n\nok",
            "/blanks" => "HTTP/1.1 200 OK\r\nContent-Length : 2\r\nX-A\t: 1\r\n\r\nok",
            "/end" => "HTTP/1.0 200 OK\r\nX-A: 1\r\n\r\nok",
            "/no-reason" => "HTTP/1.1 200\r\nContent-Length: 2\r\nX-A: 1\r\n\r\nok",
            "/folded" => "HTTP/1.1 200 OK\r\nX-A:\r\n 1\r\nContent-Length:\n\t2\r\n\r\nok",
            other => panic!("{other}"),
        });
    });
    // The client's connection lives on behind each, for it can tell the end.
    let mut client = gateway.connect();
    for path in ["/bare", "/blanks", "/end", "/no-reason", "/folded"] {
        client.send(get(path, origin.port(), "bot"));
        let answer = client.response();
        assert_eq!(
            (answer.status, &answer.body[..]),
            (200, &b"ok"[..]),
            "{path}"
        );
        assert_eq!(answer.head.field("x-a"), Some("1"), "{path}");
        assert!(answer.head.start.starts_with("HTTP/1.1 200"), "{path}");
        // Who passes on what has no date says when it did.
        assert_eq!(answer.head.all("date").len(), 1, "{path}");
    }
}

#[test]
fn a_status_that_nobody_knows_and_a_date_go_on_as_they_are() {
    let gateway = Gateway::open();
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let origin = Origin::http(move |_, _| {
        format!("HTTP/1.1 999 Request Denied\r\nDate: {date}\r\nContent-Length: 2\r\n\r\nno").into()
    });
    let answer = ask(&gateway, get("/", origin.port(), "bot"));
    assert_eq!(
        (answer.status, answer.reason.as_str()),
        (999, "Request Denied")
    );
    assert_eq!(answer.head.all("date"), [date]);
    let record = gateway.record("the request", |record| record["path"] == "/");
    assert_eq!(record["status"], 999, "{record}");
}

#[test]
fn what_came_before_a_mistake_goes_on() {
    let gateway = Gateway::open();
    let origin = Origin::serve(|mut conn, _| {
        conn.head().expect("a request");
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\nZZ\r\n");
        conn.rest();
    });
    let mut client = gateway.connect();
    client.send(get("/", origin.port(), "bot"));
    let bytes = client.rest();
    assert!(bytes.starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert!(bytes.ends_with(b"\r\n\r\n4\r\ngood\r\n"), "{bytes:?}");
    let record = gateway.record("the request", |record| record["path"] == "/");
    assert_eq!(record["reason"], "upstream_broke_off", "{record}");
    assert_eq!(record["bytes_down"], 4, "{record}");
}

#[test]
fn trailers_have_an_end() {
    let gateway = Gateway::open();
    let (send, closed) = mpsc::channel();
    let send = std::sync::Mutex::new(send);
    let origin = Origin::serve(move |mut conn, _| {
        conn.head().expect("a request");
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n");
        conn.send_lossy("X:\r\n".repeat(20_000));
        conn.rest();
        send.lock()
            .expect("not failed")
            .send(())
            .expect("the test waits");
    });
    let mut client = gateway.connect();
    client.send(get("/", origin.port(), "bot"));
    assert!(!client.rest().ends_with(b"0\r\n\r\n"), "it looks whole");
    closed.recv_timeout(DEADLINE).expect("the origin is left");
    let record = gateway.record("the request", |record| record["path"] == "/");
    assert_eq!(record["reason"], "upstream_broke_off", "{record}");
}

#[test]
fn who_has_said_all_gets_an_answer_and_who_is_gone_is_not_waited_for() {
    let gateway = Gateway::open();
    let (send, told) = mpsc::channel();
    let send = std::sync::Mutex::new(send);
    let asked = Arc::new(Barrier::new(2));
    let at_origin = Arc::clone(&asked);
    let origin = Origin::serve(move |mut conn, _| {
        let path = conn.head().expect("a request").asks().1.to_owned();
        at_origin.wait();
        match path.as_str() {
            "/half-closed" => {
                at_origin.wait();
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
            _ => {
                // Comes back when the gateway has given it up.
                conn.rest();
                send.lock()
                    .expect("not failed")
                    .send(())
                    .expect("the test waits");
            }
        }
    });
    let mut client = gateway.connect();
    client.send(get("/half-closed", origin.port(), "bot"));
    asked.wait();
    client.finish();
    asked.wait();
    assert_eq!(client.response().body, b"ok");

    let mut client = gateway.connect();
    client.send(get("/gone", origin.port(), "bot"));
    asked.wait();
    client.abort();
    told.recv_timeout(DEADLINE).expect("the origin is left");
    let record = gateway.record("who is gone", |record| record["path"] == "/gone");
    assert_eq!(record["reason"], "aborted", "{record}");
}

#[test]
fn an_origin_that_is_silent_is_not_waited_for_for_ever() {
    let gateway = Gateway::start(LOOPBACK_POLICY, &[("timeouts.response", "2s")]);
    let origin = Origin::serve(|mut conn, _| {
        let path = conn.head().expect("a request").asks().1.to_owned();
        if path == "/half" {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok");
        }
        conn.rest();
    });
    for (path, status, reason) in [
        ("/nothing", 504, "upstream_timeout"),
        ("/half", 200, "upstream_broke_off"),
    ] {
        let mut client = gateway.connect();
        client.send(get(path, origin.port(), "bot"));
        let bytes = client.rest();
        let start = format!("HTTP/1.1 {status} ");
        assert!(bytes.starts_with(start.as_bytes()), "{path}");
        let record = gateway.record(path, |record| record["path"] == path);
        assert_eq!(record["reason"], reason, "{record}");
    }
}

#[test]
fn an_answer_without_an_end_is_refused() {
    let gateway = Gateway::open();
    let origin = Origin::serve(|mut conn, _| {
        let path = conn.head().expect("a request").asks().1.to_owned();
        match path.as_str() {
            "/fields" => {
                conn.send_lossy(format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(257)));
            }
            "/long" => {
                conn.send_lossy("HTTP/1.1 200 OK\r\nA: ");
                conn.send_lossy("x".repeat(300 * 1024));
            }
            "/banner" => conn.send("SSH-2.0-OpenSSH_9\r\n"),
            "/field" => conn.send("HTTP/1.1 200 OK\r\nno field\r\n"),
            _ => conn.send_lossy("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(40)),
        }
        conn.rest();
    });
    for path in ["/fields", "/long", "/interim", "/banner", "/field"] {
        let mut client = gateway.connect();
        client.send(get(path, origin.port(), "bot"));
        let mut answer = client.response();
        while answer.status == 103 {
            answer = client.response();
        }
        assert_eq!(answer.status, 502, "{path}");
        assert!(client.rest().is_empty(), "{path}");
        let record = gateway.record(path, |record| record["path"] == path);
        assert_eq!(record["reason"], "upstream_protocol", "{record}");
    }
}

#[test]
fn trailers_go_on_unless_they_would_change_what_came_before() {
    let gateway = Gateway::open();
    let origin = Origin::http(|_, _| {
        b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2;ext=1\r\nok\r\n0\r\n\
          X-Sum: 7\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\nConnection: close\r\nX-AgentPort-Reason: ok\r\n\r\n"
            .to_vec()
    });
    let mut client = gateway.connect();
    for _ in 0..2 {
        client.send(get("/", origin.port(), "bot"));
        let answer = client.response();
        assert_eq!(answer.body, b"ok");
        assert_eq!(answer.trailers, [("X-Sum".to_owned(), "7".to_owned())]);
    }
    assert_eq!(origin.connections(), 1, "it is kept");
}

#[test]
fn what_lasts_ends_with_the_policy_that_let_it_begin() {
    let gateway = Gateway::open();
    let begun = Arc::new(Barrier::new(2));
    let at_origin = Arc::clone(&begun);
    let origin = Origin::serve(move |mut conn, _| {
        conn.head().expect("a request");
        conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
        at_origin.wait();
        conn.rest();
    });
    let mut client = gateway.connect();
    client.send(get("/events", origin.port(), "bot"));
    begun.wait();
    client.until(b"data: 1\n\n");
    gateway.change_policy("version: 1\nrules: []\n");
    let rest = client.rest();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it looks whole: {rest:?}");
    let record = gateway.record("the stream", |record| record["path"] == "/events");
    assert_eq!(record["reason"], "policy_changed", "{record}");
    assert_eq!(record["bytes_down"], 9, "{record}");
}

#[test]
fn a_refusal_leaves_the_connection_to_the_next_request() {
    let policy = "version: 1\nrules:\n  - {name: some, action: allow, agents: any, hosts: [a.test], \
        addresses: [127.0.0.0/8], ports: any, paths: [/yes]}\n";
    let gateway = Gateway::start(policy, &[]);
    let origin = Origin::ok();
    let mut client = gateway.connect();
    for (path, status) in [("/no", 403), ("/yes", 200), ("/no", 403), ("/yes", 200)] {
        client.send(get(path, origin.port(), "bot"));
        let answer = client.response();
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.head.field("connection"), None, "{path}");
    }
    assert_eq!((origin.requests().len(), origin.connections()), (2, 1));
}

//! Every request has one record, however it ends.

use std::sync::Mutex;
use std::sync::mpsc;

use crate::support::DEADLINE;
use crate::support::gateway::Gateway;
use crate::support::origin::Origin;
use crate::{ask, fill, get};

#[test]
fn a_record_has_every_field_and_nothing_that_is_secret() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let answer = ask(&gateway, get("/path?secret=1", origin.port(), "bot"));
    assert_eq!(origin.last().asks().1, "/path?secret=1");
    let record = gateway.record_of(&answer);
    for field in [
        "ts",
        "event",
        "request_id",
        "trace_id",
        "agent_id",
        "tenant",
        "token_jti",
        "act",
        "method",
        "scheme",
        "destination_host",
        "destination_port",
        "destination_ip",
        "via_proxy",
        "route",
        "path",
        "action_allowed",
        "reason",
        "rule",
        "policy_version",
        "mode",
        "status",
        "bytes_up",
        "bytes_down",
        "duration_ms",
        "jwt_validation_us",
        "skill",
    ] {
        assert!(record.get(field).is_some(), "{field}: {record}");
    }
    assert_eq!(record["event"], "request");
    assert_eq!(record["agent_id"], "bot");
    assert_eq!(record["method"], "GET");
    assert_eq!(record["scheme"], "http");
    assert_eq!(record["destination_host"], "a.test");
    assert_eq!(record["destination_port"], origin.port());
    assert_eq!(record["destination_ip"], "127.0.0.1");
    assert_eq!(record["path"], "/path");
    assert_eq!(record["action_allowed"], true);
    assert_eq!(record["reason"], "ok");
    assert_eq!(record["rule"], "test-names");
    assert_eq!(record["mode"], "enforce");
    assert_eq!(record["status"], 200);
    assert_eq!(record["bytes_down"], 2);
    let text = record.to_string();
    assert!(!text.contains("secret"), "{text}");
    assert!(!text.contains("eyJ"), "a token: {text}");
}

#[test]
fn whoever_breaks_off_there_is_one_record() {
    let gateway = Gateway::open();
    let (send, reached) = mpsc::channel();
    let send = Mutex::new(send);
    let origin = Origin::serve(move |mut conn, _| {
        let head = conn.head().expect("a request");
        let path = head.asks().1.to_owned();
        send.lock()
            .expect("not failed")
            .send(path.clone())
            .expect("the test waits");
        match path.as_str() {
            "/half-answer" => conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
            "/half-chunk" => {
                conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf");
            }
            "/client-leaves" => {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
                conn.rest();
            }
            _ => drop(conn.rest()),
        }
    });
    let port = origin.port();
    let arrived = |path: &str| {
        assert_eq!(
            reached.recv_timeout(DEADLINE).expect("the origin is asked"),
            path
        );
    };

    // The origin breaks off in the middle of its answer.
    for path in ["/half-answer", "/half-chunk"] {
        let mut client = gateway.connect();
        client.send(get(path, port, "bot"));
        arrived(path);
        let bytes = client.rest();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("half"), "{path}: {text}");
        assert!(
            !text.ends_with("\r\n0\r\n\r\n"),
            "{path}: it looks whole: {text}"
        );
        let record = gateway.record(path, |record| record["path"] == path);
        assert_eq!(record["reason"], "upstream_broke_off", "{record}");
        assert_eq!(record["status"], 200, "{record}");
    }

    // The client goes away in the middle of an answer.
    let mut client = gateway.connect();
    client.send(get("/client-leaves", port, "bot"));
    arrived("/client-leaves");
    client.until(b"half");
    client.abort();
    let record = gateway.record("a client that left", |record| {
        record["path"] == "/client-leaves"
    });
    assert_eq!(record["reason"], "aborted", "{record}");

    // The client goes away before any answer.
    let mut client = gateway.connect();
    client.send(get("/no-answer", port, "bot"));
    arrived("/no-answer");
    client.abort();
    let record = gateway.record("a client that left early", |record| {
        record["path"] == "/no-answer"
    });
    assert_eq!(record["reason"], "aborted", "{record}");

    // The client goes away in the middle of its request's body.
    let mut client = gateway.connect();
    let post = "POST http://a.test:PORT/half-body HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\nContent-Length: 100\r\n\r\nhalf";
    client.send(fill(post, port, "bot"));
    arrived("/half-body");
    client.abort();
    let record = gateway.record("half a body", |record| record["path"] == "/half-body");
    assert_eq!(record["reason"], "aborted", "{record}");
    assert_eq!(record["bytes_up"], 4, "{record}");

    // The client goes away in the middle of a head: that was no request yet.
    let mut client = gateway.connect();
    client.send("GET http://a.test/ HT");
    client.abort();

    let records = gateway.stop();
    assert_eq!(records.len(), 5, "one record each: {records:#?}");
}

#[test]
fn what_may_have_reached_an_origin_is_not_recorded_as_refused() {
    let gateway = Gateway::open();
    let (send, reached) = mpsc::channel();
    let send = Mutex::new(send);
    let origin = Origin::serve(move |mut conn, _| {
        conn.until(b"secret");
        send.lock()
            .expect("not failed")
            .send(())
            .expect("the test waits");
        conn.rest();
    });
    let mut client = gateway.connect();
    let post = "POST http://a.test:PORT/up HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n\
        Transfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n";
    client.send(fill(post, origin.port(), "bot"));
    reached.recv_timeout(DEADLINE).expect("the origin has it");
    client.send("ZZ\r\n");
    assert_eq!(client.response().status, 400);
    let record = gateway.record("the upload", |record| record["path"] == "/up");
    assert_eq!(record["action_allowed"], true, "{record}");
    assert_eq!(record["reason"], "bad_request", "{record}");
    assert_eq!(record["bytes_up"], 6, "{record}");
}

#[test]
fn a_client_may_close_its_half_and_wait() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let mut client = gateway.connect();
    client.send(get("/", origin.port(), "bot"));
    client.finish();
    assert_eq!(client.response().body, b"ok");
    assert!(client.closes());
}

//! Bodies in both directions as they come: nothing is held back, nothing is
//! gathered, and a slow reader slows its writer.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::{Duration, Instant};

use ring::digest;

use crate::support::conn::Conn;
use crate::support::gateway::{Gateway, LOOPBACK_POLICY};
use crate::support::origin::Origin;
use crate::support::{DEADLINE, wait_for};
use crate::{ask, fill, get};

const POST: &str = "POST http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n";
const BIG: usize = 64 * 1024 * 1024;

/// The same bytes every time, which no compression or repetition helps.
fn noise(mut state: u64) -> impl FnMut(&mut [u8]) {
    move |out| {
        for part in out.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            part.copy_from_slice(&state.to_le_bytes()[..part.len()]);
        }
    }
}

fn digest_of_noise() -> Vec<u8> {
    let mut sum = digest::Context::new(&digest::SHA256);
    let mut next = noise(1);
    let mut part = vec![0; 64 * 1024];
    for _ in 0..BIG / part.len() {
        next(&mut part);
        sum.update(&part);
    }
    sum.finish().as_ref().to_vec()
}

/// Writes the noise, and counts what the other side has taken.
fn write_noise(conn: &Conn, count: &AtomicUsize) {
    let mut next = noise(1);
    let mut part = vec![0; 64 * 1024];
    for _ in 0..BIG / part.len() {
        next(&mut part);
        let mut stream = conn.stream();
        stream.write_all(&part).expect("the other side reads");
        count.fetch_add(part.len(), Ordering::SeqCst);
    }
}

fn read_noise(conn: &mut Conn) -> Vec<u8> {
    let mut sum = digest::Context::new(&digest::SHA256);
    for _ in 0..BIG / (64 * 1024) {
        sum.update(&conn.exactly(64 * 1024));
    }
    sum.finish().as_ref().to_vec()
}

/// Waits until the writer gets no further, because nobody reads. A count that
/// stands still for another reason only makes what is found smaller.
fn stalled(count: &AtomicUsize) -> usize {
    let mut seen = (0, Instant::now());
    wait_for("the writer to stop", || {
        let now = count.load(Ordering::SeqCst);
        if now != seen.0 || now == 0 {
            seen = (now, Instant::now());
        }
        (now == BIG || seen.1.elapsed() > Duration::from_millis(500)).then_some(now)
    })
}

/// What sockets on both sides may hold, generously. The body is far more.
const HELD: usize = 24 * 1024 * 1024;

#[test]
fn a_big_body_goes_up_whole_and_as_fast_as_it_is_read() {
    let gateway = Gateway::open();
    let read = Arc::new(Barrier::new(2));
    let may_read = Arc::clone(&read);
    let origin = Origin::serve(move |mut conn, _| {
        conn.head().expect("a request");
        may_read.wait();
        let sum = read_noise(&mut conn);
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n");
        conn.send(sum);
    });
    let mut client = gateway.connect();
    let head = format!("{POST}Content-Length: {BIG}\r\n\r\n");
    client.send(fill(&head, origin.port(), "bot"));
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| write_noise(&client, &count));
        let held = stalled(&count);
        read.wait();
        assert!(held < HELD, "{held} bytes were taken and not passed on");
    });
    let answer = client.response();
    assert_eq!(answer.body, digest_of_noise(), "byte for byte");
    let record = gateway.record_of(&answer);
    assert_eq!(record["bytes_up"], BIG);
    assert_eq!(record["bytes_down"], 32);
}

#[test]
fn a_big_body_comes_down_whole_and_as_fast_as_it_is_read() {
    let gateway = Gateway::open();
    let count = Arc::new(AtomicUsize::new(0));
    let written = Arc::clone(&count);
    let origin = Origin::serve(move |mut conn, _| {
        conn.head().expect("a request");
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n"));
        write_noise(&conn, &written);
    });
    let mut client = gateway.connect();
    client.send(get("/", origin.port(), "bot"));
    let head = client.head().expect("a response");
    let held = stalled(&count);
    assert!(held < HELD, "{held} bytes were taken and not passed on");
    assert_eq!(read_noise(&mut client), digest_of_noise(), "byte for byte");
    let id = head.field("x-request-id").expect("an id").to_owned();
    let record = gateway.record(&id, |record| record["request_id"] == id.as_str());
    assert_eq!(record["bytes_down"], BIG);
    assert_eq!(record["bytes_up"], 0);
}

#[test]
fn chunks_of_a_request_go_on_as_they_come() {
    let gateway = Gateway::open();
    let (send, got) = mpsc::channel();
    let send = Mutex::new(send);
    let origin = Origin::serve(move |mut conn, _| {
        conn.head().expect("a request");
        loop {
            let chunk = conn.chunk();
            let end = chunk.is_empty();
            send.lock()
                .expect("not failed")
                .send(chunk)
                .expect("the test waits");
            if end {
                break;
            }
        }
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let mut client = gateway.connect();
    client.send(fill(
        &format!("{POST}Transfer-Encoding: chunked\r\n\r\n"),
        origin.port(),
        "bot",
    ));
    // Each is sent only when the origin has the one before.
    for word in ["one", "two", "three"] {
        client.send(format!("{:x}\r\n{word}\r\n", word.len()));
        assert_eq!(got.recv_timeout(DEADLINE).expect(word), word.as_bytes());
    }
    client.send("0\r\n\r\n");
    assert!(got.recv_timeout(DEADLINE).expect("the end").is_empty());
    assert_eq!(client.response().body, b"ok");
}

#[test]
fn parts_of_an_answer_go_on_as_they_come() {
    for (case, head, framed) in [
        (
            "in chunks",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            true,
        ),
        (
            "events in chunks",
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            true,
        ),
        (
            "events until the end",
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
            false,
        ),
        (
            "with a length",
            "HTTP/1.1 200 OK\r\nContent-Length: 33\r\n\r\n",
            false,
        ),
    ] {
        let gateway = Gateway::open();
        let (go, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let origin = Origin::serve(move |mut conn, _| {
            conn.head().expect("a request");
            conn.send(head);
            // Each is sent only when the client has the one before.
            for number in 0..3 {
                wait.lock()
                    .expect("not failed")
                    .recv_timeout(DEADLINE)
                    .expect("the client");
                let event = format!("data: {number}\n\n~~");
                if framed {
                    conn.send(format!("{:x}\r\n{event}\r\n", event.len()));
                } else {
                    conn.send(event);
                }
            }
            if framed {
                conn.send("0\r\n\r\n");
            }
        });
        let mut client = gateway.connect();
        client.send(get("/", origin.port(), "bot"));
        let answer = client.head().expect("the head comes before any event");
        assert_eq!(answer.status(), 200, "{case}");
        let chunked = answer.field("transfer-encoding").is_some();
        for number in 0..3 {
            go.send(()).expect("the origin waits");
            let event = format!("data: {number}\n\n~~");
            let got = if chunked {
                client.chunk()
            } else {
                client.exactly(event.len())
            };
            assert_eq!(String::from_utf8_lossy(&got), event, "{case}");
        }
        if chunked {
            assert!(client.chunk().is_empty(), "{case}: the end");
        } else if answer.field("content-length").is_none() {
            assert!(client.closes(), "{case}: the end");
        }
    }
}

#[test]
fn an_origin_may_answer_before_it_has_the_body() {
    let gateway = Gateway::open();
    let origin = Origin::serve(|mut conn, _| {
        conn.head().expect("a request");
        conn.send("HTTP/1.1 413 Too Much\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
    });
    let mut client = gateway.connect();
    client.send(fill(
        &format!("{POST}Content-Length: 1000000\r\n\r\n"),
        origin.port(),
        "bot",
    ));
    client.send_lossy("x".repeat(1000));
    let answer = client.response();
    assert_eq!((answer.status, answer.body.as_slice()), (413, &b"no"[..]));
}

#[test]
fn expect_waits_for_the_origins_word() {
    let gateway = Gateway::open();
    let head = format!("{POST}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n");

    let (send, asked) = mpsc::channel();
    let send = Mutex::new(send);
    let willing = Origin::serve(move |mut conn, _| {
        let head = conn.head().expect("a request");
        send.lock()
            .expect("not failed")
            .send(head)
            .expect("the test waits");
        conn.send("HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(conn.exactly(5), b"hello");
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let mut client = gateway.connect();
    client.send(fill(&head, willing.port(), "bot"));
    let asked = asked.recv_timeout(DEADLINE).expect("the origin is asked");
    assert_eq!(asked.field("expect"), Some("100-continue"));
    let interim = client.head().expect("an interim answer");
    assert_eq!(interim.status(), 100);
    client.send("hello");
    assert_eq!(client.response().body, b"ok");

    // The origin says no, and the body is never sent.
    let unwilling = Origin::serve(|mut conn, _| {
        conn.head().expect("a request");
        conn.send("HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno");
        assert_eq!(conn.rest(), b"", "no body");
    });
    let mut client = gateway.connect();
    client.send(fill(&head, unwilling.port(), "bot"));
    let answer = client.head().expect("an answer");
    assert_eq!(answer.status(), 417, "and no 100 before");

    // The gateway says no.
    let mut client = gateway.connect();
    let other = head.replace("a.test", "other.example");
    client.send(fill(&other, 80, "bot"));
    let answer = client.head().expect("an answer");
    assert_eq!(answer.status(), 403, "and no 100 before");
}

#[test]
fn a_client_that_expects_and_sends_anyway_is_served() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let head = format!("{POST}Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello");
    let answer = ask(&gateway, fill(&head, origin.port(), "bot"));
    assert_eq!(answer.status, 200);
    assert_eq!(origin.requests()[0].1, b"hello");
}

#[test]
fn interim_answers_are_passed_on() {
    let gateway = Gateway::open();
    let origin = Origin::http(|_, _| {
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()
    });
    let mut client = gateway.connect();
    client.send(get("/", origin.port(), "bot"));
    let hints = client.head().expect("hints");
    assert_eq!(
        (hints.status(), hints.field("link")),
        (103, Some("</a>; rel=preload"))
    );
    let answer = client.response();
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"ok"[..]));
    let record = gateway.record_of(&answer);
    assert_eq!(record["status"], 200);
    assert_eq!(gateway.stop().len(), 1);
}

#[test]
fn a_websocket_carries_bytes_both_ways_until_either_closes() {
    let gateway = Gateway::start(LOOPBACK_POLICY, &[]);
    let upgrade = "GET http://a.test:PORT/ws HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n\
        Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let accepted = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let origin = Origin::serve(move |mut conn, number| {
        let head = conn.head().expect("a request");
        assert_eq!(head.field("upgrade"), Some("websocket"));
        assert_eq!(
            head.field("connection").map(str::to_lowercase).as_deref(),
            Some("upgrade")
        );
        assert!(head.field("proxy-authorization").is_none());
        // The server's first frame comes in one segment with its answer.
        conn.send([accepted.as_bytes(), b"\x81\x02hi"].concat());
        assert_eq!(conn.exactly(9), b"\x81\x83abcd\x00\x01\x02");
        conn.send(b"\x82\x7e\x01\x00");
        conn.send([0xff; 256]);
        if number == 0 {
            assert_eq!(conn.rest(), b"\x88\x80abcd", "the client's close");
        }
    });
    for first_to_close in ["the client", "the origin"] {
        let mut client = gateway.connect();
        client.send(fill(upgrade, origin.port(), "bot"));
        let answer = client.response();
        assert_eq!(answer.status, 101, "{}", answer.reason);
        assert_eq!(answer.field("upgrade"), Some("websocket"));
        assert_eq!(
            answer.field("connection").map(str::to_lowercase).as_deref(),
            Some("upgrade")
        );
        assert!(answer.field("sec-websocket-accept").is_some());
        assert_eq!(client.exactly(4), b"\x81\x02hi");
        client.send(b"\x81\x83abcd\x00\x01\x02");
        assert_eq!(client.exactly(260)[..4], *b"\x82\x7e\x01\x00");
        if first_to_close == "the client" {
            client.send(b"\x88\x80abcd");
            client.finish();
        }
        assert!(client.closes(), "{first_to_close}");
        let record = gateway.record_of(&answer);
        assert_eq!(record["status"], 101, "{first_to_close}");
        assert_eq!(record["bytes_down"], 264, "{first_to_close}: {record}");
        let up = if first_to_close == "the client" {
            15
        } else {
            9
        };
        assert_eq!(record["bytes_up"], up, "{first_to_close}: {record}");
    }
    assert_eq!(gateway.stop().len(), 2);
}

#[test]
fn an_upgrade_that_is_refused_is_a_request_like_others() {
    let gateway = Gateway::open();
    let origin = Origin::http(|_, _| b"HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\nno".to_vec());
    let upgrade = "GET http://a.test:PORT/ws HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n\
        Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut client = gateway.connect();
    // A request behind it must not reach the origin unjudged.
    let behind = "GET http://other.example/ HTTP/1.1\r\nHost: other.example\r\nX: smuggled\r\n\r\n";
    client.send(format!("{}{behind}", fill(upgrade, origin.port(), "bot")));
    let answer = client.response();
    assert_eq!((answer.status, answer.body.as_slice()), (400, &b"no"[..]));
    let rest = String::from_utf8_lossy(&client.rest()).into_owned();
    assert!(
        rest.is_empty() || rest.starts_with("HTTP/1.1 407 "),
        "{rest}"
    );
    assert_eq!(origin.requests().len(), 1, "{:?}", origin.requests());
    // The gateway refuses it in the same way as any other.
    let (refused, _) = crate::ask_lossy(
        &gateway,
        fill(&upgrade.replace("a.test", "other.example"), 80, "bot"),
    );
    assert_eq!((refused.status, refused.refusal()), (403, "no_rule"));
}

/// Chunks larger than what is looked at at once, and sizes that come alone:
/// the bytes are those that were sent.
#[test]
fn chunks_arrive_whole_however_they_are_cut() {
    let gateway = Gateway::open();
    let (send, got) = mpsc::channel();
    let send = Mutex::new(send);
    let origin = Origin::serve(move |mut conn, _| {
        conn.head().expect("a request");
        loop {
            let chunk = conn.chunk();
            let end = chunk.is_empty();
            send.lock()
                .expect("not failed")
                .send(chunk)
                .expect("the test waits");
            if end {
                break;
            }
        }
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let mut client = gateway.connect();
    client.send(fill(
        &format!("{POST}Transfer-Encoding: chunked\r\n\r\n"),
        origin.port(),
        "bot",
    ));
    let mut sent = Vec::new();
    let mut arrived = Vec::new();
    for length in [1usize, 4095, 20_000, 3, 70_000] {
        let data: Vec<u8> = (0..length).map(|at| (at % 251 + 1) as u8).collect();
        client.send(format!("{length:x}\r\n"));
        client.send(&data);
        client.send("\r\n");
        sent.extend_from_slice(&data);
        // The next size is sent when all before it has gone on.
        while arrived.len() < sent.len() {
            arrived.extend(got.recv_timeout(DEADLINE).expect("a chunk"));
        }
        assert!(arrived == sent, "after a chunk of {length} bytes");
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.response().status, 200);
}

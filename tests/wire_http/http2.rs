//! HTTP/2 in clear text with prior knowledge (RFC 9113 section 3.3), as some
//! clients speak it to a proxy.

use std::future::Future;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode};

use crate::support::DEADLINE;
use crate::support::gateway::{Gateway, token};
use crate::support::origin::{Origin, Untouched};

/// Runs a client to its end, or to the deadline.
fn run<T>(client: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime
        .block_on(async { tokio::time::timeout(DEADLINE, client).await })
        .expect("in time")
}

/// A connection that speaks HTTP/2 at once.
async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let tcp = tokio::net::TcpStream::connect(address)
        .await
        .expect("the gateway listens");
    let (sender, connection) = h2::client::handshake(tcp).await.expect("a handshake");
    tokio::spawn(connection);
    sender
}

struct Answer {
    status: StatusCode,
    fields: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn refusal(&self) -> &str {
        self.fields
            .get("x-agentport-reason")
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    }
}

async fn send(
    sender: &SendRequest<Bytes>,
    request: Request<()>,
    body: &'static [u8],
) -> Result<Answer, h2::Error> {
    let mut sender = sender.clone().ready().await?;
    let (answer, mut stream) = sender.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        stream.send_data(Bytes::from_static(body), true)?;
    }
    let answer = answer.await?;
    let (parts, mut data) = answer.into_parts();
    let mut body = Vec::new();
    while let Some(part) = data.data().await {
        let part = part?;
        data.flow_control().release_capacity(part.len())?;
        body.extend_from_slice(&part);
    }
    Ok(Answer {
        status: parts.status,
        fields: parts.headers,
        body,
    })
}

fn request(method: Method, uri: &str, agent: Option<&str>) -> http::request::Builder {
    let builder = Request::builder().method(method).uri(uri);
    match agent {
        Some(agent) => builder.header("proxy-authorization", format!("Bearer {}", token(agent))),
        None => builder,
    }
}

#[test]
fn requests_on_one_connection_are_judged_one_by_one() {
    let gateway = Gateway::open();
    let origin = Origin::http(|head, body| {
        let text = format!("{} {}", head.asks().1, String::from_utf8_lossy(body));
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: keep-alive\r\n\r\n{text}",
            text.len()
        )
        .into_bytes()
    });
    let untouched = Untouched::listen();
    let uri = |host: &str, path: &str| format!("http://{host}:{}{path}", origin.port());
    run(async {
        let sender = connect(gateway.egress()).await;
        let get = request(Method::GET, &uri("a.test", "/a?b=c"), Some("bot"))
            .body(())
            .expect("a request");
        let answer = send(&sender, get, b"").await.expect("an answer");
        assert_eq!(
            (answer.status, answer.body.as_slice()),
            (StatusCode::OK, &b"/a?b=c "[..])
        );
        assert!(answer.fields.contains_key("x-request-id"));

        let post = request(Method::POST, &uri("a.test", "/post"), Some("bot"))
            .header("te", "trailers")
            .header("cookie", "a=b")
            .header("cookie", "c=d")
            .body(())
            .expect("a request");
        let answer = send(&sender, post, b"hello").await.expect("an answer");
        assert_eq!(answer.body, b"/post hello");

        for (case, request, status, word) in [
            (
                "no credential",
                request(Method::GET, &uri("a.test", "/"), None),
                407,
                "no_credential",
            ),
            (
                "no rule",
                request(
                    Method::GET,
                    &format!("http://other.example:{}/", untouched.port()),
                    Some("bot"),
                ),
                403,
                "no_rule",
            ),
            (
                "an address",
                request(
                    Method::GET,
                    &format!("http://127.0.0.1:{}/", untouched.port()),
                    Some("bot"),
                ),
                403,
                "",
            ),
            (
                "https",
                request(Method::GET, "https://a.test/", Some("bot")),
                400,
                "https_needs_connect",
            ),
            (
                "TRACE",
                request(Method::TRACE, &uri("a.test", "/"), Some("bot")),
                405,
                "method_refused",
            ),
            (
                "a method that is written otherwise",
                request(
                    Method::from_bytes(b"delete").expect("a method"),
                    &uri("a.test", "/"),
                    Some("bot"),
                ),
                400,
                "bad_request",
            ),
            (
                "two lengths",
                request(Method::POST, &uri("a.test", "/"), Some("bot"))
                    .header("content-length", "0")
                    .header("content-length", "0"),
                400,
                "bad_request",
            ),
            (
                "two credentials",
                request(Method::GET, &uri("a.test", "/"), Some("bot"))
                    .header("proxy-authorization", "Bearer x"),
                400,
                "bad_request",
            ),
            (
                "the gateway itself",
                request(
                    Method::GET,
                    &format!("http://a.test:{}/", gateway.egress().port()),
                    Some("bot"),
                ),
                403,
                "own_listener",
            ),
            (
                "a decimal address",
                request(Method::GET, "http://2130706433/", Some("bot")),
                400,
                "bad_request",
            ),
        ] {
            let answer = send(&sender, request.body(()).expect("a request"), b"")
                .await
                .unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!(
                answer.status.as_u16(),
                status,
                "{case}: {}",
                answer.refusal()
            );
            if !word.is_empty() {
                assert_eq!(answer.refusal(), word, "{case}");
            }
            let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
            assert_eq!(body["error"], answer.refusal(), "{case}");
        }
        // The connection is as good as before.
        let get = request(Method::GET, &uri("a.test", "/again"), Some("bot"))
            .body(())
            .expect("a request");
        assert_eq!(
            send(&sender, get, b"").await.expect("an answer").body,
            b"/again "
        );
    });
    let requests = origin.requests();
    assert_eq!(requests.len(), 3, "{requests:?}");
    let (head, _) = &requests[1];
    assert_eq!(head.start, "POST /post HTTP/1.1");
    assert_eq!(head.all("host"), [format!("a.test:{}", origin.port())]);
    assert!(head.field("proxy-authorization").is_none());
    assert!(head.field("te").is_none(), "{head:?}");
    // RFC 9113 section 8.2.3: cookies come together again.
    assert_eq!(head.all("cookie"), ["a=b; c=d"]);
    assert!(head.all("via")[0].starts_with("2 agentport"), "{head:?}");
    let records = gateway.stop();
    assert_eq!(records.len(), 13, "one record each");
}

#[test]
fn many_requests_at_once_are_answered_each() {
    let gateway = Gateway::open();
    let origin = Origin::http(|head, _| {
        let path = head.asks().1;
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}",
            path.len()
        )
        .into_bytes()
    });
    run(async {
        let sender = connect(gateway.egress()).await;
        let mut all = tokio::task::JoinSet::new();
        for number in 0..50 {
            let sender = sender.clone();
            let uri = format!("http://a.test:{}/{number}", origin.port());
            let get = request(Method::GET, &uri, Some("bot"))
                .body(())
                .expect("a request");
            all.spawn(async move {
                let answer = send(&sender, get, b"").await.expect("an answer");
                (number, answer.body)
            });
        }
        while let Some(done) = all.join_next().await {
            let (number, body) = done.expect("it has ended");
            assert_eq!(body, format!("/{number}").as_bytes());
        }
    });
    assert_eq!(gateway.stop().len(), 50, "one record each");
}

#[test]
fn a_request_over_http2_counts_its_hops_too() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let untouched = Untouched::listen();
    run(async {
        let sender = connect(gateway.egress()).await;
        let options = |port: u16, count: &str| {
            let uri = format!("http://a.test:{port}/");
            request(Method::OPTIONS, &uri, Some("bot"))
                .header("max-forwards", count)
                .body(())
                .expect("a request")
        };
        let answer = send(&sender, options(untouched.port(), "0"), b"")
            .await
            .expect("an answer");
        assert_eq!(answer.status, 200);
        let answer = send(&sender, options(origin.port(), "5"), b"")
            .await
            .expect("an answer");
        assert_eq!(answer.status, 200);
    });
    assert_eq!(origin.last().all("max-forwards"), ["4"]);
}

#[test]
fn fields_of_a_proxy_do_not_go_on_from_http2() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    run(async {
        let sender = connect(gateway.egress()).await;
        let uri = format!("http://a.test:{}/", origin.port());
        let get = request(Method::GET, &uri, Some("bot"))
            .header("proxy-features", "x")
            .header("proxy-status", "x")
            .header("x-kept", "1")
            .body(())
            .expect("a request");
        assert_eq!(
            send(&sender, get, b"").await.expect("an answer").status,
            200
        );
    });
    let head = origin.last();
    assert!(head.field("proxy-features").is_none(), "{head:?}");
    assert!(head.field("proxy-status").is_none(), "{head:?}");
    assert_eq!(head.field("x-kept"), Some("1"));
}

/// Sends these bytes in a stream and reads as many. With `half` the stream is
/// closed as soon as they are sent, otherwise when all have come.
async fn exchange(
    mut send: h2::SendStream<Bytes>,
    mut receive: h2::RecvStream,
    bytes: Bytes,
    half: bool,
) -> Vec<u8> {
    let count = bytes.len();
    let sending = async move {
        let mut rest = bytes;
        while !rest.is_empty() {
            send.reserve_capacity(rest.len());
            let count = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
            let count = count.expect("open").expect("capacity").min(rest.len());
            send.send_data(rest.split_to(count), false).expect("sent");
        }
        if half {
            send.send_data(Bytes::new(), true).expect("closed");
        }
        send
    };
    let receiving = async move {
        let mut got = Vec::new();
        while got.len() < count || half {
            let Some(part) = receive.data().await else {
                break;
            };
            let part = part.expect("data");
            let flow = receive.flow_control();
            flow.release_capacity(part.len()).expect("released");
            got.extend_from_slice(&part);
        }
        got
    };
    let (mut send, got) = tokio::join!(sending, receiving);
    if !half {
        send.send_data(Bytes::new(), true).expect("closed");
    }
    got
}

#[test]
fn a_connect_is_a_tunnel_in_its_stream() {
    let policy = format!("{}    tls: any\n", crate::support::gateway::LOOPBACK_POLICY);
    let gateway = Gateway::start(&policy, &[]);
    let echo = Origin::echo();
    let untouched = Untouched::listen();
    let sent: Bytes = (0..250_000u32).flat_map(u32::to_le_bytes).collect();
    run(async {
        let sender = connect(gateway.egress()).await;
        // Two tunnels and a request at once, on one connection.
        let mut tunnels = tokio::task::JoinSet::new();
        for agent in ["one", "two"] {
            let uri = format!("a.test:{}", echo.port());
            let ask = request(Method::CONNECT, &uri, Some(agent))
                .body(())
                .expect("a request");
            let mut sender = sender.clone().ready().await.expect("ready");
            let sent = sent.clone();
            tunnels.spawn(async move {
                let (answer, send) = sender.send_request(ask, false).expect("sent");
                let answer = answer.await.expect("an answer");
                assert_eq!(answer.status(), 200);
                // RFC 9110 section 9.3.6.
                assert!(!answer.headers().contains_key("content-length"));
                let got = exchange(send, answer.into_body(), sent.clone(), true).await;
                assert!(got == sent, "{agent}: {} bytes came back", got.len());
            });
        }
        while let Some(done) = tunnels.join_next().await {
            done.expect("it has ended");
        }
        for (case, uri, agent, status, word) in [
            (
                "no credential",
                format!("a.test:{}", untouched.port()),
                None,
                407,
                "no_credential",
            ),
            (
                "no rule",
                format!("b.example:{}", untouched.port()),
                Some("bot"),
                403,
                "no_rule",
            ),
            (
                "the gateway",
                format!("a.test:{}", gateway.egress().port()),
                Some("bot"),
                403,
                "own_listener",
            ),
            (
                "a decimal address",
                "2130706433:80".to_owned(),
                Some("bot"),
                400,
                "bad_request",
            ),
        ] {
            let ask = request(Method::CONNECT, &uri, agent)
                .body(())
                .expect("a request");
            let mut sender = sender.clone().ready().await.expect("ready");
            let (answer, _send) = sender.send_request(ask, false).expect("sent");
            let answer = answer
                .await
                .unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!(answer.status().as_u16(), status, "{case}");
            let reason = answer.headers().get("x-agentport-reason").cloned();
            assert_eq!(reason.expect("a reason"), word, "{case}");
            let mut body = answer.into_body();
            let mut text = Vec::new();
            while let Some(part) = body.data().await {
                text.extend_from_slice(&part.expect("data"));
            }
            let body: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
            assert_eq!(body["error"], word, "{case}");
        }
    });
    let records = gateway.stop();
    assert_eq!(
        records.len(),
        8,
        "one for each refusal, two for each tunnel: {records:#?}"
    );
    let closed: Vec<_> = records
        .iter()
        .filter(|record| record["event"] == "tunnel_closed")
        .collect();
    assert_eq!(closed.len(), 2);
    for record in closed {
        assert_eq!(record["reason"], "ok", "{record}");
        assert_eq!(record["bytes_up"], 1_000_000, "{record}");
        assert_eq!(record["bytes_down"], 1_000_000, "{record}");
    }
}

#[test]
fn a_stream_that_contradicts_itself_is_refused_and_recorded() {
    let gateway = Gateway::open();
    let untouched = Untouched::listen();
    run(async {
        let sender = connect(gateway.egress()).await;
        let uri = format!("http://a.test:{}/", untouched.port());
        let get = request(Method::GET, &uri, Some("bot"))
            .header("host", "b.test")
            .body(())
            .expect("a request");
        let answer = send(&sender, get, b"").await.expect("an answer");
        assert_eq!(answer.status, 400);
        let ask = request(
            Method::CONNECT,
            &format!("a.test:{}", untouched.port()),
            Some("bot"),
        )
        .header("host", "b.test")
        .body(())
        .expect("a request");
        let mut sender = sender.ready().await.expect("ready");
        let (answer, _send) = sender.send_request(ask, false).expect("sent");
        assert_eq!(answer.await.expect("an answer").status(), 400);
    });
    let records = gateway.stop();
    assert_eq!(records.len(), 2, "{records:#?}");
    for record in records {
        assert_eq!(record["status"], 400, "{record}");
        assert_eq!(record["action_allowed"], false, "{record}");
    }
}

#[test]
fn a_websocket_goes_through_a_stream() {
    let gateway = Gateway::open();
    let echo = Origin::serve(|mut conn, _| {
        let head = conn.head().expect("a request");
        assert_eq!(head.start, "GET /ws?a=b HTTP/1.1");
        assert_eq!(head.field("upgrade"), Some("websocket"));
        assert_eq!(head.field("sec-websocket-version"), Some("13"));
        assert_eq!(head.field("sec-websocket-key").map(str::len), Some(24));
        assert!(head.field("proxy-authorization").is_none());
        conn.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: chat\r\n\r\n");
        let (early, stream) = conn.into_parts();
        std::io::Write::write_all(&mut &stream, &early).expect("written");
        let _ = std::io::copy(&mut &stream, &mut &stream);
        let _ = stream.shutdown(std::net::Shutdown::Write);
    });
    let refuses = Origin::http(|_, _| b"HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\nnone".to_vec());
    let untouched = Untouched::listen();
    let sent: Bytes = (0..50_000u32).flat_map(u32::to_le_bytes).collect();
    run(async {
        let sender = connect(gateway.egress()).await;
        // Section 3: only where the server has said that it knows this.
        while !sender.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        let open = |uri: String, agent: Option<&str>, protocol: &'static str| {
            let mut ask = request(Method::CONNECT, &uri, agent)
                .header("sec-websocket-version", "13")
                .header("sec-websocket-protocol", "chat")
                .body(())
                .expect("a request");
            let protocol = h2::ext::Protocol::from_static(protocol);
            ask.extensions_mut().insert(protocol);
            let sender = sender.clone();
            async move {
                let mut sender = sender.ready().await.expect("ready");
                let (answer, send) = sender.send_request(ask, false).expect("sent");
                (answer.await.expect("an answer"), send)
            }
        };
        let uri = |port: u16| format!("http://a.test:{port}/ws?a=b");
        let (answer, send) = open(uri(echo.port()), Some("bot"), "websocket").await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
        assert!(!answer.headers().contains_key("sec-websocket-accept"));
        assert!(!answer.headers().contains_key("upgrade"));
        let got = exchange(send, answer.into_body(), sent.clone(), false).await;
        assert!(got == sent, "{} bytes came back", got.len());

        let (answer, _send) = open(uri(refuses.port()), Some("bot"), "websocket").await;
        assert_eq!(answer.status(), 404);
        let body = answer
            .into_body()
            .data()
            .await
            .expect("a body")
            .expect("data");
        assert_eq!(&body[..], b"none");
        for (case, uri, agent, protocol, status) in [
            (
                "no credential",
                uri(untouched.port()),
                None,
                "websocket",
                407,
            ),
            (
                "no rule",
                format!("http://b.example:{}/", untouched.port()),
                Some("bot"),
                "websocket",
                403,
            ),
            (
                "over TLS",
                format!("https://a.test:{}/", untouched.port()),
                Some("bot"),
                "websocket",
                400,
            ),
            (
                "another protocol",
                uri(untouched.port()),
                Some("bot"),
                "connect-udp",
                400,
            ),
        ] {
            let (answer, _send) = open(uri, agent, protocol).await;
            assert_eq!(answer.status().as_u16(), status, "{case}");
        }
    });
    let records = gateway.stop();
    assert_eq!(records.len(), 6, "one record each: {records:#?}");
}

#[test]
fn a_stream_that_is_reset_when_the_origin_has_it_is_not_recorded_as_refused() {
    let gateway = Gateway::open();
    let (send, reached) = std::sync::mpsc::channel();
    let send = std::sync::Mutex::new(send);
    let origin = Origin::serve(move |mut conn, _| {
        conn.until(b"secret");
        let sender = send.lock().expect("not failed");
        sender.send(()).expect("the test waits");
        conn.rest();
    });
    run(async {
        let sender = connect(gateway.egress()).await;
        let request = Request::post(format!("http://a.test:{}/up", origin.port()))
            .header("proxy-authorization", format!("Bearer {}", token("bot")))
            .body(())
            .expect("a request");
        let mut sender = sender.ready().await.expect("open");
        let (answer, mut stream) = sender.send_request(request, false).expect("sent");
        let data = Bytes::from_static(b"secret");
        stream.send_data(data, false).expect("sent");
        let arrived = tokio::task::spawn_blocking(move || reached.recv_timeout(DEADLINE));
        arrived.await.expect("joined").expect("the origin has it");
        stream.send_reset(h2::Reason::CANCEL);
        drop((answer, stream));
        // Elsewhere, so that the connection is served meanwhile.
        let record = tokio::task::spawn_blocking(move || {
            gateway.record("the upload", |record| record["path"] == "/up")
        });
        let record = record.await.expect("joined");
        assert_eq!(record["action_allowed"], true, "{record}");
        assert_eq!(record["reason"], "aborted", "{record}");
        assert_eq!(record["bytes_up"], 6, "{record}");
    });
}

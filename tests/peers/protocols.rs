//! What calls are made of: WebSocket, gRPC, HTTP/2, and bodies that name what
//! they call.

use std::io::{Read, Write};

use bytes::Bytes;

use crate::endpoints::{front, tls_of};
use crate::support::gateway::token;
use crate::support::grpc::{GrpcOrigin, echoes};
use crate::support::origin::Origin;
use crate::support::pki::{Pki, Valid};
use crate::{Between, POLICY, directory, runtime};

#[test]
fn a_websocket_is_byte_exact() {
    let bob = Origin::serve(|mut conn, _| {
        let head = conn.head().expect("a request");
        assert_eq!(head.field("upgrade"), Some("websocket"));
        assert_eq!(head.field("x-agentport-caller"), Some("alice"));
        conn.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: x\r\n\r\n",
        );
        let (unread, stream) = conn.into_parts();
        (&stream).write_all(&unread).expect("written");
        let mut part = [0; 16 * 1024];
        let mut carried = unread.len();
        loop {
            match (&stream).read(&mut part) {
                // The client drops its connection, so the end may be a reset.
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    carried += count;
                    (&stream).write_all(&part[..count]).expect("written");
                }
            }
        }
        assert_eq!(
            carried, 240_000,
            "the connection stood until all was carried"
        );
    });
    let between = Between::start(POLICY, &directory("bob", &[bob.address().to_string()]));
    let config = between.config(Some(&between.alice), "http/1.1");
    let mut tls = between.connect(&config);
    tls.write_all(
        b"GET /open/ws HTTP/1.1\r\nHost: bob.peers.internal\r\nConnection: Upgrade\r\n\
          Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
          Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    )
    .expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    let sent: Vec<u8> = (0..60_000_u32).flat_map(u32::to_le_bytes).collect();
    for part in sent.chunks(20_000) {
        tls.write_all(part).expect("sent");
        let mut back = vec![0; part.len()];
        tls.read_exact(&mut back).expect("received");
        assert!(back == part, "the same bytes");
    }
    drop(tls);
    let record = between
        .gateway
        .record("the WebSocket", |record| record["path"] == "/open/ws");
    assert_eq!(record["event"], "delegation");
    assert_eq!(record["status"], 101);
}

const CALLS: &str = r#"
version: 1
rules:
  - name: alice-lists
    action: allow
    agents: any
    hosts: ["bob.peers.internal", "openclaw.agent"]
    ports: any
    methods: [POST]
    rpc_methods: [tools.list]
"#;

#[test]
fn what_a_body_calls_is_judged_on_its_way_to_a_peer_and_to_the_fronted_agent() {
    let (bob, claw) = (Origin::ok(), Origin::ok());
    let upstream = format!("claw.test:{}", claw.port());
    let between = Between::start_with(
        CALLS,
        &directory("bob", &[bob.address().to_string()]),
        &[("agent.upstream", &upstream)],
    );
    let peer = |body: &str| {
        let config = between.config(Some(&between.alice), "http/1.1");
        let fields = format!("Content-Length: {}\r\n", body.len());
        // The body follows the head.
        let mut tls = between.connect(&config);
        let head = format!(
            "POST /rpc HTTP/1.1\r\nHost: bob.peers.internal\r\nConnection: close\r\n{fields}\r\n{body}"
        );
        tls.write_all(head.as_bytes()).expect("sent");
        let mut answer = Vec::new();
        let _ = tls.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        text[9..12].parse::<u16>().expect("a status")
    };
    let fronted = |body: &str| {
        let mut client = between.gateway.connect();
        client.send(format!(
            "POST /rpc HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            token("alice"),
            body.len()
        ));
        client.response().status
    };
    let allowed = r#"{"jsonrpc":"2.0", "id":1, "method":"tools.list"}"#;
    for (case, body, status) in [
        ("a method that is named", allowed, 200),
        (
            "another",
            r#"{"jsonrpc":"2.0","id":1,"method":"tools.call"}"#,
            403,
        ),
        (
            "one among several",
            r#"[{"method":"tools.list"},{"method":"tools.call"}]"#,
            403,
        ),
        ("no JSON", "method=tools.list", 400),
    ] {
        assert_eq!(peer(body), status, "a peer: {case}");
        assert_eq!(fronted(body), status, "the agent: {case}");
    }
    for origin in [&bob, &claw] {
        let seen = origin.requests();
        let [(_, body)] = &seen[..] else {
            panic!("one call has come through: {seen:?}");
        };
        assert_eq!(String::from_utf8_lossy(body), allowed, "byte for byte");
    }
    // By the egress listener the fronted agent is reached by no name of its own.
    for authority in [upstream, format!("127.0.0.1:{}", claw.port())] {
        let mut client = between.gateway.connect();
        client.send(format!(
            "GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\
             Proxy-Authorization: Bearer {}\r\n\r\n",
            token("alice")
        ));
        assert_eq!(client.response().status, 403, "{authority}");
    }
    assert_eq!(claw.requests().len(), 1);
}

#[test]
fn grpc_streams_both_ways_with_trailers() {
    grpc_streams(false);
}

#[test]
fn grpc_streams_both_ways_over_tls_to_the_endpoint() {
    grpc_streams(true);
}

fn grpc_streams(tls: bool) {
    let runtime = runtime();
    let origin = GrpcOrigin::looking(|head| {
        assert_eq!(head.headers["x-agentport-caller"], "alice");
        assert_eq!(head.uri.path(), "/open/Echo");
    });
    let address = origin.address();
    let own = Pki::new("bob's CA");
    let server = own.server("bob", &["bob.test"]);
    let gateway = own.client("gateway", 1, &["gateway.test"], Valid::Now);
    let agents = match tls {
        false => directory("bob", &[address.to_string()]),
        true => {
            let front = front(&runtime, address, &server, own.ca(), "h2");
            let at = format!("bob.test:{}", front.port());
            format!(
                "{}{}",
                directory("bob", &[at]),
                tls_of(own.ca(), "", Some(&gateway))
            )
        }
    };
    let agents = format!("{agents}    http2: true\n");
    let between = Between::start(POLICY, &agents);
    let config = between.config(Some(&between.alice), "h2");
    let talk = async {
        let tcp = tokio::net::TcpStream::connect(between.address)
            .await
            .expect("connected");
        let tls = tokio_rustls::TlsConnector::from(config)
            .connect("gateway.test".try_into().expect("a name"), tcp)
            .await
            .expect("a handshake");
        echoes(tls, "https://bob.peers.internal:8443/open/Echo", &[]).await;
    };
    runtime
        .block_on(async { tokio::time::timeout(crate::support::DEADLINE, talk).await })
        .expect("in time");
    let record = between
        .gateway
        .record("the call", |record| record["path"] == "/open/Echo");
    assert_eq!(record["event"], "delegation");
    assert_eq!(record["method"], "POST");
}

#[test]
fn a_websocket_in_http2_is_a_call_and_a_tunnel_is_none() {
    let bob = Origin::serve(|mut conn, _| {
        let head = conn.head().expect("a request");
        assert_eq!(head.start, "GET /open/ws HTTP/1.1");
        assert_eq!(head.field("x-agentport-caller"), Some("alice"));
        conn.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: x\r\n\r\n",
        );
        let (unread, stream) = conn.into_parts();
        (&stream).write_all(&unread).expect("written");
        let _ = std::io::copy(&mut &stream, &mut &stream);
    });
    let between = Between::start(POLICY, &directory("bob", &[bob.address().to_string()]));
    let config = between.config(Some(&between.alice), "h2");
    let talk = async {
        let tcp = tokio::net::TcpStream::connect(between.address)
            .await
            .expect("connected");
        let tls = tokio_rustls::TlsConnector::from(config)
            .connect("gateway.test".try_into().expect("a name"), tcp)
            .await
            .expect("a handshake");
        let (sender, connection) = h2::client::handshake(tls).await.expect("HTTP/2");
        tokio::spawn(connection);
        while !sender.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        let mut ask = http::Request::connect("https://bob.peers.internal:8443/open/ws")
            .header("sec-websocket-version", "13")
            .body(())
            .expect("a request");
        ask.extensions_mut()
            .insert(h2::ext::Protocol::from_static("websocket"));
        let mut ready = sender.clone().ready().await.expect("ready");
        let (answer, mut send) = ready.send_request(ask, false).expect("sent");
        let answer = answer.await.expect("an answer");
        assert_eq!(answer.status(), 200);
        send.send_data(Bytes::from_static(b"ping"), false)
            .expect("sent");
        let mut body = answer.into_body();
        assert_eq!(body.data().await.expect("a part").expect("read"), "ping");

        let tunnel = http::Request::connect("bob.test:80")
            .body(())
            .expect("a request");
        let mut ready = sender.clone().ready().await.expect("ready");
        let (answer, _send) = ready.send_request(tunnel, false).expect("sent");
        assert_eq!(answer.await.expect("an answer").status(), 405);
    };
    runtime()
        .block_on(async { tokio::time::timeout(crate::support::DEADLINE, talk).await })
        .expect("in time");
}

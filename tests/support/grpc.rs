//! gRPC as it is on the wire: an origin that sends back what it gets, part by
//! part, and a client that waits for each part before it sends the next.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::front::runtime;

/// An origin of HTTP/2 in clear that echoes each stream and ends it with
/// `grpc-status: 0`.
pub(crate) struct GrpcOrigin {
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl GrpcOrigin {
    pub(crate) fn serve() -> Self {
        Self::looking(|_| ())
    }

    /// One that looks at the head of each request, and fails it by a panic.
    pub(crate) fn looking(look: fn(&http::request::Parts)) -> Self {
        let runtime = runtime();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(connection(tcp, look));
            }
        });
        Self {
            address,
            _runtime: runtime,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn connection(tcp: tokio::net::TcpStream, look: fn(&http::request::Parts)) {
    let mut connection = h2::server::handshake(tcp).await.expect("HTTP/2");
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let (parts, mut body) = request.into_parts();
            look(&parts);
            let te = parts.headers.get("te").map(http::HeaderValue::as_bytes);
            assert_eq!(te, Some(&b"trailers"[..]));
            let head = http::Response::builder()
                .header("content-type", "application/grpc")
                .body(())
                .expect("an answer");
            let mut send = respond.send_response(head, false).expect("sent");
            while let Some(Ok(part)) = body.data().await {
                let _ = body.flow_control().release_capacity(part.len());
                send.send_data(part, false).expect("echoed");
            }
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            send.send_trailers(trailers).expect("ended");
        });
    }
}

/// A call on this connection, with these fields: each part comes back before
/// the next is sent, and the trailers come last.
pub(crate) async fn echoes(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &str,
    fields: &[(&str, &str)],
) {
    let (sender, connection) = h2::client::handshake(io).await.expect("HTTP/2");
    tokio::spawn(connection);
    let mut request = http::Request::post(url)
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let mut sender = sender.ready().await.expect("ready");
    let request = request.body(()).expect("a request");
    let (answer, mut send) = sender.send_request(request, false).expect("sent");
    let mut send_part = |part: &'static str, last| {
        send.send_data(Bytes::from_static(part.as_bytes()), last)
            .expect("sent");
    };
    send_part("first", false);
    let answer = answer.await.expect("an answer");
    assert_eq!(answer.status(), 200, "{answer:?}");
    let mut body = answer.into_body();
    for part in ["first", "second", "third"] {
        if part != "first" {
            send_part(part, false);
        }
        let back = body.data().await.expect("a part").expect("read");
        let _ = body.flow_control().release_capacity(back.len());
        assert_eq!(back, part.as_bytes());
    }
    send_part("", true);
    let last = body.data().await;
    assert!(last.is_none_or(|last| last.expect("read").is_empty()));
    let trailers = body.trailers().await.expect("read").expect("trailers");
    assert_eq!(trailers["grpc-status"], "0");
}

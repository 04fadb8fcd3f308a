//! HTTP/2 towards clients (RFC 9113), over TLS or in clear: our own loop over
//! the connection, each stream in a task of its own.
//!
//! A CONNECT opens a tunnel in its stream (section 8.5) by the same code as
//! over HTTP/1.1, an extended CONNECT a WebSocket (RFC 8441), and every other
//! request goes to Pingora's `HttpProxy`. What Pingora refuses before it
//! becomes a request is written down here.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::SendStream;
use h2::ext::Protocol;
use pingora::apps::HttpServerApp;
use pingora::http::ResponseHeader;
use pingora::protocols::Digest;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Accept, HttpSession, handshake};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;

use crate::egress::RequestId;
use crate::gate::{Cause, Denial, Opening};

use super::conn::{ConnIo, Connection, digest_of};
use super::connect::{self, ConnectHead};
use super::serve::{open_trail, refuse};
use super::transport::Transport;
use super::{Wire, websocket};

/// The most requests of one connection that are malformed.
const MOST_MALFORMED: u32 = 32;
/// How long streams may take to see that their connection is gone.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// The most that is copied into one frame's worth of data.
const CHUNK: usize = 64 * 1024;

/// Serves an HTTP/2 connection until it ends.
pub(super) async fn serve(wire: &Arc<Wire>, mut io: ConnIo) {
    io.speak_http2();
    let connection = Arc::clone(io.connection());
    let settings = &wire.shared.settings;
    let shaken = handshake(Box::new(io), wire.proxy.h2_options());
    let Ok(Ok(mut h2)) = tokio::time::timeout(settings.header_timeout, shaken).await else {
        return;
    };
    let mut streams = JoinSet::new();
    let mut malformed = 0;
    let mut shutdown = wire.shutdown.clone();
    let mut going_down = false;
    // Each stream is known apart, so that it can be ended by itself.
    let mut of_next = Arc::new(connection.of_stream());
    let mut digest = digest(&of_next);
    loop {
        let idle = streams.is_empty();
        let next = tokio::select! {
            biased;
            _ = connection.ending.ended() => break,
            // No more is taken; what has begun may end (section 6.8).
            _ = shutdown.wait_for(|down| *down), if !going_down => {
                h2.graceful_shutdown();
                going_down = true;
                continue;
            }
            Some(_) = streams.join_next(), if !idle => continue,
            next = HttpSession::from_h2_conn(&mut h2, Arc::clone(&digest)) => next,
            () = tokio::time::sleep(settings.keepalive_timeout), if idle => return,
        };
        match next {
            Ok(Some(H2Accept::Session(session))) => {
                let connection = Arc::clone(&connection);
                let of_stream = std::mem::replace(&mut of_next, Arc::new(connection.of_stream()));
                digest = self::digest(&of_next);
                streams.spawn(stream(Arc::clone(wire), of_stream, session));
            }
            Ok(Some(H2Accept::Rejected)) => {
                record_malformed(wire, &connection);
                malformed += 1;
                if malformed >= MOST_MALFORMED {
                    break;
                }
            }
            Ok(None) | Err(_) => break,
        }
    }
    // Each writes its own record; what does not see the end in time is dropped,
    // and a trail that is dropped is written as well.
    let all = async { while streams.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_WORDS, all).await;
}

/// By this a session finds what is known of its stream.
fn digest(of_stream: &Arc<Connection>) -> Arc<Digest> {
    Arc::new(Digest {
        proxy_digest: Some(digest_of(of_stream)),
        ..Digest::default()
    })
}

/// One stream: a tunnel, a WebSocket or a request.
async fn stream(wire: Arc<Wire>, of_stream: Arc<Connection>, session: HttpSession) {
    let head = session.req_header();
    if head.method != http::Method::CONNECT {
        let session = ServerSession::new_http2(session);
        tokio::select! {
            biased;
            // What is dropped resets the stream, and writes its own record.
            _ = of_stream.ending.ended() => {}
            _ = wire.proxy.process_new_http(session, &wire.shutdown) => {}
        }
        return;
    }
    let protocol = head.extensions.get::<Protocol>().cloned();
    match protocol {
        None => {
            let head = ConnectHead::of_http2(head);
            let stream = Http2Stream::new(session);
            let io = ConnIo::new(Transport::Http2(Box::new(stream)), of_stream);
            match head {
                Ok(_) if wire.shared.peers.is_some() => {
                    let mut trail = open_trail(&wire, &io);
                    trail.method("CONNECT");
                    refuse(io, trail, Denial::new(Cause::Method)).await;
                }
                Ok(head) => {
                    if let Some(tunnel) = connect::connect(&wire, io, head).await {
                        tunnel.await;
                    }
                }
                Err(denial) => {
                    let mut trail = open_trail(&wire, &io);
                    trail.method("CONNECT");
                    refuse(io, trail, denial).await;
                }
            }
        }
        Some(protocol) => websocket::serve(&wire, of_stream, session, &protocol).await,
    }
}

/// Pingora has answered 400 or reset the stream: an authority that is missing
/// or contradicts `Host`, a target that is none, or lengths that differ.
fn record_malformed(wire: &Wire, connection: &Connection) {
    let mut trail = wire.shared.gate.open(Opening {
        listener: Arc::clone(&connection.listener),
        client: connection.client,
        request_id: RequestId::from_bits((wire.shared.random)()),
    });
    let denial = Denial::new(Cause::BadRequest(
        "the authority, the target or the length of the HTTP/2 request is malformed",
    ));
    trail.refused(&denial.detail("an HTTP/2 stream with a malformed head"));
    trail.finish();
}

/// A stream whose data are the bytes of a tunnel.
pub(super) struct Http2Stream {
    session: HttpSession,
    send: Option<SendStream<Bytes>>,
    received: Bytes,
}

impl Http2Stream {
    pub(super) fn new(session: HttpSession) -> Self {
        Self {
            session,
            send: None,
            received: Bytes::new(),
        }
    }

    /// Sends the head of the answer; with `end` it is the whole answer.
    ///
    /// # Errors
    /// Where the client has gone.
    pub(super) fn answer(&mut self, header: ResponseHeader, end: bool) -> io::Result<()> {
        self.session
            .write_response_header(Box::new(header), end)
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        self.send = self.session.take_response_body_writer().filter(|_| !end);
        Ok(())
    }
}

fn failed(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl AsyncRead for Http2Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.received.is_empty() {
            match ready!(this.session.poll_read_body_bytes(cx)) {
                Some(Ok(bytes)) => this.received = bytes,
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = this.received.len().min(buf.remaining());
        buf.put_slice(&this.received[..count]);
        this.received.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(send) = &mut self.get_mut().send else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        send.reserve_capacity(bytes.len().min(CHUNK));
        // What is there already is not told again.
        while send.capacity() == 0 {
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let count = bytes.len().min(send.capacity());
        let data = Bytes::copy_from_slice(&bytes[..count]);
        send.send_data(data, false).map_err(failed)?;
        Poll::Ready(Ok(count))
    }

    /// The connection sends by itself what streams have given it.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut().send.take() {
            None => Poll::Ready(Ok(())),
            Some(mut send) => Poll::Ready(send.send_data(Bytes::new(), true).map_err(failed)),
        }
    }
}

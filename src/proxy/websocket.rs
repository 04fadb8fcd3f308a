//! A WebSocket in a stream of HTTP/2 (RFC 8441): what an extended CONNECT asks
//! for is put to the loop as the upgrade that it stands for in HTTP/1.1, and
//! the answer to that is put into HTTP/2 again. So it is judged, dialled and
//! recorded as every other WebSocket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Buf, BytesMut};
use h2::ext::Protocol;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::v2::server::HttpSession;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::gate::{Cause, Denial};

use super::Wire;
use super::conn::{ConnIo, Connection};
use super::http2::Http2Stream;
use super::serve::{Tunnel, open_trail, refuse};
use super::transport::Transport;

/// The most bytes of an answer's head.
const MOST_HEAD: usize = 64 * 1024;

/// Fields of the HTTP/1.1 handshake and of its connection, which have no
/// meaning in HTTP/2 or are written anew.
const OF_HTTP1: [&str; 9] = [
    "connection",
    "upgrade",
    "host",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "content-length",
    "sec-websocket-key",
    "sec-websocket-accept",
];

/// Serves an extended CONNECT.
pub(super) async fn serve(
    wire: &Arc<Wire>,
    connection: Arc<Connection>,
    session: HttpSession,
    protocol: &Protocol,
) {
    let asked = upgrade(session.req_header(), protocol, (wire.shared.random)());
    let stream = Http2Stream::new(session);
    match asked {
        Ok(head) => {
            let socket = Http2WebSocket::new(&head, stream);
            let io = ConnIo::new(Transport::WebSocket(Box::new(socket)), connection);
            one_request(Arc::clone(wire), io).await;
        }
        Err(denial) => {
            let io = ConnIo::new(Transport::Http2(Box::new(stream)), connection);
            let mut trail = open_trail(wire, &io);
            trail.method("CONNECT");
            refuse(io, trail, denial).await;
        }
    }
}

/// The loop for a stream. Its type is written out because it comes back here
/// by way of the loop.
fn one_request(wire: Arc<Wire>, io: ConnIo) -> Tunnel {
    Box::pin(async move {
        let _none = super::serve::serve(&wire, io).await;
    })
}

/// The upgrade that stands for an extended CONNECT.
fn upgrade(head: &RequestHeader, protocol: &Protocol, random: u128) -> Result<Vec<u8>, Denial> {
    let bad = |what| Denial::new(Cause::BadRequest(what));
    if protocol.as_str() != "websocket" {
        return Err(bad(
            "the only :protocol of an extended CONNECT is websocket",
        ));
    }
    let (Some(scheme), Some(authority), Some(path)) = (
        head.uri.scheme_str(),
        head.uri.authority(),
        head.uri.path_and_query(),
    ) else {
        return Err(bad(
            "an extended CONNECT has a :scheme, an :authority and a :path",
        ));
    };
    let mut out = Vec::with_capacity(512);
    let mut line = |name: &[u8], value: &[u8]| {
        for part in [name, b": ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    };
    line(b"host", authority.as_str().as_bytes());
    line(b"connection", b"upgrade");
    line(b"upgrade", b"websocket");
    let key = BASE64_STANDARD.encode(random.to_be_bytes());
    line(b"sec-websocket-key", key.as_bytes());
    for (name, value) in &head.headers {
        if !OF_HTTP1.contains(&name.as_str()) {
            line(name.as_str().as_bytes(), value.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
    let mut whole = format!("GET {scheme}://{authority}{path} HTTP/1.1\r\n").into_bytes();
    whole.append(&mut out);
    Ok(whole)
}

/// The stream, as the HTTP/1.1 connection that the loop sees.
pub(super) struct Http2WebSocket {
    /// What is left to read of the head that stands for the request's.
    unread: BytesMut,
    answer: Answer,
    /// What follows the answer's head and is not sent yet.
    unsent: BytesMut,
    stream: Http2Stream,
}

/// How far the answer has come.
enum Answer {
    /// Its head, which is not whole yet.
    Head(BytesMut),
    /// It was 101: what follows are frames.
    Open,
    /// It was something else. What the client sends now is not looked at: it
    /// would be taken for another request.
    Refused,
    /// The same, and its body is not passed on.
    Discarded,
}

impl Http2WebSocket {
    fn new(head: &[u8], stream: Http2Stream) -> Self {
        Self {
            unread: BytesMut::from(head),
            answer: Answer::Head(BytesMut::new()),
            unsent: BytesMut::new(),
            stream,
        }
    }

    /// Takes in bytes of the answer, and sends its head as soon as it is whole.
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Answer::Head(head) = &mut self.answer else {
            if !matches!(self.answer, Answer::Discarded) {
                self.unsent.extend_from_slice(bytes);
            }
            return Ok(());
        };
        head.extend_from_slice(bytes);
        let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else {
            return if head.len() > MOST_HEAD {
                Err(io::ErrorKind::InvalidData.into())
            } else {
                Ok(())
            };
        };
        let rest = head.split_off(end + 4);
        let translated = translate(head).ok_or(io::ErrorKind::InvalidData)?;
        self.answer = match &translated {
            Translated::Interim => Answer::Head(BytesMut::new()),
            Translated::Open(_) => Answer::Open,
            Translated::Refused { sized: true, .. } => Answer::Refused,
            Translated::Refused { sized: false, .. } => Answer::Discarded,
        };
        match translated {
            Translated::Interim => {}
            Translated::Open(header) => self.stream.answer(header, false)?,
            Translated::Refused { header, sized } => self.stream.answer(header, !sized)?,
        }
        self.take(&rest)
    }

    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unsent))?;
            self.unsent.advance(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Http2WebSocket {
    /// A refusal ends with its body; frames that stop end by a reset.
    fn drop(&mut self) {
        if matches!(self.answer, Answer::Refused) {
            let mut cx = Context::from_waker(Waker::noop());
            if self.poll_unsent(&mut cx).is_ready() {
                let _ = Pin::new(&mut self.stream).poll_shutdown(&mut cx);
            }
        }
    }
}

/// The head of an answer, in HTTP/2.
enum Translated {
    /// One that another follows.
    Interim,
    /// The WebSocket is open.
    Open(ResponseHeader),
    /// It is not. The body has a length that is known, or is not passed on.
    Refused { header: ResponseHeader, sized: bool },
}

/// Puts the head of an answer, which our side has written, into HTTP/2.
fn translate(head: &[u8]) -> Option<Translated> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let status: u16 = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    if status < 200 && status != 101 {
        return Some(Translated::Interim);
    }
    let open = status == 101;
    let mut header = ResponseHeader::build(if open { 200 } else { status }, Some(16)).ok()?;
    let mut sized = false;
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        let name = name.to_ascii_lowercase();
        let length = name == "content-length" && !open;
        sized |= length;
        if length || !OF_HTTP1.contains(&name.as_str()) {
            header.append_header(name, value.trim()).ok()?;
        }
    }
    Some(if open {
        Translated::Open(header)
    } else {
        Translated::Refused { header, sized }
    })
}

impl AsyncRead for Http2WebSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.unread.is_empty() {
            let count = this.unread.len().min(buf.remaining());
            buf.put_slice(&this.unread[..count]);
            this.unread.advance(count);
            return Poll::Ready(Ok(()));
        }
        match this.answer {
            // Its end, as if the client had closed.
            Answer::Refused | Answer::Discarded => Poll::Ready(Ok(())),
            Answer::Head(_) | Answer::Open => Pin::new(&mut this.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Http2WebSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_unsent(cx))?;
        if matches!(this.answer, Answer::Open | Answer::Refused) {
            return Pin::new(&mut this.stream).poll_write(cx, bytes);
        }
        this.take(bytes)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_unsent(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_unsent(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_put_into_http2() {
        let of = |head: &str| match translate(head.as_bytes()) {
            None => "none".to_owned(),
            Some(Translated::Interim) => "interim".to_owned(),
            Some(Translated::Open(header)) => format!("open {:?}", header.headers),
            Some(Translated::Refused { header, sized }) => {
                format!("{} {sized} {:?}", header.status.as_u16(), header.headers)
            }
        };
        for (head, expected) in [
            ("HTTP/1.1 100 Continue\r\n\r\n", "interim"),
            (
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
                 Sec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: chat\r\n\r\n",
                "open {\"sec-websocket-protocol\": \"chat\"}",
            ),
            (
                "HTTP/1.1 403 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\n",
                "403 true {\"content-length\": \"2\"}",
            ),
            (
                "HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n",
                "404 false {}",
            ),
            ("HTTP/1.1\r\n\r\n", "none"),
        ] {
            assert_eq!(of(head), expected, "{head}");
        }
    }
}

//! What carries a client's bytes: a TCP connection, TLS over one, a Unix
//! socket, or a stream of HTTP/2.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::http2::Http2Stream;
use super::websocket::Http2WebSocket;

/// The transport below a connection.
pub(super) enum Transport {
    /// TCP in clear.
    Tcp(TcpStream),
    /// TLS, its handshake done.
    Tls(Box<TlsStream<TcpStream>>),
    /// A Unix socket.
    Unix(UnixStream),
    /// A stream of HTTP/2 that is a tunnel.
    Http2(Box<Http2Stream>),
    /// A stream of HTTP/2 that is a WebSocket.
    WebSocket(Box<Http2WebSocket>),
}

impl Transport {
    /// Offers bytes once, without waiting: the connection is going away.
    pub(super) fn offer(&mut self, bytes: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        if Pin::new(&mut *self).poll_write(&mut cx, bytes).is_ready() {
            let _ = Pin::new(self).poll_flush(&mut cx);
        }
    }

    /// The descriptor; a stream has none of its own.
    pub(super) fn descriptor(&self) -> RawFd {
        match self {
            Self::Tcp(tcp) => tcp.as_raw_fd(),
            Self::Tls(tls) => tls.get_ref().0.as_raw_fd(),
            Self::Unix(unix) => unix.as_raw_fd(),
            Self::Http2(_) | Self::WebSocket(_) => -1,
        }
    }
}

/// The same call on whichever it is.
macro_rules! on {
    ($self:ident, $inner:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Tcp(tcp) => {
                let $inner = Pin::new(tcp);
                $call
            }
            Self::Tls(tls) => {
                let $inner = Pin::new(&mut **tls);
                $call
            }
            Self::Unix(unix) => {
                let $inner = Pin::new(unix);
                $call
            }
            Self::Http2(stream) => {
                let $inner = Pin::new(&mut **stream);
                $call
            }
            Self::WebSocket(stream) => {
                let $inner = Pin::new(&mut **stream);
                $call
            }
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on!(self, inner => inner.poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        on!(self, inner => inner.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self, inner => inner.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self, inner => inner.poll_shutdown(cx))
    }
}

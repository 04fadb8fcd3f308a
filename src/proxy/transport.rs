//! What carries a client's bytes: a TCP connection, TLS over one, a Unix
//! socket, or a stream of HTTP/2.

use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Waker};

use tokio::io::AsyncWrite;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::http2::Http2Stream;
use super::websocket::Http2WebSocket;
use super::whichever::{reads, writes};

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

reads!(Transport {
    Tcp(tcp) => tcp,
    Tls(tls) => &mut **tls,
    Unix(unix) => unix,
    Http2(stream) => &mut **stream,
    WebSocket(stream) => &mut **stream,
});

writes!(Transport {
    Tcp(tcp) => tcp,
    Tls(tls) => &mut **tls,
    Unix(unix) => unix,
    Http2(stream) => &mut **stream,
    WebSocket(stream) => &mut **stream,
});

//! Connections for requests that upgrade: the answer to one is not read before
//! the end of the request has been sent.
//!
//! Pingora queues the end of an upgrade's empty body beside the reading of its
//! answer. Where a 101 is there before the queue was looked at, it takes that
//! end for the end of what the client says after the upgrade, and closes the
//! WebSocket that has just opened. So the first look at an answer, after
//! anything was written, finds nothing, and the queue has its turn.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::{Error, ErrorType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::upstream::Upstream;

/// What dials for a request that upgrades.
pub(super) fn connector() -> Arc<dyn L4Connect + Send + Sync> {
    Arc::new(ForUpgrades)
}

#[derive(Debug)]
struct ForUpgrades;

#[async_trait]
impl L4Connect for ForUpgrades {
    async fn connect(&self, address: &SocketAddr) -> pingora::Result<Stream> {
        let socket: Box<dyn VirtualSocket> = match address {
            SocketAddr::Inet(address) => {
                let tcp = TcpStream::connect(address).await.map_err(failed)?;
                Box::new(InTurn::of(tcp))
            }
            SocketAddr::Unix(address) => {
                let path = address.as_pathname().ok_or_else(|| {
                    Error::explain(ErrorType::InternalError, "a Unix socket without a path")
                })?;
                Box::new(InTurn::of(UnixStream::connect(path).await.map_err(failed)?))
            }
        };
        Ok(Stream::from(VirtualSocketStream::new(socket)))
    }
}

fn failed(error: io::Error) -> Box<Error> {
    let kind = match error.kind() {
        io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
        io::ErrorKind::TimedOut => ErrorType::ConnectTimedout,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            ErrorType::ConnectNoRoute
        }
        _ => ErrorType::ConnectError,
    };
    Error::because(kind, "connecting for an upgrade", error)
}

/// A stream whose first read after a write finds nothing yet.
#[derive(Debug)]
pub(super) struct InTurn<S> {
    stream: S,
    written: bool,
}

impl<S> InTurn<S> {
    pub(super) fn of(stream: S) -> Self {
        Self {
            stream,
            written: false,
        }
    }
}

impl VirtualSocket for InTurn<TcpStream> {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.stream.set_nodelay(true),
            _ => Ok(()),
        }
    }
}

impl VirtualSocket for InTurn<UnixStream> {
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

impl VirtualSocket for InTurn<Upstream> {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        self.stream.set_socket_option(option)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for InTurn<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.written) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for InTurn<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written = true;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Pingora's own select: the answer is there, and so is the queue.
    #[tokio::test]
    async fn an_answer_that_is_there_waits_for_the_queue() {
        for _ in 0..64 {
            let (near, mut far) = tokio::io::duplex(64);
            let mut near = InTurn::of(near);
            near.write_all(b"request").await.expect("written");
            far.write_all(b"answer").await.expect("answered");
            let (end, mut queue) = tokio::sync::mpsc::channel::<()>(1);
            end.send(()).await.expect("queued");
            let mut buf = [0; 6];
            tokio::select! {
                _ = near.read(&mut buf) => panic!("the answer came before the request's end"),
                _ = queue.recv() => {}
            }
            near.read_exact(&mut buf).await.expect("read");
            assert_eq!(&buf, b"answer");
        }
    }
}

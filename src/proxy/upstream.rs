//! A connection to a destination: TCP, or a tunnel that the parent proxy has
//! opened to it.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::whichever::{reads, writes};

/// How much of what a destination says first is taken to see that it speaks.
const FIRST_WORDS: usize = 1024;

/// A connection to a destination.
pub(super) enum Upstream {
    /// Its own.
    Direct(TcpStream),
    /// One that the parent proxy carries on.
    ByParent(Box<ByParent>),
}

/// A tunnel through the parent proxy.
pub(super) struct ByParent {
    /// What came behind the parent's answer, and has not been read yet.
    early: Vec<u8>,
    carrier: Carrier,
}

/// What carries a tunnel to the parent proxy.
pub(super) enum Carrier {
    /// TCP in clear.
    Tcp(TcpStream),
    /// TLS, its handshake done.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Upstream {
    /// A tunnel on this carrier, of which these bytes have come already.
    pub(super) fn by_parent(carrier: Carrier, early: Vec<u8>) -> Self {
        Self::ByParent(Box::new(ByParent { early, carrier }))
    }

    /// Comes back when there is something to read, or the end.
    ///
    /// # Errors
    /// Where the connection is broken.
    pub(super) async fn speaks(&mut self) -> io::Result<()> {
        let tunnel = match self {
            Self::Direct(tcp) => return tcp.readable().await,
            Self::ByParent(tunnel) => tunnel,
        };
        if !tunnel.early.is_empty() {
            return Ok(());
        }
        if let Carrier::Tcp(tcp) = &tunnel.carrier {
            return tcp.readable().await;
        }
        // Readable says nothing of TLS: that may be a ticket.
        let mut first = [0; FIRST_WORDS];
        let count = tunnel.carrier.read(&mut first).await?;
        tunnel.early.extend_from_slice(&first[..count]);
        Ok(())
    }

    /// The TCP connection below, with what has come already, where nothing lies
    /// between.
    ///
    /// # Errors
    /// Itself, where TLS does.
    pub(super) fn into_tcp(self) -> Result<(TcpStream, Vec<u8>), Self> {
        match self {
            Self::Direct(tcp) => Ok((tcp, Vec::new())),
            Self::ByParent(tunnel) => match *tunnel {
                ByParent {
                    early,
                    carrier: Carrier::Tcp(tcp),
                } => Ok((tcp, early)),
                other => Err(Self::ByParent(Box::new(other))),
            },
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct(_) => "Direct",
            Self::ByParent(_) => "ByParent",
        })
    }
}

impl AsyncRead for Upstream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Direct(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::ByParent(tunnel) if tunnel.early.is_empty() => {
                Pin::new(&mut tunnel.carrier).poll_read(cx, buf)
            }
            Self::ByParent(tunnel) => {
                let count = tunnel.early.len().min(buf.remaining());
                buf.put_slice(&tunnel.early[..count]);
                tunnel.early.drain(..count);
                if tunnel.early.is_empty() {
                    tunnel.early = Vec::new();
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

writes!(Upstream {
    Direct(tcp) => tcp,
    ByParent(tunnel) => &mut tunnel.carrier,
});

impl VirtualSocket for Upstream {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        let tcp = match self {
            Self::Direct(tcp) => tcp,
            Self::ByParent(tunnel) => match &tunnel.carrier {
                Carrier::Tcp(tcp) => tcp,
                Carrier::Tls(tls) => tls.get_ref().0,
            },
        };
        match option {
            VirtualSockOpt::NoDelay => tcp.set_nodelay(true),
            _ => Ok(()),
        }
    }
}

reads!(Carrier {
    Tcp(tcp) => tcp,
    Tls(tls) => &mut **tls,
});

writes!(Carrier {
    Tcp(tcp) => tcp,
    Tls(tls) => &mut **tls,
});

//! A client's connection as Pingora and our own code both read it: bytes can
//! be looked at and given back, the next request is fenced off from this one's
//! reader, and what is known of the connection reaches every request on it.

use std::any::Any;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;

use crate::egress::{Authority, RequestTarget};
use crate::gate::TunnelEnd;
use crate::identity::Principal;

/// How much is read at once while looking at first bytes.
const LOOK_BYTES: usize = 4096;
/// Writes up to this are gathered until they are flushed; larger ones go out
/// at once.
const GATHER_BYTES: usize = 4096;

/// What is known of a connection, for every request on it.
pub(super) struct Connection {
    /// The listener that took it.
    pub(super) listener: Arc<str>,
    /// Who connected; nobody by address on a Unix socket.
    pub(super) client: Option<SocketAddr>,
    /// Whether the bytes are those inside a tunnel.
    pub(super) tunnel: Option<InTunnel>,
    /// The request being served, where it came by HTTP/1.
    pub(super) current: Mutex<Option<CurrentRequest>>,
    /// How a stream that has no end of its own is ended from outside.
    pub(super) ending: Arc<Ending>,
}

/// What a tunnel fixes for the clear-text requests inside it.
#[derive(Clone)]
pub(super) struct InTunnel {
    pub(super) who: Arc<Principal>,
    pub(super) authority: Authority,
}

/// A request whose head our own parser has read.
pub(super) struct CurrentRequest {
    pub(super) target: RequestTarget,
    /// The value of `Proxy-Authorization`, which no head has that goes on.
    pub(super) credential: Option<Vec<u8>>,
    /// Whether it must be answered here, by `Max-Forwards`.
    pub(super) last_hop: bool,
}

impl Connection {
    pub(super) fn take_current(&self) -> Option<CurrentRequest> {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    pub(super) fn put_current(&self, request: CurrentRequest) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
    }
}

/// A way to end a tunnel or an upgraded stream from outside, once, with a reason.
#[derive(Default)]
pub(super) struct Ending {
    reason: AtomicU8,
    notify: Notify,
}

/// The ends that come from outside; the index is the code in [`Ending`].
const OUTSIDE: [TunnelEnd; 4] = [
    TunnelEnd::PolicyChanged,
    TunnelEnd::CredentialEnded,
    TunnelEnd::Drained,
    TunnelEnd::Aborted,
];

impl Ending {
    /// Ends it. The first reason stays.
    pub(super) fn end(&self, why: TunnelEnd) {
        let index = OUTSIDE
            .iter()
            .position(|end| *end == why)
            .unwrap_or(OUTSIDE.len() - 1);
        let code = u8::try_from(index + 1).unwrap_or(1);
        let _ = self
            .reason
            .compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
        // One permit is stored, so a wait that begins later ends at once.
        self.notify.notify_one();
    }

    /// Why it was ended, if it was.
    pub(super) fn reason(&self) -> Option<TunnelEnd> {
        match self.reason.load(Ordering::Acquire) {
            0 => None,
            code => OUTSIDE.get(usize::from(code) - 1).copied(),
        }
    }

    /// Comes back when it has been ended.
    pub(super) async fn ended(&self) -> TunnelEnd {
        loop {
            if let Some(reason) = self.reason() {
                return reason;
            }
            self.notify.notified().await;
        }
    }
}

/// The transport below a connection.
pub(super) enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A client's connection.
pub(super) struct ConnIo {
    transport: Transport,
    /// Bytes read and not yet served.
    unread: BytesMut,
    /// Bytes written and not yet sent: heads and small bodies leave together.
    unsent: BytesMut,
    /// How many bytes the reader of this request may still see; what lies
    /// behind belongs to the next one. `None`: all of them.
    fence: Option<u64>,
    http2: bool,
    /// Whether small writes are gathered; inside a tunnel nothing waits.
    gathers: bool,
    digest: Arc<ProxyDigest>,
    connection: Arc<Connection>,
}

impl ConnIo {
    pub(super) fn new(transport: Transport, connection: Arc<Connection>) -> Self {
        // Pingora carries this digest from the stream to every session on it,
        // HTTP/1 and HTTP/2 alike. Its response header means nothing here.
        let digest = Arc::new(ProxyDigest::new(
            Box::new(placeholder_header()),
            Some(Box::new(Arc::clone(&connection)) as Box<dyn Any + Send + Sync>),
        ));
        Self {
            transport,
            unread: BytesMut::new(),
            unsent: BytesMut::new(),
            fence: None,
            http2: false,
            gathers: true,
            digest,
            connection,
        }
    }

    /// The same bytes, as the inside of a tunnel.
    pub(super) fn into_tunnel(self, connection: Arc<Connection>) -> Self {
        let mut inner = Self::new(self.transport, connection);
        inner.unread = self.unread;
        inner
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// What has been read and not served.
    pub(super) fn unread(&self) -> &[u8] {
        &self.unread
    }

    /// Reads more behind what is unread.
    ///
    /// # Errors
    /// Those of the transport. `Ok(0)` is its end.
    pub(super) async fn look_further(&mut self) -> io::Result<usize> {
        self.unread.reserve(LOOK_BYTES);
        match &mut self.transport {
            Transport::Tcp(tcp) => tcp.read_buf(&mut self.unread).await,
            Transport::Unix(unix) => unix.read_buf(&mut self.unread).await,
        }
    }

    /// Drops bytes from the front of what is unread.
    pub(super) fn skip(&mut self, count: usize) {
        self.unread.advance(count.min(self.unread.len()));
    }

    /// Puts another head in place of the one at the front, and fences off what
    /// does not belong to the request.
    pub(super) fn replace_head(&mut self, old: usize, new: &[u8], body: Option<u64>) {
        let rest = self.unread.split_off(old.min(self.unread.len()));
        self.unread.clear();
        self.unread.extend_from_slice(new);
        self.unread.extend_from_slice(&rest);
        self.fence = body.map(|body| body.saturating_add(new.len() as u64));
    }

    /// Whatever the last reader left, the next may see all.
    pub(super) fn lift_fence(&mut self) {
        self.fence = None;
    }

    /// Whether the last reader has read all that was meant for it.
    pub(super) fn at_fence(&self) -> bool {
        matches!(self.fence, None | Some(0))
    }

    /// From here the bytes are HTTP/2.
    pub(super) fn speak_http2(&mut self) {
        self.http2 = true;
    }

    /// From here bytes only pass through, and no buffer is kept.
    pub(super) fn pass_through(&mut self) {
        self.gathers = false;
        self.shrink();
    }

    /// Frees the buffers that hold nothing.
    pub(super) fn shrink(&mut self) {
        if self.unread.is_empty() {
            self.unread = BytesMut::new();
        }
        if self.unsent.is_empty() {
            self.unsent = BytesMut::new();
        }
    }

    /// Says good-bye so that the client gets the answer: closes the sending
    /// side, then throws away what still comes, within bounds. A reset because
    /// of unread bytes would take the answer with it.
    pub(super) async fn close_gently(mut self) {
        const MOST_BYTES: usize = 256 * 1024;
        const LONGEST: std::time::Duration = std::time::Duration::from_secs(1);
        if self.flush().await.is_err() || AsyncWriteExt::shutdown(&mut self).await.is_err() {
            return;
        }
        self.unread = BytesMut::new();
        self.fence = None;
        let discard = async {
            let mut sink = [0; 4096];
            let mut seen = 0;
            while seen < MOST_BYTES {
                match self.read(&mut sink).await {
                    Ok(0) | Err(_) => return,
                    Ok(count) => seen += count,
                }
            }
        };
        let _ = tokio::time::timeout(LONGEST, discard).await;
    }

    fn poll_transport_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Transport::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
        }
    }

    fn poll_transport_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Transport::Unix(unix) => Pin::new(unix).poll_write(cx, bytes),
        }
    }

    /// Sends what has been gathered.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let gathered = std::mem::take(&mut self.unsent);
            let sent = self.poll_transport_write(cx, &gathered);
            self.unsent = gathered;
            let count = std::task::ready!(sent)?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(count);
        }
        // The allocation is kept for the next head; an idle tunnel frees it.
        self.unsent.clear();
        Poll::Ready(Ok(()))
    }

    /// Nothing more may be seen for this request: bytes that come belong to
    /// the next one and are kept, up to a bound; the end is passed on.
    fn poll_behind_fence(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.unread.len() >= LOOK_BYTES {
                // Enough kept; the reader is woken no more until it asks anew.
                return Poll::Pending;
            }
            let mut scratch = [0; 1024];
            let mut buf = ReadBuf::new(&mut scratch);
            match self.poll_transport_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if buf.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => self.unread.extend_from_slice(buf.filled()),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

fn placeholder_header() -> ResponseHeader {
    // 200 is a valid status, so this cannot fail.
    ResponseHeader::build(200, Some(0)).expect("200 is a status")
}

impl AsyncRead for ConnIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let allowed = match this.fence {
            Some(0) => return this.poll_behind_fence(cx),
            Some(left) => usize::try_from(left).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        let served = if this.unread.is_empty() {
            let before = buf.filled().len();
            if allowed >= buf.remaining() {
                std::task::ready!(this.poll_transport_read(cx, buf))?;
            } else {
                let mut part = buf.take(allowed);
                std::task::ready!(this.poll_transport_read(cx, &mut part))?;
                let count = part.filled().len();
                // `part` has initialised and filled the front of the rest.
                buf.initialize_unfilled_to(count);
                buf.advance(count);
            }
            buf.filled().len() - before
        } else {
            let count = this.unread.len().min(buf.remaining()).min(allowed);
            buf.put_slice(&this.unread[..count]);
            this.unread.advance(count);
            count
        };
        if let Some(left) = &mut this.fence {
            *left = left.saturating_sub(served as u64);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ConnIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.gathers && this.unsent.len() + bytes.len() <= GATHER_BYTES {
            this.unsent.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        std::task::ready!(this.poll_send(cx))?;
        if this.gathers && bytes.len() <= GATHER_BYTES {
            this.unsent.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        this.poll_transport_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        std::task::ready!(this.poll_send(cx))?;
        match &mut this.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Transport::Unix(unix) => Pin::new(unix).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        std::task::ready!(this.poll_send(cx))?;
        match &mut this.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Transport::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
        }
    }
}

impl fmt::Debug for ConnIo {
    /// Says nothing of the bytes: they may hold a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnIo")
            .field("client", &self.connection.client)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Shutdown for ConnIo {
    async fn shutdown(&mut self) {
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for ConnIo {
    fn id(&self) -> UniqueIDType {
        use std::os::fd::AsRawFd;
        match &self.transport {
            Transport::Tcp(tcp) => tcp.as_raw_fd(),
            Transport::Unix(unix) => unix.as_raw_fd(),
        }
    }
}

impl Ssl for ConnIo {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.http2.then_some(ALPN::H2)
    }
}

impl GetTimingDigest for ConnIo {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for ConnIo {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

impl GetSocketDigest for ConnIo {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

#[async_trait]
impl Peek for ConnIo {}

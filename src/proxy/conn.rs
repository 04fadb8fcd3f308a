//! A client's connection as Pingora and our own code both read it: bytes can
//! be looked at and given back, the next request is fenced off from this one's
//! reader, and what is known of the connection reaches every request on it.

use std::any::Any;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
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
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::sync::Notify;

use crate::egress::head::BodyLength;
use crate::egress::{Authority, ChunkedBody, DnsName, RequestTarget, Scheme};
use crate::gate::TunnelEnd;
use crate::identity::{Certified, Principal};

use super::http2::Http2Stream;
use super::transport::Transport;

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
    /// Whom the operator has named for the process at the other end.
    pub(super) peer: Option<Arc<Principal>>,
    /// What the client's certificate says, where it has shown one.
    pub(super) certified: Option<Certified>,
    /// The name that the client took the gateway for, inside TLS.
    pub(super) server_name: Option<Arc<str>>,
    /// Whether the bytes are those inside a tunnel.
    pub(super) tunnel: Option<InTunnel>,
    /// The request being served, where it came by HTTP/1.
    current: Mutex<Option<CurrentRequest>>,
    /// How a stream that has no end of its own is ended from outside.
    pub(super) ending: Arc<Ending>,
    /// Whether the answer under way is short, so that its head may wait for
    /// its body.
    gathers: AtomicBool,
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
    pub(super) fn new(
        listener: Arc<str>,
        client: Option<SocketAddr>,
        tunnel: Option<InTunnel>,
        ending: Arc<Ending>,
    ) -> Self {
        Self {
            listener,
            client,
            peer: None,
            certified: None,
            server_name: None,
            tunnel,
            current: Mutex::new(None),
            ending,
            gathers: AtomicBool::new(true),
        }
    }

    /// The same, with whom the operator has named for its peer.
    pub(super) fn with_peer(mut self, peer: Option<Arc<Principal>>) -> Self {
        self.peer = peer;
        self
    }

    /// The same, of a client that has shown a certificate.
    pub(super) fn certified(mut self, certified: Option<Certified>) -> Self {
        self.certified = certified;
        self
    }

    /// The same, of a client that took the gateway for this name.
    pub(super) fn named(mut self, server_name: Option<Arc<str>>) -> Self {
        self.server_name = server_name;
        self
    }

    /// What a target means here: HTTP/2 always names an authority, and one that
    /// the client has shaken hands with is the gateway itself.
    pub(super) fn own_target(&self, target: RequestTarget) -> RequestTarget {
        match target {
            RequestTarget::Absolute {
                scheme: Scheme::Https,
                authority,
                path,
                query,
            } if self.server_name.is_some()
                && authority.host.name().map(DnsName::as_str) == self.server_name.as_deref() =>
            {
                RequestTarget::Origin { path, query }
            }
            other => other,
        }
    }

    /// One stream of the connection, which can be ended by itself.
    pub(super) fn of_stream(&self) -> Self {
        Self::new(
            Arc::clone(&self.listener),
            self.client,
            self.tunnel.clone(),
            Arc::new(Ending::within(&self.ending)),
        )
        .certified(self.certified.clone())
        .with_peer(self.peer.clone())
        .named(self.server_name.clone())
    }

    /// An answer of this length begins; `None` where its length is not known.
    /// The parts of one that is long, or may last long, go out as they come.
    pub(super) fn answers(&self, length: Option<u64>) {
        let short = length.is_some_and(|length| length <= GATHER_BYTES as u64);
        self.gathers.store(short, Ordering::Relaxed);
    }

    pub(super) fn take_current(&self) -> Option<CurrentRequest> {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    pub(super) fn put_current(&self, request: CurrentRequest) {
        // The gateway's own answers are short.
        self.gathers.store(true, Ordering::Relaxed);
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
    }
}

/// A way to end a tunnel, an upgraded stream or a long exchange from outside,
/// once, with a reason.
#[derive(Default)]
pub(super) struct Ending {
    reason: AtomicU8,
    notify: Notify,
    /// Of the connection that it is a stream of.
    of_all: Option<Arc<Ending>>,
}

/// The ends that come from outside; the index is the code in [`Ending`].
const OUTSIDE: [TunnelEnd; 7] = [
    TunnelEnd::PolicyChanged,
    TunnelEnd::CredentialEnded,
    TunnelEnd::Revoked,
    TunnelEnd::OriginalEnded,
    TunnelEnd::OriginalRevoked,
    TunnelEnd::Drained,
    TunnelEnd::Aborted,
];

impl Ending {
    /// That of one stream of a connection that can be ended as a whole.
    fn within(connection: &Arc<Self>) -> Self {
        Self {
            of_all: Some(Arc::clone(connection)),
            ..Self::default()
        }
    }

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

    /// Why it was ended, by itself or with all of its connection, if it was.
    pub(super) fn reason(&self) -> Option<TunnelEnd> {
        let of_all = self.of_all.as_ref();
        self.own_reason()
            .or_else(|| of_all.and_then(|all| all.reason()))
    }

    /// Comes back when it has been ended by itself. What ends all of a
    /// connection is for the connection's loop to see.
    pub(super) async fn ended(&self) -> TunnelEnd {
        loop {
            if let Some(reason) = self.own_reason() {
                return reason;
            }
            self.notify.notified().await;
        }
    }

    fn own_reason(&self) -> Option<TunnelEnd> {
        match self.reason.load(Ordering::Acquire) {
            0 => None,
            code => OUTSIDE.get(usize::from(code) - 1).copied(),
        }
    }
}

/// How much the reader of this request may still see; what lies behind belongs
/// to the next one.
enum Fence {
    /// All that comes.
    Open,
    /// So many bytes.
    Bytes(u64),
    /// So many bytes, which are the head, and then a chunked body to its end.
    Chunked(u64, ChunkedBody),
}

impl Fence {
    /// Whether the reader has seen all that is meant for it.
    fn is_reached(&self) -> bool {
        match self {
            Self::Open => false,
            Self::Bytes(left) => *left == 0,
            Self::Chunked(head, body) => *head == 0 && body.is_done(),
        }
    }

    /// How many bytes are the reader's whatever they are.
    fn certain(&self) -> usize {
        let certain = match self {
            Self::Open => u64::MAX,
            Self::Bytes(left) => *left,
            Self::Chunked(0, body) => body.data_left(),
            Self::Chunked(head, _) => *head,
        };
        usize::try_from(certain).unwrap_or(usize::MAX)
    }

    /// How many of these bytes are the reader's; they count as seen.
    fn pass(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Open => Ok(bytes.len()),
            Self::Bytes(left) | Self::Chunked(left @ 1.., _) => {
                let count = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= count as u64;
                Ok(count)
            }
            Self::Chunked(_, body) => body
                .advance(bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

/// A client's connection.
pub(super) struct ConnIo {
    transport: Transport,
    /// Bytes read and not yet served.
    unread: BytesMut,
    /// Bytes written and not yet sent: heads and small bodies leave together.
    unsent: BytesMut,
    fence: Fence,
    http2: bool,
    /// Whether small writes are gathered; inside a tunnel nothing waits.
    gathers: bool,
    digest: Arc<ProxyDigest>,
    connection: Arc<Connection>,
}

impl ConnIo {
    pub(super) fn new(transport: Transport, connection: Arc<Connection>) -> Self {
        Self {
            transport,
            unread: BytesMut::new(),
            unsent: BytesMut::new(),
            fence: Fence::Open,
            http2: false,
            gathers: true,
            digest: digest_of(&connection),
            connection,
        }
    }

    /// The same bytes, as the inside of a tunnel.
    pub(super) fn into_tunnel(mut self, connection: Arc<Connection>) -> Self {
        self.digest = digest_of(&connection);
        self.connection = connection;
        self
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
        self.transport.read_buf(&mut self.unread).await
    }

    /// Drops bytes from the front of what is unread.
    pub(super) fn skip(&mut self, count: usize) {
        self.unread.advance(count.min(self.unread.len()));
    }

    /// Puts another head in place of the one at the front, and fences off what
    /// does not belong to the request. Without a body's length nothing is
    /// fenced off: the connection is to be upgraded.
    pub(super) fn replace_head(&mut self, old: usize, new: &[u8], body: Option<BodyLength>) {
        let rest = self.unread.split_off(old.min(self.unread.len()));
        self.unread.clear();
        self.unread.extend_from_slice(new);
        self.unread.extend_from_slice(&rest);
        let head = new.len() as u64;
        self.fence = match body {
            None => Fence::Open,
            Some(BodyLength::None) => Fence::Bytes(head),
            Some(BodyLength::Bytes(count)) => Fence::Bytes(head.saturating_add(count)),
            Some(BodyLength::Chunked) => Fence::Chunked(head, ChunkedBody::default()),
        };
    }

    /// Whatever the last reader left, the next may see all.
    pub(super) fn lift_fence(&mut self) {
        self.fence = Fence::Open;
    }

    /// Whether the last reader has read all that was meant for it.
    pub(super) fn at_fence(&self) -> bool {
        matches!(self.fence, Fence::Open) || self.fence.is_reached()
    }

    /// The stream below, where it is one of HTTP/2 and its answer not text.
    pub(super) fn http2_stream(&mut self) -> Option<&mut Http2Stream> {
        match &mut self.transport {
            Transport::Http2(stream) => Some(stream),
            _ => None,
        }
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

    /// Sends bytes at once, behind what has been gathered.
    ///
    /// # Errors
    /// Those of the transport.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut left = bytes;
        std::future::poll_fn(|cx| {
            std::task::ready!(self.poll_send(cx))?;
            while !left.is_empty() {
                match std::task::ready!(self.poll_transport_write(cx, left))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => left = &left[count..],
                }
            }
            Pin::new(&mut self.transport).poll_flush(cx)
        })
        .await
    }

    /// Comes back when the connection is broken. A client that has closed its half
    /// may still wait for its answer, and what it has sent stays unread.
    pub(super) async fn broken(&self) {
        let broken = match &self.transport {
            Transport::Tcp(tcp) => tcp.ready(Interest::ERROR).await,
            Transport::Tls(tls) => tls.get_ref().0.ready(Interest::ERROR).await,
            Transport::Unix(unix) => unix.ready(Interest::ERROR).await,
            Transport::Http2(_) | Transport::WebSocket(_) => std::future::pending().await,
        };
        // Where even this cannot be told, it is.
        drop(broken);
    }

    /// Whether the bytes are those of a stream of HTTP/2.
    pub(super) fn is_http2_stream(&self) -> bool {
        matches!(
            self.transport,
            Transport::Http2(_) | Transport::WebSocket(_)
        )
    }

    /// Offers these last words to the client, whether it takes them or not.
    pub(super) fn offer(&mut self, bytes: &[u8]) {
        self.transport.offer(bytes);
    }

    /// Says good-bye so that the client gets the answer: closes the sending
    /// side, then throws away what still comes, within bounds. A reset because
    /// of unread bytes would take the answer with it.
    pub(super) async fn close_gently(mut self) {
        const MOST_BYTES: usize = 256 * 1024;
        const LONGEST: std::time::Duration = std::time::Duration::from_secs(1);
        let said = async {
            self.flush().await?;
            AsyncWriteExt::shutdown(&mut self).await
        };
        // Over TLS even a good-bye must be taken by somebody.
        if !matches!(tokio::time::timeout(LONGEST, said).await, Ok(Ok(()))) {
            return;
        }
        self.unread = BytesMut::new();
        self.fence = Fence::Open;
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
        Pin::new(&mut self.transport).poll_read(cx, buf)
    }

    fn poll_transport_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(cx, bytes)
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

impl Drop for ConnIo {
    /// What was gathered when all broke off is offered once: a client should
    /// see as much of an answer as there was.
    fn drop(&mut self) {
        if !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            self.transport.offer(&unsent);
        }
    }
}

/// Pingora carries this from the stream to every session on it, HTTP/1 and
/// HTTP/2 alike. Its response header means nothing here.
pub(super) fn digest_of(connection: &Arc<Connection>) -> Arc<ProxyDigest> {
    Arc::new(ProxyDigest::new(
        Box::new(placeholder_header()),
        Some(Box::new(Arc::clone(connection)) as Box<dyn Any + Send + Sync>),
    ))
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
        // Who looks for more has said all there was to say for now: it leaves,
        // and does not wait for what may not come for long.
        if let Poll::Ready(Err(error)) = this.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        if this.fence.is_reached() {
            return this.poll_behind_fence(cx);
        }
        if this.unread.is_empty() {
            let certain = this.fence.certain();
            if certain > 0 {
                let before = buf.filled().len();
                if certain >= buf.remaining() {
                    std::task::ready!(this.poll_transport_read(cx, buf))?;
                } else {
                    // A part of the caller's own initialised bytes: `take` would
                    // keep from `buf` what was read into it.
                    let mut part = ReadBuf::new(buf.initialize_unfilled_to(certain));
                    std::task::ready!(this.poll_transport_read(cx, &mut part))?;
                    let count = part.filled().len();
                    buf.advance(count);
                }
                this.fence.pass(&buf.filled()[before..])?;
                return Poll::Ready(Ok(()));
            }
            // Among the framing of chunks only a look at the bytes tells how
            // many of them are this request's.
            let mut scratch = [0; LOOK_BYTES];
            let mut look = ReadBuf::new(&mut scratch);
            std::task::ready!(this.poll_transport_read(cx, &mut look))?;
            this.unread.extend_from_slice(look.filled());
        }
        let most = this.unread.len().min(buf.remaining());
        let count = this.fence.pass(&this.unread[..most])?;
        buf.put_slice(&this.unread[..count]);
        this.unread.advance(count);
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
        let gathers = this.gathers && this.connection.gathers.load(Ordering::Relaxed);
        if gathers && this.unsent.len() + bytes.len() <= GATHER_BYTES {
            this.unsent.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        std::task::ready!(this.poll_send(cx))?;
        if gathers && bytes.len() <= GATHER_BYTES {
            this.unsent.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        this.poll_transport_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        std::task::ready!(this.poll_send(cx))?;
        Pin::new(&mut this.transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        std::task::ready!(this.poll_send(cx))?;
        Pin::new(&mut this.transport).poll_shutdown(cx)
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
        self.transport.descriptor()
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

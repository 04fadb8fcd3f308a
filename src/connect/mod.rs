//! Beside an agent that cannot renew its token: a proxy of its own on loopback
//! or a Unix socket, that adds the credential to every request on its way to
//! the gateway.
//!
//! It decides nothing. Heads are read by the gateway's own strict parser, so
//! that what it takes for the end of a request is what the gateway takes for
//! it; everything else passes as it is. Who can reach the socket is the agent,
//! as far as the gateway can know: the socket is loopback's or its owner's.

mod dial;
mod head;
mod token;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub use dial::Address;
pub use token::{Proof, TokenEndpoint, TokenSource};

use crate::adapters::host;
use crate::egress::head::{BodyLength, HeadProgress, parse, progress};
use crate::egress::{ChunkedBody, RequestId};
use crate::proxy::bind_unix;
use dial::{Dialler, Stream};
use head::{Follows, follows, with_credential};
use token::Holder;

/// The most bytes that a head may have here; the gateway may want fewer.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// How long a head may take from its first byte.
const HEAD: Duration = Duration::from_secs(10);
/// How long answers that are under way are waited for before a refusal.
const LAST_ANSWERS: Duration = Duration::from_secs(30);
/// Connections at one time.
const MAX_CONNECTIONS: usize = 1024;
const READ_BYTES: usize = 16 * 1024;

/// Where the agent comes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// On loopback.
    Tcp(SocketAddr),
    /// On a Unix socket with these permissions.
    Unix(PathBuf, u32),
}

/// What [`Connector::bind`] needs to know.
#[derive(Clone)]
pub struct ConnectSettings {
    /// Where the agent comes in.
    pub listen: Listen,
    /// The gateway.
    pub gateway: Address,
    /// Where tokens come from.
    pub tokens: TokenSource,
    /// A PEM bundle that gateway and token endpoint are checked against; the
    /// system's roots where there is none.
    pub ca: Option<PathBuf>,
    /// How long open connections may go on when it is told to end.
    pub drain: Duration,
}

/// A connector that is bound and does not serve yet.
pub struct Connector {
    listener: Listener,
    shared: Arc<Shared>,
    drain: Duration,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

struct Shared {
    gateway: Address,
    dialler: Arc<Dialler>,
    tokens: Holder,
}

impl Connector {
    /// Binds the listener.
    ///
    /// # Errors
    /// What is wrong, and what to write.
    pub async fn bind(settings: ConnectSettings) -> Result<Self, String> {
        let dialler = Arc::new(Dialler::new(settings.ca.as_deref())?);
        let listener = match settings.listen {
            Listen::Tcp(address) if !address.ip().is_loopback() => {
                return Err(format!(
                    "{address} is not loopback, and whoever connects is the agent: write 127.0.0.1:{} or unix:/PATH",
                    address.port()
                ));
            }
            Listen::Tcp(address) => TcpListener::bind(address)
                .await
                .map(Listener::Tcp)
                .map_err(|error| format!("cannot listen on {address}: {error}"))?,
            Listen::Unix(path, mode) => {
                let listener = bind_unix(&path, mode)
                    .map_err(|error| format!("cannot listen on {}: {error}", path.display()))?;
                Listener::Unix(listener, path)
            }
        };
        Ok(Self {
            listener,
            shared: Arc::new(Shared {
                gateway: settings.gateway,
                tokens: Holder::new(settings.tokens, Arc::clone(&dialler)),
                dialler,
            }),
            drain: settings.drain,
        })
    }

    /// Where it listens, in the form that clients take.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.listener {
            Listener::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|error| error.to_string(), |at| format!("http://{at}")),
            Listener::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// Serves until `until` comes back, and then lets what is open end.
    pub async fn run(self, until: impl Future<Output = ()>) {
        let keeper = Arc::clone(&self.shared);
        let keeping = tokio::spawn(async move { keeper.tokens.keep().await });
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut open = JoinSet::new();
        tokio::pin!(until);
        loop {
            let accepted = tokio::select! {
                () = &mut until => break,
                Some(_) = open.join_next(), if !open.is_empty() => continue,
                accepted = self.accept(&room) => accepted,
            };
            match accepted {
                Ok((client, slot)) => {
                    let shared = Arc::clone(&self.shared);
                    open.spawn(async move {
                        let _slot = slot;
                        serve(&shared, client).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    // Out of descriptors most likely; some must close first.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        if let Listener::Unix(_, path) = &self.listener {
            let _ = std::fs::remove_file(path);
        }
        drop(self.listener);
        tracing::info!(connections = open.len(), drain = ?self.drain, "draining");
        let drained = async { while open.join_next().await.is_some() {} };
        if tokio::time::timeout(self.drain, drained).await.is_err() {
            tracing::warn!("the time to drain is over; what is open is cut");
        }
        keeping.abort();
    }

    async fn accept(
        &self,
        room: &Arc<Semaphore>,
    ) -> io::Result<(Pin<Box<dyn Stream>>, tokio::sync::OwnedSemaphorePermit)> {
        let slot = Arc::clone(room)
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        Ok(match &self.listener {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                (Box::pin(stream), slot)
            }
            Listener::Unix(listener, _) => (Box::pin(listener.accept().await?.0), slot),
        })
    }
}

/// Why a request does not go on from here.
struct Refusal {
    status: u16,
    error: &'static str,
    reason: String,
    hint: &'static str,
}

impl Refusal {
    fn bad_request(reason: impl Into<String>) -> Self {
        Self {
            status: 400,
            error: "bad_request",
            reason: reason.into(),
            hint: "Correct the request; repeating it as it is cannot succeed.",
        }
    }

    fn no_token(reason: String) -> Self {
        Self {
            status: 503,
            error: "credential_unavailable",
            reason,
            hint: "The agent's token could not be renewed. Try again in a moment; if it stays, tell the operator.",
        }
    }

    fn no_gateway(reason: String) -> Self {
        Self {
            status: 502,
            error: "gateway_unreachable",
            reason,
            hint: "The gateway does not answer. Try again in a moment; if it stays, tell the operator.",
        }
    }

    /// In the form of the gateway's own refusals.
    fn bytes(&self) -> Vec<u8> {
        let id = RequestId::from_bits(host::random_bits());
        let body = serde_json::json!({
            "error": self.error,
            "reason": self.reason,
            "rule": null,
            "destination": null,
            "hint": self.hint,
            "request_id": id.as_str(),
        });
        let retry = if self.status == 400 {
            ""
        } else {
            "Retry-After: 1\r\n"
        };
        let body = format!("{body}\n");
        format!(
            "HTTP/1.1 {} AgentPort: {} rid={id}\r\nContent-Type: application/json\r\n\
             Cache-Control: no-store\r\nX-AgentPort-Reason: {}\r\nX-Request-Id: {id}\r\n{retry}\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.status,
            self.error,
            self.error,
            body.len()
        )
        .into_bytes()
    }
}

/// One connection of the agent, on one connection to the gateway.
async fn serve(shared: &Shared, client: Pin<Box<dyn Stream>>) {
    let (from_client, mut to_client) = tokio::io::split(client);
    let mut requests = Requests {
        shared,
        client: from_client,
        unread: Vec::new(),
    };
    // The gateway is asked for nothing before there is something to ask.
    let first = match requests.next().await {
        Ok(Some(first)) => first,
        Ok(None) => return,
        Err(refusal) => return refuse(&mut to_client, &refusal).await,
    };
    let gateway = match shared.dialler.dial(&shared.gateway).await {
        Ok(gateway) => gateway,
        Err(error) => {
            tracing::warn!(%error, "a request is refused");
            return refuse(&mut to_client, &Refusal::no_gateway(error)).await;
        }
    };
    let (mut from_gateway, mut to_gateway) = tokio::io::split(gateway);
    // Whether the connection carries no requests any more.
    let is_stream = AtomicBool::new(false);
    let refused = {
        let up = async {
            let ended = requests.forward(first, &mut to_gateway, &is_stream).await;
            // Half of a tunnel may close, and the other go on.
            let _ = to_gateway.shutdown().await;
            ended
        };
        let down = async {
            let done = tokio::io::copy(&mut from_gateway, &mut to_client).await;
            if is_stream.load(Ordering::Relaxed) {
                let _ = to_client.shutdown().await;
            }
            done
        };
        tokio::pin!(up, down);
        tokio::select! {
            ended = &mut up => match ended {
                Ended::Client => {
                    let _ = down.await;
                    None
                }
                Ended::Broken => None,
                Ended::Refused(refusal) => {
                    // The answers to what went before come first.
                    let _ = tokio::time::timeout(LAST_ANSWERS, down).await;
                    Some(refusal)
                }
            },
            done = &mut down => {
                // The destination sends no more; the agent still may.
                if done.is_ok() && is_stream.load(Ordering::Relaxed) {
                    up.await;
                }
                None
            }
        }
    };
    match refused {
        Some(refusal) => refuse(&mut to_client, &refusal).await,
        None => {
            let _ = to_client.shutdown().await;
        }
    }
}

/// Says why, and closes so that the client gets to read it.
async fn refuse(client: &mut (impl AsyncWrite + Unpin), refusal: &Refusal) {
    if client.write_all(&refusal.bytes()).await.is_ok() {
        let _ = client.shutdown().await;
    }
}

/// A request that goes on: its head with the credential, and what follows it.
struct Next {
    head: Vec<u8>,
    follows: Follows,
}

/// The requests of one connection.
struct Requests<'s, R> {
    shared: &'s Shared,
    client: R,
    /// Bytes read and not yet passed on.
    unread: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Requests<'_, R> {
    /// The next request; `None` at the end of the connection.
    async fn next(&mut self) -> Result<Option<Next>, Refusal> {
        let length = match self.head().await {
            Ok(Some(length)) => length,
            Ok(None) => return Ok(None),
            Err(refusal) => return Err(refusal),
        };
        let head =
            parse(&self.unread[..length]).map_err(|error| Refusal::bad_request(error.message()))?;
        let credential = self
            .shared
            .tokens
            .credential()
            .await
            .map_err(Refusal::no_token)?;
        let next = Next {
            head: with_credential(&head, &credential),
            follows: follows(&head),
        };
        self.unread.drain(..length);
        Ok(Some(next))
    }

    /// Reads until a head is whole, and gives its length.
    async fn head(&mut self) -> Result<Option<usize>, Refusal> {
        if self.unread.is_empty() && !self.more().await {
            return Ok(None);
        }
        let whole = async {
            let mut looked = 0;
            loop {
                // Empty lines before a request are skipped (RFC 9112, 2.2).
                while self.unread.starts_with(b"\r\n") {
                    self.unread.drain(..2);
                    looked = 0;
                }
                match progress(&self.unread, looked) {
                    Ok(HeadProgress::Complete(length)) if length <= MAX_HEAD_BYTES => {
                        return Ok(Some(length));
                    }
                    Ok(HeadProgress::Partial) if self.unread.len() < MAX_HEAD_BYTES => {}
                    Ok(_) => return Err(Refusal::bad_request("the request head is too large")),
                    Err(error) => return Err(Refusal::bad_request(error.message())),
                }
                looked = self.unread.len();
                if !self.more().await {
                    return Ok(None);
                }
            }
        };
        match tokio::time::timeout(HEAD, whole).await {
            Ok(read) => read,
            Err(_) => Err(Refusal::bad_request(
                "the request head did not come in time",
            )),
        }
    }

    /// Reads some more. `false` at the end, however it came.
    async fn more(&mut self) -> bool {
        let mut part = [0; READ_BYTES];
        match self.client.read(&mut part).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.unread.extend_from_slice(&part[..count]);
                true
            }
        }
    }

    /// Passes on this request and all that come after it.
    async fn forward(
        &mut self,
        first: Next,
        gateway: &mut (impl AsyncWrite + Unpin),
        is_stream: &AtomicBool,
    ) -> Ended {
        let mut next = first;
        loop {
            if next.follows == Follows::Stream {
                is_stream.store(true, Ordering::Relaxed);
            }
            match self.pass(&next, gateway).await {
                Ok(true) => {}
                Ok(false) => return Ended::Client,
                Err(Passing::Broken) => return Ended::Broken,
                Err(Passing::Malformed(refusal)) => return Ended::Refused(refusal),
            }
            next = match self.next().await {
                Ok(Some(next)) => next,
                Ok(None) => return Ended::Client,
                Err(refusal) => return Ended::Refused(refusal),
            };
        }
    }

    /// Passes on one request with its body. `false` where nothing comes after.
    async fn pass(
        &mut self,
        next: &Next,
        gateway: &mut (impl AsyncWrite + Unpin),
    ) -> Result<bool, Passing> {
        gateway.write_all(&next.head).await?;
        match next.follows {
            Follows::Body(BodyLength::None) => {}
            Follows::Body(BodyLength::Bytes(mut left)) => {
                while left > 0 {
                    if self.unread.is_empty() {
                        gateway.flush().await?;
                        if !self.more().await {
                            return Ok(false);
                        }
                    }
                    let count = self
                        .unread
                        .len()
                        .min(usize::try_from(left).unwrap_or(usize::MAX));
                    gateway.write_all(&self.unread[..count]).await?;
                    self.unread.drain(..count);
                    left -= count as u64;
                }
            }
            Follows::Body(BodyLength::Chunked) => {
                let mut body = ChunkedBody::default();
                while !body.is_done() {
                    if self.unread.is_empty() {
                        gateway.flush().await?;
                        if !self.more().await {
                            return Ok(false);
                        }
                    }
                    let count = body.advance(&self.unread).map_err(|error| {
                        Passing::Malformed(Refusal::bad_request(error.to_string()))
                    })?;
                    gateway.write_all(&self.unread[..count]).await?;
                    self.unread.drain(..count);
                }
            }
            Follows::Stream => {
                gateway.write_all(&self.unread).await?;
                self.unread = Vec::new();
                gateway.flush().await?;
                tokio::io::copy(&mut self.client, gateway).await?;
                return Ok(false);
            }
        }
        gateway.flush().await?;
        Ok(true)
    }
}

/// Why the sending side of a connection has come to its end.
enum Ended {
    /// The client sends no more.
    Client,
    /// One side broke off.
    Broken,
    /// A request does not go on.
    Refused(Refusal),
}

/// Why a request was not passed on whole.
enum Passing {
    Broken,
    Malformed(Refusal),
}

impl From<io::Error> for Passing {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

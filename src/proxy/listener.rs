//! Listeners: bound before anything is served, each with its bound of
//! connections.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use nix::sys::stat::{Mode, umask};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::egress::RequestId;
use crate::egress::proxy_header::{self, ProxyHeader, ProxyHeaderError, ProxyHeaderProgress};
use crate::gate::ports::Observation;
use crate::gate::{Cause, Denial, Opening, TunnelEnd};
use crate::identity::{Certified, Principal};
use crate::limit::{ConcurrencyLimit, InFlight, TooMany, source_of};

use super::Wire;
use super::conn::{ConnIo, Connection, Ending};
use super::refusal;
use super::serve::{open_trail, refuse, serve};
use super::tls::{Handshake, ListenerTls};
use super::transport::Transport;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An address and a port; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// A Unix socket, with the file's mode.
    Unix(PathBuf, u32),
}

/// A listener that is bound and does not accept yet.
pub struct Bound {
    name: Arc<str>,
    socket: Socket,
    tls: Option<Arc<ListenerTls>>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Binds a listener.
///
/// # Errors
/// With the address, and what to do where that is known.
pub async fn bind(address: &ListenAddress) -> Result<Bound, String> {
    match address {
        ListenAddress::Tcp(tcp) => {
            let listener = TcpListener::bind(tcp)
                .await
                .map_err(|error| explain(&tcp.to_string(), &error))?;
            Ok(Bound {
                name: "egress".into(),
                tls: None,
                socket: Socket::Tcp(listener),
            })
        }
        ListenAddress::Unix(path, mode) => {
            let text = path.display().to_string();
            let listener = bind_unix(path, *mode).map_err(|error| explain(&text, &error))?;
            Ok(Bound {
                name: "egress_unix".into(),
                tls: None,
                socket: Socket::Unix(listener, path.clone()),
            })
        }
    }
}

/// Binds a Unix socket with its file's mode, in the place of one that a process
/// left behind. Nobody whom the mode keeps out can connect in between.
///
/// # Errors
/// Where the path holds anything but a socket that nobody listens on, or the
/// socket cannot be made.
pub fn bind_unix(path: &std::path::Path, mode: u32) -> io::Result<UnixListener> {
    remove_stale(path)?;
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// A socket that a process left behind which is gone. One that somebody
/// listens on stays, and so does whatever is no socket.
///
/// # Errors
/// Where the path holds anything but a socket that nobody listens on.
fn remove_stale(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(meta) if !meta.file_type().is_socket() => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the file is there and is no socket",
        )),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
            Err(_) => std::fs::remove_file(path),
        },
    }
}

fn explain(address: &str, error: &io::Error) -> String {
    let what = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process listens there: stop it or choose another address"
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need a privilege: choose a higher one"
        }
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        _ => "",
    };
    format!("cannot listen on {address}: {error}{what}")
}

impl Bound {
    /// The same, speaking TLS, under this name in records and figures.
    #[must_use]
    pub fn over_tls(self, name: &str, tls: Arc<ListenerTls>) -> Self {
        Self {
            name: name.into(),
            tls: Some(tls),
            ..self
        }
    }

    /// Its name in records and figures.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it speaks TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Where it listens, with the port the system chose.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(tcp) => tcp.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }
}

/// How long the queue of a listener that closes is waited for.
const QUEUE: Duration = Duration::from_millis(5);

/// How many connections each source address may have on several listeners
/// together; of IPv6 each /64, of which one machine has all addresses.
#[derive(Debug)]
pub struct PerSource {
    counts: ConcurrencyLimit<IpAddr>,
    most: NonZeroU32,
}

impl PerSource {
    /// So many of each.
    #[must_use]
    pub fn new(most: NonZeroU32) -> Self {
        Self {
            counts: ConcurrencyLimit::new(SOURCES),
            most,
        }
    }

    fn enter(&self, address: IpAddr) -> Result<InFlight<IpAddr>, TooMany> {
        self.counts.enter(&source_of(address), self.most)
    }
}

/// Accepts connections from one listener.
pub struct Accepting {
    wire: Arc<Wire>,
    connections: Arc<Semaphore>,
    per_source: Option<Arc<PerSource>>,
    proxies: Arc<[IpNet]>,
    leaving: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

/// How many connections that are refused for want of room may take their time
/// about leaving, each at most [`LEAVING`].
const MOST_LEAVING: usize = 128;
/// How long such a connection may take.
const LEAVING: Duration = Duration::from_secs(2);

/// How many source addresses are counted at once.
const SOURCES: usize = 100_000;

impl Accepting {
    /// For this wire, with room for so many connections, of one source so
    /// many, until `stop` turns true.
    #[must_use]
    pub fn new(
        wire: Arc<Wire>,
        connections: Arc<Semaphore>,
        per_source: Option<Arc<PerSource>>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            wire,
            connections,
            per_source,
            proxies: Arc::default(),
            leaving: Arc::new(Semaphore::new(MOST_LEAVING)),
            stop,
        }
    }

    /// The same, behind load balancers at these addresses: a connection from
    /// there begins with a PROXY protocol header, and is its client's.
    #[must_use]
    pub fn behind(self, proxies: Vec<IpNet>) -> Self {
        Self {
            proxies: proxies.into(),
            ..self
        }
    }

    /// Accepts until told to stop.
    pub async fn run(self, bound: Bound) {
        let mut stop = self.stop.clone();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                accepted = accept(&bound.socket) => accepted,
            };
            match accepted {
                Ok((accepted, client)) => self.take(&bound, accepted, client),
                // Out of descriptors or memory: the connections that are open
                // must end before another can begin.
                Err(error) if !is_transient(&error) => {
                    tracing::warn!(%error, listener = %bound.name, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(_) => {}
            }
        }
        // Who has connected before is served; a reset would fail its request.
        let waiting = || tokio::time::timeout(QUEUE, accept(&bound.socket));
        while let Ok(Ok((accepted, client))) = waiting().await {
            self.take(&bound, accepted, client);
        }
        if let Socket::Unix(_, path) = &bound.socket {
            let _ = std::fs::remove_file(path);
        }
    }

    fn take(&self, bound: &Bound, accepted: Accepted, client: Option<SocketAddr>) {
        let arrival = Arrival {
            wire: Arc::clone(&self.wire),
            listener: Arc::clone(&bound.name),
            tls: bound.tls.clone(),
            proxies: Arc::clone(&self.proxies),
            per_source: self.per_source.clone(),
            leaving: Arc::clone(&self.leaving),
        };
        let slot = Arc::clone(&self.connections).try_acquire_owned().ok();
        tokio::spawn(arrival.settle(accepted, client, slot));
    }
}

/// A connection that was accepted, before the loop has it.
struct Arrival {
    wire: Arc<Wire>,
    listener: Arc<str>,
    tls: Option<Arc<ListenerTls>>,
    proxies: Arc<[IpNet]>,
    per_source: Option<Arc<PerSource>>,
    leaving: Arc<Semaphore>,
}

impl Arrival {
    /// Finds out whose it is, shakes hands where the listener speaks TLS, and
    /// serves it.
    ///
    /// What is over before it is served is boxed: the room for it would stay
    /// with an idle tunnel for as long as that lives.
    async fn settle(
        self,
        mut accepted: Accepted,
        mut client: Option<SocketAddr>,
        slot: Option<OwnedSemaphorePermit>,
    ) {
        // Without a place not even the header is read.
        let Some(slot) = slot else {
            return Box::pin(self.too_many(accepted, client)).await;
        };
        if let (Accepted::Tcp(tcp), Some(peer)) = (&mut accepted, client)
            && self.is_proxy(peer.ip())
        {
            let limit = self.wire.shared.settings.handshake_timeout;
            match tokio::time::timeout(limit, read_proxy_header(tcp)).await {
                Ok(Ok(ProxyHeader::Client(address))) => client = Some(address),
                Ok(Ok(ProxyHeader::Own)) => {}
                Ok(Err(HeaderRead::Closed)) => return,
                Ok(Err(HeaderRead::Bad(error))) => {
                    return self.record(client, "proxy_header", error.to_string());
                }
                Err(_) => {
                    let detail = "the PROXY protocol header did not come in time";
                    return self.record(client, "proxy_header", detail.to_owned());
                }
            }
        }
        let place = match (self.per_source.as_deref(), client) {
            (Some(limit), Some(client)) => limit.enter(client.ip()).map(Some),
            _ => Ok(None),
        };
        let Ok(place) = place else {
            return Box::pin(self.too_many(accepted, client)).await;
        };
        let secured = Box::pin(self.secure(accepted, client)).await;
        let Some((transport, certified, name)) = secured else {
            return;
        };
        let connection = |ending| {
            Connection::new(self.listener, client, None, ending)
                .certified(certified)
                .named(name)
        };
        one(self.wire, connection, transport, (slot, place)).await;
    }

    fn is_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.proxies.iter().any(|range| range.contains(&address))
    }

    /// The transport with its handshake done, where the listener wants one.
    async fn secure(
        &self,
        accepted: Accepted,
        client: Option<SocketAddr>,
    ) -> Option<(Transport, Option<Certified>, Option<Arc<str>>)> {
        let (tcp, tls) = match (accepted, &self.tls) {
            (Accepted::Unix(unix), _) => return Some((Transport::Unix(unix), None, None)),
            (Accepted::Tcp(tcp), None) => return Some((Transport::Tcp(tcp), None, None)),
            (Accepted::Tcp(tcp), Some(tls)) => (tcp, tls),
        };
        let gate = self.wire.gate();
        let limit = self.wire.shared.settings.handshake_timeout;
        let done = tls.accept(tcp, limit, gate.clock().wall()).await;
        gate.observe().observe(Observation::Handshake {
            listener: &self.listener,
            outcome: match &done {
                Ok(Handshake::Client(arrived)) if arrived.resumed => "resumed",
                Ok(Handshake::Client(_)) => "full",
                Ok(Handshake::Challenge) => "challenge",
                Err(failure) => failure.code,
            },
        });
        match done {
            Ok(Handshake::Client(arrived)) => Some((
                Transport::Tls(arrived.stream),
                arrived.certified,
                arrived.server_name,
            )),
            Ok(Handshake::Challenge) => None,
            Err(failure) => {
                let detail = failure.detail.clone().unwrap_or_default();
                tracing::debug!(listener = %self.listener, ?client, code = failure.code, %detail, "no TLS handshake");
                if failure.is_refusal() {
                    self.record(client, failure.code, detail);
                }
                None
            }
        }
    }

    /// Writes down a connection that was refused before any request.
    fn record(&self, client: Option<SocketAddr>, reason: &'static str, detail: String) {
        let mut trail = self.wire.gate().open(Opening {
            listener: Arc::clone(&self.listener),
            client,
            request_id: RequestId::from_bits((self.wire.shared.random)()),
        });
        trail.broke_off(reason, Some(detail));
        trail.finish();
    }

    /// Says that there is no room, without looking at anything. Inside TLS
    /// that would take the handshake for which there is no room.
    ///
    /// The answer is lost to a client whose request is still on its way when the
    /// socket is closed: that is a reset. So the socket stays until the request
    /// has come, for a moment. Where many do so, more are only offered the
    /// answer: a flood of connections over the limit must not take the
    /// descriptors of those that have a place.
    async fn too_many(self, accepted: Accepted, client: Option<SocketAddr>) {
        const DETAIL: &str = "limits.connections or limits.connections_per_source is reached";
        let denial = Denial::new(Cause::Overloaded).detail(DETAIL);
        let transport = match accepted {
            Accepted::Unix(unix) => Transport::Unix(unix),
            Accepted::Tcp(tcp) if self.tls.is_none() => Transport::Tcp(tcp),
            Accepted::Tcp(_) => return self.record(client, denial.code(), DETAIL.to_owned()),
        };
        let connection = Connection::new(self.listener, client, None, Arc::default());
        let io = ConnIo::new(transport, Arc::new(connection));
        let mut trail = open_trail(&self.wire, &io);
        match self.leaving.try_acquire() {
            Ok(_place) => {
                let refusing = refuse(io, trail, denial);
                let _ = tokio::time::timeout(LEAVING, refusing).await;
            }
            Err(_) => {
                trail.refused(&denial);
                let id = trail.request_id();
                trail.finish();
                refusal::offer_raw(io, &denial, &id);
            }
        }
    }
}

/// Why there is no header.
enum HeaderRead {
    Closed,
    Bad(ProxyHeaderError),
}

/// Reads a PROXY protocol header and nothing behind it.
async fn read_proxy_header(tcp: &mut TcpStream) -> Result<ProxyHeader, HeaderRead> {
    let mut bytes = Vec::with_capacity(128);
    loop {
        match proxy_header::progress(&bytes).map_err(HeaderRead::Bad)? {
            ProxyHeaderProgress::Complete(header) => return Ok(header),
            ProxyHeaderProgress::More(count) => {
                let have = bytes.len();
                bytes.resize(have + count, 0);
                tcp.read_exact(&mut bytes[have..])
                    .await
                    .map_err(|_| HeaderRead::Closed)?;
            }
        }
    }
}

async fn one(
    wire: Arc<Wire>,
    connection: impl FnOnce(Arc<Ending>) -> Connection,
    transport: Transport,
    held: Held,
) {
    let ending = Arc::new(Ending::default());
    let peer = peer(&wire, &transport);
    let connection = Arc::new(connection(Arc::clone(&ending)).with_peer(peer));
    let gauge = Gauge::up(Arc::clone(&wire), Arc::clone(&connection.listener));
    let mut cut = wire.cut.subscribe();
    {
        // Boxed, so that what the loop took is freed before a tunnel runs.
        let io = ConnIo::new(transport, connection);
        let serving = async {
            let tunnel = Box::pin(serve(&wire, io)).await;
            if let Some(tunnel) = tunnel {
                tunnel.await;
            }
        };
        tokio::pin!(serving);
        let cut = tokio::select! {
            () = &mut serving => false,
            _ = cut.wait_for(|cut| *cut) => true,
        };
        if cut {
            ending.end(TunnelEnd::Drained);
            // What does not see it in time is dropped where it stands; a trail
            // that is dropped is written as well.
            let _ = tokio::time::timeout(LAST_WORDS, serving).await;
        }
    }
    drop(gauge);
    drop(held);
}

/// Whom the operator has named for the process that has connected. The kernel
/// has kept its user id from the moment of connecting (SO_PEERCRED).
fn peer(wire: &Wire, transport: &Transport) -> Option<Arc<Principal>> {
    let peers = &wire.shared.settings.peers;
    match transport {
        Transport::Unix(unix) if !peers.is_empty() => {
            let found = unix.peer_cred().ok()?;
            peers.get(&found.uid()).cloned()
        }
        _ => None,
    }
}

/// How long a connection that is cut may take to end by itself.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a connection holds for as long as it lives.
type Held = (OwnedSemaphorePermit, Option<InFlight<IpAddr>>);

/// Counts a connection for as long as it lives, however it ends.
struct Gauge {
    wire: Arc<Wire>,
    listener: Arc<str>,
}

impl Gauge {
    fn up(wire: Arc<Wire>, listener: Arc<str>) -> Self {
        wire.gate().observe().observe(Observation::Connection {
            listener: &listener,
            change: 1,
        });
        Self { wire, listener }
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.wire.gate().observe().observe(Observation::Connection {
            listener: &self.listener,
            change: -1,
        });
    }
}

/// A stream as it was accepted.
enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

async fn accept(socket: &Socket) -> io::Result<(Accepted, Option<SocketAddr>)> {
    match socket {
        Socket::Tcp(listener) => {
            let (stream, client) = listener.accept().await?;
            // Small writes are heads and events that somebody waits for.
            let _ = stream.set_nodelay(true);
            Ok((Accepted::Tcp(stream), Some(client)))
        }
        Socket::Unix(listener, _) => {
            let (stream, _) = listener.accept().await?;
            Ok((Accepted::Unix(stream), None))
        }
    }
}

/// The client has gone before it was accepted.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_so_many_whatever_address_of_its_network_it_uses() {
        let limit = PerSource::new(NonZeroU32::MIN);
        let enter = |raw: &str| limit.enter(raw.parse().expect("an address"));
        let first = enter("2001:db8::1").expect("the first");
        for (case, address, free) in [
            ("another address of the same /64", "2001:db8::ffff:2", false),
            ("another /64", "2001:db8:0:1::1", true),
            ("IPv4", "192.0.2.1", true),
        ] {
            assert_eq!(enter(address).is_ok(), free, "{case}");
        }
        let mapped = enter("::ffff:192.0.2.1").expect("an IPv4 address");
        assert!(enter("192.0.2.1").is_err(), "it is the same in both forms");
        drop((first, mapped));
        assert!(enter("2001:db8::2").is_ok());
    }
}

//! Listeners: bound before anything is served, each with its bound of
//! connections.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::gate::ports::Observation;
use crate::gate::{Cause, Denial, TunnelEnd};
use crate::limit::{ConcurrencyLimit, InFlight};

use super::Wire;
use super::conn::{ConnIo, Connection, Ending, Transport};
use super::serve::{open_trail, refuse, serve};

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
                socket: Socket::Tcp(listener),
            })
        }
        ListenAddress::Unix(path, mode) => {
            let text = path.display().to_string();
            remove_stale(path).map_err(|error| explain(&text, &error))?;
            let listener = UnixListener::bind(path).map_err(|error| explain(&text, &error))?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(*mode))
                .map_err(|error| explain(&text, &error))?;
            Ok(Bound {
                name: "egress_unix".into(),
                socket: Socket::Unix(listener, path.clone()),
            })
        }
    }
}

/// A socket that a process left behind which is gone. One that somebody
/// listens on stays, and so does whatever is no socket.
///
/// # Errors
/// Where the path holds anything but a socket that nobody listens on.
pub fn remove_stale(path: &std::path::Path) -> io::Result<()> {
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

/// Accepts connections from one listener.
pub struct Accepting {
    wire: Arc<Wire>,
    connections: Arc<Semaphore>,
    per_source: Option<(ConcurrencyLimit<IpAddr>, NonZeroU32)>,
    stop: watch::Receiver<bool>,
}

/// How many source addresses are counted at once.
const SOURCES: usize = 100_000;

impl Accepting {
    /// For this wire, with room for so many connections, of one source so
    /// many, until `stop` turns true.
    #[must_use]
    pub fn new(
        wire: Arc<Wire>,
        connections: Arc<Semaphore>,
        per_source: Option<NonZeroU32>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let per_source = per_source.map(|most| (ConcurrencyLimit::new(SOURCES), most));
        Self {
            wire,
            connections,
            per_source,
            stop,
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
                Ok((transport, client)) => self.take(&bound.name, transport, client),
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
        while let Ok(Ok((transport, client))) = waiting().await {
            self.take(&bound.name, transport, client);
        }
        if let Socket::Unix(_, path) = &bound.socket {
            let _ = std::fs::remove_file(path);
        }
    }

    fn take(&self, name: &Arc<str>, transport: Transport, client: Option<SocketAddr>) {
        let wire = Arc::clone(&self.wire);
        let slot = Arc::clone(&self.connections).try_acquire_owned().ok();
        let place = match (&self.per_source, client) {
            (Some((limit, most)), Some(client)) => limit.enter(&client.ip(), *most).map(Some),
            _ => Ok(None),
        };
        let name = Arc::clone(name);
        tokio::spawn(async move {
            match (slot, place) {
                (Some(slot), Ok(place)) => one(wire, name, transport, client, (slot, place)).await,
                _ => too_many(&wire, name, transport, client).await,
            }
        });
    }
}

async fn one(
    wire: Arc<Wire>,
    listener: Arc<str>,
    transport: Transport,
    client: Option<SocketAddr>,
    held: Held,
) {
    let gauge = Gauge::up(Arc::clone(&wire), Arc::clone(&listener));
    let ending = Arc::new(Ending::default());
    let connection = Arc::new(Connection::new(listener, client, None, Arc::clone(&ending)));
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

/// Says that there is no room, without looking at anything.
async fn too_many(
    wire: &Wire,
    listener: Arc<str>,
    transport: Transport,
    client: Option<SocketAddr>,
) {
    let connection = Connection::new(listener, client, None, Arc::new(Ending::default()));
    let io = ConnIo::new(transport, Arc::new(connection));
    let trail = open_trail(wire, &io);
    let denial = Denial::new(Cause::Overloaded)
        .detail("limits.connections or limits.connections_per_source is reached");
    let refusing = refuse(io, trail, denial);
    let _ = tokio::time::timeout(Duration::from_secs(2), refusing).await;
}

async fn accept(socket: &Socket) -> io::Result<(Transport, Option<SocketAddr>)> {
    match socket {
        Socket::Tcp(listener) => {
            let (stream, client) = listener.accept().await?;
            // Small writes are heads and events that somebody waits for.
            let _ = stream.set_nodelay(true);
            Ok((Transport::Tcp(stream), Some(client)))
        }
        Socket::Unix(listener, _) => {
            let (stream, _) = listener.accept().await?;
            Ok((Transport::Unix(stream), None))
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

//! Agents that call each other: the file that says where they are, kept up with
//! while the gateway serves, and the health of their endpoints.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, bail};
use tokio::task::JoinSet;

use crate::adapters::figures::Figures;
use crate::adapters::names::Resolver;
use crate::adapters::peers::{self, Directory};
use crate::adapters::watch::Watch;
use crate::admin::Readiness;
use crate::config::{Config, Listener, Tls};
use crate::egress::DnsName;
use crate::gate::ports::Clock;
use crate::proxy::{Bound, Callees, ListenAddress, ListenerTls, Peers, Wire, bind};

use super::certificates;

/// What the listener on which agents call each other is made of.
pub(super) struct Between {
    address: SocketAddr,
    written: Arc<Tls>,
    tls: Arc<ListenerTls>,
    files: [u8; 32],
    peers: Arc<Peers>,
    file: PeersFile,
    /// As it was read first.
    first: Directory,
}

/// The file that says where agents are.
#[derive(Clone)]
struct PeersFile {
    path: PathBuf,
    domain: DnsName,
}

/// Reads all that the listener needs; `None` where there is none.
///
/// # Errors
/// Every file that gives nothing usable, and what to do.
pub(super) fn open(
    config: &Config,
    figures: &Figures,
    clock: &dyn Clock,
) -> anyhow::Result<Option<Between>> {
    let (Some(listener), Some(path)) = (&config.listen.peers, &config.peers.agents) else {
        return Ok(None);
    };
    let Listener::Tcp(address) = listener else {
        bail!("listen.peers: {listener}: certificates are shown on addresses alone");
    };
    let written = Arc::new(config.peers_tls());
    let (tls, files) = certificates::listener_tls(&written, figures, clock).context("peers")?;
    let domain = config.peers.domain.clone();
    let file = PeersFile {
        path: path.clone(),
        domain: domain.clone(),
    };
    let first = file.read(clock.wall()).map_err(anyhow::Error::msg)?;
    certificates::observe_all(figures, &first.in_use);
    Ok(Some(Between {
        address: *address,
        written,
        tls,
        files,
        peers: Arc::new(Peers::new(domain)),
        file,
        first,
    }))
}

impl PeersFile {
    fn read(&self, now: SystemTime) -> Result<Directory, String> {
        peers::read(&self.path, &self.domain, now).map_err(|error| format!("peers.agents: {error}"))
    }

    /// Watches it, and what it names.
    fn watch(&self, directory: &Directory) -> anyhow::Result<Watch> {
        let mut files = directory.files();
        files.push(self.path.clone());
        Watch::start(files).context("cannot watch peers.agents")
    }
}

impl Between {
    pub(super) async fn bind(&self) -> anyhow::Result<Bound> {
        let bound = bind(&ListenAddress::Tcp(self.address)).await;
        let bound = bound.map_err(|error| anyhow::anyhow!("listen.peers: {error}"))?;
        Ok(bound.over_tls("peers", self.tls()))
    }

    /// Puts the endpoints in force. Gives what looks up where they are.
    pub(super) fn put_in_force(
        &self,
        names: &Arc<Resolver>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let callees = self.peers.prepare(&self.first.agents, &self.first.tls);
        let lookups = locate(&callees, names);
        self.peers.replace(callees);
        lookups
    }

    pub(super) fn peers(&self) -> Arc<Peers> {
        Arc::clone(&self.peers)
    }

    pub(super) fn tls(&self) -> Arc<ListenerTls> {
        Arc::clone(&self.tls)
    }

    pub(super) fn written(&self) -> Arc<Tls> {
        Arc::clone(&self.written)
    }

    pub(super) fn files(&self) -> [u8; 32] {
        self.files
    }
}

/// Looks up the endpoints that are names, all at once. One that cannot be found
/// is looked up again while the gateway serves.
fn locate(callees: &Callees, names: &Arc<Resolver>) -> impl Future<Output = ()> + Send + use<> {
    let endpoints = callees.all().flat_map(|callee| callee.endpoints());
    let endpoints: Vec<_> = endpoints.map(Arc::clone).collect();
    let names = Arc::clone(names);
    async move {
        let mut all = JoinSet::new();
        for endpoint in endpoints {
            let names = Arc::clone(&names);
            all.spawn(async move { peers::locate(&endpoint, &*names).await });
        }
        while all.join_next().await.is_some() {}
    }
}

/// Keeps the endpoints up with their file and with how they do.
pub(super) struct PeersKeeper {
    between: Between,
    bound: Bound,
    beside: Arc<Wire>,
    wire: Arc<Wire>,
    names: Arc<Resolver>,
    figures: Arc<Figures>,
    clock: Arc<dyn Clock>,
}

impl PeersKeeper {
    pub(super) fn new(
        between: Between,
        bound: Bound,
        beside: Arc<Wire>,
        wire: &Arc<Wire>,
        names: &Arc<Resolver>,
        (figures, clock): (&Arc<Figures>, &Arc<dyn Clock>),
    ) -> Self {
        Self {
            between,
            bound,
            beside,
            wire: Arc::clone(wire),
            names: Arc::clone(names),
            figures: Arc::clone(figures),
            clock: Arc::clone(clock),
        }
    }

    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.bound.address()
    }

    pub(super) fn beside(&self) -> &Arc<Wire> {
        &self.beside
    }

    /// Gives the listener, and what runs for ever beside it.
    ///
    /// # Errors
    /// Where the file cannot be watched.
    pub(super) fn run(
        self,
        readiness: Arc<Readiness>,
    ) -> anyhow::Result<(Bound, impl Future<Output = ()> + Send + 'static)> {
        let file = self.between.file.clone();
        let mut watch = file.watch(&self.between.first)?;
        let (peers, wire, names) = (self.between.peers, self.wire, self.names);
        let (figures, clock) = (self.figures, self.clock);
        let mut in_force = self.between.first;
        let keeping = async move {
            let mut checks = watch_over(&peers.prepare(&in_force.agents, &in_force.tls), &names);
            loop {
                let (reading, now) = (file.clone(), clock.wall());
                let read = tokio::task::spawn_blocking(move || reading.read(now)).await;
                match read.unwrap_or_else(|error| Err(error.to_string())) {
                    Ok(directory) if directory == in_force => readiness.peers_are(Ok(())),
                    Ok(directory) => {
                        if directory.files() != in_force.files() {
                            match file.watch(&directory) {
                                Ok(other) => watch = other,
                                Err(error) => {
                                    tracing::error!(%error, "the files of peers.agents are not watched")
                                }
                            }
                        }
                        certificates::observe_all(&figures, &directory.in_use);
                        let callees = peers.prepare(&directory.agents, &directory.tls);
                        locate(&callees, &names).await;
                        checks = watch_over(&callees, &names);
                        peers.replace(callees);
                        let agents = directory.agents.agents.len();
                        in_force = directory;
                        readiness.peers_are(Ok(()));
                        // A tunnel may lead to what is an endpoint from now on.
                        let ended_tunnels = wire.judge_again();
                        tracing::info!(agents, ended_tunnels, "callable agents are in force");
                    }
                    Err(error) => {
                        readiness.peers_are(Err(error.clone()));
                        tracing::error!(%error, "the callable agents are refused; the last good ones stay in force");
                    }
                }
                tokio::select! {
                    changed = watch.changed() => if changed.is_none() {
                        std::future::pending::<()>().await;
                    },
                    Some(_) = checks.join_next() => {}
                }
            }
        };
        Ok((self.bound, keeping))
    }
}

/// A task for each endpoint; they end with what is given.
fn watch_over(callees: &Callees, names: &Arc<Resolver>) -> JoinSet<()> {
    let mut checks = JoinSet::new();
    for callee in callees.all() {
        for endpoint in callee.endpoints() {
            let (callee, endpoint, names) =
                (Arc::clone(callee), Arc::clone(endpoint), Arc::clone(names));
            checks.spawn(async move { peers::watch_over(&callee, &endpoint, &*names).await });
        }
    }
    checks
}

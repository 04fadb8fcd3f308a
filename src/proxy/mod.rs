//! The wire: listeners, connections, CONNECT, tunnels and forwarded requests.
//!
//! Our own loop owns every client connection. It reads a request's head by our
//! own strict parser, serves `CONNECT` and plain requests itself, and hands
//! everything else, with its target in one canonical form, to Pingora's
//! `HttpProxy`. The bytes inside
//! a tunnel, where they are clear text, come back to the same loop. So there is
//! one parser, one gate and one record for each way in.

mod callee_tls;
mod calls;
mod conn;
mod connect;
mod dial;
mod exchange;
mod failure;
mod fields;
mod forward;
mod http2;
mod inside;
mod listener;
mod local;
mod look;
mod parent;
mod peers;
mod plain;
mod pool;
mod refusal;
mod relay;
mod routes;
mod rpc;
mod serve;
mod tls;
mod transport;
mod tunnels;
mod upgrade;
mod upstream;
mod websocket;
mod whichever;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::H2Options;
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

pub use callee_tls::{CalleeTls, CalleeTlsParts};
pub use inside::RefusalCertificates;
pub use listener::{Accepting, Bound, ListenAddress, PerSource, bind, bind_unix};
pub use local::{LocalPages, Page};
pub use parent::{Carried, Parent, ParentAccess, ParentAsks};
pub use peers::{Callee, Callees, KnownAddresses, PeerEndpoint, Peers};
pub use routes::{NamedRoute, UpstreamHttp2, UpstreamRoots};
pub use tls::{ClientTrust, ListenerTls, TlsParts};
pub use tunnels::OpenTunnels;

use crate::egress::Authority;
use crate::gate::{Cause, Denial, Gate, TunnelEnd};
use crate::identity::Principal;
use crate::policy::{EchRule, SniRule, TlsRule, TlsUse};
use forward::Forward;

/// What the wire needs to know of the configuration. Times are how long to
/// wait, sizes are in bytes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For a whole request head.
    pub header_timeout: Duration,
    /// For the next request on a connection.
    pub keepalive_timeout: Duration,
    /// For a TLS handshake, and for a PROXY protocol header.
    pub handshake_timeout: Duration,
    /// Between two reads of a body.
    pub body_timeout: Duration,
    /// For a connection to a destination.
    pub connect_timeout: Duration,
    /// For the head of a destination's answer, and between two parts of it.
    pub response_timeout: Duration,
    /// For a pooled connection to a destination that nobody uses.
    pub upstream_idle: Duration,
    /// For a tunnel in which nothing moves.
    pub tunnel_idle: Duration,
    /// For an upgraded connection in which nothing moves.
    pub websocket_idle: Duration,
    /// For the first bytes in a tunnel.
    pub client_hello_timeout: Duration,
    /// The most bytes of a request head.
    pub header_bytes: usize,
    /// The most bytes of a request target, at most 8 KiB.
    pub target_bytes: usize,
    /// The most bytes of a request body.
    pub body_bytes: Option<u64>,
    /// The most bytes of a body that is read to judge its methods of JSON-RPC,
    /// at most 64 KiB.
    pub rpc_body_bytes: usize,
    /// Requests served at once.
    pub in_flight: usize,
    /// Tunnels open at once.
    pub tunnels: usize,
    /// Connections to destinations kept open without use.
    pub upstream_pool: usize,
    /// PEM bundle that destinations' certificates are checked against; the
    /// system's where none is given.
    pub upstream_ca: Option<String>,
    /// Worker threads.
    pub threads: usize,
    /// Whom the operator has named for user ids at the other end of a Unix
    /// socket.
    pub peers: HashMap<u32, Arc<Principal>>,
    /// The agent behind the gateway.
    pub agent: Option<FrontedAgent>,
    /// Origins that are reached by a path or a host on the gateway.
    pub routes: Vec<NamedRoute>,
    /// The proxy through which destinations are reached, where there is one.
    pub parent: Option<Arc<Parent>>,
    /// What every tunnel may carry, whatever its rule says.
    pub every_tunnel: TlsRule,
    /// Whether IPv4 addresses are tried before IPv6 ones.
    pub ipv4_first: bool,
    /// Whether clear-text HTTP in a tunnel is judged request by request, or
    /// refused.
    pub plain_in_tunnels: bool,
    /// Whether an open tunnel lives on when its credential has expired.
    pub tunnels_outlive_tokens: bool,
}

/// The refusal of the agent's name as a destination: the name means the agent
/// on the gateway's own paths, and elsewhere whoever owns it in DNS.
fn agents_name(authority: &Authority) -> Denial {
    Denial::new(Cause::OwnListener)
        .towards(authority)
        .detail("the agent's name is reached by a path on the gateway")
}

impl Settings {
    /// Whether this names the agent behind the gateway.
    fn is_agent(&self, authority: &Authority) -> bool {
        let agent = self.agent.as_ref();
        agent.is_some_and(|agent| authority.host.name() == Some(&agent.name))
    }

    /// A rule's own word on tunnels, or what is configured for all of them,
    /// whichever lets more pass.
    fn loosest(&self, rule: TlsRule) -> TlsRule {
        let all = self.every_tunnel;
        TlsRule {
            tls: if all.tls == TlsUse::Any {
                all.tls
            } else {
                rule.tls
            },
            sni: match (all.sni, rule.sni) {
                (SniRule::Any, _) | (_, SniRule::Any) => SniRule::Any,
                (SniRule::Optional, _) | (_, SniRule::Optional) => SniRule::Optional,
                (SniRule::Match, SniRule::Match) => SniRule::Match,
            },
            ech: if all.ech == EchRule::Allow {
                all.ech
            } else {
                rule.ech
            },
        }
    }
}

/// An agent whose API is reached through the gateway.
#[derive(Clone, Debug)]
pub struct FrontedAgent {
    /// The host that policy judges.
    pub name: crate::egress::DnsName,
    /// Where it listens.
    pub endpoint: AgentEndpoint,
}

/// Where an agent behind the gateway listens.
#[derive(Clone, Debug)]
pub enum AgentEndpoint {
    /// At this host and port, which are not judged.
    Tcp(Authority),
    /// On a Unix socket, by its path.
    Unix(String),
}

/// What every connection shares.
pub struct Shared {
    gate: Gate,
    settings: Settings,
    routes: ArcSwap<routes::Routes>,
    tunnels: OpenTunnels,
    in_flight: Arc<Semaphore>,
    tunnel_slots: Arc<Semaphore>,
    pages: Arc<dyn LocalPages>,
    /// The agents that are called here, and nothing else is; `None` on the way
    /// out.
    peers: Option<Arc<Peers>>,
    /// 128 random bits.
    random: fn() -> u128,
    /// What tells this process's `Via` from others'.
    instance: String,
    /// Keeps tenants' and agents' pooled connections apart.
    pool_key: std::hash::RandomState,
    /// Connections to origins for plain requests.
    pool: Arc<pool::Pool>,
    /// Dials where a request upgrades.
    for_upgrades: Arc<dyn pingora::connectors::L4Connect + Send + Sync>,
}

impl Shared {
    /// A place among the requests under way.
    fn in_flight_slot(&self, towards: &Authority) -> Result<OwnedSemaphorePermit, Denial> {
        let slot = Arc::clone(&self.in_flight).try_acquire_owned();
        slot.map_err(|_| {
            Denial::new(Cause::Overloaded)
                .towards(towards)
                .detail("limits.in_flight is reached")
        })
    }
}

/// The wire, ready to serve connections.
pub struct Wire {
    shared: Arc<Shared>,
    proxy: Arc<HttpProxy<Forward>>,
    shutdown: watch::Receiver<bool>,
    /// Turns true when what is still open is to be cut.
    cut: watch::Sender<bool>,
    /// The wire on which agents call each other.
    beside: Option<Arc<Wire>>,
    /// Which refusals of a `CONNECT` are told inside its tunnel.
    inside: Option<inside::Inside>,
}

impl Wire {
    /// Puts the wire together. `shutdown` turns true when no more is to begin.
    #[must_use]
    pub fn new(
        gate: Gate,
        settings: Settings,
        pages: Arc<dyn LocalPages>,
        random: fn() -> u128,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        Self::with(gate, settings, pages, random, shutdown, None)
    }

    /// The wire on which agents call each other, and no way out.
    #[must_use]
    pub fn between(
        peers: Arc<Peers>,
        gate: Gate,
        settings: Settings,
        pages: Arc<dyn LocalPages>,
        random: fn() -> u128,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        Self::with(gate, settings, pages, random, shutdown, Some(peers))
    }

    /// The same, where refusals of a `CONNECT` are told inside its tunnel: all
    /// of policy's, or those whose rule says so.
    #[must_use]
    pub fn telling_inside(self, certificates: Arc<dyn RefusalCertificates>, all: bool) -> Self {
        Self {
            inside: Some(inside::Inside::new(
                certificates,
                all,
                self.shared.settings.tunnels,
            )),
            ..self
        }
    }

    /// The same, with another wire that is judged, cut and stopped with it.
    #[must_use]
    pub fn beside(self, other: Option<Arc<Self>>) -> Self {
        Self {
            beside: other,
            ..self
        }
    }

    fn with(
        gate: Gate,
        settings: Settings,
        pages: Arc<dyn LocalPages>,
        random: fn() -> u128,
        shutdown: watch::Receiver<bool>,
        peers: Option<Arc<Peers>>,
    ) -> Self {
        let conf = Arc::new(ServerConf {
            threads: settings.threads,
            upstream_keepalive_pool_size: settings.upstream_pool,
            ca_file: settings.upstream_ca.clone(),
            // Walking on to the next address is a retry; there are at most
            // eight, and only what provably reached nobody is tried again.
            max_retries: 8,
            ..ServerConf::default()
        });
        let shared = Arc::new(Shared {
            in_flight: Arc::new(Semaphore::new(settings.in_flight)),
            tunnel_slots: Arc::new(Semaphore::new(settings.tunnels)),
            tunnels: OpenTunnels::new(settings.tunnels_outlive_tokens),
            pool: pool::Pool::new(settings.upstream_pool, settings.upstream_idle),
            gate,
            routes: ArcSwap::from_pointee(routes::Routes::new(&settings.routes)),
            settings,
            pages,
            peers,
            random,
            instance: format!(
                "{}-{:08x}",
                crate::gate::PSEUDONYM,
                u32::try_from(random() & 0xffff_ffff).unwrap_or(0)
            ),
            pool_key: std::hash::RandomState::new(),
            for_upgrades: upgrade::connector(),
        });
        let mut proxy = pingora::proxy::http_proxy(&conf, Forward::new(Arc::clone(&shared)));
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(shared.settings.keepalive_timeout);
        proxy.server_options = Some(options);
        let mut h2 = H2Options::new();
        h2.max_header_list_size(u32::try_from(shared.settings.header_bytes).unwrap_or(u32::MAX));
        h2.max_concurrent_streams(256);
        // A tunnel wants more than the 64 KiB of the protocol's default, and one
        // whose destination does not read must not stop the others.
        h2.initial_window_size(256 * 1024);
        h2.initial_connection_window_size(4 * 1024 * 1024);
        h2.enable_connect_protocol();
        proxy.h2_options = Some(h2);
        Self {
            shared,
            proxy: Arc::new(proxy),
            shutdown,
            cut: watch::Sender::new(false),
            beside: None,
            inside: None,
        }
    }

    /// The tunnels that are open.
    #[must_use]
    pub fn tunnels(&self) -> &OpenTunnels {
        &self.shared.tunnels
    }

    /// Puts other routes in force. What is under way goes on by its own.
    pub fn replace_routes(&self, routes: &[NamedRoute]) {
        let routes = Arc::new(routes::Routes::new(routes));
        self.shared.routes.store(routes);
    }

    /// The gate that all pass.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.shared.gate
    }

    /// Puts every open tunnel and every long exchange to the policy and the keys
    /// now in force, and ends those that they refuse. Gives how many.
    pub fn judge_again(&self) -> usize {
        let beside = self.beside.as_ref().map_or(0, |other| other.judge_again());
        self.shared.tunnels.judge_again(&self.shared.gate) + beside
    }

    /// Ends what has lost its credential to nothing but time. Gives how many.
    pub fn end_overdue(&self) -> usize {
        let beside = self.beside.as_ref().map_or(0, |other| other.end_overdue());
        self.shared.tunnels.end_overdue(&self.shared.gate) + beside
    }

    /// Writes the counts of refusals that were held back, of the wire beside it
    /// too.
    pub fn write_repeated(&self, all: bool) {
        if let Some(other) = &self.beside {
            other.write_repeated(all);
        }
        self.shared.gate.write_repeated(all);
    }

    /// Ends all that is still open: the time to drain is over. Every tunnel and
    /// every request writes its record before its connection goes.
    pub fn cut(&self) {
        if let Some(other) = &self.beside {
            other.cut();
        }
        self.shared.tunnels.end_all(TunnelEnd::Drained);
        self.cut.send_replace(true);
    }

    /// Wakes idle connections so that they close; called when going down.
    pub async fn stop_idle(&self) {
        use pingora::apps::HttpServerApp;
        self.proxy.http_cleanup().await;
        self.shared.pool.clear();
        if let Some(other) = &self.beside {
            other.proxy.http_cleanup().await;
        }
    }
}

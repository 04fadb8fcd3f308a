//! Agents that are called by name: which endpoint takes a call, which one is
//! passed over for a while, and what of it the egress listeners must refuse.
//!
//! A call goes to the endpoint with the fewest calls under way. One that cannot
//! be connected to, or that fails its health check, comes last until it is well
//! again: where all fail, they are tried all the same.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::config::{Endpoint as At, HealthCheck, PeerDirectory};
use crate::egress::{Authority, DnsName, Host, RequestPath};
use crate::gate::ports::OffLimits;

use super::callee_tls::CalleeTls;

/// What the path begins with where the host names no agent.
const PREFIX: &str = "/agents/";
/// For how long an endpoint is passed over after it could not be connected to,
/// the first time; twice as long each time after that.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest that it is passed over.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// For how long an address is refused to the egress listeners after a name was
/// last found to lead there: answers rotate, and what is an endpoint by one is
/// still one by the next.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// The most addresses of one name that are.
const MOST_REMEMBERED: usize = 1024;
/// How many calls in a row may fail behind a connection that stood.
const MOST_FAILED: u32 = 3;

/// The agents that can be called, as they are in force.
pub struct Peers {
    domain: DnsName,
    agents: ArcSwap<HashMap<String, Arc<Callee>>>,
}

/// An agent that can be called.
pub struct Callee {
    /// Its host, by which policy speaks of it.
    pub host: DnsName,
    /// Whether its endpoints speak HTTP/2 alone.
    pub http2: bool,
    /// How its health is asked for.
    pub health: Option<HealthCheck>,
    /// TLS with its endpoints, where they speak it.
    pub tls: Option<Arc<CalleeTls>>,
    endpoints: Vec<Arc<PeerEndpoint>>,
    next: AtomicUsize,
}

/// An endpoint, and how it does. It outlives a change of the directory.
pub struct PeerEndpoint {
    at: At,
    under_way: AtomicUsize,
    /// Whether its health check last failed.
    unwell: AtomicBool,
    /// Failures in a row.
    failed: AtomicU32,
    /// When it may be chosen again, in milliseconds of the monotonic clock.
    paused_until: AtomicU64,
    /// Where its name leads.
    known: KnownAddresses,
}

/// Where a name leads: by its last lookup, and by all of them in a while.
#[derive(Debug, Default)]
pub struct KnownAddresses(ArcSwap<Known>);

#[derive(Debug, Default)]
struct Known {
    now: Vec<IpAddr>,
    /// Each with when it was last found.
    ever: Vec<(IpAddr, Instant)>,
}

impl KnownAddresses {
    /// A lookup has found these.
    pub fn found(&self, addresses: Vec<IpAddr>) {
        self.found_at(addresses, Instant::now());
    }

    fn found_at(&self, addresses: Vec<IpAddr>, at: Instant) {
        let before = self.0.load();
        let mut ever: Vec<_> = addresses.iter().map(|address| (*address, at)).collect();
        let older = before.ever.iter().filter(|(address, seen)| {
            !addresses.contains(address) && at.saturating_duration_since(*seen) < REMEMBERED
        });
        ever.extend(older);
        ever.truncate(MOST_REMEMBERED);
        self.0.store(Arc::new(Known {
            now: addresses,
            ever,
        }));
    }

    /// Whether the name leads, or has lately led, to an address like this.
    pub fn any(&self, is: impl Fn(IpAddr) -> bool) -> bool {
        self.0.load().ever.iter().any(|(address, _)| is(*address))
    }

    fn now(&self) -> Vec<IpAddr> {
        self.0.load().now.clone()
    }
}

/// Agents that can be called, by their names.
pub struct Callees(HashMap<String, Arc<Callee>>);

/// Whom a request calls, and with what path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) host: DnsName,
    pub(super) path: RequestPath,
    /// How many bytes of the path name the agent and do not go on.
    pub(super) prefix: usize,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers")
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

impl Peers {
    /// Nobody yet, under this domain.
    #[must_use]
    pub fn new(domain: DnsName) -> Self {
        Self {
            domain,
            agents: ArcSwap::default(),
        }
    }

    /// Another directory, to be put in force. Endpoints that stay keep what is
    /// known of them.
    #[must_use]
    pub fn prepare(
        &self,
        directory: &PeerDirectory,
        tls: &HashMap<String, Arc<CalleeTls>>,
    ) -> Callees {
        let before = self.agents.load_full();
        let agents = directory.agents.iter().map(|agent| {
            let old = before.get(&agent.name);
            let endpoint = |at: &At| {
                let known = old.and_then(|old| old.endpoints.iter().find(|one| one.at == *at));
                known.map_or_else(|| Arc::new(PeerEndpoint::new(at.clone())), Arc::clone)
            };
            let callee = Callee {
                host: agent.host.clone(),
                http2: agent.http2,
                health: agent.health.clone(),
                tls: tls.get(&agent.name).cloned(),
                endpoints: agent.endpoints.iter().map(endpoint).collect(),
                next: AtomicUsize::new(0),
            };
            (agent.name.clone(), Arc::new(callee))
        });
        Callees(agents.collect())
    }

    /// Puts another directory in force, for calls from now on.
    pub fn replace(&self, callees: Callees) {
        self.agents.store(Arc::new(callees.0));
    }

    /// Of the first so many agents by name: how many of their endpoints may be
    /// chosen, and how many are passed over. `now` is of the monotonic clock.
    #[must_use]
    pub fn standing(&self, now: Duration, most: usize) -> Vec<(String, usize, usize)> {
        let agents = self.agents.load();
        let mut names: Vec<_> = agents.iter().collect();
        names.sort_by_key(|(name, _)| name.as_str());
        let count = |(name, callee): &(&String, &Arc<Callee>)| {
            let all = callee.endpoints.len();
            let well = callee.endpoints.iter().filter(|one| one.is_available(now));
            let well = well.count();
            ((*name).clone(), well, all - well)
        };
        names.iter().take(most).map(count).collect()
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Callee>> {
        self.agents.load().get(name).cloned()
    }

    /// Whom a request calls: by its host, or else by the first words of its
    /// path.
    pub(super) fn call(&self, host: Option<&Host>, path: &RequestPath) -> Option<Call> {
        if let Some(name) = host.and_then(|host| self.label(host)) {
            return Some(Call {
                host: DnsName::parse(&format!("{name}.{}", self.domain)).ok()?,
                name: name.to_owned(),
                path: path.clone(),
                prefix: 0,
            });
        }
        let rest = path.as_str().strip_prefix(PREFIX)?;
        let name = rest.split('/').next()?;
        // A name with a dot would be another host.
        let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || !name.bytes().all(label) {
            return None;
        }
        let rest = &rest[name.len()..];
        Some(Call {
            host: DnsName::parse(&format!("{name}.{}", self.domain)).ok()?,
            name: name.to_owned(),
            path: RequestPath::parse(if rest.is_empty() { "/" } else { rest }).ok()?,
            prefix: PREFIX.len() + name.len(),
        })
    }

    /// The one label before the domain.
    fn label<'a>(&self, host: &'a Host) -> Option<&'a str> {
        let name = host.name()?.as_str();
        let label = name.strip_suffix(self.domain.as_str())?.strip_suffix('.')?;
        (!label.is_empty() && !label.contains('.')).then_some(label)
    }
}

impl Callees {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Callee>> {
        self.0.values()
    }
}

impl OffLimits for Peers {
    fn why(&self) -> &'static str {
        "agents are called on listen.peers alone"
    }

    fn authority(&self, authority: &Authority) -> bool {
        let in_domain = authority.host.name().is_some_and(|name| {
            let rest = name.as_str().strip_suffix(self.domain.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        });
        let agents = self.agents.load();
        let mut endpoints = agents.values().flat_map(|callee| &callee.endpoints);
        in_domain || endpoints.any(|one| matches!(&one.at, At::Tcp(at) if at == authority))
    }

    fn address(&self, address: SocketAddr, is: &dyn Fn(SocketAddr, SocketAddr) -> bool) -> bool {
        let agents = self.agents.load();
        let mut endpoints = agents.values().flat_map(|callee| &callee.endpoints);
        endpoints.any(|one| match &one.at {
            At::Unix(_) => false,
            At::Tcp(at) => match at.host {
                Host::Address(ip) => is(SocketAddr::new(ip, at.port), address),
                Host::Name(_) => (one.known).any(|ip| is(SocketAddr::new(ip, at.port), address)),
            },
        })
    }
}

impl Callee {
    /// Its endpoints.
    #[must_use]
    pub fn endpoints(&self) -> &[Arc<PeerEndpoint>] {
        &self.endpoints
    }

    /// In which order its endpoints are to be tried. `now` is of the monotonic
    /// clock.
    pub(super) fn order(&self, now: Duration) -> Vec<Arc<PeerEndpoint>> {
        let count = self.endpoints.len();
        // Among equals each has its turn.
        let first = self.next.fetch_add(1, Ordering::Relaxed) % count.max(1);
        let mut order: Vec<_> = (0..count)
            .map(|at| Arc::clone(&self.endpoints[(first + at) % count]))
            .collect();
        order.sort_by_key(|one| {
            (
                !one.is_available(now),
                one.under_way.load(Ordering::Relaxed),
            )
        });
        order
    }
}

impl PeerEndpoint {
    fn new(at: At) -> Self {
        Self {
            at,
            under_way: AtomicUsize::new(0),
            unwell: AtomicBool::new(false),
            failed: AtomicU32::new(0),
            paused_until: AtomicU64::new(0),
            known: KnownAddresses::default(),
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn at(&self) -> &At {
        &self.at
    }

    /// A lookup has found where its name leads.
    pub fn leads_to(&self, addresses: Vec<IpAddr>) {
        self.known.found(addresses);
    }

    /// Where it is, as far as that is known: no call waits for a lookup. None
    /// for a Unix socket.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let At::Tcp(at) = &self.at else {
            return Vec::new();
        };
        let found = match at.host {
            Host::Address(address) => vec![address],
            Host::Name(_) => self.known.now(),
        };
        let on_port = |address| SocketAddr::new(address, at.port);
        found.into_iter().map(on_port).collect()
    }

    /// How its health check went. Says whether that is news.
    pub fn is_well(&self, well: bool) -> bool {
        if well {
            self.failed.store(0, Ordering::Relaxed);
            self.paused_until.store(0, Ordering::Relaxed);
        }
        self.unwell.swap(!well, Ordering::Relaxed) == well
    }

    pub(super) fn is_available(&self, now: Duration) -> bool {
        !self.unwell.load(Ordering::Relaxed)
            && self.paused_until.load(Ordering::Relaxed) <= milliseconds(now)
    }

    /// It has answered.
    pub(super) fn succeeded(&self) {
        self.failed.store(0, Ordering::Relaxed);
        self.paused_until.store(0, Ordering::Relaxed);
    }

    /// It could not be connected to.
    pub(super) fn unreachable(&self, now: Duration) {
        let before = self.failed.fetch_add(1, Ordering::Relaxed);
        self.pause(before, now);
    }

    /// It took a call and did not answer it.
    pub(super) fn broke_off(&self, now: Duration) {
        let before = self.failed.fetch_add(1, Ordering::Relaxed);
        if before + 1 >= MOST_FAILED {
            self.pause(before + 1 - MOST_FAILED, now);
        }
    }

    fn pause(&self, times: u32, now: Duration) {
        let pause = FIRST_PAUSE
            .saturating_mul(1 << times.min(10))
            .min(LONGEST_PAUSE);
        self.paused_until
            .store(milliseconds(now + pause), Ordering::Relaxed);
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A call that is under way.
pub(super) struct UnderWay(Arc<PeerEndpoint>);

impl UnderWay {
    pub(super) fn on(endpoint: &Arc<PeerEndpoint>) -> Self {
        endpoint.under_way.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(endpoint))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(peers: &Peers, text: &str) {
        let directory = PeerDirectory::parse(text, &peers.domain).expect("a directory");
        peers.replace(peers.prepare(&directory, &HashMap::new()));
    }

    fn peers(text: &str) -> Peers {
        let domain = DnsName::parse("peers.internal").expect("a name");
        let peers = Peers::new(domain);
        put(&peers, text);
        peers
    }

    const TWO: &str = "agents: [{name: b, endpoints: [\"10.0.0.1:80\", \"b.svc:80\"]}]";

    #[test]
    fn whom_a_request_calls() {
        let peers = peers(TWO);
        for (case, host, path, expected) in [
            (
                "by host",
                "b.peers.internal",
                "/x/y",
                Some(("b", "/x/y", 0)),
            ),
            (
                "the host outweighs the path",
                "b.peers.internal",
                "/agents/c/x",
                Some(("b", "/agents/c/x", 0)),
            ),
            (
                "by path",
                "gateway",
                "/agents/b/x/y",
                Some(("b", "/x/y", 9)),
            ),
            ("by path alone", "gateway", "/agents/b", Some(("b", "/", 9))),
            (
                "one that is not there",
                "gateway",
                "/agents/c/",
                Some(("c", "/", 9)),
            ),
            ("the domain itself", "peers.internal", "/", None),
            ("two labels", "a.b.peers.internal", "/", None),
            ("another ending", "b.notpeers.internal", "/", None),
            ("no name in the path", "gateway", "/agents//x", None),
            ("dots in the path", "gateway", "/agents/../x", None),
            ("two labels in the path", "gateway", "/agents/a.b/x", None),
            ("an escape in the path", "gateway", "/agents/%62/x", None),
        ] {
            let host = Host::parse(host).expect("a host");
            let path = RequestPath::parse(path).expect("a path");
            let call = peers.call(Some(&host), &path);
            let found = call
                .as_ref()
                .map(|call| (call.name.as_str(), call.path.as_str(), call.prefix));
            assert_eq!(found, expected, "{case}");
        }
    }

    #[test]
    fn the_least_busy_comes_first_and_who_fails_last() {
        let peers = peers("agents: [{name: b, endpoints: [\"a:1\", \"b:1\", \"c:1\"]}]");
        let callee = peers.find("b").expect("an agent");
        let order = |now: u64| -> Vec<String> {
            let order = callee.order(Duration::from_secs(now));
            let name = |one: &Arc<PeerEndpoint>| match one.at() {
                At::Tcp(at) => at.host.to_string(),
                At::Unix(path) => path.display().to_string(),
            };
            order.iter().map(name).collect()
        };
        assert_eq!(order(0), ["a", "b", "c"], "each has its turn");
        assert_eq!(order(0), ["b", "c", "a"]);
        let [a, b, c] = callee.endpoints() else {
            panic!("three endpoints");
        };
        let busy = UnderWay::on(c);
        assert_eq!(order(0), ["a", "b", "c"], "who is busy comes last");
        drop(busy);
        a.unreachable(Duration::from_secs(10));
        assert_eq!(
            order(10),
            ["b", "c", "a"],
            "who is unreachable is passed over"
        );
        b.is_well(false);
        c.is_well(false);
        assert_eq!(order(11)[0], "a", "its pause is over");
        a.unreachable(Duration::from_secs(11));
        assert!(
            !a.is_available(Duration::from_millis(12_900)),
            "twice as long"
        );
        assert!(a.is_available(Duration::from_secs(13)));
        assert!(b.is_well(true), "news");
        assert!(!b.is_well(true), "no news");
        for _ in 0..2 {
            b.broke_off(Duration::from_secs(20));
        }
        assert!(b.is_available(Duration::from_secs(20)));
        b.broke_off(Duration::from_secs(20));
        assert!(
            !b.is_available(Duration::from_secs(20)),
            "the third in a row"
        );
        let standing = peers.standing(Duration::from_secs(20), 10);
        assert_eq!(standing, [("b".to_owned(), 1, 2)]);
        b.succeeded();
        assert!(b.is_available(Duration::from_secs(20)));
    }

    #[test]
    fn what_the_egress_listeners_must_refuse() {
        let peers = peers(TWO);
        let authority = |text: &str| Authority::parse(text).expect("an authority");
        for (text, expected) in [
            ("b.peers.internal:443", true),
            ("anything.peers.internal:80", true),
            ("peers.internal:80", true),
            ("b.svc:80", true),
            ("b.svc:81", false),
            ("notpeers.internal:80", false),
        ] {
            assert_eq!(peers.authority(&authority(text)), expected, "{text}");
        }
        let same = |left: SocketAddr, right: SocketAddr| left == right;
        let at = |text: &str| peers.address(text.parse().expect("an address"), &same);
        assert!(at("10.0.0.1:80"));
        assert!(!at("10.0.0.1:81"));
        assert!(!at("10.0.0.2:80"), "not looked up yet");
        let callee = peers.find("b").expect("an agent");
        callee.endpoints()[1].leads_to(vec!["10.0.0.2".parse().expect("an address")]);
        assert!(at("10.0.0.2:80"));
        // What stays keeps what is known of it.
        put(&peers, "agents: [{name: b, endpoints: [\"b.svc:80\"]}]");
        let at = |text: &str| peers.address(text.parse().expect("an address"), &same);
        assert!(at("10.0.0.2:80"));
        assert!(!at("10.0.0.1:80"), "it is gone");
        // Also where the next lookup leads elsewhere.
        let callee = peers.find("b").expect("an agent");
        let endpoint = &callee.endpoints()[0];
        endpoint.leads_to(vec!["10.0.0.3".parse().expect("an address")]);
        assert!(at("10.0.0.2:80") && at("10.0.0.3:80"));
        let now = ["10.0.0.3:80".parse().expect("an address")];
        assert_eq!(endpoint.addresses(), now, "calls go by the last one");
    }

    #[test]
    fn an_address_is_remembered_for_a_while() {
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let (known, start) = (KnownAddresses::default(), Instant::now());
        known.found_at(vec![address(1)], start);
        known.found_at(vec![address(2)], start + REMEMBERED / 2);
        assert!(known.any(|one| one == address(1)));
        known.found_at(vec![address(2)], start + REMEMBERED);
        assert!(!known.any(|one| one == address(1)), "its time is over");
        assert!(known.any(|one| one == address(2)));
        assert_eq!(known.now(), [address(2)]);
        known.found_at(Vec::new(), start + REMEMBERED);
        assert!(known.any(|one| one == address(2)));
    }
}

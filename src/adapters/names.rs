//! Addresses of names: the hosts file, then the resolver, with a cache that
//! keeps what the answers allow.
//!
//! Names are absolute: `redis` is `redis.`, unless the search list is asked
//! for. Which of the addresses may be dialled is decided by `policy` and
//! `gate`; nothing is left out here but what is beyond [`MAX_ADDRESSES`].

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};
use quick_cache::sync::Cache;
use tokio::sync::{Semaphore, watch};

use crate::egress::DnsName;
use crate::gate::ports::{BoxFuture, Clock, Resolve, ResolveError};

/// The most addresses that a name has; the rest is not looked at. Each family
/// has a claim to half of them.
pub const MAX_ADDRESSES: usize = 32;

/// How names are looked up.
#[derive(Clone, Debug)]
pub struct ResolverSettings {
    /// The servers to ask, by UDP and where needed TCP; those of
    /// `/etc/resolv.conf` where there are none here.
    pub servers: Vec<SocketAddr>,
    /// Whether the search list of `/etc/resolv.conf` is honoured: before the
    /// name as it stands where it has no dot, after it otherwise.
    pub search: bool,
    /// How long a lookup may take in all.
    pub timeout: Duration,
    /// How long one family is waited for once the other has answered: some
    /// servers never answer for IPv6.
    pub second_family: Duration,
    /// The shortest and the longest that an answer is kept, whatever it says.
    pub ttl: (Duration, Duration),
    /// The same for the answer that there is none. Failures are kept for the
    /// shortest.
    pub negative_ttl: (Duration, Duration),
    /// How many names are kept.
    pub names: usize,
    /// The hosts file; asked before any server.
    pub hosts: Option<PathBuf>,
}

impl Default for ResolverSettings {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            search: false,
            timeout: Duration::from_secs(5),
            second_family: Duration::from_millis(300),
            ttl: (Duration::from_secs(1), Duration::from_secs(300)),
            negative_ttl: (Duration::from_secs(1), Duration::from_secs(30)),
            names: 10_000,
            hosts: Some("/etc/hosts".into()),
        }
    }
}

/// Why there is nobody to ask.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// `/etc/resolv.conf` is missing, cannot be read or names no server.
    #[error(
        "/etc/resolv.conf cannot be used ({0}); configure the DNS servers to ask, as address:port"
    )]
    System(NetError),
    /// What it says cannot be used.
    #[error("the resolver cannot be set up: {0}")]
    Setup(NetError),
}

/// Looks up names, and keeps the answers.
pub struct Resolver {
    inner: Arc<Inner>,
}

impl Resolver {
    /// Reads the system's configuration as far as the settings ask for it.
    ///
    /// # Errors
    /// [`ResolverError`].
    pub fn new(settings: ResolverSettings, clock: Arc<dyn Clock>) -> Result<Self, ResolverError> {
        let upstream = Upstream::new(&settings)?;
        Ok(Self {
            inner: Arc::new(Inner {
                upstream: ArcSwap::from_pointee(upstream),
                cache: Cache::new(settings.names.max(1)),
                pending: Mutex::default(),
                generation: AtomicU64::new(0),
                slots: Semaphore::new(MAX_LOOKUPS),
                settings,
                clock,
            }),
        })
    }

    /// Forgets all answers, also those on their way.
    pub fn flush(&self) {
        // The order matters: a lookup that ends now must see the new
        // generation, and one that begins must not join an old one.
        self.inner.generation.fetch_add(1, Ordering::SeqCst);
        self.inner.pending().clear();
        self.inner.cache.clear();
    }

    /// Reads the hosts file and the system's configuration again and forgets
    /// all answers.
    ///
    /// # Errors
    /// [`ResolverError`]; everything is then as it was.
    pub fn reload(&self) -> Result<(), ResolverError> {
        let upstream = Upstream::new(&self.inner.settings)?;
        self.inner.upstream.store(Arc::new(upstream));
        self.flush();
        Ok(())
    }
}

impl Resolve for Resolver {
    fn cached(&self, name: &DnsName) -> Option<Arc<[IpAddr]>> {
        self.inner.fresh(name)?.ok()
    }

    fn lookup<'a>(
        &'a self,
        name: &'a DnsName,
    ) -> BoxFuture<'a, Result<Arc<[IpAddr]>, ResolveError>> {
        Box::pin(async {
            if let Some(answer) = self.inner.fresh(name) {
                return answer;
            }
            let mut pending = match self.inner.join(name) {
                Joined::Answer(answer) => return answer,
                Joined::Pending(pending) => pending,
            };
            let answer = pending.wait_for(Option::is_some).await;
            match answer.as_deref() {
                Ok(Some(answer)) => answer.clone(),
                // The task that asked is gone, which a panic alone can do.
                Ok(None) | Err(_) => Err(ResolveError::Failed),
            }
        })
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver")
            .field("settings", &self.inner.settings)
            .field("names", &self.inner.cache.len())
            .finish_non_exhaustive()
    }
}

/// How many names are asked for at once; more wait, within their time.
const MAX_LOOKUPS: usize = 1024;

type Answer = Result<Arc<[IpAddr]>, ResolveError>;

struct Inner {
    upstream: ArcSwap<Upstream>,
    cache: Cache<DnsName, Kept>,
    /// The names that are being asked for, once each.
    pending: Mutex<HashMap<DnsName, Pending>>,
    /// Goes up with each flush. What was asked in an earlier one is not kept.
    generation: AtomicU64,
    slots: Semaphore,
    settings: ResolverSettings,
    clock: Arc<dyn Clock>,
}

#[derive(Clone)]
struct Kept {
    answer: Answer,
    /// By the monotonic clock.
    until: Duration,
}

struct Pending {
    generation: u64,
    answer: watch::Receiver<Option<Answer>>,
}

enum Joined {
    Answer(Answer),
    Pending(watch::Receiver<Option<Answer>>),
}

impl Inner {
    fn fresh(&self, name: &DnsName) -> Option<Answer> {
        let kept = self.cache.get(name)?;
        (self.clock.monotonic() < kept.until).then_some(kept.answer)
    }

    fn keep(&self, name: &DnsName, answer: &Answer, ttl: Duration) {
        let kept = Kept {
            answer: answer.clone(),
            until: self.clock.monotonic() + ttl,
        };
        self.cache.insert(name.clone(), kept);
    }

    /// Joins the lookup of this name, and begins it where there is none. It
    /// runs on its own, so that a client who leaves does not take it from the
    /// others.
    fn join(self: &Arc<Self>, name: &DnsName) -> Joined {
        let mut pending = self.pending();
        if let Some(pending) = pending.get(name) {
            return Joined::Pending(pending.answer.clone());
        }
        // It may have ended between the look at the cache and the lock.
        if let Some(answer) = self.fresh(name) {
            return Joined::Answer(answer);
        }
        let upstream = self.upstream.load_full();
        if let Some(addresses) = upstream.without_asking(name) {
            self.keep(name, &Ok(Arc::clone(&addresses)), self.settings.ttl.1);
            return Joined::Answer(Ok(addresses));
        }
        let generation = self.generation.load(Ordering::SeqCst);
        let (tell, answer) = watch::channel(None);
        pending.insert(
            name.clone(),
            Pending {
                generation,
                answer: answer.clone(),
            },
        );
        tokio::spawn(Arc::clone(self).resolve(upstream, name.clone(), generation, tell));
        Joined::Pending(answer)
    }

    async fn resolve(
        self: Arc<Self>,
        upstream: Arc<Upstream>,
        name: DnsName,
        generation: u64,
        tell: watch::Sender<Option<Answer>>,
    ) {
        // Also where the task is dropped in the middle: the next one asks anew.
        let _leave = Leave {
            inner: &self,
            name: &name,
            generation,
        };
        let asked = tokio::time::timeout(self.settings.timeout, async {
            // The semaphore is never closed.
            let _slot = self.slots.acquire().await;
            upstream.ask(&name, &self.settings).await
        });
        let (answer, ttl) = match asked.await {
            Ok(found) => self.judge(found),
            Err(_) => (Err(ResolveError::Timeout), self.settings.negative_ttl.0),
        };
        if generation == self.generation.load(Ordering::SeqCst) {
            self.keep(&name, &answer, ttl);
        }
        tell.send_replace(Some(answer));
    }

    /// The answer, and how long it is kept.
    fn judge(&self, found: Found) -> (Answer, Duration) {
        let ttl = Duration::from_secs(found.ttl.into());
        let (shortest, longest) = self.settings.negative_ttl;
        match found.answer {
            // Half of an answer is asked for again soon.
            Ok(addresses) if found.partial => (Ok(addresses), ttl.clamp(shortest, longest)),
            Ok(addresses) => {
                let (shortest, longest) = self.settings.ttl;
                (Ok(addresses), ttl.clamp(shortest, longest))
            }
            Err(error @ (ResolveError::NotFound | ResolveError::NoAddress)) => {
                (Err(error), ttl.clamp(shortest, longest))
            }
            Err(error @ (ResolveError::Timeout | ResolveError::Failed)) => (Err(error), shortest),
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<DnsName, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a lookup off the list of those that can be joined.
struct Leave<'a> {
    inner: &'a Inner,
    name: &'a DnsName,
    generation: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut pending = self.inner.pending();
        let ours = |pending: &Pending| pending.generation == self.generation;
        if pending.get(self.name).is_some_and(ours) {
            pending.remove(self.name);
        }
    }
}

/// Whom to ask.
struct Upstream {
    client: TokioResolver,
    search: Vec<Name>,
    hosts: HashMap<DnsName, Arc<[IpAddr]>>,
}

/// What asking has given.
struct Found {
    answer: Answer,
    /// In seconds, as the answer has it.
    ttl: u32,
    /// Whether one family failed.
    partial: bool,
}

impl Upstream {
    fn new(settings: &ResolverSettings) -> Result<Self, ResolverError> {
        let (mut config, mut options) = if settings.servers.is_empty() || settings.search {
            hickory_resolver::system_conf::read_system_conf().map_err(ResolverError::System)?
        } else {
            (
                ResolverConfig::from_name_servers(Vec::new()),
                ResolverOpts::default(),
            )
        };
        if !settings.servers.is_empty() {
            config.name_servers = settings.servers.iter().map(server).collect();
        }
        let search = std::mem::take(&mut config.search);
        config.domain = None;
        // Answers are kept by us, hosts are read by us, and time is kept by us.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.timeout = settings.timeout;
        options.attempts = 1;
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        Ok(Self {
            client: builder.build().map_err(ResolverError::Setup)?,
            search,
            hosts: settings.hosts.as_deref().map_or_else(HashMap::new, |path| {
                match std::fs::read(path) {
                    Ok(text) => hosts(&String::from_utf8_lossy(&text)),
                    // A container may do without.
                    Err(error) => {
                        tracing::debug!(%error, path = %path.display(), "no hosts file");
                        HashMap::new()
                    }
                }
            }),
        })
    }

    /// What needs no server: the hosts file, and `localhost`, which is never
    /// asked for (RFC 6761, section 6.3).
    fn without_asking(&self, name: &DnsName) -> Option<Arc<[IpAddr]>> {
        if let Some(addresses) = self.hosts.get(name) {
            return Some(Arc::clone(addresses));
        }
        name.is_localhost().then(|| {
            Arc::from([
                IpAddr::from(Ipv4Addr::LOCALHOST),
                IpAddr::from(Ipv6Addr::LOCALHOST),
            ])
        })
    }

    async fn ask(&self, name: &DnsName, settings: &ResolverSettings) -> Found {
        let Ok(itself) = Name::from_ascii(name.as_str()).map(absolute) else {
            return Found::error(ResolveError::Failed, 0);
        };
        let mut candidates = vec![itself];
        if settings.search {
            let relative = candidates[0].clone();
            let searched = self.search.iter().filter_map(|domain| {
                let mut name = relative.clone();
                name.set_fqdn(false);
                // One that would be too long is no candidate.
                name.append_domain(domain).ok().map(absolute)
            });
            // A name with a dot is first what it says, whatever `ndots` has:
            // policy judged that name, and not one in the search list.
            let at = usize::from(name.as_str().contains('.'));
            candidates.splice(at..at, searched.collect::<Vec<_>>());
        }
        let mut last = Found::error(ResolveError::NotFound, 0);
        for candidate in candidates {
            last = self.ask_both(candidate, settings.second_family).await;
            // Only a clear "no" leads on: a failure may hide the right answer.
            match last.answer {
                Err(ResolveError::NotFound | ResolveError::NoAddress) => {}
                _ => return last,
            }
        }
        last
    }

    /// Both families at once.
    async fn ask_both(&self, name: Name, patience: Duration) -> Found {
        let mut v4 = std::pin::pin!(self.client.lookup(name.clone(), RecordType::A));
        let mut v6 = std::pin::pin!(self.client.lookup(name, RecordType::AAAA));
        tokio::select! {
            v4 = &mut v4 => {
                let v4 = Half::new(v4);
                Half::join(&v4, &v4.other(v6, patience).await)
            }
            v6 = &mut v6 => {
                let v6 = Half::new(v6);
                Half::join(&v6.other(v4, patience).await, &v6)
            }
        }
    }
}

/// The answer for one family.
struct Half {
    answer: Result<Vec<IpAddr>, ResolveError>,
    ttl: u32,
}

impl Half {
    fn new(answer: Result<Lookup, NetError>) -> Self {
        match answer {
            Ok(lookup) => {
                let answers = lookup.answers();
                let addresses: Vec<IpAddr> = answers
                    .iter()
                    .filter_map(|record| record.data.ip_addr())
                    .collect();
                Self {
                    // The names on the way (CNAME) count as well.
                    ttl: answers.iter().map(|record| record.ttl).min().unwrap_or(0),
                    answer: if addresses.is_empty() {
                        Err(ResolveError::NoAddress)
                    } else {
                        Ok(addresses)
                    },
                }
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Self {
                answer: Err(if none.response_code == ResponseCode::NXDomain {
                    ResolveError::NotFound
                } else {
                    ResolveError::NoAddress
                }),
                ttl: none.negative_ttl.unwrap_or(0),
            },
            Err(NetError::Timeout) => Self::error(ResolveError::Timeout),
            Err(error) => {
                tracing::debug!(%error, "the resolver failed");
                Self::error(ResolveError::Failed)
            }
        }
    }

    fn error(error: ResolveError) -> Self {
        Self {
            answer: Err(error),
            ttl: 0,
        }
    }

    /// The other half: waited for only so long once this one has addresses.
    async fn other(
        &self,
        other: impl Future<Output = Result<Lookup, NetError>>,
        patience: Duration,
    ) -> Self {
        if self.answer.is_err() {
            return Self::new(other.await);
        }
        match tokio::time::timeout(patience, other).await {
            Ok(answer) => Self::new(answer),
            Err(_) => Self::error(ResolveError::Timeout),
        }
    }

    fn join(v4: &Self, v6: &Self) -> Found {
        let clear = |half: &Self| {
            !matches!(
                half.answer,
                Err(ResolveError::Timeout | ResolveError::Failed)
            )
        };
        match (&v4.answer, &v6.answer) {
            (Err(one), Err(other)) => Found::error(worse(*one, *other), v4.ttl.min(v6.ttl)),
            (one, other) => {
                let (v4s, v6s) = (
                    one.as_deref().unwrap_or_default(),
                    other.as_deref().unwrap_or_default(),
                );
                let ttl = match (one, other) {
                    (Ok(_), Ok(_)) => v4.ttl.min(v6.ttl),
                    (Ok(_), Err(_)) => v4.ttl,
                    (Err(_), _) => v6.ttl,
                };
                Found {
                    answer: Ok(select(v4s, v6s)),
                    ttl,
                    partial: !clear(v4) || !clear(v6),
                }
            }
        }
    }
}

impl Found {
    fn error(error: ResolveError, ttl: u32) -> Self {
        Self {
            answer: Err(error),
            ttl,
            partial: false,
        }
    }
}

/// Of two errors the one that says less: that a name is not there is believed
/// only where both halves say so.
fn worse(one: ResolveError, other: ResolveError) -> ResolveError {
    let rank = |error| match error {
        ResolveError::NotFound => 0,
        ResolveError::NoAddress => 1,
        ResolveError::Timeout => 2,
        ResolveError::Failed => 3,
    };
    std::cmp::max_by_key(one, other, |error| rank(*error))
}

/// At most [`MAX_ADDRESSES`], each once, half of them of either family where
/// both have that many.
fn select(v4: &[IpAddr], v6: &[IpAddr]) -> Arc<[IpAddr]> {
    let half = MAX_ADDRESSES / 2;
    let v4s = v4.len().min(MAX_ADDRESSES - v6.len().min(half));
    let mut selected: Vec<IpAddr> = Vec::with_capacity(MAX_ADDRESSES);
    for address in v4[..v4s].iter().chain(v6) {
        if selected.len() < MAX_ADDRESSES && !selected.contains(address) {
            selected.push(*address);
        }
    }
    selected.into()
}

fn absolute(mut name: Name) -> Name {
    name.set_fqdn(true);
    name
}

/// UDP first, TCP for what does not fit.
fn server(address: &SocketAddr) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = address.port();
    }
    NameServerConfig::new(address.ip(), true, connections)
}

/// The names of a hosts file (hosts(5)). Lines that cannot be read name
/// nothing, as everywhere.
fn hosts(text: &str) -> HashMap<DnsName, Arc<[IpAddr]>> {
    let mut found: HashMap<DnsName, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let mut words = line
            .split('#')
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else {
            continue;
        };
        for name in words.filter_map(|word| DnsName::parse(word).ok()) {
            let addresses = found.entry(name).or_default();
            if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    found
        .into_iter()
        .map(|(name, addresses)| (name, addresses.into()))
        .collect()
}

#[cfg(test)]
mod tests;

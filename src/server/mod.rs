//! Builds the gateway from its configuration, binds every listener before it
//! serves any, reloads, and drains.

mod acme;
mod certificates;
pub mod check;
mod documents;
mod first;
mod agent_keys;
mod parent;
mod peers;
pub mod load;
mod refusals;
mod reload;
mod revocation;
pub mod routes;
mod tokens;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustls::pki_types::pem::{PemObject, SectionKind};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::adapters::agent_keys::AgentKeyFile;
use crate::adapters::behind::AgentBehind;
use crate::adapters::clock::SystemClock;
use crate::adapters::figures::Figures;
use crate::adapters::host::{self, OwnAddresses};
use crate::adapters::issuers::Issuers;
use crate::adapters::names::{Resolver, ResolverSettings};
use crate::adapters::records::{
    self, AuditLog, AuditLogSettings, Durability, FileWriter, Rotation, StreamWriter,
};
use crate::adapters::redis::{Redis, RedisSettings};
use crate::adapters::refusals::RefusalAuthority;
use crate::adapters::revocations::Held;
use crate::adapters::shared_limits::{self, Asking};
use crate::adapters::trust;
use crate::adapters::watch::read_stable;
use crate::adapters::way_out::WayOut;
use crate::admin::guesses::Guesses;
use crate::admin::revocation::RevocationPages;
use crate::admin::{Admin, Readiness};
use crate::config::{
    self, AuditPath, BasicUser, Config, Endpoint, Fsync, Listener, Overflow, RequiredProof,
    Threads, ToldInside, Verdict,
};
use crate::gate::ports::{Clock, OffLimits, SharedLimits};
use crate::gate::{Gate, GateParts, OwnListeners, Proof, StormSettings};
use crate::identity::{CacheSettings, CachedVerifier, Principal, TokenVerifier, VerifierSettings};
use crate::limit::Ledger;
use crate::policy::{EchRule, SniRule, TlsRule, TlsUse};
use crate::proxy::{
    Accepting, AgentEndpoint, Bound, FrontedAgent, ListenAddress, NamedRoute, Parent, PerSource,
    Settings, Wire, bind,
};

use certificates::CertificateReloader;
use documents::Documents;
use first::FirstLookups;
use parent::ParentKeeper;
use peers::PeersKeeper;
use reload::{PolicyInForce, Reloader};
use revocation::{RevocationsInForce, Revoking};
use routes::RouteKeeper;

pub(crate) use revocation::store as revocation_store;

/// How many owners of each kind limits remember.
const LIMIT_KEYS: usize = 100_000;

/// How often the addresses of this machine are read.
const OWN_ADDRESSES: Duration = Duration::from_secs(10);

/// A gateway that is bound and does not serve yet.
pub struct Gateway {
    config: Arc<Config>,
    wire: Arc<Wire>,
    egress: Vec<Bound>,
    admin: Option<(crate::admin::BoundAdmin, Admin)>,
    log: Arc<AuditLog>,
    reloader: Reloader,
    issuers: Arc<Issuers>,
    certificates: Vec<CertificateReloader>,
    refusals: Option<(Arc<RefusalAuthority>, Arc<Figures>)>,
    acme: Option<acme::AcmeKeeper>,
    way: Arc<WayOut>,
    first: FirstLookups,
    peers: Option<PeersKeeper>,
    parent: Option<ParentKeeper>,
    routes: Option<RouteKeeper>,
    revoking: Option<Revoking>,
    agent_keys: Option<(AgentKeyFile, Arc<agent_keys::AgentKeysInForce>)>,
    readiness: Arc<Readiness>,
    stop: watch::Sender<bool>,
    asking: Option<Asking>,
    local: Arc<OwnAddresses>,
    behind: Option<(Arc<AgentBehind>, Arc<Resolver>)>,
}

/// Where a gateway listens, with the ports that the system chose.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// The egress listeners in clear.
    pub egress: Vec<SocketAddr>,
    /// The egress listeners that speak TLS.
    pub egress_tls: Vec<SocketAddr>,
    /// The listener on which agents call each other.
    pub peers: Option<SocketAddr>,
    /// The admin listener.
    pub admin: Option<SocketAddr>,
}

/// The threads a configuration asks for.
#[must_use]
pub fn threads(config: &Config) -> usize {
    match config.threads {
        Threads::Auto => host::processors().get(),
        Threads::Count(count) => count,
    }
}

impl Gateway {
    /// Loads everything and binds every listener. Nothing is served before
    /// [`Gateway::run`]; what cannot work is said here.
    ///
    /// # Errors
    /// With what is wrong, where, and what to write.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let figures = Arc::new(Figures::new(env!("CARGO_PKG_VERSION")));
        raise_open_files(&figures, &config);
        let system_clock = SystemClock::new();
        let clock: Arc<dyn Clock> = Arc::new(system_clock);
        // First only to be checked, so that every mistake is told at once.
        let mut mistakes = check::files(&config);
        let read = Documents::new(&config).and_then(|mut documents| {
            let loaded = documents.load()?;
            Ok((documents, loaded))
        });
        let (documents, loaded) = match read {
            Ok(read) if mistakes.is_empty() => read,
            read => {
                if let Err(error) = read {
                    mistakes.insert(0, format!("the policy is not valid: {error}"));
                }
                bail!("{}", mistakes.join("\n"));
            }
        };
        let policy = loaded.policy;
        let (listed, keys) = load::every_key(&config)?;
        let egress_tls = Arc::new(config.tls.clone());
        let (tls, tls_files) = certificates::of_egress(&config, &figures, &*clock)?.unzip();
        let refusals = refusals::open(&config, &figures, &clock)?;
        let between = peers::open(&config, &figures, &*clock)?;
        let routes = routes::read(&config)?;
        let parent = parent::open(&config)?;
        let acme = acme::AcmeKeeper::open(&config, tls.as_ref(), &figures, &clock).await?;
        let log = Arc::new(open_log(&config)?);
        figures.follow(Arc::clone(&log));

        let (stop, stopped) = watch::channel(false);
        let mut egress = Vec::new();
        for listener in &config.listen.egress {
            let address = match listener {
                Listener::Tcp(address) => ListenAddress::Tcp(*address),
                Listener::Unix(path) => {
                    ListenAddress::Unix(path.clone(), config.listen.unix_mode.bits())
                }
            };
            egress.push(bind(&address).await.map_err(anyhow::Error::msg)?);
        }
        for listener in &config.listen.egress_tls {
            let (Listener::Tcp(address), Some(tls)) = (listener, &tls) else {
                bail!("listen.egress_tls: {listener}: TLS is spoken on addresses alone");
            };
            let bound = bind(&ListenAddress::Tcp(*address))
                .await
                .map_err(anyhow::Error::msg)?;
            egress.push(bound.over_tls("egress_tls", Arc::clone(tls)));
        }
        let peers_listener = match &between {
            Some(between) => Some(between.bind().await?),
            None => None,
        };
        let admin_listener = match &config.listen.admin {
            Some(listener) => Some(
                crate::admin::bind(listener)
                    .await
                    .map_err(anyhow::Error::msg)?,
            ),
            None => None,
        };
        let local = Arc::new(OwnAddresses::default());
        local.read();
        let mut own = OwnListeners {
            sockets: egress.iter().filter_map(Bound::address).collect(),
            local: Arc::clone(&local) as _,
        };
        own.sockets
            .extend(peers_listener.as_ref().and_then(Bound::address));
        own.sockets.extend(
            admin_listener
                .as_ref()
                .and_then(crate::admin::BoundAdmin::address),
        );

        own.sockets
            .extend(acme.as_ref().and_then(acme::AcmeKeeper::address));
        figures.policy_loaded(policy.digest(), clock.wall());
        figures.tenants_are(policy.tenants());
        let in_force = Arc::new(PolicyInForce::new(policy));
        let verifier = TokenVerifier::new(
            keys.clone(),
            VerifierSettings {
                leeway: config.identity.leeway,
                max_token_bytes: usize::try_from(config.identity.max_token.bytes())
                    .unwrap_or(usize::MAX),
                max_actors: config.identity.max_delegation,
            },
        );
        let tokens = Arc::new(CachedVerifier::new(
            verifier,
            CacheSettings {
                lifetime: config.identity.cache.ttl,
                capacity: config.identity.cache.entries,
            },
        ));
        let names = Arc::new(resolver(&config, &clock)?);
        let redis = config.redis.as_ref().map(shared_redis);
        if let Some(redis) = &redis {
            figures.follow_redis(redis.clone());
        }
        let (ledger, shared_limits, asking) = limits(&config, redis.as_ref(), &clock);
        if let Some(shared) = ledger.shared() {
            figures.follow_limits(Arc::clone(shared));
        }
        let agent_keys = Arc::new(agent_keys::AgentKeysInForce::default());
        let agent_key_file = agent_keys::open(&config, &agent_keys)?;
        let carrier = parent.as_ref().map(|(parent, _)| Arc::clone(parent));
        let way = Arc::new(WayOut::new(Arc::clone(&names) as _, carrier));
        let issuers = Arc::new(Issuers::new(
            &listed,
            &config.identity.audience,
            keys,
            Arc::clone(&tokens),
            Arc::clone(&way),
            Arc::clone(&figures),
        ));
        let mut first = FirstLookups::default();
        if let Some(between) = &between {
            first.begin(between.put_in_force(&names));
            figures.follow_peers(between.peers(), system_clock);
        }
        let behind = match &config.agent.upstream {
            Some(Endpoint::Tcp(at)) => Some(Arc::new(AgentBehind::new(at.clone()))),
            Some(Endpoint::Unix(_)) | None => None,
        };
        if let Some(behind) = &behind {
            let (behind, names) = (Arc::clone(behind), Arc::clone(&names));
            first.begin(async move { behind.locate(&*names).await });
        }
        let mut off_limits: Vec<Arc<dyn OffLimits>> = Vec::new();
        off_limits.extend(between.as_ref().map(|between| between.peers() as _));
        off_limits.extend(behind.clone().map(|behind| behind as _));
        off_limits.extend(parent.as_ref().map(|(parent, _)| Arc::clone(parent) as _));
        if let Some((parent, _)) = &parent {
            let (parent, names) = (Arc::clone(parent), Arc::clone(&names));
            first.begin(async move { parent::look_up(&parent, &names).await });
        }
        let revocations = Arc::new(RevocationsInForce::new(&config.identity.issuer));
        let revocation_store = revocation::store(&config, redis.as_ref());
        let mut held = Held::default();
        if let Some(store) = &revocation_store {
            let now = revocation::unix_seconds(&*clock);
            held = revocation::open(store, redis.as_ref(), &revocations, &figures, now).await?;
        }
        let endpoint = tokens::endpoint(
            &config,
            admin_listener
                .as_ref()
                .and_then(crate::admin::BoundAdmin::address),
            &tokens,
            &revocations,
            &log,
            &figures,
            &clock,
        )?;
        let (read_now, asked) = mpsc::channel(16);
        let revocation_pages = RevocationPages {
            store: revocation_store.clone(),
            read_now,
            tokens: Arc::clone(&tokens),
            agent_keys: Arc::clone(&agent_keys) as _,
            revocations: Arc::clone(&revocations) as _,
            clock: Arc::clone(&clock),
            clients: endpoint.clone(),
            issuer: config.identity.issuer.clone(),
            secret_file: config.listen.admin_secret_file.clone(),
            guesses: Guesses::default(),
        };
        let parts = |between: Option<&peers::Between>| GateParts {
            policy: Arc::clone(&in_force) as _,
            tokens: Arc::clone(&tokens),
            agent_keys: Arc::clone(&agent_keys) as _,
            issuers: (!issuers.is_empty() || config.identity.issuers_file.is_some())
                .then(|| Arc::clone(&issuers) as _),
            proof: proof(match between {
                Some(_) => config.peers.require,
                None => config.identity.require,
            }),
            proof_on: match (between, config.tls.clients.require) {
                (None, Some(required)) => vec![("egress_tls", proof(required))],
                _ => Vec::new(),
            },
            certificates: match between {
                Some(between) => Some(between.tls() as _),
                None => tls.clone().map(|tls| tls as _),
            },
            revocations: Arc::clone(&revocations) as _,
            match_basic_user: config.identity.basic_user == BasicUser::Match,
            names: Arc::clone(&names) as _,
            sink: Arc::clone(&log) as _,
            observe: Arc::clone(&figures) as _,
            clock: Arc::clone(&clock),
            limits: config.limits.per_owner.clone(),
            ledger: Arc::clone(&ledger),
            shared_limits: shared_limits.clone(),
            own: own.clone(),
            off_limits: match between {
                Some(_) => Vec::new(),
                None => off_limits.clone(),
            },
            elsewhere: match between {
                Some(_) => None,
                None => parent.as_ref().map(|(parent, _)| Arc::clone(parent) as _),
            },
            bad_credential_status: config.auth_failure_status.code(),
            storms: StormSettings::default(),
        };
        let readiness = Arc::new(Readiness::default());
        let admin = Admin::new(
            Arc::clone(&figures),
            Arc::clone(&readiness),
            Arc::clone(&log),
            Arc::clone(&in_force) as _,
            Arc::clone(&tokens),
        )
        .with_redis(redis.clone())
        .with_tokens(endpoint)
        .with_router(revocation_pages.router())
        .with_issuers(Arc::clone(&issuers));
        let beside = between.as_ref().map(|between| {
            Arc::new(Wire::between(
                between.peers(),
                Gate::new(parts(Some(between))),
                Settings {
                    agent: None,
                    ..settings(&config, Vec::new(), None)
                },
                Arc::new(admin.clone()),
                host::random_bits,
                stopped.clone(),
            ))
        });
        let wire = Wire::new(
            Gate::new(parts(None)),
            settings(
                &config,
                routes.routes()?,
                parent.as_ref().map(|(parent, _)| Arc::clone(parent)),
            ),
            Arc::new(admin.clone()),
            host::random_bits,
            stopped,
        );
        let wire = match &refusals {
            Some(authority) => {
                let all = config.refusals.inside == ToldInside::All;
                wire.telling_inside(Arc::clone(authority) as Arc<_>, all)
            }
            None => wire,
        };
        let wire = Arc::new(wire.beside(beside.clone()));
        if let Some((parent, _)) = &parent {
            parent::check(parent, wire.gate())?;
        }
        // Without a file there is nothing to keep up with.
        let has_files =
            config.routes_file.is_some() || config.routes.iter().any(|route| route.ca.is_some());
        let routes = has_files.then(|| RouteKeeper {
            config: Arc::clone(&config),
            in_force: routes,
            wire: Arc::clone(&wire),
            readiness: Arc::clone(&readiness),
        });
        let parent = parent.map(|(parent, written)| ParentKeeper {
            parent,
            written,
            names: Arc::clone(&names),
        });
        let mut certificates = Vec::new();
        if let Some(tls) = tls {
            let readiness = Arc::clone(&readiness);
            certificates.push(CertificateReloader {
                written: egress_tls,
                tls,
                in_force: tls_files.unwrap_or_default(),
                wire: Arc::clone(&wire),
                figures: Arc::clone(&figures),
                tell: Box::new(move |outcome| readiness.certificates_are(outcome)),
                clock: Arc::clone(&clock),
            });
        }
        let peers = match (between, peers_listener, beside) {
            (Some(between), Some(listener), Some(beside)) => {
                let readiness = Arc::clone(&readiness);
                certificates.push(CertificateReloader {
                    written: between.written(),
                    tls: between.tls(),
                    in_force: between.files(),
                    wire: Arc::clone(&wire),
                    figures: Arc::clone(&figures),
                    tell: Box::new(move |outcome| readiness.peers_certificates_are(outcome)),
                    clock: Arc::clone(&clock),
                });
                let seen_by = (&figures, &clock);
                let keeper = PeersKeeper::new(between, listener, beside, &wire, &names, seen_by);
                Some(keeper)
            }
            _ => None,
        };
        let revoking = revocation_store.map(|store| Revoking {
            store,
            held,
            clock: Arc::clone(&clock),
            in_force: revocations,
            tokens: Arc::clone(&tokens),
            wire: Arc::clone(&wire),
            figures: Arc::clone(&figures),
            readiness: Arc::clone(&readiness),
            asked,
        });
        let reloader = Reloader::new(
            Arc::clone(&config),
            documents,
            in_force,
            tokens,
            (Arc::clone(&issuers), listed),
            Arc::clone(&wire),
            Arc::clone(&figures),
            Arc::clone(&readiness),
            clock,
            Arc::clone(&names),
        )
        .with_tokens(admin.tokens().cloned());
        reloader.refused(loaded.refused);
        first.wait().await;
        Ok(Self {
            config,
            wire,
            egress,
            admin: admin_listener.map(|listener| (listener, admin)),
            log,
            reloader,
            issuers,
            certificates,
            refusals: refusals.map(|authority| (authority, figures)),
            acme,
            way,
            first,
            peers,
            parent,
            routes,
            revoking,
            agent_keys: agent_key_file.map(|file| (file, agent_keys)),
            readiness,
            stop,
            asking,
            local,
            behind: behind.map(|behind| (behind, names)),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        let addresses = |tls: bool| {
            let of = self.egress.iter().filter(|bound| bound.is_tls() == tls);
            of.filter_map(Bound::address).collect()
        };
        Addresses {
            egress: addresses(false),
            egress_tls: addresses(true),
            peers: self.peers.as_ref().and_then(PeersKeeper::address),
            admin: self
                .admin
                .as_ref()
                .and_then(|(listener, _)| listener.address()),
        }
    }

    /// Serves until `until` comes back, then drains: no new connection is
    /// taken, requests and tunnels get `timeouts.drain` to end, and every
    /// record is written.
    ///
    /// # Errors
    /// Where a file could not be watched, or records could not be written.
    pub async fn run(self, until: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self {
            config,
            wire,
            egress,
            admin,
            log,
            reloader,
            issuers,
            certificates,
            refusals,
            acme,
            way,
            first,
            peers,
            parent,
            routes,
            revoking,
            agent_keys,
            readiness,
            stop,
            asking,
            local,
            behind,
        } = self;
        let pid_file = write_pid_file(config.pid_file.as_deref())?;
        let policy = reloader.in_force();
        let reloading = tokio::spawn(reloader.run(Arc::clone(&log))?);
        let mut background = JoinSet::new();
        if let Some((file, in_force)) = agent_keys {
            let (wire, readiness) = (Arc::clone(&wire), Arc::clone(&readiness));
            background.spawn(agent_keys::keep(file, in_force, wire, readiness)?);
        }
        if let Some(revoking) = revoking {
            background.spawn(revoking.run()?);
        }
        if let Some((listener, admin)) = admin {
            if let Some(endpoint) = admin.tokens() {
                background.spawn(tokens::run(Arc::clone(&config), Arc::clone(endpoint))?);
            }
            background.spawn(admin.serve(listener));
        }
        if let Some(routes) = routes {
            background.spawn(routes.run()?);
        }
        if let Some(parent) = parent {
            background.spawn(parent.run(Arc::clone(&readiness))?);
        }
        background.spawn(first.finish(Arc::clone(&wire)));
        background.spawn(write_repeated(Arc::clone(&wire)));
        background.spawn(end_overdue(Arc::clone(&wire)));
        background.spawn(keep_own_addresses(local, Arc::clone(&wire)));
        if let Some((behind, names)) = behind {
            background.spawn(async move { behind.watch_over(&*names).await });
        }
        if let Some(asking) = asking {
            background.spawn(asking.run());
        }
        let judging = Arc::clone(&wire);
        background.spawn(issuers.run(move || {
            judging.judge_again();
        }));
        if let Some(acme) = acme {
            background.spawn(acme.run(way, Arc::clone(&readiness))?);
        }
        for certificates in certificates {
            background.spawn(certificates.run()?);
        }
        if let Some((authority, figures)) = refusals {
            background.spawn(refusals::keep(authority, figures, Arc::clone(&readiness))?);
        }
        let connections = config.limits.connections;
        let mut room = Vec::new();
        let mut accepting = JoinSet::new();
        // A source is counted on all ways out together, and as a peer apart.
        let per_source = || {
            let most = config.limits.connections_per_source;
            most.map(|most| Arc::new(PerSource::new(most)))
        };
        let way_out = per_source();
        let mut listeners: Vec<_> = egress
            .into_iter()
            .map(|bound| (bound, Arc::clone(&wire), way_out.clone()))
            .collect();
        if let Some(peers) = peers {
            let beside = Arc::clone(peers.beside());
            let (bound, keeping) = peers.run(Arc::clone(&readiness))?;
            background.spawn(keeping);
            listeners.push((bound, beside, per_source()));
        }
        for (bound, wire, per_source) in listeners {
            let slots = Arc::new(Semaphore::new(connections));
            room.push(Arc::clone(&slots));
            let accept = Accepting::new(wire, slots, per_source, stop.subscribe())
                .behind(config.listen.proxy_protocol.clone());
            accepting.spawn(accept.run(bound));
        }
        if let Some(warning) = check::no_rules(config.mode, &policy) {
            tracing::warn!("{warning}");
        }
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            threads = threads(&config),
            policy = %policy.digest(),
            rules = policy.rule_count(),
            mode = config.mode.as_str(),
            "serving"
        );
        drop(policy);
        until.await;

        tracing::info!(drain = ?config.timeouts.drain, tunnels = wire.tunnels().len(), "draining");
        readiness.drains();
        let _ = stop.send(true);
        while accepting.join_next().await.is_some() {}
        wire.stop_idle().await;
        let all_gone = async {
            for slots in &room {
                let every = u32::try_from(connections).unwrap_or(u32::MAX);
                let _ = slots.acquire_many(every).await;
            }
        };
        tokio::pin!(all_gone);
        if tokio::time::timeout(config.timeouts.drain, &mut all_gone)
            .await
            .is_err()
        {
            tracing::warn!(
                tunnels = wire.tunnels().len(),
                "the time to drain is over; what is open is cut"
            );
            wire.cut();
            // What was cut still writes its records.
            let _ = tokio::time::timeout(Duration::from_secs(1), &mut all_gone).await;
        }
        reloading.abort();
        background.shutdown().await;
        wire.write_repeated(true);
        drop(pid_file);
        let closed = tokio::task::spawn_blocking(move || log.close(Duration::from_secs(10))).await;
        closed
            .context("the audit log's thread failed")?
            .context("the audit log could not be finished")?;
        tracing::info!("stopped");
        Ok(())
    }
}

fn proof(required: RequiredProof) -> Proof {
    match required {
        RequiredProof::Token => Proof::Token,
        RequiredProof::Certificate => Proof::Certificate,
        RequiredProof::Either => Proof::Either,
        RequiredProof::Both => Proof::Both,
    }
}

/// Writes the counts of refusals that were held back.
async fn write_repeated(wire: Arc<Wire>) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        wire.write_repeated(false);
    }
}

/// Ends what has lost its credential to time. One look at all of them each
/// second costs less than a timer for each.
async fn end_overdue(wire: Arc<Wire>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match wire.end_overdue() {
            0 => {}
            ended => tracing::info!(ended, "what was open has outlived its credential"),
        }
    }
}

/// Reads the addresses of this machine again and again. A tunnel may lead to
/// what is one of them from now on.
async fn keep_own_addresses(local: Arc<OwnAddresses>, wire: Arc<Wire>) {
    loop {
        tokio::time::sleep(OWN_ADDRESSES).await;
        let reading = Arc::clone(&local);
        if tokio::task::spawn_blocking(move || reading.read())
            .await
            .unwrap_or(false)
        {
            let ended_tunnels = wire.judge_again();
            tracing::info!(ended_tunnels, "this machine has other addresses");
        }
    }
}

fn raise_open_files(figures: &Figures, config: &Config) {
    match host::raise_open_file_limit() {
        Ok(limit) => {
            figures.open_file_limit(limit.after);
            tracing::info!(before = limit.before, after = limit.after, "open files");
            // A tunnel takes two descriptors.
            let wanted = (config.limits.connections + config.limits.tunnels) as u64;
            if limit.after < wanted {
                tracing::warn!(
                    limit = limit.after,
                    wanted,
                    "the limit of open files is below limits.connections + limits.tunnels: raise it with `ulimit -n`, LimitNOFILE= or --ulimit nofile"
                );
            }
        }
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

/// Pingora would panic over a bundle in which there is anything but certificates
/// that it can use.
fn check_bundle(config: &Config) -> anyhow::Result<()> {
    let Some(bundle) = &config.upstream_ca else {
        return Ok(());
    };
    trust::in_file(bundle)
        .map_err(anyhow::Error::msg)
        .context("upstream_ca")?;
    let pem = read_stable(bundle).context("upstream_ca")?;
    let mut sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(&pem);
    if sections.any(|section| !matches!(section, Ok((SectionKind::Certificate, _)))) {
        bail!(
            "upstream_ca: {}: there is more in it than certificates: write those alone",
            bundle.display()
        );
    }
    Ok(())
}

fn open_log(config: &Config) -> anyhow::Result<AuditLog> {
    let audit = &config.audit;
    let rotation = audit.max_bytes.map(|size| Rotation {
        max_bytes: size.bytes(),
        keep: u32::try_from(audit.keep).unwrap_or(u32::MAX),
    });
    let destination: Box<dyn records::RecordWriter> = match &audit.path {
        AuditPath::Stdout => Box::new(StreamWriter::stdout()?),
        AuditPath::File(path) => Box::new(FileWriter::open(path, rotation).context("audit.path")?),
    };
    let settings = AuditLogSettings {
        capacity: audit.queue,
        overflow: match audit.overflow {
            Overflow::Block => records::Overflow::Block,
            Overflow::Deny => records::Overflow::Deny,
        },
        durability: match audit.fsync {
            Fsync::None => Durability::None,
            Fsync::Batch => Durability::Batch,
            Fsync::Interval => Durability::Interval(Duration::from_secs(1)),
        },
    };
    AuditLog::start(settings, destination).context("the audit log cannot be started")
}

/// The accounts of limits, and, where replicas share them, where to wait for
/// Redis and the task that asks it.
fn limits(
    config: &Config,
    redis: Option<&Redis>,
    clock: &Arc<dyn Clock>,
) -> (Arc<Ledger>, Option<Arc<dyn SharedLimits>>, Option<Asking>) {
    let ledger = Ledger::new(LIMIT_KEYS);
    match redis.filter(|_| config.limits.shared) {
        None => (Arc::new(ledger), None, None),
        Some(redis) => {
            let (shared, asking, answers) = shared_limits::shared_limits(
                redis.clone(),
                Arc::clone(clock),
                LIMIT_KEYS,
                config.limits.replicas,
            );
            let ledger = Arc::new(ledger.sharing(shared));
            (ledger, Some(Arc::new(answers)), Some(asking))
        }
    }
}

pub(crate) fn shared_redis(written: &config::Redis) -> Redis {
    Redis::start(RedisSettings {
        url: written.url.clone(),
        password: written.password.clone(),
        password_file: written.password_file.clone(),
        ca: written.ca.clone(),
        connect_timeout: written.connect_timeout,
        response_timeout: written.response_timeout,
        prefix: written.prefix.clone(),
    })
}

fn resolver(config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<Resolver> {
    let written = &config.resolver;
    let settings = ResolverSettings {
        servers: written.servers.clone(),
        search: written.search,
        timeout: written.timeout,
        ttl: (written.cache.min_ttl, written.cache.max_ttl),
        negative_ttl: (
            Duration::from_secs(1).min(written.cache.negative_ttl),
            written.cache.negative_ttl,
        ),
        names: written.cache.entries,
        ..ResolverSettings::default()
    };
    Resolver::new(settings, Arc::clone(clock)).context("the resolver cannot be set up")
}

fn settings(config: &Config, routes: Vec<NamedRoute>, parent: Option<Arc<Parent>>) -> Settings {
    let bytes = |size: config::ByteSize| usize::try_from(size.bytes()).unwrap_or(usize::MAX);
    let allow = |verdict: Verdict| verdict == Verdict::Allow;
    Settings {
        header_timeout: config.timeouts.header,
        keepalive_timeout: config.timeouts.keepalive,
        handshake_timeout: config.timeouts.handshake,
        body_timeout: config.timeouts.body,
        connect_timeout: config.timeouts.connect,
        response_timeout: config.timeouts.response,
        upstream_idle: config.timeouts.upstream_idle,
        tunnel_idle: config.timeouts.tunnel_idle,
        websocket_idle: config.timeouts.websocket_idle,
        client_hello_timeout: config.timeouts.client_hello,
        header_bytes: bytes(config.limits.header_bytes),
        target_bytes: bytes(config.limits.target_bytes),
        rpc_body_bytes: bytes(config.limits.rpc_body_bytes),
        body_bytes: config.limits.body_bytes.map(config::ByteSize::bytes),
        in_flight: config.limits.in_flight,
        tunnels: config.limits.tunnels,
        upstream_pool: config.limits.upstream_pool,
        upstream_ca: config
            .upstream_ca
            .as_ref()
            .map(|path| path.display().to_string()),
        threads: threads(config),
        peers: config
            .listen
            .peer_credentials
            .iter()
            .map(|peer| {
                let who = Principal::of_peer(peer.uid, peer.agent.clone(), peer.tenant.clone());
                (peer.uid, Arc::new(who))
            })
            .collect(),
        agent: config.agent.upstream.as_ref().map(|upstream| FrontedAgent {
            name: config.agent.name.clone(),
            endpoint: match upstream {
                Endpoint::Tcp(authority) => AgentEndpoint::Tcp(authority.clone()),
                Endpoint::Unix(path) => AgentEndpoint::Unix(path.display().to_string()),
            },
        }),
        routes,
        parent,
        every_tunnel: TlsRule {
            tls: if allow(config.tunnel.opaque) {
                TlsUse::Any
            } else {
                TlsUse::Strict
            },
            sni: if allow(config.tunnel.other_sni) {
                SniRule::Any
            } else if allow(config.tunnel.no_sni) {
                SniRule::Optional
            } else {
                SniRule::Match
            },
            ech: if allow(config.tunnel.ech) {
                EchRule::Allow
            } else {
                EchRule::Refuse
            },
        },
        ipv4_first: config.resolver.prefer == config::Family::V4,
        plain_in_tunnels: config.tunnel.plain == config::Plain::Judge,
        tunnels_outlive_tokens: config.tunnel.outlive_token,
    }
}

/// The file with this process's number, which goes when the gateway does.
struct PidFile(PathBuf);

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn write_pid_file(path: Option<&Path>) -> anyhow::Result<Option<PidFile>> {
    let Some(path) = path else {
        return Ok(None);
    };
    std::fs::write(path, format!("{}\n", std::process::id()))
        .with_context(|| format!("pid_file: {}", path.display()))?;
    Ok(Some(PidFile(path.to_owned())))
}

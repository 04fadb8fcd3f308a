//! The figures: what is counted and measured, and under which names. The
//! counting and the OpenMetrics text are `prometheus-client`'s.
//!
//! Labels take their values from bounded sets only: codes of the program, names
//! of listeners and certificates from the configuration, a hundred of its routes,
//! and a hundred tenants that have a policy. Agents, hosts and paths stand in records, never here. Who may read the figures is `admin`'s
//! business.

mod exemplar;
mod routes;
mod state;
mod tenants;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::audit::{AuditEvent, AuditRecord};
use crate::egress::TenantId;
use crate::gate::ports::{Observation, Observe};
use crate::limit::Shared;
use crate::proxy::Peers;

use super::clock::SystemClock;
use super::records::AuditLog;
use super::redis::Redis;
use exemplar::Exemplar;
use routes::Routes;
use state::State;
use tenants::Tenants;

/// The media type of [`Figures::encode`].
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All figures of the process.
#[derive(Debug)]
pub struct Figures {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    decisions: Family<DecisionLabels, Counter>,
    /// The member of `decisions` that nearly all requests want.
    allowed: Counter,
    decision_seconds: Traced,
    jwt_validation_seconds: Family<TokenLabels, Traced>,
    jwt_cache_hits: Counter,
    jwt_cache_misses: Counter,
    active_connections: Family<ListenerLabel, Gauge>,
    handshakes: Family<HandshakeLabels, Counter>,
    active_tunnels: Gauge,
    requests_in_flight: Gauge,
    throttled: Family<LimitLabel, Counter>,
    dns_seconds: Family<OutcomeLabel, Histogram>,
    upstream_connect_seconds: Family<OutcomeLabel, Histogram>,
    request_duration_seconds: Traced,
    tunnel_duration_seconds: Traced,
    bytes_up: Counter,
    bytes_down: Counter,
    policy_loads: Counter,
    policy_refusals: Counter,
    tokens: Family<IssuedLabels, Counter>,
    accounts_reloads: Family<OutcomeLabel, Counter>,
    certificate_expiry: Family<CertificateLabel, Gauge>,
    issuer_refreshes: Family<IssuerLabels, Counter>,
    issuer_keys: Family<IssuerLabel, Gauge>,
    revocations_restored: Counter,
    key_loads: Counter,
    key_refusals: Counter,
    certificate_loads: Counter,
    certificate_refusals: Counter,
    acme_issued: Counter,
    acme_failed: Counter,
    tenants: Tenants,
    routes: Routes,
    state: Arc<State>,
}

/// A histogram whose buckets name the last trace that fell into them.
type Traced = HistogramWithExemplars<Exemplar>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    decision: &'static str,
    reason: &'static str,
    listener: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    decision: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    outcome: &'static str,
    algorithm: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IssuedLabels {
    grant: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabel {
    listener: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IssuerLabel {
    issuer: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IssuerLabels {
    issuer: Arc<str>,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandshakeLabels {
    listener: Arc<str>,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabel {
    certificate: Arc<str>,
}

/// Seconds: judgement, which takes microseconds.
const DECISIONS: &[f64] = &[
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 5e-2,
];
/// Seconds: signatures, from a fast curve to a large RSA key.
const SIGNATURES: &[f64] = &[
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 1e-1,
];
/// Seconds: one exchange over a network.
const NETWORK: &[f64] = &[
    5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Seconds: a request from its head to its last byte.
const REQUESTS: &[f64] = &[
    1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0, 300.0,
];
/// Seconds: a tunnel from its opening to its end.
const TUNNELS: &[f64] = &[
    0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 14_400.0, 86_400.0,
];

impl Figures {
    /// All at zero. `version` is that of the program.
    #[must_use]
    pub fn new(version: &str) -> Self {
        let mut to = Registry::default();
        let requests = counted(
            &mut to,
            "agentport_requests",
            "Requests and tunnels, by what was decided and why",
            Family::default(),
        );
        let decisions = counted(
            &mut to,
            "agentport_decisions",
            "Decisions of the gate",
            Family::<DecisionLabels, Counter>::default(),
        );
        let decision_seconds = seconds(
            &mut to,
            "agentport_decision",
            "Time to decide, without waiting for names",
            traced(DECISIONS),
        );
        let jwt_validation_seconds = seconds(
            &mut to,
            "agentport_jwt_validation",
            "Time to check a token that was not cached, by outcome and the algorithm of its key",
            Family::new_with_constructor((|| traced(SIGNATURES)) as fn() -> Traced),
        );
        let jwt_cache = counted(
            &mut to,
            "agentport_jwt_cache",
            "Tokens found in the cache of verified ones, or not",
            Family::<ResultLabel, Counter>::default(),
        );
        let active_connections = counted(
            &mut to,
            "agentport_active_connections",
            "Open connections of clients",
            Family::default(),
        );
        let handshakes = counted(
            &mut to,
            "agentport_tls_handshakes",
            "TLS handshakes with clients: full, resumed, or why there was none",
            Family::default(),
        );
        let active_tunnels = counted(
            &mut to,
            "agentport_active_tunnels",
            "Open tunnels",
            Gauge::default(),
        );
        let requests_in_flight = counted(
            &mut to,
            "agentport_requests_in_flight",
            "Requests that have begun and not ended",
            Gauge::default(),
        );
        let throttled = counted(
            &mut to,
            "agentport_throttled",
            "Refusals by a used-up limit",
            Family::default(),
        );
        let dns_seconds = seconds(
            &mut to,
            "agentport_dns",
            "Time to look up a name that was not cached",
            Family::new_with_constructor(network as fn() -> Histogram),
        );
        let upstream_connect_seconds = seconds(
            &mut to,
            "agentport_upstream_connect",
            "Time to connect to a destination",
            Family::new_with_constructor(network as fn() -> Histogram),
        );
        let request_duration_seconds = seconds(
            &mut to,
            "agentport_request_duration",
            "Time from a request's head to its end",
            traced(REQUESTS),
        );
        let tunnel_duration_seconds = seconds(
            &mut to,
            "agentport_tunnel_duration",
            "Time from a tunnel's request to its end",
            traced(TUNNELS),
        );
        let bytes = Family::<DirectionLabel, Counter>::default();
        to.register_with_unit(
            "agentport",
            "Bytes to destinations (up) and from them (down), of ended requests and tunnels",
            Unit::Bytes,
            bytes.clone(),
        );
        let policy_reloads = counted(
            &mut to,
            "agentport_policy_reloads",
            "Attempts to load a policy; a refused one changes nothing",
            Family::<OutcomeLabel, Counter>::default(),
        );
        let tokens = counted(
            &mut to,
            "agentport_tokens",
            "Requests to the token endpoint, by grant and what came of them, and clients refused at introspection and revocation",
            Family::<IssuedLabels, Counter>::default(),
        );
        let accounts_reloads = counted(
            &mut to,
            "agentport_service_accounts_reloads",
            "Readings of the file of service accounts; a refused one changes nothing",
            Family::<OutcomeLabel, Counter>::default(),
        );
        let key_reloads = counted(
            &mut to,
            "agentport_key_reloads",
            "Readings of keys and of the file of issuers; a refused one changes nothing",
            Family::<OutcomeLabel, Counter>::default(),
        );
        let keys = |outcome| key_reloads.get_or_create_owned(&OutcomeLabel { outcome });
        let issuer_refreshes = counted(
            &mut to,
            "agentport_issuer_refreshes",
            "Attempts to fetch the keys of another issuer",
            Family::default(),
        );
        let revocations_restored = counted(
            &mut to,
            "agentport_revocations_restored",
            "Times that Redis had lost revocations and was given them again",
            Counter::default(),
        );
        let issuer_keys = seconds(
            &mut to,
            "agentport_issuer_keys_timestamp",
            "When another issuer gave the keys that are in force",
            Family::default(),
        );
        let certificate_reloads = counted(
            &mut to,
            "agentport_certificate_reloads",
            "Attempts to load certificates; refused ones change nothing",
            Family::<OutcomeLabel, Counter>::default(),
        );
        let acme_orders = counted(
            &mut to,
            "agentport_acme_orders",
            "Orders of a certificate by ACME",
            Family::<OutcomeLabel, Counter>::default(),
        );
        let certificate_expiry = seconds(
            &mut to,
            "agentport_certificate_expiry_timestamp",
            "When a certificate in use expires",
            Family::default(),
        );
        to.register(
            "agentport_build",
            "The program",
            Info::new([("version", version.to_owned())]),
        );
        let tenants = Tenants::enter(&mut to);
        let routes = Routes::enter(&mut to);
        let state = Arc::new(State::new());
        to.register_collector(Box::new(Arc::clone(&state)));

        // Known values stand at zero from the start, so that a first failure
        // is seen as a rise, and are found from here without a search.
        let (decision, reason) = ("allow", "ok");
        let result = |result| jwt_cache.get_or_create_owned(&ResultLabel { result });
        let direction = |direction| bytes.get_or_create_owned(&DirectionLabel { direction });
        let outcome = |outcome| policy_reloads.get_or_create_owned(&OutcomeLabel { outcome });
        let certificates =
            |outcome| certificate_reloads.get_or_create_owned(&OutcomeLabel { outcome });
        Self {
            allowed: decisions.get_or_create_owned(&DecisionLabels { decision, reason }),
            jwt_cache_hits: result("hit"),
            jwt_cache_misses: result("miss"),
            bytes_up: direction("up"),
            bytes_down: direction("down"),
            policy_loads: outcome("loaded"),
            policy_refusals: outcome("refused"),
            tokens,
            accounts_reloads,
            certificate_loads: certificates("loaded"),
            certificate_refusals: certificates("refused"),
            acme_issued: acme_orders.get_or_create_owned(&OutcomeLabel { outcome: "issued" }),
            acme_failed: acme_orders.get_or_create_owned(&OutcomeLabel { outcome: "failed" }),
            registry: to,
            requests,
            decisions,
            decision_seconds,
            jwt_validation_seconds,
            active_connections,
            handshakes,
            active_tunnels,
            requests_in_flight,
            throttled,
            dns_seconds,
            upstream_connect_seconds,
            request_duration_seconds,
            tunnel_duration_seconds,
            certificate_expiry,
            tenants,
            routes,
            issuer_refreshes,
            issuer_keys,
            revocations_restored,
            key_loads: keys("loaded"),
            key_refusals: keys("refused"),
            state,
        }
    }

    /// A policy has come into force.
    pub fn policy_loaded(&self, version: &str, at: SystemTime) {
        self.state.policy(version, at);
        self.policy_loads.inc();
    }

    /// A policy was refused, and the old one stays.
    pub fn policy_refused(&self) {
        self.policy_refusals.inc();
    }

    /// The token endpoint has answered. Both are codes of the program.
    pub fn token(&self, grant: &'static str, outcome: &'static str) {
        self.tokens
            .get_or_create(&IssuedLabels { grant, outcome })
            .inc();
    }

    /// The file of service accounts was read again.
    pub fn accounts_read(&self, loaded: bool) {
        let outcome = if loaded { "loaded" } else { "refused" };
        self.accounts_reloads
            .get_or_create(&OutcomeLabel { outcome })
            .inc();
    }

    /// Certificates have come into force.
    pub fn certificates_loaded(&self) {
        self.certificate_loads.inc();
    }

    /// Certificates were refused, and the old ones stay.
    pub fn certificates_refused(&self) {
        self.certificate_refusals.inc();
    }

    /// A certificate was ordered by ACME, and came or did not.
    pub fn acme_order(&self, issued: bool) {
        let of = if issued {
            &self.acme_issued
        } else {
            &self.acme_failed
        };
        of.inc();
    }

    /// The keys have been read again; what was refused changes nothing.
    pub fn keys_read(&self, loaded: bool) {
        let counter = match loaded {
            true => &self.key_loads,
            false => &self.key_refusals,
        };
        counter.inc();
    }

    /// Nobody is to know any more when this issuer answered.
    pub fn issuer_gone(&self, issuer: &str) {
        let issuer = issuer.into();
        self.issuer_keys.remove(&IssuerLabel { issuer });
    }

    /// Redis has lost revocations and was given them again.
    pub fn revocations_restored(&self) {
        self.revocations_restored.inc();
    }

    /// So many revocations have been read; `None` where they cannot be.
    pub fn revocations_are(&self, count: Option<usize>) {
        self.state.revocations(count);
    }

    /// These tenants have documents in force.
    pub fn tenants_are<'a>(&self, tenants: impl Iterator<Item = &'a TenantId>) {
        self.tenants.have_documents(tenants);
    }

    /// The documents that are refused now, each with its tenant.
    pub fn policy_documents_refused<'a>(
        &self,
        documents: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    ) {
        self.state.documents_refused(documents);
    }

    /// An issuer has given its keys.
    pub fn issuer_answered(&self, issuer: &str, at: SystemTime) {
        self.issuer_asked(issuer, "ok");
        let issuer = issuer.into();
        let of_issuer = self.issuer_keys.get_or_create(&IssuerLabel { issuer });
        of_issuer.set(unix(at));
    }

    /// An issuer has not given its keys.
    pub fn issuer_failed(&self, issuer: &str) {
        self.issuer_asked(issuer, "failed");
    }

    fn issuer_asked(&self, issuer: &str, outcome: &'static str) {
        let issuer = issuer.into();
        let labels = IssuerLabels { issuer, outcome };
        self.issuer_refreshes.get_or_create(&labels).inc();
    }

    /// A certificate is in use until then. The name is the configuration's.
    pub fn certificate_expires(&self, name: &str, at: SystemTime) {
        let certificate = name.into();
        self.certificate_expiry
            .get_or_create(&CertificateLabel { certificate })
            .set(unix(at));
    }

    /// How many descriptors the process may open.
    pub fn open_file_limit(&self, limit: u64) {
        self.state.open_file_limit(limit);
    }

    /// Has the audit log's state read whenever the figures are. The first log
    /// stays.
    pub fn follow(&self, log: Arc<AuditLog>) {
        self.state.follow(log);
    }

    /// Has the state of the connection to Redis read whenever the figures are.
    pub fn follow_redis(&self, redis: Redis) {
        self.state.redis(redis);
    }

    /// Has the state of callable agents read whenever the figures are, by the
    /// clock of the gate.
    pub fn follow_peers(&self, peers: Arc<Peers>, clock: SystemClock) {
        self.state.peers(peers, clock);
    }

    /// Has the state of shared limits read whenever the figures are.
    pub fn follow_limits(&self, shared: Arc<Shared>) {
        self.state.shared_limits(shared);
    }

    /// All figures in OpenMetrics text, of the media type [`OPENMETRICS`].
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        // Writing to a string does not fail; and a text cut short would lack
        // its last line, without which no reader takes it.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    fn finished(&self, record: &AuditRecord) {
        let (decision, reason) = verdict(record.action_allowed, record.reason, record.would_deny);
        let took = match record.event {
            // It was counted when it was opened.
            AuditEvent::TunnelClosed => Some(&self.tunnel_duration_seconds),
            // Tokens have figures of their own.
            AuditEvent::TokenIssued | AuditEvent::TokenRefused => return,
            AuditEvent::Request
            | AuditEvent::Tunnel
            | AuditEvent::Repeated
            | AuditEvent::Delegation => {
                let listener = Arc::clone(&record.listener);
                self.requests
                    .get_or_create(&RequestLabels {
                        decision,
                        reason,
                        listener,
                    })
                    .inc_by(record.count);
                matches!(record.event, AuditEvent::Request | AuditEvent::Delegation)
                    .then_some(&self.request_duration_seconds)
            }
        };
        self.tenants.finished(record, decision);
        if let Some(route) = &record.route {
            self.routes.finished(route, decision, record.count);
        }
        if let Some(seconds) = took {
            let exemplar = record
                .trace_id
                .as_deref()
                .and_then(|trace_id| Exemplar::new(trace_id, record.skill.as_deref()));
            let at = record.ts.checked_add(record.duration_ms);
            seconds.observe(record.duration_ms.as_secs_f64(), exemplar, at);
            self.bytes_up.inc_by(record.bytes_up);
            self.bytes_down.inc_by(record.bytes_down);
        }
    }

    fn decided(&self, (decision, reason): (&'static str, &'static str)) {
        if (decision, reason) == ("allow", "ok") {
            self.allowed.inc();
        } else {
            self.decisions
                .get_or_create(&DecisionLabels { decision, reason })
                .inc();
        }
    }
}

impl Observe for Figures {
    fn observe(&self, event: Observation<'_>) {
        match event {
            Observation::Connection { listener, change } => {
                let listener = listener.into();
                self.active_connections
                    .get_or_create(&ListenerLabel { listener })
                    .inc_by(change);
            }
            Observation::Handshake { listener, outcome } => {
                let listener = listener.into();
                self.handshakes
                    .get_or_create(&HandshakeLabels { listener, outcome })
                    .inc();
            }
            Observation::Tunnel { change } => {
                self.active_tunnels.inc_by(change);
            }
            Observation::InFlight { change } => {
                self.requests_in_flight.inc_by(change);
            }
            Observation::Token { cached: true, .. } => {
                self.jwt_cache_hits.inc();
            }
            Observation::Token {
                outcome,
                algorithm,
                took,
                cached: false,
                trace_id,
            } => {
                self.jwt_cache_misses.inc();
                let seconds = self
                    .jwt_validation_seconds
                    .get_or_create(&TokenLabels { outcome, algorithm });
                observe_now(&seconds, took, trace_id);
            }
            Observation::AgentKey {
                outcome,
                took,
                trace_id,
            } => {
                let algorithm = "agent_key";
                let seconds = self
                    .jwt_validation_seconds
                    .get_or_create(&TokenLabels { outcome, algorithm });
                observe_now(&seconds, took, trace_id);
            }
            Observation::Decision {
                allowed,
                reason,
                would_deny,
                took,
                trace_id,
            } => {
                self.decided(verdict(allowed, reason, would_deny));
                observe_now(&self.decision_seconds, took, trace_id);
            }
            Observation::Throttled { limit } => {
                self.throttled.get_or_create(&LimitLabel { limit }).inc();
            }
            Observation::Resolved { outcome, took } => {
                self.dns_seconds
                    .get_or_create(&OutcomeLabel { outcome })
                    .observe(took.as_secs_f64());
            }
            Observation::Dialled { outcome, took } => {
                self.upstream_connect_seconds
                    .get_or_create(&OutcomeLabel { outcome })
                    .observe(took.as_secs_f64());
            }
            Observation::Finished { record } => self.finished(record),
        }
    }
}

/// What was decided and why, as labels. In audit mode a request that would
/// have been refused is neither allowed nor denied.
fn verdict(
    allowed: bool,
    reason: &'static str,
    would_deny: Option<&'static str>,
) -> (&'static str, &'static str) {
    match would_deny {
        Some(reason) if allowed => ("would_deny", reason),
        _ if allowed => ("allow", reason),
        _ => ("deny", reason),
    }
}

/// Without a trace no exemplar, and the time is not asked for.
fn observe_now(seconds: &Traced, took: Duration, trace_id: Option<&str>) {
    let exemplar = trace_id.and_then(|trace_id| Exemplar::new(trace_id, None));
    let at = exemplar.as_ref().map(|_| SystemTime::now());
    seconds.observe(took.as_secs_f64(), exemplar, at);
}

fn traced(bounds: &'static [f64]) -> Traced {
    Traced::new(bounds.iter().copied())
}

fn network() -> Histogram {
    Histogram::new(NETWORK.iter().copied())
}

/// Enters a figure. The registry ends the help with a full stop.
fn counted<M: Metric + Clone>(to: &mut Registry, name: &str, help: &str, metric: M) -> M {
    to.register(name, help, metric.clone());
    metric
}

/// Enters a figure in seconds. The registry adds `_seconds` to the name.
fn seconds<M: Metric + Clone>(to: &mut Registry, name: &str, help: &str, metric: M) -> M {
    to.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

fn unix(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap_or(Duration::ZERO).as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;

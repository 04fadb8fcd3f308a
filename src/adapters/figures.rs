//! The figures: what is counted and measured, under which names, and their
//! OpenMetrics text.
//!
//! Labels take their values from bounded sets only: codes of the program, names
//! of listeners and certificates from the configuration. Agents, hosts and
//! paths stand in records, never here. Who may read the figures is `admin`'s
//! business.

mod metric;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use crate::audit::{AuditEvent, AuditRecord};
use crate::gate::ports::{Observation, Observe};

use super::records::AuditLog;
use metric::{Counter, Exemplar, Family, Gauge, Histogram, Info};

/// The media type of [`Figures::encode`].
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All figures of the process.
#[derive(Debug)]
pub struct Figures {
    requests: Family<3, Counter>,
    decisions: Family<2, Counter>,
    decision_seconds: Family<0, Histogram>,
    jwt_validation_seconds: Family<1, Histogram>,
    jwt_cache: Family<1, Counter>,
    active_connections: Family<1, Gauge>,
    active_tunnels: Family<0, Gauge>,
    requests_in_flight: Family<0, Gauge>,
    throttled: Family<1, Counter>,
    dns_seconds: Family<1, Histogram>,
    upstream_connect_seconds: Family<1, Histogram>,
    request_duration_seconds: Family<0, Histogram>,
    tunnel_duration_seconds: Family<0, Histogram>,
    bytes: Family<1, Counter>,
    policy: Family<1, Info>,
    policy_last_reload: Family<0, Gauge>,
    policy_reloads: Family<1, Counter>,
    certificate_expiry: Family<1, Gauge>,
    audit_queue_depth: Family<0, Gauge>,
    audit_records: Family<0, Counter>,
    audit_failing: Family<0, Gauge>,
    open_file_limit: Family<0, Gauge>,
    build: Family<1, Info>,
    process_open_fds: Family<0, Gauge>,
    process_resident_memory: Family<0, Gauge>,
    process_start_time: Family<0, Gauge>,
    audit_log: OnceLock<Arc<AuditLog>>,
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
        let figures = Self {
            requests: Family::new(
                "agentport_requests",
                "Requests and tunnels, by what was decided and why.",
                ["decision", "reason", "listener"],
            ),
            decisions: Family::new(
                "agentport_decisions",
                "Decisions of the gate.",
                ["decision", "reason"],
            ),
            decision_seconds: Family::histogram(
                "agentport_decision_seconds",
                "Time to decide, without waiting for names.",
                [],
                DECISIONS,
            ),
            jwt_validation_seconds: Family::histogram(
                "agentport_jwt_validation_seconds",
                "Time to check a token that was not cached.",
                ["outcome"],
                SIGNATURES,
            ),
            jwt_cache: Family::new(
                "agentport_jwt_cache",
                "Tokens found in the cache of verified ones, or not.",
                ["result"],
            ),
            active_connections: Family::new(
                "agentport_active_connections",
                "Open connections of clients.",
                ["listener"],
            ),
            active_tunnels: Family::new("agentport_active_tunnels", "Open tunnels.", []),
            requests_in_flight: Family::new(
                "agentport_requests_in_flight",
                "Requests that have begun and not ended.",
                [],
            ),
            throttled: Family::new(
                "agentport_throttled",
                "Refusals by a used-up limit.",
                ["limit"],
            ),
            dns_seconds: Family::histogram(
                "agentport_dns_seconds",
                "Time to look up a name that was not cached.",
                ["outcome"],
                NETWORK,
            ),
            upstream_connect_seconds: Family::histogram(
                "agentport_upstream_connect_seconds",
                "Time to connect to a destination.",
                ["outcome"],
                NETWORK,
            ),
            request_duration_seconds: Family::histogram(
                "agentport_request_duration_seconds",
                "Time from a request's head to its end.",
                [],
                REQUESTS,
            ),
            tunnel_duration_seconds: Family::histogram(
                "agentport_tunnel_duration_seconds",
                "Time from a tunnel's request to its end.",
                [],
                TUNNELS,
            ),
            bytes: Family::new(
                "agentport_bytes",
                "Bytes to destinations (up) and from them (down), of ended requests and tunnels.",
                ["direction"],
            ),
            policy: Family::new(
                "agentport_policy",
                "The digest of the policy in force.",
                ["version"],
            ),
            policy_last_reload: Family::new(
                "agentport_policy_last_reload_timestamp_seconds",
                "When the policy in force was loaded.",
                [],
            ),
            policy_reloads: Family::new(
                "agentport_policy_reloads",
                "Attempts to load a policy; a refused one changes nothing.",
                ["outcome"],
            ),
            certificate_expiry: Family::new(
                "agentport_certificate_expiry_timestamp_seconds",
                "When a certificate in use expires.",
                ["certificate"],
            ),
            audit_queue_depth: Family::new(
                "agentport_audit_queue_depth",
                "Audit records taken and not yet written.",
                [],
            ),
            audit_records: Family::new("agentport_audit_records", "Audit records written.", []),
            audit_failing: Family::new(
                "agentport_audit_failing",
                "1 while audit records cannot be written.",
                [],
            ),
            open_file_limit: Family::new(
                "agentport_open_file_limit",
                "How many descriptors the process may open.",
                [],
            ),
            build: Family::new("agentport_build", "The program.", ["version"]),
            process_open_fds: Family::new("process_open_fds", "Open descriptors.", []),
            process_resident_memory: Family::new(
                "process_resident_memory_bytes",
                "Memory held by the process.",
                [],
            ),
            process_start_time: Family::new(
                "process_start_time_seconds",
                "When the process started.",
                [],
            ),
            audit_log: OnceLock::new(),
        };
        figures.build.only([version]);
        figures
            .process_start_time
            .at([])
            .set(unix(SystemTime::now()));
        // Known outcomes stand at zero from the start, so that a first failure
        // is seen as a rise.
        for outcome in ["loaded", "refused"] {
            figures.policy_reloads.at([outcome]);
        }
        for direction in ["up", "down"] {
            figures.bytes.at([direction]);
        }
        for result in ["hit", "miss"] {
            figures.jwt_cache.at([result]);
        }
        figures.active_tunnels.at([]);
        figures.requests_in_flight.at([]);
        figures
    }

    /// A policy has come into force.
    pub fn policy_loaded(&self, version: &str, at: SystemTime) {
        self.policy.only([version]);
        self.policy_last_reload.at([]).set(unix(at));
        self.policy_reloads.at(["loaded"]).add(1);
    }

    /// A policy was refused, and the old one stays.
    pub fn policy_refused(&self) {
        self.policy_reloads.at(["refused"]).add(1);
    }

    /// A certificate is in use until then. The name is the configuration's.
    pub fn certificate_expires(&self, name: &str, at: SystemTime) {
        self.certificate_expiry.at([name]).set(unix(at));
    }

    /// How many descriptors the process may open.
    pub fn open_file_limit(&self, limit: u64) {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.open_file_limit.at([]).set(limit);
    }

    /// Has the audit log's state read whenever the figures are. The first log
    /// stays.
    pub fn follow(&self, log: Arc<AuditLog>) {
        // A second one is a mistake of the assembly that changes nothing.
        let _ = self.audit_log.set(log);
    }

    /// All figures in OpenMetrics text, of the media type [`OPENMETRICS`].
    #[must_use]
    pub fn encode(&self) -> String {
        self.refresh();
        // Whole, so that a figure that is not written does not compile.
        let Self {
            requests,
            decisions,
            decision_seconds,
            jwt_validation_seconds,
            jwt_cache,
            active_connections,
            active_tunnels,
            requests_in_flight,
            throttled,
            dns_seconds,
            upstream_connect_seconds,
            request_duration_seconds,
            tunnel_duration_seconds,
            bytes,
            policy,
            policy_last_reload,
            policy_reloads,
            certificate_expiry,
            audit_queue_depth,
            audit_records,
            audit_failing,
            open_file_limit,
            build,
            process_open_fds,
            process_resident_memory,
            process_start_time,
            audit_log: _,
        } = self;
        let mut out = String::with_capacity(16 * 1024);
        requests.write(&mut out);
        decisions.write(&mut out);
        decision_seconds.write(&mut out);
        jwt_validation_seconds.write(&mut out);
        jwt_cache.write(&mut out);
        active_connections.write(&mut out);
        active_tunnels.write(&mut out);
        requests_in_flight.write(&mut out);
        throttled.write(&mut out);
        dns_seconds.write(&mut out);
        upstream_connect_seconds.write(&mut out);
        request_duration_seconds.write(&mut out);
        tunnel_duration_seconds.write(&mut out);
        bytes.write(&mut out);
        policy.write(&mut out);
        policy_last_reload.write(&mut out);
        policy_reloads.write(&mut out);
        certificate_expiry.write(&mut out);
        audit_queue_depth.write(&mut out);
        audit_records.write(&mut out);
        audit_failing.write(&mut out);
        open_file_limit.write(&mut out);
        build.write(&mut out);
        process_open_fds.write(&mut out);
        process_resident_memory.write(&mut out);
        process_start_time.write(&mut out);
        out.push_str("# EOF\n");
        out
    }

    /// Reads what is not observed but is there to be read.
    fn refresh(&self) {
        if let Some(log) = self.audit_log.get() {
            let state = log.state();
            let depth = i64::try_from(state.depth).unwrap_or(i64::MAX);
            self.audit_queue_depth.at([]).set(depth);
            self.audit_records.at([]).set(state.written);
            self.audit_failing.at([]).set(i64::from(state.failing));
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            let open = i64::try_from(open.count()).unwrap_or(i64::MAX);
            self.process_open_fds.at([]).set(open);
        }
        if let Some(bytes) = resident_bytes() {
            self.process_resident_memory.at([]).set(bytes);
        }
    }

    fn finished(&self, record: &AuditRecord) {
        let (decision, reason) = match record.would_deny {
            Some(reason) if record.action_allowed => ("would_deny", reason),
            _ => (allow_or_deny(record.action_allowed), record.reason),
        };
        let took = match record.event {
            // It was counted when it was opened.
            AuditEvent::TunnelClosed => Some(&self.tunnel_duration_seconds),
            AuditEvent::Request | AuditEvent::Tunnel | AuditEvent::Repeated => {
                self.requests
                    .on([decision, reason, &record.listener], |requests| {
                        requests.add(record.count);
                    });
                (record.event == AuditEvent::Request).then_some(&self.request_duration_seconds)
            }
        };
        if let Some(family) = took {
            let exemplar = record.trace_id.as_deref().and_then(|trace_id| {
                let at = record.ts.checked_add(record.duration_ms)?;
                Exemplar::new(trace_id, record.skill.as_deref(), record.duration_ms, at)
            });
            family.on([], |seconds| seconds.observe(record.duration_ms, exemplar));
            self.bytes.on(["up"], |bytes| bytes.add(record.bytes_up));
            self.bytes
                .on(["down"], |bytes| bytes.add(record.bytes_down));
        }
    }
}

impl Observe for Figures {
    fn observe(&self, event: Observation<'_>) {
        match event {
            Observation::Connection { listener, change } => {
                self.active_connections
                    .on([listener], |open| open.add(change));
            }
            Observation::Tunnel { change } => {
                self.active_tunnels.on([], |open| open.add(change));
            }
            Observation::InFlight { change } => {
                self.requests_in_flight.on([], |open| open.add(change));
            }
            Observation::Token {
                outcome,
                took,
                cached,
                trace_id,
            } => {
                let result = if cached { "hit" } else { "miss" };
                self.jwt_cache.on([result], |tokens| tokens.add(1));
                if !cached {
                    let exemplar = trace_id
                        .and_then(|trace| Exemplar::new(trace, None, took, SystemTime::now()));
                    self.jwt_validation_seconds
                        .on([outcome], |seconds| seconds.observe(took, exemplar));
                }
            }
            Observation::Decision {
                allowed,
                reason,
                would_deny,
                took,
            } => {
                let (decision, reason) = match would_deny {
                    Some(reason) if allowed => ("would_deny", reason),
                    _ => (allow_or_deny(allowed), reason),
                };
                self.decisions
                    .on([decision, reason], |decisions| decisions.add(1));
                self.decision_seconds
                    .on([], |seconds| seconds.observe(took, None));
            }
            Observation::Throttled { limit } => {
                self.throttled.on([limit], |refusals| refusals.add(1));
            }
            Observation::Resolved { outcome, took } => {
                self.dns_seconds
                    .on([outcome], |seconds| seconds.observe(took, None));
            }
            Observation::Dialled { outcome, took } => {
                self.upstream_connect_seconds
                    .on([outcome], |seconds| seconds.observe(took, None));
            }
            Observation::Finished { record } => self.finished(record),
        }
    }
}

fn allow_or_deny(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}

fn unix(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap_or(Duration::ZERO).as_secs()).unwrap_or(i64::MAX)
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests;

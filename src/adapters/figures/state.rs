//! What nobody observes but is there to be read: the policy in force, the audit
//! log, the process. Read whenever the figures are.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Unit;

use crate::gate::ports::Clock as _;
use crate::proxy::Peers;

use super::super::clock::SystemClock;
use super::super::records::AuditLog;
use super::super::redis::Redis;
use super::unix;
use crate::limit::Shared;

/// The most documents that are named in the figures.
const MOST_NAMED: usize = 100;

/// The documents that are refused: how many, and the first of them by name,
/// each with its tenant.
#[derive(Debug, Default)]
struct Refused {
    count: usize,
    named: Vec<(String, String)>,
}

/// What there is to be read. What is not known yet is not written.
#[derive(Debug)]
pub(super) struct State {
    started: SystemTime,
    policy: Mutex<Option<(Box<str>, SystemTime)>>,
    documents_refused: Mutex<Refused>,
    audit_log: OnceLock<Arc<AuditLog>>,
    redis: OnceLock<Redis>,
    shared_limits: OnceLock<Arc<Shared>>,
    open_file_limit: Mutex<Option<u64>>,
    /// The agents that can be called, and the clock by which they are well.
    peers: OnceLock<(Arc<Peers>, SystemClock)>,
    /// How many, and whether they cannot be read any more.
    revocations: Mutex<Option<(usize, bool)>>,
}

impl State {
    /// Of a process that starts now.
    pub(super) fn new() -> Self {
        Self {
            started: SystemTime::now(),
            policy: Mutex::default(),
            documents_refused: Mutex::default(),
            audit_log: OnceLock::new(),
            redis: OnceLock::new(),
            shared_limits: OnceLock::new(),
            open_file_limit: Mutex::default(),
            peers: OnceLock::new(),
            revocations: Mutex::default(),
        }
    }

    pub(super) fn policy(&self, version: &str, at: SystemTime) {
        *lock(&self.policy) = Some((version.into(), at));
    }

    /// The last count stays while they cannot be read.
    pub(super) fn revocations(&self, count: Option<usize>) {
        let mut known = lock(&self.revocations);
        *known = Some(match (count, *known) {
            (Some(count), _) => (count, false),
            (None, Some((count, _))) => (count, true),
            (None, None) => (0, true),
        });
    }

    pub(super) fn documents_refused<'a>(
        &self,
        documents: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    ) {
        let mut refused = Refused::default();
        for (document, tenant) in documents {
            refused.count += 1;
            if refused.named.len() < MOST_NAMED {
                let tenant = tenant.unwrap_or_default().to_owned();
                refused.named.push((document.to_owned(), tenant));
            }
        }
        *lock(&self.documents_refused) = refused;
    }

    pub(super) fn open_file_limit(&self, limit: u64) {
        *lock(&self.open_file_limit) = Some(limit);
    }

    /// The first log stays.
    pub(super) fn follow(&self, log: Arc<AuditLog>) {
        // A second one is a mistake of the assembly that changes nothing.
        let _ = self.audit_log.set(log);
    }

    /// The first connection stays.
    pub(super) fn redis(&self, redis: Redis) {
        let _ = self.redis.set(redis);
    }

    /// The first accounts stay.
    pub(super) fn shared_limits(&self, shared: Arc<Shared>) {
        let _ = self.shared_limits.set(shared);
    }
}

impl State {
    /// The first ones stay.
    pub(super) fn peers(&self, peers: Arc<Peers>, clock: SystemClock) {
        let _ = self.peers.set((peers, clock));
    }
}

impl Collector for State {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut out = Out(encoder);
        if let Some((version, at)) = lock(&self.policy).clone() {
            out.write(
                "agentport_policy",
                "The digest of the policy in force.",
                None,
                &Info::new([("version", String::from(version))]),
            )?;
            out.write(
                "agentport_policy_last_reload_timestamp",
                "When the policy in force was loaded.",
                Some(&Unit::Seconds),
                &ConstGauge::new(unix(at)),
            )?;
        }
        {
            let refused = lock(&self.documents_refused);
            out.write(
                "agentport_policy_documents_refused",
                "Policy documents that are not in force as they are written.",
                None,
                &ConstGauge::new(refused.count),
            )?;
            let mut family = out.0.encode_descriptor(
                "agentport_policy_document_refused",
                "1 for each of the first hundred of them.",
                None,
                MetricType::Gauge,
            )?;
            for (document, tenant) in &refused.named {
                let labels = [("document", document.as_str()), ("tenant", tenant.as_str())];
                let one = ConstGauge::new(1_u32);
                one.encode(family.encode_family(&labels)?)?;
            }
        }
        if let Some(log) = self.audit_log.get() {
            let state = log.state();
            out.write(
                "agentport_audit_queue_depth",
                "Audit records taken and not yet written.",
                None,
                &ConstGauge::new(state.depth),
            )?;
            out.write(
                "agentport_audit_records",
                "Audit records written.",
                None,
                &ConstCounter::new(state.written),
            )?;
            out.write(
                "agentport_audit_failing",
                "1 while audit records cannot be written.",
                None,
                &ConstGauge::new(u32::from(state.failing)),
            )?;
        }
        if let Some((count, failing)) = *lock(&self.revocations) {
            out.write(
                "agentport_revocations",
                "Revocations in force.",
                None,
                &ConstGauge::new(count),
            )?;
            out.write(
                "agentport_revocations_failing",
                "1 while revocations cannot be read and the last known ones stay in force.",
                None,
                &ConstGauge::new(u32::from(failing)),
            )?;
        }
        if let Some(redis) = self.redis.get() {
            let state = redis.state();
            out.write(
                "agentport_redis_connected",
                "1 while there is a connection to the Redis that replicas share.",
                None,
                &ConstGauge::new(u32::from(state.connected)),
            )?;
            out.write(
                "agentport_redis_failures",
                "Times that the connection to Redis was lost or could not be made.",
                None,
                &ConstCounter::new(state.failures),
            )?;
        }
        if let Some(shared) = self.shared_limits.get() {
            out.write(
                "agentport_limits_replicas",
                "Replicas that share limits, as far as this one has seen.",
                None,
                &ConstGauge::new(shared.replicas()),
            )?;
            out.write(
                "agentport_limits_shared",
                "1 while limits are counted together with the other replicas.",
                None,
                &ConstGauge::new(u32::from(shared.is_connected())),
            )?;
        }
        if let Some((peers, clock)) = self.peers.get() {
            let mut family = out.0.encode_descriptor(
                "agentport_peer_endpoints",
                "Endpoints of the first hundred callable agents.",
                None,
                MetricType::Gauge,
            )?;
            for (agent, well, passed_over) in peers.standing(clock.monotonic(), MOST_NAMED) {
                for (state, count) in [("available", well), ("passed_over", passed_over)] {
                    let labels = [("agent", agent.as_str()), ("state", state)];
                    let count = ConstGauge::new(count);
                    count.encode(family.encode_family(&labels)?)?;
                }
            }
        }
        if let Some(limit) = *lock(&self.open_file_limit) {
            out.write(
                "agentport_open_file_limit",
                "How many descriptors the process may open.",
                None,
                &ConstGauge::new(limit),
            )?;
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            out.write(
                "process_open_fds",
                "Open descriptors.",
                None,
                &ConstGauge::new(open.count()),
            )?;
        }
        if let Some(bytes) = resident_bytes() {
            out.write(
                "process_resident_memory",
                "Memory held by the process.",
                Some(&Unit::Bytes),
                &ConstGauge::new(bytes),
            )?;
        }
        out.write(
            "process_start_time",
            "When the process started.",
            Some(&Unit::Seconds),
            &ConstGauge::new(unix(self.started)),
        )
    }
}

struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    /// A figure of this name, to which its unit is added.
    fn write(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        metric: &impl EncodeMetric,
    ) -> Result<(), fmt::Error> {
        let encoder = self
            .0
            .encode_descriptor(name, help, unit, metric.metric_type())?;
        metric.encode(encoder)
    }
}

/// What is behind the lock is whole at any time, also after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

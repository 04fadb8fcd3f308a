//! The trail of one request: open from the moment it is read, written exactly
//! once, when it is finished or when it is dropped.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::audit::{AuditEvent, AuditRecord};
use crate::egress::{AgentId, Ask, EgressRequest, RequestId};
use crate::identity::Principal;
use crate::policy::{Mode, Permit};

use super::denial::{Cause, Denial, TunnelEnd};
use super::ports::{AuditSink, Clock, Observation, Observe};
use super::quota::Trial;
use super::storm::Storms;

/// The machine's side of a trail, shared by all.
pub(super) struct TrailPorts {
    pub(super) sink: Arc<dyn AuditSink>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observe: Arc<dyn Observe>,
    pub(super) storms: Storms,
}

/// What is known of a request when its head has been read.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The listener that took the connection.
    pub listener: Arc<str>,
    /// Who connected; nobody by address on a Unix socket.
    pub client: Option<SocketAddr>,
    /// The request's number.
    pub request_id: RequestId,
}

/// The trail of one request.
pub struct AuditTrail {
    record: Option<AuditRecord>,
    started: Duration,
    inside_tunnel: bool,
    /// Whether the destination may have got something of it.
    under_way: bool,
    /// Where a budget of bytes is on trial: whether it would have cut this.
    trial: Option<Arc<Trial>>,
    ports: Arc<TrailPorts>,
}

impl AuditTrail {
    pub(super) fn open(ports: &Arc<TrailPorts>, opening: Opening) -> Self {
        ports.observe.observe(Observation::InFlight { change: 1 });
        Self {
            started: ports.clock.monotonic(),
            inside_tunnel: false,
            under_way: false,
            trial: None,
            record: Some(AuditRecord {
                client: opening.client,
                ..AuditRecord::begun(ports.clock.wall(), opening.request_id, opening.listener)
            }),
            ports: Arc::clone(ports),
        }
    }

    fn edit(&mut self, change: impl FnOnce(&mut AuditRecord)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }

    /// The listener that took the connection.
    pub(super) fn listener(&self) -> &str {
        self.record.as_ref().map_or("", |record| &record.listener)
    }

    /// The address that the request came from.
    pub(super) fn source(&self) -> Option<IpAddr> {
        let client = self.record.as_ref()?.client?;
        Some(client.ip())
    }

    /// The request came inside a tunnel that was admitted.
    pub(super) fn inside_tunnel(&mut self) {
        self.inside_tunnel = true;
    }

    pub(super) fn is_inside_tunnel(&self) -> bool {
        self.inside_tunnel
    }

    /// A budget of bytes is on trial, and this will tell whether it would have
    /// cut what follows.
    pub(super) fn on_trial(&mut self, trial: Arc<Trial>) {
        self.trial = Some(trial);
    }

    /// The request's number.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        self.record
            .as_ref()
            .map_or(RequestId::from_bits(0), |record| record.request_id)
    }

    /// The trace that the request belongs to.
    #[must_use]
    pub fn trace_id(&self) -> Option<&str> {
        self.record
            .as_ref()
            .and_then(|record| record.trace_id.as_deref())
    }

    /// What the request is, as far as its first line tells; also for requests
    /// that are refused before anything else is known.
    pub fn method(&mut self, method: &str) {
        self.edit(|record| record.method = method.into());
    }

    /// The trace, and what the agent says it is doing.
    pub fn labels(&mut self, trace_id: Option<&str>, skill: Option<&str>) {
        self.edit(|record| {
            record.trace_id = trace_id.map(Into::into);
            record.skill = skill.map(Into::into);
        });
    }

    /// Where to, and what for.
    pub fn asks(&mut self, request: &EgressRequest) {
        self.edit(|record| {
            record.method = request.method().into();
            record.destination_host = Some(request.authority.host.to_string().into());
            record.destination_port = Some(request.authority.port);
            match &request.ask {
                Ask::Tunnel => {
                    record.event = AuditEvent::Tunnel;
                    record.scheme = Some("tunnel");
                }
                Ask::Request { scheme, path, .. } => {
                    record.scheme = Some(scheme.as_str());
                    record.path = Some(path.as_str().into());
                }
            }
        });
    }

    /// What the body calls. A record of hundreds of names helps nobody.
    pub(super) fn calls(&mut self, methods: &[String]) {
        const FEW: usize = 32;
        if (1..=FEW).contains(&methods.len()) {
            self.edit(|record| record.rpc_methods = Some(methods.into()));
        }
    }

    /// Who, once the credential has held.
    pub fn principal(&mut self, who: &Principal) {
        self.edit(|record| {
            record.agent_id = Some(who.agent().clone());
            record.tenant = who.tenant().cloned();
            record.token_jti = who.jti().cloned();
            record.credential = Some(who.credentials());
            record.act = who.act().cloned();
            record.service_account = who.client().cloned();
        });
    }

    /// Whom its token is for: by that its tenant's document was chosen.
    pub(super) fn audiences(&mut self, who: &Principal) {
        self.edit(|record| record.audience = who.audiences().cloned());
    }

    /// It is a call from one agent to another.
    pub fn delegates(&mut self) {
        self.edit(|record| record.event = AuditEvent::Delegation);
    }

    /// For whom the agent calls another one.
    pub(super) fn on_behalf_of(&mut self, who: &Principal) {
        self.edit(|record| {
            record.on_behalf_of = Some(who.agent().clone());
            record.on_behalf_of_tenant = who.tenant().cloned();
            record.act = who.act().cloned();
            record.token_jti = who.jti().cloned();
        });
    }

    /// Who it claims to be, where the signature held and something else did not.
    pub(super) fn known(&mut self, agent: Option<AgentId>, jti: Option<Arc<str>>) {
        self.edit(|record| {
            record.agent_id = agent;
            record.token_jti = jti;
        });
    }

    pub(super) fn validated(&mut self, took: Duration) {
        self.edit(|record| record.jwt_validation_us = u64::try_from(took.as_micros()).ok());
    }

    pub(super) fn policy(&mut self, version: &Arc<str>) {
        self.edit(|record| record.policy_version = Some(Arc::clone(version)));
    }

    pub(super) fn permitted(&mut self, permit: &Permit) {
        self.edit(|record| {
            record.action_allowed = true;
            record.rule = permit.rule().cloned();
            record.mode = Some(permit.mode());
            let denied = permit.audited_denial();
            record.would_deny = denied
                .map(|denied| denied.reason().as_str())
                .or(record.would_deny);
        });
    }

    /// What enforcing would have refused, found out after the permit.
    pub fn would_deny(&mut self, code: &'static str) {
        self.edit(|record| {
            record.would_deny.get_or_insert(code);
        });
    }

    /// The permit did not lead anywhere: what it was for is not there.
    pub fn leads_nowhere(&mut self) {
        self.not_admitted();
    }

    /// The permit did not lead anywhere: no address passed.
    pub(super) fn not_admitted(&mut self) {
        self.edit(|record| record.action_allowed = false);
    }

    /// From here the destination may get something of it.
    pub fn under_way(&mut self) {
        self.under_way = true;
    }

    /// The address that is dialled.
    pub fn dialled(&mut self, address: IpAddr) {
        self.edit(|record| record.destination_ip = Some(address));
    }

    /// The parent proxy that carries it.
    pub fn by_proxy(&mut self, parent: &Arc<str>) {
        self.edit(|record| record.via_proxy = Some(Arc::clone(parent)));
    }

    /// The parent proxy was given a name: where that leads is its to say.
    pub fn dialled_a_name(&mut self) {
        self.edit(|record| record.destination_ip = None);
    }

    /// The named route that the request came by.
    pub fn by_route(&mut self, name: &Arc<str>) {
        self.edit(|record| record.route = Some(Arc::clone(name)));
    }

    /// Notes a refusal; it is written when the trail ends.
    pub fn refused(&mut self, denial: &Denial) {
        let under_way = self.under_way;
        self.edit(|record| {
            // An upstream that fails was allowed; the record says both. So was what
            // is cut when it may have reached the destination already.
            let passed = under_way || denial.is_upstreams();
            record.action_allowed = record.action_allowed && passed;
            record.reason = denial.code();
            record.status = Some(denial.status());
            if matches!(denial.cause, Cause::Policy(_) | Cause::OwnListener) {
                // In audit mode it would have passed.
                record.mode = Some(Mode::Enforce);
            }
            if record.rule.is_none() {
                record.rule = denial.rule().cloned();
            }
            if let Some(detail) = denial.operator_detail() {
                record.detail = Some(detail.into());
            }
            if let Some(authority) = denial
                .destination()
                .filter(|_| record.destination_host.is_none())
            {
                record.destination_host = Some(authority.host.to_string().into());
                record.destination_port = Some(authority.port);
            }
        });
    }

    /// The request was answered with this status, by the origin.
    pub fn answered(&mut self, status: u16) {
        self.edit(|record| {
            record.status = Some(status);
            record.reason = "ok";
        });
    }

    /// The gateway itself has answered, with what this agent may see.
    pub fn served(&mut self, path: &str) {
        self.edit(|record| {
            record.action_allowed = true;
            record.path = Some(path.into());
        });
        self.answered(200);
    }

    /// The request has broken off after it was admitted.
    pub fn broke_off(&mut self, reason: &'static str, detail: Option<String>) {
        self.edit(|record| {
            record.reason = reason;
            record.detail = detail.map(Into::into);
        });
    }

    /// Bytes either way, so far.
    pub fn bytes(&mut self, up: u64, down: u64) {
        self.edit(|record| {
            record.bytes_up = up;
            record.bytes_down = down;
        });
    }

    /// How long a refusal like this should be held back: storms of identical
    /// ones wait longer and longer.
    #[must_use]
    pub fn refusal_delay(&self) -> Duration {
        match &self.record {
            Some(record) => self
                .ports
                .storms
                .delay(record, self.ports.clock.monotonic()),
            None => Duration::ZERO,
        }
    }

    /// Writes the record.
    pub fn finish(self) {
        drop(self);
    }

    /// Writes the record of a tunnel that has opened, and opens the one that
    /// will be written when it closes.
    #[must_use]
    pub fn tunnel_opened(mut self) -> Self {
        let mut closing = self.record.clone();
        if let Some(record) = &mut closing {
            record.event = AuditEvent::TunnelClosed;
            record.status = Some(200);
            record.reason = TunnelEnd::Aborted.code();
        }
        self.edit(|record| {
            record.status = Some(200);
            record.reason = "ok";
        });
        self.ports
            .observe
            .observe(Observation::InFlight { change: 1 });
        self.ports
            .observe
            .observe(Observation::Tunnel { change: 1 });
        let trail = Self {
            record: closing,
            started: self.started,
            inside_tunnel: self.inside_tunnel,
            under_way: self.under_way,
            trial: self.trial.clone(),
            ports: Arc::clone(&self.ports),
        };
        drop(self);
        trail
    }

    /// More for the operator, at the end.
    pub fn explain(&mut self, detail: String) {
        self.edit(|record| record.detail = Some(detail.into()));
    }

    /// How a tunnel has ended.
    pub fn tunnel_closed(&mut self, end: TunnelEnd, up: u64, down: u64) {
        self.edit(|record| {
            record.reason = end.code();
            record.action_allowed = end.was_allowed();
            record.bytes_up = up;
            record.bytes_down = down;
        });
    }
}

impl Drop for AuditTrail {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else {
            return;
        };
        if let Some(limit) = self.trial.as_ref().and_then(|trial| trial.get()) {
            record.would_deny.get_or_insert(TunnelEnd::Budget.code());
            record.detail.get_or_insert_with(|| {
                format!(
                    "{} ({}) would have been used up",
                    limit.name(),
                    limit.amount()
                )
                .into()
            });
        }
        let now = self.ports.clock.monotonic();
        record.duration_ms = now.saturating_sub(self.started);
        self.ports
            .observe
            .observe(Observation::InFlight { change: -1 });
        if record.event == AuditEvent::TunnelClosed {
            self.ports
                .observe
                .observe(Observation::Tunnel { change: -1 });
        }
        self.ports
            .observe
            .observe(Observation::Finished { record: &record });
        if let Some(record) = self.ports.storms.pass(record, now) {
            self.ports.sink.push(record);
        }
    }
}

/// The wall clock as a number of seconds, for tokens.
pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

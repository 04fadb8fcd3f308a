//! The only place that knows the order of the checks: authenticate, decide,
//! limit, resolve, classify.
//!
//! It does no I/O of its own and needs no runtime: names, records, figures and
//! time come through the traits in [`ports`]. What it gives is an
//! [`Admission`]; nothing dials without one, and nobody else can make one.

mod denial;
pub mod ports;
mod quota;
mod storm;
mod trail;

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use denial::{Cause, Denial, PSEUDONYM, TunnelEnd};
pub use quota::{Budget, Standing, Way};
pub use storm::StormSettings;
pub use trail::{AuditTrail, Opening};

use crate::egress::{AgentId, Authority, EgressRequest, Host};
use crate::identity::{self, CachedVerifier, Principal};
use crate::limit::{Ledger, Limit};
use crate::policy::{Decision, Permit, PolicySet};

use ports::{
    AuditSink, Clock, Observation, Observe, PolicySource, Resolve, ResolveError, SharedLimits,
    SinkState,
};
use quota::{Quotas, Spending};
use trail::TrailPorts;

/// Leave to open one upstream connection: to these addresses and no others,
/// for this agent, under this permit.
#[derive(Clone, Debug)]
pub struct Admission {
    permit: Permit,
    who: Arc<Principal>,
    authority: Authority,
    addresses: Vec<SocketAddr>,
    spending: Option<Arc<Spending>>,
}

impl Admission {
    /// What policy said.
    #[must_use]
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Who may.
    #[must_use]
    pub fn who(&self) -> &Arc<Principal> {
        &self.who
    }

    /// Where to, as it was judged.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The addresses that have passed, at least one, in the resolver's order.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// How many bytes may pass this way at this moment.
    #[must_use]
    pub fn bytes_left(&self, way: Way) -> Budget {
        match &self.spending {
            Some(spending) => spending.room(way),
            None => Budget::Bytes(u64::MAX),
        }
    }

    /// Whether bytes this way are limited at all.
    #[must_use]
    pub fn limits_bytes(&self, way: Way) -> bool {
        self.spending
            .as_ref()
            .is_some_and(|spending| spending.limits(way))
    }

    /// Notes bytes that have passed this way.
    pub fn bytes_passed(&self, way: Way, bytes: u64) {
        if let Some(spending) = &self.spending {
            spending.passed(way, bytes);
        }
    }

    /// Which budget is used up, for the record of what is cut.
    #[must_use]
    pub fn budget_cut(&self, way: Way) -> Option<String> {
        self.spending
            .as_ref()
            .and_then(|spending| spending.cut(way))
    }

    /// Where the request stands with the limits that hold for it.
    #[must_use]
    pub fn standing(&self) -> &[Standing] {
        self.spending
            .as_ref()
            .map_or(&[], |spending| spending.standing())
    }
}

impl fmt::Debug for Spending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spending").finish_non_exhaustive()
    }
}

/// The gateway's own listeners, which no agent may reach through it.
#[derive(Clone, Debug, Default)]
pub struct OwnListeners {
    /// Addresses with their ports.
    pub sockets: Vec<SocketAddr>,
    /// The addresses of this machine, for listeners bound to all of them.
    pub local: Vec<IpAddr>,
}

impl OwnListeners {
    fn contains(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let here = ip.is_loopback() || ip.is_unspecified() || self.local.contains(&ip);
        self.sockets.iter().any(|own| {
            own.port() == address.port()
                && (own.ip().to_canonical() == ip
                    || (own.ip().is_unspecified() && here)
                    || (ip.is_unspecified() && own.ip().is_loopback()))
        })
    }
}

/// What a gate is made of.
pub struct GateParts {
    /// The policy in force.
    pub policy: Arc<dyn PolicySource>,
    /// The keys in force, and the tokens already checked.
    pub tokens: Arc<CachedVerifier>,
    /// Whether a Basic user name must be the agent's.
    pub match_basic_user: bool,
    /// Names.
    pub names: Arc<dyn Resolve>,
    /// Records.
    pub sink: Arc<dyn AuditSink>,
    /// Figures.
    pub observe: Arc<dyn Observe>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The gateway's own limits, beside those of policy.
    pub limits: Vec<Arc<Limit>>,
    /// The accounts of all limits.
    pub ledger: Arc<Ledger>,
    /// Where replicas share limits: the answers of Redis.
    pub shared_limits: Option<Arc<dyn SharedLimits>>,
    /// Where agents must not come back to.
    pub own: OwnListeners,
    /// The status of a credential that is no good: 403, or 407 for clients
    /// that can ask for another one.
    pub bad_credential_status: u16,
    /// How storms of refusals are damped.
    pub storms: StormSettings,
}

/// The gate.
pub struct Gate {
    policy: Arc<dyn PolicySource>,
    tokens: Arc<CachedVerifier>,
    match_basic_user: bool,
    names: Arc<dyn Resolve>,
    quotas: Quotas,
    bad_credential_status: u16,
    own: OwnListeners,
    ports: Arc<TrailPorts>,
}

impl Gate {
    /// Puts a gate together.
    #[must_use]
    pub fn new(parts: GateParts) -> Self {
        Self {
            policy: parts.policy,
            tokens: parts.tokens,
            match_basic_user: parts.match_basic_user,
            names: parts.names,
            quotas: Quotas::new(
                parts.limits,
                parts.ledger,
                parts.shared_limits,
                Arc::clone(&parts.clock),
                Arc::clone(&parts.observe),
            ),
            bad_credential_status: parts.bad_credential_status,
            own: parts.own,
            ports: Arc::new(TrailPorts {
                sink: parts.sink,
                clock: parts.clock,
                observe: parts.observe,
                storms: storm::Storms::new(parts.storms),
            }),
        }
    }

    /// Where figures go, for what happens outside the checks.
    #[must_use]
    pub fn observe(&self) -> &dyn Observe {
        &*self.ports.observe
    }

    /// The time.
    #[must_use]
    pub fn clock(&self) -> &dyn Clock {
        &*self.ports.clock
    }

    /// Opens the trail of a request.
    #[must_use]
    pub fn open(&self, opening: Opening) -> AuditTrail {
        AuditTrail::open(&self.ports, opening)
    }

    /// Writes the counts of refusals that were held back: those that are due,
    /// or all of them when the gateway goes down.
    pub fn write_repeated(&self, all: bool) {
        for record in self.ports.storms.due(self.ports.clock.monotonic(), all) {
            self.ports.sink.push(record);
        }
    }

    /// Room in the audit log: what cannot be recorded does not happen.
    ///
    /// # Errors
    /// A [`Denial`] where the operator chose to refuse instead of waiting.
    pub async fn room(&self) -> Result<(), Denial> {
        match self.ports.sink.ready() {
            SinkState::Ready => Ok(()),
            SinkState::Wait => {
                self.ports.sink.wait().await;
                Ok(())
            }
            SinkState::Full => {
                self.ports
                    .observe
                    .observe(Observation::Throttled { limit: "audit" });
                Err(Denial::new(Cause::AuditUnavailable))
            }
        }
    }

    /// Another request of an agent whose credential held when its tunnel
    /// opened: it must still.
    ///
    /// # Errors
    /// A [`Denial`]: a credential that has expired or lost its key, a source
    /// that asks too often, or a log that can take no record.
    pub async fn again(
        &self,
        who: &Principal,
        source: Option<IpAddr>,
        trail: &mut AuditTrail,
    ) -> Result<(), Denial> {
        trail.principal(who);
        trail.inside_tunnel();
        self.room().await?;
        self.quotas.source(source).await?;
        let now = trail::unix_seconds(self.ports.clock.wall());
        let leeway = self.tokens.verifier_settings().leeway.as_secs();
        let code = if now >= who.expires_at().saturating_add(leeway) {
            "expired"
        } else if !self
            .tokens
            .keys()
            .iter()
            .any(|key| key.id() == who.key_id())
        {
            "unknown_key"
        } else {
            return Ok(());
        };
        let status = self.bad_credential_status;
        Err(Denial::new(Cause::BadCredential { code, status }))
    }

    /// Who asks, by the value of `Proxy-Authorization` (or what stands for it).
    ///
    /// # Errors
    /// A [`Denial`]: no credential, one that is no good, a source that asks too
    /// often, or a log that can take no record.
    pub async fn authenticate(
        &self,
        credential: Option<&[u8]>,
        source: Option<IpAddr>,
        trail: &mut AuditTrail,
    ) -> Result<Arc<Principal>, Denial> {
        self.room().await?;
        // Before the signature, so that bad tokens cost their sender most.
        self.quotas.source(source).await?;
        let Some(value) = credential else {
            return Err(Denial::new(Cause::NoCredential));
        };
        let started = self.ports.clock.monotonic();
        let checked = self.check_token(value);
        let took = self.ports.clock.monotonic().saturating_sub(started);
        let (outcome, cached) = match &checked {
            Ok((_, cached)) => ("ok", *cached),
            Err(error) => (error.code, false),
        };
        let cost = if cached { Duration::ZERO } else { took };
        trail.validated(cost);
        self.ports.observe.observe(Observation::Token {
            outcome,
            took: cost,
            cached,
            trace_id: trail.trace_id(),
        });
        match checked {
            Ok((who, _)) => {
                trail.principal(&who);
                Ok(who)
            }
            Err(error) => {
                if let Some(known) = &error.known {
                    trail.known(known.0.clone(), known.1.clone());
                }
                let cause = Cause::BadCredential {
                    code: error.code,
                    status: self.bad_credential_status,
                };
                Err(Denial::new(cause).detail(error.detail))
            }
        }
    }

    fn check_token(&self, value: &[u8]) -> Result<(Arc<Principal>, bool), BadToken> {
        let credential = identity::Credential::parse(value).map_err(|error| BadToken {
            code: error.code(),
            detail: error.to_string(),
            known: None,
        })?;
        let now = self.ports.clock.wall();
        let verified = self
            .tokens
            .verify(credential.token(), trail::unix_seconds(now))
            .map_err(|error| BadToken {
                code: error.code(),
                detail: error.to_string(),
                known: error.facts(),
            })?;
        let (who, cached) = verified;
        if self.match_basic_user
            && credential
                .user()
                .is_some_and(|user| user != who.agent().as_str())
        {
            return Err(BadToken {
                code: "user_mismatch",
                detail: "the Basic user name is not the token's agent".to_owned(),
                known: Some((Some(who.agent().clone()), who.jti().cloned())),
            });
        }
        Ok((who, cached))
    }

    /// Whether this agent may do this, and by which addresses.
    ///
    /// # Errors
    /// A [`Denial`]: policy, quota, name or address.
    pub async fn admit(
        &self,
        who: &Arc<Principal>,
        request: &EgressRequest,
        trail: &mut AuditTrail,
    ) -> Result<Admission, Denial> {
        let (permit, spending) = self.decide(who, request, trail).await?;
        let addresses = self.addresses(&permit, &request.authority, trail).await?;
        Ok(Admission {
            spending,
            permit,
            who: Arc::clone(who),
            authority: request.authority.clone(),
            addresses,
        })
    }

    /// The same for a service that the operator has put behind the gateway,
    /// under a name that only policy knows: where it is, is his to say, and is
    /// not judged. `at` is where it listens; `None` for a Unix socket.
    ///
    /// # Errors
    /// A [`Denial`]: policy, quota or name.
    pub async fn admit_behind(
        &self,
        who: &Arc<Principal>,
        request: &EgressRequest,
        at: Option<&Authority>,
        trail: &mut AuditTrail,
    ) -> Result<Admission, Denial> {
        let (permit, spending) = self.decide(who, request, trail).await?;
        let addresses = match at {
            None => Vec::new(),
            Some(at) => self
                .resolve(at)
                .await?
                .iter()
                .map(|address| SocketAddr::new(*address, at.port))
                .collect(),
        };
        if let Some(first) = addresses.first() {
            trail.dialled(first.ip());
        }
        Ok(Admission {
            spending,
            permit,
            who: Arc::clone(who),
            authority: request.authority.clone(),
            addresses,
        })
    }

    async fn decide(
        &self,
        who: &Arc<Principal>,
        request: &EgressRequest,
        trail: &mut AuditTrail,
    ) -> Result<(Permit, Option<Arc<Spending>>), Denial> {
        let started = self.ports.clock.monotonic();
        trail.asks(request);
        let policy = self.policy.current();
        trail.policy(policy.digest());
        let verdict = match policy.decide(&who.subject(), request) {
            Decision::Allow(permit) => Ok(permit),
            Decision::Deny(denied) => Err(Denial::of_policy(&denied).towards(&request.authority)),
        };
        let verdict = match verdict {
            Ok(permit) => match self.quotas.admit(who, &permit, request, trail).await {
                Ok(spending) => Ok((permit, spending)),
                Err(denial) => Err(denial.towards(&request.authority)),
            },
            Err(denial) => Err(denial),
        };
        let took = self.ports.clock.monotonic().saturating_sub(started);
        self.ports.observe.observe(Observation::Decision {
            allowed: verdict.is_ok(),
            reason: verdict.as_ref().map_or_else(Denial::code, |_| "ok"),
            would_deny: verdict.as_ref().ok().and_then(|(permit, _)| {
                permit
                    .audited_denial()
                    .map(|denied| denied.reason().as_str())
            }),
            took,
            trace_id: trail.trace_id(),
        });
        let (permit, spending) = verdict?;
        trail.permitted(&permit);
        Ok((permit, spending))
    }

    async fn resolve(&self, authority: &Authority) -> Result<Arc<[IpAddr]>, Denial> {
        let name = match &authority.host {
            Host::Address(address) => return Ok(Arc::from([*address])),
            Host::Name(name) => name,
        };
        if let Some(found) = self.names.cached(name) {
            return Ok(found);
        }
        let started = self.ports.clock.monotonic();
        let found = self.names.lookup(name).await;
        self.ports.observe.observe(Observation::Resolved {
            outcome: found
                .as_ref()
                .map_or_else(|error| resolve_code(*error), |_| "ok"),
            took: self.ports.clock.monotonic().saturating_sub(started),
        });
        found.map_err(|error| resolve_denial(error).towards(authority))
    }

    async fn addresses(
        &self,
        permit: &Permit,
        authority: &Authority,
        trail: &mut AuditTrail,
    ) -> Result<Vec<SocketAddr>, Denial> {
        let found = self.resolve(authority).await?;
        let mut passed = Vec::with_capacity(found.len());
        let mut refused = None;
        for address in found.iter() {
            let socket = SocketAddr::new(*address, authority.port);
            if self.own.contains(socket) {
                refused.get_or_insert_with(|| (*address, Denial::new(Cause::OwnListener)));
            } else {
                match permit.address(*address) {
                    Ok(audited) => {
                        if let Some(denied) = audited {
                            trail.would_deny(denied.reason().as_str());
                        }
                        passed.push(socket);
                    }
                    Err(denied) => {
                        refused.get_or_insert_with(|| (*address, Denial::of_policy(&denied)));
                    }
                }
            }
        }
        if passed.is_empty() {
            let (address, denial) = match refused {
                Some((address, denial)) => (Some(address), denial),
                None => (None, Denial::new(Cause::NameNotFound)),
            };
            if let Some(address) = address {
                trail.dialled(address);
            }
            trail.not_admitted();
            return Err(denial.towards(authority).detail(match address {
                Some(address) => format!("{address} is not allowed"),
                None => "the resolver gave no address".to_owned(),
            }));
        }
        trail.dialled(passed[0].ip());
        Ok(passed)
    }

    /// The policy and the keys of this moment, to put to what is open.
    #[must_use]
    pub fn judge(&self) -> Judge {
        Judge {
            policy: self.policy.current(),
            keys: self
                .tokens
                .keys()
                .iter()
                .map(|key| Arc::clone(key.id()))
                .collect(),
        }
    }
}

/// The policy and the keys of one moment.
pub struct Judge {
    policy: Arc<PolicySet>,
    keys: HashSet<Arc<str>>,
}

impl Judge {
    /// Whether what was admitted would still be. `dialled` is where it goes.
    ///
    /// # Errors
    /// How the tunnel must end.
    pub fn still(
        &self,
        who: &Principal,
        request: &EgressRequest,
        dialled: Option<IpAddr>,
    ) -> Result<(), TunnelEnd> {
        if !self.keys.contains(who.key_id()) {
            return Err(TunnelEnd::CredentialEnded);
        }
        match self.policy.decide(&who.subject(), request) {
            Decision::Allow(permit) => match dialled.map(|address| permit.address(address)) {
                None | Some(Ok(_)) => Ok(()),
                Some(Err(_)) => Err(TunnelEnd::PolicyChanged),
            },
            Decision::Deny(_) => Err(TunnelEnd::PolicyChanged),
        }
    }
}

struct BadToken {
    code: &'static str,
    detail: String,
    known: Option<(Option<AgentId>, Option<Arc<str>>)>,
}

fn resolve_code(error: ResolveError) -> &'static str {
    match error {
        ResolveError::NotFound => "not_found",
        ResolveError::NoAddress => "no_address",
        ResolveError::Timeout => "timeout",
        ResolveError::Failed => "failed",
    }
}

fn resolve_denial(error: ResolveError) -> Denial {
    Denial::new(match error {
        ResolveError::NotFound | ResolveError::NoAddress => Cause::NameNotFound,
        ResolveError::Timeout => Cause::NameTimeout,
        ResolveError::Failed => Cause::NameFailed,
    })
    .detail(error.to_string())
}

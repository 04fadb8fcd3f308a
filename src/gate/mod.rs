//! The only place that knows the order of the checks: authenticate, decide,
//! limit, resolve, classify.
//!
//! It does no I/O of its own and needs no runtime: names, records, figures and
//! time come through the traits in [`ports`]. What it gives is an
//! [`Admission`]; nothing dials without one, and nobody else can make one.

mod denial;
mod judge;
pub mod ports;
mod quota;
mod standing;
mod storm;
mod trail;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use denial::{Cause, Denial, POLICY_PATH, PSEUDONYM, TunnelEnd};
pub use judge::{Judge, Leads};
pub use quota::{Budget, Standing, Way};
pub use storm::StormSettings;
pub use trail::{AuditTrail, Opening};

use crate::egress::{AgentId, Authority, EgressRequest, Host};
use crate::identity::{
    self, CachedVerifier, Certified, CredentialKind, PeerCertificate, Principal, RevokedKind,
};
use crate::limit::{Ledger, Limit};
use crate::policy::{Calls, Decision, DenyReason, Permit, Proven, Reach};

use ports::{
    AgentKeySource, AuditSink, Clock, Elsewhere, IssuerKeys, KeyNews, Observation, Observe,
    OffLimits, PolicySource, Resolve, ResolveError, RevocationSource, SharedLimits, SinkState,
    ThisMachine, TrustsCertificates,
};
use quota::{Paid, Quotas, Spending};
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
    /// What the body calls by JSON-RPC, where policy has asked for it.
    calls: Option<Arc<[String]>>,
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

    /// What the body calls by JSON-RPC, where policy has asked for that.
    #[must_use]
    pub fn calls(&self) -> Option<&Arc<[String]>> {
        self.calls.as_ref()
    }

    /// Where to, as it was judged.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The addresses that have passed, at least one, in the resolver's order.
    /// None for what has no address here: a Unix socket, and a name that a parent
    /// proxy resolves.
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

/// That the limits let the body of a request be read, see
/// [`Gate::admit_body`].
pub struct BodyPaid(Paid);

impl fmt::Debug for Spending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spending").finish_non_exhaustive()
    }
}

/// The gateway's own listeners, which no agent may reach through it.
#[derive(Clone)]
pub struct OwnListeners {
    /// Addresses with their ports.
    pub sockets: Vec<SocketAddr>,
    /// The addresses of this machine, for listeners bound to all of them.
    pub local: Arc<dyn ThisMachine>,
}

impl OwnListeners {
    fn contains(&self, address: SocketAddr) -> bool {
        self.sockets.iter().any(|own| self.is(*own, address))
    }

    /// Whether an address leads to a socket that listens at `own`.
    fn is(&self, own: SocketAddr, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let here = || ip.is_loopback() || ip.is_unspecified() || self.local.has(ip);
        own.port() == address.port()
            && (own.ip().to_canonical() == ip
                || (own.ip().is_unspecified() && here())
                || (ip.is_unspecified() && own.ip().is_loopback()))
    }
}

/// What proves who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A token.
    Token,
    /// The client's certificate.
    Certificate,
    /// One of them; where both are there, they name the same agent.
    Either,
    /// Both, of the same agent.
    Both,
}

/// What a gate is made of.
pub struct GateParts {
    /// The policy in force.
    pub policy: Arc<dyn PolicySource>,
    /// The keys in force, and the tokens already checked.
    pub tokens: Arc<CachedVerifier>,
    /// The agent keys in force.
    pub agent_keys: Arc<dyn AgentKeySource>,
    /// What proves who asks.
    pub proof: Proof,
    /// Listeners, by name, on which something else does.
    pub proof_on: Vec<(&'static str, Proof)>,
    /// Whom clients' certificates are trusted from; `None` where no listener
    /// asks for them.
    pub certificates: Option<Arc<dyn TrustsCertificates>>,
    /// Where keys of other issuers are asked for.
    pub issuers: Option<Arc<dyn IssuerKeys>>,
    /// The revocations in force.
    pub revocations: Arc<dyn RevocationSource>,
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
    /// What they reach by another way alone.
    pub off_limits: Vec<Arc<dyn OffLimits>>,
    /// Whose names are resolved elsewhere; their addresses are not judged.
    pub elsewhere: Option<Arc<dyn Elsewhere>>,
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
    agent_keys: Arc<dyn AgentKeySource>,
    proof: Proof,
    proof_on: Vec<(&'static str, Proof)>,
    certificates: Option<Arc<dyn TrustsCertificates>>,
    issuers: Option<Arc<dyn IssuerKeys>>,
    revocations: Arc<dyn RevocationSource>,
    match_basic_user: bool,
    names: Arc<dyn Resolve>,
    quotas: Quotas,
    bad_credential_status: u16,
    own: Arc<OwnListeners>,
    off_limits: Arc<[Arc<dyn OffLimits>]>,
    elsewhere: Option<Arc<dyn Elsewhere>>,
    ports: Arc<TrailPorts>,
}

impl Gate {
    /// Puts a gate together.
    #[must_use]
    pub fn new(parts: GateParts) -> Self {
        Self {
            policy: parts.policy,
            tokens: parts.tokens,
            agent_keys: parts.agent_keys,
            proof: parts.proof,
            proof_on: parts.proof_on,
            certificates: parts.certificates,
            issuers: parts.issuers,
            revocations: parts.revocations,
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
            own: Arc::new(parts.own),
            off_limits: parts.off_limits.into(),
            elsewhere: parts.elsewhere,
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

    /// How long this principal's credential is still good, the leeway included.
    #[must_use]
    pub fn time_left(&self, who: &Principal) -> Duration {
        let leeway = self.tokens.verifier_settings().leeway;
        let end = Duration::from_secs(who.expires_at()).saturating_add(leeway);
        let now = self
            .ports
            .clock
            .wall()
            .duration_since(SystemTime::UNIX_EPOCH);
        end.saturating_sub(now.unwrap_or_default())
    }

    /// Whether time alone has taken from this principal what proves it: a
    /// certificate that holds no longer, and, where `tokens` says so, any
    /// credential that has expired.
    #[must_use]
    pub fn is_overdue(&self, who: &Principal, tokens: bool) -> bool {
        let certificate = who.certificate();
        (tokens && self.time_left(who).is_zero())
            || certificate.is_some_and(|certificate| {
                holds(self.certificates.as_deref(), certificate, self.now()).is_err()
            })
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

    /// Whether this names one of the gateway's own listeners by its address, or
    /// by `localhost`.
    #[must_use]
    pub fn is_own(&self, authority: &Authority) -> bool {
        let address = match &authority.host {
            Host::Address(address) => *address,
            Host::Name(name) if name.to_string() == "localhost" => IpAddr::from([127, 0, 0, 1]),
            Host::Name(_) => return false,
        };
        self.own.contains(SocketAddr::new(address, authority.port))
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
        } else if !self.is_proven(who, now) {
            "unknown_key"
        } else if let Some(kind) = self.revoked(who) {
            return Err(self.bad_credential(REVOKED, revoked_detail(kind)));
        } else {
            return match who.certificate() {
                Some(certificate) => holds(self.certificates.as_deref(), certificate, self.now()),
                None => Ok(()),
            };
        };
        let status = self.bad_credential_status;
        Err(Denial::new(Cause::BadCredential { code, status }))
    }

    fn now(&self) -> std::time::SystemTime {
        self.ports.clock.wall()
    }

    /// Who asks, by what the client's certificate says, where it has shown one,
    /// by the value of `Proxy-Authorization` (or what stands for it), and, where
    /// there is none, by the peer of its socket.
    ///
    /// # Errors
    /// A [`Denial`]: no credential, one that is no good, a source that asks too
    /// often, or a log that can take no record.
    pub async fn authenticate(
        &self,
        certified: Option<&Certified>,
        credential: Option<&[u8]>,
        peer: Option<&Arc<Principal>>,
        source: Option<IpAddr>,
        trail: &mut AuditTrail,
    ) -> Result<Arc<Principal>, Denial> {
        self.room().await?;
        // Before the signature, so that bad tokens cost their sender most.
        self.quotas.source(source).await?;
        if let Some(shown) = certified {
            // Under whatever proof is asked for: its handshake would fail now.
            holds(self.certificates.as_deref(), &shown.certificate, self.now())?;
        }
        let own = self
            .proof_on
            .iter()
            .find(|(name, _)| *name == trail.listener());
        let proof = own.map_or(self.proof, |(_, proof)| *proof);
        match (proof, certified) {
            (Proof::Token, _) => self.by_token(credential, peer, trail).await,
            (Proof::Certificate, shown) => self.by_certificate(shown, trail),
            (Proof::Either, Some(shown)) if credential.is_none() && shown.who.is_ok() => {
                self.by_certificate(Some(shown), trail)
            }
            (Proof::Either, Some(shown)) if shown.who.is_ok() => {
                self.by_both(shown, credential, trail).await
            }
            (Proof::Either, _) => self.by_token(credential, peer, trail).await,
            (Proof::Both, Some(shown)) => self.by_both(shown, credential, trail).await,
            (Proof::Both, None) => {
                // For the record, which says who came with half of it.
                let _ = self.by_token(credential, None, trail).await;
                Err(bad_certificate("no_certificate"))
            }
        }
    }

    fn by_certificate(
        &self,
        shown: Option<&Certified>,
        trail: &mut AuditTrail,
    ) -> Result<Arc<Principal>, Denial> {
        let who = named_by(shown)?;
        trail.principal(&who);
        match self.revoked(&who) {
            Some(kind) => Err(self.bad_credential(REVOKED, revoked_detail(kind))),
            None => Ok(who),
        }
    }

    /// By a token and a certificate that name the same agent. Of a tenant only
    /// one of them need speak.
    async fn by_both(
        &self,
        shown: &Certified,
        credential: Option<&[u8]>,
        trail: &mut AuditTrail,
    ) -> Result<Arc<Principal>, Denial> {
        let named = self.by_certificate(Some(shown), trail)?;
        let who = self.by_token(credential, None, trail).await?;
        let both = who.with_certificate(&shown.certificate);
        trail.principal(&both);
        let tenants_fit = match (named.tenant(), who.tenant()) {
            (Some(named), tenant) => tenant == Some(named),
            (None, _) => true,
        };
        if named.agent() != who.agent() || !tenants_fit {
            let detail = format!("the certificate is that of {}", named.agent());
            return Err(bad_certificate("certificate_mismatch").detail(detail));
        }
        Ok(Arc::new(both))
    }

    async fn by_token(
        &self,
        credential: Option<&[u8]>,
        peer: Option<&Arc<Principal>>,
        trail: &mut AuditTrail,
    ) -> Result<Arc<Principal>, Denial> {
        if let Some(verdict) = self.without_token(credential, peer, trail) {
            return verdict;
        }
        let Some(value) = credential else {
            return Err(Denial::new(Cause::NoCredential));
        };
        let started = self.ports.clock.monotonic();
        let mut checked = self.check_token(value);
        // Waiting for an issuer is no cost of validation.
        let mut waited = Duration::ZERO;
        if let Err(BadToken {
            of_issuer: Some(issuer),
            ..
        }) = &checked.outcome
            && let Some(issuers) = &self.issuers
        {
            let asked = self.ports.clock.monotonic();
            let news = issuers.unknown_key(issuer).await;
            waited = self.ports.clock.monotonic().saturating_sub(asked);
            match news {
                KeyNews::None => {}
                KeyNews::Asked => checked = self.check_token(value),
                KeyNews::Unavailable => {
                    let detail = format!("there are no keys of the issuer {issuer:?} to be had");
                    checked.outcome = Err(BadToken {
                        code: ISSUER_UNAVAILABLE,
                        detail,
                        known: None,
                        of_issuer: None,
                    });
                }
            }
        }
        let took = self.ports.clock.monotonic().saturating_sub(started);
        let took = took.saturating_sub(waited);
        let cached = checked.cached && checked.outcome.is_ok();
        let cost = if cached { Duration::ZERO } else { took };
        trail.validated(cost);
        self.ports.observe.observe(Observation::Token {
            outcome: checked
                .outcome
                .as_ref()
                .map_or_else(|bad| bad.code, |_| "ok"),
            algorithm: checked.algorithm,
            took: cost,
            cached,
            trace_id: trail.trace_id(),
        });
        match checked.outcome {
            Ok(who) => {
                trail.principal(&who);
                Ok(who)
            }
            Err(error) => {
                if let Some(known) = &error.known {
                    trail.known(known.0.clone(), known.1.clone());
                }
                let cause = match error.code {
                    ISSUER_UNAVAILABLE => Cause::IssuerUnavailable,
                    code => Cause::BadCredential {
                        code,
                        status: self.bad_credential_status,
                    },
                };
                Err(Denial::new(cause).detail(error.detail))
            }
        }
    }

    fn check_token(&self, value: &[u8]) -> CheckedToken {
        let credential = match identity::Credential::parse(value) {
            Ok(credential) => credential,
            Err(error) => {
                return CheckedToken {
                    algorithm: "none",
                    cached: false,
                    outcome: Err(BadToken {
                        code: error.code(),
                        detail: error.to_string(),
                        known: None,
                        of_issuer: None,
                    }),
                };
            }
        };
        let now = trail::unix_seconds(self.ports.clock.wall());
        let verdict = self.tokens.check(credential.token(), now);
        CheckedToken {
            algorithm: verdict
                .algorithm
                .map_or("none", identity::Algorithm::as_str),
            cached: verdict.cached,
            outcome: match verdict.outcome {
                Ok(who) => self.check_user(&credential, who),
                Err(error) => Err(BadToken {
                    code: error.code(),
                    detail: error.to_string(),
                    known: error.facts(),
                    of_issuer: self.foreign(&error, credential.token()),
                }),
            },
        }
    }

    /// The issuer whose keys might have to be asked for again.
    fn foreign(&self, error: &identity::TokenError, token: &str) -> Option<String> {
        self.issuers.as_ref()?;
        match error {
            identity::TokenError::UnknownKey(_) => {
                let most = self.tokens.verifier_settings().max_token_bytes;
                identity::claimed_issuer(token, most)
            }
            identity::TokenError::LostParent { issuer, .. } => issuer.clone(),
            _ => None,
        }
    }

    fn check_user(
        &self,
        credential: &identity::Credential,
        who: Arc<Principal>,
    ) -> Result<Arc<Principal>, BadToken> {
        if self.match_basic_user
            && credential
                .user()
                .is_some_and(|user| user != who.agent().as_str())
        {
            return Err(BadToken {
                code: "user_mismatch",
                detail: "the Basic user name is not the token's agent".to_owned(),
                known: Some((Some(who.agent().clone()), who.jti().cloned())),
                of_issuer: None,
            });
        }
        // Also what the cache remembers: a revocation is in force at once.
        if let Some(kind) = self.revoked(&who) {
            return Err(BadToken {
                code: REVOKED,
                detail: revoked_detail(kind),
                known: Some((Some(who.agent().clone()), who.jti().cloned())),
                of_issuer: None,
            });
        }
        Ok(who)
    }

    /// By what this principal is revoked now.
    fn revoked(&self, who: &Principal) -> Option<RevokedKind> {
        let now = trail::unix_seconds(self.ports.clock.wall());
        self.revocations.current().revokes(who, now)
    }

    fn bad_credential(&self, code: &'static str, detail: String) -> Denial {
        let status = self.bad_credential_status;
        Denial::new(Cause::BadCredential { code, status }).detail(detail)
    }

    /// What this agent may reach, for the agent itself. The caller has
    /// authenticated it.
    ///
    /// # Errors
    /// A [`Denial`]: its tenant has no policy, or one for other tokens.
    pub fn reach(&self, who: &Principal, trail: &mut AuditTrail) -> Result<Reach, Denial> {
        let policy = self.policy.current();
        trail.policy(policy.digest());
        if policy.asks_for_audiences() {
            trail.audiences(who);
        }
        let mut reach = policy.reach(&who.subject()).map_err(|reason| {
            let detail = match reason {
                DenyReason::TenantAudience => audiences(who),
                _ => "the tenant of the token has no document".to_owned(),
            };
            Denial::new(Cause::Policy(reason)).detail(detail)
        })?;
        reach.add_limits(self.quotas.own());
        Ok(reach)
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
        self.admit_calls(who, (request, Calls::Unseen, None), trail)
            .await
    }

    /// Whether policy must see what the body calls by JSON-RPC before it can
    /// say anything.
    #[must_use]
    pub fn asks_for_calls(&self, who: &Principal, request: &EgressRequest) -> bool {
        let policy = self.policy.current();
        policy.asks_for_calls(&who.subject(), request)
    }

    /// Whether the body of a request may be read, to learn what it calls: what
    /// policy refuses whatever it calls, and what has no quota left, is refused
    /// here. What it takes from limits is spent also where it is refused later,
    /// for the body was read; only the limits of its rule, which is known by
    /// then, are asked by [`Gate::admit_calls`].
    ///
    /// # Errors
    /// A [`Denial`]: policy or quota.
    pub async fn admit_body(
        &self,
        who: &Arc<Principal>,
        request: &EgressRequest,
        trail: &mut AuditTrail,
    ) -> Result<BodyPaid, Denial> {
        let started = self.ports.clock.monotonic();
        trail.asks(request);
        let policy = self.policy.current();
        trail.policy(policy.digest());
        let subject = who.subject();
        let paid = match policy.decide_calls(&subject, request, Calls::Awaited) {
            Decision::Allow(permit) => {
                let of_rules = policy.limits_at_best(&subject, request);
                let quotas = &self.quotas;
                quotas
                    .admit_body(who, &permit, request, &of_rules, trail)
                    .await
            }
            Decision::Deny(denied) => Err(Denial::of_policy(&denied)),
        };
        paid.map(BodyPaid).map_err(|denial| {
            self.ports.observe.observe(Observation::Decision {
                allowed: false,
                reason: denial.code(),
                would_deny: None,
                took: self.ports.clock.monotonic().saturating_sub(started),
                trace_id: trail.trace_id(),
            });
            denial.towards(&request.authority)
        })
    }

    /// As [`Gate::admit`], for a request whose body was read, with what it has
    /// paid for that.
    ///
    /// # Errors
    /// A [`Denial`]: policy, quota, name or address.
    pub async fn admit_calls(
        &self,
        who: &Arc<Principal>,
        (request, calls, paid): (&EgressRequest, Calls<'_>, Option<BodyPaid>),
        trail: &mut AuditTrail,
    ) -> Result<Admission, Denial> {
        let asked = (request, calls, paid);
        let (permit, spending) = self.decide(who, asked, trail).await?;
        let addresses = self.addresses(&permit, &request.authority, trail).await?;
        Ok(Admission {
            spending,
            calls: seen(calls),
            permit,
            who: Arc::clone(who),
            authority: request.authority.clone(),
            addresses,
        })
    }

    /// The same for a service that the operator has put behind the gateway,
    /// under a name that only policy knows: where it is, is his to say, and is
    /// not judged. A leave for some addresses, at whatever host, is none for it. `at` is where it listens; `None` for a Unix socket, and where
    /// the caller knows its addresses.
    ///
    /// # Errors
    /// A [`Denial`]: policy, quota or name.
    pub async fn admit_behind(
        &self,
        who: &Arc<Principal>,
        (request, calls, paid): (&EgressRequest, Calls<'_>, Option<BodyPaid>),
        at: Option<&Authority>,
        trail: &mut AuditTrail,
    ) -> Result<Admission, Denial> {
        let asked = (request, calls, paid);
        let (permit, spending) = self.decide(who, asked, trail).await?;
        match permit.behind(&request.authority.host) {
            Ok(None) => {}
            Ok(Some(denied)) => trail.would_deny(denied.reason().as_str()),
            Err(denied) => {
                trail.not_admitted();
                return Err(Denial::of_policy(&denied)
                    .towards(&request.authority)
                    .detail("the leave is for some addresses only, and this is at none of them: name the host"));
            }
        }
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
            calls: seen(calls),
            permit,
            who: Arc::clone(who),
            authority: request.authority.clone(),
            addresses,
        })
    }

    async fn decide(
        &self,
        who: &Arc<Principal>,
        (request, calls, paid): (&EgressRequest, Calls<'_>, Option<BodyPaid>),
        trail: &mut AuditTrail,
    ) -> Result<(Permit, Option<Arc<Spending>>), Denial> {
        let started = self.ports.clock.monotonic();
        trail.asks(request);
        if let Calls::Seen(methods) = calls {
            trail.calls(methods);
        }
        let policy = self.policy.current();
        trail.policy(policy.digest());
        if policy.asks_for_audiences() {
            trail.audiences(who);
        }
        let decision = policy.decide_calls(&who.subject(), request, calls);
        let verdict = match decision.proven_by(proven(who)) {
            Decision::Allow(permit) => Ok(permit),
            Decision::Deny(denied) => {
                let denial = Denial::of_policy(&denied).towards(&request.authority);
                Err(match denied.reason() {
                    DenyReason::TenantAudience => denial.detail(audiences(who)),
                    _ => denial,
                })
            }
        };
        let verdict = match verdict {
            Ok(permit) => {
                let paid = paid.map(|BodyPaid(paid)| paid);
                match self.quotas.admit(who, &permit, request, paid, trail).await {
                    Ok(spending) => Ok((permit, spending)),
                    Err(denial) => Err(denial.towards(&request.authority)),
                }
            }
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

    /// For whom an agent calls another one: whom the token names that it has
    /// brought along. It lends no rights; the agent calls with its own alone.
    ///
    /// # Errors
    /// A [`Denial`]: a token that is no good, or that of another tenant.
    pub async fn on_behalf_of(
        &self,
        caller: &Principal,
        credential: &[u8],
        trail: &mut AuditTrail,
    ) -> Result<Arc<Principal>, Denial> {
        let checked = self.by_token(Some(credential), None, trail).await;
        // What it has written down of the token's agent is the caller's place.
        trail.principal(caller);
        let who = checked?;
        if let (Some(callers), Some(tokens)) = (caller.tenant(), who.tenant())
            && callers != tokens
        {
            let detail = format!("the token brought along is of the tenant {tokens}");
            return Err(bad_certificate("tenant_mismatch").detail(detail));
        }
        trail.on_behalf_of(&who);
        Ok(who)
    }

    /// The addresses of a service that the operator has named; they are not
    /// judged.
    ///
    /// # Errors
    /// A [`Denial`] where it has none.
    pub async fn locate(&self, authority: &Authority) -> Result<Vec<SocketAddr>, Denial> {
        let found = self.resolve(authority).await?;
        let at = |address: &IpAddr| SocketAddr::new(*address, authority.port);
        Ok(found.iter().map(at).collect())
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
        if let Some(why) = off_limits(&self.off_limits, authority) {
            trail.not_admitted();
            return Err(Denial::new(Cause::OwnListener)
                .towards(authority)
                .detail(why));
        }
        let elsewhere = self.elsewhere.as_deref();
        if elsewhere.is_some_and(|elsewhere| elsewhere.resolves(authority)) {
            return match permit.unresolved() {
                Ok(audited) => {
                    if let Some(denied) = audited {
                        trail.would_deny(denied.reason().as_str());
                    }
                    Ok(Vec::new())
                }
                Err(denied) => {
                    trail.not_admitted();
                    Err(Denial::of_policy(&denied)
                        .towards(authority)
                        .detail("the parent proxy resolves this name, so its address is unknown"))
                }
            };
        }
        let found = self.resolve(authority).await?;
        // Whichever of its addresses is reached then, nobody here chooses it.
        let all = elsewhere.is_some_and(|elsewhere| elsewhere.resolves_again(authority));
        let mut passed = Vec::with_capacity(found.len());
        let mut refused = None;
        for address in found.iter() {
            let socket = SocketAddr::new(*address, authority.port);
            if self.own.contains(socket) || is_off_limits_at(&self.off_limits, &self.own, socket) {
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
        if passed.is_empty() || (all && refused.is_some()) {
            let (address, denial) = match refused {
                Some((address, denial)) => (Some(address), denial),
                None => (None, Denial::new(Cause::NameNotFound)),
            };
            if let Some(address) = address {
                trail.dialled(address);
            }
            trail.not_admitted();
            return Err(denial.towards(authority).detail(match address {
                Some(address) if all => format!(
                    "{address} is not allowed, and the parent proxy may reach it by this name"
                ),
                Some(address) => format!("{address} is not allowed"),
                None => "the resolver gave no address".to_owned(),
            }));
        }
        trail.dialled(passed[0].ip());
        Ok(passed)
    }
}

/// What policy may want to have proven an agent.
fn proven(who: &Principal) -> Proven {
    Proven {
        token: matches!(who.kind(), CredentialKind::Token | CredentialKind::AgentKey),
        certificate: who.certificate().is_some(),
    }
}

/// For the operator: whom a token is for that its tenant's policy does not take.
fn audiences(who: &Principal) -> String {
    let audiences = who.subject().audiences.unwrap_or_default();
    format!("the token's aud is {}", audiences.join(", "))
}

fn seen(calls: Calls<'_>) -> Option<Arc<[String]>> {
    match calls {
        Calls::Seen(methods) => Some(methods.into()),
        Calls::Unseen | Calls::Awaited => None,
    }
}

/// Why this destination is reached by another way alone, where it is.
fn off_limits(all: &[Arc<dyn OffLimits>], authority: &Authority) -> Option<&'static str> {
    let found = all.iter().find(|one| one.authority(authority))?;
    Some(found.why())
}

fn is_off_limits_at(all: &[Arc<dyn OffLimits>], own: &OwnListeners, address: SocketAddr) -> bool {
    let is = |left, right| own.is(left, right);
    all.iter().any(|one| one.address(address, &is))
}

/// Whether a certificate that held at its handshake still does.
fn holds(
    trust: Option<&dyn TrustsCertificates>,
    certificate: &PeerCertificate,
    now: std::time::SystemTime,
) -> Result<(), Denial> {
    // Where nobody is asked, nobody is trusted.
    let held = match trust {
        Some(trust) => trust.holds(certificate, now),
        None => Err("certificate_unknown_issuer"),
    };
    held.map_err(|code| {
        bad_certificate(code).detail(format!("serial number {}", certificate.serial()))
    })
}

/// The agent that a certificate names.
fn named_by(shown: Option<&Certified>) -> Result<Arc<Principal>, Denial> {
    let Some(shown) = shown else {
        return Err(bad_certificate("no_certificate"));
    };
    match &shown.who {
        Ok(who) => Ok(Arc::clone(who)),
        Err(error) => {
            let names = [shown.certificate.uris(), shown.certificate.dns_names()].concat();
            let detail = format!("{error}: {}", names.join(", "));
            Err(bad_certificate(error.code()).detail(detail))
        }
    }
}

/// Another certificate cannot be asked for within the connection, so this is
/// never a challenge.
fn bad_certificate(code: &'static str) -> Denial {
    Denial::new(Cause::BadCredential { code, status: 403 })
}

/// The code of a credential that was revoked.
const REVOKED: &str = "revoked";

fn revoked_detail(kind: RevokedKind) -> String {
    format!("revoked by {kind}")
}

/// The code of a token whose issuer's keys are not to be had.
const ISSUER_UNAVAILABLE: &str = "issuer_unavailable";

struct CheckedToken {
    algorithm: &'static str,
    cached: bool,
    outcome: Result<Arc<Principal>, BadToken>,
}

struct BadToken {
    code: &'static str,
    detail: String,
    known: Option<(Option<AgentId>, Option<Arc<str>>)>,
    /// Where no key was known: the issuer that the token claims.
    of_issuer: Option<String>,
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

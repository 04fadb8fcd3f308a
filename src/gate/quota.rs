//! The limits of the gate: which hold for a request, taking from all of them or
//! from none, and the bytes that follow.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::egress::{Ask, EgressRequest};
use crate::identity::Principal;
use crate::limit::{
    Account, Allowance, Amount, Ledger, Limit, Measure, Owner, Per, PlaceHeld, Refusal, Room,
    window,
};
use crate::policy::{Mode, Permit};

use super::denial::{Cause, Denial};
use super::ports::{Clock, Observation, Observe, SharedLimits};
use super::trail::AuditTrail;

/// The gateway's own limits, and the accounts of all.
pub(super) struct Quotas {
    limits: Vec<Arc<Limit>>,
    ledger: Arc<Ledger>,
    answers: Option<Arc<dyn SharedLimits>>,
    clock: Arc<dyn Clock>,
    observe: Arc<dyn Observe>,
}

/// What an admission holds of limits: places among those at once, and accounts
/// for the bytes to come.
pub(super) struct Spending {
    ledger: Arc<Ledger>,
    clock: Arc<dyn Clock>,
    observe: Arc<dyn Observe>,
    /// Each with whether it binds.
    up: Vec<(Mode, Account)>,
    down: Vec<(Mode, Account)>,
    standing: Vec<Standing>,
    _places: Vec<PlaceHeld>,
    /// Where a budget of bytes is on trial.
    trial: Option<Arc<Trial>>,
}

/// The budget of bytes that enforcing would have cut something at, once it
/// would have.
pub(super) type Trial = OnceLock<Arc<Limit>>;

/// What was taken from limits on the way to an admission: it is given back
/// where there is none, because another limit refused or because the client
/// has gone away while Redis was asked.
struct Taken {
    ledger: Arc<Ledger>,
    clock: Arc<dyn Clock>,
    accounts: Vec<Account>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let now = self.clock.monotonic();
        for account in &self.accounts {
            self.ledger.put_back(account, 1, now);
        }
    }
}

/// What a request has paid before its body is read. It keeps its places until
/// this is dropped, and what it has taken is spent: reading is what it is for.
pub(super) struct Paid(Spending);

/// Which limits are asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    /// All but those of the rule, which is not known yet.
    BeforeBody,
    /// Those of the rule.
    OfRule,
}

/// Where a request stands with one limit, for the RateLimit header fields.
#[derive(Clone, Debug)]
pub struct Standing {
    limit: Arc<Limit>,
    allowance: Allowance,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the destination.
    Up,
    /// From the destination.
    Down,
}

/// How many bytes may pass at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// So many.
    Bytes(u64),
    /// Ask again in some milliseconds: replicas are settling what is left.
    Later,
    /// None: a budget is used up.
    UsedUp,
}

impl Quotas {
    pub(super) fn new(
        limits: Vec<Arc<Limit>>,
        ledger: Arc<Ledger>,
        answers: Option<Arc<dyn SharedLimits>>,
        clock: Arc<dyn Clock>,
        observe: Arc<dyn Observe>,
    ) -> Self {
        Self {
            limits,
            ledger,
            answers,
            clock,
            observe,
        }
    }

    /// The gateway's own limits.
    pub(super) fn own(&self) -> &[Arc<Limit>] {
        &self.limits
    }

    /// Requests of a source address, before anything else is looked at.
    pub(super) async fn source(&self, source: Option<IpAddr>) -> Result<(), Denial> {
        let Some(source) = source else { return Ok(()) };
        for limit in self.limits.iter().filter(|limit| is_of_source(limit)) {
            let account = self.ledger.account(limit, Owner::source(source));
            if let Err(refusal) = self.take(&account).await {
                return Err(self.refused(limit, refusal));
            }
        }
        Ok(())
    }

    /// Takes one request from every limit that holds for it, or from none. What
    /// was paid before the body was read is not taken again.
    pub(super) async fn admit(
        &self,
        who: &Principal,
        permit: &Permit,
        request: &EgressRequest,
        paid: Option<Paid>,
        trail: &mut AuditTrail,
    ) -> Result<Option<Arc<Spending>>, Denial> {
        let (mut spending, which) = match paid {
            Some(Paid(spending)) => (spending, Which::OfRule),
            None => (self.spending(), Which::All),
        };
        let asked = (permit, request, which);
        self.take_all(who, asked, &mut spending, trail).await?;
        Ok(spending.is_any().then(|| Arc::new(spending)))
    }

    /// What a request pays before its body is read: all limits but those of its
    /// rule, which the body tells. Where every rule that may turn out to be its
    /// own has used up its limits already, it is refused by the first.
    pub(super) async fn admit_body(
        &self,
        who: &Principal,
        permit: &Permit,
        request: &EgressRequest,
        of_rules: &[Vec<Arc<Limit>>],
        trail: &mut AuditTrail,
    ) -> Result<Paid, Denial> {
        let used_up = |limits: &Vec<Arc<Limit>>| {
            let mut limits = limits.iter();
            limits.find_map(|limit| self.used_up(who, limit, request, trail))
        };
        let used_up: Vec<_> = of_rules.iter().map(used_up).collect();
        if used_up.iter().all(Option::is_some)
            && let Some((limit, refusal)) = used_up.into_iter().flatten().next()
        {
            return Err(self.refused(&limit, refusal));
        }
        let mut spending = self.spending();
        let asked = (permit, request, Which::BeforeBody);
        self.take_all(who, asked, &mut spending, trail).await?;
        Ok(Paid(spending))
    }

    /// Why this limit would refuse now, as far as is known here; nothing is
    /// taken.
    fn used_up(
        &self,
        who: &Principal,
        limit: &Arc<Limit>,
        request: &EgressRequest,
        trail: &AuditTrail,
    ) -> Option<(Arc<Limit>, Refusal)> {
        if !holds_for(limit, request, trail.is_inside_tunnel()) {
            return None;
        }
        let owner = owner(limit.per(), who, request, trail.source())?;
        let account = self.ledger.account(limit, owner);
        let refusal = self.has_units(&account).err()?;
        Some((Arc::clone(limit), refusal))
    }

    fn spending(&self) -> Spending {
        Spending {
            ledger: Arc::clone(&self.ledger),
            clock: Arc::clone(&self.clock),
            observe: Arc::clone(&self.observe),
            up: Vec::new(),
            down: Vec::new(),
            standing: Vec::new(),
            _places: Vec::new(),
            trial: None,
        }
    }

    async fn take_all(
        &self,
        who: &Principal,
        (permit, request, which): (&Permit, &EgressRequest, Which),
        spending: &mut Spending,
        trail: &mut AuditTrail,
    ) -> Result<(), Denial> {
        let mut taken = Taken {
            ledger: Arc::clone(&self.ledger),
            clock: Arc::clone(&self.clock),
            accounts: Vec::new(),
        };
        let source = trail.source();
        // What counts requests of a source has been asked when they came.
        let own = self
            .limits
            .iter()
            .filter(|limit| which != Which::OfRule && !is_of_source(limit))
            .map(|limit| (Mode::Enforce, limit));
        let of_documents = permit.document_limits().filter(|_| which != Which::OfRule);
        let of_rule = permit.own_limits().filter(|_| which != Which::BeforeBody);
        for (mode, limit) in own.chain(of_documents).chain(of_rule) {
            if !holds_for(limit, request, trail.is_inside_tunnel()) {
                continue;
            }
            let Some(owner) = owner(limit.per(), who, request, source) else {
                continue;
            };
            let account = self.ledger.account(limit, owner);
            let outcome = match limit.measure() {
                Measure::Requests | Measure::Connections => match self.take(&account).await {
                    Ok(allowance) => {
                        spending.standing.push(Standing {
                            limit: Arc::clone(limit),
                            allowance,
                        });
                        taken.accounts.push(account);
                        Ok(())
                    }
                    Err(refusal) => Err(refusal),
                },
                Measure::Concurrent | Measure::Tunnels => match self.enter(&account).await {
                    Ok(place) => {
                        spending._places.extend(place);
                        Ok(())
                    }
                    Err(refusal) => Err(refusal),
                },
                Measure::BytesUp => self.has_units(&account).map(|()| {
                    spending.up.push((mode, account));
                }),
                Measure::BytesDown => self.has_units(&account).map(|()| {
                    spending.down.push((mode, account));
                }),
            };
            if let Err(refusal) = outcome {
                let denial = self.refused(limit, refusal);
                if mode == Mode::Audit {
                    trail.would_deny(denial.code());
                    continue;
                }
                // A refusal by one limit takes nothing from the others.
                return Err(denial);
            }
        }
        taken.accounts.clear();
        let mut bytes = spending.up.iter().chain(&spending.down);
        if bytes.any(|(mode, _)| *mode == Mode::Audit) {
            let trial = spending.trial.get_or_insert_default();
            trail.on_trial(Arc::clone(trial));
        }
        Ok(())
    }

    async fn take(&self, account: &Account) -> Result<Allowance, Refusal> {
        let mut patience = Patience::new(self.answers.as_deref());
        loop {
            let now = self.clock.monotonic();
            match self.ledger.take(account, 1, patience.has_some(), now) {
                Err(Refusal::Wait) => patience.wait().await,
                outcome => return outcome,
            }
        }
    }

    async fn enter(&self, account: &Account) -> Result<Option<PlaceHeld>, Refusal> {
        let mut patience = Patience::new(self.answers.as_deref());
        loop {
            let now = self.clock.monotonic();
            match self.ledger.enter(account, patience.has_some(), now) {
                Err(Refusal::Wait) => patience.wait().await,
                outcome => return outcome,
            }
        }
    }

    /// A budget of bytes must not be used up already; what follows is taken as
    /// it comes.
    fn has_units(&self, account: &Account) -> Result<(), Refusal> {
        let now = self.clock.monotonic();
        if self.ledger.room(account, now) == Room::Units(0) {
            // Asking for one unit tells when there will be one.
            self.ledger.take(account, 1, false, now)?;
            self.ledger.put_back(account, 1, now);
        }
        Ok(())
    }

    fn refused(&self, limit: &Arc<Limit>, refusal: Refusal) -> Denial {
        self.observe.observe(Observation::Throttled {
            limit: limit.label(),
        });
        match refusal {
            Refusal::UsedUp(throttled) => Denial::new(Cause::Throttled {
                limit: limit.label(),
                retry_after: throttled.retry_after,
            })
            .limited_by(limit)
            .detail(format!("{} ({}) is used up", limit.name(), limit.amount())),
            Refusal::Away | Refusal::Wait => Denial::new(Cause::LimitsUnavailable)
                .limited_by(limit)
                .detail(format!(
                    "{} cannot be counted: Redis is away, and the limit says deny",
                    limit.name()
                )),
        }
    }
}

/// How often an answer of Redis is waited for. A request that needs one waits a
/// few milliseconds in all, and only where Redis has been asked just now.
struct Patience<'a> {
    answers: Option<&'a dyn SharedLimits>,
    left: u32,
}

impl<'a> Patience<'a> {
    fn new(answers: Option<&'a dyn SharedLimits>) -> Self {
        Self { answers, left: 3 }
    }

    fn has_some(&self) -> bool {
        self.left > 0 && self.answers.is_some()
    }

    async fn wait(&mut self) {
        self.left = self.left.saturating_sub(1);
        if let Some(answers) = self.answers {
            answers.answered().await;
        }
    }
}

impl Spending {
    /// Whether a limit holds here at all.
    fn is_any(&self) -> bool {
        let Self {
            up,
            down,
            standing,
            _places,
            ..
        } = self;
        !(up.is_empty() && down.is_empty() && standing.is_empty() && _places.is_empty())
    }

    /// How many bytes may pass this way.
    pub(super) fn room(&self, way: Way) -> Budget {
        let now = self.clock.monotonic();
        let mut least = u64::MAX;
        let mut later = false;
        for account in self.binding(way) {
            match self.ledger.room(account, now) {
                Room::Units(0) => {
                    return Budget::UsedUp;
                }
                Room::Units(units) => least = least.min(units),
                Room::Later => later = true,
            }
        }
        if later {
            Budget::Later
        } else {
            Budget::Bytes(least)
        }
    }

    /// Notes bytes that have passed.
    pub(super) fn passed(&self, way: Way, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let now = self.clock.monotonic();
        for (mode, account) in self.accounts(way) {
            let mut charged = bytes;
            if *mode == Mode::Audit
                && let Room::Units(room) = self.ledger.room(account, now)
                && room < bytes
            {
                // Enforcing would have cut here, and no more would have passed.
                charged = room;
                if let Some(trial) = &self.trial {
                    let _ = trial.set(Arc::clone(account.limit()));
                }
            }
            self.ledger.use_up(account, charged, now);
        }
    }

    /// The budget that is used up, counted and told.
    pub(super) fn cut(&self, way: Way) -> Option<String> {
        let now = self.clock.monotonic();
        let room = |account: &&Account| match self.ledger.room(account, now) {
            Room::Units(units) => units,
            Room::Later => u64::MAX,
        };
        let limit = self.binding(way).min_by_key(room)?.limit();
        self.observe.observe(Observation::Throttled {
            limit: limit.label(),
        });
        Some(format!("{} ({}) is used up", limit.name(), limit.amount()))
    }

    pub(super) fn limits(&self, way: Way) -> bool {
        !self.accounts(way).is_empty()
    }

    pub(super) fn standing(&self) -> &[Standing] {
        &self.standing
    }

    /// The accounts whose limits bind.
    fn binding(&self, way: Way) -> impl Iterator<Item = &Account> {
        let binds = |(mode, _): &&(Mode, Account)| *mode == Mode::Enforce;
        let accounts = self.accounts(way).iter();
        accounts.filter(binds).map(|(_, account)| account)
    }

    fn accounts(&self, way: Way) -> &[(Mode, Account)] {
        match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        }
    }
}

impl Standing {
    /// Nothing is left, until then.
    pub(super) fn used_up(limit: &Arc<Limit>, retry_after: Duration) -> Self {
        Self {
            limit: Arc::clone(limit),
            allowance: Allowance {
                remaining: 0,
                reset_after: retry_after,
            },
        }
    }

    /// The fields `RateLimit-Policy` and `RateLimit`
    /// (draft-ietf-httpapi-ratelimit-headers): the quota and its window in
    /// seconds; what is left and in how many seconds all of it is there again.
    #[must_use]
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let Amount::Over(quota) = self.limit.amount() else {
            return Vec::new();
        };
        let name = self.limit.name();
        let (most, window) = (quota.burst(), whole_seconds(window(&quota)));
        let (left, reset) = (
            self.allowance.remaining,
            whole_seconds(self.allowance.reset_after),
        );
        vec![
            (
                "RateLimit-Policy",
                format!("\"{name}\";q={most};w={window}"),
            ),
            ("RateLimit", format!("\"{name}\";r={left};t={reset}")),
        ]
    }
}

/// Rounded up.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

fn is_of_source(limit: &Limit) -> bool {
    limit.per() == Per::Source && limit.measure() == Measure::Requests
}

fn holds_for(limit: &Limit, request: &EgressRequest, inside_tunnel: bool) -> bool {
    match limit.measure() {
        measure if measure.is_of_tunnels() => matches!(request.ask, Ask::Tunnel),
        // A tunnel counts once, not again for what is asked inside.
        Measure::Concurrent => !inside_tunnel,
        _ => true,
    }
}

fn owner(
    per: Per,
    who: &Principal,
    request: &EgressRequest,
    source: Option<IpAddr>,
) -> Option<Owner> {
    Some(match per {
        Per::Agent => Owner::Agent(who.tenant().cloned(), who.agent().clone()),
        Per::Tenant => Owner::Tenant(who.tenant().cloned()),
        Per::Token => Owner::Token(
            who.tenant().cloned(),
            who.agent().clone(),
            who.jti().cloned(),
        ),
        Per::Destination => Owner::Destination(request.authority.host.clone()),
        // Who comes by a Unix socket has no address.
        Per::Source => Owner::source(source?),
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::task::{Context, Poll, Waker};
    use std::time::SystemTime;

    use super::*;
    use crate::audit::AuditRecord;
    use crate::egress::{AgentId, Authority, RequestId};
    use crate::gate::ports::{AuditSink, BoxFuture, SinkState};
    use crate::gate::storm::{StormSettings, Storms};
    use crate::gate::trail::{Opening, TrailPorts};
    use crate::limit::{Quota, Shared, WhenAway};
    use crate::policy::{Decision, Format, PolicyDocument, PolicySet, SourceName};

    /// A machine on which nothing ever happens.
    struct Still;

    impl Clock for Still {
        fn wall(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }

        fn monotonic(&self) -> Duration {
            Duration::from_secs(1)
        }
    }

    impl Observe for Still {
        fn observe(&self, _: Observation<'_>) {}
    }

    impl AuditSink for Still {
        fn push(&self, _: AuditRecord) {}

        fn ready(&self) -> SinkState {
            SinkState::Ready
        }

        fn wait(&self) -> BoxFuture<'_, ()> {
            Box::pin(std::future::pending())
        }
    }

    impl SharedLimits for Still {
        fn answered(&self) -> BoxFuture<'_, ()> {
            Box::pin(std::future::pending())
        }
    }

    fn limit(name: &str, quota: &str) -> Arc<Limit> {
        let amount = Amount::Over(Quota::parse(quota).expect(quota));
        let (measure, away) = (Measure::Requests, WhenAway::Local);
        Arc::new(Limit::new(name, measure, Per::Agent, amount, away))
    }

    #[test]
    fn a_client_that_goes_away_while_redis_is_asked_has_taken_nothing() {
        let still = Arc::new(Still);
        let shared = Arc::new(Shared::new(100, NonZeroU32::MIN, || {}));
        shared.redis_is(true, true, still.monotonic());
        let ledger = Arc::new(Ledger::new(100).sharing(shared));
        let (wide, narrow) = (limit("wide", "100/d"), limit("narrow", "1/d"));
        let quotas = Quotas::new(
            vec![Arc::clone(&wide), narrow],
            Arc::clone(&ledger),
            Some(still.clone()),
            still.clone(),
            still.clone(),
        );
        let agent = AgentId::parse("bot").expect("an agent");
        let who = Principal::of_peer(1000, agent.clone(), None);
        let source = SourceName::from("p");
        let text = "version: 1\nrules: [{name: r, action: allow, agents: any, hosts: [a.example]}]";
        let document = PolicyDocument::parse(&source, Format::Yaml, text).expect("a document");
        let set = PolicySet::build(vec![(source, document)], Mode::Enforce).expect("a policy");
        let request = EgressRequest {
            authority: Authority::parse("a.example:443").expect("an authority"),
            ask: Ask::Tunnel,
        };
        let Decision::Allow(permit) = set.decide(&who.subject(), &request) else {
            panic!("the rule allows it");
        };
        let ports = Arc::new(TrailPorts {
            sink: still.clone(),
            clock: still.clone(),
            observe: still.clone(),
            storms: Storms::new(StormSettings::default()),
        });
        let opening = Opening {
            listener: "egress".into(),
            client: None,
            request_id: RequestId::from_bits(1),
        };
        let mut trail = AuditTrail::open(&ports, opening);
        let mut context = Context::from_waker(Waker::noop());
        let account = ledger.account(&wide, Owner::Agent(None, agent));
        let room = || ledger.room(&account, still.monotonic());

        // A batch of each may be lent before there is an answer: 10 and 1.
        let first = {
            let mut first = Box::pin(quotas.admit(&who, &permit, &request, None, &mut trail));
            match first.as_mut().poll(&mut context) {
                Poll::Ready(Ok(spending)) => spending,
                _ => panic!("there is a batch for it"),
            }
        };
        assert_eq!(room(), Room::Units(9));
        {
            let mut second = Box::pin(quotas.admit(&who, &permit, &request, None, &mut trail));
            assert!(second.as_mut().poll(&mut context).is_pending());
            assert_eq!(room(), Room::Units(8), "it has taken from the first limit");
        }
        assert_eq!(room(), Room::Units(9), "and has given it back");
        drop(first);
        assert_eq!(room(), Room::Units(9), "what was admitted is spent");
    }
}

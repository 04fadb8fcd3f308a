//! The limits of the gate: which hold for a request, taking from all of them or
//! from none, and the bytes that follow.

use std::net::IpAddr;
use std::sync::Arc;
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

    /// Takes one request from every limit that holds for it, or from none.
    pub(super) async fn admit(
        &self,
        who: &Principal,
        permit: &Permit,
        request: &EgressRequest,
        trail: &mut AuditTrail,
    ) -> Result<Option<Arc<Spending>>, Denial> {
        let mut spending = Spending {
            ledger: Arc::clone(&self.ledger),
            clock: Arc::clone(&self.clock),
            observe: Arc::clone(&self.observe),
            up: Vec::new(),
            down: Vec::new(),
            standing: Vec::new(),
            _places: Vec::new(),
        };
        let mut taken: Vec<Account> = Vec::new();
        let source = trail.source();
        let mut any = false;
        // What counts requests of a source has been asked when they came.
        let own = self
            .limits
            .iter()
            .filter(|limit| !is_of_source(limit))
            .map(|limit| (Mode::Enforce, limit));
        for (mode, limit) in own.chain(permit.limits()) {
            if !holds_for(limit, request, trail.is_inside_tunnel()) {
                continue;
            }
            let Some(owner) = owner(limit.per(), who, request, source) else {
                continue;
            };
            any = true;
            let account = self.ledger.account(limit, owner);
            let outcome = match limit.measure() {
                Measure::Requests | Measure::Connections => match self.take(&account).await {
                    Ok(allowance) => {
                        spending.standing.push(Standing {
                            limit: Arc::clone(limit),
                            allowance,
                        });
                        taken.push(account);
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
                Measure::BytesUp => self.has_bytes(account, mode, &mut spending.up),
                Measure::BytesDown => self.has_bytes(account, mode, &mut spending.down),
            };
            if let Err(refusal) = outcome {
                let denial = self.refused(limit, refusal);
                if mode == Mode::Audit {
                    trail.would_deny(denial.code());
                    continue;
                }
                // A refusal by one limit takes nothing from the others.
                let now = self.clock.monotonic();
                for account in &taken {
                    self.ledger.put_back(account, 1, now);
                }
                return Err(denial);
            }
        }
        Ok(any.then(|| Arc::new(spending)))
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
    fn has_bytes(
        &self,
        account: Account,
        mode: Mode,
        into: &mut Vec<(Mode, Account)>,
    ) -> Result<(), Refusal> {
        let now = self.clock.monotonic();
        if self.ledger.room(&account, now) == Room::Units(0) {
            // Asking for one byte tells when there will be one.
            self.ledger.take(&account, 1, false, now)?;
            self.ledger.put_back(&account, 1, now);
        }
        into.push((mode, account));
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
        for (_, account) in self.accounts(way) {
            self.ledger.use_up(account, bytes, now);
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
        Measure::Requests => true,
        Measure::Connections | Measure::Tunnels => matches!(request.ask, Ask::Tunnel),
        // A tunnel counts once, not again for what is asked inside.
        Measure::Concurrent => !inside_tunnel,
        Measure::BytesUp | Measure::BytesDown => true,
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

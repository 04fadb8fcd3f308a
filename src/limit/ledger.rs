//! All accounts of all limits: what has been used, in this process or, where
//! replicas share, in all of them.
//!
//! Memory is bounded for each kind of owner apart, so that whoever invents
//! source addresses takes no room from agents. Only what can be forgotten
//! without loss is forgotten; where nothing can, a new owner is refused.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use super::concurrency::{ConcurrencyLimit, InFlight};
use super::lease::Room;
use super::measure::{Amount, Limit, Owner, Per};
use super::quota::Quota;
use super::rate::{Allowance, Buckets, Throttled};
use super::shared::{Held, Shared};

/// When to come again where too many are open at once: nobody knows.
const A_MOMENT: Duration = Duration::from_secs(1);

/// All accounts.
#[derive(Debug)]
pub struct Ledger {
    rates: [Buckets<u128>; Per::COUNT],
    at_once: [ConcurrencyLimit<u128>; Per::COUNT],
    shared: Option<Arc<Shared>>,
    hashers: (RandomState, RandomState),
}

/// One owner under one limit.
#[derive(Clone, Debug)]
pub struct Account {
    pub(super) limit: Arc<Limit>,
    pub(super) owner: Owner,
    pub(super) key: u128,
}

/// Why something may not be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is used up, or there is no room for another owner.
    UsedUp(Throttled),
    /// Redis is away, and the limit denies what cannot be counted.
    Away,
    /// Redis is being asked; its answer is worth a moment. Only where the
    /// caller had patience.
    Wait,
}

/// A place among those at once; it counts until it is dropped.
#[derive(Debug)]
#[must_use = "it counts only while it is kept"]
pub struct PlaceHeld {
    _place: Place,
}

#[derive(Debug)]
enum Place {
    Here { _counted: InFlight<u128> },
    Shared { _held: Held },
}

impl Account {
    /// The limit.
    #[must_use]
    pub fn limit(&self) -> &Arc<Limit> {
        &self.limit
    }
}

impl Ledger {
    /// Remembers at most about `max_keys` owners of each kind, in this process.
    #[must_use]
    pub fn new(max_keys: usize) -> Self {
        Self {
            rates: std::array::from_fn(|_| Buckets::new(max_keys)),
            at_once: std::array::from_fn(|_| ConcurrencyLimit::new(max_keys)),
            shared: None,
            hashers: (RandomState::new(), RandomState::new()),
        }
    }

    /// The same, counted together with other replicas.
    #[must_use]
    pub fn sharing(mut self, shared: Arc<Shared>) -> Self {
        self.shared = Some(shared);
        self
    }

    /// What is shared, where anything is.
    #[must_use]
    pub fn shared(&self) -> Option<&Arc<Shared>> {
        self.shared.as_ref()
    }

    /// The account of an owner under a limit. The owner must be of the kind
    /// that the limit counts.
    #[must_use]
    pub fn account(&self, limit: &Arc<Limit>, owner: Owner) -> Account {
        // Two keyed hashes: nobody outside can make two owners collide.
        let high = self.hashers.0.hash_one((limit.id(), &owner));
        let low = self.hashers.1.hash_one((limit.id(), &owner));
        Account {
            limit: Arc::clone(limit),
            owner,
            key: u128::from(high) << 64 | u128::from(low),
        }
    }

    /// Takes units, all or none. A limit of things at once takes none.
    ///
    /// # Errors
    /// [`Refusal`], and then nothing is taken.
    pub fn take(
        &self,
        account: &Account,
        units: u64,
        patience: bool,
        now: Duration,
    ) -> Result<Allowance, Refusal> {
        let Amount::Over(quota) = account.limit.amount() else {
            return Ok(nothing_taken());
        };
        match &self.shared {
            Some(shared) => shared.take(account, &quota, units, patience, now),
            None => self
                .rates(account)
                .take(&account.key, &quota, units, now)
                .map_err(Refusal::UsedUp),
        }
    }

    /// Gives back what was taken and not used.
    pub fn put_back(&self, account: &Account, units: u64, now: Duration) {
        let Amount::Over(quota) = account.limit.amount() else {
            return;
        };
        match &self.shared {
            Some(shared) => shared.put_back(account, &quota, units),
            None => self
                .rates(account)
                .put_back(&account.key, &quota, units, now),
        }
    }

    /// How many units may be used at this moment, none of them taken.
    #[must_use]
    pub fn room(&self, account: &Account, now: Duration) -> Room {
        let Amount::Over(quota) = account.limit.amount() else {
            return Room::Units(u64::MAX);
        };
        match &self.shared {
            Some(shared) => shared.room(account, &quota, now),
            None => Room::Units(self.rates(account).left(&account.key, &quota, now)),
        }
    }

    /// Notes units that have been used.
    pub fn use_up(&self, account: &Account, units: u64, now: Duration) {
        let Amount::Over(quota) = account.limit.amount() else {
            return;
        };
        match &self.shared {
            Some(shared) => shared.use_up(account, &quota, units, now),
            None => self
                .rates(account)
                .charge_used(&account.key, &quota, units, now),
        }
    }

    /// Counts one more at once, until what is given is dropped. `None` for a
    /// limit over time.
    ///
    /// # Errors
    /// [`Refusal`], and then nothing is counted.
    pub fn enter(
        &self,
        account: &Account,
        patience: bool,
        now: Duration,
    ) -> Result<Option<PlaceHeld>, Refusal> {
        let Amount::AtOnce(most) = account.limit.amount() else {
            return Ok(None);
        };
        let place = match &self.shared {
            Some(shared) => shared
                .enter(account, most, patience, now)
                .map(|held| Place::Shared { _held: held }),
            None => self.at_once[account.limit.per().at()]
                .enter(&account.key, most)
                .map(|counted| Place::Here { _counted: counted })
                .map_err(|_| used_up(A_MOMENT)),
        };
        place.map(|place| Some(PlaceHeld { _place: place }))
    }

    fn rates(&self, account: &Account) -> &Buckets<u128> {
        &self.rates[account.limit.per().at()]
    }
}

pub(super) fn used_up(retry_after: Duration) -> Refusal {
    Refusal::UsedUp(Throttled {
        retry_after,
        remaining: 0,
    })
}

fn nothing_taken() -> Allowance {
    Allowance {
        remaining: u64::MAX,
        reset_after: Duration::ZERO,
    }
}

/// The window that a quota's burst comes back in, for header fields.
#[must_use]
pub fn window(quota: &Quota) -> Duration {
    super::rate::duration(quota.nanos_for(quota.burst()))
}

/// When those at once may have become fewer.
pub(super) const AT_ONCE_AGAIN: Duration = A_MOMENT;

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::num::NonZeroU32;

    use super::*;
    use crate::limit::{Measure, WhenAway};

    const SECOND: Duration = Duration::from_secs(1);

    fn limit(measure: Measure, per: Per, amount: Amount) -> Arc<Limit> {
        Arc::new(Limit::new("test", measure, per, amount, WhenAway::Local))
    }

    fn over(quota: &str) -> Amount {
        Amount::Over(Quota::parse(quota).expect(quota))
    }

    fn v4(number: u32) -> Owner {
        Owner::source(IpAddr::V4(Ipv4Addr::from_bits(number)))
    }

    #[test]
    fn a_million_sources_take_bounded_room_and_reset_nobody() {
        const MOST: usize = 10_000;
        let ledger = Ledger::new(MOST);
        let limit = limit(Measure::Requests, Per::Source, over("2/m"));
        let take = |owner| ledger.take(&ledger.account(&limit, owner), 1, false, SECOND);
        for _ in 0..2 {
            take(v4(0)).expect("the victim's own");
        }
        assert!(take(v4(0)).is_err());
        let passed = (1..=1_000_000).filter(|at| take(v4(*at)).is_ok()).count();
        let kept = ledger.rates[Per::Source.at()].len();
        assert!(kept <= MOST + 64, "{kept}");
        assert_eq!(
            passed + 1,
            kept,
            "new ones are refused where there is no room"
        );
        assert!(take(v4(0)).is_err(), "it is still remembered");
        // Agents have room of their own.
        let agents = self::limit(Measure::Requests, Per::Agent, over("2/m"));
        let agent = crate::egress::AgentId::parse("bot").expect("an agent");
        let account = ledger.account(&agents, Owner::Agent(None, agent));
        assert!(ledger.take(&account, 1, false, SECOND).is_ok());
        // What is full again makes room.
        let later = SECOND * 3600;
        let account = ledger.account(&limit, v4(2_000_000));
        assert!(ledger.take(&account, 1, false, later).is_ok());
        assert!(ledger.rates[Per::Source.at()].len() <= kept);
    }

    #[test]
    fn owners_are_told_apart_and_a_network_of_ipv6_is_one() {
        let ledger = Ledger::new(100);
        let limit = limit(Measure::Requests, Per::Source, over("1/m"));
        let key = |address: &str| {
            let address: IpAddr = address.parse().expect("an address");
            ledger.account(&limit, Owner::source(address)).key
        };
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        let other = self::limit(Measure::Requests, Per::Source, over("2/m"));
        let token = |tenant: &str| {
            let tenant = crate::egress::TenantId::parse(tenant).expect("a tenant");
            let agent = crate::egress::AgentId::parse("bot").expect("an agent");
            Owner::Token(Some(tenant), agent, None)
        };
        let per_token = self::limit(Measure::Requests, Per::Token, over("1/m"));
        let key = |owner: Owner| ledger.account(&per_token, owner).key;
        assert_ne!(
            key(token("acme")),
            key(token("globex")),
            "agents of one name in two tenants"
        );
        assert_ne!(token("acme").to_string(), token("globex").to_string());
        let source = Owner::source(Ipv6Addr::LOCALHOST.into());
        let of = |limit| ledger.account(limit, source.clone()).key;
        assert_ne!(of(&limit), of(&other), "another limit is another account");
    }

    #[test]
    fn places_count_while_they_are_kept() {
        let ledger = Ledger::new(100);
        let most = Amount::AtOnce(NonZeroU32::MIN);
        let limit = limit(Measure::Concurrent, Per::Source, most);
        let account = ledger.account(&limit, v4(1));
        let place = ledger.enter(&account, false, SECOND).expect("the first");
        assert!(ledger.enter(&account, false, SECOND).is_err());
        drop(place);
        assert!(ledger.enter(&account, false, SECOND).is_ok());
    }

    #[test]
    fn bytes_may_run_into_debt_and_then_nothing_is_left() {
        let ledger = Ledger::new(100);
        let limit = limit(Measure::BytesUp, Per::Source, over("1KiB/d"));
        let account = ledger.account(&limit, v4(1));
        assert_eq!(ledger.room(&account, SECOND), Room::Units(1024));
        ledger.use_up(&account, 1000, SECOND);
        assert_eq!(ledger.room(&account, SECOND), Room::Units(24));
        ledger.use_up(&account, 100, SECOND);
        assert_eq!(ledger.room(&account, SECOND), Room::Units(0));
        assert!(ledger.take(&account, 1, false, SECOND).is_err());
    }
}

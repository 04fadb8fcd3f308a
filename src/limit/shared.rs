//! The accounts that replicas share: leases and slots of this replica, and the
//! questions that are to be put to Redis. Nothing here waits or asks.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::lease::{Draw, Drawn, Lease, Room, Sight, Spent};
use super::ledger::{AT_ONCE_AGAIN, Account, Refusal, used_up};
use super::measure::{Amount, Limit, Owner, Per, WhenAway};
use super::quota::Quota;
use super::rate::Allowance;
use super::slots::{Entered, SetAside, Slots};

/// Accounts are spread over so many locks, for each kind of owner.
const SHARDS: usize = 16;
/// How long an account is not used before its lease is given back.
const IDLE: u128 = 2_000_000_000;

/// The accounts of this replica.
pub struct Shared {
    shards: Box<[Mutex<Shard>]>,
    per_shard: usize,
    queue: Mutex<Vec<(u128, Per)>>,
    connected: AtomicBool,
    replicas: AtomicU64,
    least_replicas: u64,
    wake: Box<dyn Fn() + Send + Sync>,
}

type Shard = HashMap<u128, Entry>;

struct Entry {
    limit: Arc<Limit>,
    owner: Owner,
    kind: Kind,
}

enum Kind {
    Rate(Quota, Lease),
    AtOnce(NonZeroU32, Slots),
}

/// A slot in use; it counts until it is dropped.
pub(super) struct Held {
    shared: Arc<Shared>,
    key: u128,
    per: Per,
}

/// A question to Redis about one account.
#[derive(Clone, Debug)]
pub struct Question {
    key: u128,
    per: Per,
    /// The account's name, the same in every replica.
    pub name: String,
    /// What is asked.
    pub what: What,
}

/// What is asked of Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Units of a quota.
    Draw(Quota, Draw),
    /// Slots, of at most so many in all replicas.
    SetAside(NonZeroU32, SetAside),
}

/// What Redis answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To a draw.
    Drawn(Drawn),
    /// To slots: how many this replica may have, as the others stand.
    Slots(u32),
    /// None, or an error.
    None,
}

impl Shared {
    /// Remembers at most about `max_keys` owners of each kind. There are at
    /// least `replicas`. `wake` is called when there is something to ask; it
    /// must not come back here.
    #[must_use]
    pub fn new(
        max_keys: usize,
        replicas: NonZeroU32,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            shards: std::iter::repeat_with(Mutex::default)
                .take(SHARDS * Per::COUNT)
                .collect(),
            per_shard: max_keys.div_ceil(SHARDS).max(1),
            queue: Mutex::default(),
            connected: AtomicBool::new(false),
            replicas: AtomicU64::new(u64::from(replicas.get())),
            least_replicas: u64::from(replicas.get()),
            wake: Box::new(wake),
        }
    }

    /// Whether Redis is there. `remembers` is whether it is the same one, with
    /// what it was told.
    pub fn redis_is(&self, connected: bool, remembers: bool, now: Duration) {
        let now = now.as_nanos();
        if connected && !remembers {
            self.each(|_, _, entry| match &mut entry.kind {
                Kind::Rate(quota, lease) => lease.forgotten(quota, now),
                Kind::AtOnce(_, slots) => slots.forgotten(),
            });
        }
        let before = self.connected.swap(connected, Ordering::Relaxed);
        if !connected && before {
            // Nobody answers what was asked.
            self.each(|_, _, entry| match &mut entry.kind {
                Kind::Rate(_, lease) => lease.unanswered(),
                Kind::AtOnce(_, slots) => slots.unanswered(),
            });
        }
        if connected && !before {
            // What was used in between is told at once.
            let mut due = Vec::new();
            let sight = self.sight();
            self.each(|key, per, entry| {
                let (is_due, queued) = match &mut entry.kind {
                    Kind::Rate(quota, lease) => {
                        (lease.is_due(quota, sight, now), &mut lease.queued)
                    }
                    Kind::AtOnce(_, slots) => (slots.held() > 0, &mut slots.queued),
                };
                if is_due && !*queued {
                    *queued = true;
                    due.push((key, per));
                }
            });
            lock(&self.queue).append(&mut due);
            (self.wake)();
        }
    }

    /// How many replicas were seen alive.
    pub fn replicas_are(&self, count: u64) {
        let count = count.max(self.least_replicas);
        self.replicas.store(count, Ordering::Relaxed);
    }

    /// Whether the accounts are counted together with the other replicas.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// How many replicas share, as far as is known.
    #[must_use]
    pub fn replicas(&self) -> u64 {
        self.replicas.load(Ordering::Relaxed)
    }

    /// What is to be asked now, at most so much.
    #[must_use]
    pub fn questions(&self, most: usize, now: Duration) -> Vec<Question> {
        let now = now.as_nanos();
        let sight = self.sight();
        let due: Vec<(u128, Per)> = {
            let mut queue = lock(&self.queue);
            let count = queue.len().min(most);
            queue.drain(..count).collect()
        };
        let ask = |(key, per): (u128, Per)| {
            let mut shard = self.shard(key, per);
            let entry = shard.get_mut(&key)?;
            let what = match &mut entry.kind {
                Kind::Rate(quota, lease) => {
                    lease.queued = false;
                    What::Draw(*quota, lease.ask(quota, sight, now)?)
                }
                Kind::AtOnce(most, slots) => {
                    slots.queued = false;
                    What::SetAside(*most, slots.ask(*most, sight, true, now)?)
                }
            };
            Some(entry.question(key, per, what))
        };
        due.into_iter().filter_map(ask).collect()
    }

    /// What is to be told now and then: leases that nobody uses go back, slots
    /// in use are renewed, and what can be forgotten is.
    #[must_use]
    pub fn upkeep(&self, now: Duration) -> Vec<Question> {
        let now = now.as_nanos();
        let sight = self.sight();
        let mut questions = Vec::new();
        for (at, shard) in self.shards.iter().enumerate() {
            let per = PERS[at / SHARDS];
            lock(shard).retain(|key, entry| {
                let what = match &mut entry.kind {
                    Kind::Rate(quota, lease) => {
                        if now.saturating_sub(lease.touched) < IDLE {
                            return true;
                        }
                        if lease.is_idle(now) {
                            return false;
                        }
                        lease
                            .give_back(sight, now)
                            .map(|draw| What::Draw(*quota, draw))
                    }
                    Kind::AtOnce(most, slots) => {
                        if slots.is_idle() {
                            return false;
                        }
                        slots
                            .ask(*most, sight, false, now)
                            .map(|aside| What::SetAside(*most, aside))
                    }
                };
                if let Some(what) = what {
                    questions.push(entry.question(*key, per, what));
                }
                true
            });
        }
        questions
    }

    /// Takes in what Redis answered.
    pub fn answered(&self, question: &Question, answer: Answer, now: Duration) {
        let now = now.as_nanos();
        let mut shard = self.shard(question.key, question.per);
        let Some(entry) = shard.get_mut(&question.key) else {
            return;
        };
        match (&mut entry.kind, question.what, answer) {
            (Kind::Rate(_, lease), What::Draw(_, draw), Answer::Drawn(drawn)) => {
                lease.answered(draw, drawn, now);
            }
            (Kind::AtOnce(_, slots), What::SetAside(_, asked), Answer::Slots(most)) => {
                slots.answered(asked, most, now);
            }
            (Kind::Rate(_, lease), ..) => lease.unanswered(),
            (Kind::AtOnce(_, slots), ..) => slots.unanswered(),
        }
    }

    pub(super) fn take(
        &self,
        account: &Account,
        quota: &Quota,
        units: u64,
        patience: bool,
        now: Duration,
    ) -> Result<Allowance, Refusal> {
        let how = (account.limit.when_away() == WhenAway::Deny, patience);
        let now = now.as_nanos();
        let spent = self.with_lease(account, quota, now, |lease, sight| {
            lease.take(quota, units, sight, how, now)
        });
        match spent {
            None => Err(used_up(window_of_one(quota))),
            Some(Spent::Yes(allowance)) => Ok(allowance),
            Some(Spent::No(throttled)) => Err(Refusal::UsedUp(throttled)),
            Some(Spent::Wait) => Err(Refusal::Wait),
            Some(Spent::Away) => Err(Refusal::Away),
        }
    }

    pub(super) fn put_back(&self, account: &Account, quota: &Quota, units: u64) {
        let mut shard = self.shard(account.key, account.limit.per());
        if let Some(Entry {
            kind: Kind::Rate(_, lease),
            ..
        }) = shard.get_mut(&account.key)
        {
            lease.put_back(quota, units);
        }
    }

    pub(super) fn room(&self, account: &Account, quota: &Quota, now: Duration) -> Room {
        let deny = account.limit.when_away() == WhenAway::Deny;
        let now = now.as_nanos();
        self.with_lease(account, quota, now, |lease, sight| {
            lease.room(quota, sight, deny, now)
        })
        .unwrap_or(Room::Units(0))
    }

    pub(super) fn use_up(&self, account: &Account, quota: &Quota, units: u64, now: Duration) {
        let now = now.as_nanos();
        self.with_lease(account, quota, now, |lease, sight| {
            lease.use_up(quota, units, sight, now);
        });
    }

    pub(super) fn enter(
        self: &Arc<Self>,
        account: &Account,
        most: NonZeroU32,
        patience: bool,
        now: Duration,
    ) -> Result<Held, Refusal> {
        let how = (account.limit.when_away() == WhenAway::Deny, patience);
        let now = now.as_nanos();
        let per = account.limit.per();
        let sight = self.sight();
        let mut shard = self.shard(account.key, per);
        if !shard.contains_key(&account.key) {
            if !self.has_room(&mut shard, now) {
                return Err(used_up(AT_ONCE_AGAIN));
            }
            shard.insert(account.key, Entry::of(account));
        }
        let Some(Entry {
            kind: Kind::AtOnce(_, slots),
            ..
        }) = shard.get_mut(&account.key)
        else {
            return Err(used_up(AT_ONCE_AGAIN));
        };
        let entered = slots.enter(most, sight, how, now);
        if slots.is_due(sight, now) && !slots.queued {
            slots.queued = true;
            lock(&self.queue).push((account.key, per));
            (self.wake)();
        }
        match entered {
            Entered::Yes => Ok(Held {
                shared: Arc::clone(self),
                key: account.key,
                per,
            }),
            Entered::No => Err(used_up(AT_ONCE_AGAIN)),
            Entered::Wait => Err(Refusal::Wait),
            Entered::Away => Err(Refusal::Away),
        }
    }

    /// Does something with the lease of an account, and puts the account in
    /// the queue where a question is due. `None` where there is no room for
    /// another account.
    fn with_lease<T>(
        &self,
        account: &Account,
        quota: &Quota,
        now: u128,
        act: impl FnOnce(&mut Lease, Sight) -> T,
    ) -> Option<T> {
        let per = account.limit.per();
        let sight = self.sight();
        let mut shard = self.shard(account.key, per);
        if !shard.contains_key(&account.key) {
            if !self.has_room(&mut shard, now) {
                return None;
            }
            shard.insert(account.key, Entry::of(account));
        }
        let Some(Entry {
            kind: Kind::Rate(_, lease),
            ..
        }) = shard.get_mut(&account.key)
        else {
            return None;
        };
        let result = act(lease, sight);
        if lease.is_due(quota, sight, now) && !lease.queued {
            lease.queued = true;
            lock(&self.queue).push((account.key, per));
            (self.wake)();
        }
        Some(result)
    }

    fn has_room(&self, shard: &mut Shard, now: u128) -> bool {
        if shard.len() < self.per_shard {
            return true;
        }
        // `upkeep` sweeps every second; between two sweeps only a full shard
        // of which something is idle is worth a walk, and it stops at once.
        let idle = shard
            .iter()
            .take(64)
            .find(|(_, entry)| match &entry.kind {
                Kind::Rate(_, lease) => lease.is_idle(now),
                Kind::AtOnce(_, slots) => slots.is_idle(),
            })
            .map(|(key, _)| *key);
        idle.is_some_and(|key| shard.remove(&key).is_some())
    }

    fn sight(&self) -> Sight {
        Sight {
            connected: self.connected.load(Ordering::Relaxed),
            replicas: self.replicas(),
        }
    }

    fn each(&self, mut see: impl FnMut(u128, Per, &mut Entry)) {
        for (at, shard) in self.shards.iter().enumerate() {
            for (key, entry) in lock(shard).iter_mut() {
                see(*key, PERS[at / SHARDS], entry);
            }
        }
    }

    fn shard(&self, key: u128, per: Per) -> MutexGuard<'_, Shard> {
        // The remainder is less than the number of shards.
        let at = usize::try_from(key % SHARDS as u128).unwrap_or(0);
        lock(&self.shards[per.at() * SHARDS + at])
    }
}

/// In the order of [`Per::at`].
const PERS: [Per; Per::COUNT] = [
    Per::Agent,
    Per::Tenant,
    Per::Token,
    Per::Destination,
    Per::Source,
];

impl Entry {
    fn of(account: &Account) -> Self {
        Self {
            limit: Arc::clone(&account.limit),
            owner: account.owner.clone(),
            kind: match account.limit.amount() {
                Amount::Over(quota) => Kind::Rate(quota, Lease::default()),
                Amount::AtOnce(most) => Kind::AtOnce(most, Slots::default()),
            },
        }
    }

    fn question(&self, key: u128, per: Per, what: What) -> Question {
        Question {
            key,
            per,
            name: format!(
                "{}:{}:{}:{}",
                self.limit.name(),
                self.limit.measure().as_str(),
                self.limit.amount(),
                self.owner
            ),
            what,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut shard = self.shared.shard(self.key, self.per);
        if let Some(Entry {
            kind: Kind::AtOnce(_, slots),
            ..
        }) = shard.get_mut(&self.key)
        {
            slots.leave();
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("connected", &self.connected)
            .field("replicas", &self.replicas)
            .finish_non_exhaustive()
    }
}

fn window_of_one(quota: &Quota) -> Duration {
    super::rate::duration(quota.nanos_for(1))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Rates: the generic cell rate algorithm (ITU-T I.371), which is a token
//! bucket that keeps one number per key and needs no clock of its own.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::quota::Quota;

/// Keys are spread over so many locks.
const SHARDS: usize = 32;

/// A full shard in which all keys are busy is walked again only after so many
/// refusals, so that a flood of new keys costs little each,
const SWEEP_AFTER: usize = 64;
/// or after so many nanoseconds.
const SWEEP_EVERY: u128 = 1_000_000_000;

/// Holds every key to one quota.
#[derive(Debug)]
pub struct RateLimiter<K> {
    quota: Quota,
    buckets: Buckets<K>,
}

impl<K: Eq + Hash + Clone> RateLimiter<K> {
    /// Remembers at most about `max_keys` keys, 32 at least. A key whose bucket
    /// is full is forgotten without loss; where none is, a new key is refused.
    #[must_use]
    pub fn new(quota: Quota, max_keys: usize) -> Self {
        Self {
            quota,
            buckets: Buckets::new(max_keys),
        }
    }

    /// The quota.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Takes one unit.
    ///
    /// # Errors
    /// [`Throttled`], and then nothing is taken.
    pub fn check(&self, key: &K, now: Duration) -> Result<Allowance, Throttled> {
        self.buckets.take(key, &self.quota, 1, now)
    }

    /// Whether one unit would pass, without taking it.
    ///
    /// # Errors
    /// [`Throttled`], where it would not.
    pub fn would_pass(&self, key: &K, now: Duration) -> Result<(), Throttled> {
        self.buckets.would_pass(key, &self.quota, now)
    }

    /// Takes units that have been used already, though they make a debt: the
    /// key is refused until it is paid.
    pub fn charge_used(&self, key: &K, units: u64, now: Duration) {
        self.buckets.charge_used(key, &self.quota, units, now);
    }
}

/// Holds every key to the quota that is named with it, always the same one.
/// Time is what the caller says: any clock that does not go back, counted from
/// any moment. It is kept in whole nanoseconds, rounded so that nobody gets
/// more than the quota.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    keys_per_shard: usize,
    shards: Box<[Mutex<Shard<K>>]>,
    hasher: RandomState,
}

/// Leave to go on, and what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Units that may still pass at once.
    pub remaining: u64,
    /// Until the whole burst is there again.
    pub reset_after: Duration,
}

/// Refused for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("over the quota; retry after {retry_after:?}")]
pub struct Throttled {
    /// When as much as was asked for will pass, if nothing else does before.
    pub retry_after: Duration,
    /// Units that may still pass at once: fewer than were asked for.
    pub remaining: u64,
}

#[derive(Debug)]
struct Shard<K> {
    /// By key, the moment in nanoseconds at which its bucket is full again.
    full_at: HashMap<K, u128, RandomState>,
    /// Insertions refused since the shard was last swept.
    refused_since_sweep: usize,
    /// When that was.
    swept_at: u128,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Remembers at most about `max_keys` keys, 32 at least. A key whose bucket
    /// is full is forgotten without loss; where none is, a new key is refused.
    #[must_use]
    pub(super) fn new(max_keys: usize) -> Self {
        let shard = || {
            Mutex::new(Shard {
                full_at: HashMap::default(),
                refused_since_sweep: SWEEP_AFTER,
                swept_at: 0,
            })
        };
        Self {
            keys_per_shard: max_keys.div_ceil(SHARDS).max(1),
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            hasher: RandomState::new(),
        }
    }

    /// Takes so many units, all or none. More than the burst never pass.
    ///
    /// # Errors
    /// [`Throttled`], and then nothing is taken.
    pub(super) fn take(
        &self,
        key: &K,
        quota: &Quota,
        units: u64,
        now: Duration,
    ) -> Result<Allowance, Throttled>
    where
        K: Clone,
    {
        let now = now.as_nanos();
        let mut shard = self.shard(key);
        if let Some(full_at) = shard.full_at.get_mut(key) {
            let (next, allowance) = charge(quota, *full_at, units, now)?;
            *full_at = next;
            return Ok(allowance);
        }
        let (next, allowance) = charge(quota, now, units, now)?;
        if shard.full_at.len() >= self.keys_per_shard {
            shard.make_room(self.keys_per_shard, now, quota)?;
        }
        shard.full_at.insert(key.clone(), next);
        Ok(allowance)
    }

    /// Gives back what was taken and not used.
    pub(super) fn put_back(&self, key: &K, quota: &Quota, units: u64, now: Duration) {
        let mut shard = self.shard(key);
        if let Some(full_at) = shard.full_at.get_mut(key) {
            *full_at = full_at.saturating_sub(quota.nanos_for(units));
            if *full_at <= now.as_nanos() {
                shard.full_at.remove(key);
            }
        }
    }

    /// What would still pass, without taking any. Nothing for a new key for
    /// which there is no room.
    #[must_use]
    pub(super) fn left(&self, key: &K, quota: &Quota, now: Duration) -> u64 {
        let now = now.as_nanos();
        let mut shard = self.shard(key);
        match shard.full_at.get(key) {
            Some(full_at) => left(quota, *full_at, now),
            None if shard.full_at.len() < self.keys_per_shard => quota.burst(),
            None => match shard.make_room(self.keys_per_shard, now, quota) {
                Ok(()) => quota.burst(),
                Err(_) => 0,
            },
        }
    }

    /// Whether one unit would pass, without taking it. None does for a new key
    /// for which there is no room.
    ///
    /// # Errors
    /// [`Throttled`], where it would not.
    pub(super) fn would_pass(
        &self,
        key: &K,
        quota: &Quota,
        now: Duration,
    ) -> Result<(), Throttled> {
        let now = now.as_nanos();
        let mut shard = self.shard(key);
        match shard.full_at.get(key) {
            Some(full_at) => charge(quota, *full_at, 1, now).map(drop),
            None if shard.full_at.len() < self.keys_per_shard => Ok(()),
            None => shard.make_room(self.keys_per_shard, now, quota),
        }
    }

    /// Takes units that have been used already, as bytes are, though they make
    /// a debt: the key is refused until it is paid. A new key for which there
    /// is no room is not charged; [`Self::take`] and [`Self::left`] refuse it.
    pub(super) fn charge_used(&self, key: &K, quota: &Quota, units: u64, now: Duration)
    where
        K: Clone,
    {
        let now = now.as_nanos();
        let cost = quota.nanos_for(units);
        let mut shard = self.shard(key);
        let room = shard.full_at.len() < self.keys_per_shard;
        if let Some(full_at) = shard.full_at.get_mut(key) {
            *full_at = (*full_at).max(now).saturating_add(cost);
        } else if room || shard.make_room(self.keys_per_shard, now, quota).is_ok() {
            shard.full_at.insert(key.clone(), now.saturating_add(cost));
        }
    }

    /// How many keys are remembered.
    #[cfg(test)]
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| lock(shard).full_at.len())
            .sum()
    }

    /// Whether no key is remembered.
    #[cfg(test)]
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K>> {
        let hash = self.hasher.hash_one(key);
        // The remainder is less than the number of shards.
        let at = usize::try_from(hash % SHARDS as u64).unwrap_or(0);
        lock(&self.shards[at])
    }
}

impl<K: Eq + Hash> Shard<K> {
    /// Forgets the keys whose buckets are full, where there is need.
    fn make_room(&mut self, most: usize, now: u128, quota: &Quota) -> Result<(), Throttled> {
        // While all were busy a moment ago, do not walk them for every request
        // of a flood.
        self.refused_since_sweep += 1;
        let long_ago = now.saturating_sub(self.swept_at) >= SWEEP_EVERY;
        if self.refused_since_sweep >= SWEEP_AFTER || long_ago {
            self.refused_since_sweep = 0;
            self.swept_at = now;
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        if self.full_at.len() < most {
            self.refused_since_sweep = SWEEP_AFTER;
            return Ok(());
        }
        Err(Throttled {
            retry_after: duration(quota.nanos_for(1)),
            remaining: 0,
        })
    }
}

/// When the bucket is full after taking so many units, or how long until they
/// are there.
pub(super) fn charge(
    quota: &Quota,
    full_at: u128,
    units: u64,
    now: u128,
) -> Result<(u128, Allowance), Throttled> {
    let burst = quota.nanos_for(quota.burst());
    let debt = full_at.saturating_sub(now);
    let next = debt + quota.nanos_for(units);
    if next > burst {
        return Err(Throttled {
            retry_after: duration(next - burst),
            remaining: quota.units_in(burst.saturating_sub(debt)),
        });
    }
    let allowance = Allowance {
        remaining: quota.units_in(burst - next),
        reset_after: duration(next),
    };
    Ok((now + next, allowance))
}

/// How many units a bucket still gives that is full at `full_at`.
pub(super) fn left(quota: &Quota, full_at: u128, now: u128) -> u64 {
    let burst = quota.nanos_for(quota.burst());
    quota.units_in(burst.saturating_sub(full_at.saturating_sub(now)))
}

fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds the lock, and numbers are never half set.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn duration(nanos: u128) -> Duration {
    let seconds = nanos / 1_000_000_000;
    match u64::try_from(seconds) {
        Ok(seconds) => Duration::new(seconds, u32::try_from(nanos % 1_000_000_000).unwrap_or(0)),
        Err(_) => Duration::MAX,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A limiter and the one quota that is held here.
    struct Held(Buckets<u32>, Quota);

    impl Held {
        fn check(&self, key: &u32, now: Duration) -> Result<Allowance, Throttled> {
            self.take(key, 1, now)
        }

        fn take(&self, key: &u32, units: u64, now: Duration) -> Result<Allowance, Throttled> {
            self.0.take(key, &self.1, units, now)
        }

        fn charge_used(&self, key: &u32, units: u64, now: Duration) {
            self.0.charge_used(key, &self.1, units, now);
        }
    }

    fn limiter(quota: &str, keys: usize) -> Held {
        Held(Buckets::new(keys), Quota::parse(quota).expect(quota))
    }

    #[test]
    fn what_is_put_back_can_be_taken_again_and_no_more() {
        let limiter = limiter("10/s burst 3", 100);
        for _ in 0..3 {
            assert!(limiter.check(&1, SECOND).is_ok());
        }
        assert_eq!(limiter.0.left(&1, &limiter.1, SECOND), 0);
        limiter.0.put_back(&1, &limiter.1, 2, SECOND);
        assert_eq!(limiter.0.left(&1, &limiter.1, SECOND), 2);
        limiter.0.put_back(&1, &limiter.1, 9, SECOND);
        assert!(limiter.0.is_empty(), "a full bucket is not kept");
        assert_eq!(limiter.0.left(&1, &limiter.1, SECOND), 3);
    }

    #[test]
    fn a_burst_passes_and_comes_back_one_by_one() {
        let limiter = limiter("10/s burst 2", 100);
        let at = |millis| limiter.check(&1, Duration::from_millis(millis));
        let left = |allowance: Result<Allowance, Throttled>| allowance.map(|a| a.remaining);
        assert_eq!(left(at(0)), Ok(1));
        assert_eq!(left(at(0)), Ok(0));
        let throttled = Throttled {
            retry_after: Duration::from_millis(100),
            remaining: 0,
        };
        assert_eq!(at(0), Err(throttled));
        assert_eq!(
            at(99).map_err(|t| t.retry_after),
            Err(Duration::from_millis(1))
        );
        assert_eq!(left(at(100)), Ok(0));
        assert_eq!(left(at(10_000)), Ok(1));
        assert_eq!(
            left(limiter.check(&2, Duration::ZERO)),
            Ok(1),
            "another key"
        );
    }

    #[test]
    fn more_than_the_burst_never_passes_and_takes_nothing() {
        let limiter = limiter("10/s", 100);
        assert!(limiter.take(&1, 11, SECOND).is_err());
        assert!(limiter.0.is_empty());
        assert_eq!(limiter.take(&1, 10, SECOND).map(|a| a.remaining), Ok(0));
    }

    #[test]
    fn what_was_used_already_is_paid_back_first() {
        let limiter = limiter("100/s", 100);
        limiter.charge_used(&1, 300, SECOND);
        assert_eq!(
            limiter.check(&1, SECOND).map_err(|t| t.retry_after),
            Err(Duration::from_millis(2010))
        );
        assert!(
            limiter
                .check(&1, SECOND + Duration::from_millis(2010))
                .is_ok()
        );
    }

    #[test]
    fn the_largest_quotas_do_not_overflow() {
        for raw in ["1048576Gi/d", "1/d burst 1048576Gi", "1048576Gi/s"] {
            let limiter = limiter(raw, 100);
            let all = limiter.1.burst();
            let far = Duration::from_secs(u64::MAX / 4);
            assert_eq!(
                limiter.take(&1, all, far).map(|a| a.remaining),
                Ok(0),
                "{raw}"
            );
            limiter.charge_used(&1, u64::MAX, far);
            assert!(limiter.check(&1, far).is_err(), "{raw}");
        }
    }

    #[test]
    fn keys_are_bounded_and_busy_ones_are_never_forgotten() {
        let limiter = limiter("1/s", SHARDS * 4);
        let taken = (0..10_000)
            .filter(|key| limiter.check(key, SECOND).is_ok())
            .count();
        assert_eq!(taken, limiter.0.len());
        assert_eq!(limiter.0.len(), SHARDS * 4, "new keys are refused");
        for key in 0..10_000 {
            assert!(limiter.check(&key, SECOND).is_err(), "no key passes twice");
        }
        // Once full again they make room.
        let later = SECOND * 2;
        let mut passed = 0;
        for key in 10_000..30_000 {
            passed += usize::from(limiter.check(&key, later).is_ok());
        }
        assert_eq!(passed, SHARDS * 4);
        assert_eq!(limiter.0.len(), SHARDS * 4);
    }

    /// A token bucket, slow and obvious: it counts parts of a unit as fractions
    /// of the period.
    struct Bucket {
        quota: Quota,
        parts: u128,
        at: u128,
    }

    impl Bucket {
        fn take(&mut self, units: u64, now: u128) -> bool {
            let whole = self.quota.period().as_nanos();
            let most = u128::from(self.quota.burst()) * whole;
            let came = (now - self.at) * u128::from(self.quota.count());
            self.parts = most.min(self.parts + came);
            self.at = now;
            let cost = u128::from(units) * whole;
            if cost > self.parts {
                return false;
            }
            self.parts -= cost;
            true
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn it_is_a_token_bucket(
            count in prop::sample::select(vec![1u64, 2, 4, 5, 10, 100, 1000]),
            burst in 1u64..50,
            steps in prop::collection::vec((0u64..2_000, 1u64..8), 1..200),
        ) {
            // Counts that divide a second, so that neither rounds.
            let quota = Quota::new(count, SECOND, burst).expect("a quota");
            let limiter = Held(Buckets::new(100), quota);
            let mut bucket = Bucket { quota, parts: u128::from(burst) * SECOND.as_nanos(), at: 0 };
            let mut now = Duration::ZERO;
            for (wait, units) in steps {
                now += Duration::from_millis(wait);
                let expected = bucket.take(units, now.as_nanos());
                let got = limiter.take(&1, units, now);
                prop_assert_eq!(got.is_ok(), expected);
                let left = u64::try_from(bucket.parts / SECOND.as_nanos()).expect("few");
                match got {
                    Ok(allowance) => prop_assert_eq!(allowance.remaining, left),
                    Err(throttled) => {
                        prop_assert_eq!(throttled.remaining, left);
                        if units <= burst {
                            // Then, and not a nanosecond before.
                            let then = now + throttled.retry_after;
                            let before = then - Duration::from_nanos(1);
                            prop_assert!(limiter.take(&1, units, before).is_err());
                        }
                    }
                }
            }
        }

        #[test]
        fn no_quota_gives_more_than_it_says(
            count in 1u64..10_000,
            period in 1u64..100_000,
            burst in 1u64..1000,
            steps in prop::collection::vec(0u64..50_000, 1..300),
        ) {
            let quota = Quota::new(count, Duration::from_nanos(period), burst).expect("a quota");
            let limiter = Held(Buckets::new(100), quota);
            let mut bucket = Bucket { quota, parts: u128::from(burst) * u128::from(period), at: 0 };
            let mut now = Duration::ZERO;
            for wait in steps {
                now += Duration::from_nanos(wait);
                let passed = limiter.check(&1, now).is_ok();
                // What passes the limiter passes the bucket, which is never
                // emptier; what does not leaves it alone.
                prop_assert!(!passed || bucket.take(1, now.as_nanos()));
            }
        }
    }
}

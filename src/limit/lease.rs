//! One account that replicas share: what this replica has leased of it, and
//! how it does without an answer. Judges only; asking is `adapters`' business.
//!
//! Redis holds the one true bucket. A replica leases units of it in batches
//! and spends them without asking. Where it has none left and does not know
//! that there are none, it goes on up to one batch on credit, which it reports
//! with its next question: so what all replicas together let pass is at most
//! the quota and one batch for each of them, and what is over is paid back.

use super::quota::Quota;
use super::rate::{charge, duration, left};
use super::{Allowance, Throttled};

/// A batch is this part of the burst, divided among the replicas.
const PARTS: u64 = 10;
/// A question that has waited so long, in nanoseconds, counts as unanswered.
const PATIENCE: u128 = 100_000_000;

/// What one replica holds of a shared account. Times are nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// Units that Redis has given and nobody has used.
    have: u64,
    /// Units used that Redis has not been told of.
    owed: u64,
    /// When the question under way was put, and what of `owed` it reports.
    asked: Option<(u128, u64)>,
    /// Until then Redis has none.
    blocked_until: u128,
    /// What Redis had left at its last answer.
    left: u64,
    /// The bucket of this replica's own use, held to the whole quota: what is
    /// told to a Redis that has forgotten everything.
    own: u128,
    /// The bucket of the fair share, while Redis is away.
    share: Option<u128>,
    /// When it was last used.
    pub(super) touched: u128,
    /// Whether it stands in the queue of those that ask.
    pub(super) queued: bool,
}

/// How Redis and the other replicas are, at this moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    pub(super) connected: bool,
    pub(super) replicas: u64,
}

/// A question to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Units that are used already and must be charged, though there were none.
    pub used: u64,
    /// Units that are wanted.
    pub want: u64,
    /// Units that are given back.
    pub back: u64,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// Units of those that were wanted.
    pub granted: u64,
    /// Units that are left to others.
    pub left: u64,
    /// In nanoseconds, until there is a unit again; 0 where there is one.
    pub wait: u128,
}

/// What came of trying to spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spent {
    /// It may pass.
    Yes(Allowance),
    /// The quota is used up.
    No(Throttled),
    /// Redis is being asked: its answer is worth a moment.
    Wait,
    /// Redis is away, and what cannot be counted is refused.
    Away,
}

/// What may be used at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// So many units; 0 where the quota is used up.
    Units(u64),
    /// Redis is being asked: try again in a moment.
    Later,
}

/// How many units are leased at once.
pub(super) fn batch(quota: &Quota, replicas: u64) -> u64 {
    (quota.burst() / PARTS / replicas.max(1)).max(1)
}

impl Lease {
    /// Whether Redis can be relied on for this account.
    fn is_away(&self, sight: Sight, now: u128) -> bool {
        !sight.connected
            || self
                .asked
                .is_some_and(|(at, _)| now.saturating_sub(at) > PATIENCE)
    }

    /// Takes units, all or none. `deny` is for a Redis that is away; without
    /// `patience` the fair share stands in for an answer that is not there yet.
    pub(super) fn take(
        &mut self,
        quota: &Quota,
        units: u64,
        sight: Sight,
        (deny, patience): (bool, bool),
        now: u128,
    ) -> Spent {
        self.touched = now;
        let leased = units.min(self.have);
        let lent = units - leased;
        if lent > 0 {
            if self.is_away(sight, now) {
                if deny {
                    return Spent::Away;
                }
                return self.take_share(quota, units, sight.replicas, now);
            }
            if now < self.blocked_until {
                return Spent::No(Throttled {
                    retry_after: duration(self.blocked_until - now),
                    remaining: self.have,
                });
            }
            if lent > self.credit(quota, sight.replicas) {
                return match (patience, deny) {
                    (true, _) => Spent::Wait,
                    (false, true) => Spent::Away,
                    (false, false) => self.take_share(quota, units, sight.replicas, now),
                };
            }
        }
        self.have -= leased;
        self.owed += lent;
        self.note_own(quota, units, now);
        Spent::Yes(self.standing(quota, now))
    }

    /// How many units may be used at this moment.
    pub(super) fn room(&mut self, quota: &Quota, sight: Sight, deny: bool, now: u128) -> Room {
        self.touched = now;
        if self.have > 0 {
            return Room::Units(self.have);
        }
        if self.is_away(sight, now) {
            if deny {
                return Room::Units(0);
            }
            let (share, at) = self.share_of(quota, sight.replicas, now);
            return Room::Units(left(&share, at, now));
        }
        if now < self.blocked_until {
            return Room::Units(0);
        }
        match self.credit(quota, sight.replicas) {
            0 => Room::Later,
            credit => Room::Units(credit),
        }
    }

    /// Notes units that have been used, though there were none.
    pub(super) fn use_up(&mut self, quota: &Quota, units: u64, sight: Sight, now: u128) {
        self.touched = now;
        let leased = units.min(self.have);
        self.have -= leased;
        if leased < units {
            self.owed += units - leased;
            if self.is_away(sight, now) {
                let (share, at) = self.share_of(quota, sight.replicas, now);
                self.share = Some(at.max(now) + share.nanos_for(units - leased));
            }
        }
        self.note_own(quota, units, now);
    }

    /// Gives back what was taken and not used.
    pub(super) fn put_back(&mut self, quota: &Quota, units: u64) {
        let owed = units.min(self.owed - self.reported());
        self.owed -= owed;
        self.have += units - owed;
        self.own = self.own.saturating_sub(quota.nanos_for(units));
        if let Some(share) = &mut self.share {
            *share = share.saturating_sub(quota.nanos_for(units));
        }
    }

    /// What there is, as far as this replica knows.
    pub(super) fn standing(&self, quota: &Quota, now: u128) -> Allowance {
        let own = self.own.saturating_sub(now);
        Allowance {
            remaining: (self.have + self.left).min(quota.burst()),
            reset_after: duration(own),
        }
    }

    /// The question that is due, where one is. It is then under way.
    pub(super) fn ask(&mut self, quota: &Quota, sight: Sight, now: u128) -> Option<Draw> {
        if !sight.connected || self.asked.is_some() {
            return None;
        }
        let batch = batch(quota, sight.replicas);
        let low = self.have < batch.div_ceil(2);
        // A large debt is told before more is asked for: others have theirs to
        // tell as well.
        let want = if low && now >= self.blocked_until && self.owed <= batch {
            batch
        } else {
            0
        };
        (want > 0 || self.owed > 0).then(|| {
            self.asked = Some((now, self.owed));
            Draw {
                used: self.owed,
                want,
                back: 0,
            }
        })
    }

    /// Whether [`Lease::ask`] would have something to ask.
    pub(super) fn is_due(&self, quota: &Quota, sight: Sight, now: u128) -> bool {
        let low = self.have < batch(quota, sight.replicas).div_ceil(2);
        sight.connected
            && self.asked.is_none()
            && (self.owed > 0 || (low && now >= self.blocked_until))
    }

    /// What is not needed any more, once nobody has used the account for a
    /// while.
    pub(super) fn give_back(&mut self, sight: Sight, now: u128) -> Option<Draw> {
        if !sight.connected || self.asked.is_some() || (self.have == 0 && self.owed == 0) {
            return None;
        }
        let draw = Draw {
            used: self.owed,
            want: 0,
            back: self.have,
        };
        self.have = 0;
        self.asked = Some((now, self.owed));
        Some(draw)
    }

    /// Whether it can be forgotten without loss.
    pub(super) fn is_idle(&self, now: u128) -> bool {
        self.have == 0
            && self.owed == 0
            && self.asked.is_none()
            && self.own <= now
            && self.blocked_until <= now
            && self.share.is_none_or(|share| share <= now)
    }

    pub(super) fn answered(&mut self, draw: Draw, drawn: Drawn, now: u128) {
        self.owed = self.owed.saturating_sub(draw.used);
        self.asked = None;
        self.share = None;
        self.have += drawn.granted;
        self.left = drawn.left;
        let short = draw.want > 0 && drawn.granted < draw.want;
        self.blocked_until = if drawn.wait > 0 && (short || drawn.left == 0) {
            now + drawn.wait
        } else {
            0
        };
    }

    /// No answer came, or an error. What was used stays owed; what was given
    /// back is lost to this replica.
    pub(super) fn unanswered(&mut self) {
        self.asked = None;
    }

    /// Redis has forgotten everything: what this replica has used of late is
    /// owed to the new memory, and nothing is leased.
    pub(super) fn forgotten(&mut self, quota: &Quota, now: u128) {
        let debt = self.own.saturating_sub(now);
        self.owed = quota.units_in(debt).max(self.owed.min(quota.burst()));
        self.have = 0;
        self.asked = None;
        self.blocked_until = 0;
    }

    fn reported(&self) -> u64 {
        self.asked.map_or(0, |(_, owed)| owed)
    }

    fn credit(&self, quota: &Quota, replicas: u64) -> u64 {
        batch(quota, replicas).saturating_sub(self.owed)
    }

    fn note_own(&mut self, quota: &Quota, units: u64, now: u128) {
        self.own = self.own.max(now).saturating_add(quota.nanos_for(units));
    }

    fn take_share(&mut self, quota: &Quota, units: u64, replicas: u64, now: u128) -> Spent {
        let (share, at) = self.share_of(quota, replicas, now);
        match charge(&share, at, units, now) {
            Ok((next, allowance)) => {
                self.share = Some(next);
                self.owed += units;
                self.note_own(quota, units, now);
                Spent::Yes(allowance)
            }
            Err(throttled) => Spent::No(throttled),
        }
    }

    /// The fair share of the quota, and when its bucket is full: it begins with
    /// what this replica has used already.
    fn share_of(&self, quota: &Quota, replicas: u64, now: u128) -> (Quota, u128) {
        let share = quota.share(replicas);
        let at = self.share.unwrap_or_else(|| {
            let used = quota.units_in(self.own.saturating_sub(now));
            now + share.nanos_for(used.min(share.burst()))
        });
        (share, at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MILLI: u128 = 1_000_000;

    /// What Redis does, slow and obvious.
    #[derive(Default)]
    struct Bucket {
        full: u128,
    }

    impl Bucket {
        fn draw(&mut self, quota: &Quota, draw: Draw, now: u128) -> Drawn {
            let cost = |units| quota.nanos_for(units);
            self.full = self.full.max(now) + cost(draw.used);
            self.full = self.full.saturating_sub(cost(draw.back)).max(now);
            let room = left(quota, self.full, now);
            let granted = draw.want.min(room);
            self.full += cost(granted);
            let burst = cost(quota.burst());
            Drawn {
                granted,
                left: room - granted,
                wait: (self.full - now + cost(1)).saturating_sub(burst),
            }
        }
    }

    fn quota(raw: &str) -> Quota {
        Quota::parse(raw).expect(raw)
    }

    const UP: Sight = Sight {
        connected: true,
        replicas: 2,
    };
    const DOWN: Sight = Sight {
        connected: false,
        replicas: 2,
    };

    #[test]
    fn a_batch_is_spent_without_asking() {
        let (quota, mut lease) = (quota("100/s"), Lease::default());
        let take = |lease: &mut Lease, at| lease.take(&quota, 1, UP, (false, false), at);
        assert!(matches!(take(&mut lease, 0), Spent::Yes(_)), "on credit");
        let draw = lease.ask(&quota, UP, 0).expect("a question");
        assert_eq!((draw.used, draw.want), (1, 5));
        assert_eq!(lease.ask(&quota, UP, 0), None, "one at a time");
        let drawn = Drawn {
            granted: 5,
            left: 94,
            wait: 0,
        };
        lease.answered(draw, drawn, MILLI);
        for _ in 0..2 {
            assert!(matches!(take(&mut lease, MILLI), Spent::Yes(_)));
            assert_eq!(lease.ask(&quota, UP, MILLI), None, "there is enough");
        }
        assert!(matches!(take(&mut lease, MILLI), Spent::Yes(_)));
        assert!(lease.ask(&quota, UP, MILLI).is_some(), "half is gone");
    }

    #[test]
    fn what_redis_has_not_is_refused_until_it_has() {
        let (quota, mut lease) = (quota("10/s"), Lease::default());
        let take = |lease: &mut Lease, at| lease.take(&quota, 1, UP, (false, false), at);
        assert!(matches!(take(&mut lease, 0), Spent::Yes(_)));
        let draw = lease.ask(&quota, UP, 0).expect("a question");
        let drawn = Drawn {
            granted: 0,
            left: 0,
            wait: 50 * MILLI,
        };
        lease.answered(draw, drawn, 0);
        let Spent::No(throttled) = take(&mut lease, 10 * MILLI) else {
            panic!("it is used up");
        };
        assert_eq!(throttled.retry_after.as_millis(), 40);
        assert!(matches!(take(&mut lease, 51 * MILLI), Spent::Yes(_)));
    }

    #[test]
    fn without_redis_each_has_its_share_or_nothing() {
        let (quota, mut lease) = (quota("10/m"), Lease::default());
        let mut take = |deny| lease.take(&quota, 1, DOWN, (deny, true), 0);
        assert_eq!(take(true), Spent::Away);
        let passed = (0..20).filter(|_| matches!(take(false), Spent::Yes(_)));
        assert_eq!(passed.count(), 5, "half of ten");
        // What was used is told when Redis is back.
        let draw = lease.ask(&quota, UP, 0).expect("a question");
        assert_eq!(draw.used, 5);
    }

    #[test]
    fn an_answer_that_does_not_come_is_a_redis_that_is_away() {
        let (quota, mut lease) = (quota("100/m"), Lease::default());
        let take = |lease: &mut Lease, at| lease.take(&quota, 1, UP, (false, true), at);
        assert!(matches!(take(&mut lease, 0), Spent::Yes(_)));
        assert!(lease.ask(&quota, UP, 0).is_some());
        while matches!(take(&mut lease, 0), Spent::Yes(_)) {}
        assert_eq!(take(&mut lease, 0), Spent::Wait, "the answer may come");
        let later = PATIENCE + 1;
        assert!(
            matches!(take(&mut lease, later), Spent::Yes(_)),
            "its share"
        );
    }

    #[test]
    fn a_redis_that_has_forgotten_is_told_what_was_used() {
        let (quota, mut lease) = (quota("100/m"), Lease::default());
        for _ in 0..30 {
            lease.use_up(&quota, 1, DOWN, 0);
        }
        let draw = lease.ask(&quota, UP, 0).expect("a question");
        let drawn = Drawn {
            granted: 0,
            left: 70,
            wait: 0,
        };
        lease.answered(draw, drawn, 0);
        lease.forgotten(&quota, 0);
        let draw = lease.ask(&quota, UP, 0).expect("a question");
        assert_eq!(draw.used, 30);
    }

    #[test]
    fn what_nobody_uses_goes_back() {
        let (quota, mut lease) = (quota("100/s"), Lease::default());
        let mut bucket = Bucket::default();
        assert!(matches!(
            lease.take(&quota, 1, UP, (false, false), 0),
            Spent::Yes(_)
        ));
        let draw = lease.ask(&quota, UP, 0).expect("a question");
        lease.answered(draw, bucket.draw(&quota, draw, 0), 0);
        let back = lease.give_back(UP, 0).expect("leased and not used");
        assert_eq!(back.back, 5);
        lease.answered(back, bucket.draw(&quota, back, 0), 0);
        assert_eq!(left(&quota, bucket.full, 0), 99, "one was used");
        assert!(lease.is_idle(20 * MILLI));
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Replicas that ask at their own pace never let pass more than the
        /// quota and one batch each.
        #[test]
        fn together_they_keep_to_the_quota(
            burst in 1u64..200,
            count in 1u64..200,
            replicas in 1u64..5,
            steps in prop::collection::vec((0u128..20, 0usize..5, 0u8..4), 1..400),
        ) {
            let quota = Quota::new(count, std::time::Duration::from_secs(1), burst).expect("a quota");
            let sight = Sight { connected: true, replicas };
            let mut leases: Vec<Lease> = (0..replicas).map(|_| Lease::default()).collect();
            let mut bucket = Bucket::default();
            let mut under_way: Vec<Option<Draw>> = vec![None; leases.len()];
            let (mut now, mut passed) = (0u128, 0u64);
            for (wait, which, what) in steps {
                now += wait * MILLI;
                let which = which % leases.len();
                let lease = &mut leases[which];
                match (what, under_way[which]) {
                    (0, None) => under_way[which] = lease.ask(&quota, sight, now),
                    (0 | 1, Some(draw)) => {
                        // The answer is as old as the question is late.
                        lease.answered(draw, bucket.draw(&quota, draw, now), now);
                        under_way[which] = None;
                    }
                    (1, None) => under_way[which] = lease.give_back(sight, now),
                    _ => {
                        // Patience all along: shares are for a Redis that is away.
                        let asked = under_way[which].is_some();
                        let at = if asked { lease.asked.map_or(now, |(at, _)| at) } else { now };
                        if matches!(lease.take(&quota, 1, sight, (true, true), at), Spent::Yes(_)) {
                            passed += 1;
                        }
                    }
                }
                let came = u64::try_from(now * u128::from(count) / 1_000_000_000).expect("few");
                let most = burst + came + replicas * batch(&quota, replicas) + 1;
                prop_assert!(passed <= most, "{} of {}", passed, most);
            }
        }
    }
}

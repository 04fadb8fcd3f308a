//! One number at once that replicas share: how many of it this replica holds,
//! and how many Redis has set aside for it, until a time, so that a replica
//! that dies gives its back.

use std::num::NonZeroU32;

use super::lease::Sight;

/// A question that has waited so long, in nanoseconds, counts as unanswered.
const PATIENCE: u128 = 100_000_000;
/// How soon Redis is asked again after it had none.
const AGAIN: u128 = 50_000_000;
/// Slots are set aside in batches of this part of all, divided among the
/// replicas.
const PARTS: u32 = 10;

/// What one replica holds. Times are nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Slots {
    held: u32,
    leased: u32,
    asked: Option<u128>,
    refused_until: u128,
    pub(super) queued: bool,
}

/// What came of trying to enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    Yes,
    No,
    Wait,
    Away,
}

/// A question to Redis: set aside so many for this replica, and `held` of them
/// in any case, since they are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// In use.
    pub held: u32,
    /// Wanted in all.
    pub want: u32,
}

fn batch(most: NonZeroU32, replicas: u64) -> u32 {
    let replicas = u32::try_from(replicas.max(1)).unwrap_or(u32::MAX);
    (most.get() / PARTS / replicas).max(1)
}

fn share(most: NonZeroU32, replicas: u64) -> u32 {
    let replicas = u32::try_from(replicas.max(1)).unwrap_or(u32::MAX);
    (most.get() / replicas).max(1)
}

impl Slots {
    /// Counts one more. `deny` and `patience` are as for a lease.
    pub(super) fn enter(
        &mut self,
        most: NonZeroU32,
        sight: Sight,
        (deny, patience): (bool, bool),
        now: u128,
    ) -> Entered {
        let away = !sight.connected
            || self
                .asked
                .is_some_and(|at| now.saturating_sub(at) > PATIENCE);
        let by_share = || self.held < share(most, sight.replicas);
        let entered = if self.held < self.leased {
            Entered::Yes
        } else if away {
            match deny {
                true => Entered::Away,
                false if by_share() => Entered::Yes,
                false => Entered::No,
            }
        } else if now < self.refused_until {
            Entered::No
        } else if self.held - self.leased < batch(most, sight.replicas) {
            Entered::Yes
        } else {
            match (patience, deny) {
                (true, _) => Entered::Wait,
                (false, true) => Entered::Away,
                (false, false) if by_share() => Entered::Yes,
                (false, false) => Entered::No,
            }
        };
        self.held += u32::from(entered == Entered::Yes);
        entered
    }

    /// Counts one less.
    pub(super) fn leave(&mut self) {
        self.held = self.held.saturating_sub(1);
    }

    pub(super) fn held(&self) -> u32 {
        self.held
    }

    /// Whether more should be set aside.
    pub(super) fn is_due(&self, sight: Sight, now: u128) -> bool {
        sight.connected
            && self.asked.is_none()
            && self.held >= self.leased
            && now >= self.refused_until
    }

    /// The question that sets aside what is in use and a batch more; without
    /// `more` it renews what is in use, and gives back what is not.
    pub(super) fn ask(
        &mut self,
        most: NonZeroU32,
        sight: Sight,
        more: bool,
        now: u128,
    ) -> Option<SetAside> {
        if !sight.connected || self.asked.is_some() || (self.held == 0 && self.leased == 0 && !more)
        {
            return None;
        }
        self.asked = Some(now);
        let batch = match more || self.held > 0 {
            true => batch(most, sight.replicas),
            false => 0,
        };
        Some(SetAside {
            held: self.held,
            want: self
                .held
                .saturating_add(batch)
                .min(most.get())
                .max(self.held),
        })
    }

    /// `most_here` is how many this replica may have, as the others stand;
    /// fewer may be set aside, since fewer were asked for.
    pub(super) fn answered(&mut self, asked: SetAside, most_here: u32, now: u128) {
        self.asked = None;
        self.leased = asked.want.min(most_here);
        self.refused_until = if self.held >= most_here {
            now + AGAIN
        } else {
            0
        };
    }

    pub(super) fn unanswered(&mut self) {
        self.asked = None;
    }

    /// Redis has forgotten what was set aside.
    pub(super) fn forgotten(&mut self) {
        self.leased = 0;
        self.asked = None;
        self.refused_until = 0;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.held == 0 && self.leased == 0 && self.asked.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
    const UP: Sight = Sight {
        connected: true,
        replicas: 2,
    };
    const DOWN: Sight = Sight {
        connected: false,
        replicas: 2,
    };

    fn enter(slots: &mut Slots, sight: Sight) -> Entered {
        slots.enter(TEN, sight, (false, false), 0)
    }

    #[test]
    fn it_has_what_is_set_aside_and_one_batch_on_credit() {
        let mut slots = Slots::default();
        let mut others = 0;
        for _ in 0..20 {
            let _ = enter(&mut slots, UP);
            if let Some(asked) = slots.ask(TEN, UP, true, 0) {
                slots.answered(asked, 10 - others, 0);
            }
        }
        assert_eq!(slots.held(), 10);
        slots.leave();
        others = 3;
        let asked = slots.ask(TEN, UP, true, 0).expect("a question");
        assert_eq!((asked.held, asked.want), (9, 10));
        slots.answered(asked, 10 - others, 0);
        assert_eq!(enter(&mut slots, UP), Entered::No, "others have come");
    }

    #[test]
    fn without_redis_it_has_its_share_or_nothing() {
        let mut slots = Slots::default();
        assert_eq!(slots.enter(TEN, DOWN, (true, true), 0), Entered::Away);
        let entered = (0..20).filter(|_| enter(&mut slots, DOWN) == Entered::Yes);
        assert_eq!(entered.count(), 5);
        slots.leave();
        assert_eq!(enter(&mut slots, DOWN), Entered::Yes);
    }

    #[test]
    fn what_is_not_in_use_goes_back() {
        let mut slots = Slots::default();
        assert_eq!(enter(&mut slots, UP), Entered::Yes);
        let asked = slots.ask(TEN, UP, true, 0).expect("a question");
        slots.answered(asked, 10, 0);
        slots.leave();
        let back = slots.ask(TEN, UP, false, 0).expect("a question");
        assert_eq!((back.held, back.want), (0, 0));
        slots.answered(back, 10, 0);
        assert!(slots.is_idle());
    }
}

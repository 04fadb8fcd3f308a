//! How many at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Holds every key to the number at once that is named with it. Cloning is cheap and shares the counts.
#[derive(Debug)]
pub struct ConcurrencyLimit<K: Eq + Hash> {
    counts: Arc<Mutex<HashMap<K, u32>>>,
    max_keys: usize,
}

/// One of those at once; it counts until it is dropped.
#[derive(Debug)]
#[must_use = "it counts only while it is kept"]
pub struct InFlight<K: Eq + Hash> {
    counts: Arc<Mutex<HashMap<K, u32>>>,
    key: K,
}

/// Refused for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// The key has as many as it may.
    #[error("{0} are open already, as many as may be at once")]
    OfThisKey(NonZeroU32),
    /// As many keys are busy as are counted.
    #[error("too many different clients are busy at once")]
    Keys,
}

impl<K: Eq + Hash + Clone> ConcurrencyLimit<K> {
    /// At most `max_keys` keys at once. A key with none is not remembered.
    #[must_use]
    pub fn new(max_keys: usize) -> Self {
        Self {
            counts: Arc::default(),
            max_keys,
        }
    }

    /// Counts one more for the key, of at most `most`, until what is given is
    /// dropped.
    ///
    /// # Errors
    /// [`TooMany`], and then nothing is counted.
    pub fn enter(&self, key: &K, most: NonZeroU32) -> Result<InFlight<K>, TooMany> {
        let mut counts = lock(&self.counts);
        let full = counts.len() >= self.max_keys;
        match counts.get_mut(key) {
            Some(count) if *count >= most.get() => {
                return Err(TooMany::OfThisKey(most));
            }
            Some(count) => *count += 1,
            None if full => return Err(TooMany::Keys),
            None => {
                counts.insert(key.clone(), 1);
            }
        }
        Ok(InFlight {
            counts: self.counts.clone(),
            key: key.clone(),
        })
    }

    /// How many of this key are open.
    #[must_use]
    pub fn count(&self, key: &K) -> u32 {
        lock(&self.counts).get(key).copied().unwrap_or(0)
    }
}

impl<K: Eq + Hash> Clone for ConcurrencyLimit<K> {
    fn clone(&self) -> Self {
        Self {
            counts: self.counts.clone(),
            ..*self
        }
    }
}

impl<K: Eq + Hash> Drop for InFlight<K> {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

fn lock<T>(counts: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds the lock, and a count is never half set.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Held(ConcurrencyLimit<&'static str>, NonZeroU32);

    impl Held {
        fn enter(&self, key: &&'static str) -> Result<InFlight<&'static str>, TooMany> {
            self.0.enter(key, self.1)
        }
    }

    fn limit(most: u32, keys: usize) -> Held {
        Held(
            ConcurrencyLimit::new(keys),
            NonZeroU32::new(most).expect("not zero"),
        )
    }

    #[test]
    fn a_key_has_so_many_at_once() {
        let limit = limit(2, 10);
        let first = limit.enter(&"a").expect("the first");
        let second = limit.enter(&"a").expect("the second");
        let most = NonZeroU32::new(2).expect("not zero");
        assert_eq!(limit.enter(&"a").err(), Some(TooMany::OfThisKey(most)));
        assert_eq!(limit.0.count(&"a"), 2);
        let other = limit.enter(&"b").expect("another key");
        drop(first);
        let again = limit.enter(&"a").expect("one has gone");
        assert_eq!(limit.0.count(&"a"), 2);
        drop((second, other, again));
        assert_eq!((limit.0.count(&"a"), limit.0.count(&"b")), (0, 0));
        assert!(lock(&limit.0.counts).is_empty(), "idle keys are forgotten");
    }

    #[test]
    fn a_refusal_counts_nothing() {
        let limit = limit(1, 10);
        let only = limit.enter(&"a").expect("the first");
        assert!(limit.enter(&"a").is_err());
        drop(only);
        assert_eq!(limit.0.count(&"a"), 0);
    }

    #[test]
    fn new_keys_are_refused_where_all_room_is_used() {
        let limit = limit(5, 2);
        let _a = limit.enter(&"a").expect("a");
        let b = limit.enter(&"b").expect("b");
        assert_eq!(limit.enter(&"c").err(), Some(TooMany::Keys));
        let _more = limit.enter(&"a").expect("known keys go on");
        drop(b);
        let _c = limit.enter(&"c").expect("b has gone");
    }
}

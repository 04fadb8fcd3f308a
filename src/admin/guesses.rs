//! Guesses at the admin secret: how many one source has, and what is said of
//! them.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::limit::{RateLimiter, Throttled};

use super::oauth::{counted, limiter};

/// How often one source may be wrong: so many times a second, and at once.
/// As often as it may show wrong keys of service accounts, about.
const WRONG: (u64, u64) = (2, 20);
/// How many lines are written of it.
const LINES: (u64, u64) = (1, 10);

/// What was guessed at the admin secret.
pub struct Guesses {
    sources: RateLimiter<Option<IpAddr>>,
    lines: RateLimiter<()>,
    held_back: AtomicU64,
}

impl Default for Guesses {
    fn default() -> Self {
        Self {
            sources: limiter(WRONG),
            lines: limiter(LINES),
            held_back: AtomicU64::new(0),
        }
    }
}

impl Guesses {
    /// Whether a secret from there is looked at. A right one costs nothing, and
    /// where there were too many wrong ones it is refused like those, since it
    /// would be told from them otherwise.
    ///
    /// # Errors
    /// When to come again.
    pub(super) fn may(&self, source: Option<SocketAddr>, now: Duration) -> Result<(), Throttled> {
        self.sources.would_pass(&counted(source), now)
    }

    /// One was wrong. A flood of them is not a flood of lines.
    pub(super) fn wrong(&self, source: Option<SocketAddr>, now: Duration) {
        self.sources.charge_used(&counted(source), 1, now);
        if self.lines.check(&(), now).is_err() {
            self.held_back.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let not_written = self.held_back.swap(0, Ordering::Relaxed);
        tracing::warn!(
            source = shown(source),
            not_written,
            "a wrong admin secret was sent"
        );
    }
}

/// An address as lines have it.
pub(super) fn shown(source: Option<SocketAddr>) -> String {
    source.map_or_else(|| "unix socket".to_owned(), |source| source.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_was_wrong_too_often_waits_and_others_do_not() {
        let guesses = Guesses::default();
        let from = |text: &str| Some(text.parse().expect("an address"));
        let (one, port) = (from("192.0.2.1:4000"), from("192.0.2.1:4001"));
        let (other, now) = (from("192.0.2.2:4000"), Duration::from_secs(100));
        for guess in 0..WRONG.1 {
            assert_eq!(guesses.may(one, now), Ok(()), "{guess}");
            guesses.wrong(one, now);
        }
        for source in [one, port] {
            let throttled = guesses.may(source, now).expect_err("too many");
            assert_eq!(throttled.retry_after, Duration::from_millis(500));
        }
        for source in [other, None] {
            assert_eq!(guesses.may(source, now), Ok(()));
        }
        let later = now + Duration::from_millis(500);
        assert_eq!(guesses.may(one, later), Ok(()), "and that takes none");
        assert_eq!(guesses.may(one, later), Ok(()));
        guesses.wrong(one, later);
        assert!(guesses.may(one, later).is_err());
    }
}

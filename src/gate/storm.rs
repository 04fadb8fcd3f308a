//! Storms: an agent that repeats a refused request for ever.
//!
//! The first refusals of a kind are written one by one. After that they are
//! counted, a record with the count is written at times, and the answers wait
//! longer and longer. Nothing is lost: the counts add up.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::audit::{AuditEvent, AuditRecord};

/// How storms are recognised and damped.
#[derive(Clone, Copy, Debug)]
pub struct StormSettings {
    /// Identical refusals within the window that are still written one by one.
    pub after: u64,
    /// How long a kind of refusal is remembered, and how often its count is
    /// written while the storm lasts.
    pub window: Duration,
    /// The longest an answer is held back.
    pub max_delay: Duration,
}

impl Default for StormSettings {
    fn default() -> Self {
        Self {
            after: 20,
            window: Duration::from_secs(60),
            max_delay: Duration::from_secs(2),
        }
    }
}

/// The most kinds of refusal remembered at once; beyond it every refusal is
/// written by itself.
const MAX_KINDS: usize = 10_000;
/// The first delay; each further refusal doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(10);

pub(super) struct Storms {
    settings: StormSettings,
    hasher: RandomState,
    kinds: Mutex<HashMap<u64, Kind>>,
}

struct Kind {
    since: Duration,
    seen: u64,
    /// The last one that was counted and not written, with the count.
    held: Option<AuditRecord>,
}

impl Storms {
    pub(super) fn new(settings: StormSettings) -> Self {
        Self {
            settings,
            hasher: RandomState::new(),
            kinds: Mutex::new(HashMap::new()),
        }
    }

    /// What makes two refusals identical; only those of a known agent count.
    fn kind(&self, record: &AuditRecord) -> Option<u64> {
        let refused = matches!(record.event, AuditEvent::Request | AuditEvent::Tunnel)
            && !record.action_allowed
            && record.status.is_some();
        let agent = record.agent_id.as_ref().filter(|_| refused)?;
        Some(self.hasher.hash_one((
            agent,
            &record.destination_host,
            record.destination_port,
            record.reason,
            &record.method,
        )))
    }

    /// How long an answer like this one should wait.
    pub(super) fn delay(&self, record: &AuditRecord, now: Duration) -> Duration {
        let Some(kind) = self.kind(record) else {
            return Duration::ZERO;
        };
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        match kinds.get(&kind) {
            Some(kind) if now.saturating_sub(kind.since) < self.settings.window => {
                let over = kind.seen.saturating_sub(self.settings.after);
                if over == 0 {
                    return Duration::ZERO;
                }
                let doublings = u32::try_from(over - 1).unwrap_or(u32::MAX).min(16);
                FIRST_DELAY
                    .saturating_mul(1 << doublings)
                    .min(self.settings.max_delay)
            }
            _ => Duration::ZERO,
        }
    }

    /// The record to write now: this one, or nothing while a storm lasts, or
    /// the count of what has been held back.
    pub(super) fn pass(&self, record: AuditRecord, now: Duration) -> Option<AuditRecord> {
        let Some(key) = self.kind(&record) else {
            return Some(record);
        };
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if !kinds.contains_key(&key) && kinds.len() >= MAX_KINDS {
            return Some(record);
        }
        let kind = kinds.entry(key).or_insert(Kind {
            since: now,
            seen: 0,
            held: None,
        });
        if now.saturating_sub(kind.since) >= self.settings.window && kind.held.is_none() {
            *kind = Kind {
                since: now,
                seen: 0,
                held: None,
            };
        }
        kind.seen += 1;
        if kind.seen <= self.settings.after {
            return Some(record);
        }
        match &mut kind.held {
            Some(held) => held.count += 1,
            None => {
                kind.held = Some(AuditRecord {
                    event: AuditEvent::Repeated,
                    ..record
                })
            }
        }
        None
    }

    /// The counts whose window is over, and all of them at the end.
    pub(super) fn due(&self, now: Duration, all: bool) -> Vec<AuditRecord> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = Vec::new();
        kinds.retain(|_, kind| {
            let over = all || now.saturating_sub(kind.since) >= self.settings.window;
            if !over {
                return true;
            }
            match kind.held.take() {
                Some(held) => {
                    due.push(held);
                    // The storm may go on: remember it for another window.
                    kind.since = now;
                    !all
                }
                None => false,
            }
        });
        due
    }
}

//! What is open and lasts: tunnels, upgraded streams and long exchanges, so that
//! a new policy can be put to them, and those that it refuses be ended.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::egress::EgressRequest;
use crate::gate::{Admission, Gate, Judge, Leads, TunnelEnd};
use crate::identity::Principal;

use super::conn::Ending;

/// What is open and lasts.
pub struct OpenTunnels {
    /// Whether it lives on when its credential has expired.
    outlive: bool,
    next: AtomicU64,
    open: Places,
}

type Places = Arc<Mutex<HashMap<u64, Arc<Open>>>>;

/// One that is open.
struct Open {
    who: Arc<Principal>,
    request: EgressRequest,
    calls: Option<Arc<[String]>>,
    leads: Leads,
    /// On whose behalf an agent calls another.
    original: Option<Arc<Principal>>,
    kind: OpenKind,
    ending: Arc<Ending>,
}

/// What it is that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenKind {
    /// A tunnel or an upgraded stream.
    Tunnel,
    /// A request whose body or answer is long, or has no end that is known.
    Exchange,
}

/// A place among what is open; dropping it gives it up.
pub(super) struct Registered {
    number: u64,
    open: Places,
}

impl OpenTunnels {
    /// None yet.
    pub(super) fn new(outlive: bool) -> Self {
        Self {
            outlive,
            next: AtomicU64::new(0),
            open: Arc::default(),
        }
    }

    /// Takes a place among the open. What came into force while it was being
    /// dialled is put to it here: before this, a reload could not see it. `original`
    /// is on whose behalf an agent calls another.
    pub(super) fn register(
        &self,
        gate: &Gate,
        admission: &Admission,
        (request, leads, original): (EgressRequest, Leads, Option<Arc<Principal>>),
        (kind, ending): (OpenKind, &Arc<Ending>),
    ) -> Registered {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let one = Arc::new(Open {
            who: Arc::clone(admission.who()),
            request,
            calls: admission.calls().cloned(),
            leads,
            original,
            kind,
            ending: Arc::clone(ending),
        });
        lock(&self.open).insert(number, Arc::clone(&one));
        if let Err(why) = one.put_to(&gate.judge()) {
            ending.end(why);
        }
        Registered {
            number,
            open: Arc::clone(&self.open),
        }
    }

    /// How many tunnels and upgraded streams are open.
    #[must_use]
    pub fn len(&self) -> usize {
        let open = lock(&self.open);
        let tunnels = open.values().filter(|one| one.kind == OpenKind::Tunnel);
        tunnels.count()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn judge_again(&self, gate: &Gate) -> usize {
        let judge = gate.judge();
        self.end_where(|one| one.put_to(&judge).err())
    }

    /// Ends what has lost its credential to nothing but time: a certificate
    /// that has expired, or that none speaks for any more, and a token that has
    /// expired, where its end is to be that of its tunnels too.
    pub(super) fn end_overdue(&self, gate: &Gate) -> usize {
        self.end_where(|one| {
            let is_over = |who: &Principal| gate.is_overdue(who, !self.outlive);
            match &one.original {
                _ if is_over(&one.who) => Some(TunnelEnd::CredentialEnded),
                Some(original) if is_over(original) => Some(TunnelEnd::OriginalEnded),
                _ => None,
            }
        })
    }

    /// Ends them all: the time to drain is over.
    pub(super) fn end_all(&self, why: TunnelEnd) {
        self.end_where(|_| Some(why));
    }

    /// Ends those for which there is a reason, and gives how many. They are
    /// judged without the lock, which every new one needs.
    fn end_where(&self, reason: impl Fn(&Open) -> Option<TunnelEnd>) -> usize {
        let all: Vec<_> = {
            let open = lock(&self.open);
            let of = |(number, one): (&u64, &Arc<Open>)| (*number, Arc::clone(one));
            open.iter().map(of).collect()
        };
        let mut ended = 0;
        for (number, one) in all {
            let Some(why) = reason(&one) else {
                continue;
            };
            let open = lock(&self.open);
            // One that is over has left its connection to another request,
            // which is not to be ended in its place.
            if open.contains_key(&number) {
                one.ending.end(why);
                ended += 1;
            }
        }
        ended
    }
}

impl Open {
    fn put_to(&self, judge: &Judge) -> Result<(), TunnelEnd> {
        judge.still(&self.who, &self.request, self.calls.as_deref(), &self.leads)?;
        match &self.original {
            Some(original) => judge.stands(original).map_err(TunnelEnd::of_original),
            None => Ok(()),
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.open).remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The tunnels and upgraded streams that are open, so that a new policy can be
//! put to them and the ones it refuses be ended.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

use crate::egress::EgressRequest;
use crate::gate::{Gate, TunnelEnd};
use crate::identity::Principal;

use super::conn::Ending;

/// The tunnels that are open.
pub struct OpenTunnels {
    /// Whether they live on when their credential has expired.
    outlive: bool,
    next: AtomicU64,
    open: Arc<Mutex<HashMap<u64, OpenTunnel>>>,
}

struct OpenTunnel {
    who: Arc<Principal>,
    request: EgressRequest,
    dialled: Option<IpAddr>,
    ending: Arc<Ending>,
}

/// A place among the open tunnels; dropping it gives it up.
pub(super) struct Registered {
    number: u64,
    open: Arc<Mutex<HashMap<u64, OpenTunnel>>>,
    /// Ends it with its credential, where it is to end so.
    timer: Option<AbortHandle>,
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
    /// dialled is put to it here: before this, a reload could not see it.
    pub(super) fn register(
        &self,
        gate: &Gate,
        who: &Arc<Principal>,
        request: EgressRequest,
        dialled: Option<IpAddr>,
        ending: &Arc<Ending>,
    ) -> Registered {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let tunnel = OpenTunnel {
            who: Arc::clone(who),
            request: request.clone(),
            dialled,
            ending: Arc::clone(ending),
        };
        lock(&self.open).insert(number, tunnel);
        if let Err(why) = gate.judge().still(who, &request, dialled) {
            ending.end(why);
        }
        let timer = (!self.outlive).then(|| {
            let (left, ending) = (gate.time_left(who), Arc::clone(ending));
            let timer = tokio::spawn(async move {
                tokio::time::sleep(left).await;
                ending.end(TunnelEnd::CredentialEnded);
            });
            timer.abort_handle()
        });
        Registered {
            timer,
            number,
            open: Arc::clone(&self.open),
        }
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.open).len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn judge_again(&self, gate: &Gate) -> usize {
        let judge = gate.judge();
        let mut ended = 0;
        for tunnel in lock(&self.open).values() {
            if let Err(why) = judge.still(&tunnel.who, &tunnel.request, tunnel.dialled) {
                tunnel.ending.end(why);
                ended += 1;
            }
        }
        ended
    }

    /// Ends them all: the time to drain is over.
    pub(super) fn end_all(&self, why: TunnelEnd) {
        for tunnel in lock(&self.open).values() {
            tunnel.ending.end(why);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.open).remove(&self.number);
        if let Some(timer) = &self.timer {
            timer.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! What the tests of the wire share: the real gateway as a process of its own,
//! origins that record, a DNS server that answers what it is told, and clients
//! that send bytes exactly as written.
//!
//! Nothing here waits for a fixed time. Whatever may take a while is waited for
//! until a deadline that only a failing test reaches.

pub(crate) mod conn;
pub(crate) mod front;
pub(crate) mod gateway;
pub(crate) mod grpc;
pub(crate) mod names;
pub(crate) mod origin;
pub(crate) mod parent;
pub(crate) mod pebble;
pub(crate) mod pki;
pub(crate) mod ports;
pub(crate) mod redis;
pub(crate) mod tls;

use std::time::{Duration, Instant};

/// How long anything may take before the test has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Looks again and again until there is something, and fails the test with
/// `what` when the deadline has passed.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

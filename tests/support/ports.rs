//! Ports for servers that must be told one, and for tests that need one at
//! which nobody listens.

use std::net::TcpListener;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 10_000;

/// A port that nobody listens on, and that nobody comes to listen on who asks
/// the kernel for any, or to be connected from: it lies below those. No two
/// calls in one process give the same.
pub(crate) fn free() -> u16 {
    static COUNT: LazyLock<u16> = LazyLock::new(|| {
        // ip(7): the first and the last of those that the kernel gives.
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let first = range.ok().and_then(|range| {
            let first = range.split_whitespace().next()?;
            first.parse::<u16>().ok()
        });
        first.unwrap_or(0).max(FIRST + 10_000) - FIRST
    });
    // Test programs that run side by side begin at different ones.
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        let begin = std::process::id() * 61 % u32::from(*COUNT);
        AtomicU16::new(begin.try_into().expect("less than the count"))
    });
    for _ in 0..*COUNT {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % *COUNT;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
    panic!("every port is taken");
}

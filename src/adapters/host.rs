//! What the host gives the process: processors, descriptors, addresses of its
//! own, and randomness.
//!
//! Reads and raises; how many threads to start or whether too few descriptors
//! are an error is decided by `server`.

use std::cell::RefCell;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use nix::ifaddrs::getifaddrs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ring::rand::{SecureRandom, SystemRandom};

use crate::gate::ports::ThisMachine;

/// How many worker threads the host has processors for: those that the process
/// may run on, bounded by the control group's quota (v2 and v1), rounded up,
/// and never fewer than one.
#[must_use]
pub fn processors() -> NonZeroUsize {
    let available = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    match quota(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup")) {
        Some(quota) => available.min(quota),
        None => available,
    }
}

/// How many descriptors the process might open, and may now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFileLimit {
    /// The soft limit as it was found.
    pub before: u64,
    /// The soft limit as it is now.
    pub after: u64,
}

/// Raises the soft limit on open descriptors to the hard one.
///
/// # Errors
/// What the system answered, where it refuses to say or to raise.
pub fn raise_open_file_limit() -> std::io::Result<OpenFileLimit> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(OpenFileLimit {
        before: soft,
        after: soft.max(hard),
    })
}

/// The addresses of this host's interfaces, of both families, loopback
/// included, each once and sorted.
///
/// # Errors
/// What the system answered.
pub fn interface_addresses() -> std::io::Result<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = getifaddrs()?
        .filter_map(|interface| {
            let address = interface.address?;
            if let Some(v4) = address.as_sockaddr_in() {
                return Some(v4.ip().into());
            }
            address.as_sockaddr_in6().map(|v6| v6.ip().into())
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// The addresses of this host's interfaces as they were last read. They change
/// while a gateway serves: pods get new ones, tunnels come and go.
#[derive(Debug, Default)]
pub struct OwnAddresses(ArcSwap<Vec<IpAddr>>);

impl OwnAddresses {
    /// Reads them. Says whether they are others than before; where the system
    /// does not say, those of before stay.
    pub fn read(&self) -> bool {
        let found = match interface_addresses() {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "the addresses of this machine cannot be read");
                return false;
            }
        };
        let change = **self.0.load() != found;
        if change {
            self.0.store(Arc::new(found));
        }
        change
    }
}

impl ThisMachine for OwnAddresses {
    fn has(&self, address: IpAddr) -> bool {
        self.0.load().binary_search(&address).is_ok()
    }
}

/// 128 random bits from the system's generator, for numbers of requests and
/// traces. Each thread draws 4 KiB at once, so that a request pays no system
/// call; the bits are wiped as they are handed out.
#[must_use]
pub fn random_bits() -> u128 {
    POOL.with_borrow_mut(Pool::take)
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { bytes: [0; POOL_BYTES], left: 0 }) };
}

const POOL_BYTES: usize = 4096;
const DRAW: usize = size_of::<u128>();

struct Pool {
    bytes: [u8; POOL_BYTES],
    /// How many bytes, from the front, have not been handed out.
    left: usize,
}

impl Pool {
    fn take(&mut self) -> u128 {
        if self.left < DRAW {
            SystemRandom::new()
                .fill(&mut self.bytes)
                .expect("the system's generator answers once the system has booted");
            self.left = POOL_BYTES;
        }
        self.left -= DRAW;
        let mut drawn = [0; DRAW];
        let place = &mut self.bytes[self.left..self.left + DRAW];
        drawn.copy_from_slice(place);
        place.fill(0);
        u128::from_ne_bytes(drawn)
    }
}

/// The quota of the process's control group in whole processors, rounded up.
/// The strictest of the group and its parents binds.
fn quota(membership: &Path, mount: &Path) -> Option<NonZeroUsize> {
    let membership = std::fs::read_to_string(membership).ok()?;
    membership
        .lines()
        .filter_map(|line| group_quota(line, mount))
        .min()
}

/// The quota by one line of `/proc/self/cgroup`: `0::/path` for v2, or
/// `4:cpu,cpuacct:/path` for v1.
fn group_quota(line: &str, mount: &Path) -> Option<NonZeroUsize> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let v2 = number == "0" && controllers.is_empty();
    if !v2 && !controllers.split(',').any(|name| name == "cpu") {
        return None;
    }
    let root = if v2 {
        mount.to_path_buf()
    } else {
        mount.join(controllers)
    };
    // Inside a container the path is often that of the host, and is not there;
    // the container's own group is then the root of the mount.
    let own = root.join(path.trim_start_matches('/'));
    let mut strictest = None;
    let mut group = own.as_path();
    loop {
        let here = if v2 {
            read(&group.join("cpu.max")).and_then(|text| cpu_max(&text))
        } else {
            read(&group.join("cpu.cfs_quota_us"))
                .zip(read(&group.join("cpu.cfs_period_us")))
                .and_then(|(quota, period)| whole(quota.trim(), period.trim()))
        };
        strictest = match (strictest, here) {
            (Some(one), Some(other)) => Some(std::cmp::min(one, other)),
            (one, other) => one.or(other),
        };
        match group.parent() {
            Some(parent) if group != root && parent.starts_with(&root) => group = parent,
            _ => return strictest,
        }
    }
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// `cpu.max` of control groups v2: `QUOTA PERIOD` in microseconds, or `max
/// PERIOD` where there is none.
fn cpu_max(text: &str) -> Option<NonZeroUsize> {
    let (quota, period) = text.trim().split_once(' ')?;
    whole(quota, period)
}

fn whole(quota: &str, period: &str) -> Option<NonZeroUsize> {
    // `max` and `-1` are no numbers here: no quota.
    let quota: u64 = quota.parse().ok()?;
    let period: u64 = period.parse().ok()?;
    if quota == 0 || period == 0 {
        return None;
    }
    let processors = usize::try_from(quota.div_ceil(period)).ok()?;
    NonZeroUsize::new(processors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_whole_processors() {
        for (case, text, processors) in [
            ("no quota", "max 100000\n", None),
            ("half a processor is one", "50000 100000\n", Some(1)),
            ("two", "200000 100000\n", Some(2)),
            ("two and a bit are three", "200001 100000\n", Some(3)),
            ("no period", "200000\n", None),
            ("a period of nothing", "200000 0\n", None),
            ("no numbers", "a b\n", None),
            ("an empty file", "", None),
        ] {
            assert_eq!(cpu_max(text).map(NonZeroUsize::get), processors, "{case}");
        }
    }

    #[test]
    fn the_strictest_group_binds() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            std::fs::write(path, text).expect("a file");
        };
        write("v2", "0::/outer/inner\n");
        write("v2-elsewhere", "0::/not/here\n");
        write("v1", "7:memory:/x\n4:cpu,cpuacct:/x\n");
        write("none", "garbage\n0::\n");
        write("cgroup/cpu.max", "900000 100000\n");
        write("cgroup/outer/cpu.max", "200000 100000\n");
        write("cgroup/outer/inner/cpu.max", "400000 100000\n");
        write("cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "300000\n");
        write("cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n");
        write("cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
        write("cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
        for (case, file, processors) in [
            ("v2: the parent is stricter", "v2", Some(2)),
            ("v2: the path is the host's", "v2-elsewhere", Some(9)),
            ("v1: its own", "v1", Some(3)),
            ("lines that say nothing: the root", "none", Some(9)),
            ("no such file", "absent", None),
        ] {
            let found = quota(&dir.path().join(file), &dir.path().join("cgroup"));
            assert_eq!(found.map(NonZeroUsize::get), processors, "{case}");
        }
    }

    #[test]
    fn the_host_has_a_processor_and_a_loopback() {
        assert!(processors().get() >= 1);
        let addresses = interface_addresses().expect("interfaces");
        assert!(addresses.iter().any(IpAddr::is_loopback), "{addresses:?}");
        let own = OwnAddresses::default();
        assert!(!own.has(addresses[0]), "not read yet");
        assert!(own.read() && !own.read(), "news only once");
        assert!(addresses.iter().all(|address| own.has(*address)));
        assert!(!own.has("192.0.2.1".parse().expect("an address")));
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise_open_file_limit().expect("a limit");
        assert!(limit.after >= limit.before);
        let again = raise_open_file_limit().expect("a limit");
        assert_eq!(again.before, limit.after);
    }

    #[test]
    fn random_bits_do_not_repeat_within_or_across_refills() {
        let draws = 3 * POOL_BYTES / DRAW;
        let mut seen: Vec<u128> = (0..draws).map(|_| random_bits()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), draws);
    }
}

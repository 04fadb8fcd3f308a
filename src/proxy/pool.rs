//! Connections to origins that nobody uses at the moment, each kept for the
//! agent that it was opened for and the authority that it was opened to.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::egress::Authority;
use crate::identity::Principal;

/// How often those are looked for that have been closed or have waited long
/// enough.
const SWEEP: Duration = Duration::from_secs(1);

/// Connections that nobody uses at the moment.
pub(super) struct Pool {
    idle: Mutex<Idle>,
    most: usize,
    longest: Duration,
    hasher: RandomState,
}

/// Whom a connection may serve, and to what authority, as a hash that nobody can
/// foresee. Agent, tenant and address are compared besides.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Errand(u64);

/// For what errand a connection may serve, and where it leads.
type Place = (Errand, SocketAddr);

#[derive(Default)]
struct Idle {
    /// By age: the first has waited longest.
    all: BTreeMap<u64, Waiting>,
    places: HashMap<Place, VecDeque<u64>>,
    next: u64,
    /// Whether somebody sweeps.
    swept: bool,
}

struct Waiting {
    stream: TcpStream,
    place: Place,
    who: Arc<Principal>,
    since: Instant,
}

impl Pool {
    /// For so many connections, each for so long.
    pub(super) fn new(most: usize, longest: Duration) -> Arc<Self> {
        Arc::new(Self {
            idle: Mutex::default(),
            most,
            longest,
            hasher: RandomState::new(),
        })
    }

    /// What a connection for this agent to this authority is known by.
    pub(super) fn errand(&self, who: &Principal, authority: &Authority) -> Errand {
        let parts = (who.tenant(), who.agent(), authority);
        Errand(self.hasher.hash_one(parts))
    }

    /// One that waits for this agent at one of these addresses, the first ones
    /// first; with the address's index.
    pub(super) fn take(
        &self,
        errand: Errand,
        who: &Principal,
        addresses: &[SocketAddr],
    ) -> Option<(TcpStream, usize)> {
        for (index, address) in addresses.iter().enumerate() {
            // The youngest first: it is the least likely to be closed meanwhile. It
            // is looked at, and closed, where nobody else has to wait for that.
            loop {
                let popped = self.lock().pop(&(errand, *address));
                let Some(waiting) = popped else {
                    break;
                };
                let is_theirs = is_same(&waiting.who, who);
                if is_theirs && is_quiet(&waiting.stream) && !self.is_over(&waiting) {
                    return Some((waiting.stream, index));
                }
            }
        }
        None
    }

    /// Keeps one that has done its work well.
    pub(super) fn put(
        self: &Arc<Self>,
        stream: TcpStream,
        errand: Errand,
        who: &Arc<Principal>,
        address: SocketAddr,
    ) {
        if self.most == 0 {
            return;
        }
        let waiting = Waiting {
            stream,
            place: (errand, address),
            who: Arc::clone(who),
            since: Instant::now(),
        };
        let mut idle = self.lock();
        let oldest = (idle.all.len() >= self.most).then(|| idle.pop_oldest());
        idle.push(waiting);
        let begins = !std::mem::replace(&mut idle.swept, true);
        drop(idle);
        // Closing one takes a while; nobody waits for it.
        drop(oldest);
        if begins {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Closes them all.
    pub(super) fn clear(&self) {
        let mut idle = self.lock();
        let all = std::mem::take(&mut idle.all);
        idle.places.clear();
        drop(idle);
        drop(all);
    }

    /// Closes those that the origin has closed, that have said something unasked,
    /// or that have waited long enough. Says whether any is left.
    fn sweep(&self) -> bool {
        let mut over = Vec::new();
        let mut idle = self.lock();
        let done = |waiting: &Waiting| self.is_over(waiting) || !is_quiet(&waiting.stream);
        let numbers: Vec<u64> = (idle.all.iter())
            .filter(|(_, waiting)| done(waiting))
            .map(|(number, _)| *number)
            .collect();
        over.extend(numbers.into_iter().filter_map(|number| idle.remove(number)));
        idle.swept = !idle.all.is_empty();
        idle.swept
    }

    fn is_over(&self, waiting: &Waiting) -> bool {
        waiting.since.elapsed() >= self.longest
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn push(&mut self, waiting: Waiting) {
        let number = self.next;
        self.next += 1;
        self.places
            .entry(waiting.place)
            .or_default()
            .push_back(number);
        self.all.insert(number, waiting);
    }

    fn pop(&mut self, place: &Place) -> Option<Waiting> {
        let number = *self.places.get(place)?.back()?;
        self.remove(number)
    }

    fn pop_oldest(&mut self) -> Option<Waiting> {
        let number = *self.all.first_key_value()?.0;
        self.remove(number)
    }

    fn remove(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.all.remove(&number)?;
        if let Some(numbers) = self.places.get_mut(&waiting.place) {
            // It is the last one where it is taken, and the first where it is old.
            if numbers.back() == Some(&number) {
                numbers.pop_back();
            } else {
                numbers.retain(|other| *other != number);
            }
            if numbers.is_empty() {
                self.places.remove(&waiting.place);
            }
        }
        Some(waiting)
    }
}

fn is_same(one: &Principal, other: &Principal) -> bool {
    one.tenant() == other.tenant() && one.agent() == other.agent()
}

/// Whether nothing has come on a connection on which nothing was asked, not even
/// its end, as far as the runtime knows by now. What it does not know yet is the
/// same origin's word to the same agent, or an end that the request will meet.
fn is_quiet(stream: &TcpStream) -> bool {
    let came = stream.try_read(&mut [0]);
    came.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Sweeps as long as there is something to sweep.
async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        match pool.upgrade() {
            Some(pool) if pool.sweep() => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::AgentId;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    fn agent(name: &str) -> Arc<Principal> {
        let agent = AgentId::parse(name).expect("a name");
        Arc::new(Principal::of_peer(1000, agent, None))
    }

    fn authority(text: &str) -> Authority {
        Authority::parse(text).expect("an authority")
    }

    /// So many connections to one address, and their other ends.
    async fn connections(count: usize) -> (Vec<TcpStream>, Vec<TcpStream>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let (mut near, mut far) = (Vec::new(), Vec::new());
        for _ in 0..count {
            near.push(TcpStream::connect(address).await.expect("connected"));
            far.push(listener.accept().await.expect("accepted").0);
        }
        (near, far, address)
    }

    #[tokio::test]
    async fn each_serves_whom_it_was_opened_for() {
        let pool = Pool::new(8, Duration::from_secs(60));
        let (near, _far, address) = connections(1).await;
        let (bot, here) = (agent("bot"), authority("a.test:80"));
        let port = near[0].local_addr().expect("an address");
        for stream in near {
            pool.put(stream, pool.errand(&bot, &here), &bot, address);
        }
        let elsewhere: SocketAddr = "127.0.0.9:9".parse().expect("an address");
        for (case, who, to, at) in [
            ("another agent", &agent("other"), &here, address),
            ("another host", &bot, &authority("b.test:80"), address),
            ("another address", &bot, &here, elsewhere),
        ] {
            assert!(
                pool.take(pool.errand(who, to), who, &[at]).is_none(),
                "{case}"
            );
        }
        let errand = pool.errand(&agent("bot"), &here);
        let found = pool.take(errand, &bot, &[elsewhere, address]);
        let (stream, index) = found.expect("the one that waits");
        assert_eq!((stream.local_addr().expect("an address"), index), (port, 1));
        assert!(pool.take(errand, &bot, &[address]).is_none(), "it is taken");
        // Should two ever have one hash.
        let (mut near, _far, address) = connections(1).await;
        pool.put(near.pop().expect("one"), errand, &bot, address);
        assert!(pool.take(errand, &agent("other"), &[address]).is_none());
    }

    #[tokio::test]
    async fn the_youngest_is_used_and_the_oldest_goes() {
        let pool = Pool::new(2, Duration::from_secs(60));
        let (near, _far, address) = connections(3).await;
        let (bot, here) = (agent("bot"), authority("a.test:80"));
        let mut ports = Vec::new();
        for stream in near {
            ports.push(stream.local_addr().expect("an address"));
            pool.put(stream, pool.errand(&bot, &here), &bot, address);
        }
        for expected in [ports[2], ports[1]] {
            let errand = pool.errand(&bot, &here);
            let (stream, _) = pool.take(errand, &bot, &[address]).expect("one waits");
            assert_eq!(stream.local_addr().expect("an address"), expected);
        }
        let errand = pool.errand(&bot, &here);
        assert!(pool.take(errand, &bot, &[address]).is_none());
    }

    #[tokio::test]
    async fn one_that_has_ended_or_speaks_unasked_is_not_used() {
        let pool = Pool::new(8, Duration::from_secs(60));
        let (near, far, address) = connections(2).await;
        let (bot, here) = (agent("bot"), authority("a.test:80"));
        let mut far = far.into_iter();
        let mut speaks = far.next().expect("the first");
        speaks
            .write_all(b"HTTP/1.1 200 OK\r\n")
            .await
            .expect("said");
        drop(far.next().expect("the second"));
        for stream in near {
            stream.readable().await.expect("something came");
            pool.put(stream, pool.errand(&bot, &here), &bot, address);
        }
        assert!(!pool.sweep(), "none is left");
        let errand = pool.errand(&bot, &here);
        assert!(pool.take(errand, &bot, &[address]).is_none());
    }

    #[tokio::test]
    async fn none_waits_for_ever() {
        let pool = Pool::new(8, Duration::ZERO);
        let (mut near, _far, address) = connections(1).await;
        let (bot, here) = (agent("bot"), authority("a.test:80"));
        let stream = near.pop().expect("one");
        pool.put(stream, pool.errand(&bot, &here), &bot, address);
        let errand = pool.errand(&bot, &here);
        assert!(pool.take(errand, &bot, &[address]).is_none());
        let none = Pool::new(0, Duration::from_secs(60));
        let (mut near, _far, address) = connections(1).await;
        let errand = none.errand(&bot, &here);
        none.put(near.pop().expect("one"), errand, &bot, address);
        assert!(none.take(errand, &bot, &[address]).is_none());
    }
}

//! Opens the connection to a destination: to the addresses that the gate has
//! admitted and no others, racing the families (RFC 8305), or by the parent
//! proxy, address by address.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::gate::ports::Observation;
use crate::gate::{Admission, Cause, Denial};

use super::Shared;
use super::parent::Parent;
use super::upstream::Upstream;

/// How long an attempt has for itself before the next one starts beside it
/// (RFC 8305 section 5).
const HEAD_START: Duration = Duration::from_millis(250);
/// The most addresses tried for one tunnel.
const MOST_ADDRESSES: usize = 8;

/// A connection to a destination.
pub(super) struct Dialled {
    pub(super) upstream: Upstream,
    /// Where it goes; unknown where the parent proxy was given a name.
    pub(super) address: Option<SocketAddr>,
    /// The parent proxy that carries it.
    pub(super) by: Option<Arc<Parent>>,
}

/// Connects to one of the admitted addresses.
///
/// # Errors
/// A [`Denial`] with what the last attempt said.
pub(super) async fn dial(shared: &Shared, admission: &Admission) -> Result<Dialled, Denial> {
    let started = shared.gate.clock().monotonic();
    let addresses = order(admission.addresses(), shared.settings.ipv4_first);
    let result = match &shared.settings.parent {
        None => direct(shared, addresses).await,
        Some(parent) => by_parent(shared, parent, admission, addresses).await,
    };
    shared.gate.observe().observe(Observation::Dialled {
        outcome: result.as_ref().map_or_else(Denial::code, |_| "ok"),
        took: shared.gate.clock().monotonic().saturating_sub(started),
    });
    result.map_err(|denial| denial.towards(admission.authority()))
}

async fn direct(shared: &Shared, addresses: Vec<SocketAddr>) -> Result<Dialled, Denial> {
    let raced = tokio::time::timeout(shared.settings.connect_timeout, race(addresses)).await;
    match raced {
        Ok(Ok((tcp, address))) => Ok(Dialled {
            upstream: Upstream::Direct(tcp),
            address: Some(address),
            by: None,
        }),
        Ok(Err(error)) => Err(Denial::new(cause(&error)).detail(error.to_string())),
        Err(_) => Err(Denial::new(Cause::ConnectTimeout).detail("no address answered in time")),
    }
}

/// What is reached directly is tried first, all at once; then the parent proxy
/// is asked, for one address after the other.
async fn by_parent(
    shared: &Shared,
    parent: &Arc<Parent>,
    admission: &Admission,
    addresses: Vec<SocketAddr>,
) -> Result<Dialled, Denial> {
    let to = admission.authority();
    let takes = |address: &SocketAddr| parent.takes(to, Some(address.ip()));
    let (mut theirs, ours): (Vec<_>, Vec<_>) = addresses.into_iter().partition(takes);
    let only_a_name = theirs.is_empty() && ours.is_empty();
    if !ours.is_empty() {
        let result = direct(shared, ours).await;
        if result.is_ok() || theirs.is_empty() {
            return result;
        }
    }
    // Of a name that it is given it tries every address itself.
    if !parent.is_given_addresses() {
        theirs.truncate(1);
    }
    let until = Instant::now() + shared.settings.connect_timeout;
    let at = parent.locate(&shared.gate).await;
    let at = at.map_err(|error| error.denial())?;
    let mut targets: Vec<_> = theirs.into_iter().map(Some).collect();
    if only_a_name {
        targets.push(None);
    }
    let mut left = targets.len();
    for address in targets {
        left -= 1;
        let mut within = until.saturating_duration_since(Instant::now());
        if left > 0 {
            within /= 2;
        }
        match parent.open(&at, &parent.target(to, address), within).await {
            Ok(upstream) => {
                return Ok(Dialled {
                    upstream,
                    address: address.filter(|_| parent.is_given_addresses()),
                    by: Some(Arc::clone(parent)),
                });
            }
            Err(error) if left > 0 && error.is_of_the_destination() => {}
            Err(error) => return Err(error.denial()),
        }
    }
    Err(Denial::new(Cause::Internal).detail("nothing to ask the parent proxy for"))
}

/// What a failed connection means.
pub(super) fn cause(error: &io::Error) -> Cause {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Cause::ConnectRefused,
        io::ErrorKind::TimedOut => Cause::ConnectTimeout,
        _ => Cause::Unreachable,
    }
}

/// The families in turn, each in the resolver's order (RFC 8305 section 4).
pub(super) fn order(addresses: &[SocketAddr], ipv4_first: bool) -> Vec<SocketAddr> {
    let mut first = addresses
        .iter()
        .filter(|address| address.is_ipv4() == ipv4_first);
    let mut second = addresses
        .iter()
        .filter(|address| address.is_ipv4() != ipv4_first);
    let mut ordered = Vec::with_capacity(addresses.len().min(MOST_ADDRESSES));
    while ordered.len() < MOST_ADDRESSES {
        let (a, b) = (first.next(), second.next());
        if a.is_none() && b.is_none() {
            break;
        }
        ordered.extend(a);
        ordered.extend(b);
    }
    ordered.truncate(MOST_ADDRESSES);
    ordered
}

async fn race(addresses: Vec<SocketAddr>) -> io::Result<(TcpStream, SocketAddr)> {
    let connect = |address: SocketAddr| async move {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok((stream, address))
    };
    // Nearly always there is one, and no task is needed.
    if let [only] = addresses[..] {
        return connect(only).await;
    }
    let mut waiting = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut next_at = Instant::now();
    loop {
        if attempts.is_empty() || Instant::now() >= next_at {
            match waiting.next() {
                Some(address) => {
                    attempts.spawn(connect(address));
                    next_at = Instant::now() + HEAD_START;
                }
                None if attempts.is_empty() => return Err(last),
                None => {}
            }
        }
        let more = waiting.len() > 0;
        tokio::select! {
            Some(done) = attempts.join_next() => match done {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(error)) => {
                    last = error;
                    next_at = Instant::now();
                }
                Err(_) => {}
            },
            () = tokio::time::sleep_until(next_at), if more => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |list: &[&str]| -> Vec<SocketAddr> {
            list.iter()
                .map(|text| text.parse().expect("an address"))
                .collect()
        };
        let given = parse(&[
            "1.1.1.1:1",
            "[2::1]:1",
            "[2::2]:1",
            "1.1.1.2:1",
            "1.1.1.3:1",
        ]);
        assert_eq!(
            order(&given, false),
            parse(&[
                "[2::1]:1",
                "1.1.1.1:1",
                "[2::2]:1",
                "1.1.1.2:1",
                "1.1.1.3:1"
            ])
        );
        assert_eq!(order(&given, true)[..2], parse(&["1.1.1.1:1", "[2::1]:1"]));
        assert_eq!(order(&[], true), []);
    }

    #[tokio::test]
    async fn an_address_that_refuses_does_not_hold_up_the_next() {
        let open = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("bind");
        let closed = {
            let gone = tokio::net::TcpListener::bind("127.0.0.1:0")
                .await
                .expect("bind");
            gone.local_addr().expect("an address")
        };
        let good = open.local_addr().expect("an address");
        let (_, address) = race(vec![closed, good]).await.expect("connected");
        assert_eq!(address, good);
        assert!(race(vec![closed, closed]).await.is_err());
        assert!(race(Vec::new()).await.is_err());
    }
}

//! Attempts to get out without the gateway, one function for each kind.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use ring::rand::{SecureRandom, SystemRandom};

use super::wire::{self, DnsAnswer};
use super::{Evidence, Seen, Verdict};

/// How often a datagram is sent, since one may be lost.
const SENDINGS: u32 = 2;

/// Connects by TCP. `lenient`: a refusal shows that the way is closed.
pub(super) fn tcp(target: SocketAddr, timeout: Duration, lenient: bool) -> Seen {
    match TcpStream::connect_timeout(&target, timeout) {
        Ok(_) => out(Evidence::Connected, "a TCP connection came about"),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused && !lenient => Seen::new(
            Verdict::Inconclusive,
            Evidence::Refused,
            "refused: by a firewall, or the way is open and nobody listens there. Drop instead of refusing, or say --refused-is-contained",
        ),
        Err(error) => failed(&error),
    }
}

/// Connects to what must be reachable.
pub(super) fn control(target: SocketAddr, timeout: Duration) -> Seen {
    match TcpStream::connect_timeout(&target, timeout) {
        Ok(_) => Seen::new(Verdict::Pass, Evidence::Connected, "reached, as it must be"),
        Err(error) => {
            let seen = failed(&error);
            Seen::new(
                Verdict::Inconclusive,
                seen.evidence,
                format!("not reached, so that this probe sees nothing: {error}"),
            )
        }
    }
}

/// Asks a public name server by UDP.
pub(super) fn dns_udp(target: SocketAddr, name: &str, timeout: Duration) -> Seen {
    match ask(target, name, timeout) {
        Ok(answer) => out(
            Evidence::Answered,
            format!("a name server answered {}", words(answer)),
        ),
        Err(seen) => seen,
    }
}

/// Asks a public name server by TCP (RFC 7766). A connection is a way out,
/// whatever is answered.
pub(super) fn dns_tcp(target: SocketAddr, name: &str, timeout: Duration) -> Seen {
    let mut stream = match TcpStream::connect_timeout(&target, timeout) {
        Ok(stream) => stream,
        Err(error) => return failed(&error),
    };
    let id = u16::from_be_bytes([random()[0], random()[1]]);
    let answer = || -> Option<DnsAnswer> {
        let query = wire::dns_query(id, name)?;
        stream.set_read_timeout(Some(timeout)).ok()?;
        let mut framed = u16::try_from(query.len()).ok()?.to_be_bytes().to_vec();
        framed.extend(query);
        stream.write_all(&framed).ok()?;
        let mut head = [0; 14];
        stream.read_exact(&mut head).ok()?;
        wire::dns_answer(id, &head[2..])
    };
    let answer = { answer }();
    out(
        Evidence::Connected,
        match answer {
            Some(answer) => format!("a name server answered {}", words(answer)),
            None => "a TCP connection came about, and no answer".into(),
        },
    )
}

/// Begins TLS with a resolver that speaks HTTPS (RFC 8484). A connection is a
/// way out, whatever is answered.
pub(super) fn doh(target: SocketAddr, timeout: Duration) -> Seen {
    let mut stream = match TcpStream::connect_timeout(&target, timeout) {
        Ok(stream) => stream,
        Err(error) => return failed(&error),
    };
    let mut first = [0];
    let answered = stream
        .set_read_timeout(Some(timeout))
        .map_err(|error| error.to_string())
        .and_then(|()| wire::client_hello(&target.ip().to_string()))
        .and_then(|hello| {
            stream
                .write_all(&hello)
                .and_then(|()| stream.read_exact(&mut first))
                .map_err(|error| error.to_string())
        });
    out(
        Evidence::Connected,
        match (answered, first) {
            (Ok(()), [0x15 | 0x16]) => "TLS was answered",
            _ => "a TCP connection came about, and no TLS",
        },
    )
}

/// Sends a QUIC packet that every server answers.
pub(super) fn quic(target: SocketAddr, timeout: Duration) -> Seen {
    let packet = wire::quic_initial(random());
    match exchange(target, &packet, timeout, |_| Some(())) {
        Ok(()) => out(Evidence::Answered, "a server answered"),
        Err(seen) => seen,
    }
}

/// Sends an echo request, from a ping socket or else a raw one.
pub(super) fn ping(target: IpAddr, timeout: Duration) -> Seen {
    let v6 = target.is_ipv6();
    let (family, protocol) = if v6 {
        (AddressFamily::Inet6, SockProtocol::IcmpV6)
    } else {
        (AddressFamily::Inet, SockProtocol::Icmp)
    };
    let open = |kind| socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol);
    let made = open(SockType::Datagram).or_else(|_| open(SockType::Raw));
    let socket = match made {
        Ok(descriptor) => UdpSocket::from(descriptor),
        Err(Errno::EACCES | Errno::EPERM) => {
            return Seen::new(
                Verdict::NotApplicable,
                Evidence::Prohibited,
                "this user may send no echo requests (net.ipv4.ping_group_range, CAP_NET_RAW), and no agent that runs as it may",
            );
        }
        Err(errno) => return failed(&errno.into()),
    };
    let nonce = random();
    let packet = wire::echo_request(v6, nonce);
    let made = socket.connect((target, 0)).map_err(|error| failed(&error));
    let answered = made.and_then(|()| {
        talk(&socket, &packet, timeout, |bytes| {
            wire::is_echo_reply(v6, nonce, bytes).then_some(())
        })
    });
    match answered {
        Ok(()) => out(Evidence::Answered, "an echo reply came back"),
        Err(seen) => seen,
    }
}

/// Asks a name server that programs here are told of for a public name. Only
/// one that asks others can know it.
pub(super) fn resolver(target: SocketAddr, name: &str, timeout: Duration) -> Seen {
    let contained = |detail: &str| Seen::new(Verdict::Pass, Evidence::Answered, detail);
    match ask(target, name, timeout) {
        Ok(DnsAnswer::Records(count)) if count > 0 => out(
            Evidence::Answered,
            format!("{name} is resolved here, so that names carry data out"),
        ),
        Ok(DnsAnswer::NoSuchName) => contained("it does not know a name that the public DNS has"),
        Ok(DnsAnswer::Refused) => contained("it refuses to ask others"),
        Ok(DnsAnswer::Failed) => contained("it reached nobody who knows (SERVFAIL)"),
        Ok(answer) => Seen::new(
            Verdict::Inconclusive,
            Evidence::Answered,
            format!(
                "it answered {}: is {name} a public name with an IPv4 address? Write --name",
                words(answer)
            ),
        ),
        Err(seen) => seen,
    }
}

/// Resolves a name as every program does, whatever that asks.
pub(super) fn system_resolver(name: &str, timeout: Duration) -> Seen {
    let (report, answer) = mpsc::channel();
    let asked = (name.to_owned(), 443);
    // The system cannot be told to give up; its thread is left behind.
    std::thread::spawn(move || {
        let found = asked.to_socket_addrs().map(|mut found| found.next());
        let _ = report.send(found);
    });
    match answer.recv_timeout(timeout) {
        Ok(Ok(Some(address))) => out(
            Evidence::Answered,
            format!(
                "{name} is {}, so that names carry data out (or stands in the hosts file)",
                address.ip()
            ),
        ),
        Ok(Ok(None)) => Seen::new(Verdict::Pass, Evidence::Answered, "it has no address"),
        Ok(Err(error)) => Seen::new(Verdict::Pass, Evidence::Unreachable, error.to_string()),
        Err(_) => Seen::new(Verdict::Pass, Evidence::Silence, "no answer in time"),
    }
}

fn words(answer: DnsAnswer) -> String {
    match answer {
        DnsAnswer::Records(0) => "that there is no such record".into(),
        DnsAnswer::Records(count) => format!("with {count} records"),
        DnsAnswer::NoSuchName => "NXDOMAIN".into(),
        DnsAnswer::Failed => "SERVFAIL".into(),
        DnsAnswer::Refused => "REFUSED".into(),
        DnsAnswer::Other(code) => format!("with code {code}"),
    }
}

fn ask(target: SocketAddr, name: &str, timeout: Duration) -> Result<DnsAnswer, Seen> {
    let random = random();
    let id = u16::from_be_bytes([random[0], random[1]]);
    let query = wire::dns_query(id, name).ok_or_else(|| {
        Seen::new(
            Verdict::Inconclusive,
            Evidence::NotTried,
            format!("{name} is no DNS name: write --name example.com"),
        )
    })?;
    exchange(target, &query, timeout, |bytes| wire::dns_answer(id, bytes))
}

/// Sends a datagram from a socket of its own, and waits for an answer that counts.
fn exchange<T>(
    target: SocketAddr,
    packet: &[u8],
    timeout: Duration,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<T, Seen> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connected, so that only the target's datagrams come in, and ICMP errors.
    let socket = UdpSocket::bind((any, 0))
        .and_then(|socket| socket.connect(target).map(|()| socket))
        .map_err(|error| failed(&error))?;
    talk(&socket, packet, timeout, read)
}

fn talk<T>(
    socket: &UdpSocket,
    packet: &[u8],
    timeout: Duration,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<T, Seen> {
    let mut buffer = [0; 2048];
    for _ in 0..SENDINGS {
        socket.send(packet).map_err(|error| failed(&error))?;
        let until = Instant::now() + timeout / SENDINGS;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let received = socket
                .set_read_timeout(Some(left))
                .and_then(|()| socket.recv(&mut buffer));
            match received {
                Ok(length) => {
                    if let Some(answer) = read(&buffer[..length]) {
                        return Ok(answer);
                    }
                }
                Err(error) if is_timeout(&error) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(&error)),
            }
        }
    }
    Err(Seen::new(
        Verdict::Pass,
        Evidence::Silence,
        "no answer in time",
    ))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

fn out(evidence: Evidence, detail: impl Into<String>) -> Seen {
    Seen::new(Verdict::Fail, evidence, detail)
}

/// What an error says of the way.
pub(super) fn failed(error: &io::Error) -> Seen {
    let (verdict, evidence, detail) = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED | Errno::ECONNRESET) => {
            (Verdict::Pass, Evidence::Refused, "refused".into())
        }
        Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN | Errno::EHOSTDOWN) => {
            (Verdict::Pass, Evidence::Unreachable, error.to_string())
        }
        Some(Errno::EACCES | Errno::EPERM) => {
            (Verdict::Pass, Evidence::Prohibited, error.to_string())
        }
        Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL | Errno::EPROTONOSUPPORT) => (
            Verdict::NotApplicable,
            Evidence::NotTried,
            "this system has no such protocol or address".into(),
        ),
        Some(Errno::ETIMEDOUT | Errno::EAGAIN) | None if is_timeout(error) => {
            (Verdict::Pass, Evidence::Silence, "no answer in time".into())
        }
        _ => (Verdict::Inconclusive, Evidence::NotTried, error.to_string()),
    };
    Seen::new(verdict, evidence, detail)
}

/// Random bytes, so that an answer to another is not taken for one to this.
fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    // Where there is no randomness, an id that is always the same does too:
    // sockets are connected, so that nobody else can answer.
    let _ = SystemRandom::new().fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn local(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// A port of this machine on which nobody listens.
    fn closed() -> SocketAddr {
        let listener = TcpListener::bind(local(0)).expect("a port");
        listener.local_addr().expect("its address")
    }

    /// Answers one datagram.
    fn answering(answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
        let socket = UdpSocket::bind(local(0)).expect("a port");
        let address = socket.local_addr().expect("its address");
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            let (length, from) = socket.recv_from(&mut buffer).expect("a datagram");
            let answer = answer(&buffer[..length]);
            socket.send_to(&answer, from).expect("it is sent");
        });
        address
    }

    fn name_server(code: u8, records: u8) -> SocketAddr {
        answering(move |query| {
            let mut answer = query.to_vec();
            answer[2] |= 0x80;
            answer[3] = 0x80 | code;
            answer[7] = records;
            answer
        })
    }

    #[test]
    fn connections() {
        let listener = TcpListener::bind(local(0)).expect("a port");
        let open = listener.local_addr().expect("its address");
        for (case, target, lenient, verdict, evidence) in [
            (
                "somebody listens",
                open,
                true,
                Verdict::Fail,
                Evidence::Connected,
            ),
            (
                "refused, where somebody is known to listen",
                closed(),
                true,
                Verdict::Pass,
                Evidence::Refused,
            ),
            (
                "refused, where perhaps nobody listens",
                closed(),
                false,
                Verdict::Inconclusive,
                Evidence::Refused,
            ),
        ] {
            let seen = tcp(target, TIMEOUT, lenient);
            assert_eq!((seen.verdict, seen.evidence), (verdict, evidence), "{case}");
        }
        assert_eq!(control(open, TIMEOUT).verdict, Verdict::Pass);
        assert_eq!(control(closed(), TIMEOUT).verdict, Verdict::Inconclusive);
    }

    #[test]
    fn any_answer_of_a_public_name_server_is_a_way_out() {
        for (code, records) in [(0, 1), (3, 0), (5, 0)] {
            let seen = dns_udp(name_server(code, records), "example.com", TIMEOUT);
            assert_eq!(seen.verdict, Verdict::Fail, "code {code}");
        }
    }

    #[test]
    fn a_resolver_here_may_answer_if_it_does_not_ask_others() {
        for (case, code, records, verdict) in [
            ("it knows a public name", 0, 1, Verdict::Fail),
            ("no record", 0, 0, Verdict::Inconclusive),
            ("no such name", 3, 0, Verdict::Pass),
            ("refused", 5, 0, Verdict::Pass),
            ("failed", 2, 0, Verdict::Pass),
            ("not implemented", 4, 0, Verdict::Inconclusive),
        ] {
            let seen = resolver(name_server(code, records), "example.com", TIMEOUT);
            assert_eq!(seen.verdict, verdict, "{case}");
        }
    }

    #[test]
    fn what_is_no_name_is_said() {
        let seen = resolver(closed(), "a..b", TIMEOUT);
        assert_eq!(seen.verdict, Verdict::Inconclusive);
        assert!(seen.detail.contains("--name"), "{}", seen.detail);
    }

    #[test]
    fn errors_and_what_they_say() {
        for (errno, verdict, evidence) in [
            (Errno::ECONNREFUSED, Verdict::Pass, Evidence::Refused),
            (Errno::EHOSTUNREACH, Verdict::Pass, Evidence::Unreachable),
            (Errno::ENETUNREACH, Verdict::Pass, Evidence::Unreachable),
            (Errno::EPERM, Verdict::Pass, Evidence::Prohibited),
            (Errno::ETIMEDOUT, Verdict::Pass, Evidence::Silence),
            (
                Errno::EAFNOSUPPORT,
                Verdict::NotApplicable,
                Evidence::NotTried,
            ),
            (
                Errno::EADDRNOTAVAIL,
                Verdict::NotApplicable,
                Evidence::NotTried,
            ),
            (Errno::EMFILE, Verdict::Inconclusive, Evidence::NotTried),
        ] {
            let seen = failed(&errno.into());
            assert_eq!(
                (seen.verdict, seen.evidence),
                (verdict, evidence),
                "{errno}"
            );
        }
        let seen = failed(&ErrorKind::TimedOut.into());
        assert_eq!(seen.evidence, Evidence::Silence, "connect_timeout's own");
    }
}

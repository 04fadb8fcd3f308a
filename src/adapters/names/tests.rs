//! The resolver against a small server of its own, over real sockets.

use std::str::FromStr;
use std::sync::atomic::AtomicUsize;
use std::time::SystemTime;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, SOA};
use hickory_resolver::proto::rr::{RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Notify;

use super::*;

/// A clock that stands until it is moved.
#[derive(Default)]
struct Held(AtomicU64);

impl Held {
    fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for Held {
    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

/// A name server whose answers are told by the name that is asked for.
struct Server {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    /// Lets go answers for `held.test`.
    release: Arc<Notify>,
}

impl Server {
    async fn start() -> Self {
        let (socket, listener) = both_protocols().await;
        let address = socket.local_addr().expect("an address");
        let asked = Arc::new(AtomicUsize::new(0));
        let release = Arc::new(Notify::new());
        let (count, released) = (Arc::clone(&asked), Arc::clone(&release));
        let socket = Arc::new(socket);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (size, from) = socket.recv_from(&mut buffer).await.expect("a question");
                count.fetch_add(1, Ordering::SeqCst);
                let question = Message::from_vec(&buffer[..size]).expect("a question");
                let held = question.queries[0].name().to_string() == "held.test.";
                let (socket, released) = (Arc::clone(&socket), Arc::clone(&released));
                tokio::spawn(async move {
                    if held {
                        released.notified().await;
                    }
                    if let Some(bytes) = answer(&question, false) {
                        socket.send_to(&bytes, from).await.expect("an answer");
                    }
                });
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                tokio::spawn(async move {
                    // Until the resolver hangs up.
                    while let Ok(size) = stream.read_u16().await {
                        let mut bytes = vec![0; size.into()];
                        stream.read_exact(&mut bytes).await.expect("a question");
                        let question = Message::from_vec(&bytes).expect("a question");
                        let bytes = answer(&question, true).expect("an answer");
                        let size = u16::try_from(bytes.len()).expect("a small answer");
                        stream.write_u16(size).await.expect("an answer");
                        stream.write_all(&bytes).await.expect("an answer");
                    }
                });
            }
        });
        Self {
            address,
            asked,
            release,
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn resolver(&self, clock: &Arc<Held>) -> Resolver {
        self.resolver_with(clock, Duration::from_secs(40))
    }

    fn resolver_with(&self, clock: &Arc<Held>, timeout: Duration) -> Resolver {
        let settings = ResolverSettings {
            servers: vec![self.address],
            timeout,
            // No answer is late because the machine is busy.
            second_family: timeout / 20,
            hosts: None,
            ..ResolverSettings::default()
        };
        let clock: Arc<dyn Clock> = Arc::<Held>::clone(clock);
        Resolver::new(settings, clock).expect("a resolver")
    }
}

/// One port, which must be free for both.
async fn both_protocols() -> (UdpSocket, TcpListener) {
    loop {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let address = socket.local_addr().expect("an address");
        if let Ok(listener) = TcpListener::bind(address).await {
            return (socket, listener);
        }
    }
}

/// `None` where the server does not answer.
fn answer(question: &Message, tcp: bool) -> Option<Vec<u8>> {
    let query = question.queries[0].clone();
    let name = query.name().clone();
    let v4 = query.query_type() == RecordType::A;
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata.recursion_available = true;
    message.add_query(query);
    let record = |ttl: u32, last: u8| {
        let data = if v4 {
            RData::A(A::new(192, 0, 2, last))
        } else {
            RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()))
        };
        Record::from_rdata(name.clone(), ttl, data)
    };
    let soa = |ttl: u32| {
        let zone = Name::from_str("test.").expect("a name");
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, ttl);
        Record::from_rdata(zone, ttl, RData::SOA(soa))
    };
    match name.to_string().as_str() {
        "both.test." | "held.test." | "single." => {
            message.add_answer(record(60, 1));
        }
        "short.test." => {
            message.add_answer(record(10, 1));
        }
        "zero.test." => {
            message.add_answer(record(0, 1));
        }
        "week.test." => {
            message.add_answer(record(604_800, 1));
        }
        "v4.test." if v4 => {
            message.add_answer(record(60, 1));
        }
        "v4.test." | "empty.test." => {
            message.add_authority(soa(5));
        }
        "v6-nx.test." if !v4 => {
            message.add_answer(record(60, 1));
        }
        "v4-fail.test." | "v4-silent.test." if v4 => {
            message.add_answer(record(60, 1));
        }
        "v4-fail.test." | "fail.test." => {
            message.metadata.response_code = ResponseCode::ServFail;
        }
        "v4-silent.test." | "silent.test." => return None,
        "garbage.test." => return Some(b"\0\0garbage".to_vec()),
        "half-garbage.test." => {
            message.add_answer(record(60, 1));
            let mut bytes = message.to_vec().expect("bytes");
            bytes.truncate(bytes.len() - 2);
            return Some(bytes);
        }
        "alias.test." => {
            let target = Name::from_str("both.test.").expect("a name");
            let alias = RData::CNAME(CNAME(target.clone()));
            message.add_answer(Record::from_rdata(name.clone(), 7, alias));
            let mut last = record(60, 9);
            last.name = target;
            message.add_answer(last);
        }
        // Too much for a datagram, so that the resolver must come by TCP.
        "many.test." if !tcp => message.metadata.truncation = true,
        "many.test." => {
            for last in 0..100 {
                message.add_answer(record(60, last));
            }
        }
        _ => {
            message.metadata.response_code = ResponseCode::NXDomain;
            message.add_authority(soa(5));
        }
    }
    Some(message.to_vec().expect("bytes"))
}

fn name(text: &str) -> DnsName {
    DnsName::parse(text).expect("a name")
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts
        .iter()
        .map(|text| text.parse().expect("an address"))
        .collect()
}

#[tokio::test]
async fn answers() {
    let server = Server::start().await;
    let clock = Arc::<Held>::default();
    let resolver = server.resolver(&clock);
    for (case, text, expected) in [
        (
            "both families",
            "both.test",
            Ok(&["192.0.2.1", "2001:db8::1"][..]),
        ),
        (
            "a name without a dot, as it stands",
            "single",
            Ok(&["192.0.2.1", "2001:db8::1"]),
        ),
        ("no IPv6", "v4.test", Ok(&["192.0.2.1"])),
        (
            "IPv4 says there is no such name",
            "v6-nx.test",
            Ok(&["2001:db8::1"]),
        ),
        ("IPv6 fails", "v4-fail.test", Ok(&["192.0.2.1"])),
        ("IPv6 never answers", "v4-silent.test", Ok(&["192.0.2.1"])),
        ("an alias", "alias.test", Ok(&["192.0.2.9", "2001:db8::9"])),
        ("no such name", "nothing.test", Err(ResolveError::NotFound)),
        (
            "a name without addresses",
            "empty.test",
            Err(ResolveError::NoAddress),
        ),
        ("the server fails", "fail.test", Err(ResolveError::Failed)),
        (
            "localhost is not asked for",
            "localhost",
            Ok(&["127.0.0.1", "::1"]),
        ),
        (
            "nor what is below it",
            "a.localhost",
            Ok(&["127.0.0.1", "::1"]),
        ),
        (
            "nor the hidden services",
            "a.onion",
            Err(ResolveError::NotFound),
        ),
    ] {
        let answer = resolver.lookup(&name(text)).await;
        let expected = expected.map(addresses);
        assert_eq!(answer.map(|found| found.to_vec()), expected, "{case}");
        let cached = resolver.cached(&name(text)).map(|found| found.to_vec());
        assert_eq!(cached, expected.ok(), "{case}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_or_answers_rubbish_gives_an_error_in_time() {
    let server = Server::start().await;
    let clock = Arc::<Held>::default();
    let resolver = server.resolver_with(&clock, Duration::from_millis(200));
    for (text, errors) in [
        ("silent.test", &[ResolveError::Timeout][..]),
        // Rubbish over UDP may be a forgery, so the right answer is waited for.
        (
            "garbage.test",
            &[ResolveError::Failed, ResolveError::Timeout],
        ),
        (
            "half-garbage.test",
            &[ResolveError::Failed, ResolveError::Timeout],
        ),
    ] {
        let error = resolver.lookup(&name(text)).await.expect_err(text);
        assert!(errors.contains(&error), "{text}: {error}");
        assert_eq!(resolver.cached(&name(text)), None);
    }
}

#[tokio::test]
async fn an_answer_is_kept_as_long_as_it_says_within_bounds() {
    for (case, text, seconds) in [
        ("as it says", "short.test", 10),
        ("never less than a second", "zero.test", 1),
        ("never more than five minutes", "week.test", 300),
        ("an alias counts", "alias.test", 7),
        ("half an answer is soon asked for again", "v4-fail.test", 30),
        ("no such name, as its zone says", "nothing.test", 5),
        ("a failure for a second", "fail.test", 1),
    ] {
        let server = Server::start().await;
        let clock = Arc::<Held>::default();
        let resolver = server.resolver(&clock);
        let first = resolver.lookup(&name(text)).await;
        let asked = server.asked();
        assert!(asked > 0, "{case}");
        clock.advance(seconds - 1);
        assert_eq!(resolver.lookup(&name(text)).await, first, "{case}");
        assert_eq!(server.asked(), asked, "{case}: kept");
        clock.advance(1);
        assert_eq!(resolver.cached(&name(text)), None, "{case}");
        assert_eq!(resolver.lookup(&name(text)).await, first, "{case}");
        assert!(server.asked() > asked, "{case}: asked again");
    }
}

#[tokio::test]
async fn the_addresses_are_bounded_and_of_both_families() {
    let server = Server::start().await;
    let resolver = server.resolver(&Arc::default());
    let found = resolver
        .lookup(&name("many.test"))
        .await
        .expect("addresses");
    assert_eq!(found.len(), MAX_ADDRESSES);
    assert_eq!(
        found.iter().filter(|a| a.is_ipv4()).count(),
        MAX_ADDRESSES / 2
    );
    for (v4, v6, total) in [
        (100, 3, (29, 3)),
        (3, 100, (3, 29)),
        (2, 2, (2, 2)),
        (0, 40, (0, 32)),
    ] {
        let v4s: Vec<IpAddr> = (0..v4).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        let v6s: Vec<IpAddr> = (0..v6).map(|n| IpAddr::from([n; 8])).collect();
        let selected = select(&v4s, &v6s);
        let fours = selected.iter().filter(|a| a.is_ipv4()).count();
        assert_eq!((fours, selected.len() - fours), total);
    }
    let same = addresses(&["192.0.2.1", "192.0.2.1"]);
    assert_eq!(select(&same, &[]).len(), 1);
}

#[tokio::test]
async fn one_name_is_asked_for_once_at_a_time() {
    let server = Server::start().await;
    let resolver = Arc::new(server.resolver(&Arc::default()));
    let asking = |text: &'static str| {
        let resolver = Arc::clone(&resolver);
        tokio::spawn(async move { resolver.lookup(&name(text)).await })
    };
    let first = asking("held.test");
    let others: Vec<_> = (0..20).map(|_| asking("held.test")).collect();
    while server.asked() < 2 {
        tokio::task::yield_now().await;
    }
    // Whoever began it may leave; the others still get their answer.
    first.abort();
    assert!(first.await.expect_err("left").is_cancelled());
    // One question for each family is waiting.
    server.release.notify_one();
    server.release.notify_one();
    for other in others {
        let found = other.await.expect("a task").expect("addresses");
        assert_eq!(found.to_vec(), addresses(&["192.0.2.1", "2001:db8::1"]));
    }
    assert_eq!(server.asked(), 2);
    assert!(resolver.inner.pending().is_empty());
}

#[tokio::test]
async fn a_flush_forgets_also_what_is_on_its_way() {
    let server = Server::start().await;
    let resolver = Arc::new(server.resolver(&Arc::default()));
    resolver
        .lookup(&name("both.test"))
        .await
        .expect("addresses");
    let old = {
        let resolver = Arc::clone(&resolver);
        tokio::spawn(async move { resolver.lookup(&name("held.test")).await })
    };
    while server.asked() < 4 {
        tokio::task::yield_now().await;
    }
    resolver.flush();
    assert_eq!(resolver.cached(&name("both.test")), None);
    server.release.notify_one();
    server.release.notify_one();
    old.await
        .expect("a task")
        .expect("an answer, for who asked before");
    assert_eq!(resolver.cached(&name("held.test")), None);
}

#[tokio::test]
async fn the_hosts_file_comes_first_and_is_read_again() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("hosts");
    std::fs::write(
        &path,
        "# a comment\n192.0.2.7 both.test Other.Test # more\nfe80::1%lo0 zone.test\n\
         nonsense both.test\n2001:db8::7 both.test\n127.0.0.9 localhost\n",
    )
    .expect("a file");
    let settings = ResolverSettings {
        servers: vec![server.address],
        hosts: Some(path.clone()),
        second_family: Duration::from_secs(30),
        ..ResolverSettings::default()
    };
    let resolver = Resolver::new(settings, Arc::<Held>::default()).expect("a resolver");
    for (text, expected) in [
        ("both.test", &["192.0.2.7", "2001:db8::7"][..]),
        ("other.test", &["192.0.2.7"]),
        ("localhost", &["127.0.0.9"]),
    ] {
        let found = resolver.lookup(&name(text)).await.expect(text);
        assert_eq!(found.to_vec(), addresses(expected), "{text}");
    }
    assert_eq!(server.asked(), 0);
    std::fs::write(&path, "").expect("a file");
    resolver.reload().expect("a reload");
    let found = resolver
        .lookup(&name("both.test"))
        .await
        .expect("addresses");
    assert_eq!(found.to_vec(), addresses(&["192.0.2.1", "2001:db8::1"]));
}

#[tokio::test]
async fn the_search_list_is_used_only_where_it_is_asked_for() {
    let server = Server::start().await;
    let settings = ResolverSettings {
        servers: vec![server.address],
        hosts: None,
        ..ResolverSettings::default()
    };
    let mut upstream = Upstream::new(&settings).expect("an upstream");
    let settings = |search| ResolverSettings {
        search,
        second_family: Duration::from_secs(30),
        ..ResolverSettings::default()
    };
    upstream.search = vec![
        Name::from_str("none.").expect("a name"),
        Name::from_str("test.").expect("a name"),
    ];
    let alias = Ok(addresses(&["192.0.2.9", "2001:db8::9"]));
    let both = Ok(addresses(&["192.0.2.1", "2001:db8::1"]));
    for (case, text, search, expected) in [
        ("off", "alias", false, Err(ResolveError::NotFound)),
        ("on: found in the list", "alias", true, alias),
        (
            "on: the name as it stands comes last",
            "single",
            true,
            both.clone(),
        ),
        (
            "on: a name with a dot is first itself",
            "both.test",
            true,
            both,
        ),
        (
            "on: a failure ends the search",
            "fail",
            true,
            Err(ResolveError::Failed),
        ),
        ("on: nowhere", "nothing", true, Err(ResolveError::NotFound)),
    ] {
        let found = upstream.ask(&name(text), &settings(search)).await;
        assert_eq!(found.answer.map(|found| found.to_vec()), expected, "{case}");
    }
}

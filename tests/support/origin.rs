//! Origins: what stands behind the gateway, on this machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::conn::{Conn, Head};

/// An origin that records what it was asked.
pub(crate) struct Origin {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    seen: Arc<Seen>,
    failed: Arc<Mutex<Vec<String>>>,
}

/// Answers the requests of a connection, one after the other.
fn requests(
    answer: impl Fn(&Head, &[u8]) -> Vec<u8> + Send + Sync + 'static,
) -> impl Fn(Conn, usize, &Seen) + Send + Sync + 'static {
    move |mut conn, _, seen| {
        while let Some(head) = conn.head() {
            // A request that breaks off is none.
            let length = head.field("content-length");
            if !conn.has(length.map_or(0, |digits| digits.parse().expect("a length"))) {
                return;
            }
            let (body, _) = conn.body_of(&head);
            let out = answer(&head, &body);
            seen.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((head, body));
            conn.send_lossy(out);
        }
    }
}

/// Requests that were answered, each with its body.
type Seen = Mutex<Vec<(Head, Vec<u8>)>>;

impl Origin {
    /// One that does this with every connection, in a thread of its own. The
    /// second argument counts the connections from 0.
    pub(crate) fn serve(each: impl Fn(Conn, usize) + Send + Sync + 'static) -> Self {
        Self::with_log(move |conn, number, _| each(conn, number))
    }

    /// One that speaks HTTP/1.1 and keeps connections open: it gives what
    /// `answer` makes of a request, byte for byte.
    pub(crate) fn http(answer: impl Fn(&Head, &[u8]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::with_log(requests(answer))
    }

    /// One that answers every request with 200 and `ok`.
    pub(crate) fn ok() -> Self {
        Self::ok_at(Ipv4Addr::LOCALHOST)
    }

    /// The same, at this address of the machine.
    pub(crate) fn ok_at(ip: impl Into<IpAddr>) -> Self {
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        Self::with_log_at(ip.into(), requests(|_, _| ok.to_vec()))
    }

    /// One that sends back every byte it gets, and closes after the client.
    pub(crate) fn echo() -> Self {
        Self::serve(|conn, _| {
            let (_, stream) = conn.into_parts();
            let _ = std::io::copy(&mut &stream, &mut &stream);
        })
    }

    fn with_log(each: impl Fn(Conn, usize, &Seen) + Send + Sync + 'static) -> Self {
        Self::with_log_at(Ipv4Addr::LOCALHOST.into(), each)
    }

    fn with_log_at(ip: IpAddr, each: impl Fn(Conn, usize, &Seen) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((ip, 0)).expect("a port");
        let origin = Self {
            address: listener.local_addr().expect("an address"),
            accepted: Arc::default(),
            seen: Arc::default(),
            failed: Arc::default(),
        };
        let (accepted, seen) = (Arc::clone(&origin.accepted), Arc::clone(&origin.seen));
        let failed = Arc::clone(&origin.failed);
        let each = Arc::new(each);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let number = accepted.fetch_add(1, Ordering::SeqCst);
                let (each, seen, failed) =
                    (Arc::clone(&each), Arc::clone(&seen), Arc::clone(&failed));
                std::thread::spawn(move || {
                    let run = || each(Conn::new(stream), number, &seen);
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                        let text = panic
                            .downcast_ref::<String>()
                            .cloned()
                            .unwrap_or_else(|| "the origin failed".to_owned());
                        failed
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(text);
                    }
                });
            }
        });
        origin
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many connections it has had.
    pub(crate) fn connections(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// The requests it has answered.
    pub(crate) fn requests(&self) -> Vec<(Head, Vec<u8>)> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The head of the last request it has answered.
    pub(crate) fn last(&self) -> Head {
        self.requests().pop().expect("a request came through").0
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::thread::panicking() {
            assert!(failed.is_empty(), "the origin failed: {failed:#?}");
        }
    }
}

/// An origin that nobody may contact. A connection stands in the listener's
/// queue from the moment it is made, so one that was made is always found.
pub(crate) struct Untouched(TcpListener);

impl Untouched {
    /// Listens, and accepts nobody.
    pub(crate) fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("not blocking");
        Self(listener)
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.0.local_addr().expect("an address").port()
    }

    /// Fails the test where somebody has connected.
    pub(crate) fn check(&self, case: &str) {
        assert!(self.0.accept().is_err(), "{case}: the origin was contacted");
    }
}

impl Drop for Untouched {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check("at the end of the test");
        }
    }
}

//! The connections of the admin listener: how many there may be at once, and
//! how long each may take, so that nobody who can reach it holds descriptors
//! that the way out of agents needs.
//!
//! It speaks HTTP/1.1 alone. Nobody has shown who they are when a connection
//! is held, so every wait for a client is bounded: for the head of a request
//! (which is also how long a connection may be idle), for its body, and for the
//! answer to be taken.
//!
//! Where there is no room, the connection that has waited longest for its
//! client makes room for the new one. Refusing the new one, or leaving it
//! unaccepted, would let whoever holds all places keep a health probe out for
//! as long as they like; so a probe is served if its request comes before as
//! many others as there are places, and what goes is what has been asked for
//! nothing the longest. Only where every place is at work on a whole request is
//! the new connection closed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::identity::MAX_FORM_BYTES;

use super::oauth::{Refusal, wrong_request};

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections at once.
    pub(super) connections: usize,
    /// From the start of a connection, or the end of an answer, to the end of a
    /// request's head.
    pub(super) head: Duration,
    /// From there to the end of its body.
    pub(super) body: Duration,
    /// From there, without the time that the page needs, to the answer's end.
    pub(super) answer: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 256,
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            answer: Duration::from_secs(30),
        }
    }
}

/// The most bytes of a request's head that are kept, and of a body that are
/// read ahead.
const BUFFER_BYTES: usize = 64 * 1024;
/// A listener that is full says so once in this time.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// Serves these pages for ever. `source` is the address that a page is told.
pub(super) async fn serve<L: Listener>(
    mut listener: L,
    source: fn(&L::Addr) -> Option<SocketAddr>,
    router: Router,
    bounds: Bounds,
) {
    let places = Arc::new(Places::new(bounds.connections));
    loop {
        let (stream, peer) = listener.accept().await;
        let Some(place) = places.enter() else {
            continue;
        };
        let source = source(&peer);
        let (router, state) = (router.clone(), Arc::clone(&place.state));
        let service = service_fn(move |request| {
            answer(
                router.clone(),
                Arc::clone(&state),
                source,
                bounds.body,
                request,
            )
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.head)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            tokio::select! {
                served = connection => if let Err(error) = served {
                    tracing::debug!(%error, "a connection to the admin listener broke");
                },
                () = place.state.leave.notified() => {}
                () = place.state.overdue(bounds.answer) => {}
            }
            drop(place);
        });
    }
}

/// Reads a request to its end, so that no page waits for a body, and has it
/// answered.
async fn answer(
    router: Router,
    state: Arc<State>,
    source: Option<SocketAddr>,
    body_timeout: Duration,
    request: hyper::Request<Incoming>,
) -> Result<Response, Infallible> {
    state.waits();
    let (head, body) = request.into_parts();
    let read = axum::body::to_bytes(Body::new(body), MAX_FORM_BYTES);
    let refused: Refusal = match tokio::time::timeout(body_timeout, read).await {
        Ok(Ok(body)) => {
            let mut request = hyper::Request::from_parts(head, Body::from(body));
            if let Some(source) = source {
                request.extensions_mut().insert(ConnectInfo(source));
            }
            state.works();
            let answer = TowerToHyperService::new(router).call(request).await;
            state.waits();
            return answer;
        }
        Ok(Err(_)) => wrong_request("the request's body is too long, or broke off"),
        Err(_) => wrong_request("the request's body took too long"),
    };
    state.waits();
    Ok(refused.into_response())
}

/// The connections that are open.
struct Places {
    most: usize,
    open: Mutex<Open>,
    /// How many had to go since that was last said, and when it was.
    gone: AtomicU64,
    said: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Open {
    next: u64,
    states: BTreeMap<u64, Arc<State>>,
}

/// Whether a connection waits for its client.
struct State {
    /// Since when; `None` while a page works on a whole request.
    waits_since: Mutex<Option<Instant>>,
    /// Its place is another's.
    leave: Notify,
}

/// A connection's place, until it is dropped.
struct Place {
    number: u64,
    state: Arc<State>,
    places: Arc<Places>,
}

impl Places {
    fn new(most: usize) -> Self {
        Self {
            most,
            open: Mutex::default(),
            gone: AtomicU64::new(0),
            said: Mutex::default(),
        }
    }

    /// A place, if need be that of the connection which has waited longest for
    /// its client. `None` where none waits.
    fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut open = lock(&self.open);
        if open.states.len() >= self.most {
            let waiting = open.states.iter().filter_map(|(number, state)| {
                let since = *lock(&state.waits_since);
                since.map(|since| (since, *number))
            });
            let longest = waiting.min().map(|(_, number)| number);
            self.say();
            // Permission is kept where the connection does not wait for it yet.
            open.states.remove(&longest?)?.leave.notify_one();
        }
        let state = Arc::new(State {
            waits_since: Mutex::new(Some(Instant::now())),
            leave: Notify::new(),
        });
        let number = open.next;
        open.next += 1;
        open.states.insert(number, Arc::clone(&state));
        Some(Place {
            number,
            state,
            places: Arc::clone(self),
        })
    }

    /// One had to go. A flood of them is not a flood of lines.
    fn say(&self) {
        let gone = self.gone.fetch_add(1, Ordering::Relaxed) + 1;
        let mut said = lock(&self.said);
        if said.is_some_and(|said| said.elapsed() < SAID_EVERY) {
            return;
        }
        *said = Some(Instant::now());
        self.gone.store(0, Ordering::Relaxed);
        tracing::warn!(
            connections = self.most,
            closed = gone,
            "the admin listener is full: connections that wait for their client are closed for new ones"
        );
    }
}

impl State {
    fn waits(&self) {
        *lock(&self.waits_since) = Some(Instant::now());
    }

    fn works(&self) {
        *lock(&self.waits_since) = None;
    }

    /// Comes back when the client has been waited for so long. A head and a
    /// body have shorter times of their own, so this is a client that does not
    /// take its answer.
    async fn overdue(&self, longest: Duration) {
        loop {
            let since = *lock(&self.waits_since);
            let until = since.unwrap_or_else(Instant::now) + longest;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It is not there where it was given away.
        lock(&self.places.open).states.remove(&self.number);
    }
}

fn lock<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these.
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Longer than any test takes.
    const LONG: Duration = Duration::from_secs(3600);
    /// When a test has failed.
    const DEADLINE: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(20);
    const LONG_BOUNDS: Bounds = Bounds {
        connections: 4,
        head: LONG,
        body: LONG,
        answer: LONG,
    };
    const PROBE: &str = "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

    /// What a page that takes its time has been through.
    #[derive(Clone, Default)]
    struct Slow {
        entered: Arc<Notify>,
        go: Arc<Notify>,
    }

    /// A listener with these bounds, and with a page that waits for `go`, one
    /// that is larger than what a socket holds, and one that says how much it
    /// was sent.
    async fn listener(bounds: Bounds, slow: Slow) -> SocketAddr {
        let router = Router::new()
            .route("/health", get(|| async { "up" }))
            .route("/large", get(|| async { "x".repeat(32 << 20) }))
            .route(
                "/length",
                post(|body: String| async move { body.len().to_string() }),
            )
            .route(
                "/wait",
                get(move || async move {
                    slow.entered.notify_one();
                    slow.go.notified().await;
                    "done"
                }),
            );
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(serve(listener, |source| Some(*source), router, bounds));
        address
    }

    async fn sends(address: SocketAddr, bytes: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(bytes.as_bytes()).await.expect("sent");
        stream
    }

    /// What comes until the other side closes, in whatever way it does.
    async fn rest(mut stream: TcpStream) -> String {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        String::from_utf8_lossy(&all).into_owned()
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_is_not_waited_for() {
        let bounds = Bounds {
            head: SHORT,
            ..LONG_BOUNDS
        };
        let address = listener(bounds, Slow::default()).await;
        for sent in ["", "GET /heal", "GET /health HTTP/1.1\r\nX-A: "] {
            let answer = rest(sends(address, sent).await).await;
            assert!(!answer.contains("200 OK"), "{sent:?}: {answer}");
        }
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed() {
        let bounds = Bounds {
            head: Duration::from_millis(200),
            ..LONG_BOUNDS
        };
        let address = listener(bounds, Slow::default()).await;
        // On a machine that is slow the head may be late, and is tried again.
        loop {
            let stream = sends(address, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let answer = rest(stream).await;
            if answer.ends_with("up") {
                return;
            }
            assert_eq!(answer, "");
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let bounds = Bounds {
            body: SHORT,
            ..LONG_BOUNDS
        };
        let address = listener(bounds, Slow::default()).await;
        for (path, head) in [
            ("/length", "Content-Length: 9\r\n\r\nhalf"),
            ("/length", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
            ("/nothing", "Content-Length: 9\r\n\r\n"),
        ] {
            let request = format!("POST {path} HTTP/1.1\r\nHost: a\r\n{head}");
            let answer = rest(sends(address, &request).await).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{head:?}: {answer}");
            assert!(answer.contains("the request's body took too long"));
        }
    }

    #[tokio::test]
    async fn a_whole_body_reaches_its_page() {
        let address = listener(LONG_BOUNDS, Slow::default()).await;
        for length in [0, MAX_FORM_BYTES] {
            let body = "x".repeat(length);
            let request = format!(
                "POST /length HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            let answer = rest(sends(address, &request).await).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{length}: {answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{length}")), "{answer}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_not_taken_is_not_waited_for() {
        let bounds = Bounds {
            answer: SHORT,
            ..LONG_BOUNDS
        };
        let address = listener(bounds, Slow::default()).await;
        let mut stream = sends(address, "GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await;
        // No byte of the answer is taken. What is sent is answered by a reset
        // when the other side has closed.
        let closed = async {
            while stream.write_all(b"x").await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, closed)
            .await
            .expect("it is closed");
    }

    #[tokio::test]
    async fn who_has_waited_longest_makes_room() {
        let address = listener(LONG_BOUNDS, Slow::default()).await;
        let mut held = Vec::new();
        for _ in 0..LONG_BOUNDS.connections {
            held.push(sends(address, "GET /health HTTP/1.1\r\nX-A: ").await);
        }
        // More probes than there are places, one after the other.
        for _ in 0..3 {
            let answer = rest(sends(address, PROBE).await).await;
            assert!(answer.ends_with("up"), "{answer}");
        }
        assert_eq!(rest(held.remove(0)).await, "", "the first had to go");
        // The last one has its place yet.
        let mut last = held.pop().expect("one of them");
        last.write_all(b"a\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await
            .expect("sent");
        assert!(rest(last).await.ends_with("up"));
    }

    #[tokio::test]
    async fn who_is_being_served_keeps_the_place() {
        let places = Arc::new(Places::new(2));
        let working: Vec<_> = (0..2).map(|_| places.enter().expect("room")).collect();
        for place in &working {
            place.state.works();
        }
        assert!(places.enter().is_none(), "nobody waits for a client");
        working[1].state.waits();
        let third = places.enter().expect("the second makes room");
        working[1].state.leave.notified().await;
        drop(working);
        assert_eq!(lock(&places.open).states.len(), 1);
        drop(third);
        assert_eq!(lock(&places.open).states.len(), 0);

        // And over sockets: what a page works on is not cut by those who come.
        let page = Slow::default();
        let address = listener(LONG_BOUNDS, page.clone()).await;
        let request = "GET /wait HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let slow = sends(address, request).await;
        page.entered.notified().await;
        let mut flood = Vec::new();
        for _ in 0..2 * LONG_BOUNDS.connections {
            flood.push(sends(address, "GET ").await);
        }
        let answer = rest(sends(address, PROBE).await).await;
        assert!(answer.ends_with("up"), "{answer}");
        page.go.notify_one();
        assert!(rest(slow).await.ends_with("done"));
    }
}

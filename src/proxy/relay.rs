//! Bytes both ways, once a tunnel stands.
//!
//! An idle tunnel holds no buffer: reads go into one that the thread's tunnels
//! share, and only what the other side cannot take at once is kept.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::gate::{Admission, Budget, TunnelEnd, Way};

/// What is read at once.
const CHUNK: usize = 64 * 1024;
/// How soon a budget is looked at again that replicas are settling.
const PAUSE: Duration = Duration::from_millis(2);
/// Chunks one direction may move before the other tasks get their turn.
const TURN: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// How much has gone each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) up: u64,
    pub(super) down: u64,
}

/// Carries bytes until both sides have closed, one has failed, or nothing has
/// moved for `idle`. A close on one side is passed on and the other goes on.
/// What runs over a budget of bytes is cut.
pub(super) struct Relay<'a, A, B> {
    admission: Option<&'a Admission>,
    /// While replicas settle what is left of a budget.
    pause: Option<Pin<Box<Sleep>>>,
    client: &'a mut A,
    upstream: &'a mut B,
    up: Direction,
    down: Direction,
    idle: Duration,
    moved: Instant,
    timer: Pin<Box<Sleep>>,
}

struct Direction {
    way: Way,
    /// The budget is used up.
    over: bool,
    /// What is left of the budget is not known yet.
    waits: bool,
    kept: Vec<u8>,
    sent: usize,
    unflushed: bool,
    ended: bool,
    closed: bool,
    carried: u64,
}

impl<'a, A, B> Relay<'a, A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    pub(super) fn new(client: &'a mut A, upstream: &'a mut B, idle: Duration) -> Self {
        let moved = Instant::now();
        Self {
            admission: None,
            pause: None,
            client,
            upstream,
            up: Direction::new(Way::Up),
            down: Direction::new(Way::Down),
            idle,
            moved,
            timer: Box::pin(tokio::time::sleep_until(moved + idle)),
        }
    }

    /// The same, within the budgets of an admission.
    pub(super) fn within(mut self, admission: &'a Admission) -> Self {
        let limited = admission.limits_bytes(Way::Up) || admission.limits_bytes(Way::Down);
        self.admission = limited.then_some(admission);
        self
    }

    /// Which way the budget was used up, where one was.
    pub(super) fn over(&self) -> Option<Way> {
        [&self.up, &self.down]
            .into_iter()
            .find(|direction| direction.over)
            .map(|direction| direction.way)
    }

    pub(super) fn carried(&self) -> Carried {
        Carried {
            up: self.up.carried,
            down: self.down.carried,
        }
    }
}

impl<A, B> Future for Relay<'_, A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    type Output = TunnelEnd;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TunnelEnd> {
        let this = self.get_mut();
        let before = this.carried();
        let up = this.up.poll(cx, this.client, this.upstream, this.admission);
        let down = this
            .down
            .poll(cx, this.upstream, this.client, this.admission);
        if this.up.over || this.down.over {
            return Poll::Ready(TunnelEnd::Budget);
        }
        match (up, down) {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(TunnelEnd::Closed),
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => {
                return Poll::Ready(TunnelEnd::Reset);
            }
            _ => {}
        }
        if this.carried() != before {
            this.moved = Instant::now();
        }
        if this.up.waits || this.down.waits {
            let pause = this
                .pause
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(PAUSE)));
            if pause.as_mut().poll(cx).is_ready() {
                this.pause = None;
                cx.waker().wake_by_ref();
            }
        }
        // The timer is moved only when it fires, not with every byte.
        while this.timer.as_mut().poll(cx).is_ready() {
            let due = this.moved + this.idle;
            if due <= Instant::now() {
                return Poll::Ready(TunnelEnd::Idle);
            }
            this.timer.as_mut().reset(due);
        }
        Poll::Pending
    }
}

impl Direction {
    fn new(way: Way) -> Self {
        Self {
            way,
            over: false,
            waits: false,
            kept: Vec::new(),
            sent: 0,
            unflushed: false,
            ended: false,
            closed: false,
            carried: 0,
        }
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        admission: Option<&Admission>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.closed {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURN {
            std::task::ready!(self.poll_kept(cx, to))?;
            if self.ended {
                std::task::ready!(Pin::new(to).poll_shutdown(cx))?;
                self.closed = true;
                return Poll::Ready(Ok(()));
            }
            match self.poll_move(cx, from, to, admission) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    if self.unflushed {
                        std::task::ready!(Pin::new(to).poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends what the other side could not take before.
    fn poll_kept<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        while self.sent < self.kept.len() {
            let count =
                std::task::ready!(Pin::new(&mut *to).poll_write(cx, &self.kept[self.sent..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count;
        }
        if !self.kept.is_empty() {
            self.kept = Vec::new();
            self.sent = 0;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_move<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        admission: Option<&Admission>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        self.waits = false;
        // No more is read than may pass. Where nothing may, one byte tells
        // whether there is more: a tunnel that ends with its budget is whole.
        let most = match admission.map(|admission| admission.bytes_left(self.way)) {
            None => CHUNK,
            Some(Budget::Bytes(left)) => usize::try_from(left).unwrap_or(CHUNK).min(CHUNK),
            Some(Budget::UsedUp) => 0,
            Some(Budget::Later) => {
                self.waits = true;
                return Poll::Pending;
            }
        };
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(&mut scratch[..most.max(1)]);
            std::task::ready!(Pin::new(from).poll_read(cx, &mut buf))?;
            let bytes = buf.filled();
            if most == 0 && !bytes.is_empty() {
                self.over = true;
                return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()));
            }
            if let Some(admission) = admission {
                admission.bytes_passed(self.way, bytes.len() as u64);
            }
            if bytes.is_empty() {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            self.carried += bytes.len() as u64;
            self.unflushed = true;
            let written = match Pin::new(to).poll_write(cx, bytes) {
                Poll::Ready(result) => result?,
                Poll::Pending => 0,
            };
            if written < bytes.len() {
                self.kept = bytes[written..].to_vec();
                self.sent = 0;
            }
            Poll::Ready(Ok(()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn bytes_go_both_ways_and_a_half_close_is_passed_on() {
        let (mut client, mut near) = duplex(64);
        let (mut far, mut upstream) = duplex(64);
        let sent: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        let expected = sent.clone();
        let relay = async {
            let mut relay = Relay::new(&mut near, &mut far, Duration::from_secs(600));
            let end = (&mut relay).await;
            (end, relay.carried())
        };
        let client_side = async {
            client.write_all(&sent).await.expect("write");
            client.shutdown().await.expect("shutdown");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.expect("read");
            answer
        };
        let upstream_side = async {
            let mut got = Vec::new();
            upstream.read_to_end(&mut got).await.expect("read");
            assert!(got == expected, "all bytes in order");
            // Only after the client's half is closed does the answer come.
            upstream.write_all(b"answer").await.expect("write");
            upstream.shutdown().await.expect("shutdown");
        };
        let ((end, carried), answer, ()) = tokio::join!(relay, client_side, upstream_side);
        assert_eq!(end, TunnelEnd::Closed);
        assert_eq!(answer, b"answer");
        assert_eq!(
            carried,
            Carried {
                up: 800_000,
                down: 6
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_for_too_long_is_idle_and_a_byte_puts_it_off() {
        let (mut client, mut near) = duplex(64);
        let (mut far, mut upstream) = duplex(64);
        let started = Instant::now();
        let relay = Relay::new(&mut near, &mut far, Duration::from_secs(10));
        let peer = async {
            tokio::time::sleep(Duration::from_secs(7)).await;
            client.write_all(b"x").await.expect("write");
            let mut byte = [0];
            upstream.read_exact(&mut byte).await.expect("read");
            std::future::pending::<()>().await;
        };
        let end = tokio::select! { end = relay => end, () = peer => unreachable!() };
        assert_eq!(end, TunnelEnd::Idle);
        assert_eq!(started.elapsed().as_secs(), 17);
    }
}

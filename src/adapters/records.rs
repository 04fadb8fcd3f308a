//! Where records go: a queue in memory, one thread that writes, and the files
//! it writes to.
//!
//! A record that has been pushed is written, in order and once, or the log says
//! that it is failing and keeps it. Whether new work may begin meanwhile is for
//! the operator to choose ([`Overflow`]) and for `gate` to obey. What stands in
//! a record is `audit`'s business.

mod destination;

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::audit::AuditRecord;
use crate::gate::ports::{AuditSink, BoxFuture, SinkState};

pub use destination::{FileWriter, Rotation, StreamWriter};

/// What happens to new work while the log cannot keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// It waits for room in the queue.
    Block,
    /// It is refused: when the queue is full, and at once when the destination
    /// fails.
    Deny,
}

/// When what was written is forced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When the operating system pleases.
    None,
    /// After each batch; a record counts as written only after that.
    Batch,
    /// This often, where something was written.
    Interval(Duration),
}

/// How the log behaves.
#[derive(Clone, Copy, Debug)]
pub struct AuditLogSettings {
    /// How many records may wait in memory before `overflow` applies. Records
    /// of work that has begun are taken beyond it.
    pub capacity: usize,
    /// What happens then.
    pub overflow: Overflow,
    /// When what was written is forced to the disk.
    pub durability: Durability,
}

impl Default for AuditLogSettings {
    fn default() -> Self {
        Self {
            capacity: 65_536,
            overflow: Overflow::Block,
            durability: Durability::None,
        }
    }
}

/// A destination of lines. Everything is called by the one writing thread.
pub trait RecordWriter: Send {
    /// Writes some of the bytes and says how many, as [`io::Write::write`].
    ///
    /// # Errors
    /// Whatever the destination answers. `WouldBlock` is taken as slowness,
    /// anything else as failure; either way the same bytes come again.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Forces what was written to the disk, where there is one.
    ///
    /// # Errors
    /// Whatever the destination answers; it is asked again.
    fn sync(&mut self) -> io::Result<()>;

    /// Begins anew, as after a rotation by someone else. What follows begins
    /// with a whole line.
    ///
    /// # Errors
    /// Whatever the destination answers. It must then stay as it was.
    fn reopen(&mut self) -> io::Result<()>;

    /// Whether the destination is no longer where its name says, so that it
    /// should be opened again. Asked before every write.
    fn moved(&self) -> bool {
        false
    }

    /// Called between batches, at the beginning of a line, with the number of
    /// bytes to come: the moment to rotate.
    fn make_room(&mut self, _coming: usize) {}
}

/// The audit log. Shared; dropping the last handle lets the thread drain what
/// is queued, [`AuditLog::close`] waits for it.
#[derive(Debug)]
pub struct AuditLog {
    queue: Sender<Message>,
    shared: Arc<Shared>,
    settings: AuditLogSettings,
}

/// How the log is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditLogState {
    /// Records taken and not yet written.
    pub depth: usize,
    /// Records written since the start.
    pub written: u64,
    /// Whether the destination fails at present.
    pub failing: bool,
}

/// Records that were still unwritten when the log was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{left} audit records could not be written in time")]
pub struct Unwritten {
    /// How many.
    pub left: usize,
}

impl AuditLog {
    /// Starts the writing thread.
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub fn start(
        settings: AuditLogSettings,
        destination: Box<dyn RecordWriter>,
    ) -> io::Result<Self> {
        let (queue, incoming) = channel();
        let shared = Arc::new(Shared::default());
        let scribe = Scribe {
            incoming,
            destination,
            durability: settings.durability,
            shared: Arc::clone(&shared),
            buffer: Vec::with_capacity(BATCH_BYTES + BATCH_BYTES / 4),
            records: 0,
            unsynced: None,
        };
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || scribe.run())?;
        Ok(Self {
            queue,
            shared,
            settings,
        })
    }

    /// How the log is doing.
    #[must_use]
    pub fn state(&self) -> AuditLogState {
        AuditLogState {
            depth: self.shared.depth.load(Ordering::Relaxed),
            written: self.shared.written.load(Ordering::Relaxed),
            failing: self.shared.failing.load(Ordering::Relaxed),
        }
    }

    /// Has the destination opened again, as after a rotation by someone else.
    pub fn reopen(&self) {
        self.shared.orders().reopen = true;
        self.wake();
    }

    /// Writes what is queued and ends. Nothing must be pushed afterwards: it
    /// would not be written.
    ///
    /// Blocks the calling thread for at most `timeout`.
    ///
    /// # Errors
    /// Says how many records are left, where the destination is too slow or
    /// fails.
    pub fn close(&self, timeout: Duration) -> Result<(), Unwritten> {
        let deadline = Instant::now() + timeout;
        self.shared.orders().close = Some(deadline);
        self.wake();
        let mut orders = self.shared.orders();
        while !orders.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            orders = self
                .shared
                .changed
                .wait_timeout(orders, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        drop(orders);
        match self.shared.depth.load(Ordering::Acquire) {
            0 => Ok(()),
            left => Err(Unwritten { left }),
        }
    }

    fn wake(&self) {
        self.shared.changed.notify_all();
        // Where the thread has ended there is nobody to wake.
        let _ = self.queue.send(Message::Wake);
    }
}

impl AuditSink for AuditLog {
    fn push(&self, record: AuditRecord) {
        self.shared.depth.fetch_add(1, Ordering::Relaxed);
        if self.queue.send(Message::Record(record)).is_err() {
            // Counted and never written, so the log stays not ready.
            tracing::error!("an audit record came after the log was closed and is lost");
        }
    }

    fn ready(&self) -> SinkState {
        if self.shared.ended.load(Ordering::Relaxed) {
            return SinkState::Full;
        }
        let full = self.shared.depth.load(Ordering::Relaxed) >= self.settings.capacity;
        match self.settings.overflow {
            Overflow::Block if full => SinkState::Wait,
            Overflow::Deny if full || self.shared.failing.load(Ordering::Relaxed) => {
                SinkState::Full
            }
            Overflow::Block | Overflow::Deny => SinkState::Ready,
        }
    }

    fn wait(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            loop {
                let mut room = pin!(self.shared.room.notified());
                // Registered before looking, so that room made in between is
                // not missed.
                room.as_mut().enable();
                if self.ready() == SinkState::Ready || self.shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                room.await;
            }
        })
    }
}

/// How many records are at most serialised for one write.
const BATCH_RECORDS: usize = 1024;
/// How many bytes are at most serialised for one write, up to one record more.
const BATCH_BYTES: usize = 256 * 1024;
/// How long records are gathered before they are written together.
const GATHER: Duration = Duration::from_millis(2);
/// The first pause after a failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The pause after a destination that takes nothing at the moment.
const SLOW_PAUSE: Duration = Duration::from_millis(5);

#[expect(
    clippy::large_enum_variant,
    reason = "all but a few messages are records, and a box would be an allocation for each"
)]
enum Message {
    Record(AuditRecord),
    /// Orders have changed.
    Wake,
}

#[derive(Debug, Default)]
struct Shared {
    depth: AtomicUsize,
    written: AtomicU64,
    failing: AtomicBool,
    ended: AtomicBool,
    /// Told when the queue has become shorter or the destination works again.
    room: Notify,
    orders: Mutex<Orders>,
    /// Told when the orders have changed, in either direction.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Orders {
    reopen: bool,
    /// Write what is there and end, at the latest then.
    close: Option<Instant>,
    ended: bool,
}

impl Shared {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing thread.
struct Scribe {
    incoming: Receiver<Message>,
    destination: Box<dyn RecordWriter>,
    durability: Durability,
    shared: Arc<Shared>,
    /// Whole lines, not yet written as a batch.
    buffer: Vec<u8>,
    /// How many records they are.
    records: usize,
    /// When something was first written that is not forced to the disk yet.
    unsynced: Option<Instant>,
}

/// Whether the thread should go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Work,
    /// The last handle was dropped or the log was closed, and nothing is left;
    /// or the time to close is over.
    End,
}

impl Scribe {
    fn run(mut self) {
        let end = EndOfThread(Arc::clone(&self.shared));
        loop {
            let next = self.collect();
            if self.write_batch() == Next::End || next == Next::End {
                break;
            }
            self.sync_when_due();
        }
        if self.unsynced.is_some()
            && self.durability != Durability::None
            && let Err(error) = self.destination.sync()
        {
            tracing::error!(%error, "the last audit records may not be on the disk");
        }
        drop(end);
    }

    /// Waits for records and serialises those that are there.
    fn collect(&mut self) -> Next {
        // Once closing, nothing new is waited for.
        if self.shared.orders().close.is_some() {
            return self.take_queued(None);
        }
        let first = match self.until_sync() {
            Some(left) => match self.incoming.recv_timeout(left) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => return Next::Work,
                Err(RecvTimeoutError::Disconnected) => return Next::End,
            },
            None => match self.incoming.recv() {
                Ok(message) => message,
                Err(_) => return Next::End,
            },
        };
        // While this thread sleeps nobody has to wake it: under load, waking it
        // for every record would cost more than writing it.
        std::thread::sleep(GATHER);
        self.take_queued(Some(first));
        Next::Work
    }

    /// Serialises what is queued, up to a batch. `End` where nothing was.
    fn take_queued(&mut self, first: Option<Message>) -> Next {
        let mut found = Next::End;
        let mut message = first.or_else(|| self.incoming.try_recv().ok());
        while let Some(taken) = message {
            found = Next::Work;
            if let Message::Record(record) = taken {
                record.write_line(&mut self.buffer);
                self.records += 1;
            }
            if self.records >= BATCH_RECORDS || self.buffer.len() >= BATCH_BYTES {
                break;
            }
            message = self.incoming.try_recv().ok();
        }
        found
    }

    /// Writes the batch, however long that takes; obeys orders meanwhile.
    fn write_batch(&mut self) -> Next {
        if self.buffer.is_empty() {
            // Nothing is lost where this fails: the next batch tries again.
            if let Err(error) = self.reopen_when_due(0) {
                self.fails(&error);
            }
            return Next::Work;
        }
        self.destination.make_room(self.buffer.len());
        let mut written = 0;
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.write_rest(&mut written) {
            if error.kind() == io::ErrorKind::WouldBlock {
                if self.pause(SLOW_PAUSE) == Next::End {
                    return Next::End;
                }
                continue;
            }
            self.fails(&error);
            if self.pause(pause) == Next::End {
                return Next::End;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.works();
        self.unsynced.get_or_insert_with(Instant::now);
        if self.durability == Durability::Batch && self.sync_until_done() == Next::End {
            return Next::End;
        }
        self.settle();
        Next::Work
    }

    /// Writes from `written` on and moves it, so that a write that stops half
    /// way goes on where it stopped.
    fn write_rest(&mut self, written: &mut usize) -> io::Result<()> {
        *written = self.reopen_when_due(*written)?;
        while *written < self.buffer.len() {
            match self.destination.write(&self.buffer[*written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => *written += more.min(self.buffer.len() - *written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens the destination again where it is ordered or has moved, and
    /// returns where to go on: at the beginning of the line that was being
    /// written, since the new place has not seen its first half.
    ///
    /// Failing is an error only where it has moved: what a deleted file takes
    /// is lost, while a file that is still in its place goes on.
    fn reopen_when_due(&mut self, written: usize) -> io::Result<usize> {
        let ordered = std::mem::take(&mut self.shared.orders().reopen);
        let moved = self.destination.moved();
        if !ordered && !moved {
            return Ok(written);
        }
        match self.destination.reopen() {
            Ok(()) => Ok(self.buffer[..written]
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |feed| feed + 1)),
            Err(error) if moved => Err(error),
            Err(error) => {
                tracing::error!(%error, "the audit log cannot be opened again; it goes on as it was");
                Ok(written)
            }
        }
    }

    fn sync_until_done(&mut self) -> Next {
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.destination.sync() {
            self.fails(&error);
            if self.pause(pause) == Next::End {
                return Next::End;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.unsynced = None;
        self.works();
        Next::Work
    }

    fn sync_when_due(&mut self) {
        if self.until_sync().is_some_and(|left| left.is_zero()) {
            // Also where the time to close is over: the thread then ends by itself.
            self.sync_until_done();
        }
    }

    /// How long until the disk is due, where it will be.
    fn until_sync(&self) -> Option<Duration> {
        match (self.durability, self.unsynced) {
            (Durability::Interval(interval), Some(since)) => {
                Some(interval.saturating_sub(since.elapsed()))
            }
            _ => None,
        }
    }

    /// The batch is written.
    fn settle(&mut self) {
        let records = std::mem::take(&mut self.records);
        self.buffer.clear();
        // One huge batch must not hold its memory for ever.
        self.buffer.shrink_to(2 * BATCH_BYTES);
        self.shared
            .written
            .fetch_add(records as u64, Ordering::Relaxed);
        self.shared.depth.fetch_sub(records, Ordering::Release);
        self.shared.room.notify_waiters();
    }

    fn fails(&self, error: &io::Error) {
        if !self.shared.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "audit records cannot be written; they are kept and tried again");
        }
    }

    fn works(&self) {
        if self.shared.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("audit records are written again");
            self.shared.room.notify_waiters();
        }
    }

    /// Waits, but not beyond the time to close, and not once there are orders.
    fn pause(&self, length: Duration) -> Next {
        let orders = self.shared.orders();
        if orders.reopen {
            return Next::Work;
        }
        let now = Instant::now();
        let length = match orders.close {
            Some(deadline) if deadline <= now => return Next::End,
            Some(deadline) => length.min(deadline - now),
            None => length,
        };
        drop(
            self.shared
                .changed
                .wait_timeout(orders, length)
                .unwrap_or_else(PoisonError::into_inner),
        );
        Next::Work
    }
}

/// Says that the thread has ended, however it ends.
struct EndOfThread(Arc<Shared>);

impl Drop for EndOfThread {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
        self.0.orders().ended = true;
        self.0.changed.notify_all();
        self.0.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests;

//! Notices that files have changed, and reads them whole.
//!
//! A change counts when a writer has closed the file, when another file or
//! link was put in its place, or when it has come or gone; never in the middle
//! of a write, since half a policy can be a valid policy. Links are followed
//! on every step of a path, so that Kubernetes' `..data` is seen to move. What
//! the files say is read elsewhere.
//!
//! The kernel's events do the work. A look at the files every [`POLL`] finds
//! what they cannot tell: a directory on the way that was replaced, and changes
//! on file systems of other machines.

mod trail;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use nix::libc::O_NONBLOCK;
use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use trail::Trail;

/// The most bytes that a watched file may have.
pub const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// How often the files are looked at. What two looks agree on counts, so that
/// a change is noticed within a second in any case.
pub const POLL: Duration = Duration::from_millis(400);

/// What a [`Watch`] tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Something has changed, and more may be about to. What is read now may
    /// be what [`Change::Settled`] will find, or half of it.
    Stirred,
    /// Something has changed, and has come to rest.
    Settled,
}

/// Watches files and directories of files. Ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    changes: mpsc::Receiver<()>,
    stirs: mpsc::Receiver<()>,
    thread: Sender<Signal>,
}

impl Watch {
    /// Watches these paths from now on. Each is a file or a directory whose
    /// files count, without those below and those whose name begins with a
    /// dot; none need exist yet. Start watching before the first reading, so
    /// that no change is missed in between.
    ///
    /// # Errors
    /// Where a path cannot be made absolute or the thread cannot be started.
    /// Where the kernel has no watches left, the files are polled instead and
    /// a warning is logged.
    pub fn start(paths: Vec<PathBuf>) -> io::Result<Self> {
        let paths = paths
            .iter()
            .map(std::path::absolute)
            .collect::<io::Result<_>>()?;
        // One is enough: whoever reads it reads everything anew.
        let (tell, changes) = mpsc::channel(1);
        let (stir, stirs) = mpsc::channel(1);
        let (signals, incoming) = channel();
        let mut watcher = Watcher {
            paths,
            tell,
            stir,
            signals: signals.clone(),
            armed: Armed::default(),
            pending: Pending::default(),
            looks: Looks::default(),
        };
        watcher.arm();
        watcher.looks.settle(prints(&watcher.paths));
        std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || watcher.run(&incoming))?;
        Ok(Self {
            changes,
            stirs,
            thread: signals,
        })
    }

    /// Comes back when something has changed since the last time. `None` where
    /// watching has ended, which it does not by itself.
    ///
    /// May be dropped and called again without a loss.
    pub async fn changed(&mut self) -> Option<()> {
        self.changes.recv().await
    }

    /// As [`Watch::changed`], and also comes back as soon as something stirs,
    /// for whoever can do a part of his work before it has come to rest.
    pub async fn stirred_or_changed(&mut self) -> Option<Change> {
        tokio::select! {
            biased;
            settled = self.changes.recv() => {
                // What stirred before is at rest now.
                let _ = self.stirs.try_recv();
                settled.map(|()| Change::Settled)
            }
            Some(()) = self.stirs.recv() => Some(Change::Stirred),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Where the thread has ended there is nobody to tell.
        let _ = self.thread.send(Signal::Stop);
    }
}

/// How often [`read_stable`] looks again at a file that changes under it.
const MORE_LOOKS: usize = 8;

/// Reads a regular file whole, following links.
///
/// # Errors
/// What the system answers; `InvalidInput` for anything but a regular file,
/// `FileTooLarge` over [`MAX_FILE_BYTES`], and `ResourceBusy` where it changed
/// while it was read: a writer is at work, and its end will be noticed.
pub fn read_stable(path: &Path) -> io::Result<Vec<u8>> {
    // One that is renamed over just now is there whole at the next look; one that
    // is written where it lies may not be, and is not waited for.
    let busy = |read: &io::Result<_>| {
        let error = read.as_ref().err();
        error.is_some_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
    };
    let mut read = read_version(path);
    for _ in 0..MORE_LOOKS {
        if !busy(&read) {
            break;
        }
        read = read_version(path);
    }
    read.map(|(bytes, _)| bytes)
}

/// As [`read_stable`], with what tells this version of the file from others.
///
/// # Errors
/// As [`read_stable`].
pub fn read_version(path: &Path) -> io::Result<(Vec<u8>, Version)> {
    let explain = |kind, what: &str| io::Error::new(kind, format!("{}: {what}", path.display()));
    let named = |error: io::Error| explain(error.kind(), &error.to_string());
    let mut file = OpenOptions::new()
        .read(true)
        // A FIFO must not hold up whoever reads.
        .custom_flags(O_NONBLOCK)
        .open(path)
        .map_err(named)?;
    let before = file.metadata().map_err(named)?;
    if !before.is_file() {
        return Err(explain(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let too_large = || {
        let what = format!("larger than {MAX_FILE_BYTES} bytes");
        explain(io::ErrorKind::FileTooLarge, &what)
    };
    if before.len() > MAX_FILE_BYTES {
        return Err(too_large());
    }
    // One more byte, at which the end shows.
    let length = usize::try_from(before.len()).unwrap_or(0) + 1;
    let mut bytes = Vec::with_capacity(length);
    file.by_ref()
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(named)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_large());
    }
    let version = Version::of(&before);
    if !unchanged(path, &file, version, bytes.len() as u64).map_err(named)? {
        return Err(explain(
            io::ErrorKind::ResourceBusy,
            "changed while it was read; write it under another name and rename it into place",
        ));
    }
    Ok((bytes, version))
}

/// What tells one version of a file from another without reading it: which
/// file, its size, and when it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    file: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    /// That of the file under a path, following links.
    ///
    /// # Errors
    /// What the system answers.
    pub fn under(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|found| Self::of(&found))
    }

    fn of(found: &Metadata) -> Self {
        Self {
            file: (found.dev(), found.ino()),
            bytes: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }

    /// Whether a later change is sure to show. Clocks of file systems go in
    /// steps, of two seconds at the most, within which two versions look alike.
    #[must_use]
    pub fn is_telling(&self, now: SystemTime) -> bool {
        const STEP: Duration = Duration::from_secs(2);
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let last = self.changed.0.max(self.modified.0);
        // The second that it was changed in is over as well.
        u64::try_from(last).is_ok_and(|last| now.as_secs() > last.saturating_add(STEP.as_secs()))
    }
}

/// Whether the file is as it was before it was read, and still in its place.
fn unchanged(path: &Path, file: &File, before: Version, read: u64) -> io::Result<bool> {
    let (after, named) = (Version::of(&file.metadata()?), Version::under(path)?);
    Ok(read == before.bytes && before == after && before == named)
}

/// How long nothing must happen before a change is told: several files are
/// often written at once.
const QUIET: Duration = Duration::from_millis(50);
/// How long a change may wait for quiet.
const LONGEST: Duration = Duration::from_millis(400);
/// How long it may wait for someone who is writing another file.
const HOLD: Duration = Duration::from_secs(5);

enum Signal {
    Event(notify::Result<Event>),
    Stop,
}

/// The watching thread.
struct Watcher {
    paths: Vec<PathBuf>,
    tell: mpsc::Sender<()>,
    stir: mpsc::Sender<()>,
    signals: Sender<Signal>,
    armed: Armed,
    pending: Pending,
    looks: Looks,
}

/// What is watched at present.
#[derive(Default)]
struct Armed {
    /// Holds the kernel's watches.
    _kernel: Option<RecommendedWatcher>,
    trail: Arc<Trail>,
    /// Whether a file has come that is watched by its directory only, until
    /// there is time.
    stale: bool,
    /// Whether contents must be looked at, since events may not come.
    contents: bool,
}

impl Watcher {
    fn run(mut self, incoming: &Receiver<Signal>) {
        let mut next_look = Instant::now() + POLL;
        loop {
            let now = Instant::now();
            let wait = next_look.min(self.pending.due().unwrap_or(next_look)) - now.min(next_look);
            let mut signal = match incoming.recv_timeout(wait.min(POLL)) {
                Ok(signal) => Some(signal),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // All that has happened, before anything is done about it.
            let mut paths_changed = false;
            while let Some(now_handled) = signal {
                match now_handled {
                    Signal::Stop => return,
                    Signal::Event(event) => paths_changed |= self.handle(event),
                }
                signal = incoming.try_recv().ok();
            }
            let stirred = self.pending.has_stirred();
            if stirred {
                // Most have no use for it, and never look.
                let _ = self.stir.try_send(());
            }
            if paths_changed {
                self.arm();
            }
            if stirred {
                self.settle();
            }
            let now = Instant::now();
            if now >= next_look {
                next_look = now + POLL;
                if self.armed.stale {
                    self.arm();
                }
                self.look(now);
            }
            if self.pending.is_due(now) {
                if self.pending.told() {
                    self.settle();
                }
                // Where it is full, someone is told already.
                if let Err(mpsc::error::TrySendError::Closed(())) = self.tell.try_send(()) {
                    return;
                }
            }
        }
    }

    /// Takes in an event; says whether paths may lead elsewhere now.
    fn handle(&mut self, event: notify::Result<Event>) -> bool {
        let now = Instant::now();
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            Ok(_) | Err(_) => {
                // Events were lost: everything may have changed.
                self.pending.touch(now);
                return true;
            }
        };
        let mut paths_changed = false;
        for path in &event.paths {
            if self.armed.trail.concerns(path) {
                let what = happening(event.kind, path);
                if !matches!(what, What::Nothing | What::Write | What::Close) {
                    paths_changed |= self.armed.trail.leads_on(path);
                    self.armed.stale = true;
                }
                self.pending.happened(what, path, now);
            }
        }
        paths_changed
    }

    /// Takes what stands there now for what will be told. Whatever comes after
    /// this and without an event, a look finds; so it must not be done after
    /// somebody was told, and may be done long before, while nothing else is
    /// to do.
    fn settle(&mut self) {
        self.looks.settle(prints(&self.paths));
    }

    fn look(&mut self, now: Instant) {
        let found = prints(&self.paths);
        if self.looks.look(found, self.armed.contents, &self.pending) {
            self.arm();
            self.pending.touch(now);
        }
    }

    /// Watches what the paths lead to now. All watches are made anew: that is
    /// rare, and the kernel's are bound to files, not to names.
    fn arm(&mut self) {
        let trail = Arc::new(Trail::follow(&self.paths));
        let kernel = self.kernel(&trail);
        if let Err(error) = &kernel {
            tracing::warn!(%error, "files cannot be watched by the kernel's events and are polled");
        }
        self.armed = Armed {
            contents: kernel.is_err() || trail.is_remote(),
            _kernel: kernel.ok(),
            trail,
            stale: false,
        };
    }

    fn kernel(&self, trail: &Arc<Trail>) -> notify::Result<RecommendedWatcher> {
        let (signals, known) = (self.signals.clone(), Arc::clone(trail));
        let mut kernel = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let idle = event.as_ref().is_ok_and(|event| match event.kind {
                // Opening and reading, our own among it, is not worth waking for.
                EventKind::Access(how) => how != AccessKind::Close(AccessMode::Write),
                // Nor what is written to others, such as an audit log beside them.
                EventKind::Modify(ModifyKind::Data(_)) if !event.need_rescan() => {
                    !event.paths.iter().any(|path| known.concerns(path))
                }
                _ => false,
            });
            if !idle {
                // Where the thread has ended nobody needs to know.
                let _ = signals.send(Signal::Event(event));
            }
        })?;
        for path in trail.watched() {
            match kernel.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => {}
                // Gone since; the look will find what has come instead.
                Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(kernel)
    }
}

/// What an event means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Nothing,
    /// Someone is writing, and will close.
    Write,
    /// A writer has closed it.
    Close,
    /// It has come, gone or been replaced, whole.
    Replace,
    /// A file has come that someone will write to and close.
    Begin,
    /// A directory has come. What is in it may be half written, so that only
    /// its files are told of.
    Directory,
}

fn happening(kind: EventKind, path: &Path) -> What {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => What::Close,
        EventKind::Modify(ModifyKind::Data(_)) => What::Write,
        EventKind::Modify(ModifyKind::Name(
            RenameMode::To | RenameMode::From | RenameMode::Both,
        ))
        | EventKind::Remove(_) => What::Replace,
        EventKind::Create(_) => match std::fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => What::Directory,
            // A second name for a file, which nobody need ever close.
            Ok(found) if found.is_file() && found.nlink() > 1 => What::Replace,
            Ok(found) if found.is_file() => What::Begin,
            Ok(_) => What::Replace,
            Err(_) => What::Nothing,
        },
        _ => What::Nothing,
    }
}

/// A change that has not been told yet, and who is writing meanwhile.
#[derive(Debug, Default)]
struct Pending {
    /// When it was first and last seen.
    since: Option<(Instant, Instant)>,
    /// Whether there is something new in it that nobody was told of at all.
    stirred: bool,
    writing: HashSet<PathBuf>,
}

impl Pending {
    fn happened(&mut self, what: What, path: &Path, now: Instant) {
        match what {
            What::Nothing | What::Directory => {}
            What::Write | What::Begin => {
                self.writing.insert(path.to_owned());
            }
            What::Close | What::Replace => {
                self.writing.remove(path);
                self.touch(now);
            }
        }
    }

    fn touch(&mut self, now: Instant) {
        let first = self.since.map_or(now, |(first, _)| first);
        self.since = Some((first, now));
        self.stirred = true;
    }

    /// Whether there is something new to read, whole as far as can be told.
    /// Says it once.
    fn has_stirred(&mut self) -> bool {
        self.writing.is_empty() && std::mem::take(&mut self.stirred)
    }

    /// When it can be told, where nothing more happens.
    fn due(&self) -> Option<Instant> {
        let (first, last) = self.since?;
        if self.writing.is_empty() {
            return Some((last + QUIET).min(first + LONGEST));
        }
        // Whoever reads now would read the half of that file, too.
        Some(first + HOLD)
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due().is_some_and(|due| due <= now)
    }

    /// Nothing is left to tell. Says whether something of it had not stirred.
    fn told(&mut self) -> bool {
        self.since = None;
        let silent = std::mem::take(&mut self.stirred);
        for path in self.writing.drain() {
            tracing::warn!(path = %path.display(),
                "a watched file has been open for writing for long; it may be read half written");
        }
        silent
    }

    fn is_writing(&self, path: &Path) -> bool {
        // Events have the place that a path leads to.
        !self.writing.is_empty()
            && path
                .canonicalize()
                .is_ok_and(|place| self.writing.contains(&place))
    }
}

/// What stands under each path: `None` where nothing does.
/// In the order of the paths, as bytes: there may be thousands of them.
type Prints = Vec<(OsString, Option<Print>)>;

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Print {
    /// Which file, and who may read it.
    identity: (u64, u64, u32, u32, u32),
    /// When it was written to, and its size.
    contents: (i64, i64, u64),
}

/// Looks at the files from time to time.
#[derive(Debug, Default)]
struct Looks {
    /// What has been told.
    told: Prints,
    /// What the last look found, where that was something else.
    last: Option<Prints>,
}

impl Looks {
    fn settle(&mut self, prints: Prints) {
        self.told = prints;
        self.last = None;
    }

    /// Whether something has changed that no event told of. Two looks must
    /// agree, so that events come first and nobody is seen in the middle of a
    /// write.
    fn look(&mut self, found: Prints, contents: bool, pending: &Pending) -> bool {
        let differs = |path: &OsStr, now: &Option<Print>| {
            let before = under(&self.told, path).copied().flatten();
            let same = match (before, now) {
                (Some(before), Some(now)) if contents => before == *now,
                (Some(before), Some(now)) => before.identity == now.identity,
                (before, now) => before.is_none() && now.is_none(),
            };
            !same && !pending.is_writing(Path::new(path))
        };
        if found == self.told {
            self.last = None;
            return false;
        }
        let gone = |path: &OsStr| under(&found, path).is_none();
        let changed = found.iter().any(|(path, now)| differs(path, now))
            || self
                .told
                .iter()
                .any(|(path, before)| before.is_some() && gone(path));
        if !changed {
            self.last = None;
            return false;
        }
        let agreed = self.last.as_ref() == Some(&found);
        self.last = Some(found);
        agreed
    }
}

fn prints(paths: &[PathBuf]) -> Prints {
    let mut found = Prints::new();
    for path in paths {
        let metadata = std::fs::metadata(path).ok();
        if metadata.as_ref().is_some_and(Metadata::is_dir) {
            for file in trail::files_of(path) {
                let print = std::fs::metadata(&file).ok().as_ref().map(print);
                found.push((file.into_os_string(), print));
            }
        }
        found.push((path.into(), metadata.as_ref().map(print)));
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found.dedup_by(|(a, _), (b, _)| a == b);
    found
}

fn under<'a>(prints: &'a Prints, path: &OsStr) -> Option<&'a Option<Print>> {
    let place = prints.binary_search_by(|(one, _)| one.as_os_str().cmp(path));
    place.ok().map(|place| &prints[place].1)
}

fn print(metadata: &Metadata) -> Print {
    let (uid, gid) = (metadata.uid(), metadata.gid());
    Print {
        identity: (metadata.dev(), metadata.ino(), metadata.mode(), uid, gid),
        // A directory changes with each file in it, which is looked at itself.
        contents: if metadata.is_dir() {
            (0, 0, 0)
        } else {
            (metadata.mtime(), metadata.mtime_nsec(), metadata.len())
        },
    }
}

#[cfg(test)]
mod tests;

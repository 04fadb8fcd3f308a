//! A small text file that several processes change: read, changed and replaced
//! whole under a lock, so that nobody loses what another has written and
//! nobody reads half of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::watch::read_stable;

/// How long another process may hold the lock. It is held for one write.
const LONGEST_LOCK: Duration = Duration::from_secs(5);

/// What the file holds; `None` where there is none.
///
/// # Errors
/// What the system answers, with the path; `InvalidData` where it is no UTF-8.
pub fn read(path: &Path) -> io::Result<Option<String>> {
    let bytes = match read_stable(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8(bytes).map_err(|_| {
        let what = format!("{}: the file is not UTF-8", path.display());
        io::Error::new(io::ErrorKind::InvalidData, what)
    })?;
    Ok(Some(text))
}

/// Changes the file: `change` is given what it holds, and gives what it shall
/// hold, or `None` to leave it as it is. A new file gets this mode; one that is
/// there keeps its own.
///
/// # Errors
/// Those of `change`, and what the system answers, with the path; `TimedOut`
/// where another process has held the lock for long.
pub fn change<T, E: From<io::Error>>(
    path: &Path,
    mode: u32,
    change: impl FnOnce(Option<String>) -> Result<(Option<String>, T), E>,
) -> Result<T, E> {
    // What a link leads to is replaced, and not the link.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let _lock = lock(path)?;
    let (text, result) = change(read(path)?)?;
    if let Some(text) = text {
        replace(path, mode, &text).map_err(|error| named(path, &error))?;
    }
    Ok(result)
}

/// Replaces a file whole, without a lock; modes as with [`change`].
///
/// # Errors
/// What the system answers, with the path.
pub(super) fn put(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    replace(path, mode, text).map_err(|error| named(path, &error))
}

/// The lock is a file beside, since the file itself is replaced.
fn lock(path: &Path) -> io::Result<Flock<File>> {
    let place = beside(path, ".lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&place)
        .map_err(|error| named(&place, &error))?;
    let started = Instant::now();
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, error)) => return Err(named(&place, &error.into())),
        };
        if started.elapsed() > LONGEST_LOCK {
            let what = format!("{}: another process holds the lock", place.display());
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn replace(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let new = beside(path, ".new");
    let mode = fs::metadata(path).map_or(mode, |meta| meta.permissions().mode() & 0o777);
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    // The umask has no say in who may read it.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

/// A hidden name beside the file, which readers of folders pass over.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{ending}"))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(path: &Path, line: &str) {
        change(path, 0o640, |text| {
            let mut text = text.unwrap_or_default();
            text.push_str(line);
            Ok::<_, io::Error>((Some(text), ()))
        })
        .expect("changed");
    }

    #[test]
    fn what_many_write_at_once_is_all_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("list");
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    for line in 0..25 {
                        add(path, &format!("{writer}-{line}\n"));
                    }
                });
            }
        });
        let text = read(&path).expect("read").expect("there");
        assert_eq!(text.lines().count(), 200);
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn a_file_keeps_its_mode_and_a_link_its_target() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, link) = (folder.path().join("list"), folder.path().join("link"));
        assert_eq!(read(&path).expect("no error"), None);
        add(&path, "one\n");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).expect("set");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        add(&link, "two\n");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(read(&path).expect("read").as_deref(), Some("one\ntwo\n"));
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o604);
    }

    #[test]
    fn a_change_that_fails_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("list");
        add(&path, "one\n");
        let failed = change(&path, 0o600, |_| {
            Err::<(Option<String>, ()), _>(io::Error::other("no"))
        });
        assert!(failed.is_err());
        assert_eq!(read(&path).expect("read").as_deref(), Some("one\n"));
    }
}

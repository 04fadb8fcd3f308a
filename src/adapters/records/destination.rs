//! Places to write lines to: a stream that is already open, and a file with
//! its rotation.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;

use super::RecordWriter;

/// A stream that is open already, such as standard output.
#[derive(Debug)]
pub struct StreamWriter(File);

impl StreamWriter {
    /// Standard output, without a buffer of its own.
    ///
    /// # Errors
    /// Where the process has none.
    pub fn stdout() -> io::Result<Self> {
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self(stdout.into()))
    }
}

impl From<File> for StreamWriter {
    fn from(file: File) -> Self {
        Self(file)
    }
}

impl RecordWriter for StreamWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        sync(&self.0)
    }

    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// When a file is put aside, and how many are kept: `audit.log.1` is the
/// newest of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// No batch makes a file larger than this, unless it is alone in it.
    pub max_bytes: u64,
    /// How many old files are kept, at least one. Older ones are removed.
    pub keep: u32,
}

/// A file that lines are appended to.
///
/// It is created with mode 0600, and opened again when something else stands
/// under its name. A line that a crash cut short is ended first.
#[derive(Debug)]
pub struct FileWriter {
    path: PathBuf,
    file: File,
    size: u64,
    rotation: Option<Rotation>,
    /// Said once, not with every batch.
    rotation_failed: bool,
}

impl FileWriter {
    /// Opens or creates the file; the directory must be there. A FIFO must
    /// have a reader.
    ///
    /// # Errors
    /// Where it cannot be opened, with the path in the message.
    pub fn open(path: impl Into<PathBuf>, rotation: Option<Rotation>) -> io::Result<Self> {
        let path = path.into();
        let (file, size) = append_to(&path)?;
        Ok(Self {
            path,
            file,
            size,
            rotation,
            rotation_failed: false,
        })
    }

    fn rotate(&mut self, keep: u32) -> io::Result<()> {
        for number in (1..keep.max(1)).rev() {
            match std::fs::rename(self.numbered(number), self.numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        std::fs::rename(&self.path, self.numbered(1))?;
        let old = std::mem::replace(self, Self::open(&self.path, self.rotation)?);
        sync(&old.file)
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

impl RecordWriter for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn sync(&mut self) -> io::Result<()> {
        sync(&self.file)
    }

    fn reopen(&mut self) -> io::Result<()> {
        // What the old file was given is still owed to its disk.
        let old = std::mem::replace(self, Self::open(&self.path, self.rotation)?);
        if let Err(error) = sync(&old.file) {
            tracing::error!(%error, "the audit file that was put aside may not be whole on the disk");
        }
        Ok(())
    }

    fn moved(&self) -> bool {
        let Ok(ours) = self.file.metadata() else {
            return false;
        };
        match std::fs::metadata(&self.path) {
            Ok(named) => (named.dev(), named.ino()) != (ours.dev(), ours.ino()),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    fn make_room(&mut self, coming: usize) {
        let Some(rotation) = self.rotation else {
            return;
        };
        if self.size == 0 || self.size + coming as u64 <= rotation.max_bytes {
            return;
        }
        match self.rotate(rotation.keep) {
            Ok(()) => self.rotation_failed = false,
            Err(error) if self.rotation_failed => {
                tracing::debug!(%error, "the audit file still cannot be rotated");
            }
            Err(error) => {
                self.rotation_failed = true;
                tracing::error!(%error, path = %self.path.display(),
                    "the audit file cannot be rotated; it goes on growing");
            }
        }
    }
}

/// Opens for appending, and gives the size; the last line is whole.
fn append_to(path: &Path) -> io::Result<(File, u64)> {
    let explain =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        // A FIFO without a reader must not hold up the start, nor a slow one
        // the end; it means nothing to a regular file.
        .custom_flags(O_NONBLOCK)
        .open(path)
        .map_err(explain)?;
    let metadata = file.metadata().map_err(explain)?;
    if !metadata.is_file() {
        return Ok((file, 0));
    }
    let mut size = metadata.len();
    if size > 0 && last_byte(path).map_err(explain)? != b'\n' {
        file.write_all(b"\n").map_err(explain)?;
        size += 1;
    }
    Ok((file, size))
}

fn last_byte(path: &Path) -> io::Result<u8> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    let mut byte = [0];
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Forces to the disk, where the file is on one: a pipe or a terminal has
/// nothing to force, and says so.
fn sync(file: &File) -> io::Result<()> {
    match file.sync_data() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

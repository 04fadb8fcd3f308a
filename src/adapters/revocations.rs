//! Where revocations are kept, so that they outlive a gateway and all replicas
//! see the same: a file, on a volume that they share.

use std::io;
use std::path::{Path, PathBuf};

use crate::identity::{Revocation, RevocationError, Revoked};

use super::shared_file;

/// The list tells nothing that opens a door, and a gateway that could not read
/// it would go on without it.
const MODE: u32 = 0o644;

/// Why a list of revocations cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is none.
    #[error("{0}: there is no such file")]
    Missing(String),
    /// What the system answered, with the path.
    #[error("{0}")]
    System(#[from] io::Error),
    /// It cannot be understood.
    #[error("{place}: {error}")]
    Content {
        /// The file.
        place: String,
        /// What is wrong with it.
        error: RevocationError,
    },
    /// What was to be added cannot mean anything.
    #[error("{0}")]
    Entry(RevocationError),
}

/// A list of revocations in a file: one JSON object in each line.
#[derive(Clone, Debug)]
pub struct RevocationFile {
    path: PathBuf,
}

impl RevocationFile {
    /// The list in this file, which need not be there yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes an empty list where there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn create(&self) -> Result<(), StoreError> {
        if self.path.exists() {
            return Ok(());
        }
        shared_file::change(&self.path, MODE, |text| {
            Ok((text.is_none().then(String::new), ()))
        })
    }

    /// Every entry, ended ones included.
    ///
    /// # Errors
    /// [`StoreError`]. A list that is gone is an error, and not an empty one:
    /// who was revoked a moment ago still is.
    pub fn list(&self) -> Result<Vec<Revocation>, StoreError> {
        match shared_file::read(&self.path)? {
            Some(text) => self.parse(&text),
            None => Err(StoreError::Missing(self.path.display().to_string())),
        }
    }

    /// Adds an entry, in place of one that revokes the same, and drops those
    /// that have ended at `now`, in seconds since 1970. Of two entries for the
    /// same the one that ends last decides when.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add(&self, mut entry: Revocation, now: u64) -> Result<(), StoreError> {
        entry.check().map_err(StoreError::Entry)?;
        shared_file::change(&self.path, MODE, |text| {
            let mut entries = self.parse(&text.unwrap_or_default())?;
            entries.retain(|known| known.is_in_force(now));
            if let Some(at) = entries
                .iter()
                .position(|known| known.what() == entry.what())
            {
                let known = entries.remove(at);
                entry.at = entry.at.max(known.at);
                entry.until = match (entry.until, known.until) {
                    (Some(one), Some(other)) => Some(one.max(other)),
                    (None, _) | (_, None) => None,
                };
            }
            entries.push(entry);
            Ok((Some(lines(&entries)), ()))
        })
    }

    /// Takes an entry back. Says whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, what: &Revoked, now: u64) -> Result<bool, StoreError> {
        shared_file::change(&self.path, MODE, |text| {
            let Some(text) = text else {
                return Ok((None, false));
            };
            let mut entries = self.parse(&text)?;
            let before = entries.len();
            entries.retain(|known| known.what() != *what);
            let found = entries.len() < before;
            entries.retain(|known| known.is_in_force(now));
            Ok((found.then(|| lines(&entries)), found))
        })
    }

    fn parse(&self, text: &str) -> Result<Vec<Revocation>, StoreError> {
        Revocation::parse_list(text).map_err(|error| StoreError::Content {
            place: self.path.display().to_string(),
            error,
        })
    }
}

fn lines(entries: &[Revocation]) -> String {
    entries.iter().map(|entry| entry.line() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::RevokedKind;

    fn entry(value: &str, at: u64, until: Option<u64>) -> Revocation {
        Revocation {
            kind: RevokedKind::Agent,
            value: value.into(),
            tenant: None,
            at,
            until,
            reason: None,
        }
    }

    #[test]
    fn entries_are_added_renewed_dropped_and_taken_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let list = RevocationFile::new(&folder.path().join("revoked.jsonl"));
        assert!(matches!(list.list(), Err(StoreError::Missing(_))));
        assert!(
            !list
                .remove(&entry("a", 1, None).what(), 1)
                .expect("nothing")
        );
        list.create().expect("created");
        assert_eq!(list.list().expect("empty"), []);
        list.add(entry("a", 10, Some(100)), 10).expect("added");
        list.add(entry("b", 10, Some(50)), 10).expect("added");
        // A shorter one does not shorten what was said before.
        list.add(entry("a", 20, Some(90)), 20).expect("renewed");
        assert_eq!(
            list.list().expect("two"),
            [entry("b", 10, Some(50)), entry("a", 20, Some(100))]
        );
        list.add(entry("c", 60, None), 60).expect("added");
        assert_eq!(
            list.list().expect("b has ended"),
            [entry("a", 20, Some(100)), entry("c", 60, None)]
        );
        assert!(
            list.remove(&entry("a", 0, None).what(), 60)
                .expect("taken back")
        );
        assert_eq!(list.list().expect("one"), [entry("c", 60, None)]);
    }

    #[test]
    fn a_broken_list_is_not_written_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("revoked.jsonl");
        std::fs::write(&path, "nonsense\n").expect("written");
        let list = RevocationFile::new(&path);
        let error = list.list().expect_err("nonsense").to_string();
        assert!(error.contains("line 1"), "{error}");
        assert!(list.add(entry("a", 1, None), 1).is_err());
        assert!(list.add(entry("a b", 1, None), 1).is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "nonsense\n");
    }
}

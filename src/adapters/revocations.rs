//! Where revocations are kept, so that they outlive a gateway and all replicas
//! see the same: a file, on a volume that they share, or Redis.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::identity::{Revocation, RevocationError, Revoked};

use super::redis::{Redis, RedisFailure};
use super::shared_file;
use super::watch::Watch;

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
    /// Redis is away, or does not do what it is asked.
    #[error("{0}")]
    Redis(#[from] RedisFailure),
}

/// How often Redis is asked whether the list has changed: one GET by each
/// gateway. A message on a channel could be lost where nobody would notice;
/// a number that is asked for cannot.
const ASK: Duration = Duration::from_millis(250);

/// A list of revocations, wherever it is.
#[derive(Clone, Debug)]
pub enum RevocationStore {
    /// In a file.
    File(RevocationFile),
    /// In Redis.
    Redis(RedisRevocations),
}

/// Tells that the list may have changed.
#[derive(Debug)]
pub enum Changes {
    /// Of a file.
    File(Watch),
    /// Of Redis: the version that was seen last; none while it is away.
    Redis(RedisRevocations, Option<String>),
}

impl RevocationStore {
    /// Every entry, ended ones included.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self) -> Result<Vec<Revocation>, StoreError> {
        match self {
            Self::File(file) => aside(file, |file| file.list()).await,
            Self::Redis(redis) => redis.list().await,
        }
    }

    /// As [`RevocationFile::add`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add(&self, entry: Revocation, now: u64) -> Result<(), StoreError> {
        match self {
            Self::File(file) => aside(file, move |file| file.add(entry, now)).await,
            Self::Redis(redis) => redis.add(entry, now).await,
        }
    }

    /// As [`RevocationFile::remove`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove(&self, what: Revoked, now: u64) -> Result<bool, StoreError> {
        match self {
            Self::File(file) => aside(file, move |file| file.remove(&what, now)).await,
            Self::Redis(redis) => redis.remove(&what).await,
        }
    }

    /// Puts the list back where Redis has come back without it: it keeps
    /// nothing over a restart where nobody has told it to, and who was revoked
    /// would be let in again. Says whether it did.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn restore(&self, known: &[Revocation]) -> Result<bool, StoreError> {
        match self {
            // A file that is gone is an error, and not an empty list.
            Self::File(_) => Ok(false),
            Self::Redis(redis) => redis.restore(known).await,
        }
    }

    /// Follows the list from now on.
    ///
    /// # Errors
    /// Where a file cannot be watched.
    pub fn follow(&self) -> io::Result<Changes> {
        Ok(match self {
            Self::File(file) => Changes::File(Watch::start(vec![file.path.clone()])?),
            Self::Redis(redis) => Changes::Redis(redis.clone(), None),
        })
    }
}

impl Changes {
    /// Comes back when the list may have changed, or cannot be asked for any
    /// more.
    pub async fn changed(&mut self) {
        match self {
            Self::File(watch) => {
                if watch.changed().await.is_none() {
                    std::future::pending::<()>().await;
                }
            }
            Self::Redis(redis, seen) => loop {
                tokio::time::sleep(ASK).await;
                let now = redis.version().await.ok();
                // Away, it is told again and again, and so noticed when it
                // comes back with another list or none.
                if now.is_none() || now != *seen {
                    *seen = now;
                    return;
                }
            },
        }
    }
}

impl Changes {
    /// The list could not be read this time: it is looked at again, also where
    /// it has not changed since.
    pub fn look_again(&mut self) {
        match self {
            // What is wrong with a file stays wrong until it changes.
            Self::File(_) => {}
            Self::Redis(_, seen) => *seen = None,
        }
    }
}

async fn aside<T: Send + 'static>(
    file: &RevocationFile,
    work: impl FnOnce(&RevocationFile) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let file = file.clone();
    match tokio::task::spawn_blocking(move || work(&file)).await {
        Ok(done) => done,
        Err(error) => Err(StoreError::System(io::Error::other(error))),
    }
}

/// A list of revocations in Redis: a hash with an entry in each field, and a
/// number that every change raises.
#[derive(Clone, Debug)]
pub struct RedisRevocations {
    redis: Redis,
}

impl RedisRevocations {
    /// The list behind this connection.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        Self { redis }
    }

    fn entries_key(&self) -> String {
        self.redis.key("revocations")
    }

    fn version_key(&self) -> String {
        self.redis.key("revocations:version")
    }

    /// The number of the last change; `0` where there never was one.
    async fn version(&self) -> Result<String, StoreError> {
        let command = redis::Cmd::get(self.version_key());
        let version: Option<String> = self.redis.ask(&command).await?;
        Ok(version.unwrap_or_else(|| "0".to_owned()))
    }

    async fn list(&self) -> Result<Vec<Revocation>, StoreError> {
        let lines: Vec<String> = self
            .redis
            .ask(&redis::Cmd::hvals(self.entries_key()))
            .await?;
        let mut entries = self.parse(&lines)?;
        // A hash has no order of its own.
        entries.sort_by_key(|entry| (entry.at, entry.what()));
        Ok(entries)
    }

    async fn add(&self, mut entry: Revocation, now: u64) -> Result<(), StoreError> {
        entry.check().map_err(StoreError::Entry)?;
        let entries = self.list().await?;
        if let Some(known) = entries.iter().find(|known| known.what() == entry.what())
            && known.is_in_force(now)
        {
            entry.reach_as_far_as(known);
        }
        let mut change = redis::pipe();
        change.atomic();
        for ended in entries.iter().filter(|known| !known.is_in_force(now)) {
            change
                .hdel(self.entries_key(), field(&ended.what()))
                .ignore();
        }
        change
            .hset(self.entries_key(), field(&entry.what()), entry.line())
            .ignore()
            .incr(self.version_key(), 1)
            .ignore();
        self.run(&change).await
    }

    async fn remove(&self, what: &Revoked) -> Result<bool, StoreError> {
        let removed: u64 = self
            .redis
            .ask(&redis::Cmd::hdel(self.entries_key(), field(what)))
            .await?;
        // Raised also where there was none: that makes gateways look, no more.
        let raise = redis::Cmd::incr(self.version_key(), 1);
        let _: i64 = self.redis.ask(&raise).await?;
        Ok(removed > 0)
    }

    async fn restore(&self, known: &[Revocation]) -> Result<bool, StoreError> {
        if known.is_empty() || self.version().await? != "0" {
            return Ok(false);
        }
        let mut change = redis::pipe();
        change.atomic();
        for entry in known {
            // Another gateway may have been here, or somebody has revoked anew.
            change
                .hset_nx(self.entries_key(), field(&entry.what()), entry.line())
                .ignore();
        }
        change.incr(self.version_key(), 1).ignore();
        self.run(&change).await?;
        Ok(true)
    }

    async fn run(&self, change: &redis::Pipeline) -> Result<(), StoreError> {
        let mut connection = self.redis.connection().ok_or_else(|| self.redis.away())?;
        let done: Result<(), redis::RedisError> = change.query_async(&mut connection).await;
        done.map_err(|error| StoreError::Redis(self.redis.failed(error)))
    }

    fn parse(&self, lines: &[String]) -> Result<Vec<Revocation>, StoreError> {
        lines
            .iter()
            .map(|line| {
                Revocation::parse(line).map_err(|error| StoreError::Content {
                    place: format!("Redis, {}", self.entries_key()),
                    error,
                })
            })
            .collect()
    }
}

/// The name of an entry's field: what it revokes.
fn field(what: &Revoked) -> String {
    let tenant = what.tenant.as_deref().unwrap_or("");
    format!("{} {tenant} {}", what.kind, what.value)
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
                entry.reach_as_far_as(&entries.remove(at));
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

//! Where revocations are kept, so that they outlive a gateway and all replicas
//! see the same: a file, on a volume that they share, or Redis.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::identity::{Revocation, RevocationError, Revoked};

use super::host;
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
    #[error(transparent)]
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

/// How often Redis is asked whether the list has changed: one question by each
/// gateway. A message on a channel could be lost where nobody would notice;
/// a number that is asked for cannot.
const ASK: Duration = Duration::from_millis(250);

/// How many changes of a list in Redis are remembered by their mark. A gateway
/// that has missed more of them gives back what it holds, which revokes too
/// much and never too little.
const CHANGES: usize = 10_000;

/// A list of revocations, wherever it is.
#[derive(Clone, Debug)]
pub enum RevocationStore {
    /// In a file.
    File(RevocationFile),
    /// In Redis.
    Redis(RedisRevocations),
}

/// What a gateway has read of a list, so that it can tell a list that somebody
/// has changed from one that has lost something.
#[derive(Clone, Debug, Default)]
pub struct Held {
    entries: Vec<Revocation>,
    place: Place,
}

impl Held {
    /// The entries of the last reading, ended ones included.
    #[must_use]
    pub fn entries(&self) -> &[Revocation] {
        &self.entries
    }
}

/// Where the history of a list in Redis stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    /// The number of the last change; 0 where there never was one.
    version: u64,
    /// The mark of the last change that has one.
    change: Option<String>,
    /// How many entries there are.
    count: u64,
}

impl Place {
    /// What is no number is no version of ours, and lost as if it were none.
    fn of(version: Option<String>, changes: Vec<String>, count: u64) -> Self {
        Self {
            version: version
                .and_then(|version| version.parse().ok())
                .unwrap_or(0),
            change: changes.into_iter().next(),
            count,
        }
    }

    /// Whether there are fewer entries than the last change has left: a Redis
    /// that is short of memory may drop them all.
    fn is_short(&self) -> bool {
        let left = self
            .change
            .as_deref()
            .and_then(|mark| mark.rsplit_once(' '))
            .and_then(|(_, left)| left.parse().ok());
        left.is_some_and(|left: u64| self.count < left)
    }
}

/// Tells that the list may have changed.
#[derive(Debug)]
pub enum Changes {
    /// Of a file.
    File(Watch),
    /// Of Redis.
    Redis(RedisChanges),
}

/// Asks Redis again and again whether the list has changed.
#[derive(Debug)]
pub struct RedisChanges {
    list: RedisRevocations,
    /// Where it stood last; none while Redis is away.
    seen: Option<Place>,
}

impl RevocationStore {
    /// Every entry, ended ones included.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self) -> Result<Vec<Revocation>, StoreError> {
        match self {
            Self::File(file) => aside(file, |file| file.list()).await,
            Self::Redis(redis) => Ok(redis.look(None).await?.entries),
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

    /// Reads the list into `held`, for one who has read it before. Where Redis
    /// has lost something since, it is given back all that is still in force
    /// at `now`, in seconds since 1970: it keeps nothing over a restart where
    /// nobody has told it to, a replica that takes over may lag, and a dump is
    /// of yesterday, and who was revoked would be let in again. Says whether
    /// that was so.
    ///
    /// # Errors
    /// [`StoreError`]; `held` is then as it was.
    pub async fn read(&self, held: &mut Held, now: u64) -> Result<bool, StoreError> {
        match self {
            // A file that is gone is an error, and not an empty list.
            Self::File(_) => {
                held.entries = self.list().await?;
                Ok(false)
            }
            Self::Redis(redis) => redis.read(held, now).await,
        }
    }

    /// Follows the list from now on.
    ///
    /// # Errors
    /// Where a file cannot be watched.
    pub fn follow(&self) -> io::Result<Changes> {
        Ok(match self {
            Self::File(file) => Changes::File(Watch::start(vec![file.path.clone()])?),
            Self::Redis(redis) => Changes::Redis(RedisChanges {
                list: redis.clone(),
                seen: None,
            }),
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
            Self::Redis(redis) => loop {
                tokio::time::sleep(ASK).await;
                let now = redis.list.place().await.ok();
                // Away, it is told again and again, and so noticed when it
                // comes back with another list or none.
                if now.is_none() || now != redis.seen {
                    redis.seen = now;
                    return;
                }
            },
        }
    }

    /// The list could not be read this time: it is looked at again, also where
    /// it has not changed since.
    pub fn look_again(&mut self) {
        match self {
            // What is wrong with a file stays wrong until it changes.
            Self::File(_) => {}
            Self::Redis(redis) => redis.seen = None,
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

/// Changes the list at once: `KEYS` are the entries, the version and the marks,
/// `ARGV` the mark of this change, the least version before it, how many marks
/// to keep, and for each entry its field, what it must be (`*` anything, nothing
/// for no entry) and what it becomes (nothing to take it out). Gives how many
/// were changed. The version rises also where none was: that makes gateways
/// look, no more.
///
/// A mark ends in the number of entries that its change has left. Where there
/// are fewer by now, entries were lost without a change, and all marks go: so
/// no gateway finds its own, and each gives back what it holds.
const CHANGE: &str = r"
local last = redis.call('ZRANGE', KEYS[3], -1, -1)[1] or ''
if redis.call('HLEN', KEYS[1]) < (tonumber(string.match(last, '%d+$')) or 0) then
  redis.call('DEL', KEYS[3])
end
local version = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
version = string.format('%d', math.max(version, tonumber(ARGV[2])) + 1)
local changed = 0
for at = 4, #ARGV, 3 do
  local field, before, after = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if before == '*' or before == (redis.call('HGET', KEYS[1], field) or '') then
    if after == '' then
      changed = changed + redis.call('HDEL', KEYS[1], field)
    else
      redis.call('HSET', KEYS[1], field, after)
      changed = changed + 1
    end
  end
end
redis.call('SET', KEYS[2], version)
redis.call('ZADD', KEYS[3], version, ARGV[1] .. ' ' .. redis.call('HLEN', KEYS[1]))
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - ARGV[3])
return changed
";

/// A list of revocations in Redis: a hash with an entry in each field, a number
/// that every change raises, and beside it a random mark of each change, by
/// which a gateway knows that the list has come from the one that it has read
/// and not from an older one with the same number.
#[derive(Clone, Debug)]
pub struct RedisRevocations {
    redis: Redis,
}

/// The list at one moment.
struct Look {
    entries: Vec<Revocation>,
    /// The lines as they are, by their field.
    lines: HashMap<String, String>,
    place: Place,
    /// Whether the change that was asked for is one of those that led here.
    descends: bool,
}

impl RedisRevocations {
    /// The list behind this connection.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        Self { redis }
    }

    /// The entries, the version and the marks of changes.
    fn keys(&self) -> [String; 3] {
        ["revocations", "revocations:version", "revocations:changes"]
            .map(|name| self.redis.key(name))
    }

    async fn place(&self) -> Result<Place, StoreError> {
        let [entries, version, changes] = self.keys();
        let mut ask = redis::pipe();
        ask.atomic()
            .get(version)
            .zrange(changes, -1, -1)
            .hlen(entries);
        let (version, changes, count) = self.run(&ask).await?;
        Ok(Place::of(version, changes, count))
    }

    /// The list, and whether it descends from this change.
    async fn look(&self, change: Option<&str>) -> Result<Look, StoreError> {
        let [entries, version, changes] = self.keys();
        let mut ask = redis::pipe();
        ask.atomic()
            .get(version)
            .zrange(&changes, -1, -1)
            .zscore(&changes, change.unwrap_or_default())
            .hgetall(entries);
        type Answer = (
            Option<String>,
            Vec<String>,
            Option<f64>,
            HashMap<String, String>,
        );
        let (version, changes, score, lines): Answer = self.run(&ask).await?;
        let mut entries = lines
            .values()
            .map(|line| {
                Revocation::parse(line).map_err(|error| StoreError::Content {
                    place: format!("Redis, {}", self.redis.key("revocations")),
                    error,
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        // A hash has no order of its own.
        entries.sort_by_key(|entry| (entry.at, entry.what()));
        let count = lines.len() as u64;
        Ok(Look {
            entries,
            place: Place::of(version, changes, count),
            descends: change.is_none() || score.is_some(),
            lines,
        })
    }

    async fn read(&self, held: &mut Held, now: u64) -> Result<bool, StoreError> {
        let mut look = self.look(held.place.change.as_deref()).await?;
        let lost = look.has_lost(held);
        if lost {
            let change = look.give_back(held, now);
            self.change(held.place.version, &change).await?;
            look = self.look(None).await?;
        }
        held.entries = look.entries;
        held.place = look.place;
        Ok(lost)
    }

    async fn add(&self, mut entry: Revocation, now: u64) -> Result<(), StoreError> {
        entry.check().map_err(StoreError::Entry)?;
        let entries = self.look(None).await?.entries;
        if let Some(known) = entries.iter().find(|known| known.what() == entry.what())
            && known.is_in_force(now)
        {
            entry.reach_as_far_as(known);
        }
        let ended = entries.iter().filter(|known| !known.is_in_force(now));
        let mut change: Vec<_> = ended
            .map(|ended| [field(&ended.what()), ANYTHING.to_owned(), String::new()])
            .collect();
        change.push([field(&entry.what()), ANYTHING.to_owned(), entry.line()]);
        self.change(0, &change).await?;
        Ok(())
    }

    async fn remove(&self, what: &Revoked) -> Result<bool, StoreError> {
        let change = [field(what), ANYTHING.to_owned(), String::new()];
        Ok(self.change(0, &[change]).await? > 0)
    }

    /// See [`CHANGE`]. Gives how many entries were changed.
    async fn change(&self, least: u64, entries: &[[String; 3]]) -> Result<u64, StoreError> {
        let script = redis::Script::new(CHANGE);
        let mut call = script.prepare_invoke();
        for key in self.keys() {
            call.key(key);
        }
        call.arg(format!("{:032x}", host::random_bits()))
            .arg(least)
            .arg(CHANGES);
        for entry in entries {
            call.arg(entry);
        }
        let mut connection = self.redis.connection().ok_or_else(|| self.redis.away())?;
        let done = call.invoke_async(&mut connection).await;
        done.map_err(|error| StoreError::Redis(self.redis.failed(error)))
    }

    async fn run<T: redis::FromRedisValue>(&self, ask: &redis::Pipeline) -> Result<T, StoreError> {
        let mut connection = self.redis.connection().ok_or_else(|| self.redis.away())?;
        let done = ask.query_async(&mut connection).await;
        done.map_err(|error| StoreError::Redis(self.redis.failed(error)))
    }
}

/// What an entry in Redis may be before it is changed; see [`CHANGE`].
const ANYTHING: &str = "*";

impl Look {
    /// Whether this is not what became of what is held: of an earlier version,
    /// by other changes, or with entries gone that nobody has taken out.
    fn has_lost(&self, held: &Held) -> bool {
        self.place.version < held.place.version || !self.descends || self.place.is_short()
    }

    /// The changes that put into it what is held and in force at `now`. Of two
    /// entries for the same both count. One that somebody changes in between
    /// is left as he wrote it.
    fn give_back(&self, held: &Held, now: u64) -> Vec<[String; 3]> {
        let in_force = held.entries.iter().filter(|entry| entry.is_in_force(now));
        in_force
            .filter_map(|entry| {
                let field = field(&entry.what());
                let before = self.lines.get(&field).cloned().unwrap_or_default();
                let mut entry = entry.clone();
                if let Some(known) = self.entries.iter().find(|at| at.what() == entry.what()) {
                    entry.reach_as_far_as(known);
                    if entry.at == known.at && entry.until == known.until {
                        return None;
                    }
                }
                Some([field, before, entry.line()])
            })
            .collect()
    }
}

/// The name of an entry's field: what it revokes. No name holds a line feed.
fn field(what: &Revoked) -> String {
    let tenant = what.tenant.as_deref().unwrap_or("");
    let mut field = format!("{} {tenant} {}", what.kind, what.value);
    if let Some(issuer) = &what.issuer {
        field.push('\n');
        field.push_str(issuer);
    }
    field
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
            issuer: None,
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

//! A folder of signing keys, as its manifest tells it: which key signs, from
//! when on, and until when each of them verifies.
//!
//! All of it follows from the manifest and the time, so that every replica
//! that reads the folder comes to the same answer at the same second, and so
//! that a key retires without anybody's doing. Files are `adapters`' affair.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::claims::MAX_DATE;
use super::json;

/// The form of the manifest that this reads and writes.
const VERSION: u32 = 1;
/// The most keys that a folder may have.
const MAX_KEYS: usize = 64;

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFolder {
    version: u32,
    keys: Vec<FolderKey>,
}

/// A key of the folder. All times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderKey {
    /// The key's id, by which tokens name it.
    pub kid: String,
    /// The name of its file in the folder.
    pub file: String,
    /// When it was made.
    pub created: u64,
    /// From when on it signs, until a later one does.
    pub signs_from: u64,
    /// From when on it verifies nothing; absent while that is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifies_until: Option<u64>,
}

/// What a key does at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It is published, verifies, and will sign.
    Waits,
    /// It signs and verifies.
    Signs,
    /// It verifies what it has signed.
    Verifies,
    /// It does nothing any more.
    Ended,
}

/// Why a manifest is refused, or a change to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FolderError {
    /// It cannot be read as a manifest.
    #[error("the manifest is damaged: {0}")]
    Damaged(String),
    /// It is of a later form.
    #[error("the manifest has version {0}, and this program reads 1: use a newer agentport")]
    Version(u32),
    /// The folder has no key that signs.
    #[error("no key of the folder signs now: make one with `agentport keys rotate`")]
    NoSigner,
    /// A rotation has begun and its key does not sign yet.
    #[error("the key {0} is published and does not sign yet: wait until it does, or retire it")]
    Waiting(String),
    /// There is no such key.
    #[error("there is no key {0:?} in the folder: `agentport keys list` shows those there are")]
    Unknown(String),
    /// The key that signs cannot be retired.
    #[error("the key {0} signs: `agentport keys rotate --overlap 0s` puts another in its place")]
    Signing(String),
    /// A time after the year 9999.
    #[error("the time is out of range: write a shorter one")]
    Time,
    /// The folder is full.
    #[error("the folder has 64 keys, which is the most: wait until some have ended")]
    Full,
}

impl KeyFolder {
    /// A folder whose first key signs from now on.
    #[must_use]
    pub fn new(kid: &str, file: &str, now: u64) -> Self {
        Self {
            version: VERSION,
            keys: vec![FolderKey {
                kid: kid.to_owned(),
                file: file.to_owned(),
                created: now,
                signs_from: now,
                verifies_until: None,
            }],
        }
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// [`FolderError::Damaged`] and [`FolderError::Version`].
    pub fn parse(text: &str) -> Result<Self, FolderError> {
        let damaged = |why: &str| FolderError::Damaged(why.to_owned());
        let members =
            json::object(text.as_bytes()).map_err(|error| damaged(&format!("it {error}")))?;
        let version = members.get("version").and_then(serde_json::Value::as_u64);
        match version.and_then(|version| u32::try_from(version).ok()) {
            Some(VERSION) => {}
            Some(later) => return Err(FolderError::Version(later)),
            None => return Err(damaged("it has no version")),
        }
        let folder: Self = serde_json::from_value(members.into())
            .map_err(|error| FolderError::Damaged(error.to_string()))?;
        if folder.keys.is_empty() || folder.keys.len() > MAX_KEYS {
            return Err(damaged("it must have 1 to 64 keys"));
        }
        for (at, key) in folder.keys.iter().enumerate() {
            let before = &folder.keys[..at];
            if before.iter().any(|other| other.kid == key.kid) {
                return Err(damaged(&format!("it has the key {:?} twice", key.kid)));
            }
            // A plain name, so that a manifest leads nowhere else.
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if !key.file.chars().all(plain) || key.file.starts_with('.') || key.file.is_empty() {
                return Err(damaged(&format!("{:?} is no plain file name", key.file)));
            }
            let dates = [key.created, key.signs_from, key.verifies_until.unwrap_or(0)];
            if dates.iter().any(|date| *date > MAX_DATE) {
                return Err(damaged(&format!(
                    "a time of {:?} is after the year 9999",
                    key.kid
                )));
            }
        }
        Ok(folder)
    }

    /// The manifest's text.
    #[must_use]
    pub fn write(&self) -> String {
        // Strings and numbers do not fail to be written.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// All keys, the oldest first.
    #[must_use]
    pub fn keys(&self) -> &[FolderKey] {
        &self.keys
    }

    /// The key that signs at `now`: of those that may, the last to begin.
    ///
    /// # Errors
    /// [`FolderError::NoSigner`].
    pub fn signer(&self, now: u64) -> Result<&FolderKey, FolderError> {
        self.keys
            .iter()
            .filter(|key| key.signs_from <= now && key.verifies(now))
            .max_by_key(|key| key.signs_from)
            .ok_or(FolderError::NoSigner)
    }

    /// The keys that verify at `now`, also those that are to sign later.
    pub fn verifying(&self, now: u64) -> impl Iterator<Item = &FolderKey> {
        self.keys.iter().filter(move |key| key.verifies(now))
    }

    /// What a key of the folder does at `now`.
    #[must_use]
    pub fn state(&self, key: &FolderKey, now: u64) -> KeyState {
        if !key.verifies(now) {
            KeyState::Ended
        } else if key.signs_from > now {
            KeyState::Waits
        } else if self.signer(now).is_ok_and(|signer| signer.kid == key.kid) {
            KeyState::Signs
        } else {
            KeyState::Verifies
        }
    }

    /// Puts in a new key: it is published now, signs after `publish_first`, and
    /// those before it verify for `overlap` after that.
    ///
    /// # Errors
    /// [`FolderError`]; the folder is then as it was.
    pub fn rotate(
        &mut self,
        kid: &str,
        file: &str,
        now: u64,
        publish_first: Duration,
        overlap: Duration,
    ) -> Result<(), FolderError> {
        if let Some(waiting) = self.verifying(now).find(|key| key.signs_from > now) {
            return Err(FolderError::Waiting(waiting.kid.clone()));
        }
        if self.keys.len() >= MAX_KEYS {
            return Err(FolderError::Full);
        }
        let later = |from: u64, by: Duration| {
            let sum = from.checked_add(by.as_secs());
            sum.filter(|at| *at <= MAX_DATE).ok_or(FolderError::Time)
        };
        let signs_from = later(now, publish_first)?;
        let until = later(signs_from, overlap)?;
        for key in &mut self.keys {
            key.verifies_until = Some(key.verifies_until.map_or(until, |end| end.min(until)));
        }
        self.keys.push(FolderKey {
            kid: kid.to_owned(),
            file: file.to_owned(),
            created: now,
            signs_from,
            verifies_until: None,
        });
        Ok(())
    }

    /// Ends a key now. Where it was still to sign, its rotation is undone and
    /// the present signer goes on.
    ///
    /// # Errors
    /// [`FolderError`]; the folder is then as it was.
    pub fn retire(&mut self, kid: &str, now: u64) -> Result<(), FolderError> {
        let key = self.keys.iter().find(|key| key.kid == kid);
        let key = key.ok_or_else(|| FolderError::Unknown(kid.to_owned()))?;
        let waits = match self.state(key, now) {
            KeyState::Signs => return Err(FolderError::Signing(kid.to_owned())),
            state => state == KeyState::Waits,
        };
        let signer = self.signer(now).map(|signer| signer.kid.clone());
        for key in &mut self.keys {
            if key.kid == kid {
                key.verifies_until = Some(key.verifies_until.map_or(now, |end| end.min(now)));
            } else if waits && signer.as_ref().is_ok_and(|signer| *signer == key.kid) {
                key.verifies_until = None;
            }
        }
        Ok(())
    }

    /// Takes out the keys that have ended, and gives their files' names.
    pub fn prune(&mut self, now: u64) -> Vec<String> {
        let (kept, ended) = std::mem::take(&mut self.keys)
            .into_iter()
            .partition(|key| key.verifies(now));
        self.keys = kept;
        let ended: Vec<FolderKey> = ended;
        ended.into_iter().map(|key| key.file).collect()
    }
}

impl FolderKey {
    /// Whether the key verifies at `now`.
    #[must_use]
    pub fn verifies(&self, now: u64) -> bool {
        self.verifies_until.is_none_or(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_767_225_600;
    const DAY: Duration = Duration::from_secs(86_400);

    fn states(folder: &KeyFolder, now: u64) -> Vec<(&str, KeyState)> {
        let of = |key| folder.state(key, now);
        let keys = folder.keys().iter();
        keys.map(|key| (key.kid.as_str(), of(key))).collect()
    }

    #[test]
    fn a_rotation_second_by_second() {
        use KeyState::{Ended, Signs, Verifies, Waits};
        let mut folder = KeyFolder::new("a", "a.pem", NOW);
        let publish_first = Duration::from_secs(10);
        folder
            .rotate("b", "b.pem", NOW + 100, publish_first, DAY)
            .expect("rotated");
        // What one replica writes, another reads.
        let folder = KeyFolder::parse(&folder.write()).expect("a manifest");
        for (case, at, expected) in [
            ("published", 100, [("a", Signs), ("b", Waits)]),
            ("the last second", 109, [("a", Signs), ("b", Waits)]),
            ("it signs", 110, [("a", Verifies), ("b", Signs)]),
            (
                "the overlap's last second",
                86_509,
                [("a", Verifies), ("b", Signs)],
            ),
            ("it retires by itself", 86_510, [("a", Ended), ("b", Signs)]),
        ] {
            assert_eq!(states(&folder, NOW + at), expected, "{case}");
        }
    }

    #[test]
    fn keys_are_retired_and_pruned() {
        use KeyState::{Ended, Signs};
        let mut folder = KeyFolder::new("a", "a.pem", NOW);
        assert_eq!(
            folder.retire("a", NOW),
            Err(FolderError::Signing("a".into()))
        );
        assert_eq!(
            folder.retire("x", NOW),
            Err(FolderError::Unknown("x".into()))
        );
        let soon = Duration::from_secs(60);
        folder
            .rotate("b", "b.pem", NOW, soon, DAY)
            .expect("rotated");
        assert_eq!(
            folder.rotate("c", "c.pem", NOW, soon, DAY),
            Err(FolderError::Waiting("b".into()))
        );
        folder.retire("b", NOW).expect("the rotation is undone");
        assert_eq!(states(&folder, NOW + 100_000), [("a", Signs), ("b", Ended)]);
        assert_eq!(folder.prune(NOW), ["b.pem"]);

        // Nothing is left of the old key where it must go at once.
        let none = Duration::ZERO;
        folder
            .rotate("c", "c.pem", NOW, none, none)
            .expect("rotated");
        assert_eq!(states(&folder, NOW), [("a", Ended), ("c", Signs)]);
        // A second rotation does not make an old key live longer.
        folder
            .rotate("d", "d.pem", NOW, none, DAY)
            .expect("rotated");
        assert_eq!(folder.prune(NOW), ["a.pem"]);
        assert_eq!(folder.keys().len(), 2);
    }

    #[test]
    fn manifests_that_are_refused() {
        let key = r#"{"kid":"a","file":"a.pem","created":1,"signs_from":1}"#;
        #[rustfmt::skip]
        let cases = [
            ("no JSON", "x".to_owned(), "the manifest is damaged: it is not valid JSON"),
            ("no version", "{}".to_owned(), "the manifest is damaged: it has no version"),
            ("a later version", r#"{"version":2}"#.to_owned(),
             "the manifest has version 2, and this program reads 1: use a newer agentport"),
            ("no key", r#"{"version":1,"keys":[]}"#.to_owned(),
             "the manifest is damaged: it must have 1 to 64 keys"),
            ("a key twice", format!(r#"{{"version":1,"keys":[{key},{key}]}}"#),
             "the manifest is damaged: it has the key \"a\" twice"),
            ("a path", format!(r#"{{"version":1,"keys":[{}]}}"#, key.replace("a.pem", "../a.pem")),
             "the manifest is damaged: \"../a.pem\" is no plain file name"),
        ];
        for (case, text, expected) in cases {
            let error = KeyFolder::parse(&text).expect_err(case);
            assert_eq!(error.to_string(), expected, "{case}");
        }
        let unknown = format!(r#"{{"version":1,"keys":[{key}],"signs":"a"}}"#);
        assert!(KeyFolder::parse(&unknown).is_err());
    }
}

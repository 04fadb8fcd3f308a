//! A folder of signing keys on disk: its manifest, and one PEM file per key.
//!
//! Whoever changes it holds a lock, writes a file whole under another name and
//! renames it into place, the key before the manifest that names it. So a
//! reader finds the old state or the new one. What a manifest means is said in
//! `identity`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::identity::{
    FolderError, FolderKey, KeyError, KeyFolder, SigningKey, VerifyingKey, generate_ed25519,
};

use super::watch::read_stable;

/// The manifest's name in the folder.
pub const MANIFEST: &str = "keyring.json";

/// Why a folder of keys cannot be used. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The system says no.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// A file cannot be read; the error names it.
    #[error(transparent)]
    Read(io::Error),
    /// There is no manifest.
    #[error("{0}: there is no {MANIFEST} in it: make one with `agentport keys generate --folder`")]
    NoManifest(PathBuf),
    /// There is one already.
    #[error("{0}: the folder has keys: `agentport keys rotate` puts in another")]
    HasKeys(PathBuf),
    /// The manifest is refused, or a change to it.
    #[error("{0}: {1}")]
    Folder(PathBuf, FolderError),
    /// A key's file is refused.
    #[error("{0}: {1}")]
    Key(PathBuf, KeyError),
    /// A file holds another key than the manifest says.
    #[error("{0}: this is the key {found}, and the manifest says {expected}", found = .1.0, expected = .1.1)]
    OtherKey(PathBuf, (String, String)),
}

/// A folder of keys as it is at one moment.
#[derive(Debug)]
pub struct Keyring {
    folder: PathBuf,
    manifest: KeyFolder,
}

impl Keyring {
    /// Reads the manifest.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn read(folder: &Path) -> Result<Self, KeyringError> {
        let file = folder.join(MANIFEST);
        let bytes = match read_stable(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(KeyringError::NoManifest(folder.to_owned()));
            }
            read => read.map_err(KeyringError::Read)?,
        };
        let text = String::from_utf8_lossy(&bytes);
        let manifest =
            KeyFolder::parse(&text).map_err(|error| KeyringError::Folder(file, error))?;
        Ok(Self {
            folder: folder.to_owned(),
            manifest,
        })
    }

    /// What the manifest says.
    #[must_use]
    pub fn manifest(&self) -> &KeyFolder {
        &self.manifest
    }

    /// The key that signs at `now`.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn signer(&self, now: u64) -> Result<SigningKey, KeyringError> {
        let entry = self
            .manifest
            .signer(now)
            .map_err(|error| KeyringError::Folder(self.folder.clone(), error))?;
        self.load(entry)
    }

    /// The keys that verify at `now`, each until it ends.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn verifying(&self, now: u64) -> Result<Vec<VerifyingKey>, KeyringError> {
        let load = |entry: &FolderKey| {
            let key = self.load(entry)?.verifying_key().clone();
            Ok(match entry.verifies_until {
                Some(until) => key.valid_until(until),
                None => key,
            })
        };
        self.manifest.verifying(now).map(load).collect()
    }

    fn load(&self, entry: &FolderKey) -> Result<SigningKey, KeyringError> {
        let file = self.folder.join(&entry.file);
        let bytes = read_stable(&file).map_err(KeyringError::Read)?;
        let key = SigningKey::from_pem(&String::from_utf8_lossy(&bytes))
            .map_err(|error| KeyringError::Key(file.clone(), error))?;
        let found = key.verifying_key().id();
        if **found != *entry.kid {
            let keys = (found.to_string(), entry.kid.clone());
            return Err(KeyringError::OtherKey(file, keys));
        }
        Ok(key)
    }

    /// Makes a folder with its first key, which signs from `now` on. Gives the
    /// key's id.
    ///
    /// # Errors
    /// [`KeyringError::HasKeys`] where there is a manifest; nothing is replaced.
    pub fn create(folder: &Path, now: u64) -> Result<String, KeyringError> {
        let io = |error| KeyringError::Io(folder.to_owned(), error);
        let made = std::fs::DirBuilder::new().mode(0o700).create(folder);
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
            _ => {}
        }
        let _lock = lock(folder)?;
        match Self::read(folder) {
            Err(KeyringError::NoManifest(_)) => {}
            Ok(_) => return Err(KeyringError::HasKeys(folder.to_owned())),
            Err(error) => return Err(error),
        }
        let (kid, file) = new_key(folder)?;
        replace(
            folder,
            MANIFEST,
            KeyFolder::new(&kid, &file, now).write().as_bytes(),
        )?;
        Ok(kid)
    }

    /// Makes a new key and puts it in; see [`KeyFolder::rotate`]. Keys that
    /// have ended go. Gives the new key's id.
    ///
    /// # Errors
    /// [`KeyringError`]; the folder is then as it was.
    pub fn rotate(
        folder: &Path,
        now: u64,
        publish_first: Duration,
        overlap: Duration,
    ) -> Result<String, KeyringError> {
        let _lock = lock(folder)?;
        let mut ring = Self::read(folder)?;
        let ended = ring.manifest.prune(now);
        let (kid, file) = new_key(folder)?;
        let rotated = ring
            .manifest
            .rotate(&kid, &file, now, publish_first, overlap)
            .map_err(|error| KeyringError::Folder(folder.to_owned(), error))
            .and_then(|()| replace(folder, MANIFEST, ring.manifest.write().as_bytes()));
        if let Err(error) = rotated {
            let _ = std::fs::remove_file(folder.join(file));
            return Err(error);
        }
        remove(folder, &ended);
        Ok(kid)
    }

    /// Ends a key now and takes its file away.
    ///
    /// # Errors
    /// [`KeyringError`]; the folder is then as it was.
    pub fn retire(folder: &Path, kid: &str, now: u64) -> Result<(), KeyringError> {
        let _lock = lock(folder)?;
        let mut ring = Self::read(folder)?;
        ring.manifest
            .retire(kid, now)
            .map_err(|error| KeyringError::Folder(folder.to_owned(), error))?;
        let ended = ring.manifest.prune(now);
        replace(folder, MANIFEST, ring.manifest.write().as_bytes())?;
        remove(folder, &ended);
        Ok(())
    }
}

/// One changes the folder at a time. The lock goes with the value.
fn lock(folder: &Path) -> Result<File, KeyringError> {
    let io = |error| KeyringError::Io(folder.to_owned(), error);
    let held = File::open(folder).map_err(io)?;
    held.lock().map_err(io)?;
    Ok(held)
}

/// A new key in its file: its id and the file's name.
fn new_key(folder: &Path) -> Result<(String, String), KeyringError> {
    let wrong = |error| KeyringError::Key(folder.to_owned(), error);
    let pem = generate_ed25519().map_err(wrong)?;
    let key = SigningKey::from_pem(&pem).map_err(wrong)?;
    let kid = key.verifying_key().id().to_string();
    let file = format!("key-{kid}.pem");
    replace(folder, &file, pem.as_bytes())?;
    Ok((kid, file))
}

/// Puts a file into place whole, for its owner's eyes only.
fn replace(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), KeyringError> {
    // Watchers pass over what begins with a dot.
    let beside = folder.join(format!(".{name}.new"));
    let io = |error| KeyringError::Io(folder.join(name), error);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&beside, folder.join(name)))
        .and_then(|()| File::open(folder)?.sync_all());
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written.map_err(io)
}

/// Takes files away that nothing names any more. One that stays does no harm.
fn remove(folder: &Path, files: &[String]) {
    for file in files {
        if let Err(error) = std::fs::remove_file(folder.join(file)) {
            tracing::warn!(%error, file, "the file of a key that has ended cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: u64 = 1_767_225_600;
    const DAY: Duration = Duration::from_secs(86_400);

    fn ids(ring: &Keyring, now: u64) -> Vec<String> {
        let keys = ring.verifying(now).expect("keys");
        keys.iter().map(|key| key.id().to_string()).collect()
    }

    #[test]
    fn a_folder_from_its_first_key_on() {
        let base = tempfile::tempdir().expect("a folder");
        let folder = base.path().join("keys");
        let first = Keyring::create(&folder, NOW).expect("made");
        assert!(matches!(
            Keyring::create(&folder, NOW),
            Err(KeyringError::HasKeys(_))
        ));
        let second = Keyring::rotate(&folder, NOW, Duration::ZERO, DAY).expect("rotated");
        let ring = Keyring::read(&folder).expect("a ring");
        assert_eq!(ids(&ring, NOW), [first.clone(), second.clone()]);
        assert_eq!(ids(&ring, NOW + 86_400), std::slice::from_ref(&second));
        let signer = ring.signer(NOW).expect("a signer");
        assert_eq!(**signer.verifying_key().id(), *second);
        let keys = ring.verifying(NOW).expect("keys");
        assert_eq!(keys[0].until(), Some(NOW + 86_400));
        for entry in std::fs::read_dir(&folder).expect("read") {
            let entry = entry.expect("an entry");
            let mode = entry.metadata().expect("metadata").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{:?}", entry.path());
        }
        Keyring::retire(&folder, &first, NOW).expect("retired");
        assert_eq!(ids(&Keyring::read(&folder).expect("a ring"), NOW), [second]);
        assert!(!folder.join(format!("key-{first}.pem")).exists());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = Keyring::read(folder.path()).expect_err("no manifest");
        assert!(
            error.to_string().ends_with("keys generate --folder`"),
            "{error}"
        );
        let kid = Keyring::create(folder.path(), NOW).expect("made");
        let other = generate_ed25519().expect("a key");
        let file = folder.path().join(format!("key-{kid}.pem"));
        std::fs::write(&file, other).expect("written");
        let ring = Keyring::read(folder.path()).expect("a ring");
        assert!(matches!(
            ring.signer(NOW),
            Err(KeyringError::OtherKey(path, _)) if path == file
        ));
        std::fs::remove_file(&file).expect("removed");
        let said = ring.verifying(NOW).expect_err("it is gone").to_string();
        let shown = file.display().to_string();
        assert_eq!(said.matches(&shown).count(), 1, "{said}");
    }
}

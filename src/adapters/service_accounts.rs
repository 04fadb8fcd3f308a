//! The file of service accounts: read whole, watched, and written so that
//! nobody sees half of it. What stands in it is judged by `identity`.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use nix::fcntl::{Flock, FlockArg};

use super::watch::{Watch, read_stable};
use crate::identity::{AccountsDocument, AccountsError, ServiceAccounts};

/// The accounts in force, from a file that is followed.
#[derive(Debug)]
pub struct AccountsFile {
    path: PathBuf,
    current: ArcSwap<ServiceAccounts>,
}

impl AccountsFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// Every mistake, each with the file and what to write.
    pub fn open(path: &Path) -> Result<Self, String> {
        Ok(Self {
            current: ArcSwap::from_pointee(read(path)?),
            path: path.to_owned(),
        })
    }

    /// The accounts in force; whoever asks uses one version, whole.
    #[must_use]
    pub fn current(&self) -> Arc<ServiceAccounts> {
        self.current.load_full()
    }

    /// Reads the file now, and whenever it changes, for ever. `told` hears how
    /// each reading went; after one that failed the last good accounts stay.
    ///
    /// # Errors
    /// Where the file cannot be watched.
    pub fn follow(
        self: Arc<Self>,
        told: impl Fn(Result<usize, String>) + Send + Sync + 'static,
    ) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let mut watch = Watch::start(vec![self.path.clone()])?;
        Ok(async move {
            // It may have changed between the first reading and the watching.
            loop {
                let path = self.path.clone();
                let read = tokio::task::spawn_blocking(move || read(&path)).await;
                told(match read {
                    Ok(Ok(accounts)) => {
                        let count = accounts.len();
                        self.current.store(Arc::new(accounts));
                        Ok(count)
                    }
                    Ok(Err(error)) => Err(error),
                    Err(error) => Err(error.to_string()),
                });
                if watch.changed().await.is_none() {
                    return;
                }
            }
        })
    }
}

/// Reads a file of accounts.
///
/// # Errors
/// Every mistake, a line for each, with the file. A file that everybody may
/// write is one: whoever writes it is issued any token.
pub fn read(path: &Path) -> Result<ServiceAccounts, String> {
    ServiceAccounts::build(&document(path)?).map_err(|error| named(path, &error))
}

/// Reads a file of accounts as it is written.
///
/// # Errors
/// As [`read`], as far as it can be told without judging values.
pub fn document(path: &Path) -> Result<AccountsDocument, String> {
    let shown = path.display();
    let bytes = read_stable(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("{shown}: there is no such file: `agentport service-account create` writes one")
        }
        // It names the file.
        _ => error.to_string(),
    })?;
    let mode = std::fs::metadata(path).map(|file| file.mode()).unwrap_or(0);
    if mode & 0o002 != 0 {
        return Err(format!(
            "{shown}: everybody may write it (mode {:o}): run chmod o-w",
            mode & 0o777
        ));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{shown}: the file is not UTF-8"))?;
    AccountsDocument::parse(&text).map_err(|error| named(path, &error))
}

/// Changes the file: reads it under a lock, has it changed, judges it, and puts
/// it in place by a rename. A file that is not there begins empty where
/// `create` says so, readable by its owner only.
///
/// Comments in the file are lost.
///
/// # Errors
/// What `change` says, or what is wrong with the file, before or after.
pub fn edit<T>(
    path: &Path,
    create: bool,
    change: impl FnOnce(&mut AccountsDocument) -> Result<T, String>,
) -> Result<T, String> {
    // What a link points to is replaced, not the link.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let _lock = lock(&path)?;
    let mut contents = if create && !path.exists() {
        AccountsDocument {
            version: 1,
            ..AccountsDocument::default()
        }
    } else {
        document(&path)?
    };
    let made = change(&mut contents)?;
    ServiceAccounts::build(&contents).map_err(|error| named(&path, &error))?;
    let is_json = path
        .extension()
        .is_some_and(|extension| extension == "json");
    let text = if is_json {
        serde_json::to_string_pretty(&contents).map_err(|error| error.to_string())? + "\n"
    } else {
        contents.to_yaml().map_err(|error| named(&path, &error))?
    };
    replace(&path, text.as_bytes()).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(made)
}

/// Holds others off who change the same file. The lock's file stays: one that
/// was removed could be locked by two.
fn lock(path: &Path) -> Result<Flock<File>, String> {
    let lock = beside(path, ".lock");
    let cannot = |error: &dyn std::fmt::Display| format!("{}: {error}", lock.display());
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock)
        .map_err(|error| cannot(&error))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| cannot(&error))
}

/// Puts other contents in the file's place, whole or not at all. Its owner and
/// permissions stay.
fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let new = beside(path, &format!(".{}.new", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        if let Ok(old) = std::fs::metadata(path) {
            file.set_permissions(Permissions::from_mode(old.mode() & 0o770))?;
            let here = file.metadata()?;
            if (old.uid(), old.gid()) != (here.uid(), here.gid()) {
                std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
            }
        }
        file.write_all(contents)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written
}

/// A hidden file in the same folder.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{ending}"))
}

fn named(path: &Path, error: &AccountsError) -> String {
    let lines = error
        .0
        .iter()
        .map(|line| format!("{}: {line}", path.display()));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{AccountDocument, Any, AnyOrList};

    fn account(id: &str) -> AccountDocument {
        AccountDocument {
            id: id.into(),
            description: None,
            revoked: true,
            keys: Vec::new(),
            jwks: None,
            agents: AnyOrList::Any(Any::Any),
            tenants: None,
            destinations: AnyOrList::Any(Any::Any),
            scopes: None,
            audiences: None,
            max_ttl: None,
            rate: None,
        }
    }

    fn add(path: &Path, id: &str) -> Result<(), String> {
        edit(path, true, |document| {
            document.accounts.push(account(id));
            Ok(())
        })
    }

    #[test]
    fn what_many_write_at_once_is_all_there() {
        for name in ["accounts.yaml", "accounts.json"] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join(name);
            std::thread::scope(|scope| {
                for writer in 0..4 {
                    let path = &path;
                    scope.spawn(move || {
                        for at in 0..5 {
                            add(path, &format!("a{writer}-{at}")).expect("it is written");
                        }
                    });
                }
            });
            assert_eq!(read(&path).expect("accounts").len(), 20, "{name}");
            let mode = std::fs::metadata(&path).expect("the file").mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_change_that_is_wrong_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("accounts.yaml");
        add(&path, "a").expect("it is written");
        let before = std::fs::read(&path).expect("the file");
        let error = add(&path, "a").expect_err("it is there");
        assert!(error.contains("accounts.yaml: accounts[1].id"), "{error}");
        assert_eq!(std::fs::read(&path).expect("the file"), before);
        let left = std::fs::read_dir(folder.path())
            .expect("the folder")
            .count();
        assert_eq!(left, 2, "the file and its lock");
    }

    #[test]
    fn permissions_stay_and_a_link_stays_a_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, link) = (
            folder.path().join("real.yaml"),
            folder.path().join("link.yaml"),
        );
        add(&path, "a").expect("it is written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("a mode");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        add(&link, "b").expect("it is written");
        assert_eq!(read(&path).expect("accounts").len(), 2);
        let mode = std::fs::metadata(&path).expect("the file").mode();
        assert_eq!(mode & 0o777, 0o640);
        assert!(link.is_symlink());
    }

    #[test]
    fn files_that_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("accounts.yaml");
        let error = read(&path).expect_err("none");
        assert!(error.contains("service-account create"), "{error}");
        std::fs::write(&path, "{version: 1}").expect("it is written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("a mode");
        let error = read(&path).expect_err("anybody's");
        assert!(error.contains("chmod o-w"), "{error}");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("a mode");
        std::fs::write(&path, [0xff]).expect("it is written");
        assert!(read(&path).expect_err("bytes").contains("not UTF-8"));
        std::fs::write(&path, "version: 1\naccounts: 7\n").expect("it is written");
        let error = read(&path).expect_err("a number");
        assert!(error.contains("line 2"), "{error}");
    }
}

//! Where paths lead: every link on the way, every name whose coming, going or
//! changing matters, and what the kernel must watch to tell.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::FileType;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::sys::statfs::statfs;

/// How many files of a directory are watched each by itself, which tells of
/// writes through another mount of the same file. The directory's own watch
/// tells of all others.
const MAX_FILES: usize = 256;
/// How many files a directory may have; more are not looked at.
const MAX_ENTRIES: usize = 10_000;
/// How many links a path may lead through, as for the kernel.
const MAX_LINKS: usize = 40;

/// File systems whose changes by other machines raise no events here: NFS,
/// SMB, CIFS, SMB2, FUSE, 9P, Ceph and AFS, by the number of statfs(2).
const REMOTE: [i64; 8] = [
    0x6969,
    0x517B,
    0xFF53_4D42,
    0xFE53_4D42,
    0x6573_5546,
    0x0102_1997,
    0x00C3_6400,
    0x5346_414F,
];

/// Where some paths lead.
#[derive(Debug, Default)]
pub(super) struct Trail {
    /// Names that matter, by the place where they really are, but for the
    /// plain files of [`Trail::whole`].
    names: HashSet<PathBuf>,
    /// Directories of which every visible file matters.
    whole: HashSet<PathBuf>,
    /// Directories to watch.
    directories: BTreeSet<PathBuf>,
    /// Files to watch.
    files: BTreeSet<PathBuf>,
}

impl Trail {
    /// Follows absolute paths.
    pub(super) fn follow(paths: &[PathBuf]) -> Self {
        let mut trail = Self::default();
        for path in paths {
            if let Some(directory) = trail.walk(path) {
                trail.enter(directory);
            }
        }
        trail
    }

    /// Whether what happens to this name matters.
    pub(super) fn concerns(&self, path: &Path) -> bool {
        self.names.contains(path)
            || (is_visible(path)
                && path
                    .parent()
                    .is_some_and(|parent| self.whole.contains(parent)))
    }

    /// Whether a path may lead elsewhere since this name has come, gone or
    /// been replaced. A plain file among those of a directory leads nowhere.
    pub(super) fn leads_on(&self, path: &Path) -> bool {
        let among = path.parent().is_some_and(|dir| self.whole.contains(dir));
        let is_plain = || {
            std::fs::symlink_metadata(path).map_or_else(
                |error| error.kind() == std::io::ErrorKind::NotFound,
                |found| found.is_file(),
            )
        };
        !among || self.names.contains(path) || !is_plain()
    }

    /// What the kernel must watch.
    pub(super) fn watched(&self) -> impl Iterator<Item = &Path> {
        let all = self.directories.iter().chain(&self.files);
        all.map(PathBuf::as_path)
    }

    /// Whether some of it lies where events may not come.
    pub(super) fn is_remote(&self) -> bool {
        self.watched().any(|path| {
            statfs(path).is_ok_and(|found| {
                #[expect(
                    clippy::unnecessary_cast,
                    reason = "the number's type differs between architectures"
                )]
                let kind = found.filesystem_type().0 as i64;
                REMOTE.contains(&(kind & 0xFFFF_FFFF))
            })
        })
    }

    /// Follows one path to its end. Gives the directory that it ends at, where
    /// it does.
    fn walk(&mut self, path: &Path) -> Option<PathBuf> {
        self.walk_from(PathBuf::from("/"), parts(path))
    }

    /// As [`Trail::walk`], with what is left of the way from a place.
    fn walk_from(&mut self, mut place: PathBuf, mut left: VecDeque<OsString>) -> Option<PathBuf> {
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            if part == ".." {
                place.pop();
                continue;
            }
            let next = place.join(&part);
            let Ok(found) = std::fs::symlink_metadata(&next) else {
                // It may come.
                self.names.insert(next);
                self.directories.insert(place);
                return None;
            };
            if found.is_symlink() {
                self.names.insert(next.clone());
                self.directories.insert(place.clone());
                links += 1;
                let target = std::fs::read_link(&next).ok()?;
                if links > MAX_LINKS {
                    return None;
                }
                if target.is_absolute() {
                    place = PathBuf::from("/");
                }
                for part in parts(&target).into_iter().rev() {
                    left.push_front(part);
                }
            } else if found.is_dir() {
                place = next;
            } else {
                // What is left, if anything, cannot be below a file.
                self.names.insert(next.clone());
                self.directories.insert(place);
                self.end_at(next);
                return None;
            }
        }
        Some(place)
    }

    fn end_at(&mut self, file: PathBuf) {
        if self.files.len() < MAX_FILES {
            self.files.insert(file);
        }
    }

    /// Takes in a directory and the files in it.
    fn enter(&mut self, directory: PathBuf) {
        if let Some(parent) = directory.parent() {
            // It may go and come again.
            self.directories.insert(parent.to_owned());
        }
        self.names.insert(directory.clone());
        self.directories.insert(directory.clone());
        self.whole.insert(directory.clone());
        for (file, kind) in entries_of(&directory) {
            if kind.is_some_and(|kind| kind.is_file()) {
                self.end_at(file);
            } else if let Some(name) = file.file_name() {
                self.walk_from(directory.clone(), VecDeque::from([name.to_owned()]));
            }
        }
    }
}

/// The visible entries of a directory, in order. Those below are not looked at.
pub(super) fn files_of(directory: &Path) -> Vec<PathBuf> {
    let entries = entries_of(directory);
    entries.into_iter().map(|(file, _)| file).collect()
}

/// The same, and what each is where the directory tells.
fn entries_of(directory: &Path) -> Vec<(PathBuf, Option<FileType>)> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let kind = entry.file_type().ok();
            let is_dir = kind.is_some_and(|kind| kind.is_dir());
            let path = entry.path();
            (!is_dir && is_visible(&path)).then_some((path, kind))
        })
        .take(MAX_ENTRIES)
        .collect();
    // Names of one directory need not be taken apart to be compared.
    files.sort_unstable_by(|(a, _), (b, _)| a.as_os_str().cmp(b.as_os_str()));
    files
}

fn is_visible(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| !name.as_bytes().starts_with(b"."))
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

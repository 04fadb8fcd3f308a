//! The file system of a skill: a root of its own, in memory, with the system's
//! programs and the manifest's directory in it to read, and `/tmp` to write.
//! What is not here is not there: no `/home`, no `/run`, no secret, no socket.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, pivot_root};

/// Read-only, where they exist. Named one by one: `/etc` as a whole holds what a
/// skill has no business with.
pub(super) const SYSTEM: [&str; 18] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
];

/// The devices a program expects.
pub(super) const DEVICES: [&str; 5] = [
    "/dev/full",
    "/dev/null",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
];

/// Small files that programs look for, with nothing of this machine in them.
const SYNTHETIC: [(&str, &str); 4] = [
    ("etc/passwd", "skill:x:0:0::/tmp:/usr/sbin/nologin\n"),
    ("etc/group", "skill:x:0:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files\n",
    ),
];

const NOTHING: Option<&str> = None;

/// Where a path of the old root goes in the new one.
enum Source {
    Link(PathBuf),
    Tree { handle: File, is_dir: bool },
}

/// Makes the private root and goes there. Needs a mount and a PID namespace.
///
/// # Errors
/// Which step failed, and what the kernel said.
pub(super) fn change_to_private(directories: &[PathBuf]) -> Result<(), String> {
    let step = |what: &'static str| move |e: nix::Error| format!("{what}: {e}");
    mount(
        NOTHING,
        "/",
        NOTHING,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        NOTHING,
    )
    .map_err(step("the mounts cannot be made private"))?;
    // Opened before the new root covers any of them.
    let sources = SYSTEM
        .iter()
        .chain(&DEVICES)
        .map(PathBuf::from)
        .chain(directories.iter().cloned())
        .filter_map(|path| open(&path).transpose().map(|source| (path, source)))
        .map(|(path, source)| match source {
            Ok(source) => Ok((path, source)),
            Err(e) => Err(format!("{}: {e}", path.display())),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let staging = ["/tmp", "/mnt", "/srv", "/var"]
        .iter()
        .map(Path::new)
        .find(|path| path.is_dir())
        .ok_or("no directory to build the private root on: make /tmp")?;
    tmpfs(staging, "size=1m,mode=755")?;
    // First, since the manifest's directory may lie in it.
    let tmp = staging.join("tmp");
    fs::create_dir(&tmp).map_err(|e| format!("/tmp: {e}"))?;
    tmpfs(&tmp, "size=64m,mode=700")?;
    for (path, source) in &sources {
        graft(staging, path, source)?;
    }
    for (name, text) in SYNTHETIC {
        make_parents(&staging.join(name))?;
        fs::write(staging.join(name), text).map_err(|e| format!("/{name}: {e}"))?;
    }
    mount_proc(&staging.join("proc"))?;
    chdir(staging).map_err(step("the private root cannot be entered"))?;
    // Both at one place (pivot_root(2), NOTES): the old root lies on top, and
    // is taken off with all that is under it.
    pivot_root(".", ".").map_err(step("the private root cannot be made the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("the old root cannot be taken off"))?;
    chdir("/").map_err(step("the private root cannot be entered"))?;
    mount(
        NOTHING,
        "/",
        NOTHING,
        MsFlags::MS_REMOUNT
            | MsFlags::MS_BIND
            | MsFlags::MS_RDONLY
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV,
        NOTHING,
    )
    .map_err(step("the private root cannot be made read-only"))
}

/// `None` where nothing is there.
fn open(path: &Path) -> io::Result<Option<Source>> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    if meta.is_symlink() {
        return fs::read_link(path).map(|target| Some(Source::Link(target)));
    }
    let handle = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
        .open(path)?;
    Ok(Some(Source::Tree {
        handle,
        is_dir: meta.is_dir(),
    }))
}

fn graft(staging: &Path, path: &Path, source: &Source) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let target = staging.join(path.strip_prefix("/").unwrap_or(path));
    make_parents(&target)?;
    match source {
        Source::Link(to) => match symlink(to, &target) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failed(&e)),
            Ok(()) | Err(_) => Ok(()),
        },
        Source::Tree { handle, is_dir } => {
            if *is_dir {
                fs::create_dir_all(&target).map_err(|e| failed(&e))?;
            } else {
                File::create(&target).map_err(|e| failed(&e))?;
            }
            let from = format!("/proc/self/fd/{}", handle.as_raw_fd());
            mount(
                Some(from.as_str()),
                &target,
                NOTHING,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                NOTHING,
            )
            .map_err(|e| failed(&e))?;
            if path.starts_with("/dev") {
                return Ok(());
            }
            for mounted in mounts_under(&target).map_err(|e| failed(&e))? {
                make_read_only(&mounted).map_err(|e| failed(&e))?;
            }
            Ok(())
        }
    }
}

fn make_parents(target: &Path) -> Result<(), String> {
    match target.parent() {
        Some(parent) => {
            fs::create_dir_all(parent).map_err(|e| format!("{}: {e}", parent.display()))
        }
        None => Ok(()),
    }
}

/// A bind mount of a tree brings the mounts inside it, each with its own flags.
fn mounts_under(target: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(unescape(path)))
        .filter(|path| path.starts_with(target))
        .collect())
}

/// Space, tab, newline and backslash stand there as three octal digits (proc(5)).
fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

fn make_read_only(target: &Path) -> nix::Result<()> {
    // Flags that the mount already has are locked in a user namespace and must
    // be given again (mount_namespaces(7)).
    let has = statvfs(target)?.flags();
    let mut flags = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV;
    for (flag, keep) in [
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        flags.set(keep, has.contains(flag));
    }
    mount(NOTHING, target, NOTHING, flags, NOTHING)
}

fn tmpfs(target: &Path, options: &str) -> Result<(), String> {
    mount(
        Some("tmpfs"),
        target,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options),
    )
    .map_err(|e| format!("no file system in memory: {e}"))
}

/// The skill's own processes and nobody else's, and the kernel's settings to
/// read only: where the agent runs as root, they would be the skill's to change.
/// In a container whose `/proc` is
/// partly covered the kernel refuses; then the skill has none, which hides more.
fn mount_proc(target: &Path) -> Result<(), String> {
    fs::create_dir_all(target).map_err(|e| format!("/proc: {e}"))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match mount(Some("proc"), target, Some("proc"), flags, NOTHING) {
        Ok(()) | Err(nix::Error::EPERM) => Ok(()),
        Err(e) => Err(format!("/proc: {e}")),
    }
}

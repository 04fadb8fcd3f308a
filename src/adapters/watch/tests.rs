//! Real files, changed in all the ways in which people and machines do it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

/// Long enough for any machine, and waited for only where something is wrong.
const LONG: Duration = Duration::from_secs(30);

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn watch(path: &Path) -> Watch {
    Watch::start(vec![path.to_owned()]).expect("a watch")
}

async fn changed(watch: &mut Watch) {
    tokio::time::timeout(LONG, watch.changed())
        .await
        .expect("a change is noticed")
        .expect("the watch goes on");
}

fn is_quiet(watch: &mut Watch) -> bool {
    watch.changes.try_recv().is_err()
}

fn replace(path: &Path, text: &str) {
    let aside = path.with_extension("new");
    fs::write(&aside, text).expect("a file");
    fs::rename(aside, path).expect("a rename");
}

#[tokio::test]
async fn a_file_is_seen_to_change_however_it_changes() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 6] = [
        ("written in place", |path| {
            fs::write(path, "new").expect("a file")
        }),
        ("appended to", |path| {
            let mut file = File::options().append(true).open(path).expect("a file");
            file.write_all(b"more").expect("a write");
        }),
        ("replaced by a rename", |path| replace(path, "new")),
        ("removed", |path| fs::remove_file(path).expect("a removal")),
        ("removed and written again", |path| {
            fs::remove_file(path).expect("a removal");
            fs::write(path, "new").expect("a file");
        }),
        ("replaced by a link", |path| {
            let target = path.with_extension("target");
            fs::write(&target, "new").expect("a file");
            fs::remove_file(path).expect("a removal");
            symlink(target, path).expect("a link");
        }),
    ];
    for (case, change) in changes {
        let dir = directory();
        let path = dir.path().join("policy.json");
        fs::write(&path, "old").expect("a file");
        let mut watch = watch(&path);
        change(&path);
        let told = tokio::time::timeout(LONG, watch.changed()).await;
        assert_eq!(told, Ok(Some(())), "{case}");
        // And again, since watches are bound to files and not to names.
        if path.exists() {
            fs::write(&path, "newer").expect("a file");
            changed(&mut watch).await;
            replace(&path, "newest");
            changed(&mut watch).await;
        }
    }
}

#[tokio::test]
async fn a_file_that_comes_later_is_seen() {
    let dir = directory();
    let path = dir.path().join("a/b/policy.json");
    let mut watch = watch(&path);
    fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
    fs::write(&path, "new").expect("a file");
    changed(&mut watch).await;
    fs::write(&path, "newer").expect("a file");
    changed(&mut watch).await;
}

/// As the kubelet does it: `policy.json` → `..data/policy.json`, `..data` →
/// a directory with a time in its name.
fn publish(dir: &Path, version: &str) {
    let own = dir.join(version);
    fs::create_dir(&own).expect("a directory");
    fs::write(own.join("policy.json"), version).expect("a file");
    let next = dir.join("..data_tmp");
    symlink(version, &next).expect("a link");
    fs::rename(next, dir.join("..data")).expect("a rename");
}

#[tokio::test]
async fn a_swap_of_data_is_seen_for_a_file_and_for_its_directory() {
    for whole in [false, true] {
        let dir = directory();
        publish(dir.path(), "..2026_01");
        let path = dir.path().join("policy.json");
        symlink("..data/policy.json", &path).expect("a link");
        let mut watch = watch(if whole { dir.path() } else { &path });
        for version in ["..2026_02", "..2026_03"] {
            publish(dir.path(), version);
            changed(&mut watch).await;
            assert_eq!(read_stable(&path).expect("a file"), version.as_bytes());
        }
    }
}

#[tokio::test]
async fn a_directory_is_seen_to_gain_change_and_lose_files() {
    let dir = directory();
    let tenants = dir.path().join("tenants");
    fs::create_dir(&tenants).expect("a directory");
    let mut watch = watch(&tenants);
    fs::write(tenants.join("acme.yaml"), "a").expect("a file");
    changed(&mut watch).await;
    fs::write(tenants.join("acme.yaml"), "b").expect("a file");
    changed(&mut watch).await;
    fs::remove_file(tenants.join("acme.yaml")).expect("a removal");
    changed(&mut watch).await;
    // Replaced as a whole.
    let aside = dir.path().join("aside");
    fs::create_dir(&aside).expect("a directory");
    fs::write(aside.join("umbrella.yaml"), "u").expect("a file");
    fs::remove_dir(&tenants).expect("a removal");
    fs::rename(&aside, &tenants).expect("a rename");
    changed(&mut watch).await;
    while !is_quiet(&mut watch) {}
    fs::write(tenants.join("umbrella.yaml"), "v").expect("a file");
    changed(&mut watch).await;
}

#[tokio::test]
async fn a_directory_on_the_way_that_is_replaced_is_seen() {
    let dir = directory();
    let (old, new) = (dir.path().join("a/b"), dir.path().join("c/b"));
    for (place, text) in [(&old, "old"), (&new, "new")] {
        fs::create_dir_all(place).expect("directories");
        fs::write(place.join("policy.json"), text).expect("a file");
    }
    let mut watch = watch(&old.join("policy.json"));
    fs::rename(dir.path().join("a"), dir.path().join("z")).expect("a rename");
    fs::rename(dir.path().join("c"), dir.path().join("a")).expect("a rename");
    changed(&mut watch).await;
}

#[tokio::test]
async fn a_file_that_was_replaced_is_seen_to_be_written_under_another_name() {
    let dir = directory();
    let tenants = dir.path().join("tenants");
    fs::create_dir(&tenants).expect("a directory");
    let path = tenants.join("acme.yaml");
    fs::write(&path, "old").expect("a file");
    let mut watch = watch(&tenants);
    let aside = dir.path().join("aside");
    fs::write(&aside, "new").expect("a file");
    let other = dir.path().join("other");
    fs::hard_link(&aside, &other).expect("a second name");
    fs::rename(&aside, &path).expect("a rename");
    changed(&mut watch).await;
    // The directory tells nothing of it, and the file is watched by itself only
    // when there was time for it.
    let started = Instant::now();
    let a_while = Duration::from_millis(100);
    fs::write(&other, "newer").expect("a file");
    while tokio::time::timeout(a_while, watch.changed())
        .await
        .is_err()
    {
        assert!(started.elapsed() < LONG, "a write was not noticed");
        fs::write(&other, "newer").expect("a file");
    }
}

#[test]
fn plain_files_of_a_directory_lead_nowhere_else() {
    let dir = directory();
    let tenants = dir.path().join("tenants");
    fs::create_dir_all(tenants.join("below")).expect("directories");
    let single = dir.path().join("policy.json");
    for file in ["acme.yaml", "umbrella.yaml"] {
        fs::write(tenants.join(file), "x").expect("a file");
    }
    fs::write(&single, "x").expect("a file");
    symlink("acme.yaml", tenants.join("link.yaml")).expect("a link");
    symlink("../away.yaml", tenants.join("dangling.yaml")).expect("a link");
    let trail = Trail::follow(&[tenants.clone(), single]);
    for (name, leads_on) in [
        ("tenants/umbrella.yaml", false),
        // What the link leads to.
        ("tenants/acme.yaml", true),
        ("tenants/new.yaml", false),
        ("tenants/link.yaml", true),
        ("tenants/dangling.yaml", true),
        ("tenants/below", true),
        ("tenants", true),
        ("away.yaml", true),
        ("policy.json", true),
    ] {
        let path = dir.path().join(name);
        assert_eq!(trail.leads_on(&path), leads_on, "{name}");
        assert!(trail.concerns(&path), "{name}");
    }
    // A file in whose place a link has come.
    let path = tenants.join("umbrella.yaml");
    fs::remove_file(&path).expect("a removal");
    assert!(!trail.leads_on(&path));
    symlink("acme.yaml", &path).expect("a link");
    assert!(trail.leads_on(&path));
}

#[tokio::test]
async fn half_a_file_is_not_seen_until_it_is_closed() {
    let dir = directory();
    let (path, other) = (dir.path().join("policy.json"), dir.path().join("other"));
    fs::write(&path, "old").expect("a file");
    let (mut watch, mut witness) = (watch(&path), watch(&other));
    let mut file = File::create(&path).expect("a file");
    file.write_all(b"half").expect("a write");
    // What happens after it is noticed by another watch, twice; so this one
    // has had its time.
    for _ in 0..2 {
        replace(&other, "x");
        changed(&mut witness).await;
        assert!(is_quiet(&mut watch));
    }
    file.write_all(b" and half").expect("a write");
    drop(file);
    changed(&mut watch).await;
    replace(&other, "x");
    changed(&mut witness).await;
    assert!(is_quiet(&mut watch), "one change, told once");
}

#[tokio::test]
async fn what_stirs_settles() {
    let dir = directory();
    let path = dir.path().join("policy.json");
    fs::write(&path, "old").expect("a file");
    let mut watch = watch(&path);
    replace(&path, "new");
    // How often it stirs before is the kernel's affair, and whether anyone sees
    // it that of whoever looks in time.
    loop {
        let next = tokio::time::timeout(LONG, watch.stirred_or_changed()).await;
        let told = next.expect("it is noticed").expect("the watch goes on");
        if told == super::Change::Settled {
            break;
        }
    }
}

#[tokio::test]
async fn what_has_settled_has_not_stirred() {
    let ((tell, changes), (stir, stirs)) = (mpsc::channel(1), mpsc::channel(1));
    let (thread, _incoming) = channel();
    let mut watch = Watch {
        changes,
        stirs,
        thread,
    };
    stir.try_send(()).expect("room");
    assert_eq!(
        watch.stirred_or_changed().await,
        Some(super::Change::Stirred)
    );
    stir.try_send(()).expect("room");
    tell.try_send(()).expect("room");
    assert_eq!(
        watch.stirred_or_changed().await,
        Some(super::Change::Settled)
    );
    assert!(
        watch.stirs.try_recv().is_err(),
        "it was told with the other"
    );
    drop((tell, stir));
    assert_eq!(watch.stirred_or_changed().await, None);
}

#[test]
fn what_stirs_is_told_once_and_not_in_the_middle_of_a_write() {
    let (now, path) = (Instant::now(), Path::new("/a"));
    let mut pending = Pending::default();
    assert!(!pending.has_stirred());
    pending.happened(What::Write, path, now);
    assert!(!pending.has_stirred(), "half a write");
    pending.happened(What::Replace, Path::new("/b"), now);
    assert!(!pending.has_stirred(), "another file is half written");
    pending.happened(What::Close, path, now);
    assert!(pending.has_stirred());
    assert!(!pending.has_stirred(), "it was told");
    assert!(pending.due().is_some(), "it has not settled");
    pending.happened(What::Close, path, now);
    assert!(pending.told(), "nobody was told that it stirred");
    assert!(!pending.has_stirred(), "it has settled");
    pending.happened(What::Close, path, now);
    assert!(pending.has_stirred());
    assert!(!pending.told());
}

#[test]
fn a_version_tells_of_changes_once_its_time_is_over() {
    let dir = directory();
    let path = dir.path().join("policy.json");
    fs::write(&path, "old").expect("a file");
    let version = Version::under(&path).expect("a file");
    let changed = SystemTime::UNIX_EPOCH
        + Duration::from_secs(u64::try_from(version.changed.0).expect("a time"));
    for (case, seconds, telling) in [
        ("before it", None, false),
        ("at once", Some(0), false),
        ("within the step of a clock", Some(2), false),
        ("later", Some(4), true),
    ] {
        let now = match seconds {
            Some(seconds) => changed + Duration::from_secs(seconds),
            None => changed - Duration::from_secs(60),
        };
        assert_eq!(version.is_telling(now), telling, "{case}");
    }
    replace(&path, "new");
    assert_ne!(Version::under(&path).expect("a file"), version);
}

#[test]
fn a_change_waits_for_quiet_and_for_writers_but_not_for_ever() {
    let start = Instant::now();
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    let (a, b) = (Path::new("/a"), Path::new("/b"));
    for (case, happenings, due) in [
        ("nothing", vec![], None),
        ("half a write", vec![(What::Write, a, 0)], None),
        (
            "a file that was only created",
            vec![(What::Begin, a, 0)],
            None,
        ),
        ("a directory", vec![(What::Directory, a, 0)], None),
        (
            "a write that is closed",
            vec![(What::Write, a, 0), (What::Close, a, 10)],
            Some(60),
        ),
        (
            "two in a row",
            vec![(What::Close, a, 0), (What::Close, b, 40)],
            Some(90),
        ),
        (
            "no end of them",
            vec![(What::Close, a, 0), (What::Close, b, 390)],
            Some(400),
        ),
        (
            "one while another is being written",
            vec![(What::Write, b, 0), (What::Close, a, 0)],
            Some(5000),
        ),
        (
            "until that is closed",
            vec![
                (What::Write, b, 0),
                (What::Close, a, 0),
                (What::Close, b, 100),
            ],
            Some(150),
        ),
        (
            "or replaced",
            vec![
                (What::Begin, b, 0),
                (What::Replace, a, 0),
                (What::Replace, b, 100),
            ],
            Some(150),
        ),
    ] {
        let mut pending = Pending::default();
        for (what, path, milliseconds) in happenings {
            pending.happened(what, path, at(milliseconds));
        }
        assert_eq!(pending.due(), due.map(at), "{case}");
        if let Some(due) = due {
            assert!(
                !pending.is_due(at(due - 1)) && pending.is_due(at(due)),
                "{case}"
            );
            pending.told();
            assert_eq!(pending.due(), None, "{case}");
        }
    }
}

#[test]
fn a_look_finds_what_two_looks_agree_on() {
    let file = |inode, written| {
        let print = Print {
            identity: (1, inode, 0o644, 0, 0),
            contents: (written, 0, 10),
        };
        Prints::from([("/nonexistent/p".into(), Some(print))])
    };
    let none = || Prints::from([("/nonexistent/p".into(), None)]);
    for (case, contents, looks, found) in [
        ("nothing changed", true, vec![file(1, 1), file(1, 1)], false),
        (
            "another file, twice",
            false,
            vec![file(2, 2), file(2, 2)],
            true,
        ),
        ("another file, once", false, vec![file(2, 2)], false),
        (
            "still being written",
            true,
            vec![file(1, 2), file(1, 3)],
            false,
        ),
        (
            "written, and seen to be",
            true,
            vec![file(1, 2), file(1, 2)],
            true,
        ),
        (
            "written, which an event tells",
            false,
            vec![file(1, 2), file(1, 2)],
            false,
        ),
        ("gone", false, vec![none(), none()], true),
        (
            "gone and back",
            false,
            vec![none(), file(1, 1), none()],
            false,
        ),
        (
            "no longer in the directory",
            false,
            vec![Prints::new(), Prints::new()],
            true,
        ),
    ] {
        let mut state = Looks::default();
        state.settle(file(1, 1));
        let last = looks
            .into_iter()
            .map(|look| state.look(look, contents, &Pending::default()))
            .last();
        assert_eq!(last, Some(found), "{case}");
    }
    let mut state = Looks::default();
    state.settle(none());
    assert!(!state.look(none(), true, &Pending::default()));
}

#[test]
fn a_file_is_read_whole_or_not_at_all() {
    let dir = directory();
    let path = dir.path().join("policy.json");
    fs::write(&path, "all of it").expect("a file");
    let link = dir.path().join("link");
    symlink(&path, &link).expect("a link");
    assert_eq!(read_stable(&link).expect("a file"), b"all of it");

    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let large = dir.path().join("large");
    let file = File::create(&large).expect("a file");
    file.set_len(MAX_FILE_BYTES + 1).expect("a hole");
    for (case, path, kind) in [
        ("a directory", dir.path(), io::ErrorKind::InvalidInput),
        (
            "a fifo, without waiting",
            &fifo,
            io::ErrorKind::InvalidInput,
        ),
        (
            "an endless device",
            Path::new("/dev/zero"),
            io::ErrorKind::InvalidInput,
        ),
        ("too much", &large, io::ErrorKind::FileTooLarge),
        (
            "nothing",
            &dir.path().join("absent"),
            io::ErrorKind::NotFound,
        ),
    ] {
        let error = read_stable(path).expect_err(case);
        assert_eq!(error.kind(), kind, "{case}");
        assert!(
            error.to_string().starts_with(&*path.to_string_lossy()),
            "{case}: {error}"
        );
    }
    file.set_len(MAX_FILE_BYTES).expect("a hole");
    assert_eq!(
        read_stable(&large).expect("just enough").len() as u64,
        MAX_FILE_BYTES
    );
}

#[test]
fn a_file_that_changed_while_it_was_read_is_refused() {
    let dir = directory();
    let path = dir.path().join("policy.json");
    type Change = fn(&Path);
    let changes: [(&str, Change, bool); 3] = [
        ("nothing", |_| {}, true),
        ("replaced", |path| replace(path, "old"), false),
        (
            "grown",
            |path| fs::write(path, "older").expect("a file"),
            false,
        ),
    ];
    for (case, change, same) in changes {
        fs::write(&path, "old").expect("a file");
        // A time that no later change can have.
        let file = File::options().write(true).open(&path).expect("a file");
        file.set_modified(std::time::SystemTime::UNIX_EPOCH)
            .expect("a time");
        let before = Version::of(&file.metadata().expect("a file"));
        change(&path);
        let found = unchanged(&path, &file, before, 3).expect("a file");
        assert_eq!(found, same, "{case}");
    }
}

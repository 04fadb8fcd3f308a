//! The log against real files, pipes and a full disk.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::SystemTime;

use super::*;
use crate::egress::{AgentId, RequestId};
use crate::policy::Mode;

/// Long enough for any machine, and waited for only where something is wrong.
const LONG: Duration = Duration::from_secs(30);

fn record(number: u128) -> AuditRecord {
    AuditRecord {
        agent_id: AgentId::parse("bot-01").ok(),
        method: "GET".into(),
        scheme: Some("http"),
        destination_host: Some("example.com".into()),
        destination_port: Some(80),
        destination_ip: Some(IpAddr::from([192, 0, 2, 1])),
        path: Some("/".into()),
        action_allowed: true,
        reason: "ok",
        mode: Some(Mode::Enforce),
        status: Some(200),
        ..AuditRecord::begun(
            SystemTime::UNIX_EPOCH,
            RequestId::from_bits(number),
            "egress".into(),
        )
    }
}

fn settings(capacity: usize, overflow: Overflow) -> AuditLogSettings {
    AuditLogSettings {
        capacity,
        overflow,
        durability: Durability::None,
    }
}

/// The numbers of the requests in the text, which must be whole lines of JSON.
fn numbers(text: &str) -> Vec<u128> {
    assert!(
        text.is_empty() || text.ends_with('\n'),
        "half a line: {text}"
    );
    text.lines().map(number).collect()
}

fn number(line: &str) -> u128 {
    let value: serde_json::Value = serde_json::from_str(line).expect(line);
    let id = value["request_id"].as_str().expect("a number");
    u128::from_str_radix(id, 16).expect("hexadecimal")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("a file")
}

#[test]
fn what_is_pushed_is_in_the_file_in_order_when_closed() {
    for durability in [
        Durability::None,
        Durability::Batch,
        Durability::Interval(Duration::from_millis(1)),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit.log");
        let writer = FileWriter::open(&path, None).expect("a file");
        let settings = AuditLogSettings {
            durability,
            ..AuditLogSettings::default()
        };
        let log = AuditLog::start(settings, Box::new(writer)).expect("a thread");
        for number in 0..5000 {
            log.push(record(number));
        }
        log.close(LONG).expect("all written");
        assert_eq!(numbers(&read(&path)), (0..5000).collect::<Vec<_>>());
        let state = log.state();
        assert_eq!(
            (state.depth, state.written, state.failing),
            (0, 5000, false)
        );
        let mode = std::fs::metadata(&path)
            .expect("a file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn a_log_that_is_closed_refuses_new_work() {
    let log = AuditLog::start(settings(8, Overflow::Block), scripted().0).expect("a thread");
    log.close(LONG).expect("nothing to write");
    assert_eq!(log.ready(), SinkState::Full);
}

#[test]
fn a_line_cut_short_by_a_crash_is_ended_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit.log");
    std::fs::write(&path, "{\"half").expect("a file");
    let writer = FileWriter::open(&path, None).expect("a file");
    let log = AuditLog::start(AuditLogSettings::default(), Box::new(writer)).expect("a thread");
    log.push(record(7));
    log.close(LONG).expect("all written");
    let text = read(&path);
    let (half, rest) = text.split_once('\n').expect("two lines");
    assert_eq!(half, "{\"half");
    assert_eq!(numbers(rest), [7]);
}

#[test]
fn a_file_moved_away_is_begun_anew_without_an_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, aside) = (dir.path().join("audit.log"), dir.path().join("aside"));
    let mut writer = FileWriter::open(&path, None).expect("a file");
    assert!(!writer.moved());
    std::fs::rename(&path, &aside).expect("a rename");
    assert!(writer.moved());
    writer.reopen().expect("a new file");
    assert!(!writer.moved());

    let log = AuditLog::start(AuditLogSettings::default(), Box::new(writer)).expect("a thread");
    std::fs::remove_file(&path).expect("a removal");
    log.push(record(1));
    log.close(LONG).expect("all written");
    assert_eq!(numbers(&read(&path)), [1]);
}

#[test]
fn files_are_put_aside_by_size_and_only_some_are_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit.log");
    let rotation = Rotation {
        max_bytes: 100,
        keep: 2,
    };
    let mut writer = FileWriter::open(&path, Some(rotation)).expect("a file");
    let line = [b'x'; 60];
    for _ in 0..5 {
        writer.make_room(line.len());
        assert_eq!(writer.write(&line).expect("room"), line.len());
    }
    let size = |name: &str| {
        std::fs::metadata(dir.path().join(name))
            .map(|m| m.len())
            .ok()
    };
    assert_eq!(size("audit.log"), Some(60));
    assert_eq!(size("audit.log.1"), Some(60));
    assert_eq!(size("audit.log.2"), Some(60));
    assert_eq!(size("audit.log.3"), None);
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error_with_its_path() {
    let error = FileWriter::open("/nonexistent/audit.log", None).expect_err("no directory");
    assert!(
        error.to_string().contains("/nonexistent/audit.log"),
        "{error}"
    );
}

#[test]
fn a_full_disk_keeps_the_records_and_says_so() {
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full");
    for (overflow, state) in [
        (Overflow::Deny, SinkState::Full),
        // Its queue has room still.
        (Overflow::Block, SinkState::Ready),
    ] {
        let writer = StreamWriter::from(full.try_clone().expect("a copy"));
        let log = AuditLog::start(settings(100, overflow), Box::new(writer)).expect("a thread");
        assert_eq!(log.ready(), SinkState::Ready);
        for number in 0..3 {
            log.push(record(number));
        }
        while !log.state().failing {
            std::thread::yield_now();
        }
        assert_eq!(log.ready(), state);
        let unwritten = log.close(Duration::ZERO).expect_err("a full disk");
        assert_eq!(unwritten.left, 3);
        let now = log.state();
        assert_eq!((now.depth, now.written, now.failing), (3, 0, true));
    }
}

#[test]
fn a_reader_that_goes_and_comes_back_loses_whole_lines_only_of_its_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let listen = || {
        File::options()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&path)
            .expect("a reader")
    };
    FileWriter::open(&path, None).expect_err("a fifo without a reader");
    let reader = listen();
    let writer = FileWriter::open(&path, None).expect("a fifo");
    let log = AuditLog::start(settings(2, Overflow::Block), Box::new(writer)).expect("a thread");
    drop(reader);
    log.push(record(1));
    log.push(record(2));
    assert_eq!(log.ready(), SinkState::Wait);

    let reader = listen();
    tokio::runtime::Runtime::new()
        .expect("a runtime")
        .block_on(async {
            tokio::time::timeout(LONG, log.wait()).await.expect("room");
        });
    log.push(record(3));
    log.close(LONG).expect("all written");
    drop(log);
    let mut lines = BufReader::new(reader).lines();
    for expected in 1..=3 {
        let line = lines.next().expect("a line").expect("text");
        assert_eq!(number(&line), expected);
    }
}

#[test]
fn standard_output_needs_no_disk() {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let file = File::from(std::os::fd::OwnedFd::from(writer));
    let settings = AuditLogSettings {
        durability: Durability::Batch,
        ..AuditLogSettings::default()
    };
    let log = AuditLog::start(settings, Box::new(StreamWriter::from(file))).expect("a thread");
    log.push(record(9));
    log.close(LONG).expect("all written");
    drop(log);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("text");
    assert_eq!(numbers(&text), [9]);
}

/// A destination that answers as it is told, step by step, and hands out what
/// it was given.
struct Scripted {
    answers: Receiver<io::Result<usize>>,
    seen: Sender<Seen>,
}

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Write(String),
    Reopen,
}

type Script = (
    Box<dyn RecordWriter>,
    Sender<io::Result<usize>>,
    Receiver<Seen>,
);

fn scripted() -> Script {
    let (answer, answers) = channel();
    let (seen, saw) = channel();
    (Box::new(Scripted { answers, seen }), answer, saw)
}

impl RecordWriter for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let answer = self.answers.recv_timeout(LONG).expect("an answer");
        if let Ok(taken) = &answer {
            let taken = String::from_utf8_lossy(&bytes[..(*taken).min(bytes.len())]);
            self.seen
                .send(Seen::Write(taken.into_owned()))
                .expect("a test");
        }
        answer.map(|taken| taken.min(bytes.len()))
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.seen.send(Seen::Reopen).expect("a test");
        Ok(())
    }
}

fn next_write(saw: &Receiver<Seen>) -> String {
    match saw.recv_timeout(LONG).expect("something") {
        Seen::Write(text) => text,
        Seen::Reopen => panic!("reopened"),
    }
}

#[test]
fn a_partial_write_goes_on_where_it_stopped() {
    let (writer, answer, saw) = scripted();
    let log = AuditLog::start(settings(8, Overflow::Block), writer).expect("a thread");
    log.push(record(5));
    answer.send(Ok(10)).expect("a log");
    answer
        .send(Err(io::ErrorKind::StorageFull.into()))
        .expect("a log");
    answer
        .send(Err(io::ErrorKind::WouldBlock.into()))
        .expect("a log");
    answer.send(Ok(usize::MAX)).expect("a log");
    let text = next_write(&saw) + &next_write(&saw);
    assert_eq!(numbers(&text), [5]);
    log.close(LONG).expect("all written");
    assert!(!log.state().failing);
}

#[test]
fn a_new_file_begins_with_the_whole_of_the_line_that_was_cut() {
    let (writer, answer, saw) = scripted();
    let log = AuditLog::start(settings(8, Overflow::Block), writer).expect("a thread");
    log.push(record(5));
    answer.send(Ok(10)).expect("a log");
    assert_eq!(next_write(&saw).len(), 10);
    log.reopen();
    answer
        .send(Err(io::ErrorKind::StorageFull.into()))
        .expect("a log");
    assert_eq!(saw.recv_timeout(LONG).expect("something"), Seen::Reopen);
    answer.send(Ok(usize::MAX)).expect("a log");
    assert_eq!(numbers(&next_write(&saw)), [5]);
    log.close(LONG).expect("all written");
}

#[test]
fn the_queue_is_bounded_in_front_and_never_loses() {
    for (overflow, full) in [
        (Overflow::Block, SinkState::Wait),
        (Overflow::Deny, SinkState::Full),
    ] {
        let (writer, answer, saw) = scripted();
        let log = AuditLog::start(settings(3, overflow), writer).expect("a thread");
        for number in 0..3 {
            assert_eq!(log.ready(), SinkState::Ready);
            log.push(record(number));
        }
        assert_eq!(log.ready(), full);
        // Work that had begun is still written down.
        log.push(record(3));
        let mut text = String::new();
        drop(answer.send(Ok(usize::MAX)));
        for _ in 0..3 {
            drop(answer.send(Ok(usize::MAX)));
        }
        while text.lines().count() < 4 {
            text += &next_write(&saw);
        }
        assert_eq!(numbers(&text), [0, 1, 2, 3]);
        log.close(LONG).expect("all written");
        assert_eq!(log.state().depth, 0);
    }
}

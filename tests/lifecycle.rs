//! From the first listener to the last record: starting, serving at the limits,
//! losing the disk, names, and stopping without failing a request.

#![cfg(feature = "gateway")]

#[path = "support/cli.rs"]
#[expect(dead_code, reason = "each file of tests uses a part")]
mod support;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::{
    Gateway, Manner, Names, Origin, Response, Says, closed, dial, exact, gateway, get_request,
    records_of, stderr, token, until,
};

/// Every port of 127.0.0.1, and `*.test` where it is there.
const OPEN: &str = r#"
version: 1
rules:
  - name: loopback
    action: allow
    agents: any
    hosts: ["127.0.0.1", "*.test"]
    addresses: ["127.0.0.1/32"]
    ports: any
    tls: any
"#;

/// Sends a request whose answer is read later.
fn begin(gateway: &Gateway, url: &str) -> TcpStream {
    let mut stream = dial(gateway.egress());
    stream
        .write_all(get_request("bot", url).as_bytes())
        .expect("sent");
    stream
}

/// Waits until nobody is let in any more.
fn until_closed_to_new(gateway: &Gateway) {
    until("new connections are refused", || {
        TcpStream::connect(gateway.egress()).is_err().then_some(())
    });
}

#[test]
fn the_end_waits_for_what_is_open() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let origin = Origin::http();
        let echo = Origin::echo();
        let pid_file = gateway(OPEN);
        let path = pid_file.path("agentport.pid");
        let mut gateway = pid_file.set("pid_file", path.display().to_string()).start();
        let number = std::fs::read_to_string(&path).expect("a pid file");
        assert_eq!(number.trim(), gateway.pid().to_string());

        let mut held = begin(&gateway, &origin.url("/hold"));
        origin.until_held(1);
        let mut tunnel = gateway
            .tunnel("bot", &echo.address.to_string())
            .unwrap_or_else(|refused| panic!("{}", refused.text()));
        exact(&mut tunnel, b"\x00 before");
        // Open, and between two requests: nothing of it can be lost.
        let mut idle = dial(gateway.egress());

        gateway.signal(signal);
        until_closed_to_new(&gateway);
        closed(&mut idle);
        exact(&mut tunnel, &[9; 100_000]);
        origin.release();
        let answer = Response::read(&mut held, false);
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "hello\n"),
            "{signal}"
        );
        exact(&mut tunnel, b"still here");
        drop(tunnel);
        assert_eq!(
            gateway.ends().code(),
            Some(0),
            "{signal}: {}",
            gateway.log()
        );
        assert!(!path.exists(), "{signal}: the pid file is left behind");
        let records = gateway.records();
        let of = |event: &str| {
            let found = records.iter().filter(|record| record["event"] == event);
            found
                .map(|record| record["reason"].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(of("request"), ["ok"], "{signal}");
        assert_eq!(of("tunnel"), ["ok"], "{signal}");
        assert_eq!(of("tunnel_closed"), ["ok"], "{signal}");
    }
}

#[test]
fn the_end_does_not_wait_for_ever() {
    let origin = Origin::http();
    let echo = Origin::echo();
    let mut gateway = gateway(OPEN).set("timeouts.drain", "1s").start();
    let mut held = begin(&gateway, &origin.url("/hold"));
    origin.until_held(1);
    let mut tunnel = gateway
        .tunnel("bot", &echo.address.to_string())
        .unwrap_or_else(|refused| panic!("{}", refused.text()));
    exact(&mut tunnel, b"\x00");
    let records = gateway.stop();
    closed(&mut tunnel);
    let mut rest = Vec::new();
    let _ = held.read_to_end(&mut rest);
    assert!(
        !rest.starts_with(b"HTTP/1.1 200"),
        "an answer that nobody gave"
    );
    let closed = records
        .iter()
        .find(|record| record["event"] == "tunnel_closed")
        .expect("a record");
    assert_eq!(closed["reason"], "drained");
    assert_eq!(
        (&closed["bytes_up"], &closed["bytes_down"]),
        (&1.into(), &1.into())
    );
    let requests = records
        .iter()
        .filter(|record| record["event"] == "request")
        .count();
    assert_eq!(requests, 1, "what was cut is recorded, once: {records:?}");
}

#[test]
fn nothing_is_served_before_everything_is_bound() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = (taken.local_addr().expect("an address").to_string(), taken);
    let start = gateway(OPEN);
    let socket = start.path("first.sock");
    let audit = start.path("audit.jsonl");
    let folder = tempfile::tempdir().expect("a folder");
    let kept = folder.path().join("audit.jsonl");
    let listeners = format!("unix:{},{}", socket.display(), taken.0);
    let output = start
        .set("listen.egress", listeners)
        .set("audit.path", kept.display().to_string())
        .set("log.format", "json")
        .fails();
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(
        said.contains(&taken.0) && said.contains("another process listens there"),
        "{said}"
    );
    assert!(!said.contains("\"serving\""), "{said}");
    assert!(!audit.exists() && records_of(&kept).is_empty());
}

#[test]
fn a_unix_socket_is_a_way_in() {
    let start = gateway(OPEN);
    let path = start.path("egress.sock");
    // One that an earlier gateway has left behind.
    drop(UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists());
    let mut gateway = start
        .set("listen.egress", format!("unix:{}", path.display()))
        .start();
    let found = std::fs::symlink_metadata(&path).expect("a socket");
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o660);
    let origin = Origin::http();
    let ask = |request: &str| {
        let mut stream = UnixStream::connect(&path).expect("it accepts");
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a timeout");
        stream.write_all(request.as_bytes()).expect("sent");
        Response::read(&mut stream, false)
    };
    assert_eq!(ask(&get_request("bot", &origin.url("/"))).status, 200);
    let without = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\n\r\n",
        origin.url("/"),
        origin.address
    );
    assert_eq!(ask(&without).status, 407);
    assert_eq!(origin.requests(), 1);
    let records = gateway.stop();
    assert!(
        records.iter().all(|record| record["client"].is_null()),
        "{records:?}"
    );
    assert!(!path.exists(), "the socket is left behind");
}

#[test]
fn a_unix_socket_has_the_permissions_that_are_set() {
    let start = gateway(OPEN);
    let path = start.path("egress.sock");
    let _gateway = start
        .set("listen.egress", format!("unix:{}", path.display()))
        .set("listen.unix_mode", "0600")
        .start();
    let mode = std::fs::metadata(&path)
        .expect("a socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn more_connections_than_there_is_room_for() {
    let origin = Origin::http();
    let gateway = gateway(OPEN).set("limits.connections", "2").start();
    let held = [dial(gateway.egress()), dial(gateway.egress())];
    until("both are counted", || {
        (gateway.figure("agentport_active_connections")? == 2.0).then_some(())
    });
    let refused = gateway.get("bot", &origin.url("/"));
    assert_eq!(
        (refused.status, refused.error().as_str()),
        (503, "overloaded")
    );
    assert!(refused.field("proxy-status").is_some(), "{}", refused.head);
    assert_eq!(origin.contacts(), 0);
    // The admin listener has room of its own.
    assert_eq!(gateway.page("/health").status, 200);
    drop(held);
    until("there is room again", || {
        (gateway.get("bot", &origin.url("/")).status == 200).then_some(())
    });
}

#[test]
fn half_requests_to_the_admin_listener_keep_nobody_out() {
    const MOST: usize = 256;
    let origin = Origin::http();
    let gateway = gateway(OPEN).start();
    let open_files = || {
        let folder = format!("/proc/{}/fd", gateway.pid());
        std::fs::read_dir(folder).expect("a process").count()
    };
    let before = open_files();
    let mut held: Vec<_> = (0..2 * MOST)
        .map(|_| {
            let mut stream = dial(gateway.admin());
            stream
                .write_all(b"GET /health HTTP/1.1\r\nX-A: ")
                .expect("sent");
            stream
        })
        .collect();
    // They are accepted in turn, so this comes after all of them.
    assert_eq!(gateway.page("/health").status, 200);
    assert_eq!(gateway.get("bot", &origin.url("/")).status, 200);
    // The sooner they came, the sooner they go.
    for stream in &mut held[..MOST] {
        closed(stream);
    }
    let full = "the admin listener is full: connections that wait for their client are closed for new ones";
    until("it is said", || gateway.said(full));
    until("the places are given back", || {
        // Beside the places there are the connections of this test's requests.
        (open_files() <= before + MOST + 16).then_some(())
    });
}

#[test]
fn who_finds_no_room_is_told_so_and_a_flood_of_them_takes_little() {
    let gateway = gateway(OPEN).set("limits.connections", "1").start();
    let held = dial(gateway.egress());
    until("it is counted", || {
        (gateway.figure("agentport_active_connections")? == 1.0).then_some(())
    });
    let open_files = || {
        let folder = format!("/proc/{}/fd", gateway.pid());
        std::fs::read_dir(folder).expect("a process").count()
    };
    let before = open_files();
    // None of these asks anything before it has its answer.
    let silent: Vec<_> = (0..700).map(|_| dial(gateway.egress())).collect();
    let refused = || {
        let page = gateway.page("/metrics").text();
        let lines = page.lines().filter(|line| {
            line.starts_with("agentport_requests_total") && line.contains("overloaded")
        });
        let counts = lines.filter_map(|line| line.split(" # ").next()?.rsplit(' ').next());
        counts
            .filter_map(|count| count.parse::<f64>().ok())
            .sum::<f64>()
    };
    // 128 may stay; others have been accepted and not been looked at yet.
    let mut most = 0;
    until("all of them are refused", || {
        most = most.max(open_files().saturating_sub(before));
        (refused() >= 700.0).then_some(())
    });
    most = most.max(open_files().saturating_sub(before));
    assert!(most < 400, "{most} sockets stay open for refusals");
    for mut stream in silent {
        // It may be told, and gone, before it asks.
        let _ = stream.write_all(get_request("bot", "http://127.0.0.1:9/").as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer:?}");
        assert!(answer.contains("\"error\":\"overloaded\""), "{answer}");
    }
    drop(held);
}

#[test]
fn more_at_once_than_there_is_room_for() {
    let (origin, other) = (Origin::http(), Origin::http());
    let echo = Origin::echo();
    let gateway = gateway(OPEN)
        .set("limits.in_flight", "1")
        .set("limits.tunnels", "1")
        .start();
    let mut held = begin(&gateway, &origin.url("/hold"));
    origin.until_held(1);
    let refused = gateway.get("bot", &other.url("/"));
    assert_eq!(
        (refused.status, refused.error().as_str()),
        (503, "overloaded")
    );
    assert_eq!(other.contacts(), 0);
    let mut tunnel = gateway
        .tunnel("bot", &echo.address.to_string())
        .unwrap_or_else(|refused| panic!("tunnels are not counted there: {}", refused.text()));
    exact(&mut tunnel, b"\x00");
    let refused = gateway
        .tunnel("bot", &other.address.to_string())
        .expect_err("no room");
    assert_eq!(
        (refused.status, refused.error().as_str()),
        (503, "overloaded")
    );
    assert_eq!(other.contacts(), 0);
    origin.release();
    assert_eq!(Response::read(&mut held, false).status, 200);
    until("there is room again", || {
        (gateway.get("bot", &other.url("/")).status == 200).then_some(())
    });
}

#[test]
fn quotas_are_kept_and_say_when_to_come_back() {
    let origin = Origin::http();
    let echo = Origin::echo();
    for (case, key, value) in [
        ("requests of an agent", "limits.requests_per_agent", "2/m"),
        ("requests of a source", "limits.requests_per_source", "2/m"),
    ] {
        let mut gateway = gateway(OPEN).set(key, value).start();
        let before = origin.requests();
        let answers: Vec<_> = (0..3)
            .map(|_| gateway.get("bot", &origin.url("/")))
            .collect();
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [200, 200, 429], "{case}");
        let refused = &answers[2];
        assert_eq!(refused.error(), "throttled", "{case}");
        let wait: u64 = refused
            .field("retry-after")
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("{case}: no Retry-After: {}", refused.head));
        assert!((1..=60).contains(&wait), "{case}: {wait}");
        assert_eq!(origin.requests() - before, 2, "{case}");
        let another = gateway.get("another", &origin.url("/")).status;
        assert_eq!(
            another,
            if key.ends_with("agent") { 200 } else { 429 },
            "{case}"
        );
        let counted = gateway
            .figure("agentport_throttled_total")
            .expect("counted");
        assert!(counted >= 1.0, "{case}");
        let records = gateway.stop();
        assert!(
            records.iter().any(|record| record["reason"] == "throttled"),
            "{case}"
        );
    }
    let gateway = gateway(OPEN).set("limits.tunnels_per_agent", "1").start();
    let authority = echo.address.to_string();
    let tunnel = gateway
        .tunnel("bot", &authority)
        .unwrap_or_else(|no| panic!("{}", no.text()));
    let refused = gateway
        .tunnel("bot", &authority)
        .expect_err("one is the most");
    assert_eq!(refused.status, 429);
    assert!(refused.field("retry-after").is_some());
    assert!(
        gateway.tunnel("another", &authority).is_ok(),
        "each agent has its own"
    );
    drop(tunnel);
    until("the place is given up", || {
        gateway.tunnel("bot", &authority).ok()
    });
}

#[test]
fn without_records_there_is_no_work() {
    let origin = Origin::http();
    let gateway = gateway(OPEN)
        .set("audit.path", "/dev/full")
        .set("audit.overflow", "deny")
        .start();
    // The first one's record is the one that cannot be written.
    let refused = until("requests are refused", || {
        let answer = gateway.get("bot", &origin.url("/"));
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(
        (refused.status, refused.error().as_str()),
        (503, "audit_unavailable")
    );
    let before = origin.contacts();
    let tunnel = gateway
        .tunnel("bot", &origin.address.to_string())
        .expect_err("refused");
    assert_eq!(tunnel.status, 503);
    assert_eq!(origin.contacts(), before);
    assert_eq!(gateway.page("/ready").status, 503);
    assert_eq!(gateway.ready()["audit"]["failing"], true);
    assert_eq!(gateway.figure("agentport_audit_failing"), Some(1.0));
    assert_eq!(
        gateway.page("/health").status,
        200,
        "it is up, and not ready"
    );
}

#[test]
fn a_reader_that_is_slow_holds_up_and_loses_nothing() {
    const REQUESTS: usize = 1500;
    let origin = Origin::http();
    let mut gateway = gateway(OPEN)
        .set("audit.path", "-")
        .set("audit.queue", "16")
        .set("audit.overflow", "block")
        .piped()
        .start();
    let mut output = gateway.stdout();
    let (egress, url) = (gateway.egress(), origin.url("/"));
    let requests = std::thread::spawn(move || {
        (0..REQUESTS)
            .map(|_| support::ask(egress, get_request("bot", &url).as_bytes()).status)
            .collect::<Vec<_>>()
    });
    // Nobody reads: the pipe is full, then the queue, and then they wait.
    until("the queue is full", || {
        (gateway.figure("agentport_audit_queue_depth")? >= 16.0).then_some(())
    });
    let before = origin.contacts();
    let mut waiting = begin(&gateway, &origin.url("/waiting"));
    waiting
        .set_read_timeout(Some(Duration::from_millis(300)))
        .expect("a timeout");
    let early = waiting.read(&mut [0; 1]);
    assert!(early.is_err(), "it was answered, and cannot be recorded");
    assert!(origin.contacts() <= before + 2 && !requests.is_finished());

    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        output.read_to_string(&mut text).expect("text");
        text
    });
    waiting
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a timeout");
    assert_eq!(Response::read(&mut waiting, false).status, 200);
    assert_eq!(
        requests.join().expect("all are answered"),
        vec![200; REQUESTS]
    );
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.ends().code(), Some(0));
    let text = reader.join().expect("read to its end");
    let mut ids: Vec<String> = text
        .lines()
        .map(|line| {
            let record: Value = serde_json::from_str(line).expect("a record is one line of JSON");
            record["request_id"].as_str().expect("a number").to_owned()
        })
        .collect();
    assert_eq!(ids.len(), REQUESTS + 1, "every request once");
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), REQUESTS + 1);
}

#[test]
fn the_audit_file_is_rotated_by_others_and_by_itself() {
    let origin = Origin::http();
    let mut gateway = gateway(OPEN).start();
    let (file, old) = (gateway.path("audit.jsonl"), gateway.path("audit.old"));
    assert_eq!(gateway.get("bot", &origin.url("/first")).status, 200);
    gateway.record("the first record", |record| record["path"] == "/first");
    std::fs::rename(&file, &old).expect("renamed");
    gateway.signal(Signal::SIGHUP);
    until("there is a new file", || file.exists().then_some(()));
    assert_eq!(gateway.get("bot", &origin.url("/second")).status, 200);
    gateway.record("the second record", |record| record["path"] == "/second");
    gateway.stop();
    let paths = |records: Vec<Value>| -> Vec<String> {
        let path = |record: &Value| record["path"].as_str().unwrap_or_default().to_owned();
        records.iter().map(path).collect()
    };
    assert_eq!(paths(records_of(&old)), ["/first"]);
    assert_eq!(paths(records_of(&file)), ["/second"]);

    let mut gateway = support::gateway(OPEN)
        .set("audit.max_bytes", "64KiB")
        .set("audit.keep", "100")
        .start();
    for number in 0..40 {
        assert_eq!(
            gateway
                .get(
                    "bot",
                    &origin.url(&format!("/{number}/{}", "long".repeat(1000)))
                )
                .status,
            200
        );
    }
    gateway.stop();
    let folder = gateway.path("");
    let mut all = Vec::new();
    let mut files = 0;
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if name.starts_with("audit.jsonl") {
            files += 1;
            let size = std::fs::metadata(&path).expect("a file").len();
            assert!(size <= 65_536, "{name} has {size} bytes");
            all.extend(paths(records_of(&path)));
        }
    }
    assert!(files > 2, "{files} files");
    all.sort_by_key(|path| {
        path[1..]
            .split('/')
            .next()
            .and_then(|number| number.parse::<u32>().ok())
    });
    let expected: Vec<String> = (0..40)
        .map(|number| format!("/{number}/{}", "long".repeat(1000)))
        .collect();
    assert_eq!(all, expected, "every record once");
}

#[test]
fn identical_refusals_are_counted_and_not_repeated() {
    let origin = Origin::http();
    let mut gateway = gateway("version: 1\n").start();
    let url = origin.url("/secret");
    std::thread::scope(|scope| {
        for _ in 0..30 {
            scope.spawn(|| assert_eq!(gateway.get("bot", &url).status, 403));
        }
    });
    // Another destination is another matter.
    assert_eq!(gateway.get("bot", "http://a.example/").status, 403);
    // A request is counted when it has ended, which is after its answer.
    until("all are counted", || {
        let counted = gateway.figure("agentport_requests_total{decision=\"deny\"");
        (counted == Some(31.0)).then_some(())
    });
    let records = gateway.stop();
    assert_eq!(origin.contacts(), 0);
    let port = origin.address.port();
    let (repeated, single): (Vec<_>, Vec<_>) = records
        .iter()
        .filter(|record| record["destination_port"] == port)
        .partition(|record| record["event"] == "repeated");
    assert_eq!(single.len(), 20);
    assert_eq!(repeated.len(), 1);
    assert_eq!(repeated[0]["count"], 10);
    assert_eq!(repeated[0]["reason"], "no_rule");
    assert_eq!(repeated[0]["agent_id"], "bot");
    assert_eq!(records.len(), 22);
}

#[test]
fn audit_mode_lets_pass_and_says_what_it_would_have_done() {
    let origin = Origin::http();
    let echo = Origin::echo();
    let names = Names::serve();
    let denied = format!(
        "{OPEN}  - name: on-trial\n    action: deny\n    agents: any\n    hosts: [\"127.0.0.1\"]\n    ports: any\n"
    );
    let mut gateway = gateway(&denied)
        .set("mode", "audit")
        .set("resolver.servers", names.address.to_string())
        .start();
    assert_eq!(gateway.get("bot", &origin.url("/")).status, 200);
    let mut tunnel = gateway
        .tunnel("bot", &echo.address.to_string())
        .unwrap_or_else(|refused| panic!("{}", refused.text()));
    exact(&mut tunnel, b"\x00\x01\x02");
    drop(tunnel);
    // No rule allows it: it is looked up all the same.
    let unknown = gateway.get("bot", "http://a.example/");
    assert_eq!(
        (unknown.status, unknown.error().as_str()),
        (502, "name_not_found")
    );
    assert!(names.was_asked("a.example"));
    // What is no policy's to forgive stays refused.
    let before = origin.contacts();
    let bare = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\n\r\n",
        origin.url("/"),
        origin.address
    );
    assert_eq!(support::ask(gateway.egress(), bare.as_bytes()).status, 407);
    let mut forged = token("bot");
    let last = if forged.pop() == Some('A') { 'E' } else { 'A' };
    forged.insert(forged.rfind('.').expect("three parts") + 1, last);
    let forged = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nProxy-Authorization: Bearer {forged}\r\n\r\n",
        origin.url("/"),
        origin.address
    );
    assert_eq!(
        support::ask(gateway.egress(), forged.as_bytes()).status,
        403
    );
    let own = gateway.get("bot", &format!("http://{}/", gateway.egress()));
    assert_eq!((own.status, own.error().as_str()), (403, "own_listener"));
    names.at("inside.example", &["127.0.0.1"]);
    let inside = gateway.get(
        "bot",
        &format!("http://inside.example:{}/", origin.address.port()),
    );
    assert_eq!(
        inside.status, 403,
        "an address that is not public needs a rule in any mode"
    );
    assert_eq!(origin.contacts(), before);
    let records = gateway.stop();
    let of = |host: &str, event: &str| {
        let found = records
            .iter()
            .find(|record| record["event"] == event && record["destination_host"] == host);
        found.unwrap_or_else(|| panic!("no {event} to {host}: {records:#?}"))
    };
    for (host, event, would_deny) in [
        ("127.0.0.1", "request", "rule"),
        ("127.0.0.1", "tunnel", "rule"),
        ("127.0.0.1", "tunnel_closed", "rule"),
        ("a.example", "request", "no_rule"),
    ] {
        let record = of(host, event);
        assert_eq!(record["mode"], "audit", "{record}");
        assert_eq!(record["action_allowed"], true, "{record}");
        assert_eq!(record["would_deny"], would_deny, "{record}");
    }
    assert_eq!(of("inside.example", "request")["action_allowed"], false);
}

#[test]
fn destinations_from_the_environment_are_a_whole_policy() {
    let names = Names::serve();
    let mut gateway = gateway("")
        .unset("policy")
        .env("ALLOWED_DESTINATIONS", "api.test,*.wild.test")
        .set("resolver.servers", names.address.to_string())
        .start();
    for (case, url, status, error) in [
        ("the host", "http://api.test/", 502, "name_not_found"),
        ("a host below", "http://a.wild.test/", 502, "name_not_found"),
        ("not the apex", "http://wild.test/", 403, "no_rule"),
        (
            "not below an exact one",
            "http://x.api.test/",
            403,
            "no_rule",
        ),
        ("another", "http://other.test/", 403, "no_rule"),
        ("another port", "http://api.test:8080/", 403, "no_rule"),
    ] {
        let answer = gateway.get("bot", url);
        assert_eq!(
            (answer.status, answer.error().as_str()),
            (status, error),
            "{case}"
        );
        let host = url.trim_start_matches("http://").trim_end_matches('/');
        assert_eq!(names.was_asked(host), status == 502, "{case}");
    }
    let records = gateway.stop();
    assert!(
        records.iter().any(|record| record["rule"].is_string()),
        "{records:?}"
    );
}

#[test]
fn names_are_asked_of_the_servers_that_are_set() {
    let names = Names::serve();
    let origin = Origin::http();
    let port = origin.address.port();
    // The same port, on addresses that no rule names.
    let elsewhere = Origin::at(Ipv4Addr::new(127, 0, 0, 2).into(), port, Manner::Http);
    let v6 = Origin::at(
        IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        port,
        Manner::Http,
    );
    for (name, addresses) in [
        ("good.test", &["127.0.0.1"][..]),
        ("private.test", &["10.0.0.1"]),
        ("metadata.test", &["169.254.169.254"]),
        ("loopback.test", &["127.0.0.2"]),
        ("v6.test", &["::1"]),
        ("mapped.test", &["::ffff:127.0.0.1"]),
        ("nat64.test", &["64:ff9b::7f00:1"]),
        ("mixed.test", &["127.0.0.2", "127.0.0.1", "::1", "10.0.0.1"]),
        ("empty.test", &[]),
        ("refused.example", &["127.0.0.1"]),
    ] {
        names.at(name, addresses);
    }
    names.say("silent.test", Says::Silence);
    names.say("none.test", Says::Nothing);
    let mut gateway = gateway(OPEN)
        .set("resolver.servers", names.address.to_string())
        .set("resolver.timeout", "1s")
        .start();
    for (case, name, status, error) in [
        ("one that is there", "good.test", 200, ""),
        ("a private address", "private.test", 403, "address_"),
        ("the cloud's metadata", "metadata.test", 403, "address_"),
        (
            "a loopback address that no rule names",
            "loopback.test",
            403,
            "address_",
        ),
        ("the other family's loopback", "v6.test", 403, "address_"),
        ("an IPv4 address in IPv6", "mapped.test", 403, "address_"),
        (
            "an IPv4 address behind NAT64",
            "nat64.test",
            403,
            "address_",
        ),
        ("of several only those that pass", "mixed.test", 200, ""),
        (
            "a name without an address",
            "empty.test",
            502,
            "name_not_found",
        ),
        ("no such name", "none.test", 502, "name_not_found"),
        (
            "a server that is silent",
            "silent.test",
            504,
            "name_timeout",
        ),
        (
            "a name that no rule allows",
            "refused.example",
            403,
            "no_rule",
        ),
    ] {
        let before = origin.contacts();
        let url = format!("http://{name}:{port}/");
        let answer = gateway.get("bot", &url);
        assert_eq!(answer.status, status, "{case}: {}", answer.text());
        if status != 200 {
            let found = answer.error();
            assert!(found.starts_with(error), "{case}: {found}");
            assert_eq!(origin.contacts(), before, "{case}");
            let tunnel = gateway.tunnel("bot", &format!("{name}:{port}")).err();
            assert_eq!(
                tunnel.map(|answer| answer.status),
                Some(status),
                "{case}: CONNECT"
            );
            assert_eq!(origin.contacts(), before, "{case}: CONNECT");
        }
        assert_eq!(names.was_asked(name), name.ends_with(".test"), "{case}");
    }
    assert_eq!(
        elsewhere.contacts() + v6.contacts(),
        0,
        "an address that was refused is dialled"
    );
    let records = gateway.stop();
    let mixed = records
        .iter()
        .find(|record| record["destination_host"] == "mixed.test");
    assert_eq!(
        mixed.map(|record| &record["destination_ip"]),
        Some(&"127.0.0.1".into())
    );
}

/// A name that moves to a forbidden address once it has been let in.
#[test]
fn a_name_that_moves_is_judged_anew() {
    let names = Names::serve();
    let origin = Origin::http();
    let port = origin.address.port();
    let inside = Origin::at(Ipv4Addr::new(127, 0, 0, 2).into(), port, Manner::Http);
    names.at("moves.test", &["127.0.0.1"]);
    let gateway = gateway(OPEN)
        .set("resolver.servers", names.address.to_string())
        .start();
    let url = format!("http://moves.test:{port}/");
    assert_eq!(gateway.get("bot", &url).status, 200);
    names.at("moves.test", &["127.0.0.2"]);
    let mut agent = 0;
    let refused = until("the new address is seen", || {
        agent += 1;
        let answer = gateway.get(&format!("bot-{agent}"), &url);
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(refused.status, 403);
    assert_eq!(inside.contacts(), 0);
    names.at("moves.test", &["127.0.0.1"]);
    until("it is back", || {
        agent += 1;
        (gateway.get(&format!("bot-{agent}"), &url).status == 200).then_some(())
    });
    assert_eq!(inside.contacts(), 0);
}

#[test]
fn figures_are_valid_openmetrics() {
    let origin = Origin::http();
    let gateway = gateway(OPEN).start();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traced = get_request("bot", &origin.url("/")).replacen(
        "Connection: close",
        &format!("traceparent: 00-{trace}-00f067aa0ba902b7-01\r\nX-OpenClaw-Skill: web-fetch\r\nConnection: close"),
        1,
    );
    assert_eq!(
        support::ask(gateway.egress(), traced.as_bytes()).status,
        200
    );
    assert_eq!(gateway.get("bot", "http://a.example/").status, 403);
    for decision in ["allow", "deny"] {
        let sample = format!("agentport_requests_total{{decision=\"{decision}\"");
        until("both are counted", || gateway.figure(&sample));
    }
    let page = gateway.page("/metrics");
    let kind = page.field("content-type").expect("a type").to_owned();
    assert!(
        kind.starts_with("application/openmetrics-text; version=1.0.0"),
        "{kind}"
    );
    let text = page.text();
    let exemplars = check_openmetrics(&text);
    assert!(
        exemplars
            .iter()
            .any(|labels| labels.contains(&format!("trace_id=\"{trace}\""))
                && labels.contains("web-fetch")),
        "no exemplar leads to the trace and the skill: {exemplars:?}"
    );
    for family in [
        "agentport_requests_total{",
        "agentport_jwt_validation_seconds_bucket{",
        "agentport_decision_seconds_bucket{",
        "agentport_request_duration_seconds_bucket{",
        "agentport_active_connections",
        "agentport_active_tunnels",
        "agentport_policy_info{",
        "agentport_policy_last_reload_timestamp_seconds",
        "agentport_bytes_total{",
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(family)),
            "there is no {family}"
        );
    }
}

/// Holds the text against OpenMetrics 1.0, and gives the labels of its exemplars.
fn check_openmetrics(text: &str) -> Vec<String> {
    assert!(
        text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1,
        "no end, or two"
    );
    let mut kinds: HashMap<&str, &str> = HashMap::new();
    let mut seen = std::collections::HashSet::new();
    let mut current = "";
    let mut exemplars = Vec::new();
    let mut buckets: HashMap<String, (f64, f64)> = HashMap::new();
    let mut counts: Vec<(String, f64)> = Vec::new();
    for line in text.lines().take_while(|line| *line != "# EOF") {
        if let Some(meta) = line.strip_prefix("# ") {
            let mut words = meta.splitn(3, ' ');
            let (word, family, value) = (words.next(), words.next(), words.next());
            let (Some(word), Some(family), Some(value)) = (word, family, value) else {
                panic!("a line of three words: {line}");
            };
            assert!(["TYPE", "HELP", "UNIT"].contains(&word), "{line}");
            if word == "TYPE" {
                assert!(
                    kinds.insert(family, value).is_none(),
                    "a family twice: {line}"
                );
            }
            if word == "UNIT" {
                assert!(family.ends_with(&format!("_{value}")), "{line}");
            }
            current = family;
            continue;
        }
        let (sample, exemplar) = line
            .split_once(" # ")
            .map_or((line, None), |(a, b)| (a, Some(b)));
        let (series, value) = sample.rsplit_once(' ').expect("a value");
        let value: f64 = value
            .parse()
            .unwrap_or_else(|_| panic!("no number: {line}"));
        let (name, labels) = series
            .split_once('{')
            .map_or((series, ""), |(name, labels)| {
                (name, labels.strip_suffix('}').expect("closed"))
            });
        let suffix = name
            .strip_prefix(current)
            .unwrap_or_else(|| panic!("outside of its family: {line}"));
        let kind = kinds[current];
        let suffixes: &[&str] = match kind {
            "counter" => &["_total", "_created"],
            "gauge" | "unknown" => &[""],
            "histogram" => &["_bucket", "_sum", "_count", "_created"],
            "info" => &["_info"],
            other => panic!("{current} is a {other}"),
        };
        assert!(
            suffixes.contains(&suffix),
            "a {kind} has no {suffix:?}: {line}"
        );
        assert!(seen.insert(series.to_owned()), "a series twice: {line}");
        if kind == "counter" || kind == "histogram" {
            assert!(value >= 0.0, "{line}");
        }
        if suffix == "_bucket" {
            let (before, bound) = labels.split_once("le=\"").expect("a bound");
            let (bound, after) = bound.split_once('"').expect("closed");
            let bound = match bound {
                "+Inf" => f64::INFINITY,
                bound => bound.parse().expect("a number"),
            };
            let others = format!("{before}{after}");
            let key = format!("{current}{{{}", others.trim_matches(','));
            let (last_bound, last) = buckets
                .insert(key, (bound, value))
                .unwrap_or((f64::NEG_INFINITY, 0.0));
            assert!(bound > last_bound && value >= last, "buckets go up: {line}");
        }
        if suffix == "_count" {
            counts.push((format!("{current}{{{labels}"), value));
        }
        if let Some(exemplar) = exemplar {
            assert!(
                suffix == "_bucket" || suffix == "_total",
                "an exemplar there: {line}"
            );
            let (labels, rest) = exemplar
                .strip_prefix('{')
                .and_then(|e| e.split_once('}'))
                .expect("labels");
            assert!(labels.chars().count() <= 128, "too long: {line}");
            let numbers: Vec<&str> = rest.split_whitespace().collect();
            assert!((1..=2).contains(&numbers.len()), "{line}");
            assert!(
                numbers.iter().all(|number| number.parse::<f64>().is_ok()),
                "{line}"
            );
            exemplars.push(labels.to_owned());
        }
    }
    for (key, count) in counts {
        let last = buckets.get(&key);
        assert_eq!(
            last,
            Some(&(f64::INFINITY, count)),
            "{key}: the last bucket is the count"
        );
    }
    exemplars
}

#[test]
fn a_start_says_what_it_has_found() {
    let start = gateway(OPEN).set("threads", "auto");
    let path = start.path("agentport.pid");
    let mut gateway = start.set("pid_file", path.display().to_string()).start();
    let files = gateway.said("open files").expect("the limit is logged");
    let (before, after) = (files["before"].as_u64(), files["after"].as_u64());
    assert!(before.is_some() && after >= before, "{files}");
    let serving = gateway.said("serving").expect("it serves");
    assert!(serving["threads"].as_u64() >= Some(1), "{serving}");
    assert_eq!(serving["version"], env!("CARGO_PKG_VERSION"));
    gateway.stop();
    for line in BufReader::new(gateway.log().as_bytes()).lines() {
        let line = line.expect("text");
        let line: Value = serde_json::from_str(&line).expect("each line of the log is JSON");
        assert!(
            line["level"].is_string() && line["message"].is_string(),
            "{line}"
        );
    }
}

/// A token is good until it expires, also for one request more in a tunnel
/// that it opened.
#[test]
fn an_expired_token_ends_the_requests_inside_its_tunnel() {
    let origin = Origin::http();
    let gateway = gateway(OPEN).set("identity.leeway", "0s").start();
    let issued = support::run(
        &["issue-token", "--agent-id=bot", "--ttl", "2s"],
        &[("AGENTPORT_JWKS_SECRET", support::SECRET)],
    );
    let token = support::stdout(&issued).trim().to_owned();
    let mut stream = support::dial(gateway.egress());
    let address = origin.address;
    let head = format!(
        "CONNECT {address} HTTP/1.1\r\nHost: {address}\r\nProxy-Authorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    assert_eq!(support::Response::read(&mut stream, true).status, 200);
    let mut allowed = 0;
    let refused = until("the token has expired", || {
        let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let response = support::Response::read(&mut stream, false);
        allowed += usize::from(response.status == 200);
        (response.status != 200).then_some(response)
    });
    assert_eq!((refused.status, refused.error().as_str()), (403, "expired"));
    assert!(allowed > 0, "it was good before");
}

/// The name of the agent behind the gateway means that agent on the gateway's
/// own paths, and is no destination: in DNS it may be anybody's.
#[test]
fn the_agents_name_is_no_destination() {
    let names = Names::serve();
    names.at("openclaw.agent", &["127.0.0.1"]);
    let agent = Origin::http();
    let policy = r#"
version: 1
rules:
  - name: all
    action: allow
    agents: any
    hosts: ["127.0.0.1", "openclaw.agent"]
    addresses: ["127.0.0.1/32"]
    ports: any
"#;
    let gateway = gateway(policy)
        .set("resolver.servers", names.address.to_string())
        .set("agent.upstream", agent.address.to_string())
        .start();
    let port = agent.address.port();
    let by_name = gateway.get("bot", &format!("http://openclaw.agent:{port}/"));
    assert_eq!(
        (by_name.status, by_name.error().as_str()),
        (403, "own_listener")
    );
    let tunnel = gateway.tunnel("bot", &format!("openclaw.agent:{port}"));
    assert_eq!(tunnel.map_err(|refused| refused.status).err(), Some(403));
    // Nor is its address, whatever a rule says.
    let by_address = gateway.get("bot", &agent.url("/"));
    assert_eq!(
        (by_address.status, by_address.error().as_str()),
        (403, "own_listener")
    );
    assert_eq!(agent.contacts(), 0);
    assert!(!names.was_asked("openclaw.agent"));
    let by_path = format!(
        "GET /v1/skills HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {}\r\n\r\n",
        support::token("bot")
    );
    let answer = support::ask(gateway.egress(), by_path.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(agent.requests(), 1);
}

//! New policies and keys while the gateway serves: every way in which a file
//! changes, what a mistake leaves in force, and what becomes of what is open.

#![cfg(feature = "gateway")]

#[path = "support/cli.rs"]
#[expect(dead_code, reason = "each file of tests uses a part")]
mod support;

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use support::{
    Gateway, OPEN, Origin, closed, exact, gateway, replace, run, stderr, stdout, token, until,
};

const SHUT: &str = "version: 1\n";

/// Only these ports.
fn only(ports: &[u16]) -> String {
    OPEN.replace("ports: any", &format!("ports: {ports:?}"))
}

/// As another agent each time: an agent that repeats itself is slowed down.
fn status(gateway: &Gateway, origin: &Origin) -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let agent = format!("bot-{}", NEXT.fetch_add(1, Ordering::SeqCst));
    gateway.get(&agent, &origin.url("/")).status
}

/// Waits until requests are answered so.
#[track_caller]
fn becomes(gateway: &Gateway, origin: &Origin, status: u16, case: &str) {
    until(&format!("{case}: the answer is {status}"), || {
        (self::status(gateway, origin) == status).then_some(())
    });
}

fn version(gateway: &Gateway) -> String {
    gateway.ready()["policy"]["version"]
        .as_str()
        .expect("a version")
        .to_owned()
}

type Change = fn(&Path, &str);

#[test]
fn every_way_in_which_a_file_changes_is_noticed() {
    let ways: [(&str, Change); 5] = [
        ("written in place", |file, text| {
            std::fs::write(file, text).expect("written")
        }),
        ("renamed into place", replace),
        ("deleted and made anew", |file, text| {
            std::fs::remove_file(file).expect("removed");
            std::fs::write(file, text).expect("written");
        }),
        ("written in two parts", |file, text| {
            let (first, second) = text.split_at(text.len() / 2);
            let mut file = std::fs::File::create(file).expect("opened");
            file.write_all(first.as_bytes()).expect("written");
            file.sync_all().expect("synced");
            file.write_all(second.as_bytes()).expect("written");
        }),
        ("linked into place", |file, text| {
            let beside = file.with_extension("other");
            let _ = std::fs::remove_file(&beside);
            std::fs::write(&beside, text).expect("written");
            std::fs::remove_file(file).expect("removed");
            std::fs::hard_link(&beside, file).expect("linked");
        }),
    ];
    let origin = Origin::http();
    for (case, change) in ways {
        let gateway = gateway(SHUT).start();
        let file = gateway.path("policy.yaml");
        assert_eq!(status(&gateway, &origin), 403, "{case}");
        let before = origin.contacts();
        change(&file, OPEN);
        becomes(&gateway, &origin, 200, case);
        assert!(origin.contacts() > before, "{case}");
        change(&file, SHUT);
        becomes(&gateway, &origin, 403, case);
        let before = origin.contacts();
        assert_eq!(status(&gateway, &origin), 403, "{case}");
        assert_eq!(
            origin.contacts(),
            before,
            "{case}: a refused request has reached the origin"
        );
        let log = gateway.log();
        assert!(!log.contains("watch descriptor"), "{case}: {log}");
    }
}

#[test]
fn a_mounted_volume_that_swaps_its_data_is_noticed() {
    let start = gateway(SHUT);
    let mount = start.path("mount");
    let publish = |version: &str, text: &str| {
        let data = mount.join(version);
        std::fs::create_dir_all(&data).expect("a folder");
        std::fs::write(data.join("policy.yaml"), text).expect("written");
        symlink(version, mount.join("..data_tmp")).expect("linked");
        std::fs::rename(mount.join("..data_tmp"), mount.join("..data")).expect("swapped");
    };
    publish("..v1", SHUT);
    symlink("..data/policy.yaml", mount.join("policy.yaml")).expect("linked");
    let file = mount.join("policy.yaml").display().to_string();
    let folder = mount.display().to_string();
    let origin = Origin::http();
    let by_file = start.set("policy", file).start();
    assert_eq!(status(&by_file, &origin), 403);
    assert_eq!(origin.contacts(), 0);
    let by_folder = gateway(SHUT).set("policy", folder).start();
    publish("..v2", OPEN);
    std::fs::remove_dir_all(mount.join("..v1")).expect("removed");
    becomes(&by_file, &origin, 200, "a file in the volume");
    becomes(&by_folder, &origin, 200, "the whole volume");
    publish("..v3", SHUT);
    std::fs::remove_dir_all(mount.join("..v2")).expect("removed");
    becomes(&by_file, &origin, 403, "a file in the volume");
    becomes(&by_folder, &origin, 403, "the whole volume");
}

#[test]
fn a_folder_of_policies_is_one_policy() {
    let start = gateway(SHUT);
    let folder = start.path("policies");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("base.yaml"), SHUT).expect("written");
    let gateway = start.set("policy", folder.display().to_string()).start();
    let origin = Origin::http();
    assert_eq!(status(&gateway, &origin), 403);
    replace(&folder.join("more.yaml"), OPEN);
    becomes(&gateway, &origin, 200, "a file more");
    let deny = OPEN
        .replace("action: allow", "action: deny")
        .replace("    tls: any\n", "");
    let deny = deny.replace("name: loopback", "name: not-this");
    replace(&folder.join("deny.yaml"), &deny);
    becomes(&gateway, &origin, 403, "a file that denies");
    std::fs::remove_file(folder.join("deny.yaml")).expect("removed");
    becomes(&gateway, &origin, 200, "that file gone");
    std::fs::write(folder.join("more.yaml.swp"), "{").expect("written");
    std::fs::remove_file(folder.join("more.yaml")).expect("removed");
    becomes(&gateway, &origin, 403, "the file that allowed gone");
}

/// Half a policy is a valid one, without the rule that denies. It counts when
/// it is whole, or when somebody who knows says so.
#[test]
fn a_file_that_is_being_written_does_not_count() {
    let origin = Origin::http();
    let denied = format!(
        "{OPEN}  - name: not-this\n    action: deny\n    agents: any\n    hosts: [\"127.0.0.1\"]\n    ports: any\n"
    );
    let gateway = gateway(&denied).start();
    assert_eq!(status(&gateway, &origin), 403);
    let mut file = std::fs::File::create(gateway.path("policy.yaml")).expect("opened");
    file.write_all(OPEN.as_bytes()).expect("written");
    file.sync_all().expect("synced");
    for _ in 0..300 {
        assert_eq!(status(&gateway, &origin), 403, "half a file is in force");
    }
    assert_eq!(origin.contacts(), 0);
    // Closed, it is a whole file that allows.
    drop(file);
    becomes(&gateway, &origin, 200, "the file was closed");

    // SIGHUP asks for what is there, closed or not.
    let mut file = std::fs::File::create(gateway.path("policy.yaml")).expect("opened");
    file.write_all(SHUT.as_bytes()).expect("written");
    gateway.signal(Signal::SIGHUP);
    becomes(&gateway, &origin, 403, "SIGHUP");
    drop(file);
}

#[test]
fn a_policy_with_a_mistake_leaves_the_last_good_one_in_force() {
    let origin = Origin::http();
    let gateway = gateway(OPEN).start();
    let file = gateway.path("policy.yaml");
    let before = version(&gateway);
    let refused = || {
        gateway
            .figure("agentport_policy_reloads_total{outcome=\"refused\"}")
            .unwrap_or(0.0)
    };
    for (case, text, says) in [
        ("no YAML", &b"version: 1\nrules: ["[..], "policy.yaml:"),
        ("an empty file", b"", "policy.yaml"),
        ("an unknown key", b"version: 1\nrulez: []\n", "rulez"),
        ("another version", b"version: 2\nrules: []\n", "version"),
        (
            "an empty list",
            b"version: 1\nrules:\n  - {name: a, action: allow, agents: [], hosts: [a.example]}\n",
            "rules[0].agents: the list is empty",
        ),
        (
            "a bad host among good ones",
            b"version: 1\nrules:\n  - {name: a, action: allow, agents: any, hosts: [a.example, \"b c\"]}\n",
            "rules[0].hosts[1]",
        ),
        ("no text", b"version: 1\n# \xff\xfe\nrules: []\n", "UTF-8"),
        ("a tab", b"version: 1\nrules:\n\t- name: a\n", "policy.yaml:"),
    ] {
        let count = refused();
        std::fs::write(file.with_extension("new"), text).expect("written");
        std::fs::rename(file.with_extension("new"), &file).expect("renamed");
        let shown = until(&format!("{case}: the mistake is shown"), || {
            let shown = gateway.ready()["policy"]["refused"].as_str()?.to_owned();
            shown.contains(says).then_some(shown)
        });
        assert!(shown.contains("policy.yaml"), "{case}: {shown}");
        assert_eq!(gateway.page("/ready").status, 200, "{case}: the last good one serves");
        assert_eq!(version(&gateway), before, "{case}");
        assert_eq!(status(&gateway, &origin), 200, "{case}");
        assert!(refused() > count, "{case}: not counted:\n{}", gateway.page("/metrics").text());
        let log = gateway.said("the new policy is refused; the old one stays in force");
        assert!(log.is_some(), "{case}: {}", gateway.log());
        // Back again, so that the next mistake is one by itself.
        gateway.replace_policy(OPEN);
        until(&format!("{case}: all is well again"), || {
            gateway.ready()["policy"]["refused"].is_null().then_some(())
        });
    }
    std::fs::remove_file(&file).expect("removed");
    until("the file's absence is shown", || {
        let shown = gateway.ready()["policy"]["refused"].as_str()?.to_owned();
        shown.contains("policy.yaml").then_some(())
    });
    assert_eq!(
        status(&gateway, &origin),
        200,
        "a policy that is gone is no empty policy"
    );
    gateway.replace_policy(SHUT);
    becomes(&gateway, &origin, 403, "a good one");
}

#[test]
fn records_name_the_policy_that_decided() {
    let origin = Origin::http();
    let mut gateway = gateway(OPEN).start();
    let digest = |text: &str| {
        std::fs::write(gateway.path("checked.yaml"), text).expect("written");
        let file = gateway.path("checked.yaml").display().to_string();
        let output = run(&["policy", "check", "--format=json", &file], &[]);
        let json: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        json["version"].as_str().expect("a version").to_owned()
    };
    let (first, second) = (digest(OPEN), digest(SHUT));
    assert_ne!(first, second);
    assert_eq!(version(&gateway), first);
    assert_eq!(gateway.page("/health").json()["policy_version"], first);
    assert_eq!(gateway.get("bot", &origin.url("/first")).status, 200);
    gateway.replace_policy(SHUT);
    becomes(&gateway, &origin, 403, "the second policy");
    assert_eq!(version(&gateway), second);
    assert_eq!(gateway.get("bot", &origin.url("/second")).status, 403);
    let records = gateway.stop();
    let of = |path: &str| {
        records
            .iter()
            .find(|record| record["path"] == path)
            .expect("a record")
    };
    assert_eq!(of("/first")["policy_version"], first);
    assert_eq!(of("/first")["rule"], "loopback");
    assert_eq!(of("/second")["policy_version"], second);
    assert_eq!(of("/second")["action_allowed"], false);
}

#[test]
fn what_a_new_policy_refuses_is_closed_and_the_rest_goes_on() {
    let (gone, stays) = (Origin::echo(), Origin::echo());
    let (gone_http, stays_http) = (Origin::http(), Origin::http());
    let mut gateway = gateway(OPEN).start();
    let open = |origin: &Origin| {
        let mut tunnel = gateway
            .tunnel("bot", &origin.address.to_string())
            .unwrap_or_else(|refused| panic!("{}", refused.text()));
        exact(&mut tunnel, b"\x00 first");
        tunnel
    };
    let (mut refused, mut allowed) = (open(&gone), open(&stays));
    let mut silent = gateway
        .tunnel("bot", &gone.address.to_string())
        .unwrap_or_else(|refused| panic!("{}", refused.text()));
    let mut refused_socket = websocket(&gateway, &gone_http);
    let mut allowed_socket = websocket(&gateway, &stays_http);
    let mut moving = open(&stays);

    // Bytes that never stop, all through the change.
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let pump = std::thread::spawn(move || {
        let mut rounds = 0_u32;
        while !stopped.load(Ordering::SeqCst) || rounds < 200 {
            let block: Vec<u8> = (0..16_384_u32)
                .map(|at| (at ^ rounds).to_le_bytes()[0])
                .collect();
            exact(&mut moving, &block);
            rounds += 1;
        }
        rounds
    });
    gateway.replace_policy(&only(&[stays.address.port(), stays_http.address.port()]));
    closed(&mut refused);
    closed(&mut silent);
    closed(&mut refused_socket);
    for stream in [&mut allowed, &mut allowed_socket] {
        exact(stream, b"still here");
        exact(stream, &[7; 30_000]);
    }
    stop.store(true, Ordering::SeqCst);
    let rounds = pump.join().expect("every byte came back");
    let refusal = gateway.tunnel("bot", &gone.address.to_string()).err();
    assert_eq!(refusal.map(|refusal| refusal.status), Some(403));
    let contacts = gone.contacts();
    drop((allowed, allowed_socket));
    gateway.record("the allowed tunnels end by themselves", |record| {
        record["event"] == "tunnel_closed"
            && record["destination_port"] == stays.address.port()
            && record["bytes_up"] == u64::from(rounds) * 16_384 + 7
    });

    let records = gateway.stop();
    assert_eq!(gone.contacts(), contacts);
    let of = |event: &str, port: u16| {
        let found = records
            .iter()
            .filter(|record| record["event"] == event && record["destination_port"] == port);
        found
            .map(|record| record["reason"].as_str().unwrap_or_default())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        of("tunnel_closed", gone.address.port()),
        ["policy_changed"; 2]
    );
    assert_eq!(of("tunnel_closed", stays.address.port()), ["ok"; 2]);
    assert_eq!(of("request", gone_http.address.port()), ["policy_changed"]);
    assert_eq!(of("request", stays_http.address.port()).len(), 1);
    assert_ne!(of("request", stays_http.address.port()), ["policy_changed"]);
}

/// A WebSocket by absolute-form, whose far end gives back every byte.
fn websocket(gateway: &Gateway, origin: &Origin) -> TcpStream {
    let mut stream = support::dial(gateway.egress());
    let request = format!(
        "GET http://{0}/chat HTTP/1.1\r\nHost: {0}\r\nProxy-Authorization: Bearer {1}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        origin.address,
        token("bot")
    );
    stream.write_all(request.as_bytes()).expect("sent");
    let response = support::Response::read(&mut stream, false);
    assert_eq!(response.status, 101, "{}", response.head);
    exact(&mut stream, b"\x81\x05hello");
    stream
}

#[test]
fn keys_are_swapped_while_it_serves() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let make = |name: &str| {
        let file = path(name).display().to_string();
        let made = run(&["keys", "generate", "--out", &file], &[]);
        assert!(made.status.success(), "{}", stderr(&made));
        let setting = format!("identity.signing_key={file}");
        let issued = run(&["issue-token", "--agent-id=bot", "--set", &setting], &[]);
        let public = run(&["keys", "export", "--key", &file], &[]);
        (stdout(&issued).trim().to_owned(), stdout(&public))
    };
    let (old_token, old_keys) = make("old.pem");
    let (new_token, new_keys) = make("new.pem");
    let keys = path("keys.json");
    std::fs::write(&keys, &old_keys).expect("written");
    let origin = Origin::http();
    let gateway = gateway(OPEN)
        .without_env("AGENTPORT_JWKS_SECRET")
        .set("identity.keys", keys.display().to_string())
        .start();
    let ask = |token: &str| {
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nProxy-Authorization: Bearer {token}\r\nConnection: close\r\n\r\n",
            origin.url("/"),
            origin.address
        );
        support::ask(gateway.egress(), request.as_bytes()).status
    };
    assert_eq!((ask(&old_token), ask(&new_token)), (200, 403));

    // Both at once, as in a rotation.
    let list = |text: &str| {
        let json: serde_json::Value = serde_json::from_str(text).expect("JSON");
        json["keys"][0].clone()
    };
    let both = serde_json::json!({ "keys": [list(&old_keys), list(&new_keys)] });
    replace(&keys, &both.to_string());
    until("both are accepted", || {
        (ask(&new_token) == 200).then_some(())
    });
    assert_eq!(ask(&old_token), 200);

    // A mistake changes nothing.
    for (case, text) in [
        ("no JSON", "{\"keys\": ["),
        ("no key", "{\"keys\": []}"),
        ("an empty file", ""),
        (
            "a private key for a public one",
            &std::fs::read_to_string(path("new.pem")).expect("read")[..40],
        ),
    ] {
        replace(&keys, text);
        until(&format!("{case}: the mistake is shown"), || {
            gateway.ready()["keys"]["refused"].is_string().then_some(())
        });
        assert_eq!((ask(&old_token), ask(&new_token)), (200, 200), "{case}");
        replace(&keys, &both.to_string());
        until(&format!("{case}: all is well again"), || {
            gateway.ready()["keys"]["refused"].is_null().then_some(())
        });
    }

    // The old one is retired, and what was verified before counts no more; nor
    // does a tunnel that it opened go on.
    let echo = Origin::echo();
    let connect = |token: &str| {
        let mut stream = support::dial(gateway.egress());
        let head = format!(
            "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\nProxy-Authorization: Bearer {token}\r\n\r\n",
            echo.address
        );
        stream.write_all(head.as_bytes()).expect("sent");
        assert_eq!(support::Response::read(&mut stream, true).status, 200);
        exact(&mut stream, b"\x01before");
        stream
    };
    let (mut by_old, mut by_new) = (connect(&old_token), connect(&new_token));
    replace(&keys, &new_keys);
    until("the old one is refused", || {
        (ask(&old_token) == 403).then_some(())
    });
    assert_eq!(ask(&new_token), 200);
    closed(&mut by_old);
    exact(&mut by_new, b"after");
    gateway.record("the tunnel of the retired key", |record| {
        record["event"] == "tunnel_closed" && record["reason"] == "credential_ended"
    });
    let before = origin.contacts();
    assert_eq!(ask(&old_token), 403);
    assert_eq!(origin.contacts(), before);
    let shown = gateway.page("/.well-known/jwks.json").json();
    assert_eq!(shown["keys"].as_array().map(Vec::len), Some(1), "{shown}");
}

/// Thousands of tunnels in which nothing moves, and a new policy: nobody
/// notices, and memory stays where it was.
#[test]
fn idle_tunnels_outlive_a_reload() {
    let limit = agentport::adapters::host::raise_open_file_limit()
        .expect("a limit")
        .after;
    // Each tunnel has two ends here, and two in the gateway.
    let count = usize::try_from(limit.saturating_sub(1000) / 2)
        .expect("a number")
        .min(5000);
    assert!(
        count >= 500,
        "only {limit} files may be open: too few to show anything"
    );
    let idle = Origin::hold();
    let origin = Origin::http();
    let gateway = gateway(OPEN).set("limits.tunnels", "12000").start();
    assert_eq!(status(&gateway, &origin), 200);
    let resident = || {
        let text =
            std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("a line");
        let kib = line
            .trim()
            .trim_end_matches(" kB")
            .parse::<usize>()
            .expect("a number");
        kib * 1024
    };
    let empty = resident();
    let authority = idle.address.to_string();
    let mut tunnels: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut tunnel = gateway
                .tunnel("bot", &authority)
                .unwrap_or_else(|refused| panic!("{}", refused.text()));
            tunnel.write_all(b"\x00").expect("sent");
            tunnel
        })
        .collect();
    let open = || {
        gateway
            .figure("agentport_active_tunnels")
            .expect("the figure")
    };
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let all = count as f64;
    until("all are open", || (open() == all).then_some(()));
    let full = resident();

    let before = version(&gateway);
    let port = idle.address.port();
    gateway.replace_policy(&only(&[port, origin.address.port()]));
    let mut asked = 0;
    until("the new policy is in force", || {
        assert_eq!(status(&gateway, &origin), 200, "request {asked} has failed");
        asked += 1;
        (version(&gateway) != before).then_some(())
    });
    assert_eq!(status(&gateway, &origin), 200);
    assert_eq!(open(), all, "tunnels that are allowed were closed");
    let after = resident();
    let each = full.saturating_sub(empty) / count;
    say(&format!(
        "{count} idle tunnels: {each} bytes resident each; {} KiB more after the reload",
        after.saturating_sub(full) / 1024
    ));
    assert!(each < 64 * 1024, "{each} bytes for an idle tunnel");
    assert!(
        after < full + full / 4 + 16 * 1024 * 1024,
        "the reload took {full} to {after} bytes"
    );

    // Now they are refused, all of them, and nobody else.
    gateway.replace_policy(&only(&[origin.address.port()]));
    for tunnel in &mut tunnels {
        closed(tunnel);
    }
    assert_eq!(status(&gateway, &origin), 200);
    until("none is open", || (open() == 0.0).then_some(()));
    until("every end is recorded", || {
        let text = std::fs::read_to_string(gateway.path("audit.jsonl")).ok()?;
        let ends = text.matches("\"reason\":\"policy_changed\"").count();
        (ends == count).then_some(())
    });
}

#[expect(clippy::print_stderr, reason = "a figure for whoever runs the tests")]
fn say(text: &str) {
    eprintln!("{text}");
}

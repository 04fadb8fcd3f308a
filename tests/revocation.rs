//! What is revoked stops at once, on every gateway that reads the list: new
//! requests, requests in a tunnel, tunnels and WebSockets that are open. What
//! is not revoked notices nothing.

#![cfg(feature = "gateway")]

#[path = "support/cli.rs"]
#[expect(dead_code, reason = "each file of tests uses a part")]
mod support;
#[path = "support/ports.rs"]
mod ports;
#[path = "support/redis.rs"]
#[expect(dead_code, reason = "each file of tests uses a part")]
mod redis;

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use agentport::egress::{AgentId, TenantId};
use agentport::identity::{IssueRequest, SigningKey, TokenIssuer};
use support::{
    Gateway, OPEN, Origin, Response, SECRET, ask, closed, dial, exact, gateway, run, stderr,
    stdout, until,
};

fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until(what, look)
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs()
}

/// A token and its number.
struct Token {
    text: String,
    jti: String,
}

/// A token that was issued so many seconds from now.
fn token(agent: &str, tenant: Option<&str>, from_now: i64) -> Token {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = u128::from(NEXT.fetch_add(1, Ordering::SeqCst)) << 64 | u128::from(now());
    let key = SigningKey::from_secret(SECRET).expect("a secret");
    let request = IssueRequest {
        agent: AgentId::parse(agent).expect("an agent"),
        tenant: tenant.map(|name| TenantId::parse(name).expect("a tenant")),
        destinations: None,
        lifetime: Duration::from_secs(3600),
        audience: None,
        jti: number,
        actors: Vec::new(),
        scope: None,
        client: None,
    };
    let at = now().checked_add_signed(from_now).expect("a time");
    Token {
        text: TokenIssuer::new(key, "agentport", "agentport")
            .issue(&request, at)
            .expect("a token"),
        jti: format!("{number:032x}"),
    }
}

fn get(gateway: &Gateway, token: &Token, origin: &Origin) -> Response {
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nProxy-Authorization: Bearer {}\r\nConnection: close\r\n\r\n",
        origin.url("/"),
        origin.address,
        token.text
    );
    ask(gateway.egress(), request.as_bytes())
}

fn tunnel(gateway: &Gateway, token: &Token, origin: &Origin) -> TcpStream {
    let mut stream = dial(gateway.egress());
    let head = format!(
        "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\nProxy-Authorization: Bearer {1}\r\n\r\n",
        origin.address, token.text
    );
    stream.write_all(head.as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut stream, true).status, 200);
    stream
}

fn websocket(gateway: &Gateway, token: &Token, origin: &Origin) -> TcpStream {
    let mut stream = dial(gateway.egress());
    let head = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nProxy-Authorization: Bearer {}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        origin.url("/"),
        origin.address,
        token.text
    );
    stream.write_all(head.as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut stream, false).status, 101);
    stream
}

/// Runs `agentport revoke` on this list, and expects it to do what it is told.
#[track_caller]
fn revoke(list: &Path, arguments: &[&str]) -> String {
    let output = revoke_raw(list, arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

fn revoke_raw(list: &Path, arguments: &[&str]) -> std::process::Output {
    let set = format!("identity.revocations.file={}", list.display());
    let mut all = vec!["revoke"];
    all.extend(arguments);
    all.extend(["--set", &set]);
    run(&all, &[])
}

#[track_caller]
fn becomes_revoked(gateway: &Gateway, token: &Token, origin: &Origin, case: &str) {
    let refused = until(&format!("{case}: it is refused"), || {
        Some(get(gateway, token, origin)).filter(|answer| answer.status != 200)
    });
    assert_eq!(
        (refused.status, refused.error()),
        (403, "revoked".into()),
        "{case}"
    );
}

/// What is revoked by which words: a token that it reaches, one that it does
/// not, and one that is issued later.
type Case<'w> = (&'w str, Vec<&'w str>, Token, Option<Token>, Token);

#[test]
fn each_kind_stops_what_it_names_and_leaves_the_rest() {
    let start = gateway(OPEN);
    let list = start.path("revoked.jsonl");
    let gateway = start
        .set("identity.revocations.file", list.display().to_string())
        .start();
    let (origin, echo) = (Origin::http(), Origin::echo());
    let key = SigningKey::from_secret(SECRET).expect("a secret");
    let key = key.verifying_key().id().to_string();
    let jti = token("bot-jti", None, -5);
    let number = jti.jti.clone();
    let cases: [Case<'_>; 5] = [
        (
            "a token",
            vec!["--jti", &number],
            jti,
            Some(token("bot-jti", None, -5)),
            token("bot-jti", None, 25),
        ),
        (
            "an agent",
            vec!["--agent", "bot-agent"],
            token("bot-agent", None, -5),
            Some(token("bot-agent-2", None, -5)),
            token("bot-agent", None, 25),
        ),
        (
            "an agent of one tenant",
            vec!["--agent", "bot-both", "--tenant", "acme"],
            token("bot-both", Some("acme"), -5),
            Some(token("bot-both", Some("other"), -5)),
            token("bot-both", Some("acme"), 25),
        ),
        (
            "a tenant",
            vec!["--tenant", "acme"],
            token("bot-tenant", Some("acme"), -5),
            Some(token("bot-tenant", Some("other"), -5)),
            token("bot-tenant", Some("acme"), 25),
        ),
        (
            "a key",
            vec!["--key", &key],
            token("bot-key", None, -5),
            None,
            token("bot-key", None, 25),
        ),
    ];
    for (case, arguments, revoked, other, newer) in cases {
        assert_eq!(get(&gateway, &revoked, &origin).status, 200, "{case}");
        let mut open = tunnel(&gateway, &revoked, &echo);
        exact(&mut open, b"before");
        let mut upgraded = websocket(&gateway, &revoked, &origin);
        exact(&mut upgraded, b"before");
        let mut untouched = other.as_ref().map(|other| tunnel(&gateway, other, &echo));
        if let Some(stream) = &mut untouched {
            exact(stream, b"before");
        }

        revoke(&list, &arguments);
        closed(&mut open);
        closed(&mut upgraded);
        becomes_revoked(&gateway, &revoked, &origin, case);
        let before = origin.contacts();
        assert_eq!(get(&gateway, &revoked, &origin).status, 403, "{case}");
        assert_eq!(origin.contacts(), before, "{case}: the origin was reached");
        if let Some(stream) = &mut untouched {
            exact(stream, b"after");
        }
        if let Some(other) = &other {
            assert_eq!(get(&gateway, other, &origin).status, 200, "{case}: another");
        }
        // A new token works again, but of a key that somebody else may hold.
        let expected = if case == "a key" { 403 } else { 200 };
        assert_eq!(
            get(&gateway, &newer, &origin).status,
            expected,
            "{case}: newer"
        );

        let mut undo = vec!["undo"];
        undo.extend(&arguments);
        revoke(&list, &undo);
        until(&format!("{case}: it passes again"), || {
            (get(&gateway, &revoked, &origin).status == 200).then_some(())
        });
    }
    let record = gateway.record("a tunnel that was cut", |record| {
        record["event"] == "tunnel_closed" && record["reason"] == "revoked"
    });
    assert_eq!(record["agent_id"], "bot-jti");
    let record = gateway.record("a refusal", |record| {
        record["status"] == 403 && record["reason"] == "revoked"
    });
    assert_eq!(record["detail"], "revoked by jti");
    assert_eq!(record["agent_id"], "bot-jti");
    assert_eq!(gateway.figure("agentport_revocations "), Some(0.0));
}

/// Agents ask without pause while half of them are revoked: who is not sees
/// only 200, and who is sees 200 first and 403 ever after.
#[test]
fn under_load_on_two_gateways_no_answer_is_wrong() {
    let list = tempfile::tempdir().expect("a folder");
    let list = list.path().join("revoked.jsonl");
    let start = || {
        gateway(OPEN)
            .set("identity.revocations.file", list.display().to_string())
            .start()
    };
    let gateways = [start(), start()];
    let (origin, echo) = (Origin::http(), Origin::echo());
    let agents: Vec<(bool, Token)> = (0..8)
        .map(|number| (number % 2 == 0, token(&format!("bot-{number}"), None, -5)))
        .collect();
    let mut tunnels: Vec<(bool, TcpStream)> = gateways
        .iter()
        .flat_map(|gateway| {
            agents
                .iter()
                .map(|(revoked, token)| (*revoked, tunnel(gateway, token, &echo)))
        })
        .collect();
    for (_, stream) in &mut tunnels {
        exact(stream, b"before");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let asked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for gateway in &gateways {
            for (revoked, token) in &agents {
                let (stop, asked, origin) = (Arc::clone(&stop), &asked, &origin);
                scope.spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        let answer = get(gateway, token, origin);
                        asked.fetch_add(1, Ordering::SeqCst);
                        match answer.status {
                            200 => {}
                            403 => {
                                assert!(*revoked, "a good token was refused");
                                assert_eq!(answer.error(), "revoked");
                                // Refusals are slowed down more and more.
                                return;
                            }
                            other => panic!("{other}"),
                        }
                    }
                    assert!(!*revoked, "a revoked token passed to the end");
                });
            }
        }
        until("all have asked", || {
            (asked.load(Ordering::SeqCst) > 200).then_some(())
        });
        for number in (0..8).step_by(2) {
            revoke(
                &list,
                &[
                    "--agent",
                    &format!("bot-{number}"),
                    "--for",
                    "2h",
                    "--reason",
                    "a test",
                ],
            );
        }
        for (revoked, stream) in &mut tunnels {
            if *revoked {
                closed(stream);
            } else {
                exact(stream, b"after");
            }
        }
        for gateway in &gateways {
            for (revoked, token) in &agents {
                if *revoked {
                    becomes_revoked(gateway, token, &origin, "at the end");
                }
            }
        }
        let before = asked.load(Ordering::SeqCst);
        until("the others go on", || {
            (asked.load(Ordering::SeqCst) > before + 50).then_some(())
        });
        stop.store(true, Ordering::SeqCst);
    });
    for (revoked, stream) in &mut tunnels {
        if !*revoked {
            exact(stream, b"still here");
        }
    }
    let listed = revoke(&list, &["list"]);
    assert_eq!(listed.lines().count(), 4, "{listed}");
    assert!(listed.contains("agent bot-2, at 2"), "{listed}");
    assert!(listed.contains(": a test"), "{listed}");
}

#[test]
fn a_list_that_breaks_or_goes_leaves_the_last_known_one_in_force() {
    let start = gateway(OPEN);
    let list = start.path("revoked.jsonl");
    let gateway = start
        .set("identity.revocations.file", list.display().to_string())
        .start();
    let origin = Origin::http();
    let (revoked, other) = (token("bot-1", None, -5), token("bot-2", None, -5));
    assert_eq!(std::fs::read_to_string(&list).expect("it was made"), "");
    revoke(&list, &["--agent", "bot-1"]);
    becomes_revoked(&gateway, &revoked, &origin, "revoked");
    let good = std::fs::read_to_string(&list).expect("a list");

    for (case, break_it) in [
        (
            "broken",
            (|list| std::fs::write(list, "{\"kind\":\"agent\"").expect("written")) as fn(&Path),
        ),
        ("gone", |list| std::fs::remove_file(list).expect("removed")),
    ] {
        break_it(&list);
        until(&format!("{case}: it is said"), || {
            gateway.ready()["revocations"]["failing"].as_str().map(drop)
        });
        assert_eq!(
            gateway.figure("agentport_revocations_failing"),
            Some(1.0),
            "{case}"
        );
        assert_eq!(get(&gateway, &revoked, &origin).status, 403, "{case}");
        assert_eq!(get(&gateway, &other, &origin).status, 200, "{case}");
        std::fs::write(&list, &good).expect("written");
        until(&format!("{case}: it is well again"), || {
            gateway.ready()["revocations"]["failing"]
                .is_null()
                .then_some(())
        });
        assert_eq!(get(&gateway, &revoked, &origin).status, 403, "{case}");
    }
    assert_eq!(gateway.figure("agentport_revocations_failing"), Some(0.0));

    // A restart forgets nothing.
    let again = support::gateway(OPEN)
        .set("identity.revocations.file", list.display().to_string())
        .start();
    assert_eq!(get(&again, &revoked, &origin).status, 403);
    // And a gateway does not start over a list that it cannot read.
    std::fs::write(&list, "nonsense\n").expect("written");
    let output = support::gateway(OPEN)
        .set("identity.revocations.file", list.display().to_string())
        .fails();
    assert!(stderr(&output).contains("line 1"), "{}", stderr(&output));
}

#[test]
fn the_command_says_what_to_write() {
    let folder = tempfile::tempdir().expect("a folder");
    let list = folder.path().join("revoked.jsonl");
    for (case, arguments, said) in [
        ("nothing", &[][..], "say what to revoke"),
        (
            "two things",
            &["--jti", "a", "--key", "b"],
            "say what to revoke",
        ),
        (
            "a tenant of a token",
            &["--jti", "a", "--tenant", "t"],
            "say what to revoke",
        ),
        ("a bad name", &["--agent", "a b"], "letters, digits"),
        (
            "a bad time",
            &["--agent", "a", "--for", "soon"],
            "write a whole number and a unit",
        ),
        (
            "no time",
            &["--agent", "a", "--for", "0s"],
            "write at least 1s",
        ),
        (
            "undo of nothing",
            &["undo", "--agent", "a"],
            "is not revoked",
        ),
    ] {
        let output = revoke_raw(&list, arguments);
        assert_eq!(output.status.code(), Some(1), "{case}");
        assert!(
            stderr(&output).contains(said),
            "{case}: {}",
            stderr(&output)
        );
    }
    assert!(!list.exists());
    let output = run(&["revoke", "--agent", "a"], &[]);
    assert!(
        stderr(&output).contains("identity.revocations.file"),
        "{}",
        stderr(&output)
    );
    assert_eq!(revoke(&list, &["list"]), "");
    revoke(&list, &["--key", "k1", "--reason", "two\nlines"]);
    assert!(revoke(&list, &["list"]).ends_with("until undone: two\\nlines\n"));
    let stored = revoke(&list, &["list", "--json"]);
    assert_eq!(stored, std::fs::read_to_string(&list).expect("a list"));
}

/// Two gateways and the command share a Redis, which is killed, stays away and
/// comes back with nothing in it: what was revoked stays revoked throughout.
#[test]
fn in_redis_it_outlives_redis() {
    let mut server = redis::RedisServer::start();
    let url = format!("redis://{}", server.address());
    let settings = [
        format!("redis.url={url}"),
        "identity.revocations.redis=on".to_owned(),
    ];
    let command = |arguments: &[&str]| {
        let mut all = vec!["revoke"];
        all.extend(arguments);
        for setting in &settings {
            all.extend(["--set", setting]);
        }
        let output = run(&all, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let start = || {
        gateway(OPEN)
            .set("redis.url", url.clone())
            .set("identity.revocations.redis", "on")
            .start()
    };
    let gateways = [start(), start()];
    let (origin, echo) = (Origin::http(), Origin::echo());
    let (revoked, other) = (token("bot-1", None, -5), token("bot-2", None, -5));
    let mut open: Vec<_> = gateways
        .iter()
        .map(|at| tunnel(at, &revoked, &echo))
        .collect();
    let mut untouched: Vec<_> = gateways
        .iter()
        .map(|at| tunnel(at, &other, &echo))
        .collect();
    command(&["--agent", "bot-1", "--reason", "a test"]);
    open.iter_mut().for_each(closed);
    for gateway in &gateways {
        becomes_revoked(gateway, &revoked, &origin, "by Redis");
        assert_eq!(get(gateway, &other, &origin).status, 200);
    }
    assert!(command(&["list"]).contains("agent bot-1, at 2"));

    server.kill();
    for gateway in &gateways {
        until("it is said that Redis is away", || {
            gateway.ready()["revocations"]["failing"].as_str().map(drop)
        });
        assert_eq!(gateway.figure("agentport_revocations_failing"), Some(1.0));
        assert_eq!(get(gateway, &revoked, &origin).status, 403);
        assert_eq!(get(gateway, &other, &origin).status, 200);
    }
    // It comes back empty, and is given the list again.
    server.revive();
    for gateway in &gateways {
        until("it is well again", || {
            gateway.ready()["revocations"]["failing"]
                .is_null()
                .then_some(())
        });
        assert_eq!(get(gateway, &revoked, &origin).status, 403);
        assert_eq!(get(gateway, &other, &origin).status, 200);
    }
    until("the list is in Redis again", || {
        command(&["list"]).contains("agent bot-1").then_some(())
    });
    // What is revoked now counts as before.
    command(&["--agent", "bot-2"]);
    untouched.iter_mut().for_each(closed);
    command(&["undo", "--agent", "bot-1"]);
    for gateway in &gateways {
        becomes_revoked(gateway, &other, &origin, "after Redis came back");
        until("what was taken back passes", || {
            (get(gateway, &revoked, &origin).status == 200).then_some(())
        });
    }
}

/// A Redis that loses what it has answered, in each of the ways that it does:
/// what was revoked stays revoked, and is in Redis again.
#[test]
fn in_redis_nothing_that_was_revoked_is_lost() {
    let mut server = redis::RedisServer::start();
    let url = format!("redis://{}", server.address());
    let command = |url: &str, arguments: &[&str]| {
        let redis = format!("redis.url={url}");
        let mut all = vec!["revoke"];
        all.extend(arguments);
        all.extend(["--set", &redis, "--set", "identity.revocations.redis=on"]);
        let output = run(&all, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let start = || {
        gateway(OPEN)
            .set("redis.url", url.clone())
            .set("identity.revocations.redis", "on")
            .start()
    };
    let gateways = [start(), start()];
    let origin = Origin::http();
    let tokens: Vec<_> = (0..5)
        .map(|number| token(&format!("bot-{number}"), None, -5))
        .collect();
    let restored = |gateway: &Gateway| gateway.figure("agentport_revocations_restored_total");
    command(&url, &["--agent", "bot-0"]);
    let old = server.dump();
    command(&url, &["--agent", "bot-1"]);
    command(&url, &["--agent", "bot-2"]);
    for gateway in &gateways {
        for token in &tokens[..3] {
            becomes_revoked(gateway, token, &origin, "at first");
        }
        assert_eq!(restored(gateway), Some(0.0), "nothing was lost yet");
    }

    // What a replica that lagged has been told since it took over.
    let diverged = {
        let mut other = redis::RedisServer::start();
        other.come_back_with(&old);
        command(&other.url(), &["--agent", "bot-3"]);
        other.ask(&["INCRBY", "agentport:revocations:version", "1000"]);
        other.dump()
    };
    type Loss<'l> = (&'l str, Box<dyn Fn(&mut redis::RedisServer) + 'l>, usize);
    let losses: [Loss<'_>; 4] = [
        (
            "flushed",
            Box::new(|server| drop(server.ask(&["FLUSHALL"]))),
            3,
        ),
        (
            "an older dump",
            Box::new(|server| server.come_back_with(&old)),
            3,
        ),
        (
            "short of memory",
            Box::new(|server| drop(server.ask(&["DEL", "agentport:revocations"]))),
            3,
        ),
        (
            "a replica that lagged, with a higher version",
            Box::new(|server| server.come_back_with(&diverged)),
            4,
        ),
    ];
    for (times, (case, lose, revoked)) in losses.iter().enumerate() {
        lose(&mut server);
        until(&format!("{case}: all of it is in Redis again"), || {
            for gateway in &gateways {
                for token in &tokens[..3] {
                    assert_eq!(get(gateway, token, &origin).error(), "revoked", "{case}");
                }
            }
            let list = command(&url, &["list"]);
            (list.lines().count() == *revoked).then_some(())
        });
        for gateway in &gateways {
            for token in &tokens[..*revoked] {
                becomes_revoked(gateway, token, &origin, case);
            }
            assert_eq!(get(gateway, &tokens[4], &origin).status, 200, "{case}");
        }
        let said: f64 = gateways.iter().filter_map(restored).sum();
        assert!(said > times as f64, "{case}: {said}");
    }

    // What was taken back is not given back.
    command(&url, &["undo", "--agent", "bot-1"]);
    for gateway in &gateways {
        until("what was taken back passes", || {
            (get(gateway, &tokens[1], &origin).status == 200).then_some(())
        });
    }
    server.ask(&["FLUSHALL"]);
    until("the rest is in Redis again", || {
        let list = command(&url, &["list"]);
        assert!(!list.contains("bot-1"), "{list}");
        (list.lines().count() == 3).then_some(())
    });
    for gateway in &gateways {
        assert_eq!(get(gateway, &tokens[1], &origin).status, 200);
    }
}

/// A list in Redis that cannot be read once is looked at again, also where
/// nobody changes it any more.
#[test]
fn in_redis_one_failed_reading_loses_nothing() {
    let server = redis::RedisServer::start();
    let start = gateway(OPEN);
    let secret = start.path("secret");
    std::fs::write(&secret, ADMIN).expect("written");
    let gateway = start
        .set("redis.url", format!("redis://{}", server.address()))
        .set("identity.revocations.redis", "on")
        .set("listen.admin_secret_file", secret.display().to_string())
        .start();
    let origin = Origin::http();
    let (other, token) = (token("bot-2", None, -5), token("bot-1", None, -5));
    let bearer = format!("Authorization: Bearer {ADMIN}\r\n");
    let body = r#"{"kind":"agent","value":"bot-2"}"#;
    let added = admin(&gateway, "POST", "/v1/revocations", &bearer, body);
    assert_eq!(added.status, 201, "{}", added.text());
    assert_eq!(get(&gateway, &other, &origin).error(), "revoked");
    let (list, version) = ("agentport:revocations", "agentport:revocations:version");
    server.ask(&["HSET", list, "agent  bot-1", "unreadable"]);
    server.ask(&["INCR", version]);
    until("it is said that the list cannot be read", || {
        gateway.ready()["revocations"]["failing"].as_str().map(drop)
    });
    assert_eq!(get(&gateway, &token, &origin).status, 200);
    // Nobody is told that it is done when it is not.
    let path = "/v1/revocations?kind=agent&value=bot-2";
    let undone = admin(&gateway, "DELETE", path, &bearer, "");
    assert_eq!(
        (undone.status, undone.error()),
        (503, "temporarily_unavailable".into())
    );
    let said = undone.text();
    assert!(
        said.contains("is written, but") && said.contains("/ready"),
        "{said}"
    );
    assert_eq!(get(&gateway, &other, &origin).error(), "revoked");
    let entry = format!(r#"{{"kind":"agent","value":"bot-1","at":{}}}"#, now());
    server.ask(&["HSET", list, "agent  bot-1", &entry]);
    becomes_revoked(&gateway, &token, &origin, "without another change");
    assert_eq!(
        get(&gateway, &other, &origin).status,
        200,
        "it was taken back"
    );
}

const ADMIN: &str = "an admin secret of more than thirty-two bytes";

/// One request to the admin listener.
fn admin(gateway: &Gateway, method: &str, path: &str, fields: &str, body: &str) -> Response {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n{fields}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    ask(gateway.admin(), request.as_bytes())
}

#[test]
fn over_http_by_whoever_has_the_secret() {
    let start = gateway(OPEN);
    let (list, secret) = (start.path("revoked.jsonl"), start.path("secret"));
    std::fs::write(&secret, format!("{ADMIN}\n")).expect("written");
    let gateway = start
        .set("identity.revocations.file", list.display().to_string())
        .set("listen.admin_secret_file", secret.display().to_string())
        .start();
    let (origin, echo) = (Origin::http(), Origin::echo());
    let (one, two) = (token("bot-1", Some("acme"), -5), token("bot-2", None, -5));
    let bearer = format!("Authorization: Bearer {ADMIN}\r\n");
    let form = format!("{bearer}Content-Type: application/x-www-form-urlencoded\r\n");

    // Nobody else may, by any of the ways.
    for fields in [
        "",
        "Authorization: Bearer wrong\r\n",
        "Authorization: Basic YTpi\r\n",
    ] {
        for (method, path) in [
            ("POST", "/oauth/revoke"),
            ("POST", "/oauth/introspect"),
            ("GET", "/v1/revocations"),
            ("POST", "/v1/revocations"),
            ("DELETE", "/v1/revocations?kind=agent&value=bot-1"),
        ] {
            let refused = admin(
                &gateway,
                method,
                path,
                fields,
                &format!("token={}", one.text),
            );
            assert_eq!(
                (refused.status, refused.error()),
                (401, "invalid_client".into()),
                "{method} {path}"
            );
            assert!(refused.field("www-authenticate").is_some());
        }
    }
    // The egress listener has no such pages.
    let request =
        format!("GET /v1/revocations HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{bearer}\r\n");
    assert_eq!(ask(gateway.egress(), request.as_bytes()).status, 404);

    let introspect = |token: &str| {
        admin(
            &gateway,
            "POST",
            "/oauth/introspect",
            &form,
            &format!("token={token}&token_type_hint=access_token"),
        )
        .json()
    };
    let said = introspect(&one.text);
    assert_eq!(said["active"], true);
    assert_eq!(
        (&said["agent_id"], &said["tenant"], &said["jti"]),
        (&"bot-1".into(), &"acme".into(), &one.jti.clone().into())
    );
    assert!(said["exp"].as_u64() > Some(now()));
    assert_eq!(introspect("nonsense"), serde_json::json!({"active": false}));

    // RFC 7009: the token is of no more use when the answer is there.
    let mut open = tunnel(&gateway, &one, &echo);
    let done = admin(
        &gateway,
        "POST",
        "/oauth/revoke",
        &form,
        &format!("token={}", one.text),
    );
    assert_eq!(done.status, 200, "{}", done.text());
    let before = origin.contacts();
    assert_eq!(get(&gateway, &one, &origin).error(), "revoked");
    assert_eq!(origin.contacts(), before);
    closed(&mut open);
    assert_eq!(introspect(&one.text), serde_json::json!({"active": false}));
    assert_eq!(
        get(&gateway, &token("bot-1", Some("acme"), -5), &origin).status,
        200
    );
    // One that is no token, or revoked already, is revoked (2.2).
    for token in ["nonsense", &one.text] {
        assert_eq!(
            admin(
                &gateway,
                "POST",
                "/oauth/revoke",
                &form,
                &format!("token={token}")
            )
            .status,
            200
        );
    }
    let refused = admin(
        &gateway,
        "POST",
        "/oauth/revoke",
        &form,
        "token_type_hint=x",
    );
    assert_eq!(
        (refused.status, refused.error()),
        (400, "invalid_request".into())
    );

    // The list, for operators.
    let added = admin(
        &gateway,
        "POST",
        "/v1/revocations",
        &bearer,
        r#"{"kind":"agent","value":"bot-2","for":"2h","reason":"lost"}"#,
    );
    assert_eq!(added.status, 201, "{}", added.text());
    assert_eq!(get(&gateway, &two, &origin).error(), "revoked");
    let listed = admin(&gateway, "GET", "/v1/revocations", &bearer, "").json();
    let entries = listed["revocations"].as_array().expect("a list");
    assert_eq!(entries.len(), 2);
    assert_eq!(
        (&entries[0]["kind"], &entries[0]["value"]),
        (&"jti".into(), &one.jti.clone().into())
    );
    assert_eq!(entries[1]["reason"], "lost");
    for (case, body) in [
        ("no JSON", "agent"),
        ("an unknown kind", r#"{"kind":"host","value":"a"}"#),
        ("a bad name", r#"{"kind":"agent","value":"a b"}"#),
        ("a bad time", r#"{"kind":"agent","value":"a","for":"soon"}"#),
    ] {
        let refused = admin(&gateway, "POST", "/v1/revocations", &bearer, body);
        assert_eq!(
            (refused.status, refused.error()),
            (400, "invalid_request".into()),
            "{case}"
        );
    }
    let path = "/v1/revocations?kind=agent&value=bot-2";
    assert_eq!(admin(&gateway, "DELETE", path, &bearer, "").status, 204);
    assert_eq!(get(&gateway, &two, &origin).status, 200);
    assert_eq!(admin(&gateway, "DELETE", path, &bearer, "").status, 404);
    // The secret may be changed while it runs; one that is too short opens nothing.
    std::fs::write(&secret, "short").expect("written");
    let refused = admin(
        &gateway,
        "GET",
        "/v1/revocations",
        "Authorization: Bearer short\r\n",
        "",
    );
    assert_eq!(refused.status, 503);

    // Without a secret nobody may.
    let without = support::gateway(OPEN).start();
    let refused = admin(&without, "GET", "/v1/revocations", &bearer, "");
    assert_eq!(
        (refused.status, refused.error()),
        (403, "access_denied".into())
    );
    assert!(
        refused.text().contains("listen.admin_secret_file"),
        "{}",
        refused.text()
    );
}

#[test]
fn guesses_at_the_secret_are_throttled_and_said() {
    let start = gateway(OPEN);
    let (list, secret) = (start.path("revoked.jsonl"), start.path("secret"));
    std::fs::write(&secret, ADMIN).expect("written");
    let gateway = start
        .set("identity.revocations.file", list.display().to_string())
        .set("listen.admin_secret_file", secret.display().to_string())
        .start();
    let pages = [
        ("POST", "/oauth/revoke"),
        ("POST", "/oauth/introspect"),
        ("GET", "/v1/revocations"),
        ("POST", "/v1/revocations"),
        ("DELETE", "/v1/revocations?kind=agent&value=bot-1"),
    ];
    // Who sends none guesses nothing, however often.
    for (method, path) in pages.iter().cycle().take(50) {
        assert_eq!(admin(&gateway, method, path, "", "token=x").status, 401);
    }
    assert!(gateway.said("a wrong admin secret was sent").is_none());
    for (method, path) in pages {
        let throttled = until("the throttle", || {
            let wrong = "Authorization: Bearer wrong\r\n";
            let answer = admin(&gateway, method, path, wrong, "token=x");
            (answer.status != 401).then_some(answer)
        });
        assert_eq!(
            (throttled.status, throttled.error()),
            (429, "slow_down".into()),
            "{method} {path}"
        );
        assert!(throttled.field("retry-after").is_some());
    }
    let line = until("the line", || gateway.said("a wrong admin secret was sent"));
    let source = line["source"].as_str().unwrap_or_default();
    assert!(source.starts_with("127.0.0.1:"), "{line}");

    // The operator is let in again by itself, and what was done says by whom.
    let bearer = format!("Authorization: Bearer {ADMIN}\r\n");
    let entry = r#"{"kind":"agent","value":"bot-1"}"#;
    until("the throttle to end", || {
        let answer = admin(&gateway, "POST", "/v1/revocations", &bearer, entry);
        (answer.status == 201).then_some(())
    });
    let path = "/v1/revocations?kind=agent&value=bot-1";
    assert_eq!(admin(&gateway, "DELETE", path, &bearer, "").status, 204);
    for message in ["revoked over HTTP", "a revocation was taken back over HTTP"] {
        let line = until(message, || gateway.said(message));
        let source = line["source"].as_str().unwrap_or_default();
        assert!(source.starts_with("127.0.0.1:"), "{line}");
        assert_eq!(line["by"], "the operator", "{line}");
    }
}

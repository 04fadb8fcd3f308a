//! What is revoked stops at once, on every gateway that reads the list: new
//! requests, requests in a tunnel, tunnels and WebSockets that are open. What
//! is not revoked notices nothing.

#![cfg(feature = "gateway")]

#[path = "support/cli.rs"]
#[expect(dead_code, reason = "each file of tests uses a part")]
mod support;

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use agentport::egress::{AgentId, TenantId};
use agentport::identity::{IssueRequest, SigningKey, TokenIssuer};
use support::{
    Gateway, Origin, Response, SECRET, ask, closed, dial, exact, gateway, run, stderr, stdout,
    until,
};

/// Every port of 127.0.0.1, with any bytes in tunnels, for everybody.
const OPEN: &str = r#"
version: 1
rules:
  - name: loopback
    action: allow
    agents: any
    hosts: ["127.0.0.1"]
    addresses: ["127.0.0.1/32"]
    ports: any
    tls: any
"#;

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
    let cases: [(&str, Vec<&str>, Token, Option<Token>, Token); 5] = [
        (
            "a token",
            vec!["--jti", &number],
            jti,
            Some(token("bot-jti", None, -5)),
            token("bot-jti", None, 2),
        ),
        (
            "an agent",
            vec!["--agent", "bot-agent"],
            token("bot-agent", None, -5),
            Some(token("bot-agent-2", None, -5)),
            token("bot-agent", None, 2),
        ),
        (
            "an agent of one tenant",
            vec!["--agent", "bot-both", "--tenant", "acme"],
            token("bot-both", Some("acme"), -5),
            Some(token("bot-both", Some("other"), -5)),
            token("bot-both", Some("acme"), 2),
        ),
        (
            "a tenant",
            vec!["--tenant", "acme"],
            token("bot-tenant", Some("acme"), -5),
            Some(token("bot-tenant", Some("other"), -5)),
            token("bot-tenant", Some("acme"), 2),
        ),
        (
            "a key",
            vec!["--key", &key],
            token("bot-key", None, -5),
            None,
            token("bot-key", None, 2),
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
    assert!(revoke(&list, &["list"]).ends_with("for good: two\\nlines\n"));
    let stored = revoke(&list, &["list", "--json"]);
    assert_eq!(stored, std::fs::read_to_string(&list).expect("a list"));
}

//! Folders of signing keys: the commands that change them, and gateways that
//! share one while they serve.

#![cfg(feature = "gateway")]

#[path = "support/cli.rs"]
#[expect(dead_code, reason = "each file of tests uses a part")]
mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use agentport::adapters::keyring::Keyring;
use agentport::egress::AgentId;
use agentport::identity::{IssueRequest, SigningKey, TokenIssuer, generate_ed25519, public_jwks};
use serde_json::Value;
use support::{Gateway, OPEN, Origin, ask, gateway, run, stderr, stdout, until};

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// A token of the folder's present signer, and that key's id. An agent of its
/// own, since one that is refused often is slowed down.
fn token(folder: &Path) -> (String, String) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let ring = Keyring::read(folder).expect("a folder of keys");
    let key = ring.signer(now()).expect("a signer");
    let kid = key.verifying_key().id().to_string();
    let number = NEXT.fetch_add(1, Ordering::SeqCst);
    let request = IssueRequest {
        agent: AgentId::parse(&format!("bot-{number}")).expect("a name"),
        tenant: None,
        destinations: None,
        lifetime: Duration::from_secs(3600),
        audience: None,
        jti: number as u128,
        actors: Vec::new(),
        client: None,
        scope: None,
    };
    let issuer = TokenIssuer::new(key, "agentport", "agentport");
    (issuer.issue(&request, now()).expect("a token"), kid)
}

/// What a request with this token is answered: the status and the error's code.
fn answer(gateway: &Gateway, origin: &Origin, token: &str) -> (u16, String) {
    let url = origin.url("/");
    let host = url
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    let request = format!(
        "GET {url} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    let response = ask(gateway.egress(), request.as_bytes());
    let code = match response.status {
        200 => String::new(),
        _ => response.error(),
    };
    (response.status, code)
}

#[track_caller]
fn keys(arguments: &[&str]) -> String {
    let output = run(&[&["keys"], arguments].concat(), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    stdout(&output)
}

/// The ids that a gateway publishes.
fn published(gateway: &Gateway) -> Vec<String> {
    let set = gateway.page("/.well-known/jwks.json").json();
    let list = set["keys"].as_array().expect("a list").clone();
    let id = |key: &Value| key["kid"].as_str().expect("an id").to_owned();
    list.iter().map(id).collect()
}

#[test]
fn the_commands_tell_and_change_what_the_folder_does() {
    let base = tempfile::tempdir().expect("a folder");
    let folder = base.path().join("keys").display().to_string();
    let fails = |arguments: &[&str]| {
        let output = run(&[&["keys"], arguments].concat(), &[]);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
        stderr(&output)
    };
    let none = fails(&["list", "--folder", &folder]);
    assert!(none.contains("keys generate --folder"), "{none}");
    keys(&["generate", "--folder", &folder]);
    let again = fails(&["generate", "--folder", &folder]);
    assert!(again.contains("keys rotate"), "{again}");
    let listed = keys(&["list", "--folder", &folder]);
    let first = listed.split(' ').next().expect("an id").to_owned();
    assert!(listed.contains("  signs  made 20"), "{listed}");
    let used = fails(&["retire", "--folder", &folder, &first]);
    assert!(used.contains("rotate --overlap 0s"), "{used}");

    keys(&["rotate", "--folder", &folder, "--activate-after", "1h"]);
    let listed = keys(&["list", "--folder", &folder]);
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 2, "{listed}");
    assert!(
        lines[0].starts_with(&format!("{first}  signs  until 20")),
        "{listed}"
    );
    assert!(lines[1].contains("  signs from 20"), "{listed}");
    let waits = fails(&["rotate", "--folder", &folder]);
    assert!(waits.contains("does not sign yet"), "{waits}");
    let second = lines[1].split(' ').next().expect("an id").to_owned();
    keys(&["retire", "--folder", &folder, &second]);
    let listed = keys(&["list", "--folder", &folder]);
    assert!(
        listed.starts_with(&format!("{first}  signs  made")),
        "{listed}"
    );

    let setting = format!("identity.signing_keys={folder}");
    let rotated = run(
        &[
            "keys",
            "rotate",
            "--activate-after=0s",
            "--overlap=1h",
            "--set",
            &setting,
        ],
        &[],
    );
    assert_eq!(rotated.status.code(), Some(0), "{}", stderr(&rotated));
    let said = stderr(&rotated);
    assert!(said.contains("tokens may live for 24h"), "{said}");
    let exported: Value =
        serde_json::from_str(&keys(&["export", "--folder", &folder])).expect("JSON");
    let exported = exported["keys"].as_array().expect("a list");
    assert_eq!(exported.len(), 2);
    assert!(exported.iter().all(|key| key.get("d").is_none()));
    let soon = fails(&["rotate", "--folder", &folder, "--overlap", "soon"]);
    assert!(soon.contains("--overlap soon"), "{soon}");

    let both = run(
        &[
            "config",
            "check",
            "--set",
            &setting,
            "--set",
            "identity.signing_key=/k.pem",
        ],
        &[],
    );
    assert!(
        stderr(&both).contains("identity.signing_key is set too: keep one of them"),
        "{}",
        stderr(&both)
    );
}

#[test]
fn a_rotation_under_load_is_refused_by_no_replica() {
    let base = tempfile::tempdir().expect("a folder");
    let folder = base.path().join("keys");
    let shown = folder.display().to_string();
    keys(&["generate", "--folder", &shown]);
    let replica = || {
        gateway(OPEN)
            .without_env("AGENTPORT_JWKS_SECRET")
            .set("identity.signing_keys", shown.clone())
            .start()
    };
    let replicas = [replica(), replica()];
    let origin = Origin::http();
    let (held, old) = token(&folder);
    let etag = replicas[0]
        .page("/.well-known/jwks.json")
        .field("etag")
        .expect("an ETag")
        .to_owned();

    let done = AtomicBool::new(false);
    let by_new = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    let (fresh, kid) = token(&folder);
                    for replica in &replicas {
                        for token in [&fresh, &held] {
                            let answer = answer(replica, &origin, token);
                            assert_eq!(answer, (200, String::new()), "signed by {kid}");
                        }
                    }
                    if kid != old {
                        by_new.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        let finished = scope.spawn(|| {
            keys(&["rotate", "--folder", &shown, "--activate-after", "5s"]);
            until("the new key has signed for a while", || {
                (by_new.load(Ordering::SeqCst) >= 20).then_some(())
            });
        });
        let finished = finished.join();
        done.store(true, Ordering::SeqCst);
        finished.expect("the rotation comes to its end");
    });
    for replica in &replicas {
        let ids = published(replica);
        assert_eq!((ids.len(), &ids[0]), (2, &old), "both keys are published");
    }
    let page = replicas[0].page("/.well-known/jwks.json");
    assert_eq!(page.field("cache-control"), Some("public, max-age=60"));
    let new_etag = page.field("etag").expect("an ETag").to_owned();
    assert_ne!(new_etag, etag);
    // On the listener of the agents as on the operator's.
    for address in [replicas[0].admin(), replicas[0].egress()] {
        for (known, status) in [(&etag, 200), (&new_etag, 304)] {
            let request = format!(
                "GET /.well-known/jwks.json HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: \"x\", {known}\r\nConnection: close\r\n\r\n"
            );
            let response = ask(address, request.as_bytes());
            assert_eq!(response.status, status, "{known}");
            assert_eq!(response.text().is_empty(), status == 304, "{known}");
            assert_eq!(response.field("etag"), Some(new_etag.as_str()));
        }
    }

    // An end of the old key at once, on all replicas.
    keys(&["retire", "--folder", &shown, &old]);
    let (fresh, _) = token(&folder);
    for replica in &replicas {
        until("the retired key is refused", || {
            (answer(replica, &origin, &held) == (403, "unknown_key".to_owned())).then_some(())
        });
        assert_eq!(answer(replica, &origin, &fresh).0, 200);
    }
}

#[test]
fn a_tunnel_ends_with_its_token_only_where_it_is_told_to() {
    let secret = support::SECRET;
    let origin = Origin::echo();
    let authority = origin.url("").trim_start_matches("http://").to_owned();
    let gateways = ["false", "true"].map(|outlive| {
        gateway(OPEN)
            .set("tunnel.outlive_token", outlive)
            .set("identity.leeway", "0s")
            .start()
    });
    let setting = "identity.token_ttl=4s";
    let mut tunnels = gateways.each_ref().map(|gateway| {
        let issued = run(
            &["issue-token", "--agent-id=bot-01", "--set", setting],
            &[("AGENTPORT_JWKS_SECRET", secret)],
        );
        let token = stdout(&issued).trim().to_owned();
        let connect = format!(
            "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer {token}\r\n\r\n"
        );
        let mut tunnel = support::dial(gateway.egress());
        std::io::Write::write_all(&mut tunnel, connect.as_bytes()).expect("sent");
        assert_eq!(support::Response::read(&mut tunnel, true).status, 200);
        (tunnel, token)
    });
    support::closed(&mut tunnels[0].0);
    let closed = gateways[0].record("the tunnel's end", |record| {
        record["event"] == "tunnel_closed"
    });
    assert_eq!(closed["reason"], "credential_ended");
    // The other's token is over as well, and its tunnel is not.
    until("the token has expired", || {
        let (_, code) = answer(&gateways[1], &origin, &tunnels[1].1);
        (code == "expired").then_some(())
    });
    support::exact(&mut tunnels[1].0, b"still here");
}

#[test]
fn an_overlap_ends_by_itself_and_takes_its_tunnels_along() {
    let base = tempfile::tempdir().expect("a folder");
    let folder = base.path().join("keys");
    let shown = folder.display().to_string();
    keys(&["generate", "--folder", &shown]);
    let gateway = gateway(OPEN)
        .without_env("AGENTPORT_JWKS_SECRET")
        .set("identity.signing_keys", shown.clone())
        .start();
    let origin = Origin::echo();
    let (old, kid) = token(&folder);
    let authority = origin.url("").trim_start_matches("http://").to_owned();
    let connect = format!(
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer {old}\r\n\r\n"
    );
    let mut tunnel = support::dial(gateway.egress());
    std::io::Write::write_all(&mut tunnel, connect.as_bytes()).expect("sent");
    let opened = support::Response::read(&mut tunnel, true);
    assert_eq!(opened.status, 200);
    let rotate = [
        "rotate",
        "--folder",
        &shown,
        "--activate-after=0s",
        "--overlap=2s",
    ];
    keys(&rotate);
    until("the new key is published", || {
        (published(&gateway).len() == 2).then_some(())
    });
    until("only the new key is left", || {
        let ids = published(&gateway);
        (ids.len() == 1 && ids[0] != kid).then_some(())
    });
    support::closed(&mut tunnel);
    let closed = gateway.record("the tunnel's end", |record| {
        record["event"] == "tunnel_closed"
    });
    assert_eq!(closed["reason"], "credential_ended");
    let contacts = origin.contacts();
    assert_eq!(
        answer(&gateway, &origin, &old),
        (403, "unknown_key".to_owned())
    );
    assert_eq!(
        origin.contacts(),
        contacts,
        "a refused request has gone out"
    );
}

#[test]
fn a_mounted_secret_that_swaps_its_data_is_a_folder_of_keys() {
    let base = tempfile::tempdir().expect("a folder");
    let folder = base.path().join("keys");
    let shown = folder.display().to_string();
    keys(&["generate", "--folder", &shown]);
    let mount = base.path().join("mount");
    // As the kubelet does it: a new directory, and a link that is moved to it.
    let publish = |version: &str| {
        let data = mount.join(version);
        std::fs::create_dir_all(&data).expect("a folder");
        for entry in std::fs::read_dir(&folder).expect("read") {
            let file = entry.expect("an entry");
            let name = file.file_name();
            std::fs::copy(file.path(), data.join(&name)).expect("copied");
            let link = mount.join(&name);
            if !link.exists() {
                let target = Path::new("..data").join(&name);
                std::os::unix::fs::symlink(target, link).expect("linked");
            }
        }
        std::os::unix::fs::symlink(version, mount.join("..data_tmp")).expect("linked");
        std::fs::rename(mount.join("..data_tmp"), mount.join("..data")).expect("swapped");
    };
    publish("..v1");
    let mounted = mount.display().to_string();
    let start = || gateway(OPEN).without_env("AGENTPORT_JWKS_SECRET");
    let signs = start().set("identity.signing_keys", mounted).start();
    let origin = Origin::http();
    let (old, first) = token(&folder);
    assert_eq!(answer(&signs, &origin, &old).0, 200);
    keys(&["rotate", "--folder", &shown, "--activate-after=0s"]);
    let (new, second) = token(&folder);
    assert_ne!(first, second);
    publish("..v2");
    std::fs::remove_dir_all(mount.join("..v1")).expect("removed");
    until("the new key is known", || {
        (answer(&signs, &origin, &new).0 == 200).then_some(())
    });
    assert_eq!(answer(&signs, &origin, &old).0, 200, "the overlap");
    keys(&["retire", "--folder", &shown, &first]);
    publish("..v3");
    until("the old key is gone", || {
        (answer(&signs, &origin, &old).0 == 403).then_some(())
    });
    assert_eq!(answer(&signs, &origin, &new).0, 200);
}

/// Another key under the old one's `kid` is another key: what the old one
/// confirmed ends, also where its id still stands in the file.
#[test]
fn a_key_replaced_under_its_id_takes_its_tunnels_along() {
    let base = tempfile::tempdir().expect("a folder");
    let file = base.path().join("keys.json");
    let key = || {
        let pem = generate_ed25519().expect("a key");
        let key = SigningKey::from_pem(&pem).expect("a key");
        key.with_id("always-the-same").expect("an id")
    };
    let (old, new) = (key(), key());
    let set = |key: &SigningKey| public_jwks([key.verifying_key()]);
    std::fs::write(&file, set(&old)).expect("written");
    let gateway = gateway(OPEN)
        .set("identity.keys", file.display().to_string())
        .start();
    let origin = Origin::echo();
    let [old_token, new_token] = [(old, 1), (new, 2)].map(|(key, number)| {
        let text = set(&key);
        let request = IssueRequest {
            agent: AgentId::parse("bot-01").expect("a name"),
            tenant: None,
            destinations: None,
            lifetime: Duration::from_secs(3600),
            audience: None,
            jti: number,
            actors: Vec::new(),
            client: None,
            scope: None,
        };
        let issuer = TokenIssuer::new(key, "agentport", "agentport");
        (issuer.issue(&request, now()).expect("a token"), text)
    });
    let authority = origin.url("").trim_start_matches("http://").to_owned();
    let connect = |token: &str| {
        let head = format!(
            "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer {token}\r\n\r\n"
        );
        let mut tunnel = support::dial(gateway.egress());
        std::io::Write::write_all(&mut tunnel, head.as_bytes()).expect("sent");
        let status = support::Response::read(&mut tunnel, true).status;
        (status, tunnel)
    };
    let (status, mut tunnel) = connect(&old_token.0);
    assert_eq!(status, 200);
    let mut others = support::dial(gateway.egress());
    let bystander = format!(
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
        support::token("bystander")
    );
    std::io::Write::write_all(&mut others, bystander.as_bytes()).expect("sent");
    assert_eq!(support::Response::read(&mut others, true).status, 200);

    support::replace(&file, &new_token.1);
    support::closed(&mut tunnel);
    let closed = gateway.record("the tunnel's end", |record| {
        record["event"] == "tunnel_closed"
    });
    assert_eq!(closed["reason"], "credential_ended");
    assert_eq!(connect(&old_token.0).0, 403);
    let (status, mut tunnel) = connect(&new_token.0);
    assert_eq!(status, 200);
    support::exact(&mut tunnel, b"the new one");
    support::exact(&mut others, b"of another key");
}

//! Agents without a token: by a long-lived key in the proxy's URL, or by their
//! user id at the other end of a Unix socket.

#![cfg(feature = "gateway")]

#[path = "support/cli.rs"]
#[expect(dead_code, reason = "each file of tests uses a part")]
mod support;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use support::{
    Gateway, Origin, Response, ask, closed, dial, exact, gateway, run, stderr, stdout, until,
};

const POLICY: &str = r#"
version: 1
rules:
  - name: loopback
    action: allow
    agents: ["bot-01"]
    hosts: ["127.0.0.1"]
    addresses: ["127.0.0.1/32"]
    ports: any
    tls: any
"#;

#[track_caller]
fn agent_key(file: &Path, arguments: &[&str]) -> String {
    let output = agent_key_raw(file, arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

fn agent_key_raw(file: &Path, arguments: &[&str]) -> std::process::Output {
    let set = format!("identity.agent_keys={}", file.display());
    let mut all = vec!["agent-key"];
    all.extend(arguments);
    all.extend(["--set", &set]);
    run(&all, &[])
}

fn get(gateway: &Gateway, credential: &str, origin: &Origin) -> Response {
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\n{credential}Connection: close\r\n\r\n",
        origin.url("/"),
        origin.address
    );
    ask(gateway.egress(), request.as_bytes())
}

fn bearer(key: &str) -> String {
    format!("Proxy-Authorization: Bearer {key}\r\n")
}

fn basic(pair: &str) -> String {
    format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(pair))
}

#[test]
fn agent_keys_alone_are_keys_enough() {
    let start = gateway(POLICY).without_env("AGENTPORT_JWKS_SECRET");
    let file = start.path("agent-keys");
    let key = agent_key(&file, &["create", "--agent-id", "bot-01"]);
    let gateway = start
        .set("identity.agent_keys", file.display().to_string())
        .start();
    let origin = Origin::http();
    let passes = || get(&gateway, &bearer(key.trim_end()), &origin).status;
    assert_eq!(passes(), 200);
    let token = get(&gateway, &bearer(&support::token("bot-01")), &origin);
    assert_eq!((token.status, token.error()), (403, "unknown_key".into()));
    // Reading everything anew is no mistake, either.
    gateway.signal(nix::sys::signal::Signal::SIGHUP);
    until("the keys are read", || {
        gateway.said("new keys are in force")
    });
    let refused = "the new keys are refused; the old ones stay in force";
    assert!(gateway.said(refused).is_none(), "{}", gateway.log());
    assert_eq!(passes(), 200);
}

#[test]
fn a_key_passes_in_every_form_until_it_is_taken_away() {
    let start = gateway(POLICY);
    let (file, list) = (start.path("agent-keys"), start.path("revoked"));
    let key = agent_key(
        &file,
        &["create", "--agent-id", "bot-01", "--tenant", "acme"],
    );
    let key = key.trim_end();
    let id = &key[..20];
    let narrow = agent_key(
        &file,
        &[
            "create",
            "--agent-id",
            "bot-01",
            "--allow",
            "a.example",
            "--for",
            "90d",
        ],
    );
    let kept = std::fs::read_to_string(&file).expect("a file");
    assert!(!kept.contains(&key[21..]), "the key itself is kept");
    let gateway = start
        .set("identity.agent_keys", file.display().to_string())
        .set("identity.revocations.file", list.display().to_string())
        .start();
    let (origin, echo) = (Origin::http(), Origin::echo());

    for (case, credential) in [
        ("bearer", bearer(key)),
        ("basic", basic(&format!("bot-01:{key}"))),
        ("basic, as user name", basic(&format!("{key}:"))),
    ] {
        assert_eq!(get(&gateway, &credential, &origin).status, 200, "{case}");
    }
    let record = gateway.record("by the key", |record| record["credential"] == "agent_key");
    assert_eq!(record["agent_id"], "bot-01");
    assert_eq!(record["tenant"], "acme");
    assert_eq!(record["token_jti"], serde_json::Value::Null);
    let curl = Command::new("curl")
        .args(["-sS", "--max-time", "20", "-x"])
        .arg(format!("http://bot-01:{key}@{}", gateway.egress()))
        .arg(origin.url("/"))
        .output()
        .expect("curl is installed");
    assert_eq!(String::from_utf8_lossy(&curl.stdout), "hello\n", "{curl:?}");

    // Tokens pass beside it, and what is only like it does not.
    assert_eq!(gateway.get("bot-01", &origin.url("/")).status, 200);
    let before = origin.contacts();
    let changed = format!(
        "{}{}",
        &key[..84],
        if key.ends_with('0') { '1' } else { '0' }
    );
    for (case, bad) in [
        ("another secret", changed.as_str()),
        ("its id alone", id),
        ("another id", "apk_0000000000000000_0000"),
    ] {
        let refused = get(&gateway, &bearer(bad), &origin);
        assert_eq!(
            (refused.status, refused.error()),
            (403, "unknown_key".to_owned()),
            "{case}"
        );
    }
    let refused = get(&gateway, &bearer(narrow.trim_end()), &origin);
    assert_eq!(
        (refused.status, refused.error()),
        (403, "not_in_token".to_owned())
    );
    assert_eq!(origin.contacts(), before);
    // Right ones and wrong ones stand where the checks of tokens do.
    for (outcome, count) in [("ok", 5.0), ("unknown_key", 3.0)] {
        let sample = format!(
            "agentport_jwt_validation_seconds_count{{outcome=\"{outcome}\",algorithm=\"agent_key\"}}"
        );
        assert_eq!(gateway.figure(&sample), Some(count), "{outcome}");
    }
    // One that no gateway would read again is not made, and the rest stands.
    let kept = std::fs::read_to_string(&file).expect("a file");
    let mut large = vec!["create".to_owned(), "--agent-id=bot-01".to_owned()];
    large.extend((0..3_000).map(|number| format!("--allow=host-{number}.a-long-name.example")));
    let large: Vec<&str> = large.iter().map(String::as_str).collect();
    let refused = agent_key_raw(&file, &large);
    assert_eq!(refused.status.code(), Some(1));
    let said = stderr(&refused);
    assert!(said.contains("name fewer destinations"), "{said}");
    assert_eq!(std::fs::read_to_string(&file).expect("a file"), kept);

    // Revoked by its agent, it is no good; one that is made later is.
    let mut open = dial(gateway.egress());
    let head = format!(
        "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n{1}\r\n",
        echo.address,
        bearer(key)
    );
    open.write_all(head.as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut open, true).status, 200);
    exact(&mut open, b"before");
    let revoke = |arguments: &[&str]| {
        let set = format!("identity.revocations.file={}", list.display());
        let mut all = vec!["revoke"];
        all.extend(arguments);
        all.extend(["--set", &set]);
        let output = run(&all, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
    };
    revoke(&["--key", id]);
    closed(&mut open);
    let refused = get(&gateway, &bearer(key), &origin);
    assert_eq!(
        (refused.status, refused.error()),
        (403, "revoked".to_owned())
    );
    revoke(&["undo", "--key", id]);
    until("it passes again", || {
        (get(&gateway, &bearer(key), &origin).status == 200).then_some(())
    });

    // Taken away: what is open by it is closed.
    let mut open = dial(gateway.egress());
    open.write_all(head.as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut open, true).status, 200);
    let listed = agent_key(&file, &["list"]);
    assert!(
        listed.contains(&format!("{id} agent bot-01 of tenant acme, made 2")),
        "{listed}"
    );
    assert!(listed.contains("allowed a.example"), "{listed}");
    agent_key(&file, &["revoke", key]);
    closed(&mut open);
    let refused = get(&gateway, &bearer(key), &origin);
    assert_eq!(
        (refused.status, refused.error()),
        (403, "unknown_key".to_owned())
    );
    gateway.record("the tunnel that was cut", |record| {
        record["event"] == "tunnel_closed" && record["reason"] == "credential_ended"
    });

    // A broken file leaves the last good keys in force.
    let another = agent_key(&file, &["create", "--agent-id", "bot-01"]);
    let another = another.trim_end();
    until("it passes", || {
        (get(&gateway, &bearer(another), &origin).status == 200).then_some(())
    });
    std::fs::write(&file, "nonsense\n").expect("written");
    until("it is said", || {
        gateway.ready()["agent_keys"]["refused"].as_str().map(drop)
    });
    assert_eq!(get(&gateway, &bearer(another), &origin).status, 200);
}

#[test]
fn the_command_says_what_to_write() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    for (case, arguments, said) in [
        (
            "a bad agent",
            &["create", "--agent-id", "a b"][..],
            "letters, digits",
        ),
        (
            "a bad destination",
            &["create", "--agent-id", "a", "--allow", "http://x"],
            "--allow",
        ),
        ("no such key", &["revoke", "apk_1"], "there is no agent key"),
    ] {
        let output = agent_key_raw(&file, arguments);
        assert_eq!(output.status.code(), Some(1), "{case}");
        assert!(
            stderr(&output).contains(said),
            "{case}: {}",
            stderr(&output)
        );
    }
    assert!(!file.exists());
    assert_eq!(agent_key(&file, &["list"]), "");
    let output = gateway(POLICY)
        .set("identity.agent_keys", file.display().to_string())
        .fails();
    assert!(
        stderr(&output).contains("agent-key create"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_unix_sockets_peer_is_whom_the_operator_has_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (socket, list) = (folder.path().join("s"), folder.path().join("revoked"));
    let uid = nix::unistd::getuid().as_raw();
    let config = folder.path().join("agentport.yaml");
    let write = |uid: u32| {
        let text = format!(
            "listen:\n  egress: [\"127.0.0.1:0\", \"unix:{}\"]\n  peer_credentials:\n    - {{uid: {uid}, agent: bot-01}}\n",
            socket.display()
        );
        std::fs::write(&config, text).expect("written");
    };
    let (origin, echo) = (Origin::http(), Origin::echo());
    let send = |request: String, connect: bool| {
        let mut stream = UnixStream::connect(&socket).expect("it accepts");
        stream.write_all(request.as_bytes()).expect("sent");
        let answer = Response::read(&mut stream, connect);
        (answer, stream)
    };
    let request = |fields: &str| {
        format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\n{fields}\r\n",
            origin.url("/"),
            origin.address
        )
    };
    let start = |uid: u32| {
        write(uid);
        gateway(POLICY)
            .unset("listen.egress")
            .set("identity.revocations.file", list.display().to_string())
            .env("AGENTPORT_CONFIG", &config.display().to_string())
            .start()
    };

    // Nobody has named this user: it must have a credential.
    let mut other = start(uid.wrapping_add(1));
    assert_eq!(send(request(""), false).0.status, 407);
    assert_eq!(origin.contacts(), 0);
    other.stop();

    let gateway = start(uid);
    assert_eq!(send(request(""), false).0.status, 200);
    let record = gateway.record("by its peer", |record| record["credential"] == "peer");
    assert_eq!(record["agent_id"], "bot-01");
    // By TCP it is nobody, and a bad credential is not mended by the socket.
    let before = origin.contacts();
    assert_eq!(
        ask(
            gateway.egress(),
            request("Connection: close\r\n").as_bytes()
        )
        .status,
        407
    );
    let bad = "Proxy-Authorization: Bearer nonsense\r\n";
    assert_eq!(send(request(bad), false).0.status, 403);
    assert_eq!(origin.contacts(), before);

    // In HTTP/2, requests and tunnels are its as well.
    assert_eq!(over_http2(&socket, &origin, &echo), (200, 200));

    // It can be revoked like any other.
    let head = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", echo.address);
    let (answer, mut open) = send(head, true);
    assert_eq!(answer.status, 200);
    let set = format!("identity.revocations.file={}", list.display());
    let output = run(&["revoke", "--agent", "bot-01", "--set", &set], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut open, &mut rest).expect("it is closed");
    let (refused, _) = send(request(""), false);
    assert_eq!(
        (refused.status, refused.error()),
        (403, "revoked".to_owned())
    );
}

/// What a request and a `CONNECT` without a credential are answered on one
/// connection that speaks HTTP/2.
fn over_http2(socket: &Path, origin: &Origin, echo: &Origin) -> (u16, u16) {
    let asking = async {
        let stream = tokio::net::UnixStream::connect(socket).await;
        let stream = stream.expect("it accepts");
        let (sender, connection) = h2::client::handshake(stream).await.expect("a handshake");
        tokio::spawn(connection);
        let get = http::Request::get(origin.url("/")).body(());
        let connect = http::Request::connect(echo.address.to_string()).body(());
        let mut statuses = Vec::new();
        for (request, ends) in [(get, true), (connect, false)] {
            let mut sender = sender.clone().ready().await.expect("room");
            let request = request.expect("a request");
            let (answer, _open) = sender.send_request(request, ends).expect("sent");
            statuses.push(answer.await.expect("an answer").status().as_u16());
        }
        (statuses[0], statuses[1])
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime
        .block_on(async { tokio::time::timeout(support::LONGEST, asking).await })
        .expect("in time")
}

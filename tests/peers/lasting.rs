//! Calls that last end with what they were allowed by.

use std::io::{Read, Write};
use std::time::Duration;

use crate::support::origin::Origin;
use crate::support::pki::{Issued, Pki, Valid, replace};
use crate::support::wait_for;
use crate::{Between, POLICY, Tls, delegated_for, directory};

/// Calls bob for events, and reads the first.
fn listens(between: &Between, who: &Issued) -> Tls {
    listens_with(between, who, "")
}

fn listens_with(between: &Between, who: &Issued, fields: &str) -> Tls {
    let config = between.config(Some(who), "http/1.1");
    let mut tls = between.connect(&config);
    let head = format!("GET /open/events HTTP/1.1\r\nHost: bob.peers.internal\r\n{fields}\r\n");
    tls.write_all(head.as_bytes()).expect("sent");
    let mut seen = Vec::new();
    while !seen.ends_with(b"data: 1\n\n\r\n") {
        let mut byte = [0; 1];
        tls.read_exact(&mut byte).expect("the first event");
        seen.push(byte[0]);
    }
    tls
}

#[test]
fn an_answer_that_lasts_ends_with_the_certificate_of_its_caller() {
    let bob = with_events();
    // Its path in the CA's folder is not known before.
    let lists = tempfile::tempdir().expect("a folder");
    let list = lists.path().join("list.crl");
    let shown = list.display().to_string();
    let ca = Pki::new("the agents' CA");
    replace(
        &list,
        &std::fs::read(ca.revoke("list.crl", &[])).expect("a list"),
    );
    let between = Between::start_from(
        ca,
        POLICY,
        &directory("bob", &[bob.address().to_string()]),
        &[("peers.crl", &shown)],
    );
    let ends = |mut tls: Tls, reason: &str| {
        let mut rest = Vec::new();
        let _ = tls.read_to_end(&mut rest);
        assert_eq!(rest, b"", "{reason}");
        let delegations = || {
            let mut records = between.gateway.records();
            records.retain(|record| record["event"] == "delegation");
            records
        };
        let record = wait_for("the record", || delegations().pop());
        assert_eq!(record["reason"], reason, "{record}");
        assert_eq!(record["agent_id"], "alice", "{record}");
        assert_eq!(record["status"], 200, "{record}");
        delegations().len()
    };
    // One that expires, and nothing else changes.
    let name = "spiffe://example.org/agent/alice";
    let valid = Valid::For(Duration::from_secs(3));
    let short = between.pki.client("short", 9, &[name], valid);
    assert_eq!(ends(listens(&between, &short), "credential_ended"), 1);
    let tls = listens(&between, &between.alice);
    let revoked = between.pki.revoke("list.crl", &[2]);
    replace(&list, &std::fs::read(revoked).expect("a list"));
    wait_for("the second end", || {
        let records = between.gateway.records();
        let delegations = records.iter().filter(|one| one["event"] == "delegation");
        (delegations.count() == 2).then_some(())
    });
    assert_eq!(ends(tls, "credential_ended"), 2);
}

/// An agent that answers with one event, and then nothing.
fn with_events() -> Origin {
    Origin::serve(|mut conn, _| {
        if conn.head().is_some() {
            conn.send_lossy(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                 Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
            );
            let _ = conn.closes();
        }
    })
}

#[test]
fn a_call_that_lasts_ends_with_the_token_that_it_was_made_on_behalf_of() {
    let bob = with_events();
    let folder = tempfile::tempdir().expect("a folder");
    let list = folder.path().join("revoked.jsonl").display().to_string();
    let between = Between::start_with(
        POLICY,
        &directory("bob", &[bob.address().to_string()]),
        &[
            ("identity.revocations.file", &list),
            ("identity.leeway", "0s"),
            ("tunnel.outlive_token", "false"),
        ],
    );
    let listens_for = |whom: &str, lifetime: u64| {
        let token = delegated_for(whom, &["alice"], Duration::from_secs(lifetime));
        listens_with(
            &between,
            &between.alice,
            &format!("X-AgentPort-Token: {token}\r\n"),
        )
    };
    let ends = |mut tls: Tls, whom: &str, reason: &str| {
        let mut rest = Vec::new();
        let _ = tls.read_to_end(&mut rest);
        assert_eq!(rest, b"", "{whom}");
        let record = between.gateway.record(whom, |record| {
            record["event"] == "delegation" && record["on_behalf_of"] == whom
        });
        assert_eq!(record["reason"], reason, "{record}");
        assert_eq!(record["agent_id"], "alice", "{record}");
        assert_eq!(record["status"], 200, "{record}");
        let detail = record["detail"].as_str().expect("a detail");
        assert!(detail.contains("on whose behalf"), "{detail}");
    };
    // Alice's calls for others, and for herself, go on.
    let mut others = [listens_for("dave", 3600), listens(&between, &between.alice)];
    let carols = listens_for("carol", 3600);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_agentport"))
        .args(["revoke", "--agent", "carol", "--set"])
        .arg(format!("identity.revocations.file={list}"))
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{output:?}");
    ends(carols, "carol", "revoked");
    ends(listens_for("erin", 3), "erin", "credential_ended");
    for other in &mut others {
        other.sock.set_nonblocking(true).expect("set");
        let silent = other.read(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(silent, Err(std::io::ErrorKind::WouldBlock));
    }
}

//! Limits, measured against what arrives at the origin: of one gateway, and of
//! two that share them through a real redis-server, killed and started again.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each file of tests uses a part")]
#[path = "support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use support::conn::{Conn, Response};
use support::gateway::{Gateway, LOOPBACK_POLICY, token};
use support::origin::{Origin, Untouched};
use support::redis::RedisServer;
use support::wait_for;

/// Waits until `/ready` tells that Redis is there, or is not.
fn until_redis(gateway: &Gateway, connected: bool) -> serde_json::Value {
    wait_for(&format!("redis.connected: {connected}"), || {
        let ready = gateway.ask_admin("/ready").json();
        (ready["redis"]["connected"] == connected).then_some(ready)
    })
}

#[test]
fn a_redis_with_password_and_tls_comes_and_goes_and_readiness_tells() {
    let mut redis = RedisServer::start_tls("opensesame");
    let folder = tempfile::tempdir().expect("a folder");
    let password = folder.path().join("password");
    std::fs::write(&password, "wrong\n").expect("written");
    let gateway = Gateway::start(
        LOOPBACK_POLICY,
        &[
            ("redis.url", &redis.url()),
            ("redis.ca", redis.ca().to_str().expect("a path")),
            ("redis.password_file", password.to_str().expect("a path")),
        ],
    );
    wait_for("the reason", || {
        let ready = gateway.ask_admin("/ready").json();
        assert_eq!(ready["redis"]["connected"], false, "{ready}");
        let error = ready["redis"]["error"]
            .as_str()
            .expect("an error")
            .to_owned();
        error.contains("check redis.password_file").then_some(())
    });
    let ready = gateway.ask_admin("/ready");
    assert_eq!(ready.status, 200, "it serves without");
    assert!(gateway.metrics().contains("agentport_redis_connected 0"));
    // The file is read anew for every attempt.
    std::fs::write(&password, "opensesame\n").expect("written");
    until_redis(&gateway, true);
    assert!(gateway.metrics().contains("agentport_redis_connected 1"));
    redis.kill();
    let ready = until_redis(&gateway, false);
    assert!(ready["redis"]["error"].is_string(), "{ready}");
    redis.revive();
    until_redis(&gateway, true);
    let said = format!("{:?}", gateway.said());
    assert!(!said.contains("opensesame"), "{said}");
}

#[test]
fn a_redis_whose_certificate_is_not_trusted_is_none() {
    let redis = RedisServer::start_tls("opensesame");
    let other = RedisServer::start_tls("opensesame");
    let gateway = Gateway::start(
        LOOPBACK_POLICY,
        &[
            ("redis.url", &redis.url()),
            ("redis.ca", other.ca().to_str().expect("a path")),
        ],
    );
    wait_for("the reason", || {
        let ready = gateway.ask_admin("/ready").json();
        assert_eq!(ready["redis"]["connected"], false, "{ready}");
        let error = ready["redis"]["error"]
            .as_str()
            .expect("an error")
            .to_owned();
        error.to_lowercase().contains("certificate").then_some(())
    });
}

/// A policy that lets every agent go to this machine, with these limits.
fn limited(limits: &str) -> String {
    LOOPBACK_POLICY.replace("version: 1\n", &format!("version: 1\nlimits: {limits}\n"))
}

/// A request of this agent for `a.test`, and its answer.
fn ask(gateway: &Gateway, origin: &Origin, agent: &str) -> Response {
    let mut client = gateway.connect();
    let port = origin.port();
    client.send(format!(
        "GET http://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\n\
         Proxy-Authorization: Bearer {}\r\nConnection: close\r\n\r\n",
        token(agent)
    ));
    client.response()
}

/// How many answers of one KiB come through. An answer that finds the budget
/// used up is one that the origin has given all the same.
fn kib(gateways: &[&Gateway], origin: &Origin, agent: &str, times: usize) -> usize {
    let (mut whole, mut refusals) = (0, vec![0; gateways.len()]);
    for at in 0..times {
        let at = at % gateways.len();
        if refusals[at] < 3 {
            let response = ask(gateways[at], origin, agent);
            assert!([200, 429].contains(&response.status), "{:?}", response.head);
            whole += usize::from(response.status == 200 && response.body.len() == 1024);
            refusals[at] += usize::from(response.status == 429);
        }
    }
    whole
}

fn passed(gateways: &[&Gateway], origin: &Origin, agent: &str, times: usize) -> usize {
    let before = origin.requests().len();
    let mut answered = 0;
    let mut refusals = vec![0; gateways.len()];
    for at in 0..times {
        let at = at % gateways.len();
        // Refusals that repeat are answered more and more slowly.
        if refusals[at] < 3 {
            let response = ask(gateways[at], origin, agent);
            assert!([200, 429].contains(&response.status), "{:?}", response.head);
            answered += usize::from(response.status == 200);
            refusals[at] += usize::from(response.status == 429);
        }
    }
    assert_eq!(origin.requests().len() - before, answered);
    answered
}

#[test]
fn two_gateways_keep_one_quota_whose_redis_dies_and_comes_back() {
    let mut redis = RedisServer::start();
    let policy = limited("{agent: {requests: 40/d}}");
    let url = redis.url();
    let settings = [("redis.url", &*url)];
    let (one, two) = (
        Gateway::start(&policy, &settings),
        Gateway::start(&policy, &settings),
    );
    let origin = Origin::ok();
    let both = [&one, &two];
    until_shared(&both);
    // A tenth of the burst, divided among the replicas, is a batch: 2.
    let first = passed(&both, &origin, "bot", 80);
    assert!((36..=44).contains(&first), "{first} of 40");
    // Away, each has its share, less what it has used: nothing here.
    redis.kill();
    both.iter().for_each(|gateway| until_alone(gateway));
    let away = passed(&both, &origin, "bot", 40);
    assert!(away <= 4, "{away} more while Redis is away");
    let fresh = passed(&both, &origin, "other", 80);
    assert!((38..=40).contains(&fresh), "{fresh}: two shares of 20");
    // An empty Redis is told what was used.
    redis.revive();
    until_shared(&both);
    // Each may have leased a batch before the other had told, and lend itself
    // another.
    for agent in ["bot", "other"] {
        let after = passed(&both, &origin, agent, 40);
        assert!(
            after <= 8,
            "{agent}: {after} more from a Redis that had forgotten"
        );
    }
}

#[test]
fn what_must_be_counted_is_refused_while_redis_is_away() {
    let mut redis = RedisServer::start();
    let policy = limited("{agent: {requests: 1000/s, when_away: deny}}");
    let url = redis.url();
    let gateway = Gateway::start(&policy, &[("redis.url", &url)]);
    let origin = Origin::ok();
    until_shared(&[&gateway]);
    assert_eq!(ask(&gateway, &origin, "bot").status, 200);
    redis.kill();
    until_alone(&gateway);
    let count = origin.requests().len();
    let refused = ask(&gateway, &origin, "another");
    assert_eq!(
        (refused.status, refused.refusal()),
        (503, "limits_unavailable")
    );
    assert_eq!(refused.field("retry-after"), Some("1"));
    assert_eq!(origin.requests().len(), count);
    redis.revive();
    wait_for("a counted request", || {
        (ask(&gateway, &origin, "another").status == 200).then_some(())
    });
}

#[test]
fn load_goes_on_while_redis_dies_and_returns() {
    let mut redis = RedisServer::start();
    let policy = limited("{agent: {requests: 100000/s}, tenant: {concurrent: 100}}");
    let url = redis.url();
    let gateway = Gateway::start(&policy, &[("redis.url", &url)]);
    let origin = Origin::ok();
    until_shared(&[&gateway]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|at| {
                let (gateway, origin, stop) = (&gateway, &origin, &stop);
                scope.spawn(move || {
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let agent = format!("bot-{}", (at + count) % 7);
                        let response = ask(gateway, origin, &agent);
                        assert_eq!(response.status, 200, "{:?}", response.head);
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        for _ in 0..3 {
            let seen = origin.requests().len();
            wait_for("requests", || {
                (origin.requests().len() > seen + 50).then_some(())
            });
            redis.kill();
            until_redis(&gateway, false);
            let seen = origin.requests().len();
            wait_for("requests", || {
                (origin.requests().len() > seen + 50).then_some(())
            });
            redis.revive();
            until_redis(&gateway, true);
        }
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            assert!(worker.join().expect("no request failed") > 0);
        }
    });
}

#[test]
fn a_number_at_once_is_shared_and_a_dead_replica_gives_its_back() {
    let redis = RedisServer::start();
    let policy = limited("{agent: {concurrent: 4}}");
    let url = redis.url();
    let settings = [("redis.url", &*url)];
    let (one, two) = (
        Gateway::start(&policy, &settings),
        Gateway::start(&policy, &settings),
    );
    let echo = Origin::echo();
    until_shared(&[&one, &two]);
    let open = |gateway: &Gateway| {
        let mut client = gateway.connect();
        client.send(format!(
            "CONNECT a.test:{0} HTTP/1.1\r\nHost: a.test:{0}\r\nProxy-Authorization: Bearer {1}\r\n\r\n",
            echo.port(),
            token("bot")
        ));
        let status = client.response_to("CONNECT").status;
        assert!([200, 429].contains(&status), "{status}");
        (status == 200).then_some(client)
    };
    let held: Vec<_> = (0..10).filter_map(|_| open(&one)).collect();
    assert!(
        (3..=5).contains(&held.len()),
        "{} of 4 and a batch of 1",
        held.len()
    );
    // Held, too: one that is closed leaves its place to the next.
    let more: Vec<_> = (0..3).filter_map(|_| open(&two)).collect();
    // Each replica may lend itself one before it has an answer.
    assert!(
        more.len() + held.len() <= 6,
        "{} more of the other replica",
        more.len()
    );
    drop(more);
    // Killed, it gives nothing back: Redis takes it when its time is over.
    one.signal(nix::sys::signal::Signal::SIGKILL);
    wait_for("the slots of the dead", || open(&two));
}

/// Waits until every gateway counts together with so many replicas.
fn until_shared(gateways: &[&Gateway]) {
    let replicas = format!("agentport_limits_replicas {}\n", gateways.len());
    for gateway in gateways {
        wait_for("the replicas", || {
            let metrics = gateway.metrics();
            let shared = metrics.contains("agentport_limits_shared 1\n");
            (shared && metrics.contains(&replicas)).then_some(())
        });
    }
}

/// Waits until it counts for itself.
fn until_alone(gateway: &Gateway) {
    wait_for("limits of its own", || {
        let metrics = gateway.metrics();
        metrics
            .contains("agentport_limits_shared 0\n")
            .then_some(())
    });
}

/// A tunnel of this agent to `a.test` at this port.
fn tunnel(gateway: &Gateway, port: u16, agent: &str) -> (Response, Conn) {
    let mut client = gateway.connect();
    client.send(format!(
        "CONNECT a.test:{port} HTTP/1.1\r\nHost: a.test:{port}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
        token(agent)
    ));
    (client.response_to("CONNECT"), client)
}

#[test]
fn a_rule_has_its_own_limits_and_fields_tell_where_a_request_stands() {
    let policy = format!(
        "{}    limits: {{requests: 3/d, per: agent}}\n",
        limited("{tenant: {requests: 5/d}}")
            .trim_end_matches('\n')
            .to_owned()
            + "\n"
    );
    let gateway = Gateway::start(&policy, &[]);
    let origin = Origin::ok();
    let first = ask(&gateway, &origin, "one");
    assert_eq!(
        first.head.all("ratelimit-policy"),
        [
            "\"policy/tenant.requests\";q=5;w=86400",
            "\"rule/test-names.requests\";q=3;w=86400"
        ]
    );
    assert_eq!(
        first.head.all("ratelimit"),
        [
            "\"policy/tenant.requests\";r=4;t=17280",
            "\"rule/test-names.requests\";r=2;t=28800"
        ]
    );
    assert_eq!(passed(&[&gateway], &origin, "one", 10), 2);
    let refused = ask(&gateway, &origin, "one");
    assert_eq!(refused.status, 429);
    assert_eq!(
        refused.json()["reason"],
        "the limit rule/test-names.requests is used up for now"
    );
    let retry: u64 = refused
        .field("retry-after")
        .expect("a time")
        .parse()
        .expect("seconds");
    assert!((28_700..=28_800).contains(&retry), "{retry}");
    assert!(
        refused
            .field("ratelimit")
            .expect("a field")
            .starts_with("\"rule/test-names.requests\";r=0;t="),
    );
    let record = gateway.record_of(&refused);
    assert_eq!(
        record["detail"],
        "rule/test-names.requests (3/d) is used up"
    );
    assert!(
        gateway
            .metrics()
            .contains("agentport_throttled_total{limit=\"agent\"}")
    );
    // What the rule refused took nothing from the tenant: 3 of 5 are used.
    assert_eq!(passed(&[&gateway], &origin, "two", 10), 2);
    let refused = ask(&gateway, &origin, "two");
    assert_eq!(
        refused.json()["reason"],
        "the limit policy/tenant.requests is used up for now"
    );
}

#[test]
fn every_owner_has_an_account_of_its_own() {
    let origin = Origin::ok();
    for (key, same, other) in [
        ("limits.requests_per_agent", "one", 3),
        ("limits.requests_per_token", "one", 3),
        ("limits.requests_per_tenant", "one", 0),
        ("limits.requests_per_destination", "one", 0),
        ("limits.requests_per_source", "one", 0),
    ] {
        let gateway = Gateway::start(LOOPBACK_POLICY, &[(key, "3/d")]);
        let credential = token(same);
        let again = |credential: &str| {
            let mut client = gateway.connect();
            client.send(format!(
                "GET http://a.test:{0}/ HTTP/1.1\r\nHost: a.test:{0}\r\nProxy-Authorization: Bearer {credential}\r\nConnection: close\r\n\r\n",
                origin.port()
            ));
            client.response().status == 200
        };
        assert_eq!((0..5).filter(|_| again(&credential)).count(), 3, "{key}");
        let credential = token("another");
        assert_eq!(
            (0..5).filter(|_| again(&credential)).count(),
            other,
            "{key}"
        );
    }
}

#[test]
fn a_refused_tunnel_reaches_nobody_and_resolves_nothing() {
    let untouched = Untouched::listen();
    let echo = Origin::echo();
    let gateway = Gateway::start(
        LOOPBACK_POLICY,
        &[
            ("limits.tunnel_rate_per_agent", "1/d"),
            ("limits.concurrent_per_destination", "1"),
        ],
    );
    let (first, open) = tunnel(&gateway, echo.port(), "one");
    assert_eq!(first.status, 200);
    let (second, _) = tunnel(&gateway, untouched.port(), "one");
    assert_eq!((second.status, second.refusal()), (429, "throttled"));
    assert!(second.field("ratelimit").is_some());
    let (other, _) = tunnel(&gateway, untouched.port(), "two");
    assert_eq!(other.status, 429, "one tunnel to the host is open");
    drop(open);
    wait_for("the place", || {
        let agent = format!("three-{}", gateway.records().len());
        (tunnel(&gateway, echo.port(), &agent).0.status == 200).then_some(())
    });
}

#[test]
fn a_tunnel_is_cut_at_its_budget_to_the_byte() {
    const BUDGET: usize = 256 * 1024;
    let policy = LOOPBACK_POLICY.to_owned()
        + "    tls: any\n    limits: {bytes_up: 256KiB/d, bytes_down: 1MiB/d}\n";
    let gateway = Gateway::start(&policy, &[]);
    let got = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&got);
    let origin = Origin::serve(move |mut conn, _| {
        let bytes = conn.rest().len();
        seen.fetch_add(bytes, Ordering::SeqCst);
    });
    let (opened, mut client) = tunnel(&gateway, origin.port(), "one");
    assert_eq!(opened.status, 200);
    client.send_lossy(vec![0; BUDGET * 4]);
    assert!(client.closes());
    wait_for("the origin's end", || {
        (got.load(Ordering::SeqCst) > 0).then_some(())
    });
    assert_eq!(got.load(Ordering::SeqCst), BUDGET);
    let closed = gateway.record("the tunnel", |record| record["event"] == "tunnel_closed");
    assert_eq!(closed["reason"], "byte_budget");
    assert_eq!(closed["bytes_up"], BUDGET);
    assert_eq!(
        closed["detail"],
        "rule/test-names.bytes_up (262144/d) is used up"
    );
    // The next one is refused before it is dialled.
    let (refused, _) = tunnel(&gateway, Untouched::listen().port(), "one");
    assert_eq!(refused.status, 429);
    let (other, _) = tunnel(&gateway, origin.port(), "two");
    assert_eq!(other.status, 200);
}

#[test]
fn an_answer_that_streams_is_cut_at_its_budget() {
    const BUDGET: usize = 100_000;
    let origin = Origin::serve(|mut conn, _| {
        if conn.head().is_none() {
            return;
        }
        conn.send_lossy("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for _ in 0..2000 {
            conn.send_lossy(format!("3e8\r\n{}\r\n", "x".repeat(1000)));
        }
        conn.send_lossy("0\r\n\r\n");
    });
    let gateway = Gateway::start(
        LOOPBACK_POLICY,
        &[("limits.bytes_down_per_agent", "100000/d")],
    );
    let mut client = gateway.connect();
    client.send(format!(
        "GET http://a.test:{0}/ HTTP/1.1\r\nHost: a.test:{0}\r\nProxy-Authorization: Bearer {1}\r\n\r\n",
        origin.port(),
        token("one")
    ));
    let all = client.rest();
    assert!(!all.ends_with(b"0\r\n\r\n"), "it must not look whole");
    let record = gateway.record("the answer", |record| record["event"] == "request");
    assert_eq!(record["reason"], "byte_budget");
    assert_eq!(
        record["detail"],
        "bytes_down_per_agent (100000/d) is used up"
    );
    let sent = all.iter().filter(|byte| **byte == b'x').count();
    assert!(
        (BUDGET - 64 * 1024..BUDGET + 64 * 1024).contains(&sent),
        "{sent} of {BUDGET}, give or take one buffer"
    );
}

#[test]
fn a_body_over_its_budget_is_cut_and_the_next_is_refused() {
    let gateway = Gateway::start(
        LOOPBACK_POLICY,
        &[("limits.bytes_up_per_agent", "100000/d")],
    );
    let origin = Origin::ok();
    let mut client = gateway.connect();
    client.send(format!(
        "POST http://a.test:{0}/ HTTP/1.1\r\nHost: a.test:{0}\r\nProxy-Authorization: Bearer {1}\r\nContent-Length: 2000000\r\n\r\n",
        origin.port(),
        token("one")
    ));
    client.send_lossy(vec![b'x'; 2_000_000]);
    client.rest();
    let record = gateway.record("the upload", |record| record["event"] == "request");
    assert!(
        ["byte_budget", "throttled"].contains(&record["reason"].as_str().expect("a reason")),
        "{record}"
    );
    assert!(
        origin.requests().is_empty(),
        "no whole request came through"
    );
    let refused = ask(&gateway, &origin, "one");
    assert_eq!((refused.status, refused.refusal()), (429, "throttled"));
    assert_eq!(ask(&gateway, &origin, "two").status, 200);
}

#[test]
fn limits_of_an_audited_rule_are_only_recorded() {
    let policy = LOOPBACK_POLICY.to_owned() + "    mode: audit\n    limits: {requests: 1/d}\n";
    let gateway = Gateway::start(&policy, &[]);
    let origin = Origin::ok();
    assert_eq!(ask(&gateway, &origin, "one").status, 200);
    let second = ask(&gateway, &origin, "one");
    assert_eq!(second.status, 200);
    assert_eq!(gateway.record_of(&second)["would_deny"], "throttled");
}

#[test]
fn a_budget_of_bytes_on_trial_lets_all_through_and_says_where_it_would_have_cut() {
    let policy = LOOPBACK_POLICY.to_owned()
        + "    mode: audit\n    tls: any\n    limits: {bytes_up: 64KiB/d, bytes_down: 1000/d}\n";
    let gateway = Gateway::start(&policy, &[]);
    const SENT: usize = 256 * 1024;
    let got = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&got);
    let origin = Origin::serve(move |mut conn, _| {
        let bytes = conn.rest().len();
        seen.fetch_add(bytes, Ordering::SeqCst);
    });
    let (opened, client) = tunnel(&gateway, origin.port(), "one");
    assert_eq!(opened.status, 200);
    let (_, stream) = client.into_parts();
    std::io::Write::write_all(&mut &stream, &vec![0; SENT]).expect("the tunnel takes all");
    drop(stream);
    wait_for("all of it", || {
        (got.load(Ordering::SeqCst) == SENT).then_some(())
    });
    let opening = gateway.record("the opening", |record| record["event"] == "tunnel");
    assert_eq!(opening["would_deny"], serde_json::Value::Null, "{opening}");
    let closed = gateway.record("the tunnel", |record| record["event"] == "tunnel_closed");
    assert_eq!(closed["bytes_up"], SENT, "{closed}");
    assert_ne!(closed["reason"], "byte_budget", "{closed}");
    assert_eq!(closed["would_deny"], "byte_budget", "{closed}");
    assert_eq!(
        closed["detail"],
        "rule/test-names.bytes_up (65536/d) would have been used up"
    );

    let large = Origin::http(|_, _| {
        let mut out = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n".to_vec();
        out.extend([b'x'; 5000]);
        out
    });
    let answer = ask(&gateway, &large, "two");
    assert_eq!((answer.status, answer.body.len()), (200, 5000));
    assert_eq!(gateway.record_of(&answer)["would_deny"], "byte_budget");
    let next = ask(&gateway, &large, "two");
    assert_eq!((next.status, next.body.len()), (200, 5000));
    assert_eq!(gateway.record_of(&next)["would_deny"], "throttled");
}

/// The head of a call whose body of 60,000 bytes does not follow.
fn announce(gateway: &Gateway, port: u16, agent: &str) -> Conn {
    let mut client = gateway.connect();
    client.send(format!(
        "POST http://a.test:{port}/rpc HTTP/1.1\r\nHost: a.test:{port}\r\n\
         Proxy-Authorization: Bearer {}\r\nContent-Length: 60000\r\n\r\n",
        token(agent)
    ));
    client
}

fn call(gateway: &Gateway, origin: &Origin, agent: &str, method: &str) -> Response {
    let mut client = gateway.connect();
    let (port, body) = (origin.port(), format!("{{\"method\":\"{method}\"}}"));
    client.send(format!(
        "POST http://a.test:{port}/rpc HTTP/1.1\r\nHost: a.test:{port}\r\n\
         Proxy-Authorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{body}",
        token(agent),
        body.len()
    ));
    client.response()
}

#[test]
fn limits_are_asked_before_a_body_is_read_for_its_calls() {
    let rpc = LOOPBACK_POLICY.to_owned() + "    rpc_methods: [eth_call]\n";
    let origin = Origin::ok();
    // No body ever comes, so an answer is one without it.
    let gateway = Gateway::start(
        &rpc.replace(
            "version: 1\n",
            "version: 1\nlimits: {agent: {requests: 3/d}}\ndenylist: [evil.test]\n",
        ),
        &[],
    );
    assert_eq!(call(&gateway, &origin, "one", "eth_call").status, 200);
    let refused = call(&gateway, &origin, "one", "eth_send");
    assert_eq!((refused.status, refused.refusal()), (403, "no_rule"));
    let record = gateway.record_of(&refused);
    assert_eq!(
        record["rpc_methods"],
        serde_json::json!(["eth_send"]),
        "{record}"
    );
    let malformed = call(&gateway, &origin, "one", "\u{1}");
    assert_eq!(malformed.status, 400);
    let port = origin.port();
    let throttled = announce(&gateway, port, "one").response();
    assert_eq!(
        (throttled.status, throttled.refusal()),
        (429, "throttled"),
        "each body that was read has been paid for"
    );
    let mut evil = gateway.connect();
    evil.send(format!(
        "POST http://evil.test:{port}/rpc HTTP/1.1\r\nHost: evil.test:{port}\r\n\
         Proxy-Authorization: Bearer {}\r\nContent-Length: 60000\r\n\r\n",
        token("two")
    ));
    let denied = evil.response();
    assert_eq!(
        (denied.status, denied.refusal()),
        (403, "denylist"),
        "whatever it calls"
    );

    let of_rule = Gateway::start(&format!("{rpc}    limits: {{requests: 1/d}}\n"), &[]);
    assert_eq!(call(&of_rule, &origin, "one", "eth_call").status, 200);
    let throttled = announce(&of_rule, port, "one").response();
    assert_eq!((throttled.status, throttled.refusal()), (429, "throttled"));
    assert_eq!(call(&of_rule, &origin, "two", "eth_call").status, 200);
    assert_eq!(origin.requests().len(), 3);
}

#[test]
fn a_body_that_is_waited_for_counts_among_the_requests_under_way() {
    let rpc = LOOPBACK_POLICY.to_owned() + "    rpc_methods: [eth_call]\n";
    let gateway = Gateway::start(&rpc, &[("limits.in_flight", "1")]);
    let origin = Origin::ok();
    let overloaded = || call(&gateway, &origin, "two", "eth_call").status == 503;
    let under_way = || gateway.metrics().contains("agentport_requests_in_flight 1");
    let waiting = wait_for("the only place to be taken", || {
        let waiting = announce(&gateway, origin.port(), "one");
        wait_for("it to be under way", || under_way().then_some(()));
        // It is refused itself if a call that asks has the place.
        overloaded().then_some(waiting)
    });
    drop(waiting);
    wait_for("the place to be free", || (!overloaded()).then_some(()));
}

#[test]
fn two_gateways_keep_one_budget_of_bytes_whose_redis_dies_and_comes_back() {
    let mut redis = RedisServer::start();
    let policy = limited("{agent: {bytes_down: 100KiB/d}}");
    let url = redis.url();
    let settings = [("redis.url", &*url)];
    let (one, two) = (
        Gateway::start(&policy, &settings),
        Gateway::start(&policy, &settings),
    );
    // So that answers can be counted instead of bytes: 1 KiB each.
    let origin = Origin::http(|_, _| {
        let mut out = b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n".to_vec();
        out.extend([b'x'; 1024]);
        out
    });
    let both = [&one, &two];
    until_shared(&both);
    // A batch is a tenth, divided among the replicas: 5 KiB. Each replica may
    // lend itself one, and the answer that uses the budget up passes whole.
    let first = kib(&both, &origin, "bot", 200);
    assert!((88..=112).contains(&first), "{first} KiB of 100");
    redis.kill();
    both.iter().for_each(|gateway| until_alone(gateway));
    // Away, each has its share of 50 KiB, less what it has used.
    let away = kib(&both, &origin, "bot", 60);
    assert!(away <= 12, "{away} KiB more while Redis is away");
    let fresh = kib(&both, &origin, "other", 200);
    assert!((98..=102).contains(&fresh), "{fresh} KiB: two shares of 50");
    // An empty Redis is told what was used.
    redis.revive();
    until_shared(&both);
    for agent in ["bot", "other"] {
        let after = kib(&both, &origin, agent, 60);
        assert!(
            after <= 22,
            "{agent}: {after} KiB more from a Redis that had forgotten"
        );
    }
    // Nothing is left for anybody, nor for long.
    let end = kib(&both, &origin, "bot", 20);
    assert!(end <= 2, "{end} KiB more when all is told");
}

#[test]
fn a_reload_does_not_give_a_quota_back() {
    let policy = limited("{agent: {requests: 2/d}}");
    let gateway = Gateway::start(&policy, &[]);
    let origin = Origin::ok();
    assert_eq!(passed(&[&gateway], &origin, "one", 3), 2);
    gateway.change_policy(&format!("{policy}denylist: [\"evil.example\"]\n"));
    assert_eq!(passed(&[&gateway], &origin, "one", 3), 0);
}

//! What gateways share through Redis: a real redis-server, killed and started
//! again, and real gateways in front of a counter at the origin.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each file of tests uses a part")]
#[path = "support/mod.rs"]
mod support;

use support::gateway::{Gateway, LOOPBACK_POLICY};
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

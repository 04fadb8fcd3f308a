//! Recorded requests, put to two policies.

use super::*;

#[test]
fn recorded_requests_are_put_to_both() {
    let line = |agent: &str, host: &str| {
        serde_json::json!({
            "ts": "2026-11-01T00:00:00.000000Z", "event": "tunnel", "request_id": "r",
            "agent_id": agent, "tenant": null, "method": "CONNECT", "scheme": "tunnel",
            "destination_host": host, "destination_port": 443, "destination_ip": null,
            "path": null, "action_allowed": true, "reason": "ok", "would_deny": null,
            "policy_version": "v", "count": 2,
        })
        .to_string()
    };
    let (old, new) = (whole(BASE), whole("rules: []"));
    let mut replay = Replay::new(&old, &new);
    for line in [
        line("bot", "api.example.com"),
        line("bot", "api.example.com"),
        line("cat", "api.example.com"),
        "{}".into(),
    ] {
        replay.line(line.as_bytes());
    }
    let report = replay.finish();
    assert_eq!(
        (report.requests, report.passed_over, report.changes.len()),
        (6, 1, 1)
    );
    let (count, change) = &report.changes[0];
    assert_eq!((*count, change.before, change.after), (4, "allow", "deny"));
    assert_eq!(change.destination, "api.example.com:443");
}

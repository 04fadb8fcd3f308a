//! What one request pays for its record and its figures.

use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use agentport::adapters::figures::Figures;
use agentport::adapters::host;
use agentport::audit::AuditRecord;
use agentport::egress::{AgentId, RequestId, TenantId};
use agentport::gate::ports::{Observation, Observe};
use agentport::policy::Mode;
use criterion::{Criterion, criterion_group, criterion_main};

fn record() -> AuditRecord {
    AuditRecord {
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".into()),
        agent_id: AgentId::parse("bot-01").ok(),
        tenant: TenantId::parse("acme").ok(),
        token_jti: Some("0b1e7b6c-6a4e-4b2f-9d1c-8a1f".into()),
        client: Some(([127, 0, 0, 1], 40_000).into()),
        method: "GET".into(),
        scheme: Some("https"),
        destination_host: Some("api.example.com".into()),
        destination_port: Some(443),
        destination_ip: Some(IpAddr::from([93, 184, 215, 14])),
        path: Some("/v1/chat/completions".into()),
        action_allowed: true,
        reason: "ok",
        rule: Some("models".into()),
        policy_version: Some("sha256:6b86b273ff34fce1".into()),
        mode: Some(Mode::Enforce),
        status: Some(200),
        bytes_up: 1200,
        bytes_down: 48_000,
        duration_ms: Duration::from_micros(1234),
        jwt_validation_us: Some(30),
        skill: Some("search".into()),
        ..AuditRecord::begun(
            SystemTime::now(),
            RequestId::from_bits(host::random_bits()),
            "egress".into(),
        )
    }
}

fn benches(c: &mut Criterion) {
    let record = record();
    let mut line = Vec::with_capacity(4096);
    c.bench_function("record/write_line", |b| {
        b.iter(|| {
            line.clear();
            black_box(&record).write_line(&mut line);
        });
    });
    let figures = Figures::new("0");
    c.bench_function("figures/decision", |b| {
        b.iter(|| {
            figures.observe(black_box(Observation::Decision {
                trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736"),
                allowed: true,
                reason: "ok",
                would_deny: None,
                took: Duration::from_nanos(800),
            }));
        });
    });
    c.bench_function("figures/finished", |b| {
        b.iter(|| {
            figures.observe(Observation::Finished {
                record: black_box(&record),
            })
        });
    });
    c.bench_function("figures/encode", |b| b.iter(|| figures.encode()));
    c.bench_function("host/random_bits", |b| b.iter(host::random_bits));
}

criterion_group!(record_and_figures, benches);
criterion_main!(record_and_figures);

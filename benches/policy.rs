//! What a decision and a quota cost. The aim is under 2 µs for a decision among
//! 10,000 rules, and under 100 ms for building them.

use std::hint::black_box;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use agentport::egress::{AgentId, Ask, Authority, EgressRequest, Subject};
use agentport::limit::{Amount, Ledger, Limit, Measure, Owner, Per, Quota, Shared, WhenAway};
use agentport::policy::{
    CheckedDocument, Decision, Format, KnownRules, Mode, PolicyDocument, PolicySet, SourceName,
};
use criterion::{Criterion, criterion_group, criterion_main};

fn text(rules: usize) -> String {
    let mut text =
        "version: 1\ndenylist: [\"*.evil.example\", 203.0.113.0/24]\nrules:\n".to_owned();
    for n in 0..rules {
        let host = match n % 2 {
            0 => format!("api{n}.example.com"),
            _ => format!("*.zone{n}.example.com"),
        };
        text += &format!(
            "  - {{name: rule-{n}, action: allow, agents: [agent-{n}, bot], hosts: [\"{host}\"], ports: [443]}}\n"
        );
    }
    text
}

/// One host, with a rule for each agent.
fn crowded(rules: usize) -> String {
    let mut text = "version: 1\nrules:\n".to_owned();
    for n in 0..rules {
        text += &format!(
            "  - {{name: rule-{n}, action: allow, agents: [agent-{n}], hosts: [api.example.com]}}\n"
        );
    }
    text
}

fn parse(text: &str) -> PolicyDocument {
    PolicyDocument::parse(&SourceName::from("bench"), Format::Yaml, text).expect("a document")
}

fn build(document: PolicyDocument) -> PolicySet {
    PolicySet::build(vec![(SourceName::from("bench"), document)], Mode::Enforce).expect("a policy")
}

fn tunnel(authority: &str) -> EgressRequest {
    EgressRequest {
        authority: Authority::parse(authority).expect("an authority"),
        ask: Ask::Tunnel,
    }
}

fn decide(c: &mut Criterion) {
    let agent = AgentId::parse("bot").expect("an agent");
    let who = Subject {
        agent: &agent,
        tenant: None,
        destinations: None,
        audiences: None,
    };
    for rules in [10, 10_000] {
        let set = build(parse(&text(rules)));
        let mut group = c.benchmark_group(format!("decide/{rules}"));
        for (name, authority) in [
            ("exact", "api4.example.com:443"),
            ("wildcard", "a.b.zone5.example.com:443"),
            ("miss", "nothing.example.org:443"),
        ] {
            let what = tunnel(authority);
            group.bench_function(name, |b| {
                b.iter(|| set.decide(black_box(&who), black_box(&what)))
            });
        }
        group.finish();
    }
    let set = build(parse(&crowded(10_000)));
    let agent = AgentId::parse("agent-9999").expect("an agent");
    let who = Subject {
        agent: &agent,
        ..who
    };
    let what = tunnel("api.example.com:443");
    c.bench_function("decide/10000 on one host", |b| {
        b.iter(|| set.decide(black_box(&who), black_box(&what)));
    });
    let Decision::Allow(permit) = set.decide(&who, &what) else {
        panic!("the rule allows it");
    };
    let address: IpAddr = [93, 184, 216, 34].into();
    c.bench_function("permit/address", |b| {
        b.iter(|| permit.address(black_box(address)))
    });
}

fn reload(c: &mut Criterion) {
    let text = text(10_000);
    let document = parse(&text);
    let mut group = c.benchmark_group("reload/10000");
    group.sample_size(10);
    group.bench_function("parse", |b| b.iter(|| parse(black_box(&text))));
    group.bench_function("build", |b| b.iter(|| build(black_box(document.clone()))));
    // As the gateway does when one rule of the file changes.
    let source = SourceName::from("bench");
    let mut known = KnownRules::default();
    let mut number = 0;
    group.bench_function("one rule changes", |b| {
        b.iter(|| {
            number += 1;
            let host = format!("changed{number}.example.com");
            let changed = text.replace("api5000.example.com", &host);
            let document = PolicyDocument::parse_again(&source, Format::Yaml, &changed, &mut known);
            build(document.expect("a document"))
        });
    });
    group.finish();
}

/// 10,000 rules among 1,000 tenants, and a denylist of 100,000 for all: one
/// tenant's document changes, or the denylist does. What did not change is not
/// parsed again, as the gateway keeps it by file.
fn tenants(c: &mut Criterion) {
    let denylist = |first: usize| {
        let mut text = "version: 1\ndenylist:\n".to_owned();
        for n in first..first + 100_000 {
            text += &format!("  - bad{n}.example\n");
        }
        text
    };
    let tenant = |name: usize, first: usize| {
        let mut text = format!("version: 1\ntenant: tenant-{name}\nrules:\n");
        for n in first..first + 10 {
            text += &format!(
                "  - {{name: rule-{n}, action: allow, agents: [bot], hosts: [api{n}.example.com]}}\n"
            );
        }
        text
    };
    let check = |name: &str, text: &str| {
        let document = parse(text);
        CheckedDocument::check(&SourceName::from(name), &document, Mode::Enforce)
            .expect("a document")
    };
    let assemble = |documents: &[CheckedDocument], previous: Option<&PolicySet>| {
        PolicySet::assemble(documents.to_vec(), false, Mode::Enforce, previous).expect("a policy")
    };
    let before = resident();
    let mut documents: Vec<_> = (0..1000)
        .map(|n| check(&format!("{n}.yaml"), &tenant(n, n * 10)))
        .collect();
    let first = assemble(&documents, None);
    say("1,000 tenants with 10 rules each", 10_000, before);
    let before = resident();
    documents.push(check("all.yaml", &denylist(0)));
    let set = assemble(&documents, Some(&first));
    say("a denylist of 100,000", 100_000, before);

    let mut group = c.benchmark_group("reload/1000 tenants, 10000 rules, 100000 denied");
    group.sample_size(10);
    let changed = tenant(7, 1_000_000);
    group.bench_function("one tenant changes", |b| {
        b.iter(|| {
            let mut documents = documents.clone();
            documents[7] = check("7.yaml", black_box(&changed));
            assemble(&documents, Some(&set))
        });
    });
    let changed = denylist(50_000);
    group.bench_function("the denylist changes", |b| {
        b.iter(|| {
            let mut documents = documents.clone();
            documents[1000] = check("all.yaml", black_box(&changed));
            assemble(&documents, Some(&set))
        });
    });
    group.bench_function("all is indexed anew", |b| {
        b.iter(|| assemble(black_box(&documents), None));
    });
    group.finish();
}

/// Bytes that the process holds; 0 where the system does not tell.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|field| field.parse::<usize>().ok());
    pages.unwrap_or_default() * 4096
}

#[expect(clippy::print_stderr, reason = "a figure beside criterion's")]
fn say(what: &str, count: usize, before: usize) {
    let each = resident().saturating_sub(before) / count;
    eprintln!("memory: {what}: {each} bytes for each entry");
}

fn limit(c: &mut Criterion) {
    let quota = Quota::parse("1000000/s").expect("a quota");
    let amount = Amount::Over(quota);
    let (measure, per) = (Measure::Requests, Per::Source);
    let limit = Arc::new(Limit::new("bench", measure, per, amount, WhenAway::Local));
    let one = NonZeroU32::MIN;
    let shared = Arc::new(Shared::new(100_000, one, || {}));
    for (name, ledger) in [
        ("limit/alone", Ledger::new(100_000)),
        ("limit/shared", Ledger::new(100_000).sharing(shared)),
    ] {
        let mut now = Duration::ZERO;
        let mut key = 0u32;
        c.bench_function(name, |b| {
            b.iter(|| {
                now += Duration::from_micros(1);
                key = (key + 1) % 10_000;
                let owner = Owner::source(Ipv4Addr::from_bits(black_box(key)).into());
                ledger.take(&ledger.account(&limit, owner), 1, false, now)
            });
        });
    }
}

criterion_group!(benches, decide, reload, tenants, limit);
criterion_main!(benches);

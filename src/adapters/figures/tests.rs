//! What is counted, and whether a strict reader can read it.

use super::*;
use crate::adapters::records::{AuditLogSettings, StreamWriter};
use crate::egress::RequestId;
use crate::policy::Mode;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn record(event: AuditEvent) -> AuditRecord {
    AuditRecord {
        event,
        trace_id: Some(TRACE.into()),
        method: "GET".into(),
        scheme: Some("http"),
        action_allowed: true,
        reason: "ok",
        mode: Some(Mode::Enforce),
        status: Some(200),
        bytes_up: 10,
        bytes_down: 1000,
        duration_ms: Duration::from_micros(1500),
        skill: Some("search \"web\"".into()),
        ..AuditRecord::begun(
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            RequestId::from_bits(1),
            "egress".into(),
        )
    }
}

/// Everything once.
fn observed() -> Figures {
    let figures = Figures::new("0.1.0");
    figures.policy_loaded("sha256:ab", SystemTime::UNIX_EPOCH + Duration::from_secs(5));
    figures.policy_refused();
    figures.certificate_expires("egress", SystemTime::UNIX_EPOCH + Duration::from_secs(9));
    figures.open_file_limit(1024);
    let refused = AuditRecord {
        action_allowed: false,
        reason: "host_denied",
        ..record(AuditEvent::Request)
    };
    let repeated = AuditRecord {
        event: AuditEvent::Repeated,
        count: 7,
        ..refused.clone()
    };
    let audited = AuditRecord {
        would_deny: Some("host_denied"),
        ..record(AuditEvent::Request)
    };
    for event in [
        Observation::Connection {
            listener: "egress",
            change: 1,
        },
        Observation::Tunnel { change: 1 },
        Observation::Tunnel { change: -1 },
        Observation::InFlight { change: 1 },
        Observation::Token {
            outcome: "ok",
            algorithm: "EdDSA",
            took: Duration::from_micros(40),
            cached: false,
            trace_id: Some(TRACE),
        },
        Observation::Token {
            outcome: "ok",
            algorithm: "EdDSA",
            took: Duration::ZERO,
            cached: true,
            trace_id: Some(TRACE),
        },
        Observation::Decision {
            allowed: true,
            reason: "ok",
            would_deny: None,
            took: Duration::from_nanos(800),
            trace_id: None,
        },
        Observation::Decision {
            allowed: true,
            reason: "ok",
            would_deny: Some("host_denied"),
            took: Duration::from_micros(3),
            trace_id: Some(TRACE),
        },
        Observation::Throttled { limit: "agent" },
        Observation::Resolved {
            outcome: "timeout",
            took: Duration::from_secs(100),
        },
        Observation::Dialled {
            outcome: "ok",
            took: Duration::from_millis(1),
        },
        Observation::Finished {
            record: &record(AuditEvent::Request),
        },
        Observation::Finished { record: &refused },
        Observation::Finished { record: &repeated },
        Observation::Finished { record: &audited },
        Observation::Finished {
            record: &record(AuditEvent::Tunnel),
        },
        Observation::Finished {
            record: &record(AuditEvent::TunnelClosed),
        },
    ] {
        figures.observe(event);
    }
    figures
}

#[test]
fn tenants_make_a_bounded_number_of_series() {
    let figures = Figures::new("0.1.0");
    let tenants: Vec<TenantId> = (0..300)
        .map(|n| TenantId::parse(&format!("t{n:03}")).expect("a name"))
        .collect();
    figures.tenants_are(tenants.iter());
    figures.tenants_are(tenants.iter().rev());
    let by = |tenant: Option<&TenantId>, allowed| AuditRecord {
        tenant: tenant.cloned(),
        action_allowed: allowed,
        reason: if allowed { "ok" } else { "no_rule" },
        ..record(AuditEvent::Request)
    };
    for tenant in &tenants {
        figures.observe(Observation::Finished {
            record: &by(Some(tenant), true),
        });
    }
    figures.observe(Observation::Finished {
        record: &by(None, false),
    });
    let text = figures.encode();
    for line in [
        "agentport_tenant_requests_total{tenant=\"t000\",decision=\"allow\"} 1",
        "agentport_tenant_requests_total{tenant=\"t099\",decision=\"allow\"} 1",
        "agentport_tenant_requests_total{tenant=\"other\",decision=\"allow\"} 200",
        "agentport_tenant_requests_total{tenant=\"none\",decision=\"deny\"} 1",
        "agentport_tenant_bytes_total{tenant=\"t000\",direction=\"up\"} 10",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("t100"), "{text}");
    let series = text.matches("agentport_tenant_requests_total{").count();
    assert_eq!(series, 102);
}

#[test]
fn events_become_figures() {
    let text = observed().encode();
    for line in [
        "agentport_requests_total{decision=\"allow\",reason=\"ok\",listener=\"egress\"} 2",
        "agentport_requests_total{decision=\"deny\",reason=\"host_denied\",listener=\"egress\"} 8",
        "agentport_requests_total{decision=\"would_deny\",reason=\"host_denied\",listener=\"egress\"} 1",
        "agentport_decisions_total{decision=\"allow\",reason=\"ok\"} 1",
        "agentport_decisions_total{decision=\"would_deny\",reason=\"host_denied\"} 1",
        "agentport_decision_seconds_bucket{le=\"0.000001\"} 1",
        "agentport_jwt_validation_seconds_count{outcome=\"ok\",algorithm=\"EdDSA\"} 1",
        "agentport_jwt_cache_total{result=\"hit\"} 1",
        "agentport_jwt_cache_total{result=\"miss\"} 1",
        "agentport_active_connections{listener=\"egress\"} 1",
        "agentport_active_tunnels 0",
        "agentport_requests_in_flight 1",
        "agentport_throttled_total{limit=\"agent\"} 1",
        "agentport_dns_seconds_bucket{le=\"10.0\",outcome=\"timeout\"} 0",
        "agentport_dns_seconds_bucket{le=\"+Inf\",outcome=\"timeout\"} 1",
        "agentport_dns_seconds_sum{outcome=\"timeout\"} 100.0",
        // A value on a bound belongs below it.
        "agentport_upstream_connect_seconds_bucket{le=\"0.0005\",outcome=\"ok\"} 0",
        "agentport_upstream_connect_seconds_bucket{le=\"0.001\",outcome=\"ok\"} 1",
        "agentport_request_duration_seconds_count 3",
        "agentport_tunnel_duration_seconds_count 1",
        "agentport_bytes_total{direction=\"up\"} 40",
        "agentport_bytes_total{direction=\"down\"} 4000",
        "agentport_policy_info{version=\"sha256:ab\"} 1",
        "agentport_policy_last_reload_timestamp_seconds 5",
        "agentport_policy_reloads_total{outcome=\"loaded\"} 1",
        "agentport_policy_reloads_total{outcome=\"refused\"} 1",
        "agentport_certificate_expiry_timestamp_seconds{certificate=\"egress\"} 9",
        "agentport_open_file_limit 1024",
        "agentport_build_info{version=\"0.1.0\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn exemplars_name_the_trace_and_the_skill() {
    let text = observed().encode();
    let end = concat!(
        "agentport_request_duration_seconds_bucket{le=\"0.0025\"} 3",
        " # {trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\",skill=\"search \\\"web\\\"\"}",
        " 0.0015 1700000000.0015"
    );
    assert!(text.lines().any(|line| line == end), "{text}");
    let jwt = "agentport_jwt_validation_seconds_bucket{le=\"0.00005\",outcome=\"ok\",algorithm=\"EdDSA\"} 1 # {trace_id=";
    assert!(text.lines().any(|line| line.starts_with(jwt)), "{text}");
    let decision = format!(
        "agentport_decision_seconds_bucket{{le=\"0.000005\"}} 2 # {{trace_id=\"{TRACE}\"}} 0.000003 "
    );
    assert!(
        text.lines().any(|line| line.starts_with(&decision)),
        "{text}"
    );
    // Nothing is said of an observation without a trace.
    let untraced = "agentport_decision_seconds_bucket{le=\"0.000001\"} 1";
    assert!(text.lines().any(|line| line == untraced), "{text}");
}

#[test]
fn an_exemplar_is_bounded_and_plain() {
    let at = SystemTime::UNIX_EPOCH;
    let long = "s".repeat(84);
    for (case, trace, skill, there, skilled) in [
        ("as it should be", TRACE, Some("search"), true, true),
        ("no skill", TRACE, None, true, false),
        (
            "a skill over what the format allows",
            TRACE,
            Some(&*long),
            true,
            false,
        ),
        ("the longest skill", TRACE, Some(&long[1..]), true, true),
        ("a trace that is too short", &TRACE[1..], None, false, false),
        (
            "a trace that is not hexadecimal",
            &TRACE.replace('4', "\""),
            None,
            false,
            false,
        ),
    ] {
        let figures = Figures::new("0");
        let exemplar = Exemplar::new(trace, skill);
        assert_eq!(exemplar.is_some(), there, "{case}");
        figures
            .request_duration_seconds
            .observe(0.0, exemplar, Some(at));
        let text = figures.encode();
        assert_eq!(text.contains("skill="), skilled, "{case}");
        check(&text);
    }
}

#[test]
fn a_new_policy_takes_the_place_of_the_old_one() {
    let figures = observed();
    figures.policy_loaded("sha256:cd", SystemTime::UNIX_EPOCH);
    let text = figures.encode();
    assert!(text.contains("agentport_policy_info{version=\"sha256:cd\"} 1"));
    assert!(!text.contains("sha256:ab"));
}

#[test]
fn the_audit_log_is_read_when_asked() {
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    let writer = StreamWriter::from(std::fs::File::from(std::os::fd::OwnedFd::from(writer)));
    let log = AuditLog::start(AuditLogSettings::default(), Box::new(writer)).expect("a thread");
    let log = Arc::new(log);
    let figures = Figures::new("0");
    figures.follow(Arc::clone(&log));
    crate::gate::ports::AuditSink::push(&*log, record(AuditEvent::Request));
    log.close(Duration::from_secs(30)).expect("all written");
    let text = figures.encode();
    assert!(text.contains("agentport_audit_records_total 1\n"), "{text}");
    assert!(text.contains("agentport_audit_queue_depth 0\n"));
    assert!(text.contains("agentport_audit_failing 0\n"));
}

#[test]
fn many_labels_and_many_threads_lose_no_count() {
    let figures = Figures::new("0");
    let listeners: Vec<String> = (0..400).map(|number| format!("l{number}")).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for listener in listeners.iter().chain(&listeners) {
                    figures.observe(Observation::Connection {
                        listener,
                        change: 1,
                    });
                }
            });
        }
    });
    let text = figures.encode();
    for listener in &listeners {
        let line = format!("agentport_active_connections{{listener=\"{listener}\"}} 8");
        assert!(text.lines().any(|found| found == line), "{line}");
    }
}

#[test]
fn the_text_is_open_metrics() {
    check(&observed().encode());
    check(&Figures::new("a \"quoted\\\" version\n").encode());
}

/// A small strict reader: families in one piece with a type, samples with the
/// suffixes of their type, labels and exemplars in their syntax, and the end.
fn check(text: &str) {
    let body = text.strip_suffix("# EOF\n").expect("the end");
    let (mut family, mut kind) = (String::new(), String::new());
    let mut seen = Vec::new();
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (word, name, rest) = (words.next(), words.next(), words.next());
            let (name, rest) = (name.expect("a name"), rest.expect("a text"));
            if family != name {
                assert!(!seen.contains(&name.to_owned()), "twice: {name}");
                seen.push(name.to_owned());
                (family, kind) = (name.to_owned(), String::new());
            }
            match word.expect("a word") {
                "TYPE" => {
                    assert_eq!(kind, "", "two types: {name}");
                    kind = rest.to_owned();
                }
                "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
                "HELP" => assert!(rest.ends_with('.') && !rest.ends_with(".."), "{line}"),
                other => panic!("{other}"),
            }
            continue;
        }
        let (sample, exemplar) = match line.split_once(" # ") {
            Some((sample, exemplar)) => (sample, Some(exemplar)),
            None => (line, None),
        };
        let (name, value) = sample.rsplit_once(' ').expect("a value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = match name.split_once('{') {
            Some((name, labels)) => {
                check_labels(labels.strip_suffix('}').expect("a brace"));
                name
            }
            None => name,
        };
        let suffix = name.strip_prefix(&family).expect("a family");
        let suffixes: &[&str] = match &*kind {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_sum", "_count"],
            other => panic!("{other}"),
        };
        assert!(suffixes.contains(&suffix), "{line}");
        if let Some(exemplar) = exemplar {
            assert_eq!(suffix, "_bucket", "{line}");
            let (labels, numbers) = exemplar.rsplit_once("} ").expect("a brace");
            let labels = labels.strip_prefix('{').expect("a brace");
            let characters = check_labels(labels);
            assert!(characters <= 128, "{line}");
            let numbers: Vec<f64> = numbers
                .split(' ')
                .map(|n| n.parse().expect("a number"))
                .collect();
            assert_eq!(numbers.len(), 2, "{line}");
        }
    }
}

/// How many characters names and values have together.
fn check_labels(labels: &str) -> usize {
    let mut rest = labels;
    let mut count = 0;
    loop {
        let (name, quoted) = rest.split_once("=\"").expect("a label");
        assert!(
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
            "{labels}"
        );
        count += name.len();
        let mut characters = quoted.char_indices();
        let end = loop {
            match characters.next().expect("an end") {
                (_, '\\') => {
                    let (_, escaped) = characters.next().expect("an escape");
                    assert!(['\\', '"', 'n'].contains(&escaped), "{labels}");
                }
                (at, '"') => break at,
                (_, character) => assert_ne!(character, '\n'),
            }
            count += 1;
        };
        match quoted[end + 1..].strip_prefix(',') {
            Some(more) => rest = more,
            None => {
                assert_eq!(&quoted[end + 1..], "", "{labels}");
                return count;
            }
        }
    }
}

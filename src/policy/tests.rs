//! Policy as a whole: cases as data, and properties against a reference that
//! looks through all rules one by one.

use std::net::IpAddr;

use http::Method;
use proptest::prelude::*;

use super::*;
use crate::egress::{
    AddressClass, AddressRange, AgentId, Ask, Authority, Destination, EgressRequest, HostPattern,
    RequestPath, Scheme, Subject, TenantId, classify,
};

/// A policy from YAML texts, named `0.yaml`, `1.yaml` and so on.
fn build(texts: &[&str]) -> Result<PolicySet, Vec<PolicyError>> {
    build_in(texts, Mode::Enforce)
}

fn build_in(texts: &[&str], mode: Mode) -> Result<PolicySet, Vec<PolicyError>> {
    let mut documents = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let source = SourceName::from(format!("{at}.yaml"));
        let document =
            PolicyDocument::parse(&source, Format::Yaml, text).map_err(|error| vec![error])?;
        documents.push((source, document));
    }
    PolicySet::build(documents, mode)
}

fn policy(text: &str) -> PolicySet {
    build(&[text]).expect("a policy")
}

/// One global document with these rules.
fn rules(rules: &str) -> PolicySet {
    policy(&format!("version: 1\nrules:\n{rules}"))
}

/// `CONNECT host:port`, or `GET http://host/path`.
fn request(line: &str) -> EgressRequest {
    let (method, target) = line.split_once(' ').expect("a method and a target");
    if method == "CONNECT" {
        return EgressRequest {
            authority: Authority::parse(target).expect(target),
            ask: Ask::Tunnel,
        };
    }
    let (scheme, rest) = target.split_once("://").expect("a URL");
    let scheme = match scheme {
        "http" => Scheme::Http,
        _ => Scheme::Https,
    };
    let slash = rest.find('/').unwrap_or(rest.len());
    let authority = Authority::parse_with_default_port(&rest[..slash], scheme.default_port());
    let path = if slash == rest.len() {
        "/"
    } else {
        &rest[slash..]
    };
    EgressRequest {
        authority: authority.expect(target),
        ask: Ask::Request {
            scheme,
            method: Method::from_bytes(method.as_bytes()).expect(method),
            path: RequestPath::parse(path).expect(target),
        },
    }
}

fn decide_for(set: &PolicySet, agent: &str, tenant: Option<&str>, line: &str) -> Decision {
    let agent = AgentId::parse(agent).expect(agent);
    let tenant = tenant.map(|raw| TenantId::parse(raw).expect(raw));
    let who = Subject {
        agent: &agent,
        tenant: tenant.as_ref(),
        destinations: None,
    };
    set.decide(&who, &request(line))
}

/// `allow RULE`, `allow RULE, inside only`, `audit CODE` or `deny CODE`.
fn said(decision: &Decision) -> String {
    match decision {
        Decision::Deny(denied) => {
            let rule = denied
                .rule()
                .map(|rule| format!(" by {rule}"))
                .unwrap_or_default();
            format!("deny {}{rule}", denied.reason().as_str())
        }
        Decision::Allow(permit) => match permit.audited_denial() {
            Some(denied) => format!("audit {}", denied.reason().as_str()),
            None if !permit.opaque() => format!("allow {}, inside only", name(permit)),
            None => format!("allow {}", name(permit)),
        },
    }
}

fn name(permit: &Permit) -> &str {
    permit.rule().map_or("nothing", |rule| rule)
}

fn check(set: &PolicySet, cases: &[(&str, &str)]) {
    for (line, expected) in cases {
        assert_eq!(
            said(&decide_for(set, "bot", None, line)),
            *expected,
            "{line}"
        );
    }
}

fn permit(set: &PolicySet, line: &str) -> Permit {
    match decide_for(set, "bot", None, line) {
        Decision::Allow(permit) => permit,
        Decision::Deny(denied) => panic!("{line}: {denied}"),
    }
}

/// What the permit says of addresses: `ok`, `audit CODE` or `deny CODE`.
fn check_addresses(permit: &Permit, cases: &[(&str, &str)]) {
    for (address, expected) in cases {
        let said = match permit.address(address.parse().expect(address)) {
            Ok(None) => "ok".to_owned(),
            Ok(Some(denied)) => format!("audit {}", denied.reason()),
            Err(denied) => format!("deny {}", denied.reason()),
        };
        assert_eq!(said, *expected, "{address}");
    }
}

#[test]
fn nothing_matches_means_deny() {
    let cases = [
        ("CONNECT a.example:443", "deny no_rule"),
        ("GET http://10.0.0.1/", "deny no_rule"),
    ];
    check(&PolicySet::empty(), &cases);
    check(&policy("version: 1"), &cases);
    check(&build(&[]).expect("no document"), &cases);
    let denied = rules("  - {name: d, action: deny, agents: any, hosts: [b.example]}");
    check(&denied, &cases);
}

#[test]
fn hosts_are_exact_strings_and_wildcards_are_subdomains() {
    let set = rules(
        "  - {name: exact, action: allow, agents: any, hosts: [api.openai.com]}
  - {name: below, action: allow, agents: any, hosts: [\"*.example.com\"]}
  - {name: deep, action: allow, agents: any, hosts: [\"*.b.example.com\"]}",
    );
    check(
        &set,
        &[
            ("CONNECT api.openai.com:443", "allow exact"),
            ("CONNECT API.OpenAI.com.:443", "allow exact"),
            ("CONNECT openai.com:443", "deny no_rule"),
            ("CONNECT x.api.openai.com:443", "deny no_rule"),
            ("CONNECT api.openai.com.evil.test:443", "deny no_rule"),
            ("CONNECT apiopenai.com:443", "deny no_rule"),
            ("CONNECT a.example.com:443", "allow below"),
            ("CONNECT example.com:443", "deny no_rule"),
            ("CONNECT badexample.com:443", "deny no_rule"),
            ("CONNECT x.y.b.example.com:443", "allow deep"),
            ("CONNECT b.example.com:443", "allow below"),
            ("CONNECT api.openai.com:8443", "deny no_rule"),
            ("CONNECT 8.8.8.8:443", "deny no_rule"),
        ],
    );
}

#[test]
fn deny_wins_over_every_allow_rule() {
    let set = policy(
        "version: 1
denylist: [\"*.evil.example\", bad.example, 203.0.113.0/24, \"8.8.4.4\"]
rules:
  - {name: all, action: allow, agents: any, hosts: [\"*\", bad.example, a.secret.example], addresses: [0.0.0.0/0, \"::/0\"], ports: any}
  - {name: secret, action: deny, agents: any, hosts: [\"*.secret.example\"], ports: any}
  - {name: ssh, action: deny, agents: [\"b*\"], hosts: [\"*\"], ports: [22]}
  - {name: others, action: deny, agents: [\"c*\", bot2], hosts: [\"*\"], ports: any}",
    );
    check(
        &set,
        &[
            ("CONNECT ok.example:443", "allow all"),
            ("CONNECT bad.example:443", "deny denylist"),
            ("CONNECT x.evil.example:443", "deny denylist"),
            ("CONNECT evil.example:443", "allow all"),
            ("CONNECT 203.0.113.9:443", "deny denylist"),
            ("CONNECT [::ffff:203.0.113.9]:443", "deny denylist"),
            ("CONNECT [64:ff9b::8.8.4.4]:443", "deny denylist"),
            ("CONNECT a.secret.example:443", "deny rule by secret"),
            ("CONNECT ok.example:22", "deny rule by ssh"),
        ],
    );
    check_addresses(
        &permit(&set, "CONNECT ok.example:443"),
        &[
            ("8.8.8.8", "ok"),
            ("8.8.4.4", "deny denylist"),
            ("::ffff:8.8.4.4", "deny denylist"),
            ("64:ff9b::808:404", "deny denylist"),
            ("203.0.113.1", "deny denylist"),
            ("169.254.169.254", "deny address_metadata"),
            ("::ffff:169.254.169.254", "deny address_metadata"),
            ("64:ff9b::a9fe:a9fe", "deny address_metadata"),
        ],
    );
}

#[test]
fn agents_are_named_or_begin_so() {
    let set = rules("  - {name: r, action: allow, agents: [bot, \"ci-*\"], hosts: [a.example]}");
    for (agent, allowed) in [
        ("bot", true),
        ("bot2", false),
        ("Bot", false),
        ("ci-", true),
        ("ci-1", true),
        ("ci", false),
        ("xci-1", false),
    ] {
        let decision = decide_for(&set, agent, None, "CONNECT a.example:443");
        assert_eq!(matches!(decision, Decision::Allow(_)), allowed, "{agent}");
    }
}

#[test]
fn ports_schemes_methods_and_paths_limit_what_is_seen() {
    let set = rules(
        "  - {name: get, action: allow, agents: any, hosts: [a.example], methods: [GET, HEAD], paths: [\"/v1/**\"]}
  - {name: no-admin, action: deny, agents: any, hosts: [b.example], paths: [\"/admin/**\"]}
  - {name: b, action: allow, agents: any, hosts: [b.example]}
  - {name: clear, action: allow, agents: any, hosts: [c.example], schemes: [http]}
  - {name: tls, action: allow, agents: any, hosts: [d.example], schemes: [https]}
  - {name: high, action: allow, agents: any, hosts: [e.example], ports: [22, \"8000-8999\"]}",
    );
    check(
        &set,
        &[
            ("GET https://a.example/v1/x", "allow get"),
            ("POST https://a.example/v1/x", "deny no_rule"),
            ("GET https://a.example/v2", "deny no_rule"),
            ("GET https://a.example/v1/..%2fv2", "deny no_rule"),
            ("GET http://b.example/", "allow b"),
            ("GET http://b.example/admin", "deny rule by no-admin"),
            ("GET http://b.example/x/..%2fadmin", "deny rule by no-admin"),
            ("GET http://b.example//admin/x", "deny rule by no-admin"),
            ("GET http://b.example/%61dmin", "deny rule by no-admin"),
            ("GET http://c.example/", "allow clear"),
            ("GET https://c.example/", "deny no_rule"),
            ("GET https://d.example/", "allow tls"),
            ("GET http://d.example/", "deny no_rule"),
            ("GET http://e.example:8000/", "allow high"),
            ("GET http://e.example:8999/", "allow high"),
            ("GET http://e.example:9000/", "deny no_rule"),
            ("GET http://e.example/", "deny no_rule"),
        ],
    );
}

#[test]
fn a_tunnel_is_opaque_only_where_nothing_inside_matters() {
    let set = rules(
        "  - {name: get, action: allow, agents: any, hosts: [a.example], ports: any, methods: [GET]}
  - {name: no-admin, action: deny, agents: any, hosts: [b.example], ports: any, paths: [\"/admin/**\"]}
  - {name: b, action: allow, agents: any, hosts: [b.example], ports: any}
  - {name: clear, action: allow, agents: any, hosts: [c.example], ports: any, schemes: [http]}
  - {name: tls, action: allow, agents: any, hosts: [d.example], ports: any, schemes: [https]}
  - {name: limited, action: allow, agents: any, hosts: [e.example], ports: any, paths: [\"/x\"]}
  - {name: whole, action: allow, agents: any, hosts: [\"*.example\", e.example], ports: [443]}
  - {name: clear-only, action: deny, agents: any, hosts: [f.example], schemes: [http], ports: any}
  - {name: no-tls, action: deny, agents: any, hosts: [g.example], schemes: [https], ports: any}
  - {name: fg, action: allow, agents: any, hosts: [f.example, g.example], ports: any}",
    );
    check(
        &rules("  - {name: get, action: allow, agents: any, hosts: [a.example], methods: [GET]}"),
        &[
            ("CONNECT a.example:443", "deny not_inspectable by get"),
            ("CONNECT a.example:80", "allow get, inside only"),
        ],
    );
    check(
        &set,
        &[
            ("CONNECT a.example:8443", "allow get, inside only"),
            ("CONNECT b.example:443", "deny not_inspectable by no-admin"),
            ("CONNECT b.example:80", "allow b, inside only"),
            ("CONNECT c.example:80", "allow clear, inside only"),
            ("CONNECT d.example:443", "allow tls"),
            ("CONNECT d.example:80", "allow tls"),
            ("CONNECT e.example:443", "allow whole"),
            ("CONNECT e.example:80", "allow limited, inside only"),
            ("CONNECT f.example:443", "allow fg"),
            ("CONNECT g.example:443", "deny not_inspectable by no-tls"),
            ("CONNECT g.example:80", "allow fg, inside only"),
        ],
    );
}

#[test]
fn the_most_specific_host_wins_then_the_order() {
    let set = rules(
        "  - {name: all, action: allow, agents: any, hosts: [\"*\"], tls: any}
  - {name: wide, action: allow, agents: any, hosts: [\"*.example\"]}
  - {name: deep, action: allow, agents: any, hosts: [\"*.a.example\"]}
  - {name: first, action: allow, agents: [bot], hosts: [x.a.example]}
  - {name: second, action: allow, agents: any, hosts: [x.a.example]}",
    );
    check(
        &set,
        &[
            ("CONNECT x.a.example:443", "allow first"),
            ("CONNECT y.a.example:443", "allow deep"),
            ("CONNECT a.example:443", "allow wide"),
            ("CONNECT other.test:443", "allow all"),
            ("CONNECT 8.8.8.8:443", "allow all"),
        ],
    );
    assert_eq!(
        permit(&set, "CONNECT other.test:443").tls().tls,
        TlsUse::Any
    );
    assert_eq!(
        permit(&set, "CONNECT a.example:443").tls(),
        TlsRule::default()
    );
}

#[test]
fn addresses_are_public_or_named_by_a_range() {
    let set = rules(
        "  - {name: plain, action: allow, agents: any, hosts: [a.example]}
  - {name: pinned, action: allow, agents: any, hosts: [b.example, \"10.1.2.3\"], addresses: [10.1.0.0/16]}
  - {name: net, action: allow, agents: any, addresses: [192.168.0.0/16], ports: [8080]}
  - {name: literal, action: allow, agents: any, hosts: [\"10.9.9.9\", \"8.8.8.8\", \"fd00::1\"]}
  - {name: imds, action: allow, agents: any, hosts: [imds.example], addresses: [169.254.169.254/32, 168.63.129.0/24]}",
    );
    check_addresses(
        &permit(&set, "CONNECT a.example:443"),
        &[
            ("8.8.8.8", "ok"),
            ("2606:4700::1111", "ok"),
            ("10.1.2.3", "deny address_private"),
            ("127.0.0.1", "deny address_loopback"),
            ("::1", "deny address_loopback"),
            ("::ffff:8.8.8.8", "deny address_translated"),
            ("64:ff9b::8.8.8.8", "ok"),
            ("64:ff9b::10.0.0.1", "deny address_private"),
            ("0.0.0.0", "deny address_unspecified"),
            ("100.64.0.1", "deny address_carrier_nat"),
            ("168.63.129.16", "deny address_metadata"),
        ],
    );
    check_addresses(
        &permit(&set, "CONNECT b.example:443"),
        &[
            ("10.1.2.3", "ok"),
            ("10.2.0.1", "deny address_private"),
            ("8.8.8.8", "deny address_not_allowed"),
            ("::ffff:10.1.2.3", "deny address_translated"),
        ],
    );
    check_addresses(
        &permit(&set, "CONNECT any.test:8080"),
        &[
            ("192.168.1.1", "ok"),
            ("8.8.8.8", "deny address_not_allowed"),
        ],
    );
    check_addresses(
        &permit(&set, "CONNECT imds.example:443"),
        &[
            ("169.254.169.254", "ok"),
            ("168.63.129.16", "deny address_metadata"),
            ("168.63.129.17", "ok"),
        ],
    );
    check(
        &set,
        &[
            ("CONNECT 10.1.2.3:443", "allow pinned"),
            ("CONNECT 10.1.2.4:443", "deny no_rule"),
            ("CONNECT 192.168.3.4:8080", "allow net"),
            ("CONNECT 192.168.3.4:443", "deny no_rule"),
            ("CONNECT 10.9.9.9:443", "allow literal"),
            ("CONNECT [fd00::1]:443", "allow literal"),
            ("CONNECT [fd00:0:0::1]:443", "allow literal"),
        ],
    );
    for (target, address) in [("10.9.9.9", "10.9.9.9"), ("[fd00::1]", "fd00::1")] {
        let permit = permit(&set, &format!("CONNECT {target}:443"));
        check_addresses(
            &permit,
            &[(address, "ok"), ("10.9.9.8", "deny address_private")],
        );
    }
    let everywhere = rules("  - {name: all, action: allow, agents: any, hosts: [\"*\"]}");
    let metadata = permit(&everywhere, "CONNECT 169.254.169.254:80");
    check_addresses(&metadata, &[("169.254.169.254", "deny address_metadata")]);
}

#[test]
fn an_address_rule_adds_to_a_rule_by_name() {
    let set = rules(
        "  - {name: name, action: allow, agents: any, hosts: [\"*\"]}
  - {name: net, action: allow, agents: any, addresses: [10.0.0.0/8]}
  - {name: limited, action: allow, agents: any, addresses: [172.16.0.0/12], methods: [GET]}",
    );
    check(
        &set,
        &[
            ("CONNECT a.example:443", "allow name"),
            ("CONNECT 10.0.0.1:443", "allow net"),
        ],
    );
    check_addresses(
        &permit(&set, "CONNECT a.example:443"),
        &[
            ("8.8.8.8", "ok"),
            ("10.0.0.1", "ok"),
            ("172.16.0.1", "deny address_private"),
        ],
    );
    check_addresses(
        &permit(&set, "GET http://a.example/"),
        &[("172.16.0.1", "ok")],
    );
}

#[test]
fn a_deny_rule_refuses_what_either_its_hosts_or_its_addresses_name() {
    let set = rules(
        "  - {name: all, action: allow, agents: any, hosts: [\"*\"]}
  - {name: bad, action: deny, agents: any, hosts: [bad.example, \"1.1.1.1\"], addresses: [8.8.0.0/16]}
  - {name: put, action: deny, agents: any, addresses: [9.9.9.0/24], methods: [PUT]}",
    );
    check(
        &set,
        &[
            ("CONNECT bad.example:443", "deny rule by bad"),
            ("CONNECT 1.1.1.1:443", "deny rule by bad"),
            (
                "CONNECT [64:ff9b::101:101]:443",
                "deny address_denied by bad",
            ),
            ("CONNECT 8.8.8.8:443", "deny address_denied by bad"),
            ("CONNECT 9.9.9.9:443", "deny not_inspectable by put"),
            ("CONNECT 9.9.9.9:80", "allow all, inside only"),
            ("GET http://9.9.9.9/", "allow all"),
            ("PUT http://9.9.9.9/", "deny address_denied by put"),
        ],
    );
    check_addresses(
        &permit(&set, "CONNECT ok.example:443"),
        &[
            ("8.8.8.8", "deny address_denied"),
            ("1.1.1.1", "deny address_denied"),
            ("9.9.9.9", "deny not_inspectable"),
            ("8.9.0.1", "ok"),
        ],
    );
    check_addresses(
        &permit(&set, "GET http://ok.example/"),
        &[("9.9.9.9", "ok")],
    );
    check_addresses(
        &permit(&set, "PUT http://ok.example/"),
        &[("9.9.9.9", "deny address_denied")],
    );
}

#[test]
fn tenants_have_the_global_rules_and_their_own() {
    let global = "version: 1
denylist: [bad.example]
rules:
  - {name: shared, action: allow, agents: any, hosts: [shared.example, mail.example]}
  - {name: no-mail, action: deny, agents: any, hosts: [mail.example, m.acme.example]}";
    let acme = "version: 1
tenant: acme
denylist: [shared.example]
rules:
  - {name: acme, action: allow, agents: any, hosts: [\"*.acme.example\", bad.example]}";
    let other = "version: 1
tenant: other
rules: [{name: other, action: allow, agents: any, hosts: [other.example, shared.example]}]";
    let set = build(&[global, acme, other]).expect("a policy");
    for (tenant, host, expected) in [
        (None, "shared.example", "allow shared"),
        (None, "a.acme.example", "deny no_rule"),
        (Some("acme"), "a.acme.example", "allow acme"),
        (Some("acme"), "m.acme.example", "deny rule by no-mail"),
        (Some("acme"), "bad.example", "deny denylist"),
        (Some("acme"), "shared.example", "deny denylist"),
        (Some("acme"), "other.example", "deny no_rule"),
        (Some("other"), "shared.example", "allow other"),
        (Some("nobody"), "shared.example", "deny unknown_tenant"),
    ] {
        let said = said(&decide_for(
            &set,
            "bot",
            tenant,
            &format!("CONNECT {host}:443"),
        ));
        assert_eq!(said, expected, "{tenant:?} {host}");
    }
    let without = build(&[global]).expect("a policy");
    let decision = decide_for(
        &without,
        "bot",
        Some("nobody"),
        "CONNECT shared.example:443",
    );
    assert_eq!(said(&decision), "allow shared");
}

#[test]
fn the_token_narrows_and_never_widens() {
    let set = rules(
        "  - {name: r, action: allow, agents: any, hosts: [\"*.example\", \"8.8.8.8\", 10.0.0.1], ports: any}",
    );
    let agent = AgentId::parse("bot").expect("an agent");
    for (destinations, line, expected) in [
        (vec![], "CONNECT a.example:443", "deny not_in_token"),
        (vec!["*"], "CONNECT a.example:443", "allow r"),
        (vec!["*"], "CONNECT a.test:443", "deny no_rule"),
        (
            vec!["b.example"],
            "CONNECT a.example:443",
            "deny not_in_token",
        ),
        (
            vec!["b.example", "a.example"],
            "CONNECT a.example:443",
            "allow r",
        ),
        (vec!["8.0.0.0/8"], "CONNECT 8.8.8.8:443", "allow r"),
        (
            vec!["9.0.0.0/8"],
            "CONNECT 8.8.8.8:443",
            "deny not_in_token",
        ),
        (vec!["9.0.0.0/8"], "CONNECT a.example:443", "allow r"),
    ] {
        let parsed: Vec<Destination> = destinations
            .iter()
            .map(|raw| Destination::parse(raw).expect(raw))
            .collect();
        let who = Subject {
            agent: &agent,
            tenant: None,
            destinations: Some(&parsed),
        };
        let decision = set.decide(&who, &request(line));
        assert_eq!(said(&decision), expected, "{destinations:?} {line}");
        if destinations == ["9.0.0.0/8"]
            && let Decision::Allow(permit) = decision
        {
            check_addresses(
                &permit,
                &[
                    ("9.9.9.9", "ok"),
                    ("8.8.8.8", "deny not_in_token"),
                    ("10.0.0.1", "deny address_private"),
                ],
            );
        }
    }
}

#[test]
fn audit_mode_lets_pass_what_policy_refuses_and_nothing_else() {
    let set = policy(
        "version: 1
mode: audit
denylist: [bad.example, 8.8.8.0/24]
rules:
  - {name: a, action: allow, agents: any, hosts: [a.example]}
  - {name: hard, action: deny, mode: enforce, agents: any, hosts: [hard.example]}
  - {name: soft, action: deny, agents: any, hosts: [soft.example, hard.example], addresses: [9.9.9.9]}
  - {name: get, action: allow, agents: any, hosts: [get.example], methods: [GET], ports: any}
  - {name: pin, action: allow, agents: any, hosts: [pin.example], addresses: [1.1.1.0/24]}",
    );
    check(
        &set,
        &[
            ("CONNECT a.example:443", "allow a"),
            ("CONNECT none.example:443", "audit no_rule"),
            ("CONNECT bad.example:443", "audit denylist"),
            ("CONNECT soft.example:443", "audit rule"),
            ("CONNECT hard.example:443", "deny rule by hard"),
            ("CONNECT get.example:443", "audit not_inspectable"),
            ("CONNECT get.example:8443", "allow get"),
        ],
    );
    let unseen = permit(&set, "CONNECT get.example:8443");
    assert!(
        unseen
            .opaque_denial()
            .is_some_and(|denied| !denied.enforced())
    );
    let none = permit(&set, "CONNECT none.example:443");
    assert_eq!((none.rule(), none.mode()), (None, Mode::Audit));
    check_addresses(
        &none,
        &[
            ("1.1.1.1", "ok"),
            ("8.8.8.8", "audit denylist"),
            ("9.9.9.9", "audit address_denied"),
            ("10.0.0.1", "deny address_private"),
            ("169.254.169.254", "deny address_metadata"),
        ],
    );
    check_addresses(
        &permit(&set, "CONNECT pin.example:443"),
        &[
            ("1.1.1.1", "ok"),
            ("1.1.2.1", "audit address_not_allowed"),
            ("10.0.0.1", "deny address_private"),
        ],
    );
    let agent = AgentId::parse("bot").expect("an agent");
    let who = Subject {
        agent: &agent,
        tenant: None,
        destinations: Some(&[]),
    };
    let decision = set.decide(&who, &request("CONNECT none.example:443"));
    assert_eq!(said(&decision), "deny not_in_token");
    let tenants = build_in(
        &["version: 1\ntenant: t\nmode: enforce", "version: 1"],
        Mode::Audit,
    )
    .expect("a policy");
    for (tenant, expected) in [
        (None, "audit no_rule"),
        (Some("t"), "deny no_rule"),
        (Some("u"), "deny unknown_tenant"),
    ] {
        let decision = decide_for(&tenants, "bot", tenant, "CONNECT a.example:443");
        assert_eq!(said(&decision), expected, "{tenant:?}");
    }
    let mixed = build(&["version: 1\nmode: audit", "version: 1\nmode: enforce"]).expect("a policy");
    check(&mixed, &[("CONNECT a.example:443", "deny no_rule")]);
}

#[test]
fn a_rule_on_trial_does_not_hide_one_that_binds() {
    let set = rules(
        "  - {name: trial, action: deny, mode: audit, agents: any, hosts: [a.example, b.example]}
  - {name: a, action: allow, agents: any, hosts: [a.example]}",
    );
    check(
        &set,
        &[
            ("CONNECT a.example:443", "audit rule"),
            ("CONNECT b.example:443", "deny no_rule"),
        ],
    );
    assert_eq!(name(&permit(&set, "CONNECT a.example:443")), "a");
}

#[test]
fn allowed_destinations_in_one_line() {
    let set = PolicySet::from_allowed_destinations(
        "api.openai.com, *.example.com,10.1.0.0/16",
        Mode::Enforce,
    )
    .expect("a policy");
    check(
        &set,
        &[
            ("CONNECT api.openai.com:443", "allow allowed-hosts"),
            ("GET http://a.example.com/x", "allow allowed-hosts"),
            ("CONNECT 10.1.2.3:443", "allow allowed-addresses"),
            ("CONNECT 10.2.0.1:443", "deny no_rule"),
            ("CONNECT api.openai.com:22", "deny no_rule"),
        ],
    );
    let errors =
        PolicySet::from_allowed_destinations("API.openai.com,,10.1.2.3/8,a.example", Mode::Enforce)
            .expect_err("three mistakes");
    let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "ALLOWED_DESTINATIONS: [0]: \"API.openai.com\": write \"api.openai.com\"",
            "ALLOWED_DESTINATIONS: [1]: the entry is empty; take the comma away",
            "ALLOWED_DESTINATIONS: [2]: \"10.1.2.3/8\": bits behind the prefix are set: write 10.0.0.0/8",
        ]
    );
    assert!(PolicySet::from_allowed_destinations("", Mode::Enforce).is_err());
}

#[test]
fn every_mistake_is_reported_at_once_with_its_place_and_what_to_write() {
    let text = "version: 2
tenant: \"a b\"
denylist: [Evil.example]
rules:
  - name: \"\"
    action: allow
    agents: [\"*\", \"a b\", ok]
    hosts: [\"*.Example.com\", 10.0.0.0/8, 127.1]
    addresses: [10.0.0.1/8, nonsense]
    ports: [0, 65536, \"9-8\", \"x\", \"+1\", 443]
    schemes: [ftp]
    methods: [get, CONNECT, \"G T\"]
    paths: [v1, \"/a/../b\"]
  - name: b
    action: deny
    agents: []
    hosts: []
    sni: any
  - {name: b, action: allow, agents: any}";
    let mut errors = build(&[text]).expect_err("mistakes");
    let source = SourceName::from("0.yaml");
    PolicyError::locate(&mut errors, &source, text);
    let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let expected = [
        "0.yaml:1:1: version: version 2 is not known; write 1",
        "0.yaml:2:1: tenant: \"a b\": the name may have letters, digits and -_.:/@+= only",
        "0.yaml:5:5: rules[0].name: \"\": write a name of 1 to 128 printable ASCII characters, without quotes and backslashes",
        "0.yaml:8:13: rules[0].hosts[0]: \"*.Example.com\": write \"*.example.com\"",
        "0.yaml:8:30: rules[0].hosts[1]: \"10.0.0.0/8\": a range of addresses belongs in `addresses`",
        "0.yaml:8:42: rules[0].hosts[2]: \"127.1\": the host looks like a number; write an IPv4 address as four decimal numbers",
        "0.yaml:9:17: rules[0].addresses[0]: \"10.0.0.1/8\": bits behind the prefix are set: write 10.0.0.0/8",
        "0.yaml:9:29: rules[0].addresses[1]: \"nonsense\": write an address range such as 10.0.0.0/8 or fd00::/8",
        "0.yaml:11:15: rules[0].schemes[0]: \"ftp\": write \"http\" or \"https\"",
        "0.yaml:10:13: rules[0].ports[0]: 0: write a port from 1 to 65535, or a range such as \"8000-8999\"",
        "0.yaml:10:16: rules[0].ports[1]: 65536: write a port from 1 to 65535, or a range such as \"8000-8999\"",
        "0.yaml:10:23: rules[0].ports[2]: \"9-8\": write \"8-9\"",
        "0.yaml:10:30: rules[0].ports[3]: \"x\": write a port from 1 to 65535, or a range such as \"8000-8999\"",
        "0.yaml:10:35: rules[0].ports[4]: \"+1\": write a port from 1 to 65535, or a range such as \"8000-8999\"",
        "0.yaml:7:14: rules[0].agents[0]: \"*\": write `agents: any`",
        "0.yaml:7:19: rules[0].agents[1]: \"a b\": the name may have letters, digits and -_.:/@+= only; write a name, or a beginning as in \"ci-*\"",
        "0.yaml:12:15: rules[0].methods[0]: \"get\": write \"GET\"",
        "0.yaml:12:20: rules[0].methods[1]: \"CONNECT\": methods are those inside a tunnel; a rule without `methods` and `paths` allows tunnels",
        "0.yaml:12:29: rules[0].methods[2]: \"G T\" is not a method; write one such as \"GET\"",
        "0.yaml:13:13: rules[0].paths[0]: \"v1\": a path pattern begins with a slash: write \"/v1\"",
        "0.yaml:13:17: rules[0].paths[1]: \"/a/../b\": no request is compared in this form: write \"/b\"",
        "0.yaml:18:5: rules[1].sni: `sni` says what an allowed tunnel may carry; take it out of the deny rule",
        "0.yaml:17:5: rules[1].hosts: the list is empty; write an entry, or take the member away",
        "0.yaml:16:5: rules[1].agents: the list is empty; write `any`, or what the rule is for",
        "0.yaml:19:6: rules[2].name: \"b\" is the name of rules[1] already; give each rule its own",
        "0.yaml:19:5: rules[2]: the rule names no destination; write `hosts`, `addresses` or both (`hosts: [\"*\"]` is every host)",
        "0.yaml:3:12: denylist[0]: \"Evil.example\": write \"evil.example\"",
    ];
    for (said, expected) in said.iter().zip(expected) {
        assert_eq!(said, expected);
    }
    assert_eq!(said.len(), expected.len());
}

#[test]
fn one_document_for_a_tenant() {
    let errors = build(&["version: 1\ntenant: t", "version: 1\ntenant: t"]).expect_err("twice");
    assert_eq!(
        errors[0].to_string(),
        "1.yaml: tenant: tenant \"t\" has a document already, 0.yaml; put the rules of both into one"
    );
}

#[test]
fn texts_that_are_no_documents() {
    let rule = |members: &str| {
        format!("version: 1\nrules: [{{name: r, action: allow, agents: any, {members}}}]")
    };
    for (text, says) in [
        (String::new(), "EOF"),
        ("rules: []".into(), "missing field `version`"),
        ("version: 1\nversion: 1".into(), "duplicate field `version`"),
        (
            "version: 1\n---\nversion: 1".into(),
            "more than one document",
        ),
        ("version: one".into(), "invalid type"),
        ("version: 1\nrule: []".into(), "unknown field `rule`"),
        (rule("host: [a]"), "unknown field `host`"),
        (rule("hosts: a.example"), "expected a sequence"),
        (
            rule("hosts: [a.example], hosts: [b.example]"),
            "duplicate field `hosts`",
        ),
        (rule("hosts: [1]"), "expected a string"),
        (rule("hosts: [null]"), "expected a string"),
        (
            rule("hosts: [a.example], paths: "),
            "`any` or a list in brackets",
        ),
        (
            rule("hosts: [a.example], methods: all"),
            "`any` or a list in brackets",
        ),
        (rule("hosts: null"), "invalid type"),
        (
            rule("hosts: [a.example], ports: [-1]"),
            "a port such as 443",
        ),
        (
            rule("hosts: [a.example], mode: dry-run"),
            "unknown variant `dry-run`, expected `enforce` or `audit`",
        ),
        (
            rule("hosts: [*.example.com]"),
            "needs quotes: \"*.example.com\"",
        ),
        (
            "version: 1\nrules:\n  - <<: {name: a}".into(),
            "unknown field `<<`",
        ),
        ("version: 1\ndenylist: !!binary eA==".into(), "invalid type"),
        (
            "version: 1\n\trules: []".into(),
            "found character that cannot start any token",
        ),
    ] {
        let error = PolicyDocument::parse(&"p.yaml".into(), Format::Yaml, &text).expect_err(&text);
        assert!(error.to_string().contains(says), "{text}: {error}");
    }
    for (text, says) in [
        ("", "p.json:1:"),
        (
            "{\"version\": 1, \"version\": 1}",
            "duplicate field `version`",
        ),
        ("{\"version\": 1} {}", "trailing characters"),
        ("{\"version\": 1,}", "trailing comma"),
        (
            "{\n\"version\": 1, \"x\": 1}",
            "p.json:2:17: unknown field `x`",
        ),
        ("{\"version\": 1, \"tenant\": null}", "invalid type: null"),
        ("[]", "invalid"),
    ] {
        let error = PolicyDocument::parse(&"p.json".into(), Format::Json, text).expect_err(text);
        assert!(error.to_string().contains(says), "{text}: {error}");
    }
}

#[test]
fn large_and_multiplying_texts_are_refused() {
    let large = format!("version: 1 #{}", "x".repeat(MAX_DOCUMENT_BYTES));
    let error = PolicyDocument::parse(&"p".into(), Format::Yaml, &large).expect_err("too large");
    assert_eq!(error.what, Problem::TooLarge);
    let hosts = vec!["a.example"; 100_000].join(",");
    let mut bomb = format!("version: 1\ndenylist: &h [{hosts}]\nrules:\n");
    for n in 0..100 {
        bomb += &format!("  - {{name: r{n}, action: deny, agents: any, hosts: *h}}\n");
    }
    let error = PolicyDocument::parse(&"p".into(), Format::Yaml, &bomb).expect_err("a bomb");
    assert_eq!(error.what, Problem::Aliases);
    let shared = policy(
        "version: 1
rules:
  - {name: a, action: allow, agents: [x], hosts: &h [a.example]}
  - {name: b, action: allow, agents: [bot], hosts: *h}",
    );
    check(&shared, &[("CONNECT a.example:443", "allow b")]);
}

#[test]
fn json_and_yaml_are_the_same_policy() {
    let yaml = "version: 1\nrules: [{name: r, action: allow, agents: [a], hosts: [x.example], ports: [1, \"2-3\"]}]";
    let document = PolicyDocument::parse(&"y".into(), Format::Yaml, yaml).expect("YAML");
    let json = serde_json::to_string(&document).expect("JSON");
    let again = PolicyDocument::parse(&"j".into(), Format::Json, &format!("\u{feff}{json}"));
    assert_eq!(again.as_ref(), Ok(&document));
    let yaml = yaml_serde::to_string(&document).expect("YAML");
    let again = PolicyDocument::parse(&"y".into(), Format::Yaml, &yaml);
    assert_eq!(again, Ok(document));
}

#[test]
fn the_digest_is_of_what_the_documents_say() {
    let a = "version: 1\nrules: [{name: a, action: allow, agents: any, hosts: [a.example]}]";
    let b = "version: 1\ntenant: t";
    let digest = |texts: &[&str]| build(texts).expect("a policy").digest().to_string();
    let first = digest(&[a, b]);
    assert_eq!(first.len(), 16);
    assert_eq!(first, digest(&[b, a]));
    assert_eq!(first, digest(&[&format!("# a comment\n{a}"), b]));
    assert_ne!(first, digest(&[a]));
    assert_ne!(first, digest(&[&a.replace("a.example", "b.example"), b]));
    assert_ne!(
        first,
        build_in(&[a, b], Mode::Audit)
            .expect("a policy")
            .digest()
            .to_string()
    );
}

#[test]
fn shipped_policies_are_valid_and_without_doubts() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("the folder") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name");
        if !name.ends_with(".yaml") || name.ends_with(".cases.yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect(name);
        let source = SourceName::from(name);
        let document = PolicyDocument::parse(&source, Format::Yaml, &text);
        let document = document.unwrap_or_else(|error| panic!("{error}"));
        let set = PolicySet::build(vec![(source, document)], Mode::Enforce);
        let set = set.unwrap_or_else(|errors| panic!("{errors:?}"));
        assert_eq!(set.lint(), [], "{name}");
        seen += 1;
    }
    assert!(seen >= 2, "example.yaml and openclaw.yaml at least");
}

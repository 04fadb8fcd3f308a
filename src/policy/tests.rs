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
        audiences: None,
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
            audiences: None,
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
        audiences: None,
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
fn the_most_specific_mode_counts_in_both_directions() {
    const RULES: &str = "
denylist: [bad.example]
rules:
  - {name: plain, action: deny, agents: any, hosts: [plain.example]}
  - {name: hard, action: deny, mode: enforce, agents: any, hosts: [hard.example]}
  - {name: soft, action: deny, mode: audit, agents: any, hosts: [soft.example]}
  - {name: some, action: allow, agents: any, hosts: [some.example]}";
    let audit = policy(&format!(
        "version: 1\nmode: audit\nagent_modes: {{canary: enforce, 'ci-*': enforce, 'ci-lab-*': audit, ci-lab-1: enforce}}{RULES}"
    ));
    let enforce = policy(&format!(
        "version: 1\nmode: enforce\nagent_modes: {{canary: audit}}{RULES}"
    ));
    for (case, set, agent, binds) in [
        ("the document's", &audit, "bot", false),
        ("an agent's", &audit, "canary", true),
        ("that of a beginning", &audit, "ci-7", true),
        ("that of a longer beginning", &audit, "ci-lab-7", false),
        (
            "that of a name before a beginning",
            &audit,
            "ci-lab-1",
            true,
        ),
        ("the document's, enforcing", &enforce, "bot", true),
        ("an agent's, on trial", &enforce, "canary", false),
    ] {
        let said = |what| said(&decide_for(set, agent, None, what));
        let expect = |reason: &str| format!("{} {reason}", if binds { "deny" } else { "audit" });
        assert_eq!(
            said("CONNECT none.example:443"),
            expect("no_rule"),
            "{case}"
        );
        assert_eq!(
            said("CONNECT bad.example:443"),
            expect("denylist"),
            "{case}"
        );
        let plain = if binds {
            "deny rule by plain"
        } else {
            "audit rule"
        };
        assert_eq!(said("CONNECT plain.example:443"), plain, "{case}");
        // What a rule says of itself counts before that.
        assert_eq!(
            said("CONNECT hard.example:443"),
            "deny rule by hard",
            "{case}"
        );
        let soft = if binds { "deny no_rule" } else { "audit rule" };
        assert_eq!(said("CONNECT soft.example:443"), soft, "{case}");
        let decision = decide_for(set, agent, None, "CONNECT some.example:443");
        let Decision::Allow(permit) = decision else {
            panic!("{case}: refused");
        };
        assert_eq!(permit.mode() == Mode::Enforce, binds, "{case}");
        assert!(
            permit.address([10, 0, 0, 1].into()).is_err(),
            "{case}: the class binds in audit mode too"
        );
    }
}

#[test]
fn audit_mode_reaches_addresses_only_where_the_document_says_so() {
    let set = policy(
        "version: 1
mode: audit
audit_addresses: true
denylist: [10.66.0.0/16]
rules:
  - {name: a, action: allow, agents: any, hosts: [a.example]}
  - {name: hard, action: allow, mode: enforce, agents: any, hosts: [hard.example]}
  - {name: no, action: deny, mode: enforce, agents: any, addresses: [10.77.0.0/16]}",
    );
    for (what, private) in [
        ("CONNECT a.example:443", "audit address_private"),
        ("CONNECT none.example:443", "audit address_private"),
        ("CONNECT hard.example:443", "deny address_private"),
    ] {
        check_addresses(
            &permit(&set, what),
            &[
                ("10.0.0.1", private),
                ("10.77.0.1", "deny address_denied"),
                ("169.254.169.254", "deny address_metadata"),
                ("fd00:ec2::254", "deny address_metadata"),
                ("1.1.1.1", "ok"),
            ],
        );
    }
    // It opens nothing where the document enforces, nor for another document.
    let set = build(&[
        "version: 1\nmode: audit\naudit_addresses: true",
        "version: 1\ntenant: t\nmode: audit\nrules:\n  - {name: a, action: allow, agents: any, hosts: [a.example]}",
    ])
    .expect("a policy");
    let Decision::Allow(permit) = decide_for(&set, "bot", Some("t"), "CONNECT a.example:443")
    else {
        panic!("the rule allows it");
    };
    check_addresses(&permit, &[("10.0.0.1", "deny address_private")]);
}

#[test]
fn modes_of_agents_are_written_once_and_for_names() {
    for (text, says) in [
        ("agent_modes: {}", "agent_modes: the list is empty"),
        ("agent_modes: {'*': audit}", "write `mode:`"),
        ("agent_modes: {'a b': audit}", "letters, digits"),
        ("agent_modes: {a: maybe}", "maybe"),
        ("agent_modes: {a: audit, a: enforce}", "\"a\" stands twice"),
        ("agent_modes:", "agent_modes"),
        ("audit_addresses: 1", "audit_addresses"),
    ] {
        let errors = build(&[&format!("version: 1\n{text}")]).expect_err(text);
        let error = errors[0].to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
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
        "0.yaml:18:5: rules[1].sni: `sni` says what an allowed request may do; take it out of the deny rule",
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
        "1.yaml: tenant: tenant \"t\" has a document already, 0.yaml; put the rules of both into one, or name in one of them the `audience` of the tokens that it is for"
    );
}

#[test]
fn texts_that_are_no_documents() {
    let rule = |members: &str| {
        format!("version: 1\nrules: [{{name: r, action: allow, agents: any, {members}}}]")
    };
    for (text, says) in [
        (String::new(), "missing field `version`"),
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
        (rule("hosts: [[a.example]]"), "expected a string"),
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
            "p.yaml:2:1: found a tab character",
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
        // `agentport.yaml` is the example of a configuration.
        if !name.ends_with(".yaml") || name.ends_with(".cases.yaml") || name == "agentport.yaml" {
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

/// The reference: it looks through every rule of every document as written,
/// and knows no index.
mod reference {
    use super::*;

    pub(super) struct Reference<'a> {
        /// In order of precedence, with the document's mode.
        pub(super) documents: Vec<(&'a PolicyDocument, Mode)>,
        pub(super) default_mode: Mode,
        pub(super) what: &'a EgressRequest,
        pub(super) who: Subject<'a>,
    }

    #[derive(Debug, PartialEq, Eq)]
    pub(super) enum Said {
        Deny,
        /// The rule, whether audit mode lets it pass, whether bytes may pass unseen.
        Allow(Option<String>, bool, bool),
    }

    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Speaks {
        No,
        Inside,
        Yes,
    }

    /// As `rank` of the index: `*`, a range, `*.suffix`, exact.
    type Nearness = (u8, usize);

    impl<'a> Reference<'a> {
        pub(super) fn decide(&self) -> Said {
            let mut modes: Vec<Mode> = self.denylisted(None);
            let mut unseen: Vec<Mode> = Vec::new();
            for (rule, mode) in self.rules(Action::Deny) {
                let named = hosts(rule)
                    .iter()
                    .any(|p| p.matches(&self.what.authority.host))
                    || self.literal().is_some_and(|ip| denies(rule, ip));
                match self.speaks(rule) {
                    Speaks::Yes if named => modes.push(mode),
                    Speaks::Inside if named => unseen.push(mode),
                    _ => {}
                }
            }
            let chosen = self.chosen();
            match &chosen {
                None => modes.push(self.no_rule()),
                Some((_, mode, Speaks::Inside)) => unseen.push(*mode),
                Some(_) => {}
            }
            if self.what.authority.port == 443 {
                modes.extend(&unseen);
            }
            let token = self.who.destinations.is_none_or(|list| {
                list.iter().any(|entry| match (entry, self.literal()) {
                    (Destination::Host(pattern), _) => pattern.matches(&self.what.authority.host),
                    (Destination::Range(range), Some(ip)) => range.contains(ip),
                    (Destination::Range(_), None) => true,
                })
            });
            if modes.contains(&Mode::Enforce) || !token {
                return Said::Deny;
            }
            Said::Allow(
                chosen.map(|(rule, _, _)| rule.name.clone()),
                !modes.is_empty(),
                !unseen.contains(&Mode::Enforce),
            )
        }

        /// Whether an address may be dialled for an allowed request: `None`
        /// for no, else whether only by audit mode.
        pub(super) fn address(&self, ip: IpAddr) -> Option<bool> {
            let Said::Allow(_, _, opaque) = self.decide() else {
                return None;
            };
            let mut modes = self.denylisted(Some(ip));
            for (rule, mode) in self.rules(Action::Deny) {
                let asked = match self.literal() {
                    // Asked when the request was decided.
                    Some(_) => false,
                    None => denies(rule, ip),
                };
                match self.speaks(rule) {
                    Speaks::Yes if asked => modes.push(mode),
                    Speaks::Inside if asked && opaque => modes.push(mode),
                    _ => {}
                }
            }
            let chosen = self.chosen();
            let mut helpers: Vec<&RuleDocument> = Vec::new();
            if let Some((rule, _, fit)) = &chosen {
                helpers.push(rule);
                if self.literal().is_none() {
                    let more = self.rules(Action::Allow).filter(|(other, _)| {
                        let speaks = self.speaks(other);
                        other.hosts.is_none()
                            && (speaks == Speaks::Yes
                                || (speaks == Speaks::Inside && *fit == Speaks::Inside))
                    });
                    helpers.extend(more.map(|(rule, _)| rule));
                }
            }
            let class = classify(ip);
            let admitted = helpers.iter().any(|rule| match ranges(rule).as_slice() {
                [] => {
                    class == AddressClass::Public
                        || (self.literal() == Some(ip)
                            && hosts(rule)
                                .contains(&HostPattern::Exact(self.what.authority.host.clone())))
                }
                ranges => ranges.iter().any(|range| {
                    range.contains(ip)
                        && (class != AddressClass::Metadata || range.net().prefix_len() == 32)
                }),
            });
            match (admitted, class, &chosen) {
                (true, ..) | (_, AddressClass::Public, None) => {}
                (_, AddressClass::Public, Some((_, mode, _))) => modes.push(*mode),
                (_, AddressClass::Metadata, _) => return None,
                (.., Some((rule, mode, _))) => {
                    let written = self.documents.iter().find(|(document, _)| {
                        document
                            .rules
                            .iter()
                            .any(|other| std::ptr::eq(other, *rule))
                    });
                    match written.and_then(|(document, _)| document.audit_addresses) {
                        Some(true) => modes.push(*mode),
                        _ => return None,
                    }
                }
                (.., None) => {
                    let own = self.documents.first().map(|(d, _)| d.tenant.as_ref());
                    let mut first = self
                        .documents
                        .iter()
                        .filter(|(d, _)| Some(d.tenant.as_ref()) == own);
                    match first.any(|(document, _)| document.audit_addresses == Some(true)) {
                        true => modes.push(Mode::Audit),
                        false => return None,
                    }
                }
            }
            let named = |entry: &Destination| matches!(entry, Destination::Host(p) if p.matches(&self.what.authority.host));
            let token = self.who.destinations.is_none_or(|list| {
                self.literal().is_some()
                    || list.iter().any(named)
                    || list
                        .iter()
                        .any(|entry| matches!(entry, Destination::Range(r) if r.contains(ip)))
            });
            (token && !modes.contains(&Mode::Enforce)).then_some(!modes.is_empty())
        }

        fn literal(&self) -> Option<IpAddr> {
            match self.what.authority.host {
                crate::egress::Host::Address(ip) => Some(ip),
                crate::egress::Host::Name(_) => None,
            }
        }

        fn rules(&self, action: Action) -> impl Iterator<Item = (&'a RuleDocument, Mode)> {
            self.documents.iter().flat_map(move |(document, mode)| {
                let rules = document.rules.iter().filter(move |r| r.action == action);
                rules.map(|rule| (rule, rule.mode.unwrap_or(*mode)))
            })
        }

        fn no_rule(&self) -> Mode {
            match self.documents.as_slice() {
                [] => self.default_mode,
                [(document, mode), ..] if document.tenant.is_some() => *mode,
                all if all.iter().any(|(_, mode)| *mode == Mode::Enforce) => Mode::Enforce,
                _ => Mode::Audit,
            }
        }

        fn denylisted(&self, ip: Option<IpAddr>) -> Vec<Mode> {
            let mut modes = Vec::new();
            for (document, mode) in &self.documents {
                for entry in &document.denylist {
                    let hit = match Destination::parse(entry).expect("an entry") {
                        Destination::Host(p) => {
                            ip.is_none() && p.matches(&self.what.authority.host)
                        }
                        Destination::Range(r) => {
                            ip.or(self.literal()).is_some_and(|ip| r.contains(ip))
                        }
                    };
                    if hit {
                        modes.push(*mode);
                    }
                }
            }
            modes
        }

        fn speaks(&self, rule: &RuleDocument) -> Speaks {
            let agent = self.who.agent.as_str();
            let agents = match &rule.agents {
                AnyOr::Any => true,
                AnyOr::List(list) => list.iter().any(|a| match a.strip_suffix('*') {
                    Some(prefix) => agent.starts_with(prefix),
                    None => agent == a,
                }),
            };
            let port = self.what.authority.port;
            let ports = match &rule.ports {
                None => port == 80 || port == 443,
                Some(AnyOr::Any) => true,
                Some(AnyOr::List(list)) => list.contains(&PortEntry::Number(port.into())),
            };
            if !agents || !ports {
                return Speaks::No;
            }
            let list = |list: &Option<AnyOr<String>>| match list {
                Some(AnyOr::List(list)) => Some(list.clone()),
                _ => None,
            };
            let (schemes, methods) = (list(&rule.schemes), list(&rule.methods));
            let paths = list(&rule.paths);
            let scheme_is =
                |name: &str| schemes.as_ref().is_none_or(|s| s.iter().any(|s| s == name));
            match &self.what.ask {
                Ask::Tunnel => {
                    let limited = methods.is_some() || paths.is_some();
                    match (rule.action, scheme_is("http"), scheme_is("https")) {
                        (Action::Allow, _, true) if !limited => Speaks::Yes,
                        (Action::Allow, ..) => Speaks::Inside,
                        (Action::Deny, _, false) => Speaks::No,
                        (Action::Deny, true, true) if !limited => Speaks::Yes,
                        (Action::Deny, ..) => Speaks::Inside,
                    }
                }
                Ask::Request {
                    scheme,
                    method,
                    path,
                } => {
                    let globs = |path_is: &dyn Fn(&crate::egress::PathGlob) -> bool| {
                        paths.as_ref().is_none_or(|list| {
                            list.iter()
                                .any(|raw| path_is(&raw.parse().expect("a glob")))
                        })
                    };
                    let path_fits = match rule.action {
                        Action::Allow => globs(&|glob| glob.matches_all(path)),
                        Action::Deny => globs(&|glob| glob.matches_any(path)),
                    };
                    let method_fits =
                        methods.is_none_or(|list| list.iter().any(|m| m == method.as_str()));
                    match scheme_is(scheme.as_str()) && method_fits && path_fits {
                        true => Speaks::Yes,
                        false => Speaks::No,
                    }
                }
            }
        }

        /// How nearly an allow rule names the target; `None` where it does not.
        fn nearness(&self, rule: &RuleDocument) -> Option<Nearness> {
            let ranges = ranges(rule);
            if let Some(ip) = self.literal()
                && !ranges.is_empty()
                && !ranges.iter().any(|range| range.contains(ip))
            {
                return None;
            }
            if rule.hosts.is_none() {
                return self.literal().map(|_| (1, 0));
            }
            let matching = hosts(rule)
                .into_iter()
                .filter(|p| p.matches(&self.what.authority.host));
            matching
                .map(|pattern| match pattern {
                    HostPattern::Any => (0, 0),
                    HostPattern::Below(name) => (2, name.as_str().len()),
                    HostPattern::Exact(_) => (3, 0),
                })
                .max()
        }

        fn chosen(&self) -> Option<(&'a RuleDocument, Mode, Speaks)> {
            let best = |wanted: Speaks, by_name: bool| {
                let mut best: Option<(Nearness, &RuleDocument, Mode)> = None;
                for (rule, mode) in self.rules(Action::Allow) {
                    let nearness = match by_name {
                        true => self.nearness(rule),
                        false => {
                            (rule.hosts.is_none() && self.literal().is_none()).then_some((0, 0))
                        }
                    };
                    let Some(nearness) = nearness.filter(|_| self.speaks(rule) == wanted) else {
                        continue;
                    };
                    if best.as_ref().is_none_or(|(known, ..)| nearness > *known) {
                        best = Some((nearness, rule, mode));
                    }
                }
                best.map(|(_, rule, mode)| (rule, mode, wanted))
            };
            let inside_helps = self.what.authority.port != 443;
            let whole = best(Speaks::Yes, true);
            let inside = best(Speaks::Inside, true);
            let by_address = best(Speaks::Yes, false);
            match inside {
                Some(_) if inside_helps => whole.or(inside),
                _ => whole
                    .or(by_address)
                    .or(inside)
                    .or_else(|| best(Speaks::Inside, false)),
            }
        }
    }

    fn hosts(rule: &RuleDocument) -> Vec<HostPattern> {
        let list = rule.hosts.iter().flatten();
        list.map(|raw| raw.parse().expect("a pattern")).collect()
    }

    fn ranges(rule: &RuleDocument) -> Vec<AddressRange> {
        let list = rule.addresses.iter().flatten();
        list.map(|raw| AddressRange::parse(raw).expect("a range"))
            .collect()
    }

    /// Whether a deny rule names an address, as a range or among its hosts.
    fn denies(rule: &RuleDocument, ip: IpAddr) -> bool {
        ranges(rule).iter().any(|range| range.contains(ip))
            || hosts(rule).contains(&HostPattern::Exact(crate::egress::Host::Address(ip)))
    }
}

const HOSTS: [&str; 8] = [
    "ex",
    "a.ex",
    "b.ex",
    "x.a.ex",
    "y.x.a.ex",
    "10.0.0.1",
    "8.8.8.8",
    "169.254.169.254",
];
const PATTERNS: [&str; 9] = [
    "*", "*.ex", "*.a.ex", "*.x.a.ex", "ex", "a.ex", "x.a.ex", "10.0.0.1", "8.8.8.8",
];
const RANGES: [&str; 6] = [
    "10.0.0.0/8",
    "10.0.0.1/32",
    "8.8.0.0/16",
    "169.254.0.0/16",
    "169.254.169.254/32",
    "0.0.0.0/0",
];
const ADDRESSES: [&str; 5] = [
    "10.0.0.1",
    "10.0.0.2",
    "8.8.8.8",
    "9.9.9.9",
    "169.254.169.254",
];
const AGENTS: [&str; 3] = ["bot", "ci-1", "ci-2"];

fn some_of(from: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(prop::sample::select(from).prop_map(str::to_owned), 1..3)
}

fn any_or(from: &'static [&'static str]) -> impl Strategy<Value = Option<AnyOr<String>>> {
    prop_oneof![
        3 => Just(None),
        1 => Just(Some(AnyOr::Any)),
        2 => some_of(from).prop_map(|list| Some(AnyOr::List(list))),
    ]
}

fn some_mode() -> impl Strategy<Value = Option<Mode>> {
    prop_oneof![3 => Just(None), 1 => Just(Some(Mode::Enforce)), 1 => Just(Some(Mode::Audit))]
}

fn a_rule() -> impl Strategy<Value = RuleDocument> {
    let agents = prop_oneof![
        Just(AnyOr::Any),
        some_of(&["bot", "ci-1", "ci-*", "c*"]).prop_map(AnyOr::List),
    ];
    let places = prop_oneof![
        3 => some_of(&PATTERNS).prop_map(|hosts| (Some(hosts), None)),
        1 => some_of(&RANGES).prop_map(|ranges| (None, Some(ranges))),
        1 => (some_of(&PATTERNS), some_of(&RANGES)).prop_map(|(h, r)| (Some(h), Some(r))),
    ];
    let ports = prop_oneof![
        2 => Just(None),
        1 => Just(Some(AnyOr::Any)),
        1 => prop::collection::vec(prop::sample::select(vec![80u64, 443, 8080]), 1..3)
            .prop_map(|list| Some(AnyOr::List(list.into_iter().map(PortEntry::Number).collect()))),
    ];
    let action = prop_oneof![2 => Just(Action::Allow), 1 => Just(Action::Deny)];
    (
        (action, agents, places, ports, some_mode()),
        (
            any_or(&["http", "https"]),
            any_or(&["GET", "PUT"]),
            any_or(&["/a/**", "/b"]),
        ),
    )
        .prop_map(
            |((action, agents, (hosts, addresses), ports, mode), limits)| RuleDocument {
                name: String::new(),
                action,
                agents,
                hosts,
                addresses,
                ports,
                schemes: limits.0,
                methods: limits.1,
                paths: limits.2,
                mode,
                tls: None,
                sni: None,
                rpc_methods: None,
                ech: None,
                refusal: None,
                limits: None,
                require: None,
            },
        )
}

fn a_document(tenant: Option<&'static str>) -> impl Strategy<Value = PolicyDocument> {
    let denied = prop::sample::select(vec!["b.ex", "*.x.a.ex", "10.0.0.2", "9.9.0.0/16"]);
    let denylist = prop::collection::vec(denied.prop_map(str::to_owned), 0..2);
    let agents = prop::sample::select(vec!["bot", "ci-1", "ci-*", "c*"]).prop_map(str::to_owned);
    let mode = prop_oneof![Just(Mode::Enforce), Just(Mode::Audit)];
    let agent_modes = prop::collection::btree_map(agents, mode, 0..3);
    let audit_addresses = prop::sample::select(vec![None, None, Some(false), Some(true)]);
    let rules = prop::collection::vec(a_rule(), 0..7);
    (some_mode(), agent_modes, audit_addresses, denylist, rules).prop_map(
        move |(mode, agent_modes, audit_addresses, denylist, mut rules)| {
            let agent_modes: Vec<_> = agent_modes.into_iter().collect();
            for (at, rule) in rules.iter_mut().enumerate() {
                rule.name = format!("{}{at}", tenant.unwrap_or("global"));
            }
            PolicyDocument {
                version: 1,
                tenant: tenant.map(str::to_owned),
                audience: None,
                mode,
                agent_modes: (!agent_modes.is_empty()).then_some(AgentModes(agent_modes)),
                audit_addresses,
                denylist,
                limits: None,
                rules,
            }
        },
    )
}

fn a_request() -> impl Strategy<Value = EgressRequest> {
    let ask = prop_oneof![
        Just("CONNECT".to_owned()),
        (
            prop::sample::select(vec!["GET", "PUT", "POST"]),
            prop::sample::select(vec!["http", "https"]),
        )
            .prop_map(|(method, scheme)| format!("{method} {scheme}://")),
    ];
    let path = prop::sample::select(vec!["/a", "/a/x", "/b", "/b/..%2fa/x", "/c"]);
    let port = prop::sample::select(vec![80u16, 443, 8080]);
    (ask, prop::sample::select(HOSTS.to_vec()), port, path).prop_map(|(ask, host, port, path)| {
        match ask.strip_suffix("://") {
            None => request(&format!("CONNECT {host}:{port}")),
            Some(_) => request(&format!("{ask}{host}:{port}{path}")),
        }
    })
}

fn some_destinations() -> impl Strategy<Value = Option<Vec<Destination>>> {
    let entry = prop::sample::select(vec!["*.ex", "a.ex", "10.0.0.0/8", "8.8.8.8", "*"]);
    let list = prop::collection::vec(entry.prop_map(|raw| raw.parse().expect("an entry")), 0..3);
    prop_oneof![2 => Just(None), 1 => list.prop_map(Some)]
}

fn a_case() -> impl Strategy<Value = (Vec<PolicyDocument>, Mode, Case)> {
    let documents = (
        prop::collection::vec(a_document(None), 0..3),
        prop::option::of(a_document(Some("acme"))),
    )
        .prop_map(|(mut documents, tenant)| {
            documents.extend(tenant);
            documents
        });
    let mode = prop_oneof![2 => Just(Mode::Enforce), 1 => Just(Mode::Audit)];
    let case = (
        prop::sample::select(AGENTS.to_vec()),
        prop::sample::select(vec![None, Some("acme")]),
        some_destinations(),
        a_request(),
    )
        .prop_map(|(agent, tenant, destinations, what)| Case {
            agent: AgentId::parse(agent).expect("an agent"),
            tenant: tenant.map(|raw| TenantId::parse(raw).expect("a tenant")),
            destinations,
            what,
        });
    (documents, mode, case)
}

#[derive(Clone, Debug)]
struct Case {
    agent: AgentId,
    tenant: Option<TenantId>,
    destinations: Option<Vec<Destination>>,
    what: EgressRequest,
}

impl Case {
    fn who(&self) -> Subject<'_> {
        Subject {
            agent: &self.agent,
            tenant: self.tenant.as_ref(),
            destinations: self.destinations.as_deref(),
            audiences: None,
        }
    }
}

fn set_of(documents: &[PolicyDocument], mode: Mode) -> PolicySet {
    let named = documents.iter().enumerate();
    let named = named.map(|(at, d)| (SourceName::from(format!("{at}")), d.clone()));
    PolicySet::build(named.collect(), mode).expect("a policy")
}

/// The mode of a document for an agent: the name, the longest beginning of it,
/// the document, the gateway.
fn mode_of(document: &PolicyDocument, agent: &AgentId, default_mode: Mode) -> Mode {
    let agents = document
        .agent_modes
        .as_ref()
        .map_or(&[][..], |modes| &modes.0);
    let exact = agents.iter().find(|(name, _)| name == agent.as_str());
    let begins = |(entry, _): &&(String, Mode)| {
        let prefix = entry.strip_suffix('*');
        prefix.is_some_and(|prefix| agent.as_str().starts_with(prefix))
    };
    let longest = agents
        .iter()
        .filter(begins)
        .max_by_key(|(entry, _)| entry.len());
    let own = exact.or(longest).map(|(_, mode)| *mode);
    own.or(document.mode).unwrap_or(default_mode)
}

/// Whether a request may pass, and the addresses that may be dialled for it,
/// without audit mode's help. A tunnel counts where it may carry anything: what
/// travels in another is judged, and so counted, as requests.
fn passes(set: &PolicySet, case: &Case) -> (bool, Vec<&'static str>) {
    match set.decide(&case.who(), &case.what) {
        Decision::Allow(permit)
            if permit.audited_denial().is_none() && permit.opaque_denial().is_none() =>
        {
            let dialled =
                |raw: &&str| matches!(permit.address(raw.parse().expect("an address")), Ok(None));
            (true, ADDRESSES.into_iter().filter(dialled).collect())
        }
        _ => (false, Vec::new()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        // A failure prints its smallest case; what it teaches belongs above.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_index_says_what_looking_through_all_rules_says((documents, mode, case) in a_case()) {
        let set = set_of(&documents, mode);
        let known = case.tenant.is_some() && documents.iter().any(|d| d.tenant.is_some());
        let mut apply: Vec<_> = documents
            .iter()
            .filter(|d| d.tenant.is_none() || known)
            .map(|d| (d, mode_of(d, &case.agent, mode)))
            .collect();
        apply.sort_by_key(|(d, _)| d.tenant.is_none());
        let reference = reference::Reference {
            documents: apply,
            default_mode: mode,
            what: &case.what,
            who: case.who(),
        };
        let decision = set.decide(&case.who(), &case.what);
        let said = match &decision {
            Decision::Deny(_) => reference::Said::Deny,
            Decision::Allow(permit) => reference::Said::Allow(
                permit.rule().map(|rule| rule.to_string()),
                permit.audited_denial().is_some(),
                permit.opaque(),
            ),
        };
        prop_assert_eq!(said, reference.decide());
        if let Decision::Allow(permit) = &decision {
            for address in ADDRESSES {
                let address: IpAddr = address.parse().expect("an address");
                let said = permit.address(address).ok().map(|audited| audited.is_some());
                prop_assert_eq!(said, reference.address(address), "{}", address);
            }
        }
        let explained = set.explain(&case.who(), &case.what, &[]);
        if matches!(decision, Decision::Deny(_)) {
            prop_assert_eq!(explained.verdict, Verdict::Deny);
        }
    }

    #[test]
    fn a_deny_rule_never_widens((documents, mode, case) in a_case(), mut rule in a_rule()) {
        let before = passes(&set_of(&documents, mode), &case);
        let mut more = documents;
        rule.name = "more".to_owned();
        rule.action = Action::Deny;
        for document in &mut more {
            document.rules.insert(0, rule.clone());
        }
        let after = passes(&set_of(&more, mode), &case);
        prop_assert!(before.0 || !after.0);
        prop_assert!(after.1.iter().all(|address| before.1.contains(address)));
    }

    #[test]
    fn a_token_never_widens((documents, mode, case) in a_case()) {
        let set = set_of(&documents, mode);
        let free = Case { destinations: None, ..case.clone() };
        let (narrow, wide) = (passes(&set, &case), passes(&set, &free));
        prop_assert!(wide.0 || !narrow.0);
        prop_assert!(narrow.1.iter().all(|address| wide.1.contains(address)));
    }

    #[test]
    fn nothing_passes_without_an_allow_rule((documents, mode, case) in a_case()) {
        let mut documents = documents;
        for document in &mut documents {
            document.rules.retain(|rule| rule.action == Action::Deny);
        }
        prop_assert!(!passes(&set_of(&documents, mode), &case).0);
    }

    #[test]
    fn another_tenants_document_changes_nothing((documents, mode, case) in a_case(), mut other in a_document(Some("other"))) {
        let before = set_of(&documents, mode);
        other.rules.retain(|rule| !rule.name.is_empty());
        let mut more = documents.clone();
        more.push(other);
        let after = set_of(&more, mode);
        // Without a document a tenant is everybody until one has a document.
        let known = documents.iter().any(|d| d.tenant.is_some());
        if case.tenant.is_none() || known {
            prop_assert_eq!(
                said(&before.decide(&case.who(), &case.what)),
                said(&after.decide(&case.who(), &case.what))
            );
        } else {
            prop_assert!(matches!(after.decide(&case.who(), &case.what), Decision::Deny(_)));
        }
    }

    #[test]
    fn a_set_that_takes_over_decides_as_one_made_anew((documents, mode, case) in a_case(), other in a_document(Some("acme"))) {
        let check = |at: usize, d: &PolicyDocument| {
            CheckedDocument::check(&SourceName::from(format!("{at}")), d, mode).expect("a document")
        };
        let checked: Vec<_> = documents.iter().enumerate().map(|(at, d)| check(at, d)).collect();
        let first = PolicySet::assemble(checked.clone(), false, mode, None).expect("a policy");
        // The tenant's document is another one, or is there for the first time.
        let mut next: Vec<_> = checked.into_iter().filter(|d| d.tenant().is_none()).collect();
        next.push(check(9, &other));
        let over = PolicySet::assemble(next.clone(), false, mode, Some(&first)).expect("a policy");
        let anew = PolicySet::assemble(next, false, mode, None).expect("a policy");
        prop_assert_eq!(over.digest(), anew.digest());
        prop_assert_eq!(
            said(&over.decide(&case.who(), &case.what)),
            said(&anew.decide(&case.who(), &case.what))
        );
    }

    #[test]
    fn the_order_of_documents_does_not_matter((documents, mode, case) in a_case()) {
        let named = |(at, d): (usize, &PolicyDocument)| (SourceName::from(format!("{at}")), d.clone());
        let mut shuffled: Vec<_> = documents.iter().enumerate().map(named).collect();
        shuffled.reverse();
        let (one, other) = (set_of(&documents, mode), PolicySet::build(shuffled, mode).expect("a policy"));
        prop_assert_eq!(one.digest(), other.digest());
        let said_by = |set: &PolicySet| said(&set.decide(&case.who(), &case.what));
        prop_assert_eq!(said_by(&one), said_by(&other));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
        for format in [Format::Yaml, Format::Json] {
            let document = PolicyDocument::parse(&"p".into(), format, &text);
            prop_assert!(document.is_err() || text.contains("version"));
        }
        let _ = locate(&text, &["rules[0].hosts"]);
    }
}

#[test]
fn limits_are_those_of_the_documents_and_of_the_rule() {
    let text = r#"
version: 1
tenant: acme
limits:
  tenant: {requests: 1000/m, bytes_down: 10GiB/d, when_away: deny}
  agent: {concurrent: 5}
rules:
  - {name: models, action: allow, agents: any, hosts: ["a.example"], limits: {requests: 100/m, bytes_up: 1GiB/d, per: token}}
  - {name: free, action: allow, agents: any, hosts: ["b.example"]}
"#;
    let source = SourceName::from("acme.yaml");
    let document = PolicyDocument::parse(&source, Format::Yaml, text).expect("a document");
    let set = PolicySet::build(vec![(source, document)], Mode::Enforce).expect("a set");
    let tenant = TenantId::parse("acme").expect("a tenant");
    let agent = AgentId::parse("bot").expect("an agent");
    let limits = |host: &str| {
        let who = Subject {
            agent: &agent,
            tenant: Some(&tenant),
            destinations: None,
            audiences: None,
        };
        let request = EgressRequest {
            authority: Authority::parse(&format!("{host}:443")).expect("an authority"),
            ask: Ask::Tunnel,
        };
        match set.decide(&who, &request) {
            Decision::Allow(permit) => permit
                .limits()
                .map(|(_, limit)| {
                    let (name, amount) = (limit.name(), limit.amount());
                    format!("{name} {amount} {:?} {:?}", limit.per(), limit.when_away())
                })
                .collect::<Vec<_>>(),
            Decision::Deny(denied) => panic!("{denied}"),
        }
    };
    let every = [
        "acme/agent.concurrent 5 at once Agent Local",
        "acme/tenant.requests 1000/m Tenant Deny",
        "acme/tenant.bytes_down 10737418240/d Tenant Deny",
    ];
    assert_eq!(limits("b.example"), every);
    let own = [
        "acme/rule/models.requests 100/m Token Local",
        "acme/rule/models.bytes_up 1073741824/d Token Local",
    ];
    assert_eq!(limits("a.example"), [&every[..], &own[..]].concat());
}

#[test]
fn mistakes_in_limits_say_what_to_write() {
    let rule = |limits: &str| {
        format!(
            "version: 1\nrules:\n  - {{name: r, action: allow, agents: any, hosts: [\"a.example\"], limits: {limits}}}\n"
        )
    };
    let document = |limits: &str| format!("version: 1\nlimits: {limits}\nrules: []\n");
    for (text, expected) in [
        (rule("{}"), "rules[0].limits: no limit is written"),
        (rule("{per: agent}"), "rules[0].limits: no limit is written"),
        (rule("{requests: 100}"), "rules[0].limits.requests"),
        (rule("{requests: 100/x}"), "write \"s\", \"m\", \"h\" or \"d\""),
        (rule("{bytes_up: 1TB/d}"), "rules[0].limits.bytes_up"),
        (rule("{concurrent: 0}"), "write a deny rule for that"),
        (document("{}"), "limits: nobody is limited"),
        (
            document("{agent: {requests: 1/s, per: token}}"),
            "limits.agent.per: `per` is for rules",
        ),
        (
            "version: 1\nrules:\n  - {name: r, action: deny, agents: any, hosts: [\"a.example\"], limits: {requests: 1/s}}\n".to_owned(),
            "take it out of the deny rule",
        ),
    ] {
        let source = SourceName::from("p.yaml");
        let said = match PolicyDocument::parse(&source, Format::Yaml, &text) {
            Err(error) => error.to_string(),
            Ok(document) => PolicySet::build(vec![(source, document)], Mode::Enforce)
                .expect_err(&text)
                .iter()
                .map(ToString::to_string)
                .collect(),
        };
        assert!(said.contains(expected), "{text}: {said}");
    }
    for wrong in [
        "{requests: }",
        "{request: 1/s}",
        "{requests: 1/s, per: everybody}",
    ] {
        let source = SourceName::from("p.yaml");
        let taken =
            PolicyDocument::parse(&source, Format::Yaml, &rule(wrong)).is_ok_and(|document| {
                PolicySet::build(vec![(source, document)], Mode::Enforce).is_ok()
            });
        assert!(!taken, "{wrong}");
    }
}

const RPC: &str = "version: 1
rules:
  - {name: reads, action: allow, agents: any, hosts: [rpc.example], ports: [80], schemes: [http], paths: [/rpc], rpc_methods: ['eth_get*', eth_call]}
  - {name: writes, action: allow, agents: [signer], hosts: [rpc.example], ports: [80], schemes: [http], paths: [/rpc], rpc_methods: [eth_send]}
  - {name: never, action: deny, agents: any, hosts: [rpc.example], rpc_methods: [eth_getSecret]}
";

#[test]
fn cases_say_what_a_body_calls() {
    let set = policy(RPC);
    let file = "cases:
  - {name: a call, agent: bot, url: 'http://rpc.example/rpc', method: POST, rpc_methods: [eth_call], expect: allow, rule: reads}
  - {name: a batch, agent: bot, url: 'http://rpc.example/rpc', method: POST, rpc_methods: [eth_call, eth_getBalance], expect: allow, rule: reads}
  - {name: a batch that no rule names whole, agent: signer, url: 'http://rpc.example/rpc', rpc_methods: [eth_call, eth_send], expect: deny, reason: no_rule}
  - {name: deny wins, agent: bot, url: 'http://rpc.example/rpc', rpc_methods: [eth_call, eth_getSecret], expect: deny, rule: never}
  - {name: no body, agent: bot, url: 'http://rpc.example/rpc', rpc_methods: [], expect: deny, reason: no_rule}
  - {name: what is not told, agent: bot, url: 'http://rpc.example/rpc', expect: deny, rule: never}
";
    let source = SourceName::from("c");
    let cases = CaseFile::parse(&source, Format::Yaml, file).expect("cases");
    let outcomes = cases.run(&set);
    for outcome in &outcomes {
        assert!(
            outcome.failures.is_empty(),
            "{}: {:?}",
            outcome.name,
            outcome.failures
        );
    }
    let coverage = Coverage::of(&set, &outcomes);
    let untouched: Vec<&str> = coverage.untouched.iter().map(|rule| &*rule.name).collect();
    assert_eq!(
        untouched,
        ["writes"],
        "a case touches a rule by what it calls"
    );

    let long = "m".repeat(257);
    for (case, members, wrong) in [
        (
            "a tunnel hides them",
            "connect: 'rpc.example:80', rpc_methods: [a]".to_owned(),
            "c:2:5: cases[0].rpc_methods: a tunnel hides them; say that the inside is seen, or ask for an http URL",
        ),
        (
            "a name that no gateway reads",
            format!("url: 'http://rpc.example/', rpc_methods: [{long}]"),
            "the name of a JSON-RPC method is longer than 256 bytes",
        ),
    ] {
        let file = format!("cases:\n  - {{name: a, agent: b, {members}, expect: deny}}\n");
        let errors = CaseFile::parse(&source, Format::Yaml, &file).expect_err(case);
        let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 1, "{case}: {said:?}");
        let end = wrong.rsplit(": ").next().expect("a message");
        assert!(said[0].ends_with(end), "{case}: {said:?}");
    }
}

#[test]
fn an_explanation_tells_what_the_body_calls_and_what_differs() {
    let set = policy(RPC);
    let agent = AgentId::parse("bot").expect("an agent");
    let who = Subject {
        agent: &agent,
        tenant: None,
        destinations: None,
        audiences: None,
    };
    let explain = |calls: Calls<'_>| {
        let what = request("POST http://rpc.example/rpc");
        set.explain_calls(&who, &what, calls, &[])
    };
    let names = |list: &[&str]| {
        list.iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    let rpc = |explanation: &Explanation| {
        let check = explanation.checks.iter().find(|check| check.step == "rpc");
        check.map(|check| (check.outcome, check.detail.clone()))
    };
    let allowed = explain(Calls::Seen(&names(&["eth_call"])));
    assert_eq!(allowed.verdict, Verdict::Allow);
    assert_eq!(
        rpc(&allowed),
        Some((CheckOutcome::Passed, "the body calls eth_call".to_owned()))
    );
    let refused = explain(Calls::Seen(&names(&["eth_send", "eth_call"])));
    let nearest = refused.nearest.as_ref().expect("a rule that is near");
    assert_eq!(&*nearest.rule.name, "reads");
    let [differs] = nearest.differs.as_slice() else {
        panic!("{:?}", nearest.differs);
    };
    assert_eq!(
        (differs.what, &*differs.rule, &*differs.request),
        ("rpc_methods", "eth_get*, eth_call", "eth_send, eth_call")
    );
    let untold = explain(Calls::Unseen);
    assert_eq!(
        rpc(&untold).map(|(outcome, _)| outcome),
        Some(CheckOutcome::Later)
    );
    let elsewhere = set.explain(&who, &request("GET http://other.example/"), &[]);
    assert_eq!(rpc(&elsewhere), None, "no rule asks for the body there");
}

#[test]
fn a_diff_tells_calls_apart() {
    let with = |rules: &str| {
        let line = |rule: &str| {
            format!(
                "  - {{{rule}, agents: any, hosts: [r.example], ports: [80], schemes: [http]}}\n"
            )
        };
        let text: String = rules
            .split(" / ")
            .filter(|rule| !rule.is_empty())
            .map(line)
            .collect();
        policy(&format!("version: 1\nrules:\n{text}"))
    };
    for (case, old, new, expected) in [
        (
            "nothing",
            "name: a, action: allow, rpc_methods: [x]",
            "name: b, action: allow, rpc_methods: [x]",
            vec![],
        ),
        (
            "a call more",
            "name: a, action: allow, rpc_methods: [x]",
            "name: a, action: allow, rpc_methods: [x, y]",
            vec![
                "Widens every agent to r.example, port 80: http, any method calling a batch of x and y, y; was refused (no_rule), now allowed by \"a\"",
            ],
        ),
        (
            "two rules that become one let batches pass",
            "name: a, action: allow, rpc_methods: [x] / name: b, action: allow, rpc_methods: ['y*']",
            "name: c, action: allow, rpc_methods: [x, 'y*']",
            vec![
                "Widens every agent to r.example, port 80: http, any method calling a batch of x and y*; was refused (no_rule), now allowed by \"c\"",
            ],
        ),
        (
            "a call that is refused",
            "name: a, action: allow",
            "name: a, action: allow / name: no, action: deny, rpc_methods: [x]",
            vec![
                "Narrows every agent to r.example, port 80: http, any method calling bodies that are no JSON-RPC, x; was allowed by \"a\", now refused by \"no\" (rule)",
            ],
        ),
        (
            "any body",
            "name: a, action: allow, rpc_methods: [x]",
            "name: a, action: allow",
            vec![
                "Widens every agent to r.example, port 80: http, any method calling bodies that are no JSON-RPC, other calls; was refused (no_rule), now allowed by \"a\"",
            ],
        ),
    ] {
        let diff = with(old).diff(&with(new)).expect(case);
        let said: Vec<_> = diff
            .changes
            .iter()
            .map(|change| format!("{:?} {change}", change.direction))
            .collect();
        assert_eq!(said, expected, "{case}");
    }
}

#[test]
fn a_replay_and_learning_use_the_calls_that_were_recorded() {
    let line = |calls: Option<&[&str]>| {
        let mut record = serde_json::json!({
            "ts": "2026-11-01T00:00:00.000000Z", "event": "request", "request_id": "r",
            "agent_id": "bot", "tenant": null, "method": "POST", "scheme": "http",
            "destination_host": "rpc.example", "destination_port": 80,
            "destination_ip": "93.184.215.14", "path": "/rpc", "action_allowed": true,
            "reason": "ok", "would_deny": null, "policy_version": "v", "count": 1,
        });
        if let Some(calls) = calls {
            record["rpc_methods"] = calls.into();
        }
        record.to_string()
    };
    let (old, new) = (policy(RPC), policy("version: 1"));
    let replayed = |calls| {
        let mut replay = Replay::new(&old, &new);
        replay.line(line(calls).as_bytes());
        replay.finish().changes.len()
    };
    assert_eq!(replayed(Some(&["eth_call"])), 1, "allow becomes deny");
    assert_eq!(replayed(Some(&["eth_send"])), 0, "it was refused already");

    let learned = |records: &[Option<&[&str]>]| {
        let mut learner = Learner::new(LearnOptions::default());
        for calls in records {
            learner.line(&"log", line(*calls).as_bytes());
        }
        let learned = learner.finish().expect("a policy");
        learned.rules[0].rpc_methods.clone()
    };
    assert_eq!(
        learned(&[Some(&["eth_call"]), Some(&["eth_send", "eth_call"])]),
        ["eth_call", "eth_send"]
    );
    for (case, records) in [
        ("one does not tell", &[Some(&["eth_call"][..]), None][..]),
        ("a name that a rule cannot have", &[Some(&["a b"][..])]),
        ("a name that would be a pattern", &[Some(&["eth_*"][..])]),
        ("an empty list", &[Some(&["eth_call"][..]), Some(&[][..])]),
    ] {
        assert!(learned(records).is_empty(), "{case}");
    }
}

#[test]
fn an_agent_is_told_which_calls_it_may_make() {
    let set = policy(RPC);
    let agent = AgentId::parse("bot").expect("an agent");
    let reach = set.reach(&Subject {
        agent: &agent,
        tenant: None,
        destinations: None,
        audiences: None,
    });
    let reach = reach.expect("everybody");
    let text = reach.to_string();
    for line in [
        "- http rpc.example port 80 path /rpc calling eth_get*, eth_call (rule \"reads\")",
        "- rpc.example port 80, 443 calling eth_getSecret (rule \"never\")",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("eth_send"), "another agent's: {text}");
    let json = serde_json::to_value(&reach).expect("JSON");
    assert_eq!(json["allow"][0]["rpc_methods"][0], "eth_get*");
}

#[test]
fn limits_are_shown_to_whoever_asks_what_holds() {
    let set = policy(
        "version: 1
limits:
  agent: {requests: 100/m, bytes_down: 10GiB/d, when_away: deny}
  tenant: {concurrent: 5, connections: 10/s burst 20}
rules:
  - {name: api, action: allow, agents: any, hosts: [a.example], limits: {bytes_up: 1536KiB/h, per: token}}
  - {name: trial, action: allow, mode: audit, agents: any, hosts: [b.example], limits: {requests: 1/s}}
",
    );
    let agent = AgentId::parse("bot").expect("an agent");
    let who = Subject {
        agent: &agent,
        tenant: None,
        destinations: None,
        audiences: None,
    };
    let shown = |line: &str| {
        let explanation = set.explain(&who, &request(line), &[]);
        let limits = explanation.limits.iter().map(ToString::to_string);
        limits.collect::<Vec<_>>()
    };
    let every = [
        "requests 100/m per agent, refused while Redis is away (policy/agent.requests)",
        "bytes_down 10GiB/d per agent, refused while Redis is away (policy/agent.bytes_down)",
        "connections 10/s burst 20 per tenant (policy/tenant.connections)",
        "concurrent 5 at once per tenant (policy/tenant.concurrent)",
    ];
    let own = "bytes_up 1536KiB/h per token (rule/api.bytes_up)";
    assert_eq!(
        shown("CONNECT a.example:443"),
        [&every[..], &[own]].concat()
    );
    assert_eq!(
        shown("GET http://a.example/"),
        [&every[..2], &every[3..], &[own]].concat(),
        "no tunnel is opened"
    );
    let trial = shown("GET http://b.example/");
    assert_eq!(
        trial.last().map(String::as_str),
        Some("requests 1/s per agent, on trial (rule/trial.requests)")
    );
    assert!(shown("GET http://c.example/").is_empty(), "it is refused");
    let explanation = set.explain(&who, &request("CONNECT a.example:443"), &[]);
    let text = explanation.to_string();
    assert!(
        text.contains("\nlimit: concurrent 5 at once per tenant (policy/tenant.concurrent)\n"),
        "{text}"
    );
    let json = serde_json::to_value(&explanation).expect("JSON");
    assert_eq!(json["limits"][0]["amount"], "100/m");
    assert_eq!(json["limits"][0]["per"], "agent");

    let reach = set.reach(&who).expect("everybody");
    let text = reach.to_string();
    for line in [
        "- a.example port 80, 443, at most bytes_up 1536KiB/h per token (rule \"api\")",
        "At most, in all: requests 100/m per agent; bytes_down 10GiB/d per agent; connections 10/s burst 20 per tenant; concurrent 5 at once per tenant.",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let json = serde_json::to_value(&reach).expect("JSON");
    assert_eq!(
        json["allow"][0]["limits"][0],
        "bytes_up 1536KiB/h per token"
    );
}

#[test]
fn a_diff_tells_limits_that_change() {
    let with = |head: &str, name: &str, limits: &str| {
        let limits = match limits {
            "" => String::new(),
            limits => format!(", limits: {{{limits}}}"),
        };
        policy(&format!(
            "version: 1\n{head}\nrules: [{{name: {name}, action: allow, agents: [bot], hosts: [a.example], ports: [80], schemes: [http]{limits}}}]\n"
        ))
    };
    let rule = |limits| with("", "a", limits);
    for (case, old, new, expected) in [
        (
            "nothing",
            rule("requests: 1/s"),
            with("", "b", "requests: 1/s"),
            vec![],
        ),
        (
            "a limit more",
            rule(""),
            rule("requests: 100/m"),
            vec![
                "Narrows bot to a.example, port 80: http; was allowed by \"a\" with no limit, now allowed by \"a\" with requests 100/m per agent",
                "Narrows bot to a.example, port 80: tunnels; was allowed by \"a\", in clear text only with no limit, now allowed by \"a\", in clear text only with requests 100/m per agent",
            ],
        ),
        (
            "larger and smaller",
            rule("requests: 100/m, bytes_up: 1MiB/h"),
            rule("requests: 50/m, bytes_up: 2MiB/h"),
            vec![
                "Widens bot to a.example, port 80: http; was allowed by \"a\" with bytes_up 1MiB/h per agent and requests 100/m per agent, now allowed by \"a\" with bytes_up 2MiB/h per agent and requests 50/m per agent",
                "Widens bot to a.example, port 80: tunnels; was allowed by \"a\", in clear text only with bytes_up 1MiB/h per agent and requests 100/m per agent, now allowed by \"a\", in clear text only with bytes_up 2MiB/h per agent and requests 50/m per agent",
            ],
        ),
        (
            "of a document",
            with(
                "limits: {agent: {requests: 10/s}, token: {concurrent: 3}}",
                "a",
                "",
            ),
            with("limits: {agent: {requests: 600/m}}", "a", ""),
            vec![
                "Widens every agent to *, limits of each agent; was requests 10/s per agent, now requests 600/m per agent",
                "Widens every agent to *, limits of each token; was concurrent 3 at once per token, now no limit",
            ],
        ),
        (
            "what happens without Redis",
            with("limits: {tenant: {requests: 10/s}}", "a", ""),
            with(
                "limits: {tenant: {requests: 10/s, when_away: deny}}",
                "a",
                "",
            ),
            vec![
                "Narrows every agent to *, limits of each tenant; was requests 10/s per tenant, now requests 10/s per tenant, refused while Redis is away",
            ],
        ),
    ] {
        let diff = old.diff(&new).expect(case);
        let said: Vec<_> = diff
            .changes
            .iter()
            .map(|change| format!("{:?} {change}", change.direction))
            .collect();
        assert_eq!(said, expected, "{case}");
    }
}

#[test]
fn a_tenants_document_may_be_for_tokens_of_some_audiences() {
    let set = build(&[
        "version: 1\ntenant: acme\naudience: [acme-prod, acme-batch]\nmode: audit\nrules:\n  - {name: a, action: allow, agents: any, hosts: [a.example]}",
        "version: 1\ntenant: globex\nrules:\n  - {name: g, action: allow, agents: any, hosts: [a.example]}",
    ])
    .expect("a policy");
    let agent = AgentId::parse("bot").expect("an agent");
    let asked = |tenant: &str, audiences: Option<&[&str]>| {
        let tenant = TenantId::parse(tenant).expect("a tenant");
        let audiences: Option<Vec<String>> =
            audiences.map(|list| list.iter().map(|one| (*one).to_owned()).collect());
        let who = Subject {
            agent: &agent,
            tenant: Some(&tenant),
            destinations: None,
            audiences: audiences.as_deref(),
        };
        let what = request("CONNECT a.example:443");
        let told = set.reach(&who).map(|_| ());
        let decision = set.decide(&who, &what);
        let denied = match &decision {
            Decision::Deny(denied) => Err(denied.reason()),
            Decision::Allow(_) => Ok(()),
        };
        assert_eq!(told, denied, "the page says what is decided");
        (said(&decision), set.explain(&who, &what, &[]))
    };
    for (case, tenant, audiences, expected) in [
        ("its audience", "acme", Some(&["acme-prod"][..]), "allow a"),
        (
            "among others",
            "acme",
            Some(&["agentport", "acme-batch"]),
            "allow a",
        ),
        (
            "another, in audit mode too",
            "acme",
            Some(&["agentport"]),
            "deny tenant_audience",
        ),
        (
            "one that begins so",
            "acme",
            Some(&["acme-production"]),
            "deny tenant_audience",
        ),
        (
            "a token without one",
            "acme",
            Some(&[]),
            "deny tenant_audience",
        ),
        ("no token, such as a certificate", "acme", None, "allow a"),
        (
            "a document that takes any",
            "globex",
            Some(&["acme-prod"]),
            "allow g",
        ),
    ] {
        assert_eq!(asked(tenant, audiences).0, expected, "{case}");
    }
    let (_, explanation) = asked("acme", Some(&["agentport"]));
    assert_eq!(explanation.reason, Some("tenant_audience"));
    assert_eq!(
        explanation.checks[0].detail,
        "the document of tenant acme is for tokens whose aud has acme-prod, acme-batch; this one has agentport"
    );

    let long = "a".repeat(257);
    for (text, expected) in [
        ("version: 1\naudience: [a]", "0.yaml: audience: `audience` is about the tokens of one tenant; write `tenant` too, or take it away".to_owned()),
        ("version: 1\ntenant: t\naudience: []", "0.yaml: audience: the list is empty; write an entry, or take the member away".to_owned()),
        ("version: 1\ntenant: t\naudience: [ok, \"a\\n\"]", "0.yaml: audience[1]: \"a\\n\": write an audience of 1 to 256 bytes without control characters".to_owned()),
        (&format!("version: 1\ntenant: t\naudience: [{long}]"), format!("0.yaml: audience[0]: {long:?}: write an audience of 1 to 256 bytes without control characters")),
    ] {
        let errors = build(&[text]).expect_err(text);
        let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(said, [expected], "{text}");
    }
    assert!(build(&["version: 1\ntenant: t\naudience: a"]).is_err());

    let with =
        |audience: &str| build(&[&format!("version: 1\ntenant: t\n{audience}")]).expect(audience);
    for (case, old, new, expected) in [
        (
            "the same in another order",
            "audience: [a, b]",
            "audience: [b, a]",
            None,
        ),
        (
            "fewer",
            "audience: [a, b]",
            "audience: [a]",
            Some(
                "Narrows every agent to * (tenants: t), tokens that are taken; was for a, b, now for a",
            ),
        ),
        (
            "any",
            "audience: [a]",
            "",
            Some(
                "Widens every agent to * (tenants: t), tokens that are taken; was for a, now of any audience",
            ),
        ),
        (
            "others",
            "audience: [a]",
            "audience: [b]",
            Some(
                "Widens every agent to * (tenants: t), tokens that are taken; was for a, now for b",
            ),
        ),
    ] {
        let diff = with(old).diff(&with(new)).expect(case);
        let said: Vec<String> = diff
            .changes
            .iter()
            .map(|change| format!("{:?} {change}", change.direction))
            .collect();
        assert_eq!(said, expected.into_iter().collect::<Vec<_>>(), "{case}");
    }

    let file = "cases:
  - {name: ours, agent: bot, tenant: acme, audience: [acme-prod], connect: 'a.example:443', expect: allow}
  - {name: theirs, agent: bot, tenant: acme, audience: [other], connect: 'a.example:443', expect: deny, reason: tenant_audience}
  - {name: untold, agent: bot, tenant: acme, connect: 'a.example:443', expect: allow}
";
    let cases = CaseFile::parse(&SourceName::from("c"), Format::Yaml, file).expect("cases");
    for outcome in cases.run(&set) {
        assert!(
            outcome.failures.is_empty(),
            "{}: {:?}",
            outcome.name,
            outcome.failures
        );
    }
}

/// A tenant with a document for `prod`, one for `batch` and `night`, and, where
/// it is given, one for all other tokens.
fn by_audience(other: Option<&str>) -> PolicySet {
    let document = |audience: &str, host: &str| {
        format!(
            "version: 1\ntenant: acme\n{audience}limits: {{tenant: {{requests: 9/s}}}}\nrules:\n  - {{name: r, action: allow, agents: any, hosts: [{host}], limits: {{requests: 5/s}}}}"
        )
    };
    let mut texts = vec![
        document("audience: [prod]\n", "prod.example"),
        document("audience: [\"night\", batch]\n", "batch.example"),
    ];
    texts.extend(other.map(|host| document("", host)));
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    build(&texts).expect("a policy")
}

#[test]
fn a_tenants_documents_are_chosen_by_audience() {
    let agent = AgentId::parse("bot").expect("an agent");
    let tenant = TenantId::parse("acme").expect("a tenant");
    let (with, without) = (by_audience(Some("other.example")), by_audience(None));
    assert!(with.asks_for_audiences());
    assert_eq!(with.tenants().count(), 1);
    let asked = |set: &PolicySet, audiences: Option<&[&str]>, host: &str| {
        let audiences: Option<Vec<String>> =
            audiences.map(|list| list.iter().map(|one| (*one).to_owned()).collect());
        let who = Subject {
            agent: &agent,
            tenant: Some(&tenant),
            destinations: None,
            audiences: audiences.as_deref(),
        };
        let what = request(&format!("CONNECT {host}:443"));
        let decision = set.decide(&who, &what);
        let explained = set.explain(&who, &what, &[]);
        let reason = match &decision {
            Decision::Deny(denied) => Some(denied.reason().as_str()),
            Decision::Allow(_) => None,
        };
        assert_eq!(explained.reason, reason, "explained as it is decided");
        let reached = set.reach(&who).map(|_| ());
        assert_eq!(reached.is_err(), reason == Some("tenant_audience"));
        (said(&decision), explained.checks[0].detail.clone())
    };
    for (case, audiences, host, decided, undecided) in [
        (
            "one",
            Some(&["prod"][..]),
            "prod.example",
            "allow r",
            "allow r",
        ),
        (
            "that of another",
            Some(&["prod"]),
            "batch.example",
            "deny no_rule",
            "deny no_rule",
        ),
        (
            "of two names",
            Some(&["agentport", "night"]),
            "batch.example",
            "allow r",
            "allow r",
        ),
        (
            "two of one document",
            Some(&["batch", "night"]),
            "batch.example",
            "allow r",
            "allow r",
        ),
        (
            "of two documents",
            Some(&["batch", "prod"]),
            "prod.example",
            "deny tenant_audience",
            "deny tenant_audience",
        ),
        (
            "of none",
            Some(&["agentport"]),
            "other.example",
            "allow r",
            "deny tenant_audience",
        ),
        (
            "none at all",
            Some(&[]),
            "other.example",
            "allow r",
            "deny tenant_audience",
        ),
        (
            "no token",
            None,
            "other.example",
            "allow r",
            "deny tenant_audience",
        ),
        (
            "one that begins so",
            Some(&["production"]),
            "prod.example",
            "deny no_rule",
            "deny tenant_audience",
        ),
    ] {
        assert_eq!(asked(&with, audiences, host).0, decided, "{case}");
        assert_eq!(
            asked(&without, audiences, host).0,
            undecided,
            "{case}, without another"
        );
    }
    for (audiences, set, detail) in [
        (
            &["night"][..],
            &with,
            "the global documents and 1.yaml apply, which of those of tenant acme is for tokens whose aud has night, batch",
        ),
        (
            &["x"],
            &with,
            "the global documents and 2.yaml apply, which of those of tenant acme names no audience",
        ),
        (
            &["x"],
            &without,
            "the documents of tenant acme are for tokens whose aud has one of prod, night, batch; this one has x",
        ),
        (
            &["prod", "night"],
            &with,
            "tenant acme has several documents for this token, whose aud has prod, night; ask for a token for one of them",
        ),
    ] {
        assert_eq!(asked(set, Some(audiences), "x.example").1, detail);
    }
    // What one counts, another does not.
    let names: Vec<String> = with
        .rules
        .documents()
        .flat_map(|document| document.limits.iter().map(|limit| limit.name().to_string()))
        .chain(
            with.rules
                .all()
                .flat_map(|(_, rule)| rule.limits.iter().map(|limit| limit.name().to_string())),
        )
        .collect();
    assert_eq!(
        names,
        [
            "acme(prod)/tenant.requests",
            "acme(batch)/tenant.requests",
            "acme/tenant.requests",
            "acme(prod)/rule/r.requests",
            "acme(batch)/rule/r.requests",
            "acme/rule/r.requests",
        ]
    );
    let odd =
        build(&["version: 1\ntenant: t\naudience: [\"a b\"]\nlimits: {tenant: {requests: 9/s}}"]);
    let odd = odd.expect("a policy");
    let name = odd
        .rules
        .documents()
        .next()
        .map(|one| one.limits[0].name().to_string());
    let name = name.expect("a limit");
    assert!(
        name.starts_with("t(#") && name.ends_with(")/tenant.requests"),
        "{name}"
    );
}

#[test]
fn documents_of_a_tenant_are_for_different_audiences() {
    for (case, texts, expected) in [
        (
            "two for any",
            ["", ""],
            Some(
                "1.yaml: tenant: tenant \"t\" has a document already, 0.yaml; put the rules of both into one, or name in one of them the `audience` of the tokens that it is for",
            ),
        ),
        (
            "two for one",
            ["audience: [a, b]", "audience: [c, b]"],
            Some(
                "1.yaml: audience[1]: audience \"b\" of tenant \"t\" has a document already, 0.yaml; name it in one of them only",
            ),
        ),
        ("one for any", ["audience: [a]", ""], None),
        ("different ones", ["audience: [a]", "audience: [b]"], None),
    ] {
        let texts = texts.map(|text| format!("version: 1\ntenant: t\n{text}"));
        let said = match build(&[&texts[0], &texts[1]]) {
            Ok(_) => None,
            Err(errors) => Some(
                errors
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join("; "),
            ),
        };
        assert_eq!(said.as_deref(), expected, "{case}");
        let checked: Vec<CheckedDocument> = texts
            .iter()
            .enumerate()
            .map(|(at, text)| {
                let source = SourceName::from(format!("{at}.yaml"));
                let written = PolicyDocument::parse(&source, Format::Yaml, text).expect(case);
                CheckedDocument::check(&source, &written, Mode::Enforce).expect(case)
            })
            .collect();
        let put_together = PolicySet::assemble(checked, false, Mode::Enforce, None);
        let said = put_together.err().map(|errors| errors[0].to_string());
        assert_eq!(said.as_deref(), expected, "{case}");
    }
}

#[test]
fn what_changes_for_one_audience_is_told_of_it_alone() {
    let (with, without) = (by_audience(Some("other.example")), by_audience(None));
    let said = |old: &PolicySet, new: &PolicySet| -> Vec<String> {
        let diff = old.diff(new).expect("few changes");
        diff.changes
            .iter()
            .map(|change| format!("{:?} {change}", change.direction))
            .collect()
    };
    assert!(said(&with, &with).is_empty());
    let gone = said(&with, &without);
    assert!(!gone.is_empty());
    for change in &gone {
        assert!(
            change.contains("acme for others") || change.contains("limits of each tenant"),
            "{change}"
        );
        assert!(
            !change.contains("batch.example") && !change.contains("prod.example"),
            "{change}"
        );
    }
    assert!(
        gone.iter().any(|change| change.contains("other.example")),
        "{gone:?}"
    );
    // What the others may not reach is not what this one reaches.
    let one = build(&[
        "version: 1\ntenant: acme\nrules:\n  - {name: r, action: allow, agents: any, hosts: [other.example]}",
    ]);
    let split = said(&one.expect("a policy"), &with);
    assert!(
        split.iter().any(|c| c.starts_with("Widens")
            && c.contains("prod.example")
            && c.contains("acme for prod")),
        "{split:?}"
    );
    assert!(
        split.iter().any(|c| c.starts_with("Narrows")
            && c.contains("other.example")
            && c.contains("acme for batch, night")),
        "{split:?}"
    );
    assert!(
        !split
            .iter()
            .any(|c| c.contains("acme for others") && c.contains("batch.example")),
        "{split:?}"
    );

    // Records say whom the token was for.
    let line = |audience: &str| {
        format!(
            r#"{{"ts":"2026-01-01T00:00:00Z","event":"tunnel","request_id":"1","agent_id":"bot","tenant":"acme",{audience}"method":"CONNECT","scheme":"tunnel","destination_host":"other.example","destination_port":443,"action_allowed":true,"reason":"ok"}}"#
        )
    };
    let mut replay = Replay::new(&with, &without);
    replay.line(line(r#""audience":["prod"],"#).as_bytes());
    replay.line(line(r#""audience":["agentport"],"#).as_bytes());
    let report = replay.finish();
    assert_eq!(report.requests, 2);
    assert_eq!(report.changes.len(), 1, "{:?}", report.changes);
}

#[test]
fn a_document_is_shadowed_by_none_for_other_tokens() {
    let set = build(&[
        "version: 1\ntenant: t\naudience: [a]\ndenylist: [x.example]\nrules:\n  - {name: d, action: deny, agents: any, hosts: [y.example]}",
        "version: 1\ntenant: t\nlimits: {agent: {requests: 9/s}}\nrules:\n  - {name: x, action: allow, agents: any, hosts: [x.example]}\n  - {name: y, action: allow, agents: any, hosts: [y.example]}",
    ])
    .expect("a policy");
    let warnings: Vec<String> = set.lint().iter().map(ToString::to_string).collect();
    assert!(warnings.is_empty(), "{warnings:?}");
}

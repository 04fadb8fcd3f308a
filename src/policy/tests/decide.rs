//! Which rule decides, and what passes by it.

use super::*;

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
fn beside_a_deny_rule_about_clear_text_a_tunnel_does_not_carry_anything() {
    let set = rules(
        "  - {name: all, action: allow, agents: any, hosts: [\"*.example\"], ports: any, tls: any}
  - {name: no-admin, action: deny, agents: any, hosts: [a.example], ports: any, schemes: [http], paths: [/admin/**]}
  - {name: no-ports, action: deny, agents: any, hosts: [b.example], ports: [80], schemes: [http]}
  - {name: trial, action: deny, mode: audit, agents: any, hosts: [c.example], schemes: [http]}
  - {name: others, action: deny, agents: [other], hosts: [d.example], schemes: [http]}
  - {name: net, action: deny, agents: any, addresses: [10.0.0.0/8], ports: [25], schemes: [http]}",
    );
    for (tunnel, carries) in [
        ("CONNECT a.example:8080", TlsUse::Strict),
        ("CONNECT b.example:80", TlsUse::Strict),
        ("CONNECT b.example:8080", TlsUse::Any),
        ("CONNECT c.example:80", TlsUse::Any),
        ("CONNECT d.example:80", TlsUse::Any),
        ("CONNECT e.example:25", TlsUse::Strict),
    ] {
        let permit = permit(&set, tunnel);
        assert_eq!(permit.tls().tls, carries, "{tunnel}");
        assert!(permit.opaque(), "{tunnel}: TLS passes");
    }
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

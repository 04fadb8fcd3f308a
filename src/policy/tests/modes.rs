//! Audit mode: what it lets pass, and whose mode counts.

use super::*;

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

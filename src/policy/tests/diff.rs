//! What changes between two policies, in words.

use super::*;

#[test]
fn changes_are_said_in_words() {
    for (case, old, new, expected) in [
        (
            "the same, in another layout",
            BASE,
            "rules:
  - name: other-name
    action: allow
    agents: [bot]
    hosts: [api.example.com]
    ports: [443]
  - {name: web, action: allow, agents: any, hosts: [\"*.web.example\"], ports: [80], methods: [GET]}
",
            vec![],
        ),
        (
            "a host more",
            "rules: []",
            "rules: [{name: a, action: allow, agents: [bot], hosts: [a.example], ports: [443]}]",
            vec![
                "Widens bot to a.example, port 443: http, https on routes, tunnels; was refused (no_rule), now allowed by \"a\"",
            ],
        ),
        (
            "a method more",
            "rules: [{name: a, action: allow, agents: any, hosts: [a.example], ports: [80], schemes: [http], methods: [GET]}]",
            "rules: [{name: a, action: allow, agents: any, hosts: [a.example], ports: [80], schemes: [http], methods: [GET, POST]}]",
            vec![
                "Widens every agent to a.example, port 80: http, POST; was refused (no_rule), now allowed by \"a\"",
            ],
        ),
        (
            "an agent and a path less",
            "rules: [{name: a, action: allow, agents: [x, y], hosts: [a.example], ports: [80], schemes: [http], paths: [/a/**, /b/**]}]",
            "rules: [{name: a, action: allow, agents: [x], hosts: [a.example], ports: [80], schemes: [http], paths: [/a/**]}]",
            vec![
                "Narrows x to a.example, port 80: http, any method of /b/**; was allowed by \"a\", now refused (no_rule)",
                "Narrows y to a.example, port 80: http, any method of /a/**, /b/**; was allowed by \"a\", now refused (no_rule)",
                "Narrows y to a.example, port 80: tunnels; was allowed by \"a\", in clear text only, now refused (no_rule)",
            ],
        ),
        (
            "a denylist",
            BASE,
            &format!("denylist: [api.example.com]\n{BASE}"),
            vec![
                "Narrows bot to api.example.com, port 443: http, https on routes, tunnels; was allowed by \"models\", now refused (denylist)",
            ],
        ),
        (
            "a wildcard with an exception",
            "rules:
  - {name: w, action: allow, agents: any, hosts: [\"*.w.example\"], ports: [443], schemes: [https]}
  - {name: no, action: deny, agents: any, hosts: [x.w.example], ports: any}",
            "rules:
  - {name: no, action: deny, agents: any, hosts: [x.w.example], ports: any}",
            vec![
                "Narrows every agent to *.w.example, port 443: https on routes, tunnels; was allowed by \"w\", now refused (no_rule)",
            ],
        ),
        (
            "looser TLS",
            "rules: [{name: a, action: allow, agents: any, hosts: [a.example], ports: [22], schemes: [https]}]",
            "rules: [{name: a, action: allow, agents: any, hosts: [a.example], ports: [22], schemes: [https], tls: any}]",
            vec![
                "Widens every agent to a.example, port 22: https on routes, tunnels; was allowed by \"a\" with tls strict, sni match, ech refuse, now allowed by \"a\" with tls any, sni match, ech refuse",
            ],
        ),
        (
            "audit mode",
            "rules: []",
            "mode: audit\nrules: []",
            vec![
                "Widens every agent to *, any port: http, https on routes, tunnels; was refused (no_rule), now passes in audit mode only (no_rule)",
            ],
        ),
    ] {
        let diff = whole(old).diff(&whole(new)).expect(case);
        let said: Vec<_> = diff
            .changes
            .iter()
            .map(|change| format!("{:?} {change}", change.direction))
            .collect();
        assert_eq!(said, expected, "{case}");
    }
}

#[test]
fn another_range_is_a_change_of_addresses() {
    let rule = |ranges: &str| {
        whole(&format!(
            "rules: [{{name: a, action: allow, agents: any, hosts: [a.example], addresses: [{ranges}], ports: [443], schemes: [https]}}]"
        ))
    };
    let diff = rule("10.0.0.0/8")
        .diff(&rule("10.0.0.0/8, 192.168.0.0/16"))
        .expect("a diff");
    let widened: Vec<_> = diff
        .changes
        .iter()
        .filter(|change| change.hosts == ["a.example"])
        .collect();
    assert_eq!(widened.len(), 1, "{:?}", diff.changes);
    assert_eq!(widened[0].direction, Direction::Widens);
    assert_eq!(widened[0].before, "allowed by \"a\" at 10.0.0.0/8");
    assert_eq!(
        widened[0].after,
        "allowed by \"a\" at 10.0.0.0/8, 192.168.0.0/16"
    );
}

//! Limits: which hold, what is wrong with them, and who is told.

use super::*;

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

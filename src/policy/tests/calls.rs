//! What bodies call by JSON-RPC, in all that knows of it.

use super::*;

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

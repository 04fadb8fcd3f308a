//! Documents for tokens of some audiences.

use super::*;

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

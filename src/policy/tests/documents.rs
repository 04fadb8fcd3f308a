//! Texts and what is wrong with them: each mistake with what to write.

use super::*;

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
            "p.yaml:2:1: a tab indents this line: write spaces",
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

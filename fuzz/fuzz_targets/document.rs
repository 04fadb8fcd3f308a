//! A policy is taken whole or not at all, and what is taken means the same
//! wherever and however it is written down.
#![no_main]

use agentport::policy::{Finding, Format, Mode, PolicyDocument, PolicySet, SourceName};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let source = SourceName::from("policy.yaml");
    for format in [Format::Yaml, Format::Json] {
        match PolicyDocument::parse(&source, format, text) {
            Ok(document) => judged(&source, document, text),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    if let Ok(set) = PolicySet::from_allowed_destinations(text, Mode::Enforce) {
        assert!((1..=2).contains(&set.rule_count()), "{text:?}");
    }
});

fn judged(source: &SourceName, document: PolicyDocument, text: &str) {
    let build = |name: &str, document: &PolicyDocument| {
        PolicySet::build(vec![(name.into(), document.clone())], Mode::Enforce)
    };
    let set = match build("policy.yaml", &document) {
        Ok(set) => set,
        Err(mut errors) => {
            assert!(!errors.is_empty());
            Finding::locate(&mut errors, source, text);
            for error in errors {
                assert!(!error.to_string().is_empty());
            }
            return;
        }
    };
    assert_eq!(set.rule_count(), document.rules.len(), "no rule is dropped");
    let mut warnings = set.lint();
    Finding::locate(&mut warnings, source, text);
    for warning in warnings {
        assert!(!warning.to_string().is_empty());
    }

    let json = serde_json::to_string(&document).expect("a document is JSON");
    let again = PolicyDocument::parse(source, Format::Json, &json)
        .unwrap_or_else(|error| panic!("{json}: {error}"));
    assert_eq!(again, document, "{json}");
    // JSON is YAML, for what a policy can say.
    let yaml = PolicyDocument::parse(source, Format::Yaml, &json);
    assert_eq!(yaml.as_ref(), Ok(&document), "{json}");
    let other = build("another name.json", &again).expect("the same document");
    assert_eq!(other.digest(), set.digest());
}

//! A file of cases is taken whole or not at all, and every mistake in it has
//! words and a place that is in the text.
#![no_main]

use agentport::policy::{CaseFile, Coverage, Format, PolicySet, SourceName};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let source = SourceName::from("a.cases.yaml");
    for format in [Format::Yaml, Format::Json] {
        match CaseFile::parse(&source, format, text) {
            Ok(file) => {
                let set = PolicySet::empty();
                let outcomes = file.run(&set);
                assert_eq!(outcomes.len(), file.cases.len(), "no case is dropped");
                assert_eq!(Coverage::of(&set, &outcomes).percent(), 100);
            }
            Err(errors) => {
                assert!(!errors.is_empty());
                for error in errors {
                    assert!(!error.to_string().is_empty());
                    if let Some(at) = error.location {
                        assert!(at.line <= text.lines().count() + 1, "{error}");
                    }
                }
            }
        }
    }
});

//! A document that is read again, of which little has changed, says what it
//! would say if it were read for the first time; and a mistake in it is told
//! alike. Inputs are versions of one document, with a NUL between them.
#![no_main]

use agentport::policy::{Format, KnownRules, PolicyDocument, SourceName};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|texts: &str| {
    let source = SourceName::from("policy.yaml");
    let mut known = KnownRules::of_any_size();
    for text in texts.split('\0') {
        let again = PolicyDocument::parse_again(&source, Format::Yaml, text, &mut known);
        let whole = PolicyDocument::parse(&source, Format::Yaml, text);
        assert_eq!(again, whole, "{text}");
    }
});

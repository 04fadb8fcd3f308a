//! Whatever a log holds, what is learned from it is a valid policy that allows
//! what was seen, or nothing is.
#![no_main]

use agentport::policy::{
    Format, LearnError, LearnOptions, Learner, Mode, PolicyDocument, PolicySet, Replay, SourceName,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|log: &[u8]| {
    let empty = PolicySet::empty();
    let mut replay = Replay::new(&empty, &empty);
    for wildcards in [None, Some(2)] {
        let mut learner = Learner::new(LearnOptions {
            wildcards,
            ..LearnOptions::default()
        });
        for (number, line) in log.split(|byte| *byte == b'\n').enumerate() {
            learner.line(&number, line);
            replay.line(line);
        }
        match learner.finish() {
            Ok(learned) => {
                let source = SourceName::from("learned.yaml");
                let document = PolicyDocument::parse(&source, Format::Yaml, &learned.policy)
                    .unwrap_or_else(|error| panic!("{error}\n{}", learned.policy));
                let set = PolicySet::build(vec![(source, document)], Mode::Enforce)
                    .unwrap_or_else(|errors| panic!("{errors:?}\n{}", learned.policy));
                assert_eq!(set.rule_count(), learned.rules.len());
            }
            Err(LearnError::Tenants(_)) => {}
            Err(LearnError::Refuses(why)) => panic!("{why}"),
        }
    }
    assert!(replay.finish().changes.is_empty());
});

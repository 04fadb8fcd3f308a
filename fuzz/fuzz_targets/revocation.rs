//! Lists of revocations and of agent keys: what is read is written and read
//! again as the same, and whatever text a credential is, looking it up is safe.

#![no_main]

use agentport::identity::{AgentKey, AgentKeys, Revocation, RevocationSet};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(entries) = Revocation::parse_list(text) {
        let lines: String = entries.iter().map(|entry| entry.line() + "\n").collect();
        let again = Revocation::parse_list(&lines).expect("what was written is read");
        assert_eq!(again, entries);
        assert_eq!(
            RevocationSet::new(&entries, "agentport").len(),
            entries.len()
        );
    }
    let mut table = AgentKeys::default();
    if let Ok(keys) = AgentKey::parse_list(text) {
        let lines: String = keys.iter().map(|key| key.line() + "\n").collect();
        let again = AgentKey::parse_list(&lines).expect("what was written is read");
        assert_eq!(again, keys);
        if let Ok(keys) = AgentKeys::new(&keys) {
            table = keys;
        }
    }
    // No text is the preimage of a hash that stands beside it.
    assert!(table.verify(text, 0).is_err());
    for line in text.lines() {
        assert!(table.verify(line, 0).is_err());
    }
});

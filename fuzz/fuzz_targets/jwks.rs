//! Keys from a file are keys or a clear error, and what is published of them
//! reads back as the same keys.
#![no_main]

use agentport::identity::{KeySet, TrustedIssuer, VerifyingKey, VerifyingKeys, public_jwks};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(set) = KeySet::parse(text) {
        assert!(!set.keys.is_empty());
        published(&set.keys);
        // Whoever is lenient finds the same keys where nothing is wrong.
        let foreign = KeySet::parse_foreign(text).expect("a set");
        let ids =
            |set: &KeySet| -> Vec<_> { set.keys.iter().map(|key| key.id().clone()).collect() };
        assert_eq!(ids(&foreign), ids(&set));
        // No two of them can be meant by one token.
        VerifyingKeys::new()
            .with(TrustedIssuer::default(), set.keys)
            .expect("keys of distinct ids");
    }
    if let Ok(set) = KeySet::parse_foreign(text) {
        assert!(!set.keys.is_empty());
        published(&set.keys);
        VerifyingKeys::new()
            .with(TrustedIssuer::default(), set.keys)
            .expect("keys of distinct ids");
    }
    for key in [
        VerifyingKey::from_jwk(text),
        VerifyingKey::from_pem(text),
        VerifyingKey::from_secret(text),
    ]
    .into_iter()
    .flatten()
    {
        published(&[key]);
    }
});

fn published(keys: &[VerifyingKey]) {
    let asymmetric: Vec<_> = keys
        .iter()
        .filter(|key| key.algorithm().as_str() != "HS256")
        .map(|key| (key.id().clone(), key.algorithm()))
        .collect();
    let text = public_jwks(keys);
    assert!(!text.contains("\"k\"") && !text.contains("\"d\""), "{text}");
    let again = match KeySet::parse(&text) {
        Ok(set) => set.keys,
        Err(error) => {
            assert!(asymmetric.is_empty(), "{text}: {error}");
            return;
        }
    };
    let again: Vec<_> = again
        .iter()
        .map(|key| (key.id().clone(), key.algorithm()))
        .collect();
    assert_eq!(again, asymmetric, "{text}");
}

//! What an issuer and a folder of keys say is taken as it is meant, or not at
//! all: metadata, URLs, manifests, and names made of claims.
#![no_main]

use agentport::config::parse_issuers;
use agentport::egress::HttpsUrl;
use agentport::identity::{KeyFolder, KeyState, Naming, discovered_keys};
use libfuzzer_sys::fuzz_target;

const ISSUER: &str = "https://id.example";

fuzz_target!(|text: &str| {
    if let Ok(url) = HttpsUrl::parse(text) {
        one_url(&url);
    }
    if let Ok(url) = discovered_keys(text.as_bytes(), ISSUER) {
        let metadata: serde_json::Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(metadata["issuer"], ISSUER);
        one_url(&url);
    }
    if let Ok(folder) = KeyFolder::parse(text) {
        one_folder(&folder);
    }
    match parse_issuers("issuers.yaml", text, ISSUER) {
        Ok(issuers) => assert!(issuers.iter().all(|issuer| issuer.issuer != ISSUER)),
        Err(errors) => assert!(!errors.is_empty()),
    }
    let mut lines = text.splitn(3, '\n');
    let (pattern, agent, tenant) = (lines.next(), lines.next(), lines.next());
    // Made or refused, and never a panic.
    let _ = Naming::new(pattern, agent, tenant);
});

/// Nothing in it can break out of a request's first line, and it reads back.
fn one_url(url: &HttpsUrl) {
    assert!(url.path().starts_with('/'));
    assert!(url.path().bytes().all(|byte| byte.is_ascii_graphic()));
    assert_eq!(HttpsUrl::parse(&url.to_string()).as_ref(), Ok(url));
}

/// At every moment at most one key signs, and it verifies too.
fn one_folder(folder: &KeyFolder) {
    let again = KeyFolder::parse(&folder.write()).expect("as it was written");
    assert_eq!(&again, folder);
    let times = folder.keys().iter().flat_map(|key| {
        let end = key.verifies_until.unwrap_or(u64::MAX);
        [key.signs_from, end.saturating_sub(1), end]
    });
    for now in times {
        let signing = folder
            .keys()
            .iter()
            .filter(|key| folder.state(key, now) == KeyState::Signs);
        assert_eq!(signing.count(), usize::from(folder.signer(now).is_ok()));
        if let Ok(signer) = folder.signer(now) {
            assert!(folder.verifying(now).any(|key| key == signer));
            assert!(!signer.file.contains('/'), "{}", signer.file);
        }
    }
}

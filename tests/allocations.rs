//! What a token that was seen lately must not cost: memory. In a file of its
//! own, since the allocator that counts is the whole program's.

use std::time::Duration;

use agentport::egress::AgentId;
use agentport::identity::{
    CacheSettings, CachedVerifier, IssueRequest, SigningKey, TokenIssuer, TokenVerifier,
    TrustedIssuer, VerifierSettings, VerifyingKeys, generate_ed25519,
};

const NOW: u64 = 1_767_225_600;

#[test]
fn a_remembered_token_allocates_nothing() {
    let key = SigningKey::from_pem(&generate_ed25519().expect("a key")).expect("a key");
    let keys = VerifyingKeys::new()
        .with(TrustedIssuer::default(), [key.verifying_key().clone()])
        .expect("keys");
    let request = IssueRequest {
        agent: AgentId::parse("bot-01").expect("a name"),
        tenant: None,
        destinations: None,
        lifetime: Duration::from_secs(900),
        audience: None,
        jti: 7,
        actors: Vec::new(),
        client: None,
        scope: None,
    };
    let token = TokenIssuer::new(key, "agentport", "agentport")
        .issue(&request, NOW)
        .expect("a token");
    // A signature of another token, which holds for this one nowhere.
    let forged = format!(
        "{}A{}",
        &token[..token.len() - 10],
        &token[token.len() - 9..]
    );
    let verifier = TokenVerifier::new(keys, VerifierSettings::default());
    let cached = CachedVerifier::new(verifier, CacheSettings::default());

    let first = allocation_counter::measure(|| {
        cached.verify(&token, NOW).expect("a principal");
    });
    assert!(first.count_total > 0, "the counter counts");
    let (who, _) = cached.verify(&token, NOW).expect("a principal");
    cached.verify(&forged, NOW).expect_err("a refusal");
    for (case, ask) in [
        (
            "verified",
            &(|| assert!(cached.verify(&token, NOW).is_ok())) as &dyn Fn(),
        ),
        ("refused", &|| assert!(cached.verify(&forged, NOW).is_err())),
        ("trusted", &|| assert!(cached.trusts(&who, NOW))),
        ("put to an open tunnel", &|| {
            assert!(cached.keys_now().trusts(&who, NOW));
        }),
    ] {
        let cost = allocation_counter::measure(ask);
        assert_eq!(cost.count_total, 0, "{case}: {cost:?}");
    }
}

//! Our verifier beside an independent one, on tokens put together and damaged
//! at random.
//!
//! Known differences, where the other accepts and we refuse: header members
//! that RFC 8725 makes suspicious, other `+jwt` types, an unknown `kid` (the
//! other is told no ids), repeated members and deep nesting, claims of the
//! wrong type that it does not look at, `exp` on its last second, and dates
//! with a fraction, which it cuts off. Where we accept and it refuses: `typ`
//! written as a full media type.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jwt_simple::prelude::{
    Duration as Seconds, Ed25519PublicKey, EdDSAPublicKeyLike, HS256Key, MACLike, NoCustomClaims,
    UnixTimeStamp, VerificationOptions,
};
use proptest::prelude::*;
use ring::hmac;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Map, Value, json};

use super::*;

const NOW: u64 = 1_767_225_600;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const SEED: [u8; 32] = [7; 32];

/// How a token is put together, and damaged.
#[derive(Clone, Debug)]
struct Recipe {
    ed25519: bool,
    header: Vec<(&'static str, Value)>,
    claims: Vec<(&'static str, Value)>,
    /// Text before the closing brace of the claims, for repeated members.
    tail: &'static str,
    damage: Option<(prop::sample::Index, u8)>,
}

impl Recipe {
    fn token(&self) -> String {
        let alg = if self.ed25519 { "EdDSA" } else { "HS256" };
        let header = with(json!({"alg": alg, "typ": "JWT"}), &self.header);
        let good = json!({
            "iss": "agentport", "aud": "agentport", "sub": "bot", "exp": NOW + 60, "iat": NOW,
        });
        let mut claims = with(good, &self.claims);
        claims.truncate(claims.len() - 1);
        claims.push_str(self.tail);
        claims.push('}');
        let mut token = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims)
        );
        let signature = if self.ed25519 {
            pair().sign(token.as_bytes()).as_ref().to_vec()
        } else {
            let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
            hmac::sign(&key, token.as_bytes()).as_ref().to_vec()
        };
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        if let Some((at, byte)) = self.damage {
            let at = at.index(token.len());
            token.replace_range(at..=at, &char::from(byte).to_string());
        }
        token
    }
}

/// The object with these members put in, or with `"-"` taken out.
fn with(object: Value, members: &[(&str, Value)]) -> String {
    let mut map: Map<String, Value> = object.as_object().cloned().unwrap_or_default();
    for (name, value) in members {
        if *value == json!("-") {
            map.remove(*name);
        } else {
            map.insert((*name).to_owned(), value.clone());
        }
    }
    Value::Object(map).to_string()
}

fn pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&SEED).expect("a seed")
}

fn public() -> [u8; 32] {
    pair().public_key().as_ref().try_into().expect("32 bytes")
}

fn ours(token: &str) -> Result<Principal, TokenError> {
    let keys = [
        VerifyingKey::from_ed25519(public()).expect("a key"),
        VerifyingKey::from_secret_bytes(SECRET).expect("a secret"),
    ];
    let keys = VerifyingKeys::new()
        .with(TrustedIssuer::default(), keys)
        .expect("keys");
    TokenVerifier::new(keys, VerifierSettings::default()).verify(token, NOW)
}

/// Whether the other verifier accepts the token under either key.
fn theirs(token: &str) -> bool {
    let only = || Some(HashSet::from(["agentport".to_owned()]));
    let options = || VerificationOptions {
        allowed_issuers: only(),
        allowed_audiences: only(),
        time_tolerance: Some(Seconds::from_secs(30)),
        artificial_time: Some(UnixTimeStamp::from_secs(NOW)),
        ..VerificationOptions::default()
    };
    let ed25519 = Ed25519PublicKey::from_bytes(&public()).expect("a key");
    let secret = HS256Key::from_bytes(SECRET);
    ed25519
        .verify_token::<NoCustomClaims>(token, Some(options()))
        .is_ok()
        || secret
            .verify_token::<NoCustomClaims>(token, Some(options()))
            .is_ok()
}

fn header_member() -> impl Strategy<Value = (&'static str, Value)> {
    let members = vec![
        ("alg", json!("none")),
        ("alg", json!("HS256")),
        ("alg", json!("EdDSA")),
        ("alg", json!("Ed25519")),
        ("alg", json!("-")),
        ("typ", json!("-")),
        ("typ", json!("at+jwt")),
        ("typ", json!("other+jwt")),
        ("typ", json!("application/jwt")),
        ("typ", json!("JWE")),
        ("cty", json!("JWT")),
        ("kid", json!("unknown")),
        ("crit", json!([])),
        ("crit", json!(["exp"])),
        ("b64", json!(false)),
        ("jku", json!("https://a.test")),
        ("jwk", json!("{}")),
        ("x5t", json!("AA")),
        ("unknown", json!({"a": 1})),
    ];
    prop::sample::select(members)
}

fn claim() -> impl Strategy<Value = (&'static str, Value)> {
    let names = vec![
        "iss", "aud", "sub", "exp", "nbf", "iat", "jti", "tenant", "act",
    ];
    let around = (-40..40_i64).prop_map(|offset| json!(NOW.cast_signed() + offset));
    let fraction = (-40.0..40.0_f64).prop_map(|offset| json!(NOW as f64 + offset));
    let fixed = prop::sample::select(vec![
        json!("-"),
        json!("agentport"),
        json!("other"),
        json!(["agentport"]),
        json!(["other", "agentport"]),
        json!([]),
        json!({"sub": "actor"}),
        json!(-1),
        json!(0),
        json!(1e18),
        json!(u64::MAX),
        json!(true),
        Value::Null,
    ]);
    (
        prop::sample::select(names),
        prop_oneof![around, fraction, fixed],
    )
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let tails = vec![
        "",
        "",
        "",
        "",
        r#","x":[{"y":null}]"#,
        r#","sub":"bot-2""#,
        r#","z":1,"z":1"#,
        " ",
    ];
    let damage = prop_oneof![3 => Just(None), 1 => (any::<prop::sample::Index>(), 0x20_u8..0x7f).prop_map(Some)];
    (
        any::<bool>(),
        prop::collection::vec(header_member(), 0..2),
        prop::collection::vec(claim(), 0..3),
        prop::sample::select(tails),
        damage,
    )
        .prop_map(|(ed25519, header, claims, tail, damage)| Recipe {
            ed25519,
            header,
            claims,
            tail,
            damage,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_verifiers_agree(recipe in recipe()) {
        let token = recipe.token();
        let theirs = theirs(&token);
        match ours(&token) {
            Ok(_) => {
                let media_type = recipe.header.iter().any(|(_, value)| value == "application/jwt");
                prop_assert!(theirs || media_type, "we alone accept {token}");
            }
            Err(error) => {
                let fraction_or_edge = recipe.claims.iter().any(|(name, value)| {
                    matches!(*name, "exp" | "nbf" | "iat")
                        && (value.as_u64().is_none() || *value == json!(NOW - 30))
                });
                let stricter = match error.code() {
                    "unsupported_header" | "malformed" | "missing_claim" | "invalid_claim" => true,
                    "unknown_key" => recipe.header.iter().any(|(name, _)| *name == "kid"),
                    "expired" | "not_yet_valid" => fraction_or_edge,
                    _ => false,
                };
                prop_assert!(!theirs || stricter, "the other alone accepts, {error}: {token}");
            }
        }
    }

    #[test]
    fn no_text_makes_it_panic(token in ".{0,200}", segments in prop::collection::vec(any::<Vec<u8>>(), 3)) {
        prop_assert!(ours(&token).is_err());
        let segments: Vec<String> = segments.iter().map(|bytes| URL_SAFE_NO_PAD.encode(bytes)).collect();
        prop_assert!(ours(&segments.join(".")).is_err());
        let _refused = Credential::parse(token.as_bytes()).is_err();
        prop_assert!(VerifyingKey::from_pem(&token).is_err());
        prop_assert!(KeySet::parse(&token).is_err());
    }
}

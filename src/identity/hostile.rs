//! Tokens as an attacker writes them, each with the refusal it must get; below,
//! their signatures and keys.

mod keys;
mod signatures;

use super::*;
use crate::egress::{AgentId, Destination, TenantId};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

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

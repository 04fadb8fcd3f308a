//! Only what was signed is accepted, in the one spelling in which it was
//! signed, and only as long as it says. What is signed by the right key, an
//! independent implementation accepts and refuses with us, but for the
//! differences that are written down.
#![no_main]

#[path = "../../src/identity/differences.rs"]
mod differences;

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use agentport::egress::AgentId;
use agentport::identity::{
    IssueRequest, SigningKey, TokenError, TokenIssuer, TokenVerifier, TrustedIssuer,
    VerifierSettings, VerifyingKeys,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jwt_simple::prelude::{
    Duration as Seconds, HS256Key, MACLike, NoCustomClaims, UnixTimeStamp, VerificationOptions,
};
use libfuzzer_sys::fuzz_target;
use ring::hmac;
use serde_json::Value;

const NOW: u64 = 1_900_000_000;
const SECRET: &str = "a shared secret that only this target knows";

struct Setup {
    verifier: TokenVerifier,
    /// One token of each key.
    tokens: [String; 2],
}

static SETUP: LazyLock<Setup> = LazyLock::new(|| {
    let keys = [
        SigningKey::from_secret(SECRET).expect("a secret"),
        SigningKey::from_pem(&ed25519()).expect("a key"),
    ];
    let public = keys.each_ref().map(|key| key.verifying_key().clone());
    let keys_in_force = VerifyingKeys::new()
        .with(TrustedIssuer::default(), public)
        .expect("distinct ids");
    let tokens = keys.map(|key| {
        let request = IssueRequest {
            agent: AgentId::parse("bot-01").expect("a name"),
            tenant: None,
            destinations: None,
            lifetime: Duration::from_secs(900),
            audience: None,
            jti: 7,
            actors: Vec::new(),
            scope: None,
            client: None,
        };
        TokenIssuer::new(key, "agentport", "agentport")
            .issue(&request, NOW)
            .expect("a token")
    });
    let verifier = TokenVerifier::new(keys_in_force, VerifierSettings::default());
    for token in &tokens {
        verifier.verify(token, NOW).expect("as it was issued");
    }
    Setup { verifier, tokens }
});

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    match kind % 4 {
        0 => arbitrary(rest),
        1 => changed(&SETUP.tokens[0], rest),
        2 => changed(&SETUP.tokens[1], rest),
        _ => signed(rest),
    }
});

/// Nobody guesses a signature.
fn arbitrary(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(principal) = SETUP.verifier.verify(text, NOW) {
        assert!(
            SETUP.tokens.iter().any(|token| token == text),
            "{principal:?}"
        );
    }
}

/// A token with some characters replaced, taken out or put in.
fn changed(token: &str, edits: &[u8]) {
    let mut text = token.as_bytes().to_vec();
    for edit in edits.chunks_exact(4).take(8) {
        let at = usize::from(u16::from_be_bytes([edit[0], edit[1]])) % (text.len() + 1);
        match edit[2] % 4 {
            0 => text.insert(at, edit[3]),
            1 if at < text.len() => drop(text.remove(at)),
            2 => text.truncate(at),
            _ if at < text.len() => text[at] = edit[3],
            _ => text.push(edit[3]),
        }
    }
    let Ok(text) = String::from_utf8(text) else {
        return;
    };
    if text != token {
        let accepted = SETUP.verifier.verify(&text, NOW);
        assert!(accepted.is_err(), "{text:?}");
    }
}

/// A header and claims of the fuzzer's choice, divided by a zero byte and
/// signed with the right key, as an issuer with a bug would do it.
fn signed(bytes: &[u8]) {
    let at = bytes.iter().position(|b| *b == 0).unwrap_or(0);
    let (header, claims) = bytes.split_at(at);
    let header = if header.is_empty() {
        &br#"{"alg":"HS256"}"#[..]
    } else {
        header
    };
    let claims = claims.strip_prefix(&[0]).unwrap_or(claims);
    let mut token = [header, claims]
        .map(|part| URL_SAFE_NO_PAD.encode(part))
        .join(".");
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = hmac::sign(&key, token.as_bytes());
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    let texts = differences::Texts { header, claims };
    let principal = match SETUP.verifier.verify(&token, NOW) {
        Ok(principal) => principal,
        // The other is not asked to look at less than all of it.
        Err(TokenError::TooLarge { .. }) => return,
        Err(error) => {
            let claim = match &error {
                TokenError::MissingClaim { claim, .. } | TokenError::InvalidClaim { claim, .. } => {
                    Some(claim.as_str())
                }
                _ => None,
            };
            let known = differences::they_alone(error.code(), claim, texts, NOW - 30);
            assert!(
                known.is_some() || !theirs(&token),
                "the other alone accepts, {error}: {token}"
            );
            return;
        }
    };
    let known = differences::we_alone(texts);
    assert!(known.is_some() || theirs(&token), "we alone accept {token}");
    let header: Value = serde_json::from_slice(header).expect("a JSON header");
    assert_eq!(header["alg"], "HS256");
    for refused in ["crit", "b64", "jku", "jwk", "x5u", "x5c"] {
        assert_eq!(header.get(refused), None, "{header}");
    }
    let claims: Value = serde_json::from_slice(claims).expect("JSON claims");
    let agent = claims.get("agent_id").or(claims.get("sub"));
    assert_eq!(
        agent.and_then(Value::as_str),
        Some(principal.agent().as_str())
    );
    assert_eq!(claims["iss"], "agentport");
    let exp = claims["exp"].as_f64().expect("a number");
    assert!(exp > (NOW - 30) as f64 - 1.0, "{claims}");
    assert!(principal.expires_at() as f64 <= exp, "{claims}");
    let restricted = claims.get("allowed_destinations").is_some();
    assert_eq!(principal.destinations().is_some(), restricted, "{claims}");
    // And no more than until then.
    let late = principal.expires_at() + 30;
    assert!(SETUP.verifier.verify(&token, late).is_err(), "{claims}");
}

/// Whether the other implementation accepts a token of the shared secret.
fn theirs(token: &str) -> bool {
    let only = || Some(HashSet::from(["agentport".to_owned()]));
    let options = VerificationOptions {
        allowed_issuers: only(),
        allowed_audiences: only(),
        time_tolerance: Some(Seconds::from_secs(30)),
        artificial_time: Some(UnixTimeStamp::from_secs(NOW)),
        ..VerificationOptions::default()
    };
    HS256Key::from_bytes(SECRET.as_bytes())
        .verify_token::<NoCustomClaims>(token, Some(options))
        .is_ok()
}

/// An Ed25519 key that is always the same (RFC 8410), so that a finding can be
/// run again. It is used nowhere else.
fn ed25519() -> String {
    let mut der = vec![
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];
    der.extend([7; 32]);
    let body = STANDARD.encode(der);
    format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
}

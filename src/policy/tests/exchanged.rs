//! An exchanged token comes to the same document of its tenant as the token it
//! was exchanged from, whatever documents there are and whomever either is for.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::json;

use super::*;
use crate::identity::{
    AgentClaim, Principal, ServiceAccount, ServiceAccounts, SigningKey, Terms, TokenIssuer,
    TokenRequest, TokenVerifier, TrustedIssuer, VerifierSettings, VerifyingKey, VerifyingKeys,
    exchange, generate_ed25519, public_jwks,
};

const NOW: u64 = 1_767_225_600;
const OURS: &str = "0123456789abcdef0123456789abcdef";
const THEIRS: &str = "fedcba9876543210fedcba9876543210";
const FOREIGN: &str = "https://idp.example";

/// A token of this tenant's agent, for these.
fn token(secret: &str, issuer: &str, audiences: &[&str]) -> String {
    let part = |text: String| URL_SAFE_NO_PAD.encode(text);
    let key = VerifyingKey::from_secret(secret).expect("a secret");
    let header = json!({"alg": "HS256", "kid": key.id().as_ref()});
    let claims = json!({
        "iss": issuer, "aud": audiences, "sub": "bot", "tenant": "acme",
        "iat": NOW, "exp": NOW + 600, "jti": "parent",
    });
    let signed = format!("{}.{}", part(header.to_string()), part(claims.to_string()));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// A gateway for `audience`, which trusts us and another issuer, for `dev`.
fn verifier(audience: &str, ours: TrustedIssuer) -> TokenVerifier {
    let ours = TrustedIssuer {
        audiences: vec![audience.to_owned()],
        ..ours
    };
    let theirs = TrustedIssuer {
        published: false,
        ..TrustedIssuer::own(FOREIGN, "dev")
    };
    let key = |secret: &str| VerifyingKey::from_secret(secret).expect("a secret");
    let keys = VerifyingKeys::new()
        .with(ours, [key(OURS)])
        .and_then(|keys| keys.with(theirs, [key(THEIRS)]));
    TokenVerifier::new(keys.expect("keys"), VerifierSettings::default())
}

fn exchanged(subject: &Principal, account: Option<&ServiceAccount>, audience: &str) -> String {
    let form = format!(
        "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token=x\
         &subject_token_type=urn:ietf:params:oauth:token-type:access_token&audience={audience}"
    );
    let request = TokenRequest::parse(form.as_bytes(), None).expect("a request");
    let terms = Terms {
        audience: "agentport".to_owned(),
        default_ttl: Duration::from_secs(60),
        max_ttl: Duration::from_secs(60),
        max_actors: 2,
    };
    let (granted, descent) =
        exchange(account, &request, subject, None, &terms, (NOW, 1)).expect("a grant");
    let key = SigningKey::from_secret(OURS).expect("a secret");
    TokenIssuer::new(key, "agentport", "agentport")
        .issue_descending(&granted, NOW, &descent)
        .expect("a token")
}

/// All lists of some of these, the empty one too.
fn subsets<'a>(of: &[&'a str]) -> Vec<Vec<&'a str>> {
    (0..1_usize << of.len())
        .map(|bits| {
            let held = |(at, one): (usize, &&'a str)| ((bits >> at) & 1 == 1).then_some(*one);
            of.iter().enumerate().filter_map(held).collect()
        })
        .collect()
}

/// Documents of one tenant, and where a token comes to.
fn policies() -> Vec<PolicySet> {
    let possible = [
        "",
        "agentport",
        "dev",
        "prod",
        "batch, agentport",
        "prod, dev",
    ];
    let document = |audience: &str| match audience {
        "" => "version: 1\ntenant: acme\n".to_owned(),
        some => format!("version: 1\ntenant: acme\naudience: [{some}]\n"),
    };
    let sets: Vec<PolicySet> = subsets(&possible)
        .iter()
        .filter(|chosen| !chosen.is_empty())
        .filter_map(|chosen| {
            let texts: Vec<String> = chosen.iter().map(|audience| document(audience)).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            // Those that name an audience twice are none.
            build(&texts).ok()
        })
        .collect();
    assert!(sets.len() > 20, "{}", sets.len());
    sets
}

#[test]
fn an_exchanged_token_comes_to_its_parents_document() {
    let pem = generate_ed25519().expect("a key");
    let key = SigningKey::from_pem(&pem).expect("a key");
    let jwks = public_jwks([key.verifying_key()]);
    let accounts = &format!(
        "version: 1\naccounts:\n- {{id: broker, agents: any, tenants: any, destinations: any, audiences: [prod], jwks: {jwks}}}\n"
    );
    let accounts = ServiceAccounts::parse(accounts).expect("accounts");
    let broker = accounts.get("broker").map(|account| &**account);
    let policies = policies();
    let own = || TrustedIssuer::own("agentport", "agentport");
    let here = verifier("agentport", own());
    let read = |verifier: &TokenVerifier, token: &str| {
        verifier.verify(token, NOW).expect("a token that is good")
    };
    let mut told_apart = 0;
    let mut same = |parent: &Principal, child: &Principal, case: &str| {
        for set in &policies {
            let place = |who: &Principal| set.rules.place_of(&who.subject());
            assert_eq!(place(parent), place(child), "{case}");
            let narrowed = ["agentport".to_owned()];
            let by_aud = set
                .rules
                .place_for(child.tenant(), Some(narrowed.as_slice()));
            told_apart += usize::from(by_aud != place(parent));
        }
    };
    for (secret, issuer, required) in [(OURS, "agentport", "agentport"), (THEIRS, FOREIGN, "dev")] {
        for audiences in subsets(&["agentport", "dev", "prod", "batch", "other"]) {
            if !audiences.contains(&required) {
                continue;
            }
            let case = format!("{issuer} for {audiences:?}");
            let parent = read(&here, &token(secret, issuer, &audiences));
            let child = exchanged(&parent, None, "");
            let child = read(&here, &child);
            same(&parent, &child, &case);
            // Once more, and by an account.
            let grandchild = exchanged(&child, broker, "agentport");
            same(&parent, &read(&here, &grandchild), &case);
            // Where the gateway that it is for knows us as somebody else.
            for claim in [AgentClaim::Own, AgentClaim::Named("sub".to_owned())] {
                let partner = TrustedIssuer {
                    agent: claim,
                    published: false,
                    ..own()
                };
                let there = verifier("agentport", partner);
                same(&parent, &read(&there, &grandchild), &case);
            }
            // And for another audience, which the account may have.
            let there = verifier("prod", own());
            same(
                &parent,
                &read(&there, &exchanged(&child, broker, "prod")),
                &case,
            );
        }
    }
    assert!(told_apart > 0, "nothing here could have failed");
}

//! Who asks: a missing credential is asked for, a bad one is refused, and no
//! origin ever sees one.

use agentport::identity::SigningKey;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use crate::ask_lossy;
use crate::support::gateway::{Gateway, LOOPBACK_POLICY, SECRET, token, token_with};
use crate::support::origin::{Origin, Untouched};
use crate::support::ports;

fn with(field: &str, port: u16) -> String {
    format!("GET http://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\n{field}\r\n\r\n")
}

/// A token with this header and these claims, signed with the shared secret.
fn signed(header: &str, claims: &str) -> String {
    signed_with(SECRET, header, claims)
}

fn signed_with(secret: &str, header: &str, claims: &str) -> String {
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(claims)
    );
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    let tag = ring::hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

#[test]
fn a_missing_credential_is_asked_for_by_both_schemes() {
    let gateway = Gateway::open();
    let origin = Untouched::listen();
    for (case, field) in [
        ("none", "X: y"),
        (
            "one for the origin",
            &format!("Authorization: Bearer {}", token("bot")) as &str,
        ),
        ("one in a cookie", "Cookie: token=x"),
    ] {
        let (asked, mut client) = ask_lossy(&gateway, with(field, origin.port()));
        assert_eq!(
            (asked.status, asked.refusal()),
            (407, "no_credential"),
            "{case}"
        );
        let offered = asked.head.all("proxy-authenticate");
        assert_eq!(
            offered,
            ["Basic realm=\"agentport\"", "Bearer realm=\"agentport\""],
            "{case}"
        );
        assert!(asked.field("content-length").is_some(), "{case}");
        assert_eq!(asked.field("connection"), Some("close"), "{case}");
        assert!(client.closes(), "{case}: the connection is closed");
        origin.check(case);
    }
    assert!(gateway.names().asked().is_empty());
}

#[test]
fn every_way_to_send_a_token_works() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let token = token("bot");
    let basic = |pair: String| format!("Proxy-Authorization: Basic {}", STANDARD.encode(pair));
    for (case, field) in [
        ("Bearer", format!("Proxy-Authorization: Bearer {token}")),
        (
            "bearer in lower case",
            format!("proxy-authorization: bearer {token}"),
        ),
        ("Basic with the agent's name", basic(format!("bot:{token}"))),
        ("Basic with any name", basic(format!("x:{token}"))),
        ("Basic without a name", basic(format!(":{token}"))),
        ("Basic with the token as name", basic(format!("{token}:"))),
        (
            "Basic with a colon in the name",
            basic(format!("a:b:{token}")),
        ),
        (
            "Basic without padding",
            basic(format!("bo:{token}"))
                .trim_end_matches('=')
                .to_owned(),
        ),
        (
            "blanks around",
            format!("Proxy-Authorization:   Bearer   {token}  "),
        ),
    ] {
        let (answer, _) = ask_lossy(&gateway, with(&field, origin.port()));
        assert_eq!(answer.status, 200, "{case}: {}", answer.reason);
        let got = origin.last();
        assert!(got.field("proxy-authorization").is_none(), "{case}");
        assert!(
            !format!("{got:?}").contains(&token),
            "{case}: the token went on"
        );
        let record = gateway.record_of(&answer);
        assert_eq!(record["agent_id"], "bot", "{case}");
        assert!(!record.to_string().contains(&token), "{case}");
    }
}

#[test]
fn a_bad_credential_is_refused_with_its_reason() {
    let gateway = Gateway::open();
    let origin = Untouched::listen();
    let good = token("bot");
    let (message, signature) = good.rsplit_once('.').expect("a signature");
    let (header, claims) = message.split_once('.').expect("claims");
    let hs256 = r#"{"alg":"HS256","typ":"JWT"}"#;
    let body = r#"{"iss":"agentport","aud":"agentport","sub":"bot","agent_id":"bot","iat":1700000000,"exp":4000000000,"jti":"x"}"#;
    let wrong = |change: (&str, &str)| signed(hs256, &body.replace(change.0, change.1));
    let headed = |header: &str| signed(header, body);
    let none = format!(
        "{}.{claims}.",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#)
    );
    let bearer = |token: String| format!("Proxy-Authorization: Bearer {token}");
    let basic = |pair: &str| format!("Proxy-Authorization: Basic {}", STANDARD.encode(pair));
    // The secret signs what it ought to, so that each case fails for its own
    // reason alone.
    assert!(SigningKey::from_secret(SECRET).is_ok());
    let own = bearer(signed(hs256, body));
    let (control, _) = ask_lossy(&gateway, with(&own, ports::free()));
    assert_eq!(
        (control.status, control.refusal()),
        (502, "connect_refused")
    );

    for (case, field) in [
        ("no scheme", "Proxy-Authorization: x".to_owned()),
        ("an empty value", "Proxy-Authorization:".to_owned()),
        (
            "Bearer without a token",
            "Proxy-Authorization: Bearer".to_owned(),
        ),
        (
            "another scheme",
            format!("Proxy-Authorization: Digest {good}"),
        ),
        (
            "a token without a scheme",
            format!("Proxy-Authorization: {good}"),
        ),
        (
            "Basic that is no base64",
            "Proxy-Authorization: Basic %%%".to_owned(),
        ),
        ("Basic without a colon", basic("bot")),
        ("Basic with an empty pair", basic(":")),
        ("Basic with a password", basic("bot:secret")),
        (
            "two in one field",
            format!("Proxy-Authorization: Bearer {good}, Bearer {good}"),
        ),
        ("two parts", bearer(message.to_owned())),
        ("four parts", bearer(format!("{good}.x"))),
        ("no signature", bearer(format!("{message}."))),
        (
            "a signature cut short",
            bearer(good[..good.len() - 2].to_owned()),
        ),
        (
            "another signature",
            bearer(format!(
                "{message}.{}",
                signature.chars().rev().collect::<String>()
            )),
        ),
        ("padding", bearer(format!("{good}="))),
        (
            "a character of another alphabet",
            bearer(format!("{header}.{claims}.+{}", &signature[1..])),
        ),
        ("the algorithm none", bearer(none)),
        ("the algorithm None", bearer(headed(r#"{"alg":"None"}"#))),
        ("the algorithm HS384", bearer(headed(r#"{"alg":"HS384"}"#))),
        ("the algorithm RS256", bearer(headed(r#"{"alg":"RS256"}"#))),
        ("the algorithm EdDSA", bearer(headed(r#"{"alg":"EdDSA"}"#))),
        ("no algorithm", bearer(headed(r#"{"typ":"JWT"}"#))),
        (
            "the algorithm twice",
            bearer(headed(r#"{"alg":"none","alg":"HS256"}"#)),
        ),
        (
            "a critical extension",
            bearer(headed(r#"{"alg":"HS256","crit":["x"],"x":1}"#)),
        ),
        ("b64", bearer(headed(r#"{"alg":"HS256","b64":false}"#))),
        (
            "a key of its own",
            bearer(headed(r#"{"alg":"HS256","jwk":{"kty":"oct","k":"AAAA"}}"#)),
        ),
        (
            "a key by URL",
            bearer(headed(r#"{"alg":"HS256","jku":"http://a.test/"}"#)),
        ),
        (
            "a certificate by URL",
            bearer(headed(r#"{"alg":"HS256","x5u":"http://a.test/"}"#)),
        ),
        (
            "another type",
            bearer(headed(r#"{"alg":"HS256","typ":"secevent+jwt"}"#)),
        ),
        (
            "a key that nobody has",
            bearer(headed(r#"{"alg":"HS256","kid":"../../etc/passwd"}"#)),
        ),
        (
            "another secret",
            bearer(signed_with(
                "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
                hs256,
                body,
            )),
        ),
        ("an empty secret", bearer(signed_with("", hs256, body))),
        (
            "it has expired",
            bearer(wrong(("4000000000", "1700000001"))),
        ),
        (
            "it never expires",
            bearer(wrong((r#","exp":4000000000"#, ""))),
        ),
        (
            "its end is a text",
            bearer(wrong(("4000000000", r#""4000000000""#))),
        ),
        (
            "its end is beyond all bounds",
            bearer(wrong(("4000000000", "1e400"))),
        ),
        (
            "it is not valid yet",
            bearer(wrong((r#""jti""#, r#""nbf":3999999999,"jti""#))),
        ),
        (
            "another issuer",
            bearer(wrong((r#""iss":"agentport""#, r#""iss":"other""#))),
        ),
        (
            "another audience",
            bearer(wrong((r#""aud":"agentport""#, r#""aud":"other""#))),
        ),
        ("no audience", bearer(wrong((r#""aud":"agentport","#, "")))),
        (
            "no agent",
            bearer(wrong((r#""sub":"bot","agent_id":"bot","#, ""))),
        ),
        (
            "two agents",
            bearer(wrong((
                r#""agent_id":"bot","#,
                r#""agent_id":"bot","agent_id":"root","#,
            ))),
        ),
        (
            "an agent that is a list",
            bearer(wrong((r#""agent_id":"bot""#, r#""agent_id":["bot"]"#))),
        ),
        (
            "an agent with a line feed",
            bearer(wrong((r#""agent_id":"bot""#, r#""agent_id":"b\not""#))),
        ),
        (
            "destinations that are a word",
            bearer(wrong((r#""jti""#, r#""allowed_destinations":"*","jti""#))),
        ),
        (
            "a destination that is none",
            bearer(wrong((
                r#""jti""#,
                r#""allowed_destinations":["**"],"jti""#,
            ))),
        ),
        ("claims that are a list", bearer(signed(hs256, "[]"))),
        (
            "claims with more behind",
            bearer(signed(hs256, &format!("{body}{{}}"))),
        ),
        (
            "over 8 KiB",
            bearer(wrong((
                r#""jti":"x""#,
                &format!(r#""jti":"{}""#, "x".repeat(8192)),
            ))),
        ),
    ] {
        let (refused, _) = ask_lossy(&gateway, with(&field, origin.port()));
        assert_eq!(refused.status, 403, "{case}: {}", refused.reason);
        let word = refused.refusal();
        assert!(
            !matches!(word, "" | "no_credential" | "no_rule" | "bad_request"),
            "{case}: {word}"
        );
        assert_eq!(refused.json()["error"], word, "{case}");
        assert!(refused.field("proxy-authenticate").is_none(), "{case}");
        origin.check(case);
        let record = gateway.record_of(&refused);
        assert_eq!(record["reason"], word, "{case}");
        assert_eq!(record["action_allowed"], false, "{case}");
    }
    assert!(
        !gateway.names().asked().iter().any(|name| name != "a.test"),
        "no key was fetched"
    );
}

#[test]
fn a_bad_credential_may_be_answered_with_407_where_so_configured() {
    let gateway = Gateway::start(LOOPBACK_POLICY, &[("auth_failure_status", "407")]);
    let (asked, mut client) = ask_lossy(&gateway, with("Proxy-Authorization: Bearer x", 1));
    assert_eq!(asked.status, 407);
    assert_eq!(asked.head.all("proxy-authenticate").len(), 2);
    assert_ne!(asked.refusal(), "no_credential");
    assert!(client.closes());
}

#[test]
fn a_user_name_must_be_the_agents_where_so_configured() {
    let gateway = Gateway::start(LOOPBACK_POLICY, &[("identity.basic_user", "match")]);
    let origin = Origin::ok();
    let basic = |user: &str| {
        let pair = STANDARD.encode(format!("{user}:{}", token("bot")));
        with(&format!("Proxy-Authorization: Basic {pair}"), origin.port())
    };
    assert_eq!(ask_lossy(&gateway, basic("bot")).0.status, 200);
    for user in ["root", "BOT", "bot "] {
        let (refused, _) = ask_lossy(&gateway, basic(user));
        assert_eq!(
            (refused.status, refused.refusal()),
            (403, "user_mismatch"),
            "{user:?}"
        );
    }
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn a_token_bounds_where_its_agent_may_go() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let only = token_with("bot", None, Some(&["a.test"]));
    for (host, status) in [("a.test", 200), ("b.test", 403), ("x.a.test", 403)] {
        let request = format!(
            "GET http://{host}:{0}/ HTTP/1.1\r\nHost: {host}:{0}\r\nProxy-Authorization: Bearer {only}\r\n\r\n",
            origin.port()
        );
        let (answer, _) = ask_lossy(&gateway, request);
        assert_eq!(answer.status, status, "{host}");
        if status == 403 {
            assert_eq!(answer.refusal(), "not_in_token");
        }
    }
    assert_eq!(origin.requests().len(), 1);
}

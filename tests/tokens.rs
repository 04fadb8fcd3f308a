//! Tokens over HTTP: the real gateway, its token endpoint over real sockets,
//! and what is issued there used at the proxy.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each file of tests uses a part")]
mod support;

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use agentport::egress::AgentId;
use agentport::identity::{IssueRequest, SigningKey, TokenIssuer, generate_ed25519, public_jwks};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::Ed25519KeyPair;
use serde_json::{Value, json};
use support::conn::{Conn, Response};
use support::gateway::{Gateway, LOOPBACK_POLICY, SECRET, token_with};
use support::origin::{Origin, Untouched};
use support::wait_for;

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A file of accounts, written by the program's own command.
struct Accounts {
    folder: tempfile::TempDir,
}

impl Accounts {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("accounts.yaml")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let file = format!("--file={}", self.path().display());
        Command::new(env!("CARGO_BIN_EXE_agentport"))
            .arg("service-account")
            .args(arguments)
            .arg(file)
            .env_clear()
            .output()
            .expect("the program runs")
    }

    /// Runs a command that must succeed, and gives the line that it prints.
    fn key(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout)
            .expect("text")
            .trim_end()
            .to_owned()
    }

    /// An account that may have anything.
    fn open(&self, id: &str) -> String {
        self.key(&["create", id, "--agent=any", "--allow=any"])
    }

    fn gateway(&self) -> Gateway {
        self.gateway_with(&[])
    }

    fn gateway_with(&self, settings: &[(&str, &str)]) -> Gateway {
        let path = self.path().display().to_string();
        let mut all = vec![("identity.service_accounts", path.as_str())];
        all.extend_from_slice(settings);
        Gateway::start(LOOPBACK_POLICY, &all)
    }
}

/// Sends a form to the token endpoint.
fn post(gateway: &Gateway, fields: &str, form: &[(&str, &str)]) -> Response {
    post_to(gateway, "/oauth/token", fields, form)
}

/// Sends a form to a page of the admin listener.
fn post_to(gateway: &Gateway, path: &str, fields: &str, form: &[(&str, &str)]) -> Response {
    let body: Vec<String> = form
        .iter()
        .map(|(name, value)| format!("{name}={}", escaped(value)))
        .collect();
    let body = body.join("&");
    let mut conn = Conn::to(gateway.admin());
    conn.send(format!(
        "POST {path} HTTP/1.1\r\nHost: admin\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n{fields}Connection: close\r\n\r\n{body}",
        body.len()
    ));
    conn.response_to("POST")
}

fn escaped(value: &str) -> String {
    value
        .bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                char::from(b).to_string()
            }
            b => format!("%{b:02X}"),
        })
        .collect()
}

fn basic(id: &str, key: &str) -> String {
    let pair = STANDARD.encode(format!("{id}:{key}"));
    format!("Authorization: Basic {pair}\r\n")
}

/// Asks for a token by the account's key.
fn ask(gateway: &Gateway, id: &str, key: &str, form: &[(&str, &str)]) -> Response {
    let grant = [("grant_type", "client_credentials")];
    post(gateway, &basic(id, key), &[&grant, form].concat())
}

/// The token in an answer that is one.
fn token_in(answer: &Response) -> String {
    assert_eq!(answer.status, 200, "{}", answer.json());
    let token = answer.json()["access_token"].clone();
    token.as_str().expect("a token").to_owned()
}

/// Status, `error` and `error_description` of an answer that is none.
fn refused(answer: &Response) -> (u16, String, String) {
    let body = answer.json();
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(answer.field("cache-control"), Some("no-store"));
    assert!(body.get("access_token").is_none(), "{body}");
    (answer.status, text("error"), text("error_description"))
}

fn claims(token: &str) -> Value {
    let claims = token.split('.').nth(1).expect("claims");
    let claims = URL_SAFE_NO_PAD.decode(claims).expect("base64url");
    serde_json::from_slice(&claims).expect("JSON")
}

/// What the proxy answers to a GET with this token.
fn through(gateway: &Gateway, token: &str, host: &str, port: u16) -> Response {
    let mut conn = gateway.connect();
    conn.send(format!(
        "GET http://{host}:{port}/ HTTP/1.1\r\nHost: {host}:{port}\r\nProxy-Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    ));
    conn.response()
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

#[test]
fn an_account_gets_a_token_that_the_proxy_takes_and_the_record_says_so() {
    let accounts = Accounts::new();
    let key = accounts.key(&[
        "create",
        "ci",
        "--agent=ci-*",
        "--tenant=acme",
        "--allow=*.a.test,10.0.0.0/8",
        "--scope=read write",
        "--max-ttl=1h",
    ]);
    assert!(key.starts_with("apsa_ci_"), "{key}");
    let gateway = accounts.gateway();
    let (origin, other) = (Origin::ok(), Untouched::listen());
    let answer = ask(
        &gateway,
        "ci",
        &key,
        &[("agent_id", "ci-7"), ("scope", "read"), ("ttl", "5m")],
    );
    assert_eq!(answer.field("cache-control"), Some("no-store"));
    let body = answer.json();
    assert_eq!(body["token_type"], "Bearer", "{body}");
    assert_eq!(body["expires_in"], 300);
    assert_eq!(body["scope"], "read");
    let token = token_in(&answer);
    let says = claims(&token);
    assert_eq!(says["agent_id"], "ci-7");
    assert_eq!(says["tenant"], "acme", "the only one");
    assert_eq!(says["client_id"], "ci");
    assert_eq!(
        says["allowed_destinations"],
        json!(["*.a.test", "10.0.0.0/8"]),
        "the account's bound, since none was asked for"
    );
    let answer = through(&gateway, &token, "x.a.test", origin.port());
    assert_eq!(answer.status, 200);
    assert_eq!(
        gateway.record_of(&answer)["service_account"],
        "ci",
        "whose token it is"
    );
    let answer = through(&gateway, &token, "b.test", other.port());
    assert_eq!(answer.status, 403, "outside the account's bound");
    let record = gateway.record("the token", |record| record["event"] == "token_issued");
    assert_eq!(record["agent_id"], "ci-7");
    assert_eq!(record["tenant"], "acme");
    assert_eq!(record["service_account"], "ci");
    assert_eq!(record["token_jti"], says["jti"]);
    assert_eq!(record["token_ttl_s"], 300);
    assert!(
        gateway
            .metrics()
            .contains("agentport_tokens_total{grant=\"client_credentials\",outcome=\"issued\"} 1")
    );
    let written = format!("{:?}{:?}", gateway.records(), gateway.said());
    assert!(!written.contains(&key) && !written.contains(&token));
}

#[test]
fn what_an_account_may_not_have() {
    let accounts = Accounts::new();
    let bounded = accounts.key(&[
        "create",
        "ci",
        "--agent=ci-1,ci-2",
        "--allow=*.a.test",
        "--scope=read",
        "--max-ttl=1h",
    ]);
    let gateway = accounts.gateway();
    let agent = ("agent_id", "ci-1");
    for (case, form, status, error, says) in [
        (
            "no agent, of two",
            &[][..],
            400,
            "invalid_request",
            "agent_id is missing",
        ),
        (
            "another agent",
            &[("agent_id", "root")],
            400,
            "unauthorized_client",
            "agent_id",
        ),
        (
            "a tenant",
            &[agent, ("tenant", "acme")],
            400,
            "unauthorized_client",
            "tenant",
        ),
        (
            "a host outside",
            &[agent, ("allowed_destinations", "x.a.test b.test")],
            400,
            "invalid_target",
            "b.test is not within",
        ),
        (
            "the whole suffix",
            &[agent, ("allowed_destinations", "*")],
            400,
            "invalid_target",
            "* is not within",
        ),
        (
            "a host that is none",
            &[agent, ("allowed_destinations", "https://x.a.test")],
            400,
            "invalid_request",
            "allowed_destinations: 'https://x.a.test': write the host only",
        ),
        (
            "a word of scope",
            &[agent, ("scope", "read admin")],
            400,
            "invalid_scope",
            "admin",
        ),
        (
            "a longer life",
            &[agent, ("ttl", "2h")],
            400,
            "invalid_request",
            "ttl: write at most 3600",
        ),
        (
            "no time",
            &[agent, ("ttl", "soon")],
            400,
            "invalid_request",
            "ttl: write a lifetime",
        ),
        (
            "another audience",
            &[agent, ("audience", "elsewhere")],
            400,
            "invalid_target",
            "audience",
        ),
    ] {
        let answer = refused(&ask(&gateway, "ci", &bounded, form));
        assert_eq!(
            (answer.0, answer.1.as_str()),
            (status, error),
            "{case}: {answer:?}"
        );
        assert!(answer.2.contains(says), "{case}: {answer:?}");
    }
    let record = gateway.record("a refusal", |record| {
        record["event"] == "token_refused" && record["reason"] == "invalid_scope"
    });
    assert_eq!(record["service_account"], "ci");
    assert_eq!(record["action_allowed"], false);
}

#[test]
fn requests_that_are_none() {
    let accounts = Accounts::new();
    let key = accounts.open("ci");
    let gateway = accounts.gateway();
    let by = basic("ci", &key);
    let grant = ("grant_type", "client_credentials");
    let agent = ("agent_id", "bot");
    for (case, fields, form, status, error) in [
        ("nothing", "", &[][..], 400, "invalid_request"),
        ("no client", "", &[grant, agent], 401, "invalid_client"),
        (
            "a name alone",
            "",
            &[grant, agent, ("client_id", "ci")],
            401,
            "invalid_client",
        ),
        (
            "a bearer",
            "Authorization: Bearer x\r\n",
            &[grant, agent],
            401,
            "invalid_client",
        ),
        (
            "another grant",
            &by,
            &[("grant_type", "password"), agent],
            400,
            "unsupported_grant_type",
        ),
        (
            "two grants",
            &by,
            &[grant, grant, agent],
            400,
            "invalid_request",
        ),
        (
            "two ways at once",
            &by,
            &[grant, agent, ("client_secret", "x"), ("client_id", "ci")],
            400,
            "invalid_request",
        ),
        (
            "another name beside Basic",
            &by,
            &[grant, agent, ("client_id", "cd")],
            400,
            "invalid_request",
        ),
        (
            "Basic twice",
            &by.repeat(2),
            &[grant, agent],
            400,
            "invalid_request",
        ),
        (
            "an exchange of nothing",
            &by,
            &[("grant_type", EXCHANGE)],
            400,
            "invalid_request",
        ),
    ] {
        let answer = post(&gateway, fields, form);
        if status == 401 {
            assert!(answer.field("www-authenticate").is_some(), "{case}");
        }
        let answer = refused(&answer);
        assert_eq!(
            (answer.0, answer.1.as_str()),
            (status, error),
            "{case}: {answer:?}"
        );
    }
    // By form, and under the other name of the endpoint.
    let form = [grant, agent, ("client_id", "ci"), ("client_secret", &key)];
    token_in(&post(&gateway, "", &form));
    for (case, head, status) in [
        (
            "JSON",
            "POST /v1/token HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2",
            400,
        ),
        ("a GET", "GET /oauth/token HTTP/1.1", 405),
        (
            "too long",
            "POST /oauth/token HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 70000",
            400,
        ),
    ] {
        let mut conn = Conn::to(gateway.admin());
        conn.send_lossy(format!(
            "{head}\r\nHost: admin\r\nConnection: close\r\n\r\n{{}}{}",
            "x".repeat(70_000)
        ));
        assert_eq!(conn.response_to("POST").status, status, "{case}");
    }
    // Agents have no such endpoint.
    let mut conn = gateway.connect();
    conn.send("POST /oauth/token HTTP/1.1\r\nHost: egress\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert_ne!(conn.response_to("POST").status, 200);
}

#[test]
fn wrong_keys_look_alike_and_are_throttled_before_any_hash() {
    let accounts = Accounts::new();
    let key = accounts.open("ci");
    let other = accounts.open("other");
    let gateway = accounts.gateway();
    let agent = [("agent_id", "bot")];
    let wrong = format!("{}{}", &key[..key.len() - 64], "0".repeat(64));
    let nobody = wrong.replace("_ci_", "_nobody_");
    let first = refused(&ask(&gateway, "ci", &wrong, &agent));
    assert_eq!((first.0, first.1.as_str()), (401, "invalid_client"));
    let unknown = refused(&ask(&gateway, "nobody", &nobody, &agent));
    assert_eq!(first, unknown, "nobody learns which accounts there are");
    let throttled = wait_for("the throttle", || {
        let answer = ask(&gateway, "ci", &wrong, &agent);
        (answer.status == 429).then_some(answer)
    });
    let seconds = throttled.field("retry-after").expect("when to come again");
    assert!((1..10).contains(&seconds.parse::<u64>().expect("seconds")));
    assert_eq!(refused(&throttled).1, "slow_down");
    token_in(&ask(&gateway, "other", &other, &agent));
    let record = gateway.record("a wrong key", |record| record["reason"] == "invalid_client");
    assert_eq!(record["service_account"], Value::Null, "it was not proven");
    assert!(
        record["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("\"ci\""))
    );
    assert!(gateway.metrics().contains("outcome=\"slow_down\""));
}

#[test]
fn an_account_has_as_many_tokens_as_its_rate_says() {
    let accounts = Accounts::new();
    let key = accounts.key(&["create", "ci", "--agent=bot", "--allow=any", "--rate=2/h"]);
    let gateway = accounts.gateway();
    // Its one agent need not be named.
    for _ in 0..2 {
        assert_eq!(
            claims(&token_in(&ask(&gateway, "ci", &key, &[])))["agent_id"],
            "bot"
        );
    }
    // What is refused costs none.
    let answer = ask(&gateway, "ci", &key, &[]);
    assert_eq!(refused(&answer).0, 429);
    assert!(answer.field("retry-after").is_some());
}

#[test]
fn an_exchange_narrows_and_never_widens() {
    let accounts = Accounts::new();
    let key = accounts.key(&[
        "create",
        "broker",
        "--agent=any",
        "--allow=*.a.test",
        "--tenant=any",
    ]);
    let gateway = accounts.gateway_with(&[("identity.max_delegation", "2")]);
    let (origin, other) = (Origin::ok(), Untouched::listen());
    let parent = token_with("planner", None, Some(&["*.a.test", "b.test"]));
    let helper = token_with("helper", None, None);
    let exchange = |fields: &str, subject: &str, more: &[(&str, &str)]| {
        let form = [
            ("grant_type", EXCHANGE),
            ("subject_token", subject),
            ("subject_token_type", ACCESS_TOKEN),
        ];
        post(&gateway, fields, &[&form[..], more].concat())
    };
    let acting = [
        ("actor_token", helper.as_str()),
        ("actor_token_type", ACCESS_TOKEN),
    ];

    let answer = exchange(
        "",
        &parent,
        &[
            &acting[..],
            &[("allowed_destinations", "x.a.test"), ("ttl", "60")],
        ]
        .concat(),
    );
    assert_eq!(
        answer.json()["issued_token_type"],
        ACCESS_TOKEN,
        "{}",
        answer.json()
    );
    let child = token_in(&answer);
    let says = claims(&child);
    assert_eq!(says["agent_id"], "planner", "on whose behalf");
    assert_eq!(says["act"], json!({"sub": "helper"}), "who acts");
    assert_eq!(says["allowed_destinations"], json!(["x.a.test"]));
    let answer = through(&gateway, &child, "x.a.test", origin.port());
    assert_eq!(answer.status, 200);
    assert_eq!(gateway.record_of(&answer)["act"], json!(["helper"]));
    assert_eq!(
        through(&gateway, &child, "b.test", other.port()).status,
        403,
        "the parent's, and not the child's"
    );

    // Never past the parent's end, whatever is asked for.
    let grandchild = token_in(&exchange(
        "",
        &child,
        &[&acting[..], &[("ttl", "1h")]].concat(),
    ));
    let heir = claims(&grandchild);
    assert!(
        heir["exp"].as_u64() <= says["exp"].as_u64(),
        "{heir} {says}"
    );
    assert_eq!(
        heir["act"],
        json!({"sub": "helper", "act": {"sub": "helper"}})
    );
    assert_eq!(heir["allowed_destinations"], json!(["x.a.test"]));

    // By an account, its bounds hold too.
    let by = basic("broker", &key);
    let brokered = claims(&token_in(&exchange(&by, &parent, &[])));
    assert_eq!(
        brokered["allowed_destinations"],
        json!(["*.a.test"]),
        "what both have"
    );
    assert_eq!(brokered["client_id"], "broker");
    assert!(brokered.get("act").is_none(), "nobody acts but the agent");

    let stranger = token_with("helper", Some("acme"), None);
    for (case, subject, more, error, says) in [
        (
            "wider",
            parent.as_str(),
            &[("allowed_destinations", "c.test")][..],
            "invalid_target",
            "subject token",
        ),
        (
            "another agent",
            &parent,
            &[("agent_id", "root")],
            "invalid_request",
            "agent_id",
        ),
        (
            "a tenant",
            &parent,
            &[("tenant", "acme")],
            "invalid_request",
            "tenant",
        ),
        (
            "a scope it has not",
            &parent,
            &[("scope", "read")],
            "invalid_scope",
            "read",
        ),
        (
            "another audience",
            &parent,
            &[("audience", "x")],
            "invalid_target",
            "audience",
        ),
        (
            "too long a chain",
            &grandchild,
            &acting,
            "invalid_request",
            "identity.max_delegation",
        ),
        (
            "an actor that is acted for",
            &parent,
            &[
                ("actor_token", child.as_str()),
                ("actor_token_type", ACCESS_TOKEN),
            ],
            "invalid_request",
            "delegated",
        ),
        (
            "an actor of another tenant",
            &parent,
            &[
                ("actor_token", stranger.as_str()),
                ("actor_token_type", ACCESS_TOKEN),
            ],
            "invalid_request",
            "tenant",
        ),
        ("no token", "abc", &[], "invalid_request", "subject_token"),
        (
            "a token of nobody's",
            &format!("{}x", &parent[..parent.len() - 4]),
            &[],
            "invalid_request",
            "subject_token",
        ),
    ] {
        let answer = refused(&exchange("", subject, more));
        assert_eq!(
            (answer.0, answer.1.as_str()),
            (400, error),
            "{case}: {answer:?}"
        );
        assert!(answer.2.contains(says), "{case}: {answer:?}");
    }
    let answer = refused(&exchange(
        &by,
        &parent,
        &[("allowed_destinations", "b.test")],
    ));
    assert!(answer.2.contains("service account"), "{answer:?}");
}

/// A token that this key of another issuer signs, over these claims.
fn foreign(pem: &str, kid: &str, more: &Value) -> String {
    let mut claims = json!({
        "iss": "https://idp.test", "aud": "agentport", "sub": "planner",
        "iat": now() - 5, "exp": now() + 900, "jti": "of-the-idp",
    });
    let members = more.as_object().expect("an object").clone();
    claims.as_object_mut().expect("an object").extend(members);
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = json!({"alg": "EdDSA", "kid": kid});
    let message = format!("{}.{}", part(&header), part(&claims));
    let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(der).expect("base64");
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).expect("a key");
    let signature = URL_SAFE_NO_PAD.encode(pair.sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// The public half of a key, as its issuer publishes it.
fn published(pem: &str, kid: &str) -> String {
    let key = SigningKey::from_pem(pem).and_then(|key| key.with_id(kid));
    public_jwks([key.expect("a key").verifying_key()])
}

/// A tenant's document is chosen by whom the token is for: an exchange is no
/// way from one document to another.
#[test]
fn an_exchange_does_not_change_the_document() {
    let accounts = Accounts::new();
    let key = accounts.key(&[
        "create",
        "broker",
        "--agent=any",
        "--allow=any",
        "--tenant=any",
    ]);
    let pem = generate_ed25519().expect("a key");
    let path = |name: &str| accounts.folder.path().join(name);
    let shown = |name: &str| path(name).display().to_string();
    std::fs::write(path("keys.json"), published(&pem, "f1")).expect("written");
    let issuer =
        json!({"issuer": "https://idp.test", "audience": "dev", "jwks_file": shown("keys.json")});
    let list = json!({ "issuers": [issuer] }).to_string();
    std::fs::write(path("issuers.yaml"), list).expect("written");
    let document = |audience: &str, host: &str| {
        format!(
            "version: 1\ntenant: acme\n{audience}rules:\n  - {{name: r, action: allow, agents: any, hosts: [{host}], addresses: [\"127.0.0.0/8\", \"::1/128\"], ports: any}}\n"
        )
    };
    for (case, audience) in [("named", "audience: [agentport]\n"), ("any", "")] {
        let folder = path(case);
        std::fs::create_dir(&folder).expect("a folder");
        for (file, text) in [
            ("dev.yaml", document("audience: [dev]\n", "dev.test")),
            ("prod.yaml", document(audience, "prod.test")),
        ] {
            std::fs::write(folder.join(file), text).expect("written");
        }
        let gateway = accounts.gateway_with(&[
            ("policy", &folder.display().to_string()),
            ("identity.issuers_file", &shown("issuers.yaml")),
        ]);
        let (origin, prod) = (Origin::ok(), Untouched::listen());
        let exchanged = |fields: &str, subject: &str| {
            let form = [
                ("grant_type", EXCHANGE),
                ("subject_token", subject),
                ("subject_token_type", ACCESS_TOKEN),
            ];
            token_in(&post(&gateway, fields, &form))
        };
        let of = |claims: &Value| foreign(&pem, "f1", claims);
        let by = basic("broker", &key);
        for (token, dev, reason) in [
            (of(&json!({"tenant": "acme", "aud": "dev"})), 200, "no_rule"),
            // It is for a document that is not there beside one that is.
            (
                of(&json!({"tenant": "acme", "aud": ["dev", "x"]})),
                200,
                "no_rule",
            ),
            // For two documents where one is named so, and else for the one.
            (
                of(&json!({"tenant": "acme", "aud": ["dev", "agentport"]})),
                if audience.is_empty() { 200 } else { 403 },
                if audience.is_empty() {
                    "no_rule"
                } else {
                    "tenant_audience"
                },
            ),
        ] {
            let child = exchanged("", &token);
            assert_eq!(claims(&child)["aud"], "agentport", "what the gateway takes");
            for token in [&token, &child, &exchanged(&by, &child)] {
                let answer = through(&gateway, token, "dev.test", origin.port());
                assert_eq!(answer.status, dev, "{case}");
                let answer = through(&gateway, token, "prod.test", prod.port());
                assert_eq!((answer.status, answer.refusal()), (403, reason), "{case}");
                let record = gateway.record_of(&answer);
                assert_eq!(record["audience"][0], "dev", "{case}: {record}");
            }
        }
        prod.check(case);
    }
}

/// A token that is exchanged in the moment before its revocation is known must
/// not come out dated later than that.
#[test]
fn what_is_exchanged_is_as_old_as_its_parents() {
    let accounts = Accounts::new();
    accounts.key(&["create", "broker", "--agent=any", "--allow=any"]);
    let gateway = accounts.gateway();
    let issued = |agent: &str, ago: u64| {
        let key = SigningKey::from_secret(SECRET).expect("a key");
        let request = IssueRequest {
            agent: AgentId::parse(agent).expect("an agent"),
            tenant: None,
            destinations: None,
            lifetime: std::time::Duration::from_secs(3600),
            audience: None,
            jti: ago.into(),
            actors: Vec::new(),
            scope: None,
            client: None,
        };
        let issuer = TokenIssuer::new(key, "agentport", "agentport");
        issuer.issue(&request, now() - ago).expect("a token")
    };
    let (parent, actor) = (issued("planner", 300), issued("helper", 500));
    let (older, began) = (claims(&actor)["iat"].clone(), now());
    let exchange = |subject: &str, more: &[(&str, &str)]| {
        let form = [
            ("grant_type", EXCHANGE),
            ("subject_token", subject),
            ("subject_token_type", ACCESS_TOKEN),
            ("ttl", "60"),
        ];
        token_in(&post(&gateway, "", &[&form[..], more].concat()))
    };
    let child = exchange(&parent, &[]);
    assert_eq!(claims(&child)["iat"], claims(&parent)["iat"]);
    // It lives from now all the same.
    assert!(claims(&child)["exp"].as_u64().expect("an end") >= began + 60);
    let acting = [
        ("actor_token", actor.as_str()),
        ("actor_token_type", ACCESS_TOKEN),
    ];
    assert_eq!(claims(&exchange(&child, &acting))["iat"], older);
}

/// Whoever hands a token on, under whatever account: what revokes the token that
/// it comes from, or the account that one was issued to, reaches it.
#[test]
fn a_revocation_reaches_what_was_exchanged() {
    let accounts = Accounts::new();
    let keys = ["first", "second"].map(|id| accounts.open(id));
    let list = accounts.folder.path().join("revoked.jsonl");
    let list = list.display().to_string();
    let gateway = accounts.gateway_with(&[("identity.revocations.file", &list)]);
    let origin = Origin::ok();
    let by = |at: usize| basic(["first", "second"][at], &keys[at]);
    let exchange = |fields: &str, subject: &str| {
        let form = [
            ("grant_type", EXCHANGE),
            ("subject_token", subject),
            ("subject_token_type", ACCESS_TOKEN),
        ];
        post(&gateway, fields, &form)
    };
    let issue = |agent: &str| token_in(&ask(&gateway, "first", &keys[0], &[("agent_id", agent)]));
    let revoke = |what: &str, value: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_agentport"))
            .args(["revoke", what, value])
            .arg(format!("--set=identity.revocations.file={list}"))
            .env_clear()
            .output()
            .expect("the program runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
    };
    let becomes_revoked = |token: &str| {
        wait_for("it is refused", || {
            let answer = through(&gateway, token, "a.test", origin.port());
            (answer.status != 200).then(|| assert_eq!(answer.json()["error"], "revoked"))
        });
    };
    let passes = |token: &str| {
        let answer = through(&gateway, token, "a.test", origin.port());
        assert_eq!(answer.status, 200);
    };

    let (parent, sibling) = (issue("bot-a"), issue("bot-b"));
    let child = token_in(&exchange(&by(1), &parent));
    let grandchild = token_in(&exchange("", &child));
    let of = |token: &str| claims(token)["jti"].clone();
    let from = claims(&grandchild)["exchanged_from"].clone();
    assert_eq!(
        (
            &from[0]["jti"],
            &from[0]["client_id"],
            &from[1]["jti"],
            &from[1]["client_id"]
        ),
        (&of(&child), &json!("second"), &of(&parent), &json!("first")),
        "{from}"
    );
    assert_eq!(claims(&grandchild)["client_id"], "second");
    let others = token_in(&exchange(&by(1), &sibling));
    passes(&grandchild);
    // Who has a token gives it whole.
    revoke("--jti", &parent);
    for token in [&parent, &child, &grandchild] {
        becomes_revoked(token);
    }
    let answer = refused(&exchange("", &grandchild));
    assert_eq!((answer.0, answer.1.as_str()), (400, "invalid_request"));
    for token in [&sibling, &others] {
        passes(token);
    }
    // The first account has not issued the last token, but the one before it.
    revoke("--service-account", "first");
    for token in [&sibling, &others] {
        becomes_revoked(token);
    }

    // No longer than the chain may get.
    let mut last = token_with("bot-c", None, None);
    for _ in 0..16 {
        last = token_in(&exchange("", &last));
    }
    let answer = refused(&exchange("", &last));
    assert_eq!((answer.0, answer.1.as_str()), (400, "invalid_request"));
    assert!(answer.2.contains("nearer to the first"), "{answer:?}");
}

#[test]
fn a_signed_assertion_opens_once() {
    let accounts = Accounts::new();
    let pem = generate_ed25519().expect("a key");
    let public = SigningKey::from_pem(&pem).expect("a key");
    let jwks = accounts.folder.path().join("public.json");
    std::fs::write(&jwks, public_jwks([public.verifying_key()])).expect("it is written");
    let printed = accounts.key(&[
        "create",
        "signer",
        "--agent=bot",
        "--allow=any",
        &format!("--public-key={}", jwks.display()),
    ]);
    assert_eq!(printed, "", "there is no key to print");
    accounts.open("keyed");
    let gateway = accounts.gateway_with(&[("identity.oauth_url", "https://tokens.example")]);
    let sign = |claims: Value| {
        let header = json!({"alg": "EdDSA", "typ": "JWT"});
        let message = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let der = pem
            .lines()
            .filter(|line| !line.starts_with('-'))
            .collect::<String>();
        let der = STANDARD.decode(der).expect("base64");
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).expect("a key");
        let signature = pair.sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    };
    let good = |jti: &str| {
        json!({
            "iss": "signer", "sub": "signer", "aud": "https://tokens.example/oauth/token",
            "exp": now() + 60, "iat": now(), "jti": jti,
        })
    };
    let show = |assertion: &str| {
        post(
            &gateway,
            "",
            &[
                ("grant_type", "client_credentials"),
                ("client_assertion_type", JWT_BEARER),
                ("client_assertion", assertion),
            ],
        )
    };
    let with = |name: &str, value: Value| {
        let mut claims = good(name);
        claims[name] = value;
        sign(claims)
    };
    let first = sign(good("1"));
    assert_eq!(claims(&token_in(&show(&first)))["client_id"], "signer");
    let replayed = refused(&show(&first));
    assert_eq!((replayed.0, replayed.1.as_str()), (401, "invalid_client"));
    gateway.record("a replay", |record| {
        record["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("used before"))
    });
    token_in(&show(&with("aud", json!(["x", "agentport"]))));
    for (case, assertion) in [
        (
            "for somebody else",
            with("aud", json!("https://elsewhere.example")),
        ),
        ("of another subject", with("sub", json!("keyed"))),
    ] {
        let answer = refused(&show(&assertion));
        assert_eq!(
            (answer.0, answer.1.as_str()),
            (401, "invalid_client"),
            "{case}"
        );
    }
    // An account without such keys has none that confirms.
    let mut foreign = good("7");
    foreign["iss"] = "keyed".into();
    foreign["sub"] = "keyed".into();
    assert_eq!(refused(&show(&sign(foreign))).0, 401);
}

#[test]
fn a_change_of_the_file_is_in_force_at_once_on_two_gateways() {
    let accounts = Accounts::new();
    let first = accounts.open("ci");
    let gateways = [accounts.gateway(), accounts.gateway()];
    let agent = [("agent_id", "bot")];
    for gateway in &gateways {
        token_in(&ask(gateway, "ci", &first, &agent));
    }
    // A second key beside the first, and then the first one goes.
    let second = accounts.key(&["add-key", "ci", "--expires=90d"]);
    for gateway in &gateways {
        wait_for("the second key", || {
            (ask(gateway, "ci", &second, &agent).status == 200).then_some(())
        });
        // Asking for it too early has used up some of the account's attempts.
        wait_for("the first key to stay", || {
            (ask(gateway, "ci", &first, &agent).status == 200).then_some(())
        });
    }
    let id = first.split('_').nth(2).expect("the key's id");
    accounts.key(&["revoke", "ci", &format!("--key={id}")]);
    for gateway in &gateways {
        wait_for("the first key to go", || {
            (ask(gateway, "ci", &first, &agent).status == 401).then_some(())
        });
        wait_for("the second key to stay", || {
            (ask(gateway, "ci", &second, &agent).status == 200).then_some(())
        });
    }
    // A broken file changes nothing, and is told.
    let good = std::fs::read(accounts.path()).expect("the file");
    replace(&accounts.path(), b"version: 1\naccounts: [{id: ci}]\n");
    for gateway in &gateways {
        let error = wait_for("the refusal", || {
            let ready = gateway.ask_admin("/ready").json();
            ready["service_accounts"]["refused"]
                .as_str()
                .map(str::to_owned)
        });
        assert!(
            error.contains("accounts.yaml") && error.contains("agents"),
            "{error}"
        );
        assert!(
            gateway
                .metrics()
                .contains("agentport_service_accounts_reloads_total{outcome=\"refused\"} 1")
        );
        wait_for("the second key to stay", || {
            (ask(gateway, "ci", &second, &agent).status == 200).then_some(())
        });
    }
    replace(&accounts.path(), &good);
    accounts.key(&["revoke", "ci"]);
    for gateway in &gateways {
        wait_for("the account to go", || {
            (ask(gateway, "ci", &second, &agent).status == 401).then_some(())
        });
    }
}

fn replace(path: &Path, contents: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, contents).expect("it is written");
    std::fs::rename(&new, path).expect("it is renamed");
}

#[test]
fn a_key_past_its_end_opens_nothing() {
    let accounts = Accounts::new();
    let key = accounts.open("ci");
    let text = std::fs::read_to_string(accounts.path()).expect("the file");
    let at = text.find("    created:").expect("a key");
    let ended = format!(
        "{}    expires: 2020-01-01T00:00:00Z\n{}",
        &text[..at],
        &text[at..]
    );
    std::fs::write(accounts.path(), ended).expect("it is written");
    let gateway = accounts.gateway();
    let answer = refused(&ask(&gateway, "ci", &key, &[("agent_id", "bot")]));
    assert_eq!(answer.0, 401);
    assert!(
        answer.2.contains("expired"),
        "the key was right: {answer:?}"
    );
}

#[test]
fn a_key_is_not_shown_again() {
    let accounts = Accounts::new();
    let (key, other) = (accounts.open("ci"), accounts.open("other"));
    let more = accounts.key(&["add-key", "ci"]);
    for (case, id, given) in [
        ("another account's", "ci", &other),
        ("one that is cut", "ci", &key[..key.len() - 1].to_owned()),
    ] {
        let output = accounts.run(&["revoke", id, "--key", given]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{case}");
        assert!(
            !said.contains("apsa_") && said.contains("key"),
            "{case}: {said}"
        );
    }
    // Whole, it names itself.
    let output = accounts.run(&["revoke", "ci", "--key", &more]);
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(accounts.path()).expect("the file");
    let id = more.split('_').nth(2).expect("an id");
    assert!(!text.contains(id), "{text}");
    // One that was written where its hash belongs.
    let text = format!(
        "version: 1\naccounts: [{{id: ci, agents: any, destinations: any, keys: [{key}]}}]\n"
    );
    std::fs::write(accounts.path(), text).expect("it is written");
    let output = accounts.run(&["list"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        !said.contains("apsa_") && said.contains("write {id, hash}"),
        "{said}"
    );
}

#[test]
fn an_account_speaks_of_its_own_tokens_alone() {
    let accounts = Accounts::new();
    let (ours, theirs) = (accounts.open("ours"), accounts.open("theirs"));
    let folder = tempfile::tempdir().expect("a folder");
    let list = folder.path().join("revoked.jsonl").display().to_string();
    let gateway = accounts.gateway_with(&[("identity.revocations.file", list.as_str())]);
    let origin = Origin::ok();
    let token = token_in(&ask(&gateway, "ours", &ours, &[("agent_id", "bot-1")]));
    let about = |path: &str, id: &str, key: &str| {
        let form = [
            ("token", token.as_str()),
            ("token_type_hint", "access_token"),
        ];
        post_to(&gateway, path, &basic(id, key), &form)
    };
    let through = || through(&gateway, &token, "x.a.test", origin.port());

    let said = about("/oauth/introspect", "ours", &ours).json();
    assert_eq!(
        (&said["active"], &said["agent_id"], &said["client_id"]),
        (&true.into(), &"bot-1".into(), &"ours".into())
    );
    let said = about("/oauth/introspect", "theirs", &theirs).json();
    assert_eq!(said, json!({ "active": false }));
    let (status, error, _) = refused(&about("/oauth/revoke", "theirs", &theirs));
    assert_eq!((status, error.as_str()), (400, "unauthorized_client"));
    for path in ["/oauth/introspect", "/oauth/revoke"] {
        let (status, error, _) = refused(&about(path, "ours", &theirs));
        assert_eq!((status, error.as_str()), (401, "invalid_client"), "{path}");
    }
    assert_eq!(through().status, 200);

    assert_eq!(about("/oauth/revoke", "ours", &ours).status, 200);
    let before = origin.connections();
    assert_eq!(through().refusal(), "revoked");
    assert_eq!(origin.connections(), before);
    let said = about("/oauth/introspect", "ours", &ours).json();
    assert_eq!(said, json!({ "active": false }));
}

/// A connection to the admin listener from another address of this machine.
fn from_elsewhere(gateway: &Gateway) -> Conn {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
    let made = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    );
    let made = made.expect("a socket");
    bind(made.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 2, 0)).expect("an address");
    let to = SockaddrIn::new(127, 0, 0, 1, gateway.admin().port());
    connect(made.as_raw_fd(), &to).expect("the address accepts");
    Conn::new(made.into())
}

#[test]
fn guesses_at_other_pages_count_as_those_at_the_endpoint() {
    let accounts = Accounts::new();
    let key = accounts.open("ci");
    let wrong = format!("{}{}", &key[..key.len() - 64], "0".repeat(64));
    for (path, asked) in [
        ("/oauth/introspect", "introspection"),
        ("/oauth/revoke", "revocation"),
    ] {
        let gateway = accounts.gateway();
        let form = [("token", "x")];
        let first = refused(&post_to(&gateway, path, &basic("ci", &wrong), &form));
        assert_eq!((first.0, first.1.as_str()), (401, "invalid_client"));
        let record = gateway.record("a wrong key", |record| record["path"] == path);
        assert_eq!(
            (&record["event"], &record["reason"], &record["status"]),
            (
                &"token_refused".into(),
                &"invalid_client".into(),
                &401.into()
            )
        );
        let said = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        assert!(said("client").starts_with("127.0.0.1:"), "{record}");
        assert!(said("detail").starts_with(&format!("{asked}: client \"ci\": ")));

        // Each as another account, so that only the source is the same. What
        // is not signed costs no hash.
        let mut guess = 0;
        let throttled = wait_for("the throttle of the source", || {
            guess += 1;
            let part = |text: String| URL_SAFE_NO_PAD.encode(text);
            let assertion = format!(
                "{}.{}.{}",
                part(json!({ "alg": "EdDSA" }).to_string()),
                part(json!({ "iss": format!("account-{guess}") }).to_string()),
                part("x".repeat(64))
            );
            let form = [
                ("token", "x"),
                ("client_assertion_type", JWT_BEARER),
                ("client_assertion", &assertion),
            ];
            let answer = post_to(&gateway, path, "", &form);
            (answer.status != 401).then_some(answer)
        });
        assert_eq!(refused(&throttled).1, "slow_down");
        let seconds = throttled.field("retry-after").expect("when to come again");
        assert!(seconds.parse::<u64>().is_ok_and(|seconds| seconds > 0));
        let line = format!("grant=\"{asked}\",outcome=\"slow_down\"");
        assert!(gateway.metrics().contains(&line), "{line}");

        // Who asks from elsewhere is not held up.
        let mut conn = from_elsewhere(&gateway);
        let body = "grant_type=client_credentials&agent_id=bot";
        conn.send(format!(
            "POST /oauth/token HTTP/1.1\r\nHost: admin\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n{}Connection: close\r\n\r\n{body}",
            body.len(),
            basic("ci", &key)
        ));
        token_in(&conn.response_to("POST"));
    }
}

#[test]
fn the_endpoint_describes_itself() {
    let accounts = Accounts::new();
    accounts.open("ci");
    let gateway = accounts.gateway_with(&[("identity.oauth_url", "https://tokens.example")]);
    let answer = gateway.ask_admin("/.well-known/oauth-authorization-server");
    let body = answer.json();
    assert_eq!(body["issuer"], "https://tokens.example");
    assert_eq!(body["token_endpoint"], "https://tokens.example/oauth/token");
    assert_eq!(
        body["jwks_uri"],
        "https://tokens.example/.well-known/jwks.json"
    );
    assert!(
        body["grant_types_supported"]
            .as_array()
            .is_some_and(|all| all.contains(&json!(EXCHANGE)))
    );
    let gateway = Gateway::open();
    assert_eq!(
        gateway.ask_admin("/oauth/token").status,
        404,
        "off where no accounts are set"
    );
    assert_eq!(
        gateway
            .ask_admin("/.well-known/oauth-authorization-server")
            .status,
        404
    );
}

#[test]
fn the_commands_say_what_is_wrong_and_list_what_is_there() {
    let accounts = Accounts::new();
    let create = |arguments: &[&str]| accounts.run(&[&["create"], arguments].concat());
    for (case, arguments, says) in [
        (
            "a bad name",
            &["A_b", "--agent=any", "--allow=any"][..],
            "lower-case",
        ),
        ("no agents", &["a", "--allow=any"], "--agent"),
        ("no destinations", &["a", "--agent=any"], "--allow"),
        (
            "a bad host",
            &["a", "--agent=any", "--allow=https://a.test"],
            "accounts[0].destinations[0]",
        ),
        (
            "a bad rate",
            &["a", "--agent=any", "--allow=any", "--rate=fast"],
            "accounts[0].rate",
        ),
        (
            "a bad end",
            &["a", "--agent=any", "--allow=any", "--expires=soon"],
            "--expires soon",
        ),
    ] {
        let output = create(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{case}"
        );
        assert!(said.contains(says), "{case}: {said}");
        assert!(!accounts.path().exists(), "{case}: nothing is written");
    }
    let key = accounts.key(&[
        "create",
        "a",
        "--agent=ci-*",
        "--allow=any",
        "--expires=90d",
        "--rate=60/m",
    ]);
    let again = create(&["a", "--agent=any", "--allow=any"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("add-key"));
    let id = key.split('_').nth(2).expect("the key's id");
    let only = accounts.run(&["revoke", "a", "--key", id]);
    assert!(String::from_utf8_lossy(&only.stderr).contains("its only key"));
    let list = accounts.key(&["list"]);
    for part in [
        "a\n",
        "agents: ci-*",
        "destinations: any",
        "rate: 60/m",
        id,
        "expires 20",
    ] {
        assert!(list.contains(part), "{part}: {list}");
    }
    assert!(
        !list.contains(&key[key.len() - 64..]) && !list.contains("argon2"),
        "{list}"
    );
    accounts.key(&["revoke", "a"]);
    assert!(accounts.key(&["list"]).starts_with("a (revoked)"));
    let written = std::fs::read_to_string(accounts.path()).expect("the file");
    assert!(!written.contains(&key[key.len() - 64..]), "only hashes");
}

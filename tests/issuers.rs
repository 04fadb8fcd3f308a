//! Other issuers, served here over TLS: their keys are found, change, and
//! cannot be had; and their tokens name agents in ways of their own.

#![cfg(feature = "gateway")]

#[path = "support/cli.rs"]
#[expect(dead_code, reason = "each file of tests uses a part")]
mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use agentport::identity::{SigningKey, generate_ed25519, public_jwks};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::Ed25519KeyPair;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use support::{Gateway, Names, OPEN, Origin, Start, ask, gateway, until};

/// How an issuer behaves.
#[derive(Clone, Debug, PartialEq)]
enum Manner {
    /// As it should.
    Good,
    /// It hangs up.
    Down,
    /// Its metadata names this issuer.
    Claims(String),
    /// Its keys are more than anybody reads.
    Huge,
    /// It sends elsewhere.
    Redirects,
}

struct Shared {
    manner: Mutex<Manner>,
    keys: Mutex<Vec<Key>>,
    /// The heads of the requests it was sent.
    heads: Mutex<Vec<String>>,
    contacts: AtomicU64,
}

/// An issuer with metadata and keys at `https://id.test:PORT`.
struct Issuer {
    address: SocketAddr,
    folder: tempfile::TempDir,
    names: Names,
    shared: Arc<Shared>,
}

/// A key of an issuer.
#[derive(Clone)]
struct Key {
    kid: String,
    pem: String,
}

impl Key {
    fn new(kid: &str) -> Self {
        Self {
            kid: kid.to_owned(),
            pem: generate_ed25519().expect("a key"),
        }
    }

    /// A token with these claims over those that every token has.
    fn token(&self, kid: &str, claims: Value) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.expect("after 1970").as_secs();
        let mut all = json!({"iat": now, "exp": now + 600});
        let members = claims.as_object().expect("an object").clone();
        all.as_object_mut().expect("an object").extend(members);
        let header = json!({"alg": "EdDSA", "kid": kid});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&header), part(&all));
        let body: String = self
            .pem
            .lines()
            .filter(|line| !line.starts_with('-'))
            .collect();
        let der = STANDARD.decode(body).expect("base64");
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).expect("a key");
        let signature = URL_SAFE_NO_PAD.encode(pair.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

impl Issuer {
    fn start(manner: Manner) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let made = rcgen::generate_simple_self_signed(["id.test".to_owned()]).expect("made");
        std::fs::write(folder.path().join("ca.pem"), made.cert.pem()).expect("written");
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], PrivateKeyDer::from(key))
            .expect("a certificate");
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let names = Names::serve();
        names.at("id.test", &["127.0.0.1"]);
        let issuer = Self {
            address: listener.local_addr().expect("an address"),
            folder,
            names,
            shared: Arc::new(Shared {
                manner: Mutex::new(manner),
                keys: Mutex::new(vec![Key::new("1")]),
                heads: Mutex::default(),
                contacts: AtomicU64::new(0),
            }),
        };
        let (shared, port) = (Arc::clone(&issuer.shared), issuer.address.port());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                shared.contacts.fetch_add(1, Ordering::SeqCst);
                let manner = shared.manner.lock().expect("held by none").clone();
                if manner != Manner::Down {
                    // A client that does not trust it goes away.
                    let _ = answer(stream, &config, &shared, &manner, port);
                }
            }
        });
        issuer
    }

    fn name(&self) -> String {
        format!("https://id.test:{}", self.address.port())
    }

    fn is(&self, manner: Manner) {
        *self.shared.manner.lock().expect("held by none") = manner;
    }

    fn key(&self) -> Key {
        let keys = self.shared.keys.lock().expect("held by none");
        keys.last().expect("a key").clone()
    }

    /// Puts another key in the place of all before it.
    fn rotate(&self, kid: &str) -> Key {
        let key = Key::new(kid);
        *self.shared.keys.lock().expect("held by none") = vec![key.clone()];
        key
    }

    fn contacts(&self) -> u64 {
        self.shared.contacts.load(Ordering::SeqCst)
    }

    fn ca(&self) -> String {
        self.folder.path().join("ca.pem").display().to_string()
    }

    /// A gateway that trusts it, and nobody else, with these settings for it.
    fn gateway(&self, settings: Value) -> Start {
        gateway(OPEN)
            .without_env("AGENTPORT_JWKS_SECRET")
            .set(
                "identity.issuers",
                json!([self.entry(settings)]).to_string(),
            )
            .set("resolver.servers", self.names.address.to_string())
    }

    /// What a list of issuers says of it, with these settings.
    fn entry(&self, settings: Value) -> Value {
        let mut entry = json!({
            "issuer": self.name(), "ca": self.ca(), "addresses": ["127.0.0.0/8"],
        });
        for (key, value) in settings.as_object().expect("an object") {
            match value {
                Value::Null => entry.as_object_mut().expect("an object").remove(key),
                value => entry
                    .as_object_mut()
                    .expect("an object")
                    .insert(key.clone(), value.clone()),
            };
        }
        entry
    }
}

fn answer(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    shared: &Shared,
    manner: &Manner,
    port: u16,
) -> std::io::Result<()> {
    let tls = ServerConnection::new(Arc::clone(config)).expect("a connection");
    let mut stream = BufReader::new(StreamOwned::new(tls, stream));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    shared.heads.lock().expect("held by none").push(head);
    let base = format!("https://id.test:{port}");
    let (status, field, body) = match (path.as_str(), manner) {
        (_, Manner::Redirects) => (
            "302 Found",
            format!("Location: {base}/keys\r\n"),
            String::new(),
        ),
        ("/.well-known/openid-configuration", manner) => {
            let name = match manner {
                Manner::Claims(other) => other.clone(),
                _ => base.clone(),
            };
            let metadata = json!({"issuer": name, "jwks_uri": format!("{base}/keys")});
            ("200 OK", String::new(), metadata.to_string())
        }
        ("/keys", Manner::Huge) => ("200 OK", String::new(), "x".repeat(100_000)),
        ("/keys", _) => {
            let keys = shared.keys.lock().expect("held by none").clone();
            let public: Vec<_> = keys
                .iter()
                .map(|key| {
                    let signing = SigningKey::from_pem(&key.pem).and_then(|k| k.with_id(&key.kid));
                    signing.expect("a key").verifying_key().clone()
                })
                .collect();
            ("200 OK", String::new(), public_jwks(&public))
        }
        _ => ("404 Not Found", String::new(), String::new()),
    };
    let length = body.len();
    let stream = stream.get_mut();
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{field}Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// What a request with this token is answered: the status and the error's code.
fn answered(gateway: &Gateway, origin: &Origin, token: &str) -> (u16, String) {
    let url = origin.url("/");
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    let request = format!(
        "GET {url} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    let response = ask(gateway.egress(), request.as_bytes());
    match response.status {
        200 => (200, String::new()),
        status => (status, response.error()),
    }
}

#[track_caller]
fn becomes(gateway: &Gateway, origin: &Origin, token: &str, expected: (u16, &str)) {
    until(&format!("the answer is {expected:?}"), || {
        let (status, code) = answered(gateway, origin, token);
        ((status, code.as_str()) == expected).then_some(())
    });
}

fn known(gateway: &Gateway) -> Value {
    gateway.ready()["issuers"][0].clone()
}

#[test]
fn keys_that_change_are_found_by_the_request_that_needs_them() {
    let issuer = Issuer::start(Manner::Good);
    let gateway = issuer
        .gateway(json!({"discovery": true, "refresh": "1h"}))
        .start();
    let origin = Origin::http();
    let claims = json!({"iss": issuer.name(), "aud": ["other", "agentport"], "sub": "bot-01"});
    until("the issuer has given its key", || {
        (known(&gateway)["keys"] == 1).then_some(())
    });
    let first = issuer.key().token("1", claims.clone());
    assert_eq!(answered(&gateway, &origin, &first), (200, String::new()));
    assert_eq!(
        gateway.page("/.well-known/jwks.json").json(),
        json!({"keys": []}),
        "another's keys are not ours to publish"
    );

    // The very request that brings the new key's id is answered by it.
    let second = issuer.rotate("2").token("2", claims.clone());
    assert_eq!(answered(&gateway, &origin, &second), (200, String::new()));
    assert_eq!(
        answered(&gateway, &origin, &first),
        (403, "unknown_key".to_owned()),
        "the old key is gone"
    );
    // Whoever makes up ids does not make the issuer be asked each time.
    let (contacts, sent) = (issuer.contacts(), origin.contacts());
    for number in 0..30 {
        let token = issuer.key().token(&format!("no-{number}"), claims.clone());
        assert_eq!(answered(&gateway, &origin, &token).1, "unknown_key");
    }
    assert!(issuer.contacts() - contacts < 15, "asked at every request");
    assert_eq!(origin.contacts(), sent, "a refused request has gone out");

    for (case, change, code) in [
        (
            "another audience",
            json!({"aud": "other"}),
            "wrong_audience",
        ),
        (
            "another issuer",
            json!({"iss": "agentport"}),
            "wrong_issuer",
        ),
        ("expired", json!({"exp": 1_000_000}), "expired"),
    ] {
        let mut changed = claims.clone();
        let members = change.as_object().expect("an object").clone();
        changed.as_object_mut().expect("an object").extend(members);
        let token = issuer.key().token("2", changed);
        assert_eq!(
            answered(&gateway, &origin, &token),
            (403, code.to_owned()),
            "{case}"
        );
    }
    let sample = format!(
        "agentport_issuer_refreshes_total{{issuer=\"{}\",outcome=\"ok\"}}",
        issuer.name()
    );
    assert!(gateway.figure(&sample) >= Some(2.0));
}

#[test]
fn an_issuer_that_is_down_at_the_start_and_later() {
    let issuer = Issuer::start(Manner::Down);
    let gateway = issuer
        .gateway(json!({
            "jwks_url": format!("{}/keys", issuer.name()), "refresh": "1s", "stale_for": "0s",
        }))
        .start();
    let origin = Origin::http();
    let claims = json!({"iss": issuer.name(), "aud": "agentport", "sub": "bot-01"});
    let token = issuer.key().token("1", claims);
    becomes(&gateway, &origin, &token, (503, "issuer_unavailable"));
    assert!(known(&gateway)["problem"].is_string());
    assert_eq!(gateway.ready()["ready"], true, "others may well be served");
    assert_eq!(origin.contacts(), 0);
    issuer.is(Manner::Good);
    becomes(&gateway, &origin, &token, (200, ""));
    // Its keys go when they have been kept for as long as they may.
    issuer.is(Manner::Down);
    becomes(&gateway, &origin, &token, (503, "issuer_unavailable"));
    issuer.is(Manner::Good);
    becomes(&gateway, &origin, &token, (200, ""));
    let record = gateway.record("a refusal", |record| {
        record["reason"] == "issuer_unavailable"
    });
    assert_eq!(record["agent_id"], Value::Null, "nobody has vouched for it");
}

#[test]
fn keys_stay_while_their_issuer_is_down() {
    let issuer = Issuer::start(Manner::Good);
    let gateway = issuer
        .gateway(json!({"discovery": true, "refresh": "1s", "stale_for": "1h"}))
        .start();
    let origin = Origin::http();
    let claims = json!({"iss": issuer.name(), "aud": "agentport", "agent_id": "bot-01"});
    let token = issuer.key().token("1", claims);
    becomes(&gateway, &origin, &token, (200, ""));
    issuer.is(Manner::Down);
    until("it is known to be down", || {
        known(&gateway)["problem"].is_string().then_some(())
    });
    assert_eq!(answered(&gateway, &origin, &token), (200, String::new()));
    assert_eq!(known(&gateway)["keys"], 1);
}

#[test]
fn an_issuer_that_cannot_be_trusted_gives_no_keys() {
    let url = |issuer: &Issuer| json!({"jwks_url": format!("{}/keys", issuer.name())});
    type Settings = fn(&Issuer) -> Value;
    let cases: [(&str, Manner, Settings, &str, bool); 6] = [
        (
            "metadata of another issuer",
            Manner::Claims("https://evil.example".to_owned()),
            |_| json!({"discovery": true}),
            "the metadata is of the issuer \"https://evil.example\"",
            true,
        ),
        (
            "a private address that is not named",
            Manner::Good,
            |issuer| json!({"jwks_url": format!("{}/keys", issuer.name()), "addresses": null}),
            "127.0.0.1 is not public (loopback): name its range in addresses",
            false,
        ),
        (
            "another address than is named",
            Manner::Good,
            |_| json!({"discovery": true, "addresses": ["10.0.0.0/8"]}),
            "127.0.0.1 is in none of the ranges in addresses",
            false,
        ),
        (
            "a certificate of nobody",
            Manner::Good,
            |issuer| json!({"jwks_url": format!("{}/keys", issuer.name()), "ca": null}),
            "TLS: ",
            true,
        ),
        (
            "too many bytes",
            Manner::Huge,
            url,
            "length limit exceeded",
            true,
        ),
        (
            "a redirect",
            Manner::Redirects,
            url,
            "the answer is 302 Found",
            true,
        ),
    ];
    let origin = Origin::http();
    for (case, manner, settings, problem, contacted) in cases {
        let issuer = Issuer::start(manner);
        let gateway = issuer.gateway(settings(&issuer)).start();
        let claims = json!({"iss": issuer.name(), "aud": "agentport", "sub": "bot-01"});
        let token = issuer.key().token("1", claims);
        let found = until("a problem is known", || {
            known(&gateway)["problem"].as_str().map(str::to_owned)
        });
        assert!(found.contains(problem), "{case}: {found}");
        assert_eq!(
            answered(&gateway, &origin, &token),
            (503, "issuer_unavailable".to_owned()),
            "{case}"
        );
        assert_eq!(issuer.contacts() > 0, contacted, "{case}");
    }
    assert_eq!(origin.contacts(), 0, "a refused request has gone out");
}

#[test]
fn a_service_account_of_kubernetes_is_an_agent() {
    let issuer = Issuer::start(Manner::Good);
    let token_file = issuer.folder.path().join("token");
    std::fs::write(&token_file, "pods-own\n").expect("written");
    let gateway = issuer
        .gateway(json!({
            "jwks_url": format!("{}/keys", issuer.name()),
            "token_file": token_file.display().to_string(),
            "agent_claim": "sub",
            "agent_pattern": "system:serviceaccount:{namespace}:{name}",
            "agent": "{namespace}.{name}",
            "tenant": "{namespace}",
            "algorithms": ["EdDSA"],
        }))
        .start();
    let origin = Origin::http();
    let claims = |sub: &str| {
        json!({
            "iss": issuer.name(), "aud": ["agentport"], "sub": sub, "nbf": 1_700_000_000,
            "kubernetes.io": {"namespace": "prod", "serviceaccount": {"name": "crawler"}},
        })
    };
    let token = issuer
        .key()
        .token("1", claims("system:serviceaccount:prod:crawler"));
    becomes(&gateway, &origin, &token, (200, ""));
    let record = gateway.record("the request", |record| record["status"] == 200);
    assert_eq!(record["agent_id"], "prod.crawler");
    assert_eq!(record["tenant"], "prod");
    let heads = issuer.shared.heads.lock().expect("held by none").clone();
    assert!(
        heads[0]
            .to_ascii_lowercase()
            .contains("authorization: bearer pods-own\r\n"),
        "{heads:?}"
    );
    let node = issuer.key().token("1", claims("system:node:prod"));
    let contacts = origin.contacts();
    assert_eq!(
        answered(&gateway, &origin, &node),
        (403, "invalid_claim".to_owned())
    );
    assert_eq!(
        origin.contacts(),
        contacts,
        "a refused request has gone out"
    );
}

/// A list in a file of its own is in force without a restart: who comes, who
/// stays and notices nothing, who goes with all that is open.
#[test]
fn the_list_of_issuers_changes_while_the_gateway_serves() {
    let (first, second) = (Issuer::start(Manner::Good), Issuer::start(Manner::Good));
    let start = gateway(OPEN);
    let (list, file) = (start.path("issuers.yaml"), start.path("third.json"));
    let third = Key::new("3");
    let written = |issuers: &[&Value]| json!({ "issuers": issuers }).to_string();
    std::fs::write(&list, written(&[])).expect("written");
    let gateway = start
        .without_env("AGENTPORT_JWKS_SECRET")
        .set("identity.issuers_file", list.display().to_string())
        .set("resolver.servers", first.names.address.to_string())
        .start();
    let (origin, echo) = (Origin::http(), Origin::echo());
    let token = |issuer: &Issuer| {
        let claims = json!({"iss": issuer.name(), "aud": "agentport", "sub": "bot-01"});
        issuer.key().token("1", claims)
    };
    let (of_first, of_second) = (token(&first), token(&second));
    let settings = json!({"discovery": true, "refresh": "1h"});
    let (a, b) = (first.entry(settings.clone()), second.entry(settings));
    let passes = (200, "");
    assert_eq!(
        answered(&gateway, &origin, &of_first),
        (403, "unknown_key".to_owned())
    );
    assert_eq!(origin.contacts(), 0, "a refused request has gone out");

    support::replace(&list, &written(&[&a]));
    becomes(&gateway, &origin, &of_first, passes);
    let authority = echo.address;
    let head = format!(
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer {of_first}\r\n\r\n"
    );
    let mut tunnel = support::dial(gateway.egress());
    tunnel.write_all(head.as_bytes()).expect("sent");
    assert_eq!(support::Response::read(&mut tunnel, true).status, 200);

    // One with a mistake changes nothing, and is said.
    let whole = written(&[&a, &b]);
    for (case, text) in [
        ("half of it", &whole[..whole.len() / 2]),
        ("nothing", ""),
        ("another key", r#"{"issuer": []}"#),
        ("no list", r#"{"issuers": {}}"#),
        ("one twice", &written(&[&a, &a])),
        (
            "one of the gateway's name",
            r#"{"issuers": [{"issuer": "agentport", "discovery": true}]}"#,
        ),
        (
            "a file of keys that is not there",
            r#"{"issuers": [{"issuer": "third", "jwks_file": "/nowhere/keys.json"}]}"#,
        ),
    ] {
        support::replace(&list, text);
        until(&format!("{case}: the mistake is shown"), || {
            gateway.ready()["keys"]["refused"].as_str().map(drop)
        });
        assert_eq!(answered(&gateway, &origin, &of_first).0, 200, "{case}");
        assert_eq!(answered(&gateway, &origin, &of_second).0, 403, "{case}");
        support::replace(&list, &written(&[&a]));
        until(&format!("{case}: all is well again"), || {
            gateway.ready()["keys"]["refused"].is_null().then_some(())
        });
    }
    let refused = gateway.figure("agentport_key_reloads_total{outcome=\"refused\"}");
    assert!(refused >= Some(7.0), "{refused:?}");

    let contacts = first.contacts();
    support::replace(&list, &whole);
    becomes(&gateway, &origin, &of_second, passes);
    assert_eq!(answered(&gateway, &origin, &of_first).0, 200);
    // Another name for its agents is no reason to do without its keys.
    let mut renamed = a.clone();
    renamed["agent"] = "ours-{agent}".into();
    support::replace(&list, &written(&[&renamed, &b]));
    until("its agents have other names", || {
        assert_eq!(answered(&gateway, &origin, &of_first).0, 200);
        let named = |record: &Value| record["agent_id"] == "ours-bot-01";
        gateway.records().iter().any(named).then_some(())
    });
    let ids = gateway.ready()["issuers"].as_array().expect("a list").len();
    assert_eq!(ids, 2);
    assert!(
        first.contacts() <= contacts + 2,
        "asked again for each list"
    );
    support::exact(&mut tunnel, b"still here");

    support::replace(&list, &written(&[&b]));
    support::closed(&mut tunnel);
    // The other has a key of that id.
    becomes(&gateway, &origin, &of_first, (403, "bad_signature"));
    assert_eq!(answered(&gateway, &origin, &of_second).0, 200);
    assert_eq!(
        gateway.ready()["issuers"].as_array().expect("a list").len(),
        1
    );

    // The files that a list names are watched as well.
    let public = |key: &Key| {
        let signing = SigningKey::from_pem(&key.pem).and_then(|signing| signing.with_id(&key.kid));
        public_jwks([signing.expect("a key").verifying_key()])
    };
    let of = |key: &Key| {
        let claims = json!({"iss": "third", "aud": "agentport", "sub": "bot-03"});
        key.token("3", claims)
    };
    std::fs::write(&file, public(&third)).expect("written");
    let c = json!({"issuer": "third", "jwks_file": file.display().to_string()});
    support::replace(&list, &written(&[&b, &c]));
    becomes(&gateway, &origin, &of(&third), passes);
    let other = Key::new("3");
    support::replace(&file, &public(&other));
    becomes(&gateway, &origin, &of(&other), passes);
    becomes(&gateway, &origin, &of(&third), (403, "bad_signature"));
}

//! Certificates by ACME from a real server: pebble.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each test uses a part of what is shared")]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use support::gateway::{Gateway, LOOPBACK_POLICY};
use support::names::Names;
use support::pebble::{EXTERNAL_KEY, Pebble};
use support::pki::Pki;
use support::{ports, wait_for};

/// What every gateway here has: the settings beside those of the challenge.
fn settings(pebble: &Pebble, folder: &Path, tls: u16) -> Vec<(&'static str, String)> {
    vec![
        ("listen.egress_tls", format!("127.0.0.1:{tls}")),
        ("tls.acme.directory", pebble.directory()),
        ("tls.acme.ca", pebble.ca().display().to_string()),
        ("tls.acme.contact", "mailto:ops@example.org".to_owned()),
        ("tls.acme.domains", "gw.test,proxy.test".to_owned()),
        ("tls.acme.dir", folder.display().to_string()),
    ]
}

fn by_http(http: u16) -> Vec<(&'static str, String)> {
    vec![("tls.acme.http_listen", format!("127.0.0.1:{http}"))]
}

fn by_tls() -> Vec<(&'static str, String)> {
    vec![("tls.acme.challenge", "tls-alpn-01".to_owned())]
}

fn start(settings: &[Vec<(&'static str, String)>]) -> Gateway {
    let all = settings.concat();
    let all: Vec<_> = all
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    Gateway::start(LOOPBACK_POLICY, &all)
}

fn ready(gateway: &Gateway) -> serde_json::Value {
    let page = gateway.ask_admin("/ready");
    let body: serde_json::Value = serde_json::from_slice(&page.body).expect("JSON");
    body["acme"].clone()
}

/// The issuer and the number of what is served for a name; `None` where the
/// handshake fails.
fn served(tls: u16, name: &str) -> Option<String> {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{tls}")])
        .args(["-servername", name, "-showcerts"])
        .stdin(Stdio::null())
        .output()
        .expect("openssl is installed: tests/setup does it");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let start = text.find("-----BEGIN CERTIFICATE-----")?;
    let end = text[start..].find("-----END CERTIFICATE-----")?;
    assert!(text.contains("Pebble Intermediate CA"), "{text}");
    Some(text[start..start + end].to_owned())
}

#[track_caller]
fn renew(pebble: &Pebble, folder: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agentport"));
    command.env_clear().args(["acme", "renew"]);
    for (key, value) in settings(pebble, folder, 1) {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    let output: Output = command.output().expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// An ACME server that says when to renew (RFC 9773), and of all else that it
/// has no time for two hours.
fn says_when(pki: &Pki, window: [&'static str; 2]) -> SocketAddr {
    let own = pki.server("says-when", &["127.0.0.1"]);
    let chain = CertificateDer::pem_file_iter(&own.certificate)
        .expect("PEM")
        .map(|der| der.expect("a certificate"))
        .collect();
    let key = PrivateKeyDer::from_pem_file(&own.key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tls = rustls::ServerConnection::new(Arc::clone(&config)).expect("TLS");
            let mut stream = rustls::StreamOwned::new(tls, stream);
            let (mut head, mut part) = (Vec::new(), [0; 1024]);
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read(&mut part) {
                    Ok(count) if count > 0 => head.extend_from_slice(&part[..count]),
                    _ => break,
                }
            }
            let at = |path: &str| format!("https://{address}/{path}");
            let (status, body) = if head.starts_with(b"GET /dir ") {
                let body = serde_json::json!({
                    "newNonce": at("nonce"),
                    "newAccount": at("account"),
                    "newOrder": at("order"),
                    "renewalInfo": at("when"),
                });
                ("200 OK", body.to_string())
            } else if head.starts_with(b"GET /when/") {
                let [start, end] = window;
                let body = serde_json::json!({"suggestedWindow": {"start": start, "end": end}});
                ("200 OK", body.to_string())
            } else {
                ("503 Service Unavailable", String::new())
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\nRetry-After: 7200\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes());
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    address
}

fn mode(path: &Path) -> u32 {
    let meta = std::fs::metadata(path).expect("there");
    meta.permissions().mode() & 0o777
}

#[test]
fn both_challenges_bring_a_certificate_and_a_renewal() {
    let names = Names::serve();
    for (case, is_http) in [("http-01", true), ("tls-alpn-01", false)] {
        let (http, tls) = (ports::free(), ports::free());
        // One of twenty nonces is refused, as a real server may.
        let pebble = Pebble::with(http, tls, names.address(), 5, false);
        let temp = tempfile::tempdir().expect("a folder");
        let folder = temp.path().join("acme");
        let challenge = if is_http { by_http(http) } else { by_tls() };
        let gateway = start(&[settings(&pebble, &folder, tls), challenge.clone()]);

        let first = wait_for(case, || served(tls, "gw.test"));
        assert_eq!(served(tls, "proxy.test").as_ref(), Some(&first), "{case}");
        for name in ["account.json", "certificate.pem", "attempts.json"] {
            assert_eq!(mode(&folder.join(name)), 0o600, "{case}: {name}");
        }
        for name in ["http-01", "tls-alpn-01"] {
            let left = std::fs::read_dir(folder.join(name))
                .expect("a folder")
                .count();
            assert_eq!(left, 0, "{case}: answers to challenges are left");
        }
        let metrics = gateway.metrics();
        assert!(
            metrics.contains("agentport_acme_orders_total{outcome=\"issued\"} 1"),
            "{case}: {metrics}"
        );
        assert!(metrics.contains("certificate.pem\"}"), "{case}: {metrics}");
        let state = wait_for("the state", || {
            Some(ready(&gateway)).filter(|state| state["until"].is_string())
        });
        assert_eq!(state["error"], serde_json::Value::Null, "{case}: {state}");

        renew(&pebble, &folder);
        wait_for("another certificate", || {
            served(tls, "gw.test").filter(|now| *now != first)
        });
        assert_eq!(pebble.orders(), 2, "{case}: {}", pebble.log());

        // After a restart the certificate is there at once, and none is ordered.
        let kept = served(tls, "gw.test");
        drop(gateway);
        let gateway = start(&[settings(&pebble, &folder, tls), challenge]);
        assert_eq!(served(tls, "gw.test"), kept, "{case}");
        wait_for("the state", || {
            Some(ready(&gateway)).filter(|state| state["next_order"].is_string())
        });
        assert_eq!(pebble.orders(), 2, "{case}: {}", pebble.log());
    }
}

#[test]
fn replicas_that_share_a_directory_order_once() {
    let names = Names::serve();
    let (http, tls, other_http, other_tls) =
        (ports::free(), ports::free(), ports::free(), ports::free());
    let pebble = Pebble::start(http, tls, names.address());
    let temp = tempfile::tempdir().expect("a folder");
    // Whoever orders, the first one is asked for the challenges.
    let one = start(&[settings(&pebble, temp.path(), tls), by_http(http)]);
    let other = start(&[
        settings(&pebble, temp.path(), other_tls),
        by_http(other_http),
    ]);

    let first = wait_for("the first", || served(tls, "gw.test"));
    wait_for("the other replica", || {
        served(other_tls, "gw.test").filter(|now| *now == first)
    });
    for round in 1..=3 {
        assert_eq!(pebble.orders(), round, "{}", pebble.log());
        let before = served(tls, "gw.test");
        renew(&pebble, temp.path());
        let now = wait_for("another certificate", || {
            served(tls, "gw.test").filter(|now| Some(now) != before.as_ref())
        });
        wait_for("the other replica", || {
            served(other_tls, "gw.test").filter(|other| *other == now)
        });
    }
    let issued = |gateway: &Gateway| {
        let metrics = gateway.metrics();
        let start = "agentport_acme_orders_total{outcome=\"issued\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(start));
        line.expect("a figure").parse::<usize>().expect("a number")
    };
    assert_eq!(issued(&one) + issued(&other), 4);
    assert_eq!(pebble.orders(), 4, "{}", pebble.log());
}

#[test]
fn a_server_that_is_down_or_refuses_leaves_the_last_certificate() {
    let names = Names::serve();
    let (http, tls) = (ports::free(), ports::free());
    let mut pebble = Pebble::start(http, tls, names.address());
    let temp = tempfile::tempdir().expect("a folder");
    let gateway = start(&[settings(&pebble, temp.path(), tls), by_http(http)]);
    let first = wait_for("the first", || served(tls, "gw.test"));

    pebble.kill();
    renew(&pebble, temp.path());
    let state = wait_for("the failure", || {
        Some(ready(&gateway)).filter(|state| state["failures"] == 1)
    });
    let error = state["error"].as_str().expect("an error");
    assert!(error.contains("refused"), "{error}");
    assert_eq!(served(tls, "gw.test"), Some(first.clone()));
    // The pause is kept where a restart and other replicas find it.
    let kept = std::fs::read_to_string(temp.path().join("attempts.json")).expect("kept");
    let kept: serde_json::Value = serde_json::from_str(&kept).expect("JSON");
    assert!(kept["not_before"].as_u64() > Some(now()), "{kept}");
    drop(gateway);
    let gateway = start(&[settings(&pebble, temp.path(), tls), by_http(http)]);
    assert_eq!(served(tls, "gw.test"), Some(first.clone()));
    wait_for("the state", || {
        Some(ready(&gateway)).filter(|state| state["failures"] == 1)
    });

    // It comes back without the account, and looks for the names elsewhere.
    names.set("gw.test", &["127.0.0.9"]);
    pebble.revive();
    std::fs::remove_file(temp.path().join("account.json")).expect("removed");
    renew(&pebble, temp.path());
    let error = wait_for("the CA's reason", || {
        let state = ready(&gateway);
        let error = state["error"].as_str().map(str::to_owned);
        error.filter(|error| error.contains("127.0.0.9"))
    });
    assert!(error.contains("gw.test"), "{error}");
    assert_eq!(served(tls, "gw.test"), Some(first.clone()));

    names.set("gw.test", &["127.0.0.1"]);
    renew(&pebble, temp.path());
    wait_for("another certificate", || {
        served(tls, "gw.test").filter(|now| *now != first)
    });
}

#[test]
fn an_external_account_is_bound_where_the_server_wants_one() {
    let names = Names::serve();
    let (http, tls) = (ports::free(), ports::free());
    let pebble = Pebble::with(http, tls, names.address(), 0, true);
    let temp = tempfile::tempdir().expect("a folder");
    let without = start(&[settings(&pebble, temp.path(), tls), by_http(http)]);
    let error = wait_for("the refusal", || {
        ready(&without)["error"].as_str().map(str::to_owned)
    });
    assert!(error.contains("externalAccountRequired"), "{error}");
    assert_eq!(
        served(tls, "gw.test"),
        None,
        "handshakes fail until there is one"
    );
    drop(without);

    let key = temp.path().join("eab.key");
    std::fs::write(&key, format!("{EXTERNAL_KEY}\n")).expect("written");
    let eab = vec![
        ("tls.acme.eab.kid", "kid-1".to_owned()),
        ("tls.acme.eab.key_file", key.display().to_string()),
    ];
    let gateway = start(&[settings(&pebble, temp.path(), tls), by_http(http), eab]);
    renew(&pebble, temp.path());
    wait_for("a certificate", || served(tls, "gw.test"));
    assert_eq!(pebble.issued(), 1, "{}", pebble.log());
    drop(gateway);
}

#[test]
fn the_port_of_challenges_answers_nothing_else() {
    let names = Names::serve();
    let (http, tls) = (ports::free(), ports::free());
    let pebble = Pebble::start(http, tls, names.address());
    let temp = tempfile::tempdir().expect("a folder");
    let _gateway = start(&[settings(&pebble, temp.path(), tls), by_http(http)]);
    wait_for("a certificate", || served(tls, "gw.test"));
    let address = SocketAddr::from(([127, 0, 0, 1], http));
    for target in [
        "/",
        "/health",
        "/.well-known/acme-challenge/none",
        "/.well-known/acme-challenge/../account.json",
        "http://a.test/",
    ] {
        let mut stream = TcpStream::connect(address).expect("it listens");
        let request = format!("GET {target} HTTP/1.1\r\nHost: gw.test\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 404 "), "{target}: {answer}");
    }
}

#[test]
fn the_certificate_is_renewed_when_the_server_says() {
    let pki = Pki::new("the CA that says when");
    let pair = pki.server("gw", &["gw.test", "proxy.test"]);
    let read = |path: &Path| std::fs::read_to_string(path).expect("there");
    let pem = read(&pair.key) + &read(&pair.certificate);
    for (case, window, is_due) in [
        (
            "later",
            ["2031-01-01T00:00:00Z", "2031-01-03T00:00:00Z"],
            false,
        ),
        (
            "at once",
            ["2025-01-01T00:00:00Z", "2025-01-03T00:00:00Z"],
            true,
        ),
    ] {
        let server = says_when(&pki, window);
        let temp = tempfile::tempdir().expect("a folder");
        std::fs::write(temp.path().join("certificate.pem"), &pem).expect("written");
        let gateway = start(&[
            vec![
                ("listen.egress_tls", "127.0.0.1:0".to_owned()),
                ("tls.acme.directory", format!("https://{server}/dir")),
                ("tls.acme.ca", pki.ca().display().to_string()),
                ("tls.acme.domains", "gw.test,proxy.test".to_owned()),
                ("tls.acme.dir", temp.path().display().to_string()),
            ],
            by_http(ports::free()),
        ]);
        let state = wait_for(case, || {
            let wanted = if is_due { 1 } else { 0 };
            Some(ready(&gateway))
                .filter(|state| state["renewal_window"].is_array() && state["failures"] == wanted)
        });
        let next = state["next_order"].as_str().expect("a time");
        if is_due {
            // It was asked for an account, and its word on when to come again
            // counts more than our own first pause.
            let kept = read(&temp.path().join("attempts.json"));
            let kept: serde_json::Value = serde_json::from_str(&kept).expect("JSON");
            assert!(kept["not_before"].as_u64() > Some(now() + 7000), "{kept}");
        } else {
            assert!(next.starts_with("2031-01-0"), "{case}: {next}");
        }
        // Whatever happens, the one that is there stays.
        assert!(state["until"].is_string(), "{case}: {state}");
    }
}

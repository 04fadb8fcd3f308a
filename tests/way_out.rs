//! What the gateway asks for itself goes by the parent proxy too: certificates
//! by ACME and the keys of other issuers, from real servers by real proxies.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each test uses a part of what is shared")]
mod support;

use std::time::{Duration, SystemTime};

use agentport::egress::AgentId;
use agentport::identity::{IssueRequest, SigningKey, TokenIssuer, generate_ed25519, public_jwks};
use serde_json::json;
use support::conn::Conn;
use support::front::TlsFront;
use support::gateway::{Gateway, LOOPBACK_POLICY};
use support::names::Names;
use support::origin::Origin;
use support::parent::{ByHand, RealParent, credentials};
use support::pebble::Pebble;
use support::pki::Pki;
use support::{ports, wait_for};

#[test]
fn a_certificate_by_acme_is_ordered_by_squid() {
    let squid = RealParent::squid();
    let names = Names::serve();
    let (http, tls) = (ports::free(), ports::free());
    let pebble = Pebble::start(http, tls, names.address());
    let folder = tempfile::tempdir().expect("a folder");
    let file = credentials(folder.path(), "gateway:hunter2\n");
    let gateway = Gateway::start(
        LOOPBACK_POLICY,
        &[
            ("listen.egress_tls", &format!("127.0.0.1:{tls}")),
            ("tls.acme.directory", &pebble.directory_by_name()),
            ("tls.acme.ca", &pebble.ca().display().to_string()),
            ("tls.acme.domains", "gw.test"),
            (
                "tls.acme.dir",
                &folder.path().join("acme").display().to_string(),
            ),
            ("tls.acme.http_listen", &format!("127.0.0.1:{http}")),
            ("upstream_proxy.url", &squid.url()),
            (
                "upstream_proxy.credentials_file",
                &file.display().to_string(),
            ),
        ],
    );
    let state = wait_for("a certificate", || {
        let state = gateway.ask_admin("/ready").json()["acme"].clone();
        assert_eq!(state["error"], serde_json::Value::Null, "{state}");
        state["until"].is_string().then_some(state)
    });
    assert_eq!(pebble.issued(), 1, "{state}");
    // Its name was looked up here, and the address asked for; each of the dozen
    // requests of an order is a tunnel.
    let asked = squid.logged(6, &format!("CONNECT 127.0.0.1:{}", pebble.port()));
    assert!(asked.iter().all(|line| line.contains(" gateway ")));
    assert!(gateway.names().asked().contains(&"acme.test".to_owned()));
}

/// An issuer of tokens at `https://id.test:PORT/keys`.
struct Issuer {
    pki: Pki,
    /// Its key, as PEM.
    pem: String,
    front: TlsFront,
    /// Behind its TLS.
    _origin: Origin,
}

impl Issuer {
    fn start() -> Self {
        let pem = generate_ed25519().expect("a key");
        let key = SigningKey::from_pem(&pem).expect("a key");
        let keys = public_jwks([key.verifying_key()]);
        let origin = Origin::http(move |head, _| {
            assert_eq!(head.asks(), ("GET", "/keys"));
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{keys}",
                keys.len()
            )
            .into_bytes()
        });
        let pki = Pki::new("the issuer's CA");
        let server = pki.server("id", &["id.test"]);
        Self {
            front: TlsFront::before(origin.address(), &server, &["http/1.1"]),
            pem,
            pki,
            _origin: origin,
        }
    }

    /// A gateway that asks it for keys once an hour, with these settings.
    fn gateway(&self, addresses: &[&str], more: &[(&str, &str)]) -> Gateway {
        let issuers = json!([{
            "issuer": "https://id.test",
            "jwks_url": format!("https://id.test:{}/keys", self.front.port()),
            "ca": self.pki.ca(),
            "addresses": addresses,
            "refresh": "1h",
        }]);
        let issuers = issuers.to_string();
        let mut settings = vec![("identity.issuers", &*issuers)];
        settings.extend_from_slice(more);
        Gateway::start(LOOPBACK_POLICY, &settings)
    }

    fn token(&self) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let request = IssueRequest {
            agent: AgentId::parse("bot").expect("an agent"),
            tenant: None,
            destinations: None,
            lifetime: Duration::from_secs(600),
            audience: None,
            jti: 1,
            actors: Vec::new(),
            scope: None,
            client: None,
        };
        let key = SigningKey::from_pem(&self.pem).expect("a key");
        TokenIssuer::new(key, "https://id.test", "agentport")
            .issue(&request, now.expect("after 1970").as_secs())
            .expect("a token")
    }

    /// What one is answered that brings its token.
    fn answered(&self, gateway: &Gateway, origin: &Origin) -> u16 {
        let mut client = Conn::to(gateway.egress());
        let host = format!("a.test:{}", origin.port());
        client.send(format!(
            "GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
            self.token()
        ));
        client.response().status
    }
}

/// What `/ready` says of the one issuer, once it says so.
fn known(gateway: &Gateway, what: &str, fits: impl Fn(&serde_json::Value) -> bool) -> String {
    let state = wait_for(what, || {
        let state = gateway.ask_admin("/ready").json()["issuers"][0].clone();
        fits(&state).then_some(state)
    });
    state["problem"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn keys_of_an_issuer_come_by_tinyproxy_unless_no_proxy_excepts_it() {
    let tinyproxy = RealParent::tinyproxy();
    let issuer = Issuer::start();
    let origin = Origin::ok();
    let url = tinyproxy.url();
    let asked = format!("CONNECT 127.0.0.1:{}", issuer.front.port());
    for (case, no_proxy, handshakes, tunnels) in [
        ("by the parent", "a.test", 1, 1),
        ("excepted by its name", "a.test,id.test", 2, 1),
        ("excepted by its address", "127.0.0.0/8", 3, 1),
        ("by the parent again", "a.test", 4, 2),
    ] {
        let gateway = issuer.gateway(
            &["127.0.0.0/8"],
            &[
                ("upstream_proxy.url", &url),
                ("upstream_proxy.no_proxy", no_proxy),
            ],
        );
        known(&gateway, case, |state| state["keys"] == 1);
        assert_eq!(issuer.answered(&gateway, &origin), 200, "{case}");
        assert_eq!(issuer.front.handshakes().len(), handshakes, "{case}");
        assert_eq!(tinyproxy.logged(tunnels, &asked).len(), tunnels, "{case}");
    }
}

#[test]
fn an_issuer_by_the_parent_is_where_it_may_be_or_is_not_asked() {
    let issuer = Issuer::start();
    let origin = Origin::ok();
    let parent = ByHand::relaying();
    let refusing = ByHand::saying("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    let (url, refuses) = (parent.url(), refusing.url());
    for (case, url, addresses, asks, problem) in [
        (
            "at a private address that nobody has named",
            &url,
            &[][..],
            "resolved",
            "not public",
        ),
        (
            "outside its ranges",
            &url,
            &["10.0.0.0/8"][..],
            "resolved",
            "none of the ranges",
        ),
        (
            "outside its ranges, by its name",
            &url,
            &["10.0.0.0/8"][..],
            "name",
            "none of the ranges",
        ),
        (
            "where nobody knows its address",
            &url,
            &["127.0.0.0/8"][..],
            "unchecked",
            "upstream_proxy.address is unchecked",
        ),
        (
            "which the parent refuses",
            &refuses,
            &["127.0.0.0/8"][..],
            "resolved",
            "it answered 403",
        ),
    ] {
        let gateway = issuer.gateway(
            addresses,
            &[
                ("upstream_proxy.url", url),
                ("upstream_proxy.address", asks),
                ("upstream_proxy.no_proxy", "a.test"),
            ],
        );
        let said = known(&gateway, case, |state| state["problem"].is_string());
        assert!(said.contains(problem), "{case}: {said}");
        assert_eq!(issuer.answered(&gateway, &origin), 503, "{case}");
    }
    assert!(parent.targets().is_empty(), "{:?}", parent.targets());
    assert!(issuer.front.handshakes().is_empty());
    assert!(origin.requests().is_empty());
    // By its name, whose addresses are looked up here first and may be; and by
    // its name alone: whether that is public is for the parent to see to.
    for (asks, addresses, is_looked_up) in [
        ("name", &["127.0.0.0/8"][..], true),
        ("unchecked", &[], false),
    ] {
        let gateway = issuer.gateway(
            addresses,
            &[
                ("upstream_proxy.url", &url),
                ("upstream_proxy.address", asks),
                ("upstream_proxy.no_proxy", "a.test"),
            ],
        );
        known(&gateway, asks, |state| state["keys"] == 1);
        assert_eq!(issuer.answered(&gateway, &origin), 200, "{asks}");
        let to = format!("id.test:{}", issuer.front.port());
        assert_eq!(parent.targets().last(), Some(&to), "{asks}");
        let asked = gateway.names().asked();
        assert_eq!(
            asked.contains(&"id.test".to_owned()),
            is_looked_up,
            "{asks}"
        );
    }
    assert_eq!(parent.targets().len(), 2);
}

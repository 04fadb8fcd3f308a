//! The egress listener over TLS: real clients with and without certificates,
//! certificates that change under load, and load balancers in front.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each test uses a part of what is shared")]
mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};

use support::gateway::{Gateway, LOOPBACK_POLICY, token};
use support::origin::{Origin, Untouched};
use support::pki::{Issued, Pki, Valid};

/// A gateway that speaks TLS with this certificate, and the address of that
/// listener.
fn start(certificate: &Issued, settings: &[(&str, &str)]) -> (Gateway, SocketAddr) {
    let pairs = format!(
        "[{{certificate: {}, key: {}}}]",
        certificate.certificate.display(),
        certificate.key.display()
    );
    let mut all = vec![
        ("listen.egress_tls", "127.0.0.1:0"),
        ("tls.certificates", &pairs),
    ];
    all.extend_from_slice(settings);
    let gateway = Gateway::start(LOOPBACK_POLICY, &all);
    let address = tls_address(&gateway);
    (gateway, address)
}

fn tls_address(gateway: &Gateway) -> SocketAddr {
    let line = gateway.lines("egress TLS listener").remove(0);
    let text = line["address"].as_str().expect("an address");
    text.parse().expect("an address")
}

/// curl by the proxy at this address, whose name is `proxy.test`.
fn curl(proxy: SocketAddr, ca: &Path, more: &[&str]) -> Output {
    Command::new("curl")
        .args(["-sS", "--max-time", "20", "--noproxy", ""])
        .args([
            "--resolve",
            &format!("proxy.test:{}:127.0.0.1", proxy.port()),
        ])
        .args(["-x", &format!("https://proxy.test:{}", proxy.port())])
        .arg("--proxy-cacert")
        .arg(ca)
        .args(["-w", "\n%{http_connect} %{http_code}"])
        .args(more)
        .output()
        .expect("curl runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bearer(agent: &str) -> String {
    format!("Proxy-Authorization: Bearer {}", token(agent))
}

#[test]
fn curl_asks_and_tunnels_through_tls() {
    let pki = Pki::new("the gateway's CA");
    let (gateway, proxy) = start(&pki.server("proxy", &["proxy.test"]), &[]);
    let origin = Origin::ok();
    let url = format!("http://a.test:{}/x", origin.port());
    for (case, field, more) in [
        ("forward", "-H", &[][..]),
        ("tunnel", "--proxy-header", &["--proxytunnel"]),
    ] {
        let auth = bearer("bot");
        let head = [field, &auth, &url];
        let out = curl(proxy, pki.ca(), &[&head[..], more].concat());
        let said = text(&out.stdout);
        assert!(
            said.starts_with("ok\n"),
            "{case}: {said} {}",
            text(&out.stderr)
        );
    }
    let record = gateway.record("through TLS", |record| record["listener"] == "egress_tls");
    assert_eq!(record["agent_id"], "bot");
    let metrics = gateway.metrics();
    assert!(
        metrics
            .contains("agentport_tls_handshakes_total{listener=\"egress_tls\",outcome=\"full\"} 2"),
        "{metrics}"
    );
    assert!(
        metrics.contains("agentport_certificate_expiry_timestamp_seconds"),
        "{metrics}"
    );
    // Without a credential it is refused there as everywhere.
    let untouched = Untouched::listen();
    let url = format!("http://a.test:{}/", untouched.port());
    let out = curl(proxy, pki.ca(), &[&url]);
    assert!(
        text(&out.stdout).contains("\n000 407"),
        "{}",
        text(&out.stdout)
    );
    // And who does not trust the CA does not come in.
    let other = Pki::new("another CA");
    let out = curl(proxy, other.ca(), &[&url]);
    assert_eq!(out.status.code(), Some(60), "{}", text(&out.stderr));
}

const AGENTS: &str = "spiffe://example.org/agent/{agent}";

#[test]
fn who_comes_in_with_which_certificate() {
    let pki = Pki::new("the agents' CA");
    let other = Pki::new("another CA");
    let server = pki.server("proxy", &["proxy.test"]);
    let list = pki.revoke("list.crl", &[13]);
    let id = |agent: &str| format!("spiffe://example.org/agent/{agent}");
    let bot = id("bot");
    let good = pki.client("good", 10, &[&bot], Valid::Now);
    let expired = pki.client("expired", 11, &[&bot], Valid::Past);
    let early = pki.client("early", 12, &[&bot], Valid::Future);
    let revoked = pki.client("revoked", 13, &[&bot], Valid::Now);
    let foreign = other.client("foreign", 14, &[&bot], Valid::Now);
    let nobody = pki.client("nobody", 15, &["host.internal"], Valid::Now);
    let two = pki.client("two", 16, &[&bot, &id("other")], Valid::Now);
    let not_client = pki.server("not-a-client", &["bot.agents.example.org"]);

    let ca = pki.ca().display().to_string();
    let crl = list.display().to_string();
    for (asked, require, cases) in [
        (
            "optional",
            "token",
            &[
                ("a token alone", None, Some("bot"), Ok("bot")),
                (
                    "a certificate alone",
                    Some(&good),
                    None,
                    Err("no_credential"),
                ),
                ("both", Some(&good), Some("bot"), Ok("bot")),
                // The token counts; the certificate only lets in.
                (
                    "a certificate of nobody's",
                    Some(&nobody),
                    Some("bot"),
                    Ok("bot"),
                ),
                (
                    "an expired one",
                    Some(&expired),
                    Some("bot"),
                    Err("certificate_expired"),
                ),
                (
                    "a revoked one",
                    Some(&revoked),
                    Some("bot"),
                    Err("certificate_revoked"),
                ),
            ][..],
        ),
        (
            "required",
            "certificate",
            &[
                ("a certificate", Some(&good), None, Ok("bot")),
                ("none", None, Some("bot"), Err("no_certificate")),
                (
                    "another CA's",
                    Some(&foreign),
                    None,
                    Err("certificate_unknown_issuer"),
                ),
                (
                    "an expired one",
                    Some(&expired),
                    None,
                    Err("certificate_expired"),
                ),
                (
                    "one of the future",
                    Some(&early),
                    None,
                    Err("certificate_not_valid_yet"),
                ),
                (
                    "a revoked one",
                    Some(&revoked),
                    None,
                    Err("certificate_revoked"),
                ),
                (
                    "a server's",
                    Some(&not_client),
                    None,
                    Err("certificate_invalid"),
                ),
                (
                    "one of nobody's",
                    Some(&nobody),
                    None,
                    Err("certificate_unknown"),
                ),
                (
                    "one of two agents",
                    Some(&two),
                    None,
                    Err("certificate_ambiguous"),
                ),
            ],
        ),
        (
            "optional",
            "either",
            &[
                ("a certificate", Some(&good), None, Ok("bot")),
                ("a token", None, Some("tool"), Ok("tool")),
                ("both of one agent", Some(&good), Some("bot"), Ok("bot")),
                (
                    "of two agents",
                    Some(&good),
                    Some("tool"),
                    Err("certificate_mismatch"),
                ),
                (
                    "nobody's and a token",
                    Some(&nobody),
                    Some("tool"),
                    Ok("tool"),
                ),
                ("neither", None, None, Err("no_credential")),
            ],
        ),
        (
            "optional",
            "both",
            &[
                ("both of one agent", Some(&good), Some("bot"), Ok("bot")),
                (
                    "of two agents",
                    Some(&good),
                    Some("tool"),
                    Err("certificate_mismatch"),
                ),
                (
                    "a certificate alone",
                    Some(&good),
                    None,
                    Err("no_credential"),
                ),
                ("a token alone", None, Some("bot"), Err("no_certificate")),
                (
                    "nobody's and a token",
                    Some(&nobody),
                    Some("bot"),
                    Err("certificate_unknown"),
                ),
            ],
        ),
    ] {
        let (gateway, proxy) = start(
            &server,
            &[
                ("tls.clients.certificates", asked),
                ("tls.clients.ca", &ca),
                ("tls.clients.crl", &crl),
                ("tls.clients.names", AGENTS),
                ("identity.require", require),
            ],
        );
        let origin = Origin::ok();
        let untouched = Untouched::listen();
        for (case, certificate, agent, expected) in cases {
            let case = format!("{asked} certificates, {require} required: {case}");
            let port = expected.map_or(untouched.port(), |_| origin.port());
            let url = format!("http://a.test:{port}/");
            let before = gateway.records().len();
            let auth = agent.map(bearer);
            let mut more = vec![url.as_str()];
            if let Some(auth) = &auth {
                more.extend(["-H", auth]);
            }
            let paths = certificate.map(|issued: &Issued| {
                let text = |path: &Path| path.display().to_string();
                (text(&issued.certificate), text(&issued.key))
            });
            if let Some((certificate, key)) = &paths {
                more.extend(["--proxy-cert", certificate, "--proxy-key", key]);
            }
            let out = curl(proxy, pki.ca(), &more);
            if *expected == Err("no_certificate") && asked == "required" {
                // Nothing was shown that could be written down.
                assert!(!out.status.success(), "{case}");
                continue;
            }
            let record = support::wait_for(&case, || gateway.records().get(before).cloned());
            match expected {
                Ok(agent) => {
                    assert!(text(&out.stdout).starts_with("ok\n"), "{case}: {out:?}");
                    assert_eq!(record["agent_id"], *agent, "{case}: {record}");
                    assert_eq!(record["action_allowed"], true, "{case}: {record}");
                }
                Err(reason) => {
                    assert!(!text(&out.stdout).starts_with("ok\n"), "{case}: {out:?}");
                    assert_eq!(record["reason"], *reason, "{case}: {record}");
                    assert_eq!(record["action_allowed"], false, "{case}: {record}");
                }
            }
        }
    }
}

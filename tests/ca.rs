//! `agentport ca`, judged by OpenSSL and by the gateway's own listener.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each test uses a part of what is shared")]
mod support;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::gateway::{Gateway, LOOPBACK_POLICY};
use support::origin::{Origin, Untouched};
use support::wait_for;

fn ca_raw(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_agentport"))
        .env_clear()
        .arg("ca")
        .args(words)
        .arg("--folder")
        .arg(folder)
        .output()
        .expect("the binary runs")
}

/// What it prints, without the end of the line.
#[track_caller]
fn ca(folder: &Path, words: &[&str]) -> String {
    let output = ca_raw(folder, words);
    assert!(output.status.success(), "{words:?}: {}", said(&output));
    String::from_utf8(output.stdout)
        .expect("UTF-8")
        .trim_end()
        .to_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn openssl(words: &[&str], file: &str) -> String {
    let output = Command::new("openssl")
        .args(words)
        .arg(file)
        .output()
        .expect("openssl is installed: tests/setup does it");
    let all = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&all).into_owned()
}

/// What OpenSSL thinks of a certificate of this CA, with its list.
fn verified(folder: &Path, purpose: &str, file: &str) -> String {
    let path = |name: &str| folder.join(name).display().to_string();
    let words = [
        "verify",
        "-x509_strict",
        "-crl_check",
        "-purpose",
        purpose,
        "-CAfile",
        &path("ca.pem"),
        "-CRLfile",
        &path("crl.pem"),
    ];
    openssl(&words, file)
}

fn mode(path: impl AsRef<Path>) -> u32 {
    let meta = std::fs::metadata(path).expect("there");
    meta.permissions().mode() & 0o777
}

fn new_ca() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().expect("a folder");
    let folder = temp.path().join("ca");
    ca(&folder, &["init", "--domain", "example.org"]);
    (temp, folder)
}

#[test]
fn a_key_may_have_a_passphrase() {
    let temp = tempfile::tempdir().expect("a folder");
    let folder = temp.path().join("ca");
    let file = |name: &str, text: &str| {
        let path = temp.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let right = file("right", "correct horse battery staple\n");
    let wrong = file("wrong", "another horse battery staple\n");
    let short = file("short", "short\n");
    let init = ["init", "--domain", "example.org", "--passphrase-file"];
    let refused = ca_raw(&folder, &[&init[..], &[&*short]].concat());
    assert!(said(&refused).contains("too short"), "{}", said(&refused));
    assert!(!folder.join("ca.key").exists());
    ca(&folder, &[&init[..], &[&*right]].concat());
    let key = std::fs::read_to_string(folder.join("ca.key")).expect("a key");
    assert!(
        key.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"),
        "{key}"
    );
    assert_eq!(mode(folder.join("ca.key")), 0o600);
    let issue = ["issue", "--agent", "bot"];
    for (case, more, says) in [
        ("none", &[][..], "--passphrase-file"),
        (
            "another",
            &["--passphrase-file", &*wrong][..],
            "not that of this key",
        ),
    ] {
        let refused = ca_raw(&folder, &[&issue[..], more].concat());
        assert!(!refused.status.success(), "{case}");
        assert!(said(&refused).contains(says), "{case}: {}", said(&refused));
    }
    let issued = ca(
        &folder,
        &[&issue[..], &["--passphrase-file", &*right]].concat(),
    );
    let verdict = verified(&folder, "sslclient", &issued);
    assert!(verdict.contains(": OK"), "{verdict}");
    // OpenSSL reads the key by the same passphrase.
    let place = folder.join("ca.key").display().to_string();
    let passin = format!("file:{right}");
    let read = openssl(
        &["pkey", "-noout", "-check", "-passin", &passin, "-in"],
        &place,
    );
    assert!(read.contains("valid"), "{read}");
}

#[test]
fn openssl_finds_what_the_ca_says() {
    let (_temp, folder) = new_ca();
    let path = |name: &str| folder.join(name).display().to_string();
    assert_eq!(mode(path("ca.key")), 0o600);
    assert_eq!(mode(path("index.jsonl")), 0o600);
    let own = openssl(&["x509", "-noout", "-text", "-in"], &path("ca.pem"));
    for expected in [
        "CA:TRUE, pathlen:0",
        "Certificate Sign, CRL Sign",
        "URI:spiffe://example.org\n",
    ] {
        assert!(own.contains(expected), "{expected}: {own}");
    }

    let agent = ca(
        &folder,
        &["issue", "--agent", "bot", "--dns", "bot.internal"],
    );
    let tenants = ca(&folder, &["issue", "--agent", "bot", "--tenant", "acme"]);
    let server = ca(&folder, &["issue", "--server", "proxy.test,127.0.0.1"]);
    for (case, file, purpose, names) in [
        (
            "an agent's",
            &agent,
            "sslclient",
            "URI:spiffe://example.org/agent/bot, DNS:bot.internal\n",
        ),
        (
            "an agent's of a tenant",
            &tenants,
            "sslclient",
            "URI:spiffe://example.org/acme/agent/bot\n",
        ),
        (
            "a server's",
            &server,
            "sslserver",
            "DNS:proxy.test, IP Address:127.0.0.1\n",
        ),
    ] {
        assert_eq!(
            verified(&folder, purpose, file),
            format!("{file}: OK\n"),
            "{case}"
        );
        let text = openssl(&["x509", "-noout", "-text", "-in"], file);
        assert!(text.contains(names), "{case}: {text}");
        assert!(text.contains("CA:FALSE"), "{case}: {text}");
        assert_eq!(mode(Path::new(file).with_extension("key")), 0o600, "{case}");
        let serial = openssl(&["x509", "-noout", "-serial", "-in"], file);
        assert_eq!(
            serial.trim().len(),
            "serial=".len() + 32,
            "{case}: {serial}"
        );
    }
    assert!(
        !verified(&folder, "sslclient", &server).contains(": OK"),
        "a server's certificate opens nothing for a client"
    );
    let ends = openssl(&["x509", "-noout", "-checkend", "86000", "-in"], &agent);
    assert!(ends.contains("will not expire"), "{ends}");
    let ends = openssl(&["x509", "-noout", "-checkend", "86401", "-in"], &agent);
    assert!(ends.contains("will expire"), "{ends}");
}

#[test]
fn a_renewed_certificate_keeps_its_names_and_a_revoked_one_stays_revoked() {
    let (_temp, folder) = new_ca();
    let file = ca(
        &folder,
        &["issue", "--agent", "bot", "--dns", "bot.internal"],
    );
    let old = folder.join("old.pem").display().to_string();
    std::fs::copy(&file, &old).expect("copied");
    let names = |file: &str| openssl(&["x509", "-noout", "-ext", "subjectAltName", "-in"], file);
    let serial = |file: &str| openssl(&["x509", "-noout", "-serial", "-in"], file);
    let key = |file: &str| openssl(&["x509", "-noout", "-pubkey", "-in"], file);

    assert_eq!(ca(&folder, &["renew"]), "", "nothing is due");
    assert_eq!(ca(&folder, &["renew", &file]), file);
    assert_eq!(names(&file), names(&old));
    assert_ne!(serial(&file), serial(&old));
    assert_ne!(key(&file), key(&old));
    let own = Path::new(&file).with_extension("key").display().to_string();
    assert_eq!(openssl(&["pkey", "-pubout", "-in"], &own), key(&file));

    // By file, then by OpenSSL's word for the number.
    ca(&folder, &["revoke", &old]);
    assert!(verified(&folder, "sslclient", &old).contains("certificate revoked"));
    assert_eq!(
        verified(&folder, "sslclient", &file),
        format!("{file}: OK\n")
    );
    let number = serial(&file);
    let number = number.trim().trim_start_matches("serial=");
    ca(&folder, &["revoke", number]);
    assert!(verified(&folder, "sslclient", &file).contains("certificate revoked"));
    let refused = ca_raw(&folder, &["renew", &file]);
    assert!(said(&refused).contains("is revoked"), "{}", said(&refused));

    let crl = folder.join("crl.pem").display().to_string();
    let list = openssl(&["crl", "-noout", "-text", "-in"], &crl);
    assert_eq!(list.matches("Serial Number:").count(), 2, "{list}");
    // Made, issued, renewed twice and revoked twice.
    assert!(
        list.contains("X509v3 CRL Number: \n                6\n"),
        "{list}"
    );
    let shown = ca(&folder, &["show"]);
    assert_eq!(shown.matches("spiffe://example.org/agent/bot").count(), 2);
    assert_eq!(shown.matches(", revoked ").count(), 2, "{shown}");
}

#[test]
fn what_is_due_is_renewed() {
    let (_temp, folder) = new_ca();
    let due = ca(&folder, &["issue", "--agent", "short", "--for", "2s"]);
    let gone = ca(&folder, &["issue", "--agent", "gone", "--for", "2s"]);
    ca(&folder, &["issue", "--agent", "long"]);
    std::fs::remove_file(gone).expect("removed");
    let renewed = wait_for("two thirds of two seconds", || {
        Some(ca(&folder, &["renew"])).filter(|renewed| !renewed.is_empty())
    });
    assert_eq!(renewed, due);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let (_temp, folder) = new_ca();
    ca(&folder, &["issue", "--agent", "bot"]);
    let read = |name: &str| std::fs::read(folder.join(name)).expect("there");
    let before: Vec<_> = ["ca.key", "ca.pem", "crl.pem", "index.jsonl"]
        .map(read)
        .to_vec();
    for (words, says) in [
        (&["init", "--domain", "other.org"][..], "is there already"),
        (&["issue", "--agent", "bot"], "is there already"),
        (&["issue", "--agent", ".."], "a SPIFFE id has letters"),
        (&["issue", "--agent", "a/b"], "a SPIFFE id has letters"),
        (&["issue", "--agent", "b", "--tenant", "x:y"], "tenant x:y"),
        (&["issue", "--server", "x y"], "x y"),
        (&["issue", "--agent", "b", "--for", "0s"], "--for 0s"),
        (&["revoke", "00ff"], "has issued no such certificate"),
        (&["renew", "/dev/null"], "not a regular file"),
        (&["renew", "Cargo.toml"], "no certificate in PEM"),
    ] {
        let output = ca_raw(&folder, words);
        assert!(!output.status.success(), "{words:?}");
        assert!(said(&output).contains(says), "{words:?}: {}", said(&output));
    }
    let after: Vec<_> = ["ca.key", "ca.pem", "crl.pem", "index.jsonl"]
        .map(read)
        .to_vec();
    assert!(before == after, "a refusal changed a file");

    let elsewhere = folder.join("none");
    let output = ca_raw(&elsewhere, &["issue", "--agent", "bot"]);
    assert!(said(&output).contains("`agentport ca init` makes one"));
    // Another key than the certificate's signs nothing.
    let (_other, other) = new_ca();
    std::fs::copy(other.join("ca.key"), folder.join("ca.key")).expect("copied");
    let output = ca_raw(&folder, &["issue", "--agent", "c"]);
    assert!(said(&output).contains("not the key of the CA"));
}

#[test]
fn the_gateway_takes_its_agents_until_they_are_revoked() {
    let (_temp, folder) = new_ca();
    let path = |name: &str| folder.join(name).display().to_string();
    let server = ca(&folder, &["issue", "--server", "proxy.test"]);
    let bot = ca(&folder, &["issue", "--agent", "bot"]);
    let key = |file: &str| Path::new(file).with_extension("key").display().to_string();
    let pair = format!("[{{certificate: {server}, key: {}}}]", key(&server));
    let gateway = Gateway::start(
        LOOPBACK_POLICY,
        &[
            ("listen.egress_tls", "127.0.0.1:0"),
            ("tls.certificates", &pair),
            ("tls.clients.certificates", "optional"),
            ("tls.clients.ca", &path("ca.pem")),
            ("tls.clients.crl", &path("crl.pem")),
            ("tls.clients.names", "spiffe://example.org/agent/{agent}"),
            ("identity.require", "certificate"),
        ],
    );
    let line = gateway.lines("egress TLS listener").remove(0);
    let address = line["address"].as_str().expect("an address");
    let proxy: SocketAddr = address.parse().expect("an address");
    let get = |port: u16| {
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "--noproxy", ""])
            .args([
                "--resolve",
                &format!("proxy.test:{}:127.0.0.1", proxy.port()),
            ])
            .args(["-x", &format!("https://proxy.test:{}", proxy.port())])
            .args(["--proxy-cacert", &path("ca.pem")])
            .args(["--proxy-cert", &bot, "--proxy-key", &key(&bot)])
            .arg(format!("http://a.test:{port}/"))
            .output()
            .expect("curl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let origin = Origin::ok();
    assert_eq!(get(origin.port()), "ok");
    let record = gateway.record("by the certificate", |record| record["agent_id"] == "bot");
    assert_eq!(record["action_allowed"], true);

    let loads = || gateway.lines("certificates are in force").len();
    let before = loads();
    ca(&folder, &["revoke", &bot]);
    wait_for("the list to be in force", || {
        (loads() > before).then_some(())
    });
    let untouched = Untouched::listen();
    assert_ne!(get(untouched.port()), "ok");
    gateway.record("refused", |record| {
        record["reason"] == "certificate_revoked"
    });
}

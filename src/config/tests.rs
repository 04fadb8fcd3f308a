//! What configurations mean, and what is said of those that mean nothing.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::limit::{Amount, Quota};
use crate::policy::Mode;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn load(
    file: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &str, &str)],
    purpose: Purpose,
) -> Result<Config, Vec<ConfigError>> {
    let sources = Sources {
        file: Some(("config.yaml", file)),
        environment: environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
        flags: flags
            .iter()
            .map(|(flag, key, value)| Override {
                flag: (*flag).to_owned(),
                key: (*key).to_owned(),
                value: (*value).to_owned(),
            })
            .collect(),
    };
    Config::load(&sources, purpose)
}

fn from_file(file: &str) -> Config {
    load(file, &[], &[], Purpose::Command).expect("the file is right")
}

fn from_environment(environment: &[(&str, &str)]) -> Config {
    load("", environment, &[], Purpose::Command).expect("the environment is right")
}

fn messages(result: Result<Config, Vec<ConfigError>>) -> Vec<String> {
    let errors = result.expect_err("the configuration is wrong");
    errors.iter().map(ToString::to_string).collect()
}

/// The settings, without where they were written.
fn settings_of(mut config: Config) -> Config {
    config.shown.clear();
    config
}

#[test]
fn the_shipped_example_is_the_reference_and_changes_nothing() {
    let example = include_str!("../../policies/agentport.yaml");
    assert_eq!(example, Config::reference());
    let nothing = from_file("");
    assert_eq!(
        settings_of(from_file(example)),
        settings_of(nothing.clone())
    );
    assert_eq!(nothing.warnings, Vec::<String>::new());
}

#[test]
fn defaults_are_what_the_manual_says() {
    let config = from_file("");
    let listener: Listener = Listener::Tcp(([127, 0, 0, 1], 8080).into());
    assert_eq!(config.listen.egress, [listener]);
    let admin = Listener::Tcp(([127, 0, 0, 1], 9090).into());
    assert_eq!(config.listen.admin, Some(admin));
    assert_eq!(config.listen.unix_mode.bits(), 0o660);
    let policy = Some(PathBuf::from("/etc/agentport/policy.json"));
    assert_eq!(config.policy, policy);
    assert_eq!(config.mode, Mode::Enforce);
    assert_eq!(config.tunnel.no_sni, Verdict::Refuse);
    assert_eq!(config.tunnel.other_sni, Verdict::Refuse);
    assert_eq!(config.tunnel.ech, Verdict::Refuse);
    assert_eq!(config.tunnel.opaque, Verdict::Refuse);
    assert_eq!(config.tunnel.plain, Plain::Judge);
    assert_eq!(config.identity.leeway, Duration::from_secs(30));
    assert_eq!(config.identity.max_token.bytes(), 8192);
    assert_eq!(config.limits.header_bytes.bytes(), 32768);
    assert_eq!(config.limits.body_bytes, None);
    assert_eq!(config.timeouts.drain, Duration::from_secs(60));
    assert_eq!(config.timeouts.response, Duration::from_secs(120));
    assert_eq!(config.audit.path, AuditPath::Stdout);
    assert_eq!(config.audit.overflow, Overflow::Block);
    assert_eq!(config.auth_failure_status.code(), 403);
    assert_eq!(config.threads, Threads::Auto);
    assert_eq!(config.agent.upstream, None);
    assert_eq!(config.agent.name.as_str(), "openclaw.agent");
}

#[test]
fn the_environment_outweighs_the_file_and_a_flag_both() {
    let file = "timeouts: {connect: 1s, header: 1s, body: 1s}";
    let environment = [
        ("AGENTPORT_TIMEOUTS_HEADER", "2s"),
        ("AGENTPORT_TIMEOUTS_BODY", "2s"),
    ];
    let flags = [("--body", "timeouts.body", "3s")];
    let config = load(file, &environment, &flags, Purpose::Command).expect("right");
    let seconds = |duration: Duration| duration.as_secs();
    assert_eq!(seconds(config.timeouts.connect), 1);
    assert_eq!(seconds(config.timeouts.header), 2);
    assert_eq!(seconds(config.timeouts.body), 3);
    assert_eq!(seconds(config.timeouts.response), 120);
}

#[test]
fn every_key_can_be_written_in_the_environment_as_in_the_file() {
    // What `show` prints is every key with its value: each is put into its
    // variable, and the same settings must come out.
    let defaults = from_file("");
    let mut section: Vec<&str> = Vec::new();
    let mut seen = 0;
    for line in defaults.show().lines() {
        let line = line.split("  # ").next().unwrap_or(line);
        let depth = (line.len() - line.trim_start().len()) / 2;
        section.truncate(depth);
        let (word, value) = line.trim().split_once(':').expect("a key");
        if value.is_empty() {
            section.push(word);
            continue;
        }
        let key = [section.as_slice(), &[word]].concat().join(".");
        let name = Config::variable(&key);
        let value = value.trim();
        let value = match value.starts_with('"') {
            true => serde_json::from_str(value).expect("a string"),
            false => value.to_owned(),
        };
        let config = from_environment(&[(&name, &value)]);
        let place = format!("# environment {name}");
        assert!(config.show().contains(&place), "{name}");
        assert_eq!(settings_of(config), settings_of(defaults.clone()), "{name}");
        seen += 1;
    }
    assert!(seen > 60, "only {seen} keys");
}

#[test]
fn lists_may_have_commas_in_the_environment_or_be_written_as_yaml() {
    for value in [
        "10.0.0.1:1,unix:/run/a.sock",
        "10.0.0.1:1, unix:/run/a.sock",
        r#"["10.0.0.1:1", "unix:/run/a.sock"]"#,
    ] {
        let config = from_environment(&[("AGENTPORT_LISTEN_EGRESS", value)]);
        let tcp = Listener::Tcp(([10, 0, 0, 1], 1).into());
        let unix = Listener::Unix("/run/a.sock".into());
        assert_eq!(config.listen.egress, [tcp, unix], "{value}");
    }
    let keys = "[{file: /a.pem, issuer: https://i.example}, /b.pem]";
    let config = from_environment(&[("AGENTPORT_IDENTITY_KEYS", keys)]);
    let key = |file: &str, issuer: Option<&str>| TrustedKey {
        file: file.into(),
        issuer: issuer.map(str::to_owned),
        audience: None,
    };
    let expected = [
        key("/a.pem", Some("https://i.example")),
        key("/b.pem", None),
    ];
    assert_eq!(config.identity.keys, expected);
}

#[test]
fn other_names_of_settings() {
    let threads = |environment: &[(&str, &str)]| from_environment(environment).threads;
    assert_eq!(threads(&[("GOMAXPROCS", "2")]), Threads::Count(2));
    let both = [("AGENTPORT_THREADS", "3"), ("GOMAXPROCS", "2")];
    assert_eq!(threads(&both), Threads::Count(3), "its own name outweighs");
    let nginx = |config: Config| config.limits.body_bytes.map(ByteSize::bytes);
    let size = Some(10 << 20);
    assert_eq!(nginx(from_file("client_max_body_size: 10m")), size);
    assert_eq!(
        nginx(from_file("limits: {client_max_body_size: 10MiB}")),
        size
    );
    let name = "AGENTPORT_CLIENT_MAX_BODY_SIZE";
    assert_eq!(nginx(from_environment(&[(name, "10485760")])), size);
}

#[test]
fn the_one_line_policy_replaces_the_default_path_and_no_other() {
    let line = ("ALLOWED_DESTINATIONS", "api.openai.com,api.github.com");
    let config = from_environment(&[line]);
    assert_eq!(config.policy, None);
    assert_eq!(config.allowed_destinations.len(), 2);
    assert_eq!(config.warnings, Vec::<String>::new());

    let config = from_environment(&[line, ("AGENTPORT_POLICY", "/p.yaml")]);
    assert_eq!(config.policy, Some("/p.yaml".into()));
    assert_eq!(config.allowed_destinations.len(), 2);
    assert_eq!(
        config.warnings,
        ["allowed_destinations adds to /p.yaml: every agent of every tenant may reach them"]
    );

    let config = from_file("allowed_destinations: []");
    assert!(config.policy.is_some(), "an empty list replaces nothing");
}

#[test]
fn json_is_read_too() {
    let config = from_file(
        "{\n\t\"mode\": \"audit\",\n\t\"threads\": 4,\n\t\"listen\": {\"admin\": null}\n}\n",
    );
    assert_eq!(config.mode, Mode::Audit);
    assert_eq!(config.threads, Threads::Count(4));
    assert_eq!(config.listen.admin, None);
}

#[test]
fn rates() {
    let rate = |text: &str| {
        let file = format!("limits: {{requests_per_agent: \"{text}\"}}");
        let limits = from_file(&file).limits.per_owner;
        limits.first().map(|limit| match limit.amount() {
            Amount::Over(quota) => quota,
            Amount::AtOnce(_) => panic!("a rate"),
        })
    };
    let of = |amount, seconds, burst| {
        let period = Duration::from_secs(seconds);
        Some(Quota::new(amount, period, burst).expect("a quota"))
    };
    assert_eq!(rate("100/s"), of(100, 1, 100));
    assert_eq!(rate("6000/m"), of(6000, 60, 6000));
    assert_eq!(rate("1/h burst 5"), of(1, 3600, 5));
    assert_eq!(rate("none"), None);
}

#[test]
fn a_section_in_which_all_is_commented_out_is_none() {
    let config = from_file("timeouts:\n  # connect: 1s\nmode: audit\n");
    assert_eq!(config.mode, Mode::Audit);
}

/// Files, and what is said of each.
#[test]
fn mistakes_in_the_file() {
    for (case, file, expected) in [
        (
            "a key that is spelled wrong",
            "timeouts:\n  conect: 5s\n",
            "config.yaml:2:3: timeouts.conect: unknown key: did you mean timeouts.connect?",
        ),
        (
            "a key in the wrong section",
            "connect: 5s",
            "config.yaml:1:1: connect: unknown key: did you mean timeouts.connect?",
        ),
        (
            "a key that is like no other",
            "frobnicate_everything: 1",
            "config.yaml:1:1: frobnicate_everything: unknown key: remove it; \
             policies/agentport.yaml lists those there are",
        ),
        (
            "a secret in the file",
            "identity:\n  secret: hunter2hunter2\n",
            "config.yaml:2:3: identity.secret: secrets do not stand in this file: write \
             identity.secret_file, or set AGENTPORT_JWKS_SECRET",
        ),
        (
            "a worker count",
            "workers: 4",
            "config.yaml:1:1: workers: unknown key: write threads",
        ),
        (
            "a duration without a unit",
            "timeouts: {connect: 5}",
            "config.yaml:1:21: timeouts.connect: \"5\": the unit is missing: write 5s for seconds",
        ),
        (
            "a duration with a fraction",
            "timeouts: {connect: 1.5s}",
            "config.yaml:1:21: timeouts.connect: \"1.5s\": write a whole number and a unit: \
             250ms, 10s, 2m, 1h or 1d",
        ),
        (
            "a duration below zero",
            "timeouts: {connect: -5s}",
            "config.yaml:1:21: timeouts.connect: \"-5s\": write a whole number and a unit: \
             250ms, 10s, 2m, 1h or 1d",
        ),
        (
            "a duration of nothing",
            "timeouts: {connect: 0s}",
            "config.yaml:1:21: timeouts.connect: \"0s\": write more than zero",
        ),
        (
            "a duration without end",
            "timeouts: {connect: 99999999999999d}",
            "config.yaml:1:21: timeouts.connect: \"99999999999999d\": too long: write at most 365d",
        ),
        (
            "a duration out of its bounds",
            "identity: {leeway: 1h}",
            "config.yaml:1:20: identity.leeway: \"1h\": write 0s to 5m",
        ),
        (
            "a duration that is too small",
            "identity: {token_ttl: 1ms}",
            "config.yaml:1:23: identity.token_ttl: \"1ms\": write 1s or more",
        ),
        (
            "a size in thousands",
            "limits: {body_bytes: 10MB}",
            "config.yaml:1:22: limits.body_bytes: \"10MB\": write 10MiB",
        ),
        (
            "a size of nothing",
            "limits: {body_bytes: 0}",
            "config.yaml:1:22: limits.body_bytes: \"0\": write more than zero",
        ),
        (
            "a size that is too large for a head",
            "limits: {header_bytes: 1GiB}",
            "config.yaml:1:24: limits.header_bytes: \"1GiB\": write 8KiB to 1MiB",
        ),
        (
            "a rate without a time",
            "limits: {requests_per_agent: 100}",
            "config.yaml:1:30: limits.requests_per_agent: \"100\": write 100/s, 6000/m or 10/s \
             burst 20",
        ),
        (
            "a rate of nothing",
            "limits: {requests_per_agent: 0/s}",
            "config.yaml:1:30: limits.requests_per_agent: \"0/s\": nothing would pass: write more than \
             zero, or none",
        ),
        (
            "a word that is none of the words",
            "mode: enforced",
            "config.yaml:1:7: mode: \"enforced\": write enforce or audit",
        ),
        (
            "YAML's other booleans",
            "resolver: {search: yes}",
            "config.yaml:1:20: resolver.search: \"yes\": write true or false",
        ),
        (
            "a port alone",
            "listen: {egress: [8080]}",
            "config.yaml:1:19: listen.egress[0]: \"8080\": write 127.0.0.1:8080, or 0.0.0.0:8080 \
             for every interface",
        ),
        (
            "a name to listen on",
            "listen: {admin: \"localhost:9090\"}",
            "config.yaml:1:17: listen.admin: \"localhost:9090\": write the address: \
             127.0.0.1:9090",
        ),
        (
            "nothing to listen on",
            "listen: {egress: []}",
            "config.yaml:1:18: listen.egress: the list is empty: write at least one, such as \
             [\"127.0.0.1:8080\"]",
        ),
        (
            "one listener twice",
            "listen: {egress: [\"127.0.0.1:1\", \"0.0.0.0:1\"]}",
            "config.yaml:1:18: listen.egress[1]: 0.0.0.0:1 is taken by an earlier entry: remove \
             one",
        ),
        (
            "the admin listener on the egress port",
            "listen:\n  admin: 127.0.0.1:8080\n",
            "config.yaml:2:10: listen.admin: 127.0.0.1:8080 is taken by listen.egress or \
             listen.egress_tls: write another port, or off",
        ),
        (
            "TLS without a certificate",
            "listen: {egress_tls: [\"127.0.0.1:8443\"]}",
            "default: tls.certificates: listen.egress_tls needs a certificate: write {certificate: PATH, \
             key: PATH}, or tls.acme",
        ),
        (
            "ACME without a directory",
            "tls: {acme: {domains: [a.example]}}",
            "config.yaml:1:23: tls.acme.domains: has no effect without tls.acme.directory: write that \
             too",
        ),
        (
            "ACME in clear",
            "listen: {egress_tls: [\"127.0.0.1:8443\"]}\n\
             tls: {acme: {directory: \"http://a.example/dir\", domains: [a.example]}}",
            "config.yaml:2:25: tls.acme.directory: \"http://a.example/dir\": write a URL that begins \
             with https://",
        ),
        (
            "ACME without a name",
            "listen: {egress_tls: [\"127.0.0.1:8443\"]}\ntls: {acme: {directory: \"https://a.example/\"}}",
            "default: tls.acme.domains: the list is empty: write the names that clients use for this \
             gateway",
        ),
        (
            "half an external account",
            "listen: {egress_tls: [\"127.0.0.1:8443\"]}\n\
             tls: {acme: {directory: \"https://a.example/\", domains: [a.example], eab: {kid: x}}}",
            "default: tls.acme.eab.key_file: eab.kid is written: write its key's file too",
        ),
        (
            "ACME without TLS",
            "tls: {acme: {directory: \"https://a.example/\", domains: [a.example]}}",
            "config.yaml:1:25: tls.acme.directory: no listener speaks TLS: write listen.egress_tls",
        ),
        (
            "ACME on the port of agents",
            "listen: {egress_tls: [\"127.0.0.1:8443\"]}\n\
             tls: {acme: {directory: \"https://a.example/\", domains: [a.example], \
             http_listen: \"0.0.0.0:8080\"}}",
            "config.yaml:2:82: tls.acme.http_listen: 0.0.0.0:8080 is taken by another listener: \
             write another port",
        ),
        (
            "TLS where there is clear text",
            "listen: {egress_tls: [\"127.0.0.1:8080\"]}\ntls: {certificates: [{certificate: a, key: b}]}",
            "config.yaml:1:22: listen.egress_tls[0]: 127.0.0.1:8080 is taken by another listener: \
             remove one",
        ),
        (
            "TLS on a Unix socket",
            "listen: {egress_tls: [\"unix:/a\"]}\ntls: {certificates: [{certificate: a, key: b}]}",
            "config.yaml:1:22: listen.egress_tls[0]: write address:port: a Unix socket goes into \
             listen.egress",
        ),
        (
            "a certificate without its key",
            "tls: {certificates: [{certificate: a}]}",
            "config.yaml:1:22: tls.certificates[0]: key is missing: write {certificate: PATH, key: \
             PATH}",
        ),
        (
            "an old version of TLS",
            "tls: {min_version: 1.1}",
            "config.yaml:1:20: tls.min_version: \"1.1\": write 1.2 or 1.3",
        ),
        (
            "client certificates of nobody",
            "tls: {clients: {certificates: required}}",
            "default: tls.clients.ca: client certificates are asked for: write the PEM bundle of their \
             issuers",
        ),
        (
            "issuers of certificates that nobody is asked for",
            "tls: {clients: {ca: /ca.pem}}",
            "config.yaml:1:21: tls.clients.ca: has no effect: write tls.clients.certificates: \
             optional, or required",
        ),
        (
            "a CA for refusals that nobody is told",
            "refusals: {certificate: /ca.pem}",
            "config.yaml:1:25: refusals.certificate: has no effect: write refusals.inside: rules",
        ),
        (
            "refusals inside without a key",
            "refusals: {inside: all, certificate: /ca.pem}",
            "default: refusals.key: refusals.inside needs a CA: write its PEM file, such as one of \
             `agentport ca init`",
        ),
        (
            "agents that nobody can call",
            "peers: {ca: /ca.pem}",
            "config.yaml:1:13: peers.ca: has no effect: write listen.peers: 0.0.0.0:8443",
        ),
        (
            "a port for agents without a certificate",
            "listen: {peers: \"127.0.0.1:8443\"}\npeers: {ca: /ca.pem, names: [\"spiffe://a/{agent}\"], agents: /a.yaml}\n",
            "default: peers.certificates: listen.peers needs a certificate: write {certificate: \
             PATH, key: PATH}",
        ),
        (
            "a port for agents that is taken",
            "listen: {peers: \"127.0.0.1:9090\"}\npeers: {certificates: [{certificate: /c, key: /k}], ca: /ca.pem, names: [\"spiffe://a/{agent}\"], agents: /a.yaml}\n",
            "config.yaml:1:17: listen.peers: 127.0.0.1:9090 is taken by another listener: write \
             another port",
        ),
        (
            "a Unix socket for agents",
            "listen: {peers: \"unix:/x\"}\npeers: {certificates: [{certificate: /c, key: /k}], ca: /ca.pem, names: [\"spiffe://a/{agent}\"], agents: /a.yaml}\n",
            "config.yaml:1:17: listen.peers: write address:port, or off: no certificate comes by a \
             Unix socket",
        ),
        (
            "a pattern that lets anybody choose the domain",
            "tls: {clients: {names: [\"spiffe://{agent}/x\"]}}",
            "config.yaml:1:25: tls.clients.names[0]: \"spiffe://{agent}/x\": write the domain out: \
             spiffe://example.org/… or {agent}.example.org",
        ),
        (
            "a certificate as proof where none can be shown",
            "identity: {require: certificate}",
            "config.yaml:1:21: identity.require: nobody can show a certificate: write \
             listen.egress_tls and tls.clients.certificates, or token here",
        ),
        (
            "the same for one listener",
            "tls: {clients: {require: both}}",
            "config.yaml:1:26: tls.clients.require: has no effect: write tls.clients.certificates: \
             optional, or required",
        ),
        (
            "a token alone between agents",
            "peers: {require: token}",
            "config.yaml:1:18: peers.require: no agent is called without a certificate: write \
             certificate or both",
        ),
        (
            "a balancer that is no range of addresses",
            "listen: {proxy_protocol: [10.0.0.1/8]}",
            "config.yaml:1:27: listen.proxy_protocol[0]: \"10.0.0.1/8\": write 10.0.0.0/8",
        ),
        (
            "permissions that are not octal",
            "listen: {unix_mode: 432x}",
            "config.yaml:1:21: listen.unix_mode: \"432x\": write permissions in octal, such as \
             0660",
        ),
        (
            "a URL where a host and port belong",
            "agent: {upstream: \"http://agent:7070/v1\"}",
            "config.yaml:1:19: agent.upstream: \"http://agent:7070/v1\": write the host and port \
             only, here \"agent:7070\"",
        ),
        (
            "a host with a star in the wrong place",
            "allowed_destinations: [\"*api.com\"]",
            "config.yaml:1:24: allowed_destinations[0]: \"*api.com\": a star may only be the \
             whole first label: write \"*.api.com\"",
        ),
        (
            "a value where a section belongs",
            "timeouts: 5s",
            "config.yaml:1:11: timeouts: write keys and values here, each on its line: `key: \
             value`",
        ),
        (
            "a list where a value belongs",
            "mode: [audit]",
            "config.yaml:1:7: mode: a list is written: write one value",
        ),
        (
            "no value",
            "mode:\npolicy: /p",
            "config.yaml:1:5: mode: no value is written: write one, or remove the key",
        ),
        (
            "no list",
            "listen: {egress: ~}",
            "config.yaml:1:18: listen.egress: write a list: [one, two]",
        ),
        (
            "a key written twice",
            "mode: audit\nmode: enforce\n",
            "config.yaml:2:1: \"mode\" is written twice, first at config.yaml:1:1: remove one",
        ),
        (
            "a key and its other name",
            "limits: {body_bytes: 1MiB}\nclient_max_body_size: 2MiB\n",
            "config.yaml:2:23: client_max_body_size: the same as limits.body_bytes, which \
             config.yaml:1:22 sets too: remove one",
        ),
        (
            "a trusted key without a file",
            "identity:\n  keys:\n    - issuer: x\n",
            "config.yaml:3:7: identity.keys[0]: file is missing: write file: PATH",
        ),
        (
            "a trusted key with a word spelled wrong",
            "identity:\n  keys:\n    - file: /a\n      isuer: x\n",
            "config.yaml:4:7: identity.keys[0].isuer: unknown key: did you mean issuer?",
        ),
        (
            "an issuer whose keys are nowhere",
            "identity:\n  issuers:\n    - issuer: https://i.example\n",
            "config.yaml:3:7: identity.issuers[0]: write exactly one of jwks_file, jwks_url and \
             discovery: true",
        ),
        (
            "an issuer whose keys are in two places",
            "identity:\n  issuers:\n    - issuer: https://i.example\n      discovery: true\n      \
             jwks_file: /a\n",
            "config.yaml:3:7: identity.issuers[0]: write exactly one of jwks_file, jwks_url and \
             discovery: true",
        ),
        (
            "an issuer's keys in clear",
            "identity:\n  issuers:\n    - issuer: i\n      jwks_url: http://i.example/keys\n",
            "config.yaml:4:17: identity.issuers[0].jwks_url: \"http://i.example/keys\": write a URL \
             that begins with https://",
        ),
        (
            "discovery by a name that is no URL",
            "identity:\n  issuers:\n    - {issuer: i, discovery: true}\n",
            "config.yaml:3:7: identity.issuers[0]: discovery by \"i\": write a URL that begins with \
             https://",
        ),
        (
            "an issuer with a word spelled wrong",
            "identity:\n  issuers:\n    - {issuer: i, jwks_file: /a, agent_clam: sub}\n",
            "config.yaml:3:34: identity.issuers[0].agent_clam: unknown key: did you mean \
             agent_claim?",
        ),
        (
            "a template of what is not there",
            "identity:\n  issuers:\n    - {issuer: i, jwks_file: /a, tenant: \"{team}\"}\n",
            "config.yaml:3:7: identity.issuers[0]: \"{team}\": there is no {team} in \"{agent}\"",
        ),
        (
            "issuers here and in a file",
            "identity:\n  issuers_file: /b\n  issuers:\n    - {issuer: i, jwks_file: /a}\n",
            "config.yaml:2:17: identity.issuers_file: identity.issuers is written too: keep one of \
             them",
        ),
        (
            "an issuer of the gateway's own name",
            "identity:\n  issuers:\n    - {issuer: agentport, jwks_file: /a}\n",
            "config.yaml:3:5: identity.issuers[0]: \"agentport\" is the name of another issuer, or \
             identity.issuer: give each its own",
        ),
        (
            "an anchor",
            "mode: &m audit",
            "config.yaml:1:10: anchors, aliases and tags are refused: write the value itself",
        ),
        (
            "a tag",
            "mode: !!str audit",
            "config.yaml:1:13: anchors, aliases and tags are refused: write the value itself",
        ),
        (
            "two documents",
            "mode: audit\n---\nmode: enforce\n",
            "config.yaml:2:1: a second document begins: write one document",
        ),
        (
            "what is deep",
            "[[[[[[[[[[1]]]]]]]]]]",
            "config.yaml:1:10: nested too deeply",
        ),
        (
            "a token longer than a head",
            "identity: {max_token: 16KiB}\nlimits: {header_bytes: 8KiB}\n",
            "config.yaml:1:23: identity.max_token: more than limits.header_bytes: write at most \
             8KiB",
        ),
        (
            "a token that lives longer than any may",
            "identity:\n  token_ttl: 48h\n",
            "config.yaml:2:14: identity.token_ttl: more than identity.max_token_ttl: write at \
             most that",
        ),
        (
            "an answer that is kept longer than any may",
            "resolver: {cache: {min_ttl: 10m}}",
            "config.yaml:1:29: resolver.cache.min_ttl: more than resolver.cache.max_ttl: write \
             at most that",
        ),
        (
            "rotating standard output",
            "audit: {max_bytes: 1MiB}",
            "config.yaml:1:20: audit.max_bytes: standard output cannot be rotated: write \
             audit.path, or none here",
        ),
    ] {
        let found = messages(load(file, &[], &[], Purpose::Command));
        assert_eq!(found, [expected], "{case}");
    }
}

#[test]
fn yaml_that_is_none_says_where() {
    let found = messages(load("mode: [audit\n", &[], &[], Purpose::Command));
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("config.yaml:"), "{found:?}");
    assert!(found[0].contains("not valid YAML"), "{found:?}");
    let large = format!("# {}", "a".repeat(1024 * 1024));
    let found = messages(load(&large, &[], &[], Purpose::Command));
    let expected = "config.yaml:1:1: the file is larger than 1MiB: give the configuration, not \
                    the policy";
    assert_eq!(found, [expected]);
}

/// Environments, and what is said of each.
#[test]
fn mistakes_in_the_environment() {
    for (case, name, value, expected) in [
        (
            "a variable that is spelled wrong",
            "AGENTPORT_TIMEOUT_CONNECT",
            "5s",
            "environment AGENTPORT_TIMEOUT_CONNECT: unknown variable: did you mean \
             AGENTPORT_TIMEOUTS_CONNECT?",
        ),
        (
            "the secret's name spelled wrong",
            "AGENTPORT_JWK_SECRET",
            SECRET,
            "environment AGENTPORT_JWK_SECRET: unknown variable: did you mean \
             AGENTPORT_JWKS_SECRET?",
        ),
        (
            "a variable like no other",
            "AGENTPORT_FROBNICATE_EVERYTHING",
            "1",
            "environment AGENTPORT_FROBNICATE_EVERYTHING: unknown variable: unset it; \
             policies/agentport.yaml lists the keys",
        ),
        (
            "a variable of a section",
            "AGENTPORT_TIMEOUTS",
            "5s",
            "environment AGENTPORT_TIMEOUTS: unknown variable: unset it; \
             policies/agentport.yaml lists the keys",
        ),
        (
            "a wrong value",
            "AGENTPORT_TIMEOUTS_CONNECT",
            "5",
            "environment AGENTPORT_TIMEOUTS_CONNECT: timeouts.connect: \"5\": the unit is \
             missing: write 5s for seconds",
        ),
        (
            "an empty variable",
            "ALLOWED_DESTINATIONS",
            "",
            "environment ALLOWED_DESTINATIONS: is empty: give it a value, or unset it",
        ),
        (
            "an empty entry",
            "ALLOWED_DESTINATIONS",
            "a.example,",
            "environment ALLOWED_DESTINATIONS: allowed_destinations[1]: \"\": write a host, \
             *.suffix, or a range of addresses",
        ),
        (
            "a URL among the destinations",
            "ALLOWED_DESTINATIONS",
            "a.example,https://b.example/x",
            "environment ALLOWED_DESTINATIONS: allowed_destinations[1]: \
             \"https://b.example/x\": write the host only, here \"b.example\"",
        ),
        (
            "threads of nothing",
            "GOMAXPROCS",
            "0",
            "environment GOMAXPROCS: threads: \"0\": write 1 to 1024",
        ),
        (
            "a list that does not end",
            "AGENTPORT_LISTEN_EGRESS",
            "[\"a",
            "environment AGENTPORT_LISTEN_EGRESS: listen.egress: not valid YAML: while scanning \
             a quoted scalar, found unexpected end of stream",
        ),
        (
            "a secret that is short",
            "AGENTPORT_JWKS_SECRET",
            "hunter2",
            "environment AGENTPORT_JWKS_SECRET: has 7 bytes and needs 32: make one with \
             `openssl rand -hex 32`",
        ),
        (
            "a secret with the line feed of its file",
            "AGENTPORT_JWKS_SECRET",
            "0123456789abcdef0123456789abcdef\n",
            "environment AGENTPORT_JWKS_SECRET: has white space at its start or end: remove it",
        ),
    ] {
        let found = messages(load("", &[(name, value)], &[], Purpose::Command));
        assert_eq!(found, [expected], "{case}");
    }
}

#[test]
fn two_names_of_one_setting_in_one_environment() {
    let environment = [
        ("ALLOWED_DESTINATIONS", "a.example"),
        ("AGENTPORT_ALLOWED_DESTINATIONS", "b.example"),
    ];
    assert_eq!(
        messages(load("", &environment, &[], Purpose::Command)),
        [
            "environment AGENTPORT_ALLOWED_DESTINATIONS: ALLOWED_DESTINATIONS is set too, and is \
          the same: unset one"
        ]
    );
    let environment = [("AGENTPORT_JWKS_SECRET", SECRET)];
    let file = "identity:\n  secret_file: /run/secrets/jwt\n";
    assert_eq!(
        messages(load(file, &environment, &[], Purpose::Command)),
        [
            "config.yaml:2:16: identity.secret_file: AGENTPORT_JWKS_SECRET is set too: keep one \
          of them"
        ]
    );
}

#[test]
fn variables_of_others_are_left_alone() {
    let environment = [
        ("PATH", "/bin"),
        ("AGENTPORTER", "1"),
        ("AGENTPORT_URL", "http://gateway:8080"),
        ("AGENTPORT_TOKEN", "a.b.c"),
        ("AGENTPORT_TOKEN_FILE", "/run/token"),
        ("AGENTPORT_CA_FILE", "/ca.pem"),
        ("AGENTPORT_CONFIG", "/c.yaml"),
        ("AGENTPORT_LICENSE", ""),
        // A Kubernetes Service named agentport, and one named agentport-peers.
        ("AGENTPORT_SERVICE_HOST", "10.0.0.1"),
        ("AGENTPORT_SERVICE_PORT", "8080"),
        ("AGENTPORT_SERVICE_PORT_HTTP", "8080"),
        ("AGENTPORT_PORT", "tcp://10.0.0.1:8080"),
        ("AGENTPORT_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("AGENTPORT_PORT_8080_TCP_PROTO", "tcp"),
        ("AGENTPORT_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("AGENTPORT_PEERS_SERVICE_HOST", "10.0.0.2"),
        ("AGENTPORT_PEERS_PORT", "tcp://10.0.0.2:8443"),
        ("AGENTPORT_PEERS_PORT_8443_TCP_PORT", "8443"),
    ];
    let config = from_environment(&environment);
    assert_eq!(settings_of(config), settings_of(from_file("")));
    // What only begins like one is a mistake.
    let found = messages(load(
        "",
        &[("AGENTPORT_PORT", "8080")],
        &[],
        Purpose::Command,
    ));
    assert_eq!(found.len(), 1);
}

#[cfg(unix)]
#[test]
fn bytes_that_are_no_text() {
    use std::os::unix::ffi::OsStringExt as _;
    let sources = Sources {
        environment: vec![
            ("AGENTPORT_MODE".into(), OsString::from_vec(vec![0xff])),
            (OsString::from_vec(vec![0xfe]), "x".into()),
        ],
        ..Sources::default()
    };
    let found = messages(Config::load(&sources, Purpose::Command));
    assert_eq!(found, ["environment AGENTPORT_MODE: is not UTF-8"]);
}

#[test]
fn mistakes_on_the_command_line() {
    let flags = [
        ("--listen", "listen.egress", "nowhere"),
        ("--set", "moed", "audit"),
    ];
    assert_eq!(
        messages(load("", &[], &flags, Purpose::Command)),
        [
            "flag --listen: listen.egress[0]: \"nowhere\": write address:port, [IPv6]:port or \
             unix:/path",
            "flag --set: moed: unknown key: did you mean mode?",
        ]
    );
}

#[test]
fn every_mistake_is_reported_at_once_and_in_order() {
    let file = "mode: x\ntimeouts:\n  connect: 5\n  heder: 1s\nlisten: {egress: [a, b]}\n";
    let environment = [("AGENTPORT_MODE", "y"), ("AGENTPORT_NOPE_NOPE", "1")];
    let flags = [("--mode", "mode", "z")];
    let found = messages(load(file, &environment, &flags, Purpose::Serve));
    let places: Vec<&str> = found
        .iter()
        .map(|message| message.split(": ").next().unwrap_or_default())
        .collect();
    assert_eq!(
        places,
        [
            "config.yaml:1:7",
            "config.yaml:3:12",
            "config.yaml:4:3",
            "config.yaml:5:19",
            "config.yaml:5:22",
            "environment AGENTPORT_MODE",
            "environment AGENTPORT_NOPE_NOPE",
            "flag --mode",
            "configuration",
        ]
    );
}

#[test]
fn a_broken_file_does_not_hide_the_environment() {
    let found = messages(load(
        "a: [",
        &[("AGENTPORT_MODE", "y")],
        &[],
        Purpose::Command,
    ));
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn a_mistake_that_a_variable_hides_is_one() {
    let environment = [("AGENTPORT_MODE", "audit")];
    let found = messages(load("mode: x", &environment, &[], Purpose::Command));
    assert_eq!(
        found,
        ["config.yaml:1:7: mode: \"x\": write enforce or audit"]
    );
}

#[test]
fn a_gateway_without_a_key_does_not_serve() {
    let expected = "configuration: no key, so nobody could pass: set AGENTPORT_JWKS_SECRET (make \
                    one with `openssl rand -hex 32`), or write identity.secret_file or \
                    identity.keys";
    assert_eq!(messages(load("", &[], &[], Purpose::Serve)), [expected]);
    for file in [
        "identity: {secret_file: /run/secrets/jwt}",
        "identity: {keys: [/etc/agentport/keys]}",
        "identity: {signing_key: /etc/agentport/key.pem}",
        "identity: {signing_keys: /etc/agentport/signing}",
        "identity: {issuers: [{issuer: i, jwks_file: /etc/agentport/i.json}]}",
    ] {
        assert!(load(file, &[], &[], Purpose::Serve).is_ok(), "{file}");
    }
    let secret = [("AGENTPORT_JWKS_SECRET", SECRET)];
    let config = load("", &secret, &[], Purpose::Serve).expect("a key");
    let read = config.identity.secret.as_ref().map(Secret::reveal);
    assert_eq!(read, Some(SECRET));
}

#[test]
fn a_secret_is_never_shown() {
    let secret = [("AGENTPORT_JWKS_SECRET", SECRET)];
    let config = load("", &secret, &[], Purpose::Serve).expect("a key");
    assert!(
        config
            .show()
            .contains("# AGENTPORT_JWKS_SECRET: [redacted]")
    );
    for text in [config.show().to_owned(), format!("{config:?}")] {
        assert!(!text.contains(SECRET), "{text}");
    }
    let json = serde_json::to_string(&config.identity.secret).expect("JSON");
    assert_eq!(json, "\"[redacted]\"");
    // Too short to use, and a secret all the same.
    let short = [("AGENTPORT_JWKS_SECRET", "hunter2")];
    let found = messages(load("", &short, &[], Purpose::Serve));
    assert!(found.iter().all(|message| !message.contains("hunter2")));
}

/// Where Redis is, and what is said of places that are none.
#[test]
fn redis_is_named_without_its_password() {
    for (url, shown) in [
        ("redis://cache.internal", "redis://cache.internal:6379/0"),
        ("redis://bot@10.0.0.7:6380/3", "redis://bot@10.0.0.7:6380/3"),
        ("rediss://[2001:db8::1]", "rediss://[2001:db8::1]:6379/0"),
        (
            "valkeys://cache.internal/",
            "rediss://cache.internal:6379/0",
        ),
        ("unix:/run/redis.sock", "unix:/run/redis.sock"),
        ("unix:///run/redis.sock", "unix:/run/redis.sock"),
    ] {
        let config = from_file(&format!("redis: {{url: \"{url}\"}}"));
        let redis = config.redis.expect("a redis");
        assert_eq!(redis.url.to_string(), shown, "{url}");
    }
    assert_eq!(from_file("").redis, None);
    for (file, expected) in [
        (
            "redis: {url: \"redis://:hunter2@host\"}",
            "passwords do not stand in this file: write redis.password_file, or set \
             AGENTPORT_REDIS_PASSWORD",
        ),
        ("redis: {url: \"http://host\"}", "write redis://host:6379"),
        ("redis: {url: host}", "write redis://host:6379"),
        (
            "redis: {url: \"redis://host:99999\"}",
            "write redis://host:6379",
        ),
        (
            "redis: {url: \"redis://host/x\"}",
            "the database behind the slash",
        ),
        ("redis: {url: \"unix:run\"}", "write redis://host:6379"),
        ("redis: {ca: /ca.pem}", "is of no use without redis.url"),
        (
            "redis: {url: \"redis://host\", ca: /ca.pem}",
            "redis.url is not TLS: write rediss://",
        ),
        (
            "redis: {url: \"redis://host\", prefix: \"a b\"}",
            "write 1 to 64 letters, digits",
        ),
        ("redis: {password: hunter2}", "write redis.password_file"),
    ] {
        let said = messages(load(file, &[], &[], Purpose::Command)).join("\n");
        assert!(said.contains(expected), "{file}: {said}");
        assert!(!said.contains("hunter2"), "{file}: {said}");
    }
}

#[test]
fn a_file_of_routes_is_one_list() {
    let good = "routes: [{name: a, to: \"https://a.test\"}]";
    let read = crate::config::parse_routes("routes.yaml", good).expect("a route");
    assert_eq!(read[0].route.prefix(), "/routes/a");
    assert_eq!(
        crate::config::parse_routes("r", "routes: []"),
        Ok(Vec::new())
    );
    for (text, expected) in [
        (
            "",
            "r:1:1: write routes: and a list as in routes; [] for none",
        ),
        ("routes:", "write routes: and a list"),
        ("route: []", "unknown key: write routes:"),
        ("routes: [{name: a}]", "routes[0]: to is missing: write it"),
        (
            "routes: [{name: a, to: \"https://a.test\"}, {name: a, to: \"https://b.test\"}]",
            "routes[1]: the name \"a\" is that of an earlier route: write another",
        ),
    ] {
        let said = messages(crate::config::parse_routes("r", text).map(|_| from_file("")));
        let said = said.join("\n");
        assert!(said.contains(expected), "{text}: {said}");
    }
    let both = "routes_file: /f\nroutes: [{name: a, to: \"https://a.test\"}]";
    let said = messages(load(both, &[], &[], Purpose::Command)).join("\n");
    assert!(
        said.contains("routes_file: routes is written too: keep one of them"),
        "{said}"
    );
}

#[test]
fn a_parent_proxy_is_named_without_its_credentials() {
    for (url, shown) in [
        ("http://proxy.internal:3128", "http://proxy.internal:3128"),
        ("http://proxy.internal/", "http://proxy.internal:80"),
        ("https://proxy.internal", "https://proxy.internal:443"),
        ("http://[2001:db8::1]:8080", "http://[2001:db8::1]:8080"),
    ] {
        let config = from_file(&format!("upstream_proxy: {{url: \"{url}\"}}"));
        let proxy = config.upstream_proxy.expect("a proxy");
        assert_eq!(proxy.url.to_string(), shown, "{url}");
        assert_eq!(proxy.address, AskFor::Resolved);
    }
    assert_eq!(from_file("").upstream_proxy, None);
    for (file, expected) in [
        (
            "upstream_proxy: {url: \"http://me:hunter2@host:3128\"}",
            "credentials do not stand in this file: write them into \
             upstream_proxy.credentials_file",
        ),
        (
            "upstream_proxy: {url: \"socks5://host:1080\"}",
            "write http://proxy.example:3128, or https:// for TLS",
        ),
        ("upstream_proxy: {url: host}", "write http://proxy.example"),
        (
            "upstream_proxy: {url: \"http://host/path\"}",
            "write http://proxy.example",
        ),
        (
            "upstream_proxy: {password: hunter2}",
            "write user:password into a file",
        ),
        (
            "upstream_proxy: {credentials_file: /f}",
            "is of no use without upstream_proxy.url",
        ),
        (
            "upstream_proxy: {no_proxy: [a.test]}",
            "is of no use without upstream_proxy.url",
        ),
        (
            "upstream_proxy: {url: \"http://host\", ca: /ca.pem}",
            "upstream_proxy.url is not TLS: write https://",
        ),
        (
            "upstream_proxy: {url: \"http://host\", address: names}",
            "write resolved, name or unchecked",
        ),
        (
            "upstream_proxy: {url: \"http://host\", no_proxy: [10.0.0.1/8]}",
            "upstream_proxy.no_proxy[0]: \"10.0.0.1/8\": bits behind the prefix are set: write \
             10.0.0.0/8",
        ),
    ] {
        let said = messages(load(file, &[], &[], Purpose::Command)).join("\n");
        assert!(said.contains(expected), "{file}: {said}");
        assert!(!said.contains("hunter2"), "{file}: {said}");
    }
}

#[test]
fn no_proxy_of_the_environment_stands_where_none_is_written() {
    let direct = |file: &str, environment: &[(&str, &str)], to: &str| {
        let config = load(file, environment, &[], Purpose::Command).expect("right");
        let proxy = config.upstream_proxy.expect("a proxy");
        let to = crate::egress::Authority::parse(to).expect("an authority");
        (proxy.no_proxy.has(&to, None), config.shown)
    };
    let file = "upstream_proxy: {url: \"http://host\"}";
    let written = "upstream_proxy: {url: \"http://host\", no_proxy: [b.test]}";
    let both = [("NO_PROXY", "c.test"), ("no_proxy", " a.test, .svc,")];
    let (found, shown) = direct(file, &both, "a.test:1");
    assert!(found);
    assert!(
        shown.contains("no_proxy: \"a.test,.svc\"  # environment no_proxy"),
        "{shown}"
    );
    assert!(
        !direct(file, &both, "c.test:1").0,
        "the lower case comes first"
    );
    assert!(direct(file, &both[..1], "c.test:1").0);
    assert!(!direct(written, &both, "a.test:1").0);
    assert!(direct(written, &both, "b.test:1").0);
    assert!(!direct(file, &[("NO_PROXY", "")], "a.test:1").0);
    // Without a proxy it is other programs' alone.
    let other = [("NO_PROXY", "http://what ever")];
    assert!(load("", &other, &[], Purpose::Command).is_ok());
    let said = messages(load(file, &other, &[], Purpose::Command)).join("\n");
    assert!(
        said.contains("NO_PROXY: upstream_proxy.no_proxy[0]"),
        "{said}"
    );
}

#[test]
fn the_password_of_redis_comes_by_file_or_environment() {
    let file = "redis: {url: \"redis://cache.internal\"}";
    let password = [("AGENTPORT_REDIS_PASSWORD", "hunter2")];
    let config = load(file, &password, &[], Purpose::Command).expect("a password");
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(!config.show().contains("hunter2"));
    assert!(
        config
            .show()
            .contains("# AGENTPORT_REDIS_PASSWORD: [redacted]")
    );
    assert!(
        config
            .warnings
            .iter()
            .any(|warning| warning.contains("in clear"))
    );
    let redis = config.redis.expect("a redis");
    assert_eq!(redis.password.expect("a password").reveal(), "hunter2");
    let both = "redis: {url: \"rediss://cache.internal\", password_file: /run/redis}";
    let said = messages(load(both, &password, &[], Purpose::Command)).join("\n");
    assert!(
        said.contains("AGENTPORT_REDIS_PASSWORD is set too: keep one of them"),
        "{said}"
    );
}

#[test]
fn warnings() {
    for (file, expected) in [
        (
            "upstream_proxy: {url: \"http://proxy.internal\", credentials_file: /f}",
            "upstream_proxy.url is http://proxy.internal:80, so its credentials travel in clear: \
             write https:// where it can",
        ),
        (
            "upstream_proxy: {url: \"http://127.0.0.1:3128\", address: unchecked}",
            "upstream_proxy.address is unchecked: the addresses of what goes through the parent \
             proxy are not checked here; it must refuse private ones itself",
        ),
        (
            "mode: audit",
            "mode is audit: what policy refuses passes, and is only recorded",
        ),
        (
            "listen: {admin: \"0.0.0.0:9090\"}",
            "listen.admin is 0.0.0.0:9090, which is not loopback: keep agents away from it",
        ),
        (
            "listen: {egress: [\"unix:/run/a.sock\"], unix_mode: 0666}",
            "listen.unix_mode lets every user of this machine connect",
        ),
        (
            "tunnel: {opaque: allow}",
            "tunnel.opaque is allow: what is neither TLS nor HTTP passes unseen, where no rule \
             says otherwise",
        ),
    ] {
        assert_eq!(from_file(file).warnings, [expected]);
    }
}

#[test]
fn what_is_shown_names_its_source_and_reads_back() {
    let file = "timeouts:\n  connect: 250ms\nidentity:\n  keys:\n    - {file: \"/a b.pem\", issuer: \"null\"}\n    - /c.pem\nlisten: {admin: ~}\n";
    let environment = [
        ("ALLOWED_DESTINATIONS", "*.example.com,10.0.0.0/8"),
        ("AGENTPORT_LIMITS_REQUESTS_PER_AGENT", "10/s burst 20"),
    ];
    let flags = [("--audit", "audit.path", "/var/log/agent \"port\".log")];
    let config = load(file, &environment, &flags, Purpose::Command).expect("right");
    for line in [
        "  connect: 250ms  # config.yaml:2:12",
        "  header: 10s  # default",
        "  admin: none  # config.yaml:7:17",
        "# policy: not used, as only allowed_destinations is set",
        "allowed_destinations: \"*.example.com,10.0.0.0/8\"  # environment ALLOWED_DESTINATIONS",
        "  requests_per_agent: \"10/s burst 20\"  # environment AGENTPORT_LIMITS_REQUESTS_PER_AGENT",
        "  path: \"/var/log/agent \\\"port\\\".log\"  # flag --audit",
    ] {
        let shown = config.show();
        assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
    }
    let again = from_file(config.show());
    assert_eq!(settings_of(again), settings_of(config));
}

#[test]
fn no_two_keys_share_a_variable() {
    let mut names: Vec<String> = Vec::new();
    for key in known_keys() {
        let name = Config::variable(&key);
        assert!(!names.contains(&name), "{name}");
        names.push(name);
    }
    assert!(names.len() > 60);
}

/// Every key of the reference, read without the loader.
fn known_keys() -> Vec<String> {
    fn gather(path: &str, value: &yaml_serde::Value, keys: &mut Vec<String>) {
        let Some(map) = value.as_mapping() else {
            return keys.push(path.to_owned());
        };
        for (key, value) in map {
            let key = key.as_str().expect("a word");
            let path = match path {
                "" => key.to_owned(),
                _ => format!("{path}.{key}"),
            };
            gather(&path, value, keys);
        }
    }
    let root = yaml_serde::from_str(Config::reference()).expect("YAML");
    let mut keys = Vec::new();
    gather("", &root, &mut keys);
    keys
}

#[test]
fn every_key_of_the_reference_is_read() {
    // A mapping is no value of any key, so every key that is read complains.
    for key in known_keys() {
        let nested = key
            .split('.')
            .rev()
            .fold("{x: 1}".to_owned(), |inner, word| {
                format!("{{{word}: {inner}}}")
            });
        let found = load(&nested, &[], &[], Purpose::Command);
        let errors = found.expect_err(&key);
        assert!(
            errors[0]
                .key
                .as_deref()
                .is_some_and(|k| k.starts_with(&key))
        );
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(file in "\\PC*|[a-z:{}\\[\\],\\-&*!|>'\"#%@ \n\t]{0,64}", value in ".*") {
        let environment = [
            ("AGENTPORT_TIMEOUTS_CONNECT", value.as_str()),
            ("AGENTPORT_LISTEN_EGRESS", value.as_str()),
            ("AGENTPORT_IDENTITY_KEYS", value.as_str()),
            ("ALLOWED_DESTINATIONS", value.as_str()),
        ];
        let flags = [("--x", value.as_str(), value.as_str())];
        let _ = load(&file, &environment, &flags, Purpose::Serve);
    }

    #[test]
    fn no_value_makes_it_panic(value in "\\PC{0,24}|[0-9]{1,25}(ms|s|m|h|d|KiB|GiB|/s)?( burst [0-9]*)?", at in 0_usize..64) {
        let keys = known_keys();
        let key = &keys[at % keys.len()];
        if let Ok(config) = load("", &[(&Config::variable(key), &value)], &[], Purpose::Command) {
            let again = from_file(config.show());
            prop_assert_eq!(settings_of(again), settings_of(config));
        }
    }
}

#[test]
fn peers_of_unix_sockets_are_named_once_and_whole() {
    let with = |peers: &str| {
        format!("listen:\n  egress: [\"unix:/run/a.sock\"]\n  peer_credentials: {peers}\n")
    };
    let config = from_file(&with(
        "[{uid: 1001, agent: bot-01, tenant: acme}, {uid: 0, agent: root-bot}]",
    ));
    let peers = &config.listen.peer_credentials;
    assert_eq!((peers[0].uid, peers[0].agent.as_str()), (1001, "bot-01"));
    assert_eq!(peers[0].tenant.as_ref().map(|t| t.as_str()), Some("acme"));
    assert_eq!((peers[1].uid, peers[1].tenant.is_some()), (0, false));
    for (case, peers, said) in [
        (
            "twice",
            "[{uid: 1, agent: a}, {uid: 1, agent: b}]",
            "is named by an earlier entry",
        ),
        ("no agent", "[{uid: 1}]", "agent is missing"),
        ("no uid", "[{agent: a}]", "uid is missing"),
        (
            "a name for a uid",
            "[{uid: root, agent: a}]",
            "write a whole number",
        ),
        ("a bad agent", "[{uid: 1, agent: a b}]", "letters, digits"),
        ("a slip", "[{uid: 1, agnet: a}]", "did you mean agent?"),
        ("no mapping", "[1001]", "write {uid: 1001, agent: bot-01}"),
    ] {
        let errors = messages(load(&with(peers), &[], &[], Purpose::Command)).join("\n");
        assert!(errors.contains(said), "{case}: {errors}");
    }
    let tcp = "listen: {peer_credentials: [{uid: 1, agent: a}]}\n";
    let errors = messages(load(tcp, &[], &[], Purpose::Command)).join("\n");
    assert!(errors.contains("no listener is a Unix socket"), "{errors}");
}

#[test]
fn routes_are_named_once_and_lead_somewhere() {
    let with = |routes: &str| format!("routes: {routes}\n");
    let config = from_file(&with(
        "[{name: openai, to: \"https://api.openai.com/v1\", hosts: [openai.internal]}, \
         {name: local, to: \"http://ollama:11434\", prefix: /ollama, http2: off}]",
    ));
    let prefixes: Vec<_> = config
        .routes
        .iter()
        .map(|named| named.route.prefix())
        .collect();
    assert_eq!(prefixes, ["/routes/openai", "/ollama"]);
    assert_eq!(config.routes[0].http2, UpstreamHttp2::Auto);
    assert_eq!(config.routes[1].http2, UpstreamHttp2::Off);
    for (case, routes, said) in [
        ("no mapping", "[openai]", "write a mapping: {name: openai"),
        (
            "no name",
            "[{to: \"https://a.example\"}]",
            "name is missing",
        ),
        ("no target", "[{name: a}]", "to is missing"),
        (
            "a target without scheme",
            "[{name: a, to: a.example}]",
            "begins with https://",
        ),
        (
            "a slip",
            "[{name: a, to: \"https://a.example\", host: [b]}]",
            "did you mean hosts?",
        ),
        (
            "a bad name",
            "[{name: A/b, to: \"https://a.example\"}]",
            "write 1 to 63 of a-z",
        ),
        (
            "a prefix with dots",
            "[{name: a, to: \"https://a.example\", prefix: /a/../b}]",
            "write plain segments",
        ),
        (
            "everything",
            "[{name: a, to: \"https://a.example\", prefix: /}]",
            "write plain segments",
        ),
        (
            "the gateway's own",
            "[{name: a, to: \"https://a.example\", prefix: /.well-known/a}]",
            "is the gateway's own",
        ),
        (
            "a CA in clear",
            "[{name: a, to: \"http://a.example\", ca: /ca.pem}]",
            "ca has no effect",
        ),
        (
            "a name twice",
            "[{name: a, to: \"https://a.example\"}, {name: a, to: \"https://b.example\"}]",
            "the name \"a\" is that of an earlier route",
        ),
        (
            "a host twice",
            "[{name: a, to: \"https://a.example\", hosts: [x.y]}, \
              {name: b, to: \"https://b.example\", hosts: [x.y]}]",
            "the host x.y is that of an earlier route",
        ),
        (
            "an owner that is none",
            "[{name: a, to: \"https://a.example\", authorization: us}]",
            "write gateway or origin",
        ),
    ] {
        let errors = messages(load(&with(routes), &[], &[], Purpose::Command)).join("\n");
        assert!(errors.contains(said), "{case}: {errors}");
    }
}

#[test]
fn a_file_of_issuers_is_read_whole_or_not_at_all() {
    let read = |text: &str| parse_issuers("issuers.yaml", text, "agentport");
    let two = "# whom we trust\nissuers:\n  - {issuer: a, jwks_file: /a}\n  - issuer: b\n    jwks_url: https://b.example/keys\n";
    let names: Vec<_> = read(two)
        .expect("two")
        .into_iter()
        .map(|issuer| issuer.issuer)
        .collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(read("issuers: []"), Ok(Vec::new()));
    assert_eq!(read(r#"{"issuers": []}"#), Ok(Vec::new()));
    for (case, text, said) in [
        ("nothing", "", "issuers.yaml:1:1: write issuers: and a list"),
        ("comments alone", "# later\n", "write issuers: and a list"),
        ("no list", "issuers:\n", "write issuers: and a list"),
        ("a word", "issuers: none\n", "write issuers: and a list"),
        (
            "the list alone",
            "- {issuer: a, jwks_file: /a}\n",
            "write issuers: and a list",
        ),
        (
            "another key",
            "issuers: []\nissuer: a\n",
            "issuers.yaml:2:1: issuer: unknown key",
        ),
        ("twice", "issuers: []\nissuers: []\n", "issuers.yaml:2:1"),
        (
            "a mistake in one",
            "issuers:\n  - {issuer: a, jwks_file: /a}\n  - {issuer: b}\n",
            "issuers.yaml:3:5: issuers[1]: write exactly one of",
        ),
        (
            "two of one name",
            "issuers:\n  - {issuer: a, jwks_file: /a}\n  - {issuer: a, jwks_file: /b}\n",
            "issuers[1]: \"a\" is the name of another issuer",
        ),
        (
            "our own",
            "issuers:\n  - {issuer: agentport, jwks_file: /a}\n",
            "issuers[0]: \"agentport\" is the name of another issuer",
        ),
        ("no YAML", "issuers: [", "issuers.yaml:"),
    ] {
        let errors = read(text).expect_err(case);
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert!(
            errors.iter().any(|error| error.contains(said)),
            "{case}: {errors:?}"
        );
    }
}

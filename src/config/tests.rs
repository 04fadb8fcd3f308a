//! What configurations mean. What is said of those that mean nothing, and what
//! entries of lists mean, stands below.

mod entries;
mod mistakes;

use super::*;
use crate::limit::{Amount, Quota};
use crate::policy::Mode;
use proptest::prelude::*;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

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

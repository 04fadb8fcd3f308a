//! The commands, as somebody at a shell meets them: what they print and where,
//! with which exit code, and what they leave on the disk.

#![cfg(feature = "gateway")]

#[path = "support/cli.rs"]
#[expect(dead_code, reason = "each file of tests uses a part")]
mod support;
#[path = "support/pki.rs"]
#[expect(dead_code, reason = "each file of tests uses a part")]
mod pki;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::SystemTime;

use pki::Pki;

use support::{SECRET, agentport, gateway, run, stderr, stdout, token, until};

const KEY: (&str, &str) = ("AGENTPORT_JWKS_SECRET", SECRET);

const OPENAI: &str = r#"
version: 1
rules:
  - name: openai
    action: allow
    agents: ["bot-*"]
    hosts: ["api.openai.com"]
    ports: [443]
  - name: mirror
    action: allow
    agents: any
    hosts: ["mirror.example"]
    methods: [GET]
    paths: ["/simple/**"]
    ports: [80]
"#;

#[test]
fn a_token_is_printed_and_nothing_else() {
    for (case, arguments, seconds) in [
        ("the usual lifetime", &[][..], 900),
        ("a batch job", &["--batch"], 3600),
        ("an interactive agent", &["--interactive"], 900),
        ("as long as it says", &["--ttl=5m"], 300),
    ] {
        let output = run(
            &[&["issue-token", "--agent-id=bot-01"], arguments].concat(),
            &[KEY],
        );
        let printed = stdout(&output);
        assert_eq!(output.status.code(), Some(0), "{case}: {}", stderr(&output));
        assert_eq!(stderr(&output), "", "{case}");
        assert!(
            printed.ends_with('\n') && printed.lines().count() == 1,
            "{case}: {printed:?}"
        );
        let claims = claims(printed.trim());
        assert_eq!(claims["agent_id"], "bot-01", "{case}");
        let lives = claims["exp"].as_u64().zip(claims["iat"].as_u64());
        assert_eq!(lives.map(|(exp, iat)| exp - iat), Some(seconds), "{case}");
    }
}

#[test]
fn a_token_says_what_was_asked_for() {
    let output = run(
        &[
            "issue-token",
            "--agent-id=bot-01",
            "--tenant=acme",
            "--allow=api.openai.com,*.github.com",
            "--allow=203.0.113.0/24",
            "--audience=elsewhere",
            "--scope=read",
            "--scope=write:all",
            "--act=helper",
            "--act=planner",
        ],
        &[KEY],
    );
    let claims = claims(stdout(&output).trim());
    assert_eq!(claims["tenant"], "acme");
    assert_eq!(claims["aud"], "elsewhere");
    assert_eq!(claims["scope"], "read write:all");
    let act = serde_json::json!({"sub": "helper", "act": {"sub": "planner"}});
    assert_eq!(claims["act"], act, "the present actor is outermost");
    let expected = serde_json::json!(["api.openai.com", "*.github.com", "203.0.113.0/24"]);
    assert_eq!(claims["allowed_destinations"], expected);
    let other = run(&["issue-token", "--agent-id=bot-01"], &[KEY]);
    let other = self::claims(stdout(&other).trim());
    assert!(other.get("tenant").is_none_or(serde_json::Value::is_null));
    assert!(
        other["jti"].is_string() && other["jti"] != claims["jti"],
        "each its own jti"
    );
}

#[test]
fn a_token_that_cannot_be_issued() {
    let agent = "--agent-id=bot-01";
    for (case, arguments, environment, says) in [
        ("no key", &[agent][..], &[][..], "AGENTPORT_JWKS_SECRET"),
        ("no agent", &[], &[KEY], "--agent-id"),
        (
            "an agent's name with a line feed",
            &["--agent-id=a\nb"],
            &[KEY],
            "--agent-id",
        ),
        ("an empty name", &["--agent-id="], &[KEY], "--agent-id"),
        (
            "longer than may be asked for",
            &[agent, "--ttl=25h"],
            &[KEY],
            "identity.max_token_ttl",
        ),
        (
            "a longer chain than may be",
            &[agent, "--act=a", "--act=b", "--act=c", "--act=d", "--act=e"],
            &[KEY],
            "identity.max_delegation",
        ),
        ("no time", &[agent, "--ttl=soon"], &[KEY], "--ttl soon"),
        ("no time at all", &[agent, "--ttl=0s"], &[KEY], "lifetime"),
        (
            "a destination that is a URL",
            &[agent, "--allow=https://a.example"],
            &[KEY],
            "--allow",
        ),
        (
            "two lifetimes",
            &[agent, "--batch", "--ttl=5m"],
            &[KEY],
            "--ttl",
        ),
        (
            "a short secret",
            &[agent],
            &[("AGENTPORT_JWKS_SECRET", "short")],
            "32",
        ),
    ] {
        let output = run(&[&["issue-token"], arguments].concat(), environment);
        assert!(!output.status.success(), "{case}: {}", stdout(&output));
        assert_eq!(stdout(&output), "", "{case}");
        assert!(
            stderr(&output).contains(says),
            "{case}: {}",
            stderr(&output)
        );
        assert!(!stderr(&output).contains(SECRET), "{case}");
    }
}

#[test]
fn every_command_explains_itself() {
    for command in [
        &[][..],
        &["serve"],
        &["up"],
        &["issue-token"],
        &["service-account"],
        &["service-account", "create"],
        &["service-account", "add-key"],
        &["service-account", "list"],
        &["service-account", "revoke"],
        &["keys"],
        &["keys", "generate"],
        &["keys", "export"],
        &["keys", "list"],
        &["keys", "rotate"],
        &["keys", "retire"],
        &["policy"],
        &["policy", "check"],
        &["policy", "explain"],
        &["policy", "test"],
        &["policy", "learn"],
        &["policy", "schema"],
        &["config"],
        &["config", "check"],
        &["config", "show"],
        &["config", "reference"],
        &["health"],
        &["env"],
        &["run"],
    ] {
        let output = run(
            &[command, &["--help"]].concat(),
            &[("AGENTPORT_TOKEN", "hidden.from.help")],
        );
        let help = stdout(&output);
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert_eq!(stderr(&output), "", "{command:?}");
        assert!(help.contains("Usage: agentport"), "{command:?}: {help}");
        assert!(
            !help.contains("hidden.from.help"),
            "{command:?} shows a token"
        );
    }
}

#[test]
fn what_is_not_understood_has_exit_code_two() {
    for arguments in [
        &["nonsense"][..],
        &["serve", "--nonsense"],
        &["keys"],
        &["keys", "generate"],
        &["keys", "retire"],
        &["policy"],
        &["policy", "explain"],
        &["health", "--timeout=soon"],
        &["health", "--address=here"],
        &["up", "--listen=99999"],
        &["env", "--format=csv"],
        &["run"],
    ] {
        let output = run(arguments, &[KEY]);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert_eq!(stdout(&output), "", "{arguments:?}");
        assert!(!stderr(&output).is_empty(), "{arguments:?}");
    }
}

#[test]
fn every_mistake_in_a_configuration_is_named_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agentport.yaml");
    let text = "listen:\n  egress: [\"127.0.0.1:99999\"]\n  amdin: off\n\
                timeouts:\n  connect: fast\n\
                limits:\n  in_flight: -3\n  header_bytes: 32 potatoes\n\
                audit:\n  overflow: maybe\n\
                mode: enforced\nlog: {level: loud}\nidentity: {leeway: 30}\n";
    std::fs::write(&file, text).expect("written");
    let shown = file.display().to_string();
    let output = run(
        &[
            "config",
            "check",
            "-c",
            &shown,
            "--set",
            "threads=many",
            "--set",
            "nonsense=1",
        ],
        &[
            ("AGENTPORT_RESOLVER_TIMEOUT", "never"),
            ("AGENTPORT_JWKS_SECRET", "too-short-to-be-good"),
        ],
    );
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    for (place, remedy) in [
        ("agentport.yaml:2:12: listen.egress[0]", "address:port"),
        ("agentport.yaml:3:3: listen.amdin", "listen.admin"),
        ("agentport.yaml:5:12: timeouts.connect", "250ms"),
        ("agentport.yaml:7:14: limits.in_flight", "whole number"),
        ("agentport.yaml:8:17: limits.header_bytes", "KiB"),
        ("agentport.yaml:10:13: audit.overflow", "block or deny"),
        ("agentport.yaml:11:7: mode", "enforce or audit"),
        ("log.level", "debug"),
        ("identity.leeway", "unit"),
        ("--set", "threads"),
        ("--set", "nonsense"),
        ("AGENTPORT_RESOLVER_TIMEOUT", "250ms"),
        ("AGENTPORT_JWKS_SECRET", "32"),
    ] {
        let line = said
            .lines()
            .find(|line| line.contains(place) && line.contains(remedy));
        assert!(
            line.is_some(),
            "nothing on {place} with {remedy:?}:\n{said}"
        );
    }
    assert!(
        !said.contains("too-short-to-be-good"),
        "the secret is shown"
    );
}

#[test]
fn a_configuration_is_checked_with_its_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("good.yaml"), OPENAI).expect("written");
    std::fs::write(path("bad.yaml"), OPENAI.replace("443", "70000")).expect("written");
    std::fs::write(path("no-key.pem"), "nothing like a key").expect("written");
    let good = format!("policy={}", path("good.yaml"));
    let bad = format!("policy={}", path("bad.yaml"));
    let gone = format!("policy={}", path("gone.yaml"));
    let no_key = format!("identity.keys={}", path("no-key.pem"));
    for (case, settings, code, says) in [
        ("all good", vec![&good], 0, "valid"),
        (
            "a policy with a mistake",
            vec![&bad],
            1,
            "bad.yaml:8:13: rules[0].ports[0]",
        ),
        ("a policy that is not there", vec![&gone], 1, "gone.yaml"),
        ("a key that is none", vec![&good, &no_key], 1, "no-key.pem"),
    ] {
        let mut arguments = vec!["config", "check"];
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        let output = run(&arguments, &[KEY]);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{case}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(says),
            "{case}: {}",
            stderr(&output)
        );
    }
}

/// A configuration that names a file of every kind, all of them good; everything
/// is in the folder of the CA.
fn with_every_file(pki: &Pki) -> PathBuf {
    let server = pki.server("server", &["gateway.test"]);
    pki.server("other", &["other.test"]);
    let write = |name: &str, text: &str| std::fs::write(pki.path(name), text).expect("written");
    write("policy.yaml", OPENAI);
    write("accounts.yaml", "version: 1\naccounts: []\n");
    write("agent-keys.jsonl", "");
    write("revoked.jsonl", "");
    write("agents.yaml", "agents: []\n");
    write("secret", &format!("{SECRET}\n"));
    let path = |name: &str| pki.path(name).display().to_string();
    let pair = format!(
        "{{certificate: {}, key: {}}}",
        server.certificate.display(),
        server.key.display()
    );
    let (ca, names) = (path("ca.pem"), "spiffe://example.org/agent/{agent}");
    let text = format!(
        "listen: {{egress: [\"127.0.0.1:0\"], egress_tls: [\"127.0.0.1:0\"], peers: \"127.0.0.1:0\", \
         admin: \"127.0.0.1:0\", admin_secret_file: {}}}\n\
         policy: {}\n\
         tls: {{certificates: [{pair}], clients: {{certificates: optional, ca: {ca}, names: [\"{names}\"]}}}}\n\
         peers: {{certificates: [{pair}], ca: {ca}, names: [\"{names}\"], agents: {}}}\n\
         upstream_ca: {ca}\n\
         identity: {{secret_file: {}, service_accounts: {}, agent_keys: {}, revocations: {{file: {}}}}}\n\
         audit: {{path: {}}}\n",
        path("secret"),
        path("policy.yaml"),
        path("agents.yaml"),
        path("secret"),
        path("accounts.yaml"),
        path("agent-keys.jsonl"),
        path("revoked.jsonl"),
        path("audit.jsonl"),
    );
    let file = pki.path("agentport.yaml");
    std::fs::write(&file, text).expect("written");
    file
}

/// What stands in a folder, and when it was written.
fn written_in(folder: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let entries = entries.map(|entry| {
        let entry = entry.expect("an entry");
        let written = entry.metadata().and_then(|file| file.modified());
        (entry.path(), written.expect("a time"))
    });
    entries.collect()
}

/// What a gateway says that does not start. One that does is stopped, and the
/// test fails.
#[track_caller]
fn does_not_start(case: &str, arguments: &[&str]) -> Output {
    let mut command = agentport();
    command.arg("serve").args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let deadline = std::time::Instant::now() + support::LONGEST;
    while child.try_wait().expect("a child").is_none() {
        if std::time::Instant::now() > deadline {
            let _ = child.kill();
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("its output");
    assert_eq!(output.status.code(), Some(1), "{case}: {}", stderr(&output));
    output
}

#[test]
fn what_serve_refuses_the_check_refuses() {
    enum Broken {
        /// The file is not there.
        Gone(&'static str),
        /// The file holds this.
        Holds(&'static str, &'static str),
        /// The file is this one.
        Is(&'static str, &'static str),
        /// The key is set to this.
        Set(&'static str, &'static str),
    }
    use Broken::{Gone, Holds, Is, Set};
    for (case, broken, says) in [
        (
            "no certificate",
            &[Gone("server.pem")][..],
            &["server.pem"][..],
        ),
        (
            "no key of a certificate",
            &[Gone("server.key")],
            &["server.key"],
        ),
        (
            "another certificate's key",
            &[Is("server.key", "other.key")],
            &[
                "server.key: the key is not that of the certificate in",
                "peers: ",
            ],
        ),
        (
            "no CA of clients",
            &[Set("tls.clients.ca", "/none/ca.pem")],
            &["/none/ca.pem: No such"],
        ),
        (
            "no CA of peers",
            &[Set("peers.ca", "/none/ca.pem")],
            &["peers: ", "/none/ca.pem: No such"],
        ),
        (
            "no list of agents",
            &[Gone("agents.yaml")],
            &["peers.agents: ", "agents.yaml: No such"],
        ),
        (
            "no bundle",
            &[Set("upstream_ca", "/none/ca.pem")],
            &["upstream_ca: /none/ca.pem: No such"],
        ),
        (
            "a bundle that is none",
            &[Set("upstream_ca", "/dev/null")],
            &["upstream_ca: /dev/null"],
        ),
        (
            "no accounts",
            &[Gone("accounts.yaml")],
            &[
                "identity.service_accounts: ",
                "agentport service-account create",
            ],
        ),
        (
            "accounts with a mistake",
            &[Holds("accounts.yaml", "version: 1\naccounts: 7\n")],
            &["identity.service_accounts: ", "accounts.yaml: "],
        ),
        (
            "accounts and nowhere to ask",
            &[Set("listen.admin", "off")],
            &["identity.service_accounts: ", "set listen.admin"],
        ),
        (
            "no agent keys",
            &[Gone("agent-keys.jsonl")],
            &["identity.agent_keys: ", "agentport agent-key create"],
        ),
        (
            "agent keys with a mistake",
            &[Holds("agent-keys.jsonl", "nonsense\n")],
            &["identity.agent_keys: ", "line 1"],
        ),
        (
            "revocations with a mistake",
            &[Holds("revoked.jsonl", "nonsense\n")],
            &["identity.revocations.file: ", "line 1"],
        ),
        (
            "revocations in a folder that is not there",
            &[Set("identity.revocations.file", "/none/revoked.jsonl")],
            &["identity.revocations.file: /none/revoked.jsonl: there is no folder /none"],
        ),
        (
            "no admin secret",
            &[Set("listen.admin_secret_file", "/none/secret")],
            &["listen.admin_secret_file: /none/secret: No such"],
        ),
        (
            "a short admin secret",
            &[
                Holds("short", "short\n"),
                Set("listen.admin_secret_file", "short"),
            ],
            &[
                "listen.admin_secret_file: ",
                "short: it has 5 bytes and needs 32: write the output of",
            ],
        ),
        (
            "a policy with a mistake",
            &[Holds("policy.yaml", "version: 9\n")],
            &["policy.yaml"],
        ),
        (
            "several at once",
            &[
                Holds("policy.yaml", "version: 9\n"),
                Gone("server.key"),
                Gone("accounts.yaml"),
                Holds("revoked.jsonl", "nonsense\n"),
                Set("upstream_ca", "/none/ca.pem"),
            ],
            &[
                "policy.yaml",
                "server.key: No such",
                "identity.service_accounts: ",
                "identity.revocations.file: ",
                "upstream_ca: ",
            ],
        ),
    ] {
        let pki = Pki::new("the CA of all");
        let config = with_every_file(&pki).display().to_string();
        let mut arguments = vec!["-c".to_owned(), config];
        for one in broken {
            match one {
                Gone(name) => std::fs::remove_file(pki.path(name)).expect("removed"),
                Holds(name, text) => std::fs::write(pki.path(name), text).expect("written"),
                Is(name, other) => {
                    std::fs::copy(pki.path(other), pki.path(name)).expect("copied");
                }
                Set(key, value) => {
                    let here = pki.path(value);
                    let value = if here.is_file() {
                        here.display().to_string()
                    } else {
                        (*value).to_owned()
                    };
                    arguments.extend(["--set".to_owned(), format!("{key}={value}")]);
                }
            }
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let before = written_in(pki.path("x").parent().expect("a folder"));
        let checked = run(&[&["config", "check"], &arguments[..]].concat(), &[]);
        assert_eq!(
            checked.status.code(),
            Some(1),
            "{case}: {}",
            stderr(&checked)
        );
        assert_eq!(
            written_in(pki.path("x").parent().expect("a folder")),
            before,
            "{case}"
        );
        let refused = does_not_start(case, &arguments);
        for (who, said) in [("check", stderr(&checked)), ("serve", stderr(&refused))] {
            for words in says {
                assert!(said.contains(words), "{case}: {who}: {words:?}: {said}");
            }
            assert!(!said.contains("panicked"), "{case}: {who}: {said}");
        }
    }
}

#[test]
fn a_check_changes_nothing_and_what_it_passes_is_served() {
    let pki = Pki::new("the CA of all");
    let config = with_every_file(&pki).display().to_string();
    let folder = pki.path("x").parent().expect("a folder").to_owned();
    std::fs::remove_file(pki.path("revoked.jsonl")).expect("removed");
    let before = written_in(&folder);
    let checked = run(&["config", "check", "-c", &config], &[]);
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
    assert!(stderr(&checked).contains("the configuration is valid"));
    assert_eq!(written_in(&folder), before);
    let mut command = agentport();
    let pid_file = pki.path("pid");
    let pid = format!("pid_file={}", pid_file.display());
    command.args(["serve", "-c", &config, "--set", &pid]);
    let mut child = command
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    // It is written when all is bound.
    until("it serves", || {
        assert!(child.try_wait().expect("a child").is_none(), "it has ended");
        pid_file.exists().then_some(())
    });
    child.kill().expect("stopped");
    child.wait().expect("ended");
    assert!(pki.path("revoked.jsonl").exists());
}

#[test]
fn mistakes_name_their_key_once_and_say_what_to_write() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("policy.yaml"), OPENAI).expect("written");
    std::fs::write(path("short"), "short\n").expect("written");
    std::fs::write(path("agentport.yaml"), "timeout: {connect: 1s}\n").expect("written");
    let policy = format!("policy={}", path("policy.yaml"));
    let set = |key: &str, name: &str| format!("{key}={}", path(name));
    let short = path("short");
    for (case, arguments, code, says) in [
        (
            "a policy that nobody wrote",
            &["config", "check", "--set", &set("policy", "gone.yaml")][..],
            1,
            "gone.yaml: there is no such file: write the policy's path as `policy:` in the \
             configuration or `-s policy=FILE`, or set ALLOWED_DESTINATIONS",
        ),
        (
            "one that a start wants",
            &["serve", "--set", &set("policy", "gone.yaml")],
            1,
            "`-s policy=FILE`, or set ALLOWED_DESTINATIONS",
        ),
        (
            "one that is to be checked",
            &["policy", "check", "--set", &set("policy", "gone.yaml")],
            2,
            "or set ALLOWED_DESTINATIONS; or name files for this command",
        ),
        (
            "one that was named",
            &["policy", "check", &path("gone.yaml")],
            2,
            "gone.yaml: No such file",
        ),
        (
            "a short secret in a file",
            &[
                "config",
                "check",
                "--set",
                &policy,
                "--set",
                &set("identity.secret_file", "short"),
            ],
            1,
            &format!("identity.secret_file: {short}: the shared secret has 5 bytes"),
        ),
        (
            "no secret in a file",
            &[
                "config",
                "check",
                "--set",
                &policy,
                "--set",
                &set("identity.secret_file", "gone"),
            ],
            1,
            "identity.secret_file: ",
        ),
        (
            "no key",
            &[
                "config",
                "check",
                "--set",
                &policy,
                "--set",
                &set("identity.keys", "gone.pem"),
            ],
            1,
            &format!("identity.keys[0]: {}: No such file", path("gone.pem")),
        ),
        (
            "no key to sign with",
            &[
                "config",
                "check",
                "--set",
                &policy,
                "--set",
                &set("identity.signing_key", "gone.pem"),
            ],
            1,
            &format!("identity.signing_key: {}: No such file", path("gone.pem")),
        ),
        (
            "no folder of keys",
            &[
                "config",
                "check",
                "--set",
                &policy,
                "--set",
                &set("identity.signing_keys", "gone"),
            ],
            1,
            "identity.signing_keys: ",
        ),
        (
            "a letter too few",
            &[
                "config",
                "check",
                "-c",
                &path("agentport.yaml"),
                "--set",
                &policy,
            ],
            1,
            "timeout: unknown key: did you mean timeouts?",
        ),
        (
            "a word for standard output",
            &[
                "config",
                "check",
                "--set",
                &policy,
                "--set",
                "audit.path=stdout",
            ],
            1,
            "audit.path: \"stdout\": write \"-\" for standard output, or ./stdout for a file of this name",
        ),
    ] {
        let by_file = case.contains("secret in a file");
        let key = if by_file { &[][..] } else { &[KEY] };
        let output = run(arguments, key);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{case}: {said}");
        assert!(said.contains(says), "{case}: {said}");
        for name in ["/gone", "/short"] {
            assert!(
                said.matches(name).count() <= 1,
                "{case}: it is named twice: {said}"
            );
        }
        assert!(
            !by_file || !said.contains("AGENTPORT_JWKS_SECRET"),
            "{case}: {said}"
        );
    }
}

#[test]
fn a_start_says_which_policy_it_serves() {
    for (case, policy, rules) in [
        ("two rules", OPENAI, 2),
        ("none", "version: 1\nrules: []\n", 0),
    ] {
        let gateway = gateway(policy).start();
        let serving = gateway.said("serving").expect("it serves");
        assert_eq!(serving["rules"], rules, "{case}: {serving}");
        assert_eq!(serving["mode"], "enforce", "{case}: {serving}");
        let version = serving["policy"].as_str().expect("a version");
        assert_eq!(version.len(), 16, "{case}: {serving}");
        // The log is in order: who has read of serving has read what was before.
        let warned = gateway.said("no rules: everything is refused");
        assert_eq!(warned.is_some(), rules == 0, "{case}");
    }
}

#[test]
fn a_configuration_is_shown_without_its_secrets() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agentport.yaml");
    std::fs::write(&file, "timeouts:\n  connect: 7s\n").expect("written");
    let output = run(
        &[
            "config",
            "show",
            "-c",
            &file.display().to_string(),
            "--set",
            "limits.tunnels=77",
        ],
        &[KEY, ("AGENTPORT_MODE", "audit")],
    );
    let shown = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for line in ["connect: 7s", "tunnels: 77", "mode: audit"] {
        assert!(shown.contains(line), "{line} is not in:\n{shown}");
    }
    assert!(
        !shown.contains(SECRET) && !shown.contains(&SECRET[..16]),
        "{shown}"
    );

    // What is shown, and what is given as reference, can be read back.
    let again = folder.path().join("again.yaml");
    for text in [shown, stdout(&run(&["config", "reference"], &[]))] {
        std::fs::write(&again, &text).expect("written");
        let output = run(&["config", "show", "-c", &again.display().to_string()], &[]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
}

#[test]
fn a_policy_is_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    for (case, name, text, code, says) in [
        ("a good one", "good.yaml", OPENAI.to_owned(), 0, "valid: 2 rules"),
        (
            "one without rules refuses everything",
            "empty.yaml",
            "version: 1\n".to_owned(),
            0,
            "valid: 0 rules",
        ),
        (
            "a wrong port",
            "port.yaml",
            OPENAI.replace("[443]", "[70000]"),
            1,
            "port.yaml:8:13: rules[0].ports[0]: 70000: write a port from 1 to 65535",
        ),
        (
            "an empty list is not `any`",
            "empty-list.yaml",
            OPENAI.replace("agents: any", "agents: []"),
            1,
            "rules[1].agents: the list is empty",
        ),
        (
            "an unknown key",
            "unknown.yaml",
            OPENAI.replace("methods:", "method:"),
            1,
            "unknown.yaml:13",
        ),
        (
            "no YAML",
            "no.yaml",
            "version: 1\nrules: [".to_owned(),
            1,
            "no.yaml:",
        ),
        (
            "JSON",
            "good.json",
            r#"{"version":1,"rules":[{"name":"a","action":"allow","agents":"any","hosts":["a.example"]}]}"#
                .to_owned(),
            0,
            "valid: 1 rules",
        ),
        (
            "JSON with a key twice",
            "twice.json",
            r#"{"version":1,"version":1,"rules":[]}"#.to_owned(),
            1,
            "twice.json:1",
        ),
    ] {
        std::fs::write(path(name), text).expect("written");
        let output = run(&["policy", "check", &path(name)], &[]);
        assert_eq!(output.status.code(), Some(code), "{case}: {}", stdout(&output));
        assert!(stdout(&output).contains(says), "{case}: {}", stdout(&output));

        let output = run(&["policy", "check", "--format=json", &path(name)], &[]);
        let json: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        assert_eq!(json["valid"], code == 0, "{case}: {json}");
        assert_eq!(output.status.code(), Some(code), "{case}");
        let errors = json["errors"].as_array().map_or(0, Vec::len);
        assert_eq!(errors > 0, code != 0, "{case}: {json}");
    }
}

#[test]
fn a_folder_of_policies_names_every_mistake_in_every_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("a.yaml"), OPENAI.replace("443", "70000")).expect("written");
    std::fs::write(
        path("b.yaml"),
        "tenant: acme\n".to_owned() + OPENAI.replace("[GET]", "[get]").trim_start(),
    )
    .expect("written");
    std::fs::write(path("c.json"), "{").expect("written");
    std::fs::write(path(".hidden.yaml"), "{").expect("written");
    std::fs::write(path("notes.txt"), "not a policy").expect("written");
    let shown = folder.path().display().to_string();
    let output = run(&["policy", "check", &shown], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("c.json"), "{}", stdout(&output));
    assert!(!stdout(&output).contains("hidden") && !stdout(&output).contains("notes"));

    std::fs::remove_file(path("c.json")).expect("removed");
    let output = run(&["policy", "check", &shown], &[]);
    for place in [
        "a.yaml:8:13: rules[0].ports[0]",
        "b.yaml:13:15: rules[1].methods[0]",
    ] {
        assert!(
            stdout(&output).contains(place),
            "{place}: {}",
            stdout(&output)
        );
    }
}

#[test]
fn a_policy_explains_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("policy.yaml");
    std::fs::write(&file, OPENAI).expect("written");
    let policy = format!("--policy={}", file.display());
    for (case, arguments, code, verdict, says) in [
        (
            "allowed",
            &["--agent=bot-1", "CONNECT", "api.openai.com:443"][..],
            0,
            "allow",
            "openai",
        ),
        (
            "an https URL is a tunnel",
            &["--agent=bot-1", "GET", "https://api.openai.com/v1"],
            0,
            "allow",
            "openai",
        ),
        (
            "another agent",
            &["--agent=cat", "CONNECT", "api.openai.com:443"],
            1,
            "deny",
            "openai",
        ),
        (
            "another port",
            &["--agent=bot-1", "CONNECT", "api.openai.com:8443"],
            1,
            "deny",
            "openai",
        ),
        (
            "another host",
            &["--agent=bot-1", "CONNECT", "openai.com:443"],
            1,
            "deny",
            "no rule",
        ),
        (
            "a path",
            &["--agent=cat", "GET", "http://mirror.example/simple/a/"],
            0,
            "allow",
            "mirror",
        ),
        (
            "another path",
            &["--agent=cat", "GET", "http://mirror.example/admin"],
            1,
            "deny",
            "mirror",
        ),
        (
            "another method",
            &["--agent=cat", "POST", "http://mirror.example/simple/a"],
            1,
            "deny",
            "mirror",
        ),
        (
            "the token says less",
            &[
                "--agent=bot-1",
                "--allow=a.example",
                "CONNECT",
                "api.openai.com:443",
            ],
            1,
            "deny",
            "token",
        ),
        (
            "an address that is not public",
            &[
                "--agent=bot-1",
                "--address=127.0.0.1",
                "CONNECT",
                "api.openai.com:443",
            ],
            1,
            "deny",
            "127.0.0.1",
        ),
    ] {
        let arguments = [&["policy", "explain", &policy], arguments].concat();
        let output = run(&arguments, &[]);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{case}: {}",
            stdout(&output)
        );
        let text = stdout(&output);
        assert!(
            text.starts_with(verdict) && text.contains(says),
            "{case}: {text}"
        );

        let output = run(&[&arguments[..], &["--format=json"]].concat(), &[]);
        let json: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        assert_eq!(json["verdict"], verdict, "{case}: {json}");
        assert_eq!(output.status.code(), Some(code), "{case}");
    }
    for url in [
        "/path",
        "api.openai.com",
        "http://0x7f.1/",
        "http://user:pw@a.example/",
    ] {
        let output = run(
            &["policy", "explain", &policy, "--agent=a", "GET", url],
            &[],
        );
        assert_eq!(output.status.code(), Some(2), "{url}");
        assert_eq!(stdout(&output), "", "{url}");
        assert!(!stderr(&output).is_empty(), "{url}");
    }
}

#[test]
fn a_key_is_made_once_and_for_its_owner_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key.pem");
    let shown = file.display().to_string();
    let made = run(&["keys", "generate", "--out", &shown], &[]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    assert_eq!(stdout(&made), "");
    let text = std::fs::read_to_string(&file).expect("a key");
    assert!(text.starts_with("-----BEGIN PRIVATE KEY-----"));
    let mode = std::fs::metadata(&file)
        .expect("a file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let again = run(&["keys", "generate", "--out", &shown], &[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains(&shown), "{}", stderr(&again));
    assert_eq!(
        std::fs::read_to_string(&file).expect("a key"),
        text,
        "the old key stays"
    );

    let exported = run(&["keys", "export", "--key", &shown], &[]);
    let keys: serde_json::Value = serde_json::from_str(&stdout(&exported)).expect("JSON");
    assert_eq!(keys["keys"][0]["alg"], "EdDSA");
    assert!(
        keys["keys"][0].get("d").is_none(),
        "the private half is printed"
    );

    // What it signs, a gateway that has only the public half accepts.
    let public = folder.path().join("keys.json");
    std::fs::write(&public, stdout(&exported)).expect("written");
    let setting = format!("identity.signing_key={shown}");
    let issued = run(
        &["issue-token", "--agent-id=bot-01", "--set", &setting],
        &[],
    );
    let issued = stdout(&issued).trim().to_owned();
    let gateway = gateway("version: 1\n")
        .without_env("AGENTPORT_JWKS_SECRET")
        .set("identity.keys", public.display().to_string())
        .start();
    let ask = |token: &str| {
        let request = format!(
            "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nProxy-Authorization: Bearer {token}\r\n\r\n"
        );
        support::ask(gateway.egress(), request.as_bytes()).error()
    };
    assert_eq!(
        ask(&issued),
        "no_rule",
        "the token is good and the policy is empty"
    );
    assert_ne!(
        ask(&token("bot-01")),
        "no_rule",
        "a token of the shared secret is not"
    );
}

#[test]
fn health_of_a_gateway() {
    let mut gateway = gateway("version: 1\n").start();
    let admin = format!("--address={}", gateway.admin());
    let egress = format!("--address={}", gateway.egress());
    let setting = format!("listen.admin={}", gateway.admin());
    let port = format!("--address={}", gateway.admin().port());
    let here = format!("--address=localhost:{}", gateway.admin().port());
    for (case, arguments) in [
        ("at the admin listener", &["health", &admin][..]),
        ("at the egress listener", &["health", &egress]),
        (
            "whether it may take traffic",
            &["health", "--ready", &admin],
        ),
        (
            "where the configuration says",
            &["health", "--set", &setting],
        ),
        ("a port alone", &["health", "--timeout=2s", &port]),
        ("this machine", &["health", "--timeout=2", &here]),
    ] {
        let output = run(arguments, &[]);
        assert_eq!(output.status.code(), Some(0), "{case}: {}", stderr(&output));
        let body: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        assert!(
            body["status"] == "up" || body["ready"] == true,
            "{case}: {body}"
        );
    }
    gateway.stop();
    let output = run(&["health", &admin, "--timeout=1"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "");
    assert!(
        stderr(&output).contains("does not answer"),
        "{}",
        stderr(&output)
    );

    // A server that accepts and says nothing is no healthy gateway.
    let silent = support::Origin::hold();
    let address = format!("--address={}", silent.address);
    let output = run(&["health", &address, "--timeout=1"], &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
}

/// What programs are told of the gateway.
const PROXY: [&str; 7] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "http_proxy",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "grpc_proxy",
];
const ROOTS: [&str; 10] = [
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "DENO_CERT",
];

#[test]
fn a_command_is_run_with_the_gateway_in_its_environment() {
    let folder = tempfile::tempdir().expect("a folder");
    let ca = folder.path().join("ca.pem");
    let ours =
        rcgen::generate_simple_self_signed(["ca.example".to_owned()]).expect("a certificate");
    std::fs::write(&ca, ours.cert.pem()).expect("written");
    let token = token("bot-01");
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, format!("{token}\n")).expect("written");
    let (ca_file, token_path) = (ca.display().to_string(), token_file.display().to_string());
    let url = format!("http://bot-01:{token}@gateway:8080");

    for (case, arguments, environment) in [
        ("a token by flag", vec!["--token", &token], vec![]),
        ("a token by file", vec!["--token-file", &token_path], vec![]),
        (
            "a token by environment",
            vec![],
            vec![("AGENTPORT_TOKEN", token.as_str())],
        ),
        ("a token in the URL", vec!["--url", &url], vec![]),
    ] {
        let mut all = vec!["run", "--ca", &ca_file];
        if !arguments.contains(&"--url") {
            all.extend(["--url", "http://gateway:8080"]);
        }
        all.extend(arguments);
        all.extend(["--", "sh", "-c", "env"]);
        let output = run(&all, &[&environment[..], &[KEY]].concat());
        assert_eq!(output.status.code(), Some(0), "{case}: {}", stderr(&output));
        let text = stdout(&output);
        let of = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{name}=")));
            line.unwrap_or_else(|| panic!("{case}: {name} is not set:\n{text}"))
                .to_owned()
        };
        for name in PROXY {
            assert_eq!(of(name), url, "{case}: {name}");
        }
        for name in ["NO_PROXY", "no_proxy"] {
            assert_eq!(of(name), "localhost,127.0.0.1,::1", "{case}");
        }
        assert_eq!(of("NODE_USE_ENV_PROXY"), "1", "{case}");
        assert!(
            of("JAVA_TOOL_OPTIONS").contains("-Dhttps.proxyHost=gateway"),
            "{case}"
        );
        for name in ROOTS {
            let bundle = std::fs::read_to_string(of(name)).expect("the bundle is there");
            assert!(
                bundle.contains(ours.cert.pem().trim()),
                "{case}: {name} lacks our root"
            );
        }
        for name in ["AGENTPORT_JWKS_SECRET", "AGENTPORT_TOKEN"] {
            assert!(
                !text.contains(&format!("{name}=")),
                "{case}: the child is given {name}"
            );
        }
    }
}

#[test]
fn the_command_that_runs_is_the_users() {
    let script = "echo out; echo err >&2; cat; exit 7";
    let mut command = agentport();
    let mut child = command
        .args(["run", "--token=x.y.z", "--", "sh", "-c", script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut stdin, b"in\n").expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(7), "its exit code is ours");
    assert_eq!(stdout(&output), "out\nin\n");
    assert_eq!(stderr(&output), "err\n");

    for (case, arguments, says) in [
        (
            "no credential",
            &["run", "--", "/nonexistent/command"][..],
            "no credential",
        ),
        (
            "a command that is not there",
            &["run", "--", "/nonexistent/command"][..],
            "/nonexistent/command",
        ),
        (
            "no proxy's URL",
            &["run", "--url=ftp://gateway", "--", "true"],
            "http://gateway:8080",
        ),
        (
            "two credentials",
            &[
                "run",
                "--url=http://a:b@gateway",
                "--token=x.y.z",
                "--",
                "true",
            ],
            "not both",
        ),
        (
            "a CA that is none",
            &["run", "--ca=/dev/null", "--", "true"],
            "no PEM certificate",
        ),
        (
            "a token's file that is not there",
            &["run", "--token-file=/nonexistent/token", "--", "true"],
            "/nonexistent/token",
        ),
    ] {
        let output = run(arguments, &[]);
        assert_eq!(output.status.code(), Some(1), "{case}");
        assert!(
            stderr(&output).contains(says),
            "{case}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn the_environment_is_written_for_shells_and_files() {
    let arguments = ["env", "--url=http://gateway:8080", "--token=a.b.c"];
    let url = "http://agent:a.b.c@gateway:8080";
    for (form, line) in [
        ("shell", format!("export HTTPS_PROXY='{url}'")),
        ("dotenv", format!("HTTPS_PROXY='{url}'")),
        ("docker", format!("HTTPS_PROXY={url}")),
    ] {
        let output = run(&[&arguments[..], &["--format", form]].concat(), &[]);
        let text = stdout(&output);
        assert_eq!(output.status.code(), Some(0), "{form}: {}", stderr(&output));
        assert!(text.lines().any(|found| found == line), "{form}: {text}");
        for name in PROXY.iter().chain(&[
            "NO_PROXY",
            "no_proxy",
            "NODE_USE_ENV_PROXY",
            "JAVA_TOOL_OPTIONS",
        ]) {
            assert!(text.contains(&format!("{name}=")), "{form}: {name}");
        }
        for name in ROOTS {
            assert!(
                !text.contains(&format!("{name}=")),
                "{form}: {name} without a CA"
            );
        }
    }
}

#[test]
fn serving_fails_with_the_reason() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken
        .local_addr()
        .map(|address| (taken, address.to_string()))
        .expect("an address");
    let unix = tempfile::tempdir().expect("a folder");
    let live = unix.path().join("live.sock");
    let listening = std::os::unix::net::UnixListener::bind(&live).expect("a socket");
    let file = unix.path().join("file");
    std::fs::write(&file, "precious").expect("written");
    let (broken, both) = (unix.path().join("broken.pem"), unix.path().join("both.pem"));
    let named = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(&broken, named).expect("written");
    let ca = rcgen::generate_simple_self_signed(["ca.example".to_owned()]).expect("a certificate");
    let with_key = ca.cert.pem() + &ca.signing_key.serialize_pem();
    std::fs::write(&both, with_key).expect("written");
    let socket = |path: &std::path::Path| format!("unix:{}", path.display());
    let good = || gateway(OPENAI);
    for (case, start, says) in [
        (
            "no key",
            good().without_env("AGENTPORT_JWKS_SECRET"),
            "AGENTPORT_JWKS_SECRET",
        ),
        (
            "a short key",
            good().env("AGENTPORT_JWKS_SECRET", "abc"),
            "openssl rand -hex 32",
        ),
        (
            "a policy that is not there",
            good().set("policy", "/nonexistent/policy.yaml"),
            "/nonexistent/policy.yaml",
        ),
        (
            "a policy with a mistake",
            gateway(&OPENAI.replace("443", "70000")),
            "policy.yaml:8:13: rules[0].ports[0]",
        ),
        ("an empty file for a policy", gateway(""), "policy.yaml"),
        (
            "the egress port is taken",
            good().set("listen.egress", &taken.1),
            &taken.1,
        ),
        (
            "the admin port is taken",
            good().set("listen.admin", &taken.1),
            &taken.1,
        ),
        (
            "the second of two is taken",
            good().set("listen.egress", format!("127.0.0.1:0,{}", taken.1)),
            &taken.1,
        ),
        (
            "somebody listens at the socket",
            good().set("listen.egress", socket(&live)),
            "live.sock",
        ),
        (
            "a file stands where the socket should",
            good().set("listen.egress", socket(&file)),
            "no socket",
        ),
        (
            "an address this machine has not",
            good().set("listen.egress", "192.0.2.1:0"),
            "no such address",
        ),
        (
            "an audit log that cannot be written",
            good().set("audit.path", "/nonexistent/audit.jsonl"),
            "audit.path",
        ),
        (
            "a CA that is none",
            good().set("upstream_ca", "/dev/null"),
            "upstream_ca",
        ),
        (
            "a CA that says it is one",
            good().set("upstream_ca", broken.display().to_string()),
            "upstream_ca",
        ),
        (
            "a CA with its key beside it",
            good().set("upstream_ca", both.display().to_string()),
            "write those alone",
        ),
        (
            "a pid file that cannot be written",
            good().set("pid_file", "/nonexistent/pid"),
            "pid_file",
        ),
        (
            "a key file that is none",
            good().set("identity.keys", file.display().to_string()),
            "file",
        ),
        ("an unknown key", good().set("nonsense", "1"), "nonsense"),
    ] {
        let output = start.fails();
        assert_eq!(output.status.code(), Some(1), "{case}: {}", stderr(&output));
        assert!(
            stderr(&output).contains(says),
            "{case}: {}",
            stderr(&output)
        );
        assert!(
            !stderr(&output).contains("panicked"),
            "{case}: {}",
            stderr(&output)
        );
        assert_eq!(stdout(&output), "", "{case}");
    }
    assert_eq!(
        std::fs::read_to_string(&file).expect("still there"),
        "precious"
    );
    drop(listening);
}

/// The claims of a token, unproven.
fn claims(token: &str) -> serde_json::Value {
    use base64::Engine;
    let part = token.split('.').nth(1).expect("three parts");
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(part)
        .expect("base64url");
    serde_json::from_slice(&bytes).expect("JSON")
}

//! What is wrong with a configuration, and what is said of it.
use super::*;

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
    let said = messages(load("", &[], &[], Purpose::Serve));
    let [said] = said.as_slice() else {
        panic!("{said:?}");
    };
    assert!(
        said.starts_with("configuration: no key, so nobody could pass: set AGENTPORT_JWKS_SECRET")
    );
    for way in [
        "openssl rand -hex 32",
        "identity.secret_file",
        "identity.keys",
        "identity.signing_key ",
        "identity.signing_keys ",
        "identity.issuers,",
        "identity.issuers_file",
        "identity.agent_keys",
        "agentport keys generate --out",
        "agentport agent-key create",
    ] {
        assert!(said.contains(way), "{way}: {said}");
    }
    for file in [
        "identity: {secret_file: /run/secrets/jwt}",
        "identity: {keys: [/etc/agentport/keys]}",
        "identity: {signing_key: /etc/agentport/key.pem}",
        "identity: {signing_keys: /etc/agentport/signing}",
        "identity: {issuers: [{issuer: i, jwks_file: /etc/agentport/i.json}]}",
        "identity: {issuers_file: /etc/agentport/issuers.yaml}",
        "identity: {agent_keys: /etc/agentport/agent-keys}",
    ] {
        assert!(load(file, &[], &[], Purpose::Serve).is_ok(), "{file}");
    }
    let secret = [("AGENTPORT_JWKS_SECRET", SECRET)];
    let config = load("", &secret, &[], Purpose::Serve).expect("a key");
    let read = config.identity.secret.as_ref().map(Secret::reveal);
    assert_eq!(read, Some(SECRET));
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

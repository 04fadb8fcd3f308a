//! Sections that are lists, or name others' machines: routes, issuers, peers,
//! Redis, and the parent proxy.
use super::*;

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

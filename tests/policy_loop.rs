//! The policy loop as its users go round it, with the real binary: what agents
//! do in audit mode becomes a policy, which is checked, tried, compared and put
//! in force; then the same traffic passes, and other traffic does not.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each test uses a part of what is shared")]
mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use support::conn::Response;
use support::gateway::{Gateway, LOOPBACK_POLICY, token};
use support::origin::{Origin, Untouched};
use support::parent::ByHand;
use support::tls::Hello;

/// `agentport policy …`, with its exit code and what it printed.
fn policy(arguments: &[&str], input: Option<&str>) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agentport"));
    command
        .arg("policy")
        .args(arguments)
        .env_clear()
        .stdin(match input {
            Some(path) => Stdio::from(std::fs::File::open(path).expect("a file")),
            None => Stdio::null(),
        });
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("a code"), text(stdout), text(stderr))
}

fn json(arguments: &[&str]) -> serde_json::Value {
    let (_, out, err) = policy(arguments, None);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"))
}

fn ask(gateway: &Gateway, agent: &str, method: &str, url: &str) -> Response {
    let authority = url
        .trim_start_matches("http://")
        .split('/')
        .next()
        .expect("an authority");
    let mut client = gateway.connect();
    client.send(format!(
        "{method} {url} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        token(agent)
    ));
    client.response_to(method)
}

/// Opens a tunnel and begins TLS in it, and gives the status.
fn tunnel(gateway: &Gateway, agent: &str, name: &str, port: u16) -> u16 {
    let mut client = gateway.connect();
    client.send_lossy(format!(
        "CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
        token(agent)
    ));
    let status = client.response_to("CONNECT").status;
    if status == 200 {
        let hello = Hello::to(name).bytes();
        client.send(&hello);
        assert_eq!(client.exactly(hello.len()), hello, "the tunnel carries TLS");
    }
    status
}

/// What the agents need.
fn work(gateway: &Gateway, files: &Origin, api: &Origin) {
    for (method, path) in [("GET", "/v1/a"), ("GET", "/v1/b"), ("POST", "/v1/a")] {
        let url = format!("http://files.test:{}{path}", files.port());
        assert_eq!(
            ask(gateway, "reader", method, &url).status,
            200,
            "{method} {path}"
        );
    }
    assert_eq!(tunnel(gateway, "coder-1", "api.test", api.port()), 200);
    assert_eq!(tunnel(gateway, "coder-2", "api.test", api.port()), 200);
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn from_what_agents_do_to_what_they_may_do() {
    let (files, api) = (Origin::ok(), Origin::echo());
    let watching = LOOPBACK_POLICY.replace("rules:", "mode: audit\nrules:");
    let gateway = Gateway::start(&watching, &[]);
    work(&gateway, &files, &api);
    let private = ask(&gateway, "reader", "GET", "http://10.255.255.1/");
    assert_eq!(
        private.status, 403,
        "address classes bind in audit mode too"
    );
    let refused = gateway.record_of(&private);
    gateway.record("the last request", |record| {
        record["agent_id"] == "coder-2" && record["event"] == "tunnel"
    });
    let log = shown(&gateway.folder().join("audit.jsonl"));
    let old = shown(&gateway.policy_file());
    let history = shown(&gateway.folder().join("history"));

    // Learn, the same from a file and from standard input.
    let (code, learned, said) = policy(&["learn", &log], None);
    assert_eq!(code, 0, "{said}");
    assert_eq!(policy(&["learn", "-"], Some(&log)).1, learned);
    assert!(
        learned.contains("it was refused (address_private)"),
        "{learned}"
    );
    let file = shown(&gateway.folder().join("learned.yaml"));
    std::fs::write(&file, &learned).expect("written");
    let rules = json(&["learn", &log, "--format=json"])["rules"].clone();
    assert_eq!(rules.as_array().map(Vec::len), Some(2), "{learned}");

    // Check and keep.
    let (code, out, said) = policy(&["check", "--deny-warnings", &file], None);
    assert_eq!(code, 1, "how much is not learned: {out}{said}");
    assert_eq!(out.matches("warning: ").count(), 1, "{out}");
    assert!(out.contains("has no limits"), "{out}");
    let (code, out, said) = policy(&["check", "--keep", &history, &file], None);
    assert_eq!(code, 0, "{out}{said}");
    let (code, out, said) = policy(&["check", "--keep", &history, &old], None);
    assert_eq!(code, 0, "{out}{said}");

    // Try.
    let cases = shown(&gateway.folder().join("learned.cases.yaml"));
    let (files_port, api_port) = (files.port(), api.port());
    let text = format!(
        "cases:
  - {{name: seen, agent: reader, url: \"http://files.test:{files_port}/v1/b\", addresses: [127.0.0.1], expect: allow}}
  - {{name: a tunnel, agent: coder-2, connect: \"api.test:{api_port}\", expect: allow}}
  - {{name: not its own, agent: coder-2, url: \"http://files.test:{files_port}/v1/b\", expect: deny}}
  - {{name: never seen, agent: reader, connect: \"api.openai.com:443\", expect: deny, reason: no_rule}}
"
    );
    std::fs::write(&cases, text).expect("written");
    let (code, out, said) = policy(&["test", "--min-coverage=100", &cases], None);
    assert_eq!(code, 0, "{out}{said}");

    // Compare: nothing widens, and nothing that was used stops.
    let (code, out, said) = policy(
        &["diff", &old, &file, "--fail-on=widening", "--replay", &log],
        None,
    );
    assert_eq!(code, 0, "{out}{said}");
    let compared = json(&["diff", &old, &file, "--format=json", "--replay", &log]);
    assert_eq!(
        compared["replay"]["changes"],
        serde_json::json!([]),
        "{compared}"
    );
    let (code, ..) = policy(&["diff", &file, &old, "--fail-on=widening"], None);
    assert_eq!(code, 1, "the other way round everything widens");

    // Put in force.
    gateway.change_policy(&learned);
    work(&gateway, &files, &api);
    let untouched = Untouched::listen();
    for (case, agent, method, url) in [
        (
            "another path",
            "reader",
            "GET",
            format!("http://files.test:{files_port}/v2"),
        ),
        (
            "another method",
            "reader",
            "PUT",
            format!("http://files.test:{files_port}/v1/a"),
        ),
        (
            "another agent",
            "coder-1",
            "GET",
            format!("http://files.test:{files_port}/v1/a"),
        ),
        (
            "another host",
            "reader",
            "GET",
            format!("http://other.test:{files_port}/v1/a"),
        ),
        (
            "another port",
            "reader",
            "GET",
            format!("http://files.test:{}/v1/a", untouched.port()),
        ),
    ] {
        let before = files.requests().len();
        assert_eq!(ask(&gateway, agent, method, &url).status, 403, "{case}");
        assert_eq!(
            files.requests().len(),
            before,
            "{case}: the origin is not asked"
        );
    }
    assert_eq!(tunnel(&gateway, "reader", "api.test", api_port), 403);
    assert_eq!(
        tunnel(&gateway, "coder-1", "api.test", untouched.port()),
        403
    );
    untouched.check("nothing that was not seen is reached");

    // Explain then and now.
    let id = refused["request_id"].as_str().expect("a number");
    let then = json(&[
        "explain",
        "--from-audit",
        id,
        &log,
        "--history",
        &history,
        "--format=json",
    ]);
    assert_eq!(then["policy_version"], refused["policy_version"], "{then}");
    assert_eq!(then["reason"], "address_private", "{then}");
    let now = gateway.record("a refusal", |record| record["reason"] == "no_rule");
    let id = now["request_id"].as_str().expect("a number");
    let then = json(&[
        "explain",
        "--from-audit",
        id,
        &log,
        "--history",
        &history,
        "--format=json",
    ]);
    assert_eq!(then["policy_version"], now["policy_version"], "{then}");
    assert_eq!(
        (&then["verdict"], &then["reason"]),
        (&"deny".into(), &"no_rule".into())
    );
    let version = refused["policy_version"].as_str().expect("a version");
    let url = format!("http://files.test:{files_port}/v2");
    let at = [
        "explain",
        "--agent=reader",
        "--history",
        &history,
        "--at",
        version,
        "--format=json",
        "GET",
        &url,
    ];
    assert_eq!(json(&at)["verdict"], "allow", "the policy of then");
}

#[test]
fn what_answers_without_an_address_is_learned_and_passes() {
    let origin = Origin::ok();
    let parent = ByHand::relaying();
    let sockets = tempfile::tempdir().expect("a folder");
    let path = sockets.path().join("agent.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                head.push(byte[0]);
            }
            // The gateway may be gone by now, at the end of the test.
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        }
    });
    let watching = LOOPBACK_POLICY.replace("rules:", "mode: audit\nrules:");
    let gateway = Gateway::start(
        &watching,
        &[
            ("agent.upstream", &format!("unix:{}", path.display())),
            ("upstream_proxy.url", &parent.url()),
            ("upstream_proxy.address", "unchecked"),
        ],
    );
    let by_parent = format!("http://a.corp:{}/v1", origin.port());
    let fronted = |path: &str| {
        let mut client = gateway.connect();
        client.send(format!(
            "POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            token("caller")
        ));
        client.response().status
    };
    let work = || {
        assert_eq!(fronted("/v1/skills"), 200);
        assert_eq!(ask(&gateway, "reader", "GET", &by_parent).status, 200);
    };
    work();
    for agent in ["caller", "reader"] {
        let record = gateway.record(agent, |record| record["agent_id"] == agent);
        assert!(record["destination_ip"].is_null(), "{record}");
        assert_eq!(record["would_deny"], "no_rule", "{record}");
    }
    let log = shown(&gateway.folder().join("audit.jsonl"));
    let (code, learned, said) = policy(&["learn", &log], None);
    assert_eq!(code, 0, "{said}");
    assert!(!learned.contains("Left out"), "{learned}");
    let file = shown(&gateway.folder().join("learned.yaml"));
    std::fs::write(&file, &learned).expect("written");
    let replayed = json(&["diff", "--format=json", "--replay", &log, &file, &file]);
    assert_eq!(replayed["replay"]["requests"], 2, "{replayed}");

    gateway.change_policy(&learned);
    work();
    assert_eq!(fronted("/v1/other"), 403, "what was not seen");
}

#[test]
fn shipped_policies_hold_their_cases_and_every_rule_is_touched() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/policies");
    let (code, out, said) = policy(&["test", "--min-coverage=100", folder], None);
    assert_eq!(code, 0, "{out}{said}");
    for name in ["example", "openclaw"] {
        let (code, out, said) = policy(&["check", &format!("{folder}/{name}.yaml")], None);
        assert_eq!(code, 0, "{name}: {out}{said}");
    }
}

#[test]
fn cases_that_do_not_hold_and_rules_that_none_touches_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| shown(&folder.path().join(name));
    let rules = "version: 1\nrules:\n  - {name: a, action: allow, agents: any, hosts: [a.example]}\n  - {name: b, action: allow, agents: any, hosts: [b.example]}\n";
    std::fs::write(path("p.yaml"), rules).expect("written");
    let case = |connect: &str| {
        format!(
            "cases:\n  - {{name: \"a <case> & more\", agent: x, connect: \"{connect}\", expect: allow}}\n"
        )
    };
    std::fs::write(path("p.cases.yaml"), case("a.example:443")).expect("written");
    let file = path("p.cases.yaml");

    let (code, out, _) = policy(&["test", &file], None);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("1 of 2 rules are touched (50 %)"), "{out}");
    assert!(
        out.contains(&format!(
            "no case touches rule \"b\" at {}:4:5",
            path("p.yaml")
        )),
        "{out}"
    );
    let (code, out, _) = policy(&["test", "--min-coverage=51", &file], None);
    assert_eq!((code, out.contains("which is too few")), (1, true), "{out}");

    std::fs::write(&file, case("c.example:443")).expect("written");
    let (code, out, _) = policy(&["test", &file], None);
    assert_eq!(code, 1, "{out}");
    assert!(
        out.contains("p.cases.yaml:2:5: a <case> & more\n  expected allow, got deny"),
        "{out}"
    );
    let (code, out, _) = policy(&["test", "--format=junit", &file], None);
    assert_eq!(code, 1, "{out}");
    assert!(
        out.contains("name=\"a &lt;case&gt; &amp; more\"><failure message="),
        "{out}"
    );
    assert_eq!(json(&["test", "--format=json", &file])["good"], false);
}

#[test]
fn what_cannot_be_read_is_told_from_what_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| shown(&folder.path().join(name));
    let write = |name: &str, text: &[u8]| std::fs::write(path(name), text).expect("written");
    write("good.yaml", b"version: 1\n");
    write("bad.yaml", b"version: 1\nrules: [{nam: a}]\n");
    write("bad.cases.yaml", b"policy: [good.yaml]\ncases: []\n");
    write(
        "alone.cases.yaml",
        b"cases: [{name: a, agent: a, connect: \"a:1\", expect: deny}]\n",
    );
    write("log.gz", &[0x1f, 0x8b, 8, 0]);
    write("notes.txt", b"not a log\n");
    write("empty.jsonl", b"");
    let (good, bad, gone) = (path("good.yaml"), path("bad.yaml"), path("gone.yaml"));
    for (case, arguments, expected, says) in [
        (
            "a file that is not there",
            vec!["check", &gone],
            2,
            "gone.yaml",
        ),
        (
            "a broken policy is what check looks for",
            vec!["check", &bad],
            1,
            "did you mean `name`?",
        ),
        (
            "explaining by a broken policy",
            vec!["explain", "--policy", &bad, "--agent=a", "CONNECT", "a:1"],
            2,
            "bad.yaml:2:10",
        ),
        (
            "comparing with a broken policy",
            vec!["diff", &good, &bad],
            2,
            "bad.yaml:2:10",
        ),
        (
            "nothing changes",
            vec!["diff", &good, &good, "--fail-on=any"],
            0,
            "nothing changes",
        ),
        (
            "broken cases",
            vec!["test", &path("bad.cases.yaml")],
            2,
            "the list is empty",
        ),
        (
            "cases without a policy",
            vec!["test", &path("alone.cases.yaml")],
            2,
            "no policy stands beside it",
        ),
        (
            "a compressed log",
            vec!["learn", &path("log.gz")],
            2,
            "zcat",
        ),
        (
            "no log",
            vec!["learn", &path("notes.txt")],
            2,
            "notes.txt:1: no audit record",
        ),
        (
            "an empty log",
            vec!["learn", &path("empty.jsonl")],
            1,
            "rules: []",
        ),
        (
            "no such version",
            vec![
                "explain",
                "--history",
                &path("h"),
                "--at",
                "0123",
                "--agent=a",
                "CONNECT",
                "a:1",
            ],
            2,
            "has no version 0123",
        ),
        (
            "a version that is a path",
            vec![
                "explain",
                "--history",
                &path("h"),
                "--at",
                "../x",
                "--agent=a",
                "CONNECT",
                "a:1",
            ],
            2,
            "is no version",
        ),
        (
            "the schema",
            vec!["schema"],
            0,
            "https://json-schema.org/draft/2020-12/schema",
        ),
    ] {
        let (code, out, err) = policy(&arguments, None);
        assert_eq!(code, expected, "{case}: {out}{err}");
        assert!(format!("{out}{err}").contains(says), "{case}: {out}{err}");
    }
}

#[test]
fn json_rpc_is_explained_tried_and_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let rule = |methods: &str| {
        format!(
            "version: 1\nrules:\n  - {{name: chain, action: allow, agents: any, hosts: [rpc.example], ports: [80], schemes: [http], rpc_methods: [{methods}]}}\n"
        )
    };
    let (one, two) = (
        write("p.yaml", &rule("eth_call")),
        write("q.yaml", &rule("eth_call, eth_send")),
    );
    let cases = write(
        "p.cases.yaml",
        "cases:\n  - {name: a batch, agent: bot, url: 'http://rpc.example/', rpc_methods: [eth_call, eth_send], expect: deny}\n  - {name: a call, agent: bot, url: 'http://rpc.example/', rpc_methods: [eth_call], expect: allow}\n",
    );
    for (case, arguments, expected, says) in [
        (
            "a call that is allowed",
            vec![
                "explain",
                "--policy",
                &one,
                "--agent=bot",
                "--rpc-method=eth_call",
                "POST",
                "http://rpc.example/",
            ],
            0,
            "the body calls eth_call",
        ),
        (
            "a batch of which one is not",
            vec![
                "explain",
                "--policy",
                &one,
                "--agent=bot",
                "--rpc-method=eth_call",
                "--rpc-method=eth_send",
                "POST",
                "http://rpc.example/",
            ],
            1,
            "rpc_methods: the rule has eth_call; the request has eth_call, eth_send",
        ),
        (
            "a tunnel",
            vec![
                "explain",
                "--policy",
                &one,
                "--agent=bot",
                "--rpc-method=eth_call",
                "CONNECT",
                "rpc.example:443",
            ],
            2,
            "a tunnel hides them",
        ),
        ("cases", vec!["test", &cases], 0, "1 of 1 rules are touched"),
        (
            "a diff",
            vec!["diff", "--fail-on=widening", &one, &two],
            1,
            "calling a batch of eth_call and eth_send, eth_send",
        ),
    ] {
        let (code, out, err) = policy(&arguments, None);
        assert_eq!(code, expected, "{case}: {out}{err}");
        assert!(format!("{out}{err}").contains(says), "{case}: {out}{err}");
    }
}

#[test]
fn documents_for_different_audiences_are_checked_explained_tried_and_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let document = |audience: &str, host: &str| {
        format!(
            "version: 1\ntenant: acme\n{audience}rules:\n  - {{name: of-{host}, action: allow, agents: any, hosts: [{host}.example]}}\n"
        )
    };
    write("p/prod.yaml", &document("audience: [prod]\n", "prod"));
    write("p/other.yaml", &document("", "other"));
    write(
        "q/prod.yaml",
        &document("audience: [prod, batch]\n", "prod"),
    );
    write("q/other.yaml", &document("", "other"));
    write("twice/prod.yaml", &document("audience: [prod]\n", "prod"));
    let second = write(
        "twice/second.yaml",
        &document("audience: [x, prod]\n", "second"),
    );
    let cases = write(
        "a.cases.yaml",
        "policy: [p]\ncases:\n  - {name: prod, agent: bot, tenant: acme, audience: [agentport, prod], connect: 'prod.example:443', expect: allow}\n  - {name: not for others, agent: bot, tenant: acme, audience: [agentport], connect: 'prod.example:443', expect: deny, reason: no_rule}\n  - {name: others, agent: bot, tenant: acme, connect: 'other.example:443', expect: allow}\n",
    );
    let folder = |name: &str| folder.path().join(name).display().to_string();
    let (p, q, twice) = (folder("p"), folder("q"), folder("twice"));
    let clash = format!(
        "{second}:3:15: audience[1]: audience \"prod\" of tenant \"acme\" has a document already"
    );
    for (case, arguments, expected, says) in [
        ("a check", vec!["check", &p], 0, "2 rules"),
        ("two for one", vec!["check", &twice], 1, &*clash),
        (
            "its document",
            vec![
                "explain",
                "--policy",
                &p,
                "--agent=bot",
                "--tenant=acme",
                "--audience=prod",
                "CONNECT",
                "prod.example:443",
            ],
            0,
            "which of those of tenant acme is for tokens whose aud has prod",
        ),
        (
            "another one",
            vec![
                "explain",
                "--policy",
                &p,
                "--agent=bot",
                "--tenant=acme",
                "--audience=x",
                "CONNECT",
                "prod.example:443",
            ],
            1,
            "which of those of tenant acme names no audience",
        ),
        ("cases", vec!["test", &cases], 0, "2 of 2 rules are touched"),
        (
            "a diff",
            vec!["diff", "--fail-on=widening", &p, &q],
            1,
            "acme for batch",
        ),
    ] {
        let (code, out, err) = policy(&arguments, None);
        assert_eq!(code, expected, "{case}: {out}{err}");
        assert!(format!("{out}{err}").contains(says), "{case}: {out}{err}");
    }
}

//! Answers that last end like tunnels do: with the token, the certificate or
//! the policy that let them begin. Whoever else is served notices nothing.

#![cfg(feature = "gateway")]

#[expect(dead_code, reason = "each test uses a part of what is shared")]
mod support;

use std::process::Command;

use bytes::Bytes;
use support::conn::Conn;
use support::gateway::{Gateway, Record, token};
use support::origin::Origin;
use support::{DEADLINE, wait_for};

/// `one` and `two` may ask for these paths; the agent behind is for all.
const POLICY: &str = r#"
version: 1
rules:
  - name: events
    action: allow
    agents: any
    hosts: ["a.test", "openclaw.agent"]
    addresses: ["127.0.0.0/8"]
    ports: any
    methods: [GET, POST]
    paths: ["/events/**"]
"#;

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                       Transfer-Encoding: chunked\r\n\r\n";
const FIRST: &str = "9\r\ndata: 1\n\n\r\n";

/// An origin that answers with this and the first event, and then is silent
/// until it is left.
fn silent(head: &'static str, first: &'static str) -> Origin {
    Origin::serve(move |mut conn, _| {
        if conn.head().is_some() {
            conn.send(head);
            conn.send(first);
            let _ = conn.closes();
        }
    })
}

/// A gateway with a list of what is revoked, in its folder.
fn start(policy: &str, more: &[(&str, &str)]) -> (Gateway, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let list = folder.path().join("revoked.jsonl").display().to_string();
    let mut settings = vec![("identity.revocations.file", &*list)];
    settings.extend_from_slice(more);
    (Gateway::start(policy, &settings), folder)
}

fn revoke(folder: &tempfile::TempDir, agent: &str) {
    let list = folder.path().join("revoked.jsonl");
    let output = Command::new(env!("CARGO_BIN_EXE_agentport"))
        .args(["revoke", "--agent", agent, "--set"])
        .arg(format!("identity.revocations.file={}", list.display()))
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{output:?}");
}

fn ended(gateway: &Gateway, agent: &str) -> Record {
    gateway.record(&format!("the end of {agent}"), |record| {
        record["agent_id"] == agent && record["event"] == "request" && record["method"] != "CONNECT"
    })
}

fn ask(gateway: &Gateway, head: &str, fields: &str) -> Conn {
    let mut client = gateway.connect();
    client.send(format!("{head} HTTP/1.1\r\n{fields}\r\n"));
    client
}

/// What a client sees of an answer that is cut: its end, and no sign that it
/// is whole.
#[track_caller]
fn is_cut(mut client: Conn, case: &str) {
    let rest = client.rest();
    let text = String::from_utf8_lossy(&rest);
    assert!(!text.ends_with("0\r\n\r\n"), "{case}: {text:?}");
}

#[test]
fn an_answer_that_lasts_ends_when_its_agent_is_revoked_and_no_other_does() {
    let chunked = silent(CHUNKED, FIRST);
    let sized = silent(
        "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
        "the beginning",
    );
    let unsized_ = silent("HTTP/1.1 200 OK\r\n\r\n", "the beginning");
    let routes = format!(
        "[{{name: api, to: \"http://a.test:{}\", authorization: gateway}}]",
        chunked.port()
    );
    let behind = silent(CHUNKED, FIRST);
    let upstream = behind.address().to_string();
    let (gateway, folder) = start(
        POLICY,
        &[("routes", &routes), ("agent.upstream", &upstream)],
    );
    let other = "the-other";
    let cases: [(&str, &str, &Origin, &str); 6] = [
        ("absolute", "absolute-form", &chunked, FIRST),
        ("sized", "with a length", &sized, "the beginning"),
        ("unsized", "without a length", &unsized_, "the beginning"),
        ("tunnel", "inside a tunnel", &chunked, FIRST),
        ("route", "by a route", &chunked, FIRST),
        ("agent", "the agent behind", &behind, FIRST),
    ];
    let open = |kind: &str, origin: &Origin, who: &str, first: &str| {
        let (token, port) = (token(who), origin.port());
        let proxy = format!("Host: a.test:{port}\r\nProxy-Authorization: Bearer {token}\r\n");
        let own = format!("Host: gateway\r\nAuthorization: Bearer {token}\r\n");
        let mut client = match kind {
            "route" => ask(&gateway, "GET /routes/api/events/x", &own),
            "agent" => ask(&gateway, "GET /events/x", &own),
            "tunnel" => {
                let mut client = ask(&gateway, &format!("CONNECT a.test:{port}"), &proxy);
                assert_eq!(client.head().expect("an answer").status(), 200);
                client.send(format!(
                    "GET /events/x HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n"
                ));
                client
            }
            _ => ask(
                &gateway,
                &format!("GET http://a.test:{port}/events/x"),
                &proxy,
            ),
        };
        assert_eq!(client.head().expect("a head").status(), 200, "{kind}");
        let seen = client.until(first.as_bytes());
        let seen = String::from_utf8_lossy(&seen);
        assert!(seen.contains(first), "{kind}: {seen:?}");
        client
    };
    let mut others = Vec::new();
    for (kind, case, origin, first) in cases {
        let who = format!("{kind}-agent");
        let client = open(kind, origin, &who, first);
        others.push((case, open(kind, origin, other, first)));
        revoke(&folder, &who);
        is_cut(client, case);
        let record = ended(&gateway, &who);
        assert_eq!(record["reason"], "revoked", "{case}: {record}");
        assert_eq!(record["action_allowed"], true, "{case}: {record}");
        assert_eq!(record["status"], 200, "{case}: {record}");
        assert!(record["bytes_down"].as_u64() > Some(8), "{case}: {record}");
    }
    for (case, mut client) in others {
        assert!(client.is_open(), "{case}");
    }
}

#[test]
fn a_body_that_is_long_under_way_ends_as_well() {
    let (got, has) = std::sync::mpsc::channel();
    let got = std::sync::Mutex::new(got);
    let origin = Origin::serve(move |mut conn, _| {
        conn.head().expect("a head");
        let _ = conn.exactly(100_000);
        got.lock().expect("one").send(()).expect("the test waits");
        let _ = conn.closes();
    });
    let (gateway, folder) = start(POLICY, &[]);
    let mut client = ask(
        &gateway,
        &format!("POST http://a.test:{}/events/x", origin.port()),
        &format!(
            "Host: a.test:{}\r\nContent-Length: 200000\r\nProxy-Authorization: Bearer {}\r\n",
            origin.port(),
            token("bot")
        ),
    );
    client.send(vec![b'x'; 100_000]);
    has.recv_timeout(DEADLINE).expect("it has come through");
    revoke(&folder, "bot");
    is_cut(client, "a body");
    let record = ended(&gateway, "bot");
    assert_eq!(record["reason"], "revoked", "{record}");
    assert!(record["bytes_up"].as_u64() >= Some(100_000), "{record}");
}

#[test]
fn one_stream_of_http2_ends_and_the_others_of_its_connection_do_not() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let origin = Origin::serve(move |mut conn, _| {
        let head = conn.head().expect("a request");
        conn.send(CHUNKED);
        conn.send(FIRST);
        if head.asks().1.ends_with("two") {
            let wait = wait.lock().expect("one");
            wait.recv_timeout(DEADLINE).expect("the test goes on");
            conn.send("9\r\ndata: 2\n\n\r\n0\r\n\r\n");
        } else {
            let _ = conn.closes();
        }
    });
    let (gateway, folder) = start(POLICY, &[]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let talk = async {
        let tcp = tokio::net::TcpStream::connect(gateway.egress())
            .await
            .expect("the gateway listens");
        let (mut sender, connection) = h2::client::handshake(tcp).await.expect("a handshake");
        tokio::spawn(connection);
        let mut bodies = Vec::new();
        for agent in ["one", "two"] {
            let uri = format!("http://a.test:{}/events/{agent}", origin.port());
            let request = http::Request::get(uri)
                .header("proxy-authorization", format!("Bearer {}", token(agent)))
                .body(())
                .expect("a request");
            sender = sender.ready().await.expect("ready");
            let (answer, _) = sender.send_request(request, true).expect("sent");
            let answer = answer.await.expect("an answer");
            assert_eq!(answer.status(), 200);
            let mut body = answer.into_body();
            let first = body.data().await.expect("an event").expect("it is whole");
            assert_eq!(first, Bytes::from_static(b"data: 1\n\n"));
            bodies.push(body);
        }
        revoke(&folder, "one");
        let cut = bodies[0].data().await.expect("an end");
        assert!(cut.is_err_and(|error| error.is_reset()), "it is reset");
        go.send(()).expect("the origin waits");
        let second = bodies[1].data().await.expect("an event");
        assert_eq!(
            second.expect("it is whole"),
            Bytes::from_static(b"data: 2\n\n")
        );
        while let Some(rest) = bodies[1].data().await {
            assert_eq!(rest.expect("its end is a good one"), Bytes::new());
        }
    };
    let talk = async { tokio::time::timeout(DEADLINE, talk).await };
    runtime.block_on(talk).expect("in time");
    assert_eq!(ended(&gateway, "one")["reason"], "revoked");
    assert_eq!(ended(&gateway, "two")["reason"], "ok");
}

#[test]
fn a_new_policy_ends_what_it_refuses_and_leaves_the_rest() {
    const CALLS: &str = r#"
version: 1
rules:
  - name: calls
    action: allow
    agents: any
    hosts: ["a.test"]
    addresses: ["127.0.0.0/8"]
    ports: any
    methods: [POST]
    rpc_methods: [tools.list, tools.call]
"#;
    let origin = silent(CHUNKED, FIRST);
    let (gateway, _folder) = start(CALLS, &[]);
    let call = |agent: &str, method: &str| {
        let body = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\"}}");
        let mut client = ask(
            &gateway,
            &format!("POST http://a.test:{}/rpc", origin.port()),
            &format!(
                "Host: a.test:{}\r\nContent-Length: {}\r\nProxy-Authorization: Bearer {}\r\n",
                origin.port(),
                body.len(),
                token(agent)
            ),
        );
        client.send(body);
        assert_eq!(client.head().expect("a head").status(), 200);
        client.until(FIRST.as_bytes());
        client
    };
    let (mut lists, calls) = (call("lister", "tools.list"), call("caller", "tools.call"));
    // What the body called is judged again, as it was then.
    gateway.change_policy(&CALLS.replace("name: calls", "name: the-same"));
    gateway.change_policy(&CALLS.replace(", tools.call", ""));
    is_cut(calls, "it is not allowed any more");
    let record = ended(&gateway, "caller");
    assert_eq!(record["reason"], "policy_changed", "{record}");
    assert!(lists.is_open(), "it is still allowed");
    assert!(
        gateway
            .records()
            .iter()
            .all(|record| record["agent_id"] != "lister")
    );
}

#[test]
fn what_is_over_leaves_its_connection_to_the_next() {
    let origin = Origin::http(|head, _| {
        let body = match head.asks().1 {
            "/events/chunked" => "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            _ => "Content-Length: 2\r\n\r\nok",
        };
        format!("HTTP/1.1 200 OK\r\n{body}").into_bytes()
    });
    let (gateway, folder) = start(POLICY, &[]);
    let mut client = gateway.connect();
    // From before: what is issued in the next second is not revoked.
    let tokens = [("one", token("one")), ("two", token("two"))];
    for (agent, path, status) in [
        ("one", "chunked", 200),
        ("two", "chunked", 200),
        ("two", "sized", 200),
        ("one", "sized", 403),
        ("two", "chunked", 200),
    ] {
        if status == 403 {
            revoke(&folder, "one");
            wait_for("the revocation", || {
                let metrics = gateway.metrics();
                let in_force = |line: &str| line == "agentport_revocations 1";
                metrics.lines().any(in_force).then_some(())
            });
        }
        let token = tokens.iter().find(|(name, _)| *name == agent);
        client.send(format!(
            "GET http://a.test:{0}/events/{path} HTTP/1.1\r\nHost: a.test:{0}\r\n\
             Proxy-Authorization: Bearer {1}\r\n\r\n",
            origin.port(),
            token.expect("an agent").1
        ));
        assert_eq!(client.response().status, status, "{agent} {path}");
    }
}

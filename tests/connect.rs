//! `agentport connect` beside an agent that has no token: real clients come
//! through it to a real gateway, with the token of the moment.

#![cfg(feature = "gateway")]

#[path = "support/ports.rs"]
mod ports;
#[path = "support/cli.rs"]
#[expect(dead_code, reason = "each file of tests uses a part")]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use agentport::egress::AgentId;
use agentport::identity::{IssueRequest, SigningKey, TokenIssuer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{
    Gateway, Origin, Response, SECRET, agentport, ask, dial, exact, gateway, replace, run, stderr,
    until,
};

const OPEN: &str = r#"
version: 1
rules:
  - name: loopback
    action: allow
    agents: ["bot-01"]
    hosts: ["127.0.0.1"]
    addresses: ["127.0.0.1/32"]
    ports: any
    tls: any
"#;

/// A token of `bot-01` that ends so many seconds from now.
fn token(lifetime: u64) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let key = SigningKey::from_secret(SECRET).expect("a secret");
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let request = IssueRequest {
        agent: AgentId::parse("bot-01").expect("an agent"),
        tenant: None,
        destinations: None,
        lifetime: Duration::from_secs(lifetime.max(1)),
        audience: None,
        jti: NEXT.fetch_add(1, Ordering::SeqCst) as u128,
        actors: Vec::new(),
        scope: None,
        client: None,
    };
    // One that has ended already was issued a while ago.
    let at = if lifetime == 0 { now - 10 } else { now };
    TokenIssuer::new(key, "agentport", "agentport")
        .issue(&request, at)
        .expect("a token")
}

/// A connector that runs, until it is dropped.
struct Connector {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    address: String,
}

impl Connector {
    fn start(arguments: &[&str]) -> Self {
        let mut child = agentport()
            .arg("connect")
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let said: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = BufReader::new(child.stderr.take().expect("a pipe"));
        let sink = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                sink.lock().expect("no one fails holding it").push(line);
            }
        });
        let mut connector = Self {
            child,
            said,
            address: String::new(),
        };
        connector.address = until("the connector serves", || {
            let gone = connector.child.try_wait().expect("its state is known");
            assert!(gone.is_none(), "it has ended: {}", connector.log());
            let log = connector.log();
            let rest = log.split("address=").nth(1)?;
            Some(rest.split_whitespace().next()?.to_owned())
        });
        connector
    }

    fn log(&self) -> String {
        self.said
            .lock()
            .expect("no one fails holding it")
            .join("\n")
    }

    fn tcp(&self) -> SocketAddr {
        let text = self.address.strip_prefix("http://").expect("TCP");
        text.parse().expect("an address")
    }

    fn get(&self, origin: &Origin) -> Response {
        ask(
            self.tcp(),
            get(origin, "/", "Connection: close\r\n").as_bytes(),
        )
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(origin: &Origin, path: &str, fields: &str) -> String {
    format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\n{fields}\r\n",
        origin.url(path),
        origin.address
    )
}

fn beside(gateway: &Gateway, token_file: &Path) -> Connector {
    Connector::start(&[
        "--listen",
        "127.0.0.1:0",
        "--gateway",
        &format!("http://{}", gateway.egress()),
        "--token-file",
        &token_file.display().to_string(),
    ])
}

#[test]
fn clients_without_a_token_pass_and_their_own_credential_counts_for_nothing() {
    let gateway = gateway(OPEN).start();
    let (origin, echo) = (Origin::http(), Origin::echo());
    let file = gateway.path("token");
    std::fs::write(&file, format!("{}\n", token(600))).expect("written");
    let connector = beside(&gateway, &file);

    // Without it nobody passes.
    let refused = ask(
        gateway.egress(),
        get(&origin, "/", "Connection: close\r\n").as_bytes(),
    );
    assert_eq!((refused.status, origin.contacts()), (407, 0));

    // Several requests on one connection, with bodies of both kinds, and one
    // that brings a credential of its own.
    let mut stream = dial(connector.tcp());
    let chunked = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        origin.url("/"),
        origin.address
    );
    let sized = chunked.replace(
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "Content-Length: 3\r\n\r\nabc",
    );
    for body in [chunked, sized] {
        let mut stream = dial(connector.tcp());
        stream.write_all(body.as_bytes()).expect("sent");
        assert_eq!(Response::read(&mut stream, false).status, 200);
    }
    for fields in [
        "",
        "Proxy-Authorization: Basic bm8tb25lOm5vdGhpbmc=\r\n",
        "X-A: b\r\n",
    ] {
        stream
            .write_all(get(&origin, "/", fields).as_bytes())
            .expect("sent");
        assert_eq!(Response::read(&mut stream, false).status, 200, "{fields}");
    }

    // A tunnel, whose halves close one after the other.
    let mut stream = dial(connector.tcp());
    let head = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", echo.address);
    stream.write_all(head.as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut stream, true).status, 200);
    exact(&mut stream, &vec![7; 300_000][..60_000]);
    stream.write_all(b"last words").expect("sent");
    stream.shutdown(Shutdown::Write).expect("open");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the rest");
    assert_eq!(rest, b"last words");

    // A WebSocket.
    let mut stream = dial(connector.tcp());
    let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    stream
        .write_all(get(&origin, "/", fields).as_bytes())
        .expect("sent");
    assert_eq!(Response::read(&mut stream, false).status, 101);
    exact(&mut stream, b"to and fro");

    // What the gateway refuses, the client hears as it is.
    let before = origin.contacts();
    let refused = ask(
        connector.tcp(),
        b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(
        (refused.status, refused.error()),
        (403, "no_rule".to_owned())
    );
    assert_eq!(origin.contacts(), before);
    for record in gateway.records() {
        if record["status"] != 407 {
            assert_eq!(record["agent_id"], "bot-01", "{record}");
        }
    }
    assert!(!connector.log().contains("eyJ"), "a token is in the log");
}

#[test]
fn curl_and_python_pass() {
    let gateway = gateway(OPEN).start();
    let origin = Origin::http();
    let file = gateway.path("token");
    std::fs::write(&file, token(600)).expect("written");
    let connector = beside(&gateway, &file);
    let curl = Command::new("curl")
        .args(["-sS", "--max-time", "20", "-x", &connector.address])
        .args([origin.url("/a"), origin.url("/b")])
        .output()
        .expect("curl is installed");
    assert_eq!(
        String::from_utf8_lossy(&curl.stdout),
        "hello\nhello\n",
        "{curl:?}"
    );
    let program =
        "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=20).read())";
    let python = Command::new("python3")
        .args(["-c", program, &origin.url("/c")])
        .env("http_proxy", &connector.address)
        .env("no_proxy", "")
        .output()
        .expect("python3 is installed");
    assert_eq!(
        String::from_utf8_lossy(&python.stdout),
        "b'hello\\n'\n",
        "{python:?}"
    );
}

#[test]
fn a_token_that_ends_is_replaced_and_one_that_nobody_renews_is_said() {
    let gateway = gateway(OPEN).start();
    let origin = Origin::http();
    let file = gateway.path("token");
    let connector = beside(&gateway, &file);
    // None yet: the answer says which file.
    let refused = connector.get(&origin);
    assert_eq!(
        (refused.status, refused.error()),
        (503, "credential_unavailable".to_owned())
    );
    let reason = refused.json()["reason"].to_string();
    assert!(reason.contains(&file.display().to_string()), "{reason}");
    assert_eq!(
        refused.field("x-agentport-reason"),
        Some("credential_unavailable")
    );
    assert_eq!(origin.contacts(), 0);

    // On one connection, with a token that ends while it is open.
    let (first, second) = (token(3), token(600));
    replace(&file, &first);
    let mut stream = dial(connector.tcp());
    let numbers = || -> Vec<String> {
        let records = gateway.records();
        let numbers = records
            .iter()
            .filter_map(|record| record["token_jti"].as_str());
        numbers.map(str::to_owned).collect()
    };
    let mut used = || {
        let before = numbers().len();
        stream
            .write_all(get(&origin, "/", "").as_bytes())
            .expect("sent");
        assert_eq!(Response::read(&mut stream, false).status, 200);
        until("its record is written", || numbers().get(before).cloned())
    };
    let before = used();
    replace(&file, &second);
    until("the second token is used", || {
        (used() != before).then_some(())
    });

    // A broken file: the last good token serves on.
    replace(&file, "two words");
    until("it is said", || {
        connector
            .log()
            .contains("there is no token in it")
            .then_some(())
    });
    assert_eq!(connector.get(&origin).status, 200);

    // One that has ended, and that nobody renews, is of no use at all.
    let other = beside(&gateway, &gateway.path("other"));
    std::fs::write(gateway.path("other"), token(0)).expect("written");
    let before = origin.contacts();
    let refused = other.get(&origin);
    assert_eq!(refused.status, 503);
    assert!(
        refused.text().contains("nobody has renewed it"),
        "{}",
        refused.text()
    );
    assert_eq!(origin.contacts(), before);
}

/// A token endpoint that gives tokens of two seconds, as long as it is told to.
struct Endpoint {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    works: Arc<AtomicBool>,
}

impl Endpoint {
    fn serve(lifetime: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = Self {
            address: listener.local_addr().expect("an address"),
            asked: Arc::default(),
            works: Arc::new(AtomicBool::new(true)),
        };
        let (asked, works) = (Arc::clone(&endpoint.asked), Arc::clone(&endpoint.works));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                answer(stream, lifetime, &asked, works.load(Ordering::SeqCst));
            }
        });
        endpoint
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no one fails holding it").clone()
    }
}

fn answer(mut stream: TcpStream, lifetime: u64, asked: &Mutex<Vec<String>>, works: bool) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.split("content-length: ").nth(1).expect("a length");
    let length = length.split("\r\n").next().expect("a line");
    let mut body = vec![0; length.parse().expect("a number")];
    reader.read_exact(&mut body).expect("the form");
    let form = String::from_utf8(body).expect("ASCII");
    asked
        .lock()
        .expect("no one fails holding it")
        .push(format!("{head}{form}"));
    let (status, body) = if works {
        let token = token(lifetime);
        let body = format!(
            "{{\"access_token\":\"{token}\",\"token_type\":\"Bearer\",\"expires_in\":{lifetime}}}"
        );
        ("200 OK", body)
    } else {
        let body = r#"{"error":"invalid_client","error_description":"write another key"}"#;
        ("401 Unauthorized", body.to_owned())
    };
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
}

#[test]
fn tokens_of_an_endpoint_are_renewed_before_they_end() {
    let gateway = gateway(OPEN).start();
    let origin = Origin::http();
    let endpoint = Endpoint::serve(4);
    let key = gateway.path("key");
    std::fs::write(&key, "the key\n").expect("written");
    let connector = Connector::start(&[
        "--listen",
        "127.0.0.1:0",
        "--gateway",
        &format!("http://{}", gateway.egress()),
        "--token-url",
        &format!("http://{}/oauth/token", endpoint.address),
        "--service-account",
        "ci:deploy",
        "--key-file",
        &key.display().to_string(),
        "--agent-id",
        "bot-01",
        "--allow",
        "127.0.0.1,a.example",
        "--ttl",
        "1m",
    ]);
    until("three tokens were had", || {
        assert_eq!(connector.get(&origin).status, 200);
        (endpoint.asked().len() >= 3).then_some(())
    });
    let asked = endpoint.asked().remove(0);
    assert!(
        asked.starts_with("POST /oauth/token HTTP/1.1\r\n"),
        "{asked}"
    );
    // `ci%3Adeploy:the%20key`, by base64 (RFC 6749, 2.3.1).
    let basic = "Y2klM0FkZXBsb3k6dGhlJTIwa2V5";
    assert!(
        asked
            .to_lowercase()
            .contains(&format!("authorization: basic {basic}").to_lowercase()),
        "{asked}"
    );
    assert!(
        asked.ends_with("grant_type=client_credentials&agent_id=bot-01&allowed_destinations=127.0.0.1%2Ca.example&ttl=60"),
        "{asked}"
    );
    // It fails: the last token serves to its end, and then the answer says why.
    endpoint.works.store(false, Ordering::SeqCst);
    let refused = until("the last token has ended", || {
        let answer = connector.get(&origin);
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(
        (refused.status, refused.error()),
        (503, "credential_unavailable".to_owned())
    );
    assert!(
        refused.text().contains("invalid_client write another key"),
        "{}",
        refused.text()
    );
    // And works again by itself when the endpoint does.
    endpoint.works.store(true, Ordering::SeqCst);
    until("it passes again", || {
        (connector.get(&origin).status == 200).then_some(())
    });
}

#[test]
fn a_unix_socket_is_its_owners_and_requests_are_read_strictly() {
    let gateway = gateway(OPEN).start();
    let origin = Origin::http();
    let (file, socket) = (gateway.path("token"), gateway.path("agent.sock"));
    std::fs::write(&file, token(600)).expect("written");
    let mut connector = Connector::start(&[
        "--listen",
        &format!("unix:{}", socket.display()),
        "--gateway",
        &format!("http://{}", gateway.egress()),
        "--token-file",
        &file.display().to_string(),
    ]);
    let mode = std::fs::metadata(&socket)
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let through = |request: &str| {
        let mut stream = UnixStream::connect(&socket).expect("it accepts");
        stream.write_all(request.as_bytes()).expect("sent");
        Response::read(&mut stream, false)
    };
    assert_eq!(through(&get(&origin, "/", "")).status, 200);
    let before = origin.contacts();
    for (case, fields) in [
        ("two lengths", "Content-Length: 1\r\nContent-Length: 1\r\n"),
        (
            "length and chunks",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        ),
        ("a folded line", "X-A: b\r\n c\r\n"),
        (
            "two credentials",
            "Proxy-Authorization: a\r\nProxy-Authorization: b\r\n",
        ),
    ] {
        let refused = through(&get(&origin, "/", fields));
        assert_eq!(
            (refused.status, refused.error()),
            (400, "bad_request".to_owned()),
            "{case}"
        );
    }
    assert_eq!(origin.contacts(), before);

    // What is under way ends; the socket is gone.
    let mut stream = UnixStream::connect(&socket).expect("it accepts");
    stream
        .write_all(get(&origin, "/hold", "Connection: close\r\n").as_bytes())
        .expect("sent");
    origin.until_held(1);
    let pid = i32::try_from(connector.child.id()).expect("a number");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it runs");
    until("the socket is gone", || (!socket.exists()).then_some(()));
    origin.release();
    assert_eq!(Response::read(&mut stream, false).status, 200);
    drop(stream);
    let status = until("it ends", || {
        connector.child.try_wait().expect("its state is known")
    });
    assert!(status.success(), "{status}: {}", connector.log());
}

#[test]
fn it_says_what_to_write_and_what_is_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, token(600)).expect("written");
    let file = file.display().to_string();
    for (case, arguments, code, said) in [
        ("no source", &["connect"][..], 1, "--token-file FILE"),
        (
            "not loopback",
            &["connect", "--listen", "0.0.0.0:0", "--token-file", &file],
            1,
            "is not loopback",
        ),
        (
            "a bad gateway",
            &["connect", "--gateway", "gateway:1", "--token-file", &file],
            1,
            "write http://HOST:PORT",
        ),
        (
            "a key in clear",
            &[
                "connect",
                "--token-url",
                "http://192.0.2.1/t",
                "--agent-id",
                "a",
                "--service-account",
                "s",
                "--key-file",
                &file,
            ],
            1,
            "in clear",
        ),
        (
            "no proof",
            &[
                "connect",
                "--token-url",
                "http://127.0.0.1/t",
                "--agent-id",
                "a",
            ],
            1,
            "--service-account ID",
        ),
        (
            "no agent",
            &["connect", "--token-url", "http://127.0.0.1/t"],
            2,
            "--agent-id",
        ),
    ] {
        let output = run(arguments, &[]);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{case}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(said),
            "{case}: {}",
            stderr(&output)
        );
    }
    let connector = Connector::start(&[
        "--listen",
        "127.0.0.1:0",
        "--gateway",
        &format!("http://127.0.0.1:{}", ports::free()),
        "--token-file",
        &file,
    ]);
    let refused = ask(connector.tcp(), b"CONNECT a.example:443 HTTP/1.1\r\n\r\n");
    assert_eq!(
        (refused.status, refused.error()),
        (502, "gateway_unreachable".to_owned())
    );
}

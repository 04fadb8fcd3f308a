//! The real binary as a user starts it, and what stands around it: an origin
//! that counts who comes, and clients that speak from plain sockets. What a
//! test expects stands in the test.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use agentport::egress::AgentId;
use agentport::identity::{IssueRequest, SigningKey, TokenIssuer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The shared secret of every gateway here.
pub(crate) const SECRET: &str = "6b1f0c9e4a7d2835f1e0d9c8b7a69584736251403f2e1d0c9b8a79685746352a";

/// Every port of 127.0.0.1, with any bytes in tunnels, for everybody.
pub(crate) const OPEN: &str = r#"
version: 1
rules:
  - name: loopback
    action: allow
    agents: any
    hosts: ["127.0.0.1"]
    addresses: ["127.0.0.1/32"]
    ports: any
    tls: any
"#;

/// How long anything may take before a test gives up on it. Nothing is
/// concluded from how long it did take.
pub(crate) const LONGEST: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONGEST;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The binary, with an environment of its own.
pub(crate) fn agentport() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agentport"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
#[track_caller]
pub(crate) fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = agentport();
    command.args(arguments).envs(environment.iter().copied());
    command.output().expect("the binary runs")
}

/// What it printed on standard output.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// What it said on standard error.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// A token of the shared secret, as `issue-token` gives it.
pub(crate) fn token(agent: &str) -> String {
    let key = SigningKey::from_secret(SECRET).expect("a secret");
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    let request = IssueRequest {
        agent: AgentId::parse(agent).expect("an agent"),
        tenant: None,
        destinations: None,
        lifetime: Duration::from_secs(3600),
        audience: None,
        jti: now.as_nanos(),
        actors: Vec::new(),
        scope: None,
        client: None,
    };
    TokenIssuer::new(key, "agentport", "agentport")
        .issue(&request, now.as_secs())
        .expect("a token")
}

/// How a gateway is to be started.
pub(crate) struct Start {
    pub(crate) folder: tempfile::TempDir,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    stdout: Stdio,
}

/// A gateway that runs, until it is dropped.
pub(crate) struct Gateway {
    child: Child,
    folder: tempfile::TempDir,
    /// Where agents come in; nowhere by TCP where only a socket was asked for.
    egress: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    said: Arc<Mutex<Vec<String>>>,
}

/// A gateway with this policy, on free ports, writing records to a file.
pub(crate) fn gateway(policy: &str) -> Start {
    let folder = tempfile::tempdir().expect("a folder");
    let policy_file = folder.path().join("policy.yaml");
    std::fs::write(&policy_file, policy).expect("the policy is written");
    let shown = |name: &str| folder.path().join(name).display().to_string();
    let settings = [
        ("listen.egress", "127.0.0.1:0".to_owned()),
        ("listen.admin", "127.0.0.1:0".to_owned()),
        ("policy", shown("policy.yaml")),
        ("audit.path", shown("audit.jsonl")),
        ("log.format", "json".to_owned()),
        ("threads", "2".to_owned()),
    ];
    Start {
        settings: settings.map(|(key, value)| (key.to_owned(), value)).into(),
        environment: vec![("AGENTPORT_JWKS_SECRET".to_owned(), SECRET.to_owned())],
        stdout: Stdio::null(),
        folder,
    }
}

impl Start {
    /// Sets one key, in place of what stood there.
    pub(crate) fn set(mut self, key: &str, value: impl Into<String>) -> Self {
        self.settings.retain(|(known, _)| known != key);
        self.settings.push((key.to_owned(), value.into()));
        self
    }

    /// Leaves a key at its default.
    pub(crate) fn unset(mut self, key: &str) -> Self {
        self.settings.retain(|(known, _)| known != key);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self
    }

    /// Standard output is a pipe that the test reads.
    pub(crate) fn piped(mut self) -> Self {
        self.stdout = Stdio::piped();
        self
    }

    /// A file in the gateway's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = agentport();
        command.arg("serve");
        for (key, value) in &self.settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        command.envs(self.environment.iter().cloned());
        command.current_dir(self.folder.path());
        command
    }

    /// Runs it to its end, which is to come by itself.
    pub(crate) fn fails(self) -> Output {
        let mut command = self.command();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let ended = {
            let deadline = Instant::now() + LONGEST;
            loop {
                match child.try_wait().expect("its state is known") {
                    Some(_) => break true,
                    None if Instant::now() >= deadline => break false,
                    None => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        };
        if !ended {
            child.kill().expect("it is stopped");
        }
        let output = child.wait_with_output().expect("its output is read");
        assert!(ended, "it serves, and should not: {}", stderr(&output));
        output
    }

    /// Starts it, and waits until it serves.
    #[track_caller]
    pub(crate) fn start(self) -> Gateway {
        let mut command = self.command();
        let mut child = command
            .stdout(self.stdout)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().expect("a pipe"));
        let sink = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                sink.lock().expect("no one fails holding it").push(line);
            }
        });
        let mut gateway = Gateway {
            child,
            folder: self.folder,
            egress: None,
            admin: None,
            said,
        };
        until("the gateway serves", || {
            let gone = gateway.child.try_wait().expect("its state is known");
            assert!(gone.is_none(), "it has ended:\n{}", gateway.log());
            gateway.said("serving")
        });
        let address = |line: Value| line["address"].as_str().and_then(|text| text.parse().ok());
        gateway.egress = gateway.said("egress listener").and_then(address);
        gateway.admin = gateway.said("admin listener").and_then(address);
        gateway
    }
}

impl Gateway {
    /// Where agents come in.
    pub(crate) fn egress(&self) -> SocketAddr {
        self.egress.expect("it listens on TCP")
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.expect("it has an admin listener")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Everything it has said on standard error.
    pub(crate) fn log(&self) -> String {
        self.said
            .lock()
            .expect("no one fails holding it")
            .join("\n")
    }

    /// The first line of its log with this message.
    pub(crate) fn said(&self, message: &str) -> Option<Value> {
        let said = self.said.lock().expect("no one fails holding it");
        said.iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["message"] == message)
    }

    /// Its standard output, where it was piped.
    pub(crate) fn stdout(&mut self) -> std::process::ChildStdout {
        self.child.stdout.take().expect("a pipe that nobody took")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a number"));
        kill(pid, signal).expect("it runs");
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn ends(&mut self) -> ExitStatus {
        until("the gateway ends", || {
            self.child.try_wait().expect("its state is known")
        })
    }

    /// Asks it to end, and gives its records when it has.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> Vec<Value> {
        self.signal(Signal::SIGTERM);
        let status = self.ends();
        assert_eq!(status.code(), Some(0), "{}", self.log());
        self.records()
    }

    /// The records so far.
    pub(crate) fn records(&self) -> Vec<Value> {
        records_of(&self.path("audit.jsonl"))
    }

    /// The first record that is like this, once it is there.
    #[track_caller]
    pub(crate) fn record(&self, what: &str, like: impl Fn(&Value) -> bool) -> Value {
        until(what, || {
            self.records().into_iter().find(|record| like(record))
        })
    }

    /// A page of the admin listener.
    pub(crate) fn page(&self, path: &str) -> Response {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        ask(self.admin(), request.as_bytes())
    }

    /// `/ready`, as JSON.
    pub(crate) fn ready(&self) -> Value {
        self.page("/ready").json()
    }

    /// One figure: the value of the first sample that begins so.
    pub(crate) fn figure(&self, sample: &str) -> Option<f64> {
        let page = self.page("/metrics").text();
        let line = page
            .lines()
            .find(|line| line.starts_with(sample))?
            .to_owned();
        let value = line.split(" # ").next()?.rsplit(' ').next()?;
        value.parse().ok()
    }

    /// A GET by absolute-form, as this agent.
    #[track_caller]
    pub(crate) fn get(&self, agent: &str, url: &str) -> Response {
        ask(self.egress(), get_request(agent, url).as_bytes())
    }

    /// A CONNECT as this agent: the stream where it is a tunnel.
    #[track_caller]
    pub(crate) fn tunnel(&self, agent: &str, authority: &str) -> Result<TcpStream, Response> {
        let mut stream = dial(self.egress());
        let token = token(agent);
        let head = format!(
            "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer {token}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let response = Response::read(&mut stream, true);
        if response.status == 200 {
            Ok(stream)
        } else {
            Err(response)
        }
    }

    /// Puts a whole new policy in place of the old one, as careful editors do.
    pub(crate) fn replace_policy(&self, text: &str) {
        replace(&self.path("policy.yaml"), text);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Where it has ended already there is nothing to stop.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a file under another name and renames it into place.
pub(crate) fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).expect("written");
    std::fs::rename(&beside, path).expect("renamed");
}

/// The records in a file; a line that is being written is passed over.
pub(crate) fn records_of(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).expect("a record is one line of JSON"))
        .collect()
}

/// The head of a GET by absolute-form.
pub(crate) fn get_request(agent: &str, url: &str) -> String {
    let host = url
        .trim_start_matches("http://")
        .split('/')
        .next()
        .expect("a host");
    format!(
        "GET {url} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Bearer {}\r\nConnection: close\r\n\r\n",
        token(agent)
    )
}

/// A connection whose reads give up in time.
#[track_caller]
pub(crate) fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, LONGEST).expect("it accepts");
    stream.set_read_timeout(Some(LONGEST)).expect("a timeout");
    stream.set_write_timeout(Some(LONGEST)).expect("a timeout");
    stream
}

/// One request on a connection of its own.
#[track_caller]
pub(crate) fn ask(address: SocketAddr, request: &[u8]) -> Response {
    let mut stream = dial(address);
    stream.write_all(request).expect("sent");
    Response::read(&mut stream, false)
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// Reads one answer. To a CONNECT, a 200 has no body.
    #[track_caller]
    pub(crate) fn read(stream: &mut impl Read, to_connect: bool) -> Self {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                other => panic!(
                    "no answer ({other:?}), only {:?}",
                    String::from_utf8_lossy(&head)
                ),
            }
        }
        let head = String::from_utf8(head).expect("a head is ASCII");
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let mut response = Self {
            status: status.expect("an answer has a status"),
            head,
            body: Vec::new(),
        };
        if to_connect && response.status == 200 || response.status < 200 {
            return response;
        }
        if let Some(length) = response.field("content-length") {
            let length: usize = length.parse().expect("a length");
            response.body = vec![0; length];
            stream
                .read_exact(&mut response.body)
                .expect("the whole body");
        } else if response.field("transfer-encoding").is_some() {
            response.body = read_chunked(stream);
        } else {
            stream.read_to_end(&mut response.body).expect("the body");
        }
        response
    }

    /// A header field's value.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    /// The word in a refusal's `error`.
    #[track_caller]
    pub(crate) fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_default().to_owned()
    }
}

fn read_chunked(stream: &mut impl Read) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            stream.read_exact(&mut byte).expect("a chunk's size");
            line.push(byte[0]);
        }
        let size = String::from_utf8(line).expect("ASCII");
        let size = usize::from_str_radix(size.trim(), 16).expect("a size");
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).expect("a chunk");
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

/// An origin on a free loopback port, that counts who connects.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    contacts: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    doors: Arc<Doors>,
    held: Arc<Mutex<Vec<TcpStream>>>,
}

/// Where requests for `/hold` wait.
#[derive(Default)]
struct Doors {
    open: Mutex<bool>,
    waiting: AtomicUsize,
    changed: Condvar,
}

/// What an origin does with a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// HTTP/1.1: `hello`, after a while for `/hold`; and WebSocket's upgrade,
    /// after which it gives back every byte.
    Http,
    /// Gives back every byte.
    Echo,
    /// Keeps the connection, and does nothing with it.
    Hold,
}

impl Origin {
    pub(crate) fn http() -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), 0, Manner::Http)
    }

    pub(crate) fn echo() -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), 0, Manner::Echo)
    }

    pub(crate) fn hold() -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), 0, Manner::Hold)
    }

    /// At this address; the port may have to be another origin's.
    pub(crate) fn at(address: IpAddr, port: u16, manner: Manner) -> Self {
        let listener = TcpListener::bind((address, port)).expect("a free port");
        let origin = Self {
            address: listener.local_addr().expect("an address"),
            contacts: Arc::default(),
            requests: Arc::default(),
            doors: Arc::default(),
            held: Arc::default(),
        };
        let (contacts, requests, doors, held) = (
            Arc::clone(&origin.contacts),
            Arc::clone(&origin.requests),
            Arc::clone(&origin.doors),
            Arc::clone(&origin.held),
        );
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                contacts.fetch_add(1, Ordering::SeqCst);
                if manner == Manner::Hold {
                    held.lock().expect("no one fails holding it").push(stream);
                    continue;
                }
                let (requests, doors) = (Arc::clone(&requests), Arc::clone(&doors));
                std::thread::spawn(move || match manner {
                    Manner::Http => serve(stream, &requests, &doors),
                    Manner::Echo | Manner::Hold => echo(stream),
                });
            }
        });
        origin
    }

    /// How often somebody has connected or asked so far. A request may come on
    /// a connection that was there before, so that both count.
    pub(crate) fn contacts(&self) -> usize {
        self.contacts.load(Ordering::SeqCst) + self.requests()
    }

    /// How many requests have come so far.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Waits until so many requests for `/hold` wait.
    #[track_caller]
    pub(crate) fn until_held(&self, count: usize) {
        until("the origin holds the requests", || {
            (self.doors.waiting.load(Ordering::SeqCst) >= count).then_some(())
        });
    }

    /// Lets what waits at `/hold` go.
    pub(crate) fn release(&self) {
        *self.doors.open.lock().expect("no one fails holding it") = true;
        self.doors.changed.notify_all();
    }
}

fn serve(stream: TcpStream, requests: &AtomicUsize, doors: &Doors) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut writer = stream;
    loop {
        let mut head = String::new();
        loop {
            let before = head.len();
            match reader.read_line(&mut head) {
                Ok(0) | Err(_) => return,
                Ok(_) if head[before..] == *"\r\n" => break,
                Ok(_) => {}
            }
        }
        requests.fetch_add(1, Ordering::SeqCst);
        let lower = head.to_ascii_lowercase();
        if lower.contains("upgrade: websocket") {
            let accept = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
            if writer.write_all(accept.as_bytes()).is_err() {
                return;
            }
            return give_back(reader, writer);
        }
        if head.contains(" /hold") {
            doors.waiting.fetch_add(1, Ordering::SeqCst);
            let open = doors.open.lock().expect("no one fails holding it");
            drop(doors.changed.wait_while(open, |open| !*open));
        }
        let answer =
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn echo(stream: TcpStream) {
    let reader = stream.try_clone().expect("a second handle");
    give_back(reader, stream);
}

fn give_back(mut from: impl Read, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// Sends bytes through a stream that gives them back, and checks every one.
#[track_caller]
pub(crate) fn exact(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("sent");
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).expect("given back");
    assert!(back == bytes, "other bytes came back");
}

/// Waits until a stream ends, by a close or a reset.
#[track_caller]
pub(crate) fn closed(stream: &mut TcpStream) {
    let mut sink = [0; 4096];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("the stream is still open: {error}"),
        }
    }
}

/// What a name server says of a name.
#[derive(Clone)]
pub(crate) enum Says {
    /// These addresses, good for one second.
    Addresses(Vec<IpAddr>),
    /// No such name.
    Nothing,
    /// Not a word.
    Silence,
}

/// A DNS server (RFC 1035) that answers as it was told, and remembers for which
/// names it was asked.
pub(crate) struct Names {
    pub(crate) address: SocketAddr,
    known: Arc<Mutex<HashMap<String, Says>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Names {
    pub(crate) fn serve() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let names = Self {
            address: socket.local_addr().expect("an address"),
            known: Arc::default(),
            asked: Arc::default(),
        };
        let (known, asked) = (Arc::clone(&names.known), Arc::clone(&names.asked));
        std::thread::spawn(move || {
            let mut query = [0; 1500];
            while let Ok((count, from)) = socket.recv_from(&mut query) {
                let (name, kind, end) = question(&query[..count]);
                asked
                    .lock()
                    .expect("no one fails holding it")
                    .push(name.clone());
                let says = known
                    .lock()
                    .expect("no one fails holding it")
                    .get(&name)
                    .cloned();
                if let Some(answer) = answer(&query[..end], kind, says.unwrap_or(Says::Nothing)) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        names
    }

    /// What is said of a name from now on.
    pub(crate) fn say(&self, name: &str, says: Says) {
        let mut known = self.known.lock().expect("no one fails holding it");
        known.insert(name.to_owned(), says);
    }

    /// The same, for addresses.
    pub(crate) fn at(&self, name: &str, addresses: &[&str]) {
        let parsed = addresses
            .iter()
            .map(|address| address.parse().expect("an address"));
        self.say(name, Says::Addresses(parsed.collect()));
    }

    /// Whether anybody has asked for a name.
    pub(crate) fn was_asked(&self, name: &str) -> bool {
        let asked = self.asked.lock().expect("no one fails holding it");
        asked.iter().any(|known| known == name)
    }
}

/// The name, the type, and where the question ends.
fn question(query: &[u8]) -> (String, u16, usize) {
    let mut labels = Vec::new();
    let mut at = 12;
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_ascii_lowercase());
        at = end;
    }
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    (labels.join("."), kind, at + 5)
}

fn answer(query: &[u8], kind: u16, says: Says) -> Option<Vec<u8>> {
    let (code, addresses) = match says {
        Says::Addresses(addresses) => (0, addresses),
        Says::Nothing => (3, Vec::new()),
        Says::Silence => return None,
    };
    let data: Vec<Vec<u8>> = addresses
        .into_iter()
        .filter_map(|address| match (address, kind) {
            (IpAddr::V4(address), 1) => Some(address.octets().to_vec()),
            (IpAddr::V6(address), 28) => Some(address.octets().to_vec()),
            _ => None,
        })
        .collect();
    let count = u8::try_from(data.len()).expect("a few");
    let mut out = query[..2].to_vec();
    out.extend([0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
    out.extend(&query[12..]);
    for data in data {
        // The name of the question, its type, the Internet, one second.
        out.extend([
            0xc0,
            12,
            0,
            u8::try_from(kind).expect("A or AAAA"),
            0,
            1,
            0,
            0,
            0,
            1,
            0,
        ]);
        out.push(u8::try_from(data.len()).expect("4 or 16"));
        out.extend(data);
    }
    Some(out)
}

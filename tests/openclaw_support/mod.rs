//! The real agent, a gateway that writes down what it is asked, and a client.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Long enough for a busy machine; nothing waits for it unless it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The credential that must be seen by the gateway and by nobody else.
pub(crate) const TOKEN: &str =
    "eyJhbGciOiJFZERTQSJ9.eyJhZ2VudF9pZCI6ImJvdC0wMSJ9.c2VjcmV0LXNpZ25hdHVyZQ";

/// A directory with a manifest in `skills/` and room beside it.
pub(crate) struct Home(tempfile::TempDir);

impl Home {
    pub(crate) fn new(skills: Value) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("skills")).expect("a directory");
        let home = Self(dir);
        home.write(
            "skills/manifest.json",
            &json!({ "skills": skills }).to_string(),
        );
        home
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
    }

    /// `openclaw run` with nothing of this process's environment.
    pub(crate) fn run(&self) -> Command {
        let mut command = openclaw();
        command
            .args(["run", "--manifest"])
            .arg(self.path("skills/manifest.json"))
            .env("OPENCLAW_LISTEN", "127.0.0.1:0");
        command
    }

    /// The same, with a gateway and a token.
    pub(crate) fn run_with(&self, gateway: &Gateway) -> Command {
        let mut command = self.run();
        command
            .env("AGENTPORT_URL", format!("http://{}", gateway.address))
            .env("AGENTPORT_TOKEN", TOKEN);
        command
    }
}

pub(crate) fn openclaw() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_openclaw"));
    command.env_clear();
    command
}

pub(crate) fn http_skill(id: &str, url: &str) -> Value {
    json!({"id": id, "version": "1.0.0", "runtime": {"type": "http", "url": url}})
}

pub(crate) fn python_skill(id: &str, more: Value) -> Value {
    let mut runtime = json!({"type": "process", "command": ["python3", "skill.py"]});
    for (name, value) in more.as_object().expect("an object") {
        runtime[name] = value.clone();
    }
    json!({"id": id, "version": "1.0.0", "runtime": runtime})
}

/// A running agent, killed with the test.
pub(crate) struct Agent {
    child: Child,
    pub(crate) address: String,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
}

impl Agent {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let log = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let sink = log.clone();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                sink.0.lock().expect("unpoisoned").push(line);
                sink.1.notify_all();
            }
        });
        let mut agent = Self {
            child,
            address: String::new(),
            log,
        };
        let listening = agent.await_log(|line| line["event"] == "listening");
        agent.address = listening["address"].as_str().expect("a string").to_owned();
        agent
    }

    /// The first log record that fits; each line must be JSON.
    pub(crate) fn await_log(&self, fits: impl Fn(&Value) -> bool) -> Value {
        let (lines, changed) = &*self.log;
        let mut found = None;
        let lines = lines.lock().expect("unpoisoned");
        let waited = changed
            .wait_timeout_while(lines, PATIENCE, |lines| {
                found = lines
                    .iter()
                    .map(|line| serde_json::from_str(line).expect("a line of JSON"))
                    .find(&fits);
                found.is_none()
            })
            .expect("unpoisoned");
        found.unwrap_or_else(|| panic!("no such record in {:#?}", *waited.0))
    }

    pub(crate) fn log(&self) -> String {
        self.log.0.lock().expect("unpoisoned").join("\n")
    }

    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        let stream = TcpStream::connect(&self.address).expect("the agent listens");
        exchange(stream, method, path, headers, body)
    }

    pub(crate) fn post(&self, path: &str, body: Value) -> Reply {
        let json = [("host", "localhost"), ("content-type", "application/json")];
        self.request("POST", path, &json, &body.to_string())
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[("host", "localhost")], "")
    }

    pub(crate) fn invoke(&self, skill: &str, input: Value) -> Reply {
        self.post(
            &format!("/v1/skills/{skill}/invoke"),
            json!({ "input": input }),
        )
    }

    pub(crate) fn memory(&self, agent: &str) -> Vec<Value> {
        let reply = self.get(&format!("/v1/agents/{agent}/memory"));
        reply.body["entries"].as_array().expect("a list").clone()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn terminate(&self) {
        let id = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(id), Signal::SIGTERM).expect("it runs");
    }

    pub(crate) fn wait(mut self) -> ExitStatus {
        self.child.wait().expect("it ends")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A run that is expected to refuse to start.
pub(crate) fn output(mut command: Command) -> Output {
    command.output().expect("it starts")
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) text: String,
    pub(crate) body: Value,
}

pub(crate) fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(head.as_bytes()).expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, text) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status");
    Reply {
        status: status.parse().expect("a number"),
        head: head.to_ascii_lowercase(),
        text: text.to_owned(),
        body: serde_json::from_str(text).unwrap_or(Value::Null),
    }
}

/// What the gateway was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) headers: HashMap<String, String>,
}

/// What it does about it.
pub(crate) enum Answer {
    /// Itself, in clear text.
    Say(u16, &'static str, Value),
    /// A tunnel to there, whatever was asked for.
    Tunnel(SocketAddr),
    /// Nothing until the sender speaks, then 200 and this.
    Wait(Receiver<()>, Value),
}

/// A forward proxy that does as the test says.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    seen: Mutex<Receiver<()>>,
}

impl Gateway {
    pub(crate) fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (saw, seen) = channel();
        let (book, answer) = (asked.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (book, answer, saw) = (book.clone(), answer.clone(), saw.clone());
                std::thread::spawn(move || serve(stream, &book, &*answer, &saw));
            }
        });
        Self {
            address,
            asked,
            seen: Mutex::new(seen),
        }
    }

    /// One that refuses everything, as AgentPort does.
    pub(crate) fn refusing(reason: &'static str) -> Self {
        Self::start(move |_| {
            let body = json!({"error": "refused", "reason": reason, "rule": "deny-all",
                "destination": "x", "hint": "ask your operator", "request_id": "r-1"});
            Answer::Say(403, reason, body)
        })
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("unpoisoned").clone()
    }

    /// Until one more request has come.
    pub(crate) fn await_request(&self) {
        let seen = self.seen.lock().expect("unpoisoned");
        seen.recv_timeout(PATIENCE).expect("a request");
    }
}

fn serve(
    mut stream: TcpStream,
    book: &Mutex<Vec<Asked>>,
    answer: &dyn Fn(&Asked) -> Answer,
    saw: &Sender<()>,
) {
    while let Some(asked) = read_head(&mut stream) {
        book.lock().expect("unpoisoned").push(asked.clone());
        saw.send(()).ok();
        let (status, reason, body) = match answer(&asked) {
            Answer::Say(status, reason, body) => (status, reason, body),
            Answer::Wait(go, body) => {
                go.recv().ok();
                (200, "", body)
            }
            Answer::Tunnel(to) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("sent");
                return splice(&stream, &TcpStream::connect(to).expect("the origin"));
            }
        };
        let body = body.to_string();
        let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
        if status >= 400 {
            head.push_str(&format!("x-agentport-reason: {reason}\r\n"));
        }
        if stream
            .write_all(format!("{head}\r\n{body}").as_bytes())
            .is_err()
        {
            return;
        }
    }
}

fn read_head(stream: &mut TcpStream) -> Option<Asked> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("ASCII");
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next().expect("a request line").to_owned();
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    if let Some(length) = headers.get("content-length") {
        let mut body = vec![0; length.parse().expect("a number")];
        stream.read_exact(&mut body).ok()?;
    }
    Some(Asked { line, headers })
}

fn splice(one: &TcpStream, other: &TcpStream) {
    let copy = |from: &TcpStream, to: &TcpStream| {
        let (mut from, mut to) = (from, to);
        std::io::copy(&mut from, &mut to).ok();
        to.shutdown(Shutdown::Write).ok();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| copy(one, other));
        copy(other, one);
    });
}

/// A listener that nobody may contact.
pub(crate) struct Untouched(TcpListener);

impl Untouched {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        Self(listener)
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.local_addr().expect("bound").port()
    }
}

impl Drop for Untouched {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.0.accept().is_err(), "something connected directly");
        }
    }
}

/// Whether a process of this machine has `marker` among its arguments.
pub(crate) fn process_runs(marker: &str) -> bool {
    std::fs::read_dir("/proc")
        .expect("procfs")
        .filter_map(Result::ok)
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .any(|line| String::from_utf8_lossy(&line).contains(marker))
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

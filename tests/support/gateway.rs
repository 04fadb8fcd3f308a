//! The real gateway, as a process of its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use agentport::egress::{AgentId, Destination, TenantId};
use agentport::identity::{IssueRequest, SigningKey, TokenIssuer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::conn::{Conn, Response};
use super::names::Names;
use super::wait_for;

/// The secret that every gateway here trusts, and every token is signed with.
pub(crate) const SECRET: &str = "6b1f0a5e9c3d47728f10b2c4d6e8fa0c1e3a5b7c9d2f4061823a4b5c6d7e8f90";

/// Every agent may go to `*.test`, which is this machine.
pub(crate) const LOOPBACK_POLICY: &str = r#"
version: 1
rules:
  - name: test-names
    action: allow
    agents: any
    hosts: ["*.test"]
    addresses: ["127.0.0.0/8", "::1/128"]
    ports: any
"#;

/// One line of the audit log.
pub(crate) type Record = serde_json::Value;

/// A gateway that runs. It ends with this value.
pub(crate) struct Gateway {
    child: Child,
    egress: SocketAddr,
    admin: SocketAddr,
    folder: tempfile::TempDir,
    said: Arc<Mutex<Vec<serde_json::Value>>>,
    names: Names,
}

impl Gateway {
    /// Starts one with this policy and these settings, `("timeouts.header",
    /// "1s")`, over those that every test needs, and waits until it serves.
    pub(crate) fn start(policy: &str, settings: &[(&str, &str)]) -> Self {
        Self::start_with_names(policy, settings, Names::serve())
    }

    /// One that lets every agent go to this machine.
    pub(crate) fn open() -> Self {
        Self::start(LOOPBACK_POLICY, &[])
    }

    /// The same as [`Gateway::start`], with names that the test controls.
    pub(crate) fn start_with_names(policy: &str, settings: &[(&str, &str)], names: Names) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("policy.yaml"), policy).expect("the policy is written");
        let mut set = BTreeMap::from([
            ("listen.egress", "127.0.0.1:0".to_owned()),
            ("listen.admin", "127.0.0.1:0".to_owned()),
            ("policy", path("policy.yaml")),
            ("audit.path", path("audit.jsonl")),
            ("log.format", "json".to_owned()),
            ("resolver.servers", names.address().to_string()),
            ("threads", "2".to_owned()),
            ("timeouts.drain", "5s".to_owned()),
        ]);
        set.extend(
            settings
                .iter()
                .map(|(key, value)| (*key, (*value).to_owned())),
        );
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentport"));
        command
            .arg("serve")
            .env_clear()
            .env("AGENTPORT_JWKS_SECRET", SECRET)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        for (key, value) in &set {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        let mut child = command.spawn().expect("the gateway starts");
        let said = Arc::new(Mutex::new(Vec::new()));
        follow(&mut child, &said);
        let mut gateway = Self {
            child,
            egress: ([127, 0, 0, 1], 0).into(),
            admin: ([127, 0, 0, 1], 0).into(),
            folder,
            said,
            names,
        };
        gateway.wait_until_serving();
        gateway
    }

    fn wait_until_serving(&mut self) {
        let serving = wait_for("the gateway to serve", || {
            if self.child.try_wait().expect("a child").is_some() {
                return Some(false);
            }
            self.lines("serving").first().map(|_| true)
        });
        assert!(serving, "the gateway ended: {:#?}", self.said());
        let address = |message| {
            let line = self.lines(message).into_iter().next().expect("a listener");
            let text = line["address"].as_str().expect("an address").to_owned();
            text.parse().expect("an address")
        };
        let (egress, admin) = (address("egress listener"), address("admin listener"));
        self.egress = egress;
        self.admin = admin;
    }

    /// Where agents come in.
    pub(crate) fn egress(&self) -> SocketAddr {
        self.egress
    }

    /// Where metrics and health are.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The names that it resolves.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// A new connection to the egress listener.
    pub(crate) fn connect(&self) -> Conn {
        Conn::to(self.egress)
    }

    /// The folder with the policy and the audit log.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The policy file.
    pub(crate) fn policy_file(&self) -> PathBuf {
        self.folder.path().join("policy.yaml")
    }

    /// Puts another policy in force by an atomic rename, and waits until the
    /// gateway says that it is.
    pub(crate) fn change_policy(&self, text: &str) {
        let before = self.policy_version();
        let new = self.folder.path().join("policy.new");
        std::fs::write(&new, text).expect("the policy is written");
        std::fs::rename(&new, self.policy_file()).expect("the policy is renamed");
        wait_for("the new policy", || {
            (self.policy_version() != before).then_some(())
        });
    }

    /// The digest of the policy in force, as the metrics tell it.
    pub(crate) fn policy_version(&self) -> String {
        let metrics = self.metrics();
        let version = metrics
            .lines()
            .find(|line| line.starts_with("agentport_policy_info"));
        version.expect("the policy is among the metrics").to_owned()
    }

    /// What `/metrics` says.
    pub(crate) fn metrics(&self) -> String {
        String::from_utf8(self.ask_admin("/metrics").body).expect("text")
    }

    /// A GET to the admin listener.
    pub(crate) fn ask_admin(&self, path: &str) -> Response {
        let mut conn = Conn::to(self.admin);
        conn.send(format!(
            "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n"
        ));
        conn.response()
    }

    /// All that it has said on standard error.
    pub(crate) fn said(&self) -> Vec<serde_json::Value> {
        self.said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The lines with this message.
    pub(crate) fn lines(&self, message: &str) -> Vec<serde_json::Value> {
        let mut lines = self.said();
        lines.retain(|line| line["message"] == message);
        lines
    }

    /// The audit records that are written.
    pub(crate) fn records(&self) -> Vec<Record> {
        read_records(&self.folder.path().join("audit.jsonl"))
    }

    /// Waits for the first record that fits.
    pub(crate) fn record(&self, what: &str, fits: impl Fn(&Record) -> bool) -> Record {
        wait_for(&format!("a record: {what}"), || {
            self.records().into_iter().find(|record| fits(record))
        })
    }

    /// Waits for the record of the request with this number.
    pub(crate) fn record_of(&self, response: &Response) -> Record {
        let id = response.field("x-request-id").expect("a request id");
        self.record(id, |record| record["request_id"] == id)
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(id), signal).expect("the gateway runs");
    }

    /// The number of its process.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait_for("the gateway to end", || {
            self.child.try_wait().expect("a child")
        })
    }

    /// Ends it by SIGTERM and gives every record it has written, so that what
    /// is counted in them is final.
    pub(crate) fn stop(mut self) -> Vec<Record> {
        self.signal(Signal::SIGTERM);
        let status = self.ended();
        assert!(status.success(), "{status}: {:#?}", self.said());
        self.records()
    }
}

impl Drop for Gateway {
    #[expect(clippy::print_stderr, reason = "shown only where the test has failed")]
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let said = self.said();
            let last = said.len().saturating_sub(20);
            for line in &said[last..] {
                eprintln!("gateway: {line}");
            }
            for record in self.records().iter().rev().take(20).rev() {
                eprintln!("record: {record}");
            }
        }
    }
}

fn follow(child: &mut Child, said: &Arc<Mutex<Vec<serde_json::Value>>>) {
    let stderr = child.stderr.take().expect("standard error is piped");
    let said = Arc::clone(said);
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            // What is no JSON, such as an error before logging starts, is kept
            // as it is.
            let line = serde_json::from_str(&line).unwrap_or(serde_json::Value::String(line));
            said.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        }
    });
}

/// The whole records of a log; a last line that is still being written is left
/// for later.
pub(crate) fn read_records(path: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).expect("a record is JSON"))
        .collect()
}

/// A token for this agent that every gateway here accepts for an hour.
pub(crate) fn token(agent: &str) -> String {
    token_with(agent, None, None)
}

/// The same with a tenant, and with destinations that bound it.
pub(crate) fn token_with(agent: &str, tenant: Option<&str>, only: Option<&[&str]>) -> String {
    let key = SigningKey::from_secret(SECRET).expect("a key");
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    let destinations = only.map(|list| {
        list.iter()
            .map(|raw| Destination::parse(raw).expect("a destination"))
            .collect()
    });
    let request = IssueRequest {
        agent: AgentId::parse(agent).expect("an agent"),
        tenant: tenant.map(|tenant| TenantId::parse(tenant).expect("a tenant")),
        destinations,
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

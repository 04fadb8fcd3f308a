//! OpenClaw, the bundled agent: it runs skills, keeps a memory stream, and
//! reaches the world through AgentPort only.
//!
//! The modules stand in the order in which to read them. What is true by
//! absence: only `egress` opens connections. Only `sandbox` starts processes.
//! The token is seen in `egress` alone, and is in no log record, no entry of
//! the memory stream and no skill's environment.

mod options;
mod manifest;
mod fields;
mod template;
mod mistakes;
mod egress;
mod sandbox;
mod skills;
mod model;
mod memory;
mod metrics;
mod api;
mod server;
mod trace;
mod clock;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use crate::egress::AgentId;
use anyhow::{Context, bail};
use clap::Parser;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use api::{Access, ApiKey, App};
use egress::{Egress, Way};
use manifest::{Catalog, Network, Runtime};
use memory::Memory;
use metrics::Metrics;
use options::{Cli, Command, Listen, ManifestCommand, Run};
use sandbox::Sandbox;
use server::Listener;
use skills::Skills;

/// Whether this process is another program's, which is then asked for the
/// agent by the name `openclaw`.
static EMBEDDED: OnceLock<()> = OnceLock::new();

/// Runs the command line, of which the first word is the program's name.
/// `embedded` says that the program is not the agent alone.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>, embedded: bool) -> ExitCode {
    if embedded {
        // Set once, here.
        let _ = EMBEDDED.set(());
    }
    let result = match Cli::parse_from(arguments).command {
        // These two must have no threads, and so no runtime.
        Command::SandboxExec => return sandbox::inside::make_namespaces(),
        Command::SandboxInit { namespaces } => return sandbox::inside::become_skill(namespaces),
        Command::Manifest(ManifestCommand::Check { manifest }) => check_manifest(&manifest),
        Command::Run(run) => start(&run),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // Nobody is left to tell where this fails.
            writeln!(std::io::stderr(), "openclaw: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

/// What this program calls itself with for one of its hidden commands.
fn own_arguments(command: &'static str) -> impl Iterator<Item = &'static str> {
    EMBEDDED
        .get()
        .map(|()| "openclaw")
        .into_iter()
        .chain([command])
}

fn check_manifest(path: &Path) -> anyhow::Result<ExitCode> {
    let catalog = read_manifest(path)?;
    let mut out = std::io::stdout();
    for skill in catalog.iter() {
        writeln!(out, "{} {}", skill.id, skill.version)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read_manifest(path: &Path) -> anyhow::Result<Catalog> {
    let text = std::fs::read(path)
        .with_context(|| format!("the manifest {} cannot be read", path.display()))?;
    Catalog::parse(&text).map_err(|lines| {
        let lines: String = lines.iter().map(|line| format!("\n  {line}")).collect();
        anyhow::anyhow!("the manifest {} has mistakes:{lines}", path.display())
    })
}

fn start(run: &Run) -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_max_level(run.log)
        .with_writer(std::io::stdout)
        .init();
    // No core file, and no other process of this user that reads the memory
    // with the token in it.
    nix::sys::prctl::set_dumpable(false).context("the process cannot be made undumpable")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let drained = runtime.block_on(serve(run))?;
    // What did not end in time is cut off here, and with it its processes.
    runtime.shutdown_background();
    Ok(if drained {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn serve(run: &Run) -> anyhow::Result<bool> {
    let catalog = read_manifest(&run.manifest)?;
    let now = SystemTime::now();
    let route = run.route(now)?;
    let agent = agent_id(run, &route.way, now)?;
    let egress = Egress::new(route);
    let sandbox = prepare_sandbox(run, &catalog, &egress).await?;
    let listener = bind(run).await?;
    let access = access(run)?;
    let metrics = Arc::new(Metrics::new());
    let memory = Arc::new(Memory::new(egress.clone()));
    tracing::info!(
        event = "starting",
        agent_id = %agent,
        version = env!("CARGO_PKG_VERSION"),
        skills = catalog.iter().count(),
        gateway = egress.has_gateway(),
        namespaces = sandbox.as_ref().map(Sandbox::has_namespaces),
        landlock = sandbox.as_ref().map(Sandbox::has_landlock),
    );
    let app = App {
        skills: Skills {
            agent,
            catalog,
            sandbox,
            egress,
            memory: memory.clone(),
            metrics: metrics.clone(),
            timeout: run.skill_timeout(),
            slots: Semaphore::new(run.max_skills.into()),
        },
        memory,
        metrics,
        access,
    };
    Ok(server::serve(listener, api::router(Arc::new(app))).await?)
}

fn agent_id(run: &Run, way: &Way, now: SystemTime) -> anyhow::Result<AgentId> {
    if let Some(agent) = &run.agent_id {
        return Ok(agent.clone());
    }
    let claimed = match way {
        Way::Gateway { token, .. } => token.agent_id(now),
        Way::Direct => None,
    };
    match claimed {
        Some(agent) => Ok(agent),
        None => Ok(AgentId::parse("openclaw")?),
    }
}

/// The walls, where a skill needs them.
async fn prepare_sandbox(
    run: &Run,
    catalog: &Catalog,
    egress: &Egress,
) -> anyhow::Result<Option<Sandbox>> {
    let networks: Vec<_> = catalog
        .iter()
        .filter_map(|skill| match &skill.runtime {
            Runtime::Http(_) => None,
            Runtime::Process(process) => Some((&skill.id, process.network)),
        })
        .collect();
    if networks.is_empty() {
        return Ok(None);
    }
    if nix::unistd::geteuid().is_root() {
        tracing::warn!(
            event = "running_as_root",
            "process skills are confined, but share the agent's user: run it as another"
        );
    }
    let directories = skill_directories(&run.manifest, &run.secret_files())?;
    let sandbox = Sandbox::prepare(run.sandbox, directories).await?;
    let with_gateway = networks.iter().find(|(_, n)| *n == Network::Gateway);
    if let Some((id, _)) = with_gateway {
        if !egress.has_gateway() {
            bail!(
                "the skill {id} has network: \"gateway\", and with --egress direct there is none: \
                 take it out of the manifest, or go through the gateway"
            );
        }
        if !sandbox.has_namespaces() {
            bail!(
                "the skill {id} has network: \"gateway\", which needs a network namespace of its \
                 own: allow user namespaces to this process, or write network: \"none\""
            );
        }
    }
    Ok(Some(sandbox))
}

/// The manifest's directory, as it was named and as it is, which are one unless
/// a link is in between. It becomes readable to every process skill, and so may
/// hold no secret of the agent's.
fn skill_directories(manifest: &Path, secrets: &[&Path]) -> anyhow::Result<Vec<PathBuf>> {
    let named = std::path::absolute(manifest)?;
    let named = named.parent().context("the manifest has no directory")?;
    let real = named.canonicalize()?;
    let too_wide = [
        "/", "/app", "/dev", "/etc", "/home", "/opt", "/proc", "/root", "/run", "/srv", "/sys",
        "/tmp", "/usr", "/var",
    ];
    if too_wide.iter().any(|wide| real == Path::new(wide)) {
        bail!(
            "process skills can read the manifest's directory, and that is {}: give the manifest \
             a directory of its own, such as /app/skills",
            real.display()
        );
    }
    for secret in secrets {
        let secret = secret
            .canonicalize()
            .with_context(|| format!("{}", secret.display()))?;
        if secret.starts_with(&real) || secret.starts_with("/usr") {
            bail!(
                "{} lies where process skills can read it: move it out of {} and /usr",
                secret.display(),
                real.display()
            );
        }
    }
    let mut directories = vec![named.to_owned()];
    if real != named {
        directories.push(real);
    }
    Ok(directories)
}

async fn bind(run: &Run) -> anyhow::Result<Listener> {
    match &run.listen {
        Listen::Tcp(address) => {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}"))?;
            Ok(Listener::Tcp(listener))
        }
        Listen::Unix(path) => Listener::bind_unix(path)
            .with_context(|| format!("cannot listen on unix:{}", path.display())),
    }
}

fn access(run: &Run) -> anyhow::Result<Access> {
    match (run.api_key()?, &run.listen) {
        (Some(key), _) => ApiKey::new(&key)
            .map(|key| Access::Key(Box::new(key)))
            .context("no random numbers are to be had"),
        (None, Listen::Unix(_)) => Ok(Access::Socket),
        (None, Listen::Tcp(address)) if address.ip().is_loopback() => Ok(Access::Loopback),
        (None, Listen::Tcp(address)) => bail!(
            "without an API key anybody who reaches {address} could run skills: set \
             OPENCLAW_API_KEY_FILE, or listen on 127.0.0.1 or on unix:/path"
        ),
    }
}

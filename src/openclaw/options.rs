//! The command line and the environment, and what they amount to.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use crate::egress::AgentId;
use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::openclaw::egress::{Endpoint, Route, TokenSource, Trust, Way};
use crate::openclaw::sandbox::Mode;

/// OpenClaw, the bundled agent: skills, a memory stream, and one way out.
#[derive(Debug, Parser)]
#[command(name = "openclaw", version, about)]
pub(in crate::openclaw) struct Cli {
    #[command(subcommand)]
    pub(in crate::openclaw) command: Command,
}

#[derive(Debug, Subcommand)]
pub(in crate::openclaw) enum Command {
    /// Run the agent.
    Run(Box<Run>),
    /// Look at manifests.
    #[command(subcommand)]
    Manifest(ManifestCommand),
    /// The sandbox's first process; not for people.
    #[command(hide = true)]
    SandboxExec,
    /// The sandbox's second process; not for people.
    #[command(hide = true)]
    SandboxInit {
        #[arg(long)]
        namespaces: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(in crate::openclaw) enum ManifestCommand {
    /// Report every mistake in a manifest, with what to write.
    Check {
        /// The manifest.
        #[arg(env = "OPENCLAW_MANIFEST", default_value = "/app/skills/manifest.json")]
        manifest: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(in crate::openclaw) struct Run {
    /// Where to listen: host:port, or unix:/path.
    #[arg(long, env = "OPENCLAW_LISTEN", default_value = "127.0.0.1:7070")]
    pub(in crate::openclaw) listen: Listen,
    /// The manifest of the skills. Its directory is what process skills can read.
    #[arg(
        long,
        env = "OPENCLAW_MANIFEST",
        default_value = "/app/skills/manifest.json"
    )]
    pub(in crate::openclaw) manifest: PathBuf,
    /// The agent's name; by default the agent_id claim of its token.
    #[arg(long, env = "OPENCLAW_AGENT_ID")]
    pub(in crate::openclaw) agent_id: Option<AgentId>,
    /// How calls leave: through the gateway, or direct while migrating.
    #[arg(long, env = "OPENCLAW_EGRESS", default_value = "gateway")]
    egress: EgressWay,
    /// Where the gateway listens: http://host:port, https://host:port, unix:/path.
    #[arg(long, env = "AGENTPORT_URL")]
    agentport_url: Option<Endpoint>,
    /// A file with the agent's token; read again whenever it changes.
    #[arg(long, env = "AGENTPORT_TOKEN_FILE")]
    agentport_token_file: Option<PathBuf>,
    /// A file with certificates to trust beside the system's.
    #[arg(long, env = "AGENTPORT_CA_FILE")]
    agentport_ca_file: Option<PathBuf>,
    /// Seconds for skills whose manifest names no timeout.
    #[arg(long, env = "OPENCLAW_SKILL_TIMEOUT", default_value = "20",
          value_parser = clap::value_parser!(u64).range(1..=900))]
    skill_timeout: u64,
    /// Skills that may run at once.
    #[arg(long, env = "OPENCLAW_MAX_SKILLS", default_value = "32",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(in crate::openclaw) max_skills: u16,
    /// What process skills need of a sandbox to run at all.
    #[arg(long, env = "OPENCLAW_SANDBOX", default_value = "strict")]
    pub(in crate::openclaw) sandbox: Mode,
    /// A file with the key that callers of /v1 show as a bearer token.
    #[arg(long, env = "OPENCLAW_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
    /// How much is logged.
    #[arg(long, env = "OPENCLAW_LOG", default_value = "info")]
    pub(in crate::openclaw) log: tracing::Level,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EgressWay {
    Gateway,
    Direct,
}

/// Where to listen.
#[derive(Clone, Debug)]
pub(in crate::openclaw) enum Listen {
    /// A resolved address.
    Tcp(SocketAddr),
    /// A socket's path.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(raw: &str) -> Result<Self, String> {
        if let Some(path) = raw.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err("write unix:/path, with an absolute path".to_owned());
            }
            return Ok(Self::Unix(path.into()));
        }
        raw.to_socket_addrs()
            .ok()
            .and_then(|mut addresses| addresses.next())
            .map(Self::Tcp)
            .ok_or_else(|| "write host:port, or unix:/path".to_owned())
    }
}

impl Run {
    /// The way out, with its credential.
    ///
    /// # Errors
    /// What is missing, and what to set.
    pub(in crate::openclaw) fn route(&self, now: SystemTime) -> anyhow::Result<Route> {
        let trust = Trust::new(
            std::env::var_os("SSL_CERT_FILE").map(PathBuf::from),
            self.agentport_ca_file.clone(),
        );
        if self.agentport_ca_file.is_some() {
            trust.config().context("AGENTPORT_CA_FILE")?;
        }
        let way = match (self.egress, &self.agentport_url) {
            (EgressWay::Direct, _) => {
                tracing::warn!(
                    event = "egress_direct",
                    "calls leave past the gateway: unset OPENCLAW_EGRESS to go through it"
                );
                Way::Direct
            }
            (EgressWay::Gateway, Some(endpoint)) => Way::Gateway {
                endpoint: endpoint.clone(),
                token: self.token(now)?,
            },
            (EgressWay::Gateway, None) => bail!(
                "AGENTPORT_URL is not set, so there is no way out: set it to the gateway, such \
                 as http://127.0.0.1:8080, or say --egress direct to call out without one"
            ),
        };
        Ok(Route { way, trust })
    }

    fn token(&self, now: SystemTime) -> anyhow::Result<TokenSource> {
        // Not an option of the command line: everybody can read those.
        let variable = std::env::var("AGENTPORT_TOKEN").ok();
        match (&self.agentport_token_file, variable) {
            (Some(path), _) => TokenSource::file(path.clone(), now).context("AGENTPORT_TOKEN_FILE"),
            (None, Some(token)) => Ok(TokenSource::fixed(&token)?),
            (None, None) => {
                tracing::warn!(
                    event = "no_token",
                    "the gateway must know this agent otherwise: set AGENTPORT_TOKEN_FILE"
                );
                Ok(TokenSource::None)
            }
        }
    }

    /// The key of the API, where there is one.
    ///
    /// # Errors
    /// Where the file cannot be read or the key is none.
    pub(in crate::openclaw) fn api_key(&self) -> anyhow::Result<Option<String>> {
        let key = match &self.api_key_file {
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("OPENCLAW_API_KEY_FILE: {}", path.display()))?,
            None => match std::env::var("OPENCLAW_API_KEY") {
                Ok(key) => key,
                Err(std::env::VarError::NotPresent) => return Ok(None),
                Err(e) => bail!("OPENCLAW_API_KEY: {e}"),
            },
        };
        let key = key.trim();
        if key.len() < 16 || !key.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
            bail!("the API key is no key: write at least 16 characters of visible ASCII");
        }
        Ok(Some(key.to_owned()))
    }

    /// How long skills may take that name no time.
    pub(in crate::openclaw) fn skill_timeout(&self) -> Duration {
        Duration::from_secs(self.skill_timeout)
    }

    /// Files with secrets, which no skill may read.
    pub(in crate::openclaw) fn secret_files(&self) -> Vec<&Path> {
        [&self.agentport_token_file, &self.api_key_file]
            .into_iter()
            .filter_map(|path| path.as_deref())
            .collect()
    }
}

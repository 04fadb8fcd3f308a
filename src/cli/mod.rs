//! The commands: what they are called, and what they print.
//!
//! Standard output is for what a command gives; what it has to say goes to
//! standard error. Exit codes: 0 done, 1 refused or failed, 2 not understood.

mod acme;
mod agent_key;
mod ca;
mod config;
mod connect;
pub mod env;
mod health;
mod keys;
mod policy;
mod probe;
mod revoke;
mod run;
mod serve;
mod service_account;
mod token;
mod up;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Override, Purpose, Sources};
use crate::server::check::in_words;

/// Where the configuration is looked for when none is named.
const DEFAULT_CONFIG: &str = "/etc/agentport/agentport.yaml";

/// The egress gateway for AI agents.
#[derive(Parser)]
#[command(name = "agentport", version, about, long_about = None, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Where settings come from.
#[derive(Args, Clone, Default)]
pub(crate) struct SettingsArgs {
    /// The configuration file [default: /etc/agentport/agentport.yaml where it exists]
    #[arg(
        long,
        short,
        global = true,
        value_name = "FILE",
        env = "AGENTPORT_CONFIG"
    )]
    config: Option<std::ffi::OsString>,
    /// Set one key, over the file and the environment; may be given again
    #[arg(long = "set", short = 's', global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway in the foreground (the default)
    Serve,
    /// Start gateway and bundled agent with development keys, and show them at work
    Up(up::UpArgs),
    /// Print a token for an agent
    IssueToken(token::IssueArgs),
    /// Take back tokens, agents, tenants, keys and service accounts, on all gateways at once
    Revoke(revoke::RevokeArgs),
    /// Make, list and revoke long-lived keys of agents
    #[command(subcommand)]
    AgentKey(agent_key::AgentKeyCommand),
    /// The certificate that comes by ACME
    #[command(subcommand)]
    Acme(acme::AcmeCommand),
    /// A private CA: certificates for agents and servers, and the list of those revoked
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Make, show, rotate and retire signing keys
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Say who may have tokens issued over HTTP
    #[command(subcommand)]
    ServiceAccount(service_account::ServiceAccountCommand),
    /// Check policies, and ask them
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Check and show the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Ask a running gateway how it is; for container health checks
    Health(health::HealthArgs),
    /// Print the variables that make programs use the gateway
    Env(run::EnvArgs),
    /// Hold and renew a token beside an agent that cannot, and add it to the agent's requests
    Connect(connect::ConnectArgs),
    /// Try to get out from here without the gateway, and by it against policy
    Probe(probe::ProbeArgs),
    /// Run a command whose every runtime uses the gateway
    Run(run::RunArgs),
    /// Run the bundled agent, as the `openclaw` command does
    #[cfg(feature = "openclaw")]
    #[command(disable_help_flag = true, disable_version_flag = true, hide = true)]
    Openclaw {
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let settings = cli.settings;
    let done = match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => serve::serve(&settings),
        Command::Up(args) => up::up(&args),
        Command::IssueToken(args) => token::issue(&settings, &args),
        Command::ServiceAccount(command) => service_account::run(&settings, &command),
        Command::Revoke(args) => revoke::revoke(&settings, args),
        Command::AgentKey(command) => agent_key::run(&settings, &command),
        Command::Acme(command) => acme::run(&settings, &command),
        Command::Ca(command) => ca::run(&command),
        Command::Keys(command) => keys::run(&settings, &command),
        Command::Policy(command) => policy::run(&settings, &command),
        Command::Config(command) => config::run(&settings, &command),
        Command::Health(args) => health::health(&settings, &args),
        Command::Env(args) => run::env(&args),
        Command::Connect(args) => connect::connect(&args),
        Command::Probe(args) => return probe::probe(&args),
        Command::Run(args) => run::run(&args),
        #[cfg(feature = "openclaw")]
        Command::Openclaw { arguments } => {
            return crate::openclaw::main(
                std::iter::once("openclaw".into()).chain(arguments),
                true,
            );
        }
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            say(&format!("agentport: {}", in_words(&error)));
            ExitCode::FAILURE
        }
    }
}

/// An address on the command line; a port alone is one of this machine.
fn address(text: &str) -> Result<SocketAddr, String> {
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let port = text.strip_prefix("localhost:").unwrap_or(text);
    let port = port.strip_prefix(':').unwrap_or(port).parse().map(loopback);
    port.or_else(|_| text.parse())
        .map_err(|_| "write ADDRESS:PORT, such as 127.0.0.1:8080, or a port".to_owned())
}

/// Reads the settings, with everything that is wrong in one error.
pub(crate) fn load(settings: &SettingsArgs, purpose: Purpose) -> anyhow::Result<Config> {
    let file = match &settings.config {
        // Compose files set variables to nothing where they mean not at all.
        Some(path) if !path.is_empty() => Some(PathBuf::from(path)),
        _ => Some(PathBuf::from(DEFAULT_CONFIG)).filter(|path| path.exists()),
    };
    let text = match &file {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?,
        ),
        None => None,
    };
    let name = file.as_ref().map(|path| path.display().to_string());
    let mut flags = Vec::new();
    for set in &settings.set {
        let (key, value) = set
            .split_once('=')
            .with_context(|| format!("--set {set}: write --set KEY=VALUE"))?;
        flags.push(Override {
            flag: "--set".into(),
            key: key.into(),
            value: value.into(),
        });
    }
    let sources = Sources {
        file: name.as_deref().zip(text.as_deref()),
        environment: std::env::vars_os().collect(),
        flags,
    };
    Config::load(&sources, purpose).map_err(|errors| {
        let list = errors
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n  ");
        anyhow::anyhow!("the configuration is not valid:\n  {list}")
    })
}

/// Gives what the command was asked for.
pub(crate) fn give(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // A reader that has gone away wants no more.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Says something to whoever runs the command.
pub(crate) fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

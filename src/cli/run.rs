//! `agentport env` and `agentport run`: programs that use the gateway without
//! knowing of it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use base64::Engine;
use clap::{Args, ValueEnum};

use super::env::{Form, ProxyUrl, render, variables};

/// Where systems keep the roots they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

#[derive(Args)]
pub(super) struct ProxyArgs {
    /// The gateway, with or without a credential in it
    #[arg(
        long,
        value_name = "URL",
        env = "AGENTPORT_URL",
        default_value = "http://127.0.0.1:8080",
        hide_env_values = true
    )]
    url: String,
    /// The agent's token
    #[arg(
        long,
        value_name = "TOKEN",
        env = "AGENTPORT_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<String>,
    /// A file with the agent's token
    #[arg(long, value_name = "FILE", env = "AGENTPORT_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// A PEM file of more roots to trust, beside the system's
    #[arg(long, value_name = "FILE", env = "AGENTPORT_CA_FILE")]
    ca: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct EnvArgs {
    #[command(flatten)]
    proxy: ProxyArgs,
    /// For what to write them
    #[arg(long, value_enum, default_value_t = EnvForm::Shell)]
    format: EnvForm,
}

#[derive(Clone, Copy, ValueEnum)]
enum EnvForm {
    /// `eval "$(agentport env)"`
    Shell,
    /// A .env file
    Dotenv,
    /// `docker run --env-file`
    Docker,
}

#[derive(Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    proxy: ProxyArgs,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<std::ffi::OsString>,
}

pub(super) fn env(args: &EnvArgs) -> anyhow::Result<ExitCode> {
    let form = match args.format {
        EnvForm::Shell => Form::Shell,
        EnvForm::Dotenv => Form::Dotenv,
        EnvForm::Docker => Form::Docker,
    };
    super::give(&render(&all_variables(&args.proxy)?, form)?);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let Some((program, arguments)) = args.command.split_first() else {
        bail!("name the command: agentport run -- curl https://example.com");
    };
    let mut command = std::process::Command::new(program);
    command.args(arguments).envs(all_variables(&args.proxy)?);
    // The variables hold what it needs; ours are not for it.
    command
        .env_remove("AGENTPORT_TOKEN")
        .env_remove("AGENTPORT_JWKS_SECRET");
    // Comes back only where it could not be started.
    let error = command.exec();
    bail!("cannot run {}: {error}", program.display())
}

fn all_variables(args: &ProxyArgs) -> anyhow::Result<Vec<(String, String)>> {
    let url = ProxyUrl::parse(&with_token(args)?)?;
    let bundle = args.ca.as_deref().map(merged_roots).transpose()?;
    Ok(variables(
        &url,
        bundle.as_ref().and_then(|path| path.to_str()),
    ))
}

/// `http://agent:TOKEN@gateway:8080`: the one form that works in every client.
fn with_token(args: &ProxyArgs) -> anyhow::Result<String> {
    let token = match (&args.token, &args.token_file) {
        (Some(token), _) => Some(token.clone()),
        (None, Some(file)) => Some(
            std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?,
        ),
        (None, None) => None,
    };
    // What is wrong with the URL is told before anything else.
    ProxyUrl::parse(&args.url)?;
    let (Some(token), Some((scheme, rest))) = (token, args.url.split_once("://")) else {
        if !args.url.contains('@') {
            super::say(
                "agentport: no credential: the gateway asks for one (407) unless the network says who this is; set AGENTPORT_TOKEN, or write --token-file FILE",
            );
        }
        return Ok(args.url.clone());
    };
    if rest.contains('@') {
        bail!("the URL has a credential already; give it there or by --token, not both");
    }
    let token = token.trim();
    Ok(format!(
        "{scheme}://{}:{token}@{rest}",
        agent_of(token).unwrap_or_else(|| "agent".to_owned())
    ))
}

/// The agent that a token names, unproven: only for the user name.
fn agent_of(token: &str) -> Option<String> {
    let claims = token.split('.').nth(1)?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(claims)
        .ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    let agent = claims
        .get("agent_id")
        .or_else(|| claims.get("sub"))?
        .as_str()?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    (!agent.is_empty() && agent.bytes().all(plain)).then(|| agent.to_owned())
}

/// The system's roots and ours in one file: most clients that are told of a
/// bundle trust nothing else.
fn merged_roots(ours: &Path) -> anyhow::Result<PathBuf> {
    let mut text = String::new();
    if let Some(system) = SYSTEM_ROOTS
        .iter()
        .map(Path::new)
        .find(|path| path.exists())
    {
        text = std::fs::read_to_string(system)
            .with_context(|| format!("cannot read {}", system.display()))?;
    }
    let added =
        std::fs::read_to_string(ours).with_context(|| format!("cannot read {}", ours.display()))?;
    if !added.contains("-----BEGIN CERTIFICATE-----") {
        bail!("{}: there is no PEM certificate in it", ours.display());
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&added);
    // Beside ours, so that whoever may read the one may read the other.
    let merged = std::path::absolute(ours)?.with_extension("with-system-roots.pem");
    std::fs::write(&merged, text).with_context(|| format!("cannot write {}", merged.display()))?;
    Ok(merged)
}

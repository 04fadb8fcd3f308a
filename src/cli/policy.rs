//! `agentport policy`: is it valid, and what would it say?

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use http::Method;

use crate::config::{Config, Purpose};
use crate::egress::{
    AgentId, Ask, Destination, EgressRequest, RequestTarget, Scheme, Subject, TenantId,
};
use crate::policy::{Mode, PolicySet, PolicyWarning, Verdict};
use crate::server::load::{self, Source};

use super::SettingsArgs;

#[derive(Subcommand)]
pub(super) enum PolicyCommand {
    /// Check policy files; every mistake is named with its line and what to write
    Check {
        /// Files or directories [default: the configured policy]
        paths: Vec<PathBuf>,
        /// How to print
        #[arg(long, value_enum, default_value_t = Output::Text)]
        format: Output,
        /// Fail on warnings too
        #[arg(long)]
        strict: bool,
    },
    /// Say whether a request may go, by which rule, and if not what was nearest
    Explain(ExplainArgs),
}

#[derive(Args)]
pub(super) struct ExplainArgs {
    /// The agent
    #[arg(long, value_name = "NAME")]
    agent: String,
    /// Its tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// What the token is limited to; may be given again
    #[arg(long, value_name = "DESTINATION", value_delimiter = ',')]
    allow: Vec<String>,
    /// An address that the host has; may be given again
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<IpAddr>,
    /// Files or directories [default: the configured policy]
    #[arg(long, value_name = "PATH")]
    policy: Vec<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Output::Text)]
    format: Output,
    /// GET, POST, …, or CONNECT
    method: String,
    /// The URL, or host:port for CONNECT. An https URL is what goes through a tunnel: ask for CONNECT
    url: String,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

pub(super) fn run(settings: &SettingsArgs, command: &PolicyCommand) -> anyhow::Result<ExitCode> {
    match command {
        PolicyCommand::Check {
            paths,
            format,
            strict,
        } => check(settings, paths, *format, *strict),
        PolicyCommand::Explain(args) => explain(settings, args),
    }
}

/// A policy with the texts it was read from.
struct Loaded {
    set: PolicySet,
    sources: Vec<Source>,
}

fn read(settings: &SettingsArgs, paths: &[PathBuf]) -> anyhow::Result<Loaded> {
    let (sources, mode) = if paths.is_empty() {
        let config: Config = super::load(settings, Purpose::Command)?;
        let sources = match &config.policy {
            Some(path) => load::read_documents(&load::policy_files(path)?)?,
            None => {
                return Ok(Loaded {
                    set: load::policy(&config)?,
                    sources: Vec::new(),
                });
            }
        };
        (sources, config.mode)
    } else {
        let mut files = Vec::new();
        for path in paths {
            files.extend(load::policy_files(path)?);
        }
        (load::read_documents(&files)?, Mode::Enforce)
    };
    let set = load::build(&sources, mode)?;
    Ok(Loaded { set, sources })
}

fn check(
    settings: &SettingsArgs,
    paths: &[PathBuf],
    format: Output,
    strict: bool,
) -> anyhow::Result<ExitCode> {
    let loaded = match read(settings, paths) {
        Ok(loaded) => loaded,
        Err(error) => {
            let lines: Vec<String> = format!("{error:#}").lines().map(str::to_owned).collect();
            match format {
                Output::Text => super::give(&format!("{}\n", lines.join("\n"))),
                Output::Json => super::give(&format!(
                    "{}\n",
                    serde_json::json!({ "valid": false, "errors": lines })
                )),
            }
            return Ok(ExitCode::FAILURE);
        }
    };
    let mut warnings = loaded.set.lint();
    for source in &loaded.sources {
        PolicyWarning::locate(&mut warnings, &source.name, &source.text);
    }
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    match format {
        Output::Text => {
            for warning in &warnings {
                super::give(&format!("warning: {warning}\n"));
            }
            super::give(&format!(
                "valid: {} rules, version {}\n",
                loaded.set.rule_count(),
                loaded.set.digest()
            ));
        }
        Output::Json => super::give(&format!(
            "{}\n",
            serde_json::json!({
                "valid": true,
                "version": loaded.set.digest().as_ref(),
                "rules": loaded.set.rule_count(),
                "warnings": warnings,
            })
        )),
    }
    Ok(if strict && !warnings.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn explain(settings: &SettingsArgs, args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let request = request(&args.method, &args.url)?;
    let agent = AgentId::parse(&args.agent).context("--agent")?;
    let tenant = args
        .tenant
        .as_deref()
        .map(TenantId::parse)
        .transpose()
        .context("--tenant")?;
    let destinations = args
        .allow
        .iter()
        .map(|raw| Destination::parse(raw.trim()).with_context(|| format!("--allow {raw}")))
        .collect::<Result<Vec<_>, _>>()?;
    let subject = Subject {
        agent: &agent,
        tenant: tenant.as_ref(),
        destinations: (!destinations.is_empty()).then_some(&destinations[..]),
    };
    let loaded = read(settings, &args.policy)?;
    let mut explanation = loaded.set.explain(&subject, &request, &args.address);
    explanation.locate(|name| {
        loaded
            .sources
            .iter()
            .find(|source| source.name == *name)
            .map(|source| source.text.as_str())
    });
    match args.format {
        Output::Text => super::give(&format!("{explanation}\n")),
        Output::Json => super::give(&format!("{}\n", serde_json::to_string(&explanation)?)),
    }
    Ok(if explanation.verdict == Verdict::Deny {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn request(method: &str, url: &str) -> anyhow::Result<EgressRequest> {
    let target = RequestTarget::parse(method, url).with_context(|| url.to_owned())?;
    match target {
        RequestTarget::Authority(authority) => Ok(EgressRequest {
            authority,
            ask: Ask::Tunnel,
        }),
        RequestTarget::Absolute {
            scheme,
            authority,
            path,
            ..
        } => {
            let method = Method::from_bytes(method.as_bytes()).context("the method")?;
            // Over TLS the gateway sees a tunnel, and judges that.
            let ask = match scheme {
                Scheme::Http => Ask::Request {
                    scheme,
                    method,
                    path,
                },
                Scheme::Https => Ask::Tunnel,
            };
            Ok(EgressRequest { authority, ask })
        }
        RequestTarget::Origin { .. } | RequestTarget::Asterisk => {
            bail!("write a URL such as http://api.example.com/v1, or host:port for CONNECT")
        }
    }
}

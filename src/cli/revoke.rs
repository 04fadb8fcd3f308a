//! `agentport revoke`: what must not pass any more, in force on every gateway
//! that reads the same list, within a second.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use crate::adapters::revocations::{RevocationStore, StoreError};
use crate::audit::Rfc3339;
use crate::config::{Config, Purpose, Switch};
use crate::identity::{Revocation, Revoked, RevokedKind, claimed_jti};
use crate::server;

use super::SettingsArgs;

/// How long Redis is waited for.
const REDIS: Duration = Duration::from_secs(10);

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct RevokeArgs {
    #[command(subcommand)]
    command: Option<RevokeCommand>,
    #[command(flatten)]
    what: WhatArgs,
    /// When the entry ends, such as 24h; not before the last token that it speaks of [default: when it is undone; for a --jti of our own when no token lives any more, 366d]
    #[arg(long = "for", value_name = "TIME")]
    lasts: Option<String>,
    /// Why, for the list
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Subcommand)]
enum RevokeCommand {
    /// Print what is revoked
    List {
        /// As it is stored: one JSON object in each line
        #[arg(long)]
        json: bool,
    },
    /// Take a revocation back
    Undo(WhatArgs),
}

#[derive(Args, Clone)]
struct WhatArgs {
    /// One token, by its `jti` or whole; with what was exchanged from it
    #[arg(long, value_name = "ID")]
    jti: Option<String>,
    /// All that an agent has been issued so far; with --tenant, only that tenant's
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// All that a tenant's agents have been issued so far
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Every token of a signing key, or an agent key, by its id
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// All that a service account has issued so far, also for tokens of others
    #[arg(long, value_name = "ID")]
    service_account: Option<String>,
    /// Of --jti and --key: whose they are, as `iss` says it [default: identity.issuer]
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
}

impl WhatArgs {
    /// `own` is the `iss` of our own tokens, which needs no naming.
    fn revoked(self, own: &str) -> anyhow::Result<Revoked> {
        let tenant_is_scope = self.agent.is_some();
        let (of_agent, alone) = match self.tenant {
            Some(tenant) if tenant_is_scope => (Some(tenant), None),
            other => (None, other),
        };
        let named = [
            (RevokedKind::Jti, self.jti),
            (RevokedKind::Agent, self.agent),
            (RevokedKind::Tenant, alone),
            (RevokedKind::Key, self.key),
            (RevokedKind::ServiceAccount, self.service_account),
        ];
        let mut named = named
            .into_iter()
            .filter_map(|(kind, value)| Some((kind, value?)));
        let (Some((kind, value)), None) = (named.next(), named.next()) else {
            bail!(
                "say what to revoke by one of --jti, --agent (with or without --tenant), --tenant, --key and --service-account"
            );
        };
        // Who has a token rarely knows its id.
        let value = match (kind, claimed_jti(&value)) {
            (RevokedKind::Jti, Some(Some(jti))) => jti,
            (RevokedKind::Jti, Some(None)) => {
                bail!("--jti: this token has no jti; revoke its --agent, or its --key")
            }
            _ => value,
        };
        Ok(Revoked {
            kind,
            value,
            tenant: of_agent,
            issuer: self.issuer.filter(|issuer| issuer != own),
        })
    }
}

pub(super) fn revoke(settings: &SettingsArgs, args: RevokeArgs) -> anyhow::Result<ExitCode> {
    let config = super::load(settings, Purpose::Command)?;
    // What is not understood is said before anything is asked for.
    let lasts = args
        .lasts
        .as_deref()
        .map(|text| {
            crate::config::parse_duration(text)
                .map_err(|error| anyhow::anyhow!("--for {text}: {error}"))
        })
        .transpose()?;
    if lasts.is_some_and(|lasts| lasts < Duration::from_secs(1)) {
        bail!("--for: write at least 1s");
    }
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    super::serve::install_provider();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        match args.command {
            None => {
                let what = args.what.revoked(&config.identity.issuer)?;
                let entry = Revocation::make(what, now, lasts, args.reason)
                    .context("nothing is revoked")?;
                let store = store(&config).await?;
                store.add(entry.clone(), now).await?;
                super::say(&format!("revoked: {}", shown(&entry)));
            }
            Some(RevokeCommand::List { json }) => {
                let entries = match store(&config).await?.list().await {
                    Err(StoreError::Missing(_)) => Vec::new(),
                    other => other?,
                };
                for entry in entries.iter().filter(|entry| entry.is_in_force(now)) {
                    let line = if json { entry.line() } else { shown(entry) };
                    super::give(&format!("{line}\n"));
                }
            }
            Some(RevokeCommand::Undo(what)) => {
                let what = what.revoked(&config.identity.issuer)?;
                if !store(&config).await?.remove(what.clone(), now).await? {
                    bail!(
                        "{} {} is not revoked: `agentport revoke list` prints what is",
                        what.kind,
                        what.value
                    );
                }
                super::say(&format!("taken back: {} {}", what.kind, what.value));
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The list that the gateways of this configuration read.
async fn store(config: &Config) -> anyhow::Result<RevocationStore> {
    let redis = match &config.redis {
        Some(written) if config.identity.revocations.redis == Switch::On => {
            let redis = server::shared_redis(written);
            // Where it does not come, the first command says why.
            let _ = tokio::time::timeout(REDIS, redis.connected()).await;
            Some(redis)
        }
        _ => None,
    };
    server::revocation_store(config, redis.as_ref()).context(
        "there is no list of revocations: set identity.revocations.file or identity.revocations.redis, for the gateways and for this command",
    )
}

fn shown(entry: &Revocation) -> String {
    let time = |seconds| {
        let text = Rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
        text.replace(".000000", "")
    };
    let mut line = format!("{} {}", entry.kind, entry.value);
    if let Some(tenant) = &entry.tenant {
        line += &format!(" of tenant {tenant}");
    }
    if let Some(issuer) = &entry.issuer {
        line += &format!(" of issuer {issuer}");
    }
    line += &format!(", at {}", time(entry.at));
    line += &match entry.until {
        Some(until) => format!(", until {}", time(until)),
        None => ", until undone".to_owned(),
    };
    if let Some(reason) = &entry.reason {
        // What somebody wrote stays on its line.
        line += &format!(": {}", reason.escape_debug());
    }
    line
}

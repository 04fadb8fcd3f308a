//! `agentport revoke`: what must not pass any more, in force on every gateway
//! that reads the same list, within a second.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use crate::adapters::revocations::{RevocationFile, StoreError};
use crate::audit::Rfc3339;
use crate::config::Purpose;
use crate::identity::{MAX_LIFETIME, Revocation, Revoked, RevokedKind};

use super::SettingsArgs;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct RevokeArgs {
    #[command(subcommand)]
    command: Option<RevokeCommand>,
    #[command(flatten)]
    what: WhatArgs,
    /// When the entry ends, such as 24h; not before the last token that it speaks of [default: never for a key, else the longest life of a token, 366d]
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
    /// One token, by its number
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
    /// All that a service account has issued so far
    #[arg(long, value_name = "ID")]
    service_account: Option<String>,
}

impl WhatArgs {
    fn revoked(self) -> anyhow::Result<Revoked> {
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
        Ok(Revoked {
            kind,
            value,
            tenant: of_agent,
        })
    }
}

pub(super) fn revoke(settings: &SettingsArgs, args: RevokeArgs) -> anyhow::Result<ExitCode> {
    let config = super::load(settings, Purpose::Command)?;
    let Some(path) = &config.identity.revocations.file else {
        bail!(
            "there is no list of revocations: set identity.revocations.file, for the gateways and for this command"
        );
    };
    let list = RevocationFile::new(path);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    match args.command {
        None => {
            let what = args.what.revoked()?;
            let entry = entry(what, now, args.lasts.as_deref(), args.reason)?;
            list.add(entry.clone(), now)?;
            super::say(&format!("revoked: {}", shown(&entry)));
        }
        Some(RevokeCommand::List { json }) => {
            let entries = match list.list() {
                Err(StoreError::Missing(_)) => Vec::new(),
                other => other?,
            };
            for entry in entries.iter().filter(|entry| entry.is_in_force(now)) {
                let line = if json { entry.line() } else { shown(entry) };
                super::give(&format!("{line}\n"));
            }
        }
        Some(RevokeCommand::Undo(what)) => {
            let what = what.revoked()?;
            if !list.remove(&what, now)? {
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
}

/// A key is revoked for good. Anything else until the last token that may be
/// out there has ended: an entry that ends before it would let it in again.
fn entry(
    what: Revoked,
    now: u64,
    lasts: Option<&str>,
    reason: Option<String>,
) -> anyhow::Result<Revocation> {
    let lasts = match lasts {
        Some(text) => Some(
            crate::config::parse_duration(text)
                .map_err(|error| anyhow::anyhow!("--for {text}: {error}"))?,
        ),
        None if what.kind == RevokedKind::Key => None,
        None => Some(MAX_LIFETIME),
    };
    if lasts.is_some_and(|lasts| lasts < Duration::from_secs(1)) {
        bail!("--for: write at least 1s");
    }
    let entry = Revocation {
        kind: what.kind,
        value: what.value,
        tenant: what.tenant,
        at: now,
        until: lasts.map(|lasts| now.saturating_add(lasts.as_secs())),
        reason,
    };
    entry.check().context("nothing is revoked")?;
    Ok(entry)
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
    line += &format!(", at {}", time(entry.at));
    line += &match entry.until {
        Some(until) => format!(", until {}", time(until)),
        None => ", for good".to_owned(),
    };
    if let Some(reason) = &entry.reason {
        // What somebody wrote stays on its line.
        line += &format!(": {}", reason.escape_debug());
    }
    line
}

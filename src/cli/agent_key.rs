//! `agentport agent-key`: long-lived keys for agents that can hold no token of
//! minutes.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::Subcommand;

use crate::adapters::agent_keys::{AgentKeyFile, KeyFileError};
use crate::adapters::host;
use crate::audit::Rfc3339;
use crate::config::Purpose;
use crate::egress::{AgentId, Destination, TenantId};
use crate::identity::AgentKey;

use super::SettingsArgs;

#[derive(Subcommand)]
pub(super) enum AgentKeyCommand {
    /// Make a key, and print it: it is shown this once, and only its hash is kept
    Create {
        /// The agent that it proves
        #[arg(long, value_name = "NAME")]
        agent_id: String,
        /// The agent's tenant
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// A host, *.suffix or range that it is limited to; may be given again, or as a list with commas
        #[arg(long, value_name = "DESTINATION", value_delimiter = ',')]
        allow: Vec<String>,
        /// How long it lives, such as 90d [default: until it is revoked]
        #[arg(long = "for", value_name = "TIME")]
        lasts: Option<String>,
    },
    /// Print what keys there are
    List,
    /// Take a key away, by its id: what is open by it is closed
    Revoke {
        /// apk_ and 16 digits, as the list prints it; the key itself is taken too
        id: String,
    },
}

pub(super) fn run(settings: &SettingsArgs, command: &AgentKeyCommand) -> anyhow::Result<ExitCode> {
    let config = super::load(settings, Purpose::Command)?;
    let Some(path) = &config.identity.agent_keys else {
        bail!(
            "there is no file of agent keys: set identity.agent_keys, for the gateways and for this command"
        );
    };
    let file = AgentKeyFile::new(path);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    match command {
        AgentKeyCommand::Create {
            agent_id,
            tenant,
            allow,
            lasts,
        } => {
            let agent = AgentId::parse(agent_id).context("--agent-id")?;
            let tenant = tenant
                .as_deref()
                .map(TenantId::parse)
                .transpose()
                .context("--tenant")?;
            let destinations = allow
                .iter()
                .map(|raw| Destination::parse(raw.trim()).with_context(|| format!("--allow {raw}")))
                .collect::<Result<Vec<_>, _>>()?;
            let allow = (!destinations.is_empty()).then_some(destinations);
            let expires = lasts
                .as_deref()
                .map(|text| {
                    crate::config::parse_duration(text)
                        .map_err(|error| anyhow::anyhow!("--for {text}: {error}"))
                })
                .transpose()?
                .map(|lasts| now.saturating_add(lasts.as_secs()));
            let random = host::random_bits;
            let (text, key) =
                AgentKey::make(&agent, tenant.as_ref(), allow, (now, expires), random);
            file.add(key)?;
            super::give(&format!("{text}\n"));
        }
        AgentKeyCommand::List => {
            let keys = match file.list() {
                Err(KeyFileError::Missing(_)) => Vec::new(),
                other => other?,
            };
            for key in keys {
                super::give(&format!("{}\n", shown(&key, now)));
            }
        }
        AgentKeyCommand::Revoke { id } => {
            // Who pastes the whole key means the same, and it is not repeated.
            let id = id
                .get(..20)
                .filter(|_| id.starts_with("apk_"))
                .unwrap_or(id);
            if !file.remove(id)? {
                bail!(
                    "there is no agent key {id}: `agentport agent-key list` prints those there are"
                );
            }
            super::say(&format!("revoked: agent key {id}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(key: &AgentKey, now: u64) -> String {
    let time = |seconds| {
        let text = Rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
        text.replace(".000000", "")
    };
    let mut line = format!("{} agent {}", key.id, key.agent);
    if let Some(tenant) = &key.tenant {
        line += &format!(" of tenant {tenant}");
    }
    if let Some(allow) = &key.allow {
        line += &format!(", allowed {}", allow.join(" "));
    }
    line += &format!(", made {}", time(key.created));
    line += &match key.expires {
        Some(end) if end <= now => format!(", ended {}", time(end)),
        Some(end) => format!(", until {}", time(end)),
        None => ", until it is revoked".to_owned(),
    };
    line
}

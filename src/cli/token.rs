//! `agentport issue-token`: one token on standard output, and nothing else.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::Args;

use crate::adapters::host;
use crate::config::{Config, Purpose};
use crate::egress::{AgentId, Destination, TenantId};
use crate::identity::{IssueRequest, TokenIssuer};
use crate::server::load;

use super::SettingsArgs;

/// How long a token for a batch job lives.
const BATCH: Duration = Duration::from_secs(3600);

#[derive(Args)]
pub(super) struct IssueArgs {
    /// The agent the token is for
    #[arg(long, value_name = "NAME")]
    agent_id: String,
    /// The agent's tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// A host, *.suffix or range the token is limited to; may be given again, or as a list with commas
    #[arg(long, value_name = "DESTINATION", value_delimiter = ',')]
    allow: Vec<String>,
    /// How long it lives, such as 15m or 1h [default: identity.token_ttl, 15m]
    #[arg(long, value_name = "TIME", conflicts_with_all = ["interactive", "batch"])]
    ttl: Option<String>,
    /// Live for 15 minutes
    #[arg(long, conflicts_with = "batch")]
    interactive: bool,
    /// Live for an hour
    #[arg(long)]
    batch: bool,
    /// Whom the token is for, where it is not this gateway
    #[arg(long, value_name = "NAME")]
    audience: Option<String>,
    /// A word of the token's scope; may be given again
    #[arg(long, value_name = "WORD", value_delimiter = ' ')]
    scope: Vec<String>,
    /// Who acts for the agent; given again, the actor before that one (RFC 8693)
    #[arg(long, value_name = "NAME")]
    act: Vec<String>,
}

pub(super) fn issue(settings: &SettingsArgs, args: &IssueArgs) -> anyhow::Result<ExitCode> {
    let config = super::load(settings, Purpose::Command)?;
    let lifetime = match &args.ttl {
        Some(text) => crate::config::parse_duration(text)
            .map_err(|error| anyhow::anyhow!("--ttl {text}: {error}"))?,
        None if args.batch => BATCH,
        None if args.interactive => Duration::from_secs(15 * 60),
        None => config.identity.token_ttl,
    };
    let destinations = args
        .allow
        .iter()
        .map(|raw| Destination::parse(raw.trim()).with_context(|| format!("--allow {raw}")))
        .collect::<Result<Vec<_>, _>>()?;
    let token = issue_token(
        &config,
        Wanted {
            agent: AgentId::parse(&args.agent_id).context("--agent-id")?,
            tenant: args
                .tenant
                .as_deref()
                .map(TenantId::parse)
                .transpose()
                .context("--tenant")?,
            destinations: (!destinations.is_empty()).then_some(destinations),
            lifetime,
            audience: args.audience.clone(),
            scope: (!args.scope.is_empty()).then(|| args.scope.join(" ")),
            actors: args.act.clone(),
        },
    )?;
    super::give(&format!("{token}\n"));
    Ok(ExitCode::SUCCESS)
}

/// A token that is wanted.
pub(super) struct Wanted {
    pub(super) agent: AgentId,
    pub(super) tenant: Option<TenantId>,
    pub(super) destinations: Option<Vec<Destination>>,
    pub(super) lifetime: Duration,
    pub(super) audience: Option<String>,
    pub(super) scope: Option<String>,
    pub(super) actors: Vec<String>,
}

/// Signs a token with the configured key.
pub(super) fn issue_token(config: &Config, wanted: Wanted) -> anyhow::Result<String> {
    let identity = &config.identity;
    if wanted.lifetime > identity.max_token_ttl {
        bail!(
            "a token may live for {:?} at most (identity.max_token_ttl)",
            identity.max_token_ttl
        );
    }
    if wanted.actors.len() > identity.max_delegation {
        bail!(
            "a token may have {} actors at most (identity.max_delegation)",
            identity.max_delegation
        );
    }
    let Some(key) = load::signing_key(config)? else {
        bail!(
            "there is no key to sign with: set AGENTPORT_JWKS_SECRET (`openssl rand -hex 32`) or identity.signing_key (`agentport keys generate`)"
        );
    };
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let request = IssueRequest {
        agent: wanted.agent,
        tenant: wanted.tenant,
        destinations: wanted.destinations,
        lifetime: wanted.lifetime,
        audience: wanted.audience,
        jti: host::random_bits(),
        actors: wanted.actors,
        scope: wanted.scope,
        client: None,
    };
    TokenIssuer::new(key, &identity.issuer, &identity.audience)
        .issue(&request, now)
        .context("cannot issue the token")
}

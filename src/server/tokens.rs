//! The token endpoint, from the configuration.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};

use crate::adapters::figures::Figures;
use crate::adapters::records::AuditLog;
use crate::adapters::service_accounts::AccountsFile;
use crate::admin::oauth::{EndpointParts, TokenEndpoint};
use crate::config::Config;
use crate::gate::ports::Clock;
use crate::identity::{CachedVerifier, Terms};

use super::load;

/// The endpoint, where the configuration names a file of accounts.
///
/// # Errors
/// Where that file is wrong, or there is nothing to sign with or to listen on.
pub(super) fn endpoint(
    config: &Config,
    address: Option<SocketAddr>,
    tokens: &Arc<CachedVerifier>,
    log: &Arc<AuditLog>,
    figures: &Arc<Figures>,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Option<Arc<TokenEndpoint>>> {
    let identity = &config.identity;
    let Some(path) = &identity.service_accounts else {
        return Ok(None);
    };
    if config.listen.admin.is_none() {
        bail!(
            "identity.service_accounts: tokens are issued on the admin listener: set listen.admin"
        );
    }
    let accounts = AccountsFile::open(path)
        .map_err(anyhow::Error::msg)
        .context("identity.service_accounts")?;
    let Some(key) = load::signing_key(config)? else {
        bail!(
            "identity.service_accounts: there is no key to sign tokens with: set identity.signing_key (`agentport keys generate`) or AGENTPORT_JWKS_SECRET"
        );
    };
    let endpoint = TokenEndpoint::new(
        Arc::new(accounts),
        EndpointParts {
            issuer: identity.issuer.clone(),
            terms: Terms {
                audience: identity.audience.clone(),
                default_ttl: identity.token_ttl,
                max_ttl: identity.max_token_ttl,
                max_actors: identity.max_delegation,
            },
            leeway: identity.leeway,
            url: identity.oauth_url.clone(),
            address,
            tokens: Arc::clone(tokens),
            log: Arc::clone(log),
            figures: Arc::clone(figures),
            clock: Arc::clone(clock),
        },
    );
    endpoint.sign_with(key);
    Ok(Some(Arc::new(endpoint)))
}

//! The token endpoint, from the configuration.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::adapters::figures::Figures;
use crate::adapters::records::AuditLog;
use crate::adapters::service_accounts::AccountsFile;
use crate::admin::oauth::{EndpointParts, TokenEndpoint};
use crate::config::Config;
use crate::gate::ports::Clock;
use crate::identity::{CachedVerifier, SigningKey, Terms};

use super::load;
use super::revocation::RevocationsInForce;

/// How often the folder of keys is asked who signs: a key may begin to at a
/// time that was written long before.
const ASK_FOR_THE_SIGNER: Duration = Duration::from_secs(5);

/// The accounts, where the configuration names a file of them.
///
/// # Errors
/// Where that file is wrong, or there is nothing to listen on.
pub(super) fn accounts(config: &Config) -> anyhow::Result<Option<AccountsFile>> {
    let Some(path) = &config.identity.service_accounts else {
        return Ok(None);
    };
    if config.listen.admin.is_none() {
        bail!(
            "identity.service_accounts: tokens are issued on the admin listener: set listen.admin"
        );
    }
    let accounts = AccountsFile::open(path).map_err(anyhow::Error::msg);
    accounts.context("identity.service_accounts").map(Some)
}

/// What tokens are signed with.
///
/// # Errors
/// Where there is nothing to sign with.
pub(super) fn signer(config: &Config) -> anyhow::Result<SigningKey> {
    load::signing_key(config)?.context(
        "identity.service_accounts: there is no key to sign tokens with: set identity.signing_key \
         or identity.signing_keys (`agentport keys generate`) or AGENTPORT_JWKS_SECRET",
    )
}

/// The endpoint, where the configuration names a file of accounts.
///
/// # Errors
/// Where that file is wrong, or there is nothing to sign with or to listen on.
pub(super) fn endpoint(
    config: &Config,
    address: Option<SocketAddr>,
    tokens: &Arc<CachedVerifier>,
    revocations: &Arc<RevocationsInForce>,
    log: &Arc<AuditLog>,
    figures: &Arc<Figures>,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Option<Arc<TokenEndpoint>>> {
    let Some(accounts) = accounts(config)? else {
        return Ok(None);
    };
    let key = signer(config)?;
    let identity = &config.identity;
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
            revocations: Arc::clone(revocations) as _,
            log: Arc::clone(log),
            figures: Arc::clone(figures),
            clock: Arc::clone(clock),
        },
    );
    endpoint.sign_with(key);
    Ok(Some(Arc::new(endpoint)))
}

/// Has the endpoint sign with the key that the configuration names now. Where
/// there is none, it keeps the one it has.
fn renew_signer(config: &Config, endpoint: &TokenEndpoint) {
    match load::signing_key(config) {
        Ok(Some(key)) => endpoint.sign_with(key),
        Ok(None) => tracing::error!("there is no key to sign with any more; the old one stays"),
        Err(error) => {
            tracing::error!(%error, "the new signing key is refused; the old one stays");
        }
    }
}

/// The same, off the threads that serve: it reads files.
pub(super) async fn renew_signer_aside(config: &Arc<Config>, endpoint: &Arc<TokenEndpoint>) {
    let (config, endpoint) = (Arc::clone(config), Arc::clone(endpoint));
    let read = tokio::task::spawn_blocking(move || renew_signer(&config, &endpoint));
    if let Err(error) = read.await {
        tracing::error!(%error, "reading the signing key failed; the old one stays");
    }
}

/// Follows the file of accounts, and the folder of keys by the clock, for ever.
///
/// # Errors
/// Where the file cannot be watched.
pub(super) fn run(
    config: Arc<Config>,
    endpoint: Arc<TokenEndpoint>,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let accounts = Arc::clone(&endpoint)
        .follow()
        .context("cannot watch identity.service_accounts")?;
    let signers = async move {
        if config.identity.signing_keys.is_none() {
            return;
        }
        let mut tick = tokio::time::interval(ASK_FOR_THE_SIGNER);
        loop {
            tick.tick().await;
            renew_signer_aside(&config, &endpoint).await;
        }
    };
    Ok(async move {
        tokio::join!(accounts, signers);
    })
}

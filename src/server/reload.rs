//! New policies and new keys while the gateway serves: read whole, checked,
//! and put in force at once; on a mistake the last good ones stay.

use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};

use crate::adapters::figures::Figures;
use crate::adapters::names::Resolver;
use crate::adapters::records::AuditLog;
use crate::adapters::watch::Watch;
use crate::admin::Readiness;
use crate::admin::oauth::TokenEndpoint;
use crate::config::Config;
use crate::gate::ports::{Clock, PolicySource};
use crate::identity::CachedVerifier;
use crate::policy::PolicySet;
use crate::proxy::Wire;

use super::load;

/// The policy in force.
pub(super) struct PolicyInForce(ArcSwap<PolicySet>);

impl PolicyInForce {
    pub(super) fn new(policy: PolicySet) -> Self {
        Self(ArcSwap::from_pointee(policy))
    }
}

impl PolicySource for PolicyInForce {
    fn current(&self) -> Arc<PolicySet> {
        self.0.load_full()
    }
}

pub(super) struct Reloader {
    config: Arc<Config>,
    policy: Arc<PolicyInForce>,
    tokens: Arc<CachedVerifier>,
    wire: Arc<Wire>,
    figures: Arc<Figures>,
    readiness: Arc<Readiness>,
    clock: Arc<dyn Clock>,
    names: Arc<Resolver>,
    endpoint: Option<Arc<TokenEndpoint>>,
}

impl Reloader {
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one part of the gateway that a reload touches"
    )]
    pub(super) fn new(
        config: Arc<Config>,
        policy: Arc<PolicyInForce>,
        tokens: Arc<CachedVerifier>,
        wire: Arc<Wire>,
        figures: Arc<Figures>,
        readiness: Arc<Readiness>,
        clock: Arc<dyn Clock>,
        names: Arc<Resolver>,
    ) -> Self {
        Self {
            config,
            policy,
            tokens,
            wire,
            figures,
            readiness,
            clock,
            names,
            endpoint: None,
        }
    }

    /// The same, so that the token endpoint signs with new keys too.
    pub(super) fn with_tokens(mut self, endpoint: Option<Arc<TokenEndpoint>>) -> Self {
        self.endpoint = endpoint;
        self
    }

    /// Reloads when a file changes and on SIGHUP, for ever.
    pub(super) fn run(
        self,
        log: Arc<AuditLog>,
    ) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
        let identity = &self.config.identity;
        let policy_paths: Vec<_> = self.config.policy.iter().cloned().collect();
        let key_paths: Vec<_> = identity
            .keys
            .iter()
            .map(|trusted| trusted.file.clone())
            .chain(identity.signing_key.clone())
            .chain(identity.secret_file.clone())
            .collect();
        let mut policy_watch = Watch::start(policy_paths).context("cannot watch the policy")?;
        let mut key_watch = Watch::start(key_paths).context("cannot watch the keys")?;
        let mut hangup = signal(SignalKind::hangup())?;
        Ok(async move {
            loop {
                tokio::select! {
                    Some(()) = policy_watch.changed() => self.policy().await,
                    Some(()) = key_watch.changed() => self.keys().await,
                    Some(()) = hangup.recv() => {
                        tracing::info!("SIGHUP: reloading policy, keys and resolver, and reopening the audit log");
                        log.reopen();
                        if let Err(error) = self.names.reload() {
                            tracing::error!(%error, "the resolver's configuration is refused; the old one stays");
                        }
                        self.policy().await;
                        self.keys().await;
                    }
                    else => std::future::pending().await,
                }
            }
        })
    }

    async fn policy(&self) {
        let config = Arc::clone(&self.config);
        // Off the threads that serve: a large policy takes a while to read.
        let loaded = tokio::task::spawn_blocking(move || load::policy(&config)).await;
        match loaded {
            Ok(Ok(policy)) => {
                let version = Arc::clone(policy.digest());
                if version == *self.policy.current().digest() {
                    self.readiness.policy_is(Ok(()));
                    return;
                }
                self.policy.0.store(Arc::new(policy));
                self.figures.policy_loaded(&version, self.clock.wall());
                self.readiness.policy_is(Ok(()));
                let ended = self.wire.judge_again();
                tracing::info!(%version, ended_tunnels = ended, "a new policy is in force");
            }
            Ok(Err(error)) => {
                self.figures.policy_refused();
                tracing::error!(%error, "the new policy is refused; the old one stays in force");
                self.readiness.policy_is(Err(error.to_string()));
            }
            Err(error) => {
                tracing::error!(%error, "reading the policy failed; the old one stays in force")
            }
        }
    }

    async fn keys(&self) {
        let config = Arc::clone(&self.config);
        match tokio::task::spawn_blocking(move || load::keys(&config)).await {
            Ok(Ok(keys)) if keys.is_empty() => {
                let error = "there is no key any more".to_owned();
                tracing::error!(%error, "the new keys are refused; the old ones stay in force");
                self.readiness.keys_are(Err(error));
            }
            Ok(Ok(keys)) => {
                self.tokens.replace_keys(keys);
                self.readiness.keys_are(Ok(()));
                self.sign_with_the_new_key();
                let ended = self.wire.judge_again();
                tracing::info!(ended_tunnels = ended, "new keys are in force");
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the new keys are refused; the old ones stay in force");
                self.readiness.keys_are(Err(error.to_string()));
            }
            Err(error) => {
                tracing::error!(%error, "reading the keys failed; the old ones stay in force")
            }
        }
    }

    /// Where the signing key is gone, the endpoint keeps the one it has.
    fn sign_with_the_new_key(&self) {
        let Some(endpoint) = &self.endpoint else {
            return;
        };
        match load::signing_key(&self.config) {
            Ok(Some(key)) => endpoint.sign_with(key),
            Ok(None) => tracing::error!("there is no key to sign with any more; the old one stays"),
            Err(error) => {
                tracing::error!(%error, "the new signing key is refused; the old one stays")
            }
        }
    }
}

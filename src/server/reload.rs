//! New policies and new keys while the gateway serves: read whole, checked,
//! and put in force at once; on a mistake the last good ones stay.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};

use crate::adapters::figures::Figures;
use crate::adapters::issuers::Issuers;
use crate::adapters::names::Resolver;
use crate::adapters::records::AuditLog;
use crate::adapters::watch::{Change, Watch};
use crate::admin::Readiness;
use crate::admin::oauth::TokenEndpoint;
use crate::config::{Config, OtherIssuer};
use crate::gate::ports::{Clock, PolicySource};
use crate::identity::{CachedVerifier, VerifyingKeys};
use crate::policy::PolicySet;
use crate::proxy::Wire;

use super::documents::{Documents, RefusedDocument};
use super::load::{self, LoadError};
use super::tokens;

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
    documents: Arc<Mutex<Documents>>,
    /// The documents that were refused when they were read last.
    refused: Arc<Mutex<Vec<RefusedDocument>>>,
    policy: Arc<PolicyInForce>,
    tokens: Arc<CachedVerifier>,
    issuers: Arc<Issuers>,
    /// The list of issuers in force.
    listed: Arc<Mutex<Vec<OtherIssuer>>>,
    wire: Arc<Wire>,
    figures: Arc<Figures>,
    readiness: Arc<Readiness>,
    clock: Arc<dyn Clock>,
    names: Arc<Resolver>,
    endpoint: Option<Arc<TokenEndpoint>>,
}

/// Lets go of a policy that is not in force any more: away from the threads
/// that serve, which would have to free all its rules, and once the requests
/// that it judges just now are through with it.
fn forget(policy: Arc<PolicySet>) {
    const THROUGH: Duration = Duration::from_secs(1);
    tokio::spawn(async move {
        tokio::time::sleep(THROUGH).await;
        tokio::task::spawn_blocking(move || drop(policy));
    });
}

impl Reloader {
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one part of the gateway that a reload touches"
    )]
    pub(super) fn new(
        config: Arc<Config>,
        documents: Documents,
        policy: Arc<PolicyInForce>,
        tokens: Arc<CachedVerifier>,
        (issuers, listed): (Arc<Issuers>, Vec<OtherIssuer>),
        wire: Arc<Wire>,
        figures: Arc<Figures>,
        readiness: Arc<Readiness>,
        clock: Arc<dyn Clock>,
        names: Arc<Resolver>,
    ) -> Self {
        Self {
            config,
            documents: Arc::new(Mutex::new(documents)),
            refused: Arc::default(),
            policy,
            tokens,
            issuers,
            listed: Arc::new(Mutex::new(listed)),
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
        let policy_paths: Vec<_> = self.config.policy.iter().cloned().collect();
        let mut key_paths = self.key_files();
        let mut policy_watch = Watch::start(policy_paths).context("cannot watch the policy")?;
        let mut key_watch = Watch::start(key_paths.clone()).context("cannot watch the keys")?;
        let mut hangup = signal(SignalKind::hangup())?;
        Ok(async move {
            loop {
                // A list of issuers may name other files. What they held before
                // they were watched is read once more.
                while key_paths != self.key_files() {
                    key_paths = self.key_files();
                    match Watch::start(key_paths.clone()) {
                        Ok(watch) => key_watch = watch,
                        Err(error) => {
                            tracing::error!(%error, "cannot watch the keys of the new issuers: reload by SIGHUP");
                        }
                    }
                    self.keys().await;
                }
                tokio::select! {
                    Some(change) = policy_watch.stirred_or_changed() => match change {
                        Change::Stirred => self.read_ahead().await,
                        Change::Settled => self.policy().await,
                    },
                    Some(()) = key_watch.changed() => self.keys().await,
                    () = self.next_end() => self.retire(),
                    Some(()) = hangup.recv() => {
                        tracing::info!("SIGHUP: reloading policy, keys and resolver, and reopening the audit log");
                        log.reopen();
                        if let Err(error) = self.names.reload() {
                            tracing::error!(%error, "the resolver's configuration is refused; the old one stays");
                        }
                        self.distrust();
                        self.policy().await;
                        self.keys().await;
                    }
                    else => std::future::pending().await,
                }
            }
        })
    }

    /// Comes back when a key has ended, also one that did so while something
    /// else was done here.
    async fn next_end(&self) {
        loop {
            let Some(end) = self.tokens.keys_now().first_end() else {
                return std::future::pending().await;
            };
            // Looked at again in between, since the clock may be set.
            let left = Duration::from_secs(end).saturating_sub(self.since_1970());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(Duration::from_secs(30))).await;
        }
    }

    /// Takes keys out of force whose time is over. They verify nothing by then,
    /// read or not; what is left is to say so, and to what is open.
    fn retire(&self) {
        let retired = self.issuers.retire_own(self.unix_seconds());
        let ended = self.wire.judge_again();
        tracing::info!(
            retired,
            ended_tunnels = ended,
            "keys have retired: their overlap is over"
        );
    }

    fn unix_seconds(&self) -> u64 {
        self.since_1970().as_secs()
    }

    fn since_1970(&self) -> Duration {
        let since = self.clock.wall().duration_since(SystemTime::UNIX_EPOCH);
        since.unwrap_or_default()
    }

    /// Has every file of the policy read, whether it seems to have changed or
    /// not: somebody has asked for it.
    fn distrust(&self) {
        let mut documents = self
            .documents
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        documents.distrust();
    }

    /// Reads and parses while the files come to rest, which takes longest of a
    /// large policy.
    async fn read_ahead(&self) {
        let documents = Arc::clone(&self.documents);
        let read = tokio::task::spawn_blocking(move || {
            let mut documents = documents.lock().unwrap_or_else(PoisonError::into_inner);
            documents.read_ahead();
        });
        if let Err(error) = read.await {
            tracing::error!(%error, "reading the policy ahead failed");
        }
    }

    async fn policy(&self) {
        let documents = Arc::clone(&self.documents);
        // Off the threads that serve: a large policy takes a while to read.
        let loaded = tokio::task::spawn_blocking(move || {
            let mut documents = documents.lock().unwrap_or_else(PoisonError::into_inner);
            documents.load()
        });
        match loaded.await {
            Ok(Ok(loaded)) => {
                let version = Arc::clone(loaded.policy.digest());
                let changed = version != *self.policy.current().digest();
                self.figures.tenants_are(loaded.policy.tenants());
                if changed {
                    forget(self.policy.0.swap(Arc::new(loaded.policy)));
                    self.figures.policy_loaded(&version, self.clock.wall());
                }
                self.refused(loaded.refused);
                if changed {
                    let ended = self.wire.judge_again();
                    tracing::info!(%version, ended_tunnels = ended, "a new policy is in force");
                }
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

    /// Tells of every document that is refused, and once of each.
    pub(super) fn refused(&self, now: Vec<RefusedDocument>) {
        let mut known = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        for refused in now.iter().filter(|refused| !known.contains(refused)) {
            self.figures.policy_refused();
            let (document, error) = (&refused.document, &refused.error);
            let tenant = refused.tenant.as_deref();
            if refused.last_good_in_force {
                tracing::error!(%document, tenant, %error, "the new policy is refused; the old one stays in force");
            } else {
                tracing::error!(%document, tenant, %error, "the policy is refused; nothing of this document is in force");
            }
        }
        self.figures.policy_documents_refused(
            now.iter()
                .map(|refused| (refused.document.as_str(), refused.tenant.as_deref())),
        );
        self.readiness.documents_are(&now);
        *known = now;
    }

    /// The files of the keys in force.
    fn key_files(&self) -> Vec<PathBuf> {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        load::key_files(&self.config, &listed)
    }

    async fn keys(&self) {
        let (config, listed) = (Arc::clone(&self.config), Arc::clone(&self.listed));
        let read = tokio::task::spawn_blocking(move || {
            let listed = listed.lock().unwrap_or_else(PoisonError::into_inner);
            KeysRead::read(&config, &listed)
        });
        let read = match read.await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => return self.keys_refused(&error.to_string()),
            Err(error) => return self.keys_refused(&error.to_string()),
        };
        if read.keys.is_empty() && !load::does_without(&self.config, &read.issuers) {
            return self.keys_refused("there is no key any more");
        }
        self.issuers.replace(read.keys, &read.issuers);
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = read.issuers;
        if let Some(endpoint) = &self.endpoint {
            tokens::renew_signer_aside(&self.config, endpoint).await;
        }
        let ended = self.wire.judge_again();
        tracing::info!(ended_tunnels = ended, "new keys are in force");
        self.figures.keys_read(read.refused.is_none());
        if let Some(error) = &read.refused {
            tracing::error!(%error, "the new list of issuers is refused; the old one stays in force");
        }
        let outcome = read.refused.map_or(Ok(()), |error| Err(error.to_string()));
        self.readiness.keys_are(outcome);
    }

    fn keys_refused(&self, error: &str) {
        self.figures.keys_read(false);
        tracing::error!(%error, "the new keys are refused; the old ones stay in force");
        self.readiness.keys_are(Err(error.to_owned()));
    }
}

/// What a reading of the keys has given.
struct KeysRead {
    issuers: Vec<OtherIssuer>,
    keys: VerifyingKeys,
    /// What is wrong with the list of issuers, where the last good one stands
    /// for it.
    refused: Option<LoadError>,
}

impl KeysRead {
    /// Reads all, blocking. A list of issuers with a mistake, or whose files
    /// have one, is no hindrance to a new key of our own.
    fn read(config: &Config, last_good: &[OtherIssuer]) -> Result<Self, LoadError> {
        let new =
            load::issuers(config).and_then(|issuers| Ok((load::keys(config, &issuers)?, issuers)));
        match new {
            Ok((keys, issuers)) => Ok(Self {
                keys,
                issuers,
                refused: None,
            }),
            Err(error) => Ok(Self {
                keys: load::keys(config, last_good)?,
                issuers: last_good.to_vec(),
                refused: Some(error),
            }),
        }
    }
}

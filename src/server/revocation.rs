//! Revocations while the gateway serves: read when the list changes, put in
//! force at once, and put to what is open.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use crate::adapters::figures::Figures;
use crate::adapters::redis::Redis;
use crate::adapters::revocations::{
    Held, RedisRevocations, RevocationFile, RevocationStore, StoreError,
};
use crate::admin::Readiness;
use crate::config::{Config, Switch};
use crate::gate::ports::{Clock, RevocationSource};
use crate::identity::{CachedVerifier, Revocation, RevocationSet};
use crate::proxy::Wire;

/// The revocations in force.
pub(super) struct RevocationsInForce {
    set: ArcSwap<RevocationSet>,
    /// Our own `iss`.
    own: String,
}

impl RevocationsInForce {
    /// None yet.
    pub(super) fn new(own: &str) -> Self {
        let own = own.to_owned();
        let set = ArcSwap::from_pointee(RevocationSet::new([], &own));
        Self { set, own }
    }

    fn put(&self, entries: &[Revocation]) {
        let set = RevocationSet::new(entries, &self.own);
        self.set.store(Arc::new(set));
    }
}

impl RevocationSource for RevocationsInForce {
    fn current(&self) -> Arc<RevocationSet> {
        self.set.load_full()
    }
}

/// How long Redis is waited for at the start.
const FIRST: Duration = Duration::from_secs(10);

/// The list that a configuration names; `redis` is the shared connection.
#[must_use]
pub(crate) fn store(config: &Config, redis: Option<&Redis>) -> Option<RevocationStore> {
    let written = &config.identity.revocations;
    match (&written.file, redis) {
        (Some(path), _) => Some(RevocationStore::File(RevocationFile::new(path))),
        (None, Some(redis)) if written.redis == Switch::On => {
            Some(RevocationStore::Redis(RedisRevocations::new(redis.clone())))
        }
        (None, _) => None,
    }
}

/// Whether a list in a file can be read. One that is not there yet is made by
/// the start, in a folder that must be there.
///
/// # Errors
/// A list that cannot be read, or made.
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    let Some(path) = &config.identity.revocations.file else {
        return Ok(());
    };
    match RevocationFile::new(path).list() {
        Err(StoreError::Missing(_)) => {
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            if folder.is_dir() {
                return Ok(());
            }
            bail!(
                "identity.revocations.file: {}: there is no folder {}: make it, for the gateway to write",
                path.display(),
                folder.display()
            );
        }
        listed => listed.map(drop).context("identity.revocations.file"),
    }
}

/// Reads the list for the first time.
///
/// # Errors
/// A list that cannot be read, or made where there is none: a gateway that
/// starts without what was revoked would let it in again.
pub(super) async fn open(
    store: &RevocationStore,
    redis: Option<&Redis>,
    in_force: &RevocationsInForce,
    figures: &Figures,
    now: u64,
) -> anyhow::Result<Held> {
    match (store, redis) {
        (RevocationStore::File(file), _) => file.create().context("identity.revocations.file")?,
        (RevocationStore::Redis(_), Some(redis)) => {
            // Where it does not come, the reading says why.
            let _ = tokio::time::timeout(FIRST, redis.connected()).await;
        }
        (RevocationStore::Redis(_), None) => {}
    }
    let mut held = Held::default();
    store
        .read(&mut held, now)
        .await
        .context("identity.revocations: what is revoked is not known, so nobody is let in")?;
    in_force.put(held.entries());
    figures.revocations_are(Some(held.entries().len()));
    Ok(held)
}

/// Keeps the revocations in force what the list says.
pub(super) struct Revoking {
    pub(super) store: RevocationStore,
    /// What is in force, as it was read.
    pub(super) held: Held,
    pub(super) in_force: Arc<RevocationsInForce>,
    pub(super) tokens: Arc<CachedVerifier>,
    pub(super) wire: Arc<Wire>,
    pub(super) figures: Arc<Figures>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) asked: mpsc::Receiver<oneshot::Sender<Result<(), String>>>,
}

impl Revoking {
    /// Reads whenever the list changes or somebody asks, for ever.
    ///
    /// # Errors
    /// Where the list cannot be watched.
    pub(super) fn run(mut self) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
        let mut changes = self
            .store
            .follow()
            .context("cannot watch the revocations")?;
        Ok(async move {
            // What was written between the first reading and the watch.
            if self.read().await.is_err() {
                changes.look_again();
            }
            loop {
                let answer = tokio::select! {
                    () = changes.changed() => None,
                    Some(answer) = self.asked.recv() => Some(answer),
                };
                let outcome = self.read().await;
                // One answer that did not come must not lose what was revoked.
                if outcome.is_err() {
                    changes.look_again();
                }
                if let Some(answer) = answer {
                    // Where nobody waits any more, nobody is told.
                    let _ = answer.send(outcome);
                }
            }
        })
    }

    /// Reads the list and puts it in force, or says why it could not be read.
    async fn read(&mut self) -> Result<(), String> {
        let now = unix_seconds(&*self.clock);
        let before = self.held.clone();
        match self.store.read(&mut self.held, now).await {
            Ok(restored) => {
                let entries = self.held.entries();
                if restored {
                    self.figures.revocations_restored();
                    tracing::warn!(
                        revocations = entries.len(),
                        "Redis has lost revocations, or changes to them, and has been given what this gateway held: what was taken back meanwhile may be revoked again"
                    );
                }
                if before.entries() != entries {
                    self.put_in_force(entries);
                }
                // Not before it is so: who sees the figure relies on it.
                self.figures.revocations_are(Some(entries.len()));
                self.readiness.revocations_are(Ok(()));
                Ok(())
            }
            Err(error) => {
                let error = error.to_string();
                self.figures.revocations_are(None);
                // Said once, and not at every attempt.
                if self.readiness.revocations_are(Err(error.clone())) {
                    tracing::error!(%error, "the revocations cannot be read; the last known ones stay in force");
                }
                Err(error)
            }
        }
    }

    /// First in force, then put to what is open: whoever comes in between is
    /// seen by one of both.
    fn put_in_force(&self, entries: &[Revocation]) {
        self.in_force.put(entries);
        self.tokens.flush();
        let ended = self.wire.judge_again();
        tracing::info!(
            revocations = entries.len(),
            ended_tunnels = ended,
            "revocations are in force"
        );
    }
}

/// The time, in seconds since 1970.
pub(super) fn unix_seconds(clock: &dyn Clock) -> u64 {
    let since = clock.wall().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

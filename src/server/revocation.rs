//! Revocations while the gateway serves: read when the list changes, put in
//! force at once, and put to what is open.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use crate::adapters::figures::Figures;
use crate::adapters::redis::Redis;
use crate::adapters::revocations::{RedisRevocations, RevocationFile, RevocationStore};
use crate::admin::Readiness;
use crate::config::{Config, Switch};
use crate::gate::ports::RevocationSource;
use crate::identity::{CachedVerifier, Revocation, RevocationSet};
use crate::proxy::Wire;

/// The revocations in force.
#[derive(Default)]
pub(super) struct RevocationsInForce(ArcSwap<RevocationSet>);

impl RevocationSource for RevocationsInForce {
    fn current(&self) -> Arc<RevocationSet> {
        self.0.load_full()
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
) -> anyhow::Result<()> {
    match (store, redis) {
        (RevocationStore::File(file), _) => file.create().context("identity.revocations.file")?,
        (RevocationStore::Redis(_), Some(redis)) => {
            // Where it does not come, the reading says why.
            let _ = tokio::time::timeout(FIRST, redis.connected()).await;
        }
        (RevocationStore::Redis(_), None) => {}
    }
    let entries = store
        .list()
        .await
        .context("identity.revocations: what is revoked is not known, so nobody is let in")?;
    in_force.0.store(Arc::new(RevocationSet::new(&entries)));
    figures.revocations_are(Some(entries.len()));
    Ok(())
}

/// Keeps the revocations in force what the list says.
pub(super) struct Revoking {
    pub(super) store: RevocationStore,
    pub(super) in_force: Arc<RevocationsInForce>,
    pub(super) tokens: Arc<CachedVerifier>,
    pub(super) wire: Arc<Wire>,
    pub(super) figures: Arc<Figures>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) asked: mpsc::Receiver<oneshot::Sender<()>>,
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
            let mut last = None;
            if !self.read(&mut last).await {
                changes.look_again();
            }
            loop {
                let answer = tokio::select! {
                    () = changes.changed() => None,
                    Some(answer) = self.asked.recv() => Some(answer),
                };
                // One answer that did not come must not lose what was revoked.
                if !self.read(&mut last).await {
                    changes.look_again();
                }
                if let Some(answer) = answer {
                    // Where nobody waits any more, nobody is told.
                    let _ = answer.send(());
                }
            }
        })
    }

    /// Says whether it could be read.
    async fn read(&self, last: &mut Option<Vec<Revocation>>) -> bool {
        let known = last.as_deref().unwrap_or_default();
        let read = match self.store.restore(known).await {
            Ok(restored) => {
                if restored {
                    tracing::warn!(
                        revocations = known.len(),
                        "Redis came back without the revocations, and has been given them again"
                    );
                }
                self.store.list().await
            }
            Err(error) => Err(error),
        };
        match read {
            Ok(entries) => {
                self.readiness.revocations_are(Ok(()));
                self.figures.revocations_are(Some(entries.len()));
                if last.as_ref() != Some(&entries) {
                    self.put_in_force(&entries);
                    *last = Some(entries);
                }
                true
            }
            Err(error) => {
                self.figures.revocations_are(None);
                // Said once, and not at every attempt.
                if self.readiness.revocations_are(Err(error.to_string())) {
                    tracing::error!(%error, "the revocations cannot be read; the last known ones stay in force");
                }
                false
            }
        }
    }

    /// First in force, then put to what is open: whoever comes in between is
    /// seen by one of both.
    fn put_in_force(&self, entries: &[Revocation]) {
        self.in_force.0.store(Arc::new(RevocationSet::new(entries)));
        self.tokens.flush();
        let ended = self.wire.judge_again();
        tracing::info!(
            revocations = entries.len(),
            ended_tunnels = ended,
            "revocations are in force"
        );
    }
}

//! Revocations while the gateway serves: read when the list changes, put in
//! force at once, and put to what is open.

use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use crate::adapters::figures::Figures;
use crate::adapters::revocations::{RevocationFile, StoreError};
use crate::adapters::watch::Watch;
use crate::admin::Readiness;
use crate::config::Config;
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

/// The list that a configuration names, read for the first time.
///
/// # Errors
/// A list that cannot be read, or made where there is none: a gateway that
/// starts without what was revoked would let it in again.
pub(super) fn open(
    config: &Config,
    in_force: &RevocationsInForce,
    figures: &Figures,
) -> anyhow::Result<Option<RevocationFile>> {
    let Some(path) = &config.identity.revocations.file else {
        return Ok(None);
    };
    let file = RevocationFile::new(path);
    file.create()
        .and_then(|()| file.list())
        .map(|entries| {
            in_force.0.store(Arc::new(RevocationSet::new(&entries)));
            figures.revocations_are(Some(entries.len()));
        })
        .context("identity.revocations.file")?;
    Ok(Some(file))
}

/// Keeps the revocations in force what the list says.
pub(super) struct Revoking {
    pub(super) file: RevocationFile,
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
        let path = self.file.path().to_owned();
        let mut watch = Watch::start(vec![path]).context("cannot watch the revocations")?;
        Ok(async move {
            // What was written between the first reading and the watch.
            let mut last = None;
            self.read(&mut last).await;
            loop {
                tokio::select! {
                    Some(()) = watch.changed() => self.read(&mut last).await,
                    Some(answer) = self.asked.recv() => {
                        self.read(&mut last).await;
                        // Where nobody waits any more, nobody is told.
                        let _ = answer.send(());
                    }
                    else => std::future::pending().await,
                }
            }
        })
    }

    async fn read(&self, last: &mut Option<Vec<Revocation>>) {
        let file = self.file.clone();
        let read = tokio::task::spawn_blocking(move || file.list()).await;
        match read.unwrap_or_else(|error| Err(StoreError::System(std::io::Error::other(error)))) {
            Ok(entries) => {
                self.readiness.revocations_are(Ok(()));
                self.figures.revocations_are(Some(entries.len()));
                if last.as_ref() == Some(&entries) {
                    return;
                }
                self.put_in_force(&entries);
                *last = Some(entries);
            }
            Err(error) => {
                self.figures.revocations_are(None);
                self.readiness.revocations_are(Err(error.to_string()));
                tracing::error!(%error, "the revocations cannot be read; the last known ones stay in force");
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

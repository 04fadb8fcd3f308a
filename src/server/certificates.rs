//! TLS towards clients, from its files and kept up with them: read whole,
//! checked, and put in force at once; on a mistake the last good ones stay.

use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::adapters::certificates::{self, InUse, Loaded};
use crate::adapters::figures::Figures;
use crate::adapters::watch::Watch;
use crate::config::{Config, Tls};
use crate::gate::ports::Clock;
use crate::proxy::{ListenerTls, Wire};

/// TLS as a section of the configuration has it, with what tells its files from
/// others.
///
/// # Errors
/// Every file that gives nothing usable, and what to do.
pub(super) fn listener_tls(
    tls: &Tls,
    figures: &Figures,
    clock: &dyn Clock,
) -> anyhow::Result<(Arc<ListenerTls>, [u8; 32])> {
    let loaded = certificates::load(tls, clock.wall())
        .map_err(|errors| anyhow::anyhow!(errors.join("\n")))
        .context("the certificates are not valid")?;
    observe(figures, &loaded);
    let tls = ListenerTls::new(loaded.parts)
        .map_err(anyhow::Error::msg)
        .context("tls")?;
    Ok((Arc::new(tls), loaded.digest))
}

/// The same for the egress listeners; `None` where none speaks TLS.
///
/// # Errors
/// As [`listener_tls`].
pub(super) fn of_egress(
    config: &Config,
    figures: &Figures,
    clock: &dyn Clock,
) -> anyhow::Result<Option<(Arc<ListenerTls>, [u8; 32])>> {
    if config.listen.egress_tls.is_empty() {
        return Ok(None);
    }
    listener_tls(&config.tls, figures, clock).map(Some)
}

fn observe(figures: &Figures, loaded: &Loaded) {
    figures.certificates_loaded();
    observe_all(figures, &loaded.in_use);
}

/// Says when each of these expires.
pub(super) fn observe_all(figures: &Figures, in_use: &[InUse]) {
    for certificate in in_use {
        figures.certificate_expires(&certificate.name, certificate.expires);
    }
}

/// Keeps the certificates up with their files.
pub(super) struct CertificateReloader {
    pub(super) written: Arc<Tls>,
    pub(super) tls: Arc<ListenerTls>,
    /// What is in force, by [`Loaded::digest`].
    pub(super) in_force: [u8; 32],
    pub(super) wire: Arc<Wire>,
    pub(super) figures: Arc<Figures>,
    /// Where the outcome is told.
    pub(super) tell: Box<dyn Fn(Result<(), String>) + Send + Sync>,
    pub(super) clock: Arc<dyn Clock>,
}

impl CertificateReloader {
    /// Reloads when a file changes and on SIGHUP, for ever.
    pub(super) fn run(mut self) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
        let files = certificates::files(&self.written);
        let mut watch = Watch::start(files).context("cannot watch the certificates")?;
        let mut hangup = signal(SignalKind::hangup())?;
        Ok(async move {
            // What has changed since the first reading was not watched yet.
            self.reload().await;
            loop {
                tokio::select! {
                    Some(()) = watch.changed() => self.reload().await,
                    Some(()) = hangup.recv() => self.reload().await,
                    else => std::future::pending().await,
                }
            }
        })
    }

    async fn reload(&mut self) {
        let (written, now) = (Arc::clone(&self.written), self.clock.wall());
        let loaded = tokio::task::spawn_blocking(move || certificates::load(&written, now)).await;
        let outcome = match loaded {
            Ok(Ok(loaded)) if loaded.digest == self.in_force => {
                (self.tell)(Ok(()));
                return;
            }
            Ok(Ok(loaded)) => self.put_in_force(loaded),
            Ok(Err(errors)) => Err(errors.join("\n")),
            Err(error) => Err(format!("reading the certificates failed: {error}")),
        };
        match &outcome {
            Ok(ended) => {
                tracing::info!(ended_tunnels = ended, "certificates are in force");
            }
            Err(error) => {
                self.figures.certificates_refused();
                tracing::error!(%error, "the new certificates are refused; the old ones stay in force");
            }
        }
        (self.tell)(outcome.map(|_| ()));
    }

    /// Gives how many tunnels have lost what let them be opened.
    fn put_in_force(&mut self, loaded: Loaded) -> Result<usize, String> {
        self.tls.replace(loaded.parts.clone())?;
        self.in_force = loaded.digest;
        observe(&self.figures, &loaded);
        Ok(self.wire.judge_again())
    }
}

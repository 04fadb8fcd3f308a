//! The CA under which refusals are told inside tunnels, kept up with its files.

use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::adapters::figures::Figures;
use crate::adapters::refusals::RefusalAuthority;
use crate::adapters::watch::Watch;
use crate::admin::Readiness;
use crate::config::Config;
use crate::gate::ports::Clock;

/// The CA, where the configuration has one.
///
/// # Errors
/// With the file, and what to do.
pub(super) fn open(
    config: &Config,
    figures: &Figures,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Option<Arc<RefusalAuthority>>> {
    let Some(written) = config.refusals.authority() else {
        return Ok(None);
    };
    let name = written.certificate.display().to_string();
    let authority = RefusalAuthority::open(written, Arc::clone(clock))
        .map_err(anyhow::Error::msg)
        .context("refusals")?;
    figures.certificate_expires(&name, authority.expires());
    Ok(Some(Arc::new(authority)))
}

/// Reads it anew when a file changes and on SIGHUP, for ever.
///
/// # Errors
/// Where the files cannot be watched.
pub(super) fn keep(
    authority: Arc<RefusalAuthority>,
    figures: Arc<Figures>,
    readiness: Arc<Readiness>,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut watch = Watch::start(authority.files()).context("cannot watch refusals.certificate")?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            // What has changed since the first reading was not watched yet.
            let reading = Arc::clone(&authority);
            let read = tokio::task::spawn_blocking(move || reading.reload()).await;
            let read = read.unwrap_or_else(|error| Err(format!("reading it failed: {error}")));
            match &read {
                Ok(false) => {}
                Ok(true) => {
                    figures.certificates_loaded();
                    if let Some(file) = authority.files().first() {
                        let name = file.display().to_string();
                        figures.certificate_expires(&name, authority.expires());
                    }
                    tracing::info!("another CA for refusals is in force");
                }
                Err(error) => {
                    figures.certificates_refused();
                    tracing::error!(%error, "the new CA for refusals is refused; the old one stays in force");
                }
            }
            readiness.refusals_are(read.map(|_| ()));
            tokio::select! {
                Some(()) = watch.changed() => {}
                Some(()) = hangup.recv() => {}
                else => std::future::pending().await,
            }
        }
    })
}

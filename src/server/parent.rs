//! The parent proxy, from its files and kept up with them; and where it is, so
//! that no agent reaches it as a destination.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::adapters::names::Resolver;
use crate::adapters::parent;
use crate::adapters::watch::Watch;
use crate::admin::Readiness;
use crate::config::{AskFor, Config, UpstreamProxy};
use crate::gate::Gate;
use crate::gate::ports::Resolve;
use crate::proxy::{Parent, ParentAsks};

/// How often its name is looked up where no request does.
const LOOK_UP: Duration = Duration::from_secs(30);

/// The parent proxy of a configuration.
///
/// # Errors
/// The file that gives nothing usable, and what to do.
pub(super) fn open(config: &Config) -> anyhow::Result<Option<(Arc<Parent>, UpstreamProxy)>> {
    let Some(written) = &config.upstream_proxy else {
        return Ok(None);
    };
    let access = parent::access(written).map_err(anyhow::Error::msg)?;
    if let Some(file) = &written.credentials_file
        && parent::is_open_to_all(file)
    {
        let file = file.display();
        tracing::warn!(
            "upstream_proxy.credentials_file: {file}: everybody may read it: run chmod 0600"
        );
    }
    let asks = match written.address {
        AskFor::Resolved => ParentAsks::Address,
        AskFor::Name => ParentAsks::Name,
        AskFor::Unchecked => ParentAsks::UnresolvedName,
    };
    let parent = Parent::new(
        written.url.authority.clone(),
        asks,
        written.no_proxy.clone(),
        access,
    );
    Ok(Some((Arc::new(parent), written.clone())))
}

/// Whether it is somebody else.
///
/// # Errors
/// Where it is the gateway itself.
pub(super) fn check(parent: &Parent, gate: &Gate) -> anyhow::Result<()> {
    if gate.is_own(parent.listens_at()) {
        bail!(
            "upstream_proxy.url: {} is the gateway itself",
            parent.listens_at()
        );
    }
    Ok(())
}

/// Looks up where it is.
pub(super) async fn look_up(parent: &Parent, names: &Resolver) {
    // A name that is not found now is looked up by each request.
    if let Some(name) = parent.listens_at().host.name()
        && let Ok(found) = names.lookup(name).await
    {
        parent.leads_to(found.to_vec());
    }
}

/// Keeps the parent proxy up with its files and its name.
pub(super) struct ParentKeeper {
    pub(super) parent: Arc<Parent>,
    pub(super) written: UpstreamProxy,
    pub(super) names: Arc<Resolver>,
}

impl ParentKeeper {
    /// Does so for ever.
    ///
    /// # Errors
    /// Where the files cannot be watched.
    pub(super) fn run(
        self,
        readiness: Arc<Readiness>,
    ) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
        let files = parent::files(&self.written);
        let mut watch = Watch::start(files).context("cannot watch upstream_proxy")?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut look = tokio::time::interval(LOOK_UP);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Ok(async move {
            loop {
                tokio::select! {
                    _ = look.tick() => look_up(&self.parent, &self.names).await,
                    Some(()) = watch.changed() => self.reload(&readiness).await,
                    Some(()) = hangup.recv() => self.reload(&readiness).await,
                }
            }
        })
    }

    async fn reload(&self, readiness: &Readiness) {
        let written = self.written.clone();
        let read = tokio::task::spawn_blocking(move || parent::access(&written)).await;
        match read.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(access) => {
                self.parent.replace(access);
                readiness.upstream_proxy_is(Ok(()));
                tracing::info!("the files of upstream_proxy are in force");
            }
            Err(error) => {
                tracing::error!(%error, "the new files of upstream_proxy are refused; the last good ones stay in force");
                readiness.upstream_proxy_is(Err(error));
            }
        }
    }
}

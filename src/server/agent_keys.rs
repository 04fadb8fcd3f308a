//! Agent keys while the gateway serves: read when their file changes; on a
//! mistake the last good ones stay.

use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwap;

use crate::adapters::agent_keys::{AgentKeyFile, KeyFileError};
use crate::adapters::watch::Watch;
use crate::admin::Readiness;
use crate::config::Config;
use crate::gate::ports::AgentKeySource;
use crate::identity::AgentKeys;
use crate::proxy::Wire;

/// The agent keys in force.
#[derive(Default)]
pub(super) struct AgentKeysInForce(ArcSwap<AgentKeys>);

impl AgentKeySource for AgentKeysInForce {
    fn current(&self) -> Arc<AgentKeys> {
        self.0.load_full()
    }
}

/// The file that a configuration names, and what stands in it.
///
/// # Errors
/// A file that cannot be read, or has a mistake.
pub(super) fn read(config: &Config) -> anyhow::Result<Option<(AgentKeyFile, AgentKeys)>> {
    let Some(path) = &config.identity.agent_keys else {
        return Ok(None);
    };
    let file = AgentKeyFile::new(path);
    let table = file.table().context("identity.agent_keys")?;
    Ok(Some((file, table)))
}

/// The same, put in force for the first time.
///
/// # Errors
/// As [`read`].
pub(super) fn open(
    config: &Config,
    in_force: &AgentKeysInForce,
) -> anyhow::Result<Option<AgentKeyFile>> {
    let read = read(config)?;
    Ok(read.map(|(file, table)| {
        in_force.0.store(Arc::new(table));
        file
    }))
}

/// Keeps the keys in force what their file says, for ever.
///
/// # Errors
/// Where the file cannot be watched.
pub(super) fn keep(
    file: AgentKeyFile,
    in_force: Arc<AgentKeysInForce>,
    wire: Arc<Wire>,
    readiness: Arc<Readiness>,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let paths = vec![file.path().to_owned()];
    let mut watch = Watch::start(paths).context("cannot watch the agent keys")?;
    Ok(async move {
        loop {
            let reading = file.clone();
            let read = tokio::task::spawn_blocking(move || reading.table()).await;
            let read = read
                .unwrap_or_else(|error| Err(KeyFileError::System(std::io::Error::other(error))));
            match read {
                Ok(keys) => {
                    let count = keys.len();
                    in_force.0.store(Arc::new(keys));
                    readiness.agent_keys_are(Ok(()));
                    let ended = wire.judge_again();
                    tracing::info!(
                        agent_keys = count,
                        ended_tunnels = ended,
                        "agent keys are in force"
                    );
                }
                Err(error) => {
                    readiness.agent_keys_are(Err(error.to_string()));
                    tracing::error!(%error, "the agent keys are refused; the last good ones stay in force");
                }
            }
            if watch.changed().await.is_none() {
                std::future::pending::<()>().await;
            }
        }
    })
}

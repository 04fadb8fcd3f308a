//! Names that must not be reached past the gateway's own paths (those of agents
//! that are called, of the agent behind the gateway and of the parent proxy),
//! as they are looked up before anybody is served.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::proxy::Wire;

/// The most that the start waits for them, all at once: a resolver that works
/// has answered by then, and one that does not must not keep what needs none
/// of these names from being served.
const LONGEST: Duration = Duration::from_secs(1);

/// Lookups that are under way.
#[derive(Default)]
pub(super) struct FirstLookups(JoinSet<()>);

impl FirstLookups {
    /// Begins one.
    pub(super) fn begin(&mut self, lookup: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(lookup);
    }

    /// Comes back when all have ended, or when that takes too long.
    pub(super) async fn wait(&mut self) {
        let all = async { while self.0.join_next().await.is_some() {} };
        if tokio::time::timeout(LONGEST, all).await.is_err() {
            tracing::warn!(
                under_way = self.0.len(),
                "the resolver is slow: names of agents or of the parent proxy are still looked up"
            );
        }
    }

    /// What is left of them. A tunnel may have been opened by then to what was
    /// found too late; it is ended.
    pub(super) async fn finish(mut self, wire: Arc<Wire>) {
        if self.0.is_empty() {
            return;
        }
        while self.0.join_next().await.is_some() {}
        let ended_tunnels = wire.judge_again();
        tracing::info!(
            ended_tunnels,
            "the names that were slow have been looked up"
        );
    }
}

//! Where the agent behind the gateway is, so that no agent reaches it but by
//! the gateway's own paths; looked up in the background, beside all else that
//! is so refused.

use std::net::SocketAddr;
use std::time::Duration;

use crate::egress::{Authority, Host};
use crate::gate::ports::{OffLimits, Resolve};
use crate::proxy::KnownAddresses;

/// How often its name is looked up.
const LOOK_UP: Duration = Duration::from_secs(5);

/// An agent behind the gateway that is named by a host.
#[derive(Debug)]
pub struct AgentBehind {
    at: Authority,
    known: KnownAddresses,
}

impl AgentBehind {
    /// The one that listens here.
    #[must_use]
    pub fn new(at: Authority) -> Self {
        Self {
            at,
            known: KnownAddresses::default(),
        }
    }

    /// Looks up where its name leads. What was known stays where that is not to
    /// be had.
    pub async fn locate(&self, names: &(impl Resolve + ?Sized)) {
        match &self.at.host {
            Host::Address(address) => self.known.found(vec![*address]),
            Host::Name(name) => match names.lookup(name).await {
                Ok(found) => self.known.found(found.to_vec()),
                Err(error) => {
                    tracing::debug!(at = %self.at, %error, "agent.upstream is not found");
                }
            },
        }
    }

    /// Looks it up again and again, for ever.
    pub async fn watch_over(&self, names: &(impl Resolve + ?Sized)) {
        loop {
            tokio::time::sleep(LOOK_UP).await;
            self.locate(names).await;
        }
    }
}

impl OffLimits for AgentBehind {
    fn why(&self) -> &'static str {
        "the agent behind the gateway is reached by the gateway's own paths alone"
    }

    fn authority(&self, authority: &Authority) -> bool {
        self.at == *authority
    }

    fn address(&self, address: SocketAddr, is: &dyn Fn(SocketAddr, SocketAddr) -> bool) -> bool {
        let same = |ip| is(SocketAddr::new(ip, self.at.port), address);
        self.known.any(same)
    }
}

//! What a limit is: what it counts, for whom, how much, and what it is called.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quota::Quota;
use crate::egress::{AgentId, Host, TenantId};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Measure {
    /// Requests, and tunnels opened.
    Requests,
    /// Tunnels opened.
    Connections,
    /// Tunnels open and requests under way, at one time.
    Concurrent,
    /// Tunnels open, at one time.
    Tunnels,
    /// Bytes to destinations, of bodies and tunnels.
    BytesUp,
    /// Bytes from destinations, of bodies and tunnels.
    BytesDown,
}

/// Whose use is counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// Each agent of a tenant.
    Agent,
    /// All agents of a tenant.
    Tenant,
    /// Each token, by its `jti`; an agent's tokens without one together.
    Token,
    /// Each destination host, whoever asks.
    Destination,
    /// Each source address, whoever asks; of IPv6 each /64.
    Source,
}

/// What becomes of a limit that replicas share while Redis is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenAway {
    /// Each replica holds to its fair share: the limit divided by the replicas
    /// that were last seen.
    #[default]
    Local,
    /// What cannot be counted is refused.
    Deny,
}

/// How much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Amount {
    /// So much over time.
    Over(Quota),
    /// So many at once.
    AtOnce(NonZeroU32),
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    name: Arc<str>,
    measure: Measure,
    per: Per,
    amount: Amount,
    when_away: WhenAway,
    id: u64,
}

/// Whose use it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// An agent of a tenant, or of none.
    Agent(Option<TenantId>, AgentId),
    /// A tenant; those without one together.
    Tenant(Option<TenantId>),
    /// A token, by the tenant, the agent and its `jti`.
    Token(Option<TenantId>, AgentId, Option<Arc<str>>),
    /// A host.
    Destination(Host),
    /// A source address, as [`Owner::source`] has it.
    Source(IpAddr),
}

impl Limit {
    /// A limit of this name: printable ASCII, as it stands in records and
    /// header fields. Limits of the same name, measure and amount count
    /// together, also across a reload and between replicas.
    #[must_use]
    pub fn new(
        name: impl Into<Arc<str>>,
        measure: Measure,
        per: Per,
        amount: Amount,
        when_away: WhenAway,
    ) -> Self {
        let name = name.into();
        // Always the same for the same limit, in every process.
        let mut hasher = DefaultHasher::new();
        (&name, measure, per, amount).hash(&mut hasher);
        Self {
            id: hasher.finish(),
            name,
            measure,
            per,
            amount,
            when_away,
        }
    }

    /// What it is called: `agent.requests`, `models.bytes_up`.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What it counts.
    #[must_use]
    pub fn measure(&self) -> Measure {
        self.measure
    }

    /// Whose use it counts together.
    #[must_use]
    pub fn per(&self) -> Per {
        self.per
    }

    /// How much it lets pass.
    #[must_use]
    pub fn amount(&self) -> Amount {
        self.amount
    }

    /// What becomes of it while Redis is away.
    #[must_use]
    pub fn when_away(&self) -> WhenAway {
        self.when_away
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The label in metrics, of a bounded set.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match (self.measure, self.per) {
            (Measure::Requests, Per::Agent) => "agent",
            (Measure::Requests, Per::Tenant) => "tenant",
            (Measure::Requests, Per::Token) => "token",
            (Measure::Requests, Per::Destination) => "destination",
            (Measure::Requests, Per::Source) => "source",
            (Measure::Connections, _) => "connections",
            (Measure::Concurrent, _) => "concurrent",
            (Measure::Tunnels, _) => "tunnels",
            (Measure::BytesUp, _) => "bytes_up",
            (Measure::BytesDown, _) => "bytes_down",
        }
    }
}

impl Owner {
    /// A source address. One machine has a whole /64 of IPv6 addresses to
    /// choose from, so they count together.
    #[must_use]
    pub fn source(address: IpAddr) -> Self {
        Self::Source(source_of(address))
    }
}

/// What is counted as one source: an IPv4 address, in whatever form, or a /64
/// of IPv6.
#[must_use]
pub fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

impl Measure {
    /// Whether it counts tunnels alone.
    #[must_use]
    pub fn is_of_tunnels(self) -> bool {
        matches!(self, Self::Connections | Self::Tunnels)
    }

    /// As it is written in policies and configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Connections => "connections",
            Self::Concurrent => "concurrent",
            Self::Tunnels => "tunnels",
            Self::BytesUp => "bytes_up",
            Self::BytesDown => "bytes_down",
        }
    }
}

impl Per {
    /// As it is written in policies and configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Tenant => "tenant",
            Self::Token => "token",
            Self::Destination => "destination",
            Self::Source => "source",
        }
    }

    pub(super) const COUNT: usize = 5;

    pub(super) fn at(self) -> usize {
        match self {
            Self::Agent => 0,
            Self::Tenant => 1,
            Self::Token => 2,
            Self::Destination => 3,
            Self::Source => 4,
        }
    }
}

impl fmt::Display for Owner {
    /// The same in every replica, and different for every owner.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenant = |tenant: &Option<TenantId>| match tenant {
            Some(tenant) => tenant.as_str().to_owned(),
            None => String::new(),
        };
        match self {
            Self::Agent(of, agent) => write!(f, "a/{}/{}", tenant(of), agent.as_str()),
            Self::Tenant(of) => write!(f, "t/{}", tenant(of)),
            Self::Token(of, agent, jti) => {
                let jti = jti.as_deref().unwrap_or("");
                write!(f, "j/{}/{}/{jti}", tenant(of), agent.as_str())
            }
            Self::Destination(host) => write!(f, "d/{host}"),
            Self::Source(address) => write!(f, "s/{address}"),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Over(quota) => quota.fmt(f),
            Self::AtOnce(most) => write!(f, "{most} at once"),
        }
    }
}

//! What the gate needs of the machine, as traits: names, records, figures, time.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::audit::AuditRecord;
use crate::egress::{Authority, DnsName};
use crate::identity::{AgentKeys, PeerCertificate, RevocationSet};
use crate::policy::PolicySet;

/// A future that a trait object may return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The policy in force.
pub trait PolicySource: Send + Sync {
    /// One version, whole; a request uses the one that it got.
    fn current(&self) -> Arc<PolicySet>;
}

/// The revocations in force.
pub trait RevocationSource: Send + Sync {
    /// All of one moment.
    fn current(&self) -> Arc<RevocationSet>;
}

/// The agent keys in force.
pub trait AgentKeySource: Send + Sync {
    /// All of one moment.
    fn current(&self) -> Arc<AgentKeys>;
}

/// Addresses of names.
pub trait Resolve: Send + Sync {
    /// All addresses of both families, where they are known and fresh.
    fn cached(&self, name: &DnsName) -> Option<Arc<[IpAddr]>>;

    /// Asks for all addresses of both families.
    fn lookup<'a>(
        &'a self,
        name: &'a DnsName,
    ) -> BoxFuture<'a, Result<Arc<[IpAddr]>, ResolveError>>;
}

/// Why a name has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The name does not exist (NXDOMAIN).
    #[error("the name does not exist")]
    NotFound,
    /// The name exists and has no address.
    #[error("the name has no address")]
    NoAddress,
    /// No answer in time.
    #[error("no answer from the resolver in time")]
    Timeout,
    /// The resolver failed, refused, or answered what cannot be read.
    #[error("the resolver failed")]
    Failed,
}

/// Where records go. What is pushed is never lost while the process lives; the
/// bound lies in front, at [`AuditSink::ready`].
pub trait AuditSink: Send + Sync {
    /// Takes a record. Never blocks.
    fn push(&self, record: AuditRecord);

    /// Whether new work may begin. `Full` says that the queue is full and that
    /// the operator chose to refuse; `Wait` that he chose to wait.
    fn ready(&self) -> SinkState;

    /// Comes back when the queue has room.
    fn wait(&self) -> BoxFuture<'_, ()>;
}

/// Whether the audit log can take more work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkState {
    /// It can.
    Ready,
    /// It is behind; wait for it.
    Wait,
    /// It is behind or gone; refuse.
    Full,
}

/// Limits that replicas share.
pub trait SharedLimits: Send + Sync {
    /// Comes back when Redis has answered something, or after a millisecond or
    /// two, whatever comes first.
    fn answered(&self) -> BoxFuture<'_, ()>;
}

/// Whom certificates of clients are trusted from, at this moment.
pub trait TrustsCertificates: Send + Sync {
    /// Whether a certificate that held at its handshake still does. `now` is
    /// the time.
    ///
    /// # Errors
    /// The code of what is wrong with it by now, such as
    /// `certificate_revoked`.
    fn holds(&self, certificate: &PeerCertificate, now: SystemTime) -> Result<(), &'static str>;
}

/// The keys of other issuers, which can be asked for again.
pub trait IssuerKeys: Send + Sync {
    /// A token that claims to be this issuer's names a key that is not known.
    /// Asks the issuer again where it is time to, and comes back when that has
    /// an end; what the issuer gave is then in force.
    fn unknown_key<'a>(&'a self, issuer: &'a str) -> BoxFuture<'a, KeyNews>;
}

/// What became of asking an issuer for its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyNews {
    /// It is none of the issuers that are asked, or it was asked just now.
    None,
    /// It was asked, and its keys of this moment are in force.
    Asked,
    /// There are no keys of this issuer: it has not answered yet, or not for
    /// longer than its keys may be kept.
    Unavailable,
}

/// Names that a parent proxy resolves. None of them where the host is an
/// address.
pub trait Elsewhere: Send + Sync {
    /// Whether this destination's name is resolved there and not here, because
    /// nobody here can.
    fn resolves(&self, authority: &Authority) -> bool;

    /// Whether it is resolved there once more, after it was here: which of its
    /// addresses is reached, that one chooses.
    fn resolves_again(&self, authority: &Authority) -> bool;
}

/// What agents reach by another way alone, whatever a rule says: agents that
/// are called on a listener of their own, the one behind the gateway, and the
/// parent proxy.
pub trait OffLimits: Send + Sync {
    /// What it is, and how it is reached, for the operator.
    fn why(&self) -> &'static str;

    /// Whether this host and port are.
    fn authority(&self, authority: &Authority) -> bool;

    /// Whether this address is; `is` says whether two are the same from here.
    fn address(&self, address: SocketAddr, is: &dyn Fn(SocketAddr, SocketAddr) -> bool) -> bool;
}

/// The addresses of this machine, as they are at this moment.
pub trait ThisMachine: Send + Sync {
    /// Whether this is one of them.
    fn has(&self, address: IpAddr) -> bool;
}

/// The time. Tests hold it.
pub trait Clock: Send + Sync {
    /// The wall clock, for records and tokens.
    fn wall(&self) -> SystemTime;

    /// A clock that only goes forward, for durations and quotas.
    fn monotonic(&self) -> Duration;
}

/// Where figures go. One exhaustive match on the other side turns an event
/// into counters, gauges and histograms.
pub trait Observe: Send + Sync {
    /// Something happened.
    fn observe(&self, event: Observation<'_>);
}

/// Something worth counting.
#[derive(Clone, Copy, Debug)]
pub enum Observation<'a> {
    /// A client connected (+1) or went (-1), on this listener.
    Connection {
        /// The listener's name.
        listener: &'a str,
        /// +1 or -1.
        change: i64,
    },
    /// A TLS handshake with a client has ended.
    Handshake {
        /// The listener's name.
        listener: &'a str,
        /// `full`, `resumed`, `challenge`, or the code of what went wrong.
        outcome: &'static str,
    },
    /// A tunnel opened (+1) or closed (-1).
    Tunnel {
        /// +1 or -1.
        change: i64,
    },
    /// A request began (+1) or ended (-1).
    InFlight {
        /// +1 or -1.
        change: i64,
    },
    /// A token was checked.
    Token {
        /// `ok`, or the code of the error.
        outcome: &'static str,
        /// The algorithm of the token's key, or `none` where it came to no key.
        algorithm: &'static str,
        /// What the check took; zero for a cached one.
        took: Duration,
        /// Whether the cache answered.
        cached: bool,
        /// The trace, for the exemplar.
        trace_id: Option<&'a str>,
    },
    /// An agent key was checked.
    AgentKey {
        /// `ok`, or the code of the error.
        outcome: &'static str,
        /// What the check took.
        took: Duration,
        /// The trace, for the exemplar.
        trace_id: Option<&'a str>,
    },
    /// The gate has said yes or no.
    Decision {
        /// Whether the request may pass.
        allowed: bool,
        /// The code of the reason.
        reason: &'static str,
        /// What would have been refused, in audit mode.
        would_deny: Option<&'static str>,
        /// Without waiting for names.
        took: Duration,
        /// The trace, for the exemplar.
        trace_id: Option<&'a str>,
    },
    /// A quota was used up.
    Throttled {
        /// Which.
        limit: &'static str,
    },
    /// A name was looked up, not from the cache.
    Resolved {
        /// `ok`, or the error.
        outcome: &'static str,
        /// How long it took.
        took: Duration,
    },
    /// A connection to a destination was made or not.
    Dialled {
        /// `ok`, or the code of the error.
        outcome: &'static str,
        /// How long it took.
        took: Duration,
    },
    /// A request or tunnel has ended and its record is written.
    Finished {
        /// The record.
        record: &'a AuditRecord,
    },
}

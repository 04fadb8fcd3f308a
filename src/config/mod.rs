//! The gateway's configuration, from text to settings that fit together.
//!
//! Raw, then cooked: [`Sources`] are the file's text, the environment and the
//! flags, as written. [`Config::load`] lays them over one another and over the
//! defaults, reads every key, and gives either a [`Config`] or every mistake at
//! once, each with its place and what to write.
//!
//! The list of keys is `reference.yaml`, the commented file that
//! [`Config::reference`] prints: what it does not name is unknown, and what it
//! says is the default. Nothing here opens a file; paths are only names.

mod error;
mod tree;
mod value;
mod list;
mod issuer;
mod acme;
mod route;
mod upstream;
mod settings;
mod load;
mod peers;

pub use acme::{Acme, ExternalAccount};
pub use error::{ConfigError, Place};
pub use issuer::{KeySource, OtherIssuer, parse_issuers};
pub use load::{Override, Purpose, Sources};
pub use peers::{CalleeTlsFiles, HealthCheck, MAX_CALLEES, PeerAgent, PeerDirectory, PeersError};
pub use route::{AuthorizationOwner, NamedRoute, UpstreamHttp2, parse_routes};
pub use settings::{
    Agent, Audit, Config, Identity, Limits, Listen, Log, Peers, Redis, Refusals, Resolver,
    ResolverCache, SET_A_KEY, Timeouts, Tls, TlsClients, TokenCache, TunnelDefaults,
};
pub use upstream::{AskFor, ProxyUrl, UpstreamProxy};
pub use value::{
    AcmeChallenge, Alpn, AuditPath, AuthFailureStatus, BasicUser, ByteSize, CertificatePair,
    ClientCertificates, Endpoint, Family, Fsync, Listener, LogFormat, LogLevel, Overflow,
    PeerCredential, Plain, RedisAddress, RedisUrl, RequiredProof, Secret, Switch, Threads,
    TlsVersion, ToldInside, TrustedKey, UnixMode, Verdict, parse_duration,
};

#[cfg(test)]
mod tests;

//! AgentPort: the one way out of an AI agent's network.
//!
//! The modules stand in the order in which to read them, and **a module may
//! import only modules listed above it**; `tests/layering.rs` holds them to it.
//! The floors up to [`gate`] do no I/O and build with `--no-default-features`.
//!
//! What is true by absence: only `proxy`, and `server` which starts it, know
//! Pingora. Only `adapters` touches files, the network's names and the clock.
//! No path dials before [`gate`] has admitted it; `connect` and `probe`, which
//! run beside agents, dial for themselves.

pub mod egress;
/// The bundled agent: the words are all that it shares with the gateway.
#[cfg(feature = "openclaw")]
pub mod openclaw;

pub mod limit;
pub mod identity;
pub mod policy;
pub mod audit;
pub mod config;
pub mod gate;

#[cfg(feature = "gateway")]
pub mod proxy;
#[cfg(feature = "gateway")]
pub mod adapters;
#[cfg(feature = "gateway")]
pub mod admin;
#[cfg(feature = "gateway")]
pub mod server;
#[cfg(feature = "gateway")]
pub mod connect;
#[cfg(feature = "gateway")]
pub mod probe;
#[cfg(feature = "gateway")]
pub mod cli;

//! The machine: the clock, names, records, figures, files and their watching,
//! a shared Redis, a private CA, and what the process is given by its host.
//!
//! Everything that `gate` asks for as a trait is answered here. Nothing here
//! decides whether a request may pass.

pub mod certificates;
pub mod trust;
pub mod clock;
pub mod names;
pub mod peers;
pub mod parent;
pub mod way_out;
pub mod records;
pub mod redis;
pub mod shared_limits;
pub mod figures;
pub mod watch;
pub mod service_accounts;
pub mod keyring;
pub mod issuers;
pub mod shared_file;
pub mod refusals;
pub mod revocations;
pub mod agent_keys;
pub mod behind;
pub mod ca;
pub mod ca_key;
pub mod acme;
pub mod host;

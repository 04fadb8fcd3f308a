//! The only place that knows the order of the checks: authenticate, decide,
//! limit, resolve, classify.
//!
//! It does no I/O of its own and needs no runtime: names, records, figures and
//! time come through the traits in [`ports`].

pub mod ports;

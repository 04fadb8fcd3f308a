//! Quotas: how much each key may do. Never asks the time: it is passed in.
//!
//! A [`RateLimiter`] holds each key to a [`Quota`] over time, a
//! [`ConcurrencyLimit`] to a number at once. Both remember a bounded number of
//! keys and refuse new ones where that is used up, so that inventing keys is
//! no way round a limit and no way to fill the memory.

mod concurrency;
mod quota;
mod rate;

pub use concurrency::{ConcurrencyLimit, InFlight, TooMany};
pub use quota::{MAX_COUNT, Quota, QuotaError};
pub use rate::{Allowance, RateLimiter, Throttled};

//! Limits: how much each owner may do. Never asks the time: it is passed in.
//!
//! A [`Limit`] says what is counted, for whom and how much; a [`Ledger`] has
//! the accounts. It remembers a bounded number of owners and refuses new ones
//! where that is used up, so that inventing them is no way round a limit and no
//! way to fill the memory. Where replicas share, a [`Shared`] holds what this
//! one has leased, and the questions that are to be put to Redis.

mod measure;
mod quota;
mod rate;
mod concurrency;
mod lease;
mod slots;
mod shared;
mod ledger;

pub use concurrency::{ConcurrencyLimit, InFlight, TooMany};
pub use lease::{Draw, Drawn, Room};
pub use ledger::{Account, Ledger, PlaceHeld, Refusal, window};
pub use measure::{Amount, Limit, Measure, Owner, Per, WhenAway, source_of};
pub use quota::{MAX_COUNT, Quota, QuotaError};
pub use rate::{Allowance, RateLimiter, Throttled};
pub use shared::{Answer, Question, Shared, What};
pub use slots::SetAside;

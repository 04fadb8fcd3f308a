//! Assertions by which a service account proves who it is without a shared
//! secret (RFC 7523): a JWT that it signs itself, good for one use.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ring::digest;
use serde_json::Value;

use super::compact::Compact;
use super::error::TokenError;
use super::json;
use super::keys::{AgentClaim, TrustedIssuer, VerifyingKeys};
use super::service_account::ServiceAccount;
use super::verify::{TokenVerifier, VerifierSettings};

/// The longest that an assertion may still live: what common libraries give.
pub const MAX_ASSERTION_LIFETIME: Duration = Duration::from_secs(3600);

/// Why an assertion is refused. The text is for the operator and never holds
/// the assertion.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssertionRefused {
    /// The account signs no assertions.
    #[error("the service account has no `jwks`")]
    NoKeys,
    /// It does not hold.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// It has no number.
    #[error("the assertion has no jti")]
    NoJti,
    /// It lives too long.
    #[error("the assertion expires more than an hour from now")]
    TooLong,
    /// It has been used.
    #[error("the assertion has been used before")]
    Replayed,
    /// More of them are remembered than there is room for.
    #[error("too many assertions are in use at once")]
    Full,
}

/// The account that an assertion says it is of (`iss`), before anything of it
/// is proven.
#[must_use]
pub fn claimed_account(assertion: &str) -> Option<String> {
    if assertion.len() > VerifierSettings::default().max_token_bytes {
        return None;
    }
    let compact = Compact::parse(assertion).ok()?;
    match json::object(&compact.claims).ok()?.remove("iss") {
        Some(Value::String(issuer)) => Some(issuer),
        _ => None,
    }
}

/// Remembers which assertions were used, until they expire. Bounded: with no
/// room left, new ones are refused.
#[derive(Debug)]
pub struct UsedAssertions {
    until: Mutex<HashMap<[u8; 32], u64>>,
    capacity: usize,
}

impl UsedAssertions {
    /// Remembers so many.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            until: Mutex::default(),
            capacity,
        }
    }

    /// Verifies an assertion of this account at `now`, in seconds since 1970,
    /// and uses it up. It must have `iss` and `sub` that are the account, one
    /// of the audiences, `exp`, and a `jti`.
    ///
    /// # Errors
    /// [`AssertionRefused`].
    pub fn accept(
        &self,
        account: &ServiceAccount,
        assertion: &str,
        audiences: &[String],
        leeway: Duration,
        now: u64,
    ) -> Result<(), AssertionRefused> {
        let issuer = TrustedIssuer {
            audiences: audiences.to_vec(),
            agent: AgentClaim::Named("sub".to_owned()),
            ..TrustedIssuer::own(account.id(), "")
        };
        let keys = VerifyingKeys::new()
            .with(issuer, account.assertion_keys().iter().cloned())
            .map_err(|_| AssertionRefused::NoKeys)?;
        let settings = VerifierSettings {
            leeway,
            ..VerifierSettings::default()
        };
        let who = TokenVerifier::new(keys, settings).verify(assertion, now)?;
        if who.agent().as_str() != &**account.id() {
            return Err(AssertionRefused::Token(TokenError::InvalidClaim {
                facts: Default::default(),
                claim: "sub".to_owned(),
                why: "it differs from iss".to_owned(),
            }));
        }
        let jti = who.jti().ok_or(AssertionRefused::NoJti)?;
        let end = who.expires_at().saturating_add(leeway.as_secs());
        if who.expires_at() > now.saturating_add(MAX_ASSERTION_LIFETIME.as_secs()) {
            return Err(AssertionRefused::TooLong);
        }
        self.use_up(account.id(), jti, end, now)
    }

    fn use_up(&self, account: &str, jti: &str, end: u64, now: u64) -> Result<(), AssertionRefused> {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(account.as_bytes());
        hash.update(b"\0");
        hash.update(jti.as_bytes());
        let mut key = [0; 32];
        key.copy_from_slice(hash.finish().as_ref());
        // Nothing panics while holding the lock.
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.get(&key).is_some_and(|end| *end > now) {
            return Err(AssertionRefused::Replayed);
        }
        if until.len() >= self.capacity {
            until.retain(|_, end| *end > now);
        }
        if until.len() >= self.capacity {
            return Err(AssertionRefused::Full);
        }
        until.insert(key, end);
        Ok(())
    }
}

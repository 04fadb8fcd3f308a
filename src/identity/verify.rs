//! From a token to a [`Principal`], in one order: size, form, header, key,
//! signature, claims. Nothing of the claims is believed before the signature.

use std::time::Duration;

use serde_json::Value;

use super::algorithm::Algorithm;
use super::claims::{self, MAX_ACTORS};
use super::compact::Compact;
use super::error::{Facts, TokenError};
use super::json;
use super::keys::VerifyingKeys;
use super::principal::Principal;

/// How tokens are verified. `exp` is always required.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierSettings {
    /// How far the issuer's clock may be off, in whole seconds: added to
    /// `exp`, taken from `nbf` and `iat`. 30 s.
    pub leeway: Duration,
    /// The longest token, in bytes. 8 KiB.
    pub max_token_bytes: usize,
    /// The most actors that `act` may have, at most [`MAX_ACTORS`]. 8.
    pub max_actors: usize,
}

impl Default for VerifierSettings {
    fn default() -> Self {
        Self {
            leeway: Duration::from_secs(30),
            max_token_bytes: 8 * 1024,
            max_actors: MAX_ACTORS,
        }
    }
}

/// Verifies tokens with a table of keys.
#[derive(Clone, Debug)]
pub struct TokenVerifier {
    keys: VerifyingKeys,
    settings: VerifierSettings,
}

impl TokenVerifier {
    /// A verifier with these keys.
    #[must_use]
    pub fn new(keys: VerifyingKeys, settings: VerifierSettings) -> Self {
        Self { keys, settings }
    }

    /// The keys in force.
    #[must_use]
    pub fn keys(&self) -> &VerifyingKeys {
        &self.keys
    }

    /// How it verifies.
    #[must_use]
    pub fn settings(&self) -> &VerifierSettings {
        &self.settings
    }

    /// Verifies a token at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// [`TokenError`], the first thing that is wrong with it.
    pub fn verify(&self, token: &str, now: u64) -> Result<Principal, TokenError> {
        self.examine(token, now).outcome
    }

    /// The same, with what is known of the token's key.
    pub(super) fn examine(&self, token: &str, now: u64) -> Examined {
        let mut examined = Examined {
            algorithm: None,
            key_until: None,
            outcome: Err(TokenError::BadSignature),
        };
        examined.outcome = self.examine_into(token, now, &mut examined);
        examined
    }

    fn examine_into(
        &self,
        token: &str,
        now: u64,
        examined: &mut Examined,
    ) -> Result<Principal, TokenError> {
        self.check_size(token)?;
        let compact = Compact::parse(token)?;
        let header = &compact.header;
        let (key, issuer) =
            self.keys
                .select(header.algorithm, header.kid.as_deref(), now, || {
                    unproven_issuer(&compact)
                })?;
        examined.algorithm = Some(key.algorithm());
        examined.key_until = key.until();
        if !key.confirms(compact.signed.as_bytes(), &compact.signature) {
            return Err(TokenError::BadSignature);
        }
        // From here the token is its issuer's.
        let who = claims::judge(
            &compact.claims,
            issuer,
            key,
            now,
            self.settings.leeway.as_secs(),
            self.settings.max_actors,
        )?;
        match self.keys.parents(&who, issuer, now) {
            Ok(until) => {
                let ends = examined.key_until.into_iter().chain(until);
                examined.key_until = ends.min();
                Ok(who)
            }
            Err(parent) => Err(TokenError::LostParent {
                facts: Facts {
                    agent: Some(who.agent().clone()),
                    jti: who.jti().cloned(),
                },
                issuer: parent.issuer.as_deref().map(str::to_owned),
                key: parent.key_id.to_string(),
            }),
        }
    }

    pub(super) fn check_size(&self, token: &str) -> Result<(), TokenError> {
        let limit = self.settings.max_token_bytes;
        if token.len() > limit {
            return Err(TokenError::TooLarge {
                bytes: token.len(),
                limit,
            });
        }
        Ok(())
    }
}

/// How an examination of a token went.
pub(super) struct Examined {
    /// The algorithm of the key that the token named; `None` where it came to
    /// no key. What its header claims is nobody's word.
    pub(super) algorithm: Option<Algorithm>,
    /// Until when that key is good, and those of what the token was exchanged
    /// from.
    pub(super) key_until: Option<u64>,
    /// The principal, or the first thing that is wrong.
    pub(super) outcome: Result<Principal, TokenError>,
}

/// The `iss` that a token claims to have, with nothing of it proven: only to
/// know whose keys to look for. `None` where there is none to be read, or more
/// than `most` bytes of token.
#[must_use]
pub fn claimed_issuer(token: &str, most: usize) -> Option<String> {
    if token.len() > most {
        return None;
    }
    unproven_issuer(&Compact::parse(token).ok()?)
}

/// The `jti` that a token claims to have, with nothing of it proven: for who
/// has a token to revoke. `None` where this is no token, and `Some(None)` where
/// it has none.
#[must_use]
pub fn claimed_jti(text: &str) -> Option<Option<String>> {
    Some(unproven(&Compact::parse(text).ok()?, "jti"))
}

/// `iss` before the signature is checked, only to pick among keys.
fn unproven_issuer(compact: &Compact<'_>) -> Option<String> {
    unproven(compact, "iss")
}

fn unproven(compact: &Compact<'_>, claim: &str) -> Option<String> {
    match json::object(&compact.claims).ok()?.remove(claim) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

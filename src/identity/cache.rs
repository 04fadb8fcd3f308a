//! Tokens that have been verified lately, by their hash.
//!
//! A hit costs one SHA-256 and a look-up instead of a signature. The token is
//! never kept, and neither is a decision: only that these bytes are a token of
//! this principal.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quick_cache::sync::Cache;
use ring::digest;

use super::error::TokenError;
use super::keys::VerifyingKeys;
use super::principal::Principal;
use super::verify::{TokenVerifier, VerifierSettings};

/// How many tokens are remembered, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// How long an entry lives at most, in whole seconds; never past `exp` and
    /// its leeway. Zero remembers nothing. 60 s.
    pub lifetime: Duration,
    /// How many principals are remembered. 100,000.
    pub capacity: usize,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            lifetime: Duration::from_secs(60),
            capacity: 100_000,
        }
    }
}

/// How many refused signatures are remembered. Few: anybody can fill it.
const REFUSED_CAPACITY: usize = 1024;

/// SHA-256 of the token: another hash could be made to collide.
type TokenHash = [u8; 32];

/// A [`TokenVerifier`] that remembers, and whose keys can be changed.
#[derive(Debug)]
pub struct CachedVerifier {
    settings: CacheSettings,
    current: RwLock<Arc<Generation>>,
}

/// One set of keys and all that it has verified. A change of keys makes a new
/// one, so that a verification still under way can add only to the old one.
#[derive(Debug)]
struct Generation {
    verifier: TokenVerifier,
    verified: Cache<TokenHash, Entry>,
    /// Only signatures that do not hold: with the same keys they never will.
    refused: Cache<TokenHash, ()>,
}

#[derive(Clone, Debug)]
struct Entry {
    principal: Arc<Principal>,
    /// When it was verified, and until when that is good, in seconds.
    from: u64,
    until: u64,
}

impl CachedVerifier {
    /// A verifier that has seen nothing yet.
    #[must_use]
    pub fn new(verifier: TokenVerifier, settings: CacheSettings) -> Self {
        let current = RwLock::new(Arc::new(Generation::new(verifier, &settings)));
        Self { settings, current }
    }

    /// Verifies a token at `now`, in seconds since 1970. The flag says whether
    /// it was remembered, in which case no signature was computed and nothing
    /// but a count was written.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify(&self, token: &str, now: u64) -> Result<(Arc<Principal>, bool), TokenError> {
        let generation = self.generation();
        generation.verifier.check_size(token)?;
        if self.settings.lifetime.is_zero() {
            return generation
                .verifier
                .verify(token, now)
                .map(|who| (Arc::new(who), false));
        }
        let hash = hash(token);
        if let Some(entry) = generation.verified.get(&hash) {
            // Not before it was verified either: a clock set back must not
            // carry a token past its `nbf`.
            if (entry.from..entry.until).contains(&now) {
                return Ok((entry.principal, true));
            }
            generation.verified.remove(&hash);
        }
        if generation.refused.get(&hash).is_some() {
            return Err(TokenError::BadSignature);
        }
        match generation.verifier.verify(token, now) {
            Ok(who) => Ok((
                generation.remember(hash, who, now, self.settings.lifetime),
                false,
            )),
            Err(error) => {
                if error == TokenError::BadSignature {
                    generation.refused.insert(hash, ());
                }
                Err(error)
            }
        }
    }

    /// Puts other keys in force. What the old ones verified is forgotten, also
    /// what they are verifying at this moment.
    pub fn replace_keys(&self, keys: VerifyingKeys) {
        self.renew(|verifier| TokenVerifier::new(keys, verifier.settings().clone()));
    }

    /// Forgets all tokens, and keeps the keys.
    pub fn flush(&self) {
        self.renew(TokenVerifier::clone);
    }

    /// The keys in force, for publishing their public halves.
    #[must_use]
    pub fn keys(&self) -> VerifyingKeys {
        self.generation().verifier.keys().clone()
    }

    /// The settings of the verifier inside.
    #[must_use]
    pub fn verifier_settings(&self) -> VerifierSettings {
        self.generation().verifier.settings().clone()
    }

    /// How many verified tokens are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.generation().verified.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn generation(&self) -> Arc<Generation> {
        // Nothing panics while holding the lock; were it poisoned, what it
        // guards would still be whole.
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn renew(&self, verifier: impl FnOnce(&TokenVerifier) -> TokenVerifier) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let next = Generation::new(verifier(&current.verifier), &self.settings);
        *current = Arc::new(next);
    }
}

impl Generation {
    fn new(verifier: TokenVerifier, settings: &CacheSettings) -> Self {
        Self {
            verifier,
            // Both grow as they are filled; nothing is set aside.
            verified: Cache::new(settings.capacity),
            refused: Cache::new(REFUSED_CAPACITY),
        }
    }

    fn remember(
        &self,
        hash: TokenHash,
        who: Principal,
        now: u64,
        lifetime: Duration,
    ) -> Arc<Principal> {
        let principal = Arc::new(who);
        let leeway = self.verifier.settings().leeway.as_secs();
        let until = principal
            .expires_at()
            .saturating_add(leeway)
            .min(now.saturating_add(lifetime.as_secs()));
        let entry = Entry {
            principal: Arc::clone(&principal),
            from: now,
            until,
        };
        self.verified.insert(hash, entry);
        principal
    }
}

fn hash(token: &str) -> TokenHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

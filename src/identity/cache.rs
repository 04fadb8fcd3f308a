//! Tokens that have been verified lately, by their hash.
//!
//! A hit costs one SHA-256 and a look-up instead of a signature. The token is
//! never kept, and neither is a decision: only that these bytes are a token of
//! this principal.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quick_cache::sync::Cache;
use ring::digest;

use super::algorithm::Algorithm;
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
    refused: Cache<TokenHash, Algorithm>,
}

/// How a token was judged.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The algorithm of the key that the token came to; `None` where it came
    /// to none.
    pub algorithm: Option<Algorithm>,
    /// Whether it was remembered, so that no signature was computed.
    pub cached: bool,
    /// The principal, or what is wrong.
    pub outcome: Result<Arc<Principal>, TokenError>,
}

impl Verdict {
    fn new(algorithm: Option<Algorithm>, outcome: Result<Arc<Principal>, TokenError>) -> Self {
        Self {
            algorithm,
            cached: false,
            outcome,
        }
    }
}

/// The keys of one moment.
#[derive(Clone, Debug)]
pub struct KeysNow(Arc<Generation>);

impl KeysNow {
    /// See [`CachedVerifier::trusts`].
    #[must_use]
    pub fn trusts(&self, who: &Principal, now: u64) -> bool {
        self.0.verifier.keys().trusts(who, now)
    }

    /// See [`VerifyingKeys::first_end`].
    #[must_use]
    pub fn first_end(&self) -> Option<u64> {
        self.0.verifier.keys().first_end()
    }
}

#[derive(Clone, Debug)]
struct Entry {
    principal: Arc<Principal>,
    algorithm: Algorithm,
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
    /// it was remembered, in which case no signature was computed, nothing was
    /// allocated and nothing but a count was written.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify(&self, token: &str, now: u64) -> Result<(Arc<Principal>, bool), TokenError> {
        let verdict = self.check(token, now);
        verdict.outcome.map(|who| (who, verdict.cached))
    }

    /// The same, with the algorithm of the token's key.
    pub fn check(&self, token: &str, now: u64) -> Verdict {
        let generation = self.generation();
        if let Err(error) = generation.verifier.check_size(token) {
            return Verdict::new(None, Err(error));
        }
        if self.settings.lifetime.is_zero() {
            let examined = generation.verifier.examine(token, now);
            return Verdict::new(examined.algorithm, examined.outcome.map(Arc::new));
        }
        let hash = hash(token);
        if let Some(entry) = generation.verified.get(&hash) {
            // Not before it was verified either: a clock set back must not
            // carry a token past its `nbf`.
            if (entry.from..entry.until).contains(&now) {
                return Verdict {
                    algorithm: Some(entry.algorithm),
                    cached: true,
                    outcome: Ok(entry.principal),
                };
            }
            generation.verified.remove(&hash);
        }
        if let Some(algorithm) = generation.refused.get(&hash) {
            return Verdict {
                algorithm: Some(algorithm),
                cached: true,
                outcome: Err(TokenError::BadSignature),
            };
        }
        let examined = generation.verifier.examine(token, now);
        let algorithm = examined.algorithm;
        let outcome = match (examined.outcome, algorithm) {
            (Ok(who), Some(algorithm)) => {
                let lifetime = self.settings.lifetime.as_secs();
                let end = now.saturating_add(lifetime);
                let end = examined.key_until.map_or(end, |until| end.min(until));
                Ok(generation.remember(hash, who, algorithm, now, end))
            }
            (Err(TokenError::BadSignature), Some(algorithm)) => {
                generation.refused.insert(hash, algorithm);
                Err(TokenError::BadSignature)
            }
            (outcome, _) => outcome.map(Arc::new),
        };
        Verdict::new(algorithm, outcome)
    }

    /// Whether the key that confirmed this principal's token is in force at
    /// `now`, in seconds since 1970. Copies nothing.
    #[must_use]
    pub fn trusts(&self, who: &Principal, now: u64) -> bool {
        self.generation().verifier.keys().trusts(who, now)
    }

    /// The keys of this moment, to put to many principals. Copies nothing.
    #[must_use]
    pub fn keys_now(&self) -> KeysNow {
        KeysNow(self.generation())
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
        algorithm: Algorithm,
        now: u64,
        end: u64,
    ) -> Arc<Principal> {
        let principal = Arc::new(who);
        let leeway = self.verifier.settings().leeway.as_secs();
        let until = principal.expires_at().saturating_add(leeway).min(end);
        let entry = Entry {
            principal: Arc::clone(&principal),
            algorithm,
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

//! The keys in force, and whose they are.

use std::collections::HashMap;
use std::sync::Arc;

use super::algorithm::Algorithm;
use super::descent::Ancestor;
use super::error::TokenError;
use super::key::{KeyError, VerifyingKey};
use super::naming::Naming;
use super::principal::Principal;

/// An issuer of tokens, as far as it is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedIssuer {
    /// What `iss` must be, exactly. `None` accepts any and none.
    pub issuer: Option<String>,
    /// Of which `aud` must hold one. With none, a token that has an `aud` is
    /// refused, since it is meant for somebody else (RFC 7519, 4.1.3).
    pub audiences: Vec<String>,
    /// Where the agent's name stands.
    pub agent: AgentClaim,
    /// What the agent and its tenant are called here, where that is not what
    /// the claims say as they are.
    pub naming: Option<Naming>,
    /// The claim that names the tenant, where [`TrustedIssuer::naming`] does
    /// not.
    pub tenant_claim: String,
    /// Whether its keys stand in the gateway's own published set. Those of
    /// others are theirs to publish.
    pub published: bool,
}

/// Which claim names the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentClaim {
    /// `agent_id`, or `sub` where that is absent; with both, they must be
    /// equal, as they are in every token that AgentPort issues. Anything else
    /// leaves open which of two names was meant.
    Own,
    /// This claim alone, for a foreign issuer, whose `sub` may be a person and
    /// whose agent is, say, `azp` or `client_id`.
    Named(String),
}

impl TrustedIssuer {
    /// AgentPort's own tokens by this issuer and audience.
    #[must_use]
    pub fn own(issuer: &str, audience: &str) -> Self {
        Self {
            issuer: Some(issuer.to_owned()),
            audiences: vec![audience.to_owned()],
            agent: AgentClaim::Own,
            naming: None,
            tenant_claim: "tenant".to_owned(),
            published: true,
        }
    }
}

impl Default for TrustedIssuer {
    /// `agentport`, for `agentport`.
    fn default() -> Self {
        Self::own("agentport", "agentport")
    }
}

/// The keys in force: from a token's `kid` to a key and to the issuer it
/// belongs to. Empty, it verifies nothing.
#[derive(Clone, Debug, Default)]
pub struct VerifyingKeys {
    entries: Vec<Entry>,
    by_id: HashMap<Arc<str>, Vec<usize>>,
}

#[derive(Clone, Debug)]
struct Entry {
    key: VerifyingKey,
    issuer: Arc<TrustedIssuer>,
}

impl VerifyingKeys {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with the keys of one issuer.
    ///
    /// # Errors
    /// [`KeyError::NoKeys`] for an empty list. [`KeyError::DuplicateKid`] where
    /// two keys share an id and their issuers do not tell them apart.
    pub fn with(
        mut self,
        issuer: TrustedIssuer,
        keys: impl IntoIterator<Item = VerifyingKey>,
    ) -> Result<Self, KeyError> {
        let issuer = Arc::new(issuer);
        let before = self.entries.len();
        for key in keys {
            let same = self.by_id.entry(Arc::clone(key.id())).or_default();
            let apart = |other: &TrustedIssuer| matches!((&other.issuer, &issuer.issuer), (Some(a), Some(b)) if a != b);
            if !same.iter().all(|&at| apart(&self.entries[at].issuer)) {
                return Err(KeyError::DuplicateKid(key.id().to_string()));
            }
            same.push(self.entries.len());
            self.entries.push(Entry {
                key,
                issuer: Arc::clone(&issuer),
            });
        }
        if self.entries.len() == before {
            return Err(KeyError::NoKeys);
        }
        Ok(self)
    }

    /// All keys, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = &VerifyingKey> {
        self.entries.iter().map(|entry| &entry.key)
    }

    /// Those that the gateway publishes as its own, in the same order.
    pub fn published(&self) -> impl Iterator<Item = &VerifyingKey> {
        let own = self.entries.iter().filter(|entry| entry.issuer.published);
        own.map(|entry| &entry.key)
    }

    /// The second at which the first of the keys ends, or has ended: one that
    /// ended while nobody looked is still to be taken out.
    #[must_use]
    pub fn first_end(&self) -> Option<u64> {
        self.iter().filter_map(VerifyingKey::until).min()
    }

    /// The same without the keys that have ended at `now`.
    #[must_use]
    pub fn without_ended(&self, now: u64) -> Self {
        let mut left = Self::new();
        for entry in self.entries.iter().filter(|entry| entry.key.is_valid(now)) {
            let same = left.by_id.entry(Arc::clone(entry.key.id())).or_default();
            same.push(left.entries.len());
            left.entries.push(entry.clone());
        }
        left
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the key that confirmed this principal's token is still in force
    /// at `now`, in seconds since 1970, for the same issuer: that very key, and
    /// not another one that has its id by now. Of a token of our own that was
    /// exchanged, those of all that it comes from too. Copies nothing.
    #[must_use]
    pub fn trusts(&self, who: &Principal, now: u64) -> bool {
        let Some(print) = &who.key_print else {
            return false;
        };
        let entry = self.in_force(who.key_id(), Some(print), who.issuer(), now);
        entry.is_some_and(|entry| self.parents(who, &entry.issuer, now).is_ok())
    }

    /// Until when the keys are good that confirmed what this principal's token,
    /// of this issuer, was exchanged from; `None` where none of them has an end.
    ///
    /// Only of our own tokens: what another issuer exchanges, and from whom, is
    /// that one's business.
    ///
    /// # Errors
    /// The nearest of them of which the key is not in force at `now`.
    pub(super) fn parents<'w>(
        &self,
        who: &'w Principal,
        issuer: &TrustedIssuer,
        now: u64,
    ) -> Result<Option<u64>, &'w Ancestor> {
        let mut until: Option<u64> = None;
        let ours = who.ancestors().iter().filter(|_| issuer.published);
        for of in ours {
            let (print, iss) = (of.key_print.as_ref(), of.issuer.as_ref());
            let entry = self.in_force(&of.key_id, print, iss, now).ok_or(of)?;
            until = match (until, entry.key.until()) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        Ok(until)
    }

    /// The key of this id that is good at `now`, and with this print where it
    /// is known, of the issuer with this `iss`.
    fn in_force(
        &self,
        id: &str,
        print: Option<&Arc<str>>,
        iss: Option<&Arc<str>>,
        now: u64,
    ) -> Option<&Entry> {
        let issued = |entry: &Entry| match &entry.issuer.issuer {
            None => true,
            Some(issuer) => iss.is_some_and(|iss| **iss == **issuer),
        };
        let places = self.by_id.get(id)?;
        places.iter().map(|&at| &self.entries[at]).find(|entry| {
            entry.key.is_valid(now)
                && print.is_none_or(|print| print == entry.key.print())
                && issued(entry)
        })
    }

    /// The one key for a token with this header at `now`. `issuer` gives the token's
    /// `iss`, unproven, and is asked only where several keys fit: a wrong
    /// answer picks a key that does not confirm the token.
    pub(super) fn select(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
        now: u64,
        issuer: impl FnOnce() -> Option<String>,
    ) -> Result<(&VerifyingKey, &TrustedIssuer), TokenError> {
        let named = kid.and_then(|kid| self.by_id.get(kid));
        let candidates: Vec<&Entry> = match named {
            Some(places) => places
                .iter()
                .map(|&at| &self.entries[at])
                .filter(|entry| entry.key.is_valid(now))
                .collect(),
            None => self
                .entries
                .iter()
                .filter(|entry| kid.is_none() || entry.key.fits_any_kid())
                .filter(|entry| entry.key.is_valid(now))
                .collect(),
        };
        if candidates.is_empty() {
            return Err(TokenError::UnknownKey(match named {
                Some(_) => "the key of the token's `kid` has been retired",
                None => "no trusted key has the token's `kid`",
            }));
        }
        let fitting = || {
            candidates
                .iter()
                .filter(|entry| entry.key.algorithm() == algorithm)
        };
        let entry = match fitting().count() {
            0 => {
                return Err(TokenError::WrongAlgorithm(
                    "the key is for another algorithm",
                ));
            }
            1 => fitting().next(),
            _ => {
                let found = issuer();
                let mut of_issuer = fitting()
                    .filter(|entry| entry.issuer.issuer.is_some() && entry.issuer.issuer == found);
                // Exactly one, or it stays open which was meant.
                of_issuer.next().filter(|_| of_issuer.next().is_none())
            }
        };
        entry
            .map(|entry| (&entry.key, &*entry.issuer))
            .ok_or(TokenError::UnknownKey(
                "several keys fit: the token must name its key by `kid`",
            ))
    }
}

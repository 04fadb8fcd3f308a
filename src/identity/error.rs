//! Why a token is refused, and what of it may be written down.

use std::sync::Arc;

use crate::egress::AgentId;

/// Why a token is refused. The text is for the operator's record and never
/// holds the token; [`TokenError::public`] is for the agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is longer than the setting allows; nothing of it was read.
    #[error("the token has {bytes} bytes, and the limit is {limit}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// `max_token_bytes`.
        limit: usize,
    },
    /// It is no compact JWS with JSON in it (RFC 7515, 7.1).
    #[error("the token is not a signed JWT: {0}")]
    Malformed(&'static str),
    /// Its header asks for something that is refused (RFC 8725).
    #[error("the token's header is refused: {0}")]
    UnsupportedHeader(&'static str),
    /// Its `alg` is none of ours, or not the key's.
    #[error("the token's algorithm is refused: {0}")]
    WrongAlgorithm(&'static str),
    /// Its `kid` is none of ours, or without one no single key fits.
    #[error("no key for the token: {0}")]
    UnknownKey(&'static str),
    /// It was exchanged from a token whose key is not trusted, or not any more.
    #[error("no key for a token that it was exchanged from: {key:?} of {issuer:?}")]
    LostParent {
        /// Whose it is.
        facts: Facts,
        /// The `iss` of the other token.
        issuer: Option<String>,
        /// The id of its key.
        key: String,
    },
    /// The key does not confirm it.
    #[error("the token's signature does not hold")]
    BadSignature,
    /// It is past `exp`.
    #[error("the token expired {ago} s ago")]
    Expired {
        /// Whose it is.
        facts: Facts,
        /// Seconds since `exp`.
        ago: u64,
    },
    /// `nbf` or `iat` is still to come.
    #[error("the token's {claim} is {ahead} s ahead: compare the clocks")]
    NotYetValid {
        /// Whose it is.
        facts: Facts,
        /// `nbf` or `iat`.
        claim: &'static str,
        /// Seconds until then.
        ahead: u64,
    },
    /// Its `iss` is not the issuer that its key belongs to.
    #[error("the token's iss is {found:?}, and its key belongs to {expected:?}")]
    WrongIssuer {
        /// Whose it is.
        facts: Facts,
        /// Its `iss`.
        found: String,
        /// The issuer that the key belongs to.
        expected: String,
    },
    /// It is for somebody else.
    #[error("the token's aud is {found:?}, and none of it is expected here: {expected:?}")]
    WrongAudience {
        /// Whose it is.
        facts: Facts,
        /// Its `aud`.
        found: Vec<String>,
        /// The audiences that are accepted.
        expected: Vec<String>,
    },
    /// A claim that must be there is not.
    #[error("the token has no {claim} claim")]
    MissingClaim {
        /// Whose it is, as far as it says.
        facts: Facts,
        /// The claim.
        claim: String,
    },
    /// A claim is not what it must be.
    #[error("the token's {claim} claim is refused: {why}")]
    InvalidClaim {
        /// Whose it is, as far as it says.
        facts: Facts,
        /// The claim.
        claim: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What a token whose signature held says of itself, for the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The agent.
    pub agent: Option<AgentId>,
    /// The token's number.
    pub jti: Option<Arc<str>>,
}

impl TokenError {
    /// The reason in one word, for records and metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Malformed(_) => "malformed",
            Self::UnsupportedHeader(_) => "unsupported_header",
            Self::WrongAlgorithm(_) => "wrong_algorithm",
            Self::UnknownKey(_) | Self::LostParent { .. } => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::WrongIssuer { .. } => "wrong_issuer",
            Self::WrongAudience { .. } => "wrong_audience",
            Self::MissingClaim { .. } => "missing_claim",
            Self::InvalidClaim { .. } => "invalid_claim",
        }
    }

    /// What the agent may know, and what to do next.
    #[must_use]
    pub fn public(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => {
                "The token is too long for this gateway; ask for a smaller one."
            }
            Self::Malformed(_) => {
                "The credential is not a signed JWT; send the token as it was issued."
            }
            Self::UnsupportedHeader(_) | Self::WrongAlgorithm(_) => {
                "The token is of a kind that this gateway refuses; get one from its operator."
            }
            Self::UnknownKey(_) | Self::BadSignature => {
                "The token is not signed by a key that this gateway trusts; get a new one."
            }
            Self::LostParent { .. } => {
                "The token was exchanged from one whose key this gateway does not trust any more; get a new one."
            }
            Self::Expired { .. } => "The token has expired; get a new one.",
            Self::NotYetValid { .. } => {
                "The token is not valid yet; compare the clocks and try later."
            }
            Self::WrongIssuer { .. } => {
                "The token is of an issuer that this gateway does not trust."
            }
            Self::WrongAudience { .. } => "The token is not meant for this gateway.",
            Self::MissingClaim { .. } | Self::InvalidClaim { .. } => {
                "The token lacks a claim or has a bad one; get one from the gateway's operator."
            }
        }
    }

    /// The agent and the `jti`, where the signature held: what is not signed
    /// is nobody's name, and stays out of the record.
    #[must_use]
    pub fn facts(&self) -> Option<(Option<AgentId>, Option<Arc<str>>)> {
        match self {
            Self::TooLarge { .. }
            | Self::Malformed(_)
            | Self::UnsupportedHeader(_)
            | Self::WrongAlgorithm(_)
            | Self::UnknownKey(_)
            | Self::BadSignature => None,
            Self::LostParent { facts, .. }
            | Self::Expired { facts, .. }
            | Self::NotYetValid { facts, .. }
            | Self::WrongIssuer { facts, .. }
            | Self::WrongAudience { facts, .. }
            | Self::MissingClaim { facts, .. }
            | Self::InvalidClaim { facts, .. } => Some((facts.agent.clone(), facts.jti.clone())),
        }
    }
}

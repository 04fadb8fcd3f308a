//! Long-lived keys of agents that can hold no token of minutes: what is kept
//! of them, and whom they prove.
//!
//! A key is `apk_`, the 16 digits of its id, `_`, and 64 hexadecimal digits
//! from the system's generator. Kept is its SHA-256 alone. A slow hash, as for
//! passwords, would add nothing: it makes guessing dear where a secret can be
//! guessed, and 256 random bits cannot; and it would hand everybody who can
//! send a request a way to keep the processor busy. So a key costs what a
//! cached token costs, one SHA-256 and a look-up.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use ring::digest;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::principal::{CredentialKind, Principal};
use crate::egress::{AgentId, Destination, TenantId};

/// What every key begins with.
const PREFIX: &str = "apk_";
const ID_DIGITS: usize = 16;
const SECRET_DIGITS: usize = 64;
/// The most bytes that one line of a list may have.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// A key as it is kept: one line of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentKey {
    /// `apk_` and 16 hexadecimal digits: what the key is called, and its own
    /// beginning.
    pub id: String,
    /// The agent that it proves.
    pub agent: String,
    /// Its tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// What the key is limited to; an empty list allows nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it ends, in seconds since 1970; `None` for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// SHA-256 of the whole key, in lower-case hexadecimal digits.
    pub sha256: String,
}

/// Why a list of keys is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct AgentKeyError {
    /// Which line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

/// Why a key proves nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAgentKey {
    /// No key of this id, or not its secret: which of both is not said.
    #[error("no agent key is like this")]
    Unknown,
    /// It has ended.
    #[error("the agent key has ended")]
    Expired,
}

impl BadAgentKey {
    /// The reason in one word, for records and metrics.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_key",
            Self::Expired => "expired",
        }
    }
}

impl AgentKey {
    /// Makes a key for this agent from random bits: the text, which is told
    /// once, and what is kept.
    #[must_use]
    pub fn make(
        agent: &AgentId,
        tenant: Option<&TenantId>,
        allow: Option<Vec<Destination>>,
        times: (u64, Option<u64>),
        random: impl Fn() -> u128,
    ) -> (String, Self) {
        let id = format!("{PREFIX}{:016x}", random() >> 64);
        let text = format!("{id}_{:032x}{:032x}", random(), random());
        let kept = Self {
            id,
            agent: agent.as_str().to_owned(),
            tenant: tenant.map(|tenant| tenant.as_str().to_owned()),
            allow: allow.map(|list| list.iter().map(ToString::to_string).collect()),
            created: times.0,
            expires: times.1,
            sha256: sha256(&text),
        };
        (text, kept)
    }

    /// Whether a credential's text is meant to be such a key, right or wrong.
    #[must_use]
    pub fn is_one(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// The entry as one line of JSON, without a line feed.
    #[must_use]
    pub fn line(&self) -> String {
        // An entry of these types always has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a list: one JSON object in each line; empty lines are nothing.
    ///
    /// # Errors
    /// The first line that is no good.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, AgentKeyError> {
        let lines = text.lines().enumerate();
        lines
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(at, line)| {
                let bad = |why: String| AgentKeyError { line: at + 1, why };
                if line.len() > MAX_LINE_BYTES {
                    return Err(bad(format!("longer than {MAX_LINE_BYTES} bytes")));
                }
                let key: Self =
                    serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
                key.principal().map_err(bad)?;
                Ok(key)
            })
            .collect()
    }

    /// Whom it proves, where every part of it is good, and all of it fits into
    /// a list.
    fn principal(&self) -> Result<Principal, String> {
        let bytes = self.line().len();
        if bytes > MAX_LINE_BYTES {
            return Err(format!(
                "the entry would have {bytes} bytes, and {MAX_LINE_BYTES} is the limit: name fewer destinations"
            ));
        }
        let digits = |text: &str, count| {
            text.len() == count && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        if !self
            .id
            .strip_prefix(PREFIX)
            .is_some_and(|id| digits(id, ID_DIGITS))
        {
            return Err("id: it is not apk_ and 16 hexadecimal digits".into());
        }
        if !digits(&self.sha256, 64) {
            return Err("sha256: it is not 64 lower-case hexadecimal digits".into());
        }
        let destinations = match &self.allow {
            None => None,
            Some(list) => Some(
                list.iter()
                    .map(|raw| {
                        Destination::parse(raw).map_err(|error| format!("allow: {raw:?}: {error}"))
                    })
                    .collect::<Result<Vec<_>, _>>()?,
            ),
        };
        Ok(Principal {
            agent: AgentId::parse(&self.agent).map_err(|error| format!("agent: {error}"))?,
            tenant: match &self.tenant {
                None => None,
                Some(tenant) => {
                    Some(TenantId::parse(tenant).map_err(|error| format!("tenant: {error}"))?)
                }
            },
            destinations,
            audiences: None,
            jti: None,
            act: None,
            scope: None,
            client: None,
            issuer: None,
            key_id: self.id.as_str().into(),
            key_print: Some(self.sha256.as_str().into()),
            ancestors: None,
            issued_at: Some(self.created),
            expires_at: self.expires.unwrap_or(u64::MAX),
            kind: CredentialKind::AgentKey,
            certificate: None,
        })
    }
}

/// The keys of one moment. Empty, it proves nobody.
#[derive(Clone, Debug, Default)]
pub struct AgentKeys {
    by_id: HashMap<Box<str>, (String, Arc<Principal>)>,
}

impl AgentKeys {
    /// The table of these keys.
    ///
    /// # Errors
    /// A key that is there twice, or whose parts are no good.
    pub fn new<'k>(keys: impl IntoIterator<Item = &'k AgentKey>) -> Result<Self, AgentKeyError> {
        let mut by_id = HashMap::new();
        for (at, key) in keys.into_iter().enumerate() {
            let bad = |why: String| AgentKeyError { line: at + 1, why };
            let who = Arc::new(key.principal().map_err(bad)?);
            let kept = (key.sha256.clone(), who);
            if by_id.insert(key.id.as_str().into(), kept).is_some() {
                return Err(bad(format!("{} is there twice: remove one", key.id)));
            }
        }
        Ok(Self { by_id })
    }

    /// Whom this key proves at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// [`BadAgentKey`].
    pub fn verify(&self, text: &str, now: u64) -> Result<Arc<Principal>, BadAgentKey> {
        let whole = PREFIX.len() + ID_DIGITS + 1 + SECRET_DIGITS;
        let id = text
            .get(..PREFIX.len() + ID_DIGITS)
            .filter(|_| text.len() == whole)
            .ok_or(BadAgentKey::Unknown)?;
        let (kept, who) = self.by_id.get(id).ok_or(BadAgentKey::Unknown)?;
        // The id is no secret; how much of the hash is right must not show.
        let same: bool = kept.as_bytes().ct_eq(sha256(text).as_bytes()).into();
        if !same {
            return Err(BadAgentKey::Unknown);
        }
        if now >= who.expires_at() {
            return Err(BadAgentKey::Expired);
        }
        Ok(Arc::clone(who))
    }

    /// Whether the key that proved this principal still does.
    #[must_use]
    pub fn still_proves(&self, who: &Principal, now: u64) -> bool {
        self.by_id
            .get(who.key_id().as_ref())
            .is_some_and(|(_, known)| {
                // A certificate beside the key is another matter.
                known.key_print == who.key_print
                    && known.agent() == who.agent()
                    && known.tenant() == who.tenant()
                    && known.destinations() == who.destinations()
                    && known.issued_at() == who.issued_at()
                    && now < known.expires_at()
            })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

fn sha256(text: &str) -> String {
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    hash.as_ref().iter().fold(String::new(), |mut out, byte| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn key(agent: &str, expires: Option<u64>) -> (String, AgentKey) {
        let next = Cell::new(u128::from(agent.len() as u64) << 100);
        AgentKey::make(
            &AgentId::parse(agent).expect("an agent"),
            TenantId::parse("acme").ok().as_ref(),
            Some(vec![
                Destination::parse("*.example.com").expect("a destination"),
            ]),
            (100, expires),
            || {
                next.set(next.get() + (7 << 64) + 1);
                next.get()
            },
        )
    }

    #[test]
    fn a_key_proves_its_agent_and_nothing_like_it_does() {
        let (text, kept) = key("bot-01", Some(1_000));
        assert_eq!(text.len(), 4 + 16 + 1 + 64);
        assert!(text.starts_with(&kept.id) && !kept.line().contains(&text[21..]));
        let keys = AgentKeys::new([&kept]).expect("a table");
        let who = keys.verify(&text, 999).expect("good");
        assert_eq!(who.agent().as_str(), "bot-01");
        assert_eq!(who.tenant().map(TenantId::as_str), Some("acme"));
        assert_eq!(who.destinations().map(<[_]>::len), Some(1));
        assert_eq!(
            (who.kind(), who.issued_at()),
            (CredentialKind::AgentKey, Some(100))
        );
        assert_eq!(keys.verify(&text, 1_000), Err(BadAgentKey::Expired));
        assert!(keys.still_proves(&who, 999) && !keys.still_proves(&who, 1_000));
        let (other, _) = key("bot-002", None);
        let changed = format!(
            "{}{}",
            &text[..text.len() - 1],
            if text.ends_with('0') { "1" } else { "0" }
        );
        for bad in [
            "",
            "apk_",
            &kept.id,
            &text[..84],
            &format!("{text}0"),
            &changed,
            &other,
            "apk_\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}",
        ] {
            assert_eq!(keys.verify(bad, 1), Err(BadAgentKey::Unknown), "{bad}");
        }
        let gone = AgentKeys::default();
        assert_eq!(gone.verify(&text, 1), Err(BadAgentKey::Unknown));
        assert!(!gone.still_proves(&who, 1));
        // The same id with another secret is another key to what is open.
        let replaced = AgentKey {
            sha256: "0".repeat(64),
            ..kept.clone()
        };
        let replaced = AgentKeys::new([&replaced]).expect("a table");
        assert!(!replaced.still_proves(&who, 1));
        // So it is with another limit.
        let narrower = AgentKey {
            allow: Some(Vec::new()),
            ..kept
        };
        assert!(
            !AgentKeys::new([&narrower])
                .expect("a table")
                .still_proves(&who, 1)
        );
    }

    #[test]
    fn no_key_is_kept_that_would_not_be_read_again() {
        let (_, kept) = key("bot-01", None);
        let of = |count: usize| AgentKey {
            allow: Some(vec!["a-long-name.example.com".to_owned(); count]),
            ..kept.clone()
        };
        let fits = of(2_400);
        assert_eq!(AgentKey::parse_list(&fits.line()), Ok(vec![fits.clone()]));
        AgentKeys::new([&fits]).expect("it fits");
        let error = AgentKeys::new([&of(2_600)]).expect_err("too long");
        assert!(error.why.contains("fewer destinations"), "{error}");
    }

    #[test]
    fn a_list_is_read_whole_or_not_at_all() {
        let (_, kept) = key("bot-01", None);
        let list = format!("{}\n\n", kept.line());
        assert_eq!(
            AgentKey::parse_list(&list).expect("a list"),
            vec![kept.clone()]
        );
        for (case, change) in [
            (
                "an id",
                (|key: &mut AgentKey| key.id = "apk_1".into()) as fn(&mut AgentKey),
            ),
            ("an agent", |key| key.agent = "a b".into()),
            ("a tenant", |key| key.tenant = Some(String::new())),
            ("a destination", |key| {
                key.allow = Some(vec!["http://a".into()])
            }),
            ("a hash", |key| key.sha256 = "AA".repeat(32)),
        ] {
            let mut bad = kept.clone();
            change(&mut bad);
            let list = format!("{}\n{}\n", kept.line(), bad.line());
            let error = AgentKey::parse_list(&list).expect_err(case);
            assert_eq!(error.line, 2, "{case}: {error}");
        }
        assert!(AgentKey::parse_list(&kept.line().replace("created", "creatd")).is_err());
        assert!(AgentKeys::new([&kept, &kept]).is_err());
    }
}

//! What has been revoked: single tokens, and all of an agent, a tenant, a
//! service account or a key. Where the list is kept is `adapters`' business.
//!
//! An agent, a tenant or an account is revoked up to a moment: what was issued
//! until then is refused, and a token issued later is good again. A key is
//! revoked altogether, since whoever holds it can write any `iat`. A credential
//! that does not say when it was issued counts as issued before.
//!
//! Names are their issuer's: a `jti` and a `kid` are revoked of one issuer, our
//! own where none is named, so that nobody else's choice of names reaches ours.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::claims::is_name;
use super::issue::MAX_LIFETIME;
use super::principal::Principal;
use crate::egress::{AgentId, TenantId};

/// More than any clock may be off by configuration: a token is accepted for so
/// long after its end.
const LEEWAY: Duration = Duration::from_secs(60 * 60);
/// The most bytes that one line of a list may have.
const MAX_LINE_BYTES: usize = 4096;
/// How much longer a line may get when its dates are put off.
const DATES_BYTES: usize = 64;

/// What a revocation speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevokedKind {
    /// One token, by its `jti`.
    Jti,
    /// An agent, of one tenant or of any: its own tokens, and those with which
    /// it acts for others now.
    Agent,
    /// A tenant with all its agents.
    Tenant,
    /// A key that tokens are signed with, or an agent key, by its id.
    Key,
    /// A service account: every token that it has issued (`client_id`).
    ServiceAccount,
}

impl RevokedKind {
    /// Its name, in lists and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jti => "jti",
            Self::Agent => "agent",
            Self::Tenant => "tenant",
            Self::Key => "key",
            Self::ServiceAccount => "service_account",
        }
    }

    /// Whether it holds for what was issued until the revocation, and not for
    /// what is issued later.
    #[must_use]
    pub fn has_a_date(self) -> bool {
        match self {
            Self::Agent | Self::Tenant | Self::ServiceAccount => true,
            Self::Jti | Self::Key => false,
        }
    }
}

impl fmt::Display for RevokedKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is revoked, without when and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revoked {
    /// What `value` is.
    pub kind: RevokedKind,
    /// The `jti`, or the name of the agent, tenant, key or account.
    pub value: String,
    /// Of an agent: only this tenant's.
    pub tenant: Option<String>,
    /// Of a `jti` or a key: whose; our own where there is none.
    pub issuer: Option<String>,
}

/// One entry of a list of revocations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// What `value` is.
    pub kind: RevokedKind,
    /// The `jti`, or the name of the agent, tenant, key or account.
    pub value: String,
    /// Of an agent: only this tenant's. Nothing else has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Of a `jti` or a key: the `iss` of the tokens, where they are not our own.
    /// Nothing else has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// When it was revoked, in seconds since 1970. Of an agent, a tenant or an
    /// account, what was issued in this second or before is revoked.
    pub at: u64,
    /// When the entry ends, in seconds since 1970: not before the last token
    /// that it speaks of. `None` for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Why an entry, or a list of them, is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// A line of a list that cannot be read.
    #[error("line {line}: {why}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// An entry that cannot mean anything.
    #[error("{0}")]
    Entry(String),
}

impl Revocation {
    /// What is revoked.
    #[must_use]
    pub fn what(&self) -> Revoked {
        Revoked {
            kind: self.kind,
            value: self.value.clone(),
            tenant: self.tenant.clone(),
            issuer: self.issuer.clone(),
        }
    }

    /// An entry for this, made at `now` in seconds since 1970. Without `lasts`
    /// it is in force until somebody takes it back: an agent key and a token of
    /// another issuer may live for any time, and an entry that ends before them
    /// would let them in again. Only one of our own tokens is known to end.
    ///
    /// # Errors
    /// [`RevocationError::Entry`], with what to write.
    pub fn make(
        what: Revoked,
        now: u64,
        lasts: Option<Duration>,
        reason: Option<String>,
    ) -> Result<Self, RevocationError> {
        let lasts = match (lasts, what.kind, &what.issuer) {
            (Some(lasts), ..) => Some(lasts),
            (None, RevokedKind::Jti, None) => Some(MAX_LIFETIME + LEEWAY),
            (None, ..) => None,
        };
        let entry = Self {
            kind: what.kind,
            value: what.value,
            tenant: what.tenant,
            issuer: what.issuer,
            at: now,
            until: lasts.map(|lasts| now.saturating_add(lasts.as_secs())),
            reason,
        };
        entry.check()?;
        Ok(entry)
    }

    /// Takes in another entry for the same: the later date and the later end
    /// count, so that nothing that is said now shortens what was said before.
    pub fn reach_as_far_as(&mut self, other: &Self) {
        self.at = self.at.max(other.at);
        self.until = match (self.until, other.until) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (None, _) | (_, None) => None,
        };
    }

    /// Whether it has not ended at `now`, in seconds since 1970.
    #[must_use]
    pub fn is_in_force(&self, now: u64) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    /// Whether it can mean something: an entry with a name that nobody can
    /// have is a slip, and would revoke nothing.
    ///
    /// # Errors
    /// [`RevocationError::Entry`], with what to write.
    pub fn check(&self) -> Result<(), RevocationError> {
        let bad = |what: &str, error: &dyn fmt::Display| {
            Err(RevocationError::Entry(format!("{what}: {error}")))
        };
        let named = match self.kind {
            RevokedKind::Agent => AgentId::parse(&self.value).err(),
            RevokedKind::Tenant => TenantId::parse(&self.value).err(),
            RevokedKind::Jti | RevokedKind::Key | RevokedKind::ServiceAccount => {
                if !is_name(&self.value) {
                    return bad(
                        self.kind.as_str(),
                        &"write 1 to 256 bytes without control characters",
                    );
                }
                None
            }
        };
        if let Some(error) = named {
            return bad(self.kind.as_str(), &error);
        }
        match (&self.tenant, self.kind) {
            (Some(tenant), RevokedKind::Agent) => {
                if let Err(error) = TenantId::parse(tenant) {
                    return bad("tenant", &error);
                }
            }
            (Some(_), _) => return bad("tenant", &"only an agent is revoked of one tenant"),
            (None, _) => {}
        }
        match (&self.issuer, self.kind) {
            (Some(issuer), RevokedKind::Jti | RevokedKind::Key) if is_name(issuer) => {}
            (Some(_), RevokedKind::Jti | RevokedKind::Key) => {
                let what = "write the iss of its tokens, 1 to 256 bytes without control characters";
                return bad("issuer", &what);
            }
            (Some(_), _) => {
                return bad("issuer", &"only a jti and a key are revoked of one issuer");
            }
            (None, _) => {}
        }
        if self.until.is_some_and(|until| until <= self.at) {
            return bad("until", &"the entry would end before it begins");
        }
        if self.line().len() > MAX_LINE_BYTES - DATES_BYTES {
            return bad("reason", &"write less: the entry is too long for a list");
        }
        Ok(())
    }

    /// The entry as one line of JSON, without a line feed.
    #[must_use]
    pub fn line(&self) -> String {
        // An entry of these types always has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads an entry from its line.
    ///
    /// # Errors
    /// [`RevocationError::Entry`].
    pub fn parse(line: &str) -> Result<Self, RevocationError> {
        if line.len() > MAX_LINE_BYTES {
            let why = format!("longer than {MAX_LINE_BYTES} bytes");
            return Err(RevocationError::Entry(why));
        }
        let entry: Self = serde_json::from_str(line)
            .map_err(|error| RevocationError::Entry(error.to_string()))?;
        entry.check()?;
        Ok(entry)
    }

    /// Reads a list: one JSON object in each line; empty lines are nothing.
    ///
    /// # Errors
    /// [`RevocationError::Line`], the first: a list of which a part cannot be
    /// read is not in force by halves.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, RevocationError> {
        let lines = text.lines().enumerate();
        lines
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(at, line)| {
                Self::parse(line).map_err(|error| RevocationError::Line {
                    line: at + 1,
                    why: error.to_string(),
                })
            })
            .collect()
    }
}

/// How far one entry reaches.
#[derive(Clone, Debug)]
struct Reach {
    /// Of which tenant; any where there is none.
    tenant: Option<Box<str>>,
    /// Of which issuer; our own where there is none.
    issuer: Option<Box<str>>,
    /// What was issued until then; everything where there is none.
    issued_until: Option<u64>,
    /// When the entry ends.
    ends: u64,
}

impl Reach {
    /// Whether it reaches something of this issuer's that this principal has.
    fn holds(&self, who: &Principal, issuer: Option<&str>, now: u64) -> bool {
        let tenant = match &self.tenant {
            None => true,
            Some(tenant) => who.tenant().is_some_and(|of| of.as_str() == &**tenant),
        };
        let issued = match (self.issued_until, who.issued_at()) {
            (Some(until), Some(issued)) => issued <= until,
            (None, _) | (_, None) => true,
        };
        tenant && issued && self.issuer.as_deref() == issuer && now < self.ends
    }
}

/// All revocations of one moment, for a look-up by each request.
#[derive(Clone, Debug, Default)]
pub struct RevocationSet {
    count: usize,
    /// Our own `iss`.
    own: Box<str>,
    by_kind: [HashMap<Box<str>, Vec<Reach>>; 5],
}

impl RevocationSet {
    /// The set of these entries; `own` is the `iss` of our own tokens.
    #[must_use]
    pub fn new<'e>(entries: impl IntoIterator<Item = &'e Revocation>, own: &str) -> Self {
        let mut set = Self {
            own: own.into(),
            ..Self::default()
        };
        for entry in entries {
            set.count += 1;
            let reach = Reach {
                tenant: entry.tenant.as_deref().map(Into::into),
                issuer: entry
                    .issuer
                    .as_deref()
                    .filter(|issuer| *issuer != own)
                    .map(Into::into),
                issued_until: entry.kind.has_a_date().then_some(entry.at),
                ends: entry.until.unwrap_or(u64::MAX),
            };
            let known = set.by_kind[place(entry.kind)]
                .entry(entry.value.as_str().into())
                .or_default();
            known.push(reach);
        }
        set
    }

    /// How many entries there are, ended ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// By what this principal is revoked at `now`, in seconds since 1970: by
    /// itself, or through a token that its own was exchanged from. At most six
    /// look-ups and three for each of those, and none while nothing is revoked.
    #[must_use]
    pub fn revokes(&self, who: &Principal, now: u64) -> Option<RevokedKind> {
        use RevokedKind::{Agent, Jti, Key, ServiceAccount, Tenant};
        if self.is_empty() {
            return None;
        }
        let issuer = self.other(who.issuer());
        let names = [
            (Jti, who.jti().map(AsRef::as_ref), issuer),
            (Agent, Some(who.agent().as_str()), None),
            // Who acts for it holds the token. Those who acted before do not
            // (RFC 8693, 4.1).
            (
                Agent,
                who.act().and_then(|act| act.first()).map(String::as_str),
                None,
            ),
            (Tenant, who.tenant().map(TenantId::as_str), None),
            (Key, Some(who.key_id().as_ref()), issuer),
            (ServiceAccount, who.client().map(AsRef::as_ref), None),
        ];
        let inherited = who.ancestors().iter().flat_map(|of| {
            let issuer = self.other(of.issuer.as_ref());
            [
                (Jti, of.jti.as_deref(), issuer),
                (Key, Some(of.key_id.as_ref()), issuer),
                (ServiceAccount, of.client.as_deref(), None),
            ]
        });
        let all = names.into_iter().chain(inherited);
        all.into_iter().find_map(|(kind, name, issuer)| {
            let reaches = self.by_kind[place(kind)].get(name?)?;
            reaches
                .iter()
                .any(|reach| reach.holds(who, issuer, now))
                .then_some(kind)
        })
    }

    /// The issuer, where it is not we.
    fn other<'i>(&self, issuer: Option<&'i Arc<str>>) -> Option<&'i str> {
        issuer
            .map(AsRef::as_ref)
            .filter(|issuer| *issuer != &*self.own)
    }
}

fn place(kind: RevokedKind) -> usize {
    match kind {
        RevokedKind::Jti => 0,
        RevokedKind::Agent => 1,
        RevokedKind::Tenant => 2,
        RevokedKind::Key => 3,
        RevokedKind::ServiceAccount => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(agent: &str, tenant: Option<&str>, issued_at: Option<u64>) -> Principal {
        Principal {
            agent: AgentId::parse(agent).expect("an agent"),
            tenant: tenant.map(|name| TenantId::parse(name).expect("a tenant")),
            destinations: None,
            audiences: None,
            jti: Some("j1".into()),
            act: None,
            issuer: None,
            scope: None,
            client: Some("ci".into()),
            key_id: "k1".into(),
            key_print: None,
            ancestors: None,
            issued_at,
            expires_at: 2_000,
            kind: crate::identity::CredentialKind::Token,
            certificate: None,
        }
    }

    fn entry(kind: RevokedKind, value: &str, tenant: Option<&str>) -> Revocation {
        Revocation {
            kind,
            value: value.into(),
            tenant: tenant.map(Into::into),
            issuer: None,
            at: 1_000,
            until: Some(1_900),
            reason: None,
        }
    }

    #[test]
    fn each_kind_reaches_what_it_names_and_nothing_else() {
        use RevokedKind::*;
        let acme = Some("acme");
        for (case, entry, who, revoked) in [
            (
                "a token",
                entry(Jti, "j1", None),
                who("a", None, Some(5)),
                true,
            ),
            (
                "a token, whenever it was issued",
                entry(Jti, "j1", None),
                who("a", None, Some(1_500)),
                true,
            ),
            (
                "another token",
                entry(Jti, "j2", None),
                who("a", None, Some(5)),
                false,
            ),
            (
                "an agent",
                entry(Agent, "a", None),
                who("a", acme, Some(5)),
                true,
            ),
            (
                "in the very second",
                entry(Agent, "a", None),
                who("a", acme, Some(1_000)),
                true,
            ),
            (
                "issued later",
                entry(Agent, "a", None),
                who("a", acme, Some(1_001)),
                false,
            ),
            (
                "that does not say when",
                entry(Agent, "a", None),
                who("a", acme, None),
                true,
            ),
            (
                "another agent",
                entry(Agent, "a", None),
                who("ab", acme, Some(5)),
                false,
            ),
            (
                "an agent named like a tenant",
                entry(Tenant, "a", None),
                who("a", acme, Some(5)),
                false,
            ),
            (
                "an agent of the tenant",
                entry(Agent, "a", acme),
                who("a", acme, Some(5)),
                true,
            ),
            (
                "the same of another",
                entry(Agent, "a", acme),
                who("a", Some("b"), Some(5)),
                false,
            ),
            (
                "the same of none",
                entry(Agent, "a", acme),
                who("a", None, Some(5)),
                false,
            ),
            (
                "a tenant",
                entry(Tenant, "acme", None),
                who("a", acme, Some(5)),
                true,
            ),
            (
                "a tenant, issued later",
                entry(Tenant, "acme", None),
                who("a", acme, Some(1_001)),
                false,
            ),
            (
                "no tenant",
                entry(Tenant, "acme", None),
                who("a", None, Some(5)),
                false,
            ),
            (
                "a key",
                entry(Key, "k1", None),
                who("a", None, Some(5)),
                true,
            ),
            (
                "a key, whatever its holder writes",
                entry(Key, "k1", None),
                who("a", None, Some(1_800)),
                true,
            ),
            (
                "another key",
                entry(Key, "k2", None),
                who("a", None, Some(5)),
                false,
            ),
            (
                "an account",
                entry(ServiceAccount, "ci", None),
                who("a", None, Some(5)),
                true,
            ),
            (
                "an account, issued later",
                entry(ServiceAccount, "ci", None),
                who("a", None, Some(1_001)),
                false,
            ),
        ] {
            let kind = entry.kind;
            entry.check().expect(case);
            let set = RevocationSet::new([&entry], "agentport");
            assert_eq!(set.revokes(&who, 1_500), revoked.then_some(kind), "{case}");
            assert_eq!(set.revokes(&who, 1_900), None, "{case}: has ended");
        }
        assert_eq!(
            RevocationSet::default().revokes(&who("a", None, None), 1),
            None
        );
    }

    #[test]
    fn an_agent_is_revoked_also_where_it_acts_for_another() {
        let set = RevocationSet::new(
            [&entry(RevokedKind::Agent, "worker", Some("acme"))],
            "agentport",
        );
        for (case, tenant, actors, revoked) in [
            ("it acts now", "acme", &["worker", "other"][..], true),
            ("it acted before", "acme", &["other", "worker"], false),
            ("another tenant's", "b", &["worker"], false),
            ("nobody acts", "acme", &[], false),
        ] {
            let acting = Principal {
                act: Some(actors.iter().map(|&actor| actor.to_owned()).collect()),
                ..who("bot", Some(tenant), Some(5))
            };
            let found = set.revokes(&acting, 1_500);
            assert_eq!(found, revoked.then_some(RevokedKind::Agent), "{case}");
        }
    }

    #[test]
    fn names_are_their_issuers() {
        let ours = Some("agentport");
        let theirs = Some("https://ci.test");
        for kind in [RevokedKind::Jti, RevokedKind::Key] {
            let value = if kind == RevokedKind::Jti { "j1" } else { "k1" };
            for (case, revoked_of, issued_by, revoked) in [
                ("our own by default", None, ours, true),
                ("what has no issuer is our own", None, None, true),
                ("our own, named", ours, ours, true),
                ("not another's", None, theirs, false),
                ("nor ours by another's", theirs, ours, false),
                ("another's, named", theirs, theirs, true),
            ] {
                let entry = Revocation {
                    issuer: revoked_of.map(Into::into),
                    ..entry(kind, value, None)
                };
                assert_eq!(entry.check(), Ok(()), "{case}");
                let set = RevocationSet::new([&entry], "agentport");
                let who = Principal {
                    issuer: issued_by.map(Into::into),
                    ..who("a", None, Some(5))
                };
                let found = set.revokes(&who, 1_500);
                assert_eq!(found, revoked.then_some(kind), "{kind}: {case}");
            }
        }
        let of_agent = Revocation {
            issuer: theirs.map(Into::into),
            ..entry(RevokedKind::Agent, "a", None)
        };
        assert!(of_agent.check().is_err());
    }

    #[test]
    fn what_revokes_a_token_reaches_what_was_exchanged_from_it() {
        use crate::identity::Ancestor;
        let ancestor = |issuer: &str, jti: &str, key: &str, client: &str| Ancestor {
            issuer: Some(issuer.into()),
            jti: Some(jti.into()),
            key_id: key.into(),
            key_print: None,
            client: Some(client.into()),
        };
        let child = Principal {
            ancestors: Some(
                [
                    ancestor("agentport", "parent", "k-parent", "broker"),
                    ancestor("https://ci.test", "first", "k-first", "runner"),
                ]
                .into(),
            ),
            ..who("a", None, Some(5))
        };
        use RevokedKind::*;
        for (case, kind, value, issuer, revoked) in [
            ("its parent", Jti, "parent", None, true),
            ("its parent's key", Key, "k-parent", None, true),
            ("its parent's account", ServiceAccount, "broker", None, true),
            ("the first account", ServiceAccount, "runner", None, true),
            (
                "the first token",
                Jti,
                "first",
                Some("https://ci.test"),
                true,
            ),
            (
                "the first key",
                Key,
                "k-first",
                Some("https://ci.test"),
                true,
            ),
            ("one of ours called so", Jti, "first", None, false),
            (
                "another's called so",
                Jti,
                "parent",
                Some("https://ci.test"),
                false,
            ),
            ("another account", ServiceAccount, "other", None, false),
        ] {
            let entry = Revocation {
                issuer: issuer.map(Into::into),
                ..entry(kind, value, None)
            };
            let set = RevocationSet::new([&entry], "agentport");
            assert_eq!(
                set.revokes(&child, 1_500),
                revoked.then_some(kind),
                "{case}"
            );
        }
    }

    #[test]
    fn only_a_token_is_known_to_end() {
        use RevokedKind::*;
        for kind in [Jti, Agent, Tenant, Key, ServiceAccount] {
            let what = entry(kind, "a", None).what();
            let made = Revocation::make(what.clone(), 5, None, None).expect("an entry");
            assert_eq!(made.until.is_some(), kind == Jti, "{kind}");
            let lasts = Some(Duration::from_secs(60));
            let made = Revocation::make(what, 5, lasts, None).expect("an entry");
            assert_eq!(made.until, Some(65), "{kind}");
        }
        // How long another issuer's tokens live, nobody here knows.
        let theirs = Revoked {
            issuer: Some("https://ci.test".into()),
            ..entry(Jti, "j", None).what()
        };
        let made = Revocation::make(theirs, 5, None, None).expect("an entry");
        assert_eq!(made.until, None);
    }

    #[test]
    fn what_no_list_can_hold_is_not_accepted() {
        let long = |bytes: usize| {
            let what = entry(RevokedKind::Agent, "a", None).what();
            Revocation::make(what, 5, None, Some("\n".repeat(bytes)))
        };
        let entry = long(1_900).expect("it fits");
        assert_eq!(Revocation::parse(&entry.line()), Ok(entry));
        let error = long(2_100).expect_err("too long").to_string();
        assert!(error.starts_with("reason: "), "{error}");
    }

    #[test]
    fn of_two_entries_the_one_that_reaches_further_holds() {
        let first = entry(RevokedKind::Agent, "a", None);
        let later = Revocation {
            at: 1_400,
            ..first.clone()
        };
        for entries in [[&first, &later], [&later, &first]] {
            let set = RevocationSet::new(entries, "agentport");
            assert!(set.revokes(&who("a", None, Some(1_300)), 1_500).is_some());
            assert!(set.revokes(&who("a", None, Some(1_401)), 1_500).is_none());
        }
    }

    #[test]
    fn a_list_is_read_whole_or_not_at_all() {
        let good = entry(RevokedKind::Agent, "a", Some("acme"));
        let list = format!(
            "{}\n\n{}\n",
            good.line(),
            entry(RevokedKind::Key, "k", None).line()
        );
        let read = Revocation::parse_list(&list).expect("a list");
        assert_eq!((read.len(), &read[0]), (2, &good));
        assert_eq!(Revocation::parse_list("").expect("nothing"), []);
        for (case, line) in [
            ("no JSON", "agent a"),
            ("half a line", &good.line()[..20]),
            ("an unknown kind", r#"{"kind":"host","value":"a","at":1}"#),
            (
                "an unknown field",
                r#"{"kind":"agent","value":"a","at":1,"untill":5}"#,
            ),
            ("no time", r#"{"kind":"agent","value":"a"}"#),
            (
                "a name that nobody has",
                r#"{"kind":"agent","value":"a b","at":1}"#,
            ),
            ("nothing", r#"{"kind":"jti","value":"","at":1}"#),
            (
                "a tenant of a key",
                r#"{"kind":"key","value":"k","tenant":"t","at":1}"#,
            ),
            (
                "an end before the start",
                r#"{"kind":"jti","value":"j","at":5,"until":5}"#,
            ),
        ] {
            let list = format!("{}\n{line}\n", good.line());
            let error = Revocation::parse_list(&list).expect_err(case);
            assert!(error.to_string().starts_with("line 2: "), "{case}: {error}");
        }
        let long = format!("{}{}", " ".repeat(MAX_LINE_BYTES), good.line());
        assert!(Revocation::parse(&long).is_err());
    }
}

//! Limits in documents: as they are written, and as the gate holds them.

use std::fmt;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::decide::Judge;
use super::decision::Permit;
use super::document::{Mode, PolicyDocument};
use super::finding::Problem;
use super::rule::Calls;
use super::set::PolicySet;
use crate::egress::{EgressRequest, Subject};
use crate::limit::{Amount, Limit, Measure, Per, Quota, WhenAway};

/// Limits of a document: for everything that it is for, counted for each of
/// these apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DocumentLimits {
    /// Each agent of a tenant.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub agent: Option<LimitsDocument>,
    /// A tenant with all its agents.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub tenant: Option<LimitsDocument>,
    /// Each token.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub token: Option<LimitsDocument>,
    /// Each destination host.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub destination: Option<LimitsDocument>,
}

/// Limits as they are written: at least one. All of them hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsDocument {
    /// Requests, and tunnels opened: `100/m`, `10/s burst 20`.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub requests: Option<String>,
    /// Tunnels opened: `10/s`.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub connections: Option<String>,
    /// Tunnels open and requests under way at one time.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub concurrent: Option<u32>,
    /// Bytes to destinations: `1GiB/d`.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub bytes_up: Option<String>,
    /// Bytes from destinations: `10GiB/d`.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub bytes_down: Option<String>,
    /// In a rule: whose use is counted together: `agent` (the default),
    /// `tenant`, `token`, `destination` or `source`.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub per: Option<Per>,
    /// Where replicas share limits, what happens while Redis is away: `local`
    /// (the default), each keeps to its fair share, or `deny`.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub when_away: Option<WhenAway>,
}

impl Permit {
    /// The limits of the rule that allows it.
    pub(super) fn rule_limits(&self) -> &[Arc<Limit>] {
        let rule = self.rule.map(|id| &*self.rules.rule(id).limits);
        rule.unwrap_or_default()
    }

    /// The limits that hold for it, those of the documents that are for its
    /// subject and those of the rule that allows it, each with whether it
    /// binds or is only for the record.
    pub fn limits(&self) -> impl Iterator<Item = (Mode, &Arc<Limit>)> {
        self.document_limits().chain(self.own_limits())
    }

    /// Those of the documents, whatever rule allows it.
    pub fn document_limits(&self) -> impl Iterator<Item = (Mode, &Arc<Limit>)> {
        self.rules
            .scopes(self.tenant)
            .flat_map(|(_, scope)| scope.limits(&self.agent))
    }

    /// Those of the rule that allows it.
    pub fn own_limits(&self) -> impl Iterator<Item = (Mode, &Arc<Limit>)> {
        let mode = self.mode();
        let rule = self.rule_limits().iter();
        rule.map(move |limit| (mode, limit))
    }
}

impl PolicySet {
    /// Of every rule that may turn out to allow this, once it is known what its
    /// body calls by JSON-RPC, the limits that bind.
    #[must_use]
    pub fn limits_at_best(&self, who: &Subject<'_>, what: &EgressRequest) -> Vec<Vec<Arc<Limit>>> {
        let rules = &*self.rules;
        let Ok(judge) = Judge::new(rules, who, what) else {
            return Vec::new();
        };
        let binding = |id| match rules.mode(id, who.agent) {
            Mode::Enforce => rules.rule(id).limits.clone(),
            Mode::Audit => Vec::new(),
        };
        let judge = judge.seeing(Calls::Awaited);
        judge.all_allowing().into_iter().map(binding).collect()
    }
}

/// A limit, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitShown {
    /// What records and header fields call it: `rule/models.requests`.
    pub name: Arc<str>,
    /// What it counts: `requests`, `bytes_up` and so on.
    pub measure: &'static str,
    /// How much: `100/m`, `10GiB/d`, `5 at once`.
    pub amount: String,
    /// Whose use is counted together.
    pub per: &'static str,
    /// What happens where replicas share it and Redis is away.
    pub when_away: WhenAway,
    /// Whether it binds, or is only for the record.
    pub mode: Mode,
}

impl LimitShown {
    /// A limit that binds, or not.
    #[must_use]
    pub fn new(mode: Mode, limit: &Limit) -> Self {
        Self {
            name: Arc::clone(limit.name()),
            measure: limit.measure().as_str(),
            amount: amount(limit),
            per: limit.per().as_str(),
            when_away: limit.when_away(),
            mode,
        }
    }
}

impl fmt::Display for LimitShown {
    /// `requests 100/m per agent (rule/models.requests)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} per {}", self.measure, self.amount, self.per)?;
        if self.when_away == WhenAway::Deny {
            f.write_str(", refused while Redis is away")?;
        }
        if self.mode == Mode::Audit {
            f.write_str(", on trial")?;
        }
        write!(f, " ({})", self.name)
    }
}

/// A limit in the fewest words: `requests 100/m per agent`.
pub(super) fn in_words(limit: &Limit) -> String {
    let (measure, per) = (limit.measure().as_str(), limit.per().as_str());
    format!("{measure} {} per {per}", amount(limit))
}

fn amount(limit: &Limit) -> String {
    match (limit.measure(), limit.amount()) {
        (Measure::BytesUp | Measure::BytesDown, Amount::Over(quota)) => quota.of_bytes(),
        (_, amount) => amount.to_string(),
    }
}

/// Whether limits of one measure and owner let pass more than others of them:
/// one that is larger or gone, or that does not refuse while Redis is away. No
/// limit is more than any.
pub(super) fn looser(new: &[Arc<Limit>], old: &[Arc<Limit>]) -> bool {
    old.iter().any(|old| {
        let as_tight = |new: &&Arc<Limit>| {
            new.measure() == old.measure()
                && new.per() == old.per()
                && (new.when_away() == WhenAway::Deny || old.when_away() == WhenAway::Local)
                && match (new.amount(), old.amount()) {
                    (Amount::Over(new), Amount::Over(old)) => !new.is_more_than(&old),
                    (Amount::AtOnce(new), Amount::AtOnce(old)) => new <= old,
                    _ => false,
                }
        };
        new.iter().find(as_tight).is_none()
    })
}

/// Limits in words, in an order that depends on nothing else.
pub(super) fn all_in_words(limits: &[Arc<Limit>]) -> String {
    let mut words: Vec<String> = limits
        .iter()
        .map(|limit| match limit.when_away() {
            WhenAway::Local => in_words(limit),
            WhenAway::Deny => format!("{}, refused while Redis is away", in_words(limit)),
        })
        .collect();
    words.sort_unstable();
    match words.is_empty() {
        true => "no limit".to_owned(),
        false => words.join(" and "),
    }
}

/// What the limits of a document are called after, so that those of another one
/// count apart: its tenant, and of several for one tenant the audience that
/// only this one names.
pub(super) fn owner_of(written: &PolicyDocument) -> Option<String> {
    let tenant = written.tenant.as_deref()?;
    let first = written.audience.iter().flatten().min();
    Some(match first {
        None => tenant.to_owned(),
        Some(audience) => {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/@+=".contains(&b);
            match audience.bytes().all(plain) {
                true => format!("{tenant}({audience})"),
                false => format!("{tenant}(#{})", short_digest(audience)),
            }
        }
    })
}

/// Sixteen digits that stand for a text that cannot stand in a name.
fn short_digest(text: &str) -> String {
    let whole = digest(&SHA256, text.as_bytes());
    let first = whole.as_ref().iter().take(8);
    first.map(|byte| format!("{byte:02x}")).collect()
}

/// The limits of a rule; `report` takes what is wrong, with its member.
pub(super) fn of_rule(
    written: &LimitsDocument,
    (owner, rule): (Option<&str>, &str),
    report: impl FnMut(&str, Problem),
) -> Vec<Arc<Limit>> {
    let name = match owner {
        Some(owner) => format!("{owner}/rule/{rule}"),
        None => format!("rule/{rule}"),
    };
    let per = written.per.unwrap_or(Per::Agent);
    compile(written, &name, per, report)
}

/// The limits of a document.
pub(super) fn of_document(
    written: &DocumentLimits,
    owner: Option<&str>,
    mut report: impl FnMut(&str, Problem),
) -> Vec<Arc<Limit>> {
    let mut limits = Vec::new();
    let parts = [
        (Per::Agent, &written.agent),
        (Per::Tenant, &written.tenant),
        (Per::Token, &written.token),
        (Per::Destination, &written.destination),
    ];
    if parts.iter().all(|(_, part)| part.is_none()) {
        report("", Problem::NoLimitScope);
    }
    for (per, part) in parts {
        let Some(part) = part else { continue };
        let member = per.as_str();
        if part.per.is_some() {
            report(&format!(".{member}.per"), Problem::PerOutsideRule);
        }
        let name = format!("{}/{member}", owner.unwrap_or("policy"));
        limits.extend(compile(part, &name, per, |of, problem| {
            report(&format!(".{member}{of}"), problem);
        }));
    }
    limits
}

fn compile(
    written: &LimitsDocument,
    name: &str,
    per: Per,
    mut report: impl FnMut(&str, Problem),
) -> Vec<Arc<Limit>> {
    let over = [
        (Measure::Requests, &written.requests),
        (Measure::Connections, &written.connections),
        (Measure::BytesUp, &written.bytes_up),
        (Measure::BytesDown, &written.bytes_down),
    ];
    let mut amounts = Vec::new();
    let mut any = written.concurrent.is_some();
    for (measure, raw) in over {
        let Some(raw) = raw else { continue };
        any = true;
        match Quota::parse(raw) {
            Ok(quota) => amounts.push((measure, Amount::Over(quota))),
            Err(error) => {
                report(&format!(".{}", measure.as_str()), Problem::Quota(error));
            }
        }
    }
    if let Some(most) = written.concurrent {
        match most.try_into() {
            Ok(most) => amounts.push((Measure::Concurrent, Amount::AtOnce(most))),
            Err(_) => report(".concurrent", Problem::NoneAtOnce),
        }
    }
    if !any {
        report("", Problem::NoLimit);
    }
    let when_away = written.when_away.unwrap_or_default();
    let limit = |(measure, amount): (Measure, Amount)| {
        let name = format!("{name}.{}", measure.as_str());
        Arc::new(Limit::new(name, measure, per, amount, when_away))
    };
    amounts.into_iter().map(limit).collect()
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

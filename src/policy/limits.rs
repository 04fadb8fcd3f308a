//! Limits in documents: as they are written, and as the gate holds them.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::decision::Permit;
use super::document::Mode;
use super::finding::Problem;
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
    /// The limits that hold for it, those of the documents that are for its
    /// subject and those of the rule that allows it, each with whether it
    /// binds or is only for the record.
    pub fn limits(&self) -> impl Iterator<Item = (Mode, &Arc<Limit>)> {
        let rule = self.rule.map(|id| &*self.rules.rule(id).limits);
        let rule = rule.unwrap_or_default().iter();
        let mode = self.mode();
        self.rules
            .scopes(self.tenant)
            .flat_map(|(_, scope)| scope.limits(&self.agent))
            .chain(rule.map(move |limit| (mode, limit)))
    }
}

/// The limits of a rule; `report` takes what is wrong, with its member.
pub(super) fn of_rule(
    written: &LimitsDocument,
    (tenant, rule): (Option<&str>, &str),
    report: impl FnMut(&str, Problem),
) -> Vec<Arc<Limit>> {
    let name = match tenant {
        Some(tenant) => format!("{tenant}/rule/{rule}"),
        None => format!("rule/{rule}"),
    };
    let per = written.per.unwrap_or(Per::Agent);
    compile(written, &name, per, report)
}

/// The limits of a document.
pub(super) fn of_document(
    written: &DocumentLimits,
    tenant: Option<&str>,
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
        let name = format!("{}/{member}", tenant.unwrap_or("policy"));
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

//! Recorded requests, put to two policies: whose verdict would change. Which
//! changes there are whether or not anyone has asked is told by `diff`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use super::decision::Decision;
use super::explain::Verdict;
use super::proven::Proven;
use super::record::{Recorded, RecordedEvent};
use super::rule::Calls;
use super::set::PolicySet;
use crate::egress::{EgressRequest, Subject};

/// So many different changes of recorded requests are told apart.
const MAX_REPLAYED: usize = 10_000;

/// Puts recorded requests to two policies, and counts what would change.
#[derive(Debug)]
pub struct Replay<'a> {
    old: &'a PolicySet,
    new: &'a PolicySet,
    changes: BTreeMap<Replayed, u64>,
    more: u64,
    records: u64,
    passed_over: u64,
}

/// What would change for recorded requests that are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Replayed {
    /// The agent.
    pub agent: String,
    /// Its tenant.
    pub tenant: Option<String>,
    /// The method, `CONNECT` for a tunnel.
    pub method: String,
    /// Where to.
    pub destination: String,
    /// What the old policy says: `allow`, `audit` or `deny`.
    pub before: &'static str,
    /// What the new one says.
    pub after: &'static str,
    /// Why, in words.
    pub why: String,
}

/// What a replay has found.
#[derive(Clone, Debug, Serialize)]
pub struct ReplayReport {
    /// How many requests were asked about.
    pub requests: u64,
    /// How many records tell of no request that a policy could judge.
    pub passed_over: u64,
    /// The requests whose verdict changes, with their number, most first.
    pub changes: Vec<(u64, Replayed)>,
    /// Further requests that change, which are not told apart.
    pub more: u64,
}

impl<'a> Replay<'a> {
    /// A replay through these policies.
    #[must_use]
    pub fn new(old: &'a PolicySet, new: &'a PolicySet) -> Self {
        Self {
            old,
            new,
            changes: BTreeMap::new(),
            more: 0,
            records: 0,
            passed_over: 0,
        }
    }

    /// Takes one line of an audit log.
    pub fn line(&mut self, line: &[u8]) {
        let record = match Recorded::parse(line) {
            Ok(record) if record.event != RecordedEvent::TunnelClosed => record,
            Ok(_) => return,
            Err(_) => {
                self.passed_over += 1;
                return;
            }
        };
        let (Some(agent), Some(request)) = (&record.agent, &record.request) else {
            self.passed_over += 1;
            return;
        };
        self.records += record.count;
        // What the token was limited to is not recorded.
        let who = Subject {
            agent,
            tenant: record.tenant.as_ref(),
            destinations: None,
            audiences: record.audiences.as_deref(),
        };
        let proven = record.proven.unwrap_or(Proven::BY_TOKEN);
        let asked = (request, record.seen(), proven);
        let (before, _) = verdict(self.old, &who, asked, record.address);
        let (after, why) = verdict(self.new, &who, asked, record.address);
        if before == after {
            return;
        }
        let change = Replayed {
            agent: agent.to_string(),
            tenant: record.tenant.as_ref().map(ToString::to_string),
            method: request.method().to_owned(),
            destination: request.authority.to_string(),
            before: before.as_str(),
            after: after.as_str(),
            why,
        };
        let full = self.changes.len() >= MAX_REPLAYED;
        match self.changes.get_mut(&change) {
            Some(count) => *count += record.count,
            None if full => self.more += record.count,
            None => {
                self.changes.insert(change, record.count);
            }
        }
    }

    /// What was found.
    #[must_use]
    pub fn finish(self) -> ReplayReport {
        let mut changes: Vec<_> = self
            .changes
            .into_iter()
            .map(|(change, count)| (count, change))
            .collect();
        changes.sort_by(|(a_count, a), (b_count, b)| (b_count, a).cmp(&(a_count, b)));
        ReplayReport {
            requests: self.records,
            passed_over: self.passed_over,
            changes,
            more: self.more,
        }
    }
}

fn verdict(
    set: &PolicySet,
    who: &Subject<'_>,
    (what, calls, proven): (&EgressRequest, Calls<'_>, Proven),
    address: Option<IpAddr>,
) -> (Verdict, String) {
    let permit = match set.decide_calls(who, what, calls).proven_by(proven) {
        Decision::Deny(denied) => return (Verdict::Deny, denied.to_string()),
        Decision::Allow(permit) => permit,
    };
    let later = match address.map(|address| permit.address(address)) {
        Some(Err(denied)) => return (Verdict::Deny, denied.to_string()),
        Some(Ok(audited)) => audited,
        None => None,
    };
    match permit.audited_denial().or(later.as_ref()) {
        Some(denied) => (Verdict::Audit, denied.to_string()),
        None => {
            let rule = permit.rule().map_or("", |name| name);
            (Verdict::Allow, format!("rule \"{rule}\" allows this"))
        }
    }
}

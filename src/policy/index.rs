//! Finds the few rules that may speak of a host and an agent among many: by
//! host first, then by agent. Judges nothing else.

use std::collections::{HashMap, HashSet};

use super::rule::{Agents, Rule};
use super::set::LocalId;
use crate::egress::{AgentId, DnsName, Host, HostPattern};

/// The rules of one action in one scope.
#[derive(Debug, Default)]
pub(super) struct Index {
    exact: HashMap<Host, Slot>,
    below: HashMap<DnsName, Slot>,
    /// The most labels that a name in `below` has: longer suffixes of a host
    /// are not looked up, so a name of a hundred labels costs no more.
    most_labels: usize,
    any: Slot,
    /// Rules with `addresses`: in the index of deny rules all of them, in that
    /// of allow rules those without `hosts`.
    by_address: Slot,
}

/// The rules under one key, by agent. Each list is in order of precedence.
#[derive(Debug, Default)]
pub(super) struct Slot {
    any: Vec<LocalId>,
    names: HashMap<AgentId, Vec<LocalId>>,
    prefixes: HashMap<Box<str>, Vec<LocalId>>,
    /// The lengths that prefixes have, in bytes.
    prefix_bytes: Vec<usize>,
}

impl Index {
    /// Rules must come in order of precedence.
    pub(super) fn insert(&mut self, id: LocalId, rule: &Rule, with_addresses: bool) {
        for pattern in &rule.hosts {
            let slot = match pattern {
                HostPattern::Exact(host) => self.exact.entry(host.clone()).or_default(),
                HostPattern::Below(name) => {
                    self.most_labels = self.most_labels.max(labels(name.as_str()));
                    self.below.entry(name.clone()).or_default()
                }
                HostPattern::Any => &mut self.any,
            };
            slot.insert(id, &rule.agents);
        }
        if with_addresses {
            self.by_address.insert(id, &rule.agents);
        }
    }

    /// The slots that speak of a host by name, the most specific first.
    pub(super) fn by_host<'a>(&'a self, host: &'a Host) -> impl Iterator<Item = (Rank, &'a Slot)> {
        let exact = self.exact.get(host).map(|slot| (Rank::Exact, slot));
        let below = host.name().into_iter().flat_map(|name| {
            suffixes(name.as_str(), self.most_labels).filter_map(|suffix| {
                let slot = self.below.get(suffix)?;
                Some((Rank::Below(suffix.len()), slot))
            })
        });
        let any = (!self.any.is_empty()).then_some((Rank::Any, &self.any));
        exact.into_iter().chain(below).chain(any)
    }

    /// The slot of rules by address.
    pub(super) fn by_address(&self) -> &Slot {
        &self.by_address
    }
}

/// How closely a rule's pattern names a host; more is closer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// By a `*`.
    Any,
    /// By a range that holds the target, which is an address.
    Range,
    /// By a `*.suffix` of so many bytes.
    Below(usize),
    /// By itself.
    Exact,
}

impl Slot {
    fn insert(&mut self, id: LocalId, agents: &Agents) {
        // A rule that lists a host or an agent twice stands once.
        let push = |list: &mut Vec<LocalId>| {
            if list.last() != Some(&id) {
                list.push(id);
            }
        };
        match agents {
            Agents::Any => push(&mut self.any),
            Agents::These { names, prefixes } => {
                for name in names {
                    push(self.names.entry(name.clone()).or_default());
                }
                for prefix in prefixes {
                    if !self.prefix_bytes.contains(&prefix.len()) {
                        self.prefix_bytes.push(prefix.len());
                    }
                    push(self.prefixes.entry(prefix.clone()).or_default());
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.any.is_empty() && self.names.is_empty() && self.prefixes.is_empty()
    }

    /// The rules that speak of an agent, as lists that are each in order.
    pub(super) fn lists<'a>(&'a self, agent: &'a AgentId) -> impl Iterator<Item = &'a [LocalId]> {
        let named = (!self.names.is_empty())
            .then(|| self.names.get(agent))
            .flatten();
        let prefixed = self.prefix_bytes.iter().filter_map(|bytes| {
            let prefix = agent.as_str().get(..*bytes)?;
            self.prefixes.get(prefix)
        });
        std::iter::once(&self.any)
            .chain(named)
            .chain(prefixed)
            .map(Vec::as_slice)
    }
}

/// Hosts, to be asked whether one is among them.
#[derive(Debug, Default)]
pub(super) struct HostSet {
    exact: HashSet<Host>,
    below: HashSet<DnsName>,
    most_labels: usize,
    any: bool,
}

impl HostSet {
    /// An empty one, with room for so many hosts that are named exactly.
    pub(super) fn with_room(exact: usize) -> Self {
        Self {
            exact: HashSet::with_capacity(exact),
            ..Self::default()
        }
    }

    pub(super) fn insert(&mut self, pattern: HostPattern) {
        match pattern {
            HostPattern::Exact(host) => {
                self.exact.insert(host);
            }
            HostPattern::Below(name) => {
                self.most_labels = self.most_labels.max(labels(name.as_str()));
                self.below.insert(name);
            }
            HostPattern::Any => self.any = true,
        }
    }

    pub(super) fn contains(&self, host: &Host) -> bool {
        self.any
            || (!self.exact.is_empty() && self.exact.contains(host))
            || host.name().is_some_and(|name| {
                suffixes(name.as_str(), self.most_labels).any(|suffix| self.below.contains(suffix))
            })
    }
}

fn labels(name: &str) -> usize {
    name.bytes().filter(|b| *b == b'.').count() + 1
}

/// The names above a name that have at most so many labels, the longest first:
/// `b.c` and `c` of `a.b.c`.
fn suffixes(name: &str, most_labels: usize) -> impl Iterator<Item = &str> {
    let start = match most_labels {
        0 => None,
        most => name
            .bytes()
            .enumerate()
            .rev()
            .filter(|(_, b)| *b == b'.')
            .take(most)
            .last()
            .map(|(at, _)| &name[at + 1..]),
    };
    std::iter::successors(start, |suffix| {
        suffix.split_once('.').map(|(_, above)| above)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_those_above_within_the_bound() {
        let of = |name, most| suffixes(name, most).collect::<Vec<_>>();
        assert_eq!(of("a.b.c.d", 9), ["b.c.d", "c.d", "d"]);
        assert_eq!(of("a.b.c.d", 2), ["c.d", "d"]);
        assert_eq!(of("a.b.c.d", 1), ["d"]);
        assert!(of("a.b.c.d", 0).is_empty());
        assert!(of("localhost", 3).is_empty());
    }
}

//! Doubts: rules that are valid and may not do what their author means.

use std::collections::{HashMap, HashSet};

use super::cover::{covers, covers_but_hosts};
use super::document::{Action, Mode};
use super::finding::{Concern, Finding, PolicyWarning};
use super::index::HostSet;
use super::rule::Rule;
use super::set::{Document, PolicySet};
use crate::egress::{Destination, Host, HostPattern};

impl PolicySet {
    /// What is doubtful, in the order of the rules. Slower than building the
    /// set: for `policy check`, not for a reload.
    #[must_use]
    pub fn lint(&self) -> Vec<PolicyWarning> {
        let rules = &*self.rules;
        let denylists: Vec<_> = rules.documents().map(DenylistOf::new).collect();
        let mut warnings = Vec::new();
        let mut said: HashMap<((u32, u32), String), usize> = HashMap::new();
        let denying: Vec<(&Document, &Rule)> = rules
            .all()
            .map(|(id, rule)| (rules.document(id), rule))
            .filter(|(document, rule)| rule.action == Action::Deny && binds(document, rule))
            .collect();
        let mut allowing: Allowing<'_> = HashMap::new();
        for (id, rule) in rules.all() {
            let document = rules.document(id);
            let mut warn = |member: String, concern| {
                let path = format!("rules[{}]{member}", rule.position);
                warnings.push(Finding::new(&document.source, path, concern));
            };
            repeated(rule, &mut warn);
            if rule.action == Action::Allow {
                too_wide(rule, &mut warn);
                not_for_tunnels(rule, &mut warn);
                let over = denylists
                    .iter()
                    .filter(|list| holds_beside(list.of, document));
                if let Some(concern) = denylisted(rule, over) {
                    warn(String::new(), concern);
                }
                public_suffixes(rule, &mut warn);
                if let Some(concern) = refused(rule, document, &denying) {
                    warn(String::new(), concern);
                }
            }
            let first = *said
                .entry((id.in_document(), meaning(rule)))
                .or_insert(rule.position);
            if first != rule.position {
                warn(String::new(), Concern::SameAs(first));
            } else if rule.action == Action::Allow
                && let Some(before) = shadow(id.in_document(), rule, &allowing)
            {
                warn(String::new(), Concern::Shadowed(before));
            }
            if rule.action == Action::Allow {
                for pattern in &rule.hosts {
                    allowing
                        .entry((id.in_document(), pattern))
                        .or_default()
                        .push(rule);
                }
            }
        }
        self.unlimited(&mut warnings);
        warnings
    }

    /// Allow rules without limits, one finding for each document.
    fn unlimited(&self, warnings: &mut Vec<PolicyWarning>) {
        let rules = &*self.rules;
        let bounded = |document: &Document| !document.limits.is_empty();
        if rules
            .documents()
            .any(|document| document.tenant.is_none() && bounded(document))
        {
            return;
        }
        let mut found: Vec<((u32, u32), usize, usize)> = Vec::new();
        for (id, rule) in rules.all() {
            let free = rule.action == Action::Allow && rule.limits.is_empty();
            if !free || bounded(rules.document(id)) {
                continue;
            }
            let of = id.in_document();
            match found.iter_mut().find(|(document, ..)| *document == of) {
                Some((_, _, more)) => *more += 1,
                None => {
                    found.push((of, rule.position, 0));
                    let path = format!("rules[{}]", rule.position);
                    let source = &rules.document(id).source;
                    warnings.push(Finding::new(source, path, Concern::Unlimited(0)));
                }
            }
        }
        let first = warnings.len() - found.len();
        for (warning, (_, _, more)) in warnings[first..].iter_mut().zip(found) {
            warning.what = Concern::Unlimited(more);
        }
    }
}

/// Entries of `hosts` that another entry has or holds.
fn repeated(rule: &Rule, warn: &mut impl FnMut(String, Concern)) {
    let mut seen = HashSet::new();
    let below: HashSet<&str> = rule
        .hosts
        .iter()
        .filter_map(|pattern| match pattern {
            HostPattern::Below(name) => Some(name.as_str()),
            _ => None,
        })
        .collect();
    for (at, pattern) in rule.hosts.iter().enumerate() {
        let text = pattern.to_string();
        let member = format!(".hosts[{at}]");
        if !seen.insert(pattern) {
            warn(member, Concern::Twice(text));
            continue;
        }
        let name = match pattern {
            HostPattern::Exact(Host::Name(name)) | HostPattern::Below(name) => name.as_str(),
            _ => continue,
        };
        let above = std::iter::successors(Some(name), |name| Some(name.split_once('.')?.1));
        if let Some(holder) = above.skip(1).find(|above| below.contains(above)) {
            warn(member, Concern::Held(text, format!("*.{holder}")));
        }
    }
}

fn too_wide(rule: &Rule, warn: &mut impl FnMut(String, Concern)) {
    let every = |pattern: &HostPattern| *pattern == HostPattern::Any;
    if rule.ranges.is_empty()
        && let Some(at) = rule.hosts.iter().position(every)
    {
        warn(format!(".hosts[{at}]"), Concern::EveryHost);
    }
    for (at, range) in rule.ranges.list().iter().enumerate() {
        if range.net().prefix_len() == 0 {
            let concern = Concern::EveryAddress(range.to_string());
            warn(format!(".addresses[{at}]"), concern);
        }
    }
}

fn not_for_tunnels(rule: &Rule, warn: &mut impl FnMut(String, Concern)) {
    if !rule.https || !rule.ports.contains(443) {
        return;
    }
    if !rule.methods.is_empty() {
        warn(".methods".to_owned(), Concern::NotForTunnels("methods"));
    } else if !rule.paths.is_empty() {
        warn(".paths".to_owned(), Concern::NotForTunnels("paths"));
    } else if !rule.rpc_methods.is_empty() {
        let concern = Concern::NotForTunnels("rpc_methods");
        warn(".rpc_methods".to_owned(), concern);
    }
}

/// The allow rules seen so far, by document and pattern.
type Allowing<'a> = HashMap<((u32, u32), &'a HostPattern), Vec<&'a Rule>>;

/// Wildcards below a suffix under which names belong to different owners, such
/// as `*.co.uk` and `*.github.io`, by the Public Suffix List.
fn public_suffixes(rule: &Rule, warn: &mut impl FnMut(String, Concern)) {
    for (at, pattern) in rule.hosts.iter().enumerate() {
        let HostPattern::Below(name) = pattern else {
            continue;
        };
        let known = psl::suffix(name.as_str().as_bytes()).is_some_and(|suffix| {
            suffix.is_known() && suffix.as_bytes() == name.as_str().as_bytes()
        });
        if known {
            let concern = Concern::PublicSuffix(pattern.to_string(), name.to_string());
            warn(format!(".hosts[{at}]"), concern);
        }
    }
}

/// Whether a rule binds for every agent.
fn binds(document: &Document, rule: &Rule) -> bool {
    match rule.mode {
        Some(mode) => mode == Mode::Enforce,
        None => document.modes.enforce_for_all(),
    }
}

/// Whether what one document refuses is refused where the other one allows it:
/// both hold for the same requests.
fn holds_beside(of: &Document, document: &Document) -> bool {
    of.tenant.is_none() || std::ptr::eq(of, document)
}

/// The deny rule that takes everything from an allow rule.
fn refused(rule: &Rule, document: &Document, denying: &[(&Document, &Rule)]) -> Option<Concern> {
    let (of, deny) = denying.iter().find(|(of, deny)| {
        !rule.hosts.is_empty() && covers(deny, rule) && holds_beside(of, document)
    })?;
    Some(Concern::Refused {
        document: of.source.clone(),
        rule: deny.name.to_string(),
    })
}

/// The rule before this one that is taken instead of it, always: one that has
/// the very same hosts, so that none of both is nearer, and all the rest.
fn shadow(document: (u32, u32), rule: &Rule, allowing: &Allowing<'_>) -> Option<usize> {
    let (first, rest) = rule.hosts.split_first()?;
    let before = allowing.get(&(document, first))?;
    let taken = |other: &&&Rule| {
        covers_but_hosts(other, rule)
            && rest.iter().all(|host| other.hosts.contains(host))
            && other.ranges.list() == rule.ranges.list()
    };
    before.iter().find(taken).map(|other| other.position)
}

/// The denylist of one document.
struct DenylistOf<'a> {
    of: &'a Document,
    hosts: HostSet,
}

impl<'a> DenylistOf<'a> {
    fn new(of: &'a Document) -> Self {
        let mut hosts = HostSet::default();
        for entry in &of.denylist.entries {
            if let Destination::Host(pattern) = entry {
                hosts.insert(pattern.clone());
            }
        }
        Self { of, hosts }
    }

    /// The entry that holds all that a pattern holds.
    fn holds(&self, pattern: &HostPattern) -> Option<&'a Destination> {
        // Any one name below stands for all of them, unless it is named itself,
        // which the second look finds.
        let probe = match pattern {
            HostPattern::Exact(host) => host.clone(),
            HostPattern::Below(name) => Host::parse(&format!("x.{name}")).ok()?,
            HostPattern::Any => return None,
        };
        if !self.hosts.contains(&probe) {
            return None;
        }
        self.of.denylist.entries.iter().find(|entry| match entry {
            Destination::Host(entry @ HostPattern::Exact(_)) => entry == pattern,
            Destination::Host(entry) => entry.matches(&probe),
            Destination::Range(_) => false,
        })
    }
}

/// Where every host of a rule is on a denylist: the entry that has the first.
fn denylisted<'a>(rule: &Rule, lists: impl Iterator<Item = &'a DenylistOf<'a>>) -> Option<Concern> {
    let lists: Vec<_> = lists.collect();
    let holder = |pattern| {
        lists
            .iter()
            .find_map(|list| Some((list.of, list.holds(pattern)?)))
    };
    let (first, rest) = rule.hosts.split_first()?;
    let (document, entry) = holder(first)?;
    rest.iter()
        .all(|pattern| holder(pattern).is_some())
        .then(|| Concern::Denylisted {
            denylist: document.source.clone(),
            entry: entry.to_string(),
        })
}

/// Everything a rule says besides its name, to be compared.
pub(super) fn meaning(rule: &Rule) -> String {
    format!(
        "{:?}",
        (
            (rule.action, rule.mode, rule.tls),
            (&rule.agents, &rule.hosts, rule.ranges.list(), &rule.ports),
            (rule.http, rule.https, &rule.methods, &rule.paths),
            (&rule.rpc_methods, rule.require),
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Format, Mode, PolicyDocument, SourceName};

    #[test]
    fn doubts_are_named_with_their_place() {
        let text = "version: 1
denylist: [\"*.evil.example\", bad.example]
rules:
  - {name: wide, action: allow, agents: any, hosts: [\"*\"]}
  - {name: net, action: allow, agents: any, addresses: [0.0.0.0/0]}
  - {name: twice, action: allow, agents: any, hosts: [a.example, b.example, a.example]}
  - {name: held, action: allow, agents: any, hosts: [\"*.c.example\", x.c.example, \"*.y.c.example\", c.example]}
  - {name: never, action: allow, agents: any, hosts: [bad.example, \"*.x.evil.example\"]}
  - {name: some, action: allow, agents: any, hosts: [bad.example, evil.example]}
  - {name: again, action: allow, agents: any, hosts: [bad.example, evil.example]}
  - {name: get, action: allow, agents: any, hosts: [d.example], methods: [GET]}
  - {name: fine, action: allow, agents: any, hosts: [e.example], methods: [GET], ports: [80]}
  - {name: no, action: deny, agents: any, hosts: [\"*\"], ports: [25]}
  - {name: suffix, action: allow, agents: any, hosts: [\"*.co.uk\", \"*.github.io\", \"*.example.org.uk\", \"*.internal\"]}
  - {name: narrow, action: allow, agents: [a], hosts: [d.example], methods: [GET], ports: [80], paths: [/x/**]}
  - {name: mail, action: allow, agents: any, hosts: [mail.example], ports: [25]}
  - {name: nearer, action: allow, agents: [a], hosts: [x.example.co.uk]}";
        let source = SourceName::from("p.yaml");
        let document = PolicyDocument::parse(&source, Format::Yaml, text).expect("a document");
        let set = PolicySet::build(vec![(source, document)], Mode::Enforce).expect("a policy");
        let said: Vec<String> = set.lint().iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "p.yaml: rules[0].hosts[0]: allows every public host; name the hosts, unless that is meant",
                "p.yaml: rules[1].addresses[0]: 0.0.0.0/0 holds every address, also private ones and this machine's own; name the networks",
                "p.yaml: rules[2].hosts[2]: \"a.example\" stands in this list already; take it away",
                "p.yaml: rules[3].hosts[1]: \"x.c.example\" is held by \"*.c.example\" in the same list; take it away",
                "p.yaml: rules[3].hosts[2]: \"*.y.c.example\" is held by \"*.c.example\" in the same list; take it away",
                "p.yaml: rules[4]: never matches: the denylist of p.yaml has \"bad.example\", and deny wins",
                "p.yaml: rules[6]: never decides: rules[5] says the same; take it away",
                "p.yaml: rules[7].methods: a tunnel to port 443 cannot be held to methods and is refused by this rule; the rule works for requests whose inside is seen",
                "p.yaml: rules[10].hosts[0]: \"*.co.uk\": names below co.uk belong to whoever registers one; name the hosts, or the domain that is meant",
                "p.yaml: rules[10].hosts[1]: \"*.github.io\": names below github.io belong to whoever registers one; name the hosts, or the domain that is meant",
                "p.yaml: rules[11]: never decides: rules[7] stands before it and speaks of all its hosts, agents, ports, methods and paths; take it away, or put it first",
                "p.yaml: rules[12]: never matches: rule \"no\" of p.yaml refuses all of it, and deny wins",
                "p.yaml: rules[0]: has no limits, as 12 more of this document: only the gateway's own bound how much agents use it; write limits in the rule or in its document",
            ]
        );
    }

    #[test]
    fn limits_anywhere_above_a_rule_are_limits() {
        let tenant = "{version: 1, tenant: acme, rules: [{name: a, action: allow, agents: any, hosts: [a.example]}]}";
        let limited = "{version: 1, tenant: acme, limits: {agent: {requests: 9/s}}, rules: [{name: a, action: allow, agents: any, hosts: [a.example]}]}";
        let own = "{version: 1, rules: [{name: a, action: allow, agents: any, hosts: [a.example], limits: {requests: 9/s}}]}";
        let global = "{version: 1, limits: {tenant: {requests: 9/s}}}";
        for (case, documents, doubts) in [
            ("none", &[tenant][..], 1),
            ("in the rule", &[own], 0),
            ("in the document", &[limited], 0),
            ("for everybody", &[tenant, global], 0),
            ("only of another's rule", &[tenant, own], 1),
        ] {
            let documents = documents.iter().enumerate().map(|(at, text)| {
                let source = SourceName::from(format!("{at}.yaml").as_str());
                let document = PolicyDocument::parse(&source, Format::Yaml, text);
                (source, document.expect("a document"))
            });
            let set = PolicySet::build(documents.collect(), Mode::Enforce).expect("a policy");
            assert_eq!(set.lint().len(), doubts, "{case}: {:?}", set.lint());
        }
    }
}

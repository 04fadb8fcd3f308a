//! What changes between two policies, found by asking both. All that can differ
//! lies within the rules that differ; for each kind of agent, host, port,
//! method, path and JSON-RPC method that the rules there tell apart, one request
//! is made up and put to both. So every change that is named is a real one, and the words say
//! what it stands for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::Method;
use serde::Serialize;

use super::cover::holds;
use super::decision::{Decision, EchRule, Permit, SniRule, TlsRule, TlsUse};
use super::document::Action;
use super::limits;
use super::lint::meaning;
use super::proven::Requirement;
use super::rule::{Agents, Calls, Ports, Rule};
use super::set::{Document, PolicySet};
use crate::egress::{
    AddressRange, AgentId, Ask, Authority, Destination, EgressRequest, Host, HostPattern,
    RequestPath, Scheme, Subject, TenantId,
};
use crate::limit::Limit;

/// So many requests are made up at most.
const MAX_QUESTIONS: usize = 4_000_000;

/// What changes from one policy to another.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyDiff {
    /// The changes: what widens, what narrows, what is otherwise different.
    pub changes: Vec<Change>,
    /// How many requests were put to both.
    pub questions: usize,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Change {
    /// Which way.
    pub direction: Direction,
    /// For which tenants; empty where no tenant has a document.
    pub tenants: Vec<String>,
    /// For which agents: names, beginnings as `ci-*`, or `every other agent`.
    pub agents: Vec<String>,
    /// Hosts: a pattern stands for the names that no other pattern has.
    pub hosts: Vec<String>,
    /// What may be asked of them.
    pub what: String,
    /// What the old policy says.
    pub before: String,
    /// What the new one says.
    pub after: String,
}

/// Which way a change goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Something becomes reachable, or may carry more.
    Widens,
    /// Something stops being reachable, or may carry less.
    Narrows,
    /// As much passes as before, by audit mode only or not any more.
    Differs,
}

/// There is too much to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the policies differ in so much that more than four million requests would be needed to tell how; compare them in parts"
)]
pub struct TooDifferent;

impl PolicySet {
    /// What changes where `new` takes the place of this policy.
    ///
    /// # Errors
    /// [`TooDifferent`].
    pub fn diff(&self, new: &Self) -> Result<PolicyDiff, TooDifferent> {
        let mut questions = 0;
        let mut cells: BTreeMap<Cell, BTreeSet<String>> = BTreeMap::new();
        for whose in tenants(self, new)
            .iter()
            .flat_map(|one| tokens(self, new, one.as_ref()))
        {
            let sides = [self.side(&whose), new.side(&whose)];
            for cell in compare(self, new, &whose, &sides, &mut questions)? {
                cells.entry(cell).or_default().insert(whose.name.clone());
            }
        }
        let mut changes = gathered(cells);
        changes.extend(limit_changes(self, new));
        changes.extend(audience_changes(self, new));
        changes.sort();
        Ok(PolicyDiff { changes, questions })
    }

    /// What of a policy holds for these tokens.
    fn side(&self, whose: &Tokens<'_>) -> Side<'_> {
        let rules = &*self.rules;
        let place = rules.place_for(whose.tenant, whose.audiences.as_deref());
        let scopes: Vec<_> = rules.scopes(place.unwrap_or_default()).collect();
        let documents: Vec<&Document> = scopes
            .iter()
            .flat_map(|(_, scope)| scope.documents())
            .collect();
        let mut otherwise: BTreeSet<String> = documents
            .iter()
            .map(|document| modes_of(document))
            .collect();
        if place.is_err() {
            otherwise.insert("no document".to_owned());
        }
        Side {
            rules: rules
                .at(place.unwrap_or_default())
                .map(|(id, rule)| (rules.document(id), rule))
                .collect(),
            documents,
            otherwise,
        }
    }
}

/// Tokens of one tenant for which the same documents hold, in both policies.
struct Tokens<'a> {
    /// What changes call them.
    name: String,
    tenant: Option<&'a TenantId>,
    /// As [`Subject::audiences`], for one of them.
    audiences: Option<Vec<String>>,
}

/// The tokens of a tenant, told apart by audience where one of the policies has
/// several documents for it. Those that are for several of them are left out.
fn tokens<'a>(old: &PolicySet, new: &PolicySet, tenant: Option<&'a TenantId>) -> Vec<Tokens<'a>> {
    let name = tenant.map_or_else(String::new, ToString::to_string);
    let Some(id) = tenant.filter(|tenant| has_several(old, new, tenant)) else {
        return vec![Tokens {
            name,
            tenant,
            audiences: None,
        }];
    };
    let places =
        |audiences: Option<&[String]>| [old, new].map(|set| set.rules.place_for(tenant, audiences));
    let named: BTreeSet<&String> = [old, new]
        .iter()
        .flat_map(|set| set.rules.documents_of(id))
        .flat_map(|document| &document.audiences)
        .collect();
    let mut apart: Vec<(_, Vec<String>)> = Vec::new();
    for audience in named {
        let key = places(Some(std::slice::from_ref(audience)));
        match apart.iter_mut().find(|(known, _)| *known == key) {
            Some((_, list)) => list.push(audience.clone()),
            None => apart.push((key, vec![audience.clone()])),
        }
    }
    let mut found: Vec<Tokens<'_>> = apart
        .into_iter()
        .map(|(_, list)| Tokens {
            name: format!("{name} for {}", list.join(", ")),
            tenant,
            audiences: list.into_iter().next().map(|one| vec![one]),
        })
        .collect();
    // None that is named: an audience is not empty.
    let other = vec![String::new()];
    let (of_others, of_none) = (places(Some(&other)), places(None));
    found.push(Tokens {
        name: format!("{name} for others"),
        tenant,
        audiences: Some(other),
    });
    if of_none != of_others {
        found.push(Tokens {
            name: format!("{name} without a token"),
            tenant,
            audiences: None,
        });
    }
    found
}

/// Whether one of the policies has several documents for a tenant.
fn has_several(old: &PolicySet, new: &PolicySet, tenant: &TenantId) -> bool {
    let mut sets = [old, new].into_iter();
    sets.any(|set| set.rules.documents_of(tenant).nth(1).is_some())
}

/// The limits that documents set, for all that they are for.
fn limit_changes(old: &PolicySet, new: &PolicySet) -> Vec<Change> {
    type Limits = BTreeMap<(Option<String>, &'static str), [Vec<Arc<Limit>>; 2]>;
    let mut by_owner: Limits = BTreeMap::new();
    for (at, set) in [old, new].into_iter().enumerate() {
        for document in set.rules.documents() {
            let owner = document.tenant.as_ref().map(|tenant| {
                match has_several(old, new, tenant) && !document.audiences.is_empty() {
                    true => format!("{tenant} for {}", document.audiences.join(", ")),
                    false => tenant.to_string(),
                }
            });
            for limit in &document.limits {
                let key = (owner.clone(), limit.per().as_str());
                by_owner.entry(key).or_default()[at].push(Arc::clone(limit));
            }
        }
    }
    let with_tenants = [old, new].iter().any(|set| set.tenants().next().is_some());
    by_owner
        .into_iter()
        .filter_map(|((tenant, per), [before, after])| {
            let words = [&before, &after].map(|limits| limits::all_in_words(limits));
            let [was, now] = words;
            (was != now).then(|| Change {
                direction: match limits::looser(&after, &before) {
                    true => Direction::Widens,
                    false => Direction::Narrows,
                },
                tenants: match tenant {
                    Some(owner) => vec![owner],
                    None if with_tenants => vec!["every tenant".to_owned()],
                    None => Vec::new(),
                },
                agents: vec!["every agent".to_owned()],
                hosts: vec!["*".to_owned()],
                what: format!("limits of each {per}"),
                before: was,
                after: now,
            })
        })
        .collect()
}

/// Which tokens of a tenant its document is for, where it has one and no more
/// before and after; of several the rules are told for each.
fn audience_changes(old: &PolicySet, new: &PolicySet) -> Vec<Change> {
    let words = |audiences: &[String]| match audiences {
        [] => "of any audience".to_owned(),
        these => format!("for {}", these.join(", ")),
    };
    let both: BTreeSet<_> = old
        .tenants()
        .filter(|one| new.tenants().any(|other| other == *one))
        .filter(|one| !has_several(old, new, one))
        .collect();
    both.into_iter()
        .filter_map(|tenant| {
            let [before, after] = [old, new].map(|set| {
                let document = set.rules.documents_of(tenant).next();
                document.map_or(&[][..], |document| &document.audiences)
            });
            let holds = |wide: &[String], narrow: &[String]| {
                wide.is_empty()
                    || (!narrow.is_empty() && narrow.iter().all(|one| wide.contains(one)))
            };
            let (wider, narrower) = (holds(after, before), holds(before, after));
            (!(wider && narrower)).then(|| Change {
                direction: match narrower {
                    true => Direction::Narrows,
                    false => Direction::Widens,
                },
                tenants: vec![tenant.to_string()],
                agents: vec!["every agent".to_owned()],
                hosts: vec!["*".to_owned()],
                what: "tokens that are taken".to_owned(),
                before: words(before),
                after: words(after),
            })
        })
        .collect()
}

/// Whether what a document refuses binds, and for whom.
fn modes_of(document: &Document) -> String {
    format!("{} {}", document.modes.in_words(), document.audit_addresses)
}

/// The rules and denylists of one policy that hold for one tenant.
struct Side<'a> {
    rules: Vec<(&'a Document, &'a Rule)>,
    documents: Vec<&'a Document>,
    /// What becomes of that of which no rule speaks.
    otherwise: BTreeSet<String>,
}

impl<'a> Side<'a> {
    fn denylist(&self) -> impl Iterator<Item = &'a Destination> {
        self.documents
            .iter()
            .flat_map(|document| &document.denylist.entries)
    }
}

fn tenants(old: &PolicySet, new: &PolicySet) -> BTreeSet<Option<TenantId>> {
    let named: BTreeSet<_> = old.tenants().chain(new.tenants()).cloned().collect();
    let mut all: BTreeSet<Option<TenantId>> = named.into_iter().map(Some).collect();
    // Where only one of them has tenants, the others' lot changes too.
    if (old.tenants().next().is_none()) != (new.tenants().next().is_none())
        && let Ok(other) = TenantId::parse("every-other-tenant")
    {
        all.insert(Some(other));
    }
    all.insert(None);
    all
}

/// Which hosts one made-up request stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum HostKind {
    Pattern(HostPattern),
    Range(AddressRange),
}

impl HostKind {
    fn example(&self) -> Option<Host> {
        match self {
            Self::Pattern(HostPattern::Exact(host)) => Some(host.clone()),
            Self::Pattern(HostPattern::Below(name)) => {
                Host::parse(&format!("zz-other.{name}")).ok()
            }
            Self::Pattern(HostPattern::Any) => Host::parse("zz-other.zz-any").ok(),
            Self::Range(range) => Some(Host::Address(example_of(range))),
        }
    }
}

impl fmt::Display for HostKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pattern(pattern) => pattern.fmt(f),
            Self::Range(range) => range.fmt(f),
        }
    }
}

/// An address in a range; not its first, which has a meaning of its own.
fn example_of(range: &AddressRange) -> IpAddr {
    let net = range.net();
    net.hosts().next().unwrap_or_else(|| net.network())
}

/// The kinds of hosts in which anything can differ.
fn host_kinds(sides: &[Side<'_>; 2]) -> Vec<HostKind> {
    let every: Vec<&HostPattern> = sides
        .iter()
        .flat_map(|side| {
            let of_rules = side.rules.iter().flat_map(|(_, rule)| &rule.hosts);
            let listed = side.denylist().filter_map(|entry| match entry {
                Destination::Host(pattern) => Some(pattern),
                Destination::Range(_) => None,
            });
            of_rules.chain(listed)
        })
        .collect();
    let mut changed: BTreeMap<String, HostKind> = BTreeMap::new();
    let mut add = |kind: HostKind| {
        changed.insert(kind.to_string(), kind);
    };
    if sides[0].otherwise != sides[1].otherwise {
        add(HostKind::Pattern(HostPattern::Any));
    }
    for rule in changed_rules(sides) {
        for pattern in &rule.hosts {
            add(HostKind::Pattern(pattern.clone()));
        }
        for range in rule.ranges.list() {
            add(HostKind::Range(*range));
        }
        if rule.hosts.is_empty() {
            // It speaks of names by their addresses.
            add(HostKind::Pattern(HostPattern::Any));
        }
    }
    for entry in changed_entries(sides) {
        match entry {
            Destination::Host(pattern) => add(HostKind::Pattern(pattern.clone())),
            Destination::Range(range) => {
                add(HostKind::Range(*range));
                add(HostKind::Pattern(HostPattern::Any));
            }
        }
    }
    let mut kinds = changed.clone();
    for kind in changed.values() {
        let HostKind::Pattern(wide) = kind else {
            continue;
        };
        if matches!(wide, HostPattern::Exact(_)) {
            continue;
        }
        for narrow in every.iter().filter(|narrow| holds(wide, narrow)) {
            let kind = HostKind::Pattern((*narrow).clone());
            kinds.insert(kind.to_string(), kind);
        }
    }
    kinds.into_values().collect()
}

fn changed_rules<'a>(sides: &[Side<'a>; 2]) -> Vec<&'a Rule> {
    // By what they say, in order: the first of two is the one that is used.
    let said: [Vec<String>; 2] = [0, 1].map(|at| {
        sides[at]
            .rules
            .iter()
            .map(|(document, rule)| whole(document, rule))
            .collect()
    });
    if said[0] == said[1] {
        return Vec::new();
    }
    let mut counts: HashMap<&str, i64> = HashMap::new();
    for (side, change) in [(&said[0], 1), (&said[1], -1)] {
        for text in side {
            *counts.entry(text).or_default() += change;
        }
    }
    let differs = |text: &str| counts.get(text).is_some_and(|count| *count != 0);
    let both = |at: usize| {
        let kept = said[at].iter().zip(&sides[at].rules);
        kept.filter(|(text, _)| !differs(text)).collect::<Vec<_>>()
    };
    let moved = both(0)
        .into_iter()
        .zip(both(1))
        .filter(|((a, _), (b, _))| a != b)
        .map(|((_, (_, rule)), _)| *rule)
        .collect::<Vec<_>>();
    [0, 1]
        .into_iter()
        .flat_map(|at| said[at].iter().zip(&sides[at].rules))
        .filter(|(text, _)| differs(text))
        .map(|(_, (_, rule))| *rule)
        .chain(moved)
        .collect()
}

/// All that a rule says besides its name, with what its document says of it.
fn whole(document: &Document, rule: &Rule) -> String {
    let limits = limits::all_in_words(&rule.limits);
    format!("{} {} {limits}", meaning(rule), modes_of(document))
}

fn changed_entries<'a>(sides: &[Side<'a>; 2]) -> Vec<&'a Destination> {
    let sets = [0, 1].map(|at| {
        sides[at]
            .denylist()
            .map(|entry| (entry.to_string(), entry))
            .collect::<BTreeMap<_, _>>()
    });
    let only = |here: usize, there: usize| {
        let other = sets[there].clone();
        sets[here]
            .clone()
            .into_iter()
            .filter(move |(text, _)| !other.contains_key(text))
            .map(|(_, entry)| entry)
    };
    only(0, 1).chain(only(1, 0)).collect()
}

/// One thing that changes for one tenant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    direction: Direction,
    agent: String,
    host: String,
    what: String,
    before: String,
    after: String,
}

/// What the rules that speak of a host tell apart.
struct Axes {
    agents: Vec<(String, AgentId)>,
    ports: Vec<(u16, u16)>,
    asks: Vec<(AskKind, Ask)>,
    /// What bodies call, where a rule asks for that; else one that is not read.
    calls: Vec<(String, Option<Vec<String>>)>,
    addresses: Vec<(String, IpAddr)>,
}

/// What a made-up request stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct AskKind {
    how: &'static str,
    method: String,
    path: String,
    calls: String,
}

fn compare(
    old: &PolicySet,
    new: &PolicySet,
    whose: &Tokens<'_>,
    sides: &[Side<'_>; 2],
    questions: &mut usize,
) -> Result<BTreeSet<Cell>, TooDifferent> {
    let mut cells = BTreeSet::new();
    for kind in host_kinds(sides) {
        let Some(host) = kind.example() else { continue };
        let axes = Axes::of(sides, &host);
        *questions += axes.agents.len() * axes.ports.len() * axes.asks_and_calls().count();
        if *questions > MAX_QUESTIONS {
            return Err(TooDifferent);
        }
        for (agent_kind, agent) in &axes.agents {
            let who = Subject {
                agent,
                tenant: whose.tenant,
                destinations: None,
                audiences: whose.audiences.as_deref(),
            };
            let mut found: Vec<Found> = Vec::new();
            for ports in &axes.ports {
                for (ask_kind, ask, calls) in axes.asks_and_calls() {
                    let request = EgressRequest {
                        authority: Authority {
                            host: host.clone(),
                            port: ports.0,
                        },
                        ask: ask.clone(),
                    };
                    let asked = (&request, calls);
                    let before = State::of(old, &who, asked, &axes.addresses);
                    let after = State::of(new, &who, asked, &axes.addresses);
                    if let Some((direction, before, after)) = before.to(&after) {
                        found.push(Found {
                            direction,
                            before,
                            after,
                            ports: *ports,
                            ask: ask_kind,
                        });
                    }
                }
            }
            for (direction, before, after, what) in in_words(found, &axes) {
                cells.insert(Cell {
                    direction,
                    agent: agent_kind.clone(),
                    host: kind.to_string(),
                    what,
                    before,
                    after,
                });
            }
        }
    }
    Ok(cells)
}

impl Axes {
    fn of(sides: &[Side<'_>; 2], host: &Host) -> Self {
        let speaks = |rule: &&Rule| {
            rule.hosts.is_empty() || rule.hosts.iter().any(|pattern| pattern.matches(host))
        };
        let rules: Vec<&Rule> = sides
            .iter()
            .flat_map(|side| side.rules.iter().map(|(_, rule)| *rule).filter(speaks))
            .collect();
        Self {
            agents: agents(sides, &rules),
            ports: ports(&rules),
            asks: asks(&rules),
            calls: calls(&rules),
            addresses: addresses(sides, &rules),
        }
    }

    /// Every kind of request, with every kind of body that it can have.
    fn asks_and_calls(&self) -> impl Iterator<Item = (AskKind, &Ask, Calls<'_>)> {
        self.asks.iter().flat_map(|(kind, ask)| {
            let bodies = match ask {
                Ask::Tunnel => &self.calls[..0],
                Ask::Request { .. } => &self.calls[..],
            };
            let hidden = bodies
                .is_empty()
                .then(|| (kind.clone(), ask, Calls::Unseen));
            let seen = bodies.iter().map(move |(words, methods)| {
                let kind = AskKind {
                    calls: words.clone(),
                    ..kind.clone()
                };
                let calls = methods.as_deref().map_or(Calls::Unseen, Calls::Seen);
                (kind, ask, calls)
            });
            hidden.into_iter().chain(seen)
        })
    }
}

fn agents(sides: &[Side<'_>; 2], rules: &[&Rule]) -> Vec<(String, AgentId)> {
    let mut kinds: BTreeMap<String, AgentId> = BTreeMap::new();
    for document in sides.iter().flat_map(|side| &side.documents) {
        for written in document.modes.agents() {
            let example = written.replace('*', "zz-other");
            if let Ok(agent) = AgentId::parse(&example) {
                kinds.insert(written, agent);
            }
        }
    }
    for rule in rules {
        if let Agents::These { names, prefixes } = &rule.agents {
            for name in names {
                kinds.insert(name.to_string(), name.clone());
            }
            for prefix in prefixes {
                if let Ok(agent) = AgentId::parse(&format!("{prefix}zz-other")) {
                    kinds.insert(format!("{prefix}*"), agent);
                }
            }
        }
    }
    let rest = match kinds.is_empty() {
        true => "every agent",
        false => "every other agent",
    };
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    if let Ok(agent) = AgentId::parse("zz-other") {
        kinds.push((rest.to_owned(), agent));
    }
    kinds
}

/// Ranges of ports that no rule tells apart. 443 is one of its own, since there
/// a tunnel is TLS.
fn ports(rules: &[&Rule]) -> Vec<(u16, u16)> {
    let mut starts = BTreeSet::from([1_u32, 443, 444]);
    for rule in rules {
        if let Ports::Ranges(ranges) = &rule.ports {
            for (first, last) in ranges {
                starts.insert(u32::from(*first));
                starts.insert(u32::from(*last) + 1);
            }
        }
    }
    let starts: Vec<u32> = starts
        .into_iter()
        .filter(|start| *start <= 65_535)
        .collect();
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([65_535]);
    starts
        .iter()
        .zip(ends)
        .filter_map(|(first, last)| Some((u16::try_from(*first).ok()?, u16::try_from(last).ok()?)))
        .collect()
}

const OTHER_METHODS: &str = "other methods";
const OTHER_PATHS: &str = "other paths";

fn asks(rules: &[&Rule]) -> Vec<(AskKind, Ask)> {
    let mut methods: BTreeMap<String, Method> = BTreeMap::new();
    let mut paths: BTreeMap<String, RequestPath> = BTreeMap::new();
    for rule in rules {
        for method in &rule.methods {
            methods.insert(method.to_string(), method.clone());
        }
        for glob in &rule.paths {
            let raw = glob.to_string();
            let example = raw.replace("**", "zz-x").replace('*', "zz");
            if let Ok(path) = RequestPath::parse(&example) {
                paths.insert(raw, path);
            }
        }
    }
    if let Ok(other) = Method::from_bytes(b"ZZ-OTHER") {
        methods.insert(OTHER_METHODS.to_owned(), other);
    }
    if let Ok(other) = RequestPath::parse("/zz-other") {
        paths.insert(OTHER_PATHS.to_owned(), other);
    }
    let kind = |how, method: &str, path: &str| AskKind {
        how,
        method: method.to_owned(),
        path: path.to_owned(),
        calls: String::new(),
    };
    let mut asks = vec![(kind("tunnels", "", ""), Ask::Tunnel)];
    for (how, scheme) in [("http", Scheme::Http), ("https on routes", Scheme::Https)] {
        for (method_kind, method) in &methods {
            for (path_kind, path) in &paths {
                let ask = Ask::Request {
                    scheme,
                    method: method.clone(),
                    path: path.clone(),
                };
                asks.push((kind(how, method_kind, path_kind), ask));
            }
        }
    }
    asks
}

const OTHER_CALLS: &str = "other calls";
const UNREADABLE: &str = "bodies that are no JSON-RPC";

/// What bodies call, as far as the rules tell it apart. A batch needs one allow
/// rule that names all of it; so besides each method there is the largest batch
/// that each allow rule has, without what a deny rule names.
fn calls(rules: &[&Rule]) -> Vec<(String, Option<Vec<String>>)> {
    let mut kinds: BTreeMap<String, Option<Vec<String>>> = BTreeMap::new();
    for rule in rules {
        for pattern in &rule.rpc_methods {
            kinds.insert(pattern.to_string(), Some(vec![pattern.example()]));
        }
        let denied = |method: &String| {
            let called = std::slice::from_ref(method);
            let mut deny = rules.iter().filter(|rule| rule.action == Action::Deny);
            deny.any(|rule| !rule.rpc_methods.is_empty() && rule.fits_calls(Calls::Seen(called)))
        };
        let batch: Vec<(String, String)> = rule
            .rpc_methods
            .iter()
            .filter(|_| rule.action == Action::Allow)
            .map(|pattern| (pattern.to_string(), pattern.example()))
            .filter(|(_, example)| !denied(example))
            .collect();
        if batch.len() > 1 {
            let (words, methods): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            kinds.insert(format!("a batch of {}", words.join(" and ")), Some(methods));
        }
    }
    if !kinds.is_empty() {
        kinds.insert(OTHER_CALLS.to_owned(), Some(vec!["zz-other".to_owned()]));
        kinds.insert(UNREADABLE.to_owned(), None);
    }
    kinds.into_iter().collect()
}

/// An address of every range that a rule for the host or a denylist names, and
/// one that is public.
fn addresses(sides: &[Side<'_>; 2], rules: &[&Rule]) -> Vec<(String, IpAddr)> {
    let mut kinds: BTreeMap<String, IpAddr> = BTreeMap::new();
    for range in rules.iter().flat_map(|rule| rule.ranges.list()) {
        kinds.insert(range.to_string(), example_of(range));
    }
    for entry in changed_entries(sides) {
        if let Destination::Range(range) = entry {
            kinds.insert(range.to_string(), example_of(range));
        }
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.push((
        "public addresses".to_owned(),
        IpAddr::from([93, 184, 215, 14]),
    ));
    kinds
}

/// What a policy says of one request.
#[derive(Debug, PartialEq, Eq)]
struct State {
    /// 0 refused, 1 only requests in clear text, 2 all of it.
    level: u8,
    audit: bool,
    tls: TlsRule,
    require: Option<Requirement>,
    admitted: Vec<String>,
    /// The limits of the rule that allows it.
    limits: Vec<Arc<Limit>>,
    words: String,
}

impl State {
    fn of(
        set: &PolicySet,
        who: &Subject<'_>,
        (what, calls): (&EgressRequest, Calls<'_>),
        addresses: &[(String, IpAddr)],
    ) -> Self {
        let permit = match set.decide_calls(who, what, calls) {
            Decision::Deny(denied) => {
                let rule = denied
                    .rule()
                    .map_or_else(String::new, |name| format!(" by \"{name}\""));
                return Self {
                    level: 0,
                    audit: false,
                    tls: TlsRule::default(),
                    require: None,
                    admitted: Vec::new(),
                    limits: Vec::new(),
                    words: format!("refused{rule} ({})", denied.reason()),
                };
            }
            Decision::Allow(permit) => permit,
        };
        let admitted = match what.authority.host {
            Host::Name(_) => admitted(&permit, addresses),
            Host::Address(address) => admitted(&permit, &[("it".to_owned(), address)]),
        };
        let audited = permit.audited_denial();
        let rule = permit.rule().map_or("", |name| name);
        let mut words = match audited {
            Some(denied) => format!("passes in audit mode only ({})", denied.reason()),
            None => format!("allowed by \"{rule}\""),
        };
        let level = match (&what.ask, permit.opaque()) {
            _ if admitted.is_empty() => {
                words = format!("refused by its address (rule \"{rule}\")");
                0
            }
            (Ask::Tunnel, false) => {
                words.push_str(", in clear text only");
                1
            }
            _ => 2,
        };
        Self {
            level,
            audit: audited.is_some(),
            tls: permit.tls(),
            require: permit.requirement(),
            admitted,
            limits: permit.rule_limits().to_vec(),
            words,
        }
    }

    /// How this differs from what comes after it, where it does.
    fn to(&self, after: &Self) -> Option<(Direction, String, String)> {
        let plain = |direction| Some((direction, self.words.clone(), after.words.clone()));
        if self.level != after.level {
            return plain(match self.level < after.level {
                true => Direction::Widens,
                false => Direction::Narrows,
            });
        }
        if self.level == 0 {
            return None;
        }
        if self.admitted != after.admitted {
            let has =
                |list: &[String], other: &[String]| other.iter().all(|one| list.contains(one));
            return Some((
                match has(&self.admitted, &after.admitted) {
                    true => Direction::Narrows,
                    false => Direction::Widens,
                },
                format!("{} at {}", self.words, self.admitted.join(", ")),
                format!("{} at {}", after.words, after.admitted.join(", ")),
            ));
        }
        if self.tls != after.tls {
            return Some((
                match looser(after.tls, self.tls) {
                    true => Direction::Widens,
                    false => Direction::Narrows,
                },
                format!("{} with {}", self.words, tls_words(self.tls)),
                format!("{} with {}", after.words, tls_words(after.tls)),
            ));
        }
        if self.require != after.require {
            let words = |side: &Self| match side.require {
                None => side.words.clone(),
                Some(wanted) => format!("{} for {}", side.words, wanted.words()),
            };
            let direction = match (
                Requirement::covers(self.require, after.require),
                Requirement::covers(after.require, self.require),
            ) {
                (true, _) => Direction::Narrows,
                (_, true) => Direction::Widens,
                _ => Direction::Differs,
            };
            return Some((direction, words(self), words(after)));
        }
        let limited = limits::all_in_words(&self.limits);
        let limited_after = limits::all_in_words(&after.limits);
        if limited != limited_after {
            return Some((
                match limits::looser(&after.limits, &self.limits) {
                    true => Direction::Widens,
                    false => Direction::Narrows,
                },
                format!("{} with {limited}", self.words),
                format!("{} with {limited_after}", after.words),
            ));
        }
        (self.audit != after.audit)
            .then(|| plain(Direction::Differs))
            .flatten()
    }
}

fn admitted(permit: &Permit, addresses: &[(String, IpAddr)]) -> Vec<String> {
    addresses
        .iter()
        .filter(|(_, address)| permit.address(*address).is_ok())
        .map(|(kind, _)| kind.clone())
        .collect()
}

/// Whether anything in `a` is looser than in `b`.
fn looser(a: TlsRule, b: TlsRule) -> bool {
    let sni = |tls: TlsRule| match tls.sni {
        SniRule::Match => 0,
        SniRule::Optional => 1,
        SniRule::Any => 2,
    };
    (a.tls == TlsUse::Any && b.tls == TlsUse::Strict)
        || sni(a) > sni(b)
        || (a.ech == EchRule::Allow && b.ech == EchRule::Refuse)
}

fn tls_words(tls: TlsRule) -> String {
    let word = |value: &dyn fmt::Debug| format!("{value:?}").to_ascii_lowercase();
    format!(
        "tls {}, sni {}, ech {}",
        word(&tls.tls),
        word(&tls.sni),
        word(&tls.ech)
    )
}

/// A change in one cell of the grid.
struct Found {
    direction: Direction,
    before: String,
    after: String,
    ports: (u16, u16),
    ask: AskKind,
}

/// Cells that make up a block, as one phrase.
fn in_words(found: Vec<Found>, axes: &Axes) -> BTreeSet<(Direction, String, String, String)> {
    type Said = (Direction, String, String);
    // By ask: the ports. Then by ports: the methods of each path and body, what
    // bodies call, and the paths.
    let mut by_ask: BTreeMap<(Said, AskKind), Vec<(u16, u16)>> = BTreeMap::new();
    for one in found {
        let said = (one.direction, one.before, one.after);
        by_ask.entry((said, one.ask)).or_default().push(one.ports);
    }
    type Place = (Said, String, &'static str, String, String);
    let mut by_ports: BTreeMap<Place, Vec<String>> = BTreeMap::new();
    for ((said, ask), ports) in by_ask {
        let key = (said, port_words(&ports), ask.how, ask.path, ask.calls);
        by_ports.entry(key).or_default().push(ask.method);
    }
    let count = |pick: fn(&AskKind) -> &String| {
        let http = axes.asks.iter().filter(|(kind, _)| kind.how == "http");
        http.map(|(kind, _)| pick(kind))
            .collect::<BTreeSet<_>>()
            .len()
    };
    let (all_methods, all_paths) = (count(|kind| &kind.method), count(|kind| &kind.path));
    let mut by_methods: BTreeMap<Place, Vec<String>> = BTreeMap::new();
    for ((said, ports, how, path, calls), methods) in by_ports {
        let methods = match how == "tunnels" || methods.len() == all_methods {
            true => String::new(),
            false => methods.join(", "),
        };
        by_methods
            .entry((said, ports, how, path, methods))
            .or_default()
            .push(calls);
    }
    let mut by_calls: BTreeMap<Place, Vec<String>> = BTreeMap::new();
    for ((said, ports, how, path, methods), calls) in by_methods {
        let calls = match how == "tunnels" || calls.len() == axes.calls.len().max(1) {
            true => String::new(),
            false => format!(" calling {}", calls.join(", ")),
        };
        by_calls
            .entry((said, ports, how, methods, calls))
            .or_default()
            .push(path);
    }
    let mut by_paths: BTreeMap<(Said, String, String), Vec<&'static str>> = BTreeMap::new();
    for ((said, ports, how, methods, calls), paths) in by_calls {
        let paths = match how == "tunnels" || paths.len() == all_paths {
            true => String::new(),
            false => format!(" of {}", paths.join(", ")),
        };
        let inside = match (methods.is_empty(), paths.is_empty() && calls.is_empty()) {
            (true, true) => String::new(),
            (true, false) => format!(", any method{paths}{calls}"),
            (false, _) => format!(", {methods}{paths}{calls}"),
        };
        by_paths.entry((said, ports, inside)).or_default().push(how);
    }
    by_paths
        .into_iter()
        .map(|(((direction, before, after), ports, inside), hows)| {
            let hows = hows.join(", ");
            (direction, before, after, format!("{ports}: {hows}{inside}"))
        })
        .collect()
}

fn port_words(ports: &[(u16, u16)]) -> String {
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ports {
        match joined.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(*first) => *end = *last,
            _ => joined.push((*first, *last)),
        }
    }
    match joined.as_slice() {
        [(1, u16::MAX)] => "any port".to_owned(),
        [(first, last)] if first == last => format!("port {first}"),
        list => {
            let words: Vec<_> = list
                .iter()
                .map(|(first, last)| match first == last {
                    true => first.to_string(),
                    false => format!("{first}-{last}"),
                })
                .collect();
            format!("ports {}", words.join(", "))
        }
    }
}

/// Cells that differ in tenant, agent or host only, as one change.
fn gathered(cells: BTreeMap<Cell, BTreeSet<String>>) -> Vec<Change> {
    let no_tenant = BTreeSet::from([String::new()]);
    let mut by_host: BTreeMap<(Cell, BTreeSet<String>), BTreeSet<String>> = BTreeMap::new();
    for (cell, tenants) in cells {
        let agent = cell.agent.clone();
        let key = Cell {
            agent: String::new(),
            ..cell
        };
        by_host.entry((key, tenants)).or_default().insert(agent);
    }
    type Key = (Cell, BTreeSet<String>, BTreeSet<String>);
    let mut by_agents: BTreeMap<Key, BTreeSet<String>> = BTreeMap::new();
    for ((cell, tenants), agents) in by_host {
        let host = cell.host.clone();
        let key = Cell {
            host: String::new(),
            ..cell
        };
        by_agents
            .entry((key, tenants, agents))
            .or_default()
            .insert(host);
    }
    let mut changes: Vec<Change> = by_agents
        .into_iter()
        .map(|((cell, tenants, agents), hosts)| Change {
            direction: cell.direction,
            tenants: match tenants == no_tenant {
                true => Vec::new(),
                false => tenants
                    .into_iter()
                    .map(|name| {
                        if name.is_empty() {
                            "no tenant".to_owned()
                        } else {
                            name
                        }
                    })
                    .collect(),
            },
            agents: agents.into_iter().collect(),
            hosts: hosts.into_iter().collect(),
            what: cell.what,
            before: cell.before,
            after: cell.after,
        })
        .collect();
    changes.sort();
    changes
}

impl fmt::Display for Change {
    /// `bot → api.example.com, port 443: tunnels; was refused (no_rule), now allowed by "models"`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.agents.join(", "), self.hosts.join(", "))?;
        if !self.tenants.is_empty() {
            write!(f, " (tenants: {})", self.tenants.join(", "))?;
        }
        write!(
            f,
            ", {}; was {}, now {}",
            self.what, self.before, self.after
        )
    }
}

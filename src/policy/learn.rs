//! From audit records to a policy that allows what was seen, small enough to be
//! read before it is enforced. The same records give the same text, whatever
//! their order, unless they are more than is kept. What a record does not show
//! to be wanted is left out, and said.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Serialize;

use super::decision::Decision;
use super::document::{Format, Mode, PolicyDocument};
use super::finding::SourceName;
use super::range::class_of;
use super::record::{Recorded, RecordedEvent};
use super::rule::Calls;
use super::set::PolicySet;
use crate::egress::{
    AddressClass, AgentId, Ask, Authority, EgressRequest, Host, HostPattern, PathGlob, RequestPath,
    RpcPattern, Scheme, Subject, TenantId,
};

/// How many pairs of agent and host are kept; a log that has more is no
/// description of what agents need.
const MAX_PAIRS: usize = 100_000;
/// How many paths, first segments, ports, methods and addresses are kept of one
/// pair, before they become `any` or are left out.
const MAX_EACH: usize = 64;
/// How many bytes of paths are kept in all; after that paths become `any`.
const MAX_PATH_BYTES: usize = 64 * 1024 * 1024;
/// How many different things that were left out are named.
const MAX_LEFT_OUT: usize = 1_000;

/// How to learn.
#[derive(Clone, Debug)]
pub struct LearnOptions {
    /// So many hosts below one registered domain become `*.domain`; `None`
    /// writes every host out.
    pub wildcards: Option<usize>,
    /// So many paths of one host are written out; more become the prefixes
    /// that they share, and then `any`.
    pub paths: usize,
    /// Only records of this tenant.
    pub tenant: Option<TenantId>,
}

impl Default for LearnOptions {
    fn default() -> Self {
        Self {
            wildcards: None,
            paths: 6,
            tenant: None,
        }
    }
}

/// Takes records in, line by line, in bounded memory.
#[derive(Debug)]
pub struct Learner {
    options: LearnOptions,
    seen: BTreeMap<Pair, Seen>,
    left_out: BTreeMap<(String, String), u64>,
    more_left_out: u64,
    records: u64,
    unreadable: u64,
    first_unreadable: Option<String>,
    span: Span,
    path_bytes: usize,
}

/// What was learned.
#[derive(Clone, Debug, Serialize)]
pub struct Learned {
    /// The policy, as YAML with comments.
    pub policy: String,
    /// Its rules, with counts.
    pub rules: Vec<LearnedRule>,
    /// What is not in it, most frequent first.
    pub left_out: Vec<LeftOut>,
    /// How many records were read.
    pub records: u64,
    /// How many lines were no audit records.
    pub unreadable: u64,
    /// The first of them, and why.
    pub first_unreadable: Option<String>,
}

/// One rule that was learned.
#[derive(Clone, Debug, Serialize)]
pub struct LearnedRule {
    /// Its name.
    pub name: String,
    /// The agents.
    pub agents: Vec<String>,
    /// The hosts, with the number of requests to each.
    pub hosts: Vec<(String, u64)>,
    /// Ranges, where an address was not public.
    pub addresses: Vec<String>,
    /// The ports; empty for any.
    pub ports: Vec<u16>,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The methods; empty for any.
    pub methods: Vec<String>,
    /// The paths; empty for any.
    pub paths: Vec<String>,
    /// The methods of JSON-RPC, where all its records tell them; empty for any
    /// body.
    pub rpc_methods: Vec<String>,
    /// How many requests it comes from.
    pub count: u64,
    /// The first of them.
    pub first: String,
    /// The last of them.
    pub last: String,
}

/// Something that was not learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Why.
    pub why: String,
    /// Who and where to.
    pub what: String,
    /// How many requests.
    pub count: u64,
}

/// Why nothing was learned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LearnError {
    /// A policy document is for one tenant.
    #[error("the records are of several tenants ({0}); learn one at a time by --tenant NAME")]
    Tenants(String),
    /// What was learned does not allow what was seen.
    #[error("what was learned would refuse what was seen: {0}")]
    Refuses(String),
}

/// From the first record to the last.
#[derive(Clone, Debug, Default)]
struct Span {
    count: u64,
    first: String,
    last: String,
}

impl Span {
    fn add(&mut self, ts: &str, count: u64) {
        if self.count == 0 || ts < self.first.as_str() {
            ts.clone_into(&mut self.first);
        }
        if ts > self.last.as_str() {
            ts.clone_into(&mut self.last);
        }
        self.count += count;
    }

    fn merge(&mut self, other: &Self) {
        if other.count > 0 {
            let mine = self.count;
            self.add(&other.first, 0);
            if mine == 0 {
                self.first.clone_from(&other.first);
            }
            if other.last > self.last {
                self.last.clone_from(&other.last);
            }
            self.count = mine + other.count;
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    tenant: Option<TenantId>,
    agent: AgentId,
    inside: Inside,
    host: String,
}

/// What was seen of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Inside {
    /// Nothing: a tunnel.
    Hidden,
    /// Requests in clear text.
    Clear,
    /// Requests over TLS, as on a named route.
    Tls,
    /// Calls of another agent, which are judged as requests over TLS.
    Call,
}

#[derive(Clone, Debug)]
struct Seen {
    host: HostPattern,
    /// The hosts that a wildcard stands for, or the one.
    hosts: BTreeSet<String>,
    /// Those whose address is known.
    span: Span,
    /// Those without an address, as where a parent proxy resolves the name or
    /// what answers is behind a Unix socket. A rule that names ranges refuses
    /// such requests.
    unplaced: Span,
    ports: Few<u16>,
    methods: Few<String>,
    paths: Few<String>,
    segments: Few<String>,
    /// What bodies called by JSON-RPC; too many where a record does not tell.
    calls: Few<String>,
    addresses: BTreeSet<IpAddr>,
}

impl Seen {
    /// Whether a rule must name the addresses: public ones alone need not be.
    fn needs_ranges(&self) -> bool {
        self.addresses
            .iter()
            .any(|address| class_of(*address) != AddressClass::Public)
    }

    fn whole_span(&self) -> Span {
        let mut whole = self.span.clone();
        whole.merge(&self.unplaced);
        whole
    }
}

/// A set that gives up when it is large.
#[derive(Clone, Debug)]
enum Few<T> {
    These(BTreeSet<T>),
    Many,
}

impl<T: Ord + Clone> Few<T> {
    fn add(&mut self, value: T) {
        if let Self::These(set) = self {
            set.insert(value);
            if set.len() > MAX_EACH {
                *self = Self::Many;
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        match other {
            Self::Many => *self = Self::Many,
            Self::These(set) => set.iter().for_each(|value| self.add(value.clone())),
        }
    }

    fn list(&self) -> Option<Vec<T>> {
        match self {
            Self::These(set) => Some(set.iter().cloned().collect()),
            Self::Many => None,
        }
    }
}

impl Few<String> {
    /// Adds a text while there is room for it beside so many bytes, and says
    /// how many it takes.
    fn add_within(&mut self, text: String, bytes: usize) -> usize {
        match self {
            Self::These(set) if !set.contains(&text) => {
                let needed = text.len();
                if bytes + needed > MAX_PATH_BYTES {
                    *self = Self::Many;
                    return 0;
                }
                self.add(text);
                needed
            }
            _ => 0,
        }
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl Learner {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(options: LearnOptions) -> Self {
        Self {
            options,
            seen: BTreeMap::new(),
            left_out: BTreeMap::new(),
            more_left_out: 0,
            records: 0,
            unreadable: 0,
            first_unreadable: None,
            span: Span::default(),
            path_bytes: 0,
        }
    }

    /// Takes one line; `place` names it, as `audit.jsonl:7`.
    pub fn line(&mut self, place: &dyn std::fmt::Display, line: &[u8]) {
        if line.trim_ascii().is_empty() {
            return;
        }
        match Recorded::parse(line) {
            Ok(record) => self.record(record),
            Err(error) => {
                self.unreadable += 1;
                self.first_unreadable
                    .get_or_insert_with(|| format!("{place}: {error}"));
            }
        }
    }

    fn record(&mut self, record: Recorded) {
        if self.options.tenant.is_some() && record.tenant != self.options.tenant {
            return;
        }
        self.records += 1;
        if let Some(why) = not_wanted(&record) {
            self.leave_out(why, &record);
            return;
        }
        if record.event == RecordedEvent::TunnelClosed {
            // Its beginning has a record of its own.
            return;
        }
        let (Some(agent), Some(request)) = (&record.agent, &record.request) else {
            return;
        };
        let pair = Pair {
            tenant: record.tenant.clone(),
            agent: agent.clone(),
            inside: match &request.ask {
                Ask::Tunnel => Inside::Hidden,
                Ask::Request {
                    scheme: Scheme::Http,
                    ..
                } => Inside::Clear,
                Ask::Request { .. } if record.event == RecordedEvent::Delegation => Inside::Call,
                Ask::Request { .. } => Inside::Tls,
            },
            host: request.authority.host.to_string(),
        };
        if self.seen.len() >= MAX_PAIRS && !self.seen.contains_key(&pair) {
            self.leave_out(
                format!("more than {MAX_PAIRS} pairs of agent and host"),
                &record,
            );
            return;
        }
        let host = pair.host.clone();
        let seen = self.seen.entry(pair).or_insert_with(|| Seen {
            host: HostPattern::Exact(request.authority.host.clone()),
            hosts: BTreeSet::from([host]),
            span: Span::default(),
            unplaced: Span::default(),
            ports: Few::default(),
            methods: Few::default(),
            paths: Few::default(),
            segments: Few::default(),
            calls: Few::default(),
            addresses: BTreeSet::new(),
        });
        if let Some(address) = record.address
            && !seen.addresses.contains(&address)
        {
            if seen.addresses.len() < MAX_EACH || class_of(address) == AddressClass::Public {
                // Of public ones nothing has to be written, unless others are.
                if seen.addresses.len() < MAX_EACH {
                    seen.addresses.insert(address);
                }
            } else {
                self.leave_out(
                    format!("more than {MAX_EACH} addresses; name their range"),
                    &record,
                );
                return;
            }
        }
        match record.address {
            Some(_) => seen.span.add(&record.ts, record.count),
            None => seen.unplaced.add(&record.ts, record.count),
        }
        self.span.add(&record.ts, record.count);
        seen.ports.add(request.authority.port);
        if let Ask::Request { method, path, .. } = &request.ask {
            seen.methods.add(method.as_str().to_owned());
            let first = path.as_str().split('/').nth(1).unwrap_or_default();
            let added = seen
                .paths
                .add_within(path.as_str().to_owned(), self.path_bytes)
                + seen
                    .segments
                    .add_within(format!("/{first}/**"), self.path_bytes);
            self.path_bytes += added;
            match &record.calls {
                Some(methods) if is_told(methods) => {
                    methods.iter().for_each(|name| seen.calls.add(name.clone()));
                }
                _ => seen.calls = Few::Many,
            }
        }
    }

    /// Where a host was seen at private addresses too, a rule must name them, and
    /// such a rule refuses what has no address. Without ranges it would refuse
    /// the others, and ranges without the host would allow more than was seen.
    fn leave_out_the_unplaced(&mut self) {
        const WHY: &str = "its address was not known, and others to this host went to addresses \
                           that are not public, which a rule must name: write a rule without \
                           `addresses` if this is how it goes from now on";
        let mut found = Vec::new();
        for (pair, seen) in &mut self.seen {
            if seen.unplaced.count > 0 && seen.needs_ranges() {
                let count = std::mem::take(&mut seen.unplaced).count;
                found.push((format!("{} to {}", pair.agent, pair.host), count));
            }
        }
        for (what, count) in found {
            self.count_left_out((WHY.to_owned(), what), count);
        }
    }

    fn leave_out(&mut self, why: String, record: &Recorded) {
        let agent = record
            .agent
            .as_ref()
            .map_or("nobody", |agent| agent.as_str());
        let what = match &record.destination {
            Some(to) => format!("{agent} to {to}"),
            None => agent.to_owned(),
        };
        self.count_left_out((one_line(&why), one_line(&what)), record.count);
    }

    fn count_left_out(&mut self, key: (String, String), count: u64) {
        if self.left_out.len() >= MAX_LEFT_OUT && !self.left_out.contains_key(&key) {
            self.more_left_out += count;
        } else {
            *self.left_out.entry(key).or_default() += count;
        }
    }

    /// The policy that allows what was seen.
    ///
    /// # Errors
    /// [`LearnError`].
    pub fn finish(mut self) -> Result<Learned, LearnError> {
        let tenants: BTreeSet<_> = self.seen.keys().map(|pair| pair.tenant.clone()).collect();
        if tenants.len() > 1 {
            let names: Vec<_> = tenants
                .iter()
                .map(|tenant| tenant.as_ref().map_or("none", |tenant| tenant.as_str()))
                .collect();
            return Err(LearnError::Tenants(names.join(", ")));
        }
        let tenant = tenants.into_iter().next().flatten();
        self.leave_out_the_unplaced();
        let pairs = match self.options.wildcards {
            Some(many) => widened(&self.seen, many.max(2)),
            None => self.seen.clone(),
        };
        let rules = rules_of(&pairs, self.options.paths);
        let mut left_out: Vec<LeftOut> = std::mem::take(&mut self.left_out)
            .into_iter()
            .map(|((why, what), count)| LeftOut { why, what, count })
            .collect();
        left_out.sort_by(|a, b| (b.count, &a.why, &a.what).cmp(&(a.count, &b.why, &b.what)));
        if self.more_left_out > 0 {
            left_out.push(LeftOut {
                why: "and other things that were left out".to_owned(),
                what: String::new(),
                count: self.more_left_out,
            });
        }
        let learned = Learned {
            policy: written(tenant.as_ref(), &rules, &left_out, &self),
            rules,
            left_out,
            records: self.records,
            unreadable: self.unreadable,
            first_unreadable: self.first_unreadable.clone(),
        };
        allows_all(&learned.policy, &self.seen)?;
        Ok(learned)
    }
}

/// Why a record is no evidence that a request is wanted.
fn not_wanted(record: &Recorded) -> Option<String> {
    match (record.event, record.would_deny.as_deref()) {
        (RecordedEvent::TokenIssued | RecordedEvent::TokenRefused, _) => {
            return Some("it tells of a token, not of a request".to_owned());
        }
        (RecordedEvent::Other, _) => {
            return Some("this version does not know what such a record tells of".to_owned());
        }
        _ if !record.allowed => return Some(format!("it was refused ({})", record.reason)),
        // These say only that no rule allows it yet.
        (_, None | Some("no_rule" | "not_inspectable")) => {}
        (_, Some(code)) => return Some(format!("enforcing refuses it ({code})")),
    }
    if record.event == RecordedEvent::TunnelClosed {
        return None;
    }
    if record.agent.is_none() {
        return Some("the record names no agent".to_owned());
    }
    let Some(request) = &record.request else {
        return Some("the destination is not understood".to_owned());
    };
    if let Ask::Request { path, .. } = &request.ask
        && path.is_unclear()
    {
        // It fits no pattern, and one such path is no leave for every path.
        return Some(
            "origins differ in where its path leads (dot segments beside %2f, ;, \\, // or %25)"
                .to_owned(),
        );
    }
    if !record.reached {
        return Some(format!("nothing was reached ({})", record.reason));
    }
    None
}

/// What a record says, as it may stand in a comment: a line that began anew
/// would be part of the policy.
fn one_line(text: &str) -> String {
    const MOST: usize = 400;
    let plain = |c: char| if matches!(c, ' '..='~') { c } else { '?' };
    text.chars().take(MOST).map(plain).collect()
}

/// Pairs whose hosts stand below one registered domain, as one.
fn widened(pairs: &BTreeMap<Pair, Seen>, many: usize) -> BTreeMap<Pair, Seen> {
    let mut below: BTreeMap<(&AgentId, Inside, &str), (usize, bool)> = BTreeMap::new();
    for (pair, seen) in pairs {
        if let Some(domain) = domain_of(seen) {
            let (hosts, ranged) = below.entry((&pair.agent, pair.inside, domain)).or_default();
            *hosts += 1;
            *ranged |= seen.needs_ranges();
        }
    }
    let mut wide: BTreeMap<Pair, Seen> = BTreeMap::new();
    for (pair, seen) in pairs {
        let wildcard = domain_of(seen)
            .filter(|domain| {
                below
                    .get(&(&pair.agent, pair.inside, domain))
                    // Ranges that others need would refuse what has no address.
                    .is_some_and(|(hosts, ranged)| {
                        *hosts >= many && !(*ranged && seen.unplaced.count > 0)
                    })
            })
            .and_then(|domain| HostPattern::parse(&format!("*.{domain}")).ok());
        let pattern = wildcard.unwrap_or_else(|| seen.host.clone());
        let pair = Pair {
            host: pattern.to_string(),
            ..pair.clone()
        };
        match wide.get_mut(&pair) {
            None => {
                wide.insert(
                    pair,
                    Seen {
                        host: pattern,
                        ..seen.clone()
                    },
                );
            }
            Some(other) => {
                other.span.merge(&seen.span);
                other.unplaced.merge(&seen.unplaced);
                other.hosts.extend(seen.hosts.iter().cloned());
                other.ports.merge(&seen.ports);
                other.methods.merge(&seen.methods);
                other.paths.merge(&seen.paths);
                other.segments.merge(&seen.segments);
                other.calls.merge(&seen.calls);
                other.addresses.extend(&seen.addresses);
            }
        }
    }
    wide
}

/// The registered domain that a host stands below.
fn domain_of(seen: &Seen) -> Option<&str> {
    match &seen.host {
        HostPattern::Exact(Host::Name(name)) => {
            psl::domain_str(name.as_str()).filter(|domain| *domain != name.as_str())
        }
        _ => None,
    }
}

/// All that a rule says besides agents and hosts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Terms {
    inside: Inside,
    ports: Vec<u16>,
    methods: Vec<String>,
    paths: Vec<String>,
    rpc_methods: Vec<String>,
    addresses: Vec<String>,
}

/// Hosts of one agent with the same terms are one rule, and so are agents with
/// the same hosts.
fn rules_of(pairs: &BTreeMap<Pair, Seen>, max_paths: usize) -> Vec<LearnedRule> {
    let mut by_agent: BTreeMap<(&AgentId, Terms), BTreeMap<&str, Span>> = BTreeMap::new();
    for (pair, seen) in pairs {
        by_agent
            .entry((&pair.agent, terms(pair.inside, seen, max_paths)))
            .or_default()
            .insert(&pair.host, seen.whole_span());
    }
    type Hosts<'a> = BTreeMap<&'a str, Span>;
    type Agents<'a> = BTreeSet<&'a AgentId>;
    let mut together: BTreeMap<(Terms, Vec<&str>), (Agents<'_>, Hosts<'_>)> = BTreeMap::new();
    for ((agent, terms), hosts) in by_agent {
        let names: Vec<&str> = hosts.keys().copied().collect();
        let (agents, spans) = together.entry((terms, names)).or_default();
        agents.insert(agent);
        for (host, span) in hosts {
            spans.entry(host).or_default().merge(&span);
        }
    }
    let mut grouped: Vec<_> = together.into_iter().collect();
    grouped.sort_by(
        |((a_terms, a_hosts), (a_agents, _)), ((b_terms, b_hosts), (b_agents, _))| {
            (a_agents, a_terms, a_hosts).cmp(&(b_agents, b_terms, b_hosts))
        },
    );
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    grouped
        .into_iter()
        .map(|((terms, _), (agents, hosts))| {
            let mut span = Span::default();
            hosts.values().for_each(|host| span.merge(host));
            let who = match agents.first() {
                Some(only) if agents.len() == 1 => only.as_str().chars().take(100).collect(),
                _ => "shared".to_owned(),
            };
            let how = match terms.inside {
                Inside::Hidden => "tunnels",
                Inside::Clear => "http",
                Inside::Tls => "routes",
                Inside::Call => "calls",
            };
            let base = format!("{who} {how}");
            let number = names.entry(base.clone()).or_default();
            *number += 1;
            LearnedRule {
                name: match number {
                    1 => base,
                    number => format!("{base} {number}"),
                },
                agents: agents.iter().map(ToString::to_string).collect(),
                hosts: hosts
                    .iter()
                    .map(|(host, span)| ((*host).to_owned(), span.count))
                    .collect(),
                addresses: terms.addresses,
                ports: terms.ports,
                scheme: match terms.inside {
                    Inside::Clear => "http",
                    Inside::Hidden | Inside::Tls | Inside::Call => "https",
                },
                methods: terms.methods,
                paths: terms.paths,
                rpc_methods: terms.rpc_methods,
                count: span.count,
                first: span.first,
                last: span.last,
            }
        })
        .collect()
}

fn terms(inside: Inside, seen: &Seen, max_paths: usize) -> Terms {
    let methods = seen.methods.list().unwrap_or_default();
    // A policy has methods in upper case; others are not told apart by it.
    let written = |method: &String| method.to_ascii_uppercase() == *method && method != "CONNECT";
    Terms {
        inside,
        ports: seen.ports.list().unwrap_or_default(),
        methods: match methods.iter().all(written) {
            true => methods,
            false => Vec::new(),
        },
        paths: paths(seen, max_paths),
        rpc_methods: seen.calls.list().unwrap_or_default(),
        // A rule that names ranges allows no others, so then all are named.
        addresses: match seen.needs_ranges() {
            false => Vec::new(),
            true => seen
                .addresses
                .iter()
                .map(|address| match address {
                    IpAddr::V4(_) => format!("{address}/32"),
                    IpAddr::V6(_) => format!("{address}/128"),
                })
                .collect(),
        },
    }
}

/// Whether these are methods as the gateway records them, that a rule can name.
fn is_told(methods: &[String]) -> bool {
    let exact = |name: &String| !name.ends_with('*') && RpcPattern::parse(name).is_ok();
    !methods.is_empty() && methods.iter().all(exact)
}

/// The paths themselves where they are few, else what they begin with, else any.
fn paths(seen: &Seen, max: usize) -> Vec<String> {
    let paths = seen.paths.list();
    let matched = |globs: &[String]| {
        let globs: Option<Vec<PathGlob>> =
            globs.iter().map(|raw| PathGlob::parse(raw).ok()).collect();
        let (Some(globs), Some(paths)) = (globs, &paths) else {
            return false;
        };
        paths
            .iter()
            .filter_map(|raw| RequestPath::parse(raw).ok())
            .all(|path| globs.iter().any(|glob| glob.matches_all(&path)))
    };
    // A star in a path would be read as a pattern.
    let plain = |list: &[String]| {
        list.iter()
            .all(|raw| !raw.trim_end_matches("/**").contains('*'))
    };
    if let Some(exact) = &paths
        && exact.len() <= max
        && plain(exact)
        && exact.iter().all(|path| !path.ends_with("/**"))
        && matched(exact)
    {
        return exact.clone();
    }
    match seen.segments.list() {
        Some(prefixes)
            if prefixes.len() <= max
                && plain(&prefixes)
                && !prefixes.iter().any(|prefix| prefix == "//**")
                && (paths.is_none() || matched(&prefixes)) =>
        {
            prefixes
        }
        _ => Vec::new(),
    }
}

/// Why things are left out is for whoever reads the policy, so that it stands
/// in it; so many of them.
const LEFT_OUT_SHOWN: usize = 20;

fn written(
    tenant: Option<&TenantId>,
    rules: &[LearnedRule],
    left_out: &[LeftOut],
    learner: &Learner,
) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# Learned from {} audit records.", learner.records);
    if learner.span.count > 0 {
        let _ = writeln!(
            out,
            "# They are of {} to {}.",
            learner.span.first, learner.span.last
        );
    }
    out.push_str(
        "# It allows what was seen and nothing else. Read it before it is enforced:\n\
         # what an agent did is not always what it should do.\n",
    );
    if !left_out.is_empty() {
        out.push_str("#\n# Left out:\n");
        for entry in left_out.iter().take(LEFT_OUT_SHOWN) {
            let _ = writeln!(out, "#   {} x {}: {}", entry.count, entry.what, entry.why);
        }
        if left_out.len() > LEFT_OUT_SHOWN {
            let _ = writeln!(out, "#   and {} more", left_out.len() - LEFT_OUT_SHOWN);
        }
    }
    out.push_str("version: 1\n");
    if let Some(tenant) = tenant {
        let _ = writeln!(out, "tenant: {}", quoted(tenant.as_str()));
    }
    out.push_str("mode: enforce\n\n");
    if rules.is_empty() {
        out.push_str(
            "# Nothing was seen that could be allowed, so everything is refused.\nrules: []\n",
        );
        return out;
    }
    out.push_str("rules:\n");
    for (at, rule) in rules.iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        let _ = writeln!(
            out,
            "  # {} requests, {} to {}",
            rule.count, rule.first, rule.last
        );
        let _ = writeln!(out, "  - name: {}", quoted(&rule.name));
        out.push_str("    action: allow\n");
        let _ = writeln!(out, "    agents: {}", listed(&rule.agents));
        out.push_str("    hosts:\n");
        for (host, count) in &rule.hosts {
            let _ = writeln!(out, "      - {} # {count}", quoted(host));
        }
        if !rule.addresses.is_empty() {
            out.push_str("    # Not public, so that the range must be named.\n");
            let _ = writeln!(out, "    addresses: {}", listed(&rule.addresses));
        }
        match rule.ports.is_empty() {
            true => out.push_str("    ports: any\n"),
            false => {
                let ports: Vec<_> = rule.ports.iter().map(ToString::to_string).collect();
                let _ = writeln!(out, "    ports: [{}]", ports.join(", "));
            }
        }
        let _ = writeln!(out, "    schemes: [{}]", rule.scheme);
        if !rule.methods.is_empty() {
            let _ = writeln!(out, "    methods: {}", listed(&rule.methods));
        }
        if !rule.paths.is_empty() {
            let _ = writeln!(out, "    paths: {}", listed(&rule.paths));
        }
        if !rule.rpc_methods.is_empty() {
            let _ = writeln!(out, "    rpc_methods: {}", listed(&rule.rpc_methods));
        }
    }
    out
}

/// A double-quoted string of YAML, which JSON's is.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn listed(entries: &[String]) -> String {
    let entries: Vec<_> = entries.iter().map(|entry| quoted(entry)).collect();
    format!("[{}]", entries.join(", "))
}

/// Puts all that was seen to the policy, as the gateway will.
fn allows_all(text: &str, seen: &BTreeMap<Pair, Seen>) -> Result<(), LearnError> {
    let source = SourceName::from("learned");
    let document = PolicyDocument::parse(&source, Format::Yaml, text)
        .map_err(|error| LearnError::Refuses(error.to_string()))?;
    let set = PolicySet::build(vec![(source, document)], Mode::Enforce).map_err(|errors| {
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        LearnError::Refuses(errors.join("; "))
    })?;
    for (pair, seen) in seen {
        let HostPattern::Exact(host) = &seen.host else {
            continue;
        };
        let who = Subject {
            agent: &pair.agent,
            tenant: pair.tenant.as_ref(),
            destinations: None,
            audiences: None,
        };
        // What was too much to be kept is `any`, and anything is an example of it.
        for port in seen.ports.list().unwrap_or_else(|| vec![80]) {
            for ask in asks(pair.inside, seen) {
                let request = EgressRequest {
                    authority: Authority {
                        host: host.clone(),
                        port,
                    },
                    ask,
                };
                passes(&set, &who, &request, seen)?;
            }
        }
    }
    Ok(())
}

fn asks(inside: Inside, seen: &Seen) -> Vec<Ask> {
    let scheme = match inside {
        Inside::Hidden => return vec![Ask::Tunnel],
        Inside::Clear => Scheme::Http,
        Inside::Tls | Inside::Call => Scheme::Https,
    };
    let methods = seen
        .methods
        .list()
        .unwrap_or_else(|| vec!["GET".to_owned()]);
    let methods: Vec<_> = methods
        .iter()
        .filter_map(|method| http::Method::from_bytes(method.as_bytes()).ok())
        .collect();
    let below = || {
        let prefixes = seen.segments.list()?;
        Some(
            prefixes
                .iter()
                .map(|prefix| prefix.replace("**", "x"))
                .collect(),
        )
    };
    let paths = seen.paths.list().or_else(below);
    let paths: Vec<_> = paths
        .unwrap_or_else(|| vec!["/".to_owned()])
        .iter()
        .filter_map(|path| RequestPath::parse(path).ok())
        .collect();
    methods
        .iter()
        .flat_map(|method| {
            paths.iter().map(|path| Ask::Request {
                scheme,
                method: method.clone(),
                path: path.clone(),
            })
        })
        .collect()
}

fn passes(
    set: &PolicySet,
    who: &Subject<'_>,
    request: &EgressRequest,
    seen: &Seen,
) -> Result<(), LearnError> {
    let refuses = |why: String| {
        let what = format!("{} {} {}", who.agent, request.method(), request.authority);
        Err(LearnError::Refuses(format!("{what}: {why}")))
    };
    // One batch of all is the most that one body can have called.
    let called = seen.calls.list().filter(|called| !called.is_empty());
    let calls = called.as_deref().map_or(Calls::Unseen, Calls::Seen);
    let permit = match set.decide_calls(who, request, calls) {
        Decision::Deny(denied) => return refuses(denied.to_string()),
        Decision::Allow(permit) => permit,
    };
    if let Some(denied) = permit.audited_denial() {
        return refuses(denied.to_string());
    }
    if seen.unplaced.count > 0 {
        match permit.unresolved() {
            Ok(None) => {}
            Ok(Some(denied)) | Err(denied) => return refuses(denied.to_string()),
        }
    }
    for address in &seen.addresses {
        match permit.address(*address) {
            Ok(None) => {}
            Ok(Some(denied)) | Err(denied) => return refuses(format!("{address}: {denied}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fields: &str) -> String {
        let mut value = serde_json::json!({
            "ts": "2026-11-01T00:00:00.000000Z", "event": "request", "request_id": "r",
            "trace_id": null, "agent_id": "bot", "tenant": null, "method": "GET",
            "scheme": "http", "destination_host": "a.example", "destination_port": 80,
            "destination_ip": "93.184.216.34", "path": "/v1/x", "action_allowed": true,
            "reason": "ok", "would_deny": "no_rule", "policy_version": "v", "count": 1,
        });
        let changes: serde_json::Value = serde_json::from_str(fields).expect("JSON");
        for (key, member) in changes.as_object().expect("an object") {
            value[key] = member.clone();
        }
        value.to_string()
    }

    fn learn(options: LearnOptions, lines: &[String]) -> Result<Learned, LearnError> {
        let mut learner = Learner::new(options);
        for (at, line) in lines.iter().enumerate() {
            learner.line(&(at + 1), line.as_bytes());
        }
        learner.finish()
    }

    fn tunnel(agent: &str, host: &str) -> String {
        record(&format!(
            r#"{{"event":"tunnel","scheme":"tunnel","method":"CONNECT","path":null,
            "agent_id":"{agent}","destination_host":"{host}","destination_port":443}}"#
        ))
    }

    #[test]
    fn what_was_seen_is_a_small_policy() {
        let mut lines = vec![
            tunnel("bot", "api.example.com"),
            tunnel("bot", "api.example.com"),
            tunnel("bot", "files.example.com"),
            tunnel("cat", "api.example.com"),
            tunnel("cat", "files.example.com"),
            record(r#"{"ts":"2026-11-02T00:00:00.000000Z"}"#),
            record(r#"{"path":"/v1/y","method":"POST"}"#),
            record(
                r#"{"destination_host":"db.internal","destination_port":8080,"destination_ip":"10.1.2.3","path":"/"}"#,
            ),
        ];
        let learned = learn(LearnOptions::default(), &lines).expect("a policy");
        let expected = "\
# Learned from 8 audit records.
# They are of 2026-11-01T00:00:00.000000Z to 2026-11-02T00:00:00.000000Z.
# It allows what was seen and nothing else. Read it before it is enforced:
# what an agent did is not always what it should do.
version: 1
mode: enforce

rules:
  # 5 requests, 2026-11-01T00:00:00.000000Z to 2026-11-01T00:00:00.000000Z
  - name: \"shared tunnels\"
    action: allow
    agents: [\"bot\", \"cat\"]
    hosts:
      - \"api.example.com\" # 3
      - \"files.example.com\" # 2
    ports: [443]
    schemes: [https]

  # 2 requests, 2026-11-01T00:00:00.000000Z to 2026-11-02T00:00:00.000000Z
  - name: \"bot http\"
    action: allow
    agents: [\"bot\"]
    hosts:
      - \"a.example\" # 2
    ports: [80]
    schemes: [http]
    methods: [\"GET\", \"POST\"]
    paths: [\"/v1/x\", \"/v1/y\"]

  # 1 requests, 2026-11-01T00:00:00.000000Z to 2026-11-01T00:00:00.000000Z
  - name: \"bot http 2\"
    action: allow
    agents: [\"bot\"]
    hosts:
      - \"db.internal\" # 1
    # Not public, so that the range must be named.
    addresses: [\"10.1.2.3/32\"]
    ports: [8080]
    schemes: [http]
    methods: [\"GET\"]
    paths: [\"/\"]
";
        let mut shown: Vec<&str> = learned.policy.split("\n\n").collect();
        let mut wanted: Vec<&str> = expected.split("\n\n").collect();
        shown
            .iter_mut()
            .chain(&mut wanted)
            .for_each(|part| *part = part.trim());
        shown.sort_unstable();
        wanted.sort_unstable();
        let trimmed = |list: &[&str]| {
            list.iter()
                .map(|part| part.trim_start_matches("rules:\n").trim().to_owned())
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(trimmed(&shown), trimmed(&wanted), "{}", learned.policy);
        lines.reverse();
        let again = learn(LearnOptions::default(), &lines).expect("a policy");
        assert_eq!(
            again.policy, learned.policy,
            "the order of records is nothing"
        );
    }

    #[test]
    fn what_is_no_evidence_is_left_out_and_said() {
        for (case, fields, why) in [
            (
                "refused",
                r#"{"action_allowed":false,"reason":"address_private","count":7}"#,
                "it was refused (address_private)",
            ),
            (
                "a denylist on trial",
                r#"{"would_deny":"denylist"}"#,
                "enforcing refuses it (denylist)",
            ),
            (
                "nobody",
                r#"{"agent_id":null}"#,
                "the record names no agent",
            ),
            (
                "never reached",
                r#"{"destination_ip":null,"reason":"name_not_found","status":502}"#,
                "nothing was reached (name_not_found)",
            ),
            (
                "never reached, through a parent proxy",
                r#"{"destination_ip":null,"via_proxy":"p:3128","reason":"parent_refused","status":502}"#,
                "nothing was reached (parent_refused)",
            ),
            (
                "given up before an answer",
                r#"{"destination_ip":null,"reason":"aborted","status":null}"#,
                "nothing was reached (aborted)",
            ),
            (
                "a token",
                r#"{"event":"token_issued","destination_host":null}"#,
                "it tells of a token, not of a request",
            ),
            (
                "a kind of tomorrow",
                r#"{"event":"of_tomorrow"}"#,
                "this version does not know what such a record tells of",
            ),
            (
                "what would begin a line of the policy",
                r#"{"action_allowed":false,"reason":"x)\nrules: [\u2028#"}"#,
                "it was refused (x)?rules: [?#)",
            ),
            (
                "no host",
                r#"{"destination_host":"a..b"}"#,
                "the destination is not understood",
            ),
            (
                "another name in TLS",
                r#"{"event":"tunnel_closed","would_deny":"sni_mismatch"}"#,
                "enforcing refuses it (sni_mismatch)",
            ),
        ] {
            let learned = learn(LearnOptions::default(), &[record(fields)]).expect("a policy");
            assert!(learned.rules.is_empty(), "{case}");
            assert_eq!(learned.left_out.len(), 1, "{case}");
            assert_eq!(learned.left_out[0].why, why, "{case}");
            assert!(learned.policy.contains(why), "{case}: {}", learned.policy);
        }
        let end = record(r#"{"event":"tunnel_closed"}"#);
        let learned = learn(
            LearnOptions::default(),
            &[end, "{".into(), String::new(), "[]".into()],
        )
        .expect("a policy");
        assert!(learned.left_out.is_empty() && learned.rules.is_empty());
        assert_eq!(learned.unreadable, 2);
        assert!(learned.first_unreadable.expect("one").starts_with("2: "));
    }

    #[test]
    fn what_has_answered_without_an_address_is_learned() {
        for (case, fields) in [
            ("behind a Unix socket", r#"{"destination_ip":null}"#),
            (
                "by a name that a parent proxy resolves",
                r#"{"destination_ip":null,"via_proxy":"p:3128"}"#,
            ),
            (
                "an answer that broke off",
                r#"{"destination_ip":null,"reason":"upstream_broke_off","status":200}"#,
            ),
        ] {
            let learned = learn(LearnOptions::default(), &[record(fields)]).expect("a policy");
            assert!(learned.left_out.is_empty(), "{case}: {}", learned.policy);
            let [rule] = learned.rules.as_slice() else {
                panic!("{case}: {}", learned.policy);
            };
            assert_eq!(rule.hosts, [("a.example".to_owned(), 1)], "{case}");
            assert!(rule.addresses.is_empty(), "{case}");
        }
    }

    #[test]
    fn ranges_and_requests_without_an_address_do_not_mix() {
        let lines = [
            record(r#"{"destination_ip":"10.1.2.3"}"#),
            record(r#"{"destination_ip":null,"count":2}"#),
            record(r#"{"destination_ip":null,"agent_id":"cat"}"#),
        ];
        let learned = learn(LearnOptions::default(), &lines).expect("a policy");
        let rules: Vec<_> = learned
            .rules
            .iter()
            .map(|rule| (rule.agents.join(" "), rule.addresses.join(" "), rule.count))
            .collect();
        let rule = |agent: &str, ranges: &str| (agent.to_owned(), ranges.to_owned(), 1);
        assert_eq!(rules, [rule("bot", "10.1.2.3/32"), rule("cat", "")]);
        let [left_out] = learned.left_out.as_slice() else {
            panic!("{}", learned.policy);
        };
        assert_eq!(left_out.count, 2);
        assert_eq!(left_out.what, "bot to a.example");
        assert!(left_out.why.contains("not known"), "{left_out:?}");

        // Nor by a wildcard that would take both in.
        let lines = [
            record(r#"{"destination_host":"a.b.example","destination_ip":"10.1.2.3"}"#),
            record(r#"{"destination_host":"c.b.example","destination_ip":"10.1.2.4"}"#),
            record(r#"{"destination_host":"d.b.example","destination_ip":null}"#),
        ];
        let options = LearnOptions {
            wildcards: Some(2),
            ..LearnOptions::default()
        };
        let learned = learn(options, &lines).expect("a policy");
        let hosts: Vec<_> = learned
            .rules
            .iter()
            .flat_map(|rule| rule.hosts.iter().map(|(host, _)| host.as_str()))
            .collect();
        assert_eq!(hosts, ["d.b.example", "*.b.example"], "{}", learned.policy);
        assert!(learned.left_out.is_empty(), "{}", learned.policy);
    }

    #[test]
    fn calls_of_other_agents_are_learned() {
        let call = r#"{"event":"delegation","scheme":"https","destination_port":443,
            "destination_host":"writer.peers.internal","destination_ip":"127.0.0.1","path":"/tasks"}"#;
        let learned = learn(LearnOptions::default(), &[record(call)]).expect("a policy");
        let [rule] = learned.rules.as_slice() else {
            panic!("{}", learned.policy);
        };
        assert_eq!(rule.name, "bot calls");
        assert_eq!(rule.hosts[0].0, "writer.peers.internal");
        assert_eq!((rule.scheme, &*rule.paths[0]), ("https", "/tasks"));
        assert!(
            rule.addresses.is_empty(),
            "where agents are is no rule's business"
        );
        let nobody = call.replace("\"127.0.0.1\"", "null").replacen(
            '{',
            "{\"reason\":\"unreachable\",\"status\":502,",
            1,
        );
        let learned = learn(LearnOptions::default(), &[record(&nobody)]).expect("a policy");
        assert_eq!(learned.left_out[0].why, "nothing was reached (unreachable)");
    }

    #[test]
    fn what_is_left_out_is_told_with_its_destination() {
        for (fields, what) in [
            (
                r#"{"scheme":null,"agent_id":null}"#,
                "nobody to a.example:80",
            ),
            (r#"{"event":"token_issued","destination_host":null}"#, "bot"),
            (
                r#"{"scheme":null,"destination_host":"fd00::1"}"#,
                "bot to [fd00::1]:80",
            ),
        ] {
            let learned = learn(LearnOptions::default(), &[record(fields)]).expect("a policy");
            assert_eq!(learned.left_out[0].what, what);
        }
    }

    #[test]
    fn paths_become_prefixes_and_then_any() {
        let paths = |list: &[String]| {
            let lines: Vec<_> = list
                .iter()
                .map(|path| record(&format!(r#"{{"path":"{path}"}}"#)))
                .collect();
            let learned = learn(LearnOptions::default(), &lines).expect("a policy");
            learned.rules[0].paths.clone()
        };
        let many =
            |prefix: &str, n: usize| (0..n).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>();
        assert_eq!(paths(&many("/v1/", 2)), ["/v1/0", "/v1/1"]);
        assert_eq!(paths(&many("/v1/", 7)), ["/v1/**"]);
        assert_eq!(paths(&many("/v1/", 500)), ["/v1/**"]);
        assert!(paths(&many("/", 7)).is_empty(), "as many first segments");
        for odd in ["/a/../b", "/a*b", "/a;b", "/x/**", "//a", "/a%2fb"] {
            paths(&[odd.to_owned()]);
        }
        // What could lead anywhere does not open everything.
        let unclear = ["/v1/0", "/v1/..%2fx"].map(str::to_owned);
        assert_eq!(paths(&unclear), ["/v1/0"]);
    }

    #[test]
    fn wildcards_come_only_when_asked_for() {
        let lines: Vec<_> = ["a", "b", "c"]
            .iter()
            .map(|name| tunnel("bot", &format!("{name}.example.co.uk")))
            .chain([
                tunnel("bot", "example.co.uk"),
                tunnel("bot", "x.co.uk"),
                tunnel("bot", "y.co.uk"),
            ])
            .collect();
        let hosts = |wildcards| {
            let options = LearnOptions {
                wildcards,
                ..LearnOptions::default()
            };
            let learned = learn(options, &lines).expect("a policy");
            let hosts = learned.rules.iter().flat_map(|rule| rule.hosts.clone());
            hosts.map(|(host, _)| host).collect::<Vec<_>>()
        };
        assert_eq!(hosts(None).len(), 6);
        assert_eq!(
            hosts(Some(3)),
            ["*.example.co.uk", "example.co.uk", "x.co.uk", "y.co.uk"]
        );
        assert_eq!(hosts(Some(4)).len(), 6);
    }

    #[test]
    fn tenants_are_learned_one_at_a_time() {
        let lines = [record(r#"{"tenant":"acme"}"#), record("{}")];
        let error = learn(LearnOptions::default(), &lines).expect_err("two tenants");
        assert_eq!(error, LearnError::Tenants("none, acme".to_owned()));
        let options = LearnOptions {
            tenant: TenantId::parse("acme").ok(),
            ..LearnOptions::default()
        };
        let learned = learn(options, &lines).expect("a policy");
        assert!(
            learned.policy.contains("tenant: \"acme\"\n"),
            "{}",
            learned.policy
        );
        assert_eq!(learned.records, 1);
    }

    #[test]
    fn memory_is_bounded_by_pairs() {
        let mut learner = Learner::new(LearnOptions::default());
        for n in 0..200 {
            let line = record(&format!(
                r#"{{"destination_port":{},"path":"/{n}","method":"M{n}"}}"#,
                n + 1
            ));
            learner.line(&n, line.as_bytes());
        }
        let learned = learner.finish().expect("a policy");
        let rule = &learned.rules[0];
        assert!(rule.ports.is_empty() && rule.methods.is_empty() && rule.paths.is_empty());
        assert!(learned.policy.contains("ports: any"));
    }
}

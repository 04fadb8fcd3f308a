//! The index decides as a reading of the rules one by one would: deny wins,
//! nothing passes that no rule speaks of, and an explanation says the same.
//!
//! The reading below is slow and obvious on purpose, and shares with `policy`
//! only the words of `egress`.
#![no_main]

use std::net::IpAddr;

use agentport::egress::{
    AddressClass, AddressRange, AgentId, Ask, Authority, Destination, EgressRequest, Host,
    HostPattern, PathGlob, RequestPath, Scheme, Subject, TenantId, classify, embedded_ipv4,
};
use agentport::policy::{
    Action, AgentModes, AnyOr, Decision, Mode, Permit, PolicyDocument, PolicySet, PortEntry,
    Proven, RuleDocument, Verdict,
};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

const AGENTS: [&str; 3] = ["bot", "ci-1", "ci-2"];
const AGENT_ENTRIES: [&str; 3] = ["bot", "ci-1", "ci-*"];
const PATTERNS: [&str; 7] = [
    "a.example",
    "*.a.example",
    "*.example",
    "*",
    "10.0.0.1",
    "8.8.8.8",
    "127.0.0.1",
];
const HOSTS: [&str; 9] = [
    "a.example",
    "b.a.example",
    "c.b.a.example",
    "example",
    "xa.example",
    "10.0.0.1",
    "8.8.8.8",
    "[2001:4860:4860::8888]",
    "169.254.169.254",
];
const RANGES: [&str; 6] = [
    "10.0.0.0/8",
    "10.0.0.1/32",
    "8.8.8.0/24",
    "169.254.0.0/16",
    "169.254.169.254/32",
    "2001:4860::/32",
];
/// What a name may turn out to have.
const ADDRESSES: [&str; 8] = [
    "10.0.0.1",
    "10.9.9.9",
    "8.8.8.8",
    "8.8.4.4",
    "127.0.0.1",
    "169.254.169.254",
    "2001:4860:4860::8888",
    "64:ff9b::808:808",
];
const PATHS: [&str; 7] = ["/", "/a", "/a/b", "/a/%62", "/b;x", "/a%2fb", "/%61/c"];
const GLOBS: [&str; 5] = ["/", "/a", "/a/**", "/*", "/b*"];
const METHODS: [&str; 3] = ["GET", "POST", "DELETE"];
const SCHEMES: [&str; 2] = ["http", "https"];
const PORTS: [u16; 4] = [80, 443, 22, 8443];
const TENANTS: [&str; 2] = ["t1", "t2"];

fuzz_target!(|bytes: &[u8]| {
    // Bytes that run out leave the choice at its first value.
    let _ = run(&mut Unstructured::new(bytes));
});

fn run(from: &mut Unstructured<'_>) -> Result<()> {
    let mut documents = vec![document(from, None)?];
    if from.ratio(1, 2)? {
        documents.push(document(from, Some("t1"))?);
    }
    let default_mode = mode(from)?.unwrap_or(Mode::Enforce);
    let named = documents
        .iter()
        .enumerate()
        .map(|(at, document)| (format!("{at}.yaml").into(), document.clone()))
        .collect();
    let set = PolicySet::build(named, default_mode).expect("every choice is valid");

    for _ in 0..4 {
        let agent = AgentId::parse(from.choose(&AGENTS)?).expect("a name");
        let tenant = pick(from, &TENANTS)?.map(|name| TenantId::parse(name).expect("a name"));
        let destinations = destinations(from)?;
        let who = Subject {
            agent: &agent,
            tenant: tenant.as_ref(),
            destinations: destinations.as_deref(),
            audiences: None,
        };
        let host = Host::parse(from.choose(&HOSTS)?).expect("a host");
        let port = *from.choose(&PORTS)?;
        let ask = if from.ratio(1, 3)? {
            Ask::Tunnel
        } else {
            Ask::Request {
                scheme: *from.choose(&[Scheme::Http, Scheme::Https])?,
                method: from.choose(&METHODS)?.parse().expect("a method"),
                path: RequestPath::parse(from.choose(&PATHS)?).expect("a path"),
            }
        };
        let what = EgressRequest {
            authority: Authority { host, port },
            ask,
        };
        let reading = Reading {
            scopes: scopes(&documents, &who),
            default_mode,
            who: &who,
            what: &what,
        };
        reading.agrees_with(&set);
    }
    Ok(())
}

/// Whether a rule speaks of what is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    No,
    /// Of what a tunnel hides.
    Perhaps,
    Yes,
}

/// The rules, one by one.
struct Reading<'a> {
    /// `None` where the subject's tenant has no document and another has. The
    /// subject's own goes before the global one.
    scopes: Option<Vec<&'a PolicyDocument>>,
    default_mode: Mode,
    who: &'a Subject<'a>,
    what: &'a EgressRequest,
}

impl Reading<'_> {
    fn agrees_with(&self, set: &PolicySet) {
        let decision = set.decide(self.who, self.what);
        let by_token = set.decide(self.who, self.what).proven_by(Proven::BY_TOKEN);
        self.explained(set, &by_token);
        let permit = match (&decision, &self.scopes) {
            (Decision::Allow(_), None) => panic!("a tenant without a document: {:?}", self.what),
            (Decision::Deny(_), None) => return,
            (Decision::Allow(permit), Some(_)) => Some(permit),
            (Decision::Deny(_), Some(_)) => None,
        };
        match (&self.what.ask, permit) {
            (Ask::Request { .. }, permit) => {
                assert_eq!(permit.is_some(), self.allows(), "{:?}", self.what);
            }
            (Ask::Tunnel, None) => {}
            (Ask::Tunnel, Some(permit)) => self.tunnel(permit),
        }
        let Some(permit) = permit else {
            return;
        };
        assert!(!self.refuses(Speaks::Yes), "deny wins: {:?}", self.what);
        for raw in ADDRESSES {
            let address: IpAddr = raw.parse().expect("an address");
            let own = self.literal().is_none_or(|literal| literal == address);
            if own && permit.address(address).is_ok() {
                self.dialled(permit, address);
            }
        }
    }

    /// The verdict that `explain` gives, of the same request.
    fn explained(&self, set: &PolicySet, decision: &Decision) {
        let explanation = set.explain(self.who, self.what, &[]);
        let of_permit = |permit: &Permit| {
            let address = self.literal().map(|literal| permit.address(literal));
            match (address, permit.audited_denial()) {
                (Some(Err(denied)), _) => (Verdict::Deny, Some(denied)),
                (_, Some(denied)) => (Verdict::Audit, Some(denied.clone())),
                (Some(Ok(Some(denied))), None) => (Verdict::Audit, Some(denied)),
                (Some(Ok(None)) | None, None) => (Verdict::Allow, None),
            }
        };
        let (verdict, denied) = match decision {
            Decision::Deny(denied) => (Verdict::Deny, Some(denied.clone())),
            Decision::Allow(permit) => of_permit(permit),
        };
        assert_eq!(explanation.verdict, verdict, "{explanation}");
        let reason = denied.map(|denied| denied.reason().as_str());
        assert_eq!(explanation.reason, reason, "{explanation}");
    }

    /// Whether a request whose inside is seen may go.
    fn allows(&self) -> bool {
        let nothing_binds = self.mode_of_silence() == Mode::Audit;
        !self.refuses(Speaks::Yes)
            && (nothing_binds || self.allowing().next().is_some())
            && self.token_allows()
    }

    fn tunnel(&self, permit: &Permit) {
        assert!(self.token_allows());
        if !permit.opaque() {
            return;
        }
        // What is not seen must be refused by nothing that might be in it, and
        // allowed whatever is in it.
        assert!(!self.refuses(Speaks::Perhaps), "{:?}", self.what);
        assert!(
            self.mode_of_silence() == Mode::Audit
                || self.allowing().any(|(document, rule)| {
                    self.speaks(rule) == Speaks::Yes || self.mode_of(document, rule) == Mode::Audit
                }),
            "{:?}",
            self.what
        );
    }

    /// What may be dialled is refused by nothing, and public or named.
    fn dialled(&self, permit: &Permit, address: IpAddr) {
        let scopes = self.scopes.iter().flatten();
        for document in scopes.filter(|document| self.mode_of_document(document) == Mode::Enforce) {
            let denied = document
                .denylist
                .iter()
                .any(|raw| entry_touches(raw, address));
            assert!(!denied, "{address} is on a denylist");
        }
        let seen = matches!(self.what.ask, Ask::Request { .. });
        for (document, rule) in self.rules(Action::Deny) {
            let touched = rule
                .addresses
                .iter()
                .flatten()
                .any(|raw| range_touches(raw, address));
            let binds = self.mode_of(document, rule) == Mode::Enforce;
            assert!(
                !(seen && binds && touched && self.speaks(rule) == Speaks::Yes),
                "{address} is denied by {}",
                rule.name
            );
        }
        let class = classify(address);
        if class == AddressClass::Public {
            return;
        }
        let named = self.allowing().any(|(_, rule)| {
            let ranges = rule.addresses.as_deref().unwrap_or_default();
            let by_range = ranges.iter().any(|raw| match class {
                AddressClass::Metadata => *raw == format!("{address}/32"),
                _ => range(raw).contains(address),
            });
            let by_name = ranges.is_empty()
                && self.literal() == Some(address)
                && rule
                    .hosts
                    .iter()
                    .flatten()
                    .any(|raw| *raw == address.to_string());
            by_range || by_name
        });
        assert!(named, "{address} is {class}, and {:?}", permit.rule());
    }

    /// Whether anything that binds refuses the target. `least` says from which
    /// degree on a rule counts.
    fn refuses(&self, least: Speaks) -> bool {
        let listed = self.scopes.iter().flatten().any(|document| {
            self.mode_of_document(document) == Mode::Enforce
                && document.denylist.iter().any(|raw| match self.literal() {
                    Some(address) if entry_touches(raw, address) => true,
                    _ => HostPattern::parse(raw)
                        .is_ok_and(|pattern| pattern.matches(&self.what.authority.host)),
                })
        });
        listed
            || self.rules(Action::Deny).any(|(document, rule)| {
                let speaks = self.speaks(rule);
                self.mode_of(document, rule) == Mode::Enforce
                    && (speaks == Speaks::Yes || speaks == least)
                    && (self.has_host(rule)
                        || self.literal().is_some_and(|address| {
                            let mut ranges = rule.addresses.iter().flatten();
                            let mut hosts = rule.hosts.iter().flatten();
                            ranges.any(|raw| range_touches(raw, address))
                                || hosts.any(|raw| {
                                    raw.parse::<IpAddr>().is_ok() && range_touches(raw, address)
                                })
                        }))
            })
    }

    /// The allow rules that speak of the target.
    fn allowing(&self) -> impl Iterator<Item = (&PolicyDocument, &RuleDocument)> {
        self.rules(Action::Allow).filter(|(_, rule)| {
            let ranges = rule.addresses.as_deref().unwrap_or_default();
            let reached = match self.literal() {
                // It shows when the name is resolved.
                None => true,
                Some(address) => ranges.iter().any(|raw| range(raw).contains(address)),
            };
            self.speaks(rule) != Speaks::No
                && match rule.hosts {
                    Some(_) => self.has_host(rule) && (ranges.is_empty() || reached),
                    None => reached,
                }
        })
    }

    fn has_host(&self, rule: &RuleDocument) -> bool {
        let mut hosts = rule.hosts.iter().flatten();
        hosts.any(|raw| {
            HostPattern::parse(raw)
                .expect("a pattern")
                .matches(&self.what.authority.host)
        })
    }

    /// Agent, port, scheme, method and path.
    fn speaks(&self, rule: &RuleDocument) -> Speaks {
        let has = |list: &AnyOr<String>, is: &dyn Fn(&str) -> bool| match list {
            AnyOr::Any => true,
            AnyOr::List(list) => list.iter().any(|entry| is(entry)),
        };
        let opt = |list: &Option<AnyOr<String>>, is: &dyn Fn(&str) -> bool| {
            list.as_ref().is_none_or(|list| has(list, is))
        };
        let agent = has(&rule.agents, &|entry| match entry.strip_suffix('*') {
            Some(prefix) => self.who.agent.as_str().starts_with(prefix),
            None => self.who.agent.as_str() == entry,
        });
        let port = self.what.authority.port;
        let port = match &rule.ports {
            None => port == 80 || port == 443,
            Some(AnyOr::Any) => true,
            Some(AnyOr::List(list)) => list.iter().any(|entry| match entry {
                PortEntry::Number(number) => *number == u64::from(port),
                PortEntry::Text(text) => text == "1-1024" && (1..=1024).contains(&port),
            }),
        };
        if !agent || !port {
            return Speaks::No;
        }
        let scheme = |wanted: &str| opt(&rule.schemes, &|entry| entry == wanted);
        let limited = |list: &Option<AnyOr<String>>| matches!(list, Some(AnyOr::List(_)));
        match &self.what.ask {
            Ask::Request {
                scheme: sent,
                method,
                path,
            } => {
                let path = opt(&rule.paths, &|raw| {
                    let glob = PathGlob::parse(raw).expect("a pattern");
                    match rule.action {
                        Action::Allow => glob.matches_all(path),
                        Action::Deny => glob.matches_any(path),
                    }
                });
                let method = opt(&rule.methods, &|entry| entry == method.as_str());
                match scheme(&sent.to_string()) && method && path {
                    true => Speaks::Yes,
                    false => Speaks::No,
                }
            }
            Ask::Tunnel => {
                let limited = limited(&rule.methods) || limited(&rule.paths);
                match rule.action {
                    Action::Allow if scheme("https") && !limited => Speaks::Yes,
                    Action::Deny if !scheme("https") => Speaks::No,
                    Action::Deny if scheme("http") && !limited => Speaks::Yes,
                    Action::Allow | Action::Deny => Speaks::Perhaps,
                }
            }
        }
    }

    fn token_allows(&self) -> bool {
        let Some(destinations) = self.who.destinations else {
            return true;
        };
        destinations.iter().any(|destination| match destination {
            Destination::Host(pattern) => pattern.matches(&self.what.authority.host),
            Destination::Range(range) => {
                self.literal().is_none_or(|address| range.contains(address))
            }
        })
    }

    fn rules(&self, action: Action) -> impl Iterator<Item = (&PolicyDocument, &RuleDocument)> {
        self.scopes
            .iter()
            .flatten()
            .flat_map(|document| document.rules.iter().map(move |rule| (*document, rule)))
            .filter(move |(_, rule)| rule.action == action)
    }

    fn literal(&self) -> Option<IpAddr> {
        match self.what.authority.host {
            Host::Address(address) => Some(address),
            Host::Name(_) => None,
        }
    }

    /// For this agent: the exact name, the longest beginning, the document.
    fn mode_of_document(&self, document: &PolicyDocument) -> Mode {
        let agents = document.agent_modes.iter().flat_map(|modes| &modes.0);
        let speaks = |entry: &str| match entry.strip_suffix('*') {
            Some(prefix) => self.who.agent.as_str().starts_with(prefix),
            None => self.who.agent.as_str() == entry,
        };
        let nearest = agents
            .filter(|(entry, _)| speaks(entry))
            .max_by_key(|(entry, _)| (!entry.ends_with('*'), entry.len()));
        let own = nearest.map(|(_, mode)| *mode);
        own.or(document.mode).unwrap_or(self.default_mode)
    }

    fn mode_of(&self, document: &PolicyDocument, rule: &RuleDocument) -> Mode {
        rule.mode.unwrap_or_else(|| self.mode_of_document(document))
    }

    /// Whether it binds that no rule allows a request.
    fn mode_of_silence(&self) -> Mode {
        let first = self.scopes.iter().flatten().next();
        first.map_or(Mode::Enforce, |document| self.mode_of_document(document))
    }
}

/// The documents that hold for a subject.
fn scopes<'a>(
    documents: &'a [PolicyDocument],
    who: &Subject<'_>,
) -> Option<Vec<&'a PolicyDocument>> {
    let global = documents
        .iter()
        .filter(|document| document.tenant.is_none());
    let tenants = documents.iter().any(|document| document.tenant.is_some());
    match who.tenant {
        Some(tenant) if tenants => {
            let own = documents
                .iter()
                .find(|document| document.tenant.as_deref() == Some(tenant.as_str()))?;
            Some([own].into_iter().chain(global).collect())
        }
        _ => Some(global.collect()),
    }
}

/// A refusal also meets the IPv4 address that travels in an IPv6 one.
fn range_touches(raw: &str, address: IpAddr) -> bool {
    let range = range(raw);
    let carried = match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => embedded_ipv4(v6).map(IpAddr::V4),
    };
    range.contains(address) || carried.is_some_and(|v4| range.contains(v4))
}

/// The same of an entry that may be a host. A host that is an address is one
/// by name, and as such compared exactly.
fn entry_touches(raw: &str, address: IpAddr) -> bool {
    match Destination::parse(raw).expect("an entry") {
        Destination::Range(_) => range_touches(raw, address),
        Destination::Host(_) => false,
    }
}

fn range(raw: &str) -> AddressRange {
    AddressRange::parse(raw).expect("a range")
}

fn document(from: &mut Unstructured<'_>, tenant: Option<&str>) -> Result<PolicyDocument> {
    let rules = from.int_in_range(0..=5)?;
    Ok(PolicyDocument {
        version: 1,
        tenant: tenant.map(str::to_owned),
        audience: None,
        mode: mode(from)?,
        agent_modes: agent_modes(from)?,
        audit_addresses: None,
        denylist: if from.ratio(1, 4)? {
            let all = [&PATTERNS[..3], &RANGES].concat();
            some(from, &all)?
        } else {
            Vec::new()
        },
        limits: None,
        rules: (0..rules).map(|at| rule(from, at)).collect::<Result<_>>()?,
    })
}

fn rule(from: &mut Unstructured<'_>, at: usize) -> Result<RuleDocument> {
    let action = *from.choose(&[Action::Allow, Action::Allow, Action::Deny])?;
    let (hosts, addresses) = match from.int_in_range(0..=3)? {
        0 => (Some(some(from, &PATTERNS)?), Some(some(from, &RANGES)?)),
        1 => (None, Some(some(from, &RANGES)?)),
        _ => (Some(some(from, &PATTERNS)?), None),
    };
    let agents = any_or(from, &AGENT_ENTRIES)?.unwrap_or(AnyOr::Any);
    let ports = match from.int_in_range(0..=3)? {
        0 => None,
        1 => Some(AnyOr::Any),
        2 => Some(AnyOr::List(vec![PortEntry::Number(443)])),
        _ => Some(AnyOr::List(vec![
            PortEntry::Text("1-1024".to_owned()),
            PortEntry::Number(8443),
        ])),
    };
    Ok(RuleDocument {
        name: format!("rule-{at}"),
        action,
        agents,
        hosts,
        addresses,
        ports,
        schemes: any_or(from, &SCHEMES)?,
        methods: any_or(from, &METHODS)?,
        paths: any_or(from, &GLOBS)?,
        mode: mode(from)?,
        tls: None,
        sni: None,
        refusal: None,
        require: None,
        rpc_methods: None,
        ech: None,
        limits: None,
    })
}

fn destinations(from: &mut Unstructured<'_>) -> Result<Option<Vec<Destination>>> {
    if from.ratio(2, 3)? {
        return Ok(None);
    }
    let all = [&PATTERNS[..], &RANGES].concat();
    let some = some(from, &all)?;
    let parse = |raw: &String| Destination::parse(raw).expect("an entry");
    Ok(Some(some.iter().map(parse).collect()))
}

fn agent_modes(from: &mut Unstructured<'_>) -> Result<Option<AgentModes>> {
    if from.ratio(2, 3)? {
        return Ok(None);
    }
    let modes = some(from, &AGENT_ENTRIES)?
        .into_iter()
        .map(|entry| Ok((entry, mode(from)?.unwrap_or(Mode::Audit))));
    Ok(Some(AgentModes(modes.collect::<Result<_>>()?)))
}

fn mode(from: &mut Unstructured<'_>) -> Result<Option<Mode>> {
    Ok(*from.choose(&[None, None, Some(Mode::Enforce), Some(Mode::Audit)])?)
}

fn any_or(from: &mut Unstructured<'_>, all: &[&str]) -> Result<Option<AnyOr<String>>> {
    Ok(match from.int_in_range(0..=3)? {
        0 | 1 => None,
        2 => Some(AnyOr::Any),
        _ => Some(AnyOr::List(some(from, all)?)),
    })
}

/// At least one of them, each at most once.
fn some(from: &mut Unstructured<'_>, all: &[&str]) -> Result<Vec<String>> {
    let bits: u16 = from.arbitrary()?;
    let mut chosen: Vec<String> = (0..all.len())
        .filter(|at| bits & (1 << at) != 0)
        .map(|at| all[at].to_owned())
        .collect();
    if chosen.is_empty() {
        chosen.push(from.choose(all)?.to_string());
    }
    Ok(chosen)
}

fn pick<'a>(from: &mut Unstructured<'_>, all: &[&'a str]) -> Result<Option<&'a str>> {
    Ok(match from.ratio(1, 2)? {
        true => None,
        false => Some(*from.choose(all)?),
    })
}

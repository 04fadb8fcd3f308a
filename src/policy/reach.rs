//! What an agent may reach, told to the agent itself: short enough to be read
//! by a model, and of nobody else's rules. Decides nothing.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use serde::Serialize;

use super::decision::DenyReason;
use super::document::{Action, Mode};
use super::limits;
use super::proven::Requirement;
use super::range::RangeSet;
use super::rule::{Ports, Rule};
use super::set::{PolicySet, RuleId};
use crate::egress::{AddressRange, Destination, Host, HostPattern, Subject};
use crate::limit::Limit;

/// The most rules that are told of.
const MOST_RULES: usize = 60;
/// The most hosts, addresses, paths and methods of JSON-RPC, each, of one rule.
const MOST_ENTRIES: usize = 40;
/// The most of them altogether.
const MOST_ALTOGETHER: usize = 400;

/// What one agent may reach with one token. As JSON by `serde`, for a reader by
/// `Display`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reach {
    /// The agent.
    pub agent: String,
    /// Its tenant, where the token names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// What becomes of all that is not listed: `refused`, or `recorded` where
    /// audit mode lets it pass.
    pub otherwise: &'static str,
    /// What it may reach, with the token's own destinations applied.
    pub allow: Vec<ReachRule>,
    /// What it may not, of that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<ReachRule>,
    /// Whether a denylist holds destinations that are refused in any case.
    pub denylist: bool,
    /// How much it may do in all: `requests 100/m per agent`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// How many more rules there are.
    #[serde(skip_serializing_if = "is_none")]
    pub left_out: usize,
    /// The version of the policy.
    pub policy_version: Arc<str>,
}

/// One rule, as far as it concerns the agent. A list that is empty is not
/// written, and limits nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReachRule {
    /// Its name, as records and refusals have it.
    pub rule: Arc<str>,
    /// Hosts; `*.example.com` is all below that name. None: any that has one of
    /// the addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// At these addresses only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Ports and ranges of them; `any`.
    pub ports: Vec<String>,
    /// `http` or `https`, where it is only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<&'static str>,
    /// Methods. With these or `paths`, HTTPS by tunnel is not allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Methods of JSON-RPC: all that the body calls must be among those that a
    /// rule allows, and none among those that one refuses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rpc_methods: Vec<String>,
    /// `token`, `certificate` or `both`: what must have proven the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require: Option<&'static str>,
    /// How much of it: `requests 100/m per agent`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// `audit`, where the rule is on trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<&'static str>,
    /// How many hosts, addresses, paths and methods of JSON-RPC there are beside
    /// these.
    #[serde(skip_serializing_if = "is_none")]
    pub more: usize,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_none(count: &usize) -> bool {
    *count == 0
}

impl PolicySet {
    /// What this subject may reach.
    ///
    /// # Errors
    /// Its tenant has no document although tenants have documents, or one for
    /// tokens of other audiences.
    pub fn reach(&self, who: &Subject<'_>) -> Result<Reach, DenyReason> {
        let rules = &*self.rules;
        let tenant = rules.place_of(who)?;
        let mut speaking = Vec::new();
        for (number, scope) in rules.scopes(tenant) {
            let own = scope
                .all()
                .filter(|(_, rule)| rule.agents.contain(who.agent));
            speaking.extend(own.map(|(local, rule)| (RuleId::new(number, local), rule)));
        }
        let of = |action| {
            let speaking = speaking.iter();
            speaking.filter(move |(_, rule)| rule.action == action)
        };
        let mut allowed: Vec<(RuleId, &Rule, Place)> = Vec::new();
        for (id, rule) in of(Action::Allow) {
            let places = places(rule, who.destinations);
            allowed.extend(places.into_iter().map(|place| (*id, *rule, place)));
        }
        let denied: Vec<_> = of(Action::Deny)
            .map(|(id, rule)| (*id, *rule, place_of(rule)))
            .filter(|(.., denied)| allowed.iter().any(|(.., place)| place.meets(denied)))
            .collect();
        let mut room = Room {
            rules: MOST_RULES,
            entries: MOST_ALTOGETHER,
        };
        let mut tell = |found: &[(RuleId, &Rule, Place)]| -> Vec<ReachRule> {
            let mut told = Vec::new();
            for (id, rule, place) in found {
                if !room.takes_a_rule() {
                    break;
                }
                let mode = rules.mode(*id, who.agent);
                told.push(room.tell(rule, place, mode));
            }
            told
        };
        // Refusals first: to leave one out would promise what does not hold.
        let deny = tell(&denied);
        let allow = tell(&allowed);
        let first = rules.scopes(tenant).next();
        let mode = first.map_or(Mode::Enforce, |(_, scope)| scope.mode(who.agent));
        Ok(Reach {
            agent: who.agent.to_string(),
            tenant: who.tenant.map(ToString::to_string),
            otherwise: match mode {
                Mode::Enforce => "refused",
                Mode::Audit => "recorded",
            },
            left_out: allowed.len() + denied.len() - allow.len() - deny.len(),
            allow,
            deny,
            denylist: rules
                .scopes(tenant)
                .any(|(_, scope)| scope.denylists(who.agent).next().is_some()),
            limits: rules
                .scopes(tenant)
                .flat_map(|(_, scope)| scope.limits(who.agent))
                .map(|(_, limit)| limits::in_words(limit))
                .collect(),
            policy_version: self.digest().clone(),
        })
    }
}

/// Hosts and the addresses they must have; an empty list is any.
#[derive(Clone, Debug, Default)]
struct Place {
    hosts: Vec<HostPattern>,
    addresses: Vec<AddressRange>,
}

fn place_of(rule: &Rule) -> Place {
    Place {
        hosts: rule.hosts.clone(),
        addresses: rule.ranges.list().to_vec(),
    }
}

/// Where an allow rule and a token's destinations agree.
fn places(rule: &Rule, destinations: Option<&[Destination]>) -> Vec<Place> {
    let Some(destinations) = destinations else {
        return vec![place_of(rule)];
    };
    let mut by_name = Place {
        hosts: Vec::new(),
        addresses: rule.ranges.list().to_vec(),
    };
    let mut by_address = Place::default();
    for destination in destinations {
        match destination {
            Destination::Host(named) if rule.hosts.is_empty() => by_name.hosts.push(named.clone()),
            Destination::Host(named) => {
                let both = rule.hosts.iter().filter_map(|host| common(host, named));
                by_name.hosts.extend(both);
            }
            Destination::Range(range) => {
                let literal = |host: &&HostPattern| matches!(host, HostPattern::Exact(Host::Address(ip)) if range.contains(*ip));
                by_name
                    .hosts
                    .extend(rule.hosts.iter().filter(literal).cloned());
                let named =
                    |host: &&HostPattern| !matches!(host, HostPattern::Exact(Host::Address(_)));
                let within = within(&rule.ranges, range);
                if !within.is_empty() {
                    by_address.addresses.extend(within);
                    by_address.hosts = rule.hosts.iter().filter(named).cloned().collect();
                }
            }
        }
    }
    by_name.hosts.dedup();
    let mut found = Vec::new();
    if !by_name.hosts.is_empty() {
        found.push(by_name);
    }
    if !by_address.addresses.is_empty() && (rule.hosts.is_empty() || !by_address.hosts.is_empty()) {
        found.push(by_address);
    }
    found
}

/// What two patterns have in common.
fn common(a: &HostPattern, b: &HostPattern) -> Option<HostPattern> {
    match (a, b) {
        (HostPattern::Any, other) | (other, HostPattern::Any) => Some(other.clone()),
        (HostPattern::Exact(host), pattern) | (pattern, HostPattern::Exact(host)) => pattern
            .matches(host)
            .then(|| HostPattern::Exact(host.clone())),
        (HostPattern::Below(above), HostPattern::Below(other)) if above == other => Some(a.clone()),
        (HostPattern::Below(above), HostPattern::Below(other)) => {
            let is_below = |pattern: &HostPattern, name: &crate::egress::DnsName| {
                pattern.matches(&Host::Name(name.clone()))
            };
            match (is_below(a, other), is_below(b, above)) {
                (true, _) => Some(b.clone()),
                (_, true) => Some(a.clone()),
                _ => None,
            }
        }
    }
}

/// What a rule's ranges, or else all addresses, have in common with a range.
fn within(ranges: &RangeSet, range: &AddressRange) -> Vec<AddressRange> {
    if ranges.is_empty() {
        return vec![*range];
    }
    let both = ranges.list().iter().filter_map(|own| {
        let (a, b) = (own.net(), range.net());
        match () {
            () if b.contains(&a) => Some(*own),
            () if a.contains(&b) => Some(*range),
            () => None,
        }
    });
    both.collect()
}

impl Place {
    /// Whether a refusal of `denied` may touch what is allowed here.
    fn meets(&self, denied: &Place) -> bool {
        let host = self.hosts.iter().any(|host| {
            let mut denied = denied.hosts.iter();
            denied.any(|other| common(host, other).is_some())
        });
        let address = self.addresses.iter().any(|range| {
            let mut denied = denied.addresses.iter().map(AddressRange::net);
            denied.any(|other| range.net().contains(&other) || other.contains(&range.net()))
        });
        // Rules by addresses speak of whatever name has them, and of public
        // addresses nobody tells here which a name will have.
        host || address || (self.hosts.is_empty() && !denied.hosts.is_empty())
    }
}

/// How much may still be told.
struct Room {
    rules: usize,
    entries: usize,
}

impl Room {
    fn takes_a_rule(&mut self) -> bool {
        let room = self.rules > 0 && self.entries > 0;
        self.rules = self.rules.saturating_sub(1);
        room
    }

    fn tell(&mut self, rule: &Rule, place: &Place, mode: Mode) -> ReachRule {
        let mut more = 0;
        let hosts = self.list(&place.hosts, &mut more);
        let addresses = self.list(&place.addresses, &mut more);
        let paths = self.list(&rule.paths, &mut more);
        let rpc_methods = self.list(&rule.rpc_methods, &mut more);
        ReachRule {
            rule: rule.name.clone(),
            hosts,
            addresses,
            ports: match &rule.ports {
                Ports::Any => vec!["any".to_owned()],
                Ports::Ranges(ranges) => ranges
                    .iter()
                    .take(MOST_ENTRIES)
                    .map(|(first, last)| match first == last {
                        true => first.to_string(),
                        false => format!("{first}-{last}"),
                    })
                    .collect(),
            },
            scheme: match (rule.http, rule.https) {
                (true, false) => Some("http"),
                (false, true) => Some("https"),
                _ => None,
            },
            methods: rule.methods.iter().map(ToString::to_string).collect(),
            paths,
            rpc_methods,
            require: rule.require.map(Requirement::as_str),
            limits: rule
                .limits
                .iter()
                .map(|limit| limits::in_words(limit))
                .collect(),
            mode: (mode == Mode::Audit).then_some("audit"),
            more,
        }
    }

    /// As much of a list as there is room for, and at least one of it: an empty
    /// list would say that there is no bound.
    fn list<T: fmt::Display>(&mut self, list: &[T], more: &mut usize) -> Vec<String> {
        let most = MOST_ENTRIES.min(self.entries).max(1);
        let told: Vec<String> = list.iter().take(most).map(ToString::to_string).collect();
        self.entries = self.entries.saturating_sub(told.len());
        *more += list.len() - told.len();
        told
    }
}

impl Reach {
    /// Adds the gateway's own limits, which hold beside those of policy.
    pub fn add_limits<'l>(&mut self, own: impl IntoIterator<Item = &'l Arc<Limit>>) {
        let own = own.into_iter().map(|limit| limits::in_words(limit));
        self.limits.splice(0..0, own);
    }
}

impl fmt::Display for Reach {
    /// As Markdown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "# What {} may reach", self.agent)?;
        if let Some(tenant) = &self.tenant {
            write!(f, " (tenant {tenant})")?;
        }
        writeln!(f, "\n")?;
        match (self.allow.is_empty(), self.otherwise) {
            (true, "refused") => writeln!(f, "Nothing.")?,
            (true, _) => writeln!(f, "Anything; it is recorded as what no rule allows.")?,
            (false, "refused") => writeln!(f, "Only:\n")?,
            (false, _) => writeln!(f, "Anything is let pass and recorded. Rules allow:\n")?,
        }
        for rule in &self.allow {
            writeln!(f, "- {rule}")?;
        }
        if !self.deny.is_empty() {
            writeln!(f, "\nBut not:\n")?;
            for rule in &self.deny {
                writeln!(f, "- {rule}")?;
            }
        }
        writeln!(f)?;
        if self.denylist {
            writeln!(
                f,
                "What is on a denylist is refused whatever is listed here."
            )?;
        }
        if !self.limits.is_empty() {
            writeln!(f, "At most, in all: {}.", self.limits.join("; "))?;
        }
        if self.left_out > 0 {
            writeln!(f, "{} more rules are not listed.", self.left_out)?;
        }
        writeln!(f, "Policy version {}.", self.policy_version)
    }
}

impl fmt::Display for ReachRule {
    /// `GET, POST https a.example, *.b.example port 443 path /v1/** calling eth_* (rule "name")`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::new();
        if !self.methods.is_empty() {
            write!(line, "{} ", self.methods.join(", "))?;
        }
        if let Some(scheme) = self.scheme {
            write!(line, "{scheme} ")?;
        }
        match self.hosts.is_empty() {
            true => line.push_str("any host"),
            false => line.push_str(&self.hosts.join(", ")),
        }
        if !self.addresses.is_empty() {
            write!(line, " at {}", self.addresses.join(", "))?;
        }
        write!(line, " port {}", self.ports.join(", "))?;
        if !self.paths.is_empty() {
            write!(line, " path {}", self.paths.join(", "))?;
        }
        if let Some(wanted) = self.require {
            write!(line, " proven by {wanted}")?;
        }
        if !self.rpc_methods.is_empty() {
            write!(line, " calling {}", self.rpc_methods.join(", "))?;
        }
        if self.more > 0 {
            write!(line, " and {} more", self.more)?;
        }
        if !self.limits.is_empty() {
            write!(line, ", at most {}", self.limits.join(", "))?;
        }
        let trial = self.mode.map_or("", |_| ", on trial");
        write!(f, "{line} (rule \"{}\"{trial})", self.rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::{AgentId, Ask, Authority, EgressRequest, TenantId};
    use crate::policy::{Decision, Format, PolicyDocument, SourceName};

    fn set(texts: &[&str]) -> PolicySet {
        let documents = texts.iter().enumerate().map(|(at, text)| {
            let source = SourceName::from(format!("{at}.yaml"));
            let document = PolicyDocument::parse(&source, Format::Yaml, text).expect("a document");
            (source, document)
        });
        PolicySet::build(documents.collect(), Mode::Enforce).expect("a policy")
    }

    fn reach(
        set: &PolicySet,
        agent: &str,
        tenant: &str,
        only: Option<&[&str]>,
    ) -> Result<Reach, DenyReason> {
        let agent = AgentId::parse(agent).expect("an agent");
        let tenant = (!tenant.is_empty()).then(|| TenantId::parse(tenant).expect("a tenant"));
        let only: Option<Vec<Destination>> = only.map(|list| {
            let parse = |raw: &&str| raw.parse().expect("a destination");
            list.iter().map(parse).collect()
        });
        set.reach(&Subject {
            agent: &agent,
            tenant: tenant.as_ref(),
            destinations: only.as_deref(),
            audiences: None,
        })
    }

    const GLOBAL: &str = "version: 1
denylist: [evil.example]
rules:
  - {name: web, action: allow, agents: any, hosts: ['*.web.example', web.example]}
  - {name: api, action: allow, agents: [bot], hosts: [api.example], methods: [GET], paths: ['/v1/**'], ports: [80, '8000-8999']}
  - {name: theirs, action: allow, agents: [other], hosts: [secret.example]}
  - {name: lan, action: allow, agents: ['ci-*'], addresses: [10.0.0.0/8]}
  - {name: not-there, action: deny, agents: any, hosts: [admin.web.example]}
  - {name: elsewhere, action: deny, agents: any, hosts: [far.example]}";

    #[test]
    fn an_agent_is_told_its_own_rules_and_no_others() {
        let set = set(&[
            GLOBAL,
            "version: 1\ntenant: t\nmode: audit\nrules:\n  - {name: t, action: allow, agents: any, hosts: [t.example], schemes: [https]}",
            "version: 1\ntenant: u\nrules:\n  - {name: u, action: allow, agents: any, hosts: [u.example]}",
        ]);
        let of = |agent, tenant| reach(&set, agent, tenant, None).expect("a tenant that is known");
        let lines = |rules: &[ReachRule]| -> Vec<String> {
            rules.iter().map(ToString::to_string).collect()
        };
        let bot = of("bot", "");
        assert_eq!(
            lines(&bot.allow),
            [
                "*.web.example, web.example port 80, 443 (rule \"web\")",
                "GET api.example port 80, 8000-8999 path /v1/** (rule \"api\")",
            ]
        );
        assert_eq!(
            lines(&bot.deny),
            ["admin.web.example port 80, 443 (rule \"not-there\")"]
        );
        assert_eq!((bot.otherwise, bot.denylist), ("refused", true));
        let told = serde_json::to_string(&bot).expect("JSON") + &bot.to_string();
        for hidden in [
            "secret",
            "theirs",
            "t.example",
            "u.example",
            "10.0.0.0",
            "far.example",
            "evil",
        ] {
            assert!(!told.contains(hidden), "{hidden}: {told}");
        }
        let t = of("x", "t");
        assert_eq!(
            lines(&t.allow)[0],
            "https t.example port 80, 443 (rule \"t\", on trial)"
        );
        assert_eq!(t.otherwise, "recorded");
        assert!(!t.to_string().contains("u.example"), "{t}");
        assert_eq!(
            lines(&of("ci-1", "").allow)[1],
            "any host at 10.0.0.0/8 port 80, 443 (rule \"lan\")"
        );
        assert_eq!(
            reach(&set, "bot", "v", None),
            Err(DenyReason::UnknownTenant)
        );
    }

    #[test]
    fn a_tokens_destinations_are_applied() {
        let set = set(&[
            "version: 1
rules:
  - {name: web, action: allow, agents: any, hosts: ['*.web.example', web.example, 10.1.2.3], addresses: [10.0.0.0/8, 192.168.0.0/16]}
  - {name: every, action: allow, agents: [wide], hosts: ['*']}
  - {name: lan, action: allow, agents: any, addresses: [10.0.0.0/8]}",
        ]);
        for (case, agent, only, expected) in [
            ("nothing", "bot", &[][..], &[][..]),
            (
                "another host",
                "bot",
                &["other.example"],
                &["other.example at 10.0.0.0/8"],
            ),
            (
                "a name below",
                "bot",
                &["a.web.example"],
                &[
                    "a.web.example at 10.0.0.0/8, 192.168.0.0/16",
                    "a.web.example at 10.0.0.0/8",
                ],
            ),
            (
                "a wider pattern",
                "bot",
                &["*.example"],
                &[
                    "*.web.example, web.example at 10.0.0.0/8, 192.168.0.0/16",
                    "*.example at 10.0.0.0/8",
                ],
            ),
            (
                "a range",
                "bot",
                &["10.1.0.0/16"],
                &[
                    "10.1.2.3 at 10.0.0.0/8, 192.168.0.0/16",
                    "*.web.example, web.example at 10.1.0.0/16",
                    "any host at 10.1.0.0/16",
                ],
            ),
            ("a range that is nowhere", "bot", &["172.16.0.0/12"], &[]),
        ] {
            let told = reach(&set, agent, "", Some(only)).expect("everybody");
            let lines: Vec<String> = told.allow.iter().map(ToString::to_string).collect();
            let lines: Vec<&str> = lines
                .iter()
                .map(|line| line.split(" port ").next().expect("a line"))
                .collect();
            assert_eq!(lines, expected, "{case}");
        }
    }

    #[test]
    fn what_is_told_is_what_is_decided() {
        let set = set(&[GLOBAL]);
        let hosts = [
            "web.example",
            "a.web.example",
            "api.example",
            "secret.example",
            "t.example",
        ];
        for only in [None, Some(&["*.web.example", "api.example"][..]), Some(&[])] {
            let told = reach(&set, "bot", "", only).expect("everybody");
            let agent = AgentId::parse("bot").expect("an agent");
            let only: Option<Vec<Destination>> = only.map(|list| {
                list.iter()
                    .map(|raw| raw.parse().expect("a host"))
                    .collect()
            });
            let who = Subject {
                agent: &agent,
                tenant: None,
                destinations: only.as_deref(),
                audiences: None,
            };
            for host in hosts {
                let what = EgressRequest {
                    authority: Authority::parse(&format!("{host}:80")).expect("an authority"),
                    ask: Ask::Request {
                        scheme: crate::egress::Scheme::Http,
                        method: http::Method::GET,
                        path: crate::egress::RequestPath::parse("/v1/a").expect("a path"),
                    },
                };
                let parsed = Host::parse(host).expect("a host");
                let listed = told
                    .allow
                    .iter()
                    .flat_map(|rule| &rule.hosts)
                    .any(|raw| HostPattern::parse(raw).expect("a pattern").matches(&parsed));
                let allowed = matches!(set.decide(&who, &what), Decision::Allow(_));
                assert_eq!(listed, allowed, "{host} {:?}", who.destinations);
            }
        }
    }

    #[test]
    fn it_stays_short_and_says_what_it_leaves_out() {
        let mut text = "version: 1\nrules:\n".to_owned();
        for n in 0..5000 {
            text += &format!(
                "  - {{name: rule-{n}, action: allow, agents: any, hosts: [a{n}.example, b{n}.example]}}\n"
            );
        }
        let hosts: Vec<String> = (0..5000).map(|n| format!("h{n}.example")).collect();
        text += &format!("  - {{name: many, action: allow, agents: [bot], hosts: {hosts:?}}}\n");
        let many = set(&[&text]);
        let told = reach(&many, "x", "", None).expect("everybody");
        assert_eq!(
            (told.allow.len(), told.left_out),
            (MOST_RULES, 5000 - MOST_RULES)
        );
        let json = serde_json::to_string(&told).expect("JSON");
        assert!(json.len() < 16 * 1024, "{} bytes", json.len());
        let one = set(&[&format!(
            "version: 1\nrules:\n  - {{name: many, action: allow, agents: any, hosts: {hosts:?}}}\n"
        )]);
        let told = reach(&one, "x", "", None).expect("everybody");
        assert_eq!(
            (told.allow[0].hosts.len(), told.allow[0].more),
            (MOST_ENTRIES, 5000 - MOST_ENTRIES)
        );
        assert!(told.to_string().contains("and 4960 more"), "{told}");
    }
}

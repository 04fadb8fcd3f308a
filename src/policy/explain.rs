//! Why a decision is what it is, at length. The verdict comes from `decide`
//! itself; what is said around it is found by looking through all rules.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use super::decide::{Judge, Refusals};
use super::decision::{Decision, Denied, DenyReason, Permit};
use super::document::{Action, Mode};
use super::finding::{Location, SourceName};
use super::limits::LimitShown;
use super::locate::locate;
use super::proven::Proven;
use super::rule::{Agents, Calls, Fit, Ports, Rule};
use super::set::{PolicySet, RuleId, Rules};
use crate::egress::{Ask, EgressRequest, Host, HostPattern, Subject, TenantId};
use crate::limit::Limit;

/// A decision and how it came about. As JSON by `serde`, in words by `Display`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Whether it may go.
    pub verdict: Verdict,
    /// The code of the refusal, also of one that only audit mode lets pass.
    pub reason: Option<&'static str>,
    /// One sentence.
    pub message: String,
    /// The rule that decides.
    pub rule: Option<RuleRef>,
    /// What was checked, in order, as far as it came to that.
    pub checks: Vec<Check>,
    /// On a refusal the allow rule that comes nearest, and what differs.
    pub nearest: Option<NearestRule>,
    /// How much of it: the limits that hold for it, where it may go.
    pub limits: Vec<LimitShown>,
    /// The digest of the policy.
    pub policy_version: Arc<str>,
}

/// Whether a request may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may because of audit mode only.
    Audit,
    /// It may not.
    Deny,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// `tenant`, `rpc`, `denylist`, `deny_rules`, `allow_rules`, `credential`,
    /// `token`, `address`.
    pub step: &'static str,
    /// How it ended.
    pub outcome: CheckOutcome,
    /// In words.
    pub detail: String,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// Nothing against it.
    Passed,
    /// Refused, and audit mode lets it pass.
    WouldRefuse,
    /// Refused.
    Refused,
    /// It shows when the name is resolved.
    Later,
}

/// A rule and where it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleRef {
    /// Its name.
    pub name: Arc<str>,
    /// The document.
    pub source: SourceName,
    /// Its place there: `rules[2]`.
    pub path: String,
    /// Its line and column, once [`Explanation::locate`] has looked.
    pub location: Option<Location>,
}

/// An allow rule that does not speak of the request, but nearly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NearestRule {
    /// Which.
    pub rule: RuleRef,
    /// What would have to be otherwise.
    pub differs: Vec<Difference>,
}

/// One thing in which a rule and a request differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `agent`, `host`, `address`, `port`, `scheme`, `method`, `path`,
    /// `rpc_methods` or `inside`.
    pub what: &'static str,
    /// What the rule has.
    pub rule: String,
    /// What the request has.
    pub request: String,
}

impl PolicySet {
    /// Explains the decision on a request. `addresses` are those that the name
    /// has, as far as the caller knows them; a target that is an address stands
    /// for itself.
    #[must_use]
    pub fn explain(
        &self,
        who: &Subject<'_>,
        what: &EgressRequest,
        addresses: &[IpAddr],
    ) -> Explanation {
        self.explain_calls(who, what, Calls::Unseen, addresses)
    }

    /// The same as [`PolicySet::explain`] for a request whose body calls these
    /// methods of JSON-RPC.
    #[must_use]
    pub fn explain_calls(
        &self,
        who: &Subject<'_>,
        what: &EgressRequest,
        calls: Calls<'_>,
        addresses: &[IpAddr],
    ) -> Explanation {
        self.explain_proven(who, what, calls, Proven::BY_TOKEN, addresses)
    }

    /// The same as [`PolicySet::explain_calls`] for an agent that is proven by
    /// this.
    #[must_use]
    pub fn explain_proven(
        &self,
        who: &Subject<'_>,
        what: &EgressRequest,
        calls: Calls<'_>,
        proven: Proven,
        addresses: &[IpAddr],
    ) -> Explanation {
        let rules = &*self.rules;
        let mut checks = Vec::new();
        let decision = self.decide_calls(who, what, calls).proven_by(proven);
        if let Some(judge) = tenant_check(rules, who, what, &mut checks) {
            let judge = judge.seeing(calls);
            if self.asks_for_calls(who, what) {
                checks.push(calls_check(calls));
            }
            rule_checks(&judge, &mut checks);
        }
        if let Some((enough, detail)) = decision.asks_for(proven) {
            checks.push(Check {
                step: "credential",
                outcome: match (enough, &decision) {
                    (true, _) => CheckOutcome::Passed,
                    (false, Decision::Allow(_)) => CheckOutcome::WouldRefuse,
                    (false, Decision::Deny(_)) => CheckOutcome::Refused,
                },
                detail,
            });
        }
        let (mut verdict, mut denied, rule) = match &decision {
            Decision::Deny(denied) => (Verdict::Deny, Some(denied.clone()), denied.rule_id),
            Decision::Allow(permit) => match permit.audited_denial() {
                Some(denied) => (Verdict::Audit, Some(denied.clone()), denied.rule_id),
                None => (Verdict::Allow, None, permit.rule),
            },
        };
        if let Decision::Allow(permit) = &decision {
            let literal = permit.literal.into_iter();
            let mut all: Vec<IpAddr> = Vec::new();
            for address in literal.chain(addresses.iter().copied()) {
                if !all.contains(&address) {
                    all.push(address);
                }
            }
            let addresses = all;
            if let Some(refused) = address_checks(permit, &addresses, &mut checks) {
                verdict = match (verdict, refused.enforced()) {
                    (_, true) => Verdict::Deny,
                    (_, false) => Verdict::Audit,
                };
                if refused.enforced() || denied.is_none() {
                    denied = Some(refused);
                }
            }
        }
        let rule = denied.as_ref().map_or(rule, |denied| denied.rule_id);
        Explanation {
            verdict,
            reason: denied.as_ref().map(|denied| denied.reason.as_str()),
            message: message(&decision, denied.as_ref()),
            rule: rule.map(|id| rule_ref(rules, id)),
            checks,
            nearest: denied
                .as_ref()
                .filter(|denied| wants_nearest(denied.reason))
                .and_then(|_| nearest(rules, who, what, calls)),
            limits: match &decision {
                Decision::Allow(permit) if verdict != Verdict::Deny => permit
                    .limits()
                    .filter(|(_, limit)| concerns(limit, what))
                    .map(|(mode, limit)| LimitShown::new(mode, limit))
                    .collect(),
                _ => Vec::new(),
            },
            policy_version: self.digest().clone(),
        }
    }
}

/// Whether a limit counts this; some count tunnels alone.
fn concerns(limit: &Limit, what: &EgressRequest) -> bool {
    !limit.measure().is_of_tunnels() || matches!(what.ask, Ask::Tunnel)
}

impl PolicySet {
    /// Every rule, in order of precedence.
    pub fn rules(&self) -> impl Iterator<Item = RuleRef> {
        let rules = &*self.rules;
        rules.all().map(|(id, _)| rule_ref(rules, id))
    }
}

impl Verdict {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Audit => "audit",
            Self::Deny => "deny",
        }
    }
}

impl Explanation {
    /// Adds the gateway's own limits, which hold for every agent beside those
    /// of policy.
    pub fn add_limits(&mut self, own: &[Arc<Limit>], what: &EgressRequest) {
        if self.verdict != Verdict::Deny {
            let own = own.iter().filter(|limit| concerns(limit, what));
            let own = own.map(|limit| LimitShown::new(Mode::Enforce, limit));
            self.limits.splice(0..0, own);
        }
    }

    /// Finds the lines of the rules it names, in the texts of their documents.
    pub fn locate<'t>(&mut self, text_of: impl Fn(&SourceName) -> Option<&'t str>) {
        let nearest = self.nearest.as_mut().map(|nearest| &mut nearest.rule);
        for rule in self.rule.iter_mut().chain(nearest) {
            if let Some(text) = text_of(&rule.source) {
                rule.location = locate(text, &[&rule.path]).pop().flatten();
            }
        }
    }
}

fn tenant_check<'a>(
    rules: &'a Rules,
    who: &'a Subject<'a>,
    what: &'a EgressRequest,
    checks: &mut Vec<Check>,
) -> Option<Judge<'a>> {
    let judge = Judge::new(rules, who, what);
    let (outcome, detail) = match (&judge, who.tenant) {
        (Err(DenyReason::TenantAudience), Some(tenant)) => (
            CheckOutcome::Refused,
            for_others(rules, tenant, who.audiences),
        ),
        (Err(_), tenant) => (
            CheckOutcome::Refused,
            format!(
                "tenant {:?} has no document, while others have",
                tenant.map_or("", |tenant| tenant.as_str())
            ),
        ),
        (Ok(judge), Some(tenant)) if judge.tenant.is_some() => {
            (CheckOutcome::Passed, applies(rules, tenant, judge.tenant))
        }
        _ => (
            CheckOutcome::Passed,
            "the global documents apply".to_owned(),
        ),
    };
    checks.push(Check {
        step: "tenant",
        outcome,
        detail,
    });
    judge.ok()
}

/// What a rule that speaks of the request wants to know of its body.
fn calls_check(calls: Calls<'_>) -> Check {
    let (outcome, detail) = match calls {
        Calls::Seen([]) => (CheckOutcome::Passed, "there is no body".to_owned()),
        Calls::Seen(methods) => (
            CheckOutcome::Passed,
            format!("the body calls {}", list(methods)),
        ),
        Calls::Unseen | Calls::Awaited => (
            CheckOutcome::Later,
            "what the body calls is not told (--rpc-method, `rpc_methods` of a case); \
             so it is judged as one that cannot be read"
                .to_owned(),
        ),
    };
    Check {
        step: "rpc",
        outcome,
        detail,
    }
}

/// Denylists, deny rules, allow rules and the token, each whatever the others
/// say, so that all that must change shows at once.
fn rule_checks(judge: &Judge<'_>, checks: &mut Vec<Check>) {
    let mut push = |step, denied: Option<&Denied>, detail: String| {
        checks.push(Check {
            step,
            outcome: match denied {
                None => CheckOutcome::Passed,
                Some(denied) if denied.enforced() => CheckOutcome::Refused,
                Some(_) => CheckOutcome::WouldRefuse,
            },
            detail,
        });
    };
    let words = |denied: Option<&Denied>, otherwise: &str| {
        denied.map_or_else(|| otherwise.to_owned(), ToString::to_string)
    };

    let mut refused = Refusals::default();
    judge.denylists(&mut refused);
    push(
        "denylist",
        refused.any(),
        words(refused.any(), "no denylist has it"),
    );

    let (mut refused, mut inside) = (Refusals::default(), Refusals::default());
    judge.deny_rules(&mut refused, &mut inside);
    let denied = refused.any().or(inside.any().filter(|_| judge.needs_tls()));
    let detail = match (denied, inside.any()) {
        (None, Some(denied)) => format!("for clear text only: {denied}"),
        _ => words(denied, "no deny rule speaks of it"),
    };
    push("deny_rules", denied, detail);

    let chosen = judge.allow_rules();
    let denied = match &chosen {
        None => Some(judge.no_rule()),
        Some(chosen) if chosen.fit == Fit::Inside && judge.needs_tls() => {
            Some(judge.denied(DenyReason::NotInspectable, chosen.id))
        }
        Some(_) => None,
    };
    let detail = match (&chosen, &denied) {
        (Some(chosen), None) => {
            let name = &judge.rules.rule(chosen.id).name;
            match chosen.fit {
                Fit::Inside => format!("rule \"{name}\" allows clear text only"),
                _ => format!("rule \"{name}\" allows it"),
            }
        }
        _ => words(denied.as_ref(), ""),
    };
    push("allow_rules", denied.as_ref(), detail);

    let token = judge.token();
    let detail = match (&token, judge.who.destinations) {
        (Err(denied), _) => denied.to_string(),
        (Ok(_), None) => "the token leaves it to the policy".to_owned(),
        (Ok(None), Some(_)) => "the token's allowed_destinations have it".to_owned(),
        (Ok(Some(ranges)), _) => format!("the token allows it at {} only", list(ranges)),
    };
    push("token", token.as_ref().err(), detail);
}

/// The refusal, where no address may be dialled, or every one that may passes
/// by audit mode only.
fn address_checks(
    permit: &Permit,
    addresses: &[IpAddr],
    checks: &mut Vec<Check>,
) -> Option<Denied> {
    if addresses.is_empty() {
        checks.push(Check {
            step: "address",
            outcome: CheckOutcome::Later,
            detail: address_terms(permit),
        });
        return None;
    }
    let mut refused = Refusals::default();
    let mut passed = false;
    for address in addresses {
        let (outcome, denied) = match permit.address(*address) {
            Ok(None) => (CheckOutcome::Passed, None),
            Ok(Some(denied)) => (CheckOutcome::WouldRefuse, Some(denied)),
            Err(denied) => (CheckOutcome::Refused, Some(denied)),
        };
        checks.push(Check {
            step: "address",
            outcome,
            detail: match &denied {
                None => format!("{address} may be dialled"),
                Some(denied) => format!("{address}: {denied}"),
            },
        });
        match denied {
            None => passed = true,
            Some(denied) => refused.add(denied),
        }
    }
    match passed {
        true => None,
        // One that audit mode lets pass is enough.
        false => refused.advisory.or(refused.binding),
    }
}

/// What the addresses of a name will have to be.
fn address_terms(permit: &Permit) -> String {
    let rules = &permit.rules;
    let mut public = permit.rule.is_none();
    let mut ranges = Vec::new();
    for id in permit.rule.iter().chain(&permit.by_address) {
        let rule = rules.rule(*id);
        public |= rule.ranges.is_empty();
        ranges.extend_from_slice(rule.ranges.list());
    }
    match (public, ranges.as_slice()) {
        (true, []) => "its addresses must be public".to_owned(),
        (true, ranges) => format!("its addresses must be public or in {}", list(ranges)),
        (false, ranges) => format!("its addresses must be in {}", list(ranges)),
    }
}

fn message(decision: &Decision, denied: Option<&Denied>) -> String {
    match (denied, decision) {
        (Some(denied), _) => denied.to_string(),
        (None, Decision::Allow(permit)) => {
            let name = permit.rule().map_or("", |name| name);
            match permit.opaque_denial() {
                Some(_) if !permit.opaque() => {
                    format!("rule \"{name}\" allows clear text, each request judged by itself")
                }
                _ => format!("rule \"{name}\" allows this"),
            }
        }
        (None, Decision::Deny(denied)) => denied.to_string(),
    }
}

/// Why none of a tenant's documents is for a token.
fn for_others(rules: &Rules, tenant: &TenantId, audiences: Option<&[String]>) -> String {
    let documents: Vec<_> = rules.documents_of(tenant).collect();
    let named: Vec<String> = documents
        .iter()
        .flat_map(|one| one.audiences.clone())
        .collect();
    let own = match audiences {
        Some([]) | None => "none".to_owned(),
        Some(audiences) => list(audiences),
    };
    let several = audiences
        .unwrap_or_default()
        .iter()
        .filter(|audience| named.contains(audience))
        .count()
        > 0;
    match (documents.as_slice(), several) {
        ([_], _) => format!(
            "the document of tenant {tenant} is for tokens whose aud has {}; this one has {own}",
            list(&named)
        ),
        (_, false) => format!(
            "the documents of tenant {tenant} are for tokens whose aud has one of {}; this one has {own}",
            list(&named)
        ),
        (_, true) => format!(
            "tenant {tenant} has several documents for this token, whose aud has {own}; ask for a token for one of them"
        ),
    }
}

/// Which documents are asked.
fn applies(rules: &Rules, tenant: &TenantId, place: Option<usize>) -> String {
    let several = rules.documents_of(tenant).nth(1).is_some();
    let chosen = place.and_then(|place| rules.document_at(place));
    match chosen.filter(|_| several) {
        None => format!("the global documents and that of tenant {tenant} apply"),
        Some(document) if document.audiences.is_empty() => format!(
            "the global documents and {} apply, which of those of tenant {tenant} names no audience",
            document.source
        ),
        Some(document) => format!(
            "the global documents and {} apply, which of those of tenant {tenant} is for tokens whose aud has {}",
            document.source,
            list(&document.audiences)
        ),
    }
}

/// Where another allow rule, or a wider one, would help.
fn wants_nearest(reason: DenyReason) -> bool {
    match reason {
        DenyReason::NoRule | DenyReason::NotInspectable => true,
        DenyReason::Rule
        | DenyReason::Denylist
        | DenyReason::TokenDestinations
        | DenyReason::UnknownTenant
        | DenyReason::TenantAudience
        | DenyReason::Address(_)
        | DenyReason::AddressNotAllowed
        | DenyReason::AddressDenied
        | DenyReason::CredentialRequired(_) => false,
    }
}

/// The allow rule with the fewest differences, those by host counting most. A
/// rule whose hosts have nothing in common with the target is not near.
fn nearest(
    rules: &Rules,
    who: &Subject<'_>,
    what: &EgressRequest,
    calls: Calls<'_>,
) -> Option<NearestRule> {
    let place = rules.place_of(who).ok()?;
    let near = |(id, rule): (RuleId, &Rule)| {
        if rule.action != Action::Allow {
            return None;
        }
        let differs = differences(rule, who, what, calls);
        let other_host = differs.iter().any(|d| matches!(d.what, "host" | "address"));
        let shared = common_labels(rule, &what.authority.host);
        if other_host && shared < 2 {
            return None;
        }
        let unlike = if other_host { usize::MAX - shared } else { 0 };
        Some(((unlike, differs.len(), id), differs))
    };
    let ((_, _, id), differs) = rules
        .at(place)
        .filter_map(near)
        .min_by_key(|(score, _)| *score)?;
    Some(NearestRule {
        rule: rule_ref(rules, id),
        differs,
    })
}

fn differences(
    rule: &Rule,
    who: &Subject<'_>,
    what: &EgressRequest,
    calls: Calls<'_>,
) -> Vec<Difference> {
    let mut differs = Vec::new();
    let mut add = |what, rule: String, request: String| {
        differs.push(Difference {
            what,
            rule,
            request,
        });
    };
    let host = &what.authority.host;
    if !rule.agents.contain(who.agent) {
        add("agent", agents(&rule.agents), who.agent.to_string());
    }
    if !rule.hosts.is_empty() && !rule.hosts.iter().any(|pattern| pattern.matches(host)) {
        add("host", list(&rule.hosts), host.to_string());
    } else if let Host::Address(address) = host
        && !rule.ranges.is_empty()
        && !rule.ranges.contains(*address)
    {
        add("address", list(rule.ranges.list()), address.to_string());
    }
    if !rule.ports.contains(what.authority.port) {
        add("port", ports(&rule.ports), what.authority.port.to_string());
    }
    let schemes = match (rule.http, rule.https) {
        (true, false) => "http",
        (false, true) => "https",
        _ => "http, https",
    };
    match &what.ask {
        Ask::Tunnel => {
            if rule.fits(&what.ask) == Fit::Inside {
                let limited = [
                    (!rule.methods.is_empty()).then(|| format!("methods {}", list(&rule.methods))),
                    (!rule.paths.is_empty()).then(|| format!("paths {}", list(&rule.paths))),
                    (!rule.rpc_methods.is_empty())
                        .then(|| format!("rpc_methods {}", list(&rule.rpc_methods))),
                    (!rule.https).then(|| "schemes http".to_owned()),
                ];
                let limited: Vec<String> = limited.into_iter().flatten().collect();
                add(
                    "inside",
                    limited.join("; "),
                    "a tunnel, which hides them".to_owned(),
                );
            }
        }
        Ask::Request {
            scheme,
            method,
            path,
        } => {
            if !schemes.split(", ").any(|word| word == scheme.as_str()) {
                add("scheme", schemes.to_owned(), scheme.to_string());
            }
            if !rule.methods.is_empty() && !rule.methods.contains(method) {
                add("method", list(&rule.methods), method.to_string());
            }
            if !rule.paths.is_empty() && !rule.paths.iter().any(|glob| glob.matches_all(path)) {
                add("path", list(&rule.paths), path.as_str().to_owned());
            }
            if !rule.fits_calls(calls) {
                let seen = match calls {
                    Calls::Unseen | Calls::Awaited => "a body that is not told".to_owned(),
                    Calls::Seen([]) => "no body".to_owned(),
                    Calls::Seen(methods) => list(methods),
                };
                add("rpc_methods", list(&rule.rpc_methods), seen);
            }
        }
    }
    differs
}

/// How many labels, from the right, the nearest host of a rule shares with a
/// target.
fn common_labels(rule: &Rule, host: &Host) -> usize {
    let Some(name) = host.name() else { return 0 };
    let shared = |pattern: &HostPattern| match pattern {
        HostPattern::Exact(Host::Name(other)) | HostPattern::Below(other) => {
            let pairs = name.as_str().rsplit('.').zip(other.as_str().rsplit('.'));
            pairs.take_while(|(a, b)| a == b).count()
        }
        _ => 0,
    };
    rule.hosts.iter().map(shared).max().unwrap_or(0)
}

fn rule_ref(rules: &Rules, id: RuleId) -> RuleRef {
    let rule = rules.rule(id);
    RuleRef {
        name: rule.name.clone(),
        source: rules.document(id).source.clone(),
        path: format!("rules[{}]", rule.position),
        location: None,
    }
}

/// So many entries of a list are named.
const NAMED: usize = 5;

fn list<T: fmt::Display>(entries: &[T]) -> String {
    let named: Vec<String> = entries.iter().take(NAMED).map(T::to_string).collect();
    let mut text = named.join(", ");
    if entries.len() > NAMED {
        text += &format!(" and {} more", entries.len() - NAMED);
    }
    text
}

fn agents(agents: &Agents) -> String {
    match agents {
        Agents::Any => "any".to_owned(),
        Agents::These { names, prefixes } => {
            let names = names.iter().map(ToString::to_string);
            let prefixes = prefixes.iter().map(|prefix| format!("{prefix}*"));
            list(&names.chain(prefixes).collect::<Vec<_>>())
        }
    }
}

fn ports(ports: &Ports) -> String {
    match ports {
        Ports::Any => "any".to_owned(),
        Ports::Ranges(ranges) => {
            let text = |(first, last): &(u16, u16)| match first == last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            };
            list(&ranges.iter().map(text).collect::<Vec<_>>())
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Allow => "allow",
            Verdict::Audit => "allow, in audit mode only",
            Verdict::Deny => "deny",
        };
        write!(f, "{verdict}: {}", self.message)?;
        if let Some(reason) = self.reason {
            write!(f, " ({reason})")?;
        }
        writeln!(f)?;
        if let Some(rule) = &self.rule {
            writeln!(f, "  rule {rule}")?;
        }
        for check in &self.checks {
            let mark = match check.outcome {
                CheckOutcome::Passed => "ok",
                CheckOutcome::WouldRefuse => "audit",
                CheckOutcome::Refused => "no",
                CheckOutcome::Later => "later",
            };
            writeln!(f, "  {:<12} {mark:<6} {}", check.step, check.detail)?;
        }
        if let Some(nearest) = &self.nearest {
            writeln!(f, "nearest: rule {}", nearest.rule)?;
            for Difference {
                what,
                rule,
                request,
            } in &nearest.differs
            {
                writeln!(
                    f,
                    "  {what}: the rule has {rule}; the request has {request}"
                )?;
            }
        }
        for limit in &self.limits {
            writeln!(f, "limit: {limit}")?;
        }
        write!(f, "policy version {}", self.policy_version)
    }
}

impl fmt::Display for RuleRef {
    /// `"openai" at policy.yaml:12:5 (rules[2])`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" at {}", self.name, self.source)?;
        if let Some(location) = self.location {
            write!(f, ":{location}")?;
        }
        write!(f, " ({})", self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::{AgentId, Authority, RequestPath, Scheme};
    use crate::policy::{Format, PolicyDocument};

    const TEXT: &str = "version: 1
rules:
  - name: openai
    action: allow
    agents: [bot, \"ci-*\"]
    hosts: [api.openai.com]
    ports: [443]
  - name: docs
    action: allow
    agents: any
    hosts: [docs.example]
    methods: [GET]
    paths: [\"/v1/**\"]
  - name: intern
    action: allow
    agents: any
    hosts: [db.example, 10.0.0.1]
    addresses: [10.0.0.0/8]
";

    fn explain(agent: &str, ask: Ask, authority: &str, addresses: &[&str]) -> Explanation {
        let source = SourceName::from("p.yaml");
        let document = PolicyDocument::parse(&source, Format::Yaml, TEXT).expect("a document");
        let set = PolicySet::build(vec![(source, document)], Mode::Enforce).expect("a policy");
        let agent = AgentId::parse(agent).expect("an agent");
        let who = Subject {
            agent: &agent,
            tenant: None,
            destinations: None,
            audiences: None,
        };
        let what = EgressRequest {
            authority: Authority::parse(authority).expect("an authority"),
            ask,
        };
        let parse = |raw: &&str| raw.parse().expect("an address");
        let addresses: Vec<IpAddr> = addresses.iter().map(parse).collect();
        let mut explanation = set.explain(&who, &what, &addresses);
        explanation.locate(|_| Some(TEXT));
        explanation
    }

    fn post(path: &str) -> Ask {
        Ask::Request {
            scheme: Scheme::Https,
            method: http::Method::POST,
            path: RequestPath::parse(path).expect("a path"),
        }
    }

    fn differs(explanation: &Explanation) -> Option<(&str, Vec<&'static str>)> {
        let nearest = explanation.nearest.as_ref()?;
        let what = nearest.differs.iter().map(|d| d.what).collect();
        Some((&nearest.rule.name, what))
    }

    #[test]
    fn the_nearest_rule_says_what_differs() {
        let tunnel = || Ask::Tunnel;
        for (agent, ask, authority, expected) in [
            (
                "bot",
                tunnel(),
                "openai.com:443",
                Some(("openai", vec!["host"])),
            ),
            (
                "bot",
                tunnel(),
                "api.openai.com:80",
                Some(("openai", vec!["port"])),
            ),
            (
                "bad",
                tunnel(),
                "api.openai.com:80",
                Some(("openai", vec!["agent", "port"])),
            ),
            (
                "bot",
                tunnel(),
                "docs.example:443",
                Some(("docs", vec!["inside"])),
            ),
            (
                "bot",
                post("/v2"),
                "docs.example:443",
                Some(("docs", vec!["method", "path"])),
            ),
            ("bot", tunnel(), "other.test:443", None),
            ("bot", tunnel(), "8.8.8.8:443", None),
        ] {
            let explanation = explain(agent, ask, authority, &[]);
            assert_eq!(explanation.verdict, Verdict::Deny, "{authority}");
            assert_eq!(differs(&explanation), expected, "{authority}");
        }
    }

    #[test]
    fn addresses_decide_where_they_are_known() {
        let verdict = |addresses: &[&str]| {
            let explanation = explain("bot", Ask::Tunnel, "db.example:443", addresses);
            (explanation.verdict, explanation.reason)
        };
        assert_eq!(verdict(&[]), (Verdict::Allow, None));
        assert_eq!(verdict(&["10.0.0.1", "8.8.8.8"]), (Verdict::Allow, None));
        assert_eq!(
            verdict(&["8.8.8.8"]),
            (Verdict::Deny, Some("address_not_allowed"))
        );
        assert_eq!(
            verdict(&["192.168.0.1"]),
            (Verdict::Deny, Some("address_private"))
        );
    }

    #[test]
    fn an_address_that_is_the_target_and_was_dialled_is_told_once() {
        let explanation = explain("bot", Ask::Tunnel, "10.0.0.1:443", &["10.0.0.1"]);
        assert_eq!(explanation.verdict, Verdict::Allow, "{explanation}");
        let addresses = explanation.checks.iter();
        assert_eq!(
            addresses.filter(|check| check.step == "address").count(),
            1,
            "{explanation}"
        );
    }

    #[test]
    fn in_words() {
        let explanation = explain("bad", Ask::Tunnel, "api.openai.com:443", &[]);
        let text = explanation.to_string();
        let version = explanation.policy_version;
        assert_eq!(
            text,
            format!(
                "deny: no rule allows this (no_rule)
  tenant       ok     the global documents apply
  denylist     ok     no denylist has it
  deny_rules   ok     no deny rule speaks of it
  allow_rules  no     no rule allows this
  token        ok     the token leaves it to the policy
nearest: rule \"openai\" at p.yaml:3:5 (rules[0])
  agent: the rule has bot, ci-*; the request has bad
policy version {version}"
            )
        );
        let allowed = explain("bot", Ask::Tunnel, "api.openai.com:443", &["8.8.8.8"]);
        let json = serde_json::to_value(&allowed).expect("JSON");
        assert_eq!(json["verdict"], "allow");
        assert_eq!(json["rule"]["name"], "openai");
        assert_eq!(json["rule"]["location"]["line"], 3);
        assert_eq!(json["checks"][5]["outcome"], "passed");
    }
}

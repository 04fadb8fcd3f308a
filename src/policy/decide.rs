//! From a request to a decision, and from a permit to an address: the order of
//! the checks of policy, and nothing of how rules are found.

use std::net::IpAddr;

use super::decision::{Decision, Denied, DenyReason, Permit, RefusalForm, TlsUse};
use super::document::Mode;
use super::index::{Rank, Slot};
use super::range::class_of;
use super::rule::{Calls, Fit, Rule};
use super::set::{PolicySet, RuleId, Rules, Scope};
use crate::egress::{
    AddressClass, AddressRange, AgentId, Ask, Destination, EgressRequest, Host, HostPattern,
    Subject,
};

/// The port on which a tunnel is TLS, so that one whose inside must be seen is
/// refused before it opens.
const HTTPS_PORT: u16 = 443;

impl PolicySet {
    /// Whether this subject may ask for this.
    pub fn decide(&self, who: &Subject<'_>, what: &EgressRequest) -> Decision {
        self.decide_calls(who, what, Calls::Unseen)
    }

    /// Whether a rule that speaks of this is about methods of JSON-RPC: then
    /// the body is to be read, and put to [`PolicySet::decide_calls`].
    #[must_use]
    pub fn asks_for_calls(&self, who: &Subject<'_>, what: &EgressRequest) -> bool {
        self.rules.are_about_calls()
            && matches!(what.ask, Ask::Request { .. })
            && Judge::new(&self.rules, who, what).is_ok_and(|judge| judge.asks_for_calls())
    }

    /// The same as [`PolicySet::decide`] for a request whose body was read.
    pub fn decide_calls(
        &self,
        who: &Subject<'_>,
        what: &EgressRequest,
        calls: Calls<'_>,
    ) -> Decision {
        let rules = &*self.rules;
        let judge = match Judge::new(rules, who, what) {
            Ok(judge) => judge.seeing(calls),
            Err(reason) => {
                return Decision::Deny(Denied::without_rule(reason, Mode::Enforce));
            }
        };
        let mut refused = Refusals::default();
        // Why what travels unseen in a tunnel may not pass.
        let mut inside = Refusals::default();
        judge.denylists(&mut refused);
        let mut denied_addresses = judge.deny_rules(&mut refused, &mut inside);
        if let Some(denied) = refused.binding {
            return Decision::Deny(denied);
        }
        let chosen = judge.allow_rules();
        match &chosen {
            None => refused.add(judge.no_rule()),
            Some(chosen) if chosen.fit == Fit::Inside => {
                inside.add(judge.denied(DenyReason::NotInspectable, chosen.id));
            }
            Some(_) => {}
        }
        if judge.needs_tls()
            && let Some(denied) = inside.any()
        {
            refused.add(denied.clone());
        }
        if let Some(denied) = refused.binding {
            return Decision::Deny(denied);
        }
        let token_ranges = match judge.token() {
            Ok(ranges) => ranges,
            Err(denied) => return Decision::Deny(denied),
        };
        let inside = inside.into_any();
        if inside.as_ref().is_some_and(Denied::enforced) {
            // Nothing passes unseen, so what is seen is judged by itself.
            denied_addresses.retain(|(_, needs_inside)| !needs_inside);
        }
        let anything = |chosen: &Chosen| rules.rule(chosen.id).tls.tls == TlsUse::Any;
        let clear_text_denied = matches!(what.ask, Ask::Tunnel)
            && chosen.as_ref().is_some_and(anything)
            && judge.denies_clear_text();
        let (rule, by_address) = match chosen {
            Some(chosen) => (Some(chosen.id), chosen.by_address),
            None => (None, Vec::new()),
        };
        Decision::Allow(Permit {
            rules: self.rules.clone(),
            rule,
            by_address,
            denied_addresses,
            agent: who.agent.clone(),
            tenant: judge.tenant,
            literal: judge.literal,
            token_ranges,
            audited: refused.advisory,
            inside,
            clear_text_denied,
        })
    }
}

impl Permit {
    /// Whether this address may be dialled for the target: to be asked of every
    /// address that the name has, before any is dialled. `Ok(Some(_))` says
    /// that only audit mode lets it pass.
    ///
    /// # Errors
    /// [`Denied`]: it is on a denylist or in a deny rule, it is not public and
    /// the rule does not name its range, the rule names others, or the
    /// credential does.
    pub fn address(&self, address: IpAddr) -> Result<Option<Denied>, Denied> {
        let mut refused = Refusals::default();
        for (mode, list) in self
            .rules
            .scopes(self.tenant)
            .flat_map(|(_, scope)| scope.denylists(&self.agent))
        {
            if list.has_address(address) {
                refused.add(Denied::without_rule(DenyReason::Denylist, mode));
            }
        }
        for (id, needs_inside) in &self.denied_addresses {
            let rule = self.rules.rule(*id);
            if rule.ranges.touches(address) {
                let reason = match needs_inside {
                    true => DenyReason::NotInspectable,
                    false => DenyReason::AddressDenied,
                };
                refused.add(self.denied(reason, *id));
            }
        }
        if let Some(denied) = self.not_admitted(address) {
            refused.add(denied);
        }
        if let Some(ranges) = &self.token_ranges
            && !ranges.iter().any(|range| range.contains(address))
        {
            refused.add(Denied::without_rule(
                DenyReason::TokenDestinations,
                Mode::Enforce,
            ));
        }
        match refused {
            Refusals {
                binding: Some(denied),
                ..
            } => Err(denied),
            Refusals { advisory, .. } => Ok(advisory),
        }
    }

    /// Whether the target may be asked for where nobody here resolves it: no
    /// leave that is given for some addresses is one for all. What is refused by
    /// address is not looked at. `Ok(Some(_))` says that only audit mode lets it
    /// pass.
    ///
    /// # Errors
    /// [`Denied`]: the rule or the credential allows it at some addresses only.
    pub fn unresolved(&self) -> Result<Option<Denied>, Denied> {
        if self.token_ranges.is_some() {
            let reason = DenyReason::TokenDestinations;
            return Err(Denied::without_rule(reason, Mode::Enforce));
        }
        let bound = self
            .rule
            .filter(|id| !self.rules.rule(*id).ranges.is_empty());
        match bound.map(|id| self.denied(DenyReason::AddressNotAllowed, id)) {
            Some(denied) if denied.enforced() => Err(denied),
            advisory => Ok(advisory),
        }
    }

    /// Whether the target may be asked for where the operator has put a service
    /// behind that name, at an address that is nobody else's to judge. Only a rule
    /// that names it, or that is for no addresses, is about it: a leave for some
    /// addresses, at whatever host, is none for a service that is at none of them.
    ///
    /// # Errors
    /// [`Denied`]: the rule or the credential is for some addresses only.
    pub fn behind(&self, host: &Host) -> Result<Option<Denied>, Denied> {
        let names = |pattern: &HostPattern| *pattern != HostPattern::Any && pattern.matches(host);
        let is_named = |id: RuleId| self.rules.rule(id).hosts.iter().any(names);
        match self.rule {
            Some(id) if self.token_ranges.is_none() && is_named(id) => Ok(None),
            _ => self.unresolved(),
        }
    }

    /// Why no allow rule of the permit lets this address be dialled.
    fn not_admitted(&self, address: IpAddr) -> Option<Denied> {
        let admitted = self
            .rule
            .iter()
            .chain(&self.by_address)
            .any(|id| self.rules.rule(*id).admits(address, self.literal));
        if admitted {
            return None;
        }
        let class = class_of(address);
        let rule = self.rule.map(|id| (id, self.rules.rule(id)));
        match (class, rule) {
            // A request that no rule allows and audit mode lets pass.
            (AddressClass::Public, None) => None,
            (AddressClass::Public, Some((id, _))) => {
                Some(self.denied(DenyReason::AddressNotAllowed, id))
            }
            (class, rule) => Some(Denied {
                reason: DenyReason::Address(class),
                rule: rule.map(|(_, rule)| rule.name.clone()),
                rule_id: self.rule,
                mode: self.class_mode(class),
                form: rule.map_or_else(RefusalForm::default, |(_, rule)| rule.refusal),
            }),
        }
    }
}

impl Permit {
    /// Whether a class of addresses binds. It does in audit mode too, unless
    /// the document says otherwise; and no trial of a policy is worth a
    /// machine's credentials.
    fn class_mode(&self, class: AddressClass) -> Mode {
        if class == AddressClass::Metadata {
            return Mode::Enforce;
        }
        let opened = match self.rule {
            Some(id) => self.rules.document(id).audit_addresses,
            None => {
                let first = self.rules.scopes(self.tenant).next();
                first.is_some_and(|(_, scope)| scope.audits_addresses())
            }
        };
        match opened {
            true => self.mode(),
            false => Mode::Enforce,
        }
    }

    fn denied(&self, reason: DenyReason, id: RuleId) -> Denied {
        Denied::by(reason, id, &self.rules, &self.agent)
    }
}

impl Denied {
    fn without_rule(reason: DenyReason, mode: Mode) -> Self {
        Self {
            reason,
            rule: None,
            rule_id: None,
            mode,
            form: RefusalForm::Connect,
        }
    }

    pub(super) fn by(reason: DenyReason, id: RuleId, rules: &Rules, agent: &AgentId) -> Self {
        Self {
            reason,
            rule: Some(rules.rule(id).name.clone()),
            rule_id: Some(id),
            mode: rules.mode(id, agent),
            form: rules.rule(id).refusal,
        }
    }
}

/// The first refusal that binds and the first that does not.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    pub(super) binding: Option<Denied>,
    pub(super) advisory: Option<Denied>,
}

impl Refusals {
    pub(super) fn add(&mut self, denied: Denied) {
        let slot = match denied.mode {
            Mode::Enforce => &mut self.binding,
            Mode::Audit => &mut self.advisory,
        };
        slot.get_or_insert(denied);
    }

    pub(super) fn any(&self) -> Option<&Denied> {
        self.binding.as_ref().or(self.advisory.as_ref())
    }

    fn into_any(self) -> Option<Denied> {
        self.binding.or(self.advisory)
    }
}

/// One request before one set of rules.
pub(super) struct Judge<'a> {
    pub(super) rules: &'a Rules,
    pub(super) who: &'a Subject<'a>,
    what: &'a EgressRequest,
    calls: Calls<'a>,
    pub(super) tenant: Option<usize>,
    literal: Option<IpAddr>,
}

/// The allow rule that is used.
pub(super) struct Chosen {
    pub(super) id: RuleId,
    pub(super) fit: Fit,
    /// The allow rules by addresses only that may add addresses to it.
    by_address: Vec<RuleId>,
}

/// The best allow rules so far: one that fits, and one that would if the inside
/// were seen.
#[derive(Default)]
struct Best {
    whole: Option<(Rank, RuleId)>,
    inside: Option<(Rank, RuleId)>,
}

impl Best {
    fn offer(&mut self, rank: Rank, id: RuleId, fit: Fit) {
        let slot = match fit {
            Fit::No => return,
            Fit::Inside => &mut self.inside,
            Fit::Yes => &mut self.whole,
        };
        let better = match slot {
            None => true,
            // The nearer host, then the earlier rule.
            Some((known_rank, known)) => (rank, *known) > (*known_rank, id),
        };
        if better {
            *slot = Some((rank, id));
        }
    }
}

impl<'a> Judge<'a> {
    /// Why there is none: the subject's tenant has no document and others have,
    /// or one for other tokens.
    pub(super) fn new(
        rules: &'a Rules,
        who: &'a Subject<'a>,
        what: &'a EgressRequest,
    ) -> Result<Self, DenyReason> {
        Ok(Self {
            rules,
            who,
            what,
            calls: Calls::Unseen,
            tenant: rules.place_of(who)?,
            literal: match what.authority.host {
                Host::Address(address) => Some(address),
                Host::Name(_) => None,
            },
        })
    }

    pub(super) fn seeing(self, calls: Calls<'a>) -> Self {
        Self { calls, ..self }
    }

    pub(super) fn asks_for_calls(&self) -> bool {
        let host = &self.what.authority.host;
        self.rules.scopes(self.tenant).any(|(_, scope)| {
            let about = |slot: &Slot| {
                slot.lists(self.who.agent).flatten().any(|id| {
                    let rule = scope.rule(*id);
                    !rule.rpc_methods.is_empty()
                        && rule.ports.contains(self.what.authority.port)
                        && rule.fits(&self.what.ask) == Fit::Yes
                })
            };
            let (deny, allow) = (&scope.deny, &scope.allow);
            deny.by_host(host).any(|(_, slot)| about(slot))
                || allow.by_host(host).any(|(_, slot)| about(slot))
                || about(deny.by_address())
                || about(allow.by_address())
        })
    }

    /// Whether nothing but TLS can be expected in a tunnel to this port.
    pub(super) fn needs_tls(&self) -> bool {
        self.what.authority.port == HTTPS_PORT
    }

    pub(super) fn denylists(&self, refused: &mut Refusals) {
        let host = &self.what.authority.host;
        for (_, scope) in self.rules.scopes(self.tenant) {
            for (mode, list) in scope.denylists(self.who.agent) {
                if list.has_host(host) {
                    refused.add(Denied::without_rule(DenyReason::Denylist, mode));
                }
            }
        }
    }

    /// Asks the deny rules, and gives those that have a word on the addresses
    /// of a name, each with whether it is about the inside of a tunnel.
    pub(super) fn deny_rules(
        &self,
        refused: &mut Refusals,
        inside: &mut Refusals,
    ) -> Vec<(RuleId, bool)> {
        let mut add = |reason, id, fit| match fit {
            Fit::Yes => refused.add(self.denied(reason, id)),
            Fit::Inside => inside.add(self.denied(DenyReason::NotInspectable, id)),
            Fit::No => {}
        };
        let mut later = Vec::new();
        for scope in self.rules.scopes(self.tenant) {
            let deny = &scope.1.deny;
            for (_, slot) in deny.by_host(&self.what.authority.host) {
                self.each_fitting(scope, slot, |id, _, fit| add(DenyReason::Rule, id, fit));
            }
            self.each_fitting(scope, deny.by_address(), |id, rule, fit| {
                match self.literal {
                    Some(address) if rule.ranges.touches(address) => {
                        add(DenyReason::AddressDenied, id, fit);
                    }
                    Some(_) => {}
                    None => later.push((id, fit == Fit::Inside)),
                }
            });
        }
        later
    }

    /// Whether an enforced deny rule is about requests in clear text only, so
    /// that it has no word on the tunnel.
    fn denies_clear_text(&self) -> bool {
        let speaks = |(number, scope): (u32, &Scope), slot: &Slot| {
            slot.lists(self.who.agent).flatten().any(|id| {
                let rule = scope.rule(*id);
                let (by, reason) = (RuleId::new(number, *id), DenyReason::Rule);
                rule.is_about_clear_text()
                    && rule.ports.contains(self.what.authority.port)
                    && self.denied(reason, by).enforced()
            })
        };
        self.rules.scopes(self.tenant).any(|scope| {
            let deny = &scope.1.deny;
            speaks(scope, deny.by_address())
                || deny
                    .by_host(&self.what.authority.host)
                    .any(|(_, slot)| speaks(scope, slot))
        })
    }

    /// The most specific allow rule. Rules by addresses only come after those
    /// by name, as it shows only later whether they speak of the name at all.
    pub(super) fn allow_rules(&self) -> Option<Chosen> {
        let mut named = Best::default();
        let mut by_address: Vec<(RuleId, Fit)> = Vec::new();
        for scope in self.rules.scopes(self.tenant) {
            let allow = &scope.1.allow;
            for (rank, slot) in allow.by_host(&self.what.authority.host) {
                self.first_fitting(scope, slot, |id, rule, fit| {
                    let reaches = self
                        .literal
                        .is_none_or(|ip| rule.ranges.is_empty() || rule.ranges.contains(ip));
                    if reaches {
                        named.offer(rank, id, fit);
                    }
                    reaches
                });
            }
            self.each_fitting(scope, allow.by_address(), |id, rule, fit| {
                match self.literal {
                    Some(address) if rule.ranges.contains(address) => {
                        named.offer(Rank::Range, id, fit);
                    }
                    Some(_) => {}
                    None => by_address.push((id, fit)),
                }
            });
        }
        by_address.sort_unstable_by_key(|(id, _)| *id);
        let unseen = |wanted| by_address.iter().filter(move |(_, fit)| *fit == wanted);
        let first = |wanted| unseen(wanted).next().copied();
        let (id, fit) = match (named.whole, named.inside) {
            (Some((_, id)), _) => (id, Fit::Yes),
            // On this port only a rule that fits can help.
            (None, Some((_, id))) => match first(Fit::Yes) {
                Some(other) if self.needs_tls() => other,
                _ => (id, Fit::Inside),
            },
            (None, None) => first(Fit::Yes).or_else(|| first(Fit::Inside))?,
        };
        // A tunnel that may carry anything must not get an address from a rule
        // that would have to see it.
        let by_address = by_address
            .iter()
            .filter(|(_, other)| fit == Fit::Inside || *other == Fit::Yes)
            .map(|(id, _)| *id)
            .collect();
        Some(Chosen {
            id,
            fit,
            by_address,
        })
    }

    /// Every allow rule that speaks of the request whole.
    pub(super) fn all_allowing(&self) -> Vec<RuleId> {
        let mut found = Vec::new();
        for scope in self.rules.scopes(self.tenant) {
            let allow = &scope.1.allow;
            let slots = allow.by_host(&self.what.authority.host);
            for slot in slots.map(|(_, slot)| slot).chain([allow.by_address()]) {
                self.each_fitting(scope, slot, |id, _, fit| {
                    if fit == Fit::Yes {
                        found.push(id);
                    }
                });
            }
        }
        found
    }

    pub(super) fn no_rule(&self) -> Denied {
        let mode = self
            .rules
            .scopes(self.tenant)
            .next()
            .map_or(Mode::Enforce, |(_, scope)| scope.mode(self.who.agent));
        Denied::without_rule(DenyReason::NoRule, mode)
    }

    /// What the credential says of the target: nothing, that these ranges must
    /// hold the address, or no.
    pub(super) fn token(&self) -> Result<Option<Vec<AddressRange>>, Denied> {
        let Some(destinations) = self.who.destinations else {
            return Ok(None);
        };
        let host = &self.what.authority.host;
        let mut ranges = Vec::new();
        for destination in destinations {
            match (destination, self.literal) {
                (Destination::Host(pattern), _) if pattern.matches(host) => return Ok(None),
                (Destination::Range(range), Some(ip)) if range.contains(ip) => return Ok(None),
                (Destination::Range(range), None) => ranges.push(*range),
                _ => {}
            }
        }
        if ranges.is_empty() {
            let reason = DenyReason::TokenDestinations;
            return Err(Denied::without_rule(reason, Mode::Enforce));
        }
        Ok(Some(ranges))
    }

    pub(super) fn denied(&self, reason: DenyReason, id: RuleId) -> Denied {
        Denied::by(reason, id, self.rules, self.who.agent)
    }

    fn fit(&self, rule: &Rule) -> Fit {
        match rule.ports.contains(self.what.authority.port) {
            true => match rule.fits(&self.what.ask) {
                Fit::Yes if !rule.fits_calls(self.calls) => Fit::No,
                fit => fit,
            },
            false => Fit::No,
        }
    }

    /// Every rule in the slot that speaks of the request.
    fn each_fitting(
        &self,
        (number, scope): (u32, &Scope),
        slot: &Slot,
        mut see: impl FnMut(RuleId, &Rule, Fit),
    ) {
        for id in slot.lists(self.who.agent).flatten() {
            let rule = scope.rule(*id);
            match self.fit(rule) {
                Fit::No => {}
                fit => see(RuleId::new(number, *id), rule, fit),
            }
        }
    }

    /// As [`Self::each_fitting`], and no further in a list than the first rule
    /// that fits whole and is taken: those behind it cannot be better.
    fn first_fitting(
        &self,
        (number, scope): (u32, &Scope),
        slot: &Slot,
        mut take: impl FnMut(RuleId, &Rule, Fit) -> bool,
    ) {
        for list in slot.lists(self.who.agent) {
            for id in list {
                let rule = scope.rule(*id);
                let fit = self.fit(rule);
                let id = RuleId::new(number, *id);
                if fit != Fit::No && take(id, rule, fit) && fit == Fit::Yes {
                    break;
                }
            }
        }
    }
}

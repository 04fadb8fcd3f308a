//! The reference: it looks through every rule of every document as written,
//! and knows no index.

use super::*;

pub(super) struct Reference<'a> {
    /// In order of precedence, with the document's mode.
    pub(super) documents: Vec<(&'a PolicyDocument, Mode)>,
    pub(super) default_mode: Mode,
    pub(super) what: &'a EgressRequest,
    pub(super) who: Subject<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Deny,
    /// The rule, whether audit mode lets it pass, whether bytes may pass unseen.
    Allow(Option<String>, bool, bool),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Speaks {
    No,
    Inside,
    Yes,
}

/// As `rank` of the index: `*`, a range, `*.suffix`, exact.
type Nearness = (u8, usize);

impl<'a> Reference<'a> {
    pub(super) fn decide(&self) -> Said {
        let mut modes: Vec<Mode> = self.denylisted(None);
        let mut unseen: Vec<Mode> = Vec::new();
        for (rule, mode) in self.rules(Action::Deny) {
            let named = hosts(rule)
                .iter()
                .any(|p| p.matches(&self.what.authority.host))
                || self.literal().is_some_and(|ip| denies(rule, ip));
            match self.speaks(rule) {
                Speaks::Yes if named => modes.push(mode),
                Speaks::Inside if named => unseen.push(mode),
                _ => {}
            }
        }
        let chosen = self.chosen();
        match &chosen {
            None => modes.push(self.no_rule()),
            Some((_, mode, Speaks::Inside)) => unseen.push(*mode),
            Some(_) => {}
        }
        if self.what.authority.port == 443 {
            modes.extend(&unseen);
        }
        let token = self.who.destinations.is_none_or(|list| {
            list.iter().any(|entry| match (entry, self.literal()) {
                (Destination::Host(pattern), _) => pattern.matches(&self.what.authority.host),
                (Destination::Range(range), Some(ip)) => range.contains(ip),
                (Destination::Range(_), None) => true,
            })
        });
        if modes.contains(&Mode::Enforce) || !token {
            return Said::Deny;
        }
        Said::Allow(
            chosen.map(|(rule, _, _)| rule.name.clone()),
            !modes.is_empty(),
            !unseen.contains(&Mode::Enforce),
        )
    }

    /// Whether an address may be dialled for an allowed request: `None`
    /// for no, else whether only by audit mode.
    pub(super) fn address(&self, ip: IpAddr) -> Option<bool> {
        let Said::Allow(_, _, opaque) = self.decide() else {
            return None;
        };
        let mut modes = self.denylisted(Some(ip));
        for (rule, mode) in self.rules(Action::Deny) {
            let asked = match self.literal() {
                // Asked when the request was decided.
                Some(_) => false,
                None => denies(rule, ip),
            };
            match self.speaks(rule) {
                Speaks::Yes if asked => modes.push(mode),
                Speaks::Inside if asked && opaque => modes.push(mode),
                _ => {}
            }
        }
        let chosen = self.chosen();
        let mut helpers: Vec<&RuleDocument> = Vec::new();
        if let Some((rule, _, fit)) = &chosen {
            helpers.push(rule);
            if self.literal().is_none() {
                let more = self.rules(Action::Allow).filter(|(other, _)| {
                    let speaks = self.speaks(other);
                    other.hosts.is_none()
                        && (speaks == Speaks::Yes
                            || (speaks == Speaks::Inside && *fit == Speaks::Inside))
                });
                helpers.extend(more.map(|(rule, _)| rule));
            }
        }
        let class = classify(ip);
        let admitted = helpers.iter().any(|rule| match ranges(rule).as_slice() {
            [] => {
                class == AddressClass::Public
                    || (self.literal() == Some(ip)
                        && hosts(rule)
                            .contains(&HostPattern::Exact(self.what.authority.host.clone())))
            }
            ranges => ranges.iter().any(|range| {
                range.contains(ip)
                    && (class != AddressClass::Metadata || range.net().prefix_len() == 32)
            }),
        });
        match (admitted, class, &chosen) {
            (true, ..) | (_, AddressClass::Public, None) => {}
            (_, AddressClass::Public, Some((_, mode, _))) => modes.push(*mode),
            (_, AddressClass::Metadata, _) => return None,
            (.., Some((rule, mode, _))) => {
                let written = self.documents.iter().find(|(document, _)| {
                    document
                        .rules
                        .iter()
                        .any(|other| std::ptr::eq(other, *rule))
                });
                match written.and_then(|(document, _)| document.audit_addresses) {
                    Some(true) => modes.push(*mode),
                    _ => return None,
                }
            }
            (.., None) => {
                let own = self.documents.first().map(|(d, _)| d.tenant.as_ref());
                let mut first = self
                    .documents
                    .iter()
                    .filter(|(d, _)| Some(d.tenant.as_ref()) == own);
                match first.any(|(document, _)| document.audit_addresses == Some(true)) {
                    true => modes.push(Mode::Audit),
                    false => return None,
                }
            }
        }
        let named = |entry: &Destination| matches!(entry, Destination::Host(p) if p.matches(&self.what.authority.host));
        let token = self.who.destinations.is_none_or(|list| {
            self.literal().is_some()
                || list.iter().any(named)
                || list
                    .iter()
                    .any(|entry| matches!(entry, Destination::Range(r) if r.contains(ip)))
        });
        (token && !modes.contains(&Mode::Enforce)).then_some(!modes.is_empty())
    }

    fn literal(&self) -> Option<IpAddr> {
        match self.what.authority.host {
            crate::egress::Host::Address(ip) => Some(ip),
            crate::egress::Host::Name(_) => None,
        }
    }

    fn rules(&self, action: Action) -> impl Iterator<Item = (&'a RuleDocument, Mode)> {
        self.documents.iter().flat_map(move |(document, mode)| {
            let rules = document.rules.iter().filter(move |r| r.action == action);
            rules.map(|rule| (rule, rule.mode.unwrap_or(*mode)))
        })
    }

    fn no_rule(&self) -> Mode {
        match self.documents.as_slice() {
            [] => self.default_mode,
            [(document, mode), ..] if document.tenant.is_some() => *mode,
            all if all.iter().any(|(_, mode)| *mode == Mode::Enforce) => Mode::Enforce,
            _ => Mode::Audit,
        }
    }

    fn denylisted(&self, ip: Option<IpAddr>) -> Vec<Mode> {
        let mut modes = Vec::new();
        for (document, mode) in &self.documents {
            for entry in &document.denylist {
                let hit = match Destination::parse(entry).expect("an entry") {
                    Destination::Host(p) => ip.is_none() && p.matches(&self.what.authority.host),
                    Destination::Range(r) => ip.or(self.literal()).is_some_and(|ip| r.contains(ip)),
                };
                if hit {
                    modes.push(*mode);
                }
            }
        }
        modes
    }

    fn speaks(&self, rule: &RuleDocument) -> Speaks {
        let agent = self.who.agent.as_str();
        let agents = match &rule.agents {
            AnyOr::Any => true,
            AnyOr::List(list) => list.iter().any(|a| match a.strip_suffix('*') {
                Some(prefix) => agent.starts_with(prefix),
                None => agent == a,
            }),
        };
        let port = self.what.authority.port;
        let ports = match &rule.ports {
            None => port == 80 || port == 443,
            Some(AnyOr::Any) => true,
            Some(AnyOr::List(list)) => list.contains(&PortEntry::Number(port.into())),
        };
        if !agents || !ports {
            return Speaks::No;
        }
        let list = |list: &Option<AnyOr<String>>| match list {
            Some(AnyOr::List(list)) => Some(list.clone()),
            _ => None,
        };
        let (schemes, methods) = (list(&rule.schemes), list(&rule.methods));
        let paths = list(&rule.paths);
        let scheme_is = |name: &str| schemes.as_ref().is_none_or(|s| s.iter().any(|s| s == name));
        match &self.what.ask {
            Ask::Tunnel => {
                let limited = methods.is_some() || paths.is_some();
                match (rule.action, scheme_is("http"), scheme_is("https")) {
                    (Action::Allow, _, true) if !limited => Speaks::Yes,
                    (Action::Allow, ..) => Speaks::Inside,
                    (Action::Deny, _, false) => Speaks::No,
                    (Action::Deny, true, true) if !limited => Speaks::Yes,
                    (Action::Deny, ..) => Speaks::Inside,
                }
            }
            Ask::Request {
                scheme,
                method,
                path,
            } => {
                let globs = |path_is: &dyn Fn(&crate::egress::PathGlob) -> bool| {
                    paths.as_ref().is_none_or(|list| {
                        list.iter()
                            .any(|raw| path_is(&raw.parse().expect("a glob")))
                    })
                };
                let path_fits = match rule.action {
                    Action::Allow => globs(&|glob| glob.matches_all(path)),
                    Action::Deny => globs(&|glob| glob.matches_any(path)),
                };
                let method_fits =
                    methods.is_none_or(|list| list.iter().any(|m| m == method.as_str()));
                match scheme_is(scheme.as_str()) && method_fits && path_fits {
                    true => Speaks::Yes,
                    false => Speaks::No,
                }
            }
        }
    }

    /// How nearly an allow rule names the target; `None` where it does not.
    fn nearness(&self, rule: &RuleDocument) -> Option<Nearness> {
        let ranges = ranges(rule);
        if let Some(ip) = self.literal()
            && !ranges.is_empty()
            && !ranges.iter().any(|range| range.contains(ip))
        {
            return None;
        }
        if rule.hosts.is_none() {
            return self.literal().map(|_| (1, 0));
        }
        let matching = hosts(rule)
            .into_iter()
            .filter(|p| p.matches(&self.what.authority.host));
        matching
            .map(|pattern| match pattern {
                HostPattern::Any => (0, 0),
                HostPattern::Below(name) => (2, name.as_str().len()),
                HostPattern::Exact(_) => (3, 0),
            })
            .max()
    }

    fn chosen(&self) -> Option<(&'a RuleDocument, Mode, Speaks)> {
        let best = |wanted: Speaks, by_name: bool| {
            let mut best: Option<(Nearness, &RuleDocument, Mode)> = None;
            for (rule, mode) in self.rules(Action::Allow) {
                let nearness = match by_name {
                    true => self.nearness(rule),
                    false => (rule.hosts.is_none() && self.literal().is_none()).then_some((0, 0)),
                };
                let Some(nearness) = nearness.filter(|_| self.speaks(rule) == wanted) else {
                    continue;
                };
                if best.as_ref().is_none_or(|(known, ..)| nearness > *known) {
                    best = Some((nearness, rule, mode));
                }
            }
            best.map(|(_, rule, mode)| (rule, mode, wanted))
        };
        let inside_helps = self.what.authority.port != 443;
        let whole = best(Speaks::Yes, true);
        let inside = best(Speaks::Inside, true);
        let by_address = best(Speaks::Yes, false);
        match inside {
            Some(_) if inside_helps => whole.or(inside),
            _ => whole
                .or(by_address)
                .or(inside)
                .or_else(|| best(Speaks::Inside, false)),
        }
    }
}

fn hosts(rule: &RuleDocument) -> Vec<HostPattern> {
    let list = rule.hosts.iter().flatten();
    list.map(|raw| raw.parse().expect("a pattern")).collect()
}

fn ranges(rule: &RuleDocument) -> Vec<AddressRange> {
    let list = rule.addresses.iter().flatten();
    list.map(|raw| AddressRange::parse(raw).expect("a range"))
        .collect()
}

/// Whether a deny rule names an address, as a range or among its hosts.
fn denies(rule: &RuleDocument, ip: IpAddr) -> bool {
    ranges(rule).iter().any(|range| range.contains(ip))
        || hosts(rule).contains(&HostPattern::Exact(crate::egress::Host::Address(ip)))
}

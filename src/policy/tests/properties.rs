//! What holds of every policy, and the index against the reference.

use super::*;

const HOSTS: [&str; 8] = [
    "ex",
    "a.ex",
    "b.ex",
    "x.a.ex",
    "y.x.a.ex",
    "10.0.0.1",
    "8.8.8.8",
    "169.254.169.254",
];
const PATTERNS: [&str; 9] = [
    "*", "*.ex", "*.a.ex", "*.x.a.ex", "ex", "a.ex", "x.a.ex", "10.0.0.1", "8.8.8.8",
];
const RANGES: [&str; 6] = [
    "10.0.0.0/8",
    "10.0.0.1/32",
    "8.8.0.0/16",
    "169.254.0.0/16",
    "169.254.169.254/32",
    "0.0.0.0/0",
];
const ADDRESSES: [&str; 5] = [
    "10.0.0.1",
    "10.0.0.2",
    "8.8.8.8",
    "9.9.9.9",
    "169.254.169.254",
];
const AGENTS: [&str; 3] = ["bot", "ci-1", "ci-2"];

fn some_of(from: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(prop::sample::select(from).prop_map(str::to_owned), 1..3)
}

fn any_or(from: &'static [&'static str]) -> impl Strategy<Value = Option<AnyOr<String>>> {
    prop_oneof![
        3 => Just(None),
        1 => Just(Some(AnyOr::Any)),
        2 => some_of(from).prop_map(|list| Some(AnyOr::List(list))),
    ]
}

fn some_mode() -> impl Strategy<Value = Option<Mode>> {
    prop_oneof![3 => Just(None), 1 => Just(Some(Mode::Enforce)), 1 => Just(Some(Mode::Audit))]
}

fn a_rule() -> impl Strategy<Value = RuleDocument> {
    let agents = prop_oneof![
        Just(AnyOr::Any),
        some_of(&["bot", "ci-1", "ci-*", "c*"]).prop_map(AnyOr::List),
    ];
    let places = prop_oneof![
        3 => some_of(&PATTERNS).prop_map(|hosts| (Some(hosts), None)),
        1 => some_of(&RANGES).prop_map(|ranges| (None, Some(ranges))),
        1 => (some_of(&PATTERNS), some_of(&RANGES)).prop_map(|(h, r)| (Some(h), Some(r))),
    ];
    let ports = prop_oneof![
        2 => Just(None),
        1 => Just(Some(AnyOr::Any)),
        1 => prop::collection::vec(prop::sample::select(vec![80u64, 443, 8080]), 1..3)
            .prop_map(|list| Some(AnyOr::List(list.into_iter().map(PortEntry::Number).collect()))),
    ];
    let action = prop_oneof![2 => Just(Action::Allow), 1 => Just(Action::Deny)];
    (
        (action, agents, places, ports, some_mode()),
        (
            any_or(&["http", "https"]),
            any_or(&["GET", "PUT"]),
            any_or(&["/a/**", "/b"]),
        ),
    )
        .prop_map(
            |((action, agents, (hosts, addresses), ports, mode), limits)| RuleDocument {
                name: String::new(),
                action,
                agents,
                hosts,
                addresses,
                ports,
                schemes: limits.0,
                methods: limits.1,
                paths: limits.2,
                mode,
                tls: None,
                sni: None,
                rpc_methods: None,
                ech: None,
                refusal: None,
                limits: None,
                require: None,
            },
        )
}

fn a_document(tenant: Option<&'static str>) -> impl Strategy<Value = PolicyDocument> {
    let denied = prop::sample::select(vec!["b.ex", "*.x.a.ex", "10.0.0.2", "9.9.0.0/16"]);
    let denylist = prop::collection::vec(denied.prop_map(str::to_owned), 0..2);
    let agents = prop::sample::select(vec!["bot", "ci-1", "ci-*", "c*"]).prop_map(str::to_owned);
    let mode = prop_oneof![Just(Mode::Enforce), Just(Mode::Audit)];
    let agent_modes = prop::collection::btree_map(agents, mode, 0..3);
    let audit_addresses = prop::sample::select(vec![None, None, Some(false), Some(true)]);
    let rules = prop::collection::vec(a_rule(), 0..7);
    (some_mode(), agent_modes, audit_addresses, denylist, rules).prop_map(
        move |(mode, agent_modes, audit_addresses, denylist, mut rules)| {
            let agent_modes: Vec<_> = agent_modes.into_iter().collect();
            for (at, rule) in rules.iter_mut().enumerate() {
                rule.name = format!("{}{at}", tenant.unwrap_or("global"));
            }
            PolicyDocument {
                version: 1,
                tenant: tenant.map(str::to_owned),
                audience: None,
                mode,
                agent_modes: (!agent_modes.is_empty()).then_some(AgentModes(agent_modes)),
                audit_addresses,
                denylist,
                limits: None,
                rules,
            }
        },
    )
}

fn a_request() -> impl Strategy<Value = EgressRequest> {
    let ask = prop_oneof![
        Just("CONNECT".to_owned()),
        (
            prop::sample::select(vec!["GET", "PUT", "POST"]),
            prop::sample::select(vec!["http", "https"]),
        )
            .prop_map(|(method, scheme)| format!("{method} {scheme}://")),
    ];
    let path = prop::sample::select(vec!["/a", "/a/x", "/b", "/b/..%2fa/x", "/c"]);
    let port = prop::sample::select(vec![80u16, 443, 8080]);
    (ask, prop::sample::select(HOSTS.to_vec()), port, path).prop_map(|(ask, host, port, path)| {
        match ask.strip_suffix("://") {
            None => request(&format!("CONNECT {host}:{port}")),
            Some(_) => request(&format!("{ask}{host}:{port}{path}")),
        }
    })
}

fn some_destinations() -> impl Strategy<Value = Option<Vec<Destination>>> {
    let entry = prop::sample::select(vec!["*.ex", "a.ex", "10.0.0.0/8", "8.8.8.8", "*"]);
    let list = prop::collection::vec(entry.prop_map(|raw| raw.parse().expect("an entry")), 0..3);
    prop_oneof![2 => Just(None), 1 => list.prop_map(Some)]
}

fn a_case() -> impl Strategy<Value = (Vec<PolicyDocument>, Mode, Case)> {
    let documents = (
        prop::collection::vec(a_document(None), 0..3),
        prop::option::of(a_document(Some("acme"))),
    )
        .prop_map(|(mut documents, tenant)| {
            documents.extend(tenant);
            documents
        });
    let mode = prop_oneof![2 => Just(Mode::Enforce), 1 => Just(Mode::Audit)];
    let case = (
        prop::sample::select(AGENTS.to_vec()),
        prop::sample::select(vec![None, Some("acme")]),
        some_destinations(),
        a_request(),
    )
        .prop_map(|(agent, tenant, destinations, what)| Case {
            agent: AgentId::parse(agent).expect("an agent"),
            tenant: tenant.map(|raw| TenantId::parse(raw).expect("a tenant")),
            destinations,
            what,
        });
    (documents, mode, case)
}

#[derive(Clone, Debug)]
struct Case {
    agent: AgentId,
    tenant: Option<TenantId>,
    destinations: Option<Vec<Destination>>,
    what: EgressRequest,
}

impl Case {
    fn who(&self) -> Subject<'_> {
        Subject {
            agent: &self.agent,
            tenant: self.tenant.as_ref(),
            destinations: self.destinations.as_deref(),
            audiences: None,
        }
    }
}

fn set_of(documents: &[PolicyDocument], mode: Mode) -> PolicySet {
    let named = documents.iter().enumerate();
    let named = named.map(|(at, d)| (SourceName::from(format!("{at}")), d.clone()));
    PolicySet::build(named.collect(), mode).expect("a policy")
}

/// The mode of a document for an agent: the name, the longest beginning of it,
/// the document, the gateway.
fn mode_of(document: &PolicyDocument, agent: &AgentId, default_mode: Mode) -> Mode {
    let agents = document
        .agent_modes
        .as_ref()
        .map_or(&[][..], |modes| &modes.0);
    let exact = agents.iter().find(|(name, _)| name == agent.as_str());
    let begins = |(entry, _): &&(String, Mode)| {
        let prefix = entry.strip_suffix('*');
        prefix.is_some_and(|prefix| agent.as_str().starts_with(prefix))
    };
    let longest = agents
        .iter()
        .filter(begins)
        .max_by_key(|(entry, _)| entry.len());
    let own = exact.or(longest).map(|(_, mode)| *mode);
    own.or(document.mode).unwrap_or(default_mode)
}

/// Whether a request may pass, and the addresses that may be dialled for it,
/// without audit mode's help. A tunnel counts where it may carry anything: what
/// travels in another is judged, and so counted, as requests.
fn passes(set: &PolicySet, case: &Case) -> (bool, Vec<&'static str>) {
    match set.decide(&case.who(), &case.what) {
        Decision::Allow(permit)
            if permit.audited_denial().is_none() && permit.opaque_denial().is_none() =>
        {
            let dialled =
                |raw: &&str| matches!(permit.address(raw.parse().expect("an address")), Ok(None));
            (true, ADDRESSES.into_iter().filter(dialled).collect())
        }
        _ => (false, Vec::new()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        // A failure prints its smallest case; what it teaches belongs above.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_index_says_what_looking_through_all_rules_says((documents, mode, case) in a_case()) {
        let set = set_of(&documents, mode);
        let known = case.tenant.is_some() && documents.iter().any(|d| d.tenant.is_some());
        let mut apply: Vec<_> = documents
            .iter()
            .filter(|d| d.tenant.is_none() || known)
            .map(|d| (d, mode_of(d, &case.agent, mode)))
            .collect();
        apply.sort_by_key(|(d, _)| d.tenant.is_none());
        let reference = reference::Reference {
            documents: apply,
            default_mode: mode,
            what: &case.what,
            who: case.who(),
        };
        let decision = set.decide(&case.who(), &case.what);
        let said = match &decision {
            Decision::Deny(_) => reference::Said::Deny,
            Decision::Allow(permit) => reference::Said::Allow(
                permit.rule().map(|rule| rule.to_string()),
                permit.audited_denial().is_some(),
                permit.opaque(),
            ),
        };
        prop_assert_eq!(said, reference.decide());
        if let Decision::Allow(permit) = &decision {
            for address in ADDRESSES {
                let address: IpAddr = address.parse().expect("an address");
                let said = permit.address(address).ok().map(|audited| audited.is_some());
                prop_assert_eq!(said, reference.address(address), "{}", address);
            }
        }
        let explained = set.explain(&case.who(), &case.what, &[]);
        if matches!(decision, Decision::Deny(_)) {
            prop_assert_eq!(explained.verdict, Verdict::Deny);
        }
    }

    #[test]
    fn a_deny_rule_never_widens((documents, mode, case) in a_case(), mut rule in a_rule()) {
        let before = passes(&set_of(&documents, mode), &case);
        let mut more = documents;
        rule.name = "more".to_owned();
        rule.action = Action::Deny;
        for document in &mut more {
            document.rules.insert(0, rule.clone());
        }
        let after = passes(&set_of(&more, mode), &case);
        prop_assert!(before.0 || !after.0);
        prop_assert!(after.1.iter().all(|address| before.1.contains(address)));
    }

    #[test]
    fn a_token_never_widens((documents, mode, case) in a_case()) {
        let set = set_of(&documents, mode);
        let free = Case { destinations: None, ..case.clone() };
        let (narrow, wide) = (passes(&set, &case), passes(&set, &free));
        prop_assert!(wide.0 || !narrow.0);
        prop_assert!(narrow.1.iter().all(|address| wide.1.contains(address)));
    }

    #[test]
    fn nothing_passes_without_an_allow_rule((documents, mode, case) in a_case()) {
        let mut documents = documents;
        for document in &mut documents {
            document.rules.retain(|rule| rule.action == Action::Deny);
        }
        prop_assert!(!passes(&set_of(&documents, mode), &case).0);
    }

    #[test]
    fn another_tenants_document_changes_nothing((documents, mode, case) in a_case(), mut other in a_document(Some("other"))) {
        let before = set_of(&documents, mode);
        other.rules.retain(|rule| !rule.name.is_empty());
        let mut more = documents.clone();
        more.push(other);
        let after = set_of(&more, mode);
        // Without a document a tenant is everybody until one has a document.
        let known = documents.iter().any(|d| d.tenant.is_some());
        if case.tenant.is_none() || known {
            prop_assert_eq!(
                said(&before.decide(&case.who(), &case.what)),
                said(&after.decide(&case.who(), &case.what))
            );
        } else {
            prop_assert!(matches!(after.decide(&case.who(), &case.what), Decision::Deny(_)));
        }
    }

    #[test]
    fn a_set_that_takes_over_decides_as_one_made_anew((documents, mode, case) in a_case(), other in a_document(Some("acme"))) {
        let check = |at: usize, d: &PolicyDocument| {
            CheckedDocument::check(&SourceName::from(format!("{at}")), d, mode).expect("a document")
        };
        let checked: Vec<_> = documents.iter().enumerate().map(|(at, d)| check(at, d)).collect();
        let first = PolicySet::assemble(checked.clone(), false, mode, None).expect("a policy");
        // The tenant's document is another one, or is there for the first time.
        let mut next: Vec<_> = checked.into_iter().filter(|d| d.tenant().is_none()).collect();
        next.push(check(9, &other));
        let over = PolicySet::assemble(next.clone(), false, mode, Some(&first)).expect("a policy");
        let anew = PolicySet::assemble(next, false, mode, None).expect("a policy");
        prop_assert_eq!(over.digest(), anew.digest());
        prop_assert_eq!(
            said(&over.decide(&case.who(), &case.what)),
            said(&anew.decide(&case.who(), &case.what))
        );
    }

    #[test]
    fn the_order_of_documents_does_not_matter((documents, mode, case) in a_case()) {
        let named = |(at, d): (usize, &PolicyDocument)| (SourceName::from(format!("{at}")), d.clone());
        let mut shuffled: Vec<_> = documents.iter().enumerate().map(named).collect();
        shuffled.reverse();
        let (one, other) = (set_of(&documents, mode), PolicySet::build(shuffled, mode).expect("a policy"));
        prop_assert_eq!(one.digest(), other.digest());
        let said_by = |set: &PolicySet| said(&set.decide(&case.who(), &case.what));
        prop_assert_eq!(said_by(&one), said_by(&other));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
        for format in [Format::Yaml, Format::Json] {
            let document = PolicyDocument::parse(&"p".into(), format, &text);
            prop_assert!(document.is_err() || text.contains("version"));
        }
        let _ = locate(&text, &["rules[0].hosts"]);
    }
}

//! All documents in force: validated as a whole, and indexed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ring::digest::{SHA256, digest};

use super::document::{Action, Mode, PolicyDocument};
use super::finding::{Finding, PolicyError, Problem, SourceName};
use super::index::{HostSet, Index};
use super::limits;
use super::range::RangeSet;
use super::rule::{Place, Rule, compile};
use crate::egress::{Destination, Host, TenantId};
use crate::limit::Limit;

/// The policy in force: any number of global documents, and one for each tenant
/// that has its own. Cloning is cheap. A set never changes; a new version is a
/// new set.
#[derive(Clone, Debug)]
pub struct PolicySet {
    pub(super) rules: Arc<Rules>,
}

/// What a set holds, shared with the permits it gave.
#[derive(Debug)]
pub(super) struct Rules {
    /// In order of precedence: tenants' before global ones, documents by name,
    /// rules as written.
    rules: Vec<Rule>,
    pub(super) documents: Vec<Document>,
    global: Scope,
    tenants: Vec<Scope>,
    tenant_places: HashMap<TenantId, usize>,
    digest: Arc<str>,
}

/// The place of a rule in the order of precedence; less goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RuleId(u32);

/// What is kept of a document besides its rules, for explaining.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) source: SourceName,
    pub(super) tenant: Option<TenantId>,
    pub(super) denylist: Vec<Destination>,
    pub(super) rules: std::ops::Range<usize>,
    limits: Vec<Arc<Limit>>,
}

/// What holds for everybody, or for one tenant.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) allow: Index,
    pub(super) deny: Index,
    pub(super) denylists: Vec<Denylist>,
    pub(super) limits: Vec<Arc<Limit>>,
    /// Whether it binds that no rule allows a request.
    pub(super) mode: Mode,
}

/// The denylists of one mode, together.
#[derive(Debug)]
pub(super) struct Denylist {
    pub(super) mode: Mode,
    hosts: HostSet,
    pub(super) ranges: RangeSet,
}

impl PolicySet {
    /// Validates and indexes documents. Their order does not matter.
    /// `default_mode` is for documents that do not name one.
    ///
    /// # Errors
    /// Every mistake in every document.
    pub fn build(
        documents: Vec<(SourceName, PolicyDocument)>,
        default_mode: Mode,
    ) -> Result<Self, Vec<PolicyError>> {
        let mut errors = Vec::new();
        let digest = digest_of(&documents, default_mode);
        let mut documents = documents;
        documents.sort_by(|(a_name, a), (b_name, b)| {
            (a.tenant.is_none(), a_name).cmp(&(b.tenant.is_none(), b_name))
        });
        let mut rules = Vec::new();
        let mut kept: Vec<Document> = Vec::new();
        let mut modes = Vec::new();
        for (source, written) in &documents {
            let mode = written.mode.unwrap_or(default_mode);
            let tenant = read_head(source, written, &kept, &mut errors);
            let first = rules.len();
            read_rules(source, written, kept.len(), mode, &mut rules, &mut errors);
            kept.push(Document {
                source: source.clone(),
                tenant,
                denylist: read_denylist(source, written, &mut errors),
                limits: read_limits(source, written, mode, &mut errors),
                rules: first..rules.len(),
            });
            modes.push(mode);
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            rules: Arc::new(Rules::index(rules, kept, &modes, default_mode, digest)),
        })
    }

    /// The set that denies everything, whatever the gateway's mode.
    #[must_use]
    pub fn empty() -> Self {
        let digest = digest_of(&[], Mode::Enforce);
        Self {
            rules: Arc::new(Rules::index(
                Vec::new(),
                Vec::new(),
                &[],
                Mode::Enforce,
                digest,
            )),
        }
    }

    /// The set that `ALLOWED_DESTINATIONS` stands for, see
    /// [`PolicyDocument::from_allowed_destinations`].
    ///
    /// # Errors
    /// Every entry that is neither a host pattern nor a range.
    pub fn from_allowed_destinations(
        text: &str,
        default_mode: Mode,
    ) -> Result<Self, Vec<PolicyError>> {
        let source = SourceName::from("ALLOWED_DESTINATIONS");
        let document = PolicyDocument::from_allowed_destinations(&source, text)?;
        Self::build(vec![(source, document)], default_mode)
    }

    /// The version: 16 hexadecimal digits of a SHA-256 over what the documents
    /// say, whatever their order, names, comments and layout.
    #[must_use]
    pub fn digest(&self) -> &Arc<str> {
        &self.rules.digest
    }

    /// How many rules there are.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.rules.rules.len()
    }

    /// The tenants that have a document, in no order.
    pub fn tenants(&self) -> impl Iterator<Item = &TenantId> {
        self.rules.tenant_places.keys()
    }
}

impl Rules {
    fn index(
        rules: Vec<Rule>,
        documents: Vec<Document>,
        modes: &[Mode],
        default_mode: Mode,
        digest: Arc<str>,
    ) -> Self {
        let mut tenants = Vec::new();
        let mut tenant_places = HashMap::new();
        let mut globals = Vec::new();
        for (document, mode) in documents.iter().zip(modes) {
            match &document.tenant {
                None => globals.push((document, *mode)),
                Some(tenant) => {
                    tenant_places.insert(tenant.clone(), tenants.len());
                    tenants.push(Scope::index(&rules, &[(document, *mode)], *mode));
                }
            }
        }
        // Among several global documents one that enforces is enough.
        let mode = match globals.iter().any(|(_, mode)| *mode == Mode::Enforce) {
            true => Mode::Enforce,
            false if globals.is_empty() => default_mode,
            false => Mode::Audit,
        };
        Self {
            global: Scope::index(&rules, &globals, mode),
            tenants,
            tenant_places,
            digest,
            documents,
            rules,
        }
    }

    pub(super) fn rule(&self, id: RuleId) -> &Rule {
        // An id is made only with a rule of the same set, which never shrinks.
        &self.rules[id.0 as usize]
    }

    /// All rules, in order of precedence.
    pub(super) fn all(&self) -> impl Iterator<Item = (RuleId, &Rule)> {
        (0..).map(RuleId).zip(&self.rules)
    }

    /// Where a subject's tenant stands: `Ok(None)` where only the global
    /// documents are for it, `Err` where its tenant has none although tenants
    /// have documents.
    pub(super) fn place_of(&self, tenant: Option<&TenantId>) -> Result<Option<usize>, ()> {
        match tenant {
            Some(tenant) if !self.tenants.is_empty() => {
                self.tenant_places.get(tenant).copied().map(Some).ok_or(())
            }
            _ => Ok(None),
        }
    }

    /// The scopes that hold for a tenant, its own first.
    pub(super) fn scopes(&self, tenant: Option<usize>) -> impl Iterator<Item = &Scope> {
        tenant
            .and_then(|place| self.tenants.get(place))
            .into_iter()
            .chain([&self.global])
    }
}

impl Scope {
    fn index(rules: &[Rule], documents: &[(&Document, Mode)], mode: Mode) -> Self {
        let (mut allow, mut deny) = (Index::default(), Index::default());
        for (document, _) in documents {
            for at in document.rules.clone() {
                let (rule, id) = (&rules[at], id_of(at));
                match rule.action {
                    Action::Allow => allow.insert(id, rule, rule.hosts.is_empty()),
                    Action::Deny => deny.insert(id, rule, !rule.ranges.is_empty()),
                }
            }
        }
        // Those that bind first, so that they are what is reported.
        let denylists = [Mode::Enforce, Mode::Audit]
            .into_iter()
            .filter_map(|mode| Denylist::merge(documents, mode))
            .collect();
        Self {
            allow,
            deny,
            denylists,
            limits: documents
                .iter()
                .flat_map(|(document, _)| document.limits.iter().cloned())
                .collect(),
            mode,
        }
    }
}

/// A set has far fewer rules than 2^32: a document of 16 MiB holds some 200,000.
fn id_of(at: usize) -> RuleId {
    RuleId(u32::try_from(at).unwrap_or(u32::MAX))
}

impl Denylist {
    fn merge(documents: &[(&Document, Mode)], mode: Mode) -> Option<Self> {
        let mut hosts = HostSet::default();
        let mut ranges = Vec::new();
        let entries = documents
            .iter()
            .filter(|(_, document_mode)| *document_mode == mode)
            .flat_map(|(document, _)| &document.denylist);
        let mut empty = true;
        for entry in entries {
            empty = false;
            match entry {
                Destination::Host(pattern) => hosts.insert(pattern.clone()),
                Destination::Range(range) => ranges.push(*range),
            }
        }
        (!empty).then(|| Self {
            mode,
            hosts,
            ranges: RangeSet::new(ranges),
        })
    }

    /// Whether the list has a target by what it is called.
    pub(super) fn has_host(&self, host: &Host) -> bool {
        match host {
            Host::Address(address) if self.has_address(*address) => true,
            _ => self.hosts.contains(host),
        }
    }

    /// Whether the list has an address, in whatever form it is written.
    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        self.ranges.touches(address)
    }
}

/// Version and tenant.
fn read_head(
    source: &SourceName,
    written: &PolicyDocument,
    before: &[Document],
    errors: &mut Vec<PolicyError>,
) -> Option<TenantId> {
    let mut report = |path: &str, problem| errors.push(Finding::new(source, path, problem));
    if written.version != 1 {
        report("version", Problem::Version(written.version));
    }
    let raw = written.tenant.as_ref()?;
    match TenantId::parse(raw) {
        Ok(tenant) => {
            let other = before
                .iter()
                .find(|document| document.tenant.as_ref() == Some(&tenant));
            if let Some(other) = other {
                let problem = Problem::TenantTwice {
                    tenant: raw.clone(),
                    other: other.source.clone(),
                };
                report("tenant", problem);
            }
            Some(tenant)
        }
        Err(error) => {
            let raw = raw.clone();
            report("tenant", Problem::Tenant { raw, error });
            None
        }
    }
}

fn read_rules(
    source: &SourceName,
    written: &PolicyDocument,
    document: usize,
    mode: Mode,
    rules: &mut Vec<Rule>,
    errors: &mut Vec<PolicyError>,
) {
    let mut names: HashMap<&str, usize> = HashMap::new();
    for (position, rule) in written.rules.iter().enumerate() {
        let first = *names.entry(&rule.name).or_insert(position);
        if first != position {
            let problem = Problem::NameTwice {
                name: rule.name.clone(),
                first,
            };
            errors.push(Finding::new(
                source,
                format!("rules[{position}].name"),
                problem,
            ));
        }
        let place = Place {
            source,
            tenant: written.tenant.as_deref(),
            document,
            position,
        };
        rules.push(compile(rule, place, mode, errors));
    }
}

fn read_limits(
    source: &SourceName,
    written: &PolicyDocument,
    mode: Mode,
    errors: &mut Vec<PolicyError>,
) -> Vec<Arc<Limit>> {
    let Some(limits) = &written.limits else {
        return Vec::new();
    };
    limits::of_document(
        limits,
        written.tenant.as_deref(),
        mode,
        |member, problem| {
            errors.push(Finding::new(source, format!("limits{member}"), problem));
        },
    )
}

fn read_denylist(
    source: &SourceName,
    written: &PolicyDocument,
    errors: &mut Vec<PolicyError>,
) -> Vec<Destination> {
    let mut entries = Vec::with_capacity(written.denylist.len());
    for (at, raw) in written.denylist.iter().enumerate() {
        match Destination::parse(raw) {
            Ok(entry) => entries.push(entry),
            Err(error) => {
                let raw = raw.clone();
                let problem = Problem::Destination { raw, error };
                errors.push(Finding::new(source, format!("denylist[{at}]"), problem));
            }
        }
    }
    entries
}

/// Over the documents as they are understood, so that a comment makes no new
/// version.
fn digest_of(documents: &[(SourceName, PolicyDocument)], default_mode: Mode) -> Arc<str> {
    let mut parts: Vec<_> = documents
        .iter()
        .map(|(_, document)| {
            // Strings, numbers and lists: they cannot fail to be written.
            let normal = serde_json::to_vec(document).unwrap_or_default();
            digest(&SHA256, &normal).as_ref().to_vec()
        })
        .collect();
    parts.sort_unstable();
    parts.push(default_mode.as_str().as_bytes().to_vec());
    let whole = digest(&SHA256, &parts.concat());
    let hex: String = whole.as_ref()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    hex.into()
}

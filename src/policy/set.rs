//! All documents in force: each validated by itself, and put together.
//!
//! What holds for a tenant is indexed apart from what holds for everybody and
//! for other tenants. A new set takes over from the one before it what did not
//! change, so that a thousand tenants cost nothing when one of them does.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::sync::Arc;

use ring::digest::{Context, SHA256, digest};

use super::decision::DenyReason;
use super::document::{Action, Mode, PolicyDocument};
use super::finding::{Finding, PolicyError, Problem, SourceName};
use super::index::{HostSet, Index};
use super::limits;
use super::modes::Modes;
use super::range::RangeSet;
use super::rule::{Place, Rule, compile};
use crate::egress::{AgentId, Destination, Host, HostPattern, Subject, TenantId};
use crate::limit::Limit;

/// The policy in force: any number of global documents, and those of tenants:
/// one for each, or several that are for tokens of different audiences. Cloning is cheap. A set never changes; a new version is a
/// new set.
#[derive(Clone, Debug)]
pub struct PolicySet {
    pub(super) rules: Arc<Rules>,
}

/// One document, validated by itself. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct CheckedDocument(Arc<Document>);

/// What a set holds, shared with the permits it gave.
#[derive(Debug)]
pub(super) struct Rules {
    /// In order of precedence: tenants', by the names of their documents, then
    /// the global one, which is always there.
    scopes: Vec<Arc<Scope>>,
    /// The documents of each, at least one, in the order of their names.
    tenant_places: HashMap<TenantId, Vec<usize>>,
    /// Whether a tenant without a document is refused.
    by_tenant: bool,
    /// Whether any rule is about methods of JSON-RPC.
    about_calls: bool,
    /// Whether any document is for tokens of some audiences.
    by_audience: bool,
    digest: Arc<str>,
}

/// The place of a rule in the order of precedence; less goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RuleId {
    scope: u32,
    local: LocalId,
}

/// The place of a rule in its scope: documents by name, rules as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LocalId {
    document: u32,
    at: u32,
}

/// One document, as it is understood.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) source: SourceName,
    pub(super) tenant: Option<TenantId>,
    /// Whom its tenant's tokens must be for; empty for whomever.
    pub(super) audiences: Vec<String>,
    pub(super) modes: Modes,
    /// Whether audit mode also lets pass to addresses that are not public.
    pub(super) audit_addresses: bool,
    pub(super) denylist: Denylist,
    pub(super) limits: Vec<Arc<Limit>>,
    rules: Vec<Rule>,
    digest: [u8; 32],
}

/// What holds for everybody, or for one tenant.
#[derive(Debug)]
pub(super) struct Scope {
    documents: Vec<Arc<Document>>,
    pub(super) allow: Index,
    pub(super) deny: Index,
    /// What holds where there is no document.
    default_mode: Mode,
}

/// The denylist of a document.
#[derive(Debug, Default)]
pub(super) struct Denylist {
    /// As it is written.
    pub(super) entries: Vec<Destination>,
    hosts: HostSet,
    ranges: RangeSet,
}

impl CheckedDocument {
    /// Validates a document. `default_mode` is for one that does not name its
    /// own.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn check(
        source: &SourceName,
        written: &PolicyDocument,
        default_mode: Mode,
    ) -> Result<Self, Vec<PolicyError>> {
        let mut errors = Vec::new();
        let tenant = read_head(source, written, &mut errors);
        let document = Document {
            source: source.clone(),
            tenant,
            audiences: read_audiences(source, written, &mut errors),
            modes: Modes::read(source, written, default_mode, &mut errors),
            audit_addresses: written.audit_addresses.unwrap_or(false),
            rules: read_rules(source, written, &mut errors),
            denylist: read_denylist(source, written, &mut errors),
            limits: read_limits(source, written, &mut errors),
            digest: digest_of(written),
        };
        match errors.is_empty() {
            true => Ok(Self(Arc::new(document))),
            false => Err(errors),
        }
    }

    /// What it is called.
    #[must_use]
    pub fn source(&self) -> &SourceName {
        &self.0.source
    }

    /// Whether both came of one reading.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whom it is for; everybody, where it does not say.
    #[must_use]
    pub fn tenant(&self) -> Option<&TenantId> {
        self.0.tenant.as_ref()
    }

    /// Why it cannot be in force beside another: both are for the same tokens.
    #[must_use]
    pub fn clash(&self, other: &Self) -> Option<PolicyError> {
        self.0.clash(&other.0)
    }
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
        let mut documents = documents;
        documents.sort_by(|(a_name, a), (b_name, b)| {
            (a.tenant.is_none(), a_name).cmp(&(b.tenant.is_none(), b_name))
        });
        let (mut checked, mut errors) = (Vec::new(), Vec::new());
        // Two for one tenant are told of although one of them has mistakes.
        let mut before: HashMap<&str, Vec<(&SourceName, &[String])>> = HashMap::new();
        for (source, written) in &documents {
            match CheckedDocument::check(source, written, default_mode) {
                Ok(document) => checked.push(document),
                Err(more) => errors.extend(more),
            }
            if let Some(tenant) = &written.tenant {
                let own = (source, written.audience.as_deref().unwrap_or_default());
                let others = before.entry(tenant).or_default();
                let clash = others.iter().find_map(|other| clash(tenant, own, *other));
                errors.extend(clash);
                others.push(own);
            }
        }
        match errors.is_empty() {
            true => Self::assemble(checked, false, default_mode, None),
            false => Err(errors),
        }
    }

    /// Puts checked documents together. Their order does not matter. What did
    /// not change is taken over from `previous`.
    ///
    /// A tenant without a document is refused where any has one. `by_tenant`
    /// says that this holds although none has: the only one was deleted, or
    /// has a mistake.
    ///
    /// # Errors
    /// Each document that is for the same tokens as another one.
    pub fn assemble(
        documents: Vec<CheckedDocument>,
        by_tenant: bool,
        default_mode: Mode,
        previous: Option<&Self>,
    ) -> Result<Self, Vec<PolicyError>> {
        let by_tenant = by_tenant || documents.iter().any(|one| one.tenant().is_some());
        let digest = digest_of_all(&documents, by_tenant, default_mode);
        let mut documents: Vec<Arc<Document>> = documents.into_iter().map(|one| one.0).collect();
        documents
            .sort_by(|a, b| (a.tenant.is_none(), &a.source).cmp(&(b.tenant.is_none(), &b.source)));
        let (mut scopes, mut globals) = (Vec::new(), Vec::new());
        let mut tenant_places: HashMap<TenantId, Vec<usize>> = HashMap::new();
        let mut errors = Vec::new();
        for document in documents {
            let Some(tenant) = document.tenant.clone() else {
                globals.push(document);
                continue;
            };
            let known = previous.and_then(|set| set.rules.scope_over(&tenant, &document));
            let places = tenant_places.entry(tenant).or_default();
            let others = places.iter().map(|place: &usize| {
                let other: &Arc<Scope> = &scopes[*place];
                other
            });
            let clash = others
                .flat_map(|other| &other.documents)
                .find_map(|other| document.clash(other));
            if let Some(error) = clash {
                errors.push(error);
                continue;
            }
            places.push(scopes.len());
            scopes.push(Scope::over(vec![document], default_mode, known));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let known = previous.and_then(|set| set.rules.scopes.last());
        scopes.push(Scope::over(globals, default_mode, known));
        Ok(Self {
            rules: Arc::new(Rules {
                about_calls: scopes.iter().any(|scope| scope.is_about_calls()),
                by_audience: scopes.iter().any(|scope| !scope.audiences().is_empty()),
                scopes,
                tenant_places,
                by_tenant,
                digest,
            }),
        })
    }

    /// The set that denies everything, whatever the gateway's mode.
    #[must_use]
    pub fn empty() -> Self {
        let mode = Mode::Enforce;
        Self {
            rules: Arc::new(Rules {
                scopes: vec![Scope::over(Vec::new(), mode, None)],
                tenant_places: HashMap::new(),
                by_tenant: false,
                about_calls: false,
                by_audience: false,
                digest: digest_of_all(&[], false, mode),
            }),
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
    /// in force say, whatever their order, names, comments and layout.
    #[must_use]
    pub fn digest(&self) -> &Arc<str> {
        &self.rules.digest
    }

    /// How many rules there are.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.rules
            .documents()
            .map(|document| document.rules.len())
            .sum()
    }

    /// Whether it asks of any tenant's tokens for whom they are.
    #[must_use]
    pub fn asks_for_audiences(&self) -> bool {
        self.rules.by_audience
    }

    /// The tenants that have a document, in no order.
    pub fn tenants(&self) -> impl Iterator<Item = &TenantId> {
        self.rules.tenant_places.keys()
    }
}

impl Rules {
    /// Whether any rule is about methods of JSON-RPC.
    pub(super) fn are_about_calls(&self) -> bool {
        self.about_calls
    }

    pub(super) fn rule(&self, id: RuleId) -> &Rule {
        // An id is made only with a rule of the same set, which never shrinks.
        self.scopes[id.scope as usize].rule(id.local)
    }

    /// The document that a rule is in.
    pub(super) fn document(&self, id: RuleId) -> &Document {
        &self.scopes[id.scope as usize].documents[id.local.document as usize]
    }

    /// Whether a rule binds for an agent: by its own mode, or its document's.
    pub(super) fn mode(&self, id: RuleId, agent: &AgentId) -> Mode {
        let own = self.rule(id).mode;
        own.unwrap_or_else(|| self.document(id).modes.of(agent))
    }

    /// All documents, in order of precedence.
    pub(super) fn documents(&self) -> impl Iterator<Item = &Document> {
        let documents = self.scopes.iter().flat_map(|scope| &scope.documents);
        documents.map(|document| &**document)
    }

    /// All rules, in order of precedence.
    pub(super) fn all(&self) -> impl Iterator<Item = (RuleId, &Rule)> {
        let scopes = (0..).zip(&self.scopes);
        scopes.flat_map(|(scope, held)| {
            held.all()
                .map(move |(local, rule)| (RuleId { scope, local }, rule))
        })
    }

    /// Where the document of a subject's tenant stands: `Ok(None)` where only
    /// the global documents are for it.
    ///
    /// # Errors
    /// Its tenant has none although tenants have documents, or none that is for
    /// this token.
    pub(super) fn place_of(&self, who: &Subject<'_>) -> Result<Option<usize>, DenyReason> {
        self.place_for(who.tenant, who.audiences)
    }

    /// The same, for a token of a tenant that is for these; `None` for one that
    /// does not say, and for what is no token.
    ///
    /// # Errors
    /// As [`Rules::place_of`].
    pub(super) fn place_for(
        &self,
        tenant: Option<&TenantId>,
        audiences: Option<&[String]>,
    ) -> Result<Option<usize>, DenyReason> {
        let Some(tenant) = tenant.filter(|_| self.by_tenant) else {
            return Ok(None);
        };
        let places = self.tenant_places.get(tenant);
        let places = places.ok_or(DenyReason::UnknownTenant)?;
        let place = self.among(places, audiences);
        place.map(Some).ok_or(DenyReason::TenantAudience)
    }

    /// Which of a tenant's documents is for a token: the one that names one of
    /// its audiences, else the one that names none. Where two name some of
    /// them, nobody can tell which is meant.
    fn among(&self, places: &[usize], audiences: Option<&[String]>) -> Option<usize> {
        let of = |place: usize| self.scopes[place].audiences();
        let names = |place: &usize| {
            let mut own = audiences.unwrap_or_default().iter();
            own.any(|audience| of(*place).contains(audience))
        };
        let mut naming = places.iter().copied().filter(names);
        match (naming.next(), naming.next(), places) {
            (Some(only), None, _) => Some(only),
            (Some(_), Some(_), _) => None,
            (None, _, [only]) if audiences.is_none() => Some(*only),
            (None, ..) => places.iter().copied().find(|place| of(*place).is_empty()),
        }
    }

    /// A tenant's documents, in the order of their names.
    pub(super) fn documents_of(&self, tenant: &TenantId) -> impl Iterator<Item = &Document> {
        let places = self.tenant_places.get(tenant);
        places
            .into_iter()
            .flatten()
            .flat_map(|place| &self.scopes[*place].documents)
            .map(|document| &**document)
    }

    /// The document of a tenant at this place.
    pub(super) fn document_at(&self, place: usize) -> Option<&Document> {
        let scope = self.scopes.get(place)?;
        scope.documents.first().map(|document| &**document)
    }

    /// All rules that hold for whom the document at this place is for, in
    /// order of precedence.
    pub(super) fn at(&self, place: Option<usize>) -> impl Iterator<Item = (RuleId, &Rule)> {
        self.scopes(place).flat_map(|(scope, held)| {
            held.all()
                .map(move |(local, rule)| (RuleId { scope, local }, rule))
        })
    }

    /// The scopes that hold for a tenant, its own first.
    pub(super) fn scopes(&self, tenant: Option<usize>) -> impl Iterator<Item = (u32, &Scope)> {
        let global = self.scopes.len().saturating_sub(1);
        tenant
            .into_iter()
            .chain([global])
            .filter_map(|place| Some((number(place), &**self.scopes.get(place)?)))
    }

    /// The scope over this very document of a tenant.
    fn scope_over(&self, tenant: &TenantId, document: &Arc<Document>) -> Option<&Arc<Scope>> {
        let places = self.tenant_places.get(tenant)?.iter();
        let mut scopes = places.map(|place| &self.scopes[*place]);
        scopes.find(|scope| scope.documents.iter().any(|one| Arc::ptr_eq(one, document)))
    }
}

impl RuleId {
    pub(super) fn new(scope: u32, local: LocalId) -> Self {
        Self { scope, local }
    }

    /// Something that is equal for the rules of one document.
    pub(super) fn in_document(self) -> (u32, u32) {
        (self.scope, self.local.document)
    }
}

impl Document {
    /// Why it cannot be in force beside another.
    fn clash(&self, other: &Self) -> Option<PolicyError> {
        let tenant = self.tenant.as_ref()?;
        let is_of_it = other.tenant.as_ref() == Some(tenant);
        let [own, other] = [self, other].map(|one| (&one.source, &*one.audiences));
        is_of_it
            .then(|| clash(tenant.as_str(), own, other))
            .flatten()
    }
}

impl Scope {
    /// Whom tokens must be for; empty for whomever.
    fn audiences(&self) -> &[String] {
        let document = self.documents.first();
        document.map_or(&[], |document| &document.audiences)
    }

    fn is_about_calls(&self) -> bool {
        let mut rules = self.documents.iter().flat_map(|document| &document.rules);
        rules.any(|rule| !rule.rpc_methods.is_empty())
    }

    /// The scope over these documents, which is the known one where that is
    /// over the same.
    fn over(
        documents: Vec<Arc<Document>>,
        default_mode: Mode,
        known: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let same = known.filter(|known| {
            known.default_mode == default_mode
                && known.documents.len() == documents.len()
                && known
                    .documents
                    .iter()
                    .zip(&documents)
                    .all(|(a, b)| Arc::ptr_eq(a, b))
        });
        match same {
            Some(known) => Arc::clone(known),
            None => Arc::new(Self::index(documents, default_mode)),
        }
    }

    fn index(documents: Vec<Arc<Document>>, default_mode: Mode) -> Self {
        let mut scope = Self {
            documents,
            allow: Index::default(),
            deny: Index::default(),
            default_mode,
        };
        for (document, held) in (0..).zip(&scope.documents) {
            for (at, rule) in (0..).zip(&held.rules) {
                let id = LocalId { document, at };
                match rule.action {
                    Action::Allow => scope.allow.insert(id, rule, rule.hosts.is_empty()),
                    Action::Deny => scope.deny.insert(id, rule, !rule.ranges.is_empty()),
                }
            }
        }
        scope
    }

    pub(super) fn documents(&self) -> impl Iterator<Item = &Document> {
        self.documents.iter().map(|document| &**document)
    }

    pub(super) fn rule(&self, id: LocalId) -> &Rule {
        // As for the set: an id is made only with a rule of this scope.
        &self.documents[id.document as usize].rules[id.at as usize]
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (LocalId, &Rule)> {
        let documents = (0..).zip(&self.documents);
        documents.flat_map(|(document, held)| {
            (0..)
                .zip(&held.rules)
                .map(move |(at, rule)| (LocalId { document, at }, rule))
        })
    }

    /// The denylists, each with whether it binds for an agent.
    pub(super) fn denylists<'a>(
        &'a self,
        agent: &'a AgentId,
    ) -> impl Iterator<Item = (Mode, &'a Denylist)> {
        self.documents
            .iter()
            .filter(|document| !document.denylist.entries.is_empty())
            .map(move |document| (document.modes.of(agent), &document.denylist))
    }

    /// The limits of the documents, each with whether it binds for an agent.
    pub(super) fn limits<'a>(
        &'a self,
        agent: &'a AgentId,
    ) -> impl Iterator<Item = (Mode, &'a Arc<Limit>)> {
        self.documents.iter().flat_map(move |document| {
            let of = move |limit| (document.modes.of(agent), limit);
            document.limits.iter().map(of)
        })
    }

    /// Whether it binds for an agent that no rule allows a request. Among
    /// several documents one that enforces is enough.
    pub(super) fn mode(&self, agent: &AgentId) -> Mode {
        let mut modes = self
            .documents
            .iter()
            .map(|document| document.modes.of(agent));
        match modes.next() {
            None => self.default_mode,
            Some(Mode::Audit) if modes.all(|mode| mode == Mode::Audit) => Mode::Audit,
            Some(_) => Mode::Enforce,
        }
    }

    /// Whether a document here opens its audit mode to addresses.
    pub(super) fn audits_addresses(&self) -> bool {
        self.documents
            .iter()
            .any(|document| document.audit_addresses)
    }
}

/// A set has far fewer scopes than 2^32.
fn number(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

impl Denylist {
    fn new(entries: Vec<Destination>) -> Self {
        let exact =
            |entry: &&Destination| matches!(entry, Destination::Host(HostPattern::Exact(_)));
        let mut hosts = HostSet::with_room(entries.iter().filter(exact).count());
        let mut ranges = Vec::new();
        for entry in &entries {
            match entry {
                Destination::Host(pattern) => hosts.insert(pattern.clone()),
                Destination::Range(range) => ranges.push(*range),
            }
        }
        Self {
            entries,
            hosts,
            ranges: RangeSet::new(ranges),
        }
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
    errors: &mut Vec<PolicyError>,
) -> Option<TenantId> {
    let mut report = |path: &str, problem| errors.push(Finding::new(source, path, problem));
    if written.version != 1 {
        report("version", Problem::Version(written.version));
    }
    let raw = written.tenant.as_ref()?;
    TenantId::parse(raw)
        .map_err(|error| {
            let raw = raw.clone();
            report("tenant", Problem::Tenant { raw, error });
        })
        .ok()
}

/// Whom the tenant's tokens must be for.
fn read_audiences(
    source: &SourceName,
    written: &PolicyDocument,
    errors: &mut Vec<PolicyError>,
) -> Vec<String> {
    let Some(audiences) = &written.audience else {
        return Vec::new();
    };
    let mut report = |path: String, problem| errors.push(Finding::new(source, path, problem));
    if written.tenant.is_none() {
        report("audience".to_owned(), Problem::AudienceWithoutTenant);
    }
    if audiences.is_empty() {
        report("audience".to_owned(), Problem::EmptyList);
    }
    for (at, audience) in audiences.iter().enumerate() {
        let plain = !audience.contains(|c: char| c.is_control());
        if !plain || !(1..=256).contains(&audience.len()) {
            report(
                format!("audience[{at}]"),
                Problem::Audience(audience.clone()),
            );
        }
    }
    audiences.clone()
}

/// Why a document of a tenant cannot be in force beside another: each with the
/// audiences that it names.
fn clash(
    tenant: &str,
    (source, audiences): (&SourceName, &[String]),
    (other, others): (&SourceName, &[String]),
) -> Option<PolicyError> {
    let (tenant, other) = (tenant.to_owned(), other.clone());
    if audiences.is_empty() && others.is_empty() {
        let problem = Problem::TenantTwice { tenant, other };
        return Some(Finding::new(source, "tenant", problem));
    }
    let shared = |(_, audience): &(usize, &String)| others.contains(audience);
    let (at, audience) = audiences.iter().enumerate().find(shared)?;
    let audience = audience.clone();
    let problem = Problem::AudienceTwice {
        tenant,
        audience,
        other,
    };
    Some(Finding::new(source, format!("audience[{at}]"), problem))
}

fn read_rules(
    source: &SourceName,
    written: &PolicyDocument,
    errors: &mut Vec<PolicyError>,
) -> Vec<Rule> {
    let mut names: HashMap<&str, usize> = HashMap::with_capacity(written.rules.len());
    let mut rules = Vec::with_capacity(written.rules.len());
    let owner = limits::owner_of(written);
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
            owner: owner.as_deref(),
            position,
        };
        rules.push(compile(rule, place, errors));
    }
    rules
}

fn read_limits(
    source: &SourceName,
    written: &PolicyDocument,
    errors: &mut Vec<PolicyError>,
) -> Vec<Arc<Limit>> {
    let Some(limits) = &written.limits else {
        return Vec::new();
    };
    limits::of_document(
        limits,
        limits::owner_of(written).as_deref(),
        |member, problem| {
            errors.push(Finding::new(source, format!("limits{member}"), problem));
        },
    )
}

fn read_denylist(
    source: &SourceName,
    written: &PolicyDocument,
    errors: &mut Vec<PolicyError>,
) -> Denylist {
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
    Denylist::new(entries)
}

/// Over the document as it is understood, so that a comment makes no new
/// version.
fn digest_of(document: &PolicyDocument) -> [u8; 32] {
    // As it is written, since a long one has megabytes. Strings, numbers and
    // lists: they cannot fail to be written, nor can a digest to take them.
    let mut normal = BufWriter::with_capacity(16 * 1024, Digesting(Context::new(&SHA256)));
    let written = serde_json::to_writer(&mut normal, document);
    let mut out = [0; 32];
    if let (Ok(()), Ok(whole)) = (written, normal.into_inner()) {
        out.copy_from_slice(whole.0.finish().as_ref());
    }
    out
}

/// Takes what is written into a digest.
struct Digesting(Context);

impl Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Over all that decides: the documents in force, and what holds without them.
fn digest_of_all(documents: &[CheckedDocument], by_tenant: bool, default_mode: Mode) -> Arc<str> {
    let mut parts: Vec<&[u8]> = documents.iter().map(|one| &one.0.digest[..]).collect();
    parts.sort_unstable();
    parts.push(default_mode.as_str().as_bytes());
    if by_tenant {
        parts.push(b" by tenant");
    }
    let whole = digest(&SHA256, &parts.concat());
    let hex: String = whole.as_ref()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    hex.into()
}

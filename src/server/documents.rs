//! The policy's documents, file by file: what each says, and what it said last
//! without a mistake.
//!
//! Files are rotated independently of one another. One that cannot be read or
//! has a mistake stands for what it last said; what is new of all others comes
//! into force. Where it has never said anything, its tenant is refused, and a
//! gateway that starts with such a global document does not start. A file that
//! is gone says nothing any more, and its tenant is refused. A tenant may have
//! several documents, for tokens of different audiences.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ring::digest::{SHA256, digest};
use serde::Serialize;

use crate::adapters::watch::Version;
use crate::config::Config;
use crate::egress::TenantId;
use crate::policy::{
    CheckedDocument, KnownRules, Mode, PolicyDocument, PolicyError, PolicySet, SourceName,
};

use super::load::{LoadError, format_of, policy_files, read_text, read_text_version, short_form};

/// All documents that the configuration names. It remembers what it has read,
/// so that only files that have changed cost anything.
pub(super) struct Documents {
    path: Option<PathBuf>,
    /// What `allowed_destinations` stands for.
    short_form: Option<CheckedDocument>,
    mode: Mode,
    files: HashMap<PathBuf, Known>,
    /// The set that [`Documents::load`] gave last.
    last: Option<PolicySet>,
    /// The documents of each tenant in that set.
    tenants: BTreeMap<TenantId, Vec<CheckedDocument>>,
    /// Whether a tenant ever had a document.
    by_tenant: bool,
}

/// What is known of one file.
#[derive(Default)]
struct Known {
    /// Of the text that was looked at last.
    hash: Option<[u8; 32]>,
    /// Of the file with that text, where it tells whether it has changed.
    version: Option<Version>,
    /// A text that was read before it was looked at, which it may never be.
    ahead: Option<Ahead>,
    /// What it last said without a mistake.
    good: Option<CheckedDocument>,
    /// Its rules as they were read, where they are many.
    rules: KnownRules,
    /// What is wrong with the text that was looked at last.
    mistake: Option<Mistake>,
}

/// A text, and what it says.
struct Ahead {
    text: String,
    hash: [u8; 32],
    outcome: Result<CheckedDocument, Mistake>,
}

#[derive(Clone)]
struct Mistake {
    error: String,
    /// Whom the text is for, as far as it tells.
    tenant: Option<TenantId>,
}

/// What the files amount to.
pub(super) struct Loaded {
    pub(super) policy: PolicySet,
    /// In the order of the files' names.
    pub(super) refused: Vec<RefusedDocument>,
}

/// A document that is not in force as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct RefusedDocument {
    /// The file.
    pub(super) document: String,
    /// Whom it is for, where that is known and not everybody.
    pub(super) tenant: Option<String>,
    /// Whether what it said before stays in force; else nothing of it is, and
    /// its tenant is refused.
    pub(super) last_good_in_force: bool,
    /// What is wrong, with the place and what to write.
    pub(super) error: String,
}

impl fmt::Display for RefusedDocument {
    /// What is wrong.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl Documents {
    /// None is read yet.
    ///
    /// # Errors
    /// Every mistake in `allowed_destinations`.
    pub(super) fn new(config: &Config) -> Result<Self, LoadError> {
        let mode = config.mode;
        let short_form = short_form(config)?
            .map(|source| CheckedDocument::check(&source.name, &source.document, mode))
            .transpose()
            .map_err(|errors| LoadError::of(&errors))?;
        Ok(Self::over(config.policy.clone(), short_form, mode))
    }

    fn over(path: Option<PathBuf>, short_form: Option<CheckedDocument>, mode: Mode) -> Self {
        Self {
            path,
            short_form,
            mode,
            files: HashMap::new(),
            last: None,
            tenants: BTreeMap::new(),
            by_tenant: false,
        }
    }

    /// Reads what seems to have changed, so that [`Documents::load`] finds it
    /// read. Nothing comes into force by it: what it reads may be half of
    /// what is being written.
    pub(super) fn read_ahead(&mut self) {
        let Some(Ok(paths)) = self.path.as_deref().map(policy_files) else {
            return;
        };
        for path in paths {
            let known = self.files.entry(path.clone()).or_default();
            known.read_ahead(&path, self.mode);
        }
    }

    /// Has [`Documents::load`] read every file, whether it seems to have
    /// changed or not.
    pub(super) fn distrust(&mut self) {
        for known in self.files.values_mut() {
            known.version = None;
        }
    }

    /// Reads what has changed and puts all together.
    ///
    /// # Errors
    /// Where the path itself cannot be read; and, the first time, a mistake
    /// that concerns more than one tenant. Nothing changes then.
    pub(super) fn load(&mut self) -> Result<Loaded, LoadError> {
        let paths = match &self.path {
            Some(path) => policy_files(path)?,
            None => Vec::new(),
        };
        let mode = self.mode;
        let mut before = std::mem::take(&mut self.files);
        for path in &paths {
            let mut known = before.remove(path).unwrap_or_default();
            known.look(path, mode);
            self.files.insert(path.clone(), known);
        }
        let mut chosen = Chosen::of(&paths, &self.files, &self.tenants);
        if self.last.is_none() {
            chosen.may_start(&self.files)?;
        }
        self.by_tenant |= chosen.by_tenant;
        let mut documents = chosen.globals;
        documents.extend(chosen.tenants.values().flatten().cloned());
        documents.extend(self.short_form.clone());
        let policy = PolicySet::assemble(documents, self.by_tenant, mode, self.last.as_ref())
            .map_err(|errors| LoadError::of(&errors))?;
        self.last = Some(policy.clone());
        self.tenants = chosen.tenants;
        chosen.refused.sort_by(|a, b| a.document.cmp(&b.document));
        Ok(Loaded {
            policy,
            refused: chosen.refused,
        })
    }
}

impl Known {
    /// Reads the file where it has changed, and parses it where it says
    /// something new.
    fn look(&mut self, path: &Path, mode: Mode) {
        if self.is_as_it_was(path) {
            return;
        }
        self.version = None;
        let (text, version) = match read_text_version(path) {
            Ok(read) => read,
            Err(error) => {
                self.hash = None;
                let tenant = None;
                self.mistake = Some(Mistake { error, tenant });
                return;
            }
        };
        self.version = version.is_telling(SystemTime::now()).then_some(version);
        let ahead = self.ahead.take().filter(|ahead| ahead.text == text);
        let hash = ahead
            .as_ref()
            .map_or_else(|| hash_of(&text), |ahead| ahead.hash);
        if self.hash == Some(hash) {
            return;
        }
        self.hash = Some(hash);
        let outcome = match ahead {
            Some(ahead) => ahead.outcome,
            None => self.parse(path, &text, mode),
        };
        match outcome {
            Ok(document) => {
                self.good = Some(document);
                self.mistake = None;
            }
            Err(mistake) => self.mistake = Some(mistake),
        }
    }

    /// Does what takes long of [`Known::look`].
    fn read_ahead(&mut self, path: &Path, mode: Mode) {
        if self.is_as_it_was(path) {
            return;
        }
        let Ok(text) = read_text(path) else {
            return;
        };
        let hash = hash_of(&text);
        let known = self.ahead.as_ref().map(|ahead| ahead.hash).or(self.hash);
        if known != Some(hash) {
            let outcome = self.parse(path, &text, mode);
            self.ahead = Some(Ahead {
                text,
                hash,
                outcome,
            });
        }
    }

    fn is_as_it_was(&self, path: &Path) -> bool {
        self.version
            .is_some_and(|known| Version::under(path).is_ok_and(|now| now == known))
    }

    fn parse(&mut self, path: &Path, text: &str, mode: Mode) -> Result<CheckedDocument, Mistake> {
        let format = format_of(path);
        let source = SourceName::from(path.display().to_string());
        PolicyDocument::parse_again(&source, format, text, &mut self.rules)
            .map_err(|first| PolicyDocument::mistakes(&source, format, text, first))
            .and_then(|written| CheckedDocument::check(&source, &written, mode))
            .map_err(|mut errors| {
                PolicyError::locate(&mut errors, &source, text);
                Mistake {
                    error: LoadError::of(&errors).to_string(),
                    tenant: PolicyDocument::tenant_in(format, text),
                }
            })
    }
}

fn hash_of(text: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    hash
}

/// What of the files is to be in force.
#[derive(Default)]
struct Chosen {
    globals: Vec<CheckedDocument>,
    tenants: BTreeMap<TenantId, Vec<CheckedDocument>>,
    refused: Vec<RefusedDocument>,
    by_tenant: bool,
}

impl Chosen {
    fn of(
        paths: &[PathBuf],
        files: &HashMap<PathBuf, Known>,
        in_force: &BTreeMap<TenantId, Vec<CheckedDocument>>,
    ) -> Self {
        let mut chosen = Self::default();
        // Sound files go first: what a file with a mistake said before must
        // not stand in the way of a new file for the same tokens.
        let known = || {
            paths
                .iter()
                .filter_map(|path| Some((path, files.get(path)?)))
        };
        let sound = known().filter(|(_, known)| known.mistake.is_none());
        let unsound = known().filter(|(_, known)| known.mistake.is_some());
        let mut unclear: Vec<TenantId> = Vec::new();
        for (path, known) in sound.chain(unsound) {
            let tenant = known.good.as_ref().and_then(CheckedDocument::tenant);
            let claimed = known.mistake.as_ref().and_then(|m| m.tenant.as_ref());
            chosen.by_tenant |= tenant.or(claimed).is_some();
            let mut stands = known.good.is_some();
            match (&known.good, tenant) {
                (None, _) => {}
                (Some(document), None) => chosen.globals.push(document.clone()),
                (Some(document), Some(tenant)) => {
                    let others = chosen.tenants.entry(tenant.clone()).or_default();
                    match others.iter().find_map(|other| document.clash(other)) {
                        None => others.push(document.clone()),
                        Some(_) if known.mistake.is_some() => stands = false,
                        Some(clash) => {
                            chosen.refused.push(RefusedDocument {
                                document: path.display().to_string(),
                                tenant: Some(tenant.to_string()),
                                last_good_in_force: in_force.contains_key(tenant),
                                error: with_its_place(clash, document.source(), path),
                            });
                            unclear.push(tenant.clone());
                        }
                    }
                }
            }
            if let Some(mistake) = &known.mistake {
                chosen.refused.push(RefusedDocument {
                    document: path.display().to_string(),
                    tenant: tenant.or(claimed).map(ToString::to_string),
                    last_good_in_force: stands,
                    error: mistake.error.clone(),
                });
                // Which of its tenant's tokens it would be for nobody knows, and
                // another document is not to be theirs in its place.
                if known.good.is_none()
                    && let Some(claimed) = claimed
                    && !in_force.contains_key(claimed)
                {
                    unclear.push(claimed.clone());
                }
            }
        }
        // Which of two is meant nobody can tell: what was in force stays.
        for tenant in unclear {
            match in_force.get(&tenant) {
                Some(documents) => chosen.tenants.insert(tenant, documents.clone()),
                None => chosen.tenants.remove(&tenant),
            };
        }
        chosen
    }

    /// A gateway starts without a tenant, but not without a global document,
    /// whose denylist binds all; nor where no document is any good.
    fn may_start(&self, files: &HashMap<PathBuf, Known>) -> Result<(), LoadError> {
        let for_all = self.refused.iter().any(|refused| refused.tenant.is_none());
        let none_good = files.values().all(|known| known.good.is_none());
        if self.refused.is_empty() || !(for_all || none_good) {
            return Ok(());
        }
        let errors = self.refused.iter().map(|refused| refused.error.clone());
        Err(LoadError(errors.collect()))
    }
}

/// What is wrong with a document that is good by itself, with its line.
fn with_its_place(error: PolicyError, source: &SourceName, path: &Path) -> String {
    let mut errors = [error];
    if let Ok(text) = read_text(path) {
        PolicyError::locate(&mut errors, source, &text);
    }
    errors[0].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::{AgentId, Ask, Authority, EgressRequest, Subject};
    use crate::policy::{Decision, DenyReason};

    /// A directory with these files.
    struct Folder(tempfile::TempDir);

    impl Folder {
        fn with(files: &[(&str, &str)]) -> Self {
            let folder = Self(tempfile::tempdir().expect("a folder"));
            for (name, text) in files {
                folder.write(name, text);
            }
            folder
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.path().join(name), text).expect("written");
        }

        fn remove(&self, name: &str) {
            std::fs::remove_file(self.0.path().join(name)).expect("removed");
        }

        fn documents(&self) -> Documents {
            Documents::over(Some(self.0.path().to_owned()), None, Mode::Enforce)
        }
    }

    fn allows(tenant: &str, host: &str) -> String {
        let head = match tenant {
            "" => String::new(),
            tenant => format!("tenant: {tenant}\n"),
        };
        format!(
            "version: 1\n{head}rules:\n  - {{name: r, action: allow, agents: any, hosts: [{host}]}}\n"
        )
    }

    /// What becomes of a request of this tenant for this host.
    fn asked(loaded: &Loaded, tenant: &str, host: &str) -> &'static str {
        let agent = AgentId::parse("bot").expect("an agent");
        let tenant = (!tenant.is_empty()).then(|| TenantId::parse(tenant).expect("a tenant"));
        let who = Subject {
            agent: &agent,
            tenant: tenant.as_ref(),
            destinations: None,
            audiences: None,
        };
        let what = EgressRequest {
            authority: Authority::parse(&format!("{host}:443")).expect("an authority"),
            ask: Ask::Tunnel,
        };
        match loaded.policy.decide(&who, &what) {
            Decision::Allow(_) => "allowed",
            Decision::Deny(denied) if denied.reason() == DenyReason::UnknownTenant => "unknown",
            Decision::Deny(denied) => denied.reason().as_str(),
        }
    }

    const BROKEN: &str = "version: 1\ntenant: a\nrules: [{name: \n";

    #[test]
    fn a_mistake_is_that_of_one_tenant() {
        let folder = Folder::with(&[
            ("a.yaml", &allows("a", "a1.example")),
            ("b.yaml", &allows("b", "b1.example")),
            ("all.yaml", "version: 1\ndenylist: [evil.example]\n"),
        ]);
        let mut documents = folder.documents();
        let first = documents.load().expect("a policy");
        assert_eq!(asked(&first, "a", "a1.example"), "allowed");
        assert_eq!(asked(&first, "a", "b1.example"), "no_rule");
        assert_eq!(asked(&first, "c", "a1.example"), "unknown");
        assert_eq!(asked(&first, "", "a1.example"), "no_rule");
        assert!(first.refused.is_empty());

        for (case, text) in [
            ("not YAML", BROKEN.to_owned()),
            ("a bad host", allows("a", "'b c'")),
            ("without its head", "rules: []\n".to_owned()),
            ("empty", String::new()),
        ] {
            folder.write("a.yaml", &text);
            folder.write("b.yaml", &allows("b", "b2.example"));
            let loaded = documents.load().expect("a policy");
            assert_eq!(asked(&loaded, "a", "a1.example"), "allowed", "{case}");
            assert_eq!(asked(&loaded, "b", "b2.example"), "allowed", "{case}");
            assert_eq!(asked(&loaded, "b", "b1.example"), "no_rule", "{case}");
            let [refused] = loaded.refused.as_slice() else {
                panic!("{case}: {:?}", loaded.refused);
            };
            assert!(refused.document.ends_with("a.yaml"), "{case}: {refused:?}");
            assert!(refused.error.contains("a.yaml"), "{case}: {refused:?}");
            assert_eq!(refused.tenant.as_deref(), Some("a"), "{case}");
            assert!(refused.last_good_in_force, "{case}");
            let mixed = loaded.policy.digest().clone();
            folder.write("b.yaml", &allows("b", "b1.example"));
            let back = documents.load().expect("a policy");
            assert_eq!(back.policy.digest(), first.policy.digest(), "{case}");
            assert_ne!(
                &mixed,
                first.policy.digest(),
                "{case}: the mixture has its own version"
            );
        }
        folder.write("a.yaml", &allows("a", "a2.example"));
        let mended = documents.load().expect("a policy");
        assert_eq!(asked(&mended, "a", "a2.example"), "allowed");
        assert_eq!(asked(&mended, "a", "a1.example"), "no_rule");
        assert!(mended.refused.is_empty());
    }

    #[test]
    fn every_mistake_is_named_as_the_checker_names_it() {
        const MISTAKES: &str = "version: 1
rules:
  - {name: one, action: alow, agents: any, hosts: [a.example]}
  - name: two
    action: allow
    agents: any
    host: [b.example]
  - just words
";
        let said = [
            "a.yaml:3:17: rules[0].action: \"alow\": write `allow` or `deny`",
            "a.yaml:7:5: rules[1].host: unknown member: did you mean `hosts`?",
            "a.yaml:8:5: rules[2]: ",
        ];
        let names_all = |case: &str, error: &str| {
            let lines: Vec<_> = error.lines().collect();
            assert_eq!(lines.len(), said.len(), "{case}: {error}");
            for (line, said) in lines.iter().zip(said) {
                assert!(line.contains(said), "{case}: {line}: {said}");
            }
            let folder = Folder::with(&[("a.yaml", MISTAKES)]);
            let path = folder.0.path().join("a.yaml");
            let Err(checked) = super::super::load::read_documents(&[path]) else {
                panic!("{case}: the checker takes it");
            };
            let after = |text: &str| text.split_once("a.yaml").map(|(_, rest)| rest.to_owned());
            let checked: Vec<_> = checked.0.iter().map(|line| after(line)).collect();
            let lines: Vec<_> = lines.iter().map(|line| after(line)).collect();
            assert_eq!(lines, checked, "{case}");
        };
        let folder = Folder::with(&[("a.yaml", MISTAKES)]);
        let Err(error) = folder.documents().load() else {
            panic!("it starts");
        };
        names_all("at the start", &error.to_string());

        folder.write("a.yaml", &allows("", "a.example"));
        let mut documents = folder.documents();
        documents.load().expect("a policy");
        folder.write("a.yaml", MISTAKES);
        let loaded = documents.load().expect("a policy");
        names_all("at a change", &loaded.refused[0].error);
        assert_eq!(asked(&loaded, "", "a.example"), "allowed");
        folder.write("a.yaml", &allows("", "a.example"));
        documents.load().expect("a policy");
        folder.write("a.yaml", MISTAKES);
        documents.read_ahead();
        let loaded = documents.load().expect("a policy");
        names_all("where it was read ahead", &loaded.refused[0].error);
    }

    #[test]
    fn a_global_document_with_a_mistake_stands_for_what_it_said() {
        let folder = Folder::with(&[
            ("a.yaml", &allows("a", "x.example")),
            ("deny.yaml", "version: 1\ndenylist: [evil.example]\n"),
            ("more.yaml", &allows("", "more1.example")),
        ]);
        let mut documents = folder.documents();
        documents.load().expect("a policy");
        folder.write("deny.yaml", "version: 1\ndenylist: [\"\n");
        folder.write("more.yaml", &allows("", "more2.example"));
        let loaded = documents.load().expect("a policy");
        assert_eq!(asked(&loaded, "a", "evil.example"), "denylist");
        assert_eq!(asked(&loaded, "a", "more2.example"), "allowed");
        assert_eq!(loaded.refused[0].tenant, None);
        assert!(loaded.refused[0].last_good_in_force);
    }

    #[test]
    fn what_is_gone_is_refused() {
        let folder = Folder::with(&[
            ("a.yaml", &allows("a", "x.example")),
            ("b.yaml", &allows("b", "x.example")),
            ("all.yaml", &allows("", "all.example")),
        ]);
        let mut documents = folder.documents();
        documents.load().expect("a policy");
        folder.remove("a.yaml");
        let loaded = documents.load().expect("a policy");
        assert_eq!(asked(&loaded, "a", "all.example"), "unknown");
        assert_eq!(asked(&loaded, "b", "all.example"), "allowed");
        // The last one too: its tenant does not become everybody.
        folder.remove("b.yaml");
        let loaded = documents.load().expect("a policy");
        assert_eq!(asked(&loaded, "a", "all.example"), "unknown");
        assert_eq!(asked(&loaded, "b", "all.example"), "unknown");
        assert_eq!(asked(&loaded, "", "all.example"), "allowed");
        folder.write("b.yaml", &allows("b", "x.example"));
        let loaded = documents.load().expect("a policy");
        assert_eq!(asked(&loaded, "b", "x.example"), "allowed");
    }

    #[test]
    fn a_start_without_a_tenant_refuses_that_tenant() {
        for (case, text, says) in [
            ("not YAML", BROKEN, "a.yaml:"),
            ("a mistake", "version: 1\ntenant: a\nmode: maybe\n", "mode"),
        ] {
            let folder =
                Folder::with(&[("a.yaml", text), ("all.yaml", &allows("", "all.example"))]);
            let mut documents = folder.documents();
            let loaded = documents.load().expect(case);
            assert_eq!(asked(&loaded, "a", "all.example"), "unknown", "{case}");
            assert_eq!(asked(&loaded, "", "all.example"), "allowed", "{case}");
            let refused = &loaded.refused[0];
            assert!(refused.error.contains(says), "{case}: {refused:?}");
            assert_eq!(refused.tenant.as_deref(), Some("a"), "{case}");
            assert!(!refused.last_good_in_force, "{case}");
        }
    }

    #[test]
    fn a_start_without_a_global_document_is_none() {
        for (case, name, text) in [
            ("a global one", "all.yaml", "version: 1\nmode: maybe\n"),
            (
                "nobody knows whose",
                "x.yaml",
                "version: 1\nrules: [{name: \n",
            ),
            ("no text", "x.yaml", ""),
            (
                "a tenant in JSON that breaks off",
                "x.json",
                "{\"version\": 1, \"tenant\": \"a\", ",
            ),
        ] {
            let folder = Folder::with(&[(name, text), ("b.yaml", &allows("b", "x.example"))]);
            let error = folder.documents().load().err().expect(case).to_string();
            assert!(error.contains(name), "{case}: {error}");
        }
        let folder = Folder::with(&[("a.yaml", BROKEN)]);
        assert!(folder.documents().load().is_err(), "nothing is any good");
    }

    #[test]
    fn two_documents_for_one_tenant_leave_what_was_in_force() {
        let folder = Folder::with(&[
            ("a.yaml", &allows("a", "first.example")),
            ("b.yaml", &allows("b", "b.example")),
        ]);
        let mut documents = folder.documents();
        documents.load().expect("a policy");
        folder.write("b2.yaml", &allows("a", "second.example"));
        let loaded = documents.load().expect("a policy");
        assert_eq!(asked(&loaded, "a", "first.example"), "allowed");
        assert_eq!(asked(&loaded, "a", "second.example"), "no_rule");
        assert!(
            loaded.refused[0].error.contains("a.yaml"),
            "{:?}",
            loaded.refused
        );
        // Nobody can tell which is meant where neither was in force.
        let mut anew = folder.documents();
        let loaded = anew.load().expect("a policy");
        assert_eq!(asked(&loaded, "a", "first.example"), "unknown");
        assert_eq!(asked(&loaded, "b", "b.example"), "allowed");
        // One that moves to another file while the old one has a mistake.
        folder.write("a.yaml", BROKEN);
        let loaded = documents.load().expect("a policy");
        assert_eq!(asked(&loaded, "a", "second.example"), "allowed");
        assert!(!loaded.refused[0].last_good_in_force);
    }

    /// A document of tenant `a` for tokens of these audiences.
    fn allows_for(audience: &str, host: &str) -> String {
        let text = allows("a", host);
        text.replace("rules:", &format!("audience: [{audience}]\nrules:"))
    }

    /// What becomes of a request of tenant `a`, by a token for this audience.
    fn asked_for(loaded: &Loaded, audience: &str, host: &str) -> String {
        let (agent, tenant) = (AgentId::parse("bot"), TenantId::parse("a"));
        let audiences = [audience.to_owned()];
        let who = Subject {
            agent: agent.as_ref().expect("an agent"),
            tenant: tenant.as_ref().ok(),
            destinations: None,
            audiences: Some(&audiences),
        };
        let what = EgressRequest {
            authority: Authority::parse(&format!("{host}:443")).expect("an authority"),
            ask: Ask::Tunnel,
        };
        match loaded.policy.decide(&who, &what) {
            Decision::Allow(_) => "allowed".to_owned(),
            Decision::Deny(denied) => denied.reason().as_str().to_owned(),
        }
    }

    #[test]
    fn documents_for_different_audiences_are_rotated_apart() {
        let folder = Folder::with(&[
            ("prod.yaml", &allows_for("prod", "prod1.example")),
            ("batch.yaml", &allows_for("batch, night", "batch1.example")),
            ("other.yaml", &allows("a", "other1.example")),
        ]);
        let mut documents = folder.documents();
        let loaded = documents.load().expect("a policy");
        for (audience, host) in [
            ("prod", "prod1.example"),
            ("night", "batch1.example"),
            ("agentport", "other1.example"),
        ] {
            assert_eq!(asked_for(&loaded, audience, host), "allowed", "{audience}");
        }
        assert_eq!(asked_for(&loaded, "prod", "other1.example"), "no_rule");
        // One has a mistake, and the others go on.
        folder.write("prod.yaml", BROKEN);
        folder.write("batch.yaml", &allows_for("batch, night", "batch2.example"));
        let loaded = documents.load().expect("a policy");
        assert_eq!(asked_for(&loaded, "prod", "prod1.example"), "allowed");
        assert_eq!(asked_for(&loaded, "prod", "other1.example"), "no_rule");
        assert_eq!(asked_for(&loaded, "batch", "batch2.example"), "allowed");
        assert!(loaded.refused[0].last_good_in_force);
        // Two for one audience: nobody can tell which is meant.
        folder.write("prod.yaml", &allows_for("prod", "prod2.example"));
        folder.write("more.yaml", &allows_for("late, night", "more.example"));
        let loaded = documents.load().expect("a policy");
        let [refused] = loaded.refused.as_slice() else {
            panic!("{:?}", loaded.refused);
        };
        let says = "more.yaml:3:18: audience[1]: audience \"night\" of tenant \"a\" has a document already, ";
        assert!(refused.error.contains(says), "{refused:?}");
        assert!(refused.last_good_in_force);
        assert_eq!(asked_for(&loaded, "prod", "prod1.example"), "allowed");
        assert_eq!(asked_for(&loaded, "night", "batch2.example"), "allowed");
        // One that is gone leaves its tokens to the one for any.
        folder.remove("more.yaml");
        folder.remove("batch.yaml");
        let loaded = documents.load().expect("a policy");
        assert_eq!(asked_for(&loaded, "night", "other1.example"), "allowed");
        assert_eq!(asked_for(&loaded, "prod", "prod2.example"), "allowed");
        folder.remove("other.yaml");
        let loaded = documents.load().expect("a policy");
        assert_eq!(
            asked_for(&loaded, "night", "other1.example"),
            "tenant_audience"
        );
    }

    #[test]
    fn a_document_that_was_never_good_leaves_its_tokens_to_no_other() {
        let folder = Folder::with(&[
            ("a.yaml", &allows("a", "a.example")),
            ("batch.yaml", &format!("{BROKEN}# audience: [batch]\n")),
            ("b.yaml", &allows("b", "b.example")),
        ]);
        let mut documents = folder.documents();
        let loaded = documents.load().expect("a policy");
        assert_eq!(asked_for(&loaded, "batch", "a.example"), "unknown_tenant");
        assert_eq!(asked(&loaded, "b", "b.example"), "allowed");
        folder.write("batch.yaml", &allows_for("batch", "batch.example"));
        let loaded = documents.load().expect("a policy");
        assert_eq!(asked_for(&loaded, "batch", "a.example"), "no_rule");
        assert_eq!(asked_for(&loaded, "batch", "batch.example"), "allowed");
        // Beside one that is in force nothing changes.
        folder.write("late.yaml", BROKEN);
        folder.write("a.yaml", &allows("a", "a2.example"));
        let loaded = documents.load().expect("a policy");
        assert_eq!(asked_for(&loaded, "agentport", "a2.example"), "allowed");
        assert_eq!(asked_for(&loaded, "batch", "batch.example"), "allowed");
        assert!(!loaded.refused[0].last_good_in_force);
    }

    #[test]
    fn what_did_not_change_is_not_read_again() {
        let folder = Folder::with(&[
            ("a.yaml", &allows("a", "x.example")),
            ("b.yaml", &allows("b", "x.example")),
        ]);
        let mut documents = folder.documents();
        documents.load().expect("a policy");
        let before = documents.tenants.clone();
        folder.write("a.yaml", &allows("a", "y.example"));
        documents.load().expect("a policy");
        let same = |tenant: &str| {
            let tenant = TenantId::parse(tenant).expect("a tenant");
            before[&tenant][0].is(&documents.tenants[&tenant][0])
        };
        assert!(!same("a"));
        assert!(same("b"));
    }

    /// A time at which no change is so new that it does not show.
    fn long_ago() -> SystemTime {
        SystemTime::now() - std::time::Duration::from_secs(60)
    }

    #[test]
    fn a_file_that_is_as_it_was_is_not_opened() {
        let folder = Folder::with(&[("a.yaml", &allows("a", "x.example"))]);
        let path = folder.0.path().join("a.yaml");
        let mut documents = folder.documents();
        documents.load().expect("a policy");
        // As it is once its time stamps are old enough to tell.
        let version = Version::under(&path).expect("a file");
        let known = documents.files.get_mut(&path).expect("the file");
        known.version = Some(version);
        known.hash = None;
        let before = documents.tenants.clone();
        documents.load().expect("a policy");
        let tenant = TenantId::parse("a").expect("a tenant");
        assert!(before[&tenant][0].is(&documents.tenants[&tenant][0]));
        // Of the same size, with the time of its contents set back.
        folder.write("a.yaml", &allows("a", "y.example"));
        let file = std::fs::File::options()
            .write(true)
            .open(&path)
            .expect("a file");
        file.set_modified(long_ago()).expect("a time");
        let loaded = documents.load().expect("a policy");
        assert_eq!(asked(&loaded, "a", "y.example"), "allowed");
        // When it is asked for, whatever the times say.
        let version = Version::under(&path).expect("a file");
        let known = documents.files.get_mut(&path).expect("the file");
        (known.version, known.hash) = (Some(version), None);
        documents.distrust();
        documents.load().expect("a policy");
        assert!(documents.files[&path].hash.is_some(), "it was read");
    }

    #[test]
    fn what_is_read_ahead_is_in_force_only_where_it_stays() {
        let folder = Folder::with(&[
            ("a.yaml", &allows("a", "x.example")),
            ("b.yaml", &allows("b", "x.example")),
        ]);
        let mut documents = folder.documents();
        let before = documents.load().expect("a policy");
        // Half of a text may be a good one: it never was in force, also not as
        // what the file last said.
        folder.write("a.yaml", &allows("a", "half.example"));
        documents.read_ahead();
        folder.write("a.yaml", BROKEN);
        documents.read_ahead();
        let loaded = documents.load().expect("a policy");
        assert_eq!(asked(&loaded, "a", "half.example"), "no_rule");
        assert_eq!(loaded.policy.digest(), before.policy.digest());
        assert!(loaded.refused[0].last_good_in_force);
        // And again without the mistake, of a file that is new and one that
        // goes before it is looked at.
        folder.write("a.yaml", &allows("a", "y.example"));
        folder.write("c.yaml", &allows("c", "x.example"));
        folder.write("d.yaml", &allows("d", "x.example"));
        documents.read_ahead();
        let path = folder.0.path().join("c.yaml");
        let ahead = documents.files[&path]
            .ahead
            .as_ref()
            .map(|ahead| &ahead.outcome);
        let Some(Ok(ahead)) = ahead.cloned() else {
            panic!("it is read ahead");
        };
        folder.remove("d.yaml");
        let loaded = documents.load().expect("a policy");
        assert!(loaded.refused.is_empty());
        let tenant = TenantId::parse("c").expect("a tenant");
        assert!(
            ahead.is(&documents.tenants[&tenant][0]),
            "it is not read twice"
        );
        assert_eq!(asked(&loaded, "a", "y.example"), "allowed");
        assert_eq!(asked(&loaded, "c", "x.example"), "allowed");
        assert_eq!(asked(&loaded, "d", "x.example"), "unknown");
        // One that has a mistake, too.
        folder.write("b.yaml", BROKEN);
        documents.read_ahead();
        let loaded = documents.load().expect("a policy");
        assert_eq!(asked(&loaded, "b", "x.example"), "allowed");
        assert_eq!(loaded.refused.len(), 1);
    }

    #[test]
    fn a_path_that_is_gone_changes_nothing() {
        let folder = Folder::with(&[("a.yaml", &allows("a", "x.example"))]);
        let mut documents = folder.documents();
        let first = documents.load().expect("a policy");
        let path = folder.0.path().to_owned();
        drop(folder);
        assert!(documents.load().is_err());
        std::fs::create_dir(&path).expect("a folder");
        std::fs::write(path.join("a.yaml"), allows("a", "x.example")).expect("written");
        let loaded = documents.load().expect("a policy");
        assert_eq!(loaded.policy.digest(), first.policy.digest());
        std::fs::remove_dir_all(&path).expect("removed");
    }
}

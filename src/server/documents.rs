//! The policy's documents, file by file: what each says, and what it said last
//! without a mistake.
//!
//! Files are rotated independently of one another. One that cannot be read or
//! has a mistake stands for what it last said; what is new of all others comes
//! into force. Where it has never said anything, its tenant is refused, and a
//! gateway that starts with such a global document does not start. A file that
//! is gone says nothing any more, and its tenant is refused.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use serde::Serialize;

use crate::config::Config;
use crate::egress::TenantId;
use crate::policy::{
    CheckedDocument, KnownRules, Mode, PolicyDocument, PolicyError, PolicySet, SourceName,
};

use super::load::{LoadError, format_of, policy_files, read_text, short_form};

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
    /// The document of each tenant in that set.
    tenants: BTreeMap<TenantId, CheckedDocument>,
    /// Whether a tenant ever had a document.
    by_tenant: bool,
}

/// What is known of one file.
#[derive(Default)]
struct Known {
    /// Of the text that was looked at last.
    hash: Option<[u8; 32]>,
    /// What it last said without a mistake.
    good: Option<CheckedDocument>,
    /// Its rules as they were read, where they are many.
    rules: KnownRules,
    /// What is wrong with the text that was looked at last.
    mistake: Option<Mistake>,
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
        documents.extend(chosen.tenants.values().cloned());
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
    /// Reads the file, and parses it where it says something new.
    fn look(&mut self, path: &Path, mode: Mode) {
        let format = format_of(path);
        let text = match read_text(path) {
            Ok(text) => text,
            Err(error) => {
                self.hash = None;
                let tenant = None;
                self.mistake = Some(Mistake { error, tenant });
                return;
            }
        };
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
        if self.hash == Some(hash) {
            return;
        }
        self.hash = Some(hash);
        let source = SourceName::from(path.display().to_string());
        let checked = PolicyDocument::parse_again(&source, format, &text, &mut self.rules)
            .map_err(|error| vec![error])
            .and_then(|written| CheckedDocument::check(&source, &written, mode));
        match checked {
            Ok(document) => {
                self.good = Some(document);
                self.mistake = None;
            }
            Err(mut errors) => {
                PolicyError::locate(&mut errors, &source, &text);
                self.mistake = Some(Mistake {
                    error: LoadError::of(&errors).to_string(),
                    tenant: PolicyDocument::tenant_in(format, &text),
                });
            }
        }
    }
}

/// What of the files is to be in force.
#[derive(Default)]
struct Chosen {
    globals: Vec<CheckedDocument>,
    tenants: BTreeMap<TenantId, CheckedDocument>,
    refused: Vec<RefusedDocument>,
    by_tenant: bool,
}

impl Chosen {
    fn of(
        paths: &[PathBuf],
        files: &HashMap<PathBuf, Known>,
        in_force: &BTreeMap<TenantId, CheckedDocument>,
    ) -> Self {
        let mut chosen = Self::default();
        // Sound files go first: what a file with a mistake said before must
        // not stand in the way of a new file for the same tenant.
        let known = || {
            paths
                .iter()
                .filter_map(|path| Some((path, files.get(path)?)))
        };
        let sound = known().filter(|(_, known)| known.mistake.is_none());
        let unsound = known().filter(|(_, known)| known.mistake.is_some());
        let mut twice: Vec<TenantId> = Vec::new();
        for (path, known) in sound.chain(unsound) {
            let tenant = known.good.as_ref().and_then(CheckedDocument::tenant);
            let claimed = known.mistake.as_ref().and_then(|m| m.tenant.as_ref());
            chosen.by_tenant |= tenant.or(claimed).is_some();
            let mut stands = known.good.is_some();
            match (&known.good, tenant) {
                (None, _) => {}
                (Some(document), None) => chosen.globals.push(document.clone()),
                (Some(document), Some(tenant)) => match chosen.tenants.get(tenant) {
                    None => {
                        chosen.tenants.insert(tenant.clone(), document.clone());
                    }
                    Some(_) if known.mistake.is_some() => stands = false,
                    Some(other) => {
                        let stays = in_force.contains_key(tenant);
                        chosen.refused.push(RefusedDocument {
                            document: path.display().to_string(),
                            tenant: Some(tenant.to_string()),
                            last_good_in_force: stays,
                            error: format!(
                                "{}: tenant: tenant {tenant:?} has a document already, {}; put the rules of both into one",
                                path.display(),
                                other.source(),
                                tenant = tenant.as_str(),
                            ),
                        });
                        twice.push(tenant.clone());
                    }
                },
            }
            if let Some(mistake) = &known.mistake {
                chosen.refused.push(RefusedDocument {
                    document: path.display().to_string(),
                    tenant: tenant.or(claimed).map(ToString::to_string),
                    last_good_in_force: stands,
                    error: mistake.error.clone(),
                });
            }
        }
        // Which of two is meant nobody can tell: what was in force stays.
        for tenant in twice {
            match in_force.get(&tenant) {
                Some(document) => chosen.tenants.insert(tenant, document.clone()),
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
            before[&tenant].is(&documents.tenants[&tenant])
        };
        assert!(!same("a"));
        assert!(same("b"));
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

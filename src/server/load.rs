//! Policy and keys from their files, whole or not at all.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};

use crate::adapters::clock::SystemClock;
use crate::adapters::keyring::Keyring;
use crate::adapters::watch::{Version, read_version};
use crate::config::{self, Config, KeySource, OtherIssuer};
use crate::gate::ports::Clock;
use crate::identity::{KeySet, SigningKey, TrustedIssuer, VerifyingKey, VerifyingKeys};
use crate::policy::{Format, Mode, PolicyDocument, PolicyError, PolicySet, SourceName};

/// What is wrong with the files, each line with its place and what to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError(pub Vec<String>);

impl LoadError {
    pub(super) fn of(errors: &[PolicyError]) -> Self {
        Self(errors.iter().map(ToString::to_string).collect())
    }
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for LoadError {}

/// The files that a policy path stands for: itself, or the documents in it.
/// Names that begin with a dot are passed over, as Kubernetes' `..data` and
/// what editors leave.
///
/// # Errors
/// Where the path cannot be read.
pub fn policy_files(path: &Path) -> Result<Vec<PathBuf>, LoadError> {
    documents_in(path, &["yaml", "yml", "json"])
}

fn documents_in(path: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, LoadError> {
    let cannot = |error: std::io::Error| LoadError(vec![format!("{}: {error}", path.display())]);
    if !std::fs::metadata(path).map_err(cannot)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        // Of a link, what it leads to.
        let is_plain = entry.file_type().is_ok_and(|kind| kind.is_file());
        let file = entry.path();
        let hidden = file
            .file_name()
            .is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let cases = file
            .file_name()
            .is_some_and(|name| name.to_string_lossy().contains(".cases."));
        let named = file
            .extension()
            .is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted));
        if hidden || cases || !named {
            continue;
        }
        if is_plain || std::fs::metadata(&file).map_err(cannot)?.is_file() {
            files.push(file);
        }
    }
    files.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    Ok(files)
}

/// A policy document with the text it was read from.
pub struct Source {
    /// The file.
    pub name: SourceName,
    /// Its text.
    pub text: String,
    /// What it says.
    pub document: PolicyDocument,
}

/// Reads the documents of these files.
///
/// # Errors
/// Every file that cannot be read or parsed.
pub fn read_documents(files: &[PathBuf]) -> Result<Vec<Source>, LoadError> {
    let mut sources = Vec::new();
    let mut errors = Vec::new();
    for file in files {
        let shown = file.display().to_string();
        let text = match read_text(file) {
            Ok(text) => text,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        let name = SourceName::from(shown.as_str());
        match PolicyDocument::check(&name, format_of(file), &text) {
            Ok(document) => sources.push(Source {
                name,
                text,
                document,
            }),
            Err(error) => errors.extend(error.iter().map(ToString::to_string)),
        }
    }
    if errors.is_empty() {
        Ok(sources)
    } else {
        Err(LoadError(errors))
    }
}

/// The set that these documents make.
///
/// # Errors
/// Every mistake in every document, with its line and column.
pub fn build(sources: &[Source], mode: Mode) -> Result<PolicySet, LoadError> {
    let documents = sources
        .iter()
        .map(|source| (source.name.clone(), source.document.clone()))
        .collect();
    PolicySet::build(documents, mode).map_err(|mut errors| {
        for source in sources {
            PolicyError::locate(&mut errors, &source.name, &source.text);
        }
        LoadError::of(&errors)
    })
}

/// How a file is written, by its extension; YAML where that does not say.
pub(super) fn format_of(file: &Path) -> Format {
    let extension = file
        .extension()
        .map(|extension| extension.to_string_lossy());
    extension
        .and_then(|extension| Format::from_extension(&extension))
        .unwrap_or(Format::Yaml)
}

/// The document that `allowed_destinations` stands for, where there are any.
///
/// # Errors
/// Every mistake in it.
pub(super) fn short_form(config: &Config) -> Result<Option<Source>, LoadError> {
    if config.allowed_destinations.is_empty() {
        return Ok(None);
    }
    let name = SourceName::from("ALLOWED_DESTINATIONS");
    let text = config
        .allowed_destinations
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",");
    let document = PolicyDocument::from_allowed_destinations(&name, &text)
        .map_err(|errors| LoadError::of(&errors))?;
    Ok(Some(Source {
        name,
        text: String::new(),
        document,
    }))
}

/// The policy that a configuration names, without a mistake anywhere: for
/// commands. A gateway that serves reads its documents one by one.
///
/// # Errors
/// Every mistake in every document.
pub fn policy(config: &Config) -> Result<PolicySet, LoadError> {
    let mut sources = match &config.policy {
        Some(path) => read_documents(&policy_files(path)?)?,
        None => Vec::new(),
    };
    sources.extend(short_form(config)?);
    build(&sources, config.mode)
}

/// The other issuers whose tokens are accepted: those of the configuration, or
/// of the file that it names.
///
/// # Errors
/// Every mistake in that file.
pub fn issuers(config: &Config) -> Result<Vec<OtherIssuer>, LoadError> {
    let identity = &config.identity;
    let Some(file) = &identity.issuers_file else {
        return Ok(identity.issuers.clone());
    };
    let named = |error: String| format!("identity.issuers_file: {error}");
    let text = read_text(file).map_err(|error| LoadError(vec![named(error)]))?;
    let place = file.display().to_string();
    config::parse_issuers(&place, &text, &identity.issuer).map_err(|errors| {
        let errors = errors.iter().map(|error| named(error.to_string()));
        LoadError(errors.collect())
    })
}

/// Every key that tokens may be verified with at a start, with the other
/// issuers whose keys are among them, or are fetched.
///
/// # Errors
/// Every file that gives no key, and what to do; or that there is no key.
pub(super) fn every_key(config: &Config) -> anyhow::Result<(Vec<OtherIssuer>, VerifyingKeys)> {
    let listed = issuers(config).context("the issuers are not valid")?;
    let keys = keys(config, &listed).context("the keys are not valid")?;
    if keys.is_empty() && !does_without(config, &listed) {
        bail!(
            "there is no key to verify tokens with: {}",
            config::SET_A_KEY
        );
    }
    Ok((listed, keys))
}

/// Every key that tokens may be verified with, but those that these other
/// issuers are asked for.
///
/// # Errors
/// Every file that gives no key, and what to do.
pub fn keys(config: &Config, issuers: &[OtherIssuer]) -> Result<VerifyingKeys, LoadError> {
    let identity = &config.identity;
    let own = || TrustedIssuer::own(&identity.issuer, &identity.audience);
    let mut errors = Vec::new();
    let mut own_keys: Vec<VerifyingKey> = Vec::new();
    match signing_key(config) {
        // The folder's keys follow, each with its end.
        Ok(Some(_)) if identity.signing_keys.is_some() => {}
        Ok(Some(key)) => own_keys.push(key.verifying_key().clone()),
        Ok(None) => {}
        Err(error) => errors.extend(error.0),
    }
    if let Some(folder) = &identity.signing_keys {
        match Keyring::read(folder).and_then(|ring| ring.verifying(now())) {
            Ok(keys) => own_keys.extend(keys),
            Err(error) => errors.push(error.to_string()),
        }
    }
    match secret(config) {
        // With a signing key of its own, the secret still verifies.
        Ok(Some(secret)) if identity.signing_key.is_some() || identity.signing_keys.is_some() => {
            match VerifyingKey::from_secret(&secret) {
                Ok(key) => own_keys.push(key),
                Err(error) => errors.push(format!("AGENTPORT_JWKS_SECRET: {error}")),
            }
        }
        Ok(_) => {}
        Err(error) => errors.extend(error.0),
    }
    let mut keys = VerifyingKeys::new();
    let add = |keys: VerifyingKeys,
               issuer: TrustedIssuer,
               list: Vec<VerifyingKey>,
               place: &str,
               errors: &mut Vec<String>| {
        match keys.clone().with(issuer, list) {
            Ok(more) => more,
            Err(error) => {
                errors.push(format!("{place}: {error}"));
                keys
            }
        }
    };
    if !own_keys.is_empty() {
        keys = add(keys, own(), own_keys, "identity", &mut errors);
    }
    let mut files = Vec::new();
    for trusted in &identity.keys {
        let name = trusted.issuer.as_deref().unwrap_or(&identity.issuer);
        let audience = trusted.audience.as_deref().unwrap_or(&identity.audience);
        let issuer = TrustedIssuer {
            published: name == identity.issuer,
            ..TrustedIssuer::own(name, audience)
        };
        files.push((&trusted.file, issuer, None));
    }
    for other in issuers {
        if let KeySource::File(file) = &other.source {
            files.push((file, other.trusted(&identity.audience), Some(other)));
        }
    }
    for (path, issuer, other) in files {
        match documents_in(path, &["pem", "jwk", "jwks", "json", "pub", "key"]) {
            Ok(files) if files.is_empty() => {
                errors.push(format!(
                    "{}: the directory has no key (*.pem, *.jwk, *.json)",
                    path.display()
                ));
            }
            Ok(files) => {
                let mut list = Vec::new();
                for file in files {
                    match read_keys(&file) {
                        Ok(more) => list.extend(more),
                        Err(error) => errors.push(error),
                    }
                }
                let before = list.len();
                list.retain(|key| other.is_none_or(|other| other.allows(key.algorithm())));
                if list.is_empty() && before > 0 {
                    errors.push(format!(
                        "{}: there is no key for one of the algorithms of its issuer",
                        path.display()
                    ));
                }
                if !list.is_empty() {
                    keys = add(keys, issuer, list, &path.display().to_string(), &mut errors);
                }
            }
            Err(error) => errors.extend(error.0),
        }
    }
    // One file may be behind two of these.
    errors.dedup();
    if errors.is_empty() {
        Ok(keys)
    } else {
        Err(LoadError(errors))
    }
}

/// Whether somebody may pass where there is no key in a file: keys are fetched as
/// well, or may be, or agents have keys of their own and bring no tokens.
pub(super) fn does_without(config: &Config, issuers: &[OtherIssuer]) -> bool {
    let in_file = |source: &KeySource| matches!(source, KeySource::File(_));
    config.identity.issuers_file.is_some()
        || config.identity.agent_keys.is_some()
        || issuers.iter().any(|issuer| !in_file(&issuer.source))
}

/// The files that keys come from, with these other issuers.
pub(super) fn key_files(config: &Config, issuers: &[OtherIssuer]) -> Vec<PathBuf> {
    let identity = &config.identity;
    let of_issuers = issuers.iter().filter_map(|issuer| match &issuer.source {
        KeySource::File(file) => Some(file),
        KeySource::Url(_) | KeySource::Discovery(_) => None,
    });
    let trusted = identity.keys.iter().map(|trusted| &trusted.file);
    trusted
        .chain(of_issuers)
        .chain(&identity.signing_key)
        .chain(&identity.signing_keys)
        .chain(&identity.secret_file)
        .chain(&identity.issuers_file)
        .cloned()
        .collect()
}

/// The keys in one file: PEM, a JWK or a JWK Set, told apart by what it holds.
fn read_keys(file: &Path) -> Result<Vec<VerifyingKey>, String> {
    let text = read_text(file)?;
    let shown = file.display();
    if text.trim_start().starts_with('{') {
        let is_set = serde_json::from_str::<serde_json::Value>(&text)
            .is_ok_and(|value| value.get("keys").is_some());
        return if is_set {
            KeySet::parse(&text)
                .map(|set| set.keys)
                .map_err(|error| format!("{shown}: {error}"))
        } else {
            VerifyingKey::from_jwk(&text)
                .map(|key| vec![key])
                .map_err(|error| format!("{shown}: {error}"))
        };
    }
    VerifyingKey::from_pem(&text)
        .map(|key| vec![key])
        .map_err(|error| format!("{shown}: {error}"))
}

/// The key that this process signs with at this moment: the configured one,
/// the folder's present signer, or else the shared secret.
///
/// # Errors
/// Where its file cannot be read or is no such key.
pub fn signing_key(config: &Config) -> Result<Option<SigningKey>, LoadError> {
    if let Some(file) = &config.identity.signing_key {
        let text = read_text(file).map_err(|error| LoadError(vec![error]))?;
        return SigningKey::from_pem(&text)
            .map(Some)
            .map_err(|error| LoadError(vec![format!("{}: {error}", file.display())]));
    }
    if let Some(folder) = &config.identity.signing_keys {
        return Keyring::read(folder)
            .and_then(|ring| ring.signer(now()))
            .map(Some)
            .map_err(|error| LoadError(vec![error.to_string()]));
    }
    match secret(config)? {
        Some(secret) => SigningKey::from_secret(&secret)
            .map(Some)
            .map_err(|error| LoadError(vec![format!("AGENTPORT_JWKS_SECRET: {error}")])),
        None => Ok(None),
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemClock::new()
        .wall()
        .duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// The shared secret. A file may end in a line feed.
fn secret(config: &Config) -> Result<Option<String>, LoadError> {
    if let Some(secret) = &config.identity.secret {
        return Ok(Some(secret.reveal().to_owned()));
    }
    match &config.identity.secret_file {
        Some(file) => {
            let text = read_text(file).map_err(|error| LoadError(vec![error]))?;
            Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
        }
        None => Ok(None),
    }
}

pub(super) fn read_text(file: &Path) -> Result<String, String> {
    read_text_version(file).map(|(text, _)| text)
}

/// The text with what tells this version of the file from others.
pub(super) fn read_text_version(file: &Path) -> Result<(String, Version), String> {
    let (bytes, version) =
        read_version(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let text = String::from_utf8(bytes);
    let text = text.map_err(|_| format!("{}: the file is not UTF-8", file.display()))?;
    Ok((text, version))
}

//! `agentport policy`: the loop from what agents do to what they may do, over
//! plain files. Exit codes: 0 good, 1 findings or a refusal, 2 the question or
//! a file that it needs cannot be read.

mod check;
mod diff;
mod explain;
mod learn;
mod log;
mod schema;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Subcommand, ValueEnum};

use crate::adapters::watch::read_stable;
use crate::config::{Config, Purpose};
use crate::limit::Limit;
use crate::policy::{Format, Mode, PolicyDocument, PolicyError, PolicySet, SourceName};
use crate::server::check::in_words;
use crate::server::load::{self, Source};

use super::SettingsArgs;

#[derive(Subcommand)]
pub(super) enum PolicyCommand {
    /// Check policy files; every mistake is named with its line and what to write
    Check(check::CheckArgs),
    /// Say whether a request may go, by which rule, and if not what was nearest
    Explain(Box<explain::ExplainArgs>),
    /// Try a policy on its files of cases
    Test(test::TestArgs),
    /// Say in words what becomes reachable and what stops
    Diff(diff::DiffArgs),
    /// Make a policy from audit records
    Learn(learn::LearnArgs),
    /// Print the JSON Schema of policies, for editors
    Schema(schema::SchemaArgs),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeArg {
    /// What is refused does not pass
    Enforce,
    /// It passes, and the record says so
    Audit,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Enforce => Self::Enforce,
            ModeArg::Audit => Self::Audit,
        }
    }
}

/// What a command found: the difference between 0 and 1.
enum Found {
    Nothing,
    Something,
}

pub(super) fn run(settings: &SettingsArgs, command: &PolicyCommand) -> anyhow::Result<ExitCode> {
    let done = match command {
        PolicyCommand::Check(args) => check::check(settings, args),
        PolicyCommand::Explain(args) => explain::explain(settings, args),
        PolicyCommand::Test(args) => test::test(args),
        PolicyCommand::Diff(args) => diff::diff(args),
        PolicyCommand::Learn(args) => learn::learn(args),
        PolicyCommand::Schema(args) => schema::schema(args),
    };
    Ok(match done {
        Ok(Found::Nothing) => ExitCode::SUCCESS,
        Ok(Found::Something) => ExitCode::from(1),
        Err(error) => {
            super::say(&format!("agentport: {}", in_words(&error)));
            ExitCode::from(2)
        }
    })
}

/// A policy with the texts it was read from.
struct Loaded {
    set: PolicySet,
    sources: Vec<Source>,
    /// The gateway's own limits, where its configuration was read.
    limits: Vec<Arc<Limit>>,
}

/// What became of reading a policy.
enum Read {
    Good(Loaded),
    /// Every mistake in every file.
    Broken(Vec<PolicyError>),
}

impl Read {
    fn good(self) -> anyhow::Result<Loaded> {
        match self {
            Self::Good(loaded) => Ok(loaded),
            Self::Broken(errors) => {
                let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
                anyhow::bail!("the policy is not valid\n{}", lines.join("\n"))
            }
        }
    }
}

/// Reads the policy in these files and directories, or else the configured one.
fn read(settings: &SettingsArgs, paths: &[PathBuf], mode: Mode) -> anyhow::Result<Read> {
    if !paths.is_empty() {
        return read_paths(paths, mode);
    }
    let config: Config = super::load(settings, Purpose::Command)?;
    let mut read = match &config.policy {
        Some(path) => read_paths(std::slice::from_ref(path), config.mode)?,
        None => Read::Good(Loaded {
            set: load::policy(&config)?,
            sources: Vec::new(),
            limits: Vec::new(),
        }),
    };
    if let Read::Good(loaded) = &mut read {
        loaded.limits = config.limits.per_owner;
    }
    Ok(read)
}

fn read_paths(paths: &[PathBuf], mode: Mode) -> anyhow::Result<Read> {
    let (mut sources, mut errors) = (Vec::new(), Vec::new());
    for path in paths {
        for file in load::policy_files(path)? {
            let text = read_text(&file)?;
            let name = SourceName::from(file.display().to_string());
            match PolicyDocument::check(&name, format_of(&file), &text) {
                Ok(document) => sources.push(Source {
                    name,
                    text,
                    document,
                }),
                Err(found) => errors.extend(found),
            }
        }
    }
    let documents = sources
        .iter()
        .map(|source| (source.name.clone(), source.document.clone()))
        .collect();
    match PolicySet::build(documents, mode) {
        Ok(set) if errors.is_empty() => Ok(Read::Good(Loaded {
            set,
            sources,
            limits: Vec::new(),
        })),
        Ok(_) => Ok(Read::Broken(errors)),
        Err(mut found) => {
            for source in &sources {
                PolicyError::locate(&mut found, &source.name, &source.text);
            }
            errors.extend(found);
            errors.sort_by(|a, b| (&a.source, a.location).cmp(&(&b.source, b.location)));
            Ok(Read::Broken(errors))
        }
    }
}

fn read_text(file: &Path) -> anyhow::Result<String> {
    let bytes =
        read_stable(file).map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
    String::from_utf8(bytes)
        .map_err(|_| anyhow::anyhow!("{}: the file is not UTF-8", file.display()))
}

/// By the extension; without one that is known, YAML.
fn format_of(file: &Path) -> Format {
    file.extension()
        .and_then(|extension| Format::from_extension(&extension.to_string_lossy()))
        .unwrap_or(Format::Yaml)
}

/// The text of a source, to find lines in.
fn text_of<'s>(sources: &'s [Source], name: &SourceName) -> Option<&'s str> {
    sources
        .iter()
        .find(|source| source.name == *name)
        .map(|source| source.text.as_str())
}

/// Prints one value as JSON.
fn give_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    super::give(&format!("{}\n", serde_json::to_string(value)?));
    Ok(())
}

//! `agentport policy test`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::super::give;
use super::{Found, Loaded, format_of, give_json, read_paths, read_text, text_of};
use crate::policy::{CaseFile, CaseOutcome, Coverage, Mode, SourceName, locate};

#[derive(Args)]
pub(in crate::cli) struct TestArgs {
    /// Files of cases, NAME.cases.yaml, or directories that have some
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The policy to try, instead of the one that the cases name
    #[arg(long, value_name = "PATH")]
    policy: Vec<PathBuf>,
    /// Fail where the cases touch fewer rules than this share
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(..=100))]
    min_coverage: Option<u8>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Report::Text)]
    format: Report,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Report {
    /// For people
    Text,
    /// For programs
    Json,
    /// For systems that collect tests
    Junit,
}

/// A file of cases, and what became of them.
struct Tried {
    file: PathBuf,
    text: String,
    outcomes: Vec<CaseOutcome>,
}

/// One policy, and all that tried it.
struct Trial {
    loaded: Loaded,
    tried: Vec<Tried>,
    coverage: Coverage,
}

pub(super) fn test(args: &TestArgs) -> anyhow::Result<Found> {
    let mut trials: BTreeMap<(Vec<PathBuf>, &str), Trial> = BTreeMap::new();
    for file in case_files(&args.files)? {
        let text = read_text(&file)?;
        let name = SourceName::from(file.display().to_string());
        let cases = CaseFile::parse(&name, format_of(&file), &text).map_err(|errors| {
            let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("the cases are not valid\n{}", lines.join("\n"))
        })?;
        let policy = match args.policy.is_empty() {
            true => policy_of(&file, &cases)?,
            false => args.policy.clone(),
        };
        let mode = cases.mode.unwrap_or(Mode::Enforce);
        let key = (policy, mode.as_str());
        if !trials.contains_key(&key) {
            let loaded = read_paths(&key.0, mode)?.good()?;
            let coverage = Coverage::of(&loaded.set, []);
            let tried = Vec::new();
            trials.insert(
                key.clone(),
                Trial {
                    loaded,
                    tried,
                    coverage,
                },
            );
        }
        if let Some(trial) = trials.get_mut(&key) {
            let outcomes = cases.run(&trial.loaded.set);
            trial.tried.push(Tried {
                file,
                text,
                outcomes,
            });
        }
    }
    let mut good = true;
    for trial in trials.values_mut() {
        let outcomes = trial.tried.iter().flat_map(|tried| &tried.outcomes);
        trial.coverage = Coverage::of(&trial.loaded.set, outcomes.clone());
        good &= outcomes.clone().all(|outcome| outcome.failures.is_empty());
        for rule in &mut trial.coverage.untouched {
            let text = text_of(&trial.loaded.sources, &rule.source);
            rule.location = text.and_then(|text| locate(text, &[&rule.path]).pop().flatten());
        }
        if let Some(least) = args.min_coverage {
            good &= trial.coverage.percent() >= usize::from(least);
        }
    }
    let trials: Vec<Trial> = trials.into_values().collect();
    match args.format {
        Report::Text => give(&text(&trials, args.min_coverage)),
        Report::Json => give_json(&as_json(&trials, good))?,
        Report::Junit => give(&junit(&trials)),
    }
    Ok(if good {
        Found::Nothing
    } else {
        Found::Something
    })
}

/// The files of cases that are named, and those in the directories.
fn case_files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let cannot = || format!("cannot read {}", path.display());
        if !std::fs::metadata(path).with_context(cannot)?.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(path).with_context(cannot)? {
            let file = entry.with_context(cannot)?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let cases = [".cases.yaml", ".cases.yml", ".cases.json"];
            if !name.starts_with('.') && cases.iter().any(|end| name.ends_with(end)) {
                inside.push(file);
            }
        }
        if inside.is_empty() {
            anyhow::bail!(
                "{} has no file of cases; name one NAME.cases.yaml",
                path.display()
            );
        }
        inside.sort();
        files.append(&mut inside);
    }
    Ok(files)
}

/// The policy that a file of cases is about.
fn policy_of(file: &Path, cases: &CaseFile) -> anyhow::Result<Vec<PathBuf>> {
    let folder = file.parent().unwrap_or(Path::new(""));
    if !cases.policy.is_empty() {
        return Ok(cases.policy.iter().map(|path| folder.join(path)).collect());
    }
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.split(".cases.").next().unwrap_or_default();
    for extension in ["yaml", "yml", "json"] {
        let policy = folder.join(format!("{stem}.{extension}"));
        if policy != *file && policy.exists() {
            return Ok(vec![policy]);
        }
    }
    anyhow::bail!(
        "{}: no policy stands beside it; write `policy: [FILE]` in it, or give --policy FILE",
        file.display()
    )
}

fn text(trials: &[Trial], least: Option<u8>) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    for trial in trials {
        for tried in &trial.tried {
            let failed: Vec<_> = tried
                .outcomes
                .iter()
                .filter(|outcome| !outcome.failures.is_empty())
                .collect();
            for outcome in &failed {
                let place = locate(&tried.text, &[&outcome.path]).pop().flatten();
                let place = place.map_or_else(String::new, |at| format!(":{at}"));
                let _ = writeln!(out, "{}{place}: {}", tried.file.display(), outcome.name);
                for failure in &outcome.failures {
                    let _ = writeln!(out, "  {failure}");
                }
                let mut explanation = outcome.explanation.clone();
                explanation.locate(|name| text_of(&trial.loaded.sources, name));
                for line in explanation.to_string().lines() {
                    let _ = writeln!(out, "    {line}");
                }
            }
            let _ = writeln!(
                out,
                "{}: {} of {} cases hold",
                tried.file.display(),
                tried.outcomes.len() - failed.len(),
                tried.outcomes.len()
            );
        }
        let coverage = &trial.coverage;
        let short = least.is_some_and(|least| coverage.percent() < usize::from(least));
        let _ = writeln!(
            out,
            "{} of {} rules are touched ({} %{})",
            coverage.touched,
            coverage.rules,
            coverage.percent(),
            if short { ", which is too few" } else { "" }
        );
        for rule in &coverage.untouched {
            let _ = writeln!(out, "  no case touches rule {rule}");
        }
    }
    out
}

fn as_json(trials: &[Trial], good: bool) -> serde_json::Value {
    let trials: Vec<_> = trials
        .iter()
        .map(|trial| {
            let files: Vec<_> = trial
                .tried
                .iter()
                .map(|tried| json!({ "file": tried.file, "cases": tried.outcomes }))
                .collect();
            json!({
                "policy_version": trial.loaded.set.digest().as_ref(),
                "files": files,
                "coverage": trial.coverage,
                "percent": trial.coverage.percent(),
            })
        })
        .collect();
    json!({ "good": good, "policies": trials })
}

/// The form that test systems read: one suite for each file of cases.
fn junit(trials: &[Trial]) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for tried in trials.iter().flat_map(|trial| &trial.tried) {
        let failed = tried
            .outcomes
            .iter()
            .filter(|outcome| !outcome.failures.is_empty());
        let file = escaped(&tried.file.display().to_string());
        let _ = writeln!(
            out,
            "  <testsuite name=\"{file}\" tests=\"{}\" failures=\"{}\">",
            tried.outcomes.len(),
            failed.count()
        );
        for outcome in &tried.outcomes {
            let name = escaped(&outcome.name);
            let _ = write!(out, "    <testcase classname=\"{file}\" name=\"{name}\"");
            match outcome.failures.as_slice() {
                [] => out.push_str("/>\n"),
                failures => {
                    let message = escaped(&failures.join("; "));
                    let _ = writeln!(out, "><failure message=\"{message}\"/></testcase>");
                }
            }
        }
        out.push_str("  </testsuite>\n");
    }
    out + "</testsuites>\n"
}

/// For an attribute of XML 1.0, which has no other control characters.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other if other.is_control() => out.push(' '),
            other => out.push(other),
        }
    }
    out
}

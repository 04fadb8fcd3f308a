//! `agentport policy check`, and keeping what was checked.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::super::{SettingsArgs, give};
use super::{Found, Loaded, ModeArg, Output, Read, give_json, read};
use crate::policy::PolicyWarning;

#[derive(Args)]
pub(in crate::cli) struct CheckArgs {
    /// Files or directories [default: the configured policy]
    paths: Vec<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Output::Text)]
    format: Output,
    /// Fail on warnings too
    #[arg(long, alias = "strict")]
    deny_warnings: bool,
    /// How the gateway is set, where files are named; the version depends on it
    #[arg(long, value_enum, default_value_t = ModeArg::Enforce)]
    mode: ModeArg,
    /// Keep the policy in this folder under its version, for `explain --at`
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

pub(super) fn check(settings: &SettingsArgs, args: &CheckArgs) -> anyhow::Result<Found> {
    let loaded = match read(settings, &args.paths, args.mode.into())? {
        Read::Good(loaded) => loaded,
        Read::Broken(errors) => {
            match args.format {
                Output::Text => {
                    for error in &errors {
                        give(&format!("{error}\n"));
                    }
                }
                Output::Json => {
                    give_json(&serde_json::json!({ "valid": false, "errors": errors }))?;
                }
            }
            return Ok(Found::Something);
        }
    };
    let mut warnings = loaded.set.lint();
    for source in &loaded.sources {
        PolicyWarning::locate(&mut warnings, &source.name, &source.text);
    }
    match args.format {
        Output::Text => {
            for warning in &warnings {
                give(&format!("warning: {warning}\n"));
            }
            give(&format!(
                "valid: {} rules, version {}\n",
                loaded.set.rule_count(),
                loaded.set.digest()
            ));
        }
        Output::Json => give_json(&serde_json::json!({
            "valid": true,
            "version": loaded.set.digest().as_ref(),
            "rules": loaded.set.rule_count(),
            "warnings": warnings,
        }))?,
    }
    if args.deny_warnings && !warnings.is_empty() {
        return Ok(Found::Something);
    }
    if let Some(folder) = &args.keep {
        keep(&loaded, folder).with_context(|| format!("cannot keep it in {}", folder.display()))?;
    }
    Ok(Found::Nothing)
}

/// Writes the documents into a folder named by the version, whole or not at
/// all: a reader finds the folder only once everything is in it.
fn keep(loaded: &Loaded, folder: &Path) -> anyhow::Result<()> {
    let kept = folder.join(loaded.set.digest().as_ref());
    if kept.exists() {
        return Ok(());
    }
    let new = folder.join(format!(".{}.{}", loaded.set.digest(), std::process::id()));
    std::fs::create_dir_all(&new)?;
    for (at, source) in loaded.sources.iter().enumerate() {
        let name = Path::new(source.name.as_str())
            .file_name()
            .context("the policy has no file name")?
            .to_string_lossy()
            .into_owned();
        std::fs::write(new.join(format!("{at:04}-{name}")), &source.text)?;
    }
    if let Err(error) = std::fs::rename(&new, &kept) {
        std::fs::remove_dir_all(&new)?;
        // Somebody else was keeping the same version.
        if !kept.exists() {
            return Err(error.into());
        }
    }
    Ok(())
}

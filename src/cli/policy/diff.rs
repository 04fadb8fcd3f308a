//! `agentport policy diff`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::super::give;
use super::{Found, ModeArg, Output, give_json, log, read_paths};
use crate::policy::{Direction, PolicyDiff, Replay, ReplayReport};

#[derive(Args)]
pub(in crate::cli) struct DiffArgs {
    /// The policy in force: a file or a directory
    old: PathBuf,
    /// The one that is to take its place
    new: PathBuf,
    /// Put the requests in this audit log to both; - is standard input; may be given again
    #[arg(long, value_name = "LOG")]
    replay: Vec<PathBuf>,
    /// Exit with 1 where there is such a change
    #[arg(long, value_enum)]
    fail_on: Option<FailOn>,
    /// How the gateway is set
    #[arg(long, value_enum, default_value_t = ModeArg::Enforce)]
    mode: ModeArg,
    /// How to print
    #[arg(long, value_enum, default_value_t = Output::Text)]
    format: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// Something becomes reachable
    Widening,
    /// Something stops being reachable; with --replay, something that was used
    Narrowing,
    /// Anything
    Any,
}

pub(super) fn diff(args: &DiffArgs) -> anyhow::Result<Found> {
    let read = |path: &PathBuf| read_paths(std::slice::from_ref(path), args.mode.into())?.good();
    let (old, new) = (read(&args.old)?, read(&args.new)?);
    let diff = old.set.diff(&new.set)?;
    let replayed = match args.replay.is_empty() {
        true => None,
        false => {
            let mut replay = Replay::new(&old.set, &new.set);
            log::lines(&args.replay, |_, line| {
                replay.line(line);
                Ok(())
            })?;
            Some(replay.finish())
        }
    };
    match args.format {
        Output::Text => give(&text(&diff, replayed.as_ref())),
        Output::Json => give_json(&json!({
            "old": old.set.digest().as_ref(),
            "new": new.set.digest().as_ref(),
            "changes": diff.changes,
            "replay": replayed,
        }))?,
    }
    Ok(
        match args
            .fail_on
            .is_some_and(|on| fails(on, &diff, replayed.as_ref()))
        {
            true => Found::Something,
            false => Found::Nothing,
        },
    )
}

fn fails(on: FailOn, diff: &PolicyDiff, replayed: Option<&ReplayReport>) -> bool {
    let goes = |wanted| diff.changes.iter().any(|change| change.direction == wanted);
    match (on, replayed) {
        (FailOn::Widening, _) => goes(Direction::Widens),
        (FailOn::Narrowing, None) => goes(Direction::Narrows),
        (FailOn::Narrowing, Some(report)) => {
            report.more > 0
                || report
                    .changes
                    .iter()
                    .any(|(_, change)| change.after == "deny")
        }
        (FailOn::Any, _) => !diff.changes.is_empty(),
    }
}

fn text(diff: &PolicyDiff, replayed: Option<&ReplayReport>) -> String {
    let mut lines = Vec::new();
    for (direction, title, mark) in [
        (
            Direction::Widens,
            "becomes reachable, or may carry more:",
            '+',
        ),
        (
            Direction::Narrows,
            "stops being reachable, or may carry less:",
            '-',
        ),
        (
            Direction::Differs,
            "passes as before, and is recorded otherwise:",
            '~',
        ),
    ] {
        let changes: Vec<_> = diff
            .changes
            .iter()
            .filter(|change| change.direction == direction)
            .collect();
        if !changes.is_empty() {
            lines.push(title.to_owned());
            lines.extend(changes.iter().map(|change| format!("  {mark} {change}")));
        }
    }
    if lines.is_empty() {
        lines.push("nothing changes".to_owned());
    }
    if let Some(report) = replayed {
        let changing: u64 = report.changes.iter().map(|(count, _)| count).sum();
        lines.push(format!(
            "of {} recorded requests {} would be judged otherwise; {} records tell of none",
            report.requests,
            changing + report.more,
            report.passed_over
        ));
        for (count, change) in &report.changes {
            let tenant = change
                .tenant
                .as_ref()
                .map_or_else(String::new, |tenant| format!(" ({tenant})"));
            lines.push(format!(
                "  {count} x {}{tenant} {} {}: {} becomes {}: {}",
                change.agent,
                change.method,
                change.destination,
                change.before,
                change.after,
                change.why
            ));
        }
    }
    lines.join("\n") + "\n"
}

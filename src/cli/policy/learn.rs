//! `agentport policy learn`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::super::{give, say};
use super::{Found, Output, give_json, log};
use crate::egress::TenantId;
use crate::policy::{LearnOptions, Learner};

#[derive(Args)]
pub(in crate::cli) struct LearnArgs {
    /// Audit logs, as files; - is standard input
    #[arg(required = true)]
    logs: Vec<PathBuf>,
    /// Write *.domain where so many hosts below one domain were seen
    #[arg(long, value_name = "HOSTS", value_parser = clap::value_parser!(u16).range(2..))]
    wildcards: Option<u16>,
    /// So many paths of one host are written out; more become prefixes
    #[arg(long, value_name = "PATHS", default_value_t = 6, value_parser = clap::value_parser!(u8).range(..=64))]
    paths: u8,
    /// Only the records of this tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Output::Text)]
    format: Output,
}

pub(super) fn learn(args: &LearnArgs) -> anyhow::Result<Found> {
    let tenant = args.tenant.as_deref().map(TenantId::parse);
    let mut learner = Learner::new(LearnOptions {
        wildcards: args.wildcards.map(usize::from),
        paths: args.paths.into(),
        tenant: tenant.transpose().context("--tenant")?,
    });
    log::lines(&args.logs, |place, line| {
        learner.line(place, line);
        Ok(())
    })?;
    let learned = learner.finish()?;
    if learned.records == 0 && learned.unreadable > 0 {
        anyhow::bail!(
            "no line is an audit record; {}",
            learned.first_unreadable.unwrap_or_default()
        );
    }
    match args.format {
        Output::Text => give(&learned.policy),
        Output::Json => give_json(&learned)?,
    }
    say(&format!(
        "{} records gave {} rules; {} left out",
        learned.records,
        learned.rules.len(),
        learned
            .left_out
            .iter()
            .map(|entry| entry.count)
            .sum::<u64>()
    ));
    if let Some(first) = &learned.first_unreadable {
        say(&format!(
            "{} lines are no audit records; {first}",
            learned.unreadable
        ));
    }
    Ok(match learned.rules.is_empty() {
        true => Found::Something,
        false => Found::Nothing,
    })
}

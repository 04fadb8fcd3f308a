//! `agentport policy schema`.

use clap::Args;

use super::super::give;
use super::Found;
use crate::policy::{cases_schema, policy_schema};

#[derive(Args)]
pub(in crate::cli) struct SchemaArgs {
    /// That of files of cases
    #[arg(long)]
    cases: bool,
}

pub(super) fn schema(args: &SchemaArgs) -> anyhow::Result<Found> {
    let schema = if args.cases {
        cases_schema()
    } else {
        policy_schema()
    };
    give(&format!("{}\n", serde_json::to_string_pretty(&schema)?));
    Ok(Found::Nothing)
}

//! `agentport acme`: the certificate that comes by ACME, ordered before it is
//! due.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;

use crate::adapters::acme::AcmeFolder;
use crate::config::Purpose;

use super::SettingsArgs;

#[derive(Subcommand)]
pub(super) enum AcmeCommand {
    /// Have the gateways that share tls.acme.dir order a new certificate now, once among them
    Renew,
}

pub(super) fn run(settings: &SettingsArgs, command: &AcmeCommand) -> anyhow::Result<ExitCode> {
    let config = super::load(settings, Purpose::Command)?;
    let Some(acme) = &config.tls.acme else {
        bail!("nothing comes by ACME: set tls.acme.directory, for the gateways and this command");
    };
    match command {
        AcmeCommand::Renew => {
            let folder = AcmeFolder::open(&acme.dir).context("tls.acme.dir")?;
            folder.ask()?;
            super::say("asked: a gateway orders it, and /ready says how that went");
        }
    }
    Ok(ExitCode::SUCCESS)
}

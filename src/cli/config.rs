//! `agentport config`: what the settings are, and where they come from.

use std::process::ExitCode;

use clap::Subcommand;

use crate::config::{Config, Purpose};

use super::SettingsArgs;

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the configuration, and all that `serve` reads; every mistake is named
    ///
    /// The policy, keys, certificates, lists and secrets that the configuration
    /// names are read as `serve` reads them, as the user who runs this. Nothing is
    /// bound, written or asked. So it does not see: whether ports are free and
    /// sockets can be made; whether what the gateway writes can be written (the
    /// audit log, `pid_file`, `tls.acme.dir`, a list of revocations that is not
    /// there yet); whether Redis, the ACME server, DNS, `upstream_proxy` and other
    /// issuers answer; and what lies in `tls.acme.dir`.
    ///
    /// A policy in which one tenant's document has a mistake is refused here;
    /// `serve` starts with it and refuses that tenant.
    #[command(verbatim_doc_comment)]
    Check,
    /// Print the settings in force with their sources; secrets are not shown
    Show,
    /// Print every key with its default and its meaning, as a configuration file
    Reference,
}

pub(super) fn run(settings: &SettingsArgs, command: &ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Check => {
            let config = super::load(settings, Purpose::Serve)?;
            for warning in &config.warnings {
                super::say(&format!("warning: {warning}"));
            }
            super::serve::install_provider();
            crate::server::check::everything(&config)?;
            super::say("the configuration is valid");
        }
        ConfigCommand::Show => super::give(super::load(settings, Purpose::Command)?.show()),
        ConfigCommand::Reference => super::give(Config::reference()),
    }
    Ok(ExitCode::SUCCESS)
}

//! `agentport config`: what the settings are, and where they come from.

use std::process::ExitCode;

use clap::Subcommand;

use crate::config::{Config, Purpose};

use super::SettingsArgs;

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the configuration; every mistake is named
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
            crate::server::load::keys(&config, &crate::server::load::issuers(&config)?)?;
            crate::server::load::policy(&config)?;
            crate::server::routes::read(&config)?;
            if let Some(proxy) = &config.upstream_proxy {
                crate::adapters::parent::access(proxy).map_err(anyhow::Error::msg)?;
            }
            if let Some(pair) = config.refusals.authority() {
                let clock = std::sync::Arc::new(crate::adapters::clock::SystemClock::new());
                crate::adapters::refusals::RefusalAuthority::open(pair, clock)
                    .map_err(|error| anyhow::anyhow!("refusals: {error}"))?;
            }
            super::say("the configuration is valid");
        }
        ConfigCommand::Show => super::give(super::load(settings, Purpose::Command)?.show()),
        ConfigCommand::Reference => super::give(Config::reference()),
    }
    Ok(ExitCode::SUCCESS)
}

//! `agentport serve`: the gateway in the foreground, until a signal.

use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, LogFormat, Purpose};
use crate::server::{self, Gateway};

use super::SettingsArgs;

pub(super) fn serve(settings: &SettingsArgs) -> anyhow::Result<ExitCode> {
    let config = super::load(settings, Purpose::Serve)?;
    start_logging(&config)?;
    install_provider();
    runtime(&config)?.block_on(async {
        let stop = stop_signal()?;
        let gateway = Gateway::bind(config).await?;
        let addresses = gateway.addresses();
        for address in &addresses.egress {
            tracing::info!(%address, "egress listener");
        }
        for address in &addresses.egress_tls {
            tracing::info!(%address, "egress TLS listener");
        }
        if let Some(address) = addresses.peers {
            tracing::info!(%address, "peers listener");
        }
        if let Some(address) = addresses.admin {
            tracing::info!(%address, "admin listener");
        }
        gateway.run(stop).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// The threads that serve.
pub(super) fn runtime(config: &Config) -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(server::threads(config))
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// One provider of cryptography for the whole process.
pub(super) fn install_provider() {
    // A second installation changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Comes back at SIGTERM or SIGINT.
pub(super) fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Operator logs go to standard error; standard output may be the audit log.
pub(super) fn start_logging(config: &Config) -> anyhow::Result<()> {
    // Pingora's lines hold request targets and raw heads, with tokens in them.
    // Those of rustls are about what strangers send, and would fill the log;
    // notify tells of every file that is replaced.
    let quiet = "pingora=off,pingora_core=off,pingora_proxy=off,pingora_pool=off,\
                 rustls=error,notify=warn";
    let filter = format!("{},{quiet}", config.log.level.as_str());
    let filter = tracing_subscriber::EnvFilter::try_new(filter).context("log.level")?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match config.log.format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

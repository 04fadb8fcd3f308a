//! `agentport connect`: a proxy beside an agent, that adds the credential.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use crate::connect::{
    Address, ConnectSettings, Connector, Listen, Proof, TokenEndpoint, TokenSource,
};

#[derive(Args)]
pub(super) struct ConnectArgs {
    /// Where the agent comes in: a loopback ADDRESS:PORT, or unix:/PATH
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    listen: String,
    /// The permissions of a Unix socket, in octal
    #[arg(long, value_name = "MODE", default_value = "0600")]
    unix_mode: String,
    /// The gateway: http://HOST:PORT, https://HOST:PORT or unix:/PATH
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    gateway: String,
    /// A PEM bundle that the gateway and the token endpoint are checked against [default: the system's roots]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A file that holds the token, and that somebody keeps fresh, such as a projected service-account token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The token endpoint, such as http://127.0.0.1:9090/oauth/token
    #[arg(long, value_name = "URL", requires = "agent_id")]
    token_url: Option<String>,
    /// Exchange the token of --token-file at the token endpoint, instead of sending it as it is
    #[arg(long, requires_all = ["token_url", "token_file"])]
    exchange: bool,
    /// The service account that asks for tokens
    #[arg(long, value_name = "ID", requires_all = ["token_url", "key_file"])]
    service_account: Option<String>,
    /// A file that holds the service account's key
    #[arg(long, value_name = "FILE", requires = "service_account")]
    key_file: Option<PathBuf>,
    /// The agent that tokens are asked for
    #[arg(long, value_name = "NAME", requires = "token_url")]
    agent_id: Option<String>,
    /// Its tenant
    #[arg(long, value_name = "NAME", requires = "token_url")]
    tenant: Option<String>,
    /// A destination that tokens are limited to; may be given again, or as a list with commas
    #[arg(
        long,
        value_name = "DESTINATION",
        value_delimiter = ',',
        requires = "token_url"
    )]
    allow: Vec<String>,
    /// How long tokens are to live, such as 15m
    #[arg(long, value_name = "TIME", requires = "token_url")]
    ttl: Option<String>,
    /// The scope that tokens are to have
    #[arg(long, value_name = "WORDS", requires = "token_url")]
    scope: Option<String>,
    /// How long open connections may go on when it is told to end
    #[arg(long, value_name = "TIME", default_value = "30s")]
    drain: String,
}

pub(super) fn connect(args: &ConnectArgs) -> anyhow::Result<ExitCode> {
    let settings = settings(args)?;
    super::serve::install_provider();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init()
        .map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))?;
    // It copies bytes for one agent: one thread is plenty.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = super::serve::stop_signal()?;
        let gateway = settings.gateway.to_string();
        let connector = Connector::bind(settings)
            .await
            .map_err(anyhow::Error::msg)?;
        tracing::info!(address = %connector.address(), %gateway, "connecting an agent");
        connector.run(stop).await;
        Ok(ExitCode::SUCCESS)
    })
}

fn settings(args: &ConnectArgs) -> anyhow::Result<ConnectSettings> {
    let listen = match args.listen.strip_prefix("unix:") {
        Some(path) => {
            let mode = u32::from_str_radix(&args.unix_mode, 8)
                .ok()
                .filter(|mode| *mode <= 0o777)
                .with_context(|| format!("--unix-mode {}: write 0600", args.unix_mode))?;
            Listen::Unix(path.into(), mode)
        }
        None => Listen::Tcp(args.listen.parse().with_context(|| {
            format!(
                "--listen {}: write 127.0.0.1:8081 or unix:/PATH",
                args.listen
            )
        })?),
    };
    let duration = |flag: &str, text: &str| {
        crate::config::parse_duration(text)
            .map_err(|error| anyhow::anyhow!("{flag} {text}: {error}"))
    };
    let (gateway, _) =
        Address::parse(&args.gateway).map_err(|error| anyhow::anyhow!("--gateway: {error}"))?;
    Ok(ConnectSettings {
        listen,
        gateway,
        tokens: tokens(args, duration)?,
        ca: args.ca.clone(),
        drain: duration("--drain", &args.drain)?,
    })
}

fn tokens(
    args: &ConnectArgs,
    duration: impl Fn(&str, &str) -> anyhow::Result<std::time::Duration>,
) -> anyhow::Result<TokenSource> {
    let Some(url) = &args.token_url else {
        return match &args.token_file {
            Some(path) => Ok(TokenSource::File(path.clone())),
            None => bail!(
                "where do tokens come from? Write --token-file FILE, or --token-url URL --agent-id NAME with --service-account ID --key-file FILE (or with --exchange --token-file FILE)"
            ),
        };
    };
    let (address, path) =
        Address::parse(url).map_err(|error| anyhow::anyhow!("--token-url: {error}"))?;
    let loopback = match &address {
        Address::Unix(_) | Address::Tls { .. } => true,
        Address::Tcp { host, .. } => {
            host == "localhost"
                || host
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        }
    };
    if !loopback {
        bail!("--token-url: a key would travel in clear: write https://, or a loopback address");
    }
    let proof = match (&args.service_account, &args.key_file, &args.token_file) {
        (Some(id), Some(key_file), None) => Proof::ServiceAccount {
            id: id.clone(),
            key_file: key_file.clone(),
        },
        (None, None, Some(file)) if args.exchange => Proof::Exchange {
            subject_token_file: file.clone(),
        },
        _ => bail!(
            "how does one prove oneself at --token-url? Write --service-account ID --key-file FILE, or --exchange --token-file FILE"
        ),
    };
    let mut parameters = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        parameters.extend(value.map(|value| (name.to_owned(), value)));
    };
    add("agent_id", args.agent_id.clone());
    add("tenant", args.tenant.clone());
    add(
        "allowed_destinations",
        (!args.allow.is_empty()).then(|| args.allow.join(",")),
    );
    let ttl = args.ttl.as_deref().map(|text| duration("--ttl", text));
    add("ttl", ttl.transpose()?.map(|ttl| ttl.as_secs().to_string()));
    add("scope", args.scope.clone());
    Ok(TokenSource::Endpoint(TokenEndpoint {
        address,
        path,
        proof,
        parameters,
    }))
}

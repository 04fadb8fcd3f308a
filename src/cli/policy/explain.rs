//! `agentport policy explain`: of a request that is asked for, or of one that
//! was recorded, by the policy of now or of then.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use super::super::{SettingsArgs, give};
use super::{Found, Loaded, ModeArg, Output, give_json, log, read, read_paths, text_of};
use crate::egress::{AgentId, Destination, EgressRequest, TenantId};
use crate::policy::{Mode, Proven, Question, Recorded, Requirement, Verdict};

#[derive(Args)]
pub(in crate::cli) struct ExplainArgs {
    /// The agent
    #[arg(long, value_name = "NAME", required_unless_present = "from_audit")]
    agent: Option<String>,
    /// Its tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Whom the token is for, its `aud`; may be given again [default: whomever the tenant's only document wants, or the one that names none]
    #[arg(long, value_name = "AUDIENCE")]
    audience: Vec<String>,
    /// What the token is limited to; may be given again
    #[arg(long, value_name = "DESTINATION", value_delimiter = ',')]
    allow: Vec<String>,
    /// An address that the host has; may be given again
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<IpAddr>,
    /// Files or directories [default: the configured policy]
    #[arg(long, value_name = "PATH")]
    policy: Vec<PathBuf>,
    /// How the gateway is set, where files are named
    #[arg(long, value_enum, default_value_t = ModeArg::Enforce)]
    mode: ModeArg,
    /// By this version of the policy, which `check --keep` has put into --history
    #[arg(
        long,
        value_name = "VERSION",
        requires = "history",
        conflicts_with = "policy"
    )]
    at: Option<String>,
    /// Where versions are kept
    #[arg(long, value_name = "FOLDER")]
    history: Option<PathBuf>,
    /// Of the request with this number in the log given instead of METHOD and
    /// URL; with --history, by the policy of then
    #[arg(long, value_name = "REQUEST_ID", num_args = 2, value_names = ["REQUEST_ID", "LOG"],
          conflicts_with_all = ["agent", "tenant", "address", "method", "inside"])]
    from_audit: Option<Vec<String>>,
    /// What the body calls by JSON-RPC; may be given again, for a batch
    #[arg(long, value_name = "METHOD", value_delimiter = ',')]
    rpc_method: Vec<String>,
    /// What has proven the agent [default: a token, or what was recorded]
    #[arg(long, value_enum, value_name = "WHAT")]
    credentials: Option<CredentialsArg>,
    /// The gateway sees inside TLS, as on a named route
    #[arg(long)]
    inside: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t = Output::Text)]
    format: Output,
    /// GET, POST, …, or CONNECT
    #[arg(required_unless_present = "from_audit")]
    method: Option<String>,
    /// The URL, or host:port for CONNECT. An https URL is what goes through a tunnel: ask for CONNECT
    #[arg(required_unless_present = "from_audit")]
    url: Option<String>,
}

/// What has proven an agent.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum CredentialsArg {
    Token,
    Certificate,
    Both,
}

impl From<CredentialsArg> for Proven {
    fn from(credentials: CredentialsArg) -> Self {
        Self::from(match credentials {
            CredentialsArg::Token => Requirement::Token,
            CredentialsArg::Certificate => Requirement::Certificate,
            CredentialsArg::Both => Requirement::Both,
        })
    }
}

/// What is to be explained.
struct Asked {
    question: Question,
    addresses: Vec<IpAddr>,
    version: Option<String>,
}

pub(super) fn explain(settings: &SettingsArgs, args: &ExplainArgs) -> anyhow::Result<Found> {
    let asked = match args.from_audit.as_deref() {
        Some([id, file]) => recorded(args, id, Path::new(file))?,
        _ => asked(args)?,
    };
    let version = args.at.as_ref().or(asked.version.as_ref());
    let loaded = match (version, &args.history) {
        (Some(version), Some(folder)) => kept(folder, version)?,
        _ => read(settings, &args.policy, args.mode.into())?.good()?,
    };
    let mut explanation = asked.question.ask(&loaded.set, &asked.addresses);
    explanation.add_limits(&loaded.limits, &asked.question.request);
    explanation.locate(|name| text_of(&loaded.sources, name));
    match args.format {
        Output::Text => give(&format!("{explanation}\n")),
        Output::Json => give_json(&explanation)?,
    }
    Ok(match explanation.verdict {
        Verdict::Deny => Found::Something,
        Verdict::Allow | Verdict::Audit => Found::Nothing,
    })
}

fn destinations(args: &ExplainArgs) -> anyhow::Result<Option<Vec<Destination>>> {
    let list = args
        .allow
        .iter()
        .map(|raw| Destination::parse(raw.trim()).with_context(|| format!("--allow {raw}")))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((!list.is_empty()).then_some(list))
}

fn asked(args: &ExplainArgs) -> anyhow::Result<Asked> {
    let (Some(agent), Some(method), Some(url)) = (&args.agent, &args.method, &args.url) else {
        bail!("write --agent NAME METHOD URL");
    };
    let tenant = args.tenant.as_deref().map(TenantId::parse);
    let request = Question::request(method, url, args.inside)
        .map_err(|error| anyhow::anyhow!("{url}: {error}"))?;
    let calls = calls(args, &request)?;
    Ok(Asked {
        question: Question {
            agent: AgentId::parse(agent).context("--agent")?,
            tenant: tenant.transpose().context("--tenant")?,
            audiences: (!args.audience.is_empty()).then(|| args.audience.clone()),
            destinations: destinations(args)?,
            request,
            calls,
            proven: args.credentials.map_or(Proven::BY_TOKEN, Proven::from),
        },
        addresses: args.address.clone(),
        version: None,
    })
}

/// What the body calls, where the command line tells it.
fn calls(args: &ExplainArgs, request: &EgressRequest) -> anyhow::Result<Option<Vec<String>>> {
    let told = (!args.rpc_method.is_empty()).then(|| args.rpc_method.clone());
    Question::calls(told, request).map_err(|error| anyhow::anyhow!("--rpc-method: {error}"))
}

/// The request that a record tells of. What its token was limited to is not
/// recorded, nor always what its body called; `--allow` and `--rpc-method` say it
/// where it matters.
fn recorded(args: &ExplainArgs, id: &str, file: &Path) -> anyhow::Result<Asked> {
    let mut found: Option<Recorded> = None;
    log::lines(&[file.to_owned()], |_, line| {
        if found.is_none()
            && let Ok(record) = Recorded::parse(line)
            && record.request_id == id
            && record.request.is_some()
        {
            found = Some(record);
        }
        Ok(())
    })?;
    let record = found
        .with_context(|| format!("{} has no request {id} with a destination", file.display()))?;
    let (Some(agent), Some(request)) = (record.agent, record.request) else {
        bail!(
            "the record of {id} names no agent: it was refused before the policy was asked ({})",
            record.reason
        );
    };
    // What is told goes before what was recorded.
    let calls = calls(args, &request)?.or(record.calls);
    Ok(Asked {
        question: Question {
            agent,
            tenant: record.tenant,
            audiences: match args.audience.is_empty() {
                true => record.audiences,
                false => Some(args.audience.clone()),
            },
            destinations: destinations(args)?,
            request,
            calls,
            proven: (args.credentials.map(Proven::from))
                .or(record.proven)
                .unwrap_or(Proven::BY_TOKEN),
        },
        addresses: record.address.into_iter().collect(),
        version: record.policy_version,
    })
}

/// A version that was kept. Its name is not believed: the version is what its
/// documents say, with the gateway in one mode or the other.
fn kept(folder: &Path, version: &str) -> anyhow::Result<Loaded> {
    let named = version.bytes().all(|b| b.is_ascii_hexdigit()) && !version.is_empty();
    if !named {
        bail!("{version:?} is no version; records and `policy check` show some");
    }
    let place = folder.join(version);
    if !place.is_dir() {
        bail!(
            "{} has no version {version}; `policy check --keep {}` keeps the one that is checked",
            folder.display(),
            folder.display()
        );
    }
    for mode in [Mode::Enforce, Mode::Audit] {
        let loaded = read_paths(std::slice::from_ref(&place), mode)?.good()?;
        if **loaded.set.digest() == *version {
            return Ok(loaded);
        }
    }
    bail!(
        "{} has been changed: it is not version {version} any more",
        place.display()
    )
}

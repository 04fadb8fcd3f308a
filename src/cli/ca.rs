//! `agentport ca`: a private certificate authority for development and small
//! fleets, in a folder.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use crate::adapters::ca::{Authority, Holder, IssuedCertificate, Wanted};
use crate::adapters::ca_key::Passphrase;
use crate::audit::Rfc3339;
use crate::egress::{AgentId, DnsName, Host, TenantId};

/// How long an agent's certificate is valid: it is renewed, not revoked.
const AGENT_LASTS: Duration = Duration::from_secs(24 * 3600);
/// How long a server's is.
const SERVER_LASTS: Duration = Duration::from_secs(30 * 24 * 3600);
const DAY: u64 = 24 * 3600;

#[derive(Subcommand)]
pub(super) enum CaCommand {
    /// Make a CA in a folder: ca.pem for those who trust it, ca.key for nobody else, crl.pem
    Init(InitArgs),
    /// Issue a certificate with a new key, and print its file
    Issue(IssueArgs),
    /// Issue certificates anew, of the same names, in the same files
    Renew(RenewArgs),
    /// Print the CA and what it has issued
    Show {
        #[command(flatten)]
        folder: FolderArgs,
    },
    /// Take certificates back, and write crl.pem anew
    Revoke(RevokeArgs),
}

#[derive(Args)]
pub(super) struct FolderArgs {
    /// The CA's folder
    #[arg(
        long,
        value_name = "FOLDER",
        env = "AGENTPORT_CA_FOLDER",
        default_value = "ca"
    )]
    folder: PathBuf,
    /// How long crl.pem holds from each writing on; past that, gateways let nobody in by it
    #[arg(long, value_name = "TIME", default_value = "30d")]
    crl_for: String,
    /// A file with the passphrase of ca.key; `init` encrypts the key by it
    #[arg(long, value_name = "FILE", env = "AGENTPORT_CA_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct InitArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// The domain of the agents' SPIFFE ids, spiffe://DOMAIN/agent/NAME
    #[arg(long, value_name = "DOMAIN")]
    domain: String,
    /// How many days the CA's own certificate is valid
    #[arg(long, value_name = "DAYS", default_value = "3650", value_parser = clap::value_parser!(u64).range(1..=36500))]
    days: u64,
}

#[derive(Args)]
pub(super) struct IssueArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// For this agent
    #[arg(long, value_name = "NAME", required_unless_present = "server")]
    agent: Option<String>,
    /// The agent's tenant
    #[arg(long, value_name = "NAME", requires = "agent")]
    tenant: Option<String>,
    /// For a server of this name or address; may be given again, or as a list with commas
    #[arg(
        long,
        value_name = "HOST",
        value_delimiter = ',',
        conflicts_with = "agent"
    )]
    server: Vec<String>,
    /// A DNS name or address for the agent's certificate, beside its SPIFFE id; may be given again
    #[arg(long, value_name = "HOST", value_delimiter = ',', requires = "agent")]
    dns: Vec<String>,
    /// How long it is valid, and each that renews it [default: 24h for agents, 30d for servers]
    #[arg(long = "for", value_name = "TIME")]
    lasts: Option<String>,
    /// The folder for certificate and key [default: issued/ in the CA's]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct RenewArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// Certificates [default: all of which two thirds of their time are over]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Args)]
pub(super) struct RevokeArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// Certificates, by their file or their serial number
    #[arg(value_name = "FILE|SERIAL", required = true)]
    which: Vec<String>,
}

pub(super) fn run(command: &CaCommand) -> anyhow::Result<ExitCode> {
    let now = SystemTime::now();
    match command {
        CaCommand::Init(args) => {
            let domain = args.domain.parse::<Host>().ok();
            let Some(Host::Name(domain)) = domain else {
                bail!(
                    "--domain {}: write a DNS name, such as example.org",
                    args.domain
                );
            };
            init(args, &domain, now)?;
        }
        CaCommand::Issue(args) => {
            let issued = open(&args.folder)?.issue(&wanted(args)?, now)?;
            super::give(&format!("{}\n", issued.file.display()));
            super::say(&described(&issued));
        }
        CaCommand::Renew(args) => {
            let renewed = open(&args.folder)?.renew(&args.files, now)?;
            if renewed.is_empty() {
                super::say("no certificate is due; the list of revoked ones is written anew");
            }
            for issued in &renewed {
                super::give(&format!("{}\n", issued.file.display()));
                super::say(&described(issued));
            }
        }
        CaCommand::Show { folder } => show(&open(folder)?, now)?,
        CaCommand::Revoke(args) => {
            let authority = open(&args.folder)?;
            for issued in authority.revoke(&args.which, now)? {
                super::say(&format!(
                    "revoked: {} {}",
                    issued.serial,
                    issued.names.join(" ")
                ));
            }
            super::give(&format!("{}\n", authority.list().display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn open(args: &FolderArgs) -> anyhow::Result<Authority> {
    let passphrase = passphrase(args)?;
    Ok(Authority::open(
        &args.folder,
        list_lasts(args)?,
        passphrase.as_ref(),
    )?)
}

/// Never asked for: who runs this may be a script.
fn passphrase(args: &FolderArgs) -> anyhow::Result<Option<Passphrase>> {
    let Some(file) = &args.passphrase_file else {
        return Ok(None);
    };
    let place = || format!("--passphrase-file {}", file.display());
    let text = std::fs::read_to_string(file).with_context(place)?;
    let passphrase = Passphrase::new(&text).map_err(anyhow::Error::msg);
    passphrase.with_context(place).map(Some)
}

fn list_lasts(args: &FolderArgs) -> anyhow::Result<Duration> {
    time("--crl-for", &args.crl_for)
}

fn time(flag: &str, text: &str) -> anyhow::Result<Duration> {
    let lasts = crate::config::parse_duration(text)
        .map_err(|error| anyhow::anyhow!("{flag} {text}: {error}"))?;
    if lasts < Duration::from_secs(1) {
        bail!("{flag} {text}: write at least 1s");
    }
    Ok(lasts)
}

fn init(args: &InitArgs, domain: &DnsName, now: SystemTime) -> anyhow::Result<()> {
    let lasts = Duration::from_secs(args.days * DAY);
    let lists = list_lasts(&args.folder)?;
    let passphrase = passphrase(&args.folder)?;
    let authority = Authority::create(
        &args.folder.folder,
        domain,
        (lasts, lists),
        passphrase.as_ref(),
        now,
    )?;
    super::give(&format!("{}\n", authority.certificate().display()));
    super::say(&format!(
        "tls.clients of gateways: ca {}, crl {}, names spiffe://{domain}/agent/{{agent}}",
        authority.certificate().display(),
        authority.list().display(),
        domain = domain.as_str(),
    ));
    Ok(())
}

fn wanted(args: &IssueArgs) -> anyhow::Result<Wanted> {
    let (holder, raw, lasts) = match &args.agent {
        Some(agent) => {
            let holder = Holder::Agent {
                agent: AgentId::parse(agent).context("--agent")?,
                tenant: args
                    .tenant
                    .as_deref()
                    .map(TenantId::parse)
                    .transpose()
                    .context("--tenant")?,
            };
            (holder, &args.dns, AGENT_LASTS)
        }
        None => (Holder::Server, &args.server, SERVER_LASTS),
    };
    let names = raw
        .iter()
        .map(|raw| Host::parse(raw).with_context(|| raw.clone()))
        .collect::<Result<_, _>>()?;
    Ok(Wanted {
        holder,
        names,
        lasts: match &args.lasts {
            Some(text) => time("--for", text)?,
            None => lasts,
        },
        out: args.out.clone(),
    })
}

fn show(authority: &Authority, now: SystemTime) -> anyhow::Result<()> {
    let shown = authority.show()?;
    let seconds = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    super::give(&format!(
        "CA of spiffe://{}: {}, until {}\nrevoked certificates: {}, until {}\n",
        shown.domain,
        authority.certificate().display(),
        written(shown.expires),
        authority.list().display(),
        written(shown.list_expires),
    ));
    if now >= shown.list_expires {
        super::say("the list of revoked certificates is past its time: run `agentport ca renew`");
    }
    for issued in &shown.issued {
        let state = match issued.revoked {
            Some(at) => format!("revoked {}", of_seconds(at)),
            None if issued.expires <= seconds => "expired".to_owned(),
            None if issued.replaced => "renewed".to_owned(),
            None => "valid".to_owned(),
        };
        super::give(&format!("{}, {state}\n", described(issued)));
    }
    Ok(())
}

fn described(issued: &IssuedCertificate) -> String {
    let whose = if issued.server { "server" } else { "agent" };
    format!(
        "{} {whose} {}, until {}",
        issued.serial,
        issued.names.join(" "),
        of_seconds(issued.expires)
    )
}

fn of_seconds(seconds: u64) -> String {
    written(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

fn written(time: SystemTime) -> String {
    // Whole seconds are all there is.
    Rfc3339(time).to_string().replace(".000000", "")
}

//! `agentport probe`: whether an agent could get out from here.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use crate::connect::Address;
use crate::egress::Authority;
use crate::probe::{self, GatewayPlan, Outcome, Plan, Report, Way};

/// Services that a host of containers may have open, and that an agent must
/// not reach.
const HOST_PORTS: &str = "22,80,443,2375,2376,6443,10250";

/// How a probe ends for programs: contained, a leak, and not to be told, which
/// is also what a mistake on the command line is.
const CONTAINED: u8 = 0;
const LEAK: u8 = 1;
const INCONCLUSIVE: u8 = 2;

/// Run it where the agent runs, as its user. Exit code: 0 contained, 1 a way
/// out, 2 it could not be told.
#[derive(Args)]
pub(super) struct ProbeArgs {
    /// The gateway: http://HOST:PORT, https://HOST:PORT or unix:/PATH; without it, only ways around it are tried
    #[arg(long, value_name = "URL")]
    gateway: Option<String>,
    /// A PEM bundle that the gateway is checked against [default: the system's roots]
    #[arg(long, value_name = "FILE", requires = "gateway")]
    ca: Option<PathBuf>,
    /// A file with the agent's token; or AGENTPORT_TOKEN
    #[arg(long, value_name = "FILE", env = "AGENTPORT_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// A destination that policy allows this agent, and that speaks TLS
    #[arg(long, value_name = "HOST:PORT", requires = "gateway")]
    allowed: Option<String>,
    /// A destination that policy refuses this agent
    #[arg(long, value_name = "HOST:PORT", default_value = "probe.invalid:443")]
    refused: String,
    /// The TLS server name that is written where another host was allowed
    #[arg(long, value_name = "NAME", default_value = "probe.invalid")]
    other_name: String,
    /// Ports of the gateway that are not for agents: admin and peers
    #[arg(
        long,
        value_name = "PORTS",
        value_delimiter = ',',
        default_value = "9090,8443"
    )]
    private_ports: Vec<u16>,
    /// What must be reachable from here, so that silence means something; the gateway is one by itself
    #[arg(long, value_name = "ADDRESS:PORT", value_delimiter = ',')]
    control: Vec<SocketAddr>,
    /// Public addresses that accept TCP
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        value_delimiter = ',',
        default_value = "1.1.1.1:443,8.8.8.8:443,[2606:4700:4700::1111]:443"
    )]
    tcp: Vec<SocketAddr>,
    /// Clouds' metadata services
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        value_delimiter = ',',
        default_value = "169.254.169.254:80,169.254.170.2:80,100.100.100.200:80,[fd00:ec2::254]:80"
    )]
    metadata: Vec<SocketAddr>,
    /// Public name servers, asked by UDP and TCP
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        value_delimiter = ',',
        default_value = "1.1.1.1:53,8.8.8.8:53,[2606:4700:4700::1111]:53"
    )]
    dns: Vec<SocketAddr>,
    /// Public resolvers by HTTPS
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        value_delimiter = ',',
        default_value = "1.1.1.1:443,8.8.8.8:443,[2606:4700:4700::1111]:443"
    )]
    doh: Vec<SocketAddr>,
    /// Public servers that speak QUIC
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        value_delimiter = ',',
        default_value = "1.1.1.1:443,8.8.8.8:443,[2606:4700:4700::1111]:443"
    )]
    quic: Vec<SocketAddr>,
    /// Public addresses that answer echo requests
    #[arg(
        long,
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "1.1.1.1,8.8.8.8,2606:4700:4700::1111"
    )]
    ping: Vec<IpAddr>,
    /// A name that the public DNS has an IPv4 address for
    #[arg(long, value_name = "NAME", default_value = "example.com")]
    name: String,
    /// Name servers that must not resolve it, beside the system's resolver [default: those of /etc/resolv.conf]
    #[arg(long, value_name = "ADDRESS:PORT", value_delimiter = ',')]
    resolver: Vec<SocketAddr>,
    /// The host, as seen from here [default: the default gateways, and the first address of each network]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    host: Vec<IpAddr>,
    /// Its ports
    #[arg(long, value_name = "PORTS", value_delimiter = ',', default_value = HOST_PORTS)]
    host_ports: Vec<u16>,
    /// Other agents, which this one must not reach
    #[arg(long, value_name = "ADDRESS:PORT", value_delimiter = ',')]
    agent: Vec<SocketAddr>,
    /// Count a refused connection to the host or another agent as contained: a firewall is known to refuse rather than to drop
    #[arg(long)]
    refused_is_contained: bool,
    /// Ways that are not tried, such as icmp or gateway-sni
    #[arg(long, value_name = "WAYS", value_delimiter = ',')]
    skip: Vec<String>,
    /// How long one attempt may take
    #[arg(long, value_name = "TIME", default_value = "2s")]
    timeout: String,
    /// How long all of them may take
    #[arg(long, value_name = "TIME", default_value = "60s")]
    budget: String,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

pub(super) fn probe(args: &ProbeArgs) -> ExitCode {
    // A mistake must not look like a leak, and still less like none.
    let report = plan(args).and_then(|plan| {
        let report = probe::run(&plan);
        let text = match args.format {
            Format::Text => text(&report),
            Format::Json => serde_json::to_string_pretty(&report)? + "\n",
        };
        super::give(&text);
        Ok(report)
    });
    match report {
        Ok(report) => ExitCode::from(match report.outcome {
            Outcome::Contained => CONTAINED,
            Outcome::Leak => LEAK,
            Outcome::Inconclusive => INCONCLUSIVE,
        }),
        Err(error) => {
            super::say(&format!("agentport: {error:#}"));
            ExitCode::from(INCONCLUSIVE)
        }
    }
}

fn plan(args: &ProbeArgs) -> anyhow::Result<Plan> {
    let duration = |flag: &str, text: &str| -> anyhow::Result<Duration> {
        let time = crate::config::parse_duration(text)
            .map_err(|error| anyhow::anyhow!("{flag} {text}: {error}"))?;
        if time.is_zero() {
            bail!("{flag} {text}: write 2s, or more");
        }
        Ok(time)
    };
    let gateway = match &args.gateway {
        Some(url) => Some(gateway(args, url)?),
        None => None,
    };
    let hosts = if args.host.is_empty() {
        probe::neighbours()
    } else {
        args.host.clone()
    };
    let resolvers = if args.resolver.is_empty() {
        probe::name_servers()
    } else {
        args.resolver.clone()
    };
    let host = hosts
        .iter()
        .flat_map(|host| args.host_ports.iter().map(|port| (*host, *port).into()))
        .collect();
    Ok(Plan {
        skip: args
            .skip
            .iter()
            .map(|way| way_of(way))
            .collect::<anyhow::Result<_>>()?,
        control: args.control.clone(),
        tcp: args.tcp.clone(),
        metadata: args.metadata.clone(),
        dns: args.dns.clone(),
        doh: args.doh.clone(),
        quic: args.quic.clone(),
        ping: args.ping.clone(),
        name: args.name.clone(),
        resolvers,
        host,
        agents: args.agent.clone(),
        refused_is_contained: args.refused_is_contained,
        gateway,
        timeout: duration("--timeout", &args.timeout)?,
        budget: duration("--budget", &args.budget)?,
    })
}

fn gateway(args: &ProbeArgs, url: &str) -> anyhow::Result<GatewayPlan> {
    let (address, _) =
        Address::parse(url).map_err(|error| anyhow::anyhow!("--gateway: {error}"))?;
    let authority = |flag: &str, text: &str| -> anyhow::Result<String> {
        let parsed: Authority = text
            .parse()
            .map_err(|error| anyhow::anyhow!("{flag} {text}: {error}: write HOST:PORT"))?;
        Ok(parsed.to_string())
    };
    Ok(GatewayPlan {
        address,
        ca: args.ca.clone(),
        token: token(args)?,
        private_ports: args.private_ports.clone(),
        allowed: args
            .allowed
            .as_deref()
            .map(|text| authority("--allowed", text))
            .transpose()?,
        refused: authority("--refused", &args.refused)?,
        other_name: args.other_name.clone(),
    })
}

/// The token, which is never shown.
fn token(args: &ProbeArgs) -> anyhow::Result<Option<String>> {
    let text = match &args.token_file {
        Some(path) if !path.as_os_str().is_empty() => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the token in {}", path.display()))?,
        _ => match std::env::var("AGENTPORT_TOKEN") {
            Ok(token) => token,
            Err(_) => return Ok(None),
        },
    };
    let token = text.trim();
    if token.is_empty() {
        return Ok(None);
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!(
            "the token has a blank or a control character in it: give one token and nothing else"
        );
    }
    Ok(Some(token.to_owned()))
}

fn way_of(word: &str) -> anyhow::Result<Way> {
    let known = Way::ALL.into_iter().find(|way| way.as_str() == word);
    known.with_context(|| {
        let all: Vec<_> = Way::ALL.iter().map(|way| way.as_str()).collect();
        format!("--skip {word}: write some of {}", all.join(", "))
    })
}

fn text(report: &Report) -> String {
    let width = |of: fn(&probe::Finding) -> &str| {
        let widths = report.findings.iter().map(|one| of(one).chars().count());
        widths.max().unwrap_or(0)
    };
    let (ways, targets) = (width(|one| &one.way), width(|one| &one.target));
    let mut text = String::new();
    for finding in &report.findings {
        let _ = writeln!(
            text,
            "{:<14}  {:ways$}  {:targets$}  {}",
            finding.verdict.as_str(),
            finding.way,
            finding.target,
            finding.detail
        );
    }
    text.push_str(match report.outcome {
        Outcome::Contained => "contained: nothing got out but by the gateway\n",
        Outcome::Leak => "LEAK: something got out; see FAIL\n",
        Outcome::Inconclusive => {
            "inconclusive: no way out was found, but not everything could be told\n"
        }
    });
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ProbeArgs,
    }

    fn parsed(arguments: &[&str]) -> anyhow::Result<Plan> {
        let line = std::iter::once(&"probe").chain(arguments);
        plan(&Line::try_parse_from(line)?.args)
    }

    #[test]
    fn defaults_try_every_kind() {
        let plan = parsed(&[]).expect("the defaults are valid");
        for targets in [&plan.tcp, &plan.metadata, &plan.dns, &plan.doh, &plan.quic] {
            assert!(targets.iter().any(SocketAddr::is_ipv4));
            assert!(targets.iter().any(SocketAddr::is_ipv6));
        }
        assert_eq!(plan.name, "example.com");
        assert!(plan.gateway.is_none());
    }

    #[test]
    fn mistakes_say_what_to_write() {
        for (arguments, said) in [
            (&["--skip", "smtp"][..], "dns-udp"),
            (&["--gateway", "gateway:8080"], "http://HOST:PORT"),
            (
                &["--gateway", "http://g:1", "--allowed", "a.example"],
                "HOST:PORT",
            ),
            (&["--timeout", "0s"], "write 2s"),
            (&["--tcp", "example.com:443"], "invalid socket address"),
            (&["--gateway", "http://u:p@g:1"], "remove it"),
        ] {
            let error = parsed(arguments).expect_err("a mistake");
            let text = format!("{error:#}");
            assert!(text.contains(said), "{arguments:?}: {text}");
        }
    }
}

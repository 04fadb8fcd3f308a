//! Tries to get out of where an agent runs: without the gateway, which must
//! fail, and by the gateway, against policy, which must fail too.
//!
//! It is the one place that dials without an admission, since it is run where
//! the agent is and proves that dialling there is of no use. It sends what a
//! program would send first, a few packets for each target, and nothing else.

mod attempt;
mod gateway;
mod here;
mod wire;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use serde::Serialize;

pub use here::{name_servers, neighbours};

use crate::connect::Address;

/// How many attempts are under way at once.
const AT_ONCE: usize = 8;

/// A way out that is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// Something that must be reachable, so that silence means something.
    Control,
    /// A TCP connection to a public address.
    Tcp,
    /// A TCP connection to a cloud's metadata service.
    Metadata,
    /// A question to a public name server, by UDP.
    DnsUdp,
    /// The same by TCP.
    DnsTcp,
    /// TLS to a public resolver that answers by HTTPS.
    Doh,
    /// A QUIC packet that every server answers.
    Quic,
    /// An echo request.
    Icmp,
    /// A public name, asked of the resolvers that programs here are told of.
    Resolver,
    /// Services of the machine that runs the agent's container.
    Host,
    /// The gateway's listeners that are not for agents.
    GatewayPorts,
    /// Other agents.
    Agents,
    /// By the gateway: what policy allows.
    GatewayAllows,
    /// By the gateway: what policy does not allow.
    GatewayRefuses,
    /// By the gateway: without a credential.
    GatewayNoCredential,
    /// By the gateway: a cloud's metadata service.
    GatewayMetadata,
    /// By the gateway: its own listeners.
    GatewayOwnPorts,
    /// By the gateway: another TLS server name than the host that was allowed.
    GatewaySni,
}

impl Way {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 18] = [
        Self::Control,
        Self::Tcp,
        Self::Metadata,
        Self::DnsUdp,
        Self::DnsTcp,
        Self::Doh,
        Self::Quic,
        Self::Icmp,
        Self::Resolver,
        Self::Host,
        Self::GatewayPorts,
        Self::Agents,
        Self::GatewayAllows,
        Self::GatewayRefuses,
        Self::GatewayNoCredential,
        Self::GatewayMetadata,
        Self::GatewayOwnPorts,
        Self::GatewaySni,
    ];

    /// The word in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Tcp => "tcp",
            Self::Metadata => "metadata",
            Self::DnsUdp => "dns-udp",
            Self::DnsTcp => "dns-tcp",
            Self::Doh => "doh",
            Self::Quic => "quic",
            Self::Icmp => "icmp",
            Self::Resolver => "resolver",
            Self::Host => "host",
            Self::GatewayPorts => "gateway-ports",
            Self::Agents => "agents",
            Self::GatewayAllows => "gateway-allows",
            Self::GatewayRefuses => "gateway-refuses",
            Self::GatewayNoCredential => "gateway-no-credential",
            Self::GatewayMetadata => "gateway-metadata",
            Self::GatewayOwnPorts => "gateway-own-ports",
            Self::GatewaySni => "gateway-sni",
        }
    }

    /// Whether a refused connection may mean that the way is open and only
    /// nobody listens at its end. At public addresses somebody is known to
    /// listen, and of the gateway it is the listeners alone that matter.
    fn refusal_is_ambiguous(self) -> bool {
        matches!(self, Self::Host | Self::Agents)
    }
}

/// What is tried, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Ways that are not tried.
    pub skip: Vec<Way>,
    /// What must be reachable by TCP, beside the gateway.
    pub control: Vec<SocketAddr>,
    /// Public addresses that accept TCP.
    pub tcp: Vec<SocketAddr>,
    /// Metadata services.
    pub metadata: Vec<SocketAddr>,
    /// Public name servers, for UDP and TCP.
    pub dns: Vec<SocketAddr>,
    /// Public resolvers that speak HTTPS.
    pub doh: Vec<SocketAddr>,
    /// Public servers that speak QUIC.
    pub quic: Vec<SocketAddr>,
    /// Public addresses that answer echo requests.
    pub ping: Vec<IpAddr>,
    /// A name that the public DNS has an IPv4 address for.
    pub name: String,
    /// The name servers that programs here are told of.
    pub resolvers: Vec<SocketAddr>,
    /// Services of the host.
    pub host: Vec<SocketAddr>,
    /// Other agents.
    pub agents: Vec<SocketAddr>,
    /// Whether a refused connection to the host or another agent counts as
    /// contained, because a firewall is known to refuse rather than to drop.
    pub refused_is_contained: bool,
    /// The gateway, where it is tried too.
    pub gateway: Option<GatewayPlan>,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// How long all of them may take.
    pub budget: Duration,
}

/// What is tried with the gateway.
#[derive(Clone, Debug)]
pub struct GatewayPlan {
    /// Where it is.
    pub address: Address,
    /// A PEM bundle that it is checked against; else the system's roots.
    pub ca: Option<PathBuf>,
    /// The agent's token.
    pub token: Option<String>,
    /// Ports of its listeners that are not for agents.
    pub private_ports: Vec<u16>,
    /// `HOST:PORT` that policy allows.
    pub allowed: Option<String>,
    /// `HOST:PORT` that policy does not allow.
    pub refused: String,
    /// A server name that is not the allowed one.
    pub other_name: String,
}

/// What came of an attempt, as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// A way out, or around policy.
    Fail,
    /// It cannot be told.
    Inconclusive,
    /// There was nothing to try.
    NotApplicable,
}

impl Verdict {
    /// The word in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Inconclusive => "inconclusive",
            Self::NotApplicable => "not applicable",
        }
    }
}

/// What a verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// A connection came about.
    Connected,
    /// Something came back.
    Answered,
    /// Refused: a reset, or an ICMP message.
    Refused,
    /// No way there.
    Unreachable,
    /// The operating system does not let this process.
    Prohibited,
    /// Nothing came back in time, as where packets are dropped.
    Silence,
    /// The gateway said no.
    Denied,
    /// The other side ended it.
    Closed,
    /// It was not tried, or could not be.
    NotTried,
}

/// One attempt and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The way, with `-ipv6` where the target is such an address.
    pub way: String,
    /// Where it was tried.
    pub target: String,
    /// What it means.
    pub verdict: Verdict,
    /// What that rests on.
    pub evidence: Evidence,
    /// The same in words.
    pub detail: String,
}

/// What a whole probe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// No way out was found, by a probe that can see.
    Contained,
    /// There is a way out.
    Leak,
    /// It could not be told.
    Inconclusive,
}

/// Everything that was tried.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What it comes to.
    pub outcome: Outcome,
    /// One for each attempt, in the order of [`Way::ALL`].
    pub findings: Vec<Finding>,
}

/// What came of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    verdict: Verdict,
    evidence: Evidence,
    detail: String,
}

impl Seen {
    fn new(verdict: Verdict, evidence: Evidence, detail: impl Into<String>) -> Self {
        Self {
            verdict,
            evidence,
            detail: detail.into(),
        }
    }
}

/// One attempt that is to be made.
struct Job {
    way: Way,
    v6: bool,
    target: String,
    make: Box<dyn FnOnce() -> Seen + Send>,
}

/// Tries everything, and comes back when all is known or the budget is used up.
///
/// What is still under way then goes on in threads of its own until its own
/// time is over; nobody waits for it.
#[must_use]
pub fn run(plan: &Plan) -> Report {
    let deadline = Instant::now() + plan.budget;
    let jobs = jobs(plan);
    let mut findings: Vec<Finding> = jobs.iter().map(not_made).collect();
    let count = jobs.len();
    let queue: VecDeque<(usize, Job)> = jobs.into_iter().enumerate().collect();
    let queue = Arc::new(Mutex::new(queue));
    let (report, reports) = mpsc::channel();
    for _ in 0..AT_ONCE.min(count) {
        let (queue, report) = (Arc::clone(&queue), report.clone());
        std::thread::spawn(move || {
            loop {
                let next = lock(&queue).pop_front();
                let Some((at, job)) = next else { return };
                if report.send((at, (job.make)())).is_err() {
                    return;
                }
            }
        });
    }
    drop(report);
    while let Ok((at, seen)) = reports.recv_timeout(deadline - Instant::now().min(deadline)) {
        findings[at].verdict = seen.verdict;
        findings[at].evidence = seen.evidence;
        findings[at].detail = seen.detail;
    }
    // Nothing more is begun.
    lock(&queue).clear();
    findings.extend(absent(plan));
    findings.sort_by_key(|finding| {
        let base = finding.way.trim_end_matches("-ipv6");
        Way::ALL.iter().position(|way| way.as_str() == base)
    });
    Report {
        outcome: outcome(&findings),
        findings,
    }
}

fn lock<T>(queue: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A thread that panicked left the queue whole.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_made(job: &Job) -> Finding {
    Finding {
        way: name(job.way, job.v6),
        target: job.target.clone(),
        verdict: Verdict::Inconclusive,
        evidence: Evidence::NotTried,
        detail: "the time for all attempts was over: give more by --budget".into(),
    }
}

fn name(way: Way, v6: bool) -> String {
    let suffix = if v6 { "-ipv6" } else { "" };
    format!("{}{suffix}", way.as_str())
}

/// Any way out is a leak. No way out means something only where the probe can
/// see at all: something that must be reachable was reached.
fn outcome(findings: &[Finding]) -> Outcome {
    let any = |verdict| {
        findings
            .iter()
            .any(|finding| finding.verdict == verdict && finding.way != Way::Control.as_str())
    };
    let sees = findings.iter().any(|finding| {
        finding.way.starts_with(Way::Control.as_str()) && finding.verdict == Verdict::Pass
    });
    if any(Verdict::Fail) {
        Outcome::Leak
    } else if any(Verdict::Inconclusive) || !any(Verdict::Pass) || !sees {
        Outcome::Inconclusive
    } else {
        Outcome::Contained
    }
}

/// What is to be tried, in order.
fn jobs(plan: &Plan) -> Vec<Job> {
    let timeout = plan.timeout;
    let mut jobs: Vec<Job> = Vec::new();
    let mut tcp = |way: Way, targets: &[SocketAddr]| {
        for &target in targets {
            let lenient = plan.refused_is_contained || !way.refusal_is_ambiguous();
            jobs.push(Job {
                way,
                v6: target.is_ipv6(),
                target: target.to_string(),
                make: Box::new(move || attempt::tcp(target, timeout, lenient)),
            });
        }
    };
    tcp(Way::Tcp, &plan.tcp);
    tcp(Way::Metadata, &plan.metadata);
    tcp(Way::Host, &plan.host);
    tcp(Way::Agents, &plan.agents);
    let mut add = |way: Way, target: SocketAddr, make: Box<dyn FnOnce() -> Seen + Send>| {
        jobs.push(Job {
            way,
            v6: target.is_ipv6(),
            target: target.to_string(),
            make,
        });
    };
    for &target in &plan.control {
        let make = move || attempt::control(target, timeout);
        add(Way::Control, target, Box::new(make));
    }
    for &target in &plan.dns {
        let name = plan.name.clone();
        let make = move || attempt::dns_udp(target, &name, timeout);
        add(Way::DnsUdp, target, Box::new(make));
        let name = plan.name.clone();
        let make = move || attempt::dns_tcp(target, &name, timeout);
        add(Way::DnsTcp, target, Box::new(make));
    }
    for &target in &plan.doh {
        let make = move || attempt::doh(target, timeout);
        add(Way::Doh, target, Box::new(make));
    }
    for &target in &plan.quic {
        let make = move || attempt::quic(target, timeout);
        add(Way::Quic, target, Box::new(make));
    }
    for &target in &plan.resolvers {
        let name = plan.name.clone();
        let make = move || attempt::resolver(target, &name, timeout);
        add(Way::Resolver, target, Box::new(make));
    }
    for &target in &plan.ping {
        jobs.push(Job {
            way: Way::Icmp,
            v6: target.is_ipv6(),
            target: target.to_string(),
            make: Box::new(move || attempt::ping(target, timeout)),
        });
    }
    let name = plan.name.clone();
    jobs.push(Job {
        way: Way::Resolver,
        v6: false,
        target: "the system's".into(),
        make: Box::new(move || attempt::system_resolver(&name, timeout)),
    });
    if let Some(gateway) = &plan.gateway {
        jobs.extend(gateway::jobs(gateway, timeout));
    }
    jobs.retain(|job| !plan.skip.contains(&job.way));
    jobs
}

/// What could have been tried and was not, so that nobody takes it for tried.
fn absent(plan: &Plan) -> Vec<Finding> {
    let gateway = plan.gateway.as_ref();
    let reason = |way: Way| -> Option<&'static str> {
        if plan.skip.contains(&way) {
            return Some("left out by --skip");
        }
        match way {
            Way::Agents if plan.agents.is_empty() => Some("no other agent was named: --agent"),
            Way::Host if plan.host.is_empty() => {
                Some("no host is to be seen from here: name one by --host")
            }
            Way::Control if gateway.is_none() && plan.control.is_empty() => Some(
                "nothing that must be reachable was named, so that silence means nothing: --gateway or --control",
            ),
            Way::GatewayPorts
            | Way::GatewayAllows
            | Way::GatewayRefuses
            | Way::GatewayNoCredential
            | Way::GatewayMetadata
            | Way::GatewayOwnPorts
            | Way::GatewaySni => gateway::absent(way, gateway),
            _ => None,
        }
    };
    Way::ALL
        .into_iter()
        .filter_map(|way| {
            Some(Finding {
                way: name(way, false),
                target: "-".into(),
                verdict: Verdict::NotApplicable,
                evidence: Evidence::NotTried,
                detail: reason(way)?.into(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(way: &str, verdict: Verdict) -> Finding {
        Finding {
            way: way.into(),
            target: "192.0.2.1:1".into(),
            verdict,
            evidence: Evidence::NotTried,
            detail: String::new(),
        }
    }

    #[test]
    fn what_findings_come_to() {
        use Verdict::{Fail, Inconclusive, NotApplicable, Pass};
        for (case, findings, expected) in [
            (
                "closed, and the probe can see",
                vec![("control", Pass), ("tcp", Pass), ("icmp", NotApplicable)],
                Outcome::Contained,
            ),
            (
                "one way out among many that are closed",
                vec![("control", Pass), ("tcp", Pass), ("dns-udp", Fail)],
                Outcome::Leak,
            ),
            (
                "a way out weighs more than a doubt",
                vec![("control", Pass), ("host", Inconclusive), ("tcp", Fail)],
                Outcome::Leak,
            ),
            (
                "a way out is one, whatever the probe sees otherwise",
                vec![("control", Inconclusive), ("tcp", Fail)],
                Outcome::Leak,
            ),
            (
                "a doubt",
                vec![("control", Pass), ("tcp", Pass), ("host", Inconclusive)],
                Outcome::Inconclusive,
            ),
            (
                "nothing can be reached, so that nothing was shown",
                vec![("control", Inconclusive), ("tcp", Pass)],
                Outcome::Inconclusive,
            ),
            (
                "without a control",
                vec![("control", NotApplicable), ("tcp", Pass)],
                Outcome::Inconclusive,
            ),
            (
                "a control alone",
                vec![("control", Pass), ("tcp", NotApplicable)],
                Outcome::Inconclusive,
            ),
            ("nothing", vec![], Outcome::Inconclusive),
        ] {
            let findings: Vec<_> = findings
                .into_iter()
                .map(|(way, verdict)| finding(way, verdict))
                .collect();
            assert_eq!(outcome(&findings), expected, "{case}");
        }
    }

    #[test]
    fn every_way_is_listed_once() {
        let mut names: Vec<_> = Way::ALL.iter().map(|way| way.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Way::ALL.len());
    }
}

//! Reading back what the gateway has recorded: one line of the audit log, as
//! far as it says who asked for what and what became of it. Bytes from outside:
//! a log may be cut, mixed with other lines or made by somebody else.

use std::net::IpAddr;

use http::Method;
use serde::Deserialize;

use super::proven::Proven;
use super::rule::Calls;
use crate::egress::{AgentId, Ask, Authority, EgressRequest, Host, RequestPath, Scheme, TenantId};

/// The most bytes a line may have; no record is nearly as long.
pub const MAX_RECORD_BYTES: usize = 256 * 1024;

/// One record, read back.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// When, RFC 3339 in UTC: these texts sort as the times do.
    pub ts: String,
    /// What it tells of.
    pub event: RecordedEvent,
    /// The request's number.
    pub request_id: String,
    /// Who, where that was known.
    pub agent: Option<AgentId>,
    /// Its tenant.
    pub tenant: Option<TenantId>,
    /// Whom its token was for, where the policy asks for that.
    pub audiences: Option<Vec<String>>,
    /// What was asked for, where that was understood.
    pub request: Option<EgressRequest>,
    /// Host and port as they are written, also where the rest is not understood.
    pub destination: Option<String>,
    /// What its body called by JSON-RPC, where that was recorded.
    pub calls: Option<Vec<String>>,
    /// What had proven the agent, where that was recorded.
    pub proven: Option<Proven>,
    /// The address that was dialled or refused, where policy is asked about it:
    /// of the endpoint of another agent it is not.
    pub address: Option<IpAddr>,
    /// Whether anything was dialled, or has answered: what answers need not have
    /// an address, as behind a Unix socket, or one that is known here, as where
    /// a parent proxy resolves the name.
    pub reached: bool,
    /// Whether it passed.
    pub allowed: bool,
    /// Why not, or how it ended.
    pub reason: String,
    /// What enforcing would have said.
    pub would_deny: Option<String>,
    /// The version of the policy that decided.
    pub policy_version: Option<String>,
    /// How many requests it stands for.
    pub count: u64,
}

/// What a record tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordedEvent {
    /// A request.
    Request,
    /// A tunnel that was asked for.
    Tunnel,
    /// The end of a tunnel, whose beginning has a record of its own.
    TunnelClosed,
    /// Refusals that were counted.
    Repeated,
    /// A call from one agent to another.
    Delegation,
    /// A token that was issued.
    TokenIssued,
    /// A token that was asked for and refused.
    TokenRefused,
    /// Something that this version does not know.
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Line {
    ts: String,
    event: RecordedEvent,
    request_id: String,
    agent_id: Option<String>,
    tenant: Option<String>,
    audience: Option<Vec<String>>,
    method: Option<String>,
    scheme: Option<String>,
    destination_host: Option<String>,
    destination_port: Option<u16>,
    destination_ip: Option<IpAddr>,
    path: Option<String>,
    rpc_methods: Option<Vec<String>>,
    credential: Option<String>,
    action_allowed: bool,
    reason: String,
    would_deny: Option<String>,
    policy_version: Option<String>,
    status: Option<u16>,
    #[serde(default = "one")]
    count: u64,
}

fn one() -> u64 {
    1
}

/// How an exchange ends that has broken off. With a status beside it, the
/// destination had begun to answer: the gateway's own answers have other
/// reasons.
const BROKE_OFF: &[&str] = &[
    "aborted",
    "upstream_broke_off",
    "byte_budget",
    "policy_changed",
    "credential_ended",
    "revoked",
    "drained",
];

impl Line {
    fn reached(&self) -> bool {
        let broke_off = || BROKE_OFF.contains(&self.reason.as_str());
        self.destination_ip.is_some()
            || self.reason == "ok"
            || (self.status.is_some() && broke_off())
    }

    fn destination(&self) -> Option<String> {
        let host = self.destination_host.as_deref()?;
        Some(match self.destination_port {
            Some(port) if host.contains(':') && !host.starts_with('[') => {
                format!("[{host}]:{port}")
            }
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        })
    }
}

impl Recorded {
    /// What its body called, as the policy is asked.
    #[must_use]
    pub fn seen(&self) -> Calls<'_> {
        self.calls.as_deref().map_or(Calls::Unseen, Calls::Seen)
    }

    /// Reads one line.
    ///
    /// # Errors
    /// In words, why it is no audit record.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        if line.len() > MAX_RECORD_BYTES {
            return Err("longer than a record can be".to_owned());
        }
        let line: Line =
            serde_json::from_slice(line).map_err(|error| format!("no audit record: {error}"))?;
        let agent = line
            .agent_id
            .as_deref()
            .map(AgentId::parse)
            .transpose()
            .map_err(|error| format!("agent_id: {error}"))?;
        let tenant = line
            .tenant
            .as_deref()
            .map(TenantId::parse)
            .transpose()
            .map_err(|error| format!("tenant: {error}"))?;
        if !line
            .ts
            .bytes()
            .all(|b| b.is_ascii_digit() || b"-:.TZ".contains(&b))
        {
            return Err("ts: no time in UTC".to_owned());
        }
        Ok(Self {
            request: request(&line),
            destination: line.destination(),
            reached: line.reached(),
            ts: line.ts,
            event: line.event,
            request_id: line.request_id,
            agent,
            tenant,
            audiences: line.audience,
            calls: line.rpc_methods,
            proven: line.credential.as_deref().map(Proven::recorded),
            address: line
                .destination_ip
                .filter(|_| line.event != RecordedEvent::Delegation),
            allowed: line.action_allowed,
            reason: line.reason,
            would_deny: line.would_deny,
            policy_version: line.policy_version,
            count: line.count.max(1),
        })
    }
}

fn request(line: &Line) -> Option<EgressRequest> {
    let host = Host::parse(line.destination_host.as_deref()?).ok()?;
    let port = line.destination_port.filter(|port| *port != 0)?;
    let authority = Authority { host, port };
    let scheme = match line.scheme.as_deref()? {
        "tunnel" => {
            return Some(EgressRequest {
                authority,
                ask: Ask::Tunnel,
            });
        }
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    let method = Method::from_bytes(line.method.as_deref()?.as_bytes()).ok()?;
    let path = RequestPath::parse(line.path.as_deref()?).ok()?;
    Some(EgressRequest {
        authority,
        ask: Ask::Request {
            scheme,
            method,
            path,
        },
    })
}

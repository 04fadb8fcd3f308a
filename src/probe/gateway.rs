//! Attempts by the gateway: what policy allows passes, and nothing else.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::wire::{self, Answer};
use super::{Evidence, GatewayPlan, Job, Seen, Verdict, Way, attempt};
use crate::adapters::trust;
use crate::connect::Address;

/// The metadata service that is asked for by the gateway.
const METADATA: &str = "169.254.169.254:80";

/// Everything that is tried with this gateway.
pub(super) fn jobs(plan: &GatewayPlan, timeout: Duration) -> Vec<Job> {
    let job = |way, target: String, make: Box<dyn FnOnce() -> Seen + Send>| Job {
        way,
        v6: false,
        target,
        make,
    };
    let mut jobs = Vec::new();
    let gateway = Arc::new(Client {
        plan: plan.clone(),
        timeout,
    });
    let client = Arc::clone(&gateway);
    jobs.push(job(
        Way::Control,
        plan.address.to_string(),
        Box::new(move || client.control()),
    ));
    if let Address::Tcp { host, .. } | Address::Tls { host, .. } = &plan.address {
        for &port in &plan.private_ports {
            let (client, target) = (Arc::clone(&gateway), authority(host, port));
            let asked = target.clone();
            jobs.push(job(
                Way::GatewayPorts,
                target,
                Box::new(move || client.private_port(&asked)),
            ));
        }
    }
    let client = Arc::clone(&gateway);
    jobs.push(job(
        Way::GatewayNoCredential,
        plan.refused.clone(),
        Box::new(move || client.no_credential()),
    ));
    if plan.token.is_none() {
        return jobs;
    }
    let mut refused = vec![
        (Way::GatewayRefuses, plan.refused.clone()),
        (Way::GatewayMetadata, METADATA.to_owned()),
    ];
    for &port in &plan.private_ports {
        refused.push((Way::GatewayOwnPorts, authority("127.0.0.1", port)));
        if let Address::Tcp { host, .. } | Address::Tls { host, .. } = &plan.address {
            refused.push((Way::GatewayOwnPorts, authority(host, port)));
        }
    }
    refused.dedup();
    for (way, target) in refused {
        let (client, asked) = (Arc::clone(&gateway), target.clone());
        jobs.push(job(way, target, Box::new(move || client.refuses(&asked))));
    }
    if let Some(allowed) = &plan.allowed {
        let (client, asked) = (Arc::clone(&gateway), allowed.clone());
        jobs.push(job(
            Way::GatewayAllows,
            allowed.clone(),
            Box::new(move || client.allows(&asked)),
        ));
        let (client, asked) = (Arc::clone(&gateway), allowed.clone());
        jobs.push(job(
            Way::GatewaySni,
            format!("{allowed} as {}", plan.other_name),
            Box::new(move || client.other_name(&asked)),
        ));
    }
    jobs
}

/// Why one of the ways by the gateway is not tried.
pub(super) fn absent(way: Way, plan: Option<&GatewayPlan>) -> Option<&'static str> {
    let Some(plan) = plan else {
        return Some("no gateway was named: --gateway");
    };
    match way {
        Way::GatewayPorts if matches!(plan.address, Address::Unix(_)) => {
            Some("the gateway is reached by a Unix socket: name its ports by --agent")
        }
        Way::GatewayPorts | Way::GatewayOwnPorts if plan.private_ports.is_empty() => {
            Some("no port was named: --private-ports")
        }
        Way::GatewayNoCredential | Way::GatewayPorts => None,
        _ if plan.token.is_none() => Some("no token was given: --token-file or AGENTPORT_TOKEN"),
        Way::GatewayAllows | Way::GatewaySni if plan.allowed.is_none() => {
            Some("nothing that policy allows was named: --allowed")
        }
        _ => None,
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

struct Client {
    plan: GatewayPlan,
    timeout: Duration,
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

impl Client {
    fn control(&self) -> Seen {
        match self.dial() {
            Ok(_) => Seen::new(
                Verdict::Pass,
                Evidence::Connected,
                "the gateway is reached, as it must be",
            ),
            Err(error) => Seen::new(
                Verdict::Inconclusive,
                Evidence::Unreachable,
                format!("the gateway is not reached, so that this probe sees nothing: {error}"),
            ),
        }
    }

    fn private_port(&self, target: &str) -> Seen {
        match resolve(target) {
            Ok(address) => attempt::tcp(address, self.timeout, true),
            Err(error) => doubt(Evidence::NotTried, error),
        }
    }

    fn no_credential(&self) -> Seen {
        match self.ask(&self.plan.refused, None) {
            Ok((Answer { status: 407, .. }, _)) => Seen::new(
                Verdict::Pass,
                Evidence::Denied,
                "407: the gateway wants a credential",
            ),
            Ok((answer, _)) if is_let_pass(answer.status) => Seen::new(
                Verdict::Fail,
                Evidence::Answered,
                format!("let pass without a credential: {}", words(&answer)),
            ),
            Ok((answer, _)) => doubt(
                Evidence::Answered,
                format!("the gateway answered {}, and not 407", words(&answer)),
            ),
            Err(error) => doubt(Evidence::NotTried, error),
        }
    }

    fn refuses(&self, target: &str) -> Seen {
        match self.ask(target, self.plan.token.as_deref()) {
            Ok((answer, _)) if is_let_pass(answer.status) => Seen::new(
                Verdict::Fail,
                Evidence::Answered,
                format!("policy let it pass: {}", words(&answer)),
            ),
            Ok((answer, _)) if is_of_policy(&answer) => {
                Seen::new(Verdict::Pass, Evidence::Denied, words(&answer))
            }
            // A token that is no good is refused everything, which shows nothing.
            Ok((answer, _)) => doubt(
                Evidence::Answered,
                format!("not refused by policy, but {}", words(&answer)),
            ),
            Err(error) => doubt(Evidence::NotTried, error),
        }
    }

    fn allows(&self, target: &str) -> Seen {
        match self.ask(target, self.plan.token.as_deref()) {
            Ok((Answer { status: 200, .. }, _)) => Seen::new(
                Verdict::Pass,
                Evidence::Connected,
                "a tunnel came about, as it must",
            ),
            Ok((answer, _)) => doubt(
                Evidence::Answered,
                format!(
                    "{}: where nothing is allowed, refusals show nothing",
                    words(&answer)
                ),
            ),
            Err(error) => doubt(Evidence::NotTried, error),
        }
    }

    /// Opens a tunnel that is allowed, and names another server in it. A gateway
    /// that sees it passes nothing on, so that nothing comes back.
    fn other_name(&self, target: &str) -> Seen {
        let mut stream = match self.ask(target, self.plan.token.as_deref()) {
            Ok((Answer { status: 200, .. }, stream)) => stream,
            Ok((answer, _)) => {
                return doubt(
                    Evidence::Answered,
                    format!("no tunnel came about: {}", words(&answer)),
                );
            }
            Err(error) => return doubt(Evidence::NotTried, error),
        };
        let hello = match wire::client_hello(&self.plan.other_name) {
            Ok(hello) => hello,
            Err(error) => return doubt(Evidence::NotTried, error),
        };
        let mut first = [0];
        let read = stream
            .write_all(&hello)
            .and_then(|()| stream.flush())
            .and_then(|()| stream.read(&mut first));
        match read {
            Ok(0) => Seen::new(Verdict::Pass, Evidence::Closed, "the tunnel was closed"),
            Ok(_) => Seen::new(
                Verdict::Fail,
                Evidence::Answered,
                "the destination answered to another server name",
            ),
            Err(error) => match error.kind() {
                ErrorKind::ConnectionReset
                | ErrorKind::BrokenPipe
                | ErrorKind::ConnectionAborted
                | ErrorKind::UnexpectedEof => {
                    Seen::new(Verdict::Pass, Evidence::Closed, "the tunnel was closed")
                }
                _ => doubt(
                    Evidence::Silence,
                    format!("neither an answer nor an end: {error}"),
                ),
            },
        }
    }

    /// Asks for a tunnel, and gives the stream behind the answer.
    fn ask(&self, target: &str, token: Option<&str>) -> Result<(Answer, Box<dyn Stream>), String> {
        let mut stream = self.dial()?;
        let credential = token.map_or_else(String::new, |token| {
            format!("Proxy-Authorization: Bearer {token}\r\n")
        });
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{credential}\r\n");
        stream
            .write_all(request.as_bytes())
            .and_then(|()| stream.flush())
            .map_err(|error| format!("the gateway took no request: {error}"))?;
        let head = read_head(&mut stream, Instant::now() + self.timeout)?;
        let answer = wire::read_answer(&head).ok_or("the gateway answered no HTTP/1")?;
        Ok((answer, stream))
    }

    fn dial(&self) -> Result<Box<dyn Stream>, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.plan.address);
        let tcp = |host: &str, port| -> Result<TcpStream, String> {
            let address = resolve(&authority(host, port))?;
            let stream = TcpStream::connect_timeout(&address, self.timeout).map_err(failed)?;
            stream
                .set_read_timeout(Some(self.timeout))
                .and_then(|()| stream.set_write_timeout(Some(self.timeout)))
                .map_err(failed)?;
            Ok(stream)
        };
        match &self.plan.address {
            Address::Tcp { host, port } => Ok(Box::new(tcp(host, *port)?)),
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(failed)?;
                stream
                    .set_read_timeout(Some(self.timeout))
                    .and_then(|()| stream.set_write_timeout(Some(self.timeout)))
                    .map_err(failed)?;
                Ok(Box::new(stream))
            }
            Address::Tls { host, port } => {
                let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
                let config = trust::client(self.plan.ca.as_deref())?;
                let session =
                    ClientConnection::new(config, name).map_err(|error| error.to_string())?;
                let mut stream = StreamOwned::new(session, tcp(host, *port)?);
                while stream.conn.is_handshaking() {
                    stream.conn.complete_io(&mut stream.sock).map_err(failed)?;
                }
                Ok(Box::new(stream))
            }
        }
    }
}

/// Resolves as every program does; the gateway's own name, and nobody else's.
fn resolve(target: &str) -> Result<SocketAddr, String> {
    let mut found = target
        .to_socket_addrs()
        .map_err(|error| format!("{target}: {error}"))?;
    found
        .next()
        .ok_or_else(|| format!("{target} has no address"))
}

/// Reads byte by byte, so that nothing of what follows is taken.
fn read_head(stream: &mut impl Read, deadline: Instant) -> Result<Vec<u8>, String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= wire::MAX_HEAD {
            return Err("the head of the gateway's answer is too large".into());
        }
        if Instant::now() >= deadline {
            return Err("the gateway did not answer in time".into());
        }
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Err("the gateway closed the connection without an answer".into()),
            Ok(_) => head.extend(byte),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("the gateway did not answer: {error}")),
        }
    }
    Ok(head)
}

fn doubt(evidence: Evidence, detail: String) -> Seen {
    Seen::new(Verdict::Inconclusive, evidence, detail)
}

/// Whether the gateway had let it pass, though perhaps nobody answered there.
fn is_let_pass(status: u16) -> bool {
    matches!(status, 200..=299 | 502 | 504)
}

/// Whether it is policy that refused, and not the credential.
fn is_of_policy(answer: &Answer) -> bool {
    const REASONS: [&str; 7] = [
        "no_rule",
        "rule",
        "denylist",
        "not_in_token",
        "unknown_tenant",
        "own_listener",
        "not_inspectable",
    ];
    let reason = answer.reason.as_deref().unwrap_or_default();
    answer.status == 403 && (REASONS.contains(&reason) || reason.starts_with("address_"))
}

fn words(answer: &Answer) -> String {
    match &answer.reason {
        Some(reason) => format!("{} {reason}", answer.status),
        None => answer.status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_policys_refusal_shows_that_policy_refuses() {
        for (case, status, reason, expected) in [
            ("no rule", 403, Some("no_rule"), true),
            ("an address", 403, Some("address_metadata"), true),
            ("the gateway itself", 403, Some("own_listener"), true),
            ("a token that has expired", 403, Some("expired"), false),
            ("a revoked one", 403, Some("revoked"), false),
            ("another proxy", 403, None, false),
            ("throttled", 429, Some("throttled"), false),
            ("no credential", 407, Some("no_credential"), false),
        ] {
            let answer = Answer {
                status,
                reason: reason.map(str::to_owned),
            };
            assert_eq!(is_of_policy(&answer), expected, "{case}");
        }
    }

    #[test]
    fn what_is_tried_depends_on_what_is_known() {
        let plan = |token: Option<&str>, allowed: Option<&str>| GatewayPlan {
            address: Address::Tcp {
                host: "192.0.2.1".into(),
                port: 8080,
            },
            ca: None,
            token: token.map(str::to_owned),
            private_ports: vec![9090],
            allowed: allowed.map(str::to_owned),
            refused: "probe.invalid:443".into(),
            other_name: "probe.invalid".into(),
        };
        for (case, plan) in [
            ("no token", plan(None, None)),
            ("a token", plan(Some("t"), None)),
            ("all", plan(Some("t"), Some("a.example:443"))),
        ] {
            let jobs = jobs(&plan, Duration::from_secs(1));
            for way in Way::ALL
                .into_iter()
                .filter(|way| way.as_str().starts_with("gateway-"))
            {
                let tried = jobs.iter().any(|job| job.way == way);
                let told = absent(way, Some(&plan)).is_some();
                assert!(
                    tried != told,
                    "{case}: {} is tried or told of",
                    way.as_str()
                );
            }
        }
    }
}

//! Agents that can be called: the file that says where they are, where their
//! names lead, and whether they are well.
//!
//! What is asked here goes to endpoints that the operator has written down, and
//! carries nothing of an agent's.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use tokio_rustls::TlsConnector;

use crate::config::{Endpoint, HealthCheck, PeerDirectory};
use crate::egress::{Authority, DnsName};
use crate::gate::ports::Resolve;
use crate::proxy::{Callee, CalleeTls, PeerEndpoint};

use super::certificates::{self, InUse};
use super::watch::read_stable;

/// How often a name is looked up.
const LOOK_UP: Duration = Duration::from_secs(5);
/// The longest that a check may take.
const LONGEST: Duration = Duration::from_secs(2);

/// What the file says, with what the files hold that it names.
#[derive(Debug, PartialEq)]
pub struct Directory {
    /// Where agents are.
    pub agents: PeerDirectory,
    /// TLS with the endpoints of those that speak it, by the agent's name.
    pub tls: HashMap<String, Arc<CalleeTls>>,
    /// The certificates whose end counts.
    pub in_use: Vec<InUse>,
}

impl Directory {
    /// The files that it was read from, beside its own.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let tls = self.agents.agents.iter().filter_map(|one| one.tls.as_ref());
        let mut files: Vec<_> = tls
            .flat_map(|tls| {
                let pair = tls.identity.iter();
                let pair = pair.flat_map(|pair| [pair.certificate.clone(), pair.key.clone()]);
                pair.chain([tls.ca.clone()])
            })
            .collect();
        files.sort();
        files.dedup();
        files
    }
}

/// Reads the file, and those that it names. `now` is the time.
///
/// # Errors
/// With the file, and every mistake in it.
pub fn read(path: &Path, domain: &DnsName, now: SystemTime) -> Result<Directory, String> {
    let place = path.display();
    let bytes = read_stable(path).map_err(|error| error.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{place}: it is not UTF-8"))?;
    let agents =
        PeerDirectory::parse(&text, domain).map_err(|error| format!("{place}: {error}"))?;
    let (mut tls, mut in_use) = (HashMap::new(), Vec::new());
    let mut errors = Vec::new();
    for agent in &agents.agents {
        let Some(written) = &agent.tls else { continue };
        match certificates::callee(written, agent.http2, now) {
            Ok((one, used)) => {
                tls.insert(agent.name.clone(), Arc::new(one));
                in_use.extend(used);
            }
            Err(error) => errors.push(format!("{place}: {}: {error}", agent.name)),
        }
    }
    match errors.is_empty() {
        true => Ok(Directory {
            agents,
            tls,
            in_use,
        }),
        false => Err(errors.join("\n")),
    }
}

/// Looks up where an endpoint's name leads. What was known stays where that is
/// not to be had.
pub async fn locate(endpoint: &PeerEndpoint, names: &(impl Resolve + ?Sized)) {
    let Some((authority, name)) = name_of(endpoint) else {
        return;
    };
    let found = match names.cached(name) {
        Some(found) => Ok(found),
        None => names.lookup(name).await,
    };
    match found {
        Ok(found) => endpoint.leads_to(found.to_vec()),
        Err(error) => {
            tracing::warn!(endpoint = %authority, %error, "an agent's endpoint is not found");
        }
    }
}

fn name_of(endpoint: &PeerEndpoint) -> Option<(&Authority, &DnsName)> {
    match endpoint.at() {
        Endpoint::Tcp(authority) => Some((authority, authority.host.name()?)),
        Endpoint::Unix(_) => None,
    }
}

/// Looks after an endpoint for ever: where its name leads, so that no call has
/// to ask, and how it does. A name that nobody answers for holds up neither its
/// checks nor those of others.
pub async fn watch_over(callee: &Callee, endpoint: &PeerEndpoint, names: &(impl Resolve + ?Sized)) {
    let naming = async {
        while name_of(endpoint).is_some() {
            locate(endpoint, names).await;
            tokio::time::sleep(LOOK_UP).await;
        }
    };
    let checking = async {
        while let Some(health) = &callee.health {
            check_once(callee, endpoint, health).await;
            tokio::time::sleep(health.interval).await;
        }
    };
    tokio::join!(naming, checking);
    // There is nothing to do, and another end would start all anew.
    std::future::pending::<()>().await;
}

async fn check_once(callee: &Callee, endpoint: &PeerEndpoint, health: &HealthCheck) {
    let asked = check(callee, endpoint, health.path.as_deref());
    let outcome = match tokio::time::timeout(LONGEST, asked).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err("it did not answer in time".to_owned()),
    };
    let news = endpoint.is_well(outcome.is_ok());
    let (agent, at) = (&callee.host, text(endpoint.at()));
    match outcome {
        Ok(()) if news => tracing::info!(%agent, endpoint = at, "an endpoint is well"),
        Err(error) if news => {
            tracing::warn!(%agent, endpoint = at, %error, "an endpoint is unwell and comes last");
        }
        _ => {}
    }
}

fn text(at: &Endpoint) -> String {
    match at {
        Endpoint::Tcp(authority) => authority.to_string(),
        Endpoint::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// Connects, and asks for the path where there is one.
async fn check(callee: &Callee, endpoint: &PeerEndpoint, path: Option<&str>) -> io::Result<()> {
    let addresses = endpoint.addresses();
    match endpoint.at() {
        Endpoint::Unix(socket) => {
            let stream = UnixStream::connect(socket).await?;
            shake_and_ask(stream, callee, endpoint, path).await
        }
        Endpoint::Tcp(_) if addresses.is_empty() => Err(io::ErrorKind::AddrNotAvailable.into()),
        Endpoint::Tcp(_) => {
            let stream = TcpStream::connect(&*addresses).await?;
            shake_and_ask(stream, callee, endpoint, path).await
        }
    }
}

/// With TLS the handshake is a part of the check, as it is one of every call.
async fn shake_and_ask<S>(
    stream: S,
    callee: &Callee,
    endpoint: &PeerEndpoint,
    path: Option<&str>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(tls) = &callee.tls else {
        return ask(stream, callee, path).await;
    };
    let Some(name) = tls.server_name(endpoint.at()) else {
        return Err(io::Error::other("no certificate can be for its name"));
    };
    let connector = TlsConnector::from(Arc::clone(tls.client()));
    ask(connector.connect(name, stream).await?, callee, path).await
}

async fn ask<S>(stream: S, callee: &Callee, path: Option<&str>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let status = match path {
        None => return Ok(()),
        Some(path) if callee.http2 => ask_http2(stream, callee, path).await?,
        Some(path) => ask_http1(stream, callee, path).await?,
    };
    match status {
        200..400 => Ok(()),
        status => Err(io::Error::other(format!("it answered {status}"))),
    }
}

async fn ask_http1<S>(mut stream: S, callee: &Callee, path: &str) -> io::Result<u16>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: agentport\r\nConnection: close\r\n\r\n",
        callee.host
    );
    stream.write_all(request.as_bytes()).await?;
    // "HTTP/1.1 200" is all that counts.
    let mut line = [0; 12];
    stream.read_exact(&mut line).await?;
    let status = line
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| line.strip_prefix(b"HTTP/1.0 "))
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse().ok());
    status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it answered no HTTP"))
}

async fn ask_http2<S>(stream: S, callee: &Callee, path: &str) -> io::Result<u16>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut send, connection) = h2::client::handshake(stream)
        .await
        .map_err(io::Error::other)?;
    let scheme = if callee.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let request = http::Request::get(format!("{scheme}://{}{path}", callee.host))
        .body(())
        .map_err(io::Error::other)?;
    let asking = async {
        let (response, _) = send.send_request(request, true).map_err(io::Error::other)?;
        let response = response.await.map_err(io::Error::other)?;
        Ok(response.status().as_u16())
    };
    tokio::select! {
        answer = asking => answer,
        ended = connection => match ended {
            Ok(()) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Err(io::Error::other(error)),
        },
    }
}

//! Agents that can be called: the file that says where they are, where their
//! names lead, and whether they are well.
//!
//! What is asked here goes to endpoints that the operator has written down, and
//! carries nothing of an agent's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::config::{Endpoint, PeerDirectory};
use crate::egress::{DnsName, Host};
use crate::gate::ports::Resolve;
use crate::proxy::{Callee, PeerEndpoint};

use super::watch::read_stable;

/// How often a name is looked up that has no health check.
const LOOK_UP: Duration = Duration::from_secs(10);
/// The longest that a check may take.
const LONGEST: Duration = Duration::from_secs(2);

/// Reads the file.
///
/// # Errors
/// With the file, and every mistake in it.
pub fn read(path: &Path, domain: &DnsName) -> Result<PeerDirectory, String> {
    let place = path.display();
    let bytes = read_stable(path).map_err(|error| error.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{place}: it is not UTF-8"))?;
    PeerDirectory::parse(&text, domain).map_err(|error| format!("{place}: {error}"))
}

/// Looks up where an endpoint's name leads. What was known stays where that is
/// not to be had.
pub async fn locate(endpoint: &PeerEndpoint, names: &(impl Resolve + ?Sized)) -> Vec<SocketAddr> {
    let Endpoint::Tcp(authority) = endpoint.at() else {
        return Vec::new();
    };
    let found: Vec<IpAddr> = match &authority.host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => match names.cached(name) {
            Some(found) => found.to_vec(),
            None => match names.lookup(name).await {
                Ok(found) => found.to_vec(),
                Err(error) => {
                    tracing::warn!(endpoint = %authority, %error, "an agent's endpoint is not found");
                    return Vec::new();
                }
            },
        },
    };
    endpoint.leads_to(found.clone());
    let at = |address| SocketAddr::new(address, authority.port);
    found.into_iter().map(at).collect()
}

/// Looks after an endpoint for ever.
pub async fn watch_over(callee: &Callee, endpoint: &PeerEndpoint, names: &(impl Resolve + ?Sized)) {
    loop {
        let addresses = locate(endpoint, names).await;
        if let Some(health) = &callee.health {
            let asked = check(callee, endpoint, &addresses, health.path.as_deref());
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
        let interval = callee.health.as_ref().map_or(LOOK_UP, |one| one.interval);
        tokio::time::sleep(interval).await;
    }
}

fn text(at: &Endpoint) -> String {
    match at {
        Endpoint::Tcp(authority) => authority.to_string(),
        Endpoint::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// Connects, and asks for the path where there is one.
async fn check(
    callee: &Callee,
    endpoint: &PeerEndpoint,
    addresses: &[SocketAddr],
    path: Option<&str>,
) -> io::Result<()> {
    match endpoint.at() {
        Endpoint::Unix(socket) => ask(UnixStream::connect(socket).await?, callee, path).await,
        Endpoint::Tcp(_) if addresses.is_empty() => Err(io::ErrorKind::AddrNotAvailable.into()),
        Endpoint::Tcp(_) => ask(TcpStream::connect(addresses).await?, callee, path).await,
    }
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
    let request = http::Request::get(format!("http://{}{path}", callee.host))
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

//! The way to the gateway and to the token endpoint: TCP, TLS or a Unix socket.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::adapters::trust;

/// How long a connection may take, its handshake included.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a token endpoint may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The most bytes of its answer.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Where something listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// In clear text, at a host and port.
    Tcp {
        /// A name or an address, IPv6 without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// By TLS, at a host and port.
    Tls {
        /// A name or an address, which the certificate must have.
        host: String,
        /// The port.
        port: u16,
    },
    /// On a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Self::Unix(path) => return write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } => ("http", host, port),
            Self::Tls { host, port } => ("https", host, port),
        };
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}")
        } else {
            write!(f, "{scheme}://{host}:{port}")
        }
    }
}

impl Address {
    /// Parses `http://host:port/path`, `https://…` or `unix:/path`. Gives the
    /// path of a URL beside it; `/` where it has none.
    ///
    /// # Errors
    /// What to write.
    pub fn parse(raw: &str) -> Result<(Self, String), String> {
        const SHAPE: &str = "write http://HOST:PORT, https://HOST:PORT or unix:/PATH";
        if let Some(path) = raw.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(SHAPE.into());
            }
            return Ok((Self::Unix(path.into()), "/".to_owned()));
        }
        let url: http::Uri = raw.parse().map_err(|_| SHAPE)?;
        let authority = url.authority().ok_or(SHAPE)?;
        if authority.as_str().contains('@') {
            return Err("a credential does not belong in this URL: remove it".into());
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let address = match url.scheme_str() {
            Some("http") => Self::Tcp {
                host,
                port: authority.port_u16().unwrap_or(80),
            },
            Some("https") => Self::Tls {
                host,
                port: authority.port_u16().unwrap_or(443),
            },
            _ => return Err(SHAPE.into()),
        };
        Ok((address, path.to_owned()))
    }
}

/// A connection of any kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Connects.
pub(super) struct Dialler {
    tls: TlsConnector,
}

impl Dialler {
    /// One that trusts this PEM bundle, or the system's roots.
    ///
    /// # Errors
    /// A bundle that cannot be read, or has nothing in it.
    pub(super) fn new(ca: Option<&std::path::Path>) -> Result<Self, String> {
        Ok(Self {
            tls: TlsConnector::from(trust::client(ca)?),
        })
    }

    /// Connects to an address.
    ///
    /// # Errors
    /// In words, with the address.
    pub(super) async fn dial(&self, address: &Address) -> Result<Pin<Box<dyn Stream>>, String> {
        match tokio::time::timeout(CONNECT, self.connect(address)).await {
            Ok(made) => made.map_err(|error| format!("cannot connect to {address}: {error}")),
            Err(_) => Err(format!("cannot connect to {address}: no answer in time")),
        }
    }

    async fn connect(&self, address: &Address) -> std::io::Result<Pin<Box<dyn Stream>>> {
        match address {
            Address::Unix(path) => Ok(Box::pin(UnixStream::connect(path).await?)),
            Address::Tcp { host, port } => Ok(Box::pin(tcp(host, *port).await?)),
            Address::Tls { host, port } => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|error| std::io::Error::other(error.to_string()))?;
                let tcp = tcp(host, *port).await?;
                Ok(Box::pin(self.tls.connect(name, tcp).await?))
            }
        }
    }

    /// Posts a form, and gives the status and the body of the answer.
    ///
    /// # Errors
    /// In words. No credential is in them.
    pub(super) async fn post_form(
        &self,
        address: &Address,
        path: &str,
        authorization: Option<String>,
        form: String,
    ) -> Result<(u16, Bytes), String> {
        let stream = TokioIo::new(self.dial(address).await?);
        let host = match address {
            Address::Unix(_) => "localhost".to_owned(),
            Address::Tcp { .. } | Address::Tls { .. } => address
                .to_string()
                .split_once("://")
                .map_or_else(String::new, |(_, host)| host.to_owned()),
        };
        let mut request = http::Request::post(path)
            .header("Host", host)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .header("Accept", "application/json");
        if let Some(value) = authorization {
            request = request.header("Authorization", value);
        }
        let request = request
            .body(Full::new(Bytes::from(form)))
            .map_err(|_| "the path of the token endpoint is not valid".to_owned())?;
        let answer = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
                .await
                .map_err(|error| error.to_string())?;
            let exchange = async {
                let answer = sender
                    .send_request(request)
                    .await
                    .map_err(|error| error.to_string())?;
                let status = answer.status().as_u16();
                let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
                    .collect()
                    .await
                    .map_err(|error| error.to_string())?;
                Ok((status, body.to_bytes()))
            };
            tokio::pin!(exchange);
            tokio::select! {
                answer = &mut exchange => answer,
                // The connection may end before its answer is read.
                _ = connection => exchange.await,
            }
        };
        match tokio::time::timeout(ANSWER, answer).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer in time".to_owned()),
        }
    }
}

async fn tcp(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    // Small writes are heads that somebody waits for; and a gateway whose
    // machine has gone is noticed some time.
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(&stream, sockopt::KeepAlive, &true);
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_people_write_them() {
        for (raw, shown, path) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080", "/"),
            ("http://gateway/", "http://gateway:80", "/"),
            (
                "https://gateway:8443/oauth/token",
                "https://gateway:8443",
                "/oauth/token",
            ),
            ("https://[::1]:1/a?b", "https://[::1]:1", "/a?b"),
            ("unix:/run/agentport.sock", "unix:/run/agentport.sock", "/"),
        ] {
            let (address, rest) = Address::parse(raw).expect(raw);
            assert_eq!((address.to_string().as_str(), rest.as_str()), (shown, path));
        }
        for bad in [
            "",
            "gateway:8080",
            "ftp://a",
            "unix:relative",
            "http://",
            "http://a:b@c/",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}

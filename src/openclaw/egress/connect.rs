//! Connections to the world: through the gateway, or, where the operator asked
//! for it in as many words, direct. [`Route::connect`] is the one function by
//! which any protocol gets a stream to a destination.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use crate::egress::{Authority, Host, RequestTarget, Scheme};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::EgressError;
use super::refusal::Refusal;
use super::token::TokenSource;
use super::trust::Trust;

/// How long dialling, a handshake or the gateway's answer to CONNECT may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of a refusal's body that are read.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;

/// A stream in both directions.
pub(in crate::openclaw) trait Duplex:
    AsyncRead + AsyncWrite + Send + Unpin
{
}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Where the gateway listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::openclaw) enum Endpoint {
    /// `http://host:port`
    Tcp(Authority),
    /// `https://host:port`
    Tls(Authority),
    /// `unix:/path`
    Unix(PathBuf),
}

/// Why `AGENTPORT_URL` is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write http://host:port, https://host:port or unix:/path{0}")]
pub(in crate::openclaw) struct EndpointError(&'static str);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(raw: &str) -> Result<Self, EndpointError> {
        if let Some(path) = raw.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(EndpointError(": the path must be absolute"));
            }
            return Ok(Self::Unix(path.into()));
        }
        if raw.contains('@') {
            return Err(EndpointError(
                ", without a credential in it: that belongs in AGENTPORT_TOKEN_FILE",
            ));
        }
        match RequestTarget::parse("GET", raw) {
            Ok(RequestTarget::Absolute {
                scheme,
                authority,
                path,
                query: None,
            }) if path.as_str() == "/" => Ok(match scheme {
                Scheme::Http => Self::Tcp(authority),
                Scheme::Https => Self::Tls(authority),
            }),
            Ok(_) | Err(_) => Err(EndpointError(", with nothing after the port")),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(authority) => write!(f, "http://{authority}"),
            Self::Tls(authority) => write!(f, "https://{authority}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The way out.
#[derive(Debug)]
pub(in crate::openclaw) enum Way {
    /// Through the gateway.
    Gateway {
        /// Where it listens.
        endpoint: Endpoint,
        /// Who we are to it.
        token: TokenSource,
    },
    /// Past it, for as long as a migration takes.
    Direct,
}

/// The way out and whom to trust at its end.
#[derive(Debug)]
pub(in crate::openclaw) struct Route {
    pub(in crate::openclaw) way: Way,
    pub(in crate::openclaw) trust: Trust,
}

impl Route {
    /// A stream to `target`: nothing of it is TLS or HTTP yet.
    ///
    /// `traceparent` joins the gateway's record of the tunnel to the agent's.
    ///
    /// # Errors
    /// [`EgressError::Refused`] with the gateway's reason, and whatever dialling
    /// may come to.
    pub(in crate::openclaw) async fn connect(
        &self,
        target: &Authority,
        traceparent: Option<&str>,
    ) -> Result<Box<dyn Duplex>, EgressError> {
        match &self.way {
            Way::Direct => self.dial_direct(target).await,
            Way::Gateway { endpoint, token } => {
                let stream = self.dial_gateway(endpoint).await?;
                tunnel(stream, target, token, traceparent).await
            }
        }
    }

    /// A stream to `target` with TLS in it.
    async fn connect_tls(
        &self,
        target: &Authority,
        traceparent: Option<&str>,
    ) -> Result<Box<dyn Duplex>, EgressError> {
        let stream = self.connect(target, traceparent).await?;
        self.wrap_in_tls(stream, target).await
    }

    async fn dial_direct(&self, target: &Authority) -> Result<Box<dyn Duplex>, EgressError> {
        match dial(target).await {
            Ok(stream) => Ok(boxed(stream)),
            Err(detail) => Err(EgressError::Unreachable {
                destination: target.to_string(),
                detail,
            }),
        }
    }

    async fn dial_gateway(&self, endpoint: &Endpoint) -> Result<Box<dyn Duplex>, EgressError> {
        let gateway_down = |detail: String| EgressError::GatewayUnreachable {
            endpoint: endpoint.to_string(),
            detail,
        };
        match endpoint {
            Endpoint::Tcp(authority) => match dial(authority).await {
                Ok(stream) => Ok(boxed(stream)),
                Err(detail) => Err(gateway_down(detail)),
            },
            Endpoint::Tls(authority) => match dial(authority).await {
                Ok(stream) => self.wrap_in_tls(boxed(stream), authority).await,
                Err(detail) => Err(gateway_down(detail)),
            },
            Endpoint::Unix(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(boxed(stream)),
                Err(error) => Err(gateway_down(error.to_string())),
            },
        }
    }

    async fn wrap_in_tls(
        &self,
        stream: Box<dyn Duplex>,
        target: &Authority,
    ) -> Result<Box<dyn Duplex>, EgressError> {
        let failed = |detail: String| EgressError::Tls {
            destination: target.to_string(),
            detail,
        };
        let config = self.trust.config().map_err(|e| failed(e.to_string()))?;
        let name = match &target.host {
            Host::Name(name) => {
                ServerName::try_from(name.as_str().to_owned()).map_err(|e| failed(e.to_string()))?
            }
            Host::Address(address) => ServerName::from(*address),
        };
        let handshake = TlsConnector::from(config).connect(name, stream);
        match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(boxed(stream)),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("the handshake took longer than 10 s".to_owned())),
        }
    }
}

fn boxed(stream: impl Duplex + 'static) -> Box<dyn Duplex> {
    Box::new(stream)
}

/// A TCP connection, or what happened in its place.
async fn dial(target: &Authority) -> Result<TcpStream, String> {
    let dialling = async {
        match &target.host {
            Host::Name(name) => TcpStream::connect((name.as_str(), target.port)).await,
            Host::Address(address) => TcpStream::connect((*address, target.port)).await,
        }
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, dialling).await {
        Ok(Ok(stream)) => {
            // Without it small requests wait for the other side's ACK; where the
            // kernel says no, they only are slower.
            stream.set_nodelay(true).ok();
            Ok(stream)
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer within 10 s".to_owned()),
    }
}

/// `CONNECT` (RFC 9110, 9.3.6) on a fresh connection to the gateway. hyper reads
/// the answer, so that the head has one parser in this program.
async fn tunnel(
    stream: Box<dyn Duplex>,
    target: &Authority,
    token: &TokenSource,
    traceparent: Option<&str>,
) -> Result<Box<dyn Duplex>, EgressError> {
    let destination = target.to_string();
    let broken = |detail: String| EgressError::Protocol {
        destination: destination.clone(),
        detail,
    };
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(destination.as_str())
        .version(Version::HTTP_11)
        .header(header::HOST, destination.as_str());
    if let Some(authorization) = token.authorization(SystemTime::now())? {
        request = request.header(header::PROXY_AUTHORIZATION, authorization);
    }
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|e| broken(e.to_string()))?;
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(e.to_string()))?;
        tokio::spawn(connection.with_upgrades());
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| broken(e.to_string()))?;
        if response.status() == StatusCode::OK {
            let stream = hyper::upgrade::on(response)
                .await
                .map_err(|e| broken(e.to_string()))?;
            return Ok(boxed(TokioIo::new(stream)));
        }
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_REFUSAL_BYTES).collect().await;
        // A refusal whose body breaks off is still a refusal.
        let body = body.map(|b| b.to_bytes()).unwrap_or_default();
        let refusal = Refusal::read(head.status, &head.headers, &body, &destination);
        let refusal = refusal.redacted(|text| token.redact(text));
        Err(EgressError::Refused(Box::new(refusal)))
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, exchange).await {
        Ok(result) => result,
        Err(_) => Err(broken(
            "the gateway did not answer CONNECT within 10 s".to_owned(),
        )),
    }
}

tokio::task_local! {
    /// The trace of the call on whose behalf a connection is opened. A pooled
    /// tunnel keeps the trace of the call that opened it.
    pub(in crate::openclaw) static TRACEPARENT: String;
}

/// [`Route`] as hyper's client wants it: by URI, and pooled.
#[derive(Clone)]
pub(in crate::openclaw) struct Connector(pub(in crate::openclaw) Arc<Route>);

impl tower_service::Service<Uri> for Connector {
    type Response = Link;
    type Error = EgressError;
    type Future = Pin<Box<dyn Future<Output = Result<Link, EgressError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), EgressError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let route = self.0.clone();
        let traceparent = TRACEPARENT.try_with(Clone::clone).ok();
        Box::pin(async move {
            let (scheme, target) = destination(&uri)?;
            match (scheme, &route.way) {
                (Scheme::Https, _) => {
                    let stream = route.connect_tls(&target, traceparent.as_deref()).await?;
                    Ok(Link::new(stream, false))
                }
                // In clear text the gateway is asked in absolute form, so that
                // it sees each request and not a tunnel.
                (Scheme::Http, Way::Gateway { endpoint, .. }) => {
                    Ok(Link::new(route.dial_gateway(endpoint).await?, true))
                }
                (Scheme::Http, Way::Direct) => {
                    Ok(Link::new(route.dial_direct(&target).await?, false))
                }
            }
        })
    }
}

/// Scheme and authority of an absolute URI, in the words' one form.
pub(super) fn destination(uri: &Uri) -> Result<(Scheme, Authority), EgressError> {
    match RequestTarget::parse("GET", &uri.to_string()) {
        Ok(RequestTarget::Absolute {
            scheme, authority, ..
        }) => Ok((scheme, authority)),
        Ok(_) => Err(EgressError::Target("the URL is not absolute".to_owned())),
        Err(error) => Err(EgressError::Target(error.to_string())),
    }
}

/// One connection of the pool.
pub(in crate::openclaw) struct Link {
    stream: TokioIo<Box<dyn Duplex>>,
    proxied: bool,
}

impl Link {
    fn new(stream: Box<dyn Duplex>, proxied: bool) -> Self {
        Self {
            stream: TokioIo::new(stream),
            proxied,
        }
    }
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

impl hyper::rt::Read for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_gateways_url_may_be() {
        for (case, raw, shown) in [
            (
                "in clear",
                "http://Gateway:8080",
                Some("http://gateway:8080"),
            ),
            (
                "a slash at the end",
                "http://127.0.0.1:8080/",
                Some("http://127.0.0.1:8080"),
            ),
            (
                "over TLS",
                "https://gateway.dmz.svc",
                Some("https://gateway.dmz.svc:443"),
            ),
            (
                "a socket",
                "unix:/run/agentport.sock",
                Some("unix:/run/agentport.sock"),
            ),
            ("a relative socket", "unix:agentport.sock", None),
            ("a credential", "http://agent:token@gateway:8080", None),
            ("a path", "http://gateway:8080/proxy", None),
            ("no scheme", "gateway:8080", None),
            ("another scheme", "socks5://gateway:1080", None),
        ] {
            let got = raw.parse::<Endpoint>().map(|e| e.to_string());
            assert_eq!(got.as_deref().ok(), shown, "{case}");
        }
    }
}

//! HTTPS to an ACME server: a connection for each request, of which an order
//! has a dozen, in bounded time and with bounded answers.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderValue, RETRY_AFTER};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long one request may take.
const LONGEST: Duration = Duration::from_secs(30);
/// The longest answer; a chain of certificates is a few kilobytes.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

type Thrown = Box<dyn std::error::Error + Send + Sync>;

/// Clones share what they remember.
#[derive(Clone)]
pub(super) struct Client {
    tls: TlsConnector,
    retry_after: Arc<Mutex<Option<Duration>>>,
}

impl Client {
    /// One that speaks TLS so, and trusts whom it says.
    pub(super) fn new(tls: Arc<ClientConfig>) -> Self {
        Self {
            tls: TlsConnector::from(tls),
            retry_after: Arc::default(),
        }
    }

    /// How long the server wants to be left alone, if the last answer that was
    /// an error said so.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        *self
            .retry_after
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What is at a URL, and when to ask again where the server says so.
    pub(super) async fn get(&self, url: &str) -> Result<(Bytes, Option<Duration>), Thrown> {
        let request = Request::builder().uri(url).body(BodyWrapper::default())?;
        let exchange = self.clone().exchange(request);
        let answer = tokio::time::timeout(LONGEST, exchange)
            .await
            .map_err(|_| "the ACME server does not answer")??;
        if !answer.status().is_success() {
            return Err(format!("{url}: {}", answer.status()).into());
        }
        let again = answer.headers().get(RETRY_AFTER).and_then(seconds);
        let bytes = answer.into_body().collect().await?.to_bytes();
        Ok((bytes, again))
    }

    async fn exchange(
        self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Result<Response<Full<Bytes>>, Thrown> {
        let (mut head, body) = request.into_parts();
        let host = head.uri.host().ok_or("the URL has no host")?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if head.uri.scheme_str() != Some("https") {
            return Err(format!("{}: not https", head.uri).into());
        }
        let port = head.uri.port_u16().unwrap_or(443);
        let authority = head.uri.authority().ok_or("the URL has no host")?;
        let authority = HeaderValue::from_str(authority.as_str())?;
        head.headers.insert(HOST, authority);
        head.uri = match head.uri.path_and_query() {
            Some(path) => Uri::from(path.clone()),
            None => Uri::from_static("/"),
        };
        let tcp = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|error| format!("{host}:{port}: {error}"))?;
        let name = ServerName::try_from(host.clone())?;
        let tls = self
            .tls
            .connect(name, tcp)
            .await
            .map_err(|error| format!("{host}:{port}: {error}"))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        // It ends with the sender.
        let driver = tokio::spawn(connection);
        let answer = sender.send_request(Request::from_parts(head, body)).await?;
        let (head, body) = answer.into_parts();
        let bytes = Limited::new(body, MAX_ANSWER_BYTES)
            .collect()
            .await?
            .to_bytes();
        driver.abort();
        if head.status.is_client_error() || head.status.is_server_error() {
            let later = head.headers.get(RETRY_AFTER).and_then(seconds);
            *self
                .retry_after
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = later;
        }
        Ok(Response::from_parts(head, Full::new(bytes)))
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move {
            match tokio::time::timeout(LONGEST, client.exchange(request)).await {
                Ok(Ok(response)) => Ok(BytesResponse::from(response)),
                Ok(Err(error)) => Err(Error::Other(error)),
                Err(_) => Err(Error::Other("the ACME server does not answer".into())),
            }
        })
    }
}

/// `Retry-After` in seconds (RFC 9110 section 10.2.3). Where it is a date our
/// own pauses are long enough.
fn seconds(value: &HeaderValue) -> Option<Duration> {
    let seconds = value.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

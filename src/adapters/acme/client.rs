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
use tokio_rustls::TlsConnector;

use crate::adapters::way_out::{Allowed, WayOut};
use crate::egress::{Authority, Host};

/// How long one request may take.
const LONGEST: Duration = Duration::from_secs(30);
/// The longest answer; a chain of certificates is a few kilobytes.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

type Thrown = Box<dyn std::error::Error + Send + Sync>;

/// Clones share what they remember.
#[derive(Clone)]
pub(super) struct Client {
    tls: TlsConnector,
    way: Arc<WayOut>,
    retry_after: Arc<Mutex<Option<Duration>>>,
}

impl Client {
    /// One that speaks TLS so, trusts whom it says, and goes out this way.
    pub(super) fn new(tls: Arc<ClientConfig>, way: Arc<WayOut>) -> Self {
        Self {
            tls: TlsConnector::from(tls),
            way,
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
        if head.uri.scheme_str() != Some("https") {
            return Err(format!("{}: not https", head.uri).into());
        }
        let authority = head.uri.authority().ok_or("the URL has no host")?;
        let to = Authority::parse_with_default_port(authority.as_str(), 443)
            .map_err(|error| format!("{authority}: {error}"))?;
        let authority = HeaderValue::from_str(authority.as_str())?;
        head.headers.insert(HOST, authority);
        head.uri = match head.uri.path_and_query() {
            Some(path) => Uri::from(path.clone()),
            None => Uri::from_static("/"),
        };
        let connection = self.way.connect(&to, Allowed::Anywhere).await;
        let connection = connection.map_err(|error| format!("{to}: {error}"))?;
        let name = match &to.host {
            Host::Address(address) => ServerName::from(*address),
            Host::Name(name) => ServerName::try_from(name.as_str().to_owned())?,
        };
        let tls = self
            .tls
            .connect(name, connection)
            .await
            .map_err(|error| format!("{to}: {error}"))?;
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

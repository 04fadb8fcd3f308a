//! One JWK Set over HTTPS: connect to an address that may be, ask, and read
//! a bounded answer in a bounded time. No redirect is followed: an issuer's
//! keys are where its operator or its metadata says.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use crate::adapters::trust;
use crate::adapters::way_out::{Allowed, WayOut};
use crate::config::{KeySource, OtherIssuer};
use crate::egress::{Host, HttpsUrl};
use crate::identity::discovered_keys;

/// The most that all of it may take.
const LONGEST: Duration = Duration::from_secs(5);
/// The most that an answer may have.
const MAX_BYTES: usize = 64 * 1024;

/// The JWK Set that the issuer gives at this moment.
///
/// # Errors
/// What went wrong, in a sentence for the operator.
pub(super) async fn key_set(issuer: &OtherIssuer, way: &WayOut) -> Result<Vec<u8>, String> {
    let fetched = tokio::time::timeout(LONGEST, async {
        let connector = connector(issuer.ca.clone()).await?;
        let get = |url: HttpsUrl, token: Option<String>| {
            let connector = connector.clone();
            async move {
                let got = get(&url, token, issuer, way, &connector).await;
                got.map_err(|error| format!("{url}: {error}"))
            }
        };
        let token = bearer(issuer).await?;
        match &issuer.source {
            KeySource::Url(url) => get(url.clone(), token).await,
            KeySource::Discovery(url) => {
                let metadata = get(url.clone(), token.clone()).await?;
                let keys = discovered_keys(&metadata, &issuer.issuer)
                    .map_err(|error| format!("{url}: {error}"))?;
                // The token is for the server that was configured.
                let same = keys.authority() == url.authority();
                get(keys, token.filter(|_| same)).await
            }
            KeySource::File(_) => Err("its keys are in a file".to_owned()),
        }
    });
    fetched
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", LONGEST.as_secs())))
}

async fn get(
    url: &HttpsUrl,
    token: Option<String>,
    issuer: &OtherIssuer,
    way: &WayOut,
    connector: &TlsConnector,
) -> Result<Vec<u8>, String> {
    // As for agents: at a public address, or at those that are named.
    let allowed = match &*issuer.addresses {
        [] => Allowed::Public,
        ranges => Allowed::In(ranges),
    };
    let stream = way.connect(url.authority(), allowed).await?;
    let name = match url.host() {
        Host::Name(name) => ServerName::try_from(name.as_str().to_owned())
            .map_err(|_| "the host is no name for a certificate".to_owned())?,
        Host::Address(address) => ServerName::from(*address),
    };
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| format!("TLS: {error}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let authority = url.authority();
    let host = match authority.port {
        443 => authority.host.to_string(),
        _ => authority.to_string(),
    };
    let mut request = http::Request::get(url.path())
        .header(http::header::HOST, host)
        .header(http::header::ACCEPT, "application/json")
        .header(
            http::header::USER_AGENT,
            concat!("agentport/", env!("CARGO_PKG_VERSION")),
        );
    if let Some(token) = token {
        request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("the answer is {}", response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_BYTES);
        let body = body.collect().await.map_err(|error| error.to_string())?;
        Ok(body.to_bytes().to_vec())
    };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    // The connection does the work, and may end before all is read.
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

/// TLS with the issuer's own CA, or the system's roots. The file is read each
/// time, since it may be replaced.
async fn connector(ca: Option<PathBuf>) -> Result<TlsConnector, String> {
    static SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    // Files are read off the threads that serve.
    let config = tokio::task::spawn_blocking(|| {
        let roots = match ca {
            Some(file) => Arc::new(trust::in_file(&file).map_err(|error| format!("ca: {error}"))?),
            None => Arc::clone(SYSTEM.get_or_init(|| Arc::new(trust::of_the_system()))),
        };
        trust::with_roots(roots)
    });
    let config = config.await.map_err(|error| error.to_string())?;
    Ok(TlsConnector::from(config?))
}

/// The token for the issuer's server. Read each time: in a pod it is replaced
/// every hour.
async fn bearer(issuer: &OtherIssuer) -> Result<Option<String>, String> {
    let Some(file) = &issuer.token_file else {
        return Ok(None);
    };
    let text = tokio::fs::read_to_string(file)
        .await
        .map_err(|error| format!("token_file: {}: {error}", file.display()))?;
    Ok(Some(text.trim().to_owned()))
}

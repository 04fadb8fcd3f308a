//! The agent's only way into the world. Whatever calls out, calls from here:
//! no other module of this program opens a connection.
//!
//! The environment's `HTTP_PROXY` and `NO_PROXY` are not read, so that nothing
//! in it can lead round the gateway.

mod bridge;
mod connect;
mod refusal;
mod token;
mod trust;

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};

pub(in crate::openclaw) use bridge::Bridge;
pub(in crate::openclaw) use connect::{Endpoint, Route, Way};
pub(in crate::openclaw) use refusal::Refusal;
pub(in crate::openclaw) use token::{TokenError, TokenSource};
pub(in crate::openclaw) use trust::Trust;

use connect::{Connector, TRACEPARENT, destination};

/// Idle connections kept for each destination: at least twice as many as skills
/// may run at once by default.
const MAX_IDLE_PER_HOST: usize = 64;
/// How long an idle connection is kept. Less than most servers' own limit.
const IDLE_TIMEOUT: Duration = Duration::from_secs(55);
/// The most bytes of a refusal's body that are read.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;

/// What may go wrong while a body is read.
pub(in crate::openclaw) type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A body on its way out.
pub(in crate::openclaw) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Why a call out did not come back with an answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(in crate::openclaw) enum EgressError {
    /// The gateway said no, and why.
    #[error("the gateway refused {}: {}", .0.destination, .0.reason)]
    Refused(Box<Refusal>),
    /// There is no credential to show.
    #[error("{0}")]
    Token(String),
    /// The gateway cannot be reached; nothing goes round it.
    #[error("the gateway at {endpoint} cannot be reached: {detail}")]
    GatewayUnreachable {
        /// Where it should be.
        endpoint: String,
        /// What happened.
        detail: String,
    },
    /// A destination cannot be reached.
    #[error("{destination} cannot be reached: {detail}")]
    Unreachable {
        /// Host and port.
        destination: String,
        /// What happened.
        detail: String,
    },
    /// No TLS with a destination or with the gateway.
    #[error("no TLS with {destination}: {detail}")]
    Tls {
        /// Host and port.
        destination: String,
        /// What happened.
        detail: String,
    },
    /// The other side broke off, or speaks no HTTP.
    #[error("the exchange with {destination} broke off: {detail}")]
    Protocol {
        /// Host and port.
        destination: String,
        /// What happened.
        detail: String,
    },
    /// The answer is longer than was asked for.
    #[error("the answer of {destination} is longer than {limit} bytes")]
    TooLong {
        /// Host and port.
        destination: String,
        /// What may come, in bytes.
        limit: usize,
    },
    /// The URL names no destination.
    #[error("{0}")]
    Target(String),
}

impl From<TokenError> for EgressError {
    fn from(error: TokenError) -> Self {
        Self::Token(error.to_string())
    }
}

/// The way out, with its pool.
#[derive(Clone)]
pub(in crate::openclaw) struct Egress {
    route: Arc<Route>,
    client: Client<Connector, Body>,
}

impl Egress {
    /// Opens nothing yet.
    pub(in crate::openclaw) fn new(route: Route) -> Self {
        let route = Arc::new(route);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(MAX_IDLE_PER_HOST)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(Connector(route.clone()));
        Self { route, client }
    }

    /// The text without the token, should anybody have echoed it.
    pub(in crate::openclaw) fn redact(&self, text: &str) -> String {
        match &self.route.way {
            Way::Gateway { token, .. } => token.redact(text),
            Way::Direct => text.to_owned(),
        }
    }

    /// Whether a gateway is in force; without one the bridge would be a way
    /// round it.
    pub(in crate::openclaw) fn has_gateway(&self) -> bool {
        matches!(self.route.way, Way::Gateway { .. })
    }

    /// Sends one request to the absolute URL that it names. Redirects are not
    /// followed: where to go next is the caller's decision, and the gateway's.
    ///
    /// # Errors
    /// [`EgressError`]; an answer of the gateway's own is
    /// [`EgressError::Refused`].
    pub(in crate::openclaw) async fn send(
        &self,
        mut request: Request<Body>,
        traceparent: String,
    ) -> Result<Response<Incoming>, EgressError> {
        let (scheme, authority) = destination(request.uri())?;
        let destination = authority.to_string();
        if let Ok(value) = HeaderValue::try_from(traceparent.as_str()) {
            request.headers_mut().insert("traceparent", value);
        }
        request.headers_mut().remove(header::PROXY_AUTHORIZATION);
        if let (crate::egress::Scheme::Http, Way::Gateway { token, .. }) = (scheme, &self.route.way)
            && let Some(authorization) = token.authorization(SystemTime::now())?
        {
            request
                .headers_mut()
                .insert(header::PROXY_AUTHORIZATION, authorization);
        }
        let response = TRACEPARENT
            .scope(traceparent, self.client.request(request))
            .await
            .map_err(|error| cause_of(&error, &destination))?;
        // Inside TLS only the origin speaks: its 403 is an answer like others.
        let in_clear = scheme == crate::egress::Scheme::Http && self.has_gateway();
        if in_clear && Refusal::is_gateways(response.status(), response.headers()) {
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_REFUSAL_BYTES).collect().await;
            let body = body.map(|b| b.to_bytes()).unwrap_or_default();
            let refusal = Refusal::read(head.status, &head.headers, &body, &destination);
            let refusal = refusal.redacted(|text| self.redact(text));
            return Err(EgressError::Refused(Box::new(refusal)));
        }
        Ok(response)
    }
}

/// A body that is there already.
pub(in crate::openclaw) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// The whole body, of at most `limit` bytes.
///
/// # Errors
/// [`EgressError::TooLong`], [`EgressError::Protocol`].
pub(in crate::openclaw) async fn read_body(
    body: Incoming,
    limit: usize,
    destination: &str,
) -> Result<Bytes, EgressError> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(EgressError::TooLong {
            destination: destination.to_owned(),
            limit,
        }),
        Err(error) => Err(EgressError::Protocol {
            destination: destination.to_owned(),
            detail: error.to_string(),
        }),
    }
}

/// What the connector said, which hyper wraps.
fn cause_of(error: &hyper_util::client::legacy::Error, destination: &str) -> EgressError {
    let mut cause = error.source();
    let mut detail = error.to_string();
    while let Some(inner) = cause {
        if let Some(ours) = inner.downcast_ref::<EgressError>() {
            return ours.clone();
        }
        detail = inner.to_string();
        cause = inner.source();
    }
    EgressError::Protocol {
        destination: destination.to_owned(),
        detail,
    }
}

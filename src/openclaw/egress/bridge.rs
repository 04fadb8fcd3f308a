//! The gateway, as a skill in the sandbox sees it: a proxy on its own loopback
//! that wants no credential. The agent holds the listener, which was opened
//! inside the skill's network namespace, and adds the credential on its side.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::egress::RequestTarget;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Body, Egress, EgressError, Refusal, full};
use crate::openclaw::trace::TraceId;

/// Connections of one skill at a time.
const MAX_CONNECTIONS: usize = 64;
/// Refusals kept for the memory stream, of one run.
const MAX_REFUSALS: usize = 32;
/// How long a skill may take for the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// One run's way to the gateway.
#[derive(Clone)]
pub(in crate::openclaw) struct Bridge {
    egress: Egress,
    trace: TraceId,
    refusals: Arc<Mutex<Vec<Refusal>>>,
}

impl Bridge {
    /// For one run of a skill.
    pub(in crate::openclaw) fn new(egress: Egress, trace: TraceId) -> Self {
        Self {
            egress,
            trace,
            refusals: Arc::default(),
        }
    }

    /// What the gateway refused so far; later calls give only what came since.
    pub(in crate::openclaw) fn take_refusals(&self) -> Vec<Refusal> {
        std::mem::take(&mut *self.refusals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves the skill for as long as the future is polled; dropping it cuts
    /// every connection.
    pub(in crate::openclaw) async fn serve(&self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                    match accepted {
                        Ok((stream, _)) => {
                            connections.spawn(self.clone().serve_connection(stream));
                        }
                        Err(error) => {
                            tracing::warn!(event = "bridge_accept_failed", error = %error);
                            // Out of descriptors most likely; some must close first.
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    }
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }

    async fn serve_connection(self, stream: TcpStream) {
        // A tunnel outlives its HTTP connection, but not this task.
        let tunnels = Arc::new(Mutex::new(JoinSet::new()));
        let service = service_fn(|request| {
            let bridge = self.clone();
            let tunnels = tunnels.clone();
            async move { Ok::<_, Infallible>(bridge.answer(request, &tunnels).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Err(error) = connection.await {
            tracing::debug!(event = "bridge_connection_broke", error = %error);
        }
        let mut open = std::mem::take(&mut *tunnels.lock().unwrap_or_else(PoisonError::into_inner));
        while open.join_next().await.is_some() {}
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        tunnels: &Mutex<JoinSet<()>>,
    ) -> Response<Body> {
        let outcome = if request.method() == Method::CONNECT {
            self.tunnel(request, tunnels).await
        } else {
            self.forward(request).await
        };
        outcome.unwrap_or_else(|error| self.refuse(&error))
    }

    async fn tunnel(
        &self,
        mut request: Request<Incoming>,
        tunnels: &Mutex<JoinSet<()>>,
    ) -> Result<Response<Body>, EgressError> {
        let target = match RequestTarget::parse("CONNECT", &request.uri().to_string()) {
            Ok(RequestTarget::Authority(authority)) => authority,
            Ok(_) => return Err(EgressError::Target("write CONNECT host:port".to_owned())),
            Err(error) => return Err(EgressError::Target(error.to_string())),
        };
        let traceparent = self.trace.traceparent();
        let mut upstream = self
            .egress
            .route
            .connect(&target, Some(&traceparent))
            .await?;
        let upgrade = hyper::upgrade::on(&mut request);
        // From here the skill has its 200; an error can only close the tunnel.
        tunnels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spawn(async move {
                match upgrade.await {
                    Ok(downstream) => {
                        let mut downstream = TokioIo::new(downstream);
                        tokio::io::copy_bidirectional(&mut downstream, &mut upstream)
                            .await
                            .ok();
                    }
                    Err(error) => tracing::debug!(event = "bridge_tunnel_broke", error = %error),
                }
            });
        Ok(Response::new(
            Empty::<Bytes>::new()
                .map_err(|never| match never {})
                .boxed_unsync(),
        ))
    }

    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Body>, EgressError> {
        if request.uri().scheme().is_none() {
            return Err(EgressError::Target(
                "this is a proxy: send the absolute URL, or CONNECT".to_owned(),
            ));
        }
        let (mut head, body) = request.into_parts();
        strip_hop_by_hop(&mut head.headers);
        // The skill may speak HTTP/1.0; what it speaks is not passed on.
        head.version = http::Version::HTTP_11;
        head.headers.remove("traceparent");
        // hyper writes it from the URL, so the two cannot differ.
        head.headers.remove(header::HOST);
        let body = body.map_err(Into::into).boxed_unsync();
        let response = self
            .egress
            .send(Request::from_parts(head, body), self.trace.traceparent())
            .await?;
        let (mut head, body) = response.into_parts();
        strip_hop_by_hop(&mut head.headers);
        Ok(Response::from_parts(
            head,
            body.map_err(Into::into).boxed_unsync(),
        ))
    }

    /// The gateway's own words where it refused, so that the skill sees what
    /// any client of the gateway would.
    fn refuse(&self, error: &EgressError) -> Response<Body> {
        let (status, body) = match error {
            EgressError::Refused(refusal) => {
                let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
                if refusals.len() < MAX_REFUSALS {
                    refusals.push(Refusal::clone(refusal));
                }
                let mut body = json!(refusal);
                body["error"] = refusal.code().into();
                // A skill can do nothing about the agent's credential.
                let status = match refusal.status {
                    StatusCode::PROXY_AUTHENTICATION_REQUIRED => StatusCode::BAD_GATEWAY,
                    status => status,
                };
                (status, body)
            }
            EgressError::Target(hint) => (
                StatusCode::BAD_REQUEST,
                json!({"error": "invalid_target", "hint": hint}),
            ),
            EgressError::Token(_)
            | EgressError::GatewayUnreachable { .. }
            | EgressError::Unreachable { .. }
            | EgressError::Tls { .. }
            | EgressError::Protocol { .. }
            | EgressError::TooLong { .. } => (
                StatusCode::BAD_GATEWAY,
                json!({"error": "egress_unavailable", "hint": error.to_string()}),
            ),
        };
        let mut response = Response::new(full(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/json"),
        );
        headers.insert(
            header::CONNECTION,
            header::HeaderValue::from_static("close"),
        );
        if let EgressError::Refused(refusal) = error
            && let Ok(reason) = header::HeaderValue::try_from(&refusal.reason)
        {
            headers.insert("x-agentport-reason", reason);
        }
        response
    }
}

/// Takes off what belongs to one connection only (RFC 9110, 7.6.1), and every
/// `Proxy-*` header: a skill has no say in the credential.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let proxys = headers
        .keys()
        .filter(|name| name.as_str().starts_with("proxy-"))
        .cloned()
        .collect::<Vec<_>>();
    for name in named.into_iter().chain(proxys) {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("http2-settings");
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn nothing_of_one_connection_travels_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-mine"),
            ("x-mine", "1"),
            ("proxy-authorization", "Bearer forged"),
            ("proxy-connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAA"),
            ("accept", "*/*"),
        ] {
            headers.insert(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        strip_hop_by_hop(&mut headers);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["accept"]);
    }
}

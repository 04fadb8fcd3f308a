//! A request is looked at: whom it is for, who asks, and what the gate says.

use std::sync::Arc;

use http::header::{self, HeaderName};
use pingora::proxy::Session;

use crate::egress::head::{HeadError, is_method};
use crate::egress::{
    Ask, Authority, EgressRequest, Host, RequestId, RequestPath, RequestTarget, Scheme,
};
use crate::gate::{Admission, AuditTrail, Cause, Denial, Opening, POLICY_PATH};
use crate::identity::Principal;

use super::conn::{Connection, CurrentRequest};
use super::exchange::Exchange;
use super::fields::{SKILL_FIELD, max_forwards, own_credential, skill, trace_id};
use super::forward::{Forward, connection};
use super::routes::Chosen;
use super::rpc::Towards;
use super::serve::bad_target;
use super::{AgentEndpoint, Shared, local, rpc};

/// What becomes of a request after it was looked at.
pub(super) enum Verdict {
    Forward,
    Answered,
}

impl Shared {
    /// Who asks, by whatever its connection and this request show of it.
    pub(super) async fn who(
        &self,
        connection: &Connection,
        credential: Option<&[u8]>,
        trail: &mut AuditTrail,
    ) -> Result<Arc<Principal>, Denial> {
        let certified = connection.certified.as_ref();
        let source = connection.client.map(|client| client.ip());
        let peer = connection.peer.as_ref();
        self.gate
            .authenticate(certified, credential, peer, source, trail)
            .await
    }
}

impl Forward {
    /// Looks at a request that is there. Ways that a plain request does not go
    /// are boxed, so that its own is small: it is allocated, and moved, for
    /// every request.
    pub(super) async fn look(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
    ) -> Result<Verdict, Denial> {
        let connection = connection(session)
            .ok_or_else(|| Denial::new(Cause::Internal).detail("a session without a connection"))?;
        exchange.ending = Some(Arc::clone(&connection.ending));
        let id = RequestId::from_bits((self.shared.random)());
        let mut trail = self.shared.gate.open(Opening {
            listener: Arc::clone(&connection.listener),
            client: connection.client,
            request_id: id,
        });
        let head = session.req_header();
        trail.method(head.method.as_str());
        let trace = head
            .headers
            .get("traceparent")
            .and_then(|value| trace_id(value.as_bytes()));
        let label = head
            .headers
            .get(SKILL_FIELD)
            .and_then(|value| skill(value.as_bytes()));
        trail.labels(trace.as_deref(), label.as_deref());
        let trail = exchange.trail.insert(trail);

        let current = match connection.take_current() {
            Some(current) => current,
            None => http2_request(session)?,
        };
        if connection.tunnel.is_none() && self.shared.peers.is_none() {
            let head = session.req_header();
            let chosen = self.shared.routes.load().choose(
                &current.target,
                head.headers.get(header::HOST),
                head.version == http::Version::HTTP_2,
                &self.shared.gate,
            );
            if let Some(chosen) = chosen {
                let looking = self.look_route(session, exchange, connection, chosen, current);
                return Box::pin(looking).await;
            }
        }
        if let Some(peers) = self.shared.peers.clone() {
            let (host, path) = match current.target {
                RequestTarget::Absolute {
                    authority, path, ..
                } => (Some(authority.host), path),
                RequestTarget::Origin { path, .. } => (host_of(session)?, path),
                RequestTarget::Asterisk => (host_of(session)?, root()?),
                RequestTarget::Authority(_) => return Err(Denial::new(Cause::Method)),
            };
            let call = peers.call(host.as_ref(), &path);
            if call.is_none() && path.as_str() == POLICY_PATH {
                let looking = self.look_local(session, exchange, connection, path, None);
                return Box::pin(looking).await;
            }
            let credential = current.credential;
            let looking = self.look_at_call(session, exchange, &connection, (call, credential));
            return Box::pin(looking).await;
        }
        let target = connection.own_target(current.target);
        let method = session.req_header().method.clone();
        let (authority, path) = match (target, &connection.tunnel) {
            (
                RequestTarget::Absolute {
                    scheme: Scheme::Http,
                    authority,
                    path,
                    ..
                },
                None,
            ) => (authority, path),
            (RequestTarget::Absolute { authority, .. }, None) => {
                return Err(Denial::new(Cause::HttpsAbsolute).towards(&authority));
            }
            (RequestTarget::Origin { path, .. }, Some(tunnel)) => (tunnel.authority.clone(), path),
            (RequestTarget::Asterisk, Some(tunnel)) => (tunnel.authority.clone(), root()?),
            (RequestTarget::Origin { path, .. }, None) => {
                let credential = current.credential;
                let looking = self.look_local(session, exchange, connection, path, credential);
                return Box::pin(looking).await;
            }
            (
                RequestTarget::Absolute { .. }
                | RequestTarget::Asterisk
                | RequestTarget::Authority(_),
                _,
            ) => {
                return Err(Denial::new(Cause::BadRequest(
                    "the request target is neither a path, an absolute URL nor an authority",
                )));
            }
        };
        let who = match &connection.tunnel {
            Some(tunnel) => {
                let source = connection.client.map(|client| client.ip());
                let again = self.shared.gate.again(&tunnel.who, source, trail).await;
                again.map_err(|denial| denial.towards(&authority))?;
                Arc::clone(&tunnel.who)
            }
            None => {
                let credential = current.credential.as_deref();
                let checked = self.shared.who(&connection, credential, trail).await;
                checked.map_err(|denial| denial.towards(&authority))?
            }
        };
        if self.has_passed_here(session) {
            return Err(Denial::new(Cause::Loop).towards(&authority));
        }
        let request = EgressRequest {
            authority,
            ask: Ask::Request {
                scheme: Scheme::Http,
                method,
                path,
            },
        };
        if self.shared.settings.is_agent(&request.authority) {
            return Err(super::agents_name(&request.authority));
        }
        self.check_length(session, &request.authority)?;
        let admitting = (trail, &mut exchange.slot);
        let out = Towards::Out;
        let admission = rpc::admit(&self.shared, session, &who, &request, out, admitting).await?;
        if current.last_hop {
            return Ok(Box::pin(answer_here(session, exchange)).await);
        }
        self.admitted(exchange, admission, request)
    }

    /// A request to the gateway itself that is meant for an origin. What the
    /// gate judges is the request as the origin gets it.
    async fn look_route(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        connection: Arc<Connection>,
        chosen: Chosen,
        current: CurrentRequest,
    ) -> Result<Verdict, Denial> {
        let Some(trail) = exchange.trail.as_mut() else {
            return Err(Denial::new(Cause::Internal));
        };
        let head = session.req_header();
        let method = head.method.clone();
        let authority = chosen.authority().clone();
        trail.by_route(chosen.name());
        let (spent, credential) = chosen.credential(&head.headers, current.credential)?;
        let who = self
            .shared
            .who(&connection, credential.as_deref(), trail)
            .await
            .map_err(|denial| denial.at_origin().towards(&authority))?;
        exchange.spent = spent;
        if self.has_passed_here(session) {
            return Err(Denial::new(Cause::Loop).towards(&authority));
        }
        if self.shared.settings.is_agent(&authority) {
            return Err(super::agents_name(&authority));
        }
        let path = chosen.path_there()?;
        let target = chosen.target(&path);
        self.check_length(session, &authority)?;
        let request = EgressRequest {
            authority,
            ask: Ask::Request {
                scheme: chosen.scheme(),
                method,
                path,
            },
        };
        let admitting = (trail, &mut exchange.slot);
        let out = Towards::Out;
        let admission = rpc::admit(&self.shared, session, &who, &request, out, admitting).await?;
        if current.last_hop {
            return Ok(Box::pin(answer_here(session, exchange)).await);
        }
        exchange.route = Some((chosen, target));
        self.admitted(exchange, admission, request)
    }

    /// A request to the gateway itself: its own pages, or the agent behind it.
    async fn look_local(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        connection: Arc<Connection>,
        path: RequestPath,
        proxy_credential: Option<Vec<u8>>,
    ) -> Result<Verdict, Denial> {
        let Some(trail) = exchange.trail.as_mut() else {
            return Err(Denial::new(Cause::Internal));
        };
        let method = session.req_header().method.clone();
        if matches!(method, http::Method::GET | http::Method::HEAD)
            && let Some(page) = self.shared.pages.page(path.as_str())
        {
            exchange.answered = true;
            let known = session.req_header().headers.get(header::IF_NONE_MATCH);
            let page = page.unless_known(known.map(http::HeaderValue::as_bytes));
            trail.answered(page.status);
            let _ = local::write(session, page).await;
            return Ok(Verdict::Answered);
        }
        if matches!(method, http::Method::GET | http::Method::HEAD) && path.as_str() == POLICY_PATH
        {
            let headers = &session.req_header().headers;
            let credential = proxy_credential.or_else(|| own_credential(headers).1);
            let who = self
                .shared
                .who(&connection, credential.as_deref(), trail)
                .await
                .map_err(Denial::at_origin)?;
            let reach = self.shared.gate.reach(&who, trail)?;
            let accept = headers.get(header::ACCEPT);
            let accept = accept.and_then(|value| value.to_str().ok());
            let page = local::policy_page(&reach, &who, accept);
            exchange.answered = true;
            trail.served(POLICY_PATH);
            let _ = local::write(session, page).await;
            return Ok(Verdict::Answered);
        }
        let Some(agent) = &self.shared.settings.agent else {
            return Err(Denial::new(Cause::NotFound));
        };
        let authority = Authority {
            host: Host::Name(agent.name.clone()),
            port: 80,
        };
        let headers = &session.req_header().headers;
        let (spent, credential) = own_credential(headers);
        let who = self
            .shared
            .who(&connection, credential.as_deref(), trail)
            .await
            .map_err(|denial| denial.at_origin().towards(&authority))?;
        exchange.spent = Some(HeaderName::from_static(spent));
        if self.has_passed_here(session) {
            return Err(Denial::new(Cause::Loop).towards(&authority));
        }
        self.check_length(session, &authority)?;
        let request = EgressRequest {
            authority,
            ask: Ask::Request {
                scheme: Scheme::Http,
                method,
                path,
            },
        };
        exchange.agent_host = Some(match &agent.endpoint {
            AgentEndpoint::Tcp(authority) => authority.to_string(),
            AgentEndpoint::Unix(_) => "localhost".to_owned(),
        });
        let at = match &agent.endpoint {
            AgentEndpoint::Tcp(authority) => Some(authority),
            AgentEndpoint::Unix(path) => {
                exchange.socket = Some(path.clone());
                None
            }
        };
        let towards = Towards::Behind(at);
        let admitting = (trail, &mut exchange.slot);
        let admission =
            rpc::admit(&self.shared, session, &who, &request, towards, admitting).await?;
        self.admitted(exchange, admission, request)
    }

    pub(super) fn admitted(
        &self,
        exchange: &mut Exchange,
        admission: Admission,
        request: EgressRequest,
    ) -> Result<Verdict, Denial> {
        exchange.admitted(&self.shared, admission, request)?;
        Ok(Verdict::Forward)
    }

    /// A body that says itself that it is too large is refused before anybody
    /// is dialled; one that does not is cut when it has become so.
    pub(super) fn check_length(
        &self,
        session: &Session,
        authority: &Authority,
    ) -> Result<(), Denial> {
        let length = session.req_header().headers.get(header::CONTENT_LENGTH);
        let announced = length
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.parse::<u64>().ok());
        match (announced, self.shared.settings.body_bytes) {
            (Some(length), Some(most)) if length > most => {
                Err(Denial::new(Cause::BodyTooLarge).towards(authority))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn has_passed_here(&self, session: &Session) -> bool {
        session
            .req_header()
            .headers
            .get_all(header::VIA)
            .iter()
            .any(|via| String::from_utf8_lossy(via.as_bytes()).contains(&self.shared.instance))
    }
}

/// Answers an `OPTIONS` whose `Max-Forwards` has run out (RFC 9110 section
/// 7.6.2).
async fn answer_here(session: &mut Session, exchange: &mut Exchange) -> Verdict {
    exchange.answered = true;
    if let Some(trail) = exchange.trail.as_mut() {
        trail.answered(200);
    }
    let page = local::Page::new(200, "text/plain", Vec::new());
    let _ = local::write(session, page).await;
    Verdict::Answered
}

/// The host that an origin-form request is meant for.
fn host_of(session: &Session) -> Result<Option<Host>, Denial> {
    let Some(value) = session.req_header().headers.get(header::HOST) else {
        return Ok(None);
    };
    let host = value
        .to_str()
        .ok()
        .and_then(|text| Authority::parse_optional_port(text).ok());
    match host {
        Some((host, _)) => Ok(Some(host)),
        None => Err(Denial::new(Cause::BadRequest(
            "the Host field is not a valid host",
        ))),
    }
}

fn root() -> Result<RequestPath, Denial> {
    RequestPath::parse("/").map_err(|_| Denial::new(Cause::Internal))
}

/// An HTTP/2 request, which Pingora has parsed: its authority and path put
/// through the same parser as an absolute-form target.
fn http2_request(session: &Session) -> Result<CurrentRequest, Denial> {
    let head = session.req_header();
    if head.method == http::Method::TRACE {
        return Err(Denial::new(Cause::Method));
    }
    let bad = |why| Err(Denial::new(Cause::BadRequest(why)));
    // As in HTTP/1.1: origins differ in what `delete` is, and a rule has one.
    if !is_method(head.method.as_str()) {
        return bad(HeadError::Method.message());
    }
    let lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    if lengths.count() > 1 {
        return bad("there are two Content-Length fields");
    }
    let uri = &head.uri;
    let path = std::str::from_utf8(head.raw_path())
        .map_err(|_| Denial::new(Cause::BadRequest("the path is not ASCII")))?;
    if !path.starts_with('/') && path != "*" {
        return bad("the path does not begin with a slash");
    }
    let mut raw = String::with_capacity(64);
    if let Some(authority) = uri.authority() {
        raw.push_str(uri.scheme_str().unwrap_or("http"));
        raw.push_str("://");
        raw.push_str(authority.as_str());
        raw.push_str(uri.path_and_query().map_or("/", |path| path.as_str()));
    } else {
        raw.push_str(path);
    }
    let target =
        RequestTarget::parse(head.method.as_str(), &raw).map_err(|error| bad_target(&error))?;
    if let (RequestTarget::Absolute { authority, .. }, Some(host)) =
        (&target, head.headers.get(header::HOST))
    {
        let named = std::str::from_utf8(host.as_bytes())
            .ok()
            .and_then(|text| Authority::parse_optional_port(text).ok());
        let same = named.is_some_and(|(host, port)| {
            host == authority.host && port.is_none_or(|port| port == authority.port)
        });
        if !same {
            return Err(Denial::new(Cause::HostMismatch).towards(authority));
        }
    }
    let mut credentials = head.headers.get_all(header::PROXY_AUTHORIZATION).iter();
    let credential = credentials.next().map(|value| value.as_bytes().to_vec());
    if credentials.next().is_some() {
        return Err(Denial::new(Cause::BadRequest(
            "there are two Proxy-Authorization fields",
        )));
    }
    Ok(CurrentRequest {
        target,
        credential,
        last_hop: max_forwards(head) == Some(0),
    })
}

//! Requests whose inside is seen: by absolute-form, inside a clear-text tunnel,
//! or to the gateway itself. Pingora moves them; the gate decides.
//!
//! The phases in order: `request_filter` admits or answers, `upstream_peer`
//! names the admitted address, `upstream_request_filter` and `response_filter`
//! do an intermediary's duties, `logging` closes the trail.

use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Digest};
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};
use tokio::sync::OwnedSemaphorePermit;

use crate::config::Endpoint;
use crate::egress::{
    Ask, Authority, EgressRequest, Host, RequestId, RequestPath, RequestTarget, Scheme, is_proxys,
};
use crate::gate::ports::Observation;
use crate::gate::{
    Admission, AuditTrail, Budget, Cause, Denial, Opening, POLICY_PATH, Standing, TunnelEnd, Way,
};
use crate::identity::Principal;

use super::conn::{Connection, CurrentRequest, Ending};
use super::peers::{Call, Callee, PeerEndpoint, UnderWay};
use super::routes::Chosen;
use super::serve::bad_target;
use super::tunnels::{OpenKind, Registered};
use super::{AgentEndpoint, Shared, dial, local, refusal, rpc};

/// In what field an agent says which skill it runs. Never used for a decision.
pub(super) const SKILL_FIELD: &str = "x-openclaw-skill";
/// AgentPort's credential where `Authorization` belongs to the origin.
pub(super) const TOKEN_FIELD: &str = "x-agentport-token";

/// Who calls, for an agent that is called; nobody else can write it.
const CALLER_FIELD: &str = "x-agentport-caller";
/// The caller's tenant.
const CALLER_TENANT_FIELD: &str = "x-agentport-caller-tenant";
/// For whom it calls.
const ON_BEHALF_OF_FIELD: &str = "x-agentport-on-behalf-of";

/// The most addresses that one call is tried at.
const MOST_ATTEMPTS: usize = 8;

/// The hooks that Pingora calls.
pub(super) struct Forward {
    shared: Arc<Shared>,
}

/// What is known of one request while it is served.
#[derive(Default)]
pub(super) struct Exchange {
    trail: Option<AuditTrail>,
    admission: Option<Admission>,
    request: Option<EgressRequest>,
    addresses: Vec<SocketAddr>,
    attempt: usize,
    dialling: Option<Duration>,
    /// The Unix socket of the agent behind the gateway.
    socket: Option<String>,
    /// How the agent behind the gateway is addressed.
    agent_host: Option<String>,
    /// The agent that is called, where one is.
    call: Option<Calling>,
    /// By which route it goes, and the target there.
    route: Option<(Chosen, String)>,
    websocket: bool,
    /// A credential field of ours that must not go on.
    spent: Option<HeaderName>,
    body: u64,
    /// Bytes of the answer's body, or of an upgraded stream, sent to the client.
    sent: u64,
    answered: bool,
    /// The budget that cut it.
    cut: Option<String>,
    slot: Option<OwnedSemaphorePermit>,
    registered: Option<Registered>,
    /// How it may be ended from outside.
    ending: Option<Arc<Ending>>,
}

impl Drop for Exchange {
    /// What is ended from outside is dropped where it stands and sees no
    /// `logging`: its record says here why, and how much had passed.
    fn drop(&mut self) {
        let ended = self.ending.as_ref().and_then(|ending| ending.reason());
        if let (Some(mut trail), Some(why)) = (self.trail.take(), ended) {
            trail.bytes(self.body, self.sent);
            trail.broke_off(why.code(), None);
        }
    }
}

impl Exchange {
    /// The name that the origin's certificate must be valid for, where it is
    /// reached over TLS.
    fn tls_name(&self) -> Option<String> {
        let (chosen, _) = self.route.as_ref()?;
        (chosen.scheme() == Scheme::Https).then(|| chosen.route.route.to().certificate_name())
    }
}

/// A call from one agent to another.
struct Calling {
    callee: Arc<Callee>,
    /// Where it may go, in the order in which it is tried.
    at: Vec<(Arc<PeerEndpoint>, Option<SocketAddr>)>,
    /// How many bytes of the path do not go on.
    prefix: usize,
    on_behalf_of: Option<Arc<Principal>>,
    under_way: Option<UnderWay>,
}

impl Calling {
    fn endpoint(&self, attempt: usize) -> Option<&Arc<PeerEndpoint>> {
        self.at.get(attempt).map(|(endpoint, _)| endpoint)
    }
}

impl Exchange {
    /// Takes bytes from the budgets of the admission, waiting for a moment
    /// where replicas are settling what is left.
    async fn spend(&mut self, way: Way, count: u64) -> pingora::Result<()> {
        while !self.is_settled(way, count) {
            tokio::time::sleep(SETTLING).await;
        }
        self.try_spend(way, count).map(|_| ())
    }

    fn is_settled(&self, way: Way, count: u64) -> bool {
        match &self.admission {
            Some(admission) if count > 0 && admission.limits_bytes(way) => {
                admission.bytes_left(way) != Budget::Later
            }
            _ => true,
        }
    }

    /// Takes bytes from the budgets of the admission. The part that uses one up
    /// passes whole, since half of it could look like all; the next does not.
    /// Says whether what is left is known.
    fn try_spend(&mut self, way: Way, count: u64) -> pingora::Result<bool> {
        let Some(admission) = &self.admission else {
            return Ok(true);
        };
        if count == 0 || !admission.limits_bytes(way) {
            return Ok(true);
        }
        let left = admission.bytes_left(way);
        if left == Budget::UsedUp {
            self.cut = admission.budget_cut(way);
            return Error::e_explain(BYTE_BUDGET, "a budget of bytes is used up");
        }
        admission.bytes_passed(way, count);
        Ok(left != Budget::Later)
    }
}

/// From so many bytes of a body, either way, an exchange is one that lasts, as
/// is one whose answer does not say its length. What is shorter is over within
/// a read or two, like any request that was under way when something changed,
/// and pays nothing for the others: no lock, and no memory. A clock would not
/// tell them apart better: events that are silent for long would be found only
/// with the next one.
const LONG: u64 = 64 * 1024;
/// A budget of bytes is used up.
const BYTE_BUDGET: ErrorType = ErrorType::Custom("byte_budget");
/// How soon a budget is looked at again that replicas are settling.
const SETTLING: Duration = Duration::from_millis(2);

/// What becomes of a request after it was looked at.
enum Verdict {
    Forward,
    Answered,
}

impl Forward {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn look(
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
            let chosen = self.shared.routes.choose(
                &current.target,
                head.headers.get(header::HOST),
                head.version == http::Version::HTTP_2,
                &self.shared.gate,
            );
            if let Some(chosen) = chosen {
                return self
                    .look_route(session, exchange, connection, chosen, current)
                    .await;
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
                return self
                    .look_local(session, exchange, connection, path, None)
                    .await;
            }
            return self
                .look_at_call(session, exchange, &connection, call)
                .await;
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
                return self
                    .look_local(session, exchange, connection, path, credential)
                    .await;
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
                let source = connection.client.map(|client| client.ip());
                let checked = self
                    .shared
                    .gate
                    .authenticate(
                        connection.certified.as_ref(),
                        current.credential.as_deref(),
                        connection.peer.as_ref(),
                        source,
                        trail,
                    )
                    .await;
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
        let admission = rpc::admit(&self.shared, session, &who, &request, trail).await?;
        if current.last_hop {
            return Ok(answer_here(session, exchange).await);
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
        let (spent, credential) = chosen.credential(&head.headers, current.credential)?;
        let who = self
            .shared
            .gate
            .authenticate(
                connection.certified.as_ref(),
                credential.as_deref(),
                connection.peer.as_ref(),
                connection.client.map(|client| client.ip()),
                trail,
            )
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
        let admission = rpc::admit(&self.shared, session, &who, &request, trail).await?;
        if current.last_hop {
            return Ok(answer_here(session, exchange).await);
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
            let source = connection.client.map(|client| client.ip());
            let who = self
                .shared
                .gate
                .authenticate(
                    connection.certified.as_ref(),
                    credential.as_deref(),
                    connection.peer.as_ref(),
                    source,
                    trail,
                )
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
        let source = connection.client.map(|client| client.ip());
        let who = self
            .shared
            .gate
            .authenticate(
                connection.certified.as_ref(),
                credential.as_deref(),
                connection.peer.as_ref(),
                source,
                trail,
            )
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
        let admission = self
            .shared
            .gate
            .admit_behind(&who, &request, at, trail)
            .await?;
        self.admitted(exchange, admission, request)
    }

    /// A request to another agent: who calls is in the certificate, and there
    /// alone.
    async fn look_at_call(
        &self,
        session: &Session,
        exchange: &mut Exchange,
        connection: &Connection,
        call: Option<Call>,
    ) -> Result<Verdict, Denial> {
        let Some(trail) = exchange.trail.as_mut() else {
            return Err(Denial::new(Cause::Internal));
        };
        trail.delegates();
        let gate = &self.shared.gate;
        let source = connection.client.map(|client| client.ip());
        let certified = connection.certified.as_ref();
        let who = gate
            .authenticate(certified, None, None, source, trail)
            .await
            .map_err(Denial::at_origin)?;
        let Some(call) = call else {
            return Err(
                Denial::new(Cause::NotFound).detail("neither the host nor the path names an agent")
            );
        };
        let authority = Authority {
            host: Host::Name(call.host),
            port: 443,
        };
        let brought = brought_along(&session.req_header().headers)
            .map_err(|denial| denial.at_origin().towards(&authority))?;
        let on_behalf_of = match brought {
            None => None,
            Some(credential) => {
                let whom = gate.on_behalf_of(&who, &credential, trail).await;
                Some(whom.map_err(|denial| denial.at_origin().towards(&authority))?)
            }
        };
        if self.has_passed_here(session) {
            return Err(Denial::new(Cause::Loop).towards(&authority));
        }
        self.check_length(session, &authority)?;
        let request = EgressRequest {
            authority,
            ask: Ask::Request {
                scheme: Scheme::Https,
                method: session.req_header().method.clone(),
                path: call.path,
            },
        };
        let admission = gate.admit_behind(&who, &request, None, trail).await?;
        // Only who may call it learns whether it is there.
        let callee = self
            .shared
            .peers
            .as_ref()
            .and_then(|peers| peers.find(&call.name));
        let Some(callee) = callee else {
            trail.leads_nowhere();
            return Err(Denial::new(Cause::NotFound)
                .towards(&request.authority)
                .detail("peers.agents has no such agent"));
        };
        let mut at = Vec::new();
        let mut failed = None;
        for endpoint in callee.order(gate.clock().monotonic()) {
            match endpoint.at() {
                Endpoint::Unix(_) => at.push((endpoint, None)),
                Endpoint::Tcp(authority) => match gate.locate(authority).await {
                    Ok(found) => {
                        let found = dial::order(&found, self.shared.settings.ipv4_first);
                        at.extend(found.iter().map(|one| (Arc::clone(&endpoint), Some(*one))));
                    }
                    Err(denial) => failed = Some(denial),
                },
            }
        }
        at.truncate(MOST_ATTEMPTS);
        if at.is_empty() {
            let denial = failed.unwrap_or_else(|| Denial::new(Cause::NameNotFound));
            return Err(denial.towards(&request.authority));
        }
        exchange.agent_host = Some(request.authority.host.to_string());
        let verdict = self.admitted(exchange, admission, request)?;
        exchange.addresses = at.iter().filter_map(|(_, address)| *address).collect();
        exchange.call = Some(Calling {
            callee,
            at,
            prefix: call.prefix,
            on_behalf_of,
            under_way: None,
        });
        Ok(verdict)
    }

    fn admitted(
        &self,
        exchange: &mut Exchange,
        admission: Admission,
        request: EgressRequest,
    ) -> Result<Verdict, Denial> {
        match Arc::clone(&self.shared.in_flight).try_acquire_owned() {
            Ok(slot) => exchange.slot = Some(slot),
            Err(_) => {
                return Err(Denial::new(Cause::Overloaded)
                    .towards(&request.authority)
                    .detail("limits.in_flight is reached"));
            }
        }
        exchange.addresses = dial::order(admission.addresses(), self.shared.settings.ipv4_first);
        exchange.admission = Some(admission);
        exchange.request = Some(request);
        Ok(Verdict::Forward)
    }

    /// A body that says itself that it is too large is refused before anybody
    /// is dialled; one that does not is cut when it has become so.
    fn check_length(&self, session: &Session, authority: &Authority) -> Result<(), Denial> {
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

    fn has_passed_here(&self, session: &Session) -> bool {
        session
            .req_header()
            .headers
            .get_all(header::VIA)
            .iter()
            .any(|via| String::from_utf8_lossy(via.as_bytes()).contains(&self.shared.instance))
    }

    /// From here the exchange may last: it takes its place among what is open,
    /// and ends with the policy, the credential or the certificate that let it
    /// begin.
    fn lasts(&self, exchange: &mut Exchange, kind: OpenKind) {
        if exchange.registered.is_some() {
            return;
        }
        let (Some(admission), Some(request), Some(ending)) =
            (&exchange.admission, &exchange.request, &exchange.ending)
        else {
            return;
        };
        let dialled = exchange
            .addresses
            .get(exchange.attempt)
            .map(SocketAddr::ip)
            .filter(|_| exchange.agent_host.is_none() && exchange.call.is_none());
        let (gate, request) = (&self.shared.gate, request.clone());
        let tunnels = &self.shared.tunnels;
        let registered = tunnels.register(gate, admission, request, dialled, (kind, ending));
        exchange.registered = Some(registered);
    }

    async fn refuse(&self, session: &mut Session, exchange: &mut Exchange, denial: &Denial) {
        let Some(trail) = exchange.trail.as_mut() else {
            return;
        };
        trail.refused(denial);
        exchange.answered = true;
        let delay = trail.refusal_delay();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // A body that was announced and not read ends the connection.
        // So does a challenge, and what may have been misread.
        let close = !session.is_body_empty()
            || denial.status() == 407
            || matches!(denial.cause, Cause::BadRequest(_));
        let id = trail.request_id();
        if refusal::write_session(session, denial, &id, close)
            .await
            .is_err()
        {
            session.set_keepalive(None);
        }
    }
}

/// The credential of a request to the gateway itself, and the field it was in.
fn own_credential(headers: &http::HeaderMap) -> (&'static str, Option<Vec<u8>>) {
    match headers.get(TOKEN_FIELD) {
        Some(token) => {
            let mut value = b"Bearer ".to_vec();
            value.extend_from_slice(token.as_bytes());
            (TOKEN_FIELD, Some(value))
        }
        None => {
            let value = headers.get(header::AUTHORIZATION);
            (
                "authorization",
                value.map(|value| value.as_bytes().to_vec()),
            )
        }
    }
}

/// The token that a caller has brought along. Who is called gets the field as
/// it is, so nothing may stand in it but what was verified.
fn brought_along(headers: &http::HeaderMap) -> Result<Option<Vec<u8>>, Denial> {
    match headers.get_all(TOKEN_FIELD).iter().count() {
        0 => Ok(None),
        1 => Ok(own_credential(headers).1),
        _ => Err(Denial::new(Cause::BadRequest(
            "there are two X-AgentPort-Token fields",
        ))),
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

/// The connection that a session is on, by the way `conn` put it there.
fn connection(session: &Session) -> Option<Arc<Connection>> {
    let digest = session.digest()?.proxy_digest.as_ref()?;
    digest
        .user_data
        .as_ref()?
        .downcast_ref::<Arc<Connection>>()
        .cloned()
}

/// An HTTP/2 request, which Pingora has parsed: its authority and path put
/// through the same parser as an absolute-form target.
fn http2_request(session: &Session) -> Result<CurrentRequest, Denial> {
    let head = session.req_header();
    if head.method == http::Method::TRACE {
        return Err(Denial::new(Cause::Method));
    }
    let uri = &head.uri;
    let path = std::str::from_utf8(head.raw_path())
        .map_err(|_| Denial::new(Cause::BadRequest("the path is not ASCII")))?;
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

/// How often an `OPTIONS` request may still be forwarded (RFC 9110 section
/// 7.6.2), where it says so.
fn max_forwards(head: &RequestHeader) -> Option<u32> {
    if head.method != http::Method::OPTIONS {
        return None;
    }
    let value = head.headers.get(header::MAX_FORWARDS)?;
    value.to_str().ok()?.parse().ok()
}

/// The trace of a `traceparent` (W3C Trace Context, section 3.2), if it is one.
pub(super) fn trace_id(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = text.split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |part: &str, length| {
        part.len() == length
            && part
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let zero = |part: &str| part.bytes().all(|b| b == b'0');
    let known = version != "ff" && (version != "00" || parts.next().is_none());
    (hex(version, 2)
        && hex(trace, 32)
        && hex(parent, 16)
        && hex(flags, 2)
        && known
        && !zero(trace)
        && !zero(parent))
    .then(|| trace.to_owned())
}

/// The skill's name, where it is fit for a record.
pub(super) fn skill(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/@".contains(&b);
    (!text.is_empty() && text.len() <= 128 && text.bytes().all(plain)).then(|| text.to_owned())
}

#[async_trait]
impl ProxyHttp for Forward {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        Exchange::default()
    }

    /// None: no compression, no cache.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
    ) -> pingora::Result<()> {
        let settings = &self.shared.settings;
        // Parsing the head has set this to "for ever".
        if session.get_keepalive().is_some() {
            session.set_keepalive(Some(settings.keepalive_timeout.as_secs()));
        }
        exchange.websocket = session.is_upgrade_req();
        let idle = if exchange.websocket {
            settings.websocket_idle
        } else {
            settings.body_timeout
        };
        session.set_read_timeout(Some(idle));
        session.set_write_timeout(Some(idle));
        if let ServerSession::H1(http1) = session.as_downstream_mut() {
            // A client that has said all it wants may close its half and still
            // wait for the answer.
            http1.set_abort_on_close(false);
        }
        Ok(())
    }

    async fn request_filter(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
    ) -> pingora::Result<bool> {
        match self.look(session, exchange).await {
            Ok(Verdict::Forward) => Ok(false),
            Ok(Verdict::Answered) => Ok(true),
            Err(denial) => {
                self.refuse(session, exchange, &denial).await;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        exchange: &mut Exchange,
    ) -> pingora::Result<Box<HttpPeer>> {
        let Some(admission) = &exchange.admission else {
            return Error::e_explain(ErrorType::InternalError, "no admission");
        };
        let settings = &self.shared.settings;
        let tls_name = exchange.tls_name();
        let mut address = exchange.addresses.get(exchange.attempt);
        if let Some(call) = &mut exchange.call {
            let Some((endpoint, at)) = call.at.get(exchange.attempt) else {
                return Error::e_explain(ErrorType::InternalError, "no endpoint");
            };
            call.under_way = Some(UnderWay::on(endpoint));
            exchange.socket = match endpoint.at() {
                Endpoint::Unix(path) => Some(path.display().to_string()),
                Endpoint::Tcp(_) => None,
            };
            address = at.as_ref();
        }
        let mut peer = match (&exchange.socket, address) {
            (Some(path), _) => HttpPeer::new_uds(path, false, String::new())?,
            (None, Some(address)) => match tls_name {
                Some(name) => HttpPeer::new(*address, true, name),
                None => HttpPeer::new(*address, false, String::new()),
            },
            (None, None) => {
                return Error::e_explain(ErrorType::InternalError, "no admitted address");
            }
        };
        let who = admission.who();
        // Two routes to one origin may trust different CAs.
        let route = exchange.route.as_ref();
        let route = route.map(|(chosen, _)| chosen.route.route.name());
        peer.group_key = self.shared.pool_key.hash_one((
            who.tenant(),
            who.agent(),
            admission.authority(),
            route,
            exchange.websocket,
        ));
        let options = &mut peer.options;
        if exchange.websocket {
            options.custom_l4 = Some(Arc::clone(&self.shared.for_upgrades));
        }
        if let Some((chosen, _)) = &exchange.route {
            chosen.set(options, exchange.websocket);
        }
        // Without TLS nothing is negotiated: it is known beforehand. A WebSocket
        // goes by HTTP/1.1.
        if exchange.call.as_ref().is_some_and(|call| call.callee.http2) && !exchange.websocket {
            options.alpn = ALPN::H2;
            options.max_h2_streams = 100;
        }
        options.connection_timeout = Some(settings.connect_timeout);
        options.total_connection_timeout = Some(settings.connect_timeout);
        options.idle_timeout = Some(settings.upstream_idle);
        let wait = if exchange.websocket {
            settings.websocket_idle
        } else {
            settings.response_timeout
        };
        options.read_timeout = Some(wait);
        options.write_timeout = Some(settings.body_timeout);
        exchange.dialling = Some(self.shared.gate.clock().monotonic());
        Ok(Box::new(peer))
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        peer: &HttpPeer,
        #[cfg(unix)] _fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        exchange: &mut Exchange,
    ) -> pingora::Result<()> {
        // Whatever the pool gave, it must be an address that was admitted.
        let dialled = peer._address.as_inet().copied();
        if exchange.socket.is_none()
            && !dialled.is_some_and(|address| exchange.addresses.contains(&address))
        {
            return Error::e_explain(ErrorType::InternalError, "an address that was not admitted");
        }
        if let (Some(trail), Some(address)) = (&mut exchange.trail, dialled) {
            trail.dialled(address.ip());
        }
        if !reused && let Some(started) = exchange.dialling.take() {
            let took = self.shared.gate.clock().monotonic().saturating_sub(started);
            self.shared.gate.observe().observe(Observation::Dialled {
                outcome: "ok",
                took,
            });
        }
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        exchange: &mut Exchange,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if let Some(started) = exchange.dialling.take() {
            let took = self.shared.gate.clock().monotonic().saturating_sub(started);
            let outcome =
                upstream_cause(&error).map_or("failed", |cause| Denial::new(cause).code());
            self.shared
                .gate
                .observe()
                .observe(Observation::Dialled { outcome, took });
        }
        let now = self.shared.gate.clock().monotonic();
        let attempts = match &mut exchange.call {
            None => exchange.addresses.len(),
            Some(call) => {
                call.under_way = None;
                if let Some(endpoint) = call.endpoint(exchange.attempt) {
                    endpoint.unreachable(now);
                }
                call.at.len()
            }
        };
        exchange.attempt += 1;
        // Nothing has been sent yet.
        error.set_retry(exchange.attempt < attempts);
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        exchange: &mut Exchange,
    ) -> pingora::Result<()> {
        match &exchange.call {
            // Who has it may show on whose behalf it goes on from there.
            Some(call) if call.on_behalf_of.is_some() => {}
            _ => _ = request.remove_header(TOKEN_FIELD),
        }
        let te_trailers = request
            .headers
            .get(header::TE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
        // HTTP/1 heads have come through `canonical`; HTTP/2 ones have not.
        if session.req_header().version == http::Version::HTTP_2 {
            let proxys: Vec<_> = request
                .headers
                .keys()
                .filter(|name| is_proxys(name.as_str()))
                .cloned()
                .collect();
            let hop = [header::TE, HeaderName::from_static("http2-settings")];
            for name in proxys.iter().chain(&hop) {
                request.remove_header(name);
            }
            // One field to HTTP/1 (RFC 9113 section 8.2.3).
            if request.headers.get_all(header::COOKIE).iter().count() > 1 {
                let all: Vec<&[u8]> = request
                    .headers
                    .get_all(header::COOKIE)
                    .iter()
                    .map(HeaderValue::as_bytes)
                    .collect();
                let joined = all.join(&b"; "[..]);
                request.insert_header(header::COOKIE, joined)?;
            }
            if let Some(left) = max_forwards(request).and_then(|count| count.checked_sub(1)) {
                request.insert_header(header::MAX_FORWARDS, left.to_string())?;
            }
        }
        if te_trailers && exchange.route.is_some() && request.version == http::Version::HTTP_2 {
            request.insert_header(header::TE, "trailers")?;
        }
        if let Some(spent) = &exchange.spent {
            request.remove_header(spent);
        }
        if let Some(EgressRequest { authority, .. }) = &exchange.request {
            let host = match &exchange.agent_host {
                Some(host) => host.clone(),
                None => match &exchange.route {
                    Some((chosen, _)) => chosen.route.route.to().host_field(),
                    None if authority.port == 80 => authority.host.to_string(),
                    None => authority.to_string(),
                },
            };
            request.insert_header(header::HOST, host)?;
            if let Some((_, target)) = &exchange.route {
                request.set_raw_path(target.as_bytes())?;
            } else if session.req_header().version == http::Version::HTTP_2 {
                let path = request
                    .uri
                    .path_and_query()
                    .map_or("/", |path| path.as_str())
                    .to_owned();
                request.set_raw_path(path.as_bytes())?;
            }
        }
        if let Some(call) = &exchange.call {
            go_between(request, call, exchange.admission.as_ref())?;
            if call.callee.http2 && te_trailers {
                request.insert_header(header::TE, "trailers")?;
            }
        }
        let version = match session.req_header().version {
            http::Version::HTTP_2 => "2",
            http::Version::HTTP_10 => "1.0",
            _ => "1.1",
        };
        request.append_header(header::VIA, format!("{version} {}", self.shared.instance))?;
        if exchange.agent_host.is_some() || exchange.call.is_some() {
            // What the client says of itself is nothing to rely on.
            remove_alike(request, &CLIENTS_OWN_WORD);
            let client = connection(session).and_then(|connection| connection.client);
            request.insert_header("Forwarded", forwarded(client))?;
        }
        if let Some(parent) = request
            .headers
            .get("traceparent")
            .and_then(|value| next_hop_trace(value.as_bytes(), (self.shared.random)()))
        {
            request.insert_header("traceparent", parent)?;
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        exchange: &mut Exchange,
    ) -> pingora::Result<()> {
        let count = body.as_ref().map_or(0, |bytes| bytes.len() as u64);
        exchange.spend(Way::Up, count).await?;
        exchange.body += count;
        if exchange.body > LONG {
            self.lasts(exchange, OpenKind::Exchange);
        }
        match self.shared.settings.body_bytes {
            Some(most) if exchange.body > most && !exchange.websocket => Error::e_explain(
                ErrorType::HTTPStatus(413),
                "the body is over limits.body_bytes",
            ),
            _ => Ok(()),
        }
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> pingora::Result<()> {
        remove_hop_fields(response);
        // A hint to go round the gateway, and names that only we may use.
        for name in [
            header::ALT_SVC,
            header::PROXY_AUTHENTICATE,
            HeaderName::from_static("x-agentport-reason"),
        ] {
            response.remove_header(&name);
        }
        // HTTP/1.0 knows no chunks: there the end of the connection is that of
        // the body (RFC 9112 section 6.1).
        if session.req_header().version == http::Version::HTTP_10
            && response.remove_header(&header::TRANSFER_ENCODING).is_some()
        {
            session.set_keepalive(None);
        }
        response.append_header(header::VIA, format!("1.1 {}", self.shared.instance))?;
        if let Some((chosen, _)) = &exchange.route {
            chosen.adapt(response)?;
        }
        if let Some(admission) = &exchange.admission {
            for (name, value) in admission.standing().iter().flat_map(Standing::fields) {
                response.append_header(name, value)?;
            }
        }
        let length = response.headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(connection) = connection(session) {
            connection.answers(length);
        }
        let Some(trail) = exchange.trail.as_mut() else {
            return Ok(());
        };
        response.insert_header("X-Request-Id", trail.request_id().as_str())?;
        if response.status.is_informational()
            && response.status != http::StatusCode::SWITCHING_PROTOCOLS
        {
            return Ok(());
        }
        trail.answered(response.status.as_u16());
        exchange.answered = true;
        if let Some(endpoint) =
            (exchange.call.as_ref()).and_then(|call| call.endpoint(exchange.attempt))
        {
            endpoint.succeeded();
        }
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            self.lasts(exchange, OpenKind::Tunnel);
        } else if length.is_none_or(|length| length > LONG) && may_have_body(session, response) {
            self.lasts(exchange, OpenKind::Exchange);
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        exchange: &mut Exchange,
    ) -> pingora::Result<Option<Duration>> {
        let count = body.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let settled = exchange.try_spend(Way::Down, count)?;
        exchange.sent += count;
        Ok((!settled).then_some(SETTLING))
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        exchange: &mut Exchange,
    ) -> FailToProxy {
        let denial = denial_of(error, exchange);
        if error.esource() == &ErrorSource::Upstream
            && !exchange.answered
            && let Some(call) = &exchange.call
            && let Some(endpoint) = call.endpoint(exchange.attempt)
        {
            endpoint.broke_off(self.shared.gate.clock().monotonic());
        }
        if session.response_written().is_some() || denial.is_none() {
            if let Some(trail) = exchange.trail.as_mut() {
                let (reason, detail) = broke_off(error, exchange.cut.as_deref());
                trail.broke_off(reason, Some(detail));
            }
            return FailToProxy {
                error_code: 0,
                can_reuse_downstream: false,
            };
        }
        let status = denial.as_ref().map_or(0, Denial::status);
        if let Some(denial) = denial {
            session.set_keepalive(None);
            self.refuse(session, exchange, &denial).await;
        }
        FailToProxy {
            error_code: status,
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, exchange: &mut Exchange) {
        exchange.registered = None;
        let Some(mut trail) = exchange.trail.take() else {
            return;
        };
        let up = exchange.body.max(session.body_bytes_read() as u64);
        trail.bytes(up, session.body_bytes_sent() as u64);
        if let Some(error) = error
            && exchange.answered
            && session
                .response_written()
                .is_some_and(|header| header.status.as_u16() < 400)
        {
            let (reason, detail) = broke_off(error, exchange.cut.as_deref());
            trail.broke_off(reason, Some(detail));
        }
        trail.finish();
    }

    /// Pingora's own line would hold the whole target; the record has it all.
    fn suppress_error_log(&self, _session: &Session, _exchange: &Exchange, _error: &Error) -> bool {
        true
    }

    fn request_summary(&self, _session: &Session, exchange: &Exchange) -> String {
        exchange
            .trail
            .as_ref()
            .map_or_else(String::new, |trail| trail.request_id().to_string())
    }
}

/// What belongs to the connection with the origin only (RFC 9110 section
/// 7.6.1). The framing and an upgrade stay: Pingora writes the client's from
/// them.
fn remove_hop_fields(response: &mut ResponseHeader) {
    let named: Vec<HeaderName> = response
        .headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| {
            ![
                header::CONNECTION,
                header::CONTENT_LENGTH,
                header::TRANSFER_ENCODING,
                header::UPGRADE,
            ]
            .contains(name)
        })
        .collect();
    let always = ["keep-alive", "proxy-connection"].map(HeaderName::from_static);
    for name in named.iter().chain(&always) {
        response.remove_header(name);
    }
}

/// Whether a body may follow this head (RFC 9110 section 6.4.1).
fn may_have_body(session: &Session, response: &ResponseHeader) -> bool {
    session.req_header().method != http::Method::HEAD
        && !matches!(response.status.as_u16(), 204 | 304)
}

/// Puts what the agent that is called may rely on in place of what the caller
/// has written there, and takes its name off the path.
fn go_between(
    request: &mut RequestHeader,
    call: &Calling,
    admission: Option<&Admission>,
) -> pingora::Result<()> {
    remove_alike(
        request,
        &[CALLER_FIELD, CALLER_TENANT_FIELD, ON_BEHALF_OF_FIELD],
    );
    // The field itself is there only where its token was verified.
    let verified = request.headers.get(TOKEN_FIELD).cloned();
    remove_alike(request, &[TOKEN_FIELD]);
    if let Some(token) = verified {
        request.insert_header(TOKEN_FIELD, token)?;
    }
    if let Some(admission) = admission {
        let who = admission.who();
        request.insert_header(CALLER_FIELD, who.agent().as_str())?;
        if let Some(tenant) = who.tenant() {
            request.insert_header(CALLER_TENANT_FIELD, tenant.as_str())?;
        }
    }
    if let Some(whom) = &call.on_behalf_of {
        request.insert_header(ON_BEHALF_OF_FIELD, whom.agent().as_str())?;
    }
    if call.prefix > 0 {
        let path = String::from_utf8_lossy(request.raw_path()).into_owned();
        let rest = path.get(call.prefix..).unwrap_or_default();
        let path = match rest.starts_with('/') {
            true => rest.to_owned(),
            false => format!("/{rest}"),
        };
        request.set_raw_path(path.as_bytes())?;
    }
    Ok(())
}

/// Takes fields off, also where their names have an underscore for a dash: what
/// is modelled on CGI (RFC 3875 section 4.1.18) reads both as one name.
fn remove_alike(request: &mut RequestHeader, names: &[&str]) {
    let is = |name: &HeaderName| {
        let dashed = name.as_str().replace('_', "-");
        names.contains(&dashed.as_str())
    };
    let found = request.headers.keys().filter(|name| is(name));
    let found: Vec<_> = found.cloned().collect();
    for name in &found {
        request.remove_header(name);
    }
}

/// `Forwarded` (RFC 7239) for the agent behind the gateway.
fn forwarded(client: Option<SocketAddr>) -> String {
    match client.map(|client| client.ip().to_canonical()) {
        Some(IpAddr::V4(v4)) => format!("for={v4}"),
        Some(IpAddr::V6(v6)) => format!("for=\"[{v6}]\""),
        // A Unix socket has no address (section 6.2).
        None => "for=unknown".to_owned(),
    }
}

/// Fields in which a service behind a proxy looks for its client.
const CLIENTS_OWN_WORD: [&str; 6] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
];

/// The same trace with this hop as the parent.
fn next_hop_trace(value: &[u8], random: u128) -> Option<String> {
    let trace = trace_id(value)?;
    let flags = std::str::from_utf8(value).ok()?.split('-').nth(3)?;
    // Not zero, which would mean no parent.
    let parent = u64::try_from(random & u128::from(u64::MAX)).unwrap_or(1) | 1;
    Some(format!("00-{trace}-{parent:016x}-{flags}"))
}

/// What Pingora's error means to the client; `None` where the client is gone.
fn denial_of(error: &Error, exchange: &Exchange) -> Option<Denial> {
    let cause = match error.etype() {
        ErrorType::HTTPStatus(413) => Cause::BodyTooLarge,
        etype if *etype == BYTE_BUDGET => Cause::Throttled {
            limit: "bytes",
            retry_after: SETTLING,
        },
        _ => match error.esource() {
            ErrorSource::Downstream => match error.etype() {
                _ if is_malformed(error) => Cause::BadRequest("the chunked body is malformed"),
                ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed => {
                    return None;
                }
                ErrorType::ReadTimedout => Cause::HeaderTimeout,
                _ => Cause::BadRequest("the request is malformed"),
            },
            ErrorSource::Upstream => upstream_cause(error).unwrap_or(Cause::UpstreamProtocol),
            ErrorSource::Internal | ErrorSource::Unset => Cause::Internal,
        },
    };
    let detail = match cause {
        // What was wrong with a certificate stands in the words of the error.
        Cause::UpstreamTls | Cause::UpstreamCertificate => {
            error.to_string().chars().take(400).collect()
        }
        _ => broke_off(error, exchange.cut.as_deref()).1,
    };
    let denial = Denial::new(cause).detail(detail);
    Some(match &exchange.request {
        Some(request) => denial.towards(&request.authority),
        None => denial,
    })
}

/// Why an exchange ended before its end, and more for the operator.
fn broke_off(error: &Error, cut: Option<&str>) -> (&'static str, String) {
    if let Some(cut) = cut {
        return (TunnelEnd::Budget.code(), cut.to_owned());
    }
    let reason = match error.esource() {
        ErrorSource::Upstream => "upstream_broke_off",
        ErrorSource::Downstream | ErrorSource::Internal | ErrorSource::Unset => "aborted",
    };
    (reason, error.etype().as_str().to_owned())
}

/// Whether the client's bytes broke the framing, as `conn` found.
fn is_malformed(error: &Error) -> bool {
    error
        .root_cause()
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::InvalidData)
}

fn upstream_cause(error: &Error) -> Option<Cause> {
    Some(match error.etype() {
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Cause::ConnectTimeout,
        ErrorType::ConnectRefused => Cause::ConnectRefused,
        ErrorType::ConnectNoRoute
        | ErrorType::ConnectError
        | ErrorType::SocketError
        | ErrorType::BindError => Cause::Unreachable,
        ErrorType::InvalidCert => Cause::UpstreamCertificate,
        // The error of rustls is there as text only.
        ErrorType::TLSHandshakeFailure
            if error.to_string().contains("invalid peer certificate") =>
        {
            Cause::UpstreamCertificate
        }
        ErrorType::TLSHandshakeFailure | ErrorType::HandshakeError => Cause::UpstreamTls,
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => Cause::UpstreamTimeout,
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError => {
            Cause::UpstreamClosed
        }
        ErrorType::InvalidHTTPHeader
        | ErrorType::H1Error
        | ErrorType::H2Error
        | ErrorType::InvalidH2 => Cause::UpstreamProtocol,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_taken_up_only_where_it_is_one() {
        let good = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(
            trace_id(good).as_deref(),
            Some("4bf92f3577b34da6a3ce929d0e0e4736")
        );
        let next = next_hop_trace(good, 0x10).expect("a trace");
        assert_eq!(
            next,
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000011-01"
        );
        for bad in [
            &b""[..],
            b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            b"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            b"\xff",
        ] {
            assert_eq!(trace_id(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn nobody_else_writes_what_an_agent_relies_on() {
        let mut request = RequestHeader::build("GET", b"/", None).expect("a head");
        for name in [
            "x-agentport-caller",
            "X_AgentPort_Caller",
            "x-agentport_caller",
            "x_agentport_caller_tenant",
            "x-agentport-callers",
            "caller",
        ] {
            request.append_header(name, "somebody").expect("a field");
        }
        remove_alike(&mut request, &[CALLER_FIELD, CALLER_TENANT_FIELD]);
        let mut left: Vec<_> = request.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["caller", "x-agentport-callers"]);
    }

    #[test]
    fn one_token_may_be_brought_along() {
        let mut headers = http::HeaderMap::new();
        let read =
            |headers: &http::HeaderMap| brought_along(headers).map_err(|denial| denial.code());
        assert_eq!(read(&headers), Ok(None));
        headers.append(TOKEN_FIELD, HeaderValue::from_static("a"));
        assert_eq!(read(&headers), Ok(Some(b"Bearer a".to_vec())));
        headers.append(TOKEN_FIELD, HeaderValue::from_static("b"));
        assert_eq!(read(&headers), Err("bad_request"), "one is not verified");
    }

    #[test]
    fn the_client_is_written_as_rfc_7239_has_it() {
        for (client, expected) in [
            (Some("192.0.2.1:5"), "for=192.0.2.1"),
            (Some("[2001:db8::1]:5"), "for=\"[2001:db8::1]\""),
            (Some("[::ffff:192.0.2.1]:5"), "for=192.0.2.1"),
            (None, "for=unknown"),
        ] {
            let client = client.map(|text| text.parse().expect("an address"));
            assert_eq!(forwarded(client), expected, "{client:?}");
        }
    }

    #[test]
    fn a_skill_is_a_plain_word() {
        assert_eq!(
            skill(b"profile-enricher@1.0.0").as_deref(),
            Some("profile-enricher@1.0.0")
        );
        assert_eq!(skill(b""), None);
        assert_eq!(skill(b"a b"), None);
        assert_eq!(skill(b"a\"b"), None);
        assert_eq!(skill(&[b'a'; 129]), None);
    }
}

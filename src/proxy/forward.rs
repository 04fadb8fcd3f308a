//! Requests whose inside is seen: by absolute-form, inside a clear-text tunnel,
//! or to the gateway itself. Pingora moves them; the gate decides.
//!
//! The phases in order: `request_filter` admits or answers (see `look`),
//! `upstream_peer` names the admitted address, `upstream_request_filter` and
//! `response_filter` do an intermediary's duties (see `fields`), `logging` closes
//! the trail.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Digest};
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};

use crate::config::Endpoint;
use crate::egress::EgressRequest;
use crate::egress::answer::{self, AnswerError};
use crate::gate::ports::Observation;
use crate::gate::{Cause, Denial, Standing, Way};

use super::calls::go_between;
use super::conn::Connection;
use super::exchange::{Exchange, LONG, SETTLING};
use super::failure::{broke_off, denial_of, upstream_cause};
use super::fields::{
    CLIENTS_OWN_WORD, TOKEN_FIELD, forwarded, from_http2, make_framing_clear, next_hop_trace,
    remove_alike, remove_hop_fields, speaks_for_us,
};
use super::look::Verdict;
use super::parent::{Hop, ParentError};
use super::peers::UnderWay;
use super::tunnels::OpenKind;
use super::{Shared, refusal};

/// The hooks that Pingora calls.
pub(super) struct Forward {
    pub(super) shared: Arc<Shared>,
}

impl Forward {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
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

/// The connection that a session is on, by the way `conn` put it there.
pub(super) fn connection(session: &Session) -> Option<Arc<Connection>> {
    let digest = session.digest()?.proxy_digest.as_ref()?;
    digest
        .user_data
        .as_ref()?
        .downcast_ref::<Arc<Connection>>()
        .cloned()
}

/// Whether a body may follow this head (RFC 9110 section 6.4.1).
fn may_have_body(session: &Session, response: &ResponseHeader) -> bool {
    session.req_header().method != http::Method::HEAD
        && !matches!(response.status.as_u16(), 204 | 304)
}

#[async_trait]
impl ProxyHttp for Forward {
    /// Boxed: Pingora moves it with each of the futures that hold it.
    type CTX = Box<Exchange>;

    fn new_ctx(&self) -> Box<Exchange> {
        Box::default()
    }

    /// None: no compression, no cache.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(
        &self,
        session: &mut Session,
        exchange: &mut Box<Exchange>,
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
        exchange: &mut Box<Exchange>,
    ) -> pingora::Result<bool> {
        match self.look(session, exchange).await {
            Ok(Verdict::Forward) => Ok(false),
            Ok(Verdict::Answered) => Ok(true),
            Err(denial) => {
                Box::pin(self.refuse(session, exchange, &denial)).await;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        exchange: &mut Box<Exchange>,
    ) -> pingora::Result<Box<HttpPeer>> {
        let Some(admission) = &exchange.admission else {
            return Error::e_explain(ErrorType::InternalError, "no admission");
        };
        let settings = &self.shared.settings;
        let mut tls_name = exchange.tls_name();
        let mut address = exchange.addresses.get(exchange.attempt);
        if let Some(call) = &mut exchange.call {
            let Some((endpoint, at)) = call.at.get(exchange.attempt) else {
                return Error::e_explain(ErrorType::InternalError, "no endpoint");
            };
            call.under_way = Some(UnderWay::on(endpoint));
            if let Some(tls) = &call.callee.tls {
                // Without a name nothing would be checked.
                let Some(name) = tls.name_of(endpoint.at()) else {
                    return Error::e_explain(ErrorType::InternalError, "no server name");
                };
                tls_name = Some(name);
            }
            exchange.socket = match endpoint.at() {
                Endpoint::Unix(path) => Some(path.display().to_string()),
                Endpoint::Tcp(_) => None,
            };
            address = at.as_ref();
        }
        // The agent behind the gateway, and agents that are called, are near.
        let is_near = exchange.agent_host.is_some() || exchange.socket.is_some();
        exchange.hop = match &settings.parent {
            Some(parent) if !is_near => {
                let to = admission.authority();
                Hop::to(parent, &self.shared.gate, to, address.copied()).await?
            }
            _ => None,
        };
        let parents = exchange.hop.as_ref().and_then(Hop::peer);
        let mut peer = match (&exchange.socket, parents.as_ref().or(address)) {
            (Some(path), _) => {
                let tls = tls_name.is_some();
                HttpPeer::new_uds(path, tls, tls_name.unwrap_or_default())?
            }
            (None, Some(address)) => match tls_name {
                Some(name) => HttpPeer::new(*address, true, name),
                None => HttpPeer::new(*address, false, String::new()),
            },
            (None, None) => {
                return Error::e_explain(ErrorType::InternalError, "no admitted address");
            }
        };
        let who = admission.who();
        let route = exchange.route.as_ref();
        let route = route.map(|(chosen, _)| chosen.made_by());
        let call = exchange.call.as_ref();
        let called_tls = call.and_then(|call| call.callee.tls.clone());
        peer.group_key = self.shared.pool_key.hash_one((
            who.tenant(),
            who.agent(),
            admission.authority(),
            route,
            called_tls.as_ref().map(|tls| tls.digest()),
            exchange.websocket,
            exchange.hop.as_ref().map(Hop::target),
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
        if call.is_some_and(|call| call.callee.http2) && !exchange.websocket {
            options.alpn = ALPN::H2;
            options.max_h2_streams = 100;
        }
        options.connection_timeout = Some(settings.connect_timeout);
        options.total_connection_timeout = Some(settings.connect_timeout);
        options.idle_timeout = Some(settings.upstream_idle);
        if let Some(hop) = &exchange.hop {
            hop.set(options, settings.connect_timeout, exchange.websocket);
        }
        let wait = if exchange.websocket {
            settings.websocket_idle
        } else {
            settings.response_timeout
        };
        options.read_timeout = Some(wait);
        options.write_timeout = Some(settings.body_timeout);
        if let Some(tls) = &called_tls {
            tls.set(&mut peer, exchange.websocket);
        }
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
        exchange: &mut Box<Exchange>,
    ) -> pingora::Result<()> {
        // Whatever the pool gave, it must be an address that was admitted.
        let other_end = peer._address.as_inet().copied();
        let (is_admitted, dialled) = match &exchange.hop {
            Some(hop) => (other_end == hop.peer(), hop.address),
            None => {
                let known = other_end.is_some_and(|address| exchange.addresses.contains(&address));
                (known || exchange.socket.is_some(), other_end)
            }
        };
        if !is_admitted {
            return Error::e_explain(ErrorType::InternalError, "an address that was not admitted");
        }
        if let Some(trail) = &mut exchange.trail {
            trail.under_way();
            if let Some(hop) = &exchange.hop {
                trail.by_proxy(hop.parent.shown());
            }
            match dialled {
                Some(address) => trail.dialled(address.ip()),
                None if exchange.hop.is_some() => trail.dialled_a_name(),
                None => {}
            }
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
        exchange: &mut Box<Exchange>,
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
        // What the parent proxy says of itself is so at every address, and of a
        // name it has tried them all.
        let is_final = ParentError::of(&error).is_some_and(|failed| {
            let given = (exchange.hop.as_ref()).is_some_and(|hop| hop.address.is_some());
            !(given && failed.is_of_the_destination())
        });
        // Nothing has been sent yet.
        error.set_retry(exchange.attempt < attempts && !is_final);
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        exchange: &mut Box<Exchange>,
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
        if session.req_header().version == http::Version::HTTP_2 {
            from_http2(request)?;
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
        exchange: &mut Box<Exchange>,
    ) -> pingora::Result<()> {
        let count = body.as_ref().map_or(0, |bytes| bytes.len() as u64);
        exchange.spend(Way::Up, count).await?;
        exchange.body += count;
        if exchange.body > LONG {
            exchange.lasts(&self.shared, OpenKind::Exchange);
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
        exchange: &mut Box<Exchange>,
    ) -> pingora::Result<()> {
        let upgrade = response.status == http::StatusCode::SWITCHING_PROTOCOLS;
        let clear = match upgrade && !exchange.websocket {
            true => Err(AnswerError::Switches),
            false => make_framing_clear(response),
        };
        clear.map_err(|why| {
            Error::explain(ErrorType::InvalidHTTPHeader, why.to_string()).into_up()
        })?;
        remove_hop_fields(response);
        for name in answer::STAYS_HERE {
            response.remove_header(name);
        }
        if speaks_for_us(response) {
            response.remove_header("proxy-status");
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
            exchange.lasts(&self.shared, OpenKind::Tunnel);
        } else if length.is_none_or(|length| length > LONG) && may_have_body(session, response) {
            exchange.lasts(&self.shared, OpenKind::Exchange);
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        exchange: &mut Box<Exchange>,
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
        exchange: &mut Box<Exchange>,
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

    async fn logging(
        &self,
        session: &mut Session,
        error: Option<&Error>,
        exchange: &mut Box<Exchange>,
    ) {
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
    fn suppress_error_log(
        &self,
        _session: &Session,
        _exchange: &Box<Exchange>,
        _error: &Error,
    ) -> bool {
        true
    }

    fn request_summary(&self, _session: &Session, exchange: &Box<Exchange>) -> String {
        exchange
            .trail
            .as_ref()
            .map_or_else(String::new, |trail| trail.request_id().to_string())
    }
}

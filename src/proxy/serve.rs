//! One connection, request by request.
//!
//! A head is read whole, bounded and timed, and parsed by our own parser. What
//! goes on to Pingora is a head that we have written: the target in
//! origin-form, one `Host`, and of the body no more than the head announces.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use pingora::apps::{HttpPersistentSettings, HttpServerApp};
use pingora::protocols::http::ServerSession;
use tokio::sync::watch;

use crate::egress::head::{self, BodyLength, Head, HeadError, HeadProgress};
use crate::egress::{
    Authority, AuthorityError, Host, RequestId, RequestTarget, Scheme, TargetError,
};
use crate::gate::{AuditTrail, Cause, Denial, Opening};

use super::conn::{ConnIo, CurrentRequest};
use super::plain::{After, PlainRequest};
use super::{Wire, connect, http2, plain, refusal};

/// The first bytes of HTTP/2 with prior knowledge (RFC 9113 section 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What becomes of a connection after a request.
enum Next {
    /// Another request may come.
    Again(ConnIo),
    /// It is a tunnel from here.
    Tunnel(Tunnel),
    /// It is over.
    Gone,
}

/// What is left of a connection that has become a tunnel. It holds what the
/// tunnel needs and nothing of the loop that made it, so that an idle tunnel
/// costs little.
pub(super) type Tunnel = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Serves a connection until it ends or becomes a tunnel.
pub(super) async fn serve(wire: &Arc<Wire>, mut io: ConnIo) -> Option<Tunnel> {
    let mut settings: Option<HttpPersistentSettings> = None;
    let mut shutdown = wire.shutdown.clone();
    let mut first_request = true;
    // What a plain request does not come by is boxed: the rest would carry its
    // size along, and copy it, for every request.
    loop {
        let head_length = match read_head(wire, &mut io, &mut shutdown, first_request).await {
            HeadRead::Over => return None,
            // A refusal is a record too; where none can be taken, none is made.
            _ if wire.shared.gate.room().await.is_err() => {
                let id = RequestId::from_bits((wire.shared.random)());
                let denial = Denial::new(Cause::AuditUnavailable);
                Box::pin(refusal::write_raw(io, &denial, &id)).await;
                return None;
            }
            HeadRead::Complete(length) => length,
            HeadRead::Http2 => {
                Box::pin(http2::serve(wire, io)).await;
                return None;
            }
            HeadRead::Refuse(denial) => {
                Box::pin(refuse_unread(wire, io, denial, "")).await;
                return None;
            }
        };
        let next = match dispatch(wire, io, head_length, &mut settings).await {
            Next::Again(next) => next,
            Next::Tunnel(tunnel) => return Some(tunnel),
            Next::Gone => return None,
        };
        io = next;
        first_request = false;
        if *wire.shutdown.borrow() {
            // What the client has sent meanwhile must not take its answer with it.
            Box::pin(io.close_gently()).await;
            return None;
        }
    }
}

enum HeadRead {
    Complete(usize),
    Http2,
    Over,
    Refuse(Denial),
}

/// Reads until a head is whole. The first byte may take as long as a
/// connection may be idle, the rest as long as a head may take, in all.
async fn read_head(
    wire: &Wire,
    io: &mut ConnIo,
    shutdown: &mut watch::Receiver<bool>,
    first_request: bool,
) -> HeadRead {
    let settings = &wire.shared.settings;
    if io.unread().is_empty() {
        // A connection that waits holds no buffer.
        io.shrink();
        let ending = Arc::clone(&io.connection().ending);
        let first = tokio::select! {
            biased;
            _ = ending.ended() => return HeadRead::Over,
            read = tokio::time::timeout(settings.keepalive_timeout, io.look_further()) => read,
            () = closing(shutdown, first_request) => return HeadRead::Over,
        };
        match first {
            Ok(Ok(count)) if count > 0 => {}
            _ => return HeadRead::Over,
        }
    }
    let rest = async {
        let mut looked = 0;
        loop {
            // Empty lines before a request are skipped (RFC 9112 section 2.2).
            while io.unread().starts_with(b"\r\n") {
                io.skip(2);
                looked = 0;
            }
            let bytes = io.unread();
            let preface = bytes.len().min(H2_PREFACE.len());
            if preface > 3 && bytes[..preface] == H2_PREFACE[..preface] {
                if preface == H2_PREFACE.len() {
                    return HeadRead::Http2;
                }
            } else {
                match head::progress(bytes, looked) {
                    Ok(HeadProgress::Complete(length)) if length <= settings.header_bytes => {
                        return HeadRead::Complete(length);
                    }
                    Ok(HeadProgress::Partial) if bytes.len() < settings.header_bytes => {}
                    Ok(_) => return HeadRead::Refuse(too_large(bytes)),
                    Err(error) => return HeadRead::Refuse(bad_head(error)),
                }
            }
            if let Some(denial) = hopeless(bytes) {
                return HeadRead::Refuse(denial);
            }
            looked = bytes.len();
            match io.look_further().await {
                Ok(count) if count > 0 => {}
                _ => return HeadRead::Over,
            }
        }
    };
    match tokio::time::timeout(settings.header_timeout, rest).await {
        Ok(read) => read,
        Err(_) => HeadRead::Refuse(Denial::new(Cause::HeaderTimeout)),
    }
}

/// How long a connection that is new when the gateway goes down may take to
/// send its first byte.
const FIRST_WORDS: Duration = Duration::from_millis(500);

/// Comes back when a connection that waits is to be closed because the gateway
/// goes down: between two requests at once. A new one has its request on the
/// way, which would fail.
async fn closing(shutdown: &mut watch::Receiver<bool>, first_request: bool) {
    let _ = shutdown.wait_for(|down| *down).await;
    if first_request {
        tokio::time::sleep(FIRST_WORDS).await;
    }
}

/// What cannot become a request, seen before its end: TLS on a port that
/// speaks none, or binary noise.
fn hopeless(bytes: &[u8]) -> Option<Denial> {
    match bytes.first() {
        Some(0x16) => Some(
            Denial::new(Cause::BadRequest(
                "this port speaks clear text; the request is TLS",
            ))
            .detail("a TLS handshake on a clear-text listener"),
        ),
        Some(first) if !first.is_ascii_graphic() && !matches!(first, b'\r') => {
            Some(Denial::new(Cause::BadRequest("the request is not HTTP")))
        }
        _ => None,
    }
}

/// A head that is too large: because of its target, or altogether.
fn too_large(bytes: &[u8]) -> Denial {
    let line = bytes
        .iter()
        .position(|b| *b == b'\r')
        .unwrap_or(bytes.len());
    if line > crate::egress::MAX_TARGET_BYTES + 64 {
        return Denial::new(Cause::TargetTooLong);
    }
    Denial::new(Cause::HeadTooLarge)
}

fn bad_head(error: HeadError) -> Denial {
    match error {
        HeadError::TargetTooLong => Denial::new(Cause::TargetTooLong),
        HeadError::TooManyFields => Denial::new(Cause::HeadTooLarge),
        other => Denial::new(Cause::BadRequest(other.message())),
    }
}

/// The refusal of a target that does not parse.
pub(super) fn bad_target(error: &TargetError) -> Denial {
    match error {
        TargetError::TooLong => Denial::new(Cause::TargetTooLong),
        TargetError::Authority(AuthorityError::Userinfo) => Denial::new(Cause::BadRequest(
            "the request target has userinfo; send credentials in Proxy-Authorization",
        )),
        TargetError::Authority(AuthorityError::Host(_)) => Denial::new(Cause::BadRequest(
            "the host in the request target is not valid",
        )),
        TargetError::Authority(AuthorityError::MissingPort | AuthorityError::InvalidPort) => {
            Denial::new(Cause::BadRequest(
                "the port in the request target is not a number from 1 to 65535",
            ))
        }
        TargetError::Scheme => Denial::new(Cause::BadRequest(
            "the scheme of the request target is not http",
        )),
        TargetError::Fragment => {
            Denial::new(Cause::BadRequest("the request target has a fragment"))
        }
        TargetError::Path(_) => Denial::new(Cause::BadRequest(
            "the path of the request target is not valid",
        )),
        TargetError::Form | TargetError::InvalidCharacter => Denial::new(Cause::BadRequest(
            "the request target is neither a path, an absolute URL nor an authority",
        )),
    }
    .detail(error.to_string())
}

/// Opens the trail of a request on this connection.
pub(super) fn open_trail(wire: &Wire, io: &ConnIo) -> AuditTrail {
    let connection = io.connection();
    wire.shared.gate.open(Opening {
        listener: Arc::clone(&connection.listener),
        client: connection.client,
        request_id: RequestId::from_bits((wire.shared.random)()),
    })
}

/// Refuses what has not become a request, and closes.
async fn refuse_unread(wire: &Wire, io: ConnIo, denial: Denial, method: &str) {
    let mut trail = open_trail(wire, &io);
    trail.method(method);
    refuse(io, trail, denial).await;
}

/// Refuses, records, and closes the connection.
pub(super) async fn refuse(io: ConnIo, mut trail: AuditTrail, denial: Denial) {
    trail.refused(&denial);
    let id = trail.request_id();
    let delay = trail.refusal_delay();
    trail.finish();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    refusal::write_raw(io, &denial, &id).await;
}

/// Sends one request where it belongs.
async fn dispatch(
    wire: &Arc<Wire>,
    mut io: ConnIo,
    head_length: usize,
    settings: &mut Option<HttpPersistentSettings>,
) -> Next {
    let prepared = {
        let bytes = &io.unread()[..head_length];
        match head::parse(bytes) {
            Ok(head) if head.target.len() > wire.shared.settings.target_bytes => {
                Err((Denial::new(Cause::TargetTooLong), head.method.to_owned()))
            }
            Ok(head) if head.method == "CONNECT" && wire.shared.peers.is_some() => {
                Err((Denial::new(Cause::Method), head.method.to_owned()))
            }
            Ok(head) if head.method == "CONNECT" => {
                Ok(Prepared::Connect(connect::ConnectHead::take(&head)))
            }
            Ok(head) => prepare(wire, &io, &head),
            Err(error) => Err((bad_head(error), String::new())),
        }
    };
    match prepared {
        Ok(Prepared::Connect(head)) => {
            io.skip(head_length);
            match Box::pin(connect::connect(wire, io, head)).await {
                Some(tunnel) => Next::Tunnel(tunnel),
                None => Next::Gone,
            }
        }
        Ok(Prepared::Plain(request)) => {
            io.skip(head_length);
            match plain::serve(wire, &mut io, *request).await {
                After::Again => Next::Again(io),
                After::Close => {
                    Box::pin(io.close_gently()).await;
                    Next::Gone
                }
                After::Gone => Next::Gone,
            }
        }
        Ok(Prepared::Request(request)) => {
            io.replace_head(head_length, &request.head, request.body);
            io.connection().put_current(request.current);
            forward(wire, io, settings).await
        }
        Err((denial, method)) => {
            Box::pin(refuse_unread(wire, io, denial, &method)).await;
            Next::Gone
        }
    }
}

enum Prepared {
    Connect(connect::ConnectHead),
    /// One that is served here.
    Plain(Box<PlainRequest>),
    /// One for Pingora.
    Request(Box<PreparedRequest>),
}

struct PreparedRequest {
    head: Vec<u8>,
    /// How much of what comes is its body; no bound where it upgrades.
    body: Option<BodyLength>,
    current: CurrentRequest,
}

/// Parses the target, holds the `Host` against it, and writes the head that goes
/// on.
fn prepare(wire: &Wire, io: &ConnIo, head: &Head<'_>) -> Result<Prepared, (Denial, String)> {
    let refuse = |denial: Denial| (denial, head.method.to_owned());
    if head.method == "TRACE" {
        // It would send back what other fields the way here has added.
        return Err(refuse(Denial::new(Cause::Method)));
    }
    let target = RequestTarget::parse(head.method, head.target)
        .map_err(|error| refuse(bad_target(&error)))?;
    let target = match wire.shared.peers {
        None => io.connection().own_target(target),
        Some(_) => target,
    };
    let host = match &target {
        RequestTarget::Absolute { .. } if is_host_the_targets(head) => None,
        _ => host_field(head).map_err(refuse)?,
    };
    let tunnel = io.connection().tunnel.as_ref();
    let authority = match (&target, tunnel) {
        (RequestTarget::Absolute { .. }, Some(_)) => {
            return Err(refuse(Denial::new(Cause::BadRequest(
                "inside a tunnel the request target is a path",
            ))));
        }
        (
            RequestTarget::Absolute {
                scheme: Scheme::Https,
                authority,
                ..
            },
            None,
        ) if wire.shared.peers.is_none() => {
            return Err(refuse(Denial::new(Cause::HttpsAbsolute).towards(authority)));
        }
        (RequestTarget::Absolute { authority, .. }, None) => Some(authority),
        (_, Some(tunnel)) => Some(&tunnel.authority),
        (_, None) => None,
    };
    if let (Some(authority), Some((host, port))) = (authority, &host)
        && (*host != authority.host || port.is_some_and(|port| port != authority.port))
    {
        let default = port.is_none() || *port == Some(authority.port);
        let detail = format!(
            "Host {host}{}",
            if default { "" } else { " with another port" }
        );
        return Err(refuse(
            Denial::new(Cause::HostMismatch)
                .towards(authority)
                .detail(detail),
        ));
    }
    let rewritten = plain::rewrite(&wire.shared, io, head, &target, authority);
    let canonical = match rewritten {
        Ok(plain) => return Ok(Prepared::Plain(plain)),
        Err(open) => open.finished(),
    };
    Ok(Prepared::Request(Box::new(PreparedRequest {
        // An upgraded connection has no bound.
        body: (!canonical.websocket).then_some(head.body),
        head: canonical.bytes,
        current: CurrentRequest {
            target,
            credential: head.field("proxy-authorization").map(<[u8]>::to_vec),
            last_hop: canonical.last_hop,
        },
    })))
}

/// Whether `Host` is written as the authority of an absolute target is, which is
/// what nearly all clients send: then it names the same, and parsing it again
/// would tell nothing.
fn is_host_the_targets(head: &Head<'_>) -> bool {
    let Some((_, rest)) = head.target.split_once("://") else {
        return false;
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    head.field("host") == Some(&rest.as_bytes()[..end])
}

fn host_field(head: &Head<'_>) -> Result<Option<(Host, Option<u16>)>, Denial> {
    let Some(value) = head.field("host") else {
        return Ok(None);
    };
    let bad = || Denial::new(Cause::BadRequest("the Host field is not a valid host"));
    let text = std::str::from_utf8(value).map_err(|_| bad())?;
    Authority::parse_optional_port(text)
        .map(Some)
        .map_err(|error| bad().detail(error.to_string()))
}

/// One request through Pingora. A stream that has been upgraded can be ended
/// from outside; its record is then written by the trail's drop.
async fn forward(
    wire: &Arc<Wire>,
    io: ConnIo,
    settings: &mut Option<HttpPersistentSettings>,
) -> Next {
    let ending = Arc::clone(&io.connection().ending);
    let mut session = ServerSession::new_http1(Box::new(io));
    if let Some(settings) = settings.take() {
        settings.apply_to_session(&mut session);
    }
    session.set_keepalive(Some(wire.shared.settings.keepalive_timeout.as_secs()));
    let served = tokio::select! {
        biased;
        _ = ending.ended() => None,
        served = wire.proxy.process_new_http(session, &wire.shutdown) => served,
    };
    let Some((stream, persistent)) = served.map(pingora::apps::ReusedHttpStream::consume) else {
        return Next::Gone;
    };
    *settings = persistent;
    match stream.into_any().downcast::<ConnIo>() {
        Ok(mut io) if io.at_fence() => {
            io.lift_fence();
            Next::Again(*io)
        }
        // The body was not read to its end: where the next request begins is
        // not known.
        _ => Next::Gone,
    }
}

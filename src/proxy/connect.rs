//! `CONNECT` (RFC 9110 section 9.3.6): a tunnel to a destination that was
//! judged, resolved, classified and dialled before the client hears `200`, and
//! whose first bytes must be what was announced.
//!
//! A rejected CONNECT closes the connection, and what came behind it is not
//! looked at (RFC 9931).

use std::net::SocketAddr;
use std::sync::Arc;

use pingora::http::{RequestHeader, ResponseHeader};
use tokio::io::AsyncWriteExt;
use tokio::sync::OwnedSemaphorePermit;

use crate::egress::head::Head;
use crate::egress::hello::{self, HelloError, HelloProgress};
use crate::egress::{Ask, Authority, EgressRequest, Host, RequestTarget};
use crate::gate::{Admission, AuditTrail, Cause, Denial, Leads, TunnelEnd};
use crate::policy::{EchRule, Mode, SniRule, TlsRule, TlsUse};

use super::conn::{ConnIo, Connection, Ending, InTunnel};
use super::dial::Dialled;
use super::relay::{Carried, Relay};
use super::serve::{Tunnel, bad_target, open_trail, refuse, serve};
use super::tunnels::OpenKind;
use super::upstream::Upstream;
use super::{Wire, dial, fields, inside};

/// What a CONNECT's head says, kept after its bytes are gone.
pub(super) struct ConnectHead {
    target: String,
    host: Option<Vec<u8>>,
    credential: Option<Vec<u8>>,
    trace: Option<Vec<u8>>,
    skill: Option<Vec<u8>>,
}

impl ConnectHead {
    /// Of an HTTP/2 request, which Pingora has read (RFC 9113 section 8.5).
    ///
    /// # Errors
    /// A [`Denial`] where there are two credentials.
    pub(super) fn of_http2(head: &RequestHeader) -> Result<Self, Denial> {
        let owned = |name: &str| {
            let value = head.headers.get(name);
            value.map(|value| value.as_bytes().to_vec())
        };
        let credentials = head.headers.get_all(http::header::PROXY_AUTHORIZATION);
        if credentials.iter().count() > 1 {
            return Err(Denial::new(Cause::BadRequest(
                "there are two Proxy-Authorization fields",
            )));
        }
        let authority = head.uri.authority().map(http::uri::Authority::as_str);
        Ok(Self {
            target: authority.unwrap_or_default().to_owned(),
            host: owned("host"),
            credential: owned("proxy-authorization"),
            trace: owned("traceparent"),
            skill: owned(fields::SKILL_FIELD),
        })
    }

    pub(super) fn take(head: &Head<'_>) -> Self {
        let owned = |name: &str| head.field(name).map(<[u8]>::to_vec);
        Self {
            target: head.target.to_owned(),
            host: owned("host"),
            credential: owned("proxy-authorization"),
            trace: owned("traceparent"),
            skill: owned(fields::SKILL_FIELD),
        }
    }
}

/// Serves a CONNECT up to the point where its tunnel can open, or refuses it.
pub(super) async fn connect(wire: &Arc<Wire>, io: ConnIo, head: ConnectHead) -> Option<Tunnel> {
    let mut trail = open_trail(wire, &io);
    trail.method("CONNECT");
    let trace = head.trace.as_deref().and_then(fields::trace_id);
    let skill = head.skill.as_deref().and_then(fields::skill);
    trail.labels(trace.as_deref(), skill.as_deref());
    match prepare(wire, &io, &head, &mut trail).await {
        Ok(ready) => {
            let trail = trail.tunnel_opened();
            Some(Box::pin(open(Arc::clone(wire), io, ready, trail)))
        }
        Err(denial) => {
            let inside = wire.inside.as_ref();
            if let Some(telling) = inside.and_then(|inside| inside.tells(&denial)) {
                let wire = Arc::clone(wire);
                return Some(Box::pin(inside::tell(wire, io, trail, denial, telling)));
            }
            refuse(io, trail, denial).await;
            None
        }
    }
}

/// A tunnel that is admitted and dialled.
struct Ready {
    admission: Admission,
    request: EgressRequest,
    upstream: Upstream,
    leads: Leads,
    /// Held for as long as the tunnel is open.
    _place: OwnedSemaphorePermit,
}

async fn prepare(
    wire: &Wire,
    io: &ConnIo,
    head: &ConnectHead,
    trail: &mut AuditTrail,
) -> Result<Ready, Denial> {
    let (admission, request) = admit(wire, io, head, trail).await?;
    let slot = Arc::clone(&wire.shared.tunnel_slots)
        .try_acquire_owned()
        .map_err(|_| {
            Denial::new(Cause::Overloaded)
                .towards(&request.authority)
                .detail("limits.tunnels is reached")
        })?;
    let Dialled {
        upstream,
        address,
        by,
    } = dial::dial(&wire.shared, &admission).await?;
    let address = address.map(|address| address.ip());
    if let Some(parent) = by {
        trail.by_proxy(parent.shown());
    }
    let leads = match address {
        Some(address) => {
            trail.dialled(address);
            Leads::To(address)
        }
        None => {
            trail.dialled_a_name();
            Leads::ToName(admission.addresses().iter().map(SocketAddr::ip).collect())
        }
    };
    Ok(Ready {
        admission,
        request,
        upstream,
        leads,
        _place: slot,
    })
}

async fn admit(
    wire: &Wire,
    io: &ConnIo,
    head: &ConnectHead,
    trail: &mut AuditTrail,
) -> Result<(Admission, EgressRequest), Denial> {
    if io.connection().tunnel.is_some() {
        return Err(Denial::new(Cause::BadRequest(
            "there is no CONNECT inside a tunnel",
        )));
    }
    let authority = match RequestTarget::parse("CONNECT", &head.target) {
        Ok(RequestTarget::Authority(authority)) => authority,
        Ok(_) => {
            return Err(Denial::new(Cause::BadRequest(
                "the target of CONNECT is host:port",
            )));
        }
        Err(error) => return Err(bad_target(&error)),
    };
    if let Some(host) = &head.host {
        check_host(host, &authority)?;
    }
    let source = io.connection().client.map(|client| client.ip());
    let who = wire
        .shared
        .gate
        .authenticate(
            io.connection().certified.as_ref(),
            head.credential.as_deref(),
            io.connection().peer.as_ref(),
            source,
            trail,
        )
        .await
        .map_err(|denial| denial.towards(&authority))?;
    if wire.shared.settings.is_agent(&authority) {
        return Err(super::agents_name(&authority));
    }
    let request = EgressRequest {
        authority,
        ask: Ask::Tunnel,
    };
    let admission = wire.shared.gate.admit(&who, &request, trail).await?;
    Ok((admission, request))
}

/// Real clients leave the port out of the `Host` of a CONNECT;
/// another host, or another port, is a lie.
fn check_host(raw: &[u8], authority: &Authority) -> Result<(), Denial> {
    let bad =
        || Denial::new(Cause::BadRequest("the Host field is not a valid host")).towards(authority);
    let text = std::str::from_utf8(raw).map_err(|_| bad())?;
    let (host, port) = Authority::parse_optional_port(text).map_err(|_| bad())?;
    if host != authority.host || port.is_some_and(|port| port != authority.port) {
        return Err(Denial::new(Cause::HostMismatch).towards(authority));
    }
    Ok(())
}

/// From here the client has its 200; whatever fails can only close.
async fn open(wire: Arc<Wire>, mut io: ConnIo, ready: Ready, mut trail: AuditTrail) {
    let wire = &wire;
    let Ready {
        admission,
        request,
        mut upstream,
        leads,
        _place,
    } = ready;
    let ending = Arc::new(Ending::default());
    let _registered = wire.shared.tunnels.register(
        &wire.shared.gate,
        &admission,
        (request, leads, None),
        (OpenKind::Tunnel, &ending),
    );
    let first = tokio::select! {
        biased;
        end = ending.ended() => First::End(end),
        first = begin(wire, &mut io, &mut upstream, &admission) => first,
    };
    let first = match first {
        // In audit mode it passes, and the record says that it would not have.
        First::End(end)
            if admission.permit().mode() == Mode::Audit
                && !end.was_allowed()
                && end != TunnelEnd::NoFirstBytes =>
        {
            trail.would_deny(end.code());
            First::Opaque
        }
        other => other,
    };
    let (end, carried) = match first {
        First::Opaque => {
            io.pass_through();
            let idle = wire.shared.settings.tunnel_idle;
            let mut relay = Relay::new(&mut io, &mut upstream, idle).within(&admission);
            let end = tokio::select! {
                end = &mut relay => end,
                end = ending.ended() => end,
            };
            if let Some(detail) = relay.over().and_then(|way| admission.budget_cut(way)) {
                trail.explain(detail);
            }
            (end, relay.carried())
        }
        First::ClearText if !wire.shared.settings.plain_in_tunnels => {
            (TunnelEnd::NotTls, Carried::default())
        }
        First::ClearText => {
            drop(upstream);
            inside(wire, io, &admission, Arc::clone(&ending)).await;
            let end = ending.reason().unwrap_or(TunnelEnd::Closed);
            (end, Carried::default())
        }
        First::End(end) => (end, Carried::default()),
    };
    trail.tunnel_closed(end, carried.up, carried.down);
}

/// Clear-text HTTP in a tunnel: every request is judged by itself, under the
/// agent and the authority of the CONNECT.
async fn inside(wire: &Arc<Wire>, io: ConnIo, admission: &Admission, ending: Arc<Ending>) {
    let outer = io.connection();
    let tunnel = InTunnel {
        who: Arc::clone(admission.who()),
        authority: admission.authority().clone(),
    };
    let connection = Arc::new(Connection::new(
        Arc::clone(&outer.listener),
        outer.client,
        Some(tunnel),
        ending,
    ));
    serve_inside(Arc::clone(wire), io.into_tunnel(connection)).await;
}

/// The loop within the loop. Its type is written out because it is its own
/// part; it ends, as there is no CONNECT inside a tunnel.
fn serve_inside(wire: Arc<Wire>, io: ConnIo) -> Tunnel {
    Box::pin(async move {
        let _none = serve(&wire, io).await;
    })
}

enum First {
    /// What may pass unseen.
    Opaque,
    /// HTTP that can be judged request by request.
    ClearText,
    /// What must not pass.
    End(TunnelEnd),
}

/// Says 200, and looks at what the client makes of it. A client that does not
/// read is waited for as long as one that does not write.
async fn begin(
    wire: &Wire,
    io: &mut ConnIo,
    upstream: &mut Upstream,
    admission: &Admission,
) -> First {
    let answer = say_ok(io);
    match tokio::time::timeout(wire.shared.settings.client_hello_timeout, answer).await {
        Ok(Ok(())) => first_bytes(wire, io, upstream, admission).await,
        Ok(Err(_)) => First::End(TunnelEnd::Aborted),
        Err(_) => First::End(TunnelEnd::NoFirstBytes),
    }
}

/// Answers a CONNECT with 200.
///
/// # Errors
/// Where the client is gone.
pub(super) async fn say_ok(io: &mut ConnIo) -> std::io::Result<()> {
    if let Some(stream) = io.http2_stream() {
        let header = ResponseHeader::build(200, Some(0)).map_err(std::io::Error::other)?;
        return stream.answer(header, false);
    }
    io.write_all(b"HTTP/1.1 200 Connection Established\r\n\r\n")
        .await?;
    io.flush().await
}

/// Looks at the first bytes of the client until they say what they are.
async fn first_bytes(
    wire: &Wire,
    io: &mut ConnIo,
    upstream: &mut Upstream,
    admission: &Admission,
) -> First {
    let rule = wire.shared.settings.loosest(admission.permit().tls());
    let opaque = admission.permit().opaque();
    let look = async {
        loop {
            if let Some(first) = classify(io.unread(), rule, opaque, admission.authority()) {
                return first;
            }
            let waits_for_server = rule.tls == TlsUse::Any && opaque && io.unread().is_empty();
            let read = tokio::select! {
                read = io.look_further() => read,
                // A protocol in which the server speaks first.
                ready = upstream.speaks(), if waits_for_server => {
                    return match ready {
                        Ok(()) => First::Opaque,
                        Err(_) => First::End(TunnelEnd::Reset),
                    };
                }
            };
            match read {
                Ok(0) if io.unread().is_empty() => return First::End(TunnelEnd::Closed),
                Ok(0) => return First::End(TunnelEnd::NotTls),
                Ok(_) => {}
                Err(_) => return First::End(TunnelEnd::Reset),
            }
        }
    };
    match tokio::time::timeout(wire.shared.settings.client_hello_timeout, look).await {
        Ok(first) => first,
        Err(_) if rule.tls == TlsUse::Any && opaque => First::Opaque,
        Err(_) => First::End(TunnelEnd::NoFirstBytes),
    }
}

/// What the first bytes are; `None` while they do not say.
fn classify(bytes: &[u8], rule: TlsRule, opaque: bool, authority: &Authority) -> Option<First> {
    if bytes.is_empty() {
        return None;
    }
    match hello::progress(bytes) {
        Ok(HelloProgress::Partial) => None,
        Ok(HelloProgress::Complete(_)) if !opaque => Some(First::End(TunnelEnd::NotInspectable)),
        Ok(HelloProgress::Complete(found)) => Some(judge_hello(&found, rule, authority)),
        Err(HelloError::NotTls) => classify_text(bytes, rule.tls == TlsUse::Any && opaque),
        Err(HelloError::Malformed | HelloError::TooLong | HelloError::TwoNames) => {
            Some(First::End(TunnelEnd::BadHello))
        }
    }
}

fn judge_hello(found: &hello::ClientHello, rule: TlsRule, authority: &Authority) -> First {
    if found.encrypted && rule.ech == EchRule::Refuse {
        return First::End(TunnelEnd::EncryptedHello);
    }
    match (&found.server_name, &authority.host) {
        // An address cannot stand in the server name (RFC 6066 section 3), so
        // for an address none is the right one.
        (None, Host::Address(_)) => First::Opaque,
        (None, Host::Name(_)) => match rule.sni {
            SniRule::Match => First::End(TunnelEnd::NoServerName),
            SniRule::Optional | SniRule::Any => First::Opaque,
        },
        (Some(_), _) if rule.sni == SniRule::Any => First::Opaque,
        (Some(name), host) => match Host::parse(name) {
            Ok(named) if named == *host => First::Opaque,
            _ => First::End(TunnelEnd::OtherServerName),
        },
    }
}

/// Not TLS: HTTP in clear text, or something else.
fn classify_text(bytes: &[u8], anything: bool) -> Option<First> {
    const MOST_METHOD: usize = 32;
    let other = || {
        Some(if anything {
            First::Opaque
        } else {
            First::End(TunnelEnd::NotTls)
        })
    };
    let Some(word) = bytes
        .iter()
        .position(|b| !b.is_ascii_uppercase() && *b != b'-')
    else {
        return if bytes.len() > MOST_METHOD {
            other()
        } else {
            None
        };
    };
    if word == 0 || bytes[word] != b' ' {
        return other();
    }
    // The version at the end of the line tells HTTP from SMTP and its kin.
    match bytes.iter().position(|b| *b == b'\n') {
        Some(end) => {
            let line = bytes[..end].trim_ascii_end();
            let http = line
                .rsplit(|b| *b == b' ')
                .next()
                .is_some_and(|last| last.starts_with(b"HTTP/"));
            if http {
                Some(First::ClearText)
            } else {
                other()
            }
        }
        // A request line may be long; a line that longer is the loop's to refuse.
        None if bytes.len() > crate::egress::MAX_TARGET_BYTES => Some(First::ClearText),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: TlsRule = TlsRule {
        tls: TlsUse::Strict,
        sni: SniRule::Match,
        ech: EchRule::Refuse,
    };

    fn text(bytes: &[u8], anything: bool) -> &'static str {
        match classify_text(bytes, anything) {
            None => "more",
            Some(First::Opaque) => "opaque",
            Some(First::ClearText) => "http",
            Some(First::End(end)) => end.code(),
        }
    }

    #[test]
    fn clear_text_is_told_from_other_protocols() {
        for (bytes, strict, any) in [
            (&b"GET / HTTP/1.1\r\n"[..], "http", "http"),
            (b"PRI * HTTP/2.0\r\n", "http", "http"),
            (b"POST /a HTTP/1.1\nHost", "http", "http"),
            (b"GE", "more", "more"),
            (b"GET /path", "more", "more"),
            (b"EHLO there\r\n", "not_tls", "opaque"),
            (b"SSH-2.0-x\r\n", "not_tls", "opaque"),
            (b"\x00\x01", "not_tls", "opaque"),
            (b"get / HTTP/1.1\r\n", "not_tls", "opaque"),
            (b"GET / \r\n", "not_tls", "opaque"),
        ] {
            assert_eq!(
                text(bytes, false),
                strict,
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
            assert_eq!(
                text(bytes, true),
                any,
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        }
        assert_eq!(text(&[b'A'; 40], false), "not_tls");
    }

    #[test]
    fn the_server_name_must_be_the_authority() {
        let hello = |name: Option<&str>, encrypted| hello::ClientHello {
            server_name: name.map(str::to_owned),
            encrypted,
            protocols: Vec::new(),
        };
        let judge = |name, encrypted, authority: &str, rule| {
            let authority = Authority::parse(authority).expect("an authority");
            match judge_hello(&hello(name, encrypted), rule, &authority) {
                First::Opaque => "ok",
                First::ClearText => "http",
                First::End(end) => end.code(),
            }
        };
        let a = "a.example:443";
        assert_eq!(judge(Some("a.example"), false, a, STRICT), "ok");
        assert_eq!(judge(Some("A.Example"), false, a, STRICT), "ok");
        assert_eq!(judge(Some("b.example"), false, a, STRICT), "sni_mismatch");
        assert_eq!(judge(Some("x.a.example"), false, a, STRICT), "sni_mismatch");
        assert_eq!(judge(Some("a.example\0"), false, a, STRICT), "sni_mismatch");
        assert_eq!(judge(None, false, a, STRICT), "sni_missing");
        assert_eq!(judge(Some("a.example"), true, a, STRICT), "ech_refused");
        assert_eq!(judge(None, false, "192.0.2.1:443", STRICT), "ok");
        assert_eq!(
            judge(Some("b.example"), false, "192.0.2.1:443", STRICT),
            "sni_mismatch"
        );
        let optional = TlsRule {
            sni: SniRule::Optional,
            ..STRICT
        };
        assert_eq!(judge(None, false, a, optional), "ok");
        assert_eq!(judge(Some("b.example"), false, a, optional), "sni_mismatch");
        let any = TlsRule {
            sni: SniRule::Any,
            ech: EchRule::Allow,
            ..STRICT
        };
        assert_eq!(judge(Some("b.example"), true, a, any), "ok");
    }
}

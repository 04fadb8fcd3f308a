//! Reads the body of a request where a rule asks for its JSON-RPC methods. What
//! was read is what goes on: Pingora keeps it and sends it, byte for byte.

use std::sync::Arc;

use bytes::BytesMut;
use http::header;
use pingora::proxy::Session;
use tokio::sync::OwnedSemaphorePermit;

use crate::egress::{Authority, EgressRequest, RpcError, rpc_methods};
use crate::gate::{Admission, AuditTrail, BodyPaid, Cause, Denial, Gate};
use crate::identity::Principal;
use crate::policy::Calls;

use super::Shared;

/// Which way a request is to go.
#[derive(Clone, Copy)]
pub(super) enum Towards<'a> {
    /// Out, to an address that is judged.
    Out,
    /// To a service that the operator has put behind the gateway, at this host
    /// and port; `None` where they are looked up by another.
    Behind(Option<&'a Authority>),
}

impl Towards<'_> {
    async fn admit(
        self,
        gate: &Gate,
        who: &Arc<Principal>,
        asked: (&EgressRequest, Calls<'_>, Option<BodyPaid>),
        trail: &mut AuditTrail,
    ) -> Result<Admission, Denial> {
        match self {
            Self::Out => gate.admit_calls(who, asked, trail).await,
            Self::Behind(at) => gate.admit_behind(who, asked, at, trail).await,
        }
    }
}

/// Asks the gate, with what the body calls where policy wants to know that.
///
/// # Errors
/// The gate's, or that the body cannot be judged.
pub(super) async fn admit(
    shared: &Shared,
    session: &mut Session,
    who: &Arc<Principal>,
    request: &EgressRequest,
    towards: Towards<'_>,
    (trail, slot): (&mut AuditTrail, &mut Option<OwnedSemaphorePermit>),
) -> Result<Admission, Denial> {
    let gate = &shared.gate;
    // The frames of a WebSocket are not seen, so neither is what they call.
    if session.is_upgrade_req() || !gate.asks_for_calls(who, request) {
        let asked = (request, Calls::Unseen, None);
        return towards.admit(gate, who, asked, trail).await;
    }
    // Before the body, which may be large: what refuses without it, refuses.
    let paid = gate.admit_body(who, request, trail).await?;
    *slot = Some(shared.in_flight_slot(&request.authority)?);
    // Boxed: few requests are read.
    let read = Box::pin(read(shared, session)).await;
    match read.map_err(|denial| denial.towards(&request.authority))? {
        Ok(methods) => {
            let asked = (request, Calls::Seen(&methods), Some(paid));
            towards.admit(gate, who, asked, trail).await
        }
        Err(error) => {
            let asked = (request, Calls::Unseen, Some(paid));
            let admitted = towards.admit(gate, who, asked, trail).await;
            admitted.map_err(|denial| match denial.cause {
                // What would help is another body.
                Cause::Policy(_) => Denial::new(Cause::BadRequest(error.message()))
                    .towards(&request.authority)
                    .detail(format!(
                        "a rule has rpc_methods; without them: {}",
                        denial.code()
                    )),
                _ => denial,
            })
        }
    }
}

/// The same for a request that has no body, and so calls nothing.
///
/// # Errors
/// The gate's.
pub(super) async fn admit_bodiless(
    shared: &Shared,
    who: &Arc<Principal>,
    request: &EgressRequest,
    trail: &mut AuditTrail,
) -> Result<Admission, Denial> {
    let gate = &shared.gate;
    if !gate.asks_for_calls(who, request) {
        return gate
            .admit_calls(who, (request, Calls::Unseen, None), trail)
            .await;
    }
    let paid = gate.admit_body(who, request, trail).await?;
    let asked = (request, Calls::Seen(&[]), Some(paid));
    gate.admit_calls(who, asked, trail).await
}

/// The methods that the body calls.
async fn read(
    shared: &Shared,
    session: &mut Session,
) -> Result<Result<Vec<String>, RpcError>, Denial> {
    let bad = |what| Denial::new(Cause::BadRequest(what));
    const TOO_LARGE: &str =
        "the body is larger than what is read to judge JSON-RPC methods (limits.rpc_body_bytes)";
    if session.is_body_empty() {
        return Ok(Ok(Vec::new()));
    }
    let headers = &session.req_header().headers;
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Ok(Err(RpcError::Encoded));
    }
    let most = shared.settings.rpc_body_bytes;
    let announced = headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > most) {
        return Err(bad(TOO_LARGE));
    }
    if headers.contains_key(header::EXPECT) {
        // It is we who want the body now, and the origin gets it at once.
        let told = session.as_downstream_mut().write_continue_response().await;
        told.map_err(|_| bad("the request broke off"))?;
        session.req_header_mut().remove_header(&header::EXPECT);
    }
    session.as_downstream_mut().enable_retry_buffering();
    let mut body = BytesMut::new();
    let reading = async {
        loop {
            match session.as_downstream_mut().read_request_body().await {
                Ok(Some(part)) if body.len() + part.len() > most => return Err(bad(TOO_LARGE)),
                Ok(Some(part)) => body.extend_from_slice(&part),
                Ok(None) => return Ok(()),
                Err(_) => return Err(bad("the request body broke off or is malformed")),
            }
        }
    };
    match tokio::time::timeout(shared.settings.body_timeout, reading).await {
        Ok(read) => read?,
        Err(_) => return Err(bad("the request body did not come in time")),
    }
    if session.as_downstream_mut().retry_buffer_truncated() {
        return Err(bad(TOO_LARGE));
    }
    if body.is_empty() {
        return Err(bad("the body is empty, so it has no JSON-RPC method"));
    }
    Ok(rpc_methods(&body))
}

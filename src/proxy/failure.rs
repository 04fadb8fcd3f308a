//! What an error of Pingora's means: to the client, and in the record.

use pingora::{Error, ErrorSource, ErrorType};

use crate::gate::{Cause, Denial, TunnelEnd};

use super::exchange::{BYTE_BUDGET, Exchange, SETTLING};
use super::parent::ParentError;

/// What Pingora's error means to the client; `None` where the client is gone.
pub(super) fn denial_of(error: &Error, exchange: &Exchange) -> Option<Denial> {
    let denial = match ParentError::of(error) {
        Some(failed) => failed.denial(),
        None => denial_of_pingoras(error, exchange.cut.as_deref())?,
    };
    Some(match &exchange.request {
        Some(request) => denial.towards(&request.authority),
        None => denial,
    })
}

fn denial_of_pingoras(error: &Error, cut: Option<&str>) -> Option<Denial> {
    let cause = match error.etype() {
        ErrorType::HTTPStatus(413) => Cause::BodyTooLarge,
        etype if *etype == BYTE_BUDGET => Cause::Throttled {
            limit: "bytes",
            retry_after: SETTLING,
        },
        _ => match error.esource() {
            ErrorSource::Downstream => match error.etype() {
                _ if is_malformed(error) => Cause::BadRequest("the chunked body is malformed"),
                // Of a stream of HTTP/2 that has been reset nothing can be said on it.
                ErrorType::ReadError
                | ErrorType::WriteError
                | ErrorType::ConnectionClosed
                | ErrorType::H2Error => return None,
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
        _ => broke_off(error, cut).1,
    };
    Some(Denial::new(cause).detail(detail))
}

/// Why an exchange ended before its end, and more for the operator.
pub(super) fn broke_off(error: &Error, cut: Option<&str>) -> (&'static str, String) {
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

pub(super) fn upstream_cause(error: &Error) -> Option<Cause> {
    if let Some(failed) = ParentError::of(error) {
        return Some(failed.denial().cause);
    }
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

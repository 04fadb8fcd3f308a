//! Fields of a head that an intermediary takes away, adds or reads.

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};

use crate::egress::answer::{self, AnswerBody, AnswerError};
use crate::egress::is_proxys;
use crate::gate::{Cause, Denial};

/// In what field an agent says which skill it runs. Never used for a decision.
pub(super) const SKILL_FIELD: &str = "x-openclaw-skill";
/// AgentPort's credential where `Authorization` belongs to the origin.
pub(super) const TOKEN_FIELD: &str = "x-agentport-token";
/// Who calls, for an agent that is called; nobody else can write it.
pub(super) const CALLER_FIELD: &str = "x-agentport-caller";
/// The caller's tenant.
pub(super) const CALLER_TENANT_FIELD: &str = "x-agentport-caller-tenant";
/// For whom it calls.
pub(super) const ON_BEHALF_OF_FIELD: &str = "x-agentport-on-behalf-of";
/// The tenant of whoever that is.
pub(super) const ON_BEHALF_OF_TENANT_FIELD: &str = "x-agentport-on-behalf-of-tenant";

/// The credential of a request to the gateway itself, and the field it was in.
pub(super) fn own_credential(headers: &http::HeaderMap) -> (&'static str, Option<Vec<u8>>) {
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
pub(super) fn brought_along(headers: &http::HeaderMap) -> Result<Option<Vec<u8>>, Denial> {
    match headers.get_all(TOKEN_FIELD).iter().count() {
        0 => Ok(None),
        1 => Ok(own_credential(headers).1),
        _ => Err(Denial::new(Cause::BadRequest(
            "there are two X-AgentPort-Token fields",
        ))),
    }
}

/// How often an `OPTIONS` request may still be forwarded (RFC 9110 section
/// 7.6.2), where it says so.
pub(super) fn max_forwards(head: &RequestHeader) -> Option<u32> {
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

/// The same trace with this hop as the parent.
pub(super) fn next_hop_trace(value: &[u8], random: u128) -> Option<String> {
    let trace = trace_id(value)?;
    let flags = std::str::from_utf8(value).ok()?.split('-').nth(3)?;
    // Not zero, which would mean no parent.
    let parent = u64::try_from(random & u128::from(u64::MAX)).unwrap_or(1) | 1;
    Some(format!("00-{trace}-{parent:016x}-{flags}"))
}

/// The skill's name, where it is fit for a record.
pub(super) fn skill(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/@".contains(&b);
    (!text.is_empty() && text.len() <= 128 && text.bytes().all(plain)).then(|| text.to_owned())
}

/// Makes the fields of an HTTP/2 request what an origin of HTTP/1 expects, and
/// takes off what is for a proxy only. HTTP/1 heads have come through
/// `canonical`.
///
/// # Errors
/// Where a field cannot be written, which none of these is.
pub(super) fn from_http2(request: &mut RequestHeader) -> pingora::Result<()> {
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
    Ok(())
}

/// Leaves one way to tell where an answer ends, or says why there is none. A
/// client that told it otherwise than we do would take what an origin sends
/// behind its answer for that of the next one asked (RFC 9112 section 6.3).
pub(super) fn make_framing_clear(response: &mut ResponseHeader) -> Result<(), AnswerError> {
    let of = |name| {
        response
            .headers
            .get_all(name)
            .iter()
            .map(HeaderValue::as_bytes)
    };
    let lengths = of(header::CONTENT_LENGTH).count();
    let framing = answer::framing(of(header::TRANSFER_ENCODING), of(header::CONTENT_LENGTH))?;
    match framing {
        AnswerBody::Chunked if lengths > 0 => {
            response.remove_header(&header::CONTENT_LENGTH);
        }
        AnswerBody::Bytes(_) if lengths > 1 => {
            let length = response.headers.get(header::CONTENT_LENGTH).cloned();
            if let Some(length) = length {
                let _ = response.insert_header(header::CONTENT_LENGTH, length);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether an origin writes a field of RFC 9209 in this gateway's name.
pub(super) fn speaks_for_us(response: &ResponseHeader) -> bool {
    let mut values = response.headers.get_all("proxy-status").iter();
    values.any(|value| answer::names_us(value.as_bytes()))
}

/// What `Connection` names as the connection's own (RFC 9110 section 7.6.1). The framing and an upgrade stay: Pingora writes the client's from
/// them.
pub(super) fn remove_hop_fields(response: &mut ResponseHeader) {
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
    for name in &named {
        response.remove_header(name);
    }
}

/// Takes fields off, also where their names have an underscore or another mark for
/// a dash: what is modelled on CGI (RFC 3875 section 4.1.18) reads them as one name.
pub(super) fn remove_alike(request: &mut RequestHeader, names: &[&str]) {
    let is = |name: &HeaderName| {
        let dashed = (name.as_str()).replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        names.contains(&dashed.as_str())
    };
    let found = request.headers.keys().filter(|name| is(name));
    let found: Vec<_> = found.cloned().collect();
    for name in &found {
        request.remove_header(name);
    }
}

/// Fields in which a service behind a proxy looks for its client.
pub(super) const CLIENTS_OWN_WORD: [&str; 7] = [
    "forwarded",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
];

/// `Forwarded` (RFC 7239) for the agent behind the gateway.
pub(super) fn forwarded(client: Option<SocketAddr>) -> String {
    match client.map(|client| client.ip().to_canonical()) {
        Some(IpAddr::V4(v4)) => format!("for={v4}"),
        Some(IpAddr::V6(v6)) => format!("for=\"[{v6}]\""),
        // A Unix socket has no address (section 6.2).
        None => "for=unknown".to_owned(),
    }
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
            "x.agentport~caller",
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

//! What the gateway says when it does not let a request through, in the form in
//! which callers and the memory stream get it.

use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::Value;

/// The header by which a gateway's own answer is told from an origin's.
const REASON_HEADER: &str = "x-agentport-reason";
/// The most bytes of one member that are kept.
const MAX_TEXT_BYTES: usize = 512;

/// The gateway's no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::openclaw) struct Refusal {
    /// As the gateway answered.
    #[serde(skip)]
    pub(in crate::openclaw) status: StatusCode,
    /// The code of the reason, such as `no_rule_matches`.
    pub(in crate::openclaw) reason: String,
    /// The rule that said so.
    pub(in crate::openclaw) rule: Option<String>,
    /// Where the request was to go: host and port.
    pub(in crate::openclaw) destination: String,
    /// What to do about it.
    pub(in crate::openclaw) hint: Option<String>,
    /// The gateway's number of the request, which finds its record.
    pub(in crate::openclaw) request_id: Option<String>,
    /// Seconds to wait, with 429 and 503.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::openclaw) retry_after: Option<u64>,
}

impl Refusal {
    /// Whether an answer to a plain request is the gateway's own.
    pub(in crate::openclaw) fn is_gateways(status: StatusCode, headers: &HeaderMap) -> bool {
        // Only a proxy asks for proxy credentials (RFC 9110, 15.5.8).
        status == StatusCode::PROXY_AUTHENTICATION_REQUIRED
            || headers.contains_key(REASON_HEADER)
                && (status.is_client_error() || status.is_server_error())
    }

    /// Reads a refusal from what the gateway sent; whatever is missing is
    /// filled from the status.
    pub(in crate::openclaw) fn read(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        destination: &str,
    ) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let member = |name: &str| {
            body.get(name)
                .and_then(Value::as_str)
                .map(|text| clean(text, MAX_TEXT_BYTES))
                .filter(|text| !text.is_empty())
        };
        let header = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(|text| clean(text, MAX_TEXT_BYTES))
                .filter(|text| !text.is_empty())
        };
        Self {
            status,
            reason: member("reason")
                .or_else(|| header(REASON_HEADER))
                .unwrap_or_else(|| reason_of(status).to_owned()),
            rule: member("rule"),
            destination: destination.to_owned(),
            hint: member("hint").or_else(|| hint_of(status).map(str::to_owned)),
            request_id: member("request_id"),
            retry_after: header("retry-after").and_then(|text| text.parse().ok()),
        }
    }

    /// Whose move it is, as one word.
    pub(in crate::openclaw) fn code(&self) -> &'static str {
        match self.status.as_u16() {
            407 => "egress_unauthenticated",
            429 => "egress_throttled",
            500.. => "egress_unavailable",
            _ => "egress_refused",
        }
    }

    /// With every text put through `redact`.
    pub(in crate::openclaw) fn redacted(mut self, redact: impl Fn(&str) -> String) -> Self {
        self.reason = redact(&self.reason);
        for text in [&mut self.rule, &mut self.hint, &mut self.request_id] {
            *text = text.as_deref().map(&redact);
        }
        self
    }
}

fn reason_of(status: StatusCode) -> &'static str {
    match status.as_u16() {
        407 => "credential_required",
        403 => "refused",
        429 => "throttled",
        502 => "upstream_failed",
        503 => "overloaded",
        504 => "upstream_timeout",
        _ => "gateway_error",
    }
}

fn hint_of(status: StatusCode) -> Option<&'static str> {
    (status == StatusCode::PROXY_AUTHENTICATION_REQUIRED).then_some(
        "the gateway wants a credential: set AGENTPORT_TOKEN_FILE, as `agentport issue-token` writes it",
    )
}

/// One line of text of at most `most` bytes, whatever the other side sent.
fn clean(text: &str, most: usize) -> String {
    let mut out = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if out.len() + c.len_utf8() > most {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn reads_body_before_header_before_status() {
        let mut headers = HeaderMap::new();
        let body =
            br#"{"error":"refused","reason":"no_rule","rule":null,"hint":"ask","request_id":"r1"}"#;
        headers.insert(REASON_HEADER, HeaderValue::from_static("by_header"));
        headers.insert("retry-after", HeaderValue::from_static("7"));
        let full = Refusal::read(StatusCode::FORBIDDEN, &headers, body, "a.example:443");
        assert_eq!(
            (full.reason.as_str(), full.rule.as_deref()),
            ("no_rule", None)
        );
        assert_eq!(full.hint.as_deref(), Some("ask"));
        assert_eq!(full.request_id.as_deref(), Some("r1"));
        assert_eq!(full.retry_after, Some(7));
        let by_header = Refusal::read(StatusCode::FORBIDDEN, &headers, b"<html>", "a.example:443");
        assert_eq!(by_header.reason, "by_header");
        let bare = Refusal::read(
            StatusCode::PROXY_AUTHENTICATION_REQUIRED,
            &HeaderMap::new(),
            b"",
            "a:1",
        );
        assert_eq!(
            (bare.reason.as_str(), bare.code()),
            ("credential_required", "egress_unauthenticated")
        );
    }

    #[test]
    fn an_origins_refusal_is_not_the_gateways() {
        let mut headers = HeaderMap::new();
        assert!(!Refusal::is_gateways(StatusCode::FORBIDDEN, &headers));
        assert!(Refusal::is_gateways(
            StatusCode::PROXY_AUTHENTICATION_REQUIRED,
            &headers
        ));
        headers.insert(REASON_HEADER, HeaderValue::from_static("x"));
        assert!(Refusal::is_gateways(StatusCode::FORBIDDEN, &headers));
        assert!(!Refusal::is_gateways(StatusCode::OK, &headers));
    }
}

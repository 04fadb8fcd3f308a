//! Why a request does not pass, and what that is on the wire: status, code,
//! `Proxy-Status` (RFC 9209), and a body that an agent can act on.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::egress::{Authority, RequestId};
use crate::limit::Limit;
use crate::policy::{Denied, DenyReason, RefusalForm};

use super::quota::Standing;

/// Where an agent asks the gateway itself, with its token, what it may reach.
pub const POLICY_PATH: &str = "/.well-known/agentport/policy";

/// The version that speaks, in `Via` and `Proxy-Status`.
pub const PSEUDONYM: &str = "agentport";

/// A refusal. What the agent is told comes from its cause; `detail` is for the
/// operator's record alone.
#[derive(Clone, Debug)]
pub struct Denial {
    /// Why.
    pub cause: Cause,
    /// Boxed, so that what passes does not carry the size of a refusal.
    about: Box<About>,
}

#[derive(Clone, Debug, Default)]
struct About {
    /// What policy said, where it was policy.
    policy: Option<Denied>,
    /// Whether the credential belongs in `Authorization`, as to an origin.
    to_origin: bool,
    destination: Option<Authority>,
    /// The limit that refuses, where one does.
    limit: Option<Arc<Limit>>,
    /// More, for the record.
    detail: Option<String>,
}

/// Why a request does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The request is malformed; the text says how.
    BadRequest(&'static str),
    /// The `Host` names another host than the target.
    HostMismatch,
    /// `https://` in absolute-form.
    HttpsAbsolute,
    /// A request to the gateway itself that it does not serve.
    NotFound,
    /// The head came too slowly.
    HeaderTimeout,
    /// A target over 8 KiB.
    TargetTooLong,
    /// A head over the limit, or too many fields.
    HeadTooLarge,
    /// A body over the limit.
    BodyTooLarge,
    /// A method that is not forwarded.
    Method,
    /// The request has come by here before.
    Loop,
    /// There is no credential.
    NoCredential,
    /// A credential that is no good.
    BadCredential {
        /// What is wrong with it.
        code: &'static str,
        /// 403, or 407 where it is so configured.
        status: u16,
    },
    /// The keys of the token's issuer are not to be had, so that nothing can be
    /// said of it.
    IssuerUnavailable,
    /// Policy says no.
    Policy(DenyReason),
    /// The destination is one of the gateway's own listeners.
    OwnListener,
    /// A quota is used up.
    Throttled {
        /// Which.
        limit: &'static str,
        /// When to try again.
        retry_after: Duration,
    },
    /// A limit that replicas share cannot be counted.
    LimitsUnavailable,
    /// No more connections or requests at once.
    Overloaded,
    /// The audit log cannot take another record.
    AuditUnavailable,
    /// The gateway is going down.
    Draining,
    /// The name does not exist or has no address.
    NameNotFound,
    /// The resolver did not answer in time.
    NameTimeout,
    /// The resolver failed.
    NameFailed,
    /// The destination does not accept.
    ConnectRefused,
    /// The destination does not answer.
    ConnectTimeout,
    /// There is no way to the destination.
    Unreachable,
    /// The TLS handshake with the destination failed.
    UpstreamTls,
    /// The destination's certificate is not valid for it.
    UpstreamCertificate,
    /// The destination answered no HTTP.
    UpstreamProtocol,
    /// The destination went away before it answered.
    UpstreamClosed,
    /// The destination took too long to answer.
    UpstreamTimeout,
    /// The parent proxy cannot be reached: its name, its port or its TLS.
    ParentUnreachable,
    /// The parent proxy took too long, with the connection or with its answer.
    ParentTimeout,
    /// The parent proxy wants another credential than it was shown.
    ParentCredential,
    /// The parent proxy refuses the destination.
    ParentRefused,
    /// The parent proxy did not reach the destination, or failed.
    ParentFailed,
    /// The parent proxy answered no HTTP, or went away before it answered.
    ParentProtocol,
    /// Something in the gateway failed.
    Internal,
}

/// Why a tunnel that was open has ended, where it did not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelEnd {
    /// Both sides have closed.
    Closed,
    /// One side broke the connection.
    Reset,
    /// No byte either way for too long.
    Idle,
    /// The first bytes did not come in time.
    NoFirstBytes,
    /// No server name in the ClientHello.
    NoServerName,
    /// Another server name than the authority.
    OtherServerName,
    /// The ClientHello is encrypted.
    EncryptedHello,
    /// Neither TLS nor HTTP.
    NotTls,
    /// A ClientHello that cannot be read.
    BadHello,
    /// TLS where the rules need to see methods or paths.
    NotInspectable,
    /// A new policy does not allow it.
    PolicyChanged,
    /// The token has expired or is no longer good.
    CredentialEnded,
    /// A budget of bytes is used up.
    Budget,
    /// The token, or what it stands for, was revoked.
    Revoked,
    /// The token that a call was made on behalf of has expired or is no longer
    /// good.
    OriginalEnded,
    /// The token that a call was made on behalf of, or what it stands for, was
    /// revoked.
    OriginalRevoked,
    /// The gateway is going down.
    Drained,
    /// The client is gone before anything came of it.
    Aborted,
}

impl TunnelEnd {
    /// The word in records and metrics.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Closed => "ok",
            Self::Reset => "reset",
            Self::Idle => "tunnel_idle",
            Self::NoFirstBytes => "client_hello_timeout",
            Self::NoServerName => "sni_missing",
            Self::OtherServerName => "sni_mismatch",
            Self::EncryptedHello => "ech_refused",
            Self::NotTls => "not_tls",
            Self::BadHello => "client_hello_malformed",
            Self::NotInspectable => "not_inspectable",
            Self::PolicyChanged => "policy_changed",
            Self::CredentialEnded | Self::OriginalEnded => "credential_ended",
            Self::Budget => "byte_budget",
            Self::Revoked | Self::OriginalRevoked => "revoked",
            Self::Drained => "drained",
            Self::Aborted => "aborted",
        }
    }

    /// For the operator, where the code does not say all.
    #[must_use]
    pub fn detail(self) -> Option<&'static str> {
        match self {
            Self::OriginalEnded | Self::OriginalRevoked => {
                Some("that of the agent on whose behalf it was called")
            }
            _ => None,
        }
    }

    /// The same, where it is not the caller's own credential that has ended but
    /// that of the agent on whose behalf it calls.
    #[must_use]
    pub fn of_original(self) -> Self {
        match self {
            Self::CredentialEnded => Self::OriginalEnded,
            Self::Revoked => Self::OriginalRevoked,
            other => other,
        }
    }

    /// Whether the tunnel did what it was allowed to until it ended.
    #[must_use]
    pub fn was_allowed(self) -> bool {
        match self {
            Self::Closed | Self::Reset | Self::Idle | Self::Drained | Self::Aborted => true,
            Self::PolicyChanged | Self::CredentialEnded | Self::Revoked | Self::Budget => true,
            Self::OriginalEnded | Self::OriginalRevoked => true,
            Self::NoFirstBytes
            | Self::NoServerName
            | Self::OtherServerName
            | Self::EncryptedHello
            | Self::NotTls
            | Self::BadHello
            | Self::NotInspectable => false,
        }
    }
}

impl Denial {
    /// A refusal with nothing known but its cause.
    #[must_use]
    pub fn new(cause: Cause) -> Self {
        Self {
            cause,
            about: Box::default(),
        }
    }

    /// What policy refuses.
    #[must_use]
    pub fn of_policy(denied: &Denied) -> Self {
        let mut denial = Self::new(Cause::Policy(denied.reason()));
        denial.about.policy = Some(denied.clone());
        denial
    }

    /// How the rule that refuses wants a `CONNECT` to be told.
    #[must_use]
    pub fn form(&self) -> RefusalForm {
        let policy = self.about.policy.as_ref();
        policy.map_or_else(RefusalForm::default, Denied::form)
    }

    /// The rule that decided, where one did.
    #[must_use]
    pub fn rule(&self) -> Option<&Arc<str>> {
        self.about.policy.as_ref().and_then(Denied::rule)
    }

    /// The same, refused by this limit.
    #[must_use]
    pub(super) fn limited_by(mut self, limit: &Arc<Limit>) -> Self {
        self.about.limit = Some(Arc::clone(limit));
        self
    }

    /// Where the agent wanted to go.
    #[must_use]
    pub fn destination(&self) -> Option<&Authority> {
        self.about.destination.as_ref()
    }

    /// More, for the operator's record.
    #[must_use]
    pub fn operator_detail(&self) -> Option<&str> {
        self.about.detail.as_deref()
    }

    /// The same, of a request to what stands behind the gateway: the missing
    /// credential is then one for an origin (401), not for a proxy (407).
    #[must_use]
    pub fn at_origin(mut self) -> Self {
        self.about.to_origin = true;
        self
    }

    /// The same, towards this destination.
    #[must_use]
    pub fn towards(mut self, destination: &Authority) -> Self {
        self.about.destination = Some(destination.clone());
        self
    }

    /// The same, with more for the operator.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.about.detail = Some(detail.into());
        self
    }

    /// Whether it is the destination that failed, or its name, and the gateway
    /// had let the request pass.
    #[must_use]
    pub fn is_upstreams(&self) -> bool {
        matches!(
            self.cause,
            Cause::NameNotFound
                | Cause::NameTimeout
                | Cause::NameFailed
                | Cause::ConnectRefused
                | Cause::ConnectTimeout
                | Cause::Unreachable
                | Cause::UpstreamTls
                | Cause::UpstreamCertificate
                | Cause::UpstreamProtocol
                | Cause::UpstreamClosed
                | Cause::UpstreamTimeout
        ) || self.is_parents()
    }

    /// Whether it is the parent proxy that failed or refused.
    fn is_parents(&self) -> bool {
        matches!(
            self.cause,
            Cause::ParentUnreachable
                | Cause::ParentTimeout
                | Cause::ParentCredential
                | Cause::ParentRefused
                | Cause::ParentFailed
                | Cause::ParentProtocol
        )
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self.cause {
            Cause::BadRequest(_) | Cause::HostMismatch | Cause::HttpsAbsolute => 400,
            Cause::NoCredential if self.about.to_origin => 401,
            Cause::NoCredential => 407,
            Cause::BadCredential { status, .. } => status,
            Cause::Policy(_) | Cause::OwnListener => 403,
            Cause::NotFound => 404,
            Cause::Method => 405,
            Cause::HeaderTimeout => 408,
            Cause::BodyTooLarge => 413,
            Cause::TargetTooLong => 414,
            Cause::Throttled { .. } => 429,
            Cause::HeadTooLarge => 431,
            Cause::Internal => 500,
            Cause::NameNotFound
            | Cause::NameFailed
            | Cause::ConnectRefused
            | Cause::Unreachable
            | Cause::UpstreamTls
            | Cause::UpstreamCertificate
            | Cause::UpstreamProtocol
            | Cause::UpstreamClosed
            | Cause::ParentUnreachable
            | Cause::ParentCredential
            | Cause::ParentRefused
            | Cause::ParentFailed
            | Cause::ParentProtocol => 502,
            Cause::Overloaded
            | Cause::LimitsUnavailable
            | Cause::AuditUnavailable
            | Cause::Draining
            | Cause::IssuerUnavailable => 503,
            Cause::NameTimeout
            | Cause::ConnectTimeout
            | Cause::UpstreamTimeout
            | Cause::ParentTimeout => 504,
            Cause::Loop => 508,
        }
    }

    /// The word in the body's `error`, in records and in metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self.cause {
            Cause::BadRequest(_) => "bad_request",
            Cause::HostMismatch => "host_mismatch",
            Cause::HttpsAbsolute => "https_needs_connect",
            Cause::NotFound => "not_found",
            Cause::HeaderTimeout => "header_timeout",
            Cause::TargetTooLong => "target_too_long",
            Cause::HeadTooLarge => "head_too_large",
            Cause::BodyTooLarge => "body_too_large",
            Cause::Method => "method_refused",
            Cause::Loop => "loop_detected",
            Cause::NoCredential => "no_credential",
            Cause::BadCredential { code, .. } => code,
            Cause::IssuerUnavailable => "issuer_unavailable",
            Cause::Policy(reason) => reason.as_str(),
            Cause::OwnListener => "own_listener",
            Cause::Throttled { .. } => "throttled",
            Cause::LimitsUnavailable => "limits_unavailable",
            Cause::Overloaded => "overloaded",
            Cause::AuditUnavailable => "audit_unavailable",
            Cause::Draining => "draining",
            Cause::NameNotFound => "name_not_found",
            Cause::NameTimeout => "name_timeout",
            Cause::NameFailed => "name_failed",
            Cause::ConnectRefused => "connect_refused",
            Cause::ConnectTimeout => "connect_timeout",
            Cause::Unreachable => "unreachable",
            Cause::UpstreamTls => "upstream_tls",
            Cause::UpstreamCertificate => "upstream_certificate",
            Cause::UpstreamProtocol => "upstream_protocol",
            Cause::UpstreamClosed => "upstream_closed",
            Cause::UpstreamTimeout => "upstream_timeout",
            Cause::ParentUnreachable => "parent_unreachable",
            Cause::ParentTimeout => "parent_timeout",
            Cause::ParentCredential => "parent_credential",
            Cause::ParentRefused => "parent_refused",
            Cause::ParentFailed => "parent_failed",
            Cause::ParentProtocol => "parent_protocol",
            Cause::Internal => "internal",
        }
    }

    /// The error type of RFC 9209 section 2.3.
    fn proxy_error(&self) -> &'static str {
        match self.cause {
            Cause::BadRequest(_)
            | Cause::HostMismatch
            | Cause::HttpsAbsolute
            | Cause::HeaderTimeout
            | Cause::TargetTooLong
            | Cause::HeadTooLarge
            | Cause::BodyTooLarge
            | Cause::Method
            | Cause::NotFound => "http_request_error",
            Cause::NoCredential | Cause::BadCredential { .. } | Cause::Throttled { .. } => {
                "http_request_denied"
            }
            Cause::Policy(DenyReason::Address(_)) | Cause::OwnListener => {
                "destination_ip_prohibited"
            }
            Cause::Policy(_) => "http_request_denied",
            Cause::Overloaded
            | Cause::LimitsUnavailable
            | Cause::AuditUnavailable
            | Cause::Draining
            | Cause::IssuerUnavailable => "proxy_internal_response",
            Cause::Internal => "proxy_internal_error",
            Cause::Loop => "proxy_loop_detected",
            Cause::NameNotFound | Cause::NameFailed => "dns_error",
            Cause::NameTimeout => "dns_timeout",
            Cause::ConnectRefused => "connection_refused",
            Cause::ConnectTimeout => "connection_timeout",
            Cause::Unreachable => "destination_ip_unroutable",
            Cause::UpstreamTls => "tls_protocol_error",
            Cause::UpstreamCertificate => "tls_certificate_error",
            Cause::UpstreamProtocol => "http_protocol_error",
            Cause::UpstreamClosed => "connection_terminated",
            Cause::UpstreamTimeout => "http_response_timeout",
            Cause::ParentUnreachable | Cause::ParentRefused | Cause::ParentFailed => {
                "destination_unavailable"
            }
            Cause::ParentTimeout => "connection_timeout",
            Cause::ParentCredential => "proxy_configuration_error",
            Cause::ParentProtocol => "http_protocol_error",
        }
    }

    /// What the agent is told of the reason, in a sentence.
    #[must_use]
    pub fn reason(&self) -> Cow<'static, str> {
        if let Some(denied) = &self.about.policy {
            return denied.to_string().into();
        }
        if let (Some(limit), Cause::Throttled { .. }) = (&self.about.limit, self.cause) {
            return format!("the limit {} is used up for now", limit.name()).into();
        }
        Cow::Borrowed(match self.cause {
            Cause::BadRequest(how) => how,
            Cause::HostMismatch => "the Host field names another host than the request target",
            Cause::HttpsAbsolute => "an https:// URL cannot be fetched by absolute-form",
            Cause::NotFound => "the gateway itself serves nothing here",
            Cause::HeaderTimeout => "the request head did not come in time",
            Cause::TargetTooLong => "the request target is longer than 8 KiB",
            Cause::HeadTooLarge => "the request head is too large or has too many fields",
            Cause::BodyTooLarge => "the request body is larger than the gateway forwards",
            Cause::Method => "the gateway does not forward this method",
            Cause::Loop => "the request has passed this gateway before",
            Cause::NoCredential => "the request has no credential",
            Cause::BadCredential { .. } => "the credential is not accepted",
            Cause::IssuerUnavailable => "the keys of the token's issuer cannot be had now",
            Cause::Policy(_) => "policy refuses this",
            Cause::OwnListener => "the destination is the gateway itself",
            Cause::Throttled { .. } => "a quota is used up for now",
            Cause::LimitsUnavailable => "the gateway cannot count a limit of this at the moment",
            Cause::Overloaded => "the gateway has no room for another request",
            Cause::AuditUnavailable => "the gateway cannot record this request and so refuses it",
            Cause::Draining => "the gateway is going down",
            Cause::NameNotFound => "the host name has no address",
            Cause::NameTimeout => "the host name was not resolved in time",
            Cause::NameFailed => "the host name could not be resolved",
            Cause::ConnectRefused => "the destination refused the connection",
            Cause::ConnectTimeout => "the destination did not answer in time",
            Cause::Unreachable => "there is no route to the destination",
            Cause::UpstreamTls => "the TLS handshake with the destination failed",
            Cause::UpstreamCertificate => "the destination's certificate is not valid for it",
            Cause::UpstreamProtocol => "the destination did not answer in HTTP",
            Cause::UpstreamClosed => "the destination closed the connection without an answer",
            Cause::UpstreamTimeout => "the destination did not answer in time",
            Cause::ParentUnreachable => "the gateway's parent proxy cannot be reached",
            Cause::ParentTimeout => "the gateway's parent proxy did not answer in time",
            Cause::ParentCredential => "the gateway's parent proxy refuses the gateway",
            Cause::ParentRefused => "the gateway's parent proxy refuses this destination",
            Cause::ParentFailed => "the gateway's parent proxy did not reach the destination",
            Cause::ParentProtocol => "the gateway's parent proxy gave no valid answer",
            Cause::Internal => "the gateway failed",
        })
    }

    /// What the agent can do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        if let Some(denied) = &self.about.policy {
            return denied.hint();
        }
        match self.cause {
            Cause::HttpsAbsolute => {
                "Send CONNECT host:443 and speak TLS inside the tunnel; clients do so when HTTPS_PROXY is set."
            }
            Cause::NotFound => {
                "To reach another host, use the gateway as a proxy (HTTP_PROXY, HTTPS_PROXY)."
            }
            Cause::BadRequest(_)
            | Cause::HostMismatch
            | Cause::HeaderTimeout
            | Cause::TargetTooLong
            | Cause::HeadTooLarge
            | Cause::Method => "Correct the request; repeating it as it is cannot succeed.",
            Cause::BodyTooLarge => "Send less, or ask the operator to raise limits.body_bytes.",
            Cause::Loop => "Do not point the gateway at itself.",
            Cause::NoCredential => {
                "Set the proxy URL to http://AGENT:TOKEN@gateway or send Proxy-Authorization: Bearer TOKEN."
            }
            Cause::BadCredential {
                code: "expired", ..
            } => "Get a new token; repeating the request cannot succeed.",
            Cause::BadCredential { code, .. } if code.contains("certificate") => {
                "Connect by TLS with the certificate of the agent; repeating the request cannot succeed."
            }
            Cause::BadCredential {
                code: "revoked", ..
            } => {
                "The token was revoked; ask the operator of this gateway. Repeating the request cannot succeed."
            }
            Cause::BadCredential { .. } => {
                "Get a token from the operator of this gateway; repeating the request cannot succeed."
            }
            Cause::Policy(_) => "Ask the operator of this gateway.",
            Cause::OwnListener => "Choose another destination; no policy can allow this one.",
            Cause::Throttled { .. } => "Wait as long as Retry-After says.",
            Cause::Overloaded
            | Cause::LimitsUnavailable
            | Cause::AuditUnavailable
            | Cause::Draining
            | Cause::IssuerUnavailable => "Try again in a moment.",
            Cause::NameNotFound => "Check the spelling of the host name.",
            Cause::NameTimeout
            | Cause::NameFailed
            | Cause::UpstreamTimeout
            | Cause::ConnectTimeout => "Try again later; if it stays, tell the operator.",
            Cause::ConnectRefused
            | Cause::Unreachable
            | Cause::UpstreamTls
            | Cause::UpstreamCertificate
            | Cause::UpstreamProtocol
            | Cause::UpstreamClosed => "The gateway allows this; the destination itself fails.",
            Cause::ParentRefused => {
                "This gateway allows it and a proxy behind it does not; ask the operator. Repeating the request cannot succeed."
            }
            Cause::ParentFailed => {
                "This gateway allows it; the destination itself may be down. Try again later."
            }
            Cause::ParentCredential
            | Cause::ParentUnreachable
            | Cause::ParentTimeout
            | Cause::ParentProtocol => {
                "This gateway allows it; a proxy behind it fails. Try again later; if it stays, tell the operator."
            }
            Cause::Internal => "Tell the operator, with the request_id.",
        }
    }

    /// Seconds for `Retry-After`, where there is one.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        match self.cause {
            Cause::Throttled { retry_after, .. } => {
                Some(retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0))
            }
            Cause::Overloaded
            | Cause::LimitsUnavailable
            | Cause::AuditUnavailable
            | Cause::Draining => Some(1),
            Cause::IssuerUnavailable => Some(10),
            _ => None,
        }
    }

    /// The reason phrase: the one place where many clients show anything.
    /// ASCII, under 200 bytes.
    #[must_use]
    pub fn reason_phrase(&self, request_id: &RequestId) -> String {
        let host = match &self.about.destination {
            Some(authority) => {
                let mut host = authority.host.to_string();
                host.truncate(80);
                format!(" {host}")
            }
            None => String::new(),
        };
        format!("AgentPort: {}{host} rid={request_id}", self.code())
    }

    /// The value of `Proxy-Status` (RFC 9209).
    #[must_use]
    pub fn proxy_status(&self) -> String {
        format!(
            "{PSEUDONYM}; error={}; details=\"{}\"",
            self.proxy_error(),
            self.code()
        )
    }

    /// The JSON body, one object, `error` first.
    #[must_use]
    pub fn body(&self, request_id: &RequestId) -> Vec<u8> {
        #[derive(serde::Serialize)]
        struct Body<'a> {
            error: &'a str,
            reason: &'a str,
            rule: Option<&'a str>,
            destination: Option<String>,
            hint: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            policy_url: Option<&'static str>,
            request_id: &'a str,
        }
        let body = Body {
            error: self.code(),
            reason: &self.reason(),
            rule: self.rule().map(AsRef::as_ref),
            destination: self.destination().map(ToString::to_string),
            hint: self.hint(),
            // Of the gateway itself, not through it. A tenant without a policy
            // has nothing to be told there.
            policy_url: match self.cause {
                Cause::Policy(DenyReason::UnknownTenant | DenyReason::TenantAudience) => None,
                Cause::Policy(_) => Some(POLICY_PATH),
                _ => None,
            },
            request_id: request_id.as_str(),
        };
        let mut out = serde_json::to_vec(&body).unwrap_or_default();
        out.push(b'\n');
        out
    }

    /// Every header field of the refusal, but for `Content-Length` and `Date`.
    #[must_use]
    pub fn fields(&self, request_id: &RequestId) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("Content-Type", "application/json".to_owned()),
            ("Cache-Control", "no-store".to_owned()),
            ("Proxy-Status", self.proxy_status()),
            ("X-AgentPort-Reason", self.code().to_owned()),
            ("X-Request-Id", request_id.to_string()),
        ];
        if matches!(self.status(), 401 | 407) {
            let field = if self.about.to_origin {
                "WWW-Authenticate"
            } else {
                "Proxy-Authenticate"
            };
            // Basic first: git and Java answer only that one.
            fields.push((field, "Basic realm=\"agentport\"".to_owned()));
            fields.push((field, "Bearer realm=\"agentport\"".to_owned()));
        }
        if let Some(seconds) = self.retry_after() {
            fields.push(("Retry-After", seconds.to_string()));
        }
        if let (Cause::Throttled { retry_after, .. }, Some(limit)) = (self.cause, &self.about.limit)
        {
            fields.extend(Standing::used_up(limit, retry_after).fields());
        }
        if matches!(self.cause, Cause::Method) {
            fields.push((
                "Allow",
                "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, CONNECT".to_owned(),
            ));
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_it_everywhere() {
        let id = RequestId::from_bits(7);
        let authority = Authority::parse("api.example.com:443").expect("an authority");
        let denial = Denial::new(Cause::BadCredential {
            code: "expired",
            status: 403,
        })
        .towards(&authority);
        assert_eq!(denial.status(), 403);
        let body: serde_json::Value = serde_json::from_slice(&denial.body(&id)).expect("json");
        assert_eq!(body["error"], "expired");
        assert_eq!(body["destination"], "api.example.com:443");
        assert!(denial.body(&id).starts_with(b"{\"error\":"));
        let phrase = denial.reason_phrase(&id);
        assert!(phrase.starts_with("AgentPort: expired api.example.com rid="));
        assert!(phrase.is_ascii() && phrase.len() < 200);
    }

    #[test]
    fn without_a_credential_both_schemes_are_offered() {
        let fields = Denial::new(Cause::NoCredential).fields(&RequestId::from_bits(1));
        let offered: Vec<_> = fields
            .iter()
            .filter(|(name, _)| *name == "Proxy-Authenticate")
            .collect();
        assert_eq!(offered.len(), 2);
        assert!(offered[0].1.starts_with("Basic"));
    }

    #[test]
    fn a_long_host_does_not_make_a_long_phrase() {
        let authority = Authority::parse(&format!("{}:443", "a.".repeat(120) + "b")).expect("long");
        let denial = Denial::new(Cause::NameNotFound).towards(&authority);
        assert!(denial.reason_phrase(&RequestId::from_bits(u128::MAX)).len() < 200);
    }
}

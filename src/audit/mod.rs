//! The record of a decision: its fields, its JSON, and what never stands in it.
//!
//! A record holds no token, no secret and no query string, because it has no
//! field that takes one. Where it is written is `adapters`' business.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::egress::{AgentId, RequestId, TenantId};
use crate::identity::Ancestor;
use crate::policy::Mode;

/// What a record tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditEvent {
    /// A request, forwarded or refused, when it has ended.
    Request,
    /// A tunnel, when it has been opened or refused.
    Tunnel,
    /// A tunnel that was open, when it has been closed.
    TunnelClosed,
    /// Refusals like an earlier one, counted instead of written one by one.
    Repeated,
    /// A call from one agent to another, forwarded or refused, when it has
    /// ended.
    Delegation,
    /// A token that the token endpoint has issued.
    TokenIssued,
    /// A token that the token endpoint was asked for and refused; or a client
    /// that was refused at introspection or revocation, which `path` tells.
    TokenRefused,
}

/// One line of the audit log. A field that does not apply is `null`.
#[derive(Clone, Debug, Serialize)]
pub struct AuditRecord {
    /// When the request was read, RFC 3339 in UTC with microseconds.
    #[serde(serialize_with = "rfc3339")]
    pub ts: SystemTime,
    /// What the record tells of.
    pub event: AuditEvent,
    /// The request's number, also in `X-Request-Id`.
    #[serde(serialize_with = "text")]
    pub request_id: RequestId,
    /// The W3C trace it belongs to, 32 hexadecimal digits.
    pub trace_id: Option<Box<str>>,
    /// The agent, where its credential held.
    #[serde(serialize_with = "optional_text")]
    pub agent_id: Option<AgentId>,
    /// Its tenant.
    #[serde(serialize_with = "optional_text")]
    pub tenant: Option<TenantId>,
    /// Whom its token is for (`aud`), where a document of the policy is for
    /// tokens of some audiences.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<Arc<[String]>>,
    /// The `jti` of its token.
    pub token_jti: Option<Arc<str>>,
    /// On whose behalf: the delegation chain, nearest actor first (RFC 8693).
    pub act: Option<Arc<[String]>>,
    /// For whom the agent calls another one: the agent of the token that it has
    /// brought along, to which `act` and `token_jti` then belong. Stands in
    /// records of delegations only.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "optional_text"
    )]
    pub on_behalf_of: Option<AgentId>,
    /// The tenant of whoever that is.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "optional_text"
    )]
    pub on_behalf_of_tenant: Option<TenantId>,
    /// What proved the agent: `token`, `agent_key`, `certificate`, one of the
    /// first two with it (`token+certificate`), or `peer` for the user id at the
    /// other end of a Unix socket.
    pub credential: Option<&'static str>,
    /// The service account to which its token was issued, or that asks for one.
    pub service_account: Option<Arc<str>>,
    /// The tokens that an issued one was exchanged from, the nearest first: `iss`,
    /// `jti`, `kid` and `client_id` of each. Stands in records of tokens only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchanged_from: Option<Arc<[Ancestor]>>,
    /// How long an issued token lives, in seconds. Stands in records of tokens
    /// only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ttl_s: Option<u64>,
    /// The listener that took the connection.
    pub listener: Arc<str>,
    /// Who connected; `null` on a Unix socket.
    pub client: Option<SocketAddr>,
    /// The method; `CONNECT` for a tunnel.
    pub method: Box<str>,
    /// `http`, `https`, or `tunnel` where the inside is not seen.
    pub scheme: Option<&'static str>,
    /// The host, in the form policy judged.
    pub destination_host: Option<Box<str>>,
    /// The port.
    pub destination_port: Option<u16>,
    /// The address that was dialled, or refused.
    pub destination_ip: Option<IpAddr>,
    /// The parent proxy that carried it, where one did. With a name asked of it,
    /// `destination_ip` is `null`: nobody here knows.
    pub via_proxy: Option<Arc<str>>,
    /// The named route that the request came by.
    pub route: Option<Arc<str>>,
    /// The path, without the query.
    pub path: Option<Box<str>>,
    /// What its body called by JSON-RPC. Stands where a rule asked for that, and
    /// where they are few.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpc_methods: Option<Arc<[String]>>,
    /// Whether it passed.
    pub action_allowed: bool,
    /// Why it did not, or how it ended; `ok` where all went well.
    pub reason: &'static str,
    /// For the operator: the reason at length.
    pub detail: Option<Box<str>>,
    /// The rule that decided.
    pub rule: Option<Arc<str>>,
    /// What enforcing would have done, where audit mode let it pass.
    pub would_deny: Option<&'static str>,
    /// The digest of the policy that decided.
    pub policy_version: Option<Arc<str>>,
    /// Whether the decision bound.
    pub mode: Option<Mode>,
    /// The status that the client was sent; `null` where it got none.
    pub status: Option<u16>,
    /// Bytes from the client to the destination: a body, or a tunnel's stream.
    pub bytes_up: u64,
    /// Bytes from the destination to the client.
    pub bytes_down: u64,
    /// From the request read to the end, in milliseconds.
    #[serde(serialize_with = "milliseconds")]
    pub duration_ms: Duration,
    /// What checking the token took, in microseconds; 0 for a cached one.
    pub jwt_validation_us: Option<u64>,
    /// What the agent says it is doing. Never used for a decision.
    pub skill: Option<Box<str>>,
    /// How many refusals a `repeated` record stands for.
    pub count: u64,
}

impl AuditRecord {
    /// A record of which nothing more is known: it tells of a request that has
    /// not passed and broke off.
    #[must_use]
    pub fn begun(ts: SystemTime, request_id: RequestId, listener: Arc<str>) -> Self {
        Self {
            ts,
            event: AuditEvent::Request,
            request_id,
            trace_id: None,
            agent_id: None,
            tenant: None,
            audience: None,
            token_jti: None,
            act: None,
            on_behalf_of: None,
            on_behalf_of_tenant: None,
            credential: None,
            service_account: None,
            exchanged_from: None,
            token_ttl_s: None,
            listener,
            client: None,
            method: "".into(),
            scheme: None,
            destination_host: None,
            destination_port: None,
            destination_ip: None,
            via_proxy: None,
            route: None,
            path: None,
            rpc_methods: None,
            action_allowed: false,
            reason: "aborted",
            detail: None,
            rule: None,
            would_deny: None,
            policy_version: None,
            mode: None,
            status: None,
            bytes_up: 0,
            bytes_down: 0,
            duration_ms: Duration::ZERO,
            jwt_validation_us: None,
            skill: None,
            count: 1,
        }
    }

    /// Appends the record as one line of JSON, with its line feed.
    pub fn write_line(&self, out: &mut Vec<u8>) {
        let start = out.len();
        // Writing to memory fails for no record of these types; should one
        // ever, half a line must not spoil its neighbours.
        if serde_json::to_writer(&mut *out, self).is_err() {
            out.truncate(start);
        }
        out.push(b'\n');
    }
}

fn text<S: serde::Serializer>(value: &RequestId, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(value.as_str())
}

fn optional_text<S, T>(value: &Option<T>, out: S) -> Result<S::Ok, S::Error>
where
    S: serde::Serializer,
    T: std::fmt::Display,
{
    match value {
        Some(value) => out.collect_str(value),
        None => out.serialize_none(),
    }
}

fn milliseconds<S: serde::Serializer>(value: &Duration, out: S) -> Result<S::Ok, S::Error> {
    // Three decimals: whole microseconds.
    let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    #[expect(clippy::cast_precision_loss, reason = "exact below 285 years")]
    out.serialize_f64(micros as f64 / 1000.0)
}

fn rfc3339<S: serde::Serializer>(value: &SystemTime, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(Rfc3339(*value).digits().as_str())
}

/// A time as RFC 3339 writes it, in UTC with microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Rfc3339(pub SystemTime);

impl Rfc3339 {
    /// Digit by digit: the general formatter costs ten times as much, for every
    /// record.
    fn digits(self) -> Digits {
        let since = self
            .0
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil_from_days(days);
        let mut digits = Digits(*b"0000-00-00T00:00:00.000000Z");
        digits.put(0, 4, year);
        digits.put(5, 2, month);
        digits.put(8, 2, day);
        digits.put(11, 2, second / 3600);
        digits.put(14, 2, second / 60 % 60);
        digits.put(17, 2, second % 60);
        digits.put(20, 6, since.subsec_micros().into());
        digits
    }
}

impl std::fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.digits().as_str())
    }
}

/// The text of a time, up to the year 9999.
struct Digits([u8; 27]);

impl Digits {
    /// Puts a number's last `count` digits from `at` on.
    fn put(&mut self, at: usize, count: usize, mut number: u64) {
        for place in self.0[at..at + count].iter_mut().rev() {
            *place = b"0123456789"[(number % 10) as usize];
            number /= 10;
        }
    }

    fn as_str(&self) -> &str {
        // Nothing but ASCII is put there.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Days since 1970-01-01 as a date of the proleptic Gregorian calendar, by
/// counting 400-year eras that begin in March.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
            (1_798_761_600, "2027-01-01T00:00:00.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(Rfc3339(time).to_string(), text);
        }
    }

    #[test]
    fn a_record_is_one_line_of_json() {
        let record = AuditRecord {
            agent_id: AgentId::parse("bot-01").ok(),
            token_jti: Some("j\"1\n".into()),
            method: "GET".into(),
            scheme: Some("http"),
            destination_host: Some("example.com".into()),
            destination_port: Some(80),
            destination_ip: Some([192, 0, 2, 1].into()),
            route: Some("a".into()),
            path: Some("/a".into()),
            action_allowed: true,
            reason: "ok",
            rule: Some("r".into()),
            mode: Some(Mode::Enforce),
            status: Some(200),
            bytes_down: 3,
            duration_ms: Duration::from_micros(1234),
            jwt_validation_us: Some(30),
            ..AuditRecord::begun(
                SystemTime::UNIX_EPOCH,
                RequestId::from_bits(1),
                "egress".into(),
            )
        };
        let mut out = Vec::new();
        record.write_line(&mut out);
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&out).expect("json");
        assert_eq!(value["agent_id"], "bot-01");
        assert_eq!(value["token_jti"], "j\"1\n");
        assert_eq!(value["duration_ms"], 1.234);
        assert_eq!(value["tenant"], serde_json::Value::Null);
        assert_eq!(value["destination_ip"], "192.0.2.1");
        assert_eq!(value["mode"], "enforce");
    }
}

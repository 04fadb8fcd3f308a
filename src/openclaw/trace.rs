//! W3C trace context (Trace Context level 1, section 3): the number that joins
//! the agent's records to the gateway's.

use std::fmt;

use crate::egress::RequestId;
use ring::rand::{SecureRandom, SystemRandom};

/// The trace that a call belongs to: 32 hexadecimal digits, never all zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::openclaw) struct TraceId(String);

impl TraceId {
    /// The caller's trace where the `traceparent` header has a valid one, a new
    /// one where not. An invalid header is ignored, as section 4.3 asks.
    pub(in crate::openclaw) fn continue_or_new(traceparent: Option<&str>) -> Self {
        traceparent
            .and_then(parse_traceparent)
            .unwrap_or_else(|| Self(random_number()))
    }

    /// The 32 digits.
    pub(in crate::openclaw) fn as_str(&self) -> &str {
        &self.0
    }

    /// A `traceparent` for one outgoing call, with a span number of its own.
    pub(in crate::openclaw) fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.0, &random_number()[..16])
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 128 random bits as 32 hexadecimal digits.
pub(in crate::openclaw) fn random_number() -> String {
    let mut bits = [0; 16];
    loop {
        // The kernel's generator fails only before it is seeded, at boot; a
        // number that is all zero would be no valid trace.
        if SystemRandom::new().fill(&mut bits).is_ok() && bits[..8] != [0; 8] {
            return RequestId::from_bits(u128::from_be_bytes(bits)).to_string();
        }
    }
}

fn parse_traceparent(raw: &str) -> Option<TraceId> {
    let mut parts = raw.trim().split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |part: &str, length: usize| {
        part.len() == length
            && part
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let valid = hex(version, 2)
        && version != "ff"
        && (version != "00" || parts.next().is_none())
        && hex(trace, 32)
        && trace.bytes().any(|b| b != b'0')
        && hex(span, 16)
        && span.bytes().any(|b| b != b'0')
        && hex(flags, 2);
    valid.then(|| TraceId(trace.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_traceparents_are_continued() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let span = "00f067aa0ba902b7";
        for (case, header, continued) in [
            ("version 00", format!("00-{trace}-{span}-01"), true),
            (
                "a later version with more fields",
                format!("01-{trace}-{span}-01-x"),
                true,
            ),
            (
                "version 00 with more fields",
                format!("00-{trace}-{span}-01-x"),
                false,
            ),
            ("version ff", format!("ff-{trace}-{span}-01"), false),
            (
                "a trace of zeroes",
                format!("00-{}-{span}-01", "0".repeat(32)),
                false,
            ),
            (
                "upper case",
                format!("00-{}-{span}-01", trace.to_uppercase()),
                false,
            ),
            ("nothing", String::new(), false),
        ] {
            let got = TraceId::continue_or_new(Some(&header));
            assert_eq!(got.as_str() == trace, continued, "{case}");
            assert_eq!(got.as_str().len(), 32, "{case}");
        }
    }

    #[test]
    fn an_outgoing_call_has_its_own_span() {
        let trace = TraceId::continue_or_new(None);
        assert_ne!(trace.traceparent(), trace.traceparent());
        assert_eq!(TraceId::continue_or_new(Some(&trace.traceparent())), trace);
    }
}

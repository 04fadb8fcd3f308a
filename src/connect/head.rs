//! A client's request head as the gateway gets it: the same, with our
//! credential in place of whatever the client sent.

use crate::egress::head::{BodyLength, Head};

/// What follows a head on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follows {
    /// A body, and then the next request.
    Body(BodyLength),
    /// Bytes that are no HTTP, or are not ours to read: a tunnel's, or a
    /// WebSocket's.
    Stream,
}

/// Writes the head anew, with this value of `Proxy-Authorization`.
///
/// The client's own credential goes, also where it names its field in
/// `Connection`: nobody but the holder of the token says who asks.
pub(super) fn with_credential(head: &Head<'_>, credential: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024 + credential.len());
    let version = if head.version_11 {
        "HTTP/1.1"
    } else {
        "HTTP/1.0"
    };
    out.extend_from_slice(format!("{} {} {version}\r\n", head.method, head.target).as_bytes());
    for (name, value) in &head.fields {
        if name.eq_ignore_ascii_case("proxy-authorization") {
            continue;
        }
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"Proxy-Authorization: ");
    out.extend_from_slice(credential.as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
    out
}

/// What follows this head. Behind a `CONNECT` nothing is read whether it
/// succeeds or not: the gateway closes after one that it refuses (RFC 9931),
/// and looks at nothing behind it. The same goes for a WebSocket: where its
/// upgrade fails, what comes next has no credential.
pub(super) fn follows(head: &Head<'_>) -> Follows {
    let upgrades = head.method == "GET"
        && head
            .field("upgrade")
            .is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"));
    if head.method == "CONNECT" || upgrades {
        Follows::Stream
    } else {
        Follows::Body(head.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::head;

    #[test]
    fn the_clients_credential_gives_way_to_ours() {
        for (case, raw, written) in [
            (
                "none",
                "GET http://a/ HTTP/1.1\r\nHost: a\r\nX-A:  b\r\n\r\n",
                "GET http://a/ HTTP/1.1\r\nHost: a\r\nX-A: b\r\nProxy-Authorization: Bearer t\r\n\r\n",
            ),
            (
                "one in any case",
                "CONNECT a:443 HTTP/1.0\r\npROXY-authorization: Basic eDp5\r\n\r\n",
                "CONNECT a:443 HTTP/1.0\r\nProxy-Authorization: Bearer t\r\n\r\n",
            ),
            (
                "a credential for the origin stays",
                "GET http://a/ HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer mine\r\n\r\n",
                "GET http://a/ HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer mine\r\nProxy-Authorization: Bearer t\r\n\r\n",
            ),
        ] {
            let head = head::parse(raw.as_bytes()).expect(case);
            let out = with_credential(&head, "Bearer t");
            assert_eq!(String::from_utf8(out).expect("text"), written, "{case}");
            assert!(head::parse(written.as_bytes()).is_ok(), "{case}");
        }
    }

    #[test]
    fn what_is_no_request_any_more_is_known() {
        for (raw, expected) in [
            ("CONNECT a:443 HTTP/1.1\r\n\r\n", Follows::Stream),
            (
                "GET http://a/ HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\r\n",
                Follows::Stream,
            ),
            (
                "GET http://a/ HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n",
                Follows::Body(BodyLength::None),
            ),
            (
                "POST http://a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
                Follows::Body(BodyLength::Chunked),
            ),
        ] {
            let head = head::parse(raw.as_bytes()).expect(raw);
            assert_eq!(follows(&head), expected, "{raw}");
        }
    }
}

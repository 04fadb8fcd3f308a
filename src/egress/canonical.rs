//! The one form in which a request's head goes on: target as a path, the host
//! that was judged, nothing that belonged to this hop only (RFC 9110 section
//! 7.6.1), and no credential of the gateway's.

use super::head::{BodyLength, Head};
use super::host::Authority;
use super::target::RequestTarget;

/// A head in canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canonical {
    /// The head's bytes, its empty line included.
    pub bytes: Vec<u8>,
    /// Whether it asks for a WebSocket (RFC 6455); no other upgrade goes on.
    pub websocket: bool,
    /// Whether `Max-Forwards` has run out, so that it must be answered here
    /// (RFC 9110 section 7.6.2).
    pub last_hop: bool,
}

/// A head in canonical form but for its end: what `Connection` is to say, and the
/// empty line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenHead {
    /// The head's bytes so far.
    pub bytes: Vec<u8>,
    /// Whether it asks for a WebSocket.
    pub websocket: bool,
    /// Whether `Max-Forwards` has run out.
    pub last_hop: bool,
    /// How the client's connection goes on.
    pub word: ConnectionWord,
}

/// What a client says in `Connection` of how it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionWord {
    /// Nothing: as its version of HTTP has it.
    Unsaid,
    /// Not at all.
    Close,
    /// For other requests.
    KeepAlive,
}

/// What becomes of a field that would go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// It goes on.
    Keep,
    /// It does not.
    Drop,
    /// It goes on with another value.
    Replace(String),
}

/// Never goes on, whatever `Connection` says; nor does any name that begins
/// with `proxy-`.
const HOP: [&str; 5] = [
    "connection",
    "keep-alive",
    "te",
    "upgrade",
    "http2-settings",
];

/// What `Connection` may name in vain: without these the message would be
/// another one.
const PROTECTED: [&str; 3] = ["host", "content-length", "transfer-encoding"];

/// Writes the head of a request to `authority`, or, where that is `None`, to
/// the gateway itself, whose `Host` stays as it is.
#[must_use]
pub fn canonical(
    head: &Head<'_>,
    target: &RequestTarget,
    authority: Option<&Authority>,
) -> Canonical {
    open_head(head, target, authority, |_, _| Edit::Keep).finished()
}

impl OpenHead {
    /// The whole head, in which the next one reads how the client's connection
    /// goes on.
    #[must_use]
    pub fn finished(self) -> Canonical {
        let mut bytes = self.bytes;
        bytes.extend_from_slice(match self.word {
            _ if self.websocket => b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
            ConnectionWord::Close => b"Connection: close\r\n",
            ConnectionWord::KeepAlive => b"Connection: keep-alive\r\n",
            ConnectionWord::Unsaid => &b""[..],
        });
        bytes.extend_from_slice(b"\r\n");
        Canonical {
            bytes,
            websocket: self.websocket,
            last_hop: self.last_hop,
        }
    }
}

/// The same as [`canonical`], without its end, and with a say in what becomes of
/// the fields that would go on, by name and value.
#[must_use]
pub fn open_head(
    head: &Head<'_>,
    target: &RequestTarget,
    authority: Option<&Authority>,
    mut edit: impl FnMut(&str, &[u8]) -> Edit,
) -> OpenHead {
    // As bytes: one odd character must not hide the names beside it.
    let named: Vec<&[u8]> = head
        .fields
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("connection"))
        .flat_map(|(_, value)| value.split(|b| *b == b',').map(<[u8]>::trim_ascii))
        .filter(|token| !token.is_empty())
        .collect();
    let names = |wanted: &str| {
        named
            .iter()
            .any(|token| token.eq_ignore_ascii_case(wanted.as_bytes()))
    };
    let websocket = head.method == "GET"
        && head.version_11
        && head.body == BodyLength::None
        && names("upgrade")
        && head
            .fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("upgrade"))
            .count()
            == 1
        && head
            .field("upgrade")
            .is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"));

    let mut bytes = Vec::with_capacity(512);
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| bytes.extend_from_slice(part));
    put(&[head.method.as_bytes(), b" "]);
    match target {
        // The whole server is meant (RFC 9112 section 3.2.4).
        RequestTarget::Absolute { .. } if head.method == "OPTIONS" && is_without_path(head) => {
            put(&[b"*"]);
        }
        RequestTarget::Absolute { path, query, .. } | RequestTarget::Origin { path, query } => {
            put(&[path.as_str().as_bytes()]);
            if let Some(query) = query {
                put(&[b"?", query.as_bytes()]);
            }
        }
        RequestTarget::Authority(_) | RequestTarget::Asterisk => put(&[b"*"]),
    }
    put(&[if head.version_11 {
        b" HTTP/1.1\r\n"
    } else {
        b" HTTP/1.0\r\n"
    }]);
    if let Some(authority) = authority {
        let host = if authority.port == 80 {
            authority.host.to_string()
        } else {
            authority.to_string()
        };
        put(&[b"Host: ", host.as_bytes(), b"\r\n"]);
    }
    let mut last_hop = false;
    for (name, value) in &head.fields {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        let hop =
            is_proxys(name) || HOP.iter().any(|hop| is(hop)) || (authority.is_some() && is("host"));
        let dropped = names(name) && !PROTECTED.iter().any(|kept| is(kept));
        if hop || dropped {
            continue;
        }
        if is("max-forwards") && head.method == "OPTIONS" {
            match std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<u32>().ok())
            {
                Some(0) => last_hop = true,
                Some(left) => {
                    put(&[
                        name.as_bytes(),
                        b": ",
                        (left - 1).to_string().as_bytes(),
                        b"\r\n",
                    ]);
                    continue;
                }
                None => {}
            }
        }
        match edit(name, value) {
            Edit::Keep => put(&[name.as_bytes(), b": ", value, b"\r\n"]),
            Edit::Drop => {}
            Edit::Replace(value) => put(&[name.as_bytes(), b": ", value.as_bytes(), b"\r\n"]),
        }
    }
    let word = match () {
        () if names("close") => ConnectionWord::Close,
        () if names("keep-alive") => ConnectionWord::KeepAlive,
        () => ConnectionWord::Unsaid,
    };
    OpenHead {
        bytes,
        websocket,
        last_hop,
        word,
    }
}

/// Whether a field is between a client and its proxy, by its name.
#[must_use]
pub fn is_proxys(name: &str) -> bool {
    name.get(..6)
        .is_some_and(|start| start.eq_ignore_ascii_case("proxy-"))
}

/// Whether the target names a server and nothing on it.
fn is_without_path(head: &Head<'_>) -> bool {
    head.target
        .split_once("://")
        .is_some_and(|(_, rest)| !rest.contains(['/', '?']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::head;

    fn form(raw: &str) -> (String, bool, bool) {
        let head = head::parse(raw.as_bytes()).expect("a head");
        let target = RequestTarget::parse(head.method, head.target).expect("a target");
        let authority = match &target {
            RequestTarget::Absolute { authority, .. } => Some(authority.clone()),
            _ => None,
        };
        let canonical = canonical(&head, &target, authority.as_ref());
        (
            String::from_utf8(canonical.bytes).expect("ascii"),
            canonical.websocket,
            canonical.last_hop,
        )
    }

    #[test]
    fn the_target_becomes_a_path_and_the_host_is_the_one_judged() {
        assert_eq!(
            form(
                "GET http://Example.com:8080/a?b=c HTTP/1.1\r\nX-A: 1\r\nHost: example.com\r\n\r\n"
            )
            .0,
            "GET /a?b=c HTTP/1.1\r\nHost: example.com:8080\r\nX-A: 1\r\n\r\n"
        );
        assert_eq!(
            form("GET http://a.example?q HTTP/1.0\r\n\r\n").0,
            "GET /?q HTTP/1.0\r\nHost: a.example\r\n\r\n"
        );
        assert_eq!(
            form("GET /health HTTP/1.1\r\nHost: gw\r\n\r\n").0,
            "GET /health HTTP/1.1\r\nHost: gw\r\n\r\n"
        );
    }

    #[test]
    fn what_belongs_to_this_hop_stays_here() {
        let (head, ..) = form(concat!(
            "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n",
            "Proxy-Authorization: Bearer secret\r\nProxy-Connection: keep-alive\r\nKeep-Alive: 5\r\n",
            "Connection: keep-alive, X-Private, Content-Length\r\nX-Private: 1\r\nContent-Length: 0\r\nTE: trailers\r\n",
            "Proxy-Features: 1\r\nPROXY-ANYTHING: 1\r\nProxy: 1\r\n",
            "Upgrade: h2c\r\nHTTP2-Settings: AAA\r\nX-Kept: 2\r\n\r\n"
        ));
        assert_eq!(
            head,
            "GET / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\nProxy: 1\r\nX-Kept: 2\r\nConnection: keep-alive\r\n\r\n"
        );
    }

    #[test]
    fn options_of_a_server_keeps_its_form() {
        for (target, form_of_it) in [
            ("http://a.example", "*"),
            ("http://a.example:8080", "*"),
            ("http://a.example/", "/"),
            ("http://a.example?q", "/?q"),
            ("*", "*"),
            ("/x", "/x"),
        ] {
            let raw = format!("OPTIONS {target} HTTP/1.1\r\nHost: a.example\r\n\r\n");
            let (head, ..) = form(&raw);
            let start = format!("OPTIONS {form_of_it} HTTP/1.1\r\n");
            assert!(head.starts_with(&start), "{target}: {head}");
        }
    }

    #[test]
    fn an_odd_character_in_connection_hides_no_name_beside_it() {
        let raw =
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: \xff, X-Private\r\nX-Private: 1\r\n\r\n";
        let head = head::parse(raw).expect("a head");
        let target = RequestTarget::parse(head.method, head.target).expect("a target");
        assert_eq!(
            canonical(&head, &target, None).bytes,
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        );
    }

    #[test]
    fn only_a_plain_websocket_request_upgrades() {
        let upgrade = |rest: &str| {
            form(&format!(
                "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n{rest}\r\n"
            ))
            .1
        };
        assert!(upgrade("Connection: Upgrade\r\nUpgrade: websocket\r\n"));
        assert!(upgrade(
            "Connection: keep-alive, upgrade\r\nUpgrade: WebSocket\r\n"
        ));
        assert!(!upgrade("Upgrade: websocket\r\n"));
        assert!(!upgrade("Connection: Upgrade\r\nUpgrade: h2c\r\n"));
        assert!(!upgrade(
            "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n"
        ));
        assert!(!upgrade(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: x\r\n"
        ));
        // RFC 6455 section 4.1: a handshake has no body.
        assert!(!upgrade(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n"
        ));
        assert!(!upgrade(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n"
        ));
        assert!(!form("POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n").1);
    }

    #[test]
    fn max_forwards_counts_down() {
        let options = |left: &str| {
            form(&format!(
                "OPTIONS http://a.example/ HTTP/1.1\r\nHost: a.example\r\nMax-Forwards: {left}\r\n\r\n"
            ))
        };
        assert!(options("0").2);
        let (head, _, last) = options("3");
        assert!(head.contains("Max-Forwards: 2\r\n") && !last);
        assert!(
            form("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nMax-Forwards: 0\r\n\r\n")
                .0
                .contains("Max-Forwards: 0")
        );
    }
}

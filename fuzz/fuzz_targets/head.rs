//! A head is read in one way, a request's or an answer's: however it comes in,
//! and however often it is written anew.
#![no_main]

use agentport::egress::head::{self, HeadProgress, MAX_FIELDS};
use agentport::egress::{Authority, RequestTarget, canonical};
use libfuzzer_sys::fuzz_target;

/// What no origin may see, whatever the client wrote.
const HOP: [&str; 7] = [
    "proxy-authorization",
    "proxy-authenticate",
    "proxy-connection",
    "proxy-status",
    "keep-alive",
    "te",
    "http2-settings",
];

fuzz_target!(|bytes: &[u8]| {
    let whole = head::progress(bytes, 0);
    // Byte by byte, each time from where the last look ended, as a slow client
    // would send it.
    let slow = (1..=bytes.len())
        .map(|end| head::progress(&bytes[..end], end - 1))
        .find(|found| *found != Ok(HeadProgress::Partial));
    assert_eq!(whole, slow.unwrap_or(Ok(HeadProgress::Partial)));

    let Ok(HeadProgress::Complete(end)) = whole else {
        return;
    };
    if let Ok(answer) = head::parse_answer(&bytes[..end]) {
        // No request is an answer too.
        assert!(head::parse(&bytes[..end]).is_err());
        assert!((100..600).contains(&answer.status) && answer.fields.len() <= MAX_FIELDS);
    }
    let Ok(head) = head::parse(&bytes[..end]) else {
        return;
    };
    // The same bytes in a longer buffer, where a body follows, are another
    // caller's mistake; the same head twice is the same.
    assert_eq!(head::parse(&bytes[..end]).as_ref(), Ok(&head));
    let Ok(target) = RequestTarget::parse(head.method, head.target) else {
        return;
    };
    match &target {
        RequestTarget::Absolute { authority, .. } => rewritten(&head, &target, Some(authority)),
        // What a tunnel carries in clear goes to the tunnel's authority.
        RequestTarget::Origin { .. } => {
            let authority = Authority::parse("example.com:8080").expect("an authority");
            rewritten(&head, &target, Some(&authority));
            rewritten(&head, &target, None);
        }
        RequestTarget::Asterisk => rewritten(&head, &target, None),
        RequestTarget::Authority(_) => {}
    }
});

/// What goes on must be the same request, to the host that was judged.
fn rewritten(head: &head::Head<'_>, target: &RequestTarget, authority: Option<&Authority>) {
    // `Host` may be one more field than the client sent.
    if head.fields.len() == MAX_FIELDS {
        return;
    }
    let form = canonical(head, target, authority);
    let shown = String::from_utf8_lossy(&form.bytes);
    assert_eq!(
        head::progress(&form.bytes, 0),
        Ok(HeadProgress::Complete(form.bytes.len())),
        "{shown:?}"
    );
    let again =
        head::parse(&form.bytes).unwrap_or_else(|error| panic!("{shown:?} is not a head: {error}"));
    assert_eq!(again.method, head.method);
    assert_eq!(again.version_11, head.version_11);
    assert_eq!(again.body, head.body, "{shown:?}");
    assert!(
        again.target.starts_with('/') || again.target == "*",
        "{shown:?}"
    );

    if let Some(authority) = authority {
        let host = again.field("host").expect("a Host");
        let host = std::str::from_utf8(host).expect("an ASCII Host");
        assert_eq!(
            Authority::parse_with_default_port(host, 80).as_ref(),
            Ok(authority),
            "{shown:?}"
        );
    }
    let named = |fields: &head::Head<'_>| -> Vec<Vec<u8>> {
        fields
            .fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("connection"))
            .flat_map(|(_, value)| value.split(|b| *b == b','))
            .map(|token| token.trim_ascii().to_ascii_lowercase())
            .filter(|token| !token.is_empty())
            .collect()
    };
    // Of `Connection` only what Pingora reads is left.
    for token in named(&again) {
        assert!(
            [&b"close"[..], b"keep-alive", b"upgrade"].contains(&&token[..]),
            "{shown:?}"
        );
    }
    let private = named(head);
    for (name, _) in &again.fields {
        let name = name.to_ascii_lowercase();
        assert!(!HOP.contains(&name.as_str()), "{shown:?}");
        let own = ["connection", "host", "content-length", "transfer-encoding"];
        let upgrade = form.websocket && name == "upgrade";
        assert!(
            own.contains(&name.as_str())
                || upgrade
                || !private.iter().any(|token| token == name.as_bytes()),
            "{shown:?} keeps {name:?}, which Connection names"
        );
    }
    assert_eq!(again.field("upgrade").is_some(), form.websocket);
}

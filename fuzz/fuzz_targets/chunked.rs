//! The end of a chunked body is the same however its bytes come, and no data is
//! taken for framing.
#![no_main]

use agentport::egress::ChunkedBody;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: (usize, &[u8])| {
    let (cut, bytes) = raw;
    let mut whole = ChunkedBody::default();
    let at_once = whole.advance(bytes);
    let (first, second) = bytes.split_at(cut.checked_rem(bytes.len()).unwrap_or(0));
    let mut parts = ChunkedBody::default();
    let in_two = parts
        .advance(first)
        .and_then(|taken| parts.advance(second).map(|more| taken + more));
    assert_eq!(at_once, in_two);
    if let Ok(taken) = at_once {
        assert!(taken == bytes.len() || whole.is_done());
        assert!(!whole.is_done() || bytes[..taken].ends_with(b"\r\n"));
    }
});

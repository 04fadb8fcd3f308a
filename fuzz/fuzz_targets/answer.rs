//! The head of an origin's answer is read in one way, however it comes in, and
//! what is written for the client is read by a strict parser as the same answer.
#![no_main]

use agentport::egress::answer::{self, AnswerBody};
use agentport::egress::head::{self, HeadProgress, MAX_FIELDS};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = answer::end(bytes, 0);
    // Byte by byte, each time from where the last look ended.
    let slow = (1..=bytes.len()).find_map(|end| answer::end(&bytes[..end], end - 1));
    assert_eq!(whole, slow);
    let Some(end) = whole else {
        return;
    };
    let mut head = bytes[..end].to_vec();
    answer::unfold(&mut head);
    // What goes on in the next line is one line, and the head no other.
    assert_eq!(answer::end(&head, 0), Some(end));
    for method in ["GET", "HEAD"] {
        let Ok(read) = answer::parse(&head, method) else {
            continue;
        };
        assert!(read.fields.len() <= answer::MAX_FIELDS && read.status != 101);
        // Nor was it hopeless at any time before its empty line.
        let lines = head.strip_suffix(b"\n").unwrap_or(&head);
        let lines = lines.strip_suffix(b"\r").unwrap_or(lines);
        assert!(!answer::is_hopeless(lines, 0), "it is an answer");
        let mut onward = Vec::new();
        read.write_onward(&mut onward);
        onward.extend_from_slice(b"\r\n");
        let shown = String::from_utf8_lossy(&onward);
        assert_eq!(
            head::progress(&onward, 0),
            Ok(HeadProgress::Complete(onward.len())),
            "{shown:?}"
        );
        // One field may have been added.
        if read.fields.len() >= MAX_FIELDS {
            continue;
        }
        if read.status < 600 {
            let strict = head::parse_answer(&onward)
                .unwrap_or_else(|error| panic!("{shown:?} is not an answer: {error}"));
            assert_eq!(strict.status, read.status);
        }
        let again = answer::parse(&onward, method)
            .unwrap_or_else(|error| panic!("{shown:?} is not clear: {error}"));
        let body = match read.body {
            // It goes on in chunks.
            AnswerBody::ToTheEnd => AnswerBody::Chunked,
            body => body,
        };
        assert_eq!(again.body, body, "{shown:?}");
        for gone in [
            "keep-alive",
            "proxy-authenticate",
            "alt-svc",
            "x-agentport-reason",
        ] {
            let is = |(name, _): &(&str, &[u8])| name.eq_ignore_ascii_case(gone);
            assert!(!again.fields.iter().any(is), "{gone} in {shown:?}");
        }
    }
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Some((name, _)) = answer::trailer(line) {
            assert!(!name.to_ascii_lowercase().starts_with("content-"));
        }
    }
});

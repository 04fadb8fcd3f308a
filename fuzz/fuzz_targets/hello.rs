//! A ClientHello says the same however its bytes come in and however they are
//! cut into records.
#![no_main]

use agentport::egress::hello::{self, HelloError, HelloProgress, MAX_HELLO_BYTES};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    as_sent(bytes);
    if let Some((size, message)) = bytes.split_first() {
        in_records(message, usize::from(*size).max(1));
    }
});

/// Once something is known, more bytes do not change it.
fn as_sent(bytes: &[u8]) {
    if bytes.len() >= MAX_HELLO_BYTES {
        let _ = hello::progress(bytes);
        return;
    }
    let whole = hello::progress(bytes);
    // All short prefixes, and some of the long ones.
    let step = 1 + bytes.len() / 256;
    for end in (0..bytes.len()).step_by(step) {
        match hello::progress(&bytes[..end]) {
            Ok(HelloProgress::Partial) => {}
            known => assert_eq!(known, whole, "after {end} bytes"),
        }
    }
    if let Ok(HelloProgress::Complete(hello)) = &whole {
        if let Some(name) = &hello.server_name {
            assert!(!name.is_empty() && name.is_ascii(), "{name:?}");
        }
        assert!(hello.protocols.iter().all(|name| name.len() < 256));
    }
}

/// The same handshake message in one record and in many.
fn in_records(message: &[u8], size: usize) {
    if message.is_empty() || message.len() >= 1 << 14 {
        return;
    }
    let one = hello::progress(&records(message, message.len()));
    let many = records(message, size);
    let many = hello::progress(&many);
    // An error in what has come may be found before the message is whole, or
    // with it; that it is one does not depend on the records.
    match (&one, &many) {
        (Err(left), Err(right)) => assert_eq!(left, right),
        _ => assert_eq!(one, many, "in records of {size} bytes"),
    }
    assert_ne!(one, Err(HelloError::NotTls));
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    message
        .chunks(size)
        .flat_map(|part| {
            let length = u16::try_from(part.len()).expect("a short record");
            [&[22, 3, 1], &length.to_be_bytes()[..], part].concat()
        })
        .collect()
}

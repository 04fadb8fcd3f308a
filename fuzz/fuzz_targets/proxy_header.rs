//! A PROXY protocol header is found the same however its bytes come, within
//! its bounds, and nothing behind it is taken.
#![no_main]

use agentport::egress::proxy_header::{MAX_PROXY_HEADER_BYTES, ProxyHeaderProgress, progress};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut have = 0;
    loop {
        match progress(&bytes[..have]) {
            Ok(ProxyHeaderProgress::More(more)) => {
                assert!(more > 0, "it would wait for ever");
                assert!(have + more <= MAX_PROXY_HEADER_BYTES);
                if have + more > bytes.len() {
                    return;
                }
                have += more;
            }
            Ok(ProxyHeaderProgress::Complete(_)) => {
                // No part of it is whole.
                assert!(have <= MAX_PROXY_HEADER_BYTES);
                assert!(!matches!(
                    progress(&bytes[..have - 1]),
                    Ok(ProxyHeaderProgress::Complete(_))
                ));
                return;
            }
            Err(_) => return,
        }
    }
});

//! A request target fits its method, and its parts are in their normal form.
#![no_main]

use agentport::egress::{MAX_TARGET_BYTES, RequestTarget};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &str| {
    for method in ["GET", "CONNECT", "OPTIONS"] {
        let Ok(target) = RequestTarget::parse(method, raw) else {
            continue;
        };
        assert!(raw.len() <= MAX_TARGET_BYTES);
        match &target {
            RequestTarget::Authority(authority) => {
                assert_eq!(method, "CONNECT", "{raw:?}");
                assert_eq!(
                    RequestTarget::parse(method, &authority.to_string()).as_ref(),
                    Ok(&target),
                    "{raw:?}"
                );
            }
            RequestTarget::Asterisk => assert_eq!((method, raw), ("OPTIONS", "*")),
            RequestTarget::Origin { path, query } => {
                assert_ne!(method, "CONNECT", "{raw:?}");
                assert_eq!(join(path.as_str(), query.as_deref()), raw);
            }
            RequestTarget::Absolute {
                scheme,
                authority,
                path,
                query,
            } => {
                assert_ne!(method, "CONNECT", "{raw:?}");
                let form = join(
                    &format!("{scheme}://{authority}{}", path.as_str()),
                    query.as_deref(),
                );
                // The normal form may be longer than what was sent, by the
                // port and by an encoded name.
                if form.len() <= MAX_TARGET_BYTES {
                    assert_eq!(
                        RequestTarget::parse(method, &form).as_ref(),
                        Ok(&target),
                        "{raw:?} as {form:?}"
                    );
                }
            }
        }
    }
});

fn join(path: &str, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

//! Hosts and authorities have one normal form, and no second spelling of it.
#![no_main]

use agentport::egress::{Authority, Host};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &str| {
    if let Ok(host) = Host::parse(raw) {
        let form = host.to_string();
        assert_eq!(
            Host::parse(&form).as_ref(),
            Ok(&host),
            "{raw:?} as {form:?}"
        );
        if let Host::Name(name) = &host {
            let name = name.as_str();
            assert!(!name.is_empty() && name.len() <= 253, "{name:?}");
            assert!(!name.ends_with('.') && !name.contains(".."), "{name:?}");
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b)),
                "{name:?}"
            );
            // What a resolver would dial without asking DNS is never a name.
            assert!(name.parse::<std::net::IpAddr>().is_err(), "{name:?}");
        }
    }
    if let Ok(authority) = Authority::parse(raw) {
        assert_ne!(authority.port, 0, "{raw:?}");
        let form = authority.to_string();
        assert_eq!(
            Authority::parse(&form).as_ref(),
            Ok(&authority),
            "{raw:?} as {form:?}"
        );
        // The port is written, so the default changes nothing.
        assert_eq!(
            Authority::parse_with_default_port(raw, 1).as_ref(),
            Ok(&authority),
            "{raw:?}"
        );
    }
});

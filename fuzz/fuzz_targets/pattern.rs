//! What a policy may write is printed as it can be written again, and means
//! the same.
#![no_main]

use agentport::egress::{AddressRange, Destination, Host, HostPattern, PathGlob, RequestPath};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &str| {
    if let Ok(pattern) = HostPattern::parse(raw) {
        let form = pattern.to_string();
        assert_eq!(
            HostPattern::parse(&form).as_ref(),
            Ok(&pattern),
            "{raw:?} as {form:?}"
        );
        match &pattern {
            HostPattern::Exact(host) => assert!(pattern.matches(host), "{raw:?}"),
            HostPattern::Below(name) => {
                let apex = Host::Name(name.clone());
                assert!(!pattern.matches(&apex), "{raw:?} matches its own apex");
            }
            HostPattern::Any => assert_eq!(raw, "*"),
        }
    }
    if let Ok(range) = AddressRange::parse(raw) {
        assert_eq!(
            AddressRange::parse(&range.to_string()),
            Ok(range),
            "{raw:?}"
        );
    }
    if let Ok(destination) = Destination::parse(raw) {
        let form = destination.to_string();
        assert_eq!(
            Destination::parse(&form).as_ref(),
            Ok(&destination),
            "{raw:?} as {form:?}"
        );
    }
    if let Ok(glob) = PathGlob::parse(raw) {
        assert_eq!(glob.to_string(), raw);
        assert_eq!(PathGlob::parse(&glob.to_string()).as_ref(), Ok(&glob));
        // Without a star a pattern is a path, in the very form compared; a
        // path with escaped octets or `;` may have a second view.
        if !raw.contains(['*', '%', ';'])
            && !raw.contains("//")
            && let Ok(path) = RequestPath::parse(raw)
        {
            assert!(glob.matches_all(&path), "{raw:?}");
        }
    }
});

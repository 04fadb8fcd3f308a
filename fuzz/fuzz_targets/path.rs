//! Every view of a path is absolute and has no dot segment left to climb by.
#![no_main]

use agentport::egress::{PathGlob, RequestPath};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &str| {
    let Ok(path) = RequestPath::parse(raw) else {
        return;
    };
    assert_eq!(path.as_str(), raw, "what travels on is what was sent");
    let views: Vec<&str> = path.views().collect();
    // Five depths of decoding, eight readings of each.
    assert!((1..=40).contains(&views.len()), "{raw:?}");
    for view in &views {
        assert!(view.starts_with('/'), "{raw:?} has the view {view:?}");
        assert!(
            !view
                .split('/')
                .any(|segment| segment == "." || segment == ".."),
            "{raw:?} has the view {view:?}"
        );
        assert!(
            !view.bytes().any(|b| b < 0x20 || b == 0x7f),
            "{raw:?} has the view {view:?}"
        );
    }
    let everything = PathGlob::parse("/**").expect("a valid pattern");
    assert!(everything.matches_all(&path), "{raw:?}");
    // An allow rule is never wider than a deny rule with the same pattern.
    for glob in ["/", "/a", "/*", "/a/**", "/**/a", "/*/a*"] {
        let glob = PathGlob::parse(glob).expect("a valid pattern");
        assert!(
            !glob.matches_all(&path) || glob.matches_any(&path),
            "{raw:?}"
        );
    }
});

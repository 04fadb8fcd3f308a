//! Whatever path a client writes below a route, no reading of it at the origin
//! leaves the route's base; and no origin's `Location` becomes another host.
#![no_main]

use agentport::egress::{Found, RequestPath, Route, RouteTarget};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str, bool)| {
    let (path, location, by_host) = input;
    let to = RouteTarget::parse("https://a.example/v1/b").expect("a target");
    let route = Route::new("a".into(), "/routes/a".into(), Vec::new(), to);
    let found = if by_host { Found::Host } else { Found::Prefix };
    if let Ok(path) = RequestPath::parse(path)
        && let Ok(there) = route.path(found, &path)
    {
        for view in there.views() {
            let rest = view.strip_prefix("/v1/b").expect("below the base");
            assert!(rest.is_empty() || rest.starts_with('/'), "{view}");
        }
    }
    if let Some(moved) = route.location(found, location) {
        assert!(
            moved.starts_with('/') && !moved.starts_with("//"),
            "{moved}"
        );
    }
    if let Ok(target) = RouteTarget::parse(location) {
        let again = RouteTarget::parse(&target.to_string()).expect("what was read");
        assert_eq!(again, target);
    }
});

//! A request to the token endpoint is one or a clear error, and never more than
//! was written: a bounded account is granted nothing outside its bounds.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use agentport::egress::Destination;
use agentport::identity::{ServiceAccounts, Terms, TokenRequest, first_outside};
use libfuzzer_sys::fuzz_target;

static ACCOUNTS: LazyLock<ServiceAccounts> = LazyLock::new(|| {
    let text = "{version: 1, accounts: [{id: ci, revoked: true, agents: ['ci-*'], destinations: ['*.a.test', 10.0.0.0/8], scopes: [read], max_ttl: 1h}]}";
    ServiceAccounts::parse(text).expect("accounts")
});

fuzz_target!(|data: (&[u8], Option<&str>)| {
    let (body, authorization) = data;
    let request = match TokenRequest::parse(body, authorization) {
        Ok(request) => request,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let terms = Terms {
        audience: "agentport".to_owned(),
        default_ttl: Duration::from_secs(900),
        max_ttl: Duration::from_secs(86_400),
        max_actors: 4,
    };
    let account = ACCOUNTS.get("ci").expect("the account");
    if let Ok(granted) = account.grant(&request, &terms, 1) {
        assert!(granted.agent.as_str().starts_with("ci-"));
        assert!(granted.tenant.is_none() && granted.audience.is_none());
        assert!(granted.lifetime <= Duration::from_secs(3600));
        let bound =
            ["*.a.test", "10.0.0.0/8"].map(|raw| Destination::parse(raw).expect("a destination"));
        let destinations = granted.destinations.expect("the account is bounded");
        assert_eq!(first_outside(&bound, &destinations), None);
        assert!(
            granted
                .scope
                .is_none_or(|scope| scope.split(' ').all(|word| word == "read"))
        );
    }
});

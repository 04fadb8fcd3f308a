//! A credential is one token, in whatever form it is sent.
#![no_main]

use agentport::identity::{Credential, MAX_CREDENTIAL_BYTES};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|value: &[u8]| {
    for parsed in [Credential::parse(value), Credential::bare(value)] {
        let Ok(credential) = parsed else {
            continue;
        };
        let token = credential.token();
        assert!(value.len() <= MAX_CREDENTIAL_BYTES && !token.is_empty());
        // Nothing of it may reach a log by `Debug`.
        assert_eq!(format!("{credential:?}"), "Credential(redacted)");
        assert_eq!(
            Credential::of_header([value, value]).ok().flatten(),
            None,
            "two are none"
        );
        let Some(user) = credential.user() else {
            continue;
        };
        // A token has no colon, a user name may have some.
        assert!(!token.contains(':') && !user.is_empty());
        let pair = STANDARD.encode(format!("{user}:{token}"));
        let again = Credential::parse(format!("basic  {pair}").as_bytes());
        if pair.len() < MAX_CREDENTIAL_BYTES - 8 {
            assert!(again.as_ref() == Ok(&credential), "{user:?}");
        }
    }
});

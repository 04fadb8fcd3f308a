//! A file of service accounts is one or a clear error, and what was read is
//! written so that it reads back.
#![no_main]

use agentport::identity::{AccountsDocument, ServiceAccounts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(document) = AccountsDocument::parse(text) else {
        return;
    };
    match ServiceAccounts::build(&document) {
        Ok(accounts) => {
            let written = document.to_yaml().expect("YAML");
            let again = ServiceAccounts::parse(&written).expect("what was read");
            assert_eq!(again.len(), accounts.len(), "{written}");
        }
        Err(error) => assert!(!error.0.is_empty()),
    }
});

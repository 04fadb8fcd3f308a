//! A body that is taken for JSON-RPC calls nothing but what a plain parser of
//! JSON finds in it, and a batch is refused where one call is.
#![no_main]

use agentport::egress::rpc_methods;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    let Ok(methods) = rpc_methods(body) else {
        return;
    };
    let value: Value = serde_json::from_slice(body).expect("what was read is JSON");
    let calls = match value {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    assert!(!calls.is_empty());
    for call in &calls {
        let method = call["method"].as_str().expect("a method");
        assert!(methods.iter().any(|known| known == method));
    }
    assert!(methods.len() <= calls.len());
});

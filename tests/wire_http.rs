//! Requests in absolute-form, on the wire.

#[expect(dead_code, reason = "each test uses a part of what is shared")]
mod support;

use support::gateway::{Gateway, token};
use support::origin::{Origin, Untouched};

#[test]
fn a_refusal_reaches_no_origin() {
    let gateway = Gateway::open();
    let origin = Untouched::listen();
    let mut client = gateway.connect();
    client.send(format!(
        "GET http://other.example:{}/ HTTP/1.1\r\nHost: other.example:{0}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
        origin.port(),
        token("bot")
    ));
    let refused = client.response();
    assert_eq!((refused.status, refused.refusal()), (403, "not_allowed"));
    assert!(gateway.names().asked().is_empty());
    gateway.record_of(&refused);
    assert_eq!(gateway.stop().len(), 1);
}

#[test]
fn get() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let mut client = gateway.connect();
    client.send(format!(
        "GET http://a.test:{0}/x HTTP/1.1\r\nHost: a.test:{0}\r\nProxy-Authorization: Bearer {1}\r\n\r\n",
        origin.port(),
        token("bot")
    ));
    let response = client.response();
    assert_eq!(response.status, 200);
    assert_eq!(response.body, b"ok");
    gateway.record_of(&response);
    let before = gateway.policy_version();
    gateway.change_policy(&support::gateway::LOOPBACK_POLICY.replace("test-names", "here"));
    assert_ne!(before, gateway.policy_version());
}

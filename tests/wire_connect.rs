//! `CONNECT` and what goes through a tunnel, on the wire.

#[expect(dead_code, reason = "each test uses a part of what is shared")]
mod support;

use support::gateway::{Gateway, token};
use support::origin::Origin;

#[test]
fn a_tunnel_carries_tls_to_the_host_it_names() {
    let gateway = Gateway::open();
    let origin = Origin::echo();
    let mut client = gateway.connect();
    client.send(format!(
        "CONNECT api.test:{} HTTP/1.1\r\nHost: api.test\r\nProxy-Authorization: Bearer {}\r\n\r\n",
        origin.port(),
        token("bot")
    ));
    assert_eq!(client.response_to("CONNECT").status, 200);
    let hello = support::tls::Hello::to("api.test").bytes();
    client.send(&hello);
    assert_eq!(client.exactly(hello.len()), hello);
}

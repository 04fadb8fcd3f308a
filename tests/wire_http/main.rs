//! Requests whose inside the gateway sees, on the wire: in absolute-form, and
//! by HTTP/2 in clear text.

#[expect(dead_code, reason = "each test uses a part of what is shared")]
#[path = "../support/mod.rs"]
mod support;

mod credentials;
mod destinations;
mod http2;
mod intermediary;
mod malformed;
mod plain;
mod records;
mod refusals;
mod streaming;

use support::conn::{Conn, Response};
use support::gateway::{Gateway, token};

/// A request from its template: `PORT` becomes the origin's port, `AUTH` the
/// field with the credential of this agent.
fn fill(template: &str, port: u16, agent: &str) -> String {
    let auth = format!("Proxy-Authorization: Bearer {}", token(agent));
    template
        .replace("PORT", &port.to_string())
        .replace("AUTH", &auth)
}

/// A GET for this path at `a.test`, by this agent.
fn get(path: &str, port: u16, agent: &str) -> String {
    let template =
        format!("GET http://a.test:PORT{path} HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n\r\n");
    fill(&template, port, agent)
}

/// Sends one request on a new connection and gives its answer.
fn ask(gateway: &Gateway, request: impl AsRef<[u8]>) -> Response {
    let mut client = gateway.connect();
    client.send(request);
    client.response()
}

/// The same, where the gateway may refuse before all has been sent.
fn ask_lossy(gateway: &Gateway, request: impl AsRef<[u8]>) -> (Response, Conn) {
    let mut client = gateway.connect();
    client.send_lossy(request);
    let response = client.response();
    (response, client)
}

//! The egress listener and the agents: it reaches none of them, whatever name,
//! address or parent proxy leads there.

use std::net::TcpStream;

use crate::support::gateway::{Gateway, token};
use crate::support::origin::{Origin, Untouched};
use crate::{Between, LOOSE, directory};

#[test]
fn the_egress_port_does_not_reach_the_fronted_agent_by_its_name() {
    let claw = Untouched::listen();
    let upstream = format!("claw.test:{}", claw.port());
    let gateway = Gateway::start(LOOSE, &[("agent.upstream", &upstream)]);
    for (case, authority) in [
        ("its name", upstream),
        ("where that leads", format!("127.0.0.1:{}", claw.port())),
        ("another name", format!("other.test:{}", claw.port())),
    ] {
        for (form, start) in [
            ("a request", format!("GET http://{authority}/ HTTP/1.1")),
            ("a tunnel", format!("CONNECT {authority} HTTP/1.1")),
        ] {
            let mut conn = gateway.connect();
            conn.send(format!(
                "{start}\r\nHost: {authority}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
                token(&format!("bot-{}", case.replace(' ', "-")))
            ));
            let response = conn.response();
            assert_eq!(response.status, 403, "{case}, {form}");
            let reason = response.field("x-agentport-reason");
            assert_eq!(reason, Some("own_listener"), "{case}, {form}");
        }
        claw.check(case);
    }
}

#[test]
fn the_egress_port_reaches_no_agent_whatever_a_rule_says() {
    let (bob, carol) = (Untouched::listen(), Untouched::listen());
    let agents = format!(
        "agents:\n  - {{name: bob, endpoints: [\"127.0.0.1:{}\"]}}\n  - {{name: carol, \
         endpoints: [\"carol.test:{}\"]}}\n",
        bob.port(),
        carol.port()
    );
    let between = Between::start(LOOSE, &agents);
    let refused = |case: &str, authority: &str| {
        for (form, start) in [
            ("a request", format!("GET http://{authority}/ HTTP/1.1")),
            ("a tunnel", format!("CONNECT {authority} HTTP/1.1")),
        ] {
            let mut conn = between.gateway.connect();
            conn.send(format!(
                "{start}\r\nHost: {authority}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
                token(&format!("bot-{}", case.replace(' ', "-")))
            ));
            let response = conn.response();
            assert_eq!(response.status, 403, "{case}, {form}");
            let reason = response.field("x-agentport-reason");
            assert_eq!(reason, Some("own_listener"), "{case}, {form}");
        }
        bob.check(case);
        carol.check(case);
    };
    refused("the endpoint", &format!("127.0.0.1:{}", bob.port()));
    refused("by another name", &format!("b.test:{}", bob.port()));
    refused("all addresses", &format!("0.0.0.0:{}", bob.port()));
    refused("a named endpoint", &format!("carol.test:{}", carol.port()));
    refused(
        "where its name leads",
        &format!("127.0.0.1:{}", carol.port()),
    );
    refused("the agents host", "bob.peers.internal:443");
    refused("any host of the domain", "x.y.peers.internal:80");
    refused("the listener itself", &between.address.to_string());

    // What becomes an endpoint is refused from then on, an open tunnel ended.
    let open = Origin::echo();
    let authority = format!("o.test:{}", open.port());
    let mut tunnel = between.gateway.connect();
    tunnel.send(format!(
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
        token("bot")
    ));
    assert!(tunnel.head().expect("an answer").start.contains(" 200 "));
    tunnel.send("\x01ping");
    assert_eq!(tunnel.exactly(5), b"\x01ping");
    between.change(&format!(
        "{agents}  - {{name: dora, endpoints: [\"{}\"]}}\n",
        open.address()
    ));
    assert!(tunnel.closes(), "the tunnel is ended");
    refused("a new endpoint", &authority);
}

#[test]
fn what_the_parent_proxy_carries_to_a_name_ends_when_that_becomes_an_agents() {
    let greets = Origin::serve(|mut conn, _| {
        conn.send_lossy("ready\r\n");
        conn.rest();
    });
    // It takes every name to this machine.
    let parent = Origin::serve(|mut conn, _| {
        let Some(head) = conn.head() else { return };
        let (_, port) = head.asks().1.rsplit_once(':').expect("a port");
        let port = port.parse().expect("a port");
        let there = TcpStream::connect(("127.0.0.1", port)).expect("the origin listens");
        conn.send("HTTP/1.1 200 OK\r\n\r\n");
        let (_, here) = conn.into_parts();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = std::io::copy(&mut &here, &mut &there);
                let _ = there.shutdown(std::net::Shutdown::Write);
            });
            let _ = std::io::copy(&mut &there, &mut &here);
            let _ = here.shutdown(std::net::Shutdown::Write);
        });
    });
    let bob = Origin::ok();
    let policy = r#"
version: 1
rules:
  - name: corp
    action: allow
    agents: any
    hosts: ["*.corp"]
    ports: any
    tls: any
"#;
    let agents = |more: &[String]| {
        let endpoints = [&[bob.address().to_string()], more].concat();
        directory("bob", &endpoints)
    };
    let between = Between::start_with(
        policy,
        &agents(&[]),
        &[
            (
                "upstream_proxy.url",
                &format!("http://{}", parent.address()),
            ),
            ("upstream_proxy.address", "unchecked"),
        ],
    );
    let open = |host: &str| {
        let mut client = between.gateway.connect();
        let to = format!("{host}:{}", greets.port());
        client.send(format!(
            "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
            token("bot")
        ));
        assert_eq!(client.head().expect("an answer").status(), 200);
        assert_eq!(client.line().as_deref(), Some("ready"));
        client
    };
    let (mut bobs, others) = (open("bob.corp"), open("other.corp"));
    between.change(&agents(&[format!("bob.corp:{}", greets.port())]));
    assert_eq!(bobs.rest(), b"");
    let record = between.gateway.record("the end", |record| {
        record["event"] == "tunnel_closed" && record["destination_host"] == "bob.corp"
    });
    assert_eq!(record["reason"], "policy_changed", "{record}");
    others.stream().set_nonblocking(true).expect("set");
    assert!(others.stream().peek(&mut [0; 1]).is_err(), "it goes on");
}

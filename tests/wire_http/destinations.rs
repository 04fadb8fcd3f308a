//! How a destination may be spelt, and where no spelling leads: to the gateway,
//! this machine, private networks and a cloud's metadata.

use std::net::Ipv6Addr;

use crate::support::gateway::{Gateway, LOOPBACK_POLICY};
use crate::support::names::Names;
use crate::support::origin::{Origin, Untouched};
use crate::{ask, ask_lossy, fill};

/// Every host on every port, and no range: the addresses decide.
const ALL_HOSTS: &str = r#"
version: 1
rules:
  - name: everything
    action: allow
    agents: any
    hosts: ["*"]
    ports: any
"#;

fn to_host(host: &str, port: u16, agent: &str) -> String {
    let template = format!("GET http://{host}:PORT/ HTTP/1.1\r\nHost: {host}:PORT\r\nAUTH\r\n\r\n");
    fill(&template, port, agent)
}

#[test]
fn no_spelling_of_an_address_gets_round_its_class() {
    let gateway = Gateway::start(ALL_HOSTS, &[]);
    let origin = Untouched::listen();
    let other = origin.port();
    for (index, (host, status, word)) in [
        ("127.0.0.1", 403, "address_loopback"),
        ("127.0.0.2", 403, "address_loopback"),
        ("127.255.255.255", 403, "address_loopback"),
        ("[::1]", 403, "address_loopback"),
        ("[0:0:0:0:0:0:0:1]", 403, "address_loopback"),
        (
            "[0000:0000:0000:0000:0000:0000:0000:0001]",
            403,
            "address_loopback",
        ),
        ("[::0:1]", 403, "address_loopback"),
        ("10.0.0.1", 403, "address_private"),
        ("172.16.0.1", 403, "address_private"),
        ("172.31.255.255", 403, "address_private"),
        ("192.168.0.1", 403, "address_private"),
        ("100.64.0.1", 403, "address_carrier_nat"),
        ("169.254.0.1", 403, "address_link_local"),
        ("[fe80::1]", 403, "address_link_local"),
        ("[fc00::1]", 403, "address_unique_local"),
        ("[fd12:3456::1]", 403, "address_unique_local"),
        ("224.0.0.1", 403, "address_multicast"),
        ("[ff02::1]", 403, "address_multicast"),
        ("255.255.255.255", 403, "address_broadcast"),
        ("0.0.0.0", 403, "address_unspecified"),
        ("[::]", 403, "address_unspecified"),
        ("192.0.2.1", 403, "address_documentation"),
        ("[2001:db8::1]", 403, "address_documentation"),
        ("240.0.0.1", 403, "address_reserved"),
        ("169.254.169.254", 403, "address_metadata"),
        ("169.254.170.2", 403, "address_metadata"),
        ("100.100.100.200", 403, "address_metadata"),
        ("192.0.0.192", 403, "address_metadata"),
        ("168.63.129.16", 403, "address_metadata"),
        ("[fd00:ec2::254]", 403, "address_metadata"),
        ("[fd20:ce::254]", 403, "address_metadata"),
        ("[::ffff:127.0.0.1]", 403, ""),
        ("[::ffff:7f00:1]", 403, ""),
        ("[::ffff:169.254.169.254]", 403, ""),
        ("[::127.0.0.1]", 403, ""),
        ("[::ffff:0:127.0.0.1]", 403, ""),
        ("[64:ff9b::127.0.0.1]", 403, ""),
        ("[64:ff9b::a9fe:a9fe]", 403, ""),
        ("[64:ff9b:1::7f00:1]", 403, ""),
        ("[2002:7f00:1::]", 403, ""),
        ("[2001:0:7f00:1::]", 403, ""),
        // Spellings that others read as 127.0.0.1 or 169.254.169.254.
        ("2130706433", 400, "bad_request"),
        ("0x7f000001", 400, "bad_request"),
        ("0X7F000001", 400, "bad_request"),
        ("017700000001", 400, "bad_request"),
        ("127.1", 400, "bad_request"),
        ("127.0.1", 400, "bad_request"),
        ("0177.0.0.1", 400, "bad_request"),
        ("127.0.0.01", 400, "bad_request"),
        ("0x7f.0.0.1", 400, "bad_request"),
        ("127.0.0.0x1", 400, "bad_request"),
        ("127.0.0.1.", 400, "bad_request"),
        ("127.000.000.001", 400, "bad_request"),
        ("256.0.0.1", 400, "bad_request"),
        ("1.2.3.4.5", 400, "bad_request"),
        ("0", 400, "bad_request"),
        ("00", 400, "bad_request"),
        ("0x", 400, "bad_request"),
        ("a.test.1", 400, "bad_request"),
        ("2852039166", 400, "bad_request"),
        ("0xA9FEA9FE", 400, "bad_request"),
        ("169.254.43518", 400, "bad_request"),
        ("0251.0376.0251.0376", 400, "bad_request"),
        ("%31%32%37.0.0.1", 400, "bad_request"),
        ("127%2e0%2e0%2e1", 400, "bad_request"),
        ("::1", 400, "bad_request"),
        ("[::1", 400, "bad_request"),
        ("::1]", 400, "bad_request"),
        ("[[::1]]", 400, "bad_request"),
        ("[127.0.0.1]", 400, "bad_request"),
        ("[fe80::1%25lo]", 400, "bad_request"),
        ("[fe80::1%lo]", 400, "bad_request"),
        ("[::1%25]", 400, "bad_request"),
        ("[v1.a]", 400, "bad_request"),
        ("[::ffff:0x7f.1]", 400, "bad_request"),
        ("[::1:]", 400, "bad_request"),
        ("[1::2::3]", 400, "bad_request"),
        ("[0:0:0:0:0:0:0:0:1]", 400, "bad_request"),
        ("[00001::1]", 400, "bad_request"),
    ]
    .into_iter()
    .enumerate()
    {
        // Another agent each time, so that no refusal is one too many.
        let agent = format!("bot-{index}");
        let (refused, _) = ask_lossy(&gateway, to_host(host, other, &agent));
        assert_eq!(refused.status, status, "{host}: {}", refused.reason);
        let said = refused.refusal();
        if word.is_empty() {
            assert!(said.starts_with("address_"), "{host}: {said}");
        } else {
            assert_eq!(said, word, "{host}");
        }
        origin.check(host);
    }
    assert!(gateway.names().asked().is_empty(), "nobody was resolved");
}

#[test]
fn a_name_leads_only_where_its_addresses_may() {
    let names = Names::serve();
    let gateway = Gateway::start_with_names(ALL_HOSTS, &[], names.clone());
    let origin = Untouched::listen();
    for (index, address) in [
        "127.0.0.1",
        "::1",
        "10.1.2.3",
        "169.254.169.254",
        "168.63.129.16",
        "0.0.0.0",
        "100.64.0.1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "::ffff:0:7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "fe80::1",
        "fd00:ec2::254",
        "ff02::1",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("n{index}.example");
        names.set(&name, &[address]);
        let (refused, _) = ask_lossy(&gateway, to_host(&name, origin.port(), "bot"));
        assert_eq!(refused.status, 403, "{address}: {}", refused.reason);
        assert!(
            refused.refusal().starts_with("address_"),
            "{address}: {}",
            refused.refusal()
        );
        let record = gateway.record_of(&refused);
        assert_eq!(record["action_allowed"], false, "{address}");
        origin.check(address);
    }
}

#[test]
fn among_several_addresses_only_those_that_pass_are_dialled() {
    let names = Names::serve();
    names.set(
        "mixed.test",
        &["10.0.0.1", "169.254.169.254", "127.0.0.1", "fd00:ec2::254"],
    );
    let gateway = Gateway::start_with_names(LOOPBACK_POLICY, &[], names);
    let origin = Origin::ok();
    let answer = ask(&gateway, to_host("mixed.test", origin.port(), "bot"));
    assert_eq!(answer.status, 200);
    let record = gateway.record_of(&answer);
    assert_eq!(record["destination_ip"], "127.0.0.1");
}

#[test]
fn an_origin_of_ipv6_is_reached_like_any_other() {
    let names = Names::serve();
    names.set("six.test", &["::1"]);
    names.set("both.test", &["::1", "127.0.0.1"]);
    let policy = r#"
version: 1
rules:
  - {name: here, action: allow, agents: any, addresses: ["127.0.0.0/8", "::1/128"], ports: any}
"#;
    let gateway = Gateway::start_with_names(policy, &[], names);
    let six = Origin::ok_at(Ipv6Addr::LOCALHOST);
    let four = Origin::ok();
    for (case, host, port, ip, field) in [
        ("a name", "six.test", six.port(), "::1", "six.test"),
        ("an address", "[::1]", six.port(), "::1", "[::1]"),
        (
            "in another spelling",
            "[0:0::1]",
            six.port(),
            "::1",
            "[::1]",
        ),
        (
            "IPv6 goes first",
            "both.test",
            six.port(),
            "::1",
            "both.test",
        ),
        (
            "and else IPv4",
            "both.test",
            four.port(),
            "127.0.0.1",
            "both.test",
        ),
    ] {
        let answer = ask(&gateway, to_host(host, port, "bot"));
        assert_eq!(answer.status, 200, "{case}: {}", answer.reason);
        assert_eq!(gateway.record_of(&answer)["destination_ip"], ip, "{case}");
        let origin = if ip == "::1" { &six } else { &four };
        let expected = format!("{field}:{port}");
        assert_eq!(origin.last().field("host"), Some(&*expected), "{case}");

        let template = format!("CONNECT {host}:PORT HTTP/1.1\r\nHost: {host}:PORT\r\nAUTH\r\n\r\n");
        let mut tunnel = gateway.connect();
        tunnel.send(fill(&template, port, "bot"));
        assert_eq!(tunnel.response_to("CONNECT").status, 200, "{case}");
        tunnel.send(format!("GET / HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"));
        assert_eq!(tunnel.response().status, 200, "{case}: inside");
    }
}

#[test]
fn the_gateway_is_no_destination_of_its_own() {
    let names = Names::serve();
    names.set("six.test", &["::1"]);
    let gateway = Gateway::start_with_names(LOOPBACK_POLICY, &[], names);
    for port in [gateway.egress().port(), gateway.admin().port()] {
        let (refused, _) = ask_lossy(&gateway, to_host("self.test", port, "bot"));
        assert_eq!(
            (refused.status, refused.refusal()),
            (403, "own_listener"),
            "{port}"
        );
    }
}

#[test]
fn a_name_has_one_form_whatever_its_spelling() {
    let names = Names::serve();
    let gateway = Gateway::start_with_names(LOOPBACK_POLICY, &[], names.clone());
    let origin = Origin::ok();
    let sent = |host: &str| format!("{host}:{}", origin.port());
    for (case, target, host) in [
        ("as it is", "a.test", "a.test"),
        ("in capitals", "A.TEST", "a.test"),
        ("with a trailing dot", "a.test.", "a.test"),
        ("with an underscore", "_dmarc.a.test", "_dmarc.a.test"),
        ("by punycode", "xn--bcher-kva.test", "xn--bcher-kva.test"),
        (
            "by punycode in capitals",
            "XN--BCHER-KVA.test",
            "xn--bcher-kva.test",
        ),
        (
            "with 63 letters in a label",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.test",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.test",
        ),
        ("with digits", "1a.2b.test", "1a.2b.test"),
    ] {
        let answer = ask(&gateway, to_host(target, origin.port(), "bot"));
        assert_eq!(answer.status, 200, "{case}: {}", answer.reason);
        assert_eq!(origin.last().all("host"), [sent(host)], "{case}");
        let record = gateway.record_of(&answer);
        assert_eq!(record["destination_host"], host, "{case}");
        assert!(names.asked().contains(&host.to_owned()), "{case}");
    }
    // A Host in another spelling names the same host.
    for host in ["A.Test:PORT", "a.test.:PORT", "a.test"] {
        let template = format!("GET http://a.test:PORT/ HTTP/1.1\r\nHost: {host}\r\nAUTH\r\n\r\n");
        let answer = ask(&gateway, fill(&template, origin.port(), "bot"));
        assert_eq!(answer.status, 200, "Host: {host}");
        assert_eq!(origin.last().all("host"), [sent("a.test")]);
    }
}

#[test]
fn a_name_alone_that_is_refused_is_not_resolved() {
    let gateway = Gateway::open();
    let origin = Untouched::listen();
    for (index, host) in [
        "other.example",
        "test",
        "a.test.example",
        "atest",
        "localhost",
        "metadata.google.internal",
        "xn--bcher-kva.example",
    ]
    .into_iter()
    .enumerate()
    {
        let (refused, _) = ask_lossy(
            &gateway,
            to_host(host, origin.port(), &format!("bot-{index}")),
        );
        assert_eq!(
            (refused.status, refused.refusal()),
            (403, "no_rule"),
            "{host}"
        );
        origin.check(host);
    }
    assert!(gateway.names().asked().is_empty(), "nobody was resolved");
}

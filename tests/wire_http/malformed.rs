//! Heads and bodies that could be read in two ways, are too large, or come too
//! slowly. None reaches an origin, each is answered and recorded once, and the
//! connection is closed.

use std::sync::mpsc;

use crate::support::gateway::{Gateway, LOOPBACK_POLICY};
use crate::support::origin::{Origin, Untouched};
use crate::{ask_lossy, fill, get};

/// What stands before the part that is wrong.
const GET: &str = "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n";
const POST: &str = "POST http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n";

/// Framing (RFC 9112 section 6). Each field block goes behind a POST.
const FRAMING: &[(&str, &str)] = &[
    (
        "two equal lengths",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
    ),
    (
        "two lengths that differ",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
    ),
    (
        "two lengths in different case",
        "Content-Length: 5\r\ncontent-length: 5\r\n",
    ),
    ("a list of equal lengths", "Content-Length: 5, 5\r\n"),
    ("a list of lengths", "Content-Length: 5,6\r\n"),
    ("a length with a plus", "Content-Length: +5\r\n"),
    ("a negative length", "Content-Length: -5\r\n"),
    ("a negative zero", "Content-Length: -0\r\n"),
    ("a length in hexadecimal", "Content-Length: 0x5\r\n"),
    ("a length with a fraction", "Content-Length: 5.0\r\n"),
    ("a length with an exponent", "Content-Length: 5e0\r\n"),
    ("a length with an underscore", "Content-Length: 5_0\r\n"),
    ("a length in quotes", "Content-Length: \"5\"\r\n"),
    ("a length with a blank inside", "Content-Length: 5 5\r\n"),
    ("a length with a tab inside", "Content-Length: 5\t5\r\n"),
    ("a length with a comma behind", "Content-Length: 5,\r\n"),
    ("a length with a semicolon", "Content-Length: 5;\r\n"),
    ("an empty length", "Content-Length:\r\n"),
    ("a blank length", "Content-Length:  \r\n"),
    ("a word as length", "Content-Length: five\r\n"),
    ("a length in other digits", "Content-Length: \u{0665}\r\n"),
    (
        "a length in fullwidth digits",
        "Content-Length: \u{ff15}\r\n",
    ),
    (
        "a length of 2^64",
        "Content-Length: 18446744073709551616\r\n",
    ),
    (
        "a length of 2^64 + 5",
        "Content-Length: 18446744073709551621\r\n",
    ),
    (
        "a length of 2^63",
        "Content-Length: 9223372036854775808\r\n",
    ),
    (
        "a length of a hundred nines",
        "Content-Length: 9999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999\r\n",
    ),
    (
        "a length before an encoding",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    ),
    (
        "an encoding before a length",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    ),
    (
        "a length of zero and an encoding",
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
    ),
    (
        "a bad length and an encoding",
        "Content-Length: x\r\nTransfer-Encoding: chunked\r\n",
    ),
    (
        "a length and an encoding that is not known",
        "Content-Length: 5\r\nTransfer-Encoding: x\r\n",
    ),
    ("the encoding identity", "Transfer-Encoding: identity\r\n"),
    (
        "chunked and identity",
        "Transfer-Encoding: chunked, identity\r\n",
    ),
    (
        "identity and chunked",
        "Transfer-Encoding: identity, chunked\r\n",
    ),
    ("gzip and chunked", "Transfer-Encoding: gzip, chunked\r\n"),
    ("chunked and gzip", "Transfer-Encoding: chunked, gzip\r\n"),
    (
        "chunked twice in one field",
        "Transfer-Encoding: chunked, chunked\r\n",
    ),
    (
        "chunked in two fields",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    ),
    (
        "chunked and another field with identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    ),
    (
        "another field with identity and chunked",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    ),
    (
        "chunked with a letter in front",
        "Transfer-Encoding: xchunked\r\n",
    ),
    (
        "chunked with a letter behind",
        "Transfer-Encoding: chunkedx\r\n",
    ),
    (
        "chunked with a comma in front",
        "Transfer-Encoding: ,chunked\r\n",
    ),
    (
        "chunked with a comma behind",
        "Transfer-Encoding: chunked,\r\n",
    ),
    (
        "chunked with a parameter",
        "Transfer-Encoding: chunked;q=1\r\n",
    ),
    ("chunked in quotes", "Transfer-Encoding: \"chunked\"\r\n"),
    ("chunked in two words", "Transfer-Encoding: chun ked\r\n"),
    (
        "chunked behind a vertical tab",
        "Transfer-Encoding: \x0bchunked\r\n",
    ),
    (
        "chunked behind a form feed",
        "Transfer-Encoding: \x0cchunked\r\n",
    ),
    ("chunked before a NUL", "Transfer-Encoding: chunked\0\r\n"),
    (
        "chunked behind a no-break space",
        "Transfer-Encoding: \u{a0}chunked\r\n",
    ),
    (
        "chunked with a Kelvin sign",
        "Transfer-Encoding: chun\u{212a}ed\r\n",
    ),
    (
        "chunked on a folded line",
        "Transfer-Encoding:\r\n chunked\r\n",
    ),
    (
        "chunked on a line folded by a tab",
        "Transfer-Encoding:\r\n\tchunked\r\n",
    ),
    ("an empty encoding", "Transfer-Encoding:\r\n"),
    (
        "an encoding with a blank before the colon",
        "Transfer-Encoding : chunked\r\n",
    ),
    (
        "an encoding with a tab before the colon",
        "Transfer-Encoding\t: chunked\r\n",
    ),
    (
        "an encoding with a blank in front",
        " Transfer-Encoding: chunked\r\n",
    ),
    (
        "an encoding with a NUL in its name",
        "Transfer-Encoding\0: chunked\r\n",
    ),
    (
        "an encoding behind a bare line feed",
        "X: y\nTransfer-Encoding: chunked\r\n",
    ),
    (
        "an encoding behind a bare carriage return",
        "X: y\rTransfer-Encoding: chunked\r\n",
    ),
    (
        "a length with a blank before the colon",
        "Content-Length : 5\r\n",
    ),
    ("a length behind a fold", "X: y\r\n Content-Length: 5\r\n"),
    (
        "a length behind a bare line feed",
        "X: y\nContent-Length: 5\r\n",
    ),
    (
        "a length behind a bare carriage return",
        "X: y\rContent-Length: 5\r\n",
    ),
    (
        "a length that ends in a bare line feed",
        "Content-Length: 5\nX: y\r\n",
    ),
    ("a length that ends in a NUL", "Content-Length: 5\0\r\n"),
];

/// Whole heads, without the empty line.
const HEADS: &[(&str, &str)] = &[
    (
        "no version",
        "GET http://a.test:PORT/\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "HTTP/0.9",
        "GET http://a.test:PORT/ HTTP/0.9\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "HTTP/1.2",
        "GET http://a.test:PORT/ HTTP/1.2\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "HTTP/1.10",
        "GET http://a.test:PORT/ HTTP/1.10\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "HTTP/01.1",
        "GET http://a.test:PORT/ HTTP/01.1\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "HTTP/1",
        "GET http://a.test:PORT/ HTTP/1\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "HTTP/1.",
        "GET http://a.test:PORT/ HTTP/1.\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "HTTP/2.0 without its preface",
        "GET http://a.test:PORT/ HTTP/2.0\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "HTTP/3",
        "GET http://a.test:PORT/ HTTP/3\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "the version in lower case",
        "GET http://a.test:PORT/ http/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "another protocol",
        "GET http://a.test:PORT/ ICAP/1.0\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "two blanks before the target",
        "GET  http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "two blanks before the version",
        "GET http://a.test:PORT/  HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a blank behind the version",
        "GET http://a.test:PORT/ HTTP/1.1 \r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a blank before the method",
        " GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "tabs for blanks",
        "GET\thttp://a.test:PORT/\tHTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a fourth word",
        "GET http://a.test:PORT/ HTTP/1.1 x\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a blank in the target",
        "GET http://a.test:PORT/a b HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a method in lower case",
        "get http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a method in mixed case",
        "Get http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a method of 33 letters",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "no method",
        "http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a line that ends in a bare line feed",
        "GET http://a.test:PORT/ HTTP/1.1\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "all lines end in bare line feeds",
        "GET http://a.test:PORT/ HTTP/1.1\nHost: a.test:PORT\nAUTH\n\n",
    ),
    (
        "a bare carriage return in the request line",
        "GET http://a.test:PORT/\r HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a carriage return too many",
        "GET http://a.test:PORT/ HTTP/1.1\r\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a bare carriage return for the line's end",
        "GET http://a.test:PORT/ HTTP/1.1\rHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a fold before the first field",
        "GET http://a.test:PORT/ HTTP/1.1\r\n X: y\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a folded field",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nX: y\r\n z\r\nAUTH\r\n",
    ),
    (
        "a field folded by a tab",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nX: y\r\n\tz\r\nAUTH\r\n",
    ),
    (
        "a folded Host",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost:\r\n a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a line of a blank",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n \r\nAUTH\r\n",
    ),
    (
        "a field without a colon",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nnothing\r\nAUTH\r\n",
    ),
    (
        "a field without a name",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n: x\r\nAUTH\r\n",
    ),
    (
        "a blank before a colon",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost : a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a blank in a field's name",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nX Y: z\r\nAUTH\r\n",
    ),
    (
        "no Host in HTTP/1.1",
        "GET http://a.test:PORT/ HTTP/1.1\r\nAUTH\r\n",
    ),
    (
        "two equal Hosts",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nHost: a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "two Hosts",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nhost: b.test:PORT\r\nAUTH\r\n",
    ),
    (
        "two Hosts in HTTP/1.0",
        "GET http://a.test:PORT/ HTTP/1.0\r\nHost: a.test:PORT\r\nHost: b.test:PORT\r\nAUTH\r\n",
    ),
    (
        "an empty Host",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost:\r\nAUTH\r\n",
    ),
    (
        "a list as Host",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT, b.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a Host with a path",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT/\r\nAUTH\r\n",
    ),
    (
        "a Host with a scheme",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: http://a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a Host with userinfo",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: u@a.test:PORT\r\nAUTH\r\n",
    ),
    (
        "a Host with a blank",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test b.test\r\nAUTH\r\n",
    ),
    (
        "a Host with a percent escape",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a%2etest:PORT\r\nAUTH\r\n",
    ),
    (
        "a Host with a port that is none",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:x\r\nAUTH\r\n",
    ),
    (
        "a Host with port 65536",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:65536\r\nAUTH\r\n",
    ),
    (
        "a Host with a number that looks like an address",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: 2130706433\r\nAUTH\r\n",
    ),
    (
        "two credentials",
        "GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\nAUTH\r\n",
    ),
    (
        "a length in HTTP/1.0 that is none",
        "POST http://a.test:PORT/ HTTP/1.0\r\nAUTH\r\nContent-Length: x\r\n",
    ),
    (
        "an encoding in HTTP/1.0",
        "POST http://a.test:PORT/ HTTP/1.0\r\nAUTH\r\nTransfer-Encoding: chunked\r\n",
    ),
    (
        "an encoding and a length in HTTP/1.0",
        "POST http://a.test:PORT/ HTTP/1.0\r\nAUTH\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    ),
];

/// Targets of a GET that are refused as they stand.
const TARGETS: &[(&str, &str)] = &[
    ("userinfo", "http://user@a.test:PORT/"),
    ("userinfo with a password", "http://user:word@a.test:PORT/"),
    ("empty userinfo", "http://@a.test:PORT/"),
    (
        "an allowed host as userinfo",
        "http://a.test:PORT@b.example/",
    ),
    ("an escaped at sign", "http://b.example%40a.test:PORT/"),
    (
        "a backslash before an at sign",
        "http://b.example\\@a.test:PORT/",
    ),
    ("a backslash for the path", "http://a.test:PORT\\b"),
    ("a backslash for a slash", "http:\\\\a.test:PORT/"),
    ("one slash", "http:/a.test:PORT/"),
    ("no slash", "http:a.test:PORT/"),
    ("three slashes", "http:///a.test:PORT/"),
    ("no host", "http://:PORT/"),
    ("a fragment", "http://a.test:PORT/#f"),
    ("an empty fragment", "http://a.test:PORT/#"),
    ("a fragment in the host", "http://a.test#b.example:PORT/"),
    ("port 0", "http://a.test:0/"),
    ("port 65536", "http://a.test:65536/"),
    ("a port of letters", "http://a.test:http/"),
    ("a negative port", "http://a.test:-1/"),
    ("a port with a plus", "http://a.test:+PORT/"),
    ("two ports", "http://a.test:PORT:80/"),
    ("a percent escape in the host", "http://a%2etest:PORT/"),
    (
        "an escaped NUL in the host",
        "http://a.test%00.b.example:PORT/",
    ),
    ("an underscore of brackets", "http://[a.test]:PORT/"),
    ("an open bracket", "http://[::1:PORT/"),
    ("a comma in the host", "http://a.test,b.example:PORT/"),
    ("a semicolon in the host", "http://a.test;b.example:PORT/"),
    ("two dots", "http://a..test:PORT/"),
    ("a leading dot", "http://.a.test:PORT/"),
    ("two trailing dots", "http://a.test..:PORT/"),
    ("a dot alone", "http://.:PORT/"),
    (
        "a label of 64 bytes",
        "http://aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.test:PORT/",
    ),
    ("punycode that is none", "http://xn--a.test:PORT/"),
    ("the scheme ftp", "ftp://a.test:PORT/"),
    ("the scheme file", "file:///etc/passwd"),
    ("the scheme http2", "http2://a.test:PORT/"),
    ("the scheme gopher", "gopher://a.test:PORT/"),
    ("no scheme", "://a.test:PORT/"),
    ("an authority", "a.test:PORT"),
    ("a host", "a.test"),
    ("an asterisk", "*"),
    ("a question mark", "?"),
    ("a dot", "."),
    ("an escape that is cut", "http://a.test:PORT/%"),
    ("an escape that is none", "http://a.test:PORT/%zz"),
    ("an escaped NUL in the path", "http://a.test:PORT/%00"),
    ("angle brackets in the path", "http://a.test:PORT/<x>"),
    ("a backtick in the path", "http://a.test:PORT/`x"),
    ("a quote in the query", "http://a.test:PORT/?\"x"),
    ("an angle bracket in the query", "http://a.test:PORT/?x>"),
];

#[test]
fn what_could_be_read_in_two_ways_reaches_no_origin() {
    let gateway = Gateway::open();
    let origin = Untouched::listen();
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |case: String, head: &str| {
        let text = fill(head, origin.port(), "bot");
        cases.push((case, format!("{text}\r\nhello").into_bytes()));
    };
    for (case, fields) in FRAMING {
        add((*case).to_owned(), &format!("{POST}{fields}"));
        // An interesting field is as dangerous on a GET.
        add(format!("{case}, on a GET"), &format!("{GET}{fields}"));
    }
    for (case, head) in HEADS {
        add((*case).to_owned(), head);
    }
    for (case, target) in TARGETS {
        let head = format!("GET {target} HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n");
        add(format!("target: {case}"), &head);
    }
    cases.extend(control_bytes(origin.port()));
    let count = cases.len();
    assert!(count > 300, "only {count} cases");

    for (case, bytes) in &cases {
        let (refused, mut client) = ask_lossy(&gateway, bytes);
        assert_eq!(refused.status, 400, "{case}: {}", refused.reason);
        assert!(
            matches!(refused.refusal(), "bad_request" | "host_mismatch"),
            "{case}: {}",
            refused.refusal()
        );
        assert!(client.closes(), "{case}: the connection is closed");
        origin.check(case);
    }
    assert!(gateway.names().asked().is_empty(), "nobody was resolved");
    let records = gateway.stop();
    assert_eq!(records.len(), count, "one record each");
    for record in &records {
        assert_eq!(record["status"], 400);
        assert_eq!(record["action_allowed"], false);
    }
}

/// Bytes that no method, target, version, name or value may have, each in each
/// of these places.
fn control_bytes(port: u16) -> Vec<(String, Vec<u8>)> {
    let text = fill(&format!("{GET}X-Na: va\r\n\r\n"), port, "bot");
    let mut cases = Vec::new();
    for (place, before) in [
        ("method", "GE"),
        ("target", "a.test"),
        ("version", "HTTP/"),
        ("name", "X-N"),
        ("value", "X-Na: v"),
        ("Host", "Host: a"),
    ] {
        let at = text.find(before).expect("the place is there") + before.len();
        for byte in (0..=0x20_u8).chain(0x7f..=0xff) {
            // A value may have blanks, tabs and what is not ASCII.
            if place == "value" && matches!(byte, b' ' | b'\t' | 0x80..) {
                continue;
            }
            let mut bytes = text.as_bytes().to_vec();
            bytes.insert(at, byte);
            cases.push((format!("byte {byte:#04x} in the {place}"), bytes));
        }
    }
    for byte in *b"\"(),/;<=>?@[\\]{}" {
        let mut bytes = text.as_bytes().to_vec();
        let at = text.find("X-N").expect("the name is there") + 3;
        bytes.insert(at, byte);
        cases.push((format!("{:?} in the name", char::from(byte)), bytes));
    }
    cases
}

#[test]
fn what_is_no_http_gets_an_answer_that_says_so() {
    let gateway = Gateway::open();
    let hello = crate::support::tls::Hello::to("a.test").bytes();
    for (case, bytes) in [
        ("a TLS ClientHello", &hello[..]),
        ("a NUL", b"\0"),
        ("SOCKS 5", b"\x05\x01\x00"),
        ("SOCKS 4", b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00"),
        ("a tab", b"\tGET / HTTP/1.1\r\n\r\n"),
        ("a line feed", b"\nGET / HTTP/1.1\r\n\r\n"),
        (
            "the PROXY protocol",
            b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n\r\n",
        ),
        ("SSH", b"SSH-2.0-OpenSSH_9\r\n\r\n"),
        ("an empty request line", b" \r\n\r\n"),
        (
            "an HTTP/2 preface that goes wrong",
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        ),
    ] {
        let (refused, mut client) = ask_lossy(&gateway, bytes);
        assert_eq!(refused.status, 400, "{case}");
        assert_eq!(refused.json()["error"], "bad_request", "{case}");
        assert!(client.closes(), "{case}: the connection is closed");
    }
}

#[test]
fn a_host_field_must_name_the_host_of_the_target() {
    let gateway = Gateway::open();
    let origin = Untouched::listen();
    for (case, host, version) in [
        ("another host", "b.test:PORT", "1.1"),
        ("another port", "a.test:1", "1.1"),
        ("port 80 for another", "a.test:80", "1.1"),
        ("a subdomain", "x.a.test:PORT", "1.1"),
        ("the domain above", "test:PORT", "1.1"),
        ("a longer name", "a.test.example:PORT", "1.1"),
        ("this machine", "localhost:PORT", "1.1"),
        ("its address", "127.0.0.1:PORT", "1.1"),
        ("its address by IPv6", "[::1]:PORT", "1.1"),
        ("another host, without a port", "b.test", "1.1"),
        ("another host in HTTP/1.0", "b.test:PORT", "1.0"),
    ] {
        let head =
            format!("GET http://a.test:PORT/ HTTP/{version}\r\nHost: {host}\r\nAUTH\r\n\r\n");
        let (refused, mut client) = ask_lossy(&gateway, fill(&head, origin.port(), "bot"));
        assert_eq!(
            (refused.status, refused.refusal()),
            (400, "host_mismatch"),
            "{case}"
        );
        assert!(client.closes(), "{case}: the connection is closed");
        origin.check(case);
    }
}

#[test]
fn https_in_absolute_form_is_refused_with_what_to_do() {
    let gateway = Gateway::open();
    for target in [
        "https://a.test/",
        "HTTPS://a.test:443/x?y",
        "https://a.test:80/",
        "wss://a.test/",
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: a.test\r\nAUTH\r\n\r\n");
        let (refused, mut client) = ask_lossy(&gateway, fill(&head, 0, "bot"));
        assert_eq!(refused.status, 400, "{target}");
        assert_eq!(refused.refusal(), "https_needs_connect", "{target}");
        let hint = refused.json()["hint"].to_string();
        assert!(hint.contains("CONNECT"), "{hint}");
        assert!(client.closes(), "{target}");
    }
}

#[test]
fn heads_are_bounded() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let target = |bytes: usize| {
        let mut target = format!("http://a.test:{}/", origin.port());
        target.push_str(&"a".repeat(bytes - target.len()));
        format!("GET {target} HTTP/1.1\r\nHost: a.test:PORT\r\nAUTH\r\n\r\n")
    };
    let head = |bytes: usize| {
        let start = fill(&format!("{GET}X: "), origin.port(), "bot");
        let filler = "a".repeat(bytes - start.len() - 4);
        format!("{start}{filler}\r\n\r\n")
    };
    let fields = |count: usize| {
        // Host and the credential are two of them.
        format!("{GET}{}\r\n", "X: y\r\n".repeat(count - 2))
    };
    for (case, template, status, word) in [
        ("a target of 8,192 bytes", target(8192), 200, ""),
        (
            "a target of 8,193 bytes",
            target(8193),
            414,
            "target_too_long",
        ),
        (
            "a target of 30,000 bytes",
            target(30_000),
            414,
            "target_too_long",
        ),
        (
            "a target of 100,000 bytes",
            target(100_000),
            414,
            "target_too_long",
        ),
        ("a head of 32,768 bytes", head(32_768), 200, ""),
        (
            "a head of 32,769 bytes",
            head(32_769),
            431,
            "head_too_large",
        ),
        (
            "a head of 200,000 bytes",
            head(200_000),
            431,
            "head_too_large",
        ),
        ("200 fields", fields(200), 200, ""),
        ("201 fields", fields(201), 431, "head_too_large"),
        ("5,000 fields", fields(5000), 431, "head_too_large"),
        (
            "a name of 9,000 bytes",
            format!("{GET}{}: y\r\n\r\n", "X".repeat(9000)),
            200,
            "",
        ),
    ] {
        let reached = origin.requests().len();
        let (answer, _) = ask_lossy(&gateway, fill(&template, origin.port(), "bot"));
        assert_eq!(answer.status, status, "{case}: {}", answer.reason);
        assert_eq!(answer.refusal(), word, "{case}");
        let passed = origin.requests().len() - reached;
        assert_eq!(passed, usize::from(status == 200), "{case}");
    }
}

#[test]
fn a_head_that_never_ends_is_cut_off() {
    let gateway = Gateway::start(LOOPBACK_POLICY, &[("timeouts.header", "200ms")]);
    for (case, bytes) in [
        ("a letter", "G"),
        ("a request line", "GET http://a.test/ HTTP/1.1\r\n"),
        ("a field", "GET http://a.test/ HTTP/1.1\r\nHost: a.t"),
        (
            "all but the last line feed",
            "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r",
        ),
        ("half an HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\n"),
        ("empty lines", "\r\n\r\n\r\n"),
    ] {
        let (refused, mut client) = ask_lossy(&gateway, bytes);
        assert_eq!(
            (refused.status, refused.refusal()),
            (408, "header_timeout"),
            "{case}"
        );
        assert!(client.closes(), "{case}: the connection is closed");
    }
    assert_eq!(gateway.stop().len(), 6, "one record each");
}

#[test]
fn a_head_may_come_byte_by_byte() {
    let gateway = Gateway::open();
    let origin = Origin::ok();
    let mut client = gateway.connect();
    // Empty lines before a request are skipped (RFC 9112 section 2.2).
    for byte in format!("\r\n\r\n{}", get("/slow", origin.port(), "bot")).bytes() {
        client.send([byte]);
    }
    assert_eq!(client.response().status, 200);
    assert_eq!(origin.last().asks(), ("GET", "/slow"));
}

/// Chunked bodies that are wrong (RFC 9112 section 7.1). The head is in order
/// and passes; what must not happen is that the origin gets a whole request,
/// or that what stands behind it is taken for another one.
#[test]
fn a_chunked_body_that_is_wrong_is_no_whole_request() {
    let gateway = Gateway::open();
    let (send, got) = mpsc::channel();
    let send = std::sync::Mutex::new(send);
    let origin = Origin::serve(move |mut conn, _| {
        let bytes = conn.until(b"0\r\n\r\n");
        let sender = send.lock().expect("no origin has failed");
        sender.send(bytes).expect("the test waits");
        conn.send_lossy("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    let smuggled = fill(
        &get("/smuggled", origin.port(), "bot"),
        origin.port(),
        "bot",
    );
    for (case, body) in [
        ("a size that is no number", "x\r\nhello\r\n0\r\n\r\n"),
        ("an empty size", "\r\nhello\r\n0\r\n\r\n"),
        ("a negative size", "-5\r\nhello\r\n0\r\n\r\n"),
        ("a size with a plus", "+5\r\nhello\r\n0\r\n\r\n"),
        ("a size with 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("a size with an underscore", "0_5\r\nhello\r\n0\r\n\r\n"),
        (
            "a size of 2^64 + 5",
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "a size of forty digits",
            "0000000000000000000000000000000000000005z\r\nhello\r\n0\r\n\r\n",
        ),
        ("a blank before the size", " 5\r\nhello\r\n0\r\n\r\n"),
        ("a size in other digits", "\u{ff15}\r\nhello\r\n0\r\n\r\n"),
        ("a size with a NUL", "5\0\r\nhello\r\n0\r\n\r\n"),
        (
            "a size that ends in a bare line feed",
            "5\nhello\r\n0\r\n\r\n",
        ),
        (
            "a size that ends in a bare carriage return",
            "5\rhello\r\n0\r\n\r\n",
        ),
        (
            "an extension with a bare line feed",
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
        ),
        ("more data than the size", "4\r\nhello\r\n0\r\n\r\n"),
        ("less data than the size", "6\r\nhello\r\n0\r\n\r\n"),
        ("no line end behind the data", "5\r\nhello0\r\n\r\n"),
        ("a bare line feed behind the data", "5\r\nhello\n0\r\n\r\n"),
        ("the end is cut off", "5\r\nhello\r\n0\r\n"),
        (
            "the last chunk ends in a bare line feed",
            "5\r\nhello\r\n0\n\r\n",
        ),
    ] {
        let head = fill(
            &format!("{POST}Transfer-Encoding: chunked\r\n\r\n"),
            origin.port(),
            "bot",
        );
        let mut client = gateway.connect();
        client.send_lossy(format!("{head}{body}{smuggled}"));
        let _ = client.stream().shutdown(std::net::Shutdown::Write);
        let answer = client.rest();
        let answer = String::from_utf8_lossy(&answer);
        // The head goes on before the body is seen to be wrong; the origin's
        // connection then ends in the middle of the body.
        let got = got.recv_timeout(crate::support::DEADLINE);
        let got = got.expect("the head has gone on");
        let text = String::from_utf8_lossy(&got);
        assert!(
            !text.ends_with("\r\n0\r\n\r\n"),
            "{case}: the origin got a whole request: {text}"
        );
        assert!(!text.contains("smuggled"), "{case}: {text}");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{case}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{case}: {answer}");
    }
}

#[test]
fn a_body_that_is_cut_off_is_no_whole_request() {
    let gateway = Gateway::open();
    let (send, got) = mpsc::channel();
    let send = std::sync::Mutex::new(send);
    let origin = Origin::serve(move |mut conn, _| {
        let bytes = conn.rest();
        let sender = send.lock().expect("no origin has failed");
        sender.send(bytes).expect("the test waits");
    });
    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
    for (case, fields, body) in [
        ("before any chunk", CHUNKED, ""),
        ("in a size", CHUNKED, "5"),
        ("in a chunk", CHUNKED, "5\r\nhel"),
        ("behind a chunk", CHUNKED, "5\r\nhello\r\n"),
        ("in the last chunk", CHUNKED, "5\r\nhello\r\n0"),
        ("behind the last chunk", CHUNKED, "5\r\nhello\r\n0\r\n"),
        ("in a trailer", CHUNKED, "5\r\nhello\r\n0\r\nX: y"),
        ("behind a trailer", CHUNKED, "5\r\nhello\r\n0\r\nX: y\r\n"),
        (
            "before the last line feed",
            CHUNKED,
            "5\r\nhello\r\n0\r\n\r",
        ),
        ("in a body with a length", "Content-Length: 9\r\n", "hello"),
    ] {
        let head = fill(&format!("{POST}{fields}\r\n"), origin.port(), "bot");
        let mut client = gateway.connect();
        client.send(format!("{head}{body}"));
        client.finish();
        let answer = client.rest();
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains(" 200 "), "{case}: {answer}");
        let got = got.recv_timeout(crate::support::DEADLINE);
        let got = got.expect("the head has gone on");
        let text = String::from_utf8_lossy(&got);
        assert!(
            !text.ends_with("\r\n0\r\n\r\n"),
            "{case}: the origin got a whole request: {text}"
        );
    }
}

#[test]
fn what_stands_behind_a_body_is_the_next_request() {
    let gateway = Gateway::open();
    let origin = Origin::http(|head, body| {
        let text = format!("{} {}", head.asks().1, String::from_utf8_lossy(body));
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        )
        .into_bytes()
    });
    for (case, fields, body, expected) in [
        ("a length", "Content-Length: 5\r\n", "hello", "/ hello"),
        (
            "a length with zeros in front",
            "Content-Length: 0005\r\n",
            "hello",
            "/ hello",
        ),
        ("a length of zero", "Content-Length: 0\r\n", "", "/ "),
        ("no body", "", "", "/ "),
        (
            "chunks",
            "Transfer-Encoding: chunked\r\n",
            "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            "/ hello",
        ),
        (
            "chunked in capitals",
            "Transfer-Encoding: CHUNKED\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "/ hello",
        ),
        (
            "a size with zeros in front",
            "Transfer-Encoding: chunked\r\n",
            "0005\r\nhello\r\n000\r\n\r\n",
            "/ hello",
        ),
        (
            "a size in capitals",
            "Transfer-Encoding: chunked\r\n",
            "A\r\nhellohello\r\n0\r\n\r\n",
            "/ hellohello",
        ),
        (
            "chunk extensions",
            "Transfer-Encoding: chunked\r\n",
            "5;a=b;c=\"d\"\r\nhello\r\n0;e\r\n\r\n",
            "/ hello",
        ),
        (
            "trailers",
            "Transfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
            "/ hello",
        ),
        (
            "a body that looks like a request",
            "Content-Length: 35\r\n",
            "GET http://b.example/ HTTP/1.1\r\n\r\nx",
            "/ GET http://b.example/ HTTP/1.1\r\n\r\nx",
        ),
    ] {
        let head = fill(&format!("{POST}{fields}\r\n"), origin.port(), "bot");
        let next = get("/next", origin.port(), "bot");
        let mut client = gateway.connect();
        client.send(format!("{head}{body}{next}"));
        let first = client.response();
        assert_eq!(
            (first.status, String::from_utf8_lossy(&first.body).as_ref()),
            (200, expected),
            "{case}"
        );
        let second = client.response();
        assert_eq!(second.body, b"/next ", "{case}");
        // However it came, it goes on in one form.
        let heads = origin.requests();
        let sent = &heads[heads.len() - 2].0;
        assert!(
            sent.all("content-length").len() + sent.all("transfer-encoding").len() <= 1,
            "{case}: {sent:?}"
        );
    }
}

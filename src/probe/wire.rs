//! The few bytes that a probe sends, and what is read of the answers. No
//! sockets: only bytes.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, RootCertStore};

use crate::adapters::trust;

/// The most bytes of a response's head.
pub(super) const MAX_HEAD: usize = 16 * 1024;

/// A QUIC packet is padded to this, or servers must not answer (RFC 9000, 14.1).
const QUIC_INITIAL_BYTES: usize = 1200;

/// A question for the IPv4 addresses of a name (RFC 1035, 4.1), recursion
/// desired. `None` for what is no name.
pub(super) fn dns_query(id: u16, name: &str) -> Option<Vec<u8>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut query = Vec::with_capacity(18 + name.len());
    query.extend(id.to_be_bytes());
    query.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    if name.is_empty() || name.len() > 253 {
        return None;
    }
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok();
        let length = length.filter(|length| (1..=63).contains(length))?;
        query.push(length);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    Some(query)
}

/// What a name server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DnsAnswer {
    /// So many records.
    Records(u16),
    /// No such name.
    NoSuchName,
    /// It failed.
    Failed,
    /// It does not want to.
    Refused,
    /// Another response code.
    Other(u8),
}

/// Reads the header of an answer to the question `id`; `None` for anything else.
pub(super) fn dns_answer(id: u16, bytes: &[u8]) -> Option<DnsAnswer> {
    let header: &[u8; 12] = bytes.first_chunk()?;
    if header[..2] != id.to_be_bytes() || header[2] & 0x80 == 0 {
        return None;
    }
    Some(match header[3] & 0x0f {
        0 => DnsAnswer::Records(u16::from_be_bytes([header[6], header[7]])),
        2 => DnsAnswer::Failed,
        3 => DnsAnswer::NoSuchName,
        5 => DnsAnswer::Refused,
        code => DnsAnswer::Other(code),
    })
}

/// A QUIC packet with a version that nobody speaks (RFC 9000, 15), which every
/// server answers with those that it does, without keeping anything of it.
pub(super) fn quic_initial(random: [u8; 16]) -> Vec<u8> {
    let (destination, source) = random.split_at(8);
    let mut packet = vec![0xc3, 0x1a, 0x2a, 0x3a, 0x4a, 8];
    packet.extend(destination);
    packet.push(8);
    packet.extend(source);
    packet.resize(QUIC_INITIAL_BYTES, 0);
    packet
}

/// An ICMP echo request (RFC 792; RFC 4443, 4.1) that carries `nonce`.
///
/// Of a ping socket the kernel writes identifier and checksum anew; of a raw
/// one it does so only for IPv6.
pub(super) fn echo_request(v6: bool, nonce: [u8; 16]) -> Vec<u8> {
    let mut packet = vec![if v6 { 128 } else { 8 }, 0, 0, 0, nonce[0], nonce[1], 0, 1];
    packet.extend(nonce);
    if !v6 {
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
    }
    packet
}

/// Whether it is the reply to the request with this nonce. A raw IPv4 socket
/// also gives the IP header, and a request to this very host.
pub(super) fn is_echo_reply(v6: bool, nonce: [u8; 16], bytes: &[u8]) -> bool {
    let Some(at) = bytes.windows(nonce.len()).position(|part| part == nonce) else {
        return false;
    };
    let kind = at.checked_sub(8).and_then(|start| bytes.get(start));
    kind == Some(if v6 { &129 } else { &0 })
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// A TLS ClientHello that names this server; none for an address.
///
/// # Errors
/// What is wrong with the name.
pub(super) fn client_hello(server: &str) -> Result<Vec<u8>, String> {
    let name = ServerName::try_from(server.to_owned()).map_err(|error| error.to_string())?;
    // It trusts nobody, which does not matter: no handshake gets so far.
    let config = trust::with_roots(Arc::new(RootCertStore::empty()))?;
    let mut connection = ClientConnection::new(config, name).map_err(|error| error.to_string())?;
    let mut hello = Vec::new();
    while connection.wants_write() {
        connection
            .write_tls(&mut hello)
            .map_err(|error| error.to_string())?;
    }
    Ok(hello)
}

/// The head of a response, as far as a probe needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The status.
    pub(super) status: u16,
    /// Why the gateway refuses: its `X-AgentPort-Reason`.
    pub(super) reason: Option<String>,
}

/// Reads the head of a response; `None` where it is not HTTP/1.
pub(super) fn read_answer(head: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    first.next().filter(|word| word.starts_with("HTTP/1."))?;
    let status = first.next().filter(|word| word.len() == 3)?;
    let status = status.parse().ok().filter(|status| *status >= 100)?;
    let plain = |b: char| b.is_ascii_alphanumeric() || b == '_' || b == '-';
    let reason = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("x-agentport-reason"))
        .map(|(_, value)| {
            value
                .trim()
                .chars()
                .take(64)
                .filter(|b| plain(*b))
                .collect()
        });
    Some(Answer { status, reason })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::egress::hello::{self, HelloProgress};

    #[test]
    fn a_question_is_what_a_name_server_reads() {
        let query = dns_query(0x1234, "example.com.").expect("a name");
        assert_eq!(
            query,
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01"
        );
        for name in ["", ".", "a..b", &"a".repeat(64), &"a.".repeat(200)] {
            assert_eq!(dns_query(1, name), None, "{name:?}");
        }
    }

    #[test]
    fn answers_of_name_servers() {
        for (case, bytes, expected) in [
            (
                "two records",
                &b"\x00\x07\x81\x80\0\x01\0\x02\0\0\0\0rest"[..],
                Some(DnsAnswer::Records(2)),
            ),
            (
                "no such name",
                b"\x00\x07\x81\x83\0\x01\0\0\0\0\0\0",
                Some(DnsAnswer::NoSuchName),
            ),
            (
                "failed",
                b"\x00\x07\x81\x82\0\x01\0\0\0\0\0\0",
                Some(DnsAnswer::Failed),
            ),
            (
                "refused",
                b"\x00\x07\x81\x85\0\x01\0\0\0\0\0\0",
                Some(DnsAnswer::Refused),
            ),
            (
                "not implemented",
                b"\x00\x07\x81\x84\0\x01\0\0\0\0\0\0",
                Some(DnsAnswer::Other(4)),
            ),
            (
                "the question itself, come back",
                b"\x00\x07\x01\x00\0\x01\0\0\0\0\0\0",
                None,
            ),
            ("another's", b"\x00\x08\x81\x80\0\x01\0\x02\0\0\0\0", None),
            ("cut off", b"\x00\x07\x81\x80\0\x01\0\x02\0\0\0", None),
        ] {
            assert_eq!(dns_answer(7, bytes), expected, "{case}");
        }
    }

    #[test]
    fn a_quic_packet_that_must_be_answered() {
        let packet = quic_initial([9; 16]);
        assert_eq!(packet.len(), QUIC_INITIAL_BYTES);
        assert_eq!(packet[0] & 0xc0, 0xc0, "a long header");
        assert!(
            packet[1..5].iter().all(|byte| byte & 0x0f == 0x0a),
            "a version of the pattern 0x?a?a?a?a"
        );
        assert_eq!((packet[5], packet[14]), (8, 8), "two connection ids");
    }

    #[test]
    fn only_the_reply_to_this_echo_counts() {
        let nonce = *b"0123456789abcdef";
        let request = echo_request(false, nonce);
        assert_eq!(checksum(&request), 0, "the checksum holds");
        assert!(!is_echo_reply(false, nonce, &request), "the request");
        let mut reply = request.clone();
        reply[0] = 0;
        assert!(is_echo_reply(false, nonce, &reply));
        let mut with_header = vec![0x45; 20];
        with_header.extend(&reply);
        assert!(is_echo_reply(false, nonce, &with_header), "a raw socket's");
        assert!(!is_echo_reply(false, *b"fedcba9876543210", &reply));
        let mut v6 = echo_request(true, nonce);
        assert!(!is_echo_reply(true, nonce, &v6));
        v6[0] = 129;
        assert!(is_echo_reply(true, nonce, &v6));
    }

    #[test]
    fn the_hello_names_the_server() {
        let bytes = client_hello("other.example").expect("a name");
        match hello::progress(&bytes) {
            Ok(HelloProgress::Complete(found)) => {
                assert_eq!(found.server_name.as_deref(), Some("other.example"));
            }
            other => panic!("no complete ClientHello: {other:?}"),
        }
    }

    #[test]
    fn heads_of_responses() {
        let answer = |status, reason: Option<&str>| Answer {
            status,
            reason: reason.map(str::to_owned),
        };
        for (case, head, expected) in [
            (
                "a refusal of the gateway",
                &b"HTTP/1.1 403 AgentPort: no_rule a.b rid=1\r\nx-agentport-reason: no_rule\r\n\r\n"
                    [..],
                Some(answer(403, Some("no_rule"))),
            ),
            (
                "a tunnel",
                b"HTTP/1.1 200 Connection Established\r\n\r\n",
                Some(answer(200, None)),
            ),
            (
                "a reason that would write on a terminal",
                b"HTTP/1.1 403 No\r\nX-AgentPort-Reason: a\x1b[31mb\r\n\r\n",
                Some(answer(403, Some("a31mb"))),
            ),
            ("HTTP/2", b"HTTP/2 200\r\n\r\n", None),
            ("no number", b"HTTP/1.1 +20 OK\r\n\r\n", None),
            ("another protocol", b"SSH-2.0-x\r\n", None),
            ("nothing", b"", None),
        ] {
            assert_eq!(read_answer(head), expected, "{case}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_from_outside_break_a_reader(bytes: Vec<u8>, id: u16, nonce: [u8; 16]) {
            dns_answer(id, &bytes);
            read_answer(&bytes);
            is_echo_reply(false, nonce, &bytes);
            is_echo_reply(true, nonce, &bytes);
        }
    }
}

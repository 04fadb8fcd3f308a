//! The PROXY protocol (versions 1 and 2): the header that a load balancer puts
//! before a connection to say whose it is.
//!
//! It is read a few bytes at a time, and never past its end: what comes behind
//! it is TLS or HTTP, and somebody else's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The most bytes of a header. The addresses take 52 at most; the rest is room
/// for what balancers add behind them, which is passed over.
pub const MAX_PROXY_HEADER_BYTES: usize = 4096;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// Whose connection it is.
    Client(SocketAddr),
    /// The balancer's own, such as a health check, or one whose origin it does
    /// not know.
    Own,
}

/// How far the reading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeaderProgress {
    /// At least so many more bytes belong to the header.
    More(usize),
    /// The bytes are a header, whole.
    Complete(ProxyHeader),
}

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyHeaderError {
    /// The bytes begin as neither version does.
    #[error("the connection does not begin with a PROXY protocol header")]
    Missing,
    /// A header of version 1 that is not as section 2.1 has it.
    #[error("the PROXY protocol header of version 1 is malformed")]
    Version1,
    /// A header of version 2 that is not as section 2.2 has it.
    #[error("the PROXY protocol header of version 2 is malformed")]
    Version2,
    /// Over [`MAX_PROXY_HEADER_BYTES`], or 107 in version 1.
    #[error("the PROXY protocol header is too long")]
    TooLong,
    /// It speaks for something else than a TCP connection.
    #[error("the PROXY protocol header is for datagrams")]
    Datagram,
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, the command, the family and the length.
const V2_FIXED: usize = 16;
const V1_PREFIX: &[u8] = b"PROXY ";
const V1_SHORTEST: usize = b"PROXY UNKNOWN\r\n".len();
const V1_LONGEST: usize = 107;

/// Looks at the bytes so far. Whoever reads exactly as many more as
/// [`ProxyHeaderProgress::More`] says, until it is complete, has read the
/// header and nothing behind it.
///
/// # Errors
/// [`ProxyHeaderError`].
pub fn progress(bytes: &[u8]) -> Result<ProxyHeaderProgress, ProxyHeaderError> {
    let is_v2 = begins(bytes, SIGNATURE);
    if !is_v2 && !begins(bytes, V1_PREFIX) {
        return Err(ProxyHeaderError::Missing);
    }
    // Either version has at least so many.
    if bytes.len() < V1_SHORTEST {
        return Ok(ProxyHeaderProgress::More(V1_SHORTEST - bytes.len()));
    }
    if is_v2 {
        version2(bytes)
    } else {
        version1(bytes)
    }
}

/// Whether the bytes and the prefix agree as far as both go.
fn begins(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.iter().zip(prefix).all(|(left, right)| left == right)
}

fn version1(bytes: &[u8]) -> Result<ProxyHeaderProgress, ProxyHeaderError> {
    let Some(line) = bytes.strip_suffix(b"\r\n") else {
        if bytes.len() >= V1_LONGEST {
            return Err(ProxyHeaderError::TooLong);
        }
        if bytes.contains(&b'\n') {
            return Err(ProxyHeaderError::Version1);
        }
        let more = if bytes.ends_with(b"\r") { 1 } else { 2 };
        return Ok(ProxyHeaderProgress::More(more));
    };
    let text = std::str::from_utf8(line).map_err(|_| ProxyHeaderError::Version1)?;
    let words: Vec<&str> = text.split(' ').collect();
    let header = match words.as_slice() {
        // What follows the word is to be ignored.
        ["PROXY", "UNKNOWN", ..] => Some(ProxyHeader::Own),
        ["PROXY", family, source, destination, from, to] => {
            client(family, source, destination, from, to).map(ProxyHeader::Client)
        }
        _ => None,
    };
    header
        .map(ProxyHeaderProgress::Complete)
        .ok_or(ProxyHeaderError::Version1)
}

fn client(
    family: &str,
    source: &str,
    destination: &str,
    from: &str,
    to: &str,
) -> Option<SocketAddr> {
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (source, _) = (address(source)?, address(destination)?);
    let (from, _) = (port(from)?, port(to)?);
    Some(SocketAddr::new(source, from))
}

/// Digits alone, without zeros before them.
fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let padded = text.len() > 1 && text.starts_with('0');
    text.parse().ok().filter(|_| digits && !padded)
}

fn version2(bytes: &[u8]) -> Result<ProxyHeaderProgress, ProxyHeaderError> {
    let Some((fixed, rest)) = bytes.split_at_checked(V2_FIXED) else {
        return Ok(ProxyHeaderProgress::More(V2_FIXED - bytes.len()));
    };
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if V2_FIXED + length > MAX_PROXY_HEADER_BYTES {
        return Err(ProxyHeaderError::TooLong);
    }
    if rest.len() < length {
        return Ok(ProxyHeaderProgress::More(length - rest.len()));
    }
    if rest.len() > length {
        return Err(ProxyHeaderError::Version2);
    }
    let header = match (fixed[12], fixed[13]) {
        (0x20, _) => ProxyHeader::Own,
        (0x21, 0x11) => {
            let [a, b, c, d, _, _, _, _, p, q, ..] = *rest else {
                return Err(ProxyHeaderError::Version2);
            };
            let port = u16::from_be_bytes([p, q]);
            if rest.len() < 12 {
                return Err(ProxyHeaderError::Version2);
            }
            ProxyHeader::Client(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port))
        }
        (0x21, 0x21) => {
            let (Some(source), Some(port), true) =
                (rest.first_chunk::<16>(), rest.get(32..34), rest.len() >= 36)
            else {
                return Err(ProxyHeaderError::Version2);
            };
            let port = u16::from_be_bytes([port[0], port[1]]);
            ProxyHeader::Client(SocketAddr::new(Ipv6Addr::from(*source).into(), port))
        }
        // Unspecified, or from a Unix socket at the balancer.
        (0x21, 0x00 | 0x31) => ProxyHeader::Own,
        (0x21, 0x12 | 0x22 | 0x32) => return Err(ProxyHeaderError::Datagram),
        _ => return Err(ProxyHeaderError::Version2),
    };
    Ok(ProxyHeaderProgress::Complete(header))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ppp::v2::{Addresses, Builder, Command, Protocol, Version};

    /// Reads as a connection does, and gives how many bytes it took.
    fn read(bytes: &[u8]) -> (Result<Option<ProxyHeader>, ProxyHeaderError>, usize) {
        let mut have = 0;
        loop {
            match progress(&bytes[..have]) {
                Ok(ProxyHeaderProgress::More(more)) if have + more <= bytes.len() => have += more,
                Ok(ProxyHeaderProgress::More(_)) => return (Ok(None), have),
                Ok(ProxyHeaderProgress::Complete(header)) => return (Ok(Some(header)), have),
                Err(error) => return (Err(error), have),
            }
        }
    }

    #[test]
    fn version_1_is_read_to_its_end_and_no_further() {
        let address = |text: &str| Ok(Some(ProxyHeader::Client(text.parse().expect("one"))));
        let malformed = Err(ProxyHeaderError::Version1);
        for (line, expected) in [
            (
                "PROXY TCP4 192.0.2.1 198.51.100.2 1024 443\r\n",
                address("192.0.2.1:1024"),
            ),
            (
                "PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n",
                address("[2001:db8::1]:1"),
            ),
            ("PROXY UNKNOWN\r\n", Ok(Some(ProxyHeader::Own))),
            (
                "PROXY UNKNOWN ffff::1 x 1 2\r\n",
                Ok(Some(ProxyHeader::Own)),
            ),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 1024 443\n", malformed),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 01024 443\r\n", malformed),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 +1024 443\r\n", malformed),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n", malformed),
            ("PROXY TCP4  192.0.2.1 198.51.100.2 1024 443\r\n", malformed),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 1024 443 \r\n", malformed),
            ("PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n", malformed),
            ("PROXY TCP6 192.0.2.1 198.51.100.2 1024 443\r\n", malformed),
            ("PROXY UDP4 192.0.2.1 198.51.100.2 1024 443\r\n", malformed),
            (
                "PROXY\tTCP4 192.0.2.1 198.51.100.2 1 443\r\n",
                Err(ProxyHeaderError::Missing),
            ),
            (
                "proxy TCP4 192.0.2.1 198.51.100.2 1 443\r\n",
                Err(ProxyHeaderError::Missing),
            ),
            ("GET / HTTP/1.1\r\n", Err(ProxyHeaderError::Missing)),
        ] {
            let behind = format!("{line}GET / HTTP/1.1\r\n\r\n");
            let (found, took) = read(behind.as_bytes());
            assert_eq!(found, expected, "{line:?}");
            if found.is_ok() {
                assert_eq!(took, line.len(), "{line:?}");
            }
        }
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(200));
        assert_eq!(read(long.as_bytes()).0, Err(ProxyHeaderError::TooLong));
    }

    /// A header that an independent implementation has written.
    fn written(
        command: Command,
        protocol: Protocol,
        addresses: Addresses,
        extra: usize,
    ) -> Vec<u8> {
        let mut builder = Builder::with_addresses(Version::Two | command, protocol, addresses);
        if extra > 0 {
            builder = builder.write_tlv(0x04u8, &vec![7; extra]).expect("a TLV");
        }
        builder.build().expect("a header")
    }

    fn pair(source: &str, destination: &str) -> Addresses {
        let of = |text: &str| text.parse::<SocketAddr>().expect("an address");
        (of(source), of(destination)).into()
    }

    #[test]
    fn version_2_as_another_implementation_writes_it() {
        let v4 = || pair("192.0.2.1:1024", "198.51.100.2:443");
        let v6 = || pair("[2001:db8::1]:7", "[2001:db8::2]:8");
        let own = Ok(Some(ProxyHeader::Own));
        let client = |text: &str| Ok(Some(ProxyHeader::Client(text.parse().expect("one"))));
        use Protocol::{Datagram, Stream, Unspecified};
        for (name, header, expected) in [
            (
                "IPv4",
                written(Command::Proxy, Stream, v4(), 0),
                client("192.0.2.1:1024"),
            ),
            (
                "with more behind it",
                written(Command::Proxy, Stream, v4(), 700),
                client("192.0.2.1:1024"),
            ),
            (
                "IPv6",
                written(Command::Proxy, Stream, v6(), 3),
                client("[2001:db8::1]:7"),
            ),
            (
                "a health check",
                written(Command::Local, Unspecified, Addresses::Unspecified, 0),
                own,
            ),
            (
                "a health check with addresses",
                written(Command::Local, Stream, v4(), 0),
                own,
            ),
            (
                "unspecified",
                written(Command::Proxy, Unspecified, Addresses::Unspecified, 0),
                own,
            ),
            (
                "datagrams",
                written(Command::Proxy, Datagram, v4(), 0),
                Err(ProxyHeaderError::Datagram),
            ),
            (
                "longer than is read",
                written(Command::Proxy, Stream, v4(), 5000),
                Err(ProxyHeaderError::TooLong),
            ),
        ] {
            let mut behind = header.clone();
            behind.extend_from_slice(b"\x16\x03\x01");
            let (found, took) = read(&behind);
            assert_eq!(found, expected, "{name}");
            if found.is_ok() {
                assert_eq!(took, header.len(), "{name}");
            }
        }
    }

    #[test]
    fn version_2_that_does_not_fit_is_refused() {
        let good = written(
            Command::Proxy,
            Protocol::Stream,
            pair("192.0.2.1:1", "192.0.2.2:2"),
            0,
        );
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let mut short = with(15, 11);
        short.pop();
        for (name, bytes, error) in [
            (
                "version 1 in the binary form",
                with(12, 0x11),
                ProxyHeaderError::Version2,
            ),
            (
                "an unknown command",
                with(12, 0x22),
                ProxyHeaderError::Version2,
            ),
            (
                "an unknown family",
                with(13, 0x41),
                ProxyHeaderError::Version2,
            ),
            (
                "IPv6 with room for IPv4",
                with(13, 0x21),
                ProxyHeaderError::Version2,
            ),
            ("addresses cut short", short, ProxyHeaderError::Version2),
            (
                "another signature",
                with(11, b'x'),
                ProxyHeaderError::Missing,
            ),
        ] {
            assert_eq!(read(&bytes).0, Err(error), "{name}");
        }
        for length in 0..good.len() {
            assert_eq!(read(&good[..length]).0, Ok(None), "cut to {length}");
        }
    }
}

//! Hosts and authorities: what a client may call a destination, and the one
//! form it has after the door.
//!
//! A host is parsed once, by [`Host::parse`]: UTS 46 for names, strict dotted
//! decimal for IPv4, brackets for IPv6. Whatever a resolver or an origin could
//! read in a second way (octal, hexadecimal or short IPv4, percent escapes, zone
//! identifiers) is refused here, so that policy never judges one destination
//! while another is dialled.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

/// The most bytes a DNS name may have, without a trailing dot (RFC 1035, 2.3.4).
const MAX_NAME_BYTES: usize = 253;
/// The most bytes one label may have (RFC 1035, 2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// A DNS name in the form that is compared, judged, resolved and dialled:
/// ASCII, lower case, IDNA-encoded, without a trailing dot, at most 253 bytes.
///
/// Cloning is cheap. Its last label is never a number, so no resolver takes it
/// for an address.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsName(Arc<str>);

/// A destination host: a name, or an address written as one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A DNS name.
    Name(DnsName),
    /// An IPv4 or IPv6 literal.
    Address(IpAddr),
}

/// A host and a port: the `authority` of RFC 3986 section 3.2, without
/// userinfo and with the port always written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Authority {
    /// Where to.
    pub host: Host,
    /// The port, 1 to 65535.
    pub port: u16,
}

/// Why a string is not a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing is there.
    #[error("the host is empty")]
    Empty,
    /// Over 253 bytes, or a label over 63.
    #[error("the host is too long: a name has at most 253 bytes, a label at most 63")]
    TooLong,
    /// An empty label, as in `a..b` or `.a`.
    #[error("the host has an empty label")]
    EmptyLabel,
    /// A byte that no host name has.
    #[error("the host has a character that no host name may have")]
    InvalidCharacter,
    /// A percent escape: one destination would have many spellings.
    #[error("the host has a percent escape; write it plainly")]
    PercentEncoded,
    /// Not valid under UTS 46.
    #[error("the host is not a valid internationalised name (UTS 46)")]
    Idna,
    /// Decimal, octal, hexadecimal or short IPv4, as in `127.1` or `0x7f000001`.
    #[error("the host looks like a number; write an IPv4 address as four decimal numbers")]
    NumericLooking,
    /// Brackets around something that is no IPv6 address.
    #[error("the brackets hold no valid IPv6 address")]
    InvalidIpv6,
    /// A zone identifier, as in `fe80::1%eth0`.
    #[error("IPv6 zone identifiers are refused")]
    ZoneId,
}

/// Why a string is not an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// The host is not valid.
    #[error(transparent)]
    Host(#[from] HostError),
    /// `user@host`: credentials never travel in a target, and they hide the host.
    #[error("the target has userinfo (`user@`); send credentials in Proxy-Authorization")]
    Userinfo,
    /// No port where one must be.
    #[error("the port is missing; write host:port")]
    MissingPort,
    /// Not a decimal number from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    InvalidPort,
}

impl DnsName {
    /// Parses and normalises a name.
    ///
    /// One trailing dot is taken off. The underscore is allowed, since names
    /// in use have it.
    ///
    /// # Errors
    /// [`HostError`], also where the name is an IPv4 address or looks like one.
    pub fn parse(raw: &str) -> Result<Self, HostError> {
        match Host::parse(raw)? {
            Host::Name(name) => Ok(name),
            Host::Address(_) => Err(HostError::NumericLooking),
        }
    }

    /// The name, where its text is surely a name in the form that is compared,
    /// which one look at each byte tells. `None` says nothing: [`Host::parse`]
    /// tells.
    pub(super) fn if_normal(raw: &str) -> Option<Self> {
        // A last label that begins with a letter is no number, and no address
        // has one. Two hyphens may be those of IDNA.
        let last = raw.bytes().rposition(|b| b == b'.').map_or(0, |at| at + 1);
        let is_name = raw.as_bytes().get(last).is_some_and(u8::is_ascii_lowercase);
        if !is_name || raw.len() > MAX_NAME_BYTES {
            return None;
        }
        let (mut label, mut before) = (0, b'.');
        for b in raw.bytes() {
            match b {
                b'.' if label == 0 => return None,
                b'.' => label = 0,
                b'-' if before == b'-' => return None,
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' if label < MAX_LABEL_BYTES => label += 1,
                _ => return None,
            }
            before = b;
        }
        Some(Self(raw.into()))
    }

    /// The name, ASCII and lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it means the machine of whoever looks it up (RFC 6761 section
    /// 6.3), also by the names that Linux distributions have for it.
    #[must_use]
    pub fn is_localhost(&self) -> bool {
        const ALIASES: [&str; 7] = [
            "ip6-localhost",
            "ip6-loopback",
            "localhost.localdomain",
            "localhost4",
            "localhost4.localdomain4",
            "localhost6",
            "localhost6.localdomain6",
        ];
        let below = self.0.strip_suffix("localhost");
        below.is_some_and(|above| above.is_empty() || above.ends_with('.'))
            || ALIASES.contains(&self.as_str())
    }
}

impl Host {
    /// Parses a host as it stands in a target, a `Host` header, a ClientHello
    /// or a policy.
    ///
    /// # Errors
    /// [`HostError`], which says what is wrong with it.
    pub fn parse(raw: &str) -> Result<Self, HostError> {
        if raw.is_empty() {
            return Err(HostError::Empty);
        }
        if let Some(rest) = raw.strip_prefix('[') {
            let inner = rest.strip_suffix(']').ok_or(HostError::InvalidIpv6)?;
            return parse_ipv6(inner).map(|v6| Self::Address(v6.into()));
        }
        // Longer than any name can be, even before IDNA shortens nothing.
        if raw.len() > 4 * (MAX_NAME_BYTES + 1) {
            return Err(HostError::TooLong);
        }
        if raw.contains('%') {
            return Err(HostError::PercentEncoded);
        }
        let ascii = to_ascii(raw)?;
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        if name.is_empty() {
            return Err(HostError::EmptyLabel);
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(HostError::TooLong);
        }
        for label in name.split('.') {
            if label.is_empty() {
                return Err(HostError::EmptyLabel);
            }
            if label.len() > MAX_LABEL_BYTES {
                return Err(HostError::TooLong);
            }
        }
        if ends_in_number(name) {
            // Only the form that every parser reads alike; `Ipv4Addr` refuses
            // leading zeros, short forms and other bases. `1.2.3.4.` too, as
            // resolvers take it for a name.
            return match name.parse::<Ipv4Addr>() {
                Ok(v4) if name.len() == ascii.len() => Ok(Self::Address(v4.into())),
                _ => Err(HostError::NumericLooking),
            };
        }
        Ok(Self::Name(DnsName(name.into())))
    }

    /// The name, where it is one.
    #[must_use]
    pub fn name(&self) -> Option<&DnsName> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }
}

/// Lower-case ASCII. The pure-ASCII case without `xn--` is nearly all traffic,
/// and needs no tables.
fn to_ascii(raw: &str) -> Result<std::borrow::Cow<'_, str>, HostError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if raw.is_ascii() {
        if !raw.bytes().all(plain) {
            return Err(HostError::InvalidCharacter);
        }
        let upper = raw.bytes().any(|b| b.is_ascii_uppercase());
        let lower = if upper {
            std::borrow::Cow::Owned(raw.to_ascii_lowercase())
        } else {
            std::borrow::Cow::Borrowed(raw)
        };
        if !lower.split('.').any(|label| label.starts_with("xn--")) {
            return Ok(lower);
        }
    }
    // The WHATWG URL profile of UTS 46, which browsers and runtimes use, so
    // that the gateway and its clients read one name in one way.
    let name = idna::domain_to_ascii_cow(raw.as_bytes(), idna::AsciiDenyList::URL)
        .map_err(|_| HostError::Idna)?;
    if !name.bytes().all(plain) {
        return Err(HostError::InvalidCharacter);
    }
    Ok(std::borrow::Cow::Owned(name.into_owned()))
}

fn parse_ipv6(inner: &str) -> Result<Ipv6Addr, HostError> {
    if inner.contains('%') {
        return Err(HostError::ZoneId);
    }
    inner.parse().map_err(|_| HostError::InvalidIpv6)
}

/// The WHATWG "ends in a number" check: the last label is all digits, or
/// hexadecimal after `0x`. Such a host is an IPv4 address to some parser.
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return true;
    }
    last.strip_prefix("0x")
        .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

impl Authority {
    /// Parses `host:port`; the port must be written.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn parse(raw: &str) -> Result<Self, AuthorityError> {
        let (host, port) = split(raw)?;
        let port = port.ok_or(AuthorityError::MissingPort)?;
        Ok(Self { host, port })
    }

    /// Parses `host` or `host:port`, as in a `Host` header.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn parse_with_default_port(raw: &str, default: u16) -> Result<Self, AuthorityError> {
        let (host, port) = split(raw)?;
        Ok(Self {
            host,
            port: port.unwrap_or(default),
        })
    }

    /// Parses a `Host` header: the host, and the port where it is written.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn parse_optional_port(raw: &str) -> Result<(Host, Option<u16>), AuthorityError> {
        split(raw)
    }
}

fn split(raw: &str) -> Result<(Host, Option<u16>), AuthorityError> {
    if raw.contains('@') {
        return Err(AuthorityError::Userinfo);
    }
    // In brackets a colon belongs to the address.
    let after_host = if raw.starts_with('[') {
        raw.find(']').map_or(raw.len(), |at| at + 1)
    } else {
        raw.find(':').unwrap_or(raw.len())
    };
    let (host, rest) = raw.split_at(after_host);
    let host = Host::parse(host)?;
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        None => return Err(HostError::InvalidCharacter.into()),
        Some(digits) => Some(parse_port(digits)?),
    };
    Ok((host, port))
}

/// Decimal digits only: no sign, no space, and no more digits than a port has.
fn parse_port(digits: &str) -> Result<u16, AuthorityError> {
    let plain = (1..=5).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    match digits.parse::<u16>() {
        Ok(port) if plain && port != 0 => Ok(port),
        _ => Err(AuthorityError::InvalidPort),
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl fmt::Display for Host {
    /// As in an authority: an IPv6 address in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V4(v4)) => v4.fmt(f),
            Self::Address(IpAddr::V6(v6)) => write!(f, "[{v6}]"),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for DnsName {
    type Err = HostError;
    fn from_str(raw: &str) -> Result<Self, HostError> {
        Self::parse(raw)
    }
}

impl FromStr for Host {
    type Err = HostError;
    fn from_str(raw: &str) -> Result<Self, HostError> {
        Self::parse(raw)
    }
}

impl FromStr for Authority {
    type Err = AuthorityError;
    fn from_str(raw: &str) -> Result<Self, AuthorityError> {
        Self::parse(raw)
    }
}

impl std::borrow::Borrow<str> for DnsName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_have_one_form() {
        for (raw, form) in [
            ("api.example.com", "api.example.com"),
            ("API.Example.COM", "api.example.com"),
            ("api.example.com.", "api.example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("BÜCHER.example", "xn--bcher-kva.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("api。example．com", "api.example.com"),
            ("ａｐｉ.example.com", "api.example.com"),
            ("_dmarc.example.com", "_dmarc.example.com"),
            ("localhost", "localhost"),
            ("1password.com", "1password.com"),
            ("a.1b", "a.1b"),
        ] {
            assert_eq!(
                Host::parse(raw).map(|h| h.to_string()),
                Ok(form.to_owned()),
                "{raw}"
            );
        }
    }

    #[test]
    fn which_names_mean_this_machine() {
        for (raw, is) in [
            ("localhost", true),
            ("LocalHost.", true),
            ("acme.localhost", true),
            ("localhost.localdomain", true),
            ("ip6-localhost", true),
            ("localhost6", true),
            ("localhost.test", false),
            ("localhost5", false),
            ("notlocalhost", false),
        ] {
            let name = DnsName::parse(raw).expect(raw);
            assert_eq!(name.is_localhost(), is, "{raw}");
        }
    }

    #[test]
    fn a_name_in_normal_form_is_seen_at_a_look() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", &label[..61]);
        for raw in [
            "api.example.com",
            "a",
            "_x.1.b-c",
            "a.1b.c1",
            &label,
            &longest,
        ] {
            let name = DnsName::if_normal(raw).expect(raw);
            assert_eq!(Host::parse(raw), Ok(Host::Name(name)), "{raw}");
        }
        let (long_label, too_long) = (format!("{label}a.b"), format!("{longest}a"));
        for raw in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "A.b",
            "a.B",
            "xn--bcher-kva.example",
            "a.1",
            "1.2.3.4",
            "a.0x",
            "0x7f.1",
            "[::1]",
            "a:1",
            "a/b",
            "*.a",
            "bücher.example",
            &long_label,
            &too_long,
        ] {
            assert_eq!(DnsName::if_normal(raw), None, "{raw}");
        }
    }

    proptest! {
        #[test]
        fn what_is_seen_at_a_look_is_what_is_parsed(raw in "[a-cx0-9A._*-]{0,12}|([a-z0-9-]{1,4}\\.){0,3}[a-z0-9x]{1,3}") {
            if let Some(name) = DnsName::if_normal(&raw) {
                prop_assert_eq!(name.as_str(), &raw);
                prop_assert_eq!(Host::parse(&raw), Ok(Host::Name(name)));
            }
        }
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        use HostError::*;
        for (raw, error) in [
            ("", Empty),
            (".", EmptyLabel),
            ("a..b", EmptyLabel),
            (".a", EmptyLabel),
            ("a.b..", EmptyLabel),
            ("a b", InvalidCharacter),
            ("a\0b", InvalidCharacter),
            ("a/b", InvalidCharacter),
            ("a\\b", InvalidCharacter),
            ("a,b", InvalidCharacter),
            ("*.example.com", InvalidCharacter),
            ("a%2eb", PercentEncoded),
            ("%61.example", PercentEncoded),
            ("2130706433", NumericLooking),
            ("0x7f000001", NumericLooking),
            ("0x7f.1", NumericLooking),
            ("127.1", NumericLooking),
            ("127.0.1", NumericLooking),
            ("0177.0.0.1", NumericLooking),
            ("127.0.0.01", NumericLooking),
            ("127.0.0.0x1", NumericLooking),
            ("127.0.0.1.", NumericLooking),
            ("256.1.1.1", NumericLooking),
            ("1.2.3.4.5", NumericLooking),
            ("a.example.7", NumericLooking),
            ("a.0x", NumericLooking),
            ("１２７.0.0.1x.1", NumericLooking),
            ("[::1%25eth0]", ZoneId),
            ("[fe80::1%eth0]", ZoneId),
            ("[::1", InvalidIpv6),
            ("[]", InvalidIpv6),
            ("[127.0.0.1]", InvalidIpv6),
            ("[::g]", InvalidIpv6),
            ("::1", InvalidCharacter),
        ] {
            assert_eq!(Host::parse(raw), Err(error), "{raw:?}");
        }
        assert_eq!(Host::parse(&"a".repeat(64)), Err(TooLong));
        assert_eq!(
            Host::parse(&"a.".repeat(127)),
            Ok(Host::Name(DnsName("a.".repeat(127)[..253].into())))
        );
        assert_eq!(Host::parse(&"a.".repeat(128)), Err(TooLong));
        assert!(Host::parse(&"ü".repeat(3000)).is_err());
    }

    #[test]
    fn full_width_digits_are_the_address_they_become() {
        assert_eq!(
            Host::parse("１２７.0.0.1"),
            Ok(Host::Address([127, 0, 0, 1].into()))
        );
    }

    #[test]
    fn authorities() {
        let ok = |raw: &str| Authority::parse(raw).map(|a| a.to_string());
        assert_eq!(ok("Example.com:443"), Ok("example.com:443".into()));
        assert_eq!(ok("[::1]:80"), Ok("[::1]:80".into()));
        assert_eq!(ok("127.0.0.1:1"), Ok("127.0.0.1:1".into()));
        for (raw, error) in [
            ("example.com", AuthorityError::MissingPort),
            ("example.com:", AuthorityError::InvalidPort),
            ("example.com:0", AuthorityError::InvalidPort),
            ("example.com:65536", AuthorityError::InvalidPort),
            ("example.com:+443", AuthorityError::InvalidPort),
            ("example.com:443:443", AuthorityError::InvalidPort),
            ("example.com:000443", AuthorityError::InvalidPort),
            ("example.com: 443", AuthorityError::InvalidPort),
            ("u@example.com:443", AuthorityError::Userinfo),
            ("u:p@example.com:443", AuthorityError::Userinfo),
            (":443", AuthorityError::Host(HostError::Empty)),
            (
                "[::1]443",
                AuthorityError::Host(HostError::InvalidCharacter),
            ),
        ] {
            assert_eq!(Authority::parse(raw), Err(error), "{raw}");
        }
        assert_eq!(
            Authority::parse_with_default_port("example.com", 80).map(|a| a.port),
            Ok(80)
        );
    }
}

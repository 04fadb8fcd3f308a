//! What kind of place an address is. Everything that is not plainly public is
//! refused unless a rule names the range.
//!
//! Sources: the IANA special-purpose address registries (RFC 6890), RFC 6052
//! (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 2765 (translated), and the
//! metadata addresses that cloud providers document.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kind of place an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AddressClass {
    /// Globally reachable unicast.
    Public,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// RFC 1918.
    Private,
    /// `100.64.0.0/10` (RFC 6598).
    CarrierNat,
    /// `169.254.0.0/16`, `fe80::/10`.
    LinkLocal,
    /// `fc00::/7`, and the old site-local `fec0::/10`.
    UniqueLocal,
    /// `224.0.0.0/4`, `ff00::/8`.
    Multicast,
    /// `255.255.255.255`.
    Broadcast,
    /// `0.0.0.0/8`, `::`.
    Unspecified,
    /// `192.0.2.0/24` and its like, `2001:db8::/32`, `3fff::/20`.
    Documentation,
    /// Set aside: `240.0.0.0/4`, `192.0.0.0/24`, benchmarking, discard, and
    /// whatever of IPv6 is not global unicast.
    Reserved,
    /// A cloud's metadata or host service, some of which look public.
    Metadata,
    /// An IPv6 form that carries an IPv4 address to some host on the way:
    /// mapped, compatible, translated, 6to4, Teredo, local-use NAT64.
    Translated,
}

impl AddressClass {
    /// The word that records and messages use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::CarrierNat => "carrier_nat",
            Self::LinkLocal => "link_local",
            Self::UniqueLocal => "unique_local",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Unspecified => "unspecified",
            Self::Documentation => "documentation",
            Self::Reserved => "reserved",
            Self::Metadata => "metadata",
            Self::Translated => "translated",
        }
    }
}

impl fmt::Display for AddressClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Cloud services on fixed IPv4 addresses: AWS, Azure, GCP and others (IMDS),
/// AWS ECS and time, Alibaba, Oracle, and Azure's wire server.
const METADATA_V4: [[u8; 4]; 9] = [
    [169, 254, 169, 254],
    [169, 254, 169, 253],
    [169, 254, 169, 123],
    [169, 254, 170, 2],
    [169, 254, 170, 23],
    [169, 254, 0, 23],
    [100, 100, 100, 200],
    [192, 0, 0, 192],
    [168, 63, 129, 16],
];

/// AWS's IPv6 instance metadata, DNS and time, and Google's.
const METADATA_V6: [[u16; 8]; 5] = [
    [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254],
    [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253],
    [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x123],
    [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23],
    [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254],
];

/// The class of an address.
#[must_use]
pub fn classify(address: IpAddr) -> AddressClass {
    match address {
        IpAddr::V4(v4) => classify_v4(v4),
        IpAddr::V6(v6) => classify_v6(v6),
    }
}

fn classify_v4(address: Ipv4Addr) -> AddressClass {
    let octets = address.octets();
    if METADATA_V4.contains(&octets) {
        return AddressClass::Metadata;
    }
    match octets {
        [0, ..] => AddressClass::Unspecified,
        [127, ..] => AddressClass::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => AddressClass::Private,
        [100, 64..=127, ..] => AddressClass::CarrierNat,
        [169, 254, ..] => AddressClass::LinkLocal,
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => AddressClass::Documentation,
        // Protocol assignments, AS112, the 6to4 relay anycast, AMT, benchmarking.
        [192, 0, 0, _]
        | [192, 31, 196, _]
        | [192, 88, 99, _]
        | [192, 52, 193, _]
        | [192, 175, 48, _]
        | [198, 18..=19, ..] => AddressClass::Reserved,
        [224..=239, ..] => AddressClass::Multicast,
        [255, 255, 255, 255] => AddressClass::Broadcast,
        [240..=255, ..] => AddressClass::Reserved,
        _ => AddressClass::Public,
    }
}

fn classify_v6(address: Ipv6Addr) -> AddressClass {
    let segments = address.segments();
    if METADATA_V6.contains(&segments) {
        return AddressClass::Metadata;
    }
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => AddressClass::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => AddressClass::Loopback,
        // Mapped, compatible, translated: no origin needs to be named so, and
        // whoever does wants to hide the IPv4 address.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0, 0, 0, 0, 0, 0, ..] => {
            AddressClass::Translated
        }
        // NAT64 under the well-known prefix is how IPv6-only networks reach
        // IPv4: it is what it wraps.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => match embedded_ipv4(address) {
            Some(inner) => classify_v4(inner),
            None => AddressClass::Translated,
        },
        [0x64, 0xff9b, ..] => AddressClass::Translated,
        [0x2002, ..] | [0x2001, 0, ..] => AddressClass::Translated,
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => AddressClass::Documentation,
        // The rest of 2001::/23 is for protocols: ORCHID, benchmarking, DRIP.
        // AS112 and direct delegation are no places for agents either.
        [0x2001, 0..=0x1ff, ..] | [0x2620, 0x4f, 0x8000, ..] => AddressClass::Reserved,
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => AddressClass::UniqueLocal,
        [0xfe80..=0xfebf, ..] => AddressClass::LinkLocal,
        [0xff00..=0xffff, ..] => AddressClass::Multicast,
        [0x2000..=0x3fff, ..] => AddressClass::Public,
        _ => AddressClass::Reserved,
    }
}

/// The IPv4 address that an IPv6 address carries, where its form carries one:
/// mapped, compatible, translated, NAT64 with a /96 prefix, 6to4, Teredo.
#[must_use]
pub fn embedded_ipv4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let join = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => {
            Some(join(high, low))
        }
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(join(high, low)),
        [0x2002, high, low, ..] => Some(join(high, low)),
        // Teredo carries the client's address inverted.
        [0x2001, 0, .., high, low] => Some(join(!high, !low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        use AddressClass::*;
        for (text, class) in [
            ("8.8.8.8", Public),
            ("1.1.1.1", Public),
            ("172.15.255.255", Public),
            ("172.32.0.0", Public),
            ("100.63.255.255", Public),
            ("100.128.0.0", Public),
            ("127.0.0.1", Loopback),
            ("127.255.255.255", Loopback),
            ("10.0.0.1", Private),
            ("172.16.0.1", Private),
            ("172.31.255.255", Private),
            ("192.168.1.1", Private),
            ("100.64.0.1", CarrierNat),
            ("100.100.100.200", Metadata),
            ("169.254.169.254", Metadata),
            ("169.254.170.2", Metadata),
            ("169.254.1.1", LinkLocal),
            ("168.63.129.16", Metadata),
            ("168.63.129.17", Public),
            ("192.0.0.192", Metadata),
            ("192.0.0.1", Reserved),
            ("192.0.2.1", Documentation),
            ("198.51.100.1", Documentation),
            ("203.0.113.1", Documentation),
            ("198.18.0.1", Reserved),
            ("198.19.255.255", Reserved),
            ("192.88.99.1", Reserved),
            ("224.0.0.1", Multicast),
            ("240.0.0.1", Reserved),
            ("255.255.255.255", Broadcast),
            ("0.0.0.0", Unspecified),
            ("0.1.2.3", Unspecified),
            ("::", Unspecified),
            ("::1", Loopback),
            ("::ffff:127.0.0.1", Translated),
            ("::ffff:8.8.8.8", Translated),
            ("::127.0.0.1", Translated),
            ("::ffff:0:127.0.0.1", Translated),
            ("64:ff9b::8.8.8.8", Public),
            ("64:ff9b::127.0.0.1", Loopback),
            ("64:ff9b::169.254.169.254", Metadata),
            ("64:ff9b::10.0.0.1", Private),
            ("64:ff9b:1::8.8.8.8", Translated),
            ("2002:7f00:1::", Translated),
            ("2002:808:808::1", Translated),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", Translated),
            ("2001:db8::1", Documentation),
            ("3fff::1", Documentation),
            ("2001:2::1", Reserved),
            ("2001:20::1", Reserved),
            ("fe80::1", LinkLocal),
            ("fec0::1", UniqueLocal),
            ("fc00::1", UniqueLocal),
            ("fd00:ec2::254", Metadata),
            ("fd20:ce::254", Metadata),
            ("fd00:ec2::1", UniqueLocal),
            ("ff02::1", Multicast),
            ("100::1", Reserved),
            ("5f00::1", Reserved),
            ("2606:4700::1111", Public),
            ("2a00:1450::1", Public),
        ] {
            let address: IpAddr = text.parse().expect(text);
            assert_eq!(classify(address), class, "{text}");
        }
    }

    #[test]
    fn wrapped_addresses_are_found() {
        for (text, inner) in [
            ("::ffff:1.2.3.4", Some([1, 2, 3, 4])),
            ("::1.2.3.4", Some([1, 2, 3, 4])),
            ("::ffff:0:1.2.3.4", Some([1, 2, 3, 4])),
            ("64:ff9b::1.2.3.4", Some([1, 2, 3, 4])),
            ("2002:102:304::", Some([1, 2, 3, 4])),
            (
                "2001:0:4136:e378:8000:63bf:3fff:fdd2",
                Some([192, 0, 2, 45]),
            ),
            ("2606:4700::1111", None),
            ("::1", None),
        ] {
            let address: Ipv6Addr = text.parse().expect(text);
            assert_eq!(embedded_ipv4(address), inner.map(Ipv4Addr::from), "{text}");
        }
    }
}

//! Sets of address ranges, quick to ask whatever their size, and the class an
//! address has for policy.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::egress::{AddressClass, AddressRange, classify, embedded_ipv4};

/// Ranges up to this many are looked through one by one.
const FEW: usize = 8;

/// A set of ranges.
#[derive(Clone, Debug, Default)]
pub(super) struct RangeSet {
    /// As they were written, in order.
    list: Vec<AddressRange>,
    /// Where they are many: by family and prefix length, the networks.
    by_prefix: Vec<(bool, u8, HashMap<IpAddr, usize>)>,
}

impl RangeSet {
    pub(super) fn new(list: Vec<AddressRange>) -> Self {
        let mut by_prefix: Vec<(bool, u8, HashMap<IpAddr, usize>)> = Vec::new();
        if list.len() > FEW {
            for (at, range) in list.iter().enumerate() {
                let net = range.net();
                let (v4, length) = (net.addr().is_ipv4(), net.prefix_len());
                let found = by_prefix
                    .iter()
                    .position(|(family, prefix, _)| (*family, *prefix) == (v4, length));
                let slot = found.unwrap_or_else(|| {
                    by_prefix.push((v4, length, HashMap::new()));
                    by_prefix.len() - 1
                });
                by_prefix[slot].2.entry(net.network()).or_insert(at);
            }
        }
        Self { list, by_prefix }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn list(&self) -> &[AddressRange] {
        &self.list
    }

    /// Whether a range holds the address as it is written.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        if self.by_prefix.is_empty() {
            return self.list.iter().any(|range| range.contains(address));
        }
        self.by_prefix.iter().any(|(v4, length, networks)| {
            *v4 == address.is_ipv4()
                && IpNet::new(address, *length)
                    .is_ok_and(|net| networks.contains_key(&net.network()))
        })
    }

    /// Whether a range holds the address, or the IPv4 address that it carries:
    /// what a refusal asks, so that no other spelling is a way round it.
    pub(super) fn touches(&self, address: IpAddr) -> bool {
        !self.list.is_empty()
            && (self.contains(address) || carried(address).is_some_and(|v4| self.contains(v4)))
    }

    /// Whether a range is exactly this address.
    pub(super) fn names(&self, address: IpAddr) -> bool {
        self.list
            .iter()
            .any(|range| range.net() == IpNet::from(address))
    }
}

/// The IPv4 address that travels in an IPv6 one.
fn carried(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => embedded_ipv4(v6).map(IpAddr::V4),
    }
}

/// The class of an address, where one that carries a cloud's metadata address
/// in whatever form is that: a rule for a large range must not lift it.
pub(super) fn class_of(address: IpAddr) -> AddressClass {
    match carried(address) {
        Some(v4) if classify(v4) == AddressClass::Metadata => AddressClass::Metadata,
        _ => classify(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[&str]) -> RangeSet {
        let parse = |raw: &&str| AddressRange::parse(raw).expect("a range");
        RangeSet::new(ranges.iter().map(parse).collect())
    }

    #[test]
    fn many_ranges_answer_as_few_do() {
        let few = [
            "10.0.0.0/8",
            "10.1.0.0/16",
            "192.0.2.7",
            "fd00::/8",
            "2606:4700::/32",
            "0.0.0.0/32",
        ];
        let mut many = few.to_vec();
        let filler: Vec<String> = (0..20).map(|n| format!("198.51.100.{n}")).collect();
        many.extend(filler.iter().map(String::as_str));
        let (few, many) = (set(&few), set(&many));
        for address in [
            "10.0.0.0",
            "10.255.255.255",
            "11.0.0.0",
            "192.0.2.7",
            "192.0.2.8",
            "fdff::1",
            "fe00::1",
            "2606:4700::1",
            "2606:4701::1",
            "0.0.0.0",
            "::",
            "::ffff:10.0.0.1",
        ] {
            let address: IpAddr = address.parse().expect("an address");
            assert_eq!(few.contains(address), many.contains(address), "{address}");
        }
        assert!(!set(&[]).contains([10, 0, 0, 1].into()));
        assert!(set(&["0.0.0.0/0"]).contains([10, 0, 0, 1].into()));
    }

    #[test]
    fn a_refusal_sees_through_the_forms_that_carry_ipv4() {
        let denied = set(&["8.8.8.0/24"]);
        for spelled in ["8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"] {
            assert!(denied.touches(spelled.parse().expect("an address")), "{spelled}");
        }
        assert!(!denied.touches([8, 8, 9, 8].into()));
        for spelled in ["::ffff:169.254.169.254", "2002:a9fe:a9fe::", "169.254.169.254"] {
            let address = spelled.parse().expect("an address");
            assert_eq!(class_of(address), AddressClass::Metadata, "{spelled}");
        }
    }
}

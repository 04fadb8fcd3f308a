//! What a token may hand on: never more than it allows itself. Destinations
//! and scopes are narrowed here, and chains of actors grow.
//!
//! Judged entry by entry, so that two ranges that fill a third one together do
//! not hold it: such a request is refused, and whoever makes it writes the two.

use crate::egress::{Destination, Host, HostPattern};

/// Whether every target that `inner` allows is allowed by `outer` too.
#[must_use]
pub fn covers(outer: &Destination, inner: &Destination) -> bool {
    use HostPattern::{Any, Below, Exact};
    match (outer, inner) {
        // `*` is every host, an address written in the target among them, and
        // asks nothing of the addresses that a name has.
        (Destination::Host(Any), _) => true,
        (Destination::Host(Exact(outer)), Destination::Host(Exact(inner))) => outer == inner,
        (Destination::Host(pattern @ Below(_)), Destination::Host(Exact(host))) => {
            pattern.matches(host)
        }
        (Destination::Host(pattern @ Below(outer)), Destination::Host(Below(inner))) => {
            outer == inner || pattern.matches(&Host::Name(inner.clone()))
        }
        (Destination::Range(outer), Destination::Range(inner)) => {
            outer.net().contains(&inner.net())
        }
        (Destination::Range(range), Destination::Host(Exact(Host::Address(address)))) => {
            range.contains(*address)
        }
        // A range allows any name that has an address in it, and a name any
        // address that it has: neither holds the other.
        _ => false,
    }
}

/// The first of `inner` that nothing of `outer` covers.
#[must_use]
pub fn first_outside<'d>(
    outer: &[Destination],
    inner: &'d [Destination],
) -> Option<&'d Destination> {
    inner
        .iter()
        .find(|inner| !outer.iter().any(|outer| covers(outer, inner)))
}

/// What both lists allow, as far as it can be written down: of each pair the
/// narrower. A name and a range meet in nothing, though a name may have an
/// address in the range.
#[must_use]
pub fn meet(left: &[Destination], right: &[Destination]) -> Vec<Destination> {
    let mut both: Vec<Destination> = Vec::new();
    for (left, right) in left
        .iter()
        .flat_map(|left| right.iter().map(move |right| (left, right)))
    {
        let narrower = if covers(left, right) {
            right
        } else if covers(right, left) {
            left
        } else {
            continue;
        };
        if !both.contains(narrower) {
            both.push(narrower.clone());
        }
    }
    both
}

/// The first word of a scope that the other does not hold.
#[must_use]
pub(super) fn first_new_word<'s>(outer: Option<&str>, inner: &'s str) -> Option<&'s str> {
    let held = |word: &str| outer.is_some_and(|outer| outer.split(' ').any(|held| held == word));
    inner.split(' ').find(|word| !held(word))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn destination(raw: &str) -> Destination {
        Destination::parse(raw).expect(raw)
    }

    fn list(raw: &[&str]) -> Vec<Destination> {
        raw.iter().map(|raw| destination(raw)).collect()
    }

    #[test]
    fn what_covers_what() {
        for (outer, inner, holds) in [
            ("*", "api.example.com", true),
            ("*", "*.example.com", true),
            ("*", "10.0.0.0/8", true),
            ("api.example.com", "*", false),
            ("api.example.com", "api.example.com", true),
            ("api.example.com", "example.com", false),
            ("*.example.com", "api.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "badexample.com", false),
            ("*.example.com", "*.example.com", true),
            ("*.example.com", "*.api.example.com", true),
            ("*.api.example.com", "*.example.com", false),
            ("*.example.com", "*.com", false),
            ("*.example.com", "*.badexample.com", false),
            ("10.0.0.0/8", "10.1.0.0/16", true),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.1.0.0/16", "10.0.0.0/8", false),
            ("10.0.0.0/8", "11.0.0.0/8", false),
            ("0.0.0.0/0", "::/0", false),
            ("::/0", "0.0.0.0/0", false),
            ("fd00::/8", "fd00:1::/32", true),
            ("0.0.0.0/0", "api.example.com", false),
            ("api.example.com", "10.0.0.1", false),
            ("0.0.0.0/0", "*", false),
        ] {
            let (outer, inner) = (destination(outer), destination(inner));
            assert_eq!(covers(&outer, &inner), holds, "{outer} over {inner}");
        }
    }

    #[test]
    fn two_lists_meet_in_the_narrower_of_each_pair() {
        for (left, right, both) in [
            (
                &["*"][..],
                &["a.com", "10.0.0.0/8"][..],
                &["a.com", "10.0.0.0/8"][..],
            ),
            (&["*.a.com"], &["x.a.com", "y.b.com"], &["x.a.com"]),
            (
                &["10.0.0.0/8"],
                &["10.1.0.0/16", "*.a.com"],
                &["10.1.0.0/16"],
            ),
            (&["a.com"], &["b.com"], &[]),
            (
                &["a.com", "*.a.com"],
                &["*.a.com", "a.com"],
                &["a.com", "*.a.com"],
            ),
        ] {
            assert_eq!(meet(&list(left), &list(right)), list(both));
        }
    }

    #[test]
    fn scopes() {
        for (outer, inner, new) in [
            (Some("read write"), "read", None),
            (Some("read write"), "write read", None),
            (Some("read"), "read admin", Some("admin")),
            (Some("readers"), "read", Some("read")),
            (None, "read", Some("read")),
        ] {
            assert_eq!(first_new_word(outer, inner), new, "{outer:?} {inner}");
        }
    }

    /// The obvious reading of `allowed_destinations`: a target, and one address
    /// that it would be dialled at.
    fn allows(list: &[Destination], host: &Host, dialled: IpAddr) -> bool {
        list.iter().any(|entry| match entry {
            Destination::Host(pattern) => pattern.matches(host),
            Destination::Range(range) => range.contains(dialled),
        })
    }

    fn a_host() -> impl Strategy<Value = String> {
        proptest::sample::select(vec![
            "a.test",
            "b.test",
            "x.a.test",
            "y.x.a.test",
            "ba.test",
            "test",
        ])
        .prop_map(str::to_owned)
    }

    fn an_address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0..4u8, 0..4u8).prop_map(|(b, d)| IpAddr::from([10, b, 0, d])),
            (0..4u16).prop_map(|h| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, h])),
        ]
    }

    fn an_entry() -> impl Strategy<Value = Destination> {
        prop_oneof![
            1 => Just("*".to_owned()),
            4 => a_host(),
            4 => a_host().prop_map(|host| format!("*.{host}")),
            4 => (an_address(), 8..=32u8).prop_map(|(address, bits)| {
                let bits = if address.is_ipv6() { bits + 96 } else { bits };
                ipnet::IpNet::new(address, bits).expect("a prefix").trunc().to_string()
            }),
        ]
        .prop_map(|raw| destination(&raw))
    }

    fn entries() -> impl Strategy<Value = Vec<Destination>> {
        proptest::collection::vec(an_entry(), 0..5)
    }

    /// A name with an address it resolves to, or the address itself.
    fn target() -> impl Strategy<Value = (Host, IpAddr)> {
        prop_oneof![
            (a_host(), an_address())
                .prop_map(|(host, ip)| (Host::parse(&host).expect("a host"), ip)),
            an_address().prop_map(|ip| (Host::Address(ip), ip)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn what_is_covered_allows_nothing_new(
            outer in entries(), inner in entries(), (host, ip) in target()
        ) {
            if first_outside(&outer, &inner).is_none() && allows(&inner, &host, ip) {
                prop_assert!(allows(&outer, &host, ip), "{outer:?} {inner:?} {host} {ip}");
            }
        }

        #[test]
        fn what_two_lists_meet_in_is_allowed_by_both(
            left in entries(), right in entries(), (host, ip) in target()
        ) {
            let both = meet(&left, &right);
            if allows(&both, &host, ip) {
                prop_assert!(allows(&left, &host, ip) && allows(&right, &host, ip));
            }
            prop_assert_eq!(first_outside(&left, &both), None);
            prop_assert_eq!(first_outside(&right, &both), None);
        }

        #[test]
        fn what_is_handed_on_twice_is_within_the_first(
            first in entries(), second in entries(), third in entries()
        ) {
            if first_outside(&first, &second).is_none() && first_outside(&second, &third).is_none() {
                prop_assert_eq!(first_outside(&first, &third), None);
            }
        }
    }
}

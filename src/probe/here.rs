//! What can be seen from here: the name servers that programs are told of, and
//! the hosts that a network of containers usually puts beside an agent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The most neighbours that are guessed.
const MOST_NEIGHBOURS: usize = 4;

/// The name servers of `/etc/resolv.conf`; none where there is no such file.
pub fn name_servers() -> Vec<SocketAddr> {
    read("/etc/resolv.conf", name_servers_in)
}

/// Default gateways, and the first address of every network that is attached,
/// where container engines put their bridge: the host itself, as agents see it.
pub fn neighbours() -> Vec<IpAddr> {
    let mut found = read("/proc/net/route", neighbours_v4);
    found.extend(read("/proc/net/ipv6_route", neighbours_v6));
    let mut kept: Vec<IpAddr> = Vec::new();
    for address in found {
        if !kept.contains(&address) && !is_own(address) {
            kept.push(address);
        }
    }
    kept.truncate(MOST_NEIGHBOURS);
    kept
}

fn read<T>(path: &str, parse: impl Fn(&str) -> Vec<T>) -> Vec<T> {
    std::fs::read_to_string(path).map_or_else(|_| Vec::new(), |text| parse(&text))
}

/// Whether a packet to it would not leave this machine: then its source is the
/// same address. Connecting a datagram socket sends nothing.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address)
}

fn name_servers_in(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with([' ', '\t']))
        // Without the scope of a link-local address, which cannot be asked then.
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

/// Of the kernel's table: interface, destination, gateway, flags, three
/// numbers, mask; addresses in hexadecimal, as they lie in memory.
fn neighbours_v4(text: &str) -> Vec<IpAddr> {
    let number = |word: Option<&&str>| {
        let word = word.filter(|word| word.len() == 8)?;
        let in_memory = u32::from_str_radix(word, 16).ok()?.to_ne_bytes();
        Some(u32::from_be_bytes(in_memory))
    };
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let destination = number(words.get(1))?;
            let gateway = number(words.get(2))?;
            let mask = number(words.get(7))?;
            let address = match (destination, gateway) {
                (_, gateway) if gateway != 0 => gateway,
                (0, _) => return None,
                // A single address, or a pair, has no bridge.
                _ if mask.count_ones() > 30 => return None,
                (network, _) => network | 1,
            };
            Some(Ipv4Addr::from(address).into())
        })
        .filter(|address: &IpAddr| !address.is_loopback())
        .collect()
}

/// Of the kernel's table: destination, its length, source, its length, next
/// hop, four numbers, interface.
fn neighbours_v6(text: &str) -> Vec<IpAddr> {
    let number = |word: Option<&&str>| u128::from_str_radix(word?, 16).ok();
    text.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.get(9) == Some(&"lo") {
                return None;
            }
            let destination = number(words.first())?;
            let length = number(words.get(1))?;
            let hop = number(words.get(4))?;
            let address = match hop {
                0 if (1..=126).contains(&length) => Ipv6Addr::from(destination | 1),
                0 => return None,
                hop => Ipv6Addr::from(hop),
            };
            // Link-local ones cannot be dialled without their interface.
            let usable = !address.is_unicast_link_local() && !address.is_multicast();
            usable.then_some(address.into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(list: &[&str]) -> Vec<IpAddr> {
        list.iter()
            .map(|text| text.parse().expect("an address"))
            .collect()
    }

    #[test]
    fn name_servers_as_they_are_written() {
        let text = "# nameserver 192.0.2.9\nsearch a.b\nnameserver 127.0.0.11\n nameserver\tfd00::1 # x\nnameservers 192.0.2.1\nnameserver fe80::1%eth0\nnameserver\n";
        let expected = ["127.0.0.11:53", "[fd00::1]:53"].map(|text| text.parse().expect("one"));
        assert_eq!(name_servers_in(text), expected);
    }

    #[test]
    fn the_host_stands_at_the_gateway_or_at_the_start_of_the_network() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth1\t000012AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            eth2\t0A0012AC\t00000000\t0001\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n\
            eth2\tnonsense\t00000000\n";
        assert_eq!(
            neighbours_v4(text),
            addresses(&["172.17.0.1", "172.18.0.1"])
        );
    }

    #[test]
    fn the_same_for_ipv6() {
        let text = "\
            fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n\
            fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n\
            00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd010000000000000000000000000009 00000400 00000001 00000000 00000003     eth0\n\
            00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000009 00000400 00000001 00000000 00000003     eth0\n\
            00000000000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000003 00000000 80200001       lo\n";
        // The lengths are hexadecimal: 0x40 is 64.
        assert_eq!(neighbours_v6(text), addresses(&["fd00::1", "fd01::9"]));
    }

    proptest! {
        #[test]
        fn no_table_breaks_a_reader(text: String) {
            name_servers_in(&text);
            neighbours_v4(&text);
            neighbours_v6(&text);
        }
    }
}

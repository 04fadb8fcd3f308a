//! Destinations that are reached without the parent proxy, as `NO_PROXY`
//! writes them: names, suffixes, addresses and ranges, each with a port or
//! with all of them.

use std::fmt;
use std::net::IpAddr;

use super::host::{Authority, DnsName, Host};
use super::pattern::AddressRange;

/// Destinations that are reached directly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<NoProxyEntry>);

/// One entry of such a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoProxyEntry {
    hosts: Hosts,
    /// `None` for every port.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    /// Every one, written as `*`.
    Any,
    /// This name, and the names below it.
    From(DnsName),
    /// The names below this one alone.
    Below(DnsName),
    /// Addresses, whether written in the target or found by DNS.
    Range(AddressRange),
}

impl NoProxyEntry {
    /// Parses an entry: `example.com` for that name and those below it,
    /// `.example.com` or `*.example.com` for those below it alone, an address, a
    /// range such as `10.0.0.0/8`, or `*`; each with `:port` behind it, or for
    /// all ports. An IPv6 address with a port stands in brackets.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(raw: &str) -> Result<Self, String> {
        const SHAPE: &str = "write example.com, .example.com, 10.0.0.0/8 or an address, each with \
                             a port behind it or without: example.com:8443";
        if raw.contains("://") {
            return Err("write the host alone, without a scheme".to_owned());
        }
        // A bare IPv6 address is full of colons and has no port.
        if let Ok(address) = raw.parse::<IpAddr>() {
            return Ok(Self {
                hosts: Hosts::Range(range(&address.to_canonical().to_string())?),
                port: None,
            });
        }
        let (hosts, port) = match raw.rsplit_once(':') {
            Some((hosts, port)) if !port.contains([']', '/']) && !is_ipv6_range(raw) => {
                let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
                let number = port.parse().ok().filter(|port| digits && *port > 0);
                (hosts, Some(number.ok_or(SHAPE)?))
            }
            _ => (raw, None),
        };
        let bare = hosts
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(hosts);
        let named = |rest: &str| match Host::parse(rest) {
            Ok(Host::Name(name)) => Ok(name),
            Ok(Host::Address(_)) | Err(_) => Err(SHAPE.to_owned()),
        };
        let hosts = if hosts == "*" {
            Hosts::Any
        } else if let Ok(address) = bare.parse::<IpAddr>() {
            Hosts::Range(range(&address.to_canonical().to_string())?)
        } else if bare.contains('/') {
            Hosts::Range(range(bare)?)
        } else if let Some(rest) = hosts.strip_prefix("*.").or(hosts.strip_prefix('.')) {
            Hosts::Below(named(rest)?)
        } else {
            Hosts::From(named(hosts)?)
        };
        Ok(Self { hosts, port })
    }

    fn has(&self, authority: &Authority, address: Option<IpAddr>) -> bool {
        if self.port.is_some_and(|port| port != authority.port) {
            return false;
        }
        let is_below = |suffix: &DnsName| {
            let name = authority.host.name().map(DnsName::as_str);
            let head = name.and_then(|name| name.strip_suffix(suffix.as_str()));
            head.is_some_and(|head| head.ends_with('.'))
        };
        match &self.hosts {
            Hosts::Any => true,
            Hosts::From(name) => authority.host.name() == Some(name) || is_below(name),
            Hosts::Below(name) => is_below(name),
            Hosts::Range(range) => {
                let written = match authority.host {
                    Host::Address(address) => Some(address),
                    Host::Name(_) => None,
                };
                let found = written.into_iter().chain(address);
                found
                    .map(|ip| ip.to_canonical())
                    .any(|ip| range.contains(ip))
            }
        }
    }
}

impl NoProxy {
    /// The destinations that one of these entries has.
    #[must_use]
    pub fn new(entries: Vec<NoProxyEntry>) -> Self {
        Self(entries)
    }

    /// Parses a list as the variable `NO_PROXY` has it: entries with commas
    /// between them. Blanks around them count for nothing.
    ///
    /// # Errors
    /// The entry, and what to write instead.
    pub fn parse(raw: &str) -> Result<Self, String> {
        let entries = raw.split(',').map(str::trim).filter(|one| !one.is_empty());
        let parsed = entries
            .map(|one| NoProxyEntry::parse(one).map_err(|error| format!("{one:?}: {error}")));
        parsed.collect::<Result<_, _>>().map(Self)
    }

    /// Whether this destination is reached directly. `address` is where its name
    /// leads, where that is known.
    #[must_use]
    pub fn has(&self, authority: &Authority, address: Option<IpAddr>) -> bool {
        self.0.iter().any(|entry| entry.has(authority, address))
    }
}

impl fmt::Display for NoProxyEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::Any => f.write_str("*")?,
            Hosts::From(name) => write!(f, "{}", name.as_str())?,
            Hosts::Below(name) => write!(f, ".{}", name.as_str())?,
            Hosts::Range(range) => write!(f, "{}", range.net())?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

fn range(raw: &str) -> Result<AddressRange, String> {
    AddressRange::parse(raw)
}

/// Whether the last colon is one of an IPv6 range, `fd00::/8`.
fn is_ipv6_range(raw: &str) -> bool {
    raw.split_once('/')
        .is_some_and(|(head, _)| head.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reached_directly() {
        #[rustfmt::skip]
        let cases: [(&str, &str, Option<&str>, bool); 32] = [
            ("example.com", "example.com:443", None, true),
            ("example.com", "api.example.com:443", None, true),
            ("Example.COM", "api.example.com:443", None, true),
            ("example.com", "badexample.com:443", None, false),
            ("example.com", "example.com.evil.test:443", None, false),
            (".example.com", "example.com:443", None, false),
            (".example.com", "api.example.com:443", None, true),
            ("*.example.com", "example.com:443", None, false),
            ("*.example.com", "a.b.example.com:443", None, true),
            ("example.com:8443", "example.com:8443", None, true),
            ("example.com:8443", "example.com:443", None, false),
            (".svc:80", "a.svc:80", None, true),
            ("localhost", "localhost:80", None, true),
            ("*", "example.com:443", None, true),
            ("*:80", "example.com:443", None, false),
            ("10.0.0.0/8", "10.1.2.3:80", None, true),
            ("10.0.0.0/8", "11.1.2.3:80", None, false),
            ("10.0.0.0/8", "a.test:80", Some("10.1.2.3"), true),
            ("10.0.0.0/8", "a.test:80", Some("192.0.2.1"), false),
            ("10.0.0.0/8", "a.test:80", None, false),
            ("10.0.0.0/8", "[::ffff:10.1.2.3]:80", None, true),
            ("10.0.0.0/8:80", "10.1.2.3:80", None, true),
            ("10.0.0.0/8:80", "10.1.2.3:81", None, false),
            ("192.0.2.1", "192.0.2.1:80", None, true),
            ("192.0.2.1:80", "192.0.2.1:81", None, false),
            ("fd00::/8", "[fd00::1]:443", None, true),
            ("[fd00::/8]:443", "[fd00::1]:80", None, false),
            ("2001:db8::1", "[2001:db8::1]:443", None, true),
            ("[2001:db8::1]:443", "[2001:db8::1]:443", None, true),
            ("[2001:db8::1]:443", "[2001:db8::1]:80", None, false),
            ("a.test, b.test ,,c.test", "c.test:1", None, true),
            ("", "c.test:1", None, false),
        ];
        for (list, authority, address, expected) in cases {
            let direct = NoProxy::parse(list).expect(list);
            let authority = Authority::parse(authority).expect(authority);
            let address = address.map(|text| text.parse().expect("an address"));
            assert_eq!(
                direct.has(&authority, address),
                expected,
                "{list} {authority}"
            );
        }
    }

    #[test]
    fn what_is_no_entry() {
        for raw in [
            "http://example.com",
            "example.com:",
            "example.com:0",
            "example.com:65536",
            "example.com:+1",
            "10.1.2.3/8",
            "10/8",
            "a..b",
            "*.*.com",
            "a*.com",
            ".",
            "*.10.0.0.1",
            "[2001:db8::1",
            "a b",
        ] {
            assert!(NoProxyEntry::parse(raw).is_err(), "{raw}");
        }
        assert!(
            NoProxyEntry::parse("10.1.2.3/8")
                .expect_err("host bits")
                .contains("10.0.0.0/8")
        );
    }

    #[test]
    fn an_entry_is_shown_as_it_may_be_written() {
        for raw in ["*", "a.test", ".a.test:80", "10.0.0.0/8", "fd00::/8"] {
            let entry = NoProxyEntry::parse(raw).expect(raw);
            assert_eq!(entry.to_string(), raw);
        }
    }
}

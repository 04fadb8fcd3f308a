//! Patterns over destinations, as policies and the `allowed_destinations`
//! claim write them: a host, `*.suffix`, `*`, an address or a range.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::host::{DnsName, Host, HostError};

/// Which hosts a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// Exactly this host: `api.example.com` is not `example.com`.
    Exact(Host),
    /// Any name below this one, and not this one itself: `*.example.com`.
    Below(DnsName),
    /// Every host, written out as `*`.
    Any,
}

/// Why a string is not a host pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostPatternError {
    /// The host, or the part after `*.`, is not valid.
    #[error("{0}")]
    Host(#[from] HostError),
    /// A star anywhere else than as the whole first label, with what to write.
    #[error("a star may only be the whole first label: write {0}")]
    Star(String),
    /// A scheme, a port or a path.
    #[error("write the host only, here \"{0}\"")]
    NotOnlyHost(String),
    /// Upper case or a trailing dot: a policy is written in the form compared.
    #[error("write \"{0}\"")]
    NotNormal(String),
}

/// A range of addresses, in its canonical form: no host bits set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressRange(IpNet);

/// One entry of `allowed_destinations` or of a denylist.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// Hosts by name, or any.
    Host(HostPattern),
    /// Addresses, whether written in the target or found by DNS.
    Range(AddressRange),
}

/// Why a string is not a [`Destination`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// It is no host pattern.
    #[error(transparent)]
    Host(#[from] HostPatternError),
    /// It is no range of addresses.
    #[error("{0}")]
    Range(String),
}

impl HostPattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// [`HostPatternError`], which says what to write instead.
    pub fn parse(raw: &str) -> Result<Self, HostPatternError> {
        // Nearly all are so, and lists of them are long.
        let (wild, name) = match raw.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, raw),
        };
        match DnsName::if_normal(name) {
            Some(name) if wild => return Ok(Self::Below(name)),
            Some(name) => return Ok(Self::Exact(Host::Name(name))),
            None if raw == "*" => return Ok(Self::Any),
            None => {}
        }
        if let Some(rest) = raw.strip_prefix("*.") {
            if rest.contains('*') {
                return Err(misplaced_star(raw));
            }
            return match parse_normal(rest) {
                Ok(Host::Name(name)) => Ok(Self::Below(name)),
                Ok(Host::Address(_)) => Err(HostError::NumericLooking.into()),
                Err(HostPatternError::NotNormal(form)) => {
                    Err(HostPatternError::NotNormal(format!("*.{form}")))
                }
                Err(error) => Err(error),
            };
        }
        if raw.contains('*') {
            return Err(misplaced_star(raw));
        }
        // As lists of other programs write all names below one.
        if let Some(rest) = raw.strip_prefix('.')
            && let Ok(name) = DnsName::parse(rest)
        {
            return Err(HostPatternError::NotNormal(format!("*.{name}")));
        }
        parse_normal(raw).map(Self::Exact)
    }

    /// Whether the pattern speaks of this host. Slow and obvious; policy has
    /// an index and is tested against this.
    #[must_use]
    pub fn matches(&self, host: &Host) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact == host,
            Self::Below(suffix) => host.name().is_some_and(|name| {
                name.as_str()
                    .strip_suffix(suffix.as_str())
                    .is_some_and(|head| head.ends_with('.'))
            }),
        }
    }
}

/// Below a name of one label is nearly everything, so that is not offered.
fn misplaced_star(raw: &str) -> HostPatternError {
    let offered = |name: &str| match DnsName::parse(name) {
        Ok(name) if name.as_str().contains('.') => Some(format!("\"*.{name}\"")),
        _ => None,
    };
    let only_a_dot_lacks = raw.strip_prefix('*').and_then(offered);
    let behind = || raw.rsplit('*').next()?.split_once('.');
    HostPatternError::Star(
        only_a_dot_lacks
            .or_else(|| Some(offered(behind()?.1)? + ", or the hosts one by one"))
            .unwrap_or_else(|| "the hosts one by one".to_owned()),
    )
}

/// A host in the very form that is compared, so that what a reader of the
/// policy sees is what the gateway matches. International names may be written
/// as they are read.
fn parse_normal(raw: &str) -> Result<Host, HostPatternError> {
    if let Some((_, rest)) = raw.split_once("://") {
        let host = rest.split(['/', ':', '?']).next().unwrap_or(rest);
        return Err(HostPatternError::NotOnlyHost(host.to_ascii_lowercase()));
    }
    // An IPv6 address may stand without brackets here; nothing is ambiguous.
    if let Ok(address) = raw.parse::<IpAddr>() {
        return Ok(Host::Address(address));
    }
    if !raw.starts_with('[')
        && let Some((host, _)) = raw.split_once([':', '/'])
        && Host::parse(host).is_ok()
    {
        return Err(HostPatternError::NotOnlyHost(host.to_ascii_lowercase()));
    }
    let host = Host::parse(raw)?;
    let form = host.to_string();
    if raw.is_ascii() && form != raw {
        return Err(HostPatternError::NotNormal(form));
    }
    Ok(host)
}

impl AddressRange {
    /// Parses `10.0.0.0/8`, `fd00::/8` or a single address.
    ///
    /// # Errors
    /// What is wrong and what to write, also where bits behind the prefix are
    /// set: `10.1.2.3/8` is more likely a slip than a range.
    pub fn parse(raw: &str) -> Result<Self, String> {
        if let Ok(address) = raw.parse::<IpAddr>() {
            return Ok(Self(address.into()));
        }
        let net: IpNet = raw
            .parse()
            .map_err(|_| "write an address range such as 10.0.0.0/8 or fd00::/8".to_owned())?;
        if net.trunc() != net {
            return Err(format!(
                "bits behind the prefix are set: write {}",
                net.trunc()
            ));
        }
        Ok(Self(net))
    }

    /// Whether the range holds this address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// The range as a network.
    #[must_use]
    pub fn net(&self) -> IpNet {
        self.0
    }
}

impl Destination {
    /// Parses an entry: a host pattern, an address or a range.
    ///
    /// # Errors
    /// [`DestinationError`], which says what to write instead.
    pub fn parse(raw: &str) -> Result<Self, DestinationError> {
        let bare = raw
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(raw);
        if bare.parse::<IpAddr>().is_ok() {
            return AddressRange::parse(bare)
                .map(Self::Range)
                .map_err(DestinationError::Range);
        }
        if let Some((head, _)) = raw.split_once('/')
            && head.parse::<IpAddr>().is_ok()
        {
            return AddressRange::parse(raw)
                .map(Self::Range)
                .map_err(DestinationError::Range);
        }
        Ok(Self::Host(HostPattern::parse(raw)?))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => host.fmt(f),
            Self::Below(name) => write!(f, "*.{name}"),
            Self::Any => f.write_str("*"),
        }
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(pattern) => pattern.fmt(f),
            Self::Range(range) => range.fmt(f),
        }
    }
}

impl FromStr for HostPattern {
    type Err = HostPatternError;
    fn from_str(raw: &str) -> Result<Self, HostPatternError> {
        Self::parse(raw)
    }
}

impl FromStr for Destination {
    type Err = DestinationError;
    fn from_str(raw: &str) -> Result<Self, DestinationError> {
        Self::parse(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_means_subdomains_and_not_the_apex() {
        let below = HostPattern::parse("*.example.com").expect("a pattern");
        let matches = |host: &str| below.matches(&Host::parse(host).expect("a host"));
        assert!(matches("a.example.com"));
        assert!(matches("a.b.example.com"));
        assert!(!matches("example.com"));
        assert!(!matches("badexample.com"));
        assert!(!matches("example.com.evil.test"));
    }

    #[test]
    fn mistakes_say_what_to_write() {
        for (raw, says) in [
            ("*.Example.com", "write \"*.example.com\""),
            ("Example.com", "write \"example.com\""),
            ("example.com.", "write \"example.com\""),
            (
                "a*.example.com",
                "a star may only be the whole first label: write \"*.example.com\", or the hosts one by one",
            ),
            (
                "*.*.example.com",
                "a star may only be the whole first label: write \"*.example.com\", or the hosts one by one",
            ),
            (
                "api.*.example.com",
                "a star may only be the whole first label: write \"*.example.com\", or the hosts one by one",
            ),
            (
                "*Example.com",
                "a star may only be the whole first label: write \"*.example.com\"",
            ),
            (
                "api.*.com",
                "a star may only be the whole first label: write the hosts one by one",
            ),
            (
                "example.*",
                "a star may only be the whole first label: write the hosts one by one",
            ),
            (
                "**",
                "a star may only be the whole first label: write the hosts one by one",
            ),
            (".Example.com", "write \"*.example.com\""),
            ("..example.com", "the host has an empty label"),
            (".", "the host has an empty label"),
            (
                "https://api.example.com/v1",
                "write the host only, here \"api.example.com\"",
            ),
            (
                "api.example.com:443",
                "write the host only, here \"api.example.com\"",
            ),
            (
                "api.example.com/v1",
                "write the host only, here \"api.example.com\"",
            ),
            (
                "127.1",
                "the host looks like a number; write an IPv4 address as four decimal numbers",
            ),
            ("", "the host is empty"),
        ] {
            let error = HostPattern::parse(raw).expect_err(raw);
            assert_eq!(error.to_string(), says, "{raw}");
            if let Some(offered) = says.split('"').nth(1) {
                HostPattern::parse(offered).expect(raw);
            }
        }
    }

    #[test]
    fn destinations_are_hosts_or_ranges() {
        assert!(matches!(
            Destination::parse("10.0.0.0/8"),
            Ok(Destination::Range(_))
        ));
        assert!(matches!(
            Destination::parse("10.0.0.1"),
            Ok(Destination::Range(_))
        ));
        assert!(matches!(
            Destination::parse("fd00::/8"),
            Ok(Destination::Range(_))
        ));
        assert!(matches!(
            Destination::parse("[::1]"),
            Ok(Destination::Range(_))
        ));
        assert!(matches!(
            Destination::parse("*"),
            Ok(Destination::Host(HostPattern::Any))
        ));
        assert!(matches!(
            Destination::parse("api.example.com"),
            Ok(Destination::Host(_))
        ));
        assert_eq!(
            Destination::parse("10.1.0.0/8").map_err(|e| e.to_string()),
            Err("bits behind the prefix are set: write 10.0.0.0/8".into())
        );
        assert!(Destination::parse("10.0.0.0/33").is_err());
    }
}

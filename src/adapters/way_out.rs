//! The gateway's own way out, to ACME servers and to other issuers: by the
//! parent proxy like what agents ask for, where there is one and `no_proxy`
//! does not except it, else directly.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::egress::{AddressClass, AddressRange, Authority, Host, classify};
use crate::gate::ports::{Elsewhere, Resolve};
use crate::proxy::{Carried, Parent};

/// How long one address may take, or the parent proxy for it.
const LONGEST: Duration = Duration::from_secs(10);

/// The gateway's own way out.
pub struct WayOut {
    names: Arc<dyn Resolve>,
    parent: Option<Arc<Parent>>,
}

/// Where a server may be.
#[derive(Clone, Copy, Debug)]
pub enum Allowed<'a> {
    /// Anywhere: the operator has named it.
    Anywhere,
    /// Where agents may go whom nothing is said of: at a public address.
    Public,
    /// In these ranges and nowhere else.
    In(&'a [AddressRange]),
}

impl WayOut {
    /// That of a gateway which finds names so, and gets out by this proxy.
    #[must_use]
    pub fn new(names: Arc<dyn Resolve>, parent: Option<Arc<Parent>>) -> Self {
        Self { names, parent }
    }

    /// A connection to a server, at one of the addresses that it may have.
    ///
    /// # Errors
    /// What went wrong, in a sentence for the operator.
    pub async fn connect(
        &self,
        to: &Authority,
        allowed: Allowed<'_>,
    ) -> Result<Box<dyn Carried>, String> {
        // What is written as this machine is not what the parent takes for it.
        let parent = self.parent.as_ref().filter(|_| !is_here(&to.host));
        if let Some(parent) = parent
            && parent.resolves(to)
        {
            allowed.unresolved()?;
            return parent.carry(&*self.names, to, None, LONGEST).await;
        }
        let found: Arc<[IpAddr]> = match &to.host {
            Host::Address(address) => Arc::from([*address]),
            Host::Name(name) => {
                let found = self.names.lookup(name).await;
                found.map_err(|error| error.to_string())?
            }
        };
        let again = parent.is_some_and(|parent| parent.resolves_again(to));
        let mut problem = "the name has no address".to_owned();
        let mut passed = Vec::with_capacity(found.len());
        for address in found.iter() {
            match allowed.at(*address) {
                Ok(()) => passed.push(*address),
                // The parent may reach any of them.
                Err(why) if again => return Err(why),
                Err(why) => problem = why,
            }
        }
        for address in passed {
            let parent = parent.filter(|parent| parent.takes(to, Some(address)));
            let carried = match parent {
                Some(parent) => {
                    let carried = parent.carry(&*self.names, to, Some(address), LONGEST);
                    carried.await
                }
                None => direct(SocketAddr::new(address, to.port)).await,
            };
            match carried {
                Ok(carried) => return Ok(carried),
                Err(error) => problem = error,
            }
            if again && parent.is_some() {
                // It has tried them all.
                break;
            }
        }
        Err(problem)
    }
}

async fn direct(address: SocketAddr) -> Result<Box<dyn Carried>, String> {
    let connecting = tokio::time::timeout(LONGEST, TcpStream::connect(address));
    match connecting.await {
        Ok(Ok(tcp)) => Ok(Box::new(tcp)),
        Ok(Err(error)) => Err(format!("{address}: {error}")),
        Err(_) => Err(format!("{address}: no connection in time")),
    }
}

/// Whether a host is written as this machine.
fn is_here(host: &Host) -> bool {
    match host {
        Host::Address(address) => address.to_canonical().is_loopback(),
        Host::Name(name) => name.is_localhost(),
    }
}

impl Allowed<'_> {
    fn at(self, address: IpAddr) -> Result<(), String> {
        match self {
            Self::Anywhere => Ok(()),
            Self::Public => match classify(address) {
                AddressClass::Public => Ok(()),
                class => Err(format!(
                    "{address} is not public ({class}): name its range in addresses"
                )),
            },
            Self::In(ranges) if ranges.iter().any(|range| range.contains(address)) => Ok(()),
            Self::In(_) => Err(format!("{address} is in none of the ranges in addresses")),
        }
    }

    /// Whether it may be reached where nobody here knows its address.
    fn unresolved(self) -> Result<(), String> {
        match self {
            Self::Anywhere | Self::Public => Ok(()),
            Self::In(_) => Err(
                "the parent proxy resolves this name (upstream_proxy.address is unchecked), so \
                 that it is in the ranges of addresses cannot be checked: leave addresses out, or \
                 name the host in upstream_proxy.no_proxy"
                    .to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_server_may_be() {
        let ranges = [AddressRange::parse("10.1.0.0/16").expect("a range")];
        for (allowed, address, says) in [
            (Allowed::Anywhere, "127.0.0.1", None),
            (Allowed::Public, "8.8.8.8", None),
            (Allowed::Public, "10.1.0.1", Some("not public (private)")),
            (Allowed::Public, "169.254.169.254", Some("not public")),
            (Allowed::In(&ranges), "10.1.0.1", None),
            (Allowed::In(&ranges), "8.8.8.8", Some("none of the ranges")),
        ] {
            let said = allowed.at(address.parse().expect("an address"));
            match says {
                None => assert_eq!(said, Ok(()), "{allowed:?} {address}"),
                Some(part) => {
                    let error = said.expect_err(address);
                    assert!(error.contains(part), "{error}");
                }
            }
        }
        assert!(Allowed::Public.unresolved().is_ok());
        assert!(Allowed::In(&ranges).unresolved().is_err());
    }

    #[test]
    fn what_is_written_as_this_machine() {
        for (text, here) in [
            ("127.0.0.1", true),
            ("127.8.8.8", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]", true),
            ("localhost", true),
            ("acme.localhost", true),
            ("localhost.test", false),
            ("10.0.0.1", false),
        ] {
            let host = Host::parse(text).expect("a host");
            assert_eq!(is_here(&host), here, "{text}");
        }
    }
}

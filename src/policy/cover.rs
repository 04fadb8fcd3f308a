//! Whether what one rule speaks of holds all that another speaks of. Where it
//! cannot be told, the answer is no.

use super::proven::Requirement;
use super::rule::{Agents, Ports, Rule};
use crate::egress::{Host, HostPattern, PathGlob, RpcPattern};

/// Whether `wide` speaks of every request that `narrow` speaks of, whatever
/// their actions. Address ranges are left out.
pub(super) fn covers(wide: &Rule, narrow: &Rule) -> bool {
    narrow
        .hosts
        .iter()
        .all(|host| wide.hosts.iter().any(|pattern| holds(pattern, host)))
        && covers_but_hosts(wide, narrow)
}

/// The same without the hosts.
pub(super) fn covers_but_hosts(wide: &Rule, narrow: &Rule) -> bool {
    agents(&wide.agents, &narrow.agents)
        && ports(&wide.ports, &narrow.ports)
        && (wide.http || !narrow.http)
        && (wide.https || !narrow.https)
        && all_or(&wide.methods, &narrow.methods, |a, b| a == b)
        && all_or(&wide.paths, &narrow.paths, path)
        && all_or(&wide.rpc_methods, &narrow.rpc_methods, RpcPattern::covers)
        && Requirement::covers(wide.require, narrow.require)
}

/// Whether a pattern holds every host that another holds.
pub(super) fn holds(wide: &HostPattern, narrow: &HostPattern) -> bool {
    match (wide, narrow) {
        (HostPattern::Any, _) => true,
        (_, HostPattern::Any) => false,
        (_, HostPattern::Exact(host)) => wide.matches(host),
        (HostPattern::Below(above), HostPattern::Below(name)) => {
            above == name || wide.matches(&Host::Name(name.clone()))
        }
        (HostPattern::Exact(_), HostPattern::Below(_)) => false,
    }
}

fn agents(wide: &Agents, narrow: &Agents) -> bool {
    match (wide, narrow) {
        (Agents::Any, _) => true,
        (_, Agents::Any) => false,
        (
            Agents::These { prefixes, .. },
            Agents::These {
                names,
                prefixes: others,
            },
        ) => {
            let begins = |text: &str| prefixes.iter().any(|prefix| text.starts_with(&**prefix));
            names.iter().all(|name| wide.contain(name)) && others.iter().all(|other| begins(other))
        }
    }
}

fn ports(wide: &Ports, narrow: &Ports) -> bool {
    match (wide, narrow) {
        (Ports::Any, _) => true,
        (Ports::Ranges(ranges), Ports::Any) => ranges.contains(&(1, u16::MAX)),
        (Ports::Ranges(ranges), Ports::Ranges(others)) => others.iter().all(|(first, last)| {
            ranges
                .iter()
                .any(|(low, high)| low <= first && last <= high)
        }),
    }
}

/// Lists in which nothing stands for anything.
fn all_or<T>(wide: &[T], narrow: &[T], holds: impl Fn(&T, &T) -> bool) -> bool {
    wide.is_empty()
        || (!narrow.is_empty()
            && narrow
                .iter()
                .all(|entry| wide.iter().any(|other| holds(other, entry))))
}

/// The same pattern, or one that ends in `/**` above it.
fn path(wide: &PathGlob, narrow: &PathGlob) -> bool {
    let (wide, narrow) = (wide.to_string(), narrow.to_string());
    wide == narrow
        || wide.strip_suffix("/**").is_some_and(|above| {
            !above.contains('*')
                && narrow
                    .strip_prefix(above)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
}

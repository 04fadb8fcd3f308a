//! One rule, validated: which requests it speaks of. Which rule wins is not
//! decided here.

use std::net::IpAddr;
use std::sync::Arc;

use http::Method;

use super::decision::{RefusalForm, TlsRule};
use super::document::{Action, AnyOr, Mode, PortEntry, RuleDocument};
use super::finding::{Finding, PolicyError, Problem, SourceName};
use super::limits;
use super::proven::Requirement;
use super::range::{RangeSet, class_of};
use crate::egress::{
    AddressClass, AddressRange, AgentId, Ask, Host, HostPattern, PathGlob, RpcPattern, Scheme,
};
use crate::limit::Limit;

/// The ports of a rule that names none.
const DEFAULT_PORTS: [(u16, u16); 2] = [(80, 80), (443, 443)];

#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) name: Arc<str>,
    /// Which rule of its document.
    pub(super) position: usize,
    pub(super) action: Action,
    /// Where the rule says it itself.
    pub(super) mode: Option<Mode>,
    pub(super) agents: Agents,
    /// Empty in a rule by addresses only.
    pub(super) hosts: Vec<HostPattern>,
    /// In a deny rule also the addresses among its hosts.
    pub(super) ranges: RangeSet,
    pub(super) ports: Ports,
    pub(super) http: bool,
    pub(super) https: bool,
    /// Empty: any.
    pub(super) methods: Vec<Method>,
    /// Empty: any.
    pub(super) paths: Vec<PathGlob>,
    /// Empty: any body, which is not looked at.
    pub(super) rpc_methods: Vec<RpcPattern>,
    pub(super) tls: TlsRule,
    pub(super) refusal: RefusalForm,
    pub(super) limits: Vec<Arc<Limit>>,
    /// What must have proven who asks.
    pub(super) require: Option<Requirement>,
}

#[derive(Clone, Debug)]
pub(super) enum Agents {
    Any,
    These {
        names: Vec<AgentId>,
        /// The beginnings of names, from `ci-*`.
        prefixes: Vec<Box<str>>,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Ports {
    Any,
    /// First and last, both within.
    Ranges(Vec<(u16, u16)>),
}

/// What the body of a request calls by JSON-RPC.
#[derive(Clone, Copy, Debug)]
pub enum Calls<'a> {
    /// It was not read, or could not be.
    Unseen,
    /// It is yet to be read: what may still turn out to be allowed.
    Awaited,
    /// These methods; none where there is no body.
    Seen(&'a [String]),
}

/// What a rule that speaks of a destination says about what is asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// Nothing.
    No,
    /// Of a tunnel: it speaks of some of what may travel inside, which shows
    /// only where the inside is seen.
    Inside,
    /// It speaks of it.
    Yes,
}

impl Rule {
    /// Whether the rule is limited by what only shows inside a connection.
    pub(super) fn is_limited(&self) -> bool {
        !self.methods.is_empty() || !self.paths.is_empty() || !self.rpc_methods.is_empty()
    }

    /// Whether the rule speaks of what is asked.
    pub(super) fn fits(&self, ask: &Ask) -> Fit {
        let (scheme, method, path) = match ask {
            Ask::Tunnel => return self.fits_tunnel(),
            Ask::Request {
                scheme,
                method,
                path,
            } => (*scheme, method, path),
        };
        let scheme = match scheme {
            Scheme::Http => self.http,
            Scheme::Https => self.https,
        };
        let method = self.methods.is_empty() || self.methods.contains(method);
        let path = self.paths.is_empty()
            || self.paths.iter().any(|glob| match self.action {
                Action::Allow => glob.matches_all(path),
                Action::Deny => glob.matches_any(path),
            });
        if scheme && method && path {
            Fit::Yes
        } else {
            Fit::No
        }
    }

    /// Whether the rule, where it speaks of a request, also speaks of what its
    /// body calls. What is not seen is not allowed, and is denied.
    pub(super) fn fits_calls(&self, calls: Calls<'_>) -> bool {
        if self.rpc_methods.is_empty() {
            return true;
        }
        let named = |method: &String| self.rpc_methods.iter().any(|known| known.matches(method));
        match (self.action, calls) {
            (Action::Allow, Calls::Seen(methods)) => {
                !methods.is_empty() && methods.iter().all(named)
            }
            (Action::Deny, Calls::Seen(methods)) => methods.iter().any(named),
            (action, Calls::Unseen) => action == Action::Deny,
            (action, Calls::Awaited) => action == Action::Allow,
        }
    }

    /// Whether the rule has a word on requests in clear text, and on nothing that
    /// is seen of a tunnel.
    pub(super) fn is_about_clear_text(&self) -> bool {
        self.http && !self.https
    }

    /// Clear text in a tunnel is judged request by request, so a rule is asked
    /// here for its word on what cannot be seen, which is TLS.
    fn fits_tunnel(&self) -> Fit {
        match self.action {
            Action::Allow if self.https && !self.is_limited() => Fit::Yes,
            Action::Allow => Fit::Inside,
            Action::Deny if !self.https => Fit::No,
            Action::Deny if self.http && !self.is_limited() => Fit::Yes,
            Action::Deny => Fit::Inside,
        }
    }

    /// Whether an allow rule lets this address be dialled for a target that
    /// the rule speaks of; `literal` is the target where it is an address.
    pub(super) fn admits(&self, address: IpAddr, literal: Option<IpAddr>) -> bool {
        let class = class_of(address);
        if !self.ranges.is_empty() {
            return match class {
                // A large range is no leave to read a machine's credentials.
                AddressClass::Metadata => self.ranges.names(address),
                _ => self.ranges.contains(address),
            };
        }
        class == AddressClass::Public
            || (literal == Some(address)
                && self
                    .hosts
                    .contains(&HostPattern::Exact(Host::Address(address))))
    }
}

impl Agents {
    pub(super) fn contain(&self, agent: &AgentId) -> bool {
        match self {
            Self::Any => true,
            Self::These { names, prefixes } => {
                prefixes.iter().any(|p| agent.as_str().starts_with(&**p)) || names.contains(agent)
            }
        }
    }
}

impl Ports {
    pub(super) fn contains(&self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Ranges(ranges) => ranges
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&port)),
        }
    }
}

/// Reads one rule, and puts every mistake in it on the list. What it gives is
/// used only if the list stays empty.
pub(super) fn compile(
    written: &RuleDocument,
    place: Place<'_>,
    errors: &mut Vec<PolicyError>,
) -> Rule {
    let mut reader = Reader { place, errors };
    reader.name(&written.name);
    if written.action == Action::Deny {
        reader.allow_only(written);
    }
    if written.hosts.is_none() && written.addresses.is_none() {
        reader.report("", Problem::NoDestination);
    }
    let hosts = reader.each("hosts", written.hosts.as_deref(), |raw| host(raw));
    let mut ranges = reader.each("addresses", written.addresses.as_deref(), |raw| range(raw));
    if written.action == Action::Deny {
        let literals = hosts.iter().filter_map(|pattern| match pattern {
            HostPattern::Exact(Host::Address(address)) => {
                AddressRange::parse(&address.to_string()).ok()
            }
            _ => None,
        });
        ranges.extend(literals);
    }
    let schemes = reader.any_or("schemes", written.schemes.as_ref(), |raw| {
        match raw.as_str() {
            "http" => Ok(Scheme::Http),
            "https" => Ok(Scheme::Https),
            _ => Err(Problem::Scheme(raw.clone())),
        }
    });
    let has = |scheme| schemes.is_empty() || schemes.contains(&scheme);
    let ports = match &written.ports {
        None => Ports::Ranges(DEFAULT_PORTS.to_vec()),
        Some(AnyOr::Any) => Ports::Any,
        Some(list) => Ports::Ranges(reader.any_or("ports", Some(list), port)),
    };
    let limits = match &written.limits {
        None => Vec::new(),
        Some(limits) => {
            let name = (place.owner, &*written.name);
            limits::of_rule(limits, name, |member, problem| {
                reader.report(&format!("limits{member}"), problem);
            })
        }
    };
    Rule {
        name: written.name.as_str().into(),
        position: place.position,
        action: written.action,
        mode: written.mode,
        agents: reader.agents(&written.agents),
        hosts,
        ranges: RangeSet::new(ranges),
        ports,
        http: has(Scheme::Http),
        https: has(Scheme::Https),
        methods: reader.any_or("methods", written.methods.as_ref(), |raw| method(raw)),
        paths: reader.any_or("paths", written.paths.as_ref(), |raw| {
            PathGlob::parse(raw).map_err(|error| Problem::Path {
                raw: raw.clone(),
                error,
            })
        }),
        rpc_methods: reader.any_or("rpc_methods", written.rpc_methods.as_ref(), |raw| {
            RpcPattern::parse(raw).map_err(|error| Problem::RpcMethod {
                raw: raw.clone(),
                error,
            })
        }),
        tls: TlsRule {
            tls: written.tls.unwrap_or_default(),
            sni: written.sni.unwrap_or_default(),
            ech: written.ech.unwrap_or_default(),
        },
        refusal: written.refusal.unwrap_or_default(),
        limits,
        require: written.require,
    }
}

/// Which rule of which document.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) source: &'a SourceName,
    /// What its limits are called after, see [`limits::owner_of`].
    pub(super) owner: Option<&'a str>,
    pub(super) position: usize,
}

struct Reader<'a> {
    place: Place<'a>,
    errors: &'a mut Vec<PolicyError>,
}

impl Reader<'_> {
    fn report(&mut self, member: &str, problem: Problem) {
        let dot = if member.is_empty() { "" } else { "." };
        let path = format!("rules[{}]{dot}{member}", self.place.position);
        self.errors
            .push(Finding::new(self.place.source, path, problem));
    }

    fn name(&mut self, name: &str) {
        let plain = |b: u8| (0x20..=0x7e).contains(&b) && b != b'"' && b != b'\\';
        let good = (1..=128).contains(&name.len())
            && name.bytes().all(plain)
            && name.trim().len() == name.len();
        if !good {
            self.report("name", Problem::Name(name.to_owned()));
        }
    }

    /// Parses every entry of a list that must not be empty where it is written.
    fn each<T, U>(
        &mut self,
        member: &str,
        list: Option<&[T]>,
        parse: impl Fn(&T) -> Result<U, Problem>,
    ) -> Vec<U> {
        if list.is_some_and(<[T]>::is_empty) {
            self.report(member, Problem::EmptyList);
        }
        let mut parsed = Vec::with_capacity(list.map_or(0, <[T]>::len));
        for (at, entry) in list.unwrap_or_default().iter().enumerate() {
            match parse(entry) {
                Ok(value) => parsed.push(value),
                Err(problem) => self.report(&format!("{member}[{at}]"), problem),
            }
        }
        parsed
    }

    /// As [`Self::each`], where nothing written and `any` both give an empty
    /// list.
    fn any_or<T, U>(
        &mut self,
        member: &str,
        list: Option<&AnyOr<T>>,
        parse: impl Fn(&T) -> Result<U, Problem>,
    ) -> Vec<U> {
        match list {
            None | Some(AnyOr::Any) => Vec::new(),
            Some(AnyOr::List(entries)) if entries.is_empty() => {
                self.report(member, Problem::EmptyOrAny);
                Vec::new()
            }
            Some(AnyOr::List(entries)) => self.each(member, Some(entries), parse),
        }
    }

    fn agents(&mut self, written: &AnyOr<String>) -> Agents {
        enum Entry {
            Name(AgentId),
            Prefix(Box<str>),
        }
        if *written == AnyOr::Any {
            return Agents::Any;
        }
        let entries = self.any_or("agents", Some(written), |raw| {
            let wrong = |error| Problem::Agent {
                raw: raw.clone(),
                error,
            };
            match raw.strip_suffix('*') {
                Some("") => Err(Problem::AgentStar),
                Some(prefix) => AgentId::parse(prefix)
                    .map(|prefix| Entry::Prefix(prefix.as_str().into()))
                    .map_err(wrong),
                None => AgentId::parse(raw).map(Entry::Name).map_err(wrong),
            }
        });
        let (mut names, mut prefixes) = (Vec::new(), Vec::new());
        for entry in entries {
            match entry {
                Entry::Name(name) => names.push(name),
                Entry::Prefix(prefix) => prefixes.push(prefix),
            }
        }
        Agents::These { names, prefixes }
    }

    fn allow_only(&mut self, written: &RuleDocument) {
        let members = [
            ("tls", written.tls.is_some()),
            ("sni", written.sni.is_some()),
            ("ech", written.ech.is_some()),
            ("limits", written.limits.is_some()),
            ("require", written.require.is_some()),
        ];
        for (member, _) in members.into_iter().filter(|(_, written)| *written) {
            self.report(member, Problem::AllowOnly(member));
        }
    }
}

fn host(raw: &str) -> Result<HostPattern, Problem> {
    HostPattern::parse(raw).map_err(|error| match AddressRange::parse(raw) {
        Ok(_) => Problem::RangeAmongHosts(raw.to_owned()),
        Err(_) => Problem::Host {
            raw: raw.to_owned(),
            error,
        },
    })
}

fn range(raw: &str) -> Result<AddressRange, Problem> {
    AddressRange::parse(raw).map_err(|message| Problem::Range {
        raw: raw.to_owned(),
        message,
    })
}

fn port(entry: &PortEntry) -> Result<(u16, u16), Problem> {
    let wrong = || Problem::Port(entry.to_string());
    let number = |digits: &str| -> Option<u16> {
        let plain = digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|port| plain && *port != 0)
    };
    match entry {
        PortEntry::Number(port) => match u16::try_from(*port) {
            Ok(port) if port != 0 => Ok((port, port)),
            _ => Err(wrong()),
        },
        PortEntry::Text(text) => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => Ok((first, last)),
                (Some(first), Some(last)) => Err(Problem::PortOrder(first, last)),
                _ => Err(wrong()),
            }
        }
    }
}

fn method(raw: &str) -> Result<Method, Problem> {
    let upper = raw.to_ascii_uppercase();
    if upper == "CONNECT" {
        return Err(Problem::MethodConnect);
    }
    match Method::from_bytes(raw.as_bytes()) {
        Ok(_) if upper != raw => Err(Problem::MethodCase(raw.to_owned(), upper)),
        Ok(method) => Ok(method),
        Err(_) => Err(Problem::Method(raw.to_owned())),
    }
}

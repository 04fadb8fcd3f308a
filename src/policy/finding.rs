//! What is wrong or doubtful in a document, with its place and what to write.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::locate;
use crate::egress::{DestinationError, HostPatternError, IdError, PathGlobError, RpcPatternError};
use crate::limit::QuotaError;

/// What a document is called in messages: its file name, or the variable it
/// came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct SourceName(Arc<str>);

/// A place in a text. Both count from 1; a column is a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Location {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

/// Something found in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding<W> {
    /// In which document.
    pub source: SourceName,
    /// Where in it: `rules[2].hosts[0]`; empty for the whole document.
    pub path: Box<str>,
    /// Where in its text, once [`Finding::locate`] has looked.
    pub location: Option<Location>,
    /// What it is.
    pub what: W,
}

/// A mistake: the document is not taken.
pub type PolicyError = Finding<Problem>;

/// A doubt: the document is taken, and may not do what its author means.
pub type PolicyWarning = Finding<Concern>;

/// What is wrong. Every message says what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The text is no document: its syntax, a member that is unknown, missing,
    /// written twice or of another type.
    #[error("{0}")]
    Text(String),
    /// Over [`super::MAX_DOCUMENT_BYTES`].
    #[error("the document is larger than 16 MiB; split it by tenant")]
    TooLarge,
    /// Aliases that multiply.
    #[error("its YAML aliases stand for more than four million values; write the lists out")]
    Aliases,
    /// Another version than 1.
    #[error("version {0} is not known; write 1")]
    Version(u32),
    /// Not a tenant's name.
    #[error("{raw:?}: {error}")]
    Tenant {
        /// As it is written.
        raw: String,
        /// Why not.
        error: IdError,
    },
    /// A tenant has one document for tokens of whatever audience.
    #[error(
        "tenant {tenant:?} has a document already, {other}; put the rules of both into one, or name in one of them the `audience` of the tokens that it is for"
    )]
    TenantTwice {
        /// Whose.
        tenant: String,
        /// The other document.
        other: SourceName,
    },
    /// A token for an audience has one document.
    #[error(
        "audience {audience:?} of tenant {tenant:?} has a document already, {other}; name it in one of them only"
    )]
    AudienceTwice {
        /// Whose.
        tenant: String,
        /// Which one.
        audience: String,
        /// The other document.
        other: SourceName,
    },
    /// `audience` in a document that is for everybody.
    #[error("`audience` is about the tokens of one tenant; write `tenant` too, or take it away")]
    AudienceWithoutTenant,
    /// Not what an `aud` can be.
    #[error("{0:?}: write an audience of 1 to 256 bytes without control characters")]
    Audience(String),
    /// Not a name that can stand in records.
    #[error(
        "{0:?}: write a name of 1 to 128 printable ASCII characters, without quotes and backslashes"
    )]
    Name(String),
    /// Two rules, one name.
    #[error("{name:?} is the name of rules[{first}] already; give each rule its own")]
    NameTwice {
        /// The name.
        name: String,
        /// The first rule that has it, counted from 0.
        first: usize,
    },
    /// Neither `hosts` nor `addresses`.
    #[error(
        "the rule names no destination; write `hosts`, `addresses` or both (`hosts: [\"*\"]` is every host)"
    )]
    NoDestination,
    /// An empty list, where `any` can be written.
    #[error("the list is empty; write `any`, or what the rule is for")]
    EmptyOrAny,
    /// An empty list.
    #[error("the list is empty; write an entry, or take the member away")]
    EmptyList,
    /// Two commas, or one at an end.
    #[error("the entry is empty; take the comma away")]
    EmptyEntry,
    /// Not an agent's name or prefix.
    #[error("{raw:?}: {error}; write a name, or a beginning as in \"ci-*\"")]
    Agent {
        /// As it is written.
        raw: String,
        /// Why not.
        error: IdError,
    },
    /// A star alone, in a list of agents.
    #[error("\"*\": write `agents: any`")]
    AgentStar,
    /// A star alone, in `agent_modes`.
    #[error("\"*\": for all agents write `mode:` of the document")]
    AgentModeStar,
    /// Not a host pattern.
    #[error("{raw:?}: {error}")]
    Host {
        /// As it is written.
        raw: String,
        /// Why not.
        error: HostPatternError,
    },
    /// A range among hosts.
    #[error("{0:?}: a range of addresses belongs in `addresses`")]
    RangeAmongHosts(String),
    /// Not a range.
    #[error("{raw:?}: {message}")]
    Range {
        /// As it is written.
        raw: String,
        /// Why not, and what to write.
        message: String,
    },
    /// Neither host nor range.
    #[error("{raw:?}: {error}")]
    Destination {
        /// As it is written.
        raw: String,
        /// Why not.
        error: DestinationError,
    },
    /// Not a port.
    #[error("{0}: write a port from 1 to 65535, or a range such as \"8000-8999\"")]
    Port(String),
    /// A range that ends before it begins.
    #[error("\"{0}-{1}\": write \"{1}-{0}\"")]
    PortOrder(u16, u16),
    /// Not a scheme.
    #[error("{0:?}: write \"http\" or \"https\"")]
    Scheme(String),
    /// Not a method in upper case.
    #[error("{0:?}: write {1:?}")]
    MethodCase(String, String),
    /// Not a method.
    #[error("{0:?} is not a method; write one such as \"GET\"")]
    Method(String),
    /// `CONNECT` among methods.
    #[error(
        "\"CONNECT\": methods are those inside a tunnel; a rule without `methods` and `paths` allows tunnels"
    )]
    MethodConnect,
    /// Not a pattern of paths.
    #[error("{raw:?}: {error}")]
    Path {
        /// As it is written.
        raw: String,
        /// Why not.
        error: PathGlobError,
    },
    /// Not a method of JSON-RPC.
    #[error("{raw:?}: {error}")]
    RpcMethod {
        /// As it is written.
        raw: String,
        /// Why not.
        error: RpcPatternError,
    },
    /// `tls`, `sni`, `ech` or `limits` in a deny rule.
    #[error("`{0}` says what an allowed request may do; take it out of the deny rule")]
    AllowOnly(&'static str),
    /// Not a quota.
    #[error("{0}")]
    Quota(QuotaError),
    /// `concurrent: 0`.
    #[error("0 at once lets nothing pass; write a deny rule for that")]
    NoneAtOnce,
    /// `limits` without any.
    #[error(
        "no limit is written; write `requests`, `connections`, `concurrent`, `bytes_up` or `bytes_down`"
    )]
    NoLimit,
    /// `limits` of a document without any.
    #[error("nobody is limited; write `agent`, `tenant`, `token` or `destination`")]
    NoLimitScope,
    /// `per` in the limits of a document.
    #[error("`per` is for rules; here the member above says for whom it is counted")]
    PerOutsideRule,
}

/// What is doubtful.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Concern {
    /// `hosts: ["*"]` in an allow rule.
    #[error("allows every public host; name the hosts, unless that is meant")]
    EveryHost,
    /// A range that holds everything, in an allow rule.
    #[error("{0} holds every address, also private ones and this machine's own; name the networks")]
    EveryAddress(String),
    /// One entry twice.
    #[error("{0:?} stands in this list already; take it away")]
    Twice(String),
    /// Another entry holds this one.
    #[error("{0:?} is held by {1:?} in the same list; take it away")]
    Held(String, String),
    /// An allow rule whose every host is on the denylist.
    #[error("never matches: the denylist of {denylist} has {entry:?}, and deny wins")]
    Denylisted {
        /// Whose denylist.
        denylist: SourceName,
        /// Its entry.
        entry: String,
    },
    /// A rule that says the same as one before it.
    #[error("never decides: rules[{0}] says the same; take it away")]
    SameAs(usize),
    /// An allow rule that another deny rule takes everything from.
    #[error("never matches: rule {rule:?} of {document} refuses all of it, and deny wins")]
    Refused {
        /// Where the deny rule is.
        document: SourceName,
        /// Its name.
        rule: String,
    },
    /// An allow rule behind one that speaks of all that it speaks of.
    #[error(
        "never decides: rules[{0}] stands before it and speaks of all its hosts, agents, ports, methods and paths; take it away, or put it first"
    )]
    Shadowed(usize),
    /// A wildcard below a name under which anybody can have one.
    #[error(
        "{0:?}: names below {1} belong to whoever registers one; name the hosts, or the domain that is meant"
    )]
    PublicSuffix(String, String),
    /// An allow rule limited by methods or paths on port 443.
    #[error(
        "a tunnel to port 443 cannot be held to {0} and is refused by this rule; the rule works for requests whose inside is seen"
    )]
    NotForTunnels(&'static str),
    /// Allow rules that neither their own limits nor a document's bound. Said
    /// once for each document, at the first of them, with how many more.
    #[error(
        "has no limits{}: only the gateway's own bound how much agents use it; write limits in the rule or in its document",
        if *.0 == 0 { String::new() } else { format!(", as {} more of this document", .0) }
    )]
    Unlimited(usize),
}

impl<W> Finding<W> {
    pub(super) fn new(source: &SourceName, path: impl Into<Box<str>>, what: W) -> Self {
        Self {
            source: source.clone(),
            path: path.into(),
            location: None,
            what,
        }
    }

    /// Finds the lines and columns of findings in the text of their document.
    /// Reads the text once more, so do it only for what is shown.
    pub fn locate(findings: &mut [Self], source: &SourceName, text: &str) {
        let mine = || |finding: &&mut Self| finding.source == *source && finding.location.is_none();
        let paths: Vec<Box<str>> = findings
            .iter_mut()
            .filter(mine())
            .map(|finding| finding.path.clone())
            .collect();
        let found = locate::locate(text, &paths);
        for (finding, location) in findings.iter_mut().filter(mine()).zip(found) {
            finding.location = location;
        }
    }
}

impl<W: fmt::Display> fmt::Display for Finding<W> {
    /// `policy.yaml:12:15: rules[2].hosts[0]: "*.Example.com": write "*.example.com"`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)?;
        if let Some(location) = self.location {
            write!(f, ":{location}")?;
        }
        f.write_str(": ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        self.what.fmt(f)
    }
}

impl<W: fmt::Display + fmt::Debug> std::error::Error for Finding<W> {}

impl<W: fmt::Display> Serialize for Finding<W> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = out.serialize_struct("Finding", 4)?;
        fields.serialize_field("source", &self.source)?;
        fields.serialize_field("path", &self.path)?;
        fields.serialize_field("location", &self.location)?;
        fields.serialize_field("message", &self.what.to_string())?;
        fields.end()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl SourceName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: Into<Arc<str>>> From<T> for SourceName {
    fn from(name: T) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

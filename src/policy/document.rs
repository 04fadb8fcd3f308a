//! The policy as it is written, and reading it from text. Nothing here judges
//! whether a host or a port is valid: that is `rule`, which reports all
//! mistakes at once.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::apart::{self, Apart};
use super::decision::{EchRule, RefusalForm, SniRule, TlsUse};
use super::finding::{Finding, Location, PolicyError, Problem, SourceName};
use super::limits::{DocumentLimits, LimitsDocument};
use super::locate;
use super::proven::Requirement;
use crate::egress::{AddressRange, Destination, TenantId};

/// The most bytes the text of one document may have.
pub const MAX_DOCUMENT_BYTES: usize = 16 * 1024 * 1024;

/// The most nodes a document may have once its YAML aliases are followed.
pub(super) const MAX_EXPANDED_NODES: u64 = 4_000_000;

/// One policy file.
///
/// ```yaml
/// version: 1
/// rules:
///   - name: openai
///     action: allow
///     agents: any
///     hosts: ["api.openai.com"]
///     ports: [443]
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyDocument {
    /// The version of this format: 1.
    #[schemars(extend("const" = 1))]
    pub version: u32,
    /// Whom the document is for. Without it, for everybody: a global document.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub tenant: Option<String>,
    /// Of the tenant's tokens those that are for one of these (`aud`). For
    /// documents with `tenant`. Without it, every token of the tenant that the
    /// gateway trusts and that no other document of the tenant names; where
    /// none is for a token, it is refused.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(min = 1))]
    pub audience: Option<Vec<String>>,
    /// `enforce` or `audit`, for every rule that does not say it itself.
    /// Without it, as the gateway is set.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub mode: Option<Mode>,
    /// The mode for single agents, such as the first that a new policy is
    /// tried on: `{bot-canary: enforce, "ci-*": audit}`. It goes before the
    /// document's `mode`; an exact name before a beginning, and the longer
    /// beginning before the shorter.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub agent_modes: Option<AgentModes>,
    /// Whether audit mode also lets pass, and writes down, what goes to
    /// addresses that are not public. Without it, those are refused in audit
    /// mode too. A cloud's metadata address is refused in any case.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub audit_addresses: Option<bool>,
    /// Hosts (`api.example.com`, `*.example.com`) and address ranges
    /// (`203.0.113.0/24`) that no agent reaches, whatever a rule allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denylist: Vec<String>,
    /// How much those may do whom the document is for.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub limits: Option<DocumentLimits>,
    /// What is allowed, and what is refused in spite of that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleDocument>,
}

/// One rule, as it is written. It needs `hosts`, `addresses` or both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [{"required": ["hosts"]}, {"required": ["addresses"]}]))]
pub struct RuleDocument {
    /// What records and refusals call it: unique in its document, 1 to 128
    /// printable ASCII characters.
    pub name: String,
    /// `allow` or `deny`. Deny wins.
    pub action: Action,
    /// `any`, or agents by name; `ci-*` stands for all names that begin so.
    pub agents: AnyOr<String>,
    /// Which hosts: `api.example.com` is exactly that name, `*.example.com`
    /// the names below it and not itself, `*` every host.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(min = 1))]
    pub hosts: Option<Vec<String>>,
    /// Which addresses, as ranges. In an allow rule only these may be dialled,
    /// and addresses in them need not be public. A cloud's metadata address
    /// must be named alone, as `169.254.169.254/32`.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(min = 1))]
    pub addresses: Option<Vec<String>>,
    /// `any`, or ports (`443`) and ranges of them (`"8000-8999"`). Without it,
    /// 80 and 443.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub ports: Option<AnyOr<PortEntry>>,
    /// `http` (clear text), `https` or both. Without it, both. Looked at where
    /// the inside of a connection is seen.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub schemes: Option<AnyOr<String>>,
    /// `any`, or methods, in upper case. Without it, any. A tunnel whose
    /// inside is not seen cannot be held to methods.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub methods: Option<AnyOr<String>>,
    /// `any`, or patterns of paths: `*` within one segment, `/**` for all
    /// below. Without it, any. A tunnel whose inside is not seen cannot be
    /// held to paths.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub paths: Option<AnyOr<String>>,
    /// `any`, or methods of JSON-RPC (`eth_call`), exact to the letter, and
    /// beginnings of them (`eth_*`). An allow rule must name all that a batch
    /// calls, of a deny rule one is enough. Without it, the body is not looked
    /// at. A tunnel whose inside is not seen cannot be held to them.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub rpc_methods: Option<AnyOr<String>>,
    /// `enforce` or `audit`, for this rule. Without it, as the document.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub mode: Option<Mode>,
    /// What a tunnel may carry: `strict` (the default) is TLS or HTTP, `any`
    /// is any bytes. For allow rules.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub tls: Option<TlsUse>,
    /// The name in the ClientHello: `match` (the default) must be the host that
    /// was asked for, `optional` may be absent, `any` may be another one. For
    /// allow rules.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub sni: Option<SniRule>,
    /// A ClientHello whose name is encrypted: `refuse` (the default) or
    /// `allow`. For allow rules.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub ech: Option<EchRule>,
    /// How a `CONNECT` is told that this rule refuses it: `connect` (the
    /// default) is the answer to it, `inside` the answer to the first request
    /// in the tunnel, for clients that take the other for a fault of the
    /// network. It needs `refusals` in the gateway's configuration.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub refusal: Option<RefusalForm>,
    /// How much of what the rule allows. For allow rules.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub limits: Option<LimitsDocument>,
    /// What must have proven the agent: `token`, `certificate`, or `both`, of
    /// the same agent. Without it, what the listener asks of everybody
    /// (`identity.require`). For allow rules.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub require: Option<Requirement>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Lets pass what it names.
    Allow,
    /// Refuses what it names.
    Deny,
}

/// Whether a refusal binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// What policy refuses does not pass.
    Enforce,
    /// What policy refuses passes, and the record says that it would not have.
    Audit,
}

/// Agents, by name or by a beginning as in `ci-*`, each with its mode, as they
/// are written. None stands twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentModes(pub Vec<(String, Mode)>);

/// `any`, written out, or a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyOr<T> {
    /// `any`.
    Any,
    /// These. An empty list is an error, and never means `any`.
    List(Vec<T>),
}

/// A port, or a range of ports, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortEntry {
    /// `443`.
    Number(u64),
    /// `"8000-8999"`.
    Text(String),
}

/// How a document is written. A file's extension says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// YAML 1.2.
    Yaml,
    /// JSON, RFC 8259.
    Json,
}

impl Format {
    /// By a file's extension: `yaml`, `yml` or `json`, in any case.
    #[must_use]
    pub fn from_extension(extension: &str) -> Option<Self> {
        let is = |known: &str| extension.eq_ignore_ascii_case(known);
        match () {
            () if is("yaml") || is("yml") => Some(Self::Yaml),
            () if is("json") => Some(Self::Json),
            () => None,
        }
    }
}

impl PolicyDocument {
    /// Reads a document from its text. A member written twice, an unknown one
    /// and a value of another type are errors.
    ///
    /// # Errors
    /// The first thing that is not as the format has it, with line and column.
    pub fn parse(source: &SourceName, format: Format, text: &str) -> Result<Self, PolicyError> {
        let failed = |path: String, location, problem| Finding {
            source: source.clone(),
            path: path.into(),
            location,
            what: problem,
        };
        if text.len() > MAX_DOCUMENT_BYTES {
            return Err(failed(String::new(), None, Problem::TooLarge));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let parsed = match format {
            Format::Yaml => {
                // Without an anchor there is nothing to repeat, and nearly no
                // policy has one; so this second pass is rare.
                if text.contains('&') && locate::expanded_nodes(text) > MAX_EXPANDED_NODES {
                    return Err(failed(String::new(), None, Problem::Aliases));
                }
                match Self::parse_apart(text) {
                    Some(document) => Ok(document),
                    None => yaml_serde::from_str(text).map_err(|error| yaml_problem(text, error)),
                }
            }
            Format::Json => serde_json::from_str(text).map_err(json_problem),
        };
        parsed.map_err(|(path, location, message)| failed(path, location, Problem::Text(message)))
    }

    /// The document, where it has a long denylist that can be read apart, and
    /// no mistake in what is around it.
    fn parse_apart(text: &str) -> Option<Self> {
        let apart = Apart::of(text, apart::MANY)?;
        let around = yaml_serde::from_str(&apart.around).ok()?;
        apart.into_whole(around)
    }

    /// Whom a text would be for that is no document because of a mistake, as
    /// far as it can be told: so that the mistake is that tenant's alone. A
    /// global document has no `tenant`, and half of one has none either.
    #[must_use]
    pub fn tenant_in(format: Format, text: &str) -> Option<TenantId> {
        #[derive(Deserialize)]
        struct Head {
            tenant: Option<String>,
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        // Aliases are for documents; a head has none.
        let head: Option<Head> = match format {
            _ if text.len() > MAX_DOCUMENT_BYTES => None,
            Format::Yaml if text.contains('&') => None,
            Format::Yaml => yaml_serde::from_str(text).ok(),
            Format::Json => serde_json::from_str(text).ok(),
        };
        if let Some(tenant) = head.and_then(|head| head.tenant) {
            return TenantId::parse(&tenant).ok();
        }
        let mut lines = text
            .lines()
            .filter_map(|line| line.strip_prefix("tenant:"))
            .map(|rest| rest.split(" #").next().unwrap_or(rest).trim())
            .map(|value| value.trim_matches(['"', '\'']));
        match (lines.next(), lines.next(), format) {
            (Some(only), None, Format::Yaml) => TenantId::parse(only).ok(),
            _ => None,
        }
    }

    /// The document that `ALLOWED_DESTINATIONS=api.openai.com,10.1.0.0/16`
    /// stands for: these hosts and ranges on ports 80 and 443, for every agent.
    ///
    /// # Errors
    /// Every entry that is neither a host pattern nor a range.
    pub fn from_allowed_destinations(
        source: &SourceName,
        text: &str,
    ) -> Result<Self, Vec<PolicyError>> {
        let mut errors = Vec::new();
        let (mut hosts, mut ranges) = (Vec::new(), Vec::new());
        for (at, entry) in text.split(',').map(str::trim).enumerate() {
            let problem = match Destination::parse(entry) {
                _ if entry.is_empty() => Problem::EmptyEntry,
                Ok(Destination::Host(pattern)) => {
                    hosts.push(pattern.to_string());
                    continue;
                }
                Ok(Destination::Range(range)) => {
                    ranges.push(AddressRange::to_string(&range));
                    continue;
                }
                Err(error) => Problem::Destination {
                    raw: entry.to_owned(),
                    error,
                },
            };
            errors.push(Finding::new(source, format!("[{at}]"), problem));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let rule = |name: &str, hosts: Vec<String>, ranges: Vec<String>| RuleDocument {
            name: name.to_owned(),
            action: Action::Allow,
            agents: AnyOr::Any,
            hosts: (!hosts.is_empty()).then_some(hosts),
            addresses: (!ranges.is_empty()).then_some(ranges),
            ports: None,
            schemes: None,
            methods: None,
            paths: None,
            rpc_methods: None,
            mode: None,
            tls: None,
            sni: None,
            ech: None,
            refusal: None,
            limits: None,
            require: None,
        };
        let mut rules = Vec::new();
        if !hosts.is_empty() {
            rules.push(rule("allowed-hosts", hosts, Vec::new()));
        }
        if !ranges.is_empty() {
            rules.push(rule("allowed-addresses", Vec::new(), ranges));
        }
        Ok(Self {
            version: 1,
            tenant: None,
            audience: None,
            mode: None,
            agent_modes: None,
            audit_addresses: None,
            denylist: Vec::new(),
            limits: None,
            rules,
        })
    }
}

type Failed = (String, Option<Location>, String);

/// Takes the place out of the message, since it is told apart.
fn yaml_problem(text: &str, error: yaml_serde::Error) -> Failed {
    let location = error.location().map(|at| Location {
        line: at.line(),
        column: at.column(),
    });
    if let Some(message) = tabbed(text, location) {
        return (String::new(), location, message);
    }
    let full = error.to_string();
    let message = match full.rfind(" at line ") {
        Some(at) if location.is_some() => &full[..at],
        _ => &full,
    };
    if message.contains("alias") || message.contains("unknown anchor") {
        let message =
            format!("{message}; a value that begins with a star needs quotes: \"*.example.com\"");
        return (String::new(), location, message);
    }
    // `rules[0].hosts: invalid type: …`: the path has no space, other prefixes do.
    let (path, message) = match message.split_once(": ") {
        Some((path, rest)) if is_path(path) => (path, rest),
        _ => ("", message),
    };
    (path.to_owned(), location, message.to_owned())
}

/// What is wrong where YAML broke off at a line that a tab indents, which the
/// parser tells in other words.
pub(super) fn tabbed(text: &str, at: Option<Location>) -> Option<String> {
    let line = text.lines().nth(at?.line.checked_sub(1)?)?;
    let indent = line.split(|c| c != ' ' && c != '\t').next()?;
    indent
        .contains('\t')
        .then(|| "a tab indents this line: write spaces".to_owned())
}

fn is_path(text: &str) -> bool {
    [
        "version",
        "tenant",
        "audience",
        "mode",
        "agent_modes",
        "audit_addresses",
        "denylist",
        "limits",
        "rules",
    ]
    .iter()
    .any(|root| {
        text.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['[', '.']))
    }) && !text.contains(' ')
}

fn json_problem(error: serde_json::Error) -> Failed {
    let full = error.to_string();
    let message = full.rfind(" at line ").map_or(&*full, |at| &full[..at]);
    let location = (error.line() > 0).then(|| Location {
        line: error.line(),
        column: error.column().max(1),
    });
    (String::new(), location, message.to_owned())
}

/// A member that is written must have a value: `paths:` with nothing behind it
/// is a slip, and must not mean the same as no `paths`.
pub(super) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for AnyOr<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = AnyOr<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`any` or a list in brackets")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<AnyOr<T>, E> {
                match text {
                    "any" => Ok(AnyOr::Any),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<AnyOr<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(entry) = seq.next_element()? {
                    list.push(entry);
                }
                Ok(AnyOr::List(list))
            }
        }
        from.deserialize_any(Either(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for AnyOr<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("AnyOr{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let entry = generator.subschema_for::<T>();
        json_schema!({"anyOf": [
            {"const": "any"},
            {"type": "array", "items": entry, "minItems": 1},
        ]})
    }
}

impl JsonSchema for PortEntry {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "PortEntry".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 65535},
            {"type": "string", "pattern": "^[0-9]+(-[0-9]+)?$"},
        ]})
    }
}

impl<T: Serialize> Serialize for AnyOr<T> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => out.serialize_str("any"),
            Self::List(list) => list.serialize(out),
        }
    }
}

impl<'de> Deserialize<'de> for AgentModes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Modes;
        impl<'de> Visitor<'de> for Modes {
            type Value = AgentModes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("agents with `enforce` or `audit`, as in {bot-canary: enforce}")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AgentModes, A::Error> {
                let mut modes = Vec::<(String, Mode)>::new();
                let mut seen = HashSet::new();
                while let Some((agent, mode)) = map.next_entry::<String, Mode>()? {
                    if !seen.insert(agent.clone()) {
                        let twice = format!("{agent:?} stands twice; write it once");
                        return Err(de::Error::custom(twice));
                    }
                    modes.push((agent, mode));
                }
                Ok(AgentModes(modes))
            }
        }
        from.deserialize_map(Modes)
    }
}

impl JsonSchema for AgentModes {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "AgentModes".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mode = generator.subschema_for::<Mode>();
        json_schema!({"type": "object", "additionalProperties": mode, "minProperties": 1})
    }
}

impl Serialize for AgentModes {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_map(self.0.iter().map(|(agent, mode)| (agent, mode)))
    }
}

impl<'de> Deserialize<'de> for PortEntry {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Port;
        impl Visitor<'_> for Port {
            type Value = PortEntry;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port such as 443, or a range such as \"8000-8999\"")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<PortEntry, E> {
                Ok(PortEntry::Number(number))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortEntry, E> {
                Ok(PortEntry::Text(text.to_owned()))
            }
        }
        from.deserialize_any(Port)
    }
}

impl Serialize for PortEntry {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => out.serialize_u64(*number),
            Self::Text(text) => out.serialize_str(text),
        }
    }
}

impl Mode {
    /// The word, as documents and records write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for PortEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

//! Lays the file, the environment and the flags over the defaults, and reads
//! every key from what lies on top.
//!
//! What lies below is read too: a mistake in the file is one even where a
//! variable hides it today.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::sync::LazyLock;

use super::error::{ConfigError, Place, nearest, slipped};
use super::settings::{self, BOUNDS, Config};
use super::tree::{self, Node, Value};
use super::value::{Secret, Setting};

/// What a configuration is made of, as written.
#[derive(Debug, Default)]
pub struct Sources<'a> {
    /// The file, where there is one: its name, for messages, and its text.
    pub file: Option<(&'a str, &'a str)>,
    /// The whole environment, as `std::env::vars_os` gives it. Only the
    /// gateway's own variables are looked at.
    pub environment: Vec<(OsString, OsString)>,
    /// The command line.
    pub flags: Vec<Override>,
}

/// One flag of the command line.
#[derive(Clone, Debug)]
pub struct Override {
    /// The flag, as the user wrote it: `--listen`.
    pub flag: String,
    /// The key that it sets: `listen.egress`.
    pub key: String,
    /// The value, written as in an environment variable.
    pub value: String,
}

/// What the configuration is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To serve, which needs a key.
    Serve,
    /// For a command that can do without one.
    Command,
}

impl Config {
    /// Reads the settings: the file over the defaults, the environment over
    /// the file, flags over the environment.
    ///
    /// # Errors
    /// Every mistake of every source, at least one, in the order of the
    /// sources and of the lines of the file.
    pub fn load(sources: &Sources<'_>, purpose: Purpose) -> Result<Self, Vec<ConfigError>> {
        let mut reader = Reader::default();
        reader.defaults();
        if let Some((name, text)) = sources.file {
            reader.file(name, text);
        }
        reader.environment(&sources.environment);
        reader.flags(&sources.flags);
        let config = settings::config(&mut reader, purpose);
        let Reader {
            layers, mut errors, ..
        } = reader;
        match config {
            Some(mut config) if errors.is_empty() => {
                config.shown = show(&config, &layers);
                Ok(config)
            }
            _ => {
                errors.sort_by(|left, right| left.place.cmp(&right.place));
                errors.dedup();
                Err(errors)
            }
        }
    }

    /// The settings as YAML, each with where it was written. No secret is in
    /// it, and reading it back as a file gives the same settings, but for the
    /// secret.
    #[must_use]
    pub fn show(&self) -> &str {
        &self.shown
    }

    /// The reference: every key with its default and what it means, as a
    /// configuration file.
    #[must_use]
    pub fn reference() -> &'static str {
        REFERENCE
    }

    /// The environment variable of a key: `AGENTPORT_TIMEOUTS_CONNECT` of
    /// `timeouts.connect`.
    #[must_use]
    pub fn variable(key: &str) -> String {
        format!("{PREFIX}{}", key.replace('.', "_").to_ascii_uppercase())
    }
}

const REFERENCE: &str = include_str!("reference.yaml");

/// What every variable of ours begins with.
const PREFIX: &str = "AGENTPORT_";

/// Keys that have a second name.
const KEY_ALIASES: &[(&str, &str)] = &[
    ("client_max_body_size", "limits.body_bytes"),
    ("limits.client_max_body_size", "limits.body_bytes"),
];

/// Variables outside the system, and what each sets.
const VARIABLE_ALIASES: &[(&str, &str)] = &[
    ("ALLOWED_DESTINATIONS", "allowed_destinations"),
    ("GOMAXPROCS", "threads"),
];

/// The secrets that the environment may hold.
const SECRET_VARIABLE: &str = "AGENTPORT_JWKS_SECRET";
const REDIS_PASSWORD_VARIABLE: &str = "AGENTPORT_REDIS_PASSWORD";

/// Variables of other programs and commands, which set nothing here: the
/// agent's, the file's own name, and a licence, for which there is no need.
const FOREIGN_VARIABLES: &[&str] = &[
    "AGENTPORT_CA_FILE",
    "AGENTPORT_CONFIG",
    "AGENTPORT_LICENSE",
    "AGENTPORT_TOKEN",
    "AGENTPORT_TOKEN_FILE",
    "AGENTPORT_URL",
];

/// Keys that people write and that are none, with what to write instead.
const HINTS: &[(&str, &str)] = &[
    ("identity.secret", SECRET_HINT),
    ("identity.jwks_secret", SECRET_HINT),
    ("jwks_secret", SECRET_HINT),
    ("redis.password", REDIS_HINT),
    ("upstream_proxy.credentials", PROXY_HINT),
    ("upstream_proxy.password", PROXY_HINT),
    ("workers", "unknown key: write threads"),
    ("worker_count", "unknown key: write threads"),
];

const REDIS_HINT: &str = "secrets do not stand in this file: write redis.password_file, or set \
                          AGENTPORT_REDIS_PASSWORD";

const PROXY_HINT: &str = "secrets do not stand in this file: write user:password into a file, and \
                          its path as upstream_proxy.credentials_file";

const SECRET_HINT: &str = "secrets do not stand in this file: write identity.secret_file, or set \
                           AGENTPORT_JWKS_SECRET";

/// Every key with its default, in the order of the reference, and every
/// section.
struct Known {
    keys: Vec<(String, Node)>,
    sections: Vec<String>,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let mut known = Known {
        keys: Vec::new(),
        sections: Vec::new(),
    };
    // The reference is a part of the program and a test reads it. Were it
    // broken, every key would be missing and no configuration would load.
    if let Ok(Some(root)) = tree::parse("reference.yaml", REFERENCE, &mut Vec::new()) {
        known.gather(String::new(), root.moved_to(&Place::Default));
    }
    known
});

impl Known {
    fn gather(&mut self, path: String, node: Node) {
        let Value::Map(entries) = node.value else {
            self.keys.push((path, node));
            return;
        };
        for entry in entries {
            self.gather(join(&path, &entry.key), entry.node);
        }
        self.sections.push(path);
    }

    fn has_key(&self, path: &str) -> bool {
        self.keys.iter().any(|(key, _)| key == path)
    }

    fn has_section(&self, path: &str) -> bool {
        self.sections.iter().any(|section| section == path)
    }

    /// The key that an unknown one may have meant: one beside it but for a
    /// letter, the same word in another section, or one that is spelled much
    /// like it.
    fn like(&self, path: &str) -> Option<&str> {
        let word = path.rsplit('.').next().unwrap_or(path);
        let sections = self.sections.iter().filter(|path| !path.is_empty());
        let all = || self.keys.iter().map(|(key, _)| key).chain(sections.clone());
        let parent = |key: &str| key.rsplit_once('.').map(|(parent, _)| parent.to_owned());
        let beside = all().filter(|key| parent(key) == parent(path));
        if let Some(slip) = slipped(path, beside.map(String::as_str)) {
            return Some(slip);
        }
        let mut same_word = all().filter(|key| key.rsplit('.').next() == Some(word));
        match (same_word.next(), same_word.next()) {
            (Some(only), None) => Some(only),
            _ => nearest(path, all().map(String::as_str)),
        }
    }
}

/// The layers, and what went wrong so far.
#[derive(Default)]
pub(super) struct Reader<'a> {
    /// What was written for each key, from the lowest layer to the highest.
    layers: BTreeMap<&'a str, Vec<Node>>,
    secret: Option<Node>,
    redis_password: Option<Node>,
    /// `NO_PROXY`, which is other programs' too.
    no_proxy: Option<Node>,
    errors: Vec<ConfigError>,
}

impl Reader<'_> {
    /// Reads a key, within its bounds. Where it cannot, an error says why.
    pub(super) fn value<T: Setting>(&mut self, key: &str) -> Option<T> {
        let mut top = None;
        for node in self.layers.get(key).into_iter().flatten() {
            top = T::read(node, key, &mut self.errors);
            let outside = top.as_ref().and_then(|value| out_of_bounds(key, value));
            if let Some(message) = outside {
                self.errors.push(ConfigError {
                    place: node.place.clone(),
                    key: Some(key.to_owned()),
                    message: format!("{}: {message}", written(node)),
                });
                top = None;
            }
        }
        if top.is_none() && self.errors.is_empty() {
            self.missing(&format!("{key} is not in the reference"));
        }
        top
    }

    /// Reads the top layer of a key, without reporting anything.
    pub(super) fn last<T: Setting>(&self, key: &str) -> Option<T> {
        let node = self.layers.get(key)?.last()?;
        T::read(node, key, &mut Vec::new())
    }

    /// The secret, where one is set.
    pub(super) fn secret(&mut self) -> Option<Option<Secret>> {
        self.read_secret(self.secret.clone(), Secret::parse)
    }

    /// The password of Redis, where the environment has it.
    pub(super) fn redis_password(&mut self) -> Option<Option<Secret>> {
        self.read_secret(self.redis_password.clone(), Secret::password)
    }

    /// Where the key is not written, lets `NO_PROXY` of the environment stand
    /// for it. Asked for only where there is a proxy: the variable is other
    /// programs' too, and says nothing where there is none.
    pub(super) fn no_proxy_of_environment(&mut self, key: &str) {
        if self.is_written(key) {
            return;
        }
        if let (Some(node), Some(layers)) = (self.no_proxy.take(), self.layers.get_mut(key)) {
            layers.push(node);
        }
    }

    fn read_secret(
        &mut self,
        node: Option<Node>,
        parse: fn(&str) -> Result<Secret, String>,
    ) -> Option<Option<Secret>> {
        let Some(node) = node else {
            return Some(None);
        };
        let Value::Scalar(text) = &node.value else {
            return None;
        };
        match parse(text) {
            Ok(secret) => Some(Some(secret)),
            Err(message) => {
                let place = node.place.clone();
                self.push(place, None, message);
                None
            }
        }
    }

    /// Whether a key is written anywhere but in the reference.
    pub(super) fn is_written(&self, key: &str) -> bool {
        self.layers.get(key).is_some_and(|layers| layers.len() > 1)
    }

    /// Reports what is wrong with a key's value, where it was written last.
    pub(super) fn mistake(&mut self, key: &str, message: impl Into<String>) {
        self.mistake_at(key, key.to_owned(), message);
    }

    /// As [`Reader::mistake`], about a part of the key's value.
    pub(super) fn mistake_at(&mut self, key: &str, part: String, message: impl Into<String>) {
        let node = self.layers.get(key).and_then(|layers| layers.last());
        let place = node.map_or(Place::Nowhere, |node| node.place.clone());
        self.push(place, Some(part), message);
    }

    /// Reports that something is missing.
    pub(super) fn missing(&mut self, message: &str) {
        self.push(Place::Nowhere, None, message);
    }

    fn push(&mut self, place: Place, key: Option<String>, message: impl Into<String>) {
        self.errors.push(ConfigError {
            place,
            key,
            message: message.into(),
        });
    }

    fn defaults(&mut self) {
        for (key, node) in &KNOWN.keys {
            self.layers.insert(key, vec![node.clone()]);
        }
    }

    fn file(&mut self, name: &str, text: &str) {
        match tree::parse(name, text, &mut self.errors) {
            Ok(None) => {}
            Ok(Some(root)) => self.section(String::new(), root),
            Err(error) => self.errors.push(error),
        }
    }

    /// Puts a section of the file into the layers.
    fn section(&mut self, path: String, node: Node) {
        let entries = match node.value {
            Value::Map(entries) => entries,
            // A section in which all is commented out.
            Value::Null => return,
            Value::Scalar(_) | Value::List(_) => {
                let key = (!path.is_empty()).then_some(path);
                let message = "write keys and values here, each on its line: `key: value`";
                return self.push(node.place, key, message);
            }
        };
        for entry in entries {
            let path = join(&path, &entry.key);
            let alias = KEY_ALIASES.iter().find(|(alias, _)| *alias == path);
            let key = alias.map_or(path.as_str(), |(_, key)| key);
            if KNOWN.has_section(&path) {
                self.section(path, entry.node);
            } else if !KNOWN.has_key(key) {
                self.push(entry.place, Some(path.clone()), unknown_key(&path));
            } else {
                self.lay_from_file(key, &path, entry.node);
            }
        }
    }

    fn lay_from_file(&mut self, key: &str, path: &str, node: Node) {
        let Some(layers) = self.layers.get_mut(key) else {
            return;
        };
        let earlier = layers.last().filter(|layer| layer.place != Place::Default);
        if let Some(earlier) = earlier {
            let at = earlier.place.clone();
            let message = format!("the same as {key}, which {at} sets too: remove one");
            return self.push(node.place, Some(path.to_owned()), message);
        }
        layers.push(node);
    }

    fn environment(&mut self, variables: &[(OsString, OsString)]) {
        let mut ours: Vec<(&str, &OsString)> = variables
            .iter()
            .filter_map(|(name, value)| Some((name.to_str()?, value)))
            .filter(|(name, value)| is_ours(name, value.to_str()))
            .collect();
        // The order of an environment says nothing. Short names come before
        // the keys' own, which outweigh them.
        ours.sort_by_key(|(name, _)| (name.starts_with(PREFIX), *name));
        for (name, value) in ours {
            let place = Place::Environment(name.to_owned());
            match value.to_str() {
                Some("") => self.push(place, None, "is empty: give it a value, or unset it"),
                Some(value) => self.variable(name, value, place),
                None => self.push(place, None, "is not UTF-8"),
            }
        }
        self.no_proxy = no_proxy(variables);
        let set = |wanted: &str| variables.iter().any(|(name, _)| name == wanted);
        let long = Config::variable("allowed_destinations");
        if set("ALLOWED_DESTINATIONS") && set(&long) {
            let message = "ALLOWED_DESTINATIONS is set too, and is the same: unset one";
            self.push(Place::Environment(long), None, message);
        }
    }

    fn variable(&mut self, name: &str, value: &str, place: Place) {
        if name == SECRET_VARIABLE {
            self.secret = Some(Node::scalar(value, place));
            return;
        }
        if name == REDIS_PASSWORD_VARIABLE {
            self.redis_password = Some(Node::scalar(value, place));
            return;
        }
        match variable_key(name) {
            Some(key) => self.lay(&key, value, place),
            None => self.push(place, None, unknown_variable(name)),
        }
    }

    fn flags(&mut self, flags: &[Override]) {
        for flag in flags {
            let place = Place::Flag(flag.flag.clone());
            let alias = KEY_ALIASES.iter().find(|(alias, _)| *alias == flag.key);
            let key = alias.map_or(flag.key.as_str(), |(_, key)| key);
            if KNOWN.has_key(key) {
                self.lay(key, &flag.value, place);
            } else {
                self.push(place, Some(flag.key.clone()), unknown_key(&flag.key));
            }
        }
    }

    /// Puts a text from outside the file into the layers. Where the key takes
    /// a list, the text may be one in brackets, as in YAML and JSON.
    fn lay(&mut self, key: &str, value: &str, place: Place) {
        let Some(layers) = self.layers.get_mut(key) else {
            return;
        };
        let list = matches!(layers.first(), Some(node) if matches!(node.value, Value::List(_)));
        if !list || !value.trim_start().starts_with('[') {
            layers.push(Node::scalar(value, place));
            return;
        }
        let mut mistakes = Vec::new();
        match tree::parse("", value, &mut mistakes) {
            Ok(Some(node)) => layers.push(node.moved_to(&place)),
            Ok(None) => {}
            Err(error) => mistakes.push(error),
        }
        for mistake in mistakes {
            self.push(place.clone(), Some(key.to_owned()), mistake.message);
        }
    }
}

/// What is wrong with a value's size, where something is.
fn out_of_bounds<T: Setting>(key: &str, value: &T) -> Option<String> {
    let measure = value.measure()?;
    let Some((_, low, high)) = BOUNDS.iter().find(|(bounded, _, _)| *bounded == key) else {
        return (measure == 0).then(|| "write more than zero".to_owned());
    };
    let limit = |text: &str| {
        let node = Node::scalar(text, Place::Default);
        T::read(&node, key, &mut Vec::new()).and_then(|value| value.measure())
    };
    let low_enough = high.is_empty() || limit(high).is_some_and(|high| measure <= high);
    let high_enough = limit(low).is_some_and(|low| measure >= low);
    match (high_enough && low_enough, high.is_empty()) {
        (true, _) => None,
        (false, true) => Some(format!("write {low} or more")),
        (false, false) => Some(format!("write {low} to {high}")),
    }
}

fn written(node: &Node) -> String {
    match &node.value {
        Value::Scalar(text) => format!("{text:?}"),
        Value::Null | Value::List(_) | Value::Map(_) => yaml(node),
    }
}

fn unknown_key(path: &str) -> String {
    if let Some((_, hint)) = HINTS.iter().find(|(key, _)| *key == path) {
        return (*hint).to_owned();
    }
    match KNOWN.like(path) {
        Some(known) => format!("unknown key: did you mean {known}?"),
        None => "unknown key: remove it; policies/agentport.yaml lists those there are".to_owned(),
    }
}

fn unknown_variable(name: &str) -> String {
    let variables: Vec<String> = KNOWN
        .keys
        .iter()
        .map(|(k, _)| Config::variable(k))
        .collect();
    let others = FOREIGN_VARIABLES
        .iter()
        .chain([&SECRET_VARIABLE, &REDIS_PASSWORD_VARIABLE])
        .copied();
    // Only what tells names apart counts for their likeness.
    let candidates = variables.iter().map(String::as_str).chain(others);
    let known = candidates.filter_map(|known| known.strip_prefix(PREFIX));
    match nearest(name.strip_prefix(PREFIX).unwrap_or(name), known) {
        Some(known) => format!("unknown variable: did you mean {PREFIX}{known}?"),
        None => "unknown variable: unset it; policies/agentport.yaml lists the keys".to_owned(),
    }
}

/// `NO_PROXY`, or `no_proxy` before it, as other programs have it too: a list
/// with commas, of which blanks and empty entries are no part.
fn no_proxy(variables: &[(OsString, OsString)]) -> Option<Node> {
    let named = |wanted: &str| {
        let found = variables.iter().find(|(name, _)| name == wanted);
        found.and_then(|(_, value)| Some((wanted.to_owned(), value.to_str()?)))
    };
    let (name, value) = named("no_proxy").or_else(|| named("NO_PROXY"))?;
    let entries: Vec<&str> = value.split(',').map(str::trim).collect();
    let entries: Vec<&str> = entries.into_iter().filter(|one| !one.is_empty()).collect();
    (!entries.is_empty()).then(|| Node::scalar(entries.join(","), Place::Environment(name)))
}

/// The key that a variable sets.
fn variable_key(name: &str) -> Option<String> {
    if let Some((_, key)) = VARIABLE_ALIASES.iter().find(|(alias, _)| *alias == name) {
        return Some((*key).to_owned());
    }
    let keys = KNOWN
        .keys
        .iter()
        .map(|(key, _)| (key.as_str(), key.as_str()));
    keys.chain(KEY_ALIASES.iter().copied())
        .find(|(key, _)| Config::variable(key) == name)
        .map(|(_, key)| key.to_owned())
}

/// Whether a variable is for the gateway to read.
fn is_ours(name: &str, value: Option<&str>) -> bool {
    if VARIABLE_ALIASES.iter().any(|(alias, _)| *alias == name) {
        return true;
    }
    name.starts_with(PREFIX)
        && !FOREIGN_VARIABLES.contains(&name)
        && !is_service_link(name, value.unwrap_or_default())
}

/// Whether Kubernetes or Docker set the variable, because a Service named
/// `agentport` or `agentport-…` is near: `AGENTPORT_SERVICE_HOST`,
/// `AGENTPORT_SERVICE_PORT_HTTP`, `AGENTPORT_PORT=tcp://10.0.0.1:8080` and
/// `AGENTPORT_PORT_8080_TCP_ADDR`. No key of ours has such a variable.
fn is_service_link(name: &str, value: &str) -> bool {
    let rest = name.strip_prefix("AGENTPORT").unwrap_or(name);
    let protocol_port = |rest: &str| {
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (digits, rest) = rest.split_at(end);
        let protocol = ["_TCP", "_UDP", "_SCTP"]
            .iter()
            .any(|p| rest.starts_with(p));
        !digits.is_empty() && protocol
    };
    rest.ends_with("_SERVICE_HOST")
        || rest.ends_with("_SERVICE_PORT")
        || rest.contains("_SERVICE_PORT_")
        || (rest.ends_with("_PORT") && value.contains("://"))
        || rest
            .match_indices("_PORT_")
            .any(|(at, port)| protocol_port(&rest[at + port.len()..]))
}

/// The top of every layer as YAML, in the order of the reference.
fn show(config: &Config, layers: &BTreeMap<&str, Vec<Node>>) -> String {
    let mut out = String::new();
    let mut open: Vec<&str> = Vec::new();
    for (key, _) in &KNOWN.keys {
        let Some(top) = layers.get(key.as_str()).and_then(|layers| layers.last()) else {
            continue;
        };
        let mut words: Vec<&str> = key.split('.').collect();
        let Some(word) = words.pop() else { continue };
        let common = open.iter().zip(&words).take_while(|(l, r)| l == r).count();
        for (depth, section) in words.iter().enumerate().skip(common) {
            line(&mut out, depth, &format!("{section}:"));
        }
        let depth = words.len();
        open = words;
        let unset = key == "policy" && config.policy.is_none();
        let text = if unset {
            format!("# {word}: not used, as only allowed_destinations is set")
        } else {
            format!("{word}: {}  # {}", yaml(top), top.place)
        };
        line(&mut out, depth, &text);
    }
    if config.identity.secret.is_some() {
        line(&mut out, 0, &format!("# {SECRET_VARIABLE}: [redacted]"));
    }
    let redis = config.redis.as_ref();
    if redis.is_some_and(|redis| redis.password.is_some()) {
        line(
            &mut out,
            0,
            &format!("# {REDIS_PASSWORD_VARIABLE}: [redacted]"),
        );
    }
    out
}

fn line(out: &mut String, depth: usize, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{:width$}{text}", "", width = depth * 2);
}

/// A value in YAML's flow style, on one line.
fn yaml(node: &Node) -> String {
    match &node.value {
        Value::Null => "none".to_owned(),
        Value::Scalar(text) => scalar(text),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(yaml).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(entries) => {
            let pair =
                |entry: &tree::Entry| format!("{}: {}", scalar(&entry.key), yaml(&entry.node));
            let entries: Vec<String> = entries.iter().map(pair).collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

/// Bare where no reader of YAML could take it for something else than text.
fn scalar(text: &str) -> String {
    let first = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    if first && text.chars().all(bare) && !text.eq_ignore_ascii_case("null") {
        return text.to_owned();
    }
    // A JSON string is a double-quoted scalar of YAML.
    serde_json::Value::from(text).to_string()
}

fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        _ => format!("{path}.{key}"),
    }
}

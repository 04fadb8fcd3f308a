//! The manifest: which skills there are, in which versions, what they take and
//! give, and how they run. Reads text, never a file, and starts nothing.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method};
use serde_json::{Value, json};

use crate::egress::json;
use crate::openclaw::fields::Fields;
use crate::openclaw::mistakes::{Mistakes, Reader};
use crate::openclaw::template::{JsonTemplate, Template, UrlTemplate};

/// The memory of a process skill that names none, in MiB.
const DEFAULT_MEMORY_MB: u64 = 512;
/// The longest a skill may run, in milliseconds.
const MAX_TIMEOUT_MS: u64 = 15 * 60 * 1000;

/// Every skill, by name and version.
#[derive(Clone, Debug, Default)]
pub(in crate::openclaw) struct Catalog(BTreeMap<String, BTreeMap<Version, Arc<Skill>>>);

/// One version of one skill.
#[derive(Debug)]
pub(in crate::openclaw) struct Skill {
    /// Its name.
    pub(in crate::openclaw) id: String,
    /// Its version.
    pub(in crate::openclaw) version: Version,
    /// What it does, for people and for the model.
    pub(in crate::openclaw) description: String,
    /// What it takes.
    pub(in crate::openclaw) inputs: Fields,
    /// What it gives.
    pub(in crate::openclaw) outputs: Fields,
    /// How it runs.
    pub(in crate::openclaw) runtime: Runtime,
    /// How long it may take, where the manifest says.
    pub(in crate::openclaw) timeout: Option<Duration>,
}

/// How a skill runs.
#[derive(Debug)]
pub(in crate::openclaw) enum Runtime {
    /// A call over HTTP, by the agent itself.
    Http(HttpRuntime),
    /// A process in the sandbox.
    Process(ProcessRuntime),
}

/// A call over HTTP.
#[derive(Debug)]
pub(in crate::openclaw) struct HttpRuntime {
    /// The method.
    pub(in crate::openclaw) method: Method,
    /// Where to.
    pub(in crate::openclaw) url: UrlTemplate,
    /// Headers beside those the agent sets.
    pub(in crate::openclaw) headers: Vec<(HeaderName, Template)>,
    /// A JSON body.
    pub(in crate::openclaw) body: Option<JsonTemplate>,
    /// How the answer is read.
    pub(in crate::openclaw) response: ResponseKind,
}

/// How the body of an answer becomes the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::openclaw) enum ResponseKind {
    /// It is JSON. An object is the output, anything else its member `body`.
    Json,
    /// It is text, and the output is `{status, body}`.
    Text,
}

/// A process in the sandbox.
#[derive(Debug)]
pub(in crate::openclaw) struct ProcessRuntime {
    /// The program and its arguments.
    pub(in crate::openclaw) command: Vec<String>,
    /// Address space of each of its processes, in bytes.
    pub(in crate::openclaw) memory_bytes: u64,
    /// Whether it may use the gateway.
    pub(in crate::openclaw) network: Network,
}

/// What a process skill sees of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::openclaw) enum Network {
    /// Nothing.
    None,
    /// A proxy on its own loopback, which is the gateway.
    Gateway,
}

/// `major.minor.patch` (Semantic Versioning 2.0.0, without pre-releases: a
/// manifest lists what is in force).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::openclaw) struct Version {
    /// Changes when callers break.
    pub(in crate::openclaw) major: u64,
    minor: u64,
    patch: u64,
}

impl FromStr for Version {
    type Err = ();

    fn from_str(raw: &str) -> Result<Self, ()> {
        let number = |part: &str| -> Result<u64, ()> {
            let canonical = part == "0" || !part.starts_with('0');
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if !(canonical && digits) {
                return Err(());
            }
            part.parse().map_err(drop)
        };
        match raw.split('.').collect::<Vec<_>>().as_slice() {
            [major, minor, patch] => Ok(Self {
                major: number(major)?,
                minor: number(minor)?,
                patch: number(patch)?,
            }),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Catalog {
    /// Reads a manifest.
    ///
    /// # Errors
    /// Every mistake, one a line, with its path and what to write.
    pub(in crate::openclaw) fn parse(text: &[u8]) -> Result<Self, Vec<String>> {
        let raw = json::parse(text).map_err(|e| vec![format!("is not JSON: {e}")])?;
        let mut mistakes = Mistakes::default();
        let catalog = Self::read(&raw, &mut mistakes);
        let lines = mistakes.into_lines();
        if lines.is_empty() {
            Ok(catalog)
        } else {
            Err(lines)
        }
    }

    fn read(raw: &Value, mistakes: &mut Mistakes) -> Self {
        let mut catalog = Self::default();
        let Some(mut reader) = Reader::object(raw, "", mistakes) else {
            return catalog;
        };
        let what = "write \"skills\": [ … ]";
        let list = match reader.required("skills", what) {
            Some(Value::Array(list)) => list.as_slice(),
            Some(_) => {
                reader.mistake("skills", what);
                &[]
            }
            None => &[],
        };
        reader.finish();
        for (index, raw) in list.iter().enumerate() {
            let at = format!("skills[{index}]");
            let Some(skill) = Skill::read(raw, &at, mistakes) else {
                continue;
            };
            match catalog
                .0
                .entry(skill.id.clone())
                .or_default()
                .entry(skill.version)
            {
                Entry::Vacant(place) => {
                    place.insert(Arc::new(skill));
                }
                Entry::Occupied(_) => mistakes.add(
                    &at,
                    &format!(
                        "{} {} stands in the manifest twice; give this one another version",
                        skill.id, skill.version
                    ),
                ),
            }
        }
        catalog
    }

    /// The highest version of a skill, within a major version where one is named.
    pub(in crate::openclaw) fn find(&self, id: &str, major: Option<u64>) -> Option<&Arc<Skill>> {
        let versions = self.0.get(id)?;
        versions
            .values()
            .rev()
            .find(|skill| major.is_none_or(|major| skill.version.major == major))
    }

    /// Every version of every skill, by name, lowest version first.
    pub(in crate::openclaw) fn iter(&self) -> impl Iterator<Item = &Arc<Skill>> {
        self.0.values().flat_map(BTreeMap::values)
    }

    /// The names of the skills.
    pub(in crate::openclaw) fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl Skill {
    fn read(raw: &Value, at: &str, mistakes: &mut Mistakes) -> Option<Self> {
        let mut reader = Reader::object(raw, at, mistakes)?;
        let id = reader.required_string("id", "write a name such as \"weather\"");
        let version = reader.required_string("version", "write a version such as \"1.0.0\"");
        let description = reader.optional_string("description").unwrap_or_default();
        let inputs = reader.take("inputs");
        let outputs = reader.take("outputs");
        let runtime = reader.required(
            "runtime",
            "write {\"type\": \"http\", …} or {\"type\": \"process\", …}",
        );
        let id = id.filter(|id| {
            let good = is_skill_id(id);
            if !good {
                reader.mistake(
                    "id",
                    "write lower-case letters, digits, - and _, beginning with a letter, at most 64",
                );
            }
            good
        });
        let version = version.and_then(|raw| {
            let parsed = raw.parse().ok();
            if parsed.is_none() {
                reader.mistake(
                    "version",
                    &format!("\"{raw}\" is no version; write three numbers: \"1.0.0\""),
                );
            }
            parsed
        });
        reader.finish();
        let mut fields = |raw: Option<&Value>, name: &str| {
            raw.map(|raw| Fields::read(raw, &format!("{at}.{name}"), mistakes))
                .unwrap_or_default()
        };
        let inputs = fields(inputs, "inputs");
        let outputs = fields(outputs, "outputs");
        let (runtime, timeout) =
            Runtime::read(runtime?, &format!("{at}.runtime"), &inputs, mistakes)?;
        Some(Self {
            id: id?,
            version: version?,
            description,
            inputs,
            outputs,
            runtime,
            timeout,
        })
    }

    /// The descriptor for the catalogue: everything but how it runs inside.
    pub(in crate::openclaw) fn describe(&self) -> Value {
        json!({
            "id": self.id,
            "version": self.version.to_string(),
            "description": self.description,
            "inputs": self.inputs.describe(),
            "outputs": self.outputs.describe(),
            "runtime": {"type": match self.runtime {
                Runtime::Http(_) => "http",
                Runtime::Process(_) => "process",
            }},
        })
    }
}

impl Runtime {
    fn read(
        raw: &Value,
        at: &str,
        inputs: &Fields,
        mistakes: &mut Mistakes,
    ) -> Option<(Self, Option<Duration>)> {
        let mut reader = Reader::object(raw, at, mistakes)?;
        let kind = reader.optional_string("type");
        let timeout = reader
            .optional_between("timeout_ms", 1, MAX_TIMEOUT_MS)
            .map(Duration::from_millis);
        let runtime = match kind.as_deref() {
            Some("http") => HttpRuntime::read(&mut reader, inputs).map(Self::Http),
            Some("process") => ProcessRuntime::read(&mut reader).map(Self::Process),
            // As descriptors in the wild are written: {language, entrypoint}.
            None if raw.get("language").is_some() => {
                ProcessRuntime::read(&mut reader).map(Self::Process)
            }
            Some(_) | None => {
                reader.mistake("type", "write \"http\" or \"process\"");
                return None;
            }
        };
        reader.finish();
        Some((runtime?, timeout))
    }
}

impl HttpRuntime {
    fn read(reader: &mut Reader<'_, '_>, inputs: &Fields) -> Option<Self> {
        let method = match reader.optional_string("method").as_deref() {
            None | Some("GET") => Some(Method::GET),
            Some("HEAD") => Some(Method::HEAD),
            Some("POST") => Some(Method::POST),
            Some("PUT") => Some(Method::PUT),
            Some("PATCH") => Some(Method::PATCH),
            Some("DELETE") => Some(Method::DELETE),
            Some(other) => {
                let what = format!(
                    "\"{other}\" is no method; write GET, HEAD, POST, PUT, PATCH or DELETE"
                );
                reader.mistake("method", &what);
                None
            }
        };
        let url = reader
            .required_string("url", "write \"https://host/path/{input}\"")
            .and_then(|raw| {
                let parsed = UrlTemplate::parse(&raw);
                parsed
                    .map_err(|e| reader.mistake("url", &e.to_string()))
                    .ok()
            });
        if let Some(url) = &url {
            for name in url.inputs() {
                check_scalar(reader, "url", name, inputs);
            }
        }
        let headers = read_headers(reader, inputs);
        let body = reader.take("body").and_then(|raw| {
            let parsed = JsonTemplate::parse(raw);
            parsed
                .map_err(|e| reader.mistake("body", &e.to_string()))
                .ok()
        });
        for (name, alone) in body.iter().flat_map(JsonTemplate::inputs) {
            if !alone {
                check_scalar(reader, "body", name, inputs);
            } else if inputs.field(name).is_none() {
                reader.mistake("body", &undeclared(name));
            }
        }
        if body.is_some() && matches!(method, Some(Method::GET | Method::HEAD)) {
            reader.mistake("body", "GET and HEAD have none; write another method");
        }
        let response = match reader.optional_string("response").as_deref() {
            None | Some("json") => ResponseKind::Json,
            Some("text") => ResponseKind::Text,
            Some(_) => {
                reader.mistake("response", "write \"json\" or \"text\"");
                ResponseKind::Json
            }
        };
        Some(Self {
            method: method?,
            url: url?,
            headers,
            body,
            response,
        })
    }
}

fn read_headers(reader: &mut Reader<'_, '_>, inputs: &Fields) -> Vec<(HeaderName, Template)> {
    let Some(raw) = reader.take("headers") else {
        return Vec::new();
    };
    let Some(members) = raw.as_object() else {
        reader.mistake(
            "headers",
            "write an object: {\"accept\": \"application/json\"}",
        );
        return Vec::new();
    };
    let mut headers = Vec::new();
    for (name, value) in members {
        let place = format!("headers.{name}");
        let Some(header) = HeaderName::from_str(name).ok().filter(|h| !is_reserved(h)) else {
            reader.mistake(&place, "is no header that a skill may set; leave it out");
            continue;
        };
        let Some(text) = value.as_str() else {
            reader.mistake(&place, "write a string");
            continue;
        };
        match Template::parse(text) {
            Ok(template) if text.bytes().all(|b| (0x20..0x7f).contains(&b)) => {
                for name in template.inputs() {
                    check_scalar(reader, &place, name, inputs);
                }
                headers.push((header, template));
            }
            Ok(_) => reader.mistake(&place, "write visible ASCII only"),
            Err(e) => reader.mistake(&place, &e.to_string()),
        }
    }
    headers
}

/// Those that frame or route a message, or are the agent's own.
fn is_reserved(header: &HeaderName) -> bool {
    let name = header.as_str();
    name.starts_with("proxy-")
        || name.starts_with("x-agentport-")
        || matches!(
            name,
            "host"
                | "connection"
                | "content-length"
                | "expect"
                | "keep-alive"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "traceparent"
                | "accept-encoding"
        )
}

fn check_scalar(reader: &mut Reader<'_, '_>, place: &str, name: &str, inputs: &Fields) {
    match inputs.field(name) {
        None => reader.mistake(place, &undeclared(name)),
        Some(field) if !field.kind.is_scalar() => reader.mistake(
            place,
            &format!(
                "the input \"{name}\" is {}, which no text can hold",
                field.kind.name()
            ),
        ),
        Some(field) if !field.required => reader.mistake(
            place,
            &format!("the input \"{name}\" may be left out; make it required to use it here"),
        ),
        Some(_) => {}
    }
}

fn undeclared(name: &str) -> String {
    format!("names the input \"{name}\", which inputs does not have; declare it")
}

impl ProcessRuntime {
    fn read(reader: &mut Reader<'_, '_>) -> Option<Self> {
        let command = reader.take("command");
        let language = reader.optional_string("language");
        let entrypoint = reader.optional_string("entrypoint");
        let memory_bytes = reader
            .optional_between("memory_mb", 16, 64 * 1024)
            .unwrap_or(DEFAULT_MEMORY_MB)
            * 1024
            * 1024;
        let network = match reader.optional_string("network").as_deref() {
            None | Some("none") => Network::None,
            Some("gateway") => Network::Gateway,
            Some(_) => {
                reader.mistake("network", "write \"none\" or \"gateway\"");
                Network::None
            }
        };
        let command = match (command, language, entrypoint) {
            (Some(raw), None, None) => read_command(reader, raw),
            (None, Some(language), Some(entrypoint)) => {
                let interpreter = match language.as_str() {
                    "python" => Some("python3"),
                    "node" | "javascript" => Some("node"),
                    "shell" | "sh" => Some("sh"),
                    _ => {
                        reader.mistake("language", "write python, node or shell, or use command");
                        None
                    }
                };
                interpreter.map(|interpreter| vec![interpreter.to_owned(), entrypoint])
            }
            _ => {
                reader.mistake(
                    "command",
                    "write \"command\": [\"python3\", \"skill.py\"], or language and entrypoint",
                );
                None
            }
        };
        Some(Self {
            command: command?,
            memory_bytes,
            network,
        })
    }
}

fn read_command(reader: &mut Reader<'_, '_>, raw: &Value) -> Option<Vec<String>> {
    let words: Option<Vec<String>> = raw.as_array().and_then(|words| {
        words
            .iter()
            .map(|word| {
                word.as_str()
                    .filter(|w| !w.contains('\0'))
                    .map(str::to_owned)
            })
            .collect()
    });
    let words = words.filter(|words| words.first().is_some_and(|program| !program.is_empty()));
    if words.is_none() {
        reader.mistake(
            "command",
            "write the program and its arguments: [\"python3\", \"skill.py\"]",
        );
    }
    words
}

fn is_skill_id(id: &str) -> bool {
    id.len() <= 64
        && id.starts_with(|c: char| c.is_ascii_lowercase())
        && id
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(runtime: &Value) -> Value {
        json!({"skills": [{"id": "a", "version": "1.0.0",
            "inputs": {"x": {"type": "string"}, "l": {"type": "array"},
                       "o": {"type": "string", "required": false}},
            "runtime": runtime}]})
    }

    fn mistakes(raw: &Value) -> Vec<String> {
        match Catalog::parse(raw.to_string().as_bytes()) {
            Ok(_) => Vec::new(),
            Err(lines) => lines,
        }
    }

    #[test]
    fn every_mistake_has_its_place_and_says_what_to_write() {
        let process = |runtime: Value| json!({"skills": [{"id": "a", "version": "1.0.0", "runtime": runtime}]});
        for (case, raw, wanted) in [
            ("not an object", json!([]), vec!["write an object"]),
            (
                "nothing",
                json!({}),
                vec!["skills: is missing; write \"skills\": [ … ]"],
            ),
            (
                "an unknown key",
                json!({"skills": [], "skill": []}),
                vec!["skill: is not known here; write one of skills"],
            ),
            (
                "several at once",
                json!({"skills": [{"id": "A b", "version": "1.0", "colour": 1}]}),
                vec![
                    "skills[0].runtime: is missing; write {\"type\": \"http\", …} or {\"type\": \"process\", …}",
                    "skills[0].id: write lower-case letters, digits, - and _, beginning with a letter, at most 64",
                    "skills[0].version: \"1.0\" is no version; write three numbers: \"1.0.0\"",
                    "skills[0].colour: is not known here; write one of description, id, inputs, outputs, runtime, version",
                ],
            ),
            (
                "a pre-release and a leading zero",
                json!({"skills": [
                    {"id": "a", "version": "1.0.0-rc1", "runtime": {"language": "python", "entrypoint": "a.py"}},
                    {"id": "b", "version": "01.0.0", "runtime": {"language": "python", "entrypoint": "a.py"}}]}),
                vec![
                    "skills[0].version: \"1.0.0-rc1\" is no version; write three numbers: \"1.0.0\"",
                    "skills[1].version: \"01.0.0\" is no version; write three numbers: \"1.0.0\"",
                ],
            ),
            (
                "one version twice",
                json!({"skills": [
                    {"id": "a", "version": "1.0.0", "runtime": {"language": "python", "entrypoint": "a.py"}},
                    {"id": "a", "version": "1.0.0", "runtime": {"language": "python", "entrypoint": "b.py"}}]}),
                vec![
                    "skills[1]: a 1.0.0 stands in the manifest twice; give this one another version",
                ],
            ),
            (
                "a type that is none",
                json!({"skills": [{"id": "a", "version": "1.0.0", "inputs": {"x": {"type": "text"}},
                    "runtime": {"language": "python", "entrypoint": "a.py"}}]}),
                vec![
                    "skills[0].inputs.x.type: \"text\" is no type; write one of string, number, integer, boolean, object, array",
                ],
            ),
            (
                "no runtime that there is",
                process(json!({"type": "docker"})),
                vec!["skills[0].runtime.type: write \"http\" or \"process\""],
            ),
            (
                "an input that nobody declared",
                http(&json!({"type": "http", "url": "https://h.example/{y}"})),
                vec![
                    "skills[0].runtime.url: names the input \"y\", which inputs does not have; declare it",
                ],
            ),
            (
                "an input as host",
                http(&json!({"type": "http", "url": "https://{x}/"})),
                vec![
                    "skills[0].runtime.url: inputs may stand only in path and query; write the scheme and host plainly",
                ],
            ),
            (
                "a list in a URL, an optional input in a header",
                http(
                    &json!({"type": "http", "url": "https://h.example/{l}", "headers": {"x-o": "{o}"}}),
                ),
                vec![
                    "skills[0].runtime.url: the input \"l\" is an array, which no text can hold",
                    "skills[0].runtime.headers.x-o: the input \"o\" may be left out; make it required to use it here",
                ],
            ),
            (
                "headers that are not a skill's to set",
                http(&json!({"type": "http", "url": "https://h.example/",
                    "headers": {"Proxy-Authorization": "x", "Host": "y"}})),
                vec![
                    "skills[0].runtime.headers.Host: is no header that a skill may set; leave it out",
                    "skills[0].runtime.headers.Proxy-Authorization: is no header that a skill may set; leave it out",
                ],
            ),
            (
                "a body with GET",
                http(&json!({"type": "http", "url": "https://h.example/", "body": {}})),
                vec!["skills[0].runtime.body: GET and HEAD have none; write another method"],
            ),
            (
                "an empty command",
                process(json!({"type": "process", "command": []})),
                vec![
                    "skills[0].runtime.command: write the program and its arguments: [\"python3\", \"skill.py\"]",
                ],
            ),
            (
                "no command, no such network, too little memory",
                process(json!({"type": "process", "network": "host", "memory_mb": 1})),
                vec![
                    "skills[0].runtime.memory_mb: write a whole number from 16 to 65536",
                    "skills[0].runtime.network: write \"none\" or \"gateway\"",
                    "skills[0].runtime.command: write \"command\": [\"python3\", \"skill.py\"], or language and entrypoint",
                ],
            ),
        ] {
            assert_eq!(mistakes(&raw), wanted, "{case}");
        }
        assert!(
            mistakes(&http(&json!({"type": "http", "method": "POST",
            "url": "https://h.example/{x}?q={x}", "headers": {"accept": "text/plain"},
            "body": {"x": "{o}"}, "response": "text", "timeout_ms": 1000})))
            .is_empty()
        );
    }

    #[test]
    fn a_member_that_stands_twice_is_refused() {
        let lines = Catalog::parse(br#"{"skills": [], "skills": []}"#).expect_err("twice");
        assert!(
            lines[0].contains("the member \"skills\" stands twice"),
            "{lines:?}"
        );
    }

    #[test]
    fn the_highest_version_answers() {
        let skill = |version: &str| {
            json!({"id": "a", "version": version,
                "runtime": {"language": "python", "entrypoint": "a.py"}})
        };
        let raw = json!({"skills": [skill("2.0.0"), skill("1.9.0"), skill("1.10.0")]});
        let catalog = Catalog::parse(raw.to_string().as_bytes()).expect("good");
        let found = |major| catalog.find("a", major).map(|s| s.version.to_string());
        assert_eq!(found(None).as_deref(), Some("2.0.0"));
        assert_eq!(found(Some(1)).as_deref(), Some("1.10.0"));
        assert_eq!(found(Some(3)), None);
        assert!(catalog.find("b", None).is_none());
    }
}

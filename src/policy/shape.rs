//! Every way in which a text is not shaped as its schema has it, at once. Used
//! where reading has failed already, which tells of the first mistake only; it
//! never decides whether a document is valid.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::document::{Format, PolicyDocument, RuleDocument};
use super::finding::{Finding, Location, PolicyError, Problem, SourceName};
use super::rule::{Place, compile};
use super::schema::policy_schema;
use crate::egress::Destination;

/// Deeper than any document goes; what is deeper is not looked at.
const MAX_DEPTH: usize = 32;

impl PolicyDocument {
    /// As [`PolicyDocument::parse`], with every mistake in the shape of the
    /// document, and those in the rules whose shape is good, each with its
    /// place. Slower where there is a mistake.
    ///
    /// # Errors
    /// Every mistake that shows in this document alone.
    pub fn check(
        source: &SourceName,
        format: Format,
        text: &str,
    ) -> Result<Self, Vec<PolicyError>> {
        Self::parse(source, format, text)
            .map_err(|first| Self::mistakes(source, format, text, first))
    }

    /// Every mistake in the shape of a text that is no document, and those in
    /// the rules whose shape is good; at least the `first`, with which reading
    /// it failed.
    #[must_use]
    pub fn mistakes(
        source: &SourceName,
        format: Format,
        text: &str,
        first: PolicyError,
    ) -> Vec<PolicyError> {
        let first = vec![first];
        if matches!(first[0].what, Problem::TooLarge | Problem::Aliases) {
            return first;
        }
        let Some(tree) = read_tree(format, text) else {
            return first;
        };
        let mut found = misshapen(source, &policy_schema(), &tree);
        if found.is_empty() {
            return first;
        }
        let mut inside = mistakes_inside(source, &tree, &found);
        PolicyError::locate(&mut inside, source, text);
        found.extend(inside);
        found.sort_by_key(|finding| finding.location);
        found
    }
}

/// Reads any other document that has a schema, with every mistake in its shape.
pub(super) fn read<T: DeserializeOwned>(
    source: &SourceName,
    format: Format,
    text: &str,
    schema: &Value,
) -> Result<T, Vec<PolicyError>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let one = |location, message| {
        vec![Finding {
            source: source.clone(),
            path: "".into(),
            location,
            what: Problem::Text(message),
        }]
    };
    if text.contains('&')
        && super::locate::expanded_nodes(text) > super::document::MAX_EXPANDED_NODES
    {
        return Err(vec![Finding::new(source, "", Problem::Aliases)]);
    }
    let parsed: Result<T, _> = match format {
        Format::Yaml => yaml_serde::from_str(text).map_err(|error| {
            let at = error.location().map(|at| Location {
                line: at.line(),
                column: at.column(),
            });
            let message = super::document::tabbed(text, at);
            one(at, message.unwrap_or_else(|| error.to_string()))
        }),
        Format::Json => serde_json::from_str(text).map_err(|error| {
            let at = (error.line() > 0).then(|| Location {
                line: error.line(),
                column: error.column().max(1),
            });
            one(at, error.to_string())
        }),
    };
    parsed.map_err(|first| match read_tree(format, text) {
        Some(tree) => {
            let found = misshapen(source, schema, &tree);
            if found.is_empty() { first } else { found }
        }
        None => first,
    })
}

/// A value with its place.
#[derive(Debug)]
struct Node {
    at: Location,
    what: What,
}

#[derive(Debug)]
enum What {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Rc<Node>>),
    Map(Vec<(String, Location, Rc<Node>)>),
}

/// What is open while the text is read.
struct Open {
    anchor: usize,
    node: Node,
    key: Option<(String, Location)>,
}

/// The tree of a text; `None` where its syntax is broken, it is nested too
/// deeply, or it has more than plain values.
fn read_tree(format: Format, text: &str) -> Option<Node> {
    if format == Format::Json {
        serde_json::from_str::<serde::de::IgnoredAny>(text).ok()?;
    }
    let mut anchors: HashMap<usize, Rc<Node>> = HashMap::new();
    let mut open: Vec<Open> = Vec::new();
    let mut whole: Option<Rc<Node>> = None;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.ok()?;
        // The parser counts columns from 0.
        let at = Location {
            line: span.start.line(),
            column: span.start.col() + 1,
        };
        let (anchor, node) = match event {
            Event::MappingStart(anchor, _) | Event::SequenceStart(anchor, _)
                if open.len() >= MAX_DEPTH =>
            {
                let _ = anchor;
                return None;
            }
            Event::MappingStart(anchor, _) => {
                let node = Node {
                    at,
                    what: What::Map(Vec::new()),
                };
                open.push(Open {
                    anchor,
                    node,
                    key: None,
                });
                continue;
            }
            Event::SequenceStart(anchor, _) => {
                let node = Node {
                    at,
                    what: What::List(Vec::new()),
                };
                open.push(Open {
                    anchor,
                    node,
                    key: None,
                });
                continue;
            }
            Event::MappingEnd | Event::SequenceEnd => {
                let closed = open.pop()?;
                (closed.anchor, Rc::new(closed.node))
            }
            Event::Scalar(_, _, _, Some(_)) => return None,
            Event::Scalar(text, style, anchor, None) => {
                let what = match style {
                    ScalarStyle::Plain => plain(&text),
                    _ => What::Text(text.into_owned()),
                };
                (anchor, Rc::new(Node { at, what }))
            }
            Event::Alias(anchor) => (0, Rc::clone(anchors.get(&anchor)?)),
            _ => continue,
        };
        if anchor != 0 {
            anchors.insert(anchor, Rc::clone(&node));
        }
        match open.last_mut() {
            None if whole.is_some() => return None,
            None => whole = Some(node),
            Some(around) => around.take(at, node)?,
        }
    }
    drop(anchors);
    Rc::try_unwrap(whole?).ok()
}

impl Open {
    fn take(&mut self, at: Location, node: Rc<Node>) -> Option<()> {
        match (&mut self.node.what, self.key.take()) {
            (What::List(list), _) => list.push(node),
            (What::Map(members), Some((key, key_at))) => members.push((key, key_at, node)),
            (What::Map(_), None) => self.key = Some((node.scalar()?, at)),
            _ => return None,
        }
        Some(())
    }
}

/// A plain scalar by the core schema of YAML 1.2.
fn plain(text: &str) -> What {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => What::Null,
        "true" | "True" | "TRUE" => What::Bool(true),
        "false" | "False" | "FALSE" => What::Bool(false),
        _ if text.parse::<f64>().is_ok() && text.contains(|c: char| c.is_ascii_digit()) => {
            What::Number(text.to_owned())
        }
        _ => What::Text(text.to_owned()),
    }
}

impl Node {
    fn scalar(&self) -> Option<String> {
        match &self.what {
            What::Null => Some("null".to_owned()),
            What::Bool(value) => Some(value.to_string()),
            What::Number(text) | What::Text(text) => Some(text.clone()),
            What::List(_) | What::Map(_) => None,
        }
    }

    fn in_words(&self) -> String {
        match &self.what {
            What::Null => "nothing".to_owned(),
            What::Bool(value) => format!("{value}"),
            What::Number(text) => format!("the number {text}"),
            What::Text(text) => format!("{text:?}"),
            What::List(_) => "a list".to_owned(),
            What::Map(_) => "a mapping".to_owned(),
        }
    }

    fn to_value(&self) -> Value {
        match &self.what {
            What::Null => Value::Null,
            What::Bool(value) => Value::Bool(*value),
            What::Number(text) => text
                .parse()
                .map_or_else(|_| text.as_str().into(), Value::Number),
            What::Text(text) => text.as_str().into(),
            What::List(list) => list.iter().map(|node| node.to_value()).collect(),
            What::Map(members) => Value::Object(
                members
                    .iter()
                    .map(|(key, _, node)| (key.clone(), node.to_value()))
                    .collect::<Map<String, Value>>(),
            ),
        }
    }

    fn member(&self, name: &str) -> Option<&Rc<Node>> {
        match &self.what {
            What::Map(members) => members
                .iter()
                .find_map(|(key, _, node)| (key == name).then_some(node)),
            _ => None,
        }
    }
}

fn misshapen(source: &SourceName, schema: &Value, tree: &Node) -> Vec<PolicyError> {
    let mut look = Look {
        source,
        schema,
        found: Vec::new(),
    };
    look.at(schema, tree, tree.at, "");
    look.found
}

struct Look<'a> {
    source: &'a SourceName,
    schema: &'a Value,
    found: Vec<PolicyError>,
}

impl<'a> Look<'a> {
    fn report(&mut self, at: Location, path: &str, message: String) {
        self.found.push(Finding {
            source: self.source.clone(),
            path: path.into(),
            location: Some(at),
            what: Problem::Text(message),
        });
    }

    /// Follows `$ref`, which is always to a definition of the same schema.
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        schema
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|place| self.schema.pointer(place.strip_prefix('#')?))
            .unwrap_or(schema)
    }

    /// The choices of a schema that are about the value itself, and not about
    /// which members stand beside each other.
    fn choices(&self, schema: &'a Value) -> Option<Vec<&'a Value>> {
        let list = ["anyOf", "oneOf"]
            .iter()
            .find_map(|word| schema.get(word)?.as_array())?;
        let choices: Vec<_> = list.iter().map(|choice| self.resolve(choice)).collect();
        choices
            .iter()
            .all(|choice| choice.get("type").is_some() || choice.get("const").is_some())
            .then_some(choices)
    }

    fn at(&mut self, schema: &'a Value, node: &Node, at: Location, path: &str) {
        let schema = self.resolve(schema);
        if let Some(choices) = self.choices(schema) {
            match choices.iter().find(|choice| takes(choice, node)) {
                Some(choice) => self.at(choice, node, at, path),
                None => self.report(at, path, unlike(&self.wanted(schema), node, schema)),
            }
            return;
        }
        if !takes(schema, node) {
            self.report(at, path, unlike(&self.wanted(schema), node, schema));
            return;
        }
        match &node.what {
            What::List(list) => {
                let Some(entry) = schema.get("items") else {
                    return;
                };
                for (place, node) in list.iter().enumerate() {
                    self.at(entry, node, node.at, &format!("{path}[{place}]"));
                }
            }
            What::Map(members) => self.members(schema, members, at, path),
            _ => {}
        }
    }

    fn members(
        &mut self,
        schema: &'a Value,
        members: &[(String, Location, Rc<Node>)],
        at: Location,
        path: &str,
    ) {
        let Some(known) = schema.get("properties").and_then(Value::as_object) else {
            if let Some(each) = schema
                .get("additionalProperties")
                .filter(|each| each.is_object())
            {
                for (key, key_at, node) in members {
                    self.at(each, node, *key_at, &joined(path, key));
                }
            }
            return;
        };
        let mut seen = HashSet::new();
        for (key, key_at, node) in members {
            let place = joined(path, key);
            if !seen.insert(key.as_str()) {
                self.report(*key_at, &place, "is written twice; keep one".to_owned());
                continue;
            }
            match known.get(key) {
                Some(member) => self.at(member, node, *key_at, &place),
                None => {
                    let advice = match nearest(key, known.keys().map(String::as_str)) {
                        Some(name) => format!("did you mean `{name}`?"),
                        None => {
                            let names: Vec<_> = known.keys().map(String::as_str).collect();
                            format!("known are {}", names.join(", "))
                        }
                    };
                    self.report(*key_at, &place, format!("unknown member: {advice}"));
                }
            }
        }
        let required = schema.get("required").and_then(Value::as_array);
        for name in required.into_iter().flatten().filter_map(Value::as_str) {
            if !seen.contains(name) {
                let what = known
                    .get(name)
                    .and_then(|member| member.get("description"))
                    .and_then(Value::as_str)
                    .map_or_else(String::new, first_phrase);
                self.report(at, path, format!("`{name}` is missing: {what}"));
            }
        }
    }

    /// What a schema takes, in words.
    fn wanted(&self, schema: &'a Value) -> String {
        let schema = self.resolve(schema);
        if let Some(choices) = self.choices(schema) {
            let words: Vec<_> = choices.iter().map(|choice| self.wanted(choice)).collect();
            return words.join(" or ");
        }
        if let Some(value) = schema.get("const") {
            return match value {
                Value::String(text) => format!("`{text}`"),
                other => other.to_string(),
            };
        }
        if let Some(Value::Array(values)) = schema.get("enum") {
            let words: Vec<_> = values
                .iter()
                .map(|value| format!("`{}`", value.as_str().unwrap_or_default()))
                .collect();
            return words.join(" or ");
        }
        match schema.get("type").and_then(Value::as_str) {
            Some("array") => "a list in brackets",
            Some("object") => "a mapping",
            Some("integer" | "number") => "a number",
            Some("boolean") => "`true` or `false`",
            _ => "a text",
        }
        .to_owned()
    }
}

/// Whether a value is of the kind that a schema is about.
fn takes(schema: &Value, node: &Node) -> bool {
    if let Some(value) = schema.get("const") {
        return match (value, &node.what) {
            (Value::String(text), What::Text(other)) => text == other,
            (Value::Number(number), What::Number(other)) => number.to_string() == *other,
            _ => false,
        };
    }
    if let Some(Value::Array(values)) = schema.get("enum") {
        return matches!(&node.what, What::Text(text) if values.iter().any(|value| value == text));
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("string") => matches!(node.what, What::Text(_)),
        Some("array") => matches!(node.what, What::List(_)),
        Some("object") => matches!(node.what, What::Map(_)),
        Some("boolean") => matches!(node.what, What::Bool(_)),
        Some("integer") => matches!(&node.what, What::Number(text) if text.parse::<i64>().is_ok()),
        Some("number") => matches!(node.what, What::Number(_)),
        _ => true,
    }
}

fn unlike(wanted: &str, node: &Node, schema: &Value) -> String {
    let text = schema.get("type").is_some_and(|kind| kind == "string");
    match &node.what {
        What::Null => format!("nothing is written; write {wanted}, or take the member away"),
        What::Bool(_) | What::Number(_) if text => {
            let raw = node.scalar().unwrap_or_default();
            format!("{raw} is read as no text; write it in quotes: \"{raw}\"")
        }
        _ => format!("{}: write {wanted}", node.in_words()),
    }
}

/// The beginning of a description, as the end of a sentence.
fn first_phrase(text: &str) -> String {
    let text = text.replace('\n', " ");
    let phrase = text.split([';']).next().unwrap_or_default();
    let phrase = phrase.split(". ").next().unwrap_or_default();
    let phrase = phrase.trim_end_matches('.');
    let mut letters = phrase.chars();
    letters.next().map_or_else(String::new, |first| {
        format!("{}{}", first.to_lowercase(), letters.as_str())
    })
}

fn joined(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    }
}

/// The known word that was probably meant.
fn nearest<'w>(word: &str, known: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    known
        .map(|name| (distance(word, name), name))
        .filter(|(far, name)| *far <= 2 && *far < name.len().max(2))
        .min_by_key(|(far, _)| *far)
        .map(|(_, name)| name)
}

/// How many letters must change (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 64 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = before + usize::from(x != *y);
            before = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(before + 1);
        }
    }
    row[b.len()]
}

/// The mistakes in those parts whose shape is good.
fn mistakes_inside(source: &SourceName, tree: &Node, shape: &[PolicyError]) -> Vec<PolicyError> {
    let broken = |path: &str| {
        shape.iter().any(|finding| {
            finding
                .path
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    };
    let mut found = Vec::new();
    if let Some(What::List(entries)) = tree.member("denylist").map(|node| &node.what) {
        for (at, node) in entries.iter().enumerate() {
            if let What::Text(raw) = &node.what
                && let Err(error) = Destination::parse(raw)
            {
                let raw = raw.clone();
                let problem = Problem::Destination { raw, error };
                found.push(Finding::new(source, format!("denylist[{at}]"), problem));
            }
        }
    }
    if let Some(What::List(rules)) = tree.member("rules").map(|node| &node.what) {
        for (position, node) in rules.iter().enumerate() {
            if broken(&format!("rules[{position}]")) {
                continue;
            }
            if let Ok(rule) = serde_json::from_value::<RuleDocument>(node.to_value()) {
                let place = Place {
                    source,
                    owner: None,
                    position,
                };
                compile(&rule, place, &mut found);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(format: Format, text: &str) -> Vec<String> {
        match PolicyDocument::check(&SourceName::from("p"), format, text) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let text = "version: 1
tenat: acme
denylist: [ok.example, https://bad.example]
rules:
  - name: 123
    action: permit
    agents: bot
    host: [a.example]
  - name: b
    action: allow
    agents: any
    hosts: [\"*.B.example\"]
    ports: [99999]
  - action: deny
    agents: [a]
    hosts: c.example
    hosts: [c.example]
    mode:
    ports: [true]
";
        assert_eq!(
            said(Format::Yaml, text),
            [
                "p:2:1: tenat: unknown member: did you mean `tenant`?",
                "p:3:24: denylist[1]: \"https://bad.example\": write the host only, here \"bad.example\"",
                "p:5:5: rules[0].name: 123 is read as no text; write it in quotes: \"123\"",
                "p:6:5: rules[0].action: \"permit\": write `allow` or `deny`",
                "p:7:5: rules[0].agents: \"bot\": write `any` or a list in brackets",
                "p:8:5: rules[0].host: unknown member: did you mean `hosts`?",
                "p:12:13: rules[1].hosts[0]: \"*.B.example\": write \"*.b.example\"",
                "p:13:13: rules[1].ports[0]: 99999: write a port from 1 to 65535, or a range such as \"8000-8999\"",
                "p:14:5: rules[2]: `name` is missing: what records and refusals call it: unique in its document, 1 to 128 printable ASCII characters",
                "p:16:5: rules[2].hosts: \"c.example\": write a list in brackets",
                "p:17:5: rules[2].hosts: is written twice; keep one",
                "p:18:5: rules[2].mode: nothing is written; write `enforce` or `audit`, or take the member away",
                "p:19:13: rules[2].ports[0]: true: write a number or a text",
            ]
        );
    }

    #[test]
    fn what_has_no_tree_keeps_the_first_mistake() {
        for (format, text) in [
            (Format::Yaml, "version: 1\nrules: ["),
            (Format::Yaml, "version: 1\nrules: [*nobody]"),
            (Format::Yaml, ""),
            (Format::Json, "{\"version\": 1,}"),
            (Format::Json, "{\"version\": 1} 2"),
        ] {
            assert_eq!(said(format, text).len(), 1, "{text}");
        }
        let deep = format!("rules: {}{}", "[".repeat(90), "]".repeat(90));
        assert_eq!(said(Format::Yaml, &deep).len(), 1);
        assert_eq!(
            said(Format::Json, "{\"version\": \"1\", \"rule\": []}"),
            [
                "p:1:2: version: \"1\": write 1",
                "p:1:18: rule: unknown member: did you mean `rules`?"
            ]
        );
    }

    #[test]
    fn a_tab_is_told_from_what_else_breaks_the_syntax() {
        for (case, text, line) in [
            ("before an entry", "version: 1\nrules:\n\t- name: a\n", 3),
            (
                "before a member",
                "version: 1\nrules:\n  - name: a\n\taction: deny\n",
                4,
            ),
            (
                "after spaces",
                "version: 1\nrules:\n  - name: a\n  \taction: deny\n",
                4,
            ),
        ] {
            let errors = said(Format::Yaml, text);
            let [error] = errors.as_slice() else {
                panic!("{case}: {errors:?}");
            };
            assert!(error.starts_with(&format!("p:{line}:")), "{case}: {error}");
            assert!(
                error.ends_with("a tab indents this line: write spaces"),
                "{case}: {error}"
            );
        }
        let errors = said(Format::Yaml, "version: 1\nrules: [@x]\n");
        assert!(!errors[0].contains("tab"), "{errors:?}");
    }

    #[test]
    fn words_that_are_near_are_offered() {
        for (word, known, expected) in [
            ("host", &["hosts", "ports"][..], Some("hosts")),
            ("prots", &["hosts", "ports"], Some("ports")),
            ("zebra", &["hosts", "ports"], None),
            ("", &["sni"], None),
        ] {
            assert_eq!(nearest(word, known.iter().copied()), expected, "{word}");
        }
    }
}

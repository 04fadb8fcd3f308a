//! What a skill takes and what it gives: types of fields, and checking a value
//! against them. A closed set of types and no JSON Schema engine, which alone
//! would cost a quarter of this program's size.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::openclaw::mistakes::{Mistakes, Reader};

/// How deep fields may nest; deeper is refused when the manifest is read.
const MAX_DEPTH: usize = 8;

/// The fields of an object, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::openclaw) struct Fields(BTreeMap<String, Field>);

/// One field.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::openclaw) struct Field {
    /// What it must be.
    pub(in crate::openclaw) kind: Kind,
    /// For people and for the model.
    pub(in crate::openclaw) description: String,
    /// Whether it must be there. It must, unless the manifest says otherwise.
    pub(in crate::openclaw) required: bool,
}

/// The type of a field.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::openclaw) enum Kind {
    /// Text.
    String,
    /// Any number.
    Number,
    /// A number without a fraction.
    Integer,
    /// True or false.
    Boolean,
    /// An object; with fields, it has these and no others.
    Object(Option<Fields>),
    /// A list; with a kind, of values of that kind.
    Array(Option<Box<Kind>>),
}

impl Fields {
    /// Reads `{name: {type, description, required, properties, items}}`.
    pub(in crate::openclaw) fn read(raw: &Value, at: &str, mistakes: &mut Mistakes) -> Self {
        Self::read_to(raw, at, MAX_DEPTH, mistakes)
    }

    fn read_to(raw: &Value, at: &str, depth: usize, mistakes: &mut Mistakes) -> Self {
        let Some(members) = raw.as_object() else {
            mistakes.add(
                at,
                "write an object of fields: {\"name\": {\"type\": \"string\"}}",
            );
            return Self::default();
        };
        let mut fields = BTreeMap::new();
        for (name, raw) in members {
            let at = format!("{at}.{name}");
            if !is_field_name(name) {
                mistakes.add(
                    &at,
                    "name a field with letters, digits, _ and -, at most 64",
                );
            }
            if let Some(field) = Field::read(raw, &at, depth, mistakes) {
                fields.insert(name.clone(), field);
            }
        }
        Self(fields)
    }

    /// The fields by name, in order.
    pub(in crate::openclaw) fn iter(&self) -> impl Iterator<Item = (&str, &Field)> {
        self.0.iter().map(|(name, field)| (name.as_str(), field))
    }

    /// One of them.
    pub(in crate::openclaw) fn field(&self, name: &str) -> Option<&Field> {
        self.0.get(name)
    }

    /// Everything that is wrong with `value`, each with its path and what to
    /// give; an empty list where nothing is.
    ///
    /// An object without a single field declared takes any members: a skill
    /// that declares no outputs promises nothing about them.
    pub(in crate::openclaw) fn check(&self, value: &Value, at: &str, closed: bool) -> Vec<String> {
        let mut faults = Vec::new();
        match value {
            Value::Object(members) => self.check_members(members, at, closed, &mut faults),
            other => faults.push(format!("{at}: give an object, not {}", name_of(other))),
        }
        faults
    }

    fn check_members(
        &self,
        members: &Map<String, Value>,
        at: &str,
        closed: bool,
        faults: &mut Vec<String>,
    ) {
        for (name, field) in &self.0 {
            match members.get(name) {
                Some(value) => field
                    .kind
                    .check(value, &format!("{at}.{name}"), closed, faults),
                None if field.required => {
                    faults.push(format!(
                        "{at}.{name}: is required; give {}",
                        field.kind.name()
                    ));
                }
                None => {}
            }
        }
        if closed {
            for name in members.keys().filter(|name| !self.0.contains_key(*name)) {
                faults.push(format!(
                    "{at}.{name}: the skill takes no such field; leave it out"
                ));
            }
        }
    }

    /// As the manifest writes them, for the catalogue.
    pub(in crate::openclaw) fn describe(&self) -> Value {
        self.0
            .iter()
            .map(|(name, field)| (name.clone(), field.describe()))
            .collect::<Map<_, _>>()
            .into()
    }
}

impl Field {
    fn read(raw: &Value, at: &str, depth: usize, mistakes: &mut Mistakes) -> Option<Self> {
        let mut reader = Reader::object(raw, at, mistakes)?;
        let description = reader.optional_string("description").unwrap_or_default();
        let required = reader.optional_bool("required").unwrap_or(true);
        let kind = Kind::read(&mut reader, depth);
        reader.finish();
        Some(Self {
            kind: kind?,
            description,
            required,
        })
    }

    fn describe(&self) -> Value {
        let mut members = self.kind.describe();
        members.insert("description".to_owned(), self.description.clone().into());
        members.insert("required".to_owned(), self.required.into());
        members.into()
    }
}

impl Kind {
    fn read(reader: &mut Reader<'_, '_>, depth: usize) -> Option<Self> {
        let name = reader.required_string(
            "type",
            "write one of string, number, integer, boolean, object, array",
        )?;
        let properties = reader.take("properties");
        let items = reader.take("items");
        let at = reader.at().to_owned();
        if depth == 0 {
            reader.mistake(
                "type",
                "fields nest at most 8 deep; make this one a plain object",
            );
            return None;
        }
        if properties.is_some() && name != "object" {
            reader.mistake("properties", "only an object has properties; leave it out");
        }
        if items.is_some() && name != "array" {
            reader.mistake("items", "only an array has items; leave it out");
        }
        let mistakes = reader.mistakes();
        Some(match name.as_str() {
            "string" => Self::String,
            "number" => Self::Number,
            "integer" => Self::Integer,
            "boolean" => Self::Boolean,
            "object" => {
                Self::Object(properties.map(|raw| {
                    Fields::read_to(raw, &format!("{at}.properties"), depth - 1, mistakes)
                }))
            }
            "array" => match items {
                None => Self::Array(None),
                Some(raw) => {
                    let at = format!("{at}.items");
                    Self::Array(Some(Box::new(
                        Field::read(raw, &at, depth - 1, mistakes)?.kind,
                    )))
                }
            },
            other => {
                mistakes.add(
                    &format!("{at}.type"),
                    &format!(
                        "\"{other}\" is no type; write one of string, number, integer, boolean, \
                         object, array"
                    ),
                );
                return None;
            }
        })
    }

    /// With its article, for messages.
    pub(in crate::openclaw) fn name(&self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Number => "a number",
            Self::Integer => "an integer",
            Self::Boolean => "true or false",
            Self::Object(_) => "an object",
            Self::Array(_) => "an array",
        }
    }

    /// Whether a value of this kind can stand in a URL or a header.
    pub(in crate::openclaw) fn is_scalar(&self) -> bool {
        match self {
            Self::String | Self::Number | Self::Integer | Self::Boolean => true,
            Self::Object(_) | Self::Array(_) => false,
        }
    }

    fn check(&self, value: &Value, at: &str, closed: bool, faults: &mut Vec<String>) {
        match (self, value) {
            (Self::String, Value::String(_))
            | (Self::Number, Value::Number(_))
            | (Self::Boolean, Value::Bool(_))
            | (Self::Object(None), Value::Object(_))
            | (Self::Array(None), Value::Array(_)) => {}
            (Self::Integer, Value::Number(number)) if is_integer(number) => {}
            (Self::Object(Some(fields)), Value::Object(members)) => {
                fields.check_members(members, at, closed, faults);
            }
            (Self::Array(Some(kind)), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    kind.check(item, &format!("{at}[{index}]"), closed, faults);
                }
            }
            (kind, other) => {
                faults.push(format!(
                    "{at}: give {}, not {}",
                    kind.name(),
                    name_of(other)
                ));
            }
        }
    }

    fn describe(&self) -> Map<String, Value> {
        let mut members = Map::new();
        let name = match self {
            Self::String => "string",
            Self::Number => "number",
            Self::Integer => "integer",
            Self::Boolean => "boolean",
            Self::Object(fields) => {
                if let Some(fields) = fields {
                    members.insert("properties".to_owned(), fields.describe());
                }
                "object"
            }
            Self::Array(items) => {
                if let Some(items) = items {
                    members.insert("items".to_owned(), items.describe().into());
                }
                "array"
            }
        };
        members.insert("type".to_owned(), name.into());
        members
    }
}

/// `1.0` is an integer too, as in JSON Schema.
fn is_integer(number: &serde_json::Number) -> bool {
    number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|n| n.fract() == 0.0)
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn is_field_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(raw: &Value) -> Fields {
        let mut mistakes = Mistakes::default();
        let fields = Fields::read(raw, "inputs", &mut mistakes);
        assert_eq!(mistakes.into_lines(), Vec::<String>::new());
        fields
    }

    #[test]
    fn values_against_their_types() {
        let fields = fields(&json!({
            "s": {"type": "string"}, "n": {"type": "number", "required": false},
            "i": {"type": "integer", "required": false},
            "b": {"type": "boolean", "required": false},
            "o": {"type": "object", "required": false, "properties": {"x": {"type": "string"}}},
            "a": {"type": "array", "required": false, "items": {"type": "integer"}},
        }));
        for (case, value, faults) in [
            ("only what is required", json!({"s": ""}), vec![]),
            (
                "everything",
                json!({"s": "", "n": 0.5, "i": 1.0, "b": true, "o": {"x": ""}, "a": [1, 2]}),
                vec![],
            ),
            (
                "what is required is missing",
                json!({}),
                vec!["input.s: is required; give a string"],
            ),
            (
                "not an object",
                json!([]),
                vec!["input: give an object, not an array"],
            ),
            (
                "each of the wrong type",
                json!({"s": 1, "i": 0.5, "b": "true", "o": {"x": null}, "a": [1, "2"]}),
                vec![
                    "input.a[1]: give an integer, not a string",
                    "input.b: give true or false, not a string",
                    "input.i: give an integer, not a number",
                    "input.o.x: give a string, not null",
                    "input.s: give a string, not a number",
                ],
            ),
            (
                "a field nobody declared",
                json!({"s": "", "z": 1}),
                vec!["input.z: the skill takes no such field; leave it out"],
            ),
        ] {
            assert_eq!(fields.check(&value, "input", true), faults, "{case}");
        }
        assert!(
            fields
                .check(&json!({"s": "", "z": 1}), "output", false)
                .is_empty()
        );
    }

    #[test]
    fn a_description_reads_back_as_it_was() {
        let first = fields(&json!({
            "o": {"type": "object", "properties": {"x": {"type": "array", "items": {"type": "string"}}}},
        }));
        assert_eq!(fields(&first.describe()), first);
    }
}

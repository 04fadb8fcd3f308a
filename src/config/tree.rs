//! YAML as a tree in which every value knows its place.
//!
//! JSON is a part of YAML and read the same way. Scalars stay text: what a
//! number or a duration is, the key decides, so no value changes its meaning by
//! YAML's rules for `no`, `0660` or `1e3`. What makes one text mean two things
//! is refused: duplicate keys, anchors, aliases, tags, a second document.

use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

use super::error::{ConfigError, Place};

/// The largest file that is read, in bytes.
const MAX_BYTES: usize = 1024 * 1024;
/// How deep a file may nest; the reference needs three levels.
const MAX_DEPTH: usize = 8;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// A value as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// Text, quoted or not.
    Scalar(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order written, each key once.
    Map(Vec<Entry>),
}

/// A key, where it stands, and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Node {
    /// A scalar that came from elsewhere than a file.
    pub(super) fn scalar(text: impl Into<String>, place: Place) -> Self {
        Self {
            value: Value::Scalar(text.into()),
            place,
        }
    }

    /// The same value at another place: a list written in a variable.
    pub(super) fn moved_to(mut self, place: &Place) -> Self {
        self.place = place.clone();
        match &mut self.value {
            Value::Null | Value::Scalar(_) => {}
            Value::List(items) => {
                for item in items {
                    *item = item.clone().moved_to(place);
                }
            }
            Value::Map(entries) => {
                for entry in entries {
                    entry.place = place.clone();
                    entry.node = entry.node.clone().moved_to(place);
                }
            }
        }
        self
    }
}

/// Reads a text. `None` stands for a text with no value in it, such as
/// comments alone.
///
/// # Errors
/// The first thing that makes the text unreadable. Duplicate keys do not, and
/// go to `errors`.
pub(super) fn parse(
    name: &str,
    text: &str,
    errors: &mut Vec<ConfigError>,
) -> Result<Option<Node>, ConfigError> {
    let name: Arc<str> = name.into();
    if text.len() > MAX_BYTES {
        return Err(ConfigError {
            place: Place::File {
                name,
                line: 1,
                column: 1,
            },
            key: None,
            message: "the file is larger than 1MiB: give the configuration, not the policy".into(),
        });
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Builder {
        name,
        events: Parser::new_from_str(text),
        errors,
    }
    .document()
}

struct Builder<'t, 'e> {
    name: Arc<str>,
    events: Parser<'t, StrInput<'t>>,
    errors: &'e mut Vec<ConfigError>,
}

impl<'t> Builder<'t, '_> {
    fn document(mut self) -> Result<Option<Node>, ConfigError> {
        let mut root = None;
        while let Some(event) = self.events.next_event() {
            let (event, span) = event.map_err(|error| {
                let at = self.place(error.marker().line(), error.marker().col());
                mistake(at, format!("not valid YAML: {}", error.info()))
            })?;
            match event {
                Event::DocumentStart(_) if root.is_some() => {
                    let message = "a second document begins: write one document";
                    return Err(mistake(self.start(span), message));
                }
                Event::Nothing
                | Event::StreamStart
                | Event::StreamEnd
                | Event::DocumentStart(_)
                | Event::DocumentEnd => {}
                event => root = Some(self.node(event, span, 0)?),
            }
        }
        Ok(root.filter(|node| node.value != Value::Null))
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, ConfigError> {
        let place = self.start(span);
        if depth > MAX_DEPTH {
            return Err(mistake(place, "nested too deeply"));
        }
        let value = match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_indirection(&place, anchor, tag.is_some())?;
                let plain = style == ScalarStyle::Plain;
                match text.as_ref() {
                    "" | "~" | "null" | "Null" | "NULL" if plain => Value::Null,
                    text => Value::Scalar(text.to_owned()),
                }
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_indirection(&place, anchor, tag.is_some())?;
                Value::List(self.list(depth)?)
            }
            Event::MappingStart(anchor, tag) => {
                refuse_indirection(&place, anchor, tag.is_some())?;
                Value::Map(self.map(depth)?)
            }
            Event::Alias(_) => return Err(mistake(place, INDIRECTION)),
            _ => return Err(mistake(place, "a value is missing")),
        };
        Ok(Node { value, place })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, ConfigError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, ConfigError> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let place = self.start(span);
            let key = match event {
                Event::MappingEnd => return Ok(entries),
                Event::Scalar(text, _, anchor, tag) => {
                    refuse_indirection(&place, anchor, tag.is_some())?;
                    text.into_owned()
                }
                _ => return Err(mistake(place, "a key must be a word")),
            };
            let (event, span) = self.next()?;
            let node = self.node(event, span, depth + 1)?;
            if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                let first = &first.place;
                let message = format!("{key:?} is written twice, first at {first}: remove one");
                self.errors.push(mistake(place, message));
                continue;
            }
            entries.push(Entry { key, place, node });
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), ConfigError> {
        match self.events.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let at = self.place(error.marker().line(), error.marker().col());
                Err(mistake(at, format!("not valid YAML: {}", error.info())))
            }
            None => Err(mistake(self.place(1, 0), "the text ends too early")),
        }
    }

    fn start(&self, span: Span) -> Place {
        self.place(span.start.line(), span.start.col())
    }

    /// The parser counts lines from 1 and columns from 0.
    fn place(&self, line: usize, column: usize) -> Place {
        Place::File {
            name: self.name.clone(),
            line,
            column: column + 1,
        }
    }
}

const INDIRECTION: &str = "anchors, aliases and tags are refused: write the value itself";

fn refuse_indirection(place: &Place, anchor: usize, tagged: bool) -> Result<(), ConfigError> {
    if anchor != 0 || tagged {
        return Err(mistake(place.clone(), INDIRECTION));
    }
    Ok(())
}

fn mistake(place: Place, message: impl Into<String>) -> ConfigError {
    ConfigError {
        place,
        key: None,
        message: message.into(),
    }
}

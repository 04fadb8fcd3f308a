//! Collects every mistake of a document, each with its path and what to write,
//! so that one run of `manifest check` is enough to mend it.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// What is wrong, in the order in which it was found.
#[derive(Debug, Default)]
pub(in crate::openclaw) struct Mistakes(Vec<String>);

impl Mistakes {
    /// `at` is a path such as `skills[2].runtime.url`; empty for the whole.
    pub(in crate::openclaw) fn add(&mut self, at: &str, what: &str) {
        self.0.push(if at.is_empty() {
            what.to_owned()
        } else {
            format!("{at}: {what}")
        });
    }

    /// One line for each.
    pub(in crate::openclaw) fn into_lines(self) -> Vec<String> {
        self.0
    }
}

/// Reads one object member by member, and on [`Self::finish`] refuses those
/// that nobody took.
pub(in crate::openclaw) struct Reader<'v, 'm> {
    members: &'v Map<String, Value>,
    at: String,
    taken: BTreeSet<&'static str>,
    mistakes: &'m mut Mistakes,
}

impl<'v, 'm> Reader<'v, 'm> {
    /// `None`, and a mistake, where `raw` is no object.
    pub(in crate::openclaw) fn object(
        raw: &'v Value,
        at: &str,
        mistakes: &'m mut Mistakes,
    ) -> Option<Self> {
        let Some(members) = raw.as_object() else {
            mistakes.add(at, "write an object");
            return None;
        };
        Some(Self {
            members,
            at: at.to_owned(),
            taken: BTreeSet::new(),
            mistakes,
        })
    }

    /// Where this object stands.
    pub(in crate::openclaw) fn at(&self) -> &str {
        &self.at
    }

    /// The path of a member.
    pub(in crate::openclaw) fn path(&self, name: &str) -> String {
        if self.at.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.at)
        }
    }

    /// The collector, for what is read deeper down.
    pub(in crate::openclaw) fn mistakes(&mut self) -> &mut Mistakes {
        self.mistakes
    }

    /// Notes a mistake in a member.
    pub(in crate::openclaw) fn mistake(&mut self, name: &str, what: &str) {
        let at = self.path(name);
        self.mistakes.add(&at, what);
    }

    /// A member as it stands.
    pub(in crate::openclaw) fn take(&mut self, name: &'static str) -> Option<&'v Value> {
        self.taken.insert(name);
        self.members.get(name)
    }

    /// A member that must be there.
    pub(in crate::openclaw) fn required(
        &mut self,
        name: &'static str,
        what: &str,
    ) -> Option<&'v Value> {
        let found = self.take(name);
        if found.is_none() {
            self.mistake(name, &format!("is missing; {what}"));
        }
        found
    }

    /// A string that must be there.
    pub(in crate::openclaw) fn required_string(
        &mut self,
        name: &'static str,
        what: &str,
    ) -> Option<String> {
        match self.required(name, what)? {
            Value::String(text) => Some(text.clone()),
            _ => {
                self.mistake(name, &format!("is no string; {what}"));
                None
            }
        }
    }

    /// A string that may be left out.
    pub(in crate::openclaw) fn optional_string(&mut self, name: &'static str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text.clone()),
            _ => {
                self.mistake(name, "write a string");
                None
            }
        }
    }

    /// True or false, that may be left out.
    pub(in crate::openclaw) fn optional_bool(&mut self, name: &'static str) -> Option<bool> {
        let found = self.take(name)?.as_bool();
        if found.is_none() {
            self.mistake(name, "write true or false");
        }
        found
    }

    /// A whole number between two bounds, that may be left out.
    pub(in crate::openclaw) fn optional_between(
        &mut self,
        name: &'static str,
        least: u64,
        most: u64,
    ) -> Option<u64> {
        let found = self
            .take(name)?
            .as_u64()
            .filter(|n| (least..=most).contains(n));
        if found.is_none() {
            self.mistake(
                name,
                &format!("write a whole number from {least} to {most}"),
            );
        }
        found
    }

    /// Refuses the members that nobody took.
    pub(in crate::openclaw) fn finish(self) {
        for name in self.members.keys() {
            if !self.taken.contains(name.as_str()) {
                let known: Vec<_> = self.taken.iter().copied().collect();
                let at = if self.at.is_empty() {
                    name.clone()
                } else {
                    format!("{}.{name}", self.at)
                };
                self.mistakes.add(
                    &at,
                    &format!("is not known here; write one of {}", known.join(", ")),
                );
            }
        }
    }
}

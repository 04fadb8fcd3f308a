//! The memory stream: what was said, what was done and what was refused, newest
//! last, in a bounded list. It never holds the token.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};

use crate::openclaw::clock::rfc3339;
use crate::openclaw::egress::{Egress, Refusal};

/// Entries kept; the oldest go first.
const MAX_ENTRIES: usize = 1024;
/// The most bytes of one text in an entry.
const MAX_TEXT_BYTES: usize = 4096;

/// Whose conversation an entry belongs to, and which trace.
#[derive(Clone, Debug)]
pub(in crate::openclaw) struct Context {
    /// The session; callers that name none share `default`.
    pub(in crate::openclaw) session: String,
    /// The trace.
    pub(in crate::openclaw) trace_id: String,
}

/// What happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(in crate::openclaw) enum Event {
    /// Somebody asked.
    User {
        /// What.
        text: String,
    },
    /// The agent answered.
    Agent {
        /// What.
        text: String,
    },
    /// A skill ran.
    Skill {
        /// Which.
        skill: String,
        /// In which version.
        version: String,
        /// What it was given.
        input: Value,
        /// What it gave.
        output: Value,
    },
    /// A skill failed.
    SkillFailed {
        /// Which.
        skill: String,
        /// In which version.
        version: String,
        /// Why, as one word.
        error: String,
        /// Why, as a sentence.
        detail: String,
    },
    /// The gateway refused a call, and why.
    EgressRefused {
        /// For which skill.
        skill: String,
        /// `egress_refused`, `egress_throttled`, `egress_unauthenticated`, …
        error: &'static str,
        /// The gateway's status.
        status: u16,
        /// In the gateway's words.
        #[serde(flatten)]
        refusal: Refusal,
    },
}

/// The stream of one agent.
pub(in crate::openclaw) struct Memory {
    egress: Egress,
    stream: Mutex<Stream>,
}

#[derive(Default)]
struct Stream {
    next: u64,
    entries: VecDeque<Entry>,
}

struct Entry {
    number: u64,
    session: String,
    shown: Value,
}

impl Memory {
    /// Empty. `egress` knows the token, and so takes it out of what is kept.
    pub(in crate::openclaw) fn new(egress: Egress) -> Self {
        Self {
            egress,
            stream: Mutex::default(),
        }
    }

    /// Appends one entry.
    pub(in crate::openclaw) fn append(&self, context: &Context, event: &Event) {
        let mut shown = json!(event);
        self.clean(&mut shown);
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let number = stream.next;
        stream.next += 1;
        shown["id"] = number.into();
        shown["ts"] = rfc3339(SystemTime::now()).into();
        shown["session"] = context.session.clone().into();
        shown["trace_id"] = context.trace_id.clone().into();
        stream.entries.push_back(Entry {
            number,
            session: context.session.clone(),
            shown,
        });
        if stream.entries.len() > MAX_ENTRIES {
            stream.entries.pop_front();
        }
    }

    /// Entries of one session, or of all, with a number of `after` or more;
    /// oldest first, at most `limit`; and the number to go on from, where more
    /// are there.
    pub(in crate::openclaw) fn read(
        &self,
        session: Option<&str>,
        after: u64,
        limit: usize,
    ) -> (Vec<Value>, Option<u64>) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = stream
            .entries
            .iter()
            .filter(|entry| entry.number >= after)
            .filter(|entry| session.is_none_or(|session| entry.session == session));
        let page = found
            .by_ref()
            .take(limit)
            .map(|e| e.shown.clone())
            .collect();
        (page, found.next().map(|entry| entry.number))
    }

    fn clean(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                *text = self.egress.redact(text);
                truncate(text);
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.clean(item)),
            Value::Object(members) => members.values_mut().for_each(|member| self.clean(member)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        // Of a large structure only its beginning is kept, as text.
        if !value.is_string() && value.to_string().len() > 4 * MAX_TEXT_BYTES {
            let mut text = value.to_string();
            truncate(&mut text);
            *value = text.into();
        }
    }
}

fn truncate(text: &mut String) {
    if text.len() > MAX_TEXT_BYTES {
        let end = text.floor_char_boundary(MAX_TEXT_BYTES);
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openclaw::egress::{Endpoint, Route, TokenSource, Trust, Way};

    fn memory() -> Memory {
        let endpoint: Endpoint = "http://gateway:8080".parse().expect("good");
        let token = TokenSource::fixed("secret-token").expect("good");
        Memory::new(Egress::new(Route {
            way: Way::Gateway { endpoint, token },
            trust: Trust::new(None, None),
        }))
    }

    fn context(session: &str) -> Context {
        Context {
            session: session.to_owned(),
            trace_id: "t".to_owned(),
        }
    }

    fn user(text: &str) -> Event {
        Event::User {
            text: text.to_owned(),
        }
    }

    #[test]
    fn sessions_are_apart_and_pages_go_on() {
        let memory = memory();
        for n in 0..4 {
            memory.append(&context(["a", "b"][n % 2]), &user(&n.to_string()));
        }
        let texts = |entries: Vec<Value>| -> Vec<String> {
            entries.iter().map(|e| e["text"].to_string()).collect()
        };
        let (all, next) = memory.read(None, 0, 10);
        assert_eq!((all.len(), next), (4, None));
        let (page, next) = memory.read(Some("b"), 0, 1);
        assert_eq!((texts(page), next), (vec!["\"1\"".to_owned()], Some(3)));
        let (page, next) = memory.read(Some("b"), 3, 1);
        assert_eq!((texts(page), next), (vec!["\"3\"".to_owned()], None));
    }

    #[test]
    fn it_is_bounded_and_holds_no_token() {
        let memory = memory();
        for _ in 0..MAX_ENTRIES + 5 {
            memory.append(&context("a"), &user("x"));
        }
        let long = "é".repeat(MAX_TEXT_BYTES);
        memory.append(&context("a"), &user(&format!("Bearer secret-token {long}")));
        let (all, _) = memory.read(None, 0, usize::MAX);
        assert_eq!(all.len(), MAX_ENTRIES);
        let last = all.last().expect("there")["text"].to_string();
        assert!(last.starts_with("\"Bearer [token] "), "{last}");
        assert!(last.len() < MAX_TEXT_BYTES + 16);
    }
}

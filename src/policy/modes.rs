//! Whether refusals bind: for a document, and for single agents in it.

use std::collections::HashMap;

use super::document::{Mode, PolicyDocument};
use super::finding::{Finding, PolicyError, Problem, SourceName};
use crate::egress::AgentId;

/// The modes of one document. A rule that names its own goes before these.
#[derive(Clone, Debug)]
pub(super) struct Modes {
    document: Mode,
    names: HashMap<AgentId, Mode>,
    /// The beginnings of names, the longest first.
    prefixes: Vec<(Box<str>, Mode)>,
}

impl Modes {
    /// Whether refusals bind for every agent.
    pub(super) fn enforce_for_all(&self) -> bool {
        let singles = self
            .names
            .values()
            .chain(self.prefixes.iter().map(|(_, mode)| mode));
        self.document == Mode::Enforce && singles.into_iter().all(|mode| *mode == Mode::Enforce)
    }

    /// The agents that have a mode of their own, as they are written.
    pub(super) fn agents(&self) -> impl Iterator<Item = String> {
        let names = self.names.keys().map(ToString::to_string);
        names.chain(self.prefixes.iter().map(|(prefix, _)| format!("{prefix}*")))
    }

    /// All modes, in an order that depends on nothing else.
    pub(super) fn in_words(&self) -> String {
        let names = self
            .names
            .iter()
            .map(|(name, mode)| format!("{name}: {mode}"));
        let prefixes = self
            .prefixes
            .iter()
            .map(|(prefix, mode)| format!("{prefix}*: {mode}"));
        let mut words: Vec<String> = names.chain(prefixes).collect();
        words.sort_unstable();
        format!("{} {}", self.document, words.join(", "))
    }

    /// Reads `mode` and `agent_modes`, and puts every mistake on the list.
    pub(super) fn read(
        source: &SourceName,
        written: &PolicyDocument,
        default_mode: Mode,
        errors: &mut Vec<PolicyError>,
    ) -> Self {
        let mut modes = Self {
            document: written.mode.unwrap_or(default_mode),
            names: HashMap::new(),
            prefixes: Vec::new(),
        };
        let mut report = |path: String, problem| errors.push(Finding::new(source, path, problem));
        let Some(agents) = &written.agent_modes else {
            return modes;
        };
        if agents.0.is_empty() {
            report("agent_modes".to_owned(), Problem::EmptyList);
        }
        for (raw, mode) in &agents.0 {
            let (name, is_prefix) = match raw.strip_suffix('*') {
                Some("") => {
                    report(format!("agent_modes.{raw}"), Problem::AgentModeStar);
                    continue;
                }
                Some(prefix) => (prefix, true),
                None => (raw.as_str(), false),
            };
            match AgentId::parse(name) {
                Ok(prefix) if is_prefix => modes.prefixes.push((prefix.as_str().into(), *mode)),
                Ok(name) => {
                    modes.names.insert(name, *mode);
                }
                Err(error) => {
                    let raw = raw.clone();
                    report("agent_modes".to_owned(), Problem::Agent { raw, error });
                }
            }
        }
        modes
            .prefixes
            .sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        modes
    }

    /// The mode for an agent: that of its name, of the longest beginning of it,
    /// or the document's.
    pub(super) fn of(&self, agent: &AgentId) -> Mode {
        if self.names.is_empty() && self.prefixes.is_empty() {
            return self.document;
        }
        let prefixed = || {
            self.prefixes
                .iter()
                .find(|(prefix, _)| agent.as_str().starts_with(&**prefix))
                .map(|(_, mode)| *mode)
        };
        self.names
            .get(agent)
            .copied()
            .or_else(prefixed)
            .unwrap_or(self.document)
    }
}

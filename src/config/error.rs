//! What is wrong with a configuration, where, and what to write instead.

use std::fmt;
use std::sync::Arc;

/// One mistake. Its text never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where it stands.
    pub place: Place,
    /// The key that it is about, as in `timeouts.connect` or `identity.keys[0]`.
    pub key: Option<String>,
    /// What is wrong, and what to write.
    pub message: String,
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the built-in reference.
    Default,
    /// In the configuration file. Lines and columns count from 1.
    File {
        /// The file, as the caller named it.
        name: Arc<str>,
        /// The line.
        line: usize,
        /// The column, in characters.
        column: usize,
    },
    /// In this environment variable.
    Environment(String),
    /// In this flag of the command line, as in `--listen`.
    Flag(String),
    /// In no one place: something is missing.
    Nowhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Nowhere => f.write_str("configuration"),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(f, "{}: {key}: {}", self.place, self.message),
            None => write!(f, "{}: {}", self.place, self.message),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The candidate that was most likely meant, where one is near enough for a
/// slip of the hand: one edit in three characters.
pub(super) fn nearest<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (distance(written, candidate), candidate))
        .filter(|(edits, candidate)| *edits <= candidate.len().div_ceil(3).min(4))
        .min()
        .map(|(_, candidate)| candidate)
}

/// The candidate from which one letter tells it, where it is the only one.
pub(super) fn slipped<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let mut near = candidates
        .into_iter()
        .filter(|candidate| distance(written, candidate) == 1);
    near.next().filter(|_| near.next().is_none())
}

/// Levenshtein's distance, in characters. Bounded, as it is quadratic and
/// what is written may be long.
fn distance(left: &str, right: &str) -> usize {
    const LONGEST: usize = 96;
    let right: Vec<char> = right.chars().take(LONGEST).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().take(LONGEST).enumerate() {
        let mut diagonal = i;
        let mut previous = i + 1;
        for (j, r) in right.iter().enumerate() {
            let above = row[j + 1];
            row[j] = previous;
            previous = (above + 1)
                .min(previous + 1)
                .min(diagonal + usize::from(l != *r));
            diagonal = above;
        }
        row[right.len()] = previous;
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (left, right, edits) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("conect", "connect", 1),
            ("kitten", "sitting", 3),
            ("flaw", "lawn", 2),
        ] {
            assert_eq!(distance(left, right), edits, "{left} {right}");
        }
    }

    #[test]
    fn what_is_far_is_not_suggested() {
        let keys = ["timeouts.connect", "mode", "policy"];
        assert_eq!(nearest("timeout.connect", keys), Some("timeouts.connect"));
        assert_eq!(nearest("moed", keys), Some("mode"));
        assert_eq!(nearest("entirely_else", keys), None);
    }
}

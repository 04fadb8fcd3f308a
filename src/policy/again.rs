//! Reading a large document again of which little has changed: rule by rule,
//! where those that stand as they stood are not parsed anew. It takes nothing
//! that [`PolicyDocument::parse`] would not take as well; what it is not sure
//! of, it leaves to that.

use std::collections::HashMap;

use ring::digest::{SHA256, digest};

use super::apart::{self, Apart};
use super::document::{Format, MAX_DOCUMENT_BYTES, PolicyDocument, RuleDocument};
use super::finding::{PolicyError, SourceName};

/// Documents with fewer rules are parsed faster than they are compared.
const MANY: usize = 256;

/// The rules of a document as it was read last, by their texts.
#[derive(Debug)]
pub struct KnownRules {
    rules: HashMap<[u8; 32], RuleDocument>,
    /// From how many rules, and how many entries of a denylist on, a document
    /// is taken apart.
    least: (usize, usize),
}

impl PolicyDocument {
    /// As [`PolicyDocument::parse`], where `known` is of the same document as
    /// it was before. It is of this one afterwards.
    ///
    /// # Errors
    /// Those of [`PolicyDocument::parse`].
    pub fn parse_again(
        source: &SourceName,
        format: Format,
        text: &str,
        known: &mut KnownRules,
    ) -> Result<Self, PolicyError> {
        let read = match format {
            _ if text.len() > MAX_DOCUMENT_BYTES => None,
            Format::Yaml => known.read(text.strip_prefix('\u{feff}').unwrap_or(text)),
            Format::Json => None,
        };
        match read {
            Some(document) => Ok(document),
            None => {
                known.rules.clear();
                Self::parse(source, format, text)
            }
        }
    }
}

impl Default for KnownRules {
    /// None yet.
    fn default() -> Self {
        Self::from(MANY, apart::MANY)
    }
}

impl KnownRules {
    /// None yet; and a document is taken apart however small it is, which is
    /// of use only to hold the result against that of [`PolicyDocument::parse`].
    #[must_use]
    pub fn of_any_size() -> Self {
        Self::from(1, 1)
    }

    fn from(rules: usize, entries: usize) -> Self {
        Self {
            rules: HashMap::new(),
            least: (rules, entries),
        }
    }

    /// The document, where it is large, can be told apart with certainty and
    /// has no mistake.
    fn read(&mut self, text: &str) -> Option<PolicyDocument> {
        let Some(apart) = Apart::of(text, self.least.1) else {
            return self.read_rules(text);
        };
        let around = self.read_rules(&apart.around).or_else(|| {
            self.rules.clear();
            yaml_serde::from_str(&apart.around).ok()
        });
        apart.into_whole(around?)
    }

    /// The same of a document whose denylist is short, or not in its text.
    fn read_rules(&mut self, text: &str) -> Option<PolicyDocument> {
        let pieces = Pieces::of(text)?;
        if pieces.rules.len() < self.least.0 {
            return None;
        }
        // By itself, so that nothing is open where the rules begin.
        let mut document: PolicyDocument =
            yaml_serde::from_str(&format!("{}rules: []\n", pieces.head)).ok()?;
        let mut before = std::mem::take(&mut self.rules);
        let mut now = HashMap::with_capacity(pieces.rules.len());
        let mut rules: Vec<RuleDocument> = Vec::with_capacity(pieces.rules.len());
        let mut at = 0;
        while at < pieces.rules.len() {
            let hash = hash_of(pieces.rules[at]);
            if let Some(rule) = before.remove(&hash).or_else(|| now.get(&hash).cloned()) {
                rules.push(rule.clone());
                now.insert(hash, rule);
                at += 1;
                continue;
            }
            // Neighbours that are new are parsed together.
            let mut hashes = vec![hash];
            let is_new = |hash: &[u8; 32]| !before.contains_key(hash) && !now.contains_key(hash);
            while let Some(next) = pieces.rules.get(at + hashes.len()) {
                let hash = hash_of(next);
                if !is_new(&hash) {
                    break;
                }
                hashes.push(hash);
            }
            let new = parsed(&pieces.rules[at..at + hashes.len()])?;
            at += hashes.len();
            for (hash, rule) in hashes.into_iter().zip(new) {
                rules.push(rule.clone());
                now.insert(hash, rule);
            }
        }
        document.rules = rules;
        self.rules = now;
        Some(document)
    }
}

/// The rules in these pieces, which follow one another; `None` where they are
/// not one in each. A piece that had swallowed the beginning of the next, as by
/// a quote that is not closed, would make them fewer.
fn parsed(pieces: &[&str]) -> Option<Vec<RuleDocument>> {
    let rules: Vec<RuleDocument> = yaml_serde::from_str(&pieces.concat()).ok()?;
    (rules.len() == pieces.len()).then_some(rules)
}

fn hash_of(text: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    hash
}

/// A document whose last member is `rules`, as a block sequence.
struct Pieces<'t> {
    head: &'t str,
    /// Each from its dash to the dash of the next.
    rules: Vec<&'t str>,
}

impl<'t> Pieces<'t> {
    fn of(text: &'t str) -> Option<Self> {
        // Anchors go from one rule to another; and behind another line break of
        // YAML 1.1 a rule could begin that is not seen here.
        const NOT_HERE: [char; 5] = ['&', '\r', '\u{85}', '\u{2028}', '\u{2029}'];
        if text.contains(NOT_HERE) {
            return None;
        }
        let mut head = None;
        let mut indent: Option<&str> = None;
        let mut starts: Vec<usize> = Vec::new();
        let mut place = 0;
        for line in text.split_inclusive('\n') {
            let start = place;
            place += line.len();
            // Another document, or a directive.
            if ["---", "...", "%"]
                .iter()
                .any(|mark| line.starts_with(mark))
            {
                return None;
            }
            if head.is_none() {
                if line.trim_end() == "rules:" {
                    head = Some(&text[..start]);
                }
                continue;
            }
            let content = line.trim_start_matches(' ');
            if content.trim_end().is_empty() || content.starts_with('#') {
                continue;
            }
            let spaces = &line[..line.len() - content.len()];
            let is_dash = content.starts_with("- ") || content.trim_end() == "-";
            match indent {
                None if is_dash => {
                    indent = Some(spaces);
                    starts.push(start);
                }
                Some(first) if first == spaces && is_dash => starts.push(start),
                Some(first) if spaces.len() > first.len() => {}
                // Something behind the rules, or what is no sequence.
                _ => return None,
            }
        }
        let ends = starts.iter().skip(1).copied().chain([text.len()]);
        let rules = starts
            .iter()
            .zip(ends)
            .map(|(start, end)| &text[*start..end]);
        Some(Self {
            head: head?,
            rules: rules.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rules in several layouts, from this number on.
    fn rules(first: usize, count: usize) -> Vec<String> {
        let rule = |n: usize| match n % 3 {
            0 => format!("  - {{name: r{n}, action: allow, agents: any, hosts: [h{n}.example]}}\n"),
            1 => format!(
                "  - name: r{n}\n    action: deny\n    agents: [a, \"b-*\"]\n    hosts:\n      - h{n}.example\n\n  # a comment\n"
            ),
            _ => format!(
                "  -\n    name: \"r\n      {n}\"\n    action: allow\n    agents: any\n    hosts: [\"*.h{n}.example\"] # x\n"
            ),
        };
        (first..first + count).map(rule).collect()
    }

    fn text(rules: &[String]) -> String {
        format!(
            "version: 1\ntenant: t\n# rules:\nrules:\n{}",
            rules.concat()
        )
    }

    fn both(text: &str, known: &mut KnownRules) -> Result<PolicyDocument, PolicyError> {
        let source = SourceName::from("p");
        let again = PolicyDocument::parse_again(&source, Format::Yaml, text, known);
        assert_eq!(again, PolicyDocument::parse(&source, Format::Yaml, text));
        again
    }

    #[test]
    fn what_stands_as_it_stood_is_not_parsed_again() {
        let mut known = KnownRules::default();
        let mut written = rules(0, 400);
        both(&text(&written), &mut known).expect("a document");
        assert_eq!(known.rules.len(), 400);
        // Changed, moved, repeated, new and gone.
        written[7] = rules(1000, 1).remove(0);
        written.swap(20, 300);
        written.push(written[30].clone());
        written.insert(3, rules(2000, 1).remove(0));
        written.remove(100);
        let document = both(&text(&written), &mut known).expect("a document");
        assert_eq!(document.rules.len(), written.len());
        assert_eq!(known.rules.len(), 400);
        assert!(both(&text(&rules(0, 3)), &mut known).is_ok());
        assert!(known.rules.is_empty(), "a few are not worth it");
    }

    #[test]
    fn what_only_looks_like_a_rule_is_left_to_the_parser() {
        for (case, from, to) in [
            ("a quote over two rules", "name: r0", "name: \"r0"),
            ("a member behind the rules", "# a comment", "\nmode: audit"),
            ("rules inside braces", "version: 1", "{version: 1,"),
            ("a second document", "  # a comment", "---"),
            (
                "a list that is not closed",
                "hosts: [h3.example]",
                "hosts: [h3.example",
            ),
            ("a member twice", "name: r0", "name: r0, name: r0"),
            ("an anchor", "hosts: [h0.example]", "hosts: &a [h0.example]"),
            ("another line break", "action: deny\n", "action: deny\r\n"),
            (
                "a rule behind another line break",
                "name: r0, action",
                "name: r0, \u{2028}  action",
            ),
            ("a rule that is none", "  - name: r1\n", "  - r1\n"),
            ("two dashes", "  - name: r1\n", "  - - name: r1\n"),
            ("another indent", "  - name: r1\n", " - name: r1\n"),
            (
                "rules in a text",
                "tenant: t\n",
                "tenant: \"t\nrules:\n  - x\"\n",
            ),
        ] {
            let mut known = KnownRules::default();
            let good = text(&rules(0, 400));
            both(&good, &mut known).expect("a document");
            let changed = good.replacen(from, to, 1);
            assert_ne!(changed, good, "{case}");
            let _ = both(&changed, &mut known);
            both(&good, &mut known).expect(case);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn whatever_is_changed_it_reads_as_the_parser_does(
            changes in prop::collection::vec(
                (any::<prop::sample::Index>(), 0usize..12, prop::sample::select(vec![
                    "", "\"", "'", "\n", "  - ", "- ", "[", "]", "{", "}", "# ", ": ", "|\n", "rules:\n", "\n  - {name: n, action: allow, agents: any, hosts: [n.example]}\n", "\u{2028}", "\t", "\n...\n",
                ])), 1..4)
        ) {
            let mut known = KnownRules::default();
            let mut written = text(&rules(0, 300));
            let _ = both(&written, &mut known);
            for (at, gone, new) in changes {
                let at = at.index(written.len());
                let end = (at + gone).min(written.len());
                if written.is_char_boundary(at) && written.is_char_boundary(end) {
                    written.replace_range(at..end, new);
                }
                let _ = both(&written, &mut known);
            }
        }
    }
}

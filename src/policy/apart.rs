//! A long list in YAML, as feeds of bad hosts are: read line by line, apart
//! from the document around it, which a parser of YAML takes ten times as long
//! for. It takes nothing that [`PolicyDocument::parse`] would not take as well,
//! and gives the same; what it is not sure of, it leaves to the parser.
//!
//! Why it is the same: the list is taken out and a mark put in its place, and
//! the parser reads what is left. Where that gives a document whose `denylist`
//! is the mark, its line was a member of the document's own mapping, which its
//! first line shows to be in block style. Whether the value there is the mark
//! or a block sequence, the parser stands alike in front of the next member.
//! The entries themselves are plain enough to be read in one way only.

use super::document::PolicyDocument;

/// Shorter lists are parsed faster than they are taken out.
pub(super) const MANY: usize = 64;

/// What stands for the list while the document around it is read.
const MARK: &str = "the-denylist-is-read-apart.invalid";

/// A document as YAML, with its denylist taken out.
pub(super) struct Apart {
    /// The text without the list, with the mark in its place.
    pub(super) around: String,
    list: Vec<String>,
}

impl Apart {
    /// Of a text without a byte order mark; `None` where it has no denylist of
    /// at least so many entries in block style, or where it has anything that
    /// could be read in another way.
    pub(super) fn of(text: &str, at_least: usize) -> Option<Self> {
        let (head, rest) = at_member(text)?;
        if !is_block_mapping(head) {
            return None;
        }
        let (list, tail) = entries(rest)?;
        // An alias counts by what the whole document has; and there must be
        // but one mark.
        let plain = |part: &str| !part.contains('&') && !part.contains(MARK);
        if list.len() < at_least.max(1) || !plain(head) || !plain(tail) {
            return None;
        }
        let around = [head, "denylist: [", MARK, "]\n", tail].concat();
        let list = list.into_iter().map(str::to_owned).collect();
        Some(Self { around, list })
    }

    /// The whole document, where this is what was read around the list.
    pub(super) fn into_whole(self, mut around: PolicyDocument) -> Option<PolicyDocument> {
        let is_marked = matches!(around.denylist.as_slice(), [only] if only == MARK);
        around.denylist = self.list;
        is_marked.then_some(around)
    }
}

/// What is before the line of the member, and what is behind it.
fn at_member(text: &str) -> Option<(&str, &str)> {
    const MEMBER: &str = "denylist:";
    let mut from = 0;
    loop {
        let start = from + text.get(from..)?.find(MEMBER)?;
        let behind = start + MEMBER.len();
        let (line, rest) = match text[behind..].split_once('\n') {
            Some(parts) => parts,
            None => (&text[behind..], ""),
        };
        let begins = start == 0 || text.as_bytes()[start - 1] == b'\n';
        if begins && line.bytes().all(|b| b == b' ') {
            return Some((&text[..start], rest));
        }
        from = behind;
    }
}

/// Whether the first thing in the text is a member in block style, or there is
/// nothing yet.
fn is_block_mapping(head: &str) -> bool {
    let mut lines = head.lines();
    let first =
        lines.find(|line| !line.trim_start_matches(' ').is_empty() && !line.starts_with('#'));
    first.is_none_or(|line| {
        line.split_once(':').is_some_and(|(name, value)| {
            let plain = |b: u8| b.is_ascii_lowercase() || b == b'_';
            !name.is_empty()
                && name.bytes().all(plain)
                && (value.is_empty() || value.starts_with(' '))
        })
    })
}

/// The entries of a block sequence, and the text from the next member on.
fn entries(text: &str) -> Option<(Vec<&str>, &str)> {
    let mut list = Vec::with_capacity(text.len() / 24);
    let mut indent = None;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let end = memchr::memchr(b'\n', rest.as_bytes()).unwrap_or(rest.len());
        let line = &rest[..end];
        let content = line.trim_start_matches(' ');
        match content.as_bytes() {
            [] => {}
            [b'#', ..] if is_comment(content) => {}
            [b'-', b' ', ..] => {
                let spaces = line.len() - content.len();
                if *indent.get_or_insert(spaces) != spaces {
                    return None;
                }
                list.push(entry(content[2..].trim_matches(' '))?);
            }
            [b'a'..=b'z', ..] if content.len() == line.len() => return Some((list, rest)),
            _ => return None,
        }
        at += end + 1;
    }
    Some((list, ""))
}

/// The text of one entry, without its quotes and a comment behind it.
fn entry(written: &str) -> Option<&str> {
    let in_list =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/' | b':');
    let quoted = |quote: char| {
        let (inner, behind) = written[1..].split_once(quote)?;
        let plain = !inner.is_empty() && inner.bytes().all(|b| in_list(b) || b == b'*');
        (plain && is_rest(behind)).then_some(inner)
    };
    match written.as_bytes() {
        [b'"', ..] => quoted('"'),
        [b'\'', ..] => quoted('\''),
        [first, ..] if first.is_ascii_alphanumeric() => {
            let bytes = written.bytes();
            let end = bytes.take_while(|b| in_list(*b)).count();
            let (plain, behind) = written.split_at(end);
            (is_text(plain) && is_rest(behind)).then_some(plain)
        }
        _ => None,
    }
}

/// Whether what stands without quotes is a text, and nothing else that YAML
/// knows: a name with a dot, an address or a range, and no number.
fn is_text(plain: &str) -> bool {
    let in_no_number = |b: u8| match b {
        b'e' | b'E' => false,
        b => b.is_ascii_alphabetic() || b == b'/',
    };
    let (mut dots, mut marks, mut letters) = (0, 0, 0);
    for b in plain.bytes() {
        dots += usize::from(b == b'.');
        marks += usize::from(matches!(b, b'.' | b'/' | b':'));
        letters += usize::from(in_no_number(b));
    }
    let is_address = dots > 1;
    marks > 0 && (letters > 0 || is_address) && !plain.ends_with(':')
}

/// Whether this may stand behind an entry: nothing, or a comment.
fn is_rest(behind: &str) -> bool {
    let content = behind.trim_start_matches(' ');
    content.is_empty() || (content.len() < behind.len() && is_comment(content))
}

/// Whether it is a comment with no character that ends a line in YAML 1.1, or
/// that YAML does not take.
fn is_comment(content: &str) -> bool {
    let taken = |c: char| {
        matches!(c, ' '..='~' | '\u{a1}'..='\u{d7ff}') && !matches!(c, '\u{2028}' | '\u{2029}')
    };
    content.starts_with('#') && content.chars().all(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{Format, SourceName};

    /// What the parser reads, and what is read with the list apart, where it
    /// is. That one takes must be what the other gives.
    fn agree(text: &str) -> bool {
        let parsed: Option<PolicyDocument> = yaml_serde::from_str(text).ok();
        let apart = Apart::of(text, 1).and_then(|apart| {
            let around = yaml_serde::from_str(&apart.around).ok()?;
            apart.into_whole(around)
        });
        match apart {
            Some(apart) => {
                assert_eq!(Some(&apart), parsed.as_ref(), "{text}");
                true
            }
            None => false,
        }
    }

    #[test]
    fn a_list_of_hosts_is_read_apart() {
        for (case, text) in [
            (
                "plain",
                "version: 1\ndenylist:\n  - a.example\n  - b.example\n",
            ),
            (
                "at the margin",
                "version: 1\ndenylist:\n- a.example\n- b.example\n",
            ),
            ("first", "denylist:\n - a.example\nversion: 1\n"),
            ("no last line feed", "version: 1\ndenylist:\n  - a.example"),
            (
                "in the middle",
                "# x\n\nversion: 1\ndenylist:\n- a.example\nmode: audit\n",
            ),
            (
                "quotes, ranges and comments",
                "version: 1\ndenylist: \n  # from a feed — daily\n  - \"*.a.example\"\n  - '*.b.example' # x\n\n  -   203.0.113.0/24\n# y\n  - 2001:db8::/32  \n  - '1.2.3.4'\n  - 1.2.3.4\nrules: []\n",
            ),
            (
                "behind rules",
                "version: 1\nrules:\n  - {name: r, action: allow, agents: any, hosts: [a.example]}\ndenylist:\n  - a.example\n",
            ),
        ] {
            assert!(agree(text), "{case}");
        }
        let source = SourceName::from("p");
        let long: String = (0..MANY).map(|n| format!("- h{n}.example\n")).collect();
        let text = format!("version: 1\ndenylist:\n{long}");
        let read = PolicyDocument::parse(&source, Format::Yaml, &text).expect("a document");
        assert_eq!(read.denylist.len(), MANY);
        assert_eq!(read.denylist[MANY - 1], format!("h{}.example", MANY - 1));
    }

    #[test]
    fn what_could_be_something_else_is_left_to_the_parser() {
        for (case, text) in [
            ("none", "version: 1\n"),
            ("empty", "version: 1\ndenylist:\n"),
            ("in brackets", "version: 1\ndenylist: [a.example]\n"),
            (
                "twice",
                "version: 1\ndenylist:\n- a.example\ndenylist:\n- b.example\n",
            ),
            ("a number", "version: 1\ndenylist:\n- 1.5\n"),
            (
                "a number with an exponent",
                "version: 1\ndenylist:\n- 1.5e3\n",
            ),
            ("a number with a colon", "version: 1\ndenylist:\n- 1:2.3\n"),
            ("true", "version: 1\ndenylist:\n- true\n"),
            ("no dot", "version: 1\ndenylist:\n- localhost\n"),
            ("an alias", "version: 1\ndenylist:\n- *.a.example\n"),
            (
                "an anchor",
                "version: 1\ntenant: &t x\ndenylist:\n- a.example\n",
            ),
            ("a mapping", "version: 1\ndenylist:\n- a.example: x\n"),
            (
                "a mapping of nothing",
                "version: 1\ndenylist:\n- a.example:\n",
            ),
            ("two lines", "version: 1\ndenylist:\n- a.example\n  b\n"),
            ("two dashes", "version: 1\ndenylist:\n- - a.example\n"),
            (
                "other indents",
                "version: 1\ndenylist:\n  - a.example\n - b.example\n",
            ),
            ("a tab", "version: 1\ndenylist:\n-\ta.example\n"),
            (
                "a carriage return",
                "version: 1\ndenylist:\n- a.example\r\n",
            ),
            ("an end", "version: 1\ndenylist:\n- a.example\n...\n"),
            (
                "another document",
                "version: 1\ndenylist:\n- a.example\n---\n",
            ),
            (
                "a quote that goes on",
                "version: 1\ndenylist:\n- \"a.example\n  b\"\n",
            ),
            ("an escape", "version: 1\ndenylist:\n- \"a\\x2eexample\"\n"),
            (
                "two quotes in one",
                "version: 1\ndenylist:\n- 'a.example'''\n",
            ),
            (
                "no room before a comment",
                "version: 1\ndenylist:\n- 'a.example'#x\n",
            ),
            (
                "a line break in a comment",
                "version: 1\ndenylist:\n- a.example # \u{2028}- b.example\n",
            ),
            (
                "a control character",
                "version: 1\ndenylist:\n- a.example # \u{7}\n",
            ),
            (
                "braces around it",
                "{version: 1,\ndenylist:\n- a.example\n}\n",
            ),
            (
                "a text around it",
                "version: 1\ntenant: \"\ndenylist:\n- a.example\n\"\n",
            ),
            (
                "a block around it",
                "version: 1\ntenant: |\n x\ndenylist:\n- a.example\nmode: x\n",
            ),
            (
                "the mark",
                "version: 1\ndenylist:\n- a.example\ntenant: the-denylist-is-read-apart.invalid\n",
            ),
            (
                "rules behind it in braces",
                "version: 1\ndenylist:\n- a.example\n{rules: []}\n",
            ),
            (
                "a dash behind it",
                "version: 1\ndenylist:\n  - a.example\n- b.example\n",
            ),
            (
                "a directive",
                "%YAML 1.1\n---\nversion: 1\ndenylist:\n- a.example\n",
            ),
        ] {
            assert!(!agree(text), "{case}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn whatever_is_written_it_reads_as_the_parser_does(
            lines in prop::collection::vec(prop::sample::select(vec![
                "version: 1", "denylist:", "denylist: ", "denylist: # x", "rules:", "mode: audit", "tenant: \"t", "t\"",
                "- a.example", "  - a.example", "  - b.example # c", "- \"*.c.example\"", "  - '1.1.1.1'", "  -  10.0.0.0/8",
                "- 1e5", "- 1.5e3", "- 0x1.8", "- 1_0.0", "- fd00::/8", "- 1:30", "  - 12:30:45.5x", "- a:b", "- a.b:", "- a. b", "- 1.2.3", "- 1.2.3.4",
                "  # comment", "# comment", "", "   ", "{", "}", "]", "rules: [", "[", "|", "tenant: |", "tenant: >", "  x", "?", "? version", ": 1",
                "---", "...", "%YAML 1.2", "- - a.b", "-", "  -", "!!str", "  - !!str a.b", "\t", "- a.b\t", "- a.b\r", "<<: x", "limits:", "  agent: {requests: 1/s}",
                "  - {name: r, action: allow, agents: any, hosts: [a.example]}",
            ]), 1..12),
            end in prop::sample::select(vec!["", "\n"]),
        ) {
            agree(&format!("{}{end}", lines.join("\n")));
            agree(&format!("version: 1\ndenylist:\n{}{end}", lines.join("\n")));
        }

        #[test]
        fn no_entry_is_anything_but_a_text(written in "[-a-fx0-9eE._:/+~\"'*# ]{1,12}") {
            agree(&format!("version: 1\ndenylist:\n- {written}\n"));
            agree(&format!("version: 1\ndenylist:\n  - h.example\n  - {written}\nmode: audit\n"));
        }
    }
}

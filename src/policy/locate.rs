//! Where in a text a member stands. Reads the text as events only, and only
//! when a message is to be written; parsing proper does not pay for it.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser};

use super::finding::Location;

/// Finds members such as `rules[2].hosts[0]` in YAML or JSON text. A member
/// that is not there has the place of the nearest one around it. What cannot
/// be read to the end is found as far as it can be read.
#[must_use]
pub fn locate<P: AsRef<str>>(text: &str, paths: &[P]) -> Vec<Option<Location>> {
    let mut wanted: HashMap<&str, Option<Location>> = HashMap::new();
    for path in paths {
        for around in ancestors(path.as_ref()) {
            wanted.insert(around, None);
        }
    }
    let mut walk = Walk {
        path: String::new(),
        open: Vec::new(),
    };
    for (event, span) in Parser::new_from_str(text).map_while(Result::ok) {
        if let Some(marker) = walk.step(&event, span.start)
            && let Some(slot @ None) = wanted.get_mut(walk.path.as_str())
        {
            *slot = Some(marker);
        }
    }
    paths
        .iter()
        .map(|path| ancestors(path.as_ref()).find_map(|around| wanted.get(around).copied()?))
        .collect()
}

/// How many nodes a YAML text stands for, once its aliases are followed.
pub(super) fn expanded_nodes(text: &str) -> u64 {
    let mut sizes: HashMap<usize, u64> = HashMap::new();
    // The anchors and sizes of what is open, innermost last.
    let mut open: Vec<(usize, u64)> = vec![(0, 0)];
    for (event, _) in Parser::new_from_str(text).map_while(Result::ok) {
        let (anchor, size) = match event {
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                open.push((anchor, 1));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop().unwrap_or_default(),
            Event::Scalar(_, _, anchor, _) => (anchor, 1),
            // One that is not closed yet would hold itself.
            Event::Alias(anchor) => (0, sizes.get(&anchor).copied().unwrap_or(u64::MAX)),
            _ => continue,
        };
        if anchor != 0 {
            sizes.insert(anchor, size);
        }
        if let Some((_, around)) = open.last_mut() {
            *around = around.saturating_add(size);
        }
    }
    open.first().map_or(0, |(_, size)| *size)
}

/// `rules[2].hosts[0]`, `rules[2].hosts`, `rules[2]`, `rules`, and the whole.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| {
        (!path.is_empty()).then(|| &path[..path.rfind(['.', '[']).unwrap_or(0)])
    })
}

struct Walk {
    path: String,
    open: Vec<Open>,
}

/// A mapping or a sequence that is not closed yet.
enum Open {
    Mapping { path_bytes: usize, key_is_next: bool },
    Sequence { path_bytes: usize, next: usize },
}

impl Walk {
    /// Takes an event, and says where the member that `path` now names stands.
    fn step(&mut self, event: &Event<'_>, start: Marker) -> Option<Location> {
        let key = match event {
            Event::MappingEnd | Event::SequenceEnd => {
                self.open.pop();
                return None;
            }
            Event::Scalar(text, ..) => Some(text),
            Event::Alias(_) | Event::MappingStart(..) | Event::SequenceStart(..) => None,
            _ => return None,
        };
        let named = match self.open.last_mut() {
            None => true,
            Some(Open::Mapping {
                path_bytes,
                key_is_next,
            }) => {
                let is_key = *key_is_next;
                *key_is_next = !is_key;
                if is_key {
                    self.path.truncate(*path_bytes);
                    if !self.path.is_empty() {
                        self.path.push('.');
                    }
                    self.path.push_str(key.map_or("?", |key| key));
                }
                is_key
            }
            Some(Open::Sequence { path_bytes, next }) => {
                self.path.truncate(*path_bytes);
                self.path.push_str(&format!("[{next}]"));
                *next += 1;
                true
            }
        };
        let path_bytes = self.path.len();
        match event {
            Event::MappingStart(..) => self.open.push(Open::Mapping {
                path_bytes,
                key_is_next: true,
            }),
            Event::SequenceStart(..) => self.open.push(Open::Sequence {
                path_bytes,
                next: 0,
            }),
            _ => {}
        }
        // The parser counts columns from 0, whatever it says.
        named.then(|| Location {
            line: start.line(),
            column: start.col() + 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "\
version: 1
# a comment
rules:
  - name: a
    hosts: [\"x.example\", 'y.example']
  - name: b
    hosts:
      - z.example
    ports: &p [1]
  - {name: c, ports: *p}
";

    #[test]
    fn members_are_found_by_line_and_column() {
        for (path, line, column) in [
            ("", 1, 1),
            ("version", 1, 1),
            ("rules", 3, 1),
            ("rules[0]", 4, 5),
            ("rules[0].hosts[1]", 5, 26),
            ("rules[1].name", 6, 5),
            ("rules[1].hosts", 7, 5),
            ("rules[1].hosts[0]", 8, 9),
            ("rules[2].ports[0]", 10, 15),
            ("rules[2].missing", 10, 5),
            ("rules[9].hosts[0]", 3, 1),
        ] {
            let found = locate(YAML, &[path]);
            assert_eq!(found, [Some(Location { line, column })], "{path}");
        }
    }

    #[test]
    fn json_and_broken_text_are_read_as_far_as_they_go() {
        let json = "{\n\t\"rules\": [\n\t\t{\"hosts\": [\"a\", \"b\"]}\n\t]\n}";
        let line = |text, path| locate(text, &[path])[0].map(|at| at.line);
        assert_eq!(line(json, "rules[0].hosts[1]"), Some(3));
        assert_eq!(line("rules:\n  - a\n  - [", "rules[0]"), Some(2));
        assert_eq!(line("", "rules"), None);
    }

    #[test]
    fn aliases_are_counted_with_what_they_stand_for() {
        assert_eq!(expanded_nodes("[a, b]"), 3);
        assert_eq!(expanded_nodes("[&x [a, b], *x, *x]"), 10);
        assert_eq!(expanded_nodes("&x [*x]"), u64::MAX);
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..30 {
            bomb += &format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "));
        }
        assert_eq!(expanded_nodes(&bomb), u64::MAX);
    }
}

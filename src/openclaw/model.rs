//! The offline model: a small program of rules in place of a language model, so
//! that tests and the demo need no network and give the same answer every time.
//! It plans and words; it calls nothing itself.

use serde_json::{Map, Value};

use crate::openclaw::fields::Kind;
use crate::openclaw::manifest::{Catalog, Skill};

/// What the model wants to do about a query.
#[derive(Debug, PartialEq)]
pub(in crate::openclaw) enum Plan {
    /// Call a skill, then say what came of it.
    Call {
        /// Which; its highest version.
        skill: String,
        /// With what.
        input: Value,
    },
    /// Answer at once.
    Say(String),
}

/// Decides by the first rule that fits: `use SKILL {json}`; a skill named
/// anywhere; an answer that says what could be asked.
pub(in crate::openclaw) fn plan(query: &str, catalog: &Catalog) -> Plan {
    let query = query.trim();
    if let Some(rest) = query.strip_prefix("use ").map(str::trim_start) {
        let (id, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        return match catalog.find(id, None) {
            Some(skill) => call(skill, rest.trim()),
            None => Plan::Say(format!("I have no skill {id}. {}", offer(catalog))),
        };
    }
    match mention(query, catalog) {
        Some((skill, rest)) => call(skill, rest),
        None => Plan::Say(format!(
            "I am the offline model and make no sense of \"{query}\". {}",
            offer(catalog)
        )),
    }
}

/// The answer from what a skill gave.
pub(in crate::openclaw) fn word(skill: &str, output: &Value) -> String {
    let said = ["text", "summary", "message", "body"]
        .iter()
        .find_map(|name| output.get(name)?.as_str());
    match said {
        Some(text) => format!("{skill} says: {text}"),
        None => format!("{skill} answered {output}"),
    }
}

/// The first skill named in the query as a word of its own, and what follows it.
fn mention<'q, 'c>(query: &'q str, catalog: &'c Catalog) -> Option<(&'c Skill, &'q str)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    let mut at = 0;
    while let Some(start) = query[at..].find(is_part).map(|found| at + found) {
        let end = query[start..]
            .find(|c| !is_part(c))
            .map_or(query.len(), |length| start + length);
        if let Some(skill) = catalog.find(&query[start..end], None) {
            return Some((skill, query[end..].trim()));
        }
        at = end;
    }
    None
}

/// A call with the JSON object that stands in the rest, or with the rest as the
/// one text that the skill requires.
fn call(skill: &Skill, rest: &str) -> Plan {
    let object = rest
        .find('{')
        .and_then(|at| serde_json::from_str(rest[at..].trim_end_matches(['.', '?', '!'])).ok())
        .filter(Value::is_object);
    let input = object.or_else(|| {
        let required: Vec<_> = skill.inputs.iter().filter(|(_, f)| f.required).collect();
        match required.as_slice() {
            [] => Some(Value::Object(Map::new())),
            [(name, field)] if field.kind == Kind::String => {
                let text = strip_filler(rest);
                (!text.is_empty() && !text.contains('{')).then(|| {
                    Value::Object([((*name).to_owned(), text.into())].into_iter().collect())
                })
            }
            _ => None,
        }
    });
    match input {
        Some(input) => Plan::Call {
            skill: skill.id.clone(),
            input,
        },
        None => Plan::Say(format!(
            "To call {0}, write: use {0} {1}",
            skill.id,
            specimen(skill)
        )),
    }
}

fn strip_filler(text: &str) -> &str {
    let mut text = text.trim_start_matches([':', ',']).trim();
    for word in ["for ", "of ", "about ", "in ", "with ", "on "] {
        if let Some(rest) = text.strip_prefix(word) {
            text = rest;
            break;
        }
    }
    text.trim().trim_end_matches(['.', '?', '!']).trim()
}

fn specimen(skill: &Skill) -> String {
    let members: Vec<_> = skill
        .inputs
        .iter()
        .filter(|(_, field)| field.required)
        .map(|(name, field)| format!("\"{name}\": <{}>", field.kind.name()))
        .collect();
    format!("{{{}}}", members.join(", "))
}

fn offer(catalog: &Catalog) -> String {
    let ids: Vec<_> = catalog.ids().collect();
    if ids.is_empty() {
        "I have no skills.".to_owned()
    } else {
        format!("I can use: {}.", ids.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn catalog() -> Catalog {
        let runtime = json!({"language": "python", "entrypoint": "a.py"});
        let raw = json!({"skills": [
            {"id": "weather", "version": "1.0.0", "runtime": runtime,
             "inputs": {"city": {"type": "string"}}},
            {"id": "add-up", "version": "1.0.0", "runtime": runtime,
             "inputs": {"a": {"type": "number"}, "b": {"type": "number"}}},
            {"id": "status", "version": "1.0.0", "runtime": runtime},
        ]});
        Catalog::parse(raw.to_string().as_bytes()).expect("good")
    }

    #[test]
    fn queries_and_their_plans() {
        let offer = "I can use: add-up, status, weather.";
        for (case, query, wanted) in [
            (
                "use, with JSON",
                r#"use add-up {"a": 1, "b": 2}"#,
                Ok(("add-up", json!({"a": 1, "b": 2}))),
            ),
            (
                "use, with text",
                "use weather Berlin",
                Ok(("weather", json!({"city": "Berlin"}))),
            ),
            (
                "a mention",
                "What is the weather in New York?",
                Ok(("weather", json!({"city": "New York"}))),
            ),
            (
                "a skill without inputs",
                "status",
                Ok(("status", json!({}))),
            ),
            (
                "part of a word is no mention",
                "the weatherman",
                Err(format!(
                    "I am the offline model and make no sense of \"the weatherman\". {offer}"
                )),
            ),
            (
                "an unknown skill",
                "use rm",
                Err(format!("I have no skill rm. {offer}")),
            ),
            (
                "too little to call it with",
                "add-up one and two",
                Err(
                    "To call add-up, write: use add-up {\"a\": <a number>, \"b\": <a number>}"
                        .to_owned(),
                ),
            ),
            (
                "broken JSON is not taken for text",
                "use weather {\"city\": ",
                Err("To call weather, write: use weather {\"city\": <a string>}".to_owned()),
            ),
        ] {
            let wanted = match wanted {
                Ok((skill, input)) => Plan::Call {
                    skill: skill.to_owned(),
                    input,
                },
                Err(text) => Plan::Say(text),
            };
            assert_eq!(plan(query, &catalog()), wanted, "{case}");
        }
    }

    #[test]
    fn answers_are_worded_from_the_output() {
        assert_eq!(
            word("weather", &json!({"text": "rain"})),
            "weather says: rain"
        );
        assert_eq!(
            word("add-up", &json!({"sum": 3})),
            r#"add-up answered {"sum":3}"#
        );
    }
}

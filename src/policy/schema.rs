//! The JSON Schema of what people write, made from the types that read it, so
//! that an editor and the gateway cannot disagree about a member.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use serde_json::Value;

use super::cases::CaseFile;
use super::document::PolicyDocument;

/// The JSON Schema (draft 2020-12) of a policy document.
#[must_use]
pub fn policy_schema() -> Value {
    schema_of::<PolicyDocument>("AgentPort policy")
}

/// The JSON Schema (draft 2020-12) of a file of cases.
#[must_use]
pub fn cases_schema() -> Value {
    schema_of::<CaseFile>("AgentPort policy cases")
}

fn schema_of<T: JsonSchema>(title: &str) -> Value {
    let settings = SchemaSettings::draft2020_12().with_transform(Written);
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), title.into());
    schema.to_value()
}

/// What a document can say, where it differs from what a type can hold: a
/// member that is absent is not `null`, and whoever writes one means a value.
#[derive(Clone, Debug)]
struct Written;

impl Transform for Written {
    fn transform(&mut self, schema: &mut schemars::Schema) {
        if let Some(object) = schema.as_object_mut() {
            if object.get("default").is_some_and(Value::is_null) {
                object.remove("default");
            }
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
                choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
                if let [Value::Object(only)] = choices.as_slice() {
                    let only = only.clone();
                    object.remove("anyOf");
                    for (key, value) in only {
                        object.entry(key).or_insert(value);
                    }
                }
            }
            // Lines end where the source's do.
            if let Some(Value::String(text)) = object.get_mut("description")
                && !text.contains("```")
            {
                *text = text.replace('\n', " ");
            }
            // Widths of integers are ours, not a reader's.
            object.remove("format");
        }
        transform_subschemas(self, schema);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(name: &str) -> String {
        let path = format!("{}/policies/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).expect("it is published")
    }

    #[test]
    fn what_is_published_is_what_the_types_say() {
        for (name, schema) in [
            ("schema.json", policy_schema()),
            ("cases.schema.json", cases_schema()),
        ] {
            let text = serde_json::to_string_pretty(&schema).expect("JSON") + "\n";
            assert!(
                published(name) == text,
                "policies/{name} is not what `agentport policy schema` prints; write it anew"
            );
        }
    }

    #[test]
    fn every_member_is_described_and_none_is_null() {
        fn look(value: &Value, path: &str) {
            match value {
                Value::Object(members) => {
                    if let Some(Value::Object(properties)) = members.get("properties") {
                        assert_eq!(
                            members.get("additionalProperties"),
                            Some(&false.into()),
                            "{path}"
                        );
                        for (name, property) in properties {
                            assert!(property.get("description").is_some(), "{path}.{name}");
                        }
                    }
                    for (name, member) in members {
                        look(member, &format!("{path}.{name}"));
                    }
                }
                Value::Array(entries) => entries.iter().for_each(|entry| look(entry, path)),
                Value::String(text) => assert_ne!(text, "null", "{path}"),
                Value::Null => panic!("{path} is null"),
                _ => {}
            }
        }
        look(&policy_schema(), "policy");
        look(&cases_schema(), "cases");
    }

    #[test]
    fn shipped_files_are_valid_and_broken_ones_are_not() {
        let policy = jsonschema::validator_for(&policy_schema()).expect("a schema");
        let cases = jsonschema::validator_for(&cases_schema()).expect("a schema");
        for name in ["example", "openclaw"] {
            let read =
                |file: String| -> Value { yaml_serde::from_str(&published(&file)).expect("YAML") };
            assert!(policy.is_valid(&read(format!("{name}.yaml"))), "{name}");
            assert!(
                cases.is_valid(&read(format!("{name}.cases.yaml"))),
                "{name}"
            );
        }
        let rule = |with: &str| {
            format!("{{version: 1, rules: [{{name: a, action: allow, agents: any, {with}}}]}}")
        };
        for (case, text, valid) in [
            ("a rule", rule("hosts: [a.example]"), true),
            ("a rule by addresses", rule("addresses: [10.0.0.0/8]"), true),
            (
                "ports and ranges",
                rule("hosts: [a], ports: [1, \"2-3\"]"),
                true,
            ),
            ("an unknown member", rule("host: [a.example]"), false),
            ("no destination", rule("ports: [443]"), false),
            ("an empty list", rule("hosts: []"), false),
            ("null for any", rule("hosts: [a], paths: null"), false),
            ("a port that is none", rule("hosts: [a], ports: [0]"), false),
            (
                "an unknown action",
                "{version: 1, rules: [{name: a, action: permit, agents: any, hosts: [a]}]}"
                    .to_owned(),
                false,
            ),
            ("another version", "{version: 2}".to_owned(), false),
            ("no version", "{rules: []}".to_owned(), false),
        ] {
            let value: Value = yaml_serde::from_str(&text).expect("YAML");
            assert_eq!(policy.is_valid(&value), valid, "{case}");
        }
    }
}

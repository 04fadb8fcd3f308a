//! JSON without second readings: a member that stands twice, at any depth, is
//! refused, since a reader that takes the last of two and one that takes the
//! first would read two different things.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Reads one JSON document.
///
/// The depth is bounded by `serde_json`, which gives an error at 128 levels
/// instead of using up the stack.
///
/// # Errors
/// What is wrong with the text and where, by line and column. It is a data error
/// where a member stands twice, and for nothing else.
pub fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice::<Strict>(text).map(|strict| strict.0)
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // No JSON number is infinite or NaN; one too large is an error before.
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let Strict(value) = members.next_value()?;
            if map.contains_key(&name) {
                return Err(A::Error::custom(format!(
                    "the member \"{name}\" stands twice; keep one"
                )));
            }
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_and_what_not() {
        for (case, text, good) in [
            ("every kind", r#"{"a":[1,-2,0.5,"x",true,null,{}]}"#, true),
            ("a member twice", r#"{"a":1,"a":2}"#, false),
            ("a member twice, deeper", r#"[{"b":{"a":1,"a":2}}]"#, false),
            ("something after the end", "{} {}", false),
            ("an infinite number", "1e999", false),
        ] {
            assert_eq!(parse(text.as_bytes()).is_ok(), good, "{case}");
        }
        let text = br#"{"a":[1,-2,0.5,"x",true,null,{}]}"#;
        assert_eq!(
            parse(text).expect("good"),
            serde_json::from_slice::<Value>(text).expect("good")
        );
    }
}

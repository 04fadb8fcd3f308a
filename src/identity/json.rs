//! JSON as tokens and keys must write it: an object, and no member twice at
//! any depth. A parser that takes the last of two members and one that takes
//! the first would read two different tokens.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why bytes are not such an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum JsonError {
    /// Not JSON (RFC 8259), not UTF-8, or nested deeper than 127 levels.
    #[error("is not valid JSON")]
    Syntax,
    /// A member stands twice.
    #[error("has a member twice")]
    Duplicate,
    /// An array, a string, a number.
    #[error("is not a JSON object")]
    NotObject,
}

/// Parses an object.
///
/// The depth is bounded by `serde_json`, which gives an error at 128 levels
/// instead of using up the stack.
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Value>, JsonError> {
    match serde_json::from_slice::<Strict>(bytes) {
        Ok(Strict(Value::Object(members))) => Ok(members),
        Ok(_) => Err(JsonError::NotObject),
        // The only data error that `Strict` raises.
        Err(error) if error.is_data() => Err(JsonError::Duplicate),
        Err(_) => Err(JsonError::Syntax),
    }
}

/// A value without repeated members.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without repeated members")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // No JSON number is infinite or NaN; were one, it would be no claim.
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
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
        while let Some((name, Strict(value))) = members.next_entry::<String, Strict>()? {
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom("a member stands twice"));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_without_repeated_members() {
        for (case, text, error) in [
            ("a member twice", r#"{"a":1,"a":1}"#, JsonError::Duplicate),
            (
                "twice by an escape",
                r#"{"a":1,"\u0061":2}"#,
                JsonError::Duplicate,
            ),
            (
                "twice, nested",
                r#"{"b":[{"c":{"a":1,"a":2}}]}"#,
                JsonError::Duplicate,
            ),
            ("an array", "[]", JsonError::NotObject),
            ("a string", r#""a""#, JsonError::NotObject),
            ("null", "null", JsonError::NotObject),
            ("nothing", "", JsonError::Syntax),
            ("two values", "{}{}", JsonError::Syntax),
            ("a byte order mark", "\u{feff}{}", JsonError::Syntax),
            ("a comment", "{/**/}", JsonError::Syntax),
            ("not a number", r#"{"a":NaN}"#, JsonError::Syntax),
            ("too big a number", r#"{"a":1e400}"#, JsonError::Syntax),
            (
                "half a surrogate pair",
                r#"{"a":"\ud800"}"#,
                JsonError::Syntax,
            ),
        ] {
            assert_eq!(object(text.as_bytes()), Err(error), "{case}");
        }
        assert_eq!(
            object(b"{\"a\":\"\xff\"}"),
            Err(JsonError::Syntax),
            "not UTF-8"
        );
        assert!(object(br#" {"a":[1,-1,1.5,null,true,"x",{}]} "#).is_ok());
    }

    #[test]
    fn depth_gives_an_error_and_no_overflow() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let depth = 100_000;
            let text = format!("{{\"a\":{}1{}}}", open.repeat(depth), close.repeat(depth));
            assert_eq!(object(text.as_bytes()), Err(JsonError::Syntax));
        }
    }
}

//! JSON as tokens and keys must write it: an object, and no member twice at
//! any depth.

use serde_json::{Map, Value};

use crate::egress::json;

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
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Value>, JsonError> {
    match json::parse(bytes) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(JsonError::NotObject),
        // The only data error that there is.
        Err(error) if error.is_data() => Err(JsonError::Duplicate),
        Err(_) => Err(JsonError::Syntax),
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

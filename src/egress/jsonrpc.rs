//! Which methods a JSON-RPC body calls (JSON-RPC 2.0 sections 4 and 6), read so
//! strictly that no server can read others out of it.

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The most calls in one batch.
const MAX_CALLS: usize = 1000;
/// The longest name of a method, in bytes.
const MAX_NAME: usize = 256;

/// Why a body is no JSON-RPC call that can be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// Not JSON (RFC 8259), or not UTF-8.
    #[error("the body is not valid JSON, so its JSON-RPC method cannot be judged")]
    Syntax,
    /// Neither a call nor a list of calls.
    #[error("the body is neither a JSON-RPC call nor a batch of calls")]
    Form,
    /// A batch without a call.
    #[error("the JSON-RPC batch is empty")]
    Empty,
    /// More than 1000 in a batch.
    #[error("the JSON-RPC batch has more than 1000 calls")]
    TooMany,
    /// A call without `method`, or one that is no text.
    #[error("a JSON-RPC call has no method, or one that is not a string")]
    NoMethod,
    /// A method's name over 256 bytes.
    #[error("the name of a JSON-RPC method is longer than 256 bytes")]
    LongName,
    /// A member that stands twice: one server takes the first, another the last.
    #[error("a JSON-RPC call has a member twice")]
    Twice,
    /// A `Content-Encoding`, behind which nothing is seen.
    #[error("the body is compressed, so its JSON-RPC method cannot be judged")]
    Encoded,
    /// `Method`, which some servers take for `method`.
    #[error("a JSON-RPC call has a member that differs from \"method\" in case only")]
    Case,
}

impl RpcError {
    /// The sentence for those who asked.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::Syntax => "the body is not valid JSON, so its JSON-RPC method cannot be judged",
            Self::Form => "the body is neither a JSON-RPC call nor a batch of calls",
            Self::Empty => "the JSON-RPC batch is empty",
            Self::TooMany => "the JSON-RPC batch has more than 1000 calls",
            Self::NoMethod => "a JSON-RPC call has no method, or one that is not a string",
            Self::LongName => "the name of a JSON-RPC method is longer than 256 bytes",
            Self::Encoded => "the body is compressed, so its JSON-RPC method cannot be judged",
            Self::Twice => "a JSON-RPC call has a member twice",
            Self::Case => "a JSON-RPC call has a member that differs from \"method\" in case only",
        }
    }
}

/// The methods that a body calls, each once, at least one. Notifications are
/// calls.
///
/// # Errors
/// [`RpcError`].
pub fn rpc_methods(body: &[u8]) -> Result<Vec<String>, RpcError> {
    // What is passed over is checked for its syntax only, not for its encoding.
    let text = std::str::from_utf8(body).map_err(|_| RpcError::Syntax)?;
    let calls = match serde_json::from_str::<Body>(text) {
        Ok(Body(calls)) => calls,
        Err(error) if error.is_data() => return Err(RpcError::Form),
        Err(_) => return Err(RpcError::Syntax),
    };
    let methods = calls?.into_iter().collect::<Result<Vec<_>, _>>()?;
    called(methods)
}

/// The same of methods that are told, and not read out of a body.
///
/// # Errors
/// [`RpcError`]: too many, a name that is too long, or none.
pub fn rpc_called(told: Vec<String>) -> Result<Vec<String>, RpcError> {
    match told.len() > MAX_CALLS {
        true => Err(RpcError::TooMany),
        false if told.iter().any(|name| name.len() > MAX_NAME) => Err(RpcError::LongName),
        false => called(told),
    }
}

/// Each once, at least one.
fn called(calls: Vec<String>) -> Result<Vec<String>, RpcError> {
    let mut methods: Vec<String> = Vec::new();
    for method in calls {
        if !methods.contains(&method) {
            methods.push(method);
        }
    }
    if methods.is_empty() {
        return Err(RpcError::Empty);
    }
    Ok(methods)
}

type Call = Result<String, RpcError>;

/// What a body is; an `Err` inside is a call that is none, found while the rest
/// was still read for its syntax.
struct Body(Result<Vec<Call>, RpcError>);

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(BodyVisitor)
    }
}

struct BodyVisitor;

impl<'de> Visitor<'de> for BodyVisitor {
    type Value = Body;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a call or a batch of calls")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Body, A::Error> {
        Ok(Body(Ok(vec![call(map)?])))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Body, A::Error> {
        let mut calls = Vec::new();
        while let Some(OneCall(call)) = seq.next_element()? {
            if calls.len() <= MAX_CALLS {
                calls.push(call);
            }
        }
        if calls.len() > MAX_CALLS {
            return Ok(Body(Err(RpcError::TooMany)));
        }
        Ok(Body(Ok(calls)))
    }
}

struct OneCall(Call);

impl<'de> Deserialize<'de> for OneCall {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct CallVisitor;
        impl<'de> Visitor<'de> for CallVisitor {
            type Value = Call;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a call")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Call, A::Error> {
                call(map)
            }
        }
        from.deserialize_map(CallVisitor).map(Self)
    }
}

/// The method of one call.
fn call<'de, A: MapAccess<'de>>(mut map: A) -> Result<Call, A::Error> {
    let mut names = HashSet::new();
    let mut method = Err(RpcError::NoMethod);
    let mut wrong = None;
    while let Some(name) = map.next_key::<String>()? {
        if name == "method" {
            // A name that is not text is seen here, and its syntax all the same.
            method = match map.next_value::<Name>()? {
                Name(Some(text)) if text.len() > MAX_NAME => Err(RpcError::LongName),
                Name(Some(text)) => Ok(text),
                Name(None) => Err(RpcError::NoMethod),
            };
        } else {
            map.next_value::<IgnoredAny>()?;
            if name.eq_ignore_ascii_case("method") {
                wrong.get_or_insert(RpcError::Case);
            }
        }
        if !names.insert(name) {
            wrong.get_or_insert(RpcError::Twice);
        }
    }
    Ok(match wrong {
        Some(error) => Err(error),
        None => method,
    })
}

/// A text, or anything else.
struct Name(Option<String>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(from).map_err(de::Error::custom)?;
        Ok(Self(match value {
            serde_json::Value::String(text) => Some(text),
            _ => None,
        }))
    }
}

/// A method that a rule names: `eth_call`, or `eth_*` for all that begin so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RpcPattern {
    begins: String,
    exact: bool,
}

/// What is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a method as eth_call, or a beginning as eth_*: 1 to 128 printable characters")]
pub struct RpcPatternError;

impl RpcPattern {
    /// Parses what a rule has.
    ///
    /// # Errors
    /// [`RpcPatternError`].
    pub fn parse(raw: &str) -> Result<Self, RpcPatternError> {
        let (begins, exact) = match raw.strip_suffix('*') {
            Some(begins) => (begins, false),
            None => (raw, true),
        };
        let plain = |b: u8| b.is_ascii_graphic() && !b"*\"\\".contains(&b);
        if !(1..=128).contains(&begins.len()) || !begins.bytes().all(plain) {
            return Err(RpcPatternError);
        }
        Ok(Self {
            begins: begins.to_owned(),
            exact,
        })
    }

    /// A method that it matches, and that hardly another pattern does.
    #[must_use]
    pub fn example(&self) -> String {
        match self.exact {
            true => self.begins.clone(),
            false => format!("{}zz-other", self.begins),
        }
    }

    /// Whether this is such a method, to the letter.
    #[must_use]
    pub fn matches(&self, method: &str) -> bool {
        match self.exact {
            true => method == self.begins,
            false => method.starts_with(&self.begins),
        }
    }

    /// Whether it matches all that another matches.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self.exact, other.exact) {
            (true, _) => self == other,
            (false, _) => other.begins.starts_with(&self.begins),
        }
    }
}

impl fmt::Display for RpcPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.begins, if self.exact { "" } else { "*" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        let many = format!(
            "[{}{{\"method\":\"a\"}}]",
            "{\"method\":\"a\"},".repeat(1000)
        );
        let long = format!("{{\"method\":\"{}\"}}", "m".repeat(257));
        let deep = format!(
            "{{\"method\":\"a\",\"params\":{}1{}}}",
            "[".repeat(200),
            "]".repeat(200)
        );
        type Case<'a> = (&'a str, &'a str, Result<&'a [&'a str], RpcError>);
        #[rustfmt::skip]
        let cases: [Case<'_>; 21] = [
            ("a call", r#"{"jsonrpc":"2.0","id":1,"method":"eth_call","params":[{"method":"x"}]}"#, Ok(&["eth_call"])),
            ("a notification", r#" {"jsonrpc":"2.0","method":"note"} "#, Ok(&["note"])),
            ("a batch", r#"[{"method":"a"},{"method":"b","id":2},{"method":"a"}]"#, Ok(&["a", "b"])),
            ("an escaped name", r#"{"method":"eth\u005fcall"}"#, Ok(&["eth_call"])),
            ("an escaped member", r#"{"m\u0065thod":"a"}"#, Ok(&["a"])),
            ("nothing", "", Err(RpcError::Syntax)),
            ("no JSON", "method=eth_call", Err(RpcError::Syntax)),
            ("more behind", r#"{"method":"a"}{"method":"b"}"#, Err(RpcError::Syntax)),
            ("a byte order mark", "\u{feff}{\"method\":\"a\"}", Err(RpcError::Syntax)),
            ("deep parameters", &deep, Ok(&["a"])),
            ("a text", r#""eth_call""#, Err(RpcError::Form)),
            ("a batch in a batch", r#"[[{"method":"a"}]]"#, Err(RpcError::Form)),
            ("an empty batch", "[]", Err(RpcError::Empty)),
            ("too many", &many, Err(RpcError::TooMany)),
            ("an answer", r#"{"jsonrpc":"2.0","id":1,"result":1}"#, Err(RpcError::NoMethod)),
            ("a number", r#"{"method":1}"#, Err(RpcError::NoMethod)),
            ("one bad call of two", r#"[{"method":"a"},{"id":1}]"#, Err(RpcError::NoMethod)),
            ("a method twice", r#"{"method":"a","method":"b"}"#, Err(RpcError::Twice)),
            ("twice by an escape", r#"{"method":"a","m\u0065thod":"b"}"#, Err(RpcError::Twice)),
            ("another case", r#"{"method":"a","Method":"b"}"#, Err(RpcError::Case)),
            ("a long name", &long, Err(RpcError::LongName)),
        ];
        for (case, body, expected) in cases {
            let found = rpc_methods(body.as_bytes());
            let expected =
                expected.map(|list| list.iter().map(|name| (*name).to_owned()).collect());
            assert_eq!(found, expected, "{case}");
        }
        assert_eq!(
            rpc_methods(b"{\"method\":\"a\",\"x\":\"\xff\"}"),
            Err(RpcError::Syntax)
        );
    }

    #[test]
    fn patterns() {
        let of = |raw| RpcPattern::parse(raw).expect("a pattern");
        assert!(of("eth_call").matches("eth_call") && !of("eth_call").matches("eth_callMany"));
        assert!(of("eth_*").matches("eth_call") && !of("eth_*").matches("Eth_call"));
        assert!(of("eth_*").covers(&of("eth_call")) && of("eth_*").covers(&of("eth_c*")));
        assert!(!of("eth_call").covers(&of("eth_*")) && !of("eth_c*").covers(&of("eth_*")));
        for raw in ["", "*", "a b", "a*b", "**", "\"a\"", "ä"] {
            assert_eq!(RpcPattern::parse(raw), Err(RpcPatternError), "{raw:?}");
        }
    }
}

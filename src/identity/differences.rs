//! Where our verifier and `jwt-simple` are known to disagree about a token that
//! is signed by the right key, each with its name. What is not here must be
//! judged alike, in both directions: the property test and the fuzz target
//! `token`, which includes this file, hold it to that.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// A token's texts, before they were put together and signed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Texts<'t> {
    pub(crate) header: &'t [u8],
    pub(crate) claims: &'t [u8],
}

/// Why the other accepts what we refuse with this code, and, where it is about
/// a claim, with its name; `None` where nobody knows. `last` is the second on
/// which an `exp` is over for us and not for the other.
pub(crate) fn they_alone(
    code: &str,
    claim: Option<&str>,
    texts: Texts<'_>,
    last: u64,
) -> Option<&'static str> {
    let header = object(texts.header);
    let claims = object(texts.claims);
    let has = |name: &str| header.get(name).is_some();
    match code {
        "malformed" => malformed(texts),
        // RFC 8725, 3.11, and members that bring a key or change what the
        // token is: the other passes them over, or believes an empty `crit`.
        "unsupported_header" => [
            "crit", "b64", "jku", "jwk", "x5u", "x5c", "cty", "enc", "zip", "typ",
        ]
        .into_iter()
        .find(|name| has(name))
        .map(|_| "a member of the header that we do not pass over"),
        // It is given one key, and no id.
        "unknown_key" => has("kid").then_some("a kid that no key has"),
        "missing_claim" => match claim {
            Some("exp") => claims.get("exp").is_none().then_some("no exp"),
            Some("agent_id" | "sub") => {
                let names_nobody = claims.get("agent_id").is_none() && claims.get("sub").is_none();
                names_nobody.then_some("it need not name an agent")
            }
            _ => None,
        },
        // Claims that it does not look at, or only at their JSON type.
        "invalid_claim" => match claim? {
            "agent_id"
            | "sub"
            | "tenant"
            | "allowed_destinations"
            | "act"
            | "exchanged_from"
            | "jti"
            | "client_id" => Some("a claim that is ours to judge"),
            "exp" | "nbf" | "iat" => {
                Some("a date before 1970 or after 9999, which it bends into one")
            }
            _ => None,
        },
        "expired" => match claims.get("exp")? {
            exp if exp.as_u64() == Some(last) => Some("the very last second"),
            exp => fraction(exp),
        },
        "not_yet_valid" => ["nbf", "iat"]
            .into_iter()
            .find_map(|name| claims.get(name).and_then(fraction)),
        _ => None,
    }
}

/// Why we accept what the other refuses; `None` where nobody knows.
pub(crate) fn we_alone(texts: Texts<'_>) -> Option<&'static str> {
    let header = object(texts.header);
    let claims = object(texts.claims);
    // RFC 7515, 4.1.9.
    let typ = header.get("typ").and_then(Value::as_str);
    if typ.is_some_and(|typ| typ.contains('/')) {
        return Some("typ as a full media type");
    }
    // Members that say nothing to us (RFC 7515, 4).
    let texts = ["x5t", "x5t#S256"];
    if texts
        .into_iter()
        .any(|name| header.get(name).is_some_and(|value| !is_text(value)))
    {
        return Some("a thumbprint that is no text");
    }
    if header.get("salt").is_some() {
        return Some("its own `salt` of a key");
    }
    if claims.get("nonce").is_some_and(|value| !is_text(value)) {
        return Some("a nonce that is no text");
    }
    None
}

/// A text, or nothing, which it takes for absence.
fn is_text(value: &Value) -> bool {
    value.is_string() || value.is_null()
}

fn fraction(date: &Value) -> Option<&'static str> {
    (date.is_number() && date.as_u64().is_none()).then_some("part of a second, which it cuts off")
}

fn malformed(texts: Texts<'_>) -> Option<&'static str> {
    let both = [texts.header, texts.claims];
    if both
        .iter()
        .any(|text| serde_json::from_slice::<Value>(text).is_err())
    {
        return Some("what is no JSON in a member that it passes over");
    }
    if both.iter().any(|text| repeats(text)) {
        return Some("a member twice, where it does not look");
    }
    if matches!(serde_json::from_slice(texts.header), Ok(Value::Array(_))) {
        return Some("a header that is a list of its members' values");
    }
    match object(texts.header).get("kid") {
        Some(Value::String(kid)) if kid.is_empty() || kid.len() > 256 => {
            Some("a kid of no or too many bytes")
        }
        _ => None,
    }
}

fn object(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap_or_default()
}

/// Whether an object in it, however deep, has a member twice.
fn repeats(text: &[u8]) -> bool {
    let mut found = false;
    let mut reader = serde_json::Deserializer::from_slice(text);
    let _ = Repeats(&mut found).deserialize(&mut reader);
    found
}

struct Repeats<'f>(&'f mut bool);

impl<'de> DeserializeSeed<'de> for Repeats<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Repeats<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Repeats(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            if !names.insert(name) {
                *self.0 = true;
            }
            members.next_value_seed(Repeats(self.0))?;
        }
        Ok(())
    }
}

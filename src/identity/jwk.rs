//! Keys as JSON: JWK and JWK Sets (RFC 7517, RFC 7518, RFC 8037), read and
//! written. Only public halves are kept and only public halves are written.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{AlgorithmFamily, DecodingKeyKind};
use serde_json::{Map, Value, json};

use super::algorithm::Algorithm;
use super::json::{self, JsonError};
use super::key::{KeyError, VerifyingKey};

/// The keys of a JWK Set.
#[derive(Debug)]
pub struct KeySet {
    /// Those that tokens can be verified with: at least one.
    pub keys: Vec<VerifyingKey>,
    /// Those passed over, each with its place and why: keys for encryption,
    /// and of types and algorithms that are not supported (RFC 7517, 5).
    pub skipped: Vec<String>,
}

/// What a key that is wrong does to its set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strictness {
    /// It fails the set.
    EveryKey,
    /// It is passed over.
    GoodKeys,
}

/// Why one JWK gives no key.
enum Unusable {
    /// It is well-formed and for something else: a set may have it.
    Foreign(String),
    /// It is wrong.
    Wrong(String),
}

use Unusable::{Foreign, Wrong};

impl VerifyingKey {
    /// Reads one JWK. Private members are not looked at, beyond that they may
    /// stand there.
    ///
    /// # Errors
    /// [`KeyError`], also where the key is for encryption or of a type that is
    /// not supported.
    pub fn from_jwk(text: &str) -> Result<Self, KeyError> {
        let members = document(text, "the JWK")?;
        if members.contains_key("keys") {
            return Err(wrong("the JWK", "this is a JWK Set, not a single key"));
        }
        key(&members).map_err(|error| match error {
            Foreign(why) | Wrong(why) => wrong("the JWK", &why),
        })
    }
}

impl KeySet {
    /// Reads a JWK Set. A key for another purpose is passed over; a key that
    /// is wrong fails the whole set, so that a slip never costs a key in
    /// silence.
    ///
    /// # Errors
    /// [`KeyError`], also for two keys of one id and for a set of no use.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        Self::read(text, Strictness::EveryKey)
    }

    /// Reads the JWK Set of somebody else, who cannot be asked to mend it: a
    /// key that is wrong is passed over too, as RFC 7517, 5 wishes it.
    ///
    /// # Errors
    /// [`KeyError`], also for two keys of one id and for a set of no use.
    pub fn parse_foreign(text: &str) -> Result<Self, KeyError> {
        Self::read(text, Strictness::GoodKeys)
    }

    fn read(text: &str, strictness: Strictness) -> Result<Self, KeyError> {
        let members = document(text, "the JWKS")?;
        let Some(Value::Array(items)) = members.get("keys") else {
            return Err(wrong("the JWKS", "write {\"keys\": [...]}"));
        };
        let mut set = Self {
            keys: Vec::new(),
            skipped: Vec::new(),
        };
        for (at, item) in items.iter().enumerate() {
            let place = format!("keys[{at}]");
            let Value::Object(members) = item else {
                return Err(wrong(&place, "is not a JSON object"));
            };
            match key(members) {
                Ok(key) if set.keys.iter().any(|other| other.id() == key.id()) => {
                    return Err(KeyError::DuplicateKid(key.id().to_string()));
                }
                Ok(key) => set.keys.push(key),
                Err(Foreign(why)) => set.skipped.push(format!("{place}: {why}")),
                Err(Wrong(why)) if strictness == Strictness::GoodKeys => {
                    set.skipped.push(format!("{place}: {why}"));
                }
                Err(Wrong(why)) => return Err(wrong(&place, &why)),
            }
        }
        if set.keys.is_empty() {
            return Err(KeyError::NoKeys);
        }
        Ok(set)
    }
}

/// The public halves as a JWK Set, in the order given. A shared secret has
/// none and is left out.
#[must_use]
pub fn public_jwks<'k>(keys: impl IntoIterator<Item = &'k VerifyingKey>) -> String {
    let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let items: Vec<Value> = keys
        .into_iter()
        .filter_map(|key| {
            let material = key.material();
            let mut jwk = match (material.family(), material.kind()) {
                (AlgorithmFamily::Ed, DecodingKeyKind::SecretOrDer(x)) => {
                    json!({"kty": "OKP", "crv": "Ed25519", "x": b64(x)})
                }
                (AlgorithmFamily::Ec, DecodingKeyKind::SecretOrDer(point)) => {
                    // After the byte that says that both coordinates follow.
                    let (x, y) = point.get(1..)?.split_at_checked(32)?;
                    json!({"kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y)})
                }
                (AlgorithmFamily::Rsa, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                    json!({"kty": "RSA", "n": b64(n), "e": b64(e)})
                }
                _ => return None,
            };
            jwk["use"] = "sig".into();
            jwk["alg"] = key.algorithm().as_str().into();
            jwk["kid"] = key.id().as_ref().into();
            Some(jwk)
        })
        .collect();
    json!({ "keys": items }).to_string()
}

fn key(members: &Map<String, Value>) -> Result<VerifyingKey, Unusable> {
    for_signatures(members)?;
    let named = match text(members, "alg")? {
        None => None,
        Some(alg) => Some(
            Algorithm::parse(alg)
                .ok_or_else(|| Foreign(format!("`alg` {alg:?} is not supported")))?,
        ),
    };
    let kty = required(members, "kty")?;
    let key = match kty {
        "OKP" => match required(members, "crv")? {
            "Ed25519" => VerifyingKey::from_ed25519(fixed(members, "x")?),
            other => return Err(Foreign(format!("`crv` {other:?} is not supported"))),
        },
        "EC" => match required(members, "crv")? {
            "P-256" => {
                let mut point = [4; 65];
                point[1..33].copy_from_slice(&fixed::<32>(members, "x")?);
                point[33..].copy_from_slice(&fixed::<32>(members, "y")?);
                VerifyingKey::from_p256(point)
            }
            other => return Err(Foreign(format!("`crv` {other:?} is not supported"))),
        },
        "RSA" => {
            let algorithm = named.unwrap_or(Algorithm::Rs256);
            VerifyingKey::from_rsa(bytes(members, "n")?, bytes(members, "e")?, algorithm)
        }
        "oct" => VerifyingKey::from_secret_bytes(&bytes(members, "k")?),
        other => return Err(Foreign(format!("`kty` {other:?} is not supported"))),
    }
    .map_err(|error| Wrong(error.to_string()))?;
    // The type has fixed the algorithm; a name that contradicts it is a slip
    // or an attempt at confusion.
    if let Some(named) = named
        && named != key.algorithm()
    {
        return Err(Wrong(format!("`alg` {named} contradicts `kty` {kty:?}")));
    }
    match text(members, "kid")? {
        None => Ok(key),
        Some(kid) => key.with_id(kid).map_err(|error| Wrong(error.to_string())),
    }
}

/// `use` and `key_ops` (RFC 7517, 4.2 and 4.3). A private key may say that it
/// signs; its public half then verifies.
fn for_signatures(members: &Map<String, Value>) -> Result<(), Unusable> {
    match text(members, "use")? {
        None | Some("sig") => {}
        Some(other) => return Err(Foreign(format!("`use` is {other:?}, not \"sig\""))),
    }
    let operations = match members.get("key_ops") {
        None => return Ok(()),
        Some(Value::Array(operations)) => operations,
        Some(_) => return Err(Wrong("`key_ops` is not a list".to_owned())),
    };
    let mut verifies = false;
    for operation in operations {
        let Value::String(operation) = operation else {
            return Err(Wrong(
                "`key_ops` holds something other than strings".to_owned(),
            ));
        };
        verifies |= operation == "verify" || (operation == "sign" && members.contains_key("d"));
    }
    if verifies {
        Ok(())
    } else {
        Err(Foreign("`key_ops` does not hold \"verify\"".to_owned()))
    }
}

fn text<'m>(members: &'m Map<String, Value>, name: &str) -> Result<Option<&'m str>, Unusable> {
    match members.get(name) {
        None => Ok(None),
        Some(Value::String(value)) => Ok(Some(value)),
        Some(_) => Err(Wrong(format!("`{name}` is not a string"))),
    }
}

fn required<'m>(members: &'m Map<String, Value>, name: &str) -> Result<&'m str, Unusable> {
    text(members, name)?.ok_or_else(|| Wrong(format!("`{name}` is missing")))
}

fn bytes(members: &Map<String, Value>, name: &str) -> Result<Vec<u8>, Unusable> {
    URL_SAFE_NO_PAD
        .decode(required(members, name)?)
        .map_err(|_| Wrong(format!("`{name}` is not base64url without padding")))
}

fn fixed<const N: usize>(members: &Map<String, Value>, name: &str) -> Result<[u8; N], Unusable> {
    bytes(members, name)?
        .try_into()
        .map_err(|_| Wrong(format!("`{name}` has not {N} bytes")))
}

fn document(text: &str, place: &str) -> Result<Map<String, Value>, KeyError> {
    json::object(text.as_bytes()).map_err(|error: JsonError| wrong(place, &error.to_string()))
}

fn wrong(place: &str, why: &str) -> KeyError {
    KeyError::Jwk {
        place: place.to_owned(),
        why: why.to_owned(),
    }
}

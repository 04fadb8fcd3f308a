//! The compact form of a JWS (RFC 7515, 7.1), before anybody knows whether its
//! signature holds: three segments, and a header that asks for nothing that
//! this gateway does not do.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::algorithm::Algorithm;
use super::error::TokenError;
use super::json;

/// The most bytes a `kid` may have.
const MAX_KID_BYTES: usize = 256;

/// A token, taken apart and not yet believed.
#[derive(Debug)]
pub(super) struct Compact<'a> {
    /// What is signed: header, full stop, claims, in base64url.
    pub(super) signed: &'a str,
    /// What the header says.
    pub(super) header: Header,
    /// The claims, as the bytes of their JSON text.
    pub(super) claims: Vec<u8>,
    /// The signature.
    pub(super) signature: Vec<u8>,
}

/// What a header may say.
#[derive(Debug)]
pub(super) struct Header {
    /// The algorithm, which the key must confirm.
    pub(super) algorithm: Algorithm,
    /// Which key.
    pub(super) kid: Option<String>,
}

impl<'a> Compact<'a> {
    /// Takes a token apart and judges its header.
    pub(super) fn parse(token: &'a str) -> Result<Self, TokenError> {
        let mut segments = token.split('.');
        let (Some(header), Some(claims), Some(signature), None) = (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        ) else {
            return Err(TokenError::Malformed("it has not three segments"));
        };
        Ok(Self {
            signed: &token[..header.len() + 1 + claims.len()],
            header: Header::parse(&decode(header)?)?,
            claims: decode(claims)?,
            signature: decode(signature)?,
        })
    }
}

impl Header {
    fn parse(text: &[u8]) -> Result<Self, TokenError> {
        let members = json::object(text).map_err(|error| {
            TokenError::Malformed(match error {
                json::JsonError::Syntax => "its header is not valid JSON",
                json::JsonError::Duplicate => "its header has a member twice",
                json::JsonError::NotObject => "its header is not a JSON object",
            })
        })?;
        for (name, why) in REFUSED {
            if members.contains_key(*name) {
                return Err(TokenError::UnsupportedHeader(why));
            }
        }
        match members.get("typ") {
            None => {}
            Some(Value::String(typ)) if is_token_type(typ) => {}
            Some(_) => {
                return Err(TokenError::UnsupportedHeader(
                    "`typ` is neither JWT nor at+jwt",
                ));
            }
        }
        let kid = match members.get("kid") {
            None => None,
            Some(Value::String(kid)) if kid.is_empty() || kid.len() > MAX_KID_BYTES => {
                return Err(TokenError::Malformed("its `kid` has not 1 to 256 bytes"));
            }
            Some(Value::String(kid)) => Some(kid.clone()),
            Some(_) => return Err(TokenError::Malformed("its `kid` is not a string")),
        };
        let algorithm = match members.get("alg") {
            None => return Err(TokenError::Malformed("its header has no `alg`")),
            Some(Value::String(alg)) => Algorithm::parse(alg).ok_or(TokenError::WrongAlgorithm(
                "no key is for the token's `alg`",
            ))?,
            Some(_) => return Err(TokenError::Malformed("its `alg` is not a string")),
        };
        Ok(Self { algorithm, kid })
    }
}

/// Header members that would change what the token is, or bring a key along.
/// All others that are not understood are passed over (RFC 7515, 4).
const REFUSED: &[(&str, &str)] = &[
    ("crit", "`crit` names extensions, and none is supported"),
    ("b64", "`b64` is not supported"),
    ("jku", "`jku` brings its own keys"),
    ("jwk", "`jwk` brings its own key"),
    ("x5u", "`x5u` brings its own key"),
    ("x5c", "`x5c` brings its own key"),
    ("cty", "`cty` announces a nested token"),
    ("enc", "`enc` announces encryption"),
    ("zip", "`zip` announces compression"),
];

/// `JWT` or `at+jwt` (RFC 9068), in any case, also as a full media type
/// (RFC 7515, 4.1.9). Others, such as `dpop+jwt` or `logout+jwt`, are tokens
/// for another purpose (RFC 8725, 3.11).
fn is_token_type(typ: &str) -> bool {
    const PREFIX: &str = "application/";
    let bare = match typ.split_at_checked(PREFIX.len()) {
        Some((head, rest)) if head.eq_ignore_ascii_case(PREFIX) => rest,
        _ => typ,
    };
    bare.eq_ignore_ascii_case("JWT") || bare.eq_ignore_ascii_case("at+jwt")
}

/// base64url without padding, white space or bits left over: one spelling.
fn decode(segment: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD
        .decode(segment)
        .map_err(|_| TokenError::Malformed("a segment is not base64url without padding"))
}

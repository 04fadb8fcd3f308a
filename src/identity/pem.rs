//! PEM (RFC 7468) and the little DER that public keys need. Nothing else of
//! ASN.1 is read: a private key is handed to *ring* whole.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::key::KeyError;

/// What a PEM text holds.
#[derive(Debug)]
pub(super) enum PemKey {
    /// An Ed25519 public key.
    Ed25519([u8; 32]),
    /// A P-256 public key, as an uncompressed point.
    P256([u8; 65]),
    /// An RSA public key: modulus and exponent, big-endian, no leading zeros.
    Rsa(Vec<u8>, Vec<u8>),
    /// A private key of that kind, in PKCS#8 DER.
    Private(PrivateKind, Vec<u8>),
}

/// The kind of a private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PrivateKind {
    /// Ed25519 (RFC 8410).
    Ed25519,
    /// ECDSA on P-256.
    P256,
    /// RSA.
    Rsa,
}

const OID_ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const OID_EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OID: u8 = 0x06;

/// Reads the one key of a PEM text.
pub(super) fn parse(text: &str) -> Result<PemKey, KeyError> {
    let (label, der) = block(text)?;
    match label {
        "PUBLIC KEY" => public(&der).ok_or(KeyError::UnsupportedPem)?,
        "RSA PUBLIC KEY" => rsa_public(&der).ok_or(KeyError::UnsupportedPem),
        "PRIVATE KEY" => {
            let kind = private_kind(&der).ok_or(KeyError::UnsupportedPem)?;
            Ok(PemKey::Private(kind, der))
        }
        "EC PRIVATE KEY" | "RSA PRIVATE KEY" => Err(KeyError::NotPkcs8),
        "ENCRYPTED PRIVATE KEY" => Err(KeyError::EncryptedPem),
        "CERTIFICATE" => Err(KeyError::Certificate),
        _ => Err(KeyError::UnsupportedPem),
    }
}

/// A DER text as PEM, in lines of 64 characters.
pub(super) fn write(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Modulus and exponent of an `RSAPublicKey` (RFC 8017, A.1.1).
pub(super) fn rsa_public(der: &[u8]) -> Option<PemKey> {
    let mut input = der;
    let mut key = element(SEQUENCE, &mut input)?;
    let modulus = element(INTEGER, &mut key)?;
    let exponent = element(INTEGER, &mut key)?;
    if !input.is_empty() || !key.is_empty() {
        return None;
    }
    let positive = |number: &[u8]| match number {
        [0, rest @ ..] => Some(rest.to_vec()),
        [first, ..] if *first < 0x80 => Some(number.to_vec()),
        _ => None,
    };
    Some(PemKey::Rsa(positive(modulus)?, positive(exponent)?))
}

/// The single block of the text: its label and its bytes.
fn block(text: &str) -> Result<(&str, Vec<u8>), KeyError> {
    let (_, rest) = text.split_once("-----BEGIN ").ok_or(KeyError::NotPem)?;
    let (label, rest) = rest.split_once("-----").ok_or(KeyError::NotPem)?;
    let (body, after) = rest
        .split_once(&format!("-----END {label}-----"))
        .ok_or(KeyError::NotPem)?;
    if after.contains("-----BEGIN ") {
        return Err(KeyError::SeveralPem);
    }
    let body: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let der = STANDARD.decode(body).map_err(|_| KeyError::NotPem)?;
    Ok((label, der))
}

/// A `SubjectPublicKeyInfo` (RFC 5280, 4.1.2.7). `None` where the DER is broken
/// or of another kind of key; the inner error names a curve that is not ours.
fn public(der: &[u8]) -> Option<Result<PemKey, KeyError>> {
    let mut input = der;
    let mut info = element(SEQUENCE, &mut input)?;
    let mut algorithm = element(SEQUENCE, &mut info)?;
    let bits = element(BIT_STRING, &mut info)?;
    if !input.is_empty() || !info.is_empty() {
        return None;
    }
    // The first byte counts the unused bits of the last one: none, for keys.
    let [0, key @ ..] = bits else { return None };
    Some(Ok(match element(OID, &mut algorithm)? {
        OID_ED25519 => PemKey::Ed25519(key.try_into().ok()?),
        OID_EC => {
            if element(OID, &mut algorithm)? != OID_P256 {
                return Some(Err(KeyError::UnsupportedCurve));
            }
            PemKey::P256(key.try_into().ok()?)
        }
        OID_RSA => rsa_public(key)?,
        _ => return None,
    }))
}

/// What kind of key a `PrivateKeyInfo` (RFC 5208, 5) holds.
fn private_kind(der: &[u8]) -> Option<PrivateKind> {
    let mut input = der;
    let mut info = element(SEQUENCE, &mut input)?;
    element(INTEGER, &mut info)?;
    let mut algorithm = element(SEQUENCE, &mut info)?;
    match element(OID, &mut algorithm)? {
        OID_ED25519 => Some(PrivateKind::Ed25519),
        OID_EC if element(OID, &mut algorithm)? == OID_P256 => Some(PrivateKind::P256),
        OID_RSA => Some(PrivateKind::Rsa),
        _ => None,
    }
}

/// The content of the next element, which must have this tag; `input` moves
/// behind it. Lengths in their shortest form, under 64 KiB.
fn element<'a>(tag: u8, input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let [found, first, rest @ ..] = *input else {
        return None;
    };
    if *found != tag {
        return None;
    }
    let (length, rest) = match (*first, rest) {
        (short @ 0..=0x7f, rest) => (usize::from(short), rest),
        (0x81, [length, rest @ ..]) if *length >= 0x80 => (usize::from(*length), rest),
        (0x82, [high, low, rest @ ..]) if *high > 0 => {
            (usize::from(*high) << 8 | usize::from(*low), rest)
        }
        _ => return None,
    };
    let (content, after) = rest.split_at_checked(length)?;
    *input = after;
    Some(content)
}

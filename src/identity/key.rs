//! One key that tokens are verified with: its material, the one algorithm it
//! is for, and its id.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use ring::digest;
use ring::signature::{self, KeyPair};

use super::algorithm::Algorithm;
use super::pem::{self, PemKey, PrivateKind};
use super::provider::RING;

/// The fewest bytes a shared secret may have (RFC 7518, 3.2).
pub const MIN_SECRET_BYTES: usize = 32;
/// The fewest and the most bits an RSA modulus may have (RFC 7518, 3.3).
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A key that tokens are verified with. It is for exactly one algorithm, which
/// no token can change. Cloning is cheap; its `Debug` shows no material.
#[derive(Clone)]
pub struct VerifyingKey {
    id: Arc<str>,
    print: Arc<str>,
    any_kid: bool,
    algorithm: Algorithm,
    /// The second from which on it confirms nothing.
    until: Option<u64>,
    /// What the key consists of; wiped when the last clone goes.
    material: Arc<DecodingKey>,
}

/// Why a text is not a usable key. Never holds any of the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A shared secret that can be guessed.
    #[error(
        "the shared secret has {0} bytes, and at least 32 are needed: write the output of `openssl rand -hex 32`"
    )]
    ShortSecret(usize),
    /// A line end or blank around a shared secret, which would be part of it.
    #[error("the shared secret begins or ends with white space: write it without")]
    PaddedSecret,
    /// No PEM block.
    #[error("the key is not PEM: write the text from -----BEGIN to -----END")]
    NotPem,
    /// More than one PEM block.
    #[error("there are several PEM blocks: write one key per file, or a JWKS")]
    SeveralPem,
    /// A private key in its old form.
    #[error("the private key is not PKCS#8: convert it with `openssl pkcs8 -topk8 -nocrypt`")]
    NotPkcs8,
    /// A private key behind a pass phrase.
    #[error("the private key is encrypted: decrypt it with `openssl pkcs8`")]
    EncryptedPem,
    /// A certificate instead of a key.
    #[error("this is a certificate: write its public key, from `openssl x509 -pubkey -noout`")]
    Certificate,
    /// A kind of key that is not supported, or broken DER.
    #[error("the key is none of Ed25519, P-256 or RSA, or it is damaged")]
    UnsupportedPem,
    /// An elliptic curve other than P-256.
    #[error("the key is on a curve other than P-256")]
    UnsupportedCurve,
    /// An RSA private key, of which nothing here has any use.
    #[error("this is an RSA private key: write its public half, from `openssl pkey -pubout`")]
    RsaPrivate,
    /// A private key whose parts contradict each other.
    #[error("the private key is damaged")]
    DamagedPrivateKey,
    /// An Ed25519 key for which anybody can sign.
    #[error("the Ed25519 public key is a point of small order, for which anybody can sign")]
    SmallOrder,
    /// An RSA key that is too small or too large.
    #[error("the RSA key has {0} bits, and 2048 to 8192 are needed")]
    RsaSize(usize),
    /// An RSA exponent or modulus that is not canonical or not odd.
    #[error("the RSA key's modulus or exponent is not valid")]
    RsaNumber,
    /// An algorithm that a key of this kind is not for.
    #[error("a key of type {kind} is not for {algorithm}")]
    AlgorithmMismatch {
        /// The key's type.
        kind: &'static str,
        /// What was asked of it.
        algorithm: String,
    },
    /// Not a JWK (RFC 7517).
    #[error("{place}: {why}")]
    Jwk {
        /// Which key, as in `keys[2]`.
        place: String,
        /// What is wrong, and what to write.
        why: String,
    },
    /// Two keys of one id, which a token could not tell apart.
    #[error("two keys have the id {0:?}: give each its own `kid`")]
    DuplicateKid(String),
    /// A set without one key that tokens could be verified with.
    #[error("there is no key that tokens can be verified with")]
    NoKeys,
    /// A key whose id is empty or over 256 bytes.
    #[error("a key id must have 1 to 256 bytes")]
    BadKid,
    /// The private half is needed.
    #[error(
        "an Ed25519 private key is needed here: make one with `openssl genpkey -algorithm ed25519`"
    )]
    NotPrivate,
    /// The machine gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

impl VerifyingKey {
    /// A shared secret, for HS256, as `AGENTPORT_JWKS_SECRET` holds it. The
    /// UTF-8 bytes of the text are the HMAC key as they are: hexadecimal digits
    /// are not decoded, so that any JWT library given the same text agrees.
    ///
    /// # Errors
    /// [`KeyError::ShortSecret`] under 32 bytes, [`KeyError::PaddedSecret`].
    pub fn from_secret(secret: &str) -> Result<Self, KeyError> {
        if secret.trim() != secret {
            return Err(KeyError::PaddedSecret);
        }
        Self::from_secret_bytes(secret.as_bytes())
    }

    /// The same by bytes, as a JWK of type `oct` gives them.
    pub(super) fn from_secret_bytes(secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < MIN_SECRET_BYTES {
            return Err(KeyError::ShortSecret(secret.len()));
        }
        // Not RFC 7638, whose thumbprint of a secret is a plain hash of it:
        // this one says nothing in another context, and half of it is enough.
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(b"agentport kid\0");
        hash.update(secret);
        let id = URL_SAFE_NO_PAD.encode(&hash.finish().as_ref()[..12]);
        let material = DecodingKey::from_secret(secret);
        Ok(Self::new(id, Algorithm::Hs256, material))
    }

    /// An Ed25519 public key (RFC 8032), 32 bytes.
    ///
    /// # Errors
    /// [`KeyError::SmallOrder`].
    pub fn from_ed25519(public: [u8; 32]) -> Result<Self, KeyError> {
        let mut positive = public;
        positive[31] &= 0x7f;
        if SMALL_ORDER.contains(&positive) {
            return Err(KeyError::SmallOrder);
        }
        let x = URL_SAFE_NO_PAD.encode(public);
        let id = thumbprint(&format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#));
        let material = DecodingKey::from_ed_der(&public);
        Ok(Self::new(id, Algorithm::EdDsa, material))
    }

    /// A P-256 public key as an uncompressed point. A point off the curve
    /// verifies nothing.
    pub(super) fn from_p256(point: [u8; 65]) -> Result<Self, KeyError> {
        if point[0] != 4 {
            return Err(KeyError::UnsupportedPem);
        }
        let x = URL_SAFE_NO_PAD.encode(&point[1..33]);
        let y = URL_SAFE_NO_PAD.encode(&point[33..]);
        let id = thumbprint(&format!(
            r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#
        ));
        let material = DecodingKey::from_ec_der(&point);
        Ok(Self::new(id, Algorithm::Es256, material))
    }

    /// An RSA public key for one RSA algorithm.
    pub(super) fn from_rsa(n: Vec<u8>, e: Vec<u8>, algorithm: Algorithm) -> Result<Self, KeyError> {
        if !algorithm.is_rsa() {
            return Err(KeyError::AlgorithmMismatch {
                kind: "RSA",
                algorithm: algorithm.to_string(),
            });
        }
        let (Some(&high), Some(&low)) = (n.first(), n.last()) else {
            return Err(KeyError::RsaNumber);
        };
        let bits = n.len() * 8 - usize::try_from(high.leading_zeros()).unwrap_or(8);
        if !RSA_BITS.contains(&bits) {
            return Err(KeyError::RsaSize(bits));
        }
        // Odd, at least 3 and at most 33 bits, which is what *ring* takes.
        let small = match e.as_slice() {
            [0, ..] | [] | [1] => true,
            [first, _, _, _, _] => *first > 1,
            exponent => exponent.len() > 5,
        };
        let odd = |number: &[u8]| number.last().is_some_and(|byte| byte & 1 == 1);
        if high == 0 || low & 1 == 0 || small || !odd(&e) {
            return Err(KeyError::RsaNumber);
        }
        let (e64, n64) = (URL_SAFE_NO_PAD.encode(&e), URL_SAFE_NO_PAD.encode(&n));
        let id = thumbprint(&format!(r#"{{"e":"{e64}","kty":"RSA","n":"{n64}"}}"#));
        let material = DecodingKey::from_rsa_raw_components(&n, &e);
        Ok(Self::new(id, algorithm, material))
    }

    /// The one key of a PEM text: `PUBLIC KEY`, `RSA PUBLIC KEY`, or an
    /// Ed25519 or P-256 `PRIVATE KEY` in PKCS#8, of which the public half is
    /// taken. An RSA key is for RS256; a JWK can name another algorithm.
    ///
    /// # Errors
    /// [`KeyError`], which says what to write.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        match pem::parse(text)? {
            PemKey::Ed25519(public) => Self::from_ed25519(public),
            PemKey::P256(point) => Self::from_p256(point),
            PemKey::Rsa(n, e) => Self::from_rsa(n, e, Algorithm::Rs256),
            PemKey::Private(kind, der) => Self::from_private(kind, &der),
        }
    }

    fn from_private(kind: PrivateKind, der: &[u8]) -> Result<Self, KeyError> {
        let damaged = |_| KeyError::DamagedPrivateKey;
        match kind {
            PrivateKind::Ed25519 => {
                let pair =
                    signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(damaged)?;
                let public = pair.public_key().as_ref().try_into();
                Self::from_ed25519(public.map_err(|_| KeyError::DamagedPrivateKey)?)
            }
            PrivateKind::P256 => {
                let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
                let random = ring::rand::SystemRandom::new();
                let pair = signature::EcdsaKeyPair::from_pkcs8(algorithm, der, &random)
                    .map_err(damaged)?;
                let point = pair.public_key().as_ref().try_into();
                Self::from_p256(point.map_err(|_| KeyError::DamagedPrivateKey)?)
            }
            PrivateKind::Rsa => Err(KeyError::RsaPrivate),
        }
    }

    fn new(id: String, algorithm: Algorithm, material: DecodingKey) -> Self {
        let id: Arc<str> = id.into();
        Self {
            print: Arc::clone(&id),
            id,
            any_kid: false,
            algorithm,
            until: None,
            material: Arc::new(material),
        }
    }

    /// The same key under the id that its issuer gives it.
    ///
    /// # Errors
    /// [`KeyError::BadKid`] for an empty id or one over 256 bytes.
    pub fn with_id(mut self, id: &str) -> Result<Self, KeyError> {
        if id.is_empty() || id.len() > 256 {
            return Err(KeyError::BadKid);
        }
        self.id = id.into();
        Ok(self)
    }

    /// The same key, also for tokens whose `kid` no other key has. For the PEM
    /// of a foreign issuer, which does not say what the issuer calls it.
    #[must_use]
    pub fn for_any_kid(mut self) -> Self {
        self.any_kid = true;
        self
    }

    /// The same key until then and no longer, in seconds since 1970. No leeway
    /// is added: the end is the operator's, and not another clock's.
    #[must_use]
    pub fn valid_until(mut self, seconds: u64) -> Self {
        self.until = Some(seconds);
        self
    }

    /// Until when the key is good, where that is bounded.
    #[must_use]
    pub fn until(&self) -> Option<u64> {
        self.until
    }

    /// Whether the key is good at `now`, in seconds since 1970.
    #[must_use]
    pub fn is_valid(&self, now: u64) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    /// The key's id: what its JWK says, or its thumbprint (RFC 7638, SHA-256);
    /// for a shared secret a hash that tells nothing of it.
    #[must_use]
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// What tells this key from any other, whatever it is called: the id that it
    /// has by itself.
    pub(super) fn print(&self) -> &Arc<str> {
        &self.print
    }

    /// The algorithm the key is for.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether the key also stands in for ids that no key has.
    pub(super) fn fits_any_kid(&self) -> bool {
        self.any_kid
    }

    pub(super) fn material(&self) -> &DecodingKey {
        &self.material
    }

    /// Whether the signature is this key's over this message. Signatures of
    /// any length may be passed in.
    #[must_use]
    pub fn confirms(&self, message: &[u8], signature: &[u8]) -> bool {
        // A key of another kind gives no verifier, and confirms nothing.
        (RING.verifier_factory)(&self.algorithm.into(), &self.material)
            .is_ok_and(|verifier| verifier.verify(message, &signature.to_vec()).is_ok())
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// RFC 7638 over the canonical JWK, in base64url: 43 characters.
fn thumbprint(canonical: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, canonical.as_bytes()))
}

/// The encodings of the points of order 1, 2, 4 and 8, without the sign bit,
/// canonical and not. Eight times any of them is the neutral point, so that a
/// signature can be made up for each.
#[rustfmt::skip]
const SMALL_ORDER: [[u8; 32]; 7] = [
    [0; 32],
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0,
     0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05],
    [0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f,
     0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a],
    [0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
     0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    [0xed, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
     0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    [0xee, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
     0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
];

//! The signature algorithms that a key may be for (RFC 7518, RFC 8037).

use std::fmt;

/// A signature algorithm. A key is for exactly one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Ed25519 (RFC 8037); `EdDSA`, or `Ed25519` as RFC 9864 calls it.
    EdDsa,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// HMAC with SHA-256, by a shared secret.
    Hs256,
}

impl Algorithm {
    /// The algorithm that an `alg` member names, compared exactly (RFC 7515,
    /// 4.1.1: the value is case-sensitive). `None` for `none` and all others.
    #[must_use]
    pub fn parse(alg: &str) -> Option<Self> {
        Some(match alg {
            "EdDSA" | "Ed25519" => Self::EdDsa,
            "ES256" => Self::Es256,
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "HS256" => Self::Hs256,
            _ => return None,
        })
    }

    /// The name as it stands in `alg`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Hs256 => "HS256",
        }
    }

    /// Whether the key that verifies also signs.
    #[must_use]
    pub fn is_symmetric(self) -> bool {
        matches!(self, Self::Hs256)
    }

    /// Whether an RSA key can be for it.
    #[must_use]
    pub fn is_rsa(self) -> bool {
        matches!(self, Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

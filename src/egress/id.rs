//! Who is asking: names of agents and tenants, and the number of a request.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The most bytes an agent or tenant name may have.
const MAX_ID_BYTES: usize = 128;

/// An agent's name, as the `agent_id` claim or a certificate gives it.
///
/// 1 to 128 visible ASCII characters without quotes, commas and backslashes,
/// so that it can stand in a header, a log line and a metric as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentId(Arc<str>);

/// A tenant's name, of the same characters as an [`AgentId`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

/// Why a string is not a name of an agent or a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing is there.
    #[error("the name is empty")]
    Empty,
    /// Over 128 bytes.
    #[error("the name is longer than 128 bytes")]
    TooLong,
    /// A character outside the set.
    #[error("the name may have letters, digits and -_.:/@+= only")]
    InvalidCharacter,
}

fn check(raw: &str) -> Result<Arc<str>, IdError> {
    if raw.is_empty() {
        return Err(IdError::Empty);
    }
    if raw.len() > MAX_ID_BYTES {
        return Err(IdError::TooLong);
    }
    // Wide enough for `system:serviceaccount:ns:name`, SPIFFE ids and e-mail.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/@+=".contains(&b);
    if !raw.bytes().all(plain) {
        return Err(IdError::InvalidCharacter);
    }
    Ok(raw.into())
}

macro_rules! id {
    ($name:ident) => {
        impl $name {
            /// Parses a name.
            ///
            /// # Errors
            /// [`IdError`].
            pub fn parse(raw: &str) -> Result<Self, IdError> {
                check(raw).map(Self)
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(raw: &str) -> Result<Self, IdError> {
                Self::parse(raw)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

id!(AgentId);
id!(TenantId);

/// The number of one request: 128 random bits, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId([u8; 32]);

impl RequestId {
    /// From 128 bits, which should be random.
    #[must_use]
    pub fn from_bits(bits: u128) -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        for (at, digit) in text.iter_mut().enumerate() {
            let nibble = (bits >> (124 - 4 * at)) & 0xf;
            *digit = HEX[usize::try_from(nibble).unwrap_or(0)];
        }
        Self(text)
    }

    /// The 32 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_agents() {
        for good in [
            "bot-01",
            "system:serviceaccount:ns:name",
            "spiffe://td/agent/a",
            "a@b.c",
        ] {
            assert!(AgentId::parse(good).is_ok(), "{good}");
        }
        assert_eq!(AgentId::parse(""), Err(IdError::Empty));
        assert_eq!(AgentId::parse(&"a".repeat(129)), Err(IdError::TooLong));
        for bad in ["a b", "a\n", "a\"", "a,b", "ä", "a*", "a\\b", "a;b"] {
            assert_eq!(
                AgentId::parse(bad),
                Err(IdError::InvalidCharacter),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn request_ids_are_32_digits() {
        assert_eq!(
            RequestId::from_bits(0xfe).as_str(),
            format!("{:032x}", 0xfe)
        );
        assert_eq!(RequestId::from_bits(u128::MAX).as_str(), "f".repeat(32));
    }
}

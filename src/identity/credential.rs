//! The credential as a request carries it: `Proxy-Authorization`, and the
//! headers that stand for it where `Authorization` is the origin's.
//!
//! Only the form is judged here; what the token says is up to the verifier.

use std::fmt;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::agent_key::AgentKey;

/// The most bytes a credential may have, as the header writes it.
pub const MAX_CREDENTIAL_BYTES: usize = 32 * 1024;

/// Padding as clients happen to write it; each value still has one spelling of
/// its last character.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A token and who is said to send it. Its `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    token: String,
    user: Option<String>,
}

/// Why a header's value is no credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Nothing is there.
    #[error("the credential is empty: send Bearer TOKEN, or Basic with the token as password")]
    Empty,
    /// More than one header, or more than one credential in it.
    #[error("there are several credentials: send one")]
    Several,
    /// Over 32 KiB.
    #[error("the credential is longer than 32768 bytes")]
    TooLarge,
    /// Not ASCII where the header must be, or not UTF-8 inside.
    #[error("the credential is not text")]
    NotText,
    /// Digest, Negotiate and others.
    #[error("the credential's scheme is neither Bearer nor Basic")]
    UnknownScheme,
    /// `Basic` with something that is not base64.
    #[error("the Basic credential is not base64")]
    NotBase64,
    /// `Basic` without a colon.
    #[error("the Basic credential has no colon: send AGENT:TOKEN")]
    NoColon,
    /// Neither user name nor password holds anything.
    #[error(
        "the credential has no token: send the token as the password, as in http://AGENT:TOKEN@gateway"
    )]
    NoToken,
    /// Two different tokens, of which either could be meant.
    #[error("user name and password are two different tokens: send one")]
    TwoTokens,
}

impl CredentialError {
    /// The reason in one word, for records and metrics.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Several => "several_credentials",
            Self::UnknownScheme => "unknown_scheme",
            Self::Empty
            | Self::NotText
            | Self::NotBase64
            | Self::NoColon
            | Self::NoToken
            | Self::TwoTokens => "malformed_credential",
        }
    }
}

impl Credential {
    /// The one credential among the values of a header.
    ///
    /// # Errors
    /// [`CredentialError`]; [`CredentialError::Several`] for more than one
    /// value, even where they are the same.
    pub fn of_header<'v>(
        values: impl IntoIterator<Item = &'v [u8]>,
    ) -> Result<Option<Self>, CredentialError> {
        let mut values = values.into_iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => Self::parse(value).map(Some),
            (Some(_), Some(_)) => Err(CredentialError::Several),
        }
    }

    /// Parses the value of `Proxy-Authorization` (RFC 9110, 11.7.2):
    /// `Bearer TOKEN` (RFC 6750) or `Basic` (RFC 7617), the scheme in any case.
    ///
    /// Of `Basic`, the password is the token and the user name is kept; with
    /// an empty password, the user name is the token. Since a token has no
    /// colon and an agent's name may have some, the last one divides.
    ///
    /// # Errors
    /// [`CredentialError`].
    pub fn parse(value: &[u8]) -> Result<Self, CredentialError> {
        let (scheme, rest) = split_scheme(value)?;
        if scheme.eq_ignore_ascii_case("Bearer") {
            return Self::bare_text(rest);
        }
        if !scheme.eq_ignore_ascii_case("Basic") {
            return Err(CredentialError::UnknownScheme);
        }
        let decoded = BASE64.decode(rest).map_err(|_| {
            if rest.contains(',') {
                CredentialError::Several
            } else {
                CredentialError::NotBase64
            }
        })?;
        let pair = String::from_utf8(decoded).map_err(|_| CredentialError::NotText)?;
        let (user, password) = pair.rsplit_once(':').ok_or(CredentialError::NoColon)?;
        match (user, password) {
            ("", "") => Err(CredentialError::NoToken),
            (token, "") if looks_like_token(token) => Ok(Self::new(token, None)),
            (_, "") => Err(CredentialError::NoToken),
            ("", token) => Ok(Self::new(token, None)),
            (user, token) if user == token => Ok(Self::new(token, None)),
            (user, token) if looks_like_token(user) && looks_like_token(token) => {
                Err(CredentialError::TwoTokens)
            }
            (user, token) => Ok(Self::new(token, Some(user))),
        }
    }

    /// A token without a scheme, as `X-AgentPort-Token` carries it.
    ///
    /// # Errors
    /// [`CredentialError`].
    pub fn bare(value: &[u8]) -> Result<Self, CredentialError> {
        Self::bare_text(header_text(value)?)
    }

    /// A Bearer token has the characters of `token68` (RFC 6750, 2.1): a comma
    /// or a blank begins something else.
    fn bare_text(text: &str) -> Result<Self, CredentialError> {
        // For every request, so many bytes at once.
        if memchr::memchr3(b',', b' ', b'\t', text.as_bytes()).is_some() {
            return Err(CredentialError::Several);
        }
        if text.is_empty() {
            return Err(CredentialError::NoToken);
        }
        Ok(Self::new(text, None))
    }

    fn new(token: &str, user: Option<&str>) -> Self {
        Self {
            token: token.to_owned(),
            user: user.map(str::to_owned),
        }
    }

    /// The token, not verified.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The user name beside the token, where `Basic` has one. It proves
    /// nothing; the operator may want it to be the token's agent.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(redacted)")
    }
}

/// The scheme and what follows it after at least one blank.
fn split_scheme(value: &[u8]) -> Result<(&str, &str), CredentialError> {
    let text = header_text(value)?;
    let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
    if scheme.is_empty() {
        return Err(CredentialError::Empty);
    }
    Ok((scheme, rest.trim_start_matches(' ')))
}

/// A header's value within its bound: ASCII, without the blanks around it.
fn header_text(value: &[u8]) -> Result<&str, CredentialError> {
    if value.len() > MAX_CREDENTIAL_BYTES {
        return Err(CredentialError::TooLarge);
    }
    let text = std::str::from_utf8(value).map_err(|_| CredentialError::NotText)?;
    if !text.is_ascii() {
        return Err(CredentialError::NotText);
    }
    Ok(text.trim_matches([' ', '\t']))
}

/// An agent key; or three segments, the first of which begins like a JSON
/// object in base64url.
fn looks_like_token(text: &str) -> bool {
    AgentKey::is_one(text) || text.starts_with("ey") && text.split('.').count() == 3
}

#[cfg(test)]
mod tests {
    use super::*;

    const JWT: &str = "eyJhbGciOiJFZERTQSJ9.e30.c2ln";

    fn basic(pair: &str) -> String {
        format!("Basic {}", BASE64.encode(pair))
    }

    #[test]
    fn credentials_as_clients_send_them() {
        let long = format!("eyJ{}.e30.c2ln", "x".repeat(4_900));
        for (case, value, token, user) in [
            ("bearer", format!("Bearer {JWT}"), JWT, None),
            ("bearer in lower case", format!("bearer {JWT}"), JWT, None),
            (
                "bearer with blanks",
                format!("  BEARER   {JWT} "),
                JWT,
                None,
            ),
            (
                "basic, token as password",
                basic(&format!("bot-01:{JWT}")),
                JWT,
                Some("bot-01"),
            ),
            (
                "basic, scheme in upper case",
                basic(&format!("bot-01:{JWT}")).replace("Basic", "BASIC"),
                JWT,
                Some("bot-01"),
            ),
            (
                "basic, padding left out",
                basic(&format!("bot:{JWT}"))
                    .trim_end_matches('=')
                    .to_owned(),
                JWT,
                Some("bot"),
            ),
            ("basic, no user name", basic(&format!(":{JWT}")), JWT, None),
            (
                "basic, token as user name",
                basic(&format!("{JWT}:")),
                JWT,
                None,
            ),
            (
                "basic, token as both",
                basic(&format!("{JWT}:{JWT}")),
                JWT,
                None,
            ),
            (
                "basic, a name with colons",
                basic(&format!("system:serviceaccount:ns:a:{JWT}")),
                JWT,
                Some("system:serviceaccount:ns:a"),
            ),
            (
                "basic, a name in UTF-8",
                basic(&format!("bött:{JWT}")),
                JWT,
                Some("bött"),
            ),
            (
                "basic, 4.9 kB",
                basic(&format!("a:{long}")),
                &long,
                Some("a"),
            ),
        ] {
            let credential = Credential::parse(value.as_bytes()).expect(case);
            assert_eq!(
                (credential.token(), credential.user()),
                (token, user),
                "{case}"
            );
            assert!(!format!("{credential:?}").contains("ey"), "{case}");
        }
    }

    #[test]
    fn what_is_no_credential() {
        use CredentialError::*;
        let other = "eyJhbGciOiJub25lIn0.e30.c2ln";
        for (case, value, error) in [
            ("nothing", String::new(), Empty),
            ("blanks", "  \t ".into(), Empty),
            ("a scheme alone", "Bearer".into(), NoToken),
            ("a token without a scheme", JWT.into(), UnknownScheme),
            (
                "another scheme",
                "Digest username=\"a\"".into(),
                UnknownScheme,
            ),
            ("negotiate", "Negotiate YII=".into(), UnknownScheme),
            (
                "two bearers",
                format!("Bearer {JWT}, Bearer {JWT}"),
                Several,
            ),
            ("a comma", format!("Bearer {JWT},{JWT}"), Several),
            ("two words", format!("Bearer {JWT} {JWT}"), Several),
            (
                "two basics",
                format!("{}, Basic YTpi", basic("a:b")),
                Several,
            ),
            ("not base64", "Basic a:b".into(), NotBase64),
            ("base64url", "Basic YTrvv_8_".into(), NotBase64),
            ("bits left over", "Basic YTpiYx==".into(), NotBase64),
            ("no colon", basic("bot-01"), NoColon),
            ("neither", basic(":"), NoToken),
            ("a name and no password", basic("bot-01:"), NoToken),
            ("basic and nothing", "Basic ".into(), NoColon),
            ("two tokens", basic(&format!("{JWT}:{other}")), TwoTokens),
            (
                "too long",
                format!("Bearer {}", "x".repeat(MAX_CREDENTIAL_BYTES)),
                TooLarge,
            ),
            ("not ASCII", "Bearer tökén".into(), NotText),
        ] {
            assert_eq!(Credential::parse(value.as_bytes()), Err(error), "{case}");
        }
        assert_eq!(Credential::parse(b"Bearer \xff"), Err(NotText));
        let latin1 = format!("Basic {}", BASE64.encode(b"b\xf6t:token"));
        assert_eq!(
            Credential::parse(latin1.as_bytes()),
            Err(NotText),
            "not UTF-8 inside"
        );
    }

    #[test]
    fn a_header_has_one_value() {
        let value = format!("Bearer {JWT}");
        let value = value.as_bytes();
        assert_eq!(Credential::of_header([]), Ok(None));
        assert!(matches!(Credential::of_header([value]), Ok(Some(_))));
        assert_eq!(
            Credential::of_header([value, value]),
            Err(CredentialError::Several)
        );
        let bare = Credential::bare(JWT.as_bytes()).expect("a token");
        assert_eq!((bare.token(), bare.user()), (JWT, None));
        assert_eq!(Credential::bare(b""), Err(CredentialError::NoToken));
        assert_eq!(Credential::bare(value), Err(CredentialError::Several));
    }
}

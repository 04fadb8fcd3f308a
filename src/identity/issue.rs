//! Tokens as AgentPort issues them, and the keys that sign them.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::Serialize;
use serde_json::{Value, json};

use super::claims::{MAX_ACTORS, MAX_DATE};
use super::descent::Descent;
use super::key::{KeyError, VerifyingKey};
use super::pem::{self, PemKey, PrivateKind};
use super::provider::RING;
use super::verify::VerifierSettings;
use crate::egress::{AgentId, Destination, RequestId, TenantId};

/// The longest lifetime a token is issued with: 366 days. Who asks for more
/// wants a key, not a token.
pub const MAX_LIFETIME: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// A key that tokens are signed with. Its `Debug` shows no material.
pub struct SigningKey {
    public: VerifyingKey,
    /// Wiped when it goes.
    material: EncodingKey,
}

/// A token to be issued.
#[derive(Clone, Debug)]
pub struct IssueRequest {
    /// Whose it will be: `agent_id` and `sub`.
    pub agent: AgentId,
    /// `tenant`.
    pub tenant: Option<TenantId>,
    /// `allowed_destinations`; an empty list allows nothing.
    pub destinations: Option<Vec<Destination>>,
    /// From `iat` to `exp`: at least a second, at most [`MAX_LIFETIME`].
    pub lifetime: Duration,
    /// `aud`, where it is not the issuer's own audience.
    pub audience: Option<String>,
    /// 128 random bits, for `jti`.
    pub jti: u128,
    /// `act`: who acts for the agent, the present actor first (RFC 8693).
    pub actors: Vec<String>,
    /// `scope`: words with a blank between them (RFC 6749, 3.3).
    pub scope: Option<String>,
    /// `client_id`: the service account that it is issued to (RFC 9068, 2.2).
    pub client: Option<String>,
}

/// Why a token is not issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// No time, or too much.
    #[error("a token's lifetime must be from 1 second to 366 days")]
    Lifetime,
    /// More actors than a verifier accepts.
    #[error("a delegation chain has at most 8 actors, each of 1 to 256 bytes")]
    Actors,
    /// A scope that is none.
    #[error(
        "a scope is words of printable ASCII without quotes, with one blank between two, 1024 bytes at most"
    )]
    Scope,
    /// A name of a service account that a verifier would refuse.
    #[error("a service account's name has 1 to 256 bytes and no control characters")]
    Client,
    /// Longer than a verifier accepts.
    #[error("the token would have {0} bytes, and 8192 is the limit: name fewer destinations")]
    TooLarge(usize),
    /// A date after the year 9999.
    #[error("the clock is wrong: the token would expire after the year 9999")]
    Date,
    /// The key does not sign, which no key does that was read whole.
    #[error("the signing key does not sign")]
    Signing,
}

/// Issues tokens with one key.
#[derive(Debug)]
pub struct TokenIssuer {
    key: SigningKey,
    header: String,
    issuer: String,
    audience: String,
}

impl TokenIssuer {
    /// An issuer that writes this `iss`, and this `aud` where none is asked for.
    #[must_use]
    pub fn new(key: SigningKey, issuer: &str, audience: &str) -> Self {
        let public = key.verifying_key();
        let header = json!({
            "alg": public.algorithm().as_str(), "typ": "JWT", "kid": public.id().as_ref(),
        });
        Self {
            header: URL_SAFE_NO_PAD.encode(header.to_string()),
            key,
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
        }
    }

    /// The key that verifies what this issuer signs.
    #[must_use]
    pub fn verifying_key(&self) -> &VerifyingKey {
        self.key.verifying_key()
    }

    /// Issues a token at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// [`IssueError`]: nothing is issued that a verifier with default settings
    /// would refuse.
    pub fn issue(&self, request: &IssueRequest, now: u64) -> Result<String, IssueError> {
        self.issue_descending(request, now, &Descent::none(now))
    }

    /// The same for a token that descends from others: it names them, `iat` is
    /// that of the oldest, or absent as there, and it lives from `now` all the
    /// same. So what revokes the one revokes both, also where they were
    /// exchanged in the moment before the revocation was known here.
    ///
    /// # Errors
    /// As [`TokenIssuer::issue`].
    pub fn issue_descending(
        &self,
        request: &IssueRequest,
        now: u64,
        descent: &Descent,
    ) -> Result<String, IssueError> {
        let lifetime = request.lifetime.as_secs();
        if lifetime == 0 || request.lifetime > MAX_LIFETIME {
            return Err(IssueError::Lifetime);
        }
        if !request.scope.as_deref().is_none_or(super::claims::is_scope) {
            return Err(IssueError::Scope);
        }
        if !request.client.as_deref().is_none_or(super::claims::is_name) {
            return Err(IssueError::Client);
        }
        let exp = now.checked_add(lifetime).filter(|exp| *exp <= MAX_DATE);
        let aud = request.audience.as_deref().unwrap_or(&self.audience);
        let claims = Claims {
            iss: &self.issuer,
            aud,
            sub: request.agent.as_str(),
            agent_id: request.agent.as_str(),
            tenant: request.tenant.as_ref().map(TenantId::as_str),
            allowed_destinations: request
                .destinations
                .as_ref()
                .map(|list| list.iter().map(Destination::to_string).collect()),
            act: chain(&request.actors)?,
            scope: request.scope.as_deref(),
            client_id: request.client.as_deref(),
            exchanged_from: descent.claim(&self.issuer, aud),
            iat: descent.iat.map(|iat| iat.min(now)),
            nbf: now,
            exp: exp.ok_or(IssueError::Date)?,
            jti: RequestId::from_bits(request.jti).to_string(),
        };
        let mut token = format!(
            "{}.{}",
            self.header,
            URL_SAFE_NO_PAD.encode(json!(claims).to_string())
        );
        let signature = self.key.sign(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        if token.len() > VerifierSettings::default().max_token_bytes {
            return Err(IssueError::TooLarge(token.len()));
        }
        Ok(token)
    }
}

/// The claims, named as they are written.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    agent_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed_destinations: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exchanged_from: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iat: Option<u64>,
    nbf: u64,
    exp: u64,
    jti: String,
}

/// `act` inside `act`, the first actor outermost.
fn chain(actors: &[String]) -> Result<Option<Value>, IssueError> {
    if actors.len() > MAX_ACTORS || !actors.iter().all(|actor| super::claims::is_name(actor)) {
        return Err(IssueError::Actors);
    }
    Ok(actors
        .iter()
        .rev()
        .fold(None, |inner: Option<Value>, actor| {
            Some(match inner {
                None => json!({ "sub": actor }),
                Some(inner) => json!({ "sub": actor, "act": inner }),
            })
        }))
}

impl SigningKey {
    /// A shared secret, for HS256; see [`VerifyingKey::from_secret`].
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_secret(secret: &str) -> Result<Self, KeyError> {
        let public = VerifyingKey::from_secret(secret)?;
        Ok(Self {
            public,
            material: EncodingKey::from_secret(secret.as_bytes()),
        })
    }

    /// An Ed25519 private key in PKCS#8 PEM, with or without its public half.
    ///
    /// # Errors
    /// [`KeyError`], which says what to write.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let PemKey::Private(PrivateKind::Ed25519, der) = pem::parse(text)? else {
            return Err(KeyError::NotPrivate);
        };
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
            .map_err(|_| KeyError::DamagedPrivateKey)?;
        let public = pair.public_key().as_ref().try_into();
        let public = VerifyingKey::from_ed25519(public.map_err(|_| KeyError::DamagedPrivateKey)?)?;
        Ok(Self {
            public,
            material: EncodingKey::from_ed_der(&der),
        })
    }

    /// The same key under another id, which its tokens will name.
    ///
    /// # Errors
    /// [`KeyError::BadKid`].
    pub fn with_id(mut self, id: &str) -> Result<Self, KeyError> {
        self.public = self.public.with_id(id)?;
        Ok(self)
    }

    /// The key that verifies what this one signs.
    #[must_use]
    pub fn verifying_key(&self) -> &VerifyingKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, IssueError> {
        let algorithm = self.public.algorithm().into();
        let signer = (RING.signer_factory)(&algorithm, &self.material);
        let signer = signer.map_err(|_| IssueError::Signing)?;
        signer.try_sign(message).map_err(|_| IssueError::Signing)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

/// A new Ed25519 private key, as PKCS#8 PEM: the text that
/// [`SigningKey::from_pem`] reads, for a file that only its owner may read.
///
/// It is written in version 1 of PKCS#8, without the public half, since
/// `openssl` and most libraries read no other (RFC 8410, 10.3).
///
/// # Errors
/// [`KeyError::Random`].
pub fn generate_ed25519() -> Result<String, KeyError> {
    const PREFIX: [u8; 16] = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];
    let mut der = [0; 48];
    let (prefix, seed) = der.split_at_mut(PREFIX.len());
    prefix.copy_from_slice(&PREFIX);
    SystemRandom::new()
        .fill(seed)
        .map_err(|_| KeyError::Random)?;
    Ok(pem::write("PRIVATE KEY", &der))
}

//! Who is asking: keys, tokens and what they say.
//!
//! A token is a JWT in its compact form (RFC 7515, RFC 7519), checked as
//! strictly as RFC 8725 asks: the key decides the algorithm, one spelling of a
//! token is accepted, and whatever could be read in two ways is refused.
//!
//! Never reads a file, opens a socket or asks the time: texts and `now` are
//! passed in. What policy makes of a [`Principal`] lives in `policy`, and
//! where a credential stands in a request is known to `proxy`.
//!
//! Keys are held, and signatures made and checked, by `jsonwebtoken`, for which
//! `provider` computes them with *ring*. The reading of tokens and the judging
//! of claims are ours: that crate reads the system's clock, and lets pass
//! repeated members, an unknown `crit` and any `typ`. A third implementation
//! serves the tests as a second opinion on all of it.

mod agent_key;
mod algorithm;
mod assertion;
mod cache;
mod certificate;
mod claims;
mod compact;
mod credential;
mod date;
mod delegation;
mod descent;
mod discovery;
mod error;
mod exchange;
mod folder;
mod grant;
mod issue;
mod json;
mod jwk;
mod key;
mod keys;
mod naming;
mod pem;
mod principal;
mod provider;
mod revocation;
mod service_account;
mod verify;

pub use agent_key::{AgentKey, AgentKeyError, AgentKeys, BadAgentKey};
pub use algorithm::Algorithm;
pub use assertion::{AssertionRefused, MAX_ASSERTION_LIFETIME, UsedAssertions, claimed_account};
pub use cache::{CacheSettings, CachedVerifier, KeysNow, Verdict};
pub use certificate::{
    CertificateError, Certified, ClientName, ClientNameError, MAX_CERTIFICATE_NAMES,
    PeerCertificate,
};
pub use claims::MAX_ACTORS;
pub use credential::{Credential, CredentialError, MAX_CREDENTIAL_BYTES};
pub use date::{parse as parse_rfc3339, rfc3339};
pub use delegation::{covers, first_outside, meet};
pub use descent::{Ancestor, Descent, MAX_ANCESTORS};
pub use discovery::{DiscoveryError, discovered_keys};
pub use error::{Facts, TokenError};
pub use exchange::exchange;
pub use folder::{FolderError, FolderKey, KeyFolder, KeyState};
pub use grant::{
    ACCESS_TOKEN, ClientCredential, Grant, GrantError, MAX_FORM_BYTES, Terms, TokenQuery,
    TokenRequest,
};
pub use issue::{
    IssueError, IssueRequest, MAX_LIFETIME, SigningKey, TokenIssuer, generate_ed25519,
};
pub use jwk::{KeySet, public_jwks};
pub use key::{KeyError, MIN_SECRET_BYTES, VerifyingKey};
pub use keys::{AgentClaim, TrustedIssuer, VerifyingKeys};
pub use naming::{Naming, NamingError};
pub use principal::{CredentialKind, Principal};
pub use revocation::{Revocation, RevocationError, RevocationSet, Revoked, RevokedKind};
pub use service_account::{
    AccountDocument, AccountsDocument, AccountsError, Any, AnyOrList, KeyCheck, KeyDocument,
    KeyRefused, MAX_ACCOUNTS_BYTES, NewKey, ServiceAccount, ServiceAccounts, is_account_id,
    is_key_id, key_parts, parse_lifetime,
};
pub use verify::{TokenVerifier, VerifierSettings, claimed_issuer, claimed_jti};

#[cfg(test)]
mod differences;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod second_opinion;

//! Who asks, proven.

use std::sync::Arc;

use crate::egress::{AgentId, Destination, Subject, TenantId};

use super::PeerCertificate;
use super::descent::Ancestor;

/// Who asks, as a verified token, an agent key or a client's certificate says
/// it, or the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    pub(super) agent: AgentId,
    pub(super) tenant: Option<TenantId>,
    pub(super) destinations: Option<Vec<Destination>>,
    pub(super) audiences: Option<Arc<[String]>>,
    pub(super) jti: Option<Arc<str>>,
    pub(super) act: Option<Arc<[String]>>,
    pub(super) scope: Option<Arc<str>>,
    pub(super) client: Option<Arc<str>>,
    pub(super) issuer: Option<Arc<str>>,
    pub(super) key_id: Arc<str>,
    pub(super) key_print: Option<Arc<str>>,
    pub(super) ancestors: Option<Arc<[Ancestor]>>,
    pub(super) issued_at: Option<u64>,
    pub(super) expires_at: u64,
    pub(super) kind: CredentialKind,
    pub(super) certificate: Option<Arc<PeerCertificate>>,
}

/// What proves a [`Principal`]. A certificate may stand beside a token or an
/// agent key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// A signed token.
    Token,
    /// A client's certificate alone.
    Certificate,
    /// A long-lived agent key.
    AgentKey,
    /// The kernel, by the user id at the other end of a Unix socket.
    Peer,
}

impl CredentialKind {
    /// The word in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::AgentKey => "agent_key",
            Self::Peer => "peer",
        }
    }
}

impl Principal {
    /// Whom the operator has named for a user id at the other end of a Unix
    /// socket. It has no end: who it is ends with the socket's connection.
    #[must_use]
    pub fn of_peer(uid: u32, agent: AgentId, tenant: Option<TenantId>) -> Self {
        Self {
            agent,
            tenant,
            destinations: None,
            audiences: None,
            jti: None,
            act: None,
            scope: None,
            client: None,
            issuer: None,
            key_id: format!("uid:{uid}").into(),
            key_print: None,
            ancestors: None,
            issued_at: None,
            expires_at: u64::MAX,
            kind: CredentialKind::Peer,
            certificate: None,
        }
    }

    /// What proves it.
    #[must_use]
    pub fn kind(&self) -> CredentialKind {
        self.kind
    }

    /// The agent that a certificate names, for as long as that lasts.
    pub(super) fn by_certificate(
        agent: AgentId,
        tenant: Option<TenantId>,
        certificate: &Arc<PeerCertificate>,
    ) -> Self {
        Self {
            agent,
            tenant,
            destinations: None,
            audiences: None,
            jti: None,
            act: None,
            issuer: None,
            key_id: format!("x509:{}", certificate.fingerprint()).into(),
            key_print: None,
            ancestors: None,
            issued_at: None,
            expires_at: certificate.not_after(),
            client: None,
            scope: None,
            kind: CredentialKind::Certificate,
            certificate: Some(Arc::clone(certificate)),
        }
    }

    /// The same, proven by this certificate too: it lasts no longer than that.
    #[must_use]
    pub fn with_certificate(&self, certificate: &Arc<PeerCertificate>) -> Self {
        Self {
            expires_at: self.expires_at.min(certificate.not_after()),
            certificate: Some(Arc::clone(certificate)),
            ..self.clone()
        }
    }

    /// The certificate that proves it, where one does.
    #[must_use]
    pub fn certificate(&self) -> Option<&Arc<PeerCertificate>> {
        self.certificate.as_ref()
    }

    /// All that proves it, as records say it.
    #[must_use]
    pub fn credentials(&self) -> &'static str {
        match (self.kind, &self.certificate) {
            (CredentialKind::Token, Some(_)) => "token+certificate",
            (CredentialKind::AgentKey, Some(_)) => "agent_key+certificate",
            (kind, _) => kind.as_str(),
        }
    }

    /// Whether a token proves it.
    #[must_use]
    pub fn has_token(&self) -> bool {
        self.kind == CredentialKind::Token
    }

    /// The agent.
    #[must_use]
    pub fn agent(&self) -> &AgentId {
        &self.agent
    }

    /// Its tenant, where the token names one.
    #[must_use]
    pub fn tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref()
    }

    /// The token's own `allowed_destinations`; see [`Subject::destinations`].
    #[must_use]
    pub fn destinations(&self) -> Option<&[Destination]> {
        self.destinations.as_deref()
    }

    /// The token's number (RFC 7519, 4.1.7), by which it can be revoked.
    #[must_use]
    pub fn jti(&self) -> Option<&Arc<str>> {
        self.jti.as_ref()
    }

    /// Who acts for the agent: the delegation chain of `act`, the present
    /// actor first (RFC 8693, 4.1). `None` where the agent acts itself.
    #[must_use]
    pub fn act(&self) -> Option<&Arc<[String]>> {
        self.act.as_ref()
    }

    /// `scope`: words with a blank between them (RFC 6749, 3.3).
    #[must_use]
    pub fn scope(&self) -> Option<&Arc<str>> {
        self.scope.as_ref()
    }

    /// `client_id`: the service account that the token was issued to
    /// (RFC 9068, 2.2), by which all its tokens can be revoked.
    #[must_use]
    pub fn client(&self) -> Option<&Arc<str>> {
        self.client.as_ref()
    }

    /// The tokens that this one was exchanged from, the nearest first.
    #[must_use]
    pub fn ancestors(&self) -> &[Ancestor] {
        self.ancestors.as_deref().unwrap_or_default()
    }

    /// The token's `iss`.
    #[must_use]
    pub fn issuer(&self) -> Option<&Arc<str>> {
        self.issuer.as_ref()
    }

    /// The id of the key that confirmed the token, also where the token's
    /// header names none.
    #[must_use]
    pub fn key_id(&self) -> &Arc<str> {
        &self.key_id
    }

    /// `iat`, in seconds since 1970, rounded up.
    #[must_use]
    pub fn issued_at(&self) -> Option<u64> {
        self.issued_at
    }

    /// `exp`, in seconds since 1970, rounded down. Verification adds the
    /// leeway to it; a tunnel that outlives both is the gate's to close.
    #[must_use]
    pub fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// Whom the token is for, its `aud`; of an exchanged token whom the first
    /// one was for that it comes from. `None` of what is no token.
    #[must_use]
    pub fn audiences(&self) -> Option<&Arc<[String]>> {
        self.audiences.as_ref()
    }

    /// As policy sees it.
    #[must_use]
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            agent: &self.agent,
            tenant: self.tenant.as_ref(),
            destinations: self.destinations.as_deref(),
            audiences: self.audiences.as_deref(),
        }
    }
}

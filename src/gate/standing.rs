//! Who asks without a token: by a long-lived agent key, or by what the kernel
//! says of the process at the other end of a Unix socket.

use std::sync::Arc;

use crate::identity::{AgentKey, AgentKeys, Credential, CredentialKind, Principal};

use super::denial::Denial;
use super::ports::Observation;
use super::trail::{self, AuditTrail};
use super::{Gate, REVOKED, revoked_detail};

impl Gate {
    /// The answer for a request that brings no token: `None` where it has to
    /// have one.
    ///
    /// A credential that is sent counts, and the socket does not: who sends a
    /// bad one is refused, whatever process it is.
    pub(super) fn without_token(
        &self,
        credential: Option<&[u8]>,
        peer: Option<&Arc<Principal>>,
        trail: &mut AuditTrail,
    ) -> Option<Result<Arc<Principal>, Denial>> {
        let now = trail::unix_seconds(self.ports.clock.wall());
        let Some(value) = credential else {
            return peer.map(|who| self.not_revoked(Arc::clone(who), trail));
        };
        let keys = self.agent_keys.current();
        if keys.is_empty() {
            return None;
        }
        // What is no credential at all is the token check's to refuse.
        let credential = Credential::parse(value).ok()?;
        if !AgentKey::is_one(credential.token()) {
            return None;
        }
        let started = self.ports.clock.monotonic();
        let verdict = self.by_agent_key(&keys, &credential, now, trail);
        self.ports.observe.observe(Observation::AgentKey {
            outcome: verdict.as_ref().map_or_else(Denial::code, |_| "ok"),
            took: self.ports.clock.monotonic().saturating_sub(started),
            trace_id: trail.trace_id(),
        });
        Some(verdict)
    }

    fn by_agent_key(
        &self,
        keys: &AgentKeys,
        credential: &Credential,
        now: u64,
        trail: &mut AuditTrail,
    ) -> Result<Arc<Principal>, Denial> {
        let who = keys
            .verify(credential.token(), now)
            .map_err(|error| self.bad_credential(error.code(), error.to_string()))?;
        let user = credential.user();
        if self.match_basic_user && user.is_some_and(|user| user != who.agent().as_str()) {
            let detail = "the Basic user name is not the key's agent".to_owned();
            return Err(self.bad_credential("user_mismatch", detail));
        }
        self.not_revoked(who, trail)
    }

    /// Whether the key still stands that once proved who asks. Of certificates
    /// and peers there is none.
    pub(super) fn is_proven(&self, who: &Principal, now: u64) -> bool {
        match who.kind() {
            CredentialKind::Token => self.tokens.trusts(who, now),
            CredentialKind::AgentKey => self.agent_keys.current().still_proves(who, now),
            CredentialKind::Certificate | CredentialKind::Peer => true,
        }
    }

    fn not_revoked(
        &self,
        who: Arc<Principal>,
        trail: &mut AuditTrail,
    ) -> Result<Arc<Principal>, Denial> {
        trail.principal(&who);
        match self.revoked(&who) {
            Some(kind) => Err(self.bad_credential(REVOKED, revoked_detail(kind))),
            None => Ok(who),
        }
    }
}

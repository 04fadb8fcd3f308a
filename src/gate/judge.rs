//! What is open and lasts, judged again: by the policy, the keys and the
//! revocations of a later moment than the one in which it was admitted.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use crate::egress::EgressRequest;
use crate::identity::{AgentKeys, CredentialKind, KeysNow, Principal, RevocationSet};
use crate::policy::{Calls, Decision, Permit, PolicySet};

use super::denial::TunnelEnd;
use super::ports::{OffLimits, TrustsCertificates};
use super::{Gate, OwnListeners, holds, is_off_limits_at, off_limits, proven, trail};

/// The policy, the keys and the revocations of one moment.
pub struct Judge {
    policy: Arc<PolicySet>,
    agent_keys: Arc<AgentKeys>,
    revocations: Arc<RevocationSet>,
    keys: KeysNow,
    now: u64,
    certificates: Option<Arc<dyn TrustsCertificates>>,
    wall: SystemTime,
    own: Arc<OwnListeners>,
    off_limits: Arc<[Arc<dyn OffLimits>]>,
}

/// Where what is open leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leads {
    /// To a service that the operator has named. It has no address that was
    /// judged, and may go by a name that is off limits elsewhere.
    Behind,
    /// To this address, which was judged.
    To(IpAddr),
    /// To a name that the parent proxy looks up by itself. Nobody knows which
    /// of these it has reached, which were all judged; none where the name is
    /// looked up there alone.
    ToName(Vec<IpAddr>),
}

impl Gate {
    /// The policy, the keys and the revocations of this moment, to put to what
    /// is open.
    #[must_use]
    pub fn judge(&self) -> Judge {
        Judge {
            policy: self.policy.current(),
            agent_keys: self.agent_keys.current(),
            revocations: self.revocations.current(),
            keys: self.tokens.keys_now(),
            now: trail::unix_seconds(self.ports.clock.wall()),
            certificates: self.certificates.clone(),
            wall: self.now(),
            own: Arc::clone(&self.own),
            off_limits: Arc::clone(&self.off_limits),
        }
    }
}

impl Judge {
    /// Whether what was admitted would still be. `calls` is what its body was
    /// seen to call.
    ///
    /// # Errors
    /// How it must end.
    pub fn still(
        &self,
        who: &Principal,
        request: &EgressRequest,
        calls: Option<&[String]>,
        leads: &Leads,
    ) -> Result<(), TunnelEnd> {
        self.stands(who)?;
        if self.is_off_limits(request, leads) {
            return Err(TunnelEnd::PolicyChanged);
        }
        let calls = calls.map_or(Calls::Unseen, Calls::Seen);
        let decision = self.policy.decide_calls(&who.subject(), request, calls);
        match decision.proven_by(proven(who)) {
            Decision::Allow(permit) if leads.are_let_by(&permit, request) => Ok(()),
            _ => Err(TunnelEnd::PolicyChanged),
        }
    }

    /// Whether what has proven this principal still does.
    ///
    /// # Errors
    /// How what began with it must end.
    pub fn stands(&self, who: &Principal) -> Result<(), TunnelEnd> {
        let holds_still = match who.kind() {
            CredentialKind::Token => self.keys.trusts(who, self.now),
            CredentialKind::AgentKey => self.agent_keys.still_proves(who, self.now),
            CredentialKind::Certificate | CredentialKind::Peer => true,
        };
        if !holds_still {
            return Err(TunnelEnd::CredentialEnded);
        }
        if let Some(certificate) = who.certificate() {
            holds(self.certificates.as_deref(), certificate, self.wall)
                .map_err(|_| TunnelEnd::CredentialEnded)?;
        }
        match self.revocations.revokes(who, self.now) {
            Some(_) => Err(TunnelEnd::Revoked),
            None => Ok(()),
        }
    }

    fn is_off_limits(&self, request: &EgressRequest, leads: &Leads) -> bool {
        let port = request.authority.port;
        let is = |ip: &IpAddr| {
            let at = SocketAddr::new(*ip, port);
            self.own.contains(at) || is_off_limits_at(&self.off_limits, &self.own, at)
        };
        let named = || off_limits(&self.off_limits, &request.authority).is_some();
        match leads {
            Leads::Behind => false,
            Leads::To(address) => named() || is(address),
            Leads::ToName(addresses) => named() || addresses.iter().any(is),
        }
    }
}

impl Leads {
    /// Whether this permit lets it lead there. Where nobody here knows an
    /// address, one that is given for some addresses does not.
    fn are_let_by(&self, permit: &Permit, request: &EgressRequest) -> bool {
        match self {
            Self::Behind => permit.behind(&request.authority.host).is_ok(),
            Self::To(address) => permit.address(*address).is_ok(),
            Self::ToName(addresses) if addresses.is_empty() => permit.unresolved().is_ok(),
            Self::ToName(addresses) => addresses.iter().all(|ip| permit.address(*ip).is_ok()),
        }
    }
}

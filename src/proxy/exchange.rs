//! One request while it is served: what is known of it, and what it has spent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderName;
use pingora::{Error, ErrorType};
use tokio::sync::OwnedSemaphorePermit;

use crate::egress::{EgressRequest, Scheme};
use crate::gate::{Admission, AuditTrail, Budget, Denial, Leads, Way};

use super::calls::Calling;
use super::conn::Ending;
use super::parent::Hop;
use super::routes::Chosen;
use super::tunnels::{OpenKind, Registered};
use super::{Shared, dial};

/// From so many bytes of a body, either way, an exchange is one that lasts, as
/// is one whose answer does not say its length. What is shorter is over within
/// a read or two, like any request that was under way when something changed,
/// and pays nothing for the others: no lock, and no memory. A clock would not
/// tell them apart better: events that are silent for long would be found only
/// with the next one.
pub(super) const LONG: u64 = 64 * 1024;
/// A budget of bytes is used up.
pub(super) const BYTE_BUDGET: ErrorType = ErrorType::Custom("byte_budget");
/// How soon a budget is looked at again that replicas are settling.
pub(super) const SETTLING: Duration = Duration::from_millis(2);

/// What is known of one request while it is served.
#[derive(Default)]
pub(super) struct Exchange {
    pub(super) trail: Option<AuditTrail>,
    pub(super) admission: Option<Admission>,
    pub(super) request: Option<EgressRequest>,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) attempt: usize,
    pub(super) dialling: Option<Duration>,
    /// The tunnel of the parent proxy that this attempt goes through.
    pub(super) hop: Option<Hop>,
    /// The Unix socket of the agent behind the gateway.
    pub(super) socket: Option<String>,
    /// How the agent behind the gateway is addressed.
    pub(super) agent_host: Option<String>,
    /// The agent that is called, where one is.
    pub(super) call: Option<Calling>,
    /// By which route it goes, and the target there.
    pub(super) route: Option<(Chosen, String)>,
    pub(super) websocket: bool,
    /// A credential field of ours that must not go on.
    pub(super) spent: Option<HeaderName>,
    pub(super) body: u64,
    /// Bytes of the answer's body, or of an upgraded stream, sent to the client.
    pub(super) sent: u64,
    pub(super) answered: bool,
    /// The budget that cut it.
    pub(super) cut: Option<String>,
    pub(super) slot: Option<OwnedSemaphorePermit>,
    pub(super) registered: Option<Registered>,
    /// How it may be ended from outside.
    pub(super) ending: Option<Arc<Ending>>,
}

impl Drop for Exchange {
    /// What is ended from outside is dropped where it stands and sees no
    /// `logging`: its record says here why, and how much had passed.
    fn drop(&mut self) {
        let ended = self.ending.as_ref().and_then(|ending| ending.reason());
        if let (Some(mut trail), Some(why)) = (self.trail.take(), ended) {
            trail.bytes(self.body, self.sent);
            trail.broke_off(why.code(), why.detail().map(str::to_owned));
        }
    }
}

impl Exchange {
    /// From here it is under way.
    ///
    /// # Errors
    /// A [`Denial`] where as many are under way as may be.
    pub(super) fn admitted(
        &mut self,
        shared: &Shared,
        admission: Admission,
        request: EgressRequest,
    ) -> Result<(), Denial> {
        // One whose body was read has its slot already.
        if self.slot.is_none() {
            self.slot = Some(shared.in_flight_slot(&request.authority)?);
        }
        self.addresses = dial::order(admission.addresses(), shared.settings.ipv4_first);
        self.admission = Some(admission);
        self.request = Some(request);
        Ok(())
    }

    /// The name that the origin's certificate must be valid for, where it is
    /// reached over TLS.
    pub(super) fn tls_name(&self) -> Option<String> {
        let (chosen, _) = self.route.as_ref()?;
        (chosen.scheme() == Scheme::Https).then(|| chosen.route.route.to().certificate_name())
    }

    /// From here the exchange may last: it takes its place among what is open,
    /// and ends with the policy, the credential or the certificate that let it
    /// begin.
    pub(super) fn lasts(&mut self, shared: &Shared, kind: OpenKind) {
        if self.registered.is_some() {
            return;
        }
        let (Some(admission), Some(request), Some(ending)) =
            (&self.admission, &self.request, &self.ending)
        else {
            return;
        };
        let by_name = (self.hop.as_ref()).is_some_and(|hop| hop.address.is_none());
        let leads = match self.addresses.get(self.attempt) {
            _ if self.agent_host.is_some() || self.call.is_some() => Leads::Behind,
            Some(address) if !by_name => Leads::To(address.ip()),
            _ => Leads::ToName(self.addresses.iter().map(SocketAddr::ip).collect()),
        };
        let call = self.call.as_ref();
        let original = call.and_then(|call| call.on_behalf_of.clone());
        let asks = (request.clone(), leads, original);
        let open = (kind, ending);
        let registered = shared.tunnels.register(&shared.gate, admission, asks, open);
        self.registered = Some(registered);
    }

    /// Takes bytes from the budgets of the admission, waiting for a moment
    /// where replicas are settling what is left.
    pub(super) async fn spend(&mut self, way: Way, count: u64) -> pingora::Result<()> {
        while !self.is_settled(way, count) {
            tokio::time::sleep(SETTLING).await;
        }
        self.try_spend(way, count).map(|_| ())
    }

    fn is_settled(&self, way: Way, count: u64) -> bool {
        match &self.admission {
            Some(admission) if count > 0 && admission.limits_bytes(way) => {
                admission.bytes_left(way) != Budget::Later
            }
            _ => true,
        }
    }

    /// Takes bytes from the budgets of the admission. The part that uses one up
    /// passes whole, since half of it could look like all; the next does not.
    /// Says whether what is left is known.
    pub(super) fn try_spend(&mut self, way: Way, count: u64) -> pingora::Result<bool> {
        let Some(admission) = &self.admission else {
            return Ok(true);
        };
        if count == 0 || !admission.limits_bytes(way) {
            return Ok(true);
        }
        let left = admission.bytes_left(way);
        if left == Budget::UsedUp {
            self.cut = admission.budget_cut(way);
            return Error::e_explain(BYTE_BUDGET, "a budget of bytes is used up");
        }
        admission.bytes_passed(way, count);
        Ok(left != Budget::Later)
    }
}

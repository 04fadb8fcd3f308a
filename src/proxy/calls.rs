//! Calls from one agent to another: where a call may go, and what the agent
//! that is called may rely on.

use std::net::SocketAddr;
use std::sync::Arc;

use pingora::http::RequestHeader;
use pingora::proxy::Session;

use crate::config::Endpoint;
use crate::egress::{Ask, Authority, EgressRequest, Host, Scheme};
use crate::gate::{Admission, Cause, Denial};
use crate::identity::Principal;

use super::conn::Connection;
use super::exchange::Exchange;
use super::fields::{
    CALLER_FIELD, CALLER_TENANT_FIELD, ON_BEHALF_OF_FIELD, ON_BEHALF_OF_TENANT_FIELD, TOKEN_FIELD,
    brought_along, remove_alike,
};
use super::forward::Forward;
use super::look::Verdict;
use super::peers::{Call, Callee, PeerEndpoint, UnderWay};
use super::rpc::Towards;
use super::{dial, rpc};

/// The most addresses that one call is tried at.
const MOST_ATTEMPTS: usize = 8;

/// A call from one agent to another.
pub(super) struct Calling {
    pub(super) callee: Arc<Callee>,
    /// Where it may go, in the order in which it is tried.
    pub(super) at: Vec<(Arc<PeerEndpoint>, Option<SocketAddr>)>,
    /// How many bytes of the path do not go on.
    pub(super) prefix: usize,
    pub(super) on_behalf_of: Option<Arc<Principal>>,
    pub(super) under_way: Option<UnderWay>,
}

impl Calling {
    pub(super) fn endpoint(&self, attempt: usize) -> Option<&Arc<PeerEndpoint>> {
        self.at.get(attempt).map(|(endpoint, _)| endpoint)
    }
}

impl Forward {
    /// A request to another agent: who calls is in the certificate, and where
    /// `peers.require` says so in a token as well.
    pub(super) async fn look_at_call(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        connection: &Connection,
        (call, credential): (Option<Call>, Option<Vec<u8>>),
    ) -> Result<Verdict, Denial> {
        let Some(trail) = exchange.trail.as_mut() else {
            return Err(Denial::new(Cause::Internal));
        };
        trail.delegates();
        let gate = &self.shared.gate;
        let source = connection.client.map(|client| client.ip());
        let certified = connection.certified.as_ref();
        let who = gate
            .authenticate(certified, credential.as_deref(), None, source, trail)
            .await
            .map_err(|denial| match denial.cause {
                // It is the field of a proxy that is missing.
                Cause::NoCredential => denial,
                _ => denial.at_origin(),
            })?;
        let Some(call) = call else {
            return Err(
                Denial::new(Cause::NotFound).detail("neither the host nor the path names an agent")
            );
        };
        let authority = Authority {
            host: Host::Name(call.host),
            port: 443,
        };
        let brought = brought_along(&session.req_header().headers)
            .map_err(|denial| denial.at_origin().towards(&authority))?;
        let on_behalf_of = match brought {
            None => None,
            Some(credential) => {
                let whom = gate.on_behalf_of(&who, &credential, trail).await;
                Some(whom.map_err(|denial| denial.at_origin().towards(&authority))?)
            }
        };
        if self.has_passed_here(session) {
            return Err(Denial::new(Cause::Loop).towards(&authority));
        }
        self.check_length(session, &authority)?;
        let request = EgressRequest {
            authority,
            ask: Ask::Request {
                scheme: Scheme::Https,
                method: session.req_header().method.clone(),
                path: call.path,
            },
        };
        let towards = Towards::Behind(None);
        let admitting = (&mut *trail, &mut exchange.slot);
        let admission =
            rpc::admit(&self.shared, session, &who, &request, towards, admitting).await?;
        // Only who may call it learns whether it is there.
        let callee = self
            .shared
            .peers
            .as_ref()
            .and_then(|peers| peers.find(&call.name));
        let Some(callee) = callee else {
            trail.leads_nowhere();
            return Err(Denial::new(Cause::NotFound)
                .towards(&request.authority)
                .detail("peers.agents has no such agent"));
        };
        let mut at = Vec::new();
        for endpoint in callee.order(gate.clock().monotonic()) {
            if matches!(endpoint.at(), Endpoint::Unix(_)) {
                at.push((endpoint, None));
                continue;
            }
            // Names are looked up beforehand: one that nobody answers for must
            // not hold up a call that another endpoint can take.
            let found = dial::order(&endpoint.addresses(), self.shared.settings.ipv4_first);
            at.extend(found.iter().map(|one| (Arc::clone(&endpoint), Some(*one))));
        }
        at.truncate(MOST_ATTEMPTS);
        if at.is_empty() {
            return Err(Denial::new(Cause::NameNotFound)
                .towards(&request.authority)
                .detail("no endpoint's name was found yet"));
        }
        exchange.agent_host = Some(request.authority.host.to_string());
        let verdict = self.admitted(exchange, admission, request)?;
        exchange.addresses = at.iter().filter_map(|(_, address)| *address).collect();
        exchange.call = Some(Calling {
            callee,
            at,
            prefix: call.prefix,
            on_behalf_of,
            under_way: None,
        });
        Ok(verdict)
    }
}

/// Puts what the agent that is called may rely on in place of what the caller
/// has written there, and takes its name off the path.
pub(super) fn go_between(
    request: &mut RequestHeader,
    call: &Calling,
    admission: Option<&Admission>,
) -> pingora::Result<()> {
    remove_alike(
        request,
        &[
            CALLER_FIELD,
            CALLER_TENANT_FIELD,
            ON_BEHALF_OF_FIELD,
            ON_BEHALF_OF_TENANT_FIELD,
        ],
    );
    // The field itself is there only where its token was verified.
    let verified = request.headers.get(TOKEN_FIELD).cloned();
    remove_alike(request, &[TOKEN_FIELD]);
    if let Some(token) = verified {
        request.insert_header(TOKEN_FIELD, token)?;
    }
    if let Some(admission) = admission {
        let who = admission.who();
        request.insert_header(CALLER_FIELD, who.agent().as_str())?;
        if let Some(tenant) = who.tenant() {
            request.insert_header(CALLER_TENANT_FIELD, tenant.as_str())?;
        }
    }
    if let Some(whom) = &call.on_behalf_of {
        request.insert_header(ON_BEHALF_OF_FIELD, whom.agent().as_str())?;
        if let Some(tenant) = whom.tenant() {
            request.insert_header(ON_BEHALF_OF_TENANT_FIELD, tenant.as_str())?;
        }
    }
    if call.prefix > 0 {
        let path = String::from_utf8_lossy(request.raw_path()).into_owned();
        let rest = path.get(call.prefix..).unwrap_or_default();
        let path = match rest.starts_with('/') {
            true => rest.to_owned(),
            false => format!("/{rest}"),
        };
        request.set_raw_path(path.as_bytes())?;
    }
    Ok(())
}

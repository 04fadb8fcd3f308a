//! What an agent asks for, in the form that policy judges.

use http::Method;

use super::host::Authority;
use super::id::{AgentId, TenantId};
use super::path::RequestPath;
use super::pattern::Destination;
use super::target::Scheme;

/// One request, before anybody knows whether it may go.
#[derive(Clone, Debug)]
pub struct EgressRequest {
    /// Where to.
    pub authority: Authority,
    /// What is asked of it.
    pub ask: Ask,
}

/// What is asked of the destination.
#[derive(Clone, Debug)]
pub enum Ask {
    /// A tunnel, by `CONNECT`: method and path of what travels in it are not
    /// seen, unless it turns out to be clear text.
    Tunnel,
    /// A request whose inside is seen.
    Request {
        /// Over TLS or in clear text.
        scheme: Scheme,
        /// As it was sent.
        method: Method,
        /// Without the query.
        path: RequestPath,
    },
}

impl EgressRequest {
    /// The method as it stands in records: `CONNECT` for a tunnel.
    #[must_use]
    pub fn method(&self) -> &str {
        match &self.ask {
            Ask::Tunnel => "CONNECT",
            Ask::Request { method, .. } => method.as_str(),
        }
    }
}

/// Who asks, as far as policy needs to know it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The agent.
    pub agent: &'a AgentId,
    /// Its tenant, where the credential names one.
    pub tenant: Option<&'a TenantId>,
    /// The credential's own `allowed_destinations`: `None` leaves it to the
    /// policy alone, an empty list allows nothing, and what is listed must be
    /// allowed by the policy as well.
    pub destinations: Option<&'a [Destination]>,
    /// Whom the token is for (`aud`); `None` where the credential is no token,
    /// or where none is told.
    pub audiences: Option<&'a [String]>,
}

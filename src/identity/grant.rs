//! A request to the token endpoint: its form, what it asks for, and what of
//! that a service account may have (RFC 6749, 4.4).
//!
//! Who the client is has been settled elsewhere, and the exchange of a token
//! for another is `exchange`'s business.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::claims::{is_name, is_scope};
use super::delegation::{first_new_word, first_outside};
use super::issue::IssueRequest;
use super::service_account::{ServiceAccount, parse_lifetime};
use crate::egress::{AgentId, Destination, TenantId};

/// The most bytes that a request to the token endpoint may have: two tokens
/// and a long list of destinations.
pub const MAX_FORM_BYTES: usize = 64 * 1024;
/// The most parameters of one request.
const MAX_PARAMETERS: usize = 64;
/// The most destinations that one request may name.
const MAX_DESTINATIONS: usize = 1000;

/// `client_assertion_type` (RFC 7523, 2.2).
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// `grant_type` (RFC 8693, 2.1).
const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// The type of the tokens that are issued (RFC 8693, 3).
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// What the endpoint answers where it gives no token (RFC 6749, 5.2; RFC 8693,
/// 2.2.2). The text is for the client and says what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The request is not one.
    #[error("{0}")]
    InvalidRequest(String),
    /// The client is not known, or its credential is wrong.
    #[error("{0}")]
    InvalidClient(String),
    /// The client may not have this.
    #[error("{0}")]
    UnauthorizedClient(String),
    /// Another grant.
    #[error("grant_type: write client_credentials or {TOKEN_EXCHANGE}")]
    UnsupportedGrantType,
    /// More of a scope than may be had.
    #[error("{0}")]
    InvalidScope(String),
    /// A destination or an audience that may not be had.
    #[error("{0}")]
    InvalidTarget(String),
}

/// A request to the token endpoint, read and not yet granted.
#[derive(Debug)]
pub struct TokenRequest {
    /// What is to be given for the token.
    pub grant: Grant,
    /// Who the client says it is.
    pub client: Option<ClientCredential>,
    /// `agent_id`.
    pub agent: Option<AgentId>,
    /// `tenant`.
    pub tenant: Option<TenantId>,
    /// `allowed_destinations`.
    pub destinations: Option<Vec<Destination>>,
    /// `ttl`.
    pub ttl: Option<Duration>,
    /// `scope`.
    pub scope: Option<String>,
    /// `audience` or `resource`.
    pub audience: Option<String>,
}

/// What is given for the token.
pub enum Grant {
    /// The client's own credential (RFC 6749, 4.4).
    ClientCredentials,
    /// Another token (RFC 8693).
    Exchange {
        /// On whose behalf.
        subject: String,
        /// Who acts.
        actor: Option<String>,
    },
}

/// By what the client proves who it is. Its `Debug` shows nothing of it.
pub enum ClientCredential {
    /// A service account and its key (RFC 6749, 2.3.1).
    Key {
        /// The account.
        client: String,
        /// The key.
        key: String,
    },
    /// A signed assertion (RFC 7523, 2.2).
    Assertion {
        /// The account, where the request names it.
        client: Option<String>,
        /// The assertion.
        assertion: String,
    },
}

/// What the gateway sets for all tokens.
#[derive(Clone, Debug)]
pub struct Terms {
    /// `aud` of the gateway's own tokens.
    pub audience: String,
    /// How long a token lives where the request does not say it.
    pub default_ttl: Duration,
    /// The longest that may be asked for.
    pub max_ttl: Duration,
    /// The most actors of a chain.
    pub max_actors: usize,
}

impl GrantError {
    /// `error` of the answer.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidRequest(_) => "invalid_request",
            Self::InvalidClient(_) => "invalid_client",
            Self::UnauthorizedClient(_) => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::InvalidScope(_) => "invalid_scope",
            Self::InvalidTarget(_) => "invalid_target",
        }
    }

    pub(super) fn request(why: impl Into<String>) -> Self {
        Self::InvalidRequest(why.into())
    }
}

impl TokenRequest {
    /// Reads a request: the body, `application/x-www-form-urlencoded`, and the
    /// `Authorization` header where there is one.
    ///
    /// Parameters that are not known are passed over, and one without a value
    /// is as good as absent (RFC 6749, 3.2). One that stands twice is refused.
    ///
    /// # Errors
    /// [`GrantError`], which says what to write.
    pub fn parse(body: &[u8], authorization: Option<&str>) -> Result<Self, GrantError> {
        let form = Form::parse(body)?;
        let client = client(&form, authorization)?;
        let grant = match form.get("grant_type") {
            Some("client_credentials") => Grant::ClientCredentials,
            Some(TOKEN_EXCHANGE) => exchange_grant(&form)?,
            Some(_) => return Err(GrantError::UnsupportedGrantType),
            None => {
                return Err(GrantError::request(format!(
                    "grant_type is missing: write client_credentials or {TOKEN_EXCHANGE}"
                )));
            }
        };
        Ok(Self {
            grant,
            client,
            agent: form.read("agent_id", |raw| {
                AgentId::parse(raw).map_err(|error| error.to_string())
            })?,
            tenant: form.read("tenant", |raw| {
                TenantId::parse(raw).map_err(|error| error.to_string())
            })?,
            destinations: form.read("allowed_destinations", destinations)?,
            ttl: form.read("ttl", parse_lifetime)?,
            scope: form.get("scope").map(scope).transpose()?,
            audience: audience(&form)?,
        })
    }
}

impl Grant {
    /// Its name in figures and records.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ClientCredentials => "client_credentials",
            Self::Exchange { .. } => "token_exchange",
        }
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for ClientCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key { .. } => "Key",
            Self::Assertion { .. } => "Assertion",
        })
    }
}

impl ServiceAccount {
    /// What this account is granted of what it asks for, by its own
    /// credential. `jti` is 128 random bits.
    ///
    /// # Errors
    /// [`GrantError`], the first thing that it may not have.
    pub fn grant(
        &self,
        request: &TokenRequest,
        terms: &Terms,
        jti: u128,
    ) -> Result<IssueRequest, GrantError> {
        let bounds = &self.bounds;
        let agent = match (&request.agent, bounds.agents.only()) {
            (Some(agent), _) => agent.clone(),
            (None, Some(only)) => AgentId::parse(only)
                .map_err(|error| GrantError::request(format!("agent_id: {error}")))?,
            (None, None) => {
                let why = "agent_id is missing: write the agent that the token is for";
                return Err(GrantError::request(why));
            }
        };
        self.permits_agent(&agent)?;
        let only = bounds.tenants.as_ref().and_then(|tenants| tenants.only());
        let tenant = match (&request.tenant, only) {
            (Some(tenant), _) => Some(tenant.clone()),
            (None, Some(only)) => Some(
                TenantId::parse(only)
                    .map_err(|error| GrantError::request(format!("tenant: {error}")))?,
            ),
            (None, None) => None,
        };
        self.permits_tenant(tenant.as_ref())?;
        let destinations = match (&request.destinations, &bounds.destinations) {
            (None, bound) => bound.clone(),
            (Some(asked), bound) => {
                self.permits_destinations(asked, bound.as_deref())?;
                Some(asked.clone())
            }
        };
        if let Some(scope) = &request.scope {
            self.permits_scope(scope)?;
        }
        Ok(IssueRequest {
            agent,
            tenant,
            destinations,
            lifetime: self.lifetime(request.ttl, terms)?,
            audience: self.audience(request.audience.as_deref(), terms)?,
            jti,
            actors: Vec::new(),
            scope: request.scope.clone(),
            client: Some(self.id().to_string()),
        })
    }

    pub(super) fn permits_agent(&self, agent: &AgentId) -> Result<(), GrantError> {
        if self.bounds.agents.hold(agent.as_str()) {
            return Ok(());
        }
        Err(GrantError::UnauthorizedClient(format!(
            "agent_id: the service account may have no tokens for {agent}; its operator adds it to `agents`"
        )))
    }

    pub(super) fn permits_tenant(&self, tenant: Option<&TenantId>) -> Result<(), GrantError> {
        use super::service_account::Names;
        match (tenant, &self.bounds.tenants) {
            (None, None | Some(Names::Any)) => Ok(()),
            (None, Some(_)) => Err(GrantError::request(
                "tenant is missing: the service account is for tenants, and more than one fits",
            )),
            (Some(tenant), Some(tenants)) if tenants.hold(tenant.as_str()) => Ok(()),
            (Some(tenant), _) => Err(GrantError::UnauthorizedClient(format!(
                "tenant: the service account may have no tokens for {tenant}; its operator adds it to `tenants`"
            ))),
        }
    }

    fn permits_destinations(
        &self,
        asked: &[Destination],
        bound: Option<&[Destination]>,
    ) -> Result<(), GrantError> {
        match bound.and_then(|bound| first_outside(bound, asked)) {
            None => Ok(()),
            Some(outside) => Err(GrantError::InvalidTarget(format!(
                "allowed_destinations: {outside} is not within the `destinations` of the service account"
            ))),
        }
    }

    pub(super) fn permits_scope(&self, scope: &str) -> Result<(), GrantError> {
        match first_new_word(self.bounds.scope.as_deref(), scope) {
            None => Ok(()),
            Some(word) => Err(GrantError::InvalidScope(format!(
                "scope: {word} is not among the `scopes` of the service account"
            ))),
        }
    }

    pub(super) fn lifetime(
        &self,
        asked: Option<Duration>,
        terms: &Terms,
    ) -> Result<Duration, GrantError> {
        let most = self.bounds.max_ttl.unwrap_or(terms.max_ttl);
        lifetime(asked, terms, most.min(terms.max_ttl))
    }

    pub(super) fn audience(
        &self,
        asked: Option<&str>,
        terms: &Terms,
    ) -> Result<Option<String>, GrantError> {
        let Some(asked) = asked.filter(|asked| *asked != terms.audience) else {
            return Ok(None);
        };
        if self.bounds.audiences.iter().any(|known| known == asked) {
            return Ok(Some(asked.to_owned()));
        }
        Err(GrantError::InvalidTarget(format!(
            "audience: write {}, or leave it out; the service account may have no other but its `audiences`",
            terms.audience
        )))
    }
}

/// A lifetime that was asked for, held to the most there is.
pub(super) fn lifetime(
    asked: Option<Duration>,
    terms: &Terms,
    most: Duration,
) -> Result<Duration, GrantError> {
    match asked {
        None => Ok(terms.default_ttl.min(most)),
        Some(asked) if asked <= most => Ok(asked),
        Some(_) => Err(GrantError::request(format!(
            "ttl: write at most {}",
            most.as_secs()
        ))),
    }
}

/// What a client asks about one token: to revoke it (RFC 7009, 2.1) or whether
/// it is good (RFC 7662, 2.1).
pub struct TokenQuery {
    /// The token.
    pub token: String,
    /// Who the client says it is.
    pub client: Option<ClientCredential>,
}

impl TokenQuery {
    /// Reads a request, as [`TokenRequest::parse`] does. A hint of the token's
    /// type changes nothing.
    ///
    /// # Errors
    /// [`GrantError`], which says what to write.
    pub fn parse(body: &[u8], authorization: Option<&str>) -> Result<Self, GrantError> {
        let form = Form::parse(body)?;
        let client = client(&form, authorization)?;
        let token = form
            .get("token")
            .ok_or_else(|| GrantError::request("there is no token: send the form token=TOKEN"))?;
        Ok(Self {
            token: token.to_owned(),
            client,
        })
    }
}

/// The parameters of a body.
struct Form(Vec<(String, String)>);

impl Form {
    fn parse(body: &[u8]) -> Result<Self, GrantError> {
        if body.len() > MAX_FORM_BYTES {
            return Err(GrantError::request(format!(
                "the request has more than {MAX_FORM_BYTES} bytes"
            )));
        }
        let text = std::str::from_utf8(body)
            .map_err(|_| GrantError::request("the body is not a form of UTF-8"))?;
        let mut parameters: Vec<(String, String)> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (decode(name), decode(value)) else {
                return Err(GrantError::request(
                    "the body is not application/x-www-form-urlencoded of UTF-8",
                ));
            };
            if value.is_empty() {
                continue;
            }
            if parameters.iter().any(|(known, _)| *known == name) {
                let why = format!("{} stands twice: write it once", shown(&name));
                return Err(GrantError::request(why));
            }
            if parameters.len() == MAX_PARAMETERS {
                return Err(GrantError::request("there are more than 64 parameters"));
            }
            parameters.push((name, value));
        }
        Ok(Self(parameters))
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    fn read<T>(
        &self,
        name: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, GrantError> {
        let read =
            |raw: &str| read(raw).map_err(|error| GrantError::request(format!("{name}: {error}")));
        self.get(name).map(read).transpose()
    }
}

/// One name or value of a form: `+` is a blank, and what is percent-encoded
/// must be UTF-8 in the end.
fn decode(raw: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// A parameter's name as it may stand in an answer (RFC 6749, 5.2).
fn shown(name: &str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || "_-.".contains(*c);
    name.chars().filter(plain).take(40).collect()
}

/// Who the client says it is. More than one way is refused (RFC 6749, 2.3).
fn client(
    form: &Form,
    authorization: Option<&str>,
) -> Result<Option<ClientCredential>, GrantError> {
    let named = form.get("client_id").map(str::to_owned);
    let basic = authorization.map(basic).transpose()?;
    let assertion = match (
        form.get("client_assertion"),
        form.get("client_assertion_type"),
    ) {
        (None, None) => None,
        (Some(assertion), Some(JWT_BEARER)) => Some(assertion.to_owned()),
        _ => {
            let why = format!("write client_assertion, and client_assertion_type={JWT_BEARER}");
            return Err(GrantError::request(why));
        }
    };
    match (basic, form.get("client_secret"), assertion) {
        (None, None, None) if named.is_some() => Err(GrantError::InvalidClient(
            "the client shows no key: write client_secret, or send it by Basic".to_owned(),
        )),
        (None, None, None) => Ok(None),
        (Some((client, key)), None, None) => {
            if named.is_some_and(|named| named != client) {
                let why = "client_id differs from the user name of Basic: write one";
                return Err(GrantError::request(why));
            }
            Ok(Some(ClientCredential::Key { client, key }))
        }
        (None, Some(key), None) => Ok(Some(ClientCredential::Key {
            client: named.ok_or_else(|| GrantError::request("client_id is missing"))?,
            key: key.to_owned(),
        })),
        (None, None, Some(assertion)) => Ok(Some(ClientCredential::Assertion {
            client: named,
            assertion,
        })),
        _ => Err(GrantError::request(
            "the client shows more than one credential: write one of Basic, client_secret and client_assertion",
        )),
    }
}

/// User and password, each encoded as in a form (RFC 6749, 2.3.1).
fn basic(field: &str) -> Result<(String, String), GrantError> {
    let read = || {
        let (scheme, rest) = field.split_once(' ')?;
        scheme.eq_ignore_ascii_case("basic").then_some(())?;
        let pair = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
        let (user, password) = pair.split_once(':')?;
        Some((decode(user)?, decode(password)?))
    };
    read().ok_or_else(|| {
        GrantError::InvalidClient(
            "Authorization: write Basic with the service account and its key".to_owned(),
        )
    })
}

fn exchange_grant(form: &Form) -> Result<Grant, GrantError> {
    let token = |name: &str, kind: &str| {
        let known = |kind: &str| kind == ACCESS_TOKEN || kind == JWT;
        match (form.get(name), form.get(kind)) {
            (None, None) => Ok(None),
            (Some(token), Some(kind)) if known(kind) => Ok(Some(token.to_owned())),
            _ => Err(GrantError::request(format!(
                "write {name}, and {kind}={ACCESS_TOKEN} or {JWT}"
            ))),
        }
    };
    if form
        .get("requested_token_type")
        .is_some_and(|kind| kind != ACCESS_TOKEN && kind != JWT)
    {
        let why = format!("requested_token_type: write {ACCESS_TOKEN}, or leave it out");
        return Err(GrantError::request(why));
    }
    let Some(subject) = token("subject_token", "subject_token_type")? else {
        let why = format!("write subject_token, and subject_token_type={ACCESS_TOKEN}");
        return Err(GrantError::request(why));
    };
    Ok(Grant::Exchange {
        subject,
        actor: token("actor_token", "actor_token_type")?,
    })
}

/// Entries with blanks or commas between them.
fn destinations(raw: &str) -> Result<Vec<Destination>, String> {
    let mut list = Vec::new();
    for entry in raw.split([' ', ',']).filter(|entry| !entry.is_empty()) {
        if list.len() == MAX_DESTINATIONS {
            return Err("write at most 1000 destinations".to_owned());
        }
        list.push(Destination::parse(entry).map_err(|error| format!("{entry:?}: {error}"))?);
    }
    if list.is_empty() {
        return Err("write at least one host or range".to_owned());
    }
    Ok(list)
}

fn scope(raw: &str) -> Result<String, GrantError> {
    if is_scope(raw) {
        return Ok(raw.to_owned());
    }
    let why =
        "scope: write words of printable ASCII with one blank between two, 1024 bytes at most";
    Err(GrantError::InvalidScope(why.to_owned()))
}

/// `audience` (RFC 8693, 2.1) or `resource` (RFC 8707), which a token has one of.
fn audience(form: &Form) -> Result<Option<String>, GrantError> {
    let target = |why: &str| GrantError::InvalidTarget(why.to_owned());
    let chosen = match (form.get("audience"), form.get("resource")) {
        (Some(audience), Some(resource)) if audience != resource => {
            return Err(target("audience and resource differ: write one of them"));
        }
        (audience, resource) => audience.or(resource),
    };
    match chosen {
        Some(chosen) if !is_name(chosen) => Err(target(
            "audience: write 1 to 256 bytes without control characters",
        )),
        chosen => Ok(chosen.map(str::to_owned)),
    }
}

//! The token endpoint (RFC 6749, RFC 8693) and its description (RFC 8414), on
//! the admin listener: who the client is, how often it may ask, and the record
//! of what it got. What it may have is `identity`'s judgement.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::adapters::figures::Figures;
use crate::adapters::host;
use crate::adapters::records::AuditLog;
use crate::adapters::service_accounts::AccountsFile;
use crate::audit::{AuditEvent, AuditRecord};
use crate::egress::{Authority, RequestId};
use crate::gate::ports::{AuditSink, Clock, RevocationSource, SinkState};
use crate::identity::{
    ACCESS_TOKEN, CachedVerifier, ClientCredential, Descent, Grant, GrantError, IssueRequest,
    KeyRefused, MAX_FORM_BYTES, Principal, ServiceAccount, SigningKey, Terms, TokenIssuer,
    TokenRequest, UsedAssertions, claimed_account, exchange, is_account_id,
};
use crate::limit::{ConcurrencyLimit, Quota, RateLimiter, Throttled, source_of};

/// Where tokens are had.
pub const TOKEN_PATH: &str = "/oauth/token";
/// The revocation endpoint (RFC 7009), which `admin::revocation` serves.
pub const REVOCATION_PATH: &str = "/oauth/revoke";
/// The introspection endpoint (RFC 7662), which `admin::revocation` serves.
pub const INTROSPECTION_PATH: &str = "/oauth/introspect";
/// The same under the name that older clients use.
const TOKEN_ALIAS: &str = "/v1/token";
/// Where the endpoint is described (RFC 8414, 3).
const METADATA_PATH: &str = "/.well-known/oauth-authorization-server";

/// How often one client at one source may ask, and one source altogether, in
/// units; a wrong credential costs [`WRONG`] more. So there are three wrong
/// ones at once and then one in two seconds, and ten requests a second.
const ATTEMPTS_OF_CLIENT: (u64, u64) = (10, 60);
const ATTEMPTS_OF_SOURCE: (u64, u64) = (50, 400);
const WRONG: u64 = 19;
/// How many clients and sources are remembered.
const REMEMBERED: usize = 20_000;
/// How many keys are hashed at once: 19 MiB and a processor for each.
const HASHES: usize = 2;
/// How many requests may wait for that, how many of them from one source, and
/// for how long. A wrong key is charged only when it has been hashed, so one
/// source that sends many at once is kept from taking all places by this.
const WAITING: usize = 64;
const WAITING_OF_SOURCE: NonZeroU32 = NonZeroU32::new(32).expect("not zero");
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How many assertions are remembered until they expire.
const ASSERTIONS: usize = 100_000;

/// Issues tokens to service accounts, and tokens for tokens.
pub struct TokenEndpoint {
    accounts: Arc<AccountsFile>,
    refused: Mutex<Option<String>>,
    signer: RwLock<Option<Arc<TokenIssuer>>>,
    parts: EndpointParts,
    used: UsedAssertions,
    clients: RateLimiter<(String, Option<IpAddr>)>,
    sources: RateLimiter<Option<IpAddr>>,
    issued: Mutex<HashMap<Arc<str>, Arc<RateLimiter<()>>>>,
    hashing: Arc<Semaphore>,
    waiting: WaitingPlaces,
}

/// Who waits for a hash, or has it made.
struct WaitingPlaces {
    all: Arc<Semaphore>,
    of: ConcurrencyLimit<Option<IpAddr>>,
}

/// What the endpoint works with.
pub struct EndpointParts {
    /// The gateway's `iss`.
    pub issuer: String,
    /// What holds for all tokens.
    pub terms: Terms,
    /// How far clocks may differ.
    pub leeway: Duration,
    /// The URL of the listener as clients see it, where it is configured.
    pub url: Option<String>,
    /// Where the listener is bound.
    pub address: Option<SocketAddr>,
    /// Verifies tokens that are exchanged.
    pub tokens: Arc<CachedVerifier>,
    /// What of them has been revoked.
    pub revocations: Arc<dyn RevocationSource>,
    /// Takes a record of each token.
    pub log: Arc<AuditLog>,
    /// Counts them.
    pub figures: Arc<Figures>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// A client that has shown what it is, and from where it asks.
pub struct Client {
    /// The service account.
    pub account: Arc<ServiceAccount>,
}

/// Why there is no token.
#[derive(Debug)]
pub enum Refusal {
    /// The request, the client, or what it asks for; with what the operator
    /// may know beside what the client is told.
    Grant(GrantError, Option<String>),
    /// Too often.
    Throttled(Throttled),
    /// The processors or the audit log are behind.
    Busy(&'static str),
    /// There is no key to sign with, or it does not sign.
    Unable(String),
}

impl From<GrantError> for Refusal {
    fn from(error: GrantError) -> Self {
        Self::Grant(error, None)
    }
}

/// A token that was issued.
struct Issued {
    token: String,
    request: IssueRequest,
    exchanged: bool,
    descent: Descent,
}

impl TokenEndpoint {
    /// An endpoint over these accounts, which signs nothing before
    /// [`TokenEndpoint::sign_with`].
    #[must_use]
    pub fn new(accounts: Arc<AccountsFile>, parts: EndpointParts) -> Self {
        Self {
            accounts,
            refused: Mutex::default(),
            signer: RwLock::new(None),
            used: UsedAssertions::new(ASSERTIONS),
            clients: limiter(ATTEMPTS_OF_CLIENT),
            sources: limiter(ATTEMPTS_OF_SOURCE),
            issued: Mutex::default(),
            hashing: Arc::new(Semaphore::new(HASHES)),
            waiting: WaitingPlaces::default(),
            parts,
        }
    }

    /// Signs with this key from now on.
    pub fn sign_with(&self, key: SigningKey) {
        let issuer = TokenIssuer::new(key, &self.parts.issuer, &self.parts.terms.audience);
        *self.signer.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(issuer));
    }

    /// Follows the file of accounts, for ever.
    ///
    /// # Errors
    /// Where it cannot be watched.
    pub fn follow(self: Arc<Self>) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
        let accounts = Arc::clone(&self.accounts);
        accounts.follow(move |outcome| {
            self.parts.figures.accounts_read(outcome.is_ok());
            match &outcome {
                Ok(accounts) => tracing::info!(accounts, "the service accounts are in force"),
                Err(error) => tracing::error!(
                    %error,
                    "the new service accounts are refused; the old ones stay in force"
                ),
            }
            *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = outcome.err();
        })
    }

    /// How many accounts are in force, and why the last reading was refused.
    #[must_use]
    pub fn state(&self) -> (usize, Option<String>) {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        (self.accounts.current().len(), refused.clone())
    }

    /// The pages.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route(TOKEN_PATH, post(token))
            .route(TOKEN_ALIAS, post(token))
            .route(METADATA_PATH, get(metadata))
            .with_state(self)
    }

    /// Answers one request: `Ok` is a token, and either way the record has
    /// been pushed.
    async fn answer(
        &self,
        body: &[u8],
        authorization: Option<&str>,
        source: Option<SocketAddr>,
    ) -> Result<Issued, Refusal> {
        let read = TokenRequest::parse(body, authorization);
        let grant = read
            .as_ref()
            .map_or("unknown", |request| request.grant.name());
        let started = self.parts.clock.monotonic();
        let mut account = None;
        let answer = match read {
            Ok(request) => self.decide(&request, source, &mut account).await,
            Err(error) => self.source(source).and(Err(Refusal::from(error))),
        };
        let outcome = answer.as_ref().map_or_else(Refusal::code, |_| "issued");
        self.parts.figures.token(grant, outcome);
        // A flood is counted and not written down line by line.
        if !matches!(answer, Err(Refusal::Throttled(_))) {
            let took = self.parts.clock.monotonic().saturating_sub(started);
            let request = (TOKEN_PATH, grant);
            let record = self.record(answer.as_ref(), request, account, source, took);
            self.parts.log.push(record);
        }
        answer
    }

    async fn decide(
        &self,
        request: &TokenRequest,
        source: Option<SocketAddr>,
        account: &mut Option<Arc<ServiceAccount>>,
    ) -> Result<Issued, Refusal> {
        self.source(source)?;
        self.room().await?;
        if let Some(credential) = &request.client {
            *account = Some(self.authenticate(credential, source).await?.account);
        }
        let (now, jti) = (self.now(), host::random_bits());
        let terms = &self.parts.terms;
        let (granted, descent, exchanged) = match &request.grant {
            Grant::ClientCredentials => {
                let Some(account) = account else {
                    let why =
                        "the client shows no key: send the service account and its key by Basic";
                    return Err(GrantError::InvalidClient(why.to_owned()).into());
                };
                (
                    account.grant(request, terms, jti)?,
                    Descent::none(now),
                    false,
                )
            }
            Grant::Exchange { subject, actor } => {
                let subject = self.verify("subject_token", subject, now)?;
                let actor = match actor {
                    Some(actor) => Some(self.verify("actor_token", actor, now)?),
                    None => None,
                };
                let (granted, descent) = exchange(
                    account.as_deref(),
                    request,
                    &subject,
                    actor.as_deref(),
                    terms,
                    (now, jti),
                )?;
                (granted, descent, true)
            }
        };
        if let Some(account) = account {
            self.rate(account)?;
        }
        let signer = self
            .signer
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let signer = signer.ok_or_else(|| Refusal::Unable("there is no signing key".to_owned()))?;
        let token = signer.issue_descending(&granted, now, &descent);
        let token = token.map_err(|error| match error {
            crate::identity::IssueError::Signing | crate::identity::IssueError::Date => {
                Refusal::Unable(error.to_string())
            }
            error => GrantError::InvalidRequest(error.to_string()).into(),
        })?;
        Ok(Issued {
            token,
            request: granted,
            exchanged,
            descent,
        })
    }

    /// Who the client is that asks at another page, this one: throttled as at
    /// the token endpoint, together with it, and a refusal leaves the same
    /// record and is counted, as that of `asked`, beside refusals of tokens.
    ///
    /// # Errors
    /// As where a token is asked for.
    pub async fn client(
        &self,
        credential: &ClientCredential,
        source: Option<SocketAddr>,
        (path, asked): (&'static str, &'static str),
    ) -> Result<Client, Refusal> {
        let started = self.parts.clock.monotonic();
        let shown = async {
            self.source(source)?;
            self.room().await?;
            self.authenticate(credential, source).await
        };
        let refusal = match shown.await {
            Ok(client) => return Ok(client),
            Err(refusal) => refusal,
        };
        self.parts.figures.token(asked, refusal.code());
        if matches!(refusal, Refusal::Throttled(_)) {
            return Err(refusal);
        }
        let took = self.parts.clock.monotonic().saturating_sub(started);
        let record = self.record(Err(&refusal), (path, asked), None, source, took);
        self.parts.log.push(record);
        Err(refusal)
    }

    /// Who the client is, by what it shows. Throttled for each client at each
    /// source; a wrong credential costs more than a right one.
    ///
    /// # Errors
    /// [`Refusal`]: that it is not known, that it asks too often, or that too
    /// many do.
    async fn authenticate(
        &self,
        credential: &ClientCredential,
        source: Option<SocketAddr>,
    ) -> Result<Client, Refusal> {
        let claimed = match credential {
            ClientCredential::Key { client, .. } => Some(client.clone()),
            ClientCredential::Assertion { assertion, .. } => claimed_account(assertion),
        };
        // What is no name is one client, whatever it is.
        let claimed = claimed
            .filter(|name| is_account_id(name))
            .unwrap_or_default();
        let from = counted(source);
        let who = (claimed.clone(), from);
        let now = self.parts.clock.monotonic();
        self.clients.check(&who, now).map_err(Refusal::Throttled)?;
        let checked = match credential {
            ClientCredential::Key { key, .. } => self.check_key(&claimed, key, from).await,
            ClientCredential::Assertion { client, assertion } => {
                self.check_assertion(&claimed, client.as_deref(), assertion)
            }
        };
        if matches!(checked, Err(Refusal::Grant(..))) {
            let now = self.parts.clock.monotonic();
            self.clients.charge_used(&who, WRONG, now);
            self.sources.charge_used(&from, WRONG, now);
        }
        checked.map(|account| Client { account })
    }

    /// Off the threads that serve, so many at once, since a hash is dear.
    async fn check_key(
        &self,
        client: &str,
        key: &str,
        from: Option<IpAddr>,
    ) -> Result<Arc<ServiceAccount>, Refusal> {
        const BUSY: Refusal = Refusal::Busy("too many clients show their keys at once");
        let check = self.accounts.current().check(client, key, self.now());
        let _place = self.waiting.enter(from).ok_or(BUSY)?;
        let turn = Arc::clone(&self.hashing).acquire_owned();
        let Ok(Ok(turn)) = tokio::time::timeout(LONGEST_WAIT, turn).await else {
            return Err(BUSY);
        };
        // The turn goes with the work: a client that leaves does not free it.
        let checked = tokio::task::spawn_blocking(move || {
            let checked = check.run();
            drop(turn);
            checked
        });
        match checked.await {
            Ok(Ok(account)) => Ok(account),
            Ok(Err(KeyRefused::NoMemory)) => Err(BUSY),
            Ok(Err(refused)) => Err(wrong_client(client, refused)),
            Err(error) => Err(Refusal::Unable(error.to_string())),
        }
    }

    fn check_assertion(
        &self,
        claimed: &str,
        client: Option<&str>,
        assertion: &str,
    ) -> Result<Arc<ServiceAccount>, Refusal> {
        if client.is_some_and(|client| client != claimed) {
            return Err(wrong_client(
                claimed,
                "client_id differs from the assertion's iss",
            ));
        }
        let accounts = self.accounts.current();
        let Some(account) = accounts.get(claimed) else {
            return Err(wrong_client(claimed, KeyRefused::UnknownAccount));
        };
        let audiences = self.audiences();
        self.used
            .accept(
                account,
                assertion,
                &audiences,
                self.parts.leeway,
                self.now(),
            )
            .map_err(|refused| match refused {
                crate::identity::AssertionRefused::Full => {
                    Refusal::Busy("too many assertions are in use at once")
                }
                refused => wrong_client(claimed, refused),
            })?;
        if account.is_revoked() {
            return Err(wrong_client(claimed, KeyRefused::Revoked));
        }
        Ok(Arc::clone(account))
    }

    /// What an assertion may name as its audience (RFC 7523, 3): the issuer,
    /// or the endpoint by any of its URLs. Never what the request says of
    /// itself.
    fn audiences(&self) -> Vec<String> {
        let address = self
            .parts
            .address
            .map(|address| format!("http://{address}"));
        let bases = self.parts.url.iter().chain(&address);
        let mut audiences = vec![self.parts.issuer.clone()];
        for base in bases {
            audiences.push(base.clone());
            for path in [TOKEN_PATH, TOKEN_ALIAS, REVOCATION_PATH, INTROSPECTION_PATH] {
                audiences.push(format!("{base}{path}"));
            }
        }
        audiences
    }

    fn verify(&self, name: &str, token: &str, now: u64) -> Result<Arc<Principal>, Refusal> {
        match self.parts.tokens.verify(token, now) {
            Ok((who, _)) => match self.parts.revocations.current().revokes(&who, now) {
                None => Ok(who),
                Some(kind) => Err(Refusal::Grant(
                    GrantError::InvalidRequest(format!("{name}: The token has been revoked.")),
                    Some(format!("{name}: revoked by {kind}")),
                )),
            },
            Err(error) => Err(Refusal::Grant(
                GrantError::InvalidRequest(format!("{name}: {}", error.public())),
                Some(format!("{name}: {error}")),
            )),
        }
    }

    /// One request of this source.
    fn source(&self, source: Option<SocketAddr>) -> Result<(), Refusal> {
        let from = counted(source);
        let now = self.parts.clock.monotonic();
        self.sources
            .check(&from, now)
            .map(drop)
            .map_err(Refusal::Throttled)
    }

    /// One token of this account.
    fn rate(&self, account: &ServiceAccount) -> Result<(), Refusal> {
        let Some(quota) = account.rate() else {
            return Ok(());
        };
        let limiter = {
            let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
            let known = issued
                .get(account.id())
                .filter(|known| known.quota() == quota);
            match known {
                Some(known) => Arc::clone(known),
                None => {
                    let new = Arc::new(RateLimiter::new(quota, 1));
                    issued.insert(Arc::clone(account.id()), Arc::clone(&new));
                    new
                }
            }
        };
        let now = self.parts.clock.monotonic();
        limiter
            .check(&(), now)
            .map(drop)
            .map_err(Refusal::Throttled)
    }

    /// A token is issued only where its record has a place.
    async fn room(&self) -> Result<(), Refusal> {
        const GONE: Refusal = Refusal::Busy("the audit log takes no records");
        loop {
            match self.parts.log.ready() {
                SinkState::Ready => return Ok(()),
                SinkState::Full => return Err(GONE),
                SinkState::Wait => {
                    let wait = tokio::time::timeout(LONGEST_WAIT, self.parts.log.wait());
                    wait.await.map_err(|_| GONE)?;
                }
            }
        }
    }

    fn now(&self) -> u64 {
        let since = self
            .parts
            .clock
            .wall()
            .duration_since(SystemTime::UNIX_EPOCH);
        since.unwrap_or_default().as_secs()
    }

    fn record(
        &self,
        answer: Result<&Issued, &Refusal>,
        (path, grant): (&'static str, &'static str),
        account: Option<Arc<ServiceAccount>>,
        source: Option<SocketAddr>,
        took: Duration,
    ) -> AuditRecord {
        let issued = answer.ok().map(|issued| &issued.request);
        let refusal = answer.err();
        AuditRecord {
            event: match refusal {
                None => AuditEvent::TokenIssued,
                Some(_) => AuditEvent::TokenRefused,
            },
            agent_id: issued.map(|issued| issued.agent.clone()),
            tenant: issued.and_then(|issued| issued.tenant.clone()),
            token_jti: issued.map(|issued| RequestId::from_bits(issued.jti).as_str().into()),
            act: issued
                .filter(|issued| !issued.actors.is_empty())
                .map(|issued| issued.actors.clone().into()),
            service_account: account.map(|account| Arc::clone(account.id())),
            exchanged_from: answer
                .as_ref()
                .ok()
                .map(|issued| issued.descent.ancestors())
                .filter(|ancestors| !ancestors.is_empty())
                .map(Into::into),
            token_ttl_s: issued.map(|issued| issued.lifetime.as_secs()),
            client: source,
            method: "POST".into(),
            path: Some(path.into()),
            action_allowed: refusal.is_none(),
            reason: refusal.map_or("ok", Refusal::code),
            detail: Some(match refusal {
                None => grant.into(),
                Some(refusal) => format!("{grant}: {}", refusal.detail()).into(),
            }),
            status: Some(refusal.map_or(200, |refusal| refusal.status().as_u16())),
            duration_ms: took,
            ..AuditRecord::begun(
                self.parts.clock.wall(),
                RequestId::from_bits(host::random_bits()),
                "admin".into(),
            )
        }
    }

    /// The description of this endpoint (RFC 8414, 2).
    fn metadata(&self, headers: &HeaderMap) -> serde_json::Value {
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .and_then(|host| Authority::parse_with_default_port(host, 80).ok());
        let base = match (&self.parts.url, host, self.parts.address) {
            (Some(url), ..) => url.clone(),
            (None, Some(host), _) => format!("http://{host}"),
            (None, None, Some(address)) => format!("http://{address}"),
            (None, None, None) => "http://localhost".to_owned(),
        };
        let issuer = if self.parts.issuer.contains("://") {
            &self.parts.issuer
        } else {
            &base
        };
        json!({
            "issuer": issuer,
            "token_endpoint": format!("{base}{TOKEN_PATH}"),
            "revocation_endpoint": format!("{base}{REVOCATION_PATH}"),
            "introspection_endpoint": format!("{base}{INTROSPECTION_PATH}"),
            "jwks_uri": format!("{base}/.well-known/jwks.json"),
            "response_types_supported": [],
            "grant_types_supported": [
                "client_credentials",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ],
            "token_endpoint_auth_methods_supported": [
                "client_secret_basic", "client_secret_post", "private_key_jwt", "none",
            ],
            "token_endpoint_auth_signing_alg_values_supported": [
                "EdDSA", "ES256", "RS256", "RS384", "RS512", "PS256",
            ],
        })
    }
}

impl Default for WaitingPlaces {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(WAITING)),
            of: ConcurrencyLimit::new(WAITING),
        }
    }
}

impl WaitingPlaces {
    /// A place until what is given is dropped; `None` where there is none, or
    /// none for this source.
    fn enter(&self, from: Option<IpAddr>) -> Option<impl Sized + use<>> {
        let of_source = self.of.enter(&from, WAITING_OF_SOURCE).ok()?;
        let place = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some((of_source, place))
    }
}

impl Refusal {
    /// `error` of the answer (RFC 6749, 5.2).
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Grant(error, _) => error.code(),
            Self::Throttled(_) => "slow_down",
            Self::Busy(_) => "temporarily_unavailable",
            Self::Unable(_) => "server_error",
        }
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Grant(GrantError::InvalidClient(_), _) => StatusCode::UNAUTHORIZED,
            Self::Grant(..) => StatusCode::BAD_REQUEST,
            Self::Throttled(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unable(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// For the client: what to write.
    fn description(&self) -> String {
        match self {
            Self::Grant(error, _) => error.to_string(),
            Self::Throttled(throttled) => format!(
                "too many requests: ask again in {} s",
                seconds(throttled.retry_after)
            ),
            Self::Busy(_) => "the gateway is busy: ask again in a moment".to_owned(),
            Self::Unable(_) => "the gateway cannot sign tokens: tell its operator".to_owned(),
        }
    }

    /// For the operator.
    fn detail(&self) -> String {
        match self {
            Self::Grant(_, Some(detail)) => detail.clone(),
            Self::Busy(why) => (*why).to_owned(),
            Self::Unable(why) => why.clone(),
            Self::Grant(_, None) | Self::Throttled(_) => self.description(),
        }
    }

    /// What the operator is told stays out of it.
    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Throttled(throttled) => Some(seconds(throttled.retry_after)),
            Self::Busy(_) => Some(1),
            Self::Grant(..) | Self::Unable(_) => None,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        // The characters that RFC 6749, 5.2 lets stand in a description.
        let description: String = self
            .description()
            .chars()
            .map(|c| match c {
                '"' | '\\' => '\'',
                ' '..='~' => c,
                _ => '?',
            })
            .collect();
        let body = json!({ "error": self.code(), "error_description": description });
        let mut response = answer_of(self.status(), &body);
        let headers = response.headers_mut();
        if self.status() == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"agentport\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl IntoResponse for Issued {
    fn into_response(self) -> Response {
        let mut body = json!({
            "access_token": self.token,
            "token_type": "Bearer",
            "expires_in": self.request.lifetime.as_secs(),
        });
        if let Some(scope) = self.request.scope {
            body["scope"] = scope.into();
        }
        if self.exchanged {
            body["issued_token_type"] = ACCESS_TOKEN.into();
        }
        answer_of(StatusCode::OK, &body)
    }
}

async fn token(State(endpoint): State<Arc<TokenEndpoint>>, request: Request<Body>) -> Response {
    let source = request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .map(|source| source.0);
    let (head, body) = request.into_parts();
    let answer = match credentials(&head.headers) {
        Ok(authorization) => {
            // It has been read: `serve` bounds its length and its time.
            match axum::body::to_bytes(body, MAX_FORM_BYTES).await {
                Ok(body) => endpoint.answer(&body, authorization, source).await,
                Err(_) => Err(wrong_request(
                    "the request's body is too long, or broke off",
                )),
            }
        }
        Err(refusal) => Err(refusal),
    };
    answer.map_or_else(Refusal::into_response, Issued::into_response)
}

async fn metadata(State(endpoint): State<Arc<TokenEndpoint>>, headers: HeaderMap) -> Response {
    answer_of(StatusCode::OK, &endpoint.metadata(&headers))
}

/// `Authorization`, of a request that is a form.
pub(super) fn credentials(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    const FORM: &str = "application/x-www-form-urlencoded";
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .and_then(|kind| kind.split(';').next());
    if !kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case(FORM)) {
        return Err(wrong_request(
            "write Content-Type: application/x-www-form-urlencoded",
        ));
    }
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    match (fields.next(), fields.next()) {
        (None, _) => Ok(None),
        (Some(field), None) => field
            .to_str()
            .map(Some)
            .map_err(|_| wrong_request("Authorization is not ASCII")),
        (Some(_), Some(_)) => Err(wrong_request("Authorization stands twice: write it once")),
    }
}

pub(super) fn wrong_request(why: &str) -> Refusal {
    GrantError::InvalidRequest(why.to_owned()).into()
}

/// All that is wrong with a client looks alike from outside, but that a key
/// which was right has ended.
fn wrong_client(client: &str, why: impl std::fmt::Display) -> Refusal {
    let why = why.to_string();
    let public = if why == KeyRefused::Expired.to_string() {
        "the key has expired: its operator makes another by agentport service-account add-key"
    } else {
        "the service account is not known here, or its key is wrong or revoked"
    };
    Refusal::Grant(
        GrantError::InvalidClient(public.to_owned()),
        Some(format!("client {client:?}: {why}")),
    )
}

fn answer_of(status: StatusCode, body: &serde_json::Value) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
        (header::PRAGMA, "no-cache"),
    ];
    (status, headers, format!("{body}\n")).into_response()
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// What of a source is counted as one; `None` is a Unix socket.
pub(super) fn counted(source: Option<SocketAddr>) -> Option<IpAddr> {
    source.map(|source| source_of(source.ip()))
}

/// Holds every key to so many units a second, and so many at once.
pub(super) fn limiter<K: std::hash::Hash + Eq + Clone>(
    (per_second, burst): (u64, u64),
) -> RateLimiter<K> {
    let quota = Quota::new(per_second, Duration::from_secs(1), burst);
    // Constants, of which neither is zero nor large.
    RateLimiter::new(quota.expect("a quota that is counted"), REMEMBERED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_leaves_places_to_others() {
        let places = WaitingPlaces::default();
        let from = |text: &str| Some(text.parse().expect("an address"));
        let (flood, other) = (from("192.0.2.1"), from("192.0.2.2"));
        let enter = |source| std::iter::from_fn(|| places.enter(source)).collect::<Vec<_>>();
        let taken = enter(flood);
        assert_eq!(taken.len(), WAITING / 2);
        let rest = enter(other);
        assert_eq!(rest.len(), WAITING - taken.len());
        assert!(places.enter(None).is_none(), "all are taken");
        drop(taken);
        assert!(places.enter(None).is_some());
        assert_eq!(enter(flood).len(), WAITING / 2, "they are given back");
    }
}

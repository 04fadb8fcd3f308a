//! Health, figures and keys, for operators: the admin listener, and the few
//! of its pages that the egress listener shows to anybody.

pub mod guesses;
pub mod oauth;
pub mod revocation;
mod serve;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use serde_json::json;
use tokio::net::{TcpListener, UnixListener};

use crate::adapters::figures::{Figures, OPENMETRICS};
use crate::adapters::issuers::{IssuerState, Issuers};
use crate::adapters::records::AuditLog;
use crate::adapters::redis::Redis;
use crate::config::Listener;
use crate::gate::ports::PolicySource;
use crate::identity::{CachedVerifier, public_jwks};
use crate::proxy::{LocalPages, Page, bind_unix};

/// What stands in the way of good service, beside being up.
#[derive(Debug, Default)]
pub struct Readiness {
    policy: Mutex<Option<String>>,
    documents: Mutex<Vec<serde_json::Value>>,
    keys: Mutex<Option<String>>,
    certificates: Mutex<Option<String>>,
    acme: Mutex<Option<serde_json::Value>>,
    revocations: Mutex<Option<String>>,
    agent_keys: Mutex<Option<String>>,
    peers: Mutex<[Option<String>; 2]>,
    upstream_proxy: Mutex<Option<String>>,
    routes: Mutex<Option<String>>,
    refusals: Mutex<Option<String>>,
    draining: AtomicBool,
}

impl Readiness {
    /// How the last reading of the policy went.
    pub fn policy_is(&self, outcome: Result<(), String>) {
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = outcome.err();
    }

    /// The path of the policy was read, and these of its documents are refused:
    /// objects with `document`, `tenant`, `last_good_in_force` and `error`.
    pub fn documents_are<D: serde::Serialize + ToString>(&self, refused: &[D]) {
        let list = refused.iter().map(|one| json!(one)).collect();
        *self
            .documents
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = list;
        let errors: Vec<String> = refused.iter().map(ToString::to_string).collect();
        self.policy_is(match errors.is_empty() {
            true => Ok(()),
            false => Err(errors.join("\n")),
        });
    }

    /// How the last reading of the keys went.
    pub fn keys_are(&self, outcome: Result<(), String>) {
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = outcome.err();
    }

    /// How the last reading of the TLS certificates went.
    pub fn certificates_are(&self, outcome: Result<(), String>) {
        *self
            .certificates
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = outcome.err();
    }

    fn certificates(&self) -> Option<String> {
        self.certificates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How it stands with the certificate by ACME: an object with `until`,
    /// `next_order`, `failures` and `error`.
    pub fn acme_is(&self, state: serde_json::Value) {
        *self.acme.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }

    fn acme(&self) -> Option<serde_json::Value> {
        self.acme
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How the last reading of the parent proxy's files went.
    pub fn upstream_proxy_is(&self, outcome: Result<(), String>) {
        *self
            .upstream_proxy
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = outcome.err();
    }

    /// How the last reading of the named routes went.
    pub fn routes_are(&self, outcome: Result<(), String>) {
        *self.routes.lock().unwrap_or_else(PoisonError::into_inner) = outcome.err();
    }

    /// How the last reading of the CA for refusals went.
    pub fn refusals_are(&self, outcome: Result<(), String>) {
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner) = outcome.err();
    }

    fn refusals(&self) -> Option<String> {
        self.refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn routes(&self) -> Option<String> {
        self.routes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn upstream_proxy(&self) -> Option<String> {
        self.upstream_proxy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How the last reading of the revocations went. Says whether that is
    /// news.
    pub fn revocations_are(&self, outcome: Result<(), String>) -> bool {
        let mut revocations = self
            .revocations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *revocations, outcome.err());
        before != *revocations
    }

    /// How the last reading of the agent keys went.
    pub fn agent_keys_are(&self, outcome: Result<(), String>) {
        let mut agent_keys = self
            .agent_keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *agent_keys = outcome.err();
    }

    /// How the last reading of the file of callable agents went.
    pub fn peers_are(&self, outcome: Result<(), String>) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)[0] = outcome.err();
    }

    /// How the last reading of the certificates of `listen.peers` went.
    pub fn peers_certificates_are(&self, outcome: Result<(), String>) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)[1] = outcome.err();
    }

    fn peers(&self) -> Option<String> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<&str> = peers.iter().flatten().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("\n"))
    }

    /// The gateway is going down.
    pub fn drains(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn problems(&self) -> (Option<String>, Option<String>) {
        let policy = self
            .policy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let keys = self
            .keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        (policy, keys)
    }
}

/// The admin pages.
#[derive(Clone)]
pub struct Admin {
    figures: Arc<Figures>,
    readiness: Arc<Readiness>,
    log: Arc<AuditLog>,
    policy: Arc<dyn PolicySource>,
    tokens: Arc<CachedVerifier>,
    issuers: Option<Arc<Issuers>>,
    redis: Option<Redis>,
    endpoint: Option<Arc<oauth::TokenEndpoint>>,
    more: Router,
}

/// The admin listener, bound.
pub struct BoundAdmin(Socket);

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Binds the admin listener.
///
/// # Errors
/// With the address.
pub async fn bind(listener: &Listener) -> Result<BoundAdmin, String> {
    match listener {
        Listener::Tcp(address) => TcpListener::bind(address)
            .await
            .map(|listener| BoundAdmin(Socket::Tcp(listener)))
            .map_err(|error| format!("cannot listen on {address} (listen.admin): {error}")),
        Listener::Unix(path) => {
            // Figures and keys are for whoever runs the gateway.
            let bound = bind_unix(path, 0o600);
            bound
                .map(|listener| BoundAdmin(Socket::Unix(listener, path.clone())))
                .map_err(|error| {
                    format!(
                        "cannot listen on {} (listen.admin): {error}",
                        path.display()
                    )
                })
        }
    }
}

/// Removes a Unix socket's file when its listener goes.
struct RemoveSocket(PathBuf);

impl Drop for RemoveSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl BoundAdmin {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }
}

impl Admin {
    /// The pages over these parts.
    #[must_use]
    pub fn new(
        figures: Arc<Figures>,
        readiness: Arc<Readiness>,
        log: Arc<AuditLog>,
        policy: Arc<dyn PolicySource>,
        tokens: Arc<CachedVerifier>,
    ) -> Self {
        Self {
            figures,
            readiness,
            log,
            policy,
            tokens,
            issuers: None,
            redis: None,
            endpoint: None,
            more: Router::new(),
        }
    }

    /// The same, with the state of the Redis that replicas share.
    #[must_use]
    pub fn with_redis(mut self, redis: Option<Redis>) -> Self {
        self.redis = redis;
        self
    }

    /// The same with a token endpoint.
    #[must_use]
    pub fn with_tokens(mut self, endpoint: Option<Arc<oauth::TokenEndpoint>>) -> Self {
        self.endpoint = endpoint;
        self
    }

    /// The token endpoint, where there is one.
    #[must_use]
    pub fn tokens(&self) -> Option<&Arc<oauth::TokenEndpoint>> {
        self.endpoint.as_ref()
    }

    /// The same with more pages on the admin listener.
    #[must_use]
    pub fn with_router(mut self, router: Router) -> Self {
        self.more = self.more.merge(router);
        self
    }

    /// The same with the state of these issuers.
    #[must_use]
    pub fn with_issuers(mut self, issuers: Arc<Issuers>) -> Self {
        self.issuers = Some(issuers);
        self
    }

    /// Serves the admin listener for ever.
    pub async fn serve(self, listener: BoundAdmin) {
        let mut more = self.more.clone();
        if let Some(endpoint) = self.endpoint.clone() {
            more = more.merge(endpoint.router());
        }
        let router = Router::new()
            .route("/health", get(page))
            .route("/healthz", get(page))
            .route("/ready", get(page))
            .route("/readyz", get(page))
            .route("/.well-known/jwks.json", get(page))
            .route("/metrics", get(metrics))
            .with_state(self)
            .merge(more);
        let bounds = serve::Bounds::default();
        match listener.0 {
            Socket::Tcp(listener) => {
                serve::serve(listener, |source| Some(*source), router, bounds).await;
            }
            Socket::Unix(listener, path) => {
                let _remove = RemoveSocket(path);
                serve::serve(listener, |_| None, router, bounds).await;
            }
        }
    }

    fn health(&self) -> Page {
        let body = json!({
            "status": "up",
            "service": "agentport",
            "version": env!("CARGO_PKG_VERSION"),
            "policy_version": self.policy.current().digest().as_ref(),
        });
        page_of(200, &body)
    }

    /// Ready unless records cannot be written; a policy or a key that was
    /// refused is shown, and the last good one serves on. So is a Redis that is
    /// away: every limit says what it does then.
    fn ready(&self) -> Page {
        let (policy, keys) = self.readiness.problems();
        let agent_keys = self
            .readiness
            .agent_keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let revocations = self
            .readiness
            .revocations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let documents = self
            .readiness
            .documents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let state = self.log.state();
        let draining = self.readiness.draining.load(Ordering::Relaxed);
        let ready = !state.failing && !draining;
        let body = json!({
            "ready": ready,
            "draining": draining,
            "policy": {
                "version": self.policy.current().digest().as_ref(),
                "rules": self.policy.current().rule_count(),
                "tenants": self.policy.current().tenants().count(),
                "refused": policy,
                "refused_documents": documents,
            },
            "keys": { "refused": keys },
            "service_accounts": self.endpoint.as_ref().map(|endpoint| {
                let (accounts, refused) = endpoint.state();
                json!({ "accounts": accounts, "refused": refused })
            }),
            "agent_keys": { "refused": agent_keys },
            "issuers": self.issuers(),
            "certificates": { "refused": self.readiness.certificates() },
            "acme": self.readiness.acme(),
            "peers": { "refused": self.readiness.peers() },
            "routes": { "refused": self.readiness.routes() },
            "refusals": { "refused": self.readiness.refusals() },
            "upstream_proxy": { "refused": self.readiness.upstream_proxy() },
            "revocations": { "failing": revocations },
            "audit": { "failing": state.failing, "queue": state.depth },
            "redis": self.redis.as_ref().map(|redis| {
                let state = redis.state();
                json!({ "connected": state.connected, "error": state.last_error })
            }),
        });
        page_of(if ready { 200 } else { 503 }, &body)
    }

    /// What is known of the issuers whose keys are fetched.
    fn issuers(&self) -> Vec<serde_json::Value> {
        let states = self.issuers.as_ref().map(|issuers| issuers.states());
        let shown = |state: IssuerState| {
            json!({
                "issuer": state.issuer,
                "keys": state.keys,
                "age_seconds": state.age.map(|age| age.as_secs()),
                "problem": state.problem,
            })
        };
        states.unwrap_or_default().into_iter().map(shown).collect()
    }

    fn jwks(&self) -> Page {
        let body = public_jwks(self.tokens.keys().published()).into_bytes();
        let hash = digest::digest(&digest::SHA256, &body);
        let etag = URL_SAFE_NO_PAD.encode(&hash.as_ref()[..18]);
        Page {
            // Short, so that a new key is found before much is signed with it.
            cache_control: "public, max-age=60",
            etag: Some(format!("\"{etag}\"")),
            ..Page::new(200, "application/jwk-set+json", body)
        }
    }
}

fn page_of(status: u16, body: &serde_json::Value) -> Page {
    let mut body = body.to_string().into_bytes();
    body.push(b'\n');
    Page::new(status, "application/json", body)
}

impl LocalPages for Admin {
    fn page(&self, path: &str) -> Option<Page> {
        match path {
            "/health" | "/healthz" => Some(self.health()),
            "/.well-known/jwks.json" => Some(self.jwks()),
            _ => None,
        }
    }
}

async fn page(State(admin): State<Admin>, headers: HeaderMap, uri: axum::http::Uri) -> Response {
    let page = match uri.path() {
        "/ready" | "/readyz" => Some(admin.ready()),
        path => admin.page(path),
    };
    match page {
        Some(page) => {
            let known = headers.get(header::IF_NONE_MATCH);
            let page = page.unless_known(known.map(HeaderValue::as_bytes));
            let status =
                StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut fields = HeaderMap::new();
            fields.insert(
                header::CACHE_CONTROL,
                HeaderValue::from_static(page.cache_control),
            );
            if let Some(etag) = page.etag.and_then(|etag| etag.try_into().ok()) {
                fields.insert(header::ETAG, etag);
            }
            if status == StatusCode::NOT_MODIFIED {
                return (status, fields).into_response();
            }
            let media_type = HeaderValue::from_static(page.media_type);
            fields.insert(header::CONTENT_TYPE, media_type);
            (status, fields, page.body).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    (
        [(header::CONTENT_TYPE, OPENMETRICS)],
        admin.figures.encode(),
    )
        .into_response()
}

//! Revocation and introspection over HTTP, on the admin listener alone:
//! RFC 7009 and RFC 7662 for the tokens of others' clients, and the list
//! itself for operators.
//!
//! All of it wants the admin secret, also on loopback, or, for the tokens that
//! a service account was issued, that account's key: who may revoke can shut an
//! agent out, and an introspection that anybody may ask tells good tokens from
//! bad ones (RFC 7662, 2.1).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use serde::Deserialize;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::sync::{mpsc, oneshot};

use crate::adapters::revocations::{RevocationStore, StoreError};
use crate::gate::ports::{AgentKeySource, Clock, RevocationSource};
use crate::identity::{
    AgentKey, CachedVerifier, GrantError, Principal, Revocation, Revoked, RevokedKind, TokenError,
    TokenQuery, key_parts,
};

use super::guesses::{Guesses, shown};
use super::oauth::{self, INTROSPECTION_PATH, REVOCATION_PATH, TokenEndpoint};

/// The fewest bytes that the admin secret may have.
const MIN_SECRET_BYTES: usize = 32;

/// Asks for the list to be read now; the answer comes when it is in force, or
/// says why it cannot be read.
pub type ReadNow = mpsc::Sender<oneshot::Sender<Result<(), String>>>;

/// What the pages need.
pub struct RevocationPages {
    /// The list; `None` where nothing can be revoked.
    pub store: Option<RevocationStore>,
    /// Puts it in force on this gateway before the answer.
    pub read_now: ReadNow,
    /// Tells good tokens from bad ones.
    pub tokens: Arc<CachedVerifier>,
    /// The agent keys in force.
    pub agent_keys: Arc<dyn AgentKeySource>,
    /// The revocations in force.
    pub revocations: Arc<dyn RevocationSource>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Our own `iss`.
    pub issuer: String,
    /// Who knows the service accounts; `None` where there are none.
    pub clients: Option<Arc<TokenEndpoint>>,
    /// The file with the admin secret, read for each request so that it may be
    /// rotated. Without one every request is refused.
    pub secret_file: Option<PathBuf>,
    /// What was guessed at it.
    pub guesses: Guesses,
}

type Pages = Arc<RevocationPages>;

/// Why a request is refused: status, `error` and `error_description` as in
/// RFC 6749, 5.2.
enum Refusal {
    /// In the words of this page.
    Said(StatusCode, &'static str, String),
    /// In those of the token endpoint, which knows the clients.
    Client(oauth::Refusal),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, error, description) = match self {
            Self::Client(refusal) => return refusal.into_response(),
            Self::Said(status, error, description) => (status, error, description),
        };
        let mut answer = answer(
            status,
            &json!({ "error": error, "error_description": description }),
        );
        if status == StatusCode::UNAUTHORIZED {
            let challenge = header::HeaderValue::from_static("Bearer realm=\"agentport admin\"");
            answer
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        answer
    }
}

impl From<oauth::Refusal> for Refusal {
    fn from(refusal: oauth::Refusal) -> Self {
        Self::Client(refusal)
    }
}

impl From<GrantError> for Refusal {
    fn from(error: GrantError) -> Self {
        Self::Client(error.into())
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Entry(error) => bad_request(error.to_string()),
            other => Self::Said(
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                format!("the list of revocations cannot be changed: {other}"),
            ),
        }
    }
}

fn bad_request(description: impl Into<String>) -> Refusal {
    Refusal::Said(
        StatusCode::BAD_REQUEST,
        "invalid_request",
        description.into(),
    )
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (
        status,
        [
            (header::CONTENT_TYPE, "application/json"),
            (header::CACHE_CONTROL, "no-store"),
        ],
        format!("{body}\n"),
    )
        .into_response()
}

/// The admin secret that a file holds, which may end in a line feed.
fn secret_in(text: &str) -> Result<&str, String> {
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.len() < MIN_SECRET_BYTES {
        return Err(format!(
            "it has {} bytes and needs {MIN_SECRET_BYTES}: write the output of `openssl rand -hex 32`",
            secret.len()
        ));
    }
    Ok(secret)
}

/// Whether a file holds an admin secret that can be used.
///
/// # Errors
/// With the file, and what to write.
pub fn check_secret(file: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string());
    let checked = text.and_then(|text| secret_in(&text).map(drop));
    checked.map_err(|error| format!("{}: {error}", file.display()))
}

impl RevocationPages {
    /// The pages.
    pub fn router(self) -> Router {
        Router::new()
            .route(REVOCATION_PATH, post(revoke))
            .route(INTROSPECTION_PATH, post(introspect))
            .route("/v1/revocations", get(list).post(add).delete(undo))
            .with_state(Arc::new(self))
    }

    fn now(&self) -> u64 {
        self.clock
            .wall()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    }

    /// Whether the request has the admin secret: as a Bearer token, or as the
    /// password of Basic, beside any user name. The key of a service account,
    /// which has a form of its own, is no guess at it.
    async fn authorize(
        &self,
        headers: &HeaderMap,
        source: Option<SocketAddr>,
    ) -> Result<(), Refusal> {
        let Some(path) = &self.secret_file else {
            return Err(Refusal::Said(
                StatusCode::FORBIDDEN,
                "access_denied",
                "there is no admin secret: set listen.admin_secret_file to a file with `openssl rand -hex 32`".into(),
            ));
        };
        let unusable = |why: String| {
            tracing::error!(path = %path.display(), "listen.admin_secret_file: {why}");
            let why = "the admin secret cannot be used: the gateway's log says why";
            Refusal::Said(
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                why.into(),
            )
        };
        let refused = Err(Refusal::Said(
            StatusCode::UNAUTHORIZED,
            "invalid_client",
            "send the admin secret: Authorization: Bearer SECRET".into(),
        ));
        let sent = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(sent_secret)
            .filter(|sent| key_parts(sent).is_none());
        let Some(sent) = sent else {
            return refused;
        };
        self.guesses
            .may(source, self.clock.monotonic())
            .map_err(oauth::Refusal::Throttled)?;
        let text = tokio::fs::read_to_string(path)
            .await
            .map_err(|error| unusable(error.to_string()))?;
        let secret = secret_in(&text).map_err(unusable)?;
        // Their hashes, so that not even the length shows.
        let hash = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
        if bool::from(hash(&sent).as_ref().ct_eq(hash(secret).as_ref())) {
            return Ok(());
        }
        self.guesses.wrong(source, self.clock.monotonic());
        refused
    }

    /// The token that a request is about, and who asks: the operator by the
    /// admin secret, or a service account by its key, which may only speak of
    /// the tokens that it was issued.
    async fn query(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        source: Option<SocketAddr>,
        page: (&'static str, &'static str),
    ) -> Result<(String, Asker), Refusal> {
        let refused = match self.authorize(headers, source).await {
            Ok(()) => return Ok((TokenQuery::parse(body, None)?.token, Asker::Operator)),
            // It guesses too often: what it is a guess at does not matter.
            Err(throttled @ Refusal::Client(_)) => return Err(throttled),
            Err(refused) => refused,
        };
        let Some(clients) = &self.clients else {
            return Err(refused);
        };
        let query = TokenQuery::parse(body, oauth::credentials(headers)?)?;
        let Some(credential) = query.client else {
            return Err(refused);
        };
        let client = clients.client(&credential, source, page).await?;
        Ok((query.token, Asker::Account(Arc::clone(client.account.id()))))
    }

    /// The issuer as a revocation names it: not at all where it is we.
    fn other(&self, issuer: Option<&str>) -> Option<String> {
        issuer
            .filter(|issuer| *issuer != self.issuer)
            .map(str::to_owned)
    }

    fn store(&self) -> Result<&RevocationStore, Refusal> {
        self.store.as_ref().ok_or_else(|| {
            let why = "there is no list of revocations: set identity.revocations.file or identity.revocations.redis";
            Refusal::Said(StatusCode::NOT_IMPLEMENTED, "unsupported", why.into())
        })
    }

    /// In force on this gateway when it comes back; the others see it within a
    /// second.
    ///
    /// # Errors
    /// Where the list could not be read after the change: it is written, and
    /// not in force here.
    async fn put_in_force(&self) -> Result<(), Refusal> {
        let (done, wait) = oneshot::channel();
        let outcome = match self.read_now.send(done).await {
            Ok(()) => wait.await.ok(),
            Err(_) => None,
        };
        let why = match outcome {
            Some(Ok(())) => return Ok(()),
            Some(Err(why)) => why,
            None => "the gateway is stopping".to_owned(),
        };
        tracing::error!(%why, "a change to the revocations is written and not in force");
        Err(Refusal::Said(
            StatusCode::SERVICE_UNAVAILABLE,
            "temporarily_unavailable",
            format!(
                "the change is written, but this gateway cannot read the list and goes on with what it knew: {why}. Put the list right; it is then read by itself, and /ready shows revocations.failing null"
            ),
        ))
    }

    /// Whose this credential is; `None` where it is nobody's, or ended.
    fn whose(&self, token: &str, now: u64) -> Result<Arc<Principal>, Option<TokenError>> {
        if AgentKey::is_one(token) {
            let keys = self.agent_keys.current();
            return keys.verify(token, now).map_err(|_| None);
        }
        self.tokens
            .verify(token, now)
            .map(|(who, _)| who)
            .map_err(Some)
    }
}

/// Who asks about a token.
enum Asker {
    Operator,
    /// A service account, by its name.
    Account(Arc<str>),
}

impl Asker {
    /// As lines have it.
    fn name(&self) -> &str {
        match self {
            Self::Operator => "the operator",
            Self::Account(account) => account,
        }
    }

    /// A token of another issuer has that one's accounts in `client_id`, and
    /// not ours.
    fn may_speak_of(&self, who: &Principal, pages: &RevocationPages) -> bool {
        match self {
            Self::Operator => true,
            Self::Account(account) => {
                who.client() == Some(account)
                    && pages.other(who.issuer().map(AsRef::as_ref)).is_none()
            }
        }
    }
}

/// From where a request comes, where that is an address.
type Source = Option<Extension<ConnectInfo<SocketAddr>>>;

fn address(source: &Source) -> Option<SocketAddr> {
    source
        .as_ref()
        .map(|Extension(ConnectInfo(address))| *address)
}

fn sent_secret(value: &str) -> Option<String> {
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("Bearer") {
        return Some(rest.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("Basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
    pair.split_once(':').map(|(_, secret)| secret.to_owned())
}

/// RFC 7009: a token that its client needs no more. One that is not good, or
/// has ended, is revoked already (2.2).
async fn revoke(
    State(pages): State<Pages>,
    source: Source,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let source = address(&source);
    let page = (REVOCATION_PATH, "revocation");
    let (token, asker) = pages.query(&headers, &body, source, page).await?;
    let store = pages.store()?;
    let now = pages.now();
    let Ok(who) = pages.whose(&token, now) else {
        return Ok(answer(StatusCode::OK, &json!({})));
    };
    if !asker.may_speak_of(&who, &pages) {
        // RFC 7009, 2.1: the client is told.
        let why = "the token was not issued to this service account".to_owned();
        return Err(GrantError::UnauthorizedClient(why).into());
    }
    let (kind, value) = match who.jti() {
        Some(jti) => (RevokedKind::Jti, jti.to_string()),
        None if AgentKey::is_one(&token) => (RevokedKind::Key, who.key_id().to_string()),
        None => {
            return Err(Refusal::Said(
                StatusCode::BAD_REQUEST,
                "unsupported_token_type",
                "the token has no jti: revoke its agent instead, by POST /v1/revocations".into(),
            ));
        }
    };
    let leeway = pages.tokens.verifier_settings().leeway.as_secs();
    // As long as the token itself, and a second for the rounding.
    let ends = who.expires_at().saturating_add(leeway).saturating_add(1);
    let entry = Revocation {
        kind,
        value,
        tenant: None,
        issuer: pages.other(who.issuer().map(AsRef::as_ref)),
        at: now,
        until: (kind == RevokedKind::Jti).then_some(ends.max(now + 1)),
        reason: Some("revoked by its client".to_owned()),
    };
    store.add(entry.clone(), now).await?;
    pages.put_in_force().await?;
    tracing::info!(
        kind = %entry.kind,
        value = %entry.value,
        source = shown(source),
        by = asker.name(),
        "revoked over HTTP"
    );
    Ok(answer(StatusCode::OK, &json!({})))
}

/// RFC 7662: whether a token is good on this gateway now, and whose it is.
async fn introspect(
    State(pages): State<Pages>,
    source: Source,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let page = (INTROSPECTION_PATH, "introspection");
    let asked = pages.query(&headers, &body, address(&source), page).await;
    let (token, asker) = asked?;
    let now = pages.now();
    let inactive = || answer(StatusCode::OK, &json!({ "active": false }));
    let Ok(who) = pages.whose(&token, now) else {
        return Ok(inactive());
    };
    // RFC 7662, 2.2: what the client may not know of is inactive to it.
    if !asker.may_speak_of(&who, &pages) {
        return Ok(inactive());
    }
    if pages.revocations.current().revokes(&who, now).is_some() {
        return Ok(inactive());
    }
    let mut said = json!({
        "active": true,
        "token_type": "Bearer",
        "sub": who.agent().as_str(),
        "agent_id": who.agent().as_str(),
    });
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            said[name] = value;
        }
    };
    add("tenant", who.tenant().map(|tenant| tenant.as_str().into()));
    add("jti", who.jti().map(|jti| jti.as_ref().into()));
    add("iss", who.issuer().map(|issuer| issuer.as_ref().into()));
    add(
        "client_id",
        who.client().map(|client| client.as_ref().into()),
    );
    add("scope", who.scope().map(|scope| scope.as_ref().into()));
    add("iat", who.issued_at().map(Value::from));
    let ends = who.expires_at();
    add("exp", (ends != u64::MAX).then(|| ends.into()));
    let destinations = who.destinations().map(|list| {
        let list = list.iter().map(ToString::to_string);
        Value::from(list.collect::<Vec<_>>())
    });
    add("allowed_destinations", destinations);
    // The chain as the token has it: each actor holds the one before it.
    let chain = who.act().map(|actors| {
        actors.iter().rev().fold(Value::Null, |inner, actor| {
            let mut act = json!({ "sub": actor });
            if !inner.is_null() {
                act["act"] = inner;
            }
            act
        })
    });
    add("act", chain);
    Ok(answer(StatusCode::OK, &said))
}

/// An entry as an operator writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    kind: RevokedKind,
    value: String,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    issuer: Option<String>,
    #[serde(default, rename = "for")]
    lasts: Option<String>,
    #[serde(default)]
    reason: Option<String>,
}

async fn list(
    State(pages): State<Pages>,
    source: Source,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    pages.authorize(&headers, address(&source)).await?;
    let now = pages.now();
    let mut entries = pages.store()?.list().await?;
    entries.retain(|entry| entry.is_in_force(now));
    Ok(answer(StatusCode::OK, &json!({ "revocations": entries })))
}

async fn add(
    State(pages): State<Pages>,
    source: Source,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let source = address(&source);
    pages.authorize(&headers, source).await?;
    let store = pages.store()?;
    let wanted: Wanted = serde_json::from_slice(&body).map_err(|error| {
        bad_request(format!(
            "{error}: write {{\"kind\":\"agent\",\"value\":\"bot-01\"}}, with tenant, issuer, for and reason where they are wanted"
        ))
    })?;
    let lasts = wanted
        .lasts
        .as_deref()
        .map(|text| {
            crate::config::parse_duration(text)
                .map_err(|error| bad_request(format!("for: {text:?}: {error}")))
        })
        .transpose()?;
    let what = Revoked {
        kind: wanted.kind,
        value: wanted.value,
        tenant: wanted.tenant,
        issuer: pages.other(wanted.issuer.as_deref()),
    };
    let now = pages.now();
    let entry = Revocation::make(what, now, lasts, wanted.reason)
        .map_err(|error| bad_request(error.to_string()))?;
    store.add(entry.clone(), now).await?;
    pages.put_in_force().await?;
    tracing::info!(
        kind = %entry.kind,
        value = %entry.value,
        source = shown(source),
        by = Asker::Operator.name(),
        "revoked over HTTP"
    );
    Ok(answer(StatusCode::CREATED, &json!(entry)))
}

async fn undo(
    State(pages): State<Pages>,
    source: Source,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let source = address(&source);
    pages.authorize(&headers, source).await?;
    let store = pages.store()?;
    let form = form(query.unwrap_or_default().as_bytes())?;
    let of = |name: &str| {
        let found = form.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    };
    let shape =
        || bad_request("write ?kind=agent&value=bot-01, with tenant or issuer where it has one");
    let kind: RevokedKind = of("kind")
        .and_then(|kind| serde_json::from_value(kind.into()).ok())
        .ok_or_else(shape)?;
    let what = Revoked {
        kind,
        value: of("value").ok_or_else(shape)?,
        tenant: of("tenant"),
        issuer: pages.other(of("issuer").as_deref()),
    };
    if !store.remove(what.clone(), pages.now()).await? {
        return Err(Refusal::Said(
            StatusCode::NOT_FOUND,
            "not_found",
            format!("{} {} is not revoked", what.kind, what.value),
        ));
    }
    pages.put_in_force().await?;
    tracing::info!(
        kind = %what.kind,
        value = %what.value,
        source = shown(source),
        by = Asker::Operator.name(),
        "a revocation was taken back over HTTP"
    );
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The parameters of a query.
fn form(body: &[u8]) -> Result<Vec<(String, String)>, Refusal> {
    let bad = || bad_request("the request is not a form (application/x-www-form-urlencoded)");
    let text = std::str::from_utf8(body).map_err(|_| bad())?;
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((
                decoded(name).ok_or_else(bad)?,
                decoded(value).ok_or_else(bad)?,
            ))
        })
        .collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_strictly() {
        let read = |text: &str| form(text.as_bytes()).ok();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            read("token=a%2Bb+c&&hint="),
            Some(vec![pair("token", "a+b c"), pair("hint", "")])
        );
        for bad in ["token=%", "token=%2", "token=%zz", "token=%ff"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_secret_comes_by_bearer_or_as_a_password() {
        for (value, secret) in [
            ("Bearer s", Some("s")),
            ("bearer  s", Some("s")),
            ("Basic YWRtaW46czp0", Some("s:t")),
            ("Basic !", None),
            ("Digest s", None),
            ("s", None),
        ] {
            assert_eq!(sent_secret(value).as_deref(), secret, "{value}");
        }
    }
}

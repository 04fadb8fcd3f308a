//! The agent's HTTP API: health, metrics, skills, invocations and memory.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, MatchedPath, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use ring::hmac;
use ring::rand::SystemRandom;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::openclaw::egress::EgressError;
use crate::openclaw::memory::{Event, Memory};
use crate::openclaw::metrics::Metrics;
use crate::openclaw::model::{self, Plan};
use crate::openclaw::sandbox::SandboxError;
use crate::openclaw::skills::{Call, SkillError, Skills};
use crate::openclaw::trace::{TraceId, random_number};

/// The most bytes of a request's body.
const MAX_BODY_BYTES: usize = 1024 * 1024;
/// The most bytes of a session's name.
const MAX_SESSION_BYTES: usize = 128;
/// Entries of the memory stream in one page, unless asked otherwise, and at most.
const PAGE: usize = 50;
const MAX_PAGE: usize = 200;

/// Who may use the API.
pub(in crate::openclaw) enum Access {
    /// Whoever shows the key.
    Key(Box<ApiKey>),
    /// Whoever reaches the loopback listener, under a loopback name only: a web
    /// page whose name was pointed here must not read the memory.
    Loopback,
    /// Whoever may open the socket; its file's mode says who.
    Socket,
}

/// A key that is compared without showing by the time taken how much of it was
/// right, and is not kept in clear.
pub(in crate::openclaw) struct ApiKey {
    salt: hmac::Key,
    tag: hmac::Tag,
}

impl ApiKey {
    /// `None` where the system gives no random numbers.
    pub(in crate::openclaw) fn new(key: &str) -> Option<Self> {
        let salt = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok()?;
        let tag = hmac::sign(&salt, key.as_bytes());
        Some(Self { salt, tag })
    }

    fn opens(&self, headers: &HeaderMap) -> bool {
        let shown = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| key.trim());
        shown.is_some_and(|key| hmac::verify(&self.salt, key.as_bytes(), self.tag.as_ref()).is_ok())
    }
}

/// What every handler may use.
pub(in crate::openclaw) struct App {
    pub(in crate::openclaw) skills: Skills,
    pub(in crate::openclaw) memory: Arc<Memory>,
    pub(in crate::openclaw) metrics: Arc<Metrics>,
    pub(in crate::openclaw) access: Access,
}

/// The routes.
pub(in crate::openclaw) fn router(app: Arc<App>) -> Router {
    let v1 = Router::new()
        .route("/v1/skills", get(list_skills))
        .route("/v1/skills/{id}/invoke", post(invoke_skill))
        .route("/v1/skills/{id}/{major}/invoke", post(invoke_skill_major))
        .route("/v1/agents/{id}/invoke", post(invoke_agent))
        .route("/v1/agents/{id}/memory", get(read_memory))
        .route_layer(middleware::from_fn_with_state(app.clone(), authorize));
    Router::new()
        .route("/healthz", get(health))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .merge(v1)
        .fallback(|| async { Refusal::new(StatusCode::NOT_FOUND, "not_found", "no such path") })
        .method_not_allowed_fallback(|| async {
            let hint = "this path takes another method";
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", hint)
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(app.clone(), count))
        .with_state(app)
}

async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", MatchedPath::as_str)
        .to_owned();
    let response = next.run(request).await;
    app.metrics
        .request(&method, &route, response.status().as_u16());
    response
}

async fn authorize(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match &app.access {
        Access::Key(key) if !key.opens(request.headers()) => {
            tracing::warn!(event = "unauthorized", path = request.uri().path());
            let hint = "send Authorization: Bearer and the key of OPENCLAW_API_KEY";
            let mut response =
                Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", hint).into_response();
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
        Access::Loopback if !names_loopback(request.headers()) => {
            let hint = "without OPENCLAW_API_KEY only localhost, 127.0.0.1 and [::1] are \
                        accepted as Host";
            Refusal::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", hint).into_response()
        }
        Access::Key(_) | Access::Loopback | Access::Socket => next.run(request).await,
    }
}

fn names_loopback(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let Ok(host) = host.to_str() else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    matches!(
        name.to_ascii_lowercase().as_str(),
        "localhost" | "127.0.0.1" | "[::1]"
    )
}

async fn health(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"status": "up", "agent_id": app.skills.agent.as_str()}))
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    match app.metrics.encode() {
        Ok(text) => (
            [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(e) => Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "metrics_failed",
            &e.to_string(),
        )
        .into_response(),
    }
}

async fn list_skills(State(app): State<Arc<App>>) -> Json<Value> {
    let skills: Vec<_> = app.skills.catalog.iter().map(|s| s.describe()).collect();
    Json(json!({ "skills": skills }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SkillRequest {
    #[serde(default = "empty_object")]
    input: Value,
    session: Option<String>,
    #[serde(default = "empty_object")]
    context: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentRequest {
    input: AgentInput,
    session: Option<String>,
    #[serde(default = "empty_object")]
    context: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentInput {
    query: String,
}

fn empty_object() -> Value {
    json!({})
}

async fn invoke_skill(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Json<SkillRequest>, JsonRejection>,
) -> Result<Json<Value>, Refusal> {
    run_skill(&app, &id, None, &headers, body).await
}

async fn invoke_skill_major(
    State(app): State<Arc<App>>,
    Path((id, major)): Path<(String, String)>,
    headers: HeaderMap,
    body: Result<Json<SkillRequest>, JsonRejection>,
) -> Result<Json<Value>, Refusal> {
    let Some(major) = major.strip_prefix('v').and_then(|major| major.parse().ok()) else {
        let hint = "write the major version as v1";
        return Err(Refusal::new(StatusCode::NOT_FOUND, "not_found", hint));
    };
    run_skill(&app, &id, Some(major), &headers, body).await
}

async fn run_skill(
    app: &App,
    id: &str,
    major: Option<u64>,
    headers: &HeaderMap,
    body: Result<Json<SkillRequest>, JsonRejection>,
) -> Result<Json<Value>, Refusal> {
    let Json(request) = body?;
    let call = open_call(headers, request.session, &request.context)?;
    match app.skills.invoke(id, major, request.input, &call).await {
        Ok(invocation) => Ok(Json(json!({
            "output": invocation.output,
            "skill": invocation.skill.id,
            "version": invocation.skill.version.to_string(),
            "duration_ms": millis(invocation.took),
            "session": call.session,
            "trace_id": call.trace.as_str(),
        }))),
        Err(error) => Err(Refusal::of(&error, &call)),
    }
}

async fn invoke_agent(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Json<AgentRequest>, JsonRejection>,
) -> Result<Json<Value>, Refusal> {
    known_agent(&app, &id)?;
    let Json(request) = body?;
    let call = open_call(&headers, request.session, &request.context)?;
    let query = request.input.query;
    let context = call.context();
    app.memory.append(
        &context,
        &Event::User {
            text: query.clone(),
        },
    );
    let mut skill_calls = Vec::new();
    let text = match model::plan(&query, &app.skills.catalog) {
        Plan::Say(text) => text,
        Plan::Call { skill, input } => {
            let invocation = app
                .skills
                .invoke(&skill, None, input, &call)
                .await
                .map_err(|error| Refusal::of(&error, &call))?;
            let text = model::word(&invocation.skill.id, &invocation.output);
            skill_calls.push(json!({
                "skill": invocation.skill.id,
                "version": invocation.skill.version.to_string(),
                "input": invocation.input,
                "output": invocation.output,
                "duration_ms": millis(invocation.took),
            }));
            text
        }
    };
    app.memory
        .append(&context, &Event::Agent { text: text.clone() });
    Ok(Json(json!({
        "id": random_number(),
        "agent_id": id,
        "session": call.session,
        "output": {"text": text},
        "skill_calls": skill_calls,
        "trace_id": call.trace.as_str(),
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemoryQuery {
    session: Option<String>,
    cursor: Option<u64>,
    limit: Option<usize>,
}

async fn read_memory(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    query: Result<Query<MemoryQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Refusal> {
    known_agent(&app, &id)?;
    let Query(query) = query
        .map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, "invalid_query", &e.body_text()))?;
    let limit = query.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
    let (entries, next) =
        app.memory
            .read(query.session.as_deref(), query.cursor.unwrap_or(0), limit);
    Ok(Json(json!({
        "agent_id": id,
        "entries": entries,
        "cursor": next,
    })))
}

fn known_agent(app: &App, id: &str) -> Result<(), Refusal> {
    let own = app.skills.agent.as_str();
    if id == own {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::NOT_FOUND,
        "agent_not_found",
        &format!("this process is the agent {own}"),
    ))
}

fn open_call(
    headers: &HeaderMap,
    session: Option<String>,
    context: &Value,
) -> Result<Call, Refusal> {
    let invalid = |hint: &str| Refusal::new(StatusCode::BAD_REQUEST, "invalid_request", hint);
    if !context.is_object() {
        return Err(invalid("context: write an object"));
    }
    let in_context = context.get("session").or_else(|| context.get("session_id"));
    let session = match (session, in_context) {
        (Some(session), _) => session,
        (None, Some(Value::String(session))) => session.clone(),
        (None, Some(_)) => return Err(invalid("context.session: write a string")),
        (None, None) => "default".to_owned(),
    };
    if session.is_empty()
        || session.len() > MAX_SESSION_BYTES
        || session.chars().any(char::is_control)
    {
        return Err(invalid(
            "session: write 1 to 128 bytes without control characters",
        ));
    }
    let traceparent = headers.get("traceparent").and_then(|v| v.to_str().ok());
    Ok(Call {
        trace: TraceId::continue_or_new(traceparent),
        session,
    })
}

fn millis(took: std::time::Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// Anything that is not an answer, in the one form that all of them have:
/// `{error, hint, …}`.
struct Refusal {
    status: StatusCode,
    retry_after: Option<u64>,
    body: Value,
}

impl Refusal {
    fn new(status: StatusCode, error: &str, hint: &str) -> Self {
        Self {
            status,
            retry_after: None,
            body: json!({"error": error, "hint": hint}),
        }
    }

    fn of(error: &SkillError, call: &Call) -> Self {
        let mut refusal = Self::new(status_of(error), error.code(), &error.to_string());
        match error {
            SkillError::Egress(EgressError::Refused(gateway)) => {
                refusal.body = json!(gateway);
                refusal.body["error"] = error.code().into();
                refusal.retry_after = gateway.retry_after;
            }
            SkillError::InvalidInput(faults) | SkillError::InvalidOutput(faults) => {
                refusal.body["faults"] = json!(faults);
            }
            SkillError::Exit(code) => refusal.body["exit_code"] = (*code).into(),
            SkillError::Origin { status, .. } => {
                refusal.body["upstream_status"] = status.as_u16().into();
            }
            SkillError::Busy => refusal.retry_after = Some(1),
            SkillError::NotFound { .. }
            | SkillError::Egress(_)
            | SkillError::TimedOut(_)
            | SkillError::Sandbox(_) => {}
        }
        refusal.body["session"] = call.session.clone().into();
        refusal.body["trace_id"] = call.trace.as_str().into();
        refusal
    }
}

fn status_of(error: &SkillError) -> StatusCode {
    match error {
        SkillError::NotFound { .. } => StatusCode::NOT_FOUND,
        SkillError::InvalidInput(_) => StatusCode::BAD_REQUEST,
        SkillError::Busy | SkillError::Sandbox(SandboxError::Unavailable(_)) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        // The caller is refused with the agent; that the agent's own credential
        // is at fault, or the gateway, is not the caller's doing.
        SkillError::Egress(EgressError::Refused(gateway)) => match gateway.status {
            StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => gateway.status,
            _ => StatusCode::BAD_GATEWAY,
        },
        SkillError::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
        SkillError::Egress(_)
        | SkillError::Origin { .. }
        | SkillError::Exit(_)
        | SkillError::InvalidOutput(_)
        | SkillError::Sandbox(_) => StatusCode::BAD_GATEWAY,
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(
            rejection.status(),
            "invalid_request",
            &rejection.body_text(),
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_hosts_are_loopback() {
        for (host, loopback) in [
            ("localhost", true),
            ("LOCALHOST:7070", true),
            ("127.0.0.1:7070", true),
            ("[::1]:7070", true),
            ("[::1]", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example:7070", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            assert_eq!(names_loopback(&headers), loopback, "{host}");
        }
        assert!(!names_loopback(&HeaderMap::new()));
    }

    #[test]
    fn a_key_opens_only_as_it_is() {
        let key = ApiKey::new("correct").expect("random numbers");
        for (value, opens) in [
            ("Bearer correct", true),
            ("bearer correct", true),
            ("Bearer correct1", false),
            ("Bearer ", false),
            ("Basic correct", false),
            ("correct", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            assert_eq!(key.opens(&headers), opens, "{value}");
        }
        assert!(!key.opens(&HeaderMap::new()));
    }
}

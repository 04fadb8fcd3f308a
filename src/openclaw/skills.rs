//! Runs skills: finds the version, checks what goes in, runs it, checks what
//! comes out, and writes exactly one record of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::egress::AgentId;
use http::{HeaderValue, Request, StatusCode, header};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::openclaw::egress::{Bridge, Egress, EgressError, Refusal, full, read_body};
use crate::openclaw::manifest::{
    Catalog, HttpRuntime, Network, ProcessRuntime, ResponseKind, Runtime, Skill,
};
use crate::openclaw::memory::{Context, Event, Memory};
use crate::openclaw::metrics::Metrics;
use crate::openclaw::sandbox::{Job, MAX_OUTPUT_BYTES, Sandbox, SandboxError};
use crate::openclaw::trace::TraceId;

/// The most bytes of an answer that an HTTP skill reads.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;
/// The most bytes of somebody else's text in an error.
const MAX_EXCERPT_BYTES: usize = 1024;

/// Every skill, and what it takes to run them.
pub(in crate::openclaw) struct Skills {
    pub(in crate::openclaw) agent: AgentId,
    pub(in crate::openclaw) catalog: Catalog,
    /// `None` where no skill is a process.
    pub(in crate::openclaw) sandbox: Option<Sandbox>,
    pub(in crate::openclaw) egress: Egress,
    pub(in crate::openclaw) memory: Arc<Memory>,
    pub(in crate::openclaw) metrics: Arc<Metrics>,
    /// For skills that name no time of their own.
    pub(in crate::openclaw) timeout: Duration,
    /// How many may run at once.
    pub(in crate::openclaw) slots: Semaphore,
}

/// On whose behalf a skill runs.
#[derive(Clone, Debug)]
pub(in crate::openclaw) struct Call {
    /// The trace.
    pub(in crate::openclaw) trace: TraceId,
    /// The session.
    pub(in crate::openclaw) session: String,
}

impl Call {
    /// For the memory stream.
    pub(in crate::openclaw) fn context(&self) -> Context {
        Context {
            session: self.session.clone(),
            trace_id: self.trace.to_string(),
        }
    }
}

/// What a skill answered.
#[derive(Debug)]
pub(in crate::openclaw) struct Invocation {
    /// Which skill.
    pub(in crate::openclaw) skill: Arc<Skill>,
    /// What it was given.
    pub(in crate::openclaw) input: Value,
    /// What it gave.
    pub(in crate::openclaw) output: Value,
    /// How long it took.
    pub(in crate::openclaw) took: Duration,
}

/// Why a skill gave no answer.
#[derive(Debug, thiserror::Error)]
pub(in crate::openclaw) enum SkillError {
    /// There is none of this name and major version.
    #[error("there is no skill {wanted}; there are: {known}")]
    NotFound {
        /// As it was asked for.
        wanted: String,
        /// The names that there are.
        known: String,
    },
    /// The input is not what the skill takes: each fault with its path.
    #[error("the input does not fit: {}", .0.join("; "))]
    InvalidInput(Vec<String>),
    /// As many run as may.
    #[error("as many skills run as may at once; try again in a moment")]
    Busy,
    /// The call out failed or was refused.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// The destination answered, but not with success.
    #[error("{destination} answered {status}: {excerpt}")]
    Origin {
        /// Host and port.
        destination: String,
        /// Its status.
        status: StatusCode,
        /// The beginning of what it said.
        excerpt: String,
    },
    /// It took too long.
    #[error("the skill took longer than {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The process ended with a code other than zero.
    #[error("the skill ended with exit code {0}; its standard error is in the agent's log")]
    Exit(i32),
    /// The output is not what the skill promises: each fault with its path.
    #[error("the output does not fit: {}", .0.join("; "))]
    InvalidOutput(Vec<String>),
    /// The sandbox cannot be had, or the process not be run in it.
    #[error(transparent)]
    Sandbox(SandboxError),
}

impl From<SandboxError> for SkillError {
    fn from(error: SandboxError) -> Self {
        match error {
            SandboxError::TimedOut(after) => Self::TimedOut(after),
            other => Self::Sandbox(other),
        }
    }
}

impl SkillError {
    /// One word for records and callers.
    pub(in crate::openclaw) fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "skill_not_found",
            Self::InvalidInput(_) => "invalid_input",
            Self::Busy => "busy",
            Self::Egress(EgressError::Refused(refusal)) => refusal.code(),
            Self::Egress(_) => "egress_unavailable",
            Self::Origin { .. } | Self::Exit(_) => "skill_failed",
            Self::TimedOut(_) => "skill_timeout",
            Self::InvalidOutput(_) => "invalid_output",
            Self::Sandbox(SandboxError::Unavailable(_)) => "sandbox_unavailable",
            Self::Sandbox(_) => "skill_failed",
        }
    }

    fn exit_code(&self) -> i32 {
        match self {
            Self::Exit(code) => *code,
            // As timeout(1) and the shell write a killed process.
            Self::TimedOut(_) => 137,
            _ => 1,
        }
    }
}

impl Skills {
    /// Runs the highest version of a skill, within `major` where one is named.
    ///
    /// # Errors
    /// [`SkillError`]; it stands in the memory stream too.
    pub(in crate::openclaw) async fn invoke(
        &self,
        id: &str,
        major: Option<u64>,
        input: Value,
        call: &Call,
    ) -> Result<Invocation, SkillError> {
        let skill = self.catalog.find(id, major).cloned().ok_or_else(|| {
            let known: Vec<_> = self.catalog.ids().collect();
            SkillError::NotFound {
                wanted: major.map_or(id.to_owned(), |major| format!("{id} v{major}")),
                known: known.join(", "),
            }
        })?;
        let mut record = Record::open(self, &skill, call);
        let result = self.run(&skill, &input, call).await;
        record.finish(result.as_ref().err());
        let context = call.context();
        match result {
            Ok(output) => {
                self.memory.append(
                    &context,
                    &Event::Skill {
                        skill: skill.id.clone(),
                        version: skill.version.to_string(),
                        input: input.clone(),
                        output: output.clone(),
                    },
                );
                Ok(Invocation {
                    took: record.started.elapsed(),
                    skill,
                    input,
                    output,
                })
            }
            Err(error) => {
                self.remember(&skill, &context, &error);
                Err(error)
            }
        }
    }

    fn remember(&self, skill: &Skill, context: &Context, error: &SkillError) {
        // A refusal within a process was written down as it was seen.
        let already = matches!(skill.runtime, Runtime::Process(_));
        if let SkillError::Egress(EgressError::Refused(refusal)) = error {
            if !already {
                self.refused(skill, context, refusal);
            }
            return;
        }
        self.memory.append(
            context,
            &Event::SkillFailed {
                skill: skill.id.clone(),
                version: skill.version.to_string(),
                error: error.code().to_owned(),
                detail: error.to_string(),
            },
        );
    }

    fn refused(&self, skill: &Skill, context: &Context, refusal: &Refusal) {
        self.metrics.refusal(&skill.id, &refusal.reason);
        tracing::warn!(
            event = refusal.code(),
            skill_name = skill.id,
            agent_id = %self.agent,
            trace_id = context.trace_id,
            destination = refusal.destination,
            reason = refusal.reason,
            rule = refusal.rule,
            gateway_request_id = refusal.request_id,
            status = refusal.status.as_u16(),
        );
        self.memory.append(
            context,
            &Event::EgressRefused {
                skill: skill.id.clone(),
                error: refusal.code(),
                status: refusal.status.as_u16(),
                refusal: refusal.clone(),
            },
        );
    }

    async fn run(&self, skill: &Skill, input: &Value, call: &Call) -> Result<Value, SkillError> {
        let faults = skill.inputs.check(input, "input", true);
        let members = match input {
            Value::Object(members) if faults.is_empty() => members,
            _ => return Err(SkillError::InvalidInput(faults)),
        };
        let Ok(_slot) = self.slots.try_acquire() else {
            return Err(SkillError::Busy);
        };
        let timeout = skill.timeout.unwrap_or(self.timeout);
        let output = match &skill.runtime {
            Runtime::Http(http) => {
                let exchange = self.call_http(http, members, call);
                match tokio::time::timeout(timeout, exchange).await {
                    Ok(result) => result?,
                    Err(_) => return Err(SkillError::TimedOut(timeout)),
                }
            }
            Runtime::Process(process) => {
                self.run_process(skill, process, input, timeout, call)
                    .await?
            }
        };
        let faults = skill.outputs.check(&output, "output", false);
        if faults.is_empty() {
            Ok(output)
        } else {
            Err(SkillError::InvalidOutput(faults))
        }
    }

    async fn call_http(
        &self,
        http: &HttpRuntime,
        inputs: &Map<String, Value>,
        call: &Call,
    ) -> Result<Value, SkillError> {
        let unfit = |e: crate::openclaw::template::TemplateError| {
            SkillError::InvalidInput(vec![e.to_string()])
        };
        let url = http.url.render(inputs).map_err(unfit)?;
        let destination = url.authority().map_or(String::new(), ToString::to_string);
        let mut request = Request::builder().method(http.method.clone()).uri(url);
        if let Some(headers) = request.headers_mut() {
            headers.insert(
                header::USER_AGENT,
                HeaderValue::from_static(concat!("openclaw/", env!("CARGO_PKG_VERSION"))),
            );
            for (name, template) in &http.headers {
                headers.insert(name, template.header(inputs).map_err(unfit)?);
            }
            // Bodies are read as they come; nothing here unpacks one.
            headers.insert(
                header::ACCEPT_ENCODING,
                HeaderValue::from_static("identity"),
            );
        }
        let body = http.body.as_ref().and_then(|body| body.render(inputs));
        if let Some(headers) = request.headers_mut()
            && body.is_some()
        {
            headers
                .entry(header::CONTENT_TYPE)
                .or_insert(HeaderValue::from_static("application/json"));
        }
        let body = body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
        let request = request
            .body(full(body))
            .map_err(|e| EgressError::Target(e.to_string()))?;
        let response = self.egress.send(request, call.trace.traceparent()).await?;
        let status = response.status();
        let body = read_body(response.into_body(), MAX_RESPONSE_BYTES, &destination).await?;
        if !status.is_success() {
            return Err(SkillError::Origin {
                destination,
                status,
                excerpt: excerpt(&body),
            });
        }
        match http.response {
            ResponseKind::Text => Ok(json!({
                "status": status.as_u16(),
                "body": String::from_utf8_lossy(&body),
            })),
            ResponseKind::Json if body.is_empty() => Ok(json!({})),
            ResponseKind::Json => match serde_json::from_slice(&body) {
                Ok(Value::Object(members)) => Ok(Value::Object(members)),
                Ok(other) => Ok(json!({ "body": other })),
                Err(e) => Err(SkillError::InvalidOutput(vec![format!(
                    "output: the answer is not JSON ({e}); where it is text, write \
                     \"response\": \"text\" in the manifest"
                )])),
            },
        }
    }

    async fn run_process(
        &self,
        skill: &Skill,
        process: &ProcessRuntime,
        input: &Value,
        timeout: Duration,
        call: &Call,
    ) -> Result<Value, SkillError> {
        let sandbox = self.sandbox.as_ref().ok_or_else(|| {
            SkillError::Sandbox(SandboxError::Unavailable("it was not prepared".to_owned()))
        })?;
        let bridge = (process.network == Network::Gateway)
            .then(|| Bridge::new(self.egress.clone(), call.trace.clone()));
        let finished = sandbox
            .run(Job {
                command: &process.command,
                input: input.to_string().into_bytes(),
                timeout,
                memory_bytes: process.memory_bytes,
                bridge: bridge.as_ref(),
                traceparent: call.trace.traceparent(),
            })
            .await;
        let refusals = bridge.map_or_else(Vec::new, |bridge| bridge.take_refusals());
        for refusal in &refusals {
            self.refused(skill, &call.context(), refusal);
        }
        let finished = finished?;
        if !finished.stderr.is_empty() {
            tracing::info!(
                event = "skill_stderr",
                skill_name = skill.id,
                agent_id = %self.agent,
                trace_id = %call.trace,
                text = self.egress.redact(&excerpt(&finished.stderr)),
            );
        }
        if finished.exit_code != 0 {
            // What it could not get past is the better answer.
            return Err(match refusals.into_iter().next_back() {
                Some(refusal) => EgressError::Refused(Box::new(refusal)).into(),
                None => SkillError::Exit(finished.exit_code),
            });
        }
        serde_json::from_slice(&finished.stdout).map_err(|e| {
            SkillError::InvalidOutput(vec![format!(
                "output: standard output must be one JSON object of at most {MAX_OUTPUT_BYTES} bytes ({e})"
            )])
        })
    }
}

/// The beginning of somebody else's bytes, as one text.
fn excerpt(bytes: &[u8]) -> String {
    let mut text =
        String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_EXCERPT_BYTES)]).into_owned();
    if bytes.len() > MAX_EXCERPT_BYTES {
        text.push('…');
    }
    text
}

/// The record of one run: open from its start, and written exactly once, also
/// where the caller went away and the run was dropped.
struct Record<'a> {
    skills: &'a Skills,
    skill: Arc<Skill>,
    trace_id: String,
    session: String,
    started: Instant,
    written: bool,
}

impl<'a> Record<'a> {
    fn open(skills: &'a Skills, skill: &Arc<Skill>, call: &Call) -> Self {
        skills.metrics.running.inc();
        Self {
            skills,
            skill: skill.clone(),
            trace_id: call.trace.to_string(),
            session: call.session.clone(),
            started: Instant::now(),
            written: false,
        }
    }

    fn finish(&mut self, error: Option<&SkillError>) {
        match error {
            None => self.write("ok", 0, None),
            Some(error) => {
                self.write(error.code(), error.exit_code(), Some(error.to_string()));
            }
        }
    }

    fn write(&mut self, outcome: &'static str, exit_code: i32, detail: Option<String>) {
        self.written = true;
        let took = self.started.elapsed();
        let version = self.skill.version.to_string();
        self.skills.metrics.running.dec();
        self.skills
            .metrics
            .skill(&self.skill.id, &version, outcome, took, &self.trace_id);
        tracing::info!(
            event = "skill",
            skill_name = self.skill.id,
            skill_version = version,
            outcome,
            duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            exit_code,
            agent_id = %self.skills.agent,
            session = self.session,
            trace_id = self.trace_id,
            detail = detail.map(|detail| self.skills.egress.redact(&detail)),
        );
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if !self.written {
            self.write("cancelled", 137, None);
        }
    }
}

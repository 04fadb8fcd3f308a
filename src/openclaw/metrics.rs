//! What is counted, as OpenMetrics text with exemplars.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Everything that is counted.
pub(in crate::openclaw) struct Metrics {
    registry: Registry,
    skills: Family<SkillLabels, HistogramWithExemplars<ExemplarLabels>, SkillBuckets>,
    /// Skills that run now.
    pub(in crate::openclaw) running: Gauge,
    refusals: Family<RefusalLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SkillLabels {
    skill: String,
    version: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExemplarLabels {
    trace_id: String,
    skill: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    skill: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Clone)]
struct SkillBuckets;

impl MetricConstructor<HistogramWithExemplars<ExemplarLabels>> for SkillBuckets {
    fn new_metric(&self) -> HistogramWithExemplars<ExemplarLabels> {
        HistogramWithExemplars::new(
            [
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            ]
            .into_iter(),
        )
    }
}

impl Metrics {
    /// All at zero.
    pub(in crate::openclaw) fn new() -> Self {
        let mut registry = Registry::with_prefix("openclaw");
        let skills = Family::new_with_constructor(SkillBuckets);
        let running = Gauge::default();
        let refusals = Family::default();
        let requests = Family::default();
        registry.register_with_unit(
            "skill_duration",
            "Time from the call of a skill to its answer",
            Unit::Seconds,
            skills.clone(),
        );
        registry.register("skills_running", "Skills that run now", running.clone());
        registry.register(
            "egress_refused",
            "Calls that the gateway refused",
            refusals.clone(),
        );
        registry.register(
            "http_requests",
            "Requests to the agent's API",
            requests.clone(),
        );
        Self {
            registry,
            skills,
            running,
            refusals,
            requests,
        }
    }

    /// One run of a skill.
    pub(in crate::openclaw) fn skill(
        &self,
        skill: &str,
        version: &str,
        outcome: &'static str,
        took: Duration,
        trace_id: &str,
    ) {
        let labels = SkillLabels {
            skill: skill.to_owned(),
            version: version.to_owned(),
            outcome,
        };
        let exemplar = ExemplarLabels {
            trace_id: trace_id.to_owned(),
            skill: skill.to_owned(),
        };
        self.skills
            .get_or_create(&labels)
            .observe(took.as_secs_f64(), Some(exemplar), None);
    }

    /// One refusal. A reason that is no short word is counted as `other`, so
    /// that nothing the other side sends makes new series without end.
    pub(in crate::openclaw) fn refusal(&self, skill: &str, reason: &str) {
        let plain = (1..=48).contains(&reason.len())
            && reason
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'-');
        self.refusals
            .get_or_create(&RefusalLabels {
                skill: skill.to_owned(),
                reason: if plain { reason } else { "other" }.to_owned(),
            })
            .inc();
    }

    /// One request to the API, by the route that took it.
    pub(in crate::openclaw) fn request(&self, method: &http::Method, route: &str, status: u16) {
        let method = match *method {
            http::Method::GET => "GET",
            http::Method::POST => "POST",
            _ => "other",
        };
        self.requests
            .get_or_create(&RequestLabels {
                method,
                route: route.to_owned(),
                status,
            })
            .inc();
    }

    /// The OpenMetrics text.
    ///
    /// # Errors
    /// Where a label cannot be written; none of ours is such.
    pub(in crate::openclaw) fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

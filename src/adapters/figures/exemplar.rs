//! Where to look at one observation: its trace, and the skill it was for.

use std::fmt;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

/// The labels of an exemplar: at most 128 characters, names and values
/// together (OpenMetrics 1.0, section "Exemplars").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exemplar {
    trace_id: Box<str>,
    skill: Option<Box<str>>,
}

const TRACE_ID_CHARS: usize = 32;
/// What the format leaves after both names and a trace.
const MAX_SKILL_CHARS: usize = 128 - TRACE_ID_CHARS - "trace_id".len() - "skill".len();

impl Exemplar {
    /// `None` where the trace is not 32 hexadecimal digits. A skill that is
    /// too long for an exemplar is left out.
    pub(super) fn new(trace_id: &str, skill: Option<&str>) -> Option<Self> {
        let digits = trace_id.bytes().all(|byte| byte.is_ascii_hexdigit());
        (digits && trace_id.len() == TRACE_ID_CHARS).then(|| Self {
            trace_id: trace_id.into(),
            skill: skill
                .filter(|skill| !skill.is_empty() && skill.chars().count() <= MAX_SKILL_CHARS)
                .map(Into::into),
        })
    }
}

impl EncodeLabelSet for Exemplar {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        ("trace_id", &*self.trace_id).encode(encoder.encode_label())?;
        match &self.skill {
            Some(skill) => ("skill", &**skill).encode(encoder.encode_label()),
            None => Ok(()),
        }
    }
}

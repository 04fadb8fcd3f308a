//! Counters, gauges and histograms with exemplars, and their text.
//!
//! Observing waits for no lock and allocates nothing once a label has been seen,
//! which the usual client library cannot do for exemplars: it holds a lock and
//! a hash map for each histogram. The text is that of OpenMetrics 1.0. Which
//! figures there are is said one floor up.

use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

/// A kind of figure, and how one is written.
pub(super) trait Metric: Send + Sync {
    /// The word after `# TYPE`.
    const KIND: &'static str;

    /// Writes the samples; `labels` is `a="b",c="d"`, or empty.
    fn write(&self, out: &mut String, name: &str, labels: &str);
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Takes over what someone else has counted.
    pub(super) fn set(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }
}

impl Metric for Counter {
    const KIND: &'static str = "counter";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let count = self.0.load(Ordering::Relaxed);
        sample(out, name, "_total", labels, "", count);
        out.push('\n');
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicI64);

impl Gauge {
    pub(super) fn add(&self, change: i64) {
        self.0.fetch_add(change, Ordering::Relaxed);
    }

    pub(super) fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

impl Metric for Gauge {
    const KIND: &'static str = "gauge";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let value = self.0.load(Ordering::Relaxed);
        sample(out, name, "", labels, "", value);
        out.push('\n');
    }
}

/// Text that is its label; the value is always 1.
#[derive(Debug, Default)]
pub(super) struct Info;

impl Metric for Info {
    const KIND: &'static str = "info";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        sample(out, name, "_info", labels, "", 1);
        out.push('\n');
    }
}

/// How long things took, by bucket, each bucket with its latest exemplar.
#[derive(Debug)]
pub(super) struct Histogram {
    /// One for each bound, and one for what is above.
    buckets: Box<[Bucket]>,
    bounds: &'static [f64],
    nanoseconds: AtomicU64,
}

#[derive(Debug, Default)]
struct Bucket {
    count: AtomicU64,
    exemplar: Mutex<Option<Exemplar>>,
}

/// Where to look at one observation: its trace, and the skill it was for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exemplar {
    trace_id: [u8; TRACE_ID_BYTES],
    skill: [u8; MAX_SKILL_BYTES],
    skill_bytes: usize,
    took: Duration,
    at: SystemTime,
}

const TRACE_ID_BYTES: usize = 32;
/// What OpenMetrics leaves of its 128 characters after both names and a trace.
const MAX_SKILL_BYTES: usize = 128 - TRACE_ID_BYTES - "trace_id".len() - "skill".len();

impl Exemplar {
    /// `None` where the trace is not 32 hexadecimal digits. A skill that is
    /// too long for an exemplar is left out.
    pub(super) fn new(
        trace_id: &str,
        skill: Option<&str>,
        took: Duration,
        at: SystemTime,
    ) -> Option<Self> {
        let trace_id: [u8; TRACE_ID_BYTES] = trace_id.as_bytes().try_into().ok()?;
        if !trace_id.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let fitting = skill.filter(|skill| skill.len() <= MAX_SKILL_BYTES);
        let text = fitting.unwrap_or_default().as_bytes();
        let mut skill = [0; MAX_SKILL_BYTES];
        skill[..text.len()].copy_from_slice(text);
        Some(Self {
            trace_id,
            skill,
            skill_bytes: text.len(),
            took,
            at,
        })
    }

    fn write(&self, out: &mut String) {
        out.push_str(" # {trace_id=\"");
        out.push_str(&String::from_utf8_lossy(&self.trace_id));
        if self.skill_bytes > 0 {
            out.push_str("\",skill=\"");
            let skill = String::from_utf8_lossy(&self.skill[..self.skill_bytes]);
            escape(out, &skill);
        }
        let at = self.at.duration_since(SystemTime::UNIX_EPOCH);
        let at = at.unwrap_or_default().as_secs_f64();
        // Writing to a string does not fail.
        let _ = write!(out, "\"}} {} {at:.6}", self.took.as_secs_f64());
    }
}

impl Histogram {
    /// With these upper bounds, in seconds and rising.
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| Bucket::default()).collect();
        Self {
            buckets,
            bounds,
            nanoseconds: AtomicU64::new(0),
        }
    }

    pub(super) fn observe(&self, took: Duration, exemplar: Option<Exemplar>) {
        let seconds = took.as_secs_f64();
        let place = self.bounds.partition_point(|bound| *bound < seconds);
        let bucket = &self.buckets[place];
        bucket.count.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        // Any recent one will do, so nobody waits to place his.
        if let Some(exemplar) = exemplar
            && let Ok(mut place) = bucket.exemplar.try_lock()
        {
            *place = Some(exemplar);
        }
    }
}

impl Metric for Histogram {
    const KIND: &'static str = "histogram";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut count = 0;
        for (place, bucket) in self.buckets.iter().enumerate() {
            // Counted along the way, so that the last bucket is the count.
            count += bucket.count.load(Ordering::Relaxed);
            let bound = match self.bounds.get(place) {
                Some(bound) => format!("le=\"{bound:?}\""),
                None => "le=\"+Inf\"".to_owned(),
            };
            sample(out, name, "_bucket", labels, &bound, count);
            let exemplar = *bucket
                .exemplar
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(exemplar) = exemplar {
                exemplar.write(out);
            }
            out.push('\n');
        }
        let sum = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed));
        sample(out, name, "_sum", labels, "", sum.as_secs_f64());
        out.push('\n');
        sample(out, name, "_count", labels, "", count);
        out.push('\n');
    }
}

/// Figures of one name and kind, told apart by the values of `N` labels.
pub(super) struct Family<const N: usize, M> {
    name: &'static str,
    help: &'static str,
    labels: [&'static str; N],
    make: Box<dyn Fn() -> M + Send + Sync>,
    /// All there are, in the order in which they came.
    all: Mutex<Vec<Member<N, M>>>,
    /// The same for finding them without a lock. A member that finds no place
    /// here is found in `all`.
    places: Box<[OnceLock<Member<N, M>>]>,
}

struct Member<const N: usize, M> {
    values: [Arc<str>; N],
    metric: Arc<M>,
}

impl<const N: usize, M> Clone for Member<N, M> {
    fn clone(&self) -> Self {
        Self {
            values: self.values.clone(),
            metric: Arc::clone(&self.metric),
        }
    }
}

/// Reasons times listeners, with room to spare.
const PLACES: usize = 256;
/// How far a search goes.
const STEPS: usize = 16;

impl<const N: usize, M: Metric + Default + 'static> Family<N, M> {
    pub(super) fn new(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Self {
        Self::with(name, help, labels, M::default)
    }
}

impl<const N: usize> Family<N, Histogram> {
    pub(super) fn histogram(
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        bounds: &'static [f64],
    ) -> Self {
        Self::with(name, help, labels, move || Histogram::new(bounds))
    }
}

impl<const N: usize, M: Metric> Family<N, M> {
    fn with(
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        make: impl Fn() -> M + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            help,
            labels,
            make: Box::new(make),
            all: Mutex::default(),
            places: (0..if N == 0 { 1 } else { PLACES })
                .map(|_| OnceLock::new())
                .collect(),
        }
    }

    /// The figure with these values, made where it is new. Values must come
    /// from a bounded set.
    pub(super) fn at(&self, values: [&str; N]) -> Arc<M> {
        let mut found = None;
        self.on(values, |metric| found = Some(Arc::clone(metric)));
        found.unwrap_or_else(|| self.member(values).metric)
    }

    /// Does something with the figure with these values, without counting
    /// references.
    pub(super) fn on(&self, values: [&str; N], act: impl FnOnce(&Arc<M>)) {
        let start = place_of(values);
        for step in 0..STEPS.min(self.places.len()) {
            let place = &self.places[(start + step) % self.places.len()];
            let member = place.get_or_init(|| self.member(values));
            if member.is(values) {
                return act(&member.metric);
            }
        }
        act(&self.member(values).metric);
    }

    /// Leaves only the figure with these values.
    pub(super) fn only(&self, values: [&str; N]) {
        let member = self.member(values);
        *self.members() = vec![member];
    }

    pub(super) fn write(&self, out: &mut String) {
        let (name, help, kind) = (self.name, self.help, M::KIND);
        // Writing to a string does not fail.
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for unit in ["seconds", "bytes"] {
            if kind != "info" && name.ends_with(unit) {
                let _ = writeln!(out, "# UNIT {name} {unit}");
            }
        }
        let _ = writeln!(out, "# HELP {name} {help}");
        for member in self.members().iter() {
            let mut labels = String::new();
            for (label, value) in self.labels.iter().zip(&member.values) {
                if !labels.is_empty() {
                    labels.push(',');
                }
                labels.push_str(label);
                labels.push_str("=\"");
                escape(&mut labels, value);
                labels.push('"');
            }
            member.metric.write(out, name, &labels);
        }
    }

    fn member(&self, values: [&str; N]) -> Member<N, M> {
        let mut members = self.members();
        if let Some(member) = members.iter().find(|member| member.is(values)) {
            return member.clone();
        }
        let member = Member {
            values: values.map(Arc::from),
            metric: Arc::new((self.make)()),
        };
        members.push(member.clone());
        member
    }

    fn members(&self) -> std::sync::MutexGuard<'_, Vec<Member<N, M>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<const N: usize, M> std::fmt::Debug for Family<N, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Family")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<const N: usize, M> Member<N, M> {
    fn is(&self, values: [&str; N]) -> bool {
        std::iter::zip(&self.values, values).all(|(ours, value)| **ours == *value)
    }
}

/// Where to begin to search. By address, since almost all values are constants
/// of the program or names of listeners; the text then decides.
fn place_of<const N: usize>(values: [&str; N]) -> usize {
    let mixed = values.iter().fold(0_usize, |mixed, value| {
        (mixed ^ value.as_ptr().addr()).wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as usize)
    });
    mixed >> (usize::BITS / 2)
}

fn sample(
    out: &mut String,
    name: &str,
    suffix: &str,
    labels: &str,
    more: &str,
    value: impl std::fmt::Display,
) {
    out.push_str(name);
    out.push_str(suffix);
    if !labels.is_empty() || !more.is_empty() {
        let comma = if labels.is_empty() || more.is_empty() {
            ""
        } else {
            ","
        };
        // Writing to a string does not fail.
        let _ = write!(out, "{{{labels}{comma}{more}}}");
    }
    let _ = write!(out, " {value}");
}

/// Escapes a label's value (OpenMetrics 1.0, section "ABNF").
fn escape(out: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

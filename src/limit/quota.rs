//! How much, in how long.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The most that a quota counts, in one period or at once: enough for bytes.
pub const MAX_COUNT: u64 = 1 << 50;

/// So many units in a period, and so many at once.
///
/// Written `100/s`, `6000/m`, `10/s burst 20`; periods are `s`, `m`, `h` and
/// `d`, and counts may end in `k`, `M` or `G` (thousands) or `Ki`, `Mi` or `Gi`
/// (1024s, also as `KiB`, `MiB` and `GiB`). Without `burst`, as much at once as in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    count: u64,
    period: Duration,
    burst: u64,
}

/// Why a string is not a quota.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// Another form.
    #[error("{0:?}: write a quota such as \"100/s\", \"6000/m\" or \"10/s burst 20\"")]
    Form(String),
    /// A period that is not one of four.
    #[error("{0:?} is no period: write \"s\", \"m\", \"h\" or \"d\"")]
    Period(String),
    /// Nothing would ever pass.
    #[error("a quota of 0 lets nothing pass; write a deny rule for that")]
    Zero,
    /// Over [`MAX_COUNT`].
    #[error("the quota is larger than is counted; leave the limit out")]
    TooLarge,
}

impl Quota {
    /// `count` units in each `period`, and at most `burst` at once.
    ///
    /// # Errors
    /// [`QuotaError::Zero`] and [`QuotaError::TooLarge`]; a period is 1 ns to
    /// one day.
    pub fn new(count: u64, period: Duration, burst: u64) -> Result<Self, QuotaError> {
        if count == 0 || burst == 0 || period.is_zero() {
            return Err(QuotaError::Zero);
        }
        if count.max(burst) > MAX_COUNT || period > DAY {
            return Err(QuotaError::TooLarge);
        }
        Ok(Self {
            count,
            period,
            burst,
        })
    }

    /// Parses `10/s burst 20`.
    ///
    /// # Errors
    /// [`QuotaError`], which says what to write.
    pub fn parse(raw: &str) -> Result<Self, QuotaError> {
        let form = || QuotaError::Form(raw.to_owned());
        let mut words = raw.split_ascii_whitespace();
        let (count, period) = words
            .next()
            .and_then(|rate| rate.split_once('/'))
            .ok_or_else(form)?;
        let count = parse_count(count).ok_or_else(form)??;
        let period = match period {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "d" => DAY,
            other => return Err(QuotaError::Period(other.to_owned())),
        };
        let burst = match (words.next(), words.next(), words.next()) {
            (None, ..) => count,
            (Some("burst"), Some(burst), None) => parse_count(burst).ok_or_else(form)??,
            _ => return Err(form()),
        };
        Self::new(count, period, burst)
    }

    /// Units in a period.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The period.
    #[must_use]
    pub fn period(&self) -> Duration {
        self.period
    }

    /// Units at once.
    #[must_use]
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// Whether it lets pass more than another, at once or over time.
    #[must_use]
    pub fn is_more_than(&self, other: &Self) -> bool {
        let rate = |mine: &Self, theirs: &Self| u128::from(mine.count) * theirs.period.as_nanos();
        self.burst > other.burst || rate(self, other) > rate(other, self)
    }

    /// As it is written for bytes: `10GiB/d`.
    #[must_use]
    pub fn of_bytes(&self) -> String {
        let written = |count: u64| {
            let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
            let whole = units
                .into_iter()
                .find(|(unit, _)| count.is_multiple_of(*unit));
            whole.map_or_else(
                || count.to_string(),
                |(unit, name)| format!("{}{name}", count / unit),
            )
        };
        self.written(written)
    }

    fn written(&self, count: impl Fn(u64) -> String) -> String {
        let period = match self.period.as_secs() {
            1 => "s".to_owned(),
            60 => "m".to_owned(),
            3600 => "h".to_owned(),
            86_400 => "d".to_owned(),
            _ => format!("{:?}", self.period),
        };
        let rate = format!("{}/{period}", count(self.count));
        match self.burst == self.count {
            true => rate,
            false => format!("{rate} burst {}", count(self.burst)),
        }
    }

    /// The part of one among so many, never nothing.
    pub(super) fn share(&self, of: u64) -> Self {
        let of = of.max(1);
        let (count, period) = match self.count / of {
            // One unit in so many periods is more exact than none in one.
            0 => (
                1,
                self.period * u32::try_from(of / self.count).unwrap_or(u32::MAX),
            ),
            count => (count, self.period),
        };
        Self {
            count,
            period,
            burst: (self.burst / of).max(1),
        }
    }

    /// How long until so many units have come back, in nanoseconds, rounded up
    /// so that nobody gets more than the quota.
    pub(super) fn nanos_for(&self, units: u64) -> u128 {
        (u128::from(units) * self.period.as_nanos()).div_ceil(u128::from(self.count))
    }

    /// How many whole units come back in so many nanoseconds.
    pub(super) fn units_in(&self, nanos: u128) -> u64 {
        // Nanoseconds here are at most those of a burst, so that this fits.
        let units = nanos.saturating_mul(u128::from(self.count)) / self.period.as_nanos();
        u64::try_from(units).unwrap_or(u64::MAX)
    }
}

const DAY: Duration = Duration::from_secs(86_400);

/// Decimal digits and a unit. `None` is another form.
fn parse_count(raw: &str) -> Option<Result<u64, QuotaError>> {
    let digits = raw.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match &raw[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" | "KiB" => 1 << 10,
        "Mi" | "MiB" => 1 << 20,
        "Gi" | "GiB" => 1 << 30,
        _ => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count = digits
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(factor));
    Some(count.ok_or(QuotaError::TooLarge))
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written(|count| count.to_string()))
    }
}

impl FromStr for Quota {
    type Err = QuotaError;
    fn from_str(raw: &str) -> Result<Self, QuotaError> {
        Self::parse(raw)
    }
}

impl<'de> Deserialize<'de> for Quota {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = String::deserialize(from)?;
        Self::parse(&raw).map_err(serde::de::Error::custom)
    }
}

impl Serialize for Quota {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_read_and_written() {
        for (raw, count, seconds, burst, written) in [
            ("100/s", 100, 1, 100, "100/s"),
            ("6000/m", 6000, 60, 6000, "6000/m"),
            ("10/s burst 20", 10, 1, 20, "10/s burst 20"),
            ("  1/d   burst 1 ", 1, 86_400, 1, "1/d"),
            ("10Mi/s", 10 << 20, 1, 10 << 20, "10485760/s"),
            ("5k/h burst 1k", 5000, 3600, 1000, "5000/h burst 1000"),
        ] {
            let quota = Quota::parse(raw).expect(raw);
            let period = Duration::from_secs(seconds);
            assert_eq!(Ok(quota), Quota::new(count, period, burst), "{raw}");
            assert_eq!(quota.to_string(), written, "{raw}");
        }
    }

    #[test]
    fn mistakes_say_what_to_write() {
        let form = |raw: &str| QuotaError::Form(raw.into());
        for (raw, error) in [
            ("", form("")),
            ("100", form("100")),
            ("-1/s", form("-1/s")),
            ("+1/s", form("+1/s")),
            ("1.5/s", form("1.5/s")),
            ("10x/s", form("10x/s")),
            ("10/s burst", form("10/s burst")),
            ("10/s 20", form("10/s 20")),
            ("10/s burst 20 more", form("10/s burst 20 more")),
            ("10/sec", QuotaError::Period("sec".into())),
            ("10/", QuotaError::Period(String::new())),
            ("0/s", QuotaError::Zero),
            ("10/s burst 0", QuotaError::Zero),
            ("99999999999999999999/s", QuotaError::TooLarge),
            ("9999999G/s", QuotaError::TooLarge),
        ] {
            assert_eq!(Quota::parse(raw), Err(error), "{raw:?}");
        }
    }
}

//! Dates as files write them: RFC 3339 in UTC, in whole seconds.

use super::claims::MAX_DATE;

/// Reads `2026-11-21T16:58:28Z` as seconds since 1970.
///
/// # Errors
/// What to write instead.
pub fn parse(text: &str) -> Result<u64, String> {
    read(text)
        .filter(|seconds| *seconds <= MAX_DATE)
        .ok_or_else(|| "write a time in UTC, such as 2027-01-31T00:00:00Z".to_owned())
}

/// Writes seconds since 1970 as [`parse`] reads them. What lies after the year
/// 9999 is written as its last second.
#[must_use]
pub fn rfc3339(seconds: u64) -> String {
    let seconds = seconds.min(MAX_DATE);
    let (mut year, mut days) = (1970, seconds / 86_400);
    while days >= days_in(year) {
        days -= days_in(year);
        year += 1;
    }
    let mut month = 0;
    while days >= month_days(year, month) {
        days -= month_days(year, month);
        month += 1;
    }
    let second = seconds % 86_400;
    format!(
        "{year:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        month + 1,
        days + 1,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

fn read(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let marks = [
        (4, b'-'),
        (7, b'-'),
        (10, b'T'),
        (13, b':'),
        (16, b':'),
        (19, b'Z'),
    ];
    if bytes.len() != 20 || marks.iter().any(|(at, mark)| bytes[*at] != *mark) {
        return None;
    }
    let number = |from: usize, to: usize| {
        let digits = text.get(from..to)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
        digits.parse::<u64>().ok()
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let month = month.checked_sub(1).filter(|month| *month < 12)?;
    let day = day.checked_sub(1)?;
    if year < 1970 || day >= month_days(year, month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days: u64 = (1970..year).map(days_in).sum::<u64>()
        + (0..month).map(|month| month_days(year, month)).sum::<u64>()
        + day;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

/// Of a month counted from 0.
fn month_days(year: u64, month: u64) -> u64 {
    match month {
        1 => 28 + u64::from(is_leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (MAX_DATE, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
            assert_eq!(parse(text), Ok(seconds));
        }
    }

    #[test]
    fn what_is_no_date() {
        for text in [
            "",
            "2026-11-21",
            "2026-11-21 16:58:28Z",
            "2026-11-21T16:58:28+01:00",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-00-10T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "+026-01-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-01-01T00:00:0\u{e9}",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(seconds in 0..=MAX_DATE) {
            prop_assert_eq!(parse(&rfc3339(seconds)), Ok(seconds));
        }
    }
}

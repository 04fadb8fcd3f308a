//! When an ACME server wants a certificate renewed (RFC 9773). It is asked in
//! clear GETs, without an account.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::adapters::way_out::WayOut;
use crate::config::Acme;
use crate::identity::parse_rfc3339;

use super::Ordered;
use super::order::{Failure, client, identifier};

/// When to ask again where the server does not say.
const ASK_AGAIN: Duration = Duration::from_secs(6 * 3600);

/// From when until when the server wants the certificate renewed, and after
/// what time to ask again. `None` where it says nothing of that.
///
/// # Errors
/// [`Failure`].
pub async fn suggested_window(
    acme: &Acme,
    ordered: &Ordered,
    way: &Arc<WayOut>,
) -> Result<Option<((SystemTime, SystemTime), Duration)>, Failure> {
    let Some(id) = identifier(ordered) else {
        return Ok(None);
    };
    let client = client(acme, way)?;
    let (directory, _) = client.get(&acme.directory).await.map_err(Failure::of)?;
    let directory: Directory = serde_json::from_slice(&directory).map_err(Failure::of)?;
    let Some(url) = directory.renewal_info else {
        return Ok(None);
    };
    let url = format!("{}/{id}", url.trim_end_matches('/'));
    let (info, again) = client.get(&url).await.map_err(Failure::of)?;
    let window = window(&info).map_err(Failure::of)?;
    Ok(Some((window, again.unwrap_or(ASK_AGAIN))))
}

#[derive(Deserialize)]
struct Directory {
    #[serde(rename = "renewalInfo")]
    renewal_info: Option<String>,
}

#[derive(Deserialize)]
struct RenewalInfo {
    #[serde(rename = "suggestedWindow")]
    suggested_window: Window,
}

#[derive(Deserialize)]
struct Window {
    start: String,
    end: String,
}

fn window(info: &[u8]) -> Result<(SystemTime, SystemTime), String> {
    let info: RenewalInfo = serde_json::from_slice(info).map_err(|error| error.to_string())?;
    let Window { start, end } = info.suggested_window;
    let (start, end) = (time(&start)?, time(&end)?);
    if end <= start {
        return Err("the window of renewal ends before it begins".to_owned());
    }
    Ok((start, end))
}

/// A time of RFC 3339; fractions of a second are passed over.
fn time(text: &str) -> Result<SystemTime, String> {
    let wrong = || format!("{text:?} is no time of RFC 3339");
    let (whole, rest) = text.split_at_checked(19).ok_or_else(wrong)?;
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => rest,
    };
    let ahead = match zone.as_bytes() {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), rest @ ..] if rest.len() == 5 && rest[2] == b':' => {
            let number = |at: usize| zone.get(at..at + 2)?.parse::<i64>().ok();
            let (hours, minutes) = number(1).zip(number(4)).ok_or_else(wrong)?;
            let seconds = hours * 3600 + minutes * 60;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return Err(wrong()),
    };
    let seconds = parse_rfc3339(&format!("{whole}Z")).map_err(|_| wrong())?;
    let seconds = seconds.checked_add_signed(-ahead).ok_or_else(wrong)?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_every_zone() {
        for (case, text, seconds) in [
            ("UTC", "1970-01-02T00:00:00Z", Some(86_400)),
            ("a fraction", "1970-01-02T00:00:00.123456Z", Some(86_400)),
            ("east", "1970-01-02T02:30:00+02:30", Some(86_400)),
            ("west", "1970-01-01T23:00:00.5-01:00", Some(86_400)),
            ("before 1970", "1970-01-01T00:00:00+01:00", None),
            ("no zone", "1970-01-02T00:00:00", None),
            ("half a zone", "1970-01-02T00:00:00+01", None),
            ("no time", "tomorrow", None),
            ("an odd character", "1970-01-02T00:00:0\u{e4}Z", None),
        ] {
            let expected = seconds.map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s));
            assert_eq!(time(text).ok(), expected, "{case}");
        }
    }

    #[test]
    fn a_window_has_two_ends() {
        let info = |start: &str, end: &str| {
            let text = format!("{{\"suggestedWindow\":{{\"start\":{start:?},\"end\":{end:?}}}}}");
            window(text.as_bytes())
        };
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        assert!(info(early, late).is_ok());
        assert!(info(late, early).is_err());
        assert!(info(early, early).is_err());
        assert!(window(b"{}").is_err());
    }
}

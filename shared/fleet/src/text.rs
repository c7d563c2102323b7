//! Lengths and times for people.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use strongroom_format::ids::TimestampMs;

/// A length in binary units, to three digits.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A time as RFC 3339, in UTC, to the second.
pub fn time(at: TimestampMs) -> String {
    let second = i64::try_from(at.0 / 1000).ok().and_then(|second| Timestamp::from_second(second).ok());
    second.map_or_else(|| "?".to_owned(), |at| at.to_string())
}

/// A time to the minute, as clocks of a time zone show it.
pub fn time_in(at: TimestampMs, zone: &TimeZone) -> String {
    let millis = i64::try_from(at.0).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok());
    millis.map_or_else(|| "?".to_owned(), |at| zone.to_datetime(at).strftime("%a %Y-%m-%d %H:%M").to_string())
}

/// How long ago something was, in its largest unit.
pub fn ago(at: TimestampMs, now: TimestampMs) -> String {
    let seconds = now.0.saturating_sub(at.0) / 1000;
    let (count, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// Units of lengths of time, the longest first, milliseconds. Each is so many of the next: a length is said in them to the last millisecond.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// A length of time as [`millis`] reads it, to the millisecond: `1d 12h`.
pub fn length(ms: u64) -> String {
    let mut rest = ms;
    let mut said = Vec::new();
    for (unit, length) in UNITS {
        if rest >= length {
            said.push(format!("{}{unit}", rest / length));
            rest %= length;
        }
    }
    if said.is_empty() { "0s".to_owned() } else { said.join(" ") }
}

/// Reads a length of time such as `30m`, `1d 12h` or `4w`; a day has 24 hours. Milliseconds.
///
/// # Errors
/// What is wrong with it.
pub fn millis(text: &str) -> Result<u64, String> {
    let shown = || text.chars().take(80).collect::<String>().escape_debug().to_string();
    let bad = || format!("'{}' is no length of time; say 30m, 12h, 7d or 4w", shown());
    let span: Span = text.parse().map_err(|_| bad())?;
    if span.get_months() != 0 || span.get_years() != 0 {
        return Err(format!("'{}': months and years differ in length; say it in days", shown()));
    }
    if span.is_negative() || span.get_microseconds() != 0 || span.get_nanoseconds() != 0 {
        return Err(bad());
    }
    let parts = [
        (i64::from(span.get_weeks()), 7 * 86_400_000),
        (i64::from(span.get_days()), 86_400_000),
        (i64::from(span.get_hours()), 3_600_000),
        (span.get_minutes(), 60_000),
        (span.get_seconds(), 1000),
        (span.get_milliseconds(), 1),
    ];
    let mut ms: u64 = 0;
    for (count, length) in parts {
        let part = u64::try_from(count).ok().and_then(|count| count.checked_mul(length)).ok_or_else(bad)?;
        ms = ms.checked_add(part).ok_or_else(bad)?;
    }
    Ok(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        let now = TimestampMs(1_772_323_200_000);
        let before = |seconds: u64| ago(TimestampMs(now.0 - seconds * 1000), now);
        assert_eq!(before(0), "just now");
        assert_eq!(before(60), "1 minute ago");
        assert_eq!(before(47 * 3600), "47 hours ago");
        assert_eq!(before(49 * 3600), "2 days ago");
        assert_eq!(ago(TimestampMs(now.0 + 5000), now), "just now", "a host's clock may run ahead");
        assert_eq!(time(now), "2026-03-01T00:00:00Z");
        assert_eq!(time_in(now, &TimeZone::get("Europe/Berlin").unwrap()), "Sun 2026-03-01 01:00");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes(15 << 20), "15.0 MiB");
        assert_eq!(bytes(150 << 30), "150 GiB");
    }

    #[test]
    fn a_length_of_time_is_read_as_it_is_said() {
        for (ms, said) in [
            (0, "0s"),
            (5_400_000, "1h 30m"),
            (129_600_000, "1d 12h"),
            (999, "999ms"),
            (u64::from(u32::MAX) * 7, "347d 23h 19m 31s 65ms"),
        ] {
            assert_eq!((length(ms).as_str(), millis(said)), (said, Ok(ms)));
        }
        for (text, ms) in
            [("90m", 5_400_000), ("1.5h", 5_400_000), ("2w", 1_209_600_000), ("26 hours", 93_600_000)]
        {
            assert_eq!(millis(text), Ok(ms), "{text}");
        }
        for wrong in ["", "36", "-1h", "1month", "an hour", "1us"] {
            assert!(millis(wrong).is_err(), "{wrong}");
        }
    }
}

//! Lengths and times for people.

use jiff::Timestamp;
use jiff::tz::TimeZone;
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
}

//! What is said in words.

use jiff::Span;
use strongroom_catalog::history::Changes;
use strongroom_fleet::text::bytes;

/// A cron line in words; nothing for one that is none.
pub fn cron(line: &str) -> String {
    // It is understood by the fleet's own reader first (`Schedule::slots`); this only finds the words.
    let described = line.trim().parse::<croner::Cron>().map(|cron| cron.describe());
    described.map(|words| words.trim_end_matches('.').to_owned()).unwrap_or_default()
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

/// Reads a length of time, as the command line does.
///
/// # Errors
/// What is wrong with it.
pub fn millis(text: &str) -> Result<u64, String> {
    let shown = || text.chars().take(80).collect::<String>().escape_debug().to_string();
    let bad = || format!("'{}' is no length of time; say 30m, 36h, 7d or 4w", shown());
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

/// Backups that are named; of more than these only the number is said.
const NAMED: usize = 3;

/// What changed in a step of the catalog.
pub fn changes(changes: &Changes) -> Vec<String> {
    let mut said = Vec::new();
    if changes.rebuilt {
        said.push("the catalog was made anew".to_owned());
    }
    for (what, backups) in [
        ("came in", &changes.committed),
        ("to the trash", &changes.trashed),
        ("out of the trash", &changes.undeleted),
        ("removed for good", &changes.purged),
    ] {
        if backups.is_empty() {
            continue;
        }
        let named: Vec<String> =
            backups.iter().take(NAMED).map(|(volume, backup)| format!("{backup} of {volume}")).collect();
        let more = backups.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        said.push(format!("{what}: {}{more}", named.join(", ")));
    }
    for (what, objects, length) in [
        ("condemned", changes.condemned_objects, changes.condemned_bytes),
        ("doomed", changes.doomed_objects, changes.doomed_bytes),
    ] {
        if objects > 0 {
            said.push(format!("{what}: {objects} objects, {}", bytes(length)));
        }
    }
    if changes.forgotten_batches > 0 {
        said.push(format!("batches of deleted objects forgotten: {}", changes.forgotten_batches));
    }
    if said.is_empty() {
        let what = if changes.indexes { "lists of packs were merged" } else { "nothing that a backup shows" };
        said.push(what.to_owned());
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn cron_lines_are_said_as_the_fleet_understands_them() {
        for (line, words) in [
            ("15 */6 * * *", "6"),
            ("@daily", "00:00"),
            ("0 3 * * 0", "Sunday"),
            ("0 3 * * 7", "Sunday"),
            ("0 3 * * 1", "Monday"),
            ("0 3 1 1 *", "January"),
        ] {
            assert!(cron(line).contains(words), "{line}: {}", cron(line));
        }
        assert_eq!(cron("61 * * * *"), "");
        assert_eq!(cron(""), "");
    }
}

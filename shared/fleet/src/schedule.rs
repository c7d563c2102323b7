//! Cron lines with a time zone, and the slots they name.
//!
//! A *slot* is a moment at which a schedule asks for a backup. Invariant: slots depend on the schedule alone, never on
//! when somebody looks; so two schedulers that look at different times name the same ones.

use std::str::FromStr;

use chrono::{Datelike, NaiveDateTime, TimeZone as _, Timelike, Utc};
use cron::TimeUnitSpec;
use jiff::civil;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use strongroom_format::ids::TimestampMs;

/// The longest cron line that is looked at, bytes.
const MAX_CRON_BYTES: usize = 256;
/// The longest jitter, milliseconds: an hour.
pub const MAX_JITTER_MS: u64 = 3_600_000;
/// How far before a moment the search begins: more than any zone moves its clocks, but for those few that once skipped
/// a whole day at the date line; their skipped slots fall on those of the next day.
const SLACK_MS: u64 = 3 * 3_600_000;

/// When a volume is backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Five fields, as in crontab(5): minute, hour, day of the month, month, day of the week (0 and 7 are Sunday); or
    /// `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`.
    pub cron: String,
    /// The IANA name of the time zone whose clock it follows.
    #[serde(default = "utc")]
    pub zone: String,
    /// Runs begin up to so much later than their slot, each volume always as much: a thousand volumes of one cron line
    /// don't start in one second. Milliseconds.
    #[serde(default = "default_jitter")]
    pub jitter_ms: u64,
    /// Whether slots pass by unused.
    #[serde(default)]
    pub paused: bool,
}

fn utc() -> String {
    "UTC".to_owned()
}

const fn default_jitter() -> u64 {
    5 * 60_000
}

/// A cron line that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("schedule '{cron}': {reason}")]
pub struct ScheduleError {
    cron: String,
    reason: String,
}

/// A schedule that was understood.
#[derive(Debug, Clone)]
pub struct Slots {
    cron: cron::Schedule,
    zone: TimeZone,
    every_hour: bool,
}

impl Schedule {
    /// Understands the schedule.
    ///
    /// # Errors
    /// What is wrong with it, and how it should be.
    pub fn slots(&self) -> Result<Slots, ScheduleError> {
        let error = |reason: String| ScheduleError { cron: self.cron.chars().take(80).collect(), reason };
        if self.cron.len() > MAX_CRON_BYTES {
            return Err(error("is too long".to_owned()));
        }
        if self.jitter_ms > MAX_JITTER_MS {
            return Err(error("its jitter is longer than an hour".to_owned()));
        }
        let line = quartz_line(self.cron.trim()).map_err(error)?;
        let cron = cron::Schedule::from_str(&line).map_err(|problem| error(problem.to_string()))?;
        if cron.after(&Utc.with_ymd_and_hms(2024, 1, 1, 0, 0, 0).unwrap()).next().is_none() {
            return Err(error("never comes round".to_owned()));
        }
        let zone = TimeZone::get(&self.zone)
            .map_err(|_| error(format!("'{}' is no time zone; say one such as Europe/Berlin", self.zone)))?;
        let every_hour = cron.hours().is_all();
        Ok(Slots { cron, zone, every_hour })
    }
}

/// Turns five fields of crontab(5) into what the `cron` crate reads: seconds first, and days of the week by name, since
/// it counts them from 1 for Sunday.
fn quartz_line(cron: &str) -> Result<String, String> {
    if let Some(name) = cron.strip_prefix('@') {
        return match name {
            "hourly" | "daily" | "weekly" | "monthly" | "yearly" => Ok(cron.to_owned()),
            _ => Err("say @hourly, @daily, @weekly, @monthly, @yearly, or five fields".to_owned()),
        };
    }
    let fields: Vec<&str> = cron.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = fields.as_slice() else {
        return Err(format!(
            "has {} fields; a cron line has five: minute hour day-of-month month day-of-week",
            fields.len()
        ));
    };
    let any = |field: &str| field == "*" || field == "?";
    if !any(day) && !any(weekday) {
        // crontab(5) would take either, most people mean both: nobody should have to guess with backups.
        return Err("names days of the month and days of the week; make one of them *".to_owned());
    }
    Ok(format!("0 {minute} {hour} {day} {month} {}", weekdays_by_name(weekday)?))
}

fn weekdays_by_name(field: &str) -> Result<String, String> {
    const NAMES: [&str; 8] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    let by_name = |text: &str| -> Result<String, String> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(text.to_owned());
        }
        let number = text.parse::<usize>().ok().and_then(|number| NAMES.get(number));
        number
            .map(|name| (*name).to_owned())
            .ok_or_else(|| format!("'{text}' is no day of the week (0 to 7)"))
    };
    let mut parts = Vec::new();
    for part in field.split(',') {
        let (days, step) = part.split_once('/').map_or((part, None), |(days, step)| (days, Some(step)));
        let mut part = match days.split_once('-') {
            Some((from, to)) => format!("{}-{}", by_name(from)?, by_name(to)?),
            None => by_name(days)?,
        };
        if let Some(step) = step {
            part = format!("{part}/{step}");
        }
        parts.push(part);
    }
    Ok(parts.join(","))
}

impl Slots {
    /// The first slot after a moment; `None` if there is none any more.
    ///
    /// Cron lines are read on the zone's own clock. An hour that the clock skips moves its slots behind the gap. In an
    /// hour that comes twice, a line that runs every hour runs in both, any other in the first.
    pub fn after(&self, moment: TimestampMs) -> Option<TimestampMs> {
        self.iter_after(moment).next()
    }

    /// The slots after `from` and not after `to`: how many, and the last of them. Counting ends at `limit`, the last
    /// one is then the last that was counted.
    pub fn between(&self, from: TimestampMs, to: TimestampMs, limit: usize) -> (usize, Option<TimestampMs>) {
        let (mut count, mut last) = (0, None);
        for slot in self.iter_after(from).take_while(|slot| *slot <= to).take(limit) {
            count += 1;
            last = Some(slot);
        }
        (count, last)
    }

    /// The slots after a moment, in order.
    pub fn iter_after(&self, moment: TimestampMs) -> impl Iterator<Item = TimestampMs> + '_ {
        // Two candidates of one reading of the clock, or of two around a gap, may be out of order by up to the size of
        // a gap or a fold: a window of candidates is sorted.
        let mut upcoming = std::collections::BTreeSet::new();
        let mut candidates = self.readings_after(moment.0.saturating_sub(SLACK_MS));
        let mut exhausted = false;
        let mut given = moment;
        std::iter::from_fn(move || {
            loop {
                let newest: u64 = upcoming.last().copied().unwrap_or_default();
                let oldest = upcoming.first().copied();
                // The first is sure to be next once the search is further than any gap or fold.
                if let Some(first) = oldest
                    && (exhausted || newest > first + SLACK_MS)
                {
                    upcoming.remove(&first);
                    if first > given.0 {
                        given = TimestampMs(first);
                        return Some(given);
                    }
                    continue;
                }
                match candidates.next() {
                    Some(moments) => upcoming.extend(moments),
                    None if oldest.is_none() => return None,
                    None => exhausted = true,
                }
            }
        })
    }

    /// The moments at which the zone's clock shows what the line names, beginning around `from_ms`.
    fn readings_after(&self, from_ms: u64) -> impl Iterator<Item = Vec<u64>> + '_ {
        let from = i64::try_from(from_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let begin = from.map(|from| to_chrono(self.zone.to_datetime(from)));
        let readings = begin.flatten().map(|begin| self.cron.after_owned(Utc.from_utc_datetime(&begin)));
        readings.into_iter().flatten().map_while(|reading| self.moments_of(reading.naive_utc()))
    }

    fn moments_of(&self, reading: NaiveDateTime) -> Option<Vec<u64>> {
        let reading = from_chrono(reading)?;
        let ambiguous = self.zone.to_ambiguous_timestamp(reading);
        let twice = self.every_hour && matches!(ambiguous.offset(), jiff::tz::AmbiguousOffset::Fold { .. });
        let later = if twice { ambiguous.later().ok() } else { None };
        let moments = [ambiguous.compatible().ok(), later];
        let in_ms = |moment: jiff::Timestamp| u64::try_from(moment.as_millisecond()).ok();
        Some(moments.into_iter().flatten().filter_map(in_ms).collect())
    }
}

fn to_chrono(reading: civil::DateTime) -> Option<NaiveDateTime> {
    let date = chrono::NaiveDate::from_ymd_opt(
        i32::from(reading.year()),
        u32::try_from(reading.month()).ok()?,
        u32::try_from(reading.day()).ok()?,
    )?;
    date.and_hms_opt(
        u32::try_from(reading.hour()).ok()?,
        u32::try_from(reading.minute()).ok()?,
        u32::try_from(reading.second()).ok()?,
    )
}

fn from_chrono(reading: NaiveDateTime) -> Option<civil::DateTime> {
    civil::DateTime::new(
        i16::try_from(reading.year()).ok()?,
        i8::try_from(reading.month()).ok()?,
        i8::try_from(reading.day()).ok()?,
        i8::try_from(reading.hour()).ok()?,
        i8::try_from(reading.minute()).ok()?,
        i8::try_from(reading.second()).ok()?,
        0,
    )
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(cron: &str, zone: &str) -> Slots {
        Schedule { cron: cron.to_owned(), zone: zone.to_owned(), jitter_ms: 0, paused: false }
            .slots()
            .unwrap()
    }

    fn at(text: &str) -> TimestampMs {
        let moment: jiff::Timestamp = text.parse().unwrap();
        TimestampMs(u64::try_from(moment.as_millisecond()).unwrap())
    }

    fn next(cron: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let slots = slots(cron, zone);
        slots
            .iter_after(at(after))
            .take(count)
            .map(|slot| {
                jiff::Timestamp::from_millisecond(i64::try_from(slot.0).unwrap()).unwrap().to_string()
            })
            .collect()
    }

    #[test]
    fn days_of_the_week_are_those_of_crontab() {
        // 2026-11-23 is a Monday.
        for cron in ["0 3 * * 1", "0 3 * * Mon", "0 3 * * 1-1"] {
            assert_eq!(next(cron, "UTC", "2026-11-22T00:00:00Z", 1), ["2026-11-23T03:00:00Z"], "{cron}");
        }
        for cron in ["0 3 * * 0", "0 3 * * 7", "0 3 * * sun"] {
            assert_eq!(next(cron, "UTC", "2026-11-23T00:00:00Z", 1), ["2026-11-29T03:00:00Z"], "{cron}");
        }
    }

    #[test]
    fn a_slot_in_an_hour_that_is_skipped_comes_behind_the_gap() {
        // Clocks in Berlin go from 02:00 to 03:00 on 2026-03-29, at 01:00 UTC.
        assert_eq!(
            next("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2),
            ["2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"]
        );
    }

    #[test]
    fn in_an_hour_that_comes_twice_only_hourly_lines_run_twice() {
        // … and from 03:00 back to 02:00 on 2026-10-25, at 01:00 UTC.
        assert_eq!(
            next("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
        );
        assert_eq!(
            next("30 * * * *", "Europe/Berlin", "2026-10-24T23:00:00Z", 4),
            ["2026-10-24T23:30:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"]
        );
    }

    #[test]
    fn slots_do_not_depend_on_when_one_looks() {
        let slots = slots("*/20 1-4 * * *", "America/New_York");
        let begin = at("2026-10-30T00:00:00Z");
        let all: Vec<_> = slots.iter_after(begin).take(60).collect();
        assert!(all.is_sorted_by(|a, b| a < b));
        for (index, slot) in all.iter().enumerate().skip(1) {
            assert_eq!(slots.after(TimestampMs(slot.0 - 1)), Some(*slot));
            assert_eq!(slots.after(all[index - 1]), Some(*slot));
        }
        assert_eq!(slots.between(begin, all[9], 100), (10, Some(all[9])));
    }

    #[test]
    fn bad_lines_say_what_is_wrong() {
        for (cron, zone, reason) in [
            ("", "UTC", "fields"),
            ("* * * *", "UTC", "five"),
            ("0 0 30 2 *", "UTC", "never"),
            ("0 0 1 * 1", "UTC", "make one of them *"),
            ("0 0 * * 8", "UTC", "no day of the week"),
            ("@sometimes", "UTC", "@hourly"),
            ("0 0 * * *", "Mars/Olympus", "time zone"),
            ("61 0 * * *", "UTC", "schedule"),
        ] {
            let schedule =
                Schedule { cron: cron.to_owned(), zone: zone.to_owned(), jitter_ms: 0, paused: false };
            let error = schedule.slots().expect_err(cron).to_string();
            assert!(error.contains(reason), "{cron}: {error}");
        }
    }
}

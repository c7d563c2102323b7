//! What backups came to, by day.
//!
//! Pure, and from the catalog alone: what collection freed, and what backups that are no more had taken, is not in it.

use std::collections::BTreeMap;

use strongroom_catalog::root::BackupEntry;
use strongroom_fleet::text::time;

use crate::answer::{DayAnswer, StatsAnswer};

/// What some backups come to.
pub fn of<'a>(backups: impl Iterator<Item = &'a BackupEntry>) -> StatsAnswer {
    let mut answer =
        StatsAnswer { backups: 0, trashed: 0, logical_bytes: 0, stored_bytes: 0, days: Vec::new() };
    let mut days: BTreeMap<String, DayAnswer> = BTreeMap::new();
    for backup in backups {
        if !backup.is_live() {
            answer.trashed += 1;
            continue;
        }
        answer.backups += 1;
        answer.logical_bytes = answer.logical_bytes.saturating_add(backup.logical_bytes);
        answer.stored_bytes = answer.stored_bytes.saturating_add(backup.stored_bytes);
        let at = time(backup.created);
        // A time out of all bounds is of no day.
        let Some((day, _)) = at.split_once('T') else { continue };
        let entry = days.entry(day.to_owned()).or_insert_with(|| DayAnswer {
            day: day.to_owned(),
            backups: 0,
            logical_bytes: 0,
            stored_bytes: 0,
        });
        entry.backups += 1;
        entry.logical_bytes = entry.logical_bytes.saturating_add(backup.logical_bytes);
        entry.stored_bytes = entry.stored_bytes.saturating_add(backup.stored_bytes);
    }
    answer.days = days.into_values().collect();
    answer
}

#[cfg(test)]
mod tests {
    use strongroom_format::ids::{BackupId, SessionId, TimestampMs};

    use super::*;

    #[test]
    fn what_is_live_is_counted_on_its_day() {
        let entry = |created, trashed| BackupEntry {
            id: BackupId::from_bytes([1; 16]),
            session: SessionId::from_bytes([1; 16]),
            created: TimestampMs(created),
            logical_bytes: 100,
            stored_bytes: 7,
            trashed,
            group: None,
        };
        let day = 86_400_000;
        let backups =
            [entry(5, None), entry(day - 1, None), entry(3 * day, None), entry(9, Some(TimestampMs(1)))];
        let told = of(backups.iter().chain([&entry(u64::MAX, None)]));
        assert_eq!((told.backups, told.trashed, told.logical_bytes, told.stored_bytes), (4, 1, 400, 28));
        let days: Vec<_> =
            told.days.iter().map(|day| (day.day.as_str(), day.backups, day.stored_bytes)).collect();
        assert_eq!(days, [("1970-01-01", 2, 14), ("1970-01-04", 1, 7)]);
    }
}

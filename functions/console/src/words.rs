//! What is said in words.

use strongroom_catalog::history::Changes;
use strongroom_fleet::text::bytes;

/// A cron line in words; nothing for one that is none.
pub fn cron(line: &str) -> String {
    // It is understood by the fleet's own reader first (`Schedule::slots`); this only finds the words.
    let described = line.trim().parse::<croner::Cron>().map(|cron| cron.describe());
    described.map(|words| words.trim_end_matches('.').to_owned()).unwrap_or_default()
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

//! What is printed of partitions, files and folders.

use jiff::Timestamp;
use serde_json::{Value, json};
use strongroom_guest::filesystem::shown;
use strongroom_guest::{Filesystem, GuestError, Kind, Metadata, Node};
use strongroom_vault::VaultResult;

use super::tree::{Found, Visitor, pass_on, walk};
use super::volume::Volume;
use super::{told, told_of};
use crate::commands::Done;
use crate::output::{Output, bytes};

/// Prints the partitions of a volume.
pub fn partitions(volume: &Volume, output: Output) {
    output.say(&match volume.scheme.name() {
        "none" => "no partition table: one filesystem, or nothing that is known".to_owned(),
        scheme => format!("partition table: {scheme}"),
    });
    for (partition, content) in &volume.partitions {
        let name = partition.name.as_deref().map(|name| shown(name.as_bytes()));
        let label = content.label.as_deref().map(|label| shown(label.as_bytes()));
        let quoted =
            |text: &Option<String>| text.as_ref().map_or(String::new(), |text| format!("  {text:?}"));
        output.result(
            &format!(
                "{:>3}  at {:>14}  {:>10}  {}{}{}",
                partition.number,
                partition.start,
                bytes(partition.size_bytes),
                content.name,
                quoted(&label),
                quoted(&name)
            ),
            &json!({
                "event": "partition", "number": partition.number, "table": volume.scheme.name(),
                "offset_bytes": partition.start, "size_bytes": partition.size_bytes, "name": name,
                "filesystem": content.name, "label": label, "readable": content.is_readable(),
            }),
        );
    }
}

/// Prints what is in a folder, or a file's line.
pub fn list(
    filesystem: &Filesystem,
    path: &[u8],
    node: &Node,
    recursive: bool,
    output: Output,
) -> VaultResult<Done> {
    let metadata = filesystem.metadata(node).map_err(|error| told_of(&shown(path), error))?;
    if metadata.kind != Kind::Folder {
        line(filesystem, path, path, node, &metadata, output).map_err(told)?;
        return Ok(Done::Well);
    }
    let mut lines = Lines { filesystem, path, recursive, output, done: Done::Well };
    walk(filesystem, node, recursive, &mut lines)?;
    Ok(lines.done)
}

/// Prints a line for everything that it is told of.
struct Lines<'a> {
    filesystem: &'a Filesystem,
    path: &'a [u8],
    recursive: bool,
    output: Output,
    done: Done,
}

impl Lines<'_> {
    fn full(&self, path: &[u8]) -> Vec<u8> {
        [self.path.strip_suffix(b"/").unwrap_or(self.path), b"/", path].concat()
    }
}

impl Visitor for Lines<'_> {
    fn visit(&mut self, found: &Found) -> VaultResult<bool> {
        let full = self.full(&found.path);
        let name = if self.recursive { &full } else { &found.entry.name };
        let printed = line(self.filesystem, &full, name, &found.entry.node, &found.metadata, self.output);
        if let Err(error) = printed {
            self.unreadable(&found.path, pass_on(error)?)?;
        }
        Ok(true)
    }

    fn unreadable(&mut self, path: &[u8], error: GuestError) -> VaultResult<()> {
        if matches!(error, GuestError::Damaged(_)) {
            self.done = Done::DamageFound;
        }
        skipped(&self.full(path), &error.to_string(), self.output);
        Ok(())
    }
}

/// Tells of something that is left out, and why.
pub fn skipped(path: &[u8], reason: &str, output: Output) {
    let path = shown(path);
    if output.json {
        output.result("", &json!({ "event": "skipped", "path": path, "reason": reason }));
    } else {
        output.say(&format!("left out: {path}: {reason}"));
    }
}

/// Prints the line of one file, as `ls -l` does but in UTC.
fn line(
    filesystem: &Filesystem,
    path: &[u8],
    name: &[u8],
    node: &Node,
    metadata: &Metadata,
    output: Output,
) -> Result<(), GuestError> {
    let target = match metadata.kind {
        Kind::Link => Some(shown(&filesystem.target(node)?)),
        _ => None,
    };
    let modified =
        metadata.modified.and_then(|(seconds, nanos)| Timestamp::new(seconds, nanos.cast_signed()).ok());
    let event = || -> Value {
        json!({
            "event": "entry", "path": shown(path), "kind": metadata.kind.name(),
            "mode": format!("{:04o}", metadata.mode), "uid": metadata.uid, "gid": metadata.gid,
            "size_bytes": metadata.size_bytes, "modified": modified.map(|at| at.to_string()), "target": target,
        })
    };
    let whole_seconds = modified.and_then(|at| Timestamp::from_second(at.as_second()).ok());
    output.result(
        &format!(
            "{}{}  {:>5} {:>5}  {:>12}  {:<20}  {}{}",
            metadata.kind.letter(),
            permissions(metadata.mode),
            metadata.uid,
            metadata.gid,
            metadata.size_bytes,
            whole_seconds.map_or_else(|| "?".to_owned(), |at| at.to_string()),
            shown(name),
            target.as_ref().map_or(String::new(), |target| format!(" -> {target}"))
        ),
        &if output.json { event() } else { Value::Null },
    );
    Ok(())
}

/// Permissions in nine letters.
fn permissions(mode: u16) -> String {
    let special = [(0o4000, 's'), (0o2000, 's'), (0o1000, 't')];
    let letters = special.iter().zip([6, 3, 0]).flat_map(|((special, letter), shift)| {
        let has = |bit: u16| mode >> shift & bit != 0;
        let last = match (mode & special != 0, has(1)) {
            (true, true) => *letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        };
        [if has(4) { 'r' } else { '-' }, if has(2) { 'w' } else { '-' }, last]
    });
    letters.collect()
}

#[cfg(test)]
mod tests {
    use super::permissions;

    #[test]
    fn permissions_read_as_in_ls() {
        for (mode, text) in [
            (0o755, "rwxr-xr-x"),
            (0o4755, "rwsr-xr-x"),
            (0o2640, "rw-r-S---"),
            (0o1777, "rwxrwxrwt"),
            (0, "---------"),
        ] {
            assert_eq!(permissions(mode), text);
        }
    }
}

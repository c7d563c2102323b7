//! Copies files and folders out of a backup.

use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::json;
use strongroom_guest::filesystem::shown;
use strongroom_guest::{Filesystem, GuestError, Kind, Metadata, Node, Piece};
use strongroom_vault::{Progress, VaultError, VaultResult};

use super::destination::{Folder, is_of_one_name, split};
use super::list::skipped;
use super::tree::{Found, Visitor, pass_on, walk};
use super::{Work, told_of};
use crate::commands::Done;
use crate::output::bytes;

/// Zeros of this many bytes are not written to a file, which has a hole there.
const HOLE_BYTES: usize = 64 << 10;

/// What was extracted.
#[derive(Debug, Default)]
struct Counts {
    files: u64,
    folders: u64,
    symlinks: u64,
    /// What is neither of these.
    skipped: u64,
    /// What could not be read, or not be written.
    failed: u64,
    bytes: u64,
}

/// Why one file was not extracted.
#[derive(Debug)]
enum Failed {
    Guest(GuestError),
    Destination(io::Error),
}

impl From<GuestError> for Failed {
    fn from(error: GuestError) -> Self {
        Self::Guest(error)
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Destination(error)
    }
}

impl Failed {
    /// The error of the command, if that was all that was asked for.
    fn told(self, path: &[u8], destination: &Path) -> VaultError {
        match self {
            Self::Guest(error) => told_of(&shown(path), error),
            Self::Destination(error) => VaultError::io("writing", destination, error),
        }
    }
}

/// Extracts a file or folder.
pub fn extract(
    work: &Work,
    filesystem: &Filesystem,
    path: &[u8],
    node: &Node,
    destination: &Path,
) -> VaultResult<Done> {
    let to_stdout = destination == Path::new("-");
    let metadata = filesystem.metadata(node).map_err(|error| told_of(&shown(path), error))?;
    let watch = (!to_stdout).then(|| work.output.watch("extract", &work.progress));
    let (counts, done) = match metadata.kind {
        Kind::File if to_stdout => {
            to_standard_output(filesystem, node).map_err(|failed| failed.told(path, destination))?;
            return Ok(Done::Well);
        }
        Kind::File => (file(work, filesystem, path, (node, &metadata), destination)?, Done::Well),
        Kind::Folder if to_stdout => {
            return Err(VaultError::Invalid(format!(
                "{} is a folder; name a new folder for it",
                shown(path)
            )));
        }
        Kind::Folder => folder(work, filesystem, path, (node, &metadata), destination)?,
        other => {
            let what = format!("{} is a {}; files and folders are extracted", shown(path), other.name());
            return Err(VaultError::Invalid(what));
        }
    };
    drop(watch);
    work.output.say(&format!(
        "extracted {} files ({}), {} folders and {} symbolic links to {}; {} left out; fetched {}",
        counts.files,
        bytes(counts.bytes),
        counts.folders,
        counts.symlinks,
        destination.display(),
        counts.skipped + counts.failed,
        bytes(work.image.fetched_bytes())
    ));
    if work.output.json {
        work.output.result(
            "",
            &json!({
                "event": "extracted", "id": work.image.backup(), "path": shown(path),
                "destination": destination.display().to_string(), "files": counts.files, "folders": counts.folders,
                "symlinks": counts.symlinks, "bytes": counts.bytes, "skipped": counts.skipped,
                "failed": counts.failed, "fetched_bytes": work.image.fetched_bytes(),
            }),
        );
    }
    if counts.failed > 0 && done == Done::Well {
        let few =
            io::Error::other(format!("{} of what is there could not be; each is told above", counts.failed));
        return Err(VaultError::io("extracting to", destination, few));
    }
    Ok(done)
}

fn to_standard_output(filesystem: &Filesystem, node: &Node) -> Result<(), Failed> {
    let mut out = io::stdout().lock();
    let zeros = vec![0; HOLE_BYTES];
    filesystem.read(node, |piece| -> Result<(), Failed> {
        match piece {
            Piece::Data(bytes) => out.write_all(bytes)?,
            Piece::Hole(mut len) => {
                while len > 0 {
                    let now = len.min(HOLE_BYTES as u64);
                    out.write_all(&zeros[..usize::try_from(now).unwrap_or_default()])?;
                    len -= now;
                }
            }
        }
        Ok(())
    })?;
    Ok(out.flush()?)
}

fn exists(path: &Path) -> VaultError {
    let path = path.display();
    VaultError::Unsafe(format!(
        "{path}: exists; choose another name, or say --overwrite to replace what is extracted anew"
    ))
}

fn file(
    work: &Work,
    filesystem: &Filesystem,
    path: &[u8],
    (node, metadata): (&Node, &Metadata),
    destination: &Path,
) -> VaultResult<Counts> {
    let io = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(destination),
        _ => VaultError::io("writing", destination, error),
    };
    let Some((parent, name)) = split(destination) else {
        return Err(VaultError::Invalid(format!("{}: give the name of a new file", destination.display())));
    };
    if destination.is_dir() {
        return Err(VaultError::Invalid(format!("{}: is a folder; name the file", destination.display())));
    }
    // Before anything is fetched. Whether it is there by then is looked at again at the end.
    if !work.args.overwrite && destination.symlink_metadata().is_ok() {
        return Err(exists(destination));
    }
    work.progress.total_bytes.store(metadata.size_bytes, Relaxed);
    let parent = Folder::open(parent).map_err(io)?;
    let incomplete = parent.begin().map_err(io)?;
    let bytes = content(filesystem, node, metadata, &incomplete.file, &work.progress)
        .map_err(|failed| failed.told(path, destination))?;
    incomplete.file.sync_data().map_err(io)?;
    incomplete.finish(name, metadata, work.args.overwrite).map_err(io)?;
    Ok(Counts { files: 1, bytes, ..Counts::default() })
}

/// Writes the content of a file into an empty one; answers its length.
fn content(
    filesystem: &Filesystem,
    node: &Node,
    metadata: &Metadata,
    file: &std::fs::File,
    progress: &Progress,
) -> Result<u64, Failed> {
    let mut position = 0;
    filesystem.read(node, |piece| -> Result<(), Failed> {
        let start = position;
        match piece {
            Piece::Hole(len) => position += len,
            Piece::Data(bytes) => {
                for part in bytes.chunks(HOLE_BYTES) {
                    if part.iter().any(|byte| *byte != 0) {
                        file.write_all_at(part, position)?;
                    }
                    position += part.len() as u64;
                }
            }
        }
        progress.done_bytes.fetch_add(position - start, Relaxed);
        Ok(())
    })?;
    if position != metadata.size_bytes {
        return Err(GuestError::Damaged("its content is not as long as it says".into()).into());
    }
    file.set_len(position)?;
    Ok(position)
}

fn folder(
    work: &Work,
    filesystem: &Filesystem,
    path: &[u8],
    (node, metadata): (&Node, &Metadata),
    destination: &Path,
) -> VaultResult<(Counts, Done)> {
    let io = |error| VaultError::io("writing", destination, error);
    let is_new = Folder::create(destination).map_err(io)?;
    if !is_new && !work.args.overwrite {
        return Err(exists(destination));
    }
    let root = Folder::open(destination).map_err(io)?;
    let current = (Vec::new(), root.below(b"").map_err(io)?);
    let made = if is_new { vec![(Vec::new(), metadata.clone())] } else { Vec::new() };
    let counts = Counts { folders: 1, ..Counts::default() };
    let mut extraction =
        Extraction { work, filesystem, path, destination, root, current, made, counts, done: Done::Well };
    walk(filesystem, node, true, &mut extraction)?;
    let Extraction { root, made, counts, done, .. } = extraction;
    // The innermost first: what is written to a folder changes its time, and its permissions may keep this user out.
    for (below, metadata) in made.iter().rev() {
        root.below(below).and_then(|folder| folder.finish(metadata)).map_err(io)?;
    }
    root.sync().map_err(io)?;
    Ok((counts, done))
}

/// Writes everything that it is told of.
struct Extraction<'a> {
    work: &'a Work,
    filesystem: &'a Filesystem,
    path: &'a [u8],
    destination: &'a Path,
    root: Folder,
    /// The folder that was written to last, by its path below the root.
    current: (Vec<u8>, Folder),
    /// Folders that were made, which get permissions and times in the end.
    made: Vec<(Vec<u8>, Metadata)>,
    counts: Counts,
    done: Done,
}

impl Extraction<'_> {
    fn write(&mut self, found: &Found) -> Result<(), Failed> {
        let overwrite = self.work.args.overwrite;
        let (name, node, metadata) = (&found.entry.name, &found.entry.node, &found.metadata);
        let parent = &found.path[..found.path.len() - name.len()];
        if self.current.0 != parent {
            self.current = (parent.to_vec(), self.root.below(parent)?);
        }
        let folder = &self.current.1;
        match metadata.kind {
            Kind::Folder => {
                let is_new = folder.make(name)?;
                if is_new {
                    self.made.push((found.path.clone(), metadata.clone()));
                } else if !overwrite {
                    return Err(Failed::Destination(io::ErrorKind::AlreadyExists.into()));
                }
                // What is there may be something else.
                folder.enter(name)?;
                self.counts.folders += 1;
            }
            Kind::File => {
                let incomplete = folder.begin()?;
                let bytes = content(self.filesystem, node, metadata, &incomplete.file, &self.work.progress)?;
                incomplete.finish(name, metadata, overwrite)?;
                self.counts.files += 1;
                self.counts.bytes += bytes;
            }
            Kind::Link => {
                let target = self.filesystem.target(node)?;
                folder.link(name, &target, metadata, overwrite)?;
                self.counts.symlinks += 1;
            }
            Kind::CharacterDevice | Kind::BlockDevice | Kind::Pipe | Kind::Socket => {
                self.counts.skipped += 1;
                let what = format!("is a {}", metadata.kind.name());
                skipped(&self.full(&found.path), &what, self.work.output);
            }
        }
        Ok(())
    }

    fn full(&self, path: &[u8]) -> Vec<u8> {
        [self.path.strip_suffix(b"/").unwrap_or(self.path), b"/", path].concat()
    }
}

impl Visitor for Extraction<'_> {
    fn visit(&mut self, found: &Found) -> VaultResult<bool> {
        if !found.entry.has_safe_name() {
            let hostile = GuestError::Damaged("a name that no file can have".into());
            self.unreadable(&found.path, hostile)?;
            return Ok(false);
        }
        match self.write(found) {
            Ok(()) => return Ok(true),
            Err(Failed::Guest(error)) => self.unreadable(&found.path, pass_on(error)?)?,
            Err(Failed::Destination(error)) if is_of_one_name(&error) || is_exists(&error) => {
                self.counts.failed += 1;
                skipped(&self.full(&found.path), &format!("writing: {error}"), self.work.output);
            }
            Err(Failed::Destination(error)) => {
                let path = shown(&found.path);
                return Err(VaultError::io("writing", &self.destination.join(path), error));
            }
        }
        Ok(false)
    }

    fn unreadable(&mut self, path: &[u8], error: GuestError) -> VaultResult<()> {
        self.counts.failed += 1;
        if matches!(error, GuestError::Damaged(_)) {
            self.done = Done::DamageFound;
        }
        skipped(&self.full(path), &error.to_string(), self.work.output);
        Ok(())
    }
}

fn is_exists(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AlreadyExists
}

//! What volumes are in, and are restored to: files and devices of this host, images that qemu knows, disks of machines, thin volumes, exports.

mod bitmap;
mod destination;
mod export;
mod group;
mod guest;
mod iscsi;
mod kept;
mod leftovers;
mod lvm;
mod machine;
mod new_volume;
mod notes;
mod orders;
mod owner;
mod qemu;
mod qemu_image;
mod qmp;
mod raw;
mod tools;
mod track;
mod zfs;

pub use destination::RestoreTo;
pub use group::{Stillness, create_snapshots};
pub use iscsi::Chap;
pub use track::Tracking;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use strongroom_format::ids::BackupId;
use strongroom_vault::backup::{HintUse, Source};
use strongroom_vault::{VaultError, VaultResult};
use tracing::warn;

use crate::output::bytes;

/// A volume in one kind of storage.
///
/// Whatever an implementation makes or begins, it ends or removes: when what it gave out is dropped, and what a killed process left
/// when the next one comes.
pub trait HostBackend: Any + fmt::Debug + Send + Sync {
    /// What it is in.
    fn place(&self) -> Place<'_>;

    /// The same, elsewhere on this host; only for what has a [path](Place::Path).
    fn at(&self, path: PathBuf) -> Option<Volume> {
        let _ = path;
        None
    }

    /// Whether it names other files by itself, which are read as well.
    fn names_others(&self) -> bool {
        false
    }

    /// Makes sure of one state of it, and opens that to be read.
    ///
    /// # Errors
    /// `Io`; `Invalid` for what is no volume, or where a tool is missing; `Unsafe` for what somebody else writes to.
    fn create_snapshot(&self, request: &SnapshotRequest) -> VaultResult<Snapshot>;

    /// What makes snapshots of several volumes in one moment, if there is such a thing: volumes of the same can be given to
    /// [`create_snapshots`](Self::create_snapshots) together.
    fn moment(&self) -> Option<String> {
        None
    }

    /// Makes sure of one state of several volumes of one [`moment`](Self::moment), this one among them; in their order.
    ///
    /// # Errors
    /// Those of [`create_snapshot`](Self::create_snapshot).
    fn create_snapshots(&self, members: &[Member<'_>]) -> VaultResult<Vec<Snapshot>> {
        members.iter().map(|member| member.volume.create_snapshot(member.request)).collect()
    }
}

/// One of several volumes.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// The volume.
    pub volume: &'a dyn HostBackend,
    /// How it is to be read.
    pub request: &'a SnapshotRequest,
}

impl<'a> Member<'a> {
    /// The volume, of a kind that it is known to be of.
    fn of<T: HostBackend>(&self) -> VaultResult<&'a T> {
        let any: &'a dyn Any = self.volume;
        any.downcast_ref().ok_or_else(|| VaultError::Internal("volumes of several kinds at once".to_owned()))
    }
}

/// Makes sure of one state of one volume, of a kind that can of several.
fn create_one(volume: &impl HostBackend, request: &SnapshotRequest) -> VaultResult<Snapshot> {
    let mut one = volume.create_snapshots(&[Member { volume, request }])?;
    one.pop().ok_or_else(|| VaultError::Internal("no snapshot of one volume".to_owned()))
}

/// What a volume is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// A file, a device or a socket of this host.
    Path(&'a Path),
    /// Something with a name of its own, such as `zfs:POOL/VOLUME`.
    Name(&'a str),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Ends and removes what killed processes have left on this host.
pub fn clean_up(notes: &Path) {
    qemu::clean_up();
    iscsi::clean_up(notes);
    lvm::clean_up(notes);
    zfs::clean_up();
}

/// How a volume is to be read.
#[derive(Debug, Clone, Default)]
pub struct SnapshotRequest {
    /// As it comes, even if it changes meanwhile, where it would have to stand still otherwise.
    pub live: bool,
    /// Whether storage is to tell what changed.
    pub tracking: Option<Tracking>,
    /// Whom targets of iSCSI let in, by their names.
    pub chap: BTreeMap<String, Chap>,
    /// Where to note what is to be ended should this process be killed.
    pub notes: PathBuf,
}

/// A volume in one state.
pub struct Snapshot {
    opening: Opening,
    /// How it is read.
    pub reading: Reading,
    /// The id that its backup is to have: what changes from now on is noted under it.
    pub backup: Option<BackupId>,
    /// What is left to do once it was read.
    pub leave: Leave,
}

/// What is to be read of a snapshot.
enum Opening {
    Ready(Source),
    /// There is more to do, such as to find out what changed, for which nothing has to stand still.
    Later(Box<dyn FnOnce() -> VaultResult<Source> + Send>),
}

impl Snapshot {
    fn new(source: Source, reading: Reading) -> Self {
        Self { opening: Opening::Ready(source), reading, backup: None, leave: Leave(None) }
    }

    fn later(
        open: impl FnOnce() -> VaultResult<Source> + Send + 'static,
        reading: Reading,
        backup: Option<BackupId>,
        leave: Leave,
    ) -> Self {
        Self { opening: Opening::Later(Box::new(open)), reading, backup, leave }
    }

    /// Takes what comes from elsewhere, as it comes.
    pub fn of(source: Source) -> Self {
        Self::new(source, Reading::Live)
    }

    /// Opens it to be read, with what is known of what changed. May take long; gives the id for its backup as well.
    ///
    /// # Errors
    /// Those of storage.
    pub fn read(self) -> VaultResult<(Source, Option<BackupId>, Leave)> {
        let source = match self.opening {
            Opening::Ready(source) => source,
            Opening::Later(open) => open()?,
        };
        Ok((source, self.backup, self.leave))
    }
}

/// What is left to do with storage once a volume was read.
pub struct Leave(Option<Leaving>);

/// Told which backup was committed, if any was.
type Leaving = Box<dyn FnOnce(Option<BackupId>) -> VaultResult<()> + Send>;

impl Leave {
    fn with(leave: impl FnOnce(Option<BackupId>) -> VaultResult<()> + Send + 'static) -> Self {
        Self(Some(Box::new(leave)))
    }

    /// Removes what is of no more use: all but what tells what changes from now on, if the backup was committed. What can't be
    /// removed is only told: it is found and removed by the next backup.
    pub fn after(mut self, committed: Option<BackupId>) {
        self.take_leave(committed);
    }

    fn take_leave(&mut self, committed: Option<BackupId>) {
        if let Some(leave) = self.0.take()
            && let Err(error) = leave(committed)
        {
            warn!(%error, "after a volume was read; the next backup of it tries again");
        }
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.take_leave(None);
    }
}

/// How a volume is read.
#[derive(Debug)]
pub enum Reading {
    /// From a clone of the file.
    Clone,
    /// In place, because no clone could be made; it must not change meanwhile.
    InPlace(io::Error),
    /// In place, as was asked for, even if it changes meanwhile.
    Live,
    /// Through qemu-nbd, which keeps others from writing to it.
    Qemu,
    /// From a server of network block devices, which answers for its state.
    Export,
    /// From a snapshot that a running machine keeps.
    Machine,
    /// From a snapshot that storage makes.
    Snapshot,
    /// From another machine, which nobody is kept from writing to.
    Remote,
}

impl Reading {
    /// Whether what is read was fixed in an instant.
    pub const fn is_of_one_moment(&self) -> bool {
        matches!(self, Self::Clone | Self::Machine | Self::Snapshot)
    }

    /// Whether it fails if somebody writes to it between its opening and the end of its being read.
    pub const fn is_guarded(&self) -> bool {
        matches!(self, Self::InPlace(_) | Self::Qemu)
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clone => f.write_str("from a snapshot of the file"),
            Self::InPlace(reason) => {
                write!(f, "in place, without a snapshot ({reason}): refused if it is written to meanwhile")
            }
            Self::Qemu => f.write_str("through qemu-nbd"),
            Self::Machine => f.write_str("from a snapshot that the running machine keeps"),
            Self::Snapshot => f.write_str("from a snapshot"),
            Self::Remote => f.write_str("over iSCSI, in place: see to it that nobody writes to it meanwhile"),
            Self::Export => f.write_str("over NBD, as the server gives it"),
            Self::Live => f.write_str(
                "live, without a snapshot: what is written to meanwhile is there as of different moments",
            ),
        }
    }
}

/// A volume of any kind.
#[derive(Debug, Clone)]
pub struct Volume(Arc<dyn HostBackend>);

impl Volume {
    fn new(backend: impl HostBackend + 'static) -> Self {
        Self(Arc::new(backend))
    }
}

impl Deref for Volume {
    type Target = dyn HostBackend;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref()
    }
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("qemu:") {
            return qemu::Image::parse(rest).map(Self::new);
        }
        if let Some(rest) = text.strip_prefix("qmp:") {
            return machine::Machine::parse(rest).map(Self::new);
        }
        if let Some(rest) = text.strip_prefix("lvm-thin:") {
            return lvm::Lvm::parse(rest).map(Self::new);
        }
        if let Some(rest) = text.strip_prefix("zfs:") {
            return zfs::Zvol::parse(rest).map(Self::new);
        }
        if let Some(unit) = iscsi::Iscsi::parse(text)? {
            return Ok(Self::new(unit));
        }
        if text.starts_with("nbd") {
            return export::Remote::parse(text)
                .map(|export| export.map_or_else(|| Self::new(raw::Raw(PathBuf::from(text))), Self::new));
        }
        Ok(Self::new(raw::Raw(PathBuf::from(text))))
    }
}

/// What is to be said of what became of a hint.
pub fn told(hint: &HintUse) -> Option<String> {
    match hint {
        HintUse::NotGiven => None,
        HintUse::Followed { unread_bytes } => {
            Some(format!("read only what changed, and samples; {} were left out", bytes(*unread_bytes)))
        }
        HintUse::Doubted(reason) => Some(format!("read in full: {reason}")),
    }
}

fn failed(
    doing: &'static str,
    path: &Path,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> VaultError {
    VaultError::io(doing, path, io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_told_by_what_they_begin_with() {
        let parsed = |text: &str| format!("{:?}", text.parse::<Volume>().unwrap().0);
        assert_eq!(parsed("qemu:qcow2:/a:b.qcow2"), r#"Image { format: "qcow2", file: "/a:b.qcow2" }"#);
        assert_eq!(parsed("nbd+unix:///disk?socket=/run/s"), r#"Remote { socket: "/run/s", name: "disk" }"#);
        assert_eq!(parsed("qmp:/run/a:b:disk0"), r#"Machine { socket: "/run/a:b", node: "disk0" }"#);
        assert_eq!(parsed("./qemu:x"), r#"Raw("./qemu:x")"#);
        assert_eq!(parsed("nbd.img"), r#"Raw("nbd.img")"#);
        let wrong = [
            "qemu:qcow2",
            "qemu:qcow2:",
            "qemu::x",
            "qemu:a,b:x",
            "nbd+unix:///x",
            "nbd+unix:///?socket=",
            "nbd://host/x",
            "qmp:/run/qmp.sock",
            "qmp::disk",
        ];
        for text in wrong {
            assert!(text.parse::<Volume>().is_err(), "{text}");
        }
    }
}

//! Disks of running machines, through their QMP monitor: a snapshot by fleecing (qemu, `docs/interop/live-block-operations.rst`).
//!
//! What the guest writes over while the backup reads is first copied to a scratch file, which the export that is read lies on. All names
//! begin with `strongroom-` and the mark of this process, so that whoever comes next finds what a killed one left.
//!
//! Invariant: what the guest writes is in the state that is read, or in the record of what changes after it; and what of it is in the state is
//! in the record of what changed up to it. All three are made in one transaction, in an order that makes up for its taking time.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use strongroom_format::ids::BackupId;
use strongroom_vault::backup::{Device, Hint, RegionRead, Source};
use strongroom_vault::{VaultError, VaultResult};
use tempfile::TempDir;
use tracing::warn;

use super::bitmap::{Found, Plan};
use super::export::{Export, PATIENCE};
use super::owner::{self, Own};
use super::qmp::Qmp;
use super::track::{self, Record};
use super::{
    HostBackend, Leave, Member, Place, Reading, Snapshot, SnapshotRequest, Volume, create_one, failed, qemu,
};

/// What the names of all that is made in a machine begin with.
const PREFIX: &str = "strongroom-";

/// A disk of a running machine: `qmp:SOCKET:NODE`.
#[derive(Debug)]
pub struct Machine {
    socket: PathBuf,
    /// The node of its block graph, or the device it is plugged in as.
    node: String,
}

impl Machine {
    /// Reads what comes after `qmp:`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once(':').filter(|(socket, node)| !socket.is_empty() && !node.is_empty());
        let (socket, node) = parts.ok_or("a disk of a running machine is written qmp:SOCKET:NODE")?;
        Ok(Self { socket: PathBuf::from(socket), node: node.to_owned() })
    }
}

/// `query-named-block-nodes`, as far as it is needed here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Node {
    #[serde(default)]
    node_name: String,
    drv: String,
    ro: bool,
    image: Image,
    #[serde(default)]
    dirty_bitmaps: Vec<Bitmap>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    virtual_size: u64,
}

#[derive(Debug, Deserialize)]
struct Bitmap {
    /// Some are a job's own, and have none.
    #[serde(default)]
    name: String,
    recording: bool,
    #[serde(default)]
    inconsistent: bool,
}

impl Bitmap {
    fn ours(&self) -> Option<Found> {
        let is_whole = self.recording && !self.inconsistent;
        Some(Found { record: self.name.parse().ok()?, is_whole })
    }
}

impl HostBackend for Machine {
    fn place(&self) -> Place<'_> {
        Place::Path(&self.socket)
    }

    fn at(&self, path: PathBuf) -> Option<Volume> {
        Some(Volume::new(Self { socket: path, node: self.node.clone() }))
    }

    fn create_snapshot(&self, request: &SnapshotRequest) -> VaultResult<Snapshot> {
        create_one(self, request)
    }

    fn moment(&self) -> Option<String> {
        let socket = self.socket.canonicalize().unwrap_or_else(|_| self.socket.clone());
        Some(format!("qmp:{}", socket.display()))
    }

    fn create_snapshots(&self, members: &[Member<'_>]) -> VaultResult<Vec<Snapshot>> {
        qemu::clean_up();
        let mut qmp = Qmp::connect(&self.socket)?;
        clear(&mut qmp, is_left_over)?;
        let mut found = Vec::new();
        for member in members {
            let machine: &Self = member.of()?;
            found.push((machine, machine.find(&mut qmp)?, member.request.tracking));
        }
        let folder = Arc::new(folder_of(&self.socket)?);
        // What is unmade needs the monitor for itself: from here on nothing fails while it is taken, but in the end.
        let made = found.into_iter().map(|(machine, disk, tracking)| {
            let records: Vec<Found> = disk.dirty_bitmaps.iter().filter_map(Bitmap::ours).collect();
            let plan = tracking.map(|tracking| Plan::of(&records, tracking));
            (machine, Taken::new(&self.socket, &disk, plan, &folder), disk.image.virtual_size)
        });
        let disks: Vec<(&Self, Taken, u64)> = made.collect();
        let taken: Vec<(&Taken, u64)> =
            disks.iter().map(|(_, taken, size_bytes)| (taken, *size_bytes)).collect();
        let took = take(&mut qmp, folder.path(), &taken);
        // The monitor has time for one at once: for others, and to unmake what there is of it should it have failed.
        drop(qmp);
        took?;
        let snapshots = disks.into_iter().map(|(machine, mut taken, _)| {
            let name = machine.socket.join(&machine.node);
            let (job, socket) = (taken.name('j'), machine.socket.clone());
            let (backup, connection) = (taken.plan.as_ref().map(|plan| plan.next.backup), taken.connection());
            let open = move || {
                let (export, hint) = connection.open()?;
                Ok(Source::device(&name, Box::new(Running { export, socket, job })).hinted(hint))
            };
            let leave = Leave::with(move |committed| taken.end(committed));
            Snapshot::later(open, Reading::Machine, backup, leave)
        });
        Ok(snapshots.collect())
    }
}

impl Machine {
    /// Finds the disk, by the name of its node or of its device.
    fn find(&self, qmp: &mut Qmp) -> VaultResult<Node> {
        let blocks = qmp.run("query-block", json!({}))?;
        let is_meant = |block: &&Value| {
            [&block["device"], &block["qdev"], &block["inserted"]["node-name"]]
                .iter()
                .any(|name| name.as_str() == Some(&self.node))
        };
        let blocks = blocks.as_array().into_iter().flatten();
        let plugged = blocks
            .filter(is_meant)
            .find_map(|block| block["inserted"]["node-name"].as_str().map(str::to_owned));
        let name = plugged.unwrap_or_else(|| self.node.clone());
        let mut nodes = nodes(qmp)?;
        let at = nodes.iter().position(|node| node.node_name == name);
        at.map(|at| nodes.swap_remove(at)).ok_or_else(|| {
            let names: Vec<&str> = nodes.iter().map(|node| node.node_name.as_str()).collect();
            VaultError::Invalid(format!(
                "{}: the machine has no disk '{}'; its nodes are {}",
                self.socket.display(),
                self.node,
                names.join(", ")
            ))
        })
    }
}

fn nodes(qmp: &mut Qmp) -> VaultResult<Vec<Node>> {
    let nodes = qmp.run("query-named-block-nodes", json!({ "flat": true }))?;
    serde_json::from_value(nodes)
        .map_err(|error| VaultError::Internal(format!("QEMU's description of its disks: {error}")))
}

/// Makes the folder of what is made for a machine on this host, with a note of which one it is.
fn folder_of(socket: &Path) -> VaultResult<TempDir> {
    let folder = qemu::folder()?;
    let note = folder.path().join(qemu::MACHINE);
    std::fs::write(&note, socket.as_os_str().as_encoded_bytes())
        .map_err(|error| VaultError::io("noting", &note, error))?;
    Ok(folder)
}

/// What is the machine's of the folder.
fn inner(folder: &Path) -> PathBuf {
    folder.join("machine")
}

/// Where the machine serves its exports.
fn nbd_socket(folder: &Path) -> PathBuf {
    inner(folder).join("socket")
}

/// Takes snapshots of disks, of so many bytes each, in one transaction, and has them exported.
fn take(qmp: &mut Qmp, folder: &Path, disks: &[(&Taken, u64)]) -> VaultResult<()> {
    make_scratch(folder, disks, qmp)?;
    for (taken, _) in disks {
        let scratch = taken.name('s');
        let file = json!({ "driver": "file", "filename": taken.scratch() });
        let options = json!({ "driver": "qcow2", "node-name": scratch, "file": file, "backing": taken.node });
        qmp.run("blockdev-add", options)?;
    }
    // One after the other: the guest stands still, as far as a disk goes, from its job's beginning on. So the record of what changes from
    // now on begins before it, and the one of what changed so far is taken after it: what the guest writes while the first are made is in
    // both. What it writes to one disk before another stands still it was free to write before: it has no answer yet from those that do.
    let parts: [fn(&Taken) -> Vec<Value>; 3] = [Taken::records, Taken::jobs, Taken::merges];
    let all =
        |part: &fn(&Taken) -> Vec<Value>| disks.iter().flat_map(|(taken, _)| part(taken)).collect::<Vec<_>>();
    let actions: Vec<Value> = parts.iter().flat_map(all).collect();
    qmp.run("transaction", json!({ "actions": actions }))?;
    let socket = nbd_socket(folder);
    let address = json!({ "type": "unix", "data": { "path": socket } });
    qmp.run("nbd-server-start", json!({ "addr": address, "max-connections": disks.len() })).map_err(
        |error| {
            failed("exporting a disk of", &socket, format!("{error}; a machine can serve one backup at once"))
        },
    )?;
    for (taken, _) in disks {
        qmp.run("block-export-add", taken.export())?;
    }
    Ok(())
}

/// What was made in a machine for a snapshot of one disk; unmade when this is dropped.
struct Taken {
    socket: PathBuf,
    node: String,
    own: Own,
    plan: Option<Plan>,
    /// Whether the node keeps bitmaps when the machine ends: only one format does.
    persistent: bool,
    /// Whether it was unmade.
    unmade: bool,
    /// Where scratch files and socket are.
    folder: Arc<TempDir>,
}

impl Taken {
    fn new(socket: &Path, disk: &Node, plan: Option<Plan>, folder: &Arc<TempDir>) -> Self {
        let persistent = disk.drv == "qcow2" && !disk.ro;
        let (socket, node) = (socket.to_owned(), disk.node_name.clone());
        Self { socket, node, own: Own::new(), plan, persistent, unmade: false, folder: Arc::clone(folder) }
    }

    /// The name of one of the things made; QEMU takes at most 31 bytes.
    fn name(&self, what: char) -> String {
        format!("{PREFIX}{}-{what}", self.own)
    }

    /// The file that takes what the guest writes over.
    fn scratch(&self) -> PathBuf {
        inner(self.folder.path()).join("scratch").with_extension(self.own.to_string())
    }

    fn bitmap(&self, kind: &str, name: &str, options: Value) -> Value {
        let mut data = json!({ "node": self.node, "name": name });
        if let (Some(data), Value::Object(options)) = (data.as_object_mut(), options) {
            data.extend(options);
        }
        json!({ "type": format!("block-dirty-bitmap-{kind}"), "data": data })
    }

    /// The actions that begin the records of what changes from now on, and of what changed so far.
    fn records(&self) -> Vec<Value> {
        let Some(plan) = &self.plan else { return Vec::new() };
        let remove = plan.remove.iter().map(|record| self.bitmap("remove", &record.to_string(), json!({})));
        let mut actions: Vec<Value> = remove.collect();
        if plan.by.is_ok() {
            actions.push(self.bitmap("add", &self.name('n'), json!({ "disabled": true })));
        }
        let options = json!({ "persistent": self.persistent });
        actions.push(self.bitmap("add", &plan.next.to_string(), options));
        actions
    }

    /// The action that keeps what the guest writes over from now on.
    fn jobs(&self) -> Vec<Value> {
        let (job, node, scratch) = (self.name('j'), &self.node, self.name('s'));
        let backup = json!({ "job-id": job, "device": node, "target": scratch, "sync": "none" });
        vec![json!({ "type": "blockdev-backup", "data": backup })]
    }

    /// The action that takes what changed so far, as it is at that moment: it goes on taking note.
    fn merges(&self) -> Vec<Value> {
        let by = self.plan.as_ref().and_then(|plan| plan.by.as_ref().ok());
        let merge = |record: &Record| {
            let data =
                json!({ "node": self.node, "target": self.name('n'), "bitmaps": [record.to_string()] });
            json!({ "type": "block-dirty-bitmap-merge", "data": data })
        };
        by.map(merge).into_iter().collect()
    }

    /// What has the snapshot exported, with the bitmap of what changed up to it.
    fn export(&self) -> Value {
        let is_known = self.plan.as_ref().is_some_and(|plan| plan.by.is_ok());
        let bitmaps: Vec<String> = is_known.then(|| self.name('n')).into_iter().collect();
        json!({
            "type": "nbd", "id": self.name('e'), "node-name": self.name('s'), "name": self.name('e'), "bitmaps": bitmaps,
        })
    }

    /// How to connect to the export.
    fn connection(&self) -> Connection {
        Connection {
            monitor: self.socket.clone(),
            socket: nbd_socket(self.folder.path()),
            export: self.name('e'),
            by: self.plan.as_ref().map(|plan| plan.by.clone()),
            now: self.name('n'),
        }
    }

    /// Unmakes the snapshot, and removes the bitmaps that are of no more use.
    fn end(&mut self, committed: Option<BackupId>) -> VaultResult<()> {
        let mut qmp = Qmp::connect(&self.socket)?;
        let mine = format!("{PREFIX}{}-", self.own);
        clear(&mut qmp, |name| name.starts_with(&mine))?;
        self.unmade = true;
        // The folder goes with the last disk of the group; what is the space of this one is needed for others.
        let _ = std::fs::remove_file(self.scratch());
        let (Some(plan), Some(backup)) = (&self.plan, committed) else { return Ok(()) };
        let node = &self.node;
        if backup != plan.next.backup {
            // The catalog refused the first attempt, and the second has another id.
            let name = Record { backup, ..plan.next }.to_string();
            let merge = json!({ "node": node, "target": name, "bitmaps": [plan.next.to_string()] });
            let actions = json!([
                { "type": "block-dirty-bitmap-add", "data": { "node": node, "name": name, "persistent": self.persistent } },
                { "type": "block-dirty-bitmap-merge", "data": merge },
            ]);
            qmp.run("transaction", json!({ "actions": actions }))?;
        }
        let disk = nodes(&mut qmp)?.into_iter().find(|disk| &disk.node_name == node);
        let found: Vec<Found> =
            disk.iter().flat_map(|disk| &disk.dirty_bitmaps).filter_map(Bitmap::ours).collect();
        for record in plan.stale_after(&found, backup) {
            qmp.run("block-dirty-bitmap-remove", json!({ "node": node, "name": record.to_string() }))?;
        }
        Ok(())
    }
}

/// An export of a snapshot.
struct Connection {
    monitor: PathBuf,
    socket: PathBuf,
    export: String,
    by: Option<Result<Record, String>>,
    /// The bitmap of what changed up to it, if there is one.
    now: String,
}

impl Connection {
    /// Connects, and reads what changed.
    fn open(self) -> VaultResult<(Export, Hint)> {
        let stream = UnixStream::connect(&self.socket)
            .map_err(|error| VaultError::io("opening", &self.socket, error))?;
        let bitmap = self.by.as_ref().is_some_and(Result::is_ok).then_some(self.now.as_str());
        let mut export = Export::new(&self.monitor, stream, &self.export, bitmap, PATIENCE)?;
        let hint = track::hint(self.by, |_| {
            export.marked().map_err(|error| failed("reading what changed in", &self.monitor, error))
        })?;
        Ok((export, hint))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.unmade
            && let Err(error) = self.end(None)
        {
            warn!(%error, "a snapshot of a running machine stays; the next backup of it removes that");
        }
    }
}

/// Makes a folder for the machine to make a socket in, with scratch files, each for a disk of so many bytes.
fn make_scratch(folder: &Path, disks: &[(&Taken, u64)], qmp: &Qmp) -> VaultResult<()> {
    let inner = inner(folder);
    let io = |error| VaultError::io("making", &inner, error);
    std::fs::create_dir(&inner).map_err(io)?;
    for (taken, size_bytes) in disks {
        qemu::create("qcow2", &taken.scratch(), *size_bytes)?;
    }
    let peer = rustix::net::sockopt::socket_peercred(qmp.stream()).map_err(|error| io(error.into()))?;
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // Machines mostly run as users of their own. What lies around it stays ours, and is found by us alone; what is in it is made theirs
    // before it is: then they may put anything there, links to other files too.
    let hand_over = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, Permissions::from_mode(mode))?;
        chown(path, Some(peer.uid.as_raw()), Some(peer.gid.as_raw()))
    };
    for (taken, _) in disks {
        hand_over(&taken.scratch(), 0o600).map_err(io)?;
    }
    std::fs::set_permissions(folder, Permissions::from_mode(0o711)).map_err(io)?;
    hand_over(&inner, 0o700).map_err(io)
}

/// Whether a name is that of something of ours that nobody uses any more.
fn is_left_over(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(owner::is_left_over)
}

/// Removes from a machine what killed processes have left there.
///
/// # Errors
/// `Io`.
pub fn clean_up(socket: &Path) -> VaultResult<()> {
    clear(&mut Qmp::connect(socket)?, is_left_over)
}

/// Unmakes what a snapshot consists of.
fn clear(qmp: &mut Qmp, is_meant: impl Fn(&str) -> bool) -> VaultResult<()> {
    let exports = qmp.run("query-block-exports", json!({}))?;
    let (mut others, mut any) = (0, false);
    for export in exports.as_array().into_iter().flatten() {
        match export["id"].as_str() {
            Some(id) if is_meant(id) => {
                any = true;
                qmp.run("block-export-del", json!({ "id": id, "mode": "hard" }))?;
            }
            _ => others += usize::from(export["type"] == "nbd"),
        }
    }
    let nodes = nodes(qmp)?;
    let scratch: Vec<&Node> = nodes.iter().filter(|node| is_meant(&node.node_name)).collect();
    if (any || !scratch.is_empty()) && others == 0 {
        // There may be none yet.
        let _ = qmp.run("nbd-server-stop", json!({}));
    }
    qmp.cancel(&is_meant)?;
    for node in scratch {
        qmp.run("blockdev-del", json!({ "node-name": node.node_name }))?;
    }
    for node in &nodes {
        for bitmap in node.dirty_bitmaps.iter().filter(|bitmap| is_meant(&bitmap.name)) {
            qmp.run("block-dirty-bitmap-remove", json!({ "node": node.node_name, "name": bitmap.name }))?;
        }
    }
    Ok(())
}

/// A disk in the state of a snapshot.
struct Running {
    export: Export,
    socket: PathBuf,
    job: String,
}

impl Device for Running {
    fn size_bytes(&self) -> u64 {
        self.export.size_bytes()
    }

    fn tells_holes(&self) -> bool {
        self.export.tells_holes()
    }

    fn read_region(&mut self, start: u64, len: usize, buffer: &mut Vec<u8>) -> io::Result<RegionRead> {
        self.export.read_region(start, len, buffer)
    }

    /// Makes sure that the job still keeps what the guest writes over: without it, what was read may be of later.
    fn check(&mut self) -> VaultResult<()> {
        let jobs = Qmp::connect(&self.socket)?.run("query-jobs", json!({}))?;
        let ours = jobs.as_array().into_iter().flatten().find(|job| job["id"] == self.job.as_str());
        let goes_on = |status: &Value| status == "running" || status == "paused";
        if ours.is_some_and(|job| goes_on(&job["status"]) && job.get("error").is_none()) {
            return Ok(());
        }
        Err(VaultError::Unsafe(format!(
            "{}: the machine gave up the snapshot while it was read, as when the space for what its guest writes over runs \
             out; no backup was made",
            self.socket.display()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_processes_left_that_are_gone_is_left_over() {
        let own = Own::new();
        assert!(!is_left_over(&format!("{PREFIX}{own}-j")));
        assert!(is_left_over(&format!("{PREFIX}1z141z2.1-0-j")));
        let record = format!("{PREFIX}abababababab-3-{}", BackupId::from_bytes([1; 16]));
        assert!(!is_left_over(&record), "a record stays");
        assert!(!is_left_over("drive0") && !is_left_over(""));
    }
}

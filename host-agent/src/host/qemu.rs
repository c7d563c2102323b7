//! Images that qemu knows, through `qemu-nbd`.
//!
//! qemu locks the image as long as it is read: nobody else writes to it, and a machine that runs from it keeps us off. The
//! server ends with our connection to it, and its socket goes as soon as both have agreed: a kill leaves nothing behind but in
//! the moment before, which the next one finds ([`clean_up`]).

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use strongroom_vault::backup::{Device, RegionRead, Source};
use strongroom_vault::{VaultError, VaultResult};
use tempfile::TempDir;
use tracing::{debug, warn};

use super::export::{Export, PATIENCE};
use super::leftovers::end_servers;
use super::{
    HostBackend, Leave, Place, Reading, Snapshot, SnapshotRequest, Volume, bitmap, failed, machine, owner,
    track,
};

/// What folders of sockets are called, before the number of their process.
const PREFIX: &str = "strongroom-nbd-";
const SOCKET: &str = "socket";
/// A file in them that says which machine's monitor was asked for a snapshot.
pub const MACHINE: &str = "machine-socket";
/// How long qemu-nbd may take to open an image.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one may take to answer or to end that has nothing else to do.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The most of its complaint that is told, bytes.
const MAX_COMPLAINT_BYTES: usize = 2000;

/// An image in one of qemu's formats: `qemu:FORMAT:FILE`.
#[derive(Debug)]
pub struct Image {
    /// The format, by qemu's name for it.
    pub format: String,
    /// The file.
    pub file: PathBuf,
}

impl Image {
    /// Reads what comes after `qemu:`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (format, file) = text.split_once(':').ok_or("an image is written qemu:FORMAT:FILE")?;
        let is_word = !format.is_empty() && format.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_word || file.is_empty() {
            return Err("an image is written qemu:FORMAT:FILE, with a format such as qcow2".to_owned());
        }
        Ok(Self { format: format.to_owned(), file: PathBuf::from(file) })
    }
}

impl HostBackend for Image {
    fn place(&self) -> Place<'_> {
        Place::Path(&self.file)
    }

    fn at(&self, path: PathBuf) -> Option<Volume> {
        Some(Volume::new(Self { format: self.format.clone(), file: path }))
    }

    fn names_others(&self) -> bool {
        true
    }

    fn create_snapshot(&self, request: &SnapshotRequest) -> VaultResult<Snapshot> {
        clean_up();
        let image = self.file.canonicalize().map_err(|error| VaultError::io("opening", &self.file, error))?;
        // Other formats keep no bitmaps.
        let Some(tracking) = request.tracking.filter(|_| self.format == "qcow2") else {
            let open = Open::new(&self.format, &image, None)?;
            return Ok(Snapshot::new(Source::device(&image, Box::new(open)), Reading::Qemu));
        };
        let plan = bitmap::Plan::of(&bitmap::found_in(&image)?, tracking);
        let by = plan.by.clone();
        let begun = bitmap::begin(&plan, &image);
        if let Err(error) = &begun {
            warn!(%error, "the image can't take note of what changes: the next backup will read all of it");
        }
        let bitmap = by.as_ref().ok().map(ToString::to_string);
        let mut open = Open::new(&self.format, &image, bitmap.as_deref())?;
        let hint = track::hint(Some(by), |_| {
            open.export.marked().map_err(|error| failed("reading what changed in", &image, error))
        })?;
        let mut snapshot = Snapshot::new(Source::device(&image, Box::new(open)).hinted(hint), Reading::Qemu);
        snapshot.backup = Some(tracking.backup);
        snapshot.leave = Leave::with(move |committed| match begun {
            Ok(()) => bitmap::end(&plan, &image, committed),
            Err(_) => Ok(()),
        });
        Ok(snapshot)
    }
}

/// Makes a folder that goes with this process, at the latest when the next one [cleans up](clean_up).
pub fn folder() -> VaultResult<TempDir> {
    let folder = tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", owner::mine())).tempdir();
    folder.map_err(|error| VaultError::io("making", &std::env::temp_dir(), error))
}

/// Makes an image that reads as zeros.
pub fn create(format: &str, image: &Path, size_bytes: u64) -> VaultResult<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", format, "--"]).arg(image).arg(size_bytes.to_string());
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| missing("qemu-img", image, error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(complaint("qemu-img", image, output.status, &String::from_utf8_lossy(&output.stderr)))
}

/// Ends servers whose process was killed before they had agreed with it (those end by themselves only after that), and what else it
/// left.
pub fn clean_up() {
    // A machine's monitor has time for one at once.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let entries = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for folder in entries {
        let name = folder.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let Some((process, _)) = rest.split_once('-') else { continue };
        let is_ours =
            folder.metadata().is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw());
        if !is_ours || !owner::is_gone(process) {
            continue;
        }
        let socket = folder.path().join(SOCKET);
        end_servers(&socket);
        if let Ok(machine) = std::fs::read(folder.path().join(MACHINE)) {
            let machine = PathBuf::from(OsString::from_vec(machine));
            if let Err(error) = machine::clean_up(&machine) {
                // It is off, or the next backup of it does it.
                debug!(machine = %machine.display(), %error, "a killed backup's snapshot of a machine");
            }
        }
        let removed = std::fs::remove_dir_all(folder.path());
        // One that was not listening yet.
        end_servers(&socket);
        match removed {
            Ok(()) => warn!(folder = %folder.path().display(), "removed what a killed process left"),
            Err(error) => {
                warn!(folder = %folder.path().display(), %error, "what a killed process left stays");
            }
        }
    }
}

/// What qemu-nbd serves, while it is being read.
pub struct Open {
    // Before the server: it ends with the connection.
    export: Export,
    _server: Server,
}

impl Open {
    /// Has an image served, and connects to that; with one of its bitmaps.
    fn new(format: &str, image: &Path, bitmap: Option<&str>) -> VaultResult<Self> {
        Self::with_options(image, &options_of(format, image), None, bitmap)
    }

    /// Has served what qemu's options say; `secret`: an object that they name.
    pub fn with_options(
        name: &Path,
        options: &str,
        secret: Option<&str>,
        bitmap: Option<&str>,
    ) -> VaultResult<Self> {
        let folder = folder()?;
        let socket = folder.path().join(SOCKET);
        let read_only = Some("--read-only".to_owned());
        let bitmap_option = bitmap.map(|name| format!("--bitmap={name}"));
        let secret = secret.map(|secret| format!("--object={secret}"));
        let flags: Vec<String> = [read_only, bitmap_option, secret].into_iter().flatten().collect();
        let mut server = Server::start(name, options, &flags, &socket)?;
        let stream = server.connect(name, &socket)?;
        // It takes connections before it opens the image.
        let export = Export::new(name, stream, "", bitmap, PATIENCE)
            .map_err(|error| server.complaint_after(name, error))?;
        Ok(Self { export, _server: server })
    }
}

/// How qemu is told of an image. Not by a file name as it reads them: those may begin with a protocol.
fn options_of(format: &str, image: &Path) -> String {
    format!("driver={format},file.driver=file,file.filename={}", escaped(&image.display().to_string()))
}

/// A value among qemu's options, where commas are doubled.
pub fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

/// A secret of qemu's that is read from a file.
pub fn secret(id: &str, file: &Path) -> String {
    format!("secret,id={id},file={}", escaped(&file.display().to_string()))
}

impl Device for Open {
    fn size_bytes(&self) -> u64 {
        self.export.size_bytes()
    }

    fn tells_holes(&self) -> bool {
        self.export.tells_holes()
    }

    fn read_region(&mut self, start: u64, len: usize, buffer: &mut Vec<u8>) -> io::Result<RegionRead> {
        self.export.read_region(start, len, buffer)
    }
}

/// `qemu-nbd`, ended when this is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// What it says goes to a file: a pipe that nobody reads would hold it up once full.
    said: File,
}

impl Server {
    /// Starts one that takes writes to an image too, and connects to it. The folder is to stay until it has agreed on the export.
    pub fn for_writing(format: &str, image: &Path) -> VaultResult<(Self, UnixStream, TempDir)> {
        let folder = folder()?;
        let socket = folder.path().join(SOCKET);
        let mut server = Self::start(image, &options_of(format, image), &[], &socket)?;
        let stream = server.connect(image, &socket)?;
        Ok((server, stream, folder))
    }

    /// Waits for it to end by itself, as it does once a client leaves: with all that it was given in the image.
    ///
    /// # Errors
    /// `Io` where that did not end well.
    pub fn end_well(&mut self, image: &Path) -> VaultResult<()> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(failed("completing", image, self.complaint(image, status).to_string()));
                }
                Ok(None) => sleep(Duration::from_millis(10)),
                Err(error) => return Err(VaultError::io("completing", image, error)),
            }
        }
        Err(failed("completing", image, format!("qemu-nbd does not end within {} s", PATIENCE.as_secs())))
    }

    fn start(image: &Path, options: &str, flags: &[String], socket: &Path) -> VaultResult<Self> {
        let io = |error| VaultError::io("making", &std::env::temp_dir(), error);
        let said = tempfile::tempfile().map_err(io)?;
        let stderr = said.try_clone().map_err(io)?;
        let child = Command::new("qemu-nbd")
            .args(flags)
            .args(["--image-opts", "--socket"])
            .arg(socket)
            .arg(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn();
        child.map(|child| Self { child, said }).map_err(|error| missing("qemu-nbd", image, error))
    }

    fn connect(&mut self, image: &Path, socket: &Path) -> VaultResult<UnixStream> {
        let begun = Instant::now();
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                return Ok(stream);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.complaint(image, status));
            }
            if begun.elapsed() > START_TIMEOUT {
                let message = format!("qemu-nbd does not answer after {} s", START_TIMEOUT.as_secs());
                return Err(failed("opening", image, message));
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Why the connection to it broke: what it said, if it ended.
    pub fn complaint_after(&mut self, image: &Path, error: VaultError) -> VaultError {
        let begun = Instant::now();
        while begun.elapsed() < LEAVE_TIMEOUT {
            if let Ok(Some(status)) = self.child.try_wait() {
                return self.complaint(image, status);
            }
            sleep(Duration::from_millis(10));
        }
        error
    }

    fn complaint(&self, image: &Path, status: ExitStatus) -> VaultError {
        let mut said = vec![0; MAX_COMPLAINT_BYTES];
        let len = self.said.read_at(&mut said, 0).unwrap_or(0);
        said.truncate(len);
        complaint("qemu-nbd", image, status, &String::from_utf8_lossy(&said))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Why one of qemu's tools can't be run.
pub fn missing(tool: &str, image: &Path, error: io::Error) -> VaultError {
    match error.kind() {
        io::ErrorKind::NotFound => VaultError::Invalid(format!(
            "{}: images of other formats than raw are read and written through {tool}, which is not installed: it is in the package \
             qemu-utils (Debian, Ubuntu), qemu-img (Fedora, RHEL) or qemu-tools (SUSE)",
            image.display()
        )),
        _ => VaultError::io("running", Path::new(tool), error),
    }
}

/// What one of qemu's tools said as it ended.
pub fn complaint(tool: &str, image: &Path, status: ExitStatus, said: &str) -> VaultError {
    let message = format!("{}: {tool} ended with {status}: {}", image.display(), said.trim());
    if said.contains(" lock") {
        return VaultError::Unsafe(format!(
            "{message}. Something writes to it, such as a machine that runs from it"
        ));
    }
    if said.contains("No space left") || said.contains("Input/output error") {
        return failed("using", image, message);
    }
    VaultError::Invalid(message)
}

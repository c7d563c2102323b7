//! Images that qemu knows, through `qemu-nbd`.
//!
//! qemu locks the image as long as it is read: nobody else writes to it, and a machine that runs from it keeps us off. The
//! server ends with our connection to it, and its socket goes as soon as that is made: a kill leaves nothing behind but in
//! the moment before, which the next one finds ([`clean_up`]).

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use strongroom_vault::backup::{Device, RegionRead, Source};
use strongroom_vault::{VaultError, VaultResult};
use tracing::warn;

use super::export::{Export, PATIENCE};
use super::failed;

/// What folders of sockets are called, before the number of their process.
const PREFIX: &str = "strongroom-nbd-";
const SOCKET: &str = "socket";
/// How long qemu-nbd may take to open an image.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one may take to answer or to end that has nothing else to do.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The most of its complaint that is told, bytes.
const MAX_COMPLAINT_BYTES: usize = 2000;

/// Opens an image in one of qemu's formats.
pub fn open(format: &str, image: &Path) -> VaultResult<Source> {
    clean_up();
    let image = image.canonicalize().map_err(|error| VaultError::io("opening", image, error))?;
    let folder = tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir();
    let folder = folder.map_err(|error| VaultError::io("making", &std::env::temp_dir(), error))?;
    let socket = folder.path().join(SOCKET);
    let mut server = Server::start(format, &image, &socket)?;
    let stream = server.connect(&image, &socket)?;
    // It takes connections before it opens the image.
    let export =
        Export::new(&image, stream, "", PATIENCE).map_err(|error| server.complaint_after(&image, error))?;
    Ok(Source::device(&image, Box::new(Image { export, _server: server })))
}

/// Ends servers whose process was killed before it was connected to them.
pub fn clean_up() {
    let entries = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for folder in entries {
        let name = folder.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let Some((process, _)) = rest.split_once('-') else { continue };
        let is_ours =
            folder.metadata().is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw());
        if !is_ours || Path::new("/proc").join(process).exists() {
            continue;
        }
        let socket = folder.path().join(SOCKET);
        // It ends once a client leaves.
        if let Ok(stream) = UnixStream::connect(&socket) {
            drop(Export::new(&socket, stream, "", LEAVE_TIMEOUT));
        }
        match std::fs::remove_dir_all(folder.path()) {
            Ok(()) => warn!(folder = %folder.path().display(), "removed what a killed backup left"),
            Err(error) => warn!(folder = %folder.path().display(), %error, "what a killed backup left stays"),
        }
    }
}

/// An image that is being read.
struct Image {
    // Before the server: it ends with the connection.
    export: Export,
    _server: Server,
}

impl Device for Image {
    fn size_bytes(&self) -> u64 {
        self.export.size_bytes()
    }

    fn read_region(&mut self, start: u64, len: usize, buffer: &mut Vec<u8>) -> io::Result<RegionRead> {
        self.export.read_region(start, len, buffer)
    }
}

/// `qemu-nbd`, ended when this is dropped.
struct Server {
    child: Child,
    /// What it says goes to a file: a pipe that nobody reads would hold it up once full.
    said: File,
}

impl Server {
    fn start(format: &str, image: &Path, socket: &Path) -> VaultResult<Self> {
        // Not a file name as qemu reads them: those may begin with a protocol. Commas are doubled in options.
        let file = image.display().to_string().replace(',', ",,");
        let options = format!("driver={format},file.driver=file,file.filename={file}");
        let io = |error| VaultError::io("making", &std::env::temp_dir(), error);
        let said = tempfile::tempfile().map_err(io)?;
        let stderr = said.try_clone().map_err(io)?;
        let child = Command::new("qemu-nbd")
            .args(["--read-only", "--image-opts", "--socket"])
            .arg(socket)
            .arg(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn();
        child.map(|child| Self { child, said }).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => VaultError::Invalid(format!(
                "{}: images of other formats than raw are read through qemu-nbd, which is not installed: it is in the package \
                 qemu-utils (Debian, Ubuntu), qemu-img (Fedora, RHEL) or qemu-tools (SUSE)",
                image.display()
            )),
            _ => VaultError::io("running", &PathBuf::from("qemu-nbd"), error),
        })
    }

    fn connect(&mut self, image: &Path, socket: &Path) -> VaultResult<UnixStream> {
        let begun = Instant::now();
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                return Ok(stream);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.complaint(image, &status.to_string()));
            }
            if begun.elapsed() > START_TIMEOUT {
                let message = format!("qemu-nbd does not answer after {} s", START_TIMEOUT.as_secs());
                return Err(failed("opening", image, message));
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Why the connection to it broke: what it said, if it ended.
    fn complaint_after(&mut self, image: &Path, error: VaultError) -> VaultError {
        let begun = Instant::now();
        while begun.elapsed() < LEAVE_TIMEOUT {
            if let Ok(Some(status)) = self.child.try_wait() {
                return self.complaint(image, &status.to_string());
            }
            sleep(Duration::from_millis(10));
        }
        error
    }

    fn complaint(&self, image: &Path, status: &str) -> VaultError {
        let mut said = vec![0; MAX_COMPLAINT_BYTES];
        let len = self.said.read_at(&mut said, 0).unwrap_or(0);
        said.truncate(len);
        let said = String::from_utf8_lossy(&said);
        let message = format!("{}: qemu-nbd ended with {status}: {}", image.display(), said.trim());
        if said.contains(" lock") {
            return VaultError::Unsafe(format!(
                "{message}. Something writes to it, such as a machine that runs from it"
            ));
        }
        VaultError::Invalid(message)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

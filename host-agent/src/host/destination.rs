//! What volumes are restored to: files and devices of this host, new images that qemu makes, exports of network block devices.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use strongroom_format::ids::BackupId;
use strongroom_nbd::{Client, ClientError, Writer};
use strongroom_vault::restore::{Destination, RestoreOptions, RestoreReport, restore_to, restore_to_path};
use strongroom_vault::{Progress, Target, VaultError, VaultResult};

use super::export::{PATIENCE, Remote};
use super::lvm::NewThin;
use super::qemu::Image;
use super::zfs::NewZvol;
use super::{Place, failed, qemu_image};

/// Where a volume is restored to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreTo {
    /// A file or block device, as it is.
    Path(PathBuf),
    /// A new image in one of qemu's formats: `qemu:FORMAT:FILE`.
    Image {
        /// The format, by qemu's name for it.
        format: String,
        /// The file.
        file: PathBuf,
    },
    /// An export behind a Unix socket: `nbd+unix:///NAME?socket=PATH`, as the NBD project writes it (`doc/uri.md`).
    Export {
        /// The socket.
        socket: PathBuf,
        /// The export's name; the default one if empty.
        name: String,
    },
    /// A new volume in a thin pool of LVM: `lvm-thin:VG/POOL/LV`.
    Thin(NewThin),
    /// A new zvol: `zfs:POOL/VOLUME`.
    Zvol(NewZvol),
}

impl FromStr for RestoreTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("qemu:") {
            let Image { format, file } = Image::parse(rest)?;
            return Ok(Self::Image { format, file });
        }
        if let Some(rest) = text.strip_prefix("lvm-thin:") {
            return NewThin::parse(rest).map(Self::Thin);
        }
        if let Some(rest) = text.strip_prefix("zfs:") {
            return NewZvol::parse(rest).map(Self::Zvol);
        }
        if let Some(Remote { socket, name }) = Remote::parse(text)? {
            return Ok(Self::Export { socket, name });
        }
        Ok(Self::Path(PathBuf::from(text)))
    }
}

/// As it is written on the command line and in messages.
impl fmt::Display for RestoreTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Image { format, file } => write!(f, "qemu:{format}:{}", file.display()),
            Self::Export { socket, name } => write!(f, "nbd+unix:///{name}?socket={}", socket.display()),
            Self::Thin(NewThin { name, .. }) | Self::Zvol(NewZvol { name, .. }) => f.write_str(name),
        }
    }
}

impl RestoreTo {
    /// What on this host it is, or is reached through.
    pub fn place(&self) -> Place<'_> {
        match self {
            Self::Path(path) | Self::Image { file: path, .. } | Self::Export { socket: path, .. } => {
                Place::Path(path)
            }
            Self::Thin(NewThin { name, .. }) | Self::Zvol(NewZvol { name, .. }) => Place::Name(name),
        }
    }

    /// Whether it is the standard output, which has no name of its own.
    pub fn is_stream(&self) -> bool {
        self.place() == Place::Path(Path::new("-"))
    }

    /// Whether something is there already.
    ///
    /// # Errors
    /// Those of storage.
    pub fn exists(&self) -> VaultResult<bool> {
        match self {
            Self::Path(path) | Self::Image { file: path, .. } | Self::Export { socket: path, .. } => {
                Ok(path.exists())
            }
            Self::Thin(volume) => volume.exists(),
            Self::Zvol(volume) => volume.exists(),
        }
    }

    /// Whether it is never written over, and so was whole from its beginning on, if it is there.
    pub const fn is_never_replaced(&self) -> bool {
        matches!(self, Self::Thin(_) | Self::Zvol(_))
    }

    /// The same, elsewhere on this host; what has no path stays as it is.
    #[must_use]
    pub fn at(self, path: PathBuf) -> Self {
        match self {
            Self::Path(_) => Self::Path(path),
            Self::Image { format, .. } => Self::Image { format, file: path },
            Self::Export { name, .. } => Self::Export { socket: path, name },
            Self::Thin(_) | Self::Zvol(_) => self,
        }
    }

    /// Restores a backup to it.
    ///
    /// # Errors
    /// Those of [`restore_to`]; `Invalid` for a format that qemu does not make, and where its tools are missing.
    pub async fn restore(
        &self,
        target: &Target,
        backup: BackupId,
        options: &RestoreOptions,
        progress: &Arc<Progress>,
    ) -> VaultResult<RestoreReport> {
        match self.clone() {
            Self::Path(path) => restore_to_path(target, backup, &path, options, progress).await,
            Self::Image { format, file } => {
                let overwrite = options.overwrite;
                let make = move |size_bytes| qemu_image::make(&format, &file, size_bytes, overwrite);
                restore_to(target, backup, make, options, progress).await
            }
            Self::Export { socket, name } => {
                restore_to(target, backup, move |_| open_export(socket, &name), options, progress).await
            }
            Self::Thin(volume) => {
                restore_to(target, backup, |size_bytes| volume.make(size_bytes), options, progress).await
            }
            Self::Zvol(volume) => {
                restore_to(target, backup, |size_bytes| volume.make(size_bytes), options, progress).await
            }
        }
    }
}

fn open_export(socket: PathBuf, name: &str) -> VaultResult<Box<dyn Destination>> {
    let stream = UnixStream::connect(&socket).map_err(|error| VaultError::io("opening", &socket, error))?;
    let connection = Connection::new(&socket, stream, name)?;
    Ok(Box::new(Export { socket, connection }))
}

/// A connection to an export, which threads take turns with.
#[derive(Debug)]
pub struct Connection {
    writer: Mutex<Writer<UnixStream>>,
    size_bytes: u64,
}

impl Connection {
    /// Agrees with the server at `socket` on an export to be written to.
    pub fn new(socket: &Path, stream: UnixStream, name: &str) -> VaultResult<Self> {
        let timeouts = stream.set_read_timeout(Some(PATIENCE)).and(stream.set_write_timeout(Some(PATIENCE)));
        timeouts.map_err(|error| VaultError::io("opening", socket, error))?;
        let writer = Client::connect(stream, name).and_then(Client::into_writer);
        let writer = writer.map_err(|error| match error {
            ClientError::ReadOnly => VaultError::Invalid(format!(
                "{}: the export is read-only; have it served to be written to",
                socket.display()
            )),
            error => failed("opening", socket, error),
        })?;
        Ok(Self { size_bytes: writer.size_bytes(), writer: Mutex::new(writer) })
    }

    /// The export's length, bytes.
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// As [`Writer::write`].
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.writer().write(offset, bytes).map_err(io::Error::other)
    }

    /// As [`Writer::write_zeroes`].
    pub fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.writer().write_zeroes(offset..offset + len).map_err(io::Error::other)
    }

    /// As [`Writer::flush`].
    pub fn flush(&self) -> io::Result<()> {
        self.writer().flush().map_err(io::Error::other)
    }

    /// As [`Writer::disconnect`].
    pub fn disconnect(self) -> io::Result<()> {
        let writer = self.writer.into_inner().unwrap_or_else(PoisonError::into_inner);
        writer.disconnect().map_err(io::Error::other)
    }

    fn writer(&self) -> MutexGuard<'_, Writer<UnixStream>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An export that somebody serves.
#[derive(Debug)]
struct Export {
    socket: PathBuf,
    connection: Connection,
}

impl Destination for Export {
    fn name(&self) -> &Path {
        &self.socket
    }

    fn size_bytes(&self) -> u64 {
        self.connection.size_bytes()
    }

    fn stays(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.connection.write_at(offset, bytes)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.connection.zero(offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        self.connection.flush()
    }

    fn complete(self: Box<Self>) -> VaultResult<()> {
        let Self { socket, connection } = *self;
        connection.disconnect().map_err(|error| VaultError::io("completing", &socket, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_told_by_what_they_begin_with() {
        let image = RestoreTo::Image { format: "qcow2".to_owned(), file: PathBuf::from("/a:b.qcow2") };
        let export = RestoreTo::Export { socket: PathBuf::from("/run/s"), name: "disk".to_owned() };
        let path = RestoreTo::Path(PathBuf::from("./qemu:x"));
        let right = [
            ("qemu:qcow2:/a:b.qcow2", image),
            ("nbd+unix:///disk?socket=/run/s", export),
            ("./qemu:x", path),
        ];
        for (text, expected) in right {
            assert_eq!((text.parse().as_ref(), expected.to_string().as_str()), (Ok(&expected), text));
        }
        let wrong = ["qemu:qcow2", "qemu:qcow2:", "qemu::x", "qemu:a,b:x", "nbd+unix:///x", "nbd://host/x"];
        for text in wrong {
            assert!(text.parse::<RestoreTo>().is_err(), "{text}");
        }
    }
}

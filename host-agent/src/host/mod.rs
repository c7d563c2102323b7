//! What volumes are read from: files and devices of this host, images that qemu knows, exports of network block devices.

mod export;
mod qemu;
mod raw;

pub use qemu::clean_up;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use strongroom_vault::backup::Source;
use strongroom_vault::{VaultError, VaultResult};

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
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clone => f.write_str("from a snapshot of the file"),
            Self::InPlace(reason) => {
                write!(f, "in place, without a snapshot ({reason}): refused if it is written to meanwhile")
            }
            Self::Qemu => f.write_str("through qemu-nbd"),
            Self::Export => f.write_str("over NBD, as the server gives it"),
            Self::Live => f.write_str(
                "live, without a snapshot: what is written to meanwhile is there as of different moments",
            ),
        }
    }
}

/// What a volume is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Volume {
    /// A file or block device, as it is.
    File(PathBuf),
    /// An image in one of qemu's formats: `qemu:FORMAT:FILE`.
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
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("qemu:") {
            let (format, file) = rest.split_once(':').ok_or("an image is written qemu:FORMAT:FILE")?;
            let is_word = !format.is_empty() && format.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if !is_word || file.is_empty() {
                return Err("an image is written qemu:FORMAT:FILE, with a format such as qcow2".to_owned());
            }
            return Ok(Self::Image { format: format.to_owned(), file: PathBuf::from(file) });
        }
        if let Some(rest) = text.strip_prefix("nbd+unix:") {
            let form = "an export is written nbd+unix:///NAME?socket=PATH";
            let (name, socket) =
                rest.strip_prefix("///").and_then(|rest| rest.split_once("?socket=")).ok_or(form)?;
            if socket.is_empty() || text.contains('%') {
                return Err(format!("{form}, without percent signs"));
            }
            return Ok(Self::Export { socket: PathBuf::from(socket), name: name.to_owned() });
        }
        if text.starts_with("nbd:") || text.starts_with("nbds:") {
            return Err(
                "network block devices are read from Unix sockets only: nbd+unix:///NAME?socket=PATH"
                    .to_owned(),
            );
        }
        Ok(Self::File(PathBuf::from(text)))
    }
}

impl Volume {
    /// What on this host it is in.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Image { file: path, .. } | Self::Export { socket: path, .. } => path,
        }
    }

    /// The same, elsewhere on this host.
    #[must_use]
    pub fn at(self, path: PathBuf) -> Self {
        match self {
            Self::File(_) => Self::File(path),
            Self::Image { format, .. } => Self::Image { format, file: path },
            Self::Export { name, .. } => Self::Export { socket: path, name },
        }
    }

    /// Opens it to be read in one state; a file or device `live`, as it comes.
    ///
    /// # Errors
    /// `Io`; `Invalid` for what is no volume; `Unsafe` for what somebody else writes to.
    pub fn open(&self, live: bool) -> VaultResult<(Source, Reading)> {
        match self {
            Self::File(path) => raw::open(path, live),
            Self::Image { format, file } => Ok((qemu::open(format, file)?, Reading::Qemu)),
            Self::Export { socket, name } => Ok((export::open(socket, name)?, Reading::Export)),
        }
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
        let image = Volume::Image { format: "qcow2".to_owned(), file: PathBuf::from("/a:b.qcow2") };
        assert_eq!("qemu:qcow2:/a:b.qcow2".parse(), Ok(image));
        let export = Volume::Export { socket: PathBuf::from("/run/s"), name: "disk".to_owned() };
        assert_eq!("nbd+unix:///disk?socket=/run/s".parse(), Ok(export));
        assert_eq!("./qemu:x".parse(), Ok(Volume::File(PathBuf::from("./qemu:x"))));
        let wrong = [
            "qemu:qcow2",
            "qemu:qcow2:",
            "qemu::x",
            "qemu:a,b:x",
            "nbd+unix:///x",
            "nbd+unix:///?socket=",
            "nbd://host/x",
        ];
        for text in wrong {
            assert!(text.parse::<Volume>().is_err(), "{text}");
        }
    }
}

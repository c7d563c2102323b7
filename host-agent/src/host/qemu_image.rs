//! New images that qemu makes, filled through `qemu-nbd`.
//!
//! An image is made and filled under another name beside its own, and gets that once `qemu-nbd` has ended well. Whatever moment a
//! restore is killed at, the next one ends the server ([`clean_up`]) and the next one to the same name removes what was made.

use std::io;
use std::path::{Path, PathBuf};

use strongroom_vault::restore::{Destination, IncompleteFile, folder_of};
use strongroom_vault::{VaultError, VaultResult};

use super::destination::Connection;
use super::qemu::{Server, clean_up, create};

/// Makes an image that holds `size_bytes`, all zeros, and has it served to be written to.
///
/// # Errors
/// `Unsafe` for a file that exists, unless `overwrite`; `Invalid` for a format that qemu does not make, and where its tools are
/// missing; `Io`.
pub fn make(
    format: &str,
    path: &Path,
    size_bytes: u64,
    overwrite: bool,
) -> VaultResult<Box<dyn Destination>> {
    clean_up();
    let name = path.file_name().ok_or_else(|| {
        VaultError::Invalid(format!("{}: names no file; give the name of a new file", path.display()))
    })?;
    let folder = folder_of(path);
    // From the root on: qemu takes what comes before a colon in another path for a protocol.
    let folder = folder.canonicalize().map_err(|error| VaultError::io("creating", path, error))?;
    let file = IncompleteFile::create(&folder.join(name), overwrite)?;
    create(format, file.temporary_path(), size_bytes)?;
    let (mut server, stream, folder) = Server::for_writing(format, file.temporary_path())?;
    let connection = Connection::new(path, stream, "")
        .map_err(|error| server.complaint_after(file.temporary_path(), error))?;
    drop(folder);
    Ok(Box::new(Image { connection, server, file, path: path.to_owned() }))
}

/// An image that is being filled.
#[derive(Debug)]
struct Image {
    // Before the server, which ends with it; and that before the file.
    connection: Connection,
    server: Server,
    file: IncompleteFile,
    /// As it was given.
    path: PathBuf,
}

impl Destination for Image {
    fn name(&self) -> &Path {
        &self.path
    }

    fn size_bytes(&self) -> u64 {
        self.connection.size_bytes()
    }

    fn stays(&self) -> bool {
        false
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.connection.write_at(offset, bytes)
    }

    fn zero(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.connection.flush()
    }

    fn complete(self: Box<Self>) -> VaultResult<()> {
        let Self { connection, mut server, file, path } = *self;
        connection.disconnect().map_err(|error| VaultError::io("completing", &path, error))?;
        server.end_well(&path)?;
        file.complete()
    }
}

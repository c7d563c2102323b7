//! New volumes of storage, filled under another name and put in their place once they hold all.
//!
//! Invariant: a volume that a restore makes has its name only when it is complete. What a killed restore leaves has the name of
//! something temporary, and is removed as such.

use std::fmt;
use std::io;
use std::path::Path;

use strongroom_vault::restore::{BlockDevice, Destination};
use strongroom_vault::{VaultError, VaultResult};
use tracing::warn;

use super::kept;
use super::owner::Own;

/// What makes volumes, by their names.
pub trait Volumes: fmt::Debug + Send + Sync {
    /// Whether there is something of this name, a volume or not.
    ///
    /// # Errors
    /// Those of its tools.
    fn exists(&self, name: &str) -> VaultResult<bool>;

    /// Makes one that holds as many bytes at least, and opens it.
    ///
    /// # Errors
    /// Those of its tools.
    fn make(&self, name: &str, size_bytes: u64) -> VaultResult<BlockDevice>;

    /// Gives one another name.
    ///
    /// # Errors
    /// Those of its tools.
    fn rename(&self, from: &str, to: &str) -> VaultResult<()>;

    /// Removes one.
    ///
    /// # Errors
    /// Those of its tools.
    fn remove(&self, name: &str) -> VaultResult<()>;
}

/// Makes a volume `name` that holds `size_bytes`; `shown`: what it is called elsewhere.
///
/// # Errors
/// `Unsafe` for one that exists: whatever that is, and whoever uses it, is nobody's to remove but its owner's; those of making it.
pub fn make(
    storage: impl Volumes + 'static,
    shown: &str,
    name: &str,
    size_bytes: u64,
) -> VaultResult<Box<dyn Destination>> {
    if storage.exists(name)? {
        return Err(VaultError::Unsafe(format!(
            "{shown}: this exists, and a restore to a new volume replaces nothing; give another name, or remove it first"
        )));
    }
    let own = Own::new();
    let mut filling = Filling {
        shown: shown.to_owned(),
        name: name.to_owned(),
        temporary: kept::temporary(&own),
        storage: Box::new(storage),
        device: None,
        done: false,
        _own: own,
    };
    filling.device = Some(filling.storage.make(&filling.temporary, size_bytes)?);
    Ok(Box::new(filling))
}

/// A volume that is being filled; removed if this is dropped before it is complete.
#[derive(Debug)]
struct Filling {
    shown: String,
    name: String,
    temporary: String,
    storage: Box<dyn Volumes>,
    /// There until it is let go of.
    device: Option<BlockDevice>,
    done: bool,
    _own: Own,
}

impl Filling {
    fn device(&self) -> io::Result<&BlockDevice> {
        self.device.as_ref().ok_or_else(|| io::Error::other("the volume was let go of"))
    }
}

impl Destination for Filling {
    fn name(&self) -> &Path {
        Path::new(&self.shown)
    }

    fn size_bytes(&self) -> u64 {
        self.device.as_ref().map_or(0, Destination::size_bytes)
    }

    fn stays(&self) -> bool {
        false
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.device()?.write_at(offset, bytes)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device()?.zero(offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        self.device()?.flush()
    }

    fn complete(mut self: Box<Self>) -> VaultResult<()> {
        // Some tools rename nothing that is open.
        self.device = None;
        self.storage.rename(&self.temporary, &self.name)?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.device = None;
        if self.done || !self.storage.exists(&self.temporary).unwrap_or(true) {
            return;
        }
        if let Err(error) = self.storage.remove(&self.temporary) {
            warn!(%error, "a volume that is not complete stays; it is removed by the next one that is made, or by the agent's start");
        }
    }
}

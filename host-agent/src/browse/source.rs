//! A backup's image for who reads on a thread that may block.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use strongroom_guest::Source;
use strongroom_vault::image::{BackupImage, Piece};
use tokio::runtime::Handle;

/// The image. It reads ahead of whoever reads in a row.
#[derive(Debug)]
pub struct ImageSource {
    image: Arc<BackupImage>,
    runtime: Handle,
    stopped: Arc<AtomicBool>,
}

impl ImageSource {
    /// Once `stopped` is set, nothing is read any more.
    pub const fn new(image: Arc<BackupImage>, runtime: Handle, stopped: Arc<AtomicBool>) -> Self {
        Self { image, runtime, stopped }
    }
}

impl Source for ImageSource {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.stopped.load(Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let end = offset.saturating_add(buffer.len() as u64);
        let mut rest = buffer;
        for piece in self.runtime.block_on(self.image.read(offset..end)).map_err(io::Error::other)? {
            let len = match &piece {
                Piece::Data(bytes) => bytes.len(),
                Piece::Zeros(len) => usize::try_from(*len).unwrap_or(usize::MAX),
            };
            let (now, later) = rest.split_at_mut_checked(len).ok_or(io::ErrorKind::UnexpectedEof)?;
            match piece {
                Piece::Data(bytes) => now.copy_from_slice(&bytes),
                Piece::Zeros(_) => now.fill(0),
            }
            rest = later;
        }
        if rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

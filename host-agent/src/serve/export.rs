//! A backup as the export of an NBD server.

use std::future::Future;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use strongroom_nbd::reply::{ErrorCode, Failure, MAX_STATUS_EXTENTS};
use strongroom_nbd::{Allocation, Export, ExportInfo, Piece, Status};
use strongroom_vault::image::overlay::WritableImage;
use strongroom_vault::image::{self, BackupImage, ImageError, Run};
use strongroom_vault::sparing::Sparing;
use strongroom_vault::{Clock, VaultError};
use tracing::warn;

use crate::output::time;

/// What is served.
#[derive(Debug)]
pub enum Image {
    /// The backup as it is.
    ReadOnly(BackupImage),
    /// The backup below a local overlay.
    Writable(WritableImage),
}

/// The export.
#[derive(Debug)]
pub struct BackupExport {
    info: ExportInfo,
    image: Image,
    clock: Arc<dyn Clock>,
    warnings: Sparing,
}

impl BackupExport {
    pub fn new(image: Image, clock: Arc<dyn Clock>) -> Self {
        let base = image.base();
        let info = ExportInfo {
            name: base.backup().to_string(),
            description: format!("volume {} as of {}", base.volume(), time(base.created())),
            size_bytes: base.size_bytes(),
            read_only: matches!(image, Image::ReadOnly(_)),
        };
        Self { info, image, clock, warnings: Sparing::default() }
    }

    pub const fn image(&self) -> &Image {
        &self.image
    }

    pub fn into_image(self) -> Image {
        self.image
    }
}

impl Image {
    pub const fn base(&self) -> &BackupImage {
        match self {
            Self::ReadOnly(base) => base,
            Self::Writable(image) => image.base(),
        }
    }

    /// The image for a request that writes; the protocol lets none through to one that is read-only.
    fn writable(&self) -> Result<&WritableImage, Failure> {
        match self {
            Self::ReadOnly(_) => Err(ErrorCode::NotPermitted.into()),
            Self::Writable(image) => Ok(image),
        }
    }
}

impl Export for BackupExport {
    fn info(&self) -> &ExportInfo {
        &self.info
    }

    async fn read(&self, range: Range<u64>) -> Result<Vec<Piece>, Failure> {
        let pieces = match &self.image {
            Image::ReadOnly(base) => self.told(&range, base.read(range.clone())).await?,
            Image::Writable(image) => self.told(&range, image.read(range.clone())).await?,
        };
        let piece = |piece| match piece {
            image::Piece::Data(bytes) => Piece::Data(bytes),
            image::Piece::Zeros(len) => Piece::Zeros(len),
        };
        Ok(pieces.into_iter().map(piece).collect())
    }

    async fn write(&self, offset: u64, bytes: Bytes) -> Result<(), Failure> {
        let range = offset..offset + bytes.len() as u64;
        self.told(&range, self.image.writable()?.write(offset, bytes)).await
    }

    async fn write_zeroes(&self, range: Range<u64>, keep_space: bool) -> Result<(), Failure> {
        self.told(&range, self.image.writable()?.write_zeroes(range.clone(), keep_space)).await
    }

    async fn trim(&self, range: Range<u64>) -> Result<(), Failure> {
        self.told(&range, self.image.writable()?.trim(range.clone())).await
    }

    async fn flush(&self) -> Result<(), Failure> {
        match &self.image {
            Image::ReadOnly(_) => Ok(()),
            Image::Writable(image) => self.told(&(0..self.info.size_bytes), image.flush()).await,
        }
    }

    async fn prefetch(&self, range: Range<u64>) -> Result<(), Failure> {
        self.told(&range, self.image.base().prefetch(range.clone())).await
    }

    async fn status(&self, range: Range<u64>, one: bool) -> Result<Vec<Status>, Failure> {
        let max_runs = if one { 1 } else { MAX_STATUS_EXTENTS };
        let runs = match &self.image {
            Image::ReadOnly(base) => self.told(&range, base.runs(range.clone(), max_runs)).await?,
            Image::Writable(image) => self.told(&range, image.runs(range.clone(), max_runs)).await?,
        };
        let status = |run: Run| {
            let allocation = if run.hole { Allocation::Hole } else { Allocation::Data };
            Status { allocation, len: run.len }
        };
        Ok(runs.into_iter().map(status).collect())
    }
}

impl BackupExport {
    /// Waits for the end of a request, and says what went wrong: to the log in full, and to the client.
    async fn told<T>(
        &self,
        range: &Range<u64>,
        request: impl Future<Output = Result<T, ImageError>>,
    ) -> Result<T, Failure> {
        request.await.map_err(|error| {
            if let Some(held_back) = self.warnings.admit(self.clock.now()) {
                let bytes = range.end - range.start;
                warn!(offset = range.start, bytes, held_back, %error, "a request failed");
            }
            let code = match error.as_ref() {
                VaultError::Io { source, .. }
                    if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
                {
                    ErrorCode::NoSpace
                }
                _ => ErrorCode::Io,
            };
            Failure::new(code, error.to_string())
        })
    }
}

//! Volumes whose content comes from a pool, so that chunks recur: across volumes, and after they were deleted.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// Length of a run of one content, bytes: several chunks.
const RUN_BYTES: usize = 128 << 10;
/// Runs of a volume.
const RUNS: usize = 48;
/// Different contents that volumes share. Small, so that what was deleted is soon written again.
const POOL: u64 = 300;

/// A hash of a volume's content.
pub type Hash = blake3::Hash;

/// A volume: its image is only changed by the worker that owns it.
#[derive(Debug)]
pub struct Volume {
    /// Its name in the target.
    pub name: String,
    /// Its image.
    pub image: PathBuf,
    /// The content of each run; 0 are zeros.
    runs: Vec<u64>,
    seed: u64,
}

impl Volume {
    /// Makes a volume and its image.
    pub fn create(folder: &Path, name: String, rng: &mut StdRng, seed: u64) -> Result<Self> {
        let image = folder.join(format!("{name}.img"));
        let runs = (0..RUNS).map(|_| rng.random_range(0..POOL)).collect();
        let volume = Self { name, image, runs, seed };
        volume.write()?;
        Ok(volume)
    }

    /// Changes some runs: to contents from the pool, to zeros, or to what was nowhere before.
    pub fn change(&mut self, rng: &mut StdRng) -> Result<()> {
        for _ in 0..rng.random_range(1..=8) {
            let at = rng.random_range(0..self.runs.len());
            self.runs[at] = match rng.random_range(0..10) {
                0 => 0,
                1 | 2 => POOL + rng.random_range(0..u64::from(u32::MAX)),
                _ => rng.random_range(0..POOL),
            };
        }
        self.write()
    }

    /// The hash of the image as it is.
    pub fn hash(&self) -> Result<Hash> {
        hash_file(&self.image)
    }

    fn write(&self) -> Result<()> {
        let mut file = BufWriter::new(File::create(&self.image)?);
        let mut bytes = vec![0; RUN_BYTES];
        for &run in &self.runs {
            bytes.fill(0);
            if run > 0 {
                StdRng::seed_from_u64(self.seed ^ run.wrapping_mul(0x9e37_79b9_7f4a_7c15))
                    .fill_bytes(&mut bytes);
            }
            file.write_all(&bytes)?;
        }
        file.flush()?;
        Ok(())
    }
}

/// Hashes a file.
pub fn hash_file(path: &Path) -> Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize())
}

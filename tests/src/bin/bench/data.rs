//! The images that are backed up: a folder of real ones, or made ones where none are given.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// Length of the runs that made images consist of.
const RUN_BYTES: usize = 16 << 10;
/// Runs of a made image.
const RUNS: u64 = 16 << 10;
/// Buffer for reading and comparing; small, since memory of this program would count as the tools'.
const BUFFER_BYTES: usize = 256 << 10;

/// Images of one volume over time, and of one cloned from the same base.
#[derive(Debug)]
pub struct Data {
    /// The volume at first.
    pub gen1: PathBuf,
    /// Later.
    pub gen2: PathBuf,
    /// Later still, if there.
    pub gen3: Option<PathBuf>,
    /// The other volume.
    pub vm2: PathBuf,
}

impl Data {
    /// Takes the images of a folder.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let image = |name: &str| {
            let path = folder.join(name);
            path.exists().then_some(path).with_context(|| {
                format!(
                    "{}: no {name}. The folder needs vm1-gen1.img, vm1-gen2.img (the same volume later: packages \
                     installed, logs grown, database pages rewritten) and vm2.img (cloned from the same base); \
                     vm1-gen3.img is used if there. Without --data, images are made",
                    folder.display()
                )
            })
        };
        Ok(Self {
            gen1: image("vm1-gen1.img")?,
            gen2: image("vm1-gen2.img")?,
            gen3: image("vm1-gen3.img").ok(),
            vm2: image("vm2.img")?,
        })
    }

    /// Makes images of 256 MiB: a third zeros, a third that compresses, a third noise. Generations differ in 3 % of
    /// the runs, the other volume in 6 %.
    pub fn make(folder: &Path) -> Result<Self> {
        let made = |name: &str, changes: &[(u64, u64)]| -> Result<PathBuf> {
            let path = folder.join(name);
            let mut file = BufWriter::new(File::create(&path)?);
            for run in 0..RUNS {
                let seed = changes
                    .iter()
                    .filter(|&&(generation, percent)| {
                        StdRng::seed_from_u64(generation << 32 | run).random_range(0..100) < percent
                    })
                    .map(|&(generation, _)| generation)
                    .next_back()
                    .unwrap_or(0);
                file.write_all(&run_bytes(seed << 32 | run))?;
            }
            file.into_inner()?.sync_all()?;
            Ok(path)
        };
        Ok(Self {
            gen1: made("vm1-gen1.img", &[])?,
            gen2: made("vm1-gen2.img", &[(1, 3)])?,
            gen3: Some(made("vm1-gen3.img", &[(1, 3), (2, 3)])?),
            vm2: made("vm2.img", &[(3, 6)])?,
        })
    }
}

fn run_bytes(seed: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut bytes = vec![0; RUN_BYTES];
    match rng.random_range(0..3) {
        0 => {}
        1 => {
            let mut word = [0; 8];
            for (n, place) in bytes.chunks_mut(8).enumerate() {
                if n % 4 == 0 {
                    rng.fill_bytes(&mut word);
                }
                place.copy_from_slice(&word[..place.len()]);
            }
        }
        _ => rng.fill_bytes(&mut bytes),
    }
    bytes
}

/// Reads a file once, so that no tool is the one that has to wait for the disk.
pub fn warm(path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Fails unless two files hold the same bytes.
pub fn ensure_same(restored: &Path, original: &Path) -> Result<()> {
    let mut files = [File::open(restored)?, File::open(original)?];
    let len = files[1].metadata()?.len();
    ensure!(files[0].metadata()?.len() == len, "{}: its length is wrong", restored.display());
    let mut buffers = [vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]];
    let mut at = 0;
    while at < len {
        let step = usize::try_from((len - at).min(BUFFER_BYTES as u64))?;
        for (file, buffer) in files.iter_mut().zip(&mut buffers) {
            file.read_exact(&mut buffer[..step])?;
        }
        ensure!(buffers[0][..step] == buffers[1][..step], "{}: differs near {at}", restored.display());
        at += step as u64;
    }
    Ok(())
}

//! Where chunks end: FastCDC over a keyed gear table, or a fixed size.
//!
//! Invariant: a cut depends on nothing but the parameters, the key, and the bytes since the last cut (and where the
//! run of data ends). Any cut is *valid*; good cuts only find more duplicates.

use std::fmt;
use std::str::FromStr;

use fastcdc::v2020::{Normalization, cut_gear, select_masks};
use serde::{Deserialize, Serialize};

use crate::secrets::Secret32;

/// A volume is chunked in regions of this many bytes, each on its own: chunks never cross a region's end. So regions
/// are worked on in parallel, and a change in one leaves the chunk lists of the others as they are.
pub const REGION_BYTES: u64 = 8 << 20;
/// The longest chunk there can be, bytes.
pub const MAX_CHUNK_BYTES: usize = 4 << 20;
/// Zeros are looked for in aligned blocks of this many bytes, the block size of the usual filesystems.
pub const ZERO_BLOCK_BYTES: usize = 4096;
/// Runs of at least this many bytes of zero blocks are holes: they end a chunk and are never stored. Shorter ones
/// stay inside chunks, where they compress to nothing, so that scattered zero blocks don't make many tiny chunks.
pub const MIN_HOLE_BYTES: usize = 8 * ZERO_BLOCK_BYTES;

/// How a volume is cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ChunkerParams {
    /// Content-defined: FastCDC 2020, normalisation level 1, least a quarter and most four times the average.
    FastCdc {
        /// Average length, bytes; a power of two.
        average_bytes: u32,
    },
    /// Fixed: every `size_bytes`.
    Fixed {
        /// Length, bytes; a power of two.
        size_bytes: u32,
    },
}

/// Says why chunker parameters were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "chunker '{0}': expected fastcdc:AVERAGE (4KiB to 1MiB) or fixed:SIZE (4KiB to 4MiB), a power of two, as in fastcdc:32KiB"
)]
pub struct ChunkerParamsError(String);

impl ChunkerParams {
    /// Checks the limits.
    ///
    /// # Errors
    /// When a length is no power of two or out of bounds.
    pub fn validated(self) -> Result<Self, ChunkerParamsError> {
        let (length, limit) = match self {
            Self::FastCdc { average_bytes } => (average_bytes, 1 << 20),
            Self::Fixed { size_bytes } => (size_bytes, 4 << 20),
        };
        if length.is_power_of_two() && (4096..=limit).contains(&length) {
            Ok(self)
        } else {
            Err(ChunkerParamsError(self.to_string()))
        }
    }
}

impl fmt::Display for ChunkerParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, bytes) = match self {
            Self::FastCdc { average_bytes } => ("fastcdc", average_bytes),
            Self::Fixed { size_bytes } => ("fixed", size_bytes),
        };
        if bytes % (1 << 20) == 0 {
            write!(f, "{name}:{}MiB", bytes >> 20)
        } else if bytes % 1024 == 0 {
            write!(f, "{name}:{}KiB", bytes >> 10)
        } else {
            write!(f, "{name}:{bytes}")
        }
    }
}

impl FromStr for ChunkerParams {
    type Err = ChunkerParamsError;

    fn from_str(text: &str) -> Result<Self, ChunkerParamsError> {
        let error = || ChunkerParamsError(text.chars().take(80).collect());
        let (name, length) = text.split_once(':').ok_or_else(error)?;
        let digits = length.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit: u32 = match length[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            _ => return Err(error()),
        };
        let bytes = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(error)?;
        match name {
            "fastcdc" => Self::FastCdc { average_bytes: bytes },
            "fixed" => Self::Fixed { size_bytes: bytes },
            _ => return Err(error()),
        }
        .validated()
        .map_err(|_| error())
    }
}

/// Finds cuts.
#[derive(Clone)]
pub struct Chunker(Cutter);

#[derive(Clone)]
enum Cutter {
    FastCdc(Box<FastCdc>),
    Fixed { size: usize },
}

#[derive(Clone)]
struct FastCdc {
    average: usize,
    mask_s: u64,
    mask_l: u64,
    gear: [u64; 256],
    gear_ls: [u64; 256],
}

impl fmt::Debug for Chunker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Cutter::FastCdc(cdc) => write!(f, "Chunker(fastcdc:{})", cdc.average),
            Cutter::Fixed { size } => write!(f, "Chunker(fixed:{size})"),
        }
    }
}

impl Chunker {
    /// Makes the chunker of a target (or volume) from its parameters and the target's gear key.
    ///
    /// # Errors
    /// When the parameters break their limits.
    pub fn new(params: ChunkerParams, gear_key: &Secret32) -> Result<Self, ChunkerParamsError> {
        Ok(Self(match params.validated()? {
            ChunkerParams::Fixed { size_bytes } => Cutter::Fixed { size: size_bytes as usize },
            ChunkerParams::FastCdc { average_bytes } => {
                let (mask_s, mask_l) = select_masks(average_bytes as usize, Normalization::Level1);
                let gear = gear_table(gear_key);
                let gear_ls = gear.map(|word| word << 1);
                Cutter::FastCdc(Box::new(FastCdc {
                    average: average_bytes as usize,
                    mask_s,
                    mask_l,
                    gear,
                    gear_ls,
                }))
            }
        }))
    }

    /// Returns the length of the chunk at the start of `data`, which lies at `offset` in its region and reaches to the
    /// end of the run of data; never 0 unless `data` is empty.
    pub fn cut(&self, data: &[u8], offset: usize) -> usize {
        match &self.0 {
            Cutter::Fixed { size } => data.len().min(*size - offset % *size),
            Cutter::FastCdc(cdc) => {
                cut_gear(
                    data,
                    cdc.average / 4,
                    cdc.average,
                    cdc.average * 4,
                    cdc.mask_s,
                    cdc.mask_l,
                    cdc.mask_s << 1,
                    cdc.mask_l << 1,
                    &cdc.gear,
                    &cdc.gear_ls,
                )
                .1
            }
        }
    }
}

/// The gear table: 256 little-endian words from the XOF of keyed BLAKE3 over the empty message.
fn gear_table(gear_key: &Secret32) -> [u64; 256] {
    let mut bytes = [0u8; 2048];
    blake3::Hasher::new_keyed(gear_key.expose()).finalize_xof().fill(&mut bytes);
    let (words, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|i| u64::from_le_bytes(words[i]))
}

/// A stretch of a region: data to chunk, or zeros to skip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stretch {
    /// So many bytes of data.
    Data(usize),
    /// So many zero bytes.
    Hole(usize),
}

/// Splits a region into data and holes; the lengths add up to the region's.
///
/// Only what the bytes are decides, not how the reader learnt of them: a hole reported by the filesystem and zeros
/// that were written give the same stretches.
pub fn stretches(region: &[u8]) -> Vec<Stretch> {
    let mut found = Vec::new();
    let mut data_start = 0;
    let mut at = 0;
    while at < region.len() {
        let zeros_end = zero_blocks_end(region, at);
        if zeros_end == at {
            at = region.len().min(at + ZERO_BLOCK_BYTES);
            continue;
        }
        let whole_region = at == 0 && zeros_end == region.len();
        if zeros_end - at >= MIN_HOLE_BYTES || whole_region {
            if at > data_start {
                found.push(Stretch::Data(at - data_start));
            }
            found.push(Stretch::Hole(zeros_end - at));
            data_start = zeros_end;
        }
        at = zeros_end;
    }
    if data_start < region.len() {
        found.push(Stretch::Data(region.len() - data_start));
    }
    found
}

/// Returns where the run of zero blocks that starts at `start` ends; `start` itself if there is none.
fn zero_blocks_end(region: &[u8], start: usize) -> usize {
    let mut end = start;
    for block in region[start..].chunks(ZERO_BLOCK_BYTES) {
        if !is_zero(block) {
            break;
        }
        end += block.len();
    }
    end
}

/// Says whether all bytes are zero; stops at the first that is not, and takes eight words at a step.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks.iter().all(|block| {
        let (words, _) = block.as_chunks::<8>();
        words.iter().fold(0u64, |all, word| all | u64::from_le_bytes(*word)) == 0
    }) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunker(params: &str) -> Chunker {
        Chunker::new(params.parse().unwrap(), &Secret32::from_bytes([7; 32])).unwrap()
    }

    fn lengths(chunker: &Chunker, mut data: &[u8]) -> Vec<usize> {
        let mut found = Vec::new();
        while !data.is_empty() {
            let length = chunker.cut(data, found.iter().sum());
            found.push(length);
            data = &data[length..];
        }
        found
    }

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn parameters_read_and_print_alike() {
        for text in ["fastcdc:64KiB", "fastcdc:1MiB", "fixed:4MiB", "fixed:4KiB"] {
            assert_eq!(text.parse::<ChunkerParams>().unwrap().to_string(), text);
        }
        assert_eq!("fastcdc:65536".parse::<ChunkerParams>().unwrap().to_string(), "fastcdc:64KiB");
        for text in [
            "",
            "fastcdc",
            "fastcdc:3KiB",
            "fastcdc:2MiB",
            "fixed:0",
            "fixed:5000",
            "lz:1",
            "fixed:99999999999",
        ] {
            assert!(text.parse::<ChunkerParams>().is_err(), "{text}");
        }
    }

    #[test]
    fn lengths_keep_their_bounds_and_average() {
        let chunker = chunker("fastcdc:16KiB");
        let data = noise(8 << 20, 1);
        let found = lengths(&chunker, &data);
        assert_eq!(found.iter().sum::<usize>(), data.len());
        assert!(found[..found.len() - 1].iter().all(|n| (4096..=65536).contains(n)));
        let average = data.len() / found.len();
        assert!((12 << 10..26 << 10).contains(&average), "average {average}");
    }

    #[test]
    fn an_insertion_moves_few_cuts() {
        let chunker = chunker("fastcdc:16KiB");
        let before = noise(2 << 20, 2);
        let mut after = before.clone();
        after.splice(1_000_000..1_000_000, [1, 2, 3]);
        // Ends counted from the end of the data, so that an insertion leaves those behind it alike.
        let ends = |data: &[u8]| -> Vec<usize> {
            lengths(&chunker, data)
                .iter()
                .scan(data.len(), |left, length| {
                    *left -= length;
                    Some(*left)
                })
                .collect()
        };
        let (old, new) = (ends(&before), ends(&after));
        let shared = new.iter().filter(|end| old.contains(end)).count();
        assert!(shared + 8 >= new.len() / 2, "{shared} of {}", new.len());
    }

    #[test]
    fn another_key_cuts_elsewhere() {
        let data = noise(1 << 20, 3);
        let other = Chunker::new("fastcdc:16KiB".parse().unwrap(), &Secret32::from_bytes([8; 32])).unwrap();
        assert_ne!(lengths(&chunker("fastcdc:16KiB"), &data), lengths(&other, &data));
    }

    #[test]
    fn zeros_are_holes_only_when_long_or_alone() {
        let mut region = noise(40 * ZERO_BLOCK_BYTES, 4);
        region[4 * ZERO_BLOCK_BYTES..14 * ZERO_BLOCK_BYTES].fill(0);
        region[20 * ZERO_BLOCK_BYTES..22 * ZERO_BLOCK_BYTES].fill(0);
        assert_eq!(
            stretches(&region),
            [
                Stretch::Data(4 * ZERO_BLOCK_BYTES),
                Stretch::Hole(10 * ZERO_BLOCK_BYTES),
                Stretch::Data(26 * ZERO_BLOCK_BYTES)
            ]
        );
        assert_eq!(stretches(&[0; 5]), [Stretch::Hole(5)]);
        assert_eq!(stretches(&[]), []);
    }

    proptest! {
        #[test]
        fn stretches_cover_the_region_and_holes_are_zero(
            blocks in proptest::collection::vec(prop_oneof![3 => Just(false), 2 => Just(true)], 0..60),
            tail in 0usize..ZERO_BLOCK_BYTES,
        ) {
            let mut region = vec![0u8; blocks.len() * ZERO_BLOCK_BYTES + tail];
            for (i, data) in blocks.iter().enumerate() {
                if *data {
                    region[i * ZERO_BLOCK_BYTES + 17] = 1;
                }
            }
            let mut at = 0;
            for stretch in stretches(&region) {
                match stretch {
                    Stretch::Data(n) => { prop_assert!(n > 0 && !is_zero(&region[at..at + n])); at += n; }
                    Stretch::Hole(n) => { prop_assert!(n > 0 && is_zero(&region[at..at + n])); at += n; }
                }
            }
            prop_assert_eq!(at, region.len());
        }
    }
}

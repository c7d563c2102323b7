//! MessagePack inside zstd inside padding: the plaintext of every seal. And columns of integers.
//!
//! Invariant: decoding allocates at most `limit` bytes plus a small multiple of the encoded input.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Problem;

/// Bodies are metadata of a few hundred KiB at most: level 3 is zstd's default and costs nothing that shows.
const BODY_ZSTD_LEVEL: i32 = 3;

/// Rounds a length up so that at most O(log log n) bits of it show, for at most 12 % more bytes.
///
/// Padmé, from "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs" (Nikitin et al.,
/// PoPETS 2019), section 4.
pub const fn padme(len: u64) -> u64 {
    if len < 2 {
        return len;
    }
    let exponent = len.ilog2();
    let kept_bits = exponent.ilog2() + 1;
    let cleared_bits = exponent - kept_bits;
    let mask = (1u64 << cleared_bits) - 1;
    len.saturating_add(mask) & !mask
}

/// Encodes a body: `u32le compressed length ‖ zstd(MessagePack) ‖ zeros` up to a Padmé length.
pub(crate) fn encode<T: Serialize>(body: &T) -> Vec<u8> {
    let packed =
        rmp_serde::to_vec_named(body).expect("bodies hold only types that MessagePack can represent");
    let compressed = zstd::bulk::compress(&packed, BODY_ZSTD_LEVEL)
        .expect("compressing into a growable buffer can't fail");
    let length = u32::try_from(compressed.len()).expect("bodies are bounded far below 4 GiB");
    let mut plain = Vec::with_capacity(usize_of(padme(4 + compressed.len() as u64)) + 16);
    plain.extend_from_slice(&length.to_le_bytes());
    plain.extend_from_slice(&compressed);
    plain.resize(usize_of(padme(plain.len() as u64)), 0);
    plain
}

/// Decodes what [`encode`] made, refusing anything that would decompress to more than `limit` bytes.
pub(crate) fn decode<T: DeserializeOwned>(plain: &[u8], limit: usize) -> Result<T, Problem> {
    let (length, rest) =
        plain.split_first_chunk::<4>().ok_or(Problem::Truncated { need: 4, have: plain.len() as u64 })?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > rest.len() {
        return Err(Problem::Truncated { need: 4 + length as u64, have: plain.len() as u64 });
    }
    let (compressed, padding) = rest.split_at(length);
    if padding.iter().any(|&byte| byte != 0) {
        return Err(Problem::malformed("padding is not zero"));
    }
    let packed = decompress(compressed, limit)?;
    let mut reader = packed.as_slice();
    let body = T::deserialize(&mut rmp_serde::Deserializer::new(&mut reader))
        .map_err(|error| Problem::malformed(error.to_string()))?;
    if !reader.is_empty() {
        return Err(Problem::malformed("bytes follow the body"));
    }
    Ok(body)
}

/// Decompresses exactly one zstd frame that states its content size, of at most `limit` bytes.
pub(crate) fn decompress(compressed: &[u8], limit: usize) -> Result<Vec<u8>, Problem> {
    Decompressor::new()?.decompress(compressed, limit)
}

/// What decompresses many frames: making its state anew for each takes longer than a small frame does.
pub(crate) struct Decompressor(zstd::bulk::Decompressor<'static>);

impl Decompressor {
    /// Makes one.
    ///
    /// # Errors
    /// `Malformed` if zstd refuses, which only a lack of memory explains.
    pub fn new() -> Result<Self, Problem> {
        let made = zstd::bulk::Decompressor::new();
        made.map(Self).map_err(|error| Problem::malformed(format!("zstd: {error}")))
    }

    /// Decompresses exactly one zstd frame that states its content size, of at most `limit` bytes.
    pub fn decompress(&mut self, compressed: &[u8], limit: usize) -> Result<Vec<u8>, Problem> {
        let size = checked_size(compressed, limit)?;
        let plain = self
            .0
            .decompress(compressed, size)
            .map_err(|error| Problem::malformed(format!("zstd: {error}")))?;
        if plain.len() != size {
            return Err(Problem::malformed("zstd frame is shorter than it states"));
        }
        Ok(plain)
    }
}

/// The content size of exactly one zstd frame, of at most `limit` bytes.
fn checked_size(compressed: &[u8], limit: usize) -> Result<usize, Problem> {
    let size = match zstd::zstd_safe::get_frame_content_size(compressed) {
        Ok(Some(size)) => size,
        Ok(None) | Err(_) => return Err(Problem::malformed("not a zstd frame that states its size")),
    };
    if size > limit as u64 {
        return Err(Problem::TooLarge { size, limit: limit as u64 });
    }
    // The decompressor would pass over further frames: bytes that nobody looks at.
    if zstd::zstd_safe::find_frame_compressed_size(compressed) != Ok(compressed.len()) {
        return Err(Problem::malformed("not one whole zstd frame"));
    }
    Ok(usize_of(size))
}

/// Writes a column of integers, little-endian.
pub fn column(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let values = values.into_iter();
    let mut bytes = Vec::with_capacity(4 * values.size_hint().0);
    for value in values {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// Reads a column of integers, of which there must be `count`.
///
/// # Errors
/// `Malformed` for any other length.
pub fn read_column(name: &str, bytes: &[u8], count: usize) -> Result<Vec<u32>, Problem> {
    let (values, rest) = bytes.as_chunks::<4>();
    if values.len() != count || !rest.is_empty() {
        return Err(Problem::malformed(format!(
            "column '{name}' has {} bytes for {count} rows",
            bytes.len()
        )));
    }
    Ok(values.iter().map(|value| u32::from_le_bytes(*value)).collect())
}

/// Converts a length that was already checked against memory-sized limits.
pub(crate) fn usize_of(value: u64) -> usize {
    usize::try_from(value).expect("lengths are bounded by limits that fit a 64-bit machine")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn padme_adds_at_most_an_eighth(len in 0u64..1 << 40) {
            let padded = padme(len);
            prop_assert!(padded >= len && padded - len <= len / 8 + 1);
            prop_assert_eq!(padme(padded), padded);
        }

        #[test]
        fn bodies_read_back(body in proptest::collection::vec(any::<u64>(), 0..100)) {
            let plain = encode(&body);
            prop_assert_eq!(plain.len() as u64, padme(plain.len() as u64));
            prop_assert_eq!(decode::<Vec<u64>>(&plain, 1 << 20).unwrap(), body);
        }

        #[test]
        fn garbage_is_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Vec<u64>>(&bytes, 1 << 20);
        }
    }

    #[test]
    fn nothing_may_follow_the_zstd_frame() {
        let frame = zstd::bulk::compress(b"content", 1).unwrap();
        let empty = zstd::bulk::compress(b"", 1).unwrap();
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7];
        assert_eq!(decompress(&frame, 100).unwrap(), b"content");
        for more in [&empty[..], &skippable, &[0]] {
            assert!(matches!(decompress(&[&frame, more].concat(), 100), Err(Problem::Malformed(_))));
        }
        assert!(decompress(&frame[..frame.len() - 1], 100).is_err());
    }

    #[test]
    fn a_decompression_bomb_is_refused_by_its_stated_size() {
        let plain = encode(&serde_bytes::ByteBuf::from(vec![0u8; 10 << 20]));
        assert!(plain.len() < 4096);
        assert!(matches!(decode::<serde_bytes::ByteBuf>(&plain, 1 << 20), Err(Problem::TooLarge { .. })));
    }
}

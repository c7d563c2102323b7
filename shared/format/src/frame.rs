//! Frames: chunks compressed, then sealed convergently.
//!
//! Invariant: the same plaintext in the same target has the same id and, compressed alike, the same frame. A key is
//! never used with one nonce for two different messages: the nonce is derived from the very bytes it encrypts (a
//! synthetic nonce, as SIV modes do, RFC 5297), so that another compressor or level gives another nonce.

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305, XNonce};

use crate::chunker::MAX_CHUNK_BYTES;
use crate::codec;
use crate::error::Problem;
use crate::ids::ChunkId;
use crate::seal::{NONCE_LEN, TAG_LEN};
use crate::secrets::{IngestSecrets, Secret32};

/// First bytes of a frame's associated data.
const FRAME_DOMAIN: &[u8; 19] = b"strongroom/v1/frame";
/// Payload byte: the plaintext follows as it is.
const ENCODING_RAW: u8 = 0;
/// Payload byte: one zstd frame follows.
const ENCODING_ZSTD: u8 = 1;
/// What a frame has beyond its (compressed) plaintext: nonce, encoding byte, tag.
pub const FRAME_OVERHEAD: usize = NONCE_LEN + 1 + TAG_LEN;
/// The longest frame: an incompressible chunk of the greatest length.
pub const MAX_FRAME_BYTES: usize = MAX_CHUNK_BYTES + FRAME_OVERHEAD;

/// Where the payload lies in a sealer's buffer: after the chunk's id.
const PAYLOAD_START: usize = 32;
/// Where the frame lies there: its nonce takes the end of what was the id's.
const FRAME_START: usize = PAYLOAD_START - NONCE_LEN;

/// The hash of a chunk's plaintext. Knowing it is as good as knowing the chunk: never stored, never logged.
#[derive(Clone)]
pub struct PlaintextHash(blake3::Hash);

impl PlaintextHash {
    /// Hashes a plaintext.
    pub fn of(plaintext: &[u8]) -> Self {
        Self(blake3::hash(plaintext))
    }
}

/// Names chunks: `id = keyed-BLAKE3(id_key, BLAKE3(plaintext))`.
#[derive(Debug, Clone)]
pub struct ChunkNamer(Secret32);

impl ChunkNamer {
    /// Makes a namer from the chunk-id key.
    pub const fn new(chunk_id_key: Secret32) -> Self {
        Self(chunk_id_key)
    }

    /// Names a chunk.
    pub fn id(&self, hash: &PlaintextHash) -> ChunkId {
        ChunkId::from_bytes(*blake3::keyed_hash(self.0.expose(), hash.0.as_bytes()).as_bytes())
    }
}

/// Makes frames. One per thread: it keeps a compressor and its buffers.
pub struct FrameSealer {
    namer: ChunkNamer,
    key_secret: Secret32,
    nonce_key: Secret32,
    compressor: zstd::bulk::Compressor<'static>,
    /// The frame, with so much room before it that the chunk's id fits before the payload. It only grows: what lies behind
    /// the newest frame is left over.
    buffer: Vec<u8>,
}

impl std::fmt::Debug for FrameSealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FrameSealer")
    }
}

impl FrameSealer {
    /// Makes a sealer that compresses at a zstd level.
    ///
    /// # Errors
    /// `Malformed` if zstd refuses the level.
    pub fn new(secrets: &IngestSecrets, zstd_level: i32) -> Result<Self, Problem> {
        let compressor = zstd::bulk::Compressor::new(zstd_level)
            .map_err(|error| Problem::malformed(format!("zstd level {zstd_level}: {error}")))?;
        Ok(Self {
            namer: ChunkNamer::new(secrets.chunk_id_key()),
            key_secret: secrets.chunk_key_secret(),
            nonce_key: secrets.frame_nonce_key(),
            compressor,
            buffer: Vec::new(),
        })
    }

    /// Names a chunk.
    pub fn id(&self, hash: &PlaintextHash) -> ChunkId {
        self.namer.id(hash)
    }

    /// Derives a chunk's key: `keyed-BLAKE3(derivation secret, BLAKE3(plaintext))`.
    pub fn chunk_key(&self, hash: &PlaintextHash) -> Secret32 {
        Secret32::from_bytes(*blake3::keyed_hash(self.key_secret.expose(), hash.0.as_bytes()).as_bytes())
    }

    /// Makes the frame of a chunk.
    pub fn seal(&mut self, id: &ChunkId, key: &Secret32, plaintext: &[u8]) -> &[u8] {
        // What the nonce is derived from lies in one piece: BLAKE3 hashes that in parallel, and a short first part with what
        // follows it mostly one block at a time.
        let payload_end = self.encode(plaintext);
        self.buffer[..PAYLOAD_START].copy_from_slice(id.as_bytes());
        let nonce = frame_nonce(&self.nonce_key, &self.buffer[..payload_end]);
        self.buffer[FRAME_START..PAYLOAD_START].copy_from_slice(&nonce);
        let tag = XChaCha20Poly1305::new(key.expose().into())
            .encrypt_inout_detached(
                &XNonce::from(nonce),
                &frame_associated_data(id, plaintext.len()),
                InOutBuf::from(&mut self.buffer[PAYLOAD_START..payload_end]),
            )
            .expect("chunks are far below the cipher's limit of 256 GiB");
        let frame_end = payload_end + TAG_LEN;
        self.buffer[payload_end..frame_end].copy_from_slice(&tag);
        &self.buffer[FRAME_START..frame_end]
    }

    /// Writes the encoding byte and the payload, compressed only where that is shorter, and tells where they end.
    ///
    /// zstd has the same room for the same plaintext, whatever was sealed before: with less than its bound it gives up on
    /// some small inputs that it would have made shorter, and the frame would be another one.
    fn encode(&mut self, plaintext: &[u8]) -> usize {
        let start = PAYLOAD_START + 1;
        let room = zstd::zstd_safe::compress_bound(plaintext.len());
        if self.buffer.len() < start + room + TAG_LEN {
            self.buffer.resize(start + room + TAG_LEN, 0);
        }
        match self.compressor.compress_to_buffer(plaintext, &mut self.buffer[start..start + room]) {
            Ok(length) if length < plaintext.len() => {
                self.buffer[PAYLOAD_START] = ENCODING_ZSTD;
                start + length
            }
            Ok(_) | Err(_) => {
                self.buffer[PAYLOAD_START] = ENCODING_RAW;
                self.buffer[start..start + plaintext.len()].copy_from_slice(plaintext);
                start + plaintext.len()
            }
        }
    }
}

/// Opens frames. One per thread: it keeps a decompressor.
pub struct FrameOpener {
    namer: ChunkNamer,
    decompressor: codec::Decompressor,
}

impl std::fmt::Debug for FrameOpener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FrameOpener")
    }
}

impl FrameOpener {
    /// Makes an opener.
    ///
    /// # Errors
    /// `Malformed` if zstd refuses, which only a lack of memory explains.
    pub fn new(namer: ChunkNamer) -> Result<Self, Problem> {
        Ok(Self { namer, decompressor: codec::Decompressor::new()? })
    }

    /// Opens a frame and checks that its plaintext has the id and length it should have.
    ///
    /// # Errors
    /// `NotAuthentic` for damage or a wrong key, `WrongContent` for a plaintext with another id (a hostile or faulty
    /// writer), `Malformed`, `Truncated` or `TooLarge` for anything else.
    pub fn open(
        &mut self,
        id: &ChunkId,
        key: &Secret32,
        plaintext_len: usize,
        frame: &[u8],
    ) -> Result<Vec<u8>, Problem> {
        if plaintext_len > MAX_CHUNK_BYTES {
            return Err(Problem::TooLarge { size: plaintext_len as u64, limit: MAX_CHUNK_BYTES as u64 });
        }
        let truncated = Problem::Truncated { need: FRAME_OVERHEAD as u64, have: frame.len() as u64 };
        let (nonce, rest) = frame.split_first_chunk::<NONCE_LEN>().ok_or(truncated.clone())?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(truncated.clone())?;
        let mut payload = ciphertext.to_vec();
        XChaCha20Poly1305::new(key.expose().into())
            .decrypt_inout_detached(
                &XNonce::from(*nonce),
                &frame_associated_data(id, plaintext_len),
                InOutBuf::from(payload.as_mut_slice()),
                &(*tag).into(),
            )
            .map_err(|_| Problem::NotAuthentic)?;
        let (encoding, encoded) = payload.split_first().ok_or(truncated)?;
        let plaintext = match *encoding {
            ENCODING_RAW => payload.split_off(1),
            ENCODING_ZSTD => self.decompressor.decompress(encoded, plaintext_len)?,
            other => return Err(Problem::malformed(format!("frame encoding {other} is unknown"))),
        };
        if plaintext.len() != plaintext_len || self.namer.id(&PlaintextHash::of(&plaintext)) != *id {
            return Err(Problem::WrongContent(*id));
        }
        Ok(plaintext)
    }
}

/// Opens a single frame, as [`FrameOpener::open`] does.
///
/// # Errors
/// Those of [`FrameOpener::open`].
pub fn open_frame(
    namer: &ChunkNamer,
    id: &ChunkId,
    key: &Secret32,
    plaintext_len: usize,
    frame: &[u8],
) -> Result<Vec<u8>, Problem> {
    FrameOpener::new(namer.clone())?.open(id, key, plaintext_len, frame)
}

/// Derives a nonce: the first bytes of keyed-BLAKE3 of `id ‖ payload`. Those of its extended output are the same (BLAKE3,
/// section 2.6).
fn frame_nonce(nonce_key: &Secret32, id_and_payload: &[u8]) -> [u8; NONCE_LEN] {
    let hash = blake3::keyed_hash(nonce_key.expose(), id_and_payload);
    let mut nonce = [0; NONCE_LEN];
    nonce.copy_from_slice(&hash.as_bytes()[..NONCE_LEN]);
    nonce
}

fn frame_associated_data(id: &ChunkId, plaintext_len: usize) -> [u8; 55] {
    let length = u32::try_from(plaintext_len).expect("chunks are bounded by MAX_CHUNK_BYTES");
    let mut aad = [0; 55];
    aad[..19].copy_from_slice(FRAME_DOMAIN);
    aad[19..51].copy_from_slice(id.as_bytes());
    aad[51..].copy_from_slice(&length.to_le_bytes());
    aad
}

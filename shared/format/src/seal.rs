//! The seal around every catalog object: XChaCha20-Poly1305 under the catalog's seal key.
//!
//! Invariant: the associated data binds format version, kind, target and the object's key, so that no object can stand
//! in for another. `roots/<epoch>` is a byte-for-byte copy of a past `root` and is bound to the name `root`.

use std::ops::Range;

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305, XNonce};
use rand::CryptoRng;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{FormatError, Problem};
use crate::ids::{PackId, RunId, SealNonce, SessionId, TargetId, VolumeTag};
use crate::layout::ObjectKey;
use crate::secrets::{CatalogSecret, Secret32, VOLUME_TAG_CONTEXT};
use crate::{FORMAT_VERSION, codec};

/// The first bytes of every object.
pub const MAGIC: [u8; 8] = *b"STRONGRM";
/// Length of magic, version, kind and two reserved zero bytes.
pub const HEADER_LEN: usize = 12;
/// Length of an XChaCha20 nonce.
pub const NONCE_LEN: usize = 24;
/// Length of a Poly1305 tag.
pub const TAG_LEN: usize = 16;
/// First bytes of the associated data of every seal.
const SEAL_DOMAIN: &[u8] = b"strongroom/v1/object";

/// What an object is; byte 9 of its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Wrapped secrets and parameters.
    Keyring = 1,
    /// The head of the catalog.
    Root = 2,
    /// A catalog node.
    Node = 3,
    /// The description of one backup.
    Manifest = 4,
    /// Chunk lists.
    Segment = 5,
    /// Frames and their directory.
    Pack = 6,
    /// Directories of packs.
    Index = 7,
    /// Who opened a session.
    InboxOpen = 8,
    /// Directories of packs of an open session.
    InboxRecord = 9,
    /// A restore in progress.
    Reader = 10,
    /// The committer's answer.
    Outcome = 11,
    /// Progress and outcome of a run.
    Run = 12,
    /// Hosts and targets of a fleet.
    FleetSettings = 13,
    /// Some of a fleet's volumes, their schedules and what they wait for.
    FleetShard = 14,
    /// When each shard of a fleet is due next.
    FleetAgenda = 15,
    /// What an overview of a fleet needs of its shards and of its targets' roots.
    FleetDigest = 16,
}

/// A body that is stored under a seal of its own kind.
pub trait SealedBody: Serialize + DeserializeOwned {
    /// The kind in the header.
    const KIND: Kind;
    /// The most that a reader decompresses, bytes.
    const MAX_BODY_BYTES: usize;
    /// The newest version of this kind that this program reads.
    const NEWEST_VERSION: u8 = FORMAT_VERSION;

    /// The oldest version that can say what this body says: what it is written as.
    fn version(&self) -> u8 {
        FORMAT_VERSION
    }
}

/// Writes the header of an object of a kind in the first version of the format.
pub const fn header(kind: Kind) -> [u8; HEADER_LEN] {
    header_of(kind, FORMAT_VERSION)
}

/// Writes the header of an object.
const fn header_of(kind: Kind, version: u8) -> [u8; HEADER_LEN] {
    let m = MAGIC;
    [m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7], version, kind as u8, 0, 0]
}

/// Where the nonce of a sealed object lies that is one sealed part: right after the header.
pub const NONCE_RANGE: Range<u64> = HEADER_LEN as u64..(HEADER_LEN + NONCE_LEN) as u64;

/// The nonce of a sealed object that is one sealed part; `None` if it is too short to have one.
pub fn nonce_of(object: &[u8]) -> Option<SealNonce> {
    SealNonce::from_slice(object.get(HEADER_LEN..HEADER_LEN + NONCE_LEN)?)
}

/// Checks the header of an object of a kind that has one version, and returns what follows it.
pub(crate) fn after_header(kind: Kind, bytes: &[u8]) -> Result<&[u8], Problem> {
    split_header(kind, FORMAT_VERSION, bytes).map(|(_, rest)| rest)
}

/// Checks the header of an object and returns it, and what follows it.
fn split_header(kind: Kind, newest: u8, bytes: &[u8]) -> Result<(&[u8; HEADER_LEN], &[u8]), Problem> {
    let (header_bytes, rest) = bytes
        .split_first_chunk::<HEADER_LEN>()
        .ok_or(Problem::Truncated { need: HEADER_LEN as u64, have: bytes.len() as u64 })?;
    if header_bytes[..8] != MAGIC {
        return Err(Problem::Foreign);
    }
    if !(1..=newest).contains(&header_bytes[8]) {
        return Err(Problem::UnknownVersion { found: header_bytes[8], known: newest });
    }
    if header_bytes[9] != kind as u8 {
        return Err(Problem::WrongKind { expected: kind, found: header_bytes[9] });
    }
    if header_bytes[10..] != [0, 0] {
        return Err(Problem::malformed("reserved header bytes are not zero"));
    }
    Ok((header_bytes, rest))
}

/// Builds the associated data of a seal.
pub(crate) fn associated_data(
    header: &[u8; HEADER_LEN],
    target: &TargetId,
    key: &ObjectKey,
    extra: &[u8],
) -> Vec<u8> {
    let name = key.to_string();
    let name_len = u16::try_from(name.len()).expect("keys are under 100 bytes");
    [SEAL_DOMAIN, header, target.as_bytes(), &name_len.to_le_bytes(), name.as_bytes(), extra].concat()
}

/// Seals and opens the catalog objects of one target.
#[derive(Debug, Clone)]
pub struct Sealer {
    target: TargetId,
    key: Secret32,
    tag_key: Secret32,
}

impl Sealer {
    /// Makes the sealer of a target.
    pub fn new(target: TargetId, catalog: &CatalogSecret) -> Self {
        Self { target, key: catalog.seal_key(), tag_key: catalog.0.derive(VOLUME_TAG_CONTEXT) }
    }

    /// The target whose objects this seals.
    pub const fn target(&self) -> TargetId {
        self.target
    }

    /// The tag of a volume's sessions: the first bytes of keyed BLAKE3 of its name.
    pub fn volume_tag(&self, volume: &str) -> VolumeTag {
        let hash = blake3::keyed_hash(self.tag_key.expose(), volume.as_bytes());
        VolumeTag(*hash.as_bytes().first_chunk().expect("a hash is longer than a tag"))
    }

    /// The name of a session's n-th pack: the first 16 bytes of keyed BLAKE3 of `session ‖ u32le n`. As good as random
    /// to others, and found again by whoever takes the session up, without a record of it. Sessions are never
    /// repeated, so neither is a name.
    pub fn pack_name(&self, session: SessionId, number: u32) -> PackId {
        let mut hasher = blake3::Hasher::new_keyed(self.tag_key.expose());
        hasher.update(session.as_bytes()).update(&number.to_le_bytes());
        PackId::from_bytes(*hasher.finalize().as_bytes().first_chunk().expect("a hash is longer than a name"))
    }

    /// The name of a run: the first 16 bytes of keyed BLAKE3 of `"strongroom/v1/run" ‖ what`, so that whoever asks for
    /// the same run twice asks for one run.
    pub fn run_name(&self, what: &[u8]) -> RunId {
        let mut hasher = blake3::Hasher::new_keyed(self.tag_key.expose());
        hasher.update(b"strongroom/v1/run").update(what);
        RunId::from_bytes(*hasher.finalize().as_bytes().first_chunk().expect("a hash is longer than a name"))
    }

    /// Seals a body as the object `key`.
    pub fn seal<T: SealedBody>(&self, key: &ObjectKey, body: &T, rng: &mut impl CryptoRng) -> Vec<u8> {
        let header = header_of(T::KIND, body.version());
        let mut out = header.to_vec();
        out.extend_from_slice(&self.seal_part(&header, key, &[], codec::encode(body), rng));
        out
    }

    /// Opens the object `key`.
    ///
    /// # Errors
    /// A [`FormatError`] naming the object: foreign, another version or kind, damaged, moved, malformed.
    pub fn open<T: SealedBody>(&self, key: &ObjectKey, bytes: &[u8]) -> Result<T, FormatError> {
        split_header(T::KIND, T::NEWEST_VERSION, bytes)
            .and_then(|(header, part)| self.open_part(header, key, &[], part))
            .and_then(|plain| codec::decode(&plain, T::MAX_BODY_BYTES))
            .map_err(|problem| problem.of(key))
    }

    /// Opens a copy of a past root, which is bound to the name `root`.
    ///
    /// # Errors
    /// As [`Sealer::open`]; the error names `copy`.
    pub fn open_root_copy<T: SealedBody>(&self, copy: &ObjectKey, bytes: &[u8]) -> Result<T, FormatError> {
        self.open(&ObjectKey::Root, bytes).map_err(|error: FormatError| error.problem.of(copy))
    }

    /// Seals `plain` to `nonce ‖ ciphertext ‖ tag`.
    pub(crate) fn seal_part(
        &self,
        header: &[u8; HEADER_LEN],
        key: &ObjectKey,
        extra: &[u8],
        mut plain: Vec<u8>,
        rng: &mut impl CryptoRng,
    ) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        let aad = associated_data(header, &self.target, key, extra);
        let tag = self
            .cipher()
            .encrypt_inout_detached(&XNonce::from(nonce), &aad, InOutBuf::from(plain.as_mut_slice()))
            .expect("bodies are far below the cipher's limit of 256 GiB");
        let mut out = Vec::with_capacity(NONCE_LEN + plain.len() + TAG_LEN);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&plain);
        out.extend_from_slice(&tag);
        out
    }

    /// Opens `nonce ‖ ciphertext ‖ tag`.
    pub(crate) fn open_part(
        &self,
        header: &[u8; HEADER_LEN],
        key: &ObjectKey,
        extra: &[u8],
        part: &[u8],
    ) -> Result<Vec<u8>, Problem> {
        let need = (NONCE_LEN + TAG_LEN) as u64;
        let truncated = Problem::Truncated { need, have: part.len() as u64 };
        let (nonce, rest) = part.split_first_chunk::<NONCE_LEN>().ok_or(truncated.clone())?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(truncated)?;
        let aad = associated_data(header, &self.target, key, extra);
        let mut plain = ciphertext.to_vec();
        self.cipher()
            .decrypt_inout_detached(
                &XNonce::from(*nonce),
                &aad,
                InOutBuf::from(plain.as_mut_slice()),
                &(*tag).into(),
            )
            .map_err(|_| Problem::NotAuthentic)?;
        Ok(plain)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.key.expose().into())
    }
}

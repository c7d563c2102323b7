//! What the fuzz targets share: a fixed target with known keys, and the means to seal whatever the fuzzer makes up, as
//! a hostile holder of the keys would. Written from `docs/format.md`, not with the library's own sealing.

pub mod bodies;
pub mod memory;

use std::sync::LazyLock;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use rand::SeedableRng;
use rand::rngs::StdRng;
use strongroom_format::ids::{BackupId, Epoch, IndexId, NodeId, PackId, SegmentId, SessionId, TargetId};
use strongroom_format::keyring::TargetSecrets;
use strongroom_format::layout::{InboxEntry, NodeKey, ObjectKey};
use strongroom_format::seal::{Kind, Sealer, header};

/// A target whose keys the fuzzer knows.
pub struct World {
    /// Its id.
    pub target: TargetId,
    /// Its secrets.
    pub secrets: TargetSecrets,
    /// Its sealer.
    pub sealer: Sealer,
}

/// The one world of all targets.
pub static WORLD: LazyLock<World> = LazyLock::new(|| {
    let mut rng = rng();
    let target = TargetId::random(&mut rng);
    let secrets = TargetSecrets::generate(&mut rng).expect("any 32 bytes are a key");
    let sealer = Sealer::new(target, &secrets.catalog);
    World { target, secrets, sealer }
});

/// A generator that always starts alike, so that a crash can be repeated.
pub fn rng() -> StdRng {
    StdRng::seed_from_u64(1)
}

/// The backup of all manifests here.
pub const BACKUP: BackupId = BackupId::from_bytes([1; 16]);
/// The pack of all packs here.
pub const PACK: PackId = PackId::from_bytes([2; 16]);
/// The segment of all segments here.
pub const SEGMENT: SegmentId = SegmentId::from_bytes([3; 16]);

/// Every kind that is sealed as one body, with the key it has here.
pub const SEALED_KINDS: [(Kind, ObjectKey); 8] = [
    (Kind::Root, ObjectKey::Root),
    (Kind::Node, ObjectKey::Node(NodeKey { base_epoch: Epoch(7), id: NodeId::from_bytes([4; 16]) })),
    (Kind::Manifest, ObjectKey::Manifest(BACKUP)),
    (Kind::Segment, ObjectKey::Segment(SEGMENT)),
    (Kind::Index, ObjectKey::Index(IndexId::from_bytes([5; 16]))),
    (Kind::InboxOpen, ObjectKey::Inbox(SESSION, InboxEntry::Open)),
    (Kind::InboxRecord, ObjectKey::Inbox(SESSION, InboxEntry::Record(0))),
    (Kind::Reader, ObjectKey::Inbox(SESSION, InboxEntry::Reader)),
];

const SESSION: SessionId = SessionId::from_bytes([6; 16]);

/// Seals any plaintext as the whole object `key`.
pub fn seal_object(kind: Kind, key: &ObjectKey, plain: &[u8]) -> Vec<u8> {
    let mut object = header(kind).to_vec();
    object.extend(seal_part(kind, key, &[], plain));
    object
}

/// Seals any plaintext to `nonce ‖ ciphertext ‖ tag`.
pub fn seal_part(kind: Kind, key: &ObjectKey, extra: &[u8], plain: &[u8]) -> Vec<u8> {
    let name = key.to_string();
    let name_len = u16::try_from(name.len()).expect("keys are short").to_le_bytes();
    let target = WORLD.target;
    let aad =
        [b"strongroom/v1/object", &header(kind)[..], target.as_bytes(), &name_len, name.as_bytes(), extra]
            .concat();
    encrypt(WORLD.secrets.catalog.seal_key().expose(), &[9; 24], &aad, plain)
}

/// Encrypts any payload as a frame of a chunk.
pub fn seal_frame(key: &[u8; 32], id: &[u8; 32], plaintext_len: u32, payload: &[u8]) -> Vec<u8> {
    let aad = [b"strongroom/v1/frame", &id[..], &plaintext_len.to_le_bytes()].concat();
    encrypt(key, &[9; 24], &aad, payload)
}

fn encrypt(key: &[u8; 32], nonce: &[u8; 24], aad: &[u8], msg: &[u8]) -> Vec<u8> {
    let sealed = XChaCha20Poly1305::new(key.into())
        .encrypt(&XNonce::from(*nonce), Payload { msg, aad })
        .expect("messages are short");
    [&nonce[..], &sealed].concat()
}

/// Puts packed bytes into the container of a body: length, zstd, padding.
pub fn enclose(packed: &[u8]) -> Vec<u8> {
    let compressed = zstd::bulk::compress(packed, 1).expect("a growable buffer is long enough");
    let length = u32::try_from(compressed.len()).expect("inputs are short").to_le_bytes();
    [&length[..], &compressed, &[0; 5]].concat()
}

/// What parsers may hold on top of a multiple of their input and of the body within.
const SLACK_BYTES: usize = 4 << 20;

/// The most a parser may hold for an object of `object_bytes` whose body unpacks to `packed_bytes`.
pub const fn allowance(object_bytes: usize, packed_bytes: usize) -> usize {
    SLACK_BYTES + 16 * (object_bytes + packed_bytes)
}

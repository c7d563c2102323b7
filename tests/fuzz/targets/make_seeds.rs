//! Writes one valid input of each sort into a folder of first inputs.
#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use rand::rngs::StdRng;
use strongroom_catalog::dead::{Batch, DeadNames, ObjectName, Stage};
use strongroom_catalog::root::{BackupEntry, IndexRef, Root, Volume};
use strongroom_format::chunker::ChunkerParams;
use strongroom_format::frame::{FrameSealer, PlaintextHash};
use strongroom_format::ids::{Epoch, Incarnation, IndexId, NodeId, SessionId, TimestampMs};
use strongroom_format::index::{InboxOpen, InboxRecord, IndexBody, ReaderRegistration};
use strongroom_format::keyring::{Kek, Keyring, Purpose, TargetSettings};
use strongroom_format::layout::NodeKey;
use strongroom_format::manifest::{ListRun, Manifest, RegionRun, SegmentRef};
use strongroom_format::pack::PackBuilder;
use strongroom_format::seal::Kind;
use strongroom_format::secrets::Secret32;
use strongroom_format::segment::{ChunkRef, Extent, SegmentBuilder};
use strongroom_fuzz::{BACKUP, PACK, SEALED_KINDS, SEGMENT, WORLD, rng};

// Not a fuzz target, but built and linked like one, so that the code under test is compiled once.
fuzz_target!(
    init: {
        let corpus = std::env::var_os("SEEDS_FOLDER").expect("SEEDS_FOLDER names the folder to write to");
        write_seeds(Path::new(&corpus)).expect("the folder can be written to");
    },
    |_input: &[u8]| {}
);

fn write_seeds(corpus: &Path) -> std::io::Result<()> {
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)
    };
    let mut rng = rng();
    let (objects, keyring) = objects(&mut rng);
    for (number, (kind, object)) in objects.iter().enumerate() {
        put("objects", &format!("{kind:?}"), object)?;
        if let Some(packed) = unseal(*kind, object) {
            let mut seed = vec![u8::try_from(number).expect("few kinds")];
            seed.extend(&packed);
            put("bodies", &format!("{kind:?}"), &seed)?;
        }
    }
    put("objects", "Keyring", &keyring)?;
    put("keyring", "whole", &keyring)?;
    for text in [
        "packs/02/02020202020202020202020202020202",
        "nodes/00000000000000000007-04040404040404040404040404040404",
        "inbox/06060606060606060606060606060606/0000000001",
        "roots/00000000000000000001",
        "fastcdc:32KiB",
        "fixed:4096",
        "db/data",
    ] {
        put("names", &text.replace('/', "_"), text.as_bytes())?;
    }
    for image in 0..6 {
        put("guest", &image.to_string(), &[image, 0, 0, 0, 0, 0, 0, 0])?;
    }
    put("chunker", "mixed", &[0, 9, 0, 80, 1, 9, 0, 10, 255, 255, 5, 1, 2, 0, 0, 240])?;
    Ok(())
}

/// The MessagePack of a sealed body, in the order of `SEALED_KINDS`.
fn unseal(kind: Kind, object: &[u8]) -> Option<Vec<u8>> {
    use chacha20poly1305::aead::{Aead, Payload};
    use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
    let (_, key) = SEALED_KINDS.into_iter().find(|(k, _)| *k == kind)?;
    let name = key.to_string();
    let length = u16::try_from(name.len()).ok()?.to_le_bytes();
    let aad =
        [b"strongroom/v1/object", &object[..12], WORLD.target.as_bytes(), &length, name.as_bytes()].concat();
    let nonce = XNonce::from(<[u8; 24]>::try_from(&object[12..36]).ok()?);
    let plain = XChaCha20Poly1305::new(WORLD.secrets.catalog.seal_key().expose().into())
        .decrypt(&nonce, Payload { msg: &object[36..], aad: &aad })
        .ok()?;
    let length = u32::from_le_bytes(plain[..4].try_into().ok()?) as usize;
    zstd::bulk::decompress(&plain[4..4 + length], 1 << 20).ok()
}

/// One object of each kind, those of `SEALED_KINDS` first and in its order; and the keyring.
fn objects(rng: &mut StdRng) -> (Vec<(Kind, Vec<u8>)>, Vec<u8>) {
    let sealer = &WORLD.sealer;
    let ingest = &WORLD.secrets.ingest;
    let mut frames = FrameSealer::new(ingest, 1).expect("level 1");
    let mut packs = PackBuilder::default();
    for plain in [b"first chunk".repeat(20), b"second".to_vec()] {
        let hash = PlaintextHash::of(&plain);
        let (id, key) = (frames.id(&hash), frames.chunk_key(&hash));
        packs.push(id, u32::try_from(plain.len()).expect("short"), frames.seal(&id, &key, &plain));
    }
    let session = SessionId::from_bytes([6; 16]);
    let pack = packs.finish(PACK, "host", session, sealer, rng);
    let entry = pack.directory.entries[0];
    let chunk = ChunkRef {
        id: entry.id,
        len: entry.plain_len,
        pack: PACK,
        offset: entry.offset,
        frame_len: entry.frame_len,
    };
    let mut lists = SegmentBuilder::default();
    lists.push(&[Extent::Zeros(40960), Extent::Chunk(chunk)], &[Secret32::from_bytes([1; 32])]);
    let segment = lists.finish(SEGMENT, sealer, &ingest.restore_public, rng).expect("a good public key");
    let manifest = Manifest {
        backup: BACKUP,
        volume: "db/data".to_owned(),
        host: "host".to_owned(),
        source: "volume.img".to_owned(),
        created: TimestampMs(5),
        size_bytes: 3 << 23,
        chunker: ChunkerParams::FastCdc { average_bytes: 32768 },
        session,
        incarnation: Incarnation::from_bytes([1; 16]),
        base_epoch: Epoch(3),
        parent: Some(BACKUP),
        segments: vec![SegmentRef { id: SEGMENT, inherited: false }],
        runs: vec![
            RegionRun { regions: 2, lists: None },
            RegionRun { regions: 1, lists: Some(ListRun { segment: 0, slot: 0 }) },
        ],
        new_packs: [PACK].into_iter().collect(),
        new_indexes: vec![IndexId::from_bytes([5; 16])],
        stats: Default::default(),
        group: None,
    };
    let node = NodeKey { base_epoch: Epoch(7), id: NodeId::from_bytes([4; 16]) };
    let mut root = Root::first(WORLD.target, Incarnation::from_bytes([1; 16]), Epoch(9), TimestampMs(6));
    root.previous = Some([8; 32]);
    root.volumes.insert(
        "db/data".to_owned(),
        Volume { backups: vec![BackupEntry::of(&manifest)], ..Volume::default() },
    );
    root.indexes.push(IndexRef { id: IndexId::from_bytes([5; 16]), size_bytes: 1000 });
    root.released.push(ObjectName::Manifest(BACKUP));
    root.dead.push(Batch {
        node,
        condemned_epoch: Epoch(8),
        condemned: TimestampMs(5),
        stage: Stage::Condemned,
        names: 1,
        bytes: 10,
        pardoned: vec![ObjectName::Segment(SEGMENT)],
        rewritten: false,
    });
    let index = IndexBody::new([&pack.directory]);
    let open = InboxOpen {
        session,
        volume: "db/data".to_owned(),
        host: "host".to_owned(),
        incarnation: Incarnation::from_bytes([1; 16]),
        base_epoch: Epoch(3),
        opened: TimestampMs(4),
    };
    let reader =
        ReaderRegistration { session, backup: BACKUP, host: "host".to_owned(), opened: TimestampMs(4) };
    let dead =
        DeadNames { names: vec![ObjectName::Pack(PACK), ObjectName::Index(IndexId::from_bytes([5; 16]))] };
    let mut objects: Vec<_> = SEALED_KINDS
        .iter()
        .map(|(kind, key)| {
            let object = match kind {
                Kind::Root => sealer.seal(key, &root, rng),
                Kind::Node => sealer.seal(key, &dead, rng),
                Kind::Manifest => sealer.seal(key, &manifest, rng),
                Kind::Segment => segment.clone(),
                Kind::Index => sealer.seal(key, &index, rng),
                Kind::InboxOpen => sealer.seal(key, &open, rng),
                Kind::InboxRecord => sealer.seal(key, &InboxRecord { packs: index.clone() }, rng),
                Kind::Reader => sealer.seal(key, &reader, rng),
                Kind::Keyring | Kind::Pack | Kind::Outcome | Kind::Run => Vec::new(),
                Kind::FleetSettings | Kind::FleetShard | Kind::FleetAgenda | Kind::FleetDigest => Vec::new(),
            };
            (*kind, object)
        })
        .collect();
    objects.push((Kind::Pack, pack.bytes));
    let (kek, descriptor) = Kek::from_key_file(&Secret32::from_bytes([1; 32]));
    let wraps =
        Purpose::ALL.map(|p| WORLD.secrets.wrap(WORLD.target, p, &kek, descriptor.clone(), rng)).to_vec();
    let settings = TargetSettings {
        chunker: ChunkerParams::Fixed { size_bytes: 4096 },
        pack_bytes: 1 << 20,
        zstd_level: 1,
        dedup_across_hosts: true,
        grace_ms: 1000,
        created: TimestampMs(1),
    };
    (objects, Keyring::build(sealer, wraps, &settings, rng).to_bytes())
}

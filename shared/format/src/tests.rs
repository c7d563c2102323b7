//! Round trips and refusals of every stored form.

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};

use crate::FormatError;
use crate::chunker::ChunkerParams;
use crate::error::Problem;
use crate::frame::{ChunkNamer, FrameSealer, PlaintextHash, open_frame};
use crate::ids::*;
use crate::index::IndexBody;
use crate::keyring::{Kek, Keyring, Purpose, TargetSecrets, TargetSettings, Unwrapped};
use crate::layout::ObjectKey;
use crate::manifest::{RegionSource, runs_of};
use crate::pack::{PackBuilder, check_pack, directory_tail_len, open_directory};
use crate::seal::Sealer;
use crate::secrets::Secret32;
use crate::segment::{ChunkRef, Extent, Segment, SegmentBuilder};

fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

struct World {
    target: TargetId,
    secrets: TargetSecrets,
    sealer: Sealer,
}

fn world(seed: u64) -> World {
    let mut rng = rng(seed);
    let target = TargetId::random(&mut rng);
    let secrets = TargetSecrets::generate(&mut rng).unwrap();
    let sealer = Sealer::new(target, &secrets.catalog);
    World { target, secrets, sealer }
}

proptest! {
    #[test]
    fn frames_open_to_their_plaintext(plain in proptest::collection::vec(any::<u8>(), 0..5000), repeat in 1usize..4) {
        let plain = plain.repeat(repeat);
        let world = world(1);
        let mut sealer = FrameSealer::new(&world.secrets.ingest, 1).unwrap();
        let hash = PlaintextHash::of(&plain);
        let (id, key) = (sealer.id(&hash), sealer.chunk_key(&hash));
        let frame = sealer.seal(&id, &key, &plain).to_vec();
        // As docs/format.md has it, byte for byte.
        let mut hasher = blake3::Hasher::new_keyed(world.secrets.ingest.frame_nonce_key().expose());
        let mut nonce = [0; 24];
        let mut payload = frame[24..frame.len() - 16].to_vec();
        XChaCha20Poly1305::new(key.expose().into())
            .decrypt_inout_detached(
                frame[..24].try_into().unwrap(),
                &[b"strongroom/v1/frame", &id.as_bytes()[..], &u32::try_from(plain.len()).unwrap().to_le_bytes()].concat(),
                payload.as_mut_slice().into(),
                frame[frame.len() - 16..].try_into().unwrap(),
            )
            .unwrap();
        hasher.update(id.as_bytes()).update(&payload).finalize_xof().fill(&mut nonce);
        prop_assert_eq!(&frame[..24], &nonce);
        let namer = ChunkNamer::new(world.secrets.restore.chunk_id_key.clone());
        prop_assert_eq!(open_frame(&namer, &id, &key, plain.len(), &frame).unwrap(), plain.clone());
        // Convergent: sealed again, by whatever host, it is the same frame.
        let mut other_host = FrameSealer::new(&world.secrets.ingest, 1).unwrap();
        other_host.seal(&id, &key, b"something longer before it".repeat(9).as_slice());
        prop_assert_eq!(frame, other_host.seal(&id, &key, &plain));
    }
}

#[test]
fn what_was_sealed_before_does_not_show_in_a_frame() {
    // Small and barely compressible: zstd makes these shorter only where it has more room than they need.
    let world = world(4);
    let sealer = || FrameSealer::new(&world.secrets.ingest, 1).unwrap();
    let mut used = sealer();
    let long = vec![7; 100_000];
    let hash = PlaintextHash::of(&long);
    used.seal(&used.id(&hash), &used.chunk_key(&hash), &long);
    let mut rng = rng(4);
    for length in 1..60 {
        for _ in 0..30 {
            let part: Vec<u8> = (0..length).map(|_| rng.random_range(0..3u8).saturating_sub(1)).collect();
            let plain = part.repeat(3);
            let hash = PlaintextHash::of(&plain);
            let (id, key) = (used.id(&hash), used.chunk_key(&hash));
            assert_eq!(sealer().seal(&id, &key, &plain), used.seal(&id, &key, &plain), "{plain:?}");
        }
    }
}

#[test]
fn two_compressions_of_one_chunk_never_share_a_nonce() {
    let world = world(2);
    let plain: Vec<u8> = (0..60_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    let hash = PlaintextHash::of(&plain);
    let nonces: Vec<_> = [1, 9]
        .map(|level| {
            let mut sealer = FrameSealer::new(&world.secrets.ingest, level).unwrap();
            let (id, key) = (sealer.id(&hash), sealer.chunk_key(&hash));
            sealer.seal(&id, &key, &plain)[..24].to_vec()
        })
        .into();
    assert_ne!(nonces[0], nonces[1]);
}

#[test]
fn a_frame_is_refused_when_anything_about_it_is_changed() {
    let world = world(3);
    let mut sealer = FrameSealer::new(&world.secrets.ingest, 1).unwrap();
    let plain = b"the quick brown fox".repeat(40);
    let hash = PlaintextHash::of(&plain);
    let (id, key) = (sealer.id(&hash), sealer.chunk_key(&hash));
    let frame = sealer.seal(&id, &key, &plain).to_vec();
    let namer = ChunkNamer::new(world.secrets.restore.chunk_id_key.clone());
    for at in 0..frame.len() {
        let mut damaged = frame.clone();
        damaged[at] ^= 0x10;
        assert_eq!(open_frame(&namer, &id, &key, plain.len(), &damaged), Err(Problem::NotAuthentic));
    }
    for cut in 0..frame.len() {
        assert!(open_frame(&namer, &id, &key, plain.len(), &frame[..cut]).is_err());
    }
    assert!(open_frame(&namer, &id, &key, plain.len() - 1, &frame).is_err());
    assert!(open_frame(&namer, &id, &Secret32::from_bytes([1; 32]), plain.len(), &frame).is_err());
    // A hostile writer seals other content under an id that it derived from something else.
    let lie = PlaintextHash::of(b"what others will deduplicate against");
    let (lie_id, lie_key) = (sealer.id(&lie), sealer.chunk_key(&lie));
    let poisoned = sealer.seal(&lie_id, &lie_key, &plain);
    assert_eq!(
        open_frame(&namer, &lie_id, &lie_key, plain.len(), poisoned),
        Err(Problem::WrongContent(lie_id))
    );
}

fn sample_pack(world: &World, chunks: usize) -> (PackId, Vec<u8>) {
    let mut rng = rng(99);
    let mut builder = PackBuilder::default();
    let mut sealer = FrameSealer::new(&world.secrets.ingest, 1).unwrap();
    for n in 0..chunks {
        let plain = format!("chunk {n} ").repeat(50 + n);
        let hash = PlaintextHash::of(plain.as_bytes());
        let (id, key) = (sealer.id(&hash), sealer.chunk_key(&hash));
        builder.push(id, u32::try_from(plain.len()).unwrap(), sealer.seal(&id, &key, plain.as_bytes()));
    }
    let pack = PackId::random(&mut rng);
    let built = builder.finish(pack, "host-a", SessionId::random(&mut rng), &world.sealer, &mut rng);
    assert_eq!(check_pack(&world.sealer, pack, &built.bytes).unwrap(), built.directory);
    (pack, built.bytes)
}

#[test]
fn packs_read_back_from_their_tail() {
    let world = world(4);
    let (pack, bytes) = sample_pack(&world, 20);
    let size = bytes.len() as u64;
    let need = directory_tail_len(pack, size, &bytes[bytes.len() - 8..]).unwrap();
    let tail = &bytes[bytes.len() - usize::try_from(need).unwrap()..];
    let directory = open_directory(&world.sealer, pack, size, tail).unwrap();
    assert_eq!(directory.entries.len(), 20);
    assert_eq!(directory.writer, "host-a");
    let body = IndexBody::new([&directory, &directory]);
    assert_eq!(body.directories().unwrap(), [directory.clone(), directory]);
}

#[test]
fn every_flipped_bit_of_a_pack_is_found() {
    let world = world(5);
    let (pack, bytes) = sample_pack(&world, 3);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(check_pack(&world.sealer, pack, &damaged).is_err(), "byte {at} of {}", bytes.len());
    }
    for cut in 0..bytes.len() {
        assert!(check_pack(&world.sealer, pack, &bytes[..cut]).is_err());
    }
    let mut rng = rng(7);
    assert!(check_pack(&world.sealer, PackId::random(&mut rng), &bytes).is_err(), "another name");
}

fn chunk_ref(n: u8, pack: u8) -> ChunkRef {
    ChunkRef {
        id: ChunkId::from_bytes([n; 32]),
        len: 1000 + u32::from(n),
        pack: PackId::from_bytes([pack; 16]),
        offset: u32::from(n) * 100,
        frame_len: 90,
    }
}

#[test]
fn segments_read_back_and_keys_open_with_the_restore_secret_alone() {
    let world = world(6);
    let mut rng = rng(6);
    let mut builder = SegmentBuilder::default();
    let keys: Vec<Secret32> = (0..3).map(|n| Secret32::from_bytes([n; 32])).collect();
    let first = [Extent::Chunk(chunk_ref(1, 9)), Extent::Zeros(4096), Extent::Chunk(chunk_ref(2, 8))];
    let second = [Extent::Chunk(chunk_ref(3, 9))];
    assert_eq!(builder.push(&first, &keys[..2]), 0);
    assert_eq!(builder.push(&second, &keys[2..]), 1);
    let id = SegmentId::random(&mut rng);
    let bytes = builder.finish(id, &world.sealer, &world.secrets.ingest.restore_public, &mut rng).unwrap();
    let segment = Segment::open(&world.sealer, id, &bytes).unwrap();
    assert_eq!(segment.list(0).unwrap(), first);
    assert_eq!(segment.list(1).unwrap(), second);
    assert!(segment.list(2).is_err());
    assert_eq!(segment.packs().len(), 2);
    let opened = segment.open_keys(&world.target, &world.secrets.restore).unwrap();
    assert_eq!(opened.get(segment.first_chunk(1).unwrap()).unwrap().expose(), &[2; 32]);
    assert!(opened.get(3).is_none());
    let stranger = self::world(7);
    assert!(segment.open_keys(&world.target, &stranger.secrets.restore).is_err());
    assert!(Segment::open(&stranger.sealer, id, &bytes).is_err());
    assert!(
        Segment::open(&world.sealer, SegmentId::random(&mut rng), &bytes).is_err(),
        "swapped with another"
    );
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 4;
        assert!(Segment::open(&world.sealer, id, &damaged).is_err(), "byte {at}");
    }
}

#[test]
fn a_segment_as_large_as_writers_make_them_opens_and_a_bomb_does_not() {
    use crate::chunker::REGION_BYTES;
    use crate::segment::SEGMENT_TARGET_CHUNKS;
    let world = world(11);
    let mut rng = rng(11);
    let id = SegmentId::random(&mut rng);
    // One chunk short of full, then a region of the shortest chunks there are, with zeros between them.
    let most_in_a_region = usize::try_from(REGION_BYTES / 4096).unwrap();
    let mut builder = SegmentBuilder::default();
    for chunks in [SEGMENT_TARGET_CHUNKS - 1, most_in_a_region] {
        let pair = [Extent::Zeros(4096), Extent::Chunk(chunk_ref(1, 9))];
        builder.push(&pair.repeat(chunks), &vec![Secret32::from_bytes([1; 32]); chunks]);
    }
    let public = &world.secrets.ingest.restore_public;
    let bytes = builder.finish(id, &world.sealer, public, &mut rng).unwrap();
    assert_eq!(Segment::open(&world.sealer, id, &bytes).unwrap().lists(), 2);

    let mut builder = SegmentBuilder::default();
    builder.push(&vec![Extent::Zeros(1); 3 << 20], &[]);
    let bytes = builder.finish(id, &world.sealer, public, &mut rng).unwrap();
    assert!(bytes.len() < 64 << 10, "a small object");
    let refused = Segment::open(&world.sealer, id, &bytes).unwrap_err();
    assert!(matches!(refused.problem, Problem::TooLarge { .. }), "{refused}");
}

fn settings() -> TargetSettings {
    TargetSettings {
        chunker: ChunkerParams::FastCdc { average_bytes: 32768 },
        pack_bytes: 16 << 20,
        zstd_level: 1,
        dedup_across_hosts: true,
        grace_ms: 1000,
        created: TimestampMs(5),
    }
}

#[test]
fn keyrings_open_with_their_key_and_no_other() {
    let world = world(8);
    let mut rng = rng(8);
    let (kek, descriptor) = Kek::from_key_file(&Secret32::random(&mut rng));
    let wraps = Purpose::ALL
        .map(|purpose| world.secrets.wrap(world.target, purpose, &kek, descriptor.clone(), &mut rng))
        .to_vec();
    let bytes = Keyring::build(&world.sealer, wraps, &settings(), &mut rng).to_bytes();
    let keyring = Keyring::parse(&bytes).unwrap();
    assert_eq!(keyring.target(), world.target);
    assert_eq!(keyring.settings(&world.sealer).unwrap(), settings());
    for wrap in keyring.wraps() {
        match wrap.open(world.target, &kek).unwrap() {
            Unwrapped::Catalog(secret) => assert_eq!(secret.0.expose(), world.secrets.catalog.0.expose()),
            Unwrapped::Ingest(secrets) => {
                assert_eq!(secrets.restore_public, world.secrets.restore.public().unwrap());
                assert_eq!(secrets.master().expose(), world.secrets.ingest.master().expose());
            }
            Unwrapped::Restore(secrets) => {
                assert_eq!(secrets.public().unwrap(), world.secrets.ingest.restore_public);
            }
        }
        let (other, other_descriptor) = Kek::from_key_file(&Secret32::random(&mut rng));
        assert_eq!(wrap.open(world.target, &other).unwrap_err(), Problem::NotAuthentic);
        assert!(wrap.open(TargetId::random(&mut rng), &kek).is_err(), "a wrap of another target");
        let again = wrap.rewrap(world.target, &kek, &other, other_descriptor, &mut rng).unwrap();
        assert!(again.open(world.target, &other).is_ok());
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 2;
        let found = Keyring::parse(&damaged).and_then(|keyring| keyring.settings(&world.sealer));
        assert!(found.is_err(), "byte {at}");
    }
}

#[test]
fn a_passphrase_opens_its_wrap_and_hostile_parameters_are_refused() {
    let mut rng = rng(9);
    let world = world(9);
    let descriptor =
        crate::keyring::KekDescriptor::Passphrase { salt: [3; 16], memory_kib: 8192, passes: 1, lanes: 1 };
    let kek = Kek::from_passphrase(b"correct horse", &descriptor).unwrap();
    let wrap = world.secrets.wrap(world.target, Purpose::Catalog, &kek, descriptor.clone(), &mut rng);
    assert!(wrap.open(world.target, &Kek::from_passphrase(b"correct horse", &descriptor).unwrap()).is_ok());
    assert!(wrap.open(world.target, &Kek::from_passphrase(b"battery", &descriptor).unwrap()).is_err());
    let hostile = crate::keyring::KekDescriptor::Passphrase {
        salt: [3; 16],
        memory_kib: u32::MAX,
        passes: u32::MAX,
        lanes: 1,
    };
    assert!(matches!(Kek::from_passphrase(b"x", &hostile), Err(Problem::Malformed(_))));
}

#[test]
fn headers_are_checked_in_order() {
    let world = world(10);
    let mut rng = rng(10);
    let key = ObjectKey::Index(IndexId::random(&mut rng));
    let bytes = world.sealer.seal(&key, &IndexBody::new([]), &mut rng);
    let problem = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        world.sealer.open::<IndexBody>(&key, &bytes).map_err(|error: FormatError| error.problem)
    };
    assert!(problem(&|_| ()).is_ok());
    assert_eq!(problem(&|b| b[0] = b'X').unwrap_err(), Problem::Foreign);
    assert_eq!(problem(&|b| b[8] = 2).unwrap_err(), Problem::UnknownVersion { found: 2, known: 1 });
    assert!(matches!(problem(&|b| b[9] = 4).unwrap_err(), Problem::WrongKind { found: 4, .. }));
    assert!(matches!(problem(&|b| b[10] = 1).unwrap_err(), Problem::Malformed(_)));
    assert!(matches!(problem(&|b| b.truncate(5)).unwrap_err(), Problem::Truncated { .. }));
    assert!(matches!(problem(&|b| b.truncate(30)).unwrap_err(), Problem::Truncated { .. }));
}

proptest! {
    #[test]
    fn runs_keep_every_region(sources in proptest::collection::vec(
        prop_oneof![Just(RegionSource::Zeros), (0u32..3, 0u32..5).prop_map(|(segment, slot)| RegionSource::List { segment, slot })],
        0..200,
    )) {
        let manifest = crate::manifest::Manifest {
            backup: BackupId::from_bytes([0; 16]),
            volume: "v".to_owned(),
            host: String::new(),
            source: String::new(),
            created: TimestampMs(0),
            size_bytes: sources.len() as u64 * crate::chunker::REGION_BYTES,
            chunker: settings().chunker,
            session: SessionId::from_bytes([0; 16]),
            incarnation: Incarnation::from_bytes([0; 16]),
            base_epoch: Epoch(1),
            parent: None,
            segments: vec![crate::manifest::SegmentRef { id: SegmentId::from_bytes([1; 16]), inherited: false }; 3],
            runs: runs_of(sources.iter().copied()),
            new_packs: Default::default(),
            new_indexes: Vec::new(),
            stats: Default::default(),
            group: None,
        };
        let manifest = manifest.validated().unwrap();
        prop_assert_eq!(manifest.regions().collect::<Vec<_>>(), sources);
    }
}

//! Makes the frozen fixtures, once: `cargo test -p strongroom-tests --test format_fixtures -- --ignored`.
//!
//! Invariant: never writes over anything. A new format version gets a new folder; this one stays as it is. (Before the
//! first release, and only then, the folder may be deleted and made again.)

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use strongroom_catalog::commit::apply;
use strongroom_catalog::dead::{Batch, DeadNames, ObjectName, Stage};
use strongroom_catalog::root::Root;
use strongroom_format::chunker::{Chunker, ChunkerParams, REGION_BYTES, Stretch, is_zero, stretches};
use strongroom_format::frame::{FrameSealer, PlaintextHash};
use strongroom_format::ids::{
    BackupId, Epoch, Incarnation, IndexId, NodeId, PackId, SegmentId, SessionId, TargetId, TimestampMs,
};
use strongroom_format::index::{InboxOpen, InboxRecord, IndexBody, ReaderRegistration};
use strongroom_format::keyring::{Kek, KekDescriptor, Keyring, Purpose, TargetSecrets, TargetSettings};
use strongroom_format::layout::{InboxEntry, NodeKey, ObjectKey};
use strongroom_format::manifest::{BackupStats, Manifest, RegionSource, SegmentRef, runs_of};
use strongroom_format::pack::{BuiltPack, PackBuilder, PackDirectory};
use strongroom_format::seal::Sealer;
use strongroom_format::secrets::Secret32;
use strongroom_format::segment::{ChunkRef, Extent, SegmentBuilder};

use super::PASSPHRASE;

/// 2026-01-01T00:00:00Z.
const START_MS: u64 = 1_767_225_600_000;

/// Every chunker that is allowed.
const CUT_CASES: [&str; 12] = [
    "fastcdc:4KiB",
    "fastcdc:8KiB",
    "fastcdc:16KiB",
    "fastcdc:32KiB",
    "fastcdc:64KiB",
    "fastcdc:128KiB",
    "fastcdc:256KiB",
    "fastcdc:512KiB",
    "fastcdc:1MiB",
    "fixed:4KiB",
    "fixed:32KiB",
    "fixed:4MiB",
];

/// Builds a whole target in memory, and what it should read back as.
struct Generator {
    rng: StdRng,
    secrets: TargetSecrets,
    sealer: Sealer,
    objects: BTreeMap<String, Vec<u8>>,
    volumes: BTreeMap<String, Vec<u8>>,
    expected_volumes: serde_json::Map<String, serde_json::Value>,
    root: Root,
    root_bytes: Vec<u8>,
}

/// A backup as the generator is told to make it.
struct Wanted<'a> {
    volume: &'a str,
    chunker: ChunkerParams,
    size_bytes: u64,
    pieces: &'a [(u64, Vec<u8>)],
    parent: Option<&'a Manifest>,
    packs: usize,
}

#[test]
#[ignore = "makes the fixtures, which is done once"]
fn generate_fixtures() {
    let folder = super::fixture_folder();
    assert!(!folder.exists(), "{} exists: fixtures are never made again", folder.display());
    let mut rng = StdRng::seed_from_u64(1);
    let key_file = Secret32::random(&mut rng);
    let target = TargetId::random(&mut rng);
    let secrets = TargetSecrets::generate(&mut rng).unwrap();
    let sealer = Sealer::new(target, &secrets.catalog);
    let keyring = keyring(&secrets, &sealer, &key_file, &mut rng);
    let root = Root::first(target, Incarnation::random(&mut rng), Epoch(1), TimestampMs(START_MS));
    let root_bytes = sealer.seal(&ObjectKey::Root, &root, &mut rng);
    let mut made = Generator {
        rng,
        secrets,
        sealer,
        objects: BTreeMap::from([("keyring".to_owned(), keyring)]),
        volumes: BTreeMap::new(),
        expected_volumes: serde_json::Map::new(),
        root,
        root_bytes,
    };
    made.fill();
    let groups: String = key_file.expose().chunks(4).map(|group| format!(" {}", super::hex(group))).collect();
    let key_text =
        format!("# Key file of the frozen fixtures. Protects nothing.\nstrongroom-key-v1{groups}\n");
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    put("key-file", key_text.as_bytes());
    for (key, bytes) in &made.objects {
        put(&format!("target/{key}"), bytes);
    }
    for (backup, data) in &made.volumes {
        put(&format!("volumes/{backup}"), data);
    }
    let expected = json!({
        "volumes": made.expected_volumes,
        "objects": super::read_objects(&folder),
        "cuts": super::cuts(&CUT_CASES),
    });
    let text = serde_json::to_string_pretty(&expected).unwrap() + "\n";
    put("expected.json", text.as_bytes());
}

fn keyring(secrets: &TargetSecrets, sealer: &Sealer, key_file: &Secret32, rng: &mut StdRng) -> Vec<u8> {
    let target = sealer.target();
    let (kek, descriptor) = Kek::from_key_file(key_file);
    let mut wraps =
        Purpose::ALL.map(|purpose| secrets.wrap(target, purpose, &kek, descriptor.clone(), rng)).to_vec();
    // The least memory that is accepted, so that the test is quick.
    let descriptor = KekDescriptor::Passphrase { salt: rng.random(), memory_kib: 8192, passes: 1, lanes: 2 };
    let kek = Kek::from_passphrase(PASSPHRASE, &descriptor).unwrap();
    wraps.push(secrets.wrap(target, Purpose::Catalog, &kek, descriptor, rng));
    let kek = Kek::from_data_key(Secret32::from_bytes(super::KMS_DATA_KEY));
    let descriptor = KekDescriptor::Kms {
        key_id: "alias/strongroom-fixture".to_owned(),
        encrypted_key: b"what the key management service would return".to_vec(),
    };
    wraps.push(secrets.wrap(target, Purpose::Catalog, &kek, descriptor, rng));
    let settings = TargetSettings {
        chunker: ChunkerParams::FastCdc { average_bytes: 4096 },
        pack_bytes: 16 << 20,
        zstd_level: 1,
        dedup_across_hosts: true,
        grace_ms: 604_800_000,
        created: TimestampMs(START_MS),
    };
    Keyring::build(sealer, wraps, &settings, rng).to_bytes()
}

/// Bytes of four letters, which compress to about a quarter.
fn letters(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes.iter().map(|byte| b'a' + byte % 4).collect()
}

impl Generator {
    fn fill(&mut self) {
        // The worked example of the document: one chunk that compresses, one that does not.
        let mut first = b"strongroom ".repeat(373)[..4096].to_vec();
        first.extend(0x80..0x9c_u8);
        let fixed = ChunkerParams::Fixed { size_bytes: 4096 };
        let one = self.backup(&Wanted {
            volume: "example",
            chunker: fixed,
            size_bytes: 4096 + 28,
            pieces: &[(0, first)],
            parent: None,
            packs: 1,
        });
        self.commit(&one);
        // Several regions: zeros, data with holes, a short last one.
        let cdc = ChunkerParams::FastCdc { average_bytes: 4096 };
        let size_bytes = 2 * REGION_BYTES + 100_000;
        let data = (REGION_BYTES + 40_960, letters(1, 12_000));
        let two = self.backup(&Wanted {
            volume: "db/data",
            chunker: cdc,
            size_bytes,
            pieces: &[data.clone(), (2 * REGION_BYTES, letters(2, 300))],
            parent: None,
            packs: 2,
        });
        self.commit(&two);
        // Its child: the last region has changed, the list of the one before is inherited.
        let three = self.backup(&Wanted {
            volume: "db/data",
            chunker: cdc,
            size_bytes,
            pieces: &[data, (2 * REGION_BYTES + 50, letters(3, 5000))],
            parent: Some(&two),
            packs: 1,
        });
        self.commit(&three);
        self.step(|root, _| root.trash(&[two.backup], TimestampMs(START_MS + 500_000)));
        self.condemn();
        self.open_session(&one);
    }

    /// Replaces the root, keeping a copy of the old one.
    fn step(&mut self, change: impl FnOnce(&mut Root, &mut StdRng)) {
        let old = std::mem::take(&mut self.root_bytes);
        let now = TimestampMs(START_MS + 60_000 * self.root.epoch.0);
        let mut next = self.root.successor(*blake3::hash(&old).as_bytes(), now);
        self.objects.insert(ObjectKey::RootCopy(self.root.epoch).to_string(), old);
        change(&mut next, &mut self.rng);
        self.root_bytes = self.sealer.seal(&ObjectKey::Root, &next, &mut self.rng);
        self.root = next;
        self.objects.insert("root".to_owned(), self.root_bytes.clone());
    }

    fn commit(&mut self, manifest: &Manifest) {
        let sizes: Vec<u64> = manifest
            .new_indexes
            .iter()
            .map(|id| self.objects[&ObjectKey::Index(*id).to_string()].len() as u64)
            .collect();
        self.step(|root, _| apply(root, manifest, &sizes));
    }

    /// A doomed and a condemned batch, and a released manifest: all of objects that are not there.
    fn condemn(&mut self) {
        let base_epoch = self.root.epoch;
        let mut batches = Vec::new();
        for stage in [Stage::Doomed, Stage::Condemned] {
            let mut names = vec![
                ObjectName::Pack(PackId::random(&mut self.rng)),
                ObjectName::Segment(SegmentId::random(&mut self.rng)),
                ObjectName::Index(IndexId::random(&mut self.rng)),
                ObjectName::Manifest(BackupId::random(&mut self.rng)),
            ];
            names.sort_unstable();
            let node = NodeKey { base_epoch, id: NodeId::random(&mut self.rng) };
            batches.push(Batch {
                node,
                condemned_epoch: base_epoch.next(),
                condemned: TimestampMs(START_MS + 600_000),
                stage,
                names: names.len() as u64,
                bytes: 123_456,
                pardoned: if stage == Stage::Condemned { names[1..3].to_vec() } else { Vec::new() },
                rewritten: false,
            });
            let key = ObjectKey::Node(node);
            let bytes = self.sealer.seal(&key, &DeadNames { names }, &mut self.rng);
            self.objects.insert(key.to_string(), bytes);
        }
        self.step(|root, rng| {
            root.dead = batches;
            root.released = vec![ObjectName::Manifest(BackupId::random(rng))];
        });
    }

    /// A session that has uploaded a pack and not committed, and a restore that reads the first backup.
    fn open_session(&mut self, reads: &Manifest) {
        let session = SessionId::random_of(self.sealer.volume_tag("example"), &mut self.rng);
        let open = InboxOpen {
            session,
            volume: "example".to_owned(),
            host: "host-a".to_owned(),
            incarnation: self.root.incarnation,
            base_epoch: self.root.epoch,
            opened: TimestampMs(START_MS + 700_000),
        };
        let packs = self.pack(session, &[letters(4, 200)], 1);
        let record = InboxRecord { packs: IndexBody::new(packs.iter().map(|pack| &pack.directory)) };
        let restore = SessionId::random(&mut self.rng);
        let reader = ReaderRegistration {
            session: restore,
            backup: reads.backup,
            host: "host-b".to_owned(),
            opened: TimestampMs(START_MS + 800_000),
        };
        let rng = &mut self.rng;
        let key = ObjectKey::Inbox(session, InboxEntry::Open);
        self.objects.insert(key.to_string(), self.sealer.seal(&key, &open, rng));
        let key = ObjectKey::Inbox(session, InboxEntry::Record(0));
        self.objects.insert(key.to_string(), self.sealer.seal(&key, &record, rng));
        let key = ObjectKey::Inbox(restore, InboxEntry::Reader);
        self.objects.insert(key.to_string(), self.sealer.seal(&key, &reader, rng));
    }

    /// Puts chunks into so many packs, and stores them.
    fn pack(&mut self, session: SessionId, chunks: &[Vec<u8>], packs: usize) -> Vec<BuiltPack> {
        let mut sealer = FrameSealer::new(&self.secrets.ingest, 1).unwrap();
        let mut built = Vec::new();
        for (number, chunks) in (0..).zip(chunks.chunks(chunks.len().div_ceil(packs).max(1))) {
            let mut builder = PackBuilder::default();
            for plain in chunks {
                let hash = PlaintextHash::of(plain);
                let (id, key) = (sealer.id(&hash), sealer.chunk_key(&hash));
                builder.push(id, u32::try_from(plain.len()).unwrap(), sealer.seal(&id, &key, plain));
            }
            let pack = self.sealer.pack_name(session, number);
            let pack = builder.finish(pack, "host-a", session, &self.sealer, &mut self.rng);
            self.objects.insert(ObjectKey::Pack(pack.directory.pack).to_string(), pack.bytes.clone());
            built.push(pack);
        }
        built
    }

    fn backup(&mut self, wanted: &Wanted<'_>) -> Manifest {
        let backup = BackupId::random(&mut self.rng);
        let session = SessionId::random_of(self.sealer.volume_tag(wanted.volume), &mut self.rng);
        let mut volume = vec![0; usize::try_from(wanted.size_bytes).unwrap()];
        for (offset, bytes) in wanted.pieces {
            let start = usize::try_from(*offset).unwrap();
            volume[start..start + bytes.len()].copy_from_slice(bytes);
        }
        self.expect_volume(backup, &volume, wanted.pieces);

        // Cut every region; those that are as the parent has them (here: by number) are inherited.
        let chunker = Chunker::new(wanted.chunker, &self.secrets.ingest.gear_key()).unwrap();
        let regions: Vec<&[u8]> = volume.chunks(usize::try_from(REGION_BYTES).unwrap()).collect();
        let inherited = |region: usize| {
            let source = wanted.parent?.regions().nth(region)?;
            (region == 1).then_some(source)
        };
        let cuts: Vec<Vec<Vec<u8>>> = regions
            .iter()
            .enumerate()
            .map(|(n, region)| if inherited(n).is_some() { Vec::new() } else { cut(region, &chunker) })
            .collect();
        let mut fresh: Vec<Vec<u8>> =
            cuts.iter().flatten().filter(|chunk| !is_zero(chunk)).cloned().collect();
        fresh.dedup();
        let packs = self.pack(session, &fresh, wanted.packs);
        let directories: Vec<&PackDirectory> = packs.iter().map(|pack| &pack.directory).collect();
        let index = IndexId::random(&mut self.rng);
        let index_key = ObjectKey::Index(index);
        let sealed_index =
            self.sealer.seal(&index_key, &IndexBody::new(directories.iter().copied()), &mut self.rng);

        let segment = SegmentId::random(&mut self.rng);
        let mut lists = SegmentBuilder::default();
        let mut segments: Vec<SegmentRef> = wanted
            .parent
            .iter()
            .flat_map(|parent| &parent.segments)
            .map(|parent| SegmentRef { inherited: true, ..*parent })
            .collect();
        let own = u32::try_from(segments.len()).unwrap();
        segments.push(SegmentRef { id: segment, inherited: false });
        let sources: Vec<RegionSource> = cuts
            .iter()
            .enumerate()
            .map(|(n, chunks)| {
                if let Some(source) = inherited(n) {
                    return source;
                }
                if chunks.iter().all(|chunk| is_zero(chunk)) {
                    return RegionSource::Zeros;
                }
                let (extents, keys) = self.list(chunks, &directories);
                RegionSource::List { segment: own, slot: lists.push(&extents, &keys) }
            })
            .collect();
        let new_packs = lists.packs().iter().copied().collect();
        let chunks = lists.chunks() as u64;
        let sealed_segment =
            lists.finish(segment, &self.sealer, &self.secrets.ingest.restore_public, &mut self.rng).unwrap();
        let stored: usize = packs.iter().map(|pack| pack.bytes.len()).sum();
        let frame_bytes = directories.iter().flat_map(|d| &d.entries).map(|e| u64::from(e.frame_len)).sum();
        let manifest = Manifest {
            backup,
            volume: wanted.volume.to_owned(),
            host: "host-a".to_owned(),
            source: format!("/dev/example/{}", wanted.volume.replace('/', "-")),
            created: TimestampMs(START_MS + 60_000 * self.root.epoch.0),
            size_bytes: wanted.size_bytes,
            chunker: wanted.chunker,
            session,
            incarnation: self.root.incarnation,
            base_epoch: self.root.epoch,
            parent: wanted.parent.map(|parent| parent.backup),
            segments,
            runs: runs_of(sources),
            new_packs,
            new_indexes: vec![index],
            stats: BackupStats {
                data_bytes: wanted.pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum(),
                new_plain_bytes: fresh.iter().map(|chunk| chunk.len() as u64).sum(),
                new_frame_bytes: frame_bytes,
                stored_bytes: (stored + sealed_index.len() + sealed_segment.len()) as u64,
                chunks,
                new_chunks: fresh.len() as u64,
            },
            group: None,
        }
        .validated()
        .unwrap();
        self.objects.insert(index_key.to_string(), sealed_index);
        self.objects.insert(ObjectKey::Segment(segment).to_string(), sealed_segment);
        let key = ObjectKey::Manifest(backup);
        self.objects.insert(key.to_string(), self.sealer.seal(&key, &manifest, &mut self.rng));
        manifest
    }

    /// The list of a region with the keys of its chunks; neighbouring zeros are one extent.
    fn list(&self, chunks: &[Vec<u8>], directories: &[&PackDirectory]) -> (Vec<Extent>, Vec<Secret32>) {
        let sealer = FrameSealer::new(&self.secrets.ingest, 1).unwrap();
        let (mut extents, mut keys) = (Vec::new(), Vec::new());
        for chunk in chunks {
            let len = u32::try_from(chunk.len()).unwrap();
            if is_zero(chunk) {
                match extents.last_mut() {
                    Some(Extent::Zeros(before)) => *before += len,
                    _ => extents.push(Extent::Zeros(len)),
                }
                continue;
            }
            let hash = PlaintextHash::of(chunk);
            let id = sealer.id(&hash);
            let (directory, entry) = directories
                .iter()
                .find_map(|d| Some((d, d.entries.iter().find(|entry| entry.id == id)?)))
                .expect("every chunk was packed");
            extents.push(Extent::Chunk(ChunkRef {
                id,
                len,
                pack: directory.pack,
                offset: entry.offset,
                frame_len: entry.frame_len,
            }));
            keys.push(sealer.chunk_key(&hash));
        }
        (extents, keys)
    }

    fn expect_volume(&mut self, backup: BackupId, volume: &[u8], pieces: &[(u64, Vec<u8>)]) {
        let mut data = Vec::new();
        let mut listed = Vec::new();
        for (offset, bytes) in pieces {
            listed.push(json!({ "offset": offset, "length": bytes.len() }));
            data.extend_from_slice(bytes);
        }
        self.volumes.insert(backup.to_string(), data);
        let expected = json!({
            "size_bytes": volume.len(),
            "pieces": listed,
            "blake3": blake3::hash(volume).to_string(),
        });
        self.expected_volumes.insert(backup.to_string(), expected);
    }
}

/// Cuts a region; holes come out as chunks of zeros.
fn cut(region: &[u8], chunker: &Chunker) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    let mut at = 0;
    for stretch in stretches(region) {
        match stretch {
            Stretch::Hole(len) => {
                chunks.push(region[at..at + len].to_vec());
                at += len;
            }
            Stretch::Data(len) => {
                let end = at + len;
                while at < end {
                    let len = chunker.cut(&region[at..end], at);
                    chunks.push(region[at..at + len].to_vec());
                    at += len;
                }
            }
        }
    }
    chunks
}

/// Reads a file of the fixtures.
pub fn read(folder: &Path, name: &str) -> Vec<u8> {
    let path = folder.join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

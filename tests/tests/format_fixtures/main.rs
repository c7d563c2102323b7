//! Frozen fixtures of the byte format: what was once written must be readable for ever.
//!
//! `tests/fixtures/format-v1/` holds a small target, its key file, the volumes it restores to, and what every object of
//! it says. The worked example of `docs/format.md` is taken from it.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, in helpers too")]

mod document;
mod generate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use generate::read;
use serde_json::{Value, json};
use strongroom_catalog::dead::DeadNames;
use strongroom_catalog::root::Root;
use strongroom_format::FORMAT_VERSION;
use strongroom_format::chunker::{Chunker, ChunkerParams, REGION_BYTES};
use strongroom_format::frame::{ChunkNamer, open_frame};
use strongroom_format::ids::{BackupId, ChunkId, Epoch};
use strongroom_format::index::{InboxOpen, InboxRecord, ReaderRegistration, directories_of};
use strongroom_format::keyring::{Kek, KekDescriptor, Keyring, Purpose, TargetSecrets, Unwrapped};
use strongroom_format::layout::{InboxEntry, ObjectKey};
use strongroom_format::manifest::{Manifest, RegionSource};
use strongroom_format::pack::{PackDirectory, check_pack, directory_tail_len, open_directory};
use strongroom_format::seal::{HEADER_LEN, Kind, MAGIC, Sealer};
use strongroom_format::secrets::Secret32;
use strongroom_format::segment::{Extent, Segment};

/// The passphrase of the fixtures' passphrase wrap.
const PASSPHRASE: &[u8] = b"correct horse battery staple";
/// The data key of the fixtures' KMS wrap, which no KMS ever saw.
const KMS_DATA_KEY: [u8; 32] = [0x4b; 32];

fn fixture_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/format-v{FORMAT_VERSION}"))
}

/// The keys of all objects of the fixture, ascending.
fn object_keys(folder: &Path) -> Vec<ObjectKey> {
    let found = strongroom_tests::files(&folder.join("target")).expect("the fixtures are there");
    found.keys().map(|name| name.parse().unwrap()).collect()
}

fn object(folder: &Path, key: &ObjectKey) -> Vec<u8> {
    read(folder, &format!("target/{key}"))
}

/// The secret of the key file: the one line that is neither empty nor a comment.
fn key_file_secret(folder: &Path) -> Secret32 {
    let text = String::from_utf8(read(folder, "key-file")).unwrap();
    let line = text.lines().find(|line| !line.is_empty() && !line.starts_with('#')).unwrap();
    let digits = line.strip_prefix("strongroom-key-v1").unwrap().replace(' ', "");
    // A chunk id is 32 bytes in hexadecimal too.
    Secret32::from_bytes(*digits.parse::<ChunkId>().unwrap().as_bytes())
}

fn unlock(folder: &Path) -> (TargetSecrets, Sealer) {
    let keyring = Keyring::parse(&object(folder, &ObjectKey::Keyring)).unwrap();
    let (kek, descriptor) = Kek::from_key_file(&key_file_secret(folder));
    let (mut catalog, mut ingest, mut restore) = (None, None, None);
    for wrap in keyring.wraps().iter().filter(|wrap| wrap.kek == descriptor) {
        match wrap.open(keyring.target(), &kek).unwrap() {
            Unwrapped::Catalog(secret) => catalog = Some(secret),
            Unwrapped::Ingest(secrets) => ingest = Some(secrets),
            Unwrapped::Restore(secrets) => restore = Some(secrets),
        }
    }
    let secrets =
        TargetSecrets { catalog: catalog.unwrap(), ingest: ingest.unwrap(), restore: restore.unwrap() };
    let sealer = Sealer::new(keyring.target(), &secrets.catalog);
    (secrets, sealer)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Opens every object and says in JSON what it holds.
fn read_objects(folder: &Path) -> BTreeMap<String, Value> {
    let (secrets, sealer) = unlock(folder);
    let read_one = |key: &ObjectKey| {
        let bytes = object(folder, key);
        match key {
            ObjectKey::Keyring => {
                let keyring = Keyring::parse(&bytes).unwrap();
                assert_eq!(keyring.to_bytes(), bytes);
                let settings = keyring.settings(&sealer).unwrap();
                let keks: Vec<_> =
                    keyring.wraps().iter().map(|wrap| json!([wrap.purpose, wrap.kek])).collect();
                json!({ "target": keyring.target(), "wraps": keks, "settings": settings })
            }
            ObjectKey::Root => json!(sealer.open::<Root>(key, &bytes).unwrap()),
            ObjectKey::RootCopy(epoch) => {
                let root: Root = sealer.open_root_copy(key, &bytes).unwrap();
                assert_eq!(root.epoch, *epoch);
                json!(root)
            }
            ObjectKey::Node(_) => json!(sealer.open::<DeadNames>(key, &bytes).unwrap()),
            ObjectKey::Manifest(_) => {
                json!(sealer.open::<Manifest>(key, &bytes).unwrap().validated().unwrap())
            }
            ObjectKey::Segment(id) => {
                segment(&Segment::open(&sealer, *id, &bytes).unwrap(), &secrets, &sealer)
            }
            ObjectKey::Pack(id) => {
                let directory = check_pack(&sealer, *id, &bytes).unwrap();
                let size = bytes.len() as u64;
                let need = usize::try_from(directory_tail_len(*id, size, &bytes).unwrap()).unwrap();
                let tail = &bytes[bytes.len() - need..];
                assert_eq!(open_directory(&sealer, *id, size, tail).unwrap(), directory);
                pack(&directory)
            }
            ObjectKey::Index(_) => {
                json!(packs(&directories_of(key, &sealer.open(key, &bytes).unwrap()).unwrap()))
            }
            ObjectKey::Inbox(_, InboxEntry::Open) => json!(sealer.open::<InboxOpen>(key, &bytes).unwrap()),
            ObjectKey::Inbox(_, InboxEntry::Record(_)) => {
                let record: InboxRecord = sealer.open(key, &bytes).unwrap();
                json!(packs(&directories_of(key, &record.packs).unwrap()))
            }
            ObjectKey::Inbox(_, InboxEntry::Reader) => {
                json!(sealer.open::<ReaderRegistration>(key, &bytes).unwrap())
            }
            ObjectKey::Outcome(_)
            | ObjectKey::Run(_)
            | ObjectKey::FleetSettings
            | ObjectKey::FleetAgenda
            | ObjectKey::FleetDigest
            | ObjectKey::FleetShard(_) => panic!("{key}: this target has no such object"),
        }
    };
    object_keys(folder).iter().map(|key| (key.to_string(), read_one(key))).collect()
}

fn packs(directories: &[PackDirectory]) -> Vec<Value> {
    directories.iter().map(pack).collect()
}

fn pack(directory: &PackDirectory) -> Value {
    let entries: Vec<_> = directory
        .entries
        .iter()
        .map(|entry| json!([entry.id, entry.plain_len, entry.offset, entry.frame_len]))
        .collect();
    json!({
        "pack": directory.pack,
        "size_bytes": directory.size_bytes,
        "writer": directory.writer,
        "id, plain_len, offset, frame_len": entries,
    })
}

fn segment(segment: &Segment, secrets: &TargetSecrets, sealer: &Sealer) -> Value {
    let keys = segment.open_keys(&sealer.target(), &secrets.restore).unwrap();
    let lists: Vec<Vec<Value>> = (0..u32::try_from(segment.lists()).unwrap())
        .map(|slot| {
            let mut chunk = segment.first_chunk(slot).unwrap();
            let extent = |extent: &Extent| match extent {
                Extent::Zeros(len) => json!({ "zeros": len }),
                Extent::Chunk(found) => {
                    chunk += 1;
                    json!({
                        "chunk": found.id,
                        "len": found.len,
                        "pack": found.pack,
                        "offset": found.offset,
                        "frame_len": found.frame_len,
                        "key": hex(keys.get(chunk - 1).unwrap().expose()),
                    })
                }
            };
            segment.list(slot).unwrap().iter().map(extent).collect()
        })
        .collect();
    json!({ "packs": segment.packs(), "lists": lists })
}

fn expected(folder: &Path) -> Value {
    serde_json::from_slice(&read(folder, "expected.json")).unwrap()
}

#[test]
fn every_object_still_says_what_it_said() {
    let folder = fixture_folder();
    let expected = expected(&folder);
    let found = read_objects(&folder);
    let listed = expected["objects"].as_object().unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), listed.keys().collect::<Vec<_>>());
    for (key, value) in &found {
        assert_eq!(value, &listed[key], "{key}");
    }
}

/// Kinds whose bodies belong to the control plane and have no fixture in this folder.
const FLEET: [Kind; 6] =
    [Kind::Outcome, Kind::Run, Kind::FleetSettings, Kind::FleetShard, Kind::FleetAgenda, Kind::FleetDigest];

#[test]
fn every_kind_has_a_fixture() {
    // Without a wildcard: a new kind does not compile until it is brought in here.
    let next = |kind| match kind {
        Kind::Keyring => Some(Kind::Root),
        Kind::Root => Some(Kind::Node),
        Kind::Node => Some(Kind::Manifest),
        Kind::Manifest => Some(Kind::Segment),
        Kind::Segment => Some(Kind::Pack),
        Kind::Pack => Some(Kind::Index),
        Kind::Index => Some(Kind::InboxOpen),
        Kind::InboxOpen => Some(Kind::InboxRecord),
        Kind::InboxRecord => Some(Kind::Reader),
        Kind::Reader => Some(Kind::Outcome),
        Kind::Outcome => Some(Kind::Run),
        Kind::Run => Some(Kind::FleetSettings),
        Kind::FleetSettings => Some(Kind::FleetShard),
        Kind::FleetShard => Some(Kind::FleetAgenda),
        Kind::FleetAgenda => Some(Kind::FleetDigest),
        Kind::FleetDigest => None,
    };
    let folder = fixture_folder();
    let kinds: Vec<u8> = object_keys(&folder)
        .iter()
        .map(|key| {
            let bytes = object(&folder, key);
            assert!(bytes.starts_with(&MAGIC) && bytes[8] == FORMAT_VERSION, "{key}");
            bytes[9]
        })
        .collect();
    let mut kind = Some(Kind::Keyring);
    while let Some(found) = kind {
        let has = kinds.contains(&(found as u8));
        assert_eq!(has, !FLEET.contains(&found), "{found:?}");
        kind = next(found);
    }
}

#[test]
fn every_version_has_its_fixtures() {
    for version in 1..=FORMAT_VERSION {
        let folder = fixture_folder().with_file_name(format!("format-v{version}"));
        assert!(folder.join("expected.json").exists(), "{}: missing", folder.display());
    }
}

#[test]
fn every_wrap_opens_with_its_key() {
    let folder = fixture_folder();
    let (secrets, _) = unlock(&folder);
    let keyring = Keyring::parse(&object(&folder, &ObjectKey::Keyring)).unwrap();
    let mut opened = Vec::new();
    for wrap in keyring.wraps() {
        let kek = match &wrap.kek {
            KekDescriptor::KeyFile { .. } => Kek::from_key_file(&key_file_secret(&folder)).0,
            KekDescriptor::Passphrase { .. } => Kek::from_passphrase(PASSPHRASE, &wrap.kek).unwrap(),
            KekDescriptor::Kms { .. } => Kek::from_data_key(Secret32::from_bytes(KMS_DATA_KEY)),
        };
        if let Unwrapped::Catalog(secret) = wrap.open(keyring.target(), &kek).unwrap() {
            assert_eq!(secret.0.expose(), secrets.catalog.0.expose());
        }
        opened.push(wrap.purpose);
    }
    for purpose in Purpose::ALL {
        assert!(opened.contains(&purpose));
    }
    assert_eq!(secrets.ingest.restore_public, secrets.restore.public().unwrap());
    assert_eq!(secrets.ingest.chunk_id_key().expose(), secrets.restore.chunk_id_key.expose());
}

#[test]
fn every_backup_restores() {
    let folder = fixture_folder();
    let (secrets, sealer) = unlock(&folder);
    let root: Root = sealer.open(&ObjectKey::Root, &object(&folder, &ObjectKey::Root)).unwrap();
    let expected = expected(&folder);
    assert_eq!(expected["volumes"].as_object().unwrap().len(), root.backups().count());
    for (_, backup) in root.backups() {
        let expected = &expected["volumes"][backup.id.to_string()];
        let mut volume = vec![0; usize::try_from(expected["size_bytes"].as_u64().unwrap()).unwrap()];
        let data = read(&folder, &format!("volumes/{}", backup.id));
        let mut at = 0;
        for piece in expected["pieces"].as_array().unwrap() {
            let number = |name: &str| usize::try_from(piece[name].as_u64().unwrap()).unwrap();
            let (offset, length) = (number("offset"), number("length"));
            volume[offset..offset + length].copy_from_slice(&data[at..at + length]);
            at += length;
        }
        assert_eq!(at, data.len());
        assert_eq!(blake3::hash(&volume).to_string(), expected["blake3"].as_str().unwrap());
        assert!(restore(&folder, backup.id, &secrets, &sealer) == volume, "{}", backup.id);
    }
}

fn restore(folder: &Path, backup: BackupId, secrets: &TargetSecrets, sealer: &Sealer) -> Vec<u8> {
    let key = ObjectKey::Manifest(backup);
    let manifest: Manifest = sealer.open(&key, &object(folder, &key)).unwrap();
    let manifest = manifest.validated().unwrap();
    let segments: Vec<Segment> = manifest
        .segments
        .iter()
        .map(|segment| {
            Segment::open(sealer, segment.id, &object(folder, &ObjectKey::Segment(segment.id))).unwrap()
        })
        .collect();
    let namer = ChunkNamer::new(secrets.restore.chunk_id_key.clone());
    let mut volume = Vec::new();
    for source in manifest.regions() {
        let end = manifest.size_bytes.min(volume.len() as u64 + REGION_BYTES);
        if let RegionSource::List { segment, slot } = source {
            let segment = &segments[segment as usize];
            let keys = segment.open_keys(&sealer.target(), &secrets.restore).unwrap();
            let mut number = segment.first_chunk(slot).unwrap();
            for extent in segment.list(slot).unwrap() {
                let Extent::Chunk(chunk) = extent else {
                    volume.resize(volume.len() + extent.len() as usize, 0);
                    continue;
                };
                let pack = object(folder, &ObjectKey::Pack(chunk.pack));
                let frame = &pack[chunk.offset as usize..][..chunk.frame_len as usize];
                let key = keys.get(number).unwrap();
                volume.extend(open_frame(&namer, &chunk.id, &key, chunk.len as usize, frame).unwrap());
                number += 1;
            }
            assert_eq!(volume.len() as u64, end, "a list covers its region");
        }
        volume.resize(usize::try_from(end).unwrap(), 0);
    }
    volume
}

#[test]
fn the_roots_are_a_chain() {
    let folder = fixture_folder();
    let (_, sealer) = unlock(&folder);
    let bytes = object(&folder, &ObjectKey::Root);
    let mut root: Root = sealer.open(&ObjectKey::Root, &bytes).unwrap();
    while let Some(previous) = root.previous {
        let key = ObjectKey::RootCopy(Epoch(root.epoch.0 - 1));
        let bytes = object(&folder, &key);
        assert_eq!(*blake3::hash(&bytes).as_bytes(), previous);
        root = sealer.open_root_copy(&key, &bytes).unwrap();
    }
    assert_eq!(root.epoch, Epoch(1));
}

#[test]
fn every_byte_of_every_object_counts() {
    let folder = fixture_folder();
    let (_, sealer) = unlock(&folder);
    for key in object_keys(&folder) {
        let bytes = object(&folder, &key);
        let step = (bytes.len() / 400).max(1);
        for at in (0..bytes.len()).step_by(step).chain(0..HEADER_LEN) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x20;
            assert!(refuses(&sealer, &key, &damaged), "{key}: byte {at}");
        }
    }
}

/// The lengths into which every chunker cuts six averages of noise and one byte, with a gear key of 32 bytes 7.
fn cuts<'a>(cases: impl IntoIterator<Item = &'a &'a str>) -> BTreeMap<String, Vec<usize>> {
    let cut = |case: &&str| {
        let params: ChunkerParams = case.parse().unwrap();
        let (ChunkerParams::FastCdc { average_bytes: unit } | ChunkerParams::Fixed { size_bytes: unit }) =
            params;
        let mut data = vec![0; 6 * unit as usize + 1];
        blake3::Hasher::new().update(b"strongroom chunker fixture").finalize_xof().fill(&mut data);
        let chunker = Chunker::new(params, &Secret32::from_bytes([7; 32])).unwrap();
        let mut lengths = Vec::new();
        let mut at = 0;
        while at < data.len() {
            lengths.push(chunker.cut(&data[at..], at));
            at += lengths[lengths.len() - 1];
        }
        ((*case).to_owned(), lengths)
    };
    cases.into_iter().map(cut).collect()
}

#[test]
fn chunks_are_still_cut_where_they_were() {
    let expected = expected(&fixture_folder());
    let expected: BTreeMap<String, Vec<usize>> = serde_json::from_value(expected["cuts"].clone()).unwrap();
    assert_eq!(expected.len(), 12);
    let cases: Vec<&str> = expected.keys().map(String::as_str).collect();
    assert_eq!(cuts(&cases), expected);
}

fn refuses(sealer: &Sealer, key: &ObjectKey, bytes: &[u8]) -> bool {
    match key {
        ObjectKey::Keyring => Keyring::parse(bytes).and_then(|keyring| keyring.settings(sealer)).is_err(),
        ObjectKey::Pack(id) => check_pack(sealer, *id, bytes).is_err(),
        ObjectKey::Segment(id) => Segment::open(sealer, *id, bytes).is_err(),
        ObjectKey::Root | ObjectKey::RootCopy(_) => sealer.open_root_copy::<Root>(key, bytes).is_err(),
        ObjectKey::Node(_) => sealer.open::<DeadNames>(key, bytes).is_err(),
        ObjectKey::Manifest(_) => sealer.open::<Manifest>(key, bytes).is_err(),
        ObjectKey::Index(_) => sealer.open::<strongroom_format::index::IndexBody>(key, bytes).is_err(),
        ObjectKey::Inbox(_, InboxEntry::Open) => sealer.open::<InboxOpen>(key, bytes).is_err(),
        ObjectKey::Inbox(_, InboxEntry::Record(_)) => sealer.open::<InboxRecord>(key, bytes).is_err(),
        ObjectKey::Inbox(_, InboxEntry::Reader) => sealer.open::<ReaderRegistration>(key, bytes).is_err(),
        ObjectKey::Outcome(_)
        | ObjectKey::Run(_)
        | ObjectKey::FleetSettings
        | ObjectKey::FleetAgenda
        | ObjectKey::FleetDigest
        | ObjectKey::FleetShard(_) => panic!("{key}: this target has no such object"),
    }
}

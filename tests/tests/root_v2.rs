//! Frozen targets whose root has format version 2, as collection, retention at a limited rate and a fleet leave it; one of them with a group
//! of backups, whose manifests have version 2, too.
//!
//! `tests/fixtures/root-v2/` and `group-v2/` were written once by the real operations; `expected.json` has what each sealed object says and
//! what each backup restores to. What was once written must be readable, and usable, for ever.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, in helpers too")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::tz::TimeZone;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use strongroom_catalog::commit::Refusal;
use strongroom_catalog::dead::{DeadIndex, DeadNames};
use strongroom_catalog::frames::FrameGroupNode;
use strongroom_catalog::moved::Moved;
use strongroom_catalog::retention::{Policy, Rate};
use strongroom_catalog::root::Root;
use strongroom_catalog::usage_nodes::{UsageNode, UsagePart};
use strongroom_fleet::agenda::{Agenda, AgendaEntry};
use strongroom_fleet::outcome::{Outcome, Verdict};
use strongroom_fleet::run::{Job, Origin, Run, RunResult, RunState};
use strongroom_fleet::schedule::Schedule;
use strongroom_fleet::settings::{FleetSettings, Host, TargetEntry};
use strongroom_fleet::shard::{Shard, shard_of};
use strongroom_fleet::volume::{Member, RetentionSpec, VolumeSpec, VolumeState};
use strongroom_format::ids::{BackupId, Epoch, GroupId, RunId, SessionId, TimestampMs};
use strongroom_format::layout::{NodeKey, ObjectKey};
use strongroom_format::manifest::{Group, Manifest};
use strongroom_format::seal::{SealedBody, Sealer};
use strongroom_store::{DirectoryStore, ObjectStore};
use strongroom_tests::{KeyAtHand, START_MS, World, files, noise};
use strongroom_vault::backup::{BackupOptions, Source, Together, backup};
use strongroom_vault::collect::CollectOptions;
use strongroom_vault::context::ManualClock;
use strongroom_vault::rebuild::rebuild;
use strongroom_vault::remove::{RetentionRequest, delete, run_retention};
use strongroom_vault::verify::{Depth, verify};
use strongroom_vault::{Context, Entropy, Progress, target};

const DAY_MS: u64 = 24 * 3_600_000;

/// From before there were groups, and with them.
const FIXTURES: [&str; 2] = ["root-v2", "group-v2"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// The frozen target as a process of today opens it: a copy, so that it can be worked with.
async fn thawed(fixture: &Path, folder: &Path) -> World {
    for (name, bytes) in files(&fixture.join("target")).unwrap() {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let clock = Arc::new(ManualClock::default());
    clock.set(TimestampMs(START_MS + 30 * DAY_MS));
    let context = Context {
        store: Arc::new(DirectoryStore::open(folder).await.unwrap()),
        clock: Arc::clone(&clock) as _,
        entropy: Entropy::from_seed(9),
    };
    World { target: target::open(context, &KeyAtHand::numbered(1)).await.unwrap(), clock }
}

/// Opens the objects that this fixture is about, and says in JSON what each holds.
struct Reader<'a> {
    sealer: &'a Sealer,
    objects: BTreeMap<String, Vec<u8>>,
    said: Map<String, Value>,
}

impl Reader<'_> {
    fn read<T: SealedBody + Serialize + DeserializeOwned>(&mut self, key: ObjectKey) -> T {
        let bytes = &self.objects[&key.to_string()];
        let body: T = self.sealer.open(&key, bytes).unwrap();
        // What it would be written as today is read as the same, with the same version in its header.
        let anew = self.sealer.seal(&key, &body, &mut StdRng::seed_from_u64(3));
        assert_eq!(bytes[..10], anew[..10], "{key}: magic, version and kind");
        let said = json!(body);
        assert_eq!(json!(self.sealer.open::<T>(&key, &anew).unwrap()), said, "{key}");
        self.said.insert(key.to_string(), said);
        body
    }

    fn node<T: SealedBody + Serialize + DeserializeOwned>(&mut self, node: NodeKey) -> T {
        self.read(ObjectKey::Node(node))
    }
}

fn what_objects_say(sealer: &Sealer, objects: BTreeMap<String, Vec<u8>>) -> Map<String, Value> {
    let keys: Vec<ObjectKey> = objects.keys().map(|key| key.parse().unwrap()).collect();
    let mut reader = Reader { sealer, objects, said: Map::new() };
    let root: Root = reader.read(ObjectKey::Root);
    for batch in &root.dead {
        reader.node::<DeadNames>(batch.node);
    }
    reader.node::<DeadIndex>(root.dead_index.unwrap());
    reader.node::<Moved>(root.moved.unwrap());
    let usage: UsageNode = reader.node(root.usage.unwrap());
    for part in &usage.parts {
        reader.node::<UsagePart>(*part);
    }
    for group in usage.nodes().filter(|node| !usage.parts.contains(node)) {
        reader.node::<FrameGroupNode>(group);
    }
    for key in keys {
        match key {
            // Those of version 1 have a fixture of their own.
            ObjectKey::Manifest(_) if reader.objects[&key.to_string()][8] > 1 => {
                drop(reader.read::<Manifest>(key))
            }
            ObjectKey::Outcome(_) => drop(reader.read::<Outcome>(key)),
            ObjectKey::Run(_) => drop(reader.read::<Run>(key)),
            ObjectKey::FleetSettings => drop(reader.read::<FleetSettings>(key)),
            ObjectKey::FleetShard(_) => drop(reader.read::<Shard>(key)),
            ObjectKey::FleetAgenda => drop(reader.read::<Agenda>(key)),
            _ => {}
        }
    }
    reader.said
}

fn expected(fixture: &Path) -> Value {
    serde_json::from_slice(&fs::read(fixture.join("expected.json")).unwrap()).unwrap()
}

/// What the fixture's backups restore to.
fn volumes(expected: &Value) -> Vec<(BackupId, String)> {
    let volumes = expected["volumes"].as_object().unwrap();
    volumes.iter().map(|(id, hash)| (id.parse().unwrap(), hash.as_str().unwrap().to_owned())).collect()
}

async fn assert_sound(world: &World, kept: &[(BackupId, String)]) {
    let report = verify(&world.target, Depth::Full, None, &Arc::new(Progress::default())).await.unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    for (backup, hash) in kept {
        let bytes = world.restore(*backup).await.unwrap();
        assert_eq!(&blake3::hash(&bytes).to_string(), hash, "backup {backup}");
    }
    world.target.audit_count().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_object_still_says_what_it_said() {
    let mut manifests = 0;
    for fixture in FIXTURES.map(fixture) {
        let folder = tempfile::tempdir().unwrap();
        let world = thawed(&fixture, folder.path()).await;
        let objects = files(&fixture.join("target")).unwrap();
        assert_eq!(objects["root"][8], Root::NEWEST_VERSION, "a newer version needs a fixture of its own");
        manifests = manifests.max(
            objects
                .iter()
                .filter(|(key, _)| key.starts_with("manifests/"))
                .map(|(_, bytes)| bytes[8])
                .max()
                .unwrap(),
        );
        let said = what_objects_say(&world.target.sealer, objects);
        let expected = expected(&fixture);
        let listed = expected["objects"].as_object().unwrap();
        assert_eq!(said.keys().collect::<Vec<_>>(), listed.keys().collect::<Vec<_>>());
        for (key, value) in &said {
            assert_eq!(value, &listed[key], "{key}");
        }
    }
    assert_eq!(manifests, Manifest::NEWEST_VERSION, "a newer version needs a fixture of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_worked_with_like_any_target() {
    for fixture in FIXTURES.map(fixture) {
        let folder = tempfile::tempdir().unwrap();
        let world = thawed(&fixture, folder.path()).await;
        let mut kept = volumes(&expected(&fixture));
        assert_sound(&world, &kept).await;
        let bytes = noise(64 << 10, 77);
        let report = world.back_up("v", &bytes).await.unwrap();
        kept.push((report.backup, blake3::hash(&bytes).to_string()));
        for _ in 0..3 {
            world.collect().await.unwrap();
            assert_sound(&world, &live(&world, &kept).await).await;
        }
        let head = world.target.head().await.unwrap();
        assert!(head.root.dead.is_empty(), "what was condemned then is gone: {:?}", head.root.dead);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_root_is_rebuilt_when_lost() {
    for fixture in FIXTURES.map(fixture) {
        let folder = tempfile::tempdir().unwrap();
        let world = thawed(&fixture, folder.path()).await;
        fs::remove_file(folder.path().join("root")).unwrap();
        fs::remove_dir_all(folder.path().join("index")).unwrap();
        let report = rebuild(&world.target).await.unwrap();
        assert_eq!(report.incomplete.len(), 0, "{report:?}");
        assert_sound(&world, &volumes(&expected(&fixture))).await;
    }
}

/// Those that collection without a grace has not taken from the trash.
async fn live(world: &World, kept: &[(BackupId, String)]) -> Vec<(BackupId, String)> {
    let head = world.target.head().await.unwrap();
    kept.iter().filter(|(id, _)| head.root.backup(*id).is_some()).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "makes the fixture, which is done once"]
async fn generate() {
    let fixture = fixture(FIXTURES[1]);
    assert!(!fixture.exists(), "{} exists: fixtures are never made again", fixture.display());
    let folder = fixture.join("target");
    let store = Arc::new(DirectoryStore::create(folder.clone()).await.unwrap());
    let world = World::create(Arc::clone(&store) as _, "fixed:4KiB", 2).await.unwrap();
    history(&world).await;
    fleet(&world, store.as_ref()).await;
    let head = world.target.head().await.unwrap();
    let root = &head.root;
    assert!(root.moved.is_some() && root.usage.is_some() && root.dead_index.is_some());
    assert!(root.dead.iter().any(|batch| batch.rewritten));
    assert!(root.volumes.values().any(|volume| volume.paced_until.is_some()));
    assert_eq!(root.backups().filter(|(_, backup)| backup.group.is_some()).count(), 2);
    let mut volumes = Map::new();
    for (_, backup) in root.backups() {
        let bytes = world.restore(backup.id).await.unwrap();
        volumes.insert(backup.id.to_string(), json!(blake3::hash(&bytes).to_string()));
    }
    fs::remove_dir_all(folder.join(".locks")).unwrap();
    let objects = what_objects_say(&world.target.sealer, files(&folder).unwrap());
    let expected = json!({ "objects": objects, "volumes": volumes });
    fs::write(fixture.join("expected.json"), serde_json::to_string_pretty(&expected).unwrap()).unwrap();
}

/// Backups, removals and collections until the root has everything that version 2 may have.
async fn history(world: &World) {
    let collect = async || {
        world.pass(1000);
        let options = CollectOptions { grace_ms: 8 * DAY_MS, ..CollectOptions::at_once() };
        strongroom_vault::collect::run(&world.target, &options).await.unwrap()
    };
    let mut volume = noise(192 << 10, 1);
    let first = world.back_up("v", &volume).await.unwrap().backup;
    for at in (0..volume.len()).step_by(32 << 10) {
        volume[at..at + (24 << 10)].copy_from_slice(&noise(24 << 10, at as u64 + 2));
    }
    world.back_up("v", &volume).await.unwrap();
    let other = world.back_up("w", &noise(40 << 10, 3)).await.unwrap().backup;
    let group = Together::now(2, &world.target.context);
    for (name, seed) in [("x", 60), ("y", 61)] {
        let bytes = noise(20 << 10, seed);
        let source = Source::stream("test", Box::new(Cursor::new(bytes)));
        let options = BackupOptions { group, ..world.options(name) };
        backup(&world.target, source, &options, &Arc::new(Progress::default())).await.unwrap();
    }
    delete(&world.target, &[first]).await.unwrap();
    collect().await;
    world.pass(9 * DAY_MS);
    // Purges the first backup, condemns what only it needed, and rewrites the pack that the second needs a part of.
    let report = collect().await;
    assert_eq!(report.rewritten_packs, 1, "{report:?}");
    delete(&world.target, &[other]).await.unwrap();
    for number in 0..4_usize {
        world.pass(3_600_000);
        volume[number * 5000] ^= 1;
        world.back_up("v", &volume).await.unwrap();
    }
    let per_day = Rate { removals: NonZeroU32::MIN, period_ms: NonZeroU64::new(DAY_MS).unwrap() };
    let policy = Policy { keep_last: 2, max_rate: Some(per_day), ..Policy::default() };
    let request =
        RetentionRequest { policy, volume: None, zone: TimeZone::UTC, max_removals: None, leader: None };
    assert_eq!(run_retention(&world.target, &request).await.unwrap().removals().len(), 1);
    collect().await;
}

/// What a control plane keeps beside the catalog.
async fn fleet(world: &World, store: &DirectoryStore) {
    let sealer = &world.target.sealer;
    let at = TimestampMs(START_MS);
    let host = "hv-01".to_owned();
    let run = RunId::from_bytes([7; 16]);
    let session = SessionId::from_bytes([8; 16]);
    let backup = BackupId::from_bytes([9; 16]);
    let spec = VolumeSpec {
        host: host.clone(),
        source: "/dev/vg0/v".to_owned(),
        with: vec![Member { volume: "x".to_owned(), source: "/dev/vg0/x".to_owned() }],
        target: Some("far".to_owned()),
        chunker: Some("fixed:64KiB".parse().unwrap()),
        schedule: Some(Schedule {
            cron: "15 */6 * * *".to_owned(),
            zone: "Europe/Berlin".to_owned(),
            jitter_ms: 60_000,
            paused: false,
        }),
        retention: Some(RetentionSpec {
            keep_daily: 7,
            keep_within_ms: Some(DAY_MS),
            ..RetentionSpec::default()
        }),
        rpo_ms: Some(DAY_MS),
    };
    spec.check("v").unwrap();
    let settings = FleetSettings {
        hosts: BTreeMap::from([(host.clone(), Host { added: at })]),
        targets: BTreeMap::from([(
            "far".to_owned(),
            TargetEntry {
                address: "s3://far/away".to_owned(),
                kms_key: None,
                region: Some("eu-west-1".to_owned()),
            },
        )]),
    };
    settings.check().unwrap();
    let shard_number = shard_of(sealer, "v");
    let shard = Shard {
        version: 3,
        volumes: BTreeMap::from([("v".to_owned(), VolumeState::new(spec, at))]),
        requested: [run].into(),
    };
    let entry = AgendaEntry { version: 3, due: Some(at), active: 1, late: Some(at), volumes: 1 };
    let agenda = Agenda { shards: BTreeMap::from([(shard_number, entry)]), upkeep: at };
    let job = Job::Backup {
        volume: "v".to_owned(),
        host,
        source: "/dev/vg0/v".to_owned(),
        with: vec![Member { volume: "x".to_owned(), source: "/dev/vg0/x".to_owned() }],
        target: None,
        chunker: Some("fixed:64KiB".parse().unwrap()),
    };
    let group = Some(Group { id: GroupId::from_bytes([11; 16]), members: 2 });
    let result = RunResult { backup: Some(backup), group, logical_bytes: 1, ..RunResult::default() };
    let run_body = Run {
        state: RunState::Succeeded { at, result },
        ..Run::new(job, Origin::Request { key: "a key".to_owned() }, at)
    };
    let outcome = Outcome { backup, verdict: Verdict::Committed { epoch: Epoch(5) } };
    let refused = Outcome { backup, verdict: Verdict::Refused(Refusal::ParentGone { parent: backup }) };
    let other = SessionId::from_bytes([10; 16]);
    let mut rng = StdRng::seed_from_u64(3);
    let objects = [
        (ObjectKey::FleetSettings, sealer.seal(&ObjectKey::FleetSettings, &settings, &mut rng)),
        (ObjectKey::FleetAgenda, sealer.seal(&ObjectKey::FleetAgenda, &agenda, &mut rng)),
        (ObjectKey::FleetShard(shard_number), {
            sealer.seal(&ObjectKey::FleetShard(shard_number), &shard, &mut rng)
        }),
        (ObjectKey::Run(run), sealer.seal(&ObjectKey::Run(run), &run_body, &mut rng)),
        (ObjectKey::Outcome(session), sealer.seal(&ObjectKey::Outcome(session), &outcome, &mut rng)),
        (ObjectKey::Outcome(other), sealer.seal(&ObjectKey::Outcome(other), &refused, &mut rng)),
    ];
    for (key, bytes) in objects {
        store.put_if_absent(&key, Bytes::from(bytes)).await.unwrap();
    }
}

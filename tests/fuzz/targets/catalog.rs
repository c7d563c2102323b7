//! Catalogs of any content through every decision that is made on them.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use strongroom_catalog::collect::{
    Kept, State, Stored, doom, expired_trash, forget, plan_condemn, plan_index_merge, ripe_batches,
};
use strongroom_catalog::commit::{self, CommitVerdict};
use strongroom_catalog::dead::{Batch, DeadNames, DeadSet, ObjectName, Stage};
use strongroom_catalog::find::find;
use strongroom_catalog::invariants::{check_step, check_unneeded};
use strongroom_catalog::moved::Moved;
use strongroom_catalog::retention::{self, Policy};
use strongroom_catalog::rewrite::{RewritePolicy, plan_rewrite};
use strongroom_catalog::root::{BackupEntry, IndexRef, Root, Volume};
use strongroom_catalog::usage::Usage;
use strongroom_format::chunker::ChunkerParams;
use strongroom_format::ids::{
    BackupId, Epoch, Incarnation, IndexId, NodeId, PackId, SegmentId, SessionId, TargetId, TimestampMs,
};
use strongroom_format::layout::NodeKey;
use strongroom_format::manifest::{Manifest, SegmentRef};

#[derive(Debug, Arbitrary)]
struct Input {
    epoch: u64,
    oldest: u64,
    written: u64,
    volumes: Vec<(String, Vec<Backup>)>,
    indexes: Vec<(u8, u64)>,
    released: Vec<Name>,
    dead: Vec<Dead>,
    manifest: Commit,
    stored: Vec<(Name, u64, u64)>,
    reachable: Vec<Name>,
    now: u64,
    grace_ms: u64,
    keep: [u8; 6],
    within_ms: Option<u64>,
    name: String,
}

#[derive(Debug, Arbitrary)]
struct Backup {
    id: u8,
    created: u64,
    bytes: u64,
    trashed: Option<u64>,
}

#[derive(Debug, Arbitrary, Clone, Copy)]
struct Name(u8, u8);

#[derive(Debug, Arbitrary)]
struct Dead {
    node: u8,
    epoch: u64,
    at: u64,
    doomed: bool,
    names: Vec<Name>,
    pardoned: Vec<Name>,
}

#[derive(Debug, Arbitrary)]
struct Commit {
    id: u8,
    incarnation: u8,
    base: u64,
    volume: String,
    parent: Option<u8>,
    segments: Vec<(u8, bool)>,
    packs: Vec<u8>,
    indexes: Vec<u8>,
}

fn name(name: &Name) -> ObjectName {
    match name.0 % 4 {
        0 => ObjectName::Pack(PackId::from_bytes([name.1; 16])),
        1 => ObjectName::Segment(SegmentId::from_bytes([name.1; 16])),
        2 => ObjectName::Index(IndexId::from_bytes([name.1; 16])),
        _ => ObjectName::Manifest(BackupId::from_bytes([name.1; 16])),
    }
}

fn names(list: &[Name]) -> Vec<ObjectName> {
    list.iter().map(name).collect()
}

fn node(id: u8, epoch: u64) -> NodeKey {
    NodeKey { base_epoch: Epoch(epoch), id: NodeId::from_bytes([id; 16]) }
}

fn root(input: &Input) -> Root {
    let mut volumes = BTreeMap::new();
    for (name, backups) in &input.volumes {
        let backups = backups.iter().map(|backup| BackupEntry {
            id: BackupId::from_bytes([backup.id; 16]),
            session: SessionId::from_bytes([backup.id; 16]),
            created: TimestampMs(backup.created),
            logical_bytes: backup.bytes,
            stored_bytes: backup.bytes,
            trashed: backup.trashed.map(TimestampMs),
            group: None,
        });
        volumes.insert(name.clone(), Volume { backups: backups.collect(), ..Volume::default() });
    }
    Root {
        target: TargetId::from_bytes([0; 16]),
        incarnation: Incarnation::from_bytes([0; 16]),
        epoch: Epoch(input.epoch),
        previous: None,
        written: TimestampMs(input.written),
        oldest_vouched: Epoch(input.oldest),
        volumes,
        indexes: input
            .indexes
            .iter()
            .map(|(id, size_bytes)| IndexRef { id: IndexId::from_bytes([*id; 16]), size_bytes: *size_bytes })
            .collect(),
        released: names(&input.released),
        dead: input
            .dead
            .iter()
            .map(|dead| Batch {
                node: node(dead.node, dead.epoch),
                condemned_epoch: Epoch(dead.epoch),
                condemned: TimestampMs(dead.at),
                stage: if dead.doomed { Stage::Doomed } else { Stage::Condemned },
                names: dead.at,
                bytes: dead.at,
                pardoned: names(&dead.pardoned),
                rewritten: dead.node % 2 == 1,
            })
            .collect(),
        moved: None,
        usage: None,
        dead_index: None,
    }
}

fn manifest(commit: &Commit) -> Manifest {
    Manifest {
        backup: BackupId::from_bytes([commit.id; 16]),
        volume: commit.volume.clone(),
        host: String::new(),
        source: String::new(),
        created: TimestampMs(commit.base),
        size_bytes: 0,
        chunker: ChunkerParams::Fixed { size_bytes: 4096 },
        session: SessionId::from_bytes([commit.id; 16]),
        incarnation: Incarnation::from_bytes([commit.incarnation; 16]),
        base_epoch: Epoch(commit.base),
        parent: commit.parent.map(|id| BackupId::from_bytes([id; 16])),
        segments: commit
            .segments
            .iter()
            .map(|(id, inherited)| SegmentRef { id: SegmentId::from_bytes([*id; 16]), inherited: *inherited })
            .collect(),
        runs: Vec::new(),
        new_packs: commit.packs.iter().map(|id| PackId::from_bytes([*id; 16])).collect(),
        new_indexes: commit.indexes.iter().map(|id| IndexId::from_bytes([*id; 16])).collect(),
        stats: Default::default(),
        group: None,
    }
}

fuzz_target!(|input: Input| {
    let before = root(&input);
    let now = TimestampMs(input.now);
    let dead_names: Vec<DeadNames> =
        input.dead.iter().map(|dead| DeadNames { names: names(&dead.names) }).collect();
    let dead = DeadSet::new(&before, &dead_names);
    assert!(dead.packs().count() <= dead.len());

    let manifest = manifest(&input.manifest);
    let mut next = before.successor([0; 32], now);
    if let Ok(CommitVerdict::Admitted { pardoned }) = commit::decide(&before, &dead, &manifest) {
        commit::pardon(&mut next, &dead_names, &pardoned);
        commit::apply(&mut next, &manifest, &[1, 2]);
        assert!(matches!(commit::decide(&next, &dead, &manifest), Ok(CommitVerdict::Already)));
        for brought_in in commit::names_of(&manifest).names {
            assert_ne!(dead.stage(&brought_in), Some(Stage::Doomed));
        }
    }
    let _ = check_step(&before, &next);

    let expired = expired_trash(&before, now, input.grace_ms);
    let mut purged = before.successor([0; 32], now);
    purged.purge(&expired);
    purged.undelete(&expired);
    purged.trash(&expired, now);
    let ripe = ripe_batches(&before, now, input.grace_ms);
    doom(&mut purged, &ripe);
    let _ = check_step(&before, &purged);
    forget(&mut purged, &before.dead.iter().map(|batch| batch.node).collect());
    let _ = check_step(&before, &purged);

    let kept = Kept { reachable: input.reachable.iter().map(name).collect(), ..Kept::default() };
    let mut usage = Usage::default();
    let _ = usage.add_backup(&manifest);
    let _ = usage.remove_backup(&manifest);
    let moved = Moved::default().effective(&before);
    let state = State { root: &before, dead: &dead, moved: &moved, usage: &usage };
    let _ = check_unneeded(&state, kept.reachable.iter().copied());
    let stored = input.stored.iter().map(|(object, size_bytes, modified)| Stored {
        name: name(object),
        size_bytes: *size_bytes,
        modified: TimestampMs(*modified),
    });
    let plan = plan_condemn(&state, &kept, stored, now, input.grace_ms);
    assert!(plan.objects.iter().all(|object| !kept.reachable.contains(&object.name)));
    let _ = plan_rewrite(&usage, &dead, &moved, &Default::default(), &RewritePolicy::default());
    let _ = plan_index_merge(&before);

    let [keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly] =
        input.keep.map(u32::from);
    let policy = Policy {
        keep_last,
        keep_hourly,
        keep_daily,
        keep_weekly,
        keep_monthly,
        keep_yearly,
        keep_within_ms: input.within_ms,
        max_rate: None,
    };
    let retention = retention::plan(&before, &policy, None, now, &jiff::tz::TimeZone::UTC);
    let removals = retention.removals();
    for volume in before.volumes.values() {
        let newest =
            volume.backups.iter().filter(|backup| backup.is_live()).max_by_key(|backup| backup.created);
        if let Some(newest) = newest {
            let kept = retention.decisions.iter().any(|d| d.created == newest.created && d.keeps());
            assert!(kept || removals.is_empty(), "the newest live backup stays");
        }
    }
    let _ = find(&before, &input.name);
});

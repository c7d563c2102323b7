//! Decisions about the catalog, each rule with the case that would breach it.

use std::collections::HashSet;

use jiff::tz::TimeZone;
use proptest::prelude::*;
use strongroom_format::chunker::ChunkerParams;
use strongroom_format::ids::*;
use strongroom_format::layout::NodeKey;
use strongroom_format::manifest::{Group, Manifest, SegmentRef};

use crate::collect::{Kept, State, Stored, expired_trash, forget, plan_condemn, ripe_batches};
use crate::commit::{CommitVerdict, Refusal, apply, decide, pardon};
use crate::dead::{Batch, DeadNames, DeadSet, ObjectName, Stage};
use crate::find::{FindError, find};
use crate::invariants::check_step;
use crate::moved::Moved;
use crate::retention::{Policy, Rate, apply as apply_retention, plan, plan_member};
use crate::root::{BackupEntry, Root, Volume};
use crate::usage::{PackUsage, Usage};

fn id(n: u8) -> [u8; 16] {
    [n; 16]
}

fn pack(n: u8) -> ObjectName {
    ObjectName::Pack(PackId::from_bytes(id(n)))
}

fn root() -> Root {
    let mut root =
        Root::first(TargetId::from_bytes(id(1)), Incarnation::from_bytes(id(2)), Epoch(1), TimestampMs(0));
    root.epoch = Epoch(10);
    root
}

fn manifest(backup: u8, base: u64, packs: &[u8], parent: Option<u8>) -> Manifest {
    Manifest {
        backup: BackupId::from_bytes(id(backup)),
        volume: "vm1".to_owned(),
        host: "h".to_owned(),
        source: "s".to_owned(),
        created: TimestampMs(u64::from(backup)),
        size_bytes: 0,
        chunker: ChunkerParams::Fixed { size_bytes: 65536 },
        session: SessionId::from_bytes(id(backup)),
        incarnation: Incarnation::from_bytes(id(2)),
        base_epoch: Epoch(base),
        parent: parent.map(|n| BackupId::from_bytes(id(n))),
        segments: parent
            .map(|n| SegmentRef { id: SegmentId::from_bytes(id(n)), inherited: true })
            .into_iter()
            .chain([SegmentRef { id: SegmentId::from_bytes(id(backup)), inherited: false }])
            .collect(),
        runs: Vec::new(),
        new_packs: packs.iter().map(|n| PackId::from_bytes(id(*n))).collect(),
        new_indexes: vec![IndexId::from_bytes(id(backup))],
        stats: Default::default(),
        group: None,
    }
}

fn with_batch(mut root: Root, stage: Stage, names: &[ObjectName]) -> (Root, Vec<DeadNames>) {
    let mut names = names.to_vec();
    names.sort_unstable();
    root.dead.push(Batch {
        node: NodeKey { base_epoch: Epoch(7), id: NodeId::from_bytes(id(77)) },
        condemned_epoch: Epoch(8),
        condemned: TimestampMs(1000),
        stage,
        names: names.len() as u64,
        bytes: 0,
        pardoned: Vec::new(),
        rewritten: false,
    });
    (root, vec![DeadNames { names }])
}

#[test]
fn a_commit_comes_in_once() {
    let mut root = root();
    let manifest = manifest(5, 10, &[1, 2], None);
    assert_eq!(
        decide(&root, &DeadSet::default(), &manifest),
        Ok(CommitVerdict::Admitted { pardoned: Vec::new() })
    );
    apply(&mut root, &manifest, &[100]);
    assert_eq!(decide(&root, &DeadSet::default(), &manifest), Ok(CommitVerdict::Already));
    root.trash(&[manifest.backup], TimestampMs(1));
    assert_eq!(decide(&root, &DeadSet::default(), &manifest), Ok(CommitVerdict::Already));
}

#[test]
fn an_old_base_or_another_incarnation_is_refused() {
    let mut root = root();
    root.oldest_vouched = Epoch(6);
    assert!(matches!(
        decide(&root, &DeadSet::default(), &manifest(5, 5, &[], None)),
        Err(Refusal::BaseTooOld { .. })
    ));
    assert!(decide(&root, &DeadSet::default(), &manifest(5, 6, &[], None)).is_ok());
    assert!(decide(&root, &DeadSet::default(), &manifest(5, 11, &[], None)).is_err(), "from the future");
    root.incarnation = Incarnation::from_bytes(id(9));
    assert!(matches!(
        decide(&root, &DeadSet::default(), &manifest(5, 10, &[], None)),
        Err(Refusal::OtherIncarnation { .. })
    ));
}

#[test]
fn condemned_is_pardoned_and_doomed_is_refused() {
    let (root, names) = with_batch(root(), Stage::Condemned, &[pack(1), pack(3)]);
    let dead = DeadSet::new(&root, &names);
    let request = manifest(5, 10, &[1, 2], None);
    let Ok(CommitVerdict::Admitted { pardoned }) = decide(&root, &dead, &request) else { panic!("refused") };
    assert_eq!(pardoned, [pack(1)]);
    let mut next = root.successor([0; 32], TimestampMs(0));
    pardon(&mut next, &names, &pardoned);
    let after = DeadSet::new(&next, &names);
    assert_eq!(after.stage(&pack(1)), None);
    assert_eq!(after.stage(&pack(3)), Some(Stage::Condemned));

    let (doomed_root, names) = with_batch(self::root(), Stage::Doomed, &[pack(1)]);
    let dead = DeadSet::new(&doomed_root, &names);
    assert_eq!(decide(&doomed_root, &dead, &request), Err(Refusal::Doomed { names: vec![pack(1)] }));
}

#[test]
fn inherited_segments_need_their_parent_in_the_root() {
    let mut root = root();
    let child = manifest(6, 10, &[], Some(5));
    assert!(matches!(decide(&root, &DeadSet::default(), &child), Err(Refusal::ParentGone { .. })));
    apply(&mut root, &manifest(5, 10, &[], None), &[1]);
    assert!(decide(&root, &DeadSet::default(), &child).is_ok());
    root.trash(&[BackupId::from_bytes(id(5))], TimestampMs(1));
    assert!(decide(&root, &DeadSet::default(), &child).is_ok(), "the trash vouches too");
    root.purge(&[BackupId::from_bytes(id(5))]);
    assert!(decide(&root, &DeadSet::default(), &child).is_err());
}

#[test]
fn forgetting_raises_the_oldest_vouched_epoch_with_it() {
    let (root, names) = with_batch(root(), Stage::Doomed, &[pack(1)]);
    let mut next = root.successor([0; 32], TimestampMs(0));
    let nodes: HashSet<_> = root.dead.iter().map(|batch| batch.node).collect();
    forget(&mut next, &nodes);
    assert!(next.dead.is_empty());
    assert_eq!(next.oldest_vouched, Epoch(8));
    check_step(&root, &next).unwrap();
    // The request of an agent that took pack 1 for live (epoch 7) is refused now that nothing remembers it.
    let _ = names;
    assert!(decide(&next, &DeadSet::default(), &manifest(5, 7, &[1], None)).is_err());
    // The mutant that forgets without raising is caught by the step check.
    let mut careless = root.successor([0; 32], TimestampMs(0));
    careless.dead.clear();
    assert!(check_step(&root, &careless).is_err());
}

#[test]
fn a_live_backup_cannot_vanish() {
    let mut before = root();
    apply(&mut before, &manifest(5, 10, &[], None), &[1]);
    let mut after = before.successor([0; 32], TimestampMs(0));
    after.volumes.clear();
    assert!(check_step(&before, &after).is_err());
    let mut trashed = before.successor([0; 32], TimestampMs(0));
    trashed.trash(&[BackupId::from_bytes(id(5))], TimestampMs(3));
    check_step(&before, &trashed).unwrap();
    trashed.purge(&[BackupId::from_bytes(id(6))]);
    assert_eq!(trashed.backups().count(), 1);
}

#[test]
fn trash_and_batches_ripen_with_the_grace_and_not_with_a_clock_set_back() {
    let mut root = root();
    apply(&mut root, &manifest(5, 10, &[], None), &[1]);
    root.trash(&[BackupId::from_bytes(id(5))], TimestampMs(1000));
    assert!(expired_trash(&root, TimestampMs(1999), 1000).is_empty());
    assert_eq!(expired_trash(&root, TimestampMs(2000), 1000).len(), 1);
    assert!(expired_trash(&root, TimestampMs(500), 0).is_empty());
    let (root, _) = with_batch(root, Stage::Condemned, &[pack(1)]);
    assert!(ripe_batches(&root, TimestampMs(1999), 1000).is_empty());
    assert_eq!(ripe_batches(&root, TimestampMs(2000), 1000), [0]);
    assert!(ripe_batches(&root, TimestampMs(0), 0).is_empty());
}

#[test]
fn young_orphans_and_open_sessions_are_spared_but_what_was_committed_is_not() {
    let root = root();
    let stored =
        |n: u8, modified: u64| Stored { name: pack(n), size_bytes: 10, modified: TimestampMs(modified) };
    let used = PackUsage { live_frames: 1, ..PackUsage::default() };
    let packs = [(1, used), (2, PackUsage::default())];
    let id_of = |n| match pack(n) {
        ObjectName::Pack(id) => id,
        _ => unreachable!(),
    };
    let usage =
        Usage { packs: packs.into_iter().map(|(n, usage)| (id_of(n), usage)).collect(), ..Usage::default() };
    let kept = Kept { reachable: [pack(6)].into(), in_sessions: [pack(4)].into(), ..Kept::default() };
    let (dead, moved) = (DeadSet::default(), Moved::default());
    let state = State { root: &root, dead: &dead, moved: &moved, usage: &usage };
    let all = [stored(1, 0), stored(2, 99), stored(3, 0), stored(4, 0), stored(5, 99), stored(6, 0)];
    let plan = plan_condemn(&state, &kept, all, TimestampMs(100), 50);
    let names = |objects: &[Stored]| objects.iter().map(|object| object.name).collect::<Vec<_>>();
    assert_eq!(names(&plan.objects), [pack(2), pack(3)]);
    assert_eq!(names(&plan.spared), [pack(4), pack(5)]);
}

#[test]
fn backups_are_found_by_id_prefix_and_latest() {
    let mut root = root();
    for n in [0x51, 0x52] {
        apply(&mut root, &manifest(n, 10, &[], None), &[1]);
    }
    assert_eq!(find(&root, "5151").unwrap().1.id, BackupId::from_bytes(id(0x51)));
    assert_eq!(find(&root, "vm1@latest").unwrap().1.id, BackupId::from_bytes(id(0x52)));
    assert!(matches!(find(&root, "5353"), Err(FindError::NotFound(_))));
    assert!(matches!(find(&root, "vm2@latest"), Err(FindError::NoVolume(_))));
    for unreadable in ["", "5", "zz", "vm1", "515G"] {
        assert!(matches!(find(&root, unreadable), Err(FindError::Unreadable(_))), "{unreadable}");
    }
    root.trash(&[BackupId::from_bytes(id(0x52))], TimestampMs(0));
    assert_eq!(find(&root, "vm1@latest").unwrap().1.id, BackupId::from_bytes(id(0x51)));
}

/// 2026-03-01T00:00:00Z
const START_MS: u64 = 1_772_323_200_000;
const HOUR_MS: u64 = 3_600_000;

fn volume_with(hours: &[u64]) -> Root {
    let mut root = root();
    let backups = hours
        .iter()
        .enumerate()
        .map(|(n, hour)| BackupEntry {
            id: BackupId::from_bytes(id(u8::try_from(n).unwrap())),
            session: SessionId::from_bytes(id(0)),
            created: TimestampMs(START_MS + hour * HOUR_MS),
            logical_bytes: 0,
            stored_bytes: 0,
            trashed: None,
            group: None,
        })
        .collect();
    root.volumes.insert("v".to_owned(), Volume { backups, ..Volume::default() });
    root
}

/// Groups stay whole: what is of one goes when its leader's does, and not before one that is complete is there.
#[test]
fn members_go_with_their_leader() {
    // Each backup: its id, also its hour, and its group.
    let volume = |backups: &[(u8, Option<u8>)]| {
        let hours: Vec<u64> = backups.iter().map(|(hour, _)| u64::from(*hour)).collect();
        let mut volume = volume_with(&hours).volumes.remove("v").unwrap();
        for (entry, (n, group)) in volume.backups.iter_mut().zip(backups) {
            entry.id = BackupId::from_bytes(id(*n));
            entry.group = group.map(|group| Group { id: GroupId::from_bytes(id(group)), members: 2 });
        }
        volume
    };
    let kept = |leader: &[(u8, Option<u8>)], member: &[(u8, Option<u8>)]| {
        let mut root = root();
        root.volumes.insert("leader".to_owned(), volume(leader));
        root.volumes.insert("member".to_owned(), volume(member));
        let (policy, now) =
            (Policy { keep_last: 1, ..Policy::default() }, TimestampMs(START_MS + 99 * HOUR_MS));
        let plan = plan_member(&root, &policy, "member", "leader", now, &TimeZone::UTC);
        let kept = plan.decisions.iter().filter(|decision| decision.keeps());
        kept.map(|decision| decision.backup.as_bytes()[0]).collect::<Vec<_>>()
    };
    // The groups 30 and 50 have no leader: one failed, the other is still being made. Of those of no group the policy keeps the last.
    let member = [
        (1, None),
        (2, None),
        (10, Some(10)),
        (20, Some(20)),
        (30, Some(30)),
        (40, Some(40)),
        (50, Some(50)),
    ];
    assert_eq!(kept(&[(10, Some(10)), (20, Some(20)), (40, Some(40))], &member), [50, 40, 20, 10, 2]);
    // What went of the leader takes its members with it.
    assert_eq!(kept(&[(40, Some(40))], &member), [50, 40, 2]);
    // Nothing complete is there: nothing of a group goes.
    for leader in [&[][..], &[(60, None)]] {
        assert_eq!(kept(leader, &member), [50, 40, 30, 20, 10, 2]);
    }
    // The newest stays, whatever it is of.
    assert_eq!(kept(&[(60, Some(60))], &member[2..]), [50]);
}

#[test]
fn policies_keep_what_they_say() {
    // Three backups a day for ten days, at 00:00, 08:00 and 16:00; numbered from the oldest.
    let hours: Vec<u64> = (0..30).map(|n| n * 8).collect();
    let root = volume_with(&hours);
    let now = TimestampMs(START_MS + 240 * HOUR_MS);
    let kept = |policy: Policy| {
        let plan = plan(&root, &policy, None, now, &TimeZone::UTC);
        plan.decisions
            .iter()
            .filter(|decision| decision.keeps())
            .map(|decision| decision.backup.as_bytes()[0])
            .collect::<Vec<_>>()
    };
    assert_eq!(kept(Policy { keep_last: 2, ..Policy::default() }), [29, 28]);
    assert_eq!(kept(Policy { keep_daily: 3, ..Policy::default() }), [29, 26, 23]);
    assert_eq!(kept(Policy { keep_hourly: 2, ..Policy::default() }), [29, 28]);
    // 2026-03-01 is a Sunday: weeks end on the 1st and the 8th.
    assert_eq!(kept(Policy { keep_weekly: 9, ..Policy::default() }), [29, 23, 2]);
    assert_eq!(kept(Policy { keep_monthly: 5, keep_yearly: 5, ..Policy::default() }), [29]);
    assert_eq!(kept(Policy { keep_within_ms: Some(24 * HOUR_MS), ..Policy::default() }), [29, 28, 27]);
    assert_eq!(kept(Policy { keep_last: 1, keep_daily: 2, ..Policy::default() }), [29, 26]);
    assert_eq!(kept(Policy::default()), [29], "the newest is never removed");
}

#[test]
fn a_flood_of_backups_pushes_out_old_ones_only_at_the_set_rate_and_itself_first() {
    let rate = Rate { removals: 2.try_into().unwrap(), period_ms: (24 * HOUR_MS).try_into().unwrap() };
    let policy = Policy { keep_last: 3, max_rate: Some(rate), ..Policy::default() };
    // Three good ones, a day apart, then nine within an hour each.
    let mut root = volume_with(&[0, 24, 48, 72, 73, 74, 75, 76, 77, 78, 79, 80]);
    let gone_at = |root: &mut Root, hour: u64| {
        let now = TimestampMs(START_MS + hour * HOUR_MS);
        let plan = plan(root, &policy, None, now, &TimeZone::UTC);
        apply_retention(root, &plan, now);
        plan.removals().iter().map(|backup| backup.as_bytes()[0]).collect::<Vec<_>>()
    };
    assert_eq!(gone_at(&mut root, 81), [8, 7], "a period's removals at once");
    assert_eq!(gone_at(&mut root, 81), [] as [u8; 0], "and not again");
    assert_eq!(gone_at(&mut root, 92), [] as [u8; 0], "no share of the period has gone by");
    assert_eq!(gone_at(&mut root, 93), [6]);
    assert_eq!(gone_at(&mut root, 1000), [5, 4], "what was not used in time is not saved up");
    assert_eq!(gone_at(&mut root, 1024), [3, 2], "the good ones go last, the youngest first");

    // A clock that ran ahead by years stops retention for a period at most.
    root.volumes.get_mut("v").unwrap().paced_until = Some(TimestampMs(START_MS + 1_000_000 * HOUR_MS));
    assert_eq!(gone_at(&mut root, 1048), [] as [u8; 0]);
    root.volumes.get_mut("v").unwrap().paced_until = None;
    assert_eq!(gone_at(&mut root, 1048), [1, 0]);
}

proptest! {
    #[test]
    fn retention_never_removes_faster_than_its_rate(
        removals in 1u32..5,
        share_hours in 1u64..10,
        runs in proptest::collection::vec(0u64..30, 1..60),
    ) {
        let period = share_hours * u64::from(removals);
        let rate = Rate { removals: removals.try_into().unwrap(), period_ms: (period * HOUR_MS).try_into().unwrap() };
        let policy = Policy { keep_last: 1, max_rate: Some(rate), ..Policy::default() };
        let mut root = volume_with(&(0..200).collect::<Vec<_>>());
        let mut now = 1000;
        let mut removed = Vec::new();
        for pause in runs {
            now += pause;
            let at = TimestampMs(START_MS + now * HOUR_MS);
            let plan = plan(&root, &policy, None, at, &TimeZone::UTC);
            apply_retention(&mut root, &plan, at);
            removed.extend(plan.removals().iter().map(|_| now));
        }
        // In every stretch: a period's removals at once, and so many in each period of it.
        for (i, from) in removed.iter().enumerate() {
            for (j, until) in removed.iter().enumerate().skip(i) {
                prop_assert!((j - i + 1) as u64 * period <= u64::from(removals) * (period + until - from));
            }
        }
        prop_assert!(!removed.is_empty(), "the first run may always remove");
    }

    #[test]
    fn retention_keeps_at_least_the_newest_and_is_monotone(
        hours in proptest::collection::btree_set(0u64..2000, 1..60),
        last in 0u32..5, daily in 0u32..5, weekly in 0u32..5,
    ) {
        let hours: Vec<u64> = hours.into_iter().collect();
        let root = volume_with(&hours);
        let now = TimestampMs(START_MS + 2000 * HOUR_MS);
        let policy = Policy { keep_last: last, keep_daily: daily, keep_weekly: weekly, ..Policy::default() };
        let plan_once = plan(&root, &policy, None, now, &TimeZone::UTC);
        prop_assert_eq!(plan_once.decisions.len(), hours.len());
        prop_assert!(plan_once.decisions[0].keeps());
        // Applied again to what it kept, it removes nothing more.
        let mut after = root.clone();
        after.trash(&plan_once.removals(), now);
        prop_assert!(plan(&after, &policy, None, now, &TimeZone::UTC).removals().is_empty());
    }
}

//! The digest: what an overview of the fleet needs of its shards and of its targets' roots, in one object.
//!
//! Invariant: it is a cache, of which nothing is believed that was not checked. A shard in it counts if the agenda tells of that very
//! version, a target if its root is still the one that was summed up. Lost, damaged or of another version, it is as if there were none.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use strongroom_catalog::root::{BackupEntry, Root, Volume};
use strongroom_format::ids::TimestampMs;
use strongroom_format::manifest::check_volume_name;
use strongroom_format::seal::{Kind, SealedBody};
use strongroom_vault::glance::KnownRoot;
use strongroom_vault::head::Head;

use crate::run::{Job, Run, RunState};
use crate::shard::{SHARDS, Shard};
use crate::volume::VolumeState;

/// The most volumes that it tells of, those of shards and those of targets counted each: what a reconciler has the memory for, twice. A larger
/// fleet has no digest.
pub const MAX_VOLUMES: usize = 50_000;
/// The most text in it, bytes: names and sources of volumes. Most have a tenth of what this leaves to each.
const MAX_TEXT_BYTES: usize = 32 << 20;
/// The most days that it tells of in each target, the newest that have backups: more than an overview shows, so that a host whose clock runs
/// ahead does not push out what is shown.
pub const MAX_DAYS: usize = 120;
/// A day in milliseconds.
const DAY_MS: u64 = 86_400_000;
/// The last day that has a date of four digits of a year, 9999-12-31.
const LAST_DAY: u64 = 2_932_896;
/// The most a reader takes for it, bytes.
pub const MAX_DIGEST_BYTES: u64 = 32 << 20;

/// What an overview needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digest {
    /// The shards that hold volumes, by number.
    #[serde(deserialize_with = "bounded")]
    pub shards: BTreeMap<u16, ShardDigest>,
    /// The home; nothing if its root could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<TargetDigest>,
    /// The other targets whose roots could be read, by name.
    #[serde(deserialize_with = "bounded")]
    pub targets: BTreeMap<String, TargetDigest>,
    /// The newest restore whose end a check took note of; nothing before the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<Pace>,
}

/// How fast a restore was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pace {
    /// When it ended.
    pub at: TimestampMs,
    /// Bytes a second, its time in the queue included.
    pub bytes_per_second: u64,
}

/// A shard, as far as it is about volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardDigest {
    /// The version of the shard.
    pub version: u64,
    /// Its volumes, by name.
    #[serde(deserialize_with = "bounded")]
    pub volumes: BTreeMap<String, VolumeState>,
}

/// The root of a target, summed up by volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetDigest {
    /// The root.
    pub root: KnownRoot,
    /// The volumes that have backups, live ones or in the trash, by name.
    #[serde(deserialize_with = "bounded")]
    pub volumes: BTreeMap<String, VolumeDigest>,
    /// What all of its live backups come to; nothing in a digest that was written before there was this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totals: Option<Totals>,
}

/// What live backups come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// The lengths of their volumes, bytes.
    pub logical_bytes: u64,
    /// The newest [`MAX_DAYS`] days on which some of them were begun, by the number of days since 1970-01-01 (UTC).
    #[serde(deserialize_with = "bounded")]
    pub days: BTreeMap<u32, DaySum>,
}

/// What the live backups of a day come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DaySum {
    /// How many there are.
    pub backups: u64,
    /// The lengths of their volumes, bytes.
    pub logical_bytes: u64,
    /// What was stored for them, bytes.
    pub stored_bytes: u64,
}

/// A volume's backups in a target, summed up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeDigest {
    /// How many are live.
    pub live: u64,
    /// How many are in the trash.
    pub trashed: u64,
    /// What was stored for the live ones, bytes.
    pub stored_bytes: u64,
    /// The newest live one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<BackupEntry>,
}

/// What is counted while a digest is read, so that one with too much in it is refused before all of it is in memory.
trait Counted {
    /// The most of it in one map.
    const MOST: usize = MAX_VOLUMES;

    /// How much it counts.
    fn count(&self) -> usize {
        1
    }
}

impl Counted for VolumeState {}
impl Counted for VolumeDigest {}

impl Counted for DaySum {
    const MOST: usize = MAX_DAYS;
}

impl Counted for ShardDigest {
    fn count(&self) -> usize {
        self.volumes.len().max(1)
    }
}

impl Counted for TargetDigest {
    fn count(&self) -> usize {
        self.volumes.len().max(1)
    }
}

/// Reads a map, and no more than it may hold.
fn bounded<'de, D, K, V>(from: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de> + Counted,
{
    struct Bounded<K, V>(PhantomData<(K, V)>);

    impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de> + Counted> Visitor<'de> for Bounded<K, V> {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a map of no more than {}", V::MOST)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let (mut map, mut count) = (BTreeMap::new(), 0_usize);
            while let Some((key, value)) = entries.next_entry::<K, V>()? {
                count = count.saturating_add(value.count());
                if count > V::MOST {
                    return Err(A::Error::custom(format_args!("tells of more than {}", V::MOST)));
                }
                map.insert(key, value);
            }
            Ok(map)
        }
    }

    from.deserialize_map(Bounded(PhantomData))
}

impl SealedBody for Digest {
    const KIND: Kind = Kind::FleetDigest;
    const MAX_BODY_BYTES: usize = 64 << 20;
}

impl Digest {
    /// Says what is wrong with it, if anything. What is in it was checked by whoever read the shards and roots: only what an
    /// overview relies on is checked again.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.volumes() > MAX_VOLUMES || self.text_bytes() > MAX_TEXT_BYTES {
            return Err(format!(
                "tells of more than {MAX_VOLUMES} volumes, or {MAX_TEXT_BYTES} bytes of them"
            ));
        }
        if let Some(last) = self.shards.keys().next_back().filter(|last| **last >= SHARDS) {
            return Err(format!("tells of shard {last}, and there are {SHARDS}"));
        }
        let targets = || self.home.iter().chain(self.targets.values());
        if targets().filter_map(|it| it.totals.as_ref()).any(|totals| totals.days.len() > MAX_DAYS) {
            return Err(format!("tells of more than {MAX_DAYS} days"));
        }
        let of_targets = targets().flat_map(|it| it.volumes.keys());
        let mut names = self.shards.values().flat_map(|shard| shard.volumes.keys()).chain(of_targets);
        names.try_for_each(|name| check_volume_name(name))
    }

    fn text_bytes(&self) -> usize {
        let text = |(name, state): (&String, &VolumeState)| {
            let with = state.spec.with.iter().map(|member| member.volume.len() + member.source.len());
            name.len() + state.spec.source.len() + with.sum::<usize>()
        };
        self.shards.values().flat_map(|shard| &shard.volumes).map(text).sum()
    }

    /// How many volumes it tells of.
    fn volumes(&self) -> usize {
        let of_shards = self.shards.values().map(|shard| shard.volumes.len());
        let of_targets = self.home.iter().chain(self.targets.values()).map(|target| target.volumes.len());
        of_shards.chain(of_targets).sum()
    }

    /// What it tells of a target; `None` is the home.
    pub fn target(&self, name: Option<&str>) -> Option<&TargetDigest> {
        match name {
            None => self.home.as_ref(),
            Some(name) => self.targets.get(name),
        }
    }

    /// Takes in what is known of a target.
    pub fn put_target(&mut self, name: Option<String>, target: TargetDigest) {
        match name {
            None => self.home = Some(target),
            Some(name) => drop(self.targets.insert(name, target)),
        }
    }
}

impl Pace {
    /// The pace of a run that is a restore, and did any.
    pub fn of(run: &Run) -> Option<Self> {
        match (&run.job, &run.state) {
            (Job::Restore { .. }, RunState::Succeeded { at, result }) if result.logical_bytes > 0 => {
                let took_ms = at.0.saturating_sub(run.created.0).max(1);
                let bytes_per_second = result.logical_bytes.saturating_mul(1000) / took_ms;
                Some(Self { at: *at, bytes_per_second })
            }
            _ => None,
        }
    }

    /// The one of the restore that ended later.
    pub fn newer(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        one.into_iter().chain(other).max_by_key(|pace| pace.at)
    }
}

impl From<Shard> for ShardDigest {
    fn from(shard: Shard) -> Self {
        Self { version: shard.version, volumes: shard.volumes }
    }
}

impl TargetDigest {
    /// Sums a root up.
    pub fn of(head: &Head) -> Self {
        let totals = Totals::of(head.root.backups().map(|(_, backup)| backup));
        Self { root: KnownRoot::of(head), volumes: sums(&head.root), totals: Some(totals) }
    }
}

fn sums(root: &Root) -> BTreeMap<String, VolumeDigest> {
    root.volumes.iter().map(|(name, volume)| (name.clone(), VolumeDigest::of(volume))).collect()
}

/// The day of a time, as the number of days since 1970-01-01 (UTC); `None` beyond 9999.
pub fn day_of(at: TimestampMs) -> Option<u32> {
    u32::try_from(at.0 / DAY_MS).ok().filter(|day| u64::from(*day) <= LAST_DAY)
}

/// When a day begins.
pub const fn begin_of(day: u32) -> TimestampMs {
    TimestampMs(day as u64 * DAY_MS)
}

impl Totals {
    /// Sums backups up, those that are live. One whose time is out of all bounds is of no day.
    pub fn of<'a>(backups: impl Iterator<Item = &'a BackupEntry>) -> Self {
        let mut totals = Self::default();
        for backup in backups.filter(|backup| backup.is_live()) {
            totals.logical_bytes = totals.logical_bytes.saturating_add(backup.logical_bytes);
            let Some(day) = day_of(backup.created) else { continue };
            let sum =
                DaySum { backups: 1, logical_bytes: backup.logical_bytes, stored_bytes: backup.stored_bytes };
            totals.days.entry(day).or_default().add(sum);
            if totals.days.len() > MAX_DAYS {
                totals.days.pop_first();
            }
        }
        totals
    }
}

impl DaySum {
    /// Takes in another sum of the same day.
    pub fn add(&mut self, other: Self) {
        self.backups = self.backups.saturating_add(other.backups);
        self.logical_bytes = self.logical_bytes.saturating_add(other.logical_bytes);
        self.stored_bytes = self.stored_bytes.saturating_add(other.stored_bytes);
    }
}

impl VolumeDigest {
    /// Sums a volume's backups up.
    pub fn of(volume: &Volume) -> Self {
        let mut sum = Self::default();
        for backup in &volume.backups {
            if !backup.is_live() {
                sum.trashed += 1;
                continue;
            }
            sum.live += 1;
            sum.stored_bytes = sum.stored_bytes.saturating_add(backup.stored_bytes);
            // Of those that were begun at the same moment, the one that came in last.
            if sum.newest.as_ref().is_none_or(|newest| newest.created <= backup.created) {
                sum.newest = Some(backup.clone());
            }
        }
        sum
    }

    /// Says whether there is no backup at all.
    pub const fn is_empty(&self) -> bool {
        self.live == 0 && self.trashed == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use strongroom_format::ids::{BackupId, SessionId};

    use super::*;

    fn any_backup() -> impl Strategy<Value = BackupEntry> {
        (any::<[u8; 16]>(), 0..5_u64, any::<u64>(), any::<bool>()).prop_map(
            |(id, created, bytes, trashed)| BackupEntry {
                id: BackupId::from_bytes(id),
                session: SessionId::from_bytes(id),
                created: TimestampMs(created),
                logical_bytes: bytes,
                stored_bytes: bytes,
                trashed: trashed.then_some(TimestampMs(9)),
                group: None,
            },
        )
    }

    proptest! {
        #[test]
        fn a_sum_is_what_counting_says(backups in proptest::collection::vec(any_backup(), 0..20)) {
            let sum = VolumeDigest::of(&Volume { backups: backups.clone(), paced_until: None });
            let live = || backups.iter().filter(|backup| backup.is_live());
            prop_assert_eq!(sum.live, live().count() as u64);
            prop_assert_eq!(sum.live + sum.trashed, backups.len() as u64);
            prop_assert_eq!(sum.stored_bytes, live().fold(0, |sum: u64, it| sum.saturating_add(it.stored_bytes)));
            prop_assert_eq!(sum.newest.as_ref(), live().max_by_key(|backup| backup.created));
            prop_assert_eq!(sum.is_empty(), backups.is_empty());
        }
    }

    fn backup(created: u64, stored_bytes: u64, is_live: bool) -> BackupEntry {
        BackupEntry {
            id: BackupId::from_bytes([1; 16]),
            session: SessionId::from_bytes([1; 16]),
            created: TimestampMs(created),
            logical_bytes: 100,
            stored_bytes,
            trashed: (!is_live).then_some(TimestampMs(9)),
            group: None,
        }
    }

    #[test]
    fn live_backups_are_summed_up_by_day() {
        let backups =
            [backup(5, 7, true), backup(DAY_MS - 1, 1, true), backup(DAY_MS, 2, true), backup(9, 9, false)];
        let totals = Totals::of(backups.iter().chain([&backup(u64::MAX, 4, true)]));
        assert_eq!(totals.logical_bytes, 400, "what is of no day counts in the sum");
        let days: Vec<_> =
            totals.days.iter().map(|(day, sum)| (*day, sum.backups, sum.stored_bytes)).collect();
        assert_eq!(days, [(0, 2, 8), (1, 1, 2)]);
        assert_eq!(begin_of(1), TimestampMs(DAY_MS));
    }

    #[test]
    fn the_newest_days_are_kept_in_whatever_order_they_come() {
        let backups: Vec<_> = (0..300).map(|number| backup(number * 7 % 300 * DAY_MS, 1, true)).collect();
        let days = Totals::of(backups.iter()).days;
        assert_eq!((days.len(), days.keys().next()), (MAX_DAYS, Some(&180)));
        assert!(days.values().all(|day| day.backups == 1));
    }

    fn with_volumes(shards: u16, each: usize, source: &str) -> Digest {
        let state = VolumeState::new(crate::volume::VolumeSpec::new("h", source), TimestampMs(1));
        let volumes = |shard: u16| (0..each).map(move |number| format!("{shard}-{number}"));
        let shard = |number: u16| {
            let volumes = volumes(number).map(|name| (name, state.clone())).collect();
            (number, ShardDigest { version: 1, volumes })
        };
        Digest { shards: (0..shards).map(shard).collect(), ..Digest::default() }
    }

    fn reread(digest: &Digest) -> Result<Digest, serde_json::Error> {
        serde_json::from_slice(&serde_json::to_vec(digest).unwrap())
    }

    #[test]
    fn what_it_tells_of_is_counted_while_it_is_read() {
        let most = with_volumes(2, MAX_VOLUMES / 2, "s");
        assert_eq!(most.check(), Ok(()));
        assert_eq!(reread(&most).unwrap(), most);
        for (shards, each) in [(1, MAX_VOLUMES + 1), (2, MAX_VOLUMES / 2 + 1)] {
            let more = with_volumes(shards, each, "s");
            assert!(more.check().is_err());
            let refused = reread(&more).unwrap_err().to_string();
            assert!(refused.contains("tells of more than 50000"), "{refused}");
        }
        let days = |count| {
            let days = (0..count).map(|day| (day, DaySum::default())).collect();
            serde_json::to_vec(&Totals { logical_bytes: 1, days }).unwrap()
        };
        let most = u32::try_from(MAX_DAYS).unwrap();
        assert!(serde_json::from_slice::<Totals>(&days(most)).is_ok());
        assert!(serde_json::from_slice::<Totals>(&days(most + 1)).is_err());
    }

    #[test]
    fn more_text_than_an_overview_has_memory_for_is_refused() {
        let source = "s".repeat(1 << 20);
        assert_eq!(with_volumes(1, 31, &source).check(), Ok(()));
        assert!(with_volumes(1, 33, &source).check().is_err());
    }

    #[test]
    fn what_no_overview_could_use_is_refused() {
        let volume = |name: &str| {
            let spec = crate::volume::VolumeSpec::new("h", "/dev/x");
            BTreeMap::from([(name.to_owned(), VolumeState::new(spec, TimestampMs(1)))])
        };
        let of = |shard, name| Digest {
            shards: BTreeMap::from([(shard, ShardDigest { version: 1, volumes: volume(name) })]),
            ..Digest::default()
        };
        assert_eq!(of(SHARDS - 1, "v").check(), Ok(()));
        assert!(of(SHARDS, "v").check().is_err());
        assert!(of(0, "").check().is_err());
    }
}

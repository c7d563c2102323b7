//! Whoever sees every write and delete as it takes effect, and knows what must not happen.
//!
//! Invariant: it judges by what is in the store alone, with a reading of its own of roots, manifests, segments, index
//! objects and nodes; it never asks the code under test whether something is reachable.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use strongroom_catalog::dead::{DeadNames, ObjectName, Stage};
use strongroom_catalog::moved::Moved;
use strongroom_catalog::root::Root;
use strongroom_catalog::usage_nodes::UsageNode;
use strongroom_format::ids::{BackupId, Epoch, IndexId, PackId, SegmentId};
use strongroom_format::index::IndexBody;
use strongroom_format::layout::{InboxEntry, NodeKey, ObjectKey};
use strongroom_format::manifest::Manifest;
use strongroom_format::seal::Sealer;
use strongroom_format::segment::Segment;

use super::volume::Volume;
use super::world::World;

/// What somebody is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Backing up this content.
    Backup(Volume),
    /// Asking for a commit once more.
    Commit,
    /// Moving these to the trash.
    Delete(Vec<BackupId>),
    /// Taking these out of the trash.
    Undelete(Vec<BackupId>),
    /// Moving to the trash what a policy says.
    Retention,
    /// Collecting garbage.
    Collect,
    /// Restoring.
    Restore,
    /// Making the index anew.
    Rebuild,
}

/// Somebody with one job. Whatever they sent is judged by this job, however late it takes effect.
#[derive(Debug)]
pub struct Actor {
    /// What they are called.
    pub name: String,
    /// The job.
    pub job: Job,
    /// Whether the store has their registration as a reader.
    pub registered: AtomicBool,
}

/// A backup whose manifest was stored.
#[derive(Debug, Clone)]
pub struct Made {
    /// What must be restored.
    pub content: Volume,
    /// The volume's name.
    pub volume: String,
    /// Everything it needs.
    pub needs: BTreeSet<ObjectName>,
    /// What a request to commit it says.
    pub index_sizes: Vec<u64>,
}

/// What has been seen so far.
pub struct Watch {
    sealer: Sealer,
    /// The root in the store.
    pub root: Root,
    /// Everything that was ever made, committed or not.
    pub made: BTreeMap<BackupId, Made>,
    /// Backups that were in a root, and are in none any more.
    pub purged: BTreeSet<BackupId>,
    /// Backups that somebody was told about.
    pub reported: BTreeSet<BackupId>,
    /// The one of them that somebody was told about last.
    pub reported_last: Option<BackupId>,
    /// Hosts that hold their manifest back.
    pub lingering: u32,
    /// When the packs were rewritten that the first of them was after.
    pub taking_back: Option<Epoch>,
    /// Collectors that hold back what they counted anew.
    pub recounting: u32,
    /// Backups that are being restored, by whom.
    pub restoring: BTreeMap<String, BackupId>,
    /// Backups whose restores count on being heard, by whom.
    pub registering: BTreeMap<String, BackupId>,
    /// Those of them that had registered when they read a root which has the backup: from then on nothing it needs may go.
    held: BTreeMap<String, BackupId>,
    /// Index objects that somebody took away.
    pub lost_indexes: BTreeSet<IndexId>,
    /// What went wrong, the first first.
    pub failures: Vec<String>,
    segments: HashMap<SegmentId, Vec<PackId>>,
    indexes: HashMap<IndexId, Vec<PackId>>,
    nodes: HashMap<NodeKey, Vec<ObjectName>>,
    moved: HashMap<NodeKey, Moved>,
    present: HashSet<ObjectName>,
    born: HashMap<ObjectName, blake3::Hash>,
    written: HashMap<ObjectName, Duration>,
    /// What the root in the store holds dead.
    dead: HashMap<ObjectName, Stage>,
    doomed: HashSet<ObjectName>,
    /// What a stored copy of a root shows as doomed.
    doomed_in_copy: HashSet<ObjectName>,
    reachable: HashSet<ObjectName>,
}

impl Watch {
    /// Begins with an empty target.
    pub fn new(sealer: Sealer, root: &[u8]) -> Self {
        let root = sealer.open(&ObjectKey::Root, root).expect("the first root opens");
        Self {
            sealer,
            root,
            made: BTreeMap::new(),
            purged: BTreeSet::new(),
            reported: BTreeSet::new(),
            reported_last: None,
            lingering: 0,
            recounting: 0,
            taking_back: None,
            restoring: BTreeMap::new(),
            registering: BTreeMap::new(),
            held: BTreeMap::new(),
            lost_indexes: BTreeSet::new(),
            failures: Vec::new(),
            segments: HashMap::new(),
            indexes: HashMap::new(),
            nodes: HashMap::new(),
            moved: HashMap::new(),
            present: HashSet::new(),
            born: HashMap::new(),
            written: HashMap::new(),
            dead: HashMap::new(),
            doomed: HashSet::new(),
            doomed_in_copy: HashSet::new(),
            reachable: HashSet::new(),
        }
    }

    /// Notes that something went wrong.
    pub fn fail(&mut self, world: &World, who: &str, what: &str) {
        world.tell(|| format!("FAILURE: {who}: {what}"));
        self.failures.push(format!("at {:.3} s, {who}: {what}", world.elapsed().as_secs_f64()));
    }

    /// Sees a write that took effect.
    pub fn wrote(&mut self, world: &World, actor: &Actor, key: &ObjectKey, bytes: &[u8]) {
        if let Some(name) = ObjectName::from_key(key) {
            // The same bytes again are a request that was sent twice and arrived late.
            let content = blake3::hash(bytes);
            if self.born.insert(name, content).is_some_and(|before| before != content) {
                self.fail(world, &actor.name, &format!("{key} is written under a name that was used before"));
            }
            self.present.insert(name);
            self.written.insert(name, world.elapsed());
        }
        if let Err(problem) = self.take_in(world, actor, key, bytes) {
            self.fail(world, &actor.name, &format!("{key}: {problem}"));
        }
    }

    fn take_in(&mut self, world: &World, actor: &Actor, key: &ObjectKey, bytes: &[u8]) -> Result<(), String> {
        let error = |error: strongroom_format::FormatError| error.to_string();
        match *key {
            ObjectKey::Root => {
                let root = self.sealer.open(key, bytes).map_err(error)?;
                world.tell(|| self.summary(actor, &root));
                self.step(world, actor, root);
            }
            ObjectKey::RootCopy(_) => {
                let copy: Root = self.sealer.open_root_copy(key, bytes).map_err(error)?;
                for batch in copy.dead.iter().filter(|batch| batch.stage == Stage::Doomed) {
                    let names = self.nodes.get(&batch.node).into_iter().flatten();
                    self.doomed_in_copy.extend(names.filter(|name| !batch.pardoned.contains(name)));
                }
            }
            ObjectKey::Node(node) => {
                // Nodes of the count are for collection itself: lost or wrong, they must cost nothing but time.
                if let Ok(names) = self.sealer.open::<DeadNames>(key, bytes) {
                    self.nodes.insert(node, names.names);
                } else if let Ok(moved) = self.sealer.open::<Moved>(key, bytes) {
                    self.moved.insert(node, moved);
                }
            }
            ObjectKey::Segment(id) => {
                let segment = Segment::open(&self.sealer, id, bytes).map_err(error)?;
                self.segments.insert(id, segment.packs().to_vec());
            }
            ObjectKey::Index(id) => {
                let body: IndexBody = self.sealer.open(key, bytes).map_err(error)?;
                self.indexes.insert(id, body.packs().collect());
            }
            ObjectKey::Manifest(id) => {
                let manifest: Manifest = self.sealer.open(key, bytes).map_err(error)?;
                let made = self.describe(world, actor, &manifest)?;
                self.made.insert(id, made);
            }
            ObjectKey::Inbox(_, InboxEntry::Reader) => actor.registered.store(true, Ordering::SeqCst),
            _ => {}
        }
        Ok(())
    }

    /// What a root says, in a line.
    fn summary(&self, actor: &Actor, root: &Root) -> String {
        let (live, trashed) = root.backups().partition::<Vec<_>, _>(|(_, backup)| backup.is_live());
        let batches = root.dead.iter().map(|batch| {
            let kind = if batch.rewritten { "rewritten" } else { "unneeded" };
            let names = self.nodes.get(&batch.node).map_or(0, Vec::len);
            let (stage, epoch, taken_back) = (batch.stage, batch.condemned_epoch.0, batch.pardoned.len());
            format!("{stage:?} {kind} at {epoch}, {taken_back} of {names} taken back")
        });
        format!(
            "{} writes root {}: {} backups, {} in the trash, {}counted, dead: {:?}",
            actor.name,
            root.epoch.0,
            live.len(),
            trashed.len(),
            if root.usage.is_some() { "" } else { "not " },
            batches.collect::<Vec<_>>(),
        )
    }

    fn describe(&self, world: &World, actor: &Actor, manifest: &Manifest) -> Result<Made, String> {
        let Job::Backup(content) = &actor.job else { return Err("is written by a stranger".to_owned()) };
        let mut needs = BTreeSet::from([ObjectName::Manifest(manifest.backup)]);
        for segment in &manifest.segments {
            needs.insert(ObjectName::Segment(segment.id));
            let packs = self.segments.get(&segment.id).ok_or("names a segment that nobody wrote")?;
            needs.extend(packs.iter().map(|pack| ObjectName::Pack(*pack)));
        }
        let len =
            |id: &IndexId| world.store.get_raw(&ObjectKey::Index(*id).to_string()).map_or(0, |b| b.len());
        Ok(Made {
            content: content.clone(),
            volume: manifest.volume.clone(),
            needs,
            index_sizes: manifest.new_indexes.iter().map(|id| len(id) as u64).collect(),
        })
    }

    /// Backups whose restores have registered and seen them in a root, by whom: nothing that they need may go.
    pub const fn held(&self) -> &BTreeMap<String, BackupId> {
        &self.held
    }

    /// Says whether an object may not be deleted yet.
    pub fn is_locked(&self, world: &World, key: &ObjectKey, lock: Duration) -> bool {
        let written = ObjectName::from_key(key).and_then(|name| self.written.get(&name));
        written.is_some_and(|written| world.elapsed() < *written + lock)
    }

    /// Sees that somebody was sent the root.
    pub fn sent_root(&mut self, actor: &Actor) {
        if let Some(backup) = self.registering.get(&actor.name)
            && actor.registered.load(Ordering::SeqCst)
            && self.root.backup(*backup).is_some()
        {
            self.held.insert(actor.name.clone(), *backup);
        }
    }

    /// Sees that somebody restores no more, whether he got to the end or not.
    pub fn restored(&mut self, actor: &Actor) {
        self.restoring.remove(&actor.name);
        self.registering.remove(&actor.name);
        self.held.remove(&actor.name);
    }

    /// Sees a delete that took effect.
    pub fn deleted(&mut self, world: &World, actor: &Actor, key: &ObjectKey) {
        match key {
            ObjectKey::Node(node)
                if self.root.moved == Some(*node)
                    || self.root.dead.iter().any(|batch| batch.node == *node) =>
            {
                self.fail(world, &actor.name, &format!("{key} is deleted, and the root lists it"));
            }
            ObjectKey::Root | ObjectKey::Keyring | ObjectKey::RootCopy(_) => {
                self.fail(world, &actor.name, &format!("{key} is deleted"));
            }
            // He has all he wants, or gives up.
            ObjectKey::Inbox(_, InboxEntry::Reader) if actor.job == Job::Restore => {
                self.registering.remove(&actor.name);
                self.held.remove(&actor.name);
            }
            _ => {}
        }
        if let Some(name) = ObjectName::from_key(key) {
            self.present.remove(&name);
            if self.reachable.contains(&name) {
                self.fail(world, &actor.name, &format!("{key} is deleted, and a backup needs it"));
            }
            if !self.doomed.contains(&name) {
                self.fail(world, &actor.name, &format!("{key} is deleted, and was never doomed"));
            } else if !self.doomed_in_copy.contains(&name) {
                self.fail(
                    world,
                    &actor.name,
                    &format!("{key} is deleted, and no copy of a root tells of it"),
                );
            }
        }
    }

    /// Takes away an object, as somebody with other tools would.
    pub fn vandalise(&mut self, world: &World, index: IndexId) {
        world.store.remove_raw(&ObjectKey::Index(index).to_string());
        self.present.remove(&ObjectName::Index(index));
        self.lost_indexes.insert(index);
    }

    /// Checks one root against the one that it replaces, and against the store.
    fn step(&mut self, world: &World, actor: &Actor, next: Root) {
        let mut problems = self.transition(world, &actor.job, &next);
        let made = &self.made;
        let names = |backup: &BackupId| made.get(backup).map(|made| made.needs.iter().copied());
        let needed: BTreeSet<ObjectName> =
            next.backups().filter_map(|(_, backup)| names(&backup.id)).flatten().collect();
        let moved = match next.moved.map(|node| self.moved.get(&node)) {
            None => Moved::default(),
            Some(Some(moved)) => still_moved(moved, &next),
            Some(None) => {
                problems.push("a node that nobody wrote says what was rewritten".to_owned());
                Moved::default()
            }
        };
        let now_at = |name: ObjectName| match name {
            ObjectName::Pack(pack) if moved.has(&pack) => {
                moved.heirs(&pack).map(|heir| ObjectName::Pack(heir.pack)).collect::<Vec<_>>()
            }
            name => vec![name],
        };
        self.reachable = needed.into_iter().flat_map(now_at).collect();
        let held: BTreeSet<ObjectName> =
            self.held.values().filter_map(names).flatten().flat_map(now_at).collect();
        problems.extend(self.absent(world));
        let mut dead: HashMap<ObjectName, Stage> = HashMap::new();
        for batch in &next.dead {
            let Some(names) = self.nodes.get(&batch.node) else {
                problems.push("a node that nobody wrote is listed".to_owned());
                continue;
            };
            if world.store.get_raw(&ObjectKey::Node(batch.node).to_string()).is_none() {
                problems.push(format!("{} is listed, and gone", ObjectKey::Node(batch.node)));
            }
            for name in names.iter().filter(|name| !batch.pardoned.contains(name)) {
                if batch.stage == Stage::Doomed {
                    self.doomed.insert(*name);
                }
                if dead.insert(*name, batch.stage).is_some() {
                    problems.push(format!("{} is dead twice", name.key()));
                }
            }
        }
        let needed_dead: BTreeSet<_> = dead
            .iter()
            .filter(|(name, _)| self.reachable.contains(name))
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .map(|(name, stage)| format!("a backup needs {}, and it is {stage:?}", name.key()))
            .collect();
        problems.extend(needed_dead);
        let goes = |name: &&ObjectName| dead.contains_key(*name) && !self.dead.contains_key(*name);
        let taken = held.iter().filter(goes);
        problems.extend(taken.map(|name| format!("{} is condemned, and a restore reads it", name.key())));
        problems.extend(self.let_in(&next));
        for index in next.indexes.iter().filter(|index| self.present.contains(&ObjectName::Index(index.id))) {
            let packs = self.indexes.get(&index.id).map(Vec::as_slice).unwrap_or_default();
            let gone = packs
                .iter()
                .map(|pack| ObjectName::Pack(*pack))
                .find(|name| !self.present.contains(name) && !dead.contains_key(name));
            problems.extend(gone.map(|name| format!("the index lists {}, and it is gone", name.key())));
        }
        world.tell(|| {
            format!(
                "ROOT {} by {}: {} backups, {} batches, vouches from {}",
                next.epoch,
                actor.name,
                next.backups().count(),
                next.dead.len(),
                next.oldest_vouched
            )
        });
        self.root = next;
        self.dead = dead;
        for problem in problems {
            self.fail(world, &actor.name, &format!("root {}: {problem}", self.root.epoch));
        }
    }

    /// What index objects of the next root name, that were not in the root it replaces, and that may not come in.
    fn let_in(&self, next: &Root) -> Vec<String> {
        let listed: HashSet<IndexId> = self.root.indexes.iter().map(|index| index.id).collect();
        let new = next.indexes.iter().filter(|index| !listed.contains(&index.id));
        let packs = new.flat_map(|index| self.indexes.get(&index.id).into_iter().flatten());
        let doomed = packs
            .map(|pack| ObjectName::Pack(*pack))
            .filter(|name| self.dead.get(name) == Some(&Stage::Doomed));
        let doomed: BTreeSet<ObjectName> = doomed.collect();
        doomed
            .into_iter()
            .map(|name| format!("a new index object lists {}, and it is doomed", name.key()))
            .collect()
    }

    /// What backups need and the store does not have.
    fn absent(&self, _world: &World) -> Vec<String> {
        let gone: BTreeSet<_> = self.reachable.iter().filter(|name| !self.present.contains(name)).collect();
        gone.into_iter().map(|name| format!("a backup needs {}, and it is gone", name.key())).collect()
    }

    /// What this job may not do to the root.
    fn transition(&mut self, world: &World, job: &Job, next: &Root) -> Vec<String> {
        let mut problems = Vec::new();
        let before = &self.root;
        if next.epoch != before.epoch.next() || next.incarnation != before.incarnation {
            problems.push(format!("follows epoch {}", before.epoch));
        }
        if world.store.get_raw(&ObjectKey::RootCopy(before.epoch).to_string()).is_none() {
            problems.push(format!("there is no copy of root {}", before.epoch));
        }
        let mut seen = BTreeSet::new();
        for (_, backup) in next.backups() {
            let id = backup.id;
            if !seen.insert(id) {
                problems.push(format!("backup {id} is listed twice"));
            }
            let fine = match before.backup(id).map(|(_, before)| before.is_live()) {
                None => {
                    let asked = matches!(job, Job::Backup(_) | Job::Commit);
                    asked && self.made.contains_key(&id) && !self.purged.contains(&id)
                }
                Some(live) if live == backup.is_live() => true,
                Some(true) => match job {
                    Job::Delete(ids) => ids.contains(&id),
                    job => *job == Job::Retention,
                },
                Some(false) => matches!(job, Job::Undelete(ids) if ids.contains(&id)),
            };
            if !fine {
                problems.push(format!("backup {id} appears, or goes into or out of the trash, unasked"));
            }
        }
        let mut gone = Vec::new();
        for (_, backup) in before.backups().filter(|(_, backup)| !seen.contains(&backup.id)) {
            if backup.is_live() || *job != Job::Collect {
                problems.push(format!("backup {} is lost", backup.id));
            }
            gone.push(backup.id);
        }
        self.purged.extend(gone);
        problems
    }

    /// Says what lies in the store and nothing refers to.
    pub fn unaccounted(&self, world: &World) -> Vec<String> {
        let indexes: HashSet<_> = self.root.indexes.iter().map(|index| index.id).collect();
        let mut nodes: HashSet<NodeKey> = self.root.dead.iter().map(|batch| batch.node).collect();
        nodes.extend(self.root.moved);
        if let Some(usage) = self.root.usage {
            let key = ObjectKey::Node(usage);
            nodes.insert(usage);
            let stored = world.store.get_raw(&key.to_string());
            let opened = stored.and_then(|bytes| self.sealer.open::<UsageNode>(&key, &bytes).ok());
            nodes.extend(opened.iter().flat_map(UsageNode::nodes));
        }
        let refers = |key: &ObjectKey| match key {
            ObjectKey::Root | ObjectKey::Keyring | ObjectKey::RootCopy(_) => true,
            ObjectKey::Index(id) => indexes.contains(id),
            ObjectKey::Node(node) => nodes.contains(node),
            key => ObjectName::from_key(key).is_some_and(|name| self.reachable.contains(&name)),
        };
        world
            .store
            .keys()
            .into_iter()
            .filter(|key| !ObjectKey::parse(key).is_some_and(|key| refers(&key)))
            .collect()
    }
}

/// Where rewritten packs went, without those that a root has taken back.
fn still_moved(moved: &Moved, root: &Root) -> Moved {
    let taken_back: BTreeSet<ObjectName> =
        root.dead.iter().filter(|batch| batch.rewritten).flat_map(|batch| batch.pardoned.clone()).collect();
    let packs = moved.packs.iter().filter(|(pack, _)| !taken_back.contains(&ObjectName::Pack(**pack)));
    Moved { packs: packs.map(|(pack, heirs)| (*pack, heirs.clone())).collect() }
}

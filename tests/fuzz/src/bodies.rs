//! Opening a body of each kind, and asking it everything that can be asked.

use strongroom_catalog::dead::{DeadIndex, DeadNames};
use strongroom_catalog::frames::{Delta, FrameGroup, FrameGroupNode};
use strongroom_catalog::moved::Moved;
use strongroom_catalog::root::Root;
use strongroom_catalog::usage::Usage;
use strongroom_catalog::usage_nodes::{UsageNode, UsagePart};
use strongroom_format::FormatError;
use strongroom_format::ids::PackId;
use strongroom_format::index::{InboxOpen, InboxRecord, IndexBody, ReaderRegistration, directories_of};
use strongroom_format::layout::ObjectKey;
use strongroom_format::manifest::{Manifest, region_count, region_len};
use strongroom_format::seal::Kind;
use strongroom_format::segment::Segment;

use crate::{SEGMENT, WORLD};

/// Regions asked for at most: a manifest of few bytes may describe a volume of any length.
const REGIONS_ASKED: usize = 10_000;

/// Opens a body as the library's users would. Whatever it holds, this must come back.
pub fn exercise(kind: Kind, key: &ObjectKey, object: &[u8]) -> Result<(), FormatError> {
    let sealer = &WORLD.sealer;
    match kind {
        Kind::Root => {
            let root: Root = sealer.open(key, object)?;
            sealer.open_root_copy::<Root>(&ObjectKey::RootCopy(root.epoch), object)?;
            self::root(&root);
        }
        Kind::Node => return node(key, object),
        Kind::Manifest => manifest(&sealer.open::<Manifest>(key, object)?.validated()?),
        Kind::Segment => segment(&Segment::open(sealer, SEGMENT, object)?),
        Kind::Index => index(key, &sealer.open(key, object)?)?,
        Kind::InboxOpen => drop(sealer.open::<InboxOpen>(key, object)?),
        Kind::InboxRecord => index(key, &sealer.open::<InboxRecord>(key, object)?.packs)?,
        Kind::Reader => drop(sealer.open::<ReaderRegistration>(key, object)?),
        Kind::Keyring | Kind::Pack | Kind::Outcome | Kind::Run => {}
        Kind::FleetSettings | Kind::FleetShard | Kind::FleetAgenda | Kind::FleetDigest => {}
    }
    Ok(())
}

/// Asks a node as each of what it may be: which one it is, only the root says.
fn node(key: &ObjectKey, object: &[u8]) -> Result<(), FormatError> {
    let sealer = &WORLD.sealer;
    let mut last = sealer.open::<DeadNames>(key, object).map(drop);
    if let Ok(names) = sealer.open::<DeadIndex>(key, object) {
        drop(names);
        last = Ok(());
    }
    if let Ok(mut moved) = sealer.open::<Moved>(key, object) {
        moved.rewrite(&moved.packs.clone());
        last = Ok(());
    }
    if let Ok(node) = sealer.open::<UsageNode>(key, object) {
        last = node.to_usage().map(|usage| self::usage(&node, &usage)).map_err(|problem| problem.of(key));
    }
    if let Ok(part) = sealer.open::<UsagePart>(key, object) {
        let mut usage = Usage { groups: vec![None; 3], indexes: vec![None; 3], ..Usage::default() };
        last = part.add_to(&mut usage).map_err(|problem| problem.of(key));
    }
    if let Ok(node) = sealer.open::<FrameGroupNode>(key, object) {
        last = FrameGroup::from_node(&node).map(group).map_err(|problem| problem.of(key));
    }
    last
}

/// Asks a count.
fn usage(node: &UsageNode, usage: &Usage) {
    let again = UsageNode::new(usage, node.parts.clone());
    assert_eq!(again.to_usage().as_ref(), Ok(usage), "what was read writes back to the same");
    assert!(node.nodes().count() >= node.parts.len());
    let _ = usage.references();
}

/// Asks a group of frames.
fn group(mut group: FrameGroup) {
    let again = FrameGroup::from_node(&group.to_node());
    assert_eq!(again.as_ref(), Ok(&group), "what was read writes back to the same");
    let _ = group.references();
    let pack = PackId::from_bytes([2; 16]);
    let _ = group.frames(&pack).count();
    let _ =
        group.apply(pack, vec![Delta { offset: 1, len: 2, uses: -1 }, Delta { offset: 0, len: 1, uses: 1 }]);
}

/// Asks a root.
pub fn root(root: &Root) {
    for (volume, backup) in root.backups() {
        let _ = root.latest(volume);
        assert!(root.backup(backup.id).is_some());
    }
    let next = root.successor([0; 32], root.written);
    let _ = strongroom_catalog::invariants::check_step(root, &next);
}

/// Asks a manifest that has passed its validation.
pub fn manifest(manifest: &Manifest) {
    let regions = region_count(manifest.size_bytes);
    for source in manifest.regions().take(REGIONS_ASKED) {
        if let strongroom_format::manifest::RegionSource::List { segment, .. } = source {
            assert!((segment as usize) < manifest.segments.len());
        }
    }
    for region in [0, regions.saturating_sub(1), regions] {
        assert!(region_len(manifest.size_bytes, region) <= strongroom_format::chunker::REGION_BYTES);
    }
    let _ = strongroom_catalog::commit::names_of(manifest);
}

/// Asks a segment.
pub fn segment(segment: &Segment) {
    let mut extents = 0;
    let mut chunks = 0;
    for slot in 0..u32::try_from(segment.lists()).expect("as many as column values") {
        let list = segment.list(slot).expect("a slot below the count");
        assert_eq!(segment.first_chunk(slot).expect("a slot below the count"), chunks);
        assert!(list.iter().all(|extent| !extent.is_empty()));
        extents += list.len();
        chunks += list.iter().filter(|e| matches!(e, strongroom_format::segment::Extent::Chunk(_))).count();
    }
    assert_eq!(extents, segment.extents().len());
    assert!(segment.list(u32::MAX).is_err());
    if let Ok(keys) = segment.open_keys(&WORLD.target, &WORLD.secrets.restore) {
        assert_eq!((0..chunks).filter(|&n| keys.get(n).is_some()).count(), chunks);
        assert!(keys.get(chunks).is_none());
    }
}

/// Asks an index.
pub fn index(key: &ObjectKey, body: &IndexBody) -> Result<(), FormatError> {
    let directories = directories_of(key, body)?;
    assert_eq!(directories.len(), body.packs().count());
    for directory in &directories {
        let _ = &directory.writer;
    }
    // What was read writes back to the same.
    assert_eq!(&IndexBody::new(&directories), body);
    Ok(())
}

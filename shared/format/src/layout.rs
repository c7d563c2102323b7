//! Keys of objects: the only builder *and* the only parser.
//!
//! Invariant: `ObjectKey::parse(key.to_string()) == Some(key)`, and nothing else parses; what does not parse is
//! foreign and is never touched.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{BackupId, Epoch, IndexId, NodeId, PackId, RunId, SegmentId, SessionId, VolumeTag};

/// What an agent leaves in a session's inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InboxEntry {
    /// Who opened the session, for which volume, on which root.
    Open,
    /// The directories of packs uploaded so far: record number `n`.
    Record(u32),
    /// A restore that reads a backup and wants it kept.
    Reader,
}

/// The key of every object a target can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// `keyring`: wrapped secrets and parameters.
    Keyring,
    /// `root`: the one mutable object of the catalog.
    Root,
    /// `roots/<epoch>`: the copy of a past root.
    RootCopy(Epoch),
    /// `nodes/<base epoch>-<random>`: a catalog node, only ever referenced by root `base epoch + 1` and its successors.
    Node(NodeKey),
    /// `manifests/<backup-id>`
    Manifest(BackupId),
    /// `segments/<random>`
    Segment(SegmentId),
    /// `packs/<2 hex>/<random>`
    Pack(PackId),
    /// `index/<random>`
    Index(IndexId),
    /// `inbox/<session>/…`
    Inbox(SessionId, InboxEntry),
    /// `outcomes/<session>`
    Outcome(SessionId),
    /// `runs/<run>`
    Run(RunId),
    /// `fleet/settings`: hosts and targets of the fleet that has its home here.
    FleetSettings,
    /// `fleet/agenda`: when each shard is due next.
    FleetAgenda,
    /// `fleet/digest`: what an overview needs of shards and roots.
    FleetDigest,
    /// `fleet/shards/<4 hex>`: some of the fleet's volumes.
    FleetShard(u16),
}

/// The name of a catalog node: the epoch of the root it was written to follow, and 128 random bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeKey {
    /// The epoch that the writer's swap replaces.
    pub base_epoch: Epoch,
    /// The random half.
    pub id: NodeId,
}

/// The folders of a target, for listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyPrefix {
    /// Everything.
    All,
    /// `roots/`
    Roots,
    /// `nodes/`
    Nodes,
    /// `manifests/`
    Manifests,
    /// `segments/`
    Segments,
    /// `packs/`
    Packs,
    /// `packs/<2 hex>/`: one of 256 shards.
    PackShard(u8),
    /// `index/`
    Index,
    /// `inbox/`
    Inbox,
    /// `inbox/<session>/`
    InboxOf(SessionId),
    /// `inbox/<tag>…`: the sessions of one volume.
    InboxOfVolume(VolumeTag),
    /// `outcomes/`
    Outcomes,
    /// `runs/`
    Runs,
    /// `fleet/`
    Fleet,
}

impl fmt::Display for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::Roots => f.write_str("roots/"),
            Self::Nodes => f.write_str("nodes/"),
            Self::Manifests => f.write_str("manifests/"),
            Self::Segments => f.write_str("segments/"),
            Self::Packs => f.write_str("packs/"),
            Self::PackShard(shard) => write!(f, "packs/{shard:02x}/"),
            Self::Index => f.write_str("index/"),
            Self::Inbox => f.write_str("inbox/"),
            Self::InboxOf(session) => write!(f, "inbox/{session}/"),
            Self::InboxOfVolume(tag) => {
                f.write_str("inbox/")?;
                tag.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Self::Outcomes => f.write_str("outcomes/"),
            Self::Runs => f.write_str("runs/"),
            Self::Fleet => f.write_str("fleet/"),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keyring => f.write_str("keyring"),
            Self::Root => f.write_str("root"),
            // Twenty digits hold any u64, so that a listing is in order of epochs.
            Self::RootCopy(epoch) => write!(f, "roots/{:020}", epoch.0),
            Self::Node(node) => write!(f, "nodes/{:020}-{}", node.base_epoch.0, node.id),
            Self::Manifest(id) => write!(f, "manifests/{id}"),
            Self::Segment(id) => write!(f, "segments/{id}"),
            Self::Pack(id) => write!(f, "packs/{:02x}/{id}", id.as_bytes()[0]),
            Self::Index(id) => write!(f, "index/{id}"),
            Self::Inbox(session, InboxEntry::Open) => write!(f, "inbox/{session}/open"),
            Self::Inbox(session, InboxEntry::Record(n)) => write!(f, "inbox/{session}/{n:010}"),
            Self::Inbox(session, InboxEntry::Reader) => write!(f, "inbox/{session}/reader"),
            Self::Outcome(session) => write!(f, "outcomes/{session}"),
            Self::Run(run) => write!(f, "runs/{run}"),
            Self::FleetSettings => f.write_str("fleet/settings"),
            Self::FleetAgenda => f.write_str("fleet/agenda"),
            Self::FleetDigest => f.write_str("fleet/digest"),
            Self::FleetShard(shard) => write!(f, "fleet/shards/{shard:04x}"),
        }
    }
}

/// Says that a key is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a key of a Strongroom object")]
pub struct ForeignKey(String);

impl FromStr for ObjectKey {
    type Err = ForeignKey;

    fn from_str(text: &str) -> Result<Self, ForeignKey> {
        Self::parse(text).ok_or_else(|| ForeignKey(text.chars().take(200).collect()))
    }
}

impl ObjectKey {
    /// Reads a key; `None` for anything this module would not have written.
    pub fn parse(text: &str) -> Option<Self> {
        let key = match text.split_once('/') {
            None => match text {
                "keyring" => Self::Keyring,
                "root" => Self::Root,
                _ => return None,
            },
            Some(("roots", rest)) => Self::RootCopy(parse_epoch(rest)?),
            Some(("nodes", rest)) => {
                let (epoch, id) = rest.split_once('-')?;
                Self::Node(NodeKey { base_epoch: parse_epoch(epoch)?, id: id.parse().ok()? })
            }
            Some(("manifests", rest)) => Self::Manifest(rest.parse().ok()?),
            Some(("segments", rest)) => Self::Segment(rest.parse().ok()?),
            Some(("packs", rest)) => Self::Pack(rest.split_once('/')?.1.parse().ok()?),
            Some(("index", rest)) => Self::Index(rest.parse().ok()?),
            Some(("inbox", rest)) => {
                let (session, entry) = rest.split_once('/')?;
                let entry = match entry {
                    "open" => InboxEntry::Open,
                    "reader" => InboxEntry::Reader,
                    digits => InboxEntry::Record(digits.parse().ok()?),
                };
                Self::Inbox(session.parse().ok()?, entry)
            }
            Some(("outcomes", rest)) => Self::Outcome(rest.parse().ok()?),
            Some(("runs", rest)) => Self::Run(rest.parse().ok()?),
            Some(("fleet", "settings")) => Self::FleetSettings,
            Some(("fleet", "agenda")) => Self::FleetAgenda,
            Some(("fleet", "digest")) => Self::FleetDigest,
            Some(("fleet", rest)) => {
                Self::FleetShard(u16::from_str_radix(rest.strip_prefix("shards/")?, 16).ok()?)
            }
            Some(_) => return None,
        };
        // One spelling only: rejects a wrong pack shard, short digits, signs, upper case.
        (key.to_string() == text).then_some(key)
    }
}

fn parse_epoch(digits: &str) -> Option<Epoch> {
    digits.parse().ok().map(Epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_key() -> impl Strategy<Value = ObjectKey> {
        let id = any::<[u8; 16]>();
        prop_oneof![
            Just(ObjectKey::Keyring),
            Just(ObjectKey::Root),
            any::<u64>().prop_map(|e| ObjectKey::RootCopy(Epoch(e))),
            (any::<u64>(), id).prop_map(|(e, id)| ObjectKey::Node(NodeKey {
                base_epoch: Epoch(e),
                id: NodeId::from_bytes(id)
            })),
            id.prop_map(|id| ObjectKey::Manifest(BackupId::from_bytes(id))),
            id.prop_map(|id| ObjectKey::Segment(SegmentId::from_bytes(id))),
            id.prop_map(|id| ObjectKey::Pack(PackId::from_bytes(id))),
            id.prop_map(|id| ObjectKey::Index(IndexId::from_bytes(id))),
            (id, any::<u32>())
                .prop_map(|(id, n)| ObjectKey::Inbox(SessionId::from_bytes(id), InboxEntry::Record(n))),
            id.prop_map(|id| ObjectKey::Inbox(SessionId::from_bytes(id), InboxEntry::Open)),
            id.prop_map(|id| ObjectKey::Inbox(SessionId::from_bytes(id), InboxEntry::Reader)),
            id.prop_map(|id| ObjectKey::Outcome(SessionId::from_bytes(id))),
            id.prop_map(|id| ObjectKey::Run(RunId::from_bytes(id))),
            Just(ObjectKey::FleetSettings),
            Just(ObjectKey::FleetAgenda),
            Just(ObjectKey::FleetDigest),
            any::<u16>().prop_map(ObjectKey::FleetShard),
        ]
    }

    proptest! {
        #[test]
        fn every_key_reads_back(key in any_key()) {
            prop_assert_eq!(ObjectKey::parse(&key.to_string()), Some(key));
        }

        #[test]
        fn what_parses_is_spelled_the_one_way(text in "(roots|nodes|packs|index|inbox|runs|fleet|fleet/shards)/[0-9a-f/-]{0,60}") {
            if let Some(key) = ObjectKey::parse(&text) {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }

    #[test]
    fn foreign_keys_do_not_parse() {
        for text in [
            "",
            "root/",
            "Root",
            "packs/00/0123456789abcdef0123456789abcdef",
            "packs/01/0123456789ABCDEF0123456789abcdef",
            "roots/1",
            "roots/+0000000000000000001",
            "inbox/0123456789abcdef0123456789abcdef/1",
            "index/../root",
            "fleet/shards/+123",
            "fleet/shards/12345",
        ] {
            assert_eq!(ObjectKey::parse(text), None, "{text}");
        }
    }
}

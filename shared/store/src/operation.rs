//! Names of the store's calls and of the kinds of keys, for counting, recording and scripted faults.

use std::fmt;

use strongroom_format::layout::{KeyPrefix, ObjectKey};

/// One of the calls of [`ObjectStore`](crate::ObjectStore).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Reading a whole object.
    Get,
    /// Reading a part of an object.
    GetRange,
    /// Creating an object.
    PutIfAbsent,
    /// Replacing an object.
    PutIfMatch,
    /// Listing one page of keys.
    List,
    /// Deleting a batch of objects.
    Delete,
}

impl Operation {
    /// Every operation, in the order of the discriminants.
    pub const ALL: [Self; 6] =
        [Self::Get, Self::GetRange, Self::PutIfAbsent, Self::PutIfMatch, Self::List, Self::Delete];

    /// The name of the call, as errors spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::GetRange => "get_range",
            Self::PutIfAbsent => "put_if_absent",
            Self::PutIfMatch => "put_if_match",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a key names, without which one: a folder of the target, or one of its two single objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyKind {
    /// `root`
    Root,
    /// `keyring`
    Keyring,
    /// `roots/…`
    RootCopy,
    /// `nodes/…`
    Node,
    /// `manifests/…`
    Manifest,
    /// `segments/…`
    Segment,
    /// `packs/…`
    Pack,
    /// `index/…`
    Index,
    /// `inbox/…`
    Inbox,
    /// `outcomes/…`
    Outcome,
    /// `runs/…`
    Run,
    /// `fleet/…`
    Fleet,
    /// A call about several kinds at once: a listing of everything, a delete across folders.
    Mixed,
}

impl KeyKind {
    /// Every kind, in the order of the discriminants.
    pub const ALL: [Self; 13] = [
        Self::Root,
        Self::Keyring,
        Self::RootCopy,
        Self::Node,
        Self::Manifest,
        Self::Segment,
        Self::Pack,
        Self::Index,
        Self::Inbox,
        Self::Outcome,
        Self::Run,
        Self::Fleet,
        Self::Mixed,
    ];

    /// The first word of the keys of this kind; `mixed` for [`Self::Mixed`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Keyring => "keyring",
            Self::RootCopy => "roots",
            Self::Node => "nodes",
            Self::Manifest => "manifests",
            Self::Segment => "segments",
            Self::Pack => "packs",
            Self::Index => "index",
            Self::Inbox => "inbox",
            Self::Outcome => "outcomes",
            Self::Run => "runs",
            Self::Fleet => "fleet",
            Self::Mixed => "mixed",
        }
    }

    /// The kind that all `keys` share, or [`Self::Mixed`].
    pub fn of_all(keys: &[ObjectKey]) -> Self {
        let mut kinds = keys.iter().map(Self::from);
        match kinds.next() {
            Some(first) if kinds.all(|kind| kind == first) => first,
            _ => Self::Mixed,
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl From<&ObjectKey> for KeyKind {
    fn from(key: &ObjectKey) -> Self {
        match key {
            ObjectKey::Root => Self::Root,
            ObjectKey::Keyring => Self::Keyring,
            ObjectKey::RootCopy(_) => Self::RootCopy,
            ObjectKey::Node(_) => Self::Node,
            ObjectKey::Manifest(_) => Self::Manifest,
            ObjectKey::Segment(_) => Self::Segment,
            ObjectKey::Pack(_) => Self::Pack,
            ObjectKey::Index(_) => Self::Index,
            ObjectKey::Inbox(..) => Self::Inbox,
            ObjectKey::Outcome(_) => Self::Outcome,
            ObjectKey::Run(_) => Self::Run,
            ObjectKey::FleetSettings
            | ObjectKey::FleetAgenda
            | ObjectKey::FleetDigest
            | ObjectKey::FleetShard(_) => Self::Fleet,
        }
    }
}

impl From<KeyPrefix> for KeyKind {
    fn from(prefix: KeyPrefix) -> Self {
        match prefix {
            KeyPrefix::All => Self::Mixed,
            KeyPrefix::Roots => Self::RootCopy,
            KeyPrefix::Nodes => Self::Node,
            KeyPrefix::Manifests => Self::Manifest,
            KeyPrefix::Segments => Self::Segment,
            KeyPrefix::Packs | KeyPrefix::PackShard(_) => Self::Pack,
            KeyPrefix::Index => Self::Index,
            KeyPrefix::Inbox | KeyPrefix::InboxOf(_) | KeyPrefix::InboxOfVolume(_) => Self::Inbox,
            KeyPrefix::Outcomes => Self::Outcome,
            KeyPrefix::Runs => Self::Run,
            KeyPrefix::Fleet => Self::Fleet,
        }
    }
}

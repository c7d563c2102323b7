//! Names of things: one type each, so that none can be passed for another.
//!
//! Invariant: an id of an immutable object is 128 random bits, drawn once and never reused. Only a
//! [`ChunkId`] is derived from content, and it names a place inside packs, never an object.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use serde::{Serialize, Serializer};

/// Says why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {what}: expected {digits} lower-case hexadecimal digits")]
pub struct ParseIdError {
    text: String,
    what: &'static str,
    digits: usize,
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// Wraps raw bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// Reads the id from a slice of exactly [`Self::LEN`] bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// Returns the raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for byte in self.0 {
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = || ParseIdError { text: text.chars().take(80).collect(), what: $what, digits: $len * 2 };
                if text.len() != $len * 2 || text.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(error());
                }
                let mut bytes = [0; $len];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| error())?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct IdVisitor;
                impl Visitor<'_> for IdVisitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "{} of {} bytes", $what, $len)
                    }
                    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<$name, E> {
                        $name::from_slice(bytes).ok_or_else(|| E::invalid_length(bytes.len(), &self))
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(D::Error::custom)
                } else {
                    deserializer.deserialize_bytes(IdVisitor)
                }
            }
        }
    };
}

macro_rules! random_id_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        id_type!($(#[$doc])* $name, 16, $what);

        impl $name {
            /// Draws a new id; names are used once, so every call must come from a good generator.
            pub fn random(rng: &mut impl Rng) -> Self {
                let mut bytes = [0; 16];
                rng.fill_bytes(&mut bytes);
                Self(bytes)
            }
        }
    };
}

id_type!(
    /// Names a chunk: the keyed hash of its plaintext's hash.
    ChunkId, 32, "a chunk id"
);
random_id_type!(
    /// Names a target for ever; bound into every seal.
    TargetId, "a target id"
);
random_id_type!(
    /// Names a backup and its manifest.
    BackupId, "a backup id"
);
random_id_type!(
    /// Names a pack.
    PackId, "a pack id"
);
random_id_type!(
    /// Names a segment object.
    SegmentId, "a segment id"
);
random_id_type!(
    /// Names an index object.
    IndexId, "an index id"
);
random_id_type!(
    /// Names a backup or restore session.
    SessionId, "a session id"
);
random_id_type!(
    /// Names one life of a root: a root rebuilt after a loss starts a new one.
    Incarnation, "an incarnation"
);
random_id_type!(
    /// The random half of a catalog node's name.
    NodeId, "a node id"
);
random_id_type!(
    /// Names a group of backups whose volumes were snapshotted together.
    GroupId, "a group id"
);
random_id_type!(
    /// Names a run: one attempt to back up, restore, verify, retain or collect.
    RunId, "a run id"
);

id_type!(
    /// The nonce of an object's seal: drawn at random for each, so it tells one sealed object from all others.
    SealNonce, 24, "a nonce"
);
id_type!(
    /// BLAKE3 of the sealed bytes of an object.
    SealedHash, 32, "a hash"
);

/// The first bytes of the session ids of one volume, so that its open sessions are found with one listing. A keyed
/// hash of the volume's name: tells nothing without the catalog secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeTag(pub [u8; VolumeTag::LEN]);

impl VolumeTag {
    /// Length in bytes. The ten random bytes that are left make a session's name unique within its volume.
    pub const LEN: usize = 6;
}

impl SessionId {
    /// The tag that the id begins with.
    pub fn volume_tag(&self) -> VolumeTag {
        VolumeTag(std::array::from_fn(|n| self.0[n]))
    }

    /// Draws the id of a session of a volume.
    pub fn random_of(tag: VolumeTag, rng: &mut impl Rng) -> Self {
        let mut session = Self::random(rng);
        session.0[..VolumeTag::LEN].copy_from_slice(&tag.0);
        session
    }
}

/// Counts the versions of a root; the first one is 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of the root that follows this one. The highest is its own successor: no honest root ever gets there,
    /// and a hostile one must not make its reader panic.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z. Only ever an argument: pure code never asks for the time.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct TimestampMs(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_epoch_has_a_successor_without_a_panic() {
        assert_eq!(Epoch(7).next(), Epoch(8));
        assert_eq!(Epoch(u64::MAX).next(), Epoch(u64::MAX));
    }
}

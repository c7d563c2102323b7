//! What a change expects of a volume, so that nobody undoes unseen what somebody else did.
//!
//! Invariant: a change that expects something is made only where that is so at the very moment of the change, or where it is made already.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::volume::VolumeSpec;

/// Names what is to be done with a volume: it is another as soon as any of that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecTag(blake3::Hash);

impl SpecTag {
    /// That of a specification.
    pub fn of(spec: &VolumeSpec) -> Self {
        // Members in the order of the type, those left out that say nothing: what is the same is written the same.
        let text = serde_json::to_vec(spec).expect("specifications hold only types that JSON can represent");
        Self(blake3::hash(&text))
    }
}

impl fmt::Display for SpecTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SpecTag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        let hash = blake3::Hash::from_hex(text).ok().filter(|_| is_lower);
        hash.map(Self).ok_or_else(|| "a tag of a specification has 64 digits, 0 to 9 and a to f".to_owned())
    }
}

/// What a change expects of the volume that it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Expected {
    /// There is none of that name.
    Absent,
    /// There is one.
    Present,
    /// There is one, and this is to be done with it.
    Spec(SpecTag),
}

impl Expected {
    /// Says why it is not so, if it is not.
    ///
    /// # Errors
    /// The reason, and what to do.
    pub fn check(self, volume: &str, spec: Option<&VolumeSpec>) -> Result<(), String> {
        let named = || volume.escape_debug();
        match (self, spec) {
            (Self::Absent, None) | (Self::Present, Some(_)) => Ok(()),
            (Self::Absent, Some(_)) => {
                Err(format!("there is a volume '{}' already: change that one, or take another name", named()))
            }
            (Self::Present | Self::Spec(_), None) => {
                Err(format!("there is no volume '{}': it was forgotten, or never there", named()))
            }
            (Self::Spec(tag), Some(spec)) if tag == SpecTag::of(spec) => Ok(()),
            (Self::Spec(_), Some(_)) => Err(format!(
                "volume '{}' was changed by somebody meanwhile: look at it as it is now, and ask again",
                named()
            )),
        }
    }
}

impl From<Expected> for String {
    fn from(expected: Expected) -> Self {
        match expected {
            Expected::Absent => "none".to_owned(),
            Expected::Present => "any".to_owned(),
            Expected::Spec(tag) => tag.to_string(),
        }
    }
}

impl FromStr for Expected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::Absent),
            "any" => Ok(Self::Present),
            tag => tag.parse().map(Self::Spec).map_err(|error| format!("none, any, or a tag: {error}")),
        }
    }
}

impl TryFrom<String> for Expected {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_of_all_that_is_to_be_done() {
        let spec = VolumeSpec::new("h", "/dev/x");
        let tag = SpecTag::of(&spec);
        assert_eq!(tag.to_string().parse(), Ok(tag));
        assert!(tag.to_string().to_uppercase().parse::<SpecTag>().is_err());
        // As it was read again, so that a tag outlives a swap of the shard it is in.
        let again: VolumeSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!(SpecTag::of(&again), tag);
        let others = [
            VolumeSpec { rpo_ms: Some(1), ..spec.clone() },
            VolumeSpec { target: Some("far".to_owned()), ..spec.clone() },
            VolumeSpec { retention: Some(crate::volume::RetentionSpec::default()), ..spec.clone() },
        ];
        assert!(others.iter().all(|other| SpecTag::of(other) != tag));
        // Clients keep tags: what a version makes of a specification, the next one makes of it.
        assert_eq!(tag.to_string(), "a82f1a67d009b262989578914329323c2df4b97f683d66cbbfa154110a7735dd");
    }

    #[test]
    fn what_is_expected_is_so_or_is_said_not_to_be() {
        let (spec, other) = (VolumeSpec::new("h", "/dev/x"), VolumeSpec::new("h", "/dev/y"));
        let tag = Expected::Spec(SpecTag::of(&spec));
        for (expected, spec, reason) in [
            (Expected::Absent, None, None),
            (Expected::Absent, Some(&spec), Some("already")),
            (Expected::Present, None, Some("no volume 'db'")),
            (Expected::Present, Some(&other), None),
            (tag, None, Some("no volume 'db'")),
            (tag, Some(&spec), None),
            (tag, Some(&other), Some("meanwhile")),
        ] {
            let said = expected.check("db", spec);
            assert_eq!(said.is_ok(), reason.is_none(), "{expected:?} {spec:?}");
            assert!(reason.is_none_or(|reason| said.unwrap_err().contains(reason)), "{expected:?} {spec:?}");
            assert_eq!(String::from(expected).parse(), Ok(expected));
        }
        assert!("None".parse::<Expected>().is_err());
    }
}

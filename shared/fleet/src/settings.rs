//! Hosts and targets of a fleet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strongroom_format::ids::TimestampMs;
use strongroom_format::manifest::check_volume_name;
use strongroom_format::seal::{Kind, SealedBody};

/// The longest name of a host, bytes: its queue is called after it, and SQS takes 80.
const MAX_HOST_NAME_BYTES: usize = 60;
/// The most of anything that the settings list.
const MAX_ENTRIES: usize = 100_000;

/// What a fleet consists of, besides its volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetSettings {
    /// Hosts, by name: each has a queue and an agent.
    pub hosts: BTreeMap<String, Host>,
    /// Targets besides the home, by name.
    pub targets: BTreeMap<String, TargetEntry>,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// When it joined.
    pub added: TimestampMs,
}

/// A target besides the home. Its secrets never come here: who opens it needs the key as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetEntry {
    /// `s3://bucket/prefix` or `file:///path`.
    pub address: String,
    /// The AWS KMS key that opens its catalog, if not the home's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_key: Option<String>,
    /// Region of the bucket, if not the home's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

impl SealedBody for FleetSettings {
    const KIND: Kind = Kind::FleetSettings;
    const MAX_BODY_BYTES: usize = 64 << 20;
}

impl FleetSettings {
    /// Says what is wrong with it, if anything: it may come from another version, or from somebody hostile.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.hosts.len().max(self.targets.len()) > MAX_ENTRIES {
            return Err("lists too many hosts or targets".to_owned());
        }
        self.hosts.keys().try_for_each(|name| check_host_name(name))?;
        self.targets.iter().try_for_each(|(name, target)| {
            check_volume_name(name).map_err(|reason| reason.replacen("volume", "target", 1))?;
            target.check()
        })
    }
}

impl TargetEntry {
    /// Says what is wrong with it, if anything.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn check(&self) -> Result<(), String> {
        let known = ["s3://", "file:///"].iter().any(|scheme| self.address.starts_with(scheme));
        if known && self.address.len() <= 1024 {
            return Ok(());
        }
        let shown: String = self.address.chars().take(80).collect();
        Err(format!("target address '{}': say s3://bucket/prefix or file:///path", shown.escape_debug()))
    }
}

/// What the target is called that the fleet keeps its own state in, wherever one of all targets is named.
pub const HOME: &str = "home";

/// Says what is wrong with the name of a target besides the home, if anything.
///
/// # Errors
/// The reason, in words.
pub fn check_target_name(name: &str) -> Result<(), String> {
    if name == HOME {
        return Err("target 'home': that is the one that the fleet keeps its own state in; call this one something else".to_owned());
    }
    check_volume_name(name).map_err(|reason| reason.replacen("volume", "target", 1))
}

/// Says what is wrong with the name of a host, if anything.
///
/// # Errors
/// The reason, in words.
pub fn check_host_name(name: &str) -> Result<(), String> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if plain && !name.is_empty() && name.len() <= MAX_HOST_NAME_BYTES {
        return Ok(());
    }
    Err(format!(
        "host name '{}': use 1 to {MAX_HOST_NAME_BYTES} letters, digits, '-' and '_': its queue is called after it",
        name.chars().take(80).collect::<String>().escape_debug()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hosts_can_be_names_of_queues() {
        for good in ["a", "hv-01", "rack_7", &"x".repeat(60)] {
            assert_eq!(check_host_name(good), Ok(()));
        }
        for bad in ["", "a b", "a.b", "ä", "../x", &"x".repeat(61)] {
            assert!(check_host_name(bad).is_err(), "{bad}");
        }
    }
}

//! Volumes in the configuration file of `strongroom up`.

use std::collections::BTreeMap;

use serde::Deserialize;
use strongroom_fleet::schedule::Schedule;
use strongroom_fleet::volume::{Member, RetentionSpec, VolumeSpec};
use strongroom_format::chunker::ChunkerParams;
use strongroom_vault::{VaultError, VaultResult};

use crate::cli::{parse_duration, parse_rate};

/// A table `[volumes.NAME]` of the configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VolumeConfig {
    source: String,
    #[serde(default)]
    with: BTreeMap<String, String>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    target: Option<String>,
    #[serde(default)]
    chunker: Option<String>,
    #[serde(default)]
    cron: Option<String>,
    #[serde(default)]
    time_zone: Option<String>,
    #[serde(default)]
    jitter: Option<String>,
    #[serde(default)]
    rpo: Option<String>,
    #[serde(default)]
    keep_last: u32,
    #[serde(default)]
    keep_hourly: u32,
    #[serde(default)]
    keep_daily: u32,
    #[serde(default)]
    keep_weekly: u32,
    #[serde(default)]
    keep_monthly: u32,
    #[serde(default)]
    keep_yearly: u32,
    #[serde(default)]
    keep_within: Option<String>,
    #[serde(default)]
    max_rate: Option<String>,
}

impl VolumeConfig {
    /// What it says, as the fleet keeps it. `host`: whose volume it is if it does not say.
    ///
    /// # Errors
    /// `Invalid` with what is wrong.
    pub fn spec(&self, name: &str, host: &str) -> VaultResult<VolumeSpec> {
        let invalid = |reason: String| VaultError::Invalid(format!("[volumes.{name}]: {reason}"));
        let millis = |text: &Option<String>| match text {
            Some(text) => parse_duration(text).map(|duration| Some(duration.0)).map_err(invalid),
            None => Ok(None),
        };
        let chunker: Option<ChunkerParams> = match &self.chunker {
            Some(text) => Some(text.parse().map_err(|error| invalid(format!("{error}")))?),
            None => None,
        };
        let retention = RetentionSpec {
            keep_last: self.keep_last,
            keep_hourly: self.keep_hourly,
            keep_daily: self.keep_daily,
            keep_weekly: self.keep_weekly,
            keep_monthly: self.keep_monthly,
            keep_yearly: self.keep_yearly,
            keep_within_ms: millis(&self.keep_within)?,
            max_rate: self.max_rate.as_deref().map(parse_rate).transpose().map_err(invalid)?,
        };
        let schedule = match &self.cron {
            Some(cron) => Some(Schedule {
                cron: cron.clone(),
                zone: self.time_zone.clone().unwrap_or_else(|| "UTC".to_owned()),
                jitter_ms: millis(&self.jitter)?.unwrap_or(0),
                paused: false,
            }),
            None => None,
        };
        let member =
            |(volume, source): (&String, &String)| Member { volume: volume.clone(), source: source.clone() };
        let with = self.with.iter().map(member);
        let spec = VolumeSpec {
            host: self.host.clone().unwrap_or_else(|| host.to_owned()),
            source: self.source.clone(),
            with: with.collect(),
            target: self.target.clone(),
            chunker,
            schedule,
            retention: (retention != RetentionSpec::default()).then_some(retention),
            rpo_ms: millis(&self.rpo)?,
        };
        spec.check(name).map_err(invalid)?;
        Ok(spec)
    }
}

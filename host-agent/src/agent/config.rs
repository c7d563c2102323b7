//! What a host lets its agent do, and how.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use strongroom_vault::{VaultError, VaultResult};

use crate::cli::parse_bytes;
use crate::commands::cores;
use crate::host::{Place, RestoreTo, Volume};

/// The table `[agent]` of the configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct AgentConfig {
    /// Files, devices and folders that may be backed up. Nothing else is read, whatever a message says.
    pub sources: Vec<PathBuf>,
    /// Files, devices and folders that may be restored to. Nothing else is written.
    pub destinations: Vec<PathBuf>,
    /// Whether sources are read as they are, without a snapshot and even if they are written to meanwhile.
    pub live: bool,
    /// Whether sources may be images in qemu's formats: such an image may name others that it is based on, anywhere on this host,
    /// and those are read as well. Destinations too: no others are named there, but qemu's tools run.
    pub images: bool,
    /// Whether sources that can are made to take note of what changes, so that only that is read: qcow2 images get a bitmap for it.
    pub track_changes: bool,
    /// Runs worked on at once.
    pub concurrency: usize,
    /// Worker threads of one run; one for each core if 0.
    pub workers: usize,
    /// Memory that all runs together are to get along with, bytes, written as "1GiB": fewer are worked on at once if it is
    /// short. Always one.
    #[serde(deserialize_with = "bytes")]
    pub memory: Option<u64>,
    /// Time between two signs of life of a run, seconds. After six of them in silence somebody else takes it up.
    pub heartbeat_seconds: u64,
    /// How long runs may go on after a request to stop, seconds. What is not done by then is taken up again later.
    pub drain_seconds: u64,
    /// Where metrics are served for Prometheus, such as 127.0.0.1:9187; nowhere if not set.
    pub metrics: Option<std::net::SocketAddr>,
    /// Sockets of QEMU guest agents, by the volumes whose guests are to stand still while a snapshot is made.
    pub guest_agents: BTreeMap<String, PathBuf>,
    /// Commands around each backup.
    pub hooks: Hooks,
}

/// Commands around each backup. They get STRONGROOM_VOLUME, STRONGROOM_SOURCE and STRONGROOM_RUN.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Hooks {
    /// Before: to freeze a file system, say. If it fails there is no backup.
    pub before: Vec<String>,
    /// After, whatever came of the backup and of the command before; once there is a snapshot, if the source can have one.
    pub after: Vec<String>,
    /// How long each may take, seconds.
    pub timeout_seconds: u64,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            destinations: Vec::new(),
            live: false,
            images: false,
            track_changes: false,
            concurrency: 2,
            workers: 0,
            memory: None,
            heartbeat_seconds: 20,
            drain_seconds: 30,
            metrics: None,
            guest_agents: BTreeMap::new(),
            hooks: Hooks::default(),
        }
    }
}

impl Default for Hooks {
    fn default() -> Self {
        Self { before: Vec::new(), after: Vec::new(), timeout_seconds: 60 }
    }
}

/// Memory that a run takes however many workers it has: packs on their way, blocks of a restore, the index.
const RUN_BYTES: u64 = 160 << 20;
/// And for each worker.
const WORKER_BYTES: u64 = 24 << 20;

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_bytes(&text).map(Some).map_err(serde::de::Error::custom)
}

/// Heartbeats in silence after which whoever works on a run counts as gone.
const SILENT_HEARTBEATS: u64 = 6;

impl AgentConfig {
    /// Worker threads of one run.
    pub fn workers(&self) -> usize {
        if self.workers == 0 { cores() } else { self.workers }
    }

    /// Runs that are worked on at once: as many as are allowed and as memory is there for.
    pub fn runs_at_once(&self) -> usize {
        let run_bytes = RUN_BYTES + WORKER_BYTES * self.workers() as u64;
        let fit = self.memory.map_or(u64::MAX, |memory| memory / run_bytes);
        self.concurrency.min(usize::try_from(fit).unwrap_or(usize::MAX)).max(1)
    }

    /// Time between two signs of life.
    pub fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.heartbeat_seconds.max(1))
    }

    /// After so long without one, whoever works on a run counts as gone, milliseconds.
    pub fn silent_ms(&self) -> u64 {
        self.heartbeat_seconds.max(1) * SILENT_HEARTBEATS * 1000
    }

    /// How long a message is kept from others at a time.
    pub fn visibility(&self) -> Duration {
        Duration::from_millis(self.silent_ms())
    }

    /// Finds what a message calls a source, if it may be read.
    ///
    /// # Errors
    /// `Invalid` if it may not; `Io` if it is not there.
    pub fn source(&self, text: &str) -> VaultResult<Volume> {
        let volume: Volume = text.parse().map_err(VaultError::Invalid)?;
        if volume.names_others() && !self.images {
            return Err(VaultError::Invalid(
                "this host lets its agent read images in qemu's formats only with images = true under [agent] in its \
                 configuration file"
                    .to_owned(),
            ));
        }
        let path = match volume.place() {
            Place::Path(path) => path,
            Place::Name(name) if self.sources.iter().any(|entry| has_name(entry, name)) => return Ok(volume),
            Place::Name(name) => return Err(not_listed("read", "sources", &name)),
        };
        let found = path.canonicalize().map_err(|error| VaultError::io("opening", path, error))?;
        allowed(&self.sources, &found, "sources", "read")?;
        Ok(volume.at(found).unwrap_or(volume))
    }

    /// Finds what a message calls a destination, if it may be written.
    ///
    /// # Errors
    /// `Invalid` if it may not; `Io` if its folder is not there.
    pub fn destination(&self, text: &str) -> VaultResult<RestoreTo> {
        let destination: RestoreTo = text.parse().map_err(VaultError::Invalid)?;
        if matches!(destination, RestoreTo::Image { .. }) && !self.images {
            return Err(VaultError::Invalid(
                "this host lets its agent make images in qemu's formats only with images = true under [agent] in its \
                 configuration file"
                    .to_owned(),
            ));
        }
        let path = match destination.place() {
            Place::Path(path) => path,
            Place::Name(name) if self.destinations.iter().any(|entry| has_name(entry, name)) => {
                return Ok(destination);
            }
            Place::Name(name) => return Err(not_listed("write", "destinations", &name)),
        };
        let error = |error| VaultError::io("opening", path, error);
        let found = match (path.canonicalize(), path.parent(), path.file_name()) {
            (Ok(found), ..) => found,
            // It is made: its folder must be there.
            (Err(_), Some(folder), Some(name)) => folder.canonicalize().map_err(error)?.join(name),
            (Err(reason), ..) => return Err(error(reason)),
        };
        allowed(&self.destinations, &found, "destinations", "write")?;
        Ok(destination.at(found))
    }
}

fn allowed(list: &[PathBuf], found: &Path, name: &str, verb: &str) -> VaultResult<()> {
    // Where an entry is not there (any more), nothing can lie in it.
    let entries = list.iter().filter_map(|entry| entry.canonicalize().ok());
    if entries.into_iter().any(|entry| found.starts_with(entry)) {
        return Ok(());
    }
    Err(not_listed(verb, name, &found.display()))
}

fn not_listed(verb: &str, name: &str, what: &impl Display) -> VaultError {
    VaultError::Invalid(format!(
        "this host lets its agent {verb} only what [agent] {name} in its configuration file lists; '{what}' is not in it"
    ))
}

/// Whether an entry is the name of a volume, or that of what it is in: `zfs:tank` for `zfs:tank/vms/db`.
fn has_name(entry: &Path, name: &str) -> bool {
    let rest = entry.to_str().and_then(|entry| name.strip_prefix(entry));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_runs_at_once_than_memory_is_there_for() {
        let read = |text: &str| toml::from_str::<AgentConfig>(text).unwrap().runs_at_once();
        assert_eq!(read("concurrency = 5\nworkers = 2"), 5);
        assert_eq!(read("concurrency = 5\nworkers = 2\nmemory = \"1GiB\""), 4);
        assert_eq!(read("concurrency = 5\nworkers = 20\nmemory = \"1GiB\""), 1);
        assert_eq!(read("concurrency = 5\nworkers = 2\nmemory = \"1MiB\""), 1, "one always");
        assert!(toml::from_str::<AgentConfig>("memory = \"much\"").is_err());
    }

    #[test]
    fn only_what_is_listed_is_touched_whatever_it_is_called() {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        std::fs::create_dir(&images).unwrap();
        std::fs::write(images.join("a.img"), "a").unwrap();
        std::fs::write(folder.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink(folder.path().join("secret"), images.join("link")).unwrap();
        let config = AgentConfig {
            sources: vec![images.clone(), folder.path().join("missing")],
            destinations: vec![images.clone()],
            ..AgentConfig::default()
        };
        let path = |name: &str| images.join(name).display().to_string();
        assert!(config.source(&path("a.img")).is_ok());
        let named = AgentConfig {
            sources: vec!["zfs:tank/vms".into(), "iscsi://san/iqn.x:y".into()],
            ..AgentConfig::default()
        };
        for name in ["zfs:tank/vms", "zfs:tank/vms/db", "iscsi://san/iqn.x:y/1"] {
            assert!(named.source(name).is_ok(), "{name}");
        }
        for name in [
            "zfs:tank/vms2",
            "zfs:tank/db",
            "iscsi://san/iqn.x:yz/1",
            "iscsi-kernel://san/iqn.x:y/1",
            "lvm-thin:a/b",
        ] {
            assert!(named.source(name).is_err(), "{name}");
        }
        assert!(config.destination(&path("new.img")).is_ok());
        let pools = ["lvm-thin:vg/pool".into(), "zfs:tank/restored".into()];
        let pools = AgentConfig { destinations: pools.into(), ..AgentConfig::default() };
        for (name, is_allowed) in [
            ("lvm-thin:vg/pool/new", true),
            ("zfs:tank/restored/new", true),
            ("lvm-thin:vg/pool2/new", false),
            ("zfs:tank/new", false),
        ] {
            assert_eq!(pools.destination(name).is_ok(), is_allowed, "{name}");
        }
        for outside in
            [path("link"), path("../secret"), path("../images/../secret"), "/etc/hostname".to_owned()]
        {
            assert!(config.source(&outside).is_err(), "{outside}");
            assert!(config.destination(&outside).is_err(), "{outside}");
        }
        assert!(config.destination(&path("no/such/folder")).is_err());
        assert!(AgentConfig::default().source(&path("a.img")).is_err(), "nothing is listed");
        let image = format!("qemu:qcow2:{}", path("a.img"));
        assert!(config.source(&image).is_err(), "images name other files");
        let new_image = format!("qemu:qcow2:{}", path("new.qcow2"));
        assert!(config.destination(&new_image).is_err());
        assert!(config.destination("qemu:").is_err());
        let config = AgentConfig { images: true, ..config };
        assert!(config.source(&image).is_ok());
        assert_eq!(config.destination(&new_image).unwrap().to_string(), new_image);
        let export = format!("nbd+unix:///disk?socket={}", path("socket"));
        assert_eq!(config.destination(&export).unwrap().to_string(), export);
        for outside in [path("link"), path("../secret")] {
            assert!(config.source(&format!("qemu:qcow2:{outside}")).is_err(), "{outside}");
            assert!(config.source(&format!("nbd+unix:///?socket={outside}")).is_err(), "{outside}");
            assert!(config.destination(&format!("qemu:qcow2:{outside}")).is_err(), "{outside}");
            assert!(config.destination(&format!("nbd+unix:///?socket={outside}")).is_err(), "{outside}");
        }
    }
}

//! From options, environment and configuration file to an unlocked target.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use strongroom_aws::AwsSettings;
use strongroom_connect::Kms;
use strongroom_fleet::settings::TargetEntry;
use strongroom_store::{Allowance, Bandwidth, Counters, Limit};
use strongroom_vault::target::{KekProvider, open};
use strongroom_vault::witness::FolderWitness;
use strongroom_vault::{Context, Target, VaultError, VaultResult};
use zeroize::Zeroizing;

use crate::agent::AgentConfig;
use crate::cli::{Global, parse_bytes};
use crate::fleet::VolumeConfig;
use crate::host::{Chap, SnapshotRequest, Tracking};
use crate::keys::{KeyFile, Passphrase};

/// The configuration file: the same names as the options.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConfigFile {
    target: Option<String>,
    key_file: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
    kms_key: Option<String>,
    restore_kms_key: Option<String>,
    endpoint_url: Option<String>,
    region: Option<String>,
    cache_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    host: Option<String>,
    queues: Option<String>,
    upload_limit: Option<String>,
    download_limit: Option<String>,
    console: Option<SocketAddr>,
    /// What the agent may do on this host.
    #[serde(default)]
    agent: AgentConfig,
    /// Whom targets of iSCSI let in, by their names.
    #[serde(default)]
    iscsi: std::collections::BTreeMap<String, Chap>,
    /// Volumes that `strongroom up` sees to.
    #[serde(default)]
    volumes: std::collections::BTreeMap<String, VolumeConfig>,
    /// Named targets: `--target NAME` takes their settings.
    #[serde(default)]
    pub targets: std::collections::BTreeMap<String, NamedTarget>,
}

/// A target that the configuration file names.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NamedTarget {
    /// Its address.
    pub target: String,
    key_file: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
    kms_key: Option<String>,
    restore_kms_key: Option<String>,
    endpoint_url: Option<String>,
    region: Option<String>,
}

/// All settings, whatever they came from. Flags win over the environment, and both over the configuration file.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The options with the configuration file's values filled in.
    pub global: Global,
    /// The targets that the configuration file names.
    pub targets: std::collections::BTreeMap<String, NamedTarget>,
    /// What the agent may do on this host.
    pub agent: AgentConfig,
    /// Whom targets of iSCSI let in, by their names.
    pub iscsi: std::collections::BTreeMap<String, Chap>,
    /// Volumes that `strongroom up` sees to.
    pub volumes: std::collections::BTreeMap<String, VolumeConfig>,
    /// Where the console of `strongroom up` listens, if the configuration file says.
    pub console: Option<SocketAddr>,
    passphrase: Option<Zeroizing<String>>,
    /// What this process may send and receive, to and from all targets together.
    allowance: Allowance,
}

impl Settings {
    /// Reads the configuration file and fills in what options and environment leave open.
    ///
    /// # Errors
    /// `Invalid` for a file that can't be read or understood.
    pub fn load(mut global: Global) -> VaultResult<Self> {
        let file = match config_path(&global) {
            None => ConfigFile::default(),
            Some(path) => {
                let text = std::fs::read_to_string(&path)
                    .map_err(|error| VaultError::io("reading configuration file", &path, error))?;
                toml::from_str(&text)
                    .map_err(|error| VaultError::Invalid(format!("{}: {error}", path.display())))?
            }
        };
        let named =
            global.target.as_ref().or(file.target.as_ref()).and_then(|name| file.targets.get(name)).cloned();
        if let Some(named) = named {
            fill_key(&mut global, named.keys());
            global.target = Some(named.target);
            global.endpoint_url = global.endpoint_url.or(named.endpoint_url);
            global.region = global.region.or(named.region);
        }
        fill_key(
            &mut global,
            Keys {
                key_file: file.key_file,
                passphrase_file: file.passphrase_file,
                kms_key: file.kms_key,
                restore_kms_key: file.restore_kms_key,
            },
        );
        global.target = global.target.or(file.target);
        global.endpoint_url = global.endpoint_url.or(file.endpoint_url);
        global.region = global.region.or(file.region);
        global.cache_dir = global.cache_dir.or(file.cache_dir).or_else(default_cache_dir);
        global.state_dir = global.state_dir.or(file.state_dir).or_else(default_state_dir);
        global.host = global.host.or(file.host);
        global.queues = global.queues.or(file.queues);
        global.upload_limit = global.upload_limit.or(limit("upload-limit", file.upload_limit.as_deref())?);
        global.download_limit =
            global.download_limit.or(limit("download-limit", file.download_limit.as_deref())?);
        let bandwidth = Bandwidth { upload: global.upload_limit, download: global.download_limit };
        let passphrase = std::env::var("STRONGROOM_PASSPHRASE").ok().map(Zeroizing::new);
        Ok(Self {
            global,
            targets: file.targets,
            agent: file.agent,
            iscsi: file.iscsi,
            volumes: file.volumes,
            console: file.console,
            passphrase,
            allowance: Allowance::new(bandwidth),
        })
    }

    /// How a volume is to be read, by what is set for this host.
    pub fn snapshot_request(&self, live: bool, tracking: Option<Tracking>) -> SnapshotRequest {
        SnapshotRequest { live, tracking, chap: self.iscsi.clone(), notes: self.notes() }
    }

    /// Where it is noted what is to be ended should this process be killed.
    pub fn notes(&self) -> PathBuf {
        self.global.state_dir.clone().unwrap_or_else(std::env::temp_dir).join("hosts")
    }

    /// The settings for a target of the fleet: what the configuration file says of a target of that name, else the
    /// fleet's address with the key of the home.
    pub fn for_target(&self, name: &str, entry: &TargetEntry) -> Self {
        let mut settings = self.clone();
        let global = &mut settings.global;
        match self.targets.get(name).cloned() {
            Some(named) => {
                let keys = named.keys();
                global.target = Some(named.target);
                if keys.are_named() {
                    put_key(global, Keys::default());
                }
                fill_key(global, keys);
                global.endpoint_url = named.endpoint_url.or(global.endpoint_url.take());
                global.region = named.region.or(global.region.take());
            }
            None => {
                global.target = Some(entry.address.clone());
                if entry.kms_key.is_some() {
                    put_key(global, Keys { kms_key: entry.kms_key.clone(), ..Keys::default() });
                }
                global.region = entry.region.clone().or(global.region.take());
            }
        }
        settings
    }

    /// What this host calls itself.
    pub fn host(&self) -> String {
        let named =
            || std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
        self.global.host.clone().unwrap_or_else(|| named().unwrap_or_else(|_| "unknown".to_owned()))
    }

    /// The key that the options name; `create` makes a key file that is not there.
    ///
    /// # Errors
    /// `Invalid` if none is named.
    pub async fn kek(&self, create: bool) -> VaultResult<Box<dyn KekProvider>> {
        if let Some(path) = &self.global.key_file {
            let path = path.clone();
            return Ok(Box::new(if create { KeyFile::created(path) } else { KeyFile::existing(path) }));
        }
        if let Some(path) = &self.global.passphrase_file {
            return Ok(Box::new(Passphrase::read(path)?));
        }
        if let Some(key_id) = &self.global.kms_key {
            return Ok(Box::new(self.kms(key_id, self.global.restore_kms_key.as_deref()).await));
        }
        if let Some(text) = &self.passphrase {
            return Ok(Box::new(Passphrase::new(text.clone())?));
        }
        Err(VaultError::Invalid(
            "no key given: say --key-file FILE (or STRONGROOM_KEY_FILE), --passphrase-file FILE (or \
             STRONGROOM_PASSPHRASE), or --kms-key KEY"
                .to_owned(),
        ))
    }

    /// A key in AWS KMS, with another one for the restore secrets if it is named.
    pub async fn kms(&self, key_id: &str, restore_key_id: Option<&str>) -> Kms {
        Kms::apart(self.aws(), key_id, restore_key_id).await
    }

    /// How AWS is reached.
    pub fn aws(&self) -> AwsSettings {
        let Global { region, endpoint_url, .. } = self.global.clone();
        AwsSettings { region, endpoint_url }
    }

    /// The store that the target's address names. `create` makes the folder of a `file://` target.
    ///
    /// # Errors
    /// `Invalid` for an address that is none; `Store`.
    pub async fn context(&self, create: bool) -> VaultResult<(Context, Counters)> {
        let address = self.global.target.as_deref().ok_or_else(|| {
            VaultError::Invalid(
                "no target given: say --target file:///path or --target s3://bucket/prefix (or STRONGROOM_TARGET)"
                    .to_owned(),
            )
        })?;
        let (context, counters) = strongroom_connect::context(address, create, self.aws()).await?;
        if self.allowance.is_unlimited() {
            return Ok((context, counters));
        }
        // Around what retries: what is sent again is not counted again, so that nothing times out while it waits.
        let store = Arc::new(Limit::new(Arc::clone(&context.store), self.allowance.clone()));
        Ok((Context { store, ..context }, counters))
    }

    /// Opens the target.
    ///
    /// # Errors
    /// Those of [`Settings::context`], [`Settings::kek`] and [`open`].
    pub async fn target(&self) -> VaultResult<(Target, Counters)> {
        let kek = self.kek(false).await?;
        let (context, counters) = self.context(false).await?;
        let target = open(context, kek.as_ref()).await?;
        let target = match &self.global.state_dir {
            Some(folder) => target.witnessed_by(Arc::new(FolderWitness::new(folder.join("seen")))),
            None => target,
        };
        Ok((target, counters))
    }
}

fn limit(name: &str, text: Option<&str>) -> VaultResult<Option<u64>> {
    let bad = |reason| VaultError::Invalid(format!("{name} in the configuration file: {reason}"));
    text.map(parse_bytes).transpose().map_err(bad)
}

/// The ways to name what opens a target. Restore secrets under a key of their own go with the KMS key beside them.
#[derive(Debug, Default)]
struct Keys {
    key_file: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
    kms_key: Option<String>,
    restore_kms_key: Option<String>,
}

impl Keys {
    const fn are_named(&self) -> bool {
        self.key_file.is_some() || self.passphrase_file.is_some() || self.kms_key.is_some()
    }
}

impl NamedTarget {
    fn keys(&self) -> Keys {
        Keys {
            key_file: self.key_file.clone(),
            passphrase_file: self.passphrase_file.clone(),
            kms_key: self.kms_key.clone(),
            restore_kms_key: self.restore_kms_key.clone(),
        }
    }
}

/// Takes a key from further back only where none was named so far.
fn fill_key(global: &mut Global, keys: Keys) {
    if global.key_file.is_none() && global.passphrase_file.is_none() && global.kms_key.is_none() {
        let restore_kms_key = global.restore_kms_key.take().or_else(|| keys.restore_kms_key.clone());
        put_key(global, Keys { restore_kms_key, ..keys });
    }
}

fn put_key(global: &mut Global, keys: Keys) {
    global.key_file = keys.key_file;
    global.passphrase_file = keys.passphrase_file;
    global.kms_key = keys.kms_key;
    global.restore_kms_key = keys.restore_kms_key;
}

fn config_path(global: &Global) -> Option<PathBuf> {
    if global.config.is_some() {
        return global.config.clone();
    }
    let own = user_dir("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("strongroom/config.toml"));
    own.into_iter().chain([PathBuf::from("/etc/strongroom/config.toml")]).find(|path| path.exists())
}

fn default_cache_dir() -> Option<PathBuf> {
    user_dir("XDG_CACHE_HOME", ".cache").map(|dir| dir.join("strongroom"))
}

fn default_state_dir() -> Option<PathBuf> {
    user_dir("XDG_STATE_HOME", ".local/state").map(|dir| dir.join("strongroom"))
}

fn user_dir(variable: &str, in_home: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(variable).or_else(|| set("HOME").map(|home| home.join(in_home)))
}

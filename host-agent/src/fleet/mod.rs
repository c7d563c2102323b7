//! A fleet as this process sees it: its home, its targets and its queues.

mod console;
mod functions;
mod http;
mod volumes;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use strongroom_connect::Queues;
use strongroom_fleet::metric::Unmetered;
use strongroom_fleet::settings::TargetEntry;
use strongroom_fleet::{Home, Service, Targets};
use strongroom_vault::{Target, VaultError, VaultResult};
use tokio::sync::Mutex;

use crate::open::Settings;

pub use console::Console;
pub use functions::{Pace, pause_after, run_functions};
pub use volumes::VolumeConfig;

/// How long a handler of `up` may take, milliseconds. Its messages are kept from others, and its runs count as being worked on,
/// for twice as long.
pub const HANDLER_TIME_MS: u64 = 60_000;

/// Opens the home and the queues that the settings name.
///
/// # Errors
/// `Invalid` without queues; those of opening a target.
pub async fn open(settings: &Settings) -> VaultResult<(Service, Arc<Queues>)> {
    let address = settings.global.queues.as_deref().ok_or_else(|| {
        VaultError::Invalid(
            "no queues given: say --queues file:///path or sqs://PREFIX (or STRONGROOM_QUEUES, or queues = in the configuration file)"
                .to_owned(),
        )
    })?;
    let queues = Arc::new(Queues::at(address, settings.aws()).await?);
    let (home, _) = settings.target().await?;
    let home = Home::new(home);
    let targets = FleetTargets { home: home.clone(), settings: settings.clone(), opened: Mutex::default() };
    let outbox = Arc::clone(&queues);
    Ok((
        Service {
            home,
            targets: Arc::new(targets),
            outbox,
            meter: Arc::new(Unmetered),
            silent_ms: 2 * HANDLER_TIME_MS,
        },
        queues,
    ))
}

/// The targets of a fleet, opened when they are asked for, with keys from this process's own settings; opened again when the
/// fleet says something else of them.
struct FleetTargets {
    home: Home,
    settings: Settings,
    opened: Mutex<HashMap<String, (TargetEntry, Target)>>,
}

impl fmt::Debug for FleetTargets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetTargets").finish_non_exhaustive()
    }
}

#[async_trait]
impl Targets for FleetTargets {
    async fn open(&self, name: Option<&str>) -> VaultResult<Target> {
        let Some(name) = name else { return Ok(self.home.target().clone()) };
        let settings = self.home.settings().await?;
        let entry = settings
            .targets
            .get(name)
            .ok_or_else(|| VaultError::Invalid(format!("the fleet knows no target '{name}'")))?;
        if let Some((known, target)) = self.opened.lock().await.get(name)
            && known == entry
        {
            return Ok(target.clone());
        }
        let (target, _) = self.settings.for_target(name, entry).target().await?;
        self.opened.lock().await.insert(name.to_owned(), (entry.clone(), target.clone()));
        Ok(target)
    }
}

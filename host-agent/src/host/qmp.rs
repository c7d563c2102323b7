//! QEMU's machine protocol (qemu, `docs/interop/qmp-spec.rst`).

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use strongroom_vault::VaultResult;

use super::failed;
use super::orders::Orders;
use super::owner::Own;

/// The longest answer, bytes: a machine with hundreds of disks.
const MAX_LINE_BYTES: u64 = 16 << 20;
/// How long jobs may take to end that were told to.
const JOB_PATIENCE: Duration = Duration::from_secs(60);
/// Lines other than the answer that may come before it: events, and answers to somebody who was cut off.
const MAX_OTHERS: usize = 100_000;

/// A connection to a machine's monitor.
///
/// What a killed process had asked for may be answered to whoever comes next. So each command has an id that nobody had before, and its answer
/// is the one that has the same.
#[derive(Debug)]
pub struct Qmp {
    orders: Orders,
    /// What the ids of commands begin with, before their numbers.
    own: Own,
    commands: u64,
}

impl Qmp {
    /// Connects to a monitor; a monitor has time for one at once.
    ///
    /// # Errors
    /// `Io`.
    pub fn connect(socket: &Path) -> VaultResult<Self> {
        let mut orders = Orders::connect(socket, MAX_LINE_BYTES)?;
        let greeting = orders.line().map_err(|error| {
            failed(
                "connecting to",
                socket,
                format!("no greeting of a QMP monitor; perhaps somebody else is connected to it: {error}"),
            )
        })?;
        if greeting.get("QMP").is_none() {
            return Err(failed("connecting to", socket, "it is no QMP monitor"));
        }
        let mut qmp = Self { orders, own: Own::new(), commands: 0 };
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// The socket, for what its other end is.
    pub fn stream(&self) -> &UnixStream {
        self.orders.stream()
    }

    /// Has a command run, and gives what it returns.
    ///
    /// # Errors
    /// `Io`, with the machine's words.
    #[expect(clippy::needless_pass_by_value, reason = "made for the call")]
    pub fn run(&mut self, command: &str, arguments: Value) -> VaultResult<Value> {
        self.commands += 1;
        let id = format!("{}-{}", self.own, self.commands);
        self.orders.give(&json!({ "execute": command, "arguments": arguments, "id": id }))?;
        for _ in 0..MAX_OTHERS {
            let mut answer = self.orders.line()?;
            if answer["id"] != id.as_str() {
                continue;
            }
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
            if let Some(error) = answer.get("error") {
                let why = error["desc"].as_str().unwrap_or("it does not say why");
                return Err(self.orders.failed(format!("{command}: {why}")));
            }
        }
        Err(self.orders.failed(format!("{command}: no answer among all that comes")))
    }

    /// Ends jobs, and waits until they have.
    ///
    /// # Errors
    /// `Io`, also for one that does not end.
    pub fn cancel(&mut self, is_meant: impl Fn(&str) -> bool) -> VaultResult<()> {
        let begun = Instant::now();
        loop {
            let jobs = self.run("query-jobs", json!({}))?;
            let jobs = jobs.as_array().into_iter().flatten();
            let meant = jobs.filter_map(|job| job["id"].as_str()).filter(|id| is_meant(id));
            let meant: Vec<String> = meant.map(str::to_owned).collect();
            if meant.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > JOB_PATIENCE {
                return Err(self.orders.failed(format!("the job {} does not end", meant[0])));
            }
            for id in meant {
                // It may be on its way out, and take no more orders.
                let _ = self.run("job-cancel", json!({ "id": id }));
                let _ = self.run("job-dismiss", json!({ "id": id }));
            }
            sleep(Duration::from_millis(20));
        }
    }
}

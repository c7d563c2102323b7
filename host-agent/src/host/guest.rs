//! QEMU's guest agent: filesystems of a guest that stand still for a moment (qemu, `docs/interop/qemu-ga-ref.rst`).

use std::path::Path;

use serde_json::{Value, json};
use strongroom_vault::VaultResult;
use tracing::{info, warn};

use super::orders::Orders;

/// The longest answer, bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Answers to others that may come before ours.
const MAX_STALE: usize = 100;
/// What the agent begins its answer with that is asked to mark where it begins.
const MARK: u8 = 0xff;

/// A guest whose filesystems stand still, until this is dropped.
#[derive(Debug)]
pub struct Frozen {
    orders: Orders,
    thawed: bool,
}

impl Frozen {
    /// Has a guest write out what it has in memory, and write no more.
    ///
    /// # Errors
    /// `Io`, with the agent's words; then nothing stands still.
    pub fn freeze(socket: &Path) -> VaultResult<Self> {
        let mut guest = Self { orders: Orders::connect(socket, MAX_LINE_BYTES)?, thawed: true };
        guest.meet()?;
        // Whatever it answers, or if it does not: some may stand still by now.
        guest.thawed = false;
        let frozen = guest.run("guest-fsfreeze-freeze", &json!({}))?;
        info!(guest = %socket.display(), filesystems = %frozen, "the guest's filesystems stand still");
        Ok(guest)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// `Io`, with the agent's words.
    pub fn thaw(mut self) -> VaultResult<()> {
        self.let_go()
    }

    fn let_go(&mut self) -> VaultResult<()> {
        if std::mem::replace(&mut self.thawed, true) {
            return Ok(());
        }
        self.run("guest-fsfreeze-thaw", &json!({})).map(|_| ())
    }

    /// Agrees on where answers begin: the channel may hold those to somebody who was cut off.
    fn meet(&mut self) -> VaultResult<()> {
        let id = u64::from(std::process::id());
        self.orders.send(&[MARK])?;
        self.give("guest-sync-delimited", &json!({ "id": id }))?;
        for _ in 0..MAX_STALE {
            if self.orders.until(MARK)?.last() != Some(&MARK) {
                break;
            }
            if self.orders.line()?["return"] == id {
                return Ok(());
            }
        }
        Err(self.orders.failed("no guest agent answers"))
    }

    fn give(&mut self, command: &str, arguments: &Value) -> VaultResult<()> {
        self.orders.give(&json!({ "execute": command, "arguments": arguments }))
    }

    fn run(&mut self, command: &str, arguments: &Value) -> VaultResult<Value> {
        self.give(command, arguments)?;
        let mut answer = self.orders.line()?;
        match answer.get_mut("return") {
            Some(returned) => Ok(returned.take()),
            None => {
                let why = answer["error"]["desc"].as_str().unwrap_or("it does not say why");
                Err(self.orders.failed(format!("{command}: {why}")))
            }
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            warn!(%error, "the guest may stand still; let it go on with guest-fsfreeze-thaw");
        }
    }
}

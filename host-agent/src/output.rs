//! What people and machines read.
//!
//! Invariant: standard output carries results only (with `--json`, one event a line); progress and what is said to
//! people go to standard error.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
pub use strongroom_fleet::text::{bytes, time};
use strongroom_vault::Progress;

/// How often progress is shown or told.
const TICK: Duration = Duration::from_millis(200);
/// Every so many ticks an event of progress is told.
const TICKS_PER_EVENT: u32 = 5;

/// Where output goes.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// Events for machines instead of text for people.
    pub json: bool,
    /// Nothing but results and errors.
    pub quiet: bool,
}

impl Output {
    /// Prints a result: `text` for people, `event` for machines.
    pub fn result(&self, text: &str, event: &Value) {
        let line = if self.json { event.to_string() } else { text.to_owned() };
        let mut out = std::io::stdout().lock();
        // A reader that went away (a closed pipe) is no failure of ours.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }

    /// Says something to people.
    pub fn say(&self, text: &str) {
        if !self.quiet && !self.json {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
    }

    /// Shows the progress of an operation until the returned guard is dropped.
    pub fn watch(&self, what: &'static str, progress: &Arc<Progress>) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let terminal = std::io::stderr().is_terminal() && !self.quiet && !self.json;
        let watcher = (terminal || self.json).then(|| {
            let (stop, progress, json) = (Arc::clone(&stop), Arc::clone(progress), self.json);
            std::thread::spawn(
                move || if json { tell(what, &progress, &stop) } else { show(what, &progress, &stop) },
            )
        });
        Watch { stop, watcher }
    }
}

/// Ends the display of progress when dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    watcher: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(watcher) = self.watcher.take() {
            watcher.thread().unpark();
            // A display that panicked has nothing more to show.
            let _ = watcher.join();
        }
    }
}

fn show(what: &'static str, progress: &Progress, stop: &AtomicBool) {
    let bar = ProgressBar::no_length();
    let known = "{prefix:>8} {bar:24} {percent:>3} % {binary_bytes:>10} of {binary_total_bytes} at {binary_bytes_per_sec}, {eta} left  {msg}";
    let unknown = "{prefix:>8} {spinner} {binary_bytes:>10} at {binary_bytes_per_sec}  {msg}";
    bar.set_prefix(what);
    while !stop.load(Relaxed) {
        let total = Progress::read(&progress.total_bytes);
        let template = if total > 0 { known } else { unknown };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        if total > 0 {
            bar.set_length(total);
        }
        bar.set_position(Progress::read(&progress.done_bytes));
        bar.set_message(format!(
            "new {}, transferred {}",
            bytes(Progress::read(&progress.new_bytes)),
            bytes(Progress::read(&progress.stored_bytes))
        ));
        std::thread::park_timeout(TICK);
    }
    bar.finish_and_clear();
}

fn tell(what: &'static str, progress: &Progress, stop: &AtomicBool) {
    let mut ticks = 0;
    while !stop.load(Relaxed) {
        std::thread::park_timeout(TICK);
        ticks += 1;
        if ticks % TICKS_PER_EVENT == 0 && !stop.load(Relaxed) {
            let event = json!({
                "event": "progress", "operation": what,
                "done_bytes": Progress::read(&progress.done_bytes),
                "total_bytes": Progress::read(&progress.total_bytes),
                "new_bytes": Progress::read(&progress.new_bytes),
                "transferred_bytes": Progress::read(&progress.stored_bytes),
            });
            let _ = writeln!(std::io::stdout().lock(), "{event}");
        }
    }
}

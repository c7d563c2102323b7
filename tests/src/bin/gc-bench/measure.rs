//! Measures one collection.
//!
//! Invariant: memory is the most that this process held during the collection, less what it held before (a store in
//! memory holds the catalog).

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use strongroom_store::Counters;
use strongroom_vault::Target;
use strongroom_vault::collect::{CollectOptions, CollectReport, run};

/// What a collection took.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub seconds: f64,
    pub peak_bytes: u64,
    pub requests: u64,
    pub read_bytes: u64,
}

/// What is measured.
pub struct Measured {
    pub target: Target,
    pub counters: Counters,
}

impl Measured {
    /// Collects once, and prints what it took.
    pub async fn collect(&self, title: &str, options: &CollectOptions) -> Result<Figures> {
        let before = self.counters.snapshot();
        // Resets the high-water mark (proc(5)).
        fs::write("/proc/self/clear_refs", "5").context("resetting the peak of memory")?;
        let held_before = status_bytes("VmRSS")?;
        let started = Instant::now();
        let report = run(&self.target, options).await?;
        let seconds = started.elapsed().as_secs_f64();
        let peak_bytes = status_bytes("VmHWM")?.saturating_sub(held_before);
        let counts = self.counters.snapshot().since(&before);
        say(&format!("\n{title}"));
        say(&format!("{counts}"));
        say(&format!("{seconds:.2} s, {} MiB more than before at the peak", peak_bytes >> 20));
        say(&described(&report));
        Ok(Figures { seconds, peak_bytes, requests: counts.total().calls, read_bytes: counts.read().bytes })
    }
}

fn described(report: &CollectReport) -> String {
    format!(
        "{} backups purged, {} objects condemned, {} deleted, {} packs rewritten, {} missing{}",
        report.purged.len(),
        report.condemned_objects,
        report.deleted_objects,
        report.rewritten_packs,
        report.missing.len(),
        if report.finished { "" } else { "; NOT finished" }
    )
}

fn status_bytes(field: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("reading the status of this process")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).context("no such field")?;
    Ok(kib.parse::<u64>()? << 10)
}

/// Prints a line.
pub fn say(line: &str) {
    #[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
    {
        println!("{line}");
    }
}

//! The state of a run, and the judgement of what processes did.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::ledger::{Entry, Ledger, Status};
use crate::process::{Ended, Program, Ward};
use crate::volume::Hash;

/// After the last process has ended, requests of killed ones may still be on their way in the server.
const SETTLE: Duration = Duration::from_secs(3);
/// Runs of the collector after which nothing unreachable may be left.
const LAST_COLLECTIONS: usize = 8;

/// A run.
#[derive(Debug)]
pub struct Run {
    /// How to run the program.
    pub program: Program,
    /// The running processes.
    pub ward: Ward,
    /// What is required.
    pub ledger: Ledger,
    /// Whether workers and tormentor rest.
    pub pause: AtomicBool,
    /// Whether all ends.
    pub stop: AtomicBool,
    /// Backups committed.
    pub backups: AtomicU64,
    /// Collections, verifications and rebuilds that ended well.
    pub housekeeping: AtomicU64,
    resting: AtomicUsize,
    endings: Mutex<BTreeMap<(String, String), u64>>,
    faults: Mutex<Vec<String>>,
    log: Mutex<File>,
    started: Instant,
}

impl Run {
    /// Begins a run in the program's folder.
    pub fn begin(program: Program) -> Result<Self> {
        for folder in ["outputs", "volumes", "caches"] {
            std::fs::create_dir_all(program.folder.join(folder))?;
        }
        // Whatever configuration the machine has stays out.
        File::create(program.folder.join("config.toml"))?;
        let log = Mutex::new(File::create(program.folder.join("soak.log"))?);
        Ok(Self {
            program,
            ward: Ward::default(),
            ledger: Ledger::default(),
            pause: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            backups: AtomicU64::new(0),
            housekeeping: AtomicU64::new(0),
            resting: AtomicUsize::new(0),
            endings: Mutex::default(),
            faults: Mutex::default(),
            log,
            started: Instant::now(),
        })
    }

    /// Rests while the run is paused; `false` at its end.
    pub fn rest_or_end(&self) -> bool {
        if self.pause.load(Relaxed) {
            self.resting.fetch_add(1, Relaxed);
            while self.pause.load(Relaxed) && !self.stop.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
            }
            self.resting.fetch_sub(1, Relaxed);
        }
        !self.stop.load(Relaxed)
    }

    /// Pauses the workers, and waits until each has ended what it does.
    pub fn quiet(&self, workers: &[std::thread::ScopedJoinHandle<'_, Result<()>>]) {
        self.pause.store(true, Relaxed);
        let at_work = || workers.iter().filter(|worker| !worker.is_finished()).count();
        while self.resting.load(Relaxed) < at_work() {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(SETTLE);
    }

    /// Writes a line to the log.
    pub fn log(&self, line: &str) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk shows elsewhere soon enough.
        let _ = writeln!(log, "{:9.3} {line}", self.started.elapsed().as_secs_f64());
    }

    /// Notes how a command ended.
    pub fn note(&self, who: &str, what: &str, args: &[&str], ended: &Ended) {
        let ending = match ended.code {
            None => "killed".to_owned(),
            Some(0) => "well".to_owned(),
            Some(code) => format!("exit {code}"),
        };
        self.log(&format!("{who}: {ending}: {} -> {}", args.join(" "), short(ended)));
        if ended.code.is_some_and(|code| code != 0) || !ended.stderr.is_empty() {
            self.log(&format!("{who}: {what} said: {}", ended.stderr));
        }
        let mut endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        *endings.entry((what.to_owned(), ending)).or_default() += 1;
    }

    /// Notes a backup that a process said it made.
    pub fn committed(&self, id: &str, volume: &str, hash: Hash) {
        self.ledger.committed(id, volume, hash);
        self.backups.fetch_add(1, Relaxed);
    }

    /// Notes what must never happen.
    pub fn fault(&self, text: String) {
        self.log(&format!("FAULT: {text}"));
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// Notes a lost backup.
    pub fn lost(&self, id: &str, reason: &str) {
        if self.ledger.lose(id) {
            self.fault(format!("lost backup {id}: {reason}"));
        }
    }

    /// All faults so far.
    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Judges a restore of a backup that was required when it began. Bytes that are there must be right, however it ended.
    pub fn judge_restore(&self, id: &str, before: &Entry, ended: &Ended, content: Option<Hash>) {
        match content {
            Some(hash) if !before.hashes.contains(&hash) => {
                self.lost(id, &format!("a restore that ended with {:?} gave wrong bytes", ended.code));
            }
            None if ended.well() => self.lost(id, "a restore ended well and gave nothing"),
            _ => {}
        }
        let still = self.ledger.get(id).is_some_and(|now| now.stamp == before.stamp);
        // 2: not found; 3: damaged or missing. Others say that it could not be tried.
        if still && matches!(ended.code, Some(2 | 3)) {
            self.lost(id, &format!("restore: {}", ended.stderr));
        }
    }

    fn undisturbed(&self, args: &[&str]) -> Result<Ended> {
        let ended = self.ward.run(&self.program, "judge", args)?;
        self.note("judge", &format!("judge: {}", args[0]), args, &ended);
        Ok(ended)
    }

    fn list(&self, extra: &[&str]) -> Result<Vec<Value>> {
        let ended = self.undisturbed(&[&["ls", "--json"], extra].concat())?;
        ensure!(ended.well(), "ls, with everything quiet: {}", ended.stderr);
        serde_json::from_slice(&ended.stdout).context("what ls --json printed")
    }

    /// With everything quiet: all that is required is listed and restorable, and the target verifies.
    pub fn judge(&self, verify: &[&str]) -> Result<()> {
        let mut live = Vec::new();
        for backup in self.list(&[])? {
            let text = |field: &str| backup[field].as_str().unwrap_or_default().to_owned();
            if self.ledger.seen(&text("id"), &text("volume")) {
                self.backups.fetch_add(1, Relaxed);
            }
            live.push(text("id"));
        }
        let trash: Vec<Value> = self.list(&["--trash"])?;
        for (id, _) in self.ledger.with(Status::Uncertain, None) {
            if !trash.iter().any(|backup| backup["id"] == id.as_str()) {
                self.ledger.forget(&id);
            }
        }
        for (id, entry) in self.ledger.with(Status::Required, None) {
            if !live.contains(&id) {
                self.lost(&id, "it is not listed");
                continue;
            }
            let ended = self.undisturbed(&["restore", &id, "-"])?;
            self.judge_restore(&id, &entry, &ended, ended.well().then(|| blake3::hash(&ended.stdout)));
            if !ended.well() {
                self.fault(format!("restore of {id}, with everything quiet: {}", ended.stderr));
            }
        }
        let verified = self.undisturbed(verify)?;
        if !verified.well() {
            self.fault(format!("{} found: {} {}", verify.join(" "), verified.text(), verified.stderr));
        }
        Ok(())
    }

    /// Collects until nothing is left to collect.
    pub fn collect_all(&self) -> Result<()> {
        let args = ["gc", "run", "--grace", "0s", "--orphan-age", "0s", "--session-age", "0s", "--json"];
        for _ in 0..LAST_COLLECTIONS {
            let ended = self.undisturbed(&args)?;
            if !ended.well() {
                self.fault(format!("gc, with everything quiet: {}", ended.stderr));
                return Ok(());
            }
            let report: Value = serde_json::from_str(ended.text().lines().last().unwrap_or_default())?;
            let counts = ["deleted_objects", "condemned_objects", "waiting_objects", "spared_objects"]
                .map(|f| &report[f]);
            if counts.iter().all(|count| **count == 0) {
                return Ok(());
            }
        }
        self.fault(format!("{LAST_COLLECTIONS} collections leave something to collect; see the log"));
        Ok(())
    }

    /// How commands ended, as a table.
    pub fn endings(&self) -> String {
        let endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = endings.iter().map(|((what, ending), count)| format!("{count:>7}  {what}: {ending}"));
        rows.collect::<Vec<_>>().join("\n")
    }
}

fn short(ended: &Ended) -> String {
    String::from_utf8_lossy(&ended.stdout[..ended.stdout.len().min(400)])
        .lines()
        .filter(|line| !line.contains('\u{fffd}') && !line.contains('\0'))
        .collect::<Vec<_>>()
        .join(" ")
}

//! What a host does, at random: back up, restore, remove, retain, collect, rebuild, verify.

use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::ledger::{Entry, Status};
use crate::process::Ended;
use crate::run::Run;
use crate::volume::{Volume, hash_file};

/// Grace and ages that collections run with: far less than a process is stopped for.
const GRACES: [&str; 3] = ["0s", "1s", "3s"];
/// How many backups of a volume retention keeps.
const KEEP_LAST: &str = "3";

/// A worker: one of several on a host, with volumes of its own.
#[derive(Debug)]
pub struct Worker<'a> {
    run: &'a Run,
    host: String,
    name: String,
    volumes: Vec<Volume>,
    rng: StdRng,
}

impl<'a> Worker<'a> {
    /// Makes a worker and its volumes. Two workers share a host, and with it a cache.
    pub fn create(run: &'a Run, number: u64, seed: u64) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add(number));
        let folder = run.program.folder.join("volumes");
        let volumes = (0..2)
            .map(|volume| Volume::create(&folder, format!("w{number}-v{volume}"), &mut rng, seed))
            .collect::<Result<_>>()?;
        Ok(Self { run, host: format!("host-{}", number / 2), name: format!("worker-{number}"), volumes, rng })
    }

    /// Works until the run ends; rests while it is paused.
    pub fn work(&mut self) -> Result<()> {
        while self.run.rest_or_end() {
            let volume = self.rng.random_range(0..self.volumes.len());
            match self.rng.random_range(0..100) {
                0..34 => self.back_up(volume)?,
                34..42 => self.back_up_twice(volume)?,
                42..60 => self.restore()?,
                60..67 => self.delete(volume)?,
                67..73 => self.undelete(volume)?,
                73..80 => self.retain(volume)?,
                80..93 => self.collect()?,
                93..96 => self.other("verify", &["verify"])?,
                96..98 => self.other("index rebuild", &["index", "rebuild"])?,
                _ => self.other("stats", &["stats"])?,
            }
        }
        Ok(())
    }

    fn command(&self, what: &str, args: &[&str]) -> Result<Ended> {
        let ended = self.run.ward.run(&self.run.program, &self.host, args)?;
        self.run.note(&self.name, what, args, &ended);
        Ok(ended)
    }

    /// Changes a volume and backs it up; when that is killed, as often as not the same again.
    fn back_up(&mut self, at: usize) -> Result<()> {
        self.volumes[at].change(&mut self.rng)?;
        loop {
            let volume = &self.volumes[at];
            let hash = volume.hash()?;
            self.run.ledger.attempt(&volume.name, hash);
            let image = volume.image.display().to_string();
            let ended = self.command("backup", &["backup", &image, "--volume", &volume.name])?;
            if ended.well() {
                self.run.committed(&ended.text(), &volume.name, hash);
                return Ok(());
            }
            if !ended.killed() || self.rng.random_bool(0.5) {
                return Ok(());
            }
        }
    }

    /// Backs up a volume with two processes at once, as an impatient operator does while one hangs.
    fn back_up_twice(&mut self, at: usize) -> Result<()> {
        self.volumes[at].change(&mut self.rng)?;
        let volume = &self.volumes[at];
        let hash = volume.hash()?;
        self.run.ledger.attempt(&volume.name, hash);
        let image = volume.image.display().to_string();
        let args = ["backup", image.as_str(), "--volume", &volume.name];
        let first = self.run.ward.start(&self.run.program, &self.host, &args)?;
        std::thread::sleep(std::time::Duration::from_millis(self.rng.random_range(0..1500)));
        let second = self.run.ward.start(&self.run.program, &self.host, &args)?;
        for started in [first, second] {
            let ended = started.end(&self.run.ward)?;
            self.run.note(&self.name, "backup, one of two", &args, &ended);
            if ended.well() {
                self.run.committed(&ended.text(), &volume.name, hash);
            }
        }
        Ok(())
    }

    fn restore(&mut self) -> Result<()> {
        let all = self.run.ledger.with(Status::Required, None);
        let Some((id, entry)) = all.choose(&mut self.rng) else { return Ok(()) };
        if self.rng.random_bool(0.3) {
            let ended = self.command("restore to a stream", &["restore", id, "-"])?;
            let content = ended.well().then(|| blake3::hash(&ended.stdout));
            self.run.judge_restore(id, entry, &ended, content);
            return Ok(());
        }
        let to = self.destination();
        let ended = self.command("restore", &["restore", id, &to.display().to_string()])?;
        let content = if to.exists() { Some(hash_file(&to)?) } else { None };
        if content.is_some() {
            std::fs::remove_file(&to)?;
        }
        self.run.judge_restore(id, entry, &ended, content);
        Ok(())
    }

    fn destination(&self) -> PathBuf {
        self.run.program.folder.join("outputs").join(format!("{}.restored", self.name))
    }

    fn pick(&mut self, at: usize, status: Status) -> Option<(String, Entry)> {
        self.run.ledger.with(status, Some(&self.volumes[at].name)).choose(&mut self.rng).cloned()
    }

    fn delete(&mut self, at: usize) -> Result<()> {
        let Some((id, _)) = self.pick(at, Status::Required) else { return Ok(()) };
        self.run.ledger.mark(&id, Status::Uncertain);
        let ended = self.command("delete", &["delete", &id])?;
        if ended.code == Some(2) {
            self.run.lost(&id, &format!("delete does not find it: {}", ended.stderr));
        }
        Ok(())
    }

    fn undelete(&mut self, at: usize) -> Result<()> {
        let Some((id, _)) = self.pick(at, Status::Uncertain) else { return Ok(()) };
        let ended = self.command("undelete", &["undelete", &id])?;
        match ended.code {
            Some(0) => self.run.ledger.mark(&id, Status::Required),
            // Collected meanwhile, as it may be.
            Some(2) => self.run.ledger.forget(&id),
            _ => {}
        }
        Ok(())
    }

    fn retain(&mut self, at: usize) -> Result<()> {
        let volume = self.volumes[at].name.clone();
        for (id, _) in self.run.ledger.with(Status::Required, Some(&volume)) {
            self.run.ledger.mark(&id, Status::Uncertain);
        }
        let args = ["retention", "run", "--keep-last", KEEP_LAST, "--volume", &volume, "--json"];
        let ended = self.command("retention", &args)?;
        if ended.well() {
            for line in ended.text().lines() {
                let decision: Value = serde_json::from_str(line)?;
                if let (Some(id), Some(true)) = (decision["id"].as_str(), decision["keep"].as_bool()) {
                    self.run.ledger.mark(id, Status::Required);
                }
            }
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<()> {
        let mut age = || *GRACES.choose(&mut self.rng).unwrap_or(&"0s");
        let (grace, session_age) = (age(), age());
        let ages = ["--grace", grace, "--orphan-age", "0s", "--session-age", session_age];
        self.other("gc", &[&["gc", "run"], ages.as_slice()].concat())
    }

    fn other(&mut self, what: &str, args: &[&str]) -> Result<()> {
        let ended = self.command(what, args)?;
        if ended.well() {
            self.run.housekeeping.fetch_add(1, Relaxed);
        }
        Ok(())
    }
}

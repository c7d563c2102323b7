//! Kills and stops processes at random moments.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::process::{Patient, Ward};

/// Of a hundred attacks, so many kill at once; the others stop the process first.
const KILLS_PERCENT: u32 = 55;
/// Of a hundred stopped processes, so many are killed instead of going on.
const KILLED_STOPPED_PERCENT: u32 = 15;
/// For how long a process is stopped, seconds: from longer than the session age and grace in use to many times that.
const STOP_SECONDS: std::ops::Range<f64> = 2.0..30.0;
/// A quiet phase waits this long at most for stopped processes: what is stopped goes on when it begins.
const LOOK: Duration = Duration::from_millis(50);

/// What was done to processes so far.
#[derive(Debug, Default)]
pub struct Score {
    /// Processes that a SIGKILL ended.
    pub kills: AtomicU64,
    /// Processes that were stopped.
    pub freezes: AtomicU64,
}

/// Torments until `stop` is set; holds off while `pause` is. `gap` is the mean time between two attacks.
pub fn torment(ward: &Ward, score: &Score, pause: &AtomicBool, stop: &AtomicBool, gap: Duration, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut stopped: Vec<(Arc<Patient>, Instant)> = Vec::new();
    let mut next = Instant::now();
    while !stop.load(Relaxed) {
        std::thread::sleep(LOOK);
        let quiet = pause.load(Relaxed);
        let now = Instant::now();
        stopped.retain(|(patient, until)| {
            if !quiet && now < *until {
                return true;
            }
            if rng.random_range(0..100) < KILLED_STOPPED_PERCENT && patient.kill() {
                score.kills.fetch_add(1, Relaxed);
            }
            patient.go_on();
            false
        });
        if quiet || now < next {
            continue;
        }
        next = now + gap.mul_f64(rng.random_range(0.2..1.8));
        // Some attacks come early in a process's life, some late; which one is left to chance and to the gap.
        let Some(patient) = ward.patients().choose(&mut rng).cloned() else { continue };
        if rng.random_range(0..100) < KILLS_PERCENT {
            score.kills.fetch_add(u64::from(patient.kill()), Relaxed);
        } else if patient.stop() {
            score.freezes.fetch_add(1, Relaxed);
            stopped.push((patient, now + Duration::from_secs_f64(rng.random_range(STOP_SECONDS))));
        }
    }
    for (patient, _) in stopped {
        patient.go_on();
    }
}

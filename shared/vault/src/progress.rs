//! What long operations count while they work, for whoever watches.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Counters of an operation in progress; read at any time from any thread.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes there are to work through; 0 while unknown.
    pub total_bytes: AtomicU64,
    /// Bytes worked through.
    pub done_bytes: AtomicU64,
    /// Bytes that were read (backup): without holes, and without what was known to be as it was.
    pub read_bytes: AtomicU64,
    /// Bytes of the volume that are not zeros.
    pub data_bytes: AtomicU64,
    /// Plaintext bytes that were new to the target.
    pub new_bytes: AtomicU64,
    /// Bytes of new frames.
    pub new_frame_bytes: AtomicU64,
    /// Bytes stored (backup) or fetched (restore, verify).
    pub stored_bytes: AtomicU64,
    /// Chunks seen.
    pub chunks: AtomicU64,
    /// Chunks that were new to the target.
    pub new_chunks: AtomicU64,
}

impl Progress {
    /// Reads one of the counters.
    pub fn read(counter: &AtomicU64) -> u64 {
        counter.load(Relaxed)
    }
}

impl Progress {
    /// Starts over, for another attempt at the same work.
    pub fn reset(&self) {
        for counter in [
            &self.done_bytes,
            &self.read_bytes,
            &self.data_bytes,
            &self.new_bytes,
            &self.new_frame_bytes,
            &self.stored_bytes,
            &self.chunks,
            &self.new_chunks,
        ] {
            counter.store(0, Relaxed);
        }
    }
}

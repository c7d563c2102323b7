//! Telling readers that go through an image from those that jump about in it.
//!
//! Invariant: nothing is fetched ahead for a reader before it went on from where it was several times in a row; what is
//! fetched ahead of one reader is at most a window, which grows as it goes on.

use std::ops::Range;

/// Readers that are told apart.
const MAX_STREAMS: usize = 8;
/// A read this near to where the last one ended goes on from it: clients keep several requests going, which overtake
/// each other.
const NEAR_BYTES: u64 = 16 << 20;
/// So many reads in a row, each further than the last, are a stream.
const READS_OF_A_STREAM: u32 = 3;
/// The first window, bytes.
const FIRST_WINDOW_BYTES: u64 = 4 << 20;

/// The readers of an image, the one that read last first.
#[derive(Debug)]
pub struct Streams {
    streams: Vec<Stream>,
    max_window_bytes: u64,
}

#[derive(Debug)]
struct Stream {
    /// Where the furthest read ended.
    end: u64,
    /// Reads in a row.
    reads: u32,
    /// Up to where was fetched ahead.
    fetched: u64,
    window_bytes: u64,
}

impl Streams {
    /// Knows of no readers yet.
    pub const fn new(max_window_bytes: u64) -> Self {
        Self { streams: Vec::new(), max_window_bytes }
    }

    /// Takes note of a read of an image of `size_bytes`; returns what is to be fetched ahead now.
    pub fn note(&mut self, range: &Range<u64>, size_bytes: u64) -> Option<Range<u64>> {
        let near = |stream: &Stream| range.start.abs_diff(stream.end) <= NEAR_BYTES;
        let mut stream = match self.streams.iter().position(near) {
            Some(at) => self.streams.remove(at),
            None => Stream { end: range.end, reads: 0, fetched: range.end, window_bytes: FIRST_WINDOW_BYTES },
        };
        let advanced = range.end > stream.end || stream.reads == 0;
        if advanced {
            stream.reads = stream.reads.saturating_add(1);
            stream.end = range.end;
        }
        let ahead = advanced.then(|| stream.ahead(self.max_window_bytes, size_bytes)).flatten();
        self.streams.insert(0, stream);
        self.streams.truncate(MAX_STREAMS);
        ahead
    }
}

impl Stream {
    /// What to fetch: up to a window ahead, once less than half a window is left.
    fn ahead(&mut self, max_window_bytes: u64, size_bytes: u64) -> Option<Range<u64>> {
        let window = self.window_bytes.min(max_window_bytes);
        let start = self.fetched.max(self.end);
        if self.reads < READS_OF_A_STREAM || start - self.end > window / 2 {
            return None;
        }
        let end = self.end.saturating_add(window).min(size_bytes);
        self.window_bytes = (window * 2).min(max_window_bytes);
        self.fetched = end;
        (start < end).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    #[test]
    fn who_goes_on_is_read_ahead_for_in_growing_windows_once_each() {
        let mut streams = Streams::new(32 * MIB);
        let mut fetched = Vec::new();
        for at in 0..1024 {
            fetched.extend(streams.note(&(at * MIB..(at + 1) * MIB), GIB));
        }
        assert_eq!(fetched[0], 3 * MIB..7 * MIB);
        assert!(fetched.windows(2).all(|pair| pair[0].end == pair[1].start), "no gap, nothing twice");
        assert_eq!(fetched.last().unwrap().end, GIB, "and not past the end");
        assert!(fetched.iter().all(|range| range.end - range.start <= 32 * MIB));
        assert!(fetched.len() < 80, "{} windows", fetched.len());
    }

    #[test]
    fn requests_that_overtake_each_other_are_one_reader() {
        let mut streams = Streams::new(32 * MIB);
        let mut fetched = 0;
        for at in [2, 0, 1, 3, 5, 4, 7, 6, 9, 8] {
            fetched +=
                streams.note(&(at * MIB..(at + 1) * MIB), GIB).map_or(0, |range| range.end - range.start);
        }
        assert!(fetched > 0 && streams.streams.len() == 1);
    }

    #[test]
    fn who_stays_where_it_is_is_not_read_ahead_for() {
        let mut streams = Streams::new(32 * MIB);
        assert!((0..100).all(|_| streams.note(&(MIB..2 * MIB), GIB).is_none()));
    }

    #[test]
    fn who_reads_the_end_of_a_stream_again_is_not_read_ahead_for() {
        let mut streams = Streams::new(32 * MIB);
        for at in 0..4 {
            streams.note(&(at * MIB..(at + 1) * MIB), GIB);
        }
        assert!((0..100).all(|_| streams.note(&(3 * MIB..4 * MIB), GIB).is_none()));
    }

    #[test]
    fn who_jumps_about_is_not_read_ahead_for() {
        let mut streams = Streams::new(32 * MIB);
        // Steps of a third of the image and a bit.
        let places = (0..1000).map(|n| n * 347 * MIB % GIB);
        let fetched: Vec<_> =
            places.filter_map(|at| streams.note(&(at..(at + 4096).min(GIB)), GIB)).collect();
        assert!(fetched.len() < 10, "{fetched:?}");
        assert!(streams.streams.len() <= MAX_STREAMS);
    }

    #[test]
    fn several_readers_at_once_are_told_apart() {
        let mut streams = Streams::new(32 * MIB);
        let mut fetched = Vec::new();
        for at in 0..20 {
            for reader in 0..4 {
                let start = reader * 200 * MIB + at * MIB;
                fetched.extend(streams.note(&(start..start + MIB), GIB));
            }
        }
        let of = |reader: u64| fetched.iter().filter(|range| range.start / (200 * MIB) == reader).count();
        assert!((0..4).all(|reader| of(reader) >= 2), "{fetched:?}");
    }
}

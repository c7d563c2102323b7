//! What sinks call, and what they leave.

use std::io;
use std::sync::{Arc, MutexGuard};

use super::*;

/// Three regions, and what was called.
#[derive(Debug)]
struct Kept(Arc<Mutex<(Vec<u8>, Vec<String>)>>);

impl Kept {
    fn called(&self, what: impl Into<String>) -> MutexGuard<'_, (Vec<u8>, Vec<String>)> {
        let mut kept = self.0.lock().unwrap();
        kept.1.push(what.into());
        kept
    }
}

impl Destination for Kept {
    fn name(&self) -> &Path {
        Path::new("kept")
    }

    fn size_bytes(&self) -> u64 {
        3 * REGION_BYTES
    }

    fn stays(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.called(format!("write {at}")).0[at..at + bytes.len()].copy_from_slice(bytes);
        if bytes.contains(&0xee) { Err(io::Error::other("broken")) } else { Ok(()) }
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.called(format!("zero {at}")).0[at..at + usize::try_from(len).unwrap()].fill(0);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        drop(self.called("flush"));
        Ok(())
    }

    fn complete(self: Box<Self>) -> VaultResult<()> {
        drop(self.called("complete"));
        Ok(())
    }
}

#[test]
fn what_stays_is_given_its_start_last_and_said_to_be_incomplete_until_then() {
    let len = 3 * usize::try_from(REGION_BYTES).unwrap();
    let size_bytes = 2 * REGION_BYTES + 5;
    let kept = Arc::new(Mutex::new((vec![9; len], Vec::new())));
    let destination = || Box::new(Kept(Arc::clone(&kept)));
    let sink = Sink::of(destination(), size_bytes).unwrap();
    sink.write_at(REGION_BYTES - 2, b"abcd").unwrap();
    sink.zeros(REGION_BYTES + 2, size_bytes - REGION_BYTES - 2).unwrap();
    sink.finish().unwrap();
    let (bytes, calls) = std::mem::take(&mut *kept.lock().unwrap());
    let (at, end) = (len / 3, 2 * len / 3 + 5);
    assert_eq!(
        calls,
        [
            "zero 0",
            "flush",
            &format!("zero {}", at + 2),
            &format!("write {at}"),
            "flush",
            &format!("write {}", at - HEAD_BLOCK_BYTES),
            "flush",
            "complete"
        ]
    );
    assert_eq!(bytes[at - 3..at + 3], *b"\0abcd\0");
    assert!(bytes[..at - 2].iter().chain(&bytes[at + 2..end]).all(|&byte| byte == 0));
    assert!(bytes[end..].iter().all(|&byte| byte == 9), "what lies behind is left as it is");

    kept.lock().unwrap().0 = bytes;
    let sink = Sink::of(destination(), size_bytes).unwrap();
    sink.write_at(REGION_BYTES, &[0xee]).unwrap();
    let error = sink.finish().unwrap_err();
    assert!(matches!(&error, VaultError::Incomplete { destination, .. } if destination == "kept"), "{error}");
    assert!(error.to_string().contains("broken") && error.to_string().contains("INCOMPLETE"), "{error}");
    let damage = VaultError::Damaged("lost".to_owned());
    assert!(Sink::of(destination(), 5).unwrap().failed(damage).is_damage());
    kept.lock().unwrap().1.clear();
    let too_small = Sink::of(destination(), 3 * REGION_BYTES + 1).unwrap_err();
    assert!(matches!(too_small, VaultError::Invalid(_)));
    assert_eq!(kept.lock().unwrap().1, Vec::<String>::new(), "nothing was touched");
}

#[test]
fn zeros_at_the_start_are_not_written() {
    let mut bytes = vec![0; 5 * HEAD_BLOCK_BYTES + 7];
    assert_eq!(data_of(&bytes), []);
    assert_eq!(data_of(&[]), []);
    for at in [HEAD_BLOCK_BYTES, 3 * HEAD_BLOCK_BYTES - 1, 5 * HEAD_BLOCK_BYTES + 6] {
        bytes[at] = 1;
    }
    assert_eq!(data_of(&bytes), [4096..3 * 4096, 5 * 4096..5 * 4096 + 7]);
}

#[test]
fn only_files_that_dead_restores_to_the_same_name_left_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let alive = Sink::open(&path("db.img"), 10, false).unwrap();
    let kept = [
        ".other.img.Ab12.strongroom-incomplete",
        ".db.img.old.Ab12.strongroom-incomplete",
        "db.img.Ab12.strongroom-incomplete",
        ".db.img.Ab12.mine",
        ".db.img..strongroom-incomplete",
    ];
    for name in kept.into_iter().chain([".db.img.Ab12.strongroom-incomplete"]) {
        std::fs::write(path(name), b"left").unwrap();
    }
    let second = Sink::open(&path("db.img"), 20, false).unwrap();
    assert!(!path(".db.img.Ab12.strongroom-incomplete").exists());
    assert!(kept.iter().all(|name| path(name).exists()));
    alive.write_at(0, b"0123456789").unwrap();
    alive.finish().unwrap();
    assert_eq!(std::fs::read(path("db.img")).unwrap(), b"0123456789");
    drop(second);
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), kept.len() + 1, "{names:?}");
}

//! Volumes of unusual length and content, block devices, and chunkers of their own.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "tests fail by panicking, in helpers too")]

mod common;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Mount, Place, code, noise, ran, walk};
use serde_json::Value;

/// What a volume of zeros may take in the store, all objects together.
const MAX_ZEROS_STORED_BYTES: u64 = 64 << 10;

fn stored_bytes(place: &Place) -> u64 {
    walk(&place.path("target")).iter().map(|path| path.metadata().unwrap().len()).sum()
}

fn back_up_stream(place: &Place, bytes: &[u8], volume: &str) -> String {
    let mut child =
        place.command(&["backup", "-", "--volume", volume]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn volumes_of_every_odd_length_come_back() {
    let place = Place::new();
    for (n, len) in [0, 1, 4095, 4096, 4097, (8 << 20) - 1, 8 << 20, (8 << 20) + 1].into_iter().enumerate() {
        for (kind, bytes) in [("noise", noise(len, 1)), ("zeros", vec![0; len])] {
            let image = place.path("image");
            std::fs::write(&image, &bytes).unwrap();
            let from_file = place.back_up(&image, &format!("{kind}-{n}"));
            let from_stream = back_up_stream(&place, &bytes, &format!("stream-{kind}-{n}"));
            for id in [from_file, from_stream] {
                assert_eq!(place.restored(&id), bytes, "{len} bytes of {kind}, to a stream");
                let to = place.path("restored");
                place.ran(&["restore", &id, to.to_str().unwrap()]);
                assert_eq!(std::fs::read(&to).unwrap(), bytes, "{len} bytes of {kind}, to a file");
                std::fs::remove_file(&to).unwrap();
            }
        }
    }
    place.verified();
}

#[test]
fn a_volume_that_shrinks_and_grows_comes_back() {
    let place = Place::new();
    let image = place.path("image");
    for len in [3 << 20, 0, 1, 20 << 20, 4097, 9 << 20] {
        let bytes = noise(len, 7);
        std::fs::write(&image, &bytes).unwrap();
        assert_eq!(place.restored(&place.back_up(&image, "v")), bytes, "{len} bytes");
    }
    place.verified();
}

/// docs/decisions.md: "Runs of 8 or more zero blocks of 4 KiB end a chunk and are stored nowhere, whether the filesystem
/// reports a hole or the zeros were written."
#[test]
fn a_gibibyte_of_zeros_takes_next_to_nothing() {
    let place = Place::new();
    let before = stored_bytes(&place);
    let image = place.path("image");
    File::create(&image).unwrap().set_len(1 << 30).unwrap();
    place.back_up(&image, "hole");
    let hole = stored_bytes(&place) - before;
    // The same as a stream, where no filesystem tells of holes.
    let stream = File::open(&image).unwrap();
    let output = place.command(&["backup", "-", "--volume", "zeros"]).stdin(stream).output().unwrap();
    assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    let zeros = stored_bytes(&place) - before - hole;
    println!("1 GiB stored in {hole} bytes as a hole, in {zeros} bytes as zeros");
    assert!(hole < MAX_ZEROS_STORED_BYTES && zeros < MAX_ZEROS_STORED_BYTES, "{hole}, {zeros}");
    let to = place.path("restored");
    place.ran(&["restore", "zeros@latest", to.to_str().unwrap()]);
    assert_eq!(to.metadata().unwrap().len(), 1 << 30);
    let mut file = File::open(&to).unwrap();
    let mut piece = vec![0xff; 1 << 20];
    for _ in 0..1024 {
        std::io::Read::read_exact(&mut file, &mut piece).unwrap();
        assert!(piece.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_volume_may_have_a_chunker_of_its_own() {
    let place = Place::new();
    let bytes = noise(6 << 20, 2);
    let image = place.file("image", &bytes);
    let show = |volume: &str| -> Value {
        serde_json::from_str(&place.ran(&["show", &format!("{volume}@latest"), "--json"])).unwrap()
    };
    for chunker in ["fixed:64KiB", "fixed:4KiB", "fastcdc:16KiB", "fastcdc:128KiB"] {
        let volume = chunker.replace(':', "-");
        place.ran(&["backup", &image, "--volume", &volume, "--chunker", chunker]);
        assert_eq!(show(&volume)["chunker"], chunker);
        assert_eq!(place.restored(&format!("{volume}@latest")), bytes, "{chunker}");
    }
    assert_eq!(show("fixed-64KiB")["chunks"], 96);
    // Another chunker for the next backup of the same volume: nothing of the parent fits, and all is right.
    place.ran(&["backup", &image, "--volume", "fixed-64KiB", "--chunker", "fastcdc:32KiB"]);
    assert_eq!(place.restored("fixed-64KiB@latest"), bytes);
    // And again the same: nothing is new.
    let again = ["backup", &image, "--volume", "fixed-64KiB", "--chunker", "fastcdc:32KiB", "--json"];
    let said = place.ran(&again);
    let event: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(event["new_chunks"], 0);
    assert_eq!(code(&place.run(&["backup", &image, "--volume", "v", "--chunker", "rolling:3"])), 2);
    place.verified();
}

/// A loop device over a file, detached when dropped.
struct LoopDevice(String);

impl LoopDevice {
    fn attach(file: &str) -> Self {
        let output = Command::new("losetup").args(["--find", "--show", file]).output().expect("losetup");
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Self(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
#[ignore = "needs root and loop devices"]
fn block_devices_are_backed_up_and_restored_to() {
    let place = Place::new();
    let mut bytes = noise(20 << 20, 3);
    bytes[9 << 20..15 << 20].fill(0);
    let source = LoopDevice::attach(&place.file("source", &bytes));
    let id = place.ran(&["backup", &source.0, "--volume", "device"]).trim().to_owned();
    assert_eq!(place.restored(&id), bytes);

    // Old content everywhere: zeros of the backup must overwrite it.
    let destination = LoopDevice::attach(&place.file("destination", &noise(20 << 20, 4)));
    place.ran(&["restore", &id, &destination.0]);
    assert!(destination.content() == bytes, "the device holds the volume");

    // A larger one: what lies beyond the volume is left as it is.
    let old = noise(24 << 20, 5);
    let larger = LoopDevice::attach(&place.file("larger", &old));
    place.ran(&["restore", &id, &larger.0]);
    let content = larger.content();
    assert!(content[..20 << 20] == bytes[..] && content[20 << 20..] == old[20 << 20..]);

    // A smaller one is refused before anything is written.
    let old = noise(16 << 20, 6);
    let smaller = LoopDevice::attach(&place.file("smaller", &old));
    assert_eq!(code(&place.run(&["restore", &id, &smaller.0])), 2);
    assert!(smaller.content() == old);
}

/// A filesystem in memory whose files have no holes: loop devices over them can't discard. Unmounted when dropped.
struct WithoutHoles(PathBuf);

impl WithoutHoles {
    fn mount(folder: PathBuf) -> Self {
        std::fs::create_dir(&folder).unwrap();
        ran("mount", &["-t", "ramfs", "ramfs", folder.to_str().unwrap()]);
        Self(folder)
    }
}

impl Drop for WithoutHoles {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_device_is_emptied_before_and_what_was_a_hole_reads_as_zeros() {
    let place = Place::new();
    let mut bytes = noise((20 << 20) + 777, 21);
    bytes[3 << 20..5 << 20].fill(0);
    bytes[9 << 20..15 << 20].fill(0);
    let id = place.back_up(Path::new(&place.file("source", &bytes)), "v");
    let old = noise(21 << 20, 22);
    let _without_holes = WithoutHoles::mount(place.path("without-holes"));
    for can_discard in [true, false] {
        let file = if can_discard { "destination" } else { "without-holes/destination" };
        let file = place.file(file, &old);
        let device = LoopDevice::attach(&file);
        place.ran(&["restore", &id, &device.0]);
        let content = device.content();
        assert!(content[..bytes.len()] == bytes && content[bytes.len()..] == old[bytes.len()..]);
        let allocated = Path::new(&file).metadata().unwrap().blocks() * 512;
        if can_discard {
            assert!(allocated < 14 << 20, "its holes take no space: {allocated}");
        }
        // A range: what lies behind it is not touched.
        std::fs::write(&device.0, &old).unwrap();
        let range = (3 << 20) - 5..(17 << 20) + 3;
        let text = format!("{}-{}", range.start, range.end);
        place.ran(&["restore", &id, &device.0, "--range", &text]);
        let content = device.content();
        assert!(content[..range.len()] == bytes[range.clone()], "{can_discard}");
        assert!(content[range.len()..] == old[range.len()..], "{can_discard}");
    }
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_device_that_is_in_use_is_left_alone_and_one_that_is_incomplete_is_said_to_be() {
    let place = Place::new();
    let bytes = noise(20 << 20, 23);
    let id = place.back_up(Path::new(&place.file("source", &bytes)), "v");
    let old = noise(20 << 20, 24);
    let device = LoopDevice::attach(&place.file("destination", &old));
    let restore = || place.run(&["restore", &id, &device.0]);
    let exclusive = i32::try_from(rustix::fs::OFlags::EXCL.bits()).unwrap();
    let user = File::options().write(true).custom_flags(exclusive).open(&device.0).unwrap();
    let refused = restore();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(code(&refused), 4, "{said}");
    assert!(said.contains("in use") && !said.contains("INCOMPLETE"), "{said}");
    drop(user);
    assert!(device.content() == old);
    for pack in walk(&place.path("target").join("packs")).iter().skip(1).step_by(2) {
        std::fs::remove_file(pack).unwrap();
    }
    let failed = restore();
    let said = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(code(&failed), 3, "{said}");
    assert!(said.contains(&format!("{} now is INCOMPLETE", device.0)), "{said}");
    assert!(device.content()[..8 << 20].iter().all(|&byte| byte == 0), "it does not look whole either");
}

/// Writes a count to the start of an image, then to its end, again and again until it is dropped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn begin(image: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut file = File::options().write(true).open(image).unwrap();
        let end = file.seek(SeekFrom::End(0)).unwrap() - 8;
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for count in 1_u64.. {
                file.write_all_at(&count.to_le_bytes(), 0).unwrap();
                file.write_all_at(&count.to_le_bytes(), end).unwrap();
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// Says by how much the start of an image is ahead of its end: 0 or 1 if it was in that state at any moment.
    fn torn_by(image: &[u8]) -> u64 {
        let count = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        count(&image[..8]).wrapping_sub(count(&image[image.len() - 8..]))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

#[test]
fn a_file_that_is_written_to_while_it_is_read_is_refused() {
    let place = Place::new();
    // Where there are no reflinks.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let image = folder.path().join("image");
    std::fs::write(&image, noise(64 << 20, 8)).unwrap();
    let image = image.to_str().unwrap();
    let writer = Writer::begin(Path::new(image));
    let refused = place.run(&["backup", image, "--volume", "v"]);
    assert_eq!(code(&refused), 4);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("was written to while it was read"));
    assert_eq!(place.ran(&["ls", "--json"]).trim(), "[]");
    place.ran(&["backup", image, "--volume", "live", "--live"]);
    drop(writer);
    place.ran(&["backup", image, "--volume", "v"]);
    assert!(place.restored("v@latest") == std::fs::read(image).unwrap());
}

#[test]
#[ignore = "needs root, loop devices, mkfs.xfs and mkfs.btrfs"]
fn files_on_filesystems_with_reflinks_are_read_from_a_snapshot() {
    let place = Place::new();
    for (kind, without_cow) in [("xfs", false), ("btrfs", false), ("btrfs", true)] {
        let folder = place.path(kind);
        let mount = Mount::make(&place.path("filesystem"), &folder, kind);
        let image = folder.join("image").to_str().unwrap().to_owned();
        File::create(&image).unwrap();
        if without_cow {
            ran("chattr", &["+C", &image]);
        }
        std::fs::write(&image, noise(64 << 20, 9)).unwrap();
        let writer = Writer::begin(Path::new(&image));
        for _ in 0..3 {
            let output = place.run(&["backup", &image, "--volume", kind]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(code(&output), 0, "{said}");
            assert!(said.contains("from a snapshot of the file"), "{said}");
            let torn_by = Writer::torn_by(&place.restored(&format!("{kind}@latest")));
            assert!(torn_by <= 1, "{kind}: the start is {torn_by} writes ahead");
        }
        let mut killed = place.command(&["backup", &image, "--volume", kind, "--full-read"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        killed.kill().unwrap();
        killed.wait().unwrap();
        drop(writer);
        let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [Path::new(&image)], "no snapshot is left");
        mount.unmount();
    }
    place.verified();
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_device_that_is_written_to_while_it_is_read_is_refused() {
    let place = Place::new();
    let device = LoopDevice::attach(&place.file("device", &noise(64 << 20, 10)));
    let writer = Writer::begin(Path::new(&device.0));
    assert_eq!(code(&place.run(&["backup", &device.0, "--volume", "device"])), 4);
    drop(writer);
    place.ran(&["backup", &device.0, "--volume", "device"]);
    assert!(place.restored("device@latest") == device.content());
}

//! Volumes that are no plain files: exports of network block devices, and images that qemu knows.
//!
//! Tests that need qemu-utils are ignored unless asked for; `.ci/run` asks for them, and installs it.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Place, code, noise, ran};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// A volume of 40 MiB and a bit: data, a long hole, data that ends in the middle of a block.
fn content() -> Vec<u8> {
    let mut bytes = noise(40 * MIB + 512, 11);
    bytes[9 * MIB..33 * MIB].fill(0);
    bytes
}

#[test]
fn what_is_served_can_be_backed_up_again() {
    let place = Place::new();
    let content = content();
    place.back_up(Path::new(&place.file("image", &content)), "first");
    let mut command = place.command(&["serve", "first@latest", "--json"]);
    let mut server = command.stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let event: Value = serde_json::from_str(&line).unwrap();
    let said = place.ran(&["backup", event["uri"].as_str().unwrap(), "--volume", "second", "--json"]);
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(place.restored("second@latest") == content);
    let event: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(event["new_chunks"], 0, "the same chunks");
    // A hole is not even read.
    assert!(event["data_bytes"].as_u64().unwrap() <= 24 * MIB as u64, "{event}");
    place.verified();
}

#[test]
fn what_is_no_volume_is_wrong_use() {
    let place = Place::new();
    for source in ["qemu:qcow2", "nbd://somewhere/disk", "nbd+unix:///disk"] {
        assert_eq!(code(&place.run(&["backup", source, "--volume", "v"])), 2, "{source}");
    }
    let nobody = format!("nbd+unix:///?socket={}", place.path("nobody").display());
    assert_eq!(code(&place.run(&["backup", &nobody, "--volume", "v"])), 1);
}

/// Makes an image of a format with a content.
fn image(place: &Place, name: &str, format: &str, content: &[u8]) -> String {
    let raw = place.file("raw", content);
    let image = place.path(name).display().to_string();
    ran("qemu-img", &["convert", "-f", "raw", "-O", format, &raw, &image]);
    image
}

#[test]
#[ignore = "needs qemu-utils"]
fn images_of_other_formats_are_backed_up_as_what_is_in_them() {
    let place = Place::new();
    let content = content();
    place.back_up(Path::new(&place.file("raw", &content)), "raw");
    for format in ["qcow2", "vmdk", "vhdx", "vdi"] {
        let image = image(&place, &format!("a,b:{format}"), format, &content);
        let source = format!("qemu:{format}:{image}");
        let said = place.ran(&["backup", &source, "--volume", format, "--json"]);
        let event: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        let restored = place.restored(&format!("{format}@latest"));
        // Some formats have lengths of whole blocks.
        assert!(
            restored[..content.len()] == content && restored[content.len()..].iter().all(|&byte| byte == 0)
        );
        assert!(event["new_chunks"].as_u64().unwrap() <= 2, "{format}: {event}");
        assert!(
            event["data_bytes"].as_u64().unwrap() < 20 * MIB as u64,
            "{format}: holes are not read: {event}"
        );
    }
    // What changed on top of another image.
    let (base, overlay) = (image(&place, "base", "qcow2", &content), place.path("overlay"));
    let overlay = overlay.to_str().unwrap();
    ran("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", overlay]);
    ran("qemu-io", &["-f", "qcow2", "-c", "write -P 7 20M 1M", overlay]);
    let overlaid = format!("qemu:qcow2:{overlay}");
    place.ran(&["backup", &overlaid, "--volume", "overlay"]);
    let mut expected = content;
    expected[20 * MIB..21 * MIB].fill(7);
    assert!(place.restored("overlay@latest") == expected);
    let wrong = place.run(&["backup", &format!("qemu:vmdk:{base}"), "--volume", "v"]);
    assert_eq!(code(&wrong), 2, "{}", String::from_utf8_lossy(&wrong.stderr));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("qemu-nbd"));
    place.verified();
}

#[test]
#[ignore = "needs qemu-utils"]
fn an_image_that_somebody_writes_to_is_refused() {
    let place = Place::new();
    let image = image(&place, "image", "qcow2", &content());
    let mut writer = Command::new("qemu-io");
    writer.args(["-f", "qcow2", &image]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    let mut input = writer.stdin.take().unwrap();
    input.write_all(b"length\n").unwrap();
    input.flush().unwrap();
    BufReader::new(writer.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    let source = format!("qemu:qcow2:{image}");
    let refused = place.run(&["backup", &source, "--volume", "v"]);
    drop(input);
    writer.wait().unwrap();
    assert_eq!(code(&refused), 4, "{}", String::from_utf8_lossy(&refused.stderr));
    place.ran(&["backup", &source, "--volume", "v"]);
}

/// Issue: whatever moment it is killed at, no export and no process of ours is left once the next one was there.
#[test]
#[ignore = "needs qemu-utils"]
fn killed_at_any_moment_it_leaves_no_server_and_no_socket() {
    let place = Place::new();
    let content = content();
    let image = image(&place, "image", "qcow2", &content);
    let source = format!("qemu:qcow2:{image}");
    let temporary = place.path("temporary");
    std::fs::create_dir(&temporary).unwrap();
    let begin = |full: &[&str]| {
        let mut command = place.command(&[&["backup", &source, "--volume", "v"], full].concat());
        command.env("TMPDIR", &temporary).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    for round in 0..20 {
        let mut killed = begin(&["--full-read"]);
        std::thread::sleep(Duration::from_millis(10 * round));
        killed.kill().unwrap();
        killed.wait().unwrap();
    }
    assert!(begin(&[]).wait().unwrap().success());
    let left: Vec<_> = std::fs::read_dir(&temporary).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    // A server that was on its way when its process was killed ends with the first visit, a moment later.
    let servers = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
        lines.filter(|line| String::from_utf8_lossy(line).contains(temporary.to_str().unwrap())).count()
    };
    for _ in 0..100 {
        if servers() == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(servers(), 0, "a server is left");
    assert!(place.restored("v@latest") == content);
    place.verified();
}

/// A qcow2 image that is written to through qemu, and what is in it.
struct Written {
    image: String,
    content: Vec<u8>,
}

impl Written {
    fn new(place: &Place) -> Self {
        let content = content();
        Self { image: image(place, "image", "qcow2", &content), content }
    }

    fn source(&self) -> String {
        format!("qemu:qcow2:{}", self.image)
    }

    fn write(&mut self, place: &Place, pattern: u8, at: usize, len: usize) {
        let write = format!("write -q -P {pattern} {at} {len}");
        // The server of a backup that was killed holds its lock a moment longer, or until the next one comes.
        let done = (0..100).any(|_| {
            let mut command = Command::new("qemu-io");
            command.args(["-f", "qcow2", "-c", &write, &self.image]).stderr(Stdio::null());
            if command.status().unwrap().success() {
                return true;
            }
            place.run(&["backup", "qemu:qcow2:nothing", "--volume", "v"]);
            std::thread::sleep(Duration::from_millis(100));
            false
        });
        assert!(done, "the image stays locked");
        self.content[at..at + len].fill(pattern);
    }

    fn bitmaps(&self) -> Vec<String> {
        let output = Command::new("qemu-img").args(["info", "--output=json", &self.image]).output().unwrap();
        let info: Value = serde_json::from_slice(&output.stdout).unwrap();
        let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
        bitmaps.iter().map(|bitmap| bitmap["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Backs it up, and says what came of it, and why all was read.
    fn back_up(&self, place: &Place, options: &[&str]) -> (Value, String) {
        let source = self.source();
        let args = [&["backup", &source, "--volume", "v", "--track-changes", "--json"], options].concat();
        let output = place.run(&args);
        assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8(output.stdout).unwrap();
        let event: Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
        let why = event["full_read"].as_str().unwrap_or_default().to_owned();
        assert!(place.restored("v@latest") == self.content, "{event}");
        (event, why)
    }
}

/// Issue: qcow2 with dirty bitmaps over 10 generations.
#[test]
#[ignore = "needs qemu-utils"]
fn of_a_qcow2_image_that_takes_note_only_what_changed_is_read() {
    let place = Place::new();
    let mut volume = Written::new(&place);
    ran("qemu-img", &["bitmap", "--add", &volume.image, "mine"]);
    let (event, said) = volume.back_up(&place, &[]);
    assert_eq!(event["unread_bytes"], 0);
    assert!(said.contains("there is no backup before this one"), "{said}");
    for generation in 0..10 {
        let at = (generation * 13 * MIB / 4) % (39 * MIB);
        volume.write(&place, u8::try_from(generation).unwrap() + 1, at, MIB / 2);
        let (event, said) = volume.back_up(&place, &[]);
        assert!(event["unread_bytes"].as_u64().unwrap() > 0, "{generation}: {event} {said}");
        assert!(event["read_bytes"].as_u64().unwrap() < 25 * MIB as u64, "{generation}: {event}");
        let bitmaps = volume.bitmaps();
        assert_eq!(bitmaps.len(), 2, "the newest, and somebody else's: {bitmaps:?}");
        assert!(bitmaps.iter().any(|name| name.ends_with(event["id"].as_str().unwrap())));
    }
    // A full read says why, and what comes after it goes by what changed since.
    let (event, said) = volume.back_up(&place, &["--full-read"]);
    assert_eq!(event["unread_bytes"], 0);
    assert!(said.contains("it was asked for"), "{said}");
    volume.write(&place, 99, 0, 4096);
    let (event, _) = volume.back_up(&place, &[]);
    assert!(event["unread_bytes"].as_u64().unwrap() > 0, "{event}");
    // Another volume's backups of the same image have bitmaps of their own.
    place.ran(&["backup", &volume.source(), "--volume", "w", "--track-changes"]);
    assert_eq!(volume.bitmaps().len(), 3);
    assert!(volume.bitmaps().contains(&"mine".to_owned()));
    place.verified();
}

/// Issue: the bitmap lost or wrong: detected, full read, right result.
#[test]
#[ignore = "needs qemu-utils"]
fn a_bitmap_that_is_lost_or_wrong_is_found_out() {
    let place = Place::new();
    let mut volume = Written::new(&place);
    volume.back_up(&place, &[]);
    let ours = |volume: &Written| volume.bitmaps().into_iter().find(|name| name.starts_with("strongroom-"));
    // Gone.
    volume.write(&place, 1, 0, MIB);
    ran("qemu-img", &["bitmap", "--remove", &volume.image, &ours(&volume).unwrap()]);
    let (event, said) = volume.back_up(&place, &[]);
    assert!(said.contains("nothing tells what changed"), "{said}");
    assert_eq!(event["unread_bytes"], 0);
    // Cleared, after all of a region changed.
    volume.write(&place, 2, 0, 8 * MIB);
    ran("qemu-img", &["bitmap", "--clear", &volume.image, &ours(&volume).unwrap()]);
    let (event, said) = volume.back_up(&place, &[]);
    assert!(said.contains("it is wrong"), "{said}");
    assert_eq!(event["unread_bytes"], 0);
    // Not recording.
    volume.write(&place, 3, MIB, MIB);
    ran("qemu-img", &["bitmap", "--disable", &volume.image, &ours(&volume).unwrap()]);
    volume.write(&place, 4, 2 * MIB, MIB);
    let (_, said) = volume.back_up(&place, &[]);
    assert!(said.contains("cut off"), "{said}");
    // Of a machine that was killed.
    let mut writer = Command::new("qemu-io");
    writer.args(["-f", "qcow2", &volume.image]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    let input = writer.stdin.as_mut().unwrap();
    // Where there is data already, so that it is in the file at once.
    input.write_all(b"write -P 5 3M 1M\n").unwrap();
    input.flush().unwrap();
    let mut lines = BufReader::new(writer.stdout.as_mut().unwrap());
    let mut line = String::new();
    while !line.contains("wrote") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the writer ended");
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    volume.content[3 * MIB..4 * MIB].fill(5);
    let (_, said) = volume.back_up(&place, &[]);
    assert!(said.contains("cut off"), "{said}");
    // The image was put back to an older copy of itself.
    let copy = place.path("copy").display().to_string();
    std::fs::copy(&volume.image, &copy).unwrap();
    let before = volume.content.clone();
    volume.write(&place, 6, 4 * MIB, MIB);
    volume.back_up(&place, &[]);
    std::fs::rename(&copy, &volume.image).unwrap();
    volume.content = before;
    let (_, said) = volume.back_up(&place, &[]);
    assert!(said.contains("nothing tells what changed"), "{said}");
    // After all that, it goes on well.
    volume.write(&place, 7, 20 * MIB, MIB);
    let (event, said) = volume.back_up(&place, &[]);
    assert!(event["unread_bytes"].as_u64().unwrap() > 0, "{said}");
    place.verified();
}

/// Killed at any moment, the next backup is right, and goes by a bitmap only where it has the right one.
#[test]
#[ignore = "needs qemu-utils"]
fn killed_at_any_moment_bitmaps_stay_right() {
    let place = Place::new();
    let mut volume = Written::new(&place);
    volume.back_up(&place, &[]);
    let source = volume.source();
    for round in 0..20_u8 {
        volume.write(&place, round + 1, usize::from(round) * 2 * MIB, MIB / 4);
        let mut command = place.command(&["backup", &source, "--volume", "v", "--track-changes"]);
        let mut killed = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(15 * u64::from(round)));
        killed.kill().unwrap();
        killed.wait().unwrap();
        volume.write(&place, round + 101, usize::from(round) * 2 * MIB + MIB, MIB / 4);
        if round % 4 == 3 {
            volume.back_up(&place, &[]);
            assert_eq!(volume.bitmaps().len(), 1, "{:?}", volume.bitmaps());
        }
    }
    place.verified();
}

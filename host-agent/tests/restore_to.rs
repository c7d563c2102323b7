//! Restores to what is no plain file: new images that qemu makes, and exports of network block devices.
//!
//! Tests that need qemu-utils are ignored unless asked for; `.ci/run` asks for them, and installs it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Place, code, noise, ran, walk};
use serde_json::Value;

const MIB: usize = 1 << 20;
/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A volume of 40 MiB and a bit: data, a long hole, data that ends in the middle of a sector.
fn content() -> Vec<u8> {
    let mut bytes = noise(40 * MIB + 777, 12);
    bytes[9 * MIB..33 * MIB + 5].fill(0);
    bytes
}

/// A place with a backup of some content, under a name.
fn backed_up(content: &[u8]) -> Place {
    let place = Place::new();
    place.back_up(Path::new(&place.file("raw", content)), "vm");
    place
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What is in an image, as long as its format makes it.
fn inside(place: &Place, format: &str, image: &str) -> Vec<u8> {
    let raw = place.path("inside");
    ran("qemu-img", &["convert", "-f", format, "-O", "raw", image, raw.to_str().unwrap()]);
    std::fs::read(raw).unwrap()
}

fn assert_holds(image: &[u8], content: &[u8], what: &str) {
    assert!(image[..content.len()] == *content, "{what}");
    assert!(image[content.len()..].iter().all(|&byte| byte == 0), "{what}: only rounded up");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

/// Some of a backup's data is lost: a restore of it fails midway.
fn damaged(place: &Place) {
    for pack in walk(&place.path("target").join("packs")).iter().step_by(2) {
        std::fs::remove_file(pack).unwrap();
    }
}

/// A server of network block devices, ended when dropped.
struct Serving {
    child: Child,
    uri: String,
}

impl Serving {
    /// Our own: a backup, with an overlay that takes writes, or without.
    fn ours(place: &Place, args: &[&str]) -> Self {
        let mut command = place.command(&[&["serve"], args, &["--json"]].concat());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        Self { child, uri: event["uri"].as_str().unwrap().to_owned() }
    }

    /// qemu's, of an image.
    fn qemu(place: &Place, format: &str, image: &str) -> Self {
        let socket = place.path("qemu.sock");
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--format", format, "--export-name", "disk", "--socket"]);
        let child = command.arg(&socket).arg(image).spawn().unwrap();
        let begun = Instant::now();
        while !socket.exists() {
            assert!(begun.elapsed() < PATIENCE, "it does not begin");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, uri: format!("nbd+unix:///disk?socket={}", socket.display()) }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_no_destination_is_wrong_use() {
    let place = backed_up(b"x");
    for to in ["qemu:qcow2", "qemu::x", "nbd://somewhere/disk", "nbd+unix:///disk", "/dev/null"] {
        assert_eq!(code(&place.run(&["restore", "vm@latest", to])), 2, "{to}");
    }
    let nobody = format!("nbd+unix:///?socket={}", place.path("nobody").display());
    assert_eq!(code(&place.run(&["restore", "vm@latest", &nobody])), 1);
}

#[test]
fn an_export_is_written_over() {
    let content = content();
    let place = backed_up(&content);
    let old = noise(41 * MIB, 13);
    place.back_up(Path::new(&place.file("old", &old)), "old");
    let socket = place.path("sock").display().to_string();
    let overlay = place.path("overlay").display().to_string();
    let serving = Serving::ours(&place, &["old@latest", "--socket", &socket, "--overlay", &overlay]);
    let read_back = |place: &Place| {
        place.ran(&["backup", &serving.uri, "--volume", "back"]);
        place.restored("back@latest")
    };
    let event = place.ran(&["restore", "vm@latest", &serving.uri, "--json"]);
    let event: Value = serde_json::from_str(event.lines().last().unwrap()).unwrap();
    assert_eq!(event["destination"], serving.uri.as_str());
    let mut expected = old;
    expected[..content.len()].copy_from_slice(&content);
    assert!(read_back(&place) == expected, "what lies beyond is left as it is");
    // Bytes of a range come to the start.
    let range = 9 * MIB - 1001..34 * MIB + 3;
    place.ran(&["restore", "vm@latest", &serving.uri, "--range", &format!("{}-{}", range.start, range.end)]);
    expected[..range.len()].copy_from_slice(&content[range]);
    assert!(read_back(&place) == expected, "nothing outside of the range is touched");
    // One that fails midway says so.
    damaged(&place);
    let failed = place.run(&["restore", "vm@latest", &serving.uri]);
    assert_eq!(code(&failed), 3, "{}", said(&failed));
    assert!(said(&failed).contains("INCOMPLETE"), "{}", said(&failed));
}

#[test]
fn an_export_that_does_not_fit_is_left_alone() {
    let place = backed_up(&content());
    let small = noise(MIB, 14);
    place.back_up(Path::new(&place.file("small", &small)), "small");
    let socket = place.path("sock").display().to_string();
    let refused = |more: &[&str], reason: &str| {
        let serving = Serving::ours(&place, &[&["small@latest", "--socket", &socket], more].concat());
        for volume in ["vm@latest", "small@latest"] {
            let output = place.run(&["restore", volume, &serving.uri]);
            if volume == "small@latest" && !more.is_empty() {
                assert_eq!(code(&output), 0, "{}", said(&output));
                continue;
            }
            assert_eq!(code(&output), 2, "{}", said(&output));
            assert!(
                said(&output).contains(reason) && !said(&output).contains("INCOMPLETE"),
                "{}",
                said(&output)
            );
        }
    };
    refused(&["--writable"], "holds 1048576 bytes");
    refused(&[], "read-only");
}

#[test]
#[ignore = "needs qemu-utils"]
fn new_images_hold_the_volume_and_no_more() {
    let content = content();
    let place = backed_up(&content);
    for format in ["qcow2", "vmdk", "vhdx", "vdi", "qed", "raw"] {
        let image = place.path(&format!("new: a,b.{format}")).display().to_string();
        place.ran(&["restore", "vm@latest", &format!("qemu:{format}:{image}")]);
        assert_holds(&inside(&place, format, &image), &content, format);
        let raw = place.path("raw").display().to_string();
        if format == "qcow2" {
            ran("qemu-img", &["compare", "-f", "raw", "-F", format, &raw, &image]);
            ran("qemu-img", &["check", "-q", "-f", format, &image]);
        }
        let allocated = std::fs::metadata(&image).unwrap().blocks() * 512;
        assert!(allocated < 18 * MIB as u64, "{format}: {allocated} bytes for 16 MiB");
    }
    // A range makes an image of its length.
    let image = place.path("range.qcow2").display().to_string();
    let range = 8 * MIB + 1..34 * MIB;
    let bytes = format!("{}-{}", range.start, range.end);
    place.ran(&["restore", "vm@latest", &format!("qemu:qcow2:{image}"), "--range", &bytes]);
    let inside = inside(&place, "qcow2", &image);
    assert_eq!(inside.len(), range.len().next_multiple_of(512));
    assert_holds(&inside, &content[range], "a range");
    place.verified();
}

#[test]
#[ignore = "needs qemu-utils"]
fn images_of_any_length_are_made() {
    let place = Place::new();
    for len in [0, 1, 511, 4097, (8 << 20) + 1] {
        let bytes = noise(len, 15);
        place.back_up(Path::new(&place.file("raw", &bytes)), "vm");
        let image = place.path("new.qcow2").display().to_string();
        place.ran(&["restore", "vm@latest", &format!("qemu:qcow2:{image}"), "--overwrite"]);
        let inside = inside(&place, "qcow2", &image);
        assert_eq!(inside.len(), len.next_multiple_of(512));
        assert_holds(&inside, &bytes, &format!("{len} bytes"));
    }
}

#[test]
#[ignore = "needs qemu-utils"]
fn an_image_appears_whole_or_not_at_all() {
    let content = content();
    let place = backed_up(&content);
    let folder = place.path("images");
    std::fs::create_dir(&folder).unwrap();
    let image = folder.join("vm.qcow2");
    let to = format!("qemu:qcow2:{}", image.display());
    let wrong = place.run(&["restore", "vm@latest", &format!("qemu:cow9:{}", image.display())]);
    assert_eq!(code(&wrong), 2, "{}", said(&wrong));
    assert!(said(&wrong).contains("qemu-img") && said(&wrong).contains("cow9"), "{}", said(&wrong));
    assert_eq!(names(&folder), Vec::<String>::new());
    std::fs::write(&image, b"something else").unwrap();
    let refused = place.run(&["restore", "vm@latest", &to]);
    assert_eq!(code(&refused), 4, "{}", said(&refused));
    assert_eq!(std::fs::read(&image).unwrap(), b"something else");
    place.ran(&["restore", "vm@latest", &to, "--overwrite"]);
    assert_holds(&inside(&place, "qcow2", image.to_str().unwrap()), &content, "in the place of the other");
    let before = std::fs::metadata(&image).unwrap().ino();
    damaged(&place);
    let failed = place.run(&["restore", "vm@latest", &to, "--overwrite"]);
    assert_eq!(code(&failed), 3, "{}", said(&failed));
    assert_eq!(names(&folder), ["vm.qcow2"]);
    assert_eq!(std::fs::metadata(&image).unwrap().ino(), before);
    // Without qemu's tools, it says where they are.
    let mut command = place.command(&["restore", "vm@latest", &format!("{to}.new")]);
    let missing = command.env("PATH", &folder).output().unwrap();
    assert_eq!(code(&missing), 2);
    assert!(said(&missing).contains("qemu-utils"), "{}", said(&missing));
    assert_eq!(names(&folder), ["vm.qcow2"]);
}

/// Issue: whatever moment it is killed at, no server, no socket and no half of an image is left once the next one was there.
#[test]
#[ignore = "needs qemu-utils"]
fn killed_at_any_moment_it_leaves_nothing() {
    let content = content();
    let place = backed_up(&content);
    let (temporary, folder) = (place.path("temporary"), place.path("images"));
    std::fs::create_dir(&temporary).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let image = folder.join("vm.qcow2");
    let to = format!("qemu:qcow2:{}", image.display());
    let begin = || {
        let mut command = place.command(&["restore", "vm@latest", &to, "--overwrite"]);
        command.env("TMPDIR", &temporary).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let begun = Instant::now();
    assert!(begin().wait().unwrap().success());
    let takes = begun.elapsed();
    std::fs::remove_file(&image).unwrap();
    let mut cut_off = 0;
    for round in 0..20 {
        let mut killed = begin();
        std::thread::sleep(takes * round / 20);
        killed.kill().unwrap();
        killed.wait().unwrap();
        if image.exists() {
            assert_holds(&inside(&place, "qcow2", image.to_str().unwrap()), &content, "it is whole");
            std::fs::remove_file(&image).unwrap();
        } else {
            cut_off += 1;
        }
    }
    assert!(cut_off > 5, "{cut_off} of 20 were killed in time");
    assert!(begin().wait().unwrap().success());
    assert_eq!(names(&temporary), Vec::<String>::new());
    assert_eq!(names(&folder), ["vm.qcow2"]);
    // A server that was on its way when its process was killed ends with the first visit, a moment later.
    let servers = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
        lines.filter(|line| String::from_utf8_lossy(line).contains(temporary.to_str().unwrap())).count()
    };
    let begun = Instant::now();
    while servers() > 0 {
        assert!(begun.elapsed() < PATIENCE, "a server is left");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_holds(&inside(&place, "qcow2", image.to_str().unwrap()), &content, "the last one");
}

#[test]
#[ignore = "needs qemu-utils"]
fn an_export_of_qemu_is_written_over() {
    let content = content();
    let place = backed_up(&content);
    let old = noise(40 * MIB + 1024, 16);
    let (raw, image) = (place.file("old", &old), place.path("old.qcow2").display().to_string());
    ran("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &image]);
    let serving = Serving::qemu(&place, "qcow2", &image);
    place.ran(&["restore", "vm@latest", &serving.uri]);
    drop(serving);
    let inside = inside(&place, "qcow2", &image);
    assert!(inside[..content.len()] == content && inside[content.len()..] == old[content.len()..]);
}

/// A filesystem in memory of a few MiB, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: PathBuf, mib: u32) -> Self {
        std::fs::create_dir(&folder).unwrap();
        let size = format!("size={mib}M");
        ran("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", folder.to_str().unwrap()]);
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
#[ignore = "needs qemu-utils and root"]
fn a_disk_that_is_full_is_an_error_and_nothing_is_left_as_root() {
    let place = backed_up(&content());
    for mib in [0, 8] {
        // The least that can be mounted is a page.
        let disk = SmallDisk::mount(place.path(&format!("disk-{mib}")), mib.max(1));
        if mib == 0 {
            std::fs::write(disk.0.join("full"), noise(MIB, 17)).unwrap();
        }
        let before = names(&disk.0);
        let to = format!("qemu:qcow2:{}", disk.0.join("vm.qcow2").display());
        let failed = place.run(&["restore", "vm@latest", &to]);
        assert_eq!(code(&failed), 1, "{}", said(&failed));
        assert!(said(&failed).contains("No space left"), "{}", said(&failed));
        assert_eq!(names(&disk.0), before);
    }
}

#[test]
#[ignore = "needs qemu-utils"]
fn an_agent_makes_images_where_it_may() {
    let content = noise(3 * MIB, 18);
    let place = Place::new();
    let [images, restored] = ["images", "restored"].map(|name| {
        std::fs::create_dir(place.path(name)).unwrap();
        place.path(name)
    });
    std::fs::write(images.join("db.img"), &content).unwrap();
    let config = format!(
        "queues = \"file://{}\"\n[agent]\nsources = [{images:?}]\ndestinations = [{restored:?}]\nimages = true\n\
         heartbeat-seconds = 1\n[volumes.db]\nsource = {:?}\ncron = \"@yearly\"\n",
        place.path("queues").display(),
        images.join("db.img"),
    );
    let config = place.file("config.toml", config.as_bytes());
    let mut command = place.command(&["up", "--tick", "500ms", "--config", &config]);
    let mut up = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let request = |args: &[&str]| place.run(&[&["request"], args, &["--wait", "--config", &config]].concat());
    let backup = request(&["backup", "db"]);
    let image = restored.join("db.qcow2").display().to_string();
    let restore = |to: &str| request(&["restore", "db@latest", to, "--on-host", "test-host"]);
    let outcomes = [
        restore(&format!("qemu:qcow2:{image}")),
        restore(&format!("qemu:qcow2:{}", images.join("new.qcow2").display())),
        restore(&format!("nbd+unix:///?socket={}", images.join("sock").display())),
    ];
    up.kill().unwrap();
    up.wait().unwrap();
    assert_eq!(code(&backup), 0, "{backup:?}");
    assert_eq!(code(&outcomes[0]), 0, "{outcomes:?}");
    assert_holds(&inside(&place, "qcow2", &image), &content, "made by the agent");
    for outcome in &outcomes[1..] {
        assert_eq!(code(outcome), 1);
        assert!(String::from_utf8_lossy(&outcome.stdout).contains("destinations"), "{outcome:?}");
    }
    assert_eq!(names(&images), ["db.img"]);
}

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
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    let said = place.ran(&["backup", event["uri"].as_str().unwrap(), "--volume", "second", "--json"]);
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(place.restored("second@latest") == content);
    let event: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
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
        let event: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
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

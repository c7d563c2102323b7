//! The program as scripts use it: outputs, exit codes, and being killed at any moment.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "tests fail by panicking, in helpers too")]

mod common;

use std::process::Command;
use std::time::Duration;

use common::{Place, code, noise, walk};
use serde_json::Value;

#[test]
fn scripts_get_ids_json_and_exit_codes() {
    let place = Place::new();
    let (image, bytes) = (place.path("image"), noise(3_000_000, 1));
    std::fs::write(&image, &bytes).unwrap();
    let id = place.back_up(&image, "vm1");
    assert_eq!(id.len(), 32);
    assert_eq!(place.restored("vm1@latest"), bytes);
    assert_eq!(place.restored(&id[..8]), bytes);

    let listed: Value = serde_json::from_slice(&place.run(&["ls", "--json"]).stdout).unwrap();
    assert_eq!(listed[0]["id"], Value::String(id.clone()));
    assert_eq!(listed[0]["logical_bytes"], 3_000_000);
    assert_eq!(listed[0]["volume"], "vm1");
    assert!(listed[0]["created"].as_str().unwrap().ends_with('Z'));
    let stats: Value = serde_json::from_slice(&place.run(&["stats", "--json"]).stdout).unwrap();
    assert_eq!(stats["volumes"]["vm1"]["backups"], 1);

    // Events, one a line.
    let output = place.run(&["backup", image.to_str().unwrap(), "--volume", "vm1", "--json"]);
    let last = String::from_utf8(output.stdout).unwrap();
    let event: Value = serde_json::from_str(last.lines().last().unwrap()).unwrap();
    assert_eq!((&event["event"], &event["new_chunks"]), (&Value::from("backup"), &Value::from(0)));

    // 2: wrong use.
    assert_eq!(code(&place.run(&["restore", "ffff0000", "-"])), 2);
    assert_eq!(code(&place.run(&["backup", image.to_str().unwrap()])), 2);
    assert_eq!(code(&place.run(&["retention", "run"])), 2);
    // 4: refused for safety.
    assert_eq!(code(&place.run(&["target", "init"])), 4);
    let there = place.path("there");
    std::fs::write(&there, b"mine").unwrap();
    assert_eq!(code(&place.run(&["restore", "vm1@latest", there.to_str().unwrap()])), 4);
    assert_eq!(std::fs::read(&there).unwrap(), b"mine");
    assert_eq!(code(&place.run(&["restore", "vm1@latest", there.to_str().unwrap(), "--overwrite"])), 0);
    assert_eq!(std::fs::read(&there).unwrap(), bytes);
    assert_eq!(code(&place.run(&["retention", "run", "--keep-last", "1", "--max-removals", "0"])), 4);
    // 5: unreachable or denied.
    let elsewhere = format!("file://{}", place.path("nowhere").display());
    assert_eq!(code(&place.run(&["ls", "--target", &elsewhere])), 5);
    let other_key = place.path("other-key");
    std::fs::write(&other_key, format!("strongroom-key-v1 {}\n", "ab".repeat(32))).unwrap();
    assert_eq!(code(&place.run(&["ls", "--key-file", other_key.to_str().unwrap()])), 5);
    // 3: damaged or missing.
    for pack in walk(&place.path("target/packs")) {
        std::fs::remove_file(pack).unwrap();
    }
    assert_eq!(code(&place.run(&["verify"])), 3);
    assert_eq!(code(&place.run(&["restore", "vm1@latest", place.path("broken").to_str().unwrap()])), 3);
    assert!(!place.path("broken").exists(), "an incomplete restore has no name");
}

#[test]
fn volumes_that_go_together_are_one_group() {
    let place = Place::new();
    let (data, log) = (noise(2_000_000, 1), noise(900_000, 2));
    let data_file = place.file("data", &data);
    let with = format!("log={}", place.file("log", &log));
    let args = ["backup", &data_file, "--volume", "data", "--with", &with, "--quiesced", "--json"];
    let printed = place.ran(&args);
    let events: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let backups: Vec<&Value> = events.iter().filter(|event| event["event"] == "backup").collect();
    // The one that stands for all comes last.
    assert_eq!((&backups[0]["volume"], &backups[1]["volume"]), (&Value::from("log"), &Value::from("data")));
    assert!(backups[0]["group"] == backups[1]["group"] && backups[0]["group"]["members"] == 2, "{printed}");
    assert!(place.restored("data@latest") == data && place.restored("log@latest") == log);
    let alone = place.back_up(&place.path("data"), "data");
    let group = backups[0]["group"]["id"].as_str().unwrap();
    let listed: Value = serde_json::from_str(&place.ran(&["ls", "--group", &group[..8], "--json"])).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    assert!(place.ran(&["show", "log@latest"]).contains(&format!("{group} of 2 backups")));
    let shown: Value = serde_json::from_str(&place.ran(&["show", &alone, "--json"])).unwrap();
    assert_eq!(shown["group"], Value::Null);
    // Manifests alone tell it, too.
    std::fs::remove_file(place.path("target/root")).unwrap();
    place.ran(&["index", "rebuild"]);
    assert_eq!(place.ran(&["ls", "--group", group]).lines().count(), 2);
    for wrong in ["data=elsewhere", "x", "=x", "x=", "bad@name=x", "new=-"] {
        let refused = place.run(&["backup", &data_file, "--volume", "data", "--with", wrong, "--quiesced"]);
        assert_eq!(code(&refused), 2, "{wrong}: {}", String::from_utf8_lossy(&refused.stderr));
    }
    place.verified();
}

#[test]
fn keys_are_rotated_and_recovered() {
    let place = Place::new();
    let (image, bytes) = (place.path("image"), noise(100_000, 2));
    std::fs::write(&image, &bytes).unwrap();
    place.back_up(&image, "v");
    let kit = place.path("kit");
    assert_eq!(code(&place.run(&["target", "export-recovery-kit", "--output", kit.to_str().unwrap()])), 0);
    let new_key = place.path("new-key");
    assert_eq!(code(&place.run(&["target", "rotate", "--new-key-file", new_key.to_str().unwrap()])), 0);
    assert_eq!(code(&place.run(&["ls"])), 5, "the old key opens it no longer");
    assert_eq!(code(&place.run(&["ls", "--key-file", new_key.to_str().unwrap()])), 0);
    std::fs::remove_file(place.path("target/keyring")).unwrap();
    assert_eq!(code(&place.run(&["target", "restore-keyring", kit.to_str().unwrap()])), 0);
    let output = place.run(&["restore", "v@latest", "-", "--key-file", kit.to_str().unwrap()]);
    assert_eq!(output.stdout, bytes);
}

#[test]
fn the_demo_works() {
    let place = Place::new();
    let output = place.run(&["demo", "--size-mib", "16"]);
    assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("byte for byte the same"));
}

/// Starts a command and kills it after a while, unless it is through before.
fn kill_after(mut command: Command, wait: Duration) -> bool {
    let mut child = command.spawn().unwrap();
    std::thread::sleep(wait);
    let killed = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    killed
}

/// Twenty kills at moments spread over the time that a backup takes, then a run to the end: the result is right, and
/// packs that were there and recorded are taken over.
#[test]
fn a_backup_killed_again_and_again_is_taken_up() {
    let place = Place::new();
    let (image, bytes) = (place.path("image"), noise(24 << 20, 3));
    std::fs::write(&image, &bytes).unwrap();
    let started = std::time::Instant::now();
    place.back_up(&image, "timing");
    let whole = started.elapsed();
    // Other bytes, so that nothing of them is stored.
    let bytes = noise(24 << 20, 4);
    std::fs::write(&image, &bytes).unwrap();
    let before = walk(&place.path("target/packs")).len();
    let mut killed = 0;
    for n in 0..20u32 {
        let wait = whole * (n % 10 + 1) / 12;
        killed +=
            u32::from(kill_after(place.command(&["backup", image.to_str().unwrap(), "--volume", "v"]), wait));
    }
    let id = place.back_up(&image, "v");
    assert!(killed > 0, "no run was killed in time");
    assert_eq!(place.restored(&id), bytes);
    // Every pack that was complete is used again: what is stored twice can only be in packs that no kill found complete.
    let stats: Value = serde_json::from_slice(&place.run(&["stats", "--json"]).stdout).unwrap();
    let packs = walk(&place.path("target/packs")).len() - before;
    assert!(packs <= 25 + killed as usize, "{packs} packs for {killed} kills: {stats}");
    place.verified();
}

/// Kills restores, retention, collection and rebuild; the target stays right.
#[test]
fn other_commands_killed_leave_the_target_right() {
    let place = Place::new();
    let image = place.path("image");
    let mut bytes = noise(6 << 20, 5);
    let mut last = String::new();
    for n in 0..4u64 {
        bytes[1_000_000..2_000_000].copy_from_slice(&noise(1_000_000, 10 + n));
        std::fs::write(&image, &bytes).unwrap();
        last = place.back_up(&image, "v");
    }
    let destination = place.path("restored");
    let to = destination.to_str().unwrap();
    for n in 1..=6u32 {
        let wait = Duration::from_millis(u64::from(n) * 12);
        kill_after(place.command(&["restore", &last, to]), wait);
        assert!(!destination.exists() || std::fs::read(&destination).unwrap() == bytes);
        let _ = std::fs::remove_file(&destination);
        kill_after(place.command(&["retention", "run", "--keep-last", "2"]), wait);
        kill_after(place.command(&["gc", "run", "--grace", "0s", "--orphan-age", "0s"]), wait);
        kill_after(place.command(&["index", "rebuild"]), wait);
        assert_eq!(place.restored(&last), bytes);
    }
    assert_eq!(code(&place.run(&["index", "rebuild"])), 0);
    for _ in 0..4 {
        assert_eq!(code(&place.run(&["gc", "run", "--grace", "0s", "--orphan-age", "0s"])), 0);
    }
    place.verified();
    assert_eq!(place.restored(&last), bytes);
}

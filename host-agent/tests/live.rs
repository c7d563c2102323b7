//! `restore --live`: a volume that is used while it is restored.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use common::{Place, code, noise, walk};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// A restore that goes on.
struct Restoring {
    child: Child,
    event: Value,
}

impl Restoring {
    fn start(place: &Place, to: &Path, more: &[&str]) -> Self {
        let socket = place.path("live.sock");
        let args =
            ["restore", "v@latest", to.to_str().unwrap(), "--live", "--socket", socket.to_str().unwrap()];
        let mut command = place.command(&[&args[..], &["--json"], more].concat());
        let log = place.path("live.log");
        let mut child = command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let event = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{line}{}", std::fs::read_to_string(&log).unwrap()));
        Self { child, event }
    }

    fn uri(&self) -> &str {
        self.event["uri"].as_str().unwrap()
    }

    fn end(&mut self) -> ExitStatus {
        let mut rest = String::new();
        self.child.stdout.as_mut().unwrap().read_to_string(&mut rest).unwrap();
        self.child.wait().unwrap()
    }

    fn tell(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Restoring {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A backup of data, a hole, and a length that is no multiple of a block.
fn backed_up() -> (Place, Vec<u8>) {
    let place = Place::new();
    let mut bytes = noise(70 * MIB + 1000, 3);
    bytes[10 * MIB + 100..30 * MIB + 5000].fill(0);
    place.back_up(Path::new(&place.file("image", &bytes)), "v");
    (place, bytes)
}

fn registrations(place: &Place) -> usize {
    walk(&place.path("target/inbox")).iter().filter(|path| path.ends_with("reader")).count()
}

/// What a folder has whose names begin so.
fn named(place: &Place, name: &str) -> Vec<String> {
    let entries = std::fs::read_dir(place.path("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|found| found.starts_with(name)).collect()
}

#[test]
fn nobody_connected_it_is_a_restore() {
    let (place, bytes) = backed_up();
    let to = place.path("restored");
    let mut restoring = Restoring::start(&place, &to, &[]);
    assert!(restoring.end().success());
    assert!(std::fs::read(&to).unwrap() == bytes);
    assert!(to.metadata().unwrap().blocks() * 512 < 55 << 20, "holes are holes");
    assert_eq!(named(&place, "restored"), ["restored"], "nothing beside it");
    assert_eq!(registrations(&place), 0);
    let again = place.run(&["restore", "v@latest", to.to_str().unwrap(), "--live"]);
    assert_eq!(code(&again), 4, "it exists");
    let range = ["restore", "v@latest", "new", "--live", "--range", "0-5"];
    assert_eq!(code(&place.run(&range)), 2);
}

/// Killed and stopped at many moments, it goes on where it was, and the file has its name only once it is whole.
#[test]
fn stopped_or_killed_it_goes_on_where_it_was() {
    let (place, bytes) = backed_up();
    let to = place.path("restored");
    for round in 0..12 {
        let mut restoring = Restoring::start(&place, &to, &[]);
        std::thread::sleep(Duration::from_millis(10 * round));
        restoring.tell(if round % 2 == 0 { Signal::KILL } else { Signal::TERM });
        let ended = restoring.end();
        if ended.success() {
            break;
        }
        assert!(matches!(ended.code(), Some(4) | None), "{ended}");
        if to.exists() {
            assert_eq!(ended.code(), None, "killed once it was complete, or it says that it is not");
            break;
        }
    }
    if !to.exists() {
        assert!(Restoring::start(&place, &to, &[]).end().success());
    }
    assert!(std::fs::read(&to).unwrap() == bytes);
    assert_eq!(named(&place, "restored"), ["restored"]);
}

fn qemu_io(uri: &str, commands: &[&str]) -> bool {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw", uri]).args(commands.iter().flat_map(|&command| ["-c", command]));
    command.stdout(Stdio::null()).status().unwrap().success()
}

#[test]
#[ignore = "needs qemu-utils"]
fn what_is_written_meanwhile_is_in_the_file() {
    let (place, mut bytes) = backed_up();
    let to = place.path("restored");
    // Slowly, so that it is written to where nothing was restored yet, and where all was.
    let mut restoring = Restoring::start(&place, &to, &["--download-limit", "10MiB"]);
    let uri = restoring.uri().to_owned();
    for (round, at) in [60 * MIB + 700, 100, 20 * MIB + 1, 69 * MIB, 40 * MIB].into_iter().enumerate() {
        let pattern = u8::try_from(round).unwrap() + 1;
        assert!(qemu_io(&uri, &[&format!("write -q -P {pattern} {at} 100000"), "flush"]));
        bytes[at..at + 100_000].fill(pattern);
        assert!(qemu_io(&uri, &[&format!("read -q -P {pattern} {at} 100000")]));
    }
    assert!(qemu_io(&uri, &["write -q -z 50M 1M", "discard -q 52M 1M"]));
    bytes[50 * MIB..51 * MIB].fill(0);
    bytes[52 * MIB..53 * MIB].fill(0);
    assert!(restoring.end().success());
    assert!(std::fs::read(&to).unwrap() == bytes);
}

#[test]
fn what_is_damaged_is_told_and_the_rest_is_there() {
    let (place, bytes) = backed_up();
    // The largest: names are random, and in the middle of a small one there may be the end, which is waited for below.
    let packs = walk(&place.path("target/packs"));
    let pack = packs.iter().max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let mut damaged = std::fs::read(pack).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(pack, damaged).unwrap();
    let to = place.path("restored");
    let mut restoring = Restoring::start(&place, &to, &[]);
    // It goes on serving until it is told to stop.
    let file = place.path("restored.strongroom-incomplete");
    let mut last = vec![0; 1000];
    for _ in 0..600 {
        let read = std::fs::File::open(&file).and_then(|file| file.read_exact_at(&mut last, 70 * MIB as u64));
        if read.is_ok() && last == bytes[70 * MIB..] {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(last == bytes[70 * MIB..], "the end is there");
    std::thread::sleep(Duration::from_millis(500));
    restoring.tell(Signal::TERM);
    assert_eq!(restoring.end().code(), Some(3));
    assert!(!to.exists());
    let partly = std::fs::read(&file).unwrap();
    let same = partly.chunks(4096).zip(bytes.chunks(4096)).filter(|(one, other)| one == other).count();
    assert!(same * 4096 > 40 * MIB, "{same} blocks are right");
}

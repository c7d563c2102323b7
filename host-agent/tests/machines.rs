//! Disks of running machines, over QMP. The machine is a `qemu-storage-daemon`, whose disk the tests write to through FUSE, as a guest
//! would through its controller.
//!
//! All of them are ignored unless asked for: they need root, /dev/fuse and a `qemu-storage-daemon`; `.ci/run` asks for them where it can.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Place, code, noise, ran};
use serde_json::{Value, json};

const MIB: usize = 1 << 20;
const DISK_LEN: usize = 48 * MIB;

/// A machine with a disk.
struct Machine {
    daemon: Child,
    image: String,
    disk: PathBuf,
    socket: PathBuf,
}

impl Machine {
    fn start(place: &Place, image: &str) -> Self {
        Self::start_with(place, image, &[])
    }

    /// Starts one with further arguments, which are taken before the first disk can be written to.
    fn start_with(place: &Place, image: &str, more: &[String]) -> Self {
        let (disk, socket) = (place.path("disk"), place.path("qmp"));
        File::create(&disk).unwrap();
        let daemon = Command::new("qemu-storage-daemon")
            .args(["--chardev", &format!("socket,id=qmp,path={},server=on,wait=off", socket.display())])
            .args(["--monitor", "chardev=qmp"])
            .args(more)
            .args(["--blockdev", &format!("driver=file,node-name=file0,filename={image}")])
            .args(["--blockdev", "driver=qcow2,node-name=disk0,file=file0"])
            .arg("--export")
            .arg(format!("type=fuse,id=guest,node-name=disk0,mountpoint={},writable=on", disk.display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..200 {
            if disk.metadata().is_ok_and(|disk| disk.len() == DISK_LEN as u64) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { daemon, image: image.to_owned(), disk, socket }
    }

    fn source(&self) -> String {
        format!("qmp:{}:disk0", self.socket.display())
    }

    fn open(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.disk).unwrap()
    }

    fn write(&self, pattern: u8, at: usize, len: usize) {
        let disk = self.open();
        disk.write_all_at(&vec![pattern; len], at as u64).unwrap();
        disk.sync_all().unwrap();
    }

    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; DISK_LEN];
        self.open().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn ask(&self, command: &str) -> Value {
        // A monitor takes one client at once, and may drop the next while it lets go of one that was killed.
        let greeted = (0..100).find_map(|_| {
            let stream = UnixStream::connect(&self.socket).unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            if let Some(Ok(_)) = lines.next() {
                return Some((stream, lines));
            }
            std::thread::sleep(Duration::from_millis(20));
            None
        });
        let (mut stream, mut lines) = greeted.unwrap();
        let mut ask = |command: &str| {
            // As the program asks: without what lies below each node, which may be about to go; and by an id, as answers may come to what
            // somebody else had asked who was killed.
            let flat = json!({ "flat": true });
            let arguments = if command == "query-named-block-nodes" { flat } else { json!({}) };
            let id = format!("test-{command}");
            writeln!(stream, "{}", json!({ "execute": command, "arguments": arguments, "id": id })).unwrap();
            loop {
                let mut answer: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
                if answer["id"] == id.as_str() {
                    assert!(answer.get("return").is_some(), "{command}: {answer}");
                    return answer["return"].take();
                }
            }
        };
        ask("qmp_capabilities");
        ask(command)
    }

    /// Names of ours in the machine other than bitmaps, and how many bitmaps there are.
    fn left(&self) -> (Vec<String>, usize) {
        let nodes = self.ask("query-named-block-nodes");
        let nodes = nodes.as_array().unwrap();
        let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut names: Vec<String> = nodes.iter().map(|node| name(&node["node-name"])).collect();
        for (command, key) in [("query-jobs", "id"), ("query-block-exports", "id")] {
            names.extend(self.ask(command).as_array().unwrap().iter().map(|found| name(&found[key])));
        }
        names.retain(|name| name.starts_with("strongroom"));
        let disk = nodes.iter().find(|node| node["node-name"] == "disk0").unwrap();
        (names, disk["dirty-bitmaps"].as_array().map_or(0, Vec::len))
    }

    /// Shuts it down.
    fn stop(mut self) {
        self.ask("quit");
        self.daemon.wait().unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = Command::new("umount").arg("-l").arg(&self.disk).stderr(Stdio::null()).status();
    }
}

fn image(place: &Place) -> String {
    let mut content = noise(DISK_LEN, 5);
    content[10 * MIB..30 * MIB].fill(0);
    let raw = place.file("raw", &content);
    let image = place.path("image").display().to_string();
    ran("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &image]);
    image
}

/// Backs up with what changed, and says what came of it, and why all was read.
fn back_up(place: &Place, source: &str) -> (Value, String) {
    let output = place.run(&["backup", source, "--volume", "v", "--track-changes", "--json"]);
    assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let event: Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    let why = event["full_read"].as_str().unwrap_or_default().to_owned();
    (event, why)
}

fn unread(event: &Value) -> u64 {
    event["unread_bytes"].as_u64().unwrap()
}

#[test]
#[ignore = "needs root, /dev/fuse and qemu-storage-daemon"]
fn of_a_running_machine_only_what_changed_is_read() {
    let place = Place::new();
    let machine = Machine::start(&place, &image(&place));
    let (event, said) = back_up(&place, &machine.source());
    assert!(said.contains("there is no backup before this one"), "{said}");
    assert_eq!(unread(&event), 0);
    assert!(place.restored("v@latest") == machine.content());
    for generation in 0..5_u8 {
        machine.write(generation + 1, (usize::from(generation) * 11 + 1) * MIB, MIB / 2);
        let (event, said) = back_up(&place, &machine.source());
        assert!(unread(&event) > 0, "{said}");
        assert!(place.restored("v@latest") == machine.content());
        assert_eq!(machine.left(), (Vec::new(), 1));
    }
    // The machine is shut down, and the same bitmaps go on.
    let (image, mut content) = (machine.image.clone(), machine.content());
    machine.stop();
    ran("qemu-io", &["-f", "qcow2", "-c", "write -q -P 77 40M 1M", &image]);
    content[40 * MIB..41 * MIB].fill(77);
    let (event, said) = back_up(&place, &format!("qemu:qcow2:{image}"));
    assert!(unread(&event) > 0, "{said}");
    assert!(place.restored("v@latest") == content);
    let machine = Machine::start(&place, &image);
    machine.write(78, 41 * MIB, MIB);
    let (event, said) = back_up(&place, &machine.source());
    assert!(unread(&event) > 0, "{said}");
    assert!(place.restored("v@latest") == machine.content());
    place.verified();
}

/// Numbers are written one after the other to blocks all over the disk, around and around, while it is backed up: what is
/// restored must be what was there at one moment, so the numbers in it follow each other without a gap.
#[test]
#[ignore = "needs root, /dev/fuse and qemu-storage-daemon"]
fn of_a_machine_that_writes_all_the_time_one_moment_is_backed_up() {
    const BLOCKS: u64 = 500;
    let place = Place::new();
    let machine = Machine::start(&place, &image(&place));
    let offset = |number: u64| number % BLOCKS * (DISK_LEN as u64 / BLOCKS / 512 * 512);
    let written = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (disk, stop, written) = (machine.open(), Arc::clone(&stop), Arc::clone(&written));
        std::thread::spawn(move || {
            for number in 1_u64.. {
                disk.write_all_at(&number.to_le_bytes(), offset(number)).unwrap();
                written.store(number, Ordering::SeqCst);
                if stop.load(Ordering::SeqCst) {
                    break;
                }
            }
        })
    };
    for round in 0..6 {
        let before = written.load(Ordering::SeqCst);
        while written.load(Ordering::SeqCst) < before.max(2 * BLOCKS) + BLOCKS {
            std::thread::sleep(Duration::from_millis(5));
        }
        let (event, said) = back_up(&place, &machine.source());
        let restored = place.restored("v@latest");
        let at = |block: u64| usize::try_from(offset(block)).unwrap();
        let number = |block: u64| u64::from_le_bytes(*restored[at(block)..].first_chunk().unwrap());
        let mut numbers: Vec<u64> = (0..BLOCKS).map(number).collect();
        numbers.sort_unstable();
        let expected: Vec<u64> = (numbers[0]..numbers[0] + BLOCKS).collect();
        assert!(numbers == expected, "round {round}: of different moments: {numbers:?} {event} {said}");
    }
    stop.store(true, Ordering::SeqCst);
    writer.join().unwrap();
    assert_eq!(machine.left(), (Vec::new(), 1));
    back_up(&place, &machine.source());
    assert!(place.restored("v@latest") == machine.content());
    place.verified();
}

/// Numbers are written in turn to two disks: what is restored of both is what was there at one moment.
#[test]
#[ignore = "needs root, /dev/fuse and qemu-storage-daemon"]
fn disks_of_a_machine_are_backed_up_as_of_one_moment() {
    const BLOCKS: u64 = 300;
    let place = Place::new();
    let (second, second_disk) = (place.path("second").display().to_string(), place.path("second-disk"));
    ran("qemu-img", &["create", "-q", "-f", "qcow2", &second, &DISK_LEN.to_string()]);
    File::create(&second_disk).unwrap();
    let more = [
        "--blockdev".to_owned(),
        format!("driver=file,node-name=file1,filename={second}"),
        "--blockdev".to_owned(),
        "driver=qcow2,node-name=disk1,file=file1".to_owned(),
        "--export".to_owned(),
        format!("type=fuse,id=guest1,node-name=disk1,mountpoint={},writable=on", second_disk.display()),
    ];
    let machine = Machine::start_with(&place, &image(&place), &more);
    let disks = [machine.open(), OpenOptions::new().read(true).write(true).open(&second_disk).unwrap()];
    let offset = |number: u64| number / 2 % BLOCKS * (DISK_LEN as u64 / BLOCKS / 512 * 512);
    let written = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
        std::thread::spawn(move || {
            for number in 1_u64.. {
                let disk = &disks[usize::from(number % 2 == 1)];
                disk.write_all_at(&number.to_le_bytes(), offset(number)).unwrap();
                written.store(number, Ordering::SeqCst);
                if stop.load(Ordering::SeqCst) {
                    break;
                }
            }
        })
    };
    let source = machine.source();
    let with = format!("w=qmp:{}:disk1", machine.socket.display());
    let args = ["backup", &source, "--volume", "v", "--with", &with, "--track-changes", "--json"];
    for round in 0..6_u64 {
        let before = written.load(Ordering::SeqCst);
        while written.load(Ordering::SeqCst) < before.max(4 * BLOCKS) + BLOCKS {
            std::thread::sleep(Duration::from_millis(5));
        }
        if round % 2 == 1 {
            let mut command = place.command(&args);
            let mut killed = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(40 * round));
            killed.kill().unwrap();
            killed.wait().unwrap();
        }
        let printed = place.ran(&args);
        let events: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |volume: &str| events.iter().find(|event| event["volume"] == volume).unwrap();
        assert!(of("v")["group"]["id"].is_string() && of("v")["group"] == of("w")["group"], "{printed}");
        let restored = [place.restored("v@latest"), place.restored("w@latest")];
        let number = |number: u64| {
            let at = usize::try_from(offset(number)).unwrap();
            u64::from_le_bytes(*restored[usize::from(number % 2 == 1)][at..].first_chunk().unwrap())
        };
        let mut numbers: Vec<u64> = (0..2 * BLOCKS).map(number).collect();
        numbers.sort_unstable();
        let expected: Vec<u64> = (numbers[0]..numbers[0] + 2 * BLOCKS).collect();
        assert!(numbers == expected, "round {round}: of different moments: {numbers:?}");
    }
    stop.store(true, Ordering::SeqCst);
    writer.join().unwrap();
    assert_eq!(machine.left(), (Vec::new(), 1));
    place.verified();
}

/// Issue: SIGKILL at 20 points of snapshot, read, drop: nothing of ours is left once the next one was there.
#[test]
#[ignore = "needs root, /dev/fuse and qemu-storage-daemon"]
fn killed_at_any_moment_it_leaves_nothing_in_the_machine() {
    let place = Place::new();
    let machine = Machine::start(&place, &image(&place));
    back_up(&place, &machine.source());
    let temporary = place.path("temporary");
    std::fs::create_dir(&temporary).unwrap();
    let source = machine.source();
    let mut caught = 0;
    for round in 0..20_u8 {
        machine.write(round + 1, usize::from(round) * 2 * MIB, MIB / 4);
        let mut command = place.command(&["backup", &source, "--volume", "v", "--track-changes"]);
        command.env("TMPDIR", &temporary).stdout(Stdio::null()).stderr(Stdio::null());
        let mut killed = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(12 * u64::from(round)));
        killed.kill().unwrap();
        killed.wait().unwrap();
        caught += usize::from(!machine.left().0.is_empty());
        machine.write(round + 101, usize::from(round) * 2 * MIB + MIB, MIB / 4);
    }
    assert!(caught > 0, "none of the kills hit a snapshot");
    let mut command = place.command(&["backup", &source, "--volume", "v", "--track-changes"]);
    assert_eq!(code(&command.env("TMPDIR", &temporary).output().unwrap()), 0);
    assert_eq!(machine.left(), (Vec::new(), 1));
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
    assert!(place.restored("v@latest") == machine.content());
    place.verified();
}

#[test]
#[ignore = "needs root, /dev/fuse and qemu-storage-daemon"]
fn what_is_no_disk_of_a_machine_is_told() {
    let place = Place::new();
    let machine = Machine::start(&place, &image(&place));
    let wrong = format!("qmp:{}:nothing", machine.socket.display());
    let refused = place.run(&["backup", &wrong, "--volume", "v"]);
    assert_eq!(code(&refused), 2);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("its nodes are"), "{refused:?}");
    let nobody = format!("qmp:{}:disk0", place.path("nobody").display());
    assert_eq!(code(&place.run(&["backup", &nobody, "--volume", "v"])), 1);
    assert_eq!(machine.left().0, Vec::<String>::new());
}

/// A guest agent that takes orders over one connection, in the manner of qemu-ga, and gives `seen` each of them.
fn guest(place: &Place, refuse: bool, mut seen: impl FnMut(&str) + Send + 'static) -> String {
    let socket = place.path(if refuse { "refusing" } else { "guest" });
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // What was left for somebody who was cut off.
        stream.write_all(b"{\"return\": 12}\n").unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let order: Value =
                serde_json::from_slice(line.trim_ascii_start().strip_prefix(b"\xff").unwrap_or(&line))
                    .unwrap();
            let name = order["execute"].as_str().unwrap();
            seen(name);
            let answer = match name {
                "guest-sync-delimited" => {
                    stream.write_all(b"\xff").unwrap();
                    json!({ "return": order["arguments"]["id"] })
                }
                _ if refuse => json!({ "error": { "class": "GenericError", "desc": "no such command" } }),
                _ => json!({ "return": 1 }),
            };
            stream.write_all(format!("{answer}\n").as_bytes()).unwrap();
            line.clear();
        }
    });
    socket.display().to_string()
}

/// The guest stands still while the snapshot is made, and no longer.
#[test]
#[ignore = "needs root, /dev/fuse and qemu-storage-daemon"]
fn a_guest_stands_still_just_for_the_snapshot() {
    let place = Place::new();
    let machine = Arc::new(Machine::start(&place, &image(&place)));
    let orders = Arc::new(Mutex::new(Vec::new()));
    let agent = {
        let (machine, orders) = (Arc::clone(&machine), Arc::clone(&orders));
        guest(&place, false, move |order| {
            orders.lock().unwrap().push((order.to_owned(), machine.left().0.len()));
        })
    };
    place.ran(&["backup", &machine.source(), "--volume", "v", "--guest-agent", &agent]);
    assert!(place.restored("v@latest") == machine.content());
    // Node, job and export are there as it goes on.
    let expected = [("guest-sync-delimited", 0), ("guest-fsfreeze-freeze", 0), ("guest-fsfreeze-thaw", 3)];
    let orders = orders.lock().unwrap();
    let orders: Vec<(&str, usize)> = orders.iter().map(|(order, left)| (order.as_str(), *left)).collect();
    assert_eq!(orders, expected);
    // One that can't is no reason to do without.
    let refusing = guest(&place, true, |_| {});
    let refused = place.run(&["backup", &machine.source(), "--volume", "w", "--guest-agent", &refusing]);
    assert_eq!(code(&refused), 1, "{refused:?}");
    assert_eq!(machine.left().0, Vec::<String>::new());
    // What is read in place would have to stand still for as long.
    std::fs::remove_file(&refusing).unwrap();
    let agent = guest(&place, true, |_| {});
    let in_place = place.run(&["backup", &machine.image, "--volume", "w", "--guest-agent", &agent]);
    assert_ne!(code(&in_place), 0);
}

/// A monitor that says what it should not.
#[test]
fn a_monitor_that_talks_nonsense_is_an_error() {
    let place = Place::new();
    let greeting = "{\"QMP\": {}}\n{\"return\": {}}\n";
    let answers = [
        "",
        "hello\n",
        "{}\n",
        "{\"QMP\": {}}\n",
        "{\"QMP\": {}}\n{\"error\": {}}\n",
        &format!("{greeting}[]\n"),
        // What somebody else had asked, who was cut off.
        "{\"QMP\": {}}\n{\"id\": \"1z14-0-1\", \"return\": {}}\n",
        &format!("{greeting}{{\"return\": [{{\"id\": 7}}]}}\n{{\"return\": 5}}\n"),
    ];
    for (number, answer) in answers.iter().enumerate() {
        let socket = place.path(&format!("qmp{number}"));
        let listener = UnixListener::bind(&socket).unwrap();
        let answer = (*answer).to_owned();
        let monitor = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut orders = BufReader::new(stream.try_clone().unwrap());
            for line in answer.split_inclusive('\n') {
                let mut line = line.to_owned();
                let is_answer = line.contains("\"return\"") || line.contains("\"error\"");
                if is_answer && !line.contains("\"1z14-0-1\"") {
                    let mut order = String::new();
                    orders.read_line(&mut order).unwrap();
                    let order: Value = serde_json::from_str(&order).unwrap();
                    line = line.replacen('{', &format!("{{\"id\": {}, ", order["id"]), 1);
                }
                let _ = stream.write_all(line.as_bytes());
            }
        });
        let refused = place.run(&["backup", &format!("qmp:{}:disk0", socket.display()), "--volume", "v"]);
        assert_eq!(code(&refused), 1, "{number}: {}", String::from_utf8_lossy(&refused.stderr));
        monitor.join().unwrap();
    }
}

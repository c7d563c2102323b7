//! `strongroom serve` as its users meet it: what it prints, when it ends, what qemu's tools read and write through it.
//!
//! Tests that need qemu-utils are ignored unless asked for; `.ci/run` asks for them, and installs it.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use common::{Place, code, noise, walk};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// A server, killed when dropped.
struct Serving {
    child: Child,
    event: Value,
}

impl Serving {
    fn start(place: &Place, args: &[&str]) -> Self {
        // Its log goes to a file: nobody reads a pipe, and one that is full would stop the server.
        let log = place.path("serve.log");
        let mut command = place.command(&[&["serve"], args, &["--json"]].concat());
        let mut child = command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let event = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{args:?}: {line}{}", std::fs::read_to_string(&log).unwrap()));
        Self { child, event }
    }

    fn uri(&self) -> &str {
        self.event["uri"].as_str().unwrap()
    }

    /// Asks it to stop, and waits; it has to end well.
    fn stop(mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let begun = Instant::now();
        let ended = self.child.wait().unwrap();
        assert_eq!(ended.code(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A place with a backup of some data and holes.
fn backed_up() -> (Place, Vec<u8>) {
    let place = Place::new();
    let mut bytes = noise(40 * MIB, 1);
    bytes[3 * MIB..9 * MIB].fill(0);
    bytes[20 * MIB + 4096..33 * MIB].fill(0);
    let image = place.path("image");
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (n, piece) in bytes.chunks(4096).enumerate().filter(|(_, piece)| piece.iter().any(|byte| *byte != 0))
    {
        file.write_all_at(piece, n as u64 * 4096).unwrap();
    }
    place.back_up(&image, "v");
    (place, bytes)
}

fn registrations(place: &Place) -> usize {
    walk(&place.path("target/inbox")).iter().filter(|path| path.ends_with("reader")).count()
}

/// Whoever listens says so in the protocol's first words.
fn greets(mut stream: impl Read) -> bool {
    let mut greeting = [0; 16];
    stream.read_exact(&mut greeting).is_ok() && &greeting == b"NBDMAGICIHAVEOPT"
}

#[test]
fn it_serves_until_it_is_stopped_and_leaves_nothing() {
    let (place, _) = backed_up();
    let socket = place.path("a socket");
    for signal in [Signal::TERM, Signal::INT] {
        let serving = Serving::start(&place, &["v@latest", "--socket", socket.to_str().unwrap()]);
        let uri = format!("nbd+unix:///?socket={}", socket.to_str().unwrap().replace(' ', "%20"));
        assert_eq!(serving.uri(), uri);
        assert_eq!(serving.event["logical_bytes"], 40 * MIB);
        assert_eq!(serving.event["writable"], false);
        assert!(greets(UnixStream::connect(&socket).unwrap()));
        // One who is connected, and says nothing, does not hold it up.
        let _silent = UnixStream::connect(&socket).unwrap();
        assert_eq!(registrations(&place), 1, "collection is told");
        serving.stop(signal);
        assert!(!socket.exists());
        assert_eq!(registrations(&place), 0);
    }
}

#[test]
fn a_port_is_served_on_loopback_alone() {
    let (place, _) = backed_up();
    let serving = Serving::start(&place, &["v@latest", "--listen", "127.0.0.1:0"]);
    let address = serving.uri().strip_prefix("nbd://").unwrap();
    assert!(greets(TcpStream::connect(address).unwrap()));
    let taken = place.run(&["serve", "v@latest", "--listen", address]);
    assert_eq!(code(&taken), 1, "the port is taken");
    assert_eq!(code(&place.run(&["serve", "v@latest", "--listen", "0.0.0.0:0"])), 4);
    assert_eq!(code(&place.run(&["serve", "v@latest", "--listen", "localhost"])), 2);
    serving.stop(Signal::TERM);
}

#[test]
fn sockets_and_overlays_that_are_in_use_are_refused_and_those_of_the_killed_taken_over() {
    let (place, _) = backed_up();
    let (socket, overlay) = (place.path("s"), place.path("overlay"));
    let args = ["v@latest", "--socket", socket.to_str().unwrap(), "--overlay", overlay.to_str().unwrap()];
    let serving = Serving::start(&place, &args);
    let again = place.run(&[&["serve"], &args[..]].concat());
    assert_eq!(code(&again), 4, "{}", String::from_utf8_lossy(&again.stderr));
    let elsewhere = place.path("t");
    let second = [&["serve", "v@latest", "--socket", elsewhere.to_str().unwrap()], &args[3..]].concat();
    assert_eq!(code(&place.run(&second)), 4, "the overlay is in use");
    assert!(!elsewhere.exists());
    serving.kill();
    assert!(socket.exists(), "nobody cleaned up");
    Serving::start(&place, &args).stop(Signal::TERM);

    let other = place.file("other image", &noise(MIB, 2));
    place.ran(&["backup", &other, "--volume", "other"]);
    let foreign = place.run(&[&["serve", "other@latest"], &args[1..]].concat());
    assert_eq!(code(&foreign), 4, "the overlay of another backup");
    assert_eq!(code(&place.run(&["serve", "v@latest", "--cache", "1MiB"])), 2, "no cache to speak of");
    assert_eq!(code(&place.run(&["serve", "nothing@latest"])), 2);
    let both = place.run(&[&["serve"], &args[..], &["--writable"]].concat());
    assert_eq!(code(&both), 2, "an overlay, or none that is kept");
}

#[test]
fn clients_that_talk_nonsense_are_cut_off_and_nobody_else() {
    let (place, _) = backed_up();
    let socket = place.path("s");
    let serving = Serving::start(&place, &["v@latest", "--socket", socket.to_str().unwrap()]);
    for (n, words) in [noise(100, 1), noise(5000, 2), vec![0; 100], vec![0xff; 64 << 10]].iter().enumerate() {
        let mut client = UnixStream::connect(&socket).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let _ = client.write_all(words);
        // Its end, or a reset as it did not read all.
        let mut rest = Vec::new();
        let end = client.read_to_end(&mut rest);
        let timed_out = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!timed_out, "client {n} is still connected");
    }
    assert!(greets(UnixStream::connect(&socket).unwrap()));
    serving.stop(Signal::TERM);
}

fn qemu(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; install qemu-utils"))
}

/// Runs commands of qemu-io; what it said, and whether all went well.
fn qemu_io(uri: &str, commands: &[&str]) -> (bool, String) {
    let mut args = vec!["-f", "raw", "-t", "writeback"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(uri);
    let output = qemu("qemu-io", &args);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    // It says what failed, and ends well all the same.
    let well = output.status.success() && !said.contains("failed") && !said.contains("rror");
    (well, said)
}

#[track_caller]
fn goes_well(uri: &str, commands: &[&str]) {
    let (well, said) = qemu_io(uri, commands);
    assert!(well, "{commands:?}: {said}");
}

#[track_caller]
fn is_equal(place: &Place, uri: &str) {
    let image = place.path("image");
    let compared = qemu("qemu-img", &["compare", "-f", "raw", "-F", "raw", image.to_str().unwrap(), uri]);
    assert!(
        compared.status.success(),
        "{}",
        String::from_utf8_lossy(&[compared.stdout, compared.stderr].concat())
    );
}

/// Where an image has data, as qemu-img sees it: runs that are alike put together.
fn data_runs(image: &str) -> Vec<(u64, u64)> {
    let output = qemu("qemu-img", &["map", "-f", "raw", "--output", "json", image]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for row in rows.iter().filter(|row| row["data"] == true) {
        let (start, len) = (row["start"].as_u64().unwrap(), row["length"].as_u64().unwrap());
        match runs.last_mut() {
            Some((_, end)) if *end == start => *end += len,
            _ => runs.push((start, start + len)),
        }
    }
    runs
}

#[test]
#[ignore = "needs qemu-utils"]
fn qemu_reads_the_volume_and_sees_its_holes() {
    let (place, _) = backed_up();
    for args in
        [&["v@latest", "--listen", "127.0.0.1:0"][..], &["v@latest", "--listen", "127.0.0.1:0", "--writable"]]
    {
        let serving = Serving::start(&place, args);
        is_equal(&place, serving.uri());
        let image = place.path("image");
        let runs = data_runs(serving.uri());
        assert_eq!(runs, data_runs(image.to_str().unwrap()));
        assert_eq!(runs.len(), 3, "{runs:?}");
        // As many connections at once as a client likes.
        let copy = place.path("copy");
        let args =
            ["convert", "-f", "raw", "-O", "raw", "-W", "-m", "16", serving.uri(), copy.to_str().unwrap()];
        assert!(qemu("qemu-img", &args).status.success());
        assert!(std::fs::read(&copy).unwrap() == std::fs::read(&image).unwrap());
        serving.stop(Signal::TERM);
    }
}

#[test]
#[ignore = "needs qemu-utils"]
fn a_backup_that_is_read_only_refuses_writes() {
    let (place, _) = backed_up();
    let serving = Serving::start(&place, &["v@latest", "--listen", "127.0.0.1:0"]);
    let (well, said) = qemu_io(serving.uri(), &["write -P 1 0 4k"]);
    assert!(!well, "{said}");
    is_equal(&place, serving.uri());
}

#[test]
#[ignore = "needs qemu-utils"]
fn an_overlay_takes_writes_and_keeps_what_was_flushed_when_the_server_is_killed() {
    let (place, bytes) = backed_up();
    let (socket, overlay) = (place.path("s"), place.path("overlay"));
    let args = ["v@latest", "--socket", socket.to_str().unwrap(), "--overlay", overlay.to_str().unwrap()];
    let serving = Serving::start(&place, &args);
    let written = [
        "write -P 7 5000 10000",
        "write -z 10M 64k",
        "write -z -u 12M 1M",
        "discard 14M 1M",
        "write -f -P 8 38M 2M",
    ];
    let read = [
        "read -P 7 5000 10000",
        "read -P 0 10M 64k",
        "read -P 0 12M 1M",
        "read -P 0 14M 1M",
        "read -P 8 38M 2M",
    ];
    goes_well(serving.uri(), &[&written[..], &read, &["flush"]].concat());
    serving.kill();
    let serving = Serving::start(&place, &args);
    goes_well(serving.uri(), &read);
    // What is beside it is the backup's.
    let copy = place.path("copy");
    let convert = ["convert", "-f", "raw", "-O", "raw", serving.uri(), copy.to_str().unwrap()];
    assert!(qemu("qemu-img", &convert).status.success());
    let mut expected = bytes;
    expected[5000..15000].fill(7);
    expected[10 * MIB..10 * MIB + (64 << 10)].fill(0);
    expected[12 * MIB..13 * MIB].fill(0);
    expected[14 * MIB..15 * MIB].fill(0);
    expected[38 * MIB..].fill(8);
    assert!(std::fs::read(&copy).unwrap() == expected);
    serving.stop(Signal::TERM);
    // And the backup is what it was.
    let untouched = Serving::start(&place, &["v@latest", "--listen", "127.0.0.1:0"]);
    is_equal(&place, untouched.uri());
}

#[test]
#[ignore = "needs qemu-utils"]
fn a_damaged_pack_reads_as_an_error_where_it_was_needed_and_right_elsewhere() {
    let (place, bytes) = backed_up();
    let packs = walk(&place.path("target/packs"));
    // Most frames of a third of the packs.
    for pack in &packs[..packs.len() / 3] {
        let pack = std::fs::OpenOptions::new().write(true).open(pack).unwrap();
        let len = pack.metadata().unwrap().len();
        pack.write_all_at(&vec![0x55; usize::try_from(len * 3 / 4).unwrap()], 64).unwrap();
    }
    let serving = Serving::start(&place, &["v@latest", "--listen", "127.0.0.1:0", "--writable"]);
    let (mut right, mut failed) = (0, 0);
    for start in (0..40 * MIB).step_by(256 << 10) {
        let (well, said) = qemu_io(serving.uri(), &[&format!("read -v {start} 512")]);
        if well {
            let row: String = bytes[start..start + 16].iter().map(|byte| format!("{byte:02x} ")).collect();
            assert!(said.contains(&row), "other bytes at {start}: {said}");
            right += 1;
        } else {
            assert!(said.contains("Input/output error"), "{said}");
            failed += 1;
        }
    }
    assert!(failed > 0 && right > 100, "{right} right, {failed} failed");
    serving.stop(Signal::TERM);
}

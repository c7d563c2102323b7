//! `strongroom up` as a user runs it: schedules, requests, and a process that is killed at any moment.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod common;

use std::io::{Read, Write};
use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use common::{Mount, Place, code};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::Value;

/// How often the process is killed by default; `STRONGROOM_TEST_KILLS` asks for more.
const KILLS: u32 = 8;
/// Longer than anything here takes on a slow machine. A function's run that was cut off is taken up after two minutes.
const PATIENCE: Duration = Duration::from_secs(400);

struct Fleet {
    place: Place,
}

impl Fleet {
    fn new(volumes: &str) -> Self {
        Self::with("", "drain-seconds = 20", volumes)
    }

    /// With more at the beginning of the configuration file, and of what it says of the agent. IMAGES stands for their folder.
    fn with(head: &str, agent: &str, volumes: &str) -> Self {
        let place = Place::new();
        for folder in ["images", "restored"] {
            std::fs::create_dir(place.path(folder)).unwrap();
        }
        let config = format!(
            "{head}\nqueues = \"file://{}\"\n[agent]\nsources = [{:?}]\ndestinations = [{:?}]\nheartbeat-seconds = 1\n\
             {agent}\n{volumes}",
            place.path("queues").display(),
            place.path("images"),
            place.path("restored"),
        );
        place
            .file("config.toml", config.replace("IMAGES", place.path("images").to_str().unwrap()).as_bytes());
        Self { place }
    }

    fn start(&self) -> Child {
        self.start_with(&[])
    }

    fn start_with(&self, more: &[&str]) -> Child {
        self.start_every("500ms", more)
    }

    fn start_every(&self, tick: &str, more: &[&str]) -> Child {
        let config = self.place.path("config.toml");
        let args = ["up", "--tick", tick, "--config", config.to_str().unwrap()];
        let mut command = self.place.command(&[&args, more].concat());
        let log = std::fs::File::options().append(true).create(true).open(self.place.path("up.log")).unwrap();
        let said = std::fs::File::create(self.place.path("up.out")).unwrap();
        command.env("STRONGROOM_LOG", "info").stdout(said).stderr(log).spawn().unwrap()
    }

    fn run(&self, args: &[&str]) -> std::process::Output {
        let config = self.place.path("config.toml");
        self.place.run(&[args, &["--config", config.to_str().unwrap()]].concat())
    }

    fn ran(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.place.path("up.log")).unwrap_or_default()
    }

    /// Waits until something is so.
    fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < PATIENCE, "{what}\n{}", self.log());
            sleep(Duration::from_millis(50));
        }
    }

    fn image(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.place.path("images").join(name), bytes).unwrap();
    }

    /// The runs that `keep` takes, as JSON.
    fn runs(&self, keep: impl Fn(&Value) -> bool) -> Vec<Value> {
        let text = self.ran(&["runs", "--json", "--limit", "10000"]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).filter(keep).collect()
    }

    /// Waits until no run is open.
    fn settle(&self) {
        let begun = Instant::now();
        while !self.ran(&["runs", "--open"]).is_empty() {
            assert!(begun.elapsed() < PATIENCE, "runs that never end: {}", self.ran(&["runs", "--open"]));
            sleep(Duration::from_millis(300));
        }
    }

    fn dead_letters(&self) -> Vec<String> {
        let mut dead = Vec::new();
        for queue in std::fs::read_dir(self.place.path("queues")).unwrap() {
            for letter in std::fs::read_dir(queue.unwrap().path().join("dead")).unwrap() {
                dead.push(std::fs::read_to_string(letter.unwrap().path()).unwrap());
            }
        }
        dead
    }
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

fn stop(mut process: Child) {
    let pid = rustix::process::Pid::from_child(&process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = process.wait().unwrap();
    assert!(status.success(), "{status:?}");
}

fn is_backup(run: &Value) -> bool {
    run["run"]["job"].get("backup").is_some()
}

#[test]
fn a_volume_with_a_cron_line_is_backed_up_kept_and_restored_with_nobody_looking() {
    let fleet = Fleet::new("[volumes.db]\nsource = \"IMAGES/db.img\"\ncron = \"* * * * *\"\nkeep-last = 1\n");
    let content = noise(3 << 20, 1);
    fleet.image("db.img", &content);
    let process = fleet.start();
    // Now on request, and then again by the clock.
    fleet.ran(&["request", "backup", "db", "--wait"]);
    let begun = Instant::now();
    while fleet.runs(is_backup).iter().filter(|run| run["run"]["state"].get("succeeded").is_some()).count()
        < 2
    {
        assert!(begun.elapsed() < PATIENCE, "no slot became a run: {:?}", fleet.runs(|_| true));
        sleep(Duration::from_millis(300));
    }
    let destination = fleet.place.path("restored").join("db.img");
    let to = destination.to_str().unwrap();
    fleet.ran(&["request", "restore", "db@latest", to, "--on-host", "test-host", "--wait"]);
    assert!(std::fs::read(&destination).unwrap() == content);
    fleet.ran(&["request", "verify", "--on-host", "test-host", "--sample", "100", "--wait"]);
    // What `up` brings in from its configuration can also be asked for.
    let image = fleet.place.path("images").join("db.img");
    fleet.ran(&[
        "request",
        "volume-put",
        "other",
        "--on-host",
        "test-host",
        "--source",
        image.to_str().unwrap(),
        "--cron",
        "@yearly",
        "--jitter",
        "10m",
        "--keep-last",
        "2",
        "--rpo",
        "1d",
        "--wait",
    ]);
    fleet.ran(&["request", "backup", "other", "--wait"]);
    fleet.ran(&["request", "schedule", "other", "--jitter", "1m", "--paused", "true", "--wait"]);
    fleet.ran(&["request", "volume-delete", "other", "--wait"]);
    // What is asked for wrongly says why.
    for (args, reason) in [
        (vec!["request", "backup", "nothing", "--wait"], "no volume"),
        (
            vec!["request", "restore", "db@latest", "/etc/x", "--on-host", "test-host", "--wait"],
            "destinations",
        ),
        (vec!["request", "restore", "db@latest", to, "--on-host", "elsewhere", "--wait"], "no host"),
        (vec!["request", "schedule", "db", "--cron", "61 * * * *", "--wait"], "schedule"),
    ] {
        let output = fleet.run(&args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains("failed") && text.contains(reason), "{args:?}: {text}");
    }
    fleet.settle();
    let kept = fleet.ran(&["ls", "--volume", "db"]);
    assert_eq!(kept.lines().count(), 1, "retention follows each backup: {kept}");
    fleet.ran(&["request", "gc", "--grace", "0s", "--wait"]);
    stop(process);
    assert_eq!(fleet.dead_letters(), Vec::<String>::new());
}

#[test]
fn volumes_that_go_together_are_backed_up_and_thinned_out_together() {
    let agent = "hooks.before = [\"true\"]\n";
    let volume =
        "[volumes.db]\nsource = \"IMAGES/db.img\"\nwith.db-log = \"IMAGES/log.img\"\nkeep-last = 1\n";
    let fleet = Fleet::with("", agent, volume);
    let (data, log) = (noise(1 << 20, 1), noise(1 << 19, 2));
    fleet.image("db.img", &data);
    fleet.image("log.img", &log);
    let process = fleet.start();
    fleet.ran(&["request", "backup", "db", "--wait"]);
    fleet.ran(&["request", "backup", "db", "--wait"]);
    fleet.settle();
    for volume in ["db", "db-log"] {
        let kept = fleet.ran(&["ls", "--volume", volume]);
        assert_eq!(kept.lines().count(), 1, "retention follows each backup: {kept}");
    }
    let listed: Value = serde_json::from_str(&fleet.ran(&["ls", "--json"])).unwrap();
    assert!(listed[0]["group"]["members"] == 2 && listed[0]["group"] == listed[1]["group"], "{listed}");
    let run = fleet.runs(is_backup).pop().unwrap();
    assert_eq!(run["run"]["state"]["succeeded"]["result"]["logical_bytes"], 3 << 19, "{run}");
    let put = ["request", "volume-put", "db", "--on-host", "test-host", "--source", "x", "--with", "db=y"];
    assert_eq!(fleet.run(&put).status.code(), Some(2), "with itself");
    stop(process);
    assert!(fleet.place.restored("db@latest") == data && fleet.place.restored("db-log@latest") == log);
    assert_eq!(fleet.dead_letters(), Vec::<String>::new());
}

/// The console of `up`: for whoever has its token, which stays the same, and gone with the process.
#[test]
fn the_console_shows_the_fleet_and_takes_what_is_asked_for() {
    let fleet = Fleet::new("[volumes.db]\nsource = \"IMAGES/db.img\"\n");
    fleet.image("db.img", &noise(1 << 20, 1));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let send = |line: &str, headers: &str, body: &str| {
        let mut stream = std::net::TcpStream::connect(&address).ok()?;
        let length = body.len();
        write!(
            stream,
            "{line} HTTP/1.1\r\n{headers}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    let ask = |line: &str, token: &str| {
        send(line, &format!("Host: {address}\r\nAuthorization: Bearer {token}"), "")
    };
    let mut told = Vec::new();
    for round in 0..2 {
        let process = fleet.start_with(&["--console", &address]);
        fleet.wait_for("no console", || ask("GET /style.css", "").is_some());
        let token = std::fs::read_to_string(fleet.place.path("state/console-token")).unwrap();
        let token = token.trim().to_owned();
        assert!(ask("GET /v1/volumes", "x").unwrap().starts_with("HTTP/1.1 401 "));
        let taken = ask("POST /v1/volumes/db/backups", &token).unwrap();
        assert!(taken.starts_with("HTTP/1.1 202 "), "{taken}");
        fleet.wait_for("no backup", || {
            ask("GET /v1/volumes/db", &token)
                .is_some_and(|told| told.contains(&format!("\"backups\":{}", round + 1)))
        });

        // A browser, which is known under the console's own name only.
        let said = std::fs::read_to_string(fleet.place.path("up.out")).unwrap();
        let name = said.split_once("console: http://").unwrap().1.split_once('/').unwrap().0.to_owned();
        assert!(name.ends_with(&format!(".localhost:{port}")) && !said.contains(&token), "{said}");
        let form = format!("token={token}");
        let at = |host: &str, more: &str| format!("Host: {host}\r\nSec-Fetch-Site: same-origin\r\n{more}");
        let of_form = "Content-Type: application/x-www-form-urlencoded";
        let entered = send("POST /login", &at(&name, of_form), &form).unwrap();
        assert!(entered.starts_with("HTTP/1.1 303 "), "{entered}");
        let cookie = entered.split_once("set-cookie: ").unwrap().1.split_once(';').unwrap().0;
        let shown = format!("Cookie: {cookie}");
        assert!(send("GET /", &at(&name, &shown), "").unwrap().starts_with("HTTP/1.1 200 "));
        for elsewhere in [&address, &format!("localhost:{port}"), "rebound.example"] {
            let refused = send("GET /", &at(elsewhere, &shown), "").unwrap();
            assert!(refused.starts_with("HTTP/1.1 421 "), "{elsewhere}: {refused}");
            let refused = send("POST /login", &at(elsewhere, of_form), &form).unwrap();
            assert!(refused.starts_with("HTTP/1.1 421 "), "{elsewhere}: {refused}");
        }
        told.push((token, name));
        // One that stays connected holds nobody up.
        let _idle = std::net::TcpStream::connect(&address).unwrap();
        let asked = Instant::now();
        stop(process);
        assert!(asked.elapsed() < Duration::from_secs(15), "it waited for whoever was connected");
        assert!(ask("GET /", "").is_none(), "it is gone");
    }
    assert_eq!(told[0], told[1]);
    let log = fleet.log();
    assert!(!log.contains(&told[0].0) && !log.contains(&told[0].1), "the token or the name is in the log");
    let refused = fleet.run(&["up", "--console", "0.0.0.0:0"]);
    assert_eq!(code(&refused), 2, "others could reach it");
}

#[test]
fn what_was_written_long_ago_is_forgotten_unless_it_ended_later() {
    let fleet = Fleet::new("");
    fleet.image("db.img", &noise(1 << 20, 1));
    let source = fleet.place.path("images").join("db.img");
    let process = fleet.start();
    fleet.ran(&[
        "request",
        "volume-put",
        "db",
        "--on-host",
        "test-host",
        "--source",
        source.to_str().unwrap(),
        "--wait",
    ]);
    fleet.ran(&["request", "backup", "db", "--wait"]);
    fleet.settle();
    stop(process);
    let files = |folder: &str| {
        let folder = std::fs::read_dir(fleet.place.path("target").join(folder)).unwrap();
        folder.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let written = |file: &Path, at: SystemTime| {
        std::fs::File::options().write(true).open(file).unwrap().set_modified(at).unwrap();
    };
    let (runs, outcomes) = (files("runs"), files("outcomes"));
    assert!(runs.len() >= 2 && outcomes.len() == 1, "{runs:?}, {outcomes:?}");
    // The newest run tells what time it is.
    let long_ago = SystemTime::now() - Duration::from_secs(91 * 24 * 3600);
    runs[1..].iter().chain(&outcomes).for_each(|file| written(file, long_ago));
    let process = fleet.start_every("50ms", &[]);
    fleet.wait_for("an old answer is kept", || files("outcomes").is_empty());
    stop(process);
    assert!(runs.iter().all(|file| file.exists()), "a run that ended today is forgotten");
    assert!(fleet.log().contains("forgotten"), "{}", fleet.log());

    // Whatever changed last, the newest ones are those that were begun last.
    runs.iter().for_each(|file| written(file, SystemTime::now()));
    let id = |run: &Value| run["id"].as_str().unwrap().to_owned();
    let newest_first: Vec<String> = fleet.runs(|_| true).iter().map(id).collect();
    let oldest = fleet.place.path("target/runs").join(newest_first.last().unwrap());
    written(&oldest, SystemTime::now() + Duration::from_secs(3600));
    let listed = fleet.ran(&["runs", "--json", "--limit", "1"]);
    assert_eq!(id(&serde_json::from_str(&listed).unwrap()), newest_first[0]);
    assert_eq!(fleet.ran(&["runs", "--limit", "0"]), "");
}

#[test]
fn requests_that_come_again_are_one_and_poison_is_buried_with_the_reason() {
    let fleet = Fleet::new("[volumes.db]\nsource = \"IMAGES/db.img\"\n");
    fleet.image("db.img", &noise(1 << 20, 2));
    // Before anything runs: the queue keeps them.
    let runs: Vec<String> =
        (0..5).map(|_| fleet.ran(&["request", "backup", "db", "--key", "nightly-7"])).collect();
    assert!(runs.iter().all(|run| run == &runs[0]), "{runs:?}");
    for (number, poison) in
        ["", "{}", "\u{0}\u{1}", "[[[[", "{\"version\":9,\"run\":\"x\"}"].iter().enumerate()
    {
        for queue in ["requests", "commits", "retention", "gc", "host-test-host"] {
            let folder = fleet.place.path("queues").join(queue);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(format!("{:015}-0-{number:032x}.json", 1)), poison).unwrap();
        }
    }
    let process = fleet.start();
    fleet.ran(&["watch", runs[0].trim()]);
    fleet.settle();
    let begun = Instant::now();
    // A letter and a reason for each.
    while fleet.dead_letters().len() < 2 * 5 * 5 {
        assert!(begun.elapsed() < PATIENCE, "{:?}", fleet.dead_letters());
        sleep(Duration::from_millis(200));
    }
    let told = fleet.ran(&["dead-letters"]);
    stop(process);
    assert_eq!(told.lines().count(), 5 * 5, "{told}");
    assert!(
        told.lines().any(|line| line.starts_with("commits  bad message: ") && line.contains("\\0\\u{1}")),
        "{told}"
    );
    assert_eq!(fleet.runs(is_backup).len(), 1);
    assert_eq!(fleet.ran(&["ls"]).lines().count(), 1);
}

#[test]
fn a_target_that_is_put_again_is_the_other_one_from_then_on() {
    let fleet = Fleet::new("");
    fleet.image("db.img", &noise(1 << 20, 3));
    let process = fleet.start();
    let source = fleet.place.path("images").join("db.img").display().to_string();
    let put = ["request", "volume-put", "db", "--on-host", "test-host", "--source", &source];
    let refused = fleet.run(&[&put[..], &["--of-target", "side", "--wait"]].concat());
    assert!(String::from_utf8_lossy(&refused.stdout).contains("no target 'side'"), "{refused:?}");
    let addresses = ["one", "two"].map(|name| format!("file://{}", fleet.place.path(name).display()));
    for (number, address) in addresses.iter().enumerate() {
        fleet.ran(&["target", "init", address]);
        fleet.ran(&["request", "target-put", "side", address, "--wait"]);
        fleet.ran(&[&put[..], &["--of-target", "side", "--wait"]].concat());
        fleet.ran(&["request", "backup", "db", "--wait"]);
        for (other, address) in addresses.iter().enumerate().take(number + 1) {
            let listed = fleet.ran(&["ls", "--target", address]);
            assert_eq!(listed.lines().count(), 1, "{number}, {other}: {listed}");
        }
    }
    let needed = fleet.run(&["request", "target-delete", "side", "--wait"]);
    assert!(String::from_utf8_lossy(&needed.stdout).contains("still needed, by volume 'db'"), "{needed:?}");
    fleet.ran(&["request", "volume-delete", "db", "--wait"]);
    fleet.ran(&["request", "target-delete", "side", "--wait"]);
    stop(process);
    assert_eq!(fleet.ran(&["ls"]), "", "nothing went to the home");
}

/// Hooks that show as a file whether a volume is frozen.
const HOOKS: &str =
    "hooks.before = [\"touch\", \"IMAGES/frozen\"]\nhooks.after = [\"rm\", \"IMAGES/frozen\"]\n";

#[test]
#[ignore = "needs root, loop devices and mkfs.xfs"]
fn what_is_frozen_is_thawed_as_soon_as_there_is_a_snapshot() {
    // A volume that takes some ten seconds to send.
    let fleet = Fleet::with("upload-limit = \"1MiB\"", HOOKS, "[volumes.db]\nsource = \"IMAGES/db.img\"\n");
    let folder = fleet.place.path("images");
    let mount = Mount::make(&fleet.place.path("filesystem"), &folder, "xfs");
    let content = noise(8 << 20, 7);
    fleet.image("db.img", &content);
    let process = fleet.start();
    let run = fleet.ran(&["request", "backup", "db"]);
    fleet.wait_for("it is not read from a snapshot", || fleet.log().contains("from a snapshot of the file"));
    fleet.wait_for("it is not thawed", || !folder.join("frozen").exists());
    assert!(fleet.ran(&["runs", "--open"]).contains("running"));
    fleet.image("db.img", &noise(8 << 20, 8));
    fleet.ran(&["watch", run.trim()]);
    fleet.settle();
    stop(process);
    assert!(fleet.place.restored("db@latest") == content);
    mount.unmount();
}

#[test]
fn asked_to_stop_it_thaws_and_puts_back_what_it_can_not_finish() {
    // A volume that takes some ten seconds to send, and is frozen all the time.
    let agent = "live = true\ndrain-seconds = 0\nmetrics = \"127.0.0.1:0\"\nmemory = \"600MiB\"\n";
    let hooks = &format!("{agent}{HOOKS}");
    let fleet = Fleet::with("upload-limit = \"1MiB\"", hooks, "[volumes.db]\nsource = \"IMAGES/db.img\"\n");
    let content = noise(8 << 20, 4);
    fleet.image("db.img", &content);
    let frozen = fleet.place.path("images").join("frozen");
    let mut process = fleet.start();
    let run = fleet.ran(&["request", "backup", "db"]);
    for _ in 0..2 {
        let packs = || common::walk(&fleet.place.path("target").join("packs")).len();
        let before = packs();
        fleet.wait_for("it does not begin", || frozen.exists() && packs() > before);
        assert!(fleet.ran(&["runs", "--open"]).contains("running"));
        let metrics = fleet.log().lines().rev().find_map(|line| {
            let (_, address) = line.split_once("under /metrics")?.1.split_once("address=")?;
            get(address.trim(), "/metrics")
        });
        let metrics = metrics.expect("metrics are served");
        assert!(metrics.contains("\nstrongroom_runs_running 1\n"), "{metrics}");
        let asked = Instant::now();
        stop(process);
        assert!(asked.elapsed() < Duration::from_secs(5), "it waited for what it can't finish");
        assert!(!frozen.exists(), "stopped, and the volume is still frozen");
        assert!(fleet.ran(&["runs", "--open"]).contains("queued"), "put back");
        process = fleet.start();
    }
    fleet.ran(&["watch", run.trim()]);
    fleet.settle();
    stop(process);
    assert!(fleet.place.restored("db@latest") == content && !frozen.exists());
    assert_eq!(fleet.dead_letters(), Vec::<String>::new());
}

/// docs/operations.md: "The account is lost. What is left is what was outside: a copy of the bucket […], and the recovery kit".
#[test]
fn a_copy_and_the_recovery_kit_are_enough_to_go_on_elsewhere() {
    let fleet = Fleet::new("[volumes.db]\nsource = \"IMAGES/db.img\"\n");
    let target = fleet.place.path("target");
    let (first, second) = (noise(3 << 20, 5), noise(3 << 20, 6));
    let process = fleet.start();
    fleet.image("db.img", &first);
    fleet.ran(&["request", "backup", "db", "--wait"]);
    let kit = fleet.place.path("kit").display().to_string();
    fleet.ran(&["target", "export-recovery-kit", "--output", &kit]);
    let packs = common::walk(&target.join("packs"));
    fleet.image("db.img", &second);
    fleet.ran(&["request", "backup", "db", "--wait"]);
    stop(process);

    // Copied while it changed: the root is there already, and one of the packs that it needs is not. No keyring.
    let copy = fleet.place.path("copy");
    let late = common::walk(&target.join("packs")).into_iter().find(|pack| !packs.contains(pack)).unwrap();
    for file in common::walk(&target) {
        if file != late && file != target.join("keyring") {
            let to = copy.join(file.strip_prefix(&target).unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(file, to).unwrap();
        }
    }
    // Another machine, which has seen nothing.
    let (address, state) = (format!("file://{}", copy.display()), fleet.place.path("other-state"));
    let with_key = |args: &[&str], key: &str| {
        let there = ["--target", &address, "--state-dir", state.to_str().unwrap(), "--key-file", key];
        fleet.run(&[args, &there].concat())
    };
    let with_kit = |args: &[&str]| with_key(args, &kit);
    assert_eq!(code(&with_kit(&["target", "restore-keyring", &kit])), 0);
    assert_eq!(code(&with_kit(&["verify"])), 3, "what is missing is noticed");
    std::fs::remove_file(copy.join("root")).unwrap();
    let rebuilt = with_kit(&["index", "rebuild"]);
    assert_eq!(code(&rebuilt), 3, "it says what is not whole: {rebuilt:?}");
    assert_eq!(code(&with_kit(&["verify", "--full"])), 0);
    assert!(with_kit(&["restore", "db@latest", "-"]).stdout == first, "the backup that is whole");

    // A fleet again, which knows its volumes.
    let key = fleet.place.path("another-key").display().to_string();
    assert_eq!(code(&with_kit(&["target", "rotate", "--keep-old", "--new-key-file", &key])), 0);
    let process = fleet.start_with(&["--target", &address, "--key-file", &key]);
    let asked = with_key(&["request", "backup", "db", "--wait"], &key);
    assert_eq!(code(&asked), 0, "{asked:?}\n{}", fleet.log());
    stop(process);
    assert!(with_kit(&["restore", "db@latest", "-"]).stdout == second);
}

/// What an HTTP server says; nothing if it is gone.
fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Kills at random points of backups and restores that are going on all the time.
#[test]
fn whatever_moment_it_is_killed_at_every_run_comes_to_its_right_end() {
    let kills =
        std::env::var("STRONGROOM_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let seed = std::env::var("STRONGROOM_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    println!("seed {seed}, {kills} kills");
    let mut chance = StdRng::seed_from_u64(seed);
    // The clock asks as well: every minute.
    let fleet = Fleet::new("[volumes.db]\nsource = \"IMAGES/db.img\"\ncron = \"* * * * *\"\nkeep-last = 3\n");
    let mut wanted = Vec::new();
    let mut content = noise(8 << 20, seed);
    let mut versions = Vec::new();
    for round in 0..kills {
        let at = chance.random_range(0..content.len() - (1 << 20));
        content[at..at + (1 << 20)].copy_from_slice(&noise(1 << 20, u64::from(round)));
        fleet.image("db.img", &content);
        versions.push(content.clone());
        let mut process = fleet.start();
        fleet.ran(&["request", "backup", "db", "--key", &format!("backup-{round}")]);
        if round > 0 {
            let to = fleet.place.path("restored").join(format!("{round}.img"));
            let key = format!("restore-{round}");
            let args = [
                "request",
                "restore",
                "db@latest",
                to.to_str().unwrap(),
                "--on-host",
                "test-host",
                "--key",
                &key,
            ];
            wanted.push((fleet.ran(&args).trim().to_owned(), to));
        }
        sleep(Duration::from_millis(chance.random_range(0..2500)));
        process.kill().unwrap();
        process.wait().unwrap();
    }
    let process = fleet.start();
    fleet.ran(&["request", "backup", "db", "--wait"]);
    fleet.settle();
    for (run, to) in &wanted {
        // No backup was there yet, or the restore is whole: never a success without a file, never half a file.
        let output = fleet.run(&["watch", run]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            let restored = std::fs::read(to).unwrap();
            assert!(versions.contains(&restored), "the volume never was what was restored: {text}");
        } else {
            assert!(text.contains("no backup") || text.contains("no volume"), "{text}");
        }
    }
    stop(process);
    let failed = fleet.runs(|run| is_backup(run) && run["run"]["state"].get("failed").is_some());
    assert!(failed.is_empty(), "{failed:?}");
    let succeeded = fleet.runs(|run| is_backup(run) && run["run"]["state"].get("succeeded").is_some());
    let by_clock = succeeded.iter().filter(|run| run["run"]["origin"].get("slot").is_some()).count();
    println!("{} backups, {by_clock} of them by the clock; {} restores", succeeded.len(), wanted.len());
    assert_eq!(succeeded.len() - by_clock, kills as usize + 1, "each backup that was asked for is made once");
    let last = fleet.place.restored("db@latest");
    assert!(last == content, "the last backup is what the volume was last");
    fleet.ran(&["verify", "--full"]);
    assert_eq!(fleet.dead_letters(), Vec::<String>::new());
    assert!(
        leftovers(&fleet.place.path("restored")).is_empty(),
        "{:?}",
        leftovers(&fleet.place.path("restored"))
    );
}

/// What lies in a folder that is no restored image.
fn leftovers(folder: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.ends_with(".img")).collect()
}

//! A deployed fleet as a user drives it, with everything that can go wrong at once: messages that come again and out of order,
//! messages that are none, functions and the agent killed in the middle.
//!
//! Needs the local AWS: `eval "$(localstack/up --deploy HOST)"`, then this test with `--ignored`. Without what kills functions
//! (`STRONGROOM_LAMBDA_KILLS`), as on another emulator or on AWS, only the agent is killed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{code, noise};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use strongroom_aws::AwsSettings;
use strongroom_connect::Queues;
use strongroom_fleet::QueueName;

/// Kills of functions and of the agent by default; `STRONGROOM_TEST_KILLS` asks for more.
const KILLS: usize = 12;
/// A message whose function was killed comes again after two minutes, a run that somebody died over can be taken up then.
const PATIENCE: Duration = Duration::from_secs(1200);
/// What is asked for in a round comes so often.
const COPIES: usize = 3;
/// Messages that are none: without a key, there is nowhere to answer them. Told apart from those of earlier runs of this test.
fn poison() -> [String; 3] {
    let run = std::process::id();
    [format!("{{\"none\":{run}}}"), format!("[[[[{run}"), format!("{{\"version\":9,\"run\":\"{run}\"}}")]
}

/// The environment that `localstack/up --deploy` prints.
fn said(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: eval \"$(localstack/up --deploy HOST)\""))
}

struct Fleet {
    folder: tempfile::TempDir,
    host: String,
    queues: Arc<Queues>,
    runtime: tokio::runtime::Runtime,
    agent: RefCell<Option<Child>>,
    /// Told apart from those of earlier runs of this test.
    volumes: [String; 2],
    /// Everything that each volume ever was.
    versions: RefCell<BTreeMap<String, Vec<Vec<u8>>>>,
}

impl Fleet {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["images", "restored"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let config = format!(
            "[agent]\nsources = [{:?}]\ndestinations = [{:?}]\nheartbeat-seconds = 1\n",
            folder.path().join("images"),
            folder.path().join("restored"),
        );
        std::fs::write(folder.path().join("config.toml"), config).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint_url = std::env::var("AWS_ENDPOINT_URL").ok();
        let settings = AwsSettings { region: None, endpoint_url };
        let queues = runtime.block_on(Queues::at(&said("STRONGROOM_QUEUES"), settings)).unwrap();
        let volumes = ["db", "www"].map(|name| format!("{name}-{}", std::process::id()));
        Self {
            folder,
            host: said("STRONGROOM_HOST"),
            queues: Arc::new(queues),
            runtime,
            agent: RefCell::default(),
            volumes,
            versions: RefCell::default(),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        command
            .args(args)
            .env("STRONGROOM_CONFIG", self.folder.path().join("config.toml"))
            .env("STRONGROOM_CACHE_DIR", self.folder.path().join("cache"))
            .env("STRONGROOM_STATE_DIR", self.folder.path().join("state"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn ran(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(code(&output), 0, "{args:?}: {output:?}\n{}", self.agent_log());
        String::from_utf8(output.stdout).unwrap()
    }

    fn agent_log(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn start_agent(&self) {
        let path = self.folder.path().join("agent.log");
        let log = File::options().append(true).create(true).open(path).unwrap();
        let agent =
            self.command(&["agent"]).env("STRONGROOM_LOG", "info").stdout(Stdio::null()).stderr(log).spawn();
        *self.agent.borrow_mut() = Some(agent.unwrap());
    }

    fn kill_agent(&self) {
        let mut agent = self.agent.borrow_mut().take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    fn path(&self, folder: &str, name: &str) -> PathBuf {
        self.folder.path().join(folder).join(name)
    }

    /// Gives a volume other content, all at once: who reads the old one goes on with it.
    fn write(&self, volume: &str, content: Vec<u8>) {
        let path = self.path("images", volume);
        std::fs::write(path.with_extension("new"), &content).unwrap();
        std::fs::rename(path.with_extension("new"), &path).unwrap();
        self.versions.borrow_mut().entry(volume.to_owned()).or_default().push(content);
    }

    fn send(&self, queue: &QueueName, bodies: &[String]) {
        let send = async { self.queues.get(queue).await.unwrap().send(bodies).await.unwrap() };
        self.runtime.block_on(send);
    }

    /// The queue and the body of each dead letter, and why it is one. A function that dies after it laid a message to rest and
    /// before it said so lays it to rest again: one letter may be there more than once.
    fn dead_letters(&self) -> BTreeMap<(String, String), String> {
        let text = self.ran(&["dead-letters", "--json"]);
        let letters = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let part = |letter: &Value, name: &str| letter[name].as_str().unwrap().to_owned();
        // LocalStack writes what is JSON anew, with other spaces.
        let body = |letter: &Value| part(letter, "body").replace(' ', "");
        letters.map(|letter| ((part(&letter, "queue"), body(&letter)), part(&letter, "reason"))).collect()
    }

    /// The runs of this test: about its volumes, or asked for under its keys.
    fn runs(&self) -> Vec<Value> {
        let text = self.ran(&["runs", "--json", "--limit", "100000"]);
        let runs = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        runs.filter(|run| self.is_ours(&run["run"])).collect()
    }

    fn is_ours(&self, run: &Value) -> bool {
        let key = run["origin"]["request"]["key"].as_str().unwrap_or_default();
        let volume =
            ["backup", "retention"].map(|job| run["job"][job]["volume"].as_str().unwrap_or_default());
        key.starts_with(&self.volumes[0]) || self.volumes.iter().any(|known| volume.contains(&known.as_str()))
    }

    /// How often functions were killed in the middle so far.
    fn functions_killed() -> usize {
        let reports = std::env::var("STRONGROOM_LAMBDA_REPORTS").ok();
        let text = reports.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        text.lines().filter(|line| line.contains("\"killed\": true")).count()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        set_kills(None);
        if let Some(mut agent) = self.agent.borrow_mut().take() {
            let _ = agent.kill().and_then(|()| agent.wait());
        }
        for volume in &self.volumes {
            self.run(&["request", "volume-delete", volume]);
        }
    }
}

/// Lets a share of all invocations die within a time, or none. Says whether that can be had here.
fn set_kills(kills: Option<(f64, u32)>) -> bool {
    let Some(path) = std::env::var_os("STRONGROOM_LAMBDA_KILLS").filter(|path| !path.is_empty()) else {
        return false;
    };
    match kills {
        Some((share, most_ms)) => {
            std::fs::write(path, json!({ "share": share, "most_ms": most_ms }).to_string()).unwrap();
        }
        None => drop(std::fs::remove_file(path)),
    }
    true
}

#[test]
#[ignore = "needs LocalStack with a fleet: run localstack/up --deploy HOST"]
fn what_comes_again_or_makes_no_sense_or_dies_in_the_middle_changes_no_outcome() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let (kills, seed) =
        (number("STRONGROOM_TEST_KILLS").unwrap_or(KILLS), number("STRONGROOM_TEST_SEED").unwrap_or(7));
    let mut chance = StdRng::seed_from_u64(seed as u64);
    let fleet = Fleet::new();
    let begun = Instant::now();
    let buried = fleet.dead_letters();

    // A schedule each, and a first backup.
    fleet.start_agent();
    for (number, volume) in fleet.volumes.iter().enumerate() {
        fleet.write(volume, noise(6 << 20, number as u64));
        let source = fleet.path("images", volume);
        let put =
            ["request", "volume-put", volume, "--on-host", &fleet.host, "--source", source.to_str().unwrap()];
        let keep = ["--cron", "* * * * *", "--jitter", "20s", "--keep-last", "3", "--wait"];
        fleet.ran(&[&put[..], &keep[..]].concat());
        fleet.ran(&["request", "backup", volume, "--wait"]);
    }

    // What is none.
    let queues = [
        QueueName::Requests,
        QueueName::Commits,
        QueueName::Retention,
        QueueName::Gc,
        QueueName::Host(fleet.host.clone()),
    ];
    for queue in &queues {
        fleet.send(queue, &poison());
    }
    // What can't be done, and can be answered.
    let bad_key = format!("{}-bad", fleet.volumes[0]);
    let bad = json!({"version": 1, "key": bad_key, "request": {"type": "backup", "volume": fleet.volumes[0], "fast": true}});
    fleet.send(&QueueName::Requests, &[bad.to_string()]);

    // Rounds of requests, while functions and the agent are killed.
    let killed_before = Fleet::functions_killed();
    let functions_die = set_kills(Some((0.4, 150)));
    let (mut round, mut agent_kills, mut by_clock) = (0, 0, 0);
    let mut restores: Vec<(String, PathBuf)> = Vec::new();
    while agent_kills + Fleet::functions_killed() - killed_before < kills
        || (functions_die && Fleet::functions_killed() - killed_before < kills / 2)
        || by_clock == 0
    {
        assert!(begun.elapsed() < PATIENCE * 3, "so few kills in so long: {agent_kills} of the agent");
        let mut bodies = Vec::new();
        let mut ask = |name: String, request: Value| {
            let key = format!("{}-{name}-{round}", fleet.volumes[0]);
            bodies.push(json!({"version": 1, "key": key, "request": request}).to_string());
        };
        for volume in &fleet.volumes {
            let mut content = fleet.versions.borrow()[volume].last().unwrap().clone();
            let at = chance.random_range(0..content.len() - (1 << 20));
            content[at..at + (1 << 20)].copy_from_slice(&noise(1 << 20, chance.random()));
            fleet.write(volume, content);
            ask(format!("backup-{volume}"), json!({"type": "backup", "volume": volume}));
            let to = fleet.path("restored", &format!("{volume}-{round}.img"));
            ask(
                format!("restore-{volume}"),
                json!({"type": "restore", "backup": format!("{volume}@latest"), "host": fleet.host, "destination": to}),
            );
            restores.push((volume.clone(), to));
        }
        ask("gc".to_owned(), json!({"type": "gc"}));
        let mut copies: Vec<String> =
            bodies.iter().flat_map(|body| std::iter::repeat_n(body.clone(), COPIES)).collect();
        copies.shuffle(&mut chance);
        fleet.send(&QueueName::Requests, &copies);
        // Runs come to their host again: ended ones, and those that are being worked on.
        let runs = fleet.runs();
        by_clock = runs.iter().filter(|run| run["run"]["origin"].get("slot").is_some()).count();
        let again = runs.iter().filter(|run| run["run"]["job"].get("backup").is_some()).take(4);
        let again: Vec<String> =
            again.map(|run| json!({"version": 1, "run": run["id"]}).to_string()).collect();
        fleet.send(&QueueName::Host(fleet.host.clone()), &again);
        sleep(Duration::from_millis(chance.random_range(0..6000)));
        fleet.kill_agent();
        agent_kills += 1;
        sleep(Duration::from_millis(chance.random_range(0..2000)));
        fleet.start_agent();
        sleep(Duration::from_millis(chance.random_range(0..8000)));
        round += 1;
    }
    set_kills(None);
    let functions_killed = Fleet::functions_killed() - killed_before;
    println!(
        "seed {seed}: {round} rounds in {} s, the agent was killed {agent_kills} times, functions {functions_killed} times in the middle",
        begun.elapsed().as_secs()
    );

    // No more slots: then everything must come to its end, by itself.
    for volume in &fleet.volumes {
        fleet.ran(&["request", "schedule", volume, "--paused", "true", "--wait"]);
    }
    let settling = Instant::now();
    let is_open = |run: &&Value| {
        let state = &run["run"]["state"];
        state.get("succeeded").is_none() && state.get("failed").is_none()
    };
    // Each round: two backups, two restores, a collection; and the request that can't be done.
    let asked = 5 * round + 1;
    let mut runs = fleet.runs();
    let keys = |runs: &[Value]| {
        runs.iter()
            .filter(|run| {
                run["run"]["origin"]["request"]["key"]
                    .as_str()
                    .is_some_and(|key| key.starts_with(&fleet.volumes[0]))
            })
            .count()
    };
    while keys(&runs) < asked || runs.iter().any(|run| is_open(&run)) {
        let open: Vec<_> = runs.iter().filter(is_open).collect();
        assert!(
            settling.elapsed() < PATIENCE,
            "{} of {asked} requests became runs; open: {open:?}\n{}",
            keys(&runs),
            fleet.agent_log()
        );
        sleep(Duration::from_secs(2));
        runs = fleet.runs();
    }
    println!("all came to their ends {} s after the last kill", settling.elapsed().as_secs());

    // Each was done once, and well; the one that can't be done says why.
    assert_eq!(keys(&runs), asked);
    let failed: Vec<_> = runs.iter().filter(|run| run["run"]["state"].get("failed").is_some()).collect();
    let [refused] = failed.as_slice() else { panic!("{failed:?}") };
    assert_eq!(refused["run"]["origin"]["request"]["key"], bad_key);
    assert!(refused["run"]["state"]["failed"]["reason"].as_str().unwrap().contains("fast"), "{refused}");
    let by_clock = runs.iter().filter(|run| run["run"]["origin"].get("slot").is_some()).count();
    println!("{} runs, {by_clock} of them by the clock", runs.len());
    assert!(by_clock > 0, "the clock asked for none");
    let versions = fleet.versions.borrow();
    for (volume, to) in &restores {
        assert!(
            versions[volume].contains(&std::fs::read(to).unwrap()),
            "{volume} never was what {} is",
            to.display()
        );
    }

    // What is there in the end is what there was last, as few of it as are to be kept, and sound.
    for volume in &fleet.volumes {
        fleet.ran(&["request", "backup", volume, "--wait"]);
        let to = fleet.path("restored", &format!("{volume}.img"));
        fleet.ran(&[
            "request",
            "restore",
            &format!("{volume}@latest"),
            to.to_str().unwrap(),
            "--on-host",
            &fleet.host,
            "--wait",
        ]);
        assert!(&std::fs::read(to).unwrap() == versions[volume].last().unwrap());
        fleet.ran(&["request", "retention", "--volume", volume, "--wait"]);
        assert_eq!(fleet.ran(&["ls", "--volume", volume]).lines().count(), 3);
    }
    fleet.ran(&["request", "gc", "--grace", "0s", "--wait"]);
    fleet.ran(&["verify", "--full"]);

    // Among the dead letters are those that are none, and nothing else.
    let waiting = Instant::now();
    let wanted: BTreeSet<(String, String)> =
        queues.iter().flat_map(|queue| poison().map(|body| (queue.to_string(), body))).collect();
    let mut letters = BTreeMap::new();
    loop {
        letters.extend(fleet.dead_letters());
        letters.retain(|letter, _| !buried.contains_key(letter));
        if wanted.iter().all(|letter| letters.contains_key(letter)) || waiting.elapsed() > PATIENCE {
            break;
        }
        sleep(Duration::from_secs(5));
    }
    assert_eq!(letters.keys().cloned().collect::<BTreeSet<_>>(), wanted, "{letters:#?}");
    for (letter, reason) in &letters {
        assert!(reason.contains("bad message"), "{letter:?}: {reason}");
    }
    println!(
        "{} dead letters, all of them meant to be; {} s in all",
        letters.len(),
        begun.elapsed().as_secs()
    );
}

//! `agent`, `up`, `request`, `runs` and `watch`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use rand::RngExt;
use serde_json::{Value, json};
use strongroom_fleet::message::{MAX_MESSAGE_BYTES, Message, Request, Wanted};
use strongroom_fleet::run::{Job, Run, RunState};
use strongroom_fleet::schedule::Schedule;
use strongroom_fleet::settings::TargetEntry;
use strongroom_fleet::shard::run_of_request;
use strongroom_fleet::volume::{RetentionSpec, VolumeSpec};
use strongroom_fleet::{Home, Outbox, QueueName, Service};
use strongroom_format::ids::{RunId, TimestampMs};
use strongroom_vault::{VaultError, VaultResult};
use tokio::sync::watch as signal;
use tokio::task::LocalSet;
use tracing::{info, warn};

use super::Done;
use crate::agent::Agent;
use crate::cli::{RequestCommand, RunsArgs, Sending, UpArgs};
use crate::fleet::{Console, HANDLER_TIME_MS, Pace, open, run_functions};
use crate::open::Settings;
use crate::output::{Output, bytes, time};

/// Pause between two looks at a run that is followed.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// So long nothing is said of a run that is not there: requests are taken up within seconds.
const SAID_AFTER: Duration = Duration::from_secs(20);
/// Dead letters shown of a queue.
const MAX_DEAD_LETTERS: usize = 100;
/// Characters of a dead letter that people are shown.
const SHOWN_OF_LETTER: usize = 200;
/// Runs read at once.
const RUNS_AT_ONCE: usize = 16;

/// Runs the agent of this host until it is told to stop.
pub async fn agent(settings: &Settings) -> VaultResult<Done> {
    let (service, queues) = open(settings).await?;
    let agent = Arc::new(Agent::new(service, queues, settings).await?);
    let stop = until_told_to_stop()?;
    LocalSet::new().run_until(agent.serve(stop)).await;
    Ok(Done::Well)
}

/// Runs agent and functions in this process until it is told to stop.
pub async fn up(settings: &Settings, args: &UpArgs, output: Output) -> VaultResult<Done> {
    let (service, queues) = open(settings).await?;
    if queues.are_remote() {
        return Err(VaultError::Invalid(
            "`up` is the control plane itself: give it queues of its own (file:///path), or run `strongroom agent`"
                .to_owned(),
        ));
    }
    let agent = Arc::new(Agent::new(service.clone(), Arc::clone(&queues), settings).await?);
    bring_in_volumes(settings, &service).await?;
    let stop = until_told_to_stop()?;
    let address = args.console.or(settings.console);
    let console = match args.no_console {
        true => None,
        false => match (Console::open(settings, address).await, address) {
            (Ok(console), _) => Some(console),
            (Err(error), Some(_)) => return Err(error),
            // Backups do not wait for what nobody asked for.
            (Err(error), None) => {
                warn!(%error, "there is no console");
                None
            }
        },
    };
    if let Some(console) = &console {
        console.tell(output);
    }
    let (functions_stop, stop_functions) = signal::channel(false);
    let pace = Pace {
        tick: Duration::from_millis(args.tick.0.max(100)),
        handler: Duration::from_millis(HANDLER_TIME_MS),
    };
    let (served, stop_console) = (service.clone(), stop.clone());
    let console = async {
        if let Some(console) = console {
            console.serve(served, stop_console).await;
        }
    };
    let work = async {
        // The functions go on while runs end: those wait for commits.
        agent.serve(stop).await;
        functions_stop.send_replace(true);
    };
    let functions = run_functions(&service, &queues, pace, stop_functions);
    let ((), (), ended) = LocalSet::new().run_until(async { tokio::join!(console, work, functions) }).await;
    ended.map(|()| Done::Well)
}

/// Brings this host and the volumes of the configuration file into the fleet, as requests do and before anything else is
/// handled: whatever waits in the queues finds them known. Each start does it again, so none of it is a run of its own that
/// would be left open if this process is killed.
async fn bring_in_volumes(settings: &Settings, service: &Service) -> VaultResult<()> {
    let host = settings.host();
    let mut wanted = vec![Wanted::HostPut { host: host.clone() }];
    for (name, volume) in &settings.volumes {
        let spec = Box::new(volume.spec(name, &host)?);
        wanted.push(Wanted::VolumePut { volume: name.clone(), spec, expected: None });
    }
    for wanted in wanted {
        strongroom_dispatcher::make_change(service, &wanted).await?;
    }
    Ok(())
}

/// Becomes true on SIGTERM and SIGINT.
pub fn until_told_to_stop() -> VaultResult<signal::Receiver<bool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|error| VaultError::Internal(format!("no signals: {error}")));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let (stop, stopped) = signal::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        info!("asked to stop");
        stop.send_replace(true);
        // Kept, so that who listens does not take the end of this task for a word.
        std::future::pending::<()>().await;
    });
    Ok(stopped)
}

/// Sends a request.
pub async fn request(settings: &Settings, command: RequestCommand, output: Output) -> VaultResult<Done> {
    let (wanted, sending) = wanted(command)?;
    let (service, queues) = open(settings).await?;
    let key = match sending.key {
        Some(key) => key,
        None => new_key()?,
    };
    let request = Request::new(key, wanted);
    request.check_key().map_err(|error| VaultError::Invalid(error.to_string()))?;
    let run = run_of_request(service.home.sealer(), &request.key);
    queues.send(&QueueName::Requests, &[request.to_json()]).await?;
    if !sending.wait {
        output.say("sent; follow it with `strongroom watch`");
        output.result(&run.to_string(), &json!({ "event": "request", "run": run, "key": request.key }));
        return Ok(Done::Well);
    }
    follow(&service.home, &[run], output).await
}

fn new_key() -> VaultResult<String> {
    let entropy = strongroom_vault::Entropy::from_source(&mut rand::rngs::SysRng)
        .map_err(|error| VaultError::Internal(format!("the system gives no randomness: {error}")))?;
    Ok(format!("{:032x}", entropy.with(|rng| rng.random::<u128>())))
}

fn wanted(command: RequestCommand) -> VaultResult<(Wanted, Sending)> {
    Ok(match command {
        RequestCommand::Backup { volume, sending } => (Wanted::Backup { volume }, sending),
        RequestCommand::Restore { backup, destination, on_host, range, overwrite, sending } => {
            let range = range.map(|range| (range.start, range.end));
            let target = sending.of_target.clone();
            (Wanted::Restore { backup, host: on_host, destination, range, overwrite, target }, sending)
        }
        RequestCommand::Delete { backups, sending } => {
            (Wanted::Delete { backups, target: sending.of_target.clone() }, sending)
        }
        RequestCommand::Undelete { backups, sending } => {
            (Wanted::Undelete { backups, target: sending.of_target.clone() }, sending)
        }
        RequestCommand::Verify { on_host, sample, sending } => {
            let target = sending.of_target.clone();
            (Wanted::Verify { host: on_host, sample_percent: sample, target }, sending)
        }
        RequestCommand::Retention { volume, sending } => {
            (Wanted::Retention { volume, policy: None, target: sending.of_target.clone() }, sending)
        }
        RequestCommand::Gc { grace, sending } => {
            let grace_ms = grace.map(|grace| grace.0);
            (Wanted::Gc { grace_ms, target: sending.of_target.clone() }, sending)
        }
        RequestCommand::VolumeDelete { volume, sending } => {
            (Wanted::VolumeDelete { volume, expected: None }, sending)
        }
        RequestCommand::Schedule { volume, cron, time_zone, jitter, paused, sending } => {
            let jitter_ms = jitter.map(|jitter| jitter.0);
            (
                Wanted::SchedulePatch { volume, cron, zone: time_zone, jitter_ms, paused, expected: None },
                sending,
            )
        }
        RequestCommand::VolumePut {
            volume,
            source,
            on_host,
            with,
            chunker,
            cron,
            time_zone,
            jitter,
            rpo,
            keep,
            sending,
        } => {
            let schedule =
                cron.map(|cron| Schedule { cron, zone: time_zone, jitter_ms: jitter.0, paused: false });
            let retention = RetentionSpec {
                keep_last: keep.keep_last,
                keep_hourly: keep.keep_hourly,
                keep_daily: keep.keep_daily,
                keep_weekly: keep.keep_weekly,
                keep_monthly: keep.keep_monthly,
                keep_yearly: keep.keep_yearly,
                keep_within_ms: keep.keep_within.map(|within| within.0),
                max_rate: keep.max_rate,
            };
            let spec = Box::new(VolumeSpec {
                host: on_host,
                source,
                with,
                target: sending.of_target.clone(),
                chunker,
                schedule,
                retention: (retention != RetentionSpec::default()).then_some(retention),
                rpo_ms: rpo.map(|rpo| rpo.0),
            });
            spec.check(&volume).map_err(VaultError::Invalid)?;
            (Wanted::VolumePut { volume, spec, expected: None }, sending)
        }
        RequestCommand::TargetPut { name, address, its_kms_key, its_region, sending } => {
            let target = TargetEntry { address, kms_key: its_kms_key, region: its_region };
            (Wanted::TargetPut { name, target }, sending)
        }
        RequestCommand::TargetDelete { name, sending } => (Wanted::TargetDelete { name }, sending),
        RequestCommand::HostPut { name, sending } => (Wanted::HostPut { host: name }, sending),
        RequestCommand::HostDelete { name, sending } => (Wanted::HostDelete { host: name }, sending),
        RequestCommand::Json { file, sending } => (read_wanted(&file)?, sending),
    })
}

fn read_wanted(path: &Path) -> VaultResult<Wanted> {
    let io = |error| VaultError::io("reading", path, error);
    let mut text = String::new();
    let limit = MAX_MESSAGE_BYTES as u64;
    if path == Path::new("-") {
        std::io::stdin().take(limit).read_to_string(&mut text).map_err(io)?;
    } else {
        std::fs::File::open(path).map_err(io)?.take(limit).read_to_string(&mut text).map_err(io)?;
    }
    serde_json::from_str(&text).map_err(|error| VaultError::Invalid(format!("{}: {error}", path.display())))
}

/// Lists runs.
pub async fn runs(settings: &Settings, args: &RunsArgs, output: Output) -> VaultResult<Done> {
    let (home, _) = settings.target().await?;
    let home = Home::new(home);
    // Names are in no order of time. Those that changed last are read first: what was begun later than another changed is found before it.
    let names = home.newest_runs(usize::MAX).await?;
    let mut reads = std::pin::pin!(
        stream::iter(names)
            .map(async |(id, changed)| match home.run(id).await {
                Err(error @ VaultError::Format(_)) => {
                    warn!(run = %id, %error, "a run can't be read");
                    Ok(None)
                }
                read => Ok::<_, VaultError>(read?.map(|(run, _)| (id, changed, run))),
            })
            .buffered(RUNS_AT_ONCE)
    );
    let is_meant = |run: &Run| {
        (args.volume.is_none() || run.job.volume() == args.volume.as_deref())
            && !(args.open && run.has_ended())
    };
    // By when they were begun, the newest first.
    let mut runs: BTreeMap<(Reverse<TimestampMs>, RunId), Run> = BTreeMap::new();
    while let Some(read) = reads.try_next().await? {
        let Some((id, changed, run)) = read else { continue };
        let is_whole = runs.len() >= args.limit;
        if is_whole && runs.last_key_value().is_none_or(|((Reverse(oldest), _), _)| changed < *oldest) {
            break;
        }
        if is_meant(&run) {
            runs.insert((Reverse(run.created), id), run);
        }
        if runs.len() > args.limit {
            runs.pop_last();
        }
    }
    for ((_, id), run) in &runs {
        let line =
            format!("{id}  {}  {:<9}  {:<16}  {}", time(run.created), run.job.name(), about(run), state(run));
        output.result(&line, &event(*id, run));
    }
    Ok(Done::Well)
}

/// Follows runs to their ends.
pub async fn watch(settings: &Settings, runs: &[String], output: Output) -> VaultResult<Done> {
    let ids: Vec<RunId> = runs
        .iter()
        .map(|text| text.parse().map_err(|_| VaultError::Invalid(format!("'{text}' is no id of a run"))))
        .collect::<VaultResult<_>>()?;
    let (home, _) = settings.target().await?;
    follow(&Home::new(home), &ids, output).await
}

/// Lists what lies among the dead letters of all queues of the fleet.
pub async fn dead_letters(settings: &Settings, output: Output) -> VaultResult<Done> {
    let (service, queues) = open(settings).await?;
    let mut names = vec![QueueName::Requests, QueueName::Commits, QueueName::Retention, QueueName::Gc];
    if queues.are_remote() {
        names.extend([QueueName::Ticks, QueueName::Checks]);
    }
    names.extend(service.home.settings().await?.hosts.into_keys().map(QueueName::Host));
    for name in names {
        for letter in queues.get(&name).await?.dead_letters(MAX_DEAD_LETTERS).await? {
            let begin: String = letter.body.chars().take(SHOWN_OF_LETTER).collect();
            output.result(
                &format!("{name}  {}  {}", letter.reason, begin.escape_debug()),
                &json!({ "event": "dead_letter", "queue": name.to_string(), "reason": letter.reason, "body": letter.body }),
            );
        }
    }
    Ok(Done::Well)
}

async fn follow(home: &Home, ids: &[RunId], output: Output) -> VaultResult<Done> {
    let mut done = Done::Well;
    for id in ids {
        let bar = if output.json || output.quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        if let Ok(style) =
            ProgressStyle::with_template("{prefix} {wide_bar} {bytes}/{total_bytes} {eta} {msg}")
        {
            bar.set_style(style);
        }
        let began = Instant::now();
        let mut is_told = false;
        let run = loop {
            if let Some((run, _)) = home.run(*id).await? {
                if run.has_ended() {
                    break run;
                }
                bar.set_prefix(format!("{} {}", run.job.name(), about(&run)));
                if let RunState::Running { done_bytes, total_bytes, .. } = run.state {
                    bar.set_length(total_bytes);
                    bar.set_position(done_bytes);
                }
            } else if !is_told && began.elapsed() > SAID_AFTER {
                is_told = true;
                output.say(&format!(
                    "{id}: there is no such run. Either nobody has taken it up yet (is the control plane at work?), or it ended more than 90 days \
                     ago and is forgotten; waiting"
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        bar.finish_and_clear();
        if matches!(run.state, RunState::Failed { .. }) {
            done = Done::RunFailed;
        }
        output.result(
            &format!("{id}  {:<9}  {:<16}  {}", run.job.name(), about(&run), state(&run)),
            &event(*id, &run),
        );
    }
    Ok(done)
}

/// What a run is about, as far as a listing has room for it.
fn about(run: &Run) -> String {
    let about = run.job.about().unwrap_or("-");
    match run.job {
        Job::Restore { .. } => about.chars().take(16).collect(),
        _ => about.to_owned(),
    }
}

/// Where it stands, in words.
fn state(run: &Run) -> String {
    match &run.state {
        RunState::Queued => "queued".to_owned(),
        RunState::Running { done_bytes, total_bytes, .. } => {
            format!("running: {} of {}", bytes(*done_bytes), bytes(*total_bytes))
        }
        RunState::Succeeded { result, .. } => {
            let backup = result.backup.map(|backup| format!(" {backup}")).unwrap_or_default();
            let note = if result.note.is_empty() { String::new() } else { format!("; {}", result.note) };
            format!("succeeded{backup}{note}")
        }
        RunState::Failed { reason, .. } => format!("failed: {reason}"),
    }
}

fn event(id: RunId, run: &Run) -> Value {
    json!({ "event": "run", "id": id, "created": time(run.created), "run": run })
}

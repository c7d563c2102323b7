//! A console over a fleet in memory, for programs that try it against its own OpenAPI document.

use std::io::{Write, stdout};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use strongroom_console::{Access, Limits, Role, router};
use strongroom_fleet::message::{Message, Request, Wanted};
use strongroom_fleet::metric::Unmetered;
use strongroom_fleet::schedule::Schedule;
use strongroom_fleet::volume::{RetentionSpec, VolumeSpec};
use strongroom_fleet::{Home, Incoming, QueueName, Service};
use strongroom_format::ids::TimestampMs;
use strongroom_store::MemoryStore;
use strongroom_tests::fleet::{HomeOnly, Mail, large};
use strongroom_tests::{World, noise};
use tokio::net::TcpListener;

/// Serves a console over a fleet in memory, with volumes `db` and `web` and a host `h`, until it is killed.
///
/// Tokens are `view` and `operate`. What is asked for is taken up by the dispatcher; nobody works on runs of hosts.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where it listens, on the loopback interface
    #[arg(long, default_value_t = 8465)]
    port: u16,
    /// So many volumes more, some of them late
    #[arg(long, default_value_t = 0)]
    crowd: usize,
}

/// How many of a crowd are late.
const LATE: usize = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Arguments { port, crowd } = Arguments::parse();
    let world = World::create(Arc::new(MemoryStore::new()), "fixed:16KiB", 1).await?;
    let mail = Arc::new(Mail::default());
    let service = Service {
        home: Home::new(world.target.clone()),
        targets: Arc::new(HomeOnly(world.target.clone())),
        outbox: Arc::clone(&mail) as _,
        meter: Arc::new(Unmetered),
        silent_ms: 960_000,
    };
    ask(&service, "host", Wanted::HostPut { host: "h".to_owned() }).await?;
    for (seed, volume) in ["db", "web"].into_iter().enumerate() {
        let schedule =
            Schedule { cron: "@daily".to_owned(), zone: "UTC".to_owned(), jitter_ms: 0, paused: false };
        let retention = RetentionSpec { keep_last: 2, ..RetentionSpec::default() };
        let spec = VolumeSpec {
            schedule: Some(schedule),
            retention: Some(retention),
            ..VolumeSpec::new("h", "/dev/x")
        };
        ask(
            &service,
            volume,
            Wanted::VolumePut { volume: volume.to_owned(), spec: Box::new(spec), expected: None },
        )
        .await?;
        for generation in 0..3 {
            world.back_up(volume, &noise(100_000, seed as u64 * 10 + generation)).await?;
        }
    }
    if crowd > 0 {
        large::fill(&service, crowd.saturating_sub(LATE), 60).await?;
        for number in 0..LATE {
            let volume = format!("late-{number}");
            let spec = VolumeSpec { rpo_ms: Some(1), ..VolumeSpec::new("h", "/dev/y") };
            ask(
                &service,
                &volume,
                Wanted::VolumePut { volume: volume.clone(), spec: Box::new(spec), expected: None },
            )
            .await?;
        }
        world.pass(1000);
    }
    let access = Access::new([("view", Role::Viewer), ("operate", Role::Operator)], &[7; 32]);
    // As fast as the program that tries it asks, and for no longer than it would wait.
    let limits = Limits { changes_a_minute: u32::MAX, follow: Duration::from_millis(500) };
    let console = router(service.clone(), access, limits);
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    writeln!(stdout(), "http://{}", listener.local_addr()?)?;
    tokio::select! {
        served = async { axum::serve(listener, console).await } => Ok(served?),
        failed = dispatch(&service, &mail) => failed,
    }
}

async fn ask(service: &Service, key: &str, wanted: Wanted) -> anyhow::Result<()> {
    handle(service, Request::new(key, wanted).to_json()).await
}

async fn handle(service: &Service, body: String) -> anyhow::Result<()> {
    let message = Incoming { id: "m".to_owned(), body, receives: 1 };
    let failures = strongroom_dispatcher::handle(service, &[message], TimestampMs(u64::MAX)).await;
    // What the console lets through must be what the dispatcher understands.
    anyhow::ensure!(failures.is_empty(), "the dispatcher did not take a request: {failures:?}");
    Ok(())
}

/// Takes up what is asked for, for ever.
async fn dispatch(service: &Service, mail: &Mail) -> anyhow::Result<()> {
    loop {
        for (queue, body) in mail.take() {
            if queue == QueueName::Requests {
                handle(service, body).await?;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

//! A fleet in virtual time; see `strongroom_tests::fleet`.

use std::io::{Write, stdout};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use strongroom_tests::fleet::cost::Cost;
use strongroom_tests::fleet::{Options, simulate};

/// Runs the schedules of a fleet in virtual time, with ticks and messages that come twice, late, or never.
///
/// Every slot must become one run, or be merged into a later one where runs take longer than their interval; no run is
/// done twice, and no two of a volume overlap. Ends with 1 if it is not so.
#[derive(Debug, Parser)]
struct Arguments {
    /// Volumes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    volumes: u32,
    /// Days of virtual time
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=366))]
    days: u32,
    /// Where chance begins
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs that take hours, hosts that die in the middle, and a store that fails: slots are merged then
    #[arg(long)]
    stress: bool,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let options = Options {
        volumes: arguments.volumes,
        days: arguments.days,
        seed: arguments.seed,
        delay_ms: if arguments.stress { 3_600_000 } else { 420_000 },
        longest_run_ms: if arguments.stress { 3 * 3_600_000 } else { 240_000 },
        deaths: if arguments.stress { 0.1 } else { 0.0 },
        faults: if arguments.stress { 0.02 } else { 0.0 },
    };
    let mut out = stdout().lock();
    let begun = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let summary = runtime.block_on(simulate(options))?;
    let seconds = begun.elapsed().as_secs_f64();
    let days = f64::from(arguments.days);
    writeln!(
        out,
        "seed {}, {} volumes, {} days in {seconds:.1} s: {} ticks, {} messages, {} failed runs",
        arguments.seed, arguments.volumes, arguments.days, summary.ticks, summary.messages, summary.failed
    )?;
    writeln!(out, "\nrequests of the functions\n{}", summary.function_requests)?;
    writeln!(out, "\nrequests of the hosts, to keep their runs\n{}", summary.host_requests)?;
    writeln!(
        out,
        "\nthe control plane's month on AWS, US dollars (20 volumes a host; prices in src/fleet/cost.rs)"
    )?;
    writeln!(
        out,
        "{:>9} {:>9} {:>9} {:>9} {:>9} {:>10}",
        "volumes", "runs/day", "S3", "SQS", "Lambda", "all"
    )?;
    for volumes in [10.0, 1_000.0, 100_000.0_f64] {
        let cost = Cost::of(&summary, arguments.volumes, arguments.days, volumes, (volumes / 20.0).ceil());
        let runs = summary.runs as f64 / days * volumes / f64::from(arguments.volumes);
        writeln!(
            out,
            "{volumes:>9} {runs:>9.0} {:>9.2} {:>9.2} {:>9.2} {:>10.2}",
            cost.s3,
            cost.sqs,
            cost.lambda,
            cost.total()
        )?;
    }
    writeln!(out, "\n{} slots merged into later ones, {} lost", summary.merged, summary.lost)?;
    writeln!(
        out,
        "slots {}, runs {}, duplicates {}, overlaps {}, requests per idle tick {:.2}",
        summary.slots,
        summary.runs,
        summary.duplicates,
        summary.overlaps,
        summary.requests_per_idle_tick()
    )?;
    Ok(if summary.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! What each command does.

mod backups;
mod demo;
mod fleet;
mod keep;
mod look;
mod target;

use serde_json::{Value, json};
use strongroom_store::Counters;
use strongroom_vault::{Target, VaultResult};

use crate::browse::browse;
use crate::cli::{Command, GcCommand, IndexCommand, RetentionCommand};
use crate::open::Settings;
use crate::output::Output;
use crate::serve::{restore_live, serve};

pub use backups::cores;
pub use fleet::until_told_to_stop;

/// How a command ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// As asked.
    Well,
    /// A verification found damage, or a rebuild could not take everything in.
    DamageFound,
    /// A run that was waited for failed.
    RunFailed,
}

/// Runs a command.
///
/// # Errors
/// Whatever the command's operation answers.
pub async fn run(settings: &Settings, command: Command, output: Output) -> VaultResult<Done> {
    match command {
        Command::Demo(args) => return demo::demo(&args, output).await,
        Command::Target(command) => return target::run(settings, command, output).await,
        Command::Completions { .. } | Command::Man { .. } => return Ok(Done::Well),
        Command::Agent => return fleet::agent(settings).await,
        Command::Up(args) => return fleet::up(settings, &args, output).await,
        Command::Request(request) => return fleet::request(settings, request, output).await,
        Command::Runs(args) => return fleet::runs(settings, &args, output).await,
        Command::Watch { runs } => return fleet::watch(settings, &runs, output).await,
        Command::DeadLetters => return fleet::dead_letters(settings, output).await,
        _ => {}
    }
    let (target, counters) = settings.target().await?;
    let done = on_target(settings, &target, command, output).await;
    if settings.global.requests {
        tell_requests(&counters, output);
    }
    done
}

async fn on_target(
    settings: &Settings,
    target: &Target,
    command: Command,
    output: Output,
) -> VaultResult<Done> {
    match command {
        Command::Backup(args) => backups::backup(settings, target, &args, output).await,
        Command::Restore(args) if args.live => restore_live(settings, target, &args, output).await,
        Command::Restore(args) => backups::restore(settings, target, &args, output).await,
        Command::Serve(args) => serve(settings, target, &args, output).await,
        Command::Browse(args) => browse(settings, target, &args, output).await,
        Command::Ls(args) => look::ls(target, &args, output).await,
        Command::Show(args) => look::show(target, &args, output).await,
        Command::Diff(args) => look::diff(target, &args, output).await,
        Command::Delete(names) => keep::delete(target, &names, output).await,
        Command::Undelete(names) => keep::undelete(target, &names, output).await,
        Command::Retention(RetentionCommand::Plan(args)) => {
            keep::retention(target, &args, true, None, output).await
        }
        Command::Retention(RetentionCommand::Run { policy, dry_run, max_removals }) => {
            keep::retention(target, &policy, dry_run, max_removals, output).await
        }
        Command::Gc(GcCommand::Plan(args)) => keep::gc(target, &args, true, output).await,
        Command::Gc(GcCommand::Run(args)) => keep::gc(target, &args, false, output).await,
        Command::Verify(args) => look::verify(target, &args, output).await,
        Command::Index(IndexCommand::Rebuild) => keep::rebuild(target, output).await,
        Command::Stats => look::stats(target, output).await,
        // Dealt with by the caller.
        Command::Demo(_)
        | Command::Target(_)
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Agent
        | Command::Up(_)
        | Command::Request(_)
        | Command::Runs(_)
        | Command::Watch { .. }
        | Command::DeadLetters => Ok(Done::Well),
    }
}

/// Prints the requests of this process, by operation and kind of object.
fn tell_requests(counters: &Counters, output: Output) {
    let counts = counters.snapshot();
    if output.json {
        let rows: Vec<Value> = counts
            .rows()
            .map(|(operation, kind, count)| {
                json!({
                    "operation": operation.name(), "kind": format!("{kind:?}").to_lowercase(),
                    "calls": count.calls, "failures": count.failures, "bytes": count.bytes,
                })
            })
            .collect();
        output.result("", &json!({ "event": "requests", "total": counts.total().calls, "rows": rows }));
    } else {
        output.say(&format!("{counts}"));
        output.say(&format!("{} requests", counts.total().calls));
    }
}

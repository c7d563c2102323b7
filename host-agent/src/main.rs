//! `strongroom`: the agent and operator command line.
//!
//! Only this package reads the environment, the clock and the command line; what it does is `strongroom-vault`'s.

mod agent;
mod browse;
mod cli;
mod commands;
mod fleet;
mod host;
mod keys;
mod open;
mod output;
mod serve;
mod version;

use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use serde_json::json;
use strongroom_store::StoreErrorKind;
use strongroom_vault::VaultError;
use tracing_appender::non_blocking::WorkerGuard;

use cli::{Cli, Command};
use open::Settings;
use output::Output;

/// Wrong use.
const EXIT_USAGE: u8 = 2;
/// Data damaged or missing.
const EXIT_DAMAGED: u8 = 3;
/// Refused for safety.
const EXIT_UNSAFE: u8 = 4;
/// Target unreachable or denied.
const EXIT_UNREACHABLE: u8 = 5;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output { json: cli.global.json, quiet: cli.global.quiet };
    match &cli.command {
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "strongroom", &mut std::io::stdout());
            return ExitCode::SUCCESS;
        }
        Command::Man { folder } => {
            return match write_manual(folder) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    fail(output, &format!("writing manual pages to '{}': {error}", folder.display()), 1)
                }
            };
        }
        _ => {}
    }
    let _log = start_log(&cli);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(output, &format!("no threads to run on: {error}"), 1),
    };
    let done = runtime.block_on(async {
        let settings = Settings::load(cli.global)?;
        commands::run(&settings, cli.command, output).await
    });
    // Requests that were given up (after an error) must not hold up the end.
    runtime.shutdown_background();
    match done {
        Ok(commands::Done::Well) => ExitCode::SUCCESS,
        Ok(commands::Done::RunFailed) => ExitCode::FAILURE,
        Ok(commands::Done::DamageFound) => ExitCode::from(EXIT_DAMAGED),
        Err(error) => fail(output, &error.to_string(), exit_code(&error)),
    }
}

/// Writes a page for each command, from the same definition as `--help`.
fn write_manual(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)
}

fn fail(output: Output, message: &str, code: u8) -> ExitCode {
    if output.json {
        output.result("", &json!({ "event": "error", "message": message, "exit_code": code }));
    }
    #[expect(clippy::print_stderr, reason = "the one place where errors are told")]
    {
        eprintln!("strongroom: {message}");
    }
    ExitCode::from(code)
}

/// The exit code of an error: documented in `--help` and docs/operations.md.
fn exit_code(error: &VaultError) -> u8 {
    match error {
        VaultError::Store(error) => match error.kind {
            // No folder, no bucket: there is nothing to reach.
            StoreErrorKind::NotFound if error.operation == "open" => EXIT_UNREACHABLE,
            StoreErrorKind::NotFound => EXIT_DAMAGED,
            StoreErrorKind::Denied | StoreErrorKind::Unavailable | StoreErrorKind::Invalid => {
                EXIT_UNREACHABLE
            }
            StoreErrorKind::Conflict => 1,
        },
        VaultError::Format(_) | VaultError::Damaged(_) => EXIT_DAMAGED,
        VaultError::WrongKey(_) => EXIT_UNREACHABLE,
        VaultError::Unsafe(_) | VaultError::RolledBack { .. } => EXIT_UNSAFE,
        VaultError::Invalid(_) | VaultError::Find(_) => EXIT_USAGE,
        VaultError::Incomplete { source, .. } => exit_code(source),
        VaultError::Refused(_)
        | VaultError::Fenced(_)
        | VaultError::Io { .. }
        | VaultError::Cache(_)
        | VaultError::Doubtful(_)
        | VaultError::Internal(_)
        | VaultError::Breach(_) => 1,
    }
}

/// Starts the log. What is said last is written when the guard goes.
fn start_log(cli: &Cli) -> WorkerGuard {
    let default = match (cli.global.quiet, cli.global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "strongroom=info,strongroom_vault=info,strongroom_store=info,strongroom_aws=info",
        (false, _) => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("STRONGROOM_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    // A pipe that nobody reads must not hold up backups, or clients of `serve`: lines are dropped instead.
    let (stderr, guard) = tracing_appender::non_blocking(std::io::stderr());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_target(false);
    if cli.global.json {
        subscriber.json().init();
    } else {
        subscriber.without_time().init();
    }
    guard
}

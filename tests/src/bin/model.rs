//! Checks the model of the commit protocol: all configurations, then that every mutant is caught.

use std::io::{Write, stdout};
use std::process::ExitCode;

use clap::Parser;
use strongroom_tests::model::configs::all;
use strongroom_tests::model::mutants::MUTANTS;
use strongroom_tests::model::run::{check, check_mutant};

/// Checks the model of the commit protocol.
#[derive(Debug, Parser)]
struct Args {
    /// Runs the large configurations as well.
    #[arg(long)]
    large: bool,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Tells in words how this mutant loses what, and nothing else.
    #[arg(long, value_name = "MUTANT")]
    explain: Option<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let mut out = stdout().lock();
    if let Some(name) = &args.explain {
        let mutant = MUTANTS.iter().find(|mutant| mutant.name == name);
        let mutant = mutant.ok_or_else(|| anyhow::anyhow!("there is no mutant {name}"))?;
        writeln!(out, "{}: {}", mutant.name, mutant.what)?;
        let found = check_mutant(mutant).map(|outcome| outcome.violations).unwrap_or_default();
        for (property, steps) in &found {
            for (number, step) in (1..).zip(steps) {
                writeln!(out, "{number:>3}  {step}")?;
            }
            writeln!(out, "     broken: {property}")?;
        }
        return Ok(if found.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let (mut states, mut violations) = (0, 0);
    writeln!(out, "{:<24}{:>12}{:>7}{:>9}  violations", "configuration", "states", "depth", "seconds")?;
    for bounds in all().iter().filter(|bounds| args.large || !bounds.large) {
        let outcome = check(bounds, args.threads);
        let (name, seconds) = (bounds.config.name, outcome.took.as_secs_f64());
        let bounded = if outcome.exhausted { "" } else { " (not all states)" };
        let failed = usize::from(!outcome.is_sound());
        writeln!(
            out,
            "{name:<24}{:>12}{:>7}{seconds:>9.1}  {failed}{bounded}",
            outcome.states, outcome.depth
        )?;
        for (property, steps) in &outcome.violations {
            writeln!(out, "  broken: {property}\n    {}", steps.join("\n    "))?;
        }
        if outcome.exhausted && !outcome.unseen.is_empty() {
            writeln!(out, "  never happened: {:?}", outcome.unseen)?;
        }
        states += outcome.states;
        violations += failed;
    }
    let mut caught = 0;
    writeln!(out, "\n{:<20}{:>6}  {:<42}rule left out", "mutant", "steps", "caught by")?;
    for mutant in MUTANTS {
        let found = check_mutant(mutant).and_then(|outcome| outcome.violations.into_iter().next());
        let (by, steps) = found.map_or(("NOT CAUGHT", 0), |(property, steps)| (property, steps.len()));
        caught += usize::from(steps > 0);
        writeln!(out, "{:<20}{steps:>6}  {by:<42}{}", mutant.name, mutant.what)?;
    }
    let mutants = MUTANTS.len();
    writeln!(out, "\n{states} states, {violations} violations; {caught} of {mutants} mutants caught")?;
    Ok(if violations == 0 && caught == mutants { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

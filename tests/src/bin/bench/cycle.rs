//! One repetition: every step with every tool, step by step side by side.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::data::{Data, ensure_same, warm};
use crate::measure::{Streams, Usage, run};
use crate::proxy::Counts;
use crate::server::{Place, Store};
use crate::tools::Tool;

/// What is done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The volume for the first time.
    First,
    /// The volume a generation later.
    Gen2,
    /// The same again.
    Unchanged,
    /// Another volume from the same base.
    Vm2,
    /// The second generation back, compared byte by byte.
    Restore,
    /// All data read and checked.
    Check,
}

impl Step {
    /// All steps.
    pub const ALL: [Self; 6] =
        [Self::First, Self::Gen2, Self::Unchanged, Self::Vm2, Self::Restore, Self::Check];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::First => "first backup",
            Self::Gen2 => "increment (gen2)",
            Self::Unchanged => "unchanged again",
            Self::Vm2 => "vm2",
            Self::Restore => "restore (gen2)",
            Self::Check => "check, all data",
        })
    }
}

/// What one step with one tool took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// The tool.
    pub tool: String,
    /// The step.
    pub step: Step,
    /// Whether the tool had an S3 server, or a folder for want of S3.
    pub s3: bool,
    /// What it took; without meaning if requests were counted.
    pub usage: Usage,
    /// Bytes that the step added to the store, where they can be seen.
    pub stored_bytes: Option<u64>,
    /// Requests, if they were counted instead of time.
    pub requests: Option<Counts>,
}

/// Runs all steps with all tools in fresh places below `folder`. A peer whose check fails is handed to `failed`.
pub fn cycle(
    folder: &Path,
    tools: &[Tool],
    data: &Data,
    store: &Store,
    count: bool,
    mut told: impl FnMut(Row) -> Result<()>,
    failed: impl Fn(&str, &str),
) -> Result<()> {
    let mut places = Vec::new();
    for tool in tools {
        let own = folder.join(&tool.name);
        let (store, count) = if tool.knows_s3() { (store, count) } else { (&Store::Folder, false) };
        let place = Place::create(own, store, &tool.name, count)?;
        run(tool.init(&place)?, streams(&Paths::of(&place, "init"), None)).context(tool.name.clone())?;
        place.take_requests();
        places.push(place);
    }
    for step in Step::ALL {
        for (tool, place) in tools.iter().zip(&places) {
            let row = match one(tool, place, step, data) {
                Ok(row) => row,
                // Some servers list in ways that a peer's check does not take; that is not ours to settle.
                Err(error) if step == Step::Check && !tool.is_ours() => {
                    let reason = error.to_string();
                    failed(&tool.name, reason.lines().find(|line| !line.is_empty()).unwrap_or_default());
                    continue;
                }
                Err(error) => return Err(error.context(format!("{}, {step}", tool.name))),
            };
            let s3 = tool.knows_s3() && !matches!(store, Store::Folder);
            told(Row { tool: tool.name.clone(), step, s3, ..row })?;
        }
    }
    Ok(())
}

struct Paths {
    output: PathBuf,
    log: PathBuf,
}

impl Paths {
    fn of(place: &Place, what: &str) -> Self {
        Self {
            output: place.folder.join(format!("{what}.out")),
            log: place.folder.join(format!("{what}.log")),
        }
    }
}

fn streams<'a>(paths: &'a Paths, input: Option<&'a Path>) -> Streams<'a> {
    Streams { input, output: &paths.output, log: &paths.log }
}

fn one(tool: &Tool, place: &Place, step: Step, data: &Data) -> Result<Row> {
    let restored = place.folder.join("restored");
    let (command, input, tag) = match step {
        Step::First => (tool.backup(place, "vm1", "gen1")?, Some(&data.gen1), "gen1"),
        Step::Gen2 => (tool.backup(place, "vm1", "gen2")?, Some(&data.gen2), "gen2"),
        Step::Unchanged => (tool.backup(place, "vm1", "unchanged")?, Some(&data.gen2), "unchanged"),
        Step::Vm2 => (tool.backup(place, "vm2", "vm2")?, Some(&data.vm2), "vm2"),
        Step::Restore => {
            std::fs::create_dir_all(&restored)?;
            let said = std::fs::read_to_string(Paths::of(place, "gen2").output)?;
            (tool.restore(place, "gen2", &said, &restored)?, None, "restore")
        }
        Step::Check => (tool.check(place)?, None, "check"),
    };
    let before = place.stored_bytes()?;
    if let Some(image) = input {
        warm(image)?;
    }
    // What others wrote goes to disk now, not during this step.
    rustix::fs::sync();
    let usage = run(command, streams(&Paths::of(place, tag), input.map(PathBuf::as_path)))?;
    let requests = place.take_requests();
    let stored_bytes = place.stored_bytes()?.zip(before).map(|(after, before)| after.saturating_sub(before));
    if step == Step::Restore {
        ensure_same(&only_file(&restored)?, &data.gen2)?;
        std::fs::remove_dir_all(&restored)?;
    }
    Ok(Row { tool: String::new(), step, s3: false, usage, stored_bytes, requests })
}

/// Finds what was restored, wherever below the folder the tool puts it.
fn only_file(folder: &Path) -> Result<PathBuf> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if !path.is_dir() {
            return Ok(path);
        }
        if let Ok(found) = only_file(&path) {
            return Ok(found);
        }
    }
    anyhow::bail!("{}: nothing was restored", folder.display())
}

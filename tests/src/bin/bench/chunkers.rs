//! The table of chunkers and zstd levels: what they cost and what they save.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::data::{Data, warm};
use crate::measure::{Streams, Usage, run};
use crate::report::median;

/// What one image took under one setting.
#[derive(Debug, Clone, Copy)]
struct Figures {
    usage: Usage,
    stored_mib: f64,
}

/// Backs up all images under each chunker and level, on a folder, and tells the medians as Markdown.
pub fn chunkers(
    folder: &Path,
    strongroom: &Path,
    data: &Data,
    chunkers: &[String],
    levels: &[i32],
    reps: u32,
) -> Result<String> {
    let mut images =
        vec![("first", "vm1", &data.gen1), ("gen2", "vm1", &data.gen2), ("vm2", "vm2", &data.vm2)];
    if let Some(gen3) = &data.gen3 {
        images.push(("gen3", "vm1", gen3));
    }
    let names: Vec<&str> = images.iter().map(|(name, ..)| *name).collect();
    let mut text = format!(
        "| chunker | level | stored MiB: {} | CPU s: {} | wall s: {} |\n| --- | --- | --- | --- | --- |\n",
        names.join(" / "),
        names.join(" / "),
        names.join(" / ")
    );
    for chunker in chunkers {
        for level in levels {
            let mut runs = Vec::new();
            for _ in 0..reps {
                let place = tempfile::tempdir_in(folder)?;
                runs.push(one(place.path(), strongroom, chunker, *level, &images)?);
            }
            let cells = |of: fn(&Figures) -> f64, digits: usize| {
                let medians = (0..images.len())
                    .map(|n| median(runs.iter().map(|run| of(&run[n])).collect()).unwrap_or_default());
                medians.map(|value| format!("{value:.digits$}")).collect::<Vec<_>>().join(" / ")
            };
            let _ = writeln!(
                text,
                "| {chunker} | {level} | {} | {} | {} |",
                cells(|figures| figures.stored_mib, 0),
                cells(|figures| figures.usage.cpu_s, 2),
                cells(|figures| figures.usage.wall_s, 2)
            );
        }
    }
    Ok(text)
}

fn one(
    place: &Path,
    strongroom: &Path,
    chunker: &str,
    level: i32,
    images: &[(&str, &str, &std::path::PathBuf)],
) -> Result<Vec<Figures>> {
    let command = |args: &[&str]| {
        let mut command = Command::new(strongroom);
        command.args(args).arg("--quiet").env("STRONGROOM_KEY_FILE", place.join("key"));
        command.env("STRONGROOM_TARGET", format!("file://{}", place.join("target").display()));
        command.env("STRONGROOM_CACHE_DIR", place.join("cache"));
        command
    };
    let (output, log) = (place.join("out"), place.join("log"));
    let streams = |input| Streams { input, output: &output, log: &log };
    let level = format!("--zstd-level={level}");
    run(command(&["target", "init", "--chunker", chunker, &level]), streams(None))?;
    let mut figures = Vec::new();
    let mut before = crate::server::folder_bytes(&place.join("target"))?;
    for (_, volume, image) in images {
        warm(image)?;
        rustix::fs::sync();
        let usage = run(command(&["backup", "-", "--volume", volume]), streams(Some(image.as_path())))?;
        let after = crate::server::folder_bytes(&place.join("target"))?;
        #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
        figures.push(Figures { usage, stored_mib: (after - before) as f64 / 1_048_576.0 });
        before = after;
    }
    Ok(figures)
}

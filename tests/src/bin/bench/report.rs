//! Tables of medians, and ratios to the best peer beside the bar that each has to reach.
//!
//! Invariant: a bar is only judged on figures of the same run; what has no figure is shown as such, never as reached.

use std::fmt::Write;

use crate::cycle::{Row, Step};

const MIB: f64 = 1_048_576.0;
/// Peak memory that ours may have in any step.
const PEAK_BAR_MIB: f64 = 256.0;

/// A figure of a row.
type Figure = fn(&Row) -> Option<f64>;

/// What is compared, where, and how large the ratio may be.
const BARS: [(Step, &str, Figure, f64); 7] = [
    (Step::First, "CPU", cpu, 0.5),
    (Step::First, "wall", wall, 0.5),
    (Step::Gen2, "CPU", cpu, 0.5),
    (Step::Unchanged, "CPU", cpu, 0.5),
    (Step::Gen2, "stored", stored, 0.6),
    (Step::Vm2, "stored", stored, 0.6),
    (Step::Restore, "wall", wall, 1.0),
];

fn timed(row: &Row) -> bool {
    row.requests.is_none()
}

fn cpu(row: &Row) -> Option<f64> {
    timed(row).then_some(row.usage.cpu_s)
}

fn wall(row: &Row) -> Option<f64> {
    timed(row).then_some(row.usage.wall_s)
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn peak(row: &Row) -> Option<f64> {
    timed(row).then_some(row.usage.peak_bytes as f64 / MIB)
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn stored(row: &Row) -> Option<f64> {
    row.stored_bytes.filter(|_| timed(row)).map(|bytes| bytes as f64 / MIB)
}

/// The middle value, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

fn figure(rows: &[Row], tool: &str, step: Step, of: Figure) -> Option<f64> {
    median(rows.iter().filter(|row| row.tool == tool && row.step == step).filter_map(of).collect())
}

fn tools(rows: &[Row]) -> Vec<(String, bool)> {
    let mut names: Vec<(String, bool)> = Vec::new();
    for row in rows {
        if !names.iter().any(|(name, _)| *name == row.tool) {
            names.push((row.tool.clone(), row.s3));
        }
    }
    names
}

/// The whole report, as Markdown.
pub fn report(rows: &[Row]) -> String {
    let mut text = String::new();
    let tools = tools(rows);
    let s3 = tools.iter().any(|(_, s3)| *s3);
    let mut table = |title: &str, cell: &dyn Fn(&str, Step) -> String| {
        let headings: Vec<String> = tools
            .iter()
            .map(|(name, on_s3)| if s3 && !on_s3 { format!("{name} (folder)") } else { name.clone() })
            .collect();
        let _ = writeln!(text, "{title}\n\n| step | {} |", headings.join(" | "));
        let _ = writeln!(text, "| --- |{}", " --- |".repeat(tools.len()));
        for step in Step::ALL {
            let cells: Vec<String> = tools.iter().map(|(name, _)| cell(name, step)).collect();
            let _ = writeln!(text, "| {step} | {} |", cells.join(" | "));
        }
        text.push('\n');
    };
    let show =
        |value: Option<f64>, digits: usize| value.map_or("n/a".to_owned(), |v| format!("{v:.digits$}"));
    table("Wall s / CPU s of the client", &|tool, step| {
        let (wall, cpu) = (figure(rows, tool, step, wall), figure(rows, tool, step, cpu));
        format!("{} / {}", show(wall, 2), show(cpu, 2))
    });
    table("Stored by the step, MiB", &|tool, step| show(figure(rows, tool, step, stored), 1));
    table("Peak memory, MiB", &|tool, step| show(figure(rows, tool, step, peak), 0));
    if rows.iter().any(|row| row.requests.is_some()) {
        table("S3 requests", &|tool, step| requests(rows, tool, step));
    }
    text.push_str(&ratios(rows, &tools));
    text
}

fn requests(rows: &[Row], tool: &str, step: Step) -> String {
    let counts = rows.iter().rfind(|row| row.tool == tool && row.step == step && row.requests.is_some());
    let Some(counts) = counts.and_then(|row| row.requests.as_ref()) else { return "n/a".to_owned() };
    let total: u64 = counts.values().sum();
    let kinds: Vec<String> = counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    format!("{total} ({})", kinds.join(", "))
}

/// Ratios to the best peer on the same store, and beside them to the best of all, those on a folder included.
fn ratios(rows: &[Row], tools: &[(String, bool)]) -> String {
    let Some((ours, on_s3)) = tools.iter().find(|(name, _)| name == "strongroom") else {
        return String::new();
    };
    let mut text =
        "Ratios to the best peer\n\n| what | best peer | ratio | best of all | ratio | bar | |\n| --- | --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
    for (step, what, of, bar) in BARS {
        let own = figure(rows, ours, step, of);
        let best = |any_store: bool| {
            let peers = tools.iter().filter(|(name, s3)| name != ours && (any_store || s3 == on_s3));
            peers
                .filter_map(|(name, _)| Some((name, figure(rows, name, step, of)?)))
                .min_by(|a, b| a.1.total_cmp(&b.1))
        };
        let ratio = |best: Option<(&String, f64)>| Some(own? / best?.1);
        let show = |best: Option<(&String, f64)>| match (best, ratio(best)) {
            (Some((name, _)), Some(ratio)) => format!("{name} | {ratio:.2}"),
            _ => "none measured | n/a".to_owned(),
        };
        let verdict = match ratio(best(false)) {
            None => "not judged",
            Some(ratio) if ratio <= bar => "reached",
            Some(_) => "MISSED",
        };
        let (same, all) = (show(best(false)), show(best(true)));
        let _ = writeln!(text, "| {step}, {what} | {same} | {all} | {bar} | {verdict} |");
    }
    let peaks = Step::ALL.into_iter().filter_map(|step| figure(rows, ours, step, peak));
    if let Some(highest) = peaks.max_by(f64::total_cmp) {
        let verdict = if highest <= PEAK_BAR_MIB { "reached" } else { "MISSED" };
        let _ = writeln!(text, "| peak memory | | {highest:.0} MiB | | | {PEAK_BAR_MIB} MiB | {verdict} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Usage;

    fn row(tool: &str, step: Step, cpu_s: f64) -> Row {
        let usage = Usage { wall_s: cpu_s, cpu_s, peak_bytes: 1 << 20 };
        Row { tool: tool.to_owned(), step, s3: true, usage, stored_bytes: None, requests: None }
    }

    #[test]
    fn medians_are_of_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn bars_are_reached_missed_or_not_judged() {
        let rows = [
            row("strongroom", Step::First, 1.0),
            row("restic", Step::First, 3.0),
            row("rustic", Step::First, 2.0),
            row("strongroom", Step::Gen2, 1.0),
            row("restic", Step::Gen2, 1.5),
        ];
        let text = report(&rows);
        assert!(
            text.contains("| first backup, CPU | rustic | 0.50 | rustic | 0.50 | 0.5 | reached |"),
            "{text}"
        );
        assert!(
            text.contains("| increment (gen2), CPU | restic | 0.67 | restic | 0.67 | 0.5 | MISSED |"),
            "{text}"
        );
        assert!(
            text.contains("| vm2, stored | none measured | n/a | none measured | n/a | 0.6 | not judged |"),
            "{text}"
        );
    }
}

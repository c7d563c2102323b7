//! Bars, drawn as SVG with nothing but attributes: the pages' policy forbids styles in them.

use std::collections::BTreeMap;

use strongroom_fleet::digest::{DaySum, begin_of};
use strongroom_fleet::text::{bytes, time};

/// Bars that are shown: the newest.
const MOST: usize = 90;
/// Days that are shown at least, so that the first ones do not fill the drawing.
const FEWEST_DAYS: u32 = 14;
/// The drawing area, in its own units.
const WIDTH: u64 = 900;
const HEIGHT: u64 = 160;

/// A bar to be drawn.
pub struct Bar {
    /// How high it is, in whatever unit all have.
    pub value: u64,
    /// What it says when pointed at.
    pub text: String,
}

/// A bar's place.
pub struct Place {
    /// Its left edge.
    pub x: u64,
    /// Its upper edge.
    pub y: u64,
    /// Its width.
    pub width: u64,
    /// Its height.
    pub height: u64,
    /// What it says when pointed at.
    pub text: String,
}

/// Bars side by side.
pub struct Chart {
    /// Where they are.
    pub bars: Vec<Place>,
    /// Width of the drawing area.
    pub width: u64,
    /// Its height.
    pub height: u64,
}

impl Chart {
    /// Draws bars, the highest as high as there is room.
    pub fn of(bars: impl Iterator<Item = Bar>) -> Self {
        let mut bars: Vec<Bar> = bars.collect();
        bars.drain(..bars.len().saturating_sub(MOST));
        let highest = bars.iter().map(|bar| bar.value).max().unwrap_or(0).max(1);
        let step = WIDTH / (bars.len() as u64).max(u64::from(FEWEST_DAYS));
        let place = |(at, bar): (usize, Bar)| {
            let scaled = u128::from(bar.value) * u128::from(HEIGHT) / u128::from(highest);
            // What is there is seen, however little it is.
            let height = u64::try_from(scaled).unwrap_or(HEIGHT).max(u64::from(bar.value > 0));
            Place { x: at as u64 * step, y: HEIGHT - height, width: step - 1, height, text: bar.text }
        };
        Self { bars: bars.into_iter().enumerate().map(place).collect(), width: WIDTH, height: HEIGHT }
    }
}

/// What was stored and what it stands for, day by day until today, those included on which nothing was.
pub struct Growth {
    /// The first day.
    pub first: String,
    /// The last one: today.
    pub last: String,
    /// What was stored.
    pub stored: Chart,
    /// The same, in words.
    pub stored_said: String,
    /// The most of a day.
    pub stored_most: String,
    /// How many times more was backed up than stored.
    pub shared: Chart,
    /// The same, in words.
    pub shared_said: String,
    /// The most of a day.
    pub shared_most: String,
}

impl Growth {
    /// Draws days; `None` if nothing was begun on any that is shown.
    pub fn of(days: &BTreeMap<u32, DaySum>, today: u32) -> Option<Self> {
        let earliest = today.saturating_sub(u32::try_from(MOST).unwrap_or(u32::MAX) - 1);
        let oldest = *days.range(earliest..=today).next()?.0;
        let from = oldest.min(today.saturating_sub(FEWEST_DAYS - 1)).max(earliest);
        let shown = || (from..=today).map(|day| (day, days.get(&day).copied().unwrap_or_default()));
        let stored = shown().map(|(day, sum)| Bar {
            value: sum.stored_bytes,
            text: format!("{}: {} by {} backups", date(day), bytes(sum.stored_bytes), sum.backups),
        });
        let shared = shown().map(|(day, sum)| Bar {
            value: tenths(sum.logical_bytes, sum.stored_bytes).unwrap_or(0),
            text: format!("{}: {}", date(day), factor(sum.logical_bytes, sum.stored_bytes)),
        });
        let (mut all, mut most, mut best) = (DaySum::default(), (from, 0), (from, DaySum::default()));
        for (day, sum) in shown() {
            all.add(sum);
            if sum.stored_bytes > most.1 {
                most = (day, sum.stored_bytes);
            }
            let of = |sum: &DaySum| tenths(sum.logical_bytes, sum.stored_bytes).unwrap_or(0);
            if of(&sum) > of(&best.1) {
                best = (day, sum);
            }
        }
        let (first, last) = (date(from), date(today));
        let stored_most = bytes(most.1);
        let shared_most = factor(best.1.logical_bytes, best.1.stored_bytes);
        Some(Self {
            stored_said: format!(
                "Stored by day from {first} to {last}: {} in all, the most on {}: {stored_most}",
                bytes(all.stored_bytes),
                date(most.0)
            ),
            shared_said: format!(
                "Backed up for each byte stored, by day from {first} to {last}: {} in all, the most on {}: {shared_most}",
                factor(all.logical_bytes, all.stored_bytes),
                date(best.0)
            ),
            stored: Chart::of(stored),
            shared: Chart::of(shared),
            first,
            last,
            stored_most,
            shared_most,
        })
    }
}

/// A day's date.
fn date(day: u32) -> String {
    time(begin_of(day)).chars().take_while(|char| *char != 'T').collect()
}

fn tenths(logical_bytes: u64, stored_bytes: u64) -> Option<u64> {
    let tenths = (u128::from(logical_bytes) * 10).checked_div(u128::from(stored_bytes))?;
    Some(u64::try_from(tenths).unwrap_or(u64::MAX))
}

/// How often what is stored is used, to one digit.
pub fn factor(logical_bytes: u64, stored_bytes: u64) -> String {
    let tenths = tenths(logical_bytes, stored_bytes);
    tenths.map_or_else(|| "–".to_owned(), |tenths| format!("{}.{} ×", tenths / 10, tenths % 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stay_within_the_drawing() {
        for values in [vec![], vec![0], vec![1, u64::MAX], vec![5; 400]] {
            let count = values.len();
            let bars = values.into_iter().map(|value| Bar { value, text: value.to_string() });
            let chart = Chart::of(bars);
            assert_eq!(chart.bars.len(), count.min(MOST));
            for bar in &chart.bars {
                assert!(bar.x + bar.width <= WIDTH && bar.y + bar.height == HEIGHT && bar.width > 0);
                assert_eq!(bar.height > 0, bar.text != "0");
            }
        }
    }

    #[test]
    fn days_are_drawn_until_today_with_those_on_which_nothing_was() {
        let sum = |backups, logical_bytes, stored_bytes| DaySum { backups, logical_bytes, stored_bytes };
        let today = 20_000;
        let of = |days: &[(u32, DaySum)]| Growth::of(&days.iter().copied().collect(), today);
        let few = of(&[(today - 1, sum(2, 30, 10)), (today, sum(1, 100, 50))]).unwrap();
        assert_eq!(few.stored.bars.len(), FEWEST_DAYS as usize);
        let heights: Vec<u64> = few.stored.bars.iter().rev().map(|bar| bar.height).take(3).collect();
        assert_eq!(heights, [HEIGHT, HEIGHT / 5, 0]);
        assert_eq!((few.first.as_str(), few.last.as_str()), ("2024-09-21", "2024-10-04"));
        assert_eq!((few.stored_most.as_str(), few.shared_most.as_str()), ("50 B", "3.0 ×"));
        assert!(
            few.stored_said.ends_with("60 B in all, the most on 2024-10-04: 50 B"),
            "{}",
            few.stored_said
        );
        assert!(
            few.shared_said.ends_with("2.1 × in all, the most on 2024-10-03: 3.0 ×"),
            "{}",
            few.shared_said
        );
        let long = of(&[(today - 400, sum(1, 1, 1)), (today - 30, sum(1, 1, 1)), (today + 9, sum(1, 1, 1))])
            .unwrap();
        assert_eq!(long.stored.bars.len(), 31, "neither what is older than is shown nor what is yet to come");
        assert!(of(&[]).is_none() && of(&[(today - 90, sum(1, 1, 1)), (today + 1, sum(1, 1, 1))]).is_none());
        assert!(of(&[(today - 89, sum(1, 0, 0))]).is_some_and(|all| all.shared_most == "–"));
        let early = Growth::of(&[(0, sum(1, 1, 1))].into(), 3).unwrap();
        assert_eq!(early.first, "1970-01-01");
    }
}

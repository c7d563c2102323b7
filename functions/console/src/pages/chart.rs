//! Bars, drawn as SVG with nothing but attributes: the pages' policy forbids styles in them.

/// Bars that are shown: the newest.
const MOST: usize = 90;
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
        let step = WIDTH / (bars.len().max(1) as u64).max(30);
        let place = |(at, bar): (usize, Bar)| {
            let scaled = u128::from(bar.value) * u128::from(HEIGHT) / u128::from(highest);
            // What is there is seen, however little it is.
            let height = u64::try_from(scaled).unwrap_or(HEIGHT).max(u64::from(bar.value > 0));
            Place { x: at as u64 * step, y: HEIGHT - height, width: step - 1, height, text: bar.text }
        };
        Self { bars: bars.into_iter().enumerate().map(place).collect(), width: WIDTH, height: HEIGHT }
    }
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
}

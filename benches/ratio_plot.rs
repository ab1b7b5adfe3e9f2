//! Bars of ratios to one system, on a logarithmic axis.

use super::svg::{
    Bar, MARGIN, Series, Sign, WIDTH, block, legend, line, opening, short, target_mark, words,
};

/// Where the bars begin and end; left of them are the rows' titles, right of them there is room for a number.
const LEFT: f64 = 292.0;
const RIGHT: f64 = WIDTH - 66.0;
/// A bar, and the step to the next one.
const BAR: f64 = 7.0;
const STEP: f64 = 9.5;
/// Around the bars of one row.
const GAP: f64 = 9.0;

/// Ratios of several systems to one, for several rows of work.
#[derive(Clone, Debug)]
pub struct Ratios {
    pub title: String,
    /// What all are compared with: the line at 1.
    pub base: String,
    /// Rates rather than times.
    pub more_is_better: bool,
    /// Whom the marks of targets concern.
    pub targets_of: String,
    pub series: Vec<Series>,
    pub rows: Vec<RatioRow>,
}

#[derive(Clone, Debug)]
pub struct RatioRow {
    pub title: String,
    /// The base's own figure.
    pub figure: String,
    /// The base's least and greatest value, as ratio to its median.
    pub noise: Option<(f64, f64)>,
    pub target: Option<f64>,
    /// One for each series; none where it was not measured.
    pub bars: Vec<Option<Bar>>,
}

/// A logarithmic axis.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// Holds 1, what is around it, and all of `values`, with a little room.
    fn around(values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (0.7_f64, 1.5_f64);
        for value in values.filter(|value| value.is_finite() && *value > 0.0) {
            low = low.min(value);
            high = high.max(value);
        }
        Self {
            low: low / 1.1,
            high: high * 1.1,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        let part = (value / self.low).ln() / (self.high / self.low).ln();
        LEFT + part * (RIGHT - LEFT)
    }

    /// 1, 2, 5 and their tenfolds, fewer where they would stand too close.
    fn ticks(&self) -> Vec<f64> {
        let steps: &[f64] = match self.high / self.low {
            span if span > 2000.0 => &[1.0],
            _ => &[1.0, 2.0, 5.0],
        };
        let mut ticks = Vec::new();
        for power in -6..=6 {
            for step in steps {
                let tick = step * 10_f64.powi(power);
                if tick >= self.low && tick <= self.high {
                    ticks.push(tick);
                }
            }
        }
        ticks
    }
}

fn tick_text(value: f64) -> String {
    match value {
        v if v >= 1.0 => format!("{v:.0}×"),
        v if v >= 0.1 => format!("{v:.1}×"),
        v => format!("{v:.3}").trim_end_matches('0').to_owned() + "×",
    }
}

pub fn ratios(plot: &Ratios) -> String {
    let (better, kind) = match plot.more_is_better {
        true => ("further to the right is better", "Rate"),
        false => ("further to the left is better", "Time"),
    };
    let note = format!(
        "{kind} as a multiple of {}'s, logarithmic; {better}. Medians of ratios taken within each repetition.",
        plot.base
    );
    let known = plot.rows.iter().flat_map(|row| {
        let bars = row.bars.iter().flatten();
        let bars = bars.flat_map(|bar| [bar.value, bar.least, bar.most]);
        let noise = row.noise.iter().flat_map(|(least, most)| [*least, *most]);
        bars.chain(noise).chain(row.target).collect::<Vec<_>>()
    });
    let axis = Axis::around(known);
    let row_height = |row: &RatioRow| (row.bars.len() as f64 * STEP).max(26.0) + 2.0 * GAP;
    let mut signs = vec![
        (Sign::Noise, format!("{}'s own least to most", plot.base)),
        (Sign::Reach, "least to most".to_owned()),
    ];
    if plot.rows.iter().any(|row| row.target.is_some()) {
        signs.push((Sign::Target, format!("target of {}", plot.targets_of)));
    }
    let (legend, legend_height) = legend(76.0, &plot.series, &signs);
    let top = 76.0 + legend_height + 22.0;
    let bottom = top + plot.rows.iter().map(row_height).sum::<f64>();
    let mut text = opening(bottom + 34.0, &plot.title, &note);
    text += &words(MARGIN, 52.0, "quiet", "", &note);
    text += &legend;

    let mut y = top;
    for (number, row) in plot.rows.iter().enumerate() {
        if number % 2 == 0 {
            text += &block("stripe", 1.0, y, WIDTH - 2.0, row_height(row), 0.0);
        }
        y += row_height(row);
    }
    for tick in axis.ticks() {
        let x = axis.at(tick);
        let (class, width) = match tick == 1.0 {
            true => ("one", 1.2),
            false => ("grid", 1.0),
        };
        text += &line(class, (x, top), (x, bottom), width);
        for y in [top - 6.0, bottom + 15.0] {
            text += &words(
                x,
                y,
                "quiet",
                " font-size=\"11\" text-anchor=\"middle\"",
                &tick_text(tick),
            );
        }
    }
    let (left, right) = match plot.more_is_better {
        true => ("← slower", "faster →"),
        false => ("← faster", "slower →"),
    };
    text += &words(
        LEFT - 12.0,
        top - 6.0,
        "quiet",
        " font-size=\"11\" text-anchor=\"end\"",
        left,
    );
    text += &words(RIGHT + 12.0, top - 6.0, "quiet", " font-size=\"11\"", right);

    let mut y = top;
    for row in &plot.rows {
        text += &ratio_row(plot, row, &axis, y, row_height(row));
        y += row_height(row);
    }
    text + "</svg>\n"
}

fn ratio_row(plot: &Ratios, row: &RatioRow, axis: &Axis, y: f64, height: f64) -> String {
    let middle = y + height / 2.0;
    let end = " text-anchor=\"end\"";
    let mut text = words(LEFT - 12.0, middle - 2.0, "text", end, &row.title);
    text += &words(
        LEFT - 12.0,
        middle + 13.0,
        "quiet",
        " font-size=\"11\" text-anchor=\"end\"",
        &format!("{} {}", plot.base, row.figure),
    );
    if let Some((least, most)) = row.noise {
        let x = axis.at(least);
        text += &block("noise", x, y + 3.0, axis.at(most) - x, height - 6.0, 0.0);
    }
    let one = axis.at(1.0);
    text += &line("one", (one, y), (one, y + height), 1.2);
    if let Some(target) = row.target {
        text += &target_mark(axis.at(target), y + 2.0, y + height - 2.0);
    }
    let mut at = middle - row.bars.len() as f64 * STEP / 2.0 + (STEP - BAR) / 2.0;
    for (bar, series) in row.bars.iter().zip(&plot.series) {
        match bar {
            Some(bar) => {
                let x = axis.at(bar.value);
                let (from, to) = (one.min(x), one.max(x).max(one.min(x) + 1.5));
                let (least, most) = (axis.at(bar.least), axis.at(bar.most));
                let class = format!("c{}", series.colour);
                text += &block(&class, from, at, to - from, BAR, 1.5);
                if most - least > 1.0 {
                    let y = at + BAR / 2.0;
                    text += &line("reach", (least, y), (most, y), 0.8);
                }
                text += &words(
                    to.max(most) + 4.0,
                    at + BAR - 0.2,
                    "text halo",
                    " font-size=\"9\"",
                    &short(bar.value),
                );
            }
            None => {
                text += &words(
                    one + 4.0,
                    at + BAR - 0.2,
                    "quiet halo",
                    " font-size=\"9\"",
                    "not measured",
                );
            }
        }
        at += STEP;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(more_is_better: bool, bars: Vec<Option<Bar>>) -> String {
        let names = ["peer", "ovl, <new> & \"old\""];
        let series = names.iter().enumerate().map(|(colour, title)| Series {
            title: (*title).to_owned(),
            colour,
        });
        ratios(&Ratios {
            title: "Work".to_owned(),
            base: "ext4".to_owned(),
            more_is_better,
            targets_of: "ovl".to_owned(),
            series: series.collect(),
            rows: vec![RatioRow {
                title: "stat, warm".to_owned(),
                figure: "2.66 ms".to_owned(),
                noise: Some((0.9, 1.2)),
                target: Some(3.5),
                bars,
            }],
        })
    }

    fn bar(value: f64) -> Option<Bar> {
        Some(Bar {
            value,
            least: value / 1.1,
            most: value * 1.1,
        })
    }

    /// The attribute of the first element whose text holds `of`.
    fn number(svg: &str, of: &str, attribute: &str) -> f64 {
        let line = svg.lines().find(|line| line.contains(of)).expect(of);
        let value = line
            .split(&format!(" {attribute}=\""))
            .nth(1)
            .expect(attribute);
        value.split('"').next().unwrap().parse().unwrap()
    }

    #[test]
    fn bars_begin_at_one_and_are_as_long_as_the_logarithm() {
        let svg = plot(false, vec![bar(4.0), bar(0.5)]);
        let bars: Vec<(f64, f64)> = ["class=\"c0\"", "class=\"c1\""]
            .iter()
            .map(|class| {
                let line = svg.lines().rfind(|line| line.contains(class)).unwrap();
                (number(line, class, "x"), number(line, class, "width"))
            })
            .collect();
        let (one, slow) = bars[0];
        let (left, fast) = bars[1];
        assert!((left + fast - one).abs() < 0.2, "{bars:?}");
        assert!(
            (slow / fast - 2.0).abs() < 0.01,
            "4 is twice as far from 1 as 1/2: {bars:?}"
        );
    }

    #[test]
    fn it_says_which_way_is_better_and_what_is_missing() {
        let times = plot(false, vec![bar(4.0), None]);
        assert!(times.contains("further to the left is better"));
        assert!(times.contains("slower →") && times.contains("target of ovl"));
        assert!(times.contains("not measured") && times.contains("ext4 2.66 ms"));
        let rates = plot(true, vec![bar(0.3), bar(1.0)]);
        assert!(rates.contains("further to the right is better"));
        assert!(rates.contains("faster →") && !rates.contains("not measured"));
        assert!(rates.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn names_cannot_break_the_document() {
        let svg = plot(false, vec![bar(1.0), bar(1e9)]);
        assert!(svg.contains("ovl, &lt;new&gt; &amp; &quot;old&quot;"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis::around([0.3, 40.0].into_iter());
        assert_eq!(axis.ticks(), [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]);
        let texts: Vec<String> = [0.01, 0.5, 1.0, 20.0].map(tick_text).to_vec();
        assert_eq!(texts, ["0.01×", "0.5×", "1×", "20×"]);
    }
}

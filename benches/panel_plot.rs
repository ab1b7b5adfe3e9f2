//! Panels of bars that start at zero, each measure with a scale of its own.

use super::svg::{
    Bar, LETTER, MARGIN, Series, Sign, WIDTH, block, legend, line, opening, target_mark, words,
};

/// Several measures, each with a scale of its own.
#[derive(Clone, Debug)]
pub struct Panels {
    pub title: String,
    pub note: String,
    pub panels: Vec<Panel>,
}

#[derive(Clone, Debug)]
pub struct Panel {
    /// With the unit.
    pub title: String,
    pub target: Option<f64>,
    pub bars: Vec<PanelBar>,
}

#[derive(Clone, Debug)]
pub struct PanelBar {
    pub series: Series,
    pub bar: Bar,
    /// The value in words.
    pub label: String,
}

/// Two panels beside each other.
pub fn panels(plot: &Panels) -> String {
    const COLUMN: f64 = (WIDTH - 3.0 * MARGIN) / 2.0;
    const LINE: f64 = 19.0;
    const HEAD: f64 = 30.0;
    let height = |panel: &Panel| HEAD + panel.bars.len() as f64 * LINE + 16.0;
    let shelf = |pair: &[Panel]| pair.iter().map(height).fold(0.0, f64::max);
    let tall: f64 = plot.panels.chunks(2).map(shelf).sum();
    let mut signs = vec![(Sign::Reach, "least to most".to_owned())];
    if plot.panels.iter().any(|panel| panel.target.is_some()) {
        signs.push((Sign::Target, "target of ovl".to_owned()));
    }
    let (legend, legend_height) = legend(76.0, &[], &signs);
    let top = 76.0 + legend_height;
    let mut text = opening(top + tall + 4.0, &plot.title, &plot.note);
    text += &words(MARGIN, 52.0, "quiet", "", &plot.note);
    text += &legend;
    let mut y = top;
    for pair in plot.panels.chunks(2) {
        for (column, panel) in pair.iter().enumerate() {
            let x = MARGIN + column as f64 * (COLUMN + MARGIN);
            text += &words(x, y + 14.0, "text", " font-weight=\"600\"", &panel.title);
            text += &panel_bars(panel, x, y + HEAD, COLUMN, LINE);
        }
        y += shelf(pair);
    }
    text + "</svg>\n"
}

fn panel_bars(panel: &Panel, x: f64, top: f64, width: f64, line_height: f64) -> String {
    let longest = |of: fn(&PanelBar) -> usize| panel.bars.iter().map(of).max().unwrap_or(0) as f64;
    let from = x + longest(|bar| bar.series.title.chars().count()) * (LETTER + 0.6) + 10.0;
    let to = x + width - longest(|bar| bar.label.chars().count()) * LETTER - 8.0;
    let values = panel.bars.iter().map(|bar| bar.bar.most);
    let most = values.chain(panel.target).fold(f64::MIN_POSITIVE, f64::max);
    let at = |value: f64| from + value / most * (to - from);
    let bottom = top + panel.bars.len() as f64 * line_height;
    let mut text = line("grid", (from, top - 3.0), (from, bottom), 1.0);
    if let Some(target) = panel.target {
        text += &target_mark(at(target), top - 6.0, bottom);
    }
    for (number, one) in panel.bars.iter().enumerate() {
        let y = top + number as f64 * line_height;
        let end = " text-anchor=\"end\"";
        text += &words(from - 7.0, y + 11.5, "text", end, &one.series.title);
        let class = format!("c{}", one.series.colour);
        text += &block(&class, from, y + 1.5, at(one.bar.value) - from, 13.0, 2.0);
        let (least, most) = (at(one.bar.least), at(one.bar.most));
        if most - least > 1.0 {
            text += &line("reach", (least, y + 8.0), (most, y + 8.0), 1.0);
        }
        text += &words(
            at(one.bar.value).max(most) + 6.0,
            y + 11.5,
            "text halo",
            "",
            &one.label,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn panels_start_at_zero() {
        let one = |title: &str, value: f64| PanelBar {
            series: Series {
                title: title.to_owned(),
                colour: 3,
            },
            bar: Bar {
                value,
                least: value,
                most: value,
            },
            label: format!("{value} s"),
        };
        let svg = panels(&Panels {
            title: "Store".to_owned(),
            note: "less is better".to_owned(),
            panels: vec![Panel {
                title: "import, s".to_owned(),
                target: Some(1.0),
                bars: vec![one("a", 1.0), one("b", 4.0)],
            }],
        });
        let widths: Vec<f64> = svg
            .lines()
            .filter(|line| line.contains("class=\"c3\""))
            .map(|line| number(line, "c3", "width"))
            .collect();
        assert!((widths[1] / widths[0] - 4.0).abs() < 0.01, "{widths:?}");
        assert!(svg.contains("1 s") && svg.contains("less is better"));
    }
}

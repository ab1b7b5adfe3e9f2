//! What the plots are drawn with: pieces of SVG, written by hand.
//!
//! The colours are given as classes with a second set for dark pages, on a ground of the plot's own, so that it can be read
//! wherever it is shown. A plot says in words what it shows, which way is better, and what its marks mean.

use std::fmt::Write;

pub const WIDTH: f64 = 960.0;
pub const MARGIN: f64 = 20.0;
/// Of a letter of 12 pixels, on average.
pub const LETTER: f64 = 6.4;

/// What stands for one system or program: its name, and the number of its colour.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub title: String,
    pub colour: usize,
}

/// How many colours there are. The first three are for peers.
pub const COLOURS: [(&str, &str); 11] = [
    ("#8b949e", "#8b949e"),
    ("#e3b26b", "#d9a657"),
    ("#c2762e", "#b9722f"),
    ("#1f6feb", "#4c8dff"),
    ("#12a594", "#2bbfae"),
    ("#8250df", "#a583f0"),
    ("#2f9e44", "#4cbb63"),
    ("#d6409f", "#e667b5"),
    ("#b6a11e", "#d2bd3a"),
    ("#c0392b", "#e5786b"),
    ("#6e7781", "#a2abb5"),
];

#[derive(Clone, Copy, Debug)]
pub struct Bar {
    pub value: f64,
    pub least: f64,
    pub most: f64,
}

/// The text of a number with two digits that tell something.
pub fn short(value: f64) -> String {
    match value {
        v if v >= 99.5 => format!("{v:.0}"),
        v if v >= 9.95 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

pub fn opening(height: f64, title: &str, description: &str) -> String {
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" height=\"{height:.0}\" \
        role=\"img\" font-family=\"ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\" \
        font-size=\"12\">\n<title>{}</title>\n<desc>{}</desc>\n<style>\n",
        escaped(title),
        escaped(description),
    );
    let plain = [
        ("ground", "fill", "#ffffff", "#0d1117"),
        ("halo", "stroke", "#ffffff", "#0d1117"),
        ("frame", "stroke", "#d0d7de", "#30363d"),
        ("stripe", "fill", "#f6f8fa", "#151b23"),
        ("text", "fill", "#1f2328", "#e6edf3"),
        ("quiet", "fill", "#59636e", "#9198a1"),
        ("grid", "stroke", "#e1e4e8", "#262c36"),
        ("one", "stroke", "#1f2328", "#e6edf3"),
        ("noise", "fill", "#d9dee4", "#333b46"),
        ("reach", "stroke", "#1f2328", "#e6edf3"),
        ("target", "stroke", "#cf222e", "#ff7b72"),
        ("cap", "fill", "#cf222e", "#ff7b72"),
    ];
    for (class, what, light, _) in plain {
        let _ = writeln!(text, ".{class}{{{what}:{light}}}");
    }
    // Numbers stay readable where a mark runs through them.
    text.push_str(".halo{stroke-width:2.5px;stroke-linejoin:round;paint-order:stroke}\n");
    for (number, (light, _)) in COLOURS.iter().enumerate() {
        let _ = writeln!(text, ".c{number}{{fill:{light}}}");
    }
    text.push_str("@media (prefers-color-scheme: dark){\n");
    for (class, what, _, dark) in plain {
        let _ = writeln!(text, ".{class}{{{what}:{dark}}}");
    }
    for (number, (_, dark)) in COLOURS.iter().enumerate() {
        let _ = writeln!(text, ".c{number}{{fill:{dark}}}");
    }
    let _ = writeln!(
        text,
        "}}\n</style>\n<rect class=\"ground frame\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{:.0}\" rx=\"8\"/>",
        WIDTH - 1.0,
        height - 1.0
    );
    let _ = writeln!(
        text,
        "<text class=\"text\" x=\"{MARGIN}\" y=\"32\" font-size=\"17\" font-weight=\"600\">{}</text>",
        escaped(title)
    );
    text
}

pub fn words(x: f64, y: f64, class: &str, extra: &str, text: &str) -> String {
    format!(
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\"{extra}>{}</text>\n",
        escaped(text)
    )
}

pub fn line(class: &str, from: (f64, f64), to: (f64, f64), width: f64) -> String {
    format!(
        "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke-width=\"{width}\"/>\n",
        from.0, from.1, to.0, to.1
    )
}

pub fn block(class: &str, x: f64, y: f64, width: f64, height: f64, round: f64) -> String {
    format!(
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" rx=\"{round}\"/>\n",
        width.max(0.0)
    )
}

/// The mark of a target: a line with a small roof.
pub fn target_mark(x: f64, top: f64, bottom: f64) -> String {
    let roof = format!(
        "<path class=\"cap\" d=\"M{:.1} {top:.1}h8l-4 5z\"/>\n",
        x - 4.0
    );
    line("target", (x, top), (x, bottom), 1.6) + &roof
}

/// What the signs and colours mean, in as many lines as it takes; gives the height they take, too.
pub fn legend(y: f64, series: &[Series], signs: &[(Sign, String)]) -> (String, f64) {
    let (mut x, mut line_at) = (MARGIN, y);
    let mut text = String::new();
    let mut next = |width: f64| {
        if x + width > WIDTH - MARGIN {
            x = MARGIN;
            line_at += 19.0;
        }
        let at = (x, line_at);
        x += width;
        at
    };
    let room = |title: &str| 34.0 + title.chars().count() as f64 * LETTER;
    for one in series {
        let (x, y) = next(room(&one.title));
        text += &block(&format!("c{}", one.colour), x, y - 9.0, 12.0, 10.0, 2.0);
        text += &words(x + 18.0, y, "text", "", &one.title);
    }
    for (sign, title) in signs {
        let (x, y) = next(room(title));
        text += &match sign {
            Sign::Noise => block("noise", x, y - 10.0, 12.0, 12.0, 0.0),
            Sign::Reach => line("reach", (x, y - 4.0), (x + 12.0, y - 4.0), 1.0),
            Sign::Target => target_mark(x + 6.0, y - 11.0, y + 2.0),
        };
        text += &words(x + 18.0, y, "quiet", "", title);
    }
    (text, line_at - y + 19.0)
}

#[derive(Clone, Copy, Debug)]
pub enum Sign {
    Noise,
    Reach,
    Target,
}

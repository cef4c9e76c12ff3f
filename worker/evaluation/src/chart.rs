//! Line charts as inline SVG. Colours are classes: the page's style sheet decides them for light
//! and dark.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 46.0;

/// One line with a marker at each point.
pub(crate) struct Series {
    /// CSS class.
    pub(crate) class: &'static str,
    /// For the tooltip.
    pub(crate) name: String,
    /// Points by rising x.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A chart of several series over tokens.
pub(crate) struct Chart<'a> {
    /// What the picture shows, for those who cannot see it.
    pub(crate) title: &'a str,
    /// Under the x axis.
    pub(crate) x_label: &'a str,
    /// Along the y axis.
    pub(crate) y_label: &'a str,
    /// Right end of the x axis.
    pub(crate) x_max: f64,
    /// A vertical line and its caption.
    pub(crate) mark: (f64, &'a str),
    /// The lines.
    pub(crate) series: Vec<Series>,
}

impl Chart<'_> {
    /// The `<svg>` element.
    pub(crate) fn svg(&self) -> String {
        let top = self.series.iter().flat_map(|s| &s.points).map(|p| p.1).fold(0.0, f64::max);
        let step = nice_step(top / 5.0);
        let y_max = (top / step).ceil().max(1.0) * step;
        let x = |v: f64| LEFT + v / self.x_max * (WIDTH - LEFT - RIGHT);
        let y = |v: f64| HEIGHT - BOTTOM - v / y_max * (HEIGHT - TOP - BOTTOM);
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(self.title)
        );
        let mut text = |x: f64, y: f64, class: &str, content: &str| {
            // Writing into a String cannot fail.
            let _ =
                write!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{}</text>", escape(content));
        };
        for i in 0..=4 {
            let v = self.x_max * f64::from(i) / 4.0;
            text(x(v), HEIGHT - BOTTOM + 18.0, if i == 4 { "end" } else { "mid" }, &tokens(v));
        }
        text((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 8.0, "mid", self.x_label);
        text(4.0, 13.0, "start", self.y_label);
        let lines = (y_max / step).round() as usize;
        for i in 0..=lines {
            let v = step * i as f64;
            text(LEFT - 8.0, y(v) + 4.0, "end", &format_value(v, step));
        }
        let (at, caption) = self.mark;
        if at < self.x_max {
            text(x(at) + 6.0, TOP + 14.0, "start mark", caption);
        }
        for i in 0..=lines {
            let v = y(step * i as f64);
            let right = WIDTH - RIGHT;
            let _ = write!(out, "<path class=\"grid\" d=\"M{LEFT} {v:.1}H{right}\"/>");
        }
        if at < self.x_max {
            let (v, bottom) = (x(at), HEIGHT - BOTTOM);
            let _ = write!(out, "<path class=\"markline\" d=\"M{v:.1} {TOP}V{bottom}\"/>");
        }
        for series in &self.series {
            let path: Vec<String> =
                series.points.iter().map(|&(px, py)| format!("{:.1} {:.1}", x(px), y(py))).collect();
            let _ = write!(out, "<path class=\"line {}\" d=\"M{}\"/>", series.class, path.join("L"));
            for &(px, py) in &series.points {
                let _ = write!(
                    out,
                    "<circle class=\"dot {}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.2\"><title>{}, {}: {py:.3}</title></circle>",
                    series.class,
                    x(px),
                    y(py),
                    escape(&series.name),
                    tokens(px)
                );
            }
        }
        out.push_str("</svg>");
        out
    }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn nice_step(least: f64) -> f64 {
    let least = least.max(1e-3);
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= least * 0.999).unwrap_or(10.0 * power)
}

fn format_value(v: f64, step: f64) -> String {
    if step >= 1.0 {
        format!("{v:.0}")
    } else if step >= 0.1 {
        format!("{v:.1}")
    } else {
        format!("{v:.2}")
    }
}

/// A number of tokens as people write it: 8K, 1.5K, 640.
pub(crate) fn tokens(v: f64) -> String {
    if v >= 1024.0 * 1024.0 {
        short(v / 1024.0 / 1024.0, "M")
    } else if v >= 1024.0 {
        short(v / 1024.0, "K")
    } else {
        format!("{v:.0}")
    }
}

fn short(v: f64, unit: &str) -> String {
    if (v - v.round()).abs() < 0.05 { format!("{v:.0}{unit}") } else { format!("{v:.1}{unit}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

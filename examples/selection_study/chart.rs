//! Draws lines over two axes each, as SVG.

use std::fmt::Write;

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 520.0;
/// Of the drawing area of one picture.
const TOP: f64 = 64.0;
const BOTTOM: f64 = 380.0;
const GAP: f64 = 70.0;

/// One picture.
pub(crate) struct Axis {
    pub(crate) title: &'static str,
    pub(crate) label: &'static str,
    pub(crate) at: Vec<f64>,
    pub(crate) names: Vec<String>,
    pub(crate) logarithmic: bool,
    pub(crate) lines: Vec<Line>,
}

pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) color: &'static str,
    /// In milliseconds.
    pub(crate) points: Vec<f64>,
    /// From the least to the most of each point.
    pub(crate) spread: Vec<(f64, f64)>,
}

/// The pictures side by side, with one legend.
pub(crate) fn draw(axes: &[Axis]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>99th percentile of a call's time, by the way its server is chosen</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{GAP}\" y=\"24\" font-size=\"15\" font-weight=\"bold\">99th percentile of a \
         call's time in ms, by the way its server is chosen</text>\n"
    );
    let width = (WIDTH - GAP * (axes.len() as f64 + 0.5)) / axes.len() as f64;
    let all = axes.iter().flat_map(|axis| axis.lines.iter().flat_map(|line| &line.points));
    let (least, most) = all
        .fold((f64::MAX, f64::MIN), |(least, most), point| (least.min(*point), most.max(*point)));
    let scale = Scale { least: least * 0.8, most: most * 1.25 };
    for (number, axis) in axes.iter().enumerate() {
        let left = GAP + number as f64 * (width + GAP);
        picture(&mut svg, axis, left, width, &scale);
    }
    if let Some(axis) = axes.first() {
        legend(&mut svg, &axis.lines);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Milliseconds, upwards, each power of ten as high as every other.
struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    fn y(&self, point: f64) -> f64 {
        let share = (point / self.least).ln() / (self.most / self.least).ln();
        BOTTOM - share.clamp(0.0, 1.0) * (BOTTOM - TOP)
    }

    fn marks(&self) -> impl Iterator<Item = f64> {
        let marks = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4];
        marks.into_iter().filter(|mark| (self.least..=self.most).contains(mark))
    }
}

// Writing to a string does not fail, here and below.
fn picture(svg: &mut String, axis: &Axis, left: f64, width: f64, scale: &Scale) {
    let right = left + width;
    let _ = writeln!(svg, "<text x=\"{left}\" y=\"48\">{}</text>", axis.title);
    for mark in scale.marks() {
        let y = scale.y(mark);
        let _ = writeln!(
            svg,
            "<path d=\"M{left:.1} {y:.1}H{right:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>",
            left - 6.0,
            y + 4.0
        );
    }
    let place = |at: f64| if axis.logarithmic { at.ln() } else { at };
    let (first, last) = (place(axis.at[0]), place(axis.at[axis.at.len() - 1]));
    let x = |at: f64| left + 14.0 + (place(at) - first) / (last - first) * (width - 28.0);
    for (at, name) in axis.at.iter().zip(&axis.names) {
        let (x, y) = (x(*at), BOTTOM + 18.0);
        let _ =
            writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{name}</text>");
    }
    let (middle, y) = (left + width / 2.0, BOTTOM + 38.0);
    let label = axis.label;
    let _ =
        writeln!(svg, "<text x=\"{middle:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{label}</text>");
    for line in &axis.lines {
        let color = line.color;
        let mut path = String::new();
        for ((at, point), (low, high)) in axis.at.iter().zip(&line.points).zip(&line.spread) {
            let (x, y) = (x(*at), scale.y(*point));
            let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' });
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {:.1}V{:.1}\" stroke=\"{color}\" opacity=\"0.4\"/>\
                 <circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{color}\"/>",
                scale.y(*low),
                scale.y(*high)
            );
        }
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>"
        );
    }
}

fn legend(svg: &mut String, lines: &[Line]) {
    for (number, line) in lines.iter().enumerate() {
        let (column, row) = ((number % 3) as f64, (number / 3) as f64);
        let (x, y) = (GAP + column * 300.0, BOTTOM + 72.0 + row * 22.0);
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {:.1}h26\" stroke=\"{}\" stroke-width=\"3\"/>\
             <text x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
            y - 4.0,
            line.color,
            x + 34.0,
            line.name
        );
    }
}

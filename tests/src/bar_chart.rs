//! Bar charts as SVG: charts below each other, each with its own unit and a bar for each name.

use std::fmt::Write as _;

use crate::line_chart::{COLOURS, line, text};

/// One chart.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What is shown, with its unit.
    pub title: String,
    /// Its bars.
    pub bars: Vec<Bar>,
}

/// One bar.
#[derive(Debug, Clone)]
pub struct Bar {
    /// What was measured.
    pub name: String,
    /// The value.
    pub value: f64,
    /// The lowest value, where the line of the spread begins.
    pub low: f64,
    /// The highest value.
    pub high: f64,
    /// The value as text.
    pub label: String,
}

const WIDTH: f64 = 760.0;
/// The area of the bars.
const LEFT: f64 = 110.0;
const RIGHT: f64 = 100.0;
const BAR: f64 = 14.0;
/// Distance of the top of one bar from that of the next.
const STEP: f64 = 19.0;
/// Room for the title of a chart, and below its bars.
const TITLE: f64 = 22.0;
const GAP: f64 = 14.0;
/// Room for the heading.
const TOP: f64 = 44.0;

/// Draws charts below each other.
pub fn svg(heading: &str, charts: &[Chart]) -> String {
    let chart_height = |chart: &Chart| TITLE + STEP * chart.bars.len() as f64 + GAP;
    let height = TOP + charts.iter().map(chart_height).sum::<f64>();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    out += &text(12.0, 24.0, "start", heading);
    let mut top = TOP;
    for chart in charts {
        draw(&mut out, chart, top);
        top += chart_height(chart);
    }
    out + "</svg>\n"
}

fn draw(out: &mut String, chart: &Chart, top: f64) {
    let most = chart.bars.iter().map(|b| b.high).fold(0.0, f64::max);
    // All bars are empty if all values are 0.
    let scale = (WIDTH - LEFT - RIGHT) / most.max(f64::MIN_POSITIVE);
    *out += &text(12.0, top + 14.0, "start", &chart.title);
    for (index, bar) in chart.bars.iter().enumerate() {
        let at = top + TITLE + STEP * index as f64;
        let middle = at + BAR / 2.0;
        let end = |value: f64| LEFT + (value * scale).clamp(0.0, WIDTH);
        *out += &text(LEFT - 6.0, at + 11.0, "end", &bar.name);
        let _ = writeln!(
            out,
            "<rect x=\"{LEFT}\" y=\"{at:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\" \
             fill-opacity=\"0.6\"/>",
            end(bar.value) - LEFT,
            COLOURS[index % COLOURS.len()]
        );
        line(out, "#000", (end(bar.low), middle), (end(bar.high), middle));
        *out += &text(end(bar.high) + 6.0, at + 11.0, "start", &bar.label);
    }
}

//! Line charts as SVG: charts of the same span of time below each other, each with its own unit.

use std::fmt::Write as _;

/// One chart.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What is shown, with its unit.
    pub title: String,
    /// Its lines; at most as many as there are colours.
    pub lines: Vec<Line>,
}

/// The values of one thing over time.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// Seconds since the start, and the value. In the order of time.
    pub points: Vec<(f64, f64)>,
}

/// A moment that is marked in all charts.
#[derive(Debug, Clone)]
pub struct Moment {
    /// What happened.
    pub name: String,
    /// Seconds since the start.
    pub at: f64,
}

const WIDTH: f64 = 960.0;
/// The area of the lines within a chart, which leaves room for labels.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 160.0;
const PLOT_HEIGHT: f64 = 150.0;
/// Distance of the top of one chart from that of the next.
const STEP: f64 = PLOT_HEIGHT + 70.0;
/// Room for the heading, and for the names of the moments.
const TOP: f64 = 80.0;
/// Distinguishable also with impaired colour vision (Okabe and Ito).
pub(crate) const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];
/// Most intervals between the labels of an axis.
const INTERVALS: f64 = 5.0;

/// Draws charts below each other.
pub fn svg(heading: &str, charts: &[Chart], moments: &[Moment]) -> String {
    let height = TOP + STEP * charts.len() as f64;
    let seconds = charts.iter().flat_map(|c| &c.lines).flat_map(|l| &l.points);
    let x = Axis::of(seconds.map(|p| p.0), LEFT, WIDTH - RIGHT);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    out += &text(LEFT, 24.0, "start", &format!("{heading}; time in seconds"));
    for (index, chart) in charts.iter().enumerate() {
        draw(&mut out, chart, &x, TOP + STEP * index as f64);
    }
    for moment in moments {
        let at = x.position(moment.at);
        line(&mut out, "#888", (at, TOP - 22.0), (at, height - 70.0));
        out += &text(at, TOP - 26.0, "middle", &moment.name);
    }
    out + "</svg>\n"
}

fn draw(out: &mut String, chart: &Chart, x: &Axis, top: f64) {
    let bottom = top + PLOT_HEIGHT;
    let values = chart.lines.iter().flat_map(|l| &l.points).map(|p| p.1);
    let y = Axis::of(values, bottom, top);
    *out += &text(LEFT, top - 8.0, "start", &chart.title);
    for value in y.labels() {
        let at = y.position(value);
        line(out, "#ddd", (LEFT, at), (WIDTH - RIGHT, at));
        *out += &text(LEFT - 6.0, at + 4.0, "end", &value.to_string());
    }
    for value in x.labels() {
        let at = x.position(value);
        line(out, "#000", (at, bottom), (at, bottom + 4.0));
        *out += &text(at, bottom + 17.0, "middle", &value.to_string());
    }
    line(out, "#000", (LEFT, bottom), (WIDTH - RIGHT, bottom));
    line(out, "#000", (LEFT, top), (LEFT, bottom));
    for (index, (series, colour)) in chart.lines.iter().zip(COLOURS).enumerate() {
        let points: Vec<String> = series
            .points
            .iter()
            .map(|(seconds, value)| {
                format!("{:.1},{:.1}", x.position(*seconds), y.position(*value))
            })
            .collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>",
            points.join(" ")
        );
        let (left, at) = (WIDTH - RIGHT + 12.0, top + 14.0 + 18.0 * index as f64);
        line(out, colour, (left, at - 4.0), (left + 16.0, at - 4.0));
        *out += &text(left + 22.0, at, "start", &series.name);
    }
}

/// A linear axis from 0 to a round value.
#[derive(Debug)]
struct Axis {
    /// Distance between two labels.
    step: f64,
    end: f64,
    /// Where 0 and `end` are drawn.
    from: f64,
    to: f64,
}

impl Axis {
    /// An axis for these values.
    fn of(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let most = values.fold(1.0, f64::max);
        let magnitude = 10_f64.powf((most / INTERVALS).log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude);
        let step = steps.into_iter().find(|step| step * INTERVALS >= most);
        let step = step.unwrap_or(10.0 * magnitude).max(1.0);
        let end = (most / step).ceil() * step;
        Self {
            step,
            end,
            from,
            to,
        }
    }

    fn position(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * value / self.end
    }

    fn labels(&self) -> impl Iterator<Item = f64> {
        let count = (self.end / self.step).round() as usize;
        (0..=count).map(|n| n as f64 * self.step)
    }
}

pub(crate) fn line(out: &mut String, colour: &str, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        out,
        "<line stroke=\"{colour}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        from.0, from.1, to.0, to.1
    );
}

pub(crate) fn text(x: f64, y: f64, anchor: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n")
}

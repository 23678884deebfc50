//! The plots of a report.

use super::metric::{ALL, Metric};
use super::report::Report;
use crate::bar_chart::{Bar, Chart, svg};

/// The plots: file name, heading, and the keys of the metrics.
const PLOTS: &[(&str, &str, &[&str])] = &[
    (
        "bulk.svg",
        "Bulk data, Gb/s: more is better",
        &[
            "up1", "up8", "up64", "down1", "down8", "down64", "pass", "same-up",
        ],
    ),
    (
        "round-trips.svg",
        "Round trips, microseconds: less is better",
        &["rr1.p50", "rr1.p99", "rr64.p50", "rr64.p99", "same-rr.p50"],
    ),
    (
        "beside.svg",
        "Round trips beside bulk data, microseconds: less is better",
        &[
            "beside.p50",
            "beside.p99",
            "beside-pass.p50",
            "beside-pass.p99",
        ],
    ),
    (
        "connections.svg",
        "New connections",
        &[
            "crr1",
            "crr1.p99",
            "crr32",
            "crr32.p99",
            "held.before",
            "held.after",
        ],
    ),
    (
        "costs.svg",
        "CPU time, system calls and memory: less is better",
        &[
            "up1.cpu",
            "down1.cpu",
            "rr64.cpu",
            "crr32.cpu",
            "calls.mib",
            "calls.rr64",
            "calls.crr",
            "memory.idle",
            "memory.connection",
            "memory.tunnel",
            "memory.burst",
        ],
    ),
];

/// Draws all plots that have values: file name and content.
pub(super) fn draw(report: &Report) -> Vec<(&'static str, String)> {
    let plots = PLOTS.iter().filter_map(|(file, heading, keys)| {
        let metrics = ALL.iter().filter(|metric| keys.contains(&metric.key));
        let charts = metrics.map(|metric| chart(report, *metric));
        let charts: Vec<Chart> = charts.filter(|chart| !chart.bars.is_empty()).collect();
        (!charts.is_empty()).then(|| (*file, svg(heading, &charts)))
    });
    plots.collect()
}

fn chart(report: &Report, metric: Metric) -> Chart {
    let bars = report.columns().into_iter().filter_map(|name| {
        let spread = report.spread(metric, &name)?;
        Some(Bar {
            value: spread.median,
            low: spread.low,
            high: spread.high,
            label: metric.text(spread.median),
            name,
        })
    });
    Chart {
        title: format!("{} [{}]", metric.title, metric.unit),
        bars: bars.collect(),
    }
}

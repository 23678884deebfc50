//! The targets, compared with what was measured.

use std::fmt::Write as _;

use super::arena::{DIRECT, FLOOR};
use super::metric::Metric;
use super::report::Report;

/// A limit of a metric, relative to another contestant or metric.
struct Target {
    metric: &'static str,
    relation: Relation,
    /// Whether the ratio or difference must be at least this, or at most.
    limit: f64,
}

enum Relation {
    /// The ratio to a contestant.
    To(&'static str),
    /// The ratio to each proxy of another project.
    ToPeers,
    /// The difference from the floor.
    AboveFloor,
    /// The ratio to another metric of the same contestant.
    ToOwn(&'static str),
    /// The value itself.
    Absolute,
}

use Relation::{AboveFloor, Absolute, To, ToOwn, ToPeers};

const fn target(metric: &'static str, relation: Relation, limit: f64) -> Target {
    Target {
        metric,
        relation,
        limit,
    }
}

const TARGETS: &[Target] = &[
    target("up1", To(FLOOR), 0.75),
    target("down1", To(FLOOR), 0.75),
    target("up1", ToPeers, 1.35),
    target("down1", ToPeers, 1.35),
    target("up1.cpu", AboveFloor, 0.13),
    target("down1.cpu", AboveFloor, 0.13),
    target("up8", To(FLOOR), 0.75),
    target("down8", To(FLOOR), 0.75),
    target("up64", To(FLOOR), 0.75),
    target("down64", To(FLOOR), 0.75),
    target("up8", ToPeers, 1.6),
    target("down8", ToPeers, 1.6),
    target("up64", ToPeers, 1.6),
    target("down64", ToPeers, 1.6),
    target("up8", ToOwn("up1"), 1.0),
    target("down8", ToOwn("down1"), 1.0),
    target("up64", ToOwn("up1"), 1.0),
    target("down64", ToOwn("down1"), 1.0),
    target("rr1.p50", To(FLOOR), 1.03),
    target("rr1.p99", To(FLOOR), 1.2),
    target("rr1.p50", To(DIRECT), 0.8),
    target("rr64.p50", To(FLOOR), 0.60),
    target("rr64.p50", ToPeers, 0.48),
    target("beside.p99", Absolute, 2000.0),
    target("beside-pass.p99", Absolute, 2000.0),
    target("crr1", To(FLOOR), 1.1),
    target("crr32", To(FLOOR), 1.4),
    target("crr1", ToPeers, 1.7),
    target("crr32", ToPeers, 1.7),
    target("crr1.p99", To(FLOOR), 1.0),
    target("crr32.p99", To(FLOOR), 1.0),
    target("held.after", ToOwn("held.before"), 1.0),
    target("same-up", ToPeers, 2.0),
    target("same-rr.p50", ToPeers, 0.75),
    target("pass", To(FLOOR), 1.2),
    target("memory.idle", ToPeers, 0.6),
    target("memory.connection", Absolute, 8.0),
    target("memory.burst", ToOwn("memory.idle"), 1.5),
];

/// A table of the targets, for each Underpass.
pub(super) fn table(report: &Report) -> String {
    let columns = report.columns();
    let (mine, peers): (Vec<_>, Vec<_>) = columns
        .iter()
        .filter(|name| *name != DIRECT && *name != FLOOR)
        .partition(|name| !report.is_peer(name));
    let mut text = "targets\n".to_owned();
    for target in TARGETS {
        let metric = Metric::of(target.metric);
        let others = match &target.relation {
            ToPeers => peers.iter().map(|peer| peer.as_str()).collect(),
            To(name) => vec![*name],
            _ => vec![FLOOR],
        };
        for other in others {
            let mut line = String::new();
            for name in &mine {
                let value = report.value(&target.relation, metric, name, other);
                let Some(value) = value else { continue };
                let is_least = is_least(target, metric);
                let is_met = if is_least {
                    value >= target.limit
                } else {
                    value <= target.limit
                };
                let _ = write!(
                    line,
                    "  {name} {value:.2} {}",
                    if is_met { "met" } else { "missed" }
                );
            }
            if !line.is_empty() {
                let sign = if is_least(target, metric) { ">=" } else { "<=" };
                let what = describe(target, other);
                let _ = writeln!(text, "    {:<44} {sign} {:<6}{line}", what, target.limit);
            }
        }
    }
    text
}

/// Whether more is better.
fn is_least(target: &Target, metric: Metric) -> bool {
    metric.is_rate && !matches!(target.relation, AboveFloor | Absolute)
}

fn describe(target: &Target, other: &str) -> String {
    let metric = target.metric;
    match target.relation {
        To(_) | ToPeers => format!("{metric} / that of {other}"),
        AboveFloor => format!("{metric} - that of {FLOOR}"),
        ToOwn(own) => format!("{metric} / {own}"),
        Absolute => metric.to_owned(),
    }
}

impl Report {
    fn value(&self, of: &Relation, metric: Metric, name: &str, other: &str) -> Option<f64> {
        let median = |metric, name| Some(self.spread(metric, name)?.median);
        Some(match of {
            To(_) | ToPeers => self.ratio(metric, name, other)?.median,
            AboveFloor => median(metric, name)? - median(metric, FLOOR)?,
            ToOwn(own) => median(metric, name)? / median(Metric::of(own), name)?,
            Absolute => median(metric, name)?,
        })
    }
}

//! What is measured.

/// A quantity with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// The key in `contest.json`: that of the row first.
    pub key: &'static str,
    /// What it is.
    pub title: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Whether more is better.
    pub is_rate: bool,
}

const fn rate(key: &'static str, title: &'static str, unit: &'static str) -> Metric {
    Metric {
        key,
        title,
        unit,
        is_rate: true,
    }
}

const fn cost(key: &'static str, title: &'static str, unit: &'static str) -> Metric {
    Metric {
        key,
        title,
        unit,
        is_rate: false,
    }
}

/// All of them, in the order of reports.
pub(super) const ALL: &[Metric] = &[
    rate("up1", "bulk up, 1 connection", "Gb/s"),
    cost(
        "up1.cpu",
        "CPU time of the proxies, bulk up, 1 connection",
        "s/GB",
    ),
    rate("up8", "bulk up, 8 connections", "Gb/s"),
    cost(
        "up8.cpu",
        "CPU time of the proxies, bulk up, 8 connections",
        "s/GB",
    ),
    rate("up64", "bulk up, 64 connections", "Gb/s"),
    cost(
        "up64.cpu",
        "CPU time of the proxies, bulk up, 64 connections",
        "s/GB",
    ),
    rate("down1", "bulk down, 1 connection", "Gb/s"),
    cost(
        "down1.cpu",
        "CPU time of the proxies, bulk down, 1 connection",
        "s/GB",
    ),
    rate("down8", "bulk down, 8 connections", "Gb/s"),
    cost(
        "down8.cpu",
        "CPU time of the proxies, bulk down, 8 connections",
        "s/GB",
    ),
    rate("down64", "bulk down, 64 connections", "Gb/s"),
    cost(
        "down64.cpu",
        "CPU time of the proxies, bulk down, 64 connections",
        "s/GB",
    ),
    cost("rr1.p50", "round trip of 1 B, median", "us"),
    cost("rr1.p99", "round trip of 1 B, p99", "us"),
    cost(
        "rr1.cpu",
        "CPU time of the proxies, round trip of 1 B",
        "us",
    ),
    cost(
        "rr64.p50",
        "round trip of 1 KiB on 64 connections, median",
        "us",
    ),
    cost(
        "rr64.p99",
        "round trip of 1 KiB on 64 connections, p99",
        "us",
    ),
    cost(
        "rr64.cpu",
        "CPU time of the proxies, round trip of 1 KiB",
        "us",
    ),
    cost(
        "beside.p50",
        "round trip beside 4 bulk connections through tunnels, median",
        "us",
    ),
    cost(
        "beside.p99",
        "round trip beside 4 bulk connections through tunnels, p99",
        "us",
    ),
    cost(
        "beside-pass.p50",
        "round trip beside 4 passthrough bulk connections, median",
        "us",
    ),
    cost(
        "beside-pass.p99",
        "round trip beside 4 passthrough bulk connections, p99",
        "us",
    ),
    rate("crr1", "new connections, one after another", "/s"),
    cost("crr1.p99", "new connection, one after another, p99", "us"),
    cost("crr1.cpu", "CPU time of the proxies, new connection", "us"),
    rate("crr32", "new connections, 32 at a time", "/s"),
    cost("crr32.p99", "new connection, 32 at a time, p99", "us"),
    cost(
        "crr32.cpu",
        "CPU time of the proxies, new connection, 32 at a time",
        "us",
    ),
    rate("same-up", "bulk up within a node, 1 connection", "Gb/s"),
    cost(
        "same-up.cpu",
        "CPU time of the proxy, bulk within a node",
        "s/GB",
    ),
    cost(
        "same-rr.p50",
        "round trip of 1 B within a node, median",
        "us",
    ),
    cost("same-rr.p99", "round trip of 1 B within a node, p99", "us"),
    rate("pass", "passthrough bulk, 1 connection", "Gb/s"),
    cost(
        "pass.cpu",
        "CPU time of the proxy, passthrough bulk",
        "s/GB",
    ),
    cost(
        "held.before",
        "new connection, median, before others are held",
        "us",
    ),
    cost(
        "held.after",
        "new connection, median, while they are held",
        "us",
    ),
    cost("calls.mib", "system calls of the proxies, bulk up", "/MiB"),
    cost(
        "calls.rr",
        "system calls of the proxies, round trip of 1 B",
        "",
    ),
    cost(
        "calls.rr64",
        "system calls of the proxies, round trip of 1 KiB on 64",
        "",
    ),
    cost(
        "calls.crr",
        "system calls of the proxies, new connection",
        "",
    ),
    cost("memory.idle", "memory of a proxy, idle", "MiB"),
    cost(
        "memory.connection",
        "memory of both proxies, idle connection",
        "KiB",
    ),
    cost(
        "memory.tunnel",
        "memory of both proxies, tunnel with one connection",
        "KiB",
    ),
    cost("memory.burst", "memory of a proxy, after a burst", "MiB"),
];

impl Metric {
    /// The metric with this key.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn of(key: &str) -> Self {
        let found = ALL.iter().find(|metric| metric.key == key);
        *found.unwrap_or_else(|| panic!("no metric {key}"))
    }

    /// Whether it belongs to a row.
    pub(super) fn is_of(&self, row: &str) -> bool {
        self.key.split('.').next() == Some(row)
    }

    /// A value for people.
    pub(super) fn text(&self, value: f64) -> String {
        let digits = match value.abs() {
            v if v >= 100.0 => 0,
            v if v >= 10.0 => 1,
            _ => 2,
        };
        format!("{value:.digits$}")
    }
}

//! The result: medians, ratios and spread, as tables, JSON and plots.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::arena::{DIRECT, FLOOR};
use super::floor::Copying;
use super::metric::{ALL, Metric};
use super::rows::{Row, Sample};
use super::{Options, charts, targets};
use crate::measure::median;

/// What was measured.
#[derive(Debug)]
pub struct Report {
    contestants: Vec<String>,
    /// The contestants that are proxies of other projects.
    peers: Vec<String>,
    /// The samples of each metric, by contestant.
    samples: BTreeMap<&'static str, BTreeMap<String, Vec<f64>>>,
    out: PathBuf,
    /// Describes the run.
    run: Value,
}

/// Median, lowest and highest of some values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Report {
    pub(super) fn new(options: &Options, contestants: Vec<String>) -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let cores = std::thread::available_parallelism().unwrap().get();
        let run = json!({
            "build": if cfg!(debug_assertions) { "debug" } else { "release" },
            "cores": cores,
            "kernel": kernel.trim(),
            "rounds": options.rounds,
            "milliseconds": options.milliseconds,
        });
        let peers = options.peer.iter().map(|p| p.name.clone()).collect();
        Self {
            contestants,
            peers,
            samples: BTreeMap::new(),
            out: options.out.clone(),
            run,
        }
    }

    pub(super) fn add(&mut self, contestant: &str, samples: Vec<Sample>) {
        for (key, value) in samples {
            let of_metric = self.samples.entry(key).or_default();
            of_metric
                .entry(contestant.to_owned())
                .or_default()
                .push(value);
        }
    }

    /// The samples of a contestant. Those of the floor are those of its better kind.
    pub fn samples(&self, metric: Metric, contestant: &str) -> Option<&[f64]> {
        let of = |name: &str| self.samples.get(metric.key)?.get(name).map(Vec::as_slice);
        if contestant != FLOOR {
            return of(contestant);
        }
        let kinds = Copying::ALL.into_iter().filter_map(|c| of(c.contestant()));
        kinds.reduce(|a, b| {
            let is_better = median(a.to_vec()) > median(b.to_vec());
            if is_better == metric.is_rate { a } else { b }
        })
    }

    /// The contestants of tables: those that were measured, and one floor.
    pub fn columns(&self) -> Vec<String> {
        let kinds = Copying::ALL.map(Copying::contestant);
        let mut names = vec![DIRECT.to_owned(), FLOOR.to_owned()];
        let others = self.contestants.iter();
        names.extend(
            others
                .filter(|n| *n != DIRECT && !kinds.contains(&n.as_str()))
                .cloned(),
        );
        names
    }

    pub(super) fn is_peer(&self, contestant: &str) -> bool {
        self.peers.iter().any(|peer| peer == contestant)
    }

    pub(super) fn spread(&self, metric: Metric, contestant: &str) -> Option<Spread> {
        Some(Spread::of(self.samples(metric, contestant)?))
    }

    /// The ratio of a contestant to another one in each round.
    pub(super) fn ratio(&self, metric: Metric, contestant: &str, to: &str) -> Option<Spread> {
        let (a, b) = (self.samples(metric, contestant)?, self.samples(metric, to)?);
        let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
        Some(Spread::of(&ratios))
    }

    /// A row for people: medians, their spread, and ratios to the floor.
    pub(super) fn table(&self, row: Row) -> String {
        let mut text = String::new();
        for metric in ALL.iter().filter(|m| m.is_of(row.name)) {
            let _ = writeln!(text, "{:12} {} [{}]", row.name, metric.title, metric.unit);
            for name in self.columns() {
                let Some(found) = self.spread(*metric, &name) else {
                    continue;
                };
                let ratio = self.ratio(*metric, &name, FLOOR).filter(|_| name != FLOOR);
                let ratio = ratio.map_or_else(String::new, |r| {
                    format!(
                        "   {:.2} of the floor ({:.2}-{:.2})",
                        r.median, r.low, r.high
                    )
                });
                let [median, low, high] =
                    [found.median, found.low, found.high].map(|v| metric.text(v));
                let _ = writeln!(text, "    {name:<14}{median:>8}  ({low}-{high}){ratio}");
            }
        }
        text
    }

    /// Merges the samples into `contest.json`, and draws the plots of all that is there.
    pub(super) fn write(&self) {
        fs::create_dir_all(&self.out).unwrap();
        let file = self.out.join("contest.json");
        let before = fs::read(&file).ok();
        let before = before.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let mut metrics = match before.and_then(|v| v.get("metrics").cloned()) {
            Some(Value::Object(metrics)) => metrics,
            _ => Map::new(),
        };
        for metric in ALL {
            let Some(samples) = self.samples.get(metric.key) else {
                continue;
            };
            let rounded = |values: &Vec<f64>| -> Vec<f64> {
                values.iter().map(|v| (v * 1e3).round() / 1e3).collect()
            };
            let samples: BTreeMap<_, _> = samples.iter().map(|(n, v)| (n, rounded(v))).collect();
            let value = json!({
                "title": metric.title,
                "unit": metric.unit,
                "moreIsBetter": metric.is_rate,
                "run": self.run,
                "samples": samples,
            });
            metrics.insert(metric.key.to_owned(), value);
        }
        let merged = self.merged(&metrics);
        let text = serde_json::to_string_pretty(&json!({ "metrics": metrics })).unwrap();
        fs::write(file, text + "\n").unwrap();
        for (name, svg) in charts::draw(&merged) {
            fs::write(self.out.join(name), svg).unwrap();
        }
        println!("{}", targets::table(&merged));
    }

    /// A report of everything that is in `contest.json`.
    fn merged(&self, metrics: &Map<String, Value>) -> Self {
        let mut merged = Self {
            contestants: self.contestants.clone(),
            peers: self.peers.clone(),
            samples: BTreeMap::new(),
            out: self.out.clone(),
            run: self.run.clone(),
        };
        for metric in ALL {
            let samples = metrics
                .get(metric.key)
                .map(|value| value["samples"].clone());
            let Some(samples) = samples else {
                continue;
            };
            let samples: BTreeMap<String, Vec<f64>> = serde_json::from_value(samples).unwrap();
            for name in samples.keys() {
                if !merged.contestants.contains(name) {
                    merged.contestants.push(name.clone());
                }
            }
            merged.samples.insert(metric.key, samples);
        }
        merged
    }
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        Self {
            median: median(values.to_vec()),
            low: values.iter().copied().fold(f64::INFINITY, f64::min),
            high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

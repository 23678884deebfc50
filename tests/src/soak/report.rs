//! What a soak did and found.

use std::collections::BTreeMap;
use std::fmt;

use super::Options;
use super::resources::{Measurement, Quantity, Recording};
use super::tally::Tally;
use crate::line_chart::{Chart, Line, svg};
use crate::two_nodes::{Program, TwoNodes};

/// The result of a soak.
#[derive(Debug)]
pub struct Report {
    options: Options,
    counts: BTreeMap<String, usize>,
    faults: Vec<String>,
    idle: Measurement,
    end: Measurement,
    recording: Recording,
}

impl Report {
    pub(super) fn new(
        options: &Options,
        tally: &Tally,
        idle: Measurement,
        end: Measurement,
        recording: Recording,
    ) -> Self {
        let mut faults = tally.faults();
        faults.extend(end.growth(&idle));
        Self {
            options: options.clone(),
            counts: tally.counts(),
            faults,
            idle,
            end,
            recording,
        }
    }

    /// What is wrong; empty if nothing is.
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    /// The command that repeats the soak.
    fn command(&self) -> String {
        let Options { seed, duration, .. } = &self.options;
        format!(
            "scripts/soak --seed {seed} --seconds {}",
            duration.as_secs()
        )
    }

    /// Draws a chart of each quantity over time.
    pub(super) fn plot(&self) {
        let chart = |quantity: Quantity| {
            let mut programs: Vec<_> = TwoNodes::programs().enumerate().collect();
            programs.retain(|(_, (_, program, _))| quantity.is_measured_of(*program));
            // So that each has the same colour in all charts.
            programs.sort_by_key(|(_, (_, program, _))| *program == Program::Agent);
            let lines = programs.into_iter().map(|(index, (.., name))| Line {
                name,
                points: self.points(index, quantity),
            });
            Chart {
                title: quantity.title().to_owned(),
                lines: lines.collect(),
            }
        };
        let charts = Quantity::ALL.map(chart);
        let text = svg(&self.command(), &charts, &self.recording.moments);
        std::fs::write(&self.options.plot, text).unwrap();
    }

    fn points(&self, program: usize, quantity: Quantity) -> Vec<(f64, f64)> {
        let samples = self.recording.samples.iter();
        samples
            .map(|(at, sample)| (*at, sample.value(program, quantity) as f64))
            .collect()
    }

    fn write_counts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, count) in &self.counts {
            writeln!(f, "{count:>9}  {what}")?;
        }
        Ok(())
    }

    fn write_resources(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:40}{:>9}{:>9}{:>9}", "", "idle", "most", "end")?;
        for (index, (_, program, name)) in TwoNodes::programs().enumerate() {
            for quantity in Quantity::ALL {
                if !quantity.is_measured_of(program) {
                    continue;
                }
                let samples = self.recording.samples.iter();
                let most = samples.map(|(_, sample)| sample.value(index, quantity));
                writeln!(
                    f,
                    "{:40}{:>9}{:>9}{:>9}",
                    format!("{name}: {}", quantity.title()),
                    self.idle.value(index, quantity),
                    most.max().unwrap_or_default(),
                    self.end.value(index, quantity)
                )?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.command())?;
        self.write_counts(f)?;
        self.write_resources(f)?;
        writeln!(f, "plot: {}", self.options.plot.display())?;
        write!(f, "faults: {}", self.faults.len())?;
        for fault in self.faults.iter().take(40) {
            write!(f, "\n  {fault}")?;
        }
        if !self.faults.is_empty() {
            write!(f, "\nRepeat it: {}", self.command())?;
        }
        Ok(())
    }
}

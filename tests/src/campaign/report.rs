//! What a campaign did and found.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::Options;
use super::action::Action;
use super::judge::Verdict;
use super::scene::Scene;
use super::traffic::Traffic;
use crate::measure::{median, percentile};
use crate::sandbox::eventually;
use crate::two_nodes::Resources;

/// More descriptors than at the start that are no leak: connections that are being closed.
const FILES_SLACK: usize = 24;
/// More threads than at the start that are no leak.
const THREADS_SLACK: usize = 8;

/// The result of a campaign.
#[derive(Debug)]
pub struct Report {
    options: Options,
    actions: BTreeMap<&'static str, usize>,
    repairs: usize,
    exchanges: usize,
    failures: usize,
    /// How long it took after the last change until everything was as it should be.
    settled_after: Option<Duration>,
    verdict: Verdict,
    faults: Vec<String>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            options: options.clone(),
            actions: BTreeMap::new(),
            repairs: 0,
            exchanges: 0,
            failures: 0,
            settled_after: None,
            verdict: Verdict::default(),
            faults: Vec::new(),
        }
    }

    pub(super) fn count(&mut self, action: &Action) {
        *self.actions.entry(action.kind()).or_default() += 1;
    }

    /// Waits until everything is right again, and compares the resources with those before.
    pub(super) fn settled(
        &mut self,
        scene: &Scene,
        traffic: &mut Traffic,
        before: &[(String, Resources)],
    ) {
        let begun = Instant::now();
        let settled = eventually(|| scene.unsettled().is_empty().then(|| begun.elapsed()));
        self.settled_after = settled;
        if settled.is_none() {
            self.faults.extend(scene.unsettled());
        }
        traffic.end_clients();
        if eventually(|| traffic.unreachable().is_empty().then_some(())).is_none() {
            self.faults.extend(traffic.unreachable());
        }
        (self.exchanges, self.failures) = traffic.counts();
        let leaks = || {
            let now = scene.resources();
            let pairs = before.iter().zip(now);
            pairs
                .filter(|((_, before), (_, now))| {
                    now.files > before.files + FILES_SLACK
                        || now.threads > before.threads + THREADS_SLACK
                })
                .map(|((name, before), (_, now))| format!("{name}: {before:?}, then {now:?}"))
                .collect::<Vec<_>>()
        };
        if eventually(|| leaks().is_empty().then_some(())).is_none() {
            self.faults.extend(leaks());
        }
    }

    pub(super) fn judged(&mut self, verdict: Verdict, scene: &Scene) {
        self.repairs = scene.repairs();
        self.verdict = verdict;
    }

    /// What is wrong; empty if nothing is.
    pub fn faults(&self) -> Vec<String> {
        [self.verdict.violations.as_slice(), &self.faults].concat()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { seed, capture, .. } = &self.options;
        writeln!(
            f,
            "seed {seed}, capture {capture}, {:?}",
            self.options.duration
        )?;
        let actions: Vec<_> = self
            .actions
            .iter()
            .map(|(k, n)| format!("{n} {k}"))
            .collect();
        let sum: usize = self.actions.values().sum();
        writeln!(f, "changes: {sum} ({})", actions.join(", "))?;
        writeln!(f, "repairs: {}", self.repairs)?;
        writeln!(f, "exchanges: {}, failed {}", self.exchanges, self.failures)?;
        let seen = self.verdict.seen;
        writeln!(
            f,
            "seen outside of the pods: {} frames, {} bytes, {} segments of tunnels, {} readable",
            seen.frames, seen.bytes, seen.tunnel, seen.readable
        )?;
        for (excuse, count) in &self.verdict.excused {
            writeln!(f, "  excused: {count} ({excuse})")?;
        }
        let after = self.verdict.verified_after.iter();
        let ms: Vec<f64> = after.map(|d| d.as_secs_f64() * 1e3).collect();
        if !ms.is_empty() {
            let most = percentile(ms.clone(), 100);
            let middle = median(ms);
            writeln!(
                f,
                "verified again: median {middle:.0} ms, at most {most:.0} ms"
            )?;
        }
        match self.settled_after {
            Some(after) => writeln!(f, "all verified {after:.1?} after the last change")?,
            None => writeln!(f, "not all verified after the last change")?,
        }
        let faults = self.faults();
        writeln!(f, "faults: {}", faults.len())?;
        for fault in faults.iter().take(40) {
            writeln!(f, "  {fault}")?;
        }
        if !faults.is_empty() {
            let seconds = self.options.duration.as_secs();
            write!(
                f,
                "Repeat it: scripts/campaign --seed {seed} --seconds {seconds} --capture {capture}"
            )?;
        }
        Ok(())
    }
}

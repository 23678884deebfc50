//! Counts of connections and changes, and what went wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Instant;

/// What happened, from the start on.
#[derive(Debug)]
pub struct Tally {
    started: Instant,
    counts: Mutex<BTreeMap<String, usize>>,
    faults: Mutex<Vec<String>>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            counts: Mutex::default(),
            faults: Mutex::default(),
        }
    }
}

impl Tally {
    /// Counts something.
    pub fn count(&self, what: impl fmt::Display) {
        let mut counts = self.counts.lock().unwrap();
        *counts.entry(what.to_string()).or_default() += 1;
    }

    /// Notes what must not happen, with the time.
    pub fn fault(&self, what: String) {
        let at = self.started.elapsed().as_secs_f64();
        println!("{at:8.3} s  FAULT: {what}");
        self.faults
            .lock()
            .unwrap()
            .push(format!("{at:.3} s: {what}"));
    }

    /// How often each thing happened.
    pub fn counts(&self) -> BTreeMap<String, usize> {
        self.counts.lock().unwrap().clone()
    }

    /// What must not happen and did.
    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap().clone()
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

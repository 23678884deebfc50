//! The cost of a constantly changing mesh, measured from outside: round trips and new connections
//! through a proxy that is connected to a control plane.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use api::discovery::Resource;
use api::workload::Workload;

use crate::control_plane::resources::{pod, workload_resource};
use crate::control_plane::{ControlPlaneSetup, echo};
use crate::measure::{cpu, median, percentile};

const WORKLOADS: [u32; 2] = [10_000, 100_000];
const UPDATES_PER_SECOND: u32 = 1_000;
const PUSHES_PER_SECOND: u32 = 20;
const ROUND: Duration = Duration::from_secs(5);
const ROUNDS: usize = 3;

/// Measures all sizes.
pub fn run() {
    WORKLOADS.into_iter().for_each(measure_size);
}

fn measure_size(workloads: u32) {
    let setup = ControlPlaneSetup::new("bench-churn");
    let begun = Instant::now();
    for first in (0..workloads).step_by(5_000) {
        setup.plane.discovery.set(
            api::ADDRESS,
            (first..(first + 5_000).min(workloads)).map(|i| other(i, 0)),
        );
        // One batch after the other, each once the previous one is applied.
        let known = (first + 5_000).min(workloads) + 3;
        while setup.plane_status()["addresses"] != known {
            thread::sleep(Duration::from_millis(20));
        }
    }
    println!(
        "churn   {workloads} workloads known after {:.1} s, {} MiB",
        begun.elapsed().as_secs_f64(),
        setup.memory()
    );
    let mut quiet = Measurements::default();
    let mut busy = Measurements::default();
    for round in 0..ROUNDS {
        quiet.add(&setup);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let churn = scope.spawn(|| churn(&setup, workloads, round, &over));
            busy.add(&setup);
            over.store(true, Ordering::Relaxed);
            busy.updates += churn.join().unwrap();
        });
    }
    let seconds = ROUND.as_secs_f64() * ROUNDS as f64;
    println!(
        "churn   {workloads} workloads, no changes: {}",
        quiet.summary(seconds)
    );
    println!(
        "churn   {workloads} workloads, {:.0} updates a second: {}, {} MiB",
        f64::from(busy.updates) / seconds,
        busy.summary(seconds),
        setup.memory()
    );
}

/// Measurements of all rounds of one kind.
#[derive(Default)]
struct Measurements {
    round_trips: Vec<f64>,
    connections: Vec<f64>,
    cpu: Duration,
    updates: u32,
}

impl Measurements {
    fn add(&mut self, setup: &ControlPlaneSetup) {
        let to = ControlPlaneSetup::destinations()[2];
        let (before, begun) = (cpu(setup.proxy), Instant::now());
        let mut open = setup.try_exchange(to).unwrap();
        let us = |begun: Instant| begun.elapsed().as_secs_f64() * 1e6;
        while begun.elapsed() < ROUND {
            let started = Instant::now();
            echo(&mut open).unwrap();
            self.round_trips.push(us(started));
            if self.round_trips.len().is_multiple_of(20) {
                let dialled = Instant::now();
                setup.try_exchange(to).unwrap();
                self.connections.push(us(dialled));
            }
        }
        self.cpu += cpu(setup.proxy) - before;
    }

    fn summary(&self, seconds: f64) -> String {
        let of = |values: &[f64]| {
            format!(
                "{:.0}, {:.0} us",
                median(values.to_vec()),
                percentile(values.to_vec(), 99)
            )
        };
        format!(
            "round trip {}; new connection with one round trip {} (median, p99); proxy {:.0} % of \
             a core",
            of(&self.round_trips),
            of(&self.connections),
            self.cpu.as_secs_f64() / seconds * 100.0
        )
    }
}

fn other(i: u32, revision: u32) -> Resource {
    let ip = IpAddr::from([11, (i >> 16) as u8, (i >> 8) as u8, i as u8]);
    workload_resource(Workload {
        canonical_revision: revision.to_string(),
        ..pod(&format!("other-{i}"), &[ip])
    })
}

/// Changes workloads until `over` is set; returns the number of changes.
fn churn(setup: &ControlPlaneSetup, workloads: u32, round: usize, over: &AtomicBool) -> u32 {
    let (begun, each) = (Instant::now(), UPDATES_PER_SECOND / PUSHES_PER_SECOND);
    let mut pushes = 0;
    while !over.load(Ordering::Relaxed) {
        let first = pushes * each % workloads;
        let revision = u32::try_from(round).unwrap() * 1_000_000 + pushes + 1;
        setup.plane.discovery.set(
            api::ADDRESS,
            (first..first + each).map(|i| other(i % workloads, revision)),
        );
        pushes += 1;
        thread::sleep(
            (Duration::from_secs(1) / PUSHES_PER_SECOND * pushes).saturating_sub(begun.elapsed()),
        );
    }
    pushes * each
}

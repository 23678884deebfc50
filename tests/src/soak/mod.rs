//! A bounded, seeded soak of a sandbox: pods, policies and certificates come and go under
//! connections of all kinds, next to faulty peers. See scripts/soak.
//!
//! What it proves: no connection fails that should succeed, and afterwards agents and proxies use
//! as much as before: descriptors, threads, memory, open connections and metric series.

mod churn;
mod connection;
mod faulty;
mod faulty_peers;
mod report;
mod resources;
mod scene;
mod service;
mod tally;
mod traffic;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use self::churn::Churn;
use self::faulty_peers::FaultyPeers;
pub use self::report::Report;
use self::resources::Recorder;
use self::scene::Scene;
use self::tally::Tally;
use self::traffic::Traffic;

/// What to do, and for how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// Decides everything random.
    pub seed: u64,
    /// How long the load lasts.
    pub duration: Duration,
    /// Where to draw what the programs used over time, as SVG.
    pub plot: PathBuf,
    /// Whether to print each change when it is made.
    pub verbose: bool,
}

/// Runs the soak.
///
/// # Panics
/// When the sandbox cannot be started, or a program does not answer.
pub fn run(options: &Options) -> Report {
    let mut rng = Rng::with_seed(options.seed);
    let scene = Arc::new(Scene::up());
    let tally = Arc::new(Tally::default());
    let mut churn = Churn::new(scene.clone(), tally.clone(), rng.fork(), options.verbose);
    churn.warm_up();
    let mut recorder = Recorder::start(scene.clone(), options.duration);
    let idle = recorder.idle();

    let traffic = Traffic::start(scene.clone(), tally.clone(), rng.fork());
    let peers = FaultyPeers::start(scene.clone(), tally.clone(), rng.fork());
    recorder.mark("load");
    churn.run(options.duration);
    recorder.mark("no more load");
    traffic.end();
    peers.end();
    let end = recorder.settled(&idle);
    recorder.mark("end");

    let report = Report::new(options, &tally, idle, end, recorder.stop());
    report.plot();
    report
}

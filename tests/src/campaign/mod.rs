//! A bounded, seeded adversary: random changes in pods and on nodes of a sandbox under traffic. See
//! scripts/campaign. The seed decides what is done, in which order and at which time.
//!
//! What it proves: no byte of TCP that a pod of the mesh sends is readable outside of the pod
//! while the agent calls the pod verified, unless the pod used a capability that
//! docs/verification.md names. Whatever can be right is verified again after the last change, and
//! nothing leaks.

mod action;
mod judge;
mod observer;
mod report;
mod scene;
mod traffic;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;

use self::action::Action;
use self::judge::Judge;
pub use self::report::Report;
use self::scene::Scene;
use self::traffic::Traffic;
use crate::sandbox::until;

/// What to do, and for how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// Decides everything random.
    pub seed: u64,
    /// How long changes are made.
    pub duration: Duration,
    /// The capture method, `routed` or `nat`.
    pub capture: String,
    /// Whether to print each change when it is made.
    pub verbose: bool,
}

/// Time between two changes, in milliseconds. Short ones overlap, long ones let the pods settle.
const PAUSE: std::ops::Range<u64> = 5..600;
/// Time until a change is undone, in milliseconds.
const UNDO_AFTER: std::ops::Range<u64> = 50..2500;

/// How often it is checked whether a change is due.
const TICK: Duration = Duration::from_millis(2);

/// Runs the campaign.
///
/// # Panics
/// When the sandbox cannot be started.
pub fn run(options: &Options) -> Report {
    let mut rng = Rng::with_seed(options.seed);
    let scene = Arc::new(Scene::up(&options.capture));
    let judge = Arc::new(Judge::new(scene.clone()));
    let before = scene.resources();
    let mut traffic = Traffic::new(scene.clone(), &judge);
    until("all pods reach each other", || {
        traffic.unreachable().is_empty().then_some(())
    });
    traffic.start(rng.fork());
    let mut report = Report::new(options);
    let (begun, mut next_change) = (Instant::now(), Instant::now());
    let mut undo: Vec<(Instant, Action)> = Vec::new();
    loop {
        let now = Instant::now();
        let is_over = begun.elapsed() >= options.duration;
        let due = undo.iter().position(|(at, _)| *at <= now);
        let (action, undo_after) = if let Some(due) = due {
            let again = Duration::from_millis(UNDO_AFTER.start); // if it fails
            (undo.remove(due).1, again)
        } else if is_over && undo.is_empty() {
            break;
        } else if !is_over && next_change <= now {
            let action = Action::random(&mut rng, &scene);
            next_change = now + Duration::from_millis(rng.u64(PAUSE));
            (action, Duration::from_millis(rng.u64(UNDO_AFTER)))
        } else {
            std::thread::sleep(TICK);
            continue;
        };
        if options.verbose {
            println!("{:8.3} s  {action}", begun.elapsed().as_secs_f64());
        }
        report.count(&action);
        let inverse = judge.during(&action, || action.perform(&scene, &traffic));
        undo.extend(inverse.map(|inverse| (Instant::now() + undo_after, inverse)));
    }
    report.settled(&scene, &mut traffic, &before);
    drop(traffic);
    report.judged(judge.verdict(), &scene);
    report
}

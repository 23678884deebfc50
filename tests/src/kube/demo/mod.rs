//! The demo of `scripts/kube demo`: what Underpass does on a cluster, step by step and observed. A
//! test runs it as well.

mod steps;
mod waypoint;

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Kube;
use super::request_loop::RequestLoop;

/// State that is shared by the steps.
#[derive(Debug)]
pub struct DemoState<'a> {
    kube: &'a Kube,
    /// The addresses of the service, and requests of the client to the first.
    service: Vec<String>,
    requests: Option<RequestLoop>,
}

/// The result of one step.
#[derive(Debug)]
pub struct StepReport {
    /// What the step demonstrates.
    pub step: &'static str,
    /// Whether it succeeded.
    pub ok: bool,
    /// What was observed, or how it failed.
    pub evidence: String,
}

/// Runs all steps on a cluster without Underpass, until one fails; `report` is called after each.
pub fn run(kube: &Kube, report: &mut dyn FnMut(&StepReport)) -> bool {
    let mut state = DemoState {
        kube,
        service: Default::default(),
        requests: None,
    };
    for (step, run) in steps::ALL {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut state)));
        let ok = outcome.is_ok();
        let evidence = outcome.unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or(panic.downcast_ref::<&str>().copied());
            text.unwrap_or("the step panicked").to_owned()
        });
        report(&StepReport { step, ok, evidence });
        if !ok {
            return false; // the next steps depend on it
        }
    }
    true
}

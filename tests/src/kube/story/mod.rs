//! What Underpass does on a cluster, as a short story in which every line is something observed. `scripts/kube demo` tells
//! it, and a test wants every step of it to be as promised.

mod steps;

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Kube;
use super::held::Held;

/// What is kept between the steps.
#[derive(Debug)]
pub struct Scene<'a> {
    kube: &'a Kube,
    /// The addresses of the service, and a connection of the client to the first.
    service: Vec<String>,
    held: Option<Held>,
}

/// One step as it went.
#[derive(Debug)]
pub struct Told {
    /// What was to be seen.
    pub step: &'static str,
    /// Whether it was.
    pub ok: bool,
    /// What was seen, or what was not.
    pub evidence: String,
}

/// Plays all steps on a cluster without Underpass, or until one is not as promised; each is told as it is done.
pub fn play(kube: &Kube, tell: &mut dyn FnMut(&Told)) -> bool {
    let mut scene = Scene { kube, service: Default::default(), held: None };
    for (step, play) in steps::ALL {
        let outcome = catch_unwind(AssertUnwindSafe(|| play(&mut scene)));
        let ok = outcome.is_ok();
        let evidence = outcome.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            text.unwrap_or("it went wrong").to_owned()
        });
        tell(&Told { step, ok, evidence });
        if !ok {
            return false; // the next ones go on from it
        }
    }
    true
}

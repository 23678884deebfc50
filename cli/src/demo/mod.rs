//! The demo: a short story in which every line is something observed, on a sandbox of its own.

mod capture;
mod mesh_file;
mod scene;
mod steps;
mod web;

use std::process::ExitCode;

use serde_json::json;

use crate::sandbox::{Layout, become_able};
use scene::Scene;

/// What a step has seen: the evidence, or what is wrong.
pub(crate) type Observed = anyhow::Result<String>;

/// Plays all steps; each is printed as it is done.
pub(crate) fn run(as_json: bool) -> ExitCode {
    match play(as_json) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(e) if as_json => {
            println!("{}", json!({ "ok": false, "steps": 0, "failed": 0, "error": format!("{e:#}") }));
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn play(as_json: bool) -> anyhow::Result<usize> {
    // A folder of its own, so that a sandbox that somebody is using stays as it is.
    let layout = become_able()?.beside("demo");
    let started = std::time::Instant::now();
    let mut scene = Scene::set(layout)?;
    let (mut failed, mut number) = (0, 0);
    let steps = steps::all();
    let count = steps.len();
    for (title, step) in steps {
        number += 1;
        let observed = step(&mut scene);
        failed += usize::from(observed.is_err());
        let (ok, evidence) = match &observed {
            Ok(evidence) => (true, evidence.clone()),
            Err(e) => (false, format!("{e:#}")),
        };
        if as_json {
            println!("{}", json!({ "step": title, "ok": ok, "evidence": evidence }));
        } else {
            println!(
                "{} {number:>2}. {title}\n       {}",
                if ok { "ok  " } else { "FAIL" },
                evidence.replace('\n', "\n       ")
            );
        }
    }
    drop(scene);
    if as_json {
        println!("{}", json!({ "ok": failed == 0, "steps": count, "failed": failed }));
    } else {
        let took = started.elapsed().as_secs_f64();
        println!("\n{} of {count} steps as promised, in {took:.1} s. Nothing is left of the demo.", count - failed);
    }
    Ok(failed)
}

impl Layout {
    /// The folder of another sandbox next to this one.
    fn beside(&self, suffix: &str) -> Self {
        let mut name = self.root().as_os_str().to_owned();
        name.push(format!("-{suffix}-{}", std::process::id()));
        Self::at(name.into())
    }
}

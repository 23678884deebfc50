//! The demo: steps that demonstrate and verify the guarantees of the mesh, in a separate sandbox.

mod capture;
mod demo_sandbox;
mod http_client;
mod mesh_file;
mod steps;

use std::process::ExitCode;

use serde_json::json;

use crate::output::{exit_code, print, print_error};
use crate::sandbox::{Layout, acquire_privileges};
use demo_sandbox::DemoSandbox;

/// The result of a step: the evidence, or the failure.
pub(crate) type StepResult = anyhow::Result<String>;

/// Runs all steps and prints each result.
pub(crate) fn run(as_json: bool) -> ExitCode {
    let result = run_steps(as_json);
    match &result {
        Ok(_) => {}
        Err(e) if as_json => {
            print(json!({ "ok": false, "steps": 0, "failed": 0, "error": format!("{e:#}") }));
        }
        Err(e) => print_error(format_args!("{e:#}")),
    }
    exit_code(result.is_ok_and(|failed| failed == 0))
}

fn run_steps(as_json: bool) -> anyhow::Result<usize> {
    // In a separate folder, so that a running sandbox is not affected.
    let layout = acquire_privileges()?.sibling("demo");
    let started = std::time::Instant::now();
    let mut sandbox = DemoSandbox::start(layout)?;
    let mut failed = 0;
    let steps = steps::all();
    let count = steps.len();
    for (number, (title, step)) in (1..).zip(steps) {
        let result = step(&mut sandbox);
        failed += usize::from(result.is_err());
        let (ok, evidence) = match &result {
            Ok(evidence) => (true, evidence.clone()),
            Err(e) => (false, format!("{e:#}")),
        };
        if as_json {
            print(json!({ "step": title, "ok": ok, "evidence": evidence }));
        } else {
            let result = if ok { "ok  " } else { "FAIL" };
            let evidence = evidence.replace('\n', "\n       ");
            print(format_args!(
                "{result} {number:>2}. {title}\n       {evidence}"
            ));
        }
    }
    drop(sandbox);
    if as_json {
        print(json!({ "ok": failed == 0, "steps": count, "failed": failed }));
    } else {
        let (took, passed) = (started.elapsed().as_secs_f64(), count - failed);
        let summary = format!("{passed} of {count} steps passed in {took:.1} s");
        print(format_args!("\n{summary}. The sandbox has been removed."));
    }
    Ok(failed)
}

impl Layout {
    /// The layout of another sandbox in a sibling folder.
    fn sibling(&self, suffix: &str) -> Self {
        let mut name = self.root().as_os_str().to_owned();
        name.push(format!("-{suffix}-{}", std::process::id()));
        Self::at(name.into())
    }
}

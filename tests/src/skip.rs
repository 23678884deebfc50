//! Tests that cannot run on a machine.

use std::io::Write;

/// Says that a test cannot run here, so that it is counted: what a passing test prints is not shown, but for this.
pub fn skip(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}

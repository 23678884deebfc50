//! Tests that cannot run on a machine.

use std::io::Write;

/// Says that a test cannot run here, so that it is counted: what a passing test prints is not shown, but for this.
pub fn skip(test: &str, why: &str) {
    let line = format!("skipped: {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes()); // at once, for other tests write there, too
}

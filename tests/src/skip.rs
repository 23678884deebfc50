//! Tests that cannot run on this machine.

use std::io::Write;

/// Reports that the running test cannot run here and why, so that `scripts/test` counts it as
/// skipped.
///
/// The name of the test is that of the thread: libtest runs each test in a thread with the test's
/// path as its name.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let test = thread
        .name()
        .and_then(|path| path.rsplit("::").next())
        .unwrap_or("unnamed");
    let line = format!("skipped: {test}: {why}\n");
    // Written at once, past the capture of libtest: other tests write to the same stream.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

//! What users and other programs depend on stays as it was: each test compares one part of the
//! interface with a golden file in this folder, which a change may only add lines to.
//! `UPDATE_GOLDEN=1` rewrites the files.
//!
//! The metrics and their labels have goldens of their own beside the code that registers them:
//! `proxy/src/telemetry/metrics.golden` and `node-agent/src/metrics.golden`.

#![allow(clippy::unwrap_used, clippy::disallowed_types)] // runs the programs under test

mod command_line;
mod error_codes;
mod http_paths;

use std::collections::BTreeSet;
use std::path::Path;

/// Compares the lines with a golden file of this folder, which `UPDATE_GOLDEN=1` rewrites.
#[track_caller]
fn assert_golden(name: &str, lines: &[String]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stable_interface");
    let path = folder.join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    let golden: BTreeSet<&str> = golden.lines().collect();
    let found: BTreeSet<&str> = lines.iter().map(String::as_str).collect();
    let removed: Vec<_> = golden.difference(&found).collect();
    let added: Vec<_> = found.difference(&golden).collect();
    assert!(
        removed.is_empty() && added.is_empty(),
        "{name} differs. Removed, which breaks users: {removed:#?}\nAdded (run UPDATE_GOLDEN=1 \
         cargo test --workspace --test stable_interface): {added:#?}"
    );
}

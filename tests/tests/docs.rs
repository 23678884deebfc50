//! The documentation that is written from code is up to date.

use std::fmt::Write;
use std::path::PathBuf;

/// `docs/errors.md` lists every error code with what happened, the likely cause and the next step.
///
/// `UPDATE_DOCS=1` writes the file.
#[test]
fn error_codes_are_documented() {
    let mut text = String::from(
        "# Error codes\n\nWritten from `crates/error-code`; a code never changes its meaning and is never used again.\n",
    );
    for (area, codes) in error_code::AREAS {
        let _ = write!(text, "\n## {area}\n\n| code | what happened | likely cause | next step |\n|---|---|---|---|\n");
        for c in *codes {
            let _ = writeln!(text, "| {} | {} | {} | {} |", c.code, c.what, c.cause, c.next_step);
        }
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/errors.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("docs/errors.md is writable");
    }
    let on_disk = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        on_disk == text,
        "docs/errors.md is out of date; run UPDATE_DOCS=1 cargo test -p underpass-tests --test docs"
    );
}

/// `docs/check.md` explains every check; all of it below the mark is written from `crates/error-code`.
#[test]
fn checks_are_documented() {
    const MARK: &str = "<!-- From here on written from crates/error-code/src/check.rs. -->\n";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/check.md");
    let on_disk = std::fs::read_to_string(&path).unwrap_or_default();
    let (by_hand, _) = on_disk.split_once(MARK).expect("docs/check.md has its mark");
    let mut text = format!("{by_hand}{MARK}");
    for (category, checks) in error_code::check::CATEGORIES {
        let _ = writeln!(text, "\n## {category}");
        for check in *checks {
            let mut holds = check.holds.to_owned();
            holds[..1].make_ascii_uppercase();
            let _ = write!(text, "\n### {}\n\n{holds}.\n\nWhere not: {}\n", check.id, check.next_step);
        }
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("docs/check.md is writable");
    }
    assert!(
        on_disk == text,
        "docs/check.md is out of date; run UPDATE_DOCS=1 cargo test -p underpass-tests --test docs"
    );
}

//! Generated documentation is up to date, and lists are complete.

#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::path::PathBuf;

/// `docs/errors.md` lists every error code with what happened, the likely cause and the next step.
/// `UPDATE_DOCS=1` regenerates the file.
#[test]
fn error_codes_are_documented() {
    let mut text = String::from(
        "# Error codes\n\nGenerated from `crates/error-code`. A code never changes its meaning \
         and is never reused.\n",
    );
    for (area, codes) in error_code::AREAS {
        let _ = write!(
            text,
            "\n## {area}\n\n| code | what happened | likely cause | next step \
             |\n|---|---|---|---|\n"
        );
        for c in *codes {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} |",
                c.code, c.what, c.cause, c.next_step
            );
        }
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/errors.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("docs/errors.md is writable");
    }
    let on_disk = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        on_disk == text,
        "docs/errors.md is out of date; run UPDATE_DOCS=1 cargo test --workspace --test \
         docs"
    );
}

/// `docs/check.md` explains every check; the part below the marker is generated from
/// `crates/error-code`.
#[test]
fn checks_are_documented() {
    const MARK: &str = "<!-- From here on written from crates/error-code/src/check.rs. -->\n";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/check.md");
    let on_disk = std::fs::read_to_string(&path).unwrap_or_default();
    let (by_hand, _) = on_disk
        .split_once(MARK)
        .expect("docs/check.md has its marker");
    let mut text = format!("{by_hand}{MARK}");
    for (category, checks) in error_code::check::CATEGORIES {
        let _ = writeln!(text, "\n## {category}");
        for check in *checks {
            let mut holds = check.description.to_owned();
            holds[..1].make_ascii_uppercase();
            let _ = write!(
                text,
                "\n### {}\n\n{}\n\n{}\n",
                check.id,
                wrapped(&format!("{holds}.")),
                wrapped(&format!("If it fails: {}", check.next_step)),
            );
        }
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("docs/check.md is writable");
    }
    assert!(
        on_disk == text,
        "docs/check.md is out of date; run UPDATE_DOCS=1 cargo test --workspace --test docs"
    );
}

/// `tests/README.md` has a row for every suite and every module of the harness, and for no others.
#[test]
fn suites_and_modules_are_documented() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let names = |subfolder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(folder.join(subfolder)).unwrap();
        entries
            .map(|e| e.unwrap().path().file_stem().unwrap().display().to_string())
            .filter(|name| !["lib", "bin"].contains(&name.as_str()))
            .collect()
    };
    let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
    let mut rows: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .filter(|name| !name.starts_with("scripts/"))
        .collect();
    let mut expected = [names("tests"), names("src")].concat();
    rows.sort_unstable();
    expected.sort_unstable();
    assert_eq!(rows, expected);
}

/// Every Markdown table starts with a header row and its delimiter row: a blank line inside a table
/// would turn the rows below it into plain text.
#[test]
fn tables_have_a_header() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
        .map(|name| root.join(name))
        .to_vec();
    let pages = std::fs::read_dir(root.join("docs")).expect("docs/ is readable");
    files.extend(
        pages
            .map(|entry| entry.expect("docs/ is readable").path())
            .filter(|path| path.extension().is_some_and(|e| e == "md")),
    );
    for file in files {
        let text = std::fs::read_to_string(&file).expect("the page is readable");
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let starts = line.starts_with('|') && (i == 0 || !lines[i - 1].starts_with('|'));
            let delimiter = lines.get(i + 1).is_some_and(|next| next.starts_with("|--"));
            assert!(
                !starts || delimiter,
                "{}:{}: table without a header: {line}",
                file.display(),
                i + 1
            );
        }
    }
}

/// Breaks a paragraph into lines of at most 100 columns.
fn wrapped(paragraph: &str) -> String {
    let mut lines = vec![String::new()];
    for word in paragraph.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= 100 {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n")
}

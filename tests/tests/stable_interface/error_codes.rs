//! Error codes, and the names of checks.

use super::assert_golden;

#[test]
fn error_codes_and_checks_remain() {
    let codes = error_code::AREAS.iter().flat_map(|(_, codes)| *codes);
    let checks = error_code::check::CATEGORIES.iter().flat_map(|(_, c)| *c);
    let mut lines: Vec<String> = codes.map(|c| c.code.to_owned()).collect();
    lines.extend(checks.map(|c| format!("check {}", c.id)));
    lines.sort();
    assert_golden("error_codes.golden", &lines);
}

//! Results of checks, rendered as text and as JSON in the format of `linkerd check -o json`.

use std::fmt;

use error_code::check::{CATEGORIES, Check};
use serde_json::{Value, json};

/// The documentation of the checks.
const DOCUMENTATION: &str = "docs/check.md";
/// Maximum findings per check in the text output.
const MAX_FINDINGS: usize = 20;

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CheckOutcome {
    /// The check passed, with details.
    Good(String),
    /// The check failed, but traffic is not affected yet.
    Warning(Vec<String>),
    /// The check failed.
    Failed(Vec<String>),
    /// The result is unknown, for this reason.
    Unknown(String),
}

impl CheckOutcome {
    /// The outcome of a check with findings: failed or a warning.
    pub(crate) fn failed_if(has_failed: bool) -> fn(Vec<String>) -> Self {
        if has_failed {
            Self::Failed
        } else {
            Self::Warning
        }
    }

    /// The word and the sign for the result.
    fn word_and_sign(&self) -> (&'static str, &'static str) {
        match self {
            Self::Good(_) => ("success", "√"),
            Self::Warning(_) => ("warning", "‼"),
            Self::Failed(_) => ("error", "×"),
            Self::Unknown(_) => ("unknown", "?"),
        }
    }
}

/// The results of all checks.
#[derive(Debug, Default)]
pub(crate) struct CheckReport(Vec<(Check, CheckOutcome)>);

impl CheckReport {
    pub(crate) fn add(&mut self, check: Check, outcome: CheckOutcome) {
        self.0.push((check, outcome));
    }

    /// Adds a check that failed if there are findings.
    pub(crate) fn fail_on(
        &mut self,
        check: Check,
        findings: impl IntoIterator<Item = String>,
        good: impl Into<String>,
    ) {
        self.add_findings(check, findings, CheckOutcome::Failed, good);
    }

    /// Adds a check that is a warning if there are findings.
    pub(crate) fn warn_on(
        &mut self,
        check: Check,
        findings: impl IntoIterator<Item = String>,
        good: impl Into<String>,
    ) {
        self.add_findings(check, findings, CheckOutcome::Warning, good);
    }

    /// Adds a check that is good without findings, else the outcome `bad`.
    pub(crate) fn add_findings(
        &mut self,
        check: Check,
        findings: impl IntoIterator<Item = String>,
        bad: impl FnOnce(Vec<String>) -> CheckOutcome,
        good: impl Into<String>,
    ) {
        let findings: Vec<String> = findings.into_iter().collect();
        if findings.is_empty() {
            self.add(check, CheckOutcome::Good(good.into()));
        } else {
            self.add(check, bad(findings));
        }
    }

    /// Whether no check failed.
    pub(crate) fn is_good(&self) -> bool {
        let is_failed = |(_, outcome): &(_, _)| matches!(outcome, CheckOutcome::Failed(_));
        !self.0.iter().any(is_failed)
    }

    /// Returns the result of a check that was run.
    #[cfg(test)]
    pub(crate) fn of(&self, check: Check) -> Option<&CheckOutcome> {
        let mut results = self.0.iter();
        results.find_map(|(c, outcome)| (*c == check).then_some(outcome))
    }

    fn categories(&self) -> impl Iterator<Item = (&'static str, Vec<&(Check, CheckOutcome)>)> {
        CATEGORIES.iter().filter_map(|(category, checks)| {
            let result = |c| self.0.iter().find(|(check, _)| check == c);
            let results: Vec<_> = checks.iter().filter_map(result).collect();
            (!results.is_empty()).then_some((*category, results))
        })
    }

    /// Renders JSON: `{success, categories: [{categoryName, checks: [{id, description, result,
    /// found, error, findings, nextStep, hint}]}]}`.
    pub(crate) fn json(&self) -> Value {
        let check = |(check, outcome): &(Check, CheckOutcome)| {
            let mut value = json!({
                "id": check.id,
                "description": check.description,
                "result": outcome.word_and_sign().0,
            });
            match outcome {
                CheckOutcome::Good(found) => value["found"] = json!(found),
                CheckOutcome::Warning(found) | CheckOutcome::Failed(found) => {
                    value["error"] = json!(found.join("; "));
                    value["findings"] = json!(found);
                    value["nextStep"] = json!(check.next_step);
                    value["hint"] = json!(hint(*check));
                }
                CheckOutcome::Unknown(reason) => value["error"] = json!(reason),
            }
            value
        };
        let category = |(name, results): (&str, Vec<_>)| {
            let checks: Vec<Value> = results.into_iter().map(check).collect();
            json!({ "categoryName": name, "checks": checks })
        };
        let categories: Vec<Value> = self.categories().map(category).collect();
        json!({ "success": self.is_good(), "categories": categories })
    }
}

fn hint(check: Check) -> String {
    format!("{DOCUMENTATION}#{}", check.id)
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (category, results) in self.categories() {
            writeln!(f, "{category}\n{}", "-".repeat(category.len()))?;
            for (check, outcome) in results {
                write!(f, "{} {}", outcome.word_and_sign().1, check.description)?;
                match outcome {
                    CheckOutcome::Good(found) if found.is_empty() => writeln!(f)?,
                    CheckOutcome::Good(found) => writeln!(f, ": {found}")?,
                    CheckOutcome::Unknown(reason) => writeln!(f, ": unknown: {reason}")?,
                    CheckOutcome::Warning(found) | CheckOutcome::Failed(found) => {
                        writeln!(f)?;
                        for line in found.iter().take(MAX_FINDINGS) {
                            writeln!(f, "    {}", line.replace('\n', "\n      "))?;
                        }
                        if let more @ 1.. = found.len().saturating_sub(MAX_FINDINGS) {
                            writeln!(f, "    and {more} more (--json has all)")?;
                        }
                        writeln!(f, "    Next step: {}", check.next_step)?;
                        writeln!(f, "    see {}", hint(*check))?;
                    }
                }
            }
            writeln!(f)?;
        }
        let sign = if self.is_good() { "√" } else { "×" };
        write!(f, "Status check results are {sign}")
    }
}

#[cfg(test)]
mod tests {
    use error_code::check as checks;

    use super::*;

    #[test]
    fn results_are_rendered_with_next_steps() {
        let mut report = CheckReport::default();
        report.add(
            checks::CLOCK,
            CheckOutcome::Warning(vec!["node-1: 7 s ahead".to_owned()]),
        );
        report.add(
            checks::API_REACHABLE,
            CheckOutcome::Good("v1.34.4".to_owned()),
        );
        report.add(
            checks::AGENT_PERMISSIONS,
            CheckOutcome::Unknown("forbidden".to_owned()),
        );
        assert!(report.is_good(), "a warning is not a failure");
        let text = report.to_string();
        assert!(
            text.starts_with(
                "kubernetes\n----------\n√ can query the Kubernetes API: v1.34.4\n\ninstallation\n"
            ),
            "{text}"
        );
        assert!(
            text.contains("? agents have the required permissions: unknown: forbidden"),
            "{text}"
        );
        assert!(text.contains(
            "‼ node clocks are in sync with this machine\n    node-1: 7 s ahead\n    \
                 Next step: Sync"
        ));
        assert!(
            text.contains("see docs/check.md#clock")
                && text.ends_with("Status check results are √"),
            "{text}"
        );
        report.add(
            checks::INSTALLED,
            CheckOutcome::Failed((0..30).map(|n| format!("line {n}")).collect()),
        );
        assert!(!report.is_good());
        assert!(
            report
                .to_string()
                .contains("line 19\n    and 10 more (--json has all)")
        );
        let json = report.json();
        assert_eq!(json["success"], false);
        assert_eq!(json["categories"][0]["checks"][0]["result"], "success");
        assert_eq!(
            json["categories"][1]["checks"][0]["findings"]
                .as_array()
                .unwrap()
                .len(),
            30
        );
    }
}

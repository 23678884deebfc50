//! What a check has found, and how it is told: for people, and as JSON in the shape that `linkerd check -o json` has.

use std::fmt;

use error_code::check::{CATEGORIES, Check};
use serde_json::{Value, json};

/// Where the checks are explained.
const DOCUMENTATION: &str = "docs/check.md";
/// So many findings of one check are shown to people.
const MOST: usize = 20;

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It holds; with what was seen.
    Good(String),
    /// It does not, and traffic goes on as it should.
    Warning(Vec<String>),
    /// It does not.
    Failed(Vec<String>),
    /// It cannot be told, for this reason.
    Unknown(String),
}

impl Outcome {
    /// Good unless something was found.
    pub(crate) fn unless(failed: Vec<String>, good: impl Into<String>) -> Self {
        if failed.is_empty() { Self::Good(good.into()) } else { Self::Failed(failed) }
    }

    /// The same where what was found does no harm yet.
    pub(crate) fn warn_unless(found: Vec<String>, good: impl Into<String>) -> Self {
        if found.is_empty() { Self::Good(good.into()) } else { Self::Warning(found) }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Good(_) => "success",
            Self::Warning(_) => "warning",
            Self::Failed(_) => "error",
            Self::Unknown(_) => "unknown",
        }
    }

    fn sign(&self) -> &'static str {
        match self {
            Self::Good(_) => "√",
            Self::Warning(_) => "‼",
            Self::Failed(_) => "×",
            Self::Unknown(_) => "?",
        }
    }
}

/// What was found, by check.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<(Check, Outcome)>);

impl Report {
    pub(crate) fn add(&mut self, check: Check, outcome: Outcome) {
        self.0.push((check, outcome));
    }

    /// Whether nothing failed.
    pub(crate) fn is_good(&self) -> bool {
        !self.0.iter().any(|(_, outcome)| matches!(outcome, Outcome::Failed(_)))
    }

    /// How a check ended, if it was made.
    #[cfg(test)]
    pub(crate) fn of(&self, check: Check) -> Option<&Outcome> {
        self.0.iter().find(|(c, _)| *c == check).map(|(_, outcome)| outcome)
    }

    fn categories(&self) -> impl Iterator<Item = (&'static str, Vec<&(Check, Outcome)>)> {
        CATEGORIES.iter().filter_map(|(category, checks)| {
            let made: Vec<_> = checks.iter().filter_map(|c| self.0.iter().find(|(made, _)| made == c)).collect();
            (!made.is_empty()).then_some((*category, made))
        })
    }

    /// `{success, categories: [{categoryName, checks: [{id, description, result, found, error, findings, nextStep, hint}]}]}`.
    pub(crate) fn json(&self) -> Value {
        let check = |(check, outcome): &(Check, Outcome)| {
            let mut told = json!({ "id": check.id, "description": check.holds, "result": outcome.word() });
            match outcome {
                Outcome::Good(found) => told["found"] = json!(found),
                Outcome::Warning(found) | Outcome::Failed(found) => {
                    told["error"] = json!(found.join("; "));
                    told["findings"] = json!(found);
                    told["nextStep"] = json!(check.next_step);
                    told["hint"] = json!(hint(*check));
                }
                Outcome::Unknown(why) => told["error"] = json!(why),
            }
            told
        };
        let categories: Vec<Value> = self
            .categories()
            .map(|(name, made)| json!({ "categoryName": name, "checks": made.into_iter().map(check).collect::<Vec<_>>() }))
            .collect();
        json!({ "success": self.is_good(), "categories": categories })
    }
}

fn hint(check: Check) -> String {
    format!("{DOCUMENTATION}#{}", check.id)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (category, made) in self.categories() {
            writeln!(f, "{category}\n{}", "-".repeat(category.len()))?;
            for (check, outcome) in made {
                let sign = outcome.sign();
                match outcome {
                    Outcome::Good(found) if found.is_empty() => writeln!(f, "{sign} {}", check.holds)?,
                    Outcome::Good(found) => writeln!(f, "{sign} {}: {found}", check.holds)?,
                    Outcome::Unknown(why) => writeln!(f, "{sign} {}: cannot be told: {why}", check.holds)?,
                    Outcome::Warning(found) | Outcome::Failed(found) => {
                        writeln!(f, "{sign} {}", check.holds)?;
                        found.iter().take(MOST).try_for_each(|line| writeln!(f, "    {line}"))?;
                        if found.len() > MOST {
                            writeln!(f, "    and {} more (--json has all)", found.len() - MOST)?;
                        }
                        writeln!(f, "    Next step: {}\n    see {}", check.next_step, hint(*check))?;
                    }
                }
            }
            writeln!(f)?;
        }
        write!(f, "Status check results are {}", if self.is_good() { "√" } else { "×" })
    }
}

#[cfg(test)]
mod tests {
    use error_code::check as checks;

    use super::*;

    #[test]
    fn tells_what_holds_and_what_to_do_about_what_does_not() {
        let mut report = Report::default();
        report.add(checks::CLOCK, Outcome::Warning(vec!["node-1: 7 s ahead".to_owned()]));
        report.add(checks::API_REACHABLE, Outcome::Good("v1.34.4".to_owned()));
        report.add(checks::AGENT_PERMISSIONS, Outcome::Unknown("not allowed to ask".to_owned()));
        assert!(report.is_good(), "a warning is no failure");
        let text = report.to_string();
        assert!(
            text.starts_with("kubernetes\n----------\n√ the Kubernetes API answers: v1.34.4\n\ninstallation\n"),
            "{text}"
        );
        assert!(text.contains("? the agents may do what they need: cannot be told: not allowed to ask"), "{text}");
        assert!(
            text.contains("‼ the clocks of the nodes agree with this one\n    node-1: 7 s ahead\n    Next step: Set")
        );
        assert!(text.contains("see docs/check.md#clock") && text.ends_with("Status check results are √"), "{text}");
        report.add(checks::INSTALLED, Outcome::Failed((0..30).map(|n| format!("line {n}")).collect()));
        assert!(!report.is_good());
        assert!(report.to_string().contains("line 19\n    and 10 more (--json has all)"));
        let json = report.json();
        assert_eq!(json["success"], false);
        assert_eq!(json["categories"][0]["checks"][0]["result"], "success");
        assert_eq!(json["categories"][1]["checks"][0]["findings"].as_array().unwrap().len(), 30);
    }
}

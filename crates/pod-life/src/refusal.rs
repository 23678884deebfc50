//! Errors of enrolment, as reported to the plugin, the runtime and the user.

use std::fmt;

use error_code::{ErrorCode, agent as codes};
use handoff::FromAgent;

/// Why a pod is not enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The documented code.
    pub code: &'static ErrorCode,
    /// What happened.
    pub why: String,
    /// Whether a retry can succeed without manual correction.
    pub retry: bool,
}

impl Refusal {
    /// Codes of failures that a retry does not correct.
    const PERMANENT: [ErrorCode; 6] = [
        codes::PROTOCOL,
        codes::NETNS,
        codes::ADDRESS,
        codes::ANNOTATION,
        codes::EXCLUSION,
        codes::NAMES,
    ];

    /// A refusal with this code and reason.
    pub fn new(code: &'static ErrorCode, why: impl fmt::Display) -> Self {
        Self {
            code,
            why: why.to_string(),
            retry: !Self::PERMANENT.contains(code),
        }
    }

    /// The plugin exited, or did not continue in time.
    pub fn plugin_disconnected() -> Self {
        let why = "the plugin disconnected before the pod was ready";
        Self {
            retry: true,
            ..Self::new(&codes::PROTOCOL, why)
        }
    }

    /// Another ADD is in progress.
    pub(crate) fn busy() -> Self {
        let why = "another ADD of this pod, container or namespace is in progress";
        Self::new(&codes::BUSY, why)
    }

    /// The answer to the plugin.
    pub fn message(&self) -> FromAgent {
        FromAgent::Failed {
            code: self.code.code.to_owned(),
            why: self.why.clone(),
            next_step: self.code.next_step.to_owned(),
            retry: self.retry,
        }
    }

    /// The error with its code and next step, for the log and the status.
    pub fn with_next_step(&self) -> String {
        format!(
            "{}: {}. Next step: {}",
            self.code, self.why, self.code.next_step
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

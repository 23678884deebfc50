//! A decision as a value: what was decided, why, and what was looked at.

use std::fmt;

/// What was decided, why, and what was considered on the way. The access log, errors and the command line print the
/// same value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<T> {
    /// What was decided.
    pub outcome: T,
    /// The one thing that decided it.
    pub reason: String,
    /// What was looked at before, in order.
    pub considered: Vec<String>,
}

impl<T> Decision<T> {
    /// A decision for one reason.
    pub fn new(outcome: T, reason: impl Into<String>) -> Self {
        Self { outcome, reason: reason.into(), considered: Vec::new() }
    }

    /// With what was considered before; what it has already was considered after that.
    #[must_use]
    pub fn after(mut self, mut considered: Vec<String>) -> Self {
        considered.append(&mut self.considered);
        self.considered = considered;
        self
    }
}

impl<T> fmt::Display for Decision<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

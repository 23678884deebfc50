//! Decisions as values: an outcome, the reason for it, and what was considered.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An outcome, the reason for it, and what was considered before. The access log, errors and the
/// command line all print this value. Without readers, `R` is `Unread`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<T, R = String> {
    /// The outcome.
    pub outcome: T,
    /// The reason that determined the outcome.
    pub reason: R,
    /// Which reason `reason` states, for programs; only enrolment decisions have one.
    pub code: Option<EnrolmentReason>,
    /// What was considered before that, in order.
    pub considered: Vec<R>,
}

/// The text of a reason, as far as someone reads it.
pub(crate) trait Reason: fmt::Display {
    fn new(text: fmt::Arguments<'_>) -> Self;
}

impl Reason for String {
    fn new(text: fmt::Arguments<'_>) -> Self {
        fmt::format(text)
    }
}

/// A reason that no one reads: its text is never formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unread;

impl fmt::Display for Unread {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl Reason for Unread {
    fn new(_: fmt::Arguments<'_>) -> Self {
        Self
    }
}

/// A [`Reason`], from the arguments of `format!`.
macro_rules! reason {
    ($($text:tt)*) => {
        $crate::decision::Reason::new(format_args!($($text)*))
    };
}
pub(crate) use reason;

impl<T> Decision<T> {
    /// A decision with nothing considered yet.
    pub fn new(outcome: T, reason: impl Into<String>) -> Self {
        Self::because(outcome, reason.into())
    }
}

impl<T, R> Decision<T, R> {
    /// As [`Decision::new`], with a reason that may be unread.
    pub(crate) fn because(outcome: T, reason: R) -> Self {
        Self {
            outcome,
            reason,
            code: None,
            considered: Vec::new(),
        }
    }

    /// With the code of its reason.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<Option<EnrolmentReason>>) -> Self {
        self.code = code.into();
        self
    }

    /// Prepends what was considered before this decision.
    #[must_use]
    pub fn after(mut self, mut considered: Vec<R>) -> Self {
        considered.append(&mut self.considered);
        self.considered = considered;
        self
    }
}

impl<T, R: fmt::Display> fmt::Display for Decision<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

/// Why a pod belongs to the mesh or does not, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EnrolmentReason {
    /// The pod's namespace has the label.
    NamespaceLabel,
    /// The pod has the label.
    PodLabel,
    /// Neither has the label.
    NoLabel,
    /// An enablement selector matches the pod and its namespace.
    Selected,
    /// No enablement selector matches.
    NotSelected,
    /// The pod's label opts out.
    OptedOut,
    /// The pod uses the node's network namespace.
    HostNetwork,
    /// The pod has a sidecar.
    Sidecar,
    /// The pod's namespace is excluded.
    NamespaceExcluded,
    /// The pod has finished.
    Finished,
    /// The pod is a proxy of the mesh.
    MeshProxy,
    /// The pod, or its namespace, is not known.
    Unknown,
    /// The pod is assigned to another node.
    OtherNode,
}

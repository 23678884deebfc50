//! What a capture backend does with a pod.

use std::collections::BTreeSet;

use crate::difference::{Difference, differences};
use crate::error::RedirectError;
use crate::plan::Plan;
use crate::sockets::TcpConnection;
use crate::state::{DesiredState, ObservedState};
use crate::target::Target;

/// Connections that were open before a pod joined, and are exempt from the capture.
pub type Exceptions = BTreeSet<TcpConnection>;

/// The result of applying a plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ApplyOutcome {
    /// The open connections that stay uncaptured.
    pub exempted: Exceptions,
    /// Number of open connections that were aborted.
    pub aborted: usize,
}

/// A capture backend, acting on the network namespace of the calling thread, which is the target.
/// The plans it gets have at least one address.
///
/// Reading back and removing are not part of it: both treat everything of Underpass that a
/// namespace contains ([`read_back`](fn@crate::read_back), [`remove`](fn@crate::remove)), because
/// an earlier plan of the pod may have had another backend.
pub(crate) trait Driver {
    /// Renders what a plan requires, with these exceptions.
    fn render(&self, plan: &Plan, exceptions: &Exceptions) -> DesiredState;

    /// Installs a plan, replacing existing redirection. If the plan was applied before, open
    /// connections are captured or exempted already.
    fn apply(&self, target: &Target, plan: &Plan) -> Result<ApplyOutcome, RedirectError>;

    /// Like [`Driver::apply`], for a pod with running applications.
    fn join(&self, target: &Target, plan: &Plan) -> Result<ApplyOutcome, RedirectError>;

    /// Restores a plan that was applied before, whatever is left of it, with these exceptions.
    fn repair(
        &self,
        target: &Target,
        plan: &Plan,
        exceptions: &Exceptions,
    ) -> Result<(), RedirectError>;

    /// Stops capturing new connections; returns the number of captured ones that are still open.
    /// Removes everything once that is zero, unless `keep_return_path` is set.
    fn leave(
        &self,
        target: &Target,
        plan: &Plan,
        exceptions: &Exceptions,
        keep_return_path: bool,
    ) -> Result<usize, RedirectError>;

    /// Compares a namespace with a plan and these exceptions.
    fn diff(
        &self,
        plan: &Plan,
        exceptions: &Exceptions,
        observed: &ObservedState,
    ) -> Vec<Difference> {
        differences(&self.render(plan, exceptions), observed)
    }
}

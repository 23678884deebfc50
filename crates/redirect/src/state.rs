//! The redirection of a pod as data: as a plan requires it, and as it was read back.

use nft::Table;

use crate::driver::Exceptions;
use crate::foreign::ForeignRedirection;
use crate::local_route::{LocalRoute, OtherRoute};
use crate::policy_rule::PolicyRule;
use crate::surroundings::Surroundings;
use crate::xtables::XtablesRules;

/// The redirection that a plan requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DesiredState {
    pub(crate) table: Option<Table>,
    pub(crate) xtables: Vec<XtablesRules>,
    /// The ip rules, in the order in which they are added.
    pub(crate) rules: Vec<PolicyRule>,
    pub(crate) routes: Vec<LocalRoute>,
}

/// The redirection read back from a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedState {
    /// The table `inet underpass`, if it exists.
    pub table: Option<Table>,
    /// Underpass's iptables chains, of both iptables variants.
    pub xtables: Vec<XtablesRules>,
    /// ip rules with Underpass's priorities.
    pub rules: Vec<PolicyRule>,
    /// Local default routes in Underpass's routing table.
    pub routes: Vec<LocalRoute>,
    /// All other routes in it.
    pub other_routes: Vec<OtherRoute>,
    /// istio-cni redirection in the same namespace.
    pub foreign: Vec<ForeignRedirection>,
    /// What the namespace contains besides.
    pub surroundings: Surroundings,
}

impl ObservedState {
    /// Whether there is no redirection, neither of Underpass nor of istio-cni.
    pub fn is_empty(&self) -> bool {
        let surroundings = self.surroundings.clone();
        let nothing = Self {
            surroundings,
            ..Self::default()
        };
        *self == nothing
    }

    /// The connections that the ip rules exempt from the capture. Other programs may have added
    /// some of the rules; the pod's record has the connections that Underpass exempted.
    pub fn exempted_connections(&self) -> Exceptions {
        exceptions_in(&self.rules)
    }
}

/// The connections that rules exempt from the capture.
pub(crate) fn exceptions_in(rules: &[PolicyRule]) -> Exceptions {
    rules
        .iter()
        .filter_map(PolicyRule::exempted_connection)
        .collect()
}

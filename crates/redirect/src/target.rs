//! A namespace whose redirection is changed, as it was in the beginning.

use crate::error::RedirectError;
use crate::links::Link;
use crate::plan::Plan;
use crate::policy_rule::PolicyRule;
use crate::routing::Routing;
use crate::rule_priorities::NamespaceRules;
use crate::surroundings::Surroundings;

/// The network namespace of the calling thread.
pub(crate) struct Target {
    pub(crate) routing: Routing,
    /// Underpass's ip rules.
    pub(crate) rules: Vec<PolicyRule>,
    surroundings: Surroundings,
}

impl Target {
    /// Reads what the changes depend on.
    pub(crate) fn open() -> Result<Self, RedirectError> {
        let routing = Routing::open()?;
        let NamespaceRules {
            own, priorities, ..
        } = routing.rules()?;
        let links = Link::list(&routing)?;
        Ok(Self {
            surroundings: Surroundings::read(&routing, &links, priorities)?,
            rules: own,
            routing,
        })
    }

    /// The plan as it is rendered in the namespace.
    pub(crate) fn plan(&self, plan: &Plan) -> Plan {
        plan.within(&self.surroundings)
    }
}

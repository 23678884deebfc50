//! The `routed` capture.
//!
//! An ip rule and a local route send the TCP packets of the pod's sockets back over lo. A tproxy
//! rule delivers the SYN to the proxy's transparent listener; the accepted socket has the original
//! destination as its local address. No NAT, no conntrack. The guard blocks all other TCP from the
//! pod: if an ip rule is missing, from a socket bound to a device, or of a family that the plan
//! does not cover.
//!
//! Only pods with exclusions need conntrack: an application's replies to an excluded client look
//! like its replies to the proxy, which connects from the client's address.

pub(crate) mod table;
pub(crate) mod transition;

use std::collections::BTreeSet;

use self::table::GUARD;
use self::transition::{joining_table, leaving_table, stop_capturing_table};
use crate::driver::{ApplyOutcome, Driver, Exceptions};
use crate::error::RedirectError;
use crate::netfilter::{NftSession, write_netfilter};
use crate::plan::{ExistingConnections, Plan};
use crate::policy_rule::PolicyRule;
use crate::remove::remove;
use crate::return_path;
use crate::sockets::{
    abort_open_connections, captured_connections, limited, may_exceed_rules, uncaptured_connections,
};
use crate::state::{DesiredState, exceptions_in};
use crate::target::Target;

/// The `routed` capture.
pub(crate) struct Routed;

/// The phase of a pod in which a plan is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PodPhase {
    New,
    Running,
    Enrolled,
}

impl Driver for Routed {
    fn render(&self, plan: &Plan, exceptions: &Exceptions) -> DesiredState {
        let exempt = exceptions.iter().copied();
        let exempt = exempt.map(|c| PolicyRule::exception_for(plan.priorities, c));
        let mut rules: Vec<PolicyRule> = exempt.collect();
        rules.extend(table::policy_rules(plan));
        DesiredState {
            table: Some(table::table(plan, exceptions)),
            xtables: Vec::new(),
            rules,
            routes: table::routes(plan),
        }
    }

    fn apply(&self, target: &Target, plan: &Plan) -> Result<ApplyOutcome, RedirectError> {
        self.install(target, plan, PodPhase::New, None)
    }

    fn join(&self, target: &Target, plan: &Plan) -> Result<ApplyOutcome, RedirectError> {
        self.install(target, plan, PodPhase::Running, None)
    }

    fn repair(
        &self,
        target: &Target,
        plan: &Plan,
        exceptions: &Exceptions,
    ) -> Result<(), RedirectError> {
        self.install(target, plan, PodPhase::Enrolled, Some(exceptions))
            .map(drop)
    }

    fn leave(
        &self,
        target: &Target,
        plan: &Plan,
        exceptions: &Exceptions,
        keep_return_path: bool,
    ) -> Result<usize, RedirectError> {
        let (routing, observed) = (&target.routing, &target.rules);
        let return_rules = return_path::policy_rules(plan);
        // A packet that the table marks is routed by its mark only.
        routing.add_rules(&return_rules, observed)?;
        let mut session = NftSession::default();
        let begins = is_capturing(&mut session, observed)?;
        if begins {
            session.replace_table(&stop_capturing_table(plan, exceptions))?;
            routing.add_rules(&captured_rules(plan)?, observed)?;
            routing.delete_rules(observed.iter().filter(|r| r.captures()))?;
        }
        // No new connections are captured, so this list is final.
        let captured = captured_rules(plan)?;
        if captured.is_empty() && !keep_return_path {
            remove()?;
            return Ok(0);
        }
        let observed = routing.rules()?.own;
        routing.add_rules(&captured, &observed)?;
        let kept: BTreeSet<&PolicyRule> = captured.iter().chain(&return_rules).collect();
        routing.delete_rules(observed.iter().filter(|r| !kept.contains(r)))?;
        let table = leaving_table(plan);
        if begins || session.read_table()?.as_ref() != Some(&table) {
            session.replace_table(&table)?;
        }
        Ok(captured.len())
    }
}

impl Routed {
    /// `known` are the exceptions of an enrolled pod.
    fn install(
        &self,
        target: &Target,
        plan: &Plan,
        phase: PodPhase,
        known: Option<&Exceptions>,
    ) -> Result<ApplyOutcome, RedirectError> {
        let (routing, observed) = (&target.routing, &target.rules);
        // If a plan was applied before, open connections are captured or exempted already. A pod
        // that is still leaving counts as new: connections that it opened since are not captured.
        let mut session = NftSession::default();
        let is_first = phase != PodPhase::Enrolled && !is_capturing(&mut session, observed)?;
        let joins = is_first && phase == PodPhase::Running && !plan.adopt;
        let open = || -> Result<Exceptions, RedirectError> {
            let open = limited(uncaptured_connections(plan)?)?;
            Ok(open.into_iter().collect())
        };
        if joins {
            if plan.existing_connections == ExistingConnections::Keep && may_exceed_rules() {
                open()?; // fails before anything is blocked
            }
            // Blocks new connections until the plan's table is written.
            let return_rules = return_path::policy_rules(plan);
            let rejoining = return_rules.iter().any(|r| observed.contains(r));
            session.replace_table(&joining_table(plan, rejoining))?;
        }
        let exempted = match (known, plan.existing_connections) {
            (Some(known), _) => known.clone(),
            // A pod that left and rejoins may still have captured connections.
            (None, ExistingConnections::Keep) if is_first => open()?,
            (None, _) if is_first => Exceptions::new(),
            (None, _) => open()?
                .intersection(&exceptions_in(observed))
                .copied()
                .collect(),
        };
        let desired = self.render(plan, &exempted);

        // The guard blocks unmarked packets, so netfilter rules come first and the capturing ip
        // rule last; the joining table blocks new connections until all are there.
        if joins {
            routing.install(&desired, observed)?;
            write_netfilter(&mut session, &desired, None, plan.adopt)?;
        } else {
            write_netfilter(&mut session, &desired, None, plan.adopt)?;
            routing.install(&desired, observed)?;
        }
        routing.delete_others(&desired, observed)?;
        let aborted = match plan.existing_connections {
            ExistingConnections::Reset if is_first => abort_open_connections(&plan.addresses)?,
            _ => 0,
        };
        if phase == PodPhase::New {
            session.close(); // the plugin exits soon
        }
        Ok(ApplyOutcome { exempted, aborted })
    }
}

/// Whether a plan was applied and captures new connections; parts of it may be missing.
fn is_capturing(session: &mut NftSession, observed: &[PolicyRule]) -> Result<bool, RedirectError> {
    let has_guard = |t: nft::Table| t.chains.iter().any(|c| c.name == GUARD);
    Ok(observed.iter().any(PolicyRule::captures) || session.read_table()?.is_some_and(has_guard))
}

/// Builds the rules that keep captured connections captured.
fn captured_rules(plan: &Plan) -> Result<Vec<PolicyRule>, RedirectError> {
    let captured = limited(captured_connections(plan)?)?.into_iter();
    Ok(captured
        .map(|c| PolicyRule::keep_captured(plan.priorities, c, plan.table))
        .collect())
}

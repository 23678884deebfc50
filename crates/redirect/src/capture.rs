//! The verbs of the crate: each selects the driver of the plan's capture kind.
//!
//! All functions act on the network namespace of the calling thread and block. Only the iptables
//! backend runs a program.

use nft::Socket;

use crate::difference::Difference;
use crate::driver::{ApplyOutcome, Driver, Exceptions};
use crate::error::RedirectError;
use crate::iptables_program::Variant;
use crate::local_route::LocalRoute;
use crate::nat::{Nat, uncaptured};
use crate::netfilter::NftSession;
use crate::plan::{CaptureKind, Plan, TABLE};
use crate::policy_rule::PolicyRule;
use crate::read_back::read_back;
use crate::remove::remove;
use crate::routed::Routed;
use crate::routing::Routing;
use crate::sockets::{captured_connections, open_connections};
use crate::state::ObservedState;
use crate::target::Target;

fn driver(kind: CaptureKind) -> &'static dyn Driver {
    match kind {
        CaptureKind::Routed => &Routed,
        CaptureKind::Nat => &Nat::NfTables,
        CaptureKind::NatIptablesNft => &Nat::Iptables(Variant::Nft),
        CaptureKind::NatIptablesLegacy => &Nat::Iptables(Variant::Legacy),
    }
}

/// Installs a plan. Replaces existing redirection, the nf_tables part in one transaction; rolls
/// back on failure.
///
/// # Errors
/// [`RedirectError`]; nothing of the plan remains in the namespace.
pub fn apply(plan: &Plan) -> Result<ApplyOutcome, RedirectError> {
    or_undo(installed(plan).and_then(|(driver, target, plan)| {
        let applied = driver.apply(&target, &plan)?;
        remove_adopted_routes(&plan)?;
        Ok(applied)
    }))
}

/// Like [`apply`], for a pod with running applications: connections opened meanwhile are not lost.
///
/// # Errors
/// [`RedirectError`]; nothing of the plan remains in the namespace.
pub fn join(plan: &Plan) -> Result<ApplyOutcome, RedirectError> {
    or_undo(installed(plan).and_then(|(driver, target, plan)| {
        let joined = driver.join(&target, &plan)?;
        remove_adopted_routes(&plan)?;
        Ok(joined)
    }))
}

/// Restores a plan that was applied before, with the `exceptions` of that time that are left. Other
/// open connections are captured already, so none is exempted or aborted. A failure does not undo
/// partial repairs.
///
/// # Errors
/// [`RedirectError`].
pub fn repair(plan: &Plan, exceptions: &Exceptions) -> Result<(), RedirectError> {
    let (driver, target, plan) = installed(plan)?;
    driver.repair(&target, &plan, exceptions)?;
    delete_stale_routes(&driver.render(&plan, exceptions).routes)
}

/// Removes a pod with running applications from the mesh: new connections are not captured,
/// captured ones continue until they close. Returns the number of captured connections; call it
/// again until that is zero. All redirection is removed then, unless `keep_return_path` is set:
/// connections that the proxy still opens to the application, for clients and tunnels that it
/// accepted before, need it.
///
/// # Errors
/// [`RedirectError`].
pub fn leave(
    plan: &Plan,
    exceptions: &Exceptions,
    keep_return_path: bool,
) -> Result<usize, RedirectError> {
    let target = Target::open()?;
    let plan = target.plan(plan);
    driver(plan.capture).leave(&target, &plan, exceptions, keep_return_path)
}

/// Compares a namespace with a plan; returns no differences if it is as planned.
///
/// Exceptions for connections are not differences; [`diff_with`] expects those of the pod's record.
pub fn diff(plan: &Plan, observed: &ObservedState) -> Vec<Difference> {
    diff_with(plan, &observed.exempted_connections(), observed)
}

/// Compares a namespace with a plan and these exceptions, of which none may be missing or added.
pub fn diff_with(
    plan: &Plan,
    exceptions: &Exceptions,
    observed: &ObservedState,
) -> Vec<Difference> {
    let plan = plan.within(&observed.surroundings);
    driver(plan.capture).diff(&plan, exceptions, observed)
}

/// Cuts the pod's open connections that bypass the proxy although the plan captures them, but for
/// the `exceptions`; returns their number. Only `nat` leaves any, if they were opened while rules
/// were missing.
///
/// # Errors
/// [`RedirectError`] if the kernel does not answer, or cannot cut connections (it lacks
/// CONFIG_INET_DIAG_DESTROY).
pub fn cut_uncaptured(
    plan: &Plan,
    exceptions: &Exceptions,
    observed: &ObservedState,
) -> Result<usize, RedirectError> {
    match plan.capture {
        CaptureKind::Routed => Ok(0),
        _ => uncaptured::cut(&plan.within(&observed.surroundings), exceptions),
    }
}

/// The connections that a plan, which was just installed, does not capture because they were open
/// before.
///
/// # Errors
/// [`RedirectError`] if the kernel does not answer.
pub fn exempted_connections(
    plan: &Plan,
    observed: &ObservedState,
) -> Result<Exceptions, RedirectError> {
    match plan.capture {
        CaptureKind::Routed => Ok(observed.exempted_connections()),
        _ => uncaptured::uncaptured(&plan.within(&observed.surroundings)),
    }
}

/// Counts the pod's open connections that any proxy captured, Underpass's or Istio's.
///
/// # Errors
/// [`RedirectError`] if the kernel does not answer.
pub fn count_captured(plan: &Plan) -> Result<usize, RedirectError> {
    Ok(captured_connections(&Target::open()?.plan(plan))?.len())
}

/// Removes those `exceptions` whose connections have closed; returns the others. Removes none while
/// the rules differ from the plan, as they do while the pod joins or leaves: the plan's table would
/// replace the one that a concurrent [`join`] or [`leave`] relies on, and refuse connections.
///
/// # Errors
/// [`RedirectError`] if the kernel does not answer.
pub fn release_closed_exceptions(
    plan: &Plan,
    exceptions: &Exceptions,
) -> Result<Exceptions, RedirectError> {
    let open: Exceptions = open_connections(&[])?.into_iter().collect();
    let remaining: Exceptions = exceptions.intersection(&open).copied().collect();
    if remaining.len() == exceptions.len() || plan.capture != CaptureKind::Routed {
        return Ok(remaining);
    }
    // Read before the rules, so that no change after reading them is overwritten.
    let generation = nft::generation(&Socket::open()?)?;
    let observed = read_back()?;
    if !diff_with(plan, exceptions, &observed).is_empty() {
        return Ok(exceptions.clone());
    }
    let plan = plan.within(&observed.surroundings);
    if let Some(table) = driver(plan.capture).render(&plan, &remaining).table
        && !NftSession::default().replace_table_of(generation, &table)?
    {
        return Ok(exceptions.clone());
    }
    let closed = exceptions.difference(&remaining).copied();
    let closed: Vec<PolicyRule> = closed
        .map(|c| PolicyRule::exception_for(plan.priorities, c))
        .collect();
    Routing::open()?.delete_rules(&closed)?;
    Ok(remaining)
}

/// The driver that installs a plan in this namespace, and the plan as it is rendered there.
fn installed(plan: &Plan) -> Result<(&'static dyn Driver, Target, Plan), RedirectError> {
    if plan.addresses.is_empty() {
        return Err(RedirectError::NoAddress);
    }
    let target = Target::open()?;
    let plan = target.plan(plan);
    Ok((driver(plan.capture), target, plan))
}

/// Deletes the routes of families that the pod no longer has.
fn delete_stale_routes(planned: &[LocalRoute]) -> Result<(), RedirectError> {
    let routing = Routing::open()?;
    let mut routes = routing.routes(TABLE)?.0.into_iter();
    routes.try_for_each(|route| match planned.contains(&route) {
        true => Ok(()),
        false => routing.delete_route(route),
    })
}

/// Removes the routes to which the replaced ip rules of istio-cni led.
fn remove_adopted_routes(plan: &Plan) -> Result<(), RedirectError> {
    if !plan.adopt {
        return Ok(());
    }
    let routing = Routing::open()?;
    let mut routes = routing.routes(istio::ROUTING_TABLE)?.0.into_iter();
    routes.try_for_each(|route| routing.delete_route(route))
}

/// Removes what a failed installation left.
fn or_undo<T>(result: Result<T, RedirectError>) -> Result<T, RedirectError> {
    result.inspect_err(|_| {
        // Report only the first error; DEL or the agent removes what remains.
        let _ = remove();
    })
}

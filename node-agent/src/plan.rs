//! The plan of one pod: the agent's options, and what the pod's annotations say.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netns::NetNs;
use redirect::{CaptureKind, Foreign, Plan};

use crate::refusal::Refusal;

/// What the agent's options say of every pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlanDefaults {
    pub(crate) capture: CaptureKind,
    /// Whether DNS is captured where the pod does not say.
    pub(crate) dns: bool,
    /// Whether redirection of istio-cni that a pod has is replaced.
    pub(crate) adopt_istio: bool,
}

/// The plan of a pod with these addresses. What the mesh knows of its annotations counts more than what the runtime said
/// when the pod started.
pub(crate) fn plan_for(
    defaults: &PlanDefaults,
    addresses: &[IpAddr],
    of_mesh: &BTreeMap<String, String>,
    of_runtime: &BTreeMap<String, String>,
) -> Result<Plan, Refusal> {
    let PlanDefaults { capture, dns, adopt_istio } = *defaults;
    let mut plan = Plan { capture, dns, adopt: adopt_istio, ..Plan::for_pod(addresses.iter().copied()) };
    let ignored = plan.follow(|key| of_mesh.get(key).or_else(|| of_runtime.get(key)).map(String::as_str))?;
    for annotation in ignored {
        tracing::warn!("{annotation}; it is ignored");
    }
    Ok(plan)
}

/// Looks for redirection of istio-cni in the pod that is about to get a plan: two would fight over its packets.
pub(crate) fn look_for_istio(plan: &mut Plan, netns: &NetNs) -> Result<(), Refusal> {
    let found = netns.run(redirect::foreign).map_err(|e| Refusal::NetNs(e.to_string()))??;
    let Some(first) = found.iter().find(|f| f.of_a_sidecar()).or(found.first()) else { return Ok(()) };
    if !plan.adopt || first.of_a_sidecar() {
        return Err(Refusal::Foreign(first.to_string()));
    }
    // Connections that conntrack translates for Istio's proxy break when nothing translates any more.
    let probe = plan.clone();
    let captured = netns.run(|| redirect::captured(&probe)).map_err(|e| Refusal::NetNs(e.to_string()))??;
    if plan.capture == CaptureKind::Routed && captured > 0 {
        plan.capture = CaptureKind::Nat;
    }
    let list = found.iter().map(Foreign::to_string).collect::<Vec<_>>().join(", ");
    tracing::info!(captured, capture = %plan.capture, "redirection of istio-cni is replaced: {list}");
    Ok(())
}

//! The plan of one pod: the agent's options, and what the pod's annotations say.

use std::collections::BTreeMap;
use std::net::IpAddr;

use redirect::{AnnotationError, CaptureKind, Plan};

/// What the agent's options say of every pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlanDefaults {
    pub(crate) capture: CaptureKind,
    /// Whether DNS is captured where the pod does not say.
    pub(crate) dns: bool,
}

/// The plan of a pod with these addresses. What the mesh knows of its annotations counts more than what the runtime said
/// when the pod started.
pub(crate) fn plan_for(
    defaults: &PlanDefaults,
    addresses: &[IpAddr],
    of_mesh: &BTreeMap<String, String>,
    of_runtime: &BTreeMap<String, String>,
) -> Result<Plan, AnnotationError> {
    let PlanDefaults { capture, dns } = *defaults;
    let mut plan = Plan { capture, dns, ..Plan::for_pod(addresses.iter().copied()) };
    let ignored = plan.follow(|key| of_mesh.get(key).or_else(|| of_runtime.get(key)).map(String::as_str))?;
    for annotation in ignored {
        tracing::warn!("{annotation}; it is ignored");
    }
    Ok(plan)
}

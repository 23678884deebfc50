//! Decides whether a pod belongs to the mesh, and with which plan.

use std::rc::Rc;

use error_code::agent as codes;
use mesh::enrol::Enrolment;
use pod_life::{Intent, Refusal, Sandbox, Verdict};

use crate::plan::{PlanDefaults, plan_for};
use crate::pod_source::PodSource;

/// The decisions about pods.
#[derive(Debug, Clone)]
pub(crate) struct Decider {
    pub(crate) node: String,
    pub(crate) source: Rc<PodSource>,
    pub(crate) plans: PlanDefaults,
}

impl Decider {
    /// Decides whether a pod belongs to the mesh, from current data.
    pub(crate) fn decide(&self, sandbox: &Sandbox) -> Verdict {
        let decision = self
            .source
            .decide(&self.node, &sandbox.pod, &sandbox.addresses);
        let workload = match decision.outcome {
            Enrolment::Skip => return Verdict::Skip(decision.reason),
            Enrolment::Unknown => return Verdict::Unknown(decision.reason),
            Enrolment::Enrol(workload) => workload,
        };
        let (pod, mesh) = (&sandbox.addresses, &workload.workload_ips);
        let is_other = |address| !mesh.contains(address);
        let plan = if self.source.has_addresses_at_add() && pod.iter().any(is_other) {
            let why = format!("the pod has addresses {pod:?}, but the mesh file has {mesh:?}");
            Err(Refusal::new(&codes::ADDRESS, why))
        } else {
            let runtime = self.source.runtime_annotations(&sandbox.annotations);
            let networks = self.source.pod_networks();
            plan_for(&self.plans, pod, &networks, &workload.annotations, runtime)
        };
        let vm = self.source.cluster();
        let vm = vm.and_then(|cluster| cluster.vm_runtime_class(&sandbox.pod));
        let unprovable = vm.map(|class| {
            format!(
                "runtime class {class} runs the pod in a virtual machine: its traffic may not pass \
                 the pod's network namespace"
            )
        });
        let own_uid = sandbox.pod.uid.clone();
        Verdict::Enrol(Box::new(Intent {
            uid: own_uid.unwrap_or_else(|| workload.uid.to_string()),
            service_account: workload.service_account.to_string(),
            reason: decision.reason,
            plan,
            unprovable,
        }))
    }
}

#[cfg(test)]
mod tests {
    use handoff::{Attachment, PodRef};
    use redirect::{CaptureKind, ExistingConnections};

    use super::*;

    fn decide(pod: &str, address: &str) -> Verdict {
        let mesh = "
namespaces: [{ name: shop, labels: { istio.io/dataplane-mode: ambient } }]
workloads:
  - { name: web, namespace: shop, uid: mesh-uid, node: n, workloadIps: [10.0.0.1] }
  - { name: bad, namespace: shop, node: n, workloadIps: [10.0.0.2],
      annotations: { underpass.io/exclude-inbound-ports: many } }
";
        let mesh = mesh::parse_mesh_file(mesh).unwrap();
        let decider = Decider {
            node: "n".to_owned(),
            source: Rc::new(PodSource::from_file(mesh)),
            plans: PlanDefaults {
                capture: CaptureKind::Routed,
                dns: false,
                adopt_istio: false,
                allow_exclusions: true,
                existing_connections: ExistingConnections::Keep,
                proxy_user: None,
            },
        };
        decider.decide(&Sandbox {
            attachment: Attachment {
                container_id: "c".to_owned(),
                ifname: "eth0".to_owned(),
            },
            further: Vec::new(),
            synthesised: false,
            pod: PodRef {
                namespace: "shop".to_owned(),
                name: pod.to_owned(),
                uid: None,
            },
            addresses: vec![address.parse().unwrap()],
            annotations: Default::default(),
            netns_inode: 1,
            netns_path: None,
        })
    }

    fn intent(pod: &str, address: &str) -> Intent {
        match decide(pod, address) {
            Verdict::Enrol(intent) => *intent,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_member_gets_a_plan_and_the_uid_of_the_mesh_if_the_runtime_has_none() {
        let intent = intent("web", "10.0.0.1");
        assert!(!intent.uid.is_empty() && intent.plan.is_ok());
    }

    #[test]
    fn a_pod_with_other_addresses_or_invalid_annotations_gets_no_plan() {
        for (pod, address, code) in [
            ("web", "10.0.0.9", &codes::ADDRESS),
            ("bad", "10.0.0.2", &codes::ANNOTATION),
        ] {
            let refusal = intent(pod, address).plan.unwrap_err();
            assert_eq!(refusal.code, code, "{refusal}");
        }
    }

    #[test]
    fn a_pod_that_the_mesh_does_not_have_is_unknown() {
        assert!(matches!(decide("other", "10.0.0.1"), Verdict::Unknown(_)));
    }
}

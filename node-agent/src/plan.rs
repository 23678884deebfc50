//! Builds the plan of a pod from the agent's options and the pod's annotations.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netns::NetNs;
use pod_life::Refusal;
use redirect::{
    CaptureKind, EXCLUDE_OUTBOUND_CIDRS, EXCLUDING, ExistingConnections, ForeignRedirection, Plan,
    ProxyUser,
};

use crate::refusal::WorkError;

/// The agent's options that apply to every pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlanDefaults {
    pub(crate) capture: CaptureKind,
    /// Whether to capture DNS of pods without an annotation for it.
    pub(crate) dns: bool,
    /// Whether to replace redirection rules of istio-cni.
    pub(crate) adopt_istio: bool,
    /// Whether pods may have connections bypass the proxy.
    pub(crate) allow_exclusions: bool,
    /// What happens to connections that are open when a pod joins, without an annotation for it.
    pub(crate) existing_connections: ExistingConnections,
    /// The user of the proxy's process, if only its packets may leave by the proxy's mark.
    pub(crate) proxy_user: Option<ProxyUser>,
}

/// Builds the plan of a pod with these addresses. Annotations from the mesh take precedence over
/// those that the runtime reported at ADD.
pub(crate) fn plan_for(
    defaults: &PlanDefaults,
    addresses: &[IpAddr],
    pod_networks: &[IpNet],
    mesh_annotations: &BTreeMap<String, String>,
    runtime_annotations: &BTreeMap<String, String>,
) -> Result<Plan, Refusal> {
    let PlanDefaults {
        capture,
        dns,
        adopt_istio,
        allow_exclusions,
        existing_connections,
        proxy_user,
    } = *defaults;
    let mut plan = Plan {
        capture,
        dns,
        adopt: adopt_istio,
        existing_connections,
        proxy_user,
        ..Plan::for_pod(addresses.iter().copied())
    };
    let annotation = |key: &str| {
        mesh_annotations
            .get(key)
            .or_else(|| runtime_annotations.get(key))
    };
    let ignored = plan
        .apply_annotations(|key| annotation(key).map(String::as_str))
        .map_err(WorkError::from)?;
    for annotation in ignored {
        tracing::warn!("ignoring annotation: {annotation}");
    }
    if !allow_exclusions && (plan.bypass_inbound || !plan.exclude.is_empty()) {
        let named = EXCLUDING
            .into_iter()
            .filter(|key| annotation(key).is_some());
        let named = named.collect::<Vec<_>>().join(", ");
        let why = format!("annotation {named}: this node forbids it (--allow-exclusions=false)");
        return Err(Refusal::new(&error_code::agent::EXCLUSION, why));
    }
    if let Some(network) = plan.exclude.excluded_of(pod_networks) {
        let why = format!(
            "annotation {EXCLUDE_OUTBOUND_CIDRS}: excludes {network}, all pods of this node"
        );
        return Err(Refusal::new(&error_code::agent::EXCLUSION, why));
    }
    Ok(plan)
}

/// Handles redirection rules of istio-cni in a pod that is about to be enrolled, since both would
/// capture its packets. Depending on the plan, rejects the pod, or prepares to replace them.
pub(crate) fn resolve_istio_redirection(plan: &mut Plan, netns: &NetNs) -> Result<(), WorkError> {
    let found = netns.run(redirect::find_foreign_redirection)??;
    if let Some(kept) = not_replaceable(&found, plan.adopt) {
        return Err(WorkError::Foreign(kept.clone()));
    }
    if found.is_empty() {
        return Ok(());
    }
    let captured = netns.run(|| redirect::count_captured(plan))??;
    plan.capture = replacing_capture(plan.capture, captured);
    let list = found
        .iter()
        .map(ForeignRedirection::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    tracing::info!(captured, capture = %plan.capture, "replacing redirection of istio-cni: {list}");
    Ok(())
}

/// The redirection that prevents a pod from joining: a sidecar's, or any unless `adopt`.
fn not_replaceable(found: &[ForeignRedirection], adopt: bool) -> Option<&ForeignRedirection> {
    let sidecar = found.iter().find(|f| f.is_sidecar());
    sidecar.or_else(|| found.first().filter(|_| !adopt))
}

/// The capture method of a pod in which Istio's proxy has captured connections: those that
/// conntrack translates would break without NAT.
fn replacing_capture(planned: CaptureKind, captured: usize) -> CaptureKind {
    match planned {
        CaptureKind::Routed if captured > 0 => CaptureKind::Nat,
        planned => planned,
    }
}

#[cfg(test)]
mod tests {
    use redirect::ANNOTATIONS;

    use super::*;

    const DNS: &str = "ambient.istio.io/dns-capture";
    const PORTS: &str = "underpass.io/exclude-outbound-ports";

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    fn plan(mesh: &[(&str, &str)], runtime: &[(&str, &str)]) -> Result<Plan, Refusal> {
        plan_with(&DEFAULTS, mesh, runtime)
    }

    const DEFAULTS: PlanDefaults = PlanDefaults {
        capture: CaptureKind::Nat,
        dns: true,
        adopt_istio: true,
        allow_exclusions: true,
        existing_connections: ExistingConnections::Keep,
        proxy_user: None,
    };

    fn plan_with(
        defaults: &PlanDefaults,
        mesh: &[(&str, &str)],
        runtime: &[(&str, &str)],
    ) -> Result<Plan, Refusal> {
        let addresses = ["10.0.0.1".parse().unwrap()];
        let networks = ["10.0.0.0/24", "fd00:0:0:1::/64"].map(|n| n.parse().unwrap());
        plan_for(defaults, &addresses, &networks, &map(mesh), &map(runtime))
    }

    #[test]
    fn exclusions_of_all_pods_are_rejected_with_a_code() {
        const CIDRS: &str = EXCLUDE_OUTBOUND_CIDRS;
        for (cidrs, is_rejected) in [
            ("10.0.0.0/8", true),
            ("10.0.0.0/24", true),
            ("10.0.0.0/25,10.0.0.128/25", true),
            ("192.168.0.0/16,fd00::/8", true),
            ("10.0.0.0/25", false),
            ("10.0.1.0/24,192.168.0.0/16", false),
        ] {
            let plan = plan(&[(CIDRS, cidrs)], &[]);
            let code = plan.err().map(|refusal| refusal.code);
            let expected = is_rejected.then_some(&error_code::agent::EXCLUSION);
            assert_eq!(code, expected, "{cidrs}");
        }
    }

    #[test]
    fn an_administrator_can_forbid_exclusions() {
        let forbidding = PlanDefaults {
            allow_exclusions: false,
            ..DEFAULTS
        };
        for excluding in EXCLUDING {
            let value = match excluding {
                "ambient.istio.io/bypass-inbound-capture" => "true",
                cidrs if cidrs.ends_with("cidrs") => "192.168.0.0/16",
                _ => "9100",
            };
            for (mesh, runtime) in [
                (&[(excluding, value)][..], &[][..]),
                (&[], &[(excluding, value)]),
            ] {
                let refusal = plan_with(&forbidding, mesh, runtime).unwrap_err();
                assert_eq!(refusal.code, &error_code::agent::EXCLUSION);
                assert!(refusal.why.contains(excluding), "{refusal}");
            }
            assert!(plan_with(&DEFAULTS, &[(excluding, value)], &[]).is_ok());
        }
        let unrelated = [(DNS, "false"), (PORTS, "")];
        assert!(plan_with(&forbidding, &unrelated, &[]).is_ok());
    }

    #[test]
    fn open_connections_are_treated_as_the_agent_says_unless_the_pod_says_otherwise() {
        const EXISTING: &str = "underpass.io/existing-connections";
        let resetting = PlanDefaults {
            existing_connections: ExistingConnections::Reset,
            proxy_user: None,
            ..DEFAULTS
        };
        let of = |mesh: &[(&str, &str)]| {
            let plan = plan_with(&resetting, mesh, &[]).unwrap();
            plan.existing_connections
        };
        assert_eq!(of(&[]), ExistingConnections::Reset);
        assert_eq!(of(&[(EXISTING, "keep")]), ExistingConnections::Keep);
    }

    #[test]
    fn a_plan_without_annotations_has_the_agents_options() {
        let plan = plan(&[], &[]).unwrap();
        assert_eq!(plan.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            (plan.capture, plan.dns, plan.adopt),
            (CaptureKind::Nat, true, true)
        );
    }

    #[test]
    fn annotations_of_the_mesh_take_precedence_over_the_runtimes() {
        for (mesh, runtime, dns) in [
            (&[][..], &[(DNS, "false")][..], false),
            (&[(DNS, "false")], &[(DNS, "true")], false),
            (&[(DNS, "true")], &[(DNS, "false")], true),
            (&[("other", "false")], &[], true),
        ] {
            assert_eq!(
                plan(mesh, runtime).unwrap().dns,
                dns,
                "{mesh:?} {runtime:?}"
            );
        }
        // The values are not merged, not even those of a list.
        let merged = plan(&[(PORTS, "1")], &[(PORTS, "2"), (DNS, "false")]).unwrap();
        let only = plan(&[(PORTS, "1"), (DNS, "false")], &[]).unwrap();
        assert_eq!(merged, only);
    }

    #[test]
    fn an_invalid_annotation_rejects_the_pod_and_names_the_annotation() {
        assert!(ANNOTATIONS.contains(&PORTS) && ANNOTATIONS.contains(&DNS));
        let refusal = plan(&[(PORTS, "70000")], &[]).unwrap_err();
        assert_eq!(refusal.code, &error_code::agent::ANNOTATION);
        assert!(refusal.why.contains(PORTS), "{refusal}");
        assert!(
            plan(&[(DNS, "maybe")], &[]).unwrap().dns,
            "as Istio, ignored"
        );
    }

    #[test]
    fn only_istios_ambient_redirection_is_ever_replaced() {
        let table = || ForeignRedirection::Table("istio-ambient-nat".to_owned());
        let sidecar = || ForeignRedirection::Chain {
            family: nft::IpFamily::V4,
            table: "nat".to_owned(),
            chain: "ISTIO_INBOUND".to_owned(),
        };
        for (found, adopt, kept) in [
            (vec![], false, None),
            (vec![table()], true, None),
            (vec![table()], false, Some(table())),
            (vec![table(), sidecar()], true, Some(sidecar())),
            (vec![table(), sidecar()], false, Some(sidecar())),
        ] {
            assert_eq!(not_replaceable(&found, adopt), kept.as_ref(), "{found:?}");
        }
    }

    #[test]
    fn captured_connections_need_nat() {
        for kind in CaptureKind::ALL {
            assert_eq!(replacing_capture(kind, 0), kind);
        }
        assert_eq!(replacing_capture(CaptureKind::Routed, 1), CaptureKind::Nat);
        let iptables = CaptureKind::NatIptablesNft;
        assert_eq!(replacing_capture(iptables, 1), iptables);
    }
}

//! Checks of the permissions of the user and of the agents.

use error_code::check as checks;

use super::report::{CheckOutcome, CheckReport};
use crate::cluster::{Api, Permission};

/// Permissions of `underpass check`.
const TO_CHECK: &[Permission] = &[
    Permission::new("list", "", "nodes"),
    Permission::new("list", "", "namespaces"),
    Permission::new("list", "", "pods"),
    Permission::new("list", "apps", "daemonsets"),
    Permission::new("list", "apps", "deployments"),
    Permission::new("list", "", "configmaps"),
    Permission::new("list", "networking.k8s.io", "networkpolicies"),
    Permission::new("create", "", "pods").on_subresource("portforward"),
];

/// Permissions to install the chart, in its namespace.
const TO_INSTALL: &[Permission] = &[
    Permission::new("create", "apps", "daemonsets"),
    Permission::new("create", "", "serviceaccounts"),
    Permission::new("create", "rbac.authorization.k8s.io", "roles"),
    Permission::new("create", "rbac.authorization.k8s.io", "rolebindings"),
];

/// Permissions to install the chart, cluster-wide.
const TO_INSTALL_IN_CLUSTER: &[Permission] = &[
    Permission::new("create", "rbac.authorization.k8s.io", "clusterroles"),
    Permission::new("create", "rbac.authorization.k8s.io", "clusterrolebindings"),
    Permission::new("create", ADMISSION, "validatingadmissionpolicies"),
    Permission::new("create", ADMISSION, "validatingadmissionpolicybindings"),
];

/// The API group of admission policies.
const ADMISSION: &str = "admissionregistration.k8s.io";

/// Permissions of the agents: the ClusterRole of the chart.
const AGENT_PERMISSIONS: &[Permission] = &[
    Permission::new("get", "", "pods"),
    Permission::new("list", "", "pods"),
    Permission::new("watch", "", "pods"),
    Permission::new("get", "", "namespaces"),
    Permission::new("list", "", "namespaces"),
    Permission::new("watch", "", "namespaces"),
    Permission::new("list", "", "nodes"),
    Permission::new("watch", "", "nodes"),
    Permission::new("patch", "", "pods").on_subresource("status"),
    Permission::new("create", "", "events"),
    Permission::new("patch", "", "events"),
];

/// Permissions of the agents in their namespace: the Role of the chart.
const AGENT_PERMISSIONS_IN_NAMESPACE: &[Permission] = &[
    Permission::new("get", "apps", "daemonsets").named(AGENTS),
    Permission::new("list", "apps", "daemonsets").named(AGENTS),
    Permission::new("watch", "apps", "daemonsets").named(AGENTS),
];

/// Name of the agents' DaemonSet.
const AGENTS: &str = "underpass-cni-node";

/// Lists the permissions that this user lacks.
///
/// # Errors
/// The API server does not respond.
pub(super) async fn missing_for_user(
    api: &Api,
    to_install: bool,
    namespace: &str,
) -> anyhow::Result<Vec<String>> {
    let mut missing = Vec::new();
    let mut required: Vec<_> = TO_CHECK.iter().map(|p| (p, None)).collect();
    if to_install {
        required.extend(TO_INSTALL_IN_CLUSTER.iter().map(|p| (p, None)));
        required.extend(TO_INSTALL.iter().map(|p| (p, Some(namespace))));
    }
    for (permission, namespace) in required {
        if !api.is_allowed(None, *permission, namespace).await? {
            missing.push(permission.text());
        }
    }
    Ok(missing)
}

/// Checks the permissions of the agents.
pub(super) async fn check_agents(report: &mut CheckReport, api: &Api, namespace: &str) {
    let check = checks::AGENT_PERMISSIONS;
    let agent = format!("system:serviceaccount:{namespace}:underpass-cni");
    let mut missing = Vec::new();
    let everywhere = AGENT_PERMISSIONS.iter().map(|p| (p, None));
    let own = AGENT_PERMISSIONS_IN_NAMESPACE.iter();
    for (permission, namespace) in everywhere.chain(own.map(|p| (p, Some(namespace)))) {
        match api.is_allowed(Some(&agent), *permission, namespace).await {
            Ok(true) => {}
            Ok(false) => missing.push(permission.text()),
            Err(e) => return report.add(check, CheckOutcome::Unknown(format!("{e:#}"))),
        }
    }
    report.fail_on(check, missing, "");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// The list must be updated when the roles of the chart change.
    #[test]
    fn agent_permissions_match_the_chart() {
        let roles = |kind: &str| -> Vec<Value> {
            let manifests = include_str!("../../../deploy/manifests/underpass.yaml");
            let of_kind = manifests
                .split("\n---\n")
                .filter(|d| d.contains(&format!("\nkind: {kind}\n")));
            of_kind
                .map(|d| serde_saphyr::from_str(d).unwrap())
                .collect()
        };
        let ([role], [own]) = (&roles("ClusterRole")[..], &roles("Role")[..]) else {
            panic!("{:?} {:?}", roles("ClusterRole"), roles("Role"))
        };
        let verbs: Vec<&str> = AGENT_PERMISSIONS_IN_NAMESPACE
            .iter()
            .map(|p| p.verb)
            .collect();
        let expected = serde_json::json!([{
            "apiGroups": ["apps"],
            "resources": ["daemonsets"],
            "resourceNames": [AGENTS],
            "verbs": verbs,
        }]);
        assert_eq!(own["rules"], expected);
        let texts = |value: &Value| -> Vec<String> {
            value
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t.as_str().unwrap().to_owned())
                .collect()
        };
        let mut granted = BTreeSet::new();
        for rule in role["rules"].as_array().unwrap() {
            assert_eq!(texts(&rule["apiGroups"]), [""]);
            let (verbs, resources) = (texts(&rule["verbs"]), texts(&rule["resources"]));
            granted.extend(
                resources
                    .iter()
                    .flat_map(|r| verbs.iter().map(move |v| format!("{v} {r}"))),
            );
        }
        assert!(AGENT_PERMISSIONS.iter().all(|p| p.group.is_empty()));
        assert_eq!(
            AGENT_PERMISSIONS
                .iter()
                .map(Permission::text)
                .collect::<BTreeSet<_>>(),
            granted
        );
    }
}

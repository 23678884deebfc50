//! What users and agents may do.

use super::report::Outcome;
use crate::cluster::{Api, Right};

/// What is done here.
const TO_CHECK: &[Right] = &[
    Right::new("list", "", "nodes"),
    Right::new("list", "", "namespaces"),
    Right::new("list", "", "pods"),
    Right::new("list", "apps", "daemonsets"),
    Right::new("list", "apps", "deployments"),
    Right::new("list", "", "configmaps"),
    Right::new("create", "", "pods").sub("portforward"),
];

/// What the chart makes.
const TO_INSTALL: &[Right] = &[
    Right::new("create", "apps", "daemonsets"),
    Right::new("create", "", "serviceaccounts"),
    Right::new("create", "rbac.authorization.k8s.io", "roles"),
    Right::new("create", "rbac.authorization.k8s.io", "rolebindings"),
];

/// The same, of what is in no namespace.
const TO_INSTALL_IN_CLUSTER: &[Right] = &[
    Right::new("create", "rbac.authorization.k8s.io", "clusterroles"),
    Right::new("create", "rbac.authorization.k8s.io", "clusterrolebindings"),
];

/// What agents do: the ClusterRole of the chart.
const OF_AGENTS: &[Right] = &[
    Right::new("get", "", "pods"),
    Right::new("list", "", "pods"),
    Right::new("watch", "", "pods"),
    Right::new("get", "", "namespaces"),
    Right::new("list", "", "namespaces"),
    Right::new("watch", "", "namespaces"),
    Right::new("list", "", "nodes"),
    Right::new("watch", "", "nodes"),
    Right::new("patch", "", "nodes"),
    Right::new("patch", "", "pods").sub("status"),
    Right::new("create", "", "events"),
    Right::new("patch", "", "events"),
];

/// What this user may not do and needs.
///
/// # Errors
/// The API server does not answer.
pub(super) async fn of_this_user(api: &Api, to_install: bool, namespace: &str) -> anyhow::Result<Vec<String>> {
    let mut refused = Vec::new();
    let (within, in_cluster) = if to_install { (TO_INSTALL, TO_INSTALL_IN_CLUSTER) } else { (&[][..], &[][..]) };
    let all = TO_CHECK.iter().chain(in_cluster).map(|r| (r, None)).chain(within.iter().map(|r| (r, Some(namespace))));
    for (right, namespace) in all {
        if !api.may(None, *right, namespace).await? {
            refused.push(right.text());
        }
    }
    Ok(refused)
}

/// Whether the agents may do what they need.
pub(super) async fn of_agents(api: &Api, namespace: &str) -> Outcome {
    let agent = format!("system:serviceaccount:{namespace}:underpass-cni");
    let mut refused = Vec::new();
    for right in OF_AGENTS {
        match api.may(Some(&agent), *right, None).await {
            Ok(true) => {}
            Ok(false) => refused.push(right.text()),
            Err(e) => return Outcome::Unknown(format!("{e:#}")),
        }
    }
    Outcome::unless(refused, "")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// Whoever gives the agents a right, or takes one, does so in the chart; then it is asked for here, too.
    #[test]
    fn agents_are_asked_for_what_the_chart_gives_them() {
        let manifests = include_str!("../../../deploy/manifests/underpass.yaml");
        let objects = manifests.split("\n---\n").filter(|d| d.contains("\nkind: ClusterRole\n"));
        let roles: Vec<Value> = objects.map(|d| serde_saphyr::from_str(d).unwrap()).collect();
        let [role] = &roles[..] else { panic!("{roles:?}") };
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect()
        };
        let mut given = BTreeSet::new();
        for rule in role["rules"].as_array().unwrap() {
            assert_eq!(texts(&rule["apiGroups"]), [""]);
            let (verbs, resources) = (texts(&rule["verbs"]), texts(&rule["resources"]));
            given.extend(resources.iter().flat_map(|r| verbs.iter().map(move |v| format!("{v} {r}"))));
        }
        assert!(OF_AGENTS.iter().all(|right| right.group.is_empty()));
        assert_eq!(OF_AGENTS.iter().map(Right::text).collect::<BTreeSet<_>>(), given);
    }
}

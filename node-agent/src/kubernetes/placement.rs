//! Decides whether a DaemonSet runs a pod on a node, as the DaemonSet controller does.

use ::kubernetes::{DaemonSet, Node, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

/// Taints that the DaemonSet controller makes its pods tolerate.
const TOLERATED: [&str; 7] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/network-unavailable",
];

/// Why the DaemonSet runs no pod on the node; `None` if it does.
pub(super) fn excludes(set: &DaemonSet, node: &Node) -> Option<&'static str> {
    let pod = &set.spec.template.spec;
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|l| l.get(key)).map(String::as_str);
    if pod
        .node_selector
        .iter()
        .any(|(key, value)| label(key) != Some(value))
    {
        return Some("its node selector does not match this node");
    }
    let affinity = pod.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required.as_ref());
    if required.is_some_and(|r| !r.node_selector_terms.iter().any(|t| matches(t, node))) {
        return Some("its node affinity does not match this node");
    }
    let is_tolerated = |taint: &Taint| {
        TOLERATED.contains(&taint.key.as_str())
            || taint.effect() == "PreferNoSchedule"
            || pod.tolerations.iter().any(|t| tolerates(t, taint))
    };
    if !node.spec.taints.iter().all(is_tolerated) {
        return Some("it does not tolerate a taint of this node");
    }
    None
}

/// Whether all requirements of a term hold. An empty term matches no node.
fn matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let label = |r: &NodeSelectorRequirement| {
        let value = labels.and_then(|l| l.get(&r.key));
        holds(r, value.map(String::as_str))
    };
    // `metadata.name` is the only field that Kubernetes accepts.
    let field = |r: &NodeSelectorRequirement| holds(r, node.metadata.name.as_deref());
    let is_empty = term.match_expressions.is_empty() && term.match_fields.is_empty();
    !is_empty && term.match_expressions.iter().all(label) && term.match_fields.iter().all(field)
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let is_listed = value.is_some_and(|v| requirement.values.iter().any(|other| other == v));
    let compared = || {
        let limit = requirement.values.first()?.parse::<i64>().ok()?;
        Some(value?.parse::<i64>().ok()?.cmp(&limit))
    };
    match requirement.operator.as_str() {
        "In" => is_listed,
        "NotIn" => !is_listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(std::cmp::Ordering::is_gt),
        "Lt" => compared().is_some_and(std::cmp::Ordering::is_lt),
        // An operator of a newer Kubernetes: a node is not given up for what is not understood.
        _ => true,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let has_effect = toleration.effect.is_empty() || toleration.effect == taint.effect();
    let has_key = toleration.key.is_empty() || toleration.key == taint.key;
    let has_value = match toleration.operator.as_str() {
        "" | "Equal" => !toleration.key.is_empty() && toleration.value == taint.value(),
        _ => true,
    };
    has_effect && has_key && has_value
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(labels: &Value, taints: &Value) -> Node {
        let metadata = json!({ "name": "a", "labels": labels });
        serde_json::from_value(json!({ "metadata": metadata, "spec": { "taints": taints } }))
            .unwrap()
    }

    fn set(pod: &Value) -> DaemonSet {
        let spec = json!({ "template": { "spec": pod } });
        serde_json::from_value(json!({ "metadata": {}, "spec": spec })).unwrap()
    }

    fn affinity(terms: &Value) -> Value {
        let terms = json!({ "nodeSelectorTerms": terms });
        let required = json!({ "requiredDuringSchedulingIgnoredDuringExecution": terms });
        json!({ "affinity": { "nodeAffinity": required } })
    }

    fn runs(pod: &Value, node: &Node) -> bool {
        excludes(&set(pod), node).is_none()
    }

    #[test]
    fn a_node_selector_needs_all_its_labels() {
        let node = node(&json!({ "os": "linux", "pool": "x" }), &json!([]));
        for (selector, expected) in [
            (json!({}), true),
            (json!({ "os": "linux" }), true),
            (json!({ "os": "linux", "pool": "y" }), false),
            (json!({ "zone": "z" }), false),
        ] {
            assert_eq!(
                runs(&json!({ "nodeSelector": selector }), &node),
                expected,
                "{selector}"
            );
        }
    }

    #[test]
    fn one_term_of_the_affinity_must_hold_entirely() {
        fn requirement(key: &str, operator: &str, values: &[&str]) -> Value {
            json!({ "key": key, "operator": operator, "values": values })
        }
        let node = node(&json!({ "pool": "x", "cores": "8" }), &json!([]));
        let holds = requirement("pool", "In", &["w", "x"]);
        let fails = requirement("pool", "NotIn", &["x"]);
        for (requirements, expected) in [
            (vec![holds.clone()], true),
            (vec![holds.clone(), fails.clone()], false),
            (vec![requirement("pool", "Exists", &[])], true),
            (vec![requirement("pool", "DoesNotExist", &[])], false),
            (vec![requirement("cores", "Gt", &["4"])], true),
            (vec![requirement("cores", "Lt", &["8"])], false),
            (vec![requirement("none", "Gt", &["4"])], false),
            (vec![], false),
        ] {
            let term = json!({ "matchExpressions": requirements });
            let other = json!({ "matchFields": [requirement("metadata.name", "In", &["b"])] });
            assert_eq!(
                runs(&affinity(&json!([other, term])), &node),
                expected,
                "{term}"
            );
        }
        let this = json!([{ "matchFields": [requirement("metadata.name", "In", &["a"])] }]);
        assert!(runs(&affinity(&this), &node));
    }

    #[test]
    fn every_taint_that_keeps_pods_away_must_be_tolerated() {
        let taint = |key: &str, effect: &str| json!({ "key": key, "value": "v", "effect": effect });
        let (gpu, soft) = (taint("gpu", "NoSchedule"), taint("gpu", "PreferNoSchedule"));
        let cordoned = json!({
            "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule",
        });
        for (tolerations, taint, expected) in [
            (json!([]), &gpu, false),
            (json!([]), &soft, true),
            (json!([]), &cordoned, true),
            (json!([{ "operator": "Exists" }]), &gpu, true),
            (json!([{ "key": "gpu", "operator": "Exists" }]), &gpu, true),
            (json!([{ "key": "gpu", "value": "v" }]), &gpu, true),
            (json!([{ "key": "gpu", "value": "w" }]), &gpu, false),
            (
                json!([{ "operator": "Exists", "effect": "NoExecute" }]),
                &gpu,
                false,
            ),
        ] {
            let node = node(&json!({}), &json!([taint]));
            let pod = json!({ "tolerations": tolerations });
            assert_eq!(runs(&pod, &node), expected, "{tolerations} {taint}");
        }
    }
}

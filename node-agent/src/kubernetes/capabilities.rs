//! The capabilities of a pod's containers with which they can change or bypass their capture.

use agent_status::ContainerCapabilities;
use kubernetes::{Container, PodSpec};

/// See docs/verification.md for what each allows.
const RELEVANT: [&str; 3] = ["NET_ADMIN", "NET_RAW", "SYS_ADMIN"];

/// Lists the containers that have any, from what the pod asks for.
pub(super) fn of(spec: &PodSpec) -> Vec<ContainerCapabilities> {
    spec.all_containers().filter_map(of_container).collect()
}

fn of_container(container: &Container) -> Option<ContainerCapabilities> {
    let context = &container.security_context;
    let names = |list: &[String], name: &str| {
        let is_it = |n: &str| n.eq_ignore_ascii_case(name) || n.eq_ignore_ascii_case("ALL");
        list.iter()
            .any(|n| is_it(n.strip_prefix("CAP_").unwrap_or(n)))
    };
    let capabilities = &context.capabilities;
    let is_added = |name: &&str| names(&capabilities.add, name);
    let added: Vec<String> = match context.privileged {
        true => vec!["privileged".to_owned()],
        false => RELEVANT
            .into_iter()
            .filter(is_added)
            .map(str::to_owned)
            .collect(),
    };
    let is_default = !context.privileged && !names(&capabilities.drop, "NET_RAW");
    let default_net_raw = is_default && !names(&capabilities.add, "NET_RAW");
    (default_net_raw || !added.is_empty()).then(|| ContainerCapabilities {
        container: container.name.clone(),
        added,
        default_net_raw,
    })
}

#[cfg(test)]
mod tests {
    use kubernetes::Pod;
    use serde_json::{Value, json};

    use super::*;

    fn of_context(context: Value) -> String {
        let container = json!({ "name": "main", "securityContext": context });
        let pod = json!({ "metadata": {}, "spec": { "containers": [container] } });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let found: Vec<String> = of(&pod.spec).iter().map(ToString::to_string).collect();
        found.join("; ")
    }

    #[test]
    fn capabilities_are_those_that_the_specification_leaves() {
        for (context, expected) in [
            (json!({}), "main: NET_RAW by default"),
            (json!({ "privileged": true }), "main: privileged"),
            (json!({ "capabilities": { "drop": ["ALL"] } }), ""),
            (json!({ "capabilities": { "drop": ["net_raw"] } }), ""),
            (
                json!({ "capabilities": { "drop": ["ALL"], "add": ["CAP_NET_RAW"] } }),
                "main: NET_RAW",
            ),
            (
                json!({ "capabilities": { "add": ["NET_ADMIN", "SYS_TIME"] } }),
                "main: NET_ADMIN, NET_RAW by default",
            ),
            (
                json!({ "capabilities": { "add": ["ALL"] } }),
                "main: NET_ADMIN, NET_RAW, SYS_ADMIN",
            ),
        ] {
            assert_eq!(of_context(context.clone()), expected, "{context}");
        }
    }

    #[test]
    fn containers_of_every_kind_are_listed() {
        let container = |name| json!({ "name": name });
        let pod = json!({
            "metadata": {},
            "spec": {
                "containers": [container("main")],
                "initContainers": [container("init")],
                "ephemeralContainers": [container("debugger")],
            },
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let found = of(&pod.spec).into_iter().map(|c| c.container);
        assert_eq!(found.collect::<Vec<_>>(), ["main", "init", "debugger"]);
    }
}

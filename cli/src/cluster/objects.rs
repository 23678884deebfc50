//! API objects, with the fields that the checks need.

use std::collections::BTreeMap;

use serde_json::Value;

/// Desired and ready replicas of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ReplicaStatus {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) desired: u64,
    pub(crate) ready: u64,
}

impl ReplicaStatus {
    fn read(object: &Value, desired: u64, ready: &Value) -> Self {
        Self {
            namespace: text(&object["metadata"]["namespace"]),
            name: text(&object["metadata"]["name"]),
            desired,
            ready: ready.as_u64().unwrap_or_default(),
        }
    }

    /// NAMESPACE/NAME.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The environment of a container; variables with `valueFrom` are empty.
fn env(container: Option<&Value>) -> BTreeMap<String, String> {
    let env = container.and_then(|c| c["env"].as_array());
    let variable = |e: &Value| (text(&e["name"]), text(&e["value"]));
    env.into_iter().flatten().map(variable).collect()
}

/// A DaemonSet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DaemonSet {
    pub(crate) replicas: ReplicaStatus,
    /// Number of pods with the newest template.
    pub(crate) updated: u64,
    /// Commands of the containers.
    pub(crate) commands: Vec<String>,
    /// Environment of the first container; variables with `valueFrom` are empty.
    pub(crate) env: BTreeMap<String, String>,
}

impl DaemonSet {
    pub(crate) fn read(object: &Value) -> Self {
        let containers = object["spec"]["template"]["spec"]["containers"].as_array();
        let command = |c: &Value| Some(c["command"][0].as_str()?.to_owned());
        let status = &object["status"];
        let count = |key: &str| status[key].as_u64().unwrap_or_default();
        let desired = count("desiredNumberScheduled");
        Self {
            replicas: ReplicaStatus::read(object, desired, &status["numberReady"]),
            updated: count("updatedNumberScheduled"),
            commands: containers
                .into_iter()
                .flatten()
                .filter_map(command)
                .collect(),
            env: env(containers.and_then(|all| all.first())),
        }
    }

    /// Whether a container runs a program of this name.
    pub(crate) fn runs(&self, program: &str) -> bool {
        let is_program = |command: &String| command.rsplit('/').next() == Some(program);
        self.commands.iter().any(is_program)
    }

    /// Whether all desired pods have the newest template and are ready.
    pub(crate) fn is_rolled_out(&self) -> bool {
        let ReplicaStatus { desired, ready, .. } = self.replicas;
        desired > 0 && ready >= desired && self.updated >= desired
    }
}

/// A Deployment of istiod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Istiod {
    pub(crate) replicas: ReplicaStatus,
    pub(crate) image: String,
    /// Environment of the container; variables with `valueFrom` are empty.
    pub(crate) env: BTreeMap<String, String>,
}

impl Istiod {
    pub(crate) fn read(deployment: &Value) -> Self {
        let containers = deployment["spec"]["template"]["spec"]["containers"].as_array();
        let is_discovery = |c: &&Value| c["name"] == "discovery";
        let container =
            containers.and_then(|all| all.iter().find(is_discovery).or_else(|| all.first()));
        let desired = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        let ready = &deployment["status"]["readyReplicas"];
        Self {
            replicas: ReplicaStatus::read(deployment, desired, ready),
            image: container.map(|c| text(&c["image"])).unwrap_or_default(),
            env: env(container),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn replicas_images_and_environments_are_read() {
        let set = DaemonSet::read(&json!({
            "metadata": { "namespace": "n", "name": "ztunnel" },
            "spec": {
                "template": {
                    "spec": { "containers": [{ "command": ["/bin/underpass-proxy"] }, {}] },
                },
            },
            "status": {
                "desiredNumberScheduled": 3,
                "numberReady": 2,
                "updatedNumberScheduled": 3,
            },
        }));
        assert_eq!(
            (set.replicas.desired, set.replicas.ready, set.updated),
            (3, 2, 3)
        );
        assert!(set.runs("underpass-proxy") && !set.runs("proxy") && !set.is_rolled_out());
        let istiod = Istiod::read(&json!({
            "metadata": { "namespace": "n", "name": "istiod" },
            "spec": { "template": { "spec": { "containers": [{
                "name": "discovery", "image": "pilot:1", "env": [
                    { "name": "PILOT_ENABLE_AMBIENT", "value": "true" },
                    { "name": "POD_NAME", "valueFrom": {} },
                ],
            }] } } },
        }));
        let replicas = ReplicaStatus {
            namespace: "n".into(),
            name: "istiod".into(),
            desired: 1,
            ready: 0,
        };
        assert_eq!(istiod.replicas, replicas);
        assert_eq!(
            (
                istiod.image.as_str(),
                istiod.env["PILOT_ENABLE_AMBIENT"].as_str()
            ),
            ("pilot:1", "true")
        );
    }
}

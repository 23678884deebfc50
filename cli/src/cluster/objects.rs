//! Objects of the API with what is looked at of them.

use std::collections::BTreeMap;

use serde_json::Value;

/// Programs that should run, and how many do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) wanted: u64,
    pub(crate) ready: u64,
}

impl Running {
    fn read(object: &Value, wanted: u64, ready: &str) -> Self {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        let ready = object["status"][ready].as_u64().unwrap_or_default();
        Self { namespace: text("namespace"), name: text("name"), wanted, ready }
    }
}

/// A DaemonSet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DaemonSet {
    pub(crate) running: Running,
    /// How many pods are of its newest template.
    pub(crate) updated: u64,
    /// The commands of its containers.
    pub(crate) commands: Vec<String>,
}

impl DaemonSet {
    pub(crate) fn read(object: &Value) -> Self {
        let containers = object["spec"]["template"]["spec"]["containers"].as_array().into_iter().flatten();
        let status = &object["status"];
        Self {
            running: Running::read(
                object,
                status["desiredNumberScheduled"].as_u64().unwrap_or_default(),
                "numberReady",
            ),
            updated: status["updatedNumberScheduled"].as_u64().unwrap_or_default(),
            commands: containers.filter_map(|c| Some(c["command"][0].as_str()?.to_owned())).collect(),
        }
    }

    /// Whether one of its containers runs a program of this name.
    pub(crate) fn runs(&self, program: &str) -> bool {
        self.commands.iter().any(|command| command.rsplit('/').next() == Some(program))
    }

    /// Whether every node that should have a pod has a ready one of the newest template.
    pub(crate) fn is_rolled_out(&self) -> bool {
        let Running { wanted, ready, .. } = self.running;
        wanted > 0 && ready >= wanted && self.updated >= wanted
    }
}

/// A control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Istiod {
    pub(crate) running: Running,
    pub(crate) image: String,
    /// The environment of its container; variables from elsewhere are empty.
    pub(crate) env: BTreeMap<String, String>,
}

impl Istiod {
    pub(crate) fn read(deployment: &Value) -> Self {
        let containers = deployment["spec"]["template"]["spec"]["containers"].as_array();
        let is_discovery = |c: &&Value| c["name"] == "discovery";
        let container = containers.and_then(|all| all.iter().find(is_discovery).or_else(|| all.first()));
        let env = container.and_then(|c| c["env"].as_array()).into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        Self {
            running: Running::read(deployment, wanted, "readyReplicas"),
            image: container.map(|c| text(&c["image"])).unwrap_or_default(),
            env: env.map(|e| (text(&e["name"]), text(&e["value"]))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_how_many_there_are_and_what_they_run() {
        let set = DaemonSet::read(&json!({
            "metadata": { "namespace": "n", "name": "ztunnel" },
            "spec": { "template": { "spec": { "containers": [{ "command": ["/bin/underpass-proxy"] }, {}] } } },
            "status": { "desiredNumberScheduled": 3, "numberReady": 2, "updatedNumberScheduled": 3 },
        }));
        assert_eq!((set.running.wanted, set.running.ready, set.updated), (3, 2, 3));
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
        assert_eq!(istiod.running, Running { namespace: "n".into(), name: "istiod".into(), wanted: 1, ready: 0 });
        assert_eq!((istiod.image.as_str(), istiod.env["PILOT_ENABLE_AMBIENT"].as_str()), ("pilot:1", "true"));
    }
}

//! Pods of excluded namespaces. They start whatever else is wrong with the call, because the agent
//! and the proxy may themselves be such pods.

use cni_spec::{IMPLIED_VERSION, KubernetesArgs, unchanged_result};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// A call for a pod of an excluded namespace. Only the keys that its result needs are read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Excluded {
    #[serde(default)]
    cni_version: Value,
    #[serde(default)]
    exclude_namespaces: Value,
    #[serde(default)]
    prev_result: Option<Box<RawValue>>,
}

impl Excluded {
    /// Reads the call; `None` if the pod's namespace is not excluded, or if that is unknown because
    /// the configuration is not a JSON object.
    pub(crate) fn read(get: impl Fn(&str) -> Option<String>, input: &[u8]) -> Option<Self> {
        let namespace = KubernetesArgs::parse(&get("CNI_ARGS")?).namespace?;
        let call: Self = serde_json::from_slice(input).ok()?;
        let excluded = call.exclude_namespaces.as_array()?;
        excluded.contains(&Value::from(namespace)).then_some(call)
    }

    /// The result to print: the previous one. As the first plugin of a list, an empty result, so
    /// that the next plugin creates the interface.
    pub(crate) fn result(&self) -> String {
        let version = self.cni_version.as_str().filter(|v| !v.is_empty());
        let version = version.unwrap_or(IMPLIED_VERSION);
        unchanged_result(self.prev_result.as_deref(), version)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result(args: &str, config: &Value) -> Option<String> {
        let get = |name: &str| (name == "CNI_ARGS").then(|| args.to_owned());
        let excluded = Excluded::read(get, config.to_string().as_bytes())?;
        Some(excluded.result())
    }

    const SYSTEM: &str = "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns";

    #[test]
    fn excluded_pods_start_whatever_else_is_wrong() {
        let unusable = json!({
            "cniVersion": "9.9.9",
            "name": "-",
            "agentSocket": 7,
            "deadlineMs": "x",
            "excludeNamespaces": [1, "kube-system"],
            "prevResult": { "ips": [{ "address": "x" }] },
        });
        let expected = r#"{"cniVersion":"9.9.9","ips":[{"address":"x"}]}"#;
        assert_eq!(result(SYSTEM, &unusable).as_deref(), Some(expected));
        for version in [json!(null), json!(""), json!(3)] {
            let first = json!({ "cniVersion": version, "excludeNamespaces": ["kube-system"] });
            let expected = r#"{"cniVersion":"0.1.0"}"#;
            assert_eq!(result(SYSTEM, &first).as_deref(), Some(expected));
        }
    }

    #[test]
    fn other_pods_are_not_excluded() {
        let excluding = |namespaces| json!({ "excludeNamespaces": namespaces });
        let config = excluding(json!(["kube-system"]));
        for args in [
            "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a",
            "K8S_POD_NAMESPACE=",
            "",
        ] {
            assert_eq!(result(args, &config), None, "{args}");
        }
        for namespaces in [
            json!(null),
            json!([]),
            json!("kube-system"),
            json!([["kube-system"]]),
        ] {
            assert_eq!(result(SYSTEM, &excluding(namespaces)), None);
        }
        assert_eq!(result(SYSTEM, &json!([])), None);
    }
}

//! The node description that the proxy sends in discovery requests.

use std::collections::BTreeMap;

use api::discovery::Node;
use api::protobuf::{Kind, List, Struct, Value};

/// Prefix of environment variables with metadata, as set by Istio's charts.
const PREFIX: &str = "ISTIO_META_";
/// Prefix of environment variables with metadata in JSON.
const JSON_PREFIX: &str = "ISTIO_METAJSON_";

/// Version shown by `istioctl version` and `istioctl proxy-status`.
const VERSION: &str = concat!("underpass-", env!("CARGO_PKG_VERSION"));

/// The pod that this proxy runs in.
#[derive(Debug, Clone, Default)]
pub(crate) struct LocalPod<'a> {
    pub(crate) pod_name: &'a str,
    pub(crate) pod_namespace: &'a str,
    pub(crate) instance_ip: &'a str,
    pub(crate) node: &'a str,
}

/// Builds the node description, with metadata from environment `variables` and `proxy_metadata`.
///
/// # Errors
/// If the value of an `ISTIO_METAJSON_` variable is not JSON; names the variable.
pub(crate) fn node(
    pod: &LocalPod<'_>,
    variables: impl IntoIterator<Item = (String, String)>,
    proxy_metadata: &BTreeMap<String, String>,
) -> Result<Node, String> {
    let ip = if pod.instance_ip.is_empty() {
        "1.1.1.1"
    } else {
        pod.instance_ip
    };
    let (name, namespace) = (pod.pod_name, pod.pod_namespace);
    let mut fields = BTreeMap::new();
    for (key, value) in proxy_metadata {
        fields.insert(
            key.strip_prefix(PREFIX).unwrap_or(key).to_owned(),
            value.as_str().into(),
        );
    }
    for (variable, value) in variables {
        if let Some(key) = variable.strip_prefix(JSON_PREFIX) {
            let json = serde_json::from_str(&value)
                .map_err(|e| format!("{variable}: invalid JSON: {e}"))?;
            fields.insert(key.to_owned(), from_json(json));
        } else if let Some(key) = variable.strip_prefix(PREFIX) {
            fields.insert(key.to_owned(), value.as_str().into());
        }
    }
    // Not an Istio version: istiod disables features for old versions, but none for unparsable
    // ones.
    fields
        .entry("ISTIO_VERSION".to_owned())
        .or_insert_with(|| VERSION.into());
    for (key, value) in [
        ("NAME", name),
        ("NAMESPACE", namespace),
        ("INSTANCE_IPS", ip),
        ("NODE_NAME", pod.node),
    ] {
        fields.insert(key.to_owned(), value.into());
    }
    Ok(Node {
        id: format!("ztunnel~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(Struct { fields }),
    })
}

fn from_json(json: serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::Null(0),
        serde_json::Value::Bool(b) => Kind::Bool(b),
        serde_json::Value::Number(n) => Kind::Number(n.as_f64().unwrap_or_default()),
        serde_json::Value::String(s) => Kind::Text(s),
        serde_json::Value::Array(items) => Kind::List(List {
            values: items.into_iter().map(from_json).collect(),
        }),
        serde_json::Value::Object(members) => Kind::Struct(
            members
                .into_iter()
                .map(|(key, value)| (key, from_json(value)))
                .collect(),
        ),
    };
    kind.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_the_fields_that_istiod_expects() {
        let pod = LocalPod {
            pod_name: "ztunnel-x",
            pod_namespace: "istio-system",
            instance_ip: "10.0.0.9",
            node: "n1",
        };
        let variables = [
            ("ISTIO_META_CLUSTER_ID", "c1"),
            (
                "ISTIO_METAJSON_LABELS",
                r#"{"app":"ztunnel","n":[1,true,null]}"#,
            ),
            ("HOME", "/root"),
        ];
        let variables = variables.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let proxy_metadata = BTreeMap::from([("ISTIO_META_NETWORK".to_owned(), "net".to_owned())]);
        let node_description = node(&pod, variables, &proxy_metadata).unwrap();
        assert_eq!(
            node_description.id,
            "ztunnel~10.0.0.9~ztunnel-x.istio-system~istio-system.svc.cluster.local"
        );
        let fields = node_description.metadata.unwrap().fields;
        let names: Vec<_> = fields.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "CLUSTER_ID",
                "INSTANCE_IPS",
                "ISTIO_VERSION",
                "LABELS",
                "NAME",
                "NAMESPACE",
                "NETWORK",
                "NODE_NAME"
            ]
        );
        assert_eq!(fields["NODE_NAME"], "n1".into());
        assert!(matches!(
            &fields["LABELS"].kind,
            Some(Kind::Struct(s)) if s.fields["app"] == "ztunnel".into()
        ));
        assert!(
            node(&LocalPod::default(), [], &proxy_metadata)
                .unwrap()
                .id
                .starts_with("ztunnel~1.1.1.1~.")
        );
        let bad = [("ISTIO_METAJSON_X".to_owned(), "{".to_owned())];
        assert!(
            node(&pod, bad, &proxy_metadata)
                .unwrap_err()
                .starts_with("ISTIO_METAJSON_X: invalid JSON")
        );
    }
}

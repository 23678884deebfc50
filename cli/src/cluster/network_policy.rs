//! NetworkPolicies, with the fields that decide which connections reach a pod.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use kubernetes::{LabelMatch, Labels, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;

/// A NetworkPolicy.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct NetworkPolicy {
    pub(crate) metadata: ObjectMeta,
    spec: PolicySpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PolicySpec {
    pod_selector: LabelMatch,
    policy_types: Vec<String>,
    ingress: Vec<Rule>,
    egress: Vec<Rule>,
}

/// A rule that allows connections of some peers to some ports.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Rule {
    /// Who may connect, or be connected to; if empty, everyone.
    #[serde(alias = "to")]
    from: Vec<Peer>,
    /// If empty, every port.
    ports: Vec<Port>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Peer {
    pod_selector: Option<LabelMatch>,
    namespace_selector: Option<LabelMatch>,
    ip_block: Option<IpBlock>,
}

#[derive(Debug, Clone, Deserialize)]
struct IpBlock {
    cidr: IpNet,
    #[serde(default)]
    except: Vec<IpNet>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    protocol: Option<String>,
    /// A number, or the name of a container's port; `None` for every port.
    port: Option<Value>,
    end_port: Option<u16>,
}

/// The direction of connections that a policy restricts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

/// A pod, as far as the selectors of policies see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PolicyPod<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) labels: &'a Labels,
}

impl NetworkPolicy {
    /// Whether it restricts the connections of a pod in a direction to what its rules allow.
    pub(crate) fn isolates(&self, pod: PolicyPod<'_>, direction: Direction) -> bool {
        let types = &self.spec.policy_types;
        let restricts = match direction {
            // As the API server completes a policy without types.
            Direction::Ingress if types.is_empty() => true,
            Direction::Egress if types.is_empty() => !self.spec.egress.is_empty(),
            Direction::Ingress => types.iter().any(|t| t == "Ingress"),
            Direction::Egress => types.iter().any(|t| t == "Egress"),
        };
        restricts && self.namespace() == pod.namespace && self.spec.pod_selector.matches(pod.labels)
    }

    /// The rules of a direction.
    pub(crate) fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.spec.ingress,
            Direction::Egress => &self.spec.egress,
        }
    }

    pub(crate) fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// NAMESPACE/NAME.
    pub(crate) fn full_name(&self) -> String {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        format!("{}/{name}", self.namespace())
    }
}

impl Rule {
    /// Whether it names this pod as a peer, in a policy of a namespace. Blocks of addresses name
    /// pods only if they contain every address: plugins differ in which addresses they compare.
    pub(crate) fn names_pod(
        &self,
        policy_namespace: &str,
        pod: PolicyPod<'_>,
        namespaces: &BTreeMap<String, Labels>,
    ) -> bool {
        let no_labels = Labels::new();
        let of_namespace = namespaces.get(pod.namespace).unwrap_or(&no_labels);
        let is_named = |peer: &Peer| {
            if let Some(block) = &peer.ip_block {
                return block.cidr.prefix_len() == 0;
            }
            let in_namespace = match &peer.namespace_selector {
                Some(selector) => selector.matches(of_namespace),
                None => pod.namespace == policy_namespace,
            };
            let selector = peer.pod_selector.as_ref();
            in_namespace && selector.is_none_or(|selector| selector.matches(pod.labels))
        };
        self.from.is_empty() || self.from.iter().any(is_named)
    }

    /// Whether it names this address, which is not a pod's.
    pub(crate) fn names_address(&self, address: IpAddr) -> bool {
        let is_named = |block: &IpBlock| {
            let is_excepted = block.except.iter().any(|e| e.contains(&address));
            block.cidr.contains(&address) && !is_excepted
        };
        let mut blocks = self.from.iter().filter_map(|peer| peer.ip_block.as_ref());
        self.from.is_empty() || blocks.any(is_named)
    }

    /// Whether it allows TCP to a port, which has a name if a container declares one.
    pub(crate) fn allows_port(&self, number: u16, name: Option<&str>) -> bool {
        let is_allowed = |port: &Port| match &port.port {
            None => true,
            Some(Value::String(of)) => name == Some(of),
            Some(first) => {
                let first = first.as_u64().and_then(|p| u16::try_from(p).ok());
                first
                    .is_some_and(|first| (first..=port.end_port.unwrap_or(first)).contains(&number))
            }
        };
        self.ports.is_empty() || self.tcp_ports().any(is_allowed)
    }

    /// The first TCP port that it allows besides one, in words.
    pub(crate) fn port_besides(&self, number: u16) -> Option<String> {
        if self.ports.is_empty() {
            return Some("every port".to_owned());
        }
        let mut ports = self.tcp_ports();
        ports.find_map(|port| match &port.port {
            None => Some("every port".to_owned()),
            Some(Value::String(name)) => Some(format!("port {name}")),
            Some(first) if *first == number && port.end_port.is_none() => None,
            Some(first) => Some(format!("port {first}")),
        })
    }

    fn tcp_ports(&self) -> impl Iterator<Item = &Port> {
        let is_tcp = |port: &&Port| matches!(port.protocol.as_deref(), None | Some("TCP"));
        self.ports.iter().filter(is_tcp)
    }
}

//! The nodes and pods of a sandbox, derived from the mesh.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use error_code::sandbox as codes;
use mesh::Mesh;

use crate::failure::failure;

/// The default mesh.
pub(crate) const DEFAULT_MESH: &str = r#"# The mesh of this sandbox.
# Agents and proxies reload it when it changes.
namespaces:
  - name: default
    labels: { istio.io/dataplane-mode: ambient }
  - name: outside
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node-1,
      workloadIps: [10.77.1.2, "fd77:1::2"] }
  - { name: neighbour, namespace: default, serviceAccount: neighbour, node: node-1,
      workloadIps: [10.77.1.3, "fd77:1::3"] }
  - { name: outsider, namespace: outside, serviceAccount: outsider, node: node-1,
      workloadIps: [10.77.1.4, "fd77:1::4"] }
  - name: server
    namespace: default
    serviceAccount: server
    node: node-2
    workloadIps: [10.77.2.2, "fd77:2::2"]
    services:
      default/server.default.svc.cluster.local: { 80: 8080 }
services:
  - name: server
    namespace: default
    hostname: server.default.svc.cluster.local
    vips: [/10.96.0.10, "/fd96::10"]
    ports: { 80: 8080 }
policies: []
"#;

/// A node of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SandboxNode {
    pub(crate) name: String,
    /// The addresses on the fabric, IPv4 and IPv6.
    pub(crate) addresses: [IpAddr; 2],
}

/// A pod of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SandboxPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: String,
    pub(crate) ips: Vec<IpAddr>,
}

/// Derives the nodes, sorted by name, and the pods: all workloads with a node.
pub(crate) fn plan(mesh: &Mesh) -> anyhow::Result<(Vec<SandboxNode>, Vec<SandboxPod>)> {
    let mut names: Vec<&str> = Vec::new();
    let mut pods = Vec::new();
    for w in mesh
        .workloads()
        .filter(|w| !w.node.is_empty() && !w.host_network)
    {
        if w.workload_ips.is_empty() {
            let detail = format!(
                "workload {} on node {} has no address",
                w.namespaced_name(),
                w.node
            );
            return Err(failure(&codes::MESH, detail));
        }
        if !names.contains(&w.node.as_str()) {
            names.push(&w.node);
        }
        pods.push(SandboxPod {
            namespace: w.namespace.to_string(),
            name: w.name.to_string(),
            uid: w.uid.to_string(),
            node: w.node.to_string(),
            ips: w.workload_ips.clone(),
        });
    }
    if pods.is_empty() {
        return Err(failure(&codes::MESH, "no workload has a node"));
    }
    names.sort_unstable();
    let node = |(index, name): (u8, &&str)| SandboxNode {
        name: (*name).to_owned(),
        addresses: [
            Ipv4Addr::new(10, 77, 0, index).into(),
            Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, index.into()).into(),
        ],
    };
    Ok(((1..=250).zip(&names).map(node).collect(), pods))
}

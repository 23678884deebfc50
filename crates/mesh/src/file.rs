//! The mesh file: the shape of ztunnel's local configuration, with namespaces and labels for the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use error_code::{ErrorCode, mesh as codes};
use serde::Deserialize;

use crate::enrol::belongs;
use crate::identity::DEFAULT_TRUST_DOMAIN;
use crate::policy::Policy;
use crate::service::{LoadBalancer, NetworkAddress, Service};
use crate::snapshot::{Mesh, Namespace};
use crate::workload::{HealthStatus, Locality, Protocol, Workload, WorkloadType};

/// Why a mesh file is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeshFileError {
    /// Not YAML of the right shape. The text names line, column and field.
    #[error("{0}")]
    Shape(String),
    /// Well formed, but it contradicts itself.
    #[error("{0}")]
    Contradiction(String),
}

impl MeshFileError {
    /// The code under which users find this in the documentation.
    pub fn code(&self) -> &'static ErrorCode {
        match self {
            Self::Shape(_) => &codes::SHAPE,
            Self::Contradiction(_) => &codes::CONTRADICTION,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default)]
    namespaces: Vec<Namespace>,
    #[serde(default)]
    workloads: Vec<FileWorkload>,
    #[serde(default)]
    services: Vec<FileService>,
    #[serde(default)]
    policies: Vec<Policy>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileWorkload {
    name: String,
    namespace: String,
    #[serde(default)]
    workload_ips: Vec<IpAddr>,
    uid: Option<String>,
    protocol: Option<Protocol>,
    trust_domain: Option<String>,
    service_account: Option<String>,
    #[serde(default)]
    network: String,
    #[serde(default)]
    node: String,
    workload_name: Option<String>,
    #[serde(default)]
    workload_type: WorkloadType,
    canonical_name: Option<String>,
    canonical_revision: Option<String>,
    cluster_id: Option<String>,
    #[serde(default)]
    locality: Locality,
    #[serde(default)]
    authorization_policies: Vec<String>,
    #[serde(default)]
    status: HealthStatus,
    capacity: Option<u32>,
    #[serde(default)]
    services: BTreeMap<String, BTreeMap<u16, u16>>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    host_network: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileService {
    name: String,
    namespace: String,
    hostname: Option<String>,
    #[serde(default)]
    vips: Vec<NetworkAddress>,
    #[serde(default)]
    ports: BTreeMap<u16, u16>,
    #[serde(default)]
    subject_alt_names: Vec<String>,
    #[serde(default)]
    load_balancer: LoadBalancer,
}

/// Reads a mesh file.
///
/// # Errors
/// [`MeshFileError`], which names the line and the field.
pub fn parse_mesh_file(text: &str) -> Result<Mesh, MeshFileError> {
    let file: File = serde_saphyr::from_str(text).map_err(|e| MeshFileError::Shape(e.to_string()))?;
    check(&file)?;
    let labels = |namespace: &str| file.namespaces.iter().find(|n| n.name == namespace).map(|n| &n.labels);
    let workloads: Vec<Workload> = file
        .workloads
        .into_iter()
        .map(|w| {
            let enrolled = belongs(labels(&w.namespace), &w.labels, &w.annotations, w.host_network).outcome;
            workload(w, enrolled)
        })
        .collect();
    Ok(Mesh::new(workloads, file.services.into_iter().map(service), file.policies, file.namespaces))
}

fn workload(w: FileWorkload, enrolled: bool) -> Workload {
    let or = |value: Option<String>, default: &str| value.unwrap_or_else(|| default.to_owned());
    Workload {
        uid: w.uid.unwrap_or_else(|| format!("{}/{}", w.namespace, w.name)),
        protocol: w.protocol.unwrap_or(if enrolled { Protocol::Hbone } else { Protocol::Tcp }),
        trust_domain: or(w.trust_domain.filter(|t| !t.is_empty()), DEFAULT_TRUST_DOMAIN),
        service_account: or(w.service_account, "default"),
        workload_name: or(w.workload_name, &w.name),
        canonical_name: or(w.canonical_name, &w.name),
        canonical_revision: or(w.canonical_revision, "latest"),
        cluster_id: or(w.cluster_id, "Kubernetes"),
        capacity: w.capacity.unwrap_or(1),
        name: w.name,
        namespace: w.namespace,
        workload_ips: w.workload_ips,
        network: w.network,
        node: w.node,
        workload_type: w.workload_type,
        locality: w.locality,
        authorization_policies: w.authorization_policies,
        status: w.status,
        services: w.services,
        labels: w.labels,
        annotations: w.annotations,
        host_network: w.host_network,
    }
}

fn service(s: FileService) -> Service {
    Service {
        hostname: s.hostname.unwrap_or_else(|| format!("{}.{}.svc.cluster.local", s.name, s.namespace)),
        name: s.name,
        namespace: s.namespace,
        vips: s.vips,
        ports: s.ports,
        subject_alt_names: s.subject_alt_names,
        load_balancer: s.load_balancer,
    }
}

/// Finds what one entry says against another. A policy that is referred to and missing is no error: it denies.
fn check(file: &File) -> Result<(), MeshFileError> {
    let mut names = BTreeSet::new();
    let mut addresses: BTreeMap<(&str, IpAddr), String> = BTreeMap::new();
    let error = |text: String| Err(MeshFileError::Contradiction(text));
    let services: BTreeSet<String> = file
        .services
        .iter()
        .map(|s| {
            let hostname =
                s.hostname.clone().unwrap_or_else(|| format!("{}.{}.svc.cluster.local", s.name, s.namespace));
            format!("{}/{hostname}", s.namespace)
        })
        .collect();
    for w in &file.workloads {
        let name = format!("{}/{}", w.namespace, w.name);
        if !names.insert(w.uid.clone().unwrap_or_else(|| name.clone())) {
            return error(format!("workloads: {name} is there twice"));
        }
        for ip in w.workload_ips.iter().filter(|_| !w.host_network) {
            if let Some(other) = addresses.insert((&w.network, *ip), name.clone()) {
                return error(format!("workloads: {other} and {name} both have the address {ip}"));
            }
        }
        if let Some(key) = w.services.keys().find(|k| !services.contains(*k)) {
            return error(format!("workloads: {name} belongs to service {key}, which is not in services"));
        }
    }
    Ok(())
}

//! The mesh file: ztunnel's local configuration format, extended by namespaces and labels for the
//! agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use error_code::{ErrorCode, mesh as codes};
use serde::Deserialize;

use crate::enrol::belongs_to_mesh;
use crate::gateway::{ApplicationTunnel, GatewayAddress, Vip, WeightedWaypoint};
use crate::identity::DEFAULT_TRUST_DOMAIN;
use crate::membership::Memberships;
use crate::policy::Policy;
use crate::ports::Ports;
use crate::service::{IpFamilies, LoadBalancer, Service, Visibility};
use crate::snapshot::{Mesh, Namespace};
use crate::text::Text;
use crate::workload::{HealthStatus, Locality, Protocol, Workload, WorkloadType};

/// Why a mesh file is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeshFileError {
    /// The file is not valid YAML or has unexpected fields or values. The message names line,
    /// column and field.
    #[error("{0}")]
    Malformed(String),
    /// The file is well-formed but inconsistent.
    #[error("{0}")]
    Contradiction(String),
}

impl MeshFileError {
    /// The documented error code.
    pub fn code(&self) -> &'static ErrorCode {
        match self {
            Self::Malformed(_) => &codes::MALFORMED,
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
    name: Text,
    namespace: Text,
    #[serde(default)]
    workload_ips: Vec<IpAddr>,
    #[serde(default)]
    hostname: Text,
    uid: Option<Text>,
    protocol: Option<Protocol>,
    trust_domain: Option<Text>,
    service_account: Option<Text>,
    #[serde(default)]
    network: Text,
    waypoint: Option<GatewayAddress>,
    network_gateway: Option<GatewayAddress>,
    #[serde(default)]
    node: Text,
    #[serde(default)]
    native_tunnel: bool,
    application_tunnel: Option<ApplicationTunnel>,
    workload_name: Option<Text>,
    #[serde(default)]
    workload_type: WorkloadType,
    canonical_name: Option<Text>,
    canonical_revision: Option<Text>,
    cluster_id: Option<Text>,
    #[serde(default)]
    locality: Locality,
    #[serde(default)]
    authorization_policies: Vec<Text>,
    #[serde(default)]
    status: HealthStatus,
    capacity: Option<u32>,
    #[serde(default)]
    services: Memberships,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    host_network: bool,
    #[serde(default)]
    network_mode: NetworkMode,
}

/// ztunnel's equivalent of `hostNetwork`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
enum NetworkMode {
    #[default]
    Standard,
    HostNetwork,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileService {
    name: Text,
    namespace: Text,
    hostname: Option<Text>,
    #[serde(default)]
    vips: Vec<Vip>,
    #[serde(default)]
    ports: Ports,
    #[serde(default)]
    subject_alt_names: Vec<Text>,
    waypoint: Option<GatewayAddress>,
    #[serde(default)]
    weighted_waypoints: Vec<WeightedWaypoint>,
    #[serde(default)]
    ingress_use_waypoint: bool,
    #[serde(default)]
    load_balancer: LoadBalancer,
    ip_families: Option<IpFamilies>,
    #[serde(default)]
    canonical: bool,
    #[serde(default)]
    visibility: Visibility,
}

/// Parses a mesh file.
///
/// # Errors
/// Returns [`MeshFileError`], whose message names the line and the field.
pub fn parse_mesh_file(text: &str) -> Result<Mesh, MeshFileError> {
    let file: File =
        serde_saphyr::from_str(text).map_err(|e| MeshFileError::Malformed(e.to_string()))?;
    check(&file)?;
    let labels = |namespace: &str| {
        file.namespaces
            .iter()
            .find(|n| n.name == namespace)
            .map(|n| &n.labels)
    };
    let workloads: Vec<Workload> = file
        .workloads
        .into_iter()
        .map(|w| {
            let enrolled = belongs_to_mesh(
                labels(&w.namespace),
                &w.labels,
                &w.annotations,
                w.host_network,
            )
            .outcome;
            workload(w, enrolled)
        })
        .collect();
    Ok(Mesh::new(
        workloads,
        file.services.into_iter().map(service),
        file.policies,
        file.namespaces,
    ))
}

fn workload(w: FileWorkload, enrolled: bool) -> Workload {
    let or = |value: Option<Text>, default: &str| value.unwrap_or_else(|| default.into());
    Workload {
        uid: w
            .uid
            .unwrap_or_else(|| format!("{}/{}", w.namespace, w.name).into()),
        protocol: w.protocol.unwrap_or(if enrolled {
            Protocol::Hbone
        } else {
            Protocol::Tcp
        }),
        trust_domain: or(
            w.trust_domain.filter(|t| !t.is_empty()),
            DEFAULT_TRUST_DOMAIN,
        ),
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
        host_network: w.host_network || w.network_mode == NetworkMode::HostNetwork,
        hostname: w.hostname,
        waypoint: w.waypoint,
        network_gateway: w.network_gateway,
        native_tunnel: w.native_tunnel,
        application_tunnel: w.application_tunnel,
    }
}

impl FileService {
    /// Its host name; by default, that of a Kubernetes service.
    fn hostname(&self) -> Text {
        self.hostname
            .clone()
            .unwrap_or_else(|| format!("{}.{}.svc.cluster.local", self.name, self.namespace).into())
    }
}

fn service(s: FileService) -> Service {
    Service {
        hostname: s.hostname(),
        name: s.name,
        namespace: s.namespace,
        vips: s.vips,
        ports: s.ports,
        subject_alt_names: s.subject_alt_names,
        waypoint: s.waypoint,
        weighted_waypoints: s.weighted_waypoints,
        ingress_use_waypoint: s.ingress_use_waypoint,
        load_balancer: s.load_balancer,
        ip_families: s.ip_families,
        canonical: s.canonical,
        visibility: s.visibility,
    }
}

/// Rejects entries that contradict each other. A reference to a missing policy is not an error: the
/// workload then denies all connections.
fn check(file: &File) -> Result<(), MeshFileError> {
    let mut names = BTreeSet::new();
    let mut addresses: BTreeMap<(&str, IpAddr), String> = BTreeMap::new();
    let error = |text: String| Err(MeshFileError::Contradiction(text));
    let services: BTreeSet<String> = file
        .services
        .iter()
        .map(|s| format!("{}/{}", s.namespace, s.hostname()))
        .collect();
    for w in &file.workloads {
        let name = format!("{}/{}", w.namespace, w.name);
        if !names.insert(w.uid.clone().unwrap_or_else(|| name.clone().into())) {
            return error(format!("workloads: duplicate workload {name}"));
        }
        let own_addresses = if w.host_network {
            &[]
        } else {
            &w.workload_ips[..]
        };
        for ip in own_addresses {
            if let Some(other) = addresses.insert((&w.network, *ip), name.clone()) {
                return error(format!(
                    "workloads: {other} and {name} both have the address {ip}"
                ));
            }
        }
        if let Some(key) = w.services.keys().find(|k| !services.contains(k.as_str())) {
            return error(format!(
                "workloads: {name} belongs to service {key}, which is not in services"
            ));
        }
    }
    Ok(())
}

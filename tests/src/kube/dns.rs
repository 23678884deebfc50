//! The cluster's DNS: CoreDNS as a program beside the API server, behind a service address.

use std::fs;

use serde_json::json;

use super::configuration::DNS;
use crate::cluster::daemon::Daemon;
use crate::cluster::fabric::{CONTROL_PLANE, host_ips};
use crate::cluster::{Kubernetes, binary};

/// Starts CoreDNS.
pub fn start(kubernetes: &Kubernetes) -> Daemon {
    let families = kubernetes.fabric.families;
    let config = kubernetes.kubeconfig("coredns", "admin");
    let file = kubernetes.folder().join("Corefile");
    let zones = "cluster.local in-addr.arpa ip6.arpa";
    let content = format!(
        ".:53 {{\n  kubernetes {zones} {{\n    kubeconfig {config}\n    ttl 5\n  }}\n  \
         errors\n}}\n"
    );
    fs::write(&file, content).unwrap();
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "kube-dns", "namespace": "kube-system" },
        "spec": { "clusterIP": families.first(DNS), "ports": [
            { "name": "dns", "port": 53, "protocol": "UDP" },
            { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
        ] },
    });
    // CoreDNS is not a pod, so no controller creates the endpoints of its service.
    let endpoints = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns-by-hand",
            "namespace": "kube-system",
            "labels": {
                "kubernetes.io/service-name": "kube-dns",
                "endpointslice.kubernetes.io/managed-by": "tests",
            },
        },
        "addressType": families.first_name(),
        "endpoints": [{
            "addresses": [families.first(host_ips(CONTROL_PLANE))],
            "conditions": { "ready": true, "serving": true },
        }],
        "ports": [
            { "name": "dns", "port": 53, "protocol": "UDP" },
            { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
        ],
    });
    [service, endpoints]
        .iter()
        .for_each(|object| drop(kubernetes.api.apply(object).unwrap()));
    let arguments = ["-conf".to_owned(), file.to_str().unwrap().to_owned()];
    Daemon::start(
        &binary("coredns"),
        &kubernetes.netns,
        kubernetes.folder(),
        &arguments,
        &[],
    )
}

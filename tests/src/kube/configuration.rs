//! The configuration files of a node's programs, in its folder.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::images::PAUSE;
use super::variant::KubeProxyMode;
use crate::cluster::Families;
use crate::cluster::fabric::{CONTROL_PLANE, host_ips};

/// The address of the cluster's DNS, a service, in each family.
pub const DNS: [&str; 2] = ["10.96.0.53", "fd00:96::53"];

/// Writes the files. `cgroup` is the parent of all the node's processes, `keys` the folder of its
/// keys.
pub fn write(folder: &Path, number: u8, families: Families, cgroup: &str, keys: &Path) {
    let file = |name: &str, content: String| fs::write(folder.join(name), content).unwrap();
    let name = super::node_name(number);
    file("network.conflist", network(number, families).to_string());
    file(
        "resolv.conf",
        format!("nameserver {}\n", families.first(host_ips(CONTROL_PLANE))),
    );
    file("containerd.toml", containerd());
    file(
        "kubelet.yaml",
        kubelet(folder, &name, families, cgroup, keys).to_string(),
    );
    file("kube-proxy.yaml", kube_proxy(folder, &name).to_string());
}

/// A bridge network of the reference plugins.
fn network(number: u8, families: Families) -> Value {
    let ranges = [
        format!("10.201.{number}.0/24"),
        format!("fd00:201:0:{number}::/64"),
    ];
    json!({
        "cniVersion": "1.0.0",
        "name": "network",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": families.of(ranges.map(|subnet| [json!({ "subnet": subnet })])),
                    "routes": families.of(["0.0.0.0/0", "::/0"].map(|to| json!({ "dst": to }))),
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

/// Settings that differ from the default, for a machine without systemd and CAP_SYS_RESOURCE.
fn containerd() -> String {
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.internal.v1.opt",
]
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{PAUSE}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"
"#
    )
}

fn kubelet(folder: &Path, name: &str, families: Families, cgroup: &str, keys: &Path) -> Value {
    let key = |name: String| keys.join(name).to_str().unwrap().to_owned();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "::",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": key("ca.crt".to_owned()) },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": key(format!("kubelet-{name}.crt")),
        "tlsPrivateKeyFile": key(format!("kubelet-{name}.key")),
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": true, // the agent finds the namespaces of running pods by control group
        "cgroupRoot": cgroup,
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "resolvConf": folder.join("resolv.conf"),
        "clusterDNS": [families.first(DNS)],
        "clusterDomain": "cluster.local",
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "0%",
            "imagefs.available": "0%",
            "nodefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "maxPods": 110,
    })
}

fn kube_proxy(folder: &Path, name: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": KubeProxyMode::chosen().name(),
        "hostnameOverride": name,
        "clientConnection": { "kubeconfig": folder.join("kube-proxy.kubeconfig") },
        // These are settings of the whole machine; zero leaves them unchanged.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    })
}

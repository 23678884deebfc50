//! Traces of Underpass on a node, and the processes of pods.

use std::fs;

use super::{Kube, KubeNode};

impl Kube {
    /// Everything of Underpass on a node: files, entries in the runtime's configuration, and tables
    /// in the network namespaces of the node and its pods.
    pub fn leftovers_on(&self, node: &KubeNode) -> Vec<String> {
        let mut left = Vec::new();
        for file in [
            "/opt/cni/bin/underpass-cni",
            "/run/underpass/agent.sock",
            "/var/lib/underpass/pods.json",
        ] {
            left.extend(
                node.path(file)
                    .exists()
                    .then(|| format!("{}: {file}", node.name)),
            );
        }
        let configuration = fs::read_dir(node.path("/etc/cni/net.d"))
            .into_iter()
            .flatten()
            .flatten();
        for file in configuration.map(|e| e.path()) {
            let text = fs::read_to_string(&file).unwrap_or_default();
            left.extend(
                text.contains("underpass")
                    .then(|| format!("{}: {}", node.name, file.display())),
            );
        }
        let own = node.path("/proc/1/ns/net");
        let namespaces = fs::read_dir(node.path("/var/run/netns"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path());
        for place in namespaces.chain([own]) {
            let Ok(netns) = netns::NetNs::open(&place) else {
                continue;
            };
            let tables = nft_tables(&netns);
            left.extend(
                tables
                    .contains("underpass")
                    .then(|| format!("{}: table in {}", node.name, place.display())),
            );
        }
        left
    }

    /// The process id of a pod's application in the node's pid namespace.
    pub fn process_of(&self, namespace: &str, name: &str) -> u32 {
        let pod = self.pod(namespace, name).unwrap();
        let node = self.node(pod["spec"]["nodeName"].as_str().unwrap());
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let processes = fs::read_dir(node.path("/proc")).unwrap().flatten();
        let numbers = processes.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let is = |pid: &u32| {
            let read = |file: &str| {
                fs::read_to_string(node.path(&format!("/proc/{pid}/{file}"))).unwrap_or_default()
            };
            read("cgroup").contains(uid) && read("cmdline").contains("serve")
        };
        numbers
            .into_iter()
            .find(is)
            .expect("the pod's process runs")
    }
}

#[allow(clippy::disallowed_types)] // nft
fn nft_tables(netns: &netns::NetNs) -> String {
    let mut list = std::process::Command::new("nft");
    netns::process::in_netns(list.args(["list", "tables"]), netns).unwrap();
    list.output()
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default()
}

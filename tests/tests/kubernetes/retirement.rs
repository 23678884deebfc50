//! An agent that ends leaves its node as it is for the next one, unless Underpass is being uninstalled.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use underpass_tests::binaries::binary;
use underpass_tests::cluster::istiod::NAMESPACE;
use underpass_tests::cluster::{AgentNode, Cluster};
use underpass_tests::machine::ended;
use underpass_tests::sandbox::until;

use super::scene::{AMBIENT, added, annotation, await_annotation, cluster_or_skip, in_place};

const DAEMON_SET: &str = "retiring-agents";

/// The DaemonSet, which no node has a pod of; and the right to ask for it, which the chart gives.
fn prepare(cluster: &Cluster) {
    let labels = json!({ "app": DAEMON_SET });
    let containers = json!([{ "name": "agent", "image": "localhost/none" }]);
    let pod = json!({ "nodeSelector": { "none": "such" }, "containers": containers });
    cluster.apply(&json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": DAEMON_SET, "namespace": NAMESPACE },
        "spec": { "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels }, "spec": pod } },
    }));
    let (api, metadata) = ("rbac.authorization.k8s.io", json!({ "name": DAEMON_SET, "namespace": NAMESPACE }));
    let of = |kind: &str| json!({ "apiVersion": format!("{api}/v1"), "kind": kind, "metadata": metadata });
    let mut role = of("Role");
    role["rules"] = json!([{
        "apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": [DAEMON_SET], "verbs": ["get"],
    }]);
    let mut binding = of("RoleBinding");
    binding["roleRef"] = json!({ "apiGroup": api, "kind": "Role", "name": DAEMON_SET });
    binding["subjects"] = json!([{ "kind": "ServiceAccount", "name": "underpass-agent", "namespace": NAMESPACE }]);
    cluster.apply(&role);
    cluster.apply(&binding);
}

/// Tells the agent to end, and waits until it has.
fn end(node: &mut AgentNode, agent: u32) {
    kill(Pid::from_raw(agent.cast_signed()), Signal::SIGTERM).unwrap();
    until("the agent has ended", || ended(agent).then_some(()));
    node.processes.kill(agent);
}

#[test]
fn an_agent_takes_the_plugin_off_its_node_only_when_its_daemonset_is_going() {
    let cluster = cluster_or_skip!("an_agent_takes_the_plugin_off_its_node_only_when_its_daemonset_is_going");
    cluster.namespace("retiring", AMBIENT);
    prepare(&cluster);
    let mut node = AgentNode::new(&cluster, "retiring");
    let [conf, bin] = ["net.d", "bin"].map(|f| node.processes.file(f).to_str().unwrap().to_owned());
    let list = format!("{conf}/10-main.conflist");
    let main = json!({ "cniVersion": "1.0.0", "name": "main", "plugins": [{ "type": "ptp" }] }).to_string();
    fs::create_dir_all(&conf).unwrap();
    fs::write(&list, &main).unwrap();
    let is_chained = || fs::read_to_string(&list).unwrap().contains("underpass-cni");
    let arguments = [
        "--install-cni",
        "--conf-dir",
        &conf,
        "--bin-dir",
        &bin,
        "--daemonset",
        DAEMON_SET,
        "--pod-namespace",
        NAMESPACE,
    ];

    let agent = node.start_agent(&arguments);
    node.start_proxy();
    node.await_ready();
    let pod = cluster.pod(&node.place, "retiring", "app");
    added(&node, &pod);
    await_annotation(&cluster, &pod, &json!("enabled"));
    end(&mut node, agent);
    assert!(is_chained() && in_place(&pod), "the DaemonSet is there: another agent comes");
    assert_eq!(annotation(&cluster, &pod), json!("enabled"));

    let agent = node.start_agent(&arguments);
    node.cut_off(true);
    end(&mut node, agent);
    assert!(is_chained() && in_place(&pod), "it is not known whether another agent comes");
    node.cut_off(false);

    let agent = node.start_agent(&arguments);
    node.await_ready();
    node.await_verified(&pod);
    retire(&cluster, true);
    end(&mut node, agent);
    assert_eq!(fs::read_to_string(&list).unwrap(), main);
    assert!(!in_place(&pod));
    let left = [format!("{bin}/underpass-cni"), node.processes.file("state/pods.json").to_str().unwrap().to_owned()];
    assert!(left.iter().all(|f| !Path::new(f).exists()) && !node.processes.agent_socket().exists());
    assert_eq!(annotation(&cluster, &pod), Value::Null);
    retire(&cluster, true); // what is gone need not be deleted
}

#[test]
fn retiring_without_the_right_to_is_an_error() {
    let cluster = cluster_or_skip!("retiring_without_the_right_to_is_an_error");
    retire(&cluster, false);
}

/// As the chart's Job does before an uninstallation.
fn retire(cluster: &Cluster, by_admin: bool) {
    let token = if by_admin { "admin" } else { "nobody" };
    let mut command = Command::new(binary("underpass-agent"));
    command.args(["retire", "--daemonset", DAEMON_SET, "--namespace", NAMESPACE, "--within", "20"]);
    command.arg("--kubeconfig").arg(cluster.kubernetes.kubeconfig(&format!("retiring-{token}"), token));
    let output = netns::process::in_netns(&mut command, &cluster.kubernetes.netns).unwrap().output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.success(), by_admin, "{error}");
    if !by_admin {
        assert!(error.contains("cannot be deleted"), "{error}");
    }
}

//! A stopping agent leaves its node unchanged for the next one, unless none will follow.

use std::fs;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use underpass_tests::binaries::binary;
use underpass_tests::cluster::istiod::NAMESPACE;
use underpass_tests::cluster::{AgentNode, Cluster, ClusterPod};
use underpass_tests::machine::has_exited;
use underpass_tests::sandbox::until;

use super::fixture::{AMBIENT, add_pod, annotation, await_annotation, cluster_or_skip, has_rules};

const DAEMON_SET: &str = "retiring-agents";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// A node whose agent has chained the plugin and enrolled a pod.
struct RetiringNode<'a> {
    cluster: &'a Cluster,
    node: AgentNode,
    pod: ClusterPod,
    agent: u32,
    /// Namespace of the agent and its DaemonSet.
    home: String,
    daemon_set: String,
}

impl<'a> RetiringNode<'a> {
    /// Starts a node of this name, which is also its pods' namespace.
    fn start(cluster: &'a Cluster, name: &str, home: &str, daemon_set: &str) -> Self {
        cluster.namespace(name, AMBIENT);
        cluster.namespace(home, &[]);
        prepare(cluster, home, daemon_set, name);
        let mut node = AgentNode::new(cluster, name);
        let folder = node.processes.file("net.d");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("10-main.conflist"), main_list()).unwrap();
        let agent = start_agent(&mut node, home, daemon_set);
        node.start_proxy();
        node.await_ready();
        let mut pod = cluster.pod(&node.cluster_node, name, "app");
        let held = pod.netns.try_clone().unwrap();
        add_pod(&node, &pod);
        // Its path is gone, as after a restart of the container through which it was found.
        pod.netns = held;
        await_annotation(cluster, &pod, &json!("enabled"));
        Self {
            cluster,
            node,
            pod,
            agent,
            home: home.to_owned(),
            daemon_set: daemon_set.to_owned(),
        }
    }

    fn restart_agent(&mut self) {
        self.agent = start_agent(&mut self.node, &self.home, &self.daemon_set);
    }

    /// Stops the agent and waits until it has exited.
    fn stop_agent(&mut self) {
        kill(Pid::from_raw(self.agent.cast_signed()), Signal::SIGTERM).unwrap();
        until("the agent has exited", || {
            has_exited(self.agent).then_some(())
        });
        self.node.processes.kill(self.agent);
    }

    fn daemon_set_path(&self) -> String {
        let (home, daemon_set) = (&self.home, &self.daemon_set);
        format!("/apis/apps/v1/namespaces/{home}/daemonsets/{daemon_set}")
    }

    fn await_log(&self, text: &str) {
        until(text, || {
            self.node
                .processes
                .log("agent")
                .contains(text)
                .then_some(())
        });
    }

    fn list(&self) -> String {
        fs::read_to_string(self.node.processes.file("net.d/10-main.conflist")).unwrap()
    }

    #[track_caller]
    fn assert_kept(&self, why: &str) {
        assert!(
            self.list().contains("underpass-cni") && has_rules(&self.pod),
            "{why}"
        );
        assert_eq!(
            annotation(self.cluster, &self.pod),
            json!("enabled"),
            "{why}"
        );
    }

    /// Nothing is left on the node and in the pod.
    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(self.list(), main_list());
        assert!(
            !has_rules(&self.pod),
            "{}",
            self.node.processes.log("agent")
        );
        let file = |name| self.node.processes.file(name);
        let files = [file("bin/underpass-cni"), file("state/pods.json")];
        assert!(files.iter().all(|f| !f.exists()));
        assert!(!self.node.processes.agent_socket().exists());
    }
}

fn main_list() -> String {
    json!({ "cniVersion": "1.0.0", "name": "main", "plugins": [{ "type": "ptp" }] }).to_string()
}

fn start_agent(node: &mut AgentNode, home: &str, daemon_set: &str) -> u32 {
    let [conf, bin] = ["net.d", "bin"].map(|f| node.processes.file(f).to_str().unwrap().to_owned());
    node.start_agent(&[
        "--install-cni",
        "--conf-dir",
        &conf,
        "--bin-dir",
        &bin,
        "--daemonset",
        daemon_set,
        "--pod-namespace",
        home,
    ])
}

/// Creates a DaemonSet that selects a node, and the right to read it, which the chart grants.
fn prepare(cluster: &Cluster, home: &str, name: &str, node: &str) {
    let labels = json!({ "app": name });
    let containers = json!([{ "name": "agent", "image": "localhost/none" }]);
    let pod = json!({ "nodeSelector": { HOSTNAME: node }, "containers": containers });
    let metadata = json!({ "name": name, "namespace": home });
    cluster.apply(&json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": metadata,
        "spec": {
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": pod },
        },
    }));
    let api = "rbac.authorization.k8s.io";
    let of = |kind: &str| {
        json!({
            "apiVersion": format!("{api}/v1"),
            "kind": kind,
            "metadata": metadata,
        })
    };
    let mut role = of("Role");
    role["rules"] = json!([{
        "apiGroups": ["apps"],
        "resources": ["daemonsets"],
        "resourceNames": [name],
        "verbs": ["get", "list", "watch"],
    }]);
    let mut binding = of("RoleBinding");
    binding["roleRef"] = json!({ "apiGroup": api, "kind": "Role", "name": name });
    binding["subjects"] =
        json!([{ "kind": "ServiceAccount", "name": "underpass-agent", "namespace": NAMESPACE }]);
    cluster.apply(&role);
    cluster.apply(&binding);
}

#[test]
fn an_agent_uninstalls_the_plugin_only_when_its_daemonset_is_deleted() {
    let cluster = cluster_or_skip!();
    let mut node = RetiringNode::start(&cluster, "retiring", NAMESPACE, DAEMON_SET);
    // The next agents find the namespace by its path.
    node.node.del(&node.pod);
    add_pod(&node.node, &node.pod);
    node.node.await_verified(&node.pod);
    await_annotation(&cluster, &node.pod, &json!("enabled"));
    node.stop_agent();
    node.assert_kept("the DaemonSet exists: another agent will follow");

    node.restart_agent();
    node.node.block_api_server(true);
    node.stop_agent();
    node.node.block_api_server(false);
    node.assert_kept("it is unknown whether another agent will follow");

    node.restart_agent();
    node.node.await_ready();
    node.node.await_verified(&node.pod);
    retire(&cluster, true);
    node.stop_agent();
    node.assert_clean();
    assert_eq!(annotation(&cluster, &node.pod), Value::Null);
    retire(&cluster, true); // retiring twice is not an error
}

#[test]
fn an_agent_retires_when_its_namespace_is_deleted() {
    let cluster = cluster_or_skip!();
    let mut node = RetiringNode::start(&cluster, "homeless", "home", "homeless-agents");
    cluster
        .kubernetes
        .api
        .delete("/api/v1/namespaces/home")
        .unwrap();
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/home/rolebindings";
    let is_gone = |path: &str| {
        cluster
            .kubernetes
            .api
            .get(path)
            .is_err_and(|e| e.status == 404)
    };
    until("the agent's permissions are revoked", || {
        is_gone(&format!("{bindings}/homeless-agents")).then_some(())
    });
    until("the DaemonSet is deleted", || {
        is_gone(&node.daemon_set_path()).then_some(())
    });
    node.await_log("DaemonSet was deleted");
    node.stop_agent();
    node.assert_clean();
    assert_eq!(annotation(&cluster, &node.pod), Value::Null);
}

#[test]
fn an_agent_retires_from_a_node_that_its_daemonset_no_longer_selects() {
    let cluster = cluster_or_skip!();
    let mut node = RetiringNode::start(&cluster, "unselected", NAMESPACE, "unselected-agents");
    let selector = json!({ HOSTNAME: "another" });
    let change = json!({ "spec": { "template": { "spec": { "nodeSelector": selector } } } });
    cluster
        .kubernetes
        .api
        .patch(&node.daemon_set_path(), &change)
        .unwrap();
    node.stop_agent();
    node.assert_clean();
    assert_eq!(annotation(&cluster, &node.pod), Value::Null);
}

#[test]
fn an_agent_retires_while_the_api_server_does_not_answer() {
    let cluster = cluster_or_skip!();
    let mut node = RetiringNode::start(&cluster, "unanswered", NAMESPACE, "unanswered-agents");
    cluster
        .kubernetes
        .api
        .delete(&node.daemon_set_path())
        .unwrap();
    node.await_log("DaemonSet was deleted");
    node.node.block_api_server(true);
    node.stop_agent();
    node.node.block_api_server(false);
    node.assert_clean();
    let log = node.node.processes.log("agent");
    let kept = |line: &&str| line.contains("keeps its annotation") && line.contains("unanswered");
    assert!(log.lines().any(|line| kept(&line)), "{log}");
    assert_eq!(annotation(&cluster, &node.pod), json!("enabled"));
}

#[test]
fn retiring_without_permission_is_an_error() {
    let cluster = cluster_or_skip!();
    retire(&cluster, false);
}

/// Runs `underpass-agent retire`, like the chart's Job before an uninstallation.
fn retire(cluster: &Cluster, by_admin: bool) {
    let token = if by_admin { "admin" } else { "invalid" };
    let mut command = Command::new(binary("underpass-agent"));
    command.args([
        "retire",
        "--daemonset",
        DAEMON_SET,
        "--namespace",
        NAMESPACE,
        "--within",
        "20",
    ]);
    command.arg("--kubeconfig").arg(
        cluster
            .kubernetes
            .kubeconfig(&format!("retiring-{token}"), token),
    );
    let output = netns::process::in_netns(&mut command, &cluster.kubernetes.netns)
        .unwrap()
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.success(), by_admin, "{error}");
    if !by_admin {
        assert!(
            error.contains(&format!("{NAMESPACE}/{DAEMON_SET}")),
            "{error}"
        );
    }
}

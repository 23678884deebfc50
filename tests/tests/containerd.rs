//! Pods of a real containerd, which calls the plugin that the agent has installed.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use agent_status::PodState;
use netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use underpass_tests::containerd::{Containerd, missing};
use underpass_tests::image::{IMAGE, PAGE};
use underpass_tests::node::{TestNode, open_files};
use underpass_tests::sandbox::{eventually, until};
use underpass_tests::skip::skip;

/// Pods get their addresses in order of creation.
const MESH: &str = r#"
namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } }, { name: outside }]
workloads:
  - { name: server, namespace: default, serviceAccount: server, node: node,
      workloadIps: [10.88.0.2, "fd88::2"] }
  - { name: client, namespace: default, serviceAccount: client, node: node,
      workloadIps: [10.88.0.3, "fd88::3"] }
  - { name: outsider, namespace: outside, serviceAccount: outsider, node: node,
      workloadIps: [10.88.0.4, "fd88::4"] }
"#;

const SERVE: [&str; 7] = ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"];
const WAIT: [&str; 3] = ["/bin/busybox", "sleep", "1000"];
const PORTS: [u16; 4] = [15001, 15006, 15008, 15053];

/// A node with containerd, an agent that has installed the plugin, and a proxy.
struct ContainerdNode {
    containerd: Containerd, // dropped before the node
    node: TestNode,
    agent: u32,
    proxy: u32,
}

impl ContainerdNode {
    /// `None` on a machine without containerd.
    fn new(folder: &str, pods: u8) -> Option<Self> {
        if let Some(why) = missing() {
            skip(&why);
            return None;
        }
        let mut node = TestNode::new(folder, MESH);
        let containerd = Containerd::start(&node, pods);
        node.run_agent_in(&containerd.machine);
        let agent = node.start_agent_with(&containerd.network.install_arguments());
        let proxy = node.start_ready_proxy();
        containerd.await_plugin(true);
        Some(Self {
            containerd,
            node,
            agent,
            proxy,
        })
    }

    /// Names and states of the pods that the agent knows.
    fn pods(&self) -> Vec<(String, PodState)> {
        self.node
            .pods()
            .into_iter()
            .map(|p| (p.name, p.state))
            .collect()
    }

    /// The numbers of sockets and network namespaces that the proxy has open.
    fn proxy_files(&self) -> (usize, usize) {
        let (_, namespaces, sockets) = open_files(self.proxy);
        (sockets, namespaces)
    }

    /// Asserts that agent, proxy, runtime and plugins keep nothing of any pod.
    fn assert_nothing_is_left(&self, before: (usize, usize)) {
        assert_eq!(self.pods(), []);
        // There may be fewer sockets, if an admin request was still open before.
        let released = eventually(|| {
            let (sockets, namespaces) = self.proxy_files();
            (sockets <= before.0 && namespaces == 0).then_some(())
        });
        assert!(
            released.is_some(),
            "open in the proxy: {:?}, before: {before:?}",
            self.proxy_files()
        );
        assert_eq!(self.containerd.network.allocated_addresses().len(), 0);
    }
}

fn listening(netns: &NetNs) -> Vec<u16> {
    underpass_tests::listener::listening_ports(netns)
        .into_iter()
        .collect()
}

#[test]
fn containerd_pods_communicate_through_the_mesh() {
    let Some(node) = ContainerdNode::new("ctd-meet", 3) else {
        return;
    };
    let cri = &node.containerd.cri;
    let before = node.proxy_files();
    let mut sandboxes = Vec::new();
    let mut run = |namespace: &str, name: &str, command: &[&str]| {
        let pod = node.containerd.pod(namespace, name);
        let sandbox = cri.run_pod_sandbox(&pod).unwrap();
        let container = cri.run_container(&sandbox, &pod, IMAGE, command).unwrap();
        sandboxes.push(sandbox);
        (container, node.containerd.newest_netns())
    };
    let (_, server) = run("default", "server", &SERVE);
    let (client, _) = run("default", "client", &WAIT);
    let (outsider, outside) = run("outside", "outsider", &WAIT);
    let known = [
        ("client", PodState::Enrolled),
        ("outsider", PodState::Skipped),
        ("server", PodState::Enrolled),
    ];
    let mut pods = node.pods();
    pods.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert_eq!(pods, known.map(|(name, state)| (name.to_owned(), state)));
    assert_eq!(
        listening(&server)
            .into_iter()
            .filter(|p| *p != 8080)
            .collect::<Vec<_>>(),
        PORTS
    );
    assert!(
        outside
            .run(redirect::read_back)
            .unwrap()
            .unwrap()
            .is_empty(),
        "no rules outside the mesh"
    );
    assert!(listening(&outside).is_empty());

    for (container, mutual) in [(&client, true), (&outsider, false)] {
        for url in ["http://10.88.0.2:8080/", "http://[fd88::2]:8080/"] {
            let got = cri
                .exec(container, &["/bin/busybox", "wget", "-q", "-O", "-", url])
                .unwrap();
            let stderr = String::from_utf8_lossy(&got.stderr);
            assert_eq!(
                (String::from_utf8_lossy(&got.stdout).as_ref(), got.exit_code),
                (PAGE, 0),
                "{url}: {stderr}"
            );
            let destination = url.trim_start_matches("http://").trim_end_matches('/');
            let source = if mutual {
                "src.workload=\"client\""
            } else {
                "src.workload=\"outsider\""
            };
            let line = until("the server's side logs the connection", || {
                let log = node.node.log("proxy");
                let words = ["direction=\"inbound\"", source, destination];
                log.lines()
                    .find(|l| words.iter().all(|w| l.contains(w)))
                    .map(str::to_owned)
            });
            let identities = [
                "src.identity=\"spiffe://cluster.local/ns/default/sa/client\"",
                "dst.identity=\"spiffe://cluster.local/ns/default/sa/server\"",
            ];
            assert_eq!(
                identities.iter().all(|i| line.contains(i)),
                mutual,
                "{destination}: {line}"
            );
        }
    }

    for sandbox in &sandboxes {
        cri.remove_pod_sandbox(sandbox).unwrap();
    }
    drop((server, outside));
    node.assert_nothing_is_left(before);
}

#[test]
fn containerd_calls_the_plugins_as_documented() {
    let Some(node) = ContainerdNode::new("ctd-calls", 1) else {
        return;
    };
    let (cri, recorder) = (&node.containerd.cri, &node.containerd.network.recorder);
    assert_eq!(
        recorder.summaries(),
        [""; 0],
        "no VERSION or STATUS before the first pod"
    );
    let pod = node.containerd.pod("default", "server");
    let sandbox = cri.run_pod_sandbox(&pod).unwrap();
    assert_eq!(
        cri.addresses(&sandbox).unwrap(),
        ["10.88.0.2", "fd88::2"],
        "containerd reads the result that the plugin passes on"
    );
    assert_eq!(
        recorder.summaries(),
        ["ADD netns prevResult"],
        "no CHECK after it"
    );
    let call = &recorder.calls()[0];
    let variables = [
        "CNI_ARGS",
        "CNI_COMMAND",
        "CNI_CONTAINERID",
        "CNI_IFNAME",
        "CNI_NETNS",
        "CNI_PATH",
        "HOME",
        "PATH",
    ];
    assert_eq!(
        call.variables(),
        variables,
        "CNI's variables and containerd's own environment"
    );
    assert_eq!(call.env["CNI_CONTAINERID"], sandbox);
    assert_eq!(call.env["CNI_IFNAME"], "eth0");
    let mut args: Vec<&str> = call.env["CNI_ARGS"].split(';').collect();
    args.sort_unstable();
    let infra = format!("K8S_POD_INFRA_CONTAINER_ID={sandbox}");
    let expected = [
        "IgnoreUnknown=1",
        &infra,
        "K8S_POD_NAME=server",
        "K8S_POD_NAMESPACE=default",
        "K8S_POD_UID=uid-server",
    ];
    assert_eq!(args, expected);
    assert_eq!(call.input["cniVersion"], "1.0.0");

    cri.remove_pod_sandbox(&sandbox).unwrap();
    let all_calls = ["ADD netns prevResult", "DEL netns prevResult", "DEL"];
    assert_eq!(
        recorder.summaries(),
        all_calls,
        "the second DEL has neither a namespace nor a result"
    );
    assert_eq!(recorder.calls()[2].env["CNI_NETNS"], "");

    recorder.clear();
    let sandbox = cri
        .run_pod_sandbox(
            &node
                .containerd
                .pod("default", "server")
                .in_the_nodes_network(),
        )
        .unwrap();
    cri.remove_pod_sandbox(&sandbox).unwrap();
    assert_eq!(
        recorder.summaries(),
        [""; 0],
        "no CNI calls for a pod in the host network"
    );
}

#[test]
fn containerd_pod_starts_once_the_agent_is_back() {
    let Some(mut node) = ContainerdNode::new("ctd-wait", 1) else {
        return;
    };
    let pod = node.containerd.pod("default", "server");
    let before = node.proxy_files();
    node.node.kill(node.agent);
    let error = node.containerd.cri.run_pod_sandbox(&pod).unwrap_err();
    assert!(
        error.message.contains("UP-CNI-007") && error.message.contains("Next step"),
        "{error:?}"
    );
    assert_eq!(
        node.containerd.network.recorder.summaries(),
        ["ADD netns prevResult", "DEL netns"],
        "containerd undoes the ADD at once"
    );
    assert_eq!(node.containerd.network.allocated_addresses().len(), 0);
    node.node
        .start_agent_with(&node.containerd.network.install_arguments());
    // Retried as by a kubelet, until the proxy has connected to the new agent.
    let sandbox = until("the pod starts", || {
        node.containerd.cri.run_pod_sandbox(&pod).ok()
    });
    assert_eq!(listening(&node.containerd.newest_netns()), PORTS);
    node.containerd.cri.remove_pod_sandbox(&sandbox).unwrap();
    node.assert_nothing_is_left(before);
}

#[test]
fn plugin_killed_by_containerd_leaves_nothing() {
    let Some(node) = ContainerdNode::new("ctd-kill", 1) else {
        return;
    };
    let (containerd, pod) = (&node.containerd, node.containerd.pod("default", "server"));
    let before = node.proxy_files();
    let proxy = Pid::from_raw(i32::try_from(node.proxy).unwrap());
    kill(proxy, Signal::SIGSTOP).unwrap();
    let error = containerd
        .cri
        .run_pod_sandbox_by(&pod, Duration::from_millis(1500))
        .unwrap_err();
    kill(proxy, Signal::SIGCONT).unwrap();
    assert!(
        error.message.contains("underpass-cni") && error.message.contains("signal: killed"),
        "{error:?}"
    );
    until("DEL follows", || {
        (containerd.network.recorder.summaries().last()? == "DEL netns").then_some(())
    });
    until("the agent no longer lists the pod", || {
        node.pods().is_empty().then_some(())
    });
    node.assert_nothing_is_left(before);
    let sandbox = containerd.cri.run_pod_sandbox(&pod).unwrap();
    assert_eq!(listening(&containerd.newest_netns()), PORTS);
    containerd.cri.remove_pod_sandbox(&sandbox).unwrap();
    node.assert_nothing_is_left(before);
}

#[test]
fn containerd_and_the_agent_may_be_restarted_between_add_and_del() {
    let Some(mut node) = ContainerdNode::new("ctd-again", 2) else {
        return;
    };
    let before = node.proxy_files();
    let cri = node.containerd.cri.clone();
    let server = cri
        .run_pod_sandbox(&node.containerd.pod("default", "server"))
        .unwrap();
    let netns = node.containerd.newest_netns();
    node.containerd.restart();
    assert_eq!(listening(&netns), PORTS, "the pod is unchanged");
    node.node.kill(node.agent);
    node.node
        .start_agent_with(&node.containerd.network.install_arguments());
    // The new agent restores the pod from its state, through the path that containerd passed.
    assert_eq!(node.pods(), [("server".to_owned(), PodState::Enrolled)]);
    let pod = node.containerd.pod("default", "client");
    let client = until("the proxy has connected to the new agent", || {
        cri.run_pod_sandbox(&pod).ok()
    });
    node.containerd.network.recorder.clear();
    cri.remove_pod_sandbox(&server).unwrap();
    assert_eq!(
        node.containerd.network.recorder.summaries(),
        ["DEL netns prevResult", "DEL"],
        "the same calls as without a restart"
    );
    cri.remove_pod_sandbox(&client).unwrap();
    drop(netns);
    node.assert_nothing_is_left(before);
}

#[test]
fn uninstall_under_containerd_releases_pods_and_later_pods_start_without_underpass() {
    let Some(mut node) = ContainerdNode::new("ctd-free", 2) else {
        return;
    };
    let containerd = &node.containerd;
    let sandbox = containerd
        .cri
        .run_pod_sandbox(&containerd.pod("default", "server"))
        .unwrap();
    let netns = containerd.newest_netns();
    node.node.kill(node.agent);
    let [conf, bin] = containerd.network.folders();
    let mut uninstall = containerd
        .machine
        .command(underpass_tests::binaries::binary("underpass-agent"));
    uninstall
        .arg("uninstall")
        .arg("--conf-dir")
        .arg(conf)
        .arg("--bin-dir")
        .arg(bin);
    let output = uninstall
        .arg("--state-dir")
        .arg(node.node.file("state"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        netns.run(redirect::read_back).unwrap().unwrap().is_empty(),
        "the pod's rules are removed"
    );
    containerd.await_plugin(false);
    containerd.cri.remove_pod_sandbox(&sandbox).unwrap();
    let later = containerd
        .cri
        .run_pod_sandbox(&containerd.pod("default", "client"))
        .unwrap();
    assert!(
        containerd
            .newest_netns()
            .run(redirect::read_back)
            .unwrap()
            .unwrap()
            .is_empty()
    );
    containerd.cri.remove_pod_sandbox(&later).unwrap();
}

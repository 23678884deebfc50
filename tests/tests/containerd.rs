//! Pods that a real containerd makes: it calls the plugin that the agent has installed, as on any node.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use underpass_tests::containerd::{Containerd, missing};
use underpass_tests::image::{IMAGE, PAGE};
use underpass_tests::node::{Node, open_files};
use underpass_tests::sandbox::{happens, until};
use underpass_tests::skip::skip;

/// Pods get their addresses in the order in which they are made.
const MESH: &str = r#"
namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } }, { name: outside }]
workloads:
  - { name: server, namespace: default, serviceAccount: server, node: node, workloadIps: [10.88.0.2, "fd88::2"] }
  - { name: client, namespace: default, serviceAccount: client, node: node, workloadIps: [10.88.0.3, "fd88::3"] }
  - { name: outsider, namespace: outside, serviceAccount: outsider, node: node, workloadIps: [10.88.0.4, "fd88::4"] }
"#;

const SERVE: [&str; 7] = ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"];
const WAIT: [&str; 3] = ["/bin/busybox", "sleep", "1000"];
const PORTS: [u16; 4] = [15001, 15006, 15008, 15053];

/// A node with containerd, an agent that has installed the plugin, and a proxy.
struct Scene {
    containerd: Containerd, // first, for it ends before the node does
    node: Node,
    agent: u32,
    proxy: u32,
}

impl Scene {
    /// `None` when there is no containerd on this machine.
    fn new(test: &str, folder: &str, pods: u8) -> Option<Self> {
        if let Some(why) = missing() {
            skip(test, &why);
            return None;
        }
        let mut node = Node::new(folder, MESH);
        let containerd = Containerd::start(&node, pods);
        node.run_agent_in(&containerd.machine);
        let agent = node.start_agent_with(&containerd.network.install_arguments());
        let proxy = node.start_ready_proxy();
        containerd.await_plugin(true);
        Some(Self { containerd, node, agent, proxy })
    }

    /// The pods that the agent knows: name and state.
    fn pods(&self) -> Vec<(String, String)> {
        let status: Value = serde_json::from_str(&self.node.get("127.0.0.1:15014", "/status").unwrap().1).unwrap();
        let text = |pod: &Value, key: &str| pod[key].as_str().unwrap().to_owned();
        status["pods"].as_array().unwrap().iter().map(|p| (text(p, "name"), text(p, "state"))).collect()
    }

    /// The sockets that the proxy has open, and its open namespaces.
    fn held_by_the_proxy(&self) -> (usize, usize) {
        let (_, namespaces, sockets) = open_files(self.proxy);
        (sockets, namespaces)
    }

    /// Nothing of any pod is left: not with the agent, the proxy, the runtime, or the plugins.
    fn nothing_is_left(&self, before: (usize, usize)) {
        assert_eq!(self.pods(), []);
        // Fewer, when somebody's question was still open before.
        let let_go = happens(|| {
            let (sockets, namespaces) = self.held_by_the_proxy();
            (sockets <= before.0 && namespaces == 0).then_some(())
        });
        assert!(let_go.is_some(), "the proxy holds {:?}, and held {before:?}", self.held_by_the_proxy());
        assert_eq!(self.containerd.network.taken_addresses().len(), 0);
    }
}

fn listening(netns: &NetNs) -> Vec<u16> {
    underpass_tests::listener::listening_ports(netns).into_iter().collect()
}

#[test]
fn containers_of_a_real_containerd_meet_in_the_mesh() {
    let Some(scene) = Scene::new("containers_of_a_real_containerd_meet_in_the_mesh", "ctd-meet", 3) else { return };
    let cri = &scene.containerd.cri;
    let before = scene.held_by_the_proxy();
    let mut sandboxes = Vec::new();
    let mut run = |namespace: &str, name: &str, command: &[&str]| {
        let pod = scene.containerd.pod(namespace, name);
        let sandbox = cri.run_pod_sandbox(&pod).unwrap();
        let container = cri.run_container(&sandbox, &pod, IMAGE, command).unwrap();
        sandboxes.push(sandbox);
        (container, scene.containerd.newest_netns())
    };
    let (_, server) = run("default", "server", &SERVE);
    let (client, _) = run("default", "client", &WAIT);
    let (outsider, outside) = run("outside", "outsider", &WAIT);
    let known = [("client", "enrolled"), ("outsider", "skipped"), ("server", "enrolled")];
    let mut pods = scene.pods();
    pods.sort();
    assert_eq!(pods, known.map(|(n, s)| (n.to_owned(), s.to_owned())));
    assert_eq!(listening(&server).into_iter().filter(|p| *p != 8080).collect::<Vec<_>>(), PORTS);
    assert!(outside.run(redirect::read_back).unwrap().unwrap().is_empty(), "no rules outside the mesh");
    assert!(listening(&outside).is_empty());

    for (container, mutual) in [(&client, true), (&outsider, false)] {
        for url in ["http://10.88.0.2:8080/", "http://[fd88::2]:8080/"] {
            let got = cri.exec(container, &["/bin/busybox", "wget", "-q", "-O", "-", url]).unwrap();
            let said = String::from_utf8_lossy(&got.stderr);
            assert_eq!((String::from_utf8_lossy(&got.stdout).as_ref(), got.exit_code), (PAGE, 0), "{url}: {said}");
            let destination = url.trim_start_matches("http://").trim_end_matches('/');
            let source = if mutual { "src.workload=\"client\"" } else { "src.workload=\"outsider\"" };
            let line = until("the server's side of the connection is told", || {
                let log = scene.node.log("proxy");
                let words = ["direction=\"inbound\"", source, destination];
                log.lines().find(|l| words.iter().all(|w| l.contains(w))).map(str::to_owned)
            });
            let identities = [
                "src.identity=\"spiffe://cluster.local/ns/default/sa/client\"",
                "dst.identity=\"spiffe://cluster.local/ns/default/sa/server\"",
            ];
            assert_eq!(identities.iter().all(|i| line.contains(i)), mutual, "{destination}: {line}");
        }
    }

    for sandbox in &sandboxes {
        cri.remove_pod_sandbox(sandbox).unwrap();
    }
    drop((server, outside));
    scene.nothing_is_left(before);
}

#[test]
fn containerd_calls_the_plugins_as_documented() {
    let Some(scene) = Scene::new("containerd_calls_the_plugins_as_documented", "ctd-calls", 1) else { return };
    let (cri, recorder) = (&scene.containerd.cri, &scene.containerd.network.recorder);
    assert_eq!(recorder.story(), [""; 0], "no VERSION and no STATUS before the first pod");
    let pod = scene.containerd.pod("default", "server");
    let sandbox = cri.run_pod_sandbox(&pod).unwrap();
    assert_eq!(cri.addresses(&sandbox).unwrap(), ["10.88.0.2", "fd88::2"], "containerd read the result we passed on");
    assert_eq!(recorder.story(), ["ADD netns prevResult"], "no CHECK after it");
    let call = &recorder.calls()[0];
    let variables =
        ["CNI_ARGS", "CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH", "HOME", "PATH"];
    assert_eq!(call.variables(), variables, "CNI's, and containerd's own environment");
    assert_eq!(call.env["CNI_CONTAINERID"], sandbox);
    assert_eq!(call.env["CNI_IFNAME"], "eth0");
    let mut args: Vec<&str> = call.env["CNI_ARGS"].split(';').collect();
    args.sort_unstable();
    let infra = format!("K8S_POD_INFRA_CONTAINER_ID={sandbox}");
    let expected =
        ["IgnoreUnknown=1", &infra, "K8S_POD_NAME=server", "K8S_POD_NAMESPACE=default", "K8S_POD_UID=uid-server"];
    assert_eq!(args, expected);
    assert_eq!(call.input["cniVersion"], "1.0.0");

    cri.remove_pod_sandbox(&sandbox).unwrap();
    let whole = ["ADD netns prevResult", "DEL netns prevResult", "DEL"];
    assert_eq!(recorder.story(), whole, "the second DEL has neither a namespace nor a result");
    assert_eq!(recorder.calls()[2].env["CNI_NETNS"], "");

    recorder.clear();
    let sandbox = cri.run_pod_sandbox(&scene.containerd.pod("default", "server").in_the_nodes_network()).unwrap();
    cri.remove_pod_sandbox(&sandbox).unwrap();
    assert_eq!(recorder.story(), [""; 0], "a pod in the node's network is no matter for CNI");
}

#[test]
fn a_pod_of_containerd_waits_for_the_agent_and_then_starts_by_itself() {
    let Some(mut scene) =
        Scene::new("a_pod_of_containerd_waits_for_the_agent_and_then_starts_by_itself", "ctd-wait", 1)
    else {
        return;
    };
    let pod = scene.containerd.pod("default", "server");
    let before = scene.held_by_the_proxy();
    scene.node.kill(scene.agent);
    let error = scene.containerd.cri.run_pod_sandbox(&pod).unwrap_err();
    assert!(error.message.contains("UP-CNI-007") && error.message.contains("Next step"), "{error:?}");
    assert_eq!(
        scene.containerd.network.recorder.story(),
        ["ADD netns prevResult", "DEL netns"],
        "it is undone at once"
    );
    assert_eq!(scene.containerd.network.taken_addresses().len(), 0);
    scene.node.start_agent_with(&scene.containerd.network.install_arguments());
    // As a kubelet does, with nothing else changed. The proxy, too, has to find the new agent.
    let sandbox = until("the pod starts", || scene.containerd.cri.run_pod_sandbox(&pod).ok());
    assert_eq!(listening(&scene.containerd.newest_netns()), PORTS);
    scene.containerd.cri.remove_pod_sandbox(&sandbox).unwrap();
    scene.nothing_is_left(before);
}

#[test]
fn a_plugin_that_containerd_kills_leaves_nothing() {
    let Some(scene) = Scene::new("a_plugin_that_containerd_kills_leaves_nothing", "ctd-kill", 1) else { return };
    let (containerd, pod) = (&scene.containerd, scene.containerd.pod("default", "server"));
    let before = scene.held_by_the_proxy();
    let proxy = Pid::from_raw(i32::try_from(scene.proxy).unwrap());
    kill(proxy, Signal::SIGSTOP).unwrap();
    let error = containerd.cri.run_pod_sandbox_by(&pod, Duration::from_millis(1500)).unwrap_err();
    kill(proxy, Signal::SIGCONT).unwrap();
    assert!(error.message.contains("underpass-cni") && error.message.contains("signal: killed"), "{error:?}");
    until("DEL follows", || (containerd.network.recorder.story().last()? == "DEL netns").then_some(()));
    until("the agent has forgotten the pod", || scene.pods().is_empty().then_some(()));
    scene.nothing_is_left(before);
    let sandbox = containerd.cri.run_pod_sandbox(&pod).unwrap();
    assert_eq!(listening(&containerd.newest_netns()), PORTS);
    containerd.cri.remove_pod_sandbox(&sandbox).unwrap();
    scene.nothing_is_left(before);
}

#[test]
fn containerd_and_the_agent_may_be_restarted_between_add_and_del() {
    let Some(mut scene) = Scene::new("containerd_and_the_agent_may_be_restarted_between_add_and_del", "ctd-again", 2)
    else {
        return;
    };
    let before = scene.held_by_the_proxy();
    let cri = scene.containerd.cri.clone();
    let server = cri.run_pod_sandbox(&scene.containerd.pod("default", "server")).unwrap();
    let netns = scene.containerd.newest_netns();
    scene.containerd.restart();
    assert_eq!(listening(&netns), PORTS, "the pod stays as it was");
    scene.node.kill(scene.agent);
    scene.node.start_agent_with(&scene.containerd.network.install_arguments());
    // The new agent has the pod from its state, by the path that containerd gave.
    assert_eq!(scene.pods(), [("server".to_owned(), "enrolled".to_owned())]);
    let pod = scene.containerd.pod("default", "client");
    let client = until("the proxy has found the new agent", || cri.run_pod_sandbox(&pod).ok());
    scene.containerd.network.recorder.clear();
    cri.remove_pod_sandbox(&server).unwrap();
    assert_eq!(scene.containerd.network.recorder.story(), ["DEL netns prevResult", "DEL"], "as without a restart");
    cri.remove_pod_sandbox(&client).unwrap();
    drop(netns);
    scene.nothing_is_left(before);
}

#[test]
fn uninstalling_under_containerd_frees_its_pods_and_later_pods_start_without_us() {
    let Some(mut scene) =
        Scene::new("uninstalling_under_containerd_frees_its_pods_and_later_pods_start_without_us", "ctd-free", 2)
    else {
        return;
    };
    let containerd = &scene.containerd;
    let sandbox = containerd.cri.run_pod_sandbox(&containerd.pod("default", "server")).unwrap();
    let netns = containerd.newest_netns();
    scene.node.kill(scene.agent);
    let [conf, bin] = containerd.network.folders();
    let mut uninstall = containerd.machine.command(underpass_tests::binaries::binary("underpass-agent"));
    uninstall.arg("uninstall").arg("--conf-dir").arg(conf).arg("--bin-dir").arg(bin);
    let output = uninstall.arg("--state-dir").arg(scene.node.file("state")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(netns.run(redirect::read_back).unwrap().unwrap().is_empty(), "no rules are left in the pod");
    containerd.await_plugin(false);
    containerd.cri.remove_pod_sandbox(&sandbox).unwrap();
    let later = containerd.cri.run_pod_sandbox(&containerd.pod("default", "client")).unwrap();
    assert!(containerd.newest_netns().run(redirect::read_back).unwrap().unwrap().is_empty());
    containerd.cri.remove_pod_sandbox(&later).unwrap();
}

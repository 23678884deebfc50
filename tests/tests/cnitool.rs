//! The CNI project's own client, in the version that defines the verbs: what libcni does with our answers.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netns::NetNs;
use redirect::Plan;
use serde_json::{Value, json};
use underpass_tests::binaries::runtime_files;
use underpass_tests::machine::{Machine, path};
use underpass_tests::network::{NAME, Network};
use underpass_tests::node::Node;
use underpass_tests::sandbox::{happens, until};
use underpass_tests::skip::skip;

const MESH: &str = r#"
namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } }]
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node, workloadIps: [10.88.0.2, "fd88::2"] }
"#;

const POD: &str = "/run/netns/pod";

/// A node on which cnitool is the runtime, and a namespace that is to become a pod.
struct Scene {
    machine: Machine, // first, for it ends before the node does
    node: Node,
    network: Network,
    agent: u32,
}

impl Scene {
    /// `None` when cnitool is not there. The proxy is not started yet.
    fn new(test: &str, folder: &str) -> Option<Self> {
        let tools = runtime_files(["bin/cnitool", "cni-1.1.0/bridge", "cni-1.1.0/host-local"]);
        let [_, plugins @ ..] = tools.inspect_err(|why| skip(test, why)).ok()?;
        let mut node = Node::new(folder, MESH);
        let network = Network::new(&node.file("cni"), "1.1.0", &plugins, 1);
        let machine = Machine::start(&node.netns, &node.file(""), &["sleep".as_ref(), "infinity".as_ref()]);
        node.run_agent_in(&machine);
        let agent = node.start_agent_with(&network.install_arguments());
        assert_eq!(network.read()["plugins"][2]["type"], "underpass-cni");
        let scene = Self { machine, node, network, agent };
        scene.netns("add");
        Some(scene)
    }

    /// `ip netns add` or `del`.
    fn netns(&self, verb: &str) {
        assert!(self.machine.command("ip").args(["netns", verb, "pod"]).status().unwrap().success());
    }

    fn pod(&self) -> NetNs {
        NetNs::open(self.machine.path(POD)).unwrap()
    }

    fn cnitool(&self, verb: &str) -> Output {
        let [conf, bin] = self.network.folders();
        let mut command = self.machine.command("cnitool");
        command.args([verb, NAME, POD]);
        command.env_clear().env("PATH", path()).env("NETCONFPATH", conf).env("CNI_PATH", bin);
        command.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=client;K8S_POD_UID=uid-1");
        command.output().unwrap()
    }

    /// GC by libcni, with a list.
    fn gc_but(&self, containers: &[&str]) {
        let [conf, bin] = self.network.folders();
        let mut command = self.machine.command("libcni-gc");
        command.arg(NAME).args(containers.iter().flat_map(|c| [*c, "eth0"]));
        let output =
            command.env_clear().env("PATH", path()).env("NETCONFPATH", conf).env("CNI_PATH", bin).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn fine(&self, verb: &str) -> String {
        let output = self.cnitool(verb);
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What cnitool says of an error: the plugin's `msg`, and after it the details.
    fn fails(&self, verb: &str) -> String {
        let output = self.cnitool(verb);
        assert!(!output.status.success(), "{verb} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    /// How many pods the agent knows.
    fn pods(&self) -> usize {
        let status: Value = serde_json::from_str(&self.node.get("127.0.0.1:15014", "/status").unwrap().1).unwrap();
        status["pods"].as_array().unwrap().len()
    }

    fn differences(&self) -> Vec<String> {
        let plan = Plan::for_pod(["10.88.0.2".parse().unwrap(), "fd88::2".parse().unwrap()]);
        let observed = self.pod().run(redirect::read_back).unwrap().unwrap();
        redirect::diff(&plan, &observed).iter().map(ToString::to_string).collect()
    }

    fn has_left(&self) -> bool {
        let listening = underpass_tests::listener::listening_ports(&self.pod());
        let rules = self.pod().run(redirect::read_back).unwrap().unwrap();
        self.pods() == 0 && rules.is_empty() && listening.is_empty() && self.network.taken_addresses().is_empty()
    }
}

#[test]
fn cnitool_adds_checks_and_deletes_a_pod_in_every_version() {
    let Some(mut scene) = Scene::new("cnitool_adds_checks_and_deletes_a_pod_in_every_version", "tool-versions") else {
        return;
    };
    scene.node.start_ready_proxy();
    let mut conflist = scene.network.read();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        conflist["cniVersion"] = json!(version);
        scene.network.write(&conflist);
        scene.network.recorder.clear();
        let result: Value = serde_json::from_str(&scene.fine("add")).unwrap();
        assert_eq!(result["cniVersion"], version);
        let addresses: Vec<&Value> = result["ips"].as_array().unwrap().iter().map(|ip| &ip["address"]).collect();
        assert_eq!(addresses, ["10.88.0.2/24", "fd88::2/64"]);
        let interfaces = result["interfaces"].as_array().unwrap();
        assert!(interfaces.iter().any(|i| i["name"] == "eth0" && i["sandbox"] == POD), "{result}");
        assert_eq!(scene.differences(), [""; 0]);
        if version == "0.3.1" {
            assert!(scene.fails("check").contains("does not support"), "that version has no CHECK");
        } else {
            scene.fine("check");
        }
        assert_eq!(scene.fine("del"), "");
        until("the pod has left", || scene.has_left().then_some(()));
        assert_eq!(scene.fine("del"), "", "and once more");
        let story = scene.network.recorder.story();
        // libcni keeps the result for CHECK, and for DEL from 0.4.0 on.
        let expected: &[&str] = match version {
            "0.3.1" => &["ADD netns prevResult", "DEL netns", "DEL netns"],
            _ => &["ADD netns prevResult", "CHECK netns prevResult", "DEL netns prevResult", "DEL netns"],
        };
        assert_eq!(story, expected, "{version}");
    }
    let call = &scene.network.recorder.calls()[0];
    let variables = ["CNI_ARGS", "CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH"];
    assert!(variables.iter().all(|v| call.env.contains_key(*v)), "{:?}", call.env);
}

#[test]
fn cnitool_passes_our_errors_on_and_what_it_undoes_leaves_nothing() {
    let Some(mut scene) = Scene::new("cnitool_passes_our_errors_on_and_what_it_undoes_leaves_nothing", "tool-errors")
    else {
        return;
    };
    scene.node.kill(scene.agent);
    let said = scene.fails("add");
    assert!(said.contains("UP-CNI-007") && said.contains("Next step"), "without an agent: {said}");
    scene.fine("del"); // cnitool leaves that to whoever calls it
    assert!(scene.network.taken_addresses().is_empty());
    scene.node.start_agent_with(&scene.network.install_arguments());
    scene.node.start_ready_proxy();
    scene.fine("add");
    // The namespace goes before the DEL comes, as after a node's restart.
    scene.netns("del");
    scene.fine("del");
    assert_eq!((scene.pods(), scene.network.taken_addresses().len()), (0, 0));
    let said = scene.fails("add");
    assert!(said.contains("/run/netns/pod"), "nobody can join what is not there: {said}");
}

#[test]
fn cnitool_check_tells_what_has_drifted() {
    let Some(mut scene) = Scene::new("cnitool_check_tells_what_has_drifted", "tool-check") else { return };
    let proxy = scene.node.start_ready_proxy();
    scene.fine("add");
    scene.fine("check");
    // Somebody removes the rules again and again, faster than the agent puts them right.
    let pod = scene.pod();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let vandal = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let _ = pod.run(redirect::remove).unwrap(); // the agent may be at it at the same time
        }
    });
    let said = happens(|| {
        let said = String::from_utf8(scene.cnitool("check").stderr).unwrap();
        (said.contains("UP-AGENT-011") && said.contains("is missing")).then_some(said)
    });
    stop.store(true, Ordering::Relaxed);
    vandal.join().unwrap();
    assert!(said.is_some_and(|s| s.contains("UP-CNI-013")), "CHECK finds no rules missing");
    until("the pod is as it should be", || scene.differences().is_empty().then_some(()));
    scene.fine("check");
    scene.node.kill(proxy);
    let said = scene.fails("check");
    assert!(said.contains("UP-AGENT-011") && said.contains("15001"), "without a proxy: {said}");
    scene.node.kill(scene.agent);
    let said = scene.fails("check");
    assert!(said.contains("UP-CNI-007"), "without an agent: {said}");
    scene.fine("del");
}

#[test]
fn cnitool_status_tells_whether_a_pod_could_join() {
    let Some(mut scene) = Scene::new("cnitool_status_tells_whether_a_pod_could_join", "tool-status") else { return };
    let said = scene.fails("status");
    assert!(said.contains("UP-CNI-014") && said.contains("UP-AGENT-006"), "without a proxy: {said}");
    scene.node.start_ready_proxy();
    assert_eq!(scene.fine("status"), "");
    scene.node.kill(scene.agent);
    let said = scene.fails("status");
    assert!(said.contains("UP-CNI-007"), "without an agent: {said}");
    assert_eq!(scene.network.recorder.story(), ["STATUS", "STATUS", "STATUS"]);
}

#[test]
fn cnitool_gc_takes_every_pod_out() {
    let Some(mut scene) = Scene::new("cnitool_gc_takes_every_pod_out", "tool-gc") else { return };
    scene.node.start_ready_proxy();
    scene.fine("add");
    scene.network.recorder.clear();
    scene.fine("gc");
    let story = ["DEL netns prevResult", "GC"];
    assert_eq!(scene.network.recorder.story(), story, "libcni deletes what it remembers, then it asks for GC");
    assert!(scene.network.recorder.calls()[1].input["cni.dev/valid-attachments"].is_null(), "without a list");
    until("the pod has left", || scene.has_left().then_some(()));
    // Without its memory libcni asks for GC alone, without a list: that names no pod, so none is touched.
    scene.fine("add");
    std::fs::remove_dir_all(scene.machine.path("/var/lib/cni/results")).unwrap();
    scene.fine("gc");
    assert_eq!((scene.pods(), scene.differences()), (1, vec![]));
    scene.fine("del");
}

#[test]
fn libcni_gc_with_a_list_takes_out_the_pods_that_are_not_in_it() {
    let test = "libcni_gc_with_a_list_takes_out_the_pods_that_are_not_in_it";
    if let Err(why) = runtime_files(["bin/libcni-gc"]) {
        return skip(test, &why);
    }
    let Some(mut scene) = Scene::new(test, "libcni-gc") else { return };
    scene.node.start_ready_proxy();
    scene.fine("add");
    let add = scene.network.recorder.calls().into_iter().find(|c| c.verb() == "ADD").unwrap();
    let container = add.env["CNI_CONTAINERID"].clone();
    // Libcni deletes by itself what it remembers and what is not in the list. Without its memory it is up to the plugin.
    std::fs::remove_dir_all(scene.machine.path("/var/lib/cni/results")).unwrap();
    scene.network.recorder.clear();
    scene.gc_but(&["another", &container]);
    assert_eq!((scene.pods(), scene.differences()), (1, vec![]), "it is in the list");
    scene.gc_but(&["another"]);
    assert_eq!(scene.network.recorder.story(), ["GC", "GC"]);
    until("the pod has left", || (scene.pods() == 0).then_some(()));
    assert!(scene.pod().run(redirect::read_back).unwrap().unwrap().is_empty(), "its rules went, too");
}

//! The plugin under cnitool, the CNI project's reference client: how libcni handles its results and
//! errors.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netns::NetNs;
use redirect::{ObservedState, Plan};
use serde_json::{Value, json};
use underpass_tests::binaries::runtime_files;
use underpass_tests::cni_network::{CniNetwork, NAME};
use underpass_tests::machine::{Machine, path};
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::{eventually, until};
use underpass_tests::skip::skip;

const MESH: &str = r#"
namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } }]
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node,
      workloadIps: [10.88.0.2, "fd88::2"] }
"#;

const POD: &str = "/run/netns/pod";

/// A node with cnitool as its runtime, and a namespace for a pod.
struct CnitoolNode {
    machine: Machine, // dropped before the node
    node: TestNode,
    network: CniNetwork,
    agent: u32,
}

impl CnitoolNode {
    /// Starts the agent, but no proxy; `None` without cnitool.
    fn new(folder: &str) -> Option<Self> {
        let tools = runtime_files(["bin/cnitool", "cni-1.1.0/bridge", "cni-1.1.0/host-local"]);
        let [_, plugins @ ..] = tools.inspect_err(|why| skip(why)).ok()?;
        let mut node = TestNode::new(folder, MESH);
        let network = CniNetwork::new(&node.file("cni"), "1.1.0", &plugins, 1);
        let machine = Machine::start(
            &node.netns,
            &node.file(""),
            &["sleep".as_ref(), "infinity".as_ref()],
        );
        node.run_agent_in(&machine);
        let agent = node.start_agent_with(&network.install_arguments());
        assert_eq!(network.read()["plugins"][2]["type"], "underpass-cni");
        let this = Self {
            machine,
            node,
            network,
            agent,
        };
        this.netns("add");
        Some(this)
    }

    /// `ip netns add` or `del`.
    fn netns(&self, verb: &str) {
        assert!(
            self.machine
                .command("ip")
                .args(["netns", verb, "pod"])
                .status()
                .unwrap()
                .success()
        );
    }

    fn pod(&self) -> NetNs {
        NetNs::open(self.machine.path(POD)).unwrap()
    }

    fn call(&self, verb: &str) -> Output {
        let [conf, bin] = self.network.folders();
        let mut command = self.machine.command("cnitool");
        command.args([verb, NAME, POD]);
        command
            .env_clear()
            .env("PATH", path())
            .env("NETCONFPATH", conf)
            .env("CNI_PATH", bin);
        command.env(
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=client;K8S_POD_UID=uid-1",
        );
        command.output().unwrap()
    }

    /// GC through libcni, with a list of valid containers.
    fn gc_except(&self, containers: &[&str]) {
        let [conf, bin] = self.network.folders();
        let mut command = self.machine.command("libcni-gc");
        command
            .arg(NAME)
            .args(containers.iter().flat_map(|c| [*c, "eth0"]));
        let output = command
            .env_clear()
            .env("PATH", path())
            .env("NETCONFPATH", conf)
            .env("CNI_PATH", bin)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Runs a verb that must succeed; returns its output.
    fn run(&self, verb: &str) -> String {
        let output = self.call(verb);
        assert!(
            output.status.success(),
            "{verb}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a verb that must fail; returns the error: the plugin's `msg` followed by its details.
    fn run_failing(&self, verb: &str) -> String {
        let output = self.call(verb);
        assert!(!output.status.success(), "{verb} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    /// The number of pods that the agent knows.
    fn pods(&self) -> usize {
        self.node.pods().len()
    }

    fn differences(&self) -> Vec<String> {
        differences(&self.pod().run(redirect::read_back).unwrap().unwrap())
    }

    fn has_left(&self) -> bool {
        let listening = underpass_tests::listener::listening_ports(&self.pod());
        let rules = self.pod().run(redirect::read_back).unwrap().unwrap();
        self.pods() == 0
            && rules.is_empty()
            && listening.is_empty()
            && self.network.allocated_addresses().is_empty()
    }
}

/// Differences between rules and the pod's plan.
fn differences(observed: &ObservedState) -> Vec<String> {
    let plan = Plan::for_pod(["10.88.0.2".parse().unwrap(), "fd88::2".parse().unwrap()]);
    redirect::diff(&plan, observed)
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// The addresses of a result, in the shape of its version.
fn addresses(result: &Value) -> Vec<&Value> {
    match result["ips"].as_array() {
        Some(ips) => ips.iter().map(|ip| &ip["address"]).collect(),
        None => vec![&result["ip4"]["ip"], &result["ip6"]["ip"]],
    }
}

#[test]
fn cnitool_adds_checks_and_deletes_a_pod_in_every_version() {
    let Some(mut cnitool) = CnitoolNode::new("tool-versions") else {
        return;
    };
    cnitool.node.start_ready_proxy();
    let mut conflist = cnitool.network.read();
    for version in [
        "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
    ] {
        conflist["cniVersion"] = json!(version);
        cnitool.network.write(&conflist);
        cnitool.network.recorder.clear();
        let result: Value = serde_json::from_str(&cnitool.run("add")).unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(addresses(&result), ["10.88.0.2/24", "fd88::2/64"]);
        // Results have interfaces since 0.3.0.
        if let Some(interfaces) = result["interfaces"].as_array() {
            assert!(
                interfaces
                    .iter()
                    .any(|i| i["name"] == "eth0" && i["sandbox"] == POD),
                "{result}"
            );
        }
        assert_eq!(cnitool.differences(), [""; 0]);
        let has_check = ["0.4.0", "1.0.0", "1.1.0"].contains(&version);
        if !has_check {
            assert!(
                cnitool.run_failing("check").contains("does not support"),
                "CNI {version} has no CHECK"
            );
        } else {
            cnitool.run("check");
        }
        assert_eq!(cnitool.run("del"), "");
        until("the pod has left", || cnitool.has_left().then_some(()));
        assert_eq!(cnitool.run("del"), "", "DEL is idempotent");
        let calls = cnitool.network.recorder.summaries();
        // libcni caches the result for CHECK, and since 0.4.0 for DEL.
        let expected: &[&str] = match has_check {
            false => &["ADD netns prevResult", "DEL netns", "DEL netns"],
            true => &[
                "ADD netns prevResult",
                "CHECK netns prevResult",
                "DEL netns prevResult",
                "DEL netns",
            ],
        };
        assert_eq!(calls, expected, "{version}");
    }
    let call = &cnitool.network.recorder.calls()[0];
    let variables = [
        "CNI_ARGS",
        "CNI_COMMAND",
        "CNI_CONTAINERID",
        "CNI_IFNAME",
        "CNI_NETNS",
        "CNI_PATH",
    ];
    assert!(
        variables.iter().all(|v| call.env.contains_key(*v)),
        "{:?}",
        call.env
    );
}

#[test]
fn cnitool_shows_the_plugins_errors_and_its_del_leaves_nothing() {
    let Some(mut cnitool) = CnitoolNode::new("tool-errors") else {
        return;
    };
    cnitool.node.kill(cnitool.agent);
    let error = cnitool.run_failing("add");
    assert!(
        error.contains("UP-CNI-007") && error.contains("Next step"),
        "without an agent: {error}"
    );
    cnitool.run("del"); // cnitool leaves the DEL after a failed ADD to its caller
    assert!(cnitool.network.allocated_addresses().is_empty());
    cnitool
        .node
        .start_agent_with(&cnitool.network.install_arguments());
    cnitool.node.start_ready_proxy();
    cnitool.run("add");
    // The namespace is deleted before the DEL, as by a restart of the node.
    cnitool.netns("del");
    cnitool.run("del");
    assert_eq!(
        (cnitool.pods(), cnitool.network.allocated_addresses().len()),
        (0, 0)
    );
    let error = cnitool.run_failing("add");
    assert!(
        error.contains("/run/netns/pod"),
        "without the namespace: {error}"
    );
}

#[test]
fn cnitool_check_reports_drift() {
    let Some(mut cnitool) = CnitoolNode::new("tool-check") else {
        return;
    };
    let proxy = cnitool.node.start_ready_proxy();
    cnitool.run("add");
    cnitool.run("check");
    // Remove the rules in a loop, faster than the agent repairs them.
    let pod = cnitool.pod();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let remover = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            // The agent may repair them at the same time.
            let _ = pod.run(redirect::remove).unwrap();
        }
    });
    let without_rules = differences(&ObservedState::default());
    let error = eventually(|| {
        let error = String::from_utf8(cnitool.call("check").stderr).unwrap();
        let names_a_rule = without_rules
            .iter()
            .any(|difference| error.contains(difference));
        (error.contains("UP-AGENT-011") && names_a_rule).then_some(error)
    });
    stop.store(true, Ordering::Relaxed);
    remover.join().unwrap();
    assert!(
        error.is_some_and(|s| s.contains("UP-CNI-013")),
        "CHECK finds no rules missing"
    );
    until("the rules are repaired", || {
        cnitool.differences().is_empty().then_some(())
    });
    cnitool.run("check");
    cnitool.node.kill(proxy);
    let error = cnitool.run_failing("check");
    assert!(
        error.contains("UP-AGENT-011") && error.contains("15001"),
        "without a proxy: {error}"
    );
    cnitool.node.kill(cnitool.agent);
    let error = cnitool.run_failing("check");
    assert!(error.contains("UP-CNI-007"), "without an agent: {error}");
    cnitool.run("del");
}

#[test]
fn cnitool_status_reports_whether_a_pod_could_join() {
    let Some(mut cnitool) = CnitoolNode::new("tool-status") else {
        return;
    };
    let error = cnitool.run_failing("status");
    assert!(
        error.contains("UP-CNI-014") && error.contains("UP-AGENT-006"),
        "without a proxy: {error}"
    );
    cnitool.node.start_ready_proxy();
    assert_eq!(cnitool.run("status"), "");
    cnitool.node.kill(cnitool.agent);
    let error = cnitool.run_failing("status");
    assert!(error.contains("UP-CNI-007"), "without an agent: {error}");
    assert_eq!(
        cnitool.network.recorder.summaries(),
        ["STATUS", "STATUS", "STATUS"]
    );
}

#[test]
fn cnitool_gc_removes_every_pod() {
    let Some(mut cnitool) = CnitoolNode::new("tool-gc") else {
        return;
    };
    cnitool.node.start_ready_proxy();
    cnitool.run("add");
    cnitool.network.recorder.clear();
    cnitool.run("gc");
    let calls = ["DEL netns prevResult", "GC"];
    assert_eq!(
        cnitool.network.recorder.summaries(),
        calls,
        "libcni deletes the pods of its cache, then calls GC"
    );
    assert!(
        cnitool.network.recorder.calls()[1].input["cni.dev/valid-attachments"].is_null(),
        "without a list"
    );
    until("the pod has left", || cnitool.has_left().then_some(()));
    // Without its cache libcni only calls GC, without a list: no pod is removed.
    cnitool.run("add");
    std::fs::remove_dir_all(cnitool.machine.path("/var/lib/cni/results")).unwrap();
    cnitool.run("gc");
    assert_eq!((cnitool.pods(), cnitool.differences()), (1, vec![]));
    cnitool.run("del");
}

#[test]
fn libcni_gc_removes_pods_that_are_not_listed() {
    if let Err(why) = runtime_files(["bin/libcni-gc"]) {
        return skip(&why);
    }
    let Some(mut cnitool) = CnitoolNode::new("libcni-gc") else {
        return;
    };
    cnitool.node.start_ready_proxy();
    cnitool.run("add");
    let add = cnitool
        .network
        .recorder
        .calls()
        .into_iter()
        .find(|c| c.verb() == "ADD")
        .unwrap();
    let container = add.env["CNI_CONTAINERID"].clone();
    // libcni itself deletes cached pods that are not in the list. Without its cache, the plugin has
    // to.
    std::fs::remove_dir_all(cnitool.machine.path("/var/lib/cni/results")).unwrap();
    cnitool.network.recorder.clear();
    cnitool.gc_except(&["another", &container]);
    assert_eq!(
        (cnitool.pods(), cnitool.differences()),
        (1, vec![]),
        "the pod is in the list"
    );
    cnitool.gc_except(&["another"]);
    assert_eq!(cnitool.network.recorder.summaries(), ["GC", "GC"]);
    until("the pod has left", || (cnitool.pods() == 0).then_some(()));
    assert!(
        cnitool
            .pod()
            .run(redirect::read_back)
            .unwrap()
            .unwrap()
            .is_empty(),
        "the rules are removed as well"
    );
}

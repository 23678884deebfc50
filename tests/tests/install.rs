//! Installing the plugin in a runtime's folders, with the built agent.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use netns::NetNs;
use serde_json::{Value, json};
use underpass_tests::binaries::binary;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::node::{MESH, Node};
use underpass_tests::sandbox::until;
use underpass_tests::wire::Wire;

const LIST: &str = r#"{
  "name": "cluster",
  "cniVersion": "1.0.0",
  "unknown": { "b": 1, "a": 2 },
  "plugins": [
    {
      "type": "bridge",
      "isGateway": true
    }
  ]
}
"#;

/// A runtime's folders, in a folder of the test's own.
struct Runtime(PathBuf);

impl Runtime {
    fn new(name: &str) -> Self {
        let folder = underpass_tests::folder::folder(name);
        fs::create_dir_all(folder.join("net.d")).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join("net.d").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let staged = self.0.join("staged");
        fs::write(&staged, text).unwrap();
        fs::rename(staged, self.file(name)).unwrap();
    }

    fn read(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.file(name)).unwrap()).unwrap()
    }

    /// Types of the plugins in a file, in order.
    fn chain(&self, name: &str) -> Vec<String> {
        let list = fs::read(self.file(name)).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
        let plugins = list.and_then(|l| l["plugins"].as_array().cloned()).unwrap_or_default();
        plugins.iter().map(|p| p["type"].as_str().unwrap().to_owned()).collect()
    }

    fn agent(&self, verb: &str, more: &[&OsStr]) -> Output {
        let mut command = Command::new(binary("underpass-agent"));
        command.arg(verb).arg("--conf-dir").arg(self.0.join("net.d")).arg("--bin-dir").arg(self.0.join("bin"));
        // Uninstalling looks for a rule in the node's namespace, which is not to be this machine's.
        let node = NetNs::create().unwrap();
        netns::process::in_netns(&mut command, &node).unwrap();
        command.args(more).output().unwrap()
    }

    fn install(&self) {
        let output = self.agent("install", &["--agent-socket".as_ref(), "/s".as_ref()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn uninstall(&self) {
        let output = self.agent("uninstall", &["--state-dir".as_ref(), self.0.join("state").as_ref()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn installing_chains_the_plugin_and_uninstalling_restores_the_list() {
    let runtime = Runtime::new("list");
    runtime.write("10-cluster.conflist", LIST);
    fs::set_permissions(runtime.file("10-cluster.conflist"), fs::Permissions::from_mode(0o640)).unwrap();
    for _ in 0..2 {
        runtime.install();
        let list = runtime.read("10-cluster.conflist");
        let capabilities = json!({ "io.kubernetes.cri.pod-annotations": true });
        let entry = json!({ "type": "underpass-cni", "agentSocket": "/s", "capabilities": capabilities });
        assert_eq!(list["plugins"][1], entry);
        assert_eq!(runtime.chain("10-cluster.conflist"), ["bridge", "underpass-cni"]);
        assert_eq!(list["cniVersion"], "1.0.0", "it is not ours to change");
    }
    let mode = fs::metadata(runtime.file("10-cluster.conflist")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let plugin = fs::metadata(runtime.0.join("bin/underpass-cni")).unwrap();
    assert_eq!(plugin.permissions().mode() & 0o777, 0o755);
    runtime.uninstall();
    assert_eq!(fs::read_to_string(runtime.file("10-cluster.conflist")).unwrap(), LIST);
    assert!(runtime.0.join("bin/underpass-cni").exists(), "DELs are still to come");
    assert_eq!(fs::read_dir(runtime.0.join("net.d")).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn a_single_plugin_becomes_a_list_and_is_restored() {
    let runtime = Runtime::new("single");
    let single = r#"{ "cniVersion": "0.4.0", "name": "n", "type": "ptp", "ipam": {} }"#;
    runtime.write("10-ptp.conf", single);
    runtime.install();
    assert_eq!(runtime.chain("10-ptp.conflist"), ["ptp", "underpass-cni"]);
    assert!(!runtime.file("10-ptp.conf").exists(), "two configurations of one network would be ambiguous");
    runtime.uninstall();
    assert_eq!(fs::read_to_string(runtime.file("10-ptp.conf")).unwrap(), single);
    assert_eq!(fs::read_dir(runtime.0.join("net.d")).unwrap().count(), 1);
}

#[test]
fn only_the_chain_that_the_runtime_uses_has_the_plugin() {
    let runtime = Runtime::new("two-lists");
    runtime.write("00-broken.conflist", "{ broken");
    runtime.write("05-notes.txt", "no configuration");
    runtime.write("20-later.conflist", LIST);
    runtime.install();
    assert_eq!(runtime.chain("20-later.conflist"), ["bridge", "underpass-cni"]);
    runtime.write("10-first.conflist", LIST);
    runtime.install();
    assert_eq!(runtime.chain("10-first.conflist"), ["bridge", "underpass-cni"]);
    assert_eq!(runtime.chain("20-later.conflist"), ["bridge"], "never two chains");
    assert_eq!(fs::read_to_string(runtime.file("00-broken.conflist")).unwrap(), "{ broken");
}

#[test]
fn what_cannot_be_installed_is_told() {
    let runtime = Runtime::new("cannot");
    fs::remove_dir_all(runtime.0.join("net.d")).unwrap();
    let output = runtime.agent("install", &[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("UP-AGENT-012"), "{text}");
    let output = runtime.agent("install", &["--plugin".as_ref(), "/nowhere/plugin".as_ref()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("/nowhere/plugin"), "{text}");
}

#[test]
fn a_running_agent_keeps_the_plugin_chained_and_uninstalling_frees_the_pods() {
    let (runtime, mut node, wire) = (Runtime::new("keep"), Node::new("keep-agent", MESH), Wire::new());
    let (conf, bin) = (runtime.0.join("net.d"), runtime.0.join("bin"));
    node.start_agent_with(&[
        "--install-cni".as_ref(),
        "--conf-dir".as_ref(),
        conf.as_ref(),
        "--bin-dir".as_ref(),
        bin.as_ref(),
    ]);
    until("it is told that there is no configuration yet", || node.log("agent").contains("UP-AGENT-013").then_some(()));
    let chained = || (runtime.chain("10-cluster.conflist") == ["bridge", "underpass-cni"]).then_some(());
    for _ in 0..3 {
        // The main CNI plugin writes its configuration, again and again.
        runtime.write("10-cluster.conflist", LIST);
        until("the plugin is chained", chained);
    }
    fs::remove_file(bin.join("underpass-cni")).unwrap();
    until("the plugin is there again", || bin.join("underpass-cni").exists().then_some(()));

    node.start_ready_proxy();
    let add = Call::new("ADD", &path_of(&wire.pod), &config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]));
    assert!(add.run().status.success());
    node.kill_all();
    let output = runtime.agent("uninstall", &["--state-dir".as_ref(), node.file("state").as_ref()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 chains and 1 pods"));
    assert!(wire.pod.run(redirect::read_back).unwrap().unwrap().is_empty(), "no rules are left in the pod");
    assert_eq!(runtime.chain("10-cluster.conflist"), ["bridge"]);
}

//! Installing the plugin in a runtime's folders with the built agent.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use netns::NetNs;
use serde_json::{Value, json};
use underpass_tests::binaries::binary;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::node::{MESH, TestNode};
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

/// A runtime's folders, in a folder of the test.
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

    /// The types of the plugins in a file, in order.
    fn chain(&self, name: &str) -> Vec<String> {
        let list = fs::read(self.file(name))
            .ok()
            .and_then(|b| serde_json::from_slice::<Value>(&b).ok());
        let plugins = list
            .and_then(|l| l["plugins"].as_array().cloned())
            .unwrap_or_default();
        plugins
            .iter()
            .map(|p| p["type"].as_str().unwrap().to_owned())
            .collect()
    }

    fn agent(&self, verb: &str, more: &[&OsStr]) -> Output {
        self.run(Command::new(binary("underpass-agent")), verb, more)
    }

    fn run(&self, mut command: Command, verb: &str, more: &[&OsStr]) -> Output {
        command
            .arg(verb)
            .arg("--conf-dir")
            .arg(self.0.join("net.d"))
            .arg("--bin-dir")
            .arg(self.0.join("bin"));
        // Uninstalling removes a rule from the node's namespace, which must not be the machine's.
        let node = NetNs::create().unwrap();
        netns::process::in_netns(&mut command, &node).unwrap();
        command.args(more).output().unwrap()
    }

    fn install(&self) {
        let output = self.agent("install", &["--agent-socket".as_ref(), "/s".as_ref()]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn uninstall(&self) {
        let output = self.agent(
            "uninstall",
            &["--state-dir".as_ref(), self.0.join("state").as_ref()],
        );
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
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
    fs::set_permissions(
        runtime.file("10-cluster.conflist"),
        fs::Permissions::from_mode(0o640),
    )
    .unwrap();
    for _ in 0..2 {
        runtime.install();
        let list = runtime.read("10-cluster.conflist");
        let capabilities = json!({ "io.kubernetes.cri.pod-annotations": true });
        let entry =
            json!({ "type": "underpass-cni", "agentSocket": "/s", "capabilities": capabilities });
        assert_eq!(list["plugins"][1], entry);
        assert_eq!(
            runtime.chain("10-cluster.conflist"),
            ["bridge", "underpass-cni"]
        );
        assert_eq!(list["cniVersion"], "1.0.0", "the version is not changed");
    }
    let mode = fs::metadata(runtime.file("10-cluster.conflist"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640);
    let plugin = fs::metadata(runtime.0.join("bin/underpass-cni")).unwrap();
    assert_eq!(plugin.permissions().mode() & 0o777, 0o755);
    runtime.uninstall();
    assert_eq!(
        fs::read_to_string(runtime.file("10-cluster.conflist")).unwrap(),
        LIST
    );
    assert!(
        runtime.0.join("bin/underpass-cni").exists(),
        "DELs still need the plugin"
    );
    assert_eq!(
        fs::read_dir(runtime.0.join("net.d")).unwrap().count(),
        1,
        "nothing else is left"
    );
}

#[test]
fn a_single_plugin_becomes_a_list_and_is_restored() {
    let runtime = Runtime::new("single");
    let single = r#"{ "cniVersion": "0.4.0", "name": "n", "type": "ptp", "ipam": {} }"#;
    runtime.write("10-ptp.conf", single);
    runtime.install();
    assert_eq!(runtime.chain("10-ptp.conflist"), ["ptp", "underpass-cni"]);
    assert!(
        !runtime.file("10-ptp.conf").exists(),
        "two configurations of one network would be ambiguous"
    );
    runtime.uninstall();
    assert_eq!(
        fs::read_to_string(runtime.file("10-ptp.conf")).unwrap(),
        single
    );
    assert_eq!(fs::read_dir(runtime.0.join("net.d")).unwrap().count(), 1);
}

#[test]
fn only_the_chain_that_the_runtime_uses_has_the_plugin() {
    let runtime = Runtime::new("two-lists");
    runtime.write("00-broken.conflist", "{ broken");
    runtime.write("05-notes.txt", "no configuration");
    runtime.write("20-later.conflist", LIST);
    runtime.install();
    assert_eq!(
        runtime.chain("20-later.conflist"),
        ["bridge", "underpass-cni"]
    );
    runtime.write("10-first.conflist", LIST);
    runtime.install();
    assert_eq!(
        runtime.chain("10-first.conflist"),
        ["bridge", "underpass-cni"]
    );
    assert_eq!(
        runtime.chain("20-later.conflist"),
        ["bridge"],
        "never two chains"
    );
    assert_eq!(
        fs::read_to_string(runtime.file("00-broken.conflist")).unwrap(),
        "{ broken"
    );
}

#[test]
fn a_failed_installation_is_reported() {
    let runtime = Runtime::new("cannot");
    fs::remove_dir_all(runtime.0.join("net.d")).unwrap();
    let output = runtime.agent("install", &[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && text.contains("UP-AGENT-012"),
        "{text}"
    );
    let output = runtime.agent(
        "install",
        &["--plugin".as_ref(), "/nowhere/plugin".as_ref()],
    );
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && text.contains("/nowhere/plugin"),
        "{text}"
    );
}

/// Asserts that `install` fails with this code and a next step.
#[track_caller]
fn assert_refused(runtime: &Runtime, code: &str, file: &str) {
    let output = runtime.agent("install", &[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success()
            && text.contains(code)
            && text.contains(file)
            && text.contains("Next step: "),
        "{text}"
    );
}

#[test]
fn a_list_of_an_unsupported_version_is_not_chained() {
    let runtime = Runtime::new("version");
    runtime.write("20-later.conflist", LIST);
    for versions in [
        r#""1.2.0""#,
        r#""1.0.0", "cniVersions": ["1.0.0", "1.2.0"]"#,
    ] {
        let newer = LIST.replace(r#""1.0.0""#, versions);
        runtime.write("10-cluster.conflist", &newer);
        assert_refused(&runtime, "UP-CNI-003", "10-cluster.conflist");
        assert_eq!(runtime.chain("10-cluster.conflist"), ["bridge"]);
        assert_eq!(runtime.chain("20-later.conflist"), ["bridge"]);
    }
    for version in ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.1.0"] {
        runtime.write("10-cluster.conflist", &LIST.replace("1.0.0", version));
        runtime.install();
        let chain = runtime.chain("10-cluster.conflist");
        assert_eq!(chain, ["bridge", "underpass-cni"], "{version}");
        assert_eq!(runtime.read("10-cluster.conflist")["cniVersion"], version);
    }
}

#[test]
fn an_unreadable_first_file_is_an_error() {
    let runtime = Runtime::new("unreadable");
    runtime.write("20-later.conflist", LIST);
    // Reading a link to itself fails, also for root.
    let first = runtime.file("10-cluster.conflist");
    std::os::unix::fs::symlink("10-cluster.conflist", first).unwrap();
    assert_refused(&runtime, "UP-AGENT-012", "10-cluster.conflist");
    assert_eq!(runtime.chain("20-later.conflist"), ["bridge"]);
}

/// As installers of clusters create it. The agent's container has no CAP_DAC_OVERRIDE.
#[test]
fn a_folder_of_another_user_is_an_error_that_names_it() {
    let runtime = Runtime::new("foreign-folder");
    runtime.write("10-cluster.conflist", LIST);
    std::os::unix::fs::chown(runtime.0.join("net.d"), Some(1000), None).unwrap();
    let mut command = Command::new("setpriv");
    let dropped = "-dac_override,-dac_read_search,-fowner";
    command
        .args(["--bounding-set", dropped])
        .arg(binary("underpass-agent"));
    let output = runtime.run(command, "install", &[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{text}");
    for part in ["UP-AGENT-012", "net.d", "Permission denied", "Next step: "] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(runtime.chain("10-cluster.conflist"), ["bridge"]);
}

#[test]
fn files_that_no_runtime_reads_are_not_chained() {
    let runtime = Runtime::new("formats");
    let single = r#"{ "cniVersion": "0.4.0", "name": "n", "type": "ptp" }"#;
    runtime.write("00-list.conf", LIST);
    runtime.write("01-single.conflist", single);
    runtime.write("20-later.conflist", LIST);
    runtime.install();
    assert_eq!(runtime.chain("00-list.conf"), ["bridge"]);
    assert_eq!(runtime.read("01-single.conflist")["type"], "ptp");
    assert_eq!(
        runtime.chain("20-later.conflist"),
        ["bridge", "underpass-cni"]
    );
}

#[test]
fn a_single_plugin_written_again_is_chained_by_every_run() {
    let runtime = Runtime::new("again");
    for mtu in 1400..1404 {
        let single = json!({ "cniVersion": "0.3.1", "name": "n", "type": "multus", "mtu": mtu });
        runtime.write("00-multus.conf", &single.to_string());
        runtime.install();
        assert!(!runtime.file("00-multus.conf").exists());
        let list = runtime.read("00-multus.conflist");
        assert_eq!(list["plugins"][0]["mtu"], mtu);
        assert_eq!(list["plugins"][1]["type"], "underpass-cni");
    }
    runtime.uninstall();
    assert_eq!(runtime.read("00-multus.conf")["mtu"], 1403);
    assert_eq!(fs::read_dir(runtime.0.join("net.d")).unwrap().count(), 1);
}

impl Runtime {
    /// Starts an agent that installs the plugin.
    fn start_agent(&self, node: &mut TestNode) {
        self.start_by(|arguments| node.start_agent_with(arguments));
    }

    /// Starts an agent with the arguments for installing the plugin.
    fn start_by(&self, start: impl FnOnce(&[&OsStr]) -> u32) {
        let (conf, bin) = (self.0.join("net.d"), self.0.join("bin"));
        start(&[
            "--install-cni".as_ref(),
            "--conf-dir".as_ref(),
            conf.as_ref(),
            "--bin-dir".as_ref(),
            bin.as_ref(),
        ]);
    }

    fn is_chained(&self, name: &str) -> bool {
        self.chain(name) == ["bridge", "underpass-cni"]
    }
}

#[test]
fn a_fight_with_another_writer_slows_down_with_one_warning() {
    let (runtime, mut node) = (Runtime::new("fight"), TestNode::new("fight-agent", MESH));
    runtime.write("10-cluster.conflist", LIST);
    runtime.start_agent(&mut node);
    let mut rewrites = 0;
    let end = Instant::now() + Duration::from_secs(3);
    // Like Cilium with cni.exclusive=true.
    while Instant::now() < end {
        if runtime.is_chained("10-cluster.conflist") {
            rewrites += 1;
            runtime.write("10-cluster.conflist", LIST);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(rewrites < 20, "{rewrites} rewrites in 3 s");
    until("the fight is reported", || {
        node.log("agent").contains("UP-AGENT-025").then_some(())
    });
    until("the plugin is chained in the end", || {
        runtime.is_chained("10-cluster.conflist").then_some(())
    });
    assert_eq!(node.log("agent").matches("UP-AGENT-025").count(), 1);
}

#[test]
fn a_running_agent_survives_the_removal_of_the_folder_and_unusable_files() {
    let (runtime, mut node) = (Runtime::new("remove"), TestNode::new("remove-agent", MESH));
    let first = runtime.file("10-cluster.conflist");
    std::os::unix::fs::symlink("10-cluster.conflist", &first).unwrap();
    runtime.start_agent(&mut node);
    until("the unreadable file is reported", || {
        node.log("agent").contains("UP-AGENT-012").then_some(())
    });
    let chained = || runtime.is_chained("10-cluster.conflist").then_some(());
    runtime.write("10-cluster.conflist", LIST);
    until("the plugin is chained", chained);
    for _ in 0..2 {
        fs::remove_dir_all(runtime.0.join("net.d")).unwrap();
        until("the missing plugin is reported", || {
            let why = node.status().unready?;
            why.contains("UP-AGENT-012").then_some(())
        });
        fs::create_dir(runtime.0.join("net.d")).unwrap();
        runtime.write("10-cluster.conflist", LIST);
        until("the plugin is chained in the new folder", chained);
    }
}

#[test]
fn without_inotify_an_agent_follows_the_folder_and_the_mesh_file() {
    let outside = MESH.replacen("ambient", "none", 1);
    let (runtime, mut node) = (
        Runtime::new("polls"),
        TestNode::new("polls-agent", &outside),
    );
    let wire = Wire::new();
    runtime.start_by(|arguments| node.start_agent_without_inotify(arguments));
    let log = node.log("agent");
    assert!(log.contains("fs.inotify.max_user_instances"), "{log}");
    for _ in 0..2 {
        runtime.write("10-cluster.conflist", LIST);
        until("the plugin is chained", || {
            runtime.is_chained("10-cluster.conflist").then_some(())
        });
    }
    node.start_ready_proxy();
    let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    let added = Call::new("ADD", &path_of(&wire.pod), &config).run();
    assert!(added.status.success(), "{added:?}");
    assert_eq!(node.verified_pods(), 0);
    fs::write(node.file("mesh.yaml"), MESH).unwrap();
    until("the pod joins", || {
        (node.verified_pods() == 1).then_some(())
    });
}

#[test]
fn a_running_agent_keeps_the_plugin_chained_and_uninstalling_frees_the_pods() {
    let (runtime, mut node, wire) = (
        Runtime::new("keep"),
        TestNode::new("keep-agent", MESH),
        Wire::new(),
    );
    let bin = runtime.0.join("bin");
    runtime.start_agent(&mut node);
    until("the missing configuration is logged", || {
        node.log("agent").contains("UP-AGENT-013").then_some(())
    });
    let chained =
        || (runtime.chain("10-cluster.conflist") == ["bridge", "underpass-cni"]).then_some(());
    for _ in 0..3 {
        // The main CNI plugin rewrites its configuration repeatedly.
        runtime.write("10-cluster.conflist", LIST);
        until("the plugin is chained", chained);
    }
    fs::remove_file(bin.join("underpass-cni")).unwrap();
    until("the plugin is installed again", || {
        bin.join("underpass-cni").exists().then_some(())
    });

    node.start_ready_proxy();
    let add = Call::new(
        "ADD",
        &path_of(&wire.pod),
        &config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]),
    );
    assert!(add.run().status.success());
    node.kill_all();
    let output = runtime.agent(
        "uninstall",
        &["--state-dir".as_ref(), node.file("state").as_ref()],
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        wire.pod
            .run(redirect::read_back)
            .unwrap()
            .unwrap()
            .is_empty(),
        "no rules are left in the pod"
    );
    assert_eq!(runtime.chain("10-cluster.conflist"), ["bridge"]);
}

#[test]
fn a_running_agent_keeps_its_own_copy_of_the_configuration() {
    let (runtime, mut node) = (Runtime::new("owned"), TestNode::new("owned-agent", MESH));
    let copy = "02-underpass-cni.conflist";
    runtime.write("10-cluster.conflist", LIST);
    runtime.start_by(|arguments| {
        let owned = [arguments, &["--owned-config".as_ref()]].concat();
        node.start_agent_with(&owned)
    });
    let await_chain = |expected: &[&str]| {
        until("the copy is up to date", || {
            (runtime.chain(copy) == expected).then_some(())
        });
    };
    await_chain(&["bridge", "underpass-cni"]);
    let original = || fs::read_to_string(runtime.file("10-cluster.conflist")).unwrap();
    assert_eq!(original(), LIST);
    let changed = LIST.replace("bridge", "ptp");
    runtime.write("10-cluster.conflist", &changed);
    await_chain(&["ptp", "underpass-cni"]);
    assert_eq!(original(), changed);
    fs::remove_file(runtime.file(copy)).unwrap();
    await_chain(&["ptp", "underpass-cni"]);
    fs::remove_file(runtime.file("10-cluster.conflist")).unwrap();
    until("the agent is unready without a main plugin", || {
        let status = node.status();
        status
            .plugin_missing
            .filter(|why| why.contains("UP-AGENT-013"))
    });
    // The runtime does not start pods outside the mesh meanwhile.
    assert_eq!(runtime.chain(copy), ["ptp", "underpass-cni"]);
    node.kill_all();
    assert_eq!(runtime.chain(copy), ["ptp", "underpass-cni"]);
    runtime.uninstall();
    assert_eq!(fs::read_dir(runtime.0.join("net.d")).unwrap().count(), 0);
}

#[test]
fn an_agent_without_a_chain_removes_the_plugin_from_it() {
    let (runtime, mut node) = (Runtime::new("unchained"), TestNode::new("unchained", MESH));
    runtime.write("10-cluster.conflist", LIST);
    runtime.install();
    runtime.start_by(|arguments| {
        let unchained = [arguments, &["--chained=false".as_ref()]].concat();
        node.start_agent_with(&unchained)
    });
    until("the plugin is removed", || {
        (runtime.chain("10-cluster.conflist") == ["bridge"]).then_some(())
    });
    runtime.write("20-other.conflist", LIST);
    assert_eq!(node.status().plugin_missing, None);
    assert_eq!(runtime.chain("10-cluster.conflist"), ["bridge"]);
}

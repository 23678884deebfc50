//! podman, a runtime that knows nothing of Kubernetes: its containers are no pods.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use netns::NetNs;
use underpass_tests::binaries::{binary, runtime};
use underpass_tests::cgroup::Cgroup;
use underpass_tests::image::{self, IMAGE, PAGE};
use underpass_tests::machine::Machine;
use underpass_tests::network::{NAME, Network};
use underpass_tests::node::{MESH, Node};
use underpass_tests::skip::skip;

/// podman with everything of it in the test's folder.
struct Podman {
    machine: Machine, // first, for it ends before the others do
    folder: PathBuf,
    configuration: OsString,
}

impl Podman {
    fn start(node: &Node, network: &Network) -> Self {
        let folder = node.file("");
        let [conf, bin] = network.folders();
        let text = format!(
            r#"[containers]
apparmor_profile = ""
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
[network]
network_backend = "cni"
network_config_dir = "{}"
cni_plugin_dirs = ["{}"]
default_network = "{NAME}"
"#,
            conf.display(),
            bin.display()
        );
        let configuration = folder.join("containers.conf");
        fs::write(&configuration, text).unwrap();
        let machine = Machine::start(&node.netns, &folder, &["sleep".as_ref(), "infinity".as_ref()]);
        Self { machine, folder, configuration: configuration.into() }
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = self.machine.command(runtime("podman").unwrap());
        command.env("CONTAINERS_CONF", &self.configuration);
        command.arg("--root").arg(self.folder.join("root")).arg("--runroot").arg(self.folder.join("runroot"));
        let output = command.args(["--storage-driver", "overlay"]).args(args).output().unwrap();
        assert!(output.status.success(), "podman {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }
}

fn missing() -> Option<&'static str> {
    let runs = |podman: PathBuf| Command::new(podman).arg("--version").output().is_ok_and(|o| o.status.success());
    if !runtime("podman").is_some_and(runs) {
        return Some("podman is missing (scripts/lib/runtimes gets it)");
    }
    let others = ["/usr/lib/cni/bridge", "/usr/bin/conmon", "/usr/sbin/runc", "/bin/busybox"];
    others
        .into_iter()
        .find(|p| !Path::new(p).exists())
        .map(|_| "conmon, runc, CNI's plugins or busybox-static is missing")
}

#[test]
fn containers_of_podman_are_no_pods_and_need_no_agent() {
    if let Some(why) = missing() {
        skip("containers_of_podman_are_no_pods_and_need_no_agent", why);
        return;
    }
    let node = Node::new("podman", MESH);
    let cgroup = Cgroup::of(&node.file(""));
    let plugins = ["bridge", "host-local", "loopback"].map(|p| Path::new("/usr/lib/cni").join(p));
    let network = Network::new(&node.file("cni"), "1.0.0", &plugins, 1);
    let [conf, bin] = network.folders();
    let mut install = Command::new(binary("underpass-agent"));
    install.arg("install").arg("--conf-dir").arg(conf).arg("--bin-dir").arg(bin);
    assert!(install.arg("--agent-socket").arg(node.agent_socket()).output().unwrap().status.success());
    let podman = Podman::start(&node, &network);

    podman.run(&["load", "--quiet", "--input", image::archive(&node.file("")).to_str().unwrap()]);
    let serve = ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"];
    let run = ["run", "--detach", "--name", "web", "--entrypoint", "", "--cgroup-parent", &cgroup.path(), IMAGE];
    podman.run(&[&run[..], &serve].concat());
    let get = ["exec", "web", "/bin/busybox", "wget", "-q", "-O", "-", "http://10.88.0.2:8080/"];
    assert_eq!(String::from_utf8_lossy(&podman.run(&get).stdout), PAGE);
    let calls = network.recorder.calls();
    let netns = NetNs::open(podman.machine.path(&calls[1].env["CNI_NETNS"])).unwrap();
    assert!(netns.run(redirect::read_back).unwrap().unwrap().is_empty(), "no rules of ours");
    drop(netns);
    podman.run(&["rm", "--force", "--time", "0", "web"]);

    assert_eq!(
        network.recorder.story(),
        ["VERSION netns", "ADD netns prevResult", "VERSION netns", "DEL netns prevResult"]
    );
    let add = &network.recorder.calls()[1];
    assert_eq!(add.env["CNI_ARGS"], "IgnoreUnknown=1;K8S_POD_NAME=web", "a name, and no namespace");
    assert_eq!(calls[0].env["CNI_NETNS"], "dummy", "VERSION is about no pod");
    assert!(network.taken_addresses().is_empty());
}

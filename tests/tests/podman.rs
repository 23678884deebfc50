//! podman, a runtime without Kubernetes: its containers are not pods.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use netns::NetNs;
use underpass_tests::binaries::{binary, runtime_files, runtimes};
use underpass_tests::cgroup::Cgroup;
use underpass_tests::cni_network::{self, CniNetwork, NAME};
use underpass_tests::image::{self, IMAGE, PAGE};
use underpass_tests::machine::Machine;
use underpass_tests::node::{MESH, TestNode};
use underpass_tests::skip::skip;

/// podman with all its files in the test's folder.
struct Podman {
    machine: Machine, // the first field, so that it is dropped first
    folder: PathBuf,
    configuration: OsString,
}

impl Podman {
    fn start(node: &TestNode, network: &CniNetwork) -> Self {
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
conmon_path = ["{}"]
[engine.runtimes]
runc = ["{}"]
[network]
network_backend = "cni"
network_config_dir = "{}"
cni_plugin_dirs = ["{}"]
default_network = "{NAME}"
"#,
            runtimes().join("bin/conmon").display(),
            runtimes().join("bin/runc").display(),
            conf.display(),
            bin.display()
        );
        let policy = folder.join(".config/containers/policy.json");
        fs::create_dir_all(policy.parent().unwrap()).unwrap();
        fs::write(
            policy,
            r#"{ "default": [{ "type": "insecureAcceptAnything" }] }"#,
        )
        .unwrap();
        let configuration = folder.join("containers.conf");
        fs::write(&configuration, text).unwrap();
        let machine = Machine::start(
            &node.netns,
            &folder,
            &["sleep".as_ref(), "infinity".as_ref()],
        );
        Self {
            machine,
            folder,
            configuration: configuration.into(),
        }
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = self.machine.command("podman");
        command
            .env("CONTAINERS_CONF", &self.configuration)
            .env("HOME", &self.folder);
        command
            .arg("--root")
            .arg(self.folder.join("root"))
            .arg("--runroot")
            .arg(self.folder.join("runroot"));
        let output = command
            .args(["--storage-driver", "overlay"])
            .args(args)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "podman {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }
}

#[test]
fn podman_containers_start_without_an_agent() {
    let parts = runtime_files(["bin/podman", "bin/conmon", "bin/runc", "bin/busybox"]);
    let plugins = match parts.and(runtime_files(cni_network::PLUGINS)) {
        Ok(plugins) => plugins,
        Err(why) => return skip(&why),
    };
    let node = TestNode::new("podman", MESH);
    let cgroup = Cgroup::of(&node.file(""));
    let network = CniNetwork::new(&node.file("cni"), "1.0.0", &plugins, 1);
    let [conf, bin] = network.folders();
    let mut install = Command::new(binary("underpass-agent"));
    install
        .arg("install")
        .arg("--conf-dir")
        .arg(conf)
        .arg("--bin-dir")
        .arg(bin);
    assert!(
        install
            .arg("--agent-socket")
            .arg(node.agent_socket())
            .output()
            .unwrap()
            .status
            .success()
    );
    let podman = Podman::start(&node, &network);

    podman.run(&[
        "load",
        "--quiet",
        "--input",
        image::archive(&node.file("")).to_str().unwrap(),
    ]);
    let serve = ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"];
    let run = [
        "run",
        "--detach",
        "--name",
        "web",
        "--entrypoint",
        "",
        "--cgroup-parent",
        &cgroup.path(),
        IMAGE,
    ];
    podman.run(&[&run[..], &serve].concat());
    let get = [
        "exec",
        "web",
        "/bin/busybox",
        "wget",
        "-q",
        "-O",
        "-",
        "http://10.88.0.2:8080/",
    ];
    assert_eq!(String::from_utf8_lossy(&podman.run(&get).stdout), PAGE);
    let calls = network.recorder.calls();
    let netns = NetNs::open(podman.machine.path(&calls[1].env["CNI_NETNS"])).unwrap();
    assert!(
        netns.run(redirect::read_back).unwrap().unwrap().is_empty(),
        "rules in the container's namespace"
    );
    drop(netns);
    podman.run(&["rm", "--force", "--time", "0", "web"]);

    assert_eq!(
        network.recorder.summaries(),
        [
            "VERSION netns",
            "ADD netns prevResult",
            "VERSION netns",
            "DEL netns prevResult"
        ]
    );
    let add = &network.recorder.calls()[1];
    assert_eq!(
        add.env["CNI_ARGS"], "IgnoreUnknown=1;K8S_POD_NAME=web",
        "there is no pod namespace"
    );
    assert_eq!(
        calls[0].env["CNI_NETNS"], "dummy",
        "VERSION is called without a pod"
    );
    assert!(network.allocated_addresses().is_empty());
}

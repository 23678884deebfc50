//! A real containerd as the runtime of a test's node.

#![allow(clippy::disallowed_types)] // containerd and its tool are programs

mod cri;
mod grpc;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::binaries::runtime_files;
use crate::cgroup::Cgroup;
use crate::cni_network::{self, CniNetwork};
use crate::cni_recorder;
use crate::image::{self, IMAGE};
use crate::machine::Machine;
use crate::node::TestNode;
use crate::sandbox::until;

pub use cri::{Cri, PodSandboxConfig};
pub use grpc::Status;

/// The required programs.
const PARTS: [&str; 5] = [
    "bin/containerd",
    "bin/containerd-shim-runc-v2",
    "bin/ctr",
    "bin/runc",
    "bin/busybox",
];

/// What this machine lacks for a real containerd.
pub fn missing() -> Option<String> {
    runtime_files(PARTS)
        .and(runtime_files(cni_network::PLUGINS))
        .err()
}

/// A node with containerd.
#[derive(Debug)]
pub struct Containerd {
    /// The CRI client.
    pub cri: Cri,
    /// The network of its pods.
    pub network: CniNetwork,
    /// The machine that it runs on. Agents run there as well, to see pods' network namespaces under
    /// the paths that containerd passes.
    pub machine: Machine,
    folder: PathBuf,
    cgroup: Cgroup,
}

impl Containerd {
    /// Starts containerd without Underpass in its conflist. At most `pods` pods have an address at
    /// a time.
    pub fn start(node: &TestNode, pods: u8) -> Self {
        let folder = node.file("containerd");
        fs::create_dir_all(folder.join("logs")).unwrap();
        let plugins = runtime_files(cni_network::PLUGINS).unwrap();
        // containerd 1.6 supports no later version.
        let network = CniNetwork::new(&folder, "1.0.0", &plugins, pods);
        fs::write(folder.join("config.toml"), configuration(&folder)).unwrap();
        let config = folder.join("config.toml");
        let program: [&OsStr; 3] = ["containerd".as_ref(), "--config".as_ref(), config.as_ref()];
        let machine = Machine::start(&node.netns, &folder, &program);
        let cri = Cri {
            socket: folder.join("containerd.sock"),
        };
        let cgroup = Cgroup::of(&node.file(""));
        let containerd = Self {
            cri,
            network,
            machine,
            folder,
            cgroup,
        };
        containerd.await_answer();
        containerd.import(&image::archive(&containerd.folder), IMAGE);
        containerd
    }

    /// Imports an archive and waits until its image is listed under that name.
    pub fn import(&self, archive: &Path, name: &str) {
        let mut ctr = self.machine.command("ctr");
        ctr.arg("--address")
            .arg(&self.cri.socket)
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(archive);
        let output = ctr.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        until("containerd knows the image", || {
            self.cri.has_image(name).ok()?.then_some(())
        });
    }

    fn await_answer(&self) {
        until("containerd answers", || {
            self.cri.network_configuration().ok()
        });
    }

    /// Waits until containerd's active configuration contains Underpass, or no longer does.
    pub fn await_plugin(&self, chained: bool) {
        until("containerd has reloaded the conflist", || {
            let configuration = self.cri.network_configuration().ok()?;
            (configuration.contains(cni_recorder::TYPE)
                && configuration.contains("underpass-cni") == chained)
                .then_some(())
        });
    }

    /// The configuration of a new pod.
    pub fn pod(&self, namespace: &str, name: &str) -> PodSandboxConfig {
        let (uid, logs) = (format!("uid-{name}"), self.folder.join("logs"));
        PodSandboxConfig::new(
            namespace,
            name,
            &uid,
            logs.to_str().unwrap(),
            &self.cgroup.path(),
        )
    }

    /// The network namespace of the newest pod, by the path that was passed to a plugin.
    pub fn newest_netns(&self) -> NetNs {
        let calls = self.network.recorder.calls();
        let add = calls.iter().rfind(|c| c.verb() == "ADD").unwrap();
        NetNs::open(self.machine.path(&add.env["CNI_NETNS"])).unwrap()
    }

    /// Kills containerd and waits until it has been restarted. Containers continue to run.
    pub fn restart(&self) {
        let pid = until("containerd runs", || self.machine.program("containerd"));
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
        until("a new containerd runs", || {
            self.machine.program("containerd").filter(|p| *p != pid)
        });
        self.await_answer();
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.join("machine.log")).unwrap_or_default();
            eprintln!(
                "-- containerd\n{log}-- calls\n{:#?}",
                self.network.recorder.calls()
            );
        }
    }
}

/// Settings that differ from the default: paths, and what a machine without systemd and
/// CAP_SYS_RESOURCE requires.
fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs"]
[grpc]
address = "{folder}/containerd.sock"
[ttrpc]
address = "{folder}/ttrpc.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{folder}/bin"
conf_dir = "{folder}/net.d"
max_conf_num = 1
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
Root = "{folder}/runc"
"#
    )
}

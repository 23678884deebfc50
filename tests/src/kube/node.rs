//! A node: containerd, kubelet and kube-proxy with their own namespaces and root.

#![allow(clippy::disallowed_types)] // a node is programs

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{configuration, node_name};
use crate::binaries::{control_plane, runtimes};
use crate::cgroup::Cgroup;
use crate::cluster::daemon::spawn;
use crate::cluster::fabric::host_ips;
use crate::cluster::{Fabric, Families, Kubernetes};
use crate::machine::children;
use crate::sandbox::until;

const INIT: &str = include_str!("node_init.sh");

/// A running node. It ends with this value, or with the process.
#[derive(Debug)]
pub struct KubeNode {
    /// Its name in Kubernetes.
    pub name: String,
    /// Its network namespace.
    pub netns: NetNs,
    number: u8,
    families: Families,
    folder: PathBuf,
    cgroup: Cgroup,
    /// `unshare`, and the node's first process, with which the kernel ends all of the node's
    /// processes.
    running: Option<(Child, u32)>,
}

impl KubeNode {
    /// Starts a node of a cluster, in its own folder within that of the cluster.
    pub fn start(kubernetes: &Kubernetes, number: u8, netns: NetNs) -> Self {
        let name = node_name(number);
        let folder = kubernetes.folder().join(&name);
        fs::create_dir_all(&folder).unwrap();
        kubernetes
            .pki
            .issue(&format!("kubelet-{name}"), [&name], &host_ips(number));
        for (program, client) in [("kubelet", name.as_str()), ("kube-proxy", "kube-proxy")] {
            let config = kubernetes.kubeconfig(&format!("{program}-{name}"), client);
            fs::copy(config, folder.join(format!("{program}.kubeconfig"))).unwrap();
        }
        let of_cluster = kubernetes.folder().file_name().unwrap().to_str().unwrap();
        let cgroup = Cgroup::of(Path::new(&format!("{of_cluster}-{name}")));
        let families = kubernetes.fabric.families;
        configuration::write(
            &folder,
            number,
            families,
            &cgroup.path(),
            &kubernetes.folder().join("pki"),
        );
        let mut node = Self {
            name,
            netns,
            number,
            families,
            folder,
            cgroup,
            running: None,
        };
        node.power_on();
        node
    }

    /// Starts its first process and waits until its programs are being started. Its disk is
    /// unchanged.
    pub fn power_on(&mut self) {
        self.cgroup.create();
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.join("init.log"))
            .unwrap();
        let _ = fs::remove_file(self.folder.join("ready"));
        let cluster = self.folder.parent().unwrap();
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            INIT,
            "node",
        ]);
        command.arg(&self.name).args([
            self.folder.as_path(),
            cluster,
            &real(control_plane()),
            &real(runtimes()),
        ]);
        command
            .env_clear()
            .envs(self.environment())
            .stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        netns::process::in_netns(&mut command, &self.netns).unwrap();
        let holder = spawn(command);
        let ready = self.folder.join("ready");
        until("the node is up", || ready.exists().then_some(()));
        let init = children(holder.id())[0];
        self.running = Some((holder, init));
    }

    /// Ends all its processes, like a power failure. Its disk is unchanged.
    pub fn power_off(&mut self) {
        let Some((mut holder, init)) = self.running.take() else {
            return;
        };
        let _ = kill(Pid::from_raw(i32::try_from(init).unwrap()), Signal::SIGKILL);
        let _ = holder.wait();
        self.cgroup.remove(); // or the next kubelet would wait for these processes
    }

    /// Gives it a new network, without rules and links, as after a boot.
    pub fn rewire(&mut self, fabric: &Fabric) {
        self.netns = NetNs::create().unwrap();
        until("the old link is removed", || {
            fabric.is_free(self.number).then_some(())
        });
        self.netns = fabric.host(self.number);
    }

    /// A command to run on the node.
    pub fn command(&self, program: &str) -> Command {
        let init = self.init();
        let namespaces =
            ["mnt", "uts", "ipc", "net"].map(|ns| format!("--{}=/proc/{init}/ns/{ns}", long(ns)));
        let mut command = Command::new("nsenter");
        command
            .args(namespaces)
            .arg(format!("--pid=/proc/{init}/ns/pid"))
            .arg(format!("--root=/proc/{init}/root"));
        command.args(["--wd=/", "--", "setpriv", "--pdeathsig=KILL", program]);
        command.env_clear().envs(self.environment());
        command
    }

    /// Runs a command on the node and returns its output.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        printed(&self.command(program).args(arguments).output().unwrap())
    }

    /// The path of a file of the node, as seen from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init()))
    }

    /// Kills one of its programs (`kubelet`, `containerd`) and waits until it has been restarted.
    pub fn kill(&self, program: &str) {
        let pid = until("the program runs", || self.program(program));
        let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
        until("it runs again", || {
            self.program(program).filter(|p| *p != pid)
        });
    }

    /// The process id of one of its programs, if it runs.
    pub fn program(&self, name: &str) -> Option<u32> {
        let named = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim_end() == name)
        };
        children(self.init())
            .into_iter()
            .flat_map(children)
            .find(named)
    }

    /// Its addresses, IPv4 first.
    pub fn ips(&self) -> [IpAddr; 2] {
        host_ips(self.number)
    }

    /// The log of one of its programs.
    pub fn log(&self, program: &str) -> String {
        fs::read_to_string(self.folder.join(format!("{program}.log"))).unwrap_or_default()
    }

    /// Imports images into its containerd.
    pub fn import(&self, archive: &Path) {
        until("containerd answers", || {
            self.command("ctr")
                .arg("version")
                .output()
                .unwrap()
                .status
                .success()
                .then_some(())
        });
        self.run(
            "ctr",
            &[
                "--namespace",
                "k8s.io",
                "images",
                "import",
                archive.to_str().unwrap(),
            ],
        );
    }

    /// The process id of its first process.
    pub fn init(&self) -> u32 {
        self.running.as_ref().expect("the node is on").1
    }

    fn environment(&self) -> [(&'static str, String); 4] {
        let programs = real(control_plane().join("bin"));
        let path = format!(
            "{}:{}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            programs.display(),
            real(runtimes()).display()
        );
        [
            ("PATH", path),
            ("HOME", "/root".to_owned()),
            (
                "NODE_IP",
                self.families
                    .of(self.ips().map(|ip| ip.to_string()))
                    .join(","),
            ),
            ("PROGRAMS", programs.to_str().unwrap().to_owned()),
        ]
    }
}

impl Drop for KubeNode {
    fn drop(&mut self) {
        self.power_off();
    }
}

/// The output of a command.
///
/// # Panics
/// When the command has failed.
pub fn printed(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}: {}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// The long option of `nsenter` for a kind of namespace.
fn long(namespace: &str) -> &str {
    if namespace == "mnt" {
        "mount"
    } else {
        namespace
    }
}

/// Resolves links, as a node sees the machine's folders at their real paths.
fn real(path: PathBuf) -> PathBuf {
    path.canonicalize().unwrap()
}

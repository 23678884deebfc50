//! Processes of pods, which the agent finds by their control groups.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use underpass_tests::cgroup::remove_all;
use underpass_tests::cluster::ClusterPod;
use underpass_tests::sandbox::until;

/// A process of a pod, in its network namespace and in a control group like a kubelet's.
pub struct PodProcess {
    process: Child,
    top: String,
}

impl PodProcess {
    /// `below` is the path of the control group below the pod's top-level group.
    pub fn start(pod: &ClusterPod, below: &str) -> Self {
        let top = format!("underpass-older-{}-{}", pod.namespace, pod.name);
        let group = hierarchy().join(&top).join(below.trim_start_matches('/'));
        fs::create_dir_all(&group).unwrap();
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::null());
        netns::process::in_netns(&mut command, &pod.netns).unwrap();
        let process = netns::process::die_with_parent(&mut command)
            .spawn()
            .unwrap();
        fs::write(group.join("cgroup.procs"), process.id().to_string()).unwrap();
        Self { process, top }
    }
}

impl Drop for PodProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let top = &self.top;
        until("the control groups are removed", || {
            remove_all(|name| name == top).then_some(())
        });
    }
}

/// A version 1 hierarchy whose groups need no settings, or the version 2 hierarchy.
fn hierarchy() -> PathBuf {
    let roots =
        ["freezer", "memory", "pids", "."].map(|name| PathBuf::from("/sys/fs/cgroup").join(name));
    roots
        .into_iter()
        .find(|root| root.join("cgroup.procs").exists())
        .unwrap()
}

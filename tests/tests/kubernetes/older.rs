//! Pods that are older than the agent are found by their processes and control groups.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use underpass_tests::cgroup::remove_all;
use underpass_tests::cluster::{AgentNode, Pod, container_of};
use underpass_tests::sandbox::until;

use super::scene::{AMBIENT, added, await_annotation, cluster_or_skip, events, in_place};

/// A process of a pod, in its namespace and in a control group as a kubelet makes it.
struct Sandbox {
    process: Child,
    top: String,
}

impl Sandbox {
    /// `below` is the path of the group under a top of its own.
    fn start(pod: &Pod, below: &str) -> Self {
        let top = format!("underpass-older-{}-{}", pod.namespace, pod.name);
        let group = hierarchy().join(&top).join(below.trim_start_matches('/'));
        fs::create_dir_all(&group).unwrap();
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::null());
        netns::process::in_netns(&mut command, &pod.netns).unwrap();
        let process = netns::process::die_with_parent(&mut command).spawn().unwrap();
        fs::write(group.join("cgroup.procs"), process.id().to_string()).unwrap();
        Self { process, top }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let top = &self.top;
        until("the control groups are gone", || remove_all(|name| name == top).then_some(()));
    }
}

/// A hierarchy of version 1 that needs nothing to be set, or the one of version 2.
fn hierarchy() -> PathBuf {
    let roots = ["freezer", "memory", "pids", "."].map(|name| PathBuf::from("/sys/fs/cgroup").join(name));
    roots.into_iter().find(|root| root.join("cgroup.procs").exists()).unwrap()
}

#[test]
fn pods_older_than_the_agent_join_by_their_processes() {
    let cluster = cluster_or_skip!("pods_older_than_the_agent_join_by_their_processes");
    cluster.namespace("older", AMBIENT);
    let mut node = AgentNode::new(&cluster, "older");
    let [cgroupfs, systemd, lost] = ["cgroupfs", "systemd", "lost"].map(|name| cluster.pod(&node.place, "older", name));
    let container = container_of;
    let (uid, id) = (&cgroupfs.uid, container(&cgroupfs));
    let _first = Sandbox::start(&cgroupfs, &format!("kubepods/besteffort/pod{uid}/{id}"));
    let (uid, id) = (systemd.uid.replace('-', "_"), container(&systemd));
    let slice = format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice");
    let _second = Sandbox::start(&systemd, &format!("{slice}/cri-containerd-{id}.scope"));
    // A process that says it is of the pod, and is in another namespace.
    let stranger = cluster.pod(&node.place, "older", "stranger");
    let _third = Sandbox::start(
        &Pod { uid: lost.uid.clone(), name: "lost".into(), ..stranger },
        &format!("kubepods/pod{}", lost.uid),
    );

    node.start_agent(&[]);
    node.start_proxy();
    for pod in [&cgroupfs, &systemd] {
        node.await_verified(pod);
        assert!(in_place(pod));
        await_annotation(&cluster, pod, &json!("enabled"));
    }
    node.await_status("the lost pod says so", &lost, |p| {
        p["reason"].as_str().is_some_and(|r| r.contains("UP-AGENT-023"))
    });
    assert!(!in_place(&lost));
    let told = until("an Event tells of the lost pod", || {
        events(&cluster, &lost, "MeshEnrolmentFailed", "UP-AGENT-023").pop()
    });
    assert!(told["message"].as_str().unwrap().contains("Next step: "), "{told}");
    // Their DEL is that of any other pod.
    assert!(node.del(&cgroupfs).status.success());
    until("the agent holds it no more", || {
        node.status(&cgroupfs).is_none_or(|p| p["state"] != "enrolled").then_some(())
    });
    added(&node, &lost);
    node.await_verified(&lost);
}

/// The process by which a pod was found ends, before the pod could join and while no agent runs: another one does as well.
#[test]
fn a_pod_whose_process_has_ended_is_found_by_another() {
    let cluster = cluster_or_skip!("a_pod_whose_process_has_ended_is_found_by_another");
    cluster.namespace("ended", AMBIENT);
    let mut node = AgentNode::new(&cluster, "ended");
    let pod = cluster.pod(&node.place, "ended", "pod");
    let start = |id: &str| Sandbox::start(&pod, &format!("kubepods/pod{}/{id}", pod.uid));
    let first = start("first");
    let agent = node.start_agent(&[]);
    node.await_status("it cannot join without a proxy", &pod, |p| {
        p["reason"].as_str().is_some_and(|r| r.contains("UP-AGENT-006"))
    });
    drop(first);
    let second = start("second");
    node.start_proxy();
    node.await_verified(&pod);

    // The next agent finds it where it was, and the one after that where it is.
    node.processes.kill(agent);
    let agent = node.start_agent(&[]);
    node.await_verified(&pod);
    node.processes.kill(agent);
    drop(second);
    let _third = start("third");
    node.start_agent(&[]);
    node.await_verified(&pod);
    assert!(in_place(&pod));
    let log = node.processes.log("agent");
    assert_eq!(log.matches("found by its processes").count(), 3, "{log}");
}

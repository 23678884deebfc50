//! Restarts of nodes and of their programs.

use serde_json::Value;
use underpass_tests::kube::app::App;
use underpass_tests::kube::underpass::{AGENTS, PROXIES};
use underpass_tests::kube::{Kube, condition, missing, until};
use underpass_tests::skip::skip;
use underpass_tests::sniffer::Counter;

fn app<'a>(namespace: &'a str, name: &'a str, node: &'a str) -> App<'a> {
    App {
        namespace,
        name,
        node: Some(node),
        labels: Value::Null,
    }
}

#[test]
fn kubelet_and_containerd_restart_without_affecting_pods_in_the_mesh() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh_exclusive();
    kube.namespace("programs", true);
    kube.launch(&[
        app("programs", "client", "node-1"),
        app("programs", "server", "node-2"),
    ]);
    kube.await_enrolled("programs", "client", true);
    let [v4, v6] = kube.service("programs", "server");
    kube.await_answer("programs", "client", &[&v4, &v6]);
    let mut open = kube.connect("programs", "client", &v6).unwrap();
    for (round, program) in ["kubelet", "containerd"].iter().enumerate() {
        kube.node("node-1").kill(program);
        open.ask().unwrap();
        let name = format!("after-{program}");
        kube.launch(&[app("programs", &name, "node-1")]);
        kube.await_enrolled("programs", &name, true);
        kube.await_answer("programs", &name, &[&v4, &v6]);
        open.ask().unwrap();
        assert_eq!(kube.states("node-1", "programs").len(), round + 2);
    }
    let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
    assert_eq!(restarts(&kube.pod("programs", "client").unwrap()), Some(0));
    kube.kubectl(&["delete", "namespace", "programs", "--wait=false"]);
}

#[test]
fn a_node_restarts_with_its_pods_in_the_mesh() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let mut kube = Kube::mesh_exclusive();
    kube.namespace("power", true);
    kube.launch(&[
        app("power", "server", "node-1"),
        app("power", "client", "node-2"),
    ]);
    kube.await_enrolled("power", "client", true);
    let [v4, v6] = kube.service("power", "server");
    kube.await_answer("power", "client", &[&v4, &v6]);
    let counter = Counter::start(&kube.node("node-1").netns, "eth0", "Host: app");
    kube.reboot("node-2");
    until("the pod has started again", || {
        let pod = kube.pod("power", "client")?;
        let restarted = pod["status"]["containerStatuses"][0]["restartCount"].as_u64()? > 0;
        (restarted && condition(&pod, "Ready")).then_some(())
    });
    until("it is verified", || {
        (kube.states("node-2", "power") == [("client".to_owned(), "verified".to_owned())])
            .then_some(())
    });
    kube.await_answer("power", "client", &[&v4, &v6]);
    let seen = counter.stop();
    assert_eq!(seen.readable, 0, "{seen:?}");
    kube.kubectl(&["delete", "namespace", "power", "--wait=false"]);
}

/// A node is deleted from the cluster while its pods run, and registers again under its name.
#[test]
fn a_node_that_is_deleted_and_added_again_enrols_pods() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh_exclusive();
    kube.namespace("taken-out", true);
    kube.launch(&[
        app("taken-out", "server", "node-1"),
        app("taken-out", "client", "node-2"),
    ]);
    kube.await_enrolled("taken-out", "client", true);
    let [v4, v6] = kube.service("taken-out", "server");
    kube.await_answer("taken-out", "client", &[&v4, &v6]);
    let counter = Counter::start(&kube.node("node-1").netns, "eth0", "Host: app");

    kube.kubectl(&["delete", "node", "node-2", "--wait=false"]);
    until("its pods are removed", || {
        let pods = kube.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-2")?;
        pods["items"].as_array()?.is_empty().then_some(())
    });
    kube.node("node-2").kill("kubelet"); // it registers the node when it starts
    kube.await_nodes();
    kube.await_rollout(AGENTS);
    kube.await_rollout(PROXIES);
    kube.launch(&[app("taken-out", "next", "node-2")]);
    kube.await_enrolled("taken-out", "next", true);
    kube.await_answer("taken-out", "next", &[&v4, &v6]);
    until("the agent no longer lists the earlier pod", || {
        (kube.states("node-2", "taken-out") == [("next".to_owned(), "verified".to_owned())])
            .then_some(())
    });
    let (code, out, err) = kube.with_kubeconfig(&kube.kubeconfig, &["check", "--wait", "60"]);
    assert_eq!(code, 0, "{out}{err}");
    let seen = counter.stop();
    assert_eq!(seen.readable, 0, "{seen:?}");
    kube.kubectl(&["delete", "namespace", "taken-out", "--wait=false"]);
}

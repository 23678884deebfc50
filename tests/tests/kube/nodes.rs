//! Nodes and their programs that go away and come back.

use serde_json::Value;
use underpass_tests::kube::app::App;
use underpass_tests::kube::underpass::{AGENTS, PROXIES};
use underpass_tests::kube::{Kube, await_within, condition, missing};
use underpass_tests::skip::skip;
use underpass_tests::sniffer::Counter;

fn app<'a>(namespace: &'a str, name: &'a str, node: &'a str) -> App<'a> {
    App { namespace, name, node: Some(node), labels: Value::Null }
}

#[test]
fn kubelet_and_containerd_come_back_to_pods_in_the_mesh() {
    if let Some(why) = missing() {
        return skip("kubelet_and_containerd_come_back_to_pods_in_the_mesh", &why);
    }
    let kube = Kube::mesh_alone();
    kube.namespace("programs", true);
    kube.launch(&[app("programs", "client", "node-1"), app("programs", "server", "node-2")]);
    kube.await_enrolled("programs", "client", true);
    let [v4, v6] = kube.service("programs", "server");
    kube.hear("programs", "client", &[&v4, &v6]);
    let mut open = kube.connect("programs", "client", &v6).unwrap();
    for (round, program) in ["kubelet", "containerd"].iter().enumerate() {
        kube.node("node-1").kill(program);
        open.ask().unwrap();
        let name = format!("after-{program}");
        kube.launch(&[app("programs", &name, "node-1")]);
        kube.await_enrolled("programs", &name, true);
        kube.hear("programs", &name, &[&v4, &v6]);
        open.ask().unwrap();
        assert_eq!(kube.states("node-1", "programs").len(), round + 2);
    }
    let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
    assert_eq!(restarts(&kube.pod("programs", "client").unwrap()), Some(0));
    kube.kubectl(&["delete", "namespace", "programs", "--wait=false"]);
}

#[test]
fn a_node_that_was_off_comes_back_with_its_pods_in_the_mesh() {
    if let Some(why) = missing() {
        return skip("a_node_that_was_off_comes_back_with_its_pods_in_the_mesh", &why);
    }
    let mut kube = Kube::mesh_alone();
    kube.namespace("power", true);
    kube.launch(&[app("power", "server", "node-1"), app("power", "client", "node-2")]);
    kube.await_enrolled("power", "client", true);
    let [v4, v6] = kube.service("power", "server");
    kube.hear("power", "client", &[&v4, &v6]);
    let counter = Counter::start(&kube.node("node-1").netns, "eth0", "Host: app");
    kube.reboot("node-2");
    await_within(120, "the pod has started again", || {
        let pod = kube.pod("power", "client")?;
        let restarted = pod["status"]["containerStatuses"][0]["restartCount"].as_u64()? > 0;
        (restarted && condition(&pod, "Ready")).then_some(())
    });
    await_within(60, "it is verified", || {
        (kube.states("node-2", "power") == [("client".to_owned(), "verified".to_owned())]).then_some(())
    });
    kube.hear("power", "client", &[&v4, &v6]);
    let seen = counter.stop();
    assert_eq!(seen.readable, 0, "{seen:?}");
    kube.kubectl(&["delete", "namespace", "power", "--wait=false"]);
}

/// A node is taken out of the cluster while its pods run, and comes back under its name.
#[test]
fn a_node_that_is_deleted_and_added_again_takes_pods_into_the_mesh() {
    if let Some(why) = missing() {
        return skip("a_node_that_is_deleted_and_added_again_takes_pods_into_the_mesh", &why);
    }
    let kube = Kube::mesh_alone();
    kube.namespace("taken-out", true);
    kube.launch(&[app("taken-out", "server", "node-1"), app("taken-out", "client", "node-2")]);
    kube.await_enrolled("taken-out", "client", true);
    let [v4, v6] = kube.service("taken-out", "server");
    kube.hear("taken-out", "client", &[&v4, &v6]);
    let counter = Counter::start(&kube.node("node-1").netns, "eth0", "Host: app");

    kube.kubectl(&["delete", "node", "node-2", "--wait=false"]);
    await_within(120, "its pods are forgotten", || {
        let pods = kube.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-2")?;
        pods["items"].as_array()?.is_empty().then_some(())
    });
    kube.node("node-2").kill("kubelet"); // which makes itself known when it begins
    kube.await_nodes();
    kube.await_rollout(AGENTS);
    kube.await_rollout(PROXIES);
    kube.launch(&[app("taken-out", "next", "node-2")]);
    kube.await_enrolled("taken-out", "next", true);
    kube.hear("taken-out", "next", &[&v4, &v6]);
    await_within(60, "of the earlier pod nothing is left", || {
        (kube.states("node-2", "taken-out") == [("next".to_owned(), "verified".to_owned())]).then_some(())
    });
    let (code, out, err) = kube.with_kubeconfig(&kube.kubeconfig, &["check", "--wait", "60"]);
    assert_eq!(code, 0, "{out}{err}");
    let seen = counter.stop();
    assert_eq!(seen.readable, 0, "{seen:?}");
    kube.kubectl(&["delete", "namespace", "taken-out", "--wait=false"]);
}

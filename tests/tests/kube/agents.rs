//! Agents that restart and labels that change under running pods.

use serde_json::Value;
use underpass_tests::cluster::istiod::NAMESPACE;
use underpass_tests::kube::app::App;
use underpass_tests::kube::request_loop::RequestLoop;
use underpass_tests::kube::underpass::AGENTS;
use underpass_tests::kube::{Kube, missing, until};
use underpass_tests::skip::skip;

#[test]
fn the_next_agent_takes_over_fifty_pods() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh_exclusive();
    kube.namespace("fifty", true);
    let names: Vec<_> = (0..50).map(|n| format!("pod-{n}")).collect();
    let app = |name| App {
        namespace: "fifty",
        name,
        node: Some("node-1"),
        labels: Value::Null,
    };
    kube.launch(&names.iter().map(|n| app(n.as_str())).collect::<Vec<_>>());
    names
        .iter()
        .for_each(|name| kube.await_enrolled("fifty", name, true));
    let to = format!("{}:8080", kube.addresses("fifty", "pod-1")[0]);
    let mut open = kube.connect("fifty", "pod-0", &to).unwrap();
    let before = kube.ready_pod_of(AGENTS, "node-1").unwrap();
    kube.kubectl(&[
        "delete",
        "pod",
        "-n",
        NAMESPACE,
        &before,
        "--grace-period=0",
        "--force",
    ]);
    until("the next agent is ready", || {
        assert!(
            names
                .iter()
                .take(5)
                .all(|name| kube.enrolled("fifty", name)),
            "a pod was announced to have left"
        );
        open.ask().unwrap();
        kube.ready_pod_of(AGENTS, "node-1")
            .filter(|now| *now != before)
    });
    until("all are verified", || {
        let states = kube.states("node-1", "fifty");
        (states.len() == 50 && states.iter().all(|(_, state)| state == "verified")).then_some(())
    });
    open.ask().unwrap();
    assert!(names.iter().all(|name| kube.enrolled("fifty", name)));
    kube.kubectl(&["delete", "namespace", "fifty", "--timeout=120s"]);
}

#[test]
fn no_request_is_lost_while_a_namespace_joins_and_leaves() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh();
    kube.namespace("busy", false);
    let app = |name, node| App {
        namespace: "busy",
        name,
        node: Some(node),
        labels: Value::Null,
    };
    kube.launch(&[app("client", "node-1"), app("server", "node-2")]);
    let service = kube.service("busy", "server");
    kube.await_answer("busy", "client", &[&service[0], &service[1]]);
    let flip = |loops: &[RequestLoop], mesh: bool| {
        kube.namespace("busy", mesh);
        for pod in ["client", "server"] {
            kube.await_enrolled("busy", pod, mesh);
        }
        // Continue until all proxies have received the change, and longer.
        for _ in 0..4 {
            loops.iter().for_each(|l| assert!(l.await_answers() > 0));
        }
    };
    let reconnecting = service
        .iter()
        .map(|to| kube.request_on_new_connections("busy", "client", to));
    let repeating = service
        .iter()
        .map(|to| kube.request_on_one_connection("busy", "client", to));
    let loops: Vec<RequestLoop> = reconnecting.chain(repeating).collect();
    for round in 1..=6 {
        flip(&loops, round % 2 == 1);
    }
    drop(loops);
    // Without an open connection the pods leave completely. The server leaves first, while the
    // client's proxy still has a tunnel to it.
    let loops: Vec<RequestLoop> = service
        .iter()
        .map(|to| kube.request_on_new_connections("busy", "client", to))
        .collect();
    flip(&loops, true);
    kube.kubectl(&[
        "label",
        "pod",
        "-n",
        "busy",
        "server",
        "istio.io/dataplane-mode=none",
    ]);
    let await_outside = |pod: &str, node| {
        until("the pod is outside the mesh", || {
            (kube.states(node, "busy") == [(pod.to_owned(), "skipped".to_owned())]).then_some(())
        });
        loops.iter().for_each(|l| assert!(l.await_answers() > 0));
    };
    await_outside("server", "node-2");
    kube.namespace("busy", false);
    await_outside("client", "node-1");
    kube.kubectl(&["delete", "namespace", "busy", "--wait=false"]);
}

#[test]
fn a_namespace_labelled_and_unlabelled_twenty_times_ends_in_the_last_state() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh();
    kube.namespace("flipped", false);
    let app = |name, node| App {
        namespace: "flipped",
        name,
        node: Some(node),
        labels: Value::Null,
    };
    kube.launch(&[app("client", "node-1"), app("server", "node-2")]);
    let [v4, v6] = kube.service("flipped", "server");
    kube.await_answer("flipped", "client", &[&v4, &v6]);
    let mut open = kube.connect("flipped", "client", &v4).unwrap();
    for round in 0..20 {
        kube.namespace("flipped", round % 2 == 0);
        open.ask().unwrap();
    }
    kube.namespace("flipped", true);
    for (pod, node) in [("client", "node-1"), ("server", "node-2")] {
        // The annotation may still be that of an earlier flip.
        until("the pod is verified", || {
            (kube.states(node, "flipped") == [(pod.to_owned(), "verified".to_owned())])
                .then_some(())
        });
        kube.await_enrolled("flipped", pod, true);
    }
    open.ask().unwrap();
    kube.await_answer("flipped", "client", &[&v4, &v6]);
    kube.kubectl(&["delete", "namespace", "flipped", "--wait=false"]);
}

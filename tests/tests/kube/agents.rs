//! Agents and labels that change under running pods.

use serde_json::Value;
use underpass_tests::cluster::istiod::NAMESPACE;
use underpass_tests::kube::app::App;
use underpass_tests::kube::held::Held;
use underpass_tests::kube::underpass::AGENTS;
use underpass_tests::kube::{Kube, await_within, missing};
use underpass_tests::skip::skip;

#[test]
fn the_next_agent_takes_over_fifty_pods() {
    if let Some(why) = missing() {
        return skip("the_next_agent_takes_over_fifty_pods", &why);
    }
    let kube = Kube::mesh_alone();
    kube.namespace("fifty", true);
    let names: Vec<_> = (0..50).map(|n| format!("pod-{n}")).collect();
    let app = |name| App { namespace: "fifty", name, node: Some("node-1"), labels: Value::Null };
    kube.launch(&names.iter().map(|n| app(n.as_str())).collect::<Vec<_>>());
    names.iter().for_each(|name| kube.await_enrolled("fifty", name, true));
    let to = format!("{}:8080", kube.addresses("fifty", "pod-1")[0]);
    let mut open = kube.connect("fifty", "pod-0", &to).unwrap();
    let before = kube.of(AGENTS, "node-1").unwrap();
    kube.kubectl(&["delete", "pod", "-n", NAMESPACE, &before, "--grace-period=0", "--force"]);
    await_within(60, "the next agent is ready", || {
        assert!(names.iter().take(5).all(|name| kube.enrolled("fifty", name)), "a pod was said to have left");
        open.ask().unwrap();
        kube.of(AGENTS, "node-1").filter(|now| *now != before)
    });
    await_within(30, "all are verified", || {
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
        return skip("no_request_is_lost_while_a_namespace_joins_and_leaves", &why);
    }
    let kube = Kube::mesh();
    kube.namespace("busy", false);
    let app = |name, node| App { namespace: "busy", name, node: Some(node), labels: Value::Null };
    kube.launch(&[app("client", "node-1"), app("server", "node-2")]);
    let service = kube.service("busy", "server");
    kube.hear("busy", "client", &[&service[0], &service[1]]);
    let flip = |asking: &[Held], mesh: bool| {
        kube.namespace("busy", mesh);
        for pod in ["client", "server"] {
            kube.await_enrolled("busy", pod, mesh);
        }
        // Until everybody has heard of it, and some more.
        for _ in 0..4 {
            asking.iter().for_each(|asks| assert!(asks.goes_on() > 0));
        }
    };
    let knocking = service.iter().map(|to| kube.knock("busy", "client", to));
    let holding = service.iter().map(|to| kube.hold("busy", "client", to));
    let asking: Vec<Held> = knocking.chain(holding).collect();
    for round in 1..=6 {
        flip(&asking, round % 2 == 1);
    }
    drop(asking);
    // Without one that is held open they are out in the end. The server leaves first: the client's proxy has a tunnel to it,
    // and has not heard of it yet.
    let asking: Vec<Held> = service.iter().map(|to| kube.knock("busy", "client", to)).collect();
    flip(&asking, true);
    kube.kubectl(&["label", "pod", "-n", "busy", "server", "istio.io/dataplane-mode=none"]);
    let is_out = |pod: &str, node| {
        await_within(30, "the pod is out", || {
            (kube.states(node, "busy") == [(pod.to_owned(), "skipped".to_owned())]).then_some(())
        });
        asking.iter().for_each(|asks| assert!(asks.goes_on() > 0));
    };
    is_out("server", "node-2");
    kube.namespace("busy", false);
    is_out("client", "node-1");
    kube.kubectl(&["delete", "namespace", "busy", "--wait=false"]);
}

#[test]
fn a_namespace_flipped_twenty_times_ends_as_it_was_told() {
    if let Some(why) = missing() {
        return skip("a_namespace_flipped_twenty_times_ends_as_it_was_told", &why);
    }
    let kube = Kube::mesh();
    kube.namespace("flipped", false);
    let app = |name, node| App { namespace: "flipped", name, node: Some(node), labels: Value::Null };
    kube.launch(&[app("client", "node-1"), app("server", "node-2")]);
    let [v4, v6] = kube.service("flipped", "server");
    kube.hear("flipped", "client", &[&v4, &v6]);
    let mut open = kube.connect("flipped", "client", &v4).unwrap();
    for round in 0..20 {
        kube.namespace("flipped", round % 2 == 0);
        open.ask().unwrap();
    }
    kube.namespace("flipped", true);
    for (pod, node) in [("client", "node-1"), ("server", "node-2")] {
        // The annotation may still be that of an earlier flip.
        await_within(30, "the pod is verified", || {
            (kube.states(node, "flipped") == [(pod.to_owned(), "verified".to_owned())]).then_some(())
        });
        kube.await_enrolled("flipped", pod, true);
    }
    open.ask().unwrap();
    kube.hear("flipped", "client", &[&v4, &v6]);
    kube.kubectl(&["delete", "namespace", "flipped", "--wait=false"]);
}

//! Outages of the API server and of istiod.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use underpass_tests::cluster::istiod::NAMESPACE;
use underpass_tests::kube::app::App;
use underpass_tests::kube::app_connection::AppConnection;
use underpass_tests::kube::{Kube, missing, until};
use underpass_tests::sandbox::PATIENCE;
use underpass_tests::skip::skip;

fn app<'a>(namespace: &'a str, name: &'a str, node: &'a str) -> App<'a> {
    App {
        namespace,
        name,
        node: Some(node),
        labels: Value::Null,
    }
}

#[test]
fn an_api_server_outage_of_a_minute_loses_nothing() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let mut kube = Kube::mesh_exclusive();
    kube.namespace("away", true);
    kube.launch(&[
        app("away", "client", "node-1"),
        app("away", "server", "node-2"),
        app("away", "leaving", "node-1"),
    ]);
    ["client", "server", "leaving"]
        .iter()
        .for_each(|pod| kube.await_enrolled("away", pod, true));
    let [v4, v6] = kube.service("away", "server");
    kube.await_answer("away", "client", &[&v4, &v6]);
    let mut open = kube.connect("away", "client", &v4).unwrap();
    let netns = kube.netns_of("away", "client");
    // Two pods are being created and one deleted when the API server stops.
    let coming = ["coming-1", "coming-2"];
    let mut objects: Vec<_> = coming
        .iter()
        .zip(["node-1", "node-2"])
        .map(|(n, node)| app("away", n, node).object())
        .collect();
    objects
        .iter_mut()
        .for_each(|o| o["spec"]["serviceAccountName"] = json!("client"));
    kube.apply_all(objects.into_iter());
    kube.kubectl(&["delete", "pod", "-n", "away", "leaving", "--wait=false"]);
    std::thread::sleep(Duration::from_millis(100));
    kube.kubernetes.stop_api_server();
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_secs(60) {
        open.ask().unwrap();
        let fresh =
            netns.run(|| std::net::TcpStream::connect_timeout(&v4.parse().unwrap(), PATIENCE));
        fresh.unwrap().unwrap();
        std::thread::sleep(Duration::from_secs(1));
    }
    kube.kubernetes.start_api_server();
    for pod in coming {
        kube.await_pod("away", pod);
        kube.await_enrolled("away", pod, true);
        kube.await_answer("away", pod, &[&v4, &v6]);
    }
    open.ask().unwrap();
    until("the deleted pod is removed everywhere", || {
        let known = kube
            .states("node-1", "away")
            .iter()
            .any(|(name, _)| name == "leaving");
        (!known && kube.pod("away", "leaving").is_none()).then_some(())
    });
    kube.kubectl(&["delete", "namespace", "away", "--wait=false"]);
    // After the outage, nodes and their pods are not ready for a while.
    let (code, out, err) = kube.with_kubeconfig(&kube.kubeconfig, &["check", "--wait", "120"]);
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn istiod_returns_with_another_root() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let mut kube = Kube::mesh_exclusive();
    kube.namespace("roots", true);
    kube.launch(&[
        app("roots", "client", "node-1"),
        app("roots", "server", "node-2"),
    ]);
    kube.await_enrolled("roots", "client", true);
    let [v4, v6] = kube.service("roots", "server");
    kube.await_answer("roots", "client", &[&v4, &v6]);
    let mut open = kube.connect("roots", "client", &v4).unwrap();
    let scale = |kube: &Kube, replicas: u8| {
        let wanted = format!("--replicas={replicas}");
        kube.kubectl(&["scale", "-n", NAMESPACE, "deployment/istiod", &wanted]);
    };
    scale(&kube, 0);
    until("istiod has ended", || {
        let pods = kube.get(&format!(
            "/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app%3Distiod"
        ))?;
        pods["items"].as_array()?.is_empty().then_some(())
    });
    open.ask().unwrap();
    kube.await_answer("roots", "client", &[&v4, &v6]);
    // istiod returns with an additional trusted root, which then signs.
    let next = kube.roots.announce();
    underpass_tests::kube::publish_roots(&kube);
    scale(&kube, 1);
    underpass_tests::kube::await_istiod(&kube);
    kube.await_answer("roots", "client", &[&v4, &v6]);
    open.ask().unwrap();
    // Proxies get roots with their certificates, like ztunnel: restarted ones trust both.
    kube.kubectl(&["rollout", "restart", "-n", NAMESPACE, "daemonset/ztunnel"]);
    kube.await_rollout("ztunnel");
    kube.await_answer("roots", "client", &[&v4, &v6]);
    let mut open = kube.connect("roots", "client", &v4).unwrap();
    kube.roots.sign_with(next);
    underpass_tests::kube::publish_roots(&kube);
    kube.kubectl(&["rollout", "restart", "-n", NAMESPACE, "deployment/istiod"]);
    kube.kubectl(&[
        "rollout",
        "status",
        "-n",
        NAMESPACE,
        "deployment/istiod",
        "--timeout=90s",
    ]);
    // A pod of a new service account has a certificate of the next root, which the others accept.
    kube.launch(&[app("roots", "newcomer", "node-1")]);
    kube.await_enrolled("roots", "newcomer", true);
    kube.await_answer("roots", "newcomer", &[&v4, &v6]);
    kube.await_answer("roots", "client", &[&v4, &v6]);
    open.ask().unwrap();
    let policy = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": "strict", "namespace": "roots" },
        "spec": { "mtls": { "mode": "STRICT" } },
    });
    kube.apply(&policy.to_string());
    kube.await_answer("roots", "newcomer", &[&v4, &v6]);
    kube.kubectl(&["delete", "namespace", "roots", "--wait=false"]);
}

#[test]
fn istiod_is_restarted_under_load() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh_exclusive();
    kube.namespace("loaded", true);
    kube.launch(&[
        app("loaded", "client", "node-1"),
        app("loaded", "server", "node-2"),
    ]);
    ["client", "server"]
        .iter()
        .for_each(|pod| kube.await_enrolled("loaded", pod, true));
    let addresses = kube.service("loaded", "server");
    kube.await_answer("loaded", "client", &[&addresses[0], &addresses[1]]);
    let netns = kube.netns_of("loaded", "client");
    let over = AtomicBool::new(false);
    let (requests, failures) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let (mut requests, mut failures) = (0, Vec::new());
            for at in addresses.iter().cycle() {
                if requests >= 500 && over.load(Ordering::Relaxed) {
                    break;
                }
                failures.extend(
                    AppConnection::open(&netns, at)
                        .err()
                        .map(|why| format!("{at}: {why}")),
                );
                requests += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            (requests, failures)
        });
        kube.kubectl(&[
            "delete",
            "pods",
            "-n",
            NAMESPACE,
            "-l",
            "app=istiod",
            "--grace-period=0",
            "--force",
        ]);
        kube.launch(&[app("loaded", "newcomer", "node-1")]);
        underpass_tests::kube::await_istiod(&kube);
        kube.await_enrolled("loaded", "newcomer", true);
        kube.await_answer("loaded", "newcomer", &[&addresses[0], &addresses[1]]);
        over.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    assert!(failures.is_empty(), "of {requests} requests: {failures:?}");
    kube.kubectl(&["delete", "namespace", "loaded", "--wait=false"]);
}

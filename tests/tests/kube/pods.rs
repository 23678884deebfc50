//! Pods that are created and deleted, many at once and at awkward moments.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use underpass_tests::kube::app::{App, spec};
use underpass_tests::kube::{Kube, await_within, missing, until};
use underpass_tests::skip::skip;

fn workload(kind: &str, namespace: &str, name: &str, replicas: u32, node: Option<&str>) -> String {
    let mut pod = spec(None, None);
    if let Some(node) = node {
        pod["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "replicas": replicas,
            "serviceName": name,
            "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": pod },
        },
    })
    .to_string()
}

#[test]
fn sixty_pods_created_at_once_are_all_in_the_mesh() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh_exclusive(); // other tests would be starved
    kube.namespace("sixty", true);
    let started = Instant::now();
    kube.apply(&workload("StatefulSet", "sixty", "many", 60, None));
    await_within(150, "sixty pods are ready", || {
        let set = kube.get("/apis/apps/v1/namespaces/sixty/statefulsets/many")?;
        (set["status"]["readyReplicas"] == 60).then_some(())
    });
    let ready = started.elapsed();
    (0..60).for_each(|n| kube.await_enrolled("sixty", &format!("many-{n}"), true));
    let states: Vec<_> = ["node-1", "node-2"]
        .iter()
        .flat_map(|node| kube.states(node, "sixty"))
        .collect();
    assert_eq!(states.len(), 60);
    assert!(
        states.iter().all(|(_, state)| state == "verified"),
        "{states:?}"
    );
    eprintln!("60 pods ready after {:.1} s", ready.as_secs_f64());
    kube.kubectl(&["delete", "namespace", "sixty", "--timeout=120s"]);
    until("the agents no longer list them", || {
        ["node-1", "node-2"]
            .iter()
            .all(|node| kube.states(node, "sixty").is_empty())
            .then_some(())
    });
}

#[test]
fn a_pod_deleted_during_its_add_leaves_nothing() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh();
    kube.namespace("short", true);
    kube.launch(&[App {
        namespace: "short",
        name: "first",
        node: Some("node-1"),
        labels: Value::Null,
    }]);
    for round in 0..8 {
        let name = format!("short-{round}");
        let app = App {
            namespace: "short",
            name: &name,
            node: Some("node-1"),
            labels: Value::Null,
        };
        let mut object = app.object();
        object["spec"]["serviceAccountName"] = json!("first");
        kube.apply(&object.to_string());
        // At another point of its start each time.
        std::thread::sleep(Duration::from_millis(60 * round));
        kube.kubectl(&[
            "delete",
            "pod",
            "-n",
            "short",
            &name,
            "--grace-period=0",
            "--force",
        ]);
    }
    until("the agent lists only the first pod", || {
        (kube.states("node-1", "short") == [("first".to_owned(), "verified".to_owned())])
            .then_some(())
    });
    kube.kubectl(&["delete", "namespace", "short", "--wait=false"]);
}

#[test]
fn a_new_pod_with_the_same_name_and_address_is_enrolled() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh_exclusive(); // no other pod may get the address
    kube.namespace("again", true);
    kube.launch(&[App {
        namespace: "again",
        name: "client",
        node: Some("node-1"),
        labels: Value::Null,
    }]);
    kube.apply(&workload("StatefulSet", "again", "db", 1, Some("node-2")));
    kube.await_pod("again", "db-0");
    for _ in 0..3 {
        let (before, addresses) = (
            kube.pod("again", "db-0").unwrap(),
            kube.addresses("again", "db-0"),
        );
        // The allocator continues after the address that it assigned last.
        for (range, address) in addresses.iter().enumerate() {
            let previous = match address.parse().unwrap() {
                std::net::IpAddr::V4(a) => std::net::Ipv4Addr::from(u32::from(a) - 1).to_string(),
                std::net::IpAddr::V6(a) => std::net::Ipv6Addr::from(u128::from(a) - 1).to_string(),
            };
            let file = format!("/var/lib/cni/networks/network/last_reserved_ip.{range}");
            std::fs::write(kube.node("node-2").path(&file), previous).unwrap();
        }
        kube.kubectl(&["delete", "pod", "-n", "again", "db-0"]);
        until("the next pod is ready", || {
            let pod = kube.pod("again", "db-0")?;
            let another = pod["metadata"]["uid"] != before["metadata"]["uid"];
            (another && underpass_tests::kube::condition(&pod, "Ready")).then_some(())
        });
        assert_eq!(kube.addresses("again", "db-0"), addresses);
        kube.await_enrolled("again", "db-0", true);
        assert_eq!(
            kube.states("node-2", "again"),
            [("db-0".to_owned(), "verified".to_owned())]
        );
        let [v4, v6] = [
            format!("{}:8080", addresses[0]),
            format!("[{}]:8080", addresses[1]),
        ];
        kube.await_answer("again", "client", &[&v4, &v6]);
    }
    kube.kubectl(&["delete", "namespace", "again", "--wait=false"]);
}

//! The control plane without a proxy: istiod's view of the test's objects, its root and its tokens.

use serde_json::{Value, json};
use underpass_tests::cluster::{Cluster, ClusterPod, RootCa, missing, root, shake_hands};
use underpass_tests::sandbox::until;
use underpass_tests::skip::skip;

#[test]
fn istiod_tunnels_to_a_pod_once_it_is_annotated() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let cluster = Cluster::shared();
    cluster.namespace("annotated", &[("istio.io/dataplane-mode", "ambient")]);
    let node = cluster.node("annotated");
    let pod = cluster.pod(&node, "annotated", "app");
    let workload = until("istiod knows the pod", || workload_of(&cluster, &pod));
    assert_eq!(
        workload["tunnelProtocol"],
        Value::Null,
        "the label of the namespace alone changes nothing"
    );
    assert_eq!(
        (&workload["node"], &workload["serviceAccount"]),
        (&json!("annotated"), &json!("app"))
    );
    cluster.announce(&pod, true);
    let hbone = |w: &Value| w["tunnelProtocol"] == "HBONE";
    until("istiod tunnels to the pod", || {
        workload_where(&cluster, &pod, hbone)
    });
    cluster.announce(&pod, false);
    until("istiod no longer tunnels to the pod", || {
        workload_where(&cluster, &pod, |w| !hbone(w))
    });
    cluster.delete(&pod);
    until("the workload is removed", || {
        workload_of(&cluster, &pod).is_none().then_some(())
    });
}

#[test]
fn services_and_policies_reach_workloads() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let cluster = Cluster::shared();
    cluster.namespace("policed", &[("istio.io/dataplane-mode", "ambient")]);
    let node = cluster.node("policed");
    let pod = cluster.pod(&node, "policed", "app");
    let [v4, v6] = cluster.service("policed", "app", 80, 8080);
    assert!(v4.is_ipv4() && v6.is_ipv6());
    let ports = json!({ "ports": [{ "servicePort": 80, "targetPort": 8080 }] });
    until("the pod serves", || {
        workload_where(&cluster, &pod, |w| {
            w["services"]["policed/app.policed.svc.cluster.local"] == ports
        })
    });
    cluster.policy(
        "PeerAuthentication",
        "policed",
        "strict",
        &json!({ "mtls": { "mode": "STRICT" } }),
    );
    let selector =
        json!({ "selector": { "matchLabels": { "app": "app" } }, "action": "DENY", "rules": [{}] });
    cluster.policy("AuthorizationPolicy", "policed", "deny-all", &selector);
    until("the pod has both policies", || {
        workload_where(&cluster, &pod, |w| {
            let list = w["authorizationPolicies"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            list.contains(&json!("istio-system/istio_converted_static_strict"))
                && list.contains(&json!("policed/deny-all"))
        })
    });
}

#[test]
fn the_controllers_create_endpoints_of_services() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let cluster = Cluster::shared();
    cluster.namespace("endpoints", &[]);
    let node = cluster.node("endpoints");
    let pod = cluster.pod(&node, "endpoints", "app");
    cluster.service("endpoints", "app", 80, 8080);
    let list = "/apis/discovery.k8s.io/v1/namespaces/endpoints/endpointslices";
    until("each family has an endpoint", || {
        let slices = cluster.kubernetes.api.get(list).unwrap();
        let items = slices["items"].as_array().unwrap();
        let addresses = items
            .iter()
            .filter_map(|s| s["endpoints"][0]["addresses"][0].as_str()?.parse().ok());
        let mut addresses: Vec<std::net::IpAddr> = addresses.collect();
        addresses.sort();
        (addresses == pod.ips).then_some(())
    });
}

#[test]
fn istiod_is_trusted_by_the_root_in_namespaces() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let cluster = Cluster::shared();
    cluster.namespace("rooted", &[]);
    let node = cluster.node("rooted");
    let found = until("the namespace has the root", || root(&cluster, "rooted"));
    assert_eq!(found, cluster.istiod.roots.trusted());
    shake_hands(&node.netns, &found).unwrap();
    let other = RootCa::new("another root");
    let refused = shake_hands(&node.netns, &other.certificate).unwrap_err();
    assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
}

#[test]
fn tokens_of_a_proxy_are_for_istiod_and_bound_to_its_pod() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let cluster = Cluster::shared();
    let node = cluster.node("bound");
    let review = |audience: &str| {
        let spec = json!({ "token": cluster.proxy_token(&node), "audiences": [audience] });
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": spec,
        });
        cluster
            .kubernetes
            .api
            .create("/apis/authentication.k8s.io/v1/tokenreviews", &review)
            .unwrap()["status"]
            .clone()
    };
    let status = review("istio-ca");
    assert_eq!(
        status["user"]["username"],
        "system:serviceaccount:istio-system:ztunnel"
    );
    assert_eq!(
        status["user"]["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["ztunnel-bound"])
    );
    assert_eq!(review("other-audience")["authenticated"], Value::Null);
}

#[test]
fn istiod_restarts_and_its_root_is_replaced() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let mut cluster = Cluster::exclusive();
    cluster.namespace("rotated", &[("istio.io/dataplane-mode", "ambient")]);
    let node = cluster.node("rotated");
    let pod = cluster.pod(&node, "rotated", "app");
    let has = |cluster: &Cluster, roots: &str| root(cluster, "rotated").filter(|r| r == roots);
    let old = cluster.istiod.roots.trusted();

    let next = cluster.istiod.roots.announce();
    let both = cluster.istiod.roots.trusted();
    until("both roots are announced", || has(&cluster, &both));
    let new = next.certificate.clone();
    cluster.istiod.roots.sign_with(next);
    until("istiod is trusted by the new root", || {
        shake_hands(&node.netns, &new).ok()
    });
    cluster.istiod.roots.retire_others();
    until("the old root is removed", || has(&cluster, &new));
    assert!(shake_hands(&node.netns, &old).is_err());

    cluster.istiod.stop();
    assert!(shake_hands(&node.netns, &new).is_err());
    cluster.start_istiod();
    shake_hands(&node.netns, &new).unwrap();
    until("istiod knows the pod again", || workload_of(&cluster, &pod));
}

/// The workload of a pod in istiod's debug output.
fn workload_of(cluster: &Cluster, pod: &ClusterPod) -> Option<Value> {
    let debug = cluster.debug("ambientz");
    debug["workloads"]
        .as_array()?
        .iter()
        .find(|w| w["uid"] == pod.workload_uid())
        .cloned()
}

/// The workload of a pod, if it satisfies a condition.
fn workload_where(
    cluster: &Cluster,
    pod: &ClusterPod,
    is: impl Fn(&Value) -> bool,
) -> Option<Value> {
    workload_of(cluster, pod).filter(|w| is(w))
}

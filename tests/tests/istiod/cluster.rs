//! The control plane by itself, before any proxy: what istiod knows of our objects, and by which root and token it is spoken to.

use serde_json::{Value, json};
use underpass_tests::cluster::{Authority, Cluster, Pod, missing, root, shake_hands};
use underpass_tests::sandbox::until;
use underpass_tests::skip::skip;

#[test]
fn istiod_tunnels_to_a_pod_once_it_is_annotated() {
    if let Some(why) = missing() {
        return skip("istiod_tunnels_to_a_pod_once_it_is_annotated", &why);
    }
    let cluster = Cluster::shared();
    cluster.namespace("annotated", &[("istio.io/dataplane-mode", "ambient")]);
    let node = cluster.node("annotated");
    let pod = cluster.pod(&node, "annotated", "app");
    let workload = until("istiod knows the pod", || known(&cluster, &pod));
    assert_eq!(workload["tunnelProtocol"], Value::Null, "the label of the namespace alone changes nothing");
    assert_eq!((&workload["node"], &workload["serviceAccount"]), (&json!("annotated"), &json!("app")));
    cluster.announce(&pod, true);
    let hbone = |w: &Value| w["tunnelProtocol"] == "HBONE";
    until("istiod tunnels to the pod", || known_that(&cluster, &pod, hbone));
    cluster.announce(&pod, false);
    until("istiod does no longer", || known_that(&cluster, &pod, |w| !hbone(w)));
    cluster.delete(&pod);
    until("the workload has gone", || known(&cluster, &pod).is_none().then_some(()));
}

#[test]
fn services_and_policies_reach_workloads() {
    if let Some(why) = missing() {
        return skip("services_and_policies_reach_workloads", &why);
    }
    let cluster = Cluster::shared();
    cluster.namespace("policed", &[("istio.io/dataplane-mode", "ambient")]);
    let node = cluster.node("policed");
    let pod = cluster.pod(&node, "policed", "app");
    let [v4, v6] = cluster.service("policed", "app", 80, 8080);
    assert!(v4.is_ipv4() && v6.is_ipv6());
    let ports = json!({ "ports": [{ "servicePort": 80, "targetPort": 8080 }] });
    until("the pod serves", || {
        known_that(&cluster, &pod, |w| w["services"]["policed/app.policed.svc.cluster.local"] == ports)
    });
    cluster.policy("PeerAuthentication", "policed", "strict", &json!({ "mtls": { "mode": "STRICT" } }));
    let selector = json!({ "selector": { "matchLabels": { "app": "app" } }, "action": "DENY", "rules": [{}] });
    cluster.policy("AuthorizationPolicy", "policed", "nobody", &selector);
    until("the pod has both policies", || {
        known_that(&cluster, &pod, |w| {
            let list = w["authorizationPolicies"].as_array().cloned().unwrap_or_default();
            list.contains(&json!("istio-system/istio_converted_static_strict"))
                && list.contains(&json!("policed/nobody"))
        })
    });
}

#[test]
fn endpoints_of_a_service_are_made_by_the_controllers() {
    if let Some(why) = missing() {
        return skip("endpoints_of_a_service_are_made_by_the_controllers", &why);
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
        let addresses = items.iter().filter_map(|s| s["endpoints"][0]["addresses"][0].as_str()?.parse().ok());
        let mut addresses: Vec<std::net::IpAddr> = addresses.collect();
        addresses.sort();
        (addresses == pod.ips).then_some(())
    });
}

#[test]
fn istiod_is_known_by_the_root_that_namespaces_have() {
    if let Some(why) = missing() {
        return skip("istiod_is_known_by_the_root_that_namespaces_have", &why);
    }
    let cluster = Cluster::shared();
    cluster.namespace("rooted", &[]);
    let node = cluster.node("rooted");
    let found = until("the namespace has the root", || root(&cluster, "rooted"));
    assert_eq!(found, cluster.istiod.roots.trusted());
    shake_hands(&node.netns, &found).unwrap();
    let other = Authority::new("somebody else's root");
    let refused = shake_hands(&node.netns, &other.certificate).unwrap_err();
    assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
}

#[test]
fn tokens_of_a_proxy_are_for_istiod_and_bound_to_its_pod() {
    if let Some(why) = missing() {
        return skip("tokens_of_a_proxy_are_for_istiod_and_bound_to_its_pod", &why);
    }
    let cluster = Cluster::shared();
    let node = cluster.node("bound");
    let review = |audience: &str| {
        let spec = json!({ "token": cluster.proxy_token(&node), "audiences": [audience] });
        let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec });
        cluster.kubernetes.api.create("/apis/authentication.k8s.io/v1/tokenreviews", &review).unwrap()["status"].clone()
    };
    let status = review("istio-ca");
    assert_eq!(status["user"]["username"], "system:serviceaccount:istio-system:ztunnel");
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["ztunnel-bound"]));
    assert_eq!(review("somebody")["authenticated"], Value::Null);
}

#[test]
fn istiod_goes_and_comes_and_its_root_is_replaced() {
    if let Some(why) = missing() {
        return skip("istiod_goes_and_comes_and_its_root_is_replaced", &why);
    }
    let mut cluster = Cluster::alone();
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
    until("istiod is known by the new root", || shake_hands(&node.netns, &new).ok());
    cluster.istiod.roots.retire_others();
    until("the old root is gone", || has(&cluster, &new));
    assert!(shake_hands(&node.netns, &old).is_err());

    cluster.istiod.stop();
    assert!(shake_hands(&node.netns, &new).is_err());
    cluster.start_istiod();
    shake_hands(&node.netns, &new).unwrap();
    until("istiod knows the pod again", || known(&cluster, &pod));
}

/// What istiod says of a pod.
fn known(cluster: &Cluster, pod: &Pod) -> Option<Value> {
    let told = cluster.debug("ambientz");
    told["workloads"].as_array()?.iter().find(|w| w["uid"] == pod.workload_uid()).cloned()
}

fn known_that(cluster: &Cluster, pod: &Pod, is: impl Fn(&Value) -> bool) -> Option<Value> {
    known(cluster, pod).filter(|w| is(w))
}

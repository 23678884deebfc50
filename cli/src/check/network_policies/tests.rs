//! Policies of an API server, and what they cut.

use serde_json::{Value, json};

use super::*;

const WEB: &str = "web";
const CLIENT: &str = "client";

/// A snapshot with a pod `web` and a pod `client` in namespace `shop`, both in the mesh, and these
/// policies.
fn snapshot(policies: Value) -> ClusterSnapshot {
    let pod = |name: &str, ip: &str| -> Pod {
        let probe = json!({ "httpGet": { "port": "http" } });
        let container = json!({
            "name": "app", "ports": [{ "name": "http", "containerPort": 8080 }],
            "readinessProbe": (name == WEB).then_some(probe),
        });
        let metadata = json!({ "namespace": "shop", "name": name, "labels": { "app": name } });
        serde_json::from_value(json!({
            "metadata": metadata,
            "spec": { "containers": [container] },
            "status": { "phase": "Running", "podIPs": [{ "ip": ip }, { "ip": "fd00::1" }] },
        }))
        .unwrap()
    };
    let labels = [("istio.io/dataplane-mode", "ambient"), ("kind", "mesh")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    ClusterSnapshot {
        pods: vec![pod(WEB, "10.0.0.1"), pod(CLIENT, "10.0.0.2")],
        namespaces: [("shop".to_owned(), labels.into())].into(),
        network_policies: serde_json::from_value(policies).map_err(|e| e.to_string()),
        ..ClusterSnapshot::default()
    }
}

/// A policy of namespace `shop` for the pod `web`.
fn policy(spec: Value) -> Value {
    let mut policy = json!({
        "metadata": { "namespace": "shop", "name": "p" },
        "spec": { "podSelector": { "matchLabels": { "app": WEB } } },
    });
    let spec = spec.as_object().unwrap().clone();
    policy["spec"].as_object_mut().unwrap().extend(spec);
    policy
}

fn findings(
    policies: Value,
    of: impl Fn(&MeshPods<'_>, &[NetworkPolicy]) -> Vec<String>,
) -> Vec<String> {
    let snapshot = snapshot(policies);
    let pods: Vec<&Pod> = snapshot.pods.iter().collect();
    let mesh = MeshPods::new(&pods, &snapshot.namespaces);
    of(&mesh, snapshot.network_policies.as_ref().unwrap())
}

fn tunnels(policies: &[Value]) -> Vec<String> {
    findings(json!(policies), |mesh, policies| {
        mesh.without_hbone(policies)
    })
}

fn probes(policies: &[Value]) -> Vec<String> {
    findings(json!(policies), |mesh, policies| {
        mesh.without_probes(policies)
    })
}

#[test]
fn a_rule_for_the_application_but_not_the_tunnel_is_named_with_the_lines_to_add() {
    let web = policy(json!({
        "ingress": [{
            "from": [{ "podSelector": { "matchLabels": { "app": CLIENT } } }],
            "ports": [{ "port": 8080 }],
        }],
    }));
    let expected = "shop/p: shop/client may connect to port 8080 of shop/web, but not to port \
                    15008, through which the mesh connects. Add to the ports of this ingress \
                    rule:\n- port: 15008\n  protocol: TCP";
    assert_eq!(tunnels(&[web]), [expected]);
    let egress = policy(json!({
        "policyTypes": ["Egress"],
        "egress": [{ "to": [{ "podSelector": {} }], "ports": [{ "port": 8080, "endPort": 8090 }] }],
    }));
    let found = tunnels(&[egress]);
    assert!(
        found.len() == 1
            && found[0].starts_with("shop/p: shop/web may connect to port 8080 of shop/"),
        "{found:?}"
    );
}

#[test]
fn rules_that_allow_the_tunnel_or_concern_no_pod_of_the_mesh_are_good() {
    let client = json!([{ "podSelector": { "matchLabels": { "app": CLIENT } } }]);
    let good = |ingress: Value| {
        let found = tunnels(&[policy(json!({ "ingress": ingress }))]);
        assert!(found.is_empty(), "{ingress}: {found:?}");
    };
    good(json!([]));
    good(json!([{}]));
    good(json!([{ "from": client }]));
    good(json!([{ "ports": [{ "port": 8080 }, { "port": 15008 }] }]));
    good(json!([{ "ports": [{ "port": 15000, "endPort": 15010 }] }]));
    good(json!([{ "ports": [{ "protocol": "TCP" }] }]));
    good(json!([{ "ports": [{ "protocol": "UDP", "port": 53 }] }]));
    good(json!([{ "ports": [{ "port": 15008 }] }]));
    // The tunnel is allowed by another rule, and for more peers.
    good(
        json!([{ "from": client, "ports": [{ "port": 8080 }] }, { "ports": [{ "port": 15008 }] }]),
    );
    // Peers outside the mesh.
    let other = json!([{ "namespaceSelector": { "matchLabels": { "kind": "other" } } }]);
    good(json!([{ "from": other, "ports": [{ "port": 8080 }] }]));
    let block = json!([{ "ipBlock": { "cidr": "192.0.2.0/24" } }]);
    good(json!([{ "from": block, "ports": [{ "port": 8080 }] }]));
    // Pods that no policy selects, and directions that it does not restrict.
    let mut elsewhere = policy(json!({ "ingress": [{ "ports": [{ "port": 8080 }] }] }));
    elsewhere["metadata"]["namespace"] = json!("other");
    assert_eq!(tunnels(&[elsewhere]), [""; 0]);
    let egress = json!({ "policyTypes": ["Egress"], "ingress": [{ "ports": [{ "port": 1 }] }] });
    assert_eq!(tunnels(&[policy(egress)]), [""; 0]);
}

#[test]
fn a_tunnel_that_only_other_peers_may_use_is_cut() {
    let from = |app: &str| json!([{ "podSelector": { "matchLabels": { "app": app } } }]);
    let rules = json!([
        { "from": from(CLIENT), "ports": [{ "port": "http" }] },
        { "from": from(WEB), "ports": [{ "port": 15008 }] },
    ]);
    let found = tunnels(&[policy(json!({ "ingress": rules }))]);
    assert!(
        found.len() == 1 && found[0].contains("shop/client may connect to port http of shop/web"),
        "{found:?}"
    );
    let by_namespace = json!([{ "namespaceSelector": { "matchLabels": { "kind": "mesh" } } }]);
    let rules = json!([{ "from": by_namespace, "ports": [{ "port": 80 }] }]);
    assert_eq!(tunnels(&[policy(json!({ "ingress": rules }))]).len(), 1);
}

#[test]
fn probes_need_their_own_source_address_in_both_families() {
    let deny = policy(json!({ "policyTypes": ["Ingress"] }));
    let expected = "shop/p: the kubelet's probes of port 8080 of shop/web are not allowed. Add \
                    this ingress rule:\n- from:\n  - ipBlock:\n      cidr: 169.254.7.127/32\n  \
                    - ipBlock:\n      cidr: fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128\n  \
                    ports:\n  - port: 8080\n    protocol: TCP";
    assert_eq!(probes(&[deny]), [expected]);
    let with = |cidrs: &[&str], ports: Value| {
        let from = cidrs
            .iter()
            .map(|cidr| json!({ "ipBlock": { "cidr": cidr } }));
        let from: Vec<_> = from.collect();
        probes(&[policy(
            json!({ "ingress": [{ "from": from, "ports": ports }] }),
        )])
        .len()
    };
    let both = ["169.254.7.127/32", "fd16:9254:7127:1337::/64"];
    for (cidrs, ports, count) in [
        (&both[..], json!([{ "port": 8080 }]), 0),
        (&both, json!([{ "port": "http" }]), 0),
        (&both, json!([]), 0),
        (&both, json!([{ "port": 80 }]), 1),
        (&both[..1], json!([]), 1),
        (&["0.0.0.0/0"], json!([]), 1),
        (&["0.0.0.0/0", "::/0"], json!([]), 0),
        (&[], json!([{ "port": 8080 }]), 0),
    ] {
        assert_eq!(with(cidrs, ports.clone()), count, "{cidrs:?} {ports}");
    }
    let all_but_link_local = json!([
        { "ipBlock": { "cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"] } },
        { "ipBlock": { "cidr": "::/0" } },
    ]);
    let mut without_link_local = policy(json!({ "ingress": [{ "from": all_but_link_local }] }));
    assert_eq!(probes(&[without_link_local.clone()]).len(), 1);
    // A pod without network probes.
    without_link_local["spec"]["podSelector"]["matchLabels"]["app"] = json!(CLIENT);
    assert_eq!(probes(&[without_link_local]), [""; 0]);
}

#[test]
fn unreadable_policies_are_unknown_and_not_a_failure() {
    let mut report = CheckReport::default();
    let mut snapshot = snapshot(json!([]));
    snapshot.network_policies = Err("forbidden".to_owned());
    check(&mut report, &snapshot);
    let outcome = report.of(checks::POLICIES_ALLOW_HBONE);
    assert_eq!(
        outcome,
        Some(&CheckOutcome::Unknown("forbidden".to_owned()))
    );
    assert!(report.is_good());
}

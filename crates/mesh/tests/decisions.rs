//! Enrolment, routing and authorization decisions of a mesh file.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use mesh::authorize::{Connection, Verdict, authorize};
use mesh::enrol::{Enrolment, decide};
use mesh::route::{Route, route};
use mesh::{Mesh, MeshFileError, OrigDst, parse_mesh_file};

const FILE: &str = r#"
namespaces:
  - { name: default, labels: { istio.io/dataplane-mode: ambient } }
  - { name: plain }
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node-1,
      workloadIps: [10.0.0.1, "fd00::1"] }
  - { name: server, namespace: default, serviceAccount: server, node: node-2,
      workloadIps: [10.0.0.2, "fd00::2"],
      services: { default/server.default.svc.cluster.local: { 80: 8080 } } }
  - { name: second, namespace: default, node: node-2, workloadIps: [10.0.0.3], capacity: 3,
      services: { default/server.default.svc.cluster.local: {} } }
  - { name: opted-out, namespace: default, workloadIps: [10.0.0.4],
      labels: { istio.io/dataplane-mode: none } }
  - { name: sidecar, namespace: default, workloadIps: [10.0.0.5],
      annotations: { sidecar.istio.io/status: "{}" } }
  - { name: host, namespace: default, workloadIps: [192.0.2.1], hostNetwork: true }
  - { name: opted-in, namespace: plain, workloadIps: [10.0.0.6],
      labels: { istio.io/dataplane-mode: ambient } }
  - { name: outsider, namespace: plain, workloadIps: [10.0.0.7] }
  - { name: strict, namespace: default, workloadIps: [10.0.0.8],
      authorizationPolicies: [default/gone] }
services:
  - { name: server, namespace: default, vips: [/10.96.0.1, "/fd96::1"], ports: { 80: 9090 } }
  - { name: empty, namespace: default, vips: [/10.96.0.2], ports: { 80: 80 } }
"#;

fn mesh() -> Mesh {
    parse_mesh_file(FILE).unwrap()
}

#[test]
fn labels_select_pods_for_the_mesh() {
    let mesh = mesh();
    let enrolled =
        |namespace: &str, name: &str, node: &str| decide(&mesh, node, namespace, name, &[]).outcome;
    assert!(
        matches!(enrolled("default", "client", "node-1"), Enrolment::Enrol(w) if w.name == "client")
    );
    assert!(matches!(
        enrolled("plain", "opted-in", "anywhere"),
        Enrolment::Enrol(_)
    ));
    for (namespace, name) in [
        ("default", "opted-out"),
        ("default", "sidecar"),
        ("default", "host"),
        ("plain", "outsider"),
        ("plain", "new"),
        ("no", "no"),
    ] {
        assert_eq!(
            enrolled(namespace, name, "node-1"),
            Enrolment::Skip,
            "{namespace}/{name}"
        );
    }
    assert_eq!(
        enrolled("default", "unheard-of", "node-1"),
        Enrolment::Unknown,
        "a mesh pod must not start outside the mesh"
    );
    assert_eq!(
        enrolled("default", "client", "node-2"),
        Enrolment::Unknown,
        "on the wrong node"
    );
    assert!(
        decide(&mesh, "node-1", "default", "opted-out", &[])
            .reason
            .contains("opted out")
    );
}

fn to(mesh: &Mesh, dst: &str, random: u64) -> Route {
    let source = mesh.workload_by_name("default", "client").unwrap();
    route(mesh, source, OrigDst(dst.parse().unwrap()), random, &[]).outcome
}

#[test]
fn the_destination_determines_the_route() {
    let mesh = mesh();
    let tunnel = |route: Route| match route {
        Route::Tunnel {
            tunnel,
            authority,
            expected,
            ..
        } => (tunnel.to_string(), authority.to_string(), expected),
        other => panic!("expected a tunnel, got {other:?}"),
    };
    let server = vec!["spiffe://cluster.local/ns/default/sa/server".into()];
    assert_eq!(
        tunnel(to(&mesh, "10.0.0.2:8080", 0)),
        (
            "10.0.0.2:15008".into(),
            "10.0.0.2:8080".into(),
            server.clone()
        )
    );
    assert_eq!(
        tunnel(to(&mesh, "[fd00::2]:1", 0)),
        ("[fd00::2]:15008".into(), "[fd00::2]:1".into(), server)
    );
    assert!(
        matches!(
            to(&mesh, "10.0.0.7:80", 0),
            Route::Direct {
                workload: Some(_),
                ..
            }
        ),
        "not in the mesh"
    );
    assert!(
        matches!(
            to(&mesh, "203.0.113.9:80", 0),
            Route::Direct { workload: None, .. }
        ),
        "unknown"
    );
    assert!(
        matches!(
            to(&mesh, "192.0.2.1:80", 0),
            Route::Direct { workload: None, .. }
        ),
        "a node"
    );
}

#[test]
fn a_service_is_balanced_by_weight_and_refused_without_endpoints() {
    let mesh = mesh();
    let mut by_authority = std::collections::BTreeMap::<String, u32>::new();
    for random in 0..400 {
        let Route::Tunnel { authority, .. } = to(&mesh, "10.96.0.1:80", random) else {
            panic!("expected a tunnel")
        };
        *by_authority.entry(authority.to_string()).or_default() += 1;
    }
    // The first maps the port itself; the second has three times its weight.
    assert_eq!(
        by_authority.into_iter().collect::<Vec<_>>(),
        [("10.0.0.2:8080".into(), 100), ("10.0.0.3:9090".into(), 300)]
    );
    let of_v6 = |random| match to(&mesh, "[fd96::1]:80", random) {
        Route::Tunnel { authority, .. } => authority.to_string(),
        other => panic!("expected a tunnel, got {other:?}"),
    };
    let both: std::collections::BTreeSet<String> = (0..400).map(of_v6).collect();
    let family = "the client's address family if the endpoint has it";
    assert_eq!(
        both.into_iter().collect::<Vec<_>>(),
        ["10.0.0.3:9090", "[fd00::2]:8080"],
        "{family}"
    );
    assert!(
        matches!(to(&mesh, "10.96.0.1:81", 0), Route::Refuse { .. }),
        "not a port of the service"
    );
    assert!(
        matches!(to(&mesh, "10.96.0.2:80", 0), Route::Refuse { .. }),
        "no endpoints"
    );
}

fn verdict(policies: &str, identity: Option<&str>, workload: &str) -> (Verdict, String) {
    let mesh = parse_mesh_file(&format!("{FILE}\npolicies:\n{policies}")).unwrap();
    let connection = Connection {
        client: "10.0.0.1:40000".parse::<SocketAddr>().unwrap().into(),
        identity: identity.map(|i| i.parse().unwrap()),
        destination: "10.0.0.2:8080".parse::<SocketAddr>().unwrap().into(),
    };
    let decision = authorize(
        &mesh,
        mesh.workload_by_name("default", workload).unwrap(),
        &connection,
    );
    (decision.outcome.verdict(), decision.reason)
}

const CLIENT: Option<&str> = Some("spiffe://cluster.local/ns/default/sa/client");

fn allow(matches: &str) -> String {
    format!(
        "  - {{ name: p, namespace: default, scope: Namespace, action: Allow, rules: \
         [[[{matches}]]] }}"
    )
}

#[test]
fn every_match_field_is_evaluated() {
    let cases = [
        ("{ namespaces: [{ Exact: default }] }", true, false),
        ("{ namespaces: [{ Prefix: def }] }", true, false),
        ("{ namespaces: [{ Suffix: nope }] }", false, false),
        ("{ notNamespaces: [{ Exact: default }] }", false, true),
        (
            "{ serviceAccounts: [{ namespace: default, serviceAccount: client }] }",
            true,
            false,
        ),
        (
            "{ notServiceAccounts: [{ namespace: default, serviceAccount: client }] }",
            false,
            true,
        ),
        (
            "{ principals: [{ Exact: cluster.local/ns/default/sa/client }] }",
            true,
            false,
        ),
        ("{ principals: [Presence] }", true, false),
        ("{ notPrincipals: [Presence] }", false, true),
        ("{ sourceIps: [10.0.0.0/24] }", true, true),
        ("{ sourceIps: [\"fd00::/64\"] }", false, false),
        ("{ notSourceIps: [10.0.0.1/32] }", false, false),
        ("{ destinationIps: [10.0.0.2/32] }", true, true),
        ("{ notDestinationIps: [10.0.0.2/32] }", false, false),
        ("{ destinationPorts: [80, 8080] }", true, true),
        ("{ notDestinationPorts: [8080] }", false, false),
        (
            "{ destinationPorts: [8080], namespaces: [{ Exact: other }] }",
            false,
            false,
        ),
        (
            "{ destinationPorts: [1] }, { destinationPorts: [8080] }",
            true,
            true,
        ),
        ("{ }", false, false),
        ("", true, true),
    ];
    for (matches, with_identity, without) in cases {
        let policy = allow(matches);
        assert_eq!(
            verdict(&policy, CLIENT, "server").0 == Verdict::Allow,
            with_identity,
            "{matches} with identity"
        );
        assert_eq!(
            verdict(&policy, None, "server").0 == Verdict::Allow,
            without,
            "{matches} without identity"
        );
    }
}

#[test]
fn deny_precedes_allow_and_unknown_policies_deny() {
    let deny = "  - { name: d, namespace: default, scope: Namespace, action: Deny, rules: [[[{ \
                principals: [Presence] }]]] }";
    let both = format!("{}\n{deny}", allow(""));
    assert_eq!(
        verdict(&both, CLIENT, "server"),
        (
            Verdict::Deny,
            "explicitly denied by: default/d (rule 1)".into()
        )
    );
    assert_eq!(verdict(&both, None, "server").0, Verdict::Allow);
    let no_rules = "  - { name: none, namespace: default, scope: Namespace, action: Allow }";
    assert_eq!(
        verdict(no_rules, CLIENT, "server").1,
        "allow policies exist, but none allowed"
    );
    let dry = deny.replace("name: d", "name: d, dryRun: true");
    assert_eq!(verdict(&dry, CLIENT, "server").0, Verdict::Allow);
    let elsewhere = deny.replace("namespace: default", "namespace: plain");
    assert_eq!(verdict(&elsewhere, CLIENT, "server").0, Verdict::Allow);
    let everywhere = elsewhere.replace("scope: Namespace", "scope: Global");
    assert_eq!(verdict(&everywhere, CLIENT, "server").0, Verdict::Deny);
    let (outcome, reason) = verdict(deny, None, "strict");
    assert_eq!(
        (outcome, reason.as_str()),
        (
            Verdict::Deny,
            "the workload refers to unknown policy default/gone"
        )
    );
}

#[test]
fn errors_name_line_and_field() {
    let error_of = |text: &str| match parse_mesh_file(text) {
        Err(e @ MeshFileError::Malformed(_)) => e.to_string(),
        other => panic!("{other:?}"),
    };
    let typo = error_of("workloads:\n  - name: a\n    namespace: b\n    protocl: HBONE\n");
    assert!(
        typo.contains("protocl") && typo.contains("line 4"),
        "{typo}"
    );
    let value =
        error_of("workloads:\n  - name: a\n    namespace: b\n    workloadIps: [10.0.0.300]\n");
    assert!(value.contains("line 4"), "{value}");
    let kind = error_of("workloads:\n  - name: a\n    namespace: b\n    protocol: HBON\n");
    assert!(kind.contains("HBON") && kind.contains("line 4"), "{kind}");
    assert!(error_of("workloads: [").contains("line"));
    for text in ["[]", "workloads: 3", "\u{0}", "a: &x [*x]", "? !!binary x"] {
        error_of(text);
    }
    parse_mesh_file("{}").unwrap();
}

#[test]
fn a_contradictory_file_is_rejected() {
    let contradictions = [
        "workloads: [{ name: a, namespace: b }, { name: a, namespace: b }]",
        "workloads: [{ name: a, namespace: b, workloadIps: [10.0.0.1] }, { name: c, namespace: b, \
         workloadIps: [10.0.0.1] }]",
        "workloads: [{ name: a, namespace: b, services: { b/nowhere: {} } }]",
    ];
    for text in contradictions {
        assert!(
            matches!(parse_mesh_file(text), Err(MeshFileError::Contradiction(_))),
            "{text}"
        );
    }
}

#[test]
fn of_pods_with_the_same_name_the_one_on_this_node_is_meant() {
    let mesh = parse_mesh_file(
        r#"
namespaces: [{ name: shop, labels: { istio.io/dataplane-mode: ambient } }]
workloads:
  - { name: db-0, namespace: shop, uid: c, clusterId: c, node: far, workloadIps: [10.2.0.1] }
  - { name: db-0, namespace: shop, uid: b, clusterId: b, node: near, workloadIps: [10.1.0.1] }
  - { name: db-0, namespace: shop, uid: a, clusterId: a, node: near, workloadIps: [10.0.0.1] }
"#,
    )
    .unwrap();
    for (node, address, uid) in [
        ("near", "10.1.0.1", "b"),
        ("near", "10.0.0.1", "a"),
        ("far", "10.2.0.1", "c"),
    ] {
        let decision = decide(&mesh, node, "shop", "db-0", &[address.parse().unwrap()]);
        assert!(
            matches!(&decision.outcome, Enrolment::Enrol(w) if w.uid == uid),
            "{node} {address}: {decision:?}"
        );
    }
}

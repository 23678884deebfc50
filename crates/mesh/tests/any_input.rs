//! Arbitrary input from files and peers causes no panic, and encodings round-trip.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};

use mesh::admit::{Admission, admit};
use mesh::authorize::{Connection, Verdict, authorize};
use mesh::baggage::Baggage;
use mesh::{Identity, Text, parse_mesh_file};
use proptest::prelude::*;

/// Lines that resemble a mesh file, in random order and indentation.
fn lines() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("workloads:".to_owned()),
        Just("services:".to_owned()),
        Just("policies:".to_owned()),
        Just("- name: a".to_owned()),
        Just("namespace: b".to_owned()),
        Just("rules: [[[{}]]]".to_owned()),
        Just("workloadIps: [\"::1\"]".to_owned()),
        "[ -~]{0,40}",
    ];
    prop::collection::vec((0usize..6, line), 0..12).prop_map(|lines| {
        lines
            .into_iter()
            .map(|(indent, l)| format!("{}{l}\n", " ".repeat(indent)))
            .collect()
    })
}

/// One pod of each kind that `admit` treats differently.
const PODS: &str = r#"
workloads:
  - { name: plain, namespace: a, workloadIps: [10.0.0.1, "fd00::1"],
      services: { a/s.a: { 80: 8080 } } }
  - { name: tunnel, namespace: a, workloadIps: [10.0.0.2, "fd00::2"],
      applicationTunnel: { protocol: PROXY, port: 15088 } }
  - { name: waypoint, namespace: a, workloadIps: [10.0.0.3, "fd00::3"] }
services:
  - { name: s, namespace: a, hostname: s.a, vips: [/10.1.0.1, "/fd01::1"], ports: { 80: 80 },
      waypoint: { destination: /10.0.0.3 } }
"#;

/// CONNECT hosts in all forms that a peer may send.
fn hosts() -> impl Strategy<Value = String> {
    let addresses = prop_oneof![
        any::<IpAddr>(),
        Just("10.1.0.1".parse().unwrap()),
        Just("fd01::1".parse().unwrap())
    ];
    let bracketed =
        addresses.prop_flat_map(|ip| prop_oneof![Just(ip.to_string()), Just(format!("[{ip}]"))]);
    prop_oneof![
        any::<String>(),
        bracketed,
        Just("s.a".to_owned()),
        Just("S.A".to_owned()),
        Just("[]".to_owned())
    ]
}

fn word() -> impl Strategy<Value = Text> {
    "[a-z0-9.-]{0,12}".prop_map(Text::from)
}

proptest! {
    #[test]
    fn any_mesh_file_causes_no_panic(text in prop_oneof![any::<String>(), lines()]) {
        let _ = parse_mesh_file(&text);
    }

    #[test]
    fn any_identity_round_trips_or_is_rejected(text in any::<String>()) {
        if let Ok(identity) = text.parse::<Identity>() {
            prop_assert_eq!(identity.to_string(), text);
        }
    }

    #[test]
    fn no_connect_request_leads_out_of_the_pod(host in hosts(), port in any::<u16>()) {
        let mesh = parse_mesh_file(PODS).unwrap();
        for workload in mesh.workloads() {
            for own in &workload.workload_ips {
                if let Admission::Here { destination, connect, .. } =
                    admit(&mesh, workload, *own, &host, port).outcome
                {
                    prop_assert_eq!(destination.ip(), *own);
                    prop_assert!(connect.ip() == *own || connect.ip().is_loopback());
                }
            }
        }
    }

    #[test]
    fn any_baggage_causes_no_panic(text in any::<String>()) {
        let _ = Baggage::decode([text.as_str()]);
    }

    #[test]
    fn baggage_round_trips(
        cluster_id in word(), namespace in word(), workload_name in word(),
        canonical_name in word(), canonical_revision in word(), region in word(), zone in word(),
    ) {
        let baggage = Baggage {
            cluster_id, namespace, workload_name, canonical_name, canonical_revision, region, zone,
            ..Baggage::default()
        };
        prop_assert_eq!(Baggage::decode([baggage.encode().as_str()]), baggage);
    }

    /// A deny policy denies its connections and leaves all other verdicts unchanged.
    #[test]
    fn a_deny_policy_never_allows_more_connections(
        port in 1u16..10,
        denied in 1u16..10,
        allowed in prop::option::of(1u16..10),
    ) {
        let workload = "workloads: [{ name: a, namespace: b }]\npolicies:\n";
        let allow = allowed.map_or(String::new(), |p| {
            format!(
                "  - {{ name: x, namespace: b, scope: Namespace, action: Allow, rules: [[[{{ \
                 destinationPorts: [{p}] }}]]] }}\n"
            )
        });
        let deny = format!(
            "  - {{ name: y, namespace: b, scope: Namespace, action: Deny, rules: [[[{{ \
             destinationPorts: [{denied}] }}]]] }}\n"
        );
        let verdict = |policies: &str| {
            let text = if policies.is_empty() {
                "workloads: [{ name: a, namespace: b }]\n".to_owned()
            } else {
                format!("{workload}{policies}")
            };
            let mesh = parse_mesh_file(&text).unwrap();
            let address = |port| SocketAddr::from(([10, 0, 0, 1], port));
            let connection = Connection {
                client: address(999).into(),
                identity: None,
                destination: address(port).into(),
            };
            let workload = mesh.workload_by_name("b", "a").unwrap();
            authorize(&mesh, workload, &connection).outcome.verdict()
        };
        let without = verdict(&allow);
        let with = verdict(&(allow + &deny));
        let expected = if port == denied { Verdict::Deny } else { without };
        prop_assert_eq!(with, expected);
    }
}

//! Tests of the resolution of names.

use super::super::query::encode;
use super::*;
use hickory_proto::op::{MessageType, OpCode, Query as Question};
use hickory_proto::rr::Name;

const MESH: &str = r#"
namespaces: [{ name: default }, { name: other }]
workloads:
  - { name: client, namespace: default, workloadIps: [10.0.0.1] }
  - { name: stranger, namespace: other, workloadIps: [10.0.0.2], network: far }
  - { name: db-0, namespace: default, workloadIps: [10.0.1.1, "fd00::1"],
      services: { default/db.default.svc.cluster.local: {},
                  default/six.default.svc.cluster.local: {} } }
  - { name: db-1, namespace: default, workloadIps: [10.0.1.2],
      services: { default/db.default.svc.cluster.local: {} } }
  - { name: db-2, namespace: default, workloadIps: [10.0.1.3], status: Unhealthy,
      services: { default/db.default.svc.cluster.local: {} } }
  - { name: db-3, namespace: default, workloadIps: [10.0.1.4], network: far,
      services: { default/db.default.svc.cluster.local: {} } }
services:
  - { name: web, namespace: default, vips: [/10.96.0.1, "/fd96::1"] }
  - { name: web, namespace: other, vips: [/10.96.0.2] }
  - { name: db, namespace: default }
  - { name: gone, namespace: default }
  - { name: six, namespace: default, ipFamilies: IPv6 }
  - { name: far, namespace: default, vips: [far/10.97.0.1] }
  - { name: shop, namespace: default, hostname: Shop.Example, vips: [/10.96.0.3] }
  - { name: shop, namespace: other, hostname: shop.example, vips: [/10.96.0.4] }
  - { name: any, namespace: default, hostname: "*.wild.example", vips: [/10.96.0.5] }
  - { name: outside, namespace: default, hostname: outside.example }
"#;

fn query(name: &str, kind: RecordType) -> Query {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Question::query(Name::from_ascii(name).unwrap(), kind));
    Query::parse(&message.to_vec().unwrap()).unwrap()
}

/// Resolves a name for a pod: its addresses, or what replaces the answer that it is unknown.
fn resolve(pod: (&str, &str), name: &str, kind: RecordType) -> Result<Vec<String>, IfUnknown> {
    let mesh = mesh::parse_mesh_file(MESH).unwrap();
    let workload = mesh.workload_by_name(pod.0, pod.1).unwrap();
    match decide(
        &query(name, kind),
        &QueryContext {
            mesh: &mesh,
            workload,
            cluster_domain: "cluster.local",
        },
    ) {
        Resolution::Mesh { addresses, .. } => {
            Ok(addresses.iter().map(ToString::to_string).collect())
        }
        Resolution::Forward(if_unknown) => Err(if_unknown),
    }
}

const CLIENT: (&str, &str) = ("default", "client");

#[test]
fn names_in_the_mesh_are_answered_and_others_are_forwarded() {
    use RecordType::{A, AAAA, HTTPS, SRV};
    let web = || Ok(vec!["10.96.0.1".to_owned()]);
    for name in [
        "web.default.svc.cluster.local",
        "web.default.svc",
        "web",
        "WEB.Default.SVC.cluster.LOCAL.",
    ] {
        assert_eq!(resolve(CLIENT, name, A), web(), "{name}");
        assert_eq!(
            resolve(CLIENT, name, AAAA),
            Ok(vec!["fd96::1".to_owned()]),
            "{name}"
        );
        let no_records = Err(IfUnknown::NoRecords);
        assert_eq!(resolve(CLIENT, name, SRV), no_records, "{name}");
    }
    let ip4 = |ip: &str| Ok(vec![ip.to_owned()]);
    assert_eq!(
        resolve(CLIENT, "web.other.svc", A),
        ip4("10.96.0.2"),
        "no top-level domain has this name"
    );
    assert_eq!(
        resolve(CLIENT, "web.other.svc", AAAA),
        Ok(vec![]),
        "the name exists without addresses of that family"
    );
    assert_eq!(
        resolve(CLIENT, "shop.example", A),
        ip4("10.96.0.3"),
        "the service in the pod's namespace is preferred"
    );
    assert_eq!(resolve(CLIENT, "a.wild.example", A), ip4("10.96.0.5"));
    assert_eq!(resolve(CLIENT, "a.b.wild.example", A), ip4("10.96.0.5"));
    assert_eq!(
        resolve(CLIENT, "a.wild.example", HTTPS),
        Err(IfUnknown::NoRecords)
    );
    let foreign = [
        "example.com",
        "example",
        ".",
        "web.default.svc.cluster.local.default.svc.cluster.local",
        "wild.example",
        "nosuch.default.svc.cluster.local",
        "outside.example",
        "far.default.svc.cluster.local",
        "svc",
        "cluster.local",
    ];
    for name in foreign {
        assert_eq!(resolve(CLIENT, name, A), Err(IfUnknown::Unknown), "{name}");
    }
}

#[test]
fn a_name_that_may_be_a_public_one_is_expanded_only_if_it_is_unknown() {
    let expanded = |ip: &str| Err(IfUnknown::Mesh(vec![ip.parse().unwrap()]));
    for (name, ip) in [("web.default", "10.96.0.1"), ("web.other.", "10.96.0.2")] {
        assert_eq!(resolve(CLIENT, name, RecordType::A), expanded(ip), "{name}");
    }
    assert_eq!(
        resolve(CLIENT, "web.default", RecordType::AAAA),
        expanded("fd96::1")
    );
    assert_eq!(
        resolve(CLIENT, "web.other", RecordType::AAAA),
        Err(IfUnknown::Mesh(vec![]))
    );
}

#[test]
fn a_headless_service_is_answered_with_its_healthy_workloads() {
    let both = Ok(vec!["10.0.1.1".to_owned(), "10.0.1.2".to_owned()]);
    assert_eq!(resolve(CLIENT, "db", RecordType::A), both);
    assert_eq!(
        resolve(CLIENT, "db", RecordType::AAAA),
        Ok(vec!["fd00::1".to_owned()])
    );
    assert_eq!(resolve(CLIENT, "gone", RecordType::A), Ok(vec![]));
    // Its workloads have addresses of both families.
    for (kind, addresses) in [
        (RecordType::A, vec![]),
        (RecordType::AAAA, vec!["fd00::1".to_owned()]),
    ] {
        assert_eq!(resolve(CLIENT, "six", kind), Ok(addresses), "{kind}");
    }
}

#[test]
fn a_pod_gets_the_addresses_in_its_own_network() {
    let stranger = ("other", "stranger");
    assert_eq!(
        resolve(stranger, "far.default.svc", RecordType::A),
        Ok(vec!["10.97.0.1".to_owned()])
    );
    assert_eq!(
        resolve(stranger, "db.default.svc", RecordType::A),
        Ok(vec!["10.0.1.4".to_owned()])
    );
    assert_eq!(
        resolve(stranger, "web", RecordType::A),
        Err(IfUnknown::Unknown),
        "the service has no address in that network"
    );
}

#[test]
fn an_answer_repeats_the_question_and_rotates_the_addresses() {
    let query = query("WeB.default.", RecordType::A);
    let ips: Vec<IpAddr> = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        .map(|a| a.parse().unwrap())
        .into();
    let answer = message(&query, ips.clone(), 4);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    let first = Message::from_vec(&encode(&answer, 512).unwrap()).unwrap();
    assert_eq!(
        first.queries[0].name().to_ascii(),
        "WeB.default.",
        "the case of the name is kept"
    );
    assert!(
        first
            .answers
            .iter()
            .all(|r| r.ttl == TTL && r.name == *query.question.as_ref().unwrap().name())
    );
    assert_eq!(
        first.answers[0].data,
        RData::A(A("10.0.0.2".parse().unwrap()))
    );
    assert_eq!(message(&query, vec![], 4).answers.len(), 0);
    let many = (0..200).map(|i| IpAddr::from([10, 1, 0, i])).collect();
    let bytes = encode(&message(&query, many, 0), query.udp_size()).unwrap();
    assert!(bytes.len() <= 512);
    let truncated = Message::from_vec(&bytes).unwrap();
    assert!(truncated.metadata.truncation && truncated.queries == first.queries);
    assert_eq!(truncated.answers.len(), 30, "as many as fit into 512 bytes");
}

#[test]
fn a_truncated_answer_has_what_fits_over_any_transport() {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii("many.default.svc.cluster.local.").unwrap();
    message.add_query(Question::query(name, RecordType::AAAA));
    message.set_edns(hickory_proto::op::Edns::new());
    let query = Query::parse(&message.to_vec().unwrap()).unwrap();
    let many = |count: u32| {
        (0..count).map(|i| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, (i >> 16) as u16, i as u16]))
    };
    for (count, limit) in [(200, 512), (200, 1232), (200, 4096), (6000, 65_535)] {
        let bytes = encode(&super::message(&query, many(count).collect(), 0), limit).unwrap();
        let answer = Message::from_vec(&bytes).unwrap();
        assert!(answer.metadata.truncation && answer.edns.is_some());
        // A record has 28 bytes, or 62 if its name is not compressed.
        assert!(bytes.len() <= limit && bytes.len() + 62 > limit, "{limit}");
        assert!(answer.answers.len() >= (limit - 59) / 62, "{limit}");
    }
    let bytes = encode(&super::message(&query, many(100).collect(), 0), 4096).unwrap();
    let answer = Message::from_vec(&bytes).unwrap();
    assert!(!answer.metadata.truncation && answer.answers.len() == 100);
}

//! Whether the mesh knows a name, and what it answers. Pure: a question, a snapshot, and who asks.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use mesh::gateway::Vip;
use mesh::service::{HealthPolicy, Service};
use mesh::workload::HealthStatus;
use mesh::{Mesh, Workload};

use super::query::Query;

/// How long an answer may be kept, in seconds; as ztunnel's.
const TTL: u32 = 30;

/// Who asks, and what is known.
pub(super) struct Asker<'a> {
    pub(super) mesh: &'a Mesh,
    /// The pod.
    pub(super) workload: &'a Workload,
    /// Lower case, without dots at its ends.
    pub(super) cluster_domain: &'a str,
}

/// Where the answer to a query is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// In the mesh: the addresses of a service, none if it has none of the family that is asked for.
    Mesh { service: Arc<Service>, addresses: Vec<IpAddr> },
    /// With a name server.
    Forward {
        /// Whether the mesh knows the name, although not what is asked about it.
        known: bool,
    },
}

/// Decides where the answer to a query is.
pub(super) fn decide(query: &Query, asker: &Asker<'_>) -> Outcome {
    let unknown = Outcome::Forward { known: false };
    let Some(question) = query.question.as_ref().filter(|q| q.query_class() == DNSClass::IN) else { return unknown };
    let name = question.name().to_ascii().to_ascii_lowercase();
    let Some(service) = find(name.trim_end_matches('.'), asker) else { return unknown };
    let Some(addresses) = addresses(service, asker) else { return unknown };
    let of_family = |v6: bool| Outcome::Mesh {
        service: service.clone(),
        addresses: addresses.iter().copied().filter(|a| a.is_ipv6() == v6).collect(),
    };
    match question.query_type() {
        RecordType::A => of_family(false),
        RecordType::AAAA => of_family(true),
        _ => Outcome::Forward { known: true },
    }
}

/// The service of a name: by its host name, by what Kubernetes would make of a short name, or by a wildcard.
fn find<'m>(name: &str, asker: &Asker<'m>) -> Option<&'m Arc<Service>> {
    let Asker { mesh, workload, cluster_domain: domain } = asker;
    let by = |hostname: &str| mesh.service_by_hostname(hostname, &workload.namespace);
    let expanded = match name.split('.').collect::<Vec<_>>()[..] {
        [_, _, "svc"] => Some(format!("{name}.{domain}")),
        [_, _] => Some(format!("{name}.svc.{domain}")),
        [_] => Some(format!("{name}.{}.svc.{domain}", workload.namespace)),
        _ => None,
    };
    let suffixes = || name.match_indices('.').map(|(at, _)| format!("*{}", &name[at..]));
    by(name).or_else(|| by(&expanded?)).or_else(|| suffixes().find_map(|wildcard| by(&wildcard)))
}

/// The addresses of a service in the network of the pod; those of its workloads, when it is a service of the cluster
/// that has none itself ("headless"). `None` when the mesh cannot know them.
fn addresses(service: &Service, asker: &Asker<'_>) -> Option<Vec<IpAddr>> {
    let network = &asker.workload.network;
    let vips: Vec<IpAddr> = service.vips.iter().filter(|v| v.network == *network).filter_map(Vip::address).collect();
    if !vips.is_empty() {
        return Some(vips);
    }
    let of_cluster = service.hostname.to_ascii_lowercase().ends_with(&format!(".svc.{}", asker.cluster_domain));
    if !service.vips.is_empty() || !of_cluster {
        return None;
    }
    let all = service.load_balancer.health_policy == HealthPolicy::AllowAll;
    let workloads = asker.mesh.endpoints(service).map(|e| &e.workload);
    let ready = workloads.filter(|w| w.network == *network && (all || w.status == HealthStatus::Healthy));
    let mut addresses: Vec<IpAddr> = ready.flat_map(|w| w.workload_ips.iter().copied()).collect();
    addresses.sort_unstable();
    Some(addresses)
}

/// The answer with these addresses, beginning with one that `random` chooses.
pub(super) fn message(query: &Query, mut addresses: Vec<IpAddr>, random: usize) -> Message {
    let mut answer = query.answer(ResponseCode::NoError);
    if answer.metadata.response_code != ResponseCode::NoError {
        return answer;
    }
    answer.metadata.authoritative = true;
    let first = random.checked_rem(addresses.len()).unwrap_or(0);
    addresses.rotate_left(first);
    let name = query.question.as_ref().map(|q| q.name().clone()).unwrap_or_default();
    answer.add_answers(addresses.into_iter().map(|ip| {
        let data = match ip {
            IpAddr::V4(ip) => RData::A(A(ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
        };
        Record::from_rdata(name.clone(), TTL, data)
    }));
    answer
}

#[cfg(test)]
mod tests {
    use super::super::query::encode;
    use super::*;
    use hickory_proto::op::{MessageType, OpCode, Query as Question};
    use hickory_proto::rr::Name;

    const MESH: &str = r#"
namespaces: [{ name: default }, { name: other }]
workloads:
  - { name: client, namespace: default, workloadIps: [10.0.0.1] }
  - { name: stranger, namespace: other, workloadIps: [10.0.0.2], network: far }
  - { name: db-0, namespace: default, workloadIps: [10.0.1.1, "fd00::1"], services: { default/db.default.svc.cluster.local: {} } }
  - { name: db-1, namespace: default, workloadIps: [10.0.1.2], services: { default/db.default.svc.cluster.local: {} } }
  - { name: db-2, namespace: default, workloadIps: [10.0.1.3], status: Unhealthy, services: { default/db.default.svc.cluster.local: {} } }
  - { name: db-3, namespace: default, workloadIps: [10.0.1.4], network: far, services: { default/db.default.svc.cluster.local: {} } }
services:
  - { name: web, namespace: default, vips: [/10.96.0.1, "/fd96::1"] }
  - { name: web, namespace: other, vips: [/10.96.0.2] }
  - { name: db, namespace: default }
  - { name: gone, namespace: default }
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

    /// What a pod is told: the addresses, or whether the mesh knows the name.
    fn told(pod: (&str, &str), name: &str, kind: RecordType) -> Result<Vec<String>, bool> {
        let mesh = mesh::parse_mesh_file(MESH).unwrap();
        let workload = mesh.workload_by_name(pod.0, pod.1).unwrap();
        match decide(&query(name, kind), &Asker { mesh: &mesh, workload, cluster_domain: "cluster.local" }) {
            Outcome::Mesh { addresses, .. } => Ok(addresses.iter().map(ToString::to_string).collect()),
            Outcome::Forward { known } => Err(known),
        }
    }

    const CLIENT: (&str, &str) = ("default", "client");

    #[test]
    fn names_of_the_mesh_are_answered_and_others_are_not() {
        use RecordType::{A, AAAA, HTTPS, SRV};
        let web = || Ok(vec!["10.96.0.1".to_owned()]);
        for name in
            ["web.default.svc.cluster.local", "web.default.svc", "web.default", "web", "WEB.Default.SVC.cluster.LOCAL."]
        {
            assert_eq!(told(CLIENT, name, A), web(), "{name}");
            assert_eq!(told(CLIENT, name, AAAA), Ok(vec!["fd96::1".to_owned()]), "{name}");
            assert_eq!(told(CLIENT, name, SRV), Err(true), "{name}");
        }
        let ip4 = |ip: &str| Ok(vec![ip.to_owned()]);
        assert_eq!(told(CLIENT, "web.other", A), ip4("10.96.0.2"));
        assert_eq!(told(CLIENT, "web.other", AAAA), Ok(vec![]), "known, and not of that family");
        assert_eq!(told(CLIENT, "shop.example", A), ip4("10.96.0.3"), "of two, the one of the own namespace");
        assert_eq!(told(CLIENT, "a.wild.example", A), ip4("10.96.0.5"));
        assert_eq!(told(CLIENT, "a.b.wild.example", A), ip4("10.96.0.5"));
        assert_eq!(told(CLIENT, "a.wild.example", HTTPS), Err(true));
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
            assert_eq!(told(CLIENT, name, A), Err(false), "{name}");
        }
    }

    #[test]
    fn a_service_without_an_address_answers_with_its_healthy_workloads() {
        let both = Ok(vec!["10.0.1.1".to_owned(), "10.0.1.2".to_owned()]);
        assert_eq!(told(CLIENT, "db", RecordType::A), both);
        assert_eq!(told(CLIENT, "db", RecordType::AAAA), Ok(vec!["fd00::1".to_owned()]));
        assert_eq!(told(CLIENT, "gone", RecordType::A), Ok(vec![]));
    }

    #[test]
    fn a_pod_of_another_network_is_told_what_is_in_that_network() {
        let stranger = ("other", "stranger");
        assert_eq!(told(stranger, "far.default", RecordType::A), Ok(vec!["10.97.0.1".to_owned()]));
        assert_eq!(told(stranger, "db.default", RecordType::A), Ok(vec!["10.0.1.4".to_owned()]));
        assert_eq!(told(stranger, "web", RecordType::A), Err(false), "the name server knows better");
    }

    #[test]
    fn an_answer_repeats_the_question_and_turns_the_addresses() {
        let query = query("WeB.default.", RecordType::A);
        let ips: Vec<IpAddr> = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|a| a.parse().unwrap()).into();
        let answer = message(&query, ips.clone(), 4);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        let first = Message::from_vec(&encode(&answer, 512).unwrap()).unwrap();
        assert_eq!(first.queries[0].name().to_ascii(), "WeB.default.", "as it was written");
        assert!(first.answers.iter().all(|r| r.ttl == TTL && r.name == *query.question.as_ref().unwrap().name()));
        assert_eq!(first.answers[0].data, RData::A(A("10.0.0.2".parse().unwrap())));
        assert_eq!(message(&query, vec![], 4).answers.len(), 0);
        let many = (0..200).map(|i| IpAddr::from([10, 1, 0, i])).collect();
        let bytes = encode(&message(&query, many, 0), query.udp_size()).unwrap();
        assert!(bytes.len() <= 512);
        let cut = Message::from_vec(&bytes).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.queries == first.queries);
    }
}

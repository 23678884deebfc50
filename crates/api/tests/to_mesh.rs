//! What a control plane says is taken as it is meant, or refused by name.
#![allow(clippy::unwrap_used)]

use api::authorization as auth;
use api::protobuf::{Any, UInt32Value};
use api::to_mesh::{Malformed, address, authorization};
use api::workload as wire;
use bytes::Bytes;
use mesh::Resource;
use mesh::workload::Protocol;
use proptest::prelude::*;
use prost::Message;

fn packed(type_url: &str, message: &impl Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec().into() }
}

fn of_workload(workload: wire::Workload) -> Any {
    packed(api::ADDRESS, &wire::Address { r#type: Some(wire::Type::Workload(workload)) })
}

fn of_service(service: wire::Service) -> Any {
    packed(api::ADDRESS, &wire::Address { r#type: Some(wire::Type::Service(service)) })
}

/// A workload with every field that means something.
fn full() -> wire::Workload {
    let gateway = |destination| wire::GatewayAddress { destination: Some(destination), hbone_mtls_port: 15008 };
    wire::Workload {
        uid: "Kubernetes//Pod/default/web".to_owned(),
        name: "web".to_owned(),
        namespace: "default".to_owned(),
        addresses: vec![Bytes::from_static(&[10, 0, 0, 1]), Bytes::from_static(&[0xfd; 16])],
        network: "net".to_owned(),
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        trust_domain: "td".to_owned(),
        service_account: "sa".to_owned(),
        waypoint: Some(gateway(wire::Destination::Hostname(wire::NamespacedHostname {
            namespace: "default".to_owned(),
            hostname: "waypoint.example".to_owned(),
        }))),
        network_gateway: Some(gateway(wire::Destination::Address(wire::NetworkAddress {
            network: "other".to_owned(),
            address: Bytes::from_static(&[1, 2, 3, 4]),
            length: None,
        }))),
        services: [(
            "default/web.example".to_owned(),
            wire::PortList { ports: vec![wire::Port { service_port: 80, target_port: 8080 }] },
        )]
        .into(),
        application_tunnel: Some(wire::ApplicationTunnel {
            protocol: wire::ApplicationProtocol::Proxy.into(),
            port: 15088,
        }),
        authorization_policies: vec!["default/strict".to_owned()],
        capacity: Some(UInt32Value { value: 7 }),
        network_mode: wire::NetworkMode::HostNetwork.into(),
        ..wire::Workload::default()
    }
}

#[test]
fn a_workload_keeps_everything_and_empty_fields_mean_their_defaults() {
    let Ok(Resource::Workload(w)) = address("Kubernetes//Pod/default/web", Some(&of_workload(full()))) else {
        panic!("it is a workload")
    };
    assert_eq!(w.protocol, Protocol::Hbone);
    assert_eq!(w.identity().to_string(), "spiffe://td/ns/default/sa/sa");
    assert_eq!(w.workload_ips.len(), 2);
    assert_eq!(w.waypoint.unwrap().destination.to_string(), "default/waypoint.example");
    assert_eq!(w.network_gateway.unwrap().destination.to_string(), "other/1.2.3.4");
    assert_eq!(w.services.get("default/web.example").unwrap().get(80), Some(8080));
    assert_eq!(w.application_tunnel.unwrap().port, Some(15088));
    assert!(w.capacity == 7 && w.host_network);

    let bare = wire::Workload { uid: "u".to_owned(), namespace: "ns".to_owned(), ..wire::Workload::default() };
    let Ok(Resource::Workload(w)) = address("u", Some(&of_workload(bare))) else { panic!("it is a workload") };
    assert_eq!(w.identity().to_string(), "spiffe://cluster.local/ns/ns/sa/default");
    assert_eq!((w.cluster_id.as_str(), w.capacity, w.protocol), ("Kubernetes", 1, Protocol::Tcp));
    assert!(!w.host_network && w.application_tunnel.is_none());
}

#[test]
fn a_service_may_have_a_range_of_addresses() {
    let s = wire::Service {
        name: "web".to_owned(),
        namespace: "default".to_owned(),
        hostname: "web.example".to_owned(),
        addresses: vec![
            wire::NetworkAddress { network: "net".to_owned(), address: vec![10, 1, 2, 3].into(), length: Some(8) },
            wire::NetworkAddress { network: String::new(), address: vec![10, 1, 2, 3].into(), length: None },
        ],
        load_balancing: Some(wire::LoadBalancing {
            routing_preference: vec![wire::Scope::Network.into(), wire::Scope::Unspecified.into(), 2],
            mode: wire::Mode::Failover.into(),
            health_policy: wire::HealthPolicy::AllowAll.into(),
        }),
        ..wire::Service::default()
    };
    let Ok(Resource::Service(s)) = address("default/web.example", Some(&of_service(s))) else { panic!("a service") };
    let vips: Vec<_> = s.vips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["net/10.0.0.0/8", "/10.1.2.3"]);
    use mesh::service::{HealthPolicy, LoadBalancerMode, Scope};
    assert_eq!(s.load_balancer.routing_preferences, [Scope::Network, Scope::Zone]);
    assert_eq!(s.load_balancer.mode, LoadBalancerMode::Failover);
    assert_eq!(s.load_balancer.health_policy, HealthPolicy::AllowAll);
}

#[test]
fn each_mistake_in_an_address_is_named() {
    let workload = |change: fn(&mut wire::Workload)| {
        let mut w = full();
        change(&mut w);
        address("Kubernetes//Pod/default/web", Some(&of_workload(w))).unwrap_err().to_string()
    };
    assert_eq!(workload(|w| w.addresses[0] = Bytes::from_static(&[1, 2, 3])), "addresses: an address of 3 bytes");
    assert_eq!(workload(|w| w.tunnel_protocol = 2), "tunnel_protocol: 2 is not known here");
    assert_eq!(workload(|w| w.status = 9), "status: 9 is not known here");
    assert_eq!(workload(|w| w.uid.clear()), "uid is missing");
    assert_eq!(workload(|w| w.uid.push('x')), "it calls itself Kubernetes//Pod/default/webx");
    assert_eq!(workload(|w| w.waypoint.as_mut().unwrap().hbone_mtls_port = 65536), "waypoint: 65536 is no port");
    assert_eq!(workload(|w| w.waypoint.as_mut().unwrap().destination = None), "waypoint is missing");
    assert_eq!(address("a", None), Err(Malformed::Empty));
    assert_eq!(address("a", Some(&packed(api::ADDRESS, &wire::Address::default()))), Err(Malformed::Empty));
    let other = packed(api::AUTHORIZATION, &wire::Address::default());
    assert_eq!(address("a", Some(&other)), Err(Malformed::OtherType(api::AUTHORIZATION.to_owned())));
    let garbage = Any { type_url: api::ADDRESS.to_owned(), value: Bytes::from_static(b"\xff\xff\xff\xff") };
    assert!(matches!(address("a", Some(&garbage)), Err(Malformed::Undecodable(_))));
}

#[test]
fn a_policy_is_taken_whole_or_not_at_all() {
    let presence = auth::StringMatch { match_type: Some(auth::MatchType::Presence(Default::default())) };
    let not_principals = auth::Match { not_principals: vec![presence.clone()], ..auth::Match::default() };
    let strict = |m: auth::Match| auth::Authorization {
        name: "istio_converted_static_strict".to_owned(),
        namespace: "istio-system".to_owned(),
        scope: auth::Scope::WorkloadSelector.into(),
        action: auth::Action::Deny.into(),
        rules: vec![auth::Rule { clauses: vec![auth::Clause { matches: vec![m] }] }],
        dry_run: false,
    };
    let take =
        |m| authorization("istio-system/istio_converted_static_strict", Some(&packed(api::AUTHORIZATION, &strict(m))));
    let Ok(Resource::Policy(p)) = take(not_principals.clone()) else { panic!("it is a policy") };
    assert_eq!(p.rules[0][0][0].not_principals, [mesh::policy::StringMatch::Presence]);
    assert_eq!(p.action, mesh::policy::Action::Deny);
    let address = |address: Vec<u8>, length| auth::Network { address: address.into(), length };
    let mistakes = [
        (
            auth::Match { not_principals: vec![auth::StringMatch::default()], ..Default::default() },
            "not_principals is missing",
        ),
        (
            auth::Match { source_ips: vec![address(vec![1, 2, 3, 4], 33)], ..Default::default() },
            "source_ips: a prefix of 33 bits",
        ),
        (
            auth::Match { destination_ips: vec![address(vec![1], 8)], ..Default::default() },
            "destination_ips: an address of 1 bytes",
        ),
        (auth::Match { destination_ports: vec![70_000], ..Default::default() }, "destination_ports: 70000 is no port"),
    ];
    for (m, why) in mistakes {
        assert_eq!(take(m).unwrap_err().to_string(), why);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256), policy in any::<bool>()) {
        let (url, take): (_, fn(&str, Option<&Any>) -> _) =
            if policy { (api::AUTHORIZATION, authorization) } else { (api::ADDRESS, address) };
        let _ = take("a", Some(&Any { type_url: url.to_owned(), value: bytes.into() }));
    }
}

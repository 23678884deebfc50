//! Control plane messages are converted correctly or rejected with an error that names the field.
#![allow(clippy::unwrap_used)]

use api::authorization as auth;
use api::discovery;
use api::protobuf::{Any, UInt32Value};
use api::to_mesh::{
    Converted, MalformedResource, address, address_placeholder, authorization, policy_placeholder,
};
use api::workload as wire;
use bytes::Bytes;
use mesh::Resource;
use mesh::workload::Protocol;
use proptest::prelude::*;
use prost::Message;

fn packed(type_url: &str, message: &impl Message) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec().into(),
    }
}

fn of_workload(workload: wire::Workload) -> Any {
    packed(
        api::ADDRESS,
        &wire::Address {
            r#type: Some(wire::Type::Workload(workload)),
        },
    )
}

fn of_service(service: wire::Service) -> Any {
    packed(
        api::ADDRESS,
        &wire::Address {
            r#type: Some(wire::Type::Service(service)),
        },
    )
}

/// A workload with every field that is converted.
fn full() -> wire::Workload {
    let gateway = |destination| wire::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: 15008,
    };
    wire::Workload {
        uid: "Kubernetes//Pod/default/web".to_owned(),
        name: "web".to_owned(),
        namespace: "default".to_owned(),
        addresses: vec![
            Bytes::from_static(&[10, 0, 0, 1]),
            Bytes::from_static(&[0xfd; 16]),
        ],
        network: "net".to_owned(),
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        trust_domain: "td".to_owned(),
        service_account: "sa".to_owned(),
        waypoint: Some(gateway(wire::Destination::Hostname(
            wire::NamespacedHostname {
                namespace: "default".to_owned(),
                hostname: "waypoint.example".to_owned(),
            },
        ))),
        network_gateway: Some(gateway(wire::Destination::Address(wire::NetworkAddress {
            network: "other".to_owned(),
            address: Bytes::from_static(&[1, 2, 3, 4]),
            length: None,
        }))),
        services: [(
            "default/web.example".to_owned(),
            wire::PortList {
                ports: vec![wire::Port {
                    service_port: 80,
                    target_port: 8080,
                }],
            },
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
fn a_workload_keeps_all_fields_and_empty_fields_get_defaults() {
    let w = workload_of(address(
        "Kubernetes//Pod/default/web",
        Some(&of_workload(full())),
    ));
    assert_eq!(w.protocol, Protocol::Hbone);
    assert_eq!(w.identity().to_string(), "spiffe://td/ns/default/sa/sa");
    assert_eq!(w.workload_ips.len(), 2);
    assert_eq!(
        w.waypoint.unwrap().destination.to_string(),
        "default/waypoint.example"
    );
    assert_eq!(
        w.network_gateway.unwrap().destination.to_string(),
        "other/1.2.3.4"
    );
    assert_eq!(
        w.services.get("default/web.example").unwrap().get(80),
        Some(8080)
    );
    assert_eq!(w.application_tunnel.unwrap().port, Some(15088));
    assert!(w.capacity == 7 && w.host_network);

    let bare = wire::Workload {
        uid: "u".to_owned(),
        namespace: "ns".to_owned(),
        ..wire::Workload::default()
    };
    let w = workload_of(address("u", Some(&of_workload(bare))));
    assert_eq!(
        w.identity().to_string(),
        "spiffe://cluster.local/ns/ns/sa/default"
    );
    assert_eq!(
        (w.cluster_id.as_str(), w.capacity, w.protocol),
        ("Kubernetes", 1, Protocol::Tcp)
    );
    assert!(!w.host_network && w.application_tunnel.is_none());
}

#[test]
fn a_service_may_have_a_range_of_addresses() {
    let s = wire::Service {
        name: "web".to_owned(),
        namespace: "default".to_owned(),
        hostname: "web.example".to_owned(),
        addresses: vec![
            wire::NetworkAddress {
                network: "net".to_owned(),
                address: vec![10, 1, 2, 3].into(),
                length: Some(8),
            },
            wire::NetworkAddress {
                network: String::new(),
                address: vec![10, 1, 2, 3].into(),
                length: None,
            },
        ],
        load_balancing: Some(wire::LoadBalancing {
            routing_preference: vec![
                wire::Scope::Network.into(),
                wire::Scope::Unspecified.into(),
                2,
            ],
            mode: wire::Mode::Failover.into(),
            health_policy: wire::HealthPolicy::AllowAll.into(),
        }),
        ..wire::Service::default()
    };
    let converted = address("default/web.example", Some(&of_service(s)));
    let Ok(Resource::Service(s)) = converted.map(|c| c.resource) else {
        panic!("expected a service")
    };
    let vips: Vec<_> = s.vips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["net/10.0.0.0/8", "/10.1.2.3"]);
    use mesh::service::{HealthPolicy, LoadBalancerMode, Scope};
    assert_eq!(
        s.load_balancer.routing_preferences,
        [Scope::Network, Scope::Zone]
    );
    assert_eq!(s.load_balancer.mode, LoadBalancerMode::Failover);
    assert_eq!(s.load_balancer.health_policy, HealthPolicy::AllowAll);
}

/// A workload that is understood entirely.
fn workload_of(converted: Result<Converted, MalformedResource>) -> mesh::Workload {
    match converted {
        Ok(Converted {
            resource: Resource::Workload(w),
            not_understood,
            ignored,
        }) if not_understood.is_empty() && ignored.is_empty() => w,
        other => panic!("expected a workload, got {other:?}"),
    }
}

/// A changed workload, and what of it is not understood.
fn changed(change: impl FnOnce(&mut wire::Workload)) -> (mesh::Workload, String) {
    let mut w = full();
    change(&mut w);
    match address("Kubernetes//Pod/default/web", Some(&of_workload(w))).unwrap() {
        Converted {
            resource: Resource::Workload(w),
            not_understood,
            ..
        } => (w, not_understood.join(", ")),
        other => panic!("expected a workload, got {other:?}"),
    }
}

#[test]
fn a_value_of_a_workload_that_is_not_understood_gets_a_safe_default_and_is_named() {
    use mesh::gateway::{Destination, TunnelProtocol};
    use mesh::workload::{HealthStatus, WorkloadType};
    let (w, why) = changed(|w| w.addresses[0] = Bytes::from_static(&[1, 2, 3]));
    assert_eq!(why, "addresses: invalid address of 3 bytes");
    assert_eq!(w.workload_ips.len(), 1, "the other address is used");
    for unsupported in [2, 7] {
        let (w, why) = changed(|w| w.tunnel_protocol = unsupported);
        assert_eq!(
            why,
            format!("tunnel_protocol: unsupported value {unsupported}")
        );
        assert_eq!(w.protocol, Protocol::Unsupported);
    }
    let (w, why) = changed(|w| w.status = 9);
    assert_eq!(why, "status: unsupported value 9");
    assert_eq!(w.status, HealthStatus::Unhealthy);
    let (w, why) = changed(|w| w.network_mode = 9);
    assert_eq!(why, "network_mode: unsupported value 9");
    assert!(!w.host_network);
    let (w, why) = changed(|w| w.workload_type = 9);
    assert_eq!(why, "workload_type: unsupported value 9");
    assert_eq!(w.workload_type, WorkloadType::Pod);
    let (w, why) = changed(|w| w.application_tunnel.as_mut().unwrap().protocol = 9);
    assert_eq!(why, "application_tunnel: unsupported value 9");
    assert_eq!(
        w.application_tunnel.unwrap().protocol,
        TunnelProtocol::Unsupported
    );
    let (w, why) = changed(|w| w.waypoint.as_mut().unwrap().hbone_mtls_port = 65536);
    assert_eq!(why, "waypoint: invalid port 65536");
    assert_eq!(w.waypoint.unwrap().destination, Destination::NotUnderstood);
    let (w, why) = changed(|w| w.network_gateway.as_mut().unwrap().destination = None);
    assert_eq!(why, "network_gateway is missing");
    assert_eq!(
        w.network_gateway.unwrap().destination,
        Destination::NotUnderstood
    );
    let (w, why) = changed(|w| {
        let list = w.services.values_mut().next().unwrap();
        list.ports.push(wire::Port {
            service_port: 81,
            target_port: 70_000,
        });
    });
    assert_eq!(why, "services: invalid port 70000");
    let ports = w.services.get("default/web.example").unwrap();
    assert_eq!((ports.get(80), ports.get(81)), (Some(8080), None));
}

#[test]
fn a_value_of_a_service_that_is_not_understood_gets_a_safe_default_and_is_named() {
    use mesh::gateway::Destination;
    use mesh::service::{HealthPolicy, LoadBalancerMode, Visibility};
    let vip = |address: &[u8]| wire::NetworkAddress {
        address: address.to_vec().into(),
        ..Default::default()
    };
    let s = wire::Service {
        namespace: "default".to_owned(),
        hostname: "web.example".to_owned(),
        addresses: vec![vip(&[1]), vip(&[10, 0, 0, 1])],
        ports: vec![wire::Port {
            service_port: 80,
            target_port: 99_999,
        }],
        waypoint: Some(wire::GatewayAddress::default()),
        weighted_waypoints: vec![wire::WeightedWaypoint {
            destination: None,
            weight: 3,
        }],
        load_balancing: Some(wire::LoadBalancing {
            routing_preference: vec![4, 99],
            mode: 9,
            health_policy: 9,
        }),
        ip_families: 9,
        visibility: 9,
        ..wire::Service::default()
    };
    let converted = address("default/web.example", Some(&of_service(s))).unwrap();
    let Resource::Service(s) = converted.resource else {
        panic!("expected a service")
    };
    let fields: Vec<&str> = converted
        .not_understood
        .iter()
        .map(|why| why.split([':', ' ']).next().unwrap())
        .collect();
    assert_eq!(
        fields,
        [
            "addresses",
            "ports",
            "waypoint",
            "weighted_waypoints",
            "load_balancing.routing_preference",
            "load_balancing.mode",
            "load_balancing.health_policy",
            "ip_families",
            "visibility",
        ]
    );
    assert_eq!((s.vips.len(), s.ports.as_slice().len()), (1, 0));
    assert_eq!(s.waypoint.unwrap().destination, Destination::NotUnderstood);
    assert_eq!(
        s.weighted_waypoints[0].waypoint.destination,
        Destination::NotUnderstood
    );
    assert_eq!(s.load_balancer.mode, LoadBalancerMode::Standard);
    assert_eq!(s.load_balancer.health_policy, HealthPolicy::OnlyHealthy);
    assert_eq!((s.ip_families, s.visibility), (None, Visibility::Public));
}

#[test]
fn an_unusable_resource_is_rejected_with_a_placeholder_for_its_addresses() {
    let rejected = |change: fn(&mut wire::Workload)| {
        let mut w = full();
        change(&mut w);
        address("Kubernetes//Pod/default/web", Some(&of_workload(w)))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(rejected(|w| w.uid.clear()), "uid is missing");
    assert_eq!(
        rejected(|w| w.uid.push('x')),
        "resource name does not match its content, Kubernetes//Pod/default/webx"
    );
    assert_eq!(address("a", None), Err(MalformedResource::Empty));
    assert_eq!(
        address("a", Some(&packed(api::ADDRESS, &wire::Address::default()))),
        Err(MalformedResource::Empty)
    );
    let other = packed(api::AUTHORIZATION, &wire::Address::default());
    assert_eq!(
        address("a", Some(&other)),
        Err(MalformedResource::WrongType(api::AUTHORIZATION.to_owned()))
    );
    let any = |value: &'static [u8]| Any {
        type_url: api::ADDRESS.to_owned(),
        value: Bytes::from_static(value),
    };
    assert!(matches!(
        address("a", Some(&any(b"\xff\xff\xff\xff"))),
        Err(MalformedResource::Undecodable(_))
    ));
    // Field 3, length-delimited: a future kind of resource.
    assert_eq!(
        address("a", Some(&any(b"\x1a\x01x"))),
        Err(MalformedResource::UnknownKind(3))
    );
    let resource = discovery::Resource {
        name: "default/web.example".to_owned(),
        aliases: ["net/10.0.0.1", "net/fd00::1", "far/10.0.0.2", "no address"]
            .map(str::to_owned)
            .into(),
        ..Default::default()
    };
    let Resource::Placeholder(mesh::Placeholder::Address(w)) = address_placeholder(&resource)
    else {
        panic!("expected a placeholder")
    };
    assert!(w.is_placeholder() && w.uid == "default/web.example" && w.network == "net");
    assert_eq!(w.workload_ips.len(), 2);
    let Resource::Placeholder(mesh::Placeholder::Policy(p)) = policy_placeholder(&resource) else {
        panic!("expected a placeholder")
    };
    assert_eq!(p.key(), "default/web.example");
}

#[test]
fn a_part_of_a_policy_that_is_not_understood_makes_only_what_it_is_part_of_doubtful() {
    let presence = auth::StringMatch {
        match_type: Some(auth::MatchType::Presence(Default::default())),
    };
    let network = |address: &[u8], length| auth::Network {
        address: address.to_vec().into(),
        length,
    };
    let convert = |m: auth::Match| {
        let policy = auth::Authorization {
            name: "strict".to_owned(),
            namespace: "a".to_owned(),
            scope: auth::Scope::WorkloadSelector.into(),
            action: auth::Action::Deny.into(),
            rules: vec![auth::Rule {
                clauses: vec![auth::Clause { matches: vec![m] }],
            }],
            dry_run: false,
        };
        let converted = authorization("a/strict", Some(&packed(api::AUTHORIZATION, &policy)));
        let converted = converted.unwrap();
        let Resource::Policy(p) = converted.resource else {
            panic!("expected a policy")
        };
        (
            p.rules[0][0][0].clone(),
            converted.not_understood.join(", "),
        )
    };
    let (m, why) = convert(auth::Match {
        not_principals: vec![presence.clone()],
        // istiod passes on ranges of IPv4-mapped addresses as they are written.
        source_ips: vec![
            network(&[10, 0, 0, 0], 8),
            network(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 1, 2, 3, 0], 120),
        ],
        ..Default::default()
    });
    assert_eq!(m.not_principals, [mesh::policy::StringMatch::Presence]);
    assert_eq!(
        m.source_ips,
        ["10.0.0.0/8", "1.2.3.0/24"].map(|n| n.parse().unwrap())
    );
    assert_eq!((m.not_understood.len(), why.as_str()), (0, ""));
    let doubtful = [
        (
            auth::Match {
                not_principals: vec![presence, auth::StringMatch::default()],
                ..Default::default()
            },
            "not_principals",
            "rule 1: not_principals is missing",
        ),
        (
            auth::Match {
                source_ips: vec![network(&[1, 2, 3, 4], 33), network(&[10, 0, 0, 0], 8)],
                ..Default::default()
            },
            "source_ips",
            "rule 1: source_ips: invalid prefix length 33",
        ),
        (
            auth::Match {
                destination_ips: vec![network(&[1], 8)],
                ..Default::default()
            },
            "destination_ips",
            "rule 1: destination_ips: invalid address of 1 bytes",
        ),
        (
            auth::Match {
                destination_ports: vec![70_000, 80],
                ..Default::default()
            },
            "destination_ports",
            "rule 1: destination_ports: invalid port 70000",
        ),
    ];
    for (m, field, reason) in doubtful {
        let (m, why) = convert(m);
        assert_eq!(
            (m.not_understood, why.as_str()),
            (vec![field.into()], reason)
        );
        let known = m.not_principals.len() + m.source_ips.len() + m.destination_ports.len();
        assert!(
            known == 1 || field == "destination_ips",
            "the other value stays: {field}"
        );
    }
}

/// Appends field 99 to the message that is reached by these fields, each in its first occurrence.
fn with_new_field(message: &[u8], path: &[u32]) -> Vec<u8> {
    let mut result = Vec::new();
    let Some((number, rest)) = path.split_first() else {
        result.extend_from_slice(message);
        prost::encoding::bool::encode(99, &true, &mut result);
        return result;
    };
    let (mut bytes, mut done) = (message, false);
    while !bytes.is_empty() {
        let before = bytes;
        let (tag, kind) = prost::encoding::decode_key(&mut bytes).unwrap();
        if tag == *number && !done {
            done = true;
            let length = prost::encoding::decode_varint(&mut bytes).unwrap() as usize;
            let inner = with_new_field(&bytes[..length], rest);
            prost::encoding::bytes::encode(tag, &inner, &mut result);
            bytes = &bytes[length..];
        } else {
            prost::encoding::skip_field(kind, tag, &mut bytes, Default::default()).unwrap();
            result.extend_from_slice(&before[..before.len() - bytes.len()]);
        }
    }
    assert!(done, "no field {number}");
    result
}

#[test]
fn a_new_field_at_any_level_of_a_policy_is_noticed_there() {
    let exact = auth::StringMatch {
        match_type: Some(auth::MatchType::Exact("t/ns/a/sa/b".to_owned())),
    };
    let m = auth::Match {
        principals: vec![exact],
        destination_ports: vec![80],
        ..Default::default()
    };
    let rule = || auth::Rule {
        clauses: vec![auth::Clause {
            matches: vec![m.clone()],
        }],
    };
    let policy = auth::Authorization {
        name: "p".to_owned(),
        namespace: "a".to_owned(),
        action: auth::Action::Allow.into(),
        rules: vec![rule(), rule()],
        ..Default::default()
    };
    for (path, reason, parts) in [
        (&[][..], "unknown field 99", "field 99"),
        (&[5], "rule 1: unknown field 99", "field 99"),
        (&[5, 1], "rule 1: unknown field 99 of a clause", "field 99"),
        (
            &[5, 1, 2],
            "rule 1: unknown field 99 of a match",
            "field 99",
        ),
        (
            &[5, 1, 2, 3],
            "rule 1: principals: unknown field 99",
            "principals",
        ),
    ] {
        let any = Any {
            type_url: api::AUTHORIZATION.to_owned(),
            value: with_new_field(&policy.encode_to_vec(), path).into(),
        };
        let converted = authorization("a/p", Some(&any)).unwrap();
        assert_eq!(converted.not_understood, [reason]);
        let Resource::Policy(p) = converted.resource else {
            panic!("expected a policy")
        };
        assert_eq!(p.rules[0][0][0].not_understood, [parts], "{path:?}");
        let untouched = p
            .rules
            .get(1)
            .is_some_and(|r| r[0][0].not_understood.is_empty());
        assert_eq!(untouched, !path.is_empty(), "{path:?}: the other rule");
    }
    for (action, scope) in [(9, 0), (0, 9)] {
        let policy = auth::Authorization {
            action,
            scope,
            ..policy.clone()
        };
        let converted = authorization("a/p", Some(&packed(api::AUTHORIZATION, &policy))).unwrap();
        let Resource::Policy(p) = converted.resource else {
            panic!("expected a policy")
        };
        assert_eq!(converted.not_understood.len(), 1);
        if action == 9 {
            assert_eq!(p.action, mesh::policy::Action::Deny);
            assert_eq!(p.rules[0][0][0].not_understood, ["the action"]);
        } else {
            assert_eq!(p.scope, mesh::policy::PolicyScope::Namespace);
        }
    }
}

#[test]
fn a_new_field_of_an_address_is_ignored_and_named() {
    let workload = of_workload(full()).value;
    for (path, name) in [
        (&[1][..], "workload field 99"),
        (&[1, 8], "workload field 8.99"),
        (&[1, 22, 2, 1], "workload field 22.2.1.99"),
    ] {
        let any = Any {
            type_url: api::ADDRESS.to_owned(),
            value: with_new_field(&workload, path).into(),
        };
        let converted = address("Kubernetes//Pod/default/web", Some(&any)).unwrap();
        assert_eq!(converted.ignored, [name]);
        assert!(converted.not_understood.is_empty());
    }
}

proptest! {
    #[test]
    fn any_bytes_are_converted_or_rejected(
        bytes in proptest::collection::vec(any::<u8>(), 0..256),
        policy in any::<bool>(),
    ) {
        let (url, convert): (_, fn(&str, Option<&Any>) -> _) =
            if policy { (api::AUTHORIZATION, authorization) } else { (api::ADDRESS, address) };
        let _ = convert("a", Some(&Any { type_url: url.to_owned(), value: bytes.into() }));
    }
}

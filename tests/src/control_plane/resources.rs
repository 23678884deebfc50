//! Resources like those of istiod.

use std::net::IpAddr;

use api::authorization::{
    Action, Authorization, Clause, Match, MatchType, Rule, Scope, StringMatch,
};
use api::discovery::Resource;
use api::protobuf::Any;
use api::workload::{
    Address, NetworkAddress, Port, PortList, Service, TunnelProtocol, Type, Workload,
};
use bytes::Bytes;
use prost::Message;

/// A pod of the mesh in namespace `default`, with a service account of its name.
pub fn pod(name: &str, ips: &[IpAddr]) -> Workload {
    Workload {
        uid: format!("Kubernetes//Pod/default/{name}"),
        name: name.to_owned(),
        namespace: "default".to_owned(),
        addresses: ips.iter().map(|ip| octets(*ip)).collect(),
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        service_account: name.to_owned(),
        node: "node".to_owned(),
        canonical_name: name.to_owned(),
        canonical_revision: "latest".to_owned(),
        workload_name: name.to_owned(),
        cluster_id: "Kubernetes".to_owned(),
        ..Workload::default()
    }
}

/// The workload as an endpoint of the service of its name, port 80 to 8080.
pub fn endpoint(workload: Workload) -> Workload {
    let ports = PortList {
        ports: vec![Port {
            service_port: 80,
            target_port: 8080,
        }],
    };
    let key = format!("default/{}.default.svc.cluster.local", workload.name);
    Workload {
        services: [(key, ports)].into(),
        ..workload
    }
}

/// A service in namespace `default`.
pub fn service(name: &str, vips: &[IpAddr]) -> Service {
    let vip = |ip: &IpAddr| NetworkAddress {
        address: octets(*ip),
        ..NetworkAddress::default()
    };
    Service {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        hostname: format!("{name}.default.svc.cluster.local"),
        addresses: vips.iter().map(vip).collect(),
        ports: vec![Port {
            service_port: 80,
            target_port: 8080,
        }],
        ..Service::default()
    }
}

/// A policy that denies this principal for all of namespace `default`.
pub fn deny(name: &str, principal: &str) -> Authorization {
    let exact = StringMatch {
        match_type: Some(MatchType::Exact(principal.to_owned())),
    };
    let matches = vec![Match {
        principals: vec![exact],
        ..Match::default()
    }];
    Authorization {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        scope: Scope::Namespace.into(),
        action: Action::Deny.into(),
        rules: vec![Rule {
            clauses: vec![Clause { matches }],
        }],
        dry_run: false,
    }
}

/// A workload as a resource.
pub fn workload_resource(workload: Workload) -> Resource {
    let alias = |a: &Bytes| Some(format!("{}/{}", workload.network, ip(a)?));
    let aliases = workload.addresses.iter().filter_map(alias).collect();
    let address = |workload| Address {
        r#type: Some(Type::Workload(workload)),
    };
    Resource {
        name: workload.uid.clone(),
        aliases,
        ..packed(api::ADDRESS, &address(workload))
    }
}

/// A service as a resource.
pub fn service_resource(service: Service) -> Resource {
    let alias = |a: &NetworkAddress| Some(format!("{}/{}", a.network, ip(&a.address)?));
    let aliases = service.addresses.iter().filter_map(alias).collect();
    let name = format!("{}/{}", service.namespace, service.hostname);
    Resource {
        name,
        aliases,
        ..packed(
            api::ADDRESS,
            &Address {
                r#type: Some(Type::Service(service)),
            },
        )
    }
}

/// A policy as a resource.
pub fn policy_resource(policy: Authorization) -> Resource {
    let name = format!("{}/{}", policy.namespace, policy.name);
    Resource {
        name,
        ..packed(api::AUTHORIZATION, &policy)
    }
}

/// A resource that cannot be decoded.
pub fn garbage(type_url: &str, name: &str) -> Resource {
    let value = Bytes::from_static(b"\xff\xff\xff\xff\xff");
    let resource = Some(Any {
        type_url: type_url.to_owned(),
        value,
    });
    Resource {
        name: name.to_owned(),
        version: "1".to_owned(),
        resource,
        ..Resource::default()
    }
}

fn packed(type_url: &str, message: &impl Message) -> Resource {
    let resource = Some(Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec().into(),
    });
    Resource {
        resource,
        ..Resource::default()
    }
}

fn octets(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    }
}

fn ip(bytes: &Bytes) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(&bytes[..]).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(&bytes[..]).map(IpAddr::from))
        .ok()
}

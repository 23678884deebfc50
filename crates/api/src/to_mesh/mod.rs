//! Conversion of control plane messages to the mesh model. All input is validated.
//!
//! What is not understood affects only what it is part of, and never opens anything: a value gets
//! the documented safe default (`docs/control-plane.md`), and is reported by the name of its field.
//! A resource that cannot be converted at all is replaced by a placeholder.

mod policy;
mod service;
mod workload;

use std::net::IpAddr;

use ipnet::IpNet;
use mesh::gateway::NetworkAddress;
use mesh::{Placeholder, Policy, Resource, Workload};
use prost::Message;

use crate::authorization::Authorization;
use crate::discovery;
use crate::protobuf::Any;
use crate::unknown_fields::{self, FieldPath, MessageType, unknown_fields};
use crate::workload::{Address, Type};

/// Why a resource is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MalformedResource {
    /// The resource has no content.
    #[error("resource is empty")]
    Empty,
    /// The resource is of a kind that this version does not know.
    #[error("unknown kind of resource, field {0}")]
    UnknownKind(u32),
    /// The message has another type than the push.
    #[error("unexpected type {0}")]
    WrongType(String),
    /// The bytes cannot be decoded.
    #[error("cannot be decoded: {0}")]
    Undecodable(String),
    /// The content has another name, so that a removal would not find it.
    #[error("resource name does not match its content, {0}")]
    NameMismatch(String),
    /// An address has neither 4 nor 16 bytes.
    #[error("{field}: invalid address of {length} bytes")]
    Address {
        /// Name of the field.
        field: &'static str,
        /// Length in bytes.
        length: usize,
    },
    /// A prefix is longer than the address.
    #[error("{field}: invalid prefix length {length}")]
    Prefix {
        /// Name of the field.
        field: &'static str,
        /// Length in bits.
        length: u32,
    },
    /// A port is above 65535.
    #[error("{field}: invalid port {port}")]
    Port {
        /// Name of the field.
        field: &'static str,
        /// The port.
        port: u32,
    },
    /// An enumeration value is unknown or unsupported.
    #[error("{field}: unsupported value {value}")]
    Value {
        /// Name of the field.
        field: &'static str,
        /// The value.
        value: i32,
    },
    /// A required field is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// A converted resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// The resource.
    pub resource: Resource,
    /// Values and fields that are not understood and have an effect, with their names.
    pub not_understood: Vec<String>,
    /// Fields that are not known and are ignored, such as `workload field 28`.
    pub ignored: Vec<String>,
}

/// What of a resource is not understood.
type Notes = Vec<String>;

/// Converts a workload or a service with this resource name.
///
/// # Errors
/// Returns [`MalformedResource`] if the resource is unusable or has another name.
pub fn address(name: &str, resource: Option<&Any>) -> Result<Converted, MalformedResource> {
    let (message, unknown): (Address, _) =
        decode(resource, crate::ADDRESS, &unknown_fields::ADDRESS)?;
    let mut notes = Notes::new();
    let kind = message.r#type.ok_or_else(|| match unknown.first() {
        Some(path) => MalformedResource::UnknownKind(path[0].0),
        None => MalformedResource::Empty,
    })?;
    let resource = match kind {
        Type::Workload(w) => {
            let workload = workload::workload(w, &mut notes)?;
            check_name(name, workload, |w| w.uid.to_string()).map(Resource::Workload)
        }
        Type::Service(s) => {
            let service = service::service(s, &mut notes)?;
            check_name(name, service, mesh::Service::key).map(Resource::Service)
        }
    };
    Ok(Converted {
        resource: resource?,
        not_understood: notes,
        ignored: unknown.iter().map(describe).collect(),
    })
}

/// Converts a policy with this resource name.
///
/// # Errors
/// Returns [`MalformedResource`] if the resource is unusable or has another name.
pub fn authorization(name: &str, resource: Option<&Any>) -> Result<Converted, MalformedResource> {
    let (message, unknown): (Authorization, _) = decode(
        resource,
        crate::AUTHORIZATION,
        &unknown_fields::AUTHORIZATION,
    )?;
    let mut notes = Notes::new();
    let policy = policy::policy(message, &unknown, &mut notes);
    Ok(Converted {
        resource: check_name(name, policy, Policy::key).map(Resource::Policy)?,
        not_understood: notes,
        ignored: Vec::new(),
    })
}

/// The number of unknown fields of an encoded workload or service. For benchmarks; [`address`]
/// finds them as well.
pub fn count_unknown_fields(address: &[u8]) -> usize {
    unknown_fields(address, &unknown_fields::ADDRESS).len()
}

/// A stand-in for a workload or a service that cannot be converted: its addresses, as far as they
/// are in the resource's aliases, are known and not served.
pub fn address_placeholder(resource: &discovery::Resource) -> Resource {
    let aliases = resource.aliases.iter().filter_map(|a| a.parse().ok());
    let aliases: Vec<NetworkAddress> = aliases.collect();
    let network = aliases
        .first()
        .map(|a| a.network.clone())
        .unwrap_or_default();
    let own = aliases.into_iter().filter(|a| a.network == network);
    let addresses = own.map(|a| a.address.to_canonical()).collect();
    let workload = Workload::placeholder(&resource.name, &network, addresses);
    Resource::Placeholder(Placeholder::Address(workload))
}

/// A stand-in for a policy that cannot be converted, which denies.
pub fn policy_placeholder(resource: &discovery::Resource) -> Resource {
    Resource::Placeholder(Placeholder::Policy(Policy::placeholder(&resource.name)))
}

/// Describes an unknown field of an address.
fn describe(path: &FieldPath) -> String {
    let kind = match path.first() {
        Some((1, _)) => "workload",
        Some((2, _)) => "service",
        _ => "address",
    };
    let numbers = path.iter().skip(usize::from(path.len() > 1));
    let numbers: Vec<String> = numbers.map(|(number, _)| number.to_string()).collect();
    format!("{kind} field {}", numbers.join("."))
}

fn decode<M: Message + Default>(
    resource: Option<&Any>,
    type_url: &str,
    kind: &MessageType,
) -> Result<(M, Vec<FieldPath>), MalformedResource> {
    let any = resource.ok_or(MalformedResource::Empty)?;
    if any.type_url != type_url {
        return Err(MalformedResource::WrongType(any.type_url.clone()));
    }
    let message =
        M::decode(any.value.clone()).map_err(|e| MalformedResource::Undecodable(e.to_string()))?;
    Ok((message, unknown_fields(&any.value, kind)))
}

/// The value, unless it is not understood, which is noted.
fn understood<T>(value: Result<T, MalformedResource>, notes: &mut Notes) -> Option<T> {
    value.map_err(|e| notes.push(e.to_string())).ok()
}

fn check_name<T>(
    name: &str,
    resource: T,
    own: impl Fn(&T) -> String,
) -> Result<T, MalformedResource> {
    let own = own(&resource);
    if own == name {
        Ok(resource)
    } else {
        Err(MalformedResource::NameMismatch(own))
    }
}

fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, MalformedResource> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).map_err(|_| MalformedResource::Address {
        field,
        length: bytes.len(),
    })?;
    Ok(IpAddr::from(v6).to_canonical())
}

fn net(field: &'static str, bytes: &[u8], length: u32) -> Result<IpNet, MalformedResource> {
    // Not canonical yet: the length counts the bits of the written address.
    let address = match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => v6.into(),
        Err(_) => ip(field, bytes)?,
    };
    let net = u8::try_from(length)
        .ok()
        .and_then(|l| IpNet::new(address, l).ok());
    let net = net.ok_or(MalformedResource::Prefix { field, length })?;
    Ok(mesh::address::canonical_net(net).trunc())
}

fn port(field: &'static str, port: u32) -> Result<u16, MalformedResource> {
    u16::try_from(port).map_err(|_| MalformedResource::Port { field, port })
}

fn value<E: TryFrom<i32>>(field: &'static str, value: i32) -> Result<E, MalformedResource> {
    E::try_from(value).map_err(|_| MalformedResource::Value { field, value })
}

fn or_default<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

//! What a control plane says, as what a mesh is. Everything is looked at, for it comes from outside: what makes no sense is
//! an error that names it, never half taken.

mod policy;
mod service;
mod workload;

use std::net::IpAddr;

use ipnet::IpNet;
use mesh::Resource;
use prost::Message;

use crate::authorization::Authorization;
use crate::protobuf::Any;
use crate::workload::{Address, Type};

/// Why a resource is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// There is a name and nothing else.
    #[error("it is empty")]
    Empty,
    /// The message inside is of another type than the push.
    #[error("it is a {0}")]
    OtherType(String),
    /// The bytes are no such message.
    #[error("it cannot be decoded: {0}")]
    Undecodable(String),
    /// It would never be found again by the name it is removed under.
    #[error("it calls itself {0}")]
    OtherName(String),
    /// Neither 4 nor 16 bytes.
    #[error("{field}: an address of {length} bytes")]
    Address {
        /// Where.
        field: &'static str,
        /// How many.
        length: usize,
    },
    /// Longer than the address.
    #[error("{field}: a prefix of {length} bits")]
    Prefix {
        /// Where.
        field: &'static str,
        /// How many.
        length: u32,
    },
    /// Above 65535.
    #[error("{field}: {port} is no port")]
    Port {
        /// Where.
        field: &'static str,
        /// What it is.
        port: u32,
    },
    /// A value of an enumeration that means nothing to us.
    #[error("{field}: {value} is not known here")]
    Value {
        /// Where.
        field: &'static str,
        /// What it is.
        value: i32,
    },
    /// Something without which the rest means nothing.
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// A workload or a service, by the name of its resource.
///
/// # Errors
/// [`Malformed`].
pub fn address(name: &str, resource: Option<&Any>) -> Result<Resource, Malformed> {
    let message: Address = decode(resource, crate::ADDRESS)?;
    match message.r#type.ok_or(Malformed::Empty)? {
        Type::Workload(w) => named(name, workload::workload(w)?, |w| w.uid.to_string()).map(Resource::Workload),
        Type::Service(s) => named(name, service::service(s)?, mesh::Service::key).map(Resource::Service),
    }
}

/// A policy, by the name of its resource.
///
/// # Errors
/// [`Malformed`].
pub fn authorization(name: &str, resource: Option<&Any>) -> Result<Resource, Malformed> {
    let message: Authorization = decode(resource, crate::AUTHORIZATION)?;
    named(name, policy::policy(message)?, mesh::Policy::key).map(Resource::Policy)
}

fn decode<M: Message + Default>(resource: Option<&Any>, type_url: &str) -> Result<M, Malformed> {
    let any = resource.ok_or(Malformed::Empty)?;
    if any.type_url != type_url {
        return Err(Malformed::OtherType(any.type_url.clone()));
    }
    M::decode(any.value.clone()).map_err(|e| Malformed::Undecodable(e.to_string()))
}

fn named<T>(name: &str, resource: T, own: impl Fn(&T) -> String) -> Result<T, Malformed> {
    let own = own(&resource);
    if own == name { Ok(resource) } else { Err(Malformed::OtherName(own)) }
}

fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Malformed> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).map_err(|_| Malformed::Address { field, length: bytes.len() })?;
    Ok(IpAddr::from(v6).to_canonical())
}

fn net(field: &'static str, bytes: &[u8], length: u32) -> Result<IpNet, Malformed> {
    let address = ip(field, bytes)?;
    let net = u8::try_from(length).ok().and_then(|l| IpNet::new(address, l).ok());
    Ok(net.ok_or(Malformed::Prefix { field, length })?.trunc())
}

fn port(field: &'static str, port: u32) -> Result<u16, Malformed> {
    u16::try_from(port).map_err(|_| Malformed::Port { field, port })
}

fn value<E: TryFrom<i32>>(field: &'static str, value: i32) -> Result<E, Malformed> {
    E::try_from(value).map_err(|_| Malformed::Value { field, value })
}

fn or_default<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

//! The PROXY protocol header for any client identity: its length fields must match its contents.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use mesh::Identity;
use mesh::admit::ProxyHeader;
use mesh::proxy_protocol;

fuzz_target!(|input: (IpAddr, IpAddr, u16, &str, Option<&str>)| {
    let (client, destination, port, identity, service) = input;
    let Ok(identity) = identity.parse::<Identity>() else {
        return;
    };
    let announced = ProxyHeader {
        destination: SocketAddr::new(destination, port),
        service: service.map(Into::into),
    };
    let header =
        proxy_protocol::header(SocketAddr::new(client, port).into(), &identity, &announced);
    let body = usize::from(u16::from_be_bytes([header[14], header[15]]));
    assert_eq!(header.len(), 16 + body);
    let addresses = if header[13] == 0x11 { 12 } else { 36 };
    let mut tlvs = &header[16 + addresses..];
    while let [_, high, low, rest @ ..] = tlvs {
        tlvs = &rest[usize::from(u16::from_be_bytes([*high, *low]))..];
    }
    assert!(tlvs.is_empty());
});

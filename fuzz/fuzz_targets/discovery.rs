//! Resources from a control plane, and their conversion.
#![no_main]

use api::protobuf::Any;
use api::to_mesh::{self, Converted, MalformedResource};
use libfuzzer_sys::fuzz_target;
use mesh::Store;

fuzz_target!(|data: &[u8]| {
    let value: bytes::Bytes = data.to_vec().into();
    let any = |type_url: &str| Any {
        type_url: type_url.to_owned(),
        value: value.clone(),
    };
    let mut store = Store::default();
    // Use the name in the content, so that valid resources are accepted.
    let own_name = |converted: Result<Converted, MalformedResource>| match converted {
        Err(MalformedResource::NameMismatch(name)) => Some(name),
        _ => None,
    };
    if let Some(name) = own_name(to_mesh::address("", Some(&any(api::ADDRESS)))) {
        let converted = to_mesh::address(&name, Some(&any(api::ADDRESS)));
        store.apply(converted.map(|c| c.resource), []);
    }
    if let Some(name) = own_name(to_mesh::authorization("", Some(&any(api::AUTHORIZATION)))) {
        let converted = to_mesh::authorization(&name, Some(&any(api::AUTHORIZATION)));
        store.apply(converted.map(|c| c.resource), []);
    }
    let _ = store.snapshot();
});

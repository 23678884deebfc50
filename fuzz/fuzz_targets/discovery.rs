//! A resource of a control plane, and what is made of it.
#![no_main]

use api::protobuf::Any;
use api::to_mesh;
use libfuzzer_sys::fuzz_target;
use mesh::{Resource, Store};

fuzz_target!(|data: &[u8]| {
    let value: bytes::Bytes = data.to_vec().into();
    let any = |type_url: &str| Any { type_url: type_url.to_owned(), value: value.clone() };
    let mut store = Store::default();
    // Named as it names itself, so that it is taken when it can be.
    let named = |taken: Result<Resource, to_mesh::Malformed>| match taken {
        Err(to_mesh::Malformed::OtherName(name)) => Some(name),
        _ => None,
    };
    if let Some(name) = named(to_mesh::address("", Some(&any(api::ADDRESS)))) {
        store.apply(to_mesh::address(&name, Some(&any(api::ADDRESS))), []);
    }
    if let Some(name) = named(to_mesh::authorization("", Some(&any(api::AUTHORIZATION)))) {
        store.apply(to_mesh::authorization(&name, Some(&any(api::AUTHORIZATION))), []);
    }
    let _ = store.snapshot();
});

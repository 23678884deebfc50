//! A mesh file, and the decisions based on it.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use mesh::authorize::{Connection, authorize};
use mesh::{enrol, parse_mesh_file};

fuzz_target!(|text: &str| {
    let Ok(mesh) = parse_mesh_file(text) else {
        return;
    };
    let address = SocketAddr::from(([10, 0, 0, 1], 80));
    for workload in mesh.workloads() {
        let _ = enrol::decide(&mesh, "node", &workload.namespace, &workload.name, &[]);
        let connection = Connection {
            client: address.into(),
            identity: None,
            destination: address.into(),
        };
        let _ = authorize(&mesh, workload, &connection);
    }
});

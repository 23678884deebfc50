//! CONNECT authorities, and their admission in pods of every kind.
#![no_main]

use std::sync::LazyLock;

use http::uri::Authority;
use libfuzzer_sys::fuzz_target;
use mesh::admit::{Admission, admit, host_and_port};
use mesh::{Mesh, parse_mesh_file};

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    parse_mesh_file(
        r#"
workloads:
  - { name: plain, namespace: a, workloadIps: [10.0.0.1, "fd00::1"],
      services: { a/s.a.svc.cluster.local: { 80: 8080 } } }
  - { name: tunnel, namespace: a, workloadIps: [10.0.0.2, "fd00::2"],
      applicationTunnel: { protocol: PROXY, port: 15088 } }
  - { name: waypoint, namespace: a, workloadIps: [10.0.0.3, "fd00::3"] }
services:
  - { name: s, namespace: a, vips: [/10.1.0.1, "/fd01::1"], ports: { 80: 80 },
      waypoint: { destination: /10.0.0.3 } }
"#,
    )
    .expect("the mesh file above is valid")
});

fuzz_target!(|data: &[u8]| {
    let Ok(authority) = Authority::try_from(data) else {
        return;
    };
    let Some((host, port)) = host_and_port(authority.as_str()) else {
        return;
    };
    for workload in MESH.workloads() {
        for own in &workload.workload_ips {
            if let Admission::Here { destination, .. } =
                admit(&MESH, workload, *own, host, port).outcome
            {
                assert_eq!(destination.ip(), *own, "no destination is outside the pod");
            }
        }
    }
});

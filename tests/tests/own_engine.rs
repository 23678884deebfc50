//! The suites about tunnels again, with the second tunnel engine (`UNDERPASS_TUNNEL_ENGINE=own`):
//! `underpass_tests::sandbox` recognises this test target. Peers notice no difference.

mod budgets;
mod dead_nodes;
mod end_orders;
mod hbone;
mod hbone_wire;
mod hostile_peers;
mod http2_peers;
mod many_connections;
mod mesh_routes;
mod openssl_peers;
mod peer_tls;
mod restart;
mod same_node;
mod stream_ends;
mod traffic;
mod tunnel_faults;

//! The suites about tunnels again, with the second tunnel engine (`UNDERPASS_TUNNEL_ENGINE=own`):
//! `underpass_tests::sandbox` recognises this test target. Peers notice no difference.

mod hbone;
mod hbone_wire;
mod same_node;
mod stream_ends;

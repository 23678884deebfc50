//! The harness of the black-box tests. Every test runs in its own network namespaces, which end
//! with its process.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a failure in the harness fails the test

pub mod agent_bench;
pub mod applications;
pub mod arrivals;
pub mod authority_bench;
pub mod background;
pub mod bar_chart;
pub mod binaries;
pub mod burst;
pub mod campaign;
pub mod capture_setup;
pub mod certificates;
pub mod cgroup;
pub mod churn_bench;
pub mod cluster;
pub mod cni;
pub mod cni_network;
pub mod cni_recorder;
pub mod containerd;
pub mod contest;
pub mod control_plane;
pub mod crowd;
pub mod envoy;
pub mod fake_waypoint;
pub mod fakes;
pub mod folder;
pub mod http2_frames;
pub mod http_load;
pub mod image;
pub mod iptables;
pub mod istio_agent;
pub mod kube;
pub mod line_chart;
pub mod listener;
pub mod machine;
pub mod measure;
pub mod name_server;
pub mod next_proxy;
pub mod node;
pub mod peer_program;
pub mod raw_tunnel;
pub mod sandbox;
pub mod share_bench;
pub mod skip;
pub mod sniffer;
pub mod soak;
pub mod staged_peer;
pub mod state_bench;
pub mod strain_bench;
pub mod tls_client;
pub mod traffic;
pub mod two_nodes;
pub mod wall_clock;
pub mod watch_bench;
pub mod wire;

//! DNS of pods through the built proxy: under both captures with the built agent, and under Istio's
//! NAT rules; over UDP and TCP, IPv4 and IPv6.
#![allow(clippy::unwrap_used)]

mod answers;
mod cache;
mod fixture;
mod forwarding;
mod tcp;

//! Addresses, interfaces, routes and ip rules that other processes add to a pod, before or after it
//! joins: their traffic is captured or left alone, and they are unchanged after the pod has left.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

mod bridges;
mod interfaces;
mod source_routing;

use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use netns::NetNs;
use redirect::{CaptureKind, Exceptions, Plan, diff, read_back, repair};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::iptables::run;
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::until;
use underpass_tests::wire::Wire;

/// A server beyond the interfaces of a pod.
pub(crate) const BEYOND: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)), 80);

pub(crate) const CAPTURES: [CaptureKind; 2] = [CaptureKind::Routed, CaptureKind::Nat];

pub(crate) fn ip(netns: &NetNs, args: &str) {
    run(netns, "ip", args, "");
}

/// What `ip` prints.
pub(crate) fn ip_shows(netns: &NetNs, args: &str) -> String {
    let mut command = Command::new("ip");
    netns::process::in_netns(&mut command, netns).unwrap();
    let output = command.args(args.split(' ')).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn sysctl(netns: &NetNs, name: &str, value: &str) {
    let written = netns.run(|| std::fs::write(format!("/proc/sys/net/{name}"), value));
    written.unwrap().unwrap();
}

pub(crate) fn differences(wire: &Wire, plan: &Plan) -> Vec<redirect::Difference> {
    diff(plan, &wire.pod.run(read_back).unwrap().unwrap())
}

/// Repairs a pod whose surroundings have changed.
pub(crate) fn follow(wire: &Wire, plan: &Plan) {
    assert_ne!(differences(wire, plan), [], "the change is noticed");
    wire.pod
        .run(|| repair(plan, &Exceptions::new()))
        .unwrap()
        .unwrap();
    assert_eq!(differences(wire, plan), []);
}

/// Adds a pod to the mesh of a node with this capture, and waits until it is verified.
pub(crate) fn enrolled(name: &str, capture: CaptureKind, mesh: &str, wire: &Wire) -> TestNode {
    let mut node = TestNode::new(name, mesh);
    node.start_agent_with(&["--capture", capture.name()].map(OsStr::new));
    node.start_ready_proxy();
    let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    let added = Call::new("ADD", &path_of(&wire.pod), &config).run();
    assert!(added.status.success(), "{added:?}");
    until("the pod is verified", || {
        (node.verified_pods() == 1).then_some(())
    });
    node
}

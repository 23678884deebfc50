//! Finding the proxy of this node. As a pod it listens on a loopback of its own: the agent knows its process, and the process its
//! network namespace.

use std::net::SocketAddr;

use http::{Method, StatusCode};
use hyper::body::Bytes;
use netns::NetNs;

use crate::ask::ask;
use crate::node::node_status;

/// Asks the proxy: here, or where the agent of this node has it.
///
/// # Errors
/// [`error_code::cli::NO_ANSWER`], about this place: when no other was found, either.
pub(crate) fn ask_proxy(address: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    ask(Method::GET, address, path).or_else(|here| {
        if !address.ip().is_loopback() {
            return Err(here);
        }
        ask_elsewhere(address, path).ok_or(here)
    })
}

/// The newest proxy first: during an upgrade there are two.
fn ask_elsewhere(address: SocketAddr, path: &str) -> Option<(StatusCode, Bytes)> {
    let proxies = node_status(agent_status::DEFAULT_ADMIN).ok()?.proxies;
    proxies.iter().rev().find_map(|proxy| {
        let netns = NetNs::open(format!("/proc/{}/ns/net", proxy.pid)).ok()?;
        netns.run(|| ask(Method::GET, address, path)).ok()?.ok()
    })
}

//! Requests to the proxy of this node. A proxy that runs as a pod listens on that pod's loopback
//! address; the agent reports its pid, which leads to its network namespace.

use std::net::SocketAddr;

use http::Method;
use netns::NetNs;

use crate::admin_client::{Response, node_status, request};

/// Queries the proxy in this network namespace, or in that of a proxy that the agent reports.
///
/// # Errors
/// [`error_code::cli::NO_ANSWER`] for this network namespace, if no other proxy was found.
pub(crate) fn query_proxy(address: SocketAddr, path: &str) -> anyhow::Result<Response> {
    request(Method::GET, address, path).or_else(|error| {
        if !address.ip().is_loopback() {
            return Err(error);
        }
        query_in_netns_of_proxy(address, path).ok_or(error)
    })
}

/// Tries the newest proxy first: there are two during an upgrade.
fn query_in_netns_of_proxy(address: SocketAddr, path: &str) -> Option<Response> {
    let proxies = node_status(agent_status::DEFAULT_ADMIN).ok()?.proxies;
    proxies.iter().rev().find_map(|proxy| {
        let netns = NetNs::open(format!("/proc/{}/ns/net", proxy.pid)).ok()?;
        netns.run(|| request(Method::GET, address, path)).ok()?.ok()
    })
}

//! Whether what the plugin handed over is the pod's own network namespace.

use std::net::IpAddr;

use netns::{NetNs, NetNsId};

use crate::refusal::Refusal;

/// Checks that `netns` is not the node's and holds every one of `addresses`.
pub(crate) fn check(netns: &NetNs, node: &[NetNsId], addresses: &[IpAddr]) -> Result<(), Refusal> {
    if node.contains(&netns.id()) {
        return Err(Refusal::NetNs("the descriptor is the node's own network namespace".to_owned()));
    }
    if addresses.is_empty() {
        return Err(Refusal::NetNs("prevResult has no address".to_owned()));
    }
    let present = netns.run(addresses_here).map_err(|e| Refusal::NetNs(e.to_string()))?;
    let present = present.map_err(|e| Refusal::NetNs(format!("the pod's addresses cannot be listed: {e}")))?;
    match addresses.iter().find(|a| !present.contains(a)) {
        Some(missing) => Err(Refusal::NetNs(format!("no interface in the namespace has the address {missing}"))),
        None => Ok(()),
    }
}

/// The namespaces that are never a pod's: our own, and that of the first process.
pub(crate) fn node_namespaces() -> Result<Vec<NetNsId>, netns::NetNsError> {
    let mut ids = vec![NetNs::current()?.id()];
    ids.extend(NetNs::open("/proc/1/ns/net").ok().map(|n| n.id()));
    Ok(ids)
}

fn addresses_here() -> nix::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|i| i.address).filter_map(|a| {
        let v4 = a.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| a.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    Ok(addresses.collect())
}

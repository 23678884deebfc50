//! Checks that a namespace received from the plugin is the pod's own network namespace.

use std::net::IpAddr;
use std::path::Path;

use netns::{NetNs, NetNsError, NetNsId};
use redirect::RedirectError;

/// Why a namespace is not accepted as a pod's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    /// The plugin did not send exactly one descriptor. Likely cause: another version.
    #[error("expected one file descriptor, received {0}")]
    Descriptors(usize),
    /// The sandbox was removed, or its path now leads to another one.
    #[error("the pod's network namespace no longer exists")]
    Gone,
    /// Rules in the node's namespace would redirect the node's own traffic.
    #[error("the descriptor is the node's own network namespace")]
    NodeNamespace,
    /// There is nothing to compare with. Likely cause: the previous plugin assigned no address.
    #[error("prevResult has no addresses")]
    NoAddresses,
    /// The namespace cannot be entered.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// The kernel does not list the addresses in the namespace.
    #[error("{code}: {0}", code = .0.code())]
    List(#[from] RedirectError),
    /// The namespace belongs to another pod, or its interface is not configured yet.
    #[error("no interface in the namespace has address {0}")]
    MissingAddress(IpAddr),
    /// Work in the namespace was cancelled because the agent is stopping.
    #[error(transparent)]
    Cancelled(#[from] tokio::task::JoinError),
}

/// Checks that `netns` is not the node's and has all `addresses`.
pub(crate) fn check(
    netns: &NetNs,
    node: &[NetNsId],
    addresses: &[IpAddr],
) -> Result<(), SandboxError> {
    check_with(netns.id(), node, addresses, || {
        Ok(netns.run(|| redirect::missing_addresses(addresses))??)
    })
}

/// Like [`check`]; `missing` returns the addresses that are not in the namespace.
fn check_with(
    netns: NetNsId,
    node: &[NetNsId],
    addresses: &[IpAddr],
    missing: impl FnOnce() -> Result<Vec<IpAddr>, SandboxError>,
) -> Result<(), SandboxError> {
    if node.contains(&netns) {
        return Err(SandboxError::NodeNamespace);
    }
    if addresses.is_empty() {
        return Err(SandboxError::NoAddresses);
    }
    match missing()?.first() {
        Some(missing) => Err(SandboxError::MissingAddress(*missing)),
        None => Ok(()),
    }
}

/// Opens a network namespace by path, if it still has the given inode.
pub(crate) fn open_netns(path: Option<&Path>, inode: u64) -> Option<NetNs> {
    let netns = NetNs::open(path?).ok()?;
    (netns.id().ino == inode).then_some(netns)
}

/// The namespaces that are never a pod's: the agent's own, and that of process 1.
pub(crate) fn node_namespaces() -> Result<Vec<NetNsId>, NetNsError> {
    let mut ids = vec![NetNs::current()?.id()];
    ids.extend(NetNs::open("/proc/1/ns/net").ok().map(|n| n.id()));
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NetNsId = NetNsId { dev: 4, ino: 1 };
    const POD: NetNsId = NetNsId { dev: 4, ino: 2 };

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn the_namespace_must_have_every_address_of_the_pod() {
        for (addresses, missing, error) in [
            (&["10.0.0.1"][..], &[][..], None),
            (&["10.0.0.1", "fd00::1"], &[], None),
            (
                &["10.0.0.1", "fd00::1"],
                &["fd00::1"],
                Some("no interface in the namespace has address fd00::1"),
            ),
            (&[], &[], Some("prevResult has no addresses")),
        ] {
            let checked = check_with(POD, &[NODE], &ips(addresses), || Ok(ips(missing)));
            assert_eq!(checked.err().map(|e| e.to_string()).as_deref(), error);
        }
    }

    #[test]
    fn the_nodes_namespace_is_rejected_without_being_entered() {
        let checked = check_with(NODE, &[POD, NODE], &ips(&["10.0.0.1"]), || {
            panic!("the node's namespace was entered")
        });
        assert!(matches!(checked, Err(SandboxError::NodeNamespace)));
        let own = NetNs::current().unwrap();
        let checked = check(&own, &node_namespaces().unwrap(), &ips(&["127.0.0.1"]));
        assert!(matches!(checked, Err(SandboxError::NodeNamespace)));
    }

    #[test]
    fn a_namespace_whose_addresses_are_unknown_is_rejected() {
        let addresses = ips(&["10.0.0.1"]);
        let checked = check_with(POD, &[NODE], &addresses, || {
            Err(RedirectError::NoAddress.into())
        });
        assert!(matches!(checked, Err(SandboxError::List(_))));
    }
}

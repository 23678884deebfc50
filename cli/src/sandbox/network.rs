//! The network of a sandbox: links between pods and nodes, and between nodes, in separate
//! namespaces.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use anyhow::Context;
use netns::NetNs;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::plan::{SandboxNode, SandboxPod};
use crate::admin_client::block_on;

/// The gateway of all pods.
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The bridge between the nodes.
const FABRIC: &str = "fabric";

/// Creates the namespace with the bridge between the nodes.
pub(crate) fn create_fabric() -> anyhow::Result<NetNs> {
    let netns = NetNs::create()?;
    inside(&netns, async |handle| {
        let bridge = LinkBridge::new(FABRIC).up().build();
        Ok(handle.link().add(bridge).execute().await?)
    })?;
    Ok(netns)
}

/// Creates a node: a namespace with an uplink to the fabric that forwards for its pods.
pub(crate) fn create_node(
    fabric: &NetNs,
    index: usize,
    node: &SandboxNode,
) -> anyhow::Result<NetNs> {
    let netns = NetNs::create()?;
    let port = format!("node{index}");
    inside(fabric, async |handle| {
        add_pair(&handle, &port, "uplink", &netns).await?;
        let (port, bridge) = (index_of(&port)?, index_of(FABRIC)?);
        let attached = LinkUnspec::new_with_index(port).controller(bridge);
        Ok(handle.link().set(attached.up().build()).execute().await?)
    })?;
    set_sysctl(&netns, "net/ipv4/ip_forward", "1")?;
    set_sysctl(&netns, "net/ipv6/conf/all/forwarding", "1")?;
    set_sysctl(&netns, "net/ipv6/conf/uplink/accept_dad", "0")?;
    inside(&netns, async |handle| {
        set_up(&handle, "lo").await?;
        set_up(&handle, "uplink").await?;
        for address in node.addresses {
            let length = if address.is_ipv4() { 24 } else { 64 };
            add_address(&handle, index_of("uplink")?, address, length).await?;
        }
        Ok(())
    })?;
    Ok(netns)
}

/// Adds routes from a node to the pods of another node.
pub(crate) fn route_to(
    netns: &NetNs,
    pods: &[&SandboxPod],
    via: &SandboxNode,
) -> anyhow::Result<()> {
    inside(netns, async |handle| {
        let uplink = index_of("uplink")?;
        for ip in pods.iter().flat_map(|p| &p.ips) {
            let via = via.addresses[usize::from(ip.is_ipv6())];
            add_route(&handle, *ip, Some(via), uplink).await?;
        }
        Ok(())
    })
}

/// Creates a pod: a namespace with `eth0`, connected to its node.
pub(crate) fn create_pod(node: &NetNs, index: usize, pod: &SandboxPod) -> anyhow::Result<NetNs> {
    let netns = NetNs::create()?;
    let link = format!("pod{index}");
    inside(node, async |handle| {
        add_pair(&handle, &link, "eth0", &netns).await
    })?;
    set_sysctl(node, &format!("net/ipv6/conf/{link}/accept_dad"), "0")?;
    inside(node, async |handle| {
        set_up(&handle, &link).await?;
        let link = index_of(&link)?;
        add_address(&handle, link, GATEWAY4.into(), 32).await?;
        add_address(&handle, link, GATEWAY6.into(), 64).await?;
        for ip in &pod.ips {
            add_route(&handle, *ip, None, link).await?;
        }
        Ok(())
    })?;
    set_sysctl(&netns, "net/ipv6/conf/eth0/accept_dad", "0")?;
    inside(&netns, async |handle| {
        set_up(&handle, "lo").await?;
        set_up(&handle, "eth0").await?;
        let eth0 = index_of("eth0")?;
        for ip in &pod.ips {
            add_address(&handle, eth0, *ip, host_length(*ip)).await?;
        }
        add_route(&handle, GATEWAY4.into(), None, eth0).await?;
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().gateway(GATEWAY4);
        let v4 = v4.output_interface(eth0).build();
        handle.route().add(v4).execute().await?;
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().gateway(GATEWAY6);
        let v6 = v6.output_interface(eth0).build();
        Ok(handle.route().add(v6).execute().await?)
    })?;
    Ok(netns)
}

/// Adds a pair of connected links, of which `peer` is moved to another namespace.
async fn add_pair(handle: &Handle, link: &str, peer: &str, to: &NetNs) -> anyhow::Result<()> {
    let pair = LinkVeth::new(link, peer).build();
    handle.link().add(pair).execute().await?;
    let peer = LinkUnspec::new_with_index(index_of(peer)?);
    let moved = peer.setns_by_fd(to.as_fd().as_raw_fd()).build();
    Ok(handle.link().set(moved).execute().await?)
}

async fn add_address(
    handle: &Handle,
    link: u32,
    address: IpAddr,
    length: u8,
) -> anyhow::Result<()> {
    let request = handle.address().add(link, address, length);
    Ok(request.execute().await?)
}

/// The prefix length of a single address.
fn host_length(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// Adds a host route, over a gateway or to a neighbour on the link.
async fn add_route(
    handle: &Handle,
    to: IpAddr,
    via: Option<IpAddr>,
    link: u32,
) -> anyhow::Result<()> {
    let mut route = RouteMessageBuilder::<IpAddr>::new().output_interface(link);
    route = route.destination_prefix(to, host_length(to))?;
    if let Some(via) = via {
        route = route.gateway(via)?;
    } else if to.is_ipv4() {
        route = route.scope(RouteScope::Link);
    }
    let added = handle.route().add(route.build()).execute().await;
    added.with_context(|| format!("cannot add a route to {to}"))
}

async fn set_up(handle: &Handle, link: &str) -> anyhow::Result<()> {
    let up = LinkUnspec::new_with_index(index_of(link)?).up().build();
    let set = handle.link().set(up).execute().await;
    set.with_context(|| format!("cannot bring up {link}"))
}

/// The index of a link in the network namespace of the calling thread.
fn index_of(link: &str) -> anyhow::Result<u32> {
    nix::net::if_::if_nametoindex(link).with_context(|| format!("link {link} not found"))
}

/// Sets a sysctl of a namespace. The file belongs to the namespace of the thread that opens it.
fn set_sysctl(netns: &NetNs, name: &str, value: &str) -> anyhow::Result<()> {
    netns
        .run(|| fs::write(format!("/proc/sys/{name}"), value))?
        .with_context(|| format!("cannot set {name}"))
}

/// Runs `work` with a netlink handle, inside a namespace.
pub(super) fn inside(
    netns: &NetNs,
    work: impl AsyncFnOnce(Handle) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let work = async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        work(handle).await
    };
    netns.run(|| block_on(work))?
}

//! The wires of a sandbox: pods to their nodes, nodes to each other, all in namespaces of our own.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use anyhow::Context;
use netns::NetNs;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::plan::{Node, Pod};

/// What pods see as their router, whatever their own address is.
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The bridge that joins the nodes.
const FABRIC: &str = "fabric";

/// The namespace in which all nodes meet.
pub(crate) fn make_fabric() -> anyhow::Result<NetNs> {
    let netns = NetNs::create()?;
    inside(&netns, async |handle| {
        handle.link().add(LinkBridge::new(FABRIC).up().build()).execute().await?;
        Ok(())
    })?;
    Ok(netns)
}

/// A node: a namespace with an uplink to the fabric, which forwards for its pods.
pub(crate) fn make_node(fabric: &NetNs, index: usize, node: &Node) -> anyhow::Result<NetNs> {
    let netns = NetNs::create()?;
    let port = format!("node{index}");
    let node_fd = netns.as_fd().as_raw_fd();
    inside(fabric, async |handle| {
        handle.link().add(LinkVeth::new(&port, "uplink").build()).execute().await?;
        let away = LinkUnspec::new_with_index(index_of("uplink")?).setns_by_fd(node_fd).build();
        handle.link().set(away).execute().await?;
        let bridge = index_of(FABRIC)?;
        let joined = LinkUnspec::new_with_index(index_of(&port)?).controller(bridge).up().build();
        handle.link().set(joined).execute().await?;
        Ok(())
    })?;
    set(&netns, "net/ipv4/ip_forward", "1")?;
    set(&netns, "net/ipv6/conf/all/forwarding", "1")?;
    set(&netns, "net/ipv6/conf/uplink/accept_dad", "0")?;
    inside(&netns, async |handle| {
        raise(&handle, "lo").await?;
        raise(&handle, "uplink").await?;
        for address in node.addresses {
            let length = if address.is_ipv4() { 24 } else { 64 };
            handle.address().add(index_of("uplink")?, address, length).execute().await?;
        }
        Ok(())
    })?;
    Ok(netns)
}

/// Tells a node where the pods of another node are.
pub(crate) fn route_to(netns: &NetNs, pods: &[&Pod], via: &Node) -> anyhow::Result<()> {
    inside(netns, async |handle| {
        for ip in pods.iter().flat_map(|p| &p.ips) {
            add_route(&handle, *ip, Some(via.addresses[usize::from(ip.is_ipv6())]), index_of("uplink")?).await?;
        }
        Ok(())
    })
}

/// A pod: a namespace with `eth0`, wired to its node.
pub(crate) fn make_pod(node: &NetNs, index: usize, pod: &Pod) -> anyhow::Result<NetNs> {
    let netns = NetNs::create()?;
    let link = format!("pod{index}");
    let pod_fd = netns.as_fd().as_raw_fd();
    inside(node, async |handle| {
        handle.link().add(LinkVeth::new(&link, "eth0").build()).execute().await?;
        let away = LinkUnspec::new_with_index(index_of("eth0")?).setns_by_fd(pod_fd).build();
        handle.link().set(away).execute().await?;
        Ok(())
    })?;
    set(node, &format!("net/ipv6/conf/{link}/accept_dad"), "0")?;
    inside(node, async |handle| {
        raise(&handle, &link).await?;
        let link = index_of(&link)?;
        handle.address().add(link, GATEWAY4.into(), 32).execute().await?;
        handle.address().add(link, GATEWAY6.into(), 64).execute().await?;
        for ip in &pod.ips {
            add_route(&handle, *ip, None, link).await?;
        }
        Ok(())
    })?;
    set(&netns, "net/ipv6/conf/eth0/accept_dad", "0")?;
    inside(&netns, async |handle| {
        raise(&handle, "lo").await?;
        raise(&handle, "eth0").await?;
        let eth0 = index_of("eth0")?;
        for ip in &pod.ips {
            let length = if ip.is_ipv4() { 32 } else { 128 };
            handle.address().add(eth0, *ip, length).execute().await?;
        }
        add_route(&handle, GATEWAY4.into(), None, eth0).await?;
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().gateway(GATEWAY4).output_interface(eth0).build();
        handle.route().add(v4).execute().await?;
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().gateway(GATEWAY6).output_interface(eth0).build();
        handle.route().add(v6).execute().await?;
        Ok(())
    })?;
    Ok(netns)
}

/// A host route.
async fn add_route(handle: &Handle, to: IpAddr, via: Option<IpAddr>, link: u32) -> anyhow::Result<()> {
    let message = match (to, via) {
        (IpAddr::V4(to), Some(IpAddr::V4(via))) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to, 32)
            .gateway(via)
            .output_interface(link)
            .build(),
        (IpAddr::V4(to), _) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to, 32)
            .scope(RouteScope::Link)
            .output_interface(link)
            .build(),
        (IpAddr::V6(to), Some(IpAddr::V6(via))) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(to, 128)
            .gateway(via)
            .output_interface(link)
            .build(),
        (IpAddr::V6(to), _) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128).output_interface(link).build()
        }
    };
    handle.route().add(message).execute().await.with_context(|| format!("route to {to}"))
}

async fn raise(handle: &Handle, link: &str) -> anyhow::Result<()> {
    let up = LinkUnspec::new_with_index(index_of(link)?).up().build();
    handle.link().set(up).execute().await.with_context(|| format!("raise {link}"))
}

/// The index of a link in the namespace that the calling thread is in.
fn index_of(link: &str) -> anyhow::Result<u32> {
    nix::net::if_::if_nametoindex(link).with_context(|| format!("no link {link}"))
}

/// Sets a sysctl of a namespace; which one is decided by the thread that opens the file.
fn set(netns: &NetNs, name: &str, value: &str) -> anyhow::Result<()> {
    netns.run(|| fs::write(format!("/proc/sys/{name}"), value))?.with_context(|| format!("cannot set {name}"))
}

/// Runs `work` with a netlink handle inside a namespace.
pub(super) fn inside(netns: &NetNs, work: impl AsyncFnOnce(Handle) -> anyhow::Result<()>) -> anyhow::Result<()> {
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            work(handle).await
        })
    })?
}

//! Probes the proxy by connecting from within a pod.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use agent_status::VerificationReason;
use mesh::probe;
use netns::{NetNs, NetNsError};
use pod_life::{Answer, Finding, FromNode};
use redirect::{CaptureKind, PROBE_PORT, Plan, PodInterface};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use crate::listening::proxy_ports;

const DEADLINE: Duration = Duration::from_secs(1);
/// Number of attempts to reach a pod from the node. On a bridge that was just created, the node's
/// IPv6 address is tentative for a second or two; until then, the kernel chooses a source to which
/// nothing can answer.
const FROM_NODE_ATTEMPTS: usize = 3;

/// A pod that is probed.
#[derive(Debug)]
pub(crate) struct Probed {
    pub(crate) plan: Plan,
    /// The addresses of the plan, followed by all others of the namespace.
    pub(crate) addresses: Vec<IpAddr>,
    /// The uid by which its proxy answers.
    pub(crate) uid: String,
    /// Whether to probe every listener, or one at random.
    pub(crate) all: bool,
}

/// Probes a pod, as an answer to its life.
pub(crate) async fn answer(netns: Option<Arc<NetNs>>, node: &Arc<NetNs>, pod: &Probed) -> Answer {
    let Some(netns) = netns else {
        return Answer::Probed(Err(Finding::netns_lost()));
    };
    let probed = probe(netns, node, pod).await;
    let failed =
        |e: ProbeError| Finding::Unverified(VerificationReason::ProbeFailed, e.to_string());
    Answer::Probed(probed.map_err(failed))
}

/// Probes a pod from within and from the node, at the same time. Returns the first failure, from
/// within if there is one.
pub(crate) async fn probe(
    netns: Arc<NetNs>,
    node: &Arc<NetNs>,
    pod: &Probed,
) -> Result<FromNode, ProbeError> {
    let from_node = async { Ok(probe_from_node(netns.clone(), node, pod).await) };
    let ((), from_node) = tokio::try_join!(probe_within(&netns, pod), from_node)?;
    from_node
}

/// Probes the pod's first address of each family from the node, as another pod would connect, where
/// the node's packets go through the pod's own interface.
async fn probe_from_node(
    netns: Arc<NetNs>,
    node: &Arc<NetNs>,
    Probed { plan, uid, .. }: &Probed,
) -> Result<FromNode, ProbeError> {
    let excluded = &plan.exclude;
    let has_excluded =
        !excluded.inbound_cidrs.is_empty() || excluded.inbound_ports.contains(&PROBE_PORT);
    if plan.bypass_inbound || has_excluded {
        return Ok(FromNode::NotProbed);
    }
    let (all, of_node) = (first_addresses(&plan.addresses), node.clone());
    let find_reachable = move || {
        let is_reachable = |own: &IpAddr| -> Option<bool> {
            let interface = netns.run(|| PodInterface::with_address(*own));
            let interface = interface.ok()?.ok()??;
            of_node.run(|| interface.is_route_to(*own)).ok()?.ok()
        };
        let found = all.into_iter();
        found
            .map(|own| (own, is_reachable(&own) == Some(true)))
            .collect::<Vec<_>>()
    };
    let found = tokio::task::spawn_blocking(find_reachable).await;
    let Ok(found) = found else {
        return Ok(FromNode::NotProbed); // the agent is stopping
    };
    let mut probed = FromNode::Probed;
    for (own, is_reachable) in found {
        if !is_reachable {
            probed = FromNode::NotProbed;
            continue;
        }
        let mut answered = Ok(());
        for _ in 0..FROM_NODE_ATTEMPTS {
            answered = connect(node, None, probe::inbound_destination(own), uid).await;
            if answered.is_ok() {
                break;
            }
        }
        answered.map_err(|e| ProbeError::FromNode(Box::new(e)))?;
    }
    Ok(probed)
}

/// The first address of each family.
fn first_addresses(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let of_family = |v6: bool| addresses.iter().copied().find(|a| a.is_ipv6() == v6);
    [false, true].into_iter().filter_map(of_family).collect()
}

/// Probes capture with one connection for each of the pod's address families, and listeners with
/// one connection each, of a random family, since a listener accepts both. Returns the first
/// failure, of the capture if there is one.
async fn probe_within(netns: &NetNs, pod: &Probed) -> Result<(), ProbeError> {
    // The plan's addresses come first; those of other interfaces follow.
    let families = first_addresses(&pod.addresses);
    let capture = async {
        for own in &families {
            match connect(netns, None, probe::destination(*own), &pod.uid).await {
                Err(e) if e.is_beyond_capture(pod.plan.capture) => {}
                answered => answered?,
            }
        }
        Ok(())
    };
    let listeners = async { Ok(probe_listeners(netns, pod, &families).await) };
    let ((), listeners) = tokio::try_join!(capture, listeners)?;
    listeners
}

async fn probe_listeners(
    netns: &NetNs,
    pod: &Probed,
    families: &[IpAddr],
) -> Result<(), ProbeError> {
    let Some(own) = families.get(rand::random::<u32>() as usize % families.len().max(1)) else {
        return Ok(());
    };
    let mut ports: Vec<u16> = proxy_ports(&pod.plan).collect();
    if !pod.all {
        ports = vec![ports.swap_remove(rand::random_range(0..ports.len()))];
    }
    for port in ports {
        // The source port differs each time, so that over time all sockets that share the port are
        // probed.
        let to = SocketAddr::new(*own, port);
        connect(netns, Some(probe::source(*own)), to, &pod.uid).await?;
    }
    Ok(())
}

/// Why a probe to an address failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// The pod's namespace cannot be entered. Likely cause: the agent lacks CAP_SYS_ADMIN.
    #[error("probe to {0} could not be sent: {1}")]
    NetNs(SocketAddr, #[source] NetNsError),
    /// No socket can be created in the namespace.
    #[error("probe to {0} could not be sent: {1}")]
    Socket(SocketAddr, #[source] io::Error),
    /// The connection failed. Likely cause: the proxy does not listen, or its rules are missing.
    #[error("probe to {0} failed: {1}")]
    Failed(SocketAddr, #[source] io::Error),
    /// The answer is not that of the pod's proxy. Likely cause: the connection was not captured.
    #[error("probe to {0} was answered by a process other than this pod's proxy")]
    OtherProcess(SocketAddr),
    /// A connection from the node did not reach the pod's proxy. Likely cause: the pod's packets do
    /// not pass its network stack, or a program on the node handles them.
    #[error("from the node: {0}")]
    FromNode(#[source] Box<ProbeError>),
    /// Likely cause: the proxy hangs or is overloaded.
    #[error("probe to {0} was not answered within {seconds} s", seconds = DEADLINE.as_secs())]
    Timeout(SocketAddr),
}

impl ProbeError {
    /// Whether the probe failed only because there is no route, in which case NAT, which captures
    /// packets after routing, never sees it. Neither does other traffic to such destinations get
    /// that far.
    fn is_beyond_capture(&self, capture: CaptureKind) -> bool {
        let is_unreachable =
            matches!(self, Self::Failed(_, e) if e.kind() == ErrorKind::NetworkUnreachable);
        is_unreachable && capture != CaptureKind::Routed
    }
}

/// Sends one probe, and checks that the proxy of this pod answers.
async fn connect(
    netns: &NetNs,
    from: Option<IpAddr>,
    to: SocketAddr,
    uid: &str,
) -> Result<(), ProbeError> {
    let token = format!("{:016x}", rand::random::<u64>());
    let socket = netns.run(|| {
        let socket = if to.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        from.map_or(Ok(()), |from| socket.bind(SocketAddr::new(from, 0)))?;
        // Otherwise the proxy's end would stay in TIME_WAIT and occupy the proxy's port in the pod.
        netns::sockopt::reset_on_close(&socket)?;
        Ok::<_, io::Error>(socket)
    });
    let socket = socket
        .map_err(|e| ProbeError::NetNs(to, e))?
        .map_err(|e| ProbeError::Socket(to, e))?;
    let exchange = async {
        let mut stream = socket.connect(to).await?;
        stream.write_all(format!("{token}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.take(1024).read_to_string(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    match timeout(DEADLINE, exchange).await {
        Ok(Ok(answer)) if answer == probe::answer(&token, uid) => Ok(()),
        Ok(Ok(_)) => Err(ProbeError::OtherProcess(to)),
        Ok(Err(e)) => Err(ProbeError::Failed(to, e)),
        Err(_) => Err(ProbeError::Timeout(to)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_route_under_nat_is_beyond_capture() {
        let to = SocketAddr::from(([192, 0, 2, 1], 9));
        let failed = |kind: ErrorKind| ProbeError::Failed(to, kind.into());
        for (error, capture, beyond) in [
            (
                failed(ErrorKind::NetworkUnreachable),
                CaptureKind::Nat,
                true,
            ),
            (
                failed(ErrorKind::NetworkUnreachable),
                CaptureKind::NatIptablesNft,
                true,
            ),
            (
                failed(ErrorKind::NetworkUnreachable),
                CaptureKind::Routed,
                false,
            ),
            (
                failed(ErrorKind::ConnectionRefused),
                CaptureKind::Nat,
                false,
            ),
            (ProbeError::Timeout(to), CaptureKind::Nat, false),
            (ProbeError::OtherProcess(to), CaptureKind::Nat, false),
        ] {
            assert_eq!(
                error.is_beyond_capture(capture),
                beyond,
                "{error} under {capture}"
            );
        }
    }

    #[test]
    fn the_rules_know_the_destinations_of_probes() {
        for ip in redirect::PROBE_DESTINATIONS {
            let expected = SocketAddr::new(ip, redirect::PROBE_PORT);
            assert_eq!(probe::destination(ip), expected);
        }
    }

    #[test]
    fn the_reason_names_the_address_and_the_time_limit() {
        let to = SocketAddr::from(([10, 0, 0, 1], 15008));
        let expected = "probe to 10.0.0.1:15008 was not answered within 1 s";
        assert_eq!(ProbeError::Timeout(to).to_string(), expected);
    }
}

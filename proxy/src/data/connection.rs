//! What every connection has: its pod, its worker, and the ways in which it can be cut.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mesh::baggage::Baggage;
use mesh::{Identity, Mesh, Workload};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::ConnectionError;
use super::worker::{Node, Phase, Worker};
use crate::inpod::Pod;
use crate::telemetry::Side;

/// A connection that has just been accepted in a pod.
pub(crate) struct Accepted {
    pub(crate) worker: Rc<Worker>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(super) started: Instant,
}

/// Whether this is one of the ports that the proxy has in every pod. It never connects to them itself.
pub(super) fn is_own_port(node: &Node, port: u16) -> bool {
    let own = crate::inpod::PORTS;
    [own.outbound, own.inbound, own.hbone].contains(&port) || node.dns.is_some() && port == own.dns
}

/// Completes when the pod has left or the proxy ends for good.
pub(crate) async fn cut_short(worker: &Worker, pod: &Pod) -> ConnectionError {
    let mut gone = pod.gone.clone();
    let mut phase = worker.node.phase.clone();
    tokio::select! {
        // An error means that the other end was dropped, which is the same.
        _ = gone.wait_for(|gone| *gone) => ConnectionError::PodGone,
        _ = phase.wait_for(|phase| *phase == Phase::Ended) => ConnectionError::Drained,
    }
}

/// How long a pod may be unknown to the mesh while somebody waits to connect to it.
const UNKNOWN_AT_MOST: Duration = Duration::from_secs(5);

/// Whether the mesh in force may still be relied on.
pub(super) fn is_fresh(node: &Node) -> Result<(), ConnectionError> {
    if node.is_too_old.load(Ordering::Relaxed) { Err(ConnectionError::StateTooOld) } else { Ok(()) }
}

/// Returns once the mesh knows the pod: only then it is known which policies apply to it.
pub(super) async fn known(worker: &Worker, pod: &Pod) -> Result<(), ConnectionError> {
    is_fresh(&worker.node)?;
    let known = async {
        loop {
            let changed = worker.mesh_changed.notified();
            if pod.known(&worker.node.mesh.load()).is_some() {
                return;
            }
            changed.await;
        }
    };
    timeout(UNKNOWN_AT_MOST, known).await.map_err(|_| {
        let seconds = UNKNOWN_AT_MOST.as_secs();
        ConnectionError::Serving(format!("the control plane has said nothing of this pod for {seconds} s"))
    })
}

/// Who a peer is: by its address, if that workload has the identity that was proved; else by what it says of itself.
pub(super) fn source_side(
    mesh: &Mesh,
    pod: &Workload,
    ip: std::net::IpAddr,
    identity: Option<Identity>,
    says: Baggage,
) -> Side {
    match mesh.workload_by_ip(&pod.network, ip) {
        Some(workload) if identity.as_ref().is_none_or(|i| *i == workload.identity()) => {
            Side::workload(workload, identity)
        }
        _ => stranger(identity, says),
    }
}

/// A peer of whom nothing is known but who it is and what it says of itself.
pub(super) fn stranger(identity: Option<Identity>, says: Baggage) -> Side {
    let namespace = identity.as_ref().map(|i| i.namespace.clone());
    let attributes = Baggage { namespace: namespace.unwrap_or(says.namespace.clone()), ..says };
    Side { attributes, workload: None, identity }
}

//! The node's rule for health probes follows the enrolled pods. It stays when the agent stops: the next one finds it, and
//! no probe fails in between.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use agent_status::HostProbesStatus;
use anyhow::Context;
use error_code::agent as codes;
use netns::NetNs;
use netns::watch::{Author, Watch};
use nft::Socket;
use redirect::host::{self, Step};
use tokio::time::sleep;

use crate::agent::Agent;
use crate::event::{HostProbesFailed, HostProbesRepaired};
use crate::metrics::Metrics;

/// Without anything having changed, it is looked at this often.
const INTERVAL: Duration = Duration::from_secs(30);
/// Much changes in the nf_tables of a busy node: it is not looked at more often than this.
const SETTLE: Duration = Duration::from_secs(1);

/// The rule in the node's namespace.
#[derive(Debug)]
pub(crate) struct HostProbes {
    netns: NetNs,
    wanted: bool,
    kept: RefCell<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Kept open: closing one that has deleted something waits for the kernel.
    socket: Option<Socket>,
    /// The pods that it is in place for; none when that is not known.
    pods: Option<BTreeSet<IpAddr>>,
    failed: Option<String>,
}

impl HostProbes {
    /// Looks at nothing yet. A rule that is not wanted and that an earlier agent left is removed.
    pub(crate) fn open(netns: Option<&Path>, wanted: bool) -> anyhow::Result<Self> {
        let probes = Self { netns: node_netns(netns)?, wanted, kept: RefCell::default() };
        if !wanted {
            // Where the kernel has no nf_tables there is nothing to remove.
            let _ = remove(&probes.netns);
        }
        Ok(probes)
    }

    /// The pods are these now.
    pub(crate) fn follow(&self, pods: &BTreeSet<IpAddr>, metrics: &Metrics) {
        if !self.wanted {
            return;
        }
        let known = self.kept.borrow_mut().pods.take();
        let done = match &known {
            Some(known) => self.with_socket(|socket| host::update(socket, known, pods)),
            None => return self.reconcile(pods, &[], None, metrics),
        };
        match done {
            Ok(()) => self.kept.borrow_mut().pods = Some(pods.clone()),
            Err(_) => self.reconcile(pods, &[], known, metrics), // somebody has changed it
        }
    }

    /// Looks at what is there and puts it right; tells so when it was known to be right before.
    fn reconcile(&self, pods: &BTreeSet<IpAddr>, by: &[Author], known: Option<BTreeSet<IpAddr>>, metrics: &Metrics) {
        let done = self.with_socket(|socket| host::reconcile(socket, pods));
        let mut kept = self.kept.borrow_mut();
        match done {
            Ok(step) => {
                if step != Step::Nothing && known.is_some() {
                    HostProbesRepaired { what: &step.to_string(), by }.tell(metrics);
                }
                kept.pods = Some(pods.clone());
                kept.failed = None;
            }
            Err(why) => {
                if kept.failed.as_ref() != Some(&why) {
                    HostProbesFailed { why: &why }.tell();
                }
                kept.pods = None;
                kept.failed = Some(why);
            }
        }
    }

    fn with_socket<T>(&self, work: impl FnOnce(&Socket) -> Result<T, nft::NftError>) -> Result<T, String> {
        let mut kept = self.kept.borrow_mut();
        let socket = match kept.socket.take() {
            Some(socket) => socket,
            None => self.netns.run(Socket::open).map_err(|e| e.to_string())?.map_err(|e| e.to_string())?,
        };
        // After an error there may be answers left in it.
        let done = work(&socket).map_err(|e| e.to_string())?;
        kept.socket = Some(socket);
        Ok(done)
    }

    pub(crate) fn status(&self) -> HostProbesStatus {
        let kept = self.kept.borrow();
        let state = match &kept.failed {
            _ if !self.wanted => "off",
            Some(_) => "failed",
            None => "in place",
        };
        let addresses = kept.pods.as_ref().map_or(0, BTreeSet::len);
        HostProbesStatus { state: state.to_owned(), addresses, reason: kept.failed.clone() }
    }
}

/// Puts right what somebody changes, for as long as the agent lives.
pub(crate) async fn keep(agent: Rc<Agent>) {
    let probes = &agent.host_probes;
    if !probes.wanted {
        return;
    }
    let watch = Watch::nf_tables(&probes.netns)
        .inspect_err(|e| tracing::warn!("changes of the node's nf_tables are not told: {e}"))
        .ok();
    loop {
        let changed = async {
            match &watch {
                Some(watch) if watch.changed().await.is_ok() => {}
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep(INTERVAL) => {}
            () = changed => sleep(SETTLE).await,
        }
        let by = watch.as_ref().map(Watch::take).unwrap_or_default();
        let known = probes.kept.borrow_mut().pods.take();
        probes.reconcile(&agent.probed_addresses(), &by, known, &agent.metrics);
    }
}

/// Removes it; returns whether it was there.
pub(crate) fn uninstall(netns: Option<&Path>) -> anyhow::Result<bool> {
    remove(&node_netns(netns)?).map_err(|why| anyhow::anyhow!("{}: {why}", codes::HOST_PROBES))
}

fn remove(netns: &NetNs) -> Result<bool, String> {
    let removed = netns.run(|| Socket::open().and_then(|socket| host::remove(&socket)));
    removed.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

fn node_netns(path: Option<&Path>) -> anyhow::Result<NetNs> {
    let netns = path.map_or_else(NetNs::current, NetNs::open);
    netns.with_context(|| format!("{}: --host-netns", codes::HOST_PROBES))
}

//! Keeps the node's rule for health probes in sync with the enrolled pods. The rule stays when the
//! agent stops, so that no probe fails until the next one starts.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use agent_status::HostProbesStatus;
use anyhow::Context;
use error_code::agent as codes;
use netns::watch::{Author, Watch};
use netns::{NetNs, NetNsError};
use nft::{NftError, Socket};
use redirect::host::{self, TableChange};
use tokio::time::sleep;

use crate::metrics::Metrics;
use crate::pods_view::PodsView;
use crate::reporter::{HostProbesFailed, HostProbesRepaired};

/// Interval of checks without any change.
const INTERVAL: Duration = Duration::from_secs(30);
/// Delay of a check after a change, since the nf_tables of a busy node change often.
const SETTLE: Duration = Duration::from_secs(1);

/// Why the node's table could not be read or changed.
#[derive(Debug, thiserror::Error)]
enum HostTableError {
    /// The node's namespace cannot be entered. Likely cause: CAP_SYS_ADMIN is missing.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// The kernel rejected the operation. Likely cause: a kernel without nf_tables.
    #[error(transparent)]
    Nft(#[from] NftError),
}

/// The rule in the node's namespace.
#[derive(Debug)]
pub(crate) struct HostProbes {
    netns: Arc<NetNs>,
    enabled: bool,
    state: RefCell<RuleState>,
}

#[derive(Debug, Default)]
struct RuleState {
    /// Kept open: closing a socket after a deletion waits for the kernel.
    socket: Option<Socket>,
    /// The addresses in the rule's set; `None` if unknown.
    pods: Option<BTreeSet<IpAddr>>,
    error: Option<String>,
}

impl HostProbes {
    /// Opens the node's namespace. If disabled, removes a rule that an earlier agent left;
    /// otherwise installs nothing yet.
    pub(crate) fn open(netns: Option<&Path>, enabled: bool) -> anyhow::Result<Self> {
        let probes = Self {
            netns: Arc::new(node_netns(netns)?),
            enabled,
            state: RefCell::default(),
        };
        if !enabled {
            // A kernel without nf_tables has nothing to remove.
            let _ = remove(&probes.netns);
        }
        Ok(probes)
    }

    /// The node's namespace.
    pub(crate) fn netns(&self) -> Arc<NetNs> {
        self.netns.clone()
    }

    /// Sets the addresses of the enrolled pods.
    pub(crate) fn set_pods(&self, pods: &BTreeSet<IpAddr>, metrics: &Metrics) {
        if !self.enabled {
            return;
        }
        let known = self.state.borrow_mut().pods.take();
        let updated = match &known {
            Some(known) => self.with_socket(|socket| host::update(socket, known, pods)),
            None => return self.reconcile(pods, &[], None, metrics),
        };
        match updated {
            Ok(()) => self.state.borrow_mut().pods = Some(pods.clone()),
            Err(_) => self.reconcile(pods, &[], known, metrics), // another process changed it
        }
    }

    /// Whether there is nothing to install, or the rule was installed.
    pub(crate) fn is_set(&self) -> bool {
        let state = self.state.borrow();
        !self.enabled || state.pods.is_some() || state.error.is_some()
    }

    /// Checks the rule and repairs it; reports a repair only if the rule's state was known before.
    fn reconcile(
        &self,
        pods: &BTreeSet<IpAddr>,
        by: &[Author],
        known: Option<BTreeSet<IpAddr>>,
        metrics: &Metrics,
    ) {
        let reconciled = self.with_socket(|socket| host::reconcile(socket, pods));
        let mut state = self.state.borrow_mut();
        match reconciled {
            Ok(step) => {
                if step != TableChange::Unchanged && known.is_some() {
                    HostProbesRepaired { what: &step, by }.emit(metrics);
                }
                state.pods = Some(pods.clone());
                state.error = None;
            }
            Err(e) => {
                let why = e.to_string();
                if state.error.as_ref() != Some(&why) {
                    HostProbesFailed { why: &why }.emit();
                }
                state.pods = None;
                state.error = Some(why);
            }
        }
    }

    fn with_socket<T>(
        &self,
        work: impl FnOnce(&Socket) -> Result<T, NftError>,
    ) -> Result<T, HostTableError> {
        let mut state = self.state.borrow_mut();
        let socket = match state.socket.take() {
            Some(socket) => socket,
            None => self.netns.run(Socket::open)??,
        };
        // Not reused after an error: unread answers may be queued.
        let result = work(&socket)?;
        state.socket = Some(socket);
        Ok(result)
    }

    pub(crate) fn status(&self) -> HostProbesStatus {
        let rule = self.state.borrow();
        let state = match &rule.error {
            Some(_) => "failed",
            None if self.enabled => "in place",
            None => "off",
        };
        let addresses = rule.pods.as_ref().map_or(0, BTreeSet::len);
        HostProbesStatus {
            state: state.to_owned(),
            addresses,
            reason: rule.error.clone(),
        }
    }
}

/// Repairs the rule after changes and at intervals, forever.
pub(crate) async fn run(probes: Rc<HostProbes>, pods: PodsView, metrics: Rc<Metrics>) {
    if !probes.enabled {
        return;
    }
    let watch = Watch::open_nf_tables(&probes.netns)
        .inspect_err(|e| {
            tracing::warn!("cannot watch the node's nf_tables; falling back to polling: {e}");
        })
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
        let by = watch.as_ref().map(Watch::drain).unwrap_or_default();
        let known = probes.state.borrow_mut().pods.take();
        let addresses = pods.read().probed_addresses();
        probes.reconcile(&addresses, &by, known, &metrics);
    }
}

/// Removes the rule; returns whether it existed.
pub(crate) fn uninstall(netns: Option<&Path>) -> anyhow::Result<bool> {
    remove(&node_netns(netns)?).map_err(|e| anyhow::anyhow!("{}: {e}", codes::HOST_PROBES))
}

fn remove(netns: &NetNs) -> Result<bool, HostTableError> {
    Ok(netns.run(|| Socket::open().and_then(|socket| host::remove(&socket)))??)
}

fn node_netns(path: Option<&Path>) -> anyhow::Result<NetNs> {
    let netns = path.map_or_else(NetNs::current, NetNs::open);
    netns.with_context(|| format!("{}: --host-netns", codes::HOST_PROBES))
}
